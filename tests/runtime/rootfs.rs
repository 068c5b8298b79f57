//! The root: how it is entered, what propagates, what is read-only and what is hidden.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::inside::{answers, ask, asking, privileged, refused, see, user_namespace};
use crate::support::needs::is_root;
use crate::support::{mounts, runtime};

#[test]
fn a_read_only_root_refuses_writes_and_its_mounts_take_them() {
    requires!(container);
    let seen = ask(
        &[
            "create:/made",
            "mkdir:/tmp/made",
            "write:/etc/passwd=x",
            "create:/dev/shm/made",
            "create:/dev/made",
        ],
        |c| c["root"]["readonly"] = json!(true),
    );
    assert_eq!(seen.errno("create:/made"), "EROFS");
    assert_eq!(seen.errno("mkdir:/tmp/made"), "EROFS");
    assert_eq!(seen.errno("write:/etc/passwd=x"), "EROFS");
    assert_eq!(seen.ok("create:/dev/shm/made"), true);
    assert_eq!(seen.ok("create:/dev/made"), true);
    assert!(seen.mount("/").own("ro"));
    assert!(seen.mount("/dev").own("rw"));
}

#[test]
fn a_read_only_root_keeps_the_other_flags_of_its_mount() {
    requires!(root);
    differs!("crun", "1.8 drops the flags of the mount");
    differs!("runc", "1.1 drops the flags of the mount");
    let bundle = asking(&["create:/made"], |c| c["root"]["readonly"] = json!(true));
    let root = bundle.rootfs("");
    let none = None::<&str>;
    mount(Some(&root), &root, none, MsFlags::MS_BIND, none).unwrap();
    mount(
        none,
        &root,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        none,
    )
    .unwrap();
    let seen = see(&bundle);
    for option in ["ro", "nosuid", "nodev"] {
        assert!(
            seen.mount("/").own(option),
            "{option}: {:?}",
            seen.mount("/")
        );
    }
}

#[test]
fn a_writable_root_is_the_bundles() {
    requires!(container);
    let bundle = asking(&["create:/made"], |_| {});
    assert_eq!(see(&bundle).ok("create:/made"), true);
    assert!(bundle.rootfs("made").is_file());
}

