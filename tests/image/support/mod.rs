//! What the tests of the companion share: a store, images made from nothing, trees as values, and one call of the program.
//!
//! The tests are black box: they know the command line, the layout on the disk and what the kernel shows. `PELAGOS_IMAGE`
//! names the program under test, `RUNTIME` the runtime that it starts; both are the built ones where they are not set.

#![allow(
    dead_code,
    reason = "half of it is shared with the tests of the runtime"
)]

pub(crate) mod image;
pub(crate) mod layer;
#[path = "../../support/needs.rs"]
#[macro_use]
pub(crate) mod needs;
#[path = "../../support/runtime.rs"]
pub(crate) mod runtime;
pub(crate) mod tree;

pub(crate) use image::{Built, ImageBuilder, gzip, hex, sha256, sha512, zstd};
pub(crate) use layer::LayerBuilder;
pub(crate) use tree::{Canary, Entry, assert_same_tree, at, tree};

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use runtime::{Running, Verb};

/// The user that unprivileged calls run as on a machine where the tests are root.
pub(crate) const NOBODY: u32 = 65534;

/// The program under test.
pub(crate) fn program() -> PathBuf {
    match std::env::var_os("PELAGOS_IMAGE").filter(|path| !path.is_empty()) {
        Some(path) => std::path::absolute(path).expect("PELAGOS_IMAGE"),
        None => PathBuf::from(env!("CARGO_BIN_EXE_pelagos-image")),
    }
}

/// `time`, made longer where `PELAGOS_PATIENCE` (a factor) says that the machine is slow.
pub(crate) fn patience(time: Duration) -> Duration {
    let factor = std::env::var("PELAGOS_PATIENCE")
        .ok()
        .and_then(|f| f.parse().ok())
        .unwrap_or(1);
    time * factor
}

/// Ask `question` until it answers true, for at most ten seconds; the last answer.
pub(crate) fn eventually(mut question: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience(Duration::from_secs(10));
    while !question() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// A directory of the test's own on a disk: below `PELAGOS_TEST_DIR`, or `/var/tmp`.
pub(crate) fn scratch() -> TempDir {
    let base = std::env::var_os("PELAGOS_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
    tempfile::Builder::new()
        .prefix("pelagos-image-test-")
        .tempdir_in(base)
        .expect("temporary directory")
}

/// A store that does not exist yet, and a directory beside it for what the test makes. Dropping it detaches what is
/// mounted below and removes everything.
pub(crate) struct Store {
    dir: TempDir,
    /// `--root` of every call.
    pub(crate) root: PathBuf,
    /// Whom the calls run as, where that is not the test's own user.
    user: Option<u32>,
    /// The program under test, or a copy that `user` can reach.
    program: PathBuf,
}

impl Store {
    pub(crate) fn new() -> Self {
        let dir = scratch();
        Self {
            root: dir.path().join("store"),
            user: None,
            program: program(),
            dir,
        }
    }

    /// A store of an unprivileged user ([`NOBODY`]) who owns the directory, for a test that is root. Its calls run as
    /// that user; the test is skipped by `requires!(root)` elsewhere.
    pub(crate) fn unprivileged() -> Self {
        let mut store = Self::new();
        chown(store.dir.path(), Some(NOBODY), Some(NOBODY)).expect("owner");
        store.user = Some(NOBODY);
        store.program = reachable(&store.program, store.dir.path());
        store
    }

    /// A path beside the store, gone with the test.
    pub(crate) fn beside(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path in the store.
    pub(crate) fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.root.join(inside)
    }

    /// The file of that blob.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        self.path("blobs").join(digest.replace(':', "/"))
    }

    /// A call: `pelagos-image --root ROOT ARGS`.
    pub(crate) fn call<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Call {
        let verb = Verb::new(["--root"])
            .program(&self.program)
            .arg(&self.root)
            .args(args)
            .limit(Duration::from_secs(60));
        let call = Call { verb };
        match self.user {
            Some(user) => call.by_user(user).env("HOME", self.dir.path()),
            None => call,
        }
    }

    /// Make a call, to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        self.call(args).run()
    }

    /// Make a call that has to succeed.
    #[track_caller]
    pub(crate) fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        self.run(args).ok()
    }

    /// Write the image as an oci-archive and import it.
    #[track_caller]
    pub(crate) fn import(&self, image: &Built) {
        let file = self.beside(format!("import-{}.tar", hex(&image.digest)));
        image.write_oci_archive(&file);
        self.ok([OsStr::new("import"), file.as_os_str()]);
        fs::remove_file(file).expect("remove the archive");
    }

    /// A JSON file of the store.
    #[track_caller]
    pub(crate) fn json(&self, inside: &str) -> Value {
        let path = self.path(inside);
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Names in a directory of the store, sorted; none where it is not there.
    pub(crate) fn names(&self, inside: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path(inside))
            .into_iter()
            .flatten()
            .map(|entry| entry.expect("directory entry").file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Every blob in the store as a digest, sorted.
    pub(crate) fn blobs(&self) -> Vec<String> {
        let mut all = Vec::new();
        for algorithm in self.names("blobs") {
            for name in self.names(&format!("blobs/{algorithm}")) {
                all.push(format!("{algorithm}:{name}"));
            }
        }
        all
    }

    /// Expect that no unfinished work is left: nothing in staging, trash and leases.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        for dir in ["staging", "trash", "leases"] {
            assert_eq!(self.names(dir), Vec::<String>::new(), "left in {dir}");
        }
        let below: Vec<_> = mounts_below(self.dir.path());
        assert_eq!(below, Vec::<PathBuf>::new(), "still mounted");
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for point in mounts_below(self.dir.path()).iter().rev() {
            umount2(point, MntFlags::MNT_DETACH).ok();
        }
        if fs::remove_dir_all(self.dir.path()).is_err() && !needs::is_root() {
            // What belongs to subordinate ids can be removed by who is root over them.
            Command::new("unshare")
                .args(["--user", "--map-auto", "--map-root-user", "rm", "-rf", "--"])
                .arg(self.dir.path())
                .stderr(Stdio::null())
                .status()
                .ok();
        }
    }
}

