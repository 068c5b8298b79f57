//! Seccomp rules that ask an agent: `SCMP_ACT_NOTIFY`, `listenerPath`, `listenerMetadata`.
#![expect(
    unsafe_code,
    reason = "answering notifications takes ioctls that no crate in use has"
)]

use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::inside::{answers, asking, refused};
use crate::support::Bundle;

/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` of linux/seccomp.h.
const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;

/// What the agent has been told, and the calls that it has been asked about.
pub(crate) struct Asked {
    pub(crate) message: Value,
    /// How much of it came together with the descriptor, in bytes.
    with_descriptor: usize,
    calls: Vec<i64>,
}

/// Listen for one container; answer every call that it asks about with EXFULL, until the container has ended.
pub(crate) fn agent(listener: UnixListener) -> JoinHandle<Asked> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a runtime");
        let (mut text, descriptor) = first_part(&stream);
        let with_descriptor = text.len();
        stream.read_to_string(&mut text).expect("the rest");
        let mut calls = Vec::new();
        loop {
            let mut poll = libc::pollfd {
                fd: descriptor.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one structure, as is said.
            let ready = unsafe { libc::poll(&raw mut poll, 1, 30_000) };
            assert_eq!(ready, 1, "no notification, and no end");
            if poll.revents & libc::POLLIN == 0 {
                break;
            }
            calls.extend(answer(&descriptor));
        }
        let message = serde_json::from_str(&text).expect("JSON");
        Asked {
            message,
            with_descriptor,
            calls,
        }
    })
}

fn first_part(stream: &UnixStream) -> (String, OwnedFd) {
    let mut buffer = [0; 4096];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags).expect("a message");
    let mut descriptors = Vec::new();
    for control in message.cmsgs().expect("control messages") {
        if let ControlMessageOwned::ScmRights(rights) = control {
            descriptors.extend(rights);
        }
    }
    let [descriptor] = descriptors[..] else {
        panic!("{} descriptors", descriptors.len());
    };
    let length = message.bytes;
    // SAFETY: it has just come for us.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    (
        String::from_utf8(buffer[..length].to_vec()).expect("text"),
        descriptor,
    )
}

/// The number of the call that was asked about; none where its process is gone already.
fn answer(descriptor: &OwnedFd) -> Option<i64> {
    // SAFETY: structures of numbers.
    let (mut question, mut answer): (libc::seccomp_notif, libc::seccomp_notif_resp) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let fd = descriptor.as_raw_fd();
    // SAFETY: the kernel writes what fits the structure, whose size the request holds.
    if unsafe { libc::ioctl(fd, RECEIVE as _, &raw mut question) } != 0 {
        return None;
    }
    answer.id = question.id;
    answer.error = -(Errno::EXFULL as i32);
    // SAFETY: as above, for reading.
    unsafe { libc::ioctl(fd, SEND as _, &raw mut answer) };
    Some(question.data.nr.into())
}

/// A bundle whose mkdir is the agent's matter, and the agent's socket.
fn bundle(edit: impl FnOnce(&mut Value)) -> (Bundle, PathBuf) {
    let mut socket = PathBuf::new();
    let bundle = asking(&["mkdir:/made", "stat:/made"], |c| {
        c["root"]["readonly"] = json!(false);
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": "/set/below",
            "listenerMetadata": "whose it is",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
        });
        edit(c);
    });
    bundle.edit(|c| {
        socket = bundle.beside("agent");
        let path = &mut c["linux"]["seccomp"]["listenerPath"];
        if path == "/set/below" {
            *path = json!(socket);
        }
    });
    (bundle, socket)
}

#[test]
fn an_agent_answers_the_calls_that_it_is_asked_about() {
    requires!(root);
    differs!("crun", "built without, or with an older libseccomp");
    differs!("runc", "1.1 of Debian");
    let (bundle, socket) = bundle(|c| c["annotations"] = json!({ "a.b": "c" }));
    let agent = agent(UnixListener::bind(socket).expect("bind"));
    let seen = answers(&bundle.run().ok());
    assert_eq!(seen.errno("mkdir:/made"), "EXFULL");
    assert_eq!(seen.errno("stat:/made"), "ENOENT");
    let asked = agent.join().expect("the agent");
    let numbers = [libc::SYS_mkdir, libc::SYS_mkdirat];
    assert!(!asked.calls.is_empty() && asked.calls.iter().all(|call| numbers.contains(call)));
    // config-linux.md, containerProcessState.
    let message = &asked.message;
    assert_eq!(message["fds"], json!(["seccompFd"]));
    assert_eq!(message["metadata"], "whose it is");
    assert_eq!(message["ociVersion"], message["state"]["ociVersion"]);
    assert_eq!(message["pid"], message["state"]["pid"]);
    assert_eq!(message["state"]["id"], bundle.id);
    assert_eq!(message["state"]["status"], "creating");
    assert_eq!(message["state"]["annotations"], json!({ "a.b": "c" }));
    assert_eq!(asked.with_descriptor, message.to_string().len());
    bundle.assert_nothing_left();
}

#[test]
fn a_message_longer_than_a_socket_takes_arrives_whole_and_metadata_only_where_they_are_given() {
    requires!(root);
    differs!("crun", "built without, or with an older libseccomp");
    differs!("runc", "1.1 of Debian");
    let long = "x".repeat(1 << 20);
    let (bundle, socket) = bundle(|c| {
        c["annotations"] = json!({ "a.b": long });
        c["linux"]["seccomp"]
            .as_object_mut()
            .expect("a profile")
            .remove("listenerMetadata");
    });
    let agent = agent(UnixListener::bind(socket).expect("bind"));
    bundle.run().ok();
    let asked = agent.join().expect("the agent");
    assert_eq!(asked.message["state"]["annotations"]["a.b"], long);
    assert_eq!(asked.message.get("metadata"), None);
}

#[test]
fn a_created_container_may_wait_under_its_agent() {
    requires!(root);
    differs!("crun", "built without, or with an older libseccomp");
    differs!("runc", "1.1 of Debian");
    let (bundle, socket) = bundle(|_| {});
    let agent = agent(UnixListener::bind(socket).expect("bind"));
    bundle.create();
    bundle.verb(["start"]).arg(&bundle.id).run().ok();
    let asked = agent.join().expect("the agent");
    assert!(!asked.calls.is_empty());
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn a_notification_waits_killable_where_the_profile_says_so() {
    requires!(root, command "strace");
    differs!("crun", "built without, or with an older libseccomp");
    differs!("runc", "1.1 of Debian");
    let (bundle, socket) = bundle(|c| {
        c["linux"]["seccomp"]["flags"] = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    });
    let agent = agent(UnixListener::bind(socket).expect("bind"));
    let trace = bundle.beside("trace");
    let under = ["strace", "-f", "-qq", "-e", "trace=seccomp", "-o"];
    let under = under.iter().copied().chain(trace.to_str());
    let run = bundle.verb(["run", "-b", "."]).arg(&bundle.id);
    let seen = answers(&run.under(under).run().ok());
    assert_eq!(seen.errno("mkdir:/made"), "EXFULL");
    assert!(!agent.join().expect("the agent").calls.is_empty());
    let trace = std::fs::read_to_string(trace).expect("trace");
    let flag = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
    assert!(trace.contains(flag) || trace.contains("|0x20,"), "{trace}");
}

#[test]
fn a_process_more_has_an_agent_of_its_own() {
    requires!(root);
    differs!("crun", "built without, or with an older libseccomp");
    differs!("runc", "1.1 of Debian");
    let mut socket = PathBuf::new();
    let waiting = Bundle::sleeping();
    waiting.edit(|c| {
        socket = waiting.beside("agent");
        c["root"]["readonly"] = json!(false);
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": socket,
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
        });
    });
    let listener = UnixListener::bind(&socket).expect("bind");
    let first = agent(listener.try_clone().expect("a copy"));
    waiting.up();
    let second = agent(listener);
    let mkdir = waiting.verb(["exec"]).arg(&waiting.id);
    let outcome = mkdir.arg("mkdir").arg("/made").run();
    assert_ne!(outcome.code(), 0, "{outcome}");
    waiting.delete_force();
    let (first, second) = (first.join().expect("one"), second.join().expect("two"));
    assert!(first.calls.is_empty() && !second.calls.is_empty());
    // config-linux.md, containerProcessState: the process that the filter is about, in a container that runs.
    let (message, other) = (&second.message, &first.message);
    assert_eq!(message["state"]["status"], "running");
    assert_eq!(message["state"]["pid"], other["pid"]);
    assert_ne!(message["pid"], other["pid"]);
    waiting.assert_nothing_left();
}

#[test]
fn without_an_agent_nothing_is_made() {
    requires!(root);
    differs!("crun", "built without, or with an older libseccomp");
    differs!("runc", "1.1 of Debian");
    refused(
        &bundle(|_| {}).0,
        "failed to connect with seccomp agent specified in the seccomp profile",
    );
    refused(
        &bundle(|c| c["linux"]["seccomp"]["listenerPath"] = json!("")).0,
        "seccomp listenerPath is not set",
    );
    refused(
        &bundle(|c| c["linux"]["seccomp"]["syscalls"][0]["names"] = json!(["write"])).0,
        "SCMP_ACT_NOTIFY cannot be used for the write syscall",
    );
}

#[test]
fn a_listener_of_a_profile_that_asks_nobody_is_ignored() {
    requires!(container);
    let (bundle, _) =
        bundle(|c| c["linux"]["seccomp"]["syscalls"][0]["action"] = json!("SCMP_ACT_ERRNO"));
    assert_eq!(answers(&bundle.run().ok()).errno("mkdir:/made"), "EPERM");
}
