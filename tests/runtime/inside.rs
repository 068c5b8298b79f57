//! Asking a process inside a container what it sees: a bundle that runs the probe, and its answers.

use std::ops::Index;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::probe;
use crate::support::{Bundle, Outcome, runtime};

/// A bundle that runs the probe with these questions.
pub(crate) fn asking(questions: &[&str], edit: impl FnOnce(&mut Value)) -> Bundle {
    let bundle = Bundle::with(|config| {
        let mut args = vec!["/probe"];
        args.extend(questions);
        config["process"]["args"] = json!(args);
        edit(config);
    });
    place_probe(&bundle.rootfs("probe"));
    bundle
}

/// Run the probe with these questions in the template as it is.
#[track_caller]
pub(crate) fn ask(questions: &[&str], edit: impl FnOnce(&mut Value)) -> Seen {
    see(&asking(questions, edit))
}

/// Run the bundle to its end, expecting success and answers.
#[track_caller]
pub(crate) fn see(bundle: &Bundle) -> Seen {
    answers(&bundle.run().ok())
}

/// The answers in the output of a call.
#[track_caller]
pub(crate) fn answers(outcome: &Outcome) -> Seen {
    Seen(outcome.json())
}

/// Expect that the runtime refuses to run this bundle; for pelagos, that it says so in one line with these words and
/// leaves nothing behind. Every other runtime has words of its own.
#[track_caller]
pub(crate) fn refused(bundle: &Bundle, words: &str) {
    let outcome = bundle.run();
    if runtime().is("pelagos") {
        outcome.fails_with(words);
        bundle.assert_nothing_left();
    } else {
        // The others leave a control group behind after some failures; that is not what these tests are about.
        assert_ne!(outcome.code(), 0, "{outcome}");
    }
    assert_eq!(outcome.stdout, "", "the payload ran\n{outcome}");
}

/// Put the probe into a root under this path: a link to the running test program, which is static.
pub(crate) fn place_probe(path: &Path) {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).expect("directory of the probe");
    }
    std::fs::hard_link(probe_file(), path).expect("link the probe");
}

/// The test program, or a copy beside the bundles where it cannot be linked: it is on another file system, or belongs
/// to somebody else (fs.protected_hardlinks).
fn probe_file() -> &'static Path {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let own = std::env::current_exe().expect("the test program");
        let base = std::env::var_os("PELAGOS_TEST_DIR")
            .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = tempfile::tempdir_in(&base).expect("temporary directory");
        if std::fs::hard_link(&own, dir.path().join("probe")).is_ok() {
            return own;
        }
        let copy = base.join(format!("pelagos-probe-{}", nix::unistd::geteuid()));
        let fresh = dir.path().join("copy");
        std::fs::copy(&own, &fresh).expect("copy the test program");
        std::fs::rename(&fresh, &copy).expect("rename");
        copy
    });
    &FILE
}

/// What the probe saw: a JSON object whose parts stand in `tests/probe/mod.rs`.
pub(crate) struct Seen(Value);

impl Index<&str> for Seen {
    type Output = Value;

    fn index(&self, part: &str) -> &Value {
        &self.0[part]
    }
}

impl Seen {
    /// The answer to a question that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(&self, question: &str) -> &Value {
        let answer = &self.0["answers"][question];
        answer
            .get("ok")
            .unwrap_or_else(|| panic!("{question}: {answer}"))
    }

    /// The text that a question was answered with.
    #[track_caller]
    pub(crate) fn text(&self, question: &str) -> &str {
        self.ok(question).as_str().expect("a text")
    }

    /// The error that a question must have met, by its name.
    #[track_caller]
    pub(crate) fn errno(&self, question: &str) -> &str {
        let answer = &self.0["answers"][question];
        answer["errno"]
            .as_str()
            .unwrap_or_else(|| panic!("{question}: {answer}"))
    }

    /// The mount that is seen at this path: the last one in the table.
    #[track_caller]
    pub(crate) fn mount(&self, target: &str) -> Mount<'_> {
        self.mounts()
            .into_iter()
            .rfind(|m| m.target() == target)
            .unwrap_or_else(|| panic!("no mount at {target} in {:?}", self.targets()))
    }

    /// The mount table, in order.
    pub(crate) fn mounts(&self) -> Vec<Mount<'_>> {
        let table = self.0["mounts"].as_array().expect("mounts");
        table.iter().map(Mount).collect()
    }

    /// Where something is mounted, in order.
    pub(crate) fn targets(&self) -> Vec<&str> {
        self.mounts().iter().map(Mount::target).collect()
    }
}

/// A line of the mount table.
#[derive(Clone, Copy)]
pub(crate) struct Mount<'a>(&'a Value);

impl<'a> Mount<'a> {
    pub(crate) fn target(&self) -> &'a str {
        self.0["target"].as_str().expect("target")
    }

    pub(crate) fn kind(&self) -> &'a str {
        self.0["type"].as_str().expect("type")
    }

    /// Whether this is among the options of the mount or of its file system.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.own(option) || words(&self.0["super"]).contains(&option)
    }

    /// Whether this is among the options of the mount itself.
    pub(crate) fn own(&self, option: &str) -> bool {
        words(&self.0["options"]).contains(&option)
    }

    /// Its propagation in one word, with `slave` before `shared` where it is both.
    pub(crate) fn propagation(&self) -> &'static str {
        let tags = words(&self.0["tags"]);
        let has = |start: &str| tags.iter().any(|t| t.starts_with(start));
        match () {
            () if has("unbindable") => "unbindable",
            () if has("master:") => "slave",
            () if has("shared:") => "shared",
            () => "private",
        }
    }
}

impl std::fmt::Debug for Mount<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

fn words(list: &Value) -> Vec<&str> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).collect()
}

/// Give the container every capability that this machine's root has.
pub(crate) fn privileged(config: &mut Value) {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let bounding = status
        .lines()
        .find_map(|l| l.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .expect("CapBnd");
    let all: Vec<&str> = probe::CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(n, _)| bounding >> n & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    config["process"]["capabilities"] =
        json!({ "bounding": all, "effective": all, "permitted": all });
}

/// Take a namespace of this type out of the config.
pub(crate) fn without_namespace(config: &mut Value, kind: &str) {
    if let Some(all) = config["linux"]["namespaces"].as_array_mut() {
        all.retain(|n| n["type"] != kind);
    }
}

/// A user namespace in which 0–999 are 100000–100999 outside. The bundle's files stay root's, whom it does not know.
pub(crate) fn user_namespace(config: &mut Value) {
    crate::support::namespace(config, "user");
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
    config["linux"]["uidMappings"] = maps.clone();
    config["linux"]["gidMappings"] = maps;
}
