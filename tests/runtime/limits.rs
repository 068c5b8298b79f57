//! Every limit bites: not that it is written, but that a container comes up against it. With both drivers, as root and as
//! a user.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use crate::driver::{Driven, Driver, drivers, limit};
use crate::support::{Running, eventually, patience, runtime};

#[test]
fn a_memory_hog_is_killed_and_reported() {
    requires!(container, limits);
    for driver in drivers() {
        let script = format!(
            "until [ -e /tmp/go ]; do sleep 0.1; done; {HOG}; echo $? >/tmp/code; sleep 1000"
        );
        let driven = Driven::sh(driver, &script, &little_memory());
        driven.up();
        let id = driven.bundle.id.clone();
        let events = watch(&driven);
        fs::write(driven.bundle.rootfs("tmp/go"), "").unwrap();
        let code = driven.bundle.rootfs("tmp/code");
        assert!(
            eventually(|| fs::read_to_string(&code).is_ok_and(|t| t == "137\n")),
            "{driver:?}"
        );
        assert!(
            driven.number("memory.events", "oom_kill") >= 1,
            "{driver:?}"
        );
        let line = format!("{{\"type\":\"oom\",\"id\":\"{id}\"}}\n");
        assert!(
            eventually(|| events.stdout() == line),
            "{}",
            events.stdout()
        );
        driven.bundle.kill("KILL");
        let outcome = events.wait().ok();
        assert_eq!(outcome.stdout, line);
        driven.end();
    }
}

#[test]
fn an_init_that_takes_too_much_memory_ends_the_container_and_is_reported() {
    requires!(container, limits);
    for driver in drivers() {
        // Only the group tells of the kill. One that the runtime made stands until `delete`; systemd removes its own as
        // soon as it is empty, on a busy processor before `events` has had its turn to read.
        let tries = match driver {
            Driver::Cgroupfs => 1,
            Driver::Systemd => 8,
        };
        let told = (0..tries).any(|_| told_of_the_kill_of_its_init(driver));
        assert!(told, "{driver:?}");

        let driven = Driven::sh(driver, &format!("exec {HOG}"), &little_memory());
        let run = driven.verb(["run", &driven.bundle.id]).run();
        assert_eq!(run.code(), 137, "{driver:?}");
        driven.bundle.assert_nothing_left();
    }
}

/// It takes 200 MiB.
const HOG: &str = "dd if=/dev/zero of=/dev/null bs=200M count=1";

/// A limit of 48 MiB.
fn little_memory() -> Value {
    json!({ "memory": { "limit": 48 << 20, "swap": 48 << 20 } })
}

/// Whether `events` told of it before it saw the end of the container.
fn told_of_the_kill_of_its_init(driver: Driver) -> bool {
    let script = format!("until [ -e /tmp/go ]; do sleep 0.1; done; exec {HOG}");
    let driven = Driven::sh(driver, &script, &little_memory());
    driven.up();
    let events = watch(&driven);
    fs::write(driven.bundle.rootfs("tmp/go"), "").unwrap();
    let outcome = events.wait().ok();
    driven.bundle.wait_for("stopped");
    driven.end();
    let line = format!("{{\"type\":\"oom\",\"id\":\"{}\"}}\n", driven.bundle.id);
    assert!(
        outcome.stdout == line || outcome.stdout.is_empty(),
        "{outcome}"
    );
    !outcome.stdout.is_empty()
}

/// `events`, which sleeps until something happens.
#[track_caller]
fn watch(driven: &Driven) -> Running {
    let events = driven
        .verb(["events", "--interval", "1h", &driven.bundle.id])
        .spawn();
    let process = format!("/proc/{}", events.pid());
    let sleeps = || {
        let stat = fs::read_to_string(format!("{process}/stat"));
        stat.is_ok_and(|stat| stat.contains(") S "))
    };
    let waits = || {
        let fds = fs::read_dir(format!("{process}/fd"));
        let fds = fds.into_iter().flatten().flatten();
        let mut targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        // runc waits for the file by inotify.
        targets.any(|t| t.ends_with("memory.events") || t.ends_with("anon_inode:inotify"))
            && sleeps()
    };
    assert!(eventually(waits), "{}", events.stdout());
    events
}

