//! The command line: options, counts, logs, and the verbs that touch no container.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Bundle, Outcome, Verb, process_args, runtime};

/// The lines of a log in JSON.
#[track_caller]
fn log_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("log");
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l}")))
        .collect()
}

#[test]
fn unknown_command_is_named() {
    differs!("crun", "its own words");
    for words in [&["bogus"][..], &["help", "bogus"]] {
        let dir = tempfile::tempdir().expect("directory");
        let log = dir.path().join("log.json");
        let mut verb = Verb::new(["--log-format", "json", "--log"]).arg(&log);
        verb = verb.args(words);
        for outcome in [Verb::new(words).run(), verb.run()] {
            assert_eq!(outcome.code(), 3, "{outcome}");
            assert!(
                outcome.stderr.contains("No help topic for 'bogus'"),
                "{outcome}"
            );
            assert_eq!(outcome.stdout, "");
        }
        let lines = log_lines(&log);
        assert_eq!(lines.len(), 1, "{lines:?}");
        let message = lines[0]["msg"].as_str().expect("msg").trim_end();
        assert_eq!(message, "No help topic for 'bogus'");
    }
}

#[test]
fn wrong_argument_counts_are_refused_with_the_help() {
    differs!("crun", "its own words");
    for (args, count) in [
        (&["create"][..], "exactly 1"),
        (&["create", "a", "b"], "exactly 1"),
        (&["run"], "exactly 1"),
        (&["start"], "exactly 1"),
        (&["start", "a", "b"], "exactly 1"),
        (&["state"], "exactly 1"),
        (&["delete"], "exactly 1"),
        (&["kill"], "a minimum of 1"),
        (&["kill", "a", "TERM", "c"], "a maximum of 2"),
        (&["list", "a"], "exactly 0"),
        (&["spec", "a"], "exactly 0"),
        (&["features", "a"], "exactly 0"),
        (&["exec"], "a minimum of 1"),
        (&["ps"], "a minimum of 1"),
        (&["pause"], "exactly 1"),
        (&["resume", "a", "b"], "exactly 1"),
        (&["update"], "exactly 1"),
        (&["events", "a", "b"], "exactly 1"),
        (&["checkpoint"], "exactly 1"),
        (&["restore", "a", "b"], "exactly 1"),
    ] {
        let dir = tempfile::tempdir().expect("directory");
        let outcome = Verb::new(["--root"])
            .arg(dir.path())
            .args(args)
            .cwd(dir.path())
            .run();
        let line = outcome.error_line().replace('\\', "");
        let words = format!(
            "{}: \"{}\" requires {count} argument(s)",
            runtime().name(),
            args[0]
        );
        // COMPAT: the minimum is worded so by runc: `a minimum of 1 argument(s)`.
        assert!(line.contains(&words), "expected `{words}`\n{outcome}");
        assert!(outcome.stdout.starts_with("Incorrect Usage."), "{outcome}");
        assert!(
            outcome
                .stdout
                .contains(&format!("{} {}", runtime().name(), args[0])),
            "{outcome}"
        );
        assert!(!dir.path().join("config.json").exists());
    }
}

#[test]
fn unknown_option_is_refused() {
    for args in [
        &["--bogus", "list"][..],
        &["list", "--bogus"],
        &["create", "--bogus", "x"],
    ] {
        let outcome = Verb::new(args).run();
        assert_ne!(outcome.code(), 0, "{outcome}");
        assert!(outcome.stderr.contains("bogus"), "{outcome}");
    }
}

#[test]
fn wrong_usage_is_said_in_runcs_words_with_the_help_on_stdout() {
    differs!("crun", "other words");
    for (args, words) in [
        (
            &["create", "--bogus", "x"][..],
            "flag provided but not defined: -bogus",
        ),
        (
            &["--bogus", "list"],
            "flag provided but not defined: -bogus",
        ),
        (
            &["create", "--preserve-fds", "x", "id"],
            "invalid value \"x\" for flag -preserve-fds: parse error",
        ),
        (
            &["run", "--detach=perhaps", "id"],
            "invalid boolean value \"perhaps\" for -detach: parse error",
        ),
        (
            &["exec", "-t=perhaps", "id", "true"],
            "invalid boolean value \"perhaps\" for -tty: parse error",
        ),
        (
            &["events", "--interval", "5", "id"],
            "invalid value \"5\" for flag -interval: parse error",
        ),
        (
            &["events", "--interval=", "id"],
            "invalid value \"\" for flag -interval: parse error",
        ),
        (&["list", "--format"], "flag needs an argument: -format"),
        (&["--root"], "flag needs an argument: -root"),
    ] {
        let outcome = Verb::new(args).run();
        assert_eq!(outcome.code(), 1, "{outcome}");
        assert!(
            outcome.stderr.contains(&words.replace('"', "\\\"")) || outcome.stderr.contains(words),
            "{outcome}"
        );
        assert!(
            outcome
                .stdout
                .starts_with(&format!("Incorrect Usage: {words}\n")),
            "{outcome}"
        );
    }
}

