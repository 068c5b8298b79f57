//! `delete`: remove a container and what the host holds for it.

use anyhow::{Context as _, Result};

use super::{Count, Global, Verb, only_id, to_each};
use crate::container;

#[derive(Debug, clap::Args)]
pub(super) struct Delete {
    /// Kill the container first if it still runs; an absent container is no error
    #[arg(short, long)]
    force: bool,

    /// The argument is a regular expression: delete every container whose id matches it
    #[arg(short, long)]
    regex: bool,

    #[arg(value_name = "container-id", hide = true)]
    arguments: Vec<String>,
}

impl Verb for Delete {
    const NAME: &'static str = "delete";
    const ABOUT: &'static str = "delete a container and the resources it holds";
    const USAGE: &'static str = "[options] <container-id>";
    const ARGUMENTS: Count = Count::Exactly(1);

    fn run(self, global: &Global) -> Result<u8> {
        if self.regex {
            return to_each(global, &self.arguments, |id| {
                container::delete(&global.root, id, self.force)
                    .with_context(|| format!("delete {id}"))
            });
        }
        container::delete(&global.root, &only_id(&self.arguments)?, self.force)?;
        Ok(0)
    }
}
