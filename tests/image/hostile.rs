//! Archives made to harm: nothing outside the target is touched.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use tar::EntryType;

use crate::support::{Canary, ImageBuilder, LayerBuilder, Store};

const TYPES: [EntryType; 7] = [
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Link,
    EntryType::Char,
    EntryType::Fifo,
    EntryType::Block,
];

/// Unpack `image` flat and as layers beside a canary. Whether it is refused is not asked; the canary is.
#[track_caller]
fn attack(image: &dyn Fn(&str) -> ImageBuilder) {
    let store = Store::new();
    let canary = Canary::beside(&store.beside(""));
    let outside = canary.path().to_str().expect("a path in UTF-8").to_owned();
    store.import(&image(&outside).tag("a:1").build());
    let out = store.beside("out");
    for done in [
        store.run(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()]),
        store.run(["unpack", "a:1", "--layers"]),
    ] {
        assert!(matches!(done.code, 0 | 1), "{done}");
    }
    canary.assert_untouched();
    let beside = fs::read_dir(store.beside("")).expect("list");
    for entry in beside {
        let name = entry.expect("entry").file_name();
        let known = ["canary", "out", "store", "programs"];
        assert!(
            known.iter().any(|known| name == *known),
            "{}",
            name.display()
        );
    }
}

// S-1, B-14, B-15, CVE-2014-9356
#[test]
fn names_that_climb_or_are_absolute_stay_inside_whatever_the_type() {
    requires!(root);
    for kind in TYPES {
        attack(&|outside| {
            let mut image = ImageBuilder::new();
            for name in absolute_and_odd(outside) {
                image = image.layer(|l| {
                    l.entry(kind, &name, 0o777, "x", b"");
                });
            }
            image
        });
        for name in [
            "../canary/secret",
            "a/../../canary/secret",
            "../canary/.wh.secret",
            "../canary/.wh..wh..opq",
            "..",
            "../",
            "./..",
            "",
        ] {
            attack(&|_| {
                ImageBuilder::new().layer(|l| {
                    l.entry(kind, name, 0o777, "x", b"");
                })
            });
        }
    }
}

/// The canary's own paths, as entries and as whiteouts.
fn absolute_and_odd(outside: &str) -> Vec<String> {
    vec![
        format!("{outside}/secret"),
        format!("/{outside}/etc/passwd"),
        format!("{outside}/.wh.secret"),
        format!("{outside}/.wh..wh..opq"),
        format!("{outside}/etc/."),
        format!("{outside}/new/file"),
    ]
}

/// Entries that go through `way`, which is or leads to the canary.
fn through(l: &mut LayerBuilder, way: &str) {
    l.owner(1, 1).mtime(1);
    l.file(format!("{way}/secret"), "overwritten", 0o777);
    l.dir(format!("{way}/etc"), 0o777);
    l.xattr("user.x", "y").dir(format!("{way}/."), 0o777);
    l.file(format!("{way}/etc/passwd"), "overwritten", 0o777);
    l.file(format!("{way}/new"), "new", 0o777);
    l.symlink(format!("{way}/link"), "/");
    l.hardlink(format!("{way}/hard"), format!("{way}/secret"));
    l.whiteout(format!("{way}/program"));
    l.opaque(format!("{way}/etc"));
    l.opaque(way);
    l.whiteout(format!("{way}/etc/passwd"));
    l.fifo(format!("{way}/fifo"), 0o777);
    l.char_device(format!("{way}/device"), 0o666, 1, 3);
}

// S-2, CVE-2021-29136, CVE-2021-32760, CVE-2026-33056
#[test]
fn nothing_goes_through_a_link_that_leads_outside() {
    requires!(root);
    // All end in the canary: if one were followed, nothing else of the machine would be harmed.
    let targets: [&dyn Fn(&str) -> String; 4] = [
        &|outside| outside.to_owned(),
        &|_| "../canary".to_owned(),
        &|outside| format!("../../../../../../../../..{outside}"),
        &|outside| format!("/proc/self/root{outside}"),
    ];
    for target in targets {
        // In one layer, in the next, and through a second link.
        attack(&|outside| {
            ImageBuilder::new().layer(|l| {
                l.symlink("way", target(outside));
                through(l, "way");
                through(l, &format!("way{outside}"));
            })
        });
        attack(&|outside| {
            ImageBuilder::new()
                .layer(|l| {
                    l.symlink("way", target(outside));
                })
                .layer(|l| through(l, "way"))
                .layer(|l| {
                    l.symlink("other", "way");
                })
                .layer(|l| through(l, "other"))
        });
        attack(&|outside| {
            ImageBuilder::new().layer(|l| {
                // A directory that becomes a link after it has been entered.
                l.dir("way", 0o755).file("way/x", "x", 0o644);
                l.symlink("way", target(outside));
                through(l, "way");
                // And the last component itself.
                l.symlink("secret", format!("{}/secret", target(outside)));
                l.file("secret", "overwritten", 0o777);
                l.symlink("dir", target(outside)).dir("dir", 0o777);
                l.file("dir/secret", "overwritten", 0o777);
            })
        });
    }
}

