//! Intel RDT (`linux.intelRdt`): the container's class of service and its monitoring group, which are directories of a
//! mounted resctrl file system (Documentation/filesystems/resctrl.rst).
//!
//! A class is a directory below the root, or the root itself (`/`); its `schemata` says what its tasks may use, its
//! `mon_groups` has the monitoring groups. The kernel fills a directory when it is made.
//!
//! As with control groups nothing is opened by a path from the root of the file system: the root is held as a descriptor.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIntelRdt;
use serde::{Deserialize, Serialize};

use super::{open_dir, read_long, read_short, remove_dir, write_file};
use crate::sys::errno::Words;

/// The default class.
const ROOT: &str = "/";

/// A mounted resctrl file system.
#[derive(Debug)]
pub(crate) struct Resctrl {
    mount_point: PathBuf,
    root: OwnedFd,
}

impl Resctrl {
    /// The one of the caller's mount table; none where there is none.
    pub(crate) fn probe() -> Result<Option<Self>> {
        let mounts = procfs::process::Process::myself()
            .and_then(|myself| myself.mountinfo())
            .context("read the mount table")?;
        let Some(mount) = mounts.into_iter().find(|mount| mount.fs_type == "resctrl") else {
            return Ok(None);
        };
        Self::at(mount.mount_point).map(Some)
    }

    fn at(mount_point: PathBuf) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(&mount_point, flags, Mode::empty())
            .with_context(|| format!("open {}", mount_point.display()))?;
        Ok(Self { mount_point, root })
    }

    fn class(&self, name: &str) -> nix::Result<OwnedFd> {
        open_dir(&self.root, inside(name))
    }

    /// The error with what the kernel says about it besides.
    fn explain(&self, what: &str, errno: Errno) -> anyhow::Error {
        let said = read_short(&self.root, "info/last_cmd_status").unwrap_or_default();
        let said = match said.trim() {
            "" | "ok" => String::new(),
            said => format!(", last_cmd_status: {said}"),
        };
        anyhow!("{what}: {}{said}", Words(errno))
    }

    /// How the kernel rounds memory bandwidth: up to the next multiple of this.
    fn bandwidth_step(&self) -> u64 {
        read_short(&self.root, "info/MB/bandwidth_gran")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .filter(|step| *step > 0)
            .unwrap_or(1)
    }
}

/// The directory of a class, from the root.
fn inside(class: &str) -> &Path {
    Path::new(if class == ROOT { "." } else { class })
}

/// Other schemata for the class that a container is in, one for each resource; none stays as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schemata {
    pub(crate) l3_cache: Option<String>,
    pub(crate) memory_bandwidth: Option<String>,
}

impl Schemata {
    pub(crate) fn is_empty(&self) -> bool {
        self.l3_cache.is_none() && self.memory_bandwidth.is_none()
    }

    /// Whether the processor, and so `resctrl`, can do what is asked for. COMPAT: runc's words.
    pub(crate) fn are_possible(&self, resctrl: Option<&Resctrl>) -> Result<()> {
        let has = |resource: &str| {
            let info = Path::new("info").join(resource);
            resctrl.is_some_and(|resctrl| open_dir(&resctrl.root, &info).is_ok())
        };
        if self.l3_cache.is_some() && !has("L3") {
            bail!("--l3-cache-schema: Intel RDT/CAT: l3 cache schema is not enabled");
        }
        if self.memory_bandwidth.is_some() && !has("MB") {
            bail!("--mem-bw-schema: Intel RDT/MBA: memory bandwidth schema is not enabled");
        }
        Ok(())
    }

    /// The text for a class's `schemata`: the cache first, as config-linux.md has it.
    fn text(&self) -> String {
        let both = [&self.l3_cache, &self.memory_bandwidth];
        both.into_iter()
            .flatten()
            .map(|lines| format!("{}\n", lines.trim_end()))
            .collect()
    }
}

