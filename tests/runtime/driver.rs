//! A container under either cgroup driver, for root and for a user: tests that hold for all of them are written once.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::needs::{self, CGROUPS};
use crate::support::{Bundle, Outcome, Verb};

/// Who makes the control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    Cgroupfs,
    Systemd,
}

/// The drivers that there are here.
pub(crate) fn drivers() -> Vec<Driver> {
    match needs::systemd() {
        Ok(()) => vec![Driver::Cgroupfs, Driver::Systemd],
        Err(_) => vec![Driver::Cgroupfs],
    }
}

/// A bundle, and who makes its group.
pub(crate) struct Driven {
    pub(crate) bundle: Bundle,
    driver: Driver,
}

impl Driven {
    /// A bundle with a place for its group; it runs `true`.
    pub(crate) fn new(driver: Driver, edit: impl FnOnce(&mut Value)) -> Self {
        let driven = Self {
            bundle: Bundle::new(),
            driver,
        };
        let path = match driver {
            Driver::Systemd => format!(":pelagos:{}", driven.bundle.id),
            Driver::Cgroupfs if needs::is_root() => format!("/{}", driven.bundle.id),
            Driver::Cgroupfs => beside_own(&driven.bundle.id),
        };
        driven.bundle.edit(|config| {
            config["linux"]["cgroupsPath"] = json!(path);
            edit(config);
        });
        driven
    }

    /// The same with a script and limits.
    pub(crate) fn sh(driver: Driver, script: &str, resources: &Value) -> Self {
        Self::new(driver, |config| {
            crate::support::sh(config, script);
            limit(config, resources);
        })
    }

    /// A call of the runtime with this driver.
    pub(crate) fn verb<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Verb {
        let driver: &[&str] = match self.driver {
            Driver::Cgroupfs => &[],
            Driver::Systemd => &["--systemd-cgroup"],
        };
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        let all = driver.iter().map(|arg| (*arg).to_owned()).chain(args);
        self.bundle.verb(all)
    }

    #[track_caller]
    pub(crate) fn up(&self) -> Outcome {
        let created = self.verb(["create", &self.bundle.id]).ok();
        self.bundle.start();
        created
    }

    #[track_caller]
    pub(crate) fn update(&self, args: &[&str]) {
        self.try_update(args).ok();
    }

    pub(crate) fn try_update(&self, args: &[&str]) -> Outcome {
        let mut all = vec!["update"];
        all.extend(args);
        all.push(&self.bundle.id);
        self.verb(all).run()
    }

    /// Where its group is, as the kernel says.
    #[track_caller]
    pub(crate) fn group(&self) -> PathBuf {
        let table = fs::read_to_string(format!("/proc/{}/cgroup", self.bundle.pid())).unwrap();
        let path = table.lines().find_map(|line| line.strip_prefix("0::"));
        Path::new(CGROUPS).join(path.expect("a group").trim_start_matches('/'))
    }

    /// What stands in these files of its group.
    #[track_caller]
    pub(crate) fn files(&self, names: &[&str]) -> Vec<String> {
        let group = self.group();
        names
            .iter()
            .map(|name| {
                let text = fs::read_to_string(group.join(name));
                text.unwrap_or_else(|e| panic!("{name}: {e}"))
                    .trim()
                    .to_owned()
            })
            .collect()
    }

    /// A number of a file that has words and numbers.
    #[track_caller]
    pub(crate) fn number(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.group().join(file)).unwrap();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(&format!("{key} ")));
        line.unwrap_or_else(|| panic!("no {key} in {text}"))
            .parse()
            .expect("a number")
    }

    /// Delete it by force, and expect that nothing of it is left.
    #[track_caller]
    pub(crate) fn end(&self) {
        self.bundle.delete_force();
        self.bundle.assert_nothing_left();
        if self.driver == Driver::Systemd {
            assert_eq!(state_of(&self.unit()), "inactive");
        }
    }

    pub(crate) fn unit(&self) -> String {
        format!("pelagos-{}.scope", self.bundle.id)
    }
}

/// Add to `linux.resources`.
pub(crate) fn limit(config: &mut Value, resources: &Value) {
    if config["linux"]["resources"].is_null() {
        config["linux"]["resources"] = json!({});
    }
    for (key, value) in resources.as_object().expect("resources") {
        config["linux"]["resources"][key] = value.clone();
    }
}

/// A group beside the one that the tests run in: a user may make groups there, and they have controllers.
fn beside_own(id: &str) -> String {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own
        .lines()
        .find_map(|l| l.strip_prefix("0::"))
        .unwrap_or("/");
    let parent = own.rsplit_once('/').map_or("", |(parent, _)| parent);
    format!("{parent}/{id}")
}

/// `systemctl`, of the system for root and of the user's manager for a user.
#[track_caller]
pub(crate) fn systemctl(args: &[&str]) -> String {
    let mut command = std::process::Command::new("systemctl");
    if !needs::is_root() {
        command.arg("--user");
    }
    let output = command.args(args).output().expect("systemctl");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[track_caller]
pub(crate) fn state_of(unit: &str) -> String {
    systemctl(&["show", "--property=ActiveState", "--value", unit])
}

/// The properties of a unit, as `NAME=VALUE`.
#[track_caller]
pub(crate) fn properties(unit: &str, names: &str) -> Vec<String> {
    let text = systemctl(&["show", &format!("--property={names}"), unit]);
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
