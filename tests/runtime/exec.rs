//! `exec`: one process more in a container.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::inside::{
    Seen, answers, asking, place_probe, privileged, user_namespace, without_namespace,
};
use crate::support::console::{ConsoleSocket, Terminal, socket_path};
use crate::support::{Bundle, Outcome, Verb, eventually, runtime};

/// A container that waits, with the probe in its root.
fn waiting(edit: impl FnOnce(&mut Value)) -> Bundle {
    let bundle = Bundle::with(|c| {
        c["process"]["args"] = json!(["sleep", "1000"]);
        edit(c);
    });
    place_probe(&bundle.rootfs("probe"));
    bundle
}

fn up(edit: impl FnOnce(&mut Value)) -> Bundle {
    let bundle = waiting(edit);
    bundle.up();
    bundle
}

/// `exec options ID command`.
fn exec(bundle: &Bundle, options: &[&str], command: &[&str]) -> Verb {
    bundle
        .verb(["exec"])
        .args(options)
        .arg(&bundle.id)
        .args(command)
}

/// What the probe sees as such a process.
#[track_caller]
fn see(bundle: &Bundle, options: &[&str], questions: &[&str]) -> Seen {
    let mut command = vec!["/probe"];
    command.extend(questions);
    answers(&exec(bundle, options, &command).ok())
}

/// What the probe sees as the process that this text describes, with its questions as arguments.
fn see_process(bundle: &Bundle, process: &Value) -> Seen {
    let file = bundle.beside("process.json");
    fs::write(&file, process.to_string()).expect("process file");
    let outcome = bundle.verb(["exec", "--process"]).arg(&file);
    answers(&outcome.arg(&bundle.id).ok())
}

/// Expect a failure of exec's own: exit code 255 and one line with these words.
#[track_caller]
fn refused(outcome: &Outcome, words: &str) {
    assert_eq!(outcome.code(), 255, "{outcome}");
    assert_eq!(outcome.stdout, "", "{outcome}");
    if runtime().is("pelagos") {
        let line = outcome.stderr.replace("\\\"", "\"");
        assert_eq!(line.lines().count(), 1, "{outcome}");
        assert!(line.contains("exec failed: "), "{outcome}");
        assert!(line.contains(words), "expected `{words}`\n{outcome}");
    }
}

/// Processes on the host whose parent chain or namespace does not matter: those in the container's pid namespace.
fn inhabitants(bundle: &Bundle) -> Vec<i32> {
    let own = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = own(bundle.pid().as_raw());
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| wanted.is_some() && own(*pid) == wanted)
        .collect()
}

#[test]
fn the_process_is_in_the_containers_namespaces_root_and_cgroup() {
    requires!(container);
    let bundle = up(|c| c["process"]["cwd"] = json!("/tmp"));
    let init = |kind: &str| {
        let path = format!("/proc/{}/ns/{kind}", bundle.pid());
        fs::read_link(path)
            .expect("a namespace")
            .display()
            .to_string()
    };
    let seen = see(&bundle, &[], &["stat:/probe", "read:/proc/self/cgroup"]);
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts", "time"] {
        assert_eq!(seen["namespaces"][kind], init(kind), "{kind}");
    }
    assert_eq!(seen["cwd"], "/tmp");
    assert_eq!(seen["hostname"], "box");
    assert_eq!(seen["ppid"], 0);
    assert_eq!(seen["pid"], seen["sid"]);
    seen.ok("stat:/probe");
    if crate::support::needs::is_root() {
        let text = seen.text("read:/proc/self/cgroup").to_owned();
        assert!(text.lines().any(|line| line == "0::/"), "{text}");
    }
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn the_process_is_limited_as_the_containers_own() {
    requires!(container);
    let bundle = up(|c| {
        c["process"]["noNewPrivileges"] = json!(true);
        c["process"]["user"]["umask"] = json!(0o027);
        c["process"]["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": 5, "hard": 7 }]);
        c["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 15 });
        c["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
        c["linux"]["personality"] = json!({ "domain": "LINUX32" });
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 75 }],
        });
    });
    let seen = see(&bundle, &[], &["mkdir:/tmp/made"]);
    assert_eq!(seen.errno("mkdir:/tmp/made"), "EOVERFLOW");
    assert_eq!(seen["no_new_privs"], 1);
    if !runtime().is("runc") && !runtime().is("crun") {
        // Of both since 1.2 and 1.9.
        assert_eq!((&seen["scheduler"], &seen["nice"]), (&json!(3), &json!(15)));
        assert_eq!(seen["ioprio"], 2 << 13 | 6);
        assert_eq!(seen["personality"], 8);
    }
    assert_eq!(seen["umask"], "0027");
    assert_eq!(seen["rlimits"]["RLIMIT_CORE"], json!([5, 7]));
    assert_eq!(seen["capabilities"]["inheritable"], json!([]));
    assert_eq!(
        seen["capabilities"]["permitted"],
        json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"])
            .as_array()
            .map_or(json!(null), |names| {
                let mut names = names.clone();
                names.sort_by_key(|name| {
                    let name = name.as_str().unwrap_or_default();
                    crate::probe::CAPABILITIES
                        .iter()
                        .position(|known| *known == name)
                });
                json!(names)
            })
    );
    assert_eq!(seen["signals_blocked"], json!([]));
    assert_eq!(seen["signals_ignored"], json!([]));
    assert_eq!(seen["pdeathsig"], Value::Null);
}

