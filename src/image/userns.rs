//! A user namespace for an ordinary user: the ids that files need, and the mounts.
//!
//! Root goes on as it is. For anybody else the command is continued in a child that is root in a namespace of its own:
//! id 0 inside is the caller, and from 1 on come the ranges that /etc/subuid and /etc/subgid give the caller
//! (user_namespaces(7), newuidmap(1)). The parent stays to pass signals on and to end as the child ends.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, getppid, setresgid, setresuid};

use crate::idmap::{self, Maps, Range};
use crate::report::{self, Hinted, debug};
use crate::sys::process::{clone3, exit_now};

use super::foreground::Signals;
use super::unpack::Ids;

/// What the command needs beside the ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// A mount namespace of its own. Root gets none here: its mounts are meant to be seen.
    pub(crate) mounts: bool,
}

/// Set in the process that goes on inside a namespace of our making.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// Whether [`enter`] made the user namespace that this process is in.
pub(crate) fn entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}

/// The user who gave the command; none where /proc does not say it.
pub(crate) fn caller() -> Option<Uid> {
    if !entered() {
        return Some(Uid::effective());
    }
    let maps = maps().ok()?;
    idmap::to_host(&maps.uids, 0).map(Uid::from_raw)
}

/// Go on as root: at once for root, otherwise in a child inside a new user namespace.
///
/// Called before any thread is started and before anything is held that a copy of the process must not share, such as
/// locks. Returns in the process that goes on; the other ends with that one's exit code.
///
/// # Errors
/// The kernel or newuidmap refuses the namespace.
pub(crate) fn enter(wanted: Wanted) -> Result<()> {
    if Uid::effective().is_root() {
        return Ok(());
    }
    let maps = wanted_maps()?;
    debug!("user namespace: {maps:?}");
    let caller = std::process::id();
    let signals = Signals::block()?;
    let (mapped, tell) = nix::unistd::pipe().context("make a pipe")?;
    let kinds = libc::CLONE_NEWUSER as u64;
    let cloned = clone3(kinds, None).map_err(refusal)?;
    let Some(child) = cloned else {
        drop(tell);
        begin(&File::from(mapped), signals, caller, wanted)?;
        return Ok(());
    };
    drop(mapped);
    // Where the maps are refused, the pipe closes without a word and the child leaves.
    maps.write(child.pid)
        .context("map the ids of the user namespace")?;
    File::from(tell)
        .write_all(b"m")
        .context("start in the user namespace")?;
    let code = signals.wait(child.pid)?;
    // What the child said it has written; nothing of ours is buffered or held.
    exit_now(code.into())
}

/// The child's beginning: it waits for its maps, and becomes root of them.
fn begin(mapped: &File, signals: Signals, caller: u32, wanted: Wanted) -> Result<()> {
    let mut word = [0; 1];
    if (&*mapped).read(&mut word).unwrap_or(0) == 0 {
        // The parent has said why.
        exit_now(1);
    }
    let zero = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(zero.1, zero.1, zero.1).context("become group 0 of the user namespace")?;
    setresuid(zero.0, zero.0, zero.0).context("become user 0 of the user namespace")?;
    // ORDER: after the change of user, which takes the order to die back.
    prctl::set_pdeathsig(Signal::SIGKILL).context("end with the parent")?;
    if getppid() != Pid::from_raw(caller.cast_signed()) {
        exit_now(1);
    }
    if wanted.mounts {
        private_mounts()?;
    }
    ENTERED.store(true, Ordering::Relaxed);
    signals.restore()
}

/// A mount namespace in which mounts of the host arrive, and from which none leave.
pub(super) fn private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .context("keep mounts from leaving the mount namespace")
}

fn refusal(errno: Errno) -> anyhow::Error {
    let hint = "does the system let ordinary users make user namespaces? (user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)";
    anyhow::Error::new(errno).context(Hinted::new("make a user namespace", hint))
}

