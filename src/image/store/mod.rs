//! The store on disk: opened, locked, cleaned of leftovers. The drawing stands in `image`.
//!
//! Everything below the root is reached through directory descriptors that were opened without following links, so a
//! store whose `blobs` was replaced by a link to somewhere else is refused, not pruned. The root itself may be a link:
//! the administrator's way to put the store on another disk.

mod blob;
mod index;
mod lease;
mod lookup;
mod measure;
mod record;
mod remove;

pub(crate) use blob::{Put, is_full, unwritten};
pub(crate) use lease::{HeldLease, Kind, Lease, Leases, Stage};
pub(crate) use lookup::Image;
pub(crate) use measure::{Measure, measure};
pub(crate) use record::{BundleRecord, LayerForm, LayerRecord, Used, VolumeRecord};
pub(crate) use remove::{Trashed, remove_tree};

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{Uid, fsync, syncfs};
use serde::{Deserialize, Serialize};

use crate::idmap;
use crate::report::Hinted;
use crate::sys::path::file_type;

use super::digest::{Algorithm, Digest};

/// When written content has to be on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Durability {
    /// The kernel writes it when it likes; after a power cut content may be damaged, and fsck finds it.
    None,
    /// One syncfs(2) before the record that makes content count.
    #[default]
    Syncfs,
    /// fsync(2) of every file and directory, then of the record.
    Fsync,
}

/// The version of our records. A store of another version is one error and stays as it is.
pub(crate) const SCHEMA: u32 = 1;

/// The directories of a store, in the order in which they are made. `staging` is first: files are begun there.
const DIRECTORIES: [&str; 10] = [
    "staging",
    "blobs",
    "layers",
    "volumes",
    "records",
    "records/layers",
    "records/bundles",
    "records/volumes",
    "leases",
    "trash",
];

/// `records/store.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    schema: u32,
    form: LayerForm,
}

/// An open store.
pub(crate) struct Store {
    path: PathBuf,
    root: OwnedFd,
    durability: Durability,
    form: LayerForm,
}

/// A flock(2) that is held until this is dropped.
pub(crate) struct Guard {
    _file: Option<Flock<File>>,
}

impl Store {
    /// Open the store at `root` to change it; make it where there is none, and remove what dead commands left.
    ///
    /// # Errors
    /// The directory holds something else, cannot be written, or was written by a release with another schema.
    pub(crate) fn open(root: &Path, durability: Durability) -> Result<Self> {
        let opened = Self::open_or_make(root, durability)
            .with_context(|| format!("open store {}", root.display()))?;
        opened.clean()?;
        Ok(opened)
    }

