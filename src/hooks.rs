//! The six hook points of the runtime specification (config.md, "POSIX-platform Hooks"), as one mechanism.
//!
//! A list is prepared while memory may still be allocated, and run where its point is: prestart and createRuntime by
//! the creator before pivot_root, createContainer by the child before pivot_root, startContainer by the child after
//! `start` and under the container's seccomp filter, poststart by `start` after the payload's execve, poststop by
//! `delete`. Because of startContainer, running one allocates nothing and a failure is a value of fixed size.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::OpenOptions;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use oci_spec::runtime::Hook;
use serde::Serialize;

use crate::sys::errno::Words;
use crate::sys::spawn::{self, Captured, End, Program};

/// One hook, ready to run.
#[derive(Debug)]
pub(crate) struct Prepared {
    kind: &'static str,
    index: usize,
    program: Program,
    /// Whether the configuration says what its environment is, be it nothing.
    names_env: bool,
    limit: Option<Duration>,
    output: Output,
}

/// Where hooks write instead of into the message about their failure, stdout and stderr; one file for all of a container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output([Option<Arc<OwnedFd>>; 2]);

impl Output {
    /// Open the files that a container's annotations name, for appending; those that are missing are made.
    ///
    /// # Errors
    /// A file cannot be opened; the annotation is named.
    pub(crate) fn open(paths: &[Option<PathBuf>; 2]) -> Result<Self> {
        let mut output = Self::default();
        for (n, path) in paths.iter().enumerate() {
            let Some(path) = path else { continue };
            let file = open(path).with_context(|| {
                format!(
                    "annotations.{}: open {}",
                    Self::ANNOTATIONS[n],
                    path.display()
                )
            })?;
            output.0[n] = Some(Arc::new(file.into()));
        }
        Ok(output)
    }

    const ANNOTATIONS: [&str; 2] = ["run.oci.hooks.stdout", "run.oci.hooks.stderr"];
}

/// A file to append to, which is made where it is missing. Neither a link nor a fifo will do: a path that a container can
/// write may have become either.
fn open(path: &Path) -> std::io::Result<std::fs::File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_char_device() {
        return Err(std::io::Error::other(
            "neither a regular file nor a character device",
        ));
    }
    Ok(file)
}

impl Prepared {
    pub(crate) fn is_prestart(&self) -> bool {
        self.kind == "prestart"
    }

    /// Prepares the list of the hook point `kind` (the specification's name, for messages).
    ///
    /// Errors: a path that is not absolute, a NUL byte, a time limit that is not positive.
    pub(crate) fn list(kind: &'static str, hooks: &[Hook], output: &Output) -> Result<Vec<Self>> {
        hooks
            .iter()
            .enumerate()
            .map(|(index, hook)| {
                Self::new(kind, index, hook, output)
                    .with_context(|| format!("{kind} hook #{index}"))
            })
            .collect()
    }

    /// The descriptors that have to be open when it runs.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.output.0.iter().flatten().map(|file| file.as_fd())
    }

    fn new(kind: &'static str, index: usize, hook: &Hook, output: &Output) -> Result<Self> {
        let path = hook.path();
        ensure!(
            path.is_absolute(),
            "path {} is not absolute",
            path.display()
        );
        let limit = match hook.timeout() {
            None => None,
            Some(seconds) => {
                let seconds = u64::try_from(seconds).unwrap_or(0);
                ensure!(seconds > 0, "timeout must be greater than zero");
                Some(Duration::from_secs(seconds))
            }
        };
        let path = terminated("path", path.as_os_str())?;
        let argv = match hook.args() {
            Some(args) if !args.is_empty() => args
                .iter()
                .map(|arg| terminated("argument", arg))
                .collect::<Result<_>>()?,
            _ => vec![path.clone()],
        };
        let env = hook
            .env()
            .as_deref()
            .unwrap_or_default()
            .iter()
            .map(|entry| terminated("environment variable", entry))
            .collect::<Result<_>>()?;
        Ok(Self {
            kind,
            index,
            program: Program::new(path, argv, env),
            names_env: hook.env().is_some(),
            limit,
            output: output.clone(),
        })
    }

    /// Give it this environment if it names none itself. COMPAT: a startContainer hook has the payload's, as with runc.
    pub(crate) fn inherit(&mut self, env: &[CString]) {
        if !self.names_env {
            self.program.set_env(env.to_vec());
        }
    }

    /// Runs the hook with the container's state on its stdin (see [`State`]) and waits for its end. It is killed when the
    /// process behind the pidfd `beside` ends: without it there is nothing to set up, and a hook that hangs would keep
    /// `delete --force` waiting.
    ///
    /// Allocates nothing, also on failure, and may be called in a container's init under its seccomp filter.
    #[expect(
        clippy::result_large_err,
        reason = "a box would allocate, which the caller's place forbids"
    )]
    pub(crate) fn run(&self, state: &[u8], beside: Option<BorrowedFd>) -> Result<(), HookFailure> {
        let (mut stdout, mut stderr) = (Captured::EMPTY, Captured::EMPTY);
        let files = self
            .output
            .0
            .each_ref()
            .map(|file| file.as_ref().map(|file| file.as_fd()));
        let captured = [&mut stdout, &mut stderr];
        let cause = match spawn::run(&self.program, state, self.limit, beside, files, captured) {
            Ok(End::Exited(0)) => return Ok(()),
            Ok(End::Exited(status)) => Cause::Status(status),
            Ok(End::Signalled(signal)) => Cause::Signal(signal),
            Ok(End::Abandoned) => Cause::Abandoned,
            Ok(End::TimedOut) => Cause::Timeout(self.limit.unwrap_or_default()),
            Ok(End::NotExecuted(errno)) => Cause::Refused("execve", errno),
            Err((step, errno)) => Cause::Refused(step, errno),
        };
        let mut path = Captured::EMPTY;
        path.push(self.program.path().to_bytes());
        Err(HookFailure {
            kind: self.kind,
            index: self.index,
            path,
            cause,
            stdout,
            stderr,
        })
    }
}

