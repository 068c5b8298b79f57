//! What a bundle means on this host: words turned into flags, choices made, nothing done yet.
//!
//! A [`Plan`] is a pure function of the specification, the options and the host's facts. The child sees only the plan.

pub(crate) mod devices;
pub(crate) mod execution;
pub(crate) mod extensions;
pub(crate) mod host;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod process;
pub(crate) mod seccomp;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;
use oci_spec::runtime::{
    Hooks, Linux, LinuxIntelRdt, LinuxNamespaceType as Kind, LinuxNetDevice, LinuxResources,
    LinuxTimeOffset, Mount, Spec,
};

use crate::idmap::{self, Maps, Range};
use crate::spec::sysctl_path;
use crate::sys::mount::{Change, Reach};
use crate::sys::path::relative;
use devices::{Making, Node};
use execution::Execution;
use extensions::Extensions;
use host::Host;
use mounts::{Hierarchy, IdMaps, MountOp, What, inner_paths};
use namespaces::{Namespaces, Origin};
use process::{ALL_CAPABILITIES, Process};

/// How the container's root becomes `/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// pivot_root(2), the old root detached.
    Pivot,
    /// `--no-pivot`: the root is moved over `/` (a ramdisk cannot be pivoted away).
    Move,
    /// No new mount namespace: chroot(2) only.
    Chroot,
}

/// The root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    /// Absolute, on the host.
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) switch: Switch,
    /// The container has the caller's mount namespace, or joins one, and something is mounted or changed for it there: the
    /// root is a mount of its own, which carries the others and goes with the container.
    pub(crate) carrier: bool,
    /// Propagation of all mounts while the container is set up.
    pub(crate) setup: (Reach, Change),
    /// Propagation of the new root afterwards, where the bundle asks for one that the set-up did not keep.
    pub(crate) finally: Option<(Reach, Change)>,
}

impl Root {
    /// Whether some of the mounts of the new namespace stay peers of the host's meanwhile, so that a mount or unmount
    /// there would be one on the host.
    pub(crate) fn reaches_host(&self) -> bool {
        let (reach, change) = self.setup;
        reach == Reach::One || change.propagation == libc::MS_SHARED
    }
}

/// What the container's cgroup is to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Control {
    /// `linux.cgroupsPath` as it was written.
    pub(crate) path: Option<PathBuf>,
    pub(crate) resources: LinuxResources,
    /// Not for a rootless caller, who may not load the program that restricts access to devices.
    pub(crate) restrict_devices: bool,
    /// The host's uid that may manage the cgroup from inside: given only to a container with a cgroup namespace of its
    /// own and a writable mount of the hierarchy.
    pub(crate) delegate_to: Option<Uid>,
    pub(crate) rdt: Option<Rdt>,
}

/// The container's place in a resctrl file system.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rdt {
    /// The container's id, under which it has what is its own there.
    pub(crate) id: String,
    pub(crate) wanted: LinuxIntelRdt,
}

/// What the caller asks for besides the bundle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) id: String,
    pub(crate) no_pivot: bool,
    pub(crate) no_new_keyring: bool,
    /// Descriptors from 3 on that the payload inherits.
    pub(crate) inherited_fds: u32,
    /// How many of them are sockets of the service manager's (sd_listen_fds(3)).
    pub(crate) listen_fds: u32,
    /// The root's directory, absolute and without links.
    pub(crate) root: PathBuf,
}

/// A network device of the caller's that becomes the container's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetDevice {
    pub(crate) name: String,
    /// With `%d` for a number that the kernel chooses. None: it keeps its name.
    pub(crate) new_name: Option<String>,
}

impl NetDevice {
    /// Its name in the container, or the pattern of that.
    pub(crate) fn inside(&self) -> &str {
        self.new_name.as_deref().unwrap_or(&self.name)
    }
}

/// SELinux contexts (selinux(8)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selinux {
    /// Of the payload, and of its session keyring.
    pub(crate) process: Option<String>,
    /// Of the files of new file systems.
    pub(crate) mounts: Option<String>,
}

