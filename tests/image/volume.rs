//! Named volumes: made, listed, kept from those who would remove what is in use.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::support::{ImageBuilder, Store, own_state_root, runtime_for};

#[test]
fn volumes_are_created_listed_and_removed() {
    let store = Store::new();
    assert_eq!(
        store.ok(["volume", "list", "--format", "json"]).json(),
        json!([])
    );
    store.ok([
        "volume", "create", "--pin", "--label", "tier=db", "-l", "x=", "b",
    ]);
    store.ok(["volume", "create", "a", "c"]);
    let listed = store.ok(["volume", "list", "--format", "json"]).json();
    let names: Vec<_> = listed
        .as_array()
        .expect("array")
        .iter()
        .map(|row| &row["name"])
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
    let b = &listed[1];
    assert_eq!(b["pinned"], true);
    assert_eq!(b["labels"], json!({"tier": "db", "x": ""}));
    assert_eq!(b["path"], store.path("volumes/b").to_str().expect("UTF-8"));
    assert_eq!(b["usedBy"], json!([]));
    let table = store.ok(["volume", "list"]).stdout;
    assert!(
        table.starts_with("NAME  PINNED  USED BY  CREATED"),
        "{table}"
    );

    fs::write(store.path("volumes/a/file"), "x").expect("write");
    store.ok(["volume", "rm", "a", "b"]);
    assert_eq!(store.names("volumes"), ["c"]);
    assert_eq!(store.names("records/volumes"), ["c.json"]);
    store
        .run(["volume", "rm", "a"])
        .fails_with("volume a: there is none");
    store.assert_nothing_left();
}

#[test]
fn filters_choose_by_label() {
    let store = Store::new();
    store.ok(["volume", "create", "--label", "tier=db", "a"]);
    store.ok(["volume", "create", "--label", "tier=web", "b"]);
    store.ok(["volume", "create", "c"]);
    let names = |filters: &[&str]| {
        let mut args = vec!["volume", "list", "--format", "json"];
        args.extend(filters);
        let listed = store.ok(args).json();
        let rows = listed.as_array().expect("array").iter();
        rows.map(|row| row["name"].as_str().expect("name").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&["--filter", "label=tier"]), ["a", "b"]);
    assert_eq!(names(&["--filter", "label=tier=db"]), ["a"]);
    assert_eq!(
        names(&["--filter", "label=tier", "--filter", "label=tier=web"]),
        ["b"]
    );
    assert_eq!(names(&["--filter", "label=none"]), [""; 0]);
    store
        .run(["volume", "list", "--filter", "name=a"])
        .misused("label=KEY");
}

#[test]
fn a_name_is_no_path_and_no_option_and_is_given_once() {
    let store = Store::new();
    for name in ["", ".", "..", "../x", "a/b", ".hidden", "a b", "a:b"] {
        store
            .run(["volume", "create", "--", name])
            .fails_with("a name begins with");
        store
            .run(["volume", "rm", "--", name])
            .fails_with("a name begins with");
    }
    store.ok(["volume", "create", "--label", "first=1", "v"]);
    store.run(["volume", "create", "v"]).fails_with("already");
    assert_eq!(
        store.json("records/volumes/v.json")["labels"],
        json!({"first": "1"})
    );
}

// B-9
#[test]
fn a_volume_that_a_bundle_names_stays() {
    let store = Store::new();
    ImageBuilder::busybox()
        .tag("bb:1")
        .write_layout(&store.root);
    let dir = store.beside("b");
    let dir = dir.to_str().expect("UTF-8");
    store.ok(["bundle", "--volume", "v:/data", "bb:1", dir]);
    store
        .run(["volume", "rm", "v"])
        .fails_with(&format!("volume v: used by bundle {dir}"));
    let listed = store.ok(["volume", "list", "--format", "json"]).json();
    assert_eq!(listed[0]["usedBy"], json!([format!("bundle {dir}")]));
    assert_eq!(listed[0]["pinned"], false);
    store.ok(["volume", "rm", "--force", "v"]);
    assert_eq!(store.names("volumes"), [""; 0]);
    store.ok(["rm", dir]);
}

