//! What a registry's tree holds, whatever its layout, as the marking sees it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

use super::super::super::digest::{Algorithm, Digest};
use super::super::super::manifest::LARGEST_DOCUMENT;
use super::document::Needs;
use super::tree::{Entry, Stamp, Tree};

/// Where a sweep puts things aside before it looks again. A registry passes over it.
pub(super) const ASIDE: &str = "pelagos-trash";

/// Something that can be moved aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The file or directory that is moved.
    pub(super) path: String,
    /// The file whose stamp dates it and tells whether it was touched: the same, or one inside.
    pub(super) witness: String,
    pub(super) stamp: Stamp,
}

/// A stored manifest.
#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    pub(super) needs: Needs,
    /// In bytes.
    pub(super) size: u64,
    /// All that makes a registry answer for it, without its content where that is a blob.
    pub(super) places: Vec<Place>,
    /// Further files that say when it was last used.
    pub(super) dated_by: Vec<Stamp>,
    /// It was put aside by the sweep that is looking again, so it is needed only if something else says so.
    pub(super) aside: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Repository {
    pub(super) manifests: BTreeMap<Digest, Stored>,
    pub(super) tags: BTreeMap<String, Digest>,
    /// Other digests of the same bytes.
    pub(super) aliases: BTreeMap<Digest, Digest>,
}

/// A stored blob.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    /// The repository to which it belongs; none where blobs are common to all.
    pub(super) repository: Option<String>,
    pub(super) place: Place,
    /// Entries in repositories that lead to it.
    pub(super) links: Vec<Place>,
}

/// An upload that nobody finished yet.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    pub(super) path: String,
    /// Unix seconds of the last write.
    pub(super) written: i64,
}

#[derive(Default)]
pub(super) struct Survey {
    pub(super) repositories: BTreeMap<String, Repository>,
    pub(super) blobs: Vec<Blob>,
    pub(super) uploads: Vec<Upload>,
    /// Digests under which content is known to clients, each with the one under which it is stored.
    pub(super) stored_as: BTreeMap<Digest, Digest>,
    /// What could not be read or understood. While there is one, nothing may be removed.
    pub(super) faults: Vec<String>,
}

impl Survey {
    pub(super) fn fault(&mut self, error: &anyhow::Error) {
        self.faults.push(crate::report::sentence(error));
    }

    pub(super) fn odd(&mut self, tree: &Tree, path: &str) {
        self.faults.push(format!(
            "{}: not what a registry stores there: look what it is and move it away",
            tree.shown(path)
        ));
    }

    /// The entries of a directory; where it cannot be read, a fault and nothing.
    pub(super) fn list(&mut self, tree: &Tree, path: &str) -> Vec<Entry> {
        match tree.list(path) {
            Ok(entries) => entries.unwrap_or_default(),
            Err(error) => {
                self.fault(&error);
                Vec::new()
            }
        }
    }

    /// Entries that have to be directories.
    pub(super) fn directories(&mut self, tree: &Tree, path: &str) -> Vec<Entry> {
        let (directories, others): (Vec<_>, Vec<_>) = self
            .list(tree, path)
            .into_iter()
            .partition(Entry::is_directory);
        for entry in others {
            self.unfinished_or_odd(tree, path, &entry);
        }
        directories
    }

    /// A file that is being written is left and told; anything else that does not belong there is a fault.
    pub(super) fn unfinished_or_odd(&mut self, tree: &Tree, directory: &str, entry: &Entry) {
        let path = join(directory, &entry.name);
        if entry.is_unfinished() {
            self.uploads.push(Upload {
                path,
                written: entry.stamp.modified.0,
            });
        } else {
            self.odd(tree, &path);
        }
    }
}

/// A path below another, either may be empty.
pub(super) fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

/// Read a stored manifest and check it against its digest: a write that a crash cut short is found here (G-1).
pub(super) fn read_manifest(
    tree: &Tree,
    path: &str,
    digest: Option<&Digest>,
) -> Result<Option<(Digest, Vec<u8>)>> {
    let Some(bytes) = tree.read(path, LARGEST_DOCUMENT)? else {
        return Ok(None);
    };
    let algorithm = digest.map_or(Algorithm::Sha256, Digest::algorithm);
    let found = digest_by(algorithm, &bytes);
    if let Some(digest) = digest.filter(|digest| **digest != found) {
        bail!(
            "{}: is to be {digest}, its content has the digest {found}",
            tree.shown(path)
        );
    }
    Ok(Some((found, bytes)))
}

pub(super) fn digest_by(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = algorithm.hasher();
    hasher.update(bytes);
    hasher.finish()
}

/// What the manifest at `path` needs.
pub(super) fn needs(tree: &Tree, path: &str, bytes: &[u8]) -> Result<Needs> {
    Needs::of(bytes).with_context(|| format!("read manifest {}", tree.shown(path)))
}

/// The grammar of tags (distribution-spec, "Pulling manifests").
pub(super) fn is_tag(name: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&name.len())
        && name.bytes().next().is_some_and(word)
        && name.bytes().all(|byte| word(byte) || b".-".contains(&byte))
}

/// A component of a repository's name, more freely than the specification has it: what no registry would take is only
/// what could be a path or hide itself.
pub(super) fn is_component(name: &str) -> bool {
    name.bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-:+".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    // G-9
    #[test]
    fn names_that_could_be_paths_or_hide_are_neither_tags_nor_components() {
        for good in ["a", "v1.0", "A_b-c", "latest", "1"] {
            assert!(is_tag(good) && is_component(good), "{good}");
        }
        assert!(is_component("host:5000") && !is_tag("host:5000"));
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "-a",
            "a/b",
            "a b",
            "a\n",
            "ä",
            &"a".repeat(129),
        ] {
            assert!(!is_tag(bad), "{bad:?}");
        }
        for bad in ["", ".", "..", ".a", "_a", "a/b", "a b", "a\0"] {
            assert!(!is_component(bad), "{bad:?}");
        }
    }
}
