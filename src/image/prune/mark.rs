//! Marking: from every root to everything that it needs, by ids. It fails closed: what cannot be read, and what should be
//! there and is not, is a fault, and with a fault nothing is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, bail};

use crate::image::bundle;
use crate::image::containers::{Container, Containers, RuntimeRoots, Unread};
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;
use crate::image::mounts::{self, Named, named};
use crate::image::output::visible;
use crate::image::store::{Kind, Leases, Store};
use crate::image::volume::Places;
use crate::report::{self, Hinted};

use super::bundles::{self, Bundle};
use super::scan::Scan;
use super::walk::{Reach, Walker};

/// Something that makes the mark incomplete.
#[derive(Debug)]
pub(crate) struct Fault {
    error: Error,
    /// Whole classes of roots are unknown, so not even `--force-corrupt` goes on.
    pub(crate) fatal: bool,
}

impl Fault {
    pub(super) fn fatal(error: Error) -> Self {
        Self { error, fatal: true }
    }

    /// In one line. Names may come from images.
    pub(crate) fn sentence(&self) -> String {
        visible(&report::sentence(&self.error)).into_owned()
    }

    /// One root, or one thing on the way from it, is unknown.
    pub(super) fn passable(error: Error) -> Self {
        Self {
            error,
            fatal: false,
        }
    }
}

/// What an entry of index.json is, as far as `--all` asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Image,
    /// A signature or the like: it stays and goes with the content that it speaks of.
    Attached(Digest),
    /// Not an image: no container is ever made from it, so that none uses it says nothing.
    Other,
}

/// An entry of index.json.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// "" where it has none.
    pub(crate) name: String,
    pub(crate) target: Descriptor,
    pub(crate) what: What,
    pub(crate) reach: Reach,
    /// Not all that it needs could be found.
    pub(crate) broken: bool,
    /// Containers, bundles and commands that use it.
    pub(crate) used_by: Vec<String>,
}

impl Entry {
    /// The name, or the digest of one that has none.
    pub(crate) fn id(&self) -> String {
        if self.name.is_empty() {
            self.target.digest.to_string()
        } else {
            self.name.clone()
        }
    }
}

/// A root that is no name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holder {
    /// In the words of a person: `container web`, `bundle /srv/web`.
    pub(crate) who: String,
    /// The id of a registered bundle whose directory is gone.
    pub(crate) gone_bundle: Option<String>,
    /// What it names itself, before the walk: manifests and configurations.
    pub(crate) direct: BTreeSet<Digest>,
    /// Layers that it names itself, and those below them.
    pub(crate) layers: BTreeSet<Digest>,
    pub(crate) volumes: BTreeSet<String>,
    pub(crate) reach: Reach,
}

/// The outcome.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    pub(crate) scan: Scan,
    /// In the order of index.json.
    pub(crate) entries: Vec<Entry>,
    pub(crate) holders: Vec<Holder>,
    pub(crate) bundles: Vec<Bundle>,
    /// Manifests that no name leads to, with the subject that each speaks of.
    pub(crate) referrers: Vec<(Digest, Reach)>,
    pub(crate) dead_leases: Vec<String>,
    /// The bundles of runs, and whether each is what a killed command left.
    pub(crate) runs: Vec<(String, bool)>,
    pub(crate) faults: Vec<Fault>,
    /// What is unusual and no fault.
    pub(crate) remarks: BTreeSet<String>,
}

/// What is needed, given the roots that stay.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) blobs: BTreeSet<Digest>,
    pub(crate) layers: BTreeSet<Digest>,
    /// Those layers that something uses as they are, unpacked; a tree without a record is kept only by these.
    pub(crate) held_layers: BTreeSet<Digest>,
}