#[test]
fn an_empty_path_is_one_that_was_not_given() {
    requires!(container);
    differs!("crun", "takes it for a path");
    let bundle = Bundle::new();
    bundle
        .verb(["run", "--pid-file", "", "--console-socket=", "--bundle"])
        .arg(&bundle.path)
        .arg(&bundle.id)
        .ok();
    bundle.assert_nothing_left();
}

#[test]
fn long_flags_work_with_a_single_dash() {
    requires!(container);
    differs!("crun", "getopt takes them for bundled letters");
    let bundle = Bundle::sleeping();
    let pid_file = bundle.beside("pid");
    Verb::new(["-root"])
        .arg(&bundle.state_root)
        .args(["create", "-bundle"])
        .arg(&bundle.path)
        .arg("-pid-file")
        .arg(&pid_file)
        .arg(&bundle.id)
        .ok();
    assert!(pid_file.exists());
    assert_eq!(
        bundle.verb(["list", "-quiet"]).ok().stdout,
        format!("{}\n", bundle.id)
    );
    assert_eq!(
        bundle.verb(["list", "-format=json"]).ok().json()[0]["id"],
        json!(bundle.id)
    );
    bundle.verb(["delete", "-force", &bundle.id]).ok();
    bundle.assert_nothing_left();
}

#[test]
fn values_come_after_a_space_or_an_equals_sign() {
    requires!(container);
    let bundle = Bundle::sleeping();
    let set = |name: &str, value: &Path| format!("{name}={}", value.display());
    Verb::new([set("--root", &bundle.state_root)])
        .arg("create")
        .arg(set("--bundle", &bundle.path))
        .arg(set("--pid-file", &bundle.beside("pid")))
        .arg(&bundle.id)
        .ok();
    let pid = std::fs::read_to_string(bundle.beside("pid")).expect("pid file");
    assert_eq!(pid, bundle.pid().to_string());
}

#[test]
fn a_switch_may_say_true_or_false() {
    differs!("crun", "its switches take no value");
    let dir = tempfile::tempdir().expect("directory");
    for (switch, heads) in [
        ("--quiet=true", false),
        ("-quiet=1", false),
        ("-q=false", true),
    ] {
        let outcome = Verb::new(["--debug=false", "--root"])
            .arg(dir.path())
            .args(["list", switch])
            .ok();
        assert_eq!(outcome.stdout.starts_with("ID "), heads, "{outcome}");
    }
    let outcome = Verb::new(["--debug=perhaps", "list"]).run();
    assert_eq!(outcome.code(), 1, "{outcome}");
    assert!(outcome.stderr.contains("perhaps"), "{outcome}");
}

#[test]
fn the_last_of_several_options_wins() {
    let dir = tempfile::tempdir().expect("directory");
    let (first, last) = (dir.path().join("first"), dir.path().join("last"));
    std::fs::create_dir(&last).expect("directory");
    // The state root that was named first does not exist, which would be an error.
    let outcome = Verb::new(["--log-format", "xml", "--log-format=json", "--root"])
        .arg(&first)
        .arg("--root")
        .arg(&last)
        .args(["list", "-f", "table", "-f", "json"])
        .run();
    assert_eq!(outcome.code(), 0, "{outcome}");
    assert_eq!(outcome.json(), Value::Null);
}

#[test]
fn options_may_follow_the_container_id() {
    requires!(container);
    // COMPAT: runc since 1.5 (urfave/cli v3); engines write options first.
    differs!(
        "runc",
        "before 1.5 the first word that is no option ends them"
    );
    differs!("crun", "the first word that is no option ends them");
    let bundle = Bundle::sleeping();
    bundle.up();
    bundle.verb(["delete", &bundle.id, "--force"]).ok();
    bundle.assert_nothing_left();
}

#[test]
fn global_options_of_every_caller_are_taken() {
    differs!("crun", "it has its own set");
    let root = tempfile::tempdir().expect("directory");
    for extra in [
        &["--rootless=true"][..],
        &["--rootless", "false"],
        &["--rootless=auto"],
        &["--rootless", "AUTO"],
        &["--rootless", ""],
        &["--rootless=T"],
        &["--log-format", ""],
        &["--debug"],
        &["--criu", "/usr/sbin/criu"],
        &["--log-format", "text"],
        &["--log-format=json"],
    ] {
        let outcome = Verb::new(["--root"])
            .arg(root.path())
            .args(extra)
            .args(["list", "-q"])
            .run();
        assert_eq!(outcome.code(), 0, "{outcome}");
        assert_eq!(outcome.stdout, "");
    }
    if runtime().is("pelagos") {
        let both = ["--systemd-cgroup", "--cgroup-manager=cgroupfs", "list"];
        Verb::new(["--root"]).arg(root.path()).args(both).ok();
    }
    let outcome = Verb::new(["--root"])
        .arg(root.path())
        .args(["--rootless=perhaps", "list"])
        .run();
    // COMPAT: runc 1.1 takes what it does not know for auto in verbs that need not know.
    assert!(runtime().is("runc") || outcome.code() == 1, "{outcome}");
}

