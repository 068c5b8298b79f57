//! Bundles made from images: what config.json says, what the root holds, when an overlay goes away.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::support::needs::is_root;
use crate::support::{
    Canary, ImageBuilder, Outcome, Store, eventually, mounts_below, own_state_root, runtime_for,
    tree,
};

/// A store that has `image`, without the verb that imports it: a store is an OCI layout.
fn store_with(image: &ImageBuilder) -> Store {
    let store = Store::new();
    image.write_layout(&store.root);
    store
}

/// An image that is somebody: users, a volume with content, labels.
fn rich() -> ImageBuilder {
    ImageBuilder::busybox()
        .layer(|l| {
            l.file(
                "etc/passwd",
                "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n",
                0o644,
            )
            .file(
                "etc/group",
                "root:x:0:\nwww:x:33:\nlogs:x:7:web\nssl:x:5:web\n",
                0o644,
            )
            .dir("srv", 0o755);
        })
        .layer(|l| {
            l.owner(33, 33)
                .dir("srv/data", 0o750)
                .file("srv/data/seed", "seed\n", 0o640);
        })
        .config(|c| {
            c["author"] = json!("somebody");
            c["config"] = json!({
                "User": "web",
                "Entrypoint": ["/bin/echo"],
                "Cmd": ["hello"],
                "Env": ["PATH=/bin", "NAME=value", "HOME=/elsewhere"],
                "WorkingDir": "/srv",
                "StopSignal": "SIGRTMIN+3",
                "ExposedPorts": {"80": {}, "443/tcp": {}},
                "Volumes": {"/srv/data": {}, "/srv/../srv/data/": {}, "/proc": {}, "../..": {}},
                "Labels": {
                    "maintainer": "me",
                    "org.systemd.property.ExecStartPre": "evil",
                    "cdi.k8s.io/x": "vendor.com/device=all",
                    "run.oci.hooks.stdout": "/etc/shadow",
                },
                "Healthcheck": null,
            });
        })
        .tag("rich:1")
}

fn config(bundle: &Path) -> Value {
    serde_json::from_slice(&fs::read(bundle.join("config.json")).expect("config.json"))
        .expect("JSON")
}

