//! `checkpoint` and `restore`: a container's processes to files, and from them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::kill;
use serde_json::{Value, json};

use crate::inside::{asking, without_namespace};
use crate::labels::Profile;
use crate::support::console::{ConsoleSocket, Terminal, socket_path};
use crate::support::{Bundle, Verb, eventually, mounts, namespace, runtime, sh};

/// A container that counts into /count of its root.
fn counting() -> Bundle {
    Bundle::with(|c| {
        c["root"]["readonly"] = json!(false);
        sh(
            c,
            "i=0; while :; do i=$((i + 1)); echo $i >/count.new; mv /count.new /count; sleep 0.05; done",
        );
    })
}

fn count(bundle: &Bundle) -> u64 {
    fs::read_to_string(bundle.rootfs("count"))
        .unwrap_or_default()
        .trim()
        .parse()
        .unwrap_or(0)
}

fn counts_from(bundle: &Bundle, least: u64) {
    assert!(
        eventually(|| count(bundle) > least),
        "it counts no further than {least}"
    );
}

/// The host's null device: CRIU cannot restore what lies outside of the container.
fn null() -> OwnedFd {
    let both = fs::File::options().read(true).write(true).open("/dev/null");
    both.expect("/dev/null").into()
}

fn up(bundle: &Bundle) {
    let run = bundle
        .verb(["run", "--detach", "--bundle"])
        .arg(&bundle.path);
    run.arg(&bundle.id).stdio(&null()).ok();
}

fn images(bundle: &Bundle) -> PathBuf {
    bundle.beside("images")
}

fn checkpoint(bundle: &Bundle) -> Verb {
    bundle
        .verb(["checkpoint", "--image-path"])
        .arg(images(bundle))
        .arg(&bundle.id)
}

/// `restore`, detached, with options before the id.
fn restore(bundle: &Bundle, options: &[&str]) -> Verb {
    attached(bundle, &[&["--detach"], options].concat())
}

/// The same in the foreground.
fn attached(bundle: &Bundle, options: &[&str]) -> Verb {
    bundle
        .verb(["restore", "--bundle"])
        .arg(&bundle.path)
        .arg("--image-path")
        .arg(images(bundle))
        .args(options)
        .arg(&bundle.id)
}

#[test]
fn a_restored_container_goes_on_where_it_was() {
    requires!(root, criu);
    let bundle = counting();
    up(&bundle);
    counts_from(&bundle, 5);
    let before = bundle.pid();
    checkpoint(&bundle).ok();

    // The container is gone, its images are not.
    bundle
        .verb(["state"])
        .arg(&bundle.id)
        .run()
        .fails_with("does not exist");
    assert!(kill(before, None).is_err(), "process {before} is left");
    assert!(!bundle.cgroup().exists(), "its cgroup is left");
    assert!(images(&bundle).join("inventory.img").is_file());
    let stopped_at = count(&bundle);

    let pid_file = bundle.beside("pid");
    restore(&bundle, &["--pid-file", pid_file.to_str().unwrap()]).ok();
    assert_eq!(bundle.status(), "running");
    assert_eq!(
        fs::read_to_string(&pid_file).unwrap(),
        bundle.pid().to_string()
    );
    counts_from(&bundle, stopped_at);
    let membership = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).unwrap();
    let own = bundle.cgroup();
    let own = own.strip_prefix(crate::support::needs::CGROUPS).unwrap();
    assert!(
        membership
            .lines()
            .any(|line| line == format!("0::/{}", own.display())),
        "{membership}"
    );
    let seen = bundle
        .verb(["exec"])
        .arg(&bundle.id)
        .args(["cat", "/count"])
        .ok();
    assert!(
        seen.stdout.trim().parse::<u64>().unwrap() > stopped_at,
        "{seen}"
    );
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn a_restored_container_can_be_paused_and_checkpointed_again() {
    requires!(root, criu);
    let bundle = counting();
    up(&bundle);
    counts_from(&bundle, 3);
    checkpoint(&bundle).ok();
    restore(&bundle, &[]).ok();
    bundle.verb(["pause"]).arg(&bundle.id).ok();
    assert_eq!(bundle.status(), "paused");
    bundle.verb(["resume"]).arg(&bundle.id).ok();
    counts_from(&bundle, count(&bundle));
    checkpoint(&bundle).ok();
    let stopped_at = count(&bundle);
    restore(&bundle, &[]).ok();
    counts_from(&bundle, stopped_at);
}

#[test]
fn a_container_that_is_left_running_runs_on_beside_its_images() {
    requires!(root, criu);
    let bundle = counting();
    up(&bundle);
    counts_from(&bundle, 3);
    let before = bundle.pid();
    let work = bundle.beside("work");
    checkpoint(&bundle)
        .arg("--leave-running")
        .arg("--work-path")
        .arg(&work)
        .ok();
    assert_eq!(
        (bundle.status().as_str(), bundle.pid()),
        ("running", before)
    );
    counts_from(&bundle, count(&bundle));
    assert!(work.join("dump.log").is_file());
    assert!(!images(&bundle).join("dump.log").exists());
}

