//! Readiness: a payload's sd_notify(3), as the service manager of the runtime hears of it.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::inside::{answers, asking};
use crate::support::{Bundle, Running, Verb, eventually, mounts, patience, sh};

/// A service manager's socket.
struct Manager(UnixDatagram, PathBuf);

impl Manager {
    fn new(bundle: &Bundle) -> Self {
        let path = bundle.beside("manager");
        let socket = UnixDatagram::bind(&path).expect("bind");
        Self(socket, path)
    }

    /// The next message; a descriptor that comes with it is closed, which is how a manager says that it has taken all.
    #[track_caller]
    fn hear(&self) -> String {
        hear(&self.0)
    }
}

#[track_caller]
fn hear(socket: &UnixDatagram) -> String {
    let limit = patience(Duration::from_secs(10));
    socket.set_read_timeout(Some(limit)).expect("time limit");
    let mut text = [0; 4096];
    // Without room for control data the kernel closes the descriptor.
    let length = socket.recv(&mut text).expect("a message");
    String::from_utf8_lossy(&text[..length]).into_owned()
}

/// A container that sleeps and has a /run of its own.
fn sleeper() -> Bundle {
    Bundle::with(|c| {
        sh(c, "trap 'exit 3' TERM; while :; do sleep 0.05; done");
        mounts(c).push(json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs" }));
    })
}

/// Wait for a container that may not be there yet.
#[track_caller]
fn await_running(bundle: &Bundle) {
    let state = || bundle.verb(["state", &bundle.id]).run();
    assert!(eventually(|| state().stdout.contains("\"running\"")));
}

/// Say `text` to the socket that the container sees, as a process of its would.
fn say(bundle: &Bundle, text: &str) {
    let socket = PathBuf::from(format!(
        "/proc/{}/root/run/notify/notify.sock",
        bundle.pid()
    ));
    let client = UnixDatagram::unbound().expect("socket");
    assert!(
        eventually(|| client.send_to(text.as_bytes(), &socket).is_ok()),
        "nobody listens at {}",
        socket.display()
    );
}

/// Create the container for a service manager.
fn created(bundle: &Bundle) -> Manager {
    let create = bundle.verb(["create", "--bundle"]).arg(&bundle.path);
    let (manager, create) = told(bundle, create.arg(&bundle.id));
    create.wait().ok();
    manager
}

/// Call a verb for a service manager.
fn told(bundle: &Bundle, verb: Verb) -> (Manager, Running) {
    let manager = Manager::new(bundle);
    let running = verb.env("NOTIFY_SOCKET", &manager.1).spawn();
    (manager, running)
}

#[test]
fn start_waits_until_the_payload_is_ready_and_tells_the_manager() {
    requires!(root);
    differs!("crun", "other names below /run/notify");
    let bundle = sleeper();
    let manager = created(&bundle);
    let start = bundle.verb(["start", &bundle.id]);
    let mut start = start.env("NOTIFY_SOCKET", &manager.1).spawn();
    bundle.wait_for("running");
    say(&bundle, "STATUS=nearly there");
    say(&bundle, "READY=0nce\nSTATUS=done\nMAINPID=1");
    assert_eq!(manager.hear(), "READY=0nce\n");
    assert_eq!(manager.hear(), format!("MAINPID={}", bundle.pid()));
    assert!(start.is_running(), "the manager has not taken the barrier");
    assert_eq!(manager.hear(), "BARRIER=1");
    start.wait().ok();
    assert_eq!(bundle.status(), "running");
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn run_tells_the_manager_that_it_is_the_main_process_or_its_payload_when_detached() {
    requires!(root);
    differs!("crun", "other names below /run/notify");
    for detach in [false, true] {
        let bundle = sleeper();
        let mut verb = bundle.verb(["run", "--bundle"]).arg(&bundle.path);
        if detach {
            verb = verb.arg("--detach");
        }
        let (manager, mut run) = told(&bundle, verb.arg(&bundle.id));
        await_running(&bundle);
        assert!(run.is_running());
        say(&bundle, "READY=1");
        assert_eq!(manager.hear(), "READY=1\n");
        let main = if detach { bundle.pid() } else { run.pid() };
        assert_eq!(manager.hear(), format!("MAINPID={main}"));
        assert_eq!(manager.hear(), "BARRIER=1");
        if detach {
            run.wait().ok();
            bundle.delete_force().ok();
        } else {
            bundle.kill("TERM").ok();
            assert_eq!(run.wait().code(), 3);
        }
        bundle.assert_nothing_left();
    }
}

#[test]
fn a_payload_that_ends_without_a_word_lets_start_return() {
    requires!(root);
    let bundle = Bundle::sh("sleep 0.3");
    let manager = created(&bundle);
    let start = bundle.verb(["start", &bundle.id]);
    start.env("NOTIFY_SOCKET", &manager.1).ok();
    bundle.wait_for("stopped");
    bundle.delete().ok();
    bundle.assert_nothing_left();
}

#[test]
fn the_container_sees_its_socket_in_a_directory_that_it_cannot_change() {
    requires!(root);
    differs!("crun", "other names below /run/notify");
    let bundle = asking(
        &[
            "read:/proc/self/environ",
            "list:/run/notify",
            "create:/run/notify/x",
            "read:/proc/self/mountinfo",
        ],
        |c| {
            c["process"]["env"] = json!(["NOTIFY_SOCKET=/from/the/bundle"]);
            mounts(c).push(json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs" }));
        },
    );
    let verb = bundle
        .verb(["run", "--bundle"])
        .arg(&bundle.path)
        .arg(&bundle.id);
    let (_manager, run) = told(&bundle, verb);
    let seen = answers(&run.wait().ok());
    let env: Vec<_> = seen.text("read:/proc/self/environ").split('\0').collect();
    let sockets: Vec<_> = env
        .iter()
        .filter(|line| line.starts_with("NOTIFY_SOCKET="))
        .collect();
    assert_eq!(sockets, [&"NOTIFY_SOCKET=/run/notify/notify.sock"]);
    assert_eq!(seen.ok("list:/run/notify"), &json!(["notify.sock"]));
    assert_eq!(seen.errno("create:/run/notify/x"), "EROFS");
    let mount = seen.mount("/run/notify");
    for option in ["ro", "nosuid", "noexec", "nodev"] {
        assert!(mount.has(option), "{option}");
    }
    assert_eq!(mount.propagation(), "private");
}

#[test]
fn a_manager_may_have_an_abstract_name_and_one_that_is_gone_is_named() {
    requires!(root);
    differs!("crun", "no message about it");
    let name = format!("pelagos-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let socket = UnixDatagram::bind_addr(&address).expect("bind");
    let bundle = sleeper();
    let run = bundle
        .verb(["run", "--detach", "--bundle"])
        .arg(&bundle.path)
        .arg(&bundle.id);
    let run = run.env("NOTIFY_SOCKET", format!("@{name}")).spawn();
    await_running(&bundle);
    say(&bundle, "READY=1");
    assert_eq!(hear(&socket), "READY=1\n");
    assert!(hear(&socket).starts_with("MAINPID="));
    assert_eq!(hear(&socket), "BARRIER=1");
    run.wait().ok();
    bundle.delete_force().ok();

    let bundle = sleeper();
    let gone = bundle.beside("gone");
    let run = bundle
        .verb(["run", "--detach", "--bundle"])
        .arg(&bundle.path)
        .arg(&bundle.id);
    let outcome = run.env("NOTIFY_SOCKET", &gone).run();
    outcome.fails_with(&format!("connect to NOTIFY_SOCKET {}", gone.display()));
    bundle.assert_nothing_left();
}

#[test]
fn the_manager_hears_of_it_once_however_often_it_is_said() {
    requires!(root);
    differs!("crun", "other names below /run/notify");
    let bundle = sleeper();
    let verb = bundle.verb(["run", "--bundle"]).arg(&bundle.path);
    let (manager, run) = told(&bundle, verb.arg(&bundle.id));
    await_running(&bundle);
    say(&bundle, "READY=1");
    for message in ["READY=1\n", &format!("MAINPID={}", run.pid()), "BARRIER=1"] {
        assert_eq!(manager.hear(), message);
    }
    let socket = PathBuf::from(format!(
        "/proc/{}/root/run/notify/notify.sock",
        bundle.pid()
    ));
    let client = UnixDatagram::unbound().expect("socket");
    client.set_nonblocking(true).expect("nonblocking");
    while client.send_to(b"READY=1", &socket).is_ok() {}
    bundle.kill("TERM").ok();
    assert_eq!(run.wait().code(), 3);
    manager.0.set_nonblocking(true).expect("nonblocking");
    assert!(manager.0.recv(&mut [0; 16]).is_err(), "more was passed on");
    bundle.assert_nothing_left();
}

#[test]
fn a_manager_that_does_not_listen_any_more_is_a_warning() {
    requires!(root);
    differs!("crun", "other names below /run/notify");
    for gone in [true, false] {
        let bundle = sleeper();
        let verb = bundle
            .verb(["run", "--detach", "--bundle"])
            .arg(&bundle.path);
        let (manager, run) = told(&bundle, verb.arg(&bundle.id));
        await_running(&bundle);
        if gone {
            drop(manager);
        } else {
            // It is there, and does not read. A sender can be out of room before the receiver is: then comes another.
            let mut clients = Vec::new();
            loop {
                let client = UnixDatagram::unbound().expect("socket");
                client.set_nonblocking(true).expect("nonblocking");
                if client.send_to(b"x", &manager.1).is_err() {
                    break;
                }
                while client.send_to(b"x", &manager.1).is_ok() {}
                clients.push(client);
            }
        }
        say(&bundle, "READY=1");
        let outcome = run.wait();
        assert_eq!(outcome.code(), 0, "{outcome}");
        assert!(
            outcome.stderr.contains("write to NOTIFY_SOCKET"),
            "{outcome}"
        );
        assert_eq!(bundle.status(), "running");
        bundle.delete_force().ok();
        bundle.assert_nothing_left();
    }
}