#[test]
fn root_directory_of_the_machine_is_refused_as_state_root() {
    differs!("crun", "it does not look");
    // COMPAT: runc since 1.2.
    differs!("runc", "before 1.2 it does not look");
    let outcome = Verb::new(["--root", "/", "list"]).run();
    outcome.fails_with("should not be set to /");
}

#[test]
fn log_format_must_be_known() {
    let outcome = Verb::new(["--log-format", "xml", "list"]).run();
    outcome.fails_with("invalid log-format: xml");
}

#[test]
fn default_state_root_of_a_user_is_in_the_runtime_directory() {
    requires!(rootless);
    let bundle = Bundle::sleeping();
    let runtime_dir = bundle.beside("run");
    std::fs::create_dir(&runtime_dir).expect("directory");
    let call = |args: &[&str]| {
        Verb::new(args)
            .cwd(&bundle.path)
            .env("XDG_RUNTIME_DIR", &runtime_dir)
            .ok()
    };
    call(&["create", &bundle.id]);
    let root = runtime_dir.join(runtime().name());
    assert!(root.join(&bundle.id).is_dir());
    if runtime().is("pelagos") {
        let mode = std::fs::metadata(&root)
            .expect("state root")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o1700, "the sticky bit keeps cleaners away");
    }
    call(&["delete", "--force", &bundle.id]);
    bundle.assert_nothing_left();
}

#[test]
fn failure_is_one_line_in_the_json_log_and_one_on_standard_error() {
    let root = tempfile::tempdir().expect("directory");
    let log = root.path().join("log.json");
    let call = || -> Outcome {
        Verb::new(["--root"])
            .arg(root.path().join("state"))
            .arg("--log")
            .arg(&log)
            .args(["--log-format", "json", "state", "absent"])
            .run()
    };
    let outcome = call();
    let plain = outcome.error_line();
    let lines = log_lines(&log);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["level"], json!("error"));
    let message = lines[0]["msg"].as_str().expect("msg");
    assert!(plain.ends_with(message), "{plain:?} and {message:?}");
    if !runtime().is("crun") {
        assert_eq!(message, "container does not exist");
    }
    let time = lines[0]["time"].as_str().expect("time");
    let shape: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert!(
        shape.starts_with("0000-00-00T00:00:00"),
        "{time} is not RFC 3339"
    );
    let zone = shape["0000-00-00T00:00:00".len()..].trim_start_matches(['.', '0']);
    assert!(
        ["Z", "+00:00", "-00:00"].contains(&zone),
        "{time} is not RFC 3339"
    );
    call();
    assert_eq!(log_lines(&log).len(), 2, "the log is appended to");
}

#[test]
fn failure_to_create_is_one_line_in_the_json_log() {
    requires!(container);
    let bundle = Bundle::with(|c| process_args(c, ["/nosuch"]));
    let log = bundle.beside("log.json");
    let outcome = bundle
        .verb(["--log-format", "json", "--log"])
        .arg(&log)
        .args(["run", &bundle.id])
        .run();
    let plain = outcome.error_line();
    // COMPAT: runc warns in the log as well; the error is the last line.
    let lines = log_lines(&log);
    let message = lines.last().expect("a line")["msg"]
        .as_str()
        .expect("msg")
        .to_owned();
    assert!(plain.ends_with(&message), "{plain:?} and {message:?}");
    if runtime().is("pelagos") {
        assert_eq!(lines.len(), 1, "{lines:?}");
    }
    bundle.assert_nothing_left();
}

#[test]
fn text_log_has_time_level_and_message() {
    differs!("crun", "the bare message");
    let root = tempfile::tempdir().expect("directory");
    let log = root.path().join("log");
    let state = root.path().join("state");
    Verb::new(["--root"])
        .arg(state)
        .arg("--log")
        .arg(&log)
        .args(["state", "absent"])
        .run();
    let text = std::fs::read_to_string(&log).expect("log");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.starts_with("time=\"20")
            && text.ends_with(" level=error msg=\"container does not exist\"\n"),
        "{text}"
    );
    let mode = std::fs::metadata(&log).expect("log").permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[test]
