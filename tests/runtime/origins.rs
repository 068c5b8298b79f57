//! Where a container's namespaces come from: every pair of kinds, each of them inherited, new, or joined by its path.
//!
//! Seen from outside, for a container without a mount namespace of its own has no /proc to be asked about.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::inside::{refused, user_namespace};
use crate::namespaces::Holder;
use crate::support::{Bundle, eventually, namespace, runtime};

/// The specification's names, the kernel's, and unshare(1)'s options.
const KINDS: [(&str, &str, &str); 8] = [
    ("user", "user", "--user"),
    ("pid", "pid", "--pid"),
    ("network", "net", "--net"),
    ("mount", "mnt", "--mount"),
    ("ipc", "ipc", "--ipc"),
    ("uts", "uts", "--uts"),
    ("cgroup", "cgroup", "--cgroup"),
    ("time", "time", "--time"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Inherited,
    New,
    Joined,
}

const ORIGINS: [Origin; 3] = [Origin::Inherited, Origin::New, Origin::Joined];

/// Namespaces to join: those of a process beside us, and those of one in a user namespace, which owns them.
struct Holders {
    plain: Holder,
    mapped: Holder,
}

impl Holders {
    fn new() -> Self {
        let all: Vec<_> = KINDS.iter().map(|(_, _, option)| *option).collect();
        let mapped = Holder::new(&all);
        write_maps(&mapped, "0 100000 1000");
        Self {
            plain: Holder::new(&all[1..]),
            mapped,
        }
    }

    /// Whose namespaces a container joins. The kernel lets a process of a user namespace join only what that one owns.
    fn of(&self, user: Origin) -> &Holder {
        match user {
            Origin::Joined => &self.mapped,
            Origin::Inherited | Origin::New => &self.plain,
        }
    }
}

fn write_maps(holder: &Holder, map: &str) {
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", holder.pid), map).expect("map");
    }
}

fn link(process: &str, kind: &str) -> Result<String, String> {
    let path = format!("/proc/{process}/ns/{kind}");
    let link = fs::read_link(&path).map_err(|e| format!("{path}: {e}"))?;
    Ok(link.to_string_lossy().into_owned())
}

/// A bundle that asks for nothing that one of the namespaces would have to be there for. Its /dev is that of an image
/// which has the devices: where the mount namespace is another user namespace's, nothing can be put over them.
fn bare(edit: impl FnOnce(&mut Value)) -> Bundle {
    let bundle = Bundle::with(|c| {
        c["mounts"] = json!([]);
        c.as_object_mut().unwrap().remove("hostname");
        let linux = c["linux"].as_object_mut().unwrap();
        linux.insert("namespaces".into(), json!([]));
        linux.remove("maskedPaths");
        linux.remove("readonlyPaths");
        edit(c);
    });
    let dev = bundle.rootfs("dev");
    fs::create_dir_all(&dev).unwrap();
    chown(&dev, Some(100_000), Some(100_000)).unwrap();
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ] {
        let node = dev.join(name);
        mknod(&node, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor)).unwrap();
        fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).unwrap();
    }
    bundle
}

