//! What `fsck` finds and what it repairs.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{
    Built, Entry, ImageBuilder, Outcome, Store, assert_same_tree, eventually, hex, own_state_root,
    tree,
};

/// Two layers with a path of every type that needs no rights; the second hides something of the first.
fn image() -> Built {
    ImageBuilder::new()
        .layer(|layer| {
            layer.dir("etc", 0o755);
            layer.file("etc/hosts", b"127.0.0.1 localhost\n", 0o644);
            layer.file("etc/shadow", b"root:*:::\n", 0o600);
            layer.symlink("etc/link", "hosts");
            layer.hardlink("etc/other", "etc/hosts");
            layer.dir("empty", 0o1777);
            layer.fifo("pipe", 0o600);
        })
        .layer(|layer| {
            layer.dir("srv", 0o750);
            layer.file("srv/data", [7; 70_000], 0o644);
            layer.whiteout("etc/shadow");
        })
        .tag("base:1")
        .build()
}

/// A store with the image and its shared layers.
fn store() -> (Store, Built) {
    let (store, image) = (Store::new(), image());
    store.import(&image);
    store.ok(["unpack", "--layers", "base:1"]);
    (store, image)
}

fn layer(store: &Store, image: &Built, at: usize) -> PathBuf {
    store.path("layers").join(hex(&image.chain_ids[at]))
}

/// The tree, without the times of whiteouts: they have no meaning, and are those of their making.
fn shape(dir: impl AsRef<Path>) -> Vec<Entry> {
    let mut entries = tree(dir);
    for entry in &mut entries {
        if entry.rdev == Some((0, 0)) {
            entry.mtime_ns = 0;
        }
    }
    entries
}

fn fsck(store: &Store) -> Outcome {
    store.run(["fsck", "--format", "json"])
}

fn repair(store: &Store) -> Outcome {
    store.run(["fsck", "--repair", "--format", "json"])
}

#[track_caller]
fn faults(outcome: &Outcome) -> Vec<Value> {
    let report = outcome.json();
    let faults = report["faults"].as_array().expect("faults").clone();
    let left = faults.iter().any(|fault| fault["repaired"] == json!(false));
    assert_eq!(outcome.code, i32::from(left), "{outcome}");
    faults
}

/// Exactly one fault, not repaired, about `subject` and with these words.
#[track_caller]
fn one_fault(outcome: &Outcome, subject: &str, words: &str) -> Value {
    let faults = faults(outcome);
    assert_eq!(faults.len(), 1, "{outcome}");
    assert_eq!(faults[0]["subject"], subject, "{outcome}");
    assert_eq!(faults[0]["repaired"], false, "{outcome}");
    let text = faults[0].to_string();
    assert!(text.contains(words), "expected `{words}`\n{outcome}");
    faults[0].clone()
}

fn assert_clean(store: &Store) -> Value {
    let outcome = fsck(store);
    assert_eq!(faults(&outcome), Vec::<Value>::new());
    outcome.json()
}

fn bundle_record(store: &Store, path: &Path, image: &Built, chain: &[String]) {
    let record = json!({
        "schema": 1, "id": "0123456789abcdef", "path": path,
        "parentDevice": fs::metadata(path.parent().expect("parent")).expect("stat").dev(),
        "manifest": image.digest, "config": image.config_digest, "layers": image.layers,
        "chain": chain, "volumes": [], "overlay": true, "imageName": "base:1",
        "created": 1, "lastSeen": 1,
    });
    fs::write(
        store.path("records/bundles/0123456789abcdef.json"),
        record.to_string(),
    )
    .expect("record");
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("blob");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("blob");
}

