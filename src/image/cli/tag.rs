//! `tag`: another name for an image.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::image::output::visible;
use crate::image::reference::Reference;
use crate::image::store::Store;

use super::Global;

/// Give an image more names; a name that another image has moves to this one
#[derive(Args)]
pub(super) struct Tag {
    /// A name, a digest, or the beginning of a digest
    image: String,
    /// NAME[:TAG]; without a tag it gets `latest`
    #[arg(required = true)]
    names: Vec<String>,
}

impl Tag {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let mut names = Vec::new();
        for name in &self.names {
            let reference = Reference::parse(name)?;
            if reference.digest().is_some() {
                bail!(
                    "name {}: a digest cannot be given to an image",
                    visible(name)
                );
            }
            names.push(reference.to_string());
        }
        let store = Store::open(&global.root, global.durability)?;
        // Held until the names are set, lest a prune takes what is just being named.
        let _moment = store.shared()?;
        let (_, target) = store.find(&self.image)?;
        store
            .change_names(|entries| names.iter().try_for_each(|name| entries.set(name, &target)))?;
        Ok(ExitCode::SUCCESS)
    }
}
