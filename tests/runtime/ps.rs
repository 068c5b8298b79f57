//! `ps`: which processes belong to a container.

use std::fs;

use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::inside::without_namespace;
use crate::support::{Bundle, eventually, runtime};

/// A container of three processes.
fn three() -> Bundle {
    let bundle = Bundle::sh("sleep 1001 & sleep 1002 & : >/tmp/ready; wait");
    bundle.up();
    assert!(eventually(|| bundle.rootfs("tmp/ready").exists()));
    bundle
}

fn pids(bundle: &Bundle) -> Vec<i64> {
    let list = bundle
        .verb(["ps", "--format", "json", &bundle.id])
        .ok()
        .json();
    let mut pids: Vec<i64> = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|pid| pid.as_i64().expect("a number"))
        .collect();
    pids.sort_unstable();
    pids
}

#[test]
fn the_list_is_one_array_of_all_processes() {
    requires!(root);
    let bundle = three();
    let procs = fs::read_to_string(bundle.cgroup().join("cgroup.procs")).unwrap();
    let mut expected: Vec<i64> = procs.lines().map(|line| line.parse().unwrap()).collect();
    expected.sort_unstable();
    assert_eq!(expected.len(), 3);
    assert_eq!(pids(&bundle), expected);
    assert!(expected.contains(&bundle.pid().as_raw().into()));
}

#[test]
fn processes_that_the_container_moved_to_groups_of_its_own_are_listed() {
    requires!(root);
    let bundle = three();
    let below = bundle.cgroup().join("init");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("cgroup.procs"), bundle.pid().to_string()).unwrap();
    assert_eq!(pids(&bundle).len(), 3);
}

#[test]
fn a_container_whose_group_is_threaded_has_processes_too() {
    requires!(root);
    differs!("crun", "1.8 cannot read a threaded group");
    let parent = Bundle::sleeping();
    let bundle = Bundle::sh("sleep 1001 & : >/tmp/ready; wait");
    // A parent that is threaded: only limits that threads can have are possible below.
    let top = parent.cgroup();
    fs::create_dir(&top).unwrap();
    fs::create_dir(top.join("thread")).unwrap();
    fs::write(top.join("thread/cgroup.type"), "threaded").unwrap();
    bundle.edit(|c| c["linux"]["cgroupsPath"] = json!(format!("/{}/{}", parent.id, bundle.id)));
    bundle.up();
    assert!(eventually(|| bundle.rootfs("tmp/ready").exists()));
    let mode = fs::read_to_string(top.join(&bundle.id).join("cgroup.type")).unwrap();
    assert_eq!(mode, "threaded\n");
    assert_eq!(pids(&bundle).len(), 2);
    bundle.delete_force();
    assert!(!top.join(&bundle.id).exists());
}

#[test]
fn the_table_is_that_of_ps_with_the_containers_lines() {
    requires!(root, command "ps");
    let bundle = three();
    let outcome = bundle.verb(["ps", &bundle.id]).ok();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{outcome}");
    assert!(lines[0].starts_with("UID "), "{outcome}");
    assert!(outcome.stdout.contains("sleep 1001"), "{outcome}");
    assert!(outcome.stdout.contains("sleep 1002"), "{outcome}");
}

#[test]
fn arguments_after_the_id_are_for_ps() {
    requires!(root, command "ps");
    let bundle = three();
    let outcome = bundle.verb(["ps", &bundle.id, "-e", "-o", "pid,args"]).ok();
    assert!(
        outcome.stdout.trim_start().starts_with("PID COMMAND"),
        "{outcome}"
    );
    assert_eq!(outcome.stdout.lines().count(), 4, "{outcome}");
    bundle
        .verb(["ps", &bundle.id, "-e", "-o", "args"])
        .run()
        .fails_with("couldn't find PID field in ps output");
    let outcome = bundle.verb(["ps", &bundle.id, "--no-such-flag"]).run();
    assert_ne!(outcome.code(), 0, "{outcome}");
}

#[test]
fn a_stopped_container_has_no_processes() {
    requires!(root);
    let bundle = three();
    kill(bundle.pid(), Signal::SIGKILL).unwrap();
    bundle.wait_for("stopped");
    let table = bundle.verb(["ps", &bundle.id]).ok();
    assert_eq!(table.stdout.lines().count(), 1, "{table}");
    assert!(table.stdout.starts_with("UID "), "{table}");
    let list = bundle.verb(["ps", "-f", "json", &bundle.id]).ok();
    if runtime().is("pelagos") {
        assert_eq!(list.stdout, "[]\n");
    }
}

#[test]
fn what_an_init_without_a_pid_namespace_leaves_behind_is_listed() {
    requires!(root, command "ps");
    differs!("crun", "shows numbers alone");
    let bundle = Bundle::sh(
        "setsid sleep 1001 & setsid sleep 1002 & : >/tmp/ready; trap 'exit 0' TERM; while :; do sleep 0.1; done",
    );
    bundle.edit(|c| without_namespace(c, "pid"));
    bundle.up();
    assert!(eventually(|| bundle.rootfs("tmp/ready").exists()));
    kill(bundle.pid(), Signal::SIGTERM).unwrap();
    bundle.wait_for("stopped");
    // The last short sleep ends by itself.
    assert!(eventually(|| pids(&bundle).len() == 2));
    let table = bundle.verb(["ps", &bundle.id]).ok();
    assert!(table.stdout.contains("sleep 1001"), "{table}");
    assert!(table.stdout.contains("sleep 1002"), "{table}");
    bundle.verb(["kill", "--all", &bundle.id, "KILL"]).ok();
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn ps_needs_an_id_and_a_known_format() {
    requires!(root);
    let bundle = Bundle::sleeping();
    bundle
        .verb(["ps", &bundle.id])
        .run()
        .fails_with("container does not exist");
    bundle.create();
    bundle
        .verb(["ps", "--format", "xml", &bundle.id])
        .run()
        .fails_with("invalid format option");
    let outcome = bundle.verb(["ps"]).run();
    assert_eq!(outcome.code(), 1, "{outcome}");
    assert!(
        outcome
            .stderr
            .contains("requires a minimum of 1 argument(s)"),
        "{outcome}"
    );
}
