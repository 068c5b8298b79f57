//! `prune --registry`: what no manifest of a registry's storage tree needs, removed.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::super::output;
use super::super::prune::registry::{self, Options};
use super::{Format, print};

/// Prune the tree in `dir`. On a terminal the plan is shown and carried out when the answer is yes, unless `yes` is it.
pub(super) fn prune(dir: &Path, options: &Options, yes: bool, format: Format) -> Result<ExitCode> {
    let asks = !yes && io::stdin().is_terminal() && io::stderr().is_terminal();
    let report = registry::run(dir, options, &mut |report| {
        if !asks {
            return Ok(true);
        }
        let mut stderr = io::stderr().lock();
        write!(stderr, "{}Delete them? [y/N] ", report.plan_text()).context("write to stderr")?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).context("read stdin")?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    })?;
    let Some(report) = report else {
        return Ok(ExitCode::FAILURE);
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
