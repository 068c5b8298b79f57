//! The container's control group: where it is, what its files say, what its limits do.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, openat};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::write;
use serde_json::{Value, json};

use crate::inside::{Seen, answers, ask, asking, refused, see, user_namespace, without_namespace};
use crate::support::needs::{self, CGROUPS};
use crate::support::{Bundle, eventually, mounts, patience, runtime};

/// See the own group at `/sys/fs/cgroup`.
fn group_inside(config: &mut Value) {
    mounts(config).push(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
    }));
}

/// Set `linux.resources`, keeping the device rules of the template.
fn resources(config: &mut Value, more: &Value) {
    for (key, value) in more.as_object().expect("resources") {
        config["linux"]["resources"][key] = value.clone();
    }
}

/// Run with these resources, and read these files of the group from inside.
#[track_caller]
fn limited(more: &Value, files: &[&str]) -> Vec<String> {
    let questions: Vec<String> = files
        .iter()
        .map(|file| format!("read:/sys/fs/cgroup/{file}"))
        .collect();
    let asked: Vec<&str> = questions.iter().map(String::as_str).collect();
    let seen = ask(&asked, |c| {
        group_inside(c);
        resources(c, more);
    });
    questions
        .iter()
        .map(|q| seen.text(q).trim().to_owned())
        .collect()
}

fn has_file(name: &str) -> bool {
    // Files of a controller are in every group but the root.
    let probe = Path::new(CGROUPS).join("pelagos-test-files");
    fs::create_dir(&probe).ok();
    let there = probe.join(name).exists();
    fs::remove_dir(&probe).ok();
    there
}

#[test]
fn the_payload_is_in_the_configured_group() {
    requires!(root);
    let bundle = asking(&["await:/go"], |_| {});
    bundle.up();
    let procs = fs::read_to_string(bundle.cgroup().join("cgroup.procs")).unwrap();
    assert_eq!(procs.trim(), bundle.pid().to_string());
    let table = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).unwrap();
    assert!(table.contains(&format!("0::/{}\n", bundle.id)), "{table}");
    fs::write(bundle.rootfs("go"), "").unwrap();
    bundle.wait_for("stopped");
    bundle.delete();
    assert!(!bundle.cgroup().exists());
}

#[test]
fn a_nested_path_is_made_and_the_leaf_removed() {
    requires!(root);
    let bundle = asking(&[], |c| without_namespace(c, "cgroup"));
    let parent = Path::new(CGROUPS).join(&bundle.id);
    bundle.edit(|c| c["linux"]["cgroupsPath"] = json!(format!("/{}/one/two", bundle.id)));
    let seen = see(&bundle);
    assert_eq!(seen["cgroup"], format!("/{}/one/two", bundle.id));
    assert!(!parent.join("one/two").exists());
    fs::remove_dir(parent.join("one")).ok();
    fs::remove_dir(parent).ok();
}

