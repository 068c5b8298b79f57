//! Resolution inside a root directory, by descriptor: every component of a path that may lie is looked up below the
//! root, and what comes back is a handle on what was found, never a name.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::unistd::symlinkat;

/// As many symbolic links as the kernel follows in one resolution (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Open `untrusted_path` with the root directory `root` standing for `/`: absolute links and `..` stay inside it
/// (openat2 with RESOLVE_IN_ROOT, Linux 5.6). Magic links are not followed.
pub(crate) fn open_in_root(
    root: BorrowedFd,
    untrusted_path: &Path,
    flags: OFlag,
) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    open_how(root, untrusted_path, flags, resolve)
}

/// The same without following any symbolic link on the way (ELOOP when one is met).
pub(crate) fn open_no_links(
    root: BorrowedFd,
    untrusted_path: &Path,
    flags: OFlag,
) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_SYMLINKS;
    open_how(root, untrusted_path, flags, resolve)
}

/// Open `path` below `dir` with no link, no mount and no `..` on the way: for kernel file systems such as /proc/sys.
// CVE-2025-52881: a mount over a procfs file would send the write to another file.
pub(crate) fn open_beneath(dir: BorrowedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    open_how(dir, path, flags, resolve)
}

fn open_how(
    root: BorrowedFd,
    path: &Path,
    flags: OFlag,
    resolve: ResolveFlag,
) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(resolve);
    // EAGAIN: something was renamed or mounted while `..` was resolved; the kernel asks to try again.
    for _ in 0..64 {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
    Err(Errno::EAGAIN)
}

/// What [`ensure`] makes where nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// A handle (O_PATH) on `untrusted_path` inside `root`, made when it is missing: directories with mode 0755, the last
/// component as `kind` says. Tells whether the last component was made.
///
/// A dangling symbolic link is completed inside the root, as the kernel would see it from there.
// CVE-2024-45310: each component is made relative to a handle on its parent, so a link swapped in meanwhile leads
// nowhere outside.
pub(crate) fn ensure(
    root: BorrowedFd,
    untrusted_path: &Path,
    kind: Kind,
) -> nix::Result<(OwnedFd, bool)> {
    match open_in_root(root, untrusted_path, OFlag::O_PATH) {
        Err(Errno::ENOENT) => Walk::new(root, untrusted_path)?.make(kind),
        found => found.map(|fd| (fd, false)),
    }
}

/// The same with the last component as it stands: a symbolic link is not followed.
///
/// # Errors
/// EINVAL for a path that ends with no name.
pub(crate) fn ensure_unfollowed(
    root: BorrowedFd,
    untrusted_path: &Path,
    kind: Kind,
) -> nix::Result<(OwnedFd, bool)> {
    let (directory, name) = parent(root, untrusted_path)?;
    match look(directory.as_fd(), name) {
        Err(Errno::ENOENT) => ensure(directory.as_fd(), Path::new(name), kind),
        found => found.map(|fd| (fd, false)),
    }
}

/// Make a symbolic link to `text` at `untrusted_path` inside `root`; one that is there already with the same text will do.
///
/// # Errors
/// EEXIST when something else is there.
pub(crate) fn ensure_link(
    root: BorrowedFd,
    untrusted_path: &Path,
    text: &OsStr,
) -> nix::Result<()> {
    let (directory, name) = parent(root, untrusted_path)?;
    match symlinkat(text, &directory, name) {
        Err(Errno::EEXIST) if readlinkat(&directory, name).is_ok_and(|there| there == text) => {
            Ok(())
        }
        done => done,
    }
}

/// A handle on the directory that holds the last component, made when it is missing, and that component.
fn parent<'path>(root: BorrowedFd, path: &'path Path) -> nix::Result<(OwnedFd, &'path OsStr)> {
    let name = path.file_name().ok_or(Errno::EINVAL)?;
    let above = path.parent().filter(|path| !path.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new("."));
    let (directory, _) = ensure(root, above, Kind::Directory)?;
    Ok((directory, name))
}

/// A resolution component by component: the handles of the directories walked through, and what is left to walk.
struct Walk<'root> {
    root: BorrowedFd<'root>,
    /// The directory stood in is the last; `..` leaves it, and the root when there is none.
    parents: Vec<OwnedFd>,
    /// Components still to come, the next one last.
    rest: Vec<OsString>,
    links: usize,
}

impl<'root> Walk<'root> {
    fn new(root: BorrowedFd<'root>, path: &Path) -> nix::Result<Self> {
        let mut walk = Self {
            root,
            parents: Vec::new(),
            rest: Vec::new(),
            links: 0,
        };
        walk.push(path);
        Ok(walk)
    }

    fn push(&mut self, path: &Path) {
        if path.is_absolute() {
            self.parents.clear();
        }
        let names = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        });
        let names: Vec<_> = names.collect();
        self.rest.extend(names.into_iter().rev());
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.parents.last().map_or(self.root, AsFd::as_fd)
    }

    fn make(mut self, kind: Kind) -> nix::Result<(OwnedFd, bool)> {
        let mut made = false;
        while let Some(name) = self.rest.pop() {
            if name == ".." {
                self.parents.pop();
                continue;
            }
            let last = self.rest.is_empty();
            let fd = match look(self.here(), &name) {
                Err(Errno::ENOENT) => {
                    made = last;
                    self.create(&name, if last { kind } else { Kind::Directory })?
                }
                found => found?,
            };
            match file_type(&fstat(&fd)?) {
                SFlag::S_IFLNK => {
                    self.links += 1;
                    if self.links > MAX_LINKS {
                        return Err(Errno::ELOOP);
                    }
                    let target = readlinkat(&fd, "")?;
                    self.push(Path::new(&target));
                }
                SFlag::S_IFDIR => self.parents.push(fd),
                _ if last => return Ok((fd, made)),
                _ => return Err(Errno::ENOTDIR),
            }
        }
        match self.parents.pop() {
            Some(fd) => Ok((fd, made)),
            None => Ok((
                self.root.try_clone_to_owned().map_err(|_| Errno::EMFILE)?,
                false,
            )),
        }
    }

    fn create(&self, name: &OsStr, kind: Kind) -> nix::Result<OwnedFd> {
        match kind {
            Kind::Directory => match mkdirat(self.here(), name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error),
            },
            Kind::File => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                match openat(self.here(), name, flags, Mode::from_bits_truncate(0o644)) {
                    Ok(_) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        look(self.here(), name)
    }
}

