//! The store itself: what makes one, what it refuses, its names, and what dead commands leave in it.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use serde_json::{Value, json};

use crate::support::{Built, Call, ImageBuilder, Store, assert_same_tree, sha256, tree};

/// An image of one small layer, called `tag`.
fn image(tag: &str, content: &str) -> Built {
    let content = content.to_owned();
    ImageBuilder::new()
        .layer(move |l| {
            l.file("file", content, 0o644);
        })
        .tag(tag)
        .build()
}

/// A store that began as a layout written by somebody else.
fn adopted(images: &[&Built]) -> Store {
    let store = Store::new();
    for image in images {
        image.write_layout(&store.root);
    }
    // Any command that changes something makes a store of it.
    store.ok(["tag", images[0].tag.as_deref().unwrap(), "adopted:1"]);
    store
}

#[test]
fn s_5_nobody_but_the_owner_can_look_into_a_store() {
    let store = Store::new();
    fs::create_dir(&store.root).unwrap();
    fs::set_permissions(&store.root, fs::Permissions::from_mode(0o755)).unwrap();
    image("a:1", "x").write_layout(store.beside("layout"));
    store.run(["tag", "none", "other"]).fails_with("none");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&store.root), 0o700);
    for dir in ["layers", "volumes", "staging", "records", "trash"] {
        assert_eq!(mode(&store.path(dir)), 0o700, "{dir}");
    }
}

#[test]
fn a_directory_that_holds_something_else_does_not_become_a_store() {
    let store = Store::new();
    fs::create_dir(&store.root).unwrap();
    fs::write(store.path("letter"), "dear").unwrap();
    let mode = || fs::metadata(&store.root).unwrap().mode();
    let before = mode();
    store.run(["tag", "a", "b"]).fails_with("holds letter");
    assert_eq!(store.names(""), ["letter"]);
    assert_eq!(mode(), before);
}

#[test]
fn a_layout_becomes_a_store_and_what_others_wrote_in_it_stays() {
    let (one, two) = (image("one:1", "1"), image("two:1", "2"));
    let store = Store::new();
    one.write_layout(&store.root);
    two.write_layout(&store.root);
    let mut index = store.json("index.json");
    index["x"] = json!([1]);
    index["manifests"][1]["odd"] = json!({ "kept": null });
    fs::write(store.path("index.json"), index.to_string()).unwrap();
    fs::write(store.path("README"), "extra files are tolerated").unwrap();

    store.ok(["tag", "one:1", "three"]);
    let after = store.json("index.json");
    assert_eq!(after["x"], json!([1]));
    assert_eq!(after["manifests"][1], index["manifests"][1]);
    assert_eq!(after["manifests"][2]["digest"], json!(one.digest));
    assert!(store.path("README").exists());
    store.assert_nothing_left();
}

#[test]
fn a_store_of_another_release_is_one_error_and_stays_as_it_is() {
    let store = adopted(&[&image("a:1", "x")]);
    fs::write(
        store.path("records/store.json"),
        r#"{"schema":99,"new":true}"#,
    )
    .unwrap();
    let before = fs::read(store.path("index.json")).unwrap();
    for args in [&["list"][..], &["tag", "a:1", "b:1"]] {
        store.run(args).fails_with("schema 99");
    }
    assert_eq!(fs::read(store.path("index.json")).unwrap(), before);
}

#[test]
fn s_13_a_store_whose_directories_are_links_is_refused() {
    for name in ["blobs", "layers", "staging", "trash", "records", "leases"] {
        let store = adopted(&[&image("a:1", "x")]);
        let elsewhere = store.beside("elsewhere");
        fs::rename(store.path(name), &elsewhere).unwrap();
        symlink(&elsewhere, store.path(name)).unwrap();
        fs::create_dir_all(elsewhere.join("victim/inner")).unwrap();
        let said = store.run(["tag", "a:1", "b:1"]);
        assert_eq!(said.code, 1, "{name}: {said}");
        assert!(elsewhere.join("victim/inner").exists(), "{name}");
    }
}

