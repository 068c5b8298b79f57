//! What is removed, what is kept, and when the sweep is refused.
//!
//! The stores are written by hand, as a layout and records are: so every state can be had, also those that only a kill
//! or another program leaves. Rows of the reference that others' pruning gets wrong are named `b_N` and `g_N`.

mod choosing;
mod marking;
mod removing;

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use crate::support::{
    Built, Call, ImageBuilder, NOBODY, Outcome, Store, at, eventually, hex, own_state_root,
    patience, sha256, tree,
};

/// An image of one layer, called `tag`.
pub(super) fn image(tag: &str, content: &str) -> Built {
    let content = content.to_owned();
    ImageBuilder::new()
        .layer(move |l| {
            l.file("file", content, 0o644);
        })
        .tag(tag)
        .build()
}

/// An image of two layers; images of the same `base` share the first.
pub(super) fn stacked(tag: &str, base: &str, content: &str) -> Built {
    let (base, content) = (base.to_owned(), content.to_owned());
    ImageBuilder::new()
        .layer(move |l| {
            l.file("base", base, 0o644);
        })
        .layer(move |l| {
            l.file("top", content, 0o644);
        })
        .tag(tag)
        .build()
}

/// A store with these images.
pub(super) fn store_of(images: &[&Built]) -> Store {
    let store = Store::new();
    fill(&store, images);
    store
}

pub(super) fn fill(store: &Store, images: &[&Built]) {
    for image in images {
        image.write_layout(&store.root);
    }
    if images.is_empty() {
        // Its error comes after the store was made.
        store.run(["tag", "none:1", "other:1"]);
    } else {
        // The first command that changes something makes a store of a layout.
        let tag = images[0].tag.as_deref().unwrap();
        store.ok(["tag", tag, "made-it:1"]);
        store.ok(["untag", "made-it:1"]);
    }
}

pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// Write an unpacked layer with its record, as an unpack leaves it.
pub(super) fn put_layer(store: &Store, chain: &str, parent: Option<&str>, content: &str) {
    let tree = store.path("layers").join(hex(chain));
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("file"), content).unwrap();
    let disk: u64 = [&tree, &tree.join("file")]
        .map(|path| path.symlink_metadata().unwrap().blocks() * 512)
        .iter()
        .sum();
    let record = json!({
        "schema": 1, "chainId": chain, "diffId": chain, "parent": parent, "blob": chain, "form": "trusted",
        "created": now() - 100, "entries": 1, "diskBytes": disk, "apparentBytes": content.len(),
    });
    let path = store.path(format!("records/layers/{}.json", hex(chain)));
    fs::write(path, record.to_string()).unwrap();
    fs::write(
        store.path(format!("records/layers/{}.list", hex(chain))),
        "",
    )
    .unwrap();
}

/// The layers of an image, unpacked.
pub(super) fn unpack_layers(store: &Store, image: &Built) {
    let mut parent: Option<&str> = None;
    for chain in &image.chain_ids {
        put_layer(store, chain, parent, chain);
        parent = Some(chain);
    }
}

pub(super) fn put_volume(store: &Store, name: &str, pinned: bool, labels: Value) -> PathBuf {
    let dir = store.path("volumes").join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("data"), "worth keeping").unwrap();
    let record = json!({
        "schema": 1, "name": name, "labels": labels, "pinned": pinned, "anonymous": false, "created": now() - 100,
    });
    fs::write(
        store.path(format!("records/volumes/{name}.json")),
        record.to_string(),
    )
    .unwrap();
    dir
}

/// Register a bundle at `path` that was made from `image` and mounts its layers.
pub(super) fn put_bundle(store: &Store, id: &str, path: &Path, image: &Built, overlay: bool) {
    let device = path.parent().unwrap().metadata().unwrap().dev();
    let chain = if overlay {
        image.chain_ids.clone()
    } else {
        Vec::new()
    };
    let record = json!({
        "schema": 1, "id": id, "path": path, "parentDevice": device, "manifest": image.digest,
        "config": image.config_digest, "layers": image.layers, "chain": chain, "volumes": [], "overlay": overlay,
        "imageName": image.tag, "created": now() - 100, "lastSeen": now() - 100,
    });
    fs::write(bundle_record(store, id), record.to_string()).unwrap();
}

pub(super) fn bundle_record(store: &Store, id: &str) -> PathBuf {
    store.path(format!("records/bundles/{id}.json"))
}

