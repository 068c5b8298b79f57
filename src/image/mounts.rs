//! What is mounted: the lower directories of overlays, and trees of the store that are bound elsewhere, in every mount
//! namespace that can be seen.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

use crate::sys::mount::unescape;

use super::digest::Digest;

/// This process, whose mount namespace is ours.
const SELF: &str = "/proc/self";

/// What mounts stand on.
#[derive(Debug, Default)]
pub(crate) struct Mounted {
    /// Of each mount that says so: its root within the file system, the lower directories of an overlay.
    pub(crate) paths: BTreeSet<BTreeSet<PathBuf>>,
    /// What is mounted: the number of the file system, and the path in it.
    trees: BTreeSet<(Vec<u8>, PathBuf)>,
    /// The upper directories of overlays in other namespaces than ours, as they were given.
    upper: BTreeSet<PathBuf>,
    /// Mount namespaces that a mount keeps, as links in /proc name them, and where they can be opened.
    kept: Vec<(PathBuf, PathBuf)>,
}

/// Read the mount tables of all processes, each mount namespace once.
///
/// A process that goes away meanwhile, or that we may not look into, is passed over: an ordinary user's command sees those
/// of no other, and root in a container not those with more rights than its own. A namespace in which no process lives is
/// entered where a mount keeps it (`unshare --mount=FILE`).
///
/// # Errors
/// Our own table, /proc itself, a process or a namespace cannot be read for another reason: what is mounted there is not
/// known.
pub(crate) fn mounted() -> Result<Mounted> {
    let mut found = Mounted::default();
    let own = std::fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    found.add(&own, Path::new(SELF));
    let mut seen = HashSet::new();
    seen.extend(std::fs::read_link("/proc/self/ns/mnt").ok());
    for process in std::fs::read_dir("/proc").context("read /proc")? {
        let process = process.context("read /proc")?;
        if !process
            .file_name()
            .as_bytes()
            .iter()
            .all(u8::is_ascii_digit)
        {
            continue;
        }
        // A thread can have a mount namespace of its own.
        let tasks = process.path().join("task");
        let Some(threads) = seen_of(std::fs::read_dir(&tasks), &tasks)? else {
            continue;
        };
        for thread in threads {
            let Some(thread) = seen_of(thread, &tasks)? else {
                continue;
            };
            let link = thread.path().join("ns/mnt");
            let Some(namespace) = seen_of(std::fs::read_link(&link), &link)? else {
                continue;
            };
            if seen.contains(&namespace) {
                continue;
            }
            let table = thread.path().join("mountinfo");
            if let Some(table) = seen_of(std::fs::read(&table), &table)? {
                found.add(&table, &thread.path());
                seen.insert(namespace);
            }
        }
    }
    // What is found in one may keep another.
    while let Some((namespace, file)) = found.kept.pop() {
        if seen.insert(namespace)
            && let Some(table) = seen_of(table_of(&file), &file)?
        {
            found.add(&table, Path::new("/proc/thread-self"));
        }
    }
    Ok(found)
}

