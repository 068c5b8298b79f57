//! What no manifest of a registry needs, found in its storage tree and removed.
//!
//! Two layouts are known by what is in the directory: `manifests/<org>/<repo>` beside `blobs/<org>/<repo>`, and the
//! reference registry's `docker/registry/v2`. Anything unreadable, truncated or unexpected stops the sweep and is named:
//! what it protects is not known.
//!
//! The registry need not be stopped, but it should be read-only or quiet. Two things are out of reach here: a client
//! that was told that an old blob is there and pushes only the manifest, to a registry that does not look for the
//! content; and a request that passed that look before the sweep began and ends after it. The grace covers both as long
//! as it is longer than a push takes.

mod distribution;
mod document;
mod flat;
mod mark;
mod survey;
mod sweep;
mod tree;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::fcntl::Flock;
use serde::Serialize;

use crate::report;

use super::super::digest::Digest;
use super::super::output::{self, Table};
use super::super::store::now;
use mark::{Marked, mark};
use survey::{ASIDE, Place, Stored, Survey};
use tree::{Stamp, Tree};

/// The grace where none is given: longer than any push.
pub(crate) const GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// An upload without a write for this long is told, in seconds.
const OLD_UPLOAD: i64 = 24 * 60 * 60;

/// How a tree is pruned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Show what would go.
    pub(crate) dry_run: bool,
    /// What was written, linked or renamed more recently than this stays.
    pub(crate) grace: Duration,
    /// Only tags are roots: manifests that no tag leads to go too.
    pub(crate) untagged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Layout {
    /// `manifests` and `blobs`, by repository.
    Flat,
    /// `docker/registry/v2`.
    Distribution,
}

impl Layout {
    fn survey(self, tree: &Tree, again: bool) -> Survey {
        match self {
            Self::Flat => flat::survey(tree, again),
            Self::Distribution => distribution::survey(tree, again),
        }
    }

