//! `mounts add` and `mounts remove`: the mounts of a container that runs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};

use serde_json::{Value, json};

use crate::inside::{Seen, answers, place_probe, user_namespace, without_namespace};
use crate::support::{Bundle, Outcome};

/// A running container with the probe in it, and a directory `data` in its bundle with a file.
fn running(edit: impl FnOnce(&mut Value)) -> Bundle {
    let bundle = Bundle::sleeping();
    bundle.edit(edit);
    place_probe(&bundle.rootfs("probe"));
    fs::create_dir(bundle.path.join("data")).unwrap();
    fs::write(bundle.path.join("data/file"), "of the host").unwrap();
    fs::create_dir(bundle.rootfs("m")).unwrap();
    bundle.up();
    bundle
}

fn change(bundle: &Bundle, what: &str, mounts: &Value) -> Outcome {
    let file = bundle.beside("mounts.json");
    fs::write(&file, mounts.to_string()).unwrap();
    bundle.verb(["mounts", what, &bundle.id]).arg(&file).run()
}

fn ask(bundle: &Bundle, questions: &[&str]) -> Seen {
    let mut words = vec!["exec", &bundle.id, "/probe"];
    words.extend(questions);
    answers(&bundle.verb(words).ok())
}

fn bind(destination: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": "bind", "source": "data", "options": options })
}

macro_rules! live {
    () => {
        requires!(root);
        differs!("runc", "has no such verb");
        differs!("crun", "has it since 1.20");
    };
}

#[test]
fn mounts_may_be_listed_on_standard_input_or_in_a_file_of_any_name() {
    live!();
    let bundle = running(|_| {});
    let file = bundle.beside("mounts.json");
    fs::write(&file, json!([bind("/m", &["bind"])]).to_string()).unwrap();
    let change = |what: &str| {
        let verb = bundle.verb(["mounts", what, &bundle.id, "-"]);
        verb.stdin(fs::File::open(&file).unwrap()).ok()
    };
    change("add");
    change("remove");
    // In a file whose name is no text.
    let odd = bundle.path.join(OsStr::from_bytes(b"\xff"));
    fs::rename(&file, &odd).unwrap();
    bundle.verb(["mounts", "add", &bundle.id]).arg(&odd).ok();
    fs::rename(&odd, &file).unwrap();
    let seen = ask(&bundle, &["read:/m/file"]);
    assert_eq!(seen.text("read:/m/file"), "of the host");
    change("remove");
    assert!(!fs::exists(bundle.rootfs("m/file")).unwrap());
    let seen = ask(&bundle, &["read:/m/file"]);
    assert_eq!(seen.errno("read:/m/file"), "ENOENT");
}

#[test]
fn mounts_come_and_go_while_the_container_runs() {
    live!();
    let bundle = running(|_| {});
    let tmpfs = json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "nosuid", "ro"] });
    let file =
        json!({ "destination": "/made/here", "source": "data/file", "options": ["bind", "ro"] });
    let all = json!([bind("/m", &["rbind", "ro", "nosuid"]), tmpfs, file]);
    change(&bundle, "add", &all).ok();
    let seen = ask(
        &bundle,
        &[
            "read:/m/file",
            "create:/m/x",
            "create:/t/x",
            "read:/made/here",
        ],
    );
    assert_eq!(seen.text("read:/m/file"), "of the host");
    assert_eq!(seen.errno("create:/m/x"), "EROFS");
    assert_eq!(seen.errno("create:/t/x"), "EROFS");
    assert_eq!(seen.text("read:/made/here"), "of the host");
    assert!(seen.mount("/m").has("nosuid") && seen.mount("/t").has("nosuid"));
    assert_eq!(seen.mount("/t").kind(), "tmpfs");

    // Only the destination counts.
    let places = json!([{ "destination": "/m" }, { "destination": "/made/here" }]);
    change(&bundle, "remove", &places).ok();
    let seen = ask(&bundle, &["stat:/m/file", "read:/made/here"]);
    assert_eq!(seen.errno("stat:/m/file"), "ENOENT");
    assert_eq!(seen.text("read:/made/here"), "");
    assert!(seen.targets().contains(&"/t"));
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn all_mounts_come_or_none() {
    live!();
    let bundle = running(|_| {});
    let missing =
        json!({ "destination": "/x", "type": "bind", "source": "missing", "options": ["bind"] });
    let wrong =
        json!({ "destination": "/x", "type": "tmpfs", "source": "t", "options": ["nosuch=1"] });
    for (second, words) in [
        (missing, "error mounting \""),
        (
            wrong,
            "error mounting \"t\" to rootfs at \"/x\": mount tmpfs: ",
        ),
    ] {
        change(&bundle, "add", &json!([bind("/m", &["bind"]), second])).fails_with(words);
        let seen = ask(&bundle, &["stat:/m/file"]);
        assert_eq!(seen.errno("stat:/m/file"), "ENOENT");
    }
    change(&bundle, "add", &json!([bind("/m", &["bind"])])).ok();
    let places = json!([{ "destination": "/m" }, { "destination": "/tmp" }]);
    change(&bundle, "remove", &places)
        .fails_with("error unmounting \"/tmp\": nothing is mounted there");
    assert_eq!(
        ask(&bundle, &["read:/m/file"]).text("read:/m/file"),
        "of the host"
    );
    bundle.delete_force().ok();
}