#[test]
fn a_pre_dump_is_what_the_next_checkpoint_builds_on() {
    requires!(root, criu);
    let bundle = counting();
    up(&bundle);
    counts_from(&bundle, 3);
    let parent = bundle.beside("parent");
    bundle
        .verb(["checkpoint", "--pre-dump", "--image-path"])
        .arg(&parent)
        .arg(&bundle.id)
        .ok();
    assert_eq!(bundle.status(), "running");
    checkpoint(&bundle)
        .args(["--parent-path", "../parent"])
        .ok();
    assert_eq!(
        fs::canonicalize(images(&bundle).join("parent")).unwrap(),
        fs::canonicalize(&parent).unwrap()
    );
    let stopped_at = count(&bundle);
    restore(&bundle, &[]).ok();
    counts_from(&bundle, stopped_at);
}

#[test]
fn bind_mounts_and_masks_are_there_again_with_their_attributes() {
    requires!(root, criu);
    let bundle = counting();
    let (readable, writable) = (bundle.beside("readable"), bundle.beside("writable"));
    for dir in [&readable, &writable] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(readable.join("word"), "first").unwrap();
    bundle.edit(|c| {
        let bind = |source: &Path, to: &str, how: &str| {
            json!({"type": "bind", "source": source, "destination": to, "options": ["rbind", how]})
        };
        mounts(c).extend([
            bind(&readable, "/deep/in/readable", "ro"),
            bind(&writable, "/link/writable", "rw"),
            bind(&readable.join("word"), "/deep/file", "ro"),
        ]);
        c["linux"]["maskedPaths"] = json!(["/proc/kcore", "/proc/acpi", "/proc/timer_list"]);
        c["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    });
    // A destination that is reached through a link.
    std::os::unix::fs::symlink("target", bundle.rootfs("link")).unwrap();
    up(&bundle);
    counts_from(&bundle, 1);
    checkpoint(&bundle).ok();
    fs::write(readable.join("word"), "second").unwrap();
    restore(&bundle, &[]).ok();
    let seen = |command: &str| {
        let outcome = bundle
            .verb(["exec"])
            .arg(&bundle.id)
            .args(["sh", "-c", command])
            .run();
        format!("{}{}", outcome.stdout, outcome.stderr)
    };
    assert_eq!(
        seen("cat /deep/in/readable/word /deep/file"),
        "secondsecond"
    );
    assert!(seen("touch /deep/in/readable/x").contains("Read-only"));
    assert_eq!(seen("echo kept >/target/writable/y"), "");
    assert_eq!(fs::read_to_string(writable.join("y")).unwrap(), "kept\n");
    assert_eq!(seen("cat /proc/kcore /proc/timer_list | wc -c"), "0\n");
    assert!(seen("echo 1 >/proc/sys/kernel/sysrq").contains("Read-only"));
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
    assert!(
        fs::read_dir(&readable).unwrap().count() == 1,
        "something was made in a read-only mount"
    );
}

#[test]
fn mounts_that_follow_the_hosts_follow_them_again() {
    requires!(root, criu);
    let bundle = counting();
    let source = bundle.beside("source");
    fs::create_dir(&source).unwrap();
    let (none, tmpfs) = (None::<&str>, Some("tmpfs"));
    mount(tmpfs, &source, tmpfs, MsFlags::empty(), none).unwrap();
    mount(none, &source, none, MsFlags::MS_SHARED, none).unwrap();
    bundle.edit(|c| {
        let options = ["bind", "slave"];
        mounts(c).push(
            json!({"type": "bind", "source": source, "destination": "/data", "options": options}),
        );
        c["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
    });
    let follows = |destination: &str| {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", bundle.state()["pid"]));
        let table = table.unwrap();
        let mount = table
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(destination))
            .unwrap_or_else(|| panic!("{destination} in {table}"));
        mount.contains(" master:")
    };
    up(&bundle);
    counts_from(&bundle, 1);
    assert!(follows("/data"));
    assert!(!follows("/proc/kcore"));
    checkpoint(&bundle).ok();
    let stopped_at = count(&bundle);
    restore(&bundle, &[]).ok();
    counts_from(&bundle, stopped_at);
    assert!(follows("/data"));
    assert!(!follows("/proc/kcore"));
    bundle.delete_force().ok();
    umount(&source).unwrap();
    bundle.assert_nothing_left();
}

#[test]
fn links_of_the_image_change_no_mount_at_the_restore() {
    requires!(root, criu);
    let bundle = counting();
    let (secret, public) = (bundle.beside("secret"), bundle.beside("public"));
    for (dir, word) in [(&secret, "secret"), (&public, "public")] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("word"), word).unwrap();
    }
    bundle.edit(|c| {
        mounts(c).extend([
            json!({"type": "bind", "source": secret, "destination": "/a", "options": ["bind", "ro"]}),
            json!({"type": "bind", "source": public, "destination": "/b", "options": ["bind", "rw"]}),
        ]);
    });
    up(&bundle);
    counts_from(&bundle, 1);
    checkpoint(&bundle).ok();
    // What was the writable one's mount point leads to the other's now.
    fs::remove_dir(bundle.rootfs("b")).unwrap();
    std::os::unix::fs::symlink("/a", bundle.rootfs("b")).unwrap();
    let restored = restore(&bundle, &[]).run();
    if restored.code() == 0 {
        let write = bundle
            .verb(["exec"])
            .arg(&bundle.id)
            .args([
                "sh",
                "-c",
                "echo x >/a/word; echo x >/b/word; cat /proc/self/mountinfo",
            ])
            .run();
        assert_eq!(
            fs::read_to_string(secret.join("word")).unwrap(),
            "secret",
            "{write}"
        );
    }
    assert_eq!(fs::read_to_string(secret.join("word")).unwrap(), "secret");
}

#[test]
fn a_name_that_criu_would_take_for_another_is_refused() {
    requires!(root, criu);
    let bundle = counting();
    let dir = bundle.beside("dir");
    fs::create_dir(&dir).unwrap();
    bundle.edit(|c| {
        mounts(c).push(
            json!({"type": "bind", "source": dir, "destination": "/a]:/etc", "options": ["bind"]}),
        );
    });
    up(&bundle);
    checkpoint(&bundle)
        .run()
        .fails_with("CRIU cannot tell apart a name");
    assert_eq!(bundle.status(), "running");
}

#[test]
fn output_of_a_restored_container_goes_to_its_new_caller() {
    requires!(root, criu);
    // Pipes take the place of pipes; the exit code is the container's.
    const PIPED: &str = "{ \"$@\"; echo \"code $?\"; } 2>&1 </dev/null | cat";
    let bundle =
        Bundle::sh("trap 'echo heard; exit 7' TERM; echo begun; while :; do sleep 0.05; done");
    let run = bundle.verb(["run", "--bundle"]).arg(&bundle.path);
    let first = run.arg(&bundle.id).under(["sh", "-c", PIPED, "sh"]).spawn();
    assert!(eventually(|| first.stdout().contains("begun")));
    checkpoint(&bundle).ok();
    assert_eq!(first.wait().stdout, "begun\ncode 137\n");
    let second = attached(&bundle, &[])
        .under(["sh", "-c", PIPED, "sh"])
        .spawn();
    let state = || bundle.verb(["state"]).arg(&bundle.id).run();
    assert!(eventually(|| state().stdout.contains("running")));
    bundle.kill("TERM").ok();
    assert_eq!(second.wait().stdout, "heard\ncode 7\n");
    bundle.assert_nothing_left();
}

#[test]
fn files_of_the_caller_are_not_given_to_a_restored_container() {
    requires!(root, criu);
    let bundle = Bundle::sh(
        "trap 'read line; echo heard $line; echo loud >&2; : >/proc/self/fd/1; exit 7' TERM; while :; do sleep 0.05; done",
    );
    let [input, log] = ["input", "log"].map(|name| bundle.beside(name));
    fs::write(&input, "one\ntwo\n").unwrap();
    fs::write(&log, "before\n").unwrap();
    let redirected = format!("exec \"$@\" <{} >>{} 2>&1", input.display(), log.display());
    let redirected = ["sh", "-c", &redirected, "sh"];
    let run = bundle.verb(["run", "--bundle"]).arg(&bundle.path);
    let first = run.arg(&bundle.id).under(redirected).spawn();
    let state = || bundle.verb(["state"]).arg(&bundle.id).run();
    assert!(eventually(|| state().stdout.contains("running")));
    checkpoint(&bundle).ok();
    assert_eq!(first.wait().code(), 137);
    let second = attached(&bundle, &[]).under(redirected).spawn();
    assert!(eventually(|| state().stdout.contains("running")));
    bundle.kill("TERM").ok();
    assert_eq!(second.wait().code(), 7);
    // What was in the pipe at the checkpoint stayed with the first caller's.
    assert_eq!(
        fs::read_to_string(&log).unwrap(),
        "before\nheard one\nloud\n"
    );
    bundle.assert_nothing_left();
}

#[test]
fn what_criu_says_before_it_has_a_log_is_told() {
    requires!(root, criu);
    let bundle = counting();
    up(&bundle);
    counts_from(&bundle, 1);
    checkpoint(&bundle).ok();
    // One that ends at once when it is called for the second time, which is for the restore.
    let dir = bundle.beside("bin");
    fs::create_dir(&dir).unwrap();
    let path = std::env::var("PATH").unwrap();
    let script = format!(
        "#!/bin/sh\nif mkdir {}/called; then PATH={path}; exec criu \"$@\"; fi\necho early words >&2\nexit 3\n",
        dir.display()
    );
    fs::write(dir.join("criu"), script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.join("criu"), executable).unwrap();
    let said = bundle.beside("said");
    let outcome = attached(&bundle, &[])
        .env("PATH", format!("{}:{path}", dir.display()))
        .under([
            "sh",
            "-c",
            &format!("exec \"$@\" 2>{}", said.display()),
            "sh",
        ])
        .run();
    assert_eq!(outcome.code(), 1, "{outcome}");
    let said = fs::read_to_string(&said).unwrap();
    assert!(said.contains("early words\n"), "{said}");
    assert!(said.contains("criu ended"), "{said}");
    bundle.assert_nothing_left();
}

fn master(socket: &ConsoleSocket) -> OwnedFd {
    socket.receive().fds.pop().expect("a descriptor")
}

#[test]
fn the_terminal_of_a_restored_container_comes_through_the_console_socket() {
    requires!(root, criu);
    let bundle = Bundle::with(|c| {
        sh(c, "while read -r line; do echo \"got $line\"; done");
        c["process"]["terminal"] = json!(true);
    });
    let socket = ConsoleSocket::bind(socket_path(&bundle.path));
    bundle
        .verb(["run", "--detach", "--console-socket"])
        .arg(&socket.path)
        .arg("--bundle")
        .arg(&bundle.path)
        .arg(&bundle.id)
        .ok();
    let mut terminal = Terminal::new(master(&socket));
    terminal.write("one\n");
    terminal.expect("got one");
    checkpoint(&bundle).ok();
    restore(
        &bundle,
        &["--console-socket", socket.path.to_str().unwrap()],
    )
    .ok();
    let mut terminal = Terminal::new(master(&socket));
    terminal.write("two\n");
    terminal.expect("got two");
}

#[test]
fn a_restored_container_has_the_callers_terminal_in_the_foreground() {
    requires!(root, criu);
    let bundle = Bundle::with(|c| {
        sh(
            c,
            "while read -r line; do echo \"got $line\"; [ $line != end ] || exit 9; done",
        );
        c["process"]["terminal"] = json!(true);
    });
    let socket = ConsoleSocket::bind(socket_path(&bundle.path));
    let run = bundle.verb(["run", "--detach", "--console-socket"]);
    run.arg(&socket.path)
        .arg("--bundle")
        .arg(&bundle.path)
        .arg(&bundle.id)
        .ok();
    let mut first = Terminal::new(master(&socket));
    first.write("one\n");
    first.expect("got one");
    checkpoint(&bundle).ok();
    let (mut terminal, slave) = Terminal::open(24, 80);
    let restored = attached(&bundle, &[]).stdio(&slave).spawn();
    terminal.write("two\n");
    terminal.expect("got two");
    terminal.write("end\n");
    assert_eq!(restored.wait().code(), 9);
    bundle.assert_nothing_left();
}

#[test]
fn hooks_run_for_a_restored_container_and_at_its_end() {
    requires!(root, criu);
    let bundle = counting();
    let told = bundle.beside("told");
    let hook = |name: &str| {
        let script = format!("{{ echo {name}; cat; echo; }} >>{}", told.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
    };
    bundle.edit(|c| {
        for name in ["createRuntime", "poststart", "poststop"] {
            c["hooks"][name] = hook(name);
        }
    });
    up(&bundle);
    counts_from(&bundle, 1);
    checkpoint(&bundle).ok();
    fs::remove_file(&told).unwrap();
    restore(&bundle, &[]).ok();
    let pid = bundle.pid().as_raw();
    bundle.delete_force().ok();
    let text = fs::read_to_string(&told).unwrap();
    let mut lines = text.lines();
    let mut seen = Vec::new();
    while let (Some(name), Some(state)) = (lines.next(), lines.next()) {
        let state: Value = serde_json::from_str(state).expect("a state");
        assert_eq!(state["id"], json!(bundle.id), "{name}");
        if name == "createRuntime" {
            assert_eq!(state["pid"], json!(pid));
        }
        seen.push(name.to_owned());
    }
    assert_eq!(seen, ["createRuntime", "poststop"]);
    bundle.assert_nothing_left();
}

#[test]
fn limits_hold_for_a_restored_container() {
    requires!(root, criu, controller "pids");
    let bundle = counting();
    bundle.edit(|c| c["linux"]["resources"] = json!({"pids": {"limit": 77}}));
    up(&bundle);
    counts_from(&bundle, 1);
    checkpoint(&bundle).ok();
    restore(&bundle, &[]).ok();
    let limit = fs::read_to_string(bundle.cgroup().join("pids.max")).unwrap();
    assert_eq!(limit, "77\n");
}

#[test]
fn systemd_has_a_scope_for_a_restored_container() {
    requires!(root, criu, systemd);
    let bundle = counting();
    let name = bundle.id.clone();
    bundle.edit(|c| c["linux"]["cgroupsPath"] = json!(format!("system.slice:restored:{name}")));
    let with = |verb: &[&str]| {
        bundle
            .verb([&["--systemd-cgroup"], verb].concat())
            .stdio(&null())
    };
    with(&["run", "--detach", "--bundle"])
        .arg(&bundle.path)
        .arg(&bundle.id)
        .ok();
    counts_from(&bundle, 1);
    with(&["checkpoint", "--image-path"])
        .arg(images(&bundle))
        .arg(&bundle.id)
        .ok();
    with(&["restore", "--detach", "--bundle"])
        .arg(&bundle.path)
        .arg("--image-path")
        .arg(images(&bundle))
        .arg(&bundle.id)
        .ok();
    let membership = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).unwrap();
    let unit = format!("restored-{name}.scope");
    assert!(membership.trim_end().ends_with(&unit), "{membership}");
    let state = Command::new("systemctl")
        .args(["is-active", &unit])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&state.stdout), "active\n");
    bundle.delete_force().ok();
    let state = Command::new("systemctl")
        .args(["is-active", &unit])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&state.stdout), "inactive\n");
}

