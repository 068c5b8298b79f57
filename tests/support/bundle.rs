//! A bundle with a busybox root, an id and a state root of its own.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::leaks;
use super::needs::{device_rules, is_root};
use super::runtime::{Outcome, Verb, runtime};
use super::{eventually, patience};

/// Applets that the root has as symlinks in `/bin`.
const APPLETS: &str = "[ awk basename cat chmod chown cp cut date dd df dirname dmesg echo egrep env expr false find \
    getopt grep head hostname id ifconfig ip kill ln ls mkdir mkfifo mknod mount nc nproc od ping printenv printf ps \
    pwd readlink realpath rm rmdir route sed seq setsid sh sleep sort stat stty sync tail tee test time timeout touch \
    tr true tty umount uname uniq wc which whoami xargs yes";

/// A bundle, the id of its container, and the state root (`--root`) that only this test uses.
///
/// Everything about it carries the id: the directory, the control group, the state root. Dropping it deletes what is
/// left of the containers in its state root and then the directory.
pub(crate) struct Bundle {
    /// Unique on this machine; begins with `pelagos-test-`.
    pub(crate) id: String,
    /// The directory with `config.json` and `rootfs`.
    pub(crate) path: PathBuf,
    /// The `--root` of the runtime.
    pub(crate) state_root: PathBuf,
    dir: TempDir,
}

impl Bundle {
    /// The template for this caller as it is: it runs `true`.
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// The template for this caller (rootful for root, the plain rootless one otherwise), edited.
    pub(crate) fn with(edit: impl FnOnce(&mut Value)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let base = std::env::var_os("PELAGOS_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
        let prefix = format!("pelagos-test-{}-", COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(base)
            .expect("temporary directory");
        open_to_all(dir.path());
        let path = dir.path().join("bundle");
        let state_root = dir.path().join("state");
        std::fs::create_dir(&path).expect("bundle");
        std::fs::create_dir(&state_root).expect("state root");
        // A pid may come again, the random part of a temporary name hardly.
        let id = dir
            .path()
            .file_name()
            .expect("name")
            .to_str()
            .expect("ASCII")
            .to_owned();
        make_rootfs(&path.join("rootfs"));
        let mut config = if is_root() { rootful(&id) } else { rootless() };
        edit(&mut config);
        let bundle = Self {
            id,
            path,
            state_root,
            dir,
        };
        bundle.write_config(&config);
        bundle
    }

    /// A bundle whose container runs this script with `sh -c`.
    pub(crate) fn sh(script: &str) -> Self {
        Self::with(|c| sh(c, script))
    }

    /// A bundle whose container only waits to be killed.
    pub(crate) fn sleeping() -> Self {
        Self::with(|c| process_args(c, ["sleep", "1000"]))
    }

    /// `config.json` as it is on disk.
    pub(crate) fn config(&self) -> Value {
        let text = std::fs::read(self.path.join("config.json")).expect("config.json");
        serde_json::from_slice(&text).expect("config.json")
    }

    /// Change `config.json` on disk.
    pub(crate) fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let mut config = self.config();
        edit(&mut config);
        self.write_config(&config);
    }

    fn write_config(&self, config: &Value) {
        let text = serde_json::to_vec_pretty(config).expect("JSON");
        std::fs::write(self.path.join("config.json"), text).expect("config.json");
    }

    /// A path inside the root, seen from outside.
    pub(crate) fn rootfs(&self, inside: &str) -> PathBuf {
        self.path
            .join("rootfs")
            .join(inside.trim_start_matches('/'))
    }

    /// A path beside the bundle, for pid files, logs and sockets: outside of the container, gone with the test.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the container's control group is, seen from the host (rootful template).
    pub(crate) fn cgroup(&self) -> PathBuf {
        Path::new(super::needs::CGROUPS).join(&self.id)
    }

    /// `RUNTIME --root STATE_ROOT args`, called in the bundle's directory.
    pub(crate) fn verb<S: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Verb {
        // The mark lets the leak check find processes of the runtime itself.
        Verb::new(["--root"])
            .arg(&self.state_root)
            .args(args)
            .cwd(&self.path)
            .env("PELAGOS_TEST_ID", &self.id)
    }

    /// `create`, expecting success. The container's output can be read from the outcome later.
    #[track_caller]
    pub(crate) fn create(&self) -> Outcome {
        self.verb(["create", &self.id]).ok()
    }

    #[track_caller]
    pub(crate) fn start(&self) -> Outcome {
        self.verb(["start", &self.id]).ok()
    }

    #[track_caller]
    pub(crate) fn kill(&self, signal: &str) -> Outcome {
        self.verb(["kill", &self.id, signal]).ok()
    }

    #[track_caller]
    pub(crate) fn delete(&self) -> Outcome {
        self.verb(["delete", &self.id]).ok()
    }

    /// `delete --force`, expecting success.
    #[track_caller]
    pub(crate) fn delete_force(&self) -> Outcome {
        self.verb(["delete", "--force", &self.id]).ok()
    }

    /// `run` in the foreground, whatever comes of it.
    pub(crate) fn run(&self) -> Outcome {
        self.verb(["run", &self.id]).run()
    }

    /// What `state` prints, as JSON.
    #[track_caller]
    pub(crate) fn state(&self) -> Value {
        self.verb(["state", &self.id]).ok().json()
    }

    #[track_caller]
    pub(crate) fn status(&self) -> String {
        self.state()["status"]
            .as_str()
            .expect("a status")
            .to_owned()
    }

    /// The pid of the container's first process.
    #[track_caller]
    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        let pid = self.state()["pid"].as_i64().expect("a pid");
        nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"))
    }

