//! The root of a container whose mounts are made in a mount namespace that is there already, the caller's or one that is
//! joined: a mount of its own that carries all the others, so that nothing but it has to be taken away.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat, stat};
use nix::unistd::{chroot, fchdir};
use serde::{Deserialize, Serialize};

use crate::report::{debug, sentence, warn};
use crate::sys::errno::Words;
use crate::sys::mount::{self, Change, Reach, unescape};

/// Dropped, it is taken away again; [`Carrier::keep`] leaves it where it is.
pub(crate) struct Carrier {
    path: PathBuf,
    tree: OwnedFd,
    found: Mark,
    attached: bool,
}

/// By what a carrier is found again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// The kernel's number of the mount.
    id: u64,
    /// The mount namespace, if it is not the caller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<Joined>,
}

/// A mount namespace at a path, where there may be another one by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Joined {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Joined {
    fn at(path: &Path) -> nix::Result<Self> {
        let about = stat(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: about.st_dev,
            inode: about.st_ino,
        })
    }

    /// The namespace. ESRCH: it is gone.
    fn open(&self) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match open(&self.path, flags, Mode::empty()) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(Errno::ESRCH),
            file => file?,
        };
        let about = fstat(&file)?;
        match (about.st_dev, about.st_ino) == (self.device, self.inode) {
            true => Ok(file),
            false => Err(Errno::ESRCH),
        }
    }
}

/// Do something in a mount namespace, the caller's or one that is joined, and come back. ESRCH: it is gone.
fn inside<T>(namespace: Option<&Joined>, act: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    let Some(joined) = namespace else {
        return act();
    };
    let namespace = joined.open()?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let own = open("/proc/self/ns/mnt", flags, Mode::empty())?;
    let (root, directory) = (open_path("/".as_ref())?, open_path(".".as_ref())?);
    // KERNEL: a thread that shares its root and directory may not; there is no other thread.
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    let done = act();
    // Whoever enters a mount namespace stands in its root.
    setns(own, CloneFlags::CLONE_NEWNS)
        .and_then(|()| fchdir(root))
        .and_then(|()| chroot("."))
        .and_then(|()| fchdir(directory))
        .expect("the way back that was open a moment ago");
    done
}

impl Carrier {
    /// A copy of the tree at `root`, as the mount namespace at the path `namespace` or the caller's has it, which nobody sees
    /// yet. It is nobody's peer, so that what is mounted on it stays there.
    ///
    /// # Errors
    /// Names root.path.
    pub(super) fn new(root: &Path, namespace: Option<&Path>) -> Result<Self> {
        let field = || format!("root.path {}", root.display());
        let copy = || {
            let namespace = namespace.map(Joined::at).transpose()?;
            let tree = inside(namespace.as_ref(), || {
                let tree = mount::bind(root, Reach::Tree, Change::default())?;
                let private = Change::propagation(libc::MS_PRIVATE);
                mount::change(tree.as_fd(), Reach::Tree, private).map(|()| tree)
            })?;
            Ok((tree, namespace))
        };
        let (tree, namespace) = copy()
            .map_err(|errno: Errno| anyhow!("{}", Words(errno)))
            .with_context(field)?;
        let id = mount_id(&tree).with_context(field)?;
        Ok(Self {
            found: Mark { id, namespace },
            path: root.to_owned(),
            tree,
            attached: false,
        })
    }

    /// By what it is found again.
    pub(crate) fn mark(&self) -> &Mark {
        &self.found
    }

    /// Put it over the root, where everybody in the namespace sees it.
    pub(super) fn attach(&mut self) -> Result<OwnedFd> {
        let field = || format!("root.path {}", self.path.display());
        debug!("mount {} over itself", self.path.display());
        let put = || {
            let target = open_path(&self.path)?;
            mount::attach(self.tree.as_fd(), target.as_fd())
        };
        inside(self.found.namespace.as_ref(), put)
            .map_err(|errno| anyhow!("{}", Words(errno)))
            .with_context(field)?;
        self.attached = true;
        self.tree.try_clone().with_context(field)
    }

    /// It goes with the container: see [`take_away`].
    pub(super) fn keep(mut self) {
        self.attached = false;
    }
}

impl AsFd for Carrier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        if self.attached
            && let Err(error) = take_away(&self.path, &self.found)
        {
            warn(format_args!("{}", sentence(&error)));
        }
    }
}

/// Unmount the carrier from `root`, with all that is mounted on it. Nothing is done where it is gone, or its namespace.
///
/// # Errors
/// It is there, under a mount of somebody else's.
pub(crate) fn take_away(root: &Path, found: &Mark) -> Result<()> {
    let what = || format!("unmount {}", root.display());
    let worded = |errno: Errno| anyhow!("{}", Words(errno)).context(what());
    let namespace = found.namespace.as_ref();
    let there = match inside(namespace, || open_path(root)) {
        Ok(there) => there,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH) => return Ok(()),
        Err(errno) => return Err(worded(errno)),
    };
    if mount_id(&there).with_context(what)? == found.id {
        debug!("unmount {} and what is mounted on it", root.display());
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        return inside(namespace, || umount2(root, flags)).map_err(worded);
    }
    let proc = open_path("/proc".as_ref()).map_err(worded)?;
    // A table is that of whoever opened it.
    let table = inside(namespace, || {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        openat(&proc, "self/mountinfo", flags, Mode::empty())
    });
    let table = table.map_err(worded)?;
    let table = std::io::read_to_string(fs::File::from(table)).with_context(what)?;
    let number = found.id.to_string();
    // KERNEL: the number of a mount that is gone is given to another one, which lies elsewhere.
    let is_there = |line: &str| {
        let mut fields = line.split(' ');
        let point = |field: &str| unescape(field.as_bytes()) == root.as_os_str().as_bytes();
        fields.next() == Some(&number) && fields.nth(3).is_some_and(point)
    };
    match table.lines().any(is_there) {
        true => Err(anyhow!("another mount lies on it")).with_context(what),
        false => Ok(()),
    }
}

fn open_path(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
}

/// The number of the mount that an open file is on (proc_pid_fdinfo(5)).
fn mount_id(file: &OwnedFd) -> Result<u64> {
    let about = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let text = fs::read_to_string(&about).with_context(|| about.clone())?;
    let number = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let number = number.and_then(|number| number.trim().parse().ok());
    number.with_context(|| format!("{about} has no mnt_id"))
}