#[test]
fn without_a_path_the_group_has_the_containers_id() {
    requires!(root);
    let bundle = asking(&[], |c| {
        without_namespace(c, "cgroup");
        c["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    });
    let seen = see(&bundle);
    let path = seen["cgroup"].as_str().expect("a group");
    assert!(path.ends_with(&format!("/{}", bundle.id)), "{path}");
    bundle.assert_nothing_left();
}

#[test]
fn a_relative_path_is_beside_the_runtimes_own_group() {
    requires!(root);
    differs!("crun", "it is under the root of the hierarchy");
    let bundle = asking(&[], |c| without_namespace(c, "cgroup"));
    bundle.edit(|c| c["linux"]["cgroupsPath"] = json!(bundle.id));
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|l| l.strip_prefix("0::")).unwrap();
    let parent = own.rsplit_once('/').map_or("", |(parent, _)| parent);
    assert_eq!(see(&bundle)["cgroup"], format!("{parent}/{}", bundle.id));
    bundle.assert_nothing_left();
}

#[test]
fn a_path_cannot_leave_the_hierarchy() {
    requires!(root);
    differs!("crun", "1.8 follows the dots");
    let bundle = asking(&[], |_| {});
    bundle.edit(|c| c["linux"]["cgroupsPath"] = json!(format!("/../../../tmp/{}", bundle.id)));
    drop(bundle.run());
    assert!(!Path::new("/tmp").join(&bundle.id).exists());
    for dir in ["tmp", "../tmp"] {
        fs::remove_dir(Path::new(CGROUPS).join(dir).join(&bundle.id)).ok();
        fs::remove_dir(Path::new(CGROUPS).join(dir)).ok();
    }
}

#[test]
fn groups_that_the_container_made_are_removed_with_it() {
    requires!(root);
    let bundle = asking(&["await:/go"], |_| {});
    bundle.up();
    fs::create_dir_all(bundle.cgroup().join("a/b/c")).unwrap();
    fs::create_dir_all(bundle.cgroup().join("d")).unwrap();
    kill(bundle.pid(), Signal::SIGKILL).unwrap();
    bundle.wait_for("stopped");
    bundle.delete();
    assert!(!bundle.cgroup().exists());
}

#[test]
fn what_the_container_made_is_removed_as_fast_as_it_was_made() {
    requires!(root);
    let bundle = Bundle::sleeping();
    bundle.up();
    let begun = Instant::now();
    for number in 0..2000 {
        let dir = bundle.cgroup().join(format!("{number}/below"));
        fs::create_dir_all(dir).unwrap();
    }
    let making = begun.elapsed();
    bundle.kill("KILL");
    bundle.wait_for("stopped");
    let begun = Instant::now();
    bundle.delete().ok();
    let removing = begun.elapsed();
    assert!(!bundle.cgroup().exists());
    let bound = making * 10 + patience(Duration::from_secs(1));
    assert!(removing < bound, "{removing:?} after {making:?}");
}

#[test]
fn processes_are_found_however_deep_they_are() {
    requires!(root);
    differs!("runc", "1.1 opens them by path");
    differs!("crun", "1.8 opens them by path");
    let bundle = Bundle::sleeping();
    bundle.up();
    // Deeper than a path can be long.
    let open_dir = |at: BorrowedFd<'_>, name: &str| {
        openat(
            at,
            name,
            OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .unwrap()
    };
    let mut dir = OwnedFd::from(fs::File::open(bundle.cgroup()).unwrap());
    let name = "x".repeat(250);
    for _ in 0..20 {
        mkdirat(&dir, name.as_str(), Mode::S_IRWXU).unwrap();
        dir = open_dir(dir.as_fd(), &name);
    }
    let list = openat(
        &dir,
        "cgroup.procs",
        OFlag::O_WRONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    write(list.unwrap(), bundle.pid().to_string().as_bytes()).unwrap();
    let shown = bundle.verb(["ps", "--format", "json", &bundle.id]).ok();
    assert_eq!(shown.stdout.trim(), format!("[{}]", bundle.pid()));
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn a_group_whose_controllers_are_for_those_below_it_is_refused_in_words() {
    requires!(root, controller "memory");
    let bundle = Bundle::sleeping();
    fs::create_dir(bundle.cgroup()).unwrap();
    for group in [Path::new(CGROUPS), &bundle.cgroup()] {
        fs::write(group.join("cgroup.subtree_control"), "+memory").unwrap();
    }
    let outcome = bundle.verb(["create", &bundle.id]).run();
    let left = bundle.leftovers();
    fs::remove_dir(bundle.cgroup()).unwrap();
    if runtime().is("pelagos") {
        let words = format!(
            "cgroup /{} can hold no process: its cgroup.subtree_control enables memory",
            bundle.id
        );
        outcome.fails_with(&words);
        // It was there before, and stays.
        assert_eq!(
            left,
            [format!("control group {}", bundle.cgroup().display())]
        );
    } else {
        assert_ne!(outcome.code(), 0, "{outcome}");
    }
    bundle.assert_nothing_left();
}

#[test]
fn a_group_that_is_in_use_is_refused() {
    requires!(root);
    differs!("crun", "1.8 shares it");
    let first = asking(&["await:/go"], |_| {});
    first.up();
    let second = asking(&[], |c| {
        c["linux"]["cgroupsPath"] = json!(format!("/{}", first.id));
    });
    let outcome = second.run();
    if runtime().is("pelagos") {
        outcome.fails_with("container's cgroup is not empty");
    } else if outcome.code() == 0 {
        // runc 1.1 warns only.
        assert!(outcome.stderr.contains("not empty"), "{outcome}");
        return;
    }
    assert_eq!(
        first.status(),
        "running",
        "the other container is left alone"
    );
    assert!(first.cgroup().exists());
}

#[test]
fn the_group_of_a_container_that_could_not_be_made_is_gone() {
    requires!(root);
    let bundle = asking(&[], |c| c["process"]["args"] = json!(["/no/such/program"]));
    assert_ne!(bundle.run().code(), 0);
    if !runtime().is("crun") {
        assert!(!bundle.cgroup().exists());
    }
}

#[test]
fn memory_limits_are_written() {
    requires!(root, controller "memory");
    let mib = |n: i64| n << 20;
    let files = ["memory.max", "memory.low"];
    let found = limited(
        &json!({ "memory": { "limit": mib(64), "reservation": mib(32) } }),
        &files,
    );
    assert_eq!(found, [mib(64).to_string(), mib(32).to_string()]);
    let found = limited(&json!({ "memory": { "limit": -1 } }), &["memory.max"]);
    assert_eq!(found, ["max"]);
    if !has_file("memory.swap.max") {
        return;
    }
    // The specification's swap is memory and swap together.
    let found = limited(
        &json!({ "memory": { "limit": mib(64), "swap": mib(96) } }),
        &["memory.max", "memory.swap.max"],
    );
    assert_eq!(found, [mib(64).to_string(), mib(32).to_string()]);
    let found = limited(
        &json!({ "memory": { "limit": mib(64), "swap": mib(64) } }),
        &["memory.swap.max"],
    );
    assert_eq!(found, ["0"]);
    let found = limited(
        &json!({ "memory": { "limit": mib(64), "swap": -1 } }),
        &["memory.swap.max"],
    );
    assert_eq!(found, ["max"]);
    // Where memory has no limit, it is swap alone.
    let found = limited(
        &json!({ "memory": { "limit": -1, "swap": mib(96) } }),
        &["memory.max", "memory.swap.max"],
    );
    assert_eq!(found, ["max".to_owned(), mib(96).to_string()]);
}

#[test]
fn contradictory_memory_limits_are_refused() {
    requires!(root, controller "memory");
    refused(
        &asking(&[], |c| {
            resources(c, &json!({ "memory": { "swap": 1 << 26 } }));
        }),
        "unable to set swap limit without memory limit",
    );
    refused(
        &asking(&[], |c| {
            resources(
                c,
                &json!({ "memory": { "limit": 1 << 26, "swap": 1 << 25 } }),
            );
        }),
        "memory+swap limit should be >= memory limit",
    );
}

#[test]
fn more_memory_than_allowed_is_death() {
    requires!(root, controller "memory");
    let bundle = asking(&["memory:200"], |c| {
        resources(
            c,
            &json!({ "memory": { "limit": 48 << 20, "swap": 48 << 20 } }),
        );
    });
    let outcome = bundle.run();
    assert_eq!(outcome.code(), 128 + 9, "{outcome}");
    bundle.assert_nothing_left();
    // Within the limit it lives.
    let bundle = asking(&["memory:8"], |c| {
        resources(
            c,
            &json!({ "memory": { "limit": 64 << 20, "swap": 64 << 20 } }),
        );
    });
    assert_eq!(see(&bundle).ok("memory:8"), 2048);
}

#[test]
fn cpu_limits_are_written() {
    requires!(root, controller "cpu");
    let cases: [(Value, &str, &str); 7] = [
        (
            json!({ "quota": 50_000, "period": 100_000 }),
            "cpu.max",
            "50000 100000",
        ),
        (json!({ "quota": 50_000 }), "cpu.max", "50000 100000"),
        (
            json!({ "quota": -1, "period": 200_000 }),
            "cpu.max",
            "max 200000",
        ),
        (json!({ "period": 50_000 }), "cpu.max", "max 50000"),
        (json!({ "shares": 2 }), "cpu.weight", "1"),
        (json!({ "shares": 262_144 }), "cpu.weight", "10000"),
        (json!({ "idle": 1 }), "cpu.idle", "1"),
    ];
    for (cpu, file, text) in cases {
        assert_eq!(limited(&json!({ "cpu": cpu }), &[file]), [text], "{cpu}");
    }
    if runtime().is("pelagos") {
        // The formula of runc 1.5 and crun 1.23: 1024 shares, the default of many, are the default weight.
        for (shares, weight) in [(1024, "100"), (512, "59"), (2048, "174"), (4096, "303")] {
            assert_eq!(
                limited(&json!({ "cpu": { "shares": shares } }), &["cpu.weight"]),
                [weight]
            );
        }
        assert_eq!(
            limited(
                &json!({ "cpu": { "quota": 50_000, "burst": 20_000 } }),
                &["cpu.max.burst"]
            ),
            ["20000"]
        );
    }
}

#[test]
fn the_cpus_of_the_payload_are_the_listed_ones() {
    requires!(root, controller "cpuset");
    let seen = ask(
        &[
            "read:/sys/fs/cgroup/cpuset.cpus",
            "read:/sys/fs/cgroup/cpuset.mems",
        ],
        |c| {
            group_inside(c);
            resources(c, &json!({ "cpu": { "cpus": "0", "mems": "0" } }));
        },
    );
    assert_eq!(seen.text("read:/sys/fs/cgroup/cpuset.cpus"), "0\n");
    assert_eq!(seen.text("read:/sys/fs/cgroup/cpuset.mems"), "0\n");
    assert_eq!(seen["cpus"], "0");
}

#[test]
fn limits_of_processes_are_written() {
    requires!(root, controller "pids");
    assert_eq!(
        limited(&json!({ "pids": { "limit": 100 } }), &["pids.max"]),
        ["100"]
    );
    assert_eq!(
        limited(&json!({ "pids": { "limit": -1 } }), &["pids.max"]),
        ["max"]
    );
    if runtime().is("pelagos") {
        assert_eq!(
            limited(&json!({ "pids": { "limit": 0 } }), &["pids.max"]),
            ["1"]
        );
    }
}

#[test]
fn more_processes_than_allowed_are_refused() {
    requires!(root, controller "pids");
    let seen = ask(&["fork:50"], |c| {
        resources(c, &json!({ "pids": { "limit": 10 } }));
    });
    let answer = &seen["answers"]["fork:50"];
    assert_eq!(answer["stopped"], "EAGAIN");
    assert_eq!(answer["ok"], 9, "the payload itself is the tenth");
}

#[test]
fn input_and_output_limits_are_written() {
    requires!(root, controller "io");
    if has_file("io.weight") {
        let found = limited(&json!({ "blockIO": { "weight": 1000 } }), &["io.weight"]);
        assert!(
            found[0].contains("10000") || found[0].contains("1000"),
            "{found:?}"
        );
    }
    let disks = fs::read_dir("/sys/block").expect("/sys/block");
    // A limit can be set on any whole disk; a loop device without a file will do.
    let Some(disk) = disks
        .flatten()
        .find_map(|d| fs::read_to_string(d.path().join("dev")).ok())
    else {
        return;
    };
    let (major, minor) = disk.trim().split_once(':').expect("MAJOR:MINOR");
    let device = |rate: u64| json!([{ "major": major.parse::<u64>().unwrap(), "minor": minor.parse::<u64>().unwrap(), "rate": rate }]);
    let found = limited(
        &json!({ "blockIO": {
            "throttleReadBpsDevice": device(1 << 20), "throttleWriteBpsDevice": device(2 << 20),
            "throttleReadIOPSDevice": device(100), "throttleWriteIOPSDevice": device(200),
        } }),
        &["io.max"],
    );
    assert_eq!(
        found,
        [format!(
            "{major}:{minor} rbps=1048576 wbps=2097152 riops=100 wiops=200"
        )]
    );
}

#[test]
fn huge_page_limits_are_written() {
    requires!(root, controller "hugetlb");
    let found = limited(
        &json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 << 20 }] }),
        &["hugetlb.2MB.max"],
    );
    assert_eq!(found, ["4194304"]);
    if runtime().is("pelagos") {
        let found = limited(
            &json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 6 << 20 }] }),
            &["hugetlb.2MB.rsvd.max"],
        );
        assert_eq!(found, ["6291456"]);
    }
    refused(
        &asking(&[], |c| {
            resources(
                c,
                &json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 1 }] }),
            );
        }),
        "3MB",
    );
}

