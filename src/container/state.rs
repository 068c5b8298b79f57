//! What of a container outlives the command that made it: its state directory `<root>/<id>`.
//!
//! | entry | what |
//! |---|---|
//! | `state.json` | the [`Record`], replaced atomically |
//! | `config.json` | the bundle's configuration, frozen at create |
//! | `exec.fifo` | the init waits in it for `start`; its presence is the difference between created and running |
//! | `result.fifo` | the init's answer to `start`: closed by execve, or a sentence why there was none |
//!
//! The lock is flock(2) on the directory itself, so there is no file to leave behind and the kernel releases it when its
//! holder dies. A lock belongs to the open file description, which a forked child shares: unlocking is explicit, and a
//! child that lives on must close the directory.
//!
//! The record is written twice: as an intent before the first side effect (pid 0, the cgroup's path, the unit), so that `delete`
//! finds what a killed creator left, and again when the container is created.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
    PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, io};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstatat};
use nix::unistd::{Gid, Pid, Uid, fchownat, mkfifoat};
use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

use super::{Fault, Id};
use crate::cgroup::{Traces, Unit};
use crate::launch::Mark;
use crate::sys::pidfd;

/// The version of the record's layout that this release writes.
pub(crate) const SCHEMA: u32 = 1;

/// The fifo whose presence means `created`; the init reads from it, `start` writes one byte.
pub(crate) const EXEC_FIFO: &str = "exec.fifo";
/// The fifo that the init holds open for writing until its execve; `start` reads from it.
pub(crate) const RESULT_FIFO: &str = "result.fifo";
/// The frozen configuration.
pub(crate) const CONFIG: &str = "config.json";
const RECORD: &str = "state.json";

/// What is remembered of a container. The keys before `schema` are runc's, which other tools read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    /// In the runtime's pid namespace; 0 in an intent record.
    pub(crate) init_process_pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot. Tells the init from a later process of the same number.
    pub(crate) init_process_start: u64,
    /// RFC 3339 with nanoseconds, UTC.
    pub(crate) created: String,
    pub(crate) rootless: bool,
    /// The cgroup's absolute path in the file system, under the empty key as cgroup v2 has no controller names.
    #[serde(default)]
    pub(crate) cgroup_paths: BTreeMap<String, PathBuf>,
    /// `NEWNET` and so on to `/proc/PID/ns/net`.
    #[serde(default)]
    pub(crate) namespace_paths: BTreeMap<String, PathBuf>,
    /// Where fds 0-2 of the init led at create.
    #[serde(default)]
    pub(crate) external_descriptors: Vec<String>,
    /// The container's class in a resctrl file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) intel_rdt_path: Option<PathBuf>,

    pub(crate) schema: u32,
    pub(crate) oci_version: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    /// The cgroup's path below the root of its hierarchy; none for a rootless container without one.
    pub(crate) cgroup: Option<PathBuf>,
    /// What it has in a resctrl file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rdt: Option<Traces>,
    /// The mount over its root that carries its own, where these are in a mount namespace that was there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) root_mount: Option<Mark>,
    /// The unit of systemd's that has it, with the systemd driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<Unit>,
    /// Whether it has no session keyring of its own.
    #[serde(default)]
    pub(crate) no_new_keyring: bool,
    /// Whether killing the init ends every process of the container.
    pub(crate) own_pid_namespace: bool,
    #[serde(default)]
    pub(crate) poststart: Vec<Hook>,
    #[serde(default)]
    pub(crate) poststop: Vec<Hook>,
    /// The user that created the container.
    pub(crate) owner: u32,
}

/// `PF_FORKNOEXEC` of the kernel's process flags.
const FORK_NO_EXEC: u64 = 0x40;

impl Record {
    /// What the container writes on its cgroup: no other container, before or after, has the same.
    pub(crate) fn mark(&self) -> String {
        format!("{} {}", self.id, self.created)
    }

