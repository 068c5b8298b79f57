//! `update`: what is given changes, what is not given stays.

use std::fs::File;
use std::io::Write as _;

use serde_json::{Value, json};

use crate::driver::{Driven, drivers};
use crate::support::{Bundle, Outcome};

/// A sleeping container with a limit of every kind.
fn limited(driver: crate::driver::Driver) -> Driven {
    let driven = Driven::sh(
        driver,
        "sleep 1000",
        &json!({
            "memory": { "limit": 64 << 20, "swap": 96 << 20, "reservation": 16 << 20 },
            "cpu": { "quota": 12_345, "period": 50_000, "shares": 512 },
            "pids": { "limit": 40 },
        }),
    );
    driven.up();
    driven
}

const FILES: [&str; 6] = [
    "memory.max",
    "memory.swap.max",
    "memory.low",
    "cpu.max",
    "cpu.weight",
    "pids.max",
];

/// Arguments, and what they change: which of the files to what.
type Step<'a> = (&'a [&'a str], &'a [(usize, String)]);

fn mib(n: u64) -> String {
    (n << 20).to_string()
}

/// `update --resources -` with this on standard input.
fn from_stdin(driven: &Driven, resources: &str) -> Outcome {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(resources.as_bytes()).unwrap();
    driven
        .verb(["update", "-r", "-", &driven.bundle.id])
        .stdin(File::open(file.path()).unwrap())
        .run()
}

#[test]
fn each_option_changes_its_limit_and_no_other() {
    requires!(container, limits);
    differs!("runc", "1.1 has other weights");
    differs!("crun", "1.8 has other weights");
    for driver in drivers() {
        let driven = limited(driver);
        let mut now = [
            mib(64),
            mib(32),
            mib(16),
            "12345 50000".into(),
            "59".into(),
            "40".into(),
        ];
        assert_eq!(driven.files(&FILES), now, "{driver:?}");
        let steps: [Step<'_>; 9] = [
            (&["--pids-limit", "50"], &[(5, "50".into())]),
            (&["--memory", "48M"], &[(0, mib(48))]),
            (&["--memory-swap", "100M"], &[(1, mib(52))]),
            (
                &["--memory=32m", "--memory-swap=32MiB"],
                &[(0, mib(32)), (1, "0".into())],
            ),
            (&["--memory-reservation", "8388608"], &[(2, mib(8))]),
            (&["--cpu-quota", "20001"], &[(3, "20001 50000".into())]),
            (&["--cpu-period", "70000"], &[(3, "20001 70000".into())]),
            (&["--cpu-share", "1024"], &[(4, "100".into())]),
            (
                &["--memory", "-1", "--pids-limit", "-1", "--cpu-quota", "-1"],
                &[
                    (0, "max".into()),
                    (1, "max".into()),
                    (3, "max 70000".into()),
                    (5, "max".into()),
                ],
            ),
        ];
        for (args, changes) in steps {
            driven.update(args);
            for (at, value) in changes {
                now[*at].clone_from(value);
            }
            assert_eq!(driven.files(&FILES), now, "{driver:?} {args:?}");
        }
        driven.update(&[
            "--cpuset-cpus",
            "0",
            "--cpuset-mems",
            "0",
            "--cpu-quota",
            "9000",
            "--cpu-burst",
            "500",
        ]);
        assert_eq!(
            driven.files(&["cpuset.cpus", "cpuset.mems", "cpu.max", "cpu.max.burst"]),
            ["0", "0", "9000 70000", "500"]
        );
        driven.update(&["--cpu-idle", "1"]);
        assert_eq!(driven.files(&["cpu.idle"]), ["1"]);
        driven.update(&["--cpu-idle", "0"]);
        assert_eq!(driven.files(&["cpu.idle"]), ["0"]);
        assert_eq!(driven.bundle.status(), "running");
        driven.end();
    }
}