#[test]
fn nothing_of_the_runtime_is_open_in_the_process() {
    requires!(container);
    let bundle = up(|_| {});
    let seen = see(&bundle, &[], &[]);
    let open = seen["fds"].as_object().expect("descriptors");
    let more: Vec<_> = open
        .iter()
        .filter(|(number, target)| {
            number.parse::<i32>().is_ok_and(|number| number > 2)
                && !target.as_str().is_some_and(|t| t.starts_with("/proc"))
        })
        .collect();
    assert!(more.is_empty(), "{more:?}");
}

#[test]
fn options_change_the_process() {
    requires!(root);
    let bundle = up(|_| {});
    let seen = see(
        &bundle,
        &[
            "--cwd",
            "/tmp",
            "-e",
            "A=1",
            "--env",
            "B=2,3",
            "-e",
            "A=4",
            "--user",
            "1000:50",
            "-g",
            "7",
            "--additional-gids",
            "9",
        ],
        &["-t", "--", "-u"],
    );
    assert_eq!(seen["args"], json!(["/probe", "-t", "--", "-u"]));
    assert_eq!(seen["cwd"], "/tmp");
    let env = seen["env"].as_array().unwrap();
    assert!(
        env.contains(&json!("A=4")) && !env.contains(&json!("A=1")),
        "{env:?}"
    );
    assert!(env.contains(&json!("B=2,3")), "{env:?}");
    assert!(env.contains(&json!("HOME=/home/ada")), "{env:?}");
    assert_eq!((&seen["uid"], &seen["gid"]), (&json!(1000), &json!(50)));
    assert_eq!(seen["groups"], json!([7, 9]));
    let plain = see(&bundle, &["-u", "1000"], &[]);
    assert_eq!((&plain["uid"], &plain["gid"]), (&json!(1000), &json!(0)));
}

#[test]
fn an_empty_option_is_one_that_was_not_given() {
    requires!(root);
    let bundle = up(|c| c["process"]["user"] = json!({ "uid": 1000, "gid": 50 }));
    let options = ["--process-label", "", "--apparmor=", "--cwd", ""];
    let seen = see(&bundle, &options, &[]);
    assert_eq!((&seen["uid"], &seen["gid"]), (&json!(1000), &json!(50)));
    assert_eq!(seen["cwd"], "/");
}

/// CVE-2022-29162, CVE-2022-27650.
#[test]
fn a_capability_that_is_added_is_not_inheritable() {
    requires!(root);
    let bundle = up(|_| {});
    let seen = see(
        &bundle,
        &["--cap", "CAP_NET_ADMIN", "-c", "CAP_SYS_PTRACE"],
        &[],
    );
    for set in ["bounding", "effective", "permitted"] {
        let set = seen["capabilities"][set].as_array().unwrap();
        assert!(set.contains(&json!("CAP_NET_ADMIN")), "{set:?}");
        assert!(set.contains(&json!("CAP_SYS_PTRACE")), "{set:?}");
        assert!(set.contains(&json!("CAP_KILL")), "{set:?}");
    }
    for set in ["inheritable", "ambient"] {
        assert_eq!(seen["capabilities"][set], json!([]), "{set}");
    }
}

#[test]
fn no_new_privileges_can_be_asked_for() {
    requires!(container);
    let bundle = up(|c| c["process"]["noNewPrivileges"] = json!(false));
    assert_eq!(see(&bundle, &[], &[])["no_new_privs"], 0);
    assert_eq!(see(&bundle, &["--no-new-privs"], &[])["no_new_privs"], 1);
}

#[test]
fn no_new_privileges_of_the_container_can_be_taken_back() {
    requires!(root);
    differs!("crun", "its switches take no value");
    let bundle = up(|c| c["process"]["noNewPrivileges"] = json!(true));
    let seen = |options: &[&str]| see(&bundle, options, &[])["no_new_privs"].clone();
    assert_eq!(seen(&[]), 1);
    for word in [
        "--no-new-privs=false",
        "-no-new-privs=0",
        "--no-new-privs=f",
    ] {
        assert_eq!(seen(&[word]), 0, "{word}");
    }
    assert_eq!(seen(&["--no-new-privs=f", "--no-new-privs"]), 1);
    assert_eq!(seen(&["--no-new-privs=false", "--no-new-privs=T"]), 1);
    let wrong = exec(&bundle, &["--no-new-privs=perhaps"], &["true"]).run();
    assert_eq!(wrong.code(), 1, "{wrong}");
    assert!(wrong.stderr.contains("perhaps"), "{wrong}");
}

/// CVE-2026-30892.
#[test]
fn a_user_that_is_no_number_is_refused() {
    requires!(container);
    let bundle = up(|_| {});
    for user in [
        "",
        "1000x",
        ":5",
        "4294967296",
        "-1",
        "1 ",
        "root",
        "0:",
        "+0",
        "4294967295",
    ] {
        refused(
            &exec(&bundle, &["-u", user], &["true"]).run(),
            "is not a numeric id",
        );
    }
    for (group, words) in [
        ("-1", "additional-gids must be a positive number -1"),
        ("4294967295", "4294967295 is not a numeric id"),
        ("99999999999", "99999999999 is not a numeric id"),
    ] {
        refused(&exec(&bundle, &["-g", group], &["true"]).run(), words);
    }
    // No number at all is a wrong command line.
    for group in ["x", ""] {
        let outcome = exec(&bundle, &["-g", group], &["true"]).run();
        assert_eq!(outcome.code(), 1, "{outcome}");
        let words = format!("invalid value {group:?} for flag -additional-gids");
        assert!(outcome.stdout.contains(&words), "{outcome}");
    }
}