    /// Parses `state.json`. Errors: no record, or one of a layout this release does not know.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        match serde_json::from_slice::<Self>(text) {
            Ok(record) if record.schema == SCHEMA => Ok(record),
            parsed => {
                // Another layout need not parse as ours; its version alone is looked for then.
                let schema = serde_json::from_slice::<Head>(text).map(|head| head.schema);
                if let Ok(schema) = schema
                    && schema != SCHEMA
                {
                    bail!(
                        "the container was made by another release (state version {schema}, this release knows {SCHEMA}); nothing was changed"
                    );
                }
                parsed.context("parse state.json")
            }
        }
    }

    /// The init, if it is alive: a pidfd that is known to be the process of the record.
    pub(crate) fn init(&self) -> Option<OwnedFd> {
        let fd = match self.init_process_pid {
            ..=0 => return None,
            pid => pidfd::open(Pid::from_raw(pid)).ok()?,
        };
        // ORDER: looked at after the open. The process seen now had the number then, unless it is a later one, which
        // its start time shows.
        self.init_is_alive().then_some(fd)
    }

    fn init_is_alive(&self) -> bool {
        match self.init_process_pid {
            ..=0 => false,
            pid => ProcessStat::read(pid)
                .is_some_and(|stat| stat.is_alive() && stat.start == self.init_process_start),
        }
    }

    /// Whether the freezer of its cgroup is on.
    pub(super) fn is_frozen(&self) -> bool {
        let mut first = [0];
        self.cgroup_paths.values().any(|path| {
            let file = File::open(path.join("cgroup.freeze"));
            file.and_then(|mut file| file.read(&mut first)).is_ok() && first == *b"1"
        })
    }
}

/// State and start time of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    state: u8,
    /// Forked, and not executed anything since (PF_FORKNOEXEC).
    pub(crate) never_executed: bool,
    /// Clock ticks since boot.
    pub(crate) start: u64,
}

impl ProcessStat {
    /// Reads `/proc/PID/stat`; none when there is no such process.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        let mut line = [0; 1024];
        let mut file = File::open(format!("/proc/{pid}/stat")).ok()?;
        let length = file.read(&mut line).ok()?;
        Self::parse(&line[..length])
    }

    /// proc_pid_stat(5). The name in parentheses may hold anything, so fields are counted from the last one.
    fn parse(line: &[u8]) -> Option<Self> {
        let name_end = line.iter().rposition(|&byte| byte == b')')?;
        let mut fields = std::str::from_utf8(&line[name_end + 1..])
            .ok()?
            .split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let flags: u64 = fields.nth(9 - 4)?.parse().ok()?;
        let start = fields.nth(22 - 10)?.parse().ok()?;
        Some(Self {
            state,
            never_executed: flags & FORK_NO_EXEC != 0,
            start,
        })
    }

    /// Neither a zombie nor dead.
    pub(crate) fn is_alive(self) -> bool {
        !matches!(self.state, b'Z' | b'X')
    }
}

/// What a container is doing. Derived from the world every time, never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    /// The word that engines read.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// An open state directory.
#[derive(Debug)]
pub(crate) struct Dir {
    file: File,
    path: PathBuf,
}

/// A state directory whose lock this process holds until the value is dropped.
#[derive(Debug)]
pub(crate) struct Locked(Dir);

/// The lock of a container was not free in time.
#[derive(Debug)]
pub(crate) struct Busy;

impl fmt::Display for Busy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("another command is working on the container")
    }
}

impl std::error::Error for Busy {}

