//! The layout of the reference registry, below `docker/registry/v2`.
//!
//! ```text
//! repositories/NAME/_manifests/revisions/ALGORITHM/HEX/link          a manifest of the repository
//! repositories/NAME/_manifests/tags/TAG/current/link                 what the tag names
//! repositories/NAME/_manifests/tags/TAG/index/ALGORITHM/HEX/link     what it ever named
//! repositories/NAME/_layers/ALGORITHM/HEX/link                       the repository may hand out this blob; of one that
//!                                                                    was pushed by its sha512, the sha256 stands in it
//! repositories/NAME/_uploads/ID/…                                    an upload that is not finished
//! blobs/ALGORITHM/XX/HEX/data                                        the content, of manifests too, once for all
//! ```
//!
//! A manifest that was deleted keeps its directory below `revisions`, without the link.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow};

use super::super::super::digest::{Algorithm, Digest};
use super::document::Needs;
use super::survey::{
    ASIDE, Blob, Place, Stored, Survey, Upload, is_component, is_tag, join, needs, read_manifest,
};
use super::tree::{Entry, Stamp, Tree};

/// Components in a repository's name: more do not fit into the 255 bytes that a name may have.
const DEEPEST: usize = 128;

/// The largest link file, in bytes.
const LARGEST_LINK: u64 = 256;

/// Look at everything; with `again`, also at the content that the sweep has put aside.
pub(super) fn survey(tree: &Tree, again: bool) -> Survey {
    let mut walk = Walk {
        survey: Survey::default(),
        tree,
        again,
        known: BTreeMap::new(),
        links: BTreeMap::new(),
    };
    walk.repositories("repositories", "", 0);
    walk.blobs();
    walk.survey
}

/// What the manifest `digest` needs, wherever in the tree its content is: a child of an index counts also where the
/// repository has no link to it.
pub(super) fn fetch(tree: &Tree, digest: &Digest, again: bool) -> Result<Option<(Needs, u64)>> {
    let path = data(digest);
    let aside = format!("{ASIDE}/{path}");
    for path in [Some(path), again.then_some(aside)].into_iter().flatten() {
        if let Some((_, bytes)) = read_manifest(tree, &path, Some(digest))? {
            return Ok(Some((needs(tree, &path, &bytes)?, bytes.len() as u64)));
        }
    }
    Ok(None)
}

fn directory(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("blobs/{}/{}/{hex}", digest.algorithm().name(), &hex[..2])
}

fn data(digest: &Digest) -> String {
    format!("{}/data", directory(digest))
}

struct Walk<'tree> {
    survey: Survey,
    tree: &'tree Tree,
    again: bool,
    /// Manifests read so far: repositories share them.
    known: BTreeMap<Digest, (Needs, u64)>,
    /// By blob, the entries in `_layers`.
    links: BTreeMap<Digest, Vec<Place>>,
}