fn success_writes_no_error_to_the_log() {
    requires!(container);
    let bundle = Bundle::new();
    let log = bundle.beside("log.json");
    bundle
        .verb(["--log-format", "json", "--log"])
        .arg(&log)
        .args(["run", &bundle.id])
        .ok();
    let lines = if log.exists() {
        log_lines(&log)
    } else {
        Vec::new()
    };
    assert!(lines.iter().all(|l| l["level"] != "error"), "{lines:?}");
    if runtime().is("pelagos") {
        assert_eq!(lines.len(), 0, "{lines:?}");
    }
}

#[test]
fn debug_shows_the_steps() {
    requires!(container);
    differs!("crun", "hardly any debug messages");
    let bundle = Bundle::new();
    let log = bundle.beside("log.json");
    bundle
        .verb(["--debug", "--log-format", "json", "--log"])
        .arg(&log)
        .args(["run", &bundle.id])
        .ok();
    let debug: Vec<_> = log_lines(&log)
        .into_iter()
        .filter(|line| line["level"] == "debug")
        .collect();
    assert!(debug.len() >= 3, "{debug:?}");
    // The words that callers of runc wait for.
    for words in [
        "nsexec",
        "child process in init()",
        "init: closing the pipe",
    ] {
        let says = |line: &Value| line["msg"].as_str().is_some_and(|msg| msg.contains(words));
        assert!(debug.iter().any(says), "{words}: {debug:?}");
    }
    let outcome = bundle.verb(["--debug", "run", &bundle.id]).ok();
    assert!(outcome.stderr.contains("level=debug"), "{outcome}");
}

#[test]
fn log_that_cannot_be_opened_is_an_error() {
    let outcome = Verb::new(["--log", "/nonexistent/log", "list"]).run();
    assert_eq!(outcome.code(), 1, "{outcome}");
    assert!(outcome.stderr.contains("/nonexistent/log"), "{outcome}");
}

/// As `make install` does it, into a directory of the test's.
#[test]
fn what_is_installed_is_the_program_a_page_for_every_verb_and_the_completions() {
    differs!("runc", "pelagos's own");
    differs!("crun", "pelagos's own");
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo, or as cargo would");
    let install = Path::new(&root).join("hack/install");
    let dest = tempfile::tempdir().expect("directory");
    let made = dest.path().join("made");
    let output = std::process::Command::new(&install)
        .arg(&runtime().path)
        .env("DESTDIR", &made)
        .env("BINDIR", "/bin")
        .env("DATADIR", "/share")
        .env("MANDIR", "/share/man")
        .output()
        .expect("hack/install");
    assert!(output.status.success(), "{output:?}");

    let installed = made.join("bin").join(runtime().name());
    let version = std::process::Command::new(&installed)
        .arg("--version")
        .output()
        .expect("the installed program");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    assert_eq!(version, Verb::new(["--version"]).ok().stdout);

    let help = Verb::new(["--help"]).ok().stdout;
    let verbs = help
        .lines()
        .skip_while(|line| *line != "COMMANDS:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    let mut pages: Vec<_> = verbs
        .filter_map(|line| line.split_whitespace().next())
        .map(|verb| format!("pelagos-{verb}.8"))
        .collect();
    assert!(pages.len() >= 18, "{pages:?}");
    pages.push("pelagos.8".to_owned());
    for page in &pages {
        let text = std::fs::read_to_string(made.join("share/man/man8").join(page));
        let text = text.unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".SH NAME"), "{page}");
    }
    for (file, words) in [
        ("bash-completion/completions/pelagos", "--console-socket"),
        ("zsh/site-functions/_pelagos", "#compdef pelagos"),
        (
            "fish/vendor_completions.d/pelagos.fish",
            "complete -c pelagos",
        ),
    ] {
        let text = std::fs::read_to_string(made.join("share").join(file));
        let text = text.unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(text.contains(words), "{file}");
    }
}

/// In a mount namespace where the test has the service's socket.
#[test]
fn a_log_service_gets_each_line() {
    requires!(root);
    differs!("runc", "takes it for the name of a file");
    differs!("crun", "its own words");
    for (log, dir, name, wanted) in [
        (
            "syslog:web",
            "/dev",
            "log",
            "<11>web: container does not exist",
        ),
        (
            "journald:web",
            "/run",
            "systemd/journal/socket",
            "PRIORITY=3\nSYSLOG_IDENTIFIER=web\nMESSAGE=container does not exist\n",
        ),
    ] {
        let place = tempfile::tempdir().expect("directory");
        let socket = place.path().join(name);
        std::fs::create_dir_all(socket.parent().expect("a directory")).expect("directory");
        let service = std::os::unix::net::UnixDatagram::bind(&socket).expect("a socket");
        let limit = crate::support::patience(std::time::Duration::from_secs(5));
        service.set_read_timeout(Some(limit)).expect("a limit");
        let mounted = format!(
            "mount --bind {} {dir} && exec \"$@\"",
            place.path().display()
        );
        let root = tempfile::tempdir().expect("directory");
        let outcome = Verb::new(["--root"])
            .arg(root.path())
            .args(["--log", log, "state", "absent"])
            .under(["unshare", "-m", "sh", "-c", &mounted, "sh"])
            .run();
        assert_eq!(outcome.code(), 1, "{outcome}");
        let mut message = [0; 1024];
        let length = service.recv(&mut message).expect("a message");
        let message = String::from_utf8_lossy(&message[..length]);
        assert_eq!(message, wanted);
    }
}

