//! What the disk holds: `df`. Sizes of layers come from their records, those of blobs from stat, so that only volumes and
//! leftovers are walked.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::Serialize;

use super::digest::Digest;
use super::output::{self, Table};
use super::prune::mark::{Entry, Marked, What};
use super::prune::scan::tree_size;
use super::prune::size::Size;
use super::store::Store;

/// One line: how many, how large, and how much of it a prune would free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    pub(crate) count: usize,
    #[serde(flatten)]
    pub(crate) size: Size,
    /// Blocks on disk in bytes.
    pub(crate) reclaimable_bytes: u64,
}

impl Line {
    fn add(&mut self, size: Size, reclaimable: bool) {
        self.count += 1;
        self.size += size;
        if reclaimable {
            self.reclaimable_bytes += size.disk;
        }
    }
}

/// One image, under all its names.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageRow {
    /// Sorted; none for an entry of index.json without a name.
    pub(crate) names: Vec<String>,
    pub(crate) digest: Digest,
    /// Everything it leads to.
    pub(crate) size: Size,
    /// Of that, what no other image leads to.
    pub(crate) unique: Size,
    /// Of that, what another image leads to as well.
    pub(crate) shared: Size,
    /// Blocks on disk in bytes that `prune --all` would free with this image alone.
    pub(crate) reclaimable_bytes: u64,
    /// Containers, bundles and running commands.
    pub(crate) used_by: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayerRow {
    pub(crate) chain_id: Digest,
    pub(crate) size: Size,
    /// Images, bundles, containers or mounts that need it.
    pub(crate) needed_by: usize,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeRow {
    pub(crate) name: String,
    pub(crate) size: Size,
    pub(crate) pinned: bool,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) used_by: Vec<String>,
}

/// The answer of `df`.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Usage {
    /// Everything that names lead to: the images' unique parts added up, and their shared part.
    pub(crate) images: Line,
    /// Added over all images.
    pub(crate) unique: Size,
    /// What more than one image leads to, once.
    pub(crate) shared: Size,
    /// Of the images: their layers.
    pub(crate) layers: Line,
    /// Of the images: their blobs.
    pub(crate) blobs: Line,
    /// What no name leads to, and a bundle, container, mount or running command keeps.
    pub(crate) held: Line,
    pub(crate) orphan_layers: Line,
    pub(crate) orphan_blobs: Line,
    /// Unfinished work and trash; reclaimable where its command is dead.
    pub(crate) staging: Line,
    pub(crate) volumes: Line,
    /// The bundles of `run` that stand in the store; reclaimable where a killed command left them.
    pub(crate) bundles: Line,
    pub(crate) total: Line,
    pub(crate) image_rows: Vec<ImageRow>,
    pub(crate) layer_rows: Vec<LayerRow>,
    pub(crate) volume_rows: Vec<VolumeRow>,
    pub(crate) remarks: Vec<String>,
}

/// Something that takes space.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Blob(Digest),
    Layer(Digest),
}

struct Counter<'c> {
    store: &'c Store,
    marked: &'c Marked,
    sizes: BTreeMap<Part, Size>,
}

/// Add everything up.
pub(crate) fn usage(store: &Store, marked: &Marked) -> Result<Usage> {
    let mut counter = Counter {
        store,
        marked,
        sizes: BTreeMap::new(),
    };
    counter.measure()?;
    counter.usage()
}

