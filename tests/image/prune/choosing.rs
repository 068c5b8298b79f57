//! What of the unreferenced goes: grace, filters, size; and the plan that is shown.

use super::*;

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

/// As if the last prune had been a day ago.
fn a_day_later(store: &Store) {
    let mut used = store.json("records/used.json");
    let earlier = |value: &Value| json!(value.as_u64().unwrap() - 86400);
    used["at"] = earlier(&used["at"]);
    for seen in used["seen"].as_object_mut().unwrap().values_mut() {
        *seen = earlier(seen);
    }
    fs::write(store.path("records/used.json"), used.to_string()).unwrap();
    let old = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(86400));
    for name in ["index.json", "leases", "records/bundles", "records/volumes"] {
        File::open(store.path(name))
            .unwrap()
            .set_times(old)
            .unwrap();
    }
}

// G-4: the age was that of the last prune that saw it.
#[test]
fn what_was_referenced_until_a_moment_ago_has_all_of_its_grace() {
    own_state_root();
    let (app, other) = (image("app:1", "a"), image("other:1", "o"));
    let store = store_of(&[&app, &other]);
    prune(&store, &[]);
    a_day_later(&store);
    store.ok(["untag", "app:1"]);
    prune(&store, &["--grace=1h"]);
    assert_whole(&store, &app);
    // From then on it is idle, and the grace does not begin again with what others do.
    a_day_later(&store);
    store.ok(["tag", "other:1", "more:1"]);
    prune(&store, &["--grace=1h"]);
    assert_gone(&store, &app);
    assert_whole(&store, &other);
}

#[test]
fn a_name_that_comes_back_is_not_as_old_as_the_one_that_went() {
    own_state_root();
    let app = image("app:1", "a");
    let store = store_of(&[&app]);
    store.ok(["volume", "create", "v"]);
    for _ in 0..2 {
        prune(&store, &["--grace=99days"]);
        a_day_later(&store);
    }
    let idle = used(&store);
    assert!(idle["image:app:1"] + 86400 < now() && idle["volume:v"] + 86400 < now());
    store.ok(["tag", "app:1", "app:1"]);
    store.ok(["volume", "rm", "v"]);
    store.ok(["volume", "create", "v"]);
    prune(&store, &["--all", "--volumes", "--grace=1h"]);
    assert_eq!(tags(&store), ["app:1"]);
    assert_eq!(store.names("volumes"), ["v"]);
}

#[test]
fn a_volume_of_a_bundle_that_was_just_removed_has_its_grace() {
    own_state_root();
    let app = ImageBuilder::busybox().tag("app:1").build();
    let store = store_of(&[&app]);
    store.ok(["volume", "create", "v"]);
    for _ in 0..2 {
        prune(&store, &["--grace=99days"]);
        a_day_later(&store);
    }
    let dir = store.beside("b");
    let dir = dir.to_str().unwrap();
    store.ok(["bundle", "--volume", "v:/data", "app:1", dir]);
    store.ok(["rm", dir]);
    prune(&store, &["--volumes", "--grace=1h"]);
    assert_eq!(store.names("volumes"), ["v"]);
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

/// Prune on a terminal, with this typed.
fn typed(store: &Store, args: &[&str], answer: &str) -> Outcome {
    let file = store.beside("answer");
    fs::write(&file, answer).unwrap();
    let call = call(store, args).on_a_terminal();
    call.stdin(File::open(file).unwrap()).run()
}

#[test]
fn on_a_terminal_the_plan_is_shown_and_only_yes_carries_it_out() {
    requires!(command "script");
    let gone = image("gone:1", "g");
    let store = store_of(&[&image("a:1", "a"), &gone]);
    store.ok(["untag", "gone:1"]);
    for answer in ["n\n", "\n", "yonder\n"] {
        let said = typed(&store, &[], answer);
        assert_eq!(said.code, 0, "{said}");
        for word in ["remove them? [y/N]", &gone.digest, "3 things to remove"] {
            assert!(said.stdout.contains(word), "{word}: {said}");
        }
        assert_whole(&store, &gone);
    }
    let said = typed(&store, &[], "y\n");
    assert!(said.stdout.contains("3 deleted"), "{said}");
    assert_gone(&store, &gone);
    // With nothing to remove there is nothing to ask.
    let said = typed(&store, &[], "");
    assert!(!said.stdout.contains("[y/N]"), "{said}");
}
