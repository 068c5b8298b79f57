//! `volume`: named volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::image::containers::{Containers, RuntimeRoots};
use crate::image::mounts;
use crate::image::output::{self, Table};
use crate::image::store::{Store, VolumeRecord};
use crate::image::userns;
use crate::image::volume::{self, Wishes};
use crate::report::{rfc3339, sentence};

use super::bundle::key_value;
use super::{Format, Global, print};

/// Create, list and remove volumes
#[derive(Args)]
pub(super) struct Volume {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Create(Create),
    #[command(visible_alias = "ls")]
    List(List),
    Rm(Rm),
}

/// Make volumes
#[derive(Args)]
struct Create {
    /// No prune removes it
    #[arg(long)]
    pin: bool,

    /// A label, for filters
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,

    /// What to call them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// List volumes
#[derive(Args)]
struct List {
    /// The shape of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    /// Only those with this label
    #[arg(long = "filter", value_name = "label=KEY[=VALUE]", value_parser = label_filter)]
    filters: Vec<(String, Option<String>)>,
}

/// Remove volumes with all they hold
#[derive(Args)]
struct Rm {
    /// Also those that a bundle or a container uses
    #[arg(long, short)]
    force: bool,

    /// The volumes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Volume {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        match self.verb {
            Verb::Create(verb) => verb.run(global)?,
            Verb::List(verb) => verb.run(global)?,
            Verb::Rm(verb) => verb.run(global)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Create {
    fn run(self, global: &Global) -> Result<()> {
        for name in &self.names {
            volume::check_name(name)?;
        }
        let wishes = Wishes {
            pinned: self.pin,
            labels: self.labels.into_iter().collect(),
        };
        let store = Store::open(&global.root, global.durability)?;
        for name in &self.names {
            if !volume::create(&store, name, &wishes)? {
                bail!("volume {name}: there is one of that name already");
            }
        }
        Ok(())
    }
}

/// One volume, as `--format json` shows it (docs/IMAGE.md).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    path: PathBuf,
    pinned: bool,
    labels: BTreeMap<String, String>,
    /// RFC 3339, UTC.
    created: String,
    /// Bundles, containers and running commands, one sentence each.
    used_by: Vec<String>,
}

impl List {
    fn run(self, global: &Global) -> Result<()> {
        let mut rows = Vec::new();
        if let Some(store) = Store::existing(&global.root)? {
            let containers = Containers::read(&RuntimeRoots::new(Vec::new()))?;
            let leases = store.leases()?.live;
            let mounted = mounts::mounted()?;
            let mut records = store.volume_records()?;
            records.retain(|record| self.filters.iter().all(|filter| matches(record, filter)));
            records.sort_by(|a, b| a.name.cmp(&b.name));
            for record in records {
                let used_by = volume::users(&store, &leases, &containers, &mounted, &record.name)?;
                rows.push(Row {
                    path: store.volume_path(&record.name),
                    created: rfc3339(UNIX_EPOCH + Duration::from_secs(record.created)),
                    name: record.name,
                    pinned: record.pinned,
                    labels: record.labels,
                    used_by,
                });
            }
        }
        match self.format {
            Format::Json => print(&output::json(&rows)?),
            Format::Table => print(&table(&rows)),
        }
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new(&["NAME", "PINNED", "USED BY", "CREATED", "LABELS"]);
    for row in rows {
        let labels: Vec<String> = row
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let created = row.created.split('.').next().unwrap_or_default();
        let cells = [
            row.name.clone(),
            if row.pinned { "yes" } else { "no" }.to_owned(),
            row.used_by.len().to_string(),
            format!("{created}Z"),
            labels.join(","),
        ];
        table.row(cells.map(Into::into));
    }
    table.text()
}

fn matches(record: &VolumeRecord, (key, value): &(String, Option<String>)) -> bool {
    match (record.labels.get(key), value) {
        (Some(found), Some(value)) => found == value,
        (found, None) => found.is_some(),
        (None, Some(_)) => false,
    }
}

/// `label=KEY` or `label=KEY=VALUE`.
fn label_filter(text: &str) -> Result<(String, Option<String>)> {
    let Some(label) = text
        .strip_prefix("label=")
        .filter(|label| !label.is_empty())
    else {
        bail!("expected label=KEY or label=KEY=VALUE");
    };
    Ok(match label.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (label.to_owned(), None),
    })
}

impl Rm {
    fn run(self, global: &Global) -> Result<()> {
        // What containers wrote belongs to ids that an ordinary user has only in its namespace.
        userns::enter(userns::Wanted { mounts: false })?;
        let store = Store::open(&global.root, global.durability)?;
        let roots = RuntimeRoots::usual()?;
        let mut failures = Vec::new();
        for name in &self.names {
            failures.extend(volume::remove(&store, &roots, name, self.force).err());
        }
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            _ => {
                let all: Vec<String> = failures.iter().map(sentence).collect();
                bail!("{}", all.join("; "))
            }
        }
    }
}
