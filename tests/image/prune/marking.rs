//! What is kept because something needs it, and what stops the sweep.

use std::os::unix::fs::chown;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

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
    // Content of its own: mounted layers stay in the stores of the other tests too.
    let app = stacked("app:1", "mounted base", "mounted top");
    let base = image("gone:1", "gone");
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

// B-2: what was given to mount was a link, or a path that only the mounting process can follow.
#[test]
fn b_2_layers_of_an_overlay_that_was_mounted_through_a_link_stay() {
    requires!(root);
    let app = image("app:1", "mounted through a link");
    let store = store_of(&[&app]);
    unpack_layers(&store, &app);
    let tree = store.path("layers").join(hex(&app.chain_ids[0]));
    symlink(&tree, store.beside("lower")).unwrap();
    for name in ["upper", "work", "merged"] {
        fs::create_dir(store.beside(name)).unwrap();
    }
    store.ok(["untag", "app:1"]);
    let dir = store.beside("");
    let link = store.beside("lower");
    for (cwd, lower) in [
        (&dir, link.as_path()),
        (&dir, Path::new("lower")),
        (&tree, Path::new(".")),
    ] {
        let ready = store.beside("ready");
        let script = format!(
            "cd {} && mount -t overlay overlay -o lowerdir={},upperdir={up},workdir={work} {merged} && touch {ready} && exec sleep 60",
            cwd.display(),
            lower.display(),
            up = store.beside("upper").display(),
            work = store.beside("work").display(),
            merged = store.beside("merged").display(),
            ready = ready.display(),
        );
        let mut holder = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .spawn()
            .unwrap();
        let mounted = eventually(|| ready.exists());
        call(&store, &["--yes"]).ok();
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(mounted, "the overlay was not mounted");
        assert!(tree.exists(), "{}", lower.display());
        fs::remove_file(ready).unwrap();
    }
    prune(&store, &[]);
    assert!(!tree.exists());
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
            fs::remove_file(store.blob(&image.digest)).unwrap();
        }),
        ("configuration that is missing", |store, image| {
            fs::remove_file(store.blob(&image.config_digest)).unwrap();
        }),
        ("layer that is missing", |store, image| {
            fs::remove_file(store.blob(&image.layers[0])).unwrap();
        }),
        ("index.json", |store, _| {
            fs::write(store.path("index.json"), "{\"schemaVersion\":2,").unwrap();
        }),
        ("entry of index.json", |store, _| {
            add_entry(
                store,
                json!({"mediaType": "x", "digest": "md5:1", "size": 1}),
            );
        }),
        ("bundle record", |store, _| {
            fs::write(bundle_record(store, "b"), "{\"schema\":1}").unwrap();
        }),
        ("bundle record of another release", |store, _| {
            fs::write(bundle_record(store, "b"), "{\"schema\":7}").unwrap();
        }),
        ("used.json", |store, _| {
            fs::write(store.path("records/used.json"), "\u{0}").unwrap();
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
        // Another user's, so that not even the root of the caller's user namespace may look in.
        fs::set_permissions(store.path(dir), fs::Permissions::from_mode(0o700)).unwrap();
        chown(store.path(dir), Some(0), Some(0)).unwrap();
        let said = call(&store, &["--all", "--yes"])
            .env("XDG_RUNTIME_DIR", store.beside("run"))
            .run();
        chown(store.path(dir), Some(NOBODY), Some(NOBODY)).unwrap();
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

// B-2: it is not known then what is mounted there.
#[test]
fn b_4_a_mount_table_that_cannot_be_read_stops_the_sweep() {
    requires!(root, command "strace");
    let gone = image("gone:1", "x");
    let store = store_of(&[&gone]);
    store.ok(["untag", "gone:1"]);
    for error in ["EIO", "EMFILE", "ENOMEM"] {
        call(&store, &["--yes"])
            .injecting(&format!("readlink:error={error}"))
            .run()
            .fails_with("ns/mnt");
        assert_whole(&store, &gone);
    }
    prune(&store, &[]);
    assert_gone(&store, &gone);
}

// B-9: the user's own state directory was not known, and its containers passed for none.
#[test]
fn b_9_an_ordinary_user_without_a_runtime_directory_prunes_only_with_one_that_is_named() {
    requires!(root);
    let store = Store::unprivileged();
    store.ok(["volume", "create", "v"]);
    let state = put_container(
        &store,
        "stopped",
        &store.beside("b"),
        &json!({"mounts": [{"destination": "/v", "source": store.path("volumes/v")}]}),
    );
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    for path in [state.clone(), state.join("stopped")] {
        open(&path, 0o755).unwrap();
    }
    let unset = |args: &[&str]| call(&store, args).env("XDG_RUNTIME_DIR", "");
    for args in [&["--volumes", "--yes"][..], &["--dry-run"]] {
        unset(args).run().fails_with("XDG_RUNTIME_DIR is not set");
    }
    assert_eq!(store.names("volumes"), ["v"]);
    unset(&["--volumes", "--yes", "--runtime-root"])
        .arg(&state)
        .ok();
    assert_eq!(store.names("volumes"), ["v"]);
    fs::remove_dir_all(state.join("stopped")).unwrap();
    unset(&["--volumes", "--yes", "--runtime-root"])
        .arg(&state)
        .ok();
    assert_eq!(store.names("volumes"), [""; 0]);
}

#[test]
fn b_4_a_record_under_the_name_of_another_stops_the_sweep() {
    let app = image("app:1", "app");
    let store = store_of(&[&app]);
    put_volume(&store, "pinned", true, json!({}));
    let bundle = store.beside("bundle");
    fs::create_dir(&bundle).unwrap();
    put_bundle(&store, "b1", &bundle, &app, false);
    for (folder, name, copy) in [("volumes", "pinned", "copy"), ("bundles", "b1", "b2")] {
        let path = |name: &str| store.path(format!("records/{folder}/{name}.json"));
        let mut record: Value = serde_json::from_slice(&fs::read(path(name)).unwrap()).unwrap();
        record["pinned"] = json!(false);
        fs::write(path(copy), record.to_string()).unwrap();
        refused(&store, &["--volumes"]).fails_with(&format!("is the record of {name}"));
        fs::remove_file(path(copy)).unwrap();
    }
    assert_eq!(prune(&store, &["--volumes"])["deleted"], json!([]));
}

// The uppermost layer of a mount says which image it is of, whatever else is mounted.
#[test]
fn of_two_mounted_images_that_share_layers_both_stay() {
    requires!(root);
    let base = ImageBuilder::new()
        .layer(|l| {
            l.file("base", "shared by two mounts", 0o644);
        })
        .tag("base:1")
        .build();
    let app = stacked("app:1", "shared by two mounts", "on top");
    let store = store_of(&[&base, &app]);
    unpack_layers(&store, &base);
    unpack_layers(&store, &app);
    assert_eq!(base.chain_ids[0], app.chain_ids[0]);
    let layer = |chain: &str| store.path("layers").join(hex(chain)).display().to_string();
    let empty = store.beside("empty");
    fs::create_dir(&empty).unwrap();
    for (name, lower) in [
        (
            "one",
            format!("{}:{}", layer(&base.chain_ids[0]), empty.display()),
        ),
        (
            "two",
            format!("{}:{}", layer(&app.chain_ids[1]), layer(&app.chain_ids[0])),
        ),
    ] {
        let point = store.beside(name);
        fs::create_dir(&point).unwrap();
        let options = format!("lowerdir={lower}");
        let flags = MsFlags::MS_RDONLY;
        mount(
            Some("o"),
            &point,
            Some("overlay"),
            flags,
            Some(options.as_str()),
        )
        .unwrap();
    }
    prune(&store, &["--all"]);
    assert_eq!(tags(&store), ["app:1", "base:1"]);
    assert_whole(&store, &base);
    assert_whole(&store, &app);
}

// A namespace that a mount keeps has no process to be found by.
#[test]
fn layers_that_are_mounted_in_a_namespace_without_processes_stay() {
    requires!(root);
    let app = stacked("app:1", "base of a pinned namespace", "its top");
    let store = store_of(&[&app]);
    unpack_layers(&store, &app);
    let (pins, point) = (store.beside("pins"), store.beside("point"));
    fs::create_dir(&pins).unwrap();
    fs::create_dir(&point).unwrap();
    let none = None::<&str>;
    mount(Some(&pins), &pins, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &pins, none, MsFlags::MS_PRIVATE, none).unwrap();
    let pin = pins.join("namespace");
    fs::write(&pin, "").unwrap();
    let layer = |chain: &str| store.path("layers").join(hex(chain)).display().to_string();
    let options = format!(
        "ro,lowerdir={}:{}",
        layer(&app.chain_ids[1]),
        layer(&app.chain_ids[0])
    );
    // unshare(1) does not always succeed in keeping the namespace at once.
    let kept = || {
        let done = std::process::Command::new("unshare")
            .arg(format!("--mount={}", pin.display()))
            .args(["mount", "-t", "overlay", "overlay", "-o", &options])
            .arg(&point)
            .status();
        done.unwrap().success()
    };
    assert!(eventually(kept));
    let report = prune(&store, &["--all"]);
    assert_eq!(report["deleted"], json!([]));
    assert_whole(&store, &app);
    assert_eq!(store.names("layers").len(), 2);
    umount2(&pin, MntFlags::MNT_DETACH).unwrap();
    prune(&store, &["--all"]);
    assert_gone(&store, &app);
}
