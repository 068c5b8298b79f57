//! Device nodes, the links beside them, and images that lay traps where they are made.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};

use crate::inside::{Seen, ask, asking, privileged, refused, see, user_namespace};
use crate::support::{Bundle, mounts, runtime};

const DEFAULTS: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

#[test]
fn the_default_nodes_are_there() {
    requires!(root);
    let seen = ask(&[], |_| {});
    for (name, major, minor) in DEFAULTS {
        let node = &seen["dev"][name];
        assert_eq!(node["type"], "char", "{name}");
        assert_eq!(
            (&node["major"], &node["minor"]),
            (&json!(major), &json!(minor)),
            "{name}"
        );
        assert_eq!(node["mode"], "666", "{name}");
        assert_eq!(
            (&node["uid"], &node["gid"]),
            (&json!(0), &json!(0)),
            "{name}"
        );
    }
}

#[test]
fn the_default_nodes_work() {
    requires!(container);
    let seen = ask(
        &[
            "openw:/dev/null",
            "open:/dev/zero",
            "open:/dev/urandom",
            "write:/dev/full=x",
            "read:/dev/null",
        ],
        |_| {},
    );
    assert_eq!(seen.ok("openw:/dev/null"), true);
    assert_eq!(seen.ok("open:/dev/zero"), true);
    assert_eq!(seen.ok("open:/dev/urandom"), true);
    assert_eq!(seen.errno("write:/dev/full=x"), "ENOSPC");
    assert_eq!(seen.text("read:/dev/null"), "");
}

#[test]
fn the_links_in_dev_are_there() {
    requires!(container);
    let seen = ask(&["read:/dev/stdin", "stat:/dev/fd/0"], |_| {});
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    for (name, target) in links {
        assert_eq!(seen["dev"][name]["type"], "symlink", "{name}");
        assert_eq!(seen["dev"][name]["link"], target, "{name}");
    }
    if !runtime().is("runc") {
        // runc links it only where the host has a kcore.
        assert_eq!(seen["dev"]["core"]["link"], "/proc/kcore");
    }
    assert_eq!(seen.text("read:/dev/stdin"), "");
}

#[test]
fn nothing_else_is_in_dev() {
    requires!(container);
    let seen = ask(&[], |_| {});
    let known = [
        "null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr",
        "core", "ptmx", "pts", "shm", "mqueue", "console",
    ];
    for name in seen["dev"].as_object().unwrap().keys() {
        assert!(known.contains(&name.as_str()), "/dev/{name}");
    }
}

fn devices(config: &mut Value, devices: &Value) {
    config["linux"]["devices"] = devices.clone();
}

#[test]
fn configured_devices_are_made_with_their_modes_and_owners() {
    requires!(root);
    let wanted = json!([
        { "path": "/dev/mem0", "type": "c", "major": 1, "minor": 11, "fileMode": 0o640, "uid": 7, "gid": 8 },
        { "path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 5, "fileMode": 0o600 },
        { "path": "/dev/disk0", "type": "b", "major": 7, "minor": 0, "fileMode": 0o660, "gid": 6 },
        { "path": "/dev/pipe", "type": "p", "fileMode": 0o777 },
        { "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666 },
        { "path": "/elsewhere/node", "type": "c", "major": 1, "minor": 7, "fileMode": 0o644 },
    ]);
    let bundle = asking(
        &[
            "stat:/dev/mem0",
            "stat:/dev/unbuffered",
            "stat:/dev/disk0",
            "stat:/dev/pipe",
            "stat:/dev/net/tun",
            "stat:/elsewhere/node",
        ],
        |c| devices(c, &wanted),
    );
    // Modes are exact whatever the caller's umask is.
    let seen = crate::inside::answers(
        &bundle
            .verb(["run", &bundle.id])
            .under(["sh", "-c", "umask 027; exec \"$0\" \"$@\""])
            .ok(),
    );
    for (path, kind, numbers, mode, owner) in [
        ("/dev/mem0", "char", (1, 11), "640", (7, 8)),
        ("/dev/unbuffered", "char", (1, 5), "600", (0, 0)),
        ("/dev/disk0", "block", (7, 0), "660", (0, 6)),
        ("/dev/pipe", "fifo", (0, 0), "777", (0, 0)),
        ("/dev/net/tun", "char", (10, 200), "666", (0, 0)),
        ("/elsewhere/node", "char", (1, 7), "644", (0, 0)),
    ] {
        let node = seen.ok(&format!("stat:{path}"));
        assert_eq!(node["type"], kind, "{path}");
        assert_eq!(
            (&node["major"], &node["minor"]),
            (&json!(numbers.0), &json!(numbers.1)),
            "{path}"
        );
        assert_eq!(node["mode"], mode, "{path}");
        assert_eq!(
            (&node["uid"], &node["gid"]),
            (&json!(owner.0), &json!(owner.1)),
            "{path}"
        );
    }
}

#[test]
fn a_configured_device_replaces_the_default_one() {
    requires!(root);
    differs!("crun", "1.8 leaves the owner of a default node as it is");
    let seen = ask(&[], |c| {
        // COMPAT: in runc the entry takes the place of the default rule as well.
        if let Some(rules) = c["linux"]["resources"]["devices"].as_array_mut() {
            rules.push(
                json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" }),
            );
        }
        devices(
            c,
            &json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 5, "gid": 5 }]),
        );
    });
    let null = &seen["dev"]["null"];
    assert_eq!(
        (&null["mode"], &null["uid"], &null["gid"]),
        (&json!("600"), &json!(5), &json!(5))
    );
}

