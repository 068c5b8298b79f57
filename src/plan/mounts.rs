//! Mounts: option words become attributes, propagation and file system parameters; each entry of `mounts` becomes one
//! [`MountOp`] that the child carries out as it stands.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Mount, Spec};

use crate::idmap::{Maps, Range};
use crate::spec::may_replace_in_proc;
use crate::sys::mount::{Change, Parameter, Reach, attr};
use crate::sys::path::relative;

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A file or directory of the host, with the mounts below it or without.
    Bind {
        source: PathBuf,
        reach: Reach,
        link: Link,
    },
    /// A new instance of a file system.
    Filesystem {
        kind: CString,
        source: CString,
        parameters: Vec<Parameter>,
    },
    /// The cgroup v2 hierarchy.
    Cgroup {
        parameters: Vec<Parameter>,
        how: Hierarchy,
    },
    /// No new mount: change what is mounted there, and where parameters are given its file system.
    Remount { parameters: Vec<Parameter> },
}

/// What a bind mount whose source is a symbolic link is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Link {
    /// What it leads to.
    #[default]
    Followed,
    /// The link (`src-nofollow`).
    Itself,
    /// Nothing: a link of the same text is made (`copy-symlink`).
    Copied,
}

/// How the cgroup hierarchy gets into a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    /// A new mount, whose root is that of the container's cgroup namespace; where the kernel refuses it, a bind of the
    /// container's own cgroup.
    New,
    /// A bind of all of it. A new mount without an own namespace would reset the hierarchy's mount options (nsdelegate,
    /// memory_recursiveprot) for the whole machine.
    Whole,
    /// The same, for reading only.
    // CVE-2023-25809: without a cgroup namespace a writable hierarchy would let a rootless container change its host's.
    WholeReadOnly,
}

/// That the files of a mount have other owners there than on their file system (mount_setattr(2), MOUNT_ATTR_IDMAP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) by: MappedBy,
    /// `ridmap` maps the mounts below too.
    pub(crate) reach: Reach,
}

/// The user namespace whose maps an id-mapped mount has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MappedBy {
    /// One made for these maps: their place in [`super::Plan::id_maps`].
    Maps(usize),
    /// The one that the container joins.
    Joined,
}

/// What a mount without maps of its own is mapped by, and the maps of all mounts, each pair once.
#[derive(Debug, Default)]
pub(crate) struct IdMaps<'a> {
    /// The maps of the container's new user namespace.
    pub(crate) container: Option<&'a Maps>,
    /// Whether it joins one instead.
    pub(crate) joined: bool,
    pub(crate) distinct: Vec<Maps>,
}