#[test]
fn links_of_the_container_lead_nowhere_else() {
    live!();
    let bundle = running(|_| {});
    let outside = bundle.beside("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, bundle.rootfs("link")).unwrap();
    change(&bundle, "add", &json!([bind("/link/m", &["bind"])])).ok();
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
    let inside = format!("read:{}/m/file", outside.display());
    assert_eq!(ask(&bundle, &[&inside]).text(&inside), "of the host");
    let place = format!("{}/m", outside.display());
    change(&bundle, "remove", &json!([{ "destination": "/link/m" }]))
        .fails_with("a link leads there");
    change(&bundle, "remove", &json!([{ "destination": place }])).ok();
    assert!(
        !ask(&bundle, &[])
            .targets()
            .iter()
            .any(|target| target.contains("outside"))
    );

    // To where the writes that confine a process go.
    symlink("/proc/sys", bundle.rootfs("sys")).ok();
    fs::remove_dir(bundle.rootfs("m")).unwrap();
    symlink("/proc/sys", bundle.rootfs("m")).unwrap();
    change(&bundle, "add", &json!([bind("/m", &["bind"])])).fails_with("inside /proc");
    change(&bundle, "add", &json!([bind("/proc/sys", &["bind"])])).fails_with("inside /proc");
    bundle.delete_force().ok();
}

#[test]
fn a_mount_that_comes_later_has_the_ids_of_the_containers_user_namespace() {
    live!();
    let bundle = running(|c| {
        user_namespace(c);
        c["root"]["readonly"] = json!(false);
    });
    fs::create_dir(bundle.rootfs("t")).unwrap();
    let all = json!([
        bind("/m", &["bind", "idmap"]),
        { "destination": "/t", "type": "tmpfs", "source": "tmpfs" },
    ]);
    change(&bundle, "add", &all).ok();
    let seen = ask(&bundle, &["stat:/m/file", "create:/t/x", "stat:/t"]);
    assert_eq!(seen.ok("stat:/m/file")["uid"], 0);
    assert_eq!(seen.ok("stat:/t")["uid"], 0);
    assert_eq!(seen.ok("create:/t/x"), true);
    assert_eq!(
        fs::metadata(bundle.path.join("data/file")).unwrap().uid(),
        0
    );
    bundle.delete_force().ok();
}

#[test]
fn what_cannot_come_later_is_refused() {
    live!();
    let bundle = running(|_| {});
    let filesystem = |kind: &str, destination: &str| json!([{ "destination": destination, "type": kind, "source": kind }]);
    for (mounts, words) in [
        (
            filesystem("proc", "/proc"),
            "only bind mounts and tmpfs can be added to a running container",
        ),
        (
            filesystem("mqueue", "/m"),
            "only bind mounts and tmpfs can be added to a running container",
        ),
        (
            filesystem("cgroup", "/m"),
            "only bind mounts and tmpfs can be added to a running container",
        ),
        // Its source would be looked up in the container.
        (
            filesystem("ext4", "/m"),
            "only bind mounts and tmpfs can be added to a running container",
        ),
        (
            json!([bind("/m", &["bind", "remount"])]),
            "only bind mounts and tmpfs can be added to a running container",
        ),
        (
            json!([{ "destination": "/m" }]),
            "mounts[0].type: mount has no type",
        ),
        (
            json!([bind("/m", &["bind", "size=1"])]),
            "bind mounts cannot have any filesystem-specific options",
        ),
        (json!({}), "mounts: invalid type: map, expected a sequence"),
        (json!([{ "destination": 7 }]), "mounts[0].destination"),
    ] {
        change(&bundle, "add", &mounts).fails_with(words);
    }
    let places = json!([{ "destination": "/proc" }]);
    change(&bundle, "remove", &places)
        .fails_with("cannot be mounted because it is not of type proc");
    let verb = bundle.verb(["mounts", "move", &bundle.id, "x"]).run();
    verb.fails_with("mounts: \"move\" is neither add nor remove");
    let verb = bundle
        .verb(["mounts", "add", &bundle.id, "/no/such/file"])
        .run();
    verb.fails_with("read /no/such/file");
    bundle.kill("KILL").ok();
    bundle.wait_for("stopped");
    change(&bundle, "add", &json!([])).fails_with("container not running");
    bundle.delete().ok();

    let shared = running(|c| {
        without_namespace(c, "mount");
        c["mounts"] = json!([]);
        c["root"]["readonly"] = json!(false);
        c["linux"]["maskedPaths"] = json!([]);
        c["linux"]["readonlyPaths"] = json!([]);
    });
    change(&shared, "add", &json!([bind("/m", &["bind"])]))
        .fails_with("mounts: the container has no mount namespace of its own");
    shared.delete_force().ok();
}

#[test]
fn a_link_takes_away_no_mask() {
    live!();
    let bundle = running(|c| {
        c["root"]["readonly"] = json!(false);
        c["linux"]["maskedPaths"] = json!(["/masked"]);
    });
    bundle.delete_force().ok();
    fs::create_dir(bundle.rootfs("masked")).unwrap();
    bundle.up();
    change(&bundle, "add", &json!([bind("/a/x", &["bind"])])).ok();
    let swap = "mv /a /b; mkdir /a; ln -s /masked /a/x";
    bundle.verb(["exec", &bundle.id, "sh", "-c", swap]).ok();
    change(&bundle, "remove", &json!([{ "destination": "/a/x" }]))
        .fails_with("nothing is mounted there");
    assert!(ask(&bundle, &[]).targets().contains(&"/masked"));
    bundle.delete_force().ok();
}

#[test]
fn a_list_is_removed_with_the_file_that_it_was_added_with() {
    live!();
    let bundle = running(|_| {});
    let tmpfs = |destination: &str| json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs" });
    let all = json!([
        tmpfs("/m"),
        tmpfs("/m/inner"),
        bind("/m/inner/most", &["bind"])
    ]);
    change(&bundle, "add", &all).ok();
    change(&bundle, "remove", &all).ok();
    let seen = ask(&bundle, &[]);
    assert!(!seen.targets().iter().any(|target| target.starts_with("/m")));
    bundle.delete_force().ok();
}
