//! `restore`: a container from the images of a checkpoint, and the bundle that it was made from.
//!
//! CRIU makes its processes; the cgroup, the record and what comes after are as for any other container. CRIU is started
//! in a mount namespace of its own, where the root file system is a mount and every mount point is there.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxNamespaceType as Kind;

use super::RunOptions;
use super::checkpoint::{
    DESCRIPTORS, Images, NET, NULL, Open, PID, external_mounts, mount_name, needs_root,
};
use super::copying;
use super::create::{Claim, Draft, clean_up};
use super::foreground;
use super::readiness;
use super::state::{Locked, Record};
use crate::criu::{self, Ask, CHANGES_LABELS, Notice, Options, Switch, Worker};
use crate::launch::{self, Request, Restored, Stdio};
use crate::plan::Plan;
use crate::plan::mounts::{Link, What, c_path};
use crate::plan::namespaces::name;
use crate::report::debug;
use crate::sys::fd;
use crate::sys::mount::{self, Change, Reach};
use crate::sys::path::{Kind as Target, ensure, ensure_unfollowed};
use crate::sys::seal;

/// What `restore` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct RestoreOptions {
    pub(crate) run: RunOptions,
    pub(crate) images: Images,
    /// Another security label for the processes, `TYPE:NAME`.
    pub(crate) lsm_profile: Option<String>,
    /// Another SELinux context for mounts that have one.
    pub(crate) lsm_mount_context: Option<String>,
}

/// Makes a container from the images of a checkpoint; its processes go on where they were. Unless detached, waits for its
/// end; returns the exit code.
///
/// # Errors
/// One line that names the field, path or step; nothing is left behind, and the images are as they were.
pub(crate) fn restore(options: &RestoreOptions) -> Result<u8> {
    needs_root("restore")?;
    // ORDER: it may execute this program again, which need not ask CRIU twice.
    seal::ensure().context("protect the own executable file")?;
    let run = &options.run;
    let version = criu::version()?;
    for (given, option) in [
        (&options.lsm_profile, "--lsm-profile"),
        (&options.lsm_mount_context, "--lsm-mount-context"),
    ] {
        // COMPAT: runc's words.
        if given.is_some() && version < CHANGES_LABELS {
            bail!("{option} requires at least CRIU 3.16");
        }
    }
    let images = Open::existing(&options.images)?;
    let draft = ManuallyDrop::new(Draft::new(&run.create, run.detach)?);
    let signals = (!run.detach)
        .then(|| super::create::attend(run))
        .transpose()?;
    let (streams, copying) = draft.streams(run.detach)?;
    let made = draft.restore(options, &images, &streams);
    // Or their end would never be seen.
    drop(streams);
    let Made {
        locked,
        record,
        restored,
        console,
        pid,
    } = match (made, &signals) {
        (Err(error), Some(signals)) => {
            // CRIU, which had the payload's streams, may have said what was wrong.
            foreground::drain(copying, signals);
            return Err(error);
        }
        (made, _) => made?,
    };
    let pidfd = restored.keep().context("the container's process is gone")?;
    drop(locked);
    let Some(signals) = signals else { return Ok(0) };
    if let Some(master) = &console {
        copying::follow(master.as_fd());
    }
    let copying = copying.with_terminal(console)?;
    let ended = foreground::wait(pid, pidfd, copying, &signals, None)?;
    clean_up(run, &record, ended, &signals)
}

/// A container that runs again, on record. Dropped, it is undone.
struct Made {
    // ORDER: fields are dropped in this order, the process and its cgroup before the record of them.
    restored: Restored,
    /// The master of the payload's terminal, unless it was sent away.
    console: Option<OwnedFd>,
    pid: Pid,
    record: Record,
    locked: Locked,
}

