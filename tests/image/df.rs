//! What the disk holds: the sums of `df`, and its shape in JSON.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::prune::{image, put_bundle, put_layer, put_volume, stacked, store_of, unpack_layers};
use crate::support::{ImageBuilder, Store, patience, sha256, tree};

#[track_caller]
fn df(store: &Store) -> Value {
    store.ok(["df", "--format=json"]).json()
}

fn disk(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().blocks() * 512
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn unique_and_shared_add_up_to_what_images_lead_to() {
    let images = [
        stacked("one:1", "base", "1"),
        stacked("two:1", "base", "2"),
        stacked("three:1", "other", "3"),
    ];
    let store = store_of(&images.iter().collect::<Vec<_>>());
    store.ok(["tag", "one:1", "again:1"]);
    for image in &images {
        unpack_layers(&store, image);
    }
    let usage = df(&store);
    let rows = usage["imageRows"].as_array().unwrap();
    assert_eq!(rows.len(), 3, "two names of one image are one row");
    for kind in ["diskBytes", "apparentBytes"] {
        let unique: u64 = rows.iter().map(|row| number(&row["unique"][kind])).sum();
        let whole = number(&usage["layers"][kind]) + number(&usage["blobs"][kind]);
        assert_eq!(unique + number(&usage["shared"][kind]), whole, "{kind}");
        assert_eq!(number(&usage["unique"][kind]), unique);
        for row in rows {
            let parts = number(&row["unique"][kind]) + number(&row["shared"][kind]);
            assert_eq!(parts, number(&row["size"][kind]));
        }
    }
    let blobs: u64 = store
        .blobs()
        .iter()
        .map(|digest| disk(&store.blob(digest)))
        .sum();
    assert_eq!(number(&usage["blobs"]["diskBytes"]), blobs);
    assert_eq!(usage["layers"]["count"], 5);
    assert_eq!(usage["images"]["count"], 3);
    assert_eq!(usage["orphanBlobs"]["count"], 0);
    assert_eq!(
        rows.iter()
            .filter(|row| row["names"] == json!(["again:1", "one:1"]))
            .count(),
        1
    );
}

#[test]
fn what_is_reclaimable_is_what_prune_then_frees() {
    let (used, idle) = (
        stacked("used:1", "base", "u"),
        stacked("idle:1", "base", "i"),
    );
    let store = store_of(&[&used, &idle]);
    unpack_layers(&store, &used);
    unpack_layers(&store, &idle);
    let bundle = store.beside("bundle");
    fs::create_dir(&bundle).unwrap();
    put_bundle(&store, "b", &bundle, &used, true);
    fs::write(store.blob(&sha256(b"stray")), "stray").unwrap();
    put_volume(&store, "v", false, json!({}));
    put_volume(&store, "pinned", true, json!({}));
    fs::create_dir(store.path("staging/dead")).unwrap();
    let usage = df(&store);
    assert_eq!(usage["orphanBlobs"]["count"], 1);
    assert_eq!(usage["staging"]["count"], 1);
    assert_eq!(usage["volumes"]["count"], 2);
    let row = |name: &str| {
        let rows = usage["imageRows"].as_array().unwrap();
        rows.iter()
            .find(|row| row["names"][0] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(row("used:1")["reclaimableBytes"], 0);
    assert_eq!(
        row("used:1")["usedBy"],
        json!([format!("bundle {}", bundle.display())])
    );
    assert_eq!(
        row("idle:1")["reclaimableBytes"],
        row("idle:1")["unique"]["diskBytes"]
    );
    let report = store
        .ok(["prune", "--all", "--volumes", "--yes", "--format=json"])
        .json();
    assert_eq!(report["freedBytes"], usage["total"]["reclaimableBytes"]);
    assert_eq!(df(&store)["total"]["reclaimableBytes"], 0);
}

#[test]
fn what_only_a_bundle_keeps_is_a_line_of_its_own() {
    let app = image("app:1", "a");
    let store = store_of(&[&app]);
    let bundle = store.beside("bundle");
    fs::create_dir(&bundle).unwrap();
    put_bundle(&store, "b", &bundle, &app, false);
    store.ok(["untag", "app:1"]);
    let usage = df(&store);
    assert_eq!(usage["held"]["count"], 3);
    assert_eq!(usage["images"]["count"], 0);
    assert_eq!(usage["total"]["reclaimableBytes"], 0);
    assert_eq!(usage["total"]["diskBytes"], usage["held"]["diskBytes"]);
}

// B-10: links were followed, hard links counted by name, holes counted as content, errors as nothing.
#[test]
fn b_10_a_volume_is_measured_without_following_links_and_with_hard_links_once() {
    let store = store_of(&[&image("a:1", "a")]);
    let volume = put_volume(&store, "v", false, json!({}));
    fs::create_dir(volume.join("bin")).unwrap();
    symlink(".", volume.join("bin/X11")).unwrap();
    symlink("/", volume.join("host")).unwrap();
    symlink("/etc/passwd", volume.join("passwd")).unwrap();
    fs::write(volume.join("one"), vec![1; 100_000]).unwrap();
    fs::hard_link(volume.join("one"), volume.join("two")).unwrap();
    fs::hard_link(volume.join("one"), volume.join("bin/three")).unwrap();
    File::create(volume.join("sparse"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let row = df(&store)["volumeRows"][0].clone();
    let expected: u64 = [
        "", "bin", "bin/X11", "host", "passwd", "one", "sparse", "data",
    ]
    .map(|name| disk(&volume.join(name)))
    .iter()
    .sum();
    assert_eq!(number(&row["size"]["diskBytes"]), expected);
    let apparent = (1 << 30) + 100_000 + 13 + 1 + 1 + 11;
    assert_eq!(number(&row["size"]["apparentBytes"]), apparent);
}

#[test]
fn df_changes_nothing_and_needs_no_store() {
    let store = Store::new();
    assert_eq!(df(&store)["total"]["count"], 0);
    assert!(!store.root.exists());
    let store = store_of(&[&image("a:1", "a")]);
    store.ok(["prune", "--dry-run"]);
    let before = tree(&store.root);
    let said = store.ok(["df", "-v"]);
    assert_eq!(tree(&store.root), before);
    assert!(said.stdout.contains("a:1"), "{said}");
}

#[test]
fn df_shows_what_it_can_and_warns_of_what_it_cannot() {
    let (whole, broken) = (image("whole:1", "w"), image("broken:1", "b"));
    let store = store_of(&[&whole, &broken]);
    fs::remove_file(store.blob(&broken.config_digest)).unwrap();
    let said = store.ok(["df", "--format=json"]);
    said.warns("broken:1");
    assert_eq!(said.json()["images"]["count"], 2);
}

#[test]
fn s_14_hostile_names_are_shown_and_not_sent() {
    let store = store_of(&[&image("a:1", "a"), &image("evil\u{1b}]0;x\u{7}:1", "e")]);
    put_volume(&store, "v", false, json!({}));
    let said = store.ok(["df", "-v"]);
    assert!(!said.stdout.contains(['\u{1b}', '\u{7}']), "{said}");
}

// moby#31719: minutes. The bound is generous for a debug build on a busy machine.
#[test]
fn df_on_a_thousand_layers_takes_no_walk() {
    let store = store_of(&[&image("a:1", "a")]);
    let mut images = Vec::new();
    for n in 0..50 {
        let builder = (0..20).fold(ImageBuilder::new(), |builder, layer| {
            builder.layer(move |l| {
                l.file("file", format!("{n} {layer}"), 0o644);
            })
        });
        images.push(
            builder
                .plain()
                .tag(&format!("i{n}:1"))
                .write_layout(&store.root),
        );
    }
    for image in &images {
        let mut parent: Option<&str> = None;
        for chain in &image.chain_ids {
            put_layer(&store, chain, parent, "x");
            parent = Some(chain);
        }
    }
    // The fastest of a few: the machine may be busy.
    let times = (0..5).map(|_| {
        let begun = Instant::now();
        assert_eq!(df(&store)["layers"]["count"], 1000);
        begun.elapsed()
    });
    let fastest = times.min().unwrap();
    assert!(fastest < patience(Duration::from_secs(5)), "{fastest:?}");
}
