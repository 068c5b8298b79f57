//! The containers that the runtime knows, as its state directories show them: what of ours is theirs.
//!
//! A container in any state counts, also a stopped one: it can be looked at, and its bundle is its own until it is
//! deleted. What cannot be read may use anything, so it is an error and never nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, bail};
use nix::unistd::Uid;
use serde::Deserialize;
use serde_json::Value;

use crate::idmap;

use super::mounts::{Named, lower_list, named};
use super::userns;
use super::volume::Places;

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
    /// The usual directories, for who takes something away.
    ///
    /// # Errors
    /// An ordinary user's directory is not known, so its containers are not either.
    pub(crate) fn usual() -> Result<Self> {
        userns::state_root()?;
        Ok(Self::new(Vec::new()))
    }

    /// The usual directories, and those that the operator named besides.
    pub(crate) fn new(named: Vec<PathBuf>) -> Self {
        let own = std::env::var_os("XDG_RUNTIME_DIR")
            .filter(|dir| !dir.is_empty())
            .map(|dir| PathBuf::from(dir).join("pelagos"));
        // Where the environment of another session of this user leads.
        let of_user = userns::caller()
            .filter(|user| !user.is_root())
            .map(|user| PathBuf::from(format!("/run/user/{user}/pelagos")));
        let shared = PathBuf::from("/run/pelagos");
        let mut usual: Vec<PathBuf> = own.into_iter().chain(of_user).chain([shared]).collect();
        usual.dedup();
        Self { usual, named }
    }

    /// The same, for a sweep.
    ///
    /// # Errors
    /// The operator named none, and an ordinary user's own directory is not known: what its containers use is not either.
    pub(crate) fn for_sweep(named: Vec<PathBuf>) -> Result<Self> {
        if named.is_empty() {
            userns::state_root().context("what containers use is not known")?;
        }
        Ok(Self::new(named))
    }

    /// The same and one more, where containers may have been made by commands of another session.
    pub(crate) fn with(&self, more: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut roots = self.clone();
        for dir in more {
            if !roots.usual.contains(&dir) && !roots.named.contains(&dir) {
                roots.usual.push(dir);
            }
        }
        roots
    }

    /// Unix seconds: when a container was last made or deleted.
    pub(crate) fn last_change(&self) -> u64 {
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

/// Whether it was for that reason that the container in `dir` could not be read.
fn is_closed(dir: &Path, error: &Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
    causes.any(|cause| is_of_another(dir, cause))
}

/// What the runtime remembers of a container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Container {
    pub(crate) id: String,
    /// Its bundle's directory, absolute; none while the container is only half made or half deleted.
    pub(crate) bundle: Option<PathBuf>,
    /// Its root, the sources of its mounts, the lower directories of overlays among them: below the bundle where they are
    /// relative, as written and with links resolved where that is possible.
    pub(crate) paths: Vec<PathBuf>,
    /// Values of its annotations.
    pub(crate) annotations: Vec<String>,
}

/// All containers of the state directories that were looked at, in the order of their ids.
#[derive(Debug, Default)]
pub(crate) struct Containers(Vec<Container>);

/// What could not be read.
pub(crate) enum Unread {
    /// A whole state directory.
    Root(Error),
    Container(Error),
}

impl Containers {
    /// Read every container of every state directory.
    ///
    /// # Errors
    /// Names the first that cannot be read, or is not what the runtime writes.
    pub(crate) fn read(roots: &RuntimeRoots) -> Result<Self> {
        let (found, unread) = Self::survey(roots);
        match unread.into_iter().next() {
            None => Ok(found),
            Some(Unread::Root(error) | Unread::Container(error)) => Err(error),
        }
    }