impl Counter<'_> {
    fn measure(&mut self) -> Result<()> {
        let scan = &self.marked.scan;
        for (digest, file) in &scan.blobs {
            self.sizes.insert(Part::Blob(digest.clone()), file.size);
        }
        for chain in scan.layers.keys() {
            let size = scan.layer_size(self.store, chain)?;
            self.sizes.insert(Part::Layer(chain.clone()), size);
        }
        Ok(())
    }

    /// What an entry leads to and what is there. A tree without a record is no layer.
    fn parts(&self, entry: &Entry) -> BTreeSet<Part> {
        let whole = |chain: &&Digest| {
            let found = self.marked.scan.layers.get(*chain);
            found.is_some_and(|found| found.record.is_some())
        };
        let layers = entry
            .reach
            .layers
            .iter()
            .filter(whole)
            .cloned()
            .map(Part::Layer);
        let blobs = entry.reach.blobs.iter().cloned().map(Part::Blob);
        blobs
            .chain(layers)
            .filter(|part| self.sizes.contains_key(part))
            .collect()
    }

    fn size(&self, part: &Part) -> Size {
        self.sizes.get(part).copied().unwrap_or_default()
    }

    fn usage(&self) -> Result<Usage> {
        let marked = self.marked;
        let mut images: BTreeMap<&Digest, Vec<(usize, &Entry)>> = BTreeMap::new();
        for (at, entry) in marked.entries.iter().enumerate() {
            images
                .entry(&entry.target.digest)
                .or_default()
                .push((at, entry));
        }
        let parts: BTreeMap<&Digest, BTreeSet<Part>> = images
            .iter()
            .map(|(digest, entries)| {
                (
                    *digest,
                    entries
                        .iter()
                        .flat_map(|(_, entry)| self.parts(entry))
                        .collect(),
                )
            })
            .collect();
        let mut leading: BTreeMap<&Part, usize> = BTreeMap::new();
        for part in parts.values().flatten() {
            *leading.entry(part).or_default() += 1;
        }
        // What is kept whatever names go.
        let held = marked.kept(|at| !is_removable(&marked.entries[at]), |_| true);
        let is_held = |part: &Part| match part {
            Part::Blob(digest) => held.blobs.contains(digest),
            Part::Layer(chain) => held.layers.contains(chain),
        };
        let mut usage = Usage {
            remarks: marked.remarks.iter().cloned().collect(),
            ..Usage::default()
        };
        for (digest, entries) in &images {
            let row = self.image(digest, entries, &parts[digest], &leading, &is_held);
            usage.unique += row.unique;
            usage.image_rows.push(row);
        }
        let kept = marked.kept(|_| true, |_| true);
        for (part, size) in &self.sizes {
            let by_image = leading.get(part).copied().unwrap_or(0);
            let (line, needed) = match part {
                Part::Blob(digest) if by_image == 0 => {
                    (&mut usage.orphan_blobs, kept.blobs.contains(digest))
                }
                Part::Layer(chain) if by_image == 0 => {
                    let found = marked.scan.layers.get(chain);
                    let whole = found.is_some_and(|found| found.record.is_some());
                    let needed =
                        kept.held_layers.contains(chain) || (whole && kept.layers.contains(chain));
                    (&mut usage.orphan_layers, needed)
                }
                Part::Blob(_) => (&mut usage.blobs, false),
                Part::Layer(_) => (&mut usage.layers, false),
            };
            match (by_image, needed) {
                (0, true) => usage.held.add(*size, false),
                (0, false) => line.add(*size, true),
                (by_image, _) => {
                    line.add(*size, !is_held(part));
                    if by_image > 1 {
                        usage.shared += *size;
                    }
                }
            }
        }
        usage.images = Line {
            count: images.len(),
            size: usage.layers.size + usage.blobs.size,
            reclaimable_bytes: usage.layers.reclaimable_bytes + usage.blobs.reclaimable_bytes,
        };
        usage.layer_rows = self.layers();
        self.others(&mut usage)?;
        usage.total();
        Ok(usage)
    }

    fn image(
        &self,
        digest: &Digest,
        entries: &[(usize, &Entry)],
        parts: &BTreeSet<Part>,
        leading: &BTreeMap<&Part, usize>,
        is_held: &dyn Fn(&Part) -> bool,
    ) -> ImageRow {
        let sum = |wanted: &dyn Fn(&&Part) -> bool| -> Size {
            parts
                .iter()
                .filter(wanted)
                .map(|part| self.size(part))
                .sum()
        };
        let unique = |part: &&Part| leading.get(*part) == Some(&1);
        let mut names: Vec<String> = entries
            .iter()
            .map(|(_, entry)| entry.name.clone())
            .filter(|name| !name.is_empty())
            .collect();
        names.sort();
        let used_by: BTreeSet<String> = entries
            .iter()
            .flat_map(|(_, entry)| entry.used_by.iter().cloned())
            .collect();
        ImageRow {
            names,
            digest: digest.clone(),
            size: sum(&|_| true),
            unique: sum(&unique),
            shared: sum(&|part| !unique(part)),
            reclaimable_bytes: sum(&|part| unique(part) && !is_held(part)).disk,
            used_by: used_by.into_iter().collect(),
        }
    }

    fn layers(&self) -> Vec<LayerRow> {
        let marked = self.marked;
        let mut needed: BTreeMap<&Digest, usize> = BTreeMap::new();
        let named = marked.entries.iter().flat_map(|entry| &entry.reach.layers);
        let held = marked.holders.iter().flat_map(|holder| &holder.layers);
        for chain in named.chain(held) {
            *needed.entry(chain).or_default() += 1;
        }
        let row = |chain: &Digest| LayerRow {
            chain_id: chain.clone(),
            size: self.size(&Part::Layer(chain.clone())),
            needed_by: needed.get(chain).copied().unwrap_or(0),
        };
        marked.scan.layers.keys().map(row).collect()
    }

    /// Volumes and leftovers, which have to be walked.
    fn others(&self, usage: &mut Usage) -> Result<()> {
        let scan = &self.marked.scan;
        let dead = scan
            .staging
            .iter()
            .map(|name| (format!("staging/{name}"), true));
        let live = scan
            .staging_live
            .iter()
            .map(|name| (format!("staging/{name}"), false));
        let trash = scan
            .trash
            .iter()
            .map(|name| (format!("trash/{name}"), true));
        for (path, reclaimable) in dead.chain(live).chain(trash) {
            usage
                .staging
                .add(tree_size(self.store, &path)?, reclaimable);
        }
        for (name, left) in &self.marked.runs {
            usage
                .bundles
                .add(tree_size(self.store, &format!("bundles/{name}"))?, *left);
        }
        let mut users = self.marked.volume_users(|_| true);
        for (name, volume) in &scan.volumes {
            let size = tree_size(self.store, &format!("volumes/{name}"))?;
            let used_by = users.remove(name).unwrap_or_default();
            let pinned = volume.record.as_ref().is_some_and(|record| record.pinned);
            let stays = pinned || volume.record.is_none();
            usage.volumes.add(size, used_by.is_empty() && !stays);
            usage.volume_rows.push(VolumeRow {
                name: name.clone(),
                size,
                pinned,
                labels: volume
                    .record
                    .as_ref()
                    .map(|record| record.labels.clone())
                    .unwrap_or_default(),
                used_by,
            });
        }
        Ok(())
    }
}