#[test]
fn the_root_itself_may_be_a_link_to_another_disk() {
    let store = Store::new();
    let disk = store.beside("disk");
    image("a:1", "x").write_layout(&disk);
    symlink(&disk, &store.root).unwrap();
    store.ok(["tag", "a:1", "b:1"]);
    assert!(store.ok(["list"]).stdout.contains("b:1"));
    assert!(disk.join("records/store.json").exists());
}

#[test]
fn what_dead_commands_left_is_removed_and_what_living_ones_use_is_kept() {
    let store = adopted(&[&image("a:1", "x")]);
    for name in ["staging/dead/tree/deep", "staging/alive/tree", "trash/x/y"] {
        fs::create_dir_all(store.path(name)).unwrap();
    }
    let held = File::open(store.path("staging/alive")).unwrap();
    let held = Flock::lock(held, FlockArg::LockExclusive).unwrap();
    store.ok(["tag", "a:1", "b:1"]);
    assert_eq!(store.names("staging"), ["alive"]);
    assert_eq!(store.names("trash"), Vec::<String>::new());
    drop(held);
    store.ok(["tag", "a:1", "c:1"]);
    store.assert_nothing_left();
}

#[test]
fn a_tree_deeper_than_there_are_descriptors_is_removed() {
    let store = adopted(&[&image("a:1", "x")]);
    // Deeper than any path can name, so it is made step by step.
    let mut dir: OwnedFd = File::open(store.path("trash")).unwrap().into();
    for _ in 0..3000 {
        mkdirat(&dir, "d", Mode::S_IRWXU).unwrap();
        dir = openat(&dir, "d", OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    }
    store
        .call(["tag", "a:1", "b:1"])
        .under(["prlimit", "--nofile=200"])
        .ok();
    store.assert_nothing_left();
}

#[test]
fn s_13_removal_stops_at_a_mount_and_goes_on_beside_it() {
    requires!(root);
    let store = adopted(&[&image("a:1", "x")]);
    let precious = store.beside("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("data"), "kept").unwrap();
    for name in ["trash/tree/mounted", "trash/tree/plain"] {
        fs::create_dir_all(store.path(name)).unwrap();
    }
    let bound = nix::mount::mount(
        Some(&precious),
        &store.path("trash/tree/mounted"),
        None::<&str>,
        nix::mount::MsFlags::MS_BIND,
        None::<&str>,
    );
    bound.unwrap();
    store.ok(["tag", "a:1", "b:1"]);
    assert_eq!(fs::read(precious.join("data")).unwrap(), b"kept");
    let tree = store.names("trash");
    assert_eq!(store.names(&format!("trash/{}", tree[0])), ["mounted"]);
    nix::mount::umount(&store.path(format!("trash/{}/mounted", tree[0]))).unwrap();
    store.ok(["tag", "a:1", "c:1"]);
    store.assert_nothing_left();
}

#[test]
fn an_image_is_found_by_name_without_its_latest_by_digest_and_by_a_beginning() {
    let one = image("registry.example/one:latest", "1");
    let store = adopted(&[&one]);
    let short = &one.digest["sha256:".len()..][..8];
    let config = &one.config_digest["sha256:".len()..][..8];
    let by_digest = format!("anything@{}", one.digest);
    for text in [
        "registry.example/one:latest",
        "registry.example/one",
        &one.digest,
        &by_digest,
        short,
        config,
    ] {
        let shown = store.ok(["inspect", "--format", "json", text]).json();
        assert_eq!(shown["manifest"]["digest"], json!(one.digest), "{text}");
        assert_eq!(shown["layers"][0]["diffId"], json!(one.diff_ids[0]));
        assert_eq!(shown["layers"][0]["chainId"], json!(one.chain_ids[0]));
    }
    for text in ["one", "ffffffffffff", "sha256:0", &short[..4]] {
        store
            .run(["inspect", text])
            .fails_with(&format!("image {text}: not in the store"));
    }
    assert_eq!(
        store.ok(["inspect", "--raw", short]).stdout.as_bytes(),
        one.blobs[&one.digest]
    );
    assert_eq!(
        store.ok(["inspect", "--config", short]).stdout.as_bytes(),
        one.blobs[&one.config_digest]
    );
}

#[test]
fn names_are_given_moved_and_taken_away_all_or_none() {
    let (one, two) = (image("one:1", "1"), image("two:1", "2"));
    let store = adopted(&[&one, &two]);
    store.ok(["tag", "one:1", "a", "b:2"]);
    store.ok(["tag", "two:1", "a"]);
    let named = |name: &str| {
        let list = store.ok(["list", "--format", "json"]).json();
        let rows = list.as_array().unwrap().clone();
        rows.into_iter()
            .find(|row| row["name"] == json!(name))
            .map(|row| row["digest"].clone())
    };
    assert_eq!(named("a:latest"), Some(json!(two.digest)));
    assert_eq!(named("b:2"), Some(json!(one.digest)));

    store.run(["untag", "b:2", "no-such"]).fails_with("no-such");
    assert_eq!(named("b:2"), Some(json!(one.digest)));
    store
        .run(["tag", "one:1", "c", "UPPER"])
        .fails_with("UPPER");
    assert_eq!(named("c:latest"), None);
    store.ok(["untag", "a", "b:2"]);
    assert_eq!(named("a:latest"), None);
    // The content stays.
    assert!(store.blob(&one.digest).exists());
    store
        .run(["tag", "one:1", &format!("x@{}", two.digest)])
        .fails_with("digest");
}

#[test]
fn names_that_are_set_at_once_are_all_there() {
    let store = adopted(&[&image("a:1", "x")]);
    let running: Vec<_> = (0..12)
        .map(|n| store.call(["tag", "a:1", &format!("many:{n}")]).spawn())
        .collect();
    for one in running {
        one.wait().ok();
    }
    let list = store.ok(["list", "many", "--format", "json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 12, "{list}");
    store.assert_nothing_left();
}

#[test]
fn a_change_of_names_that_does_not_succeed_leaves_them_as_they_were() {
    requires!(command "strace");
    let store = adopted(&[&image("a:1", "x")]);
    let before = store.json("index.json");
    for fault in [
        "renameat:error=EIO:when=1",
        "syncfs:error=EIO:when=1",
        "fsync:error=ENOSPC:when=1",
        "renameat:signal=KILL:when=1",
    ] {
        let said = store.call(["tag", "a:1", "b:1"]).injecting(fault).run();
        assert_ne!(said.code, 0, "{fault}: {said}");
        assert_eq!(store.json("index.json"), before, "{fault}");
    }
    store.ok(["tag", "a:1", "b:1"]);
    store.assert_nothing_left();
}

#[test]
fn s_14_a_name_does_not_steer_the_terminal() {
    let store = adopted(&[&image("a:1", "x")]);
    let mut index = store.json("index.json");
    index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] =
        json!("evil\u{1b}[2J\u{202e}name");
    fs::write(store.path("index.json"), index.to_string()).unwrap();
    let text = store.ok(["list"]).stdout;
    assert!(text.contains("evil\\u{1b}[2J\\u{202e}name"), "{text:?}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let said = store.run(["inspect", "no\u{1b}[31m"]);
    said.fails_with("no\\u{1b}[31m");
}

#[test]
fn what_is_listed_shows_platforms_sizes_and_damage() {
    let one = image("one:1", "1");
    let arm = ImageBuilder::new()
        .platform("linux", "arm64", Some("v8"))
        .layer(|l| {
            l.file("arm", "arm", 0o644);
        })
        .build();
    let both = Built::index("both:1", &[image("ignored", "2"), arm]);
    let store = adopted(&[&one, &both]);
    let list = store.ok(["list", "--format", "json"]).json();
    let size: usize = one.blobs.values().map(Vec::len).sum();
    assert_eq!(list[0]["image"]["size"], json!(size), "{list}");
    assert_eq!(list[0]["image"]["layers"], json!(1));
    let row: &Value = list
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == json!("both:1"))
        .unwrap();
    assert_eq!(row["platforms"].as_array().unwrap().len(), 2, "{row}");

    fs::write(store.blob(&one.digest), "{").unwrap();
    let said = store.ok(["list"]);
    assert!(said.stdout.contains("one:1"), "{said}");
    said.warns("one:1");
    store.run(["inspect", "one:1"]).fails_with(&one.digest);
}

#[test]
fn a_document_that_was_changed_on_the_disk_is_not_used() {
    let one = image("one:1", "1");
    let store = adopted(&[&one]);
    let mut bytes = one.blobs[&one.config_digest].clone();
    let at = bytes.iter().position(|byte| *byte == b':').unwrap();
    bytes.insert(at, b' ');
    fs::write(store.blob(&one.config_digest), &bytes).unwrap();
    store
        .run(["inspect", "one:1"])
        .fails_with(&one.config_digest);
    bytes.remove(at);
    let same_size = String::from_utf8(bytes).unwrap().replace("linux", "minix");
    assert_ne!(sha256(same_size.as_bytes()), one.config_digest);
    fs::write(store.blob(&one.config_digest), same_size).unwrap();
    store.run(["inspect", "one:1"]).fails_with("digest");
}

#[test]
fn skopeo_reads_the_store_as_the_layout_it_is() {
    requires!(command "skopeo");
    let one = image("one:1", "1");
    let store = adopted(&[&one]);
    let shown = Command::new("skopeo")
        .arg("inspect")
        .arg(format!("oci:{}:adopted:1", store.root.display()))
        .output()
        .unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&shown.stderr)));
    assert_eq!(shown["Digest"], json!(one.digest));
}

#[test]
fn another_users_store_can_be_looked_at_and_is_not_changed_by_root() {
    requires!(root);
    let store = Store::unprivileged();
    let image = image("a:1", "x");
    store.import(&image);
    let before = tree(&store.root);
    let root = |args: &[&str]| {
        let mut all = vec!["--root", store.root.to_str().unwrap()];
        all.extend(args);
        Call::new(all)
    };
    let archive = store.beside("a.tar");
    image.write_oci_archive(&archive);
    let (archive, dir) = (archive.to_str().unwrap(), store.beside("dir"));
    for args in [
        &["import", archive][..],
        &["tag", "a:1", "b:1"],
        &["volume", "create", "v"],
        &["unpack", "a:1", dir.to_str().unwrap()],
        &["bundle", "a:1", dir.to_str().unwrap()],
        &["prune", "--all", "--volumes", "--yes"],
        &["prune", "--dry-run"],
        &["fsck"],
        &["export", "a:1", dir.to_str().unwrap()],
    ] {
        root(args).run().fails_with("it belongs to the user 65534");
    }
    let listed = root(&["list", "--format", "json"]).ok().json();
    assert_eq!(listed[0]["name"], "a:1");
    assert_same_tree(&before, &tree(&store.root));
    assert!(!dir.exists());
}

#[test]
fn an_entry_that_cannot_be_read_is_told_and_the_other_images_are_as_usable_as_before() {
    let store = adopted(&[&image("a:1", "x")]);
    let mut index = store.json("index.json");
    let foreign = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 3,
        "digest": format!("blake3:{}", "a".repeat(64)),
        "annotations": {"org.opencontainers.image.ref.name": "other:1"},
    });
    index["manifests"]
        .as_array_mut()
        .unwrap()
        .insert(0, foreign.clone());
    fs::write(store.path("index.json"), index.to_string()).unwrap();

    let listed = store.ok(["list", "--format", "json"]);
    listed.warns("blake3");
    assert_eq!(listed.json().as_array().unwrap().len(), 2);
    store.ok(["inspect", "a:1"]);
    store.ok(["tag", "a:1", "c:1"]);
    store.call(["unpack", "a:1"]).arg(store.beside("t")).ok();
    store.call(["export", "a:1"]).arg(store.beside("e")).ok();
    store.ok(["rm", "c:1"]);
    assert_eq!(store.json("index.json")["manifests"][0], foreign);
    store.run(["inspect", "other:1"]).fails_with("blake3");
    // What it needs is not known.
    store.run(["prune", "--yes"]).fails_with("blake3");
    let checked = store.run(["fsck"]);
    assert_eq!(checked.code, 1, "{checked}");
    assert!(
        checked.stdout.contains("checked 2 names") && checked.stdout.contains(": 1 faults"),
        "{checked}"
    );
    store.ok(["untag", "other:1"]);
    store.ok(["prune", "--yes"]);
    store.ok(["fsck"]);
}