/// What is wrong with the namespaces of a container that has these two of these origins.
fn try_pair(holders: &Holders, pair: [(usize, Origin); 2]) -> Result<(), String> {
    let [(first, one), (_, other)] = pair;
    let user = if first == 0 { one } else { Origin::Inherited };
    let holder = holders.of(user);
    let bundle = bare(|c| {
        for (kind, origin) in pair {
            let (name, kernel, _) = KINDS[kind];
            match origin {
                Origin::Inherited => {}
                Origin::New if name == "user" => user_namespace(c),
                Origin::New => {
                    namespace(c, name);
                }
                Origin::Joined => namespace(c, name)["path"] = json!(holder.path(kernel)),
            }
        }
    });
    let said = |what: String| {
        format!(
            "{} {one:?}, {} {other:?}: {what}",
            KINDS[first].0, KINDS[pair[1].0].0
        )
    };
    let outcome = bundle.verb(["create", &bundle.id]).run();
    if outcome.code() != 0 {
        return Err(said(outcome.to_string()));
    }
    let pid = bundle.state()["pid"].to_string();
    for (kind, (name, kernel, _)) in KINDS.iter().enumerate() {
        let origin = pair
            .iter()
            .find(|(listed, _)| *listed == kind)
            .map_or(Origin::Inherited, |(_, origin)| *origin);
        let (there, own, held) = (
            link(&pid, kernel).map_err(said)?,
            link("thread-self", kernel).map_err(said)?,
            link(&holder.pid.to_string(), kernel).map_err(said)?,
        );
        let right = match origin {
            Origin::Inherited => there == own,
            Origin::New => there != own && there != held,
            Origin::Joined => there == held,
        };
        if !right {
            return Err(said(format!(
                "{name} is {there}, the caller's {own}, the other's {held}"
            )));
        }
    }
    bundle.delete_force();
    Ok(())
}