fn shown(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// `pelagos-image bundle OPTIONS IMAGE DIR`.
fn bundle(store: &Store, options: &[&str], image: &str, dir: &Path) -> Outcome {
    let mut args = vec!["bundle"];
    args.extend(options);
    let dir = shown(dir);
    args.extend([image, &dir]);
    store.run(args)
}

/// Run a bundle with the runtime `program`, its state beside the store: exit code and standard output.
fn run_with(store: &Store, program: &Path, bundle: &Path) -> (Option<i32>, String, String) {
    let state = store.beside("state");
    fs::create_dir_all(&state).expect("state root");
    let done = Command::new(program)
        .arg("--root")
        .arg(&state)
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(format!("t-{}", std::process::id()))
        .output()
        .expect("start the runtime");
    (
        done.status.code(),
        String::from_utf8_lossy(&done.stdout).into_owned(),
        String::from_utf8_lossy(&done.stderr).into_owned(),
    )
}

// L-44 .. L-52
#[test]
fn config_json_says_what_the_image_says() {
    let store = store_with(&rich());
    if !is_root() {
        return;
    }
    let dir = store.beside("b");
    let outcome = bundle(&store, &[], "rich:1", &dir).ok();
    outcome.warns("cdi.k8s.io/x, org.systemd.property.ExecStartPre, run.oci.hooks.stdout");
    outcome.warns("../.., /proc");
    let config = config(&dir);
    let process = &config["process"];
    assert_eq!(process["args"], json!(["/bin/echo", "hello"]));
    assert_eq!(
        process["env"],
        json!(["PATH=/bin", "NAME=value", "HOME=/elsewhere"])
    );
    assert_eq!(process["cwd"], "/srv");
    assert_eq!(
        process["user"],
        json!({"uid": 33, "gid": 33, "additionalGids": [5, 7]})
    );
    assert_eq!(process["terminal"], false);
    let annotations = config["annotations"].as_object().expect("annotations");
    let image = |name: &str| annotations[&format!("org.opencontainers.image.{name}")].clone();
    assert_eq!(image("os"), "linux");
    assert_eq!(image("author"), "somebody");
    assert_eq!(image("stopSignal"), "SIGRTMIN+3");
    assert_eq!(image("exposedPorts"), "443/tcp,80");
    assert_eq!(annotations["maintainer"], "me");
    assert!(!annotations.keys().any(|key| key.contains("systemd")
        || key.contains("cdi.k8s.io")
        || key.contains("run.oci")));
    let own: Vec<_> = config["mounts"]
        .as_array()
        .expect("mounts")
        .iter()
        .filter(|mount| mount["type"] == "bind")
        .map(|mount| (mount["destination"].clone(), mount["source"].clone()))
        .collect();
    assert_eq!(own, [(json!("/srv/data"), json!("volumes/0"))]);
}

// L-50
#[test]
fn all_labels_are_taken_when_they_are_asked_for() {
    let store = store_with(&rich());
    let dir = store.beside("b");
    bundle(&store, &["--labels=all"], "rich:1", &dir).ok();
    let annotations = &config(&dir)["annotations"];
    assert_eq!(annotations["org.systemd.property.ExecStartPre"], "evil");
    assert_eq!(annotations["cdi.k8s.io/x"], "vendor.com/device=all");
}

// L-45, L-46, L-47
#[test]
fn the_caller_has_the_last_word() {
    let store = store_with(&rich());
    let dir = store.beside("b");
    let outcome = store
        .call([
            "bundle",
            "--entrypoint",
            "/bin/ls",
            "--env",
            "NAME=other",
            "-e",
            "FROM_HERE",
            "--workdir",
            "/tmp",
            "--user",
            "0:7",
            "--label",
            "a=b",
            "--hostname",
            "lighthouse",
            "--tty",
            "--read-only",
            "rich:1",
        ])
        .arg(&dir)
        .arg("--")
        .arg("-l")
        .env("FROM_HERE", "yes")
        .ok();
    assert_eq!(outcome.stdout, "");
    let config = config(&dir);
    let process = &config["process"];
    assert_eq!(process["args"], json!(["/bin/ls", "-l"]));
    assert_eq!(
        process["env"],
        json!([
            "PATH=/bin",
            "HOME=/elsewhere",
            "NAME=other",
            "FROM_HERE=yes",
            "TERM=xterm"
        ])
    );
    assert_eq!(process["cwd"], "/tmp");
    assert_eq!(process["user"], json!({"uid": 0, "gid": 7}));
    assert_eq!(process["terminal"], true);
    assert_eq!(config["root"]["readonly"], true);
    assert_eq!(config["hostname"], "lighthouse");
    assert_eq!(config["annotations"]["a"], "b");
}

// L-54, S-5
#[test]
fn a_bundle_is_its_owners_alone_and_is_registered() {
    let image = rich();
    let built = image.build();
    let store = store_with(&image);
    let dir = store.beside("b");
    fs::create_dir(&dir).expect("directory");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("mode");
    bundle(&store, &[], "rich:1", &dir).ok();
    let mode = |path: &Path| fs::metadata(path).expect("stat").mode() & 0o7777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("rootfs")), 0o755);
    assert_eq!(mode(&store.root), 0o700);
    let records = store.names("records/bundles");
    assert_eq!(records.len(), 1);
    let record = store.json(&format!("records/bundles/{}", records[0]));
    assert_eq!(record["path"], shown(&dir));
    assert_eq!(record["manifest"], built.digest);
    assert_eq!(record["config"], built.config_digest);
    assert_eq!(record["layers"], json!(built.layers));
    assert_eq!(record["chain"], json!([]));
    assert_eq!(record["imageName"], "rich:1");
    store.assert_nothing_left();
    store.ok(["rm", &shown(&dir)]);
    assert!(!dir.exists());
    assert_eq!(store.names("records/bundles"), [""; 0]);
}

