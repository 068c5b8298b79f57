//! One entry over what is there, its type and its attributes.

use crate::support::{Store, at, sha256};
use tar::EntryType;

use super::{ImageBuilder, both, flat, image, is_there, paths, refused, unpack};

const SECOND: i128 = 1_000_000_000;

// L-1
#[test]
fn a_directory_over_a_directory_keeps_children_and_replaces_all_attributes() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.xattr("user.old", "1").xattr("user.both", "1");
            l.owner(5, 6).mtime(1000).dir("d", 0o2770);
            l.file("d/child", "x", 0o600);
        },
        |l| {
            l.xattr("user.new", "2").xattr("user.both", "2");
            l.owner(0, 0).mtime(2000).dir("d", 0o755);
        },
    ]));
    let dir = at(&tree, "d");
    assert_eq!((dir.mode, dir.uid, dir.gid), (0o755, 0, 0));
    assert_eq!(dir.mtime_ns, 2000 * SECOND);
    let attributes: Vec<_> = dir.xattrs.iter().collect();
    assert_eq!(
        attributes,
        [
            (&"user.both".to_owned(), &b"2".to_vec()),
            (&"user.new".to_owned(), &b"2".to_vec())
        ]
    );
    assert_eq!(at(&tree, "d/child").uid, 5);
}

// L-1
#[test]
fn an_owner_that_is_given_back_to_root_is_root() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.owner(5, 6).dir("d", 0o755).dir("e", 0o755);
        },
        |l| {
            l.owner(0, 6).dir("d", 0o4755).owner(5, 0).dir("e", 0o755);
        },
    ]));
    let (d, e) = (at(&tree, "d"), at(&tree, "e"));
    assert_eq!((d.uid, d.gid, d.mode), (0, 6, 0o4755));
    assert_eq!((e.uid, e.gid), (5, 0));
}

// L-2: the other names of the old file keep the old content.
#[test]
fn a_file_over_a_file_is_a_new_file() {
    requires!(root);
    let tree = flat(image([
        |l| {
            l.file("a", "old", 0o600).hardlink("b", "a");
        },
        |l| {
            l.file("a", "new", 0o644);
        },
    ]));
    assert_eq!(at(&tree, "a").sha256.as_deref(), Some(&*sha256(b"new")));
    assert_eq!(at(&tree, "b").sha256.as_deref(), Some(&*sha256(b"old")));
    assert_eq!((at(&tree, "a").nlink, at(&tree, "b").nlink), (1, 1));
    assert_eq!(at(&tree, "b").mode, 0o600);
}

// L-3
#[test]
fn a_type_that_changes_removes_the_whole_old_subtree() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.dir("a", 0o755)
                .dir("a/b", 0o755)
                .file("a/b/c", "x", 0o644);
            l.dir("l", 0o755).file("l/x", "x", 0o644);
            l.file("f", "x", 0o644).symlink("s", "a");
        },
        |l| {
            l.file("a", "file", 0o644).symlink("l", "f");
            l.dir("f", 0o700).dir("s", 0o711).fifo("p", 0o600);
        },
    ]));
    assert_eq!(paths(&tree), ["a", "f", "l", "p", "s"]);
    let kinds: Vec<_> = ["a", "f", "l", "p", "s"]
        .map(|path| at(&tree, path).kind)
        .into();
    assert_eq!(kinds, ["file", "dir", "symlink", "fifo", "dir"]);
    assert_eq!(at(&tree, "s").mode, 0o711);
}

// L-4
#[test]
fn an_entry_for_the_root_sets_its_attributes() {
    requires!(root);
    for name in ["./", "/", ".", "./."] {
        let tree = both(image([]).layer(|l| {
            l.file("x", "", 0o644).owner(3, 4).mtime(77);
            l.xattr("user.root", "yes").dir(name, 0o1751);
        }));
        let root = at(&tree, ".");
        assert_eq!((root.mode, root.uid, root.gid), (0o1751, 3, 4), "{name}");
        assert_eq!(root.mtime_ns, 77 * SECOND, "{name}");
        assert_eq!(root.xattrs["user.root"], b"yes", "{name}");
    }
}