    /// Open the store at `root` to read it. None where there is none.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub(crate) fn existing(root: &Path) -> Result<Option<Self>> {
        let context = || format!("open store {}", root.display());
        let dir = match nix::fcntl::open(root, DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno).with_context(context),
        };
        let Some(about) = read_about(dir.as_fd()).with_context(context)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            path: root.to_owned(),
            root: dir,
            durability: Durability::default(),
            form: about.form,
        }))
    }

    fn open_or_make(path: &Path, durability: Durability) -> Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let root = nix::fcntl::open(path, DIRECTORY, Mode::empty())?;
        refuse_anothers(root.as_fd())?;
        if let Some(about) = read_about(root.as_fd())? {
            let store = Self {
                path: path.to_owned(),
                root,
                durability,
                form: about.form,
            };
            for name in DIRECTORIES {
                drop(store.subdirectory(name)?);
            }
            return Ok(store);
        }
        refuse_foreign(root.as_fd())?;
        // CVE-2021-41091: images hold setuid programs, so nobody else may look in.
        fchmod(&root, Mode::S_IRWXU).context("make it accessible to its owner only")?;
        let form = if Uid::effective().is_root() && idmap::in_initial_namespace()? {
            LayerForm::Trusted
        } else {
            LayerForm::User
        };
        let store = Self {
            path: path.to_owned(),
            root,
            durability,
            form,
        };
        store.make()?;
        Ok(store)
    }

    /// The files and directories of a new store; what is there already, for example an OCI layout, stays.
    fn make(&self) -> Result<()> {
        for name in DIRECTORIES {
            match mkdirat(&self.root, name, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).with_context(|| format!("make directory {name}")),
            }
            drop(self.subdirectory(name)?);
        }
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let name = format!("blobs/{}", algorithm.name());
            match mkdirat(&self.root, name.as_str(), Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).with_context(|| format!("make directory {name}")),
            }
        }
        let _lock = self.index_lock()?;
        if !self.has("oci-layout")? {
            self.replace("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        if !self.has("index.json")? {
            self.replace(
                "index.json",
                br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
            )?;
        }
        let about = About {
            schema: SCHEMA,
            form: self.form,
        };
        self.replace("records/store.json", &serde_json::to_vec(&about)?)
    }

    /// Fail where the store is another user's, as it is for [`Self::open`].
    pub(crate) fn require_own(&self) -> Result<()> {
        refuse_anothers(self.dir()).with_context(|| format!("store {}", self.path.display()))
    }

    /// The root as it was named.
    pub(crate) fn root(&self) -> &Path {
        &self.path
    }

    /// Refuse `path`, absolute and with links resolved, as a place for what is not the store's: what nobody there knows of is
    /// removed sooner or later.
    ///
    /// # Errors
    /// It lies in the store.
    pub(crate) fn is_no_place_for(&self, path: &Path) -> Result<()> {
        let root = self.path.canonicalize();
        let root = root.with_context(|| format!("look at {}", self.path.display()))?;
        if path.starts_with(&root) {
            bail!(
                "{}: lies in the store {}, which is no place for it",
                path.display(),
                root.display()
            );
        }
        Ok(())
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }

    /// How whiteouts are written in this store's layers.
    pub(crate) fn form(&self) -> LayerForm {
        self.form
    }

    /// One of the store's own directories, never through a link.
    pub(crate) fn subdirectory(&self, name: &str) -> Result<OwnedFd> {
        crate::sys::path::open_no_links(self.dir(), Path::new(name), DIRECTORY)
            .with_context(|| format!("open directory {}", self.path.join(name).display()))
    }

    /// Where the tree of the layer `chain` stands.
    pub(crate) fn layer_path(&self, chain: &Digest) -> PathBuf {
        self.path.join("layers").join(chain.hex())
    }

    /// Where the content of the volume `name` stands.
    pub(crate) fn volume_path(&self, name: &str) -> PathBuf {
        self.path.join("volumes").join(name)
    }

    /// Hold off the removal of what is unreferenced, for a moment: see "Locks" in `image`. On a read-only file system
    /// nothing can be removed, and nothing is locked.
    pub(crate) fn shared(&self) -> Result<Guard> {
        match self.lock("lock", FlockArg::LockShared) {
            Err(error) if error.downcast_ref() == Some(&Errno::EROFS) => Ok(Guard { _file: None }),
            other => other,
        }
    }

    /// Be alone with the store, to carry out a plan.
    pub(crate) fn exclusive(&self) -> Result<Guard> {
        self.lock("lock", FlockArg::LockExclusive)
    }

    /// Change index.json or a record.
    pub(crate) fn index_lock(&self) -> Result<Guard> {
        self.lock("index.lock", FlockArg::LockExclusive)
    }

    fn lock(&self, name: &str, how: FlockArg) -> Result<Guard> {
        let context = || format!("lock {}", self.path.join(name).display());
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = openat(&self.root, name, flags, Mode::from_bits_truncate(0o600))
            .with_context(context)?;
        Ok(Guard {
            _file: Some(flock(file.into(), how).with_context(context)?),
        })
    }

    fn has(&self, name: &str) -> Result<bool> {
        Ok(stat_at(self.dir(), name)
            .with_context(|| format!("look at {}", self.path.join(name).display()))?
            .is_some())
    }

    /// Replace the file `name` below the root by `content`, as a whole or not at all.
    ///
    /// # Errors
    /// Names the file; it is then as it was.
    pub(crate) fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        self.replace_file(name, content)
            .with_context(|| format!("write {}", self.path.join(name).display()))
    }

    fn replace_file(&self, name: &str, content: &[u8]) -> Result<()> {
        let stage = self.stage(&format!("file-{}", random_name()?))?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mut file: File = openat(
            stage.dir(),
            "content",
            flags,
            Mode::from_bits_truncate(0o600),
        )?
        .into();
        file.write_all(content)?;
        if self.durability != Durability::None {
            file.sync_all()?;
        }
        renameat(stage.dir(), "content", self.dir(), name)?;
        if self.durability != Durability::None {
            let parent = Path::new(name).parent().unwrap_or(Path::new(""));
            let parent = if parent.as_os_str().is_empty() {
                nix::unistd::dup(&self.root)?
            } else {
                self.subdirectory(parent.to_str().unwrap_or_default())?
            };
            fsync(parent)?;
        }
        Ok(())
    }

    /// Wait until content written so far is on the disk, as far as the durability asks for it. Before a record is written.
    pub(crate) fn settle(&self) -> Result<()> {
        if self.durability == Durability::Syncfs {
            syncfs(&self.root)
                .with_context(|| format!("write the file system of {} out", self.path.display()))?;
        }
        Ok(())
    }

    /// At most `limit` bytes of the file `name` below the root; None where there is none.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        read_at(self.dir(), name, limit)
            .with_context(|| format!("read {}", self.path.join(name).display()))
    }
}

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// flock(2), again when a signal came between.
fn flock(mut file: File, how: FlockArg) -> nix::Result<Flock<File>> {
    loop {
        match Flock::lock(file, how) {
            Ok(held) => return Ok(held),
            Err((same, Errno::EINTR)) => file = same,
            Err((_, errno)) => return Err(errno),
        }
    }
}

