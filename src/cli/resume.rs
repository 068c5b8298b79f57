//! `resume`: let the processes of a paused container go on.

use anyhow::Result;

use super::{Count, Global, Verb, only_id};
use crate::container;

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