#[test]
fn a_device_of_no_known_type_is_refused() {
    requires!(root);
    differs!("crun", "1.8 takes any letter for a character device");
    refused(
        &asking(&[], |c| {
            devices(
                c,
                &json!([{ "path": "/dev/x", "type": "z", "major": 1, "minor": 3 }]),
            );
        }),
        "device",
    );
}

#[test]
fn a_dev_that_is_bound_is_left_alone() {
    requires!(root);
    let bundle = asking(&["list:/dev"], |c| {
        mounts(c).retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
        mounts(c).push(json!({
            "destination": "/dev", "type": "bind", "source": "mydev", "options": ["bind"],
        }));
    });
    let own = bundle.path.join("mydev");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("marker"), "").unwrap();
    // Runtimes reopen /dev/null for the payload.
    nix::sys::stat::mknod(
        &own.join("null"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        nix::sys::stat::makedev(1, 3),
    )
    .unwrap();
    let seen = see(&bundle);
    assert_eq!(seen.ok("list:/dev"), &json!(["marker", "null"]));
    assert_eq!(fs::read_dir(&own).unwrap().count(), 2);
}

#[test]
fn in_a_user_namespace_the_hosts_nodes_are_bound() {
    requires!(root);
    let seen = ask(
        &["openw:/dev/null", "open:/dev/zero", "open:/dev/urandom"],
        user_namespace,
    );
    for (name, major, minor) in DEFAULTS {
        let node = &seen["dev"][name];
        assert_eq!(node["type"], "char", "{name}");
        assert_eq!(
            (&node["major"], &node["minor"]),
            (&json!(major), &json!(minor)),
            "{name}"
        );
    }
    assert_eq!(seen.ok("openw:/dev/null"), true);
    assert_eq!(seen.ok("open:/dev/zero"), true);
    assert_eq!(seen.ok("open:/dev/urandom"), true);
}

/// udev, which is a part of systemd, has a link to each device by its number.
#[test]
fn in_a_user_namespace_a_device_may_have_another_name_than_the_hosts() {
    requires!(root, systemd);
    differs!("runc", "looks for the host's node at the same path alone");
    differs!("crun", "looks for the host's node at the same path alone");
    let seen = ask(&["openw:/dev/deep/nought"], |c| {
        user_namespace(c);
        c["linux"]["devices"] =
            json!([{ "path": "/dev/deep/nought", "type": "c", "major": 1, "minor": 5 }]);
    });
    assert_eq!(seen.ok("openw:/dev/deep/nought"), true);
}

/// The image's own `/dev`, with nothing mounted over it.
fn images_own_dev(config: &mut Value) {
    mounts(config).retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
}

