//! Annotations that change what is done: crun's `run.oci.*`.

use std::fs;
use std::os::unix::net::UnixListener;

use nix::libc;
use serde_json::{Value, json};

use crate::driver::{Driven, Driver, drivers};
use crate::hooks::POINTS;
use crate::inside::{answers, asking, refused, see};
use crate::support::console::{ConsoleSocket, socket_path};
use crate::support::needs::has_selinux;
use crate::support::{Bundle, Verb, eventually, namespace, sh};

fn annotate(config: &mut Value, name: &str, value: impl Into<Value>) {
    config["annotations"][format!("run.oci.{name}")] = value.into();
}

fn run(bundle: &Bundle) -> Verb {
    bundle
        .verb(["run", "--bundle"])
        .arg(&bundle.path)
        .arg(&bundle.id)
}

/// The `Groups:` line of a process.
fn groups(status: &str) -> Vec<&str> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    line.expect("Groups").split_whitespace().collect()
}

#[test]
fn the_callers_groups_are_kept_where_that_is_asked_for() {
    requires!(root, command "setpriv");
    differs!("runc", "knows nothing of it");
    for (value, kept) in [("1", true), ("0", false)] {
        let bundle = asking(&["read:/proc/self/status"], |c| {
            c["process"]["user"]["additionalGids"] = json!([77]);
            annotate(c, "keep_original_groups", value);
        });
        let outcome = run(&bundle).under(["setpriv", "--groups=7,8", "--"]).ok();
        let seen = answers(&outcome);
        let wanted: &[&str] = if kept { &["7", "8"] } else { &["77"] };
        assert_eq!(
            groups(seen.text("read:/proc/self/status")),
            wanted,
            "{value}"
        );
    }
}

fn hook(script: &str) -> Value {
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }])
}

#[test]
fn hooks_write_into_the_files_that_are_named_for_them() {
    requires!(root);
    differs!("runc", "knows nothing of it");
    differs!("crun", "a relative path is not below the bundle");
    let bundle = Bundle::new();
    let errors = bundle.beside("errors");
    fs::write(&errors, "before\n").unwrap();
    bundle.edit(|c| {
        annotate(c, "hooks.stdout", "output");
        annotate(c, "hooks.stderr", errors.to_str());
        for point in POINTS {
            c["hooks"][point] = hook(&format!(
                "cat >/dev/null; echo {point}; echo {point} fails >&2"
            ));
        }
    });
    bundle.run().ok();
    let points = "prestart\ncreateRuntime\ncreateContainer\nstartContainer\npoststart\npoststop\n";
    assert_eq!(
        fs::read_to_string(bundle.path.join("output")).unwrap(),
        points
    );
    let complaints = format!("before\n{}", points.replace('\n', " fails\n"));
    assert_eq!(fs::read_to_string(&errors).unwrap(), complaints);
    bundle.assert_nothing_left();

    // What went into a file is not in the message.
    bundle.edit(|c| c["hooks"]["createRuntime"] = hook("echo why; echo reason >&2; exit 4"));
    let outcome = bundle.run();
    outcome.fails_with("error running createRuntime hook #0: exit status 4, stdout: , stderr: ");
    assert!(fs::read_to_string(&errors).unwrap().contains("\nreason\n"));

    bundle.edit(|c| annotate(c, "hooks.stdout", "no/such/output"));
    refused(&bundle, "annotations.run.oci.hooks.stdout: open ");
}

#[test]
fn output_of_hooks_goes_neither_through_a_link_nor_into_a_fifo() {
    requires!(root);
    differs!("runc", "knows nothing of it");
    differs!("crun", "follows links");
    let bundle = Bundle::sleeping();
    let precious = bundle.beside("precious");
    let mark = bundle.beside("mark");
    fs::write(&precious, "").unwrap();
    bundle.edit(|c| {
        annotate(c, "hooks.stdout", "log");
        let script = format!("cat >/dev/null; echo x; echo done >{}", mark.display());
        c["hooks"]["poststop"] = hook(&script);
    });
    let log = bundle.path.join("log");
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    refused(&bundle, "annotations.run.oci.hooks.stdout: open ");
    fs::remove_file(&log).unwrap();
    bundle.up();
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink(&precious, &log).unwrap();
    let outcome = bundle.delete_force().ok();
    assert!(
        outcome
            .stderr
            .contains("annotations.run.oci.hooks.stdout: open "),
        "{outcome}"
    );
    assert_eq!(fs::read_to_string(&precious).unwrap(), "");
    assert_eq!(fs::read_to_string(&mark).unwrap(), "done\n");
    bundle.assert_nothing_left();
}

