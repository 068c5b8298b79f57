//! `checkpoint`: the processes of a container written to files, from which `restore` makes them again.
//!
//! CRIU does it. What the container has from outside is not in the images but only named there, and here is decided how:
//! bind mounts by their destinations in config.json, masked files as `/dev/null`, namespaces that it joined as
//! `extRootNetNS` and `extRootPidNS`, standard streams by what they were. COMPAT: all of them runc's names.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxNamespaceType as Kind;

use super::readiness;
use super::state::{Record, Status};
use super::{Container, Id, PATIENCE, destroy};
use crate::criu::{
    self, Ask, CgroupsMode, FREEZES, NetworkLock, Notice, Options, REPORTS_LAZY_PAGES, Switch,
    Worker,
};
use crate::plan::mounts::{What, binds};
use crate::report::{self, debug};
use crate::spec::Bundle;
use crate::sys::fd;
use crate::sys::mount::unescape;
use crate::sys::path::{open_in_root, open_no_links, relative};

/// What `checkpoint` and `restore` have in common. Paths are absolute.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    /// Where the images are.
    pub(crate) path: PathBuf,
    /// Where logs and what else is written goes, if not there.
    pub(crate) work: Option<PathBuf>,
    /// Those that were given on the command line.
    pub(crate) switches: Vec<Switch>,
    pub(crate) cgroups: CgroupsMode,
    pub(crate) network_lock: Option<NetworkLock>,
}

/// What `checkpoint` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointOptions {
    pub(crate) id: Id,
    /// The state root.
    pub(crate) root: PathBuf,
    pub(crate) images: Images,
    /// The images of an earlier dump, relative to these.
    pub(crate) parent: Option<PathBuf>,
    /// Write memory alone, and let the container run on.
    pub(crate) pre_dump: bool,
    /// The address and port of a page server.
    pub(crate) page_server: Option<(String, u16)>,
    /// A descriptor that is told when lazy pages are served.
    pub(crate) status_fd: Option<i32>,
}

/// Names that a container's images have for what is not in them.
pub(super) const NET: &str = "extRootNetNS";
pub(super) const PID: &str = "extRootPidNS";
pub(super) const NULL: &str = "/dev/null";
/// A JSON array: what the standard streams were.
pub(super) const DESCRIPTORS: &str = "descriptors.json";
/// The annotation that names a file of options for CRIU; an empty one means none.
const CONFIG: &str = "org.criu.config";
/// COMPAT: where administrators have put them for runc.
const DEFAULT_CONFIG: &str = "/etc/criu/runc.conf";

/// Writes the container's processes to files. Unless told otherwise they end with that, and the container is deleted.
///
/// # Errors
/// A container that does not run, in runc's words; what CRIU says. The container runs on then.
pub(crate) fn checkpoint(options: &CheckpointOptions) -> Result<()> {
    let able = |status| match status {
        Status::Running | Status::Paused => Ok(()),
        // COMPAT: runc's words, capital letter and all.
        other => Err(anyhow!("Container cannot be checkpointed in {other} state")),
    };
    let container = Container::open(&options.root, &options.id)?;
    able(container.status())?;
    needs_root("checkpoint")?;
    let version = criu::version()?;
    let locked = container.dir.lock(PATIENCE)?;
    let record = locked.record()?.ok_or(super::Fault::NotFound)?;
    able(locked.status(&record))?;

    let images = Open::make(&options.images)?;
    let mut asked = images.options(&options.images, "dump.log", &record.annotations);
    asked
        .process(Pid::from_raw(record.init_process_pid))
        .root(&record.rootfs)?;
    if version >= FREEZES
        && let Some(cgroup) = record.cgroup_paths.values().next()
    {
        asked.freeze(cgroup)?;
    }
    if let Some((address, port)) = &options.page_server {
        asked.page_server(address, *port);
    }
    if let Some(parent) = &options.parent {
        let whole = options.images.path.join(parent);
        if !whole.is_dir() {
            bail!(
                "invalid --parent-path: {}: not a directory",
                whole.display()
            );
        }
        asked.parent(parent)?;
    }
    let lazy = options.images.switches.contains(&Switch::LazyPages);
    if options.pre_dump || lazy {
        criu::need(options.pre_dump, lazy)?;
    }
    let status_fd = options.status_fd.filter(|_| lazy);
    if let Some(number) = status_fd {
        writable(number)?;
        if version < REPORTS_LAZY_PAGES {
            asked.status_fd(number);
        }
    }
    let mut bundle = Bundle::kept(record.bundle.clone(), locked.config()?)?;
    if readiness::is_provided(&locked) {
        readiness::provide(&mut bundle.spec, locked.path())?;
    }
    let init = InitView::open(&record)?;
    init.namespaces(&mut asked, &bundle)?;
    if !options.pre_dump {
        init.mounts(&mut asked, &bundle)?;
        let text = serde_json::to_vec(&record.external_descriptors).context(DESCRIPTORS)?;
        images.write(DESCRIPTORS, &text)?;
    }

    let what = if options.pre_dump {
        Ask::PreDump
    } else {
        Ask::Dump
    };
    let mut worker = Worker::start(&images.inherited(), None)?;
    let answer = |notice: Notice| {
        if notice.what == "status-ready"
            && let Some(number) = status_fd
        {
            announce(number);
        }
        Ok(())
    };
    worker
        .work(what, &asked, answer)
        .map_err(|error| images.explain(error))?;
    if options.pre_dump || options.images.switches.contains(&Switch::LeaveRunning) {
        return Ok(());
    }
    debug!("checkpoint {}: delete the container", options.id);
    if let Err(error) = destroy(locked, &record) {
        report::warn(format_args!("{}", report::sentence(&error)));
    }
    Ok(())
}