/// The maps for the caller: itself as root, and its subordinate ids after it.
fn wanted_maps() -> Result<Maps> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    // Of users that are kept elsewhere the environment knows the name. It may lie: newuidmap asks for itself.
    let name = std::fs::read_to_string("/etc/passwd")
        .ok()
        .and_then(|passwd| name_of(&passwd, uid.as_raw()))
        .or_else(|| std::env::var("USER").ok())
        .unwrap_or_default();
    let ranges = |path: &str| -> Result<Vec<(u32, u32)>> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(subordinate(&text, &name, uid.as_raw())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("read {path}")),
        }
    };
    let (uids, gids) = (ranges("/etc/subuid")?, ranges("/etc/subgid")?);
    let tools = ["newuidmap", "newgidmap"];
    let missing = tools.into_iter().find(|tool| !in_path(tool));
    let single = |why: &str| {
        debug!("one id only: {why}");
        Maps {
            uids: map(uid.as_raw(), &[]),
            gids: map(gid.as_raw(), &[]),
        }
    };
    Ok(match missing {
        _ if uids.is_empty() => single("no ids for this user in /etc/subuid"),
        _ if gids.is_empty() => single("no ids for this user in /etc/subgid"),
        Some(tool) => single(&format!("{tool} is not installed (package uidmap)")),
        None => Maps {
            uids: map(uid.as_raw(), &uids),
            gids: map(gid.as_raw(), &gids),
        },
    })
}

/// The name of `uid` in /etc/passwd (passwd(5)).
fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let line = passwd.lines().find(|line| {
        let third = line.split(':').nth(2);
        third.and_then(|field| field.parse().ok()) == Some(uid)
    })?;
    line.split(':').next().map(str::to_owned)
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The ranges of one user in /etc/subuid or /etc/subgid (subuid(5)): lines `NAME-OR-UID:START:COUNT`.
fn subordinate(text: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let own = uid.to_string();
    let line = |line: &str| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        if who != own && (name.is_empty() || who != name) {
            return None;
        }
        let start: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        (count > 0 && start.checked_add(count).is_some()).then_some((start, count))
    };
    let mut ranges: Vec<_> = text.lines().filter_map(line).collect();
    ranges.dedup();
    ranges
}

/// Id 0 is `caller`; the ranges follow without a gap from 1 on.
fn map(caller: u32, ranges: &[(u32, u32)]) -> Vec<Range> {
    let mut map = vec![Range {
        container: 0,
        host: caller,
        length: 1,
    }];
    let mut next = 1_u32;
    for (start, count) in ranges {
        let Some(after) = next.checked_add(*count) else {
            break;
        };
        map.push(Range {
            container: next,
            host: *start,
            length: *count,
        });
        next = after;
    }
    map
}

/// The maps of the user namespace that this process is in: ids here, and ids where it was made.
///
/// # Errors
/// /proc cannot be read, or has another form.
pub(crate) fn maps() -> Result<Maps> {
    let read = |path: &str| {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        parse_map(&text).with_context(|| format!("read {path}"))
    };
    Ok(Maps {
        uids: read("/proc/self/uid_map")?,
        gids: read("/proc/self/gid_map")?,
    })
}

fn parse_map(text: &str) -> Result<Vec<Range>> {
    let line = |line: &str| {
        let numbers: Vec<u32> = line
            .split_whitespace()
            .map_while(|number| number.parse().ok())
            .collect();
        match *numbers {
            [container, host, length] => Ok(Range {
                container,
                host,
                length,
            }),
            _ => bail!("{line:?} is not a line of an id map"),
        }
    };
    text.lines().map(line).collect()
}

/// The same ids on both sides: for a container whose user namespace lies inside the one of this process.
pub(super) fn inside(maps: &Maps) -> Maps {
    let same = |ranges: &[Range]| {
        let same = |range: &Range| Range {
            host: range.container,
            ..*range
        };
        ranges.iter().map(same).collect()
    };
    Maps {
        uids: same(&maps.uids),
        gids: same(&maps.gids),
    }
}