impl IdMaps<'_> {
    /// What maps `mount`, if it is to be id-mapped (config.md, Mounts). `reach` is that of the option word, where there
    /// is one; maps without a word mean `idmap`.
    ///
    /// # Errors
    /// There are neither maps nor a user namespace.
    fn of(
        &mut self,
        mount: &Mount,
        (reach, text): (Option<Reach>, Option<&str>),
        bind: bool,
    ) -> Result<Option<IdMap>> {
        let ranges = |map: &Option<Vec<_>>| map.iter().flatten().map(Range::from).collect();
        let own = match text {
            Some(text) => self.read(text).with_context(|| format!("idmap={text}"))?,
            None => Maps {
                uids: ranges(mount.uid_mappings()),
                gids: ranges(mount.gid_mappings()),
            },
        };
        let own = (own != Maps::default()).then_some(own);
        if own.is_none() && reach.is_none() {
            return Ok(None);
        }
        let user_namespace = self.joined || self.container.is_some();
        // KERNEL: a file system that is mounted in the container's user namespace has its ids from there already, and
        // the kernel refuses to map them once more in the same way.
        if !bind && user_namespace && (own.is_none() || own.as_ref() == self.container) {
            return Ok(None);
        }
        let by = match own.as_ref().or(self.container) {
            Some(maps) => MappedBy::Maps(self.place(maps)),
            None if self.joined => MappedBy::Joined,
            None => bail!("id-mapped mounts must have both uid and gid mappings specified"),
        };
        let reach = reach.unwrap_or(Reach::One);
        Ok(Some(IdMap { by, reach }))
    }

    /// Maps as crun writes them: `uids=` and `gids=`, between them `;`, each a list with `#` of triples: the first id of the
    /// file system's, the first on the host, how many. Behind an `@` the second is one of the container's.
    fn read(&self, text: &str) -> Result<Maps> {
        let mut maps = Maps::default();
        for part in text.split(';') {
            let Some((name, list)) = part.split_once('=') else {
                bail!("{part:?} is neither uids=… nor gids=…");
            };
            let of: fn(&Maps) -> &Vec<Range> = match name {
                "uids" => |maps| &maps.uids,
                "gids" => |maps| &maps.gids,
                _ => bail!("{name:?} is neither uids nor gids"),
            };
            let ranges = list
                .split('#')
                .map(|triple| self.range(triple, of))
                .collect::<Result<_>>()?;
            match name {
                "uids" => maps.uids = ranges,
                _ => maps.gids = ranges,
            }
        }
        if maps.uids.is_empty() || maps.gids.is_empty() {
            // COMPAT: runc's words.
            bail!("id-mapped mounts must have both uid and gid mappings specified");
        }
        Ok(maps)
    }

    fn range(&self, triple: &str, of: fn(&Maps) -> &Vec<Range>) -> Result<Range> {
        let (relative, numbers) = match triple.strip_prefix('@') {
            Some(numbers) => (true, numbers),
            None => (false, triple),
        };
        let numbers: Vec<u32> = numbers
            .split('-')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{triple:?} is not three numbers with - between them"))?;
        let &[container, mut host, length @ 1..=u32::MAX] = numbers.as_slice() else {
            bail!("{triple:?} is not three numbers with - between them, the last above 0");
        };
        if relative {
            let Some(maps) = self.container else {
                bail!(
                    "{triple:?}: the container has no new user namespace for it to be relative to"
                );
            };
            let last = host.checked_add(length - 1);
            let mapped = crate::idmap::to_host(of(maps), host);
            let together = last
                .and_then(|last| crate::idmap::to_host(of(maps), last))
                .zip(mapped)
                .is_some_and(|(last, first)| last.checked_sub(first) == Some(length - 1));
            host = mapped.filter(|_| together).with_context(|| {
                format!(
                    "{triple:?}: the container's user namespace does not map these ids in one piece"
                )
            })?;
        }
        Ok(Range {
            container,
            host,
            length,
        })
    }

    fn place(&mut self, maps: &Maps) -> usize {
        let known = self.distinct.iter().position(|known| known == maps);
        known.unwrap_or_else(|| {
            self.distinct.push(maps.clone());
            self.distinct.len() - 1
        })
    }
}

/// One mount for the child to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountOp {
    /// Where, relative to the root; every component may lie.
    pub(crate) untrusted_target: PathBuf,
    pub(crate) what: What,
    /// Attributes of the new mount itself.
    pub(crate) change: Change,
    /// Attributes for it and everything below.
    pub(crate) recursive: Change,
    /// Propagation changes after the mount, each a call of its own.
    pub(crate) propagation: Vec<(Reach, Change)>,
    pub(crate) id_map: Option<IdMap>,
    /// Fill a tmpfs with what lay at the target before (`tmpcopyup`).
    pub(crate) copy_up: bool,
    /// Read-only comes last, after everything below is in place.
    pub(crate) read_only_late: bool,
    /// A symbolic link at the target is mounted over, and not followed (`dest-nofollow`).
    pub(crate) over_link: bool,
    /// The target has to be a real directory, reached without any link.
    // CVE-2019-19921, CVE-2023-27561: /proc or /sys as a link led the writes below it elsewhere.
    pub(crate) ordinary_directory: bool,
}

impl MountOp {
    /// Whether this mount may lie at `inner`, a path relative to the root, as far as /proc is concerned.
    pub(crate) fn may_cover(&self, inner: &Path) -> bool {
        let real_proc = match &self.what {
            What::Filesystem { kind, .. } => kind.to_bytes() == b"proc",
            What::Bind { source, .. } => source == Path::new("/proc"),
            What::Cgroup { .. } | What::Remount { .. } => false,
        };
        !inner.starts_with("proc")
            || (real_proc && inner == Path::new("proc"))
            || may_replace_in_proc(inner)
    }

    /// The file system's name.
    pub(crate) fn kind(&self) -> String {
        match &self.what {
            What::Filesystem { kind, .. } => kind.to_string_lossy().into_owned(),
            What::Bind { .. } => "bind".to_owned(),
            What::Cgroup { .. } => "cgroup2".to_owned(),
            What::Remount { .. } => "remount".to_owned(),
        }
    }