#[test]
fn a_read_only_root_holds_in_a_user_namespace() {
    requires!(root);
    let bundle = asking(&["create:/open/made"], |c| {
        user_namespace(c);
        c["root"]["readonly"] = json!(true);
    });
    fs::create_dir(bundle.rootfs("open")).unwrap();
    fs::set_permissions(bundle.rootfs("open"), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(see(&bundle).errno("create:/open/made"), "EROFS");
}

#[test]
fn the_root_path_may_be_relative_or_absolute() {
    requires!(container);
    let bundle = asking(&["stat:/bin/busybox"], |_| {});
    let absolute = bundle
        .rootfs("")
        .to_str()
        .unwrap()
        .trim_end_matches('/')
        .to_owned();
    for path in ["rootfs", "./rootfs", "../bundle/rootfs", &absolute] {
        bundle.edit(|c| c["root"]["path"] = json!(path));
        assert_eq!(
            see(&bundle).ok("stat:/bin/busybox")["type"],
            "file",
            "{path}"
        );
    }
}

#[test]
fn a_missing_root_is_refused() {
    requires!(container);
    refused(
        &asking(&[], |c| c["root"]["path"] = json!("no-such-root")),
        "no-such-root",
    );
    refused(
        &asking(&[], |c| {
            c.as_object_mut().unwrap().remove("root");
        }),
        "root must be specified",
    );
}

#[test]
fn the_root_is_where_the_payload_is() {
    requires!(container);
    let seen = ask(&["list:/", "stat:/..", "stat:/"], |_| {});
    assert_eq!(seen["root"], "/");
    assert_eq!(seen.ok("stat:/..")["inode"], seen.ok("stat:/")["inode"]);
    assert!(
        seen.ok("list:/")
            .as_array()
            .unwrap()
            .contains(&json!("probe"))
    );
}

#[test]
fn without_pivot_root_the_root_is_entered_all_the_same() {
    requires!(root);
    let bundle = asking(&["list:/", "create:/made"], privileged);
    let seen = answers(&bundle.verb(["run", "--no-pivot", &bundle.id]).ok());
    assert!(
        seen.ok("list:/")
            .as_array()
            .unwrap()
            .contains(&json!("probe"))
    );
    assert_eq!(seen.ok("create:/made"), true);
    assert!(bundle.rootfs("made").is_file());
    assert_eq!(seen["pid"], 1);
}

/// With the caller's `/` shared, the word decides whether the container's root is a slave, a peer or neither.
#[test]
fn the_root_propagates_as_configured() {
    requires!(root);
    differs!(
        "crun",
        "it makes everything private first, so there is nothing to be a slave of"
    );
    let none = None::<&str>;
    for (word, expected) in [
        ("private", "private"),
        ("rprivate", "private"),
        ("slave", "slave"),
        ("rslave", "slave"),
        ("shared", "shared"),
        ("rshared", "shared"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ] {
        // 1.1 does not put it back after pivot_root.
        if runtime().is("runc") && matches!(expected, "shared" | "unbindable") {
            continue;
        }
        let bundle = asking(&[], |c| c["linux"]["rootfsPropagation"] = json!(word));
        mount(none, "/", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).unwrap();
        let outcome = bundle.run();
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        let seen = answers(&outcome.ok());
        let mut found = seen.mount("/").propagation();
        // A shared root of a container may at the same time be the slave of the caller's.
        if expected == "shared"
            && found == "slave"
            && format!("{:?}", seen.mount("/")).contains("shared:")
        {
            found = "shared";
        }
        assert_eq!(found, expected, "{word}: {:?}", seen.mount("/"));
    }
}

#[test]
fn an_unknown_propagation_is_refused() {
    requires!(root);
    differs!("crun", "1.8 does not look at the word");
    refused(
        &asking(&[], |c| c["linux"]["rootfsPropagation"] = json!("sideways")),
        "sideways",
    );
}

/// What is mounted or taken away for the container must never reach the caller: with a word that is not about the whole
/// tree, the mounts below `/` are still the caller's peers when the old root goes.
#[test]
fn a_caller_whose_root_is_shared_keeps_its_mounts_whatever_the_word() {
    requires!(root);
    let none = None::<&str>;
    let table = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    for word in [
        "",
        "private",
        "rprivate",
        "slave",
        "rslave",
        "shared",
        "rshared",
        "unbindable",
        "runbindable",
    ] {
        let bundle = asking(&[], |c| {
            if !word.is_empty() {
                c["linux"]["rootfsPropagation"] = json!(word);
            }
        });
        mount(none, "/", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).unwrap();
        let before = table();
        let outcome = bundle.run();
        let after = table();
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        assert_eq!(before, after, "{word}: {outcome}");
        // runc 1.1 and crun 1.8 make the root unbindable first and cannot bind it then.
        if runtime().is("pelagos") || !word.ends_with("unbindable") {
            outcome.ok();
        }
    }
}

#[test]
fn a_masked_file_reads_empty() {
    requires!(container);
    let bundle = asking(
        &[
            "read:/secret",
            "follow:/secret",
            "write:/secret=x",
            "read:/proc/timer_list",
        ],
        |c| c["linux"]["maskedPaths"] = json!(["/secret", "/proc/timer_list", "/no/such/path"]),
    );
    fs::write(bundle.rootfs("secret"), "hush").unwrap();
    let seen = see(&bundle);
    assert_eq!(seen.text("read:/secret"), "");
    assert_eq!(seen.text("read:/proc/timer_list"), "");
    let mask = seen.ok("follow:/secret");
    assert_eq!(
        (&mask["type"], &mask["major"], &mask["minor"]),
        (&json!("char"), &json!(1), &json!(3))
    );
    assert_eq!(fs::read_to_string(bundle.rootfs("secret")).unwrap(), "hush");
}

#[test]
fn a_masked_directory_is_empty_and_refuses_writes() {
    requires!(container);
    let bundle = asking(&["list:/vault", "create:/vault/x"], |c| {
        c["linux"]["maskedPaths"] = json!(["/vault", "/vault"]);
    });
    fs::create_dir(bundle.rootfs("vault")).unwrap();
    fs::write(bundle.rootfs("vault/gold"), "bar").unwrap();
    let seen = see(&bundle);
    assert_eq!(seen.ok("list:/vault"), &json!([]));
    assert_eq!(seen.errno("create:/vault/x"), "EROFS");
    assert!(seen.mount("/vault").has("ro"));
    assert_eq!(seen.mount("/vault").kind(), "tmpfs");
    assert!(bundle.rootfs("vault/gold").exists());
}

#[test]
fn a_mask_over_a_symlink_covers_what_the_link_names_inside() {
    requires!(container);
    let bundle = asking(&["read:/secret", "read:/link"], |c| {
        c["linux"]["maskedPaths"] = json!(["/link", "/dangling", "/out"]);
    });
    let outside = bundle.beside("outside");
    fs::write(&outside, "host").unwrap();
    fs::write(bundle.rootfs("secret"), "hush").unwrap();
    symlink("/secret", bundle.rootfs("link")).unwrap();
    symlink("/no/such/file", bundle.rootfs("dangling")).unwrap();
    symlink(&outside, bundle.rootfs("out")).unwrap();
    let seen = see(&bundle);
    assert_eq!(seen.text("read:/link"), "");
    assert_eq!(seen.text("read:/secret"), "");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "host");
}

#[test]
fn a_read_only_path_refuses_writes_and_keeps_its_flags() {
    requires!(container);
    let bundle = asking(
        &[
            "write:/etc/passwd=x",
            "create:/data/x",
            "create:/data/deep/x",
            "write:/proc/sys/kernel/hostname=x",
            "read:/etc/passwd",
        ],
        |c| {
            privileged(c);
            c["linux"]["readonlyPaths"] = json!([
                "/etc/passwd",
                "/data",
                "/proc/sys",
                "/dev/shm",
                "/no/such/path"
            ]);
        },
    );
    fs::create_dir_all(bundle.rootfs("data/deep")).unwrap();
    let seen = see(&bundle);
    for question in [
        "write:/etc/passwd=x",
        "create:/data/x",
        "create:/data/deep/x",
        "write:/proc/sys/kernel/hostname=x",
    ] {
        // The kernel asks who may write before it asks where, and a user may not write there at all.
        let nobodys = question.contains("/proc/sys") && !is_root();
        let expected = if nobodys { "EACCES" } else { "EROFS" };
        assert_eq!(seen.errno(question), expected, "{question}");
    }
    assert!(seen.text("read:/etc/passwd").starts_with("root:"));
    let shm = seen.mount("/dev/shm");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        // crun 1.8 keeps none of them.
        if option == "ro" || !runtime().is("crun") {
            assert!(shm.own(option), "{option}: {shm:?}");
        }
    }
}