/// What a container leaves there, for the command that deletes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Traces {
    /// The class that the container is in; `/` is the default one.
    pub(crate) class: String,
    /// Whether the class goes with the container: it was made for it, under its id.
    pub(crate) remove_class: bool,
    /// The monitoring group of its own.
    pub(crate) group: Option<String>,
}

impl Traces {
    /// Where the class is.
    pub(crate) fn path(&self, resctrl: &Resctrl) -> PathBuf {
        resctrl.mount_point.join(match inside(&self.class) {
            root if root == Path::new(".") => Path::new(""),
            class => class,
        })
    }

    /// Put a process there, and with it those that it will fork.
    pub(crate) fn enter(&self, resctrl: &Resctrl, pid: Pid) -> Result<()> {
        // ORDER: a monitoring group takes only what is in its class.
        let group = self
            .group
            .as_deref()
            .map(|group| monitoring(group).join("tasks"));
        for file in [Some(PathBuf::from("tasks")), group].into_iter().flatten() {
            let written = resctrl
                .class(&self.class)
                .and_then(|class| write_file(&class, &file, &pid.to_string()));
            written.map_err(|errno| {
                let what = format!(
                    "add process {pid} to {} of resctrl class {:?}",
                    file.display(),
                    self.class
                );
                resctrl.explain(&what, errno)
            })?;
        }
        Ok(())
    }

    /// Give the class other schemata: all of them, or none. Whoever shares the class has them too.
    pub(crate) fn update(&self, resctrl: &Resctrl, schemata: &Schemata) -> Result<()> {
        let text = schemata.text();
        let written = resctrl
            .class(&self.class)
            .and_then(|class| write_file(&class, Path::new("schemata"), &text));
        written.map_err(|errno| {
            let what = format!(
                "write {text:?} to schemata of resctrl class {:?}",
                self.class
            );
            resctrl.explain(&what, errno)
        })
    }

    /// Remove what was made for the container; what is gone already is done.
    pub(crate) fn remove(&self, resctrl: &Resctrl) -> Result<()> {
        let class = match resctrl.class(&self.class) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other.with_context(|| format!("open resctrl class {:?}", self.class))?,
        };
        if let Some(group) = &self.group {
            remove_dir(&class, &monitoring(group)).map_err(|errno| {
                resctrl.explain(&format!("remove resctrl monitoring group {group:?}"), errno)
            })?;
        }
        if self.remove_class {
            remove_dir(&resctrl.root, inside(&self.class)).map_err(|errno| {
                resctrl.explain(&format!("remove resctrl class {:?}", self.class), errno)
            })?;
        }
        Ok(())
    }
}

fn monitoring(group: &str) -> PathBuf {
    Path::new("mon_groups").join(group)
}

/// The place of a container that is being made.
#[derive(Debug)]
pub(crate) struct Membership {
    resctrl: Resctrl,
    class: String,
    /// Whether the class has the container's name, so that it is nobody else's.
    own: bool,
    /// Whether the class was there before.
    found: bool,
    /// Lines for the class's `schemata`.
    schemata: Vec<String>,
    /// The monitoring group to be made.
    group: Option<String>,
    made_class: bool,
    made_group: bool,
}