/// CRIU looks into processes and makes them with numbers of its choice, which an ordinary user may not.
pub(super) fn needs_root(verb: &str) -> Result<()> {
    if nix::unistd::Uid::effective().is_root() {
        return Ok(());
    }
    bail!("{verb} needs root: CRIU does not work for an ordinary user's containers")
}

/// A descriptor of the caller's that is to be written to. COMPAT: runc's words.
fn writable(number: i32) -> Result<()> {
    let flags = info(number, "flags").and_then(|flags| i32::from_str_radix(&flags, 8).ok());
    match flags {
        Some(flags) if flags & nix::libc::O_ACCMODE != nix::libc::O_RDONLY => Ok(()),
        Some(_) => bail!("invalid --status-fd argument {number}: not writable"),
        None => bail!("invalid --status-fd argument {number}: no such descriptor is open"),
    }
}

/// Say that lazy pages are served: one null byte, and the end.
fn announce(number: i32) {
    let told = OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{number}"))
        .and_then(|mut file| file.write_all(&[0]));
    if let Err(error) = told {
        report::warn(format_args!("can't write \\0 to status fd: {error}"));
    }
    fd::close_foreign(number);
}

/// A line of `/proc/self/fdinfo` (proc_pid_fdinfo(5)).
fn info(number: i32, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name == key).then(|| value.trim().to_owned())
    })
}

/// The directories of the images and of the logs.
pub(super) struct Open {
    images: OwnedFd,
    work: Option<OwnedFd>,
    log: PathBuf,
    path: PathBuf,
}

impl Open {
    /// Those of a new checkpoint, made where they are missing.
    fn make(images: &Images) -> Result<Self> {
        for path in [Some(&images.path), images.work.as_ref()]
            .into_iter()
            .flatten()
        {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .with_context(|| format!("make directory {}", path.display()))?;
        }
        Self::there(images)
    }

    /// Those of a checkpoint that exists. The directory of the logs is made where it is missing.
    pub(super) fn existing(images: &Images) -> Result<Self> {
        if let Some(work) = &images.work {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(work)
                .with_context(|| format!("make directory {}", work.display()))?;
        }
        Self::there(images)
    }

