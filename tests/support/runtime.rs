//! The runtime under test, and one call of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::patience;

/// The program that `RUNTIME` names (a name in `$PATH` or a path); the built `pelagos` where it is not set.
pub(crate) struct Runtime {
    pub(crate) path: PathBuf,
    kind: &'static str,
}

impl Runtime {
    /// Whether this is `pelagos`, `crun` or `runc`, judged by the file name.
    pub(crate) fn is(&self, kind: &str) -> bool {
        self.kind == kind
    }

    /// The name that help and messages use.
    pub(crate) fn name(&self) -> &str {
        self.path
            .file_name()
            .and_then(OsStr::to_str)
            .unwrap_or("pelagos")
    }
}

/// The runtime under test.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        let path = match std::env::var_os("RUNTIME") {
            Some(given) if !given.is_empty() => find(&given),
            _ => PathBuf::from(env!("CARGO_BIN_EXE_pelagos")),
        };
        let name = path
            .file_name()
            .and_then(OsStr::to_str)
            .unwrap_or_default()
            .to_owned();
        let kind = ["crun", "runc"]
            .into_iter()
            .find(|k| name.starts_with(k))
            .unwrap_or("pelagos");
        Runtime { path, kind }
    });
    &RUNTIME
}

fn find(given: &OsStr) -> PathBuf {
    if Path::new(given).components().count() > 1 {
        return std::path::absolute(given).expect("path of the runtime");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join(given))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("RUNTIME={} is not in $PATH", given.display()))
}

/// One call of the runtime: a builder, then [`Verb::run`] or [`Verb::spawn`].
///
/// Standard input is empty. Output goes to files and not to pipes: a container inherits them, and a pipe would stay
/// open as long as it lives.
pub(crate) struct Verb {
    program: OsString,
    before: Vec<OsString>,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    stdin: Stdio,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    limit: Duration,
}

impl Verb {
    /// `RUNTIME args`, with nothing added.
    pub(crate) fn new<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self {
            program: runtime().path.clone().into(),
            before: Vec::new(),
            args: args.into_iter().map(|a| a.as_ref().to_owned()).collect(),
            envs: Vec::new(),
            cwd: None,
            stdin: Stdio::null(),
            stdout: None,
            stderr: None,
            limit: patience(Duration::from_secs(20)),
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args
            .extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.into(), value.as_ref().to_owned()));
        self
    }

    pub(crate) fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// Call the runtime through another program: `strace -f …`, `setpriv …`.
    pub(crate) fn under<S: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.before
            .extend(wrapper.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Call this file instead of the runtime under test: a symlink to it, a copy.
    pub(crate) fn program(mut self, program: impl AsRef<OsStr>) -> Self {
        self.program = program.as_ref().to_owned();
        self
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Use these as standard input, output and error (a terminal); the outcome's texts stay empty.
    pub(crate) fn stdio(mut self, fd: &OwnedFd) -> Self {
        self.stdin = fd.try_clone().expect("dup").into();
        self.stdout = Some(fd.try_clone().expect("dup"));
        self.stderr = Some(fd.try_clone().expect("dup"));
        self
    }

    /// Give up (and fail the test) after this long; twenty seconds unless told.
    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = patience(limit);
        self
    }

    /// Start it, and leave it running.
    pub(crate) fn spawn(self) -> Running {
        let mut words = self.before;
        words.push(self.program);
        words.extend(self.args);
        let shown = words
            .iter()
            .map(|w| w.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear();
        for name in [
            "PATH",
            "HOME",
            "USER",
            "TMPDIR",
            "XDG_RUNTIME_DIR",
            "DBUS_SESSION_BUS_ADDRESS",
        ] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.envs);
        if let Some(dir) = self.cwd {
            command.current_dir(dir);
        }
        let files = [(); 2].map(|()| tempfile::tempfile().expect("temporary file"));
        let stdio = |file: &File, given: Option<OwnedFd>| match given {
            Some(fd) => Stdio::from(fd),
            None => file.try_clone().expect("dup").into(),
        };
        command.stdin(self.stdin);
        command
            .stdout(stdio(&files[0], self.stdout))
            .stderr(stdio(&files[1], self.stderr));
        let child = command.spawn().unwrap_or_else(|e| panic!("{shown}: {e}"));
        let [out, err] = files;
        Running {
            child,
            shown,
            out,
            err,
            limit: self.limit,
        }
    }

    /// Run it to its end.
    pub(crate) fn run(self) -> Outcome {
        self.spawn().wait()
    }

    /// Run it, and expect success.
    pub(crate) fn ok(self) -> Outcome {
        self.run().ok()
    }
}

