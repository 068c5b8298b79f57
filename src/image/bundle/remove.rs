//! The end of bundles: removed on request, after a run, or as what a killed run left behind.
//!
//! The bundles of `run` stand in the store as `bundles/ID`, each locked by the command that made it and by the runtime it
//! started, for as long as either lives. One whose lock is free, whose container does not exist and which nobody wanted to
//! keep is a leftover.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, OFlag, fcntl, open, openat};
use nix::sys::stat::{Mode, fstat, lstat, mkdirat};

use crate::report::{self, Hinted, debug};
use crate::sys::path::open_no_links;

use super::super::containers::{Containers, RuntimeRoots};
use super::super::mounts;
use super::super::store::{BundleRecord, Store, entries, remove_tree};
use super::overlay;

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// A file in the directory of a run that is to stay.
const KEPT: &str = "kept";

/// The registered bundle at `path`, which may be gone by now.
pub(crate) fn by_path(store: &Store, path: &Path) -> Result<Option<BundleRecord>> {
    let mut spellings: Vec<PathBuf> = Vec::new();
    spellings.extend(path.canonicalize());
    spellings.extend(super::new_path(path));
    spellings.extend(std::path::absolute(path));
    let records = store.bundle_records()?;
    Ok(records
        .into_iter()
        .find(|record| spellings.contains(&record.path)))
}

/// Remove the bundle of `record`: its mount, its tree, and the record last. The bytes that became free.
///
/// # Errors
/// A container of it exists and `force` is not given, or something cannot be removed; then the record stays.
pub(crate) fn remove(
    store: &Store,
    containers: &Containers,
    record: &BundleRecord,
    force: bool,
) -> Result<u64> {
    let context = || format!("bundle {}", record.path.display());
    let users: Vec<&str> = containers
        .of_bundle(&record.path)
        .map(|container| container.id.as_str())
        .collect();
    if !users.is_empty() {
        let message = format!(
            "bundle {}: container {} is made from it",
            record.path.display(),
            users.join(", ")
        );
        if !force {
            let hint = "delete the container first, or remove the bundle all the same with --force";
            return Err(Hinted::new(message, hint).into());
        }
        report::warn(format_args!("{message}"));
    }
    let freed = remove_directory(record, force).with_context(context)?;
    let _index = store.index_lock()?;
    // What it used was in use until now.
    store.renew(&used_keys(record))?;
    store.remove_bundle_record(&record.id)?;
    Ok(freed)
}

/// What the bundle uses, as records/used.json names it.
fn used_keys(record: &BundleRecord) -> Vec<String> {
    let blobs = [&record.manifest, &record.config]
        .into_iter()
        .chain(&record.layers)
        .map(|digest| format!("blob:{digest}"));
    let layers = record.chain.iter().map(|chain| format!("layer:{chain}"));
    let volumes = record.volumes.iter().map(|name| format!("volume:{name}"));
    let image = record.image_name.iter().map(|name| format!("image:{name}"));
    blobs.chain(layers).chain(volumes).chain(image).collect()
}

fn remove_directory(record: &BundleRecord, force: bool) -> Result<u64> {
    let (Some(parent), Some(name)) = (record.path.parent(), record.path.file_name()) else {
        bail!("its record names no directory");
    };
    let root = open("/", DIRECTORY, Mode::empty())?;
    // Links on the way were resolved when it was made: one there now leads to somebody else's.
    let parent = match open_no_links(root.as_fd(), parent, DIRECTORY) {
        Ok(parent) => parent,
        Err(Errno::ENOENT) if force => return Ok(0),
        Err(Errno::ENOENT) => {
            let hint = "is its disk mounted? --force forgets the bundle";
            return Err(Hinted::new("the directory around it is gone", hint).into());
        }
        Err(errno) => return Err(errno.into()),
    };
    if fstat(&parent)?.st_dev != record.parent_device && !force {
        let hint = "is its disk mounted? --force removes what is there";
        return Err(Hinted::new("it was made on another disk than is there now", hint).into());
    }
    overlay::unmount(&record.path.join("rootfs"))?;
    remove_tree(parent.as_fd(), name)
}

