//! `create`: make a container whose payload waits for `start`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{Count, Global, Verb, absolute, descriptors, only_id};
use crate::container::{self, CreateOptions};

/// What `create` and `run` have in common.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Path to the bundle's root directory [default: the current directory]
    #[arg(short, long, value_name = "DIR")]
    bundle: Option<PathBuf>,

    /// File to use as the configuration, instead of the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Socket that is sent the master of the container's terminal; from the bundle, or @NAME for an abstract one
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,

    /// Socket that is sent a pidfd of the container's init; from the bundle, or @NAME for an abstract one
    #[arg(long, value_name = "PATH")]
    pidfd_socket: Option<PathBuf>,

    /// File to write the init's process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,

    /// Do not use pivot_root, for a root file system on a ramdisk; not a safe setting
    #[arg(long)]
    no_pivot: bool,

    /// Do not give the container a session keyring of its own
    #[arg(long)]
    no_new_keyring: bool,

    /// Do not adopt and reap the container's orphans, which only a run in the foreground does
    #[arg(long)]
    pub(super) no_subreaper: bool,

    /// Pass this many more file descriptors, beyond stdio and LISTEN_FDS, to the container
    #[arg(long, value_name = "N", default_value = "0", allow_negative_numbers = true, value_parser = descriptors)]
    preserve_fds: u32,
}

impl Common {
    pub(super) fn options(self, global: &Global, arguments: &[String]) -> Result<CreateOptions> {
        let whole = |path: Option<PathBuf>| path.map(|path| absolute(&path)).transpose();
        Ok(CreateOptions {
            id: only_id(arguments)?,
            root: global.root.clone(),
            bundle: absolute(self.bundle.as_deref().unwrap_or(Path::new(".")))?,
            config: whole(self.config)?,
            console_socket: self.console_socket,
            pid_file: whole(self.pid_file)?,
            pidfd_socket: self.pidfd_socket,
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            preserve_fds: self.preserve_fds,
            rootless: global.rootless,
            driver: global.driver,
        })
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Create {
    #[command(flatten)]
    common: Common,
    #[arg(value_name = "container-id", hide = true)]
    arguments: Vec<String>,
}

impl Verb for Create {
    const NAME: &'static str = "create";
    const ABOUT: &'static str = "create a container";
    const USAGE: &'static str = "[options] <container-id>";
    const ARGUMENTS: Count = Count::Exactly(1);

    fn run(self, global: &Global) -> Result<u8> {
        self.common
            .options(global, &self.arguments)
            .and_then(|options| container::create(&options))
            .with_context(|| format!("{} create failed", global.program))?;
        Ok(0)
    }
}