/// One instruction: return this value.
fn returning(value: u32) -> String {
    let mut bytes = [6, 0, 0, 0, 0, 0, 0, 0];
    bytes[4..].copy_from_slice(&value.to_le_bytes());
    base64(&bytes)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for digit in 0..4 {
            let sextet = usize::try_from(bits >> (18 - 6 * digit) & 63).unwrap();
            text.push(if digit <= chunk.len() {
                DIGITS[sextet].into()
            } else {
                '='
            });
        }
    }
    text
}

/// `mkdir` and `mkdirat` fail with EXFULL, everything else is allowed.
fn without_mkdir() -> String {
    let instruction = |code: u16, jump: [u8; 2], k: u32| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend(jump);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    let program = [
        // Load the number; compare twice; allow; refuse.
        instruction(0x20, [0, 0], 0),
        instruction(0x15, [2, 0], number(libc::SYS_mkdirat)),
        instruction(0x15, [1, 0], number(libc::SYS_mkdir)),
        instruction(0x06, [0, 0], 0x7fff_0000),
        instruction(0x06, [0, 0], 0x0005_0000 | 54),
    ];
    base64(&program.concat())
}

#[test]
fn a_filter_may_be_given_as_a_program() {
    requires!(root);
    differs!("runc", "knows nothing of it");
    let bundle = asking(&["mkdir:/made", "read:/proc/self/status"], |c| {
        // What it stands in for would end the payload at once.
        c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_KILL_PROCESS", "flags": [] });
        annotate(c, "seccomp_bpf_data", without_mkdir());
    });
    let seen = see(&bundle);
    assert_eq!(seen.errno("mkdir:/made"), "EXFULL");
    assert!(
        seen.text("read:/proc/self/status")
            .contains("Seccomp_filters:\t1\n")
    );
}

#[test]
fn a_process_more_of_the_container_has_the_same_program() {
    requires!(root);
    differs!("runc", "knows nothing of it");
    let bundle = Bundle::sleeping();
    bundle.edit(|c| {
        c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
        annotate(c, "seccomp_bpf_data", without_mkdir());
    });
    bundle.up();
    let exec = bundle
        .verb(["exec", &bundle.id, "sh", "-c", "mkdir /tmp/x; echo $?"])
        .ok();
    assert_eq!(exec.stdout, "1\n");
    bundle.delete_force().ok();
}

#[test]
fn what_is_no_program_is_refused() {
    requires!(container);
    differs!("runc", "knows nothing of it");
    let with = |text: &str| {
        Bundle::with(|c| {
            c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
            annotate(c, "seccomp_bpf_data", text);
        })
    };
    refused(
        &with("="),
        "annotations.run.oci.seccomp_bpf_data: not base64",
    );
    refused(
        &with("AAAA"),
        "annotations.run.oci.seccomp_bpf_data: 3 bytes are no filter",
    );
    with(&returning(0x7fff_0000)).run().ok();
}

#[test]
fn an_unknown_system_call_can_be_an_error() {
    requires!(container);
    differs!("runc", "knows nothing of it");
    for (value, strict) in [("1", true), ("0", false)] {
        let bundle = Bundle::with(|c| {
            c["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    { "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" },
                    { "names": ["rmdir", "no_such_call"], "action": "SCMP_ACT_ERRNO" },
                ],
            });
            annotate(c, "seccomp_fail_unknown_syscall", value);
        });
        match strict {
            true => refused(
                &bundle,
                "linux.seccomp.syscalls[1]: no_such_call: unknown system call",
            ),
            false => drop(bundle.run().ok()),
        }
    }
}

