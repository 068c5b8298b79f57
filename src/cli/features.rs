//! `features`: what this build supports, as JSON (runtime-spec, features.md).

use anyhow::Result;

use super::{Count, Global, Verb, print};
use crate::spec;

#[derive(Debug, clap::Args)]
pub(super) struct Features {
    #[arg(hide = true)]
    arguments: Vec<String>,
}

impl Verb for Features {
    const NAME: &'static str = "features";
    const ABOUT: &'static str = "show the enabled features";
    const USAGE: &'static str = "";
    const ARGUMENTS: Count = Count::Exactly(0);

    fn run(self, _: &Global) -> Result<u8> {
        let mut text = spec::features_json();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        print(&text)
    }
}