impl Selinux {
    /// # Errors
    /// A context is given, and the kernel has no SELinux.
    fn new(spec: &Spec, linux: &Linux, host: &Host) -> Result<Self> {
        let process = spec.process().as_ref();
        let contexts = Self {
            process: process.and_then(|process| process.selinux_label().clone()),
            mounts: linux.mount_label().clone(),
        };
        // COMPAT: runc's words for the first; it passes over the second.
        let (field, what) = match &contexts {
            Self {
                process: Some(_), ..
            } => ("process.selinuxLabel", "selinux"),
            Self {
                mounts: Some(_), ..
            } => ("linux.mountLabel", "mount"),
            _ => return Ok(contexts),
        };
        if !host.has_selinux() {
            bail!(
                "{field}: {what} label is specified in config, but selinux is disabled or not supported"
            );
        }
        Ok(contexts)
    }
}

/// The whole intention for one container process.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) namespaces: Namespaces,
    /// Maps to write for a new user namespace.
    pub(crate) maps: Option<Maps>,
    /// Maps that a joined user namespace has to have, where the bundle names any.
    pub(crate) expected_maps: Option<Maps>,
    /// Lines for timens_offsets (time_namespaces(7)).
    pub(crate) time_offsets: String,
    pub(crate) root: Root,
    pub(crate) mounts: Vec<MountOp>,
    /// The maps of id-mapped mounts, each pair once; each needs a user namespace while the mounts are made.
    pub(crate) id_maps: Vec<Maps>,
    /// Whether the parent clones the sources of bind mounts and of the root, because the child will have lost the
    /// rights or the namespace to reach them.
    pub(crate) parent_clones_sources: bool,
    pub(crate) nodes: Vec<Node>,
    pub(crate) making: Making,
    /// Whether /dev is filled at all: not where the bundle binds one of its own there.
    pub(crate) fill_dev: bool,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) read_only: Vec<PathBuf>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    /// Files below /proc/sys, and what is written there.
    pub(crate) sysctl: Vec<(PathBuf, String)>,
    /// In the order of their names.
    pub(crate) net_devices: Vec<NetDevice>,
    pub(crate) keyring: Option<std::ffi::CString>,
    pub(crate) execution: Execution,
    /// The AppArmor profile of the payload.
    pub(crate) apparmor: Option<String>,
    pub(crate) selinux: Selinux,
    pub(crate) process: Process,
    /// Whether the process may be looked into once it only waits for the word to start: by an ordinary user, who could not
    /// enter the created container otherwise. Nobody else can then, for its user and pid namespaces are new.
    pub(crate) open_to_its_owner: bool,
    pub(crate) inherited_fds: u32,
    pub(crate) hooks: Hooks,
    /// Where they write, stdout and stderr; none: into the message about their failure.
    pub(crate) hook_output: [Option<PathBuf>; 2],
    /// Who answers what the seccomp filter notifies of; none where nothing does.
    pub(crate) agent: Option<seccomp::Agent>,
    /// Of the annotations: what is not in another member already.
    pub(crate) extensions: Extensions,
    pub(crate) control: Control,
    /// What is not as asked for, but goes on.
    pub(crate) warnings: Vec<String>,
}

