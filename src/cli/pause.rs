//! `pause` and `resume`: stop every process of a container, and let them go on.

use anyhow::Result;

use super::{Count, Global, Verb, only_id};
use crate::container;

#[derive(Debug, clap::Args)]
pub(super) struct Pause {
    #[arg(value_name = "container-id", hide = true)]
    arguments: Vec<String>,
}

impl Verb for Pause {
    const NAME: &'static str = "pause";
    const ABOUT: &'static str = "suspend all processes inside the container";
    const USAGE: &'static str = "<container-id>";
    const ARGUMENTS: Count = Count::Exactly(1);

    fn run(self, global: &Global) -> Result<u8> {
        container::pause(&global.root, &only_id(&self.arguments)?)?;
        Ok(0)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Resume {
    #[arg(value_name = "container-id", hide = true)]
    arguments: Vec<String>,
}

impl Verb for Resume {
    const NAME: &'static str = "resume";
    const ABOUT: &'static str = "resume all processes that have been paused";
    const USAGE: &'static str = "<container-id>";
    const ARGUMENTS: Count = Count::Exactly(1);

    fn run(self, global: &Global) -> Result<u8> {
        container::resume(&global.root, &only_id(&self.arguments)?)?;
        Ok(0)
    }
}
