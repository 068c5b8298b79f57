//! Bundles: a root filesystem and a config.json made from an image.
//!
//! ```text
//! DIR/                     0700: a setuid program in the image is no way to root for whoever could reach it
//! ├─ config.json
//! ├─ rootfs/               a tree of its own, or where the overlay is mounted
//! ├─ overlay/{upper,work}  what the container writes, of an overlay
//! └─ volumes/N/            the image's volumes that nobody mounted something else over
//! ```

mod config;
mod labels;
mod overlay;
mod place;
mod remove;
mod seed;
mod user;

pub(crate) use config::Overrides;
pub(crate) use labels::Labels;
pub(crate) use place::{Source, Wanted};
pub(crate) use remove::{by_path, claim, is_leftover, remove, runs, sweep, sweep_run};

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, Permissions};
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{Gid, Uid, fchown, syncfs};
use serde_json::{Value, json};

use crate::idmap::{self, Maps, to_host};
use crate::report;
use crate::sys::path::Kind as Target;

use super::layers;
use super::manifest::Platform;
use super::output::visible;
use super::progress::Progress;
use super::store::{
    BundleRecord, Durability, Image, Kind, Lease, SCHEMA, Store, entries, now, random_name,
    remove_tree,
};
use super::unpack::{self, Form, Ids, Layer, Limits, Options};
use super::userns;
use super::volume;
use config::{Caller, Contents};
use overlay::Overlay;

/// The annotation that names the image's manifest by its digest.
const MANIFEST: &str = "run.pelagos.image.manifest";

/// What the root filesystem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rootfs {
    /// A tree of its own.
    Flat,
    /// Shared layers, and a directory for what is written.
    Overlay,
    /// An overlay where there can be one.
    Either,
}

/// What a bundle is made of.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// A name, a digest or its beginning.
    pub(crate) image: String,
    /// This machine's, if none.
    pub(crate) platform: Option<Platform>,
    pub(crate) rootfs: Rootfs,
    pub(crate) overrides: Overrides,
    pub(crate) labels: Labels,
    /// More annotations, which win over the image's.
    pub(crate) annotations: Vec<(String, String)>,
    pub(crate) volumes: Vec<Wanted>,
    /// For a container with a user namespace; only the machine's root can choose.
    pub(crate) maps: Option<Maps>,
    pub(crate) limits: Limits,
    /// Nothing is said of what was left out.
    pub(crate) quiet: bool,
}

impl Request {
    /// Say what of the image was left out or done otherwise. Its words are the image's.
    fn remark(&self, text: &str) {
        if !self.quiet {
            report::warn(format_args!("{}", visible(text)));
        }
    }
}

/// Where it is made, and for whom.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Absolute; absent or an empty directory.
    pub(crate) path: PathBuf,
    /// The record's.
    pub(crate) id: String,
    /// The bundle goes again when its container has ended, so nothing of it has to be on the disk.
    pub(crate) passing: bool,
    /// The runtime will be started by this process, inside the user namespace that it may be in, and keep its state here.
    pub(crate) state_root: Option<PathBuf>,
}

impl Place {
    /// Whether this command also runs it.
    fn is_run(&self) -> bool {
        self.state_root.is_some()
    }
}