/// In a mount namespace where nobody has either socket.
#[test]
fn a_log_service_that_is_not_there_is_a_warning() {
    requires!(root);
    differs!("runc", "takes it for the name of a file");
    let root = tempfile::tempdir().expect("directory");
    let hidden = "mount -t tmpfs none /dev && mount -t tmpfs none /run && exec \"$@\"";
    for (log, socket) in [
        ("syslog:web", "/dev/log"),
        ("journald:web", "/run/systemd/journal/socket"),
    ] {
        let outcome = Verb::new(["--root"])
            .arg(root.path())
            .args(["--log", log, "list", "-q"])
            .under(["unshare", "-m", "sh", "-c", hidden, "sh"])
            .run();
        assert_eq!(outcome.code(), 0, "{outcome}");
        if runtime().is("pelagos") {
            assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
            assert!(outcome.stderr.contains("level=warning"), "{outcome}");
            assert!(outcome.stderr.contains(socket), "{outcome}");
        }
        let failed = Verb::new(["--root"])
            .arg(root.path())
            .args(["--log", log, "state", "absent"])
            .under(["unshare", "-m", "sh", "-c", hidden, "sh"])
            .run();
        assert_eq!(failed.code(), 1, "{failed}");
        // COMPAT: crun's words are its own.
        assert!(
            runtime().is("crun") || failed.stderr.contains("container does not exist"),
            "{failed}"
        );
    }
}

#[test]
fn a_state_root_where_nothing_can_be_made_is_an_error_at_once() {
    requires!(root);
    let bundle = Bundle::sleeping();
    let verb = Verb::new(["--root", "/proc", "create", "--bundle"]).arg(&bundle.path);
    let outcome = verb
        .arg(&bundle.id)
        .limit(std::time::Duration::from_secs(20))
        .run();
    outcome.fails_with("no such file or directory");
    bundle.assert_nothing_left();
}

#[test]
fn a_limit_of_the_size_of_files_is_an_error_and_not_the_end() {
    requires!(root, command "prlimit");
    let bundle = Bundle::sleeping();
    for bytes in [512, 1024, 1500] {
        let limit = format!("--fsize={bytes}");
        let verb = bundle.verb(["create", "--bundle"]).arg(&bundle.path);
        let outcome = verb.arg(&bundle.id).under(["prlimit", &limit]).run();
        if outcome.code() == 0 {
            bundle.delete_force().ok();
        } else {
            assert_eq!(outcome.code(), 1, "{outcome}");
        }
        if runtime().is("pelagos") && bytes < 1500 {
            outcome.fails_with("file too large");
        }
        bundle.assert_nothing_left();
    }
}

#[test]
fn version_names_program_commit_and_specification() {
    for flag in ["--version", "-v", "-V"] {
        if runtime().is("crun") && flag == "-v" || runtime().is("runc") && flag == "-V" {
            continue;
        }
        let outcome = Verb::new([flag]).ok();
        let lines: Vec<_> = outcome.stdout.lines().collect();
        let name = runtime().name();
        assert!(
            lines[0].starts_with(&format!("{name} version ")),
            "{outcome}"
        );
        assert!(lines[1].starts_with("commit: "), "{outcome}");
        assert!(lines.iter().any(|l| l.starts_with("spec: 1.")), "{outcome}");
        if runtime().is("pelagos") && name == "pelagos" {
            assert_eq!(
                lines[0],
                concat!("pelagos version ", env!("CARGO_PKG_VERSION"))
            );
            assert_eq!(lines[2], "spec: 1.3.0");
        }
    }
}

#[test]
fn called_by_the_name_runc_it_answers_to_it() {
    differs!("crun", "it is not a drop-in");
    let dir = tempfile::tempdir().expect("directory");
    let link = dir.path().join("runc");
    std::os::unix::fs::symlink(&runtime().path, &link).expect("symlink");
    let outcome = Verb::new(["--version"]).program(&link).ok();
    let first = outcome.stdout.lines().next().unwrap_or_default();
    assert!(first.starts_with("runc version 1."), "{outcome}");
    if runtime().is("pelagos") {
        assert_eq!(
            first,
            concat!("runc version 1.5.0+pelagos.", env!("CARGO_PKG_VERSION"))
        );
        let help = Verb::new(["--help"]).program(&link).ok();
        assert!(help.stdout.contains("runc [global options]"), "{help}");
        let wrong = Verb::new(["start"]).program(&link).run();
        assert!(
            wrong
                .error_line()
                .replace('\\', "")
                .contains("runc: \"start\" requires exactly 1"),
            "{wrong}"
        );
    }
}

