//! What shall go, decided from what was marked. Nothing is changed here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::image::digest::Digest;
use crate::image::output;
use crate::image::store::{Store, Used};

use super::filter::{Filter, unix_seconds};
use super::mark::{Entry, Kept, Marked, What};
use super::scan::tree_size;
use super::size::Size;

/// How far a prune goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Also images that no container, bundle or running command uses.
    pub(crate) all: bool,
    /// Also volumes that none of them names.
    pub(crate) volumes: bool,
    /// Seconds since something was last referenced.
    pub(crate) grace: u64,
    pub(crate) filters: Vec<Filter>,
    /// Bytes: when the store is as small as this, the rest stays.
    pub(crate) keep_storage: Option<u64>,
    /// Pass over roots that cannot be read.
    pub(crate) force_corrupt: bool,
}

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sort {
    /// An entry of index.json.
    Image,
    /// The record of a bundle whose directory is gone.
    Bundle,
    Layer,
    Blob,
    Volume,
    /// Left by a command that died: unfinished work, its lease, what it was removing.
    Leftover,
}

impl Sort {
    pub(crate) const ALL: [Self; 6] = [
        Self::Image,
        Self::Bundle,
        Self::Layer,
        Self::Blob,
        Self::Volume,
        Self::Leftover,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Bundle => "bundle",
            Self::Layer => "layer",
            Self::Blob => "blob",
            Self::Volume => "volume",
            Self::Leftover => "leftover",
        }
    }
}

/// One thing that shall go, or that could have gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Item {
    #[serde(rename = "kind")]
    pub(crate) sort: Sort,
    /// A name, digest or ChainID, or a path below the store's root.
    pub(crate) id: String,
    /// Of an image: what its name leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<Digest>,
    /// Blocks on disk in bytes.
    pub(crate) bytes: u64,
    /// When a prune last saw it referenced; none if none ever did.
    pub(crate) last_used: Option<String>,
    /// Why it goes, or why it stays.
    pub(crate) reason: String,
}

/// How many there are of a sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Count {
    pub(crate) scanned: usize,
    pub(crate) referenced: usize,
    pub(crate) unreferenced: usize,
}

/// What shall go, in the order in which it goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) items: Vec<Item>,
    /// Unreferenced, and kept by the grace, a filter or `--keep-storage`.
    pub(crate) spared: Vec<Item>,
    pub(crate) counts: BTreeMap<Sort, Count>,
    pub(crate) remarks: BTreeSet<String>,
    /// The marking and this.
    pub(crate) took: Duration,
}

impl Plan {
    pub(crate) fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.bytes).sum()
    }
}

/// The key of a thing in records/used.json.
pub(super) fn used_key(sort: Sort, id: &str) -> String {
    format!("{}:{id}", sort.word())
}

/// A candidate: its item, and what decides about it.
struct Candidate {
    item: Item,
    /// When it was last used, or made where that is not known: the oldest goes first.
    order: u64,
    /// Why it stays; none if it may go.
    spared: Option<String>,
}

struct Maker<'m> {
    store: &'m Store,
    marked: &'m Marked,
    used: &'m Used,
    options: &'m Options,
    now: u64,
}

/// Decide. `now` in Unix seconds.
pub(crate) fn make(
    store: &Store,
    marked: &Marked,
    used: &Used,
    options: &Options,
    now: u64,
) -> Result<Plan> {
    let maker = Maker {
        store,
        marked,
        used,
        options,
        now,
    };
    maker.make()
}