/// Make a bundle and register it. The tree, the record and the mount are there when this returns, and none of them when it
/// fails.
///
/// # Errors
/// Names the image, layer or option at fault.
pub(crate) fn make(
    store: &Store,
    place: &Place,
    request: &Request,
    progress: &Progress,
) -> Result<BundleRecord> {
    let overlay = request.rootfs != Rootfs::Flat;
    if overlay && request.maps.is_some() {
        bail!(
            "an overlay cannot have an id map: its layers are shared (use a flat root filesystem)"
        );
    }
    // The record is JSON as well.
    text(&place.path).context("bundle")?;
    if !place.is_run() {
        store.is_no_place_for(&place.path)?;
    }
    let lease = store.lease(&format!("bundle {}", place.path.display()))?;
    let image = hold(store, &lease, &request.image, request.platform.as_ref())?;
    let volumes = volumes(store, request)?;
    for name in &volumes {
        lease.hold(Kind::Volume, name)?;
    }
    let chain = if overlay {
        layers::ensure(store, &lease, &image, request.limits, progress)?
    } else {
        Vec::new()
    };

    let mut unfinished = Unfinished::begin(store, place)?;
    let mut record = record(place, &image, chain, volumes, request)?;
    {
        let _moment = store.shared()?;
        store.put_bundle_record(&record)?;
    }
    unfinished.registered = true;
    DirBuilder::new()
        .mode(0o755)
        .create(place.path.join("rootfs"))
        .context("make the root filesystem's directory")?;
    if overlay {
        let mounted = mount_overlay(store, place, &record);
        match mounted {
            Err(error) if request.rootfs == Rootfs::Either && overlay::is_impossible(&error) => {
                request.remark(&format!(
                    "no overlay here, a tree is unpacked instead: {}",
                    report::sentence(&error)
                ));
                record.overlay = false;
                record.chain = Vec::new();
            }
            other => other?,
        }
    }
    let rootfs = place.path.join("rootfs");
    let rootfs = open_directory(&rootfs)?;
    if !record.overlay {
        unpack_flat(store, &image, rootfs.as_fd(), place, request, progress)?;
    }
    let maker = Maker {
        store,
        place,
        request,
        rootfs: rootfs.as_fd(),
    };
    maker.configure(&image)?;
    if !place.passing && store.durability() != Durability::None {
        syncfs(&rootfs).context("write the bundle's file system out")?;
        syncfs(open_directory(&place.path)?).context("write the bundle's file system out")?;
    }
    record.last_seen = now();
    record.unfinished = false;
    store.put_bundle_record(&record)?;
    unfinished.registered = false;
    unfinished.armed = false;
    Ok(record)
}

/// Find the image and hold all of it, so that from here on no prune takes anything of it.
///
/// # Errors
/// There is no such image, or none for the platform.
pub(crate) fn hold(
    store: &Store,
    lease: &Lease,
    image: &str,
    platform: Option<&Platform>,
) -> Result<Image> {
    loop {
        let found = store.image(image, platform)?;
        let documents = [&found.target, &found.descriptor, &found.manifest.config];
        for descriptor in documents.into_iter().chain(&found.manifest.layers) {
            lease.hold(Kind::Blob, &descriptor.digest.to_string())?;
        }
        // ORDER: looked up again after it is held, while no prune is carried out. Before, it may have been removed
        // between the two, and one that began before it was held may be removing it.
        let _moment = store.shared()?;
        let again = store.image(image, platform)?;
        if again.descriptor.digest == found.descriptor.digest && again.target == found.target {
            return Ok(again);
        }
    }
}

/// The volumes that are mounted, by their names or through a path of the host.
fn volumes(store: &Store, request: &Request) -> Result<BTreeSet<String>> {
    let places = volume::Places::of(store)?;
    let wanted = request.volumes.iter();
    Ok(wanted
        .flat_map(|wanted| match &wanted.source {
            Source::Volume(name) => vec![name.clone()],
            Source::Host(path) => {
                let through = places.through(path);
                through.into_iter().map(str::to_owned).collect()
            }
        })
        .collect())
}

fn record(
    place: &Place,
    image: &Image,
    chain: Vec<super::digest::Digest>,
    volumes: BTreeSet<String>,
    request: &Request,
) -> Result<BundleRecord> {
    let parent = place
        .path
        .parent()
        .context("a bundle cannot be the root directory")?;
    Ok(BundleRecord {
        schema: SCHEMA,
        id: place.id.clone(),
        path: place.path.clone(),
        parent_device: std::fs::metadata(parent)
            .with_context(|| format!("look at {}", parent.display()))?
            .dev(),
        manifest: image.descriptor.digest.clone(),
        config: image.manifest.config.digest.clone(),
        layers: image
            .manifest
            .layers
            .iter()
            .map(|layer| layer.digest.clone())
            .collect(),
        overlay: request.rootfs != Rootfs::Flat,
        chain,
        volumes: volumes.into_iter().collect(),
        state_root: place.state_root.clone(),
        image_name: image.name.clone(),
        unfinished: !place.is_run(),
        passing: place.passing,
        created: now(),
        last_seen: now(),
    })
}

