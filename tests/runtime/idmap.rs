//! Id-mapped mounts: who owns the files of a mount, as seen inside and as it stays outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::inside::{Seen, asking, refused, see, user_namespace};
use crate::namespaces::Holder;
use crate::support::{Bundle, Verb, mounts, namespace, runtime};

/// A mount, id-mapped from the first `size` ids on to those from `uid` and `gid` on.
fn mapped(kind: &str, options: &[&str], (uid, gid, size): (u32, u32, u32)) -> Value {
    let map = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": size }]);
    let mut entry = plain(kind, options);
    entry["uidMappings"] = map(uid);
    entry["gidMappings"] = map(gid);
    entry
}

/// A mount at /m, for a bind mount of the directory `data` of the bundle.
fn plain(kind: &str, options: &[&str]) -> Value {
    let source = if kind == "bind" { "data" } else { kind };
    json!({ "destination": "/m", "type": kind, "source": source, "options": options })
}

/// A bundle that mounts this, and whose `data` has a file that belongs to 3 and 4.
fn bundle(questions: &[&str], entry: Value, edit: impl FnOnce(&mut Value)) -> Bundle {
    let bundle = asking(questions, |c| {
        mounts(c).push(entry);
        edit(c);
    });
    fs::create_dir(bundle.path.join("data")).unwrap();
    owned_file(&bundle.path.join("data/file"));
    // In a user namespace nobody owns the root, and so nobody may make it.
    fs::create_dir(bundle.rootfs("m")).unwrap();
    bundle
}

fn owned_file(path: &Path) {
    fs::write(path, "").unwrap();
    chown(path, Some(3), Some(4)).unwrap();
}

#[track_caller]
fn owner(seen: &Seen, path: &str) -> (u64, u64) {
    let about = seen.ok(&format!("stat:{path}"));
    let id = |name: &str| about[name].as_u64().expect("an id");
    (id("uid"), id("gid"))
}

fn owner_outside(path: &Path) -> (u32, u32) {
    let about = fs::symlink_metadata(path).unwrap();
    (about.uid(), about.gid())
}

/// Return from the test with a runtime that is too old for it.
macro_rules! maps_of_mounts {
    () => {
        requires!(root);
        differs!("runc", "since 1.2");
        differs!("crun", "1.8 takes the maps from the user namespace only");
    };
}

#[test]
fn an_id_mapped_bind_shows_other_owners() {
    maps_of_mounts!();
    for options in [&["bind"][..], &["bind", "idmap"], &["rbind", "ridmap"]] {
        let entry = mapped("bind", options, (5000, 6000, 10));
        let bundle = bundle(&["stat:/m/file", "stat:/m"], entry, |_| {});
        let seen = see(&bundle);
        assert_eq!(owner(&seen, "/m/file"), (5003, 6004), "{options:?}");
        assert_eq!(owner(&seen, "/m"), (5000, 6000), "{options:?}");
        assert_eq!(owner_outside(&bundle.path.join("data/file")), (3, 4));
        bundle.assert_nothing_left();
    }
}

#[test]
fn an_id_outside_of_the_map_is_nobody() {
    maps_of_mounts!();
    let entry = mapped("bind", &["bind"], (5000, 6000, 3));
    let seen = see(&bundle(&["stat:/m/file"], entry, |_| {}));
    assert_eq!(owner(&seen, "/m/file"), (65534, 65534));
}

#[test]
fn a_file_has_the_ids_of_the_host_of_a_map_and_the_container_sees_them_by_its_own() {
    maps_of_mounts!();
    for (host, inside) in [
        (100_000, (3, 4)),
        (100_010, (13, 14)),
        (5000, (65534, 65534)),
    ] {
        let entry = mapped("bind", &["bind"], (host, host, 10));
        let seen = see(&bundle(&["stat:/m/file"], entry, user_namespace));
        assert_eq!(owner(&seen, "/m/file"), inside, "{host}");
    }
}

#[test]
fn without_maps_of_its_own_a_mount_has_those_of_the_container() {
    requires!(root);
    differs!("runc", "since 1.2");
    for (options, wanted) in [
        (&["bind"][..], (65534, 65534)),
        (&["bind", "idmap"], (3, 4)),
        (&["rbind", "ridmap"], (3, 4)),
    ] {
        let entry = plain("bind", options);
        let seen = see(&bundle(&["stat:/m/file"], entry, user_namespace));
        assert_eq!(owner(&seen, "/m/file"), wanted, "{options:?}");
    }
}

