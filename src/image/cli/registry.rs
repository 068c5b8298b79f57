//! `prune --registry`: what no manifest of a registry's storage tree needs, removed.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::super::output;
use super::super::prune::registry::{self, Options};
use super::{Format, confirmed, print, somebody_is_there};

/// Prune the tree in `dir`. The plan is shown and carried out when the answer is yes, unless `yes` says so.
pub(super) fn prune(dir: &Path, options: &Options, yes: bool, format: Format) -> Result<ExitCode> {
    let asking = !yes && !options.dry_run && somebody_is_there();
    let report = registry::run(dir, options, &mut |report| {
        Ok(!asking || confirmed(&report.plan_text(), "delete them?")?)
    })?;
    let Some(report) = report else {
        return Ok(ExitCode::SUCCESS);
    };
    print(&match format {
        Format::Table => report.text(),
        Format::Json => output::json(&report)?,
    })?;
    Ok(if report.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
