//! index.json, and every document that a name leads to.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};

use crate::report::sentence;

use super::super::digest::Digest;
use super::super::manifest::{
    Config, Descriptor, Document, is_image_config, is_nondistributable, kind,
};
use super::super::store::{self, Lease, Store};
use super::{Fault, Findings, Kind};

/// Read all documents, and remember what each name needs.
pub(super) fn check(store: &Store, lease: &Lease, findings: &mut Findings) {
    let names = match store.readable_names() {
        Ok(readable) => {
            for (_, error) in &readable.others {
                findings.fault(Fault::new(
                    Kind::Index,
                    "index.json",
                    sentence(error),
                    "prune stops at it: take the entry away with the tool that wrote it",
                ));
            }
            readable.names
        }
        Err(error) => {
            findings.fault(Fault::new(
                Kind::Index,
                "index.json",
                sentence(&error),
                "put a good copy in its place, or move it away and import the images again",
            ));
            return;
        }
    };
    findings.report.checked.names = names.len();
    for (name, target) in names {
        let shown = if name.is_empty() {
            target.digest.to_string()
        } else {
            name
        };
        let mut walk = Walk {
            store,
            lease,
            name: &shown,
            findings,
            seen: BTreeSet::new(),
        };
        walk.from(target);
    }
}

struct Walk<'walk> {
    store: &'walk Store,
    lease: &'walk Lease,
    name: &'walk str,
    findings: &'walk mut Findings,
    seen: BTreeSet<Digest>,
}

impl Walk<'_> {
    /// A list in place of recursion: an index may be as deep as somebody made it.
    fn from(&mut self, target: Descriptor) {
        let mut left = vec![(target, true)];
        while let Some((descriptor, required)) = left.pop() {
            if !self.seen.insert(descriptor.digest.clone()) {
                continue;
            }
            if self.visit(&descriptor, required) {
                match self.read(&descriptor) {
                    Ok(below) => left.extend(below),
                    Err(error) => self.bad(&descriptor, &sentence(&error)),
                }
            }
        }
    }

    /// Note that the name needs it; whether there is something to read.
    fn visit(&mut self, descriptor: &Descriptor, required: bool) -> bool {
        let digest = &descriptor.digest;
        let known = self.findings.needed.contains_key(digest);
        let (_, names) = self
            .findings
            .needed
            .entry(digest.clone())
            .or_insert_with(|| (descriptor.clone(), BTreeSet::new()));
        names.insert(self.name.to_owned());
        let held = self.lease.hold(store::Kind::Blob, &digest.to_string());
        match held.and_then(|()| self.store.blob_size(digest)) {
            Ok(Some(size)) if size != descriptor.size && !known => {
                self.bad(
                    descriptor,
                    &format!("{size} bytes long, its descriptor says {}", descriptor.size),
                );
                // Whether the blob or the descriptor is wrong is for its digest to say.
                false
            }
            Ok(Some(_)) => {
                kind(&descriptor.media_type).is_some() || is_image_config(&descriptor.media_type)
            }
            Ok(None) => {
                if required {
                    self.findings.missing.insert(digest.clone());
                }
                false
            }
            Err(error) => {
                self.bad(descriptor, &sentence(&error));
                false
            }
        }
    }

    /// What a document names. An error is a document that cannot be used.
    fn read(&mut self, descriptor: &Descriptor) -> Result<Vec<(Descriptor, bool)>> {
        let bytes = self.store.document(descriptor)?;
        self.findings.report.checked.documents += 1;
        if is_image_config(&descriptor.media_type) {
            Config::parse(&bytes)?;
            return Ok(Vec::new());
        }
        let document = Document::parse(&bytes, &descriptor.media_type)?;
        if let Document::Manifest(manifest) = &document
            && manifest.is_image()
            && let Ok(config) = self.store.document(&manifest.config)
        {
            Config::parse(&config)
                .and_then(|config| config.fits(manifest))
                .with_context(|| format!("configuration {}", manifest.config.digest))?;
        }
        let subject = match &document {
            Document::Index(index) => index.subject.clone(),
            Document::Manifest(manifest) => manifest.subject.clone(),
        };
        Ok(document
            .descriptors()
            .into_iter()
            // What it is about may be elsewhere.
            .filter(|below| subject.as_ref() != Some(*below))
            .map(|below| {
                let required = !is_nondistributable(&below.media_type);
                (below.clone(), required)
            })
            .collect())
    }

    fn bad(&mut self, descriptor: &Descriptor, what: &str) {
        let digest = &descriptor.digest;
        let mut fault = Fault::new(
            Kind::Document,
            digest,
            what,
            "import the image again; where its source has the same fault, untag it",
        );
        fault.images = self.findings.images(digest);
        let known = |other: &Fault| other.subject == fault.subject && other.what == fault.what;
        if !self.findings.report.faults.iter().any(known) {
            self.findings.fault(fault);
        }
    }
}