/// lstat(2) below a directory; None where there is nothing.
fn stat_at(dir: BorrowedFd, name: &str) -> nix::Result<Option<FileStat>> {
    match nix::sys::stat::fstatat(dir, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A regular file's content, never through a link in any component, never from a FIFO.
fn read_at(dir: BorrowedFd, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = match crate::sys::path::open_no_links(dir, Path::new(name), flags) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if file_type(&fstat(&file)?) != SFlag::S_IFREG {
        bail!("not a regular file");
    }
    let mut content = Vec::new();
    File::from(file).take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        bail!("larger than {limit} bytes");
    }
    Ok(Some(content))
}

fn read_about(root: BorrowedFd) -> Result<Option<About>> {
    let Some(bytes) = read_at(root, "records/store.json", 1 << 16).context("records/store.json")?
    else {
        return Ok(None);
    };
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let version: Version = serde_json::from_slice(&bytes).context("records/store.json")?;
    if version.schema != SCHEMA {
        return Err(anyhow::Error::new(Hinted::new(
            format!(
                "records/store.json: schema {}, this release knows {SCHEMA}",
                version.schema
            ),
            "use the release that wrote the store, or another --root",
        )));
    }
    Ok(Some(
        serde_json::from_slice(&bytes).context("records/store.json")?,
    ))
}

/// Root could change another user's store, and must not: it does not know that user's containers, and what it writes is
/// closed to the owner.
fn refuse_anothers(root: BorrowedFd) -> Result<()> {
    let owner = fstat(root)?.st_uid;
    if owner == Uid::effective().as_raw() {
        return Ok(());
    }
    let text = format!("it belongs to the user {owner}");
    Err(Hinted::new(
        text,
        "call the command as that user, or name another --root",
    )
    .into())
}

/// A directory with content becomes a store only when the content is an OCI layout, or what a killed first command of
/// ours made.
fn refuse_foreign(root: BorrowedFd) -> Result<()> {
    let mut names = entries(root)?;
    let layout = names.iter().any(|name| name == "oci-layout");
    names.retain(|name| {
        !DIRECTORIES.iter().any(|ours| name == OsStr::new(ours))
            && name != "index.lock"
            && name != "lock"
    });
    match names.first() {
        Some(name) if !layout => bail!(
            "the directory holds {} and no oci-layout: name an empty directory or an OCI layout",
            name.display()
        ),
        _ => Ok(()),
    }
}

/// The names in a directory, sorted, without `.` and `..`.
pub(crate) fn entries(dir: BorrowedFd) -> Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStrExt as _;
    let own = crate::sys::path::open_no_links(dir, Path::new("."), DIRECTORY)?;
    let mut names = Vec::new();
    for entry in nix::dir::Dir::from_fd(own)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The time in Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Sixteen hex characters from the kernel.
pub(crate) fn random_name() -> Result<String> {
    let mut bytes = [0_u8; 8];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}
