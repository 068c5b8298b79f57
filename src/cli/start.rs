//! `start`: let the payload of a created container begin.

use anyhow::Result;

use super::{Count, Global, Verb, only_id};
use crate::container;

#[derive(Debug, clap::Args)]
pub(super) struct Start {
    #[arg(value_name = "container-id", hide = true)]
    arguments: Vec<String>,
}

impl Verb for Start {
    const NAME: &'static str = "start";
    const ABOUT: &'static str = "start the user process of a created container";
    const USAGE: &'static str = "<container-id>";
    const ARGUMENTS: Count = Count::Exactly(1);

    fn run(self, global: &Global) -> Result<u8> {
        container::start(&global.root, &only_id(&self.arguments)?)?;
        Ok(0)
    }
}
