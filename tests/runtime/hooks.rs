//! Hooks: where and when each of the six runs, what it is given, and what its failure does.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Bundle, eventually, mounts, runtime, sh};

/// The points in the order in which they are reached.
pub(crate) const POINTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// A hook that runs this script.
fn hook(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] })
}

/// A bundle with `/log` inside and a directory outside that are the same, and both paths for scripts.
struct Logged {
    bundle: Bundle,
    dir: PathBuf,
}

impl Logged {
    /// The program says `program` in the log `order`.
    fn new() -> Self {
        let bundle = Bundle::new();
        let dir = bundle.beside("log");
        std::fs::create_dir(&dir).expect("log");
        bundle.edit(|c| {
            mounts(c).push(json!({ "destination": "/log", "type": "none", "source": dir, "options": ["bind", "rw"] }));
            sh(c, "echo program >> /log/order");
        });
        Self { bundle, dir }
    }

    /// Where the log is for a hook at this point: the last path it can see.
    fn path(&self, point: &str) -> String {
        if point == "startContainer" {
            "/log".into()
        } else {
            self.dir.display().to_string()
        }
    }

    /// Add a hook at this point; `@` in the script stands for the log's directory.
    fn hook(&self, point: &str, script: &str) {
        let mut script = script.replace('@', &self.path(point));
        if runtime().is("crun") && !["cat >", "sed", "wc"].iter().any(|w| script.contains(w)) {
            // COMPAT: crun dies of SIGPIPE when a hook ends without having read the state.
            script = format!("cat > /dev/null; {script}");
        }
        self.add(point, hook(&script));
    }

