//! CRIU, which writes the processes of a container to files and makes them again.
//!
//! It is another program (criu.org), called as `criu swrk FD`: a worker that takes one request over a socket pair and
//! reports what it is about to do, each report waiting for an answer. Fields and words are those of its `rpc.proto`.

mod wire;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Pid;

use crate::report::{self, debug};
use crate::sys::fd;
use wire::{Message, Value};

/// Version 3.0: the first that tells its version over the socket.
pub(crate) const LEAST: Version = Version(30000);
/// The first that can freeze a cgroup v2.
pub(crate) const FREEZES: Version = Version(31400);
/// The first that reports when it serves lazy pages.
pub(crate) const REPORTS_LAZY_PAGES: Version = Version(31500);
/// The first that restores with another security label than the dumped one.
pub(crate) const CHANGES_LABELS: Version = Version(31600);

/// 10000 for each major number, 100 for each minor one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(i64);

/// What CRIU can be asked for (`criu_req_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Dump = 1,
    Restore = 2,
    PreDump = 4,
    FeatureCheck = 9,
    Version = 10,
}

/// A report, to be answered (`criu_notify`).
#[derive(Debug)]
pub(crate) struct Notice {
    /// What is about to happen, or has happened: `post-restore` and the like.
    pub(crate) what: String,
    /// The process it is about.
    pub(crate) pid: Option<Pid>,
    /// The master of a terminal.
    pub(crate) master: Option<OwnedFd>,
}

/// How control groups are restored (`criu_cg_mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CgroupsMode {
    Ignore = 0,
    Soft = 3,
    Full = 4,
    Strict = 5,
    #[default]
    Default = 6,
}

/// How the network is kept still meanwhile (`criu_network_lock_method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkLock {
    Iptables = 1,
    Nftables = 2,
    Skip = 3,
}

/// A switch of `criu_opts`, with its field's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    LeaveRunning = 3,
    ExtUnixSk = 4,
    TcpEstablished = 5,
    EvasiveDevices = 6,
    ShellJob = 7,
    FileLocks = 8,
    NotifyScripts = 12,
    TrackMem = 15,
    AutoDedup = 16,
    LinkRemap = 18,
    ManageCgroups = 24,
    RstSibling = 26,
    TcpSkipInFlight = 46,
    LazyPages = 48,
    OrphanPtsMaster = 50,
    TcpClose = 52,
}

/// The options of a request (`criu_opts`).
#[derive(Clone, Debug, Default)]
pub(crate) struct Options(Message);

impl Options {
    /// The directory of the images, an open descriptor that the worker inherits.
    pub(crate) fn images(&mut self, dir: &OwnedFd) -> &mut Self {
        self.descriptor(1, dir)
    }

    /// The directory of logs and other files.
    pub(crate) fn work(&mut self, dir: &OwnedFd) -> &mut Self {
        self.descriptor(17, dir)
    }

    fn descriptor(&mut self, field: u32, fd: &OwnedFd) -> &mut Self {
        self.0.number(field, fd.as_raw_fd().into());
        self
    }

    /// The first process of the tree to dump.
    pub(crate) fn process(&mut self, pid: Pid) -> &mut Self {
        self.0.number(2, pid.as_raw().into());
        self
    }

    pub(crate) fn switch(&mut self, switch: Switch, on: bool) -> &mut Self {
        self.0.number(switch as u32, on.into());
        self
    }

    /// A file name in the work directory, or else that of the images; with all that CRIU has to say.
    pub(crate) fn log(&mut self, name: &str) -> &mut Self {
        self.0.number(9, 4).text(10, name);
        self
    }

    /// The address and port of a server that takes or gives memory pages.
    pub(crate) fn page_server(&mut self, address: &str, port: u16) -> &mut Self {
        let mut server = Message::default();
        server.text(1, address).number(2, port.into());
        self.0.message(11, &server);
        self
    }

    /// The root of the mount namespace: a path here.
    pub(crate) fn root(&mut self, path: &Path) -> Result<&mut Self> {
        let path = text(path)?;
        self.0.text(13, path);
        Ok(self)
    }

    /// Images of an earlier dump, relative to the directory of the images: only memory that changed since is written.
    pub(crate) fn parent(&mut self, path: &Path) -> Result<&mut Self> {
        let path = text(path)?;
        self.0.text(14, path);
        Ok(self.switch(Switch::TrackMem, true))
    }