// L-4, CVE-2021-29136
#[test]
fn a_root_that_is_not_a_directory_is_refused() {
    for kind in [
        EntryType::Symlink,
        EntryType::Regular,
        EntryType::Link,
        EntryType::Fifo,
    ] {
        for name in [".", "/.", "./", "//"] {
            let hostile = ImageBuilder::new().layer(|l| {
                l.entry(kind, name, 0o777, "/etc", b"");
            });
            refused(hostile, "the root is a directory");
        }
    }
}

// L-5
#[test]
fn l_5_parent_that_is_a_file_is_replaced() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.dir("d", 0o755)
                .file("d/lower", "x", 0o644)
                .file("f", "x", 0o644);
        },
        |l| {
            l.file("d", "now a file", 0o644).file("d/x", "x", 0o644);
            l.file("f/y/z", "x", 0o644);
            l.file(".wh.gone", "", 0o644).file("gone/x", "x", 0o644);
        },
    ]));
    assert_eq!(
        paths(&tree),
        ["d", "d/x", "f", "f/y", "f/y/z", "gone", "gone/x"]
    );
}

// L-6
#[test]
fn a_directory_that_no_entry_describes_is_root_s_and_0755() {
    requires!(root);
    let tree = both(image([|l| {
        l.owner(9, 9).mtime(500).file("a/b/c", "x", 0o600);
    }]));
    for path in ["a", "a/b"] {
        let dir = at(&tree, path);
        assert_eq!((dir.mode, dir.uid, dir.gid), (0o755, 0, 0), "{path}");
        assert_eq!(dir.mtime_ns, 500 * SECOND, "{path}");
    }
}

// L-6
#[test]
fn a_directory_that_only_a_lower_layer_describes_is_as_there() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.owner(7, 8).mtime(300).xattr("user.kept", "1");
            l.dir("a", 0o3710).dir("a/b", 0o700);
        },
        |l| {
            l.mtime(900).file("a/b/c", "x", 0o600);
        },
        |l| {
            l.mtime(950).file("a/b/d", "x", 0o600);
        },
    ]));
    let (a, b) = (at(&tree, "a"), at(&tree, "a/b"));
    assert_eq!((a.mode, a.uid, a.gid), (0o3710, 7, 8));
    assert_eq!(a.xattrs["user.kept"], b"1");
    assert_eq!((b.mode, b.uid, b.gid), (0o700, 7, 8));
    assert_eq!((a.mtime_ns, b.mtime_ns), (300 * SECOND, 300 * SECOND));
    assert!(is_there(&tree, "a/b/c") && is_there(&tree, "a/b/d"));
}

// L-7
#[test]
fn the_last_of_two_entries_of_one_path_counts_and_links_keep_the_first() {
    requires!(root);
    let tree = both(image([|l| {
        l.file("a", "one", 0o600)
            .hardlink("b", "a")
            .file("a", "two", 0o644);
    }]));
    assert_eq!(at(&tree, "a").sha256.as_deref(), Some(&*sha256(b"two")));
    assert_eq!(at(&tree, "b").sha256.as_deref(), Some(&*sha256(b"one")));
    assert_eq!(at(&tree, "a").nlink, 1);
}

// A link in the way is resolved inside the root, as a container would see it.
#[test]
fn a_parent_that_is_a_link_leads_where_it_points_inside_the_root() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.dir("usr", 0o755).mtime(50).dir("usr/lib", 0o750);
            l.symlink("lib", "usr/lib")
                .symlink("abs", "/usr/../usr/./lib");
            l.symlink("up", "../../../usr").symlink("chain", "lib");
        },
        |l| {
            l.file("lib/a", "x", 0o644).file("abs/b", "x", 0o644);
            l.file("up/lib/c", "x", 0o644).file("chain/d", "x", 0o644);
            l.symlink("new", "made/here").file("new/e", "x", 0o644);
        },
    ]));
    for path in ["a", "b", "c", "d"] {
        assert!(is_there(&tree, &format!("usr/lib/{path}")), "{path}");
    }
    assert!(is_there(&tree, "made/here/e"));
    assert_eq!(at(&tree, "lib").kind, "symlink");
    assert_eq!(at(&tree, "usr/lib").mode, 0o750);
    assert_eq!(at(&tree, "usr/lib").mtime_ns, 50 * SECOND);
}

