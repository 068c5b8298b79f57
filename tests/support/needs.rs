//! What a test may need from the machine, and what happens when it is not there.

use std::cell::Cell;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::runtime::runtime;

/// Return from the test, saying why, unless everything listed is here.
///
/// `requires!(root, controller "memory", command "strace")`: each word is a function of this file.
macro_rules! requires {
    ($($need:ident $($arg:literal)?),+ $(,)?) => {{
        fn here() {}
        $(
            if let Err(reason) = $crate::support::needs::$need($($arg)?) {
                let need = concat!(stringify!($need) $(, ":", $arg)?);
                $crate::support::needs::skip(std::any::type_name_of_val(&here), need, &reason);
                return;
            }
        )+
    }};
}

/// Where every runtime expects the hierarchy.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";

/// One line per skip that is expected: environment, need, test (or `*`).
const EXPECTED: &str = include_str!("../skips");

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The caller is root, on a machine whose root may mount and make control groups.
pub(crate) fn root() -> Result<(), String> {
    if !is_root() {
        return Err("not root".into());
    }
    cgroup2()
}

/// The caller is an ordinary user who may make user namespaces.
pub(crate) fn rootless() -> Result<(), String> {
    if is_root() {
        return Err("root, and the test is about an unprivileged user".into());
    }
    container()
}

/// Containers can be made at all: as root with a cgroup2 hierarchy, or in a user namespace.
pub(crate) fn container() -> Result<(), String> {
    cgroup2()?;
    if is_root() {
        return Ok(());
    }
    let tried = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "true"])
        .output();
    match tried {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(format!(
            "no user namespaces here: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        )),
        Err(e) => Err(format!("unshare(1): {e}")),
    }
}

/// `/sys/fs/cgroup` is a plain cgroup2 mount; as root it is made so for this thread.
pub(crate) fn cgroup2() -> Result<(), String> {
    if is_root() {
        private_mounts()?;
    }
    if is_cgroup2() {
        Ok(())
    } else {
        Err(format!("{CGROUPS} is not a cgroup2 mount"))
    }
}

/// The named controller can be handed to a container.
pub(crate) fn controller(name: &str) -> Result<(), String> {
    cgroup2()?;
    let all = std::fs::read_to_string(format!("{CGROUPS}/cgroup.controllers")).unwrap_or_default();
    if all.split_whitespace().any(|c| c == name) {
        Ok(())
    } else {
        Err(format!("no {name} controller in cgroup v2"))
    }
}

/// Limits can be set: every controller that an ordinary container needs is there for its group.
pub(crate) fn limits() -> Result<(), String> {
    cgroup2()?;
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|l| l.strip_prefix("0::"));
    let parent = own
        .and_then(|own| own.rsplit_once('/'))
        .map(|(parent, _)| parent);
    let dir = match is_root() {
        true => CGROUPS.to_owned(),
        // Beside the tests' own group, which has to be delegated.
        false => format!("{CGROUPS}{}", parent.unwrap_or_default()),
    };
    let all = std::fs::read_to_string(format!("{dir}/cgroup.controllers")).unwrap_or_default();
    let missing = ["cpu", "cpuset", "io", "memory", "pids"]
        .into_iter()
        .find(|wanted| all.split_whitespace().all(|c| c != *wanted));
    match missing {
        Some(controller) => Err(format!("no {controller} controller in {dir}")),
        None => Ok(()),
    }
}

/// systemd runs this machine, and the caller's manager answers.
pub(crate) fn systemd() -> Result<(), String> {
    if !std::path::Path::new("/run/systemd/system").is_dir() {
        return Err("systemd does not run this machine".into());
    }
    let mut command = std::process::Command::new("systemctl");
    if !is_root() {
        command.arg("--user");
    }
    match command.arg("show-environment").output() {
        Ok(out) if out.status.success() => Ok(()),
        _ => Err("systemd's manager does not answer".into()),
    }
}

/// CRIU is installed and knows this kernel.
pub(crate) fn criu() -> Result<(), String> {
    command("criu")?;
    match std::process::Command::new("criu").arg("check").output() {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr);
            let first = said.lines().next().unwrap_or("no reason given");
            Err(format!("criu check: {first}"))
        }
        Err(e) => Err(format!("criu: {e}")),
    }
}

/// The named program is in `$PATH`.
pub(crate) fn command(name: &str) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join(name).is_file()) {
        Ok(())
    } else {
        Err(format!("{name} is not in $PATH"))
    }
}

/// The RDMA devices that this machine has.
pub(crate) fn rdma_devices() -> Vec<String> {
    let devices = std::fs::read_dir("/sys/class/infiniband");
    devices
        .into_iter()
        .flatten()
        .flatten()
        .map(|device| device.file_name().to_string_lossy().into_owned())
        .collect()
}