impl Maker<'_> {
    fn make(&self) -> Result<Plan> {
        let marked = self.marked;
        let before = marked.kept(|_| true, |_| true);
        let mut plan = Plan {
            remarks: marked.remarks.clone(),
            ..Plan::default()
        };
        let bundles = self.bundles();
        let images = if self.options.all {
            self.images()
        } else {
            Vec::new()
        };
        // What nothing needs even now is judged by itself; what only they lead to goes with them.
        let mut single = self.layers(&before)?;
        single.extend(self.blobs(&before));
        if self.options.volumes {
            single.extend(self.volumes(&bundles)?);
        }
        plan.items = self.leftovers()?;
        let mut choice = Choice {
            maker: self,
            gone: BTreeSet::new(),
            out: BTreeSet::new(),
            before,
            left: self.total()?,
            plan: &mut plan,
        };
        choice.left = choice.left.saturating_sub(choice.plan.bytes());
        choice.take(bundles, images, single)?;
        let (gone, out) = (choice.gone, choice.out);
        self.count(&mut plan, &gone, &out);
        plan.items.sort_by_key(|item| item.sort);
        Ok(plan)
    }

    fn seen(&self, sort: Sort, id: &str) -> Option<u64> {
        self.used.last(&used_key(sort, id), self.now)
    }

    fn item(&self, sort: Sort, id: String, bytes: u64, reason: &str) -> Item {
        let seen = self.seen(sort, &id);
        Item {
            sort,
            id,
            digest: None,
            bytes,
            last_used: seen.map(rfc3339),
            reason: reason.to_owned(),
        }
    }

    /// Whether grace and filters let it go. What was never seen begins its grace now.
    fn spared(
        &self,
        seen: Option<u64>,
        created: u64,
        labels: &BTreeMap<String, String>,
    ) -> Option<String> {
        let refuses = |filter: &&Filter| !filter.takes(created.min(self.now), labels, self.now);
        if self.options.filters.iter().any(|filter| refuses(&filter)) {
            return Some("a filter does not take it".to_owned());
        }
        self.in_grace(seen)
    }

    fn in_grace(&self, seen: Option<u64>) -> Option<String> {
        let age = self.now - seen.unwrap_or(self.now).min(self.now);
        (age < self.options.grace).then(|| {
            let left = Duration::from_secs(self.options.grace - age);
            format!("its grace ends in {}", humantime::format_duration(left))
        })
    }

    /// Records of bundles whose directory is gone.
    fn bundles(&self) -> Vec<Candidate> {
        let gone = self.marked.bundles.iter().filter(|bundle| bundle.gone);
        gone.map(|bundle| {
            let record = &bundle.record;
            let seen = self.seen(Sort::Bundle, &record.id).unwrap_or(0);
            let seen = seen.max(record.last_seen.min(self.now));
            let reason = format!("its directory {} is gone", record.path.display());
            Candidate {
                item: self.item(Sort::Bundle, record.id.clone(), 0, &reason),
                order: seen,
                spared: self.in_grace(Some(seen)),
            }
        })
        .collect()
    }

    /// Entries of index.json that nobody uses.
    fn images(&self) -> Vec<Candidate> {
        let entries = self.marked.entries.iter();
        let unused = entries.filter(|entry| entry.what == What::Image && is_unused(entry));
        let mut seen = BTreeSet::new();
        unused
            .filter(|entry| seen.insert((entry.id(), &entry.target.digest)))
            .map(|entry| self.image(entry))
            .collect()
    }

    fn image(&self, entry: &Entry) -> Candidate {
        let id = entry.id();
        let seen = self.seen(Sort::Image, &id);
        let arrived = self
            .marked
            .scan
            .blobs
            .get(&entry.target.digest)
            .map_or(self.now, |file| file.modified);
        // Without a time of its own it is as old as its arrival.
        let created = entry
            .reach
            .created
            .as_deref()
            .and_then(unix_seconds)
            .unwrap_or(arrived);
        let reason = match &entry.what {
            What::Attached(_) => "what it speaks of goes",
            _ => "no container or bundle uses it",
        };
        let mut item = self.item(Sort::Image, id, 0, reason);
        item.digest = Some(entry.target.digest.clone());
        Candidate {
            item,
            order: seen.unwrap_or(arrived).min(self.now),
            spared: self.spared(seen, created, &entry.reach.labels),
        }
    }

    fn layers(&self, before: &Kept) -> Result<Vec<Candidate>> {
        let mut found = Vec::new();
        for (chain, layer) in &self.marked.scan.layers {
            let reason = match &layer.record {
                None if !before.held_layers.contains(chain) => "it was not finished",
                Some(_) if !before.layers.contains(chain) => "no image leads to it",
                _ => continue,
            };
            let created = layer.record.as_ref().map_or(0, |record| record.created);
            let bytes = self.marked.scan.layer_size(self.store, chain)?.disk;
            let seen = self.seen(Sort::Layer, &chain.to_string());
            found.push(Candidate {
                item: self.item(Sort::Layer, chain.to_string(), bytes, reason),
                order: seen.unwrap_or(created).min(self.now),
                spared: self.spared(seen, created, &BTreeMap::new()),
            });
        }
        Ok(found)
    }

    fn blobs(&self, before: &Kept) -> Vec<Candidate> {
        let blobs = self.marked.scan.blobs.iter();
        blobs
            .filter(|(digest, _)| !before.blobs.contains(*digest))
            .map(|(digest, file)| {
                let seen = self.seen(Sort::Blob, &digest.to_string());
                Candidate {
                    item: self.blob(digest, "no image leads to it"),
                    order: seen.unwrap_or(file.modified).min(self.now),
                    spared: self.spared(seen, file.modified, &BTreeMap::new()),
                }
            })
            .collect()
    }

    fn blob(&self, digest: &Digest, reason: &str) -> Item {
        let file = self.marked.scan.blobs.get(digest);
        // Of a file with several names nothing becomes free with one of them.
        let bytes = file
            .filter(|file| file.links == 1)
            .map_or(0, |file| file.size.disk);
        self.item(Sort::Blob, digest.to_string(), bytes, reason)
    }

    fn volumes(&self, bundles: &[Candidate]) -> Result<Vec<Candidate>> {
        // A bundle that is gone, and goes, names nothing any more.
        let stays = |id: &str| {
            !bundles
                .iter()
                .any(|one| one.item.id == id && one.spared.is_none())
        };
        let users = self.marked.volume_users(stays);
        let mut found = Vec::new();
        for (name, volume) in &self.marked.scan.volumes {
            // Of one without a record it is not known that it was not pinned, or that it is a volume at all.
            let Some(record) = &volume.record else {
                continue;
            };
            if users.contains_key(name) || record.pinned {
                continue;
            }
            let created = record.created;
            let seen = self.seen(Sort::Volume, name);
            let spared = self.spared(seen, created, &record.labels);
            let bytes = tree_size(self.store, &format!("volumes/{name}"))?.disk;
            found.push(Candidate {
                item: self.item(
                    Sort::Volume,
                    name.clone(),
                    bytes,
                    "no container or bundle names it",
                ),
                order: seen.unwrap_or(created).min(self.now),
                spared,
            });
        }
        Ok(found)
    }

    /// What dead commands left. It was never of use to anybody else, so neither grace nor filter keeps it.
    fn leftovers(&self) -> Result<Vec<Item>> {
        let scan = &self.marked.scan;
        let staging = scan
            .staging
            .iter()
            .map(|name| ("staging", name, "an unfinished work whose command died"));
        let trash = scan
            .trash
            .iter()
            .map(|name| ("trash", name, "a removal that was interrupted"));
        let leases = self
            .marked
            .dead_leases
            .iter()
            .map(|name| ("leases", name, "its command died"));
        let runs = self.marked.runs.iter().filter(|(_, left)| *left);
        let runs = runs.map(|(name, _)| ("bundles", name, "the bundle of a run that was killed"));
        let mut items = Vec::new();
        for (folder, name, reason) in staging.chain(trash).chain(leases).chain(runs) {
            let path = format!("{folder}/{name}");
            let bytes = tree_size(self.store, &path)?.disk;
            items.push(self.item(Sort::Leftover, path, bytes, reason));
        }
        Ok(items)
    }

    /// What the whole store takes: only `--keep-storage` asks.
    fn total(&self) -> Result<u64> {
        if self.options.keep_storage.is_none() {
            return Ok(u64::MAX);
        }
        let scan = &self.marked.scan;
        let mut total: Size = scan.blobs.values().map(|file| file.size).sum();
        for chain in scan.layers.keys() {
            total += scan.layer_size(self.store, chain)?;
        }
        for folder in ["volumes", "bundles", "staging", "trash"] {
            total += tree_size(self.store, folder)?;
        }
        Ok(total.disk)
    }

    fn count(&self, plan: &mut Plan, gone: &BTreeSet<usize>, out: &BTreeSet<String>) {
        let marked = self.marked;
        let kept = marked.kept(|at| !gone.contains(&at), |id| !out.contains(id));
        let users = marked.volume_users(|id| !out.contains(id));
        let stays = |name: &String| {
            let record = marked
                .scan
                .volumes
                .get(name)
                .and_then(|volume| volume.record.as_ref());
            record.is_none_or(|record| record.pinned)
        };
        let scan = &marked.scan;
        let referenced_layer = |chain: &&Digest| {
            let whole = scan
                .layers
                .get(*chain)
                .is_some_and(|layer| layer.record.is_some());
            kept.held_layers.contains(*chain) || (whole && kept.layers.contains(*chain))
        };
        let left = marked.runs.iter().filter(|(_, left)| *left).count();
        let leftovers = scan.staging.len() + scan.trash.len() + marked.dead_leases.len() + left;
        let live = scan.staging_live.len();
        let counted = [
            (
                Sort::Image,
                marked.entries.len(),
                marked
                    .entries
                    .iter()
                    .filter(|entry| !is_unused(entry))
                    .count(),
            ),
            (
                Sort::Bundle,
                marked.bundles.len(),
                marked.bundles.iter().filter(|bundle| !bundle.gone).count(),
            ),
            (
                Sort::Layer,
                scan.layers.len(),
                scan.layers.keys().filter(referenced_layer).count(),
            ),
            (
                Sort::Blob,
                scan.blobs.len(),
                scan.blobs
                    .keys()
                    .filter(|digest| kept.blobs.contains(*digest))
                    .count(),
            ),
            (
                Sort::Volume,
                scan.volumes.len(),
                scan.volumes
                    .keys()
                    .filter(|name| users.contains_key(*name) || stays(name))
                    .count(),
            ),
            (Sort::Leftover, leftovers + live, live),
        ];
        for (sort, scanned, referenced) in counted {
            let count = Count {
                scanned,
                referenced,
                unreferenced: scanned - referenced,
            };
            plan.counts.insert(sort, count);
        }
    }
}