    fn there(images: &Images) -> Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = |path: &PathBuf, option: &str| {
            open(path, flags, Mode::empty())
                .with_context(|| format!("{option}: open {}", path.display()))
        };
        Ok(Self {
            images: open(&images.path, "--image-path")?,
            work: images
                .work
                .as_ref()
                .map(|path| open(path, "--work-path"))
                .transpose()?,
            log: images.work.as_ref().unwrap_or(&images.path).clone(),
            path: images.path.clone(),
        })
    }

    /// What is asked for in any case.
    pub(super) fn options(
        &self,
        images: &Images,
        log: &str,
        annotations: &BTreeMap<String, String>,
    ) -> Options {
        let mut asked = Options::default();
        asked
            .images(&self.images)
            .log(log)
            .cgroups(images.cgroups)
            .empty_network()
            .switch(Switch::NotifyScripts, true)
            .switch(Switch::OrphanPtsMaster, true);
        if let Some(work) = &self.work {
            asked.work(work);
        }
        for switch in &images.switches {
            asked.switch(*switch, true);
        }
        if let Some(lock) = images.network_lock {
            asked.network_lock(lock);
        }
        match annotations.get(CONFIG).map(String::as_str) {
            Some("") => {}
            Some(file) => drop(asked.config_file(file)),
            None => drop(asked.config_file(DEFAULT_CONFIG)),
        }
        asked
    }

    /// What the worker has to inherit.
    pub(super) fn inherited(&self) -> Vec<&OwnedFd> {
        [Some(&self.images), self.work.as_ref()]
            .into_iter()
            .flatten()
            .collect()
    }

    fn write(&self, name: &str, text: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text))
            .with_context(|| format!("write {}", path.display()))
    }

    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    }

    /// The error with the last one of CRIU's log, and where that is.
    pub(super) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let text = ["dump.log", "restore.log"]
            .iter()
            .map(|name| self.log.join(name))
            .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
            .max();
        let Some((_, path)) = text else { return error };
        let log = fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        // `(00.012345) Error (criu/file.c:123): what is wrong`; the first is the cause of the others.
        let said = log
            .lines()
            .find_map(|line| line.split_once("Error (")?.1.split_once("): "))
            .map(|(_, said)| format!("{}: ", said.trim()));
        anyhow!(
            "{error:#}: {}see {}",
            said.unwrap_or_default(),
            path.display()
        )
    }
}

/// The container's init as it stands, from outside.
struct InitView {
    pid: i32,
    root: OwnedFd,
    /// Mount points by the numbers of their mounts.
    points: BTreeMap<i32, PathBuf>,
}