#[test]
fn a_process_file_describes_the_process() {
    requires!(root);
    let bundle = up(|c| {
        c["process"]["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": 5, "hard": 7 }]);
        c["process"]["oomScoreAdj"] = json!(77);
        c["process"]["user"]["umask"] = json!(0o027);
    });
    let seen = see_process(
        &bundle,
        &json!({
            "args": ["/probe", "one"],
            "env": ["PATH=/bin", "X=y"],
            "cwd": "/mnt",
            "user": { "uid": 1000, "gid": 1000, "additionalGids": [50] },
            "terminal": false,
            "scheduler": { "policy": "SCHED_BATCH", "nice": 3 },
            "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 6 },
            "noNewPrivileges": false,
        }),
    );
    assert_eq!(seen["args"], json!(["/probe", "one"]));
    assert_eq!(seen["env"], json!(["PATH=/bin", "X=y", "HOME=/home/ada"]));
    assert_eq!(seen["cwd"], "/mnt");
    assert_eq!(seen["uid"], 1000);
    assert_eq!(seen["groups"], json!([50]));
    assert_eq!((&seen["scheduler"], &seen["nice"]), (&json!(3), &json!(3)));
    assert_eq!(seen["ioprio"], json!(2 << 13 | 6));
    assert_eq!(seen["no_new_privs"], 0);
    // What it does not say is as in the container's configuration.
    assert_eq!(seen["rlimits"]["RLIMIT_CORE"], json!([5, 7]));
    assert_eq!(seen["oom_score_adj"], 77);
    assert_eq!(seen["umask"], "0027");
    assert_eq!(
        seen["capabilities"]["bounding"].as_array().map(Vec::len),
        Some(3)
    );
    let own = see_process(
        &bundle,
        &json!({
            "args": ["/probe"], "cwd": "/", "user": { "uid": 0, "gid": 0, "umask": 0o077 }, "env": [],
        }),
    );
    assert_eq!(own["umask"], "0077");
}

#[test]
fn a_process_may_be_described_on_standard_input() {
    requires!(container);
    differs!("runc", "takes it for the name of a file");
    let bundle = up(|_| {});
    let file = bundle.beside("process.json");
    let process = json!({ "args": ["echo", "here"], "cwd": "/", "env": ["PATH=/bin"] });
    fs::write(&file, process.to_string()).unwrap();
    let outcome = bundle
        .verb(["exec", "--process", "-", &bundle.id])
        .stdin(fs::File::open(&file).unwrap());
    assert_eq!(outcome.ok().stdout, "here\n");
}