#[test]
fn rdma_limits_want_the_controller_and_the_device() {
    requires!(root, controller "rdma");
    let bundle = asking(&[], |c| {
        resources(c, &json!({ "rdma": { "none0": { "hcaHandles": 2 } } }));
    });
    refused(&bundle, "rdma.max");
    let bundle = asking(&[], |c| {
        resources(c, &json!({ "rdma": { "none 0": { "hcaHandles": 2 } } }));
    });
    refused(&bundle, "\"none 0\" is not a device name");
}

/// An RDMA device: one that the machine has, or else a soft one on a link of its own, which goes with this value.
struct RdmaDevice {
    name: String,
    made: bool,
}

impl RdmaDevice {
    /// It is kept out of the network namespaces that other tests make and end by the hundred.
    const MAKE: &str = "modprobe ib_core netns_mode=0 && modprobe rdma_rxe && ip link add pelagos-rdma type dummy \
        && ip link set pelagos-rdma up && rdma link add pelagos0 type rxe netdev pelagos-rdma";
    const REMOVE: &str = "rdma link delete pelagos0 && ip link delete pelagos-rdma";

    fn new() -> Self {
        let there = needs::rdma_devices().pop();
        let device = Self {
            made: there.is_none(),
            name: there.unwrap_or_else(|| "pelagos0".to_owned()),
        };
        if device.made {
            Self::sh(Self::MAKE);
        }
        device
    }

