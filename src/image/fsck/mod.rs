//! The store's content checked against what its names and records say, and what can be put right.
//!
//! Checking changes nothing. What is looked at is held by a lease, so that a prune beside it takes nothing away under
//! the check. Leftovers that the crash rules of `image` allow are told and are no faults.

mod blobs;
mod documents;
mod layers;
mod records;
mod repair;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use super::digest::Digest;
use super::manifest::Descriptor;
use super::output;
use super::progress::Progress;
use super::store::{LayerRecord, Store};

/// What was checked, and what was found.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    checked: Checked,
    faults: Vec<Fault>,
    /// What is no fault: leftovers, and content that nothing needs.
    remarks: Vec<String>,
    duration_seconds: f64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    names: usize,
    documents: usize,
    blobs: usize,
    /// Bytes that were read and hashed.
    blob_bytes: u64,
    layers: usize,
    /// Paths in layers that were compared.
    paths: u64,
    bundles: usize,
    volumes: usize,
}

/// Something that is not as it has to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct Fault {
    kind: Kind,
    /// The blob's digest, the layer's ChainID, the name, the record's id.
    subject: String,
    what: String,
    /// What to do about it.
    advice: String,
    /// The names of the images that need it.
    images: Vec<String>,
    repaired: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Index,
    Document,
    Blob,
    Layer,
    Bundle,
    Volume,
    Record,
}

impl Fault {
    fn new(kind: Kind, subject: impl ToString, what: impl ToString, advice: impl ToString) -> Self {
        Self {
            kind,
            subject: subject.to_string(),
            what: what.to_string(),
            advice: advice.to_string(),
            images: Vec::new(),
            repaired: false,
        }
    }
}

/// What the checks know of each other's findings.
#[derive(Default)]
struct Findings {
    report: Report,
    /// Blobs whose content is not what their digest says.
    damaged: BTreeSet<Digest>,
    /// Blobs that something needs and that are not there.
    missing: BTreeSet<Digest>,
    /// Descriptors of what names lead to, with the names.
    needed: BTreeMap<Digest, (Descriptor, BTreeSet<String>)>,
    /// Layers to be unpacked again.
    broken: Vec<LayerRecord>,
    /// Records that are known to be about nothing.
    dangling: Vec<Dangling>,
}

/// A record that may go, and nothing else with it.
enum Dangling {
    Bundle(String),
    Volume(String),
    /// Of when things were last used.
    Used,
}

impl Findings {
    fn fault(&mut self, fault: Fault) {
        self.report.faults.push(fault);
    }

    fn remark(&mut self, text: impl Into<String>) {
        self.report.remarks.push(text.into());
    }

    fn images(&self, digest: &Digest) -> Vec<String> {
        self.needed
            .get(digest)
            .map(|(_, names)| names.iter().cloned().collect())
            .unwrap_or_default()
    }
}

/// Check the store; with `repair`, put right what can be.
///
/// # Errors
/// The check itself cannot go on, for example for want of rights. What is wrong with the store is in the report.
pub(crate) fn run(store: &Store, repair: bool, progress: &Progress) -> Result<Report> {
    let started = Instant::now();
    let mut findings = Findings::default();
    let lease = store.lease("fsck")?;
    // ORDER: what a lease does not hold may go at any time, so documents hold what they name before it is looked for.
    documents::check(store, &lease, &mut findings);
    blobs::check(store, &lease, progress, &mut findings)?;
    layers::check(store, &lease, progress, &mut findings)?;
    records::check(store, &mut findings);
    findings.report.faults.sort();
    // Our own lease would be in the way.
    drop(lease);
    if repair {
        repair::repair(store, progress, &mut findings);
    }
    let mut report = findings.report;
    report.duration_seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Do `work` for each item, over the cores; the results in the order of the items.
fn parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    let result = work(item);
                    if let Ok(mut done) = done.lock() {
                        done.push((at, result));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

impl Report {
    /// Whether nothing is wrong, or nothing is left wrong after repair.
    pub(crate) fn is_clean(&self) -> bool {
        self.faults.iter().all(|fault| fault.repaired)
    }

    /// For people: a line for each fault with what to do, then what was checked.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for fault in &self.faults {
            let state = if fault.repaired { "repaired: " } else { "" };
            text += &format!(
                "{state}{}: {}",
                output::visible(&fault.subject),
                output::visible(&fault.what)
            );
            if !fault.images.is_empty() {
                text += &format!(" (needed by {})", output::visible(&fault.images.join(", ")));
            }
            text += &format!(": {}\n", output::visible(&fault.advice));
        }
        for remark in &self.remarks {
            text += &format!("{}\n", output::visible(remark));
        }
        let Checked {
            names,
            documents,
            blobs,
            blob_bytes,
            layers,
            paths,
            bundles,
            volumes,
        } = &self.checked;
        let left = self.faults.iter().filter(|fault| !fault.repaired).count();
        let repaired = self.faults.len() - left;
        text += &format!(
            "checked {names} names, {documents} documents, {blobs} blobs ({}), {layers} layers with {paths} paths, {bundles} bundles, {volumes} volumes in {:.1} s: ",
            output::bytes(*blob_bytes),
            self.duration_seconds
        );
        text += &match (left, repaired) {
            (0, 0) => "clean\n".to_owned(),
            (left, 0) => format!("{left} faults\n"),
            (left, repaired) => format!("{repaired} faults repaired, {left} left\n"),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parallel_work_gives_its_results_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..1000).collect();
        let doubled = parallel(&items, |item| item * 2);
        assert_eq!(doubled, (0..2000).step_by(2).collect::<Vec<_>>());
        assert!(parallel(&[] as &[usize], |item| *item).is_empty());
    }
}
