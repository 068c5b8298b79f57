//! A console socket, and the terminals on both of its sides.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::{eventually, patience};

/// The socket that an engine opens for `--console-socket`.
pub(crate) struct ConsoleSocket {
    pub(crate) path: PathBuf,
    listener: UnixListener,
}

/// What came through a console socket.
pub(crate) struct Received {
    pub(crate) data: String,
    pub(crate) fds: Vec<OwnedFd>,
    /// What followed the message: nothing, when all is well.
    pub(crate) rest: Vec<u8>,
}

impl ConsoleSocket {
    pub(crate) fn bind(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).expect("bind");
        Self { path, listener }
    }

    /// One that is in no directory; its path is the name as callers write it.
    pub(crate) fn bind_abstract(name: &str) -> Self {
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("bind");
        let path = format!("@{name}").into();
        Self { path, listener }
    }

    /// Take the message of a runtime that has connected, or will within seconds.
    #[track_caller]
    pub(crate) fn receive(&self) -> Received {
        self.listener.set_nonblocking(true).expect("nonblocking");
        let mut stream = None;
        assert!(
            eventually(|| {
                stream = self.listener.accept().ok();
                stream.is_some()
            }),
            "nobody connected to the console socket"
        );
        let (mut stream, _) = stream.expect("stream");
        stream.set_nonblocking(false).expect("blocking");
        stream
            .set_read_timeout(Some(patience(Duration::from_secs(5))))
            .expect("timeout");
        let mut data = [0; 4096];
        let mut space = nix::cmsg_space!([RawFd; 8]);
        let (length, fds) = {
            let mut slices = [IoSliceMut::new(&mut data)];
            let message = recvmsg::<()>(
                stream.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            )
            .expect("a message");
            let mut fds = Vec::new();
            for part in message.cmsgs().expect("control messages") {
                if let ControlMessageOwned::ScmRights(received) = part {
                    fds.extend(received.into_iter().map(own));
                }
            }
            (message.bytes, fds)
        };
        let mut rest = Vec::new();
        stream
            .read_to_end(&mut rest)
            .expect("the end of the connection");
        Received {
            data: String::from_utf8_lossy(&data[..length]).into_owned(),
            fds,
            rest,
        }
    }
}

#[expect(unsafe_code, reason = "nix hands received descriptors over as numbers")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The master side of a terminal: what a person would see and type.
pub(crate) struct Terminal {
    master: File,
    seen: String,
}

impl Terminal {
    pub(crate) fn new(master: OwnedFd) -> Self {
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("nonblocking");
        Self {
            master: master.into(),
            seen: String::new(),
        }
    }

    /// A new terminal of this many rows and columns, and its slave side.
    pub(crate) fn open(rows: u16, columns: u16) -> (Self, OwnedFd) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(&size, None).expect("openpty");
        (Self::new(pair.master), pair.slave)
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("write to the terminal");
    }

    /// Everything that has been printed by now.
    pub(crate) fn text(&mut self) -> &str {
        let mut piece = [0; 4096];
        // EIO says that the last slave has been closed.
        while let Ok(n @ 1..) = self.master.read(&mut piece) {
            self.seen.push_str(&String::from_utf8_lossy(&piece[..n]));
        }
        &self.seen
    }

    /// Wait until these words have been printed.
    #[track_caller]
    pub(crate) fn expect(&mut self, words: &str) {
        let seen = eventually(|| self.text().contains(words));
        assert!(
            seen,
            "expected `{words}` on the terminal, which shows:\n{}",
            self.seen
        );
    }
}

/// The terminal's settings as `stty` prints them.
pub(crate) fn settings(terminal: &OwnedFd) -> String {
    stty(terminal, &["-g"])
}

/// Give the terminal another size.
pub(crate) fn resize(terminal: &OwnedFd, rows: u16, columns: u16) {
    stty(
        terminal,
        &["rows", &rows.to_string(), "cols", &columns.to_string()],
    );
}

fn stty(terminal: &OwnedFd, args: &[&str]) -> String {
    let out = std::process::Command::new("stty")
        .args(args)
        .stdin(terminal.try_clone().expect("dup"))
        .output();
    let out = out.expect("stty");
    assert!(
        out.status.success(),
        "stty: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// A path for a socket: short, since a socket's name has at most 107 bytes.
pub(crate) fn socket_path(beside: &Path) -> PathBuf {
    beside.join("tty.sock")
}
