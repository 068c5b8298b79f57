//! Terminals: handed over by a console socket, or attached to the caller's own.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::console::{ConsoleSocket, Received, Terminal, resize, settings, socket_path};
use crate::support::{Bundle, runtime, sh};

/// A bundle with a terminal whose container runs this script.
fn with_terminal(script: &str) -> Bundle {
    Bundle::with(|c| {
        c["process"]["terminal"] = json!(true);
        sh(c, script);
    })
}

fn socket(bundle: &Bundle) -> ConsoleSocket {
    ConsoleSocket::bind(socket_path(&bundle.beside("")))
}

/// Create with a console socket; the terminal.
fn create(bundle: &Bundle) -> Terminal {
    let socket = socket(bundle);
    bundle
        .verb(["create", "--console-socket"])
        .arg(&socket.path)
        .arg(&bundle.id)
        .ok();
    terminal(socket.receive())
}

fn terminal(mut received: Received) -> Terminal {
    Terminal::new(received.fds.pop().expect("a descriptor"))
}

#[test]
fn console_socket_gets_one_message_with_one_descriptor() {
    requires!(container);
    let bundle = with_terminal("true");
    let socket = socket(&bundle);
    bundle
        .verb(["create", "--console-socket"])
        .arg(&socket.path)
        .arg(&bundle.id)
        .ok();
    let received = socket.receive();
    assert_eq!(received.fds.len(), 1);
    assert_eq!(received.rest, b"", "one message");
    assert!(
        !received.data.is_empty() && received.data.len() < 4096,
        "{:?}",
        received.data
    );
    if runtime().is("pelagos") {
        assert!(
            received.data.starts_with("/dev/pts/") || received.data == "/dev/ptmx",
            "{:?}",
            received.data
        );
    }
    assert_eq!(bundle.status(), "created");
    let mut terminal = terminal(received);
    assert_eq!(terminal.text(), "");
}

