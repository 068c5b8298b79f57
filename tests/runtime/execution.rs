//! How the payload is executed: scheduling, processors, I/O priority, personality, memory policy.

use std::thread::available_parallelism;

use serde_json::{Value, json};

use crate::inside::{answers, ask, asking, refused};
use crate::support::runtime;

#[test]
fn the_personality_is_set() {
    requires!(container);
    differs!("runc", "since 1.2");
    for (domain, number) in [("LINUX", 0), ("LINUX32", 8)] {
        let seen = ask(&[], |c| {
            c["linux"]["personality"] = json!({ "domain": domain });
        });
        assert_eq!(seen["personality"], number, "{domain}");
    }
    refused(
        &asking(&[], |c| {
            c["linux"]["personality"] = json!({ "domain": "HURD" });
        }),
        "linux.personality.domain: invalid personality domain HURD",
    );
}

#[test]
fn flags_of_a_personality_are_told_and_ignored() {
    requires!(container);
    differs!("crun", "refuses them");
    differs!("runc", "since 1.2");
    let bundle = asking(&[], |c| {
        c["linux"]["personality"] = json!({ "domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE"] });
    });
    let outcome = bundle.run().ok();
    assert_eq!(answers(&outcome)["personality"], 8);
    let words = "ignoring unsupported personality flags: ADDR_NO_RANDOMIZE";
    assert!(outcome.stderr.contains(words), "{outcome}");
}

#[test]
fn the_scheduler_is_set() {
    requires!(container);
    differs!("crun", "since 1.9");
    differs!("runc", "since 1.2");
    let with = |scheduler: Value| ask(&[], |c| c["process"]["scheduler"] = scheduler);
    let seen = with(json!({ "policy": "SCHED_BATCH", "nice": 5 }));
    assert_eq!((&seen["scheduler"], &seen["nice"]), (&json!(3), &json!(5)));
    let seen = with(json!({ "policy": "SCHED_IDLE", "flags": ["SCHED_FLAG_RESET_ON_FORK"] }));
    // SCHED_RESET_ON_FORK of sched_getscheduler(2).
    assert_eq!(seen["scheduler"], 5 | 0x4000_0000);
}

#[test]
fn real_time_schedulers_have_their_priority_or_their_times() {
    requires!(root);
    differs!("crun", "since 1.9");
    differs!("runc", "since 1.2");
    let with = |scheduler: Value| {
        let seen = ask(&[], |c| c["process"]["scheduler"] = scheduler);
        seen["sched"].clone()
    };
    for (word, policy, priority) in [("SCHED_FIFO", 1, 7), ("SCHED_RR", 2, 99)] {
        let found = with(json!({ "policy": word, "priority": priority }));
        assert_eq!(
            (&found["policy"], &found["priority"]),
            (&json!(policy), &json!(priority))
        );
    }
    let found = with(json!({
        "policy": "SCHED_DEADLINE", "runtime": 10_000_000, "deadline": 30_000_000, "period": 40_000_000,
        "flags": ["SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN"],
    }));
    assert_eq!(
        found,
        json!({ "policy": 6, "flags": 2 | 4, "priority": 0, "times": [10_000_000, 30_000_000, 40_000_000] })
    );
}

#[test]
fn every_flag_of_a_scheduler_is_the_kernels() {
    requires!(root);
    differs!("crun", "since 1.9");
    differs!("runc", "since 1.2");
    let callers = ask(&[], |_| {})["nice"].clone();
    for (flag, nice) in [
        ("SCHED_FLAG_KEEP_POLICY", json!(11)),
        ("SCHED_FLAG_KEEP_PARAMS", callers),
        ("SCHED_FLAG_RESET_ON_FORK", json!(11)),
    ] {
        let seen = ask(&[], |c| {
            c["process"]["scheduler"] =
                json!({ "policy": "SCHED_OTHER", "nice": 11, "flags": [flag] });
        });
        assert_eq!(seen["nice"], nice, "{flag}");
    }
    for flag in ["SCHED_FLAG_UTIL_CLAMP_MIN", "SCHED_FLAG_UTIL_CLAMP_MAX"] {
        let bundle = asking(&[], |c| {
            c["process"]["scheduler"] = json!({ "policy": "SCHED_OTHER", "flags": [flag] });
        });
        // Not every kernel is built with CONFIG_UCLAMP_TASK: then it is what says so.
        let outcome = bundle.run();
        let without = "set process.scheduler: operation not supported";
        assert!(
            outcome.code() == 0 || outcome.stderr.contains(without),
            "{flag}: {outcome}"
        );
    }
}

