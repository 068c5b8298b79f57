//! What is removed, what is kept, and when the sweep is refused.
//!
//! The stores are written by hand, as a layout and records are: so every state can be had, also those that only a kill
//! or another program leaves. Rows of the reference that others' pruning gets wrong are named `b_N` and `g_N`.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use crate::support::{
    Built, Call, ImageBuilder, NOBODY, Outcome, Store, at, eventually, hex, patience, sha256, tree,
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

fn bundle_record(store: &Store, id: &str) -> PathBuf {
    store.path(format!("records/bundles/{id}.json"))
}

/// A container of the runtime, stopped since long: no process has its pid.
fn put_container(store: &Store, id: &str, bundle: &Path, config: &Value) -> PathBuf {
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

fn call(store: &Store, args: &[&str]) -> Call {
    let call = store.call(["prune"]);
    args.iter().fold(call, |call, arg| call.arg(arg))
}

/// Prune without being asked; the report.
#[track_caller]
fn prune(store: &Store, args: &[&str]) -> Value {
    call(store, args)
        .arg("--yes")
        .arg("--format=json")
        .ok()
        .json()
}

/// Prune with the containers of the test.
#[track_caller]
fn prune_with(store: &Store, runtime: &Path, args: &[&str]) -> Value {
    let call = call(store, args).arg("--runtime-root").arg(runtime);
    call.arg("--yes").arg("--format=json").ok().json()
}

fn refused(store: &Store, args: &[&str]) -> Outcome {
    call(store, args).arg("--yes").run()
}

fn ids(list: &Value, kind: &str) -> Vec<String> {
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

fn tags(store: &Store) -> Vec<String> {
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

fn put_blob(store: &Store, bytes: &[u8]) -> String {
    let digest = sha256(bytes);
    fs::write(store.blob(&digest), bytes).unwrap();
    digest
}

fn has(store: &Store, digest: &str) -> bool {
    store.blob(digest).exists()
}

/// Everything of an image is there.
#[track_caller]
fn assert_whole(store: &Store, image: &Built) {
    for digest in image.blobs.keys() {
        assert!(has(store, digest), "{digest} of {:?} is gone", image.tag);
    }
}

#[track_caller]
fn assert_gone(store: &Store, image: &Built) {
    let left: Vec<_> = image
        .blobs
        .keys()
        .filter(|digest| has(store, digest))
        .collect();
    assert_eq!(left, Vec::<&String>::new(), "of {:?}", image.tag);
}

/// Add an entry to index.json.
fn add_entry(store: &Store, entry: Value) {
    let mut index = store.json("index.json");
    index["manifests"].as_array_mut().unwrap().push(entry);
    fs::write(store.path("index.json"), index.to_string()).unwrap();
}

#[test]
fn what_nothing_needs_goes_and_the_rest_stays() {
    let (kept, gone) = (
        stacked("kept:1", "base", "k"),
        stacked("gone:1", "base", "g"),
    );
    let store = store_of(&[&kept, &gone]);
    unpack_layers(&store, &kept);
    unpack_layers(&store, &gone);
    store.ok(["untag", "gone:1"]);
    let report = prune(&store, &[]);
    assert_whole(&store, &kept);
    let own: Vec<_> = gone
        .blobs
        .keys()
        .filter(|digest| !kept.blobs.contains_key(*digest))
        .collect();
    assert_eq!(own.len(), 3);
    assert!(own.iter().all(|digest| !has(&store, digest)));
    assert_eq!(report["kinds"]["blob"]["deleted"], 3);
    assert_eq!(report["kinds"]["blob"]["scanned"], 7);
    assert_eq!(report["kinds"]["blob"]["referenced"], 4);
    assert_eq!(report["kinds"]["blob"]["unreferenced"], 3);
    assert_eq!(
        ids(&report["deleted"], "layer"),
        [gone.chain_ids[1].clone()]
    );
    let mut layers: Vec<_> = kept.chain_ids.iter().map(|chain| hex(chain)).collect();
    layers.sort_unstable();
    assert_eq!(store.names("layers"), layers);
    let record = format!("{}.json", hex(&gone.chain_ids[1]));
    assert!(!store.names("records/layers").contains(&record));
    store.assert_nothing_left();
}

#[test]
fn a_store_that_is_not_there_is_nothing_to_prune_and_is_not_made() {
    let store = Store::new();
    let report = prune(&store, &["--all", "--volumes"]);
    assert_eq!(report["deleted"], json!([]));
    assert!(!store.root.exists());
}

#[test]
fn without_a_terminal_somebody_has_to_say_yes() {
    let gone = image("gone:1", "x");
    let store = store_of(&[&gone]);
    store.ok(["untag", "gone:1"]);
    let said = store.run(["prune"]);
    said.fails_with("nobody is there to be asked");
    assert!(said.stderr.contains("--yes"), "{said}");
    assert_whole(&store, &gone);
}

// B-1: a running container's image was looked for by the name as it was typed.
#[test]
fn b_1_a_container_keeps_its_image_by_id_whatever_it_is_called_today() {
    let (app, other) = (image("myapp:latest", "app"), image("other:1", "other"));
    let store = store_of(&[&app, &other]);
    unpack_layers(&store, &app);
    let bundle = store.beside("bundle");
    fs::create_dir(&bundle).unwrap();
    put_bundle(&store, "b1", &bundle, &app, true);
    let runtime = put_container(&store, "web", &bundle, &json!({}));
    let report = prune_with(&store, &runtime, &["--all"]);
    assert_eq!(tags(&store), ["myapp:latest"]);
    assert_whole(&store, &app);
    assert_gone(&store, &other);
    assert_eq!(ids(&report["deleted"], "image"), ["other:1"]);
    assert_eq!(store.names("layers"), [hex(&app.chain_ids[0])]);
    // The name now means something else: the bundle's content stays without a name, the new image goes.
    store.ok(["untag", "myapp:latest"]);
    let newer = image("myapp:latest", "newer");
    newer.write_layout(&store.root);
    prune_with(&store, &runtime, &["--all"]);
    assert_eq!(tags(&store), Vec::<String>::new());
    assert_whole(&store, &app);
    assert_gone(&store, &newer);
}

// B-2: layers below an overlay that is mounted, though no name and no bundle leads to them.
#[test]
fn b_2_layers_of_a_mounted_overlay_stay_also_in_another_mount_namespace() {
    requires!(root);
    let (app, base) = (stacked("app:1", "base", "top"), image("gone:1", "gone"));
    let store = store_of(&[&app, &base]);
    unpack_layers(&store, &app);
    unpack_layers(&store, &base);
    for name in ["upper", "work", "merged"] {
        fs::create_dir(store.beside(name)).unwrap();
    }
    // By relative paths, which name nothing but the ChainIDs.
    let script = format!(
        "cd {} && mount -t overlay overlay -o lowerdir={}:{},upperdir={up},workdir={work} {merged} && touch {ready} && exec sleep 60",
        store.path("layers").display(),
        hex(&app.chain_ids[1]),
        hex(&app.chain_ids[0]),
        up = store.beside("upper").display(),
        work = store.beside("work").display(),
        merged = store.beside("merged").display(),
        ready = store.beside("ready").display(),
    );
    let mut holder = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .spawn()
        .unwrap();
    let ready = eventually(|| store.beside("ready").exists());
    store.ok(["untag", "app:1"]);
    store.ok(["untag", "gone:1"]);
    let report = call(&store, &["--yes", "--format=json"]).run();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(ready, "the overlay was not mounted");
    let report = report.ok().json();
    assert_eq!(ids(&report["deleted"], "layer"), base.chain_ids);
    assert!(
        app.chain_ids
            .iter()
            .all(|chain| store.path("layers").join(hex(chain)).exists())
    );
    // The mount is gone, so they go.
    let report = prune(&store, &[]);
    assert_eq!(ids(&report["deleted"], "layer").len(), 2);
    assert_eq!(store.names("layers"), Vec::<String>::new());
}

// B-3: a stopped container can be started again.
#[test]
fn b_3_a_stopped_container_keeps_what_its_configuration_names() {
    let app = stacked("app:1", "base", "top");
    let store = store_of(&[&app]);
    unpack_layers(&store, &app);
    put_volume(&store, "data", false, json!({}));
    put_volume(&store, "other", false, json!({}));
    let lower = format!("{}:{}", hex(&app.chain_ids[1]), hex(&app.chain_ids[0]));
    let config = json!({
        "mounts": [
            {"destination": "/data", "source": store.path("volumes/data/sub"), "type": "bind"},
            {"destination": "/", "source": "overlay", "type": "overlay", "options": ["ro", format!("lowerdir={lower}")]},
        ],
    });
    let runtime = put_container(&store, "stopped", &store.beside("not-registered"), &config);
    store.ok(["untag", "app:1"]);
    let report = prune_with(&store, &runtime, &["--all", "--volumes"]);
    assert_eq!(ids(&report["deleted"], "volume"), ["other"]);
    assert_eq!(ids(&report["deleted"], "layer"), Vec::<String>::new());
    assert!(store.path("volumes/data/data").exists());
    // And its image by what its annotations say.
    let named = image("named:1", "named");
    named.write_layout(&store.root);
    let config = json!({ "annotations": { "any.key": format!("named@{}", named.digest) } });
    put_container(&store, "noted", &store.beside("not-registered"), &config);
    let report = prune_with(&store, &runtime, &["--all"]);
    assert_eq!(ids(&report["deleted"], "image"), Vec::<String>::new());
    assert_whole(&store, &named);
}

// B-4, G-1: what could not be read was taken for what is not there.
#[test]
fn b_4_whatever_cannot_be_read_or_is_missing_stops_the_sweep_and_is_named() {
    type Damage = fn(&Store, &Built);
    let damages: [(&str, Damage); 10] = [
        ("manifest that is not JSON", |store, image| {
            fs::write(store.blob(&image.digest), "{").unwrap();
        }),
        (
            "manifest of other content and the same size",
            |store, image| {
                let size = fs::metadata(store.blob(&image.digest)).unwrap().len();
                fs::write(
                    store.blob(&image.digest),
                    vec![b' '; usize::try_from(size).unwrap()],
                )
                .unwrap();
            },
        ),
        ("manifest that is missing", |store, image| {
            fs::remove_file(store.blob(&image.digest)).unwrap()
        }),
        ("configuration that is missing", |store, image| {
            fs::remove_file(store.blob(&image.config_digest)).unwrap();
        }),
        ("layer that is missing", |store, image| {
            fs::remove_file(store.blob(&image.layers[0])).unwrap()
        }),
        ("index.json", |store, _| {
            fs::write(store.path("index.json"), "{\"schemaVersion\":2,").unwrap()
        }),
        ("entry of index.json", |store, _| {
            add_entry(
                store,
                json!({"mediaType": "x", "digest": "md5:1", "size": 1}),
            )
        }),
        ("bundle record", |store, _| {
            fs::write(bundle_record(store, "b"), "{\"schema\":1}").unwrap()
        }),
        ("bundle record of another release", |store, _| {
            fs::write(bundle_record(store, "b"), "{\"schema\":7}").unwrap()
        }),
        ("used.json", |store, _| {
            fs::write(store.path("records/used.json"), "\u{0}").unwrap()
        }),
    ];
    for (what, damage) in damages {
        let (kept, gone) = (image("kept:1", "k"), image("gone:1", "g"));
        let store = store_of(&[&kept, &gone]);
        store.ok(["untag", "gone:1"]);
        damage(&store, &kept);
        let before = store.blobs();
        let said = refused(&store, &["--all"]);
        let line = said.error_line().to_owned();
        let named = [&kept.digest, &kept.config_digest, &kept.layers[0]]
            .iter()
            .any(|digest| line.contains(digest.as_str()));
        let file = ["index.json", "bundles/b.json", "used.json"]
            .iter()
            .any(|file| line.contains(file));
        assert!(named || file, "{what}: {line}");
        assert_eq!(store.blobs(), before, "{what}");
    }
}

#[test]
fn b_4_every_fault_is_named_at_once() {
    let (one, two) = (image("one:1", "1"), image("two:1", "2"));
    let store = store_of(&[&one, &two]);
    fs::remove_file(store.blob(&one.layers[0])).unwrap();
    fs::remove_file(store.blob(&two.config_digest)).unwrap();
    let said = refused(&store, &[]);
    let line = said.error_line();
    for word in [
        "image one:1",
        &one.layers[0],
        "image two:1",
        &two.config_digest,
        "nothing was removed",
    ] {
        assert!(line.contains(word), "{word}: {line}");
    }
}

#[test]
fn b_4_a_directory_that_may_not_be_read_stops_the_sweep() {
    requires!(root);
    for dir in [
        "blobs/sha256",
        "layers",
        "volumes",
        "records/bundles",
        "leases",
    ] {
        let store = Store::unprivileged();
        let gone = image("gone:1", "g");
        gone.write_layout(&store.root);
        std::process::Command::new("chown")
            .args(["-R", &format!("{NOBODY}:{NOBODY}")])
            .arg(&store.root)
            .status()
            .unwrap();
        store.ok(["untag", "gone:1"]);
        fs::set_permissions(store.path(dir), fs::Permissions::from_mode(0o000)).unwrap();
        let said = refused(&store, &["--all"]);
        fs::set_permissions(store.path(dir), fs::Permissions::from_mode(0o700)).unwrap();
        said.fails_with(dir);
        assert_whole(&store, &gone);
    }
}

#[test]
fn b_4_a_container_that_cannot_be_read_stops_the_sweep() {
    let gone = image("gone:1", "g");
    for (file, content) in [
        ("state.json", "{"),
        ("state.json", "{\"schema\":2}"),
        ("state.json", "{\"id\":\"of another runtime\"}"),
        ("config.json", "not JSON"),
    ] {
        let store = store_of(&[&gone]);
        store.ok(["untag", "gone:1"]);
        let runtime = put_container(&store, "odd", &store.beside("b"), &json!({}));
        fs::write(runtime.join("odd").join(file), content).unwrap();
        let said = call(&store, &["--yes", "--runtime-root"])
            .arg(&runtime)
            .run();
        said.fails_with(&format!("odd/{file}"));
        assert_whole(&store, &gone);
        // The operator may pass over it.
        let call = call(&store, &["--yes", "--force-corrupt", "--runtime-root"]);
        call.arg(&runtime).ok().warns("odd");
        assert_gone(&store, &gone);
    }
    let store = store_of(&[&gone]);
    call(&store, &["--yes", "--runtime-root"])
        .arg(store.beside("no-such"))
        .run()
        .fails_with("no-such");
}

#[test]
fn with_force_corrupt_what_is_still_known_to_be_needed_stays() {
    let (whole, broken, gone) = (
        image("whole:1", "w"),
        image("broken:1", "b"),
        image("gone:1", "g"),
    );
    let store = store_of(&[&whole, &broken, &gone]);
    store.ok(["untag", "gone:1"]);
    fs::remove_file(store.blob(&broken.config_digest)).unwrap();
    refused(&store, &["--all"]).fails_with("broken:1");
    let said = call(&store, &["--all", "--force-corrupt", "--yes"]).ok();
    said.warns("broken:1");
    // Unused as well, but whole: it went. The broken one keeps its name and what could be found of it.
    assert_eq!(tags(&store), ["broken:1"]);
    assert!(has(&store, &broken.digest) && has(&store, &broken.layers[0]));
    assert_gone(&store, &gone);
    // Not even so without index.json.
    fs::write(store.path("index.json"), "").unwrap();
    refused(&store, &["--force-corrupt"]).fails_with("index.json");
    assert!(has(&store, &broken.layers[0]));
}

/// A lease as a running command holds it.
fn lease(store: &Store, name: &str, lines: &str) -> Flock<File> {
    let mut file = File::create(store.path("leases").join(name)).unwrap();
    file.write_all(format!("purpose test\n{lines}").as_bytes())
        .unwrap();
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .unwrap()
}

/// A staging directory as a running command holds it.
fn stage(store: &Store, name: &str) -> Flock<File> {
    let dir = store.path("staging").join(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("content"), "half").unwrap();
    Flock::lock(File::open(dir).unwrap(), FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .unwrap()
}

// B-5, B-6, G-4: content of an import in progress, not named yet.
#[test]
fn b_5_what_a_running_command_works_on_stays_and_goes_when_it_has_died() {
    let coming = image("coming:1", "c");
    let store = store_of(&[&image("there:1", "t")]);
    for (digest, bytes) in &coming.blobs {
        fs::write(store.blob(digest), bytes).unwrap();
    }
    // Old content that an import found in its place: its age says nothing (G-4 b, c).
    let old = FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(1));
    File::open(store.blob(&coming.layers[0]))
        .unwrap()
        .set_times(old)
        .unwrap();
    put_layer(&store, &coming.chain_ids[0], None, "x");
    fs::remove_file(store.path(format!("records/layers/{}.json", hex(&coming.chain_ids[0]))))
        .unwrap();
    put_volume(&store, "held", false, json!({}));
    let lines: String = coming
        .blobs
        .keys()
        .map(|digest| format!("blob {digest}\n"))
        .collect();
    let held = lease(
        &store,
        "1",
        &format!("{lines}layer {}\nvolume held\n", coming.chain_ids[0]),
    );
    let staged = stage(&store, "blob-sha256-1");
    let report = prune(&store, &["--volumes"]);
    assert_eq!(report["deleted"], json!([]));
    assert_whole(&store, &coming);
    assert!(store.path("staging/blob-sha256-1/content").exists());
    assert_eq!(store.names("leases"), ["1"]);
    drop((held, staged));
    let report = prune(&store, &["--volumes"]);
    assert_gone(&store, &coming);
    assert_eq!(
        ids(&report["deleted"], "leftover"),
        ["leases/1", "staging/blob-sha256-1"]
    );
    assert_eq!(ids(&report["deleted"], "layer"), coming.chain_ids);
    assert_eq!(ids(&report["deleted"], "volume"), ["held"]);
    store.assert_nothing_left();
}

#[test]
fn a_lease_of_only_the_manifest_keeps_what_the_manifest_names() {
    let app = stacked("app:1", "base", "top");
    let store = store_of(&[&app]);
    store.ok(["untag", "app:1"]);
    unpack_layers(&store, &app);
    let held = lease(&store, "1", &format!("blob {}\n", app.digest));
    let report = prune(&store, &["--all"]);
    assert_eq!(report["deleted"], json!([]));
    drop(held);
    prune(&store, &[]);
    assert_gone(&store, &app);
}

#[test]
fn a_layer_whose_unpack_is_staged_stays_with_those_below_it() {
    let app = stacked("app:1", "base", "top");
    let store = store_of(&[&app]);
    store.ok(["untag", "app:1"]);
    unpack_layers(&store, &app);
    let _staged = stage(&store, &format!("layer-{}", hex(&app.chain_ids[1])));
    prune(&store, &[]);
    assert_eq!(store.names("layers").len(), 2);
}

#[test]
fn b_5_names_that_are_not_ours_are_left_alone() {
    let store = store_of(&[&image("a:1", "a")]);
    fs::write(store.path("blobs/sha256/.partial-1234"), "x").unwrap();
    fs::write(store.path("blobs/sha256").join("A".repeat(64)), "x").unwrap();
    fs::create_dir(store.path("layers/lost+found")).unwrap();
    let report = prune(&store, &["--all"]);
    assert!(store.path("blobs/sha256/.partial-1234").exists());
    assert!(store.path("blobs/sha256").join("A".repeat(64)).exists());
    assert!(store.path("layers/lost+found").exists());
    assert_eq!(report["remarks"].as_array().unwrap().len(), 3);
}

// B-6: blobs were no content with roots but a cache, removed all.
#[test]
fn b_6_blobs_of_a_named_image_stay_also_where_its_layers_are_unpacked() {
    let app = stacked("app:1", "base", "top");
    let store = store_of(&[&app]);
    unpack_layers(&store, &app);
    prune(&store, &[]);
    assert_whole(&store, &app);
}

// B-7: layers were removed and names stayed, which then led to nothing.
#[test]
fn b_7_with_all_an_image_goes_as_a_whole_name_first() {
    let (one, two) = (stacked("one:1", "base", "1"), stacked("two:1", "base", "2"));
    let store = store_of(&[&one, &two]);
    unpack_layers(&store, &one);
    let report = prune(&store, &["--all"]);
    assert_eq!(tags(&store), Vec::<String>::new());
    assert_eq!(store.blobs(), Vec::<String>::new());
    assert_eq!(store.names("layers"), Vec::<String>::new());
    assert_eq!(store.names("records/layers"), Vec::<String>::new());
    assert_eq!(ids(&report["deleted"], "image"), ["one:1", "two:1"]);
    assert_eq!(store.ok(["list", "--format=json"]).json(), json!([]));
}

// B-8: the working area of a running command was removed as a cache.
#[test]
fn b_8_staging_of_a_living_command_is_no_cache() {
    let store = store_of(&[&image("a:1", "a")]);
    let _staged = stage(&store, "work");
    prune(&store, &["--all", "--volumes"]);
    assert!(store.path("staging/work/content").exists());
}

// B-9: volumes were judged by living processes and by paths as text.
#[test]
fn b_9_a_volume_goes_only_when_asked_for_and_when_no_container_in_any_state_names_it() {
    let store = store_of(&[&image("a:1", "a")]);
    for name in ["by-path", "by-link", "by-bundle", "unused"] {
        put_volume(&store, name, false, json!({}));
    }
    put_volume(&store, "pinned", true, json!({}));
    let link = store.beside("link");
    symlink(store.path("volumes/by-link"), &link).unwrap();
    let config = json!({"mounts": [
        {"destination": "/a", "source": store.path("volumes/by-path")},
        {"destination": "/b", "source": link},
    ]});
    let runtime = put_container(&store, "stopped", &store.beside("b"), &config);
    let app = image("app:1", "app");
    app.write_layout(&store.root);
    let bundle = store.beside("bundle");
    fs::create_dir(&bundle).unwrap();
    put_bundle(&store, "b1", &bundle, &app, false);
    let mut record: Value =
        serde_json::from_slice(&fs::read(bundle_record(&store, "b1")).unwrap()).unwrap();
    record["volumes"] = json!(["by-bundle"]);
    fs::write(bundle_record(&store, "b1"), record.to_string()).unwrap();

    let report = prune_with(&store, &runtime, &["--all"]);
    assert_eq!(ids(&report["deleted"], "volume"), Vec::<String>::new());
    let report = prune_with(&store, &runtime, &["--all", "--volumes"]);
    assert_eq!(ids(&report["deleted"], "volume"), ["unused"]);
    assert_eq!(
        store.names("volumes"),
        ["by-bundle", "by-link", "by-path", "pinned"]
    );
    assert_eq!(
        report["kinds"]["volume"],
        json!({
            "scanned": 5, "referenced": 4, "unreferenced": 1, "deleted": 1,
            "freedBytes": report["kinds"]["volume"]["freedBytes"],
        })
    );
}

#[test]
fn b_9_a_volume_that_is_bound_somewhere_is_in_use() {
    requires!(root);
    let store = store_of(&[&image("a:1", "a")]);
    put_volume(&store, "bound", false, json!({}));
    fs::create_dir(store.beside("point")).unwrap();
    let script = format!(
        "mount --bind {} {} && exec \"$@\"",
        store.path("volumes/bound").display(),
        store.beside("point").display()
    );
    call(&store, &["--volumes", "--yes"])
        .under([
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
            "sh",
        ])
        .ok();
    assert_eq!(store.names("volumes"), ["bound"]);
    prune(&store, &["--volumes"]);
    assert_eq!(store.names("volumes"), Vec::<String>::new());
}

// B-11, S-13: what was freed was counted before the removal, and a failed one passed for a success.
#[test]
fn b_11_one_that_cannot_be_removed_is_told_and_not_counted_and_the_others_go() {
    requires!(root);
    let (stuck, gone) = (image("stuck:1", "s"), image("gone:1", "g"));
    let store = store_of(&[&stuck, &gone]);
    unpack_layers(&store, &stuck);
    unpack_layers(&store, &gone);
    let inside = store
        .path("layers")
        .join(hex(&stuck.chain_ids[0]))
        .join("mounted");
    fs::create_dir(&inside).unwrap();
    let victim = store.beside("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("precious"), "host").unwrap();
    store.ok(["untag", "stuck:1"]);
    store.ok(["untag", "gone:1"]);
    let script = format!(
        "mount --bind {} {} && exec \"$@\"",
        victim.display(),
        inside.display()
    );
    let said = call(&store, &["--yes", "--format=json"])
        .under([
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
            "sh",
        ])
        .run();
    said.fails_with("1 thing could not be removed");
    said.warns("mounted");
    let report = said.json();
    assert_eq!(ids(&report["failed"], "layer"), stuck.chain_ids);
    assert_eq!(ids(&report["deleted"], "layer"), gone.chain_ids);
    assert_eq!(report["kinds"]["layer"]["deleted"], 1);
    assert_gone(&store, &stuck);
    assert_gone(&store, &gone);
    assert_eq!(fs::read_to_string(victim.join("precious")).unwrap(), "host");
    // What is stuck does not count any more, and goes once nothing is mounted in it.
    assert_eq!(store.names("layers"), Vec::<String>::new());
    let report = prune(&store, &[]);
    assert_eq!(ids(&report["deleted"], "leftover").len(), 1);
    store.assert_nothing_left();
}

#[test]
fn b_11_the_bytes_freed_are_blocks_counted_after_the_removal() {
    let store = store_of(&[&image("a:1", "a")]);
    let mut expected = 0;
    for (n, size) in [(0_u8, 5000_usize), (1, 100_000)] {
        let digest = put_blob(&store, &vec![n; size]);
        expected += fs::metadata(store.blob(&digest)).unwrap().blocks() * 512;
    }
    // Sparse: a gigabyte to look at, hardly a block on the disk.
    let sparse = store.blob(&format!("sha256:{}", "5".repeat(64)));
    File::create(&sparse).unwrap().set_len(1 << 30).unwrap();
    expected += fs::metadata(&sparse).unwrap().blocks() * 512;
    // A second name outside: nothing becomes free.
    let linked = put_blob(&store, &vec![7; 50_000]);
    fs::hard_link(store.blob(&linked), store.beside("other-name")).unwrap();
    let report = prune(&store, &[]);
    assert_eq!(report["kinds"]["blob"]["deleted"], 4);
    assert_eq!(report["freedBytes"], expected);
    assert_eq!(report["planBytes"], expected);
}

/// The rules that hold whenever a prune may have been killed: names lead to whole content, records to trees.
#[track_caller]
fn assert_consistent(store: &Store, images: &[&Built]) {
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

// B-12: a removal in place that was cut short left half a layer that counted as whole.
#[test]
fn b_12_a_prune_that_is_killed_leaves_a_consistent_store_that_the_next_one_cleans() {
    let images: Vec<Built> = (0..12)
        .map(|n| stacked(&format!("i{n}:1"), &format!("b{}", n % 3), &n.to_string()))
        .collect();
    let all: Vec<&Built> = images.iter().collect();
    for round in 0..12_u64 {
        let store = store_of(&all);
        for image in &images {
            unpack_layers(&store, image);
        }
        let bundle = store.beside("bundle");
        fs::create_dir(&bundle).unwrap();
        put_bundle(&store, "b", &bundle, &images[0], true);
        call(&store, &["--all", "--yes"])
            .killed_after(patience(Duration::from_millis(8 + round * 9)));
        assert_consistent(&store, &all);
        assert_whole(&store, &images[0]);
        prune(&store, &["--all"]);
        assert_consistent(&store, &all);
        assert_eq!(tags(&store), ["i0:1"]);
        assert_eq!(store.blobs().len(), images[0].blobs.len());
        assert_eq!(store.names("layers").len(), 2);
        store.assert_nothing_left();
    }
}

// B-13, G-6: no dry run; one that showed other numbers than the run.
#[test]
fn g_6_a_dry_run_changes_nothing_and_shows_exactly_what_the_run_then_does() {
    let (kept, gone) = (
        stacked("kept:1", "base", "k"),
        stacked("gone:1", "base", "g"),
    );
    let store = store_of(&[&kept, &gone]);
    unpack_layers(&store, &gone);
    put_volume(&store, "v", false, json!({}));
    let bundle = store.beside("bundle");
    fs::create_dir(&bundle).unwrap();
    put_bundle(&store, "b", &bundle, &kept, false);
    drop(stage(&store, "dead"));
    drop(lease(&store, "dead", ""));
    let before = tree(&store.root);
    let args = ["--all", "--volumes", "--format=json"];
    let shown = call(&store, &args).arg("--dry-run").ok().json();
    assert_eq!(tree(&store.root), before);
    assert_eq!(
        (&shown["dryRun"], &shown["deleted"]),
        (&json!(true), &json!([]))
    );
    let done = prune(&store, &args[..2]);
    assert_eq!(done["dryRun"], false);
    assert_eq!(shown["plan"], done["plan"]);
    assert_eq!(shown["planBytes"], done["freedBytes"]);
    let sort = |list: &Value| {
        let mut ids: Vec<_> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|i| format!("{} {}", i["kind"], i["id"]))
            .collect();
        ids.sort();
        ids
    };
    assert_eq!(sort(&shown["plan"]), sort(&done["deleted"]));
    assert_eq!(
        shown["kinds"]["blob"]["unreferenced"],
        done["kinds"]["blob"]["deleted"]
    );
    for kind in ["image", "bundle", "layer", "blob", "volume", "leftover"] {
        let tally = &done["kinds"][kind];
        let number = |name: &str| {
            tally[name]
                .as_u64()
                .unwrap_or_else(|| panic!("{kind} {name}"))
        };
        assert_eq!(
            number("scanned"),
            number("referenced") + number("unreferenced"),
            "{kind}"
        );
    }
    assert!(done["seconds"].as_f64().unwrap() > 0.0);
    assert!(before.iter().any(|entry| entry.path.ends_with("dead")));
    at(&tree(&store.root), "index.json");
}

// B-18: what says that a layer is complete lay within it.
#[test]
fn b_18_a_tree_without_a_record_is_not_complete_and_goes_though_an_image_names_it() {
    let app = stacked("app:1", "base", "top");
    let store = store_of(&[&app]);
    unpack_layers(&store, &app);
    fs::remove_file(store.path(format!("records/layers/{}.json", hex(&app.chain_ids[1])))).unwrap();
    let report = prune(&store, &[]);
    assert_eq!(ids(&report["deleted"], "layer"), [app.chain_ids[1].clone()]);
    assert_eq!(store.names("layers"), [hex(&app.chain_ids[0])]);
    assert_whole(&store, &app);
}

// B-19, G-7: leftovers were looked for under another name than they had.
#[test]
fn b_19_leftovers_of_dead_commands_are_planned_told_and_removed() {
    let store = store_of(&[&image("a:1", "a")]);
    drop(stage(&store, "blob-1"));
    drop(lease(&store, "0123", "blob x\n"));
    fs::create_dir(store.path("trash/77")).unwrap();
    fs::write(store.path("trash/77/x"), "x").unwrap();
    let report = prune(&store, &["--grace=1000h", "--filter=label=never"]);
    assert_eq!(
        ids(&report["deleted"], "leftover"),
        ["leases/0123", "staging/blob-1", "trash/77"]
    );
    store.assert_nothing_left();
}

// B-20: a document whose content is not what its digest says is no root to walk from.
#[test]
fn b_20_a_forged_manifest_is_a_fault_and_not_a_list_of_what_to_keep() {
    let (app, gone) = (image("app:1", "a"), image("gone:1", "g"));
    let store = store_of(&[&app, &gone]);
    store.ok(["untag", "gone:1"]);
    let forged = gone.blobs[&gone.digest].clone();
    fs::write(store.blob(&app.digest), forged).unwrap();
    refused(&store, &[]).fails_with(&app.digest);
    assert!(has(&store, &app.layers[0]) && has(&store, &gone.layers[0]));
}

// B-21: two names that differ in a separator only were one.
#[test]
fn b_21_names_that_look_alike_are_two_images() {
    let (one, two) = (image("a/b:c", "1"), image("a_b:c", "2"));
    let store = store_of(&[&one, &two]);
    store.ok(["untag", "a_b:c"]);
    prune(&store, &[]);
    assert_eq!(tags(&store), ["a/b:c"]);
    assert_whole(&store, &one);
    assert_gone(&store, &two);
}

// B-22: a tag that begins with a digit counted as one that never changes.
#[test]
fn b_22_a_tag_that_begins_with_a_digit_moves_like_any_other() {
    let (old, new) = (image("ubuntu:22.04", "old"), image("new:1", "new"));
    let store = store_of(&[&old, &new]);
    store.ok(["tag", "new:1", "ubuntu:22.04"]);
    prune(&store, &[]);
    assert_gone(&store, &old);
    assert_whole(&store, &new);
}

// B-24: a layer that looked damaged was removed from below its containers.
#[test]
fn b_24_a_layer_in_use_stays_also_when_its_record_is_lost() {
    let app = stacked("app:1", "base", "top");
    let store = store_of(&[&app]);
    unpack_layers(&store, &app);
    let bundle = store.beside("bundle");
    fs::create_dir(&bundle).unwrap();
    put_bundle(&store, "b", &bundle, &app, true);
    for chain in &app.chain_ids {
        fs::remove_file(store.path(format!("records/layers/{}.json", hex(chain)))).unwrap();
    }
    prune(&store, &["--all"]);
    assert_eq!(store.names("layers").len(), 2);
    // One that is missing altogether is a fault.
    fs::remove_dir_all(store.path("layers").join(hex(&app.chain_ids[0]))).unwrap();
    refused(&store, &[]).fails_with(hex(&app.chain_ids[0]));
}

// G-1: a document that does not parse, whole by its digest.
#[test]
fn g_1_a_document_of_no_sense_is_a_fault_and_not_an_empty_one() {
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    for bytes in [&b"{\"schemaVersion\":2}"[..], b"\xff\xfe", b"[]", b""] {
        let (kept, gone) = (image("kept:1", "k"), image("gone:1", "g"));
        let store = store_of(&[&kept, &gone]);
        store.ok(["untag", "gone:1"]);
        let digest = put_blob(&store, bytes);
        add_entry(
            &store,
            json!({"mediaType": manifest, "digest": digest, "size": bytes.len()}),
        );
        refused(&store, &[]).fails_with(&digest);
        assert_whole(&store, &gone);
    }
}

// G-2: references were found by searching text, so children and referrers were kept by chance or not at all.
#[test]
fn g_2_the_walk_goes_through_indexes_of_indexes_to_every_platform() {
    let (one, two) = (image("one:1", "1"), image("two:1", "2"));
    let inner = Built::index("inner", &[one.clone(), two.clone()]);
    let outer = Built::index("outer:1", &[inner]);
    let store = store_of(&[&outer]);
    prune(&store, &[]);
    assert_whole(&store, &outer);
    // A platform that was never fetched is no fault; it is said.
    for digest in one
        .blobs
        .keys()
        .filter(|digest| !two.blobs.contains_key(*digest))
    {
        fs::remove_file(store.blob(digest)).unwrap();
    }
    let report = prune(&store, &[]);
    assert!(
        report["remarks"][0].as_str().unwrap().contains(&one.digest),
        "{report}"
    );
    assert_whole(&store, &two);
    prune(&store, &["--all"]);
    assert_eq!(store.blobs(), Vec::<String>::new());
}

/// A signature of `subject`: manifest bytes and the blobs that it names.
fn signature(subject: &Built, store: &Store) -> (String, Vec<String>, Value) {
    let empty = put_blob(store, b"{}");
    let layer = put_blob(store, format!("signature of {}", subject.digest).as_bytes());
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": oci, "artifactType": "application/x-signature",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2},
        "layers": [{"mediaType": "text/plain", "digest": layer, "size": fs::metadata(store.blob(&layer)).unwrap().len()}],
        "subject": subject.descriptor,
    })
    .to_string();
    let digest = put_blob(store, manifest.as_bytes());
    let descriptor = json!({"mediaType": oci, "digest": digest, "size": manifest.len()});
    (digest.clone(), vec![digest, empty, layer], descriptor)
}

#[test]
fn g_2_what_refers_to_a_kept_image_stays_and_goes_with_it() {
    let (signed, plain) = (image("signed:1", "s"), image("plain:1", "p"));
    for listed in [false, true] {
        let store = store_of(&[&signed, &plain]);
        let (_, blobs, entry) = signature(&signed, &store);
        if listed {
            add_entry(&store, entry);
        }
        prune(&store, &[]);
        assert!(
            blobs.iter().all(|digest| has(&store, digest)),
            "listed: {listed}"
        );
        prune(&store, &["--all"]);
        assert_eq!(store.blobs(), Vec::<String>::new(), "listed: {listed}");
        assert_eq!(tags(&store), Vec::<String>::new());
    }
}

#[test]
fn g_2_other_digests_and_unknown_types_keep_what_they_name() {
    let store = store_of(&[&image("a:1", "a")]);
    let far = put_blob(&store, b"far");
    let near = put_blob(
        &store,
        json!({"deep": [{"digest": far}]}).to_string().as_bytes(),
    );
    let odd = json!({"blobs": {"x": near}}).to_string();
    let long = "ab".repeat(64);
    fs::create_dir_all(store.path("blobs/sha512")).unwrap();
    fs::write(store.path("blobs/sha512").join(&long), &odd).unwrap();
    let digest = format!("sha512:{long}");
    add_entry(
        &store,
        json!({"mediaType": "application/x-unknown", "digest": digest, "size": odd.len()}),
    );
    prune(&store, &["--all"]);
    let mut expected = vec![far, near, digest];
    expected.sort();
    assert_eq!(store.blobs(), expected);
}

// G-3: what a name led to before it moved stayed for ever.
#[test]
fn g_3_an_image_whose_name_moved_goes() {
    let (old, new) = (image("app:1", "old"), image("app:2", "new"));
    let store = store_of(&[&old, &new]);
    store.ok(["tag", "app:2", "app:1"]);
    prune(&store, &[]);
    assert_gone(&store, &old);
    assert_eq!(tags(&store), ["app:1", "app:2"]);
}

fn used(store: &Store) -> BTreeMap<String, u64> {
    serde_json::from_value(store.json("records/used.json")["seen"].clone()).unwrap()
}

fn set_used(store: &Store, seen: &BTreeMap<String, u64>) {
    let record = json!({ "schema": 1, "seen": seen });
    fs::write(store.path("records/used.json"), record.to_string()).unwrap();
}

// G-4: the age was that of the file.
#[test]
fn g_4_the_grace_counts_from_when_something_was_last_referenced() {
    let (kept, gone) = (image("kept:1", "k"), image("gone:1", "g"));
    let store = store_of(&[&kept, &gone]);
    let old = FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000));
    for digest in gone.blobs.keys() {
        File::open(store.blob(digest))
            .unwrap()
            .set_times(old)
            .unwrap();
    }
    prune(&store, &[]);
    store.ok(["untag", "gone:1"]);
    // Uploaded decades ago, referenced until now.
    let report = prune(&store, &["--grace=1h"]);
    assert_whole(&store, &gone);
    assert_eq!(report["spared"].as_array().unwrap().len(), 3);
    assert!(
        report["spared"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("grace")
    );
    // Two hours later.
    let earlier = used(&store)
        .into_iter()
        .map(|(key, seen)| (key, seen - 7200))
        .collect();
    set_used(&store, &earlier);
    prune(&store, &["--grace=1h"]);
    assert_gone(&store, &gone);
    assert_whole(&store, &kept);
    // What is gone is forgotten, what is referenced was seen just now.
    let seen = used(&store);
    assert!(!seen.contains_key(&format!("blob:{}", gone.digest)));
    assert!(seen[&format!("blob:{}", kept.digest)] + 60 > now());
}

#[test]
fn what_was_never_seen_begins_its_grace_with_the_first_prune() {
    let store = store_of(&[&image("a:1", "a")]);
    let stray = put_blob(&store, b"stray");
    prune(&store, &["--grace=1h"]);
    assert!(has(&store, &stray));
    let first = used(&store)[&format!("blob:{stray}")];
    assert!(first + 60 > now());
    // It does not begin anew.
    let mut seen = used(&store);
    seen.insert(format!("blob:{stray}"), first - 1800);
    set_used(&store, &seen);
    prune(&store, &["--grace=1h"]);
    assert_eq!(used(&store)[&format!("blob:{stray}")], first - 1800);
    prune(&store, &["--grace=29m"]);
    assert!(!has(&store, &stray));
}

#[test]
fn with_all_the_grace_of_an_image_counts_from_its_last_use() {
    let (used_one, idle) = (image("used:1", "u"), image("idle:1", "i"));
    let store = store_of(&[&used_one, &idle]);
    prune(&store, &[]);
    let mut seen = used(&store);
    seen.insert("image:idle:1".into(), now() - 7200);
    set_used(&store, &seen);
    let report = prune(&store, &["--all", "--grace=1h"]);
    // Its content, which only it led to, went with it.
    assert_eq!(tags(&store), ["used:1"]);
    assert_gone(&store, &idle);
    assert_whole(&store, &used_one);
    assert_eq!(ids(&report["spared"], "image"), ["used:1"]);
}

// G-5: times before 1970 stopped the sweep, times to come kept for ever, a long grace overflowed.
#[test]
fn g_5_no_time_stops_the_sweep_or_keeps_for_ever() {
    let store = store_of(&[&image("a:1", "a")]);
    let (early, late) = (put_blob(&store, b"early"), put_blob(&store, b"late"));
    let before = UNIX_EPOCH - Duration::from_secs(300_000_000);
    File::open(store.blob(&early))
        .unwrap()
        .set_times(FileTimes::new().set_modified(before))
        .unwrap();
    let ahead = SystemTime::now() + Duration::from_secs(1_000_000_000);
    File::open(store.blob(&late))
        .unwrap()
        .set_times(FileTimes::new().set_modified(ahead))
        .unwrap();
    let future: BTreeMap<_, _> = [&early, &late]
        .map(|digest| (format!("blob:{digest}"), u64::MAX))
        .into_iter()
        .collect();
    set_used(&store, &future);
    prune(&store, &["--grace=500000000000years"]);
    assert!(has(&store, &early) && has(&store, &late));
    // The time to come was taken for now.
    assert!(used(&store).values().all(|seen| *seen <= now()));
    call(&store, &["--yes", "--grace=99999999999999999999h"])
        .run()
        .misused("grace");
    prune(&store, &["--filter=until=1s"]);
    assert!(!has(&store, &early));
    prune(&store, &[]);
    assert!(!has(&store, &late));
}

// G-7: two at a time.
#[test]
fn g_7_prunes_at_the_same_time_do_the_work_once() {
    let images: Vec<Built> = (0..30)
        .map(|n| image(&format!("i{n}:1"), &n.to_string()))
        .collect();
    let store = store_of(&images.iter().collect::<Vec<_>>());
    let runs: Vec<_> = (0..4)
        .map(|_| call(&store, &["--all", "--yes", "--format=json"]).spawn())
        .collect();
    let reports: Vec<Value> = runs
        .into_iter()
        .map(|run| Outcome::from(run.wait()).ok().json())
        .collect();
    let deleted: usize = reports
        .iter()
        .map(|report| ids(&report["deleted"], "blob").len())
        .sum();
    let distinct: std::collections::BTreeSet<_> =
        images.iter().flat_map(|image| image.blobs.keys()).collect();
    assert_eq!(deleted, distinct.len());
    assert_eq!(store.blobs(), Vec::<String>::new());
    store.assert_nothing_left();
}

#[test]
fn a_bundle_that_is_gone_is_forgotten_after_the_grace_and_only_where_its_place_is_still_there() {
    let app = image("app:1", "a");
    let setup = || {
        let store = store_of(&[&app]);
        store.ok(["untag", "app:1"]);
        fs::create_dir(store.beside("bundles")).unwrap();
        let bundle = store.beside("bundles/web");
        fs::create_dir(&bundle).unwrap();
        put_bundle(&store, "b", &bundle, &app, false);
        (store, bundle)
    };
    // There: a root.
    let (store, bundle) = setup();
    prune(&store, &[]);
    assert_whole(&store, &app);
    // Gone, its place is there: the grace, then forgotten.
    fs::remove_dir(&bundle).unwrap();
    prune(&store, &["--grace=1h"]);
    assert_whole(&store, &app);
    let report = prune(&store, &[]);
    assert_eq!(ids(&report["deleted"], "bundle"), ["b"]);
    assert_gone(&store, &app);
    assert!(!bundle_record(&store, "b").exists());

    // Gone with its place.
    let (store, _) = setup();
    fs::remove_dir_all(store.beside("bundles")).unwrap();
    refused(&store, &[]).fails_with("the directory that held it");
    assert_whole(&store, &app);

    // Its place is on another device.
    let (store, bundle) = setup();
    fs::remove_dir(&bundle).unwrap();
    let mut record: Value =
        serde_json::from_slice(&fs::read(bundle_record(&store, "b")).unwrap()).unwrap();
    record["parentDevice"] = json!(1);
    fs::write(bundle_record(&store, "b"), record.to_string()).unwrap();
    refused(&store, &[]).fails_with("another device");
    assert_whole(&store, &app);
    // Even where the operator insists, what the record names stays.
    call(&store, &["--yes", "--force-corrupt"])
        .ok()
        .warns("another device");
    assert_whole(&store, &app);

    // A container names it.
    let (store, bundle) = setup();
    fs::remove_dir(&bundle).unwrap();
    let runtime = put_container(&store, "web", &bundle, &json!({}));
    call(&store, &["--yes", "--runtime-root"])
        .arg(&runtime)
        .run()
        .fails_with("container web names it");
    assert_whole(&store, &app);
}

#[test]
fn filters_by_label_and_time_have_to_match_together() {
    let labelled = |tag: &str, label: Option<&str>, created: &str| {
        let (label, created) = (label.map(str::to_owned), created.to_owned());
        let name = tag.to_owned();
        ImageBuilder::new()
            .layer(move |l| {
                l.file("file", name, 0o644);
            })
            .config(move |config| {
                config["created"] = json!(created);
                if let Some(label) = &label {
                    config["config"]["Labels"] = json!({ "tier": label });
                }
            })
            .tag(tag)
            .build()
    };
    let old = "2020-01-01T00:00:00Z";
    let images = [
        labelled("dev:1", Some("dev"), old),
        labelled("prod:1", Some("prod"), old),
        labelled("none:1", None, old),
        labelled("new:1", Some("dev"), "2026-06-01T02:00:00+02:00"),
    ];
    for (filters, left) in [
        (&["label=tier=dev"][..], &["none:1", "prod:1"][..]),
        (&["label=tier"], &["none:1"]),
        (&["label!=tier=prod"], &["prod:1"]),
        (&["label!=tier"], &["dev:1", "new:1", "prod:1"]),
        (&["until=2026-06-01"], &[]),
        (&["until=2026-05-31"], &["new:1"]),
        (
            &["label=tier=dev", "until=2021-01-01"],
            &["new:1", "none:1", "prod:1"],
        ),
        (
            &["label=tier=dev", "label=tier=prod"],
            &["dev:1", "new:1", "none:1", "prod:1"],
        ),
    ] {
        let store = store_of(&images.iter().collect::<Vec<_>>());
        let args: Vec<String> = filters
            .iter()
            .map(|filter| format!("--filter={filter}"))
            .collect();
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.push("--all");
        prune(&store, &args);
        assert_eq!(tags(&store), left, "{filters:?}");
        for image in &images {
            if left.contains(&image.tag.as_deref().unwrap()) {
                assert_whole(&store, image);
            } else {
                assert!(!has(&store, &image.digest), "{filters:?} {:?}", image.tag);
            }
        }
    }
    let store = store_of(&[&images[0]]);
    put_volume(&store, "a", false, json!({ "tier": "dev" }));
    put_volume(&store, "b", false, json!({}));
    prune(&store, &["--volumes", "--filter=label!=tier"]);
    assert_eq!(store.names("volumes"), ["a"]);
    call(&store, &["--yes", "--filter=dangling=true"])
        .run()
        .misused("until=TIME");
}

#[test]
fn keep_storage_removes_the_longest_unused_first_and_stops() {
    let big = |tag: &str| {
        let content: Vec<u8> = (0..200_000_u32)
            .flat_map(|n| {
                (n.wrapping_mul(2_654_435_761) ^ u32::from(tag.as_bytes()[0])).to_le_bytes()
            })
            .collect();
        ImageBuilder::new()
            .layer(move |l| {
                l.file("file", content, 0o644);
            })
            .plain()
            .tag(tag)
            .build()
    };
    let images = [big("a:1"), big("b:1"), big("c:1")];
    let store = store_of(&images.iter().collect::<Vec<_>>());
    let seen = [("image:a:1", 300), ("image:b:1", 900), ("image:c:1", 600)];
    set_used(
        &store,
        &seen
            .map(|(key, ago)| (key.to_owned(), now() - ago))
            .into_iter()
            .collect(),
    );
    let report = prune(&store, &["--all", "--keep-storage=2MB"]);
    assert_eq!(ids(&report["deleted"], "image"), ["b:1"]);
    let report = prune(&store, &["--all", "--keep-storage=1MB"]);
    assert_eq!(ids(&report["deleted"], "image"), ["c:1"]);
    assert_eq!(tags(&store), ["a:1"]);
    assert_whole(&store, &images[0]);
    assert_eq!(ids(&report["spared"], "image"), ["a:1"]);
    let report = prune(&store, &["--all", "--keep-storage=10GB"]);
    assert_eq!(report["deleted"], json!([]));
    prune(&store, &["--all", "--keep-storage=0"]);
    assert_eq!(tags(&store), Vec::<String>::new());
}

// S-13: a store whose directories are links leads elsewhere.
#[test]
fn s_13_a_prune_goes_through_no_link_in_the_store() {
    for name in [
        "blobs",
        "blobs/sha256",
        "layers",
        "volumes",
        "staging",
        "trash",
        "leases",
        "records",
    ] {
        let (kept, gone) = (image("kept:1", "k"), image("gone:1", "g"));
        let store = store_of(&[&kept, &gone]);
        store.ok(["untag", "gone:1"]);
        let elsewhere = store.beside("elsewhere");
        fs::rename(store.path(name), &elsewhere).unwrap();
        symlink(&elsewhere, store.path(name)).unwrap();
        let victim = elsewhere.join(hex(&sha256(b"victim")));
        fs::create_dir_all(victim.join("inner")).unwrap();
        let said = refused(&store, &["--all", "--volumes"]);
        assert!(said.code == 1, "{name}: {said}");
        assert!(victim.join("inner").exists(), "{name}");
    }
    // The names of layers and volumes may be links too: the link is not followed.
    let store = store_of(&[&image("a:1", "a")]);
    let victim = store.beside("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("x"), "x").unwrap();
    symlink(&victim, store.path("layers").join(hex(&sha256(b"l")))).unwrap();
    symlink(&victim, store.path("volumes/v")).unwrap();
    symlink(victim.join("x"), store.blob(&sha256(b"b"))).unwrap();
    symlink(&victim, store.path("trash/t")).unwrap();
    prune(&store, &["--all", "--volumes"]);
    assert_eq!(fs::read_to_string(victim.join("x")).unwrap(), "x");
}

// S-14: names come from images.
#[test]
fn s_14_hostile_names_do_not_steer_the_terminal() {
    let evil = image("evil\u{1b}[2J\u{202e}:1", "e");
    let store = store_of(&[&image("a:1", "a"), &evil]);
    for args in [&["--all", "--dry-run"][..], &["--all", "--yes"]] {
        let said = call(&store, args).run();
        assert!(
            !said.stdout.contains('\u{1b}') && !said.stdout.contains('\u{202e}'),
            "{said}"
        );
        assert!(!said.stderr.contains('\u{1b}'), "{said}");
        assert_eq!(said.code, 0, "{said}");
    }
}

#[test]
fn what_comes_into_use_between_plan_and_sweep_is_spared() {
    // The plan is made while nobody holds the lock; the sweep waits for it, and marks again.
    let (one, two) = (image("one:1", "1"), image("two:1", "2"));
    let store = store_of(&[&one, &two]);
    let path = store.path("lock");
    let held = Flock::lock(File::create(&path).unwrap(), FlockArg::LockShared)
        .map_err(|(_, e)| e)
        .unwrap();
    let running = call(&store, &["--all", "--yes", "--format=json"]).spawn();
    // Long enough to plan; on a machine so slow that it is not, the plan itself spares it.
    std::thread::sleep(patience(Duration::from_millis(700)));
    let bundle = store.beside("bundle");
    fs::create_dir(&bundle).unwrap();
    put_bundle(&store, "b", &bundle, &one, false);
    drop(held);
    let report = Outcome::from(running.wait()).ok().json();
    assert_eq!(ids(&report["deleted"], "image"), ["two:1"]);
    assert_eq!(ids(&report["plan"], "image"), ["one:1", "two:1"]);
    assert_eq!(ids(&report["spared"], "image"), ["one:1"]);
    assert_eq!(ids(&report["spared"], "blob").len(), 3);
    assert!(
        report["spared"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("come into use")
    );
    assert_whole(&store, &one);
    assert_eq!(tags(&store), ["one:1"]);
}
