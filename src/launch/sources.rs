//! What the parent clones of the host's tree for the child, and the user namespaces that id-mapped mounts need.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use oci_spec::runtime::LinuxNamespaceType as Kind;

use super::open_namespace;
use crate::child::Given;
use crate::plan::mounts::{IdMap, Link, MappedBy, MountOp, What};
use crate::plan::namespaces::clone_flag;
use crate::plan::{Plan, Switch};
use crate::report::debug;
use crate::sys::errno::Words;
use crate::sys::mount::{self, Change, Reach};
use crate::sys::process::{CloneFlags, Cloned, clone3, exit_now};

/// Clone the root's tree and the sources of bind mounts here, with the host's rights and in its mount namespace, where
/// the child will have lost either. The source of an id-mapped bind mount is cloned here in any case: mapping it takes
/// rights over its file system.
///
/// Returns the user namespaces with the maps of id-mapped mounts, in the plan's order, for [`map_made`].
///
/// # Errors
/// Names root.path, or the source and the destination of the mount.
pub(super) fn clone(plan: &Plan, given: &mut Given) -> Result<Vec<OwnedFd>> {
    let mut id_maps = Vec::new();
    for maps in 0..plan.id_maps.len() {
        let namespace = user_namespace(plan, maps)?;
        given.parents_own.push(namespace.as_raw_fd());
        id_maps.push(namespace);
    }
    let mut clones = plan.parent_clones_sources;
    if clones && plan.root.switch != Switch::Chroot {
        let path = &plan.root.path;
        match tree(path, (Reach::Tree, Link::Followed), Change::default()) {
            Ok(tree) => given.root_tree = Some(tree),
            // Root of a user namespace in a mount namespace of others. The child has one of its own.
            Err(Errno::EPERM) => clones = false,
            Err(errno) => return Err(failed(&format!("root.path {}", path.display()), errno)),
        }
    }
    if !clones && plan.mounts.iter().all(|op| op.id_map.is_none()) {
        return Ok(id_maps);
    }
    for (number, op) in plan.mounts.iter().enumerate() {
        let tree = match &op.what {
            What::Bind {
                source,
                reach,
                link,
            } if clones || op.id_map.is_some() => {
                match tree(source, (*reach, *link), op.at_first()) {
                    Ok(tree) => Some(tree),
                    // The same, or what the mount's attributes do not allow, for which the child has words.
                    Err(Errno::EPERM) if op.id_map.is_none() => None,
                    Err(errno) => {
                        let what = mounting(&op.source(), &op.destination());
                        return Err(failed(&what, errno));
                    }
                }
            }
            _ => None,
        };
        if let (Some(tree), Some(id_map)) = (&tree, op.id_map) {
            let namespace = match id_map.by {
                MappedBy::Maps(maps) => id_maps.get(maps),
                MappedBy::Joined => {
                    let mut joins = plan.namespaces.joins.iter().zip(&given.joins);
                    joins
                        .find(|(join, _)| join.kind == Kind::User)
                        .map(|(_, file)| file)
                }
            };
            map_ids(tree, id_map, namespace).map_err(|errno| not_mapped(number, op, errno))?;
        }
        given.trees.push(tree);
    }
    Ok(id_maps)
}

/// Map the ids of the mount of a new file system, which the child has made. A user namespace that the container joins is
/// never asked for: the file system has its ids from there.
///
/// # Errors
/// Names the mount and the reason.
pub(super) fn map_made(
    plan: &Plan,
    tree: &OwnedFd,
    number: i32,
    id_maps: &[OwnedFd],
) -> Result<()> {
    let number = usize::try_from(number).context("listen to the container's process")?;
    let op = plan.mounts.get(number);
    let (op, id_map) = op
        .and_then(|op| Some((op, op.id_map?)))
        .context("listen to the container's process: no such mount")?;
    let namespace = match id_map.by {
        MappedBy::Maps(maps) => id_maps.get(maps),
        MappedBy::Joined => None,
    };
    map_ids(tree, id_map, namespace).map_err(|errno| not_mapped(number, op, errno))
}

fn tree(path: &Path, (reach, link): (Reach, Link), change: Change) -> nix::Result<OwnedFd> {
    let tree = match link {
        Link::Followed => mount::bind(path, reach, change)?,
        Link::Itself | Link::Copied => mount::bind_link(path, reach, change)?,
    };
    // As in the child's own namespace: a clone of the host's shared mount would be the host's peer.
    let slave = Change::propagation(libc::MS_SLAVE);
    mount::change(tree.as_fd(), Reach::Tree, slave)?;
    Ok(tree)
}

fn map_ids(tree: &OwnedFd, id_map: IdMap, namespace: Option<&OwnedFd>) -> nix::Result<()> {
    let namespace = namespace.ok_or(Errno::EBADF)?;
    mount::map_ids(tree.as_fd(), id_map.reach, namespace.as_fd())
}

fn failed(what: &str, errno: Errno) -> anyhow::Error {
    anyhow!("{what}: {}", Words(errno))
}

fn not_mapped(number: usize, op: &MountOp, errno: Errno) -> anyhow::Error {
    let what = mounting(&op.source(), &op.destination());
    failed(
        &format!("{what}: mounts[{number}]: {}", no_id_map(errno)),
        errno,
    )
}

/// Why the kernel may have refused to map a mount's ids (mount_setattr(2)).
fn no_id_map(errno: Errno) -> &'static str {
    match errno {
        Errno::EINVAL => "the file system does not support id-mapped mounts",
        Errno::EPERM => {
            "the mount is id-mapped already, or its file system belongs to another user namespace"
        }
        _ => "map ids",
    }
}

/// What is mounted where, as messages begin.
pub(super) fn mounting(source: &str, destination: &str) -> String {
    format!("error mounting {source:?} to rootfs at {destination:?}")
}

/// A user namespace with the maps of this number, which nobody is in.
fn user_namespace(plan: &Plan, number: usize) -> Result<OwnedFd> {
    let field = "user namespace for an id-mapped mount";
    let flags = CloneFlags::from(clone_flag(Kind::User).bits().cast_unsigned());
    let Some(Cloned { pid, pidfd }) =
        clone3(flags, None).map_err(|errno| anyhow!("{field}: clone: {}", Words(errno)))?
    else {
        // KERNEL: the namespace stays at hand until this process, dead or alive, has been waited for. So there is
        // nothing to wait for here, and nothing that could outlive the parent.
        exit_now(0)
    };
    debug!("user namespace of process {pid} for id-mapped mounts");
    let made = plan.id_maps[number]
        .write(pid)
        .and_then(|()| open_namespace(Kind::User, Path::new(&format!("/proc/{pid}/ns/user"))))
        .context(field);
    while waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
    made
}
