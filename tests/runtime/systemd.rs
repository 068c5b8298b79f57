//! The systemd driver: the unit that a container is, as root and as a user.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::driver::{Driven, Driver, properties, state_of, systemctl};
use crate::support::needs;
use crate::support::{Bundle, eventually, process_args, runtime};

fn sleeping(edit: impl FnOnce(&mut Value)) -> Driven {
    Driven::new(Driver::Systemd, |config| {
        process_args(config, ["sleep", "1000"]);
        edit(config);
    })
}

fn slices() -> &'static str {
    if needs::is_root() {
        "system.slice"
    } else {
        "user.slice"
    }
}

#[test]
fn a_container_is_a_scope_in_its_slice() {
    requires!(container, systemd);
    let driven = sleeping(|_| {});
    driven.up();
    let unit = driven.unit();
    assert!(
        driven.group().ends_with(Path::new(slices()).join(&unit)),
        "{}",
        driven.group().display()
    );
    assert_eq!(
        properties(&unit, "ActiveState,Delegate,Slice"),
        [
            "ActiveState=active",
            "Delegate=yes",
            &format!("Slice={}", slices())
        ]
    );
    // The group is the root of the container's cgroup namespace.
    let namespace = fs::read_link(format!("/proc/{}/ns/cgroup", driven.bundle.pid())).unwrap();
    assert_ne!(namespace, fs::read_link("/proc/self/ns/cgroup").unwrap());
    driven.end();
}

#[test]
fn slices_are_made_in_each_other() {
    requires!(container, systemd);
    let driven = sleeping(|_| {});
    let word = driven.bundle.id.replace('-', "");
    driven.bundle.edit(|config| {
        config["linux"]["cgroupsPath"] =
            json!(format!("{word}-inner.slice:pelagos:{}", driven.bundle.id));
    });
    driven.up();
    let expected = format!("{word}.slice/{word}-inner.slice/{}", driven.unit());
    assert!(
        driven.group().ends_with(&expected),
        "{}",
        driven.group().display()
    );
    driven.end();
    systemctl(&["stop", &format!("{word}.slice")]);
}

#[test]
fn without_a_path_the_unit_has_the_containers_id() {
    requires!(container, systemd);
    let driven = sleeping(|config| config["linux"]["cgroupsPath"] = json!(""));
    driven.up();
    let name = driven
        .group()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let prefix = runtime().name().to_owned();
    assert_eq!(name, format!("{prefix}-{}.scope", driven.bundle.id));
    driven.bundle.delete_force();
    driven.bundle.assert_nothing_left();
}

#[test]
fn limits_are_properties_and_survive_a_reload() {
    requires!(container, systemd, limits);
    let limits = json!({
        "memory": { "limit": 64 << 20, "reservation": 16 << 20, "swap": 96 << 20 },
        "cpu": { "quota": 30_000, "period": 100_000, "shares": 512, "cpus": "0", "mems": "0" },
        "pids": { "limit": 40 },
        "blockIO": { "weight": 100 },
    });
    let driven = sleeping(|config| crate::driver::limit(config, &limits));
    driven.up();
    let names = "MemoryMax,MemoryLow,MemorySwapMax,TasksMax,CPUQuotaPerSecUSec,CPUWeight,AllowedCPUs,AllowedMemoryNodes,IOWeight";
    let expected = [
        "AllowedCPUs=0",
        "AllowedMemoryNodes=0",
        "CPUQuotaPerSecUSec=300ms",
        "CPUWeight=59",
        "IOWeight=910",
        "MemoryLow=16777216",
        "MemoryMax=67108864",
        "MemorySwapMax=33554432",
        "TasksMax=40",
    ];
    if runtime().is("pelagos") {
        assert_eq!(properties(&driven.unit(), names), expected);
    }
    let files = [
        "memory.max",
        "memory.low",
        "memory.swap.max",
        "pids.max",
        "cpu.max",
        "cpu.weight",
        "cpuset.cpus",
    ];
    let before = driven.files(&files);
    systemctl(&["daemon-reload"]);
    assert_eq!(driven.files(&files), before);
    // And so does what was changed since.
    driven.update(&[
        "--memory",
        "50M",
        "--pids-limit",
        "30",
        "--cpu-quota",
        "12345",
    ]);
    let before = driven.files(&files);
    assert_eq!(before[0], (50 << 20).to_string());
    assert_eq!(before[4], "12345 100000");
    systemctl(&["daemon-reload"]);
    assert_eq!(driven.files(&files), before);
    driven.end();
}

