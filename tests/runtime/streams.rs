//! The standard streams of `run` and `exec` in the foreground: what the payload has of the caller's, and what is copied.

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::inside::user_namespace;
use crate::support::console::{Terminal, settings};
use crate::support::{Bundle, Verb, eventually, patience, sh};

/// Words before the command line that send its output, and what it says of errors, to the end of a file.
fn into(file: &Path) -> [String; 4] {
    let script = format!("exec \"$@\" >>{} 2>&1", file.display());
    ["sh".into(), "-c".into(), script, "sh".into()]
}

/// `exec` of a script, and `run` of it, each by itself.
fn both(bundle: &Bundle, script: &str, each: impl Fn(&str, Verb)) {
    let waiting = Bundle::sleeping();
    waiting.up();
    each(
        "exec",
        waiting.verb(["exec", &waiting.id, "sh", "-c", script]),
    );
    bundle.edit(|c| sh(c, script));
    each("run", bundle.verb(["run", &bundle.id]));
}

#[test]
fn a_file_that_the_caller_reads_from_is_out_of_the_containers_reach() {
    requires!(container);
    differs!("crun", "passes its own standard streams");
    let bundle = Bundle::new();
    let secret = bundle.beside("secret");
    let script = "cat; echo overwritten 2>/dev/null >/proc/self/fd/0; exit 0";
    both(&bundle, script, |verb, command| {
        fs::write(&secret, "secret\n").unwrap();
        let before = fs::metadata(&secret).unwrap();
        let outcome = command.stdin(File::open(&secret).unwrap()).ok();
        assert_eq!(outcome.stdout, "secret\n", "{verb}");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n", "{verb}");
        let after = fs::metadata(&secret).unwrap();
        assert_eq!(
            (before.uid(), before.gid(), before.mode()),
            (after.uid(), after.gid(), after.mode()),
            "{verb}"
        );
    });
}

#[test]
fn a_file_that_the_caller_writes_to_keeps_its_owner_and_what_is_in_it() {
    requires!(container);
    differs!("crun", "passes its own standard streams");
    let bundle = Bundle::new();
    let log = bundle.beside("log");
    let script = "echo one; echo two >/dev/stdout; echo three >&2; echo four";
    both(&bundle, script, |verb, command| {
        fs::write(&log, "before\n").unwrap();
        let owner = fs::metadata(&log).unwrap().uid();
        command.under(into(&log)).ok();
        assert_eq!(
            fs::read_to_string(&log).unwrap(),
            "before\none\ntwo\nthree\nfour\n",
            "{verb}"
        );
        assert_eq!(fs::metadata(&log).unwrap().uid(), owner, "{verb}");
    });
}

#[test]
fn the_payloads_user_can_open_its_output_again() {
    requires!(root);
    let bundle = Bundle::new();
    bundle.edit(|c| c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }));
    bundle.edit(|c| {
        sh(
            c,
            "echo one; echo two >/dev/stdout; echo three >/dev/stderr",
        );
    });
    let outcome = bundle.verb(["run", &bundle.id]).ok();
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("one\ntwo\n", "three\n")
    );
}

/// Without `--tty` the payload has no terminal at all: it could change its modes, and read what is typed later.
#[test]
fn the_callers_terminal_is_not_the_payloads() {
    requires!(container);
    differs!("crun", "passes its own standard streams");
    let bundle = Bundle::new();
    let script = "read line; echo got $line; for n in 0 1 2; do test -t $n && echo $n is a terminal; done; stty -echo";
    both(&bundle, script, |verb, command| {
        let (mut terminal, slave) = Terminal::open(24, 80);
        let before = settings(&slave);
        let running = command.stdio(&slave).spawn();
        terminal.write("typed\n");
        terminal.expect("got typed");
        assert_eq!(running.wait().code(), 1, "{verb}");
        assert_eq!(settings(&slave), before, "{verb}");
        assert!(!terminal.text().contains("is a terminal"), "{verb}");
    });
}

/// For its writer.
fn pipe_that_does_not_block() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    (reader, writer)
}

/// What a writer that does not reckon with it cannot write at once would be lost.
#[test]
fn a_pipe_that_does_not_block_is_not_the_payloads() {
    requires!(container);
    differs!("crun", "passes its own standard streams");
    let bundle = Bundle::new();
    both(&bundle, "head -c 300000 /dev/zero", |verb, command| {
        let (mut reader, writer) = pipe_that_does_not_block();
        let running = command.stdio(&writer.into()).spawn();
        std::thread::sleep(patience(Duration::from_millis(300)));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), 300_000, "{verb}");
        assert_eq!(running.wait().code(), 0, "{verb}");
    });
    // Output and errors in one keep their order.
    let script = "for n in 1 2 3 4 5 6 7 8 9; do echo $n; echo $n >&2; done";
    both(&bundle, script, |verb, command| {
        let (mut reader, writer) = pipe_that_does_not_block();
        let running = command.stdio(&writer.into()).spawn();
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(
            read.lines().collect::<String>(),
            "112233445566778899",
            "{verb}"
        );
        assert_eq!(running.wait().code(), 0, "{verb}");
    });
}

