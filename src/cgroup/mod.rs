//! The container's cgroup: one directory in the v2 hierarchy, written to file by file.
//!
//! Two drivers make it: the cgroupfs driver is this file, the systemd driver lets systemd make a scope and then works on
//! its directory as the other would. From then on there is no difference: a record names the path in both cases.
//!
//! Nothing here is opened by a path from the root of the file system. The hierarchy's root is held as a descriptor, and
//! every directory and file below it is opened relative to one, without leaving the mount and without following a link:
//! a container may own parts of this tree.
//!
//! ORDER: limits are in place before a process is cloned into the cgroup, device rules before anything of the
//! container's runs in it.

mod bus;
mod devices;
mod files;
mod gvariant;
mod place;
mod resctrl;
mod stats;
mod systemd;
mod update;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, TryLockError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use nix::sys::uio::pread;
use nix::unistd::{Pid, Uid, UnlinkatFlags, fchown, fchownat, read, unlinkat, write};

use crate::sys::errno::Words;
use crate::sys::{attribute, bpf, pidfd};

pub(crate) use devices::Devices;
use files::Need;
pub(crate) use files::{Limit, limits};
use place::names;
#[cfg(feature = "_fuzz")]
pub(crate) use place::path_for;
pub(crate) use place::{Driver, Place, of, own};
pub(crate) use resctrl::{Membership, Resctrl, Schemata, Traces};
pub(crate) use stats::{Happened, Stats, Watch};
pub(crate) use systemd::{Scope, Unit, keeps_failed};
pub(crate) use update::update_nothing;

/// How long the kernel may take to freeze a cgroup, or its processes to leave it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The attribute that names the owner. The cgroup file system has kept user attributes since Linux 5.7.
// A container that may write its cgroup could change a user's attribute; this one takes CAP_SYS_ADMIN on the host.
const OWNER: &std::ffi::CStr = c"trusted.pelagos";
/// The same of who has no right to that one.
const USERS_OWNER: &std::ffi::CStr = c"user.pelagos";
/// The pause where the kernel announces nothing: a directory that looks empty and still cannot be removed.
const PAUSE: Duration = Duration::from_millis(10);

/// The cgroup v2 hierarchy of this host.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    mount_point: PathBuf,
    root: OwnedFd,
}

impl Hierarchy {
    /// Find the hierarchy: on `/sys/fs/cgroup`, on a hybrid host on `/sys/fs/cgroup/unified`, else wherever the mount
    /// table has it.
    pub(crate) fn probe() -> Result<Self> {
        for place in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            if let Some(found) = Self::at(Path::new(place)) {
                return Ok(found);
            }
        }
        procfs::process::Process::myself()
            .and_then(|myself| myself.mountinfo())
            .context("read the mount table")?
            .into_iter()
            .filter(|mount| mount.fs_type == "cgroup2")
            .find_map(|mount| Self::at(&mount.mount_point))
            .context("no cgroup v2 hierarchy is mounted on this host")
    }

    fn at(mount_point: &Path) -> Option<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(mount_point, flags, Mode::empty()).ok()?;
        let is_v2 =
            fstatfs(&root).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
        is_v2.then(|| Self {
            mount_point: mount_point.to_owned(),
            root,
        })
    }

    /// Where the hierarchy is mounted.
    pub(crate) fn mount_point(&self) -> &Path {
        &self.mount_point
    }
}

/// The caller has no right to make the cgroup.
#[derive(Debug)]
pub(crate) struct Refused {
    path: PathBuf,
    errno: Errno,
}

impl Refused {
    /// What a rootless caller makes of it: without limits and without a `cgroupsPath` the container does without a
    /// cgroup of its own; otherwise this is an error.
    pub(crate) fn without_cgroup(&self, cgroups_path: bool, limits: bool) -> Result<()> {
        if cgroups_path {
            bail!("unable to apply cgroup configuration: {self}");
        }
        if limits {
            bail!(
                "rootless needs no limits + no cgrouppath when no permission is granted for cgroups: {self}"
            );
        }
        Ok(())
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "make cgroup {}: {}",
            self.path.display(),
            Words(self.errno)
        )
    }
}

impl std::error::Error for Refused {}

/// A container's cgroup, held open.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    name: OsString,
    parent: OwnedFd,
    dir: OwnedFd,
    /// Whether `create` made it, so that nothing of an earlier use can be in it.
    fresh: bool,
    /// The ancestors that `create` made, outermost first.
    made: Vec<Made>,
    /// The unit that has it, where systemd made it for this process.
    unit: Option<Unit>,
}

/// A directory that was made, as a name in an open parent.
#[derive(Debug)]
struct Made {
    parent: OwnedFd,
    name: OsString,
}