/// The mount table of a namespace, given the file that it is mounted on.
fn table_of(file: &Path) -> io::Result<Vec<u8>> {
    let namespace = File::open(file)?;
    let proc = File::open("/proc")?;
    // A thread of its own, since it does not come back.
    std::thread::scope(|scope| {
        let look = || -> io::Result<Vec<u8>> {
            unshare(CloneFlags::CLONE_FS)?;
            setns(&namespace, CloneFlags::CLONE_NEWNS)?;
            let table = "thread-self/mountinfo";
            let table = openat(
                &proc,
                table,
                OFlag::O_RDONLY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?;
            let mut bytes = Vec::new();
            File::from(table).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let looked = scope.spawn(look).join();
        looked.unwrap_or_else(|_| Err(io::Error::other("the thread that looks ended")))
    })
}

/// What was read of a process; none where it went away meanwhile, or is closed to us.
fn seen_of<T>(read: io::Result<T>, path: &Path) -> Result<Option<T>> {
    let error = match read {
        Ok(read) => return Ok(Some(read)),
        Err(error) => error,
    };
    match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        // EINVAL is what the table of a process says that has ended and not been waited for.
        Errno::ENOENT | Errno::ESRCH | Errno::EINVAL | Errno::EACCES | Errno::EPERM => Ok(None),
        _ => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

impl Mounted {
    /// The paths in the mount table of `process`, its directory in /proc: as they are written, and with links resolved
    /// as the process sees them. A relative one was relative to whoever mounted it, which may be the process.
    fn add(&mut self, table: &[u8], process: &Path) {
        for place in table.split(|byte| *byte == b'\n').filter_map(Place::of) {
            let mut all = place.paths();
            match place.kind {
                b"overlay" => {
                    if process != Path::new(SELF) {
                        self.upper.extend(place.upper_directory());
                    }
                    for path in all.clone() {
                        let seen = match path.strip_prefix("/") {
                            Ok(below) => process.join("root").join(below),
                            Err(_) => process.join("cwd").join(&path),
                        };
                        all.extend(std::fs::canonicalize(seen));
                        // A link's absolute target leads from our root; most often that is theirs too.
                        all.extend(std::fs::canonicalize(&path));
                    }
                }
                b"nsfs" if place.root.as_os_str().as_bytes().starts_with(b"mnt:[") => {
                    let point = place.point.strip_prefix("/").unwrap_or(&place.point);
                    let file = process.join("root").join(point);
                    self.kept.push((place.root.clone(), file));
                }
                _ => {}
            }
            if !all.is_empty() {
                self.paths.insert(all);
            }
            self.trees.insert((place.device.to_vec(), place.root));
        }
    }

    /// Whether a mount stands on the directory `dir`, which is at `path`, or on what is below it; of overlays those of other
    /// namespaces.
    ///
    /// # Errors
    /// As for [`Self::holds`].
    pub(crate) fn stands_on(&self, dir: BorrowedFd, path: &Path) -> Result<bool> {
        Ok(self.upper.iter().any(|upper| upper.starts_with(path)) || self.holds(dir)?)
    }

    /// Whether some mount stands on the layer `chain`.
    pub(crate) fn stands_on_layer(&self, chain: &Digest) -> bool {
        let layer = Named::Layer(chain.hex().to_owned());
        let mut paths = self.paths.iter().flatten();
        paths.any(|path| named(path).contains(&layer))
    }

    /// Whether the directory `dir`, or something below it, is mounted somewhere: not only as a part of what holds it.
    ///
    /// # Errors
    /// /proc does not say where the directory lies.
    pub(crate) fn holds(&self, dir: BorrowedFd) -> Result<bool> {
        let number = dir.as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"))
            .context("read /proc/self/fdinfo")?;
        let mount = info
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:"))
            .map(str::trim)
            .context("/proc/self/fdinfo has no mnt_id")?;
        let path = std::fs::read_link(format!("/proc/self/fd/{number}"))?;
        let table = std::fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let own = table
            .split(|byte| *byte == b'\n')
            .filter(|line| line.split(|byte| *byte == b' ').next() == Some(mount.as_bytes()))
            .find_map(Place::of)
            .with_context(|| format!("{}: its mount is not in the table", path.display()))?;
        let inside = path
            .strip_prefix(&own.point)
            .with_context(|| format!("{}: not below its mount", path.display()))?;
        let tree = own.root.join(inside);
        Ok(self
            .trees
            .iter()
            .any(|(device, root)| device == own.device && root.starts_with(&tree)))
    }
}

/// What a line of a mount table says (proc_pid_mountinfo(5)).
struct Place<'line> {
    device: &'line [u8],
    /// In the file system.
    root: PathBuf,
    point: PathBuf,
    /// The type of the file system, and its own options; empty in a line that is cut.
    kind: &'line [u8],
    options: &'line [u8],
}

impl<'line> Place<'line> {
    fn of(line: &'line [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
        let mut after = fields.skip_while(|field| *field != b"-").skip(1);
        Some(Self {
            device,
            root: path(&unescape(root)),
            point: path(&unescape(point)),
            kind: after.next().unwrap_or_default(),
            // Its source is between the two.
            options: after.nth(1).unwrap_or_default(),
        })
    }

    /// What it stands on: its root within the file system, and of an overlay its lower directories, as they were given.
    fn paths(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        if self.root != Path::new("/") {
            found.insert(self.root.clone());
        }
        if self.kind == b"overlay" {
            lower_directories(self.options, &mut found);
        }
        found
    }

    /// The upper directory of an overlay, as it was given.
    fn upper_directory(&self) -> Option<PathBuf> {
        let mut options = self.options.split(|byte| *byte == b',');
        let upper = options.find_map(|option| option.strip_prefix(b"upperdir="))?;
        // Of its escapes the mount table's are the outer ones.
        Some(path(&lower_list(&unescape(upper)).concat()))
    }
}

/// The lower directories in the options of an overlay, as a mount table shows them: octal escapes first, as a comma
/// within a value is one too, then the colons that are not escaped.
fn lower_directories(options: &[u8], into: &mut BTreeSet<PathBuf>) {
    for option in options.split(|byte| *byte == b',') {
        let option = unescape(option);
        let Some(at) = option.iter().position(|byte| *byte == b'=') else {
            continue;
        };
        let (name, value) = (&option[..at], &option[at + 1..]);
        match name {
            b"lowerdir" => into.extend(lower_list(value).into_iter().map(|one| path(&one))),
            // One directory each, and nothing in it is escaped (Linux 6.5).
            b"lowerdir+" | b"datadir+" => drop(into.insert(path(value))),
            _ => {}
        }
    }
}

/// The elements of `lowerdir=`: a colon that belongs to a path has a backslash before it.
pub(crate) fn lower_list(value: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => all.last_mut().expect("never empty").extend(bytes.next()),
            b':' => all.push(Vec::new()),
            _ => all.last_mut().expect("never empty").push(*byte),
        }
    }
    // Two colons before a data-only directory leave an empty element.
    all.retain(|one| !one.is_empty());
    all
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// What of a store a path names, judged by its components alone: it may be relative, go through links, or be seen from
/// another root.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// The 64 hex characters of a ChainID. Some other hash may look so; then too much is kept.
    Layer(String),
    Volume(String),
}

