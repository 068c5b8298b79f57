//! The layout `manifests/<org>/<repo>/<file>` and `blobs/<org>/<repo>/<digest>`.
//!
//! A manifest's file is called by its tag or by its digest, and a digest stands with or without its algorithm (G-8). A
//! tag's file is a copy of the manifest, not a pointer. Blobs belong to a repository; the same blob in another one may be
//! a hard link of it.

use super::super::super::digest::{Algorithm, Digest};
use super::survey::{
    ASIDE, Blob, Place, Stored, Survey, Upload, digest_by, is_component, is_tag, join, needs,
    read_manifest,
};
use super::tree::{Entry, Tree};

/// How deep a tree of unfinished uploads is looked at.
const DEEPEST_UPLOAD: usize = 4;

/// Look at everything; with `again`, also at the manifests that the sweep has put aside.
pub(super) fn survey(tree: &Tree, again: bool) -> Survey {
    let mut survey = Survey::default();
    for (name, files) in repositories(&mut survey, tree, "manifests") {
        for file in files {
            manifest(&mut survey, tree, "manifests", &name, &file, false);
        }
    }
    if again {
        let aside = format!("{ASIDE}/manifests");
        for (name, files) in repositories(&mut survey, tree, &aside) {
            for file in files {
                manifest(&mut survey, tree, &aside, &name, &file, true);
            }
        }
    }
    for (name, files) in repositories(&mut survey, tree, "blobs") {
        for file in files {
            blob(&mut survey, tree, &name, &file);
        }
    }
    uploads(&mut survey, tree, "tmp", 0);
    survey
}

/// The repositories below `top`, with the entries of each.
fn repositories(survey: &mut Survey, tree: &Tree, top: &str) -> Vec<(String, Vec<Entry>)> {
    let mut found = Vec::new();
    for org in survey.directories(tree, top) {
        let above = join(top, &org.name);
        if !is_component(&org.name) {
            survey.odd(tree, &above);
            continue;
        }
        for repository in survey.directories(tree, &above) {
            let path = join(&above, &repository.name);
            if !is_component(&repository.name) {
                survey.odd(tree, &path);
                continue;
            }
            let (files, others): (Vec<_>, Vec<_>) = survey
                .list(tree, &path)
                .into_iter()
                .partition(|entry| entry.is_file() && !entry.is_unfinished());
            for entry in others {
                survey.unfinished_or_odd(tree, &path, &entry);
            }
            found.push((join(&org.name, &repository.name), files));
        }
    }
    found
}

/// The digest that a file name is, with its algorithm or without.
fn digest_of(name: &str) -> Option<Digest> {
    let algorithm = match name.len() {
        64 => Algorithm::Sha256,
        128 => Algorithm::Sha512,
        _ => return name.parse().ok(),
    };
    format!("{}:{name}", algorithm.name()).parse().ok()
}

fn manifest(
    survey: &mut Survey,
    tree: &Tree,
    top: &str,
    repository: &str,
    file: &Entry,
    aside: bool,
) {
    let path = format!("{top}/{repository}/{}", file.name);
    let digest = digest_of(&file.name);
    if digest.is_none() && !is_tag(&file.name) {
        survey.odd(tree, &path);
        return;
    }
    let read = read_manifest(tree, &path, digest.as_ref()).and_then(|found| {
        found
            .map(|(found, bytes)| Ok((found, needs(tree, &path, &bytes)?, bytes)))
            .transpose()
    });
    let (found, needs, bytes) = match read {
        Ok(Some(read)) => read,
        // It went while the directory was read.
        Ok(None) => return,
        Err(error) => return survey.fault(&error),
    };
    // A manifest has one entry, by its sha256 digest, under which all its names meet.
    let main = digest_by(Algorithm::Sha256, &bytes);
    let repository = survey
        .repositories
        .entry(repository.to_owned())
        .or_default();
    let long = digest_by(Algorithm::Sha512, &bytes);
    repository.aliases.insert(long, main.clone());
    let stored = repository
        .manifests
        .entry(main.clone())
        .or_insert_with(|| Stored {
            aside: true,
            ..Stored::default()
        });
    stored.needs = needs;
    stored.size = bytes.len() as u64;
    stored.aside &= aside;
    if aside {
        return;
    }
    stored.places.push(Place {
        witness: path.clone(),
        path,
        stamp: file.stamp,
    });
    if digest.is_none() {
        repository.tags.insert(file.name.clone(), main);
    } else if found != main {
        repository.aliases.insert(found, main);
    }
}

fn blob(survey: &mut Survey, tree: &Tree, repository: &str, file: &Entry) {
    let path = format!("blobs/{repository}/{}", file.name);
    let Some(digest) = digest_of(&file.name) else {
        survey.odd(tree, &path);
        return;
    };
    survey.blobs.push(Blob {
        digest,
        repository: Some(repository.to_owned()),
        place: Place {
            witness: path.clone(),
            path,
            stamp: file.stamp,
        },
        links: Vec::new(),
    });
}

/// What is being uploaded; it is never removed here.
fn uploads(survey: &mut Survey, tree: &Tree, path: &str, depth: usize) {
    for entry in survey.list(tree, path) {
        let below = join(path, &entry.name);
        if entry.is_directory() && depth < DEEPEST_UPLOAD {
            uploads(survey, tree, &below, depth + 1);
        } else {
            survey.uploads.push(Upload {
                path: below,
                written: entry.stamp.modified.0,
            });
        }
    }
}