#[test]
fn links_that_lead_in_a_circle_are_refused() {
    let circle = image([|l| {
        l.symlink("a", "b").symlink("b", "a").file("a/x", "", 0o644);
    }]);
    refused(circle, "too many levels of symbolic links");
}

// L-18
#[test]
fn every_type_of_file_is_made() {
    requires!(root);
    let tree = both(image([|l| {
        l.owner(1, 2).mtime(42);
        l.dir("dir", 0o1777).file("file", "content", 0o640);
        l.symlink("link", "/any/where").hardlink("hard", "file");
        l.fifo("fifo", 0o622);
        l.char_device("char", 0o666, 1, 3)
            .block_device("block", 0o660, 7, 200);
    }]));
    let seen: Vec<_> = tree
        .iter()
        .filter(|entry| entry.path.as_os_str() != ".")
        .map(|e| {
            (
                e.path.to_str().unwrap(),
                e.kind,
                e.mode,
                e.uid,
                e.gid,
                e.nlink,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("block", "block", 0o660, 1, 2, 1),
            ("char", "char", 0o666, 1, 2, 1),
            ("dir", "dir", 0o1777, 1, 2, 0),
            ("fifo", "fifo", 0o622, 1, 2, 1),
            ("file", "file", 0o640, 1, 2, 2),
            ("hard", "file", 0o640, 1, 2, 2),
            ("link", "symlink", 0o777, 1, 2, 1),
        ]
    );
    assert_eq!(at(&tree, "char").rdev, Some((1, 3)));
    assert_eq!(at(&tree, "block").rdev, Some((7, 200)));
    for entry in tree.iter().filter(|entry| entry.path.as_os_str() != ".") {
        assert_eq!(entry.mtime_ns, 42 * SECOND, "{}", entry.path.display());
    }
}

// L-18
#[test]
fn an_unknown_type_is_refused() {
    for kind in [b'V', b'Z', b'8', b'D', 0x80] {
        let odd = ImageBuilder::new().layer(|l| {
            l.entry(EntryType::new(kind), "odd", 0o644, "", b"");
        });
        refused(odd, "unknown entry type");
    }
}

// L-19
#[test]
fn hard_links_reach_lower_layers_links_and_absolute_names() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.dir("d", 0o755).owner(3, 4).xattr("user.x", "y");
            l.file("d/file", "content", 0o4711)
                .symlink("d/link", "nowhere");
            l.symlink("alias", "d").fifo("d/fifo", 0o600);
        },
        |l| {
            l.owner(0, 0);
            l.hardlink("one", "/d/file").hardlink("two", "./d/file");
            l.hardlink("three", "alias/file")
                .hardlink("to-link", "d/link");
            l.hardlink("to-fifo", "d/fifo").hardlink("d/same", "d/file");
        },
    ]));
    for path in ["one", "two", "three", "d/file", "d/same"] {
        let file = at(&tree, path);
        assert_eq!((file.mode, file.uid, file.gid), (0o4711, 3, 4), "{path}");
        assert_eq!(file.sha256.as_deref(), Some(&*sha256(b"content")), "{path}");
        assert_eq!(
            (file.nlink, &*file.xattrs["user.x"]),
            (5, &b"y"[..]),
            "{path}"
        );
    }
    let link = at(&tree, "to-link");
    assert_eq!((link.kind, link.nlink), ("symlink", 2));
    assert_eq!(at(&tree, "to-fifo").kind, "fifo");
}

// L-19
#[test]
fn a_hard_link_to_nothing_or_to_a_directory_is_refused() {
    refused(
        image([|l| {
            l.hardlink("x", "not/there");
        }]),
        "hard link to not/there",
    );
    refused(
        image([|l| {
            l.dir("d", 0o755).hardlink("x", "d");
        }]),
        "hard link to d",
    );
}