/// An RDMA device, or a kernel that makes soft ones.
pub(crate) fn rdma_device() -> Result<(), String> {
    command("rdma")?;
    let soft = std::process::Command::new("modprobe")
        .args(["--dry-run", "rdma_rxe"])
        .output()
        .is_ok_and(|out| out.status.success());
    match soft || !rdma_devices().is_empty() {
        true => Ok(()),
        false => Err("no RDMA device, and none can be made".into()),
    }
}

/// The kernel confines processes by SELinux.
pub(crate) fn has_selinux() -> bool {
    std::fs::exists("/sys/fs/selinux/enforce").unwrap_or(false)
}

/// Whether the kernel confines processes by AppArmor.
pub(crate) fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|answer| answer.starts_with(b"Y"))
}

/// AppArmor, and what loads profiles.
pub(crate) fn apparmor() -> Result<(), String> {
    match has_apparmor() {
        true => command("apparmor_parser"),
        false => Err("the kernel has no AppArmor".into()),
    }
}

/// A kernel that knows of memory nodes, be there only one.
pub(crate) fn numa() -> Result<(), String> {
    match std::fs::exists("/proc/self/numa_maps") {
        Ok(true) => Ok(()),
        _ => Err("the kernel has no NUMA".into()),
    }
}

/// Pairs of network devices can be made.
pub(crate) fn veth() -> Result<(), String> {
    command("ip")?;
    let tried = std::process::Command::new("unshare")
        .args(["--net", "ip", "link", "add", "type", "veth"])
        .output();
    match tried {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(format!(
            "no veth devices here: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        )),
        Err(e) => Err(format!("unshare(1): {e}")),
    }
}

/// The runtime under test can attach a device program: pelagos and runc always, crun only where it may raise its
/// memlock limit.
pub(crate) fn device_rules() -> Result<(), String> {
    if !is_root() {
        return Err("device rules need root".into());
    }
    if runtime().is("crun") && !has_capability(24) {
        return Err("this crun needs CAP_SYS_RESOURCE to load a device program".into());
    }
    Ok(())
}

/// Whether capability number `bit` is effective.
pub(crate) fn has_capability(bit: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .unwrap_or("0");
    u64::from_str_radix(set.trim(), 16).unwrap_or(0) >> bit & 1 == 1
}

/// Say that `test` was skipped; where `PELAGOS_SKIPS=deny`, only the skips that `tests/skips` expects in
/// `PELAGOS_ENV` may happen.
#[expect(clippy::print_stderr, reason = "a skip is loud")]
pub(crate) fn skip(test: &str, need: &str, reason: &str) {
    let test = test_name(test);
    eprintln!("skip: {test}: {reason}");
    if std::env::var("PELAGOS_SKIPS").as_deref() == Ok("deny") {
        let environment = std::env::var("PELAGOS_ENV").unwrap_or_default();
        let expected = EXPECTED
            .lines()
            .filter(|l| !l.starts_with('#'))
            .any(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                words.len() >= 3
                    && words[0] == environment
                    && words[1] == need
                    && (words[2] == "*" || words[2] == test)
            });
        assert!(
            expected,
            "tests/skips does not expect `{environment} {need} {test}`: {reason}"
        );
    }
}

/// Say that `test` is not for the runtime under test.
#[expect(clippy::print_stderr, reason = "a skip is loud")]
pub(crate) fn differs(test: &str, kind: &str, reason: &str) {
    eprintln!("differs: {}: {kind}: {reason}", test_name(test));
}

/// `runtime::lifecycle::a_sentence::here` → `lifecycle::a_sentence`.
fn test_name(type_name: &str) -> &str {
    let name = type_name.strip_suffix("::here").unwrap_or(type_name);
    name.split_once("::").map_or(name, |(_, rest)| rest)
}

fn is_cgroup2() -> bool {
    statfs(CGROUPS).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

thread_local! {
    static PRIVATE: Cell<bool> = const { Cell::new(false) };
}

/// Give this thread, and what it starts, a mount namespace of its own with cgroup2 on `/sys/fs/cgroup`.
///
/// A mount namespace belongs to a thread, so tests neither see each other's mounts nor touch the machine's, and a
/// mount that a test leaves behind can be told from every other.
fn private_mounts() -> Result<(), String> {
    if PRIVATE.get() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|e| format!("no mount namespace of one's own: {e}"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)
        .map_err(|e| format!("private mounts: {e}"))?;
    if !is_cgroup2() {
        // Refused where nothing is mounted there, which is as good.
        umount2(CGROUPS, MntFlags::MNT_DETACH).ok();
        mount(
            Some("none"),
            CGROUPS,
            Some("cgroup2"),
            MsFlags::empty(),
            none,
        )
        .map_err(|e| format!("mount cgroup2 on {CGROUPS}: {e}"))?;
    }
    PRIVATE.set(true);
    Ok(())
}