#[test]
fn the_agent_of_a_profile_that_names_none_is_the_annotations() {
    requires!(root);
    differs!("runc", "knows nothing of it");
    differs!("crun", "built without, or with an older libseccomp");
    for by_variable in [false, true] {
        let bundle = asking(&["mkdir:/made"], |c| {
            c["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
            });
        });
        let socket = bundle.beside("agent");
        let mut verb = run(&bundle);
        if by_variable {
            verb = verb.env("RUN_OCI_SECCOMP_RECEIVER", &socket);
        } else {
            bundle.edit(|c| annotate(c, "seccomp.receiver", socket.to_str()));
        }
        let agent = crate::notify::agent(UnixListener::bind(&socket).expect("bind"));
        let seen = answers(&verb.ok());
        assert_eq!(seen.errno("mkdir:/made"), "EXFULL");
        assert_eq!(
            agent.join().expect("the agent").message["fds"],
            json!(["seccompFd"])
        );
    }
}

#[test]
fn the_pidfd_goes_to_the_receiver() {
    requires!(root);
    differs!("runc", "knows nothing of it");
    let bundle = Bundle::sleeping();
    let socket = ConsoleSocket::bind(socket_path(&bundle.path));
    bundle.edit(|c| annotate(c, "pidfd_receiver", socket.path.to_str()));
    bundle.create().ok();
    let received = socket.receive();
    let [pidfd] = &received.fds[..] else {
        panic!("{} descriptors", received.fds.len());
    };
    let number = std::os::fd::AsRawFd::as_raw_fd(pidfd);
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
    assert!(
        info.contains(&format!("\nPid:\t{}\n", bundle.pid())),
        "{info}"
    );
    bundle.delete_force().ok();

    let bundle = Bundle::with(|c| annotate(c, "pidfd_receiver", "x.sock"));
    refused(
        &bundle,
        "annotations.run.oci.pidfd_receiver: \"x.sock\" is not an absolute path",
    );
}

#[test]
fn the_option_that_labels_mounts_is_one_of_four() {
    requires!(container);
    differs!("runc", "knows nothing of it");
    let bundle = Bundle::with(|c| annotate(c, "mount_context_type", "label"));
    refused(
        &bundle,
        "annotations.run.oci.mount_context_type: \"label\" is none of context",
    );
    if has_selinux() {
        let bundle = Bundle::with(|c| {
            annotate(c, "mount_context_type", "rootcontext");
            c["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
        });
        bundle.run().ok();
    }
}

/// The cgroup of a process as /proc says it.
fn cgroup_of(pid: impl std::fmt::Display) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("0::"));
    line.expect("a cgroup").to_owned()
}

#[test]
fn the_payload_lives_in_the_cgroup_that_is_delegated_to_it() {
    requires!(root);
    differs!("runc", "knows nothing of it");
    for driver in drivers() {
        let driven = Driven::new(driver, |c| {
            namespace(c, "cgroup");
            sh(c, "cat /proc/self/cgroup >/tmp/own; exec sleep 1000");
            annotate(c, "systemd.subgroup", "sub");
            annotate(c, "delegate-cgroup", "inner/most");
        });
        driven.up();
        let bundle = &driven.bundle;
        let systemd = matches!(driver, Driver::Systemd);
        let below = if systemd {
            "sub/inner/most"
        } else {
            "inner/most"
        };
        assert!(
            cgroup_of(bundle.pid()).ends_with(&format!("/{below}")),
            "{driver:?}"
        );
        // What is above the delegated one is the root that the container sees.
        let own = bundle.rootfs("tmp/own");
        assert!(eventually(
            || fs::read_to_string(&own).is_ok_and(|text| text.ends_with("\n"))
        ));
        assert!(
            fs::read_to_string(&own)
                .unwrap()
                .contains("0::/inner/most\n"),
            "{driver:?}"
        );
        let exec = driven
            .verb(["exec", &bundle.id, "cat", "/proc/self/cgroup"])
            .ok();
        assert!(
            exec.stdout.contains("0::/inner/most\n"),
            "{driver:?}: {}",
            exec.stdout
        );
        let group = driven.group();
        driven.end();
        let mut above = group.ancestors().take(below.split('/').count() + 1);
        assert!(above.all(|path| !path.exists()), "{driver:?}");
    }
    let bundle = Bundle::with(|c| annotate(c, "delegate-cgroup", "../x"));
    refused(
        &bundle,
        "annotations.run.oci.delegate-cgroup: \"../x\" leads out of the container's cgroup",
    );
}