/// Mark as far as possible; the faults are part of the answer.
// ORDER: what is there, then leases, then the records and names that are written under a lease before it is dropped.
// Whatever is seen here without being kept by a lease is then found to be needed by what came of it.
pub(crate) fn survey(store: &Store, roots: &RuntimeRoots) -> Marked {
    let mut faults = Vec::new();
    let scan = Scan::take(store, &mut faults);
    let Leases {
        live: leases,
        dead: dead_leases,
    } = or_fault(store.leases(), &mut faults);
    // A run may end between a look at its container and one at its bundle: what is so later too is a fault.
    let mut again = true;
    let (bundles, containers, roots) = loop {
        let mut found = Vec::new();
        let used = users(store, roots, &mut found);
        if found.is_empty() || !std::mem::take(&mut again) {
            faults.extend(found);
            break used;
        }
    };
    let runs = or_fault(bundle::runs(store), &mut faults).into_iter();
    let runs = runs.map(|name| {
        // What cannot be told stays; what it uses is found out by itself.
        let left = bundle::is_leftover(store, &roots, &name).unwrap_or(false);
        (name, left)
    });
    let runs = runs.collect();
    let places = or_fault(Places::of(store), &mut faults);
    let mounted = or_fault(mounts::mounted(), &mut faults);
    let names = or_fault(store.names(), &mut faults);

    let mut walker = Walker::new(store, &scan);
    let mut marked = Marked {
        dead_leases,
        runs,
        ..Marked::default()
    };
    for lease in leases {
        let mut holder = Holder::of(format!("a running command ({})", visible(&lease.purpose)));
        for (kind, id) in lease.items {
            match kind {
                Kind::Blob => holder.direct.extend(id.parse::<Digest>().ok()),
                Kind::Layer => holder.layers.extend(id.parse::<Digest>().ok()),
                Kind::Volume => drop(holder.volumes.insert(id)),
            }
        }
        marked.hold(holder, &mut walker);
    }
    for bundle in &bundles {
        let holder = bundle_holder(bundle, &mut walker);
        marked.hold(holder, &mut walker);
    }
    for container in containers.all() {
        marked.hold(container_holder(&places, container), &mut walker);
    }
    // Each by itself: the uppermost of its layers says which image it is of.
    for paths in &mounted.paths {
        let mut holder = Holder::of("a mount".to_owned());
        paths.iter().for_each(|path| holder.path(path));
        marked.hold(holder, &mut walker);
    }
    for name in &scan.staging_live {
        let mut holder = Holder::of("a running unpack".to_owned());
        holder.staged(name);
        marked.hold(holder, &mut walker);
    }

    for (name, target) in names {
        let entry = walker.entry(name, target);
        marked.entries.push(entry);
    }
    marked.find_referrers(&mut walker);
    let (found, remarks) = walker.done();
    faults.extend(found.into_iter().map(Fault::passable));
    marked.remarks = remarks;
    let strange = scan.strangers.iter();
    marked
        .remarks
        .extend(strange.map(|path| format!("{}: not ours, left alone", visible(path))));
    let unknown = scan
        .volumes
        .iter()
        .filter(|(_, volume)| volume.record.is_none());
    marked.remarks.extend(unknown.map(|(name, _)| {
        format!(
            "volumes/{}: a directory without a record, left alone; `volume create` takes it up",
            visible(name)
        )
    }));
    marked.scan = scan;
    marked.bundles = bundles;
    marked.faults = faults;
    marked.close_layers();
    marked.find_users();
    marked
}

/// The registered bundles, the containers, and the state directories in which these were looked for.
fn users(
    store: &Store,
    roots: &RuntimeRoots,
    faults: &mut Vec<Fault>,
) -> (Vec<Bundle>, Containers, RuntimeRoots) {
    let records = or_fault(store.bundle_records(), faults);
    let recorded = records
        .iter()
        .filter_map(|record| record.state_root.clone());
    let roots = roots.with(recorded);
    let (containers, unread) = Containers::survey(&roots);
    faults.extend(unread.into_iter().map(|unread| match unread {
        Unread::Root(error) => Fault::fatal(error),
        Unread::Container(error) => Fault::passable(error),
    }));
    let bundles = bundles::look(records, containers.all(), faults);
    (bundles, containers, roots)
}