impl Dir {
    /// Makes the state directory of a new container and locks it. Errors: [`Fault::Exists`].
    pub(crate) fn create(root: &Path, id: &Id) -> Result<Locked> {
        let path = root.join(id.as_str());
        let mut made_root = false;
        loop {
            match fs::DirBuilder::new().mode(0o711).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(Fault::Exists),
                // Once: /proc and its like say so of every name.
                Err(error) if error.kind() == ErrorKind::NotFound && !made_root => {
                    make_root(root)?;
                    made_root = true;
                    continue;
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("create state directory {}", path.display()));
                }
            }
            // A `delete --force` may have taken the still empty directory for a leftover before it was locked.
            let dir = match Self::open_at(path.clone()) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    fs::remove_dir(&path).ok();
                    return Err(error)
                        .with_context(|| format!("open state directory {}", path.display()));
                }
                Ok(dir) => dir,
            };
            if let Err(error) = dir.file.lock() {
                fs::remove_dir(&path).ok();
                return Err(error).context("lock state directory");
            }
            let locked = Locked(dir);
            match locked.is_removed() {
                Ok(false) => {}
                Ok(true) => continue,
                Err(error) => {
                    locked.remove()?;
                    return Err(error);
                }
            }
            // Passable for the container's root in its user namespace, whatever our umask is.
            let passable = locked
                .file
                .set_permissions(fs::Permissions::from_mode(0o711));
            if let Err(error) = passable {
                locked.remove()?;
                return Err(error).context("set mode of state directory");
            }
            return Ok(locked);
        }
    }

    /// Opens the state directory of an existing container. Errors: [`Fault::NotFound`].
    pub(crate) fn open(root: &Path, id: &Id) -> Result<Self> {
        let path = root.join(id.as_str());
        match Self::open_at(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(Fault::NotFound),
            other => other.with_context(|| format!("open state directory {}/{id}", root.display())),
        }
    }

    fn open_at(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW)
            .open(&path)?;
        Ok(Self { file, path })
    }

    /// Takes the lock, waiting at most `patience`.
    ///
    /// Errors: [`Busy`]; [`Fault::NotFound`] when the container was deleted meanwhile.
    pub(crate) fn lock(self, patience: Duration) -> Result<Locked> {
        let begun = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            match self.file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if begun.elapsed() < patience => {
                    // flock(2) has no time limit of its own.
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => bail!(Busy),
                Err(TryLockError::Error(error)) => {
                    return Err(error).context("lock state directory");
                }
            }
        }
        let locked = Locked(self);
        if locked.is_removed()? {
            bail!(Fault::NotFound);
        }
        Ok(locked)
    }

    /// The directory's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The record; none in a directory whose creator has not got so far, or that is being deleted.
    pub(crate) fn record(&self) -> Result<Option<Record>> {
        let path = self.path.join(RECORD);
        match fs::read(&path) {
            Ok(text) => Record::parse(&text).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// The text of the configuration that the container was made from.
    pub(crate) fn config(&self) -> Result<Vec<u8>> {
        let path = self.path.join(CONFIG);
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    }

    /// The container's status, seen by somebody who does not hold the lock.
    pub(crate) fn status(&self, record: &Record) -> Status {
        self.derive(record, || self.is_locked_by_another())
    }

    fn derive(&self, record: &Record, creator_at_work: impl FnOnce() -> bool) -> Status {
        if record.init_process_pid == 0 {
            return if creator_at_work() {
                Status::Creating
            } else {
                Status::Stopped
            };
        }
        // COMPAT: the order of these questions is runc's: a frozen cgroup is paused even when its init is dead.
        if record.is_frozen() {
            Status::Paused
        } else if !record.init_is_alive() {
            Status::Stopped
        } else if fstatat(&self.file, EXEC_FIFO, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
            Status::Created
        } else {
            Status::Running
        }
    }

    fn is_locked_by_another(&self) -> bool {
        match self.file.try_lock_shared() {
            Ok(()) => {
                self.file.unlock().ok();
                false
            }
            Err(_) => true,
        }
    }

    fn is_removed(&self) -> Result<bool> {
        let links = self
            .file
            .metadata()
            .context("look at state directory")?
            .nlink();
        Ok(links == 0)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Locked {
    /// The container's status, seen by the holder of the lock: nobody else is creating it.
    pub(crate) fn status(&self, record: &Record) -> Status {
        self.derive(record, || false)
    }

    /// Replaces the record. A reader sees the old one or the new one.
    pub(crate) fn save(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record).context("write state.json")?;
        self.replace(RECORD, &text)
    }

    /// Keeps `config`, the text of the bundle's configuration, as the one this container was made from.
    pub(crate) fn freeze_config(&self, config: &[u8]) -> Result<()> {
        self.replace(CONFIG, config)
    }

    /// The file appears complete or not at all: others read it without the lock, and a kill may come at any time.
    fn replace(&self, name: &str, text: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(text)?;
            fs::rename(&new, &path)
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// Makes the two fifos of the start protocol, owned by the container's root as the host sees it.
    pub(crate) fn make_fifos(&self, uid: Uid, gid: Gid) -> Result<()> {
        // ORDER: the result first. Once the exec fifo is there the container counts as created.
        for (name, mode) in [(RESULT_FIFO, 0o600), (EXEC_FIFO, 0o622)] {
            let mode = Mode::from_bits_truncate(mode);
            let make = || {
                mkfifoat(self, name, mode)?;
                // The umask has cut the mode.
                fchmodat(self, name, mode, FchmodatFlags::FollowSymlink)?;
                if (uid, gid) != (Uid::effective(), Gid::effective()) {
                    fchownat(
                        self,
                        name,
                        Some(uid),
                        Some(gid),
                        AtFlags::AT_SYMLINK_NOFOLLOW,
                    )?;
                }
                Ok::<_, nix::Error>(())
            };
            make().with_context(|| format!("create {name}"))?;
        }
        Ok(())
    }

    /// Removes the directory with all it holds; the id is free afterwards.
    pub(crate) fn remove(self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
                .with_context(|| format!("remove state directory {}", self.path.display())),
            _ => Ok(()),
        }
    }
}

impl Deref for Locked {
    type Target = Dir;

    fn deref(&self) -> &Dir {
        &self.0
    }
}

impl AsFd for Locked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing would not do: a forked child may hold the same description.
        self.0.file.unlock().ok();
    }
}