impl Plan {
    /// The plan for a container's first process.
    ///
    /// # Errors
    /// Names the field when the bundle asks for what cannot be.
    pub(crate) fn init(spec: &Spec, bundle: &Path, options: &Options, host: &Host) -> Result<Self> {
        let absent;
        let linux = match spec.linux() {
            Some(linux) => linux,
            None => {
                absent = Linux::default();
                &absent
            }
        };
        let process = spec
            .process()
            .as_ref()
            .context("process property must not be empty")?;
        let extensions = Extensions::new(spec.annotations().as_ref())?;
        let namespaces = Namespaces::new(linux.namespaces().as_deref().unwrap_or_default());
        let user_namespace = namespaces.has(Kind::User);
        let available = if user_namespace {
            ALL_CAPABILITIES
        } else {
            host.capabilities
        };
        let apparmor = process.apparmor_profile().clone();
        if apparmor.is_some() && !host.has_apparmor() {
            bail!("process.apparmorProfile: apparmor: config provided but apparmor not supported");
        }
        let selinux = Selinux::new(spec, linux, host)?;
        let (mut process, warnings) = Process::new(process, available)?;
        if extensions.keep_groups {
            process.groups = None;
        }
        if options.listen_fds > 0 {
            process.env.push(std::ffi::CString::new(format!(
                "LISTEN_FDS={}",
                options.listen_fds
            ))?);
            process.env.push(c"LISTEN_PID=1".to_owned());
        }
        let given = Maps {
            uids: linux
                .uid_mappings()
                .iter()
                .flatten()
                .map(Range::from)
                .collect(),
            gids: linux
                .gid_mappings()
                .iter()
                .flatten()
                .map(Range::from)
                .collect(),
        };
        let (maps, expected_maps) = match namespaces.origin(Kind::User) {
            Origin::New => (Some(given), None),
            Origin::Joined if given != Maps::default() => (None, Some(given)),
            Origin::Joined | Origin::Inherited => (None, None),
        };
        check_mapped(&process, maps.as_ref())?;
        let rootless = host.rootless();
        let own_cgroup_namespace = namespaces.has(Kind::Cgroup);
        let hierarchy = match (own_cgroup_namespace, rootless) {
            (true, _) => Hierarchy::New,
            (false, false) => Hierarchy::Whole,
            (false, true) => Hierarchy::WholeReadOnly,
        };
        let mut id_maps = IdMaps {
            container: maps.as_ref(),
            joined: namespaces.origin(Kind::User) == Origin::Joined,
            distinct: Vec::new(),
        };
        let mounts = spec
            .mounts()
            .iter()
            .flatten()
            .map(|mount| {
                let mut op = mounts::operation(mount, bundle, hierarchy, &mut id_maps)?;
                op.label(selinux.mounts.as_deref(), extensions.label_option)?;
                Ok(op)
            })
            .collect::<Result<Vec<_>>>()?;
        let masked = inner_paths(linux.masked_paths().as_ref());
        let read_only = inner_paths(linux.readonly_paths().as_ref());
        let covers = !mounts.is_empty() || !masked.is_empty() || !read_only.is_empty();
        let mut root = root(spec, linux, options, &namespaces, covers)?;
        if root.carrier && (rootless || user_namespace) {
            // The caller's mounts belong to its user namespace.
            if namespaces.origin(Kind::Mount) == Origin::Inherited {
                bail!(
                    "mounts: in a user namespace they need a mount namespace of the container's own (linux.namespaces: mount)"
                );
            }
            // Those of a namespace that is joined belong to that one's: there it cannot be made from here.
            root.carrier = false;
        }
        let on_dev = |op: &&MountOp| op.untrusted_target == Path::new("dev");
        let fill_dev = match mounts.iter().find(on_dev) {
            Some(op) => !matches!(op.what, What::Bind { .. }),
            // Without a mount they would be made in the bundle's own, which is nothing new where there is a mount namespace.
            None => namespaces.origin(Kind::Mount) != Origin::Inherited,
        };
        let id_maps = id_maps.distinct;
        let resources = linux.resources().clone().unwrap_or_default();
        let delegate_to = delegate(spec, own_cgroup_namespace, maps.as_ref(), process.uid);
        let keyring = (!options.no_new_keyring)
            .then(|| std::ffi::CString::new(format!("_ses.{}", options.id)))
            .transpose()
            .context("container id")?;
        Ok(Self {
            root,
            // Also where that is root of a user namespace, as which Podman calls for an ordinary user.
            parent_clones_sources: host.uid.is_root()
                && (user_namespace || namespaces.origin(Kind::Mount) == Origin::Joined),
            time_offsets: time_offsets(linux.time_offsets().iter().flatten()),
            nodes: devices::nodes(linux.devices().as_deref().unwrap_or_default())?,
            making: if user_namespace || host.in_user_namespace {
                Making::Bind
            } else {
                Making::Node
            },
            masked,
            read_only,
            hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
            domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
            execution: Execution::new(spec),
            apparmor,
            selinux,
            sysctl: sysctl(linux.sysctl().iter().flatten()),
            net_devices: net_devices(linux.net_devices().iter().flatten()),
            open_to_its_owner: rootless
                && namespaces.is_new(Kind::User)
                && namespaces.is_new(Kind::Pid),
            inherited_fds: options.inherited_fds,
            agent: linux.seccomp().as_ref().and_then(seccomp::agent),
            extensions,
            hooks: spec.hooks().clone().unwrap_or_default(),
            hook_output: extensions::hook_output(
                |name| spec.annotations().as_ref()?.get(name),
                bundle,
            ),
            control: Control {
                path: linux.cgroups_path().clone(),
                resources,
                restrict_devices: !rootless,
                delegate_to,
                rdt: linux.intel_rdt().clone().map(|wanted| Rdt {
                    id: options.id.clone(),
                    wanted,
                }),
            },
            namespaces,
            maps,
            expected_maps,
            mounts,
            id_maps,
            fill_dev,
            keyring,
            process,
            warnings,
        })
    }
}