    fn sh(script: &str) {
        let outcome = std::process::Command::new("sh")
            .args(["-c", script])
            .output();
        let outcome = outcome.expect("sh");
        assert!(outcome.status.success(), "{script}: {outcome:?}");
    }
}

/// A cgroup that went with limits in force would bring the kernel down here (seen with Linux 6.12).
impl Drop for RdmaDevice {
    fn drop(&mut self) {
        if self.made && runtime().is("pelagos") && !std::thread::panicking() {
            Self::sh(Self::REMOVE);
        }
    }
}

#[test]
fn rdma_limits_are_written_and_lifted_before_the_group_goes() {
    requires!(root, controller "rdma", rdma_device);
    let device = RdmaDevice::new();
    let name = &device.name;
    let found = limited(
        &json!({ "rdma": { name: { "hcaHandles": 2, "hcaObjects": 300 } } }),
        &["rdma.max"],
    );
    assert_eq!(found, [format!("{name} hca_handle=2 hca_object=300")]);
}

#[test]
fn unified_names_files_and_their_text() {
    requires!(root, controller "hugetlb");
    let found = limited(
        &json!({ "unified": { "hugetlb.2MB.max": "2097152" } }),
        &["hugetlb.2MB.max"],
    );
    assert_eq!(found, ["2097152"]);
    // It is written last.
    let found = limited(
        &json!({
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 << 20 }],
            "unified": { "hugetlb.2MB.max": "8388608" },
        }),
        &["hugetlb.2MB.max"],
    );
    assert_eq!(found, ["8388608"]);
}