// A full disk: what a command could not write to the end goes again.
#[test]
fn a_failed_write_leaves_neither_lease_nor_volume() {
    requires!(command "strace");
    let store = adopted(&[&image("a:1", "x")]);
    // Not unpack: an ordinary user's first write is the map of a user namespace.
    store
        .call(["export", "a:1"])
        .arg(store.beside("t"))
        .injecting("write:error=ENOSPC:when=1")
        .run()
        .fails_with("make lease");
    store.assert_nothing_left();
    store
        .call(["volume", "create", "v"])
        .injecting("fsync:error=ENOSPC:when=1")
        .run()
        .fails_with("no space left on device");
    assert_eq!(store.names("volumes"), [""; 0]);
    store.ok(["fsck"]);
}

#[test]
fn a_failed_write_leaves_no_layer() {
    // newuidmap(1), which maps an ordinary user's ids, has no rights under strace.
    requires!(root, command "strace");
    let store = adopted(&[&image("a:1", "x")]);
    let mut failures = 0;
    loop {
        let fault = format!("fsync:error=ENOSPC:when={}", failures + 1);
        let outcome = store
            .call(["unpack", "--layers", "a:1"])
            .injecting(&fault)
            .run();
        if outcome.code == 0 {
            break;
        }
        failures += 1;
        outcome.fails_with("no space left on device");
        assert_eq!(store.names("layers"), [""; 0], "{fault}");
        assert_eq!(store.names("records/layers"), [""; 0], "{fault}");
        store.assert_nothing_left();
    }
    // The directory of the layers, the record, and the record's directory.
    assert_eq!(failures, 3);
    store.ok(["fsck"]);
}