#[test]
fn a_good_store_is_clean_and_fsck_says_what_it_checked() {
    let (store, image) = store();
    let report = assert_clean(&store);
    let size: u64 = image.blobs.values().map(|blob| blob.len() as u64).sum();
    let checked = &report["checked"];
    assert_eq!(checked["names"], 1);
    assert_eq!(checked["documents"], 2);
    assert_eq!(
        (&checked["blobs"], &checked["blobBytes"]),
        (&json!(4), &json!(size))
    );
    assert_eq!(checked["layers"], 2);
    assert_eq!(report["remarks"], json!([]));
    let text = store.ok(["fsck"]).stdout;
    assert!(
        text.contains("4 blobs") && text.ends_with("clean\n"),
        "{text}"
    );
    store.assert_nothing_left();
    // Where there is no store there is nothing wrong with it.
    assert_clean(&Store::new());
}

// B-24, R9
#[test]
fn every_change_of_a_layer_is_found_and_repair_brings_back_the_tree_that_was_unpacked() {
    let (store, image) = store();
    let base = layer(&store, &image, 0);
    let top = layer(&store, &image, 1);
    let before = [shape(&base), shape(&top)];
    let touch = |path: &Path| {
        let done = Command::new("touch")
            .args(["-h", "-d", "2001-01-01"])
            .arg(path)
            .status();
        assert!(done.expect("touch").success());
    };
    type Harm<'one> = (&'one str, usize, Box<dyn Fn() + 'one>);
    let cases: Vec<Harm> = vec![
        (
            "its content is another",
            0,
            Box::new(|| {
                // As damage on the disk: no time tells of it.
                let path = base.join("etc/hosts");
                let time = fs::metadata(&path)
                    .and_then(|meta| meta.modified())
                    .expect("time");
                flip(&path);
                fs::File::options()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.set_modified(time))
                    .expect("time");
            }),
        ),
        (
            "bytes long, was 20",
            0,
            Box::new(|| fs::write(base.join("etc/hosts"), "short").expect("write")),
        ),
        (
            "is not there",
            0,
            Box::new(|| fs::remove_file(base.join("etc/shadow")).expect("remove")),
        ),
        (
            "etc/new: is not in its listing",
            0,
            Box::new(|| fs::write(base.join("etc/new"), "").expect("write")),
        ),
        (
            "leads elsewhere",
            0,
            Box::new(|| {
                fs::remove_file(base.join("etc/link")).expect("remove");
                symlink("elsewhere", base.join("etc/link")).expect("link");
            }),
        ),
        (
            "has mode 666, had 644",
            0,
            Box::new(|| {
                fs::set_permissions(base.join("etc/hosts"), fs::Permissions::from_mode(0o666))
                    .expect("mode");
            }),
        ),
        (
            "has another modification time",
            1,
            Box::new(|| touch(&top.join("srv/data"))),
        ),
        (
            "is of type f, was p",
            0,
            Box::new(|| {
                fs::remove_file(base.join("pipe")).expect("remove");
                fs::write(base.join("pipe"), "").expect("write");
            }),
        ),
        (
            "is of type f, was w",
            1,
            Box::new(|| {
                fs::remove_file(top.join("etc/shadow")).expect("remove");
                fs::write(top.join("etc/shadow"), "").expect("write");
            }),
        ),
        (
            "it has a record and no tree",
            1,
            Box::new(|| fs::remove_dir_all(&top).expect("remove")),
        ),
        (
            ".list",
            0,
            Box::new(|| {
                let list = format!("records/layers/{}.list", hex(&image.chain_ids[0]));
                fs::remove_file(store.path(list)).expect("remove");
            }),
        ),
    ];
    for (words, at, harm) in cases {
        harm();
        let found = one_fault(&fsck(&store), &image.chain_ids[at], words);
        assert_eq!(found["images"], json!(["base:1"]), "{words}");
        let repaired = repair(&store);
        assert_eq!(faults(&repaired).len(), 1, "{words}: {repaired}");
        assert_eq!(
            faults(&repaired)[0]["repaired"],
            true,
            "{words}: {repaired}"
        );
        assert_same_tree(&before[0], &shape(&base));
        assert_same_tree(&before[1], &shape(&top));
        assert_clean(&store);
        store.assert_nothing_left();
    }
}