/// Every layer and volume that `path` may name.
pub(crate) fn named(path: &Path) -> Vec<Named> {
    let names: Vec<&str> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let hex = |name: &&&str| {
        name.len() == 64
            && name
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let layers = names
        .iter()
        .filter(hex)
        .map(|name| Named::Layer((*name).to_owned()));
    let volumes = names
        .windows(2)
        .filter(|pair| pair[0] == "volumes")
        .map(|pair| Named::Volume(pair[1].to_owned()));
    layers.chain(volumes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(table: &str) -> Vec<String> {
        let places = table
            .as_bytes()
            .split(|byte| *byte == b'\n')
            .filter_map(Place::of);
        let all: BTreeSet<_> = places.flat_map(|place| place.paths()).collect();
        all.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn the_lower_directories_of_every_overlay_are_found() {
        for (options, expected) in [
            (
                "rw,lowerdir=/s/b:/s/a,upperdir=/u,workdir=/w",
                vec!["/s/a", "/s/b"],
            ),
            ("rw,lowerdir=b:a", vec!["a", "b"]),
            (r"rw,lowerdir=/with\040space:/x", vec!["/with space", "/x"]),
            (r"rw,lowerdir=/co\134:lon:/x", vec!["/co:lon", "/x"]),
            (r"rw,lowerdir=/com\054ma:/x", vec!["/com,ma", "/x"]),
            (r"rw,lowerdir=/back\134\134slash", vec![r"/back\slash"]),
            ("rw,lowerdir=/a::/data", vec!["/a", "/data"]),
            (
                "rw,lowerdir+=/a:b,lowerdir+=/c,datadir+=/d",
                vec!["/a:b", "/c", "/d"],
            ),
            ("rw,lowerdir", vec![]),
            ("", vec![]),
        ] {
            let line =
                format!("36 35 0:51 / /mnt rw,relatime shared:1 - overlay overlay {options}\n");
            assert_eq!(found(&line), expected, "{options}");
        }
    }

    #[test]
    fn optional_fields_and_broken_lines_do_not_confuse() {
        let table = "1 2 0:5 / / rw - ext4 /dev/sda rw,lowerdir=/no\n\
                     x\n\n\
                     1 2 0:5 / /m rw master:1 shared:2 propagate_from:3 - overlay - rw,lowerdir=/yes\n\
                     1 2 8:1 /store/layers/a\\040b /bound rw - ext4 /dev/sda rw\n\
                     1 2 0:5 / /m rw shared:2 - overlay";
        assert_eq!(found(table), ["/store/layers/a b", "/yes"]);
    }

    #[test]
    fn a_layer_is_known_by_its_chain_id_wherever_the_path_begins() {
        let hex = "ab".repeat(32);
        for path in [
            hex.clone(),
            format!("../layers/{hex}"),
            format!("/r/layers/{hex}/usr/lib"),
        ] {
            assert_eq!(
                named(Path::new(&path)),
                [Named::Layer(hex.clone())],
                "{path}"
            );
        }
        assert_eq!(
            named(Path::new("/r/volumes/data/sub")),
            [Named::Volume("data".into())]
        );
        assert_eq!(named(Path::new("/r/layers/ABC/volumes")), []);
    }
}
