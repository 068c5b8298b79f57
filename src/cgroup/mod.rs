//! Resource control, cgroup v2 only.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

pub(crate) struct Hierarchy;

impl Hierarchy {
    pub(crate) fn probe() -> Result<Self> {
        Ok(Self)
    }
}

pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    pub(crate) fn open(_: &Hierarchy, path: &Path) -> Result<Option<Self>> {
        let path = Path::new("/sys/fs/cgroup").join(path.strip_prefix("/").unwrap_or(path));
        Ok(path.is_dir().then_some(Self(path)))
    }

    pub(crate) fn kill(&self) -> Result<()> {
        std::fs::write(self.0.join("cgroup.kill"), "1").context("kill cgroup")
    }

    pub(crate) fn remove(&self) -> Result<()> {
        std::fs::remove_dir(&self.0).context("remove cgroup")
    }
}