/// A container with a script that says in its root when it is ready.
fn ready(script: &str) -> Bundle {
    let bundle = Bundle::with(|c| {
        c["root"]["readonly"] = json!(false);
        sh(c, script);
    });
    up(&bundle);
    assert!(eventually(|| bundle.rootfs("ready").exists()));
    bundle
}

/// A checkpoint that CRIU refuses without `option`, and that is restored with it.
fn only_with(bundle: &Bundle, option: &[&str]) {
    let work = bundle.beside("work");
    let refused = checkpoint(bundle)
        .args(["--work-path", work.to_str().unwrap()])
        .run();
    refused.fails_with("dump.log");
    assert_eq!(bundle.status(), "running", "{option:?}");
    // The log is where it was asked for, and not beside the images.
    assert!(work.join("dump.log").is_file());
    assert!(!images(bundle).join("dump.log").exists());
    fs::remove_dir_all(images(bundle)).unwrap();
    checkpoint(bundle).args(option).ok();
    restore(bundle, option).ok();
    assert_eq!(bundle.status(), "running", "{option:?}");
}

/// A container that holds a lock of /lock.
fn locking() -> Bundle {
    asking(&["flock:/lock", "sleep:600000"], |c| {
        c["root"]["readonly"] = json!(false);
    })
}