impl Membership {
    /// Work out what container `id` wants, and hold a class that is there already against it. Nothing is changed.
    ///
    /// # Errors
    /// The class has to be there and is not, or has another schema than the one asked for.
    pub(crate) fn look(resctrl: Resctrl, wanted: &LinuxIntelRdt, id: &str) -> Result<Self> {
        let named = wanted.clos_id().as_deref().filter(|name| !name.is_empty());
        let class = named.unwrap_or(id).to_owned();
        let schemata = lines(wanted);
        let found = match resctrl.class(&class) {
            Ok(found) => Some(found),
            Err(Errno::ENOENT) => None,
            Err(errno) => bail!("linux.intelRdt: open class {class:?}: {}", Words(errno)),
        };
        match &found {
            None if named.is_some() && schemata.is_empty() => bail!(
                "linux.intelRdt.closID: class {class:?} is not there: without a schema it has to be made beforehand"
            ),
            Some(found) if named.is_some() && !schemata.is_empty() => {
                let text = read_long(found, "schemata")
                    .with_context(|| format!("linux.intelRdt: read schemata of {class:?}"))?;
                if let Some(difference) = difference(&text, &schemata, resctrl.bandwidth_step()) {
                    bail!(
                        "linux.intelRdt: class {class:?} is there with another schema: {difference}"
                    );
                }
            }
            _ => {}
        }
        Ok(Self {
            own: named.is_none(),
            found: found.is_some(),
            group: (*wanted.enable_monitoring() == Some(true)).then(|| id.to_owned()),
            resctrl,
            class,
            schemata,
            made_class: false,
            made_group: false,
        })
    }

    /// What will have to be removed with the container.
    pub(crate) fn traces(&self) -> Traces {
        Traces {
            class: self.class.clone(),
            remove_class: self.own && !self.found,
            group: self.group.clone(),
        }
    }

    /// Where the class is.
    pub(crate) fn path(&self) -> PathBuf {
        self.traces().path(&self.resctrl)
    }

    /// Make the class and the group, as far as they are missing, and write the schema.
    ///
    /// # Errors
    /// Names the class, the group or the lines. What was made is removed by [`Membership::undo`].
    pub(crate) fn make(&mut self) -> Result<()> {
        self.make_class()?;
        self.write_schemata()?;
        self.make_group()
    }

    fn make_class(&mut self) -> Result<()> {
        if self.found {
            return Ok(());
        }
        mkdirat(&self.resctrl.root, inside(&self.class), mode()).map_err(|errno| {
            self.resctrl
                .explain(&format!("make resctrl class {:?}", self.class), errno)
        })?;
        self.made_class = true;
        Ok(())
    }

    /// A class of another's is as asked for already, and stays as it is.
    fn write_schemata(&self) -> Result<()> {
        if self.schemata.is_empty() || (self.found && !self.own) {
            return Ok(());
        }
        // ORDER: config-linux.md, IntelRdt: the cache first, then bandwidth, then the rest. One write for all, for the
        // kernel takes all lines of a write or none.
        let mut text = self.schemata.join("\n");
        text.push('\n');
        self.write("schemata", &text).map_err(|errno| {
            self.resctrl.explain(
                &format!(
                    "write {text:?} to schemata of resctrl class {:?}",
                    self.class
                ),
                errno,
            )
        })
    }

    fn make_group(&mut self) -> Result<()> {
        let Some(group) = &self.group else {
            return Ok(());
        };
        let made = self
            .resctrl
            .class(&self.class)
            .and_then(|class| mkdirat(&class, &monitoring(group), mode()));
        made.map_err(|errno| {
            self.resctrl
                .explain(&format!("make resctrl monitoring group {group:?}"), errno)
        })?;
        self.made_group = true;
        Ok(())
    }

    /// Put a process there, and with it those that it will fork.
    pub(crate) fn enter(&self, pid: Pid) -> Result<()> {
        self.traces().enter(&self.resctrl, pid)
    }

    fn write(&self, file: impl AsRef<Path>, text: &str) -> nix::Result<()> {
        let class = self.resctrl.class(&self.class)?;
        write_file(&class, file.as_ref(), text)
    }

    /// Take back what [`Membership::make`] did, for a container that could not be made.
    pub(crate) fn undo(&self) -> Result<()> {
        Traces {
            class: self.class.clone(),
            remove_class: self.made_class,
            group: self.group.clone().filter(|_| self.made_group),
        }
        .remove(&self.resctrl)
    }
}

fn mode() -> Mode {
    Mode::from_bits_truncate(0o755)
}

