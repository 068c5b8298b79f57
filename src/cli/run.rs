//! `run`: create, start and, unless detached, wait and delete.

use anyhow::{Context as _, Result};

use super::create::Common;
use super::{Count, Global, Verb};
use crate::container::{self, RunOptions};

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    #[command(flatten)]
    common: Common,

    /// Return once the payload runs
    #[arg(short, long)]
    detach: bool,

    /// Do not delete the container after its end
    #[arg(long)]
    keep: bool,

    #[arg(value_name = "container-id", hide = true)]
    arguments: Vec<String>,
}

impl Verb for Run {
    const NAME: &'static str = "run";
    const ABOUT: &'static str = "create and run a container";
    const USAGE: &'static str = "[options] <container-id>";
    const ARGUMENTS: Count = Count::Exactly(1);

    fn run(self, global: &Global) -> Result<u8> {
        let (detach, keep) = (self.detach, self.keep);
        let no_subreaper = self.common.no_subreaper;
        self.common
            .options(global, &self.arguments)
            .and_then(|create| {
                container::run(&RunOptions {
                    create,
                    detach,
                    keep,
                    no_subreaper,
                })
            })
            .with_context(|| format!("{} run failed", global.program))
    }
}
