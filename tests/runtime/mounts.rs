//! Mounts: options as the kernel shows them, targets inside the root, and what may not be mounted.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::inside::{ask, asking, privileged, refused, see, user_namespace};
use crate::support::{Bundle, mounts, runtime};

/// Add a mount.
fn add(config: &mut Value, kind: &str, source: &str, destination: &str, options: &[&str]) {
    mounts(config).push(json!({
        "destination": destination, "type": kind, "source": source, "options": options,
    }));
}

fn tmpfs(config: &mut Value, destination: &str, options: &[&str]) {
    add(config, "tmpfs", "tmpfs", destination, options);
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Options, and what the mount table must and must not show for them.
const PLAIN: [(&[&str], &[&str], &[&str]); 25] = [
    // Podman leaves one that says nothing.
    (&["", "nosuid"], &["nosuid"], &["nodev"]),
    (&["nosuid"], &["nosuid"], &["nodev", "noexec", "ro"]),
    (&["nodev"], &["nodev"], &["nosuid", "noexec"]),
    (&["noexec"], &["noexec"], &["nosuid", "nodev"]),
    (&["ro"], &["ro"], &["nosuid"]),
    (&["rw"], &["rw"], &["ro"]),
    (&["ro", "rw"], &["rw"], &[]),
    (&["nosuid", "suid"], &[], &["nosuid"]),
    (&["nodev", "dev"], &[], &["nodev"]),
    (&["noexec", "exec"], &[], &["noexec"]),
    (&["suid", "nosuid"], &["nosuid"], &[]),
    (&["noatime"], &["noatime"], &["relatime"]),
    (&["relatime"], &["relatime"], &["noatime"]),
    (&["strictatime"], &[], &["noatime", "relatime"]),
    (&["noatime", "strictatime"], &[], &["noatime", "relatime"]),
    (&["noatime", "atime"], &["relatime"], &["noatime"]),
    (&["nodiratime"], &["nodiratime", "relatime"], &["noatime"]),
    (&["nodiratime", "diratime"], &[], &["nodiratime"]),
    (&["sync"], &["sync"], &[]),
    (&["sync", "async"], &[], &["sync"]),
    (&["dirsync"], &["dirsync"], &["sync"]),
    (&["lazytime"], &["lazytime"], &[]),
    (&["lazytime", "nolazytime"], &[], &["lazytime"]),
    (
        &["defaults"],
        &["rw", "relatime"],
        &["nosuid", "nodev", "noexec"],
    ),
    (
        &["nosuid", "nodev", "noexec", "noatime", "ro"],
        &["nosuid", "nodev", "noexec", "noatime", "ro"],
        &[],
    ),
];

#[test]
fn every_plain_option_shows_in_the_mount_table() {
    requires!(root);
    // Of runc since 1.2; crun 1.8 lets no later word take back an earlier one.
    let known = |options: &[&str]| match () {
        () if runtime().is("runc") => !options.contains(&"defaults"),
        () if runtime().is("crun") => options.len() != 2,
        () => true,
    };
    let seen = ask(&[], |c| {
        for (n, (options, _, _)) in PLAIN.iter().enumerate() {
            if known(options) {
                tmpfs(c, &format!("/m/{n}"), options);
            }
        }
    });
    for (n, (options, there, absent)) in PLAIN.iter().enumerate() {
        if !known(options) {
            continue;
        }
        let found = seen.mount(&format!("/m/{n}"));
        for option in *there {
            assert!(
                found.has(option),
                "{options:?} shows no {option}: {found:?}"
            );
        }
        for option in *absent {
            assert!(!found.own(option), "{options:?} shows {option}: {found:?}");
        }
    }
}

#[test]
fn options_that_the_mount_table_does_not_show_are_accepted() {
    requires!(root);
    differs!("crun", "1.8 does not know silent and loud");
    let seen = ask(&[], |c| {
        for (n, option) in [
            "silent",
            "loud",
            "mand",
            "nomand",
            "iversion",
            "noiversion",
            "norelatime",
            "nostrictatime",
        ]
        .iter()
        .enumerate()
        {
            // The kernel gives no tmpfs the counter of i_version, and says so.
            if option.ends_with("iversion") && !runtime().is("crun") {
                continue;
            }
            tmpfs(c, &format!("/m/{n}"), &[option]);
        }
    });
    assert_eq!(seen.mount("/m/0").kind(), "tmpfs");
    assert_eq!(seen.mount("/m/7").kind(), "tmpfs");
}

#[test]
fn nosymfollow_keeps_the_kernel_from_following_links() {
    requires!(root);
    differs!("runc", "since 1.2");
    differs!("crun", "since 1.12");
    let bundle = asking(&["read:/m/link", "read:/n/link"], |c| {
        add(c, "bind", "data", "/m", &["bind", "nosymfollow"]);
        add(
            c,
            "bind",
            "data",
            "/n",
            &["bind", "nosymfollow", "symfollow"],
        );
    });
    fs::create_dir(bundle.path.join("data")).unwrap();
    symlink("/etc/passwd", bundle.path.join("data/link")).unwrap();
    let seen = see(&bundle);
    assert_eq!(seen.errno("read:/m/link"), "ELOOP");
    assert!(seen.text("read:/n/link").starts_with("root:"));
    assert!(seen.mount("/m").own("nosymfollow"));
}

#[test]
fn plain_options_apply_to_binds() {
    requires!(root);
    let cases: [&[&str]; 7] = [
        &["ro"],
        &["nosuid"],
        &["nodev"],
        &["noexec"],
        &["noatime"],
        &["nodiratime"],
        &["ro", "nosuid", "nodev", "noexec"],
    ];
    let bundle = asking(&[], |c| {
        for (n, options) in cases.iter().enumerate() {
            add(
                c,
                "bind",
                "data",
                &format!("/m/{n}"),
                &[&["bind"], *options].concat(),
            );
            add(
                c,
                "none",
                "data",
                &format!("/r/{n}"),
                &[&["rbind"], *options].concat(),
            );
        }
    });
    fs::create_dir(bundle.path.join("data")).unwrap();
    let seen = see(&bundle);
    for (n, options) in cases.iter().enumerate() {
        for dir in ["m", "r"] {
            let found = seen.mount(&format!("/{dir}/{n}"));
            for option in *options {
                assert!(found.own(option), "{option}: {found:?}");
            }
            assert_eq!(found.own("ro"), options.contains(&"ro"), "{found:?}");
        }
    }
}

#[test]
fn a_bind_keeps_the_flags_of_its_source_unless_told() {
    requires!(root);
    differs!("crun", "1.8 drops the flags of the source");
    differs!("runc", "before 1.2 an option that only clears does nothing");
    let bundle = asking(&[], |c| {
        add(c, "bind", "data", "/kept", &["bind"]);
        add(c, "bind", "data", "/more", &["bind", "ro"]);
        add(c, "bind", "data", "/less", &["bind", "suid", "dev"]);
    });
    let source = bundle.path.join("data");
    fs::create_dir(&source).unwrap();
    mount(
        Some("tmpfs"),
        &source,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME,
        None::<&str>,
    )
    .unwrap();
    let seen = see(&bundle);
    for option in ["nosuid", "nodev", "noatime"] {
        assert!(seen.mount("/kept").own(option), "{:?}", seen.mount("/kept"));
    }
    assert!(seen.mount("/more").own("ro"));
    assert!(
        !seen.mount("/less").own("nosuid"),
        "{:?}",
        seen.mount("/less")
    );
    assert!(
        !seen.mount("/less").own("nodev"),
        "{:?}",
        seen.mount("/less")
    );
}

/// A directory with a tmpfs on `sub`.
fn tree(bundle: &Bundle) {
    let source = bundle.path.join("data");
    fs::create_dir_all(source.join("sub")).unwrap();
    mount(
        Some("tmpfs"),
        &source.join("sub"),
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
}

#[test]
fn bind_takes_one_mount_and_rbind_the_tree() {
    requires!(root);
    let bundle = asking(&[], |c| {
        add(c, "bind", "data", "/one", &["bind"]);
        add(c, "bind", "data", "/all", &["rbind", "ro"]);
    });
    tree(&bundle);
    let seen = see(&bundle);
    assert!(
        !seen.targets().contains(&"/one/sub"),
        "{:?}",
        seen.targets()
    );
    assert!(seen.mount("/all").own("ro"));
    assert!(
        !seen.mount("/all/sub").own("ro"),
        "ro is about the top mount only"
    );
}

/// Options that set something for a whole tree, and those that take it away again.
const RECURSIVE: [(&str, &str, bool); 15] = [
    ("rro", "ro", true),
    ("rnosuid", "nosuid", true),
    ("rnodev", "nodev", true),
    ("rnoexec", "noexec", true),
    ("rnodiratime", "nodiratime", true),
    ("rnoatime", "noatime", true),
    ("rrelatime", "relatime", true),
    ("rstrictatime", "relatime", false),
    ("rrw", "ro", false),
    ("rsuid", "nosuid", false),
    ("rdev", "nodev", false),
    ("rexec", "noexec", false),
    ("rdiratime", "nodiratime", false),
    ("ratime", "noatime", false),
    ("rnorelatime", "noatime", false),
];

#[test]
fn recursive_options_reach_every_mount_of_the_tree() {
    requires!(root);
    // crun 1.8 and runc 1.1 do not clear the whole mask of access times, and the kernel refuses that.
    let cases = RECURSIVE
        .into_iter()
        .filter(|(option, ..)| runtime().is("pelagos") || !option.contains("atime"));
    let bundle = asking(&[], |c| {
        for (option, _, set) in cases.clone() {
            let source = if set || option == "rstrictatime" {
                "data"
            } else {
                "flagged"
            };
            let target = format!("/m/{option}");
            add(c, "bind", source, &target, &["rbind", option]);
        }
    });
    tree(&bundle);
    flagged(&bundle);
    let seen = see(&bundle);
    for (option, shown, there) in cases {
        for target in [format!("/m/{option}"), format!("/m/{option}/sub")] {
            let found = seen.mount(&target);
            assert_eq!(found.own(shown), there, "{option}: {found:?}");
        }
    }
}

/// A tree of two mounts that have every flag.
fn flagged(bundle: &Bundle) {
    let none = None::<&str>;
    let flags = MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC
        | MsFlags::MS_NOATIME
        | MsFlags::MS_NODIRATIME;
    let source = bundle.path.join("flagged");
    fs::create_dir(&source).unwrap();
    let tmpfs = Some("tmpfs");
    mount(tmpfs, &source, tmpfs, MsFlags::empty(), none).unwrap();
    fs::create_dir(source.join("sub")).unwrap();
    mount(tmpfs, &source.join("sub"), tmpfs, MsFlags::empty(), none).unwrap();
    for target in [source.join("sub"), source] {
        let bind = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
        mount(none, &target, none, bind | flags, none).unwrap();
    }
}

#[test]
fn rnosymfollow_reaches_every_mount_of_the_tree() {
    requires!(root);
    differs!("crun", "since 1.12");
    let bundle = asking(&[], |c| {
        add(c, "bind", "data", "/m", &["rbind", "rnosymfollow"]);
        add(
            c,
            "bind",
            "data",
            "/n",
            &["rbind", "rnosymfollow", "rsymfollow"],
        );
    });
    tree(&bundle);
    let seen = see(&bundle);
    assert!(seen.mount("/m").own("nosymfollow"));
    assert!(seen.mount("/m/sub").own("nosymfollow"));
    if !runtime().is("runc") {
        // 1.1 does not take it back.
        assert!(!seen.mount("/n/sub").own("nosymfollow"));
    }
}

#[test]
fn a_mount_propagates_as_its_option_says() {
    requires!(root);
    differs!(
        "crun",
        "it makes everything private first, so there is nothing to be a slave of"
    );
    let cases = [
        ("private", "private"),
        ("rprivate", "private"),
        ("slave", "slave"),
        ("rslave", "slave"),
        ("shared", "shared"),
        ("rshared", "shared"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ];
    let bundle = asking(&[], |c| {
        for (option, _) in cases {
            add(
                c,
                "bind",
                "data",
                &format!("/m/{option}"),
                &["rbind", option],
            );
        }
    });
    tree(&bundle);
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).unwrap();
    let outcome = bundle.run();
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
    let seen = crate::inside::answers(&outcome.ok());
    for (option, expected) in cases {
        let found = seen.mount(&format!("/m/{option}"));
        let text = format!("{found:?}");
        match expected {
            // A peer group of its own, which may follow the caller's.
            "shared" => assert!(text.contains("shared:"), "{option}: {text}"),
            _ => assert_eq!(found.propagation(), expected, "{option}: {text}"),
        }
        if option.starts_with('r') && expected != "slave" {
            let below = format!("{:?}", seen.mount(&format!("/m/{option}/sub")));
            assert_eq!(
                below.contains("shared:"),
                expected == "shared",
                "{option}: {below}"
            );
        }
    }
}

#[test]
fn words_that_are_no_option_are_data_for_the_file_system() {
    requires!(root);
    let seen = ask(&["stat:/m"], |c| {
        tmpfs(
            c,
            "/m",
            &[
                "nosuid",
                "size=64k",
                "mode=0750",
                "nr_inodes=50",
                "uid=7",
                "gid=8",
            ],
        );
    });
    let found = seen.mount("/m");
    for option in ["size=64k", "nr_inodes=50", "mode=750", "uid=7", "gid=8"] {
        assert!(found.has(option), "{option}: {found:?}");
    }
    let about = seen.ok("stat:/m");
    assert_eq!(
        (&about["mode"], &about["uid"], &about["gid"]),
        (&json!("750"), &json!(7), &json!(8))
    );
}

#[test]
fn a_word_may_be_a_list_of_data_for_the_file_system() {
    requires!(root);
    let seen = ask(&[], |c| {
        tmpfs(c, "/m", &["nosuid", "size=64k,mode=0750,nr_inodes=50"]);
        tmpfs(c, "/n", &["mpol=bind:0,size=128k"]);
    });
    let found = seen.mount("/m");
    for option in ["nosuid", "size=64k", "nr_inodes=50", "mode=750"] {
        assert!(found.has(option), "{option}: {found:?}");
    }
    assert!(seen.mount("/n").has("size=128k"), "{:?}", seen.mount("/n"));
}

#[test]
fn data_that_the_file_system_refuses_is_an_error_that_names_the_mount() {
    requires!(root);
    refused(&asking(&[], |c| tmpfs(c, "/m", &["size=much"])), "/m");
    refused(&asking(&[], |c| tmpfs(c, "/m", &["flavour=mint"])), "/m");
    refused(
        &asking(&[], |c| add(c, "nosuchfs", "none", "/m", &[])),
        "/m",
    );
}

#[test]
fn a_bind_takes_no_data() {
    requires!(root);
    differs!("crun", "1.8 passes data to a bind over");
    differs!("runc", "since 1.2");
    refused(
        &asking(&[], |c| add(c, "bind", "/etc", "/m", &["bind", "size=64k"])),
        "bind mounts cannot have any filesystem-specific options applied",
    );
}

#[test]
fn a_tmpfs_has_the_mode_of_what_it_covers_unless_given() {
    requires!(root);
    differs!("crun", "1.8 leaves the mode to the kernel");
    let bundle = asking(&["stat:/old", "stat:/given", "stat:/fresh"], |c| {
        tmpfs(c, "/old", &[]);
        tmpfs(c, "/given", &["mode=0700"]);
        tmpfs(c, "/fresh", &[]);
    });
    for dir in ["old", "given"] {
        fs::create_dir(bundle.rootfs(dir)).unwrap();
        fs::set_permissions(bundle.rootfs(dir), fs::Permissions::from_mode(0o711)).unwrap();
    }
    let seen = see(&bundle);
    assert_eq!(seen.ok("stat:/old")["mode"], "711");
    if !runtime().is("runc") {
        // 1.1 lets the directory win.
        assert_eq!(seen.ok("stat:/given")["mode"], "700");
    }
    if runtime().is("pelagos") {
        assert_eq!(seen.ok("stat:/fresh")["mode"], "1777");
    }
    assert_eq!(mode(&bundle.rootfs("old")), 0o711);
}

#[test]
fn tmpcopyup_starts_a_tmpfs_with_a_copy() {
    requires!(root);
    let bundle = asking(
        &[
            "read:/m/file",
            "stat:/m/file",
            "read:/m/deep/er/file",
            "stat:/m/deep",
            "stat:/m/link",
            "create:/m/new",
            "list:/m",
            "stat:/m",
        ],
        |c| tmpfs(c, "/m", &["tmpcopyup"]),
    );
    let covered = bundle.rootfs("m");
    fs::create_dir_all(covered.join("deep/er")).unwrap();
    fs::write(covered.join("file"), "text").unwrap();
    fs::set_permissions(covered.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::write(covered.join("deep/er/file"), "below").unwrap();
    fs::set_permissions(covered.join("deep"), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("../etc/passwd", covered.join("link")).unwrap();
    std::os::unix::fs::lchown(covered.join("deep"), Some(3), Some(4)).unwrap();
    let seen = see(&bundle);
    assert_eq!(seen.text("read:/m/file"), "text");
    assert_eq!(seen.text("read:/m/deep/er/file"), "below");
    assert_eq!(seen.ok("stat:/m/link")["link"], "../etc/passwd");
    let deep = seen.ok("stat:/m/deep");
    assert_eq!(
        (&deep["mode"], &deep["uid"], &deep["gid"]),
        (&json!("751"), &json!(3), &json!(4))
    );
    if !runtime().is("crun") {
        assert_eq!(seen.ok("stat:/m/file")["mode"], "4751");
    }
    assert_eq!(seen.mount("/m").kind(), "tmpfs");
    assert!(!covered.join("new").exists(), "the copy, not the original");
}

#[test]
fn directories_and_files_are_bound() {
    requires!(container);
    let bundle = asking(
        &["read:/a/dir/inner", "read:/a/file", "write:/a/file=new"],
        |c| {
            add(c, "bind", "dir", "/a/dir", &["bind"]);
            add(c, "bind", "file", "/a/file", &["rbind"]);
        },
    );
    fs::create_dir(bundle.path.join("dir")).unwrap();
    fs::write(bundle.path.join("dir/inner"), "in").unwrap();
    fs::write(bundle.path.join("file"), "old").unwrap();
    let seen = see(&bundle);
    assert_eq!(seen.text("read:/a/dir/inner"), "in");
    assert_eq!(seen.text("read:/a/file"), "old");
    assert_eq!(seen.ok("write:/a/file=new"), true);
    assert_eq!(fs::read_to_string(bundle.path.join("file")).unwrap(), "new");
}

#[test]
fn missing_targets_are_made_with_plain_modes() {
    requires!(root);
    differs!("crun", "its targets have the mode 1755");
    let bundle = asking(&[], |c| {
        add(c, "bind", "dir", "/p/q/dir", &["bind"]);
        add(c, "bind", "file", "/p/q/file", &["bind"]);
        tmpfs(c, "/p/tmp", &[]);
    });
    fs::create_dir(bundle.path.join("dir")).unwrap();
    fs::write(bundle.path.join("file"), "").unwrap();
    fs::set_permissions(bundle.path.join("dir"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(bundle.path.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    see(&bundle);
    for dir in ["p", "p/q", "p/q/dir", "p/tmp"] {
        assert!(bundle.rootfs(dir).is_dir());
        assert_eq!(mode(&bundle.rootfs(dir)), 0o755, "{dir}");
    }
    let file = fs::metadata(bundle.rootfs("p/q/file")).unwrap();
    assert!(file.is_file());
    assert_eq!(file.size(), 0);
    let expected = if runtime().is("pelagos") {
        0o644
    } else {
        file.mode() & 0o777
    };
    assert_eq!(file.mode() & 0o7777, expected);
}

#[test]
fn the_umask_of_the_caller_does_not_shape_targets() {
    requires!(root);
    differs!("crun", "1.8 makes targets with the caller's umask");
    differs!("runc", "1.1 makes targets with the caller's umask");
    let bundle = asking(&[], |c| tmpfs(c, "/made", &[]));
    bundle
        .verb(["run", &bundle.id])
        .under(["sh", "-c", "umask 077; exec \"$0\" \"$@\""])
        .ok();
    assert_eq!(mode(&bundle.rootfs("made")), 0o755);
}

#[test]
fn symlinks_in_a_destination_are_followed_inside_the_root() {
    requires!(container);
    let bundle = asking(
        &[
            "read:/real/file",
            "read:/far/away/file",
            "read:/etc/up/file",
        ],
        |c| {
            for destination in ["/absolute", "/../../../../etc/up"] {
                add(c, "bind", "data", destination, &["bind"]);
            }
            // COMPAT: crun 1.8 makes nothing behind a link that leads nowhere yet.
            for destination in ["/dangling", "/relative/below"] {
                if runtime().is("crun") {
                    continue;
                }
                add(c, "bind", "data", destination, &["bind"]);
            }
        },
    );
    let outside = bundle.beside("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(bundle.path.join("data")).unwrap();
    fs::write(bundle.path.join("data/file"), "mine").unwrap();
    fs::create_dir(bundle.rootfs("real")).unwrap();
    symlink("/real", bundle.rootfs("absolute")).unwrap();
    symlink("/far/away", bundle.rootfs("dangling")).unwrap();
    // As many steps up as the host has, and then where it would hurt.
    let up = format!("../../../../../../../..{}", outside.display());
    symlink(&up, bundle.rootfs("relative")).unwrap();
    let seen = see(&bundle);
    assert_eq!(seen.text("read:/real/file"), "mine");
    assert_eq!(seen.text("read:/etc/up/file"), "mine");
    assert_eq!(
        fs::read_dir(&outside).unwrap().count(),
        0,
        "nothing was made on the host"
    );
    if runtime().is("crun") {
        return;
    }
    assert_eq!(seen.text("read:/far/away/file"), "mine");
    let inside = format!("{}/below", outside.display());
    assert_eq!(
        seen.mount(&inside).target(),
        inside,
        "the same path, but of the container's root"
    );
    assert_eq!(
        fs::read_dir(&outside).unwrap().count(),
        0,
        "nothing was made on the host"
    );
    assert!(!Path::new("/far/away").exists());
}

#[test]
fn a_destination_without_a_leading_slash_is_under_the_root() {
    requires!(container);
    let bundle = asking(&["read:/some/where/file"], |c| {
        add(c, "bind", "data", "some/where", &["bind"]);
    });
    fs::create_dir(bundle.path.join("data")).unwrap();
    fs::write(bundle.path.join("data/file"), "mine").unwrap();
    assert_eq!(see(&bundle).text("read:/some/where/file"), "mine");
}

#[test]
fn a_missing_source_is_an_error_that_names_it() {
    requires!(container);
    refused(
        &asking(&[], |c| add(c, "bind", "/no/such/source", "/m", &["bind"])),
        "/no/such/source",
    );
}

#[test]
fn mounts_are_made_in_the_order_of_the_list() {
    requires!(root);
    let bundle = asking(&["list:/a", "list:/b", "read:/c/file"], |c| {
        tmpfs(c, "/a", &[]);
        tmpfs(c, "/a/inner", &[]);
        tmpfs(c, "/b/inner", &[]);
        tmpfs(c, "/b", &[]);
        tmpfs(c, "/c", &[]);
        add(c, "bind", "data", "/c", &["bind"]);
    });
    fs::create_dir(bundle.path.join("data")).unwrap();
    fs::write(bundle.path.join("data/file"), "last").unwrap();
    let seen = see(&bundle);
    assert_eq!(seen.ok("list:/a"), &json!(["inner"]));
    assert_eq!(
        seen.ok("list:/b"),
        &json!([]),
        "the later mount covers the earlier"
    );
    assert_eq!(seen.text("read:/c/file"), "last");
}

#[test]
fn a_read_only_tmpfs_can_still_be_mounted_into() {
    requires!(root);
    let seen = ask(&["create:/m/x", "create:/m/sub/x"], |c| {
        tmpfs(c, "/m", &["ro"]);
        tmpfs(c, "/m/sub", &[]);
    });
    assert_eq!(seen.errno("create:/m/x"), "EROFS");
    assert_eq!(seen.ok("create:/m/sub/x"), true);
    assert!(seen.mount("/m").has("ro"));
}

#[test]
fn a_read_only_dev_has_its_nodes() {
    requires!(root);
    let seen = ask(
        &["create:/dev/x", "open:/dev/zero", "openw:/dev/null"],
        |c| {
            for mount in mounts(c) {
                if mount["destination"] == "/dev" {
                    mount["options"] = json!(["nosuid", "mode=755", "ro"]);
                }
            }
        },
    );
    assert_eq!(seen.errno("create:/dev/x"), "EROFS");
    assert_eq!(seen.ok("open:/dev/zero"), true);
    assert_eq!(seen.ok("openw:/dev/null"), true);
    assert!(seen.mount("/dev").has("ro"));
}

#[test]
fn the_usual_file_systems_are_what_they_are_called() {
    requires!(root);
    let seen = ask(&["stat:/dev/pts/ptmx", "list:/dev/pts"], |c| {
        add(
            c,
            "cgroup",
            "cgroup",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        );
    });
    for (target, kind) in [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
        ("/sys/fs/cgroup", "cgroup2"),
    ] {
        assert_eq!(seen.mount(target).kind(), kind, "{target}");
    }
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(seen.mount("/sys").own(option), "{option}");
        assert!(seen.mount("/sys/fs/cgroup").own(option), "{option}");
    }
    let pts = seen.mount("/dev/pts");
    for option in ["gid=5", "mode=620", "ptmxmode=666"] {
        assert!(pts.has(option), "{option}: {pts:?}");
    }
    assert_eq!(seen.ok("stat:/dev/pts/ptmx")["mode"], "666");
    assert_eq!(
        seen.ok("list:/dev/pts"),
        &json!(["ptmx"]),
        "an instance of its own"
    );
}

/// CVE-2023-27561, CVE-2019-19921, CVE-2025-54867.
#[test]
fn proc_and_sys_must_be_real_directories() {
    requires!(root);
    for (dir, words) in [
        (
            "proc",
            "filesystem \"proc\" must be mounted on ordinary directory",
        ),
        (
            "sys",
            "filesystem \"sysfs\" must be mounted on ordinary directory",
        ),
    ] {
        if dir == "sys" && runtime().is("crun") {
            continue;
        }
        let bundle = asking(&[], |_| {});
        fs::remove_dir(bundle.rootfs(dir)).unwrap();
        fs::create_dir(bundle.rootfs("elsewhere")).unwrap();
        symlink("elsewhere", bundle.rootfs(dir)).unwrap();
        if runtime().is("crun") {
            assert_ne!(bundle.run().code(), 0);
            continue;
        }
        refused(&bundle, words);
    }
}

/// CVE-2019-16884: what covers a part of /proc makes security labels go nowhere.
#[test]
fn nothing_is_mounted_over_a_part_of_proc() {
    requires!(root);
    differs!("crun", "it looks at where labels are written instead");
    for destination in [
        "/proc/self/attr",
        "/proc/self",
        "/proc/sys",
        "/proc/1",
        "/proc/cpuinfo/../self/attr",
        "/other/../proc/sys",
    ] {
        let bundle = asking(&[], |c| {
            add(c, "bind", "data", destination, &["bind"]);
        });
        fs::create_dir(bundle.path.join("data")).unwrap();
        refused(&bundle, "is inside /proc");
    }
    let bundle = asking(&[], |c| add(c, "bind", "data", "/link/attr", &["bind"]));
    fs::create_dir(bundle.path.join("data")).unwrap();
    symlink("/proc/self", bundle.rootfs("link")).unwrap();
    refused(&bundle, "is inside /proc");
}

#[test]
fn only_a_procfs_is_mounted_on_proc() {
    requires!(root);
    differs!("crun", "it looks at where labels are written instead");
    for (kind, options) in [("tmpfs", &[][..]), ("bind", &["bind"][..])] {
        let bundle = asking(&[], |c| add(c, kind, "data", "/proc", options));
        fs::create_dir(bundle.path.join("data")).unwrap();
        refused(&bundle, "/proc");
    }
}

#[test]
fn the_listed_files_of_proc_can_be_covered() {
    requires!(root);
    let files = [
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
    ];
    let questions: Vec<String> = files.iter().map(|f| format!("read:/proc/{f}")).collect();
    let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
    let bundle = asking(&questions, |c| {
        for file in files {
            add(c, "bind", "fake", &format!("/proc/{file}"), &["bind", "ro"]);
        }
    });
    fs::write(bundle.path.join("fake"), "of our own").unwrap();
    let seen = see(&bundle);
    for question in questions {
        assert_eq!(seen.text(question), "of our own", "{question}");
    }
}

#[test]
fn nothing_is_mounted_on_the_root_itself() {
    requires!(root);
    for destination in ["/", "/.", "/etc/.."] {
        if runtime().is("crun") || (runtime().is("runc") && destination != "/") {
            continue;
        }
        refused(
            &asking(&[], |c| tmpfs(c, destination, &[])),
            "is on the top of rootfs",
        );
    }
}

#[test]
fn binds_work_in_a_user_namespace_that_cannot_reach_the_source() {
    requires!(root);
    differs!("crun", "it looks at sources from inside the user namespace");
    differs!("runc", "1.1 opens sources from inside the user namespace");
    let bundle = asking(&["read:/m/file"], |c| {
        user_namespace(c);
        add(c, "bind", "closed/data", "/m", &["bind", "ro"]);
    });
    fs::create_dir_all(bundle.path.join("closed/data")).unwrap();
    fs::create_dir(bundle.rootfs("m")).unwrap();
    fs::write(bundle.path.join("closed/data/file"), "reached").unwrap();
    fs::set_permissions(
        bundle.path.join("closed"),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    assert_eq!(see(&bundle).text("read:/m/file"), "reached");
}

#[test]
fn noexec_and_nodev_bind_the_payload() {
    requires!(root);
    let bundle = asking(&["exec:/m/busybox", "open:/m/null"], |c| {
        privileged(c);
        add(c, "bind", "data", "/m", &["bind", "noexec", "nodev"]);
    });
    fs::create_dir(bundle.path.join("data")).unwrap();
    fs::hard_link(
        bundle.rootfs("bin/busybox"),
        bundle.path.join("data/busybox"),
    )
    .unwrap();
    let null = bundle.path.join("data/null");
    nix::sys::stat::mknod(
        &null,
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        nix::sys::stat::makedev(1, 3),
    )
    .unwrap();
    let seen = see(&bundle);
    assert_eq!(seen.errno("exec:/m/busybox"), "EACCES");
    assert_eq!(seen.errno("open:/m/null"), "EACCES");
}

#[test]
fn a_remount_changes_attributes_and_words_of_the_file_system() {
    requires!(root);
    for user in [false, true] {
        let bundle = asking(&["create:/m/one"], |c| {
            tmpfs(c, "/m", &["size=1m", "nodev", "mode=0777"]);
            tmpfs(c, "/m", &["remount", "size=2m", "noexec"]);
            tmpfs(c, "/kept", &["size=1m"]);
            tmpfs(c, "/kept", &["remount", "ro"]);
            if user {
                user_namespace(c);
            }
        });
        for target in ["m", "kept"] {
            fs::create_dir(bundle.rootfs(target)).unwrap();
        }
        let seen = see(&bundle);
        let found = seen.mount("/m");
        assert!(found.has("size=2048k") && found.own("noexec"), "{found:?}");
        if !runtime().is("crun") && !runtime().is("runc") {
            assert!(found.own("nodev"), "{found:?}");
        }
        assert_eq!(seen.ok("create:/m/one"), true);
        let kept = seen.mount("/kept");
        assert!(kept.has("size=1024k") && kept.own("ro"), "{kept:?}");
    }
}

#[test]
fn a_bind_is_remounted_without_a_source() {
    requires!(root);
    differs!("runc", "looks for the source");
    let bundle = asking(&["create:/m/new"], |c| {
        add(c, "bind", "data", "/m", &["bind", "nosuid"]);
        mounts(c)
            .push(json!({ "destination": "/m", "options": ["remount", "bind", "ro", "noexec"] }));
    });
    fs::create_dir(bundle.path.join("data")).unwrap();
    let seen = see(&bundle);
    assert_eq!(seen.errno("create:/m/new"), "EROFS");
    assert!(seen.mount("/m").own("noexec"), "{:?}", seen.mount("/m"));
}

#[test]
fn a_remount_that_the_file_system_refuses_names_the_mount() {
    requires!(root);
    for (options, words) in [
        (
            ["remount", "nonsense=1"],
            "error mounting \"\" to rootfs at \"/m\"",
        ),
        (["remount", "size=x"], "at \"/m\""),
    ] {
        refused(
            &asking(&[], |c| {
                tmpfs(c, "/m", &[]);
                tmpfs(c, "/m", &options);
            }),
            words,
        );
    }
    refused(
        &asking(&[], |c| tmpfs(c, "/bin", &["remount", "size=1m"])),
        "at \"/bin\"",
    );
}

/// A bundle with a link `data/link` to `file`, of `words`, and the same name as a link at the target `/at`.
fn linked(words: &[&str], questions: &[&str]) -> Bundle {
    let bundle = asking(questions, |c| add(c, "bind", "data/link", "/at", words));
    let data = bundle.path.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "of the host").unwrap();
    symlink("file", data.join("link")).unwrap();
    bundle
}

#[test]
fn a_source_that_is_a_link_is_followed_bound_or_copied() {
    requires!(container);
    differs!("runc", "has none of these options");
    let questions = ["stat:/at", "read:/at"];
    let kind = |bundle: &Bundle| see(bundle).ok("stat:/at")["type"].clone();

    let bundle = linked(&["bind"], &questions);
    let seen = see(&bundle);
    assert_eq!(
        (seen.text("read:/at"), &seen.ok("stat:/at")["type"]),
        ("of the host", &json!("file"))
    );

    let bundle = linked(&["bind", "src-nofollow"], &questions);
    assert_eq!(kind(&bundle), "symlink");
    // Only the mount is a link.
    assert!(fs::symlink_metadata(bundle.rootfs("at")).unwrap().is_file());

    let bundle = linked(&["bind", "copy-symlink"], &questions);
    for _ in 0..2 {
        assert_eq!(kind(&bundle), "symlink");
        assert_eq!(
            fs::read_link(bundle.rootfs("at")).unwrap(),
            Path::new("file")
        );
    }
    fs::remove_file(bundle.rootfs("at")).unwrap();
    symlink("other", bundle.rootfs("at")).unwrap();
    refused(&bundle, "copy-symlink: there is something else");

    // What is no link is bound as ever.
    let bundle = linked(&["bind", "copy-symlink"], &questions);
    bundle.edit(|c| mounts(c).last_mut().unwrap()["source"] = json!("data/file"));
    assert_eq!(see(&bundle).text("read:/at"), "of the host");
}

#[test]
fn a_target_that_is_a_link_is_mounted_over_where_it_is_not_to_be_followed() {
    requires!(container);
    differs!("runc", "has none of these options");
    for (words, over) in [(&["bind"][..], false), (&["bind", "dest-nofollow"], true)] {
        let bundle = linked(words, &["stat:/at", "read:/at", "stat:/target"]);
        symlink("target", bundle.rootfs("at")).unwrap();
        let seen = see(&bundle);
        assert_eq!(seen.text("read:/at"), "of the host");
        let wanted = if over { "file" } else { "symlink" };
        assert_eq!(seen.ok("stat:/at")["type"], wanted);
        assert_eq!(bundle.rootfs("target").exists(), !over);
    }
    let both = ["bind", "src-nofollow", "dest-nofollow"];
    let bundle = linked(&both, &["stat:/at"]);
    symlink("target", bundle.rootfs("at")).unwrap();
    assert_eq!(see(&bundle).ok("stat:/at")["type"], "symlink");
    assert!(!bundle.rootfs("target").exists());
}

#[test]
fn options_about_links_are_for_bind_mounts_alone() {
    requires!(container);
    for word in ["copy-symlink", "src-nofollow", "dest-nofollow"] {
        let bundle = Bundle::with(|c| tmpfs(c, "/at", &[word]));
        refused(
            &bundle,
            "/at: copy-symlink, src-nofollow and dest-nofollow are options of bind mounts",
        );
    }
}
