//! The rules a config.json must keep, one small function each, and the order in which runc would come upon them.
//!
//! Every rule is looked at, whatever the others found. Rules that need the host (does the root directory exist, is a
//! namespace file of the right type, is a joined network namespace our own) are not here.

mod execution;
mod mounts;
mod namespaces;
mod network;
mod process;
mod resources;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, Process, Spec,
};

pub(crate) use execution::{numbers_of_list, processors_of_list};
pub(crate) use mounts::may_replace_in_proc;
pub(crate) use namespaces::sysctl_path;

/// What the rules may depend on besides config.json.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Context {
    /// The caller's effective user is not root.
    pub(crate) rootless: bool,
    /// `--no-pivot`.
    pub(crate) no_pivot: bool,
    /// `--systemd-cgroup`.
    pub(crate) systemd_cgroup: bool,
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The member that breaks it, such as `process.cwd` or `mounts[3].options`.
    pub(crate) field: String,
    /// The rule, in one line; in runc's words where callers know those.
    pub(crate) rule: String,
    stage: Stage,
}

impl Fault {
    pub(super) fn new(stage: Stage, field: impl Into<String>, rule: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            rule: rule.into(),
            stage,
        }
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.rule)
    }
}

/// A mount as faults name it; becomes text only where there is a fault, for every start goes through the rules.
#[derive(Clone, Copy)]
struct NthMount(usize);

impl fmt::Display for NthMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mounts[{}]", self.0)
    }
}

impl From<NthMount> for String {
    fn from(mount: NthMount) -> Self {
        mount.to_string()
    }
}

// COMPAT: the order of runc's own steps, so that the first fault of a list is the one runc would stop at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Load,
    Root,
    Devices,
    DeviceRules,
    Propagation,
    Namespaces,
    Seccomp,
    Cgroups,
    NetDevices,
    Uts,
    Security,
    NamespaceUse,
    Sysctl,
    IntelRdt,
    Rootless,
    Mounts,
    Scheduler,
    IoPriority,
    MemoryPolicy,
    /// What runc checks when it makes the process, or leaves to the kernel.
    Process,
    /// What runc finds out in the container's first process.
    Init,
}

/// Every rule that `spec` breaks, together with the faults found in it before, in runc's order.
pub(super) fn check(spec: &Spec, how: &Context, faults: Vec<Fault>) -> Vec<Fault> {
    let mut check = Check {
        spec,
        how,
        namespaces: Namespaces::of(spec),
        stage: Stage::Load,
        faults,
    };
    for (stage, rule) in RULES {
        check.stage = *stage;
        rule(&mut check);
    }
    let mut faults = check.faults;
    faults.sort_by_key(Fault::stage);
    faults
}

type Rule = fn(&mut Check<'_>);

#[rustfmt::skip]
const RULES: &[(Stage, Rule)] = &[
    (Stage::Load, process::process_exists),
    (Stage::Load, process::cwd_is_absolute),
    (Stage::Load, process::args_has_one),
    (Stage::Root, process::root_exists),
    (Stage::Devices, resources::devices_are_devices),
    (Stage::Devices, resources::device_paths_are_single),
    (Stage::DeviceRules, resources::device_rules_are_complete),
    (Stage::Propagation, namespaces::propagation_is_known),
    (Stage::Namespaces, namespaces::namespaces_are_single),
    (Stage::Namespaces, namespaces::namespace_paths_are_absolute),
    (Stage::Namespaces, namespaces::user_namespace_has_maps),
    (Stage::Namespaces, namespaces::id_maps_are_sound),
    (Stage::Seccomp, resources::seccomp_default_is_no_notify),
    (Stage::Seccomp, resources::seccomp_rules_are_about_calls),
    (Stage::Seccomp, resources::seccomp_notifies_somebody_who_can_answer),
    (Stage::Cgroups, resources::systemd_path_has_three_parts),
    (Stage::Cgroups, resources::memory_values_are_amounts),
    (Stage::Cgroups, resources::swap_fits_memory),
    (Stage::Cgroups, resources::limits_of_devices_say_something),
    (Stage::Cgroups, resources::packets_have_no_classes),
    (Stage::Cgroups, resources::unified_keys_are_file_names),
    (Stage::NetDevices, network::net_devices_have_a_namespace),
    (Stage::NetDevices, network::net_devices_have_names),
    (Stage::Uts, process::names_have_their_namespace),
    (Stage::Security, namespaces::restricted_paths_have_their_namespace),
    (Stage::Security, namespaces::restricted_paths_are_absolute),
    (Stage::Security, namespaces::the_root_is_not_masked),
    (Stage::NamespaceUse, namespaces::maps_have_their_namespace),
    (Stage::NamespaceUse, namespaces::offsets_have_their_namespace),
    (Stage::NamespaceUse, namespaces::offsets_name_a_clock),
    (Stage::Sysctl, namespaces::sysctls_belong_to_the_container),
    (Stage::IntelRdt, resources::rdt_class_is_a_name),
    (Stage::IntelRdt, resources::rdt_schemata_are_lines),
    (Stage::Rootless, namespaces::rootless_has_a_user_namespace),
    (Stage::Rootless, namespaces::rootless_mount_owners_are_mapped),
    (Stage::Mounts, mounts::destinations_are_allowed),
    (Stage::Mounts, mounts::mounts_have_what_they_need),
    (Stage::Mounts, mounts::binds_have_no_data),
    (Stage::Mounts, mounts::only_a_tmpfs_is_filled),
    (Stage::Mounts, mounts::id_mapped_mounts_can_be),
    (Stage::Mounts, mounts::id_mapped_mounts_have_both_maps),
    (Stage::Mounts, mounts::id_maps_of_mounts_are_sound),
    (Stage::Scheduler, execution::scheduler_has_what_its_policy_takes),
    (Stage::IoPriority, execution::io_priority_is_a_level),
    (Stage::MemoryPolicy, execution::memory_policy_has_its_nodes),
    (Stage::Process, execution::affinity_is_of_processors),
    (Stage::Process, process::rlimits_are_single_and_ordered),
    (Stage::Process, process::ids_are_ids),
    (Stage::Process, process::ids_are_mapped),
    (Stage::Process, process::rootless_has_no_groups),
    (Stage::Process, process::numbers_are_in_range),
    (Stage::Init, process::env_is_an_environment),
    (Stage::Init, process::hooks_can_run),
    (Stage::Init, process::annotations_have_keys),
    (Stage::Init, process::version_is_known),
];

struct Check<'a> {
    spec: &'a Spec,
    how: &'a Context,
    namespaces: Namespaces<'a>,
    stage: Stage,
    faults: Vec<Fault>,
}