#[test]
fn help_lists_every_verb_and_each_has_its_own() {
    let help = Verb::new(["--help"]).ok();
    for verb in [
        "checkpoint",
        "create",
        "delete",
        "events",
        "exec",
        "features",
        "kill",
        "list",
        "mounts",
        "pause",
        "ps",
        "restore",
        "resume",
        "run",
        "spec",
        "start",
        "state",
        "update",
    ] {
        let is_known = runtime().is("pelagos")
            || match verb {
                // COMPAT: hidden in runc 1.1, missing in crun 1.8.
                "features" => false,
                // crun's alone, since 1.20; and runc's alone.
                "mounts" => false,
                "events" => runtime().is("runc"),
                _ => true,
            };
        if !is_known {
            continue;
        }
        assert!(help.stdout.contains(verb), "{verb}: {help}");
        let own = Verb::new([verb, "--help"]).ok();
        assert!(own.stdout.contains(verb), "{own}");
        assert_eq!(own.stderr, "");
        if !runtime().is("crun") {
            let words = format!("{} {verb}", runtime().name());
            assert!(own.stdout.contains(&words), "`{words}`: {own}");
        }
    }
}

#[test]
fn features_is_pure_json_that_tells_the_truth() {
    differs!("crun", "since 1.9");
    differs!("runc", "before 1.2 it knows less");
    let outcome = Verb::new(["features"]).ok();
    assert_eq!(outcome.stderr, "");
    assert!(
        outcome.stdout.starts_with("{\n    \""),
        "indented by four: {outcome}"
    );
    let all = outcome.json();
    assert_eq!(all["ociVersionMin"], json!("1.0.0"));
    assert_eq!(all["ociVersionMax"], json!("1.3.0"));
    let hooks = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ];
    assert_eq!(all["hooks"], json!(hooks));
    let has =
        |list: &Value, word: &str| list.as_array().is_some_and(|l| l.iter().any(|w| w == word));
    for option in ["ro", "rbind", "rslave", "tmpcopyup", "nosuid", "rro"] {
        assert!(has(&all["mountOptions"], option), "{option}");
    }
    for kind in [
        "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
    ] {
        assert!(has(&all["linux"]["namespaces"], kind), "{kind}");
    }
    assert!(has(&all["linux"]["capabilities"], "CAP_CHECKPOINT_RESTORE"));
    assert_eq!(
        all["linux"]["cgroup"],
        json!({ "v1": false, "v2": true, "systemd": true, "systemdUser": true, "rdma": true })
    );
    let rdt = json!({ "enabled": true, "schemata": true, "monitoring": true });
    assert_eq!(all["linux"]["intelRdt"], rdt);
    for part in ["seccomp", "apparmor", "selinux", "netDevices"] {
        assert_eq!(all["linux"][part]["enabled"], json!(true), "{part}");
    }
    // features-linux.md: nothing that it names is missing, and nothing is there that it does not name.
    let names = |of: &Value| {
        let mut names: Vec<_> = of.as_object().expect("an object").keys().cloned().collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(
        names(&all),
        "annotations hooks linux mountOptions ociVersionMax ociVersionMin potentiallyUnsafeConfigAnnotations"
    );
    assert_eq!(
        names(&all["linux"]),
        "apparmor capabilities cgroup intelRdt memoryPolicy mountExtensions namespaces netDevices seccomp selinux"
    );
    assert!(has(&all["linux"]["seccomp"]["actions"], "SCMP_ACT_ERRNO"));
    assert!(has(&all["linux"]["seccomp"]["archs"], "SCMP_ARCH_X86_64"));
    for name in ["bundle", "org.criu.config", "org.systemd.property."] {
        assert!(has(&all["potentiallyUnsafeConfigAnnotations"], name));
    }
    if !runtime().is("runc") {
        assert!(has(&all["potentiallyUnsafeConfigAnnotations"], "run.oci."));
    }
}