impl Draft<'_> {
    fn restore(&self, options: &RestoreOptions, images: &Open, streams: &Stdio) -> Result<Made> {
        let cache = launch::cache_directory(&self.options.root);
        // The filter that was loaded is in the images.
        let prepared = launch::prepare(&self.plan, None, &cache)?;
        let claim = Claim::new(self.options)?;
        let dir = claim.dir();
        let mut record = self.intent();
        if let Some(rdt) = prepared.rdt() {
            record.intel_rdt_path = Some(rdt.path());
            record.rdt = Some(rdt.traces());
        }
        // ORDER: as for a new container, before the first side effect.
        dir.save(&record)?;
        dir.freeze_config(&self.bundle.raw)?;
        if self.notify {
            readiness::make_directory(dir)?;
        }
        let mark = record.mark();
        let state = |status: &str, pid: i32| self.state(status, pid);
        let request = Request {
            plan: &self.plan,
            hierarchy: &self.hierarchy,
            place: &self.place,
            state: &state,
            rootless: self.rootless,
            lock: dir.as_fd(),
            mark: &mark,
            streams,
        };

        let root = dir.path().join(ROOT);
        std::fs::create_dir(&root).with_context(|| format!("make {}", root.display()))?;
        let (mut worker, mut asked, _open) = with_root(&self.plan, &root, || {
            // KERNEL: what CRIU mounts below these directories has to be of its own mount namespace.
            let images = Open::existing(&options.images)?;
            let (asked, namespaces) = self.ask(options, &images, &root)?;
            let inherited: Vec<&OwnedFd> =
                images.inherited().into_iter().chain(&namespaces).collect();
            let worker = Worker::start(&inherited, Some(streams))?;
            // It looks for the directories among this process's descriptors.
            Ok((worker, asked, images))
        })?;
        let mut restored = launch::house(&request, prepared, worker.pid())?;
        if let Some(cgroup) = restored.cgroup() {
            asked.cgroup_root(cgroup)?;
        }
        let mut console = None;
        let mut init = None;
        let answer = |notice: Notice| match (notice.what.as_str(), notice.pid, notice.master) {
            ("setup-namespaces", Some(pid), _) => {
                let new_network = self.plan.namespaces.is_new(Kind::Network);
                restored.prepare(pid, new_network, &|status| self.state(status, pid.as_raw()))
            }
            ("orphan-pts-master", _, Some(master)) => {
                match &self.console {
                    // COMPAT: runc's name for it.
                    Some(socket) => {
                        fd::send(socket.as_fd(), b"orphan-pts-master", &[master.as_raw_fd()])
                            .context("send the terminal to the console socket")?;
                    }
                    None => console = Some(master),
                }
                Ok(())
            }
            ("post-restore", Some(pid), _) => {
                init = Some(pid);
                let has_cgroup = restored.cgroup().is_some();
                let pidfd = restored.take(pid)?;
                self.put_process_on_record(
                    dir,
                    &mut record,
                    (pid, pidfd.as_fd()),
                    has_cgroup,
                    streams,
                )
            }
            _ => Ok(()),
        };
        let worked = worker
            .work(Ask::Restore, &asked, answer)
            .map_err(|error| images.explain(error));
        std::fs::remove_dir(&root).with_context(|| format!("remove {}", root.display()))?;
        if let Err(error) = worked {
            // ORDER: before the worker, which is waited for.
            drop(restored);
            return Err(self.after_failure(error, &record));
        }
        let pid = init.context("criu has restored no process")?;
        debug!("container {} is restored, process {pid}", self.options.id);
        Ok(Made {
            restored,
            console,
            pid,
            record,
            locked: claim.keep(),
        })
    }

    /// What CRIU is asked, but for the cgroup; and namespaces that it inherits for it.
    fn ask(
        &self,
        options: &RestoreOptions,
        images: &Open,
        root: &Path,
    ) -> Result<(Options, Vec<OwnedFd>)> {
        let mut asked = images.options(&options.images, "restore.log", &self.annotations);
        asked
            .root(root)?
            .switch(Switch::EvasiveDevices, true)
            // Its parent is then this process, which waits for it.
            .switch(Switch::RstSibling, true);
        if let Some(profile) = &options.lsm_profile {
            asked.lsm_profile(profile);
        }
        if let Some(context) = &options.lsm_mount_context {
            asked.lsm_mount_context(context);
        }
        for (name, source) in self.sources()? {
            let source = source.to_str().with_context(|| {
                format!(
                    "mounts: {}: not text, which CRIU takes alone",
                    source.display()
                )
            })?;
            asked.external_mount(&name, source);
        }
        let namespaces = self.namespaces(&mut asked)?;
        let streams: Vec<String> = serde_json::from_slice(&images.read(DESCRIPTORS)?)
            .with_context(|| format!("read {DESCRIPTORS}"))?;
        for (number, stream) in (0..3).zip(&streams) {
            // A pipe of the old caller's: the worker's own stream takes its place.
            if stream.contains("pipe:") {
                asked.inherit(stream, number);
            }
        }
        Ok((asked, namespaces))
    }

    /// What the names of mounts in the images mean.
    fn sources(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut sources: Vec<(String, PathBuf)> = Vec::new();
        let masks = (!self.plan.masked.is_empty()).then(|| (NULL.to_owned(), PathBuf::from(NULL)));
        for (destination, source) in external_mounts(&self.bundle)?.into_iter().chain(masks) {
            let name = mount_name(Path::new(&destination))?;
            match sources.iter().find(|(known, _)| *known == name) {
                None => sources.push((name, source)),
                Some((_, other)) if *other == source => {}
                // CVE-2026-119101: a name means one thing.
                Some((_, other)) => bail!(
                    "mounts: {} and {} both belong at {name}, and CRIU cannot tell them apart",
                    other.display(),
                    source.display()
                ),
            }
        }
        Ok(sources)
    }

    /// Namespaces that the configuration names by path: those of the network and of pids are inherited, others joined.
    fn namespaces(&self, asked: &mut Options) -> Result<Vec<OwnedFd>> {
        let linux = self.bundle.spec.linux().as_ref();
        let all = linux.and_then(|linux| linux.namespaces().as_ref());
        let mut inherited = Vec::new();
        for namespace in all.into_iter().flatten() {
            let Some(path) = namespace.path() else {
                continue;
            };
            let kind = namespace.typ();
            let key = match kind {
                Kind::Network => NET,
                Kind::Pid => PID,
                Kind::Cgroup => bail!(
                    "linux.namespaces: CRIU cannot restore a container into a cgroup namespace of others"
                ),
                _ => {
                    asked.join(name(kind), path)?;
                    continue;
                }
            };
            let file = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                // COMPAT: runc's words.
                .map_err(|_| {
                    anyhow!(
                        "Requested {} namespace {} does not exist",
                        name(kind),
                        path.display()
                    )
                })?;
            asked.inherit(key, file.as_raw_fd());
            inherited.push(file);
        }
        Ok(inherited)
    }
}