impl Plan {
    /// The plan for a process more in a running container: `spec` is the container's configuration with this process in
    /// it, `differing` the namespaces in which the container's init differs from the caller.
    ///
    /// # Errors
    /// As for [`Plan::init`].
    pub(crate) fn join(
        spec: &Spec,
        options: &Options,
        differing: &[Kind],
        host: &Host,
    ) -> Result<Self> {
        let process = spec
            .process()
            .as_ref()
            .context("process property must not be empty")?;
        let extensions = Extensions::new(spec.annotations().as_ref())?;
        let namespaces = Namespaces::of_container(differing);
        let user_namespace = namespaces.has(Kind::User);
        let available = if user_namespace {
            ALL_CAPABILITIES
        } else {
            host.capabilities
        };
        let apparmor = process
            .apparmor_profile()
            .clone()
            .filter(|profile| !profile.is_empty());
        if apparmor.is_some() && !host.has_apparmor() {
            bail!("process.apparmorProfile: apparmor: config provided but apparmor not supported");
        }
        let absent = Linux::default();
        let linux = spec.linux().as_ref().unwrap_or(&absent);
        let selinux = Selinux {
            mounts: None,
            ..Selinux::new(spec, linux, host)?
        };
        let (mut process, warnings) = Process::new(process, available)?;
        if extensions.keep_groups {
            process.groups = None;
        }
        let keyring = (!options.no_new_keyring)
            .then(|| std::ffi::CString::new(format!("_ses.{}", options.id)))
            .transpose()
            .context("container id")?;
        Ok(Self {
            // The container's root as it is, and nothing mounted over its console.
            root: Root {
                path: options.root.clone(),
                read_only: false,
                switch: Switch::Chroot,
                carrier: false,
                setup: (Reach::Tree, Change::propagation(libc::MS_SLAVE)),
                finally: None,
            },
            namespaces,
            maps: None,
            expected_maps: None,
            time_offsets: String::new(),
            mounts: Vec::new(),
            id_maps: Vec::new(),
            parent_clones_sources: false,
            nodes: Vec::new(),
            making: Making::Bind,
            fill_dev: false,
            masked: Vec::new(),
            read_only: Vec::new(),
            hostname: None,
            domainname: None,
            sysctl: Vec::new(),
            net_devices: Vec::new(),
            keyring,
            execution: Execution::of_joining(spec),
            apparmor,
            selinux,
            process,
            open_to_its_owner: false,
            inherited_fds: options.inherited_fds,
            hooks: Hooks::default(),
            hook_output: [None, None],
            agent: linux.seccomp().as_ref().and_then(seccomp::agent),
            extensions,
            control: Control {
                path: None,
                resources: LinuxResources::default(),
                restrict_devices: false,
                delegate_to: None,
                rdt: None,
            },
            warnings,
        })
    }
}

fn check_mapped(process: &Process, maps: Option<&Maps>) -> Result<()> {
    let Some(maps) = maps else { return Ok(()) };
    for (what, id, ranges) in [
        ("setuid", process.uid, &maps.uids),
        ("setgid", process.gid, &maps.gids),
    ] {
        if idmap::to_host(ranges, id).is_none() {
            let kind = &what[3..];
            bail!("process.user: cannot {what} to unmapped {kind} {id} in user namespace");
        }
    }
    Ok(())
}