/// Asks for a terminal by this name of the socket, with create and with exec, and for a pidfd.
#[track_caller]
fn reached_as(bundle: &Bundle, socket: &ConsoleSocket, name: &Path) {
    let with = |verb: &str, option: &str| {
        let verb = bundle.verb([verb, option]).arg(name);
        verb.cwd("/").arg("--bundle").arg(&bundle.path)
    };
    with("create", "--console-socket").arg(&bundle.id).ok();
    let terminal = socket.receive();
    assert_eq!(terminal.fds.len(), 1, "create");
    bundle.start();
    for options in [&["-td", "--console-socket"][..], &["-d", "--pidfd-socket"]] {
        let verb = bundle.verb(["exec"]).args(options).arg(name).cwd("/");
        verb.args([&bundle.id, "true"]).ok();
        assert_eq!(socket.receive().fds.len(), 1, "exec {options:?}");
    }
    bundle.delete_force().ok();
    bundle.edit(|c| c["process"]["terminal"] = json!(false));
    with("create", "--pidfd-socket").arg(&bundle.id).ok();
    assert_eq!(socket.receive().data, "standard");
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn a_relative_socket_is_one_from_the_bundle() {
    requires!(root);
    differs!("crun", "exec's is from where its caller stands");
    differs!("runc", "has a pidfd socket since 1.2");
    let bundle = with_terminal("sleep 1000");
    let socket = ConsoleSocket::bind(socket_path(&bundle.path));
    reached_as(&bundle, &socket, Path::new("tty.sock"));
}

#[test]
fn a_socket_that_begins_with_an_at_sign_is_an_abstract_one() {
    requires!(root);
    differs!("crun", "takes it for a path");
    differs!("runc", "has a pidfd socket since 1.2");
    let bundle = with_terminal("sleep 1000");
    let socket = ConsoleSocket::bind_abstract(&bundle.id);
    reached_as(&bundle, &socket, &socket.path);
}

#[test]
fn a_socket_may_have_a_path_that_is_longer_than_an_address() {
    requires!(root);
    differs!("crun", "exec has no pidfd socket");
    differs!("runc", "refuses it");
    let bundle = with_terminal("sleep 1000");
    let socket = ConsoleSocket::bind(socket_path(&bundle.beside("")));
    let deep = bundle.beside(&"d".repeat(200));
    std::fs::create_dir(&deep).unwrap();
    let long = socket_path(&deep);
    std::fs::rename(&socket.path, &long).unwrap();
    reached_as(&bundle, &socket, &long);
}

#[test]
fn program_has_the_terminal_on_its_three_descriptors() {
    requires!(container);
    let bundle = with_terminal(
        "for n in 0 1 2; do readlink /proc/$$/fd/$n; done; tty; echo end >&2; sleep 1000",
    );
    let mut terminal = create(&bundle);
    bundle.start();
    terminal.expect("end\r\n");
    let lines: Vec<_> = terminal.text().lines().map(str::to_owned).collect();
    let tty = lines[3].clone();
    assert!(tty == "/dev/pts/0" || tty == "/dev/console", "{lines:?}");
    assert!(
        lines[..3]
            .iter()
            .all(|l| *l == lines[0] && l.starts_with("/dev/")),
        "{lines:?}"
    );
}

#[test]
fn terminal_is_the_console_and_the_controlling_one() {
    requires!(container);
    let script = "echo one > /dev/console; echo two > /dev/tty; stat -c %a:%u /dev/console; \
        [ $(stat -Lc %t:%T /dev/console) = $(stat -Lc %t:%T /dev/pts/0) ] && echo same; echo end";
    let bundle = with_terminal(script);
    let mut terminal = create(&bundle);
    bundle.start();
    terminal.expect("end\r\n");
    let lines: Vec<_> = terminal.text().lines().map(str::to_owned).collect();
    assert_eq!(lines[..2], ["one", "two"]);
    assert!(lines[2].ends_with(":0"), "{lines:?}");
    assert_eq!(lines[3], "same");
}

#[test]
fn typing_reaches_the_program_and_ctrl_c_interrupts_it() {
    requires!(container);
    let bundle = with_terminal(
        "trap 'echo stopped; exit 4' INT; read line; echo got $line; while :; do sleep 0.01; done",
    );
    let mut terminal = create(&bundle);
    bundle.start();
    terminal.write("hello\n");
    terminal.expect("got hello\r\n");
    terminal.write("\x03");
    terminal.expect("stopped\r\n");
    bundle.wait_for("stopped");
    bundle.delete();
    bundle.assert_nothing_left();
}

#[test]
fn console_has_the_size_that_the_config_gives() {
    requires!(container);
    let bundle = with_terminal("stty size; echo end");
    bundle.edit(|c| c["process"]["consoleSize"] = json!({ "height": 25, "width": 81 }));
    let mut terminal = create(&bundle);
    bundle.start();
    terminal.expect("end\r\n");
    assert_eq!(terminal.text(), "25 81\r\nend\r\n");
}

#[test]
fn console_belongs_to_the_user_of_the_program() {
    requires!(root);
    let bundle = with_terminal("stat -Lc %u /dev/pts/0; echo written > /dev/console; echo end");
    bundle.edit(|c| c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }));
    let mut terminal = create(&bundle);
    bundle.start();
    terminal.expect("end\r\n");
    assert_eq!(terminal.text(), "1000\r\nwritten\r\nend\r\n");
}

#[test]
fn run_detached_hands_the_terminal_to_the_socket_too() {
    requires!(container);
    let bundle = with_terminal("echo up; sleep 1000");
    let socket = socket(&bundle);
    bundle
        .verb(["run", "-d", "--console-socket"])
        .arg(&socket.path)
        .arg(&bundle.id)
        .ok();
    terminal(socket.receive()).expect("up\r\n");
    assert_eq!(bundle.status(), "running");
}

