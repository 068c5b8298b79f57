//! A plan for a registry's tree, carried out.
//!
//! Nothing is unlinked on the word of one look. Each candidate is looked at again and renamed into a directory of ours
//! in the same tree; then everything is marked once more, and what something needs by now is put back; the rest is
//! unlinked. A manifest that the registry accepted before the rename is seen by the second look, and one that comes
//! after it is refused by a registry that looks for the content of what it is given.
//!
//! A command that is killed leaves things aside; the next one puts them back and begins anew.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::report::{debug, sentence};
use crate::sys::path::{Kind, ensure, open_beneath};

use super::super::super::store::remove_tree;
use super::survey::{ASIDE, Place, join};
use super::tree::Tree;
use super::{Candidate, Deed, Plan};

/// Only one command at a time sweeps a tree. Held as long as the file is open.
pub(super) fn lock(tree: &Tree) -> Result<Flock<File>> {
    let context = || format!("lock {}", tree.shown(""));
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let dir = open_beneath(tree.root(), Path::new("."), flags).with_context(context)?;
    match Flock::lock(File::from(dir), FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => bail!("{}: another prune is at work there", tree.shown("")),
        Err((_, errno)) => Err(errno).with_context(context),
    }
}

/// Put back what a killed command left aside. Whether anything was there.
pub(super) fn recover(tree: &Tree) -> Result<bool> {
    let Some(entries) = tree.list(ASIDE)? else {
        return Ok(false);
    };
    for entry in &entries {
        merge(tree, &join(ASIDE, &entry.name), &entry.name)?;
    }
    remove_empty(tree, ASIDE);
    Ok(!entries.is_empty())
}

/// Carry the plan out, candidate by candidate.
///
/// # Errors
/// The second look found something unreadable: then all is as it was. What concerns one candidate stands in its deed.
pub(super) fn carry_out(plan: &mut Plan) -> Result<()> {
    let tree = &plan.tree;
    match mkdirat(tree.root(), ASIDE, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno).with_context(|| format!("make {}", tree.shown(ASIDE))),
    }
    let mut touched = HashSet::new();
    for candidate in &mut plan.candidates {
        candidate.deed = set_aside(tree, candidate, &mut touched);
    }
    let marked = plan.look_again();
    if let Err(error) = &marked {
        for candidate in plan.candidates.iter_mut().rev() {
            back(&plan.tree, candidate, Deed::Planned);
        }
        let error = anyhow!("{}", sentence(error));
        remove_empty(&plan.tree, ASIDE);
        return Err(error.context("looked at again before removal, nothing was removed"));
    }
    let marked = marked?;
    // The other way round: content first, then what leads to it.
    for candidate in plan.candidates.iter_mut().rev() {
        if candidate.deed == Deed::Aside && plan.layout.needs(&marked, candidate) {
            back(&plan.tree, candidate, Deed::NeededAgain);
        }
    }
    for candidate in &mut plan.candidates {
        if candidate.deed == Deed::Aside {
            candidate.deed = remove(&plan.tree, candidate);
        }
    }
    remove_empty(&plan.tree, ASIDE);
    Ok(())
}

fn aside(path: &str) -> String {
    join(ASIDE, path)
}

/// Move all places of a candidate aside, or none.
fn set_aside(tree: &Tree, candidate: &Candidate, touched: &mut HashSet<(u64, u64)>) -> Deed {
    for (number, place) in candidate.places.iter().enumerate() {
        let stopped = match move_aside(tree, place, touched) {
            Ok(true) => continue,
            Ok(false) => Deed::Changed,
            Err(error) => Deed::Failed(sentence(&error)),
        };
        for place in candidate.places[..number].iter().rev() {
            if let Err(error) = merge(tree, &aside(&place.path), &place.path) {
                return Deed::Failed(sentence(&error));
            }
        }
        return stopped;
    }
    Deed::Aside
}

/// Whether the place was as the survey saw it, and is aside now.
fn move_aside(tree: &Tree, place: &Place, touched: &mut HashSet<(u64, u64)>) -> Result<bool> {
    let Some(now) = tree.stamp(&place.witness)? else {
        return Ok(false);
    };
    // The ctime moves when the registry gives the blob another name, and when we rename one that it has already.
    let ours = touched.contains(&(now.device, now.inode));
    if !now.is_same_file(&place.stamp) || (now.changed != place.stamp.changed && !ours) {
        return Ok(false);
    }
    let to = aside(&place.path);
    rename(tree, &place.path, &to)?;
    touched.insert((now.device, now.inode));
    let moved = tree.stamp(&aside(&place.witness))?;
    if moved.is_some_and(|moved| moved.is_same_file(&place.stamp)) {
        return Ok(true);
    }
    merge(tree, &to, &place.path)?;
    Ok(false)
}