/// Whether `prune --all` takes the name.
fn is_removable(entry: &Entry) -> bool {
    entry.used_by.is_empty() && !entry.broken && entry.what != What::Other
}

impl Usage {
    fn total(&mut self) {
        let lines = [
            self.images,
            self.held,
            self.orphan_layers,
            self.orphan_blobs,
            self.staging,
            self.volumes,
            self.bundles,
        ];
        self.total = Line {
            count: lines.iter().map(|line| line.count).sum(),
            size: lines.iter().map(|line| line.size).sum(),
            reclaimable_bytes: lines.iter().map(|line| line.reclaimable_bytes).sum(),
        };
    }

    /// The lines, and with `rows` what they consist of.
    pub(crate) fn text(&self, rows: bool) -> String {
        let mut table = Table::new(&["WHAT", "COUNT", "ON DISK", "APPARENT", "RECLAIMABLE"]);
        for (what, line) in [
            ("images", &self.images),
            ("  layers", &self.layers),
            ("  blobs", &self.blobs),
            ("held without a name", &self.held),
            ("orphan layers", &self.orphan_layers),
            ("orphan blobs", &self.orphan_blobs),
            ("staging", &self.staging),
            ("volumes", &self.volumes),
            ("bundles", &self.bundles),
            ("total", &self.total),
        ] {
            table.row([
                what.into(),
                line.count.to_string().into(),
                output::bytes(line.size.disk).into(),
                output::bytes(line.size.apparent).into(),
                output::bytes(line.reclaimable_bytes).into(),
            ]);
        }
        let mut text = table.text();
        if rows {
            text.push_str(&self.rows());
        }
        for remark in &self.remarks {
            text.push_str(&format!("note: {}\n", output::visible(remark)));
        }
        text
    }

    fn rows(&self) -> String {
        let mut text = String::new();
        let mut table = Table::new(&[
            "IMAGE",
            "DIGEST",
            "SIZE",
            "UNIQUE",
            "SHARED",
            "RECLAIMABLE",
            "USED BY",
        ]);
        for row in &self.image_rows {
            let names = if row.names.is_empty() {
                "-".to_owned()
            } else {
                row.names.join(", ")
            };
            table.row([
                names.into(),
                row.digest.short().into(),
                output::bytes(row.size.disk).into(),
                output::bytes(row.unique.disk).into(),
                output::bytes(row.shared.disk).into(),
                output::bytes(row.reclaimable_bytes).into(),
                users(&row.used_by).into(),
            ]);
        }
        text.push_str(&format!("\n{}", table.text()));
        let mut table = Table::new(&["LAYER", "SIZE", "NEEDED BY"]);
        for row in &self.layer_rows {
            table.row([
                row.chain_id.short().into(),
                output::bytes(row.size.disk).into(),
                row.needed_by.to_string().into(),
            ]);
        }
        text.push_str(&format!("\n{}", table.text()));
        let mut table = Table::new(&["VOLUME", "SIZE", "PINNED", "USED BY"]);
        for row in &self.volume_rows {
            table.row([
                row.name.as_str().into(),
                output::bytes(row.size.disk).into(),
                if row.pinned { "yes" } else { "no" }.into(),
                users(&row.used_by).into(),
            ]);
        }
        text.push_str(&format!("\n{}", table.text()));
        text
    }
}

fn users(all: &[String]) -> String {
    match all {
        [] => "-".to_owned(),
        [one] => one.clone(),
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    }
}