fn or_fault<T: Default>(read: Result<T>, faults: &mut Vec<Fault>) -> T {
    read.unwrap_or_else(|error| {
        faults.push(Fault::fatal(error));
        T::default()
    })
}

fn bundle_holder(bundle: &Bundle, walker: &mut Walker) -> Holder {
    let record = &bundle.record;
    let who = format!("bundle {}", visible(&record.path.to_string_lossy()));
    let needed = std::iter::once(&record.manifest)
        .chain(std::iter::once(&record.config))
        .chain(&record.layers);
    for digest in needed {
        walker.require(digest, &who);
    }
    for chain in &record.chain {
        walker.require_layer(chain, &who);
    }
    Holder {
        gone_bundle: bundle.gone.then(|| record.id.clone()),
        direct: [record.manifest.clone(), record.config.clone()].into(),
        layers: record.chain.iter().cloned().collect(),
        volumes: record.volumes.iter().cloned().collect(),
        reach: Reach {
            blobs: record.layers.iter().cloned().collect(),
            ..Reach::default()
        },
        who,
    }
}

fn container_holder(places: &Places, container: &Container) -> Holder {
    let mut holder = Holder::of(format!("container {}", visible(&container.id)));
    container.paths.iter().for_each(|path| holder.path(path));
    holder.volumes.extend(container.volumes(places));
    for value in &container.annotations {
        let digest = value.rsplit('@').next().unwrap_or_default();
        holder.direct.extend(digest.parse::<Digest>().ok());
    }
    holder
}

impl Holder {
    fn of(who: String) -> Self {
        Self {
            who,
            ..Self::default()
        }
    }

    fn path(&mut self, path: &Path) {
        for name in named(path) {
            match name {
                Named::Layer(hex) => {
                    self.layers
                        .extend(format!("sha256:{hex}").parse::<Digest>().ok());
                }
                Named::Volume(name) => drop(self.volumes.insert(name)),
            }
        }
    }

    /// A staging directory says by its name what is made in it.
    fn staged(&mut self, name: &str) {
        let hex = name.rsplit('-').next().unwrap_or_default();
        self.layers
            .extend(format!("sha256:{hex}").parse::<Digest>().ok());
    }
}

impl Marked {
    fn hold(&mut self, mut holder: Holder, walker: &mut Walker) {
        for digest in &holder.direct {
            walker.whatever(digest, &mut holder.reach);
        }
        self.holders.push(holder);
    }

    /// Manifests among the blobs that nothing needs so far, and that speak of something.
    fn find_referrers(&mut self, walker: &mut Walker) {
        let kept = self.kept(|_| true, |_| true);
        for digest in walker.unkept(&kept.blobs) {
            if let Some(subject) = walker.subject(&digest) {
                let mut reach = Reach::default();
                walker.whatever(&digest, &mut reach);
                self.referrers.push((subject, reach));
            }
        }
    }

    /// A layer that is used is used with all those below it.
    fn close_layers(&mut self) {
        for holder in &mut self.holders {
            let mut rest: Vec<Digest> = holder.layers.iter().cloned().collect();
            while let Some(chain) = rest.pop() {
                let found = self.scan.layers.get(&chain);
                let parent = found
                    .and_then(|found| found.record.as_ref())
                    .and_then(|record| record.parent.clone());
                if let Some(parent) = parent
                    && holder.layers.insert(parent.clone())
                {
                    rest.push(parent);
                }
            }
        }
    }

    /// Which entries are used, by whom: by the manifest or the configuration, or by the uppermost layer where only
    /// layers are known.
    fn find_users(&mut self) {
        for holder in &self.holders {
            let parents: BTreeSet<&Digest> = holder
                .layers
                .iter()
                .filter_map(|chain| {
                    self.scan
                        .layers
                        .get(chain)?
                        .record
                        .as_ref()?
                        .parent
                        .as_ref()
                })
                .collect();
            let top = |chain: &Digest| holder.layers.contains(chain) && !parents.contains(chain);
            for entry in &mut self.entries {
                let ids = &entry.reach.documents;
                let named = holder.direct.iter().any(|digest| ids.contains(digest));
                let mounted = holder.direct.is_empty() && entry.reach.tops.iter().any(top);
                let known = entry.used_by.contains(&holder.who);
                if (named || mounted) && !known && holder.gone_bundle.is_none() {
                    entry.used_by.push(holder.who.clone());
                }
            }
        }
    }