    /// A mount that is not dumped. On dump from its mount point in the container to a name, on restore from this name to
    /// a path here.
    pub(crate) fn external_mount(&mut self, from: &str, to: &str) -> &mut Self {
        let mut map = Message::default();
        map.text(1, from).text(2, to);
        self.0.message(23, &map);
        self
    }

    /// Something else that is not dumped, `net[INODE]:NAME` for a namespace.
    pub(crate) fn external(&mut self, what: &str) -> &mut Self {
        self.0.text(37, what);
        self
    }

    /// A namespace that is joined at the restore.
    pub(crate) fn join(&mut self, kind: &str, path: &Path) -> Result<&mut Self> {
        let mut namespace = Message::default();
        namespace.text(1, kind).text(2, text(path)?);
        self.0.message(39, &namespace);
        Ok(self)
    }

    /// What the name `key` in the images means at the restore: a descriptor that the worker inherits.
    pub(crate) fn inherit(&mut self, key: &str, number: i32) -> &mut Self {
        let mut inherited = Message::default();
        inherited.text(1, key).number(2, number.into());
        self.0.message(27, &inherited);
        self
    }

    pub(crate) fn cgroups(&mut self, mode: CgroupsMode) -> &mut Self {
        self.0.number(34, mode as i64);
        self.switch(Switch::ManageCgroups, true)
    }

    /// Below which cgroup those of the images are made.
    pub(crate) fn cgroup_root(&mut self, path: &Path) -> Result<&mut Self> {
        let mut root = Message::default();
        root.text(2, text(path)?);
        self.0.message(25, &root);
        Ok(self)
    }

    /// The cgroup to freeze while its processes are dumped: a directory.
    pub(crate) fn freeze(&mut self, path: &Path) -> Result<&mut Self> {
        let path = text(path)?;
        self.0.text(44, path);
        Ok(self)
    }

    /// Leave network devices, addresses and routes alone: who made the namespace sees to them.
    pub(crate) fn empty_network(&mut self) -> &mut Self {
        self.0.number(38, nix::libc::CLONE_NEWNET.into());
        self
    }

    /// Where CRIU writes a null byte once it serves lazy pages.
    pub(crate) fn status_fd(&mut self, number: i32) -> &mut Self {
        self.0.number(49, number.into());
        self
    }

    /// A file of options that win over these. One that is not there is no error.
    pub(crate) fn config_file(&mut self, path: &str) -> &mut Self {
        self.0.text(51, path);
        self
    }

    /// Another security label for the processes, `TYPE:NAME`.
    pub(crate) fn lsm_profile(&mut self, profile: &str) -> &mut Self {
        self.0.text(53, profile);
        self
    }

    /// Another SELinux context for mounts that have one.
    pub(crate) fn lsm_mount_context(&mut self, context: &str) -> &mut Self {
        self.0.text(63, context);
        self
    }

    pub(crate) fn network_lock(&mut self, how: NetworkLock) -> &mut Self {
        self.0.number(64, how as i64);
        self
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{}: not text, which CRIU takes alone", path.display()))
}

/// A worker. Dropped, it is told that its client is gone, ends, and is waited for.
pub(crate) struct Worker {
    /// There until it has been told all.
    socket: Option<OwnedFd>,
    child: Child,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.socket = None;
        self.child.wait().ok();
    }
}