// B-9
#[test]
fn a_volume_that_a_container_in_any_state_names_stays() {
    requires!(root);
    own_state_root();
    let store = Store::new();
    ImageBuilder::busybox()
        .tag("bb:1")
        .write_layout(&store.root);
    let dir = store.beside("b");
    let dir = dir.to_str().expect("UTF-8");
    store.ok(["bundle", "--volume", "v:/data", "bb:1", dir]);
    let pelagos = |args: &[&str]| {
        // Its container would hold a pipe open.
        let done = Command::new(runtime_for(&store))
            .args(args)
            .stdout(Stdio::null())
            .status()
            .expect("runtime");
        assert!(done.success(), "{args:?}");
    };
    pelagos(&["create", "--bundle", dir, "c-1"]);
    pelagos(&["kill", "c-1", "KILL"]);
    // The bundle is not what protects it.
    store.ok(["rm", "--force", dir]);
    store
        .run(["volume", "rm", "v"])
        .fails_with("volume v: used by container c-1");
    // B-4: what cannot be read may use it.
    fs::write("/run/pelagos/c-1/config.json", "{").expect("damage");
    store.run(["volume", "rm", "v"]).fails_with("config.json");
    pelagos(&["delete", "--force", "c-1"]);
    store.ok(["volume", "rm", "v"]);
}

// B-9: paths were compared as text.
#[test]
fn what_a_container_names_through_links_stays() {
    requires!(root);
    own_state_root();
    let store = Store::new();
    ImageBuilder::busybox()
        .tag("bb:1")
        .write_layout(&store.root);
    let link = store.beside("link");
    std::os::unix::fs::symlink(&store.root, &link).expect("link");
    let dir = store.beside("b");
    let dir = dir.to_str().expect("UTF-8");
    store.ok(["volume", "create", "v"]);
    store.ok(["bundle", "bb:1", dir]);
    let state = Path::new("/run/pelagos/web");
    fs::create_dir_all(state).expect("directory");
    let bundle = store.beside("other/../b");
    fs::create_dir(store.beside("other")).expect("directory");
    let record =
        json!({"schema": 1, "id": "web", "bundle": bundle, "rootfs": bundle.join("rootfs")});
    fs::write(state.join("state.json"), record.to_string()).expect("file");
    for source in [
        "volumes/v",
        "volumes",
        "volumes/v/below",
        "layers/../volumes/v",
    ] {
        fs::create_dir_all(store.path("volumes/v/below")).expect("directory");
        let config = json!({"mounts": [{"destination": "/d", "source": link.join(source)}]});
        fs::write(state.join("config.json"), config.to_string()).expect("file");
        store
            .run(["volume", "rm", "v"])
            .fails_with("volume v: used by container web");
    }
    store
        .run(["rm", dir])
        .fails_with("container web is made from it");
    fs::remove_dir_all(state).expect("remove");
    store.ok(["volume", "rm", "v"]);
    store.ok(["rm", dir]);
}

// S-13
#[test]
fn a_volumes_directory_that_is_a_link_is_refused() {
    let store = Store::new();
    store.ok(["volume", "create", "v"]);
    let outside = store.beside("outside");
    fs::create_dir(&outside).expect("directory");
    fs::write(outside.join("precious"), "x").expect("file");
    fs::remove_dir(store.path("volumes/v")).expect("remove");
    std::os::unix::fs::symlink(&outside, store.path("volumes/v")).expect("link");
    ImageBuilder::busybox()
        .tag("bb:1")
        .write_layout(&store.root);
    store
        .call(["bundle", "--volume", "v:/data", "bb:1"])
        .arg(store.beside("b"))
        .run()
        .fails_with("volumes/v");
    store.ok(["volume", "rm", "v"]);
    assert!(outside.join("precious").exists());
}

