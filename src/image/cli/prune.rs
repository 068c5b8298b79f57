//! `prune`: what nothing needs, removed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::image::containers::RuntimeRoots;
use crate::image::output;
use crate::image::prune::filter::{self, Filter};
use crate::image::prune::plan::{Options, Plan};
use crate::image::prune::report::Report;
use crate::image::prune::{self, registry};
use crate::image::store::Store;
use crate::image::userns::{self, Wanted};
use crate::report;

use super::{Format, Global, confirmed, print, somebody_is_there};

/// Remove what nothing needs: cached blobs, orphan layers, what dead commands left
#[derive(Args)]
pub(super) struct Prune {
    /// Prune the storage tree of a registry instead of the store
    #[arg(long, value_name = "DIR", conflicts_with_all = ["all", "volumes", "filters", "keep_storage", "force_corrupt"])]
    registry: Option<PathBuf>,

    /// With --registry: manifests that no tag leads to go too
    #[arg(long, requires = "registry")]
    untagged: bool,

    /// Also images that no container, bundle or running command uses
    #[arg(long, short)]
    all: bool,

    /// Also volumes that none of them names, except pinned ones
    #[arg(long)]
    volumes: bool,

    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,

    /// Do not ask
    #[arg(long, short)]
    yes: bool,

    /// Keep what was referenced in the last DURATION, such as 24h or 7days [default: 0; with --registry 24h]
    #[arg(long, value_name = "DURATION", value_parser = filter::grace)]
    grace: Option<u64>,

    /// Only what matches: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]; all of several have to match
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<Filter>,

    /// Remove the longest unused first, and stop when the store takes no more than SIZE
    #[arg(long, value_name = "SIZE", value_parser = filter::size)]
    keep_storage: Option<u64>,

    /// Go on though an image, bundle or container is damaged, and lose what only that leads to
    #[arg(long)]
    force_corrupt: bool,

    /// A further state directory of the runtime, beside its usual one
    #[arg(long = "runtime-root", value_name = "DIR")]
    runtime_roots: Vec<PathBuf>,

    /// The shape of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Prune {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        if let Some(dir) = &self.registry {
            let options = registry::Options {
                dry_run: self.dry_run,
                grace: self.grace.map_or(registry::GRACE, Duration::from_secs),
                untagged: self.untagged,
            };
            return super::registry::prune(dir, &options, self.yes, self.format);
        }
        // What belongs to a user's subordinate ids is measured and removed by who is root over them.
        userns::enter(Wanted { mounts: false })?;
        // A script has nobody to ask: what it calls, it means.
        let asking = !self.dry_run && !self.yes && somebody_is_there();
        let Some(store) = Store::existing(&global.root)? else {
            let mut nothing = Report::of(&Plan::default());
            nothing.dry_run = self.dry_run;
            return self.show(&nothing).map(|()| ExitCode::SUCCESS);
        };
        store.require_own()?;
        let roots = RuntimeRoots::for_sweep(self.runtime_roots.clone())?;
        let options = Options {
            all: self.all,
            volumes: self.volumes,
            grace: self.grace.unwrap_or(0),
            filters: self.filters.clone(),
            keep_storage: self.keep_storage,
            force_corrupt: self.force_corrupt,
        };
        let plan = prune::plan(&store, &roots, &options)?;
        let mut planned = Report::of(&plan);
        planned.dry_run = self.dry_run;
        if self.dry_run || (asking && !agreed(&planned)?) {
            if self.dry_run || self.format == Format::Json {
                self.show(&planned)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let done = prune::sweep(&store, &plan, &roots, &options)?;
        self.show(&done)?;
        for failure in &done.failed {
            report::warn(format_args!(
                "{} {}: {}",
                failure.sort.word(),
                output::visible(&failure.id),
                failure.error
            ));
        }
        match done.failed.len() {
            0 => Ok(ExitCode::SUCCESS),
            failed => Err(not_all(failed)),
        }
    }

    fn show(&self, report: &Report) -> Result<()> {
        match self.format {
            Format::Json => print(&report.json()?),
            Format::Table if report.dry_run => print(&report.plan_text()),
            Format::Table => print(&report.done_text()),
        }
    }
}

fn not_all(failed: usize) -> anyhow::Error {
    let text = match failed {
        1 => "1 thing could not be removed".to_owned(),
        many => format!("{many} things could not be removed"),
    };
    anyhow::Error::msg(text)
}

/// Show the plan, and ask where there is something in it.
fn agreed(planned: &Report) -> Result<bool> {
    let text = planned.plan_text();
    if planned.plan.is_empty() {
        print(&text)?;
        return Ok(false);
    }
    confirmed(&text, "remove them?")
}
