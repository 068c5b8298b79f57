//! Everything at once, with processes killed at any moment.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::runtime::runtime;
use crate::support::{
    Built, Call, ImageBuilder, Outcome, Store, eventually, needs, own_state_root,
};

/// Commands that run at the same time.
const HANDS: u64 = 4;

/// A sequence of numbers that a seed repeats (Marsaglia's xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Five images: three share their base and differ above it, one replaces most of it, one is a single layer of another kind.
fn images() -> Vec<Built> {
    // Not `ImageBuilder::busybox()`: a layer that a test beside this one mounts would stay here too.
    let base = || {
        ImageBuilder::new()
            .tag("storm:base")
            .layer(|l| {
                l.dir("etc", 0o755).file("etc/group", "storm:x:0:\n", 0o644);
                l.busybox();
            })
            .config(|c| c["config"]["Cmd"] = serde_json::json!(["/bin/true"]))
    };
    let above = |n: u32| {
        base().tag(&format!("storm:{n}")).layer(move |l| {
            l.dir("srv", 0o755);
            for file in 0..60 {
                let text = format!("{n} {file}\n").repeat(200);
                l.file(format!("srv/{file}"), text, 0o640);
            }
            l.hardlink("srv/twin", "srv/1")
                .symlink("srv/link", "../etc");
        })
    };
    vec![
        base().build(),
        above(1).build(),
        above(2).zstd().build(),
        above(3)
            .layer(|l| {
                l.opaque("srv").whiteout("etc/group");
                l.file("srv/only", "one", 0o600);
            })
            .build(),
        ImageBuilder::new()
            .layer(|l| {
                l.dir("data", 0o700);
                l.file("data/large", vec![7; 3 << 20], 0o600);
            })
            .plain()
            .tag("storm:data")
            .build(),
    ]
}

struct Storm {
    store: Store,
    archives: Vec<PathBuf>,
    runtime: PathBuf,
    end: Instant,
    serial: AtomicU32,
    /// Bundles that may be there.
    bundles: Mutex<BTreeSet<PathBuf>>,
    wrong: Mutex<Vec<String>>,
}

impl Storm {
    /// One pair of hands, until the time is over.
    fn work(&self, mut chance: Chance) {
        while Instant::now() < self.end {
            self.one(&mut chance);
        }
    }

    fn one(&self, chance: &mut Chance) {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let image = ["storm:base", "storm:1", "storm:2", "storm:3"][pick(chance, 4)];
        let beside = |what: &str| self.store.beside(format!("{what}-{serial}"));
        match chance.below(12) {
            0..=2 => {
                let archive = &self.archives[pick(chance, self.archives.len())];
                self.call(chance, &["import", "--replace", text(archive)]);
            }
            3..=4 => {
                let dir = beside("tree");
                self.call(chance, &["unpack", image, text(&dir)]);
                remove(&dir);
            }
            5 => {
                let dir = beside("bundle");
                self.bundles.lock().unwrap().insert(dir.clone());
                let overlay = needs::is_root() && chance.below(2) == 0;
                let how: &[&str] = if overlay {
                    &["bundle", "--overlay", image, text(&dir)]
                } else {
                    &["bundle", image, text(&dir)]
                };
                if self.call(chance, how) && self.call(chance, &["rm", text(&dir)]) {
                    self.bundles.lock().unwrap().remove(&dir);
                }
            }
            6..=7 => {
                let volume = format!("notes-{}:/notes", chance.below(3));
                let args = ["--runtime", text(&self.runtime), "--volume", &volume, image];
                let script = ["--", "/bin/sh", "-c", "echo x >>/notes/log"];
                self.call(chance, &[&["run"], &args[..], &script[..]].concat());
            }
            8 => {
                self.call(chance, &["prune", "--yes", "--grace", "0s"]);
            }
            9 => {
                self.call(chance, &["df", "--format", "json"]);
            }
            10 => {
                let name = format!("hand:{serial}");
                if self.call(chance, &["tag", image, &name]) {
                    self.call(chance, &["untag", &name]);
                }
            }
            _ => {
                let file = beside("export");
                self.call(chance, &["export", image, text(&file)]);
                fs::remove_file(file).ok();
            }
        }
    }