    /// What is needed when of the entries those stay for which `entry` says so, and of the gone bundles those for which
    /// `bundle` does.
    pub(crate) fn kept(
        &self,
        entry: impl Fn(usize) -> bool,
        bundle: impl Fn(&str) -> bool,
    ) -> Kept {
        let mut kept = Kept::default();
        for (_, entry) in self.entries.iter().enumerate().filter(|(at, _)| entry(*at)) {
            kept.blobs.extend(entry.reach.blobs.iter().cloned());
            kept.layers.extend(entry.reach.layers.iter().cloned());
        }
        for holder in self.staying(&bundle) {
            kept.blobs.extend(holder.reach.blobs.iter().cloned());
            kept.layers.extend(holder.reach.layers.iter().cloned());
            kept.held_layers.extend(holder.layers.iter().cloned());
        }
        let mut waiting: Vec<&(Digest, Reach)> = self.referrers.iter().collect();
        loop {
            let (needed, others): (Vec<_>, Vec<_>) = waiting
                .into_iter()
                .partition(|(subject, _)| kept.blobs.contains(subject));
            if needed.is_empty() {
                break;
            }
            for (_, reach) in needed {
                kept.blobs.extend(reach.blobs.iter().cloned());
                kept.layers.extend(reach.layers.iter().cloned());
            }
            waiting = others;
        }
        kept.layers.extend(kept.held_layers.iter().cloned());
        kept
    }

    /// The holders, without those gone bundles for which `bundle` says no.
    fn staying<'m>(
        &'m self,
        bundle: &'m impl Fn(&str) -> bool,
    ) -> impl Iterator<Item = &'m Holder> {
        self.holders
            .iter()
            .filter(move |holder| holder.gone_bundle.as_deref().is_none_or(bundle))
    }

    /// Who uses each volume.
    pub(crate) fn volume_users(
        &self,
        bundle: impl Fn(&str) -> bool,
    ) -> BTreeMap<String, Vec<String>> {
        let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for holder in self.staying(&bundle) {
            for volume in &holder.volumes {
                users
                    .entry(volume.clone())
                    .or_default()
                    .push(holder.who.clone());
            }
        }
        users
    }

    /// Fail with every fault named, unless there is none. With `force`, those that may be passed over are warnings.
    pub(crate) fn sound(&self, force: bool) -> Result<()> {
        let (passed, stopping): (Vec<_>, Vec<_>) =
            self.faults.iter().partition(|fault| force && !fault.fatal);
        for fault in passed {
            report::warn(format_args!("{}", fault.sentence()));
        }
        let sentences: Vec<String> = stopping.iter().map(|fault| fault.sentence()).collect();
        if sentences.is_empty() {
            return Ok(());
        }
        let count = match sentences.len() {
            1 => "what is in use is not fully known".to_owned(),
            more => format!("what is in use is not fully known, for {more} reasons"),
        };
        let text = format!("{count}, so nothing was removed: {}", sentences.join("; "));
        if stopping.iter().any(|fault| fault.fatal) {
            bail!(text);
        }
        let hint = "`fsck` looks closer; --force-corrupt prunes all the same, and loses what only the named things lead to";
        Err(Hinted::new(text, hint).into())
    }
}

/// The store's directories by path, for messages.
pub(super) fn layer_place(store: &Store, chain: &Digest) -> PathBuf {
    store.layer_path(chain)
}

/// The context in which a blob is spoken of.
pub(super) fn named_blob(store: &Store, digest: &Digest) -> Result<u64> {
    store
        .blob_size(digest)?
        .with_context(|| format!("blob {digest} is missing"))
}
