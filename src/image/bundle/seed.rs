//! A new volume begins with what the image has at its place (conversion.md, "Config.Volumes").

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, fchown, fchownat, linkat, mkfifoat, symlinkat};

use crate::sys::attribute;
use crate::sys::holes::copy_with_holes;
use crate::sys::path::{file_type, open_beneath};

use super::super::store::entries;

/// Whether an attribute is kept. Labels of security modules and the marks of overlays are the host's business.
fn is_kept(name: &CStr) -> bool {
    let name = name.to_bytes();
    let exact: [&[u8]; 3] = [
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ];
    exact.contains(&name) || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Copy what is below the directory `from` into the empty directory `to`, and the attributes of the directory itself.
///
/// Owners, modes, times, hard links, capabilities, ACLs and the attributes of users are kept. Device nodes and sockets are left out: a volume has
/// no use for them. Nothing is followed, and no mount is crossed.
pub(super) fn copy(from: BorrowedFd, to: BorrowedFd) -> Result<()> {
    let mut copy = Copy {
        top: to,
        linked: HashMap::new(),
    };
    copy.directory(from, to, Path::new(""))
}

struct Copy<'t> {
    top: BorrowedFd<'t>,
    /// Files with several links, by device and inode: where the first copy stands below the top.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Copy<'_> {
    fn directory(&mut self, from: BorrowedFd, to: BorrowedFd, path: &Path) -> Result<()> {
        let stat = fstat(from)?;
        for name in entries(from)? {
            let path = path.join(&name);
            self.entry(from, to, &name, &path)
                .with_context(|| path.display().to_string())?;
        }
        dress(from, to, &stat)?;
        Ok(())
    }

    fn entry(&mut self, from: BorrowedFd, to: BorrowedFd, name: &OsStr, path: &Path) -> Result<()> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let handle = openat(from, name, flags, Mode::empty())?;
        let stat = fstat(&handle)?;
        let kind = file_type(&stat);
        if kind != SFlag::S_IFDIR && stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&key) {
                linkat(self.top, first, to, name, LinkatFlags::empty())?;
                return Ok(());
            }
            self.linked.insert(key, path.to_owned());
        }
        match kind {
            SFlag::S_IFDIR => {
                // A mount in the middle of the tree is none of the image's content.
                let source = match open_directory(from, name) {
                    Err(Errno::EXDEV) => return Ok(()),
                    other => other?,
                };
                mkdirat(to, name, Mode::S_IRWXU)?;
                let target = open_directory(to, name)?;
                self.directory(source.as_fd(), target.as_fd(), path)?;
            }
            SFlag::S_IFREG => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let source = openat(from, name, flags, Mode::empty())?;
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let target = openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
                let (reader, writer) = (File::from(source), File::from(target));
                copy_with_holes(&reader, &writer, u64::try_from(stat.st_size)?)?;
                dress(reader.as_fd(), writer.as_fd(), &stat)?;
            }
            SFlag::S_IFLNK => {
                let text = readlinkat(&handle, "")?;
                symlinkat(text.as_os_str(), to, name)?;
                undressed(to, name, &stat)?;
            }
            SFlag::S_IFIFO => {
                mkfifoat(to, name, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
                undressed(to, name, &stat)?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn open_directory(dir: BorrowedFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    open_beneath(dir, Path::new(name), flags)
}

/// Owner, mode, attributes and times of an open file or directory.
fn dress(from: BorrowedFd, to: BorrowedFd, stat: &FileStat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchown(to, Some(uid), Some(gid))?;
    // ORDER: after the owner, whose change takes setuid away.
    fchmod(to, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
    let names = match attribute::list(from) {
        Err(Errno::EOPNOTSUPP) => Vec::new(),
        other => other.context("list attributes")?,
    };
    for name in names.iter().filter(|name| is_kept(name)) {
        let context = || format!("attribute {}", name.to_string_lossy());
        let value = attribute::get(from, name).with_context(context)?;
        attribute::set(to, name, &value).with_context(context)?;
    }
    let place = format!("/proc/self/fd/{}", to.as_raw_fd());
    let (accessed, modified) = times(stat);
    utimensat(
        nix::fcntl::AT_FDCWD,
        place.as_str(),
        &accessed,
        &modified,
        UtimensatFlags::FollowSymlink,
    )?;
    Ok(())
}

/// Owner and times of what is not opened.
fn undressed(dir: BorrowedFd, name: &OsStr, stat: &FileStat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(
        dir,
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    let (accessed, modified) = times(stat);
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(dir, name, &accessed, &modified, flags)?;
    Ok(())
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (
        TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
        TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    // L-51
    #[test]
    fn a_tree_is_copied_with_its_modes_times_links_and_nothing_followed() {
        // Not in the memory that /tmp may be: older kernels keep no attributes of users there.
        let temporary = || tempfile::tempdir_in("/var/tmp").unwrap();
        let (from, to) = (temporary(), temporary());
        let (source, target) = (from.path(), to.path());
        fs::create_dir(source.join("dir")).unwrap();
        fs::write(source.join("dir/file"), "text").unwrap();
        fs::set_permissions(source.join("dir/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::hard_link(source.join("dir/file"), source.join("same")).unwrap();
        symlink("/etc/passwd", source.join("link")).unwrap();
        fs::set_permissions(source.join("dir"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::set_permissions(source, fs::Permissions::from_mode(0o2750)).unwrap();
        let file = File::options()
            .write(true)
            .open(source.join("dir/file"))
            .unwrap();
        attribute::set(file.as_fd(), c"user.note", b"kept").unwrap();
        let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        for path in [source.join("dir/file"), source.join("dir")] {
            File::open(path).unwrap().set_modified(past).unwrap();
        }

        let (source_fd, target_fd) = (File::open(source).unwrap(), File::open(target).unwrap());
        copy(source_fd.as_fd(), target_fd.as_fd()).unwrap();

        let stat = |name: &str| fs::symlink_metadata(target.join(name)).unwrap();
        assert_eq!(fs::read(target.join("same")).unwrap(), b"text");
        let same = File::open(target.join("same")).unwrap();
        assert_eq!(attribute::get(same.as_fd(), c"user.note").unwrap(), b"kept");
        assert_eq!(stat("dir/file").mode() & 0o7777, 0o4750);
        assert_eq!(stat("dir/file").ino(), stat("same").ino());
        assert_eq!(stat("dir").mode() & 0o7777, 0o1777);
        assert_eq!(stat("").mode() & 0o7777, 0o2750);
        assert_eq!(
            (stat("dir").mtime(), stat("dir/file").mtime()),
            (1_000_000, 1_000_000)
        );
        assert_eq!(
            fs::read_link(target.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
    }
}