// A container that another runtime made, or this one with another state directory, shows only as a mount.
#[test]
fn a_volume_that_is_mounted_somewhere_stays() {
    requires!(root);
    own_state_root();
    let store = Store::new();
    store.ok(["volume", "create", "v"]);
    fs::write(store.path("volumes/v/data"), "x").expect("file");
    let point = store.beside("point");
    fs::create_dir(&point).expect("directory");
    let none = None::<&str>;
    let source = Some(store.path("volumes/v"));
    mount(source.as_ref(), &point, none, MsFlags::MS_BIND, none).expect("bind");
    store
        .run(["volume", "rm", "v"])
        .fails_with("volume v: used by a mount");
    assert_eq!(fs::read_to_string(point.join("data")).expect("data"), "x");
    let listed = store.ok(["volume", "list", "--format", "json"]).json();
    assert_eq!(listed[0]["usedBy"], json!(["a mount"]));
    nix::mount::umount(&point).expect("unmount");
    store.ok(["volume", "rm", "v"]);
}

/// What `prune --volumes` would take of volumes.
fn planned(store: &Store) -> Vec<String> {
    let report = store
        .ok(["prune", "--volumes", "--dry-run", "--format", "json"])
        .json();
    let items = report["plan"].as_array().expect("plan").iter();
    let mut volumes: Vec<_> = items
        .filter(|item| item["kind"] == "volume")
        .map(|item| item["id"].as_str().expect("id").to_owned())
        .collect();
    volumes.sort();
    volumes
}

// B-9: a bundle, too, may name it by a path, and a path may lead there through a mount.
#[test]
fn a_volume_that_is_reached_by_whatever_path_stays() {
    requires!(root);
    own_state_root();
    let store = Store::new();
    ImageBuilder::busybox()
        .tag("bb:1")
        .write_layout(&store.root);
    let alias = store.beside("alias");
    fs::create_dir(&alias).expect("directory");
    let above = store.root.parent().expect("parent").to_owned();
    store.ok(["volume", "create", "v", "other"]);
    fs::create_dir(store.path("volumes/v/below")).expect("directory");
    let none = None::<&str>;
    let source = Some(store.path("volumes"));
    mount(source.as_ref(), &alias, none, MsFlags::MS_BIND, none).expect("bind");
    let dir = store.beside("b");
    let dir = dir.to_str().expect("UTF-8");
    for (source, all) in [
        (store.path("volumes/v"), false),
        (store.path("volumes/v/below"), false),
        (alias.join("v"), false),
        (alias.clone(), true),
        (store.root.clone(), true),
        (above, true),
    ] {
        let volume = format!("{}:/data", source.display());
        let left: &[&str] = if all { &[] } else { &["other"] };
        store.ok(["bundle", "--volume", &volume, "bb:1", dir]);
        assert_eq!(planned(&store), left, "a bundle of {volume}");
        store
            .run(["volume", "rm", "v"])
            .fails_with("used by bundle");
        // And so does a container, when its bundle is no longer ours.
        let state = Path::new("/run/pelagos/web");
        fs::create_dir_all(state).expect("directory");
        fs::copy(
            Path::new(dir).join("config.json"),
            state.join("config.json"),
        )
        .expect("copy");
        let record = json!({"schema": 1, "id": "web", "bundle": "/no", "rootfs": "/no/rootfs"});
        fs::write(state.join("state.json"), record.to_string()).expect("file");
        store.ok(["rm", dir]);
        assert_eq!(planned(&store), left, "a container of {volume}");
        store
            .run(["volume", "rm", "v"])
            .fails_with("used by container web");
        fs::remove_dir_all(state).expect("remove");
    }
    assert_eq!(planned(&store), ["other", "v"]);
}

#[test]
fn a_directory_among_the_volumes_that_has_no_record_is_left_alone_and_told() {
    let store = Store::new();
    store.ok(["volume", "create", "--pin", "v"]);
    fs::write(store.path("volumes/v/data"), "precious").expect("file");
    fs::remove_file(store.path("records/volumes/v.json")).expect("remove");
    let said = store.ok(["prune", "--volumes", "--yes"]);
    assert!(
        said.stdout
            .contains("volumes/v: a directory without a record"),
        "{said}"
    );
    let data = fs::read_to_string(store.path("volumes/v/data"));
    assert_eq!(data.expect("data"), "precious");
    store.ok(["volume", "create", "v"]);
    store.ok(["prune", "--volumes", "--yes"]);
    assert_eq!(store.names("volumes"), [""; 0]);
}
