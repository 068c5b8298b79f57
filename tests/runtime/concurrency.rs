//! Verbs that meet on one container: each ends, says the truth, and together they leave nothing.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::{Bundle, Outcome, Verb, eventually, runtime};

/// How often each meeting is tried.
const ROUNDS: usize = 12;

/// Make these calls at the same moment.
fn together(calls: Vec<Verb>) -> Vec<Outcome> {
    let barrier = Barrier::new(calls.len());
    thread::scope(|scope| {
        let start = |call: Verb| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                call.run()
            })
        };
        let threads: Vec<_> = calls.into_iter().map(start).collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("a call"))
            .collect()
    })
}

/// Expect that a call succeeded, or failed in one of these words.
#[track_caller]
fn ok_or(outcome: &Outcome, words: &[&str]) {
    if outcome.code() != 0 && !runtime().is("crun") {
        let line = outcome.error_line();
        assert!(
            words.iter().any(|w| line.contains(w)),
            "expected one of {words:?}\n{outcome}"
        );
    }
}

fn successes(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|o| o.code() == 0).count()
}

#[test]
fn of_several_creates_of_one_id_exactly_one_succeeds() {
    requires!(container);
    differs!("runc", "before 1.2 losers may remove what the winner made");
    for round in 0..ROUNDS {
        let bundle = Bundle::sleeping();
        let outcomes = together(
            (0..4)
                .map(|_| bundle.verb(["create", &bundle.id]))
                .collect(),
        );
        let shown: Vec<_> = outcomes.iter().map(ToString::to_string).collect();
        assert_eq!(successes(&outcomes), 1, "round {round}: {shown:#?}");
        for outcome in &outcomes {
            ok_or(outcome, &["container with given ID already exists"]);
        }
        assert_eq!(bundle.status(), "created");
        bundle.start();
        assert_eq!(bundle.status(), "running");
        bundle.delete_force();
        bundle.assert_nothing_left();
    }
}

#[test]
fn of_several_starts_exactly_one_succeeds() {
    requires!(container);
    differs!("runc", "losers wait for ever on the fifo");
    for round in 0..ROUNDS {
        let bundle = Bundle::sleeping();
        bundle.create();
        let outcomes = together((0..4).map(|_| bundle.verb(["start", &bundle.id])).collect());
        let shown: Vec<_> = outcomes.iter().map(ToString::to_string).collect();
        // COMPAT: crun's starts race for the fifo, and a loser may be told that it won.
        let won = successes(&outcomes);
        assert!(
            won == 1 || won > 1 && !runtime().is("pelagos"),
            "round {round}: {shown:#?}"
        );
        if runtime().is("pelagos") {
            for outcome in &outcomes {
                ok_or(outcome, &["cannot start an already running container"]);
            }
        }
        assert_eq!(bundle.status(), "running");
    }
}

#[test]
fn start_and_kill_can_meet() {
    requires!(container);
    differs!("crun", "kill may fail while start writes the state");
    for _ in 0..ROUNDS {
        let bundle = Bundle::sleeping();
        bundle.create();
        let outcomes = together(vec![
            bundle.verb(["start", &bundle.id]),
            bundle.verb(["kill", &bundle.id, "KILL"]),
        ]);
        if runtime().is("pelagos") {
            ok_or(
                &outcomes[0],
                &[
                    "cannot start a container that has stopped",
                    "container not running",
                    "it was killed before it ran the program",
                ],
            );
        }
        ok_or(&outcomes[1], &["container not running"]);
        assert_eq!(
            outcomes[1].code(),
            0,
            "the process was there: {}",
            outcomes[1]
        );
        bundle.wait_for("stopped");
        bundle.delete();
        bundle.assert_nothing_left();
    }
}

#[test]
fn deletes_of_a_stopped_container_can_meet() {
    requires!(container);
    // COMPAT: runc's and crun's stumble over each other's removals.
    differs!("runc", "not locked");
    differs!("crun", "not locked");
    for _ in 0..ROUNDS {
        let bundle = Bundle::new();
        bundle.up();
        bundle.wait_for("stopped");
        let outcomes = together(
            (0..3)
                .map(|_| bundle.verb(["delete", &bundle.id]))
                .collect(),
        );
        assert_eq!(successes(&outcomes), 1);
        for outcome in &outcomes {
            ok_or(outcome, &["container does not exist"]);
        }
        bundle.assert_nothing_left();
    }
}

#[test]
fn forced_deletes_of_a_running_container_all_succeed() {
    requires!(container);
    differs!("runc", "not locked");
    differs!("crun", "not locked");
    for _ in 0..ROUNDS {
        let bundle = Bundle::sleeping();
        bundle.up();
        let outcomes = together(
            (0..3)
                .map(|_| bundle.verb(["delete", "--force", &bundle.id]))
                .collect(),
        );
        for outcome in outcomes {
            outcome.ok();
        }
        bundle.assert_nothing_left();
    }
}