#[test]
fn spec_writes_a_config_with_runcs_content() {
    let dir = tempfile::tempdir().expect("directory");
    Verb::new(["spec", "--bundle"]).arg(dir.path()).ok();
    let text = std::fs::read_to_string(dir.path().join("config.json")).expect("config.json");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert_eq!(config["process"]["terminal"], json!(true));
    assert_eq!(config["process"]["cwd"], json!("/"));
    assert_eq!(config["process"]["noNewPrivileges"], json!(true));
    assert_eq!(config["root"]["readonly"], json!(true));
    assert_eq!(
        config["process"]["rlimits"],
        json!([{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }])
    );
    let names: Vec<_> = config["mounts"]
        .as_array()
        .expect("mounts")
        .iter()
        .map(|m| &m["destination"])
        .collect();
    assert_eq!(
        names,
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup"
        ]
    );
    if runtime().is("pelagos") {
        assert!(
            text.starts_with("{\n\t\"ociVersion\": \"1."),
            "indented with tabs: {text}"
        );
        assert_eq!(
            config["process"]["capabilities"]["bounding"],
            json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"])
        );
        assert_eq!(
            config["linux"]["maskedPaths"].as_array().map(Vec::len),
            Some(10)
        );
        assert_eq!(
            config["linux"]["readonlyPaths"].as_array().map(Vec::len),
            Some(5)
        );
    }
}

#[test]
fn spec_refuses_to_overwrite() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("config.json");
    std::fs::write(&file, "mine").expect("config.json");
    let outcome = Verb::new(["spec"]).cwd(dir.path()).run();
    outcome.fails_with("File config.json exists. Remove it first");
    assert_eq!(std::fs::read_to_string(&file).expect("config.json"), "mine");
}

#[test]
fn spec_writes_to_the_file_that_is_named() {
    differs!("runc", "has no such option");
    let dir = tempfile::tempdir().expect("directory");
    std::fs::create_dir(dir.path().join("bundle")).expect("bundle");
    let file = dir.path().join("bundle/other.json");
    let write = |flag| {
        let verb = Verb::new(["spec", "--bundle", "bundle", flag, "other.json"]);
        verb.cwd(dir.path()).run()
    };
    write("-f").ok();
    let text = std::fs::read(&file).expect("other.json");
    serde_json::from_slice::<Value>(&text).expect("JSON");
    assert!(!dir.path().join("bundle/config.json").exists());
    let outcome = write("--file");
    if runtime().is("pelagos") {
        outcome.fails_with("File other.json exists. Remove it first");
    } else {
        assert_ne!(outcome.code(), 0, "{outcome}");
    }
}

#[test]
fn create_takes_what_a_run_takes_about_orphans() {
    requires!(root);
    differs!("runc", "only run has the option");
    let bundle = Bundle::sleeping();
    bundle.verb(["create", "--no-subreaper", &bundle.id]).ok();
    assert_eq!(bundle.status(), "created");
    bundle.delete_force();
}

#[test]
fn spec_for_a_user_has_a_user_namespace_and_no_network() {
    let dir = tempfile::tempdir().expect("directory");
    Verb::new(["spec", "--rootless"]).cwd(dir.path()).ok();
    let text = std::fs::read(dir.path().join("config.json")).expect("config.json");
    let config: Value = serde_json::from_slice(&text).expect("JSON");
    let kinds: Vec<_> = config["linux"]["namespaces"]
        .as_array()
        .expect("list")
        .iter()
        .map(|n| &n["type"])
        .collect();
    assert!(kinds.iter().any(|k| *k == "user"), "{kinds:?}");
    // COMPAT: crun keeps the network namespace.
    let network = kinds.iter().any(|k| *k == "network");
    assert_eq!(network, runtime().is("crun"), "{kinds:?}");
    let map = json!([{ "containerID": 0, "hostID": nix::unistd::geteuid().as_raw(), "size": 1 }]);
    if !runtime().is("crun") {
        // COMPAT: crun leaves the mapping to itself, and the resources in.
        assert_eq!(config["linux"]["uidMappings"], map);
        assert_eq!(config["linux"].get("resources"), None);
    }
    for mount in config["mounts"].as_array().expect("mounts") {
        let options = mount["options"].to_string();
        assert!(
            !options.contains("gid=") && !options.contains("uid="),
            "{mount}"
        );
    }
}