impl Cgroup {
    /// Make the cgroup at `path` with `limits`.
    ///
    /// Missing ancestors are made too, and every controller that the hierarchy offers is enabled down to the cgroup, as
    /// far as the kernel agrees. A directory that is there already is used if it is neither frozen nor holds a process.
    /// On failure what was made is removed. A caller without the right to make it finds [`Refused`] in the error.
    pub(crate) fn create(hierarchy: &Hierarchy, path: &Path, limits: &[Limit]) -> Result<Self> {
        let mut made = Vec::new();
        let cgroup =
            Self::make(hierarchy, path, limits, &mut made).and_then(|(cgroup, threaded)| {
                let prepared = cgroup.prepare(limits, threaded);
                match prepared {
                    Ok(()) => Ok(cgroup),
                    Err(error) => {
                        if cgroup.fresh {
                            // The reason why the limits could not be set matters more than a directory left behind.
                            remove_dir(&cgroup.parent, Path::new(&cgroup.name)).ok();
                        }
                        Err(error)
                    }
                }
            });
        match cgroup {
            Ok(cgroup) => Ok(Self { made, ..cgroup }),
            Err(error) => {
                remove_made(&made);
                Err(error)
            }
        }
    }

    /// Make the directories. Also says whether the cgroup may lie below a threaded one.
    fn make(
        hierarchy: &Hierarchy,
        path: &Path,
        limits: &[Limit],
        made: &mut Vec<Made>,
    ) -> Result<(Self, bool)> {
        let names = names(path)?;
        let (&name, above) = names
            .split_last()
            .context("the root of the hierarchy cannot be a container's cgroup")?;
        let wanted = words(
            &read_short(&hierarchy.root, "cgroup.controllers")
                .context("read cgroup.controllers")?,
        );

        let at = above.iter().collect::<PathBuf>();
        let at = if above.is_empty() {
            Path::new(".")
        } else {
            at.as_path()
        };
        let (parent, complete) = match open_dir(&hierarchy.root, at) {
            // The usual case: an engine's parent cgroup, made and set up by an earlier container.
            Ok(parent) if lacking(&parent, &wanted).is_empty() => (parent, true),
            Ok(_) | Err(Errno::ENOENT) => walk(hierarchy, path, above, wanted, limits, made)?,
            Err(errno) => {
                return Err(errno)
                    .with_context(|| format!("open the parent of cgroup {}", path.display()));
            }
        };

        let fresh = match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(errno) => return Err(refusal(path, errno)),
        };
        let dir = match open_listable(&parent, name).and_then(only_ours) {
            Ok(dir) => dir,
            Err(Errno::EWOULDBLOCK) => {
                bail!(
                    "container's cgroup {} is in use: another container is being made in it",
                    path.display()
                )
            }
            Err(errno) => {
                if fresh {
                    remove_dir(&parent, name).ok();
                }
                return Err(errno).with_context(|| format!("open cgroup {}", path.display()));
            }
        };
        let name = name.as_os_str().to_owned();
        Ok((
            Self {
                path: path.to_owned(),
                name,
                parent,
                dir,
                fresh,
                made: Vec::new(),
                unit: None,
            },
            !complete,
        ))
    }

    fn prepare(&self, limits: &[Limit], threaded: bool) -> Result<()> {
        let events = Events::read(&self.dir).with_context(|| self.says("read cgroup.events"))?;
        if events.populated {
            let count = self.members()?.len();
            if count > 0 {
                bail!("container's cgroup is not empty: {count} process(es) found");
            }
        }
        // Also a fresh one is frozen when an ancestor is: a process cloned into it would never answer.
        if events.frozen {
            bail!("container's cgroup unexpectedly frozen");
        }
        if threaded || !self.fresh {
            make_usable(&self.parent, &self.dir, &self.path, limits)?;
        }
        self.set(limits)
    }

    /// Open the cgroup that systemd has just made for `unit`, and set the limits.
    fn adopt(hierarchy: &Hierarchy, path: &Path, unit: Unit, limits: &[Limit]) -> Result<Self> {
        let found = Self::open(hierarchy, path)?;
        let found = found
            .with_context(|| format!("systemd made no cgroup {} for the unit", path.display()))?;
        let wanted: Vec<String> = {
            let mut controllers: Vec<_> = limits
                .iter()
                .map(|limit| limit.controller().to_owned())
                .filter(|controller| controller != "cgroup")
                .collect();
            controllers.dedup();
            controllers
        };
        // systemd knows not all controllers (hugetlb, rdma), and does not mind who enables the others.
        if !lacking(&found.parent, &wanted).is_empty() {
            let names = names(path)?;
            let above = &names[..names.len().saturating_sub(1)];
            walk(hierarchy, path, above, wanted, limits, &mut Vec::new())?;
        }
        let cgroup = Self {
            fresh: true,
            unit: Some(unit),
            ..found
        };
        cgroup.set(limits)?;
        Ok(cgroup)
    }

    /// Open the cgroup at `path`; `None` where there is none.
    pub(crate) fn open(hierarchy: &Hierarchy, path: &Path) -> Result<Option<Self>> {
        let names = names(path)?;
        let (&name, above) = names
            .split_last()
            .context("the root of the hierarchy cannot be a container's cgroup")?;
        let at = above.iter().collect::<PathBuf>();
        let at = if above.is_empty() {
            Path::new(".")
        } else {
            at.as_path()
        };
        let found = open_dir(&hierarchy.root, at)
            .and_then(|parent| open_listable(&parent, name).map(|dir| (parent, dir)));
        match found {
            Ok((parent, dir)) => {
                let name = name.as_os_str().to_owned();
                Ok(Some(Self {
                    path: path.to_owned(),
                    name,
                    parent,
                    dir,
                    fresh: false,
                    made: Vec::new(),
                    unit: None,
                }))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("open cgroup {}", path.display())),
        }
    }

    /// Where it lies below the hierarchy, as an absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Write on the cgroup whose it is. A path may be used by another container after this one has ended.
    pub(crate) fn claim(&self, owner: &str) {
        let mark = |name| attribute::set(self.dir.as_fd(), name, owner.as_bytes());
        // A kernel that keeps no such attribute leaves the cgroup unmarked, which is not to be taken for foreign.
        mark(OWNER).or_else(|_| mark(USERS_OWNER)).ok();
    }

    /// Whose it is, when that is written on it.
    pub(crate) fn owner(&self) -> Option<Vec<u8>> {
        let mark = |name| attribute::get(self.dir.as_fd(), name);
        mark(OWNER).or_else(|_| mark(USERS_OWNER)).ok()
    }

    /// Remove the directory if nothing is in it.
    pub(crate) fn remove_if_empty(&self) {
        remove_dir(&self.parent, Path::new(&self.name)).ok();
    }

    /// The open directory, for `CLONE_INTO_CGROUP`; close-on-exec.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Why the kernel said that it is busy when a process was to come into it, where that can be seen.
    pub(crate) fn why_busy(&self) -> Option<String> {
        let enabled = read_short(&self.dir, "cgroup.subtree_control").ok()?;
        let enabled = words(&enabled).join(", ");
        // cgroups(7), the rule of no internal processes.
        (!enabled.is_empty()).then(|| {
            format!(
                "cgroup {} can hold no process: its cgroup.subtree_control enables {enabled} for cgroups below it",
                self.path.display()
            )
        })
    }

    /// Move a process into the cgroup.
    pub(crate) fn add(&self, pid: Pid) -> Result<()> {
        let mut attempts = 5;
        loop {
            match write_file(&self.dir, Path::new("cgroup.procs"), &pid.to_string()) {
                // A cgroup that has just become threaded refuses for a moment.
                Err(Errno::EINVAL) if attempts > 0 => {
                    attempts -= 1;
                    std::thread::sleep(Duration::from_millis(30));
                }
                result => {
                    return result.with_context(|| self.says(&format!("add process {pid} to")));
                }
            }
        }
    }

    /// Make cgroups below this one, give them to `owner` as [`Self::delegate`] does, and move a process into the last.
    pub(crate) fn hold(
        &self,
        hierarchy: &Hierarchy,
        below: &Path,
        pid: Pid,
        owner: Option<Uid>,
    ) -> Result<()> {
        let mut path = self.path.clone();
        let mut last = None;
        for name in below.components() {
            let dir = last.as_ref().map_or(&self.dir, |last: &Self| &last.dir);
            path.push(name);
            match mkdirat(dir, name.as_os_str(), Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(refusal(&path, errno)),
            }
            let made = Self::open(hierarchy, &path)?;
            let made = made.with_context(|| format!("open cgroup {}", path.display()))?;
            owner.map_or(Ok(()), |owner| made.delegate(owner))?;
            last = Some(made);
        }
        last.map_or(Ok(()), |last| last.add(pid))
    }

    /// Write limits, in order. An error leaves those before it in force.
    pub(crate) fn set(&self, limits: &[Limit]) -> Result<()> {
        limits.iter().try_for_each(|limit| self.set_one(limit))
    }

    fn set_one(&self, limit: &Limit) -> Result<()> {
        let file = limit.file.as_ref();
        let result = write_file(&self.dir, Path::new(file), &limit.value);
        let errno = match (&limit.need, result) {
            (_, Ok(()))
            | (Need::IfPresent, Err(Errno::ENOENT))
            | (Need::IfValid, Err(Errno::EINVAL)) => return Ok(()),
            (Need::Instead(file, value), Err(Errno::ENOENT)) => {
                return self.set_one(&Limit::new(*file, value));
            }
            (_, Err(errno)) => errno,
        };
        let shown = match limit.need {
            Need::Unified => format!("unified resource {file:?}"),
            _ => file.to_owned(),
        };
        let controller = limit.controller();
        let unavailable = || {
            controller != "cgroup"
                && read_short(&self.dir, "cgroup.controllers")
                    .is_ok_and(|all| !words(&all).iter().any(|c| c == controller))
        };
        if matches!(errno, Errno::ENOENT | Errno::EACCES | Errno::EPERM) && unavailable() {
            bail!(
                "{shown} can't be set: controller {controller:?} not available{}",
                self.why_not(controller)
            );
        }
        Err(errno).with_context(|| match limit.need {
            Need::Unified => format!("unable to set {shown} to {:?}", limit.value),
            _ => format!("set {shown} to {:?}", limit.value),
        })
    }

    /// Why a controller is not there, where the reason is not that nobody has it.
    fn why_not(&self, controller: &str) -> String {
        let has = |file: &str| {
            read_short(&self.parent, file)
                .is_ok_and(|all| words(&all).iter().any(|c| c == controller))
        };
        if has("cgroup.controllers") && !has("cgroup.subtree_control") {
            return in_the_way(&self.parent, &self.path);
        }
        String::new()
    }

    /// Put the device rules in force, in the place of those that may be there.
    ///
    /// Only the privileged may do so (CAP_SYS_ADMIN and CAP_BPF in the initial user namespace): a rootless caller leaves it.
    pub(crate) fn devices(&self, devices: &Devices) -> Result<()> {
        // systemd's program for a unit of its own is not ours to replace: it would put it there again.
        let old = if self.fresh {
            Vec::new()
        } else {
            bpf::device_programs(self.fd())
                .with_context(|| self.says("find the device programs of"))?
        };
        let mut outdated = old.as_slice();
        if let Some(instructions) = devices.program() {
            let program = bpf::load_device_program(c"pelagos_devices", instructions)?;
            // ORDER: the new program before the old ones go, so that there is no moment without rules.
            let attached = if let [single] = outdated {
                outdated = &[];
                bpf::replace_device_program(self.fd(), program.as_fd(), single.as_fd())
            } else {
                bpf::attach_device_program(self.fd(), program.as_fd())
            };
            attached.with_context(|| self.says("attach the device program to"))?;
        }
        for program in outdated {
            match bpf::detach_device_program(self.fd(), program.as_fd()) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => {
                    return Err(errno)
                        .with_context(|| self.says("detach an old device program from"));
                }
            }
        }
        Ok(())
    }

    /// Send SIGKILL to every process of the cgroup and of those below it, frozen ones and such that are just forking
    /// included (`cgroup.kill`, Linux 5.14). Does not wait for their end.
    pub(crate) fn kill(&self) -> Result<()> {
        match write_file(&self.dir, Path::new("cgroup.kill"), "1") {
            Err(Errno::EOPNOTSUPP) => self.kill_each(),
            Err(errno) if !is_gone(errno) => {
                Err(errno).with_context(|| self.says("kill the processes of"))
            }
            _ => Ok(()),
        }
    }

    /// A threaded cgroup cannot be killed at once. Its processes are stopped first, so that none forks meanwhile.
    fn kill_each(&self) -> Result<()> {
        self.freeze()?;
        self.signal(libc::SIGKILL).and(self.thaw())
    }

    /// Send `signal` to every process of the cgroup and of those below it; those that are forked meanwhile may miss it.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        // So many descriptors at once: a caller's limit is often 1024, and there may be more processes.
        const AT_ONCE: usize = 256;
        for pids in self.processes()?.chunks(AT_ONCE) {
            let open = |&pid: &Pid| match pidfd::open(pid) {
                Ok(process) => Some(Ok((pid, process))),
                Err(Errno::ESRCH) => None,
                Err(errno) => Some(Err(errno).with_context(|| format!("open process {pid}"))),
            };
            let opened: Vec<(Pid, OwnedFd)> =
                pids.iter().filter_map(open).collect::<Result<_>>()?;
            // ORDER: a pid may have gone to a stranger before it was opened. Who is on the list afterwards is no stranger.
            let members = self.processes()?;
            for (pid, process) in opened.iter().filter(|(pid, _)| members.contains(pid)) {
                match pidfd::send_signal(process, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => {
                        return Err(errno)
                            .with_context(|| format!("send signal {signal} to process {pid}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Stop every process of the cgroup and of those below it, and wait until they stand still. On failure they go on.
    pub(crate) fn freeze(&self) -> Result<()> {
        let done = self
            .set_freezer("1")
            .with_context(|| self.says("freeze"))
            .and_then(|()| {
                let deadline = Instant::now() + PATIENCE;
                match self
                    .wait_for(|events| events.frozen || !events.populated, deadline)
                    .with_context(|| self.says("freeze"))?
                {
                    true => Ok(()),
                    false => bail!(
                        "freeze cgroup {}: its processes did not stop within {} s",
                        self.path.display(),
                        PATIENCE.as_secs()
                    ),
                }
            });
        if done.is_err() {
            self.set_freezer("0").ok();
        }
        done
    }

    /// Let the processes of a frozen cgroup go on. One that is gone is done.
    pub(crate) fn thaw(&self) -> Result<()> {
        match self.set_freezer("0") {
            Err(errno) if !is_gone(errno) => Err(errno).with_context(|| self.says("thaw")),
            _ => Ok(()),
        }
    }

    fn set_freezer(&self, value: &str) -> nix::Result<()> {
        write_file(&self.dir, Path::new("cgroup.freeze"), value)
    }

    /// The processes of the cgroup and of those below it, by their pids in our pid namespace; those that have none there
    /// are left out.
    pub(crate) fn processes(&self) -> Result<Vec<Pid>> {
        // The kernel writes a pid that we cannot see as 0, which to kill(2) would mean our own process group.
        let visible = self.members()?.into_iter().filter(|&pid| pid != 0);
        Ok(visible.map(Pid::from_raw).collect())
    }

    /// Whether a process is in the cgroup or in one below it.
    pub(crate) fn is_populated(&self) -> Result<bool> {
        match Events::read(&self.dir) {
            Err(errno) if is_gone(errno) => Ok(false),
            other => other
                .map(|events| events.populated)
                .with_context(|| self.says("read cgroup.events of")),
        }
    }

    fn members(&self) -> Result<Vec<i32>> {
        // A path from a directory that is open, no longer than this and a name: a tree may be deeper than any path.
        const LONGEST: usize = 1024;
        let mut pids = Vec::new();
        let top = open_listable(&self.dir, Path::new(".")).map(Rc::new);
        let mut pending = match top {
            Ok(top) => vec![(top, PathBuf::from("."))],
            Err(errno) if is_gone(errno) => Vec::new(),
            Err(errno) => return Err(errno).with_context(|| self.says("list")),
        };
        while let Some((from, at)) = pending.pop() {
            let found = open_listable(&from, &at)
                .and_then(|dir| Ok((processes_of(&dir)?, children(&dir)?, dir)));
            let (found, names, dir) = match found {
                Ok(found) => found,
                Err(errno) if is_gone(errno) => continue,
                Err(errno) => return Err(errno).with_context(|| self.says("read cgroup.procs of")),
            };
            pids.extend(found);
            let (from, at) = match at.as_os_str().len() < LONGEST {
                true => (from, at),
                false => (Rc::new(dir), PathBuf::from(".")),
            };
            pending.extend(
                names
                    .into_iter()
                    .map(|name| (Rc::clone(&from), at.join(name))),
            );
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Give the cgroup to `owner`, the container's user as a host id: the directory and the files that the kernel lists
    /// in `/sys/kernel/cgroup/delegate`.
    pub(crate) fn delegate(&self, owner: Uid) -> Result<()> {
        let listed = std::fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap_or_else(|_| {
            "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".to_owned()
        });
        match fchown(&self.dir, Some(owner), None) {
            // A user may not give it to another one of the ids that are subordinate: the container sees it read-only.
            Err(Errno::EPERM) if !Uid::effective().is_root() => return Ok(()),
            other => other.with_context(|| self.says("delegate"))?,
        }
        for file in listed
            .lines()
            .filter(|file| !file.is_empty() && !file.contains('/'))
        {
            match fchownat(
                &self.dir,
                Path::new(file),
                Some(owner),
                None,
                AtFlags::AT_SYMLINK_NOFOLLOW,
            ) {
                // The files of controllers that are not enabled here.
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => {
                    return Err(errno).with_context(|| self.says(&format!("delegate {file} of")));
                }
            }
        }
        Ok(())
    }

    /// Remove the cgroup and those below it, as soon as the last process has left. One that is gone is done.
    pub(crate) fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match remove_dir(&self.parent, Path::new(&self.name)) {
                Ok(()) => return Ok(()),
                Err(Errno::EBUSY) => {}
                Err(errno) => return Err(errno).with_context(|| self.says("remove")),
            }
            let empty = self.wait_for(|events| !events.populated, deadline);
            if !empty.with_context(|| self.says("remove"))? {
                let count = self.members()?.len();
                bail!(
                    "remove cgroup {}: {count} process(es) still in it",
                    self.path.display()
                );
            }
            match prune(&self.dir) {
                Ok(true) => {}
                // Nothing is in the way and yet it cannot be removed; no event will tell when that is over.
                Ok(false) => std::thread::sleep(PAUSE),
                Err(errno) if is_gone(errno) => {}
                Err(errno) => return Err(errno).with_context(|| self.says("remove what is below")),
            }
            if Instant::now() >= deadline {
                bail!(
                    "remove cgroup {}: not done within {} s",
                    self.path.display(),
                    PATIENCE.as_secs()
                );
            }
        }
    }

    /// Take back what `create` did: remove the cgroup and the ancestors if they were made for it. For a container that
    /// could not be made; its processes must be on their way out.
    pub(crate) fn undo(&self) -> Result<()> {
        if let Some(unit) = &self.unit {
            unit.stop()?;
        }
        if self.fresh {
            self.remove()?;
        }
        remove_made(&self.made);
        Ok(())
    }

    /// Wait until the cgroup's events are as wanted, or the cgroup is gone. False when the deadline passes first.
    fn wait_for(&self, wanted: impl Fn(&Events) -> bool, deadline: Instant) -> nix::Result<bool> {
        let file = match open_file(&self.dir, Path::new("cgroup.events"), OFlag::O_RDONLY) {
            Ok(file) => file,
            Err(errno) if is_gone(errno) => return Ok(true),
            Err(errno) => return Err(errno),
        };
        loop {
            // ORDER: read, then poll: the kernel reports a change since the last read of this descriptor.
            let mut text = [0; 256];
            match pread(&file, &mut text, 0) {
                Ok(length) if wanted(&Events::parse(&text[..length])) => return Ok(true),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) if is_gone(errno) => return Ok(true),
                Err(errno) => return Err(errno),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // Rounded up, so that the last millisecond is not spent turning.
            let timeout =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(
                &mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)],
                timeout,
            ) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn says(&self, what: &str) -> String {
        format!("{what} cgroup {}", self.path.display())
    }
}

/// The content of `cgroup.events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Events {
    /// Whether there is a live process here or below.
    populated: bool,
    frozen: bool,
}

impl Events {
    fn read(dir: &OwnedFd) -> nix::Result<Self> {
        read_short(dir, "cgroup.events").map(|text| Self::parse(text.as_bytes()))
    }

    fn parse(text: &[u8]) -> Self {
        let has = |wanted: &[u8]| text.split(|&byte| byte == b'\n').any(|line| line == wanted);
        Self {
            populated: has(b"populated 1"),
            frozen: has(b"frozen 1"),
        }
    }
}

/// Go down to the parent of the cgroup, making what is missing and enabling the controllers on the way. Returns the
/// parent and whether everything that was wanted is enabled in it.
fn walk(
    hierarchy: &Hierarchy,
    path: &Path,
    above: &[&Path],
    wanted: Vec<String>,
    limits: &[Limit],
    made: &mut Vec<Made>,
) -> Result<(OwnedFd, bool)> {
    let open_error =
        |errno| Err(errno).with_context(|| format!("open the parent of cgroup {}", path.display()));
    let count = wanted.len();
    let mut dir = match open_dir(&hierarchy.root, Path::new(".")) {
        Ok(dir) => dir,
        Err(errno) => return open_error(errno),
    };
    let mut enabled = enable(&dir, wanted);
    let mut so_far = PathBuf::from("/");
    for &name in above {
        so_far.push(name);
        let next = match open_dir(&dir, name) {
            Err(Errno::ENOENT) => {
                match mkdirat(&dir, name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) => {
                        let parent = dir.try_clone().context("duplicate a descriptor")?;
                        made.push(Made {
                            parent,
                            name: name.as_os_str().to_owned(),
                        });
                    }
                    Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(refusal(&so_far, errno)),
                }
                open_dir(&dir, name)
            }
            found => found,
        };
        let next = match next {
            Ok(next) => next,
            Err(errno) => return open_error(errno),
        };
        if enabled.len() < count {
            make_usable(&dir, &next, &so_far, limits)?;
        }
        dir = next;
        enabled = enable(&dir, enabled);
    }
    Ok((dir, enabled.len() == count))
}

/// Enable controllers for the children of a cgroup. Returns those that are enabled then; a controller that cannot be is
/// no error here, since perhaps no limit needs it.
fn enable(dir: &OwnedFd, wanted: Vec<String>) -> Vec<String> {
    let control = Path::new("cgroup.subtree_control");
    let mut missing = lacking(dir, &wanted);
    if !missing.is_empty() && write_file(dir, control, &format!("+{}", missing.join(" +"))).is_err()
    {
        for controller in &missing {
            write_file(dir, control, &format!("+{controller}")).ok();
        }
        missing = lacking(dir, &wanted);
    } else {
        missing.clear();
    }
    wanted
        .into_iter()
        .filter(|controller| !missing.contains(controller))
        .collect()
}

/// Which of the wanted controllers are not enabled for the children of a cgroup.
fn lacking(dir: &OwnedFd, wanted: &[String]) -> Vec<String> {
    let enabled = words(&read_short(dir, "cgroup.subtree_control").unwrap_or_default());
    wanted
        .iter()
        .filter(|controller| !enabled.contains(controller))
        .cloned()
        .collect()
}

/// Make a cgroup able to hold processes where it lies below a threaded one. There no domain controller can be enabled,
/// so nobody needs to ask where all are.
fn make_usable(parent: &OwnedFd, dir: &OwnedFd, path: &Path, limits: &[Limit]) -> Result<()> {
    let mode = read_short(dir, "cgroup.type")
        .with_context(|| format!("read cgroup.type of {}", path.display()))?;
    let needs_domain = limits.iter().any(Limit::needs_domain);
    match (mode.trim_end(), needs_domain) {
        ("domain invalid", true) => {
            bail!(
                "cannot enter cgroupv2 {:?} with domain controllers -- it is in an invalid state{}",
                path.display().to_string(),
                in_the_way(parent, path)
            )
        }
        ("domain invalid", false) => write_file(dir, Path::new("cgroup.type"), "threaded")
            .with_context(|| format!("make cgroup {} threaded", path.display())),
        (mode @ ("domain threaded" | "threaded"), true) => {
            bail!(
                "cannot enter cgroupv2 {:?} with domain controllers -- it is in {mode} mode",
                path.display().to_string()
            )
        }
        _ => Ok(()),
    }
}

/// cgroups(7), the rule of no internal processes: that the parent of the cgroup at `path` holds some, if it does.
fn in_the_way(parent: &OwnedFd, path: &Path) -> String {
    if processes_of(parent).is_ok_and(|processes| !processes.is_empty()) {
        let parent = path.parent().unwrap_or(Path::new("/"));
        return format!(": cgroup {} holds processes itself", parent.display());
    }
    String::new()
}

/// Remove the cgroups below `top`, each after those below it. Returns whether any is gone now.
///
/// Holds few directories open however deep the tree is, since a container may have made it as deep as it liked: what lies
/// above the last of them is left to another call.
fn prune(top: &OwnedFd) -> nix::Result<bool> {
    const TRAIL: usize = 64;
    let below = |dir: &OwnedFd, name: &OsStr| {
        let dir = open_listable(dir, Path::new(name))?;
        let names = children(&dir)?;
        Ok((dir, names))
    };
    let mut removed = false;
    let mut trail = VecDeque::from([below(top, OsStr::new("."))?]);
    while let Some((dir, names)) = trail.back_mut() {
        let Some(name) = names.last() else {
            // Its last child is gone: now its own turn comes, as the last of its parent's.
            trail.pop_back();
            if let Some((parent, names)) = trail.back_mut()
                && let Some(name) = names.pop()
            {
                match remove_dir(parent, Path::new(&name)) {
                    Ok(()) => removed = true,
                    // A process is in it, or it has got a child.
                    Err(Errno::EBUSY) => {}
                    Err(errno) => return Err(errno),
                }
            }
            continue;
        };
        match remove_dir(dir, Path::new(name)) {
            Ok(()) => {
                removed = true;
                names.pop();
            }
            Err(Errno::EBUSY) => match below(dir, name) {
                Ok(next) => {
                    trail.push_back(next);
                    if trail.len() > TRAIL {
                        trail.pop_front();
                    }
                }
                Err(errno) if is_gone(errno) => drop(names.pop()),
                Err(errno) => return Err(errno),
            },
            Err(errno) => return Err(errno),
        }
    }
    Ok(removed)
}

/// Remove directories that were made, innermost first. Another container may use one by now: it stays.
fn remove_made(made: &[Made]) {
    for Made { parent, name } in made.iter().rev() {
        remove_dir(parent, Path::new(name)).ok();
    }
}

/// Remove a cgroup that has none below it; one that is gone is done.
fn remove_dir(parent: &OwnedFd, name: &Path) -> nix::Result<()> {
    lift_rdma_limits(parent, name);
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

/// A cgroup that is removed with limits of an RDMA device in force leaves them to the device, and the kernel falls over them
/// when that goes (Linux 6.12; a repair was posted in June 2026). Best effort: most have no such file.
fn lift_rdma_limits(parent: &OwnedFd, name: &Path) {
    let file = name.join("rdma.max");
    let Ok(limits) = read_long(parent, &file) else {
        return;
    };
    for line in limits.lines() {
        if let Some((device, limits)) = line.split_once(' ')
            && limits.split_whitespace().any(|l| !l.ends_with("=max"))
        {
            let none = format!("{device} hca_handle=max hca_object=max");
            write_file(parent, &file, &none).ok();
        }
    }
}

fn refusal(path: &Path, errno: Errno) -> anyhow::Error {
    match errno {
        Errno::EACCES | Errno::EPERM | Errno::EROFS => Refused {
            path: path.to_owned(),
            errno,
        }
        .into(),
        _ => anyhow!(errno).context(format!("make cgroup {}", path.display())),
    }
}

/// Lock a cgroup in which a container is to be made, until it is: before that nothing in it tells of the container. Another
/// one that is made there now is waited for; then there is a process in it, or there is not.
fn only_ours(dir: OwnedFd) -> nix::Result<OwnedFd> {
    let dir = File::from(dir);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match dir.try_lock() {
            Ok(()) => return Ok(dir.into()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => return Err(Errno::EWOULDBLOCK),
            Err(TryLockError::Error(error)) => {
                return Err(Errno::from_raw(error.raw_os_error().unwrap_or(0)));
            }
        }
    }
}

/// Whether an error says that the cgroup has been removed: its files are gone, or dead where they are open.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENODEV)
}

fn open_at(dir: impl AsFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(
        dir,
        path,
        OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(resolve),
    )
}

/// A directory to open others from.
fn open_dir(dir: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    open_at(dir, path, OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// A directory to list, to attach programs to and to clone into.
fn open_listable(dir: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    open_at(dir, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

fn open_file(dir: &OwnedFd, name: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    open_at(dir, name, flags)
}

/// One write(2) of the whole value, as the kernel wants it.
fn write_file(dir: &OwnedFd, name: &Path, value: &str) -> nix::Result<()> {
    let file = open_file(dir, name, OFlag::O_WRONLY)?;
    write(&file, value.as_bytes()).map(drop)
}

/// The content of a file that the kernel fills at once: all but lists of processes.
fn read_short(dir: &OwnedFd, name: &str) -> nix::Result<String> {
    let file = open_file(dir, Path::new(name), OFlag::O_RDONLY)?;
    let mut text = [0; 4096];
    let length = read(&file, &mut text)?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

fn read_long(dir: &OwnedFd, name: impl AsRef<Path>) -> nix::Result<String> {
    let file = open_file(dir, name.as_ref(), OFlag::O_RDONLY)?;
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        match read(&file, &mut part) {
            Ok(0) => return Ok(String::from_utf8_lossy(&text).into_owned()),
            Ok(length) => text.extend_from_slice(&part[..length]),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// The processes of one cgroup alone. A threaded one has no list of processes: there it is those of its threads.
fn processes_of(dir: &OwnedFd) -> nix::Result<Vec<i32>> {
    let numbers =
        |text: String| -> Vec<i32> { text.lines().filter_map(|line| line.parse().ok()).collect() };
    match read_long(dir, "cgroup.procs") {
        Err(Errno::EOPNOTSUPP) => {
            let threads = numbers(read_long(dir, "cgroup.threads")?);
            Ok(threads.into_iter().filter_map(process_of_thread).collect())
        }
        list => list.map(numbers),
    }
}

fn process_of_thread(thread: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}

/// The names of the cgroups directly below.
fn children(dir: &OwnedFd) -> nix::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::from_fd(open_listable(dir, Path::new("."))?)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if entry.file_type() == Some(Type::Directory) && name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_by_name() {
        for (text, populated, frozen) in [
            ("populated 0\nfrozen 0\n", false, false),
            ("populated 1\nfrozen 0\n", true, false),
            ("frozen 1\nother 1\npopulated 1\n", true, true),
            ("", false, false),
        ] {
            assert_eq!(
                Events::parse(text.as_bytes()),
                Events { populated, frozen },
                "{text:?}"
            );
        }
    }

    #[test]
    fn without_permission_only_a_container_that_asks_for_nothing_goes_on() {
        let refused = refusal(Path::new("/web"), Errno::EACCES);
        let refused = refused.downcast_ref::<Refused>().unwrap();
        assert!(refused.without_cgroup(false, false).is_ok());
        let words = |path, limits| {
            refused
                .without_cgroup(path, limits)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            words(true, true),
            "unable to apply cgroup configuration: make cgroup /web: permission denied",
        );
        assert_eq!(
            words(false, true),
            "rootless needs no limits + no cgrouppath when no permission is granted for cgroups: \
             make cgroup /web: permission denied",
        );
        assert!(refusal(Path::new("/web"), Errno::EPERM).is::<Refused>());
        assert!(refusal(Path::new("/web"), Errno::EROFS).is::<Refused>());
        assert!(!refusal(Path::new("/web"), Errno::ENOSPC).is::<Refused>());
    }
}