#[test]
fn unified_takes_file_names_only() {
    requires!(root);
    let bundle = asking(&[], |c| {
        resources(c, &json!({ "unified": { "../cgroup.procs": "1" } }));
    });
    refused(&bundle, "must be a file name (no slashes)");
    let bundle = asking(&[], |c| {
        resources(c, &json!({ "unified": { "nosuch.max": "1" } }));
    });
    refused(&bundle, "nosuch");
}

#[test]
fn a_limit_without_its_controller_is_an_error_that_names_it() {
    requires!(root);
    if needs::controller("memory").is_ok() || !runtime().is("pelagos") {
        return;
    }
    for (resource, controller) in [
        (json!({ "memory": { "limit": 64 << 20 } }), "memory"),
        (json!({ "pids": { "limit": 10 } }), "pids"),
        (json!({ "cpu": { "quota": 10_000 } }), "cpu"),
        (json!({ "unified": { "memory.high": "1" } }), "memory"),
    ] {
        refused(&asking(&[], |c| resources(c, &resource)), controller);
    }
}

/// cgroups(7): a group that holds processes has only threaded controllers for those below it, which it makes invalid for the
/// others. COMPAT: runc's words, and who is in the way.
#[test]
fn a_limit_below_a_group_with_processes_is_an_error_that_says_so() {
    requires!(root, controller "memory");
    let first = asking(&["await:/go"], |_| {});
    first.up();
    let below = |resource: Value| {
        asking(&[], |c| {
            c["linux"]["cgroupsPath"] = json!(format!("/{}/below", first.id));
            resources(c, &resource);
        })
    };
    let limited = below(json!({ "memory": { "limit": 64 << 20 } }));
    if runtime().is("pelagos") {
        let outcome = limited.run();
        outcome.fails_with("with domain controllers -- it is in an invalid state");
        outcome.fails_with(&format!("cgroup /{} holds processes itself", first.id));
        assert!(!first.cgroup().join("below").exists());
    }
    // Without one it is an ordinary group.
    see(&below(json!({})));
    assert_eq!(first.status(), "running");
}