    /// The source as messages name it.
    pub(crate) fn source(&self) -> String {
        match &self.what {
            What::Bind { source, .. } => source.display().to_string(),
            What::Filesystem { source, .. } => source.to_string_lossy().into_owned(),
            What::Cgroup { .. } => "cgroup".to_owned(),
            What::Remount { .. } => String::new(),
        }
    }

    /// Give the files of a new file system an SELinux context, by this option of mount(8)'s. The kernel does not take one for
    /// those of its own that have their contexts from the policy; mqueue gets it when it is mounted.
    ///
    /// # Errors
    /// The context has a NUL.
    pub(crate) fn label(&mut self, context: Option<&str>, option: &CStr) -> Result<()> {
        if let (
            Some(context),
            What::Filesystem {
                kind, parameters, ..
            },
        ) = (context, &mut self.what)
            && !matches!(kind.to_bytes(), b"proc" | b"sysfs" | b"mqueue")
        {
            parameters.push(Parameter {
                key: option.to_owned(),
                value: Some(CString::new(context).context("linux.mountLabel")?),
            });
        }
        Ok(())
    }

    /// The attributes to give when it is mounted: read-only waits where something is still to be put inside.
    pub(crate) fn at_first(&self) -> Change {
        let set = if self.read_only_late {
            self.change.set & !attr::RDONLY
        } else {
            self.change.set
        };
        Change::attributes(set, self.change.clear)
    }

    /// The destination as messages name it: absolute.
    pub(crate) fn destination(&self) -> String {
        match self.untrusted_target.to_str() {
            Some(".") => "/".to_owned(),
            _ => format!("/{}", self.untrusted_target.display()),
        }
    }
}

/// What one option word does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Attribute {
        set: u64,
        clear: u64,
    },
    Recursive {
        set: u64,
        clear: u64,
    },
    Propagation(Reach, u64),
    Bind(Reach),
    Remount,
    IdMap(Reach),
    Link(Link),
    OverLink,
    CopyUp,
    /// A flag of the file system as a whole; the kernel knows it by this name.
    Superblock,
    /// Says what is so anyhow.
    Nothing,
}

const fn set(bits: u64) -> Word {
    Word::Attribute {
        set: bits,
        clear: if bits & attr::ATIME != 0 {
            attr::ATIME
        } else {
            0
        },
    }
}

const fn clear(bits: u64) -> Word {
    Word::Attribute {
        set: 0,
        clear: bits,
    }
}

const fn all(word: Word) -> Word {
    match word {
        Word::Attribute { set, clear } => Word::Recursive { set, clear },
        other => other,
    }
}

/// Choosing one access time rule clears the others.
const ATIME: Word = clear(attr::ATIME);

/// The meaning of an option word (config.md, Linux mount options; mount(8)), or none: then it is the file system's.
fn meaning(word: &str) -> Option<Word> {
    Some(match word {
        "ro" => set(attr::RDONLY),
        "rw" => clear(attr::RDONLY),
        "nosuid" => set(attr::NOSUID),
        "suid" => clear(attr::NOSUID),
        "nodev" => set(attr::NODEV),
        "dev" => clear(attr::NODEV),
        "noexec" => set(attr::NOEXEC),
        "exec" => clear(attr::NOEXEC),
        "noatime" => set(attr::NOATIME),
        "strictatime" => set(attr::STRICTATIME),
        "atime" | "relatime" | "norelatime" | "nostrictatime" => ATIME,
        "nodiratime" => set(attr::NODIRATIME),
        "diratime" => clear(attr::NODIRATIME),
        "nosymfollow" => set(attr::NOSYMFOLLOW),
        "symfollow" => clear(attr::NOSYMFOLLOW),
        "rro" => all(set(attr::RDONLY)),
        "rrw" => all(clear(attr::RDONLY)),
        "rnosuid" => all(set(attr::NOSUID)),
        "rsuid" => all(clear(attr::NOSUID)),
        "rnodev" => all(set(attr::NODEV)),
        "rdev" => all(clear(attr::NODEV)),
        "rnoexec" => all(set(attr::NOEXEC)),
        "rexec" => all(clear(attr::NOEXEC)),
        "rnoatime" => all(set(attr::NOATIME)),
        "rstrictatime" => all(set(attr::STRICTATIME)),
        "ratime" | "rrelatime" | "rnorelatime" | "rnostrictatime" => all(ATIME),
        "rnodiratime" => all(set(attr::NODIRATIME)),
        "rdiratime" => all(clear(attr::NODIRATIME)),
        "rnosymfollow" => all(set(attr::NOSYMFOLLOW)),
        "rsymfollow" => all(clear(attr::NOSYMFOLLOW)),
        "bind" => Word::Bind(Reach::One),
        "rbind" => Word::Bind(Reach::Tree),
        "remount" => Word::Remount,
        "idmap" => Word::IdMap(Reach::One),
        "ridmap" => Word::IdMap(Reach::Tree),
        "src-nofollow" => Word::Link(Link::Itself),
        "copy-symlink" => Word::Link(Link::Copied),
        "dest-nofollow" => Word::OverLink,
        "tmpcopyup" => Word::CopyUp,
        "sync" | "async" | "dirsync" | "lazytime" | "nolazytime" | "mand" | "nomand" => {
            Word::Superblock
        }
        // COMPAT: an empty word says nothing in mount data; Podman writes one for `--systemd`.
        "" | "defaults" | "iversion" | "noiversion" | "loud" | "silent" => Word::Nothing,
        _ => {
            let (reach, word) = match word.strip_prefix('r') {
                Some(rest) => (Reach::Tree, rest),
                None => (Reach::One, word),
            };
            return Some(Word::Propagation(reach, propagation(word)?));
        }
    })
}

