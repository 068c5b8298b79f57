//! What a root file system, a neighbour or an unusual bundle must not make the runtime do: to the host's own mounts, to
//! another container, to what is masked, or to its own account of what it started.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::{Value, json};

use crate::inside::{asking, see};
use crate::support::{Bundle, Outcome, mounts, namespace, process_args, sh};

/// The bundle's `run` on a host whose mounts are all shared, as systemd makes them: in a mount namespace that stands for
/// that host. Prints `same` at the end where the host's own mount table came out as it was.
fn on_a_shared_host(bundle: &Bundle, options: &[&str]) -> Outcome {
    let script = "mount --make-rshared /
        mount --bind rootfs rootfs && mount --make-private rootfs
        table() { sed 's/ - .*//' /proc/self/mountinfo; }
        before=$(table)
        \"$@\" || exit
        test \"$before\" = \"$(table)\" && echo same";
    let args = ["run"]
        .iter()
        .chain(options)
        .copied()
        .chain([bundle.id.as_str()]);
    bundle
        .verb(args)
        .under([
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "host",
        ])
        .run()
}

#[test]
fn without_a_pivot_no_mount_of_the_host_is_taken_away() {
    requires!(root);
    for word in ["", "slave", "rslave", "shared", "rshared", "unbindable"] {
        let bundle = Bundle::with(|c| c["linux"]["rootfsPropagation"] = json!(word));
        let outcome = on_a_shared_host(&bundle, &["--no-pivot"]);
        assert_eq!(outcome.stdout, "same\n", "{word:?}: {}", outcome.stderr);
    }
}

/// Nothing of the container's is mounted then, so nothing of the host's is to change: neither what the root lies on nor
/// what is in it.
#[test]
fn without_a_mount_namespace_the_hosts_mounts_keep_their_attributes() {
    requires!(root);
    let bundle = Bundle::with(|c| {
        c["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|n| n["type"] != "mount");
        mounts(c).clear();
        let linux = c["linux"].as_object_mut().unwrap();
        linux.remove("maskedPaths");
        linux.remove("readonlyPaths");
        linux.insert("rootfsPropagation".into(), json!("shared"));
        c["root"]["readonly"] = json!(false);
    });
    let outcome = on_a_shared_host(&bundle, &[]);
    assert_eq!(outcome.stdout, "same\n", "{}", outcome.stderr);
}

#[test]
fn what_is_masked_is_masked_where_proc_is_mounted_twice() {
    requires!(root);
    for second in [
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]}),
    ] {
        let bundle = Bundle::with(|c| {
            mounts(c).insert(1, second);
            c["linux"]["maskedPaths"] = json!(["/proc/timer_list"]);
            sh(c, "wc -c < /proc/timer_list");
        });
        assert_eq!(bundle.run().ok().stdout.trim(), "0");
    }
}

#[test]
fn a_masked_path_may_climb() {
    requires!(container);
    let bundle = Bundle::with(|c| {
        c["linux"]["maskedPaths"] = json!(["/proc/../secret", "/sys/../proc/timer_list"]);
        sh(c, "cat /secret /proc/timer_list | wc -c");
    });
    fs::write(bundle.rootfs("secret"), "secret").unwrap();
    assert_eq!(bundle.run().ok().stdout.trim(), "0");
}

/// The page map of a process looks like an ordinary file of no size, and has as good as no end.
#[test]
fn a_passwd_file_without_end_does_not_hold_up_create() {
    requires!(container);
    let bundle = Bundle::sh("echo $HOME");
    fs::create_dir_all(bundle.rootfs("etc")).unwrap();
    fs::remove_file(bundle.rootfs("etc/passwd")).ok();
    symlink("/proc/self/pagemap", bundle.rootfs("etc/passwd")).unwrap();
    let outcome = bundle
        .verb(["run", &bundle.id])
        .limit(Duration::from_secs(5))
        .run();
    assert_eq!(outcome.ok().stdout, "/\n");
}

