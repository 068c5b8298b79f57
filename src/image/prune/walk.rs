//! The walk from a descriptor to all that it needs.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read as _;

use anyhow::{Context as _, Error, Result, anyhow};
use serde_json::Value;

use crate::image::digest::Digest;
use crate::image::manifest::{
    self, Config, Descriptor, Document, LARGEST_DOCUMENT, Manifest, chain_ids,
};
use crate::image::output::visible;
use crate::image::store::Store;

use super::mark::{Entry, What, layer_place, named_blob};
use super::scan::Scan;

/// What can be reached from somewhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach {
    pub(crate) blobs: BTreeSet<Digest>,
    /// ChainIDs.
    pub(crate) layers: BTreeSet<Digest>,
    /// The ChainID of each image's uppermost layer.
    pub(crate) tops: BTreeSet<Digest>,
    /// Indexes, manifests and configurations among the blobs.
    pub(crate) documents: BTreeSet<Digest>,
    /// Of the first image's configuration.
    pub(crate) labels: BTreeMap<String, String>,
    /// RFC 3339, as the first image's configuration has it.
    pub(crate) created: Option<String>,
    pub(super) images: usize,
    pub(super) artifacts: usize,
}

/// Whether something has to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Must {
    BeThere,
    /// A platform of an index: a store may hold only some (image-layout.md, "blobs may be missing").
    NotBeThere,
}

/// As what something was named: the same blob can be named as a layer first and as a manifest after.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Role {
    Document,
    Config,
    /// Of a type that we do not know: what it names is kept as far as it can be seen.
    Unknown,
    Layer,
}

/// What comes next from a document: what it needs, and the subject that it speaks of.
type Next = (Vec<(Descriptor, Role, Must)>, Option<Digest>);

/// A store's documents, and what was wrong with them.
pub(super) struct Walker<'s> {
    store: &'s Store,
    scan: &'s Scan,
    errors: Vec<Error>,
    remarks: BTreeSet<String>,
}

impl<'s> Walker<'s> {
    pub(super) fn new(store: &'s Store, scan: &'s Scan) -> Self {
        Self {
            store,
            scan,
            errors: Vec::new(),
            remarks: BTreeSet::new(),
        }
    }

    pub(super) fn done(self) -> (Vec<Error>, BTreeSet<String>) {
        (self.errors, self.remarks)
    }

    /// Walk from an entry of index.json.
    pub(super) fn entry(&mut self, name: String, target: Descriptor) -> Entry {
        let who = if name.is_empty() {
            format!("image {}", target.digest)
        } else {
            format!("image {}", visible(&name))
        };
        let before = self.errors.len();
        let mut reach = Reach::default();
        let subject = self.walk(&target, &who, &mut reach);
        let attached = subject
            .filter(|_| reach.images == 0)
            .or_else(|| subject_by_tag(&name));
        let known = manifest::kind(&target.media_type);
        let what = match attached {
            Some(subject) => What::Attached(subject),
            None if known.is_some() && (reach.images > 0 || reach.artifacts == 0) => What::Image,
            None => What::Other,
        };
        Entry {
            name,
            target,
            what,
            reach,
            broken: self.errors.len() > before,
            used_by: Vec::new(),
        }
    }

    /// Everything below `root`; the subject that it speaks of itself.
    fn walk(&mut self, root: &Descriptor, who: &str, reach: &mut Reach) -> Option<Digest> {
        let mut own_subject = None;
        let mut seen = HashSet::new();
        let mut rest = vec![(root.clone(), document_role(root), Must::BeThere)];
        while let Some((descriptor, role, must)) = rest.pop() {
            if !seen.insert((descriptor.digest.clone(), role)) {
                continue;
            }
            let step = self.step(&descriptor, role, must, who, reach);
            match step.with_context(|| who.to_owned()) {
                Ok((children, subject)) => {
                    rest.extend(children);
                    if let Some(subject) = subject {
                        self.whatever(&subject, reach);
                        if descriptor.digest == root.digest {
                            own_subject = Some(subject);
                        }
                    }
                }
                Err(error) => self.errors.push(error),
            }
        }
        own_subject
    }