/// The names below a directory, and whether each is more than an empty directory.
fn everything_in(dir: &std::path::Path) -> Vec<String> {
    let mut all: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    all.sort();
    all
}

/// CVE-2026-41579: everything under /dev was made by way of a link that leads to the host.
#[test]
fn an_image_whose_dev_is_a_symlink_gets_no_file_onto_the_host() {
    requires!(root);
    differs!(
        "crun",
        "1.8 makes nodes and links where the image points to"
    );
    differs!(
        "runc",
        "before 1.5 it makes nodes and links where the image points to"
    );
    for own_dev in [true, false] {
        let bundle = asking(&[], |c| {
            if own_dev {
                images_own_dev(c);
            }
            devices(
                c,
                &json!([{ "path": "/dev/extra", "type": "c", "major": 1, "minor": 3 }]),
            );
        });
        let outside = bundle.beside("outside");
        fs::create_dir(&outside).unwrap();
        fs::remove_dir(bundle.rootfs("dev")).unwrap();
        symlink(&outside, bundle.rootfs("dev")).unwrap();
        // Refusing and staying inside the root are both right.
        drop(bundle.run());
        assert_eq!(everything_in(&outside), Vec::<String>::new());
    }
}

/// The same by one name further down.
#[test]
fn links_among_the_devices_of_an_image_get_no_file_onto_the_host() {
    requires!(root);
    for name in [
        "null",
        "ptmx",
        "core",
        "fd",
        "stdin",
        "tty",
        "extra",
        "sub/extra",
        "pts",
        "shm",
    ] {
        let bundle = asking(&[], |c| {
            images_own_dev(c);
            devices(
                c,
                &json!([
                    { "path": "/dev/extra", "type": "c", "major": 1, "minor": 3 },
                    { "path": "/dev/sub/extra", "type": "c", "major": 1, "minor": 3 },
                ]),
            );
        });
        let outside = bundle.beside("outside");
        fs::create_dir(&outside).unwrap();
        let place = bundle.rootfs("dev").join(name);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(outside.join("made"), &place).unwrap();
        drop(bundle.run());
        assert_eq!(everything_in(&outside), Vec::<String>::new(), "/dev/{name}");
    }
}

/// Create with a terminal, whose master a listener takes.
fn create_with_terminal(bundle: &Bundle) -> i32 {
    let path = bundle.beside("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let taken = std::thread::spawn(move || {
        // One byte is enough to keep the sender content; the descriptor in the message is dropped with it.
        let (mut stream, _) = listener.accept().ok()?;
        let mut byte = [0];
        std::io::Read::read(&mut stream, &mut byte).ok()
    });
    let code = bundle
        .verb([
            "create",
            "--console-socket",
            path.to_str().unwrap(),
            &bundle.id,
        ])
        .run()
        .code();
    // Where the runtime has not come so far, this is the one who connects.
    drop(std::os::unix::net::UnixStream::connect(&path));
    taken.join().unwrap();
    code
}

/// CVE-2026-88264, CVE-2025-52565.
#[test]
fn a_console_that_is_a_symlink_gets_no_file_onto_the_host() {
    requires!(root);
    differs!(
        "crun",
        "before 1.30 the file is made where the image points to"
    );
    let bundle = asking(&[], |c| {
        images_own_dev(c);
        c["process"]["terminal"] = json!(true);
    });
    let outside = bundle.beside("outside");
    fs::create_dir(&outside).unwrap();
    symlink(outside.join("made"), bundle.rootfs("dev/console")).unwrap();
    create_with_terminal(&bundle);
    assert_eq!(everything_in(&outside), Vec::<String>::new());
    bundle.verb(["delete", "--force", &bundle.id]).run();
    assert_eq!(everything_in(&outside), Vec::<String>::new());
}