#[test]
fn a_bundle_that_cannot_be_made_leaves_nothing() {
    let store = store_with(&rich());
    let (absent, empty, full) = (store.beside("a"), store.beside("e"), store.beside("f"));
    fs::create_dir(&empty).expect("directory");
    fs::create_dir(&full).expect("directory");
    fs::write(full.join("mine"), "").expect("file");
    for (options, words) in [
        (&["--user", "nobody"][..], "user \"nobody\": not in"),
        (&["--user", "4294967296"], "not an id"),
        (&["--workdir", "x"], "not an absolute path"),
        (&["--volume", "/surely/not/there:/x"], "/surely/not/there"),
    ] {
        for dir in [&absent, &empty] {
            bundle(&store, options, "rich:1", dir).fails_with(words);
        }
        assert!(!absent.exists());
        assert_eq!(fs::read_dir(&empty).expect("directory").count(), 0);
    }
    bundle(&store, &[], "rich:1", &full).fails_with("not empty");
    assert!(full.join("mine").exists());
    bundle(&store, &[], "other:1", &absent).fails_with("other:1");
    bundle(&store, &[], "rich:1", Path::new("/surely/not/there")).fails_with("/surely/not");
    let bytes = store.beside(OsStr::from_bytes(b"b\xff"));
    let call = store.call(["bundle", "rich:1"]).arg(&bytes);
    call.run().fails_with("the path is not UTF-8");
    assert!(!bytes.exists());
    assert_eq!(store.names("records/bundles"), [""; 0]);
    store.assert_nothing_left();
}

// L-51
#[test]
fn a_volume_of_the_image_begins_with_what_the_image_has_there() {
    requires!(root);
    let store = store_with(&rich());
    let dir = store.beside("b");
    bundle(&store, &[], "rich:1", &dir).ok();
    let seeded = tree(dir.join("volumes/0"));
    let seed = seeded.iter().find(|entry| entry.path == Path::new("seed"));
    let seed = seed.expect("seed");
    assert_eq!((seed.uid, seed.gid, seed.mode & 0o7777), (33, 33, 0o640));
    assert_eq!(
        fs::read(dir.join("volumes/0/seed")).expect("seed"),
        b"seed\n"
    );
    let top = fs::metadata(dir.join("volumes/0")).expect("stat");
    assert_eq!((top.uid(), top.mode() & 0o7777), (33, 0o750));
    assert_eq!(
        fs::metadata(dir.join("volumes")).expect("stat").mode() & 0o7777,
        0o700
    );
}

// L-51, S-11: CVE-2022-23648, and links that lead where no volume may be
#[test]
fn no_volume_leads_out_of_the_root_or_over_the_kernels_file_systems() {
    let store = store_with(
        &ImageBuilder::busybox()
            .layer(|l| {
                l.symlink("kernel", "/proc")
                    .symlink("up", "../../../../../../..")
                    .file("plain", "", 0o644);
            })
            .config(|c| {
                c["config"]["Volumes"] = json!({
                    "/kernel": {}, "/kernel/sys": {}, "/dev/shm": {}, "/sys": {}, "/": {}, "/plain": {},
                    "/../../../up/etc": {},
                });
            })
            .tag("hostile:1"),
    );
    let canary = Canary::beside(&store.root);
    let dir = store.beside("b");
    let outcome = bundle(&store, &[], "hostile:1", &dir).ok();
    outcome.warns("/kernel");
    outcome.warns("/plain");
    let binds: Vec<_> = config(&dir)["mounts"]
        .as_array()
        .expect("mounts")
        .iter()
        .filter(|mount| mount["type"] == "bind")
        .map(|mount| mount["destination"].clone())
        .collect();
    assert_eq!(binds, [json!("/etc")]);
    // What was copied is the image's, not the machine's.
    let copied = fs::read_to_string(dir.join("volumes/0/passwd")).expect("passwd");
    assert_eq!(copied, "root:x:0:0::/root:/bin/sh\n");
    canary.assert_untouched();
}