/// Put a candidate back where it was; it is then as `deed` says.
fn back(tree: &Tree, candidate: &mut Candidate, deed: Deed) {
    if candidate.deed != Deed::Aside {
        return;
    }
    candidate.deed = deed;
    for place in candidate.places.iter().rev() {
        if let Err(error) = merge(tree, &aside(&place.path), &place.path) {
            candidate.deed = Deed::Failed(sentence(&error));
        }
    }
}

/// Unlink what is aside: the bytes on disk that became free, those of a file with other names not counted.
fn remove(tree: &Tree, candidate: &Candidate) -> Deed {
    let mut freed = 0;
    for place in &candidate.places {
        let path = aside(&place.path);
        let done = tree.stamp(&aside(&place.witness)).and_then(|stamp| {
            let (parent, name) = parent(tree, &path)?;
            remove_tree(parent.as_fd(), OsStr::new(name))
                .with_context(|| format!("remove {}", tree.shown(&path)))?;
            Ok(stamp
                .filter(|stamp| stamp.links == 1)
                .map_or(0, |stamp| stamp.disk))
        });
        match done {
            Ok(bytes) => freed += bytes,
            Err(error) => return Deed::Failed(sentence(&error)),
        }
    }
    Deed::Deleted { freed }
}

fn parent<'path>(tree: &Tree, path: &'path str) -> Result<(OwnedFd, &'path str)> {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let dir = tree
        .directory(above)?
        .ok_or_else(|| anyhow!("{}: is not there", tree.shown(above)))?;
    Ok((dir, name))
}

/// Rename, with the directories above `to` made; never over something.
fn rename(tree: &Tree, from: &str, to: &str) -> Result<()> {
    let context = || format!("rename {} to {}", tree.shown(from), tree.shown(to));
    if let Some((above, _)) = to.rsplit_once('/') {
        ensure(tree.root(), Path::new(above), Kind::Directory).with_context(context)?;
    }
    let (from_dir, from_name) = parent(tree, from)?;
    let (to_dir, to_name) = parent(tree, to)?;
    renameat2(
        &from_dir,
        from_name,
        &to_dir,
        to_name,
        RenameFlags::RENAME_NOREPLACE,
    )
    .with_context(context)
}

/// Move what is at `from` to `to`; where both are there, directory into directory, and of a file the one that came
/// meanwhile stays, for both have the content that their name says.
fn merge(tree: &Tree, from: &str, to: &str) -> Result<()> {
    let (Some(ours), there) = (tree.stamp(from)?, tree.stamp(to)?) else {
        return Ok(());
    };
    let Some(there) = there else {
        return rename(tree, from, to);
    };
    match (ours.kind, there.kind) {
        (SFlag::S_IFDIR, SFlag::S_IFDIR) => {
            for entry in tree.list(from)?.unwrap_or_default() {
                merge(tree, &join(from, &entry.name), &join(to, &entry.name))?;
            }
            remove_empty(tree, from);
            Ok(())
        }
        (SFlag::S_IFREG, SFlag::S_IFREG) if ours.size == there.size => {
            let (dir, name) = parent(tree, from)?;
            unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir)
                .with_context(|| format!("remove {}", tree.shown(from)))
        }
        _ => bail!(
            "{} cannot be put back: {} is something else: look at both and keep the good one",
            tree.shown(from),
            tree.shown(to)
        ),
    }
}

/// Remove the directories at and below `path` that hold nothing. What holds something stays.
fn remove_empty(tree: &Tree, path: &str) {
    let inside = tree.list(path).ok().flatten().unwrap_or_default();
    let directories: BTreeSet<_> = inside
        .iter()
        .filter(|entry| entry.is_directory())
        .map(|entry| join(path, &entry.name))
        .collect();
    for directory in directories {
        remove_empty(tree, &directory);
    }
    if let Ok((dir, name)) = parent(tree, path) {
        // One that is not empty stays.
        let removed = unlinkat(&dir, name, UnlinkatFlags::RemoveDir);
        debug!("remove {path}: {removed:?}");
    }
}
