//! What a test left on the machine: control groups, mounts, processes, state directories.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;
use super::needs::CGROUPS;

/// Everything that carries this id, as lines for a person.
pub(crate) fn of(id: &str, state_root: &Path) -> Vec<String> {
    let mut left: Vec<_> = state_entries(state_root)
        .into_iter()
        .map(|e| format!("state directory {e}"))
        .collect();
    left.extend(
        cgroups(id)
            .into_iter()
            .map(|c| format!("control group {}", c.display())),
    );
    left.extend(mounts(id).into_iter().map(|m| format!("mount {m}")));
    left.extend(
        processes(id)
            .into_iter()
            .map(|(pid, how)| format!("process {pid}: {how}")),
    );
    left
}

/// The names in a state root, as far as they can be containers. A dot cannot begin an entry of ours, and crun keeps a
/// file of that kind there.
pub(crate) fn state_entries(state_root: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(state_root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| !n.starts_with('.'))
        .collect()
}

/// The control groups with this id in their name or below one, innermost first.
pub(crate) fn cgroups(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new(CGROUPS), &mut |dir| {
        if dir.to_string_lossy().contains(id) {
            found.push(dir.to_owned());
        }
    });
    found.reverse();
    found
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            visit(&entry.path());
            walk(&entry.path(), visit);
        }
    }
}

/// The lines of this thread's mount table with the id in them.
fn mounts(id: &str) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter(|l| l.contains(id))
        .map(str::to_owned)
        .collect()
}

/// The processes that carry the id: in their control group, their mount table (the container's root is a mount of the
/// bundle), their command line or environment.
pub(crate) fn processes(id: &str) -> Vec<(Pid, String)> {
    let own = std::process::id().to_string();
    let own_mounts = std::fs::read_link("/proc/thread-self/ns/mnt").expect("a mount namespace");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if name.to_str() == Some(&own) {
            continue;
        }
        let at = |file: &str| entry.path().join(file);
        // A zombie is already dead; its parent, perhaps the tests themselves, will collect it. A thread of the kernel has
        // PF_KTHREAD among its flags (proc_pid_stat(5), field 9).
        let stat = read(&at("stat"));
        let not_it = stat.rsplit_once(") ").is_some_and(|(_, rest)| {
            let flags = rest.split(' ').nth(6).and_then(|f| f.parse::<u32>().ok());
            rest.starts_with(['Z', 'X']) || flags.is_some_and(|f| f & 0x0020_0000 != 0)
        });
        if not_it {
            continue;
        }
        // The table of the test's own mount namespace is long, and says nothing of a single process.
        let has = |file: &&str| {
            let ours = *file == "mountinfo"
                && std::fs::read_link(at("ns/mnt")).is_ok_and(|ns| ns == own_mounts);
            !ours && read(&at(file)).contains(id)
        };
        if let Some(how) = ["cgroup", "cmdline", "environ", "mountinfo"]
            .into_iter()
            .find(has)
        {
            let line = read(&at("cmdline")).replace('\0', " ");
            found.push((Pid::from_raw(pid), format!("{line} (by its {how})")));
        }
    }
    found
}

/// A file of /proc, in few calls: they have no size that a buffer could be made for. Empty where it cannot be read.
fn read(path: &Path) -> String {
    let mut text = Vec::with_capacity(8192);
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut text))
        .ok();
    String::from_utf8_lossy(&text).into_owned()
}

/// Remove all of it, by force. Best effort: it runs when a test has ended, perhaps by a panic.
pub(crate) fn sweep(id: &str) {
    let gone = eventually(|| {
        let left = processes(id);
        for (pid, _) in &left {
            kill(*pid, Signal::SIGKILL).ok();
        }
        left.is_empty()
    });
    if !gone && !std::thread::panicking() {
        panic!("processes of {id} cannot be killed: {:?}", processes(id));
    }
    for line in mounts(id).iter().rev() {
        if let Some(target) = line.split(' ').nth(4) {
            umount2(target, MntFlags::MNT_DETACH).ok();
        }
    }
    for dir in cgroups(id) {
        std::fs::remove_dir(dir).ok();
    }
}
