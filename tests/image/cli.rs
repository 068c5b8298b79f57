//! The command line: options, exit codes, help, and what a failure looks like.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{Call, ImageBuilder, Store, at, gzip, own_state_root, sha256, tree};

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
    // Without a verb the help is shown, which does not name what is hidden.
    let nothing = Call::new::<&str>([]).run();
    assert_eq!(nothing.code, 2, "{nothing}");
    assert!(nothing.stderr.contains("Usage:"), "{nothing}");
    assert!(!nothing.stderr.contains("generate"), "{nothing}");
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

#[test]
fn every_member_that_a_listing_shows_as_json_is_described_in_the_docs() {
    requires!(container);
    own_state_root();
    let store = Store::new();
    let file = store.beside("image.tar");
    ImageBuilder::busybox().tag("a:1").write_oci_archive(&file);
    let imported = store
        .call(["import", "--format", "json"])
        .arg(&file)
        .ok()
        .json();
    store.ok(["unpack", "--layers", "a:1"]);
    store.ok(["volume", "create", "v"]);
    let mut members = BTreeSet::new();
    collect(&imported, &mut members);
    for verb in [
        &["list"][..],
        &["inspect", "a:1"],
        &["volume", "list"],
        &["df", "-v"],
        &["prune", "--dry-run", "--all", "--volumes"],
        &["fsck"],
    ] {
        let shown = store.call(verb).args(["--format", "json"]).ok().json();
        collect(&shown, &mut members);
    }
    assert!(
        members.contains("digest") && members.len() > 30,
        "{members:?}"
    );

    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo, or as cargo would");
    let page = std::fs::read_to_string(std::path::Path::new(&root).join("docs/IMAGE.md")).unwrap();
    members.retain(|member| !page.contains(&format!("`{member}`")));
    assert!(members.is_empty(), "not in docs/IMAGE.md: {members:?}");
}

/// The names of all members, but for those that an image or a person chose.
fn collect(value: &Value, members: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, members)),
        Value::Object(object) => {
            for (name, value) in object {
                members.insert(name.clone());
                if !["config", "labels", "manifest"].contains(&name.as_str()) {
                    collect(value, members);
                }
            }
        }
        _ => {}
    }
}

#[test]
fn every_verb_has_a_manual_page_the_verbs_of_a_verb_too() {
    let store = Store::new();
    let man = store.beside("man");
    store.call(["generate", "man"]).arg(&man).ok();
    for page in [
        "pelagos-image",
        "pelagos-image-run",
        "pelagos-image-volume-create",
    ] {
        let text = std::fs::read_to_string(man.join(format!("{page}.8"))).unwrap();
        assert!(text.contains(".TH"), "{page}");
        // What a page refers to is there.
        for other in text.lines().filter_map(|line| line.strip_suffix("(8)")) {
            let other = other.replace('\\', "");
            assert!(man.join(format!("{other}.8")).exists(), "{page}: {other}");
        }
    }
    assert!(!man.join("pelagos-image-generate.8").exists());
}

#[test]
fn the_help_of_a_verb_has_its_own_options_before_those_of_all() {
    let help = Call::new(["prune", "--help"]).ok().stdout;
    let at = |option: &str| {
        help.find(option)
            .unwrap_or_else(|| panic!("{option}: {help}"))
    };
    assert!(at("--keep-storage") < at("--root"), "{help}");
    assert!(at("--runtime-root") < at("--sync"), "{help}");
}