/// Below the state directory: where the root file system is mounted for CRIU.
const ROOT: &str = "criu-root";

/// Do something in a mount namespace where the root file system is mounted at `at`, and its mount points are there.
///
/// CRIU wants a mount there, and finds what it is to bind by its path in this namespace. Nobody else sees any of it.
fn with_root<T>(plan: &Plan, at: &Path, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let namespace = open(
        "/proc/self/ns/mnt",
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .context("open the mount namespace")?;
    let directory = std::env::current_dir().context("look at the current directory")?;
    // A first namespace for what is in the way of CRIU afterwards: the bind mounts, which may hold mount points.
    let acted = own_mounts(plan, at)
        .and_then(|root| mount_points(plan, &root))
        .and_then(|()| {
            setns(&namespace, CloneFlags::CLONE_NEWNS).context("leave a mount namespace")
        })
        .and_then(|()| own_mounts(plan, at))
        .and_then(|_root| act());
    setns(&namespace, CloneFlags::CLONE_NEWNS).context("leave a mount namespace")?;
    std::env::set_current_dir(directory).context("go back to the bundle's directory")?;
    acted
}

/// A mount namespace of this process's own, with the root file system mounted at `at`, which is returned.
fn own_mounts(plan: &Plan, at: &Path) -> Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let mounting = || format!("mount {} at {}", plan.root.path.display(), at.display());
    let mounted = || {
        // Not private: a mount that followed one of the host's gets from here what it is to follow again.
        let slave = Change::propagation(nix::libc::MS_SLAVE);
        mount::change_path(c"/", Reach::Tree, slave)?;
        let source = c_path(&plan.root.path).map_err(|_| Errno::EINVAL)?;
        let tree = mount::clone_tree(AT_FDCWD, &source, Reach::Tree)?;
        let at = c_path(at).map_err(|_| Errno::EINVAL)?;
        mount::attach_path(tree.as_fd(), &at)?;
        Ok::<_, Errno>(tree)
    };
    mounted().with_context(mounting)
}

/// Make the mount points that are missing, as they were made for the container at first. Bind mounts are made for that
/// with all their attributes, so that nothing is ever written through one that is read-only.
fn mount_points(plan: &Plan, root: &OwnedFd) -> Result<()> {
    for op in &plan.mounts {
        let on_tmpfs = plan.mounts.iter().any(|other| {
            other.what.is_tmpfs()
                && other.untrusted_target != op.untrusted_target
                && op.untrusted_target.starts_with(&other.untrusted_target)
        });
        // CRIU restores what is in a tmpfs, and the mount points of the kernel's own file systems come with them.
        if on_tmpfs || matches!(op.what, What::Cgroup { .. } | What::Remount { .. }) {
            continue;
        }
        let failed = || {
            format!(
                "create criu restore mountpoint for {} mount",
                op.destination()
            )
        };
        let What::Bind {
            source,
            reach,
            link,
        } = &op.what
        else {
            ensure(root.as_fd(), &op.untrusted_target, Target::Directory).with_context(failed)?;
            continue;
        };
        let (found, clone): (_, fn(&Path, _, _) -> _) = match link {
            Link::Followed => (std::fs::metadata(source), mount::bind),
            Link::Itself | Link::Copied => (std::fs::symlink_metadata(source), mount::bind_link),
        };
        let found = found.with_context(failed)?;
        let kind = match found.is_dir() {
            true => Target::Directory,
            false => Target::File,
        };
        if found.is_symlink() && *link == Link::Copied {
            continue;
        }
        let tree = clone(source, *reach, op.change).with_context(failed)?;
        if !op.recursive.is_none() {
            mount::change(tree.as_fd(), Reach::Tree, op.recursive).with_context(failed)?;
        }
        let make = match op.over_link {
            true => ensure_unfollowed,
            false => ensure,
        };
        let (target, _) = make(root.as_fd(), &op.untrusted_target, kind).with_context(failed)?;
        mount::attach(tree.as_fd(), target.as_fd()).with_context(failed)?;
    }
    Ok(())
}