fn make_root(root: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .with_context(|| format!("create state root {}", root.display()))
}

/// Writes the pid file: complete or not there, and without a newline, which go-runc's parser does not take. A device, a
/// fifo, and what /dev has a link for, such as /dev/stdout, is written to, and stays.
pub(crate) fn write_pid_file(path: &Path, pid: Pid) -> Result<()> {
    let stays = |kind: fs::FileType| kind.is_char_device() || kind.is_fifo();
    let is_link_of_dev = path.starts_with("/dev") && path.is_symlink();
    let write = || {
        if is_link_of_dev || fs::symlink_metadata(path).is_ok_and(|it| stays(it.file_type())) {
            let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
            let mut options = OpenOptions::new();
            let mut file = options.write(true).custom_flags(flags).open(path)?;
            // Nothing else has taken its place meanwhile.
            if is_link_of_dev || stays(file.metadata()?.file_type()) {
                return write!(file, "{pid}");
            }
        }
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        let new = path.with_file_name(hidden);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o666)
            .custom_flags(nix::libc::O_SYNC)
            .open(&new)?;
        let written = write!(file, "{pid}").and_then(|()| fs::rename(&new, path));
        if written.is_err() {
            fs::remove_file(&new).ok();
        }
        written
    };
    write().with_context(|| format!("write pid file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn record_of(pid: i32) -> Record {
        Record {
            schema: SCHEMA,
            id: "web".into(),
            init_process_pid: pid,
            init_process_start: ProcessStat::read(pid).map_or(0, |stat| stat.start),
            ..Record::default()
        }
    }

    #[test]
    fn name_of_a_process_cannot_forge_its_start_time() {
        let line = b"7 (a) Z 1 (b)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 0 0\n";
        assert_eq!(
            ProcessStat::parse(line),
            Some(ProcessStat {
                state: b'S',
                never_executed: false,
                start: 123_456
            })
        );
        assert_eq!(ProcessStat::parse(b"7 (a"), None);
    }

    #[test]
    fn record_survives_being_saved_and_status_follows_the_process_and_the_fifo() {
        let root = tempfile::tempdir().unwrap();
        let locked = Dir::create(root.path(), &id("web")).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let record = record_of(child.id().cast_signed());
        locked.save(&record).unwrap();
        assert_eq!(locked.record().unwrap(), Some(record.clone()));
        assert_eq!(locked.status(&record), Status::Running);

        locked
            .make_fifos(Uid::effective(), Gid::effective())
            .unwrap();
        assert_eq!(locked.status(&record), Status::Created);

        let later = Record {
            init_process_start: record.init_process_start + 1,
            ..record.clone()
        };
        assert_eq!(locked.status(&later), Status::Stopped);
        child.kill().unwrap();
        // A zombie until it is waited for.
        pidfd::wait_dead(
            pidfd::open(Pid::from_raw(record.init_process_pid)).unwrap(),
            Duration::from_secs(20),
        )
        .unwrap();
        assert_eq!(locked.status(&record), Status::Stopped);
        child.wait().unwrap();
        assert_eq!(locked.status(&record), Status::Stopped);
    }

    #[test]
    fn frozen_cgroup_is_paused() {
        let cgroup = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        let locked = Dir::create(root.path(), &id("web")).unwrap();
        let mut record = record_of(std::process::id().cast_signed());
        record
            .cgroup_paths
            .insert(String::new(), cgroup.path().to_owned());
        for (freeze, status) in [("0\n", Status::Running), ("1\n", Status::Paused)] {
            fs::write(cgroup.path().join("cgroup.freeze"), freeze).unwrap();
            assert_eq!(locked.status(&record), status);
        }
    }

    #[test]
    fn intent_is_creating_while_its_creator_holds_the_lock() {
        let root = tempfile::tempdir().unwrap();
        let creator = Dir::create(root.path(), &id("web")).unwrap();
        let intent = record_of(0);
        let seen = Dir::open(root.path(), &id("web")).unwrap();
        assert_eq!(seen.status(&intent), Status::Creating);
        assert_eq!(creator.status(&intent), Status::Stopped);
        drop(creator);
        assert_eq!(seen.status(&intent), Status::Stopped);
    }

    #[test]
    fn one_of_two_creators_wins() {
        let root = tempfile::tempdir().unwrap();
        let wins = std::thread::scope(|scope| {
            let creators: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| Dir::create(root.path(), &id("web")).map(std::mem::forget)))
                .collect();
            let results = creators.into_iter().map(|creator| creator.join().unwrap());
            results
                .filter(|result| match result {
                    Ok(()) => true,
                    Err(error) => {
                        assert_eq!(error.to_string(), "container with given ID already exists");
                        false
                    }
                })
                .count()
        });
        assert_eq!(wins, 1);
    }

    #[test]
    fn lock_is_not_waited_for_beyond_patience_and_a_removed_container_is_not_locked() {
        let root = tempfile::tempdir().unwrap();
        let open = || Dir::open(root.path(), &id("web"));
        let holder = Dir::create(root.path(), &id("web")).unwrap();
        let error = open().unwrap().lock(Duration::from_millis(20)).unwrap_err();
        assert!(error.is::<Busy>());
        let late = open().unwrap();
        holder.remove().unwrap();
        let error = late.lock(Duration::ZERO).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Fault::NotFound)));
        assert!(matches!(
            open().unwrap_err().downcast_ref(),
            Some(Fault::NotFound)
        ));
    }

    #[test]
    fn record_may_name_a_unit_and_older_ones_do_not() {
        let mut record = record_of(0);
        let without = serde_json::to_string(&record).unwrap();
        assert!(!without.contains("unit"), "{without}");
        assert_eq!(Record::parse(without.as_bytes()).unwrap(), record);
        let unit = r#"{"name":"pelagos-web.scope","user":true}"#;
        record.unit = Some(serde_json::from_str(unit).unwrap());
        let with = serde_json::to_string(&record).unwrap();
        assert!(with.contains(&format!("\"unit\":{unit}")), "{with}");
        assert_eq!(Record::parse(with.as_bytes()).unwrap(), record);
    }

    #[test]
    fn record_of_another_layout_is_one_error() {
        let error = Record::parse(br#"{"schema": 7, "id": 3}"#).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "the container was made by another release (state version 7, this release knows 1); nothing was changed"
        );
        assert!(
            format!("{:#}", Record::parse(b"{").unwrap_err()).starts_with("parse state.json: ")
        );
    }

    #[test]
    fn pid_file_has_no_newline_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "old").unwrap();
        write_pid_file(&path, Pid::from_raw(42)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"42");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
