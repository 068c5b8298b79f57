//! The container's root becomes `/`, and what must not be seen or changed in it is covered.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, makedev};
use nix::unistd::{chdir, chroot, fchdir, pivot_root};

use super::Given;
use crate::handshake::Step;
use crate::plan::Switch;
use crate::sys::fd::{install, standard};
use crate::sys::mount::{self, Change, Parameter, Reach, attr};
use crate::sys::path::{Kind, ensure, file_type, open_in_root, relative};

/// Whether this is the null device, by kind and number.
// CVE-2025-31133, CVE-2026-88265: the number alone also fits a regular file on some file systems.
fn is_null(stat: &FileStat) -> bool {
    file_type(stat) == SFlag::S_IFCHR && stat.st_rdev == makedev(1, 3)
}

/// A detached mount of the host's null device, for the files to be masked.
pub(super) fn host_null(given: &Given) -> Option<OwnedFd> {
    if given.plan.masked.is_empty() {
        return None;
    }
    let null = given.check(
        mount::clone_tree(AT_FDCWD, c"/dev/null", Reach::One),
        Step::Masked,
        "/dev/null",
    );
    let stat = given.check(fstat(&null), Step::Masked, "/dev/null");
    if !is_null(&stat) {
        given.talk.fail(Step::Masked, Errno::ENODEV, b"/dev/null");
    }
    // It is the host's inode: on a writable mount the container's root could change its mode and owner for the whole
    // machine. A device on a read-only mount can be read and written all the same. Private, since nothing of the host's
    // mounts concerns it, and a checkpoint that says otherwise finds them again only on a host that shares its own.
    let mut change = Change::attributes(attr::RDONLY, 0);
    change.propagation = libc::MS_PRIVATE;
    given.check(
        mount::change(null.as_fd(), Reach::One, change),
        Step::Masked,
        "/dev/null",
    );
    Some(null)
}

/// Make `root` this process's `/`, and let go of the host's tree.
pub(super) fn switch(given: &Given, root: &OwnedFd) {
    given.check(fchdir(root), Step::Pivot, "");
    let done = match given.plan.root.switch {
        Switch::Pivot => pivot(given),
        Switch::Move => move_over(given, root),
        Switch::Chroot => chroot("."),
    };
    given.check(
        done.and_then(|()| chdir("/")),
        Step::Pivot,
        &given.plan.root.path,
    );
}

