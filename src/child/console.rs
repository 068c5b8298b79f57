//! The payload's terminal: a pty of the container's own devpts, its master handed to the parent.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat, makedev};
use nix::sys::statfs::fstatfs;
use nix::unistd::setsid;

use super::{Given, rootfs};
use crate::handshake::Step;
use crate::plan::Switch;
use crate::plan::process::Terminal;
use crate::sys::fd::install;
use crate::sys::mount::{self, Reach};
use crate::sys::path::{file_type, open_in_root};
use crate::sys::pty;

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS: u64 = 0x1cd1;

/// Begin a session; with a terminal, make it the controlling one and the three standard streams.
// ORDER: after the pivot, so that the devpts is the container's; before the capabilities go.
pub(super) fn open(given: &Given, root: &OwnedFd) {
    given.check(setsid().map(drop), Step::Console, "setsid");
    let Some(terminal) = given.plan.process.terminal else {
        return;
    };
    given.check(
        attach(given, root, terminal),
        Step::Console,
        "/dev/pts/ptmx",
    );
}

fn attach(given: &Given, root: &OwnedFd, terminal: Terminal) -> nix::Result<()> {
    let master = open_master(root)?;
    let number = pty::unlock(master.as_fd())?;
    // CVE-2025-52565: the slave comes from the master, not from a name that the image may have put there.
    let slave = pty::peer(master.as_fd())?;
    if let Some(size) = terminal.size {
        pty::set_window_size(slave.as_fd(), size)?;
    }
    let plan = given.plan;
    if plan.root.switch != Switch::Chroot || plan.root.carrier {
        bind_console(root, number)?;
    }
    let mut name = String::from("/dev/pts/");
    name.push_str(&number.to_string());
    given.talk.console(master.as_fd(), &name);
    pty::set_controlling(slave.as_fd())?;
    (0..=2).try_for_each(|stream| install(slave.as_fd(), stream))
}

/// The multiplexer of the container's devpts, verified to be one.
fn open_master(root: &OwnedFd) -> nix::Result<OwnedFd> {
    let master = open_in_root(
        root.as_fd(),
        Path::new("dev/pts/ptmx"),
        OFlag::O_RDWR | OFlag::O_NOCTTY,
    )?;
    let stat = fstat(&master)?;
    let real = file_type(&stat) == SFlag::S_IFCHR && stat.st_rdev == makedev(5, 2);
    if real && is_on_devpts(&master)? {
        Ok(master)
    } else {
        Err(Errno::ENODEV)
    }
}

fn is_on_devpts(file: &OwnedFd) -> nix::Result<bool> {
    let kind = fstatfs(file)?.filesystem_type().0;
    Ok(u64::try_from(kind).is_ok_and(|kind| kind == DEVPTS))
}

/// The slave's node over /dev/console, where programs look for the system's console.
fn bind_console(root: &OwnedFd, number: u32) -> nix::Result<()> {
    let dev = open_in_root(
        root.as_fd(),
        Path::new("dev"),
        OFlag::O_PATH | OFlag::O_DIRECTORY,
    )?;
    let target = rootfs::plain_file(dev.as_fd(), "console")?;
    let mut name = String::from("dev/pts/");
    name.push_str(&number.to_string());
    let node = open_in_root(
        root.as_fd(),
        Path::new(&name),
        OFlag::O_PATH | OFlag::O_NOFOLLOW,
    )?;
    if !is_on_devpts(&node)? {
        return Err(Errno::ENODEV);
    }
    let tree = mount::clone_tree(node.as_fd(), c"", Reach::One)?;
    mount::attach(tree.as_fd(), target.as_fd())
}