impl<'a> Check<'a> {
    fn say(&mut self, field: impl Into<String>, rule: impl Into<String>) {
        self.faults.push(Fault::new(self.stage, field, rule));
    }

    fn process(&self) -> Option<&'a Process> {
        self.spec.process().as_ref()
    }

    fn linux(&self) -> Option<&'a oci_spec::runtime::Linux> {
        self.spec.linux().as_ref()
    }

    fn resources(&self) -> Option<&'a LinuxResources> {
        self.linux()?.resources().as_ref()
    }

    fn mounts(&self) -> impl Iterator<Item = (NthMount, &'a Mount)> + use<'a> {
        let mounts = self.spec.mounts().iter().flatten().enumerate();
        mounts.map(|(i, mount)| (NthMount(i), mount))
    }

    fn uid_map(&self) -> &'a [LinuxIdMapping] {
        let map = self.linux().and_then(|linux| linux.uid_mappings().as_ref());
        map.map_or(&[], Vec::as_slice)
    }

    fn gid_map(&self) -> &'a [LinuxIdMapping] {
        let map = self.linux().and_then(|linux| linux.gid_mappings().as_ref());
        map.map_or(&[], Vec::as_slice)
    }

    /// Whether the container's user namespace is new, so that the maps of config.json decide who exists in it.
    fn maps_decide(&self) -> bool {
        self.namespaces.creates(LinuxNamespaceType::User)
            && !self.uid_map().is_empty()
            && !self.gid_map().is_empty()
    }
}

#[derive(Clone, Copy)]
struct Namespaces<'a>(&'a [LinuxNamespace]);

impl<'a> Namespaces<'a> {
    fn of(spec: &'a Spec) -> Self {
        let list = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
        Self(list.map_or(&[], Vec::as_slice))
    }

    fn get(self, kind: LinuxNamespaceType) -> Option<&'a LinuxNamespace> {
        self.0.iter().find(|namespace| namespace.typ() == kind)
    }

    fn has(self, kind: LinuxNamespaceType) -> bool {
        self.get(kind).is_some()
    }

    fn creates(self, kind: LinuxNamespaceType) -> bool {
        self.get(kind).is_some_and(|n| path_of(n).is_none())
    }

    fn joins(self, kind: LinuxNamespaceType) -> bool {
        self.get(kind).is_some_and(|n| path_of(n).is_some())
    }
}

fn path_of(namespace: &LinuxNamespace) -> Option<&Path> {
    let path = namespace.path().as_deref()?;
    (path != "").then_some(path)
}

/// The specification's word for a type.
fn word(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

/// Whether `id` exists in a user namespace with this map.
fn maps(map: &[LinuxIdMapping], id: u32) -> bool {
    map.iter().any(|range| {
        id.checked_sub(range.container_id())
            .is_some_and(|offset| offset < range.size())
    })
}

/// The map in one order every time, for the reader's sake.
fn sorted<V>(map: Option<&HashMap<String, V>>) -> BTreeMap<&String, &V> {
    map.into_iter().flatten().collect()
}

/// The path as seen from the container's root, without `.`, `..` and doubled slashes; symlinks are not known here.
fn inside(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}