#[test]
fn another_owner_is_found_and_two_layers_of_one_image_are_repaired_together() {
    requires!(root);
    let (store, image) = store();
    let before: Vec<_> = [0, 1].map(|at| shape(layer(&store, &image, at))).into();
    lchown(layer(&store, &image, 0).join("etc/link"), Some(7), None).expect("owner");
    fs::remove_dir_all(layer(&store, &image, 1).join("srv")).expect("remove");
    let found = faults(&fsck(&store));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found
            .iter()
            .any(|fault| fault.to_string().contains("belongs to 7:0, did to 0:0"))
    );
    repair(&store).ok();
    for (at, before) in before.iter().enumerate() {
        assert_same_tree(before, &shape(layer(&store, &image, at)));
    }
    assert_clean(&store);
}

#[test]
fn a_damaged_blob_is_set_aside_its_images_are_named_and_an_import_makes_them_whole() {
    let (store, image) = store();
    for digest in [&image.layers[0], &image.config_digest, &image.digest] {
        let blob = store.blob(digest);
        let good = fs::read(&blob).expect("blob");
        flip(&blob);
        let damaged = fs::read(&blob).expect("blob");
        let found = one_fault(&fsck(&store), digest, "damaged");
        assert_eq!(found["images"], json!(["base:1"]));
        let left = one_fault(&repair(&store), digest, "import base:1 again");
        let advice = left["advice"].as_str().expect("advice");
        assert!(!blob.exists());
        let aside = advice
            .split(' ')
            .find(|word| word.contains("quarantine/"))
            .expect("where");
        let aside = store.path(aside.trim_end_matches(':'));
        assert_eq!(fs::read(&aside).expect("set aside"), damaged);
        one_fault(&fsck(&store), digest, "the blob is not there");
        store.import(&image);
        assert_eq!(fs::read(&blob).expect("blob"), good);
        assert_clean(&store);
        // Nothing takes it away behind the administrator's back.
        store.ok(["fsck", "--repair"]);
        assert!(aside.exists());
        fs::remove_file(aside).expect("remove");
    }
}

#[test]
fn a_damaged_blob_that_no_name_needs_is_set_aside_and_then_all_is_well() {
    let (store, image) = store();
    let loose = store.path("blobs/sha256").join("0".repeat(64));
    fs::write(&loose, "loose").expect("blob");
    one_fault(
        &fsck(&store),
        &format!("sha256:{}", "0".repeat(64)),
        "damaged",
    );
    repair(&store).ok();
    assert!(!loose.exists());
    assert_clean(&store);
    // A good one that nothing needs is for prune.
    let orphan = ImageBuilder::new().layer(|layer| {
        layer.dir("x", 0o755);
    });
    let orphan = orphan.build();
    let digest = &orphan.layers[0];
    fs::write(store.blob(digest), &orphan.blobs[digest]).expect("blob");
    let report = assert_clean(&store);
    assert!(
        report["remarks"][0]
            .as_str()
            .expect("remark")
            .contains(digest.as_str())
    );
    repair(&store).ok();
    assert!(store.blob(digest).exists());
    assert!(store.blob(&image.layers[0]).exists());
}

#[test]
fn a_layer_whose_blob_is_damaged_stays_as_it_is() {
    let (store, image) = store();
    flip(&store.blob(&image.layers[0]));
    let base = layer(&store, &image, 0);
    fs::write(base.join("etc/hosts"), "changed").expect("write");
    let before = shape(&base);
    let left = faults(&repair(&store));
    assert_eq!(left.len(), 2);
    assert!(
        left.iter().all(|fault| fault["repaired"] == false),
        "{left:?}"
    );
    assert_same_tree(&before, &shape(&base));
    store.import(&image);
    repair(&store).ok();
    assert_clean(&store);
}