/// Mount points at and below `dir` in this thread's mount namespace, in the order in which they were mounted.
pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read("/proc/thread-self/mountinfo").expect("mountinfo");
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsStr::from_bytes(field)))
        .filter(|point| point.starts_with(dir))
        .collect()
}

/// `program`, or a copy below `dir` where others than its owner may not look.
fn reachable(program: &Path, dir: &Path) -> PathBuf {
    let open = program
        .ancestors()
        .all(|path| fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o001 != 0));
    if open {
        return program.to_owned();
    }
    let copy = dir.join("programs");
    fs::create_dir_all(&copy).expect("directory for programs");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("mode");
    let copy = copy.join(program.file_name().expect("name"));
    fs::copy(program, &copy).expect("copy the program");
    copy
}

/// The runtime under test, or a copy of it in the store's directory where an unprivileged user cannot reach it.
pub(crate) fn runtime_for(store: &Store) -> PathBuf {
    reachable(&runtime::runtime().path, store.dir.path())
}

/// Give `uid` subordinate ids (100000 and the 65535 that follow), in this thread's mount namespace alone. After
/// `requires!(root)`, which makes that namespace.
pub(crate) fn subordinate_ids(uid: u32, store: &Store) {
    for name in ["subuid", "subgid"] {
        let file = store.beside(name);
        fs::write(&file, format!("{uid}:100000:65536\n")).expect("subordinate ids");
        let place = Path::new("/etc").join(name);
        let none = None::<&str>;
        mount(Some(&file), &place, none, MsFlags::MS_BIND, none).expect("bind subordinate ids");
    }
}