/// pivot_root with the old root stacked on the new one (pivot_root(2), NOTES), then taken away.
fn pivot(given: &Given) -> nix::Result<()> {
    let old = open(
        "/",
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    pivot_root(".", ".")?;
    if given.plan.root.reaches_host() {
        // Else the host's mounts would be taken away with ours.
        mount::change(
            old.as_fd(),
            Reach::Tree,
            Change::propagation(libc::MS_SLAVE),
        )?;
    }
    umount2(".", MntFlags::MNT_DETACH)
}

/// The root moved over `/`.
fn move_over(given: &Given, root: &OwnedFd) -> nix::Result<()> {
    if given.plan.root.reaches_host() {
        // Else what is taken away below, and the root over `/`, would be so on the host.
        mount::change_path(c"/", Reach::Tree, Change::propagation(libc::MS_SLAVE))?;
    }
    hide_kernel_trees(&given.plan.root.path)?;
    match mount::attach_path(root.as_fd(), c"/") {
        // There already, because the root's own place could not be reached.
        Ok(()) | Err(Errno::ELOOP) => chroot("."),
        Err(errno) => Err(errno),
    }
}

/// Without a pivot the host's /proc and /sys stay mounted somewhere below: unmount them, or cover what cannot be, so
/// that nobody finds them without the masks of the container's own.
fn hide_kernel_trees(root: &Path) -> nix::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let table = read_up_to(
        &open("/proc/self/mountinfo", flags, Mode::empty())?,
        usize::MAX,
    )?;
    for line in table.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let Some(point) = fields.nth(4) else { continue };
        let kind = fields
            .skip_while(|field| *field != b"-")
            .nth(1)
            .unwrap_or_default();
        let point = PathBuf::from(OsString::from_vec(mount::unescape(point)));
        if !matches!(kind, b"proc" | b"sysfs") || point.starts_with(root) {
            continue;
        }
        match umount2(&point, MntFlags::MNT_DETACH) {
            // Gone with one above it.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EINVAL | Errno::EPERM) => cover(&point)?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn cover(point: &Path) -> nix::Result<()> {
    let target = match open(point, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    let empty = mount::new_filesystem(c"tmpfs", [], attr::RDONLY).map_err(|(errno, _)| errno)?;
    mount::attach(empty.as_fd(), target.as_fd())
}

fn read_up_to(file: &OwnedFd, limit: usize) -> nix::Result<Vec<u8>> {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match nix::unistd::read(file, &mut piece)? {
            0 => return Ok(all),
            _ if all.len() >= limit => return Err(Errno::EFBIG),
            length => all.extend_from_slice(&piece[..length]),
        }
    }
}

/// Where a standard stream is the host's null device, give the payload the container's own.
pub(super) fn reopen_null(given: &Given, root: &OwnedFd) {
    for number in 0..=2 {
        if !fstat(standard(number)).is_ok_and(|stat| is_null(&stat)) {
            continue;
        }
        // Looked at before it is opened: another device might be one that acts on being opened.
        let look = |flags| open_in_root(root.as_fd(), Path::new("dev/null"), flags);
        let null = |file: &OwnedFd| fstat(file).is_ok_and(|stat| is_null(&stat));
        let own = match look(OFlag::O_PATH).and_then(|file| match null(&file) {
            true => look(OFlag::O_RDWR | OFlag::O_NONBLOCK),
            false => Err(Errno::ENODEV),
        }) {
            // A container without one keeps the host's.
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            other => given.check(other, Step::Null, "/dev/null"),
        };
        if !null(&own) {
            given.talk.fail(Step::Null, Errno::ENODEV, b"/dev/null");
        }
        given.check(install(own.as_fd(), number), Step::Null, "/dev/null");
    }
}

/// The propagation that the bundle asks for.
// ORDER: after the last mount. A tree that is unbindable cannot be bound over itself.
pub(super) fn propagate(given: &Given, root: &OwnedFd) {
    if let Some((reach, change)) = given.plan.root.finally {
        let done = mount::change(root.as_fd(), reach, change);
        given.check(done, Step::Propagation, "/");
    }
}

/// Make the payload's working directory where it is missing.
// ORDER: before the root becomes read-only.
pub(super) fn make_cwd(given: &Given, root: &OwnedFd) {
    let cwd = &given.plan.process.cwd;
    match ensure(root.as_fd(), cwd, Kind::Directory) {
        // Not to be entered or made by us: the payload's own chdir says why, or succeeds.
        Ok(_) | Err(Errno::EACCES | Errno::EROFS | Errno::ENOTDIR | Errno::ELOOP) => {}
        Err(errno) => given.check(Err(errno), Step::Cwd, cwd),
    }
}

/// One mount to be put over many places: attached once, then cloned from there. A detached mount cannot be cloned
/// before Linux 6.15.
struct Cover {
    mount: OwnedFd,
    attached: bool,
}

impl Cover {
    fn put(&mut self, target: BorrowedFd) -> nix::Result<()> {
        if self.attached {
            return mount::attach(
                mount::clone_tree(self.mount.as_fd(), c"", Reach::One)?.as_fd(),
                target,
            );
        }
        self.attached = true;
        mount::attach(self.mount.as_fd(), target)
    }
}

/// Mask paths and make others read-only; what is missing needs neither.
pub(super) fn protect_paths(given: &Given, root: &OwnedFd, null: Option<OwnedFd>) {
    let look = |path: &Path, step| {
        // A mount of proc or sysfs by its own handle: whoever shares the root with us may have renamed the directory
        // that it is mounted on.
        let climbs = path.components().any(|part| part == Component::ParentDir);
        let trees = given.kernel_trees.iter().rev();
        let kernel = trees
            .filter(|_| !climbs)
            .find_map(|(at, tree)| path.strip_prefix(at).ok().map(|inner| (tree, inner)));
        let (from, path) = kernel.unwrap_or((root, path));
        match open_in_root(from.as_fd(), &relative(path), OFlag::O_PATH) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => None,
            other => Some(given.check(other, step, Path::new("/").join(path))),
        }
    };
    for path in &given.plan.read_only {
        if let Some(target) = look(path, Step::ReadOnly) {
            given.check(
                freeze(target.as_fd(), root.as_fd()),
                Step::ReadOnly,
                Path::new("/").join(path),
            );
        }
    }
    let mut file = null.map(|mount| Cover {
        mount,
        attached: false,
    });
    let mut directory = None;
    for path in &given.plan.masked {
        if let Some(target) = look(path, Step::Masked) {
            given.check(
                mask(given, target.as_fd(), &mut file, &mut directory),
                Step::Masked,
                Path::new("/").join(path),
            );
        }
    }
}

