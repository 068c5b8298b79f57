//! The root of a container whose mounts are made in the caller's mount namespace: a mount of its own that carries all the
//! others, so that nothing but it has to be taken away.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;

use crate::report::{debug, warn};
use crate::sys::errno::Words;
use crate::sys::mount::{self, Change, Reach, unescape};

/// Dropped, it is taken away again; [`Carrier::keep`] leaves it where it is.
pub(crate) struct Carrier {
    path: PathBuf,
    tree: OwnedFd,
    id: u64,
    attached: bool,
}

impl Carrier {
    /// A copy of the tree at `root`, which nobody sees yet. It is nobody's peer, so that what is mounted on it stays there.
    ///
    /// # Errors
    /// Names root.path.
    pub(super) fn new(root: &Path) -> Result<Self> {
        let field = || format!("root.path {}", root.display());
        let tree = mount::bind(root, Reach::Tree, Change::default());
        let tree = tree.and_then(|tree| {
            let private = Change::propagation(libc::MS_PRIVATE);
            mount::change(tree.as_fd(), Reach::Tree, private).map(|()| tree)
        });
        let tree = tree
            .map_err(|errno| anyhow!("{}", Words(errno)))
            .with_context(field)?;
        Ok(Self {
            id: mount_id(&tree).with_context(field)?,
            path: root.to_owned(),
            tree,
            attached: false,
        })
    }

    /// The kernel's number of the mount, by which it is found again.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Put it over the root, where the caller and everybody in its namespace sees it.
    pub(super) fn attach(&mut self) -> Result<OwnedFd> {
        let field = || format!("root.path {}", self.path.display());
        debug!("mount {} over itself", self.path.display());
        let target = open_path(&self.path).with_context(field)?;
        mount::attach(self.tree.as_fd(), target.as_fd())
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
            && let Err(error) = take_away(&self.path, self.id)
        {
            warn(format_args!("{error:#}"));
        }
    }
}

/// Unmount the carrier of this number from `root`, with all that is mounted on it. Nothing is done where it is gone.
///
/// # Errors
/// It is there, under a mount of somebody else's.
pub(crate) fn take_away(root: &Path, id: u64) -> Result<()> {
    let what = || format!("unmount {}", root.display());
    let there = match open_path(root) {
        Ok(there) => there,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        Err(errno) => return Err(anyhow!("{}", Words(errno))).with_context(what),
    };
    if mount_id(&there).with_context(what)? == id {
        debug!("unmount {} and what is mounted on it", root.display());
        return umount2(root, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| anyhow!("{}", Words(errno)))
            .with_context(what);
    }
    let table = fs::read_to_string("/proc/self/mountinfo").with_context(what)?;
    let number = id.to_string();
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