#[test]
fn layers_that_a_full_disk_has_no_room_for_leave_the_store_as_it_was() {
    requires!(root);
    let store = Store::new();
    fs::create_dir(&store.root).unwrap();
    nix::mount::mount(
        Some("none"),
        &store.root,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=24m"),
    )
    .unwrap();
    let built = ImageBuilder::new()
        .layer(|l| {
            l.file("small", "x".repeat(100_000), 0o644);
        })
        .layer(|l| {
            l.file("large", "y".repeat(6 << 20), 0o644);
        })
        .layer(|l| {
            l.file("too-large", "z".repeat(30 << 20), 0o644);
        })
        .tag("a:1")
        .build();
    store.import(&built);
    let before = store.ok(["df", "--format", "json"]).json();
    store
        .run(["unpack", "--layers", "a:1"])
        .fails_with("no space left on device");
    assert_eq!(store.names("layers"), [""; 0]);
    assert_eq!(store.names("records/layers"), [""; 0]);
    assert_eq!(store.ok(["df", "--format", "json"]).json(), before);
    for dir in ["staging", "trash", "leases"] {
        assert_eq!(store.names(dir), [""; 0], "{dir}");
    }
}

#[test]
fn a_store_on_a_read_only_file_system_can_be_read() {
    requires!(root);
    let store = adopted(&[&image("a:1", "x")]);
    let bind = |flags| {
        nix::mount::mount(
            Some(&store.root),
            &store.root,
            None::<&str>,
            nix::mount::MsFlags::MS_BIND | flags,
            None::<&str>,
        )
        .expect("mount");
    };
    bind(nix::mount::MsFlags::empty());
    bind(nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY);
    for words in [
        &["list"][..],
        &["inspect", "a:1"],
        &["df"],
        &["fsck"],
        &["prune", "--dry-run"],
    ] {
        store.ok(words);
    }
    let (tree, archive) = (store.beside("tree"), store.beside("a.tar"));
    store.call(["unpack", "a:1"]).arg(&tree).ok();
    assert_eq!(fs::read(tree.join("file")).unwrap(), b"x");
    store.call(["export", "a:1"]).arg(&archive).ok();
    let other = Store::new();
    other.call(["import"]).arg(&archive).arg("a:1").ok();
    assert_eq!(
        other
            .ok(["list", "--format", "json"])
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
    for words in [
        &["tag", "a:1", "b:1"][..],
        &["prune", "--yes"],
        &["rm", "a:1"],
    ] {
        store.call(words).run().fails_with("read-only file system");
    }
    nix::mount::umount(&store.root).expect("unmount");
    store.assert_nothing_left();
}