    /// One document or blob: what it needs next, and the subject that it speaks of.
    fn step(
        &mut self,
        descriptor: &Descriptor,
        role: Role,
        must: Must,
        who: &str,
        reach: &mut Reach,
    ) -> Result<Next> {
        let digest = &descriptor.digest;
        let nothing = Ok((Vec::new(), None));
        reach.blobs.insert(digest.clone());
        if role == Role::Unknown {
            self.whatever(digest, reach);
            return nothing;
        }
        let embedded = descriptor.embedded()?;
        if embedded.is_none() && !self.is_there(digest)? {
            if must == Must::BeThere {
                return Err(anyhow!("blob {digest} is missing"));
            }
            let remark = format!("{who}: blob {digest} of its index is not in the store");
            self.remarks.insert(remark);
            return nothing;
        }
        let read = || match &embedded {
            Some(bytes) => Ok(bytes.clone()),
            None => self.store.document(descriptor),
        };
        match role {
            Role::Layer | Role::Unknown => nothing,
            Role::Config => {
                let config = Config::parse(&read()?).with_context(|| format!("blob {digest}"))?;
                reach.configuration(digest, config);
                nothing
            }
            Role::Document => {
                reach.documents.insert(digest.clone());
                let document = Document::parse(&read()?, &descriptor.media_type)
                    .with_context(|| format!("blob {digest}"))?;
                Ok(match document {
                    Document::Index(index) => {
                        let child = |child: Descriptor| {
                            let role = document_role(&child);
                            (child, role, Must::NotBeThere)
                        };
                        let children = index.manifests.into_iter().map(child).collect();
                        (children, index.subject.map(|subject| subject.digest))
                    }
                    Document::Manifest(manifest) => {
                        // Provenance and the like beside the images of an index says nothing of what it is.
                        if manifest.is_image() && !descriptor.is_attestation() {
                            reach.images += 1;
                        } else {
                            reach.artifacts += 1;
                        }
                        parts(manifest)
                    }
                })
            }
        }
    }

    fn is_there(&self, digest: &Digest) -> Result<bool> {
        // What came after the look at the directories counts too.
        Ok(self.scan.blobs.contains_key(digest) || self.store.blob_size(digest)?.is_some())
    }

    /// A fault unless the blob is there.
    pub(super) fn require(&mut self, digest: &Digest, who: &str) {
        if !self.scan.blobs.contains_key(digest)
            && let Err(error) = named_blob(self.store, digest)
        {
            self.errors.push(error.context(who.to_owned()));
        }
    }

    /// A fault unless the layer is unpacked.
    pub(super) fn require_layer(&mut self, chain: &Digest, who: &str) {
        let tree = self.scan.layers.get(chain).is_some_and(|layer| layer.tree);
        let path = layer_place(self.store, chain);
        if !tree && !path.is_dir() {
            let missing = anyhow!("its layer {} is missing", path.display());
            self.errors.push(missing.context(who.to_owned()));
        }
    }

    /// What can be seen from a blob without knowing its type: every digest that a JSON document names, if the store has
    /// it, and so on. Nothing has to be there.
    pub(super) fn whatever(&mut self, from: &Digest, reach: &mut Reach) {
        let mut seen = HashSet::new();
        let mut rest = vec![from.clone()];
        while let Some(digest) = rest.pop() {
            if !seen.insert(digest.clone()) || !self.scan.blobs.contains_key(&digest) {
                continue;
            }
            reach.blobs.insert(digest.clone());
            let document = match self.json(&digest) {
                Ok(Some(document)) => document,
                Ok(None) => continue,
                Err(error) => {
                    self.errors.push(error);
                    continue;
                }
            };
            reach.documents.insert(digest);
            if let Some(diff_ids) = diff_ids(&document) {
                let chain = chain_ids(&diff_ids);
                reach.tops.extend(chain.last().cloned());
                reach.layers.extend(chain);
            }
            digests(&document, &mut rest);
        }
    }