    /// Read what can be read, and say of the rest why not.
    pub(crate) fn survey(roots: &RuntimeRoots) -> (Self, Vec<Unread>) {
        let (mut found, mut unread) = (Vec::new(), Vec::new());
        let usual = roots.usual.iter().map(|dir| (dir, false));
        for (dir, named) in usual.chain(roots.named.iter().map(|dir| (dir, true))) {
            let context = || format!("read the containers in {}", dir.display());
            let listed = match fs::read_dir(dir) {
                Ok(listed) => listed,
                Err(error)
                    if !named
                        && (error.kind() == ErrorKind::NotFound || is_of_another(dir, &error)) =>
                {
                    continue;
                }
                Err(error) => {
                    unread.push(Unread::Root(Error::new(error).context(context())));
                    continue;
                }
            };
            // Of the shared directory it may be only the containers that are closed, each by itself.
            let owner = fs::metadata(dir).map(|metadata| metadata.uid());
            let foreign = !named && owner.is_ok_and(|owner| owner != Uid::effective().as_raw());
            for entry in listed {
                let read = entry.with_context(context).and_then(|entry| {
                    let path = entry.path();
                    match container(&path) {
                        Err(error) if foreign && is_closed(&path, &error) => Ok(None),
                        read => read,
                    }
                });
                match read {
                    Ok(container) => found.extend(container),
                    Err(error) => unread.push(Unread::Container(error)),
                }
            }
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        (Self(found), unread)
    }

    pub(crate) fn all(&self) -> &[Container] {
        &self.0
    }

    /// Those whose bundle is `path`, or lies below it.
    pub(crate) fn of_bundle(&self, path: &Path) -> impl Iterator<Item = &Container> {
        let place = Place::of(path);
        self.0.iter().filter(move |container| {
            let bundle = container.bundle.as_deref();
            bundle.is_some_and(|bundle| place.holds(bundle))
        })
    }
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
}

/// What there is to know of a `state.json`.
#[derive(Deserialize)]
struct State {
    bundle: PathBuf,
    rootfs: PathBuf,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// The sources of mounts, where the configuration is not beside it.
    #[serde(skip)]
    mounts: Vec<PathBuf>,
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
    // crun's file has another name.
    for file in ["state.json", "status"] {
        let file = dir.join(file);
        let Some(bytes) = read(&file).with_context(context)? else {
            continue;
        };
        let state = parse_state(&bytes).with_context(|| format!("read {}", file.display()))?;
        found.paths.push(state.rootfs);
        found.paths.extend(state.mounts);
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
        None => {
            let foreign = runcs(bytes).or_else(|| cruns(bytes));
            foreign.context("not the record of a container of this runtime, runc or crun")
        }
    }
}

/// What runc writes: its own configuration, in which the bundle is a label and annotations are the others.
fn runcs(bytes: &[u8]) -> Option<State> {
    #[derive(Deserialize)]
    struct Whole {
        config: Config,
    }
    #[derive(Deserialize)]
    struct Config {
        rootfs: PathBuf,
        mounts: Option<Vec<Mount>>,
        labels: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Mount {
        #[serde(default)]
        source: PathBuf,
    }
    let Whole { config } = serde_json::from_slice(bytes).ok()?;
    let labels = config
        .labels
        .iter()
        .filter_map(|label| label.split_once('='));
    let mut annotations: BTreeMap<_, _> =
        labels.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    Some(State {
        bundle: annotations.remove("bundle")?.into(),
        rootfs: config.rootfs,
        annotations,
        mounts: config
            .mounts
            .into_iter()
            .flatten()
            .map(|mount| mount.source)
            .collect(),
    })
}

/// What crun writes beside a copy of the configuration.
fn cruns(bytes: &[u8]) -> Option<State> {
    #[derive(Deserialize)]
    struct Status {
        bundle: PathBuf,
        rootfs: PathBuf,
        #[serde(rename = "cgroup-path")]
        _cgroup: serde::de::IgnoredAny,
    }
    let status: Status = serde_json::from_slice(bytes).ok()?;
    Some(State {
        bundle: status.bundle,
        rootfs: status.rootfs,
        annotations: BTreeMap::new(),
        mounts: Vec::new(),
    })
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

impl Container {
    /// The volumes that its mounts lead to: by what is there, and by what is written where nothing is there any more.
    pub(crate) fn volumes<'a>(&'a self, places: &'a Places) -> impl Iterator<Item = String> + 'a {
        let there = self
            .paths
            .iter()
            .flat_map(|path| places.through(path))
            .map(str::to_owned);
        let written = self.paths.iter().flat_map(|path| named(path));
        there.chain(written.filter_map(|named| match named {
            Named::Volume(name) => Some(name),
            Named::Layer(_) => None,
        }))
    }

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

    /// Relative paths begin in the bundle; add what they lead to, for a volume may be named through a link.
    fn resolve(&mut self) {
        let base = self.bundle.clone().unwrap_or_default();
        for path in &mut self.paths {
            *path = base.join(&*path);
        }
        let resolved: Vec<PathBuf> = self
            .paths
            .iter()
            .filter_map(|path| fs::canonicalize(path).ok())
            .collect();
        self.paths.extend(resolved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_read_with_their_bundles_and_mounts_and_failures_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let read = |root: &Path| {
            let (usual, named) = (Vec::new(), vec![root.to_owned()]);
            Containers::read(&RuntimeRoots { usual, named })
        };
        let (usual, named) = (vec![root.join("no")], Vec::new());
        let none = Containers::read(&RuntimeRoots { usual, named }).unwrap();
        assert!(none.all().is_empty());
        assert!(read(&root.join("no")).is_err());
        for id in ["web", "starting"] {
            fs::create_dir_all(root.join(id)).unwrap();
        }
        fs::write(root.join("a file"), "").unwrap();
        let state = r#"{"schema":1,"bundle":"/b/web","rootfs":"/b/web/rootfs","id":"web"}"#;
        fs::write(root.join("web/state.json"), state).unwrap();
        let config = r#"{"mounts":[{"destination":"/proc","source":"proc"},{"source":"/v/db"},{"source":"volumes/0"},{}]}"#;
        fs::write(root.join("web/config.json"), config).unwrap();
        let found = read(root).unwrap();
        let [starting, web] = found.all() else {
            panic!("{found:?}")
        };
        assert_eq!(
            (starting.id.as_str(), &starting.bundle),
            ("starting", &None)
        );
        assert_eq!(
            web.paths,
            ["/b/web/rootfs", "/b/web/proc", "/v/db", "/b/web/volumes/0"].map(PathBuf::from)
        );
        assert_eq!(found.of_bundle(Path::new("/b/web")).count(), 1);
        assert_eq!(found.of_bundle(Path::new("/b/we")).count(), 0);

        // Of other runtimes' containers, as runc and crun write them.
        let config = fs::read(root.join("web/config.json")).unwrap();
        fs::remove_file(root.join("web/config.json")).unwrap();
        let state = r#"{"id":"web","config":{"rootfs":"/b/web/rootfs","labels":["bundle=/b/web","a=b=c"],
            "mounts":[{"source":"proc"},{"source":"/v/db"}]}}"#;
        fs::write(root.join("web/state.json"), state).unwrap();
        let found = read(root).unwrap();
        let web = &found.all()[1];
        assert_eq!(web.bundle, Some(PathBuf::from("/b/web")));
        assert_eq!(web.annotations, ["b=c"]);
        let paths = ["/b/web/rootfs", "/b/web/proc", "/v/db"].map(PathBuf::from);
        assert_eq!(web.paths, paths);
        fs::remove_file(root.join("web/state.json")).unwrap();
        let status = r#"{"pid":3,"cgroup-path":"/web","rootfs":"rootfs","bundle":"/b/web"}"#;
        fs::write(root.join("web/status"), status).unwrap();
        fs::write(root.join("web/config.json"), config).unwrap();
        let found = read(root).unwrap();
        let web = &found.all()[1];
        assert_eq!(web.bundle, Some(PathBuf::from("/b/web")));
        assert!(web.paths.contains(&PathBuf::from("/v/db")));
        fs::remove_file(root.join("web/status")).unwrap();

        // B-4: what cannot be read may use anything.
        for broken in ["{", "{}", r#"{"schema":2,"bundle":"/b","rootfs":"/b/r"}"#] {
            fs::write(root.join("web/state.json"), broken).unwrap();
            let error = format!("{:#}", read(root).unwrap_err());
            assert!(error.contains("web"), "{error}");
        }
    }
}