impl Worker {
    /// Start one. It inherits `inherited` under the numbers they have here, and as its standard streams those that are given,
    /// or this process's own; it has none with `None`.
    ///
    /// # Errors
    /// There is no program `criu` in `$PATH`.
    pub(crate) fn start(
        inherited: &[&OwnedFd],
        streams: Option<&[Option<OwnedFd>; 3]>,
    ) -> Result<Self> {
        let (socket, theirs) = fd::seqpacket_pair().context("make a socket pair")?;
        for fd in inherited.iter().copied().chain([&theirs]) {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).context("keep a descriptor open")?;
        }
        let mut command = Command::new("criu");
        command.arg("swrk").arg(theirs.as_raw_fd().to_string());
        let stream = |number: usize| match streams {
            None => Ok(Stdio::null()),
            Some(streams) => match &streams[number] {
                Some(fd) => fd.try_clone().map(Stdio::from),
                None => Ok(Stdio::inherit()),
            },
        };
        let stream = |number| stream(number).context("copy a standard stream");
        command
            .stdin(stream(0)?)
            .stdout(stream(1)?)
            .stderr(stream(2)?);
        let spawned = command.spawn();
        for fd in inherited {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
                .context("close a descriptor on exec")?;
        }
        match spawned {
            Ok(child) => Ok(Self {
                socket: Some(socket),
                child,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(report::Hinted::new(
                "checkpoint and restore need CRIU: there is no program criu in $PATH".to_owned(),
                "install the package criu, version 3.0 or newer",
            )
            .into()),
            Err(error) => Err(error).context("run criu"),
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Ask for one thing, and answer what is reported until it is done. A report that `answer` refuses ends it.
    ///
    /// # Errors
    /// What CRIU says, or that it has ended.
    fn ask(
        &self,
        what: Ask,
        request: &Message,
        mut answer: impl FnMut(Notice) -> Result<()>,
    ) -> Result<Answer> {
        debug!("ask criu to {what:?}");
        self.send(request)?;
        loop {
            let mut buffer = vec![0; 64 << 10];
            let (length, master) = match fd::receive(self.socket()?, &mut buffer) {
                Ok((0, _)) | Err(Errno::ECONNRESET) => bail!("criu ended before it had an answer"),
                received => received.context("listen to criu")?,
            };
            let said = Answer::read(&buffer[..length], master).context("what criu answers")?;
            if !said.success {
                return Err(said.failure(what));
            }
            let Some(notice) = said.notice else {
                return Ok(said);
            };
            debug!("criu says {} {:?}", notice.what, notice.pid);
            let allowed = answer(notice);
            let mut reply = Message::default();
            reply.number(1, NOTIFY).number(3, allowed.is_ok().into());
            self.send(&reply)?;
            allowed?;
        }
    }

    fn socket(&self) -> Result<BorrowedFd<'_>> {
        self.socket
            .as_ref()
            .map(AsFd::as_fd)
            .context("criu was told all")
    }

    fn send(&self, message: &Message) -> Result<()> {
        match fd::send(self.socket()?, message.as_bytes(), &[]) {
            Err(Errno::EPIPE | Errno::ECONNRESET) => bail!("criu ended before it was asked"),
            sent => sent.map(drop).context("talk to criu"),
        }
    }

    /// Dump or restore.
    ///
    /// # Errors
    /// What CRIU says; its log says more.
    pub(crate) fn work(
        &mut self,
        what: Ask,
        options: &Options,
        answer: impl FnMut(Notice) -> Result<()>,
    ) -> Result<()> {
        let mut request = Message::default();
        request.number(1, what as i64).message(2, &options.0);
        self.ask(what, &request, answer)?;
        self.socket = None;
        let ended = self.child.wait().context("wait for criu")?;
        // After a dump of memory alone it waits for the rest, and is told so by the end of the conversation.
        if !ended.success() && what != Ask::PreDump {
            bail!("criu failed: {ended}");
        }
        Ok(())
    }
}

/// The version of the program that is installed.
///
/// # Errors
/// There is none, or it is older than [`LEAST`].
pub(crate) fn version() -> Result<Version> {
    let mut request = Message::default();
    request.number(1, Ask::Version as i64);
    let answer = Worker::start(&[], None)?.question(Ask::Version, &request)?;
    let version = answer.version.context("criu does not tell its version")?;
    if version < LEAST {
        bail!("CRIU version {} must be {} or higher", version.0, LEAST.0);
    }
    Ok(version)
}

/// Whether this kernel and this CRIU can do both or one of: watch memory for changes, serve pages lazily.
///
/// # Errors
/// Names what is missing.
pub(crate) fn need(track_memory: bool, lazy_pages: bool) -> Result<()> {
    const MEM_TRACK: u32 = 1;
    const LAZY_PAGES: u32 = 2;
    let mut features = Message::default();
    for (field, wanted) in [(MEM_TRACK, track_memory), (LAZY_PAGES, lazy_pages)] {
        if wanted {
            features.number(field, 1);
        }
    }
    let mut request = Message::default();
    request
        .number(1, Ask::FeatureCheck as i64)
        .message(5, &features);
    let answer = Worker::start(&[], None)?.question(Ask::FeatureCheck, &request)?;
    for (field, wanted, name) in [
        (MEM_TRACK, track_memory, "MemTrack"),
        (LAZY_PAGES, lazy_pages, "LazyPages"),
    ] {
        if wanted && !answer.features.contains(&field) {
            bail!("criu is missing features: [{name}]");
        }
    }
    Ok(())
}

impl Worker {
    fn question(self, what: Ask, request: &Message) -> Result<Answer> {
        self.ask(what, request, |_| Ok(()))
    }
}

/// `criu_req_type`: a report, and the answer to it.
const NOTIFY: i64 = 6;

/// What CRIU says (`criu_resp`).
#[derive(Debug, Default)]
struct Answer {
    success: bool,
    notice: Option<Notice>,
    errno: i64,
    message: String,
    /// The numbers of the fields of `criu_features` that are on.
    features: Vec<u32>,
    version: Option<Version>,
}

impl Answer {
    fn read(bytes: &[u8], master: Option<OwnedFd>) -> Result<Self> {
        let mut answer = Self::default();
        let mut notifies = false;
        let mut notice = Notice {
            what: String::new(),
            pid: None,
            master,
        };
        for field in wire::fields(bytes)? {
            match field {
                (1, Value::Number(kind)) => notifies = kind == NOTIFY,
                (2, Value::Number(success)) => answer.success = success != 0,
                (5, Value::Bytes(inner)) => {
                    for field in wire::fields(inner)? {
                        match field {
                            (1, Value::Bytes(what)) => notice.what = lossy(what),
                            (2, Value::Number(pid)) => {
                                notice.pid = i32::try_from(pid).ok().map(Pid::from_raw);
                            }
                            _ => {}
                        }
                    }
                }
                (7, Value::Number(errno)) => answer.errno = errno,
                (8, Value::Bytes(inner)) => {
                    answer.features = wire::fields(inner)?
                        .into_iter()
                        .filter(|(_, value)| *value == Value::Number(1))
                        .map(|(field, _)| field)
                        .collect();
                }
                (9, Value::Bytes(message)) => answer.message = lossy(message),
                (10, Value::Bytes(inner)) => answer.version = Some(version_of(inner)?),
                _ => {}
            }
        }
        answer.notice = notifies.then_some(notice);
        Ok(answer)
    }

    /// COMPAT: runc's words.
    fn failure(&self, what: Ask) -> anyhow::Error {
        let Self { errno, message, .. } = self;
        let kind = match what {
            Ask::Dump => "DUMP",
            Ask::Restore => "RESTORE",
            Ask::PreDump => "PRE_DUMP",
            Ask::FeatureCheck => "FEATURE_CHECK",
            Ask::Version => "VERSION",
        };
        match message.trim() {
            "" => anyhow!("criu failed: type {kind} errno {errno}"),
            said => anyhow!("criu failed: type {kind} errno {errno}: {said}"),
        }
    }
}

fn version_of(message: &[u8]) -> Result<Version> {
    let mut version = 0;
    for field in wire::fields(message)? {
        match field {
            (1, Value::Number(major)) => version += major * 10000,
            (2, Value::Number(minor)) => version += minor * 100,
            (4, Value::Number(sub)) => version += sub,
            _ => {}
        }
    }
    Ok(Version(version))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_field_by_field() {
        let mut version = Message::default();
        version.number(1, 4).number(2, 1).number(4, 2);
        let mut answer = Message::default();
        answer.number(1, 10).number(2, 1).message(10, &version);
        let read = Answer::read(answer.as_bytes(), None).unwrap();
        assert!(read.success && read.notice.is_none());
        assert_eq!(read.version, Some(Version(40102)));

        let mut notice = Message::default();
        notice.text(1, "post-restore").number(2, 77);
        let mut answer = Message::default();
        answer.number(1, NOTIFY).number(2, 1).message(5, &notice);
        let notice = Answer::read(answer.as_bytes(), None).unwrap().notice;
        let notice = notice.unwrap();
        assert_eq!(
            (notice.what.as_str(), notice.pid),
            ("post-restore", Some(Pid::from_raw(77)))
        );
    }

    #[test]
    fn a_refusal_names_the_request_and_the_reason() {
        let mut answer = Message::default();
        answer
            .number(1, 2)
            .number(2, 0)
            .number(7, 17)
            .text(9, "no room\n");
        let read = Answer::read(answer.as_bytes(), None).unwrap();
        assert_eq!(
            read.failure(Ask::Restore).to_string(),
            "criu failed: type RESTORE errno 17: no room"
        );
    }
}