// S-3
#[test]
fn no_hard_link_leads_outside() {
    requires!(root);
    attack(&|outside| {
        ImageBuilder::new().layer(|l| {
            l.hardlink("x", format!("{outside}/secret"));
        })
    });
    for target in [
        "../canary/secret",
        "a/../../canary/secret",
        "way/secret",
        "way/twin",
    ] {
        attack(&|outside| {
            ImageBuilder::new().layer(|l| {
                l.symlink("way", outside);
                l.hardlink("x", target).file("x", "overwritten", 0o777);
            })
        });
    }
    attack(&|outside| {
        ImageBuilder::new()
            .layer(|l| {
                l.symlink("link", format!("{outside}/secret"));
            })
            .layer(|l| {
                l.hardlink("hard", "link").owner(1, 1);
                l.file("hard", "overwritten", 0o777)
                    .file("link", "overwritten", 0o777);
            })
    });
}

// S-2: through links inside the root everything works, and only there.
#[test]
fn an_absolute_link_is_taken_inside_the_root() {
    requires!(root);
    let store = Store::new();
    let canary = Canary::beside(&store.beside(""));
    let outside = canary.path().to_str().expect("a path in UTF-8").to_owned();
    let image = ImageBuilder::new().layer(|l| {
        l.symlink("way", &outside)
            .file("way/secret", "inside", 0o644);
    });
    store.import(&image.tag("a:1").build());
    let out = store.beside("out");
    store.ok(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()]);
    let inside = out.join(outside.trim_start_matches('/')).join("secret");
    assert_eq!(fs::read(inside).expect("inside"), b"inside");
    canary.assert_untouched();
}

// S-4, CVE-2018-15664, CVE-2025-47290
#[test]
fn whoever_swaps_directories_for_links_meanwhile_sends_nothing_outside() {
    requires!(root);
    let store = Store::new();
    let canary = Canary::beside(&store.beside(""));
    let image = ImageBuilder::new()
        .layer(|l| {
            for round in 0..400 {
                l.dir("d", 0o755).dir("d/e", 0o755);
                for name in ["secret", "etc", "program", "twin"] {
                    l.file(format!("d/{name}"), format!("round {round}"), 0o777);
                    l.file(format!("d/e/{name}"), "x", 0o777);
                }
                l.hardlink(format!("h{round}"), "d/secret");
                l.file("other", "x", 0o644);
            }
        })
        .layer(|l| {
            for _ in 0..400 {
                l.whiteout("d/secret").opaque("d/e").whiteout("d/program");
            }
        });
    store.import(&image.tag("a:1").build());
    let stop = AtomicBool::new(false);
    let (parent, outside) = (store.beside(""), canary.path().to_owned());
    let swaps = std::thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            let mut swaps = 0u32;
            while !stop.load(Ordering::Relaxed) {
                for entry in fs::read_dir(&parent).expect("list").flatten() {
                    if !entry.file_name().to_string_lossy().starts_with(".pelagos") {
                        continue;
                    }
                    for name in ["d", "d/e"] {
                        let (dir, away) = (entry.path().join(name), entry.path().join("away"));
                        if fs::rename(&dir, &away).is_ok() {
                            swaps += u32::from(symlink(&outside, &dir).is_ok());
                            std::thread::yield_now();
                            fs::remove_file(&dir).ok();
                            fs::rename(&away, &dir).ok();
                        }
                    }
                }
            }
            swaps
        });
        for round in 0..10 {
            let out = store.beside(format!("out{round}"));
            store.run(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()]);
        }
        stop.store(true, Ordering::Relaxed);
        attacker.join().expect("attacker")
    });
    assert!(swaps > 0, "the attacker never came to it");
    canary.assert_untouched();
}

// S-2: what lies in the target's place does not matter; it is not followed.
#[test]
fn a_link_in_place_of_the_target_is_not_written_through() {
    requires!(root);
    let store = Store::new();
    let canary = Canary::beside(&store.beside(""));
    store.import(
        &ImageBuilder::new()
            .layer(|l| {
                l.file("x", "x", 0o644);
            })
            .tag("a:1")
            .build(),
    );
    let out = store.beside("out");
    symlink(canary.path(), &out).expect("link");
    store
        .run(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()])
        .fails_with("not empty");
    canary.assert_untouched();
}

// S-15
#[test]
fn the_extractor_can_change_nothing_but_its_target_and_has_few_capabilities() {
    requires!(root, command "strace");
    let store = Store::new();
    store.import(
        &ImageBuilder::new()
            .layer(|l| {
                l.file("first", "x", 0o600);
            })
            .tag("one:1")
            .build(),
    );
    let trace = store.beside("trace");
    store
        .call(["unpack", "one:1"])
        .arg(store.beside("tree"))
        .under([
            "strace",
            "-f",
            "-qq",
            "-s",
            "64",
            "-o",
            trace.to_str().unwrap(),
        ])
        .ok();
    let text = fs::read_to_string(&trace).unwrap();
    let at = |words: &[&str]| {
        text.lines()
            .position(|line| words.iter().all(|word| line.contains(word)))
    };
    let first = at(&["openat(", "\"first\""]).expect("the file is written");
    let dropped = at(&["capset(", "CAP_CHOWN"]).expect("capabilities are dropped");
    assert!(dropped < first, "{text}");
    assert!(
        !text
            .lines()
            .nth(dropped)
            .unwrap()
            .contains("CAP_SYS_PTRACE")
    );
    // A kernel without Landlock says so, and then the capabilities are all.
    if at(&["landlock_create_ruleset(NULL", ") = -1"]).is_none() {
        let confined = at(&["landlock_restrict_self(", "= 0"]).expect("the thread is confined");
        assert!(confined < first, "{text}");
    }
}