    fn add(&self, point: &str, hook: Value) {
        self.bundle.edit(|c| {
            if c["hooks"][point].is_null() {
                c["hooks"][point] = json!([]);
            }
            c["hooks"][point].as_array_mut().expect("list").push(hook);
        });
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    fn lines(&self, name: &str) -> Vec<String> {
        self.read(name).lines().map(str::to_owned).collect()
    }
}

#[test]
fn all_six_run_at_their_points() {
    requires!(container);
    differs!("crun", "poststart does not wait for startContainer");
    differs!("runc", "before 1.3 poststart runs at create");
    let logged = Logged::new();
    for point in POINTS {
        logged.hook(point, &format!("echo {point} >> @/order"));
    }
    let bundle = &logged.bundle;
    bundle.create();
    assert_eq!(
        logged.lines("order"),
        ["prestart", "createRuntime", "createContainer"]
    );
    bundle.start();
    bundle.wait_for("stopped");
    let mut order = logged.lines("order").split_off(3);
    assert_eq!(order.remove(0), "startContainer");
    // The program and poststart run side by side.
    order.sort();
    assert_eq!(order, ["poststart", "program"]);
    bundle.delete();
    assert_eq!(
        logged.lines("order").last().map(String::as_str),
        Some("poststop")
    );
    assert_eq!(logged.lines("order").len(), 7);
    bundle.assert_nothing_left();
}

#[test]
fn run_reaches_all_six_and_poststop_before_it_returns() {
    requires!(container);
    differs!("crun", "poststart does not wait for startContainer");
    differs!("runc", "before 1.3 poststart runs at create");
    let logged = Logged::new();
    for point in POINTS {
        logged.hook(point, &format!("echo {point} >> @/order"));
    }
    logged.bundle.run().ok();
    let order = logged.lines("order");
    assert_eq!(order[..4], POINTS[..4]);
    assert_eq!((order.len(), order[6].as_str()), (7, "poststop"));
    logged.bundle.assert_nothing_left();
}

#[test]
fn hooks_of_one_point_run_in_their_order() {
    requires!(container);
    let logged = Logged::new();
    for point in POINTS {
        for n in 0..3 {
            logged.hook(point, &format!("sleep 0.0{}; echo {n} >> @/{point}", 3 - n));
        }
    }
    logged.bundle.run().ok();
    for point in POINTS {
        assert_eq!(logged.lines(point), ["0", "1", "2"], "{point}");
    }
}

#[test]
fn every_hook_is_given_the_state_on_standard_input() {
    requires!(container);
    differs!("crun", "other words at startContainer, and / as the bundle");
    let logged = Logged::new();
    let bundle = &logged.bundle;
    bundle.edit(|c| {
        c["annotations"] = json!({ "org.example.colour": "blue" });
        sh(c, "sleep 1000");
    });
    for point in POINTS {
        logged.hook(point, &format!("cat > @/{point}"));
    }
    bundle.create();
    let pid = bundle.pid().as_raw();
    bundle.start();
    bundle.kill("KILL");
    bundle.wait_for("stopped");
    bundle.delete();
    for (point, status, seen_pid) in [
        ("prestart", "created", pid),
        ("createRuntime", "creating", pid),
        ("createContainer", "creating", 1),
        ("startContainer", "created", 1),
        ("poststart", "running", pid),
        ("poststop", "stopped", 0),
    ] {
        let text = logged.read(point);
        let state: Value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{point}: {e}: {text}"));
        // COMPAT: runc gives creating at prestart, and 1.1 also at poststart, which it runs at create.
        if !(runtime().is("runc") && ["prestart", "poststart"].contains(&point)) {
            assert_eq!(state["status"], json!(status), "{point}: {text}");
        }
        assert_eq!(state["id"], json!(bundle.id), "{point}: {text}");
        assert_eq!(state["bundle"], json!(bundle.path), "{point}: {text}");
        assert_eq!(
            state["annotations"]["org.example.colour"],
            json!("blue"),
            "{point}: {text}"
        );
        assert!(
            state["ociVersion"]
                .as_str()
                .is_some_and(|v| v.starts_with("1.")),
            "{point}: {text}"
        );
        // COMPAT: crun gives the host's pid everywhere.
        if !runtime().is("crun") {
            // A stopped container's pid may be left out.
            assert_eq!(
                state["pid"].as_i64().unwrap_or(0),
                i64::from(seen_pid),
                "{point}: {text}"
            );
        }
    }
}

#[test]
fn hook_is_called_with_its_args_and_env_and_nothing_else() {
    requires!(container);
    for point in POINTS {
        let logged = Logged::new();
        let log = logged.path(point);
        // The shell itself opens them; its own pid says nothing in the host's /proc.
        let script = format!(
            "exec 3< /proc/self/cmdline 4< /proc/self/environ; \
            tr '\\0' '\\n' <&3 > {log}/args; tr '\\0' '\\n' <&4 > {log}/env; cat > /dev/null"
        );
        logged.add(
            point,
            json!({
                "path": "/bin/sh",
                "args": ["ash", "-c", script, "two words", ""],
                "env": ["PATH=/usr/bin:/bin", "COLOUR=light blue", "EMPTY="],
            }),
        );
        logged.bundle.run().ok();
        let args = logged.lines("args");
        assert_eq!(
            (args[0].as_str(), args[1].as_str()),
            ("ash", "-c"),
            "{point}"
        );
        assert_eq!(args[args.len() - 2..], ["two words", ""], "{point}");
        assert_eq!(
            logged.lines("env"),
            ["PATH=/usr/bin:/bin", "COLOUR=light blue", "EMPTY="],
            "{point}"
        );
    }
}

#[test]
fn start_container_hook_without_env_has_the_programs() {
    requires!(container);
    differs!("crun", "its own environment");
    // COMPAT: runc since 1.2.
    differs!("runc", "before 1.2 the environment of the runtime");
    let logged = Logged::new();
    logged
        .bundle
        .edit(|c| c["process"]["env"] = json!(["PATH=/bin", "COLOUR=blue"]));
    let script = "cat /proc/$$/environ | tr '\\0' '\\n' > /log/env";
    logged.add(
        "startContainer",
        json!({ "path": "/bin/sh", "args": ["sh", "-c", script] }),
    );
    logged.bundle.run().ok();
    let env = logged.lines("env");
    assert!(
        env.contains(&"COLOUR=blue".into()) && env.contains(&"PATH=/bin".into()),
        "{env:?}"
    );
    // What the payload gets besides, it gets too.
    assert!(env.contains(&"HOME=/root".into()), "{env:?}");
}

#[test]
fn hooks_run_in_the_namespaces_of_their_point() {
    requires!(container);
    let logged = Logged::new();
    logged.bundle.edit(|c| sh(c, "sleep 1000"));
    std::fs::write(logged.bundle.rootfs("mark"), "").expect("mark");
    let names = "for n in mnt uts ipc pid; do readlink /proc/self/ns/$n; done";
    for point in POINTS {
        logged.hook(
            point,
            &format!("{{ {names}; ! test -e /mark || echo inside; }} > @/{point}"),
        );
    }
    logged.bundle.up();
    let of = |who: &str| -> Vec<String> {
        let read = |n| {
            let mut link = None;
            // Until its program runs, a process may hide from its own user.
            eventually(|| {
                link = std::fs::read_link(format!("/proc/{who}/ns/{n}")).ok();
                link.is_some()
            });
            link.expect("namespace")
        };
        ["mnt", "uts", "ipc", "pid"]
            .into_iter()
            .map(|n| read(n).display().to_string())
            .collect()
    };
    let outside = of("thread-self");
    let mut inside = of(&logged.bundle.pid().to_string());
    logged.bundle.delete_force();
    for point in ["prestart", "createRuntime", "poststart", "poststop"] {
        assert_eq!(logged.lines(point), outside, "{point}");
    }
    assert_eq!(logged.lines("createContainer"), inside);
    inside.push("inside".into());
    assert_eq!(logged.lines("startContainer"), inside);
}

#[test]
fn create_runtime_hook_finds_the_mounts_made_and_the_root_not_yet_changed() {
    requires!(root);
    let logged = Logged::new();
    let rootfs = logged.bundle.path.join("rootfs");
    let seen = format!(
        "cat /proc/self/mountinfo > @/inside; ls {}/log > @/listing",
        rootfs.display()
    );
    logged.hook("createContainer", &seen);
    logged.bundle.run().ok();
    let table = logged.read("inside");
    for target in ["/proc", "/dev/pts", "/log"] {
        let path = format!("{}{target} ", rootfs.display());
        assert!(table.lines().any(|l| l.contains(&path)), "{path}: {table}");
    }
    assert_eq!(logged.lines("listing"), ["inside", "listing"]);
}

#[test]
fn create_runtime_hook_finds_the_process_in_its_namespaces() {
    requires!(root);
    let logged = Logged::new();
    // What a network plugin does: take the pid from the state, and its namespace.
    let script = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/;q'); readlink /proc/$pid/ns/net > @/net; \
        cat /proc/$pid/cgroup > @/cgroup";
    logged.hook("createRuntime", script);
    logged.bundle.create();
    let net =
        std::fs::read_link(format!("/proc/{}/ns/net", logged.bundle.pid())).expect("namespace");
    assert_eq!(logged.lines("net"), [net.to_str().expect("text")]);
    assert!(
        logged
            .read("cgroup")
            .lines()
            .any(|l| l == format!("0::/{}", logged.bundle.id)),
        "{}",
        logged.read("cgroup")
    );
}

#[test]
fn failing_hook_before_start_undoes_create() {
    requires!(container);
    for (point, script, words) in [
        (
            "prestart",
            "echo out; echo oops >&2; exit 3",
            "error running prestart hook #1: exit status 3, stdout: out",
        ),
        (
            "createRuntime",
            "echo oops >&2; exit 1",
            "error running createRuntime hook #1: exit status 1, stdout: , stderr: oops",
        ),
        (
            "createContainer",
            "exit 1",
            "error running createContainer hook #1: exit status 1, stdout: , stderr: ",
        ),
        (
            "createRuntime",
            "kill -9 $$",
            "error running createRuntime hook #1: signal: killed",
        ),
    ] {
        for verb in ["create", "run"] {
            let logged = Logged::new();
            logged.hook(point, "true");
            logged.hook(point, script);
            logged.hook(point, "echo late >> @/order");
            logged.hook("poststop", "echo poststop >> @/order");
            let outcome = logged.bundle.verb([verb, &logged.bundle.id]).run();
            let line = outcome.error_line();
            // COMPAT: runc 1.1 says `Running hook #1:: error running hook:` and the same after it.
            assert!(
                !runtime().is("pelagos") || line.contains(words),
                "expected `{words}`\n{outcome}"
            );
            logged.bundle.assert_nothing_left();
            if runtime().is("pelagos") {
                assert_eq!(logged.lines("order"), ["poststop"], "{point} {verb}");
            }
        }
    }
}

#[test]
fn failing_start_container_hook_stops_the_container() {
    requires!(container);
    let logged = Logged::new();
    logged.hook("startContainer", "echo oops >&2; exit 1");
    logged.hook("poststop", "echo poststop >> @/order");
    let bundle = &logged.bundle;
    bundle.create();
    let outcome = bundle.verb(["start", &bundle.id]).run();
    if runtime().is("pelagos") {
        // COMPAT: runc's start has returned by then.
        outcome.fails_with("error running startContainer hook #0: exit status 1");
    }
    bundle.wait_for("stopped");
    bundle.delete();
    assert_eq!(logged.lines("order"), ["poststop"]);
    bundle.assert_nothing_left();
}

#[test]
fn failing_poststart_hook_kills_the_container() {
    requires!(container);
    differs!("runc", "before 1.3 poststart runs at create");
    differs!("crun", "it only warns");
    let logged = Logged::new();
    logged.bundle.edit(|c| sh(c, "sleep 1000"));
    logged.hook("poststart", "exit 1");
    let bundle = &logged.bundle;
    bundle.create();
    let outcome = bundle.verb(["start", &bundle.id]).run();
    assert_eq!(outcome.code(), 1, "{outcome}");
    if runtime().is("pelagos") {
        outcome.fails_with("error running poststart hook #0: exit status 1");
    }
    bundle.wait_for("stopped");
    bundle.delete();
    bundle.assert_nothing_left();
}

#[test]
fn failing_poststop_hook_is_a_warning_and_the_next_one_runs() {
    requires!(container);
    differs!("runc", "it leaves out the hooks after the failed one");
    let logged = Logged::new();
    logged.hook("poststop", "exit 1");
    logged.hook("poststop", "echo second >> @/order");
    let bundle = &logged.bundle;
    bundle.up();
    bundle.wait_for("stopped");
    let outcome = bundle.delete();
    assert!(
        outcome.stderr.contains("exit status 1") || !runtime().is("pelagos"),
        "{outcome}"
    );
    assert_eq!(logged.lines("order"), ["program", "second"]);
    bundle.assert_nothing_left();
}

#[test]
fn hook_past_its_timeout_is_killed_and_create_undone() {
    requires!(container);
    let logged = Logged::new();
    logged.add(
        "createRuntime",
        json!({ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }),
    );
    let began = std::time::Instant::now();
    let outcome = logged.bundle.verb(["create", &logged.bundle.id]).run();
    assert!(
        began.elapsed().as_secs_f64() >= 1.0 && began.elapsed().as_secs() < 10,
        "{:?}",
        began.elapsed()
    );
    outcome.fails_with("hook ran past specified timeout of 1.0s");
    logged.bundle.assert_nothing_left();
}

#[test]
fn hook_in_time_is_not_killed() {
    requires!(container);
    let logged = Logged::new();
    let mut in_time = hook(&format!(
        "sleep 0.2; echo done > {}/done",
        logged.path("createRuntime")
    ));
    in_time["timeout"] = json!(20);
    logged.add("createRuntime", in_time);
    logged.bundle.run().ok();
    assert_eq!(logged.lines("done"), ["done"]);
}

#[test]
fn hook_that_is_not_there_is_an_error_that_names_it() {
    requires!(container);
    let logged = Logged::new();
    logged.add("createRuntime", json!({ "path": "/nonexistent/hook" }));
    let outcome = logged.bundle.verb(["create", &logged.bundle.id]).run();
    outcome.fails_with("/nonexistent/hook");
    logged.bundle.assert_nothing_left();
}

#[test]
fn hook_need_not_read_its_standard_input() {
    requires!(container);
    let logged = Logged::new();
    // More than a pipe holds.
    logged
        .bundle
        .edit(|c| c["annotations"] = json!({ "org.example.long": "x".repeat(300_000) }));
    logged.hook("createRuntime", "exec 0<&-; echo fine > @/order");
    logged.hook("poststop", "wc -c > @/size");
    logged.bundle.run().ok();
    assert_eq!(logged.lines("order"), ["fine", "program"]);
    let size: u32 = logged.read("size").trim().parse().expect("a number");
    assert!(size > 300_000, "{size}");
}

#[test]
fn hook_may_print_more_than_a_pipe_holds() {
    requires!(container);
    let logged = Logged::new();
    logged.hook(
        "createRuntime",
        "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2",
    );
    logged.hook(
        "createRuntime",
        "head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1",
    );
    let outcome = logged.bundle.run();
    assert_ne!(outcome.code(), 0);
    assert!(
        outcome.stderr.contains("hook #1") || !runtime().is("pelagos"),
        "{}",
        &outcome.stderr[..200]
    );
    logged.bundle.assert_nothing_left();
}

#[test]
fn hooks_hold_no_descriptors_of_the_runtime() {
    requires!(container);
    // COMPAT: runc's hooks at createContainer hold its own.
    differs!("runc", "before 1.2 some leak");
    differs!("crun", "some leak");
    let logged = Logged::new();
    for point in POINTS {
        logged.hook(point, &format!("for f in /proc/self/fd/*; do readlink $f > /dev/null && echo ${{f##*/}}; done > @/{point}; true"));
    }
    logged.bundle.run().ok();
    for point in POINTS {
        // The shell keeps standard output at 10 while it is redirected.
        let open: Vec<_> = logged
            .lines(point)
            .into_iter()
            .filter(|f| f != "10")
            .collect();
        assert_eq!(open, ["0", "1", "2"], "{point}");
    }
}

#[test]
fn poststop_runs_when_delete_takes_a_created_container() {
    requires!(container);
    let logged = Logged::new();
    logged.hook("poststop", "cat > @/state; echo poststop >> @/order");
    logged.bundle.create();
    logged.bundle.delete_force();
    assert!(eventually(|| logged.lines("order") == ["poststop"]));
    assert_eq!(logged.bundle.verb(["list", "-q"]).ok().stdout, "");
    logged.bundle.assert_nothing_left();
}

#[test]
fn poststop_finds_the_container_gone() {
    requires!(root);
    differs!("crun", "before the control group is removed");
    let logged = Logged::new();
    let group = logged.bundle.cgroup();
    logged.hook(
        "poststop",
        &format!(
            "test -e {} && echo there > @/group || echo gone > @/group",
            group.display()
        ),
    );
    logged.bundle.run().ok();
    assert_eq!(logged.lines("group"), ["gone"]);
}