#[test]
fn a_joined_user_namespace_maps_the_mount() {
    requires!(root, command "unshare");
    differs!("runc", "since 1.2");
    differs!("crun", "1.8 takes the maps from the user namespace only");
    let holder = Holder::new(&["--user"]);
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", holder.pid), "0 100000 1000").unwrap();
    }
    let path = holder.path("user");
    let join = |entry: Value| {
        let bundle = bundle(&["stat:/m/file", "create:/m/new"], entry, |c| {
            namespace(c, "user")["path"] = json!(path);
        });
        let seen = see(&bundle);
        (owner(&seen, "/m/file"), seen, bundle)
    };
    let (inside, seen, bundle) = join(plain("bind", &["bind", "idmap"]));
    assert_eq!(inside, (3, 4));
    seen.ok("create:/m/new");
    assert_eq!(owner_outside(&bundle.path.join("data/new")), (0, 0));
    let (inside, ..) = join(mapped("bind", &["bind", "idmap"], (100_020, 100_030, 10)));
    assert_eq!(inside, (23, 34));
}

#[test]
fn ridmap_reaches_the_mounts_below_and_idmap_does_not() {
    maps_of_mounts!();
    for (word, below) in [("idmap", (3, 4)), ("ridmap", (5003, 6004))] {
        let entry = mapped("bind", &["rbind", word], (5000, 6000, 10));
        let bundle = bundle(&["stat:/m/file", "stat:/m/sub/file"], entry, |_| {});
        let sub = bundle.path.join("data/sub");
        fs::create_dir(&sub).unwrap();
        let none = None::<&str>;
        mount(Some("tmpfs"), &sub, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        owned_file(&sub.join("file"));
        let seen = see(&bundle);
        nix::mount::umount(&sub).unwrap();
        assert_eq!(owner(&seen, "/m/file"), (5003, 6004), "{word}");
        assert_eq!(owner(&seen, "/m/sub/file"), below, "{word}");
    }
}

#[test]
fn what_is_made_inside_belongs_outside_to_whom_the_map_says() {
    maps_of_mounts!();
    let entry = || mapped("bind", &["bind", "idmap"], (5000, 6000, 10));
    let questions = ["create:/m/new", "stat:/m/new"];
    let bundle_of = |uid: u32, gid: u32| {
        let bundle = bundle(&questions, entry(), |c| {
            c["process"]["user"] = json!({ "uid": uid, "gid": gid });
        });
        chown(bundle.path.join("data"), Some(uid - 5000), None).unwrap();
        bundle
    };
    let bundle = bundle_of(5007, 6008);
    let seen = see(&bundle);
    assert_eq!(owner(&seen, "/m/new"), (5007, 6008));
    assert_eq!(owner_outside(&bundle.path.join("data/new")), (7, 8));

    // Whoever the map does not know can own nothing there.
    let bundle = bundle_of(5007, 6010);
    assert_eq!(see(&bundle).errno("create:/m/new"), "EOVERFLOW");
}

#[test]
fn root_of_a_user_namespace_writes_as_the_owner_that_it_is_mapped_to() {
    requires!(root);
    differs!("runc", "since 1.2");
    let bundle = bundle(
        &["create:/m/new", "stat:/m/new"],
        plain("bind", &["bind", "idmap"]),
        user_namespace,
    );
    let seen = see(&bundle);
    assert_eq!(owner(&seen, "/m/new"), (0, 0));
    assert_eq!(owner_outside(&bundle.path.join("data/new")), (0, 0));
}

#[test]
fn a_read_only_mount_may_be_id_mapped() {
    maps_of_mounts!();
    for edit in [|_: &mut Value| {}, user_namespace] {
        let entry = mapped(
            "bind",
            &["bind", "idmap", "ro", "nosuid"],
            (100_000, 100_000, 10),
        );
        let bundle = bundle(&["stat:/m/file", "create:/m/new"], entry, edit);
        let seen = see(&bundle);
        let (uid, gid) = owner(&seen, "/m/file");
        assert!(
            [(3, 4), (100_003, 100_004)].contains(&(uid, gid)),
            "{uid} {gid}"
        );
        assert_eq!(seen.errno("create:/m/new"), "EROFS");
        let at = seen.mount("/m");
        assert!(
            at.own("ro") && at.own("nosuid") && at.own("idmapped"),
            "{at:?}"
        );
    }
}

#[test]
fn mounts_of_one_container_may_have_different_maps() {
    maps_of_mounts!();
    let hosts = [(5000, "/m0"), (7000, "/m1"), (5000, "/m2")];
    let questions = ["stat:/m0/file", "stat:/m1/file", "stat:/m2/file"];
    let bundle = bundle(&questions, plain("bind", &["bind"]), |c| {
        for (host, at) in hosts {
            let mut entry = mapped("bind", &["bind"], (host, host, 10));
            entry["destination"] = json!(at);
            mounts(c).push(entry);
        }
    });
    let seen = see(&bundle);
    for (host, at) in hosts {
        let host = u64::from(host);
        assert_eq!(owner(&seen, &format!("{at}/file")), (host + 3, host + 4));
    }
}

#[test]
fn a_new_file_system_may_be_id_mapped() {
    maps_of_mounts!();
    differs!("runc", "bind mounts only");
    // The tmpfs belongs to id 0 of the container's user namespace, and its map begins with that.
    let here: fn(&mut Value) = |_| {};
    for (host, edit, inside) in [
        (5000, here, 5000),
        (100_000, user_namespace, 0),
        (100_010, user_namespace, 10),
        (5000, user_namespace, 65534),
    ] {
        let entry = mapped("tmpfs", &["idmap", "size=64k"], (host, host, 10));
        let bundle = bundle(&["stat:/m"], entry, edit);
        assert_eq!(owner(&see(&bundle), "/m"), (inside, inside), "{host}");
        bundle.assert_nothing_left();
    }
    let bundle = bundle(&["stat:/m"], plain("tmpfs", &["idmap"]), user_namespace);
    assert_eq!(owner(&see(&bundle), "/m"), (0, 0));
}

#[test]
fn a_copy_in_an_id_mapped_tmpfs_shows_the_mapped_owners() {
    maps_of_mounts!();
    differs!("runc", "bind mounts only");
    let entry = mapped("tmpfs", &["tmpcopyup"], (5000, 6000, 10));
    let bundle = bundle(&["stat:/m/file"], entry, |_| {});
    owned_file(&bundle.rootfs("m/file"));
    assert_eq!(owner(&see(&bundle), "/m/file"), (5003, 6004));
}

#[test]
fn a_file_system_that_cannot_be_id_mapped_is_refused_with_the_number_of_the_mount() {
    maps_of_mounts!();
    let at = |bundle: &Bundle| bundle.config()["mounts"].as_array().unwrap().len() - 1;
    for edit in [|_: &mut Value| {}, user_namespace] {
        let bundle = bundle(&[], mapped("sysfs", &[], (7, 7, 10)), edit);
        let words = format!(
            "error mounting \"sysfs\" to rootfs at \"/m\": mounts[{}]: the file system does not support id-mapped mounts: invalid argument",
            at(&bundle)
        );
        refused(&bundle, &words);
    }
    let mut entry = mapped("bind", &["bind"], (7, 7, 10));
    entry["source"] = json!("/proc/sys");
    let bundle = bundle(&[], entry, |_| {});
    let words = format!(
        "error mounting \"/proc/sys\" to rootfs at \"/m\": mounts[{}]: the file system does not support id-mapped mounts: invalid argument",
        at(&bundle)
    );
    refused(&bundle, &words);
}

#[test]
fn maps_that_are_missing_or_wrong_are_refused_before_anything_is_made() {
    requires!(root);
    let both = "id-mapped mounts must have both uid and gid mappings specified";
    let without = |member: &str| {
        let mut entry = mapped("bind", &["bind"], (5, 5, 5));
        entry.as_object_mut().unwrap().remove(member);
        entry
    };
    for (entry, words) in [
        (without("uidMappings"), both),
        (without("gidMappings"), both),
        (plain("bind", &["bind", "idmap"]), both),
        (plain("bind", &["rbind", "ridmap"]), both),
        (
            mapped("bind", &["bind"], (5, 5, 0)),
            "uidMappings[0].size: size must be greater than zero",
        ),
        (
            mapped("tmpfs", &["remount"], (5, 5, 5)),
            "a remount cannot change what ids are mapped to",
        ),
        (
            mapped("cgroup", &[], (5, 5, 5)),
            "the cgroup hierarchy cannot be id-mapped",
        ),
    ] {
        let bundle = bundle(&[], entry, |_| {});
        refused(&bundle, words);
    }
}

#[test]
fn a_rootless_container_has_no_id_mapped_mounts() {
    requires!(rootless);
    let bundle = Bundle::with(|c| mounts(c).push(plain("bind", &["bind", "idmap"])));
    fs::create_dir(bundle.path.join("data")).unwrap();
    refused(
        &bundle,
        "id-mapped mounts are not supported for rootless containers",
    );
}

#[test]
fn the_payload_has_nothing_of_the_namespaces_that_mapped_its_mounts() {
    maps_of_mounts!();
    let bundle = Bundle::with(|c| {
        crate::support::process_args(c, ["sleep", "1000"]);
        mounts(c).push(mapped("bind", &["bind"], (5000, 6000, 10)));
        let mut entry = mapped("tmpfs", &["idmap"], (7000, 8000, 10));
        entry["destination"] = json!("/t");
        mounts(c).push(entry);
    });
    fs::create_dir(bundle.path.join("data")).unwrap();
    bundle.up();
    let open = fs::read_dir(format!("/proc/{}/fd", bundle.pid())).unwrap();
    let mut open: Vec<_> = open.map(|entry| entry.unwrap().file_name()).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn features_tells_of_id_mapped_mounts() {
    differs!("runc", "since 1.2");
    differs!("crun", "since 1.9");
    let features = Verb::new(["features"]).ok().json();
    assert_eq!(
        features["linux"]["mountExtensions"]["idmap"]["enabled"],
        true
    );
    // COMPAT: runc does not list the two words.
    if runtime().is("pelagos") {
        let words = features["mountOptions"].as_array().unwrap();
        assert!(!words.iter().any(|w| w == "idmap" || w == "ridmap"));
    }
}

#[test]
fn maps_may_stand_in_the_option() {
    requires!(root);
    differs!("runc", "takes none in an option");
    differs!("crun", "1.8 maps only with a user namespace");
    let option = "idmap=uids=0-5000-3#3-7000-1;gids=0-6000-10";
    let entry = plain("bind", &["bind", option]);
    let seen = see(&bundle(&["stat:/m/file", "stat:/m"], entry, |_| {}));
    assert_eq!(owner(&seen, "/m/file"), (7000, 6004));
    assert_eq!(owner(&seen, "/m"), (5000, 6000));

    // Relative to the container's own, which begin at 100000.
    for (option, inside) in [
        ("idmap=uids=@0-20-10;gids=@0-30-10", (23, 34)),
        ("idmap=uids=0-100040-10;gids=@0-30-10", (43, 34)),
    ] {
        let entry = plain("bind", &["bind", option]);
        let seen = see(&bundle(&["stat:/m/file"], entry, user_namespace));
        assert_eq!(owner(&seen, "/m/file"), inside, "{option}");
    }
}

#[test]
fn maps_in_an_option_that_cannot_be_are_refused() {
    requires!(root);
    differs!("runc", "takes none in an option");
    let both = "id-mapped mounts must have both uid and gid mappings specified";
    for (option, words) in [
        ("idmap=uids=0-5000-3", both),
        (
            "idmap=uids=0-5000;gids=0-0-1",
            "/m: idmap=uids=0-5000;gids=0-0-1: \"0-5000\" is not three numbers",
        ),
        (
            "idmap=uids=@0-0-1;gids=@0-0-1",
            "has no new user namespace for it to be relative to",
        ),
    ] {
        refused(
            &bundle(&[], plain("bind", &["bind", option]), |_| {}),
            words,
        );
    }
    let mut entry = mapped("bind", &["bind", "idmap=uids=0-1-1;gids=0-1-1"], (1, 1, 1));
    entry["gidMappings"] = entry["uidMappings"].clone();
    refused(
        &bundle(&[], entry, |_| {}),
        "from its members or from an option, not from both",
    );
}
