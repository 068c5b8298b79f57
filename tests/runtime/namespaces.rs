//! Namespaces: made new, joined by path, or left as they are; and what lives in each.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::inside::{Seen, answers, ask, asking, refused, see, user_namespace, without_namespace};
use crate::support::{Bundle, eventually, namespace, runtime};

/// The specification's names and the kernel's.
const KINDS: [(&str, &str); 8] = [
    ("pid", "pid"),
    ("network", "net"),
    ("mount", "mnt"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("user", "user"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

/// The namespaces of a process: kind as the kernel calls it, and `kind:[inode]`.
fn of(process: &str) -> BTreeMap<String, String> {
    KINDS
        .iter()
        .map(|(_, name)| {
            let link = fs::read_link(format!("/proc/{process}/ns/{name}")).expect("namespace");
            ((*name).to_owned(), link.to_string_lossy().into_owned())
        })
        .collect()
}

#[test]
fn every_listed_namespace_is_new() {
    requires!(root);
    differs!("runc", "time namespaces since 1.2");
    let host = of("thread-self");
    let seen = ask(&[], |c| {
        for (kind, _) in KINDS {
            namespace(c, kind);
        }
        user_namespace(c);
    });
    for (_, name) in KINDS {
        let inside = seen["namespaces"][name].as_str().expect("a namespace");
        assert!(inside.starts_with(&format!("{name}:[")), "{inside}");
        assert_ne!(inside, host[name]);
    }
}

#[test]
fn a_namespace_that_is_not_listed_is_inherited() {
    requires!(root);
    let host = of("thread-self");
    let seen = ask(&[], |c| {
        for (kind, _) in KINDS {
            if kind != "mount" && kind != "pid" {
                without_namespace(c, kind);
            }
        }
        c.as_object_mut().unwrap().remove("hostname");
        c["mounts"] = json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]);
    });
    for (_, name) in KINDS {
        let inside = &seen["namespaces"][name];
        if name == "mnt" || name == "pid" {
            assert_ne!(inside, &host[name]);
        } else {
            assert_eq!(inside, &host[name]);
        }
    }
}

/// A process in namespaces of its own, to be joined.
pub(crate) struct Holder {
    unshare: Child,
    pub(crate) pid: Pid,
}

impl Holder {
    pub(crate) fn new(options: &[&str]) -> Self {
        let unshare = Command::new("unshare")
            .args(["--fork", "--kill-child"])
            .args(options)
            .args(["sleep", "1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare");
        let own = unshare.id();
        let mut pid = None;
        assert!(
            eventually(|| {
                let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
                pid = children
                    .ok()
                    .and_then(|c| c.split_whitespace().next()?.parse().ok())
                    .map(Pid::from_raw);
                // The program's name is the last thing to change.
                pid.is_some_and(|p| {
                    fs::read_to_string(format!("/proc/{p}/comm")).is_ok_and(|c| c == "sleep\n")
                })
            }),
            "the holder did not start"
        );
        Self {
            unshare,
            pid: pid.expect("pid"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.pid)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.unshare.kill().ok();
        self.unshare.wait().ok();
    }
}

#[test]
fn each_kind_of_namespace_can_be_joined_by_path() {
    requires!(root, command "unshare");
    for (kind, name, option) in [
        ("network", "net", "--net"),
        ("ipc", "ipc", "--ipc"),
        ("uts", "uts", "--uts"),
        ("pid", "pid", "--pid"),
        ("cgroup", "cgroup", "--cgroup"),
        ("time", "time", "--time"),
    ] {
        if kind == "time" && !runtime().is("pelagos") {
            continue;
        }
        let holder = Holder::new(&[option]);
        let host = of("thread-self");
        let joined = of(&holder.pid.to_string());
        let seen = ask(&[], |c| {
            namespace(c, kind)["path"] = json!(holder.path(name));
            c.as_object_mut().unwrap().remove("hostname");
        });
        for (_, other) in KINDS {
            let inside = &seen["namespaces"][other];
            if other == name {
                assert_eq!(inside, &joined[other], "{kind} is the joined one");
                assert_ne!(inside, &host[other]);
            } else {
                // Nothing else is taken over from the holder, which shares the rest with the host.
                let listed = matches!(other, "pid" | "net" | "ipc" | "uts" | "mnt" | "cgroup");
                assert_eq!(
                    inside != &host[other],
                    listed,
                    "{other} beside a joined {kind}"
                );
            }
        }
    }
}

#[test]
fn several_namespaces_can_be_joined_together() {
    requires!(root, command "unshare");
    let holder = Holder::new(&["--net", "--ipc", "--uts", "--pid", "--cgroup"]);
    let joined = of(&holder.pid.to_string());
    let seen = ask(&[], |c| {
        for (kind, name) in [
            ("network", "net"),
            ("ipc", "ipc"),
            ("uts", "uts"),
            ("pid", "pid"),
            ("cgroup", "cgroup"),
        ] {
            namespace(c, kind)["path"] = json!(holder.path(name));
        }
        c.as_object_mut().unwrap().remove("hostname");
    });
    for name in ["net", "ipc", "uts", "pid", "cgroup"] {
        assert_eq!(seen["namespaces"][name], joined[name]);
    }
}

#[test]
fn a_user_namespace_can_be_joined_by_path() {
    requires!(root, command "unshare");
    differs!("runc", "1.1 wants the maps listed as well");
    let holder = Holder::new(&["--user"]);
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", holder.pid), "0 100000 1000").unwrap();
    }

    let joined = of(&holder.pid.to_string());
    let seen = ask(&[], |c| {
        namespace(c, "user")["path"] = json!(holder.path("user"));
    });
    assert_eq!(seen["namespaces"]["user"], joined["user"]);
    assert_eq!(seen["uid_map"], json!([[0, 100_000, 1000]]));
    assert_eq!(seen["uid"], 0);
}

#[test]
fn a_joined_pid_namespace_is_the_one_that_proc_shows() {
    requires!(root, command "unshare");
    let holder = Holder::new(&["--pid"]);
    let seen = ask(&["read:/proc/1/comm"], |c| {
        namespace(c, "pid")["path"] = json!(holder.path("pid"));
    });
    assert_eq!(seen.text("read:/proc/1/comm"), "sleep\n");
    assert_ne!(seen["pid"], 1);
    assert_eq!(
        seen["sid"], seen["pid"],
        "a session of its own all the same"
    );
}

#[test]
fn a_namespace_path_that_does_not_fit_is_refused() {
    requires!(root);
    for path in [
        "/proc/self/ns/uts",
        "/proc/self/ns/nonesuch",
        "/etc/passwd",
        "relative",
    ] {
        refused(
            &asking(&[], |c| namespace(c, "network")["path"] = json!(path)),
            if path == "relative" {
                "must be absolute"
            } else {
                path
            },
        );
    }
}

#[test]
fn a_namespace_listed_twice_or_unknown_is_refused() {
    requires!(container);
    let push = |c: &mut Value, kind: &str| {
        c["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "type": kind }));
    };
    refused(&asking(&[], |c| push(c, "galaxy")), "galaxy");
    if runtime().is("crun") {
        return;
    }
    refused(
        &asking(&[], |c| push(c, "ipc")),
        "malformed spec file: duplicated ns",
    );
}

#[test]
fn the_user_namespace_has_the_configured_maps() {
    requires!(root);
    let seen = ask(&[], |c| {
        namespace(c, "user");
        c["linux"]["uidMappings"] = json!([
            { "containerID": 0, "hostID": 100_000, "size": 10 },
            { "containerID": 10, "hostID": 200_000, "size": 500 },
        ]);
        c["linux"]["gidMappings"] = json!([{ "containerID": 0, "hostID": 300_000, "size": 20 }]);
    });
    assert_eq!(
        seen["uid_map"],
        json!([[0, 100_000, 10], [10, 200_000, 500]])
    );
    assert_eq!(seen["gid_map"], json!([[0, 300_000, 20]]));
    assert_eq!(seen["setgroups"], "allow");
    assert_eq!(seen["uid"], 0);
    assert_eq!(seen["gid"], 0);
}

#[test]
fn a_process_of_a_user_namespace_is_the_mapped_user_outside() {
    requires!(root);
    let bundle = asking(&["create:/shared/made"], |c| {
        user_namespace(c);
        c["process"]["user"] = json!({ "uid": 7, "gid": 8, "additionalGids": [9] });
    });
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    fs::create_dir(bundle.rootfs("shared")).unwrap();
    fs::set_permissions(bundle.rootfs("shared"), fs::Permissions::from_mode(0o777)).unwrap();
    let seen = see(&bundle);
    assert_eq!(seen["groups"], json!([9]));
    let made = fs::metadata(bundle.rootfs("shared/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (100_007, 100_008));
}

#[test]
fn what_is_mounted_in_a_user_namespace_belongs_to_its_root() {
    requires!(root);
    let seen = ask(
        &[
            "stat:/dev/mqueue",
            "stat:/dev/shm",
            "stat:/dev/pts",
            "create:/dev/shm/x",
            "follow:/proc/self",
            "stat:/dev",
        ],
        user_namespace,
    );
    for path in ["/dev/mqueue", "/dev/shm", "/dev/pts", "/dev"] {
        assert_eq!(seen.ok(&format!("stat:{path}"))["uid"], 0, "{path}");
    }
    assert_eq!(seen.ok("follow:/proc/self")["uid"], 0);
    assert_eq!(seen.ok("create:/dev/shm/x"), true);
}

#[test]
fn a_user_namespace_and_its_maps_go_together() {
    requires!(root);
    differs!("crun", "it passes over maps, and makes up maps of its own");
    differs!("runc", "1.1 passes over maps, and goes on without any");
    refused(
        &asking(&[], |c| {
            user_namespace(c);
            without_namespace(c, "user");
        }),
        "user namespace mappings specified, but user namespace isn't enabled in the config",
    );
    refused(
        &asking(&[], |c| {
            namespace(c, "user");
        }),
        "user namespaces enabled, but no namespace path to join nor mappings to apply specified",
    );
}

#[test]
fn a_new_network_namespace_has_its_loopback_up_and_nothing_else() {
    requires!(root);
    let seen = ask(&["loopback", "interfaces"], |_| {});
    assert_eq!(seen.ok("loopback"), "hello");
    // Tunnel modules give every namespace devices of their own, which are down.
    let names = seen.ok("interfaces").as_array().unwrap();
    assert!(names.contains(&json!("lo")), "{names:?}");
    assert!(!names.contains(&json!("eth0")), "{names:?}");
}

#[test]
fn the_loopback_is_up_in_a_user_namespace_too() {
    requires!(root);
    assert_eq!(ask(&["loopback"], user_namespace).ok("loopback"), "hello");
}

#[test]
fn without_a_network_namespace_the_hosts_interfaces_are_there() {
    requires!(root);
    let seen = ask(&["interfaces"], |c| {
        without_namespace(c, "network");
        // A sysfs can only be mounted by who owns the network namespace; here it could, but it is not the matter.
        c["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|m| m["destination"] != "/sys");
    });
    let host: Vec<String> = fs::read_to_string("/proc/self/net/dev")
        .unwrap()
        .lines()
        .skip(2)
        .filter_map(|l| Some(l.split_once(':')?.0.trim().to_owned()))
        .collect();
    assert_eq!(seen.ok("interfaces"), &json!(host));
}

#[test]
fn a_new_pid_namespace_shows_its_own_processes_only() {
    requires!(container);
    let seen = ask(&["list:/proc"], |_| {});
    assert_eq!(processes(&seen), ["1"]);
}

#[test]
fn without_a_pid_namespace_the_hosts_processes_are_there() {
    requires!(root);
    let own = std::process::id().to_string();
    let seen = ask(&["list:/proc"], |c| without_namespace(c, "pid"));
    assert!(processes(&seen).contains(&own.as_str()));
    assert_ne!(seen["pid"], 1);
}

fn processes(seen: &Seen) -> Vec<&str> {
    seen.ok("list:/proc")
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .collect()
}

#[test]
fn a_new_cgroup_namespace_has_the_containers_own_group_as_its_root() {
    requires!(root);
    assert_eq!(ask(&[], |_| {})["cgroup"], "/");
    let bundle = asking(&[], |c| without_namespace(c, "cgroup"));
    assert_eq!(see(&bundle)["cgroup"], format!("/{}", bundle.id));
}

#[test]
fn a_time_namespace_has_the_configured_offsets() {
    requires!(root);
    differs!("runc", "since 1.2");
    differs!("crun", "1.8 does not know timeOffsets");
    let now = |clock| nix::time::clock_gettime(clock).unwrap().tv_sec();
    let (monotonic, boottime) = (
        now(nix::time::ClockId::CLOCK_MONOTONIC),
        now(nix::time::ClockId::CLOCK_BOOTTIME),
    );
    let seen = ask(&[], |c| {
        namespace(c, "time");
        c["linux"]["timeOffsets"] = json!({
            "monotonic": { "secs": 86400, "nanosecs": 500 },
            "boottime": { "secs": -100 },
        });
    });
    assert_eq!(seen["timens_offsets"]["monotonic"], json!([86400, 500]));
    assert_eq!(seen["timens_offsets"]["boottime"], json!([-100, 0]));
    let moved = |part: &str, since: i64| seen[part].as_i64().unwrap() - since;
    assert!((86400..86460).contains(&moved("monotonic", monotonic)));
    assert!((-100..-40).contains(&moved("boottime", boottime)));
}

#[test]
fn a_new_time_namespace_is_entered_by_the_payload_itself() {
    requires!(root);
    differs!("crun", "1.8 makes one together with a user namespace only");
    differs!("runc", "since 1.2");
    let host = of("thread-self");
    let seen = ask(&["read:/proc/self/timens_offsets"], |c| {
        namespace(c, "time");
    });
    assert_ne!(seen["namespaces"]["time"], host["time"]);
}

#[test]
fn time_offsets_need_a_new_time_namespace() {
    requires!(root);
    differs!("runc", "since 1.2");
    differs!("crun", "1.8 does not know timeOffsets");
    let offsets = json!({ "monotonic": { "secs": 1 } });
    refused(
        &asking(&[], |c| c["linux"]["timeOffsets"] = offsets.clone()),
        "time namespace offsets specified, but time namespace isn't enabled in the config",
    );
    refused(
        &asking(&[], |c| {
            namespace(c, "time")["path"] = json!("/proc/self/ns/time");
            c["linux"]["timeOffsets"] = offsets.clone();
        }),
        "time namespace",
    );
}

#[test]
fn a_container_may_share_the_callers_mount_namespace() {
    requires!(root);
    differs!("runc", "1.1 needs a /proc in the root");
    differs!("crun", "1.8 cannot undo its own mounts then");
    let mine = of("thread-self")["mnt"].clone();
    let table = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let before = table();
    let seen = ask(&["stat:/proc/self", "stat:/bin/busybox"], |c| {
        without_namespace(c, "mount");
        c["mounts"] = json!([]);
        c["linux"].as_object_mut().unwrap().remove("maskedPaths");
        c["linux"].as_object_mut().unwrap().remove("readonlyPaths");
        // Otherwise nodes are made in the bundle's own /dev, and without a mount they stay.
    });
    assert_eq!(
        seen.errno("stat:/proc/self"),
        "ENOENT",
        "no proc was asked for"
    );
    assert_eq!(
        seen.ok("stat:/bin/busybox")["type"],
        "file",
        "the bundle's root"
    );
    let propagation = |table: &str| -> Vec<String> {
        table
            .lines()
            .map(|l| l.split(" - ").next().unwrap_or(l).to_owned())
            .collect()
    };
    assert_eq!(
        propagation(&before),
        propagation(&table()),
        "the caller's own mounts"
    );
    assert!(!mine.is_empty());
}

/// A container with the caller's mount namespace, in which everything else is mounted as always.
fn with_the_callers_mounts(config: &mut Value) {
    without_namespace(config, "mount");
    let linux = config["linux"].as_object_mut().unwrap();
    linux.remove("maskedPaths");
    linux.remove("readonlyPaths");
}

fn mount_table() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

#[test]
fn mounts_in_the_callers_namespace_go_with_the_container() {
    requires!(root);
    differs!("runc", "they stay");
    differs!("crun", "they stay");
    let before = mount_table();
    let host = of("thread-self");
    let questions = [
        "create:/x",
        "create:/dev/shm/x",
        "stat:/dev/null",
        "list:/m",
    ];
    let bundle = asking(&questions, |c| {
        with_the_callers_mounts(c);
        c["root"]["readonly"] = json!(true);
        c["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/m", "type": "bind", "source": "data", "options": ["bind", "shared"],
        }));
    });
    fs::create_dir_all(bundle.path.join("data/there")).unwrap();
    let seen = see(&bundle);
    assert_eq!(seen["namespaces"]["mnt"], host["mnt"]);
    assert_eq!(seen.errno("create:/x"), "EROFS");
    assert_eq!(seen.ok("create:/dev/shm/x"), true);
    assert_eq!(seen.ok("stat:/dev/null")["type"], "char");
    assert_eq!(seen.ok("list:/m"), &json!(["there"]));
    assert_eq!(mount_table(), before);

    let waiting = Bundle::sleeping();
    waiting.edit(with_the_callers_mounts);
    waiting.up();
    // Everybody in the namespace sees them.
    let root = waiting.rootfs("").display().to_string();
    let root = root.trim_end_matches('/');
    assert!(mount_table().contains(&format!("{root}/proc ")));
    let seen = waiting.verb(["exec"]).arg(&waiting.id);
    let seen = seen.arg("cat").arg("/proc/1/comm").run().ok();
    assert_eq!(seen.stdout, "sleep\n");
    waiting.delete_force();
    assert_eq!(mount_table(), before);
    waiting.assert_nothing_left();
}

#[test]
fn mounts_in_the_callers_namespace_are_not_left_by_a_failure() {
    requires!(root);
    differs!("runc", "they stay");
    differs!("crun", "they stay");
    let before = mount_table();
    refused(
        &asking(&[], |c| {
            with_the_callers_mounts(c);
            c["mounts"].as_array_mut().unwrap().push(
                json!({ "destination": "/m", "type": "tmpfs", "source": "t", "options": ["size=x"] }),
            );
        }),
        "at \"/m\"",
    );
    assert_eq!(mount_table(), before);
    let bundle = asking(&[], |c| {
        with_the_callers_mounts(c);
        c["hooks"]["createRuntime"] =
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID"] }]);
    });
    assert_ne!(bundle.verb(["create"]).arg(&bundle.id).run().code(), 0);
    assert_ne!(mount_table(), before);
    bundle.delete_force();
    assert_eq!(mount_table(), before);
    // What somebody else has mounted there is not the container's to take away.
    let other = Bundle::sleeping();
    other.edit(with_the_callers_mounts);
    other.up();
    let root = other.rootfs("");
    let none = None::<&str>;
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("t"), &root, Some("tmpfs"), flags, none).unwrap();
    let refused = other.verb(["delete", "--force"]).arg(&other.id).run();
    refused.fails_with("another mount lies on it");
    nix::mount::umount(&root).unwrap();
    other.delete_force();
    assert_eq!(mount_table(), before);
}

#[test]
fn in_a_user_namespace_mounts_need_a_mount_namespace() {
    requires!(root);
    differs!("runc", "the kernel's own error");
    differs!("crun", "the kernel's own error");
    refused(
        &asking(&[], |c| {
            user_namespace(c);
            with_the_callers_mounts(c);
        }),
        "mounts: in a user namespace they need a mount namespace of the container's own",
    );
}

#[test]
fn masks_need_an_own_mount_namespace() {
    requires!(root);
    differs!("crun", "the paths are left as they are");
    refused(
        &asking(&[], |c| {
            without_namespace(c, "mount");
            c["mounts"] = json!([]);
        }),
        "unable to restrict sys entries without a private MNT namespace",
    );
}

#[test]
fn the_mount_namespace_shows_nothing_of_the_host() {
    requires!(container);
    let bundle = asking(&["list:/"], |_| {});
    let seen = see(&bundle);
    let own: Vec<&str> = seen.targets();
    for target in &own {
        let configured = *target == "/"
            || ["/proc", "/dev", "/sys"]
                .iter()
                .any(|top| target.starts_with(top));
        assert!(configured, "{target} of {own:?}");
    }
    assert_eq!(own.iter().filter(|t| **t == "/").count(), 1, "{own:?}");
    let path = bundle.path.to_str().unwrap();
    for mount in seen.mounts() {
        assert!(!mount.target().contains(path), "{mount:?}");
    }
}

#[test]
fn the_callers_mounts_are_not_changed() {
    requires!(root);
    let table = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let before = table();
    let bundle = asking(&[], |_| {});
    answers(&bundle.run().ok());
    assert_eq!(before, table());
}