/// How an unpacked file gets its owner here. Says once if that is not as the image has it.
pub(crate) fn ids() -> Ids {
    static SAID: Once = Once::new();
    if !has_one_id() {
        return Ids::AsStored;
    }
    SAID.call_once(|| {
        report::warn(format_args!(
            "all files of images get the caller's own ids: there are no others in /etc/subuid and /etc/subgid, or newuidmap is not installed"
        ));
    });
    Ids::Single
}

/// Whether files can only belong to the caller here.
pub(crate) fn has_one_id() -> bool {
    maps().is_ok_and(|maps| only_one(&maps.uids) || only_one(&maps.gids))
}

fn only_one(ranges: &[Range]) -> bool {
    matches!(ranges, [Range { length: 1, .. }])
}

/// Where the runtime keeps the state of containers when nobody tells it: the directory that `pelagos` uses.
///
/// `$XDG_RUNTIME_DIR` is an ordinary user's, and stays so inside the user namespace.
pub(crate) fn state_root() -> Result<std::path::PathBuf> {
    let shared = Path::new("/run/pelagos").to_path_buf();
    if Uid::effective().is_root() && idmap::in_initial_namespace()? {
        return Ok(shared);
    }
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    match runtime_dir {
        Some(dir) => Ok(Path::new(&dir).join("pelagos")),
        None => {
            let hint = "log in so that the system makes one, or name a directory of your own";
            Err(Hinted::new(
                "XDG_RUNTIME_DIR is not set: no place for containers' state",
                hint,
            )
            .into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_name_of_its_line() {
        let passwd = "root:x:0:0::/:/bin/sh\nbob:x:10:5::/:/bin/sh\nalias:x:10:5::/:\n";
        assert_eq!(name_of(passwd, 10).as_deref(), Some("bob"));
        assert_eq!(name_of(passwd, 5), None);
    }

    #[test]
    fn a_user_is_found_by_name_or_number_and_only_whole_lines_count() {
        let text = "alice:100000:65536\n1000:300000:10\nalice:200000:5\nbob:1:2\nalice:x:1\n\
                    alice:5\nalice:4294967295:2\nalice:7:0\n:9:9\n";
        for (name, uid, expected) in [
            (
                "alice",
                1000,
                vec![(100_000, 65_536), (300_000, 10), (200_000, 5)],
            ),
            ("bob", 1001, vec![(1, 2)]),
            ("", 1000, vec![(300_000, 10)]),
            ("", 7, vec![]),
            ("ali", 5, vec![]),
        ] {
            assert_eq!(subordinate(text, name, uid), expected, "{name} {uid}");
        }
    }

    // L-29
    #[test]
    fn the_caller_is_root_inside_and_its_ranges_follow_without_a_gap() {
        let lines = |map: &[Range]| -> Vec<(u32, u32, u32)> {
            map.iter()
                .map(|range| (range.container, range.host, range.length))
                .collect()
        };
        assert_eq!(lines(&map(1000, &[])), [(0, 1000, 1)]);
        assert_eq!(
            lines(&map(1000, &[(100_000, 65_536), (5, 3)])),
            [(0, 1000, 1), (1, 100_000, 65_536), (65_537, 5, 3)]
        );
        assert_eq!(lines(&map(7, &[(1, u32::MAX)])), [(0, 7, 1)]);
    }

    #[test]
    fn the_kernels_map_is_read_back() {
        let map = parse_map("         0       1000          1\n         1     100000      65536\n");
        let map = map.unwrap();
        assert_eq!(
            (map.len(), map[1].host, map[1].length),
            (2, 100_000, 65_536)
        );
        assert!(only_one(&map[..1]) && !only_one(&map));
        parse_map("0 1\n").unwrap_err();
        parse_map("a b c\n").unwrap_err();
        let inner = inside(&Maps {
            uids: map.clone(),
            gids: map,
        });
        assert_eq!((inner.uids[1].container, inner.uids[1].host), (1, 1));
    }
}
