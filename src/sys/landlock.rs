//! Landlock (landlock(7), Linux 5.13): a thread takes rights on the file system away from itself.

use std::ffi::c_long;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;

/// linux/landlock.h: asks for the version instead of making a ruleset.
const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;

/// Links and renames between directories can be allowed since this version (Linux 5.19); before they are always denied.
const WITH_REFER: c_long = 2;
/// truncate(2) is a right of its own since this version (Linux 6.2).
const WITH_TRUNCATE: c_long = 3;

/// Execute, write, remove and make, of every type: bits 0, 1 and 4 to 12.
const CHANGE: u64 = 0b1_1111_1111_0011;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;

/// struct landlock_path_beneath_attr, which is packed.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// Let the calling thread, and those it will start, execute files and change names and contents nowhere but below `dirs`.
/// What is open stays usable, and reading is free. False where the kernel has no Landlock that could do so.
///
/// The thread gets no new privileges from then on, which the kernel asks for.
pub(crate) fn confine_changes(dirs: &[BorrowedFd]) -> nix::Result<bool> {
    // SAFETY: without attributes nothing is read or written.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u64>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    // KERNEL(5.19): a version without REFER would forbid hard links.
    if version < WITH_REFER {
        return Ok(false);
    }
    let handled = CHANGE
        | REFER
        | if version >= WITH_TRUNCATE {
            TRUNCATE
        } else {
            0
        };
    // SAFETY: the kernel reads the eight bytes that the size says; what is returned is a new descriptor.
    let ruleset = unsafe {
        let fd = Errno::result(libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const handled,
            size_of::<u64>(),
            0_u32,
        ))?;
        OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| Errno::EBADF)?)
    };
    for dir in dirs {
        let rule = PathBeneath {
            allowed_access: handled,
            parent_fd: dir.as_raw_fd(),
        };
        // SAFETY: the kernel reads one PathBeneath, which outlives the call.
        let added = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const rule,
                0_u32,
            )
        };
        Errno::result(added)?;
    }
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: two numbers; the thread alone is changed.
    let done =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    Errno::result(done)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::ErrorKind;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_confined_thread_changes_nothing_outside_and_everything_inside() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("old"), "kept").unwrap();
        let dir = File::open(inside.path()).unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                if !confine_changes(&[dir.as_fd()]).unwrap() {
                    return;
                }
                let denied = |done: std::io::Result<()>| done.unwrap_err().kind();
                let victim = outside.path().join("old");
                assert_eq!(
                    denied(fs::write(&victim, "gone")),
                    ErrorKind::PermissionDenied
                );
                assert_eq!(
                    denied(fs::remove_file(&victim)),
                    ErrorKind::PermissionDenied
                );
                assert_eq!(
                    denied(fs::create_dir(outside.path().join("new"))),
                    ErrorKind::PermissionDenied
                );
                fs::create_dir_all(inside.path().join("a/b")).unwrap();
                fs::write(inside.path().join("a/f"), "x").unwrap();
                fs::hard_link(inside.path().join("a/f"), inside.path().join("a/b/f")).unwrap();
                fs::rename(inside.path().join("a/b/f"), inside.path().join("g")).unwrap();
            });
        });
        assert_eq!(
            fs::read_to_string(outside.path().join("old")).unwrap(),
            "kept"
        );
        // The other threads of the process are as they were.
        fs::write(outside.path().join("old"), "changed").unwrap();
    }
}
