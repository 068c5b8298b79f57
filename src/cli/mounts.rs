//! `mounts`: mounts of a running container, made or taken away.

use std::ffi::OsString;
use std::path::Path;
use std::str::FromStr as _;

use anyhow::{Result, bail};

use super::{Count, Global, Verb};
use crate::container::{self, Id, Live};

// COMPAT: crun's verb.
#[derive(Debug, clap::Args)]
pub(super) struct Mounts {
    #[arg(value_name = "add|remove container-id file", hide = true)]
    arguments: Vec<OsString>,
}

impl Verb for Mounts {
    const NAME: &'static str = "mounts";
    const ABOUT: &'static str = "add mounts to a running container, or remove them";
    const USAGE: &'static str = "add|remove <container-id> <file, or - for standard input>";
    const ARGUMENTS: Count = Count::Exactly(3);

    fn run(self, global: &Global) -> Result<u8> {
        let [what, id, file] = &self.arguments[..] else {
            unreachable!("the arguments are counted");
        };
        let live = match what.to_str() {
            Some("add") => Live::Add,
            Some("remove") => Live::Remove,
            _ => bail!("mounts: {what:?} is neither add nor remove"),
        };
        let id = Id::from_str(&id.to_string_lossy())?;
        container::change_mounts(&global.root, &id, live, Path::new(file))?;
        Ok(0)
    }
}