    /// Wait until `state` shows this status.
    #[track_caller]
    pub(crate) fn wait_for(&self, status: &str) {
        let mut last = String::new();
        let seen = eventually(|| {
            last = self.status();
            last == status
        });
        assert!(seen, "{} is {last} and did not become {status}", self.id);
    }

    /// Create and start.
    #[track_caller]
    pub(crate) fn up(&self) -> Outcome {
        let created = self.create();
        self.start();
        created
    }

    /// What there is of this test outside of its directory, and in its state root; empty when all is well.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        leaks::of(&self.id, &self.state_root)
    }

    /// Expect that no control group, mount, process or state directory is left.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        let mut left = Vec::new();
        let end = std::time::Instant::now() + patience(std::time::Duration::from_secs(1));
        // A killed process stays visible until the kernel has taken it apart.
        while std::time::Instant::now() < end {
            left = self.leftovers();
            if left.is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("left behind:\n  {}", left.join("\n  "));
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for id in leaks::state_entries(&self.state_root) {
            let call = std::process::Command::new(&runtime().path)
                .arg("--root")
                .arg(&self.state_root)
                .args(["delete", "--force", &id])
                .output();
            // The sweep below takes what this leaves; a second panic would hide the first.
            drop(call);
        }
        leaks::sweep(&self.id);
    }
}

/// Set `process.args`.
pub(crate) fn process_args<const N: usize>(config: &mut Value, args: [&str; N]) {
    config["process"]["args"] = json!(args.as_slice());
}

/// Run this script with `sh -c`.
pub(crate) fn sh(config: &mut Value, script: &str) {
    process_args(config, ["sh", "-c", script]);
}

/// The mounts, to push to.
pub(crate) fn mounts(config: &mut Value) -> &mut Vec<Value> {
    list(&mut config["mounts"])
}

/// The namespace of this type, added where it is missing.
pub(crate) fn namespace<'a>(config: &'a mut Value, kind: &str) -> &'a mut Value {
    let all = list(&mut config["linux"]["namespaces"]);
    let at = all
        .iter()
        .position(|n| n["type"] == kind)
        .unwrap_or_else(|| {
            all.push(json!({ "type": kind }));
            all.len() - 1
        });
    &mut all[at]
}

fn list(value: &mut Value) -> &mut Vec<Value> {
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().expect("a list")
}

/// Directories are 0755: a container in a user namespace walks to its root as somebody else.
fn open_to_all(dir: &Path) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// A root with busybox. The program is one file, linked into every root.
fn make_rootfs(root: &Path) {
    for dir in [
        "bin", "data", "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "usr/bin",
        "var/tmp",
    ] {
        std::fs::create_dir_all(root.join(dir)).expect("rootfs");
    }
    std::fs::set_permissions(root.join("tmp"), std::fs::Permissions::from_mode(0o1777))
        .expect("chmod");
    std::fs::hard_link(busybox(), root.join("bin/busybox")).expect("link busybox");
    for applet in APPLETS.split_whitespace() {
        symlink("busybox", root.join("bin").join(applet)).expect("applet");
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n",
    )
    .expect("passwd");
    std::fs::write(
        root.join("etc/group"),
        "root:x:0:\nada:x:1000:\nstaff:x:50:ada\n",
    )
    .expect("group");
}

/// A copy of the machine's static busybox on the file system of the bundles, made once.
fn busybox() -> &'static Path {
    static COPY: LazyLock<PathBuf> = LazyLock::new(|| {
        let source = [
            "/bin/busybox",
            "/usr/bin/busybox",
            "/usr/lib/busybox/busybox-static",
        ]
        .into_iter()
        .map(Path::new)
        .find(|p| p.is_file())
        .expect("busybox-static is not installed");
        let base = std::env::var_os("PELAGOS_TEST_DIR")
            .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let copy = base.join(format!("pelagos-busybox-{}", nix::unistd::geteuid()));
        let size = |p: &Path| std::fs::metadata(p).map(|m| m.len()).ok();
        if size(&copy) != size(source) {
            let mut fresh = tempfile::NamedTempFile::new_in(&base).expect("temporary file");
            std::io::copy(
                &mut std::fs::File::open(source).expect("busybox"),
                &mut fresh,
            )
            .expect("copy busybox");
            std::fs::set_permissions(fresh.path(), std::fs::Permissions::from_mode(0o755))
                .expect("chmod");
            fresh.persist(&copy).expect("rename");
        }
        copy
    });
    &COPY
}

/// What an engine asks for, less what only some tests are about.
fn rootful(id: &str) -> Value {
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["true"],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
                "effective": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
                "permitted": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            {
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {
                "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "cgroup" },
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    if device_rules().is_err() {
        config["linux"]["resources"] = json!({});
    }
    config
}

/// The same for a user: a user namespace with one id, no network of its own, no limits.
fn rootless() -> Value {
    let mut config = rootful("");
    let one = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": 1 }]);
    let linux = config["linux"].as_object_mut().expect("linux");
    linux.remove("cgroupsPath");
    linux.remove("resources");
    linux["namespaces"] = json!([
        { "type": "user" }, { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
        { "type": "cgroup" },
    ]);
    linux.insert("uidMappings".into(), one(nix::unistd::geteuid().as_raw()));
    linux.insert("gidMappings".into(), one(nix::unistd::getegid().as_raw()));
    for mount in mounts(&mut config) {
        if mount["destination"] == "/sys" {
            *mount = json!({
                "destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
            });
        }
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|o| o != "gid=5");
        }
    }
    config
}