#[test]
fn the_bundle_that_spec_writes_runs() {
    requires!(container);
    let bundle = Bundle::new();
    std::fs::remove_file(bundle.path.join("config.json")).expect("remove");
    let rootless = (!crate::support::needs::is_root()).then_some("--rootless");
    bundle.verb(["spec"]).args(rootless).ok();
    bundle.edit(|c| {
        c["process"]["terminal"] = json!(false);
        process_args(c, ["sh", "-c", "echo it runs; touch /x || echo read-only"]);
        if crate::support::needs::device_rules().is_err() {
            c["linux"]
                .as_object_mut()
                .expect("linux")
                .remove("resources");
        }
        if rootless.is_none() {
            c["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id));
        }
    });
    let outcome = bundle.run().ok();
    assert_eq!(outcome.stdout, "it runs\nread-only\n");
    bundle.assert_nothing_left();
}

#[test]
fn container_ids_follow_runcs_rule() {
    requires!(container);
    differs!("crun", "it takes nearly anything");
    let bundle = Bundle::sleeping();
    bundle.edit(|c| {
        c["linux"]
            .as_object_mut()
            .expect("linux")
            .remove("cgroupsPath");
    });
    for (id, words) in [
        ("", "container id cannot be empty"),
        (".", "invalid container ID format"),
        ("..", "invalid container ID format"),
        ("a/b", "invalid container ID format"),
        ("../a", "invalid container ID format"),
        ("a b", "invalid container ID format"),
        ("a:b", "invalid container ID format"),
        ("a\nb", "invalid container ID format"),
        ("naïve", "invalid container ID format"),
        ("a@b", "invalid container ID format"),
    ] {
        for verb in ["create", "run", "state", "start", "kill", "delete"] {
            let outcome = bundle.verb([verb, id]).run();
            assert_eq!(outcome.code(), 1, "{verb} {id:?}: {outcome}");
            if runtime().is("pelagos") || verb == "create" {
                outcome.fails_with(words);
            }
        }
        assert_eq!(bundle.verb(["list", "-q"]).ok().stdout, "", "{id:?}");
    }
    for end in ["A", "0", "_", "+", "-", ".", "...", "a_b+c-d.e"] {
        let id = format!("{}{end}", bundle.id);
        bundle.verb(["create", &id]).ok();
        assert_eq!(bundle.verb(["state", &id]).ok().json()["id"], json!(id));
        bundle.verb(["delete", "-f", &id]).ok();
    }
    bundle.assert_nothing_left();
}

#[test]
fn a_bundle_that_is_not_there_is_named() {
    requires!(container);
    let bundle = Bundle::new();
    let outcome = bundle
        .verb(["create", "--bundle", "/nonexistent/bundle", &bundle.id])
        .run();
    outcome.fails_with("no such file or directory");
    assert!(
        outcome.stderr.contains("/nonexistent/bundle") || runtime().is("crun"),
        "{outcome}"
    );
    std::fs::remove_file(bundle.path.join("config.json")).expect("remove");
    let outcome = bundle.verb(["create", &bundle.id]).run();
    outcome.fails_with("JSON specification file config.json not found");
    bundle.assert_nothing_left();
}

#[test]
fn the_bundle_is_the_current_directory_unless_named() {
    requires!(container);
    let bundle = Bundle::sh("echo here");
    assert_eq!(bundle.run().ok().stdout, "here\n");
    let outcome = bundle
        .verb(["run", "-b", "bundle", &bundle.id])
        .cwd(bundle.beside(""))
        .ok();
    assert_eq!(outcome.stdout, "here\n");
}

/// crun's option.
#[test]
fn the_configuration_can_be_another_file() {
    requires!(container);
    differs!("runc", "has no such option");
    let bundle = Bundle::sh("exit 3");
    let other = bundle.beside("other.json");
    let mut config = bundle.config();
    config["process"]["args"] = json!(["sh", "-c", "exit 7"]);
    std::fs::write(&other, config.to_string()).unwrap();
    let run = |options: &[&str]| bundle.verb(["run"]).args(options).arg(&bundle.id).run();
    assert_eq!(run(&[]).code(), 3);
    assert_eq!(run(&["--config", other.to_str().unwrap()]).code(), 7);
    // From where the caller stands, not from the bundle.
    assert_eq!(run(&["-f", "../other.json"]).code(), 7);
    run(&["-f", "/nonexistent.json"]).fails_with("/nonexistent.json: no such file or directory");
    bundle.assert_nothing_left();
}

/// crun's words for where the log goes and how much of it.
#[test]
fn the_log_can_be_a_named_file_and_has_levels() {
    differs!("runc", "has no such options");
    let dir = tempfile::tempdir().unwrap();
    let call = |log: &str, level: &str| {
        let state = dir.path().join("state");
        Verb::new(["--log", log, "--log-level", level, "--root"])
            .arg(state)
            .args(["state", "absent"])
            .run()
    };
    let file = dir.path().join("log");
    let named = format!("file:{}", file.display());
    for level in ["error", "warning"] {
        let outcome = call(&named, level);
        assert_eq!(outcome.code(), 1, "{outcome}");
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("level=error"), "{text}");
        std::fs::remove_file(&file).unwrap();
    }
    if runtime().is("pelagos") {
        call(&named, "loud").fails_with("invalid log-level: loud");
    }
}

#[test]
fn a_warning_is_not_told_below_its_level() {
    requires!(container);
    differs!("runc", "has no such option");
    differs!("crun", "warns of nothing here");
    let bundle = Bundle::with(|c| {
        c["mounts"].as_array_mut().unwrap()[0]["destination"] = json!("proc");
    });
    let warned = bundle.run().ok();
    assert!(warned.stderr.contains("level=warning"), "{warned}");
    let quiet = bundle.verb(["--log-level=error", "run", &bundle.id]).ok();
    assert_eq!(quiet.stderr, "", "{quiet}");
}