#[test]
fn a_hard_link_to_itself_changes_nothing() {
    requires!(root);
    let tree = both(image([|l| {
        l.file("a", "x", 0o644)
            .hardlink("b", "a")
            .hardlink("a", "b")
            .hardlink("a", "a");
    }]));
    assert_eq!((at(&tree, "a").nlink, at(&tree, "b").nlink), (2, 2));
}

// L-20
#[test]
fn modes_are_exact_whatever_the_umask_and_the_owner() {
    requires!(root);
    let modes = [
        0o0, 0o7777, 0o4755, 0o2755, 0o6711, 0o1777, 0o666, 0o600, 0o640,
    ];
    let store = Store::new();
    let built = ImageBuilder::new()
        .layer(|l| {
            for mode in modes {
                for owner in [0, 1000] {
                    l.owner(owner, owner)
                        .file(format!("f{mode:o}-{owner}"), "x", mode);
                    l.dir(format!("d{mode:o}-{owner}"), mode);
                    l.file(format!("d{mode:o}-{owner}/inside"), "x", 0o644);
                    l.fifo(format!("p{mode:o}-{owner}"), mode);
                }
            }
        })
        .tag("a:1")
        .build();
    store.import(&built);
    for umask in ["0", "022", "0777"] {
        let out = store.beside(format!("out-{umask}"));
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        store
            .call(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()])
            .under(["sh", "-c", &script])
            .ok();
        let tree = crate::support::tree(&out);
        for mode in modes {
            for owner in [0, 1000] {
                for kind in ["f", "d", "p"] {
                    let path = format!("{kind}{mode:o}-{owner}");
                    let entry = at(&tree, &path);
                    let found = (entry.mode, entry.uid, entry.gid);
                    assert_eq!(found, (mode, owner, owner), "{path}, umask {umask}");
                }
            }
        }
    }
}

// A set-group-id directory hands its group and bit down; the layer's owners count.
#[test]
fn what_a_directory_hands_down_does_not_change_an_owner() {
    requires!(root);
    let tree = both(image([|l| {
        l.owner(0, 50).dir("d", 0o2775).owner(0, 0);
        l.file("d/f", "x", 0o644)
            .dir("d/sub", 0o755)
            .file("d/sub/g", "x", 0o644);
        l.owner(0, 50).file("d/h", "x", 0o644).symlink("d/l", "x");
    }]));
    for (path, gid, mode) in [
        ("d", 50, 0o2775),
        ("d/f", 0, 0o644),
        ("d/sub", 0, 0o755),
        ("d/sub/g", 0, 0o644),
        ("d/h", 50, 0o644),
        ("d/l", 50, 0o777),
    ] {
        assert_eq!(
            (at(&tree, path).gid, at(&tree, path).mode),
            (gid, mode),
            "{path}"
        );
    }
}

// L-21
#[test]
fn times_are_exact_and_directories_get_theirs_last() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.mtime(100).dir("d", 0o755).dir("d/e", 0o755);
            l.pax("mtime", "1234567890.123456789")
                .file("d/fine", "x", 0o644);
            l.pax("mtime", "-5.25").file("d/before", "x", 0o644);
            l.pax("mtime", "99.5").symlink("d/link", "x");
            l.mtime(0).file("zero", "x", 0o644);
            l.mtime(200)
                .file("d/e/late", "x", 0o644)
                .file("d/later", "x", 0o644);
        },
        |l| {
            l.mtime(999).file("d/e/new", "x", 0o644).whiteout("d/later");
        },
    ]));
    for (path, time) in [
        ("d", 100 * SECOND),
        ("d/e", 100 * SECOND),
        ("d/fine", 1_234_567_890_123_456_789),
        ("d/before", -5_250_000_000),
        ("d/link", 99_500_000_000),
        ("zero", 0),
    ] {
        assert_eq!(at(&tree, path).mtime_ns, time, "{path}");
    }
    assert!(!is_there(&tree, "d/later"));
}