    /// Whether what is kept needs the candidate.
    fn needs(self, marked: &Marked, candidate: &Candidate) -> bool {
        let in_one = |sets: &BTreeMap<String, BTreeSet<Digest>>| {
            candidate
                .repository
                .as_ref()
                .and_then(|name| sets.get(name))
                .is_some_and(|set| set.contains(&candidate.digest))
        };
        match candidate.kind {
            Kind::Manifest => in_one(&marked.kept),
            Kind::Blob if candidate.repository.is_some() => in_one(&marked.needed),
            Kind::Blob => marked.anywhere(&candidate.digest),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Manifest,
    Blob,
}

/// What became of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Deed {
    Planned,
    Aside,
    Deleted {
        freed: u64,
    },
    /// It was touched between the first look and its turn, so it stayed.
    Changed,
    /// The second look found something that needs it.
    NeededAgain,
    Failed(String),
}

/// Something that is to go.
#[derive(Clone, Debug)]
struct Candidate {
    kind: Kind,
    digest: Digest,
    repository: Option<String>,
    /// In the order of removal: what leads there before what it leads to.
    places: Vec<Place>,
    /// Seconds since it was last written, linked or renamed.
    age: i64,
    deed: Deed,
}

/// What was found and what is to go: shown first, then carried out as it is.
struct Plan {
    tree: Tree,
    layout: Layout,
    options: Options,
    /// Unix seconds at which ages are measured.
    time: i64,
    /// See [`Survey::stored_as`]. The links that say so are aside at the second look.
    stored_as: BTreeMap<Digest, Digest>,
    candidates: Vec<Candidate>,
    report: Report,
    _lock: Option<Flock<File>>,
}

/// What was found, and what was done about it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    layout: Layout,
    dry_run: bool,
    untagged: bool,
    grace_seconds: u64,
    repositories: usize,
    tags: usize,
    manifests: Count,
    blobs: Count,
    /// Bytes on disk that the plan frees, hard links once.
    planned_bytes: u64,
    /// Bytes on disk that were freed, hard links once.
    freed_bytes: u64,
    plan: Vec<Line>,
    /// Content that manifests need and that is not there.
    missing: Vec<String>,
    /// Uploads without a write for a day; they are left.
    old_uploads: Vec<OldUpload>,
    /// Uploads of all ages.
    uploads: usize,
    remarks: Vec<String>,
    duration_seconds: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Count {
    scanned: usize,
    referenced: usize,
    unreferenced: usize,
    /// Unreferenced, and younger than the grace.
    spared: usize,
    deleted: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    kind: Kind,
    digest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<String>,
    paths: Vec<String>,
    /// On disk.
    bytes: u64,
    age_seconds: i64,
    /// `planned`, `deleted`, `changed`, `needed` or `failed`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OldUpload {
    path: String,
    age_seconds: i64,
}

/// Prune the registry's tree in `dir`. `confirm` is shown the plan and says whether it is carried out; none is returned
/// where it says no. A dry run asks nothing and changes nothing.
///
/// # Errors
/// The directory is not a registry's tree; or something in it is unreadable or unexpected, and then all of it is named
/// and nothing is removed.
pub(crate) fn run(
    dir: &Path,
    options: &Options,
    confirm: &mut dyn FnMut(&Report) -> Result<bool>,
) -> Result<Option<Report>> {
    let started = Instant::now();
    let mut plan = Plan::make(dir, options)?;
    plan.tell();
    if !options.dry_run && !plan.candidates.is_empty() {
        if !confirm(&plan.report)? {
            return Ok(None);
        }
        sweep::carry_out(&mut plan)?;
        plan.tell();
    }
    plan.report.duration_seconds = started.elapsed().as_secs_f64();
    Ok(Some(plan.report))
}

/// The tree that registries' content is in, and how it is laid out.
fn recognise(dir: &Path) -> Result<(Tree, Layout)> {
    let tree = Tree::open(dir)?;
    let has = |path: &str| -> Result<bool> {
        Ok(tree
            .stamp(path)
            .unwrap_or_default()
            .is_some_and(|stamp| stamp.kind == nix::sys::stat::SFlag::S_IFDIR))
    };
    let flat = has("manifests")? && has("blobs")?;
    let inner = "docker/registry/v2";
    let nested = has(inner)?;
    let itself = has("repositories")? && has("blobs/sha256")?;
    match (flat, nested, itself) {
        (true, false, false) => Ok((tree, Layout::Flat)),
        (false, true, false) => {
            let tree = tree.below(inner)?;
            for half in ["repositories", "blobs"] {
                if tree.directory(half)?.is_none() {
                    bail!("{}: is not there, so nothing is certain", tree.shown(half));
                }
            }
            Ok((tree, Layout::Distribution))
        }
        (false, false, true) => Ok((tree, Layout::Distribution)),
        (false, false, false) => bail!(
            "{}: not the storage of a registry: neither manifests and blobs nor docker/registry/v2 are there",
            dir.display()
        ),
        _ => bail!(
            "{}: more than one layout of a registry's storage is there",
            dir.display()
        ),
    }
}

impl Plan {
    fn make(dir: &Path, options: &Options) -> Result<Self> {
        let (tree, layout) = recognise(dir)?;
        let lock = (!options.dry_run).then(|| sweep::lock(&tree)).transpose()?;
        let mut remarks = Vec::new();
        if options.dry_run {
            if tree.directory(ASIDE)?.is_some() {
                remarks.push(format!(
                    "{}: a sweep was interrupted or is running; the next one puts its content back first",
                    tree.shown(ASIDE)
                ));
            }
        } else if sweep::recover(&tree)? {
            remarks.push("what an interrupted sweep had set aside was put back".to_owned());
        }
        let survey = layout.survey(&tree, false);
        let time = i64::try_from(now()).unwrap_or(i64::MAX);
        let mut plan = Self {
            report: Report::of(layout, options, &survey, time, remarks, &tree),
            tree,
            layout,
            options: *options,
            time,
            stored_as: survey.stored_as.clone(),
            candidates: Vec::new(),
            _lock: lock,
        };
        let marked = plan.mark(&survey, false)?;
        plan.choose(&survey, &marked);
        Ok(plan)
    }

    fn look_again(&self) -> Result<Marked> {
        let mut survey = self.layout.survey(&self.tree, true);
        survey.stored_as.extend(self.stored_as.clone());
        self.mark(&survey, true)
    }

    /// What stays; an error that names everything that could not be read.
    fn mark(&self, survey: &Survey, again: bool) -> Result<Marked> {
        let recent = |stored: &Stored| {
            let places = stored.places.iter().map(|place| &place.stamp);
            self.within_grace(self.age(places.chain(&stored.dated_by)))
        };
        let marked = mark(
            survey,
            self.options.untagged,
            &recent,
            &mut |digest| match self.layout {
                Layout::Flat => Ok(None),
                Layout::Distribution => {
                    Ok(distribution::fetch(&self.tree, digest, again)?.map(|(needs, _)| needs))
                }
            },
        );
        let faults: Vec<_> = survey.faults.iter().chain(&marked.faults).collect();
        if let [first, others @ ..] = &*faults {
            for other in others {
                report::warn(format_args!("{}", output::visible(other)));
            }
            let more = match others.len() {
                0 => String::new(),
                count => format!(" (and {count} more, named above)"),
            };
            bail!("nothing was removed: {}{more}", output::visible(first));
        }
        Ok(marked)
    }

