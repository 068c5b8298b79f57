//! `list`: all containers below the state root.

use std::io::ErrorKind;

use anyhow::{Context as _, Result, bail};

use super::state::View;
use super::{Count, Global, Verb, print};
use crate::container::{self, Container};

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Output format: table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: String,

    /// Print only the ids
    #[arg(short, long)]
    quiet: bool,

    #[arg(hide = true)]
    arguments: Vec<String>,
}

impl Verb for List {
    const NAME: &'static str = "list";
    const ABOUT: &'static str = "list the containers started with the given state root";
    const USAGE: &'static str = "[options]";
    const ARGUMENTS: Count = Count::Exactly(0);

    fn run(self, global: &Global) -> Result<u8> {
        let containers = containers(global)?;
        if self.quiet {
            let ids: String = containers
                .iter()
                .map(|container| container.record().id.clone() + "\n")
                .collect();
            return print(&ids);
        }
        let views: Vec<_> = containers.iter().map(View::new).collect();
        match self.format.as_str() {
            "table" => print(&table(&views)),
            // COMPAT: Go writes an empty list as null.
            "json" if views.is_empty() => print("null\n"),
            "json" => print(&(serde_json::to_string(&views).context("write list")? + "\n")),
            _ => bail!("invalid format option"),
        }
    }
}

fn containers(global: &Global) -> Result<Vec<Container>> {
    match container::list(&global.root) {
        // Nobody has created a container yet. A root that was named should be there.
        Err(error)
            if global.root_is_default
                && error
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|cause| cause.kind() == ErrorKind::NotFound) =>
        {
            Ok(Vec::new())
        }
        other => other,
    }
}

/// Columns at least 12 wide, three spaces apart.
fn table(views: &[View<'_>]) -> String {
    let heading = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(heading)
        .chain(views.iter().map(|view| {
            [
                view.id.to_owned(),
                view.pid.to_string(),
                view.status.to_owned(),
                view.bundle.display().to_string(),
                view.created.to_owned(),
                view.owner.clone(),
            ]
        }))
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count() + 3);
        cells.max().unwrap_or(0).max(12)
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row[..5].iter().zip(widths) {
            text.push_str(&format!("{cell:<width$}"));
        }
        text.push_str(&row[5]);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heading_of_an_empty_table_has_runcs_columns() {
        assert_eq!(
            table(&[]),
            "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
        );
    }
}