/// The absolute path of a bundle to be made at `dir`: its parent exists and its links are resolved.
///
/// # Errors
/// There is no such parent.
pub(crate) fn new_path(dir: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(dir).with_context(|| format!("bundle {}", dir.display()))?;
    // Components drop a slash at the end.
    let path: PathBuf = path.components().collect();
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("bundle {}: cannot be the root directory", dir.display());
    };
    let parent = parent
        .canonicalize()
        .with_context(|| format!("look at {}", parent.display()))?;
    Ok(parent.join(name))
}

/// A bundle in the making; dropped while armed, it takes back what was made.
struct Unfinished<'s> {
    store: &'s Store,
    place: &'s Place,
    /// The directory was there before, empty.
    existed: bool,
    registered: bool,
    armed: bool,
    /// To the end, so that no sweep takes it for a leftover. The directory of a run is held by its claim.
    _held: Option<Flock<File>>,
}

impl<'s> Unfinished<'s> {
    fn begin(store: &'s Store, place: &'s Place) -> Result<Self> {
        let context = || format!("make directory {}", place.path.display());
        let existed = match DirBuilder::new().mode(0o700).create(&place.path) {
            Ok(()) => false,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let dir = open_directory(&place.path)?;
                if !entries(dir.as_fd()).with_context(context)?.is_empty() {
                    bail!("{}: the directory is not empty", place.path.display());
                }
                // L-54: not by its path, which may have become another's.
                File::from(dir)
                    .set_permissions(Permissions::from_mode(0o700))
                    .with_context(context)?;
                true
            }
            Err(error) => return Err(error).with_context(context),
        };
        let held = (!place.is_run()).then(|| remove::hold(&place.path));
        Ok(Self {
            store,
            place,
            existed,
            registered: false,
            armed: true,
            _held: held.transpose()?,
        })
    }

    fn take_back(&self) -> Result<()> {
        let path = &self.place.path;
        overlay::unmount(&path.join("rootfs"))?;
        let dir = open_directory(path)?;
        for name in entries(dir.as_fd())? {
            remove_tree(dir.as_fd(), &name)?;
        }
        if !self.existed {
            std::fs::remove_dir(path)?;
        }
        if self.registered {
            self.store.remove_bundle_record(&self.place.id)?;
        }
        Ok(())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Err(error) = self.take_back() {
            report::warn(format_args!(
                "{}: what was made of the bundle stays: {}",
                self.place.path.display(),
                report::sentence(&error)
            ));
        }
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).with_context(|| format!("open directory {}", path.display()))
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode)))
        .with_context(|| format!("make directory {}", path.display()))
}

fn mount_overlay(store: &Store, place: &Place, record: &BundleRecord) -> Result<()> {
    let own = place.path.join("overlay");
    let (upper, work) = (own.join("upper"), own.join("work"));
    make_directory(&own, 0o700)?;
    make_directory(&upper, 0o755)?;
    make_directory(&work, 0o700)?;
    let mut lower: Vec<PathBuf> = record
        .chain
        .iter()
        .map(|chain| store.layer_path(chain))
        .collect();
    match lower.last() {
        // The top of the tree is the upper directory's, so it gets the attributes that the image gives it.
        Some(top) => {
            let meta =
                std::fs::metadata(top).with_context(|| format!("look at {}", top.display()))?;
            std::os::unix::fs::chown(&upper, Some(meta.uid()), Some(meta.gid()))
                .and_then(|()| std::fs::set_permissions(&upper, meta.permissions()))
                .with_context(|| format!("make directory {}", upper.display()))?;
        }
        // An image without layers: overlayfs wants one all the same.
        None => {
            let empty = own.join("empty");
            make_directory(&empty, 0o755)?;
            lower.push(empty);
        }
    }
    let target = open_directory(&place.path.join("rootfs"))?;
    Overlay {
        lower: &lower,
        upper: &upper,
        work: &work,
        form: store.form(),
        volatile: place.passing,
    }
    .mount(target.as_fd())
}

