//! Where a container's cgroup is to be: what `linux.cgroupsPath` means to each driver.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Hierarchy, Scope, Unit};

/// The cgroup of this process as a path below the hierarchy.
pub(crate) fn own() -> Result<PathBuf> {
    let text = std::fs::read("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    own_in(&text).context("/proc/self/cgroup names no cgroup v2")
}

/// The cgroup in which `pid` is now, as a path below the hierarchy.
pub(crate) fn of(pid: i32) -> Result<PathBuf> {
    let file = format!("/proc/{pid}/cgroup");
    let text = std::fs::read(&file).with_context(|| format!("read {file}"))?;
    own_in(&text).with_context(|| format!("{file} names no cgroup v2"))
}

/// The v2 entry of a `/proc/PID/cgroup` file.
fn own_in(text: &[u8]) -> Option<PathBuf> {
    let path = text
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"))?;
    Some(PathBuf::from(OsString::from_vec(path.to_vec())))
}

/// Where a container's cgroup lies below the hierarchy, as an absolute path.
///
/// An absolute `cgroups_path` is meant from the hierarchy's root, a relative one from the parent of our own cgroup (our
/// own most likely holds processes, so nothing can be limited below it); an absent or empty one is the container's id
/// there. `own` is asked only when needed.
pub(crate) fn path_for(
    cgroups_path: Option<&Path>,
    id: &str,
    own: impl FnOnce() -> Result<PathBuf>,
) -> Result<PathBuf> {
    let wanted = cgroups_path
        .filter(|path| !path.as_os_str().is_empty())
        .unwrap_or(Path::new(id));
    let mut path = PathBuf::from("/");
    if !wanted.is_absolute() {
        let own = own()?;
        let parent = own.parent().unwrap_or(Path::new("/"));
        path.extend(names(parent).with_context(|| format!("own cgroup {}", own.display()))?);
    }
    path.extend(names(wanted).with_context(|| format!("linux.cgroupsPath {}", wanted.display()))?);
    if path.parent().is_none() {
        bail!(
            "linux.cgroupsPath {} is the root of the hierarchy, which cannot be a container's",
            wanted.display()
        );
    }
    Ok(path)
}

/// The names along a path, from the hierarchy's root. Refuses `..`, which would lead out of what the path names.
pub(super) fn names(path: &Path) -> Result<Vec<&Path>> {
    path.components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .map(|part| match part {
            Component::Normal(name) => Ok(Path::new(name)),
            _ => bail!("the path has a \"..\""),
        })
        .collect()
}

/// Who makes a container's cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Driver {
    #[default]
    Cgroupfs,
    Systemd,
    /// Nobody: it stays in the caller's.
    Disabled,
}

/// Where a container's cgroup is to be.
#[derive(Debug)]
pub(crate) enum Place {
    /// It has none of its own.
    Nowhere,
    Path(PathBuf),
    Scope(Box<Scope>),
}

impl Place {
    /// Find the place that `cgroups_path` names to the driver. Nothing is made; systemd is asked where its own cgroup is.
    pub(crate) fn find<'a>(
        driver: Driver,
        hierarchy: &Hierarchy,
        cgroups_path: Option<&Path>,
        id: &str,
        annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
        rootless: bool,
    ) -> Result<Self> {
        Ok(match driver {
            Driver::Disabled => Self::Nowhere,
            Driver::Cgroupfs => Self::Path(path_for(cgroups_path, id, own)?),
            Driver::Systemd => {
                let scope = Scope::find(hierarchy, cgroups_path, id, annotations, rootless)?;
                Self::Scope(Box::new(scope))
            }
        })
    }

    /// The path below the hierarchy.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Nowhere => None,
            Self::Path(path) => Some(path),
            Self::Scope(scope) => Some(scope.path()),
        }
    }

    /// The unit that will have the cgroup.
    pub(crate) fn unit(&self) -> Option<&Unit> {
        match self {
            Self::Scope(scope) => Some(scope.unit()),
            _ => None,
        }
    }

    /// The number of a descriptor that a child must not keep.
    pub(crate) fn connection(&self) -> Option<RawFd> {
        match self {
            Self::Scope(scope) => scope.connection(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(cgroups_path: Option<&str>, own: &str) -> Result<String> {
        path_for(cgroups_path.map(Path::new), "web", || {
            Ok(PathBuf::from(own))
        })
        .map(|path| path.display().to_string())
    }

    #[test]
    fn a_path_is_absolute_or_beside_our_own() {
        for (cgroups_path, own, expected) in [
            (Some("/a/b"), "/x/y", "/a/b"),
            (Some("//a/./b/"), "/x/y", "/a/b"),
            (Some("a/b"), "/x/y", "/x/a/b"),
            (Some("a"), "/", "/a"),
            (
                Some("system.slice:docker:web"),
                "/x/y",
                "/x/system.slice:docker:web",
            ),
            (Some(""), "/x/y", "/x/web"),
            (None, "/x/y/z", "/x/y/web"),
            (None, "/x", "/web"),
            (None, "/", "/web"),
        ] {
            assert_eq!(
                path(cgroups_path, own).unwrap(),
                expected,
                "{cgroups_path:?} in {own}"
            );
        }
    }

    #[test]
    fn an_absolute_path_does_not_ask_for_our_own() {
        let asked = || -> Result<PathBuf> { bail!("asked") };
        assert_eq!(
            path_for(Some(Path::new("/a")), "web", asked).unwrap(),
            Path::new("/a")
        );
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for (cgroups_path, own, error) in [
            (
                Some("/a/../b"),
                "/",
                "linux.cgroupsPath /a/../b: the path has a \"..\"",
            ),
            (
                Some("../b"),
                "/x/y",
                "linux.cgroupsPath ../b: the path has a \"..\"",
            ),
            (None, "/../x/y", "own cgroup /../x/y: the path has a \"..\""),
            (
                Some("/"),
                "/",
                "linux.cgroupsPath / is the root of the hierarchy, which cannot be a container's",
            ),
            (
                Some("."),
                "/",
                "linux.cgroupsPath . is the root of the hierarchy, which cannot be a container's",
            ),
        ] {
            assert_eq!(format!("{:#}", path(cgroups_path, own).unwrap_err()), error);
        }
    }

    #[test]
    fn our_own_cgroup_is_the_entry_of_v2() {
        assert_eq!(
            own_in(b"0::/user.slice/a b\n"),
            Some(PathBuf::from("/user.slice/a b"))
        );
        assert_eq!(
            own_in(b"9:name=systemd:/x\n8:pids:/\n0::/\n"),
            Some(PathBuf::from("/"))
        );
        assert_eq!(own_in(b"9:name=systemd:/x\n"), None);
    }
}