fn is_locked(bundle: &Bundle) -> bool {
    let file = fs::File::open(bundle.rootfs("lock"));
    file.is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

#[test]
fn locks_of_files_are_checkpointed_where_that_is_asked_for() {
    requires!(root, criu);
    let bundle = locking();
    up(&bundle);
    let is_locked = || is_locked(&bundle);
    assert!(eventually(is_locked));
    only_with(&bundle, &["--file-locks"]);
    assert!(is_locked());
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn connections_are_checkpointed_where_that_is_asked_for() {
    requires!(root, criu);
    differs!(
        "runc",
        "leaves the loopback device down, and has no --network-lock"
    );
    for (network, options) in [
        ("own", &["--tcp-established"][..]),
        // Left alone.
        (
            "the host's",
            &["--tcp-established", "--network-lock", "skip"],
        ),
    ] {
        let edit = |c: &mut Value| {
            if network != "own" {
                without_namespace(c, "network");
            }
        };
        let (bundle, heard) = connected(edit, "echo two >&3");
        only_with(&bundle, options);
        fs::write(bundle.rootfs("go"), "").unwrap();
        assert!(
            eventually(|| fs::read_to_string(&heard).unwrap() == "one\ntwo\n"),
            "{network}"
        );
        bundle.delete_force().ok();
        bundle.assert_nothing_left();
    }
}

#[test]
fn connections_are_closed_where_that_is_asked_for() {
    requires!(root, criu);
    differs!("runc", "has no --tcp-close");
    let (bundle, heard) = connected(|_| {}, "echo two >&3; wait; : >/closed");
    only_with(&bundle, &["--tcp-close"]);
    fs::write(bundle.rootfs("go"), "").unwrap();
    // Both ends see the end of it.
    assert!(eventually(|| bundle.rootfs("closed").exists()));
    assert_eq!(fs::read_to_string(&heard).unwrap(), "one\n");
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

/// A container with a connection to itself over the loopback device, one line of which has arrived; when there is a file
/// /go it runs `last`. The second value is where the other end writes what it hears.
fn connected(edit: impl FnOnce(&mut Value), last: &str) -> (Bundle, PathBuf) {
    let port = free_port();
    let script = format!(
        "mkfifo /in /back; nc -l -p {port} </back >/heard & exec 4>/back; sleep 0.5; \
         nc 127.0.0.1 {port} </in & exec 3>/in; \
         echo one >&3; until [ -s /heard ]; do sleep 0.1; done; : >/ready; \
         until [ -e /go ]; do sleep 0.1; done; {last}; while :; do sleep 0.1; done"
    );
    let bundle = Bundle::with(|c| {
        c["root"]["readonly"] = json!(false);
        sh(c, &script);
        edit(c);
    });
    up(&bundle);
    assert!(eventually(|| bundle.rootfs("ready").exists()));
    let heard = bundle.rootfs("heard");
    (bundle, heard)
}

#[test]
fn a_file_without_a_name_is_checkpointed_where_links_may_be_made() {
    requires!(root, criu);
    let bundle = ready(
        "echo kept >/first; ln /first /second; exec 3</first; rm /first; : >/ready; \
         until [ -e /go ]; do sleep 0.1; done; cat <&3 >/copy; while :; do sleep 0.1; done",
    );
    let work = bundle.beside("work");
    let call = |options: &[&str]| {
        let call = checkpoint(&bundle).args(["--work-path", work.to_str().unwrap()]);
        call.args(options)
    };
    call(&[]).run().fails_with("dump.log");
    fs::remove_dir_all(images(&bundle)).unwrap();
    call(&["--link-remap"]).ok();
    restore(&bundle, &[]).ok();
    fs::write(bundle.rootfs("go"), "").unwrap();
    let copy = bundle.rootfs("copy");
    assert!(eventually(
        || fs::read_to_string(&copy).is_ok_and(|text| text == "kept\n")
    ));
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn a_network_namespace_is_left_to_whoever_sets_it_up_but_for_its_loopback_device() {
    requires!(root, criu, command "nsenter", command "ip");
    differs!("runc", "leaves the loopback device down");
    let bundle = counting();
    up(&bundle);
    counts_from(&bundle, 1);
    let ip = |words: &[&str]| {
        let inside = format!("--net=/proc/{}/ns/net", bundle.pid());
        let output = Command::new("nsenter")
            .arg(inside)
            .arg("ip")
            .args(words)
            .output();
        let output = output.expect("nsenter");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let devices = || {
        let all: Value = serde_json::from_str(&ip(&["-json", "link"])).expect("JSON");
        let device = |device: &Value| {
            let flags = device["flags"].as_array().expect("flags");
            let name = device["ifname"].as_str().expect("a name").to_owned();
            (name, flags.contains(&json!("UP")))
        };
        let all = all.as_array().expect("devices").iter();
        all.map(device).collect::<Vec<_>>()
    };
    let lo = ("lo".to_owned(), true);
    ip(&["link", "add", "dummy7", "type", "dummy"]);
    assert_eq!(devices(), [lo.clone(), ("dummy7".to_owned(), false)]);
    for options in [&["--empty-ns", "network"][..], &[]] {
        checkpoint(&bundle).args(options).ok();
        restore(&bundle, options).ok();
        assert_eq!(devices(), std::slice::from_ref(&lo), "{options:?}");
        fs::remove_dir_all(images(&bundle)).unwrap();
    }
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

/// A process with namespaces of its own that others may join.
struct Host(std::process::Child);

impl Host {
    fn new() -> Self {
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "--pid", "--fork", "--kill-child", "sh", "-c"]);
        // As the first process there it has to wait for those that nobody else waits for: the kernel does for one that
        // ignores the signal. Any process more would take a number that a restored one may want.
        unshare.arg("ip link set lo up && echo up; trap '' CHLD; exec sleep 1000");
        let child = unshare.stdout(std::process::Stdio::piped()).spawn();
        let mut child = child.expect("unshare");
        let mut line = [0; 3];
        let mut output = child.stdout.take().expect("standard output");
        std::io::Read::read_exact(&mut output, &mut line).expect("a word");
        Self(child)
    }

    fn namespace(&self, kind: &str) -> PathBuf {
        let children = format!("/proc/{0}/task/{0}/children", self.0.id());
        let first = fs::read_to_string(children).expect("children");
        format!("/proc/{}/ns/{kind}", first.trim()).into()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_restored_container_joins_the_namespaces_that_its_bundle_names() {
    requires!(root, criu, command "unshare", command "ip");
    let [first, second] = [Host::new(), Host::new()];
    for (kind, file) in [("network", "net"), ("pid", "pid")] {
        let bundle = counting();
        let name = |host: &Host| {
            bundle.edit(|c| namespace(c, kind)["path"] = json!(host.namespace(file)));
        };
        let inode = |path: &Path| fs::read_link(path).expect("a namespace");
        let own = || inode(&PathBuf::from(format!("/proc/{}/ns/{file}", bundle.pid())));
        name(&first);
        up(&bundle);
        counts_from(&bundle, 1);
        assert_eq!(own(), inode(&first.namespace(file)));
        checkpoint(&bundle).ok();

        // One that is gone.
        bundle.edit(|c| namespace(c, kind)["path"] = json!("/proc/self/ns/absent"));
        let refused = restore(&bundle, &[]).run();
        refused.fails_with(&format!(
            "Requested {kind} namespace /proc/self/ns/absent does not exist"
        ));

        // Another than it was in.
        name(&second);
        let stopped_at = count(&bundle);
        restore(&bundle, &[]).ok();
        counts_from(&bundle, stopped_at);
        assert_eq!(own(), inode(&second.namespace(file)));
        bundle.delete_force().ok();
        bundle.assert_nothing_left();
    }
}

#[test]
fn a_restored_container_may_have_another_apparmor_profile() {
    requires!(root, criu, apparmor);
    let [first, second] = ["dumped", "restored"].map(Profile::load);
    let bundle = counting();
    bundle.edit(|c| c["process"]["apparmorProfile"] = json!(first.name()));
    up(&bundle);
    counts_from(&bundle, 1);
    let label = || fs::read_to_string(format!("/proc/{}/attr/current", bundle.pid())).unwrap();
    let enforced = |profile: &Profile| format!("{} (enforce)\n", profile.name());
    checkpoint(&bundle).ok();
    restore(&bundle, &[]).ok();
    assert_eq!(label(), enforced(&first));
    fs::remove_dir_all(images(&bundle)).unwrap();
    checkpoint(&bundle).ok();
    let other = format!("apparmor:{}", second.name());
    restore(&bundle, &["--lsm-profile", &other]).ok();
    assert_eq!(label(), enforced(&second));
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn cgroups_are_restored_in_each_of_crius_ways() {
    requires!(root, criu);
    let bundle = counting();
    up(&bundle);
    for mode in ["soft", "full", "strict", "ignore"] {
        let option = ["--manage-cgroups-mode", mode];
        let stopped_at = count(&bundle);
        checkpoint(&bundle).args(option).ok();
        if mode == "strict" {
            // CRIU wants to have made them all, and the container's own is there.
            let refused = restore(&bundle, &option).run();
            refused.fails_with("Abort restore of existing cgroups");
            bundle.assert_nothing_left();
            restore(&bundle, &["--manage-cgroups-mode", "soft"]).ok();
        } else {
            restore(&bundle, &option).ok();
        }
        counts_from(&bundle, stopped_at);
        assert!(bundle.cgroup().exists(), "{mode}");
        fs::remove_dir_all(images(&bundle)).unwrap();
    }
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

/// What changes nothing for a container like this one is taken all the same.
#[test]
fn every_option_of_checkpoint_and_restore_reaches_criu() {
    requires!(root, criu);
    differs!("runc", "has no --network-lock");
    let bundle = counting();
    up(&bundle);
    for options in [
        &["--shell-job", "--ext-unix-sk", "--auto-dedup"][..],
        &["--tcp-established", "--network-lock", "iptables"],
        &["--tcp-established", "--network-lock", "nftables"],
    ] {
        let stopped_at = count(&bundle);
        checkpoint(&bundle)
            .args(options)
            .arg("--tcp-skip-in-flight")
            .ok();
        restore(&bundle, options).ok();
        counts_from(&bundle, stopped_at);
        fs::remove_dir_all(images(&bundle)).unwrap();
    }
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

/// COMPAT: runc's annotation.
#[test]
fn options_of_criu_may_be_in_a_file_that_an_annotation_names() {
    requires!(root, criu);
    let bundle = locking();
    let file = bundle.beside("criu.conf");
    fs::write(&file, "file-locks\n").unwrap();
    up(&bundle);
    let is_locked = || is_locked(&bundle);
    assert!(eventually(is_locked));
    checkpoint(&bundle).run().fails_with("dump.log");
    bundle.delete_force().ok();
    fs::remove_dir_all(images(&bundle)).unwrap();

    bundle.edit(|c| c["annotations"]["org.criu.config"] = json!(file));
    up(&bundle);
    assert!(eventually(is_locked));
    checkpoint(&bundle).ok();
    restore(&bundle, &[]).ok();
    assert!(is_locked());
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

/// CRIU as the one that receives or gives pages, on the loopback device.
struct Pages(std::process::Child);

impl Pages {
    fn start(args: &[&str], images: &Path) -> Self {
        let child = Command::new("criu")
            .args(args)
            .arg("--images-dir")
            .arg(images)
            .stdin(std::process::Stdio::null())
            .spawn();
        Self(child.expect("criu"))
    }

    fn done(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

/// A port of the loopback device that nobody listens at.
fn free_port() -> u16 {
    let any = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    any.local_addr().unwrap().port()
}

fn is_listened_at(port: u16) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let own = format!(":{port:04X} 00000000:0000 0A");
    table.lines().any(|line| line.contains(&own))
}

#[test]
fn pages_go_to_a_server_where_there_is_one() {
    requires!(root, criu);
    let bundle = counting();
    up(&bundle);
    counts_from(&bundle, 5);
    let port = free_port();
    let port_text = port.to_string();
    fs::create_dir(images(&bundle)).unwrap();
    let server = Pages::start(
        &[
            "page-server",
            "--address",
            "127.0.0.1",
            "--port",
            &port_text,
        ],
        &images(&bundle),
    );
    assert!(eventually(|| is_listened_at(port)));
    let elsewhere = bundle.beside("elsewhere");
    let address = format!("127.0.0.1:{port}");
    bundle
        .verb(["checkpoint", "--page-server", &address, "--image-path"])
        .arg(&elsewhere)
        .arg(&bundle.id)
        .ok();
    server.done();
    let named = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    let pages = |dir: &Path| named(dir).iter().any(|name| name.starts_with("pages-"));
    assert!(pages(&images(&bundle)));
    assert!(!pages(&elsewhere), "{:?}", named(&elsewhere));
    for name in named(&elsewhere) {
        fs::rename(elsewhere.join(&name), images(&bundle).join(&name)).unwrap();
    }
    let stopped_at = count(&bundle);
    restore(&bundle, &[]).ok();
    counts_from(&bundle, stopped_at);
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn pages_are_fetched_when_they_are_wanted() {
    requires!(root, criu);
    let bundle = counting();
    up(&bundle);
    counts_from(&bundle, 5);
    let port = free_port();
    let port_text = port.to_string();
    let address = format!("127.0.0.1:{port}");
    // It waits for those who fetch, and says on a descriptor when they can.
    let status = bundle.beside("status");
    let giving = checkpoint(&bundle)
        .args([
            "--lazy-pages",
            "--page-server",
            &address,
            "--status-fd",
            "9",
        ])
        .under(["sh", "-c", "exec \"$0\" \"$@\" 9>\"$STATUS\""])
        .env("STATUS", &status)
        .spawn();
    assert!(eventually(
        || fs::read(&status).is_ok_and(|said| said == b"\0")
    ));
    let stopped_at = count(&bundle);
    let fetching = Pages::start(
        &[
            "lazy-pages",
            "--page-server",
            "--address",
            "127.0.0.1",
            "--port",
            &port_text,
        ],
        &images(&bundle),
    );
    assert!(eventually(|| images(&bundle)
        .join("lazy-pages.socket")
        .exists()));
    // The first of the name lives until its pages are gone.
    let second = format!("{}-lazy", bundle.id);
    let path = bundle.config()["linux"]["cgroupsPath"].clone();
    bundle.edit(|c| c["linux"]["cgroupsPath"] = json!(format!("{}-lazy", path.as_str().unwrap())));
    bundle
        .verb(["restore", "--detach", "--lazy-pages", "--bundle"])
        .arg(&bundle.path)
        .arg("--image-path")
        .arg(images(&bundle))
        .args(["--work-path", images(&bundle).to_str().unwrap()])
        .arg(&second)
        .ok();
    counts_from(&bundle, stopped_at);
    fetching.done();
    giving.wait().ok();
    bundle.verb(["delete", "--force", &second]).ok();
    bundle.delete_force().ok();
    bundle.assert_nothing_left();
}

#[test]
fn a_restore_that_fails_leaves_nothing_behind() {
    requires!(root, criu);
    let bundle = counting();
    up(&bundle);
    counts_from(&bundle, 1);
    checkpoint(&bundle).ok();
    let broken = images(&bundle).join("pstree.img");
    fs::write(&broken, "no image").unwrap();
    let outcome = restore(&bundle, &[]).run();
    outcome.fails_with("restore.log");
    if runtime().is("pelagos") {
        outcome.fails_with("restore failed: criu failed: type RESTORE");
    }
    bundle.assert_nothing_left();
    fs::remove_dir_all(images(&bundle)).unwrap();
    restore(&bundle, &[]).run().fails_with("images");
    bundle.assert_nothing_left();
}

#[test]
fn only_a_container_that_runs_is_checkpointed() {
    requires!(root);
    let bundle = Bundle::sleeping();
    bundle.create().ok();
    checkpoint(&bundle)
        .run()
        .fails_with("Container cannot be checkpointed in created state");
    bundle.kill("KILL").ok();
    bundle.wait_for("stopped");
    checkpoint(&bundle)
        .run()
        .fails_with("Container cannot be checkpointed in stopped state");
    bundle
        .verb(["checkpoint", "no-such-container"])
        .run()
        .fails_with("does not exist");
}

#[test]
fn options_of_checkpoint_that_cannot_be_are_named() {
    requires!(root);
    let bundle = Bundle::sleeping();
    up(&bundle);
    for (options, words) in [
        (
            &["--parent-path", "/absolute"][..],
            "--parent-path must be relative",
        ),
        (
            &["--manage-cgroups-mode", "some"],
            "invalid manage-cgroups-mode value",
        ),
        (&["--empty-ns", "pid"], "is not supported"),
        (
            &["--page-server", "nowhere"],
            "Use --page-server ADDRESS:PORT to specify page server",
        ),
        (&["--page-server", "here:port"], "Invalid port number"),
    ] {
        checkpoint(&bundle).args(options).run().fails_with(words);
        assert_eq!(bundle.status(), "running");
        assert!(
            !images(&bundle).exists() || !runtime().is("pelagos"),
            "{options:?}"
        );
    }
}

#[test]
fn without_criu_the_error_says_what_is_needed() {
    requires!(root);
    let bundle = Bundle::sleeping();
    up(&bundle);
    let empty = bundle.beside("empty");
    fs::create_dir(&empty).unwrap();
    for verb in [checkpoint(&bundle), restore(&bundle, &[])] {
        let outcome = verb.env("PATH", &empty).run();
        outcome.fails_with("criu");
        if runtime().is("pelagos") {
            outcome.fails_with("there is no program criu in $PATH");
        }
    }
    assert_eq!(bundle.status(), "running");
}

#[test]
fn an_ordinary_user_is_told_that_criu_wants_root() {
    requires!(rootless);
    let bundle = Bundle::sleeping();
    up(&bundle);
    checkpoint(&bundle).run().fails_with("needs root");
    assert_eq!(bundle.status(), "running");
    restore(&bundle, &[]).run().fails_with("needs root");
}