fn unpack_flat(
    store: &Store,
    image: &Image,
    rootfs: BorrowedFd,
    place: &Place,
    request: &Request,
    progress: &Progress,
) -> Result<()> {
    let mut layers = Vec::with_capacity(image.manifest.layers.len());
    for (descriptor, diff_id) in image.manifest.layers.iter().zip(&image.config.diff_ids) {
        layers.push(Layer {
            blob: store.open_blob(&descriptor.digest)?,
            descriptor: descriptor.clone(),
            diff_id: diff_id.clone(),
        });
    }
    let root = Uid::effective().is_root() && idmap::in_initial_namespace()?;
    let options = Options {
        form: Form::Flat,
        ids: match &request.maps {
            Some(maps) => Ids::Mapped(maps.clone()),
            None => userns::ids(),
        },
        devices: root && request.maps.is_none(),
        limits: request.limits,
        durability: if place.passing {
            Durability::None
        } else {
            store.durability()
        },
    };
    let report = unpack::flat(rootfs, layers, &options, progress)
        .with_context(|| format!("image {}", image.shown()))?;
    for line in report.warnings.iter().chain(&report.skipped) {
        request.remark(line);
    }
    Ok(())
}

/// The second half: what is looked up in the root filesystem, and config.json.
struct Maker<'m> {
    store: &'m Store,
    place: &'m Place,
    request: &'m Request,
    rootfs: BorrowedFd<'m>,
}