fn root(
    spec: &Spec,
    linux: &Linux,
    options: &Options,
    namespaces: &Namespaces,
    covers: bool,
) -> Result<Root> {
    let root = spec.root().as_ref().context("root must be specified")?;
    let word = linux.rootfs_propagation().as_deref().unwrap_or_default();
    let (reach, propagation) = match word {
        "" => (Reach::Tree, libc::MS_SLAVE),
        word => {
            let (reach, plain) = match word.strip_prefix('r') {
                Some(rest) => (Reach::Tree, rest),
                None => (Reach::One, word),
            };
            let flag = mounts::propagation(plain).with_context(|| {
                format!("linux.rootfsPropagation: {word:?} is not a propagation")
            })?;
            (reach, flag)
        }
    };
    let switch = match namespaces.origin(Kind::Mount) {
        Origin::New if options.no_pivot => Switch::Move,
        Origin::New => Switch::Pivot,
        Origin::Joined | Origin::Inherited => Switch::Chroot,
    };
    let wanted = (reach, Change::propagation(propagation));
    // An unbindable tree could not be bound below itself, so that comes only in the end.
    let setup = if propagation == libc::MS_UNBINDABLE {
        (Reach::Tree, Change::propagation(libc::MS_PRIVATE))
    } else {
        wanted
    };
    let read_only = root.readonly().unwrap_or(false);
    let kept = namespaces.origin(Kind::Mount) == Origin::Inherited
        || word.is_empty()
        || propagation == libc::MS_PRIVATE;
    Ok(Root {
        path: options.root.clone(),
        read_only,
        switch,
        carrier: switch == Switch::Chroot && (covers || read_only || !kept),
        setup,
        finally: (!kept).then_some(wanted),
    })
}

/// Whom the cgroup is given to (config-linux.md, Cgroup ownership; cgroups(7), delegation): where it is mounted read/write
/// in its usual place.
fn delegate(spec: &Spec, own_namespace: bool, maps: Option<&Maps>, uid: u32) -> Option<Uid> {
    let writable = |mount: &Mount| {
        let mut words = mount.options().iter().flatten();
        matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
            && mount.source().as_deref() == Some(Path::new("cgroup"))
            && relative(mount.destination()) == Path::new("sys/fs/cgroup")
            && !words.any(|word| word == "ro" || word == "rro")
    };
    let host = maps.map_or(Some(uid), |maps| idmap::to_host(&maps.uids, uid))?;
    let mut mounts = spec.mounts().iter().flatten();
    (own_namespace && mounts.any(writable)).then(|| Uid::from_raw(host))
}

fn time_offsets<'a>(offsets: impl Iterator<Item = (&'a String, &'a LinuxTimeOffset)>) -> String {
    offsets.fold(String::new(), |text, (clock, offset)| {
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        format!("{text}{clock} {seconds} {nanoseconds}\n")
    })
}

/// Files below /proc/sys, in the order of their names.
fn sysctl<'a>(settings: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<(PathBuf, String)> {
    let file = |(name, value): (&String, &String)| Some((sysctl_path(name)?.into(), value.clone()));
    let mut files: Vec<_> = settings.filter_map(file).collect();
    files.sort();
    files
}

fn net_devices<'a>(
    devices: impl Iterator<Item = (&'a String, &'a LinuxNetDevice)>,
) -> Vec<NetDevice> {
    let mut devices: Vec<_> = devices
        .map(|(name, device)| NetDevice {
            name: name.clone(),
            new_name: device.name().clone().filter(|name| !name.is_empty()),
        })
        .collect();
    devices.sort_by(|one, other| one.name.cmp(&other.name));
    devices
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn time_offsets_are_lines_of_clock_seconds_and_nanoseconds() {
        let offset = oci_spec::runtime::LinuxTimeOffsetBuilder::default()
            .secs(-7i64)
            .build()
            .unwrap();
        let offsets = HashMap::from([("boottime".to_owned(), offset)]);
        assert_eq!(time_offsets(offsets.iter()), "boottime -7 0\n");
    }
}