/// Nodes to open: 1:11 is the kernel's log, which root may open where no rule forbids it.
fn nodes_and_rules(config: &mut Value, rules: &Value) {
    crate::inside::privileged(config);
    config["linux"]["devices"] = json!([
        { "path": "/dev/log0", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666 },
        { "path": "/dev/full0", "type": "c", "major": 1, "minor": 7, "fileMode": 0o666 },
    ]);
    config["linux"]["resources"]["devices"] = rules.clone();
}

fn with_rules(rules: &Value, questions: &[&str]) -> Seen {
    ask(questions, |c| nodes_and_rules(c, rules))
}

#[test]
fn a_device_that_no_rule_allows_cannot_be_opened() {
    requires!(root, device_rules);
    let seen = with_rules(
        &json!([{ "allow": false, "access": "rwm" }]),
        &[
            "open:/dev/log0",
            "openw:/dev/log0",
            "open:/dev/zero",
            "openw:/dev/null",
            "open:/dev/urandom",
            "mknod:/dev/made:1:11",
            "open:/dev/ptmx",
        ],
    );
    assert_eq!(seen.errno("open:/dev/log0"), "EPERM");
    assert_eq!(seen.errno("openw:/dev/log0"), "EPERM");
    // The default nodes and pseudo-terminals are always allowed, and so is making a node of any kind.
    assert_eq!(seen.ok("open:/dev/zero"), true);
    assert_eq!(seen.ok("openw:/dev/null"), true);
    assert_eq!(seen.ok("open:/dev/urandom"), true);
    assert_eq!(seen.ok("open:/dev/ptmx"), true);
    assert_eq!(seen.ok("mknod:/dev/made:1:11"), true);
}

#[test]
fn a_device_rule_allows_exactly_its_accesses() {
    requires!(root, device_rules);
    let seen = with_rules(
        &json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" },
        ]),
        &["open:/dev/log0", "openw:/dev/log0"],
    );
    assert_eq!(seen.ok("open:/dev/log0"), true);
    assert_eq!(seen.errno("openw:/dev/log0"), "EPERM");
}

#[test]
fn a_later_device_rule_overrides_an_earlier_one() {
    requires!(root, device_rules);
    let deny_then_allow = with_rules(
        &json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "access": "rwm" },
        ]),
        &["open:/dev/log0"],
    );
    assert_eq!(deny_then_allow.ok("open:/dev/log0"), true, "any minor");
    let allow_then_deny = with_rules(
        &json!([
            { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm" },
            { "allow": false, "access": "rwm" },
        ]),
        &["open:/dev/log0"],
    );
    assert_eq!(allow_then_deny.errno("open:/dev/log0"), "EPERM");
    let all = with_rules(
        &json!([{ "allow": true, "access": "rwm" }]),
        &["open:/dev/log0"],
    );
    assert_eq!(all.ok("open:/dev/log0"), true);
}

#[test]
fn a_block_rule_is_not_about_character_devices() {
    requires!(root, device_rules);
    let seen = with_rules(
        &json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "b", "major": 1, "minor": 11, "access": "rwm" },
        ]),
        &["open:/dev/log0"],
    );
    assert_eq!(seen.errno("open:/dev/log0"), "EPERM");
}

#[test]
fn device_rules_are_there_before_the_payload_starts() {
    requires!(root, device_rules);
    // Programs of a group are seen from its first process on, so the first thing it does is already under them.
    for _ in 0..5 {
        let seen = with_rules(
            &json!([{ "allow": false, "access": "rwm" }]),
            &["open:/dev/log0"],
        );
        assert_eq!(seen.errno("open:/dev/log0"), "EPERM");
    }
}

