//! Where marking starts besides the names: containers in any state, and bundles.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::unistd::Uid;
use serde::Deserialize;
use serde_json::Value;

use crate::idmap;
use crate::image::mounts::lower_list;
use crate::image::store::BundleRecord;
use crate::report::Hinted;

use super::mark::Fault;

/// The version of the runtime's `state.json` that is understood.
const STATE_SCHEMA: u32 = 1;

/// The state directories of the runtime, each with a directory for every container.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeRoots {
    /// Where the runtime keeps containers unless told; it makes the directory when it needs it.
    usual: Vec<PathBuf>,
    /// Named by the operator, so they have to be there.
    named: Vec<PathBuf>,
}

impl RuntimeRoots {
    /// The usual directories, and those that the operator named besides.
    pub(crate) fn new(named: Vec<PathBuf>) -> Self {
        let own = std::env::var_os("XDG_RUNTIME_DIR")
            .filter(|dir| !dir.is_empty())
            .map(|dir| PathBuf::from(dir).join("pelagos"));
        let shared = PathBuf::from("/run/pelagos");
        let usual = own.into_iter().chain([shared]).collect();
        Self { usual, named }
    }

    /// Unix seconds: when a container was last made or deleted.
    pub(super) fn last_change(&self) -> u64 {
        let all = self.usual.iter().chain(&self.named);
        all.filter_map(|dir| fs::metadata(dir).ok())
            .filter_map(|metadata| u64::try_from(metadata.mtime()).ok())
            .max()
            .unwrap_or(0)
    }
}

/// Whether `dir` is closed to us because it is another user's: the machine's containers are root's, and a user's store
/// is out of their reach by its mode as they are out of ours.
fn is_of_another(dir: &Path, error: &io::Error) -> bool {
    let user = Uid::effective();
    let all_powerful = user.is_root() && idmap::in_initial_namespace().unwrap_or(true);
    let owner = fs::metadata(dir).map(|metadata| metadata.uid());
    error.kind() == ErrorKind::PermissionDenied
        && !all_powerful
        && owner.is_ok_and(|owner| owner != user.as_raw())
}

/// What the runtime remembers of a container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: Option<PathBuf>,
    /// Its root, the sources of its mounts, the lower directories of overlays among them: as written, and with links
    /// resolved where that is possible.
    pub(crate) paths: Vec<PathBuf>,
    /// Values of its annotations.
    pub(crate) annotations: Vec<String>,
}

/// Read every container of every state directory. One that cannot be read becomes a fault, and the rest is read.
pub(super) fn containers(roots: &RuntimeRoots, faults: &mut Vec<Fault>) -> Vec<Container> {
    let mut found = Vec::new();
    let usual = roots.usual.iter().map(|dir| (dir, false));
    for (dir, named) in usual.chain(roots.named.iter().map(|dir| (dir, true))) {
        let listed = match fs::read_dir(dir) {
            Ok(listed) => listed,
            Err(error)
                if !named
                    && (error.kind() == ErrorKind::NotFound || is_of_another(dir, &error)) =>
            {
                continue;
            }
            Err(error) => {
                let what = format!("read the containers in {}", dir.display());
                faults.push(Fault::fatal(anyhow::Error::new(error).context(what)));
                continue;
            }
        };
        for entry in listed {
            let read = entry
                .with_context(|| format!("read the containers in {}", dir.display()))
                .and_then(|entry| container(&entry.path()));
            match read {
                Ok(container) => found.extend(container),
                Err(error) => faults.push(Fault::passable(error)),
            }
        }
    }
    found
}

/// What prune has to know of a `state.json`.
#[derive(Deserialize)]
struct State {
    bundle: PathBuf,
    rootfs: PathBuf,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// One state directory. None for a file beside them, and for a directory that went away meanwhile.
fn container(dir: &Path) -> Result<Option<Container>> {
    let context = || format!("container {}", dir.display());
    match fs::symlink_metadata(dir) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(context),
    }
    let name = dir.file_name().unwrap_or(OsStr::new("?"));
    let mut found = Container {
        id: name.to_string_lossy().into_owned(),
        ..Container::default()
    };
    if let Some(bytes) = read(&dir.join("state.json")).with_context(context)? {
        let state = parse_state(&bytes)
            .with_context(|| format!("read {}", dir.join("state.json").display()))?;
        found.paths.push(state.rootfs);
        found.annotations.extend(state.annotations.into_values());
        found.bundle = Some(state.bundle);
    }
    // Either may be there without the other while the container is made or deleted.
    if let Some(bytes) = read(&dir.join("config.json")).with_context(context)? {
        let config: Value = serde_json::from_slice(&bytes)
            .with_context(|| format!("read {}", dir.join("config.json").display()))?;
        found.configuration(&config);
    }
    found.resolve();
    Ok(Some(found))
}

fn parse_state(bytes: &[u8]) -> Result<State> {
    #[derive(Deserialize)]
    struct Version {
        schema: Option<u32>,
    }
    let version: Version = serde_json::from_slice(bytes)?;
    match version.schema {
        Some(STATE_SCHEMA) => Ok(serde_json::from_slice(bytes)?),
        Some(other) => bail!("state version {other}, this release knows {STATE_SCHEMA}"),
        None => bail!("not the record of a container of this runtime"),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

impl Container {
    /// What the frozen configuration names.
    fn configuration(&mut self, config: &Value) {
        if let Some(root) = config["root"]["path"].as_str() {
            self.paths.push(root.into());
        }
        for mount in config["mounts"].as_array().into_iter().flatten() {
            if let Some(source) = mount["source"].as_str() {
                self.paths.push(source.into());
            }
            for option in mount["options"].as_array().into_iter().flatten() {
                let Some((key, value)) = option.as_str().and_then(|text| text.split_once('='))
                else {
                    continue;
                };
                if matches!(key, "lowerdir" | "lowerdir+" | "datadir+") {
                    let all = lower_list(value.as_bytes());
                    let paths = all
                        .iter()
                        .map(|one| String::from_utf8_lossy(one).into_owned());
                    self.paths.extend(paths.map(PathBuf::from));
                }
            }
        }
        let annotations = config["annotations"].as_object().into_iter().flatten();
        self.annotations
            .extend(annotations.filter_map(|(_, value)| value.as_str().map(str::to_owned)));
    }

    /// Add what the paths lead to: a volume may be named through a link.
    fn resolve(&mut self) {
        let base = self.bundle.clone().unwrap_or_default();
        let resolved: Vec<PathBuf> = self
            .paths
            .iter()
            .filter_map(|path| fs::canonicalize(base.join(path)).ok())
            .collect();
        self.paths.extend(resolved);
    }
}

/// A registered bundle.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    pub(crate) record: BundleRecord,
    /// The directory is gone, for reasons that are no fault: only the grace still keeps it.
    pub(crate) gone: bool,
}

/// Where each bundle's directory is. What cannot be explained becomes a fault; the bundle then counts as being there.
pub(super) fn bundles(
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