impl Walk<'_> {
    /// Repositories at and below `path`, whose name so far is `name`.
    fn repositories(&mut self, path: &str, name: &str, depth: usize) {
        if depth > DEEPEST {
            self.survey.odd(self.tree, path);
            return;
        }
        for entry in self.survey.directories(self.tree, path) {
            let below = join(path, &entry.name);
            match entry.name.as_str() {
                "_manifests" if depth > 0 => self.manifests(&below, name),
                "_layers" if depth > 0 => self.layers(&below),
                "_uploads" if depth > 0 => self.uploads(&below),
                component if is_component(component) => {
                    self.repositories(&below, &join(name, component), depth + 1);
                }
                _ => self.survey.odd(self.tree, &below),
            }
        }
    }

    fn manifests(&mut self, path: &str, name: &str) {
        // A repository without manifests is one all the same.
        self.survey.repositories.entry(name.to_owned()).or_default();
        for entry in self.survey.directories(self.tree, path) {
            let below = join(path, &entry.name);
            match entry.name.as_str() {
                "revisions" => self.revisions(&below, name),
                "tags" => {}
                _ => self.survey.odd(self.tree, &below),
            }
        }
        // ORDER: what a tag's history says belongs to revisions that are known by now.
        self.tags(&join(path, "tags"), name);
    }

    fn revisions(&mut self, path: &str, name: &str) {
        for (digest, below) in self.digests(path) {
            let Some(link) = self.link(&below) else {
                continue;
            };
            match self.read_link(&below) {
                Ok(Some(target)) if target == digest => {}
                Ok(None) => continue,
                Ok(Some(_)) => {
                    self.survey.odd(self.tree, &join(&below, "link"));
                    continue;
                }
                Err(error) => {
                    self.survey.fault(&error);
                    continue;
                }
            }
            match self.manifest(&digest) {
                Ok(Some((needs, size))) => {
                    let stored = Stored {
                        needs,
                        size,
                        places: vec![link],
                        ..Stored::default()
                    };
                    let repository = self.survey.repositories.entry(name.to_owned()).or_default();
                    repository.manifests.insert(digest, stored);
                }
                Ok(None) => self.survey.fault(&anyhow!(
                    "{}: the content of this manifest is not there",
                    self.tree.shown(&below)
                )),
                Err(error) => self.survey.fault(&error),
            }
        }
    }

    fn manifest(&mut self, digest: &Digest) -> Result<Option<(Needs, u64)>> {
        if let Some(known) = self.known.get(digest) {
            return Ok(Some(known.clone()));
        }
        let found = fetch(self.tree, digest, self.again)?;
        if let Some(found) = &found {
            self.known.insert(digest.clone(), found.clone());
        }
        Ok(found)
    }

    fn tags(&mut self, path: &str, name: &str) {
        for entry in self.survey.directories(self.tree, path) {
            let tag = join(path, &entry.name);
            if !is_tag(&entry.name) {
                self.survey.odd(self.tree, &tag);
                continue;
            }
            for part in self.survey.directories(self.tree, &tag) {
                if !["current", "index"].contains(&part.name.as_str()) {
                    self.survey.odd(self.tree, &join(&tag, &part.name));
                }
            }
            let current = join(&tag, "current");
            let stamp = self.link(&current).map(|place| place.stamp);
            match self.read_link(&current) {
                Ok(Some(target)) => self.tag(name, &entry.name, target, &tag),
                Ok(None) => self.survey.fault(&anyhow!(
                    "{}: a tag without its link",
                    self.tree.shown(&tag)
                )),
                Err(error) => self.survey.fault(&error),
            }
            self.history(&join(&tag, "index"), name, stamp);
        }
    }

    fn tag(&mut self, name: &str, tag: &str, target: Digest, path: &str) {
        let repository = self.survey.repositories.entry(name.to_owned()).or_default();
        let known = repository.manifests.contains_key(&target);
        repository.tags.insert(tag.to_owned(), target.clone());
        if known {
            return;
        }
        // The repository does not hand it out, but while its content is there it is not for us to say that it is gone.
        match self.manifest(&target) {
            Ok(Some((needs, size))) => {
                let stored = Stored {
                    needs,
                    size,
                    ..Stored::default()
                };
                let repository = self.survey.repositories.entry(name.to_owned()).or_default();
                repository.manifests.insert(target, stored);
            }
            Ok(None) => self.survey.fault(&anyhow!(
                "{}: the tag leads to manifest {target}, which is not there: delete the tag or push it again",
                self.tree.shown(path)
            )),
            Err(error) => self.survey.fault(&error),
        }
    }

    /// What a tag named before goes with the manifest. When the tag was last moved dates it.
    fn history(&mut self, path: &str, name: &str, moved: Option<Stamp>) {
        for (digest, below) in self.digests(path) {
            let link = self.link(&below);
            let Some(repository) = self.survey.repositories.get_mut(name) else {
                continue;
            };
            if let Some(stored) = repository.manifests.get_mut(&digest) {
                stored.places.extend(link);
                stored.dated_by.extend(moved);
            }
        }
    }

    fn layers(&mut self, path: &str) {
        for (digest, below) in self.digests(path) {
            let Some(link) = self.link(&below) else {
                continue;
            };
            // Content is stored by its sha256 whatever digest a client gave: the link says by which.
            let stored = if digest.algorithm() == Algorithm::Sha256 {
                Ok(None)
            } else {
                self.read_link(&below)
            };
            match stored {
                Ok(Some(stored)) if stored != digest => {
                    self.links.entry(stored.clone()).or_default().push(link);
                    self.survey.stored_as.insert(digest, stored);
                }
                Ok(_) => self.links.entry(digest).or_default().push(link),
                Err(error) => self.survey.fault(&error),
            }
        }
    }

    /// The directories `ALGORITHM/HEX` below `path`.
    fn digests(&mut self, path: &str) -> Vec<(Digest, String)> {
        let mut found = Vec::new();
        for algorithm in self.survey.directories(self.tree, path) {
            let above = join(path, &algorithm.name);
            for hex in self.survey.directories(self.tree, &above) {
                let below = join(&above, &hex.name);
                match format!("{}:{}", algorithm.name, hex.name).parse() {
                    Ok(digest) => found.push((digest, below)),
                    Err(_) => self.survey.odd(self.tree, &below),
                }
            }
        }
        found
    }

    /// The directory `path` with the file `link` in it, as one thing; none where there is no link.
    fn link(&mut self, path: &str) -> Option<Place> {
        self.only_file(path, "link")
    }

    fn only_file(&mut self, path: &str, wanted: &str) -> Option<Place> {
        let mut found = None;
        for entry in self.survey.list(self.tree, path) {
            if entry.is_file() && entry.name == wanted {
                found = Some(entry.stamp);
            } else {
                self.survey.unfinished_or_odd(self.tree, path, &entry);
            }
        }
        Some(Place {
            path: path.to_owned(),
            witness: join(path, wanted),
            stamp: found?,
        })
    }

    fn read_link(&self, path: &str) -> Result<Option<Digest>> {
        let path = join(path, "link");
        let Some(bytes) = self.tree.read(&path, LARGEST_LINK)? else {
            return Ok(None);
        };
        let odd = || anyhow!("{}: no digest stands in it", self.tree.shown(&path));
        let text = std::str::from_utf8(&bytes).map_err(|_| odd())?;
        Ok(Some(text.trim_end().parse().map_err(|_| odd())?))
    }

    fn uploads(&mut self, path: &str) {
        for entry in self.survey.list(self.tree, path) {
            let below = join(path, &entry.name);
            let inside = match self.tree.list(&below) {
                Ok(inside) if entry.is_directory() => inside.unwrap_or_default(),
                _ => Vec::new(),
            };
            let written = inside
                .iter()
                .chain([&entry])
                .map(|entry: &Entry| entry.stamp.modified.0)
                .max()
                .unwrap_or_default();
            self.survey.uploads.push(Upload {
                path: below,
                written,
            });
        }
    }

    fn blobs(&mut self) {
        let mut seen = BTreeSet::new();
        for algorithm in self.survey.directories(self.tree, "blobs") {
            let above = join("blobs", &algorithm.name);
            if !["sha256", "sha512"].contains(&algorithm.name.as_str()) {
                self.survey.odd(self.tree, &above);
                continue;
            }
            for prefix in self.survey.directories(self.tree, &above) {
                let shelf = join(&above, &prefix.name);
                for hex in self.survey.directories(self.tree, &shelf) {
                    let path = join(&shelf, &hex.name);
                    let digest: Option<Digest> =
                        format!("{}:{}", algorithm.name, hex.name).parse().ok();
                    match digest.filter(|digest| directory(digest) == path) {
                        Some(digest) if seen.insert(digest.clone()) => self.blob(digest, &path),
                        _ => self.survey.odd(self.tree, &path),
                    }
                }
            }
        }
    }

    fn blob(&mut self, digest: Digest, path: &str) {
        // A directory without data is one that the registry has made just now, or has left.
        let Some(place) = self.only_file(path, "data") else {
            return;
        };
        let links = self.links.remove(&digest).unwrap_or_default();
        self.survey.blobs.push(Blob {
            digest,
            repository: None,
            place,
            links,
        });
    }
}
