//! `spec`: write a configuration to begin with.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{getegid, geteuid};

use super::{Count, Global, Verb};
use crate::spec;

#[derive(Debug, clap::Args)]
pub(super) struct Spec {
    /// Path to the bundle's root directory [default: the current directory]
    #[arg(short, long, value_name = "DIR")]
    bundle: Option<PathBuf>,

    /// Name of the file to write, below the bundle's root directory
    #[arg(short, long, value_name = "FILE", default_value = "config.json")]
    file: PathBuf,

    /// For a container of the user who runs this command
    #[arg(long)]
    rootless: bool,

    #[arg(hide = true)]
    arguments: Vec<String>,
}

impl Verb for Spec {
    const NAME: &'static str = "spec";
    const ABOUT: &'static str = "create a new specification file, config.json";
    const USAGE: &'static str = "[options]";
    const ARGUMENTS: Count = Count::Exactly(0);

    fn run(self, _: &Global) -> Result<u8> {
        let rootless = self
            .rootless
            .then(|| (geteuid().as_raw(), getegid().as_raw()));
        let cgroup2 =
            statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let text = spec::default_config(rootless, cgroup2);
        let path = self.bundle.unwrap_or_default().join(&self.file);
        let mut file = match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o666)
            .open(&path)
        {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("File {} exists. Remove it first", self.file.display());
            }
            other => other.with_context(|| format!("create {}", path.display()))?,
        };
        file.write_all(text.as_bytes())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(0)
    }
}