/// CVE-2026-88265: the payload's standard streams must not become a file that the image names, nor may it be given away.
#[test]
fn a_null_device_that_is_a_symlink_gives_nothing_away() {
    requires!(root);
    differs!(
        "runc",
        "1.1 reopens /dev/null by its name, over the standard streams"
    );
    differs!("crun", "before 1.30 it reopens /dev/null by its name");
    let bundle = asking(&["read:/proc/self/fd/0"], |c| {
        images_own_dev(c);
        mounts(c).push(json!({
            "destination": "/bound", "type": "bind", "source": "precious", "options": ["bind"],
        }));
        c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    });
    let precious = bundle.path.join("precious");
    fs::write(&precious, "kept").unwrap();
    symlink("/bound", bundle.rootfs("dev/null")).unwrap();
    let outcome = bundle.run();
    if outcome.code() == 0 {
        let seen = crate::inside::answers(&outcome);
        assert_eq!(seen.text("read:/proc/self/fd/0"), "");
        for n in ["0", "1", "2"] {
            assert_ne!(seen["fds"][n], "/bound");
        }
    }
    let after = fs::metadata(&precious).unwrap();
    assert_eq!((after.uid(), after.gid()), (0, 0));
    assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
}

/// CVE-2025-31133: a mask made from the image's /dev/null would bind whatever that is a link to.
#[test]
fn a_mask_is_never_made_from_the_images_null_device() {
    requires!(root);
    differs!(
        "crun",
        "before 1.30 it reopens /dev/null by its name, over the standard streams"
    );
    differs!("runc", "before 1.2.8 the image's own /dev/null is bound");
    let bundle = asking(
        &["read:/secret", "write:/secret=owned", "stat:/secret"],
        |c| {
            images_own_dev(c);
            privileged(c);
            c["linux"]["maskedPaths"] = json!(["/secret"]);
        },
    );
    fs::write(bundle.rootfs("secret"), "hush").unwrap();
    fs::write(bundle.rootfs("bait"), "bait").unwrap();
    symlink("/bait", bundle.rootfs("dev/null")).unwrap();
    let outcome = bundle.run();
    if outcome.code() == 0 {
        let seen: Seen = crate::inside::answers(&outcome);
        assert_eq!(seen.text("read:/secret"), "");
        let mask = seen.ok("stat:/secret");
        assert_eq!(
            (&mask["type"], &mask["major"], &mask["minor"]),
            (&json!("char"), &json!(1), &json!(3))
        );
    }
    assert_eq!(fs::read_to_string(bundle.rootfs("secret")).unwrap(), "hush");
    assert_eq!(fs::read_to_string(bundle.rootfs("bait")).unwrap(), "bait");
}

/// A mask that is the host's null device, on a writable mount: the container's root is its owner, and a `chmod` of the
/// masked path would take the device from every user of the machine.
#[test]
fn a_mask_gives_the_container_no_hold_on_the_hosts_null_device() {
    requires!(container);
    let seen = ask(&[], |c| {
        c["linux"]["maskedPaths"] = json!(["/proc/keys"]);
    });
    let mask = seen.mount("/proc/keys");
    assert!(mask.kind() != "devtmpfs" || mask.own("ro"));
}

/// A plain file where a default device belongs is no device.
#[test]
fn a_fifo_that_the_image_has_is_the_configured_one() {
    requires!(root);
    let wanted = json!([{ "path": "/dev/pipe", "type": "p", "fileMode": 0o600 }]);
    for edit in [|_: &mut Value| {}, user_namespace] {
        let bundle = asking(&["stat:/dev/pipe"], |c| {
            images_own_dev(c);
            devices(c, &wanted);
            edit(c);
        });
        let pipe = bundle.rootfs("dev/pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        // Whatever else the runtime puts there is to belong to the container's root.
        std::os::unix::fs::chown(bundle.rootfs("dev"), Some(100_000), Some(100_000)).unwrap();
        assert_eq!(see(&bundle).ok("stat:/dev/pipe")["type"], "fifo");
    }
}

#[test]
fn a_file_in_the_place_of_a_device_is_not_taken_for_one() {
    requires!(root);
    differs!("crun", "1.8 leaves what is there");
    differs!("runc", "1.1 leaves what is there");
    let bundle = asking(&["stat:/dev/zero"], images_own_dev);
    fs::write(bundle.rootfs("dev/zero"), "not a device").unwrap();
    refused(&bundle, "/dev/zero");
}