fn terminated(what: &str, text: impl AsRef<OsStr>) -> Result<CString> {
    CString::new(text.as_ref().as_bytes()).with_context(|| format!("{what} contains nul byte"))
}

/// Why a hook failed. The text is made without allocating: [`HookFailure::render`] for the child, `Display` for others.
#[derive(Clone, Debug)]
pub(crate) struct HookFailure {
    kind: &'static str,
    index: usize,
    path: Captured<128>,
    cause: Cause,
    stdout: Captured<896>,
    stderr: Captured<896>,
}

#[derive(Clone, Copy, Debug)]
enum Cause {
    Status(i32),
    Signal(i32),
    Timeout(Duration),
    Abandoned,
    Refused(&'static str, Errno),
}

impl HookFailure {
    /// Writes the sentence into `buffer`, cut where it ends, and returns its length in bytes.
    pub(crate) fn render(&self, buffer: &mut [u8]) -> usize {
        let mut out = Slice { buffer, len: 0 };
        // A full buffer is the only error, and the text is meant to be cut then.
        fmt::write(&mut out, format_args!("{self}")).ok();
        out.len
    }
}

struct Slice<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl fmt::Write for Slice<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let taken = text.floor_char_boundary(self.buffer.len() - self.len);
        self.buffer[self.len..self.len + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        if taken < text.len() {
            return Err(fmt::Error);
        }
        Ok(())
    }
}

impl fmt::Display for HookFailure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "error running {} hook #{}: ", self.kind, self.index)?;
        match self.cause {
            Cause::Status(status) => write!(out, "exit status {status}")?,
            // COMPAT: runc names the signals that hooks die of most, in Go's words.
            Cause::Signal(nix::libc::SIGKILL) => out.write_str("signal: killed")?,
            Cause::Signal(nix::libc::SIGTERM) => out.write_str("signal: terminated")?,
            Cause::Signal(nix::libc::SIGSEGV) => out.write_str("signal: segmentation fault")?,
            Cause::Signal(signal) => write!(out, "signal: signal {signal}")?,
            Cause::Timeout(limit) => {
                write!(
                    out,
                    "hook ran past specified timeout of {}.0s",
                    limit.as_secs()
                )?;
            }
            Cause::Abandoned => out.write_str("the container's process died meanwhile")?,
            Cause::Refused("execve", errno) => {
                out.write_str("exec ")?;
                write_lossy(out, self.path.bytes())?;
                write!(out, ": {}", Words(errno))?;
            }
            Cause::Refused(step, errno) => write!(out, "{step}: {}", Words(errno))?,
        }
        for (name, bytes) in [
            ("stdout", self.stdout.bytes()),
            ("stderr", self.stderr.bytes()),
        ] {
            write!(out, ", {name}: ")?;
            write_lossy(out, bytes.trim_ascii_end())?;
        }
        Ok(())
    }
}

impl std::error::Error for HookFailure {}

/// Text as it is, bytes that are none as U+FFFD.
fn write_lossy(out: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        out.write_str(chunk.valid())?;
        if !chunk.invalid().is_empty() {
            out.write_str("\u{fffd}")?;
        }
    }
    Ok(())
}

/// The state of a container as the specification shapes it (runtime.md, "State"), which is what hooks read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State<'a> {
    pub(crate) oci_version: &'a str,
    pub(crate) id: &'a str,
    pub(crate) status: &'a str,
    /// As seen in the hook's pid namespace; left out when there is no process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<i32>,
    pub(crate) bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: &'a BTreeMap<String, String>,
}