#[test]
fn what_is_mounted_below_a_read_only_path_is_read_only_too() {
    requires!(root);
    differs!("runc", "it keeps its own flags");
    differs!("crun", "it keeps its own flags");
    let seen = ask(&["create:/data/sub/x"], |c| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "/data/sub", "type": "tmpfs", "source": "tmpfs" }));
        c["linux"]["readonlyPaths"] = json!(["/data"]);
    });
    assert_eq!(seen.mount("/data/sub").kind(), "tmpfs");
    assert_eq!(seen.errno("create:/data/sub/x"), "EROFS");
    assert!(seen.mount("/data").own("ro"));
}

#[test]
fn the_root_itself_may_be_one_of_the_read_only_paths() {
    requires!(root);
    differs!("crun", "1.8 takes it for a path that is missing");
    for path in ["/", "/../.", "/data/.."] {
        let seen = ask(&["create:/x", "create:/t/x"], |c| {
            c["root"]["readonly"] = json!(false);
            mounts(c).push(json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs" }));
            c["linux"]["readonlyPaths"] = json!([path]);
        });
        assert_eq!(seen.errno("create:/x"), "EROFS", "{path}");
        seen.ok("create:/t/x");
    }
}

#[test]
fn a_read_only_path_where_the_root_is_bound_again_is_not_the_root() {
    requires!(root);
    let bundle = asking(&["create:/x", "create:/self/y"], |c| {
        c["root"]["readonly"] = json!(false);
        mounts(c).push(json!({ "destination": "/self", "source": "rootfs", "options": ["bind"] }));
        c["linux"]["readonlyPaths"] = json!(["/self"]);
    });
    let seen = see(&bundle);
    assert_eq!(seen.errno("create:/self/y"), "EROFS");
    seen.ok("create:/x");
}

#[test]
fn a_read_only_path_behind_a_symlink_is_taken_inside_the_root() {
    requires!(container);
    let bundle = asking(&["create:/real/x"], |c| {
        c["linux"]["readonlyPaths"] = json!(["/link"]);
    });
    fs::create_dir(bundle.rootfs("real")).unwrap();
    symlink("/real", bundle.rootfs("link")).unwrap();
    assert_eq!(see(&bundle).errno("create:/real/x"), "EROFS");
}

#[test]
fn masks_and_read_only_paths_hold_in_a_user_namespace() {
    requires!(root);
    let bundle = asking(
        &[
            "read:/proc/timer_list",
            "list:/sys/firmware",
            "write:/proc/sys/net/ipv4/ip_forward=1",
        ],
        |c| {
            user_namespace(c);
            privileged(c);
        },
    );
    let seen = see(&bundle);
    assert_eq!(seen.text("read:/proc/timer_list"), "");
    assert_eq!(seen.ok("list:/sys/firmware"), &json!([]));
    assert_eq!(seen.errno("write:/proc/sys/net/ipv4/ip_forward=1"), "EROFS");
}