/// The MS_* flag of a propagation type (mount_namespaces(7)).
pub(crate) fn propagation(word: &str) -> Option<u64> {
    Some(match word {
        "private" => libc::MS_PRIVATE,
        "slave" => libc::MS_SLAVE,
        "shared" => libc::MS_SHARED,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    })
}

/// Read all words of one list; those that are nobody's become parameters of the file system.
#[derive(Debug, Default)]
struct Options {
    change: Change,
    recursive: Change,
    propagation: Vec<(Reach, Change)>,
    bind: Option<Reach>,
    remount: bool,
    id_map: Option<Reach>,
    /// What stands behind `idmap=`, whole.
    maps: Option<String>,
    link: Option<Link>,
    over_link: bool,
    copy_up: bool,
    superblock: Vec<Parameter>,
    parameters: Vec<Parameter>,
}

impl Options {
    fn read(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for word in words {
            match meaning(word) {
                Some(Word::Attribute { set, clear }) => merge(&mut options.change, set, clear),
                Some(Word::Recursive { set, clear }) => merge(&mut options.recursive, set, clear),
                Some(Word::Propagation(reach, flag)) => {
                    options.propagation.push((reach, Change::propagation(flag)));
                }
                Some(Word::Bind(reach)) => options.bind = Some(reach),
                Some(Word::Remount) => options.remount = true,
                Some(Word::IdMap(reach)) => options.id_map = Some(reach),
                Some(Word::Link(link)) => options.link = Some(link),
                Some(Word::OverLink) => options.over_link = true,
                Some(Word::CopyUp) => options.copy_up = true,
                Some(Word::Superblock) => options.superblock.push(parameter(word)?),
                Some(Word::Nothing) => {}
                None if let Some((reach, maps)) = with_maps(word) => {
                    options.id_map = Some(reach);
                    options.maps = Some(maps.to_owned());
                }
                None => {
                    for part in parts(word) {
                        options.parameters.push(parameter(part)?);
                    }
                }
            }
        }
        Ok(options)
    }
}

/// `idmap=` or `ridmap=`, and what follows.
fn with_maps(word: &str) -> Option<(Reach, &str)> {
    match word.split_once('=')? {
        ("idmap", maps) => Some((Reach::One, maps)),
        ("ridmap", maps) => Some((Reach::Tree, maps)),
        _ => None,
    }
}

/// A later word wins over an earlier one.
fn merge(change: &mut Change, set: u64, clear: u64) {
    change.set = change.set & !clear & !set | set;
    change.clear = (change.clear & !set) | clear;
}

