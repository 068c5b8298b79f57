//! `untag`: names taken away.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::image::output::visible;
use crate::image::reference::Reference;
use crate::image::store::Store;

use super::Global;

/// Take names away; the content stays until prune finds that nothing needs it
#[derive(Args)]
pub(super) struct Untag {
    /// NAME[:TAG]; without a tag `latest` is meant
    #[arg(required = true)]
    names: Vec<String>,
}

impl Untag {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let store = Store::open(&global.root, global.durability)?;
        store.change_names(|entries| {
            // All or none: a name that is not there changes nothing.
            let mut found = Vec::new();
            for name in &self.names {
                let full = Reference::parse(name).map(|reference| reference.to_string());
                let mut candidates = std::iter::once(name.clone()).chain(full.ok());
                match candidates.find(|candidate| entries.has(candidate)) {
                    Some(name) => found.push(name),
                    None => bail!("image {}: not in the store", visible(name)),
                }
            }
            for name in found {
                entries.remove(&name);
            }
            Ok(())
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
