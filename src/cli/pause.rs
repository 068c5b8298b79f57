//! `pause`: stop every process of a container.

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