#[test]
fn a_controller_that_is_not_delegated_is_named() {
    requires!(rootless, limits);
    for driver in drivers() {
        let pages = json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 2_097_152 }] });
        let driven = Driven::sh(driver, "true", &pages);
        let outcome = driven.verb(["run", &driven.bundle.id]).run();
        if runtime().is("pelagos") {
            outcome
                .fails_with("hugetlb.2MB.max can't be set: controller \"hugetlb\" not available");
        } else {
            assert_ne!(outcome.code(), 0, "{outcome}");
        }
        driven.bundle.assert_nothing_left();
    }
}

#[test]
fn a_fork_bomb_stops_at_its_limit() {
    requires!(container, limits);
    for driver in drivers() {
        let bomb = "f() { f & f & sleep 0.1; }; f & exec sleep 1000";
        let driven = Driven::sh(driver, bomb, &json!({ "pids": { "limit": 20 } }));
        driven.up();
        assert!(
            eventually(|| driven.number("pids.events", "max") > 0),
            "{driver:?}"
        );
        let peak: u64 = driven.files(&["pids.peak"])[0].parse().unwrap();
        assert!(peak <= 20, "{driver:?}: {peak}");
        driven.end();
    }
}

#[test]
fn a_burner_gets_its_share_of_a_processor_and_no_more() {
    requires!(container, limits);
    for driver in drivers() {
        let cpu = json!({ "cpu": { "quota": 20_000, "period": 100_000 } });
        let driven = Driven::sh(driver, "while :; do :; done", &cpu);
        driven.up();
        let mut shares = Vec::new();
        for _ in 0..3 {
            let used = driven.number("cpu.stat", "usage_usec");
            let throttled = driven.number("cpu.stat", "nr_throttled");
            let begun = Instant::now();
            std::thread::sleep(Duration::from_secs(5));
            let used = driven.number("cpu.stat", "usage_usec") - used;
            #[expect(clippy::cast_precision_loss, reason = "some millions")]
            let share = used as f64 / 1e6 / begun.elapsed().as_secs_f64();
            assert!(
                driven.number("cpu.stat", "nr_throttled") > throttled,
                "{driver:?}"
            );
            shares.push(share);
            if (share / 0.2 - 1.0).abs() <= 0.15 {
                break;
            }
        }
        let good = shares.iter().any(|share| (share / 0.2 - 1.0).abs() <= 0.15);
        assert!(good, "{driver:?}: {shares:?}");
        driven.end();
    }
}

#[test]
fn a_paused_container_makes_no_progress() {
    requires!(container, limits);
    for driver in drivers() {
        let driven = Driven::sh(driver, "while :; do :; done", &json!({}));
        let id = driven.bundle.id.clone();
        driven.up();
        driven.verb(["pause", &id]).ok();
        assert_eq!(driven.bundle.status(), "paused");
        let used = driven.number("cpu.stat", "usage_usec");
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(driven.number("cpu.stat", "usage_usec"), used, "{driver:?}");
        driven.verb(["resume", &id]).ok();
        assert!(
            eventually(|| driven.number("cpu.stat", "usage_usec") > used),
            "{driver:?}"
        );
        driven.end();
    }
}

#[test]
fn the_processors_are_the_listed_ones() {
    requires!(container, limits);
    for driver in drivers() {
        let driven = Driven::sh(
            driver,
            "sleep 1000",
            &json!({ "cpu": { "cpus": "0", "mems": "0" } }),
        );
        driven.up();
        let status = fs::read_to_string(format!("/proc/{}/status", driven.bundle.pid())).unwrap();
        assert!(
            status.contains("Cpus_allowed_list:\t0\n"),
            "{driver:?}: {status}"
        );
        assert_eq!(driven.files(&["cpuset.cpus", "cpuset.mems"]), ["0", "0"]);
        driven.end();
    }
}