#[test]
fn pipes_and_the_null_device_are_passed_as_they_are() {
    requires!(container);
    differs!("runc", "has pipes of its own for all");
    let bundle = Bundle::new();
    both(&bundle, "readlink /proc/self/fd/0", |verb, command| {
        let (reader, _writer) = std::io::pipe().unwrap();
        let name = format!(
            "pipe:[{}]\n",
            nix::sys::stat::fstat(&reader).unwrap().st_ino
        );
        assert_eq!(command.stdin(reader).ok().stdout, name, "{verb}");
    });
    both(&bundle, "readlink /proc/self/fd/0", |verb, command| {
        assert_eq!(
            command.stdin(Stdio::null()).ok().stdout,
            "/dev/null\n",
            "{verb}"
        );
    });
}

#[test]
fn large_input_and_output_arrive_whole() {
    requires!(container);
    let bundle = Bundle::new();
    let (from, to) = (bundle.beside("from"), bundle.beside("to"));
    let bytes: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&from, &bytes).unwrap();
    both(&bundle, "exec cat", |verb, command| {
        fs::write(&to, "").unwrap();
        let command = command.stdin(File::open(&from).unwrap());
        command.under(into(&to)).ok();
        assert!(fs::read(&to).unwrap() == bytes, "{verb}");
    });
}

#[test]
fn input_that_nobody_reads_harms_nobody() {
    requires!(container);
    let bundle = Bundle::new();
    let from = bundle.beside("from");
    fs::write(&from, vec![b'x'; 1 << 20]).unwrap();
    both(&bundle, "exec <&-; sleep 0.2; exit 5", |verb, command| {
        let outcome = command.stdin(File::open(&from).unwrap()).run();
        assert_eq!(outcome.code(), 5, "{verb}: {outcome}");
    });
}

/// As on any broken pipe: it must not go on writing into nothing.
#[test]
fn a_payload_whose_output_has_no_room_is_told_so() {
    requires!(container);
    differs!("crun", "passes its own standard streams");
    let bundle = Bundle::new();
    let script = "echo one; sleep 0.2; echo two || exit 9; sleep 0.2; echo three || exit 9";
    both(&bundle, script, |verb, command| {
        let outcome = command.under(into(Path::new("/dev/full"))).run();
        // pid_namespaces(7): SIGPIPE does not end the first process of a pid namespace, which sees EPIPE instead.
        let told = if verb == "run" { 9 } else { 141 };
        assert_eq!(outcome.code(), told, "{verb}: {outcome}");
    });
}

#[test]
fn exec_lasts_as_long_as_somebody_writes_to_its_file() {
    requires!(container);
    differs!("crun", "passes its own standard streams");
    let bundle = Bundle::sleeping();
    bundle.up();
    let script = "{ sleep 0.5; echo late; } & echo early; exit 3";
    let outcome = bundle.verb(["exec", &bundle.id, "sh", "-c", script]).run();
    assert_eq!(
        (outcome.code(), outcome.stdout.as_str()),
        (3, "early\nlate\n")
    );
}

#[test]
fn exec_that_only_waits_for_output_ends_at_a_signal() {
    requires!(container);
    differs!("crun", "passes its own standard streams");
    differs!("runc", "waits on");
    let bundle = Bundle::sleeping();
    bundle.up();
    let script = "sleep 1000 & echo $$; exit 3";
    let mut running = bundle
        .verb(["exec", &bundle.id, "sh", "-c", script])
        .spawn();
    assert!(eventually(|| running.stdout().ends_with('\n')));
    let ended = |pid: &str| {
        let there = ["exec", &bundle.id, "test", "-e", &format!("/proc/{pid}")];
        bundle.verb(there).run().code() == 1
    };
    assert!(eventually(|| ended(running.stdout().trim())));
    assert!(running.is_running());
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().code(), 3);
}

