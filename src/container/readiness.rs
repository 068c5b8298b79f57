//! Readiness: what the payload tells its service manager (sd_notify(3)), passed on by the command that waits for it.
//!
//! With `NOTIFY_SOCKET` in the environment of `create` or `run` the container sees the directory `notify` of its state
//! directory as `/run/notify`, and its own `NOTIFY_SOCKET` is in there. Whoever starts the payload listens at that socket.
//! Only that the payload is ready goes on to the manager: it knows processes by the numbers of its own pid namespace.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, umask};
use nix::unistd::pipe2;
use oci_spec::runtime::{MountBuilder, Spec};

use super::state::{Dir, Locked};
use crate::report;
use crate::sys::fd;

/// The directory below the state directory.
const DIRECTORY: &str = "notify";
const SOCKET: &str = "notify.sock";
/// Where the container sees the directory.
const INSIDE: &str = "/run/notify";
/// How long the manager's socket may be full.
const WRITTEN: Duration = Duration::from_secs(5);
/// How long the manager has to take what it was told, in milliseconds.
const TAKEN_MS: u16 = 30_000;

/// The manager's socket, where the environment names one.
pub(crate) fn manager() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())
}

/// Give a container with this state directory a place for its socket, and the name of that.
///
/// # Errors
/// The configuration has no process.
pub(crate) fn provide(spec: &mut Spec, state: &Path) -> Result<()> {
    let options = ["bind", "nosuid", "noexec", "nodev", "ro", "private"];
    let mount = MountBuilder::default()
        .destination(INSIDE)
        .source(state.join(DIRECTORY))
        .typ("bind")
        .options(options.map(str::to_owned))
        .build()?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
    let mut process = spec
        .process()
        .clone()
        .context("process property must not be empty")?;
    let mut env = process.env().clone().unwrap_or_default();
    env.push(format!("NOTIFY_SOCKET={INSIDE}/{SOCKET}"));
    process.set_env(Some(env));
    spec.set_process(Some(process));
    Ok(())
}

/// Make the directory that [`provide`] has promised.
pub(crate) fn make_directory(state: &Locked) -> Result<()> {
    let path = state.path().join(DIRECTORY);
    let make = || {
        fs::create_dir(&path)?;
        // The umask has cut the mode.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
    };
    make().with_context(|| format!("create {}", path.display()))
}

/// Whether the container was made with a place for its socket.
pub(crate) fn is_provided(state: &Dir) -> bool {
    state.path().join(DIRECTORY).is_dir()
}

/// The container's socket, at which somebody listens, and the manager's.
#[derive(Debug)]
pub(crate) struct Relay {
    container: UnixDatagram,
    manager: UnixDatagram,
}

impl Relay {
    /// Listen at the container's socket, if it has one and there is a manager to tell.
    ///
    /// # Errors
    /// One of the two sockets; the message names it.
    pub(crate) fn open(state: &Dir) -> Result<Option<Self>> {
        let Some(name) = manager().filter(|_| is_provided(state)) else {
            return Ok(None);
        };
        // ORDER: the manager first, so that a name that leads nowhere leaves nothing.
        let manager = connect(&name)
            .with_context(|| format!("connect to NOTIFY_SOCKET {}", name.display()))?;
        Ok(Some(Self {
            container: listen(state).context("listen at the container's NOTIFY_SOCKET")?,
            manager,
        }))
    }

    /// Wait until the payload is ready or dead, and tell the manager the former; the payload is its main process then.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub(crate) fn wait(&self, pid: i32, payload: BorrowedFd) -> Result<()> {
        loop {
            let mut fds = [
                PollFd::new(self.as_fd(), PollFlags::POLLIN),
                PollFd::new(payload, PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other.context("wait for the payload's readiness")?,
            };
            // ORDER: the payload may have spoken before it ended.
            if let ControlFlow::Break(taken) = self.pass_on(pid) {
                return taken.map_or(Ok(()), |taken| await_taken(&taken));
            }
            if fds[1].any() == Some(true) {
                return Ok(());
            }
        }
    }

    /// Look at one message from the container. Where it says that the payload is ready, tell the manager that and that
    /// `pid` is the main process. There is nothing more to pass on then; what comes back ends when the manager has taken
    /// that, and is none where it cannot be told, which is a warning: the payload runs, whoever hears of it.
    pub(crate) fn pass_on(&self, pid: i32) -> ControlFlow<Option<OwnedFd>> {
        let mut buffer = [0; 4096];
        let told = match self.container.recv(&mut buffer) {
            Ok(length) => {
                // COMPAT: runc looks at the first line alone.
                let line = buffer[..length].split(|&byte| byte == b'\n').next();
                match line.filter(|line| line.starts_with(b"READY=")) {
                    Some(line) => self.tell(line, pid).context("write to NOTIFY_SOCKET"),
                    None => return ControlFlow::Continue(()),
                }
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) =>
            {
                return ControlFlow::Continue(());
            }
            Err(error) => Err(error).context("read the container's NOTIFY_SOCKET"),
        };
        let warn = |error| report::warn(format_args!("{}", report::sentence(&error)));
        ControlFlow::Break(told.map_err(warn).ok())
    }

    fn tell(&self, line: &[u8], pid: i32) -> nix::Result<OwnedFd> {
        let send = |text: &[u8], fds: &[i32]| fd::send(self.manager.as_fd(), text, fds);
        send(&[line, b"\n"].concat(), &[])?;
        send(format!("MAINPID={pid}").as_bytes(), &[])?;
        // sd_notify_barrier(3): the manager closes the descriptor when it has taken what came before.
        let (taken, barrier) = pipe2(OFlag::O_CLOEXEC)?;
        send(b"BARRIER=1", &[barrier.as_raw_fd()])?;
        Ok(taken)
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.container.as_fd()
    }
}

/// Give the manager its time. COMPAT: one that does not know barriers lets it pass, and no more comes of it.
fn await_taken(taken: &OwnedFd) -> Result<()> {
    match poll(
        &mut [PollFd::new(taken.as_fd(), PollFlags::POLLIN)],
        TAKEN_MS,
    ) {
        Ok(0) => {
            report::warn(format_args!(
                "NOTIFY_SOCKET: the service manager was told, and did not answer"
            ));
            Ok(())
        }
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno).context("wait for the service manager"),
    }
}

fn connect(name: &OsString) -> std::io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // One that does not read must not hold us up.
    socket.set_write_timeout(Some(WRITTEN))?;
    Ok(socket)
}

fn listen(state: &Dir) -> std::io::Result<UnixDatagram> {
    // By descriptor: a socket's name is at most 107 bytes long. bind(2) follows no link in the last component.
    let directory = fs::File::open(state.path().join(DIRECTORY))?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    // What an earlier start that was killed has left.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // By the mask and not afterwards: a name could be another file's by then.
    let mask = umask(Mode::empty());
    let bound = UnixDatagram::bind(&path);
    umask(mask);
    let socket = bound?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