/// The single options of a word that is the file system's: mount(2) takes them as a list with commas, and so a word may be
/// a list of its own. A comma in quotes or behind a backslash is part of a value; one before a digit parts the nodes of
/// tmpfs's `mpol`, since no option begins with a digit.
fn parts(word: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut before) = (false, ' ');
    let mut after = word.chars().skip(1);
    let split = word.split(move |c: char| {
        let next = after.next();
        quoted ^= c == '"';
        let ends =
            c == ',' && !quoted && before != '\\' && !next.is_some_and(|c| c.is_ascii_digit());
        before = c;
        ends
    });
    split.filter(|part| !part.is_empty())
}

/// Whether this option is an SELinux context (mount(8)), which is written in quotes because of its commas.
pub(crate) fn is_context(key: &[u8]) -> bool {
    matches!(
        key,
        b"context" | b"fscontext" | b"defcontext" | b"rootcontext"
    )
}

fn parameter(word: &str) -> Result<Parameter> {
    let text = |part: &str| CString::new(part).with_context(|| format!("mount option {part:?}"));
    Ok(match word.split_once('=') {
        // KERNEL: quotes are part of the list that mount(2) takes, and not of what fsconfig(2) does.
        Some((key, value)) if is_context(key.as_bytes()) => Parameter {
            key: text(key)?,
            value: Some(text(&value.replace('"', ""))?),
        },
        Some((key, value)) => Parameter {
            key: text(key)?,
            value: Some(text(value)?),
        },
        None => Parameter {
            key: text(word)?,
            value: None,
        },
    })
}

/// File systems whose superblock the kernel shares or that are filled after they are mounted: `ro` is theirs as a
/// mount attribute only.
const ATTRIBUTE_ONLY: [&str; 6] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup"];

const NO_DATA: &str = "bind mounts cannot have any filesystem-specific options applied";

/// Turn one entry of `mounts` into an operation; the maps that it needs are added to `id_maps`.
///
/// # Errors
/// Names the destination and the word when options contradict each other (config.md, Mounts).
pub(crate) fn operation(
    mount: &Mount,
    bundle: &Path,
    hierarchy: Hierarchy,
    id_maps: &mut IdMaps,
) -> Result<MountOp> {
    let destination = mount.destination();
    let context = || format!("mounts: {}", destination.display());
    let none = Vec::new();
    let Options {
        change,
        recursive,
        propagation,
        bind,
        remount,
        id_map,
        maps,
        link,
        over_link,
        copy_up,
        superblock,
        mut parameters,
    } = Options::read(mount.options().as_ref().unwrap_or(&none)).with_context(context)?;
    let kind = mount.typ().as_deref().unwrap_or_default();
    let bind = bind
        .or((kind == "bind").then_some(Reach::One))
        .or((kind == "rbind").then_some(Reach::Tree));
    let read_only = change.set & attr::RDONLY != 0;
    let is_dev = relative(destination) == Path::new("dev");
    let mut op = MountOp {
        untrusted_target: relative(destination),
        what: What::Remount {
            parameters: Vec::new(),
        },
        change,
        recursive,
        propagation,
        id_map: id_maps
            .of(mount, (id_map, maps.as_deref()), bind.is_some())
            .with_context(context)?,
        copy_up,
        read_only_late: read_only && (kind == "tmpfs" || is_dev),
        over_link,
        ordinary_directory: false,
    };
    if (remount || bind.is_none()) && (over_link || link.is_some()) {
        bail!(
            "mounts: {}: copy-symlink, src-nofollow and dest-nofollow are options of bind mounts",
            destination.display()
        );
    }
    if remount {
        if bind.is_none() {
            parameters.extend(superblock);
        } else if !parameters.is_empty() {
            return Err(anyhow::anyhow!(NO_DATA)).with_context(context);
        }
        op.what = What::Remount { parameters };
        op.read_only_late = false;
        return Ok(op);
    }
    if let Some(reach) = bind {
        if !parameters.is_empty() {
            return Err(anyhow::anyhow!(NO_DATA)).with_context(context);
        }
        let Some(source) = mount.source() else {
            bail!(
                "mounts: {}: a bind mount needs a source",
                destination.display()
            )
        };
        op.what = What::Bind {
            source: bundle.join(source),
            reach,
            link: link.unwrap_or_default(),
        };
        op.read_only_late = read_only && is_dev;
        return Ok(op);
    }
    op.what = match kind {
        "" => bail!(
            "mounts: {}: a mount needs a type unless it is a bind mount",
            destination.display()
        ),
        "cgroup" | "cgroup2" => {
            // COMPAT: words meant for cgroup v1 (controller names, name=systemd, xattr) are dropped, as runc does.
            parameters
                .retain(|p| matches!(p.key.to_bytes(), b"nsdelegate" | b"memory_recursiveprot"));
            What::Cgroup {
                parameters,
                how: hierarchy,
            }
        }
        _ => {
            op.ordinary_directory = matches!(kind, "proc" | "sysfs");
            parameters.extend(superblock);
            if read_only && !ATTRIBUTE_ONLY.contains(&kind) {
                parameters.push(parameter("ro")?);
            }
            let source = mount
                .source()
                .clone()
                .unwrap_or_else(|| PathBuf::from(kind));
            let kind = CString::new(kind).with_context(context)?;
            What::Filesystem {
                kind,
                source: CString::new(source.into_os_string().into_vec()).with_context(context)?,
                parameters,
            }
        }
    };
    Ok(op)
}