impl Maker<'_> {
    fn configure(&self, image: &Image) -> Result<()> {
        let execution = &image.config.execution;
        let overrides = &self.request.overrides;
        let wanted = overrides.user.as_deref().unwrap_or(&execution.user);
        let user = user::look_up(self.rootfs, wanted)?;
        let mut annotations = labels::annotations(&image.config, self.request.labels);
        annotations
            .map
            .extend(self.request.annotations.iter().cloned());
        // So that a container keeps what it was made from, wherever its bundle goes (B-1).
        let manifest = image.descriptor.digest.to_string();
        annotations.map.insert(MANIFEST.to_owned(), manifest);
        let mounts = self.volumes(&execution.volumes)?;
        let hostname = overrides.hostname.clone();
        let hostname = hostname.unwrap_or_else(|| hostname_of(&self.place.id));
        let cgroup2 =
            statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let written = config::write(Contents {
            execution,
            overrides,
            user,
            annotations,
            mounts,
            caller: self.caller()?,
            hostname: &hostname,
            cgroup2,
        })
        .with_context(|| format!("image {}", image.shown()))?;
        for remark in &written.remarks {
            self.request.remark(remark);
        }
        let path = self.place.path.join("config.json");
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(written.text.as_bytes()))
            .with_context(|| format!("write {}", path.display()))
    }

    fn caller(&self) -> Result<Caller> {
        if Uid::effective().is_root() && idmap::in_initial_namespace()? {
            return Ok(Caller::Root(self.request.maps.clone()));
        }
        if self.request.maps.is_some() {
            bail!(
                "--uid-map and --gid-map are for root: an ordinary user has the ids of /etc/subuid"
            );
        }
        let maps = userns::maps()?;
        // The runtime that starts it is in the namespace of this process, or else outside, where the command was given.
        Ok(Caller::User(if self.place.is_run() || !userns::entered() {
            userns::inside(&maps)
        } else {
            maps
        }))
    }

    /// The mounts for what the caller wants, and for what the image wants besides; parents come first.
    fn volumes(&self, of_image: &[String]) -> Result<Vec<Value>> {
        let mut mounts: Vec<(PathBuf, Value)> = Vec::new();
        for wanted in &self.request.volumes {
            let shown = wanted.destination.display();
            let mount = self
                .wanted(wanted)
                .with_context(|| format!("volume on {shown}"))?;
            if mounts.iter().any(|(place, _)| *place == mount.0) {
                bail!("volume on {shown}: two are mounted there");
            }
            mounts.push(mount);
        }
        let (places, mut refused) = place::of_image(of_image);
        let mut number = 0;
        for path in places {
            // Settled first: a link of the image decides what the place really is.
            let settled = match place::settle(self.rootfs, &path, Target::Directory) {
                Ok(settled) if !place::is_reserved(&settled) => settled,
                _ => {
                    refused.push(path.display().to_string());
                    continue;
                }
            };
            if mounts.iter().any(|(place, _)| *place == settled) {
                continue;
            }
            let mount = self
                .anonymous(&settled, number)
                .with_context(|| format!("volume on {}", settled.display()))?;
            number += 1;
            mounts.push((settled, mount));
        }
        if !refused.is_empty() {
            self.request.remark(&format!(
                "the image asks for volumes that cannot be: {}",
                refused.join(", ")
            ));
        }
        mounts.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(mounts.into_iter().map(|(_, mount)| mount).collect())
    }

    fn wanted(&self, wanted: &Wanted) -> Result<(PathBuf, Value)> {
        let access = if wanted.read_only { "ro" } else { "rw" };
        let (source, options, kind) = match &wanted.source {
            Source::Host(path) => {
                let kind = match std::fs::metadata(path) {
                    Ok(meta) if meta.is_dir() => Target::Directory,
                    Ok(_) => Target::File,
                    Err(error) => {
                        return Err(error).with_context(|| format!("look at {}", path.display()));
                    }
                };
                (path.clone(), json!(["rbind", "rprivate", access]), kind)
            }
            Source::Volume(name) => {
                let options = json!(["bind", "rprivate", "nosuid", "nodev", access]);
                (self.store.volume_path(name), options, Target::Directory)
            }
        };
        let destination = place::settle(self.rootfs, &wanted.destination, kind)?;
        if destination == Path::new("/") {
            bail!("nothing can be mounted over the root");
        }
        if let Source::Volume(name) = &wanted.source {
            let (content, empty) = volume::open(self.store, name)?;
            if empty {
                self.seed(&destination, content.as_fd())?;
            }
        }
        let mount = json!({
            "destination": text(&destination)?, "type": "bind", "source": text(&source)?,
            "options": options,
        });
        Ok((destination, mount))
    }

    /// A directory of the bundle, with what the image has there.
    fn anonymous(&self, destination: &Path, number: usize) -> Result<Value> {
        let folder = self.place.path.join("volumes");
        if !folder.is_dir() {
            make_directory(&folder, 0o700)?;
        }
        let name = number.to_string();
        make_directory(&folder.join(&name), 0o755)?;
        let content = open_directory(&folder.join(&name))?;
        self.seed(destination, content.as_fd())?;
        Ok(json!({
            "destination": text(destination)?, "type": "bind", "source": format!("volumes/{name}"),
            "options": ["bind", "rprivate", "nosuid", "nodev", "rw"],
        }))
    }

    fn seed(&self, destination: &Path, content: BorrowedFd) -> Result<()> {
        let inside = crate::sys::path::relative(destination);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let from = crate::sys::path::open_no_links(self.rootfs, &inside, flags)?;
        // A place that was only now made for the mount belongs to the container's root, not to us.
        if let Some(maps) = &self.request.maps {
            let root = (to_host(&maps.uids, 0), to_host(&maps.gids, 0));
            let stat = nix::sys::stat::fstat(&from)?;
            if let (0, 0, (Some(uid), Some(gid))) = (stat.st_uid, stat.st_gid, root) {
                fchown(&from, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
        }
        seed::copy(from.as_fd(), content)
            .with_context(|| format!("copy what the image has in {}", destination.display()))
    }
}

/// A path for config.json, which is JSON and thus UTF-8.
fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{}: the path is not UTF-8", path.display()))
}

/// A host name from an id: at most 64 bytes, what the kernel keeps.
fn hostname_of(id: &str) -> String {
    id.chars().take(12).collect()
}

/// An id for a bundle that nobody names.
pub(crate) fn new_id() -> Result<String> {
    random_name()
}

/// Rewrite the id maps of a bundle that was made for a runtime inside this process's user namespace, so that one outside,
/// where the command was given, can start it.
pub(crate) fn for_outside(path: &Path) -> Result<()> {
    if !userns::entered() {
        return Ok(());
    }
    let file = path.join("config.json");
    let context = || format!("rewrite {}", file.display());
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).with_context(context)?)
        .with_context(context)?;
    let maps = userns::maps()?;
    config["linux"]["uidMappings"] = config::mappings(&maps.uids);
    config["linux"]["gidMappings"] = config::mappings(&maps.gids);
    let mut text = serde_json::to_string_pretty(&config)?;
    text.push('\n');
    std::fs::write(&file, text).with_context(context)
}