/// A container of the runtime, stopped since long: no process has its pid.
pub(super) fn put_container(store: &Store, id: &str, bundle: &Path, config: &Value) -> PathBuf {
    let root = store.beside("run");
    let dir = root.join(id);
    fs::create_dir_all(&dir).unwrap();
    let state = json!({
        "id": id, "init_process_pid": 4_194_303, "init_process_start": 1, "created": "2026-01-01T00:00:00Z",
        "rootless": false, "schema": 1, "oci_version": "1.2.0", "bundle": bundle, "rootfs": bundle.join("rootfs"),
        "annotations": config["annotations"].as_object().cloned().unwrap_or_default(),
        "cgroup": null, "own_pid_namespace": true, "owner": 0,
    });
    fs::write(dir.join("state.json"), state.to_string()).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    root
}

pub(super) fn call(store: &Store, args: &[&str]) -> Call {
    let call = store.call(["prune"]);
    args.iter().fold(call, |call, arg| call.arg(arg))
}

/// Prune without being asked; the report.
#[track_caller]
pub(super) fn prune(store: &Store, args: &[&str]) -> Value {
    call(store, args)
        .arg("--yes")
        .arg("--format=json")
        .ok()
        .json()
}

/// Prune with the containers of the test.
#[track_caller]
pub(super) fn prune_with(store: &Store, runtime: &Path, args: &[&str]) -> Value {
    let call = call(store, args).arg("--runtime-root").arg(runtime);
    call.arg("--yes").arg("--format=json").ok().json()
}

pub(super) fn refused(store: &Store, args: &[&str]) -> Outcome {
    call(store, args).arg("--yes").run()
}

pub(super) fn ids(list: &Value, kind: &str) -> Vec<String> {
    let items = list
        .as_array()
        .unwrap()
        .iter()
        .filter(|item| item["kind"] == kind);
    let mut ids: Vec<_> = items
        .map(|item| item["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

pub(super) fn tags(store: &Store) -> Vec<String> {
    let index = store.json("index.json");
    let mut tags: Vec<String> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let name = &entry["annotations"]["org.opencontainers.image.ref.name"];
            name.as_str().unwrap_or_default().to_owned()
        })
        .collect();
    tags.sort();
    tags
}

pub(super) fn put_blob(store: &Store, bytes: &[u8]) -> String {
    let digest = sha256(bytes);
    fs::write(store.blob(&digest), bytes).unwrap();
    digest
}

pub(super) fn has(store: &Store, digest: &str) -> bool {
    store.blob(digest).exists()
}

/// Everything of an image is there.
#[track_caller]
pub(super) fn assert_whole(store: &Store, image: &Built) {
    for digest in image.blobs.keys() {
        assert!(has(store, digest), "{digest} of {:?} is gone", image.tag);
    }
}

#[track_caller]
pub(super) fn assert_gone(store: &Store, image: &Built) {
    let left: Vec<_> = image
        .blobs
        .keys()
        .filter(|digest| has(store, digest))
        .collect();
    assert_eq!(left, Vec::<&String>::new(), "of {:?}", image.tag);
}

/// Add an entry to index.json.
pub(super) fn add_entry(store: &Store, entry: Value) {
    let mut index = store.json("index.json");
    index["manifests"].as_array_mut().unwrap().push(entry);
    fs::write(store.path("index.json"), index.to_string()).unwrap();
}

/// A lease as a running command holds it.
pub(super) fn lease(store: &Store, name: &str, lines: &str) -> Flock<File> {
    let mut file = File::create(store.path("leases").join(name)).unwrap();
    file.write_all(format!("purpose test\n{lines}").as_bytes())
        .unwrap();
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .unwrap()
}

/// A staging directory as a running command holds it.
pub(super) fn stage(store: &Store, name: &str) -> Flock<File> {
    let dir = store.path("staging").join(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("content"), "half").unwrap();
    Flock::lock(File::open(dir).unwrap(), FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .unwrap()
}

/// The rules that hold whenever a prune may have been killed: names lead to whole content, records to trees.
#[track_caller]
pub(super) fn assert_consistent(store: &Store, images: &[&Built]) {
    for tag in tags(store) {
        let image = images
            .iter()
            .find(|image| image.tag.as_deref() == Some(&tag))
            .unwrap();
        assert_whole(store, image);
    }
    for record in store.names("records/layers") {
        if let Some(id) = record.strip_suffix(".json") {
            assert!(
                store.path("layers").join(id).join("file").exists(),
                "record {id} without its tree"
            );
        }
    }
}

pub(super) fn used(store: &Store) -> BTreeMap<String, u64> {
    serde_json::from_value(store.json("records/used.json")["seen"].clone()).unwrap()
}

pub(super) fn set_used(store: &Store, seen: &BTreeMap<String, u64>) {
    let record = json!({ "schema": 1, "seen": seen });
    fs::write(store.path("records/used.json"), record.to_string()).unwrap();
}