/// The bind mounts of a configuration, without their id maps.
///
/// # Errors
/// As for [`operation`].
pub(crate) fn binds(spec: &Spec, bundle: &Path) -> Result<Vec<MountOp>> {
    let all = spec.mounts().iter().flatten().map(|mount| {
        let mut mount = mount.clone();
        let mut words = mount.options().clone().unwrap_or_default();
        words.retain(|word| with_maps(word).is_none());
        mount.set_options(Some(words));
        let mut any_maps = IdMaps {
            joined: true,
            ..IdMaps::default()
        };
        operation(&mount, bundle, Hierarchy::New, &mut any_maps)
    });
    let mut all = all.collect::<Result<Vec<_>>>()?;
    all.retain(|op| matches!(op.what, What::Bind { .. }));
    Ok(all)
}

impl What {
    pub(crate) fn is_tmpfs(&self) -> bool {
        matches!(self, Self::Filesystem { kind, .. } if kind.to_bytes() == b"tmpfs")
    }
}

/// Paths to mask or to make read-only, relative to the root, each once.
pub(crate) fn inner_paths(paths: Option<&Vec<String>>) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    let all = paths.into_iter().flatten();
    all.map(|path| relative(Path::new(path)))
        .filter(|path| seen.insert(path.clone()))
        .collect()
}

