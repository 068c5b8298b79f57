//! The command line: options, exit codes, help, and what a failure looks like.

use crate::support::{Call, ImageBuilder, Store, at, gzip, sha256, tree};

#[test]
fn help_and_version_are_answers_and_no_store_is_made() {
    let store = Store::new();
    let help = store.ok(["--help"]);
    assert!(help.stdout.contains("import"), "{help}");
    assert!(!help.stdout.contains("generate"), "{help}");
    assert!(help.stderr.is_empty(), "{help}");
    let version = Call::new(["--version"]).ok();
    assert_eq!(
        version.stdout,
        format!("pelagos-image {}\n", env!("CARGO_PKG_VERSION"))
    );
    assert!(!store.root.exists());
}

#[test]
fn a_command_line_that_is_wrong_is_told_from_work_that_went_wrong() {
    let store = Store::new();
    store.run(["no-such-verb"]).misused("no-such-verb");
    store
        .run(["list", "--no-such-option"])
        .misused("--no-such-option");
    Call::new(["--root", "", "list"]).run().misused("--root");
    Call::new(["--sync", "sometimes", "list"])
        .run()
        .misused("sometimes");
    assert!(!store.root.exists());
}

#[test]
fn builder_of_these_tests_writes_what_tar_reads() {
    let store = Store::new();
    let image = ImageBuilder::new()
        .layer(|l| {
            l.owner(3, 3_000_000).dir("a", 0o750);
            l.pax("mtime", "1.5").file("a/f", "text", 0o4711);
            l.hardlink("a/g", "a/f")
                .symlink("a/s", "../x")
                .fifo("a/p", 0o600);
            l.file(format!("a/{}", "long".repeat(50)), "", 0o644);
        })
        .build();
    assert_eq!(image.diff_ids[0], sha256(&image.tars[0]));
    assert_eq!(image.layers[0], sha256(&gzip(&image.tars[0])));
    let (file, dir) = (store.beside("x.tar"), store.beside("x"));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(&file, &image.tars[0]).unwrap();
    let tar = std::process::Command::new("tar")
        .args([
            "-xpf".as_ref(),
            file.as_os_str(),
            "-C".as_ref(),
            dir.as_os_str(),
        ])
        .output()
        .unwrap();
    assert!(tar.status.success(), "{tar:?}");
    let seen = tree(&dir);
    let f = at(&seen, "a/f");
    assert_eq!((f.kind, f.mode, f.size, f.nlink), ("file", 0o4711, 4, 2));
    assert_eq!(f.mtime_ns, 1_500_000_000);
    assert_eq!(at(&seen, "a/g").sha256, Some(sha256(b"text")));
    assert_eq!(at(&seen, "a/p").kind, "fifo");
    assert_eq!(at(&seen, "a/s").target, Some("../x".into()));
    assert_eq!(seen.len(), 7);
    if crate::support::needs::is_root() {
        assert_eq!((f.uid, f.gid), (3, 3_000_000));
    }
}