#[test]
fn a_process_file_that_is_wrong_is_refused_with_the_field() {
    requires!(container);
    let bundle = up(|_| {});
    let file = bundle.beside("process.json");
    for (text, words) in [
        ("{", "EOF"),
        ("[]", "expected an object"),
        (r#"{"cwd": "/", "args": ["true"]} {}"#, "trailing"),
        (r#"{"cwd": "/", "args": []}"#, "args must not be empty"),
        (
            r#"{"cwd": "tmp", "args": ["true"]}"#,
            "Cwd must be an absolute path",
        ),
        (r#"{"cwd": "/", "args": "true"}"#, "process.args"),
        (
            r#"{"cwd": "/", "args": ["true"], "env": ["x"]}"#,
            "process.env[0]",
        ),
        (
            r#"{"cwd": "/", "args": ["true"], "rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}"#,
            "wrong rlimit value: RLIMIT_X",
        ),
        (
            r#"{"cwd": "/", "args": ["true"], "execCPUAffinity": {"initial": "9-1"}}"#,
            "process.execCPUAffinity.initial",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let call = bundle.verb(["exec", "-p"]).arg(&file).arg(&bundle.id);
        refused(&call.run(), words);
    }
    let missing = bundle.verb(["exec", "-p", "/nonexistent", &bundle.id]);
    refused(&missing.run(), "no such file or directory");
}

#[test]
fn the_exit_code_is_the_programs_or_128_and_its_signal() {
    requires!(container);
    let bundle = up(|_| {});
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
    ] {
        let outcome = exec(&bundle, &[], &["sh", "-c", script]).run();
        assert_eq!(outcome.code(), code, "{script}\n{outcome}");
    }
    for (program, words) in [
        ("nosuch", "executable file not found in $PATH"),
        ("/nosuch", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        refused(&exec(&bundle, &[], &[program]).run(), words);
    }
    assert_eq!(bundle.status(), "running");
}

#[test]
fn wrong_moments_are_refused() {
    requires!(container);
    let bundle = waiting(|_| {});
    refused(
        &exec(&bundle, &[], &["true"]).run(),
        "container does not exist",
    );
    bundle.up();
    refused(&exec(&bundle, &[], &[]).run(), "exec args cannot be empty");
    bundle.kill("KILL");
    bundle.wait_for("stopped");
    refused(
        &exec(&bundle, &[], &["true"]).run(),
        "cannot exec in a stopped container",
    );
    bundle.delete();
    bundle.assert_nothing_left();
}

#[test]
fn a_created_container_can_be_entered() {
    requires!(root);
    let bundle = waiting(|_| {});
    bundle.create();
    let seen = see(&bundle, &[], &["stat:/probe"]);
    assert_eq!(seen["hostname"], "box");
    assert_eq!(bundle.status(), "created");
    bundle.start();
    assert_eq!(bundle.status(), "running");
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn a_paused_container_is_entered_only_when_asked_and_then_waits() {
    requires!(root);
    let bundle = up(|_| {});
    bundle.verb(["pause", &bundle.id]).ok();
    let words = "cannot exec in a paused container (use --ignore-paused to override)";
    refused(&exec(&bundle, &[], &["true"]).run(), words);
    let mut waiting = exec(&bundle, &["--ignore-paused"], &["sh", "-c", "exit 9"]).spawn();
    std::thread::sleep(Duration::from_millis(200));
    assert!(waiting.is_running());
    bundle.verb(["resume", &bundle.id]).ok();
    assert_eq!(waiting.wait().code(), 9);
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn a_detached_process_has_a_pid_file_and_lives_on() {
    requires!(container);
    let bundle = up(|_| {});
    let file = bundle.beside("pid");
    let outcome = exec(
        &bundle,
        &["-d", "--pid-file", file.to_str().unwrap()],
        &["sleep", "500"],
    )
    .ok();
    assert_eq!(outcome.stdout, "");
    let text = fs::read_to_string(&file).unwrap();
    let pid: i32 = text.parse().expect("a number and nothing else");
    let command = || fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert_eq!(command(), b"sleep\x00500\x00");
    assert!(inhabitants(&bundle).contains(&pid));
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert!(eventually(|| command().is_empty()));
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn what_cannot_be_handed_over_ends_the_process() {
    requires!(container);
    let bundle = up(|_| {});
    let before = inhabitants(&bundle).len();
    for options in [
        &["-d", "--pid-file", "/nonexistent/pid"][..],
        &["-d", "--pidfd-socket", "/nonexistent/socket"],
        &["-d", "-t", "--console-socket", "/nonexistent/socket"],
    ] {
        refused(
            &exec(&bundle, options, &["sleep", "1000"]).run(),
            "no such file or directory",
        );
    }
    refused(
        &exec(&bundle, &["-d", "-t"], &["sleep", "1000"]).run(),
        "cannot allocate tty if runc will detach without setting console socket",
    );
    refused(
        &exec(
            &bundle,
            &["-d", "--console-socket", "/x"],
            &["sleep", "1000"],
        )
        .run(),
        "cannot use console socket if runc will not detach or allocate tty",
    );
    refused(
        &exec(&bundle, &["--preserve-fds", "40"], &["true"]).run(),
        "unable to stat preserved-fd",
    );
    assert!(eventually(|| inhabitants(&bundle).len() == before));
}

#[test]
fn signals_are_passed_on_to_the_process() {
    requires!(container);
    let bundle = up(|_| {});
    let script = "trap 'echo usr1; exit 3' USR1; echo ready; while true; do sleep 0.01; done";
    let running = exec(&bundle, &[], &["sh", "-c", script]).spawn();
    assert!(eventually(|| running.stdout() == "ready\n"));
    running.signal(Signal::SIGUSR1);
    let outcome = running.wait();
    assert_eq!(
        (outcome.code(), outcome.stdout.as_str()),
        (3, "ready\nusr1\n")
    );
    let script = "echo ready; exec sleep 1000";
    let running = exec(&bundle, &[], &["sh", "-c", script]).spawn();
    assert!(eventually(|| running.stdout() == "ready\n"));
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().code(), 143);
}

#[test]
fn the_end_of_the_container_is_the_end_of_the_process() {
    requires!(root);
    let bundle = up(|_| {});
    let script = "echo ready; exec sleep 1000";
    let running = exec(&bundle, &[], &["sh", "-c", script]).spawn();
    assert!(eventually(|| running.stdout() == "ready\n"));
    bundle.kill("KILL");
    assert_eq!(running.wait().code(), 137);
    bundle.wait_for("stopped");
    bundle.delete();
    bundle.assert_nothing_left();
}

#[test]
fn execs_that_meet_a_delete_fail_or_die_and_leave_nothing() {
    requires!(root);
    for _ in 0..5 {
        let bundle = up(|_| {});
        let running: Vec<_> = (0..6)
            .map(|_| exec(&bundle, &[], &["sleep", "1000"]).spawn())
            .collect();
        bundle.delete_force();
        for call in running {
            let code = call.wait().code();
            assert!(code == 255 || code == 137, "{code}");
        }
        bundle.assert_nothing_left();
    }
}

#[test]
fn a_killed_exec_leaves_the_container_as_it_was() {
    requires!(root);
    let bundle = up(|_| {});
    for pause in [0, 1, 2, 3, 5, 8, 12] {
        let running = exec(&bundle, &["-d"], &["true"]).spawn();
        std::thread::sleep(Duration::from_millis(pause));
        running.signal(Signal::SIGKILL);
        let code = running.wait().code();
        assert!(code == 137 || code == 0, "{code}");
    }
    assert!(
        eventually(|| inhabitants(&bundle).len() == 1),
        "{:?}",
        inhabitants(&bundle)
    );
    exec(&bundle, &[], &["true"]).ok();
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn a_terminal_is_attached_or_handed_over() {
    requires!(container);
    let bundle = up(|_| {});
    let outcome = exec(
        &bundle,
        &["-t"],
        &["sh", "-c", "tty; test -t 0 && test -t 1 && echo yes"],
    )
    .ok();
    assert_eq!(outcome.stdout, "/dev/pts/0\r\nyes\r\n");
    let socket = ConsoleSocket::bind(socket_path(&bundle.beside("")));
    let pid = bundle.beside("pid");
    exec(
        &bundle,
        &[
            "-d",
            "-t",
            "--console-socket",
            socket.path.to_str().unwrap(),
            "--pid-file",
            pid.to_str().unwrap(),
        ],
        &[
            "sh",
            "-c",
            "echo begin; read line; echo got $line; sleep 1000",
        ],
    )
    .ok();
    let mut received = socket.receive();
    assert_eq!(received.fds.len(), 1);
    let mut terminal = Terminal::new(received.fds.pop().unwrap());
    terminal.expect("begin\r\n");
    terminal.write("word\n");
    terminal.expect("got word\r\n");
    // The container's own console is not covered.
    let console = exec(
        &bundle,
        &[],
        &["sh", "-c", "grep -c /dev/console /proc/mounts"],
    )
    .run();
    assert_eq!(console.stdout, "0\n");
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn a_process_file_can_ask_for_a_terminal_with_a_size() {
    requires!(container);
    let bundle = up(|_| {});
    let file = bundle.beside("process.json");
    let process = json!({
        "args": ["stty", "size"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"],
        "terminal": true, "consoleSize": { "height": 12, "width": 34 },
    });
    fs::write(&file, process.to_string()).unwrap();
    let outcome = bundle.verb(["exec", "-p"]).arg(&file).arg(&bundle.id).ok();
    assert_eq!(outcome.stdout, "12 34\r\n");
}

#[test]
fn the_containers_own_terminal_is_not_asked_for_again() {
    requires!(container);
    let bundle = waiting(|c| c["process"]["terminal"] = json!(true));
    let socket = ConsoleSocket::bind(socket_path(&bundle.beside("")));
    bundle
        .verb(["create", "--console-socket"])
        .arg(&socket.path)
        .arg(&bundle.id)
        .ok();
    let _terminal = socket.receive();
    bundle.start();
    let outcome = exec(&bundle, &[], &["sh", "-c", "test -t 1 || echo none"]).ok();
    assert_eq!(outcome.stdout, "none\n");
}

#[test]
fn the_pidfd_socket_gets_the_process() {
    requires!(container);
    let bundle = up(|_| {});
    let socket = ConsoleSocket::bind(socket_path(&bundle.beside("")));
    exec(
        &bundle,
        &["-d", "--pidfd-socket", socket.path.to_str().unwrap()],
        &["sleep", "1000"],
    )
    .ok();
    let received = socket.receive();
    assert_eq!((received.data.as_str(), received.fds.len()), ("setns", 1));
}

#[test]
fn the_session_keyring_is_the_containers() {
    requires!(root);
    let bundle = asking(&["sleep:1", "await:/tmp/end"], |_| {});
    let first = bundle.verb(["run", &bundle.id]).spawn();
    assert!(eventually(|| bundle
        .verb(["state", &bundle.id])
        .run()
        .code()
        == 0));
    bundle.wait_for("running");
    let seen = see(&bundle, &[], &[]);
    fs::write(bundle.rootfs("tmp/end"), "").unwrap();
    let init = answers(&first.wait().ok());
    let name = init["keyring"].as_str().expect("a keyring");
    assert!(name.contains("_ses."), "{name}");
    assert_eq!(seen["keyring"], init["keyring"]);
}

#[test]
fn descriptors_are_passed_on_when_asked_for() {
    differs!("crun", "passes on those of LISTEN_FDS too");
    requires!(root, command "bash");
    let bundle = up(|_| {});
    // The service manager's are for the container's init.
    let script =
        "exec 3</etc/hostname 4</etc/passwd; export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$@\"";
    let seen = answers(
        &exec(&bundle, &["--preserve-fds", "1"], &["/probe"])
            .under(["bash", "-c", script, "bash"])
            .ok(),
    );
    let open = seen["fds"].as_object().expect("descriptors");
    assert!(
        open.contains_key("3") && !open.contains_key("4"),
        "{open:?}"
    );
    let env = seen["env"].to_string();
    assert!(!env.contains("LISTEN_"), "{env}");
    // Less than none is none.
    let seen = see(&bundle, &["--preserve-fds", "-1"], &[]);
    assert_eq!(
        seen["fds"].as_object().map(|open| open.contains_key("3")),
        Some(false)
    );
}

#[test]
fn a_cgroup_below_the_containers_can_be_named() {
    requires!(root);
    let bundle = up(|_| {});
    let made = bundle.cgroup().join("inner");
    fs::create_dir(&made).unwrap();
    // Its name only begins as the container's.
    let beside = bundle.cgroup().with_file_name(format!("{}x", bundle.id));
    let cgroup = |path: &str| {
        let outcome = exec(
            &bundle,
            &["--cgroup", path],
            &["sh", "-c", "grep ^0:: /proc/self/cgroup"],
        );
        outcome.run()
    };
    for (path, seen) in [
        ("inner", "0::/inner\n"),
        ("/inner", "0::/inner\n"),
        ("/", "0::/\n"),
    ] {
        assert_eq!(cgroup(path).ok().stdout, seen, "{path}");
    }
    refused(&cgroup("nosuch"), "no such file or directory");
    refused(&cgroup("../x"), "bad sub cgroup path");
    refused(
        &cgroup(&format!("../{}", beside.file_name().unwrap().display())),
        "bad sub cgroup path",
    );
    refused(&cgroup("memory:inner"), "unknown controller");
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn an_init_that_moved_to_a_cgroup_below_takes_the_process_along() {
    requires!(root, controller "pids");
    let bundle = up(|_| {});
    let leaf = bundle.cgroup().join("leaf");
    fs::create_dir(&leaf).unwrap();
    fs::write(leaf.join("cgroup.procs"), bundle.pid().to_string()).unwrap();
    fs::write(bundle.cgroup().join("cgroup.subtree_control"), "+pids").unwrap();
    let outcome = exec(&bundle, &[], &["sh", "-c", "grep ^0:: /proc/self/cgroup"]).ok();
    assert_eq!(outcome.stdout, "0::/leaf\n");
    // COMPAT: not where a cgroup was asked for.
    let asked = exec(&bundle, &["--cgroup", "/"], &["true"]).run();
    refused(&asked, "unable to apply cgroup configuration");
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn processors_are_those_of_the_affinity() {
    requires!(root);
    let bundle = up(|_| {});
    let cpus = |affinity: Value| {
        let mut process = json!({
            "args": ["/probe"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": [],
        });
        process["execCPUAffinity"] = affinity;
        see_process(&bundle, &process)["cpus"].clone()
    };
    let all = see(&bundle, &[], &[])["cpus"].clone();
    assert_eq!(cpus(json!({ "initial": "0" })), "0");
    assert_eq!(cpus(json!({ "final": "0" })), "0");
    assert_eq!(cpus(json!({ "initial": "", "final": "" })), all);
    assert_eq!(cpus(json!(null)), all);
    if std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1) {
        assert_eq!(cpus(json!({ "initial": "0", "final": "1" })), "1");
    }
    let confined = answers(
        &exec(&bundle, &[], &["/probe"])
            .under(["taskset", "-c", "0"])
            .ok(),
    );
    assert_eq!(confined["cpus"], all);
}

#[test]
fn the_affinity_of_config_json_is_that_of_every_further_process_and_not_of_the_first() {
    requires!(root);
    let all = see(&up(|_| {}), &[], &[])["cpus"].clone();
    let bundle = up(|c| c["process"]["execCPUAffinity"] = json!({ "initial": "0" }));
    assert_eq!(see(&bundle, &[], &[])["cpus"], "0");
    let first = fs::read_to_string(format!("/proc/{}/status", bundle.pid())).expect("status");
    let list = first
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    assert_eq!(json!(list.expect("a list").trim()), all);
    // A process file's own takes its place.
    let process = json!({
        "args": ["/probe"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": [],
        "execCPUAffinity": { "initial": "", "final": "" },
    });
    assert_eq!(see_process(&bundle, &process)["cpus"], all);
}

#[test]
fn a_user_namespace_is_entered_as_its_root() {
    requires!(root);
    let bundle = up(user_namespace);
    let seen = see(
        &bundle,
        &["-c", "CAP_SYS_ADMIN"],
        &["read:/proc/self/uid_map"],
    );
    assert_eq!((&seen["uid"], &seen["gid"]), (&json!(0), &json!(0)));
    let map: Vec<_> = seen
        .text("read:/proc/self/uid_map")
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(map, ["0", "100000", "1000"]);
    let permitted = seen["capabilities"]["permitted"].as_array().unwrap();
    assert!(permitted.contains(&json!("CAP_SYS_ADMIN")));
    let user = see(&bundle, &["-u", "999"], &[]);
    assert_eq!(user["uid"], 999);
    refused(
        &exec(&bundle, &["-u", "1000"], &["true"]).run(),
        "unmapped uid 1000",
    );
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn namespaces_that_were_joined_by_path_are_entered_too() {
    requires!(root);
    let other = up(|_| {});
    let bundle = up(|c| {
        for kind in ["network", "ipc", "pid"] {
            let file = if kind == "network" { "net" } else { kind };
            crate::support::namespace(c, kind)["path"] =
                json!(format!("/proc/{}/ns/{file}", other.pid()));
        }
    });
    let seen = see(&bundle, &[], &[]);
    let of = |bundle: &Bundle, kind: &str| {
        let link = fs::read_link(format!("/proc/{}/ns/{kind}", bundle.pid())).unwrap();
        json!(link.display().to_string())
    };
    for kind in ["net", "ipc", "pid"] {
        assert_eq!(seen["namespaces"][kind], of(&other, kind), "{kind}");
    }
    for kind in ["mnt", "uts"] {
        assert_eq!(seen["namespaces"][kind], of(&bundle, kind), "{kind}");
    }
}

#[test]
fn a_container_in_the_callers_namespaces_is_entered() {
    requires!(root);
    let bundle = up(|c| {
        for kind in ["pid", "network", "ipc", "cgroup"] {
            without_namespace(c, kind);
        }
    });
    let seen = see(&bundle, &[], &["stat:/probe"]);
    seen.ok("stat:/probe");
    assert_eq!(
        seen["namespaces"]["pid"],
        fs::read_link("/proc/self/ns/pid")
            .unwrap()
            .display()
            .to_string()
    );
    bundle.delete_force();
    bundle.assert_nothing_left();
}

/// Without a mount namespace the root is that of the init alone.
#[test]
fn a_container_without_a_mount_namespace_keeps_its_root() {
    requires!(root);
    let bundle = up(|c| {
        without_namespace(c, "mount");
        c["mounts"] = json!([]);
        c["linux"]["maskedPaths"] = json!([]);
        c["linux"]["readonlyPaths"] = json!([]);
    });
    let outcome = exec(&bundle, &[], &["sh", "-c", "ls /probe; pwd"]).ok();
    assert_eq!(outcome.stdout, "/probe\n/\n");
    bundle.delete_force();
    bundle.assert_nothing_left();
}

/// CVE-2024-21626.
#[test]
fn a_working_directory_on_the_host_cannot_be_reached() {
    requires!(container);
    let bundle = up(|_| {});
    std::os::unix::fs::symlink("/proc/self/fd/7", bundle.rootfs("seven")).unwrap();
    for cwd in (3..20)
        .map(|n| format!("/proc/self/fd/{n}"))
        .chain(["/seven".to_owned()])
    {
        let outcome = exec(&bundle, &["--cwd", &cwd], &["true"]).run();
        refused(&outcome, "cwd");
    }
    refused(
        &exec(&bundle, &["--cwd", "/nosuch"], &["true"]).run(),
        "no such file or directory",
    );
    refused(
        &exec(&bundle, &["--cwd", "tmp"], &["true"]).run(),
        "Cwd must be an absolute path",
    );
}

/// CVE-2016-9962: whoever may trace everything inside looks at each new process, and sees nothing of the host's.
#[test]
fn a_process_on_its_way_in_shows_nothing_of_the_host() {
    requires!(root);
    differs!("crun", "shows what its caller said");
    // The caller's directory, words of its command line and its environment, and files of the container's state.
    let caller = tempfile::Builder::new()
        .prefix("of-the-host-")
        .tempdir()
        .unwrap();
    // What it looks for is in a file, lest it finds itself.
    let script = "while true; do for p in /proc/[0-9]*; do \
            ls -l $p/fd $p/cwd $p/root; tr '\\0' '\\n' <$p/environ; tr '\\0' '\\n' <$p/cmdline; \
        done 2>/dev/null | grep -f /tmp/wanted >>/tmp/found; done";
    let bundle = Bundle::with(|c| {
        privileged(c);
        crate::support::sh(c, script);
    });
    fs::write(
        bundle.rootfs("tmp/wanted"),
        "of-the-host-\nstate.json\nexec.fifo\n /proc$\n",
    )
    .unwrap();
    bundle.up();
    for _ in 0..60 {
        exec(&bundle, &["--pid-file", "of-the-host-pid"], &["true"])
            .stdin(fs::File::open("/dev/null").unwrap())
            .cwd(caller.path())
            .env("SECRET", "of-the-host-")
            .ok();
    }
    let found = || fs::read_to_string(bundle.rootfs("tmp/found")).unwrap_or_default();
    assert_eq!(found(), "");
    // It would have seen it.
    exec(
        &bundle,
        &["--detach", "--env", "SEEN=of-the-host-"],
        &["sleep", "1000"],
    )
    .ok();
    assert!(eventually(|| !found().is_empty()));
    bundle.delete_force();
}

#[test]
fn a_program_that_is_proc_self_exe_leaves_the_runtime_as_it_is() {
    requires!(root);
    let before = fs::read(&runtime().path).unwrap();
    let bundle = up(privileged);
    fs::write(bundle.rootfs("script"), "#!/proc/self/exe\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(bundle.rootfs("script"), mode).unwrap();
    let holder =
        "while true; do for p in /proc/[0-9]*; do (: >>$p/exe) 2>/dev/null && echo $p; done; done";
    let watch = exec(&bundle, &[], &["sh", "-c", holder]).spawn();
    for program in ["/script", "/proc/self/exe"] {
        for _ in 0..20 {
            // What the runtime does when it is called in there is nobody's matter.
            drop(exec(&bundle, &[], &[program]).run());
        }
    }
    watch.signal(Signal::SIGKILL);
    drop(watch.wait());
    assert_eq!(fs::read(&runtime().path).unwrap(), before);
    bundle.delete_force();
}

/// CVE-2026-88265: a null device that is no null device is not opened for the caller's streams.
#[test]
fn a_null_device_that_is_something_else_is_refused() {
    requires!(root);
    let bundle = up(|_| {});
    let inside = format!("/proc/{}/root/dev/null", bundle.pid());
    fs::remove_file(&inside).unwrap();
    fs::write(&inside, "").unwrap();
    let outcome = exec(&bundle, &[], &["true"]).run();
    refused(&outcome, "/dev/null");
    assert!(Path::new("/dev/null").exists());
}

#[test]
fn the_command_line_ends_at_the_id() {
    requires!(container);
    let bundle = up(|_| {});
    let outcome = exec(
        &bundle,
        &[],
        &["echo", "-e", "--cwd", "-no-such", "--", "x"],
    )
    .ok();
    assert_eq!(outcome.stdout, "--cwd -no-such -- x\n");
    let outcome = exec(&bundle, &["-cwd", "/tmp", "--detach=false"], &["pwd"]).ok();
    assert_eq!(outcome.stdout, "/tmp\n");
    let outcome = exec(&bundle, &["-te", "A=1"], &["sh", "-c", "echo $A"]).ok();
    assert_eq!(outcome.stdout, "1\r\n");
    let outcome = exec(&bundle, &["-tu0"], &["id", "-u"]).ok();
    assert_eq!(outcome.stdout, "0\r\n");
    let unknown = exec(&bundle, &["--no-such"], &["true"]).run();
    assert_eq!(unknown.code(), 1, "{unknown}");
    let nothing = bundle.verb(["exec"]).run();
    assert_eq!(nothing.code(), 1);
    assert!(
        nothing.stderr.contains("requires a minimum of 1 argument"),
        "{nothing}"
    );
}

#[test]
fn bytes_that_are_no_text_reach_the_program_as_a_replacement() {
    requires!(root);
    differs!("crun", "passes them on");
    let bundle = up(|_| {});
    let odd = |before: &str| OsString::from_vec([before.as_bytes(), b"\xff."].concat());
    let mut verb = bundle.verb(["exec", "--env"]).arg(odd("A="));
    verb = verb.arg(odd("--env=B=")).arg(&bundle.id);
    let seen = answers(&verb.arg("/probe").arg(odd("x")).ok());
    assert_eq!(seen["args"], json!(["/probe", "x\u{fffd}."]));
    let env = seen["env"].as_array().unwrap();
    assert!(env.contains(&json!("A=\u{fffd}.")), "{env:?}");
    assert!(env.contains(&json!("B=\u{fffd}.")), "{env:?}");
    let program = bundle.verb(["exec", &bundle.id]).arg(odd("")).run();
    refused(&program, "executable file not found in $PATH");
    refused(&bundle.verb(["exec"]).arg(odd("a")).arg("true").run(), "id");
    let user = bundle.verb(["exec", "-u"]).arg(odd("1")).arg(&bundle.id);
    refused(&user.arg("true").run(), "is not a numeric id");
    for verb in [
        bundle.verb(["kill", &bundle.id]).arg(odd("TERM")),
        bundle.verb(["kill"]).arg(odd("")),
        bundle.verb(["ps"]).arg(odd("")),
        bundle.verb(["ps", &bundle.id]).arg(odd("--")),
    ] {
        let outcome = verb.run();
        assert_eq!(outcome.code(), 1, "{outcome}");
        assert!(!outcome.stdout.contains("Incorrect Usage"), "{outcome}");
    }
}

#[test]
fn a_reader_that_is_slow_gets_all_that_was_written_to_the_terminal() {
    requires!(root);
    let bundle = Bundle::sleeping();
    bundle.up();
    // More than the pipe takes, so that a part is still in the terminal when its writer has ended.
    let script = "head -c 70000 /dev/zero | tr '\\0' x";
    let slowly = ["sh", "-c", "\"$@\" | (sleep 4; wc -c)", "sh"];
    let exec = bundle.verb(["exec", "--tty", &bundle.id, "sh", "-c", script]);
    assert_eq!(exec.under(slowly).ok().stdout.trim(), "70000");
    bundle.delete_force().ok();
}

#[test]
fn exec_with_a_terminal_returns_although_somebody_writes_on() {
    requires!(root);
    let bundle = Bundle::sleeping();
    bundle.up();
    let script =
        "T=$(tty); (trap '' HUP; while :; do echo x >$T; sleep 0.05; done) & sleep 0.3; exit 3";
    let exec = bundle.verb(["exec", "--tty", &bundle.id, "sh", "-c", script]);
    assert_eq!(
        exec.limit(crate::support::patience(Duration::from_secs(15)))
            .run()
            .code(),
        3
    );
    bundle.delete_force().ok();
}

#[test]
fn exec_into_a_container_that_ends_meanwhile_says_that_it_has_stopped() {
    requires!(root);
    differs!("crun", "other words");
    differs!("runc", "1.1 says what it found missing");
    let bundle = Bundle::sleeping();
    for _ in 0..10 {
        bundle.up();
        let execs: Vec<_> = (0..4)
            .map(|_| bundle.verb(["exec", &bundle.id, "true"]).spawn())
            .collect();
        bundle.kill("KILL").ok();
        for exec in execs {
            let outcome = exec.wait();
            match outcome.code() {
                // Before the end, or killed with the rest.
                0 | 137 => {}
                _ => {
                    assert_eq!(outcome.code(), 255, "{outcome}");
                    assert!(!outcome.stderr.contains("no such"), "{outcome}");
                }
            }
        }
        bundle.delete_force().ok();
    }
    bundle.assert_nothing_left();
}