/// The lines of a schema, in the order in which config-linux.md wants them written.
fn lines(wanted: &LinuxIntelRdt) -> Vec<String> {
    let single = [wanted.l3_cache_schema(), wanted.mem_bw_schema()];
    let all = single
        .into_iter()
        .flatten()
        .chain(wanted.schemata().iter().flatten());
    all.flat_map(|text| text.lines())
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

/// What a class has otherwise than `wanted`: nothing, or one sentence. A line may leave domains out, which then do not
/// matter. `step` is that of memory bandwidth.
fn difference(schemata: &str, wanted: &[String], step: u64) -> Option<String> {
    let mut there: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for line in schemata.lines() {
        if let Some((resource, domains)) = resource(line, 1) {
            there.insert(resource, domains);
        }
    }
    for line in wanted {
        let Some((resource, domains)) = resource(line, step) else {
            return Some(format!("{line:?} is no line of a schema"));
        };
        for (domain, value) in domains {
            let found = there
                .get(&resource)
                .and_then(|domains| domains.get(&domain));
            if found != Some(&value) {
                return Some(match found {
                    None => format!("{line:?}: it has no {resource} of domain {domain}"),
                    Some(found) => {
                        format!("{line:?}: it has {resource}:{domain}={}", found.text)
                    }
                });
            }
        }
    }
    None
}

/// What one domain may use.
#[derive(Clone, Debug)]
struct Share {
    /// A percentage, a rate or a bit mask; none for a word, which the text tells apart.
    number: Option<u64>,
    text: String,
}

impl PartialEq for Share {
    fn eq(&self, other: &Self) -> bool {
        match (self.number, other.number) {
            (Some(one), Some(other)) => one == other,
            _ => self.text == other.text,
        }
    }
}

/// `L3:0=7ff;1=7ff`: the resource, and the share of each domain. The kernel pads names and numbers.
fn resource(line: &str, step: u64) -> Option<(String, BTreeMap<String, Share>)> {
    let (resource, domains) = line.split_once(':')?;
    let resource = resource.trim();
    let domains = domains
        .split(';')
        .map(|pair| {
            let (domain, value) = pair.split_once('=')?;
            let text = value.trim().to_owned();
            let number = match resource {
                "MB" => text.parse().ok().map(|n: u64| n.div_ceil(step) * step),
                "SMBA" => text.parse().ok(),
                _ => u64::from_str_radix(text.trim_start_matches("0x"), 16).ok(),
            };
            Some((domain.trim().to_owned(), Share { number, text }))
        })
        .collect::<Option<_>>()?;
    Some((resource.to_owned(), domains))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A tree with the files that the kernel keeps in it.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            tree.write("info/MB/bandwidth_gran", "10\n");
            tree.write("info/last_cmd_status", "ok\n");
            tree.fill(".");
            tree
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.path().join(path)).unwrap()
        }

        fn has(&self, path: &str) -> bool {
            self.0.path().join(path).exists()
        }

        /// What the kernel puts into a new class.
        fn fill(&self, class: &str) {
            self.write(&format!("{class}/tasks"), "");
            self.write(
                &format!("{class}/schemata"),
                "    L3:0=7ff;1=7ff\n    MB:0=100;1= 20\n",
            );
            fs::create_dir_all(self.0.path().join(class).join("mon_groups")).unwrap();
        }

        /// Take the kernel's files away, so that the directory can be removed as it can be there.
        fn empty(&self, directory: &str) {
            for entry in fs::read_dir(self.0.path().join(directory)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    fs::remove_dir(path).unwrap();
                } else {
                    fs::remove_file(path).unwrap();
                }
            }
        }

        fn resctrl(&self) -> Resctrl {
            Resctrl::at(self.0.path().to_owned()).unwrap()
        }

        fn look(&self, wanted: serde_json::Value) -> Result<Membership, String> {
            let wanted = serde_json::from_value(wanted).unwrap();
            Membership::look(self.resctrl(), &wanted, "web").map_err(|error| format!("{error:#}"))
        }
    }

    #[test]
    fn without_a_class_id_the_container_has_a_class_of_its_own_until_it_is_deleted() {
        let tree = Tree::new();
        let wanted = serde_json::json!({
            "schemata": ["L2:0=f"], "memBwSchema": "MB:0=20", "l3CacheSchema": "L3:0=f;1=f0", "enableMonitoring": true
        });
        let mut membership = tree.look(wanted).unwrap();
        assert_eq!(membership.path(), tree.0.path().join("web"));
        let traces = membership.traces();
        assert_eq!(
            traces,
            Traces {
                class: "web".into(),
                remove_class: true,
                group: Some("web".into())
            }
        );
        membership.make_class().unwrap();
        tree.fill("web");
        membership.write_schemata().unwrap();
        assert!(
            tree.read("web/schemata")
                .starts_with("L3:0=f;1=f0\nMB:0=20\nL2:0=f\n")
        );
        membership.make_group().unwrap();
        tree.write("web/mon_groups/web/tasks", "");
        membership.enter(Pid::from_raw(42)).unwrap();
        assert_eq!(tree.read("web/tasks"), "42");
        assert_eq!(tree.read("web/mon_groups/web/tasks"), "42");

        tree.empty("web/mon_groups/web");
        fs::remove_file(tree.0.path().join("web/tasks")).unwrap();
        fs::remove_file(tree.0.path().join("web/schemata")).unwrap();
        // What the kernel takes with the class is a real directory here, so that the class goes at the second attempt.
        let error = traces.remove(&tree.resctrl()).unwrap_err().to_string();
        assert_eq!(error, "remove resctrl class \"web\": directory not empty");
        assert!(!tree.has("web/mon_groups/web"));
        tree.empty("web");
        traces.remove(&tree.resctrl()).unwrap();
        assert!(!tree.has("web"));
        traces.remove(&tree.resctrl()).unwrap();
    }

    #[test]
    fn a_class_with_an_id_is_made_with_its_schema_and_stays() {
        let tree = Tree::new();
        let mut membership = tree
            .look(serde_json::json!({ "closID": "gold", "schemata": ["L3:0=f"] }))
            .unwrap();
        assert!(!membership.traces().remove_class);
        membership.make_class().unwrap();
        tree.fill("gold");
        membership.write_schemata().unwrap();
        assert!(tree.read("gold/schemata").starts_with("L3:0=f\n"));
        membership.traces().remove(&tree.resctrl()).unwrap();
        assert!(tree.has("gold"));
        // A container that could not be made takes it back all the same.
        tree.empty("gold");
        membership.undo().unwrap();
        assert!(!tree.has("gold"));
    }

    #[test]
    fn other_schemata_are_written_where_the_processor_has_the_resource() {
        let tree = Tree::new();
        let traces = Traces {
            class: "gold".into(),
            ..Traces::default()
        };
        let both = Schemata {
            l3_cache: Some("L3:0=3".into()),
            memory_bandwidth: Some("MB:0=30\n".into()),
        };
        let possible = |schemata: &Schemata, resctrl: Option<&Resctrl>| {
            schemata.are_possible(resctrl).map_err(|e| e.to_string())
        };
        let resctrl = tree.resctrl();
        assert_eq!(
            possible(&both, Some(&resctrl)).unwrap_err(),
            "--l3-cache-schema: Intel RDT/CAT: l3 cache schema is not enabled"
        );
        tree.write("info/L3/cbm_mask", "7ff\n");
        possible(&both, Some(&resctrl)).unwrap();
        possible(&Schemata::default(), None).unwrap();
        assert!(possible(&both, None).is_err());
        let missing = traces.update(&resctrl, &both).unwrap_err().to_string();
        assert!(missing.contains("resctrl class \"gold\""), "{missing}");
        tree.fill("gold");
        traces.update(&resctrl, &both).unwrap();
        assert!(tree.read("gold/schemata").starts_with("L3:0=3\nMB:0=30\n"));
    }

    #[test]
    fn a_class_without_a_schema_has_to_be_there() {
        let tree = Tree::new();
        assert_eq!(
            tree.look(serde_json::json!({ "closID": "gold" }))
                .unwrap_err(),
            "linux.intelRdt.closID: class \"gold\" is not there: without a schema it has to be made beforehand"
        );
        tree.fill("gold");
        let before = tree.read("gold/schemata");
        let mut membership = tree.look(serde_json::json!({ "closID": "gold" })).unwrap();
        membership.make().unwrap();
        membership.enter(Pid::from_raw(7)).unwrap();
        assert_eq!(tree.read("gold/tasks"), "7");
        assert_eq!(tree.read("gold/schemata"), before);
        membership.undo().unwrap();
        assert!(tree.has("gold/tasks"));
    }

    #[test]
    fn the_root_is_the_default_class() {
        let tree = Tree::new();
        let mut membership = tree
            .look(serde_json::json!({ "closID": "/", "enableMonitoring": true }))
            .unwrap();
        assert_eq!(membership.path(), tree.0.path());
        membership.make().unwrap();
        tree.write("mon_groups/web/tasks", "");
        membership.enter(Pid::from_raw(9)).unwrap();
        assert_eq!(tree.read("tasks"), "9");
        tree.empty("mon_groups/web");
        membership.traces().remove(&tree.resctrl()).unwrap();
        assert!(!tree.has("mon_groups/web") && tree.has("tasks"));
    }

    #[test]
    fn a_class_that_is_there_is_held_against_the_schema_and_not_written() {
        let tree = Tree::new();
        tree.fill("gold");
        let before = tree.read("gold/schemata");
        // Padded, in other digits, rounded, and with a domain left out: the same.
        let same = serde_json::json!({ "closID": "gold", "l3CacheSchema": "L3:1=07FF", "memBwSchema": "MB:1=15;0=91" });
        let mut membership = tree.look(same).unwrap();
        membership.make().unwrap();
        assert_eq!(tree.read("gold/schemata"), before);
        for (schema, difference) in [
            ("L3:0=f", "\"L3:0=f\": it has L3:0=7ff"),
            ("L3:2=7ff", "\"L3:2=7ff\": it has no L3 of domain 2"),
            ("L2:0=f", "\"L2:0=f\": it has no L2 of domain 0"),
            ("MB:1=30", "\"MB:1=30\": it has MB:1=20"),
            ("nonsense", "\"nonsense\" is no line of a schema"),
        ] {
            assert_eq!(
                tree.look(serde_json::json!({ "closID": "gold", "schemata": [schema] }))
                    .unwrap_err(),
                format!(
                    "linux.intelRdt: class \"gold\" is there with another schema: {difference}"
                )
            );
        }
    }

    #[test]
    fn the_kernels_own_words_are_part_of_an_error() {
        let tree = Tree::new();
        tree.write("info/last_cmd_status", "Mask f0f not contiguous\n");
        let mut membership = tree
            .look(serde_json::json!({ "schemata": ["L3:0=f0f"], "enableMonitoring": true }))
            .unwrap();
        membership.make_class().unwrap();
        let error = membership.write_schemata().unwrap_err().to_string();
        assert_eq!(
            error,
            "write \"L3:0=f0f\\n\" to schemata of resctrl class \"web\": no such file or directory, \
             last_cmd_status: Mask f0f not contiguous"
        );
        assert!(membership.make_group().is_err());
        membership.undo().unwrap();
        assert!(!tree.has("web"));
    }

    #[test]
    fn a_monitoring_group_is_nobody_elses() {
        let tree = Tree::new();
        tree.write("mon_groups/web/tasks", "");
        let mut membership = tree
            .look(serde_json::json!({ "closID": "/", "enableMonitoring": true }))
            .unwrap();
        assert_eq!(
            membership.make().unwrap_err().to_string(),
            "make resctrl monitoring group \"web\": file exists"
        );
        membership.undo().unwrap();
        assert!(tree.has("mon_groups/web/tasks"));
    }
}