/// Programs of one group must all agree: an old one that stayed would go on refusing.
#[test]
fn the_rules_of_a_group_that_is_there_already_make_way_for_the_new_ones() {
    requires!(root, device_rules);
    let nothing = json!([{ "allow": false, "access": "rwm" }]);
    let elsewhere = asking(&["await:/go"], |c| nodes_and_rules(c, &nothing));
    elsewhere.up();
    let first = asking(&["await:/go"], |c| nodes_and_rules(c, &nothing));
    first.up();
    fs::write(
        elsewhere.cgroup().join("cgroup.procs"),
        first.pid().to_string(),
    )
    .unwrap();
    let second = asking(&["open:/dev/log0", "openw:/dev/log0"], |c| {
        let one_more = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" },
        ]);
        nodes_and_rules(c, &one_more);
        c["linux"]["cgroupsPath"] = json!(format!("/{}", first.id));
    });
    let seen = see(&second);
    assert_eq!(seen.ok("open:/dev/log0"), true);
    assert_eq!(seen.errno("openw:/dev/log0"), "EPERM");
}

#[test]
fn a_malformed_device_rule_is_refused() {
    requires!(root, device_rules);
    differs!("crun", "1.8 passes over what it does not know");
    differs!("runc", "1.1 passes over letters that it does not know");
    for rule in [
        json!({ "allow": true, "type": "q", "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "rwx" }),
    ] {
        refused(
            &asking(&[], |c| c["linux"]["resources"]["devices"] = json!([rule])),
            "device",
        );
    }
}

#[test]
fn the_mounted_hierarchy_shows_the_own_group_only() {
    requires!(root);
    let seen = ask(
        &[
            "list:/sys/fs/cgroup",
            "read:/sys/fs/cgroup/cgroup.procs",
            "mkdir:/sys/fs/cgroup/x",
        ],
        group_inside,
    );
    assert_eq!(seen.text("read:/sys/fs/cgroup/cgroup.procs"), "1\n");
    assert_eq!(seen.errno("mkdir:/sys/fs/cgroup/x"), "EROFS");
}

/// A container with its own writable hierarchy can make groups below its own, as the user it runs as.
#[test]
fn a_writable_group_is_handed_to_the_user_of_the_process() {
    requires!(root);
    differs!("runc", "1.1 does so with systemd only");
    differs!("crun", "the group goes to the root of the user namespace");
    let own = |bundle: &Bundle, file: &str| fs::metadata(bundle.cgroup().join(file)).unwrap().uid();
    for (destination, source, option, owner) in [
        ("/sys/fs/cgroup", "cgroup", "rw", Some(100_007)),
        ("/sys/fs/cgroup", "cgroup", "rw", Some(7)),
        ("/sys/fs/cgroup", "cgroup", "ro", None),
        ("/sys/fs/cgroup", "cgroup", "rro", None),
        ("/sys/fs/cgroup", "x", "rw", None),
        ("/cgroup", "cgroup", "rw", None),
    ] {
        let bundle = asking(&["await:/go"], |c| {
            if owner == Some(100_007) {
                user_namespace(c);
            }
            mounts(c).push(json!({
                "destination": destination, "type": "cgroup", "source": source, "options": [option],
            }));
            c["process"]["user"] = json!({ "uid": 7, "gid": 7 });
        });
        bundle.up();
        let expected = owner.unwrap_or(0);
        for file in [
            "",
            "cgroup.procs",
            "cgroup.subtree_control",
            "cgroup.threads",
        ] {
            assert_eq!(
                own(&bundle, file),
                expected,
                "{destination} {source} {option} {file}"
            );
        }
        assert_eq!(
            own(&bundle, "cgroup.freeze"),
            0,
            "what limits the container stays root's"
        );
        kill(bundle.pid(), Signal::SIGKILL).unwrap();
        assert!(eventually(|| bundle.status() == "stopped"));
        bundle.delete();
    }
}

#[test]
fn a_detached_container_stays_in_its_group() {
    requires!(root);
    let bundle = asking(&["await:/go"], |_| {});
    let outcome = bundle.verb(["run", "--detach", &bundle.id]).ok();
    assert_eq!(
        fs::read_to_string(bundle.cgroup().join("cgroup.procs"))
            .unwrap()
            .trim(),
        bundle.pid().to_string()
    );
    fs::write(bundle.rootfs("go"), "").unwrap();
    bundle.wait_for("stopped");
    assert!(outcome.stdout_now().starts_with('{'));
    let seen: Value = serde_json::from_str(&outcome.stdout_now()).unwrap();
    assert_eq!(seen["cgroup"], "/");
    bundle.delete();
    bundle.assert_nothing_left();
}

#[test]
fn the_group_of_a_foreground_run_is_gone_when_it_returns() {
    requires!(root);
    let bundle = asking(&[], |_| {});
    answers(&bundle.run().ok());
    assert!(!bundle.cgroup().exists());
    bundle.assert_nothing_left();
}

#[test]
fn what_cgroup_v2_has_no_file_for_is_passed_over() {
    requires!(root);
    differs!("crun", "refuses some of it");
    let resources = json!({
        "memory": { "kernel": 4096, "kernelTCP": 4096, "swappiness": 10, "disableOOMKiller": true,
            "useHierarchy": true },
        "cpu": { "realtimeRuntime": 9, "realtimePeriod": 10 },
        "blockIO": { "leafWeight": 10 },
        "network": {},
    });
    let bundle = asking(&[], |c| {
        let limits = c["linux"]["resources"].as_object_mut().unwrap();
        limits.extend(resources.as_object().unwrap().clone());
    });
    assert_ne!(see(&bundle)["cgroup"], Value::Null);
}

#[test]
fn what_a_container_writes_on_its_cgroup_does_not_hide_it() {
    requires!(root, command "setfattr");
    differs!("runc", "writes nothing on it");
    differs!("crun", "writes nothing on it");
    let bundle = Bundle::sleeping();
    bundle.up();
    let group = bundle.cgroup();
    let done = std::process::Command::new("setfattr")
        .args(["-n", "user.pelagos", "-v", "another's"])
        .arg(&group)
        .status();
    assert!(done.expect("setfattr").success());
    bundle.verb(["pause", &bundle.id]).ok();
    bundle.verb(["resume", &bundle.id]).ok();
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn a_container_is_killed_although_its_init_has_left_the_cgroup() {
    requires!(root);
    differs!("runc", "1.1 looks into the cgroup alone");
    differs!("crun", "looks into the cgroup alone");
    for args in [&["kill"][..], &["kill", "--all"]] {
        let bundle = Bundle::sleeping();
        bundle.edit(|c| crate::inside::without_namespace(c, "pid"));
        bundle.up();
        let above = bundle.cgroup().join("../cgroup.procs");
        std::fs::write(above, bundle.pid().to_string()).unwrap();
        bundle.verb(args).arg(&bundle.id).arg("KILL").ok();
        bundle.wait_for("stopped");
        bundle.delete().ok();
        bundle.assert_nothing_left();
    }
}

#[test]
fn a_paused_container_that_is_killed_is_stopped() {
    requires!(root);
    for shared in [false, true] {
        let bundle = Bundle::sleeping();
        if shared {
            bundle.edit(|c| crate::inside::without_namespace(c, "pid"));
        }
        bundle.up();
        bundle.verb(["pause", &bundle.id]).ok();
        bundle.kill("KILL").ok();
        bundle.wait_for("stopped");
        bundle.delete().ok();
        bundle.assert_nothing_left();
    }
}

#[test]
fn of_two_containers_that_want_one_cgroup_at_once_one_is_made() {
    requires!(root);
    differs!("runc", "has no lock");
    differs!("crun", "has no lock");
    for _ in 0..5 {
        let one = Bundle::sleeping();
        let other = Bundle::sleeping();
        let path = format!("/{}", one.id);
        for bundle in [&one, &other] {
            bundle.edit(|c| c["linux"]["cgroupsPath"] = serde_json::json!(path));
        }
        let creates = [&one, &other].map(|bundle| {
            let verb = bundle.verb(["create", "--bundle"]).arg(&bundle.path);
            verb.arg(&bundle.id).spawn()
        });
        let codes = creates.map(|create| create.wait().code());
        assert_eq!(
            codes.iter().filter(|code| **code == 0).count(),
            1,
            "{codes:?}"
        );
        one.delete_force();
        other.delete_force();
        one.assert_nothing_left();
        other.assert_nothing_left();
    }
}