/// A signal may end the wait for others, but takes nothing of what has been written.
#[test]
fn output_that_was_written_before_a_signal_is_copied_all_the_same() {
    requires!(container);
    differs!("crun", "passes its own standard streams");
    let bundle = Bundle::new();
    let script = "head -c 40000 /dev/zero | tr '\\0' x; exit 5";
    both(&bundle, script, |verb, command| {
        let (mut terminal, slave) = Terminal::open(24, 80);
        let running = command.stdio(&slave).spawn();
        std::thread::sleep(Duration::from_millis(700));
        running.signal(Signal::SIGTERM);
        assert!(
            eventually(|| terminal.text().len() == 40000),
            "{verb}: {}",
            terminal.text().len()
        );
        assert_eq!(running.wait().code(), 5, "{verb}");
    });
}

/// A terminal that takes nothing more, and nothing that is said keeps the command from hearing signals.
#[test]
fn a_terminal_that_stands_still_does_not_make_the_command_deaf() {
    requires!(container);
    differs!("crun", "passes its own standard streams");
    differs!("runc", "waits on");
    let bundle = Bundle::sleeping();
    bundle.up();
    let file = bundle.rootfs("tmp/ended");
    let script = "trap 'touch /tmp/ended; exit 7' TERM; yes & wait";
    let (_terminal, slave) = Terminal::open(24, 80);
    let command = bundle.verb(["exec", &bundle.id, "sh", "-c", script]);
    let running = command.stdio(&slave).spawn();
    std::thread::sleep(Duration::from_millis(500));
    running.signal(Signal::SIGTERM);
    assert!(eventually(|| file.exists()), "the payload hears it");
    // The first ends the wait for `yes`, the second the one for the terminal.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(300));
        running.signal(Signal::SIGTERM);
    }
    assert_eq!(running.wait().code(), 7);
}

#[test]
fn streams_can_be_opened_again_in_a_user_namespace() {
    requires!(root);
    differs!("crun", "passes its own standard streams");
    let bundle = Bundle::with(|c| {
        user_namespace(c);
        c["process"]["user"] = json!({ "uid": 5, "gid": 5 });
        sh(c, "cat /dev/stdin >/dev/stdout; echo error >/dev/stderr");
    });
    let input = bundle.beside("input");
    fs::write(&input, "input\n").unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let outcome = bundle
        .verb(["run", &bundle.id])
        .stdin(File::open(&input).unwrap())
        .ok();
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("input\n", "error\n")
    );
    bundle.edit(|c| sh(c, "exec sleep 1000"));
    bundle.up();
    let script = "echo one; echo two >/dev/stdout; stat -Lc %u /dev/stdin";
    let exec = bundle.verb(["exec", "-u", "7", &bundle.id, "sh", "-c", script]);
    writer.write_all(b"\n").unwrap();
    assert_eq!(exec.stdin(reader).ok().stdout, "one\ntwo\n7\n");
}

/// A pipe is nobody's but the container's then; a fifo with a name is there for others.
#[test]
fn a_fifo_with_a_name_keeps_its_owner_in_a_user_namespace() {
    requires!(root);
    let bundle = Bundle::with(|c| {
        user_namespace(c);
        sh(c, "exit 4");
    });
    let fifo = bundle.beside("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let open = File::options().read(true).write(true).open(&fifo).unwrap();
    let outcome = bundle.verb(["run", &bundle.id]).stdin(open).run();
    assert_eq!(outcome.code(), 4, "{outcome}");
    assert_eq!(fs::metadata(&fifo).unwrap().uid(), 0);
}

/// The end of the payload's terminal is seen, and not waited for.
#[test]
fn exec_with_a_terminal_ends_when_its_program_does() {
    requires!(container);
    differs!("runc", "wants its caller to have a terminal");
    let bundle = Bundle::sleeping();
    bundle.up();
    let shortest = |options: &[&str]| {
        let once = || {
            let begun = Instant::now();
            let exec = bundle.verb(["exec"]).args(options);
            exec.args([bundle.id.as_str(), "true"]).ok();
            begun.elapsed()
        };
        (0..7).map(|_| once()).min().unwrap()
    };
    let (with, without) = (shortest(&["--tty"]), shortest(&[]));
    assert!(
        with < without + patience(Duration::from_millis(100)),
        "{with:?} with a terminal, {without:?} without"
    );
}

/// What `run` leaves behind goes with the container, so that it need not be waited for.
#[test]
fn run_does_not_wait_for_what_its_payload_has_left_behind() {
    requires!(root);
    differs!("crun", "passes its own standard streams");
    let bundle = Bundle::new();
    bundle.edit(|c| {
        sh(c, "sleep 1000 & echo up; exit 3");
        let namespaces = c["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let outcome = bundle
        .verb(["run", &bundle.id])
        .limit(Duration::from_secs(10))
        .run();
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (3, "up\n"));
    bundle.assert_nothing_left();
}
