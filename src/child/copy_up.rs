//! `tmpcopyup`: a tmpfs that begins as a copy of the directory it hides.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat, mkdirat, mknodat,
};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use crate::sys::path::file_type;

/// Copy everything below the directory `from` into the directory `to`, with owners and modes.
pub(super) fn tree(from: BorrowedFd, to: BorrowedFd) -> nix::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(from, c".", flags, Mode::empty())?;
    for entry in listing.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            copy(from, to, name)?;
        }
    }
    Ok(())
}

fn copy(from: BorrowedFd, to: BorrowedFd, name: &OsStr) -> nix::Result<()> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    match file_type(&stat) {
        SFlag::S_IFDIR => {
            mkdirat(to, name, Mode::from_bits_truncate(0o700))?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let inner = |dir| openat(dir, name, flags, Mode::empty());
            tree(inner(from)?.as_fd(), inner(to)?.as_fd())?;
        }
        SFlag::S_IFREG => {
            let source = openat(
                from,
                name,
                OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?;
            // The name may stand for another file by now; a device or a fifo is not read.
            if file_type(&fstat(&source)?) != SFlag::S_IFREG {
                return Err(Errno::EINVAL);
            }
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            content(
                &source,
                &openat(to, name, flags, Mode::from_bits_truncate(0o600))?,
            )?;
        }
        SFlag::S_IFLNK => {
            symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?;
            return own(to, name, &stat);
        }
        kind => mknodat(
            to,
            name,
            kind,
            Mode::from_bits_truncate(0o600),
            stat.st_rdev,
        )?,
    }
    own(to, name, &stat)?;
    // ORDER: after the owner, whose change clears set-id bits.
    fchmodat(
        to,
        name,
        Mode::from_bits_truncate(stat.st_mode),
        FchmodatFlags::FollowSymlink,
    )
}

fn own(directory: BorrowedFd, name: &OsStr, stat: &FileStat) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(
        directory,
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
}

fn content(source: &OwnedFd, target: &OwnedFd) -> nix::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = nix::unistd::read(source, &mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            rest = &rest[nix::unistd::write(target, rest)?..];
        }
    }
}