#[test]
fn every_pair_of_namespaces_may_be_inherited_new_or_joined_in_any_mix() {
    requires!(root, command "unshare");
    differs!("runc", "time namespaces since 1.2; wants a mount namespace");
    differs!("crun", "refuses some of the mixes");
    let holders = Holders::new();
    let mut wrong = Vec::new();
    let mut tried = 0;
    let pairs = (0..KINDS.len()).flat_map(|second| (0..second).map(move |first| (first, second)));
    for (first, second) in pairs {
        for (one, other) in ORIGINS
            .into_iter()
            .flat_map(|one| ORIGINS.map(|other| (one, other)))
        {
            tried += 1;
            // What is mounted in a joined namespace stays there, and the next container would find it.
            let mount = [first, second].iter().any(|kind| KINDS[*kind].0 == "mount");
            let fresh = mount.then(Holders::new);
            let holders = fresh.as_ref().unwrap_or(&holders);
            wrong.extend(try_pair(holders, [(first, one), (second, other)]).err());
        }
    }
    assert_eq!(tried, 28 * 9);
    assert!(
        wrong.is_empty(),
        "{} of {tried}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn what_is_mounted_in_a_joined_namespace_goes_with_the_container() {
    requires!(root, command "unshare");
    differs!("runc", "leaves it there");
    differs!("crun", "leaves it there");
    let holder = Holder::new(&["--mount"]);
    // The last one is the caller's own.
    for (path, process) in [
        (holder.path("mnt"), holder.pid.to_string()),
        ("/proc/self/ns/mnt".to_owned(), "thread-self".to_owned()),
    ] {
        let table =
            || fs::read_to_string(format!("/proc/{process}/mountinfo")).expect("mount table");
        let before = table();
        let bundle = Bundle::sleeping();
        bundle.edit(|c| {
            c["root"]["readonly"] = json!(true);
            namespace(c, "mount")["path"] = json!(path);
        });
        bundle.up();
        assert!(table().lines().count() > before.lines().count() + 4);
        let exec = |script: &str| {
            let verb = bundle.verb(["exec", &bundle.id, "sh", "-c", script]);
            verb.run()
        };
        exec("test -e /proc/self/stat && test -c /dev/null").ok();
        let refused = exec("echo > /file");
        assert!(
            refused.stderr.contains("Read-only file system"),
            "{refused}"
        );
        bundle.delete_force().ok();
        assert_eq!(table(), before);
        bundle.assert_nothing_left();

        bundle.edit(|c| {
            let mounts = c["mounts"].as_array_mut().expect("mounts");
            mounts.push(json!({ "destination": "/mnt", "type": "nosuch", "source": "x" }));
        });
        bundle.run().fails_with("/mnt");
        assert_eq!(table(), before);
        bundle.assert_nothing_left();
    }
}

#[test]
fn what_is_masked_or_read_only_in_a_joined_namespace_is_so_for_the_container_alone() {
    requires!(root, command "unshare");
    differs!("runc", "leaves it there");
    differs!("crun", "leaves it there");
    let holder = Holder::new(&["--mount"]);
    let table =
        || fs::read_to_string(format!("/proc/{}/mountinfo", holder.pid)).expect("mount table");
    let before = table();
    for (masked, read_only, propagation) in [
        (json!(["/etc/passwd", "/data"]), json!([]), json!(null)),
        (json!([]), json!(["/data"]), json!(null)),
        (json!([]), json!([]), json!("rshared")),
        (json!([]), json!([]), json!("unbindable")),
    ] {
        let bundle = bare(|c| {
            namespace(c, "mount")["path"] = json!(holder.path("mnt"));
            c["linux"]["maskedPaths"] = masked.clone();
            c["linux"]["readonlyPaths"] = read_only.clone();
            c["linux"]["rootfsPropagation"] = propagation.clone();
        });
        fs::create_dir_all(bundle.rootfs("data")).unwrap();
        bundle.create();
        assert_ne!(table(), before, "{masked} {read_only} {propagation}");
        bundle.delete_force().ok();
        assert_eq!(table(), before, "{masked} {read_only} {propagation}");
        bundle.edit(|c| c["process"]["args"] = json!(["/nope"]));
        bundle.run().fails_with("/nope");
        assert_eq!(table(), before, "{masked} {read_only} {propagation}");
        bundle.assert_nothing_left();
    }
}

#[test]
fn a_path_that_is_no_mount_namespace_is_named() {
    requires!(root);
    differs!("runc", "its own words");
    differs!("crun", "its own words");
    for path in ["/proc/self/ns/net", "/etc/passwd"] {
        let bundle = Bundle::sleeping();
        bundle.edit(|c| namespace(c, "mount")["path"] = json!(path));
        refused(
            &bundle,
            &format!("linux.namespaces: mount namespace {path}: the path is"),
        );
    }
}

#[test]
fn a_container_is_deleted_although_the_namespace_that_it_joined_is_at_its_path_no_longer() {
    requires!(root, command "unshare");
    let holder = Holder::new(&["--mount"]);
    let bundle = Bundle::sleeping();
    let path = holder.path("mnt");
    bundle.edit(|c| {
        c["root"]["readonly"] = json!(false);
        namespace(c, "mount")["path"] = json!(path);
    });
    bundle.up();
    drop(holder);
    assert!(eventually(|| fs::symlink_metadata(&path).is_err()));
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn maps_beside_the_path_of_a_user_namespace_are_those_that_it_has_or_refused() {
    requires!(root, command "unshare");
    differs!("runc", "since 1.2");
    differs!("crun", "passes over them");
    let holder = Holder::new(&["--user"]);
    write_maps(&holder, "0 100000 1000");
    let with = |size: u32| {
        bare(|c| {
            namespace(c, "mount");
            user_namespace(c);
            for map in ["uidMappings", "gidMappings"] {
                c["linux"][map][0]["size"] = json!(size);
            }
            namespace(c, "user")["path"] = json!(holder.path("user"));
        })
    };
    refused(
        &with(999),
        "linux.uidMappings, linux.gidMappings: user namespaces enabled, but both namespace path and non-matching \
         mapping specified -- you may only provide one",
    );
    let bundle = with(1000);
    let outcome = bundle.verb(["create", &bundle.id]).run();
    assert_eq!(outcome.code(), 0, "{outcome}");
    if runtime().is("pelagos") {
        assert!(
            outcome.stderr.contains("has these maps already"),
            "{outcome}"
        );
    }
    let pid = bundle.state()["pid"].to_string();
    let joined = link(&holder.pid.to_string(), "user").unwrap();
    assert_eq!(link(&pid, "user").unwrap(), joined);
    bundle.delete_force();
}