#[test]
fn a_container_that_is_idle_no_longer_is_so_after_a_reload_too() {
    requires!(container, systemd, limits);
    differs!("runc", "1.1 does not know idle");
    differs!("crun", "1.8 does not tell systemd");
    let driven = sleeping(|_| {});
    driven.up();
    for (idle, property) in [("1", "CPUWeight=idle"), ("0", "CPUWeight=100")] {
        driven.update(&["--cpu-idle", idle]);
        assert_eq!(properties(&driven.unit(), "CPUWeight"), [property]);
        systemctl(&["daemon-reload"]);
        assert_eq!(driven.files(&["cpu.idle"]), [idle]);
    }
    assert_eq!(driven.files(&["cpu.weight"]), ["100"]);
    driven.end();
}

#[test]
fn device_rules_survive_a_reload() {
    requires!(root, systemd, device_rules);
    differs!("crun", "1.8 loses them");
    for rules in [
        json!([{ "allow": false, "access": "rwm" }]),
        // Rules with an exception, for which systemd has no words.
        json!([{ "allow": true, "access": "rwm" }, { "allow": false, "type": "c", "major": 1, "minor": 11, "access": "rw" }]),
    ] {
        let driven = Driven::new(Driver::Systemd, |config| {
            crate::inside::privileged(config);
            crate::support::sh(
                config,
                "n=0; while true; do if true 2>/dev/null </dev/log0; then echo yes; else echo no; fi >/tmp/answer; n=$((n + 1)); echo $n >/tmp/count; sleep 0.05; done",
            );
            config["linux"]["devices"] = json!([{ "path": "/dev/log0", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666 }]);
            config["linux"]["resources"]["devices"] = rules.clone();
        });
        driven.up();
        let count = || {
            let text = fs::read_to_string(driven.bundle.rootfs("tmp/count")).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        let refused = || {
            let begun: u64 = count();
            assert!(eventually(|| count() > begun + 2));
            fs::read_to_string(driven.bundle.rootfs("tmp/answer")).unwrap() == "no\n"
        };
        assert!(refused(), "{rules}");
        systemctl(&["daemon-reload"]);
        assert!(refused(), "after a reload: {rules}");
        driven.update(&["--pids-limit", "100"]);
        assert!(refused(), "after an update: {rules}");
        driven.end();
    }
}

#[test]
fn annotations_are_properties_of_the_unit() {
    requires!(container, systemd);
    let driven = sleeping(|config| {
        config["annotations"] = json!({
            "org.systemd.property.TimeoutStopSec": "uint64 42",
            "org.systemd.property.Description": "'a box'",
            "org.systemd.property.CollectMode": "'inactive'",
        });
    });
    driven.up();
    assert_eq!(
        properties(&driven.unit(), "TimeoutStopUSec,Description,CollectMode"),
        [
            "CollectMode=inactive",
            "Description=a box",
            "TimeoutStopUSec=42s"
        ]
    );
    driven.end();
}

#[test]
fn what_systemd_does_not_take_is_one_error() {
    requires!(container, systemd);
    differs!("crun", "it has words of its own");
    differs!("runc", "it has words of its own");
    let cases: [(&str, &str); 5] = [
        (
            "/a/b",
            "expected cgroupsPath to be of format \"slice:prefix:name\"",
        ),
        ("a/b.slice:x:y", "invalid slice name"),
        ("a:x:y", "invalid slice name"),
        ("::", "the name is empty"),
        (":x:a b", "is no name of a unit"),
    ];
    for (path, words) in cases {
        let driven = sleeping(|config| config["linux"]["cgroupsPath"] = json!(path));
        driven
            .verb(["create", &driven.bundle.id])
            .run()
            .fails_with(words);
        driven.bundle.assert_nothing_left();
    }
    for (name, text, words) in [
        ("No", "1", "not a name of three letters"),
        ("Description", "box", "value parse error"),
        ("NoSuchThing", "'x'", "NoSuchThing"),
    ] {
        let driven = sleeping(|config| {
            config["annotations"] = json!({ format!("org.systemd.property.{name}"): text });
        });
        driven
            .verb(["create", &driven.bundle.id])
            .run()
            .fails_with(words);
        driven.bundle.assert_nothing_left();
        assert_eq!(state_of(&driven.unit()), "inactive");
    }
}

#[test]
fn without_a_bus_nothing_is_made() {
    requires!(rootless, systemd);
    let driven = sleeping(|_| {});
    let outcome = driven
        .verb(["create", &driven.bundle.id])
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/no/such/bus")
        .env("XDG_RUNTIME_DIR", driven.bundle.state_root.as_os_str())
        .run();
    outcome.fails_with("connect to the user's bus /no/such/bus");
    driven.bundle.assert_nothing_left();
}

#[test]
fn the_managers_own_socket_serves_where_there_is_no_bus() {
    requires!(rootless, systemd);
    let driven = sleeping(|_| {});
    let dir = std::path::PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR").unwrap());
    if !dir.join("systemd/private").exists() {
        return;
    }
    let own = driven.bundle.beside("run");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::symlink(dir.join("systemd"), own.join("systemd")).unwrap();
    driven
        .verb(["create", &driven.bundle.id])
        .env("DBUS_SESSION_BUS_ADDRESS", "")
        .env("XDG_RUNTIME_DIR", &own)
        .ok();
    assert_eq!(state_of(&driven.unit()), "active");
    driven.end();
}

/// Whoever has no right to the cgroup that both lie in: a user in a session, whose manager has the container.
#[test]
fn systemd_puts_what_a_user_executes_from_a_session_into_the_scope() {
    fn here() {}
    requires!(root, systemd, command "setpriv");
    const USER: u32 = 1000;
    let runtime_dir = format!("/run/user/{USER}");
    if !Path::new(&runtime_dir).join("bus").exists() {
        needs::skip(
            std::any::type_name_of_val(&here),
            "user",
            "no manager of a user runs",
        );
        return;
    }
    let driven = Driven::new(Driver::Systemd, |_| {});
    let bundle = &driven.bundle;
    let path = bundle.config()["linux"]["cgroupsPath"].clone();
    fs::remove_file(bundle.path.join("config.json")).unwrap();
    let files = fs::read_dir(bundle.rootfs("")).unwrap().flatten();
    let mut own: Vec<_> = files.map(|entry| entry.path()).collect();
    own.extend([
        bundle.path.clone(),
        bundle.state_root.clone(),
        bundle.rootfs(""),
    ]);
    for path in own {
        std::os::unix::fs::lchown(path, Some(USER), Some(USER)).unwrap();
    }
    let call = |args: &[&str]| {
        driven
            .verb(args)
            .under([
                "setpriv",
                &format!("--reuid={USER}"),
                &format!("--regid={USER}"),
                "--clear-groups",
                "--inh-caps=-all",
            ])
            .env("XDG_RUNTIME_DIR", &runtime_dir)
            .env(
                "DBUS_SESSION_BUS_ADDRESS",
                format!("unix:path={runtime_dir}/bus"),
            )
            .ok()
    };
    call(&["spec", "--rootless"]);
    bundle.edit(|config| {
        crate::support::sh(config, "sleep 1000");
        config["process"]["terminal"] = json!(false);
        config["linux"]["cgroupsPath"] = path.clone();
    });
    call(&["run", "--detach", &bundle.id]);
    let group_of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let scope = group_of(&bundle.pid().to_string());
    assert!(scope.contains(&format!("user@{USER}.service")), "{scope}");
    assert!(scope.contains(&driven.unit()), "{scope}");
    let pid_file = bundle.path.join("pid");
    call(&[
        "exec",
        "--detach",
        "--pid-file",
        pid_file.to_str().unwrap(),
        &bundle.id,
        "sleep",
        "1000",
    ]);
    let pid = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(group_of(&pid), scope);
    call(&["delete", "--force", &bundle.id]);
    bundle.assert_nothing_left();
}

#[test]
fn a_unit_that_is_somebody_elses_is_left_alone() {
    requires!(container, systemd);
    let first = sleeping(|_| {});
    first.up();
    let second = sleeping(|config| {
        config["linux"]["cgroupsPath"] = json!(format!(":pelagos:{}", first.bundle.id));
    });
    let outcome = second.verb(["create", &second.bundle.id]).run();
    assert_eq!(outcome.code(), 1, "{outcome}");
    second.bundle.assert_nothing_left();
    assert_eq!(first.bundle.status(), "running");
    assert_eq!(state_of(&first.unit()), "active");
    first.end();
}

#[test]
fn a_container_that_cannot_start_leaves_no_unit() {
    requires!(container, systemd);
    let driven = Driven::new(Driver::Systemd, |config| {
        process_args(config, ["/no/such/program"]);
    });
    let outcome = driven.verb(["run", &driven.bundle.id]).run();
    assert_ne!(outcome.code(), 0, "{outcome}");
    driven.bundle.assert_nothing_left();
    assert_eq!(state_of(&driven.unit()), "inactive");
}

#[test]
fn a_run_leaves_no_unit_and_can_be_repeated_at_once() {
    requires!(container, systemd);
    let driven = Driven::new(Driver::Systemd, |_| {});
    for _ in 0..5 {
        driven.verb(["run", &driven.bundle.id]).ok();
        assert_eq!(state_of(&driven.unit()), "inactive");
    }
    driven.bundle.assert_nothing_left();
}

/// The scope is forgotten although it failed, and also where an annotation keeps systemd from doing so by itself.
#[test]
fn a_unit_that_failed_is_cleared_with_its_container() {
    requires!(container, systemd, limits);
    for mode in ["inactive-or-failed", "inactive"] {
        let driven = Driven::new(Driver::Systemd, |config| {
            crate::support::sh(config, "dd if=/dev/zero of=/dev/null bs=200M count=1");
            config["annotations"] = json!({
                "org.systemd.property.OOMPolicy": "'kill'",
                "org.systemd.property.CollectMode": format!("'{mode}'"),
            });
            crate::driver::limit(
                config,
                &json!({ "memory": { "limit": 48 << 20, "swap": 48 << 20 } }),
            );
        });
        driven.up();
        driven.bundle.wait_for("stopped");
        driven.bundle.delete();
        driven.bundle.assert_nothing_left();
        assert!(
            eventually(|| state_of(&driven.unit()) == "inactive"),
            "{mode}: {}",
            state_of(&driven.unit())
        );
    }
}

/// A create that is killed at any of its steps: `delete --force` finds the unit by the record.
#[test]
fn a_killed_create_is_cleaned_up_by_force() {
    requires!(container, systemd, command "strace");
    if !runtime().is("pelagos") {
        return;
    }
    // The calls around the making of the scope, each time before it is carried out.
    for (call, when) in [
        ("connect", 1),
        ("clone3", 1),
        ("sendto", 1),
        ("recvfrom", 2),
        ("write", 4),
        ("sendmsg", 1),
        ("sendmsg", 2),
        ("rename", 2),
    ] {
        let driven = sleeping(|_| {});
        let inject = format!("inject={call}:signal=KILL:when={when}");
        let outcome = driven
            .verb(["create", &driven.bundle.id])
            .under([
                "strace",
                "-qq",
                "-e",
                &format!("trace={call}"),
                "-e",
                &inject,
            ])
            .run();
        drop(outcome);
        driven.bundle.delete_force();
        driven.bundle.assert_nothing_left();
        assert!(
            eventually(|| state_of(&driven.unit()) == "inactive"),
            "{call} {when}"
        );
    }
}

#[test]
fn groups_that_the_container_made_go_with_its_unit() {
    requires!(container, systemd);
    for running in [true, false] {
        let driven = sleeping(|_| {});
        driven.up();
        let group = driven.group();
        let inner = group.join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::create_dir(group.join("c")).unwrap();
        // The init itself moves, as an init system does.
        fs::write(inner.join("cgroup.procs"), driven.bundle.pid().to_string()).unwrap();
        let list = driven
            .verb(["ps", "-f", "json", &driven.bundle.id])
            .ok()
            .json();
        assert_eq!(list, json!([driven.bundle.pid().as_raw()]));
        if !running {
            driven.bundle.kill("KILL");
            driven.bundle.wait_for("stopped");
        }
        driven.end();
        assert!(!group.exists());
    }
}

#[test]
fn the_payload_has_no_descriptor_of_the_bus() {
    requires!(container, systemd);
    let driven = Driven::new(Driver::Systemd, |config| {
        config["process"]["args"] = json!(["/probe"]);
    });
    crate::inside::place_probe(&driven.bundle.rootfs("probe"));
    let outcome = driven.verb(["run", &driven.bundle.id]).ok();
    let seen = crate::inside::answers(&outcome);
    let fds: Vec<_> = seen["fds"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(fds, ["0", "1", "2"]);
}

/// Many at once, on both drivers: no group, no scope, no program of device rules is left.
#[test]
fn a_hundred_containers_at_once_leave_nothing() {
    requires!(container, systemd, limits);
    for driver in [Driver::Systemd, Driver::Cgroupfs] {
        a_hundred_at_once(driver);
    }
}

fn a_hundred_at_once(driver: Driver) {
    let all: Vec<_> = (0..100)
        .map(|_| Driven::sh(driver, "sleep 1000", &json!({ "pids": { "limit": 40 } })))
        .collect();
    let each = |args: &dyn Fn(&str) -> Vec<String>| {
        let calls: Vec<_> = all
            .iter()
            .map(|driven| {
                let call = driven.verb(args(&driven.bundle.id));
                call.limit(std::time::Duration::from_secs(120)).spawn()
            })
            .collect();
        for call in calls {
            call.wait().ok();
        }
    };
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(|w| (*w).to_owned()).collect() };
    each(&|id| words(&["create", id]));
    let programs: Vec<u64> = all
        .iter()
        .flat_map(|driven| programs_of(&driven.group()))
        .collect();
    if needs::is_root() {
        assert!(programs.len() >= all.len(), "{}", programs.len());
    }
    each(&|id| words(&["start", id]));
    each(&|id| words(&["update", "--pids-limit", "30", id]));
    for driven in &all {
        assert_eq!(driven.files(&["pids.max"]), ["30"]);
    }
    each(&|id| words(&["pause", id]));
    each(&|id| words(&["delete", "--force", id]));
    for driven in &all {
        driven.bundle.assert_nothing_left();
    }
    assert!(eventually(|| all
        .iter()
        .all(|d| state_of(&d.unit()) == "inactive")));
    assert!(eventually(|| {
        let left = all_programs();
        programs.iter().all(|id| !left.contains(id))
    }));
}

/// The numbers of the programs attached to a group.
fn programs_of(group: &Path) -> Vec<u64> {
    ids(&["cgroup", "show", group.to_str().unwrap(), "--json"])
}

fn all_programs() -> Vec<u64> {
    ids(&["prog", "show", "--json"])
}

fn ids(args: &[&str]) -> Vec<u64> {
    if !needs::is_root() {
        return Vec::new();
    }
    let output = std::process::Command::new("bpftool")
        .args(args)
        .output()
        .expect("bpftool");
    let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|program| program["id"].as_u64())
        .collect()
}

#[test]
fn a_host_without_systemd_says_so() {
    requires!(container);
    if Path::new("/run/systemd/system").exists() || !runtime().is("pelagos") {
        return;
    }
    let bundle = Bundle::sleeping();
    bundle.edit(|config| config["linux"]["cgroupsPath"] = json!(""));
    bundle
        .verb(["--systemd-cgroup", "create", &bundle.id])
        .run()
        .fails_with("systemd not running on this host, cannot use systemd cgroups manager");
    bundle.assert_nothing_left();
}