// L-21: the last year that fits wherever times are printed, or less where the file system has less.
#[test]
fn an_absurd_time_is_clamped() {
    requires!(root);
    let tree = flat(image([|l| {
        l.pax("mtime", "99999999999999999999")
            .file("far", "x", 0o644);
        l.pax("mtime", "-99999999999999999999")
            .file("early", "x", 0o644);
    }]));
    assert!(at(&tree, "far").mtime_ns <= 9_223_372_036 * SECOND);
    assert!(at(&tree, "early").mtime_ns >= -62_135_596_800 * SECOND);
}

// L-22
#[test]
fn extended_attributes_are_kept_on_every_type() {
    requires!(root);
    let mut capability = vec![1, 0, 0, 2];
    capability.extend_from_slice(&[0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let expected = capability.clone();
    let tree = both(ImageBuilder::new().layer(|l| {
        l.xattr("user.file", "a")
            .xattr("security.capability", &capability);
        // The owner is changed after the content, and takes capabilities away unless they come last.
        l.owner(12, 0).file("file", "x", 0o755);
        l.xattr("user.dir", "b\0c").dir("dir", 0o755);
        l.pax("LIBARCHIVE.xattr.user.a%20b", "eHl6")
            .file("encoded", "x", 0o644);
    }));
    assert_eq!(at(&tree, "file").xattrs["user.file"], b"a");
    assert_eq!(at(&tree, "file").xattrs["security.capability"], expected);
    assert_eq!(at(&tree, "dir").xattrs["user.dir"], b"b\0c");
    assert_eq!(at(&tree, "encoded").xattrs["user.a b"], b"xyz");
}

// L-23, S-10
#[test]
fn attributes_that_an_image_may_not_set_are_left_out_and_said() {
    requires!(root);
    let store = Store::new();
    let (_, done) = unpack(
        &store,
        image([|l| {
            l.xattr("security.selinux", "u:r:t")
                .xattr("system.nfs4_acl", "x");
            l.xattr("trusted.overlay.opaque", "y")
                .xattr("trusted.x", "y");
            l.xattr("security.evm", "y").xattr("user.kept", "y");
            l.dir("d", 0o755);
            l.xattr("trusted.overlay.redirect", "/etc")
                .file("f", "x", 0o644);
        }]),
    );
    let done = done.ok();
    done.warns("only the host may set");
    done.warns("and 2 more");
    done.warns("another security module");
    let tree = crate::support::tree(store.beside("out"));
    assert_eq!(
        at(&tree, "d").xattrs.keys().collect::<Vec<_>>(),
        ["user.kept"]
    );
    assert!(at(&tree, "f").xattrs.is_empty());
}

// L-23
#[test]
fn a_list_that_is_handed_down_does_not_reach_what_follows() {
    requires!(root);
    // Version 2, then tag, permissions and id of each line: owner, group, mask, others.
    let list = [
        &[2, 0, 0, 0][..],
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[2, 0, 7, 0, 5, 0, 0, 0],
        &[4, 0, 5, 0, 255, 255, 255, 255],
        &[16, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    let tree = both(ImageBuilder::new().layer(|l| {
        l.xattr("system.posix_acl_default", &list).dir("d", 0o755);
        l.file("d/f", "x", 0o664)
            .dir("d/e", 0o775)
            .file("d/e/g", "x", 0o606);
    }));
    assert!(
        at(&tree, "d")
            .xattrs
            .contains_key("system.posix_acl_default")
    );
    for (path, mode) in [("d/f", 0o664), ("d/e", 0o775), ("d/e/g", 0o606)] {
        assert_eq!(
            (at(&tree, path).mode, at(&tree, path).xattrs.len()),
            (mode, 0),
            "{path}"
        );
    }
}

// L-28
#[test]
fn devices_are_left_out_on_request_and_reported() {
    requires!(root);
    let store = Store::new();
    store.import(
        &image([|l| {
            l.dir("dev", 0o755)
                .char_device("dev/null", 0o666, 1, 3)
                .fifo("dev/p", 0o600);
        }])
        .tag("a:1")
        .build(),
    );
    let out = store.beside("out");
    let done = store.ok([
        "unpack".as_ref(),
        "--no-devices".as_ref(),
        "a:1".as_ref(),
        out.as_os_str(),
    ]);
    done.warns("device 1:3 at dev/null: devices are not wanted");
    assert_eq!(paths(&crate::support::tree(&out)), ["dev", "dev/p"]);
}

// L-28
#[test]
fn device_numbers_that_do_not_fit_are_refused() {
    for (major, minor, words) in [(4096, 0, "major number"), (0, 1 << 20, "minor number")] {
        let odd = ImageBuilder::new().layer(|l| {
            l.char_device("dev", 0o666, major, minor);
        });
        refused(odd, words);
    }
}

// L-29
#[test]
fn owners_are_mapped_and_an_id_without_a_mapping_is_named() {
    requires!(root);
    let store = Store::new();
    let mut capability = vec![1, 0, 0, 2];
    capability.extend_from_slice(&[0; 16]);
    let mut expected = capability.clone();
    expected[3] = 3;
    expected.extend_from_slice(&100_000u32.to_le_bytes());
    let built = ImageBuilder::new()
        .layer(|l| {
            l.file("implied/root", "x", 0o644).owner(7, 9);
            l.xattr("security.capability", &capability)
                .file("seven", "x", 0o4755);
            l.symlink("link", "seven").dir("dir", 0o755);
        })
        .tag("a:1")
        .build();
    store.import(&built);
    let out = store.beside("out");
    let args = [
        "unpack",
        "a:1",
        "--uid-map",
        "0:100000:10",
        "--gid-map",
        "0:200000:9",
    ];
    store
        .call(args)
        .arg(&out)
        .run()
        .fails_with("seven: gid 9 has no mapping");
    super::assert_no_trace(&store);
    let args = [
        "unpack",
        "a:1",
        "--uid-map",
        "0:100000:5",
        "--uid-map",
        "5:300000:10",
        "--gid-map",
        "0:200000:10",
    ];
    store.call(args).arg(&out).ok();
    let tree = crate::support::tree(&out);
    for (path, uid, gid) in [
        (".", 100_000, 200_000),
        ("implied", 100_000, 200_000),
        ("implied/root", 100_000, 200_000),
        ("seven", 300_002, 200_009),
        ("link", 300_002, 200_009),
        ("dir", 300_002, 200_009),
    ] {
        assert_eq!(
            (at(&tree, path).uid, at(&tree, path).gid),
            (uid, gid),
            "{path}"
        );
    }
    assert_eq!(at(&tree, "seven").mode, 0o4755);
    assert_eq!(at(&tree, "seven").xattrs["security.capability"], expected);
}

// L-30
#[test]
fn names_are_bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    requires!(root);
    let odd = OsStr::from_bytes(b"\xff\xfe\n\x1b[31m\\ '\"");
    let tree = both(ImageBuilder::new().layer(|l| {
        l.file(odd, "x", 0o644).symlink("link", odd);
        l.hardlink("hard", odd).whiteout("none");
    }));
    let entry = tree
        .iter()
        .find(|entry| entry.path == odd)
        .expect("the odd name");
    assert_eq!(entry.nlink, 2);
    assert_eq!(at(&tree, "link").target.as_deref(), Some(odd.as_ref()));
}

// L-23
#[test]
fn an_attribute_that_only_files_take_is_a_warning_on_a_link() {
    requires!(root);
    let store = Store::new();
    store.import(
        &ImageBuilder::new()
            .layer(|l| {
                l.xattr("user.note", "x").symlink("link", "file");
                l.file("file", "", 0o644);
            })
            .tag("a:1")
            .build(),
    );
    let tree = store.beside("tree");
    store
        .call(["unpack", "a:1"])
        .arg(&tree)
        .ok()
        .warns("only files and directories");
    assert_eq!(
        std::fs::read_link(tree.join("link")).unwrap().to_str(),
        Some("file")
    );
}
