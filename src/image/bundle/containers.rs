//! The containers that a runtime knows, as its state directories show them: what of ours is theirs.
//!
//! A container in any state counts, also a stopped one: it can be looked at, and its bundle is its own until it is
//! deleted. What cannot be read may be anything, so it is an error and never nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) id: String,
    /// Its bundle's directory, absolute.
    pub(crate) bundle: PathBuf,
    /// The sources of its mounts, relative ones below the bundle.
    pub(crate) sources: Vec<PathBuf>,
}

/// All containers of the state roots that were looked at.
#[derive(Debug, Default)]
pub(crate) struct Containers(Vec<Container>);

impl Containers {
    /// Read the state root `root` of `pelagos`; a directory that does not exist has none.
    ///
    /// # Errors
    /// Names the file that cannot be read, or is not what the runtime writes.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let context = || format!("read the state of containers in {}", root.display());
        let listing = match std::fs::read_dir(root) {
            Ok(listing) => listing,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(error).with_context(context),
        };
        let mut found = Vec::new();
        for entry in listing {
            let entry = entry.with_context(context)?;
            if !entry.file_type().with_context(context)?.is_dir() {
                continue;
            }
            let dir = entry.path();
            let container = read_one(&dir)
                .with_context(|| format!("read the state of container {}", dir.display()))?;
            found.extend(container);
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Self(found))
    }

    pub(crate) fn all(&self) -> &[Container] {
        &self.0
    }

    /// Those whose bundle is `path`, or lies below it.
    pub(crate) fn of_bundle(&self, path: &Path) -> impl Iterator<Item = &Container> {
        let place = Place::of(path);
        self.0
            .iter()
            .filter(move |container| place.holds(&container.bundle))
    }
}

/// Whether a mount of `container` comes from `path`, from below it, or from the directory that holds it.
pub(crate) fn mounts_from(container: &Container, path: &Path) -> bool {
    let (place, parent) = (Place::of(path), path.parent().map(Place::of));
    container
        .sources
        .iter()
        .any(|source| place.holds(source) || parent.as_ref().is_some_and(|dir| dir.is(source)))
}

/// A directory, as it is written and with links resolved: the runtime keeps paths as they were typed.
struct Place(Vec<PathBuf>);

impl Place {
    fn of(path: &Path) -> Self {
        let resolved = path.canonicalize().ok();
        Self([path.to_owned()].into_iter().chain(resolved).collect())
    }

    fn holds(&self, path: &Path) -> bool {
        let resolved = path.canonicalize().ok();
        let mut spellings = [path].into_iter().chain(resolved.as_deref());
        spellings.any(|path| self.0.iter().any(|dir| path.starts_with(dir)))
    }

    fn is(&self, path: &Path) -> bool {
        let resolved = path.canonicalize().ok();
        self.0
            .iter()
            .any(|dir| path == dir || resolved.as_ref() == Some(dir))
    }
}

/// None for a directory that the runtime is just making or removing: it has no record yet, or no more.
fn read_one(dir: &Path) -> Result<Option<Container>> {
    let read = |name: &str| match std::fs::read(dir.join(name)) {
        Ok(bytes) => serde_json::from_slice::<Value>(&bytes)
            .map(Some)
            .with_context(|| format!("parse {name}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {name}")),
    };
    let Some(state) = read("state.json")? else {
        return Ok(None);
    };
    let bundle = state["bundle"]
        .as_str()
        .context("state.json names no bundle")?;
    let bundle = PathBuf::from(bundle);
    // Frozen at create. While the record is only an intent, the bundle's own is what counts.
    let config = match read("config.json")? {
        Some(config) => config,
        None => return Ok(Some(with_sources(dir, bundle, &Value::Null))),
    };
    Ok(Some(with_sources(dir, bundle, &config)))
}

fn with_sources(dir: &Path, bundle: PathBuf, config: &Value) -> Container {
    let mounts = config["mounts"].as_array().map_or(&[][..], Vec::as_slice);
    let sources = mounts
        .iter()
        .filter_map(|mount| mount["source"].as_str())
        .map(|source| bundle.join(source))
        .collect();
    Container {
        id: dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        bundle,
        sources,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn containers_are_read_with_their_bundles_and_mounts_and_failures_are_named() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(Containers::read(&root.join("no")).unwrap().all(), []);
        fs::create_dir_all(root.join("web")).unwrap();
        fs::create_dir_all(root.join("starting")).unwrap();
        fs::write(root.join("a file"), "").unwrap();
        fs::write(
            root.join("web/state.json"),
            r#"{"bundle":"/b/web","id":"web"}"#,
        )
        .unwrap();
        let config = r#"{"mounts":[{"destination":"/proc","source":"proc"},{"source":"/v/db"},{"source":"volumes/0"},{}]}"#;
        fs::write(root.join("web/config.json"), config).unwrap();
        let found = Containers::read(root).unwrap();
        let [web] = found.all() else {
            panic!("{found:?}")
        };
        assert_eq!(
            web.sources,
            ["/b/web/proc", "/v/db", "/b/web/volumes/0"].map(PathBuf::from)
        );
        assert!(mounts_from(web, Path::new("/v/db")) && !mounts_from(web, Path::new("/v/d")));
        assert_eq!(found.of_bundle(Path::new("/b/web")).count(), 1);
        assert_eq!(found.of_bundle(Path::new("/b/we")).count(), 0);

        // B-4: what cannot be read may use anything.
        for broken in ["{", "{}"] {
            fs::write(root.join("web/state.json"), broken).unwrap();
            let error = format!("{:#}", Containers::read(root).unwrap_err());
            assert!(error.contains("web"), "{error}");
        }
    }
}
