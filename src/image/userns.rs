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

use anyhow::{Context as _, Result};
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
    let (maps, single) = Maps::of_caller()?;
    if let Some(why) = single {
        debug!("one id only: {why}");
    }
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

/// The maps of the user namespace that this process is in: ids here, and ids where it was made.
///
/// # Errors
/// /proc cannot be read, or has another form.
pub(crate) fn maps() -> Result<Maps> {
    Maps::of("self")
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
    fn inside_the_ids_are_the_same_on_both_sides() {
        let range = |container, host, length| Range {
            container,
            host,
            length,
        };
        let map = vec![range(0, 1000, 1), range(1, 100_000, 65_536)];
        assert!(only_one(&map[..1]) && !only_one(&map));
        let inner = inside(&Maps {
            uids: map.clone(),
            gids: map,
        });
        assert_eq!((inner.uids[1].container, inner.uids[1].host), (1, 1));
    }
}