/// A call of the runtime that has not ended yet.
pub(crate) struct Running {
    child: Child,
    shown: String,
    out: File,
    err: File,
    limit: Duration,
}

impl Running {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signal the runtime");
    }

    /// What it has written to standard output so far.
    pub(crate) fn stdout(&self) -> String {
        text(&self.out)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    pub(crate) fn wait(mut self) -> Outcome {
        let end = Instant::now() + self.limit;
        let mut pause = Duration::from_micros(500);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            if Instant::now() > end {
                self.child.kill().expect("kill a call that hangs");
                self.child.wait().expect("wait");
                panic!(
                    "`{}` did not end within {:?}\nstdout: {}\nstderr: {}",
                    self.shown,
                    self.limit,
                    text(&self.out),
                    text(&self.err)
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        };
        Outcome {
            status,
            stdout: text(&self.out),
            stderr: text(&self.err),
            shown: self.shown,
            out: self.out,
        }
    }
}

/// How a call ended.
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    shown: String,
    out: File,
}

impl Outcome {
    /// The exit code; `128 + n` where the runtime itself died by signal n, as a shell would say.
    pub(crate) fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Expect exit code 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code(), 0, "{self}");
        self
    }

    /// Expect exit code 1 and exactly one line of error, with these words in it; a `hint:` line may follow. Callers that
    /// look for words do not mind upper and lower case, nor do we.
    ///
    /// COMPAT: crun says most things in words of its own; of it only the failure is expected.
    #[track_caller]
    pub(crate) fn fails_with(&self, words: &str) {
        // The text log quotes the message.
        let line = self.error_line().replace("\\\"", "\"").to_lowercase();
        assert!(
            runtime().is("crun") || line.contains(&words.to_lowercase()),
            "expected `{words}` in the error\n{self}"
        );
    }

    /// Expect exit code 1 and exactly one line of error; the line.
    ///
    /// COMPAT: runc prints its warnings on the way, and crun remarks about the host.
    #[track_caller]
    pub(crate) fn error_line(&self) -> &str {
        // COMPAT: crun says 255 for a hook.
        assert!(
            self.code() == 1 || runtime().is("crun") && self.code() == 255,
            "{self}"
        );
        let mut lines: Vec<_> = self
            .stderr
            .lines()
            .filter(|l| !l.starts_with("hint: "))
            .collect();
        if !runtime().is("pelagos") {
            lines.retain(|l| !l.contains("level=warning"));
            lines.drain(..lines.len().saturating_sub(1));
        }
        assert_eq!(lines.len(), 1, "expected one line of error\n{self}");
        lines[0]
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("standard output is not JSON: {e}\n{self}"))
    }

    /// What is in the standard output by now: a container goes on writing after `create` has returned.
    pub(crate) fn stdout_now(&self) -> String {
        text(&self.out)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}`: {}\nstdout: {}\nstderr: {}",
            self.shown, self.status, self.stdout, self.stderr
        )
    }
}

/// The whole file, read by offset: its position is shared with the processes that write to it.
fn text(file: &File) -> String {
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        let n = file
            .read_at(&mut piece, bytes.len() as u64)
            .expect("read the output");
        if n == 0 {
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        bytes.extend_from_slice(&piece[..n]);
    }
}