    /// Seconds since the newest of the stamps; negative where that is in the future.
    fn age<'one>(&self, stamps: impl Iterator<Item = &'one Stamp>) -> i64 {
        let newest = stamps.map(|stamp| stamp.newest(self.time)).max();
        newest.map_or(i64::MAX, |newest| self.time.saturating_sub(newest))
    }

    /// Without a grace everything is old enough, whatever the clock says.
    fn within_grace(&self, age: i64) -> bool {
        let grace = i64::try_from(self.options.grace.as_secs()).unwrap_or(i64::MAX);
        !self.options.grace.is_zero() && age < grace.max(1)
    }

    fn choose(&mut self, survey: &Survey, marked: &Marked) {
        let mut candidates = Vec::new();
        for (name, repository) in &survey.repositories {
            for (digest, stored) in &repository.manifests {
                // Content that the repository has no link to is counted as a blob.
                if stored.places.is_empty() {
                    continue;
                }
                let stamps = stored.places.iter().map(|place| &place.stamp);
                candidates.push(Candidate {
                    kind: Kind::Manifest,
                    digest: digest.clone(),
                    repository: Some(name.clone()),
                    age: self.age(stamps.chain(&stored.dated_by)),
                    places: stored.places.clone(),
                    deed: Deed::Planned,
                });
            }
        }
        for blob in &survey.blobs {
            let places: Vec<_> = blob.links.iter().chain([&blob.place]).cloned().collect();
            candidates.push(Candidate {
                kind: Kind::Blob,
                digest: blob.digest.clone(),
                repository: blob.repository.clone(),
                age: self.age(places.iter().map(|place| &place.stamp)),
                places,
                deed: Deed::Planned,
            });
        }
        candidates.retain(|candidate| {
            let needed = self.layout.needs(marked, candidate);
            let spared = !needed && self.within_grace(candidate.age);
            if spared && candidate.age < 0 {
                self.report.remarks.push(format!(
                    "{}: its time lies in the future, so its age is not known: it stays while there is a grace",
                    self.tree.shown(&candidate.places[0].path)
                ));
            }
            let count = match candidate.kind {
                Kind::Manifest => &mut self.report.manifests,
                Kind::Blob => &mut self.report.blobs,
            };
            count.scanned += 1;
            count.referenced += usize::from(needed);
            count.unreferenced += usize::from(!needed);
            count.spared += usize::from(spared);
            !needed && !spared
        });
        self.report.missing = missing(survey, marked);
        if self.report.manifests.scanned == 0 && self.report.blobs.scanned > 0 {
            report::warn(format_args!(
                "{}: there are blobs and not one manifest",
                self.tree.shown("")
            ));
        }
        self.candidates = candidates;
    }

    /// Bring the report up to date with the candidates.
    fn tell(&mut self) {
        let report = &mut self.report;
        report.manifests.deleted = 0;
        report.blobs.deleted = 0;
        report.freed_bytes = 0;
        report.planned_bytes = planned(&self.candidates);
        report.plan.clear();
        for candidate in &self.candidates {
            let (state, error) = match &candidate.deed {
                Deed::Planned | Deed::Aside => ("planned", None),
                Deed::Deleted { freed } => {
                    report.freed_bytes += freed;
                    match candidate.kind {
                        Kind::Manifest => report.manifests.deleted += 1,
                        Kind::Blob => report.blobs.deleted += 1,
                    }
                    ("deleted", None)
                }
                Deed::Changed => ("changed", None),
                Deed::NeededAgain => ("needed", None),
                Deed::Failed(error) => ("failed", Some(error.clone())),
            };
            report.plan.push(Line {
                kind: candidate.kind,
                digest: candidate.digest.clone(),
                repository: candidate.repository.clone(),
                paths: candidate
                    .places
                    .iter()
                    .map(|place| place.path.clone())
                    .collect(),
                bytes: candidate.places.iter().map(|place| place.stamp.disk).sum(),
                age_seconds: candidate.age,
                state,
                error,
            });
        }
    }
}

/// What the removal of all candidates frees: a file with several names only where all of them go.
fn planned(candidates: &[Candidate]) -> u64 {
    let mut names: HashMap<(u64, u64), (u64, Stamp)> = HashMap::new();
    for place in candidates.iter().flat_map(|candidate| &candidate.places) {
        let key = (place.stamp.device, place.stamp.inode);
        names.entry(key).or_insert((0, place.stamp)).0 += 1;
    }
    names
        .values()
        .filter(|(count, stamp)| *count >= stamp.links)
        .map(|(_, stamp)| stamp.disk)
        .sum()
}