/// A path as a null-terminated string for the kernel.
pub(crate) fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("path {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, MountBuilder};

    fn op(kind: &str, options: &str) -> Result<MountOp> {
        let options: Vec<_> = options
            .split(',')
            .filter(|w| !w.is_empty())
            .map(str::to_owned)
            .collect();
        let mount = MountBuilder::default()
            .destination("/x")
            .typ(kind)
            .source("src")
            .options(options)
            .build()
            .unwrap();
        let mut id_maps = IdMaps::default();
        operation(&mount, Path::new("/bundle"), Hierarchy::New, &mut id_maps)
    }

    #[test]
    fn every_word_of_the_features_table_has_a_meaning() {
        use crate::spec::features::{BIND_OPTIONS, MOUNT_OPTIONS};
        for word in MOUNT_OPTIONS.iter().chain(BIND_OPTIONS) {
            assert!(meaning(word).is_some(), "{word}");
        }
    }

    #[test]
    fn attribute_words_set_and_clear() {
        for (words, set, clear) in [
            ("ro,nosuid", attr::RDONLY | attr::NOSUID, 0),
            ("ro,rw", 0, attr::RDONLY),
            ("rw,ro", attr::RDONLY, 0),
            ("noatime", attr::NOATIME, attr::ATIME & !attr::NOATIME),
            (
                "noatime,strictatime",
                attr::STRICTATIME,
                attr::ATIME & !attr::STRICTATIME,
            ),
            ("relatime", 0, attr::ATIME),
            ("nosymfollow,dev", attr::NOSYMFOLLOW, attr::NODEV),
        ] {
            let op = op("tmpfs", words).unwrap();
            // What is set must be among what is cleared only for the access time field, which the kernel wants whole.
            assert_eq!(
                (op.change.set, op.change.clear & !set),
                (set, clear),
                "{words}"
            );
        }
    }

    #[test]
    fn recursive_words_reach_the_tree() {
        let op = op("bind", "rbind,rro,rnosuid").unwrap();
        assert_eq!(
            op.what,
            What::Bind {
                source: "/bundle/src".into(),
                reach: Reach::Tree,
                link: Link::Followed,
            }
        );
        assert_eq!(op.recursive.set, attr::RDONLY | attr::NOSUID);
        assert_eq!(op.change, Change::default());
    }

    #[test]
    fn propagation_words_keep_their_order_and_reach() {
        let op = op("bind", "bind,rshared,slave").unwrap();
        let wanted = [
            (Reach::Tree, Change::propagation(libc::MS_SHARED)),
            (Reach::One, Change::propagation(libc::MS_SLAVE)),
        ];
        assert_eq!(op.propagation, wanted);
    }

    #[test]
    fn unknown_words_are_parameters_of_the_file_system() {
        let What::Filesystem { parameters, .. } =
            op("tmpfs", "nosuid,size=64k,mode=755,acl").unwrap().what
        else {
            panic!()
        };
        let words: Vec<_> = parameters.iter().map(|p| p.key.to_str().unwrap()).collect();
        assert_eq!(words, ["size", "mode", "acl"]);
    }

    #[test]
    fn a_word_may_be_a_list_of_parameters() {
        let list = |words: &str| {
            let mount = MountBuilder::default().destination("/x").typ("tmpfs");
            let mount = mount.options(vec![words.to_owned()]).build().unwrap();
            let mut id_maps = IdMaps::default();
            let op = operation(&mount, Path::new("/"), Hierarchy::New, &mut id_maps).unwrap();
            let What::Filesystem { parameters, .. } = op.what else {
                panic!()
            };
            let text = |p: Parameter| {
                let value = p.value.map(|v| format!("={}", v.to_str().unwrap()));
                p.key.to_str().unwrap().to_owned() + &value.unwrap_or_default()
            };
            parameters.into_iter().map(text).collect::<Vec<_>>()
        };
        for (word, wanted) in [
            ("size=1m,mode=700", &["size=1m", "mode=700"][..]),
            (",acl,,user_xattr,", &["acl", "user_xattr"]),
            ("mpol=bind:0,2,size=1m", &["mpol=bind:0,2", "size=1m"]),
            (
                r"lowerdir=/a\,b:/c,upperdir=/d",
                &[r"lowerdir=/a\,b:/c", "upperdir=/d"],
            ),
            (
                r#"context="u:r:t:s0:c1,c2",size=1m"#,
                &["context=u:r:t:s0:c1,c2", "size=1m"],
            ),
            (r#"key="a,b",ä=é,x"#, &[r#"key="a,b""#, "ä=é", "x"]),
        ] {
            assert_eq!(list(word), wanted, "{word}");
        }
    }

    #[test]
    fn a_bind_mount_with_parameters_is_refused() {
        let error = format!("{:#}", op("none", "bind,size=1k").unwrap_err());
        assert_eq!(
            error,
            "mounts: /x: bind mounts cannot have any filesystem-specific options applied"
        );
    }

    #[test]
    fn links_at_either_end_of_a_bind_mount_are_followed_unless_a_word_says_otherwise() {
        for (words, link, over_link) in [
            ("bind", Link::Followed, false),
            ("bind,src-nofollow", Link::Itself, false),
            ("rbind,copy-symlink,dest-nofollow", Link::Copied, true),
        ] {
            let op = op("none", words).unwrap();
            let What::Bind { link: found, .. } = op.what else {
                panic!()
            };
            assert_eq!((found, op.over_link), (link, over_link), "{words}");
        }
        for (kind, words) in [
            ("tmpfs", "dest-nofollow"),
            ("none", "bind,remount,copy-symlink"),
        ] {
            let error = op(kind, words).unwrap_err().to_string();
            assert!(error.ends_with("are options of bind mounts"), "{error}");
        }
    }

    #[test]
    fn maps_in_an_option_are_triples() {
        let range = |container, host, length| Range {
            container,
            host,
            length,
        };
        let container = Maps {
            uids: vec![range(0, 0, 1), range(1, 2, 1000)],
            gids: vec![range(0, 100, 10)],
        };
        let id_maps = IdMaps {
            container: Some(&container),
            ..IdMaps::default()
        };
        let maps = id_maps.read("uids=0-1-10#10-11-10;gids=0-100-10").unwrap();
        assert_eq!(maps.uids, [range(0, 1, 10), range(10, 11, 10)]);
        assert_eq!(maps.gids, [range(0, 100, 10)]);
        let maps = id_maps.read("uids=@1-3-10;gids=@5-0-10").unwrap();
        assert_eq!(
            (maps.uids, maps.gids),
            (vec![range(1, 4, 10)], vec![range(5, 100, 10)])
        );
        for (text, words) in [
            ("uids=0-1-10", "both uid and gid mappings"),
            ("uids=0-1;gids=0-1-1", "is not three numbers"),
            ("uids=0-1-0;gids=0-1-1", "is not three numbers"),
            ("uids=0-x-1;gids=0-1-1", "is not three numbers"),
            (
                "users=0-1-1;gids=0-1-1",
                "\"users\" is neither uids nor gids",
            ),
            ("0-1-1", "is neither uids=… nor gids=…"),
            (
                "uids=@0-0-2;gids=0-1-1",
                "does not map these ids in one piece",
            ),
            (
                "uids=@0-5000-1;gids=0-1-1",
                "does not map these ids in one piece",
            ),
        ] {
            let error = format!("{:#}", id_maps.read(text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
        let error = IdMaps::default()
            .read("uids=@0-0-1;gids=0-1-1")
            .unwrap_err();
        assert!(format!("{error:#}").contains("has no new user namespace"));
    }

    #[test]
    fn read_only_tmpfs_waits_until_the_end() {
        assert!(op("tmpfs", "ro").unwrap().read_only_late);
        assert!(!op("tmpfs", "").unwrap().read_only_late);
        assert!(!op("proc", "ro").unwrap().read_only_late);
    }

    fn range(host: u32) -> LinuxIdMapping {
        let range = LinuxIdMappingBuilder::default().container_id(0u32);
        range.host_id(host).size(1u32).build().unwrap()
    }

    fn maps(host: u32) -> Maps {
        let ranges = vec![Range::from(&range(host))];
        Maps {
            uids: ranges.clone(),
            gids: ranges,
        }
    }

    /// What maps a mount of this kind with these words and this host's id as its map (0: it has none), and all maps.
    fn id_map(
        (kind, words, host): (&str, &str, u32),
        container: Option<&Maps>,
        joined: bool,
    ) -> (Option<IdMap>, Vec<Maps>) {
        let mut mount = MountBuilder::default()
            .destination("/x")
            .typ(kind)
            .source("src")
            .options(words.split(',').map(str::to_owned).collect::<Vec<_>>())
            .build()
            .unwrap();
        if host != 0 {
            mount.set_uid_mappings(Some(vec![range(host)]));
            mount.set_gid_mappings(Some(vec![range(host)]));
        }
        let mut all = IdMaps {
            container,
            joined,
            distinct: vec![maps(99)],
        };
        let op = operation(&mount, Path::new("/"), Hierarchy::New, &mut all).unwrap();
        (op.id_map, all.distinct)
    }

    #[test]
    fn a_mount_is_mapped_by_its_own_maps_or_those_of_the_container() {
        let own = maps(5);
        for (mount, container, joined, wanted) in [
            (("bind", "bind", 0), Some(&own), false, None),
            (("bind", "bind", 7), None, false, Some((1, Reach::One))),
            (
                ("bind", "bind,ridmap", 7),
                None,
                true,
                Some((1, Reach::Tree)),
            ),
            (
                ("bind", "ridmap,idmap", 0),
                Some(&own),
                false,
                Some((1, Reach::One)),
            ),
            // Known already.
            (("bind", "idmap", 99), None, false, Some((0, Reach::One))),
            (("tmpfs", "idmap", 7), None, false, Some((1, Reach::One))),
            (
                ("tmpfs", "idmap", 7),
                Some(&own),
                false,
                Some((1, Reach::One)),
            ),
            // A file system of the container's user namespace has its ids from there.
            (("tmpfs", "idmap", 5), Some(&own), false, None),
            (("tmpfs", "idmap", 0), Some(&own), false, None),
            (("tmpfs", "idmap", 0), None, true, None),
        ] {
            let (found, all) = id_map(mount, container, joined);
            let by = |(place, reach)| IdMap {
                by: MappedBy::Maps(place),
                reach,
            };
            assert_eq!(found, wanted.map(by), "{mount:?}");
            let places = usize::from(wanted.is_some_and(|(place, _)| place == 1));
            assert_eq!(all.len(), 1 + places, "{mount:?}");
        }
        let (found, _) = id_map(("bind", "idmap", 0), None, true);
        assert_eq!(found.unwrap().by, MappedBy::Joined);
    }
}