#[test]
fn a_scheduler_that_cannot_be_is_refused() {
    requires!(container);
    differs!("crun", "since 1.9");
    differs!("runc", "since 1.2");
    for (scheduler, words) in [
        (
            json!({ "policy": "SCHED_WHENEVER" }),
            "invalid scheduler policy: SCHED_WHENEVER",
        ),
        (
            json!({ "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_NOW"] }),
            "invalid scheduler flag: SCHED_FLAG_NOW",
        ),
        (
            json!({ "policy": "SCHED_OTHER", "nice": -21 }),
            "invalid scheduler.nice: -21",
        ),
        (
            json!({ "policy": "SCHED_OTHER", "priority": 1 }),
            "scheduler.priority can only be specified for SchedFIFO or SchedRR policy",
        ),
        (
            json!({ "policy": "SCHED_FIFO", "runtime": 1 }),
            "scheduler runtime/deadline/period can only be specified for SchedDeadline policy",
        ),
        // No rule of ours: the kernel wants a time to run.
        (
            json!({ "policy": "SCHED_DEADLINE" }),
            "set process.scheduler",
        ),
    ] {
        refused(
            &asking(&[], |c| c["process"]["scheduler"] = scheduler),
            words,
        );
    }
}

#[test]
fn the_io_priority_is_set() {
    requires!(container);
    differs!("crun", "since 1.9");
    differs!("runc", "since 1.2");
    for (class, number) in [("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)] {
        let seen = ask(&[], |c| {
            c["process"]["ioPriority"] = json!({ "class": class, "priority": 6 });
        });
        assert_eq!(seen["ioprio"], number << 13 | 6, "{class}");
    }
    for (priority, words) in [
        (
            json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 }),
            "invalid ioPriority.Priority: 8",
        ),
        (
            json!({ "class": "IOPRIO_CLASS_NONE", "priority": 1 }),
            "invalid ioPriority.Class: IOPRIO_CLASS_NONE",
        ),
        (
            json!({ "priority": 1 }),
            "process.ioPriority.class: invalid ioPriority.Class",
        ),
    ] {
        refused(
            &asking(&[], |c| c["process"]["ioPriority"] = priority),
            words,
        );
    }
}

#[test]
fn the_memory_policy_is_set() {
    requires!(container, numa);
    differs!("crun", "since 1.24");
    differs!("runc", "since 1.4");
    for (policy, shown) in [
        (json!({ "mode": "MPOL_BIND", "nodes": "0" }), " bind:0 "),
        (
            json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0-0", "flags": ["MPOL_F_STATIC_NODES"] }),
            " interleave=static:0 ",
        ),
        (json!({ "mode": "MPOL_LOCAL" }), " local "),
        (json!({ "mode": "MPOL_DEFAULT" }), " default "),
    ] {
        let seen = ask(&["read:/proc/self/numa_maps"], |c| {
            c["linux"]["memoryPolicy"] = policy.clone();
        });
        // Each line is a mapping, its policy and its pages (numa(7)).
        let maps = seen.text("read:/proc/self/numa_maps");
        let heap = maps
            .lines()
            .find(|line| line.contains(" heap"))
            .expect(maps);
        assert!(heap.contains(shown), "{policy}: {heap}");
    }
}

#[test]
fn a_memory_policy_that_cannot_be_is_refused() {
    requires!(container, numa);
    differs!("crun", "since 1.24");
    differs!("runc", "since 1.4");
    for (policy, words) in [
        (
            json!({ "mode": "MPOL_NEAR" }),
            "invalid memory policy mode: MPOL_NEAR",
        ),
        (
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_MOVE"] }),
            "invalid memory policy flag: MPOL_F_MOVE",
        ),
        (
            json!({ "mode": "MPOL_BIND", "nodes": "zero" }),
            "invalid memory policy nodes \"zero\"",
        ),
        (
            json!({ "mode": "MPOL_BIND" }),
            "memory policy mode requires at least one node but got 0",
        ),
        (
            json!({ "mode": "MPOL_LOCAL", "nodes": "0" }),
            "memory policy mode requires 0 nodes but got 1",
        ),
        // The kernel's own word: it has no such node.
        (
            json!({ "mode": "MPOL_BIND", "nodes": "1000" }),
            "set linux.memoryPolicy: invalid argument",
        ),
    ] {
        refused(&asking(&[], |c| c["linux"]["memoryPolicy"] = policy), words);
    }
}

#[test]
fn the_payload_may_use_every_processor_whatever_its_caller_is_confined_to() {
    requires!(container, command "taskset");
    differs!("crun", "keeps what its caller is confined to");
    differs!("runc", "since 1.2");
    if available_parallelism().is_ok_and(|processors| processors.get() == 1) {
        return;
    }
    let own = std::fs::read_to_string("/proc/self/status").expect("status");
    let bundle = asking(&["read:/proc/self/status"], |_| {});
    let call = bundle.verb(["run", "-b", "."]).arg(&bundle.id);
    let seen = answers(&call.under(["taskset", "--cpu-list", "0"]).run().ok());
    let processors = |status: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with("Cpus_allowed_list:"));
        line.expect("a list").to_owned()
    };
    assert_eq!(
        processors(seen.text("read:/proc/self/status")),
        processors(&own),
        "{}",
        runtime().path.display()
    );
}