/// As in runc: root enters the directory before it gives up its rights.
#[test]
fn a_working_directory_that_only_root_may_enter_is_entered() {
    requires!(root);
    let bundle = Bundle::with(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        c["process"]["cwd"] = json!("/private");
        sh(c, "pwd");
    });
    fs::create_dir(bundle.rootfs("private")).unwrap();
    chown(bundle.rootfs("private"), Some(0), Some(0)).unwrap();
    fs::set_permissions(bundle.rootfs("private"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(bundle.run().ok().stdout, "/private\n");
}

/// A process in namespaces of its own, ended with the value.
struct Holder(Child);

impl Holder {
    fn new(namespaces: &str) -> Self {
        Self(
            Command::new("unshare")
                .args([namespaces, "sleep", "1000"])
                .spawn()
                .unwrap(),
        )
    }

    fn path(&self, name: &str) -> Value {
        let own = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let path = format!("/proc/{}/ns/{name}", self.0.id());
        while fs::read_link(&path).unwrap() == own {
            std::thread::sleep(Duration::from_millis(1));
        }
        json!(path)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A namespace that the caller owns is entered with the caller's rights, also where the container then gets a user
/// namespace of its own.
#[test]
fn a_namespace_of_the_callers_can_be_joined_under_a_new_user_namespace() {
    requires!(root);
    let holder = Holder::new("--ipc");
    let bundle = asking(&[], |c| {
        crate::inside::user_namespace(c);
        namespace(c, "ipc")["path"] = holder.path("ipc");
        mounts(c).retain(|m| m["type"] != "mqueue");
    });
    let wanted = fs::read_link(format!("/proc/{}/ns/ipc", holder.0.id())).unwrap();
    assert_eq!(see(&bundle)["namespaces"]["ipc"].as_str(), wanted.to_str());
}

/// A path may lead to the namespace that the caller is in.
#[test]
fn a_sysctl_is_refused_where_the_network_namespace_is_the_callers_by_path() {
    requires!(root);
    let file = "/proc/sys/net/core/somaxconn";
    let before = fs::read_to_string(file).unwrap();
    let bundle = Bundle::with(|c| {
        namespace(c, "network")["path"] = json!("/proc/self/ns/net");
        c["linux"]["sysctl"] = json!({"net.core.somaxconn": before.trim()});
    });
    bundle
        .run()
        .fails_with("not allowed in host network namespace");
}

/// The first process of the two tells the runtime the pid of the second. However late it comes to that, the container on
/// record is the second.
#[test]
fn a_container_that_joins_a_pid_namespace_is_on_record_under_its_own_pid() {
    requires!(root, command "strace");
    let host = Bundle::sleeping();
    host.up();
    let bundle = Bundle::with(|c| {
        namespace(c, "pid")["path"] = json!(format!("/proc/{}/ns/pid", host.pid()));
        process_args(c, ["sleep", "1000"]);
    });
    let trace = bundle.beside("trace").display().to_string();
    bundle
        .verb(["create", &bundle.id])
        .under([
            "strace",
            "-D",
            "-f",
            "-qq",
            "-o",
            &trace,
            "-e",
            "trace=clone3",
            "-e",
            "inject=clone3:delay_exit=300000",
        ])
        .ok();
    let of = |pid| fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_eq!(of(bundle.pid()), of(host.pid()));
}

/// A create that was killed before it had a cgroup has no claim on the processes in the one that it was to have.
#[test]
fn deleting_what_a_killed_create_left_spares_the_container_that_has_the_cgroup() {
    requires!(root, command "strace");
    let other = Bundle::sleeping();
    other.up();
    let path = other.config()["linux"]["cgroupsPath"].clone();
    let bundle = Bundle::with(|c| c["linux"]["cgroupsPath"] = path);
    let trace = bundle.beside("trace").display().to_string();
    let killed = bundle
        .verb(["create", &bundle.id])
        .under([
            "strace",
            "-qq",
            "-o",
            &trace,
            "-e",
            "trace=mknodat",
            "-e",
            "inject=mknodat:signal=KILL:when=1",
        ])
        .run();
    assert!(!killed.status.success());
    bundle.delete_force();
    assert_eq!(other.status(), "running");
}
