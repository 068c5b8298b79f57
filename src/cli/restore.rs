//! `restore`: make a container again from the files of a checkpoint.

use anyhow::{Context as _, Result};

use super::{Count, Global, Verb};
use super::{checkpoint, create};
use crate::container::{self, RestoreOptions, RunOptions};

#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    #[command(flatten)]
    common: create::Common,

    #[command(flatten)]
    images: checkpoint::ImageOptions,

    /// Return once the container runs
    #[arg(short, long)]
    detach: bool,

    /// Security label for the processes instead of that of the checkpoint, TYPE:NAME
    #[arg(long, value_name = "TYPE:NAME")]
    lsm_profile: Option<String>,

    /// SELinux context for mounts instead of that of the checkpoint
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,

    #[arg(value_name = "container-id", hide = true)]
    arguments: Vec<String>,
}

impl Verb for Restore {
    const NAME: &'static str = "restore";
    const ABOUT: &'static str = "restore a container from a checkpoint";
    const USAGE: &'static str = "[options] <container-id>";
    const ARGUMENTS: Count = Count::Exactly(1);

    fn run(self, global: &Global) -> Result<u8> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let no_subreaper = self.common.no_subreaper;
        let options = RestoreOptions {
            run: RunOptions {
                create: self.common.options(global, &self.arguments)?,
                detach: self.detach,
                keep: false,
                no_subreaper,
            },
            images: self.images.images()?,
            lsm_profile: given(self.lsm_profile),
            lsm_mount_context: given(self.lsm_mount_context),
        };
        container::restore(&options).with_context(|| format!("{} restore failed", global.program))
    }
}
