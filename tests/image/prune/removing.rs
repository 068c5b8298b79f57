//! What went, how it went, and what is left when it could not.

use nix::mount::MsFlags;

use super::*;

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
fn without_a_terminal_nobody_is_asked() {
    let gone = image("gone:1", "x");
    let store = store_of(&[&gone]);
    store.ok(["untag", "gone:1"]);
    let said = store.ok(["prune"]);
    assert!(said.stdout.contains("3 deleted"), "{said}");
    assert_gone(&store, &gone);
}

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

/// Fill the file system of the store to its last byte.
fn fill_up(store: &Store) {
    let mut file = File::create(store.path("ballast")).unwrap();
    let mut size = 1 << 16;
    while size > 0 {
        if file.write_all(&vec![1; size]).is_err() {
            size /= 2;
        }
    }
}

// What is to make room must not need any (moby#30623 and its like: a full disk is when people prune).
#[test]
fn on_a_disk_without_a_free_byte_prune_makes_room() {
    requires!(root);
    let (kept, gone, unused) = (
        image("kept:1", "k"),
        image("gone:1", "g"),
        image("unused:1", "u"),
    );
    for (args, left) in [(&["--volumes"][..], 2), (&["--all"][..], 0)] {
        let store = Store::new();
        fs::create_dir(&store.root).unwrap();
        let (none, options) = (None::<&str>, Some("size=1m,mode=0700"));
        nix::mount::mount(none, &store.root, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        fill(&store, &[&kept, &gone, &unused]);
        let orphan = args == ["--volumes"];
        if orphan {
            // No layer is unpacked and no name has to go: orphan blobs and a volume are all there is.
            store.ok(["untag", "gone:1"]);
            put_volume(&store, "v", false, json!({}));
        } else {
            // Every blob has a name: room is made by a layer of an image that goes.
            unpack_layers(&store, &unused);
        }
        fill_up(&store);
        store
            .run(["tag", "kept:1", "more:1"])
            .fails_with("no space left on device");
        let report = prune(&store, args);
        assert_eq!(report["failed"], json!([]));
        let deleted = report["deleted"].as_array().unwrap();
        assert_eq!(
            deleted.len(),
            report["plan"].as_array().unwrap().len(),
            "{report:#}"
        );
        assert_eq!(report["spared"], json!([]));
        assert_eq!(tags(&store).len(), left, "{:?}", tags(&store));
        assert_gone(&store, &gone);
        if orphan {
            assert_whole(&store, &kept);
            assert_eq!(store.names("volumes"), [""; 0]);
        } else {
            assert_eq!(store.names("layers"), [""; 0]);
        }
        assert!(used(&store).len() >= left);
        for dir in ["staging", "trash", "leases"] {
            assert_eq!(store.names(dir), [""; 0], "{dir}");
        }
    }
}

#[test]
fn b_11_a_volume_that_cannot_be_moved_away_keeps_its_record() {
    requires!(root);
    let store = store_of(&[&image("a:1", "a")]);
    let dir = put_volume(&store, "v", false, json!({"of": "somebody"}));
    // A mount on it: it can be neither renamed nor, in another file system, seen in the mount table.
    let none = None::<&str>;
    nix::mount::mount(none, &dir, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let before = store.json("records/volumes/v.json");
    let outcome = refused(&store, &["--volumes"]);
    assert_eq!(outcome.code, 1, "{outcome}");
    outcome.warns("volume v: remove");
    assert_eq!(store.json("records/volumes/v.json"), before);
    store
        .run(["volume", "rm", "v"])
        .fails_with("used by a mount");
    store
        .run(["volume", "rm", "--force", "v"])
        .fails_with("volumes/v");
    assert_eq!(store.json("records/volumes/v.json"), before);
    nix::mount::umount(&dir).unwrap();
    assert_eq!(
        fs::read_to_string(dir.join("data")).unwrap(),
        "worth keeping"
    );
    store.ok(["volume", "rm", "v"]);
    assert_eq!(store.names("records/volumes"), [""; 0]);
}
