//! `events`: what a container has used, in runc's shape, and how the stream ends.

use std::time::Duration;

use serde_json::{Value, json};

use crate::driver::{Driven, drivers};
use crate::support::{Bundle, eventually, patience, runtime};

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

#[test]
fn statistics_agree_with_the_kernels_files() {
    requires!(container, limits);
    for driver in drivers() {
        let driven = Driven::sh(
            driver,
            "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; : >/tmp/done; exec sleep 1000",
            &json!({
                "memory": { "limit": 64 << 20 }, "pids": { "limit": 40 },
                "cpu": { "quota": 50_000, "period": 100_000 },
            }),
        );
        driven.up();
        assert!(eventually(|| driven.bundle.rootfs("tmp/done").exists()));
        let id = &driven.bundle.id;
        let outcome = driven.verb(["events", "--stats", id]).ok();
        let lines = lines(&outcome.stdout);
        assert_eq!(lines.len(), 1);
        assert_eq!(
            (&lines[0]["type"], &lines[0]["id"]),
            (&json!("stats"), &json!(id))
        );
        let data = &lines[0]["data"];
        assert_eq!(data["pids"], json!({ "current": 1, "limit": 40 }));
        assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
        let usage = data["memory"]["usage"]["usage"].as_u64().unwrap();
        assert!(usage > 0 && usage < 64 << 20);
        assert!(data["memory"]["raw"]["anon"].as_u64().unwrap() > 0);
        let total = data["cpu"]["usage"]["total"].as_u64().unwrap();
        assert!(total > 0);
        let now = driven.number("cpu.stat", "usage_usec") * 1000;
        assert!(total <= now && now - total < 5_000_000_000, "{total} {now}");
        assert!(data["cpu"]["throttling"]["periods"].as_u64().unwrap() > 0);
        for part in ["cpuset", "blkio", "hugetlb", "intel_rdt"] {
            assert!(data[part].is_object(), "{part}");
        }
        assert_eq!(data["network_interfaces"], Value::Null);
        if runtime().is("pelagos") {
            for part in ["cpu", "memory", "blkio"] {
                let psi = &data[part]["psi"];
                assert!(psi["some"]["avg10"].is_number(), "{part}: {psi}");
                assert!(psi["full"]["total"].is_u64(), "{part}: {psi}");
            }
        }
        driven.end();
    }
}

#[test]
fn statistics_come_at_intervals_until_the_container_ends() {
    requires!(root);
    let bundle = Bundle::sleeping();
    bundle.up();
    let events = bundle
        .verb(["events", "--interval", "100ms", &bundle.id])
        .limit(Duration::from_secs(60))
        .spawn();
    assert!(eventually(|| events.stdout().lines().count() >= 3));
    bundle.kill("KILL");
    let outcome = events.wait().ok();
    for line in lines(&outcome.stdout) {
        assert_eq!(line["type"], "stats");
    }
    bundle.delete();
}

#[test]
fn the_stream_ends_with_the_container_and_not_with_the_interval() {
    requires!(root);
    differs!("runc", "1.1 looks when the next statistics are due");
    let bundle = Bundle::sleeping();
    bundle.up();
    let mut events = bundle
        .verb(["events", "--interval", "1h", &bundle.id])
        .spawn();
    std::thread::sleep(patience(Duration::from_millis(200)));
    assert!(events.is_running());
    bundle.kill("KILL");
    assert_eq!(events.wait().ok().stdout, "");
    // Deleted under its eyes it ends as well.
    bundle.delete();
    bundle.up();
    let events = bundle
        .verb(["events", "--interval", "1h", &bundle.id])
        .spawn();
    std::thread::sleep(patience(Duration::from_millis(200)));
    bundle.delete_force();
    assert_eq!(events.wait().ok().stdout, "");
}

#[test]
fn events_refuse_the_wrong_moment_and_the_wrong_interval() {
    requires!(root);
    let bundle = Bundle::sleeping();
    let call = |args: &[&str]| {
        let mut all = vec!["events"];
        all.extend(args);
        all.push(&bundle.id);
        bundle.verb(all).run()
    };
    call(&[]).fails_with("container does not exist");
    bundle.up();
    for interval in ["0s", "0", "-5s"] {
        call(&["--interval", interval]).fails_with("duration interval must be greater than 0");
    }
    for interval in ["5", "soon", ""] {
        call(&["--interval", interval]).fails_with("interval");
    }
    bundle.kill("KILL");
    bundle.wait_for("stopped");
    let words = format!("container with id {} is not running", bundle.id);
    call(&[]).fails_with(&words);
    call(&["--stats"]).fails_with(&words);
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_events_quietly() {
    requires!(root);
    differs!("crun", "1.8 has no events");
    let bundle = Bundle::sleeping();
    bundle.up();
    let outcome = bundle
        .verb(["events", "--interval", "10ms", &bundle.id])
        .under(["sh", "-c", "\"$@\" | head -n 1", "sh"])
        .run();
    assert_eq!(lines(&outcome.stdout).len(), 1, "{outcome}");
    assert_eq!(outcome.stderr, "");
    bundle.delete_force();
}