    /// Make a call, half of them killed after a moment. Whether it went to its end; one that was let to do so has to succeed.
    fn call(&self, chance: &mut Chance, args: &[&str]) -> bool {
        let limit = Duration::from_secs(120);
        let call = self.store.call(args).limit(limit);
        if chance.below(2) == 0 {
            // Squared, so that most die early: that is where the steps are.
            let time = chance.below(20).pow(2);
            let outcome = killed_after(call, Duration::from_millis(time));
            return outcome.code == 0;
        }
        let outcome = call.run();
        if outcome.code != 0 {
            let mut wrong = self.wrong.lock().unwrap();
            wrong.push(outcome.to_string());
        }
        outcome.code == 0
    }
}

fn killed_after(call: Call, time: Duration) -> Outcome {
    call.killed_after(time)
}

fn pick(chance: &mut Chance, bound: usize) -> usize {
    usize::try_from(chance.below(bound as u64)).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Remove a tree, also one whose owners are subordinate ids of this user.
fn remove(dir: &Path) {
    if fs::remove_dir_all(dir).is_err() && dir.exists() && !needs::is_root() {
        Command::new("unshare")
            .args(["--user", "--map-auto", "--map-root-user", "rm", "-rf", "--"])
            .arg(dir)
            .status()
            .unwrap();
    }
}

/// Names of the containers that the runtime knows.
fn containers() -> Vec<String> {
    let list = Command::new(&runtime().path).args(["list", "-q"]).output();
    let list = String::from_utf8(list.unwrap().stdout).unwrap();
    list.lines().map(str::to_owned).collect()
}

#[test]
#[expect(clippy::print_stderr, reason = "the seed repeats a failure")]
fn after_a_storm_of_killed_commands_the_store_is_whole_and_nothing_is_left() {
    requires!(container);
    own_state_root();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("PELAGOS_STORM_SEED").unwrap_or(now.as_secs());
    let seconds = number("PELAGOS_STORM_SECONDS").unwrap_or(8);
    eprintln!("storm: PELAGOS_STORM_SEED={seed}, {seconds} s");

    let before = containers();
    let store = Store::new();
    let images = images();
    let mut archives = Vec::new();
    for (n, image) in images.iter().enumerate() {
        let archive = store.beside(format!("image-{n}.tar"));
        image.write_oci_archive(&archive);
        store.ok(["import", text(&archive)]);
        archives.push(archive);
    }
    let storm = Storm {
        archives,
        runtime: runtime().path.clone(),
        end: Instant::now() + Duration::from_secs(seconds),
        serial: AtomicU32::new(0),
        bundles: Mutex::default(),
        wrong: Mutex::default(),
        store,
    };
    std::thread::scope(|scope| {
        for hand in 1..=HANDS {
            let storm = &storm;
            let chance = Chance(
                (seed + 1)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .rotate_left(8)
                    ^ hand,
            );
            scope.spawn(move || storm.work(chance));
        }
    });
    let Storm {
        store,
        bundles,
        wrong,
        serial,
        ..
    } = storm;
    let wrong = wrong.into_inner().unwrap();
    let count = serial.into_inner();
    eprintln!("storm: {count} pieces of work");
    assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
    assert!(count >= 10, "only {count} pieces of work in {seconds} s");

    // A killed `run` leaves its container to the runtime; it ends by itself, since its program does.
    let mine = || -> Vec<String> {
        let mut all = containers();
        all.retain(|id| !before.contains(id));
        all
    };
    for id in mine() {
        Command::new(&runtime().path)
            .args(["delete", "--force", &id])
            .status()
            .unwrap();
    }
    assert!(eventually(|| mine().is_empty()), "{:?}", mine());
    for dir in bundles.into_inner().unwrap() {
        if dir.exists() {
            let gone = store.run(["rm", "--force", text(&dir)]);
            // One that was killed before it was known is a directory like any other.
            assert!(
                gone.code == 0 || gone.stderr.contains("not a bundle"),
                "{gone}"
            );
            remove(&dir);
        }
    }
    store.ok(["prune", "--yes", "--grace", "0s"]);
    store.ok(["fsck"]);
    store.assert_nothing_left();

    let listed = store.ok(["list", "--format", "json"]).json();
    let names: BTreeSet<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["name"].as_str().unwrap().to_owned())
        .collect();
    for image in &images {
        let name = image.tag.as_deref().unwrap();
        assert!(names.contains(name), "{name} is lost: {names:?}");
    }
    for (n, name) in names.iter().enumerate() {
        let dir = store.beside(format!("last-{n}"));
        store.ok(["unpack", name, text(&dir)]);
        remove(&dir);
    }
}
