//! `prune --registry`: what no manifest of a registry's storage tree needs, removed.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::report::Hinted;

use super::super::output;
use super::super::prune::registry::{self, Options};
use super::{Format, print};

/// Prune the tree in `dir`. The plan is shown and carried out when the answer is yes, unless `yes` says so.
pub(super) fn prune(dir: &Path, options: &Options, yes: bool, format: Format) -> Result<ExitCode> {
    let asks = !yes && !options.dry_run;
    if asks && !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        let error = "nobody is there to be asked";
        let hint = "say --yes to prune, or --dry-run to see what would go";
        return Err(Hinted::new(error, hint).into());
    }
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
