//! `pause` and `resume`: nothing of the container moves in between.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::support::{Bundle, eventually, runtime};

/// A container that counts in a file.
fn counting() -> Bundle {
    Bundle::sh("n=0; while true; do n=$((n + 1)); echo $n > /tmp/count; done")
}

fn count(bundle: &Bundle) -> u64 {
    let text = fs::read_to_string(bundle.rootfs("tmp/count")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[track_caller]
fn moves(bundle: &Bundle) {
    let before = count(bundle);
    assert!(eventually(|| count(bundle) > before + 1), "it stands still");
}

#[test]
fn a_paused_container_makes_no_progress_until_it_is_resumed() {
    requires!(root);
    let bundle = counting();
    bundle.up();
    moves(&bundle);
    for _ in 0..2 {
        bundle.verb(["pause", &bundle.id]).ok();
        assert_eq!(bundle.status(), "paused");
        let events = fs::read_to_string(bundle.cgroup().join("cgroup.events")).unwrap();
        assert!(events.contains("frozen 1"), "{events}");
        let stat = || fs::read_to_string(format!("/proc/{}/stat", bundle.pid())).unwrap();
        // Fields 14 and 15: the time that it has spent.
        let spent = |line: String| -> Vec<String> {
            line.split(' ')
                .skip(13)
                .take(2)
                .map(str::to_owned)
                .collect()
        };
        let (at, before) = (spent(stat()), count(&bundle));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(spent(stat()), at);
        assert_eq!(count(&bundle), before);
        bundle.verb(["resume", &bundle.id]).ok();
        assert_eq!(bundle.status(), "running");
        moves(&bundle);
    }
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn processes_in_groups_that_the_container_made_stand_still_too() {
    requires!(root);
    let bundle = counting();
    bundle.up();
    moves(&bundle);
    let below = bundle.cgroup().join("below/deeper");
    fs::create_dir_all(&below).unwrap();
    fs::write(below.join("cgroup.procs"), bundle.pid().to_string()).unwrap();
    bundle.verb(["pause", &bundle.id]).ok();
    let before = count(&bundle);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(count(&bundle), before);
    bundle.verb(["resume", &bundle.id]).ok();
    moves(&bundle);
    bundle.delete_force();
    assert!(!bundle.cgroup().exists());
}

#[test]
fn a_created_container_can_be_paused_and_started_when_resumed() {
    requires!(root);
    let bundle = counting();
    bundle.create();
    bundle.verb(["pause", &bundle.id]).ok();
    assert_eq!(bundle.status(), "paused");
    bundle
        .verb(["start", &bundle.id])
        .run()
        .fails_with("cannot start a container in the paused state");
    bundle.verb(["resume", &bundle.id]).ok();
    assert_eq!(bundle.status(), "created");
    bundle.start();
    moves(&bundle);
}

#[test]
fn pause_and_resume_refuse_the_wrong_moment() {
    requires!(root);
    let bundle = Bundle::sleeping();
    for verb in ["pause", "resume"] {
        bundle
            .verb([verb, &bundle.id])
            .run()
            .fails_with("container does not exist");
    }
    bundle.up();
    bundle
        .verb(["resume", &bundle.id])
        .run()
        .fails_with("container not paused");
    bundle.verb(["pause", &bundle.id]).ok();
    bundle
        .verb(["pause", &bundle.id])
        .run()
        .fails_with("container not running");
    assert_eq!(bundle.status(), "paused", "a refused pause resumes nothing");
    bundle.verb(["resume", &bundle.id]).ok();
    kill(bundle.pid(), Signal::SIGKILL).unwrap();
    bundle.wait_for("stopped");
    bundle
        .verb(["pause", &bundle.id])
        .run()
        .fails_with("container not running");
    bundle
        .verb(["resume", &bundle.id])
        .run()
        .fails_with("container not paused");
}

#[test]
fn a_paused_container_is_deleted_by_force_only() {
    requires!(root);
    let bundle = counting();
    bundle.up();
    bundle.verb(["pause", &bundle.id]).ok();
    let outcome = bundle.verb(["delete", &bundle.id]).run();
    outcome.fails_with("that is not stopped: paused");
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn a_paused_container_can_be_killed_and_is_stopped_then() {
    requires!(root);
    differs!("crun", "1.8 leaves the freezer on");
    let bundle = counting();
    bundle.up();
    bundle.verb(["pause", &bundle.id]).ok();
    bundle.kill("KILL");
    if runtime().is("pelagos") {
        bundle.wait_for("stopped");
        bundle.delete();
    } else {
        bundle.delete_force();
    }
    bundle.assert_nothing_left();
}

#[test]
fn a_frozen_group_is_not_taken_for_a_container() {
    requires!(root);
    differs!("crun", "1.8 waits for ever");
    let bundle = Bundle::sleeping();
    fs::create_dir(bundle.cgroup()).unwrap();
    fs::write(bundle.cgroup().join("cgroup.freeze"), "1").unwrap();
    let outcome = bundle.run();
    if runtime().is("pelagos") {
        outcome.fails_with("container's cgroup unexpectedly frozen");
        assert!(bundle.cgroup().exists(), "it was somebody else's");
    } else {
        assert_ne!(outcome.code(), 0, "{outcome}");
    }
    fs::remove_dir(bundle.cgroup()).ok();
}

#[test]
fn a_container_without_a_group_cannot_be_paused() {
    requires!(rootless);
    let bundle = Bundle::sleeping();
    bundle.up();
    let grouped = bundle.verb(["pause", &bundle.id]).run();
    // Where the user may make groups there is one.
    if grouped.code() == 0 {
        assert_eq!(bundle.status(), "paused");
        return;
    }
    grouped.fails_with("the container has no cgroup of its own");
    assert_eq!(bundle.status(), "running");
}
