//! A directory tree as values that can be compared, and a tree that has to stay as it is.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::image::sha256;

/// One name in a tree, seen by lstat(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative to the tree; `.` is the tree itself.
    pub(crate) path: PathBuf,
    /// `dir`, `file`, `symlink`, `char`, `block`, `fifo` or `socket`.
    pub(crate) kind: &'static str,
    /// The twelve permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bytes of a file or of a link's text; 0 otherwise.
    pub(crate) size: u64,
    pub(crate) mtime_ns: i128,
    /// All that the caller may see: root also sees `trusted.*`.
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// Names of this file; 0 for a directory, whose count differs by file system.
    pub(crate) nlink: u64,
    /// Where a symlink leads.
    pub(crate) target: Option<PathBuf>,
    /// Of a file's content.
    pub(crate) sha256: Option<String>,
    /// Major and minor of a device.
    pub(crate) rdev: Option<(u64, u64)>,
}

/// Every name at and below `dir`, sorted; no link is followed.
pub(crate) fn tree(dir: impl AsRef<Path>) -> Vec<Entry> {
    let dir = dir.as_ref();
    let mut entries = Vec::new();
    let mut pending = vec![PathBuf::from(".")];
    while let Some(path) = pending.pop() {
        let full = if path == Path::new(".") {
            dir.to_owned()
        } else {
            dir.join(&path)
        };
        let entry = entry(&full, path.clone());
        if entry.kind == "dir" {
            for child in fs::read_dir(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display())) {
                let name = child.expect("directory entry").file_name();
                pending.push(if path == Path::new(".") {
                    name.into()
                } else {
                    path.join(name)
                });
            }
        }
        entries.push(entry);
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    entries
}

/// One name, seen by lstat(2).
pub(crate) fn entry(full: &Path, path: PathBuf) -> Entry {
    let meta = fs::symlink_metadata(full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
    let kind = match meta.mode() & libc::S_IFMT {
        libc::S_IFDIR => "dir",
        libc::S_IFREG => "file",
        libc::S_IFLNK => "symlink",
        libc::S_IFCHR => "char",
        libc::S_IFBLK => "block",
        libc::S_IFIFO => "fifo",
        _ => "socket",
    };
    Entry {
        path,
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        size: if matches!(kind, "file" | "symlink") {
            meta.size()
        } else {
            0
        },
        mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        xattrs: xattrs(full),
        nlink: if kind == "dir" { 0 } else { meta.nlink() },
        target: (kind == "symlink").then(|| fs::read_link(full).expect("read link")),
        sha256: (kind == "file").then(|| sha256(&fs::read(full).expect("read file"))),
        rdev: matches!(kind, "char" | "block").then(|| {
            let number = meta.rdev();
            (
                u64::from(libc::major(number)),
                u64::from(libc::minor(number)),
            )
        }),
    }
}

/// The entry of that path, which has to be there.
#[track_caller]
pub(crate) fn at<'a>(tree: &'a [Entry], path: &str) -> &'a Entry {
    tree.iter()
        .find(|entry| entry.path == Path::new(path))
        .unwrap_or_else(|| {
            let paths: Vec<_> = tree.iter().map(|entry| &entry.path).collect();
            panic!("{path} is not in the tree: {paths:?}")
        })
}

/// Expect the same trees; what differs is named entry by entry.
#[track_caller]
pub(crate) fn assert_same_tree(left: &[Entry], right: &[Entry]) {
    let by_path = |tree: &[Entry]| -> BTreeMap<PathBuf, Entry> {
        tree.iter()
            .map(|entry| (entry.path.clone(), entry.clone()))
            .collect()
    };
    let (left, right) = (by_path(left), by_path(right));
    let mut differences = Vec::new();
    for (path, entry) in &left {
        match right.get(path) {
            None => differences.push(format!("only left:  {}", path.display())),
            Some(other) if other != entry => {
                differences.push(format!("differs:\n  left:  {entry:?}\n  right: {other:?}"));
            }
            Some(_) => {}
        }
    }
    for path in right.keys().filter(|path| !left.contains_key(*path)) {
        differences.push(format!("only right: {}", path.display()));
    }
    let count = differences.len();
    differences.truncate(20);
    assert_eq!(count, 0, "{}", differences.join("\n"));
}

/// Every extended attribute of a name, without following a link.
pub(crate) fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("path without NUL");
    let names = grown(|buffer| kernel::list(&path, buffer));
    names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let wanted = CString::new(name).expect("name without NUL");
            let value = grown(|buffer| kernel::get(&path, &wanted, buffer));
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

/// What a call that fills a buffer has to say, or nothing where the file system has no attributes.
fn grown(call: impl Fn(&mut [u8]) -> isize) -> Vec<u8> {
    let mut buffer = vec![0; 65536];
    let length = usize::try_from(call(&mut buffer)).unwrap_or(0);
    buffer.truncate(length);
    buffer
}

/// The two calls that nix does not have.
#[allow(unsafe_code, reason = "nix has no extended attributes")]
mod kernel {
    use std::ffi::CStr;

    pub(super) fn list(path: &CStr, buffer: &mut [u8]) -> isize {
        // SAFETY: the path ends with NUL, and the kernel writes at most the buffer's length into it.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    }

    pub(super) fn get(path: &CStr, name: &CStr, buffer: &mut [u8]) -> isize {
        // SAFETY: path and name end with NUL, and the kernel writes at most the buffer's length into it.
        unsafe {
            libc::lgetxattr(
                path.as_ptr(),
                name.as_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        }
    }
}

/// A tree that an attack would reach, and that has to stay as it is: contents, attributes, even the time of the last
/// change of each inode. Make it before the attack, then call [`Canary::assert_untouched`].
pub(crate) struct Canary {
    dir: PathBuf,
    before: Vec<(Entry, i64, i64)>,
}

impl Canary {
    /// Make the tree as `canary` in `parent`: a secret (0600), a program, a directory, a link to each.
    pub(crate) fn beside(parent: &Path) -> Self {
        let dir = parent.join("canary");
        fs::create_dir(&dir).expect("canary");
        fs::create_dir(dir.join("etc")).expect("canary");
        for (name, mode) in [("secret", 0o600), ("etc/passwd", 0o644), ("program", 0o755)] {
            fs::write(dir.join(name), format!("the host's {name}\n")).expect("canary");
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).expect("canary");
        }
        symlink("secret", dir.join("link")).expect("canary");
        fs::hard_link(dir.join("secret"), dir.join("twin")).expect("canary");
        Self::watch(dir)
    }

    /// Take an existing tree as it is now.
    pub(crate) fn watch(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self {
            before: seen(&dir),
            dir,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Expect that nothing was touched.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        let after = seen(&self.dir);
        let entries = |all: &[(Entry, i64, i64)]| -> Vec<Entry> {
            all.iter().map(|(entry, ..)| entry.clone()).collect()
        };
        assert_same_tree(&entries(&self.before), &entries(&after));
        for (before, after) in self.before.iter().zip(&after) {
            assert_eq!(before, after, "changed, if only for a moment");
        }
    }
}

fn seen(dir: &Path) -> Vec<(Entry, i64, i64)> {
    tree(dir)
        .into_iter()
        .map(|entry| {
            let meta = fs::symlink_metadata(dir.join(&entry.path)).expect("canary");
            (entry, meta.ctime(), meta.ctime_nsec())
        })
        .collect()
}