// B-24
#[test]
fn a_layer_that_a_bundle_or_a_mount_uses_is_not_touched() {
    // Layers of its own: a mount of those that the other tests repair would keep theirs from repair as well.
    let image = ImageBuilder::new()
        .layer(|layer| {
            layer.dir("etc", 0o755);
            layer.file("etc/hosts", b"127.0.0.1 mounted\n", 0o644);
        })
        .layer(|layer| {
            layer.file("etc/above", b"above", 0o644);
        })
        .tag("base:1")
        .build();
    let store = Store::new();
    store.import(&image);
    store.ok(["unpack", "--layers", "base:1"]);
    let base = layer(&store, &image, 0);
    let bundle = store.beside("bundle");
    fs::create_dir(&bundle).expect("bundle");
    bundle_record(&store, &bundle, &image, &image.chain_ids);
    fs::write(base.join("etc/hosts"), "changed").expect("write");
    let before = shape(&base);
    one_fault(&repair(&store), &image.chain_ids[0], "used by bundle");
    assert_same_tree(&before, &shape(&base));
    fs::remove_file(store.path("records/bundles/0123456789abcdef.json")).expect("record");
    if crate::support::needs::is_root() {
        let point = store.beside("point");
        fs::create_dir(&point).expect("mount point");
        let script = format!(
            "mount -t overlay none -o lowerdir={}:{} {} && exec \"$0\" \"$@\"",
            layer(&store, &image, 1).display(),
            base.display(),
            point.display()
        );
        let call = store.call(["fsck", "--repair", "--format", "json"]);
        let refused = call
            .under([
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &script,
            ])
            .run();
        one_fault(&refused, &image.chain_ids[0], "it is mounted");
        assert_same_tree(&before, &shape(&base));
    }
    repair(&store).ok();
    assert_clean(&store);
}

#[test]
fn documents_names_and_records_that_cannot_be_read_are_named() {
    let (store, image) = store();
    let cases: [(&str, &[u8], &str, &str); 4] = [
        ("index.json", b"{", "index.json", "index.json"),
        (
            "records/used.json",
            b"{\"schema\":9}",
            "records/used.json",
            "`fsck --repair` begins it anew",
        ),
        ("records/volumes/a.json", b"", "records/volumes", "a.json"),
        ("blobs/sha256/note", b"", "blobs/sha256/note", "not a blob"),
    ];
    for (path, content, subject, words) in cases {
        let path = store.path(path);
        let good = fs::read(&path).ok();
        fs::write(&path, content).expect("spoil");
        one_fault(&fsck(&store), subject, words);
        match good {
            Some(good) => fs::write(&path, good).expect("restore"),
            None => fs::remove_file(&path).expect("restore"),
        }
    }
    // S-9: a name whose descriptor lies about the size.
    let mut index = store.json("index.json");
    index["manifests"][0]["size"] = json!(7);
    let good = fs::read(store.path("index.json")).expect("index");
    fs::write(store.path("index.json"), index.to_string()).expect("index");
    one_fault(&fsck(&store), &image.digest, "its descriptor says 7");
    fs::write(store.path("index.json"), good).expect("index");
    assert_clean(&store);
}

#[test]
fn when_things_were_last_used_is_begun_anew_where_it_cannot_be_read() {
    let (store, _) = store();
    for text in ["", "{\"schema\":9}"] {
        fs::write(store.path("records/used.json"), text).expect("spoil");
        let outcome = repair(&store);
        let fault = &faults(&outcome)[0];
        assert_eq!(fault["subject"], "records/used.json", "{outcome}");
        assert_eq!(fault["repaired"], true, "{outcome}");
        assert_clean(&store);
    }
}

#[test]
fn what_killed_commands_leave_is_told_and_is_no_fault() {
    let (store, image) = store();
    fs::create_dir(store.path("staging/dead")).expect("staging");
    fs::create_dir(store.path("trash/dead")).expect("trash");
    fs::write(store.path("leases/dead"), "purpose dead\n").expect("lease");
    fs::create_dir(store.path("layers").join("0".repeat(64))).expect("tree");
    fs::create_dir(store.path("volumes/orphan")).expect("volume");
    bundle_record(&store, &store.beside("gone"), &image, &[]);
    let report = assert_clean(&store);
    let remarks = report["remarks"].to_string();
    for words in [
        "staging/dead",
        "trash/dead",
        "leases: 1",
        "without a record",
        "orphan",
        "/gone: its directory is gone",
    ] {
        assert!(remarks.contains(words), "{words}: {remarks}");
    }
    repair(&store).ok();
    assert!(!store.path("records/bundles/0123456789abcdef.json").exists());
    assert!(
        store.path("volumes/orphan").exists(),
        "it may hold something"
    );
}