    /// The blobs that are not among `kept` and small enough for a document.
    pub(super) fn unkept(&self, kept: &BTreeSet<Digest>) -> Vec<Digest> {
        self.scan
            .blobs
            .iter()
            .filter(|(digest, file)| {
                file.size.apparent <= LARGEST_DOCUMENT && !kept.contains(*digest)
            })
            .map(|(digest, _)| digest.clone())
            .collect()
    }

    /// The subject of a manifest or index.
    pub(super) fn subject(&mut self, digest: &Digest) -> Option<Digest> {
        match self.json(digest) {
            Ok(document) => document?["subject"]["digest"].as_str()?.parse().ok(),
            Err(error) => {
                self.errors.push(error);
                None
            }
        }
    }

    /// A blob that is a JSON object; none where it is something else.
    fn json(&self, digest: &Digest) -> Result<Option<Value>> {
        let context = || format!("read blob {digest}");
        if self
            .scan
            .blobs
            .get(digest)
            .is_none_or(|file| file.size.apparent > LARGEST_DOCUMENT)
        {
            return Ok(None);
        }
        let mut file = match self.store.open_blob(digest) {
            Ok(file) => file,
            // It went since the directory was read.
            Err(_) if !self.is_there(digest)? => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = vec![0; 1];
        if file.read(&mut bytes).with_context(context)? == 0 || !b"{ \t\r\n".contains(&bytes[0]) {
            return Ok(None);
        }
        file.take(LARGEST_DOCUMENT)
            .read_to_end(&mut bytes)
            .with_context(context)?;
        let value = serde_json::from_slice::<Value>(&bytes).ok();
        Ok(value.filter(Value::is_object))
    }
}

impl Reach {
    fn configuration(&mut self, digest: &Digest, config: Config) {
        self.documents.insert(digest.clone());
        let chain = chain_ids(&config.diff_ids);
        self.tops.extend(chain.last().cloned());
        self.layers.extend(chain);
        if self.created.is_none() && self.labels.is_empty() {
            self.labels = config.execution.labels;
            self.created = config.created;
        }
    }
}

fn document_role(descriptor: &Descriptor) -> Role {
    match manifest::kind(&descriptor.media_type) {
        Some(_) => Role::Document,
        None => Role::Unknown,
    }
}

/// What a manifest needs: its configuration and layers.
fn parts(manifest: Manifest) -> Next {
    let role = if manifest.is_image() {
        Role::Config
    } else {
        Role::Layer
    };
    let mut children = vec![(manifest.config, role, Must::BeThere)];
    for layer in manifest.layers {
        let must = if manifest::is_nondistributable(&layer.media_type) {
            Must::NotBeThere
        } else {
            Must::BeThere
        };
        children.push((layer, Role::Layer, must));
    }
    (children, manifest.subject.map(|subject| subject.digest))
}

/// The subject in a tag of the form `sha256-HEX` (distribution-spec, "Referrers Tag Schema"), also with a suffix as
/// cosign writes it.
fn subject_by_tag(name: &str) -> Option<Digest> {
    let tag = name.rsplit(':').next()?;
    let hex = tag.strip_prefix("sha256-")?.get(..64)?;
    format!("sha256:{hex}").parse().ok()
}

fn diff_ids(document: &Value) -> Option<Vec<Digest>> {
    let listed = document["rootfs"]["diff_ids"].as_array()?;
    listed
        .iter()
        .map(|one| one.as_str()?.parse().ok())
        .collect()
}

/// Every string in `value` that is a digest.
fn digests(value: &Value, into: &mut Vec<Digest>) {
    match value {
        Value::String(text) => into.extend(text.parse::<Digest>().ok()),
        Value::Array(all) => all.iter().for_each(|one| digests(one, into)),
        Value::Object(members) => members.values().for_each(|one| digests(one, into)),
        _ => {}
    }
}