fn is_unused(entry: &Entry) -> bool {
    entry.used_by.is_empty() && !entry.broken
}

/// The choice among the candidates, the oldest first.
struct Choice<'c, 'm> {
    maker: &'c Maker<'m>,
    /// Places of the entries that go.
    gone: BTreeSet<usize>,
    /// Ids of the bundles that go.
    out: BTreeSet<String>,
    /// What was needed before them.
    before: Kept,
    /// Bytes in the store once the plan is carried out.
    left: u64,
    plan: &'c mut Plan,
}

impl Choice<'_, '_> {
    fn take(
        &mut self,
        bundles: Vec<Candidate>,
        images: Vec<Candidate>,
        single: Vec<Candidate>,
    ) -> Result<()> {
        let mut candidates = bundles;
        candidates.extend(images);
        candidates.extend(single);
        // ORDER: of the same age a bundle's record, then images, then single things; children before their parents is
        // of no concern, as a layer without its parent is made again with it.
        candidates.sort_by_key(|candidate| {
            (
                candidate.order,
                candidate.item.sort,
                Reverse(candidate.item.bytes),
            )
        });
        let one_by_one = self.maker.options.keep_storage;
        for mut candidate in candidates {
            let enough = one_by_one.is_some_and(|limit| self.left <= limit);
            let spared = candidate.spared.take().or_else(|| {
                let limit = output::bytes(one_by_one.unwrap_or_default());
                enough.then(|| format!("without it the store is no larger than {limit}"))
            });
            if let Some(reason) = spared {
                candidate.item.reason = reason;
                self.plan.spared.push(candidate.item);
                continue;
            }
            let leads_on = matches!(candidate.item.sort, Sort::Image | Sort::Bundle);
            self.remove(candidate.item);
            if one_by_one.is_some() && leads_on {
                self.follow()?;
            }
        }
        self.follow()
    }