impl InitView {
    fn open(record: &Record) -> Result<Self> {
        let pid = record.init_process_pid;
        let looking = || format!("look at process {pid}");
        let root = open(
            format!("/proc/{pid}/root").as_str(),
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .with_context(looking)?;
        let table = procfs::process::Process::new(pid)
            .and_then(|process| process.mountinfo())
            .with_context(looking)?;
        let points = table.into_iter().map(|mount| {
            let point = unescape(mount.mount_point.as_os_str().as_encoded_bytes());
            (mount.mnt_id, path_of(point))
        });
        Ok(Self {
            pid,
            root,
            points: points.collect(),
        })
    }

    /// Network and pid namespaces that the container joined are somebody else's: named, not dumped.
    fn namespaces(&self, asked: &mut Options, bundle: &Bundle) -> Result<()> {
        let linux = bundle.spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
        for namespace in namespaces.into_iter().flatten() {
            let (kind, name) = match namespace.typ() {
                Kind::Network => ("net", NET),
                Kind::Pid => ("pid", PID),
                _ => continue,
            };
            if namespace.path().is_none() {
                continue;
            }
            let path = format!("/proc/{}/ns/{kind}", self.pid);
            let inode = fs::metadata(&path)
                .with_context(|| format!("look at {path}"))?
                .ino();
            asked.external(&format!("{kind}[{inode}]:{name}"));
        }
        Ok(())
    }

    /// Mounts of what is outside are named, not dumped.
    // CVE-2026-119101: CRIU goes by the mount point's name, so it is asked of the kernel for the very mount that is there.
    // What the image says of links, now or at the restore, has no part in it.
    fn mounts(&self, asked: &mut Options, bundle: &Bundle) -> Result<()> {
        let mut names = BTreeMap::new();
        for (destination, _) in external_mounts(bundle)? {
            let Some(point) = self.mount_at(Path::new(&destination)) else {
                debug!("mounts: nothing is mounted at {destination}");
                continue;
            };
            let name = mount_name(Path::new(&destination))?;
            let point = point
                .to_str()
                .with_context(|| {
                    format!("mounts: {destination}: not text, which CRIU takes alone")
                })?
                .to_owned();
            unambiguous(&point)?;
            if let Some(other) = names.insert(point.clone(), name.clone())
                && other != name
            {
                bail!(
                    "mounts: {other} and {name} are both at {point}, where CRIU cannot tell them apart"
                );
            }
        }
        let linux = bundle.spec.linux().as_ref();
        let masked = linux.and_then(|linux| linux.masked_paths().as_ref());
        for path in masked.into_iter().flatten() {
            let null = |file: &OwnedFd| {
                fstat(file).is_ok_and(|stat| stat.st_rdev == nix::sys::stat::makedev(1, 3))
            };
            let Some(file) = self.inside(Path::new(path)).filter(null) else {
                continue;
            };
            if let Some(point) = self.mount_of(file.as_fd()) {
                names.insert(point.to_string_lossy().into_owned(), NULL.to_owned());
            }
        }
        for (point, name) in &names {
            asked.external_mount(point, name);
        }
        Ok(())
    }

    fn inside(&self, path: &Path) -> Option<OwnedFd> {
        open_in_root(self.root.as_fd(), path, OFlag::O_PATH).ok()
    }

    /// The mount point that `destination` leads to; none when nothing is mounted there.
    fn mount_at(&self, destination: &Path) -> Option<PathBuf> {
        self.mount_of(self.inside(&relative(destination))?.as_fd())
    }

    /// The mount point of the mount whose root this is.
    fn mount_of(&self, file: BorrowedFd) -> Option<PathBuf> {
        let identity = |file: BorrowedFd| {
            let stat = fstat(file).ok()?;
            let mount: i32 = info(file.as_raw_fd(), "mnt_id")?.parse().ok()?;
            Some((mount, stat.st_dev, stat.st_ino))
        };
        let here = identity(file)?;
        let point = self.points.get(&here.0)?;
        let there = open_no_links(self.root.as_fd(), &relative(point), OFlag::O_PATH).ok()?;
        (point != Path::new("/") && identity(there.as_fd()) == Some(here)).then(|| point.clone())
    }
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// The mounts of what is outside: destination as it is configured, and source. In a user namespace device nodes are
/// among them.
pub(super) fn external_mounts(bundle: &Bundle) -> Result<Vec<(String, PathBuf)>> {
    let mut all = Vec::new();
    for op in binds(&bundle.spec, &bundle.path)? {
        let destination = op.destination();
        if let What::Bind { source, .. } = op.what {
            all.push((destination, source));
        }
    }
    let linux = bundle.spec.linux().as_ref();
    let own_users = linux
        .and_then(|linux| linux.namespaces().as_ref())
        .is_some_and(|all| all.iter().any(|one| one.typ() == Kind::User));
    if own_users {
        let devices = linux.and_then(|linux| linux.devices().as_deref());
        for node in crate::plan::devices::nodes(devices.unwrap_or_default())? {
            let path = Path::new("/").join(&node.untrusted_path);
            all.push((path.display().to_string(), path));
        }
    }
    Ok(all)
}

/// The name in the images of a mount at `destination`: the text of its path, freed of `.`, `..` and doubled slashes.
///
/// # Errors
/// CRIU would take it for something else.
pub(super) fn mount_name(destination: &Path) -> Result<String> {
    let mut clean = PathBuf::from("/");
    for part in destination.components() {
        match part {
            Component::ParentDir => drop(clean.pop()),
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let name = clean
        .to_str()
        .with_context(|| {
            format!(
                "mounts: {}: not text, which CRIU takes alone",
                destination.display()
            )
        })?
        .to_owned();
    unambiguous(&name)?;
    Ok(name)
}

/// CRIU reads `mnt[NAME]:VALUE`.
fn unambiguous(name: &str) -> Result<()> {
    if name.contains("]:") {
        bail!("mounts: {name}: CRIU cannot tell apart a name with \"]:\" in it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_mount_is_the_text_of_its_destination() {
        for (destination, name) in [
            ("/data", "/data"),
            ("//data/./x/", "/data/x"),
            ("/a/../../b", "/b"),
            ("relative", "/relative"),
        ] {
            assert_eq!(mount_name(Path::new(destination)).unwrap(), name);
        }
        let error = mount_name(Path::new("/a]:/etc")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "mounts: /a]:/etc: CRIU cannot tell apart a name with \"]:\" in it"
        );
    }
}