/// The directory of a run, ours alone as long as this or a process that inherited it lives.
pub(crate) struct Claim {
    pub(crate) path: PathBuf,
    dir: Flock<File>,
}

impl Claim {
    /// Let the next program that is started share the lock.
    pub(crate) fn share(&self) -> Result<()> {
        fcntl(&*self.dir, FcntlArg::F_SETFD(FdFlag::empty()))
            .map(drop)
            .with_context(|| format!("share the lock of {}", self.path.display()))
    }

    /// Let no sweep remove it.
    pub(crate) fn keep(&self) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC;
        openat(&*self.dir, KEPT, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map(drop)
            .with_context(|| format!("keep {}", self.path.display()))
    }
}

/// Hold the directory of a bundle that is being made, so that no sweep takes it for a leftover.
///
/// # Errors
/// Another command makes one there.
pub(super) fn hold(path: &Path) -> Result<Flock<File>> {
    let dir = open(path, DIRECTORY, Mode::empty())
        .with_context(|| format!("open directory {}", path.display()))?;
    Flock::lock(File::from(dir), FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        anyhow::Error::new(errno).context(format!("lock directory {}", path.display()))
    })
}

fn all_runs(store: &Store) -> Result<OwnedFd> {
    match mkdirat(store.dir(), "bundles", Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => store.subdirectory("bundles"),
        Err(errno) => Err(errno)
            .with_context(|| format!("make directory {}", store.root().join("bundles").display())),
    }
}

/// Make the directory of the run `id`.
///
/// # Errors
/// Another run has that id, or had it and was kept.
pub(crate) fn claim(store: &Store, id: &str) -> Result<Claim> {
    let path = store.root().join("bundles").join(id);
    let path = path.canonicalize().unwrap_or(path);
    let context = || format!("make directory {}", path.display());
    let runs = all_runs(store)?;
    loop {
        match mkdirat(&runs, id, Mode::S_IRWXU) {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                let hint = "`rm` removes one that was kept; --name chooses another id";
                let message = format!("{}: there is such a bundle already", path.display());
                return Err(Hinted::new(message, hint).into());
            }
            Err(errno) => return Err(errno).with_context(context),
        }
        let dir = match openat(&runs, id, DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(errno).with_context(context),
        };
        let dir = Flock::lock(File::from(dir), FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .with_context(context)?;
        // Between its making and its lock a sweep may have taken it for a leftover.
        if fstat(&*dir).with_context(context)?.st_nlink > 0 {
            // As the kernel names it: what the runtime will write into its state.
            let path = nix::fcntl::readlink(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_str())
                .with_context(context)?;
            return Ok(Claim {
                path: path.into(),
                dir,
            });
        }
    }
}

/// Remove what killed commands left: unfinished bundles, bundles of runs, and their records. What cannot be removed is for the next sweep.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn sweep(store: &Store, roots: &RuntimeRoots) -> Result<()> {
    for record in store.bundle_records()? {
        if record.unfinished
            && let Err(error) = sweep_unfinished(store, roots, &record)
        {
            debug!("{} stays: {error:#}", record.path.display());
        }
    }
    for name in runs(store)? {
        if let Err(error) = sweep_run(store, roots, &name) {
            debug!("bundles/{name} stays: {error:#}");
        }
    }
    // A command that was killed between the two last steps of a removal.
    for record in store.bundle_records()? {
        if record.passing
            && let Err(Errno::ENOENT) = lstat(&record.path)
            && let Err(error) = forget(store, roots, &record)
        {
            debug!("the record of {} stays: {error:#}", record.path.display());
        }
    }
    Ok(())
}

/// Remove the record of a run whose directory is gone.
fn forget(store: &Store, roots: &RuntimeRoots, record: &BundleRecord) -> Result<()> {
    let containers = Containers::read(&roots.with(record.state_root.clone()))?;
    remove(store, &containers, record, false).map(drop)
}