#[test]
fn a_bundle_that_is_gone_is_not_forgotten_while_a_container_is_made_from_it() {
    requires!(root);
    own_state_root();
    let (store, image) = store();
    let bundle = store.beside("gone");
    bundle_record(&store, &bundle, &image, &[]);
    let record = store.path("records/bundles/0123456789abcdef.json");
    fs::create_dir("/run/pelagos/web").expect("state");
    let state =
        json!({"schema": 1, "id": "web", "bundle": bundle, "rootfs": bundle.join("rootfs")});
    fs::write("/run/pelagos/web/state.json", state.to_string()).expect("state");
    let said = repair(&store).ok().json()["remarks"].to_string();
    assert!(said.contains("container web is made from it"), "{said}");
    assert!(record.exists());
    fs::remove_dir_all("/run/pelagos/web").expect("state");
    repair(&store).ok();
    assert!(!record.exists());
}

#[test]
fn a_volume_without_content_is_a_fault_and_a_bundle_on_a_missing_disk_is_left_alone() {
    let (store, image) = store();
    let record = json!({"schema": 1, "name": "v", "labels": {}, "pinned": false, "anonymous": false, "created": 1});
    fs::write(store.path("records/volumes/v.json"), record.to_string()).expect("record");
    one_fault(&fsck(&store), "v", "its content is not there");
    repair(&store).ok();
    assert!(!store.path("records/volumes/v.json").exists());

    let gone = store.beside("disk/bundle");
    fs::create_dir(store.beside("disk")).expect("disk");
    bundle_record(&store, &gone, &image, &[]);
    fs::remove_dir(store.beside("disk")).expect("disk");
    one_fault(
        &repair(&store),
        gone.to_str().expect("path"),
        "mount the disk",
    );
    assert!(store.path("records/bundles/0123456789abcdef.json").exists());
}

#[test]
fn a_repair_that_is_killed_at_any_rename_can_be_repeated() {
    // Under strace newuidmap has no privilege.
    requires!(root, command "strace");
    let (store, image) = store();
    let base = layer(&store, &image, 0);
    let before = shape(&base);
    for (what, most) in [("renameat2", 1), ("renameat", 2)] {
        for at in 1..=most {
            fs::write(base.join("etc/hosts"), "changed").expect("write");
            let killed = store
                .call(["fsck", "--repair"])
                .injecting(&format!("{what}:signal=SIGKILL:when={at}"))
                .run();
            assert!(killed.code > 128, "{what} {at}: {killed}");
            repair(&store).ok();
            assert_same_tree(&before, &shape(&base));
            assert_clean(&store);
        }
    }
}

#[test]
fn nothing_under_a_check_is_pruned_away() {
    // Under strace newuidmap has no privilege.
    requires!(root, command "strace");
    let (store, image) = store();
    let orphan = ImageBuilder::new()
        .layer(|layer| {
            layer.file("orphan", [1; 4096], 0o644);
        })
        .build();
    let digest = &orphan.layers[0];
    fs::write(store.blob(digest), &orphan.blobs[digest]).expect("blob");
    let check = store
        .call(["fsck", "--format", "json"])
        .injecting("read:delay_enter=3000:when=40+")
        .spawn();
    assert!(eventually(|| {
        store.names("leases").iter().any(|name| {
            fs::read_to_string(store.path("leases").join(name))
                .is_ok_and(|text| text.contains(digest.as_str()))
        })
    }));
    store.ok(["prune", "--yes"]);
    assert!(store.blob(digest).exists());
    let checked = Outcome::from(check.wait()).ok().json();
    assert_eq!(checked["checked"]["blobs"], 5);
    assert!(store.blob(&image.layers[0]).exists());
}