#[test]
fn create_and_forced_delete_can_meet() {
    requires!(container);
    differs!("runc", "not locked");
    differs!("crun", "not locked");
    for _ in 0..ROUNDS {
        let bundle = Bundle::sleeping();
        let outcomes = together(vec![
            bundle.verb(["create", &bundle.id]),
            bundle.verb(["delete", "--force", &bundle.id]),
        ]);
        // Either it was there already, or it was made after.
        assert!([0, 1].contains(&outcomes[0].code()), "{}", outcomes[0]);
        assert_eq!(outcomes[1].code(), 0, "{}", outcomes[1]);
        bundle.delete_force();
        bundle.assert_nothing_left();
    }
}

#[test]
fn state_and_list_never_see_half_a_container() {
    requires!(container);
    differs!(
        "runc",
        "list fails over a container that goes away meanwhile"
    );
    differs!(
        "crun",
        "list fails over a container that goes away meanwhile"
    );
    let bundle = Bundle::sleeping();
    let id = bundle.id.as_str();
    let over = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = |verb: Vec<&'static str>, with_id: bool| {
            let (over, bundle) = (&over, &bundle);
            scope.spawn(move || {
                let mut seen = 0;
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let outcome = bundle.verb(&verb).args(with_id.then_some(id)).run();
                    if with_id {
                        ok_or(&outcome, &["container does not exist"]);
                    } else {
                        assert_eq!(outcome.code(), 0, "{outcome}");
                    }
                    if outcome.code() == 0 {
                        let json = outcome.json();
                        let one = if with_id { &json } else { &json[0] };
                        if !one.is_null() {
                            let status = one["status"].as_str().expect("a status");
                            assert!(
                                ["creating", "created", "running", "stopped"].contains(&status),
                                "{outcome}"
                            );
                            seen += 1;
                        }
                    }
                }
                seen
            })
        };
        let threads = [
            watch(vec!["state"], true),
            watch(vec!["list", "-f", "json"], false),
        ];
        for _ in 0..ROUNDS {
            bundle.up();
            bundle.delete_force();
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        for watcher in threads {
            assert!(
                watcher.join().expect("a watcher") > 0,
                "it saw the container at least once"
            );
        }
    });
    bundle.assert_nothing_left();
}

#[test]
fn nothing_waits_behind_a_hung_create_and_forced_delete_ends_it() {
    requires!(container);
    differs!("runc", "there is no state before create has ended");
    differs!("crun", "no status creating");
    let bundle = Bundle::sleeping();
    let begun = bundle.beside("begun");
    let script = format!("touch {}; exec sleep 1000", begun.display());
    bundle.edit(|c| {
        c["hooks"] = json!({ "createRuntime": [{
            "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"],
        }] });
    });
    let hung = bundle.verb(["create", &bundle.id]).spawn();
    assert!(eventually(|| begun.exists()), "the hook runs");
    let asked = |arguments: &[&str]| {
        let verb = bundle.verb(arguments);
        verb.limit(Duration::from_secs(3)).run()
    };
    assert_eq!(
        asked(&["state", &bundle.id]).ok().json()["status"],
        json!("creating")
    );
    assert_eq!(
        asked(&["list", "-f", "json"]).ok().json()[0]["status"],
        json!("creating")
    );
    asked(&["kill", &bundle.id, "KILL"]).fails_with("container not running");
    asked(&["delete", &bundle.id]).fails_with("that is not stopped: creating");
    asked(&["delete", "--force", &bundle.id]).ok();
    hung.wait()
        .fails_with("error running createRuntime hook #0: the container's process died meanwhile");
    bundle.assert_nothing_left();
}

#[test]
fn containers_side_by_side_do_not_disturb_each_other() {
    requires!(container);
    let bundles: Vec<_> = (0..8)
        .map(|n| Bundle::sh(&format!("echo number {n}; exit {n}")))
        .collect();
    let outcomes = together(bundles.iter().map(|b| b.verb(["run", &b.id])).collect());
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!(
            (outcome.code(), outcome.stdout.clone()),
            (i32::try_from(n).expect("n"), format!("number {n}\n"))
        );
    }
    for bundle in &bundles {
        bundle.assert_nothing_left();
    }
}

#[test]
fn containers_of_one_state_root_can_be_made_at_the_same_time() {
    requires!(container);
    let bundle = Bundle::sleeping();
    bundle.edit(|c| {
        c["linux"]
            .as_object_mut()
            .expect("linux")
            .remove("cgroupsPath");
    });
    let ids: Vec<_> = (0..6).map(|n| format!("{}-{n}", bundle.id)).collect();
    for verb in [&["run", "-d"][..], &["delete", "-f"]] {
        for outcome in together(ids.iter().map(|id| bundle.verb(verb).arg(id)).collect()) {
            outcome.ok();
        }
    }
    bundle.assert_nothing_left();
}