/// The names of the bundles that stand in the store.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn runs(store: &Store) -> Result<Vec<String>> {
    let runs = match store.subdirectory("bundles") {
        Ok(runs) => runs,
        Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = entries(runs.as_fd())?.into_iter();
    // Ids are ASCII: another name is not ours.
    Ok(names.filter_map(|name| name.into_string().ok()).collect())
}

/// A bundle whose command may still be at work on it, which then holds it.
fn sweep_unfinished(store: &Store, roots: &RuntimeRoots, record: &BundleRecord) -> Result<()> {
    let _dead = hold(&record.path)?;
    // ORDER: after the lock, since until then it may have been finished.
    let records = store.bundle_records()?;
    let Some(record) = records
        .iter()
        .find(|now| now.id == record.id && now.unfinished)
    else {
        return Ok(());
    };
    debug!("remove unfinished {}", record.path.display());
    remove(store, &Containers::read(roots)?, record, false).map(drop)
}

/// What a killed run left in the store.
struct Leftover {
    path: PathBuf,
    record: Option<BundleRecord>,
    containers: Containers,
    /// Nobody begins to use it.
    _alone: Flock<File>,
}

/// The bundle `name` of a run, if it is a leftover.
fn leftover(store: &Store, roots: &RuntimeRoots, name: &str) -> Result<Option<Leftover>> {
    let runs = store.subdirectory("bundles")?;
    let dir = match open_no_links(runs.as_fd(), Path::new(name), DIRECTORY) {
        Err(Errno::ENOENT) => return Ok(None),
        dir => dir?,
    };
    let Ok(dir) = Flock::lock(File::from(dir), FlockArg::LockExclusiveNonblock) else {
        return Ok(None);
    };
    // Until it was locked, another command may have removed it.
    if fstat(&*dir)?.st_nlink == 0 {
        return Ok(None);
    }
    let path: PathBuf =
        nix::fcntl::readlink(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_str())?.into();
    let kept = nix::sys::stat::fstatat(&*dir, KEPT, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW);
    if kept != Err(Errno::ENOENT) {
        return Ok(None);
    }
    // ORDER: after the lock. While a runtime holds it, a container may come into being.
    let mut records = store.bundle_records()?.into_iter();
    let record = records.find(|record| record.path == path);
    let own = record.as_ref().and_then(|record| record.state_root.clone());
    let containers = Containers::read(&roots.with(own))?;
    // Of another runtime's container the mounts are all that can be seen.
    let is_used = containers.of_bundle(&path).next().is_some()
        || mounts::mounted()?.stands_on(dir.as_fd(), &path)?;
    Ok((!is_used).then_some(Leftover {
        path,
        record,
        containers,
        _alone: dir,
    }))
}

/// Whether the bundle `name` of a run is what a killed command left.
///
/// # Errors
/// Its container, or what is mounted, cannot be looked at.
pub(crate) fn is_leftover(store: &Store, roots: &RuntimeRoots, name: &str) -> Result<bool> {
    leftover(store, roots, name).map(|found| found.is_some())
}

/// Remove the bundle `name` of a run if it is a leftover: the bytes that became free, or none where it is not.
///
/// # Errors
/// As for [`is_leftover`], or it cannot be removed.
pub(crate) fn sweep_run(store: &Store, roots: &RuntimeRoots, name: &str) -> Result<Option<u64>> {
    let Some(found) = leftover(store, roots, name)? else {
        return Ok(None);
    };
    debug!("remove leftover {}", found.path.display());
    let freed = match &found.record {
        Some(record) => remove(store, &found.containers, record, false)?,
        None => {
            overlay::unmount(&found.path.join("rootfs"))?;
            remove_tree(store.subdirectory("bundles")?.as_fd(), name.as_ref())?
        }
    };
    Ok(Some(freed))
}
