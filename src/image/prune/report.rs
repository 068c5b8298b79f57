//! What a prune found, meant and did, as a table and as JSON (docs/IMAGE.md, "prune").

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::image::output::{self, Table};

use crate::image::prune::plan::{Item, Plan, Sort};

/// Counts of one sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Tally {
    pub(crate) scanned: usize,
    pub(crate) referenced: usize,
    pub(crate) unreferenced: usize,
    pub(crate) deleted: usize,
    /// Blocks on disk in bytes, counted after they were given back.
    pub(crate) freed_bytes: u64,
}

/// Something that could not be removed.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Failure {
    #[serde(rename = "kind")]
    pub(crate) sort: Sort,
    pub(crate) id: String,
    pub(crate) error: String,
}

/// The whole.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) dry_run: bool,
    /// What shall go.
    pub(crate) plan: Vec<Item>,
    /// Added up over the plan.
    pub(crate) plan_bytes: u64,
    /// What went, with the bytes that became free.
    pub(crate) deleted: Vec<Item>,
    /// Unreferenced when it was planned, and still there: by grace, filter or size, or because it came into use.
    pub(crate) spared: Vec<Item>,
    pub(crate) failed: Vec<Failure>,
    pub(crate) kinds: BTreeMap<Sort, Tally>,
    pub(crate) freed_bytes: u64,
    /// What was passed over, in words.
    pub(crate) remarks: Vec<String>,
    pub(crate) seconds: f64,
}

impl Report {
    /// Of a plan that was not carried out, yet or at all.
    pub(crate) fn of(plan: &Plan) -> Self {
        let tally = |sort: &Sort| {
            let count = plan.counts.get(sort).copied().unwrap_or_default();
            let tally = Tally {
                scanned: count.scanned,
                referenced: count.referenced,
                unreferenced: count.unreferenced,
                ..Tally::default()
            };
            (*sort, tally)
        };
        Self {
            plan: plan.items.clone(),
            plan_bytes: plan.bytes(),
            spared: plan.spared.clone(),
            kinds: Sort::ALL.iter().map(tally).collect(),
            remarks: plan.remarks.iter().cloned().collect(),
            seconds: plan.took.as_secs_f64(),
            ..Self::default()
        }
    }

    /// Something went, and that many bytes with it.
    pub(crate) fn deleted(&mut self, mut item: Item, freed: u64) {
        let tally = self.kinds.entry(item.sort).or_default();
        tally.deleted += 1;
        tally.freed_bytes += freed;
        self.freed_bytes += freed;
        item.bytes = freed;
        self.deleted.push(item);
    }

    pub(crate) fn failed(&mut self, item: &Item, error: &anyhow::Error) {
        self.failed.push(Failure {
            sort: item.sort,
            id: item.id.clone(),
            error: crate::report::sentence(error),
        });
    }

    pub(crate) fn took(&mut self, time: Duration) {
        self.seconds = time.as_secs_f64();
    }

    pub(crate) fn json(&self) -> Result<String> {
        output::json(self)
    }

    /// The plan as a table, and one line that adds it up.
    pub(crate) fn plan_text(&self) -> String {
        let mut text = String::new();
        if !self.plan.is_empty() {
            let mut table = Table::new(&["KIND", "ID", "SIZE", "LAST USED", "WHY"]);
            for item in &self.plan {
                table.row([
                    item.sort.word().into(),
                    item.id.as_str().into(),
                    output::bytes(item.bytes).into(),
                    item.last_used.as_deref().unwrap_or("-").into(),
                    item.reason.as_str().into(),
                ]);
            }
            text.push_str(&table.text());
        }
        let bytes = output::bytes(self.plan_bytes);
        match self.plan.len() {
            0 => text.push_str("nothing to remove\n"),
            1 => text.push_str(&format!("1 thing to remove, {bytes}\n")),
            many => text.push_str(&format!("{many} things to remove, {bytes}\n")),
        }
        if !self.spared.is_empty() {
            text.push_str(&format!(
                "{} unreferenced, but spared:\n",
                self.spared.len()
            ));
            text.push_str(&self.spared_text());
        }
        self.add_remarks(&mut text);
        text
    }

    /// What was done.
    pub(crate) fn done_text(&self) -> String {
        let mut table = Table::new(&[
            "KIND",
            "SCANNED",
            "REFERENCED",
            "UNREFERENCED",
            "DELETED",
            "FREED",
        ]);
        for (sort, tally) in &self.kinds {
            table.row([
                sort.word().into(),
                tally.scanned.to_string().into(),
                tally.referenced.to_string().into(),
                tally.unreferenced.to_string().into(),
                tally.deleted.to_string().into(),
                output::bytes(tally.freed_bytes).into(),
            ]);
        }
        let mut text = table.text();
        if !self.spared.is_empty() {
            text.push_str("spared:\n");
            text.push_str(&self.spared_text());
        }
        text.push_str(&format!(
            "{} deleted, {} freed in {:.2} s\n",
            self.deleted.len(),
            output::bytes(self.freed_bytes),
            self.seconds
        ));
        self.add_remarks(&mut text);
        text
    }

    fn spared_text(&self) -> String {
        let mut table = Table::new(&["KIND", "ID", "SIZE", "WHY IT STAYS"]);
        for item in &self.spared {
            table.row([
                item.sort.word().into(),
                item.id.as_str().into(),
                output::bytes(item.bytes).into(),
                item.reason.as_str().into(),
            ]);
        }
        table.text()
    }

    fn add_remarks(&self, text: &mut String) {
        for remark in &self.remarks {
            text.push_str(&format!("note: {}\n", output::visible(remark)));
        }
    }
}