#[test]
fn named_volumes_are_made_and_paths_are_mounted() {
    // Who is not root cannot read what the volume was given by its image.
    requires!(root);
    let store = store_with(&rich());
    let dir = store.beside("b");
    let host = store.beside("host");
    fs::create_dir(&host).expect("directory");
    let path = format!("{}:/opt/host:ro", shown(&host));
    let options = ["--volume", "data:/srv/data", "--volume", &path];
    bundle(&store, &options, "rich:1", &dir).ok();
    let mounts = config(&dir)["mounts"].clone();
    let at = |place: &str| {
        let mut all = mounts.as_array().expect("mounts").iter();
        all.find(|mount| mount["destination"] == place)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(at("/opt/host")["source"], shown(&host));
    assert_eq!(
        at("/opt/host")["options"],
        json!(["rbind", "rprivate", "ro"])
    );
    assert_eq!(
        at("/srv/data")["source"],
        shown(&store.path("volumes/data"))
    );
    assert!(!dir.join("volumes").exists(), "the image's own gave way");
    let seed = fs::read(store.path("volumes/data/seed")).expect("seeded");
    assert_eq!(seed, b"seed\n");
    let record = store.json("records/volumes/data.json");
    assert_eq!(
        (&record["pinned"], &record["anonymous"]),
        (&json!(false), &json!(false))
    );
    bundle(
        &store,
        &["-v", "a:/srv/x", "-v", "b:/srv/./x"],
        "rich:1",
        &store.beside("c"),
    )
    .fails_with("two are mounted there");
}

#[test]
fn every_runtime_takes_the_bundle() {
    requires!(root);
    let store = store_with(&ImageBuilder::busybox().tag("bb:1"));
    let dir = store.beside("b");
    bundle(&store, &[], "bb:1", &dir).ok();
    let mut runtimes = vec![runtime_for(&store)];
    for path in ["/usr/sbin/runc", "/usr/bin/runc", "/usr/bin/crun"] {
        runtimes.extend(Some(PathBuf::from(path)).filter(|path| path.exists()));
    }
    for program in runtimes {
        let (code, stdout, stderr) = run_with(&store, &program, &dir);
        // Without the right to lock memory crun cannot load its device filter; it has read the bundle by then.
        if stderr.contains("RLIM_MEMLOCK") {
            continue;
        }
        assert_eq!(code, Some(0), "{}: {stderr}", program.display());
        assert_eq!(stdout, "hello\n", "{}", program.display());
    }
}

// L-14, S-13
#[test]
fn an_overlay_is_mounted_until_rm_and_its_layers_stay_as_they_are() {
    requires!(root);
    own_state_root();
    let image = rich();
    let built = image.build();
    let store = store_with(&image);
    let dir = store.beside("b");
    bundle(&store, &["--overlay"], "rich:1", &dir).ok();
    let rootfs = dir.join("rootfs");
    assert_eq!(mounts_below(&dir), std::slice::from_ref(&rootfs));
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    let line = table.lines().find(|line| line.contains(&shown(&rootfs)));
    let line = line.expect("mounted");
    for chain in &built.chain_ids {
        assert!(
            line.contains(&shown(&store.path("layers").join(&chain[7..]))),
            "{line}"
        );
    }
    let layers = tree(store.path("layers"));
    fs::write(rootfs.join("etc/passwd"), "changed").expect("write");
    fs::remove_file(rootfs.join("bin/busybox")).expect("remove");
    assert!(dir.join("overlay/upper/etc/passwd").exists());
    assert!(
        layers == tree(store.path("layers")),
        "a shared layer changed"
    );
    let record = store.json(&format!(
        "records/bundles/{}",
        store.names("records/bundles")[0]
    ));
    assert_eq!(record["chain"], json!(built.chain_ids));
    assert_eq!(record["overlay"], true);
    // A second one has its own upper directory.
    let other = store.beside("c");
    bundle(&store, &["--overlay"], "rich:1", &other).ok();
    assert!(other.join("rootfs/bin/busybox").exists());
    store.ok(["rm", &shown(&dir), &shown(&other)]);
    assert_eq!(store.names("records/bundles"), [""; 0]);
    assert!(!dir.exists() && !other.exists());
    store.assert_nothing_left();
}

#[test]
fn an_overlay_has_as_many_layers_as_the_image_and_none_is_too_few() {
    requires!(root);
    own_state_root();
    let mut image = ImageBuilder::busybox();
    for number in 0..90 {
        image = image.layer(|l| {
            l.file(format!("file-{number}"), number.to_string(), 0o644)
                .file("same", number.to_string(), 0o644);
        });
    }
    let store = store_with(&image.tag("deep:1"));
    let dir = store.beside("b");
    bundle(&store, &["--overlay"], "deep:1", &dir).ok();
    let text = |name: &str| fs::read_to_string(dir.join("rootfs").join(name)).expect(name);
    assert_eq!(
        (text("file-0"), text("file-89"), text("same")),
        ("0".into(), "89".into(), "89".into())
    );
    store.ok(["rm", &shown(&dir)]);

    let empty = Store::new();
    ImageBuilder::new()
        .config(|c| c["config"]["Cmd"] = json!(["/x"]))
        .tag("empty:1")
        .write_layout(&empty.root);
    let dir = empty.beside("b");
    bundle(&empty, &["--overlay"], "empty:1", &dir).ok();
    assert_eq!(fs::read_dir(dir.join("rootfs")).expect("rootfs").count(), 0);
    empty.ok(["rm", &shown(&dir)]);
    empty.assert_nothing_left();
}

#[test]
fn a_mount_that_the_kernel_refuses_leaves_nothing() {
    requires!(root, command "strace");
    own_state_root();
    let store = store_with(&rich());
    let dir = store.beside("b");
    for fault in ["move_mount:error=ENOSPC", "fsmount:error=ENOMEM"] {
        store
            .call(["bundle", "--overlay", "rich:1", &shown(&dir)])
            .injecting(fault)
            .run()
            .fails_with("mount the overlay");
        assert!(!dir.exists(), "{fault}");
        assert_eq!(store.names("records/bundles"), [""; 0], "{fault}");
        store.assert_nothing_left();
    }
}

// L-29
#[test]
fn an_id_map_gives_the_tree_to_the_ids_outside() {
    requires!(root);
    let store = store_with(&rich());
    let dir = store.beside("b");
    bundle(&store, &["--uid-map", "0:100000:1000"], "rich:1", &dir).ok();
    let owner = |name: &str| {
        let stat = fs::symlink_metadata(dir.join(name)).expect(name);
        (stat.uid(), stat.gid())
    };
    assert_eq!(owner("rootfs/bin/busybox"), (100_000, 100_000));
    assert_eq!(owner("rootfs/srv/data/seed"), (100_033, 100_033));
    assert_eq!(owner("volumes/0/seed"), (100_033, 100_033));
    let config = config(&dir);
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    assert_eq!(config["linux"]["uidMappings"], map);
    assert_eq!(config["linux"]["gidMappings"], map);
    let kinds = config["linux"]["namespaces"].to_string();
    assert!(kinds.contains("\"user\""), "{kinds}");
    let none = store.beside("c");
    bundle(&store, &["--uid-map", "0:100000:33"], "rich:1", &none).fails_with("33");
    assert!(!none.exists());
    bundle(
        &store,
        &["--overlay", "--uid-map", "0:1:9"],
        "rich:1",
        &none,
    )
    .fails_with("id map");
}

#[test]
fn a_bundle_with_an_id_map_runs() {
    requires!(root);
    let store = store_with(
        &ImageBuilder::busybox()
            .config(|c| {
                c["config"]["Cmd"] = json!(["/bin/sh", "-c", "echo $(stat -c %u /bin/busybox)"]);
            })
            .tag("bb:1"),
    );
    // Ids of another user have to be able to reach the bundle's parents, and nothing else of it: 0700 is the owner's.
    let dir = store.beside("b");
    bundle(&store, &["--uid-map", "0:100000:65536"], "bb:1", &dir).ok();
    let (code, stdout, stderr) = run_with(&store, &runtime_for(&store), &dir);
    assert_eq!((code, stdout.as_str()), (Some(0), "0\n"), "{stderr}");
}

// B-3
#[test]
fn a_bundle_stays_while_a_container_of_it_exists() {
    requires!(root);
    own_state_root();
    let store = store_with(&ImageBuilder::busybox().tag("bb:1"));
    let dir = store.beside("b");
    bundle(&store, &[], "bb:1", &dir).ok();
    let runtime = runtime_for(&store);
    let pelagos = |args: &[&str]| {
        // Its container would hold a pipe open.
        let done = Command::new(&runtime)
            .args(args)
            .stdout(Stdio::null())
            .status()
            .expect("runtime");
        assert!(done.success(), "{args:?}");
    };
    pelagos(&["create", "--bundle", &shown(&dir), "web-1"]);
    let refused = store.run(["rm", &shown(&dir)]);
    refused.fails_with("container web-1");
    assert!(dir.join("config.json").exists());
    store.run(["rm", "bb:1"]).fails_with("web-1");
    let forced = store.ok(["rm", "--force", &shown(&dir)]);
    forced.warns("container web-1");
    assert!(!dir.exists());
    pelagos(&["delete", "--force", "web-1"]);
}

// S-13
#[test]
fn removal_crosses_no_mount_and_follows_no_link() {
    requires!(root);
    own_state_root();
    let store = store_with(&rich());
    let dir = store.beside("b");
    bundle(&store, &[], "rich:1", &dir).ok();
    let outside = store.beside("outside");
    fs::create_dir(&outside).expect("directory");
    fs::write(outside.join("precious"), "x").expect("file");
    let none = None::<&str>;
    mount(
        Some(&outside),
        &dir.join("rootfs/tmp"),
        none,
        MsFlags::MS_BIND,
        none,
    )
    .expect("bind");
    store.run(["rm", &shown(&dir)]).fails_with("mounted");
    assert!(outside.join("precious").exists());
    assert_eq!(store.names("records/bundles").len(), 1);
    nix::mount::umount(&dir.join("rootfs/tmp")).expect("unmount");
    // What stands in the bundle's place now is not the bundle.
    let (away, link) = (store.beside("away"), store.beside("b"));
    fs::rename(&dir, &away).expect("rename");
    std::os::unix::fs::symlink(&outside, &link).expect("link");
    store.ok(["rm", &shown(&link)]);
    assert!(outside.join("precious").exists() && away.exists());
    fs::remove_dir_all(away).expect("remove");
}

#[test]
fn a_bundle_that_was_removed_by_hand_is_forgotten() {
    let store = store_with(&rich());
    let dir = store.beside("b");
    bundle(&store, &[], "rich:1", &dir).ok();
    // What belongs to subordinate ids an ordinary user can move, not remove.
    fs::rename(&dir, store.beside("elsewhere")).expect("move away");
    store.ok(["rm", &shown(&dir)]);
    assert_eq!(store.names("records/bundles"), [""; 0]);
    fs::create_dir(&dir).expect("directory");
    store
        .run(["rm", &shown(&dir)])
        .fails_with("not a bundle of this store");
    assert!(dir.exists());
}

// S-14
#[test]
fn what_an_image_says_cannot_steer_the_terminal() {
    let store = store_with(
        &ImageBuilder::busybox()
            .config(|c| {
                c["config"]["Labels"] = json!({"run.oci.\u{1b}[2J": "x"});
                c["config"]["Volumes"] = json!({"/proc/\u{1b}[2J": {}});
            })
            .tag("bb:1"),
    );
    let outcome = bundle(&store, &[], "bb:1", &store.beside("b")).ok();
    assert!(!outcome.stderr.contains('\u{1b}'), "{outcome}");
    assert!(outcome.stderr.contains("run.oci."), "{outcome}");
}

#[test]
fn rm_takes_names_away_and_says_what_stays() {
    let image = ImageBuilder::busybox().tag("a:1");
    let built = image.build();
    let store = store_with(&image);
    store.ok(["tag", "a:1", "b:1", "c:1"]);
    let said = store.ok(["rm", "a:1"]).stdout;
    assert_eq!(said, "untagged a:1; the image is also called b:1, c:1\n");
    store.run(["rm", "a:1"]).fails_with("not in the store");
    store
        .run(["rm", &built.digest])
        .fails_with("several names: b:1, c:1");
    let said = store.ok(["rm", "--force", &built.digest]).stdout;
    assert_eq!(
        said,
        "removed b:1, c:1; what it is made of stays until prune\n"
    );
    assert_eq!(store.json("index.json")["manifests"], json!([]));
    assert!(store.blob(&built.digest).exists());
}

// B-2
#[test]
fn an_image_that_a_bundle_uses_keeps_its_last_name() {
    let store = store_with(&rich());
    let dir = store.beside("b");
    bundle(&store, &[], "rich:1", &dir).ok();
    store
        .run(["rm", "rich:1"])
        .fails_with(&format!("used by bundle {}", shown(&dir)));
    store.ok(["tag", "rich:1", "other:1"]);
    store.ok(["rm", "rich:1"]);
    store.run(["rm", "other:1"]).fails_with("used by bundle");
    store.ok(["rm", "--force", "other:1"]);
    store.ok(["rm", &shown(&dir)]);
}

#[test]
fn a_bundle_whose_command_was_killed_is_a_leftover_and_one_in_the_making_is_not() {
    requires!(root, command "strace");
    own_state_root();
    let store = store_with(&rich());
    // The first command makes a store of it.
    store.ok(["tag", "rich:1", "also:1"]);
    let (dir, other) = (store.beside("b"), store.beside("other"));
    let killed = |dir: &Path| {
        let call = store.call(["bundle".as_ref(), "rich:1".as_ref(), dir.as_os_str()]);
        // The second record, that of the finished bundle.
        let outcome = call.injecting("renameat:signal=SIGKILL:when=2").run();
        assert_ne!(outcome.code, 0, "{outcome}");
        assert!(dir.join("rootfs").exists() && store.names("records/bundles").len() == 1);
    };
    killed(&dir);
    store.ok(["prune", "--yes"]);
    assert!(dir.join("rootfs").exists());
    store
        .run(["rm", "no/such:1"])
        .fails_with("not in the store");
    assert!(!dir.exists());
    assert_eq!(store.names("records/bundles"), [""; 0]);
    // The same again is the command that finds it.
    killed(&dir);
    store
        .call(["bundle".as_ref(), "rich:1".as_ref(), dir.as_os_str()])
        .ok();
    assert!(dir.join("config.json").exists());
    assert_eq!(store.names("records/bundles").len(), 1);

    let mut slow = store
        .call(["bundle".as_ref(), "rich:1".as_ref(), other.as_os_str()])
        .injecting("renameat:delay_enter=2000000:when=2")
        .spawn();
    assert!(eventually(|| other.join("config.json").exists()));
    store
        .run(["rm", "no/such:1"])
        .fails_with("not in the store");
    assert!(slow.is_running());
    let slow = slow.wait();
    assert_eq!(slow.code(), 0, "{slow}");
    assert!(other.join("config.json").exists());
    assert_eq!(store.names("records/bundles").len(), 2);
    for record in store.names("records/bundles") {
        assert_eq!(
            store.json(&format!("records/bundles/{record}"))["unfinished"],
            Value::Null
        );
    }
    store.ok(["rm".as_ref(), dir.as_os_str(), other.as_os_str()]);
    store.assert_nothing_left();
}