/// Content that manifests need and that is nowhere; for people, since a pull of it fails.
fn missing(survey: &Survey, marked: &Marked) -> Vec<String> {
    let there: BTreeSet<(Option<&str>, &Digest)> = survey
        .blobs
        .iter()
        .map(|blob| (blob.repository.as_deref(), &blob.digest))
        .collect();
    let is_there = |name: &str, digest: &Digest| {
        there.contains(&(Some(name), digest))
            || there.contains(&(None, survey.stored_as.get(digest).unwrap_or(digest)))
            || marked.kept[name].contains(digest)
    };
    marked
        .expected
        .iter()
        .filter(|(name, digest)| !is_there(name, digest))
        .map(|(name, digest)| format!("{name}: {digest}"))
        .collect()
}

impl Report {
    fn of(
        layout: Layout,
        options: &Options,
        survey: &Survey,
        time: i64,
        remarks: Vec<String>,
        tree: &Tree,
    ) -> Self {
        let old = survey.uploads.iter().filter_map(|upload| {
            let age_seconds = time.saturating_sub(upload.written);
            (age_seconds >= OLD_UPLOAD).then(|| OldUpload {
                path: tree.shown(&upload.path),
                age_seconds,
            })
        });
        Self {
            layout,
            dry_run: options.dry_run,
            untagged: options.untagged,
            grace_seconds: options.grace.as_secs(),
            repositories: survey.repositories.len(),
            tags: survey.repositories.values().map(|one| one.tags.len()).sum(),
            manifests: Count::default(),
            blobs: Count::default(),
            planned_bytes: 0,
            freed_bytes: 0,
            plan: Vec::new(),
            missing: Vec::new(),
            old_uploads: old.collect(),
            uploads: survey.uploads.len(),
            remarks,
            duration_seconds: 0.0,
        }
    }

    /// Whether something that was to go could not be removed. The exit code is then 1.
    pub(crate) fn failed(&self) -> bool {
        self.plan.iter().any(|line| line.state == "failed")
    }

    /// The plan as a table, for the question whether to carry it out.
    pub(crate) fn plan_text(&self) -> String {
        if self.plan.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&["KIND", "DIGEST", "SIZE", "AGE", "REPOSITORY"]);
        for line in &self.plan {
            let repository = line.repository.as_deref().unwrap_or("-");
            table.row([
                match line.kind {
                    Kind::Manifest => "manifest".into(),
                    Kind::Blob => "blob".into(),
                },
                line.digest.to_string().into(),
                output::bytes(line.bytes).into(),
                age_text(line.age_seconds).into(),
                output::visible(repository),
            ]);
        }
        format!(
            "{}{} manifests and {} blobs to delete, {} to free\n",
            table.text(),
            self.count(Kind::Manifest),
            self.count(Kind::Blob),
            output::bytes(self.planned_bytes)
        )
    }

    fn count(&self, kind: Kind) -> usize {
        self.plan.iter().filter(|line| line.kind == kind).count()
    }

    /// What was found and done, for people.
    pub(crate) fn text(&self) -> String {
        let mut text = if self.dry_run {
            self.plan_text()
        } else {
            String::new()
        };
        let mut table = Table::new(&[
            "KIND",
            "SCANNED",
            "REFERENCED",
            "UNREFERENCED",
            "WITHIN GRACE",
            "DELETED",
        ]);
        for (kind, count) in [("manifests", self.manifests), ("blobs", self.blobs)] {
            table.row([
                kind.into(),
                count.scanned.to_string().into(),
                count.referenced.to_string().into(),
                count.unreferenced.to_string().into(),
                count.spared.to_string().into(),
                count.deleted.to_string().into(),
            ]);
        }
        text += &table.text();
        for line in &self.plan {
            let what = match (line.state, &line.error) {
                ("changed", _) => "changed meanwhile, left",
                ("needed", _) => "needed again, put back",
                (_, Some(error)) => error,
                _ => continue,
            };
            text += &format!("{}: {}\n", line.digest, output::visible(what));
        }
        for missing in &self.missing {
            text += &format!("missing: {}\n", output::visible(missing));
        }
        for upload in &self.old_uploads {
            text += &format!(
                "unfinished upload, {} old, left: {}\n",
                age_text(upload.age_seconds),
                output::visible(&upload.path)
            );
        }
        for remark in &self.remarks {
            text += &format!("{}\n", output::visible(remark));
        }
        let (verb, bytes) = if self.dry_run {
            ("would free", self.planned_bytes)
        } else {
            ("freed", self.freed_bytes)
        };
        text += &format!(
            "{verb} {} in {:.1} s\n",
            output::bytes(bytes),
            self.duration_seconds
        );
        text
    }
}

fn age_text(seconds: i64) -> String {
    match u64::try_from(seconds) {
        Err(_) => "in the future".to_owned(),
        Ok(seconds) => {
            // Two units are enough for people.
            let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
            text.split(' ').take(2).collect::<Vec<_>>().join(" ")
        }
    }
}