/// An empty `/run/pelagos` for this thread and what it starts: containers of other tests, and the machine's own, are out of
/// sight. After `requires!(root)` or `requires!(container)`; an ordinary user's state is in `XDG_RUNTIME_DIR`, and stays.
pub(crate) fn own_state_root() {
    if !needs::is_root() {
        return;
    }
    let place = Path::new("/run/pelagos");
    fs::create_dir_all(place).expect("/run/pelagos");
    mount(
        Some("none"),
        place,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .expect("a tmpfs on /run/pelagos");
}

/// One call of the program: a builder, then [`Call::run`], [`Call::ok`], [`Call::killed_after`] or [`Call::spawn`].
/// Standard input is empty unless told.
pub(crate) struct Call {
    verb: Verb,
}

impl Call {
    /// A call without a store: `pelagos-image ARGS`.
    pub(crate) fn new<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self {
            verb: Verb::new(args)
                .program(program())
                .limit(Duration::from_secs(60)),
        }
    }

    pub(crate) fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        Self {
            verb: self.verb.arg(arg),
        }
    }

    pub(crate) fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        Self {
            verb: self.verb.args(args),
        }
    }

    pub(crate) fn env(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        Self {
            verb: self.verb.env(name, value),
        }
    }

    pub(crate) fn cwd(self, dir: impl Into<PathBuf>) -> Self {
        Self {
            verb: self.verb.cwd(dir),
        }
    }

    pub(crate) fn stdin(self, stdin: impl Into<Stdio>) -> Self {
        Self {
            verb: self.verb.stdin(stdin),
        }
    }

    /// Give up (and fail the test) after this long; a minute unless told.
    pub(crate) fn limit(self, limit: Duration) -> Self {
        Self {
            verb: self.verb.limit(limit),
        }
    }

    /// Call it through another program. What is told last stands nearest to the program.
    pub(crate) fn under<S: AsRef<OsStr>>(self, wrapper: impl IntoIterator<Item = S>) -> Self {
        Self {
            verb: self.verb.under(wrapper),
        }
    }

    /// As an ordinary user, without groups and capabilities.
    pub(crate) fn by_user(self, uid: u32) -> Self {
        let id = uid.to_string();
        self.under(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"])
    }

    /// In a private copy of the mounts, gone with the call.
    pub(crate) fn in_private_mounts(self) -> Self {
        self.under(["unshare", "--mount", "--propagation", "private"])
    }

    /// On a terminal of its own: what it shows there is the outcome's stdout, and what stdin holds is typed. Needs
    /// `command "script"`.
    pub(crate) fn on_a_terminal(self) -> Self {
        self.under(["sh", "-c", "exec script -qec \"$*\" /dev/null", "sh"])
    }

    /// Under strace, with `what` injected: `"fsync:error=ENOSPC:when=2"`. Threads and children are traced as well. Needs
    /// `command "strace"`.
    pub(crate) fn injecting(self, what: &str) -> Self {
        let call = what.split(':').next().unwrap_or_default();
        let (trace, inject) = (format!("trace={call}"), format!("inject={what}"));
        self.under([
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &trace,
            "-e",
            &inject,
        ])
    }

    pub(crate) fn run(self) -> Outcome {
        self.verb.run().into()
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Outcome {
        self.run().ok()
    }

    pub(crate) fn spawn(self) -> Running {
        self.verb.spawn()
    }

    /// Kill it with SIGKILL after that long, where it still runs; how it ended.
    pub(crate) fn killed_after(self, time: Duration) -> Outcome {
        let mut running = self.spawn();
        let end = Instant::now() + time;
        while running.is_running() {
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                // It cannot be reaped by anyone else, so the pid is still its own.
                running.signal(Signal::SIGKILL);
                break;
            };
            std::thread::sleep(left.min(Duration::from_micros(500)));
        }
        running.wait().into()
    }
}

/// How a call ended.
pub(crate) struct Outcome {
    /// The exit code; `128 + n` where it died by signal n.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    shown: String,
}

impl From<runtime::Outcome> for Outcome {
    fn from(outcome: runtime::Outcome) -> Self {
        Self {
            code: outcome.code(),
            shown: outcome.to_string(),
            stdout: outcome.stdout,
            stderr: outcome.stderr,
        }
    }
}

impl Outcome {
    /// Expect exit code 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self}");
        self
    }

    /// Expect exit code 1 and exactly one line of error with these words in it, upper and lower case alike; warnings and
    /// a `hint:` may stand beside it.
    #[track_caller]
    pub(crate) fn fails_with(&self, words: &str) {
        let line = self.error_line().to_lowercase();
        assert!(
            line.contains(&words.to_lowercase()),
            "expected `{words}` in the error\n{self}"
        );
    }

    /// Expect exit code 1 and exactly one line of error; the line.
    #[track_caller]
    pub(crate) fn error_line(&self) -> &str {
        assert_eq!(self.code, 1, "{self}");
        let lines: Vec<_> = self
            .stderr
            .lines()
            .filter(|line| !line.starts_with("hint: ") && !line.contains("level=warning"))
            .collect();
        assert_eq!(lines.len(), 1, "expected one line of error\n{self}");
        lines[0]
    }

    /// Expect exit code 2 and these words in what is said about the command line.
    #[track_caller]
    pub(crate) fn misused(&self, words: &str) {
        assert_eq!(self.code, 2, "{self}");
        assert!(self.stderr.contains(words), "expected `{words}`\n{self}");
    }

    /// Expect a warning with these words.
    #[track_caller]
    pub(crate) fn warns(&self, words: &str) {
        assert!(
            self.stderr
                .lines()
                .any(|line| line.contains("level=warning") && line.contains(words)),
            "expected a warning with `{words}`\n{self}"
        );
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("standard output is not JSON: {e}\n{self}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}
