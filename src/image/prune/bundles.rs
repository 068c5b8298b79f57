//! Where marking starts besides the names and the containers: bundles.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};

use crate::image::containers::Container;
use crate::image::store::BundleRecord;
use crate::report::Hinted;

use super::mark::Fault;

/// A registered bundle.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    pub(crate) record: BundleRecord,
    /// The directory is gone, for reasons that are no fault: only the grace still keeps it.
    pub(crate) gone: bool,
}

/// Where each bundle's directory is. What cannot be explained becomes a fault; the bundle then counts as being there.
pub(super) fn look(
    records: Vec<BundleRecord>,
    containers: &[Container],
    faults: &mut Vec<Fault>,
) -> Vec<Bundle> {
    let look = |record: BundleRecord| {
        let gone = match is_gone(&record, containers) {
            Ok(gone) => gone,
            Err(error) => {
                let what = format!("bundle {}", record.path.display());
                faults.push(Fault::passable(error.context(what)));
                false
            }
        };
        Bundle { record, gone }
    };
    records.into_iter().map(look).collect()
}

/// A bundle is gone when its directory is not there, though the directory that held it is, on the same device: else its
/// disk is not mounted, and everything may come back.
fn is_gone(record: &BundleRecord, containers: &[Container]) -> Result<bool> {
    match fs::symlink_metadata(&record.path) {
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let hint = "mount its disk again; if the bundle was removed by other means than `rm`, forget it with `rm`";
    let parent = record.path.parent().unwrap_or(Path::new("/"));
    let device = match fs::metadata(parent) {
        Ok(metadata) => metadata.dev(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(
                Hinted::new("it is gone, and so is the directory that held it", hint).into(),
            );
        }
        Err(error) => return Err(error).with_context(|| parent.display().to_string()),
    };
    if device != record.parent_device {
        return Err(Hinted::new(
            "it is gone, and its place is on another device than it was",
            hint,
        )
        .into());
    }
    let names_it = |container: &&Container| {
        container
            .bundle
            .as_deref()
            .is_some_and(|bundle| bundle == record.path || settled(bundle) == settled(&record.path))
    };
    match containers.iter().find(names_it) {
        Some(container) => Err(anyhow!(
            "it is gone, and container {} names it",
            container.id
        )),
        None => Ok(true),
    }
}

/// `path` with the links before its last component resolved.
fn settled(path: &Path) -> PathBuf {
    let parent = path
        .parent()
        .and_then(|parent| fs::canonicalize(parent).ok());
    match (parent, path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}