/// `state` as JSON. Errors: a bundle path that is no UTF-8.
pub(crate) fn state_json(state: &State<'_>) -> Result<Vec<u8>> {
    serde_json::to_vec(state)
        .with_context(|| format!("describe container {} to its hooks", state.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    use oci_spec::runtime::HookBuilder;

    fn hook(script: &str) -> HookBuilder {
        HookBuilder::default()
            .path("/bin/sh")
            .args(["sh", "-c", script].map(str::to_owned))
    }

    fn failure(hook: HookBuilder) -> String {
        let hooks = [hook.build().unwrap()];
        Prepared::list("createRuntime", &hooks, &Output::default()).unwrap()[0]
            .run(b"{}", None)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn failure_names_hook_status_and_output() {
        assert_eq!(
            failure(hook("echo out; echo err >&2; exit 1")),
            "error running createRuntime hook #0: exit status 1, stdout: out, stderr: err"
        );
        assert_eq!(
            failure(hook("kill -9 $$")),
            "error running createRuntime hook #0: signal: killed, stdout: , stderr: "
        );
        assert_eq!(
            failure(HookBuilder::default().path("/no/such")),
            "error running createRuntime hook #0: exec /no/such: no such file or directory, stdout: , stderr: "
        );
    }

    #[test]
    fn hook_past_its_timeout_is_named_so() {
        assert_eq!(
            failure(hook("exec sleep 60").timeout(1)),
            "error running createRuntime hook #0: hook ran past specified timeout of 1.0s, stdout: , stderr: "
        );
    }

    #[test]
    fn hook_without_env_gets_the_inherited_one_and_with_env_its_own() {
        let print = || hook("echo \"${A-unset} ${B-unset}\" >&2; exit 1");
        let run = |hook: HookBuilder, inherited: &[&CStr]| {
            let hooks = [hook.build().unwrap()];
            let mut hook = Prepared::list("startContainer", &hooks, &Output::default()).unwrap();
            let inherited: Vec<_> = inherited.iter().map(|line| (*line).to_owned()).collect();
            hook[0].inherit(&inherited);
            hook[0].run(b"", None).unwrap_err().stderr.bytes().to_vec()
        };
        assert_eq!(run(print(), &[]), b"unset unset\n");
        assert_eq!(run(print(), &[c"A=1"]), b"1 unset\n");
        assert_eq!(
            run(print().env(["B=2".to_owned()]), &[c"A=1"]),
            b"unset 2\n"
        );
        assert_eq!(run(print().env([]), &[c"A=1"]), b"unset unset\n");
    }

    #[test]
    fn text_is_cut_to_the_buffer_at_a_character() {
        let hooks = [hook("echo ää >&2; exit 1").build().unwrap()];
        let failure = Prepared::list("poststop", &hooks, &Output::default()).unwrap()[0]
            .run(b"", None)
            .unwrap_err();
        let whole = failure.to_string();
        let mut buffer = [0; 512];
        let length = failure.render(&mut buffer);
        assert_eq!(&buffer[..length], whole.as_bytes());
        let cut = failure.render(&mut buffer[..whole.len() - 1]);
        assert_eq!(cut, whole.len() - 2);
    }

    #[test]
    fn bad_hooks_are_refused_before_anything_runs() {
        let refuse = |hook: HookBuilder| {
            let hooks = [hook.build().unwrap()];
            let error = Prepared::list("prestart", &hooks, &Output::default()).unwrap_err();
            format!("{error:#}")
        };
        assert_eq!(
            refuse(HookBuilder::default().path("bin/x")),
            "prestart hook #0: path bin/x is not absolute"
        );
        assert_eq!(
            refuse(hook("").timeout(0)),
            "prestart hook #0: timeout must be greater than zero"
        );
    }

    #[test]
    fn state_has_the_shape_of_the_specification() {
        let mut annotations = BTreeMap::new();
        let state = |pid, annotations: &BTreeMap<String, String>| {
            let state = State {
                oci_version: "1.3.0",
                id: "web",
                status: "stopped",
                pid,
                bundle: Path::new("/b"),
                annotations,
            };
            String::from_utf8(state_json(&state).unwrap()).unwrap()
        };
        assert_eq!(
            state(None, &annotations),
            r#"{"ociVersion":"1.3.0","id":"web","status":"stopped","bundle":"/b"}"#
        );
        annotations.insert("k".into(), "v".into());
        assert_eq!(
            state(Some(7), &annotations),
            r#"{"ociVersion":"1.3.0","id":"web","status":"stopped","pid":7,"bundle":"/b","annotations":{"k":"v"}}"#
        );
    }
}