fn look(dir: BorrowedFd, name: &OsStr) -> nix::Result<OwnedFd> {
    openat(
        dir,
        name,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// The type bits of a file's mode.
pub(crate) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// The names of a path, relative: without slashes in front and `.`; none where a `..` could lead out.
pub(crate) fn names(path: &Path) -> Option<PathBuf> {
    let name = |part| match part {
        Component::Normal(name) => Some(Some(name)),
        Component::RootDir | Component::CurDir => Some(None),
        Component::ParentDir | Component::Prefix(_) => None,
    };
    let names: Option<Vec<_>> = path.components().map(name).collect();
    Some(names?.into_iter().flatten().collect())
}

/// A path as it is written relative to a root: without the leading slashes, `.` for the root itself.
pub(crate) fn relative(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let start = bytes.iter().position(|b| *b != b'/').unwrap_or(bytes.len());
    if start == bytes.len() {
        PathBuf::from(".")
    } else {
        PathBuf::from(OsStr::from_bytes(&bytes[start..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        (dir, fd)
    }

    #[test]
    fn ensure_makes_missing_directories_and_the_last_file() {
        let (dir, fd) = root();
        let (_, made) = ensure(fd.as_fd(), Path::new("/a/b/c"), Kind::File).unwrap();
        assert!(made);
        assert!(dir.path().join("a/b/c").is_file());
        let (_, made) = ensure(fd.as_fd(), Path::new("/a/b/c"), Kind::File).unwrap();
        assert!(!made);
    }

    #[test]
    fn ensure_completes_a_dangling_absolute_link_inside_the_root() {
        let (dir, fd) = root();
        symlink("/target/deep", dir.path().join("link")).unwrap();
        ensure(fd.as_fd(), Path::new("link/x"), Kind::Directory).unwrap();
        assert!(dir.path().join("target/deep/x").is_dir());
        assert!(!Path::new("/target").exists());
    }

    #[test]
    fn dots_never_climb_out_of_the_root() {
        let (dir, fd) = root();
        symlink("../../../../../../up", dir.path().join("link")).unwrap();
        ensure(fd.as_fd(), Path::new("../../link/made"), Kind::Directory).unwrap();
        assert!(dir.path().join("up/made").is_dir());
    }

    #[test]
    fn a_chain_of_links_that_never_ends_is_refused() {
        let (dir, fd) = root();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert_eq!(
            ensure(fd.as_fd(), Path::new("a/x"), Kind::Directory).unwrap_err(),
            Errno::ELOOP
        );
    }

    #[test]
    fn a_file_in_the_middle_is_not_a_directory() {
        let (dir, fd) = root();
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(
            ensure(fd.as_fd(), Path::new("file/x"), Kind::Directory).unwrap_err(),
            Errno::ENOTDIR
        );
    }

    #[test]
    fn a_link_at_the_end_is_left_alone_where_it_is_not_to_be_followed() {
        let (dir, fd) = root();
        symlink("/elsewhere", dir.path().join("link")).unwrap();
        let (link, made) = ensure_unfollowed(fd.as_fd(), Path::new("link"), Kind::File).unwrap();
        assert!(!made);
        assert_eq!(file_type(&fstat(&link).unwrap()), SFlag::S_IFLNK);
        let (_, made) = ensure_unfollowed(fd.as_fd(), Path::new("a/b"), Kind::File).unwrap();
        assert!(made && dir.path().join("a/b").is_file());
    }

    #[test]
    fn a_link_is_made_once() {
        let (dir, fd) = root();
        for _ in 0..2 {
            ensure_link(fd.as_fd(), Path::new("a/link"), OsStr::new("x/y")).unwrap();
        }
        assert_eq!(
            fs::read_link(dir.path().join("a/link")).unwrap(),
            Path::new("x/y")
        );
        for (name, text) in [("a/link", "other"), ("a", "x")] {
            let made = ensure_link(fd.as_fd(), Path::new(name), OsStr::new(text));
            assert_eq!(made, Err(Errno::EEXIST), "{name}");
        }
    }

    #[test]
    fn names_are_what_a_path_consists_of_unless_it_climbs() {
        for (path, names) in [
            ("/a/./b//c/", Some("a/b/c")),
            ("", Some("")),
            ("/.", Some("")),
            ("a/../b", None),
            ("..", None),
        ] {
            assert_eq!(
                super::names(Path::new(path)),
                names.map(PathBuf::from),
                "{path}"
            );
        }
    }

    #[test]
    fn relative_drops_the_leading_slashes_only() {
        for (from, to) in [
            ("/proc", "proc"),
            ("//a/../b", "a/../b"),
            ("/", "."),
            ("", "."),
            ("x", "x"),
        ] {
            assert_eq!(relative(Path::new(from)), Path::new(to), "{from}");
        }
    }
}
