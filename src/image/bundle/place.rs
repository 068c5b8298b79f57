//! Where volumes may be mounted: words of the command line and of the image become places inside the root filesystem.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlink};

use crate::sys::path::{Kind, ensure, open_in_root, relative};

use super::super::volume;

/// What is mounted there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A volume of the store.
    Volume(String),
    /// A file or directory of the host, absolute.
    Host(PathBuf),
}

/// One `--volume`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) source: Source,
    /// Absolute and clean, as seen inside.
    pub(crate) destination: PathBuf,
    pub(crate) read_only: bool,
}

impl Wanted {
    /// Parse `NAME:DEST`, `PATH:DEST`, each with `:ro` or `:rw` at its end. A path has a slash.
    ///
    /// # Errors
    /// Another form, a name that is none, or a destination that is not absolute.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let whole = || format!("--volume {text}");
        let (rest, read_only) = match text.rsplit_once(':') {
            Some((rest, "ro")) => (rest, true),
            Some((rest, "rw")) => (rest, false),
            _ => (text, false),
        };
        let Some((source, destination)) = rest.split_once(':') else {
            bail!("{}: expected NAME:DEST or PATH:DEST", whole());
        };
        if !destination.starts_with('/') {
            bail!("{}: {destination:?} is not an absolute path", whole());
        }
        let destination = clean(destination);
        if destination == Path::new("/") {
            bail!("{}: nothing can be mounted over the root", whole());
        }
        let source = if source.contains('/') {
            let path = std::path::absolute(source).with_context(whole)?;
            Source::Host(path)
        } else {
            volume::check_name(source).with_context(whole)?;
            Source::Volume(source.to_owned())
        };
        Ok(Self {
            source,
            destination,
            read_only,
        })
    }
}

/// `path` as it would be reached from a root directory without links: absolute, no dots, never above the root.
// CVE-2022-23648: an image's volume `/../..` was joined to the root filesystem and read the host's files.
pub(super) fn clean(path: &str) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => drop(cleaned.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// Whether an image may not ask for a volume there: the root, and the kernel's file systems with all below them.
// CVE-2019-16884: a volume over /proc took the place of the files by which security modules are told what to do.
pub(super) fn is_reserved(path: &Path) -> bool {
    path == Path::new("/")
        || ["/proc", "/sys", "/dev"]
            .iter()
            .any(|reserved| path.starts_with(reserved))
}

/// The `Volumes` of an image: each place once, parents before what is below them; and those that are refused.
pub(super) fn of_image(volumes: &[String]) -> (Vec<PathBuf>, Vec<String>) {
    let mut places: Vec<PathBuf> = Vec::new();
    let mut refused = Vec::new();
    for text in volumes {
        let place = clean(text);
        if text.contains('\0') || is_reserved(&place) {
            refused.push(text.clone());
        } else if !places.contains(&place) {
            places.push(place);
        }
    }
    places.sort();
    (places, refused)
}

/// `untrusted_path` inside `root` with every link resolved there, made as `kind` says where nothing is. The result is
/// absolute as seen from inside.
///
/// # Errors
/// It cannot be made, or is of another kind.
pub(super) fn settle(root: BorrowedFd, untrusted_path: &Path, kind: Kind) -> Result<PathBuf> {
    let inside = relative(untrusted_path);
    let (found, _) = ensure(root, &inside, kind)?;
    if kind == Kind::Directory {
        open_in_root(root, &inside, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .context("the image has something there that is not a directory")?;
    }
    let name = |fd: BorrowedFd| -> Result<PathBuf, Errno> {
        readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str()).map(PathBuf::from)
    };
    let (top, found) = (name(root)?, name(found.as_fd())?);
    let below = found
        .strip_prefix(&top)
        .with_context(|| format!("{} is not below {}", found.display(), top.display()))?;
    Ok(Path::new("/").join(below))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::symlink;

    // L-51, S-11: CVE-2022-23648
    #[test]
    fn a_path_is_cleaned_and_stays_below_the_root() {
        for (from, to) in [
            ("/data", "/data"),
            ("data", "/data"),
            ("/data/", "/data"),
            ("//a//b/./c", "/a/b/c"),
            ("/../../etc", "/etc"),
            ("../../../var/lib/x", "/var/lib/x"),
            ("/a/../..", "/"),
            ("", "/"),
            (".", "/"),
            ("/data/../proc", "/proc"),
        ] {
            assert_eq!(clean(from), Path::new(to), "{from:?}");
        }
    }

    // L-51, S-11: CVE-2019-16884
    #[test]
    fn no_image_gets_a_volume_over_the_root_or_the_kernels_file_systems() {
        let asked = [
            "/",
            "",
            "..",
            "/proc",
            "/proc/self",
            "/sys/fs",
            "/dev",
            "/dev/shm",
            "/x/../proc",
            "/data/b",
            "/data",
            "data",
            "/processes",
            "/data/a/..",
            "/a\0b",
        ];
        let (places, refused) = of_image(&asked.map(str::to_owned));
        assert_eq!(
            places,
            ["/data", "/data/b", "/processes"].map(PathBuf::from)
        );
        assert_eq!(
            refused,
            [
                "/",
                "",
                "..",
                "/proc",
                "/proc/self",
                "/sys/fs",
                "/dev",
                "/dev/shm",
                "/x/../proc",
                "/a\0b"
            ]
        );
    }

    #[test]
    fn a_volume_on_the_command_line_is_a_name_or_a_path_with_a_slash() {
        let wanted = |source, destination: &str, read_only| Wanted {
            source,
            destination: destination.into(),
            read_only,
        };
        let name = |name: &str| Source::Volume(name.into());
        let host = |path: &str| Source::Host(path.into());
        for (text, expected) in [
            ("db:/var/lib/db", wanted(name("db"), "/var/lib/db", false)),
            ("db:/data:ro", wanted(name("db"), "/data", true)),
            ("/srv/x:/data:rw", wanted(host("/srv/x"), "/data", false)),
            ("/srv/x:/a/../b/:ro", wanted(host("/srv/x"), "/b", true)),
        ] {
            assert_eq!(Wanted::parse(text).unwrap(), expected, "{text}");
        }
        for text in [
            "db",
            "db:",
            "db:data",
            "/srv:/",
            "/srv:/a/..",
            ":/data",
            "..:/data",
            "a b:/data",
            "db:ro",
            "-x:/data",
        ] {
            Wanted::parse(text).expect_err(text);
        }
    }

    #[test]
    fn links_of_the_image_are_resolved_before_the_place_is_judged() {
        let dir = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        for name in ["proc", "var/data"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        symlink("/proc", dir.path().join("data")).unwrap();
        symlink("../../../../var", dir.path().join("up")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        for (path, place) in [
            ("/data", "/proc"),
            ("/data/sub", "/proc/sub"),
            ("/up/data", "/var/data"),
            ("/new/deep", "/new/deep"),
        ] {
            let found = settle(root.as_fd(), Path::new(path), Kind::Directory).unwrap();
            assert_eq!(found, Path::new(place), "{path}");
        }
        settle(root.as_fd(), Path::new("/file"), Kind::Directory).unwrap_err();
        settle(root.as_fd(), Path::new("/file/below"), Kind::Directory).unwrap_err();
    }
}