#[test]
fn terminal_without_a_socket_is_refused_when_detached() {
    requires!(container);
    let bundle = with_terminal("true");
    for args in [&["create"][..], &["run", "-d"]] {
        let outcome = bundle.verb(args).arg(&bundle.id).run();
        outcome
            .fails_with("cannot allocate tty if runc will detach without setting console socket");
        bundle.assert_nothing_left();
    }
}

#[test]
fn socket_without_a_terminal_or_without_detaching_is_refused() {
    requires!(container);
    differs!("crun", "it ignores the socket");
    let words = "cannot use console socket if runc will not detach or allocate tty";
    let bundle = Bundle::new();
    let path = socket_path(&bundle.beside(""));
    let _listening = ConsoleSocket::bind(path.clone());
    for (verb, terminal) in [
        (&["create"][..], false),
        (&["run", "-d"], false),
        (&["run"], true),
    ] {
        bundle.edit(|c| c["process"]["terminal"] = json!(terminal));
        let outcome = bundle
            .verb(verb)
            .arg("--console-socket")
            .arg(&path)
            .arg(&bundle.id)
            .run();
        outcome.fails_with(words);
        bundle.assert_nothing_left();
    }
}

#[test]
fn a_socket_that_nobody_can_be_reached_by_undoes_create_and_exec() {
    requires!(container);
    let waiting = Bundle::sleeping();
    waiting.up();
    let dir = waiting.beside("");
    let [file, dead, datagram] = ["file", "dead", "datagram"].map(|name| dir.join(name));
    std::fs::write(&file, "kept").unwrap();
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let _foreign = std::os::unix::net::UnixDatagram::bind(&datagram).unwrap();
    for (path, reason) in [
        (dir.join("absent"), "no such file or directory"),
        (file.clone(), "connection refused"),
        (dead, "connection refused"),
        (datagram, "protocol wrong type for socket"),
    ] {
        for option in ["--console-socket", "--pidfd-socket"] {
            let terminal = option == "--console-socket";
            let bundle = Bundle::with(|c| c["process"]["terminal"] = json!(terminal));
            let create = bundle.verb(["create", option]).arg(&path);
            let created = create.arg(&bundle.id).run();
            let mut exec = waiting.verb(["exec", "-d"]);
            if terminal {
                exec = exec.arg("-t");
            }
            let exec = exec.arg(option).arg(&path).arg(&waiting.id);
            let executed = exec.args(["touch", "/tmp/executed"]).run();
            assert_eq!(executed.code(), 255, "{option} {executed}");
            if runtime().is("pelagos") {
                created.fails_with(reason);
                for outcome in [created, executed] {
                    assert!(outcome.stderr.contains(reason), "{option} {outcome}");
                    assert!(
                        outcome.stderr.contains(&path.display().to_string()),
                        "{outcome}"
                    );
                    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
                }
            } else {
                assert_ne!(created.code(), 0, "{option} {created}");
            }
            bundle.assert_nothing_left();
        }
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    assert!(!waiting.rootfs("tmp/executed").exists());
    waiting.delete_force();
    waiting.assert_nothing_left();
}

#[test]
fn run_in_a_terminal_passes_both_directions_and_the_exit_code() {
    requires!(container);
    let bundle = with_terminal("tty; read line; echo got $line; exit 9");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let running = bundle.verb(["run", &bundle.id]).stdio(&slave).spawn();
    terminal.expect("/dev/");
    terminal.write("hello\n");
    terminal.expect("got hello");
    assert_eq!(running.wait().code(), 9);
    assert_eq!(
        terminal.text().matches("hello").count(),
        2,
        "echoed once, by the inner terminal: {}",
        terminal.text()
    );
    bundle.assert_nothing_left();
}

#[test]
fn run_in_a_terminal_has_its_size_and_follows_it() {
    requires!(container);
    differs!("crun", "the size comes after the program has begun");
    differs!("runc", "the size comes after the program has begun");
    let bundle = with_terminal(
        "stty size; trap 'stty size; echo end; exit 0' WINCH; echo ready; while :; do sleep 0.01; done",
    );
    let (mut terminal, slave) = Terminal::open(33, 101);
    let running = bundle.verb(["run", &bundle.id]).stdio(&slave).spawn();
    terminal.expect("ready");
    assert!(terminal.text().contains("33 101"), "{}", terminal.text());
    resize(&slave, 44, 122);
    running.signal(Signal::SIGWINCH);
    terminal.expect("end");
    assert!(terminal.text().contains("44 122"), "{}", terminal.text());
    assert_eq!(running.wait().code(), 0);
}

#[test]
fn a_size_that_the_config_gives_is_that_of_a_run_in_a_terminal_until_it_changes() {
    requires!(container);
    differs!("runc", "1.1 may give it the caller's in between");
    let bundle = with_terminal(
        "stty size; trap 'stty size; echo end; exit 0' WINCH; echo ready; while :; do sleep 0.01; done",
    );
    bundle.edit(|c| c["process"]["consoleSize"] = json!({ "height": 10, "width": 20 }));
    let (mut terminal, slave) = Terminal::open(33, 101);
    let running = bundle.verb(["run", &bundle.id]).stdio(&slave).spawn();
    terminal.expect("ready");
    assert!(terminal.text().contains("10 20"), "{}", terminal.text());
    resize(&slave, 44, 122);
    running.signal(Signal::SIGWINCH);
    terminal.expect("end");
    assert!(terminal.text().contains("44 122"), "{}", terminal.text());
    assert_eq!(running.wait().code(), 0);
}

#[test]
fn run_gives_the_terminal_back_as_it_was() {
    requires!(container);
    let bundle = with_terminal("echo up; read line; exit 0");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let before = settings(&slave);
    let running = bundle.verb(["run", &bundle.id]).stdio(&slave).spawn();
    terminal.expect("up");
    assert_ne!(settings(&slave), before, "raw while the program runs");
    terminal.write("\n");
    assert_eq!(running.wait().code(), 0);
    assert_eq!(settings(&slave), before);
}

#[test]
fn run_gives_the_terminal_back_after_a_signal() {
    requires!(container);
    let bundle = with_terminal("trap 'exit 6' TERM; echo up; while :; do sleep 0.01; done");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let before = settings(&slave);
    let running = bundle.verb(["run", &bundle.id]).stdio(&slave).spawn();
    terminal.expect("up");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().code(), 6);
    assert_eq!(settings(&slave), before);
}

#[test]
fn run_in_a_terminal_shows_all_that_a_short_program_prints() {
    requires!(container);
    let bundle = with_terminal("seq 1 2000");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let mut running = bundle.verb(["run", &bundle.id]).stdio(&slave).spawn();
    while running.is_running() {
        terminal.text();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(running.wait().code(), 0);
    let lines: Vec<_> = terminal
        .text()
        .lines()
        .map(|l| l.trim().to_owned())
        .collect();
    let expected: Vec<_> = (1..=2000).map(|n| n.to_string()).collect();
    assert_eq!(lines, expected);
}

#[test]
fn a_socket_that_nobody_accepts_at_is_an_error_and_not_a_wait() {
    requires!(root);
    differs!("crun", "waits");
    for option in ["--console-socket", "--pidfd-socket"] {
        let bundle =
            Bundle::with(|c| c["process"]["terminal"] = json!(option == "--console-socket"));
        let path = socket_path(&bundle.path);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let outcome = bundle
            .verb(["create", "--bundle"])
            .arg(&bundle.path)
            .arg(option)
            .arg(&path)
            .arg(&bundle.id)
            .run();
        outcome.fails_with("resource temporarily unavailable");
        bundle.assert_nothing_left();
    }
}