#[test]
fn resources_come_from_a_file_or_from_standard_input() {
    requires!(container, limits);
    for driver in drivers() {
        let driven = limited(driver);
        from_stdin(
            &driven,
            r#"{"pids": {"limit": 33}, "cpu": {"period": 40000}}"#,
        )
        .ok();
        assert_eq!(
            driven.files(&["pids.max", "cpu.max", "memory.max"]),
            ["33".into(), "12345 40000".into(), mib(64)]
        );
        let file = driven.bundle.beside("resources.json");
        std::fs::write(&file, r#"{"unified": {"memory.high": "33554432"}}"#).unwrap();
        // The other options are ignored then.
        driven.update(&["--resources", file.to_str().unwrap(), "--pids-limit", "7"]);
        assert_eq!(
            driven.files(&["memory.high", "pids.max"]),
            [mib(32), "33".into()]
        );
        driven.end();
    }
}

#[test]
fn created_and_paused_containers_are_updated_and_stopped_ones_are_not() {
    requires!(container, limits);
    for driver in drivers() {
        let driven = Driven::sh(driver, "sleep 1000", &json!({}));
        let id = driven.bundle.id.clone();
        driven
            .try_update(&["--pids-limit", "9"])
            .fails_with("container does not exist");
        driven.verb(["create", &id]).ok();
        driven.update(&["--pids-limit", "9"]);
        assert_eq!(driven.files(&["pids.max"]), ["9"]);
        driven.bundle.start();
        driven.verb(["pause", &id]).ok();
        driven.update(&["--pids-limit", "8"]);
        assert_eq!(driven.files(&["pids.max"]), ["8"]);
        assert_eq!(driven.bundle.status(), "paused");
        driven.verb(["resume", &id]).ok();
        driven.bundle.kill("KILL");
        driven.bundle.wait_for("stopped");
        driven
            .try_update(&["--pids-limit", "7"])
            .fails_with("container not running");
        driven.end();
    }
}

#[test]
fn memory_below_the_usage_is_refused_where_that_is_asked_for() {
    requires!(container, limits);
    for driver in drivers() {
        let driven = limited(driver);
        let outcome = from_stdin(
            &driven,
            r#"{"memory": {"limit": 4096, "checkBeforeUpdate": true}}"#,
        );
        outcome.fails_with("rejecting memory limit 4096 <= usage ");
        let outcome = from_stdin(
            &driven,
            r#"{"memory": {"limit": 4096, "swap": 8192, "checkBeforeUpdate": true}}"#,
        );
        outcome.fails_with("rejecting memory+swap limit 8192 <= usage ");
        assert_eq!(driven.files(&["memory.max"]), [mib(64)]);
        assert_eq!(driven.bundle.status(), "running");
        driven.end();
    }
}

#[test]
fn a_refused_update_changes_nothing() {
    requires!(container, limits);
    differs!("runc", "1.1 leaves what it had written");
    differs!("crun", "1.8 leaves what it had written");
    for driver in drivers() {
        let driven = limited(driver);
        let before = driven.files(&FILES);
        let cases: [(&[&str], &str); 9] = [
            (&["--cpu-idle", "1", "--cpuset-cpus", "4000"], "cpuset.cpus"),
            (
                &[
                    "--pids-limit",
                    "5",
                    "--memory",
                    "50M",
                    "--cpuset-cpus",
                    "4000",
                ],
                "cpuset.cpus",
            ),
            (
                &[
                    "--pids-limit",
                    "5",
                    "--cpu-quota",
                    "1000",
                    "--cpu-period",
                    "5",
                ],
                "cpu.max",
            ),
            (
                &["--memory", "50M", "--memory-swap", "40M"],
                "memory+swap limit should be >= memory limit",
            ),
            (&["--memory", "lots"], "invalid value for memory"),
            (&["--cpu-period", "-1"], "invalid value for cpu-period"),
            (
                &["--blkio-weight", "5"],
                "blockIO.weight: 5 is not within 10 and 1000",
            ),
            (
                &["--l3-cache-schema", "L3:0=f"],
                "Intel RDT/CAT: l3 cache schema is not enabled",
            ),
            (
                &["--mem-bw-schema", "MB:0=20"],
                "Intel RDT/MBA: memory bandwidth schema is not enabled",
            ),
        ];
        for (args, words) in cases {
            driven.try_update(args).fails_with(words);
            assert_eq!(driven.files(&FILES), before, "{driver:?} {args:?}");
        }
        for (text, words) in [
            ("", "resources: EOF"),
            ("[]", "expected an object"),
            (r#"{"pids": {"limit": "x"}}"#, "pids.limit"),
            (r#"{"memory": {"limit": 1.5}}"#, "memory.limit"),
            (r#"{"unified": {"../x.max": "1"}}"#, "must be a file name"),
        ] {
            from_stdin(&driven, text).fails_with(words);
            assert_eq!(driven.files(&FILES), before, "{driver:?} {text}");
        }
        driven
            .try_update(&["-r", "/no/such/file"])
            .fails_with("read resources from /no/such/file");
        driven.end();
    }
}

#[test]
fn kernel_memory_is_accepted_and_ignored() {
    requires!(container, limits);
    for driver in drivers() {
        let driven = limited(driver);
        let before = driven.files(&FILES);
        driven.update(&[
            "--kernel-memory",
            "50M",
            "--kernel-memory-tcp",
            "5M",
            "--cpu-rt-period",
            "5",
        ]);
        assert_eq!(driven.files(&FILES), before);
        driven.end();
    }
}

#[test]
fn a_container_without_a_group_has_no_limits_to_change() {
    requires!(container);
    differs!("runc", "it has no such option");
    let bundle = Bundle::sleeping();
    bundle.edit(|config| {
        config["linux"]
            .as_object_mut()
            .unwrap()
            .remove("cgroupsPath");
        config["linux"]["resources"] = Value::Null;
    });
    bundle
        .verb(["--cgroup-manager", "disabled", "create", &bundle.id])
        .ok();
    assert!(!bundle.cgroup().exists());
    bundle.start();
    bundle
        .verb(["update", "--pids-limit", "5", &bundle.id])
        .run()
        .fails_with("cannot set pids limit: container could not join or create cgroup");
    bundle
        .verb(["pause", &bundle.id])
        .run()
        .fails_with("the container has no cgroup of its own");
    assert_eq!(bundle.status(), "running");
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn limits_without_a_group_are_refused() {
    requires!(container);
    differs!("runc", "it has no such option");
    differs!("crun", "it goes on without the limits");
    let bundle = Bundle::sleeping();
    bundle.edit(|config| config["linux"]["resources"] = json!({ "pids": { "limit": 5 } }));
    bundle
        .verb(["--cgroup-manager=disabled", "run", &bundle.id])
        .run()
        .fails_with("limits need a cgroup, and --cgroup-manager=disabled gives none");
    bundle.assert_nothing_left();
}