/// A read-only copy of the tree at `target`, over itself; the root itself, below which everybody stands already, has nothing
/// over it that anybody would see.
fn freeze(target: BorrowedFd, root: BorrowedFd) -> nix::Result<()> {
    let read_only = Change::attributes(attr::RDONLY, 0);
    if mount::place(target)? == mount::place(root)? {
        return mount::change(root, Reach::One, read_only);
    }
    let tree = mount::clone_tree(target, c"", Reach::Tree)?;
    mount::change(tree.as_fd(), Reach::Tree, read_only)?;
    mount::attach(tree.as_fd(), target)
}

fn mask(
    given: &Given,
    target: BorrowedFd,
    file: &mut Option<Cover>,
    directory: &mut Option<Cover>,
) -> nix::Result<()> {
    if file_type(&fstat(target)?) != SFlag::S_IFDIR {
        return file.as_mut().ok_or(Errno::ENODEV)?.put(target);
    }
    if directory.is_none() {
        // As small as a file system can be: a mount of it may outlive the container in somebody's namespace.
        let tiny = [
            (c"source", c"tmpfs"),
            (c"nr_blocks", c"1"),
            (c"nr_inodes", c"1"),
        ]
        .map(|(key, value)| Parameter {
            key: key.to_owned(),
            value: Some(value.to_owned()),
        });
        let context = given
            .plan
            .selinux
            .mounts
            .as_deref()
            .map(|context| Parameter {
                key: c"context".to_owned(),
                value: CString::new(context).ok(),
            });
        let mount = mount::new_filesystem(c"tmpfs", tiny.iter().chain(&context), attr::RDONLY)
            .map_err(|(errno, _)| errno)?;
        *directory = Some(Cover {
            mount,
            attached: false,
        });
    }
    directory.as_mut().ok_or(Errno::ENODEV)?.put(target)
}

/// Open the directory `path` of the container to stand in.
pub(super) fn open_directory(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    open_in_root(root.as_fd(), path, OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// The home directory of `uid` as the container's /etc/passwd has it.
pub(super) fn home(root: &OwnedFd, uid: u32) -> Option<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let file = open_in_root(root.as_fd(), Path::new("etc/passwd"), flags).ok()?;
    let stat = fstat(&file).ok()?;
    // A device or an endless file must not hold us up; a link may lead to one in /proc, which says that it is empty.
    if file_type(&stat) != SFlag::S_IFREG {
        return None;
    }
    let text = read_up_to(&file, 1 << 20).ok()?;
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<_> = line.split(|byte| *byte == b':').collect();
        let number: u32 = std::str::from_utf8(fields.get(2)?).ok()?.parse().ok()?;
        (number == uid).then(|| fields.get(5).map(|home| home.to_vec()))?
    })
}

/// A new empty file that no link stands for, or the one that is there.
// CVE-2026-88264: an image's link in that place would make the file somewhere else.
pub(super) fn plain_file(directory: BorrowedFd, name: &str) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(directory, name, flags, Mode::from_bits_truncate(0o644)) {
        Ok(_) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    let file = openat(
        directory,
        name,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    match file_type(&fstat(&file)?) {
        SFlag::S_IFLNK => Err(Errno::ELOOP),
        SFlag::S_IFDIR => Err(Errno::EISDIR),
        _ => Ok(file),
    }
}
