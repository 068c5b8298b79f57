//! `df`: what the disk holds.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::image::containers::RuntimeRoots;
use crate::image::output;
use crate::image::prune;
use crate::image::store::{Guard, Store};
use crate::image::usage::{self, Usage};
use crate::image::userns::{self, Wanted};
use crate::report;

use super::{Format, Global, print};

/// Show what the store takes on the disk, and what could be freed
#[derive(Args)]
pub(super) struct Df {
    /// Every image, layer and volume too
    #[arg(long, short)]
    verbose: bool,

    /// A further state directory of the runtime, beside its usual one
    #[arg(long = "runtime-root", value_name = "DIR")]
    runtime_roots: Vec<PathBuf>,

    /// The shape of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Df {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        // What belongs to a user's subordinate ids is measured by who is root over them.
        userns::enter(Wanted { mounts: false })?;
        let store = Store::existing(&global.root)?;
        let usage = match &store {
            Some(store) => {
                let marked = {
                    let _moment: Option<Guard> = store.shared().ok();
                    prune::survey(store, &RuntimeRoots::new(self.runtime_roots))
                };
                for fault in &marked.faults {
                    report::warn(format_args!("{}", fault.sentence()));
                }
                usage::usage(store, &marked)?
            }
            None => Usage::default(),
        };
        match self.format {
            Format::Json => print(&output::json(&usage)?)?,
            Format::Table => print(&usage.text(self.verbose))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