    fn remove(&mut self, item: Item) {
        match item.sort {
            Sort::Bundle => drop(self.out.insert(item.id.clone())),
            Sort::Image => {
                let places = self
                    .maker
                    .marked
                    .entries
                    .iter()
                    .enumerate()
                    .filter(|(_, entry)| {
                        entry.id() == item.id && Some(&entry.target.digest) == item.digest.as_ref()
                    });
                self.gone.extend(places.map(|(at, _)| at));
            }
            _ => {}
        }
        self.left = self.left.saturating_sub(item.bytes);
        self.plan.items.push(item);
    }

    /// What nothing needs any more once they are gone goes with them; so does an entry that only speaks of it.
    fn follow(&mut self) -> Result<()> {
        if self.gone.is_empty() && self.out.is_empty() {
            return Ok(());
        }
        let marked = self.maker.marked;
        loop {
            let attached = |entry: &Entry| match &entry.what {
                What::Attached(subject) => Some(subject.clone()),
                _ => None,
            };
            // Needed by what stays for its own sake; an entry that is attached is not asked.
            let firm = marked.kept(
                |at| !self.gone.contains(&at) && attached(&marked.entries[at]).is_none(),
                |id| !self.out.contains(id),
            );
            let went: BTreeSet<&Digest> = self
                .gone
                .iter()
                .flat_map(|at| &marked.entries[*at].reach.blobs)
                .collect();
            let next: Vec<usize> = (0..marked.entries.len())
                .filter(|at| {
                    let entry = &marked.entries[*at];
                    !self.gone.contains(at)
                        && is_unused(entry)
                        && attached(entry).is_some_and(|subject| {
                            went.contains(&subject) && !firm.blobs.contains(&subject)
                        })
                })
                .collect();
            if next.is_empty() || !self.maker.options.all {
                break;
            }
            for at in next {
                self.gone.insert(at);
                self.plan
                    .items
                    .push(self.maker.image(&marked.entries[at]).item);
            }
        }
        let after = marked.kept(|at| !self.gone.contains(&at), |id| !self.out.contains(id));
        for chain in self.before.layers.difference(&after.layers) {
            let Some(layer) = marked.scan.layers.get(chain) else {
                continue;
            };
            // One without a record was judged by itself, unless somebody used it who now goes.
            if layer.record.is_none() && !self.before.held_layers.contains(chain) {
                continue;
            }
            let bytes = marked.scan.layer_size(self.maker.store, chain)?.disk;
            let item = self.maker.item(
                Sort::Layer,
                chain.to_string(),
                bytes,
                "only what goes led to it",
            );
            self.left = self.left.saturating_sub(bytes);
            self.plan.items.push(item);
        }
        for digest in self.before.blobs.difference(&after.blobs) {
            if marked.scan.blobs.contains_key(digest) {
                let item = self.maker.blob(digest, "only what goes led to it");
                self.left = self.left.saturating_sub(item.bytes);
                self.plan.items.push(item);
            }
        }
        self.before = after;
        Ok(())
    }
}

/// Unix seconds as RFC 3339.
pub(super) fn rfc3339(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .filter(|_| seconds < 253_402_300_800);
    time.map_or_else(
        || seconds.to_string(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}