/// The whole disk under a path, and none where it is no disk.
fn disk_of(path: &std::path::Path) -> Option<(u64, u64)> {
    let device = fs::metadata(path).ok()?.dev();
    let (major, minor) = (major(device), minor(device));
    let entry = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let disk = match entry.join("partition").exists() {
        true => entry.parent()?.to_owned(),
        false => entry,
    };
    let text = fs::read_to_string(disk.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[test]
fn a_writer_is_slowed_down() {
    requires!(container, limits);
    const BLOCKS: u64 = 5;
    for driver in drivers() {
        let driven = Driven::new(driver, |_| {});
        let Some((major, minor)) = disk_of(&driven.bundle.path) else {
            return;
        };
        crate::inside::place_probe(&driven.bundle.rootfs("probe"));
        driven.bundle.edit(|config| {
            config["process"]["args"] =
                json!(["/probe", format!("direct:/tmp/file:{BLOCKS}"), "await:/go"]);
            let device = json!([{ "major": major, "minor": minor, "rate": 1 << 20 }]);
            limit(
                config,
                &json!({ "blockIO": { "throttleWriteBpsDevice": device } }),
            );
        });
        driven.up();
        let begun = Instant::now();
        let written = || -> u64 {
            let text = fs::read_to_string(driven.group().join("io.stat")).unwrap();
            let line = text
                .lines()
                .find(|l| l.starts_with(&format!("{major}:{minor} ")));
            line.and_then(|line| {
                line.split(" wbytes=")
                    .nth(1)?
                    .split(' ')
                    .next()?
                    .parse()
                    .ok()
            })
            .unwrap_or(0)
        };
        let all = BLOCKS * (4 << 20);
        let end = begun + patience(Duration::from_secs(60));
        while written() < all {
            assert!(Instant::now() < end, "{driver:?}: {} of {all}", written());
            std::thread::sleep(Duration::from_millis(50));
        }
        #[expect(clippy::cast_precision_loss, reason = "some millions")]
        let rate = all as f64 / begun.elapsed().as_secs_f64() / f64::from(1 << 20);
        assert!(rate <= 1.3, "{driver:?}: {rate} MiB/s");
        driven.end();
    }
}

#[test]
fn limits_that_cannot_be_leave_nothing_behind() {
    requires!(container, limits);
    let cases: [(Value, &str); 9] = [
        (json!({ "cpu": { "cpus": "4000" } }), "cpuset.cpus"),
        (json!({ "cpu": { "cpus": "x" } }), "cpuset.cpus"),
        (json!({ "cpu": { "quota": 1000, "period": 5 } }), "cpu.max"),
        (json!({ "cpu": { "mems": "1000" } }), "cpuset.mems"),
        // More than the kernel knows.
        (json!({ "cpu": { "quota": i64::MAX } }), "cpu.max"),
        (
            json!({ "cpu": { "quota": 1000, "burst": 2000 } }),
            "cpu.max",
        ),
        (json!({ "pids": { "limit": 5_000_000 } }), "pids.max"),
        (json!({ "memory": { "limit": -5 } }), "invalid memory value"),
        (json!({ "unified": { "nosuch.max": "1" } }), "nosuch"),
    ];
    for driver in drivers() {
        for (resources, words) in &cases {
            let driven = Driven::sh(driver, "true", resources);
            let begun = Instant::now();
            let outcome = driven.verb(["run", &driven.bundle.id]).run();
            if runtime().is("pelagos") {
                // Well before systemd would lose its patience with a process that does not end.
                assert!(begun.elapsed() < Duration::from_secs(20), "{outcome}");
                outcome.fails_with(words);
            } else {
                assert_ne!(outcome.code(), 0, "{outcome}");
            }
            driven.bundle.assert_nothing_left();
        }
    }
}
