//! The rules a config.json must keep, one small function each, and the order in which runc would come upon them.
//!
//! Every rule is looked at, whatever the others found. Rules that need the host (does the root directory exist, is a
//! namespace file of the right type, is a joined network namespace our own) are not here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    Hook, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType,
    LinuxResources, LinuxSeccompAction, Mount, Process, Spec,
};

use super::features::{ABSENT, MOUNT_OPTIONS, OCI_VERSION_MAX};

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

/// Every rule that `spec` breaks, in runc's order.
pub(crate) fn check(spec: &Spec, how: &Context) -> Vec<Fault> {
    check_with(spec, how, Vec::new())
}

/// As [`check`], with the faults found before.
pub(super) fn check_with(spec: &Spec, how: &Context, faults: Vec<Fault>) -> Vec<Fault> {
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

#[rustfmt::skip]
const RULES: &[(Stage, fn(&mut Check<'_>))] = &[
    (Stage::Load, process_exists),
    (Stage::Load, cwd_is_absolute),
    (Stage::Load, args_has_one),
    (Stage::Root, root_exists),
    (Stage::Devices, devices_are_devices),
    (Stage::Devices, device_paths_are_single),
    (Stage::DeviceRules, device_rules_are_complete),
    (Stage::Propagation, propagation_is_known),
    (Stage::Namespaces, namespaces_are_single),
    (Stage::Namespaces, namespace_paths_are_absolute),
    (Stage::Namespaces, user_namespace_has_maps),
    (Stage::Namespaces, id_maps_are_sound),
    (Stage::Seccomp, seccomp_default_is_no_notify),
    (Stage::Cgroups, systemd_path_has_three_parts),
    (Stage::Cgroups, swap_fits_memory),
    (Stage::Cgroups, unified_keys_are_file_names),
    (Stage::Uts, names_have_their_namespace),
    (Stage::Security, restricted_paths_have_their_namespace),
    (Stage::Security, restricted_paths_are_absolute),
    (Stage::NamespaceUse, maps_have_their_namespace),
    (Stage::NamespaceUse, offsets_have_their_namespace),
    (Stage::NamespaceUse, offsets_name_a_clock),
    (Stage::Sysctl, sysctls_belong_to_the_container),
    (Stage::Rootless, rootless_has_a_user_namespace),
    (Stage::Rootless, rootless_mount_owners_are_mapped),
    (Stage::Mounts, destinations_are_allowed),
    (Stage::Mounts, mounts_have_what_they_need),
    (Stage::Mounts, binds_have_no_data),
    (Stage::Mounts, id_mapped_mounts_have_both_maps),
    (Stage::Process, rlimits_are_single_and_ordered),
    (Stage::Process, ids_are_ids),
    (Stage::Process, ids_are_mapped),
    (Stage::Process, rootless_has_no_groups),
    (Stage::Process, numbers_are_in_range),
    (Stage::Init, env_is_an_environment),
    (Stage::Init, hooks_can_run),
    (Stage::Init, annotations_have_keys),
    (Stage::Init, version_is_known),
    // Each at its own stage, after the rules that no build could bend.
    (Stage::Init, nothing_is_asked_that_is_absent),
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

    fn mounts(&self) -> impl Iterator<Item = (String, &'a Mount)> + use<'a> {
        let mounts = self.spec.mounts().iter().flatten().enumerate();
        mounts.map(|(i, mount)| (format!("mounts[{i}]"), mount))
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

// config.md, process.

fn process_exists(check: &mut Check<'_>) {
    if check.process().is_none() {
        check.say("process", "process property must not be empty");
    }
}

fn cwd_is_absolute(check: &mut Check<'_>) {
    match check.process().map(Process::cwd) {
        Some(cwd) if cwd == "" => check.say("process.cwd", "Cwd property must not be empty"),
        Some(cwd) if !cwd.is_absolute() => {
            check.say("process.cwd", "Cwd must be an absolute path");
        }
        _ => {}
    }
}

fn args_has_one(check: &mut Check<'_>) {
    if check
        .process()
        .is_some_and(|p| p.args().as_ref().is_none_or(Vec::is_empty))
    {
        check.say("process.args", "args must not be empty");
    }
}

/// IEEE Std 1003.1 `environ`, as config.md asks; and POSIX process: a variable has a name.
fn env_is_an_environment(check: &mut Check<'_>) {
    let env = check.process().and_then(|process| process.env().as_ref());
    for (i, variable) in env.into_iter().flatten().enumerate() {
        let rule = match variable.find('=') {
            None => "invalid environment variable: missing '='",
            Some(0) => "invalid environment variable: name cannot be empty",
            Some(_) => continue,
        };
        check.say(format!("process.env[{i}]"), rule);
    }
}

/// config.md, POSIX process: duplicated types are an error. setrlimit(2): a soft limit above the hard one is EINVAL.
fn rlimits_are_single_and_ordered(check: &mut Check<'_>) {
    let rlimits = check
        .process()
        .and_then(|process| process.rlimits().as_ref());
    let mut seen = BTreeSet::new();
    for (i, rlimit) in rlimits.into_iter().flatten().enumerate() {
        let name = rlimit.typ().to_string();
        if rlimit.soft() > rlimit.hard() {
            let rule = format!(
                "{name} soft limit {} is above its hard limit {}",
                rlimit.soft(),
                rlimit.hard()
            );
            check.say(format!("process.rlimits[{i}]"), rule);
        }
        let rule = format!("duplicated rlimit {name}");
        if !seen.insert(name) {
            check.say(format!("process.rlimits[{i}].type"), rule);
        }
    }
}

/// The ids of `process.user`, each with its field name and whether it is a user id.
fn ids(process: &Process) -> impl Iterator<Item = (String, u32, bool)> {
    let user = process.user();
    let groups = user.additional_gids().iter().flatten().enumerate();
    [
        ("process.user.uid".to_string(), user.uid(), true),
        ("process.user.gid".to_string(), user.gid(), false),
    ]
    .into_iter()
    .chain(groups.map(|(i, gid)| (format!("process.user.additionalGids[{i}]"), *gid, false)))
}

/// setuid(2): the largest number stands for "no change" and is nobody's id.
fn ids_are_ids(check: &mut Check<'_>) {
    for (field, id, _) in check.process().into_iter().flat_map(ids) {
        if id == u32::MAX {
            check.say(field, format!("{id} is not a valid id"));
        }
    }
}

fn ids_are_mapped(check: &mut Check<'_>) {
    if !check.maps_decide() {
        return;
    }
    for (field, id, user) in check.process().into_iter().flat_map(ids) {
        let (call, map) = match user {
            true => ("setuid to unmapped uid", check.uid_map()),
            false => ("setgid to unmapped gid", check.gid_map()),
        };
        // A map without root has been reported as such.
        if ![0, u32::MAX].contains(&id) && !maps(map, id) {
            check.say(field, format!("cannot {call} {id} in user namespace"));
        }
    }
}

fn maps(map: &[LinuxIdMapping], id: u32) -> bool {
    map.iter().any(|range| {
        id.checked_sub(range.container_id())
            .is_some_and(|offset| offset < range.size())
    })
}

fn rootless_has_no_groups(check: &mut Check<'_>) {
    let groups = check
        .process()
        .and_then(|p| p.user().additional_gids().as_ref());
    if check.how.rootless && groups.is_some_and(|groups| !groups.is_empty()) {
        check.say(
            "process.user.additionalGids",
            "cannot set any additional groups in a rootless container",
        );
    }
}

/// umask(2), proc(5) on oom_score_adj, ioctl_tty(2) on window sizes.
fn numbers_are_in_range(check: &mut Check<'_>) {
    let Some(process) = check.process() else {
        return;
    };
    if let Some(umask) = process.user().umask().filter(|umask| *umask > 0o777) {
        check.say(
            "process.user.umask",
            format!("umask {umask:#o} is above 0o777"),
        );
    }
    if let Some(score) = process
        .oom_score_adj()
        .filter(|s| !(-1000..=1000).contains(s))
    {
        check.say(
            "process.oomScoreAdj",
            format!("{score} is not within -1000 and 1000"),
        );
    }
    if let Some(size) = process.console_size()
        && process.terminal() == Some(true)
        && size.width().max(size.height()) > u64::from(u16::MAX)
    {
        check.say(
            "process.consoleSize",
            "width and height must be at most 65535",
        );
    }
}

// config.md, root, hostname, domainname.

fn root_exists(check: &mut Check<'_>) {
    match check.spec.root() {
        None => check.say("root", "root must be specified"),
        Some(root) if root.path() == "" => check.say("root.path", "root path must not be empty"),
        Some(_) => {}
    }
}

fn names_have_their_namespace(check: &mut Check<'_>) {
    for (field, name) in [
        ("hostname", check.spec.hostname()),
        ("domainname", check.spec.domainname()),
    ] {
        let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else {
            continue;
        };
        if !check.namespaces.has(LinuxNamespaceType::Uts) {
            check.say(
                field,
                format!("unable to set {field} without a private UTS namespace"),
            );
        }
        // sethostname(2): __NEW_UTS_LEN.
        if name.len() > 64 {
            check.say(field, format!("{field} is longer than 64 bytes"));
        }
    }
}

// config-linux.md, namespaces, user namespace mappings, offset for time namespace.

fn namespaces_are_single(check: &mut Check<'_>) {
    for (i, namespace) in check.namespaces.0.iter().enumerate() {
        let kind = namespace.typ();
        if check.namespaces.0[..i]
            .iter()
            .any(|earlier| earlier.typ() == kind)
        {
            let rule = format!("malformed spec file: duplicated ns {:?}", word(kind));
            check.say(format!("linux.namespaces[{i}]"), rule);
        }
    }
}

fn namespace_paths_are_absolute(check: &mut Check<'_>) {
    for (i, namespace) in check.namespaces.0.iter().enumerate() {
        if path_of(namespace).is_some_and(Path::is_relative) {
            check.say(
                format!("linux.namespaces[{i}].path"),
                "namespace path must be absolute",
            );
        }
    }
}

fn user_namespace_has_maps(check: &mut Check<'_>) {
    if check.namespaces.creates(LinuxNamespaceType::User) && !check.maps_decide() {
        check.say(
            "linux.uidMappings",
            "user namespaces enabled, but no namespace path to join nor mappings to apply specified",
        );
    }
}

fn maps_have_their_namespace(check: &mut Check<'_>) {
    let mapped = !check.uid_map().is_empty() || !check.gid_map().is_empty();
    if mapped && !check.namespaces.has(LinuxNamespaceType::User) {
        check.say(
            "linux.uidMappings",
            "user namespace mappings specified, but user namespace isn't enabled in the config",
        );
    }
}

/// user_namespaces(7): what the kernel takes as a map; and the container's root must be in it, since it is who sets the
/// container up.
fn id_maps_are_sound(check: &mut Check<'_>) {
    for (field, map) in [
        ("linux.uidMappings", check.uid_map()),
        ("linux.gidMappings", check.gid_map()),
    ] {
        if map.is_empty() {
            continue;
        }
        if map.len() > 340 {
            check.say(field, "the kernel takes no more than 340 mappings");
        }
        if check.namespaces.creates(LinuxNamespaceType::User) && !maps(map, 0) {
            check.say(
                field,
                "user namespaces enabled, but no user mapping found: id 0 is not mapped",
            );
        }
        for (i, range) in map.iter().enumerate() {
            let fits = |first: u32| first.checked_add(range.size()).is_some();
            if range.size() == 0 {
                check.say(
                    format!("{field}[{i}].size"),
                    "size must be greater than zero",
                );
            } else if !fits(range.container_id()) || !fits(range.host_id()) {
                check.say(
                    format!("{field}[{i}].size"),
                    "range goes beyond the largest id",
                );
            }
        }
        if overlap(map, LinuxIdMapping::container_id) {
            check.say(field, "container id ranges overlap");
        }
        if overlap(map, LinuxIdMapping::host_id) {
            check.say(field, "host id ranges overlap");
        }
    }
}

fn overlap(map: &[LinuxIdMapping], first: fn(&LinuxIdMapping) -> u32) -> bool {
    let mut ranges: Vec<_> = map
        .iter()
        .map(|range| (u64::from(first(range)), u64::from(range.size())))
        .collect();
    ranges.sort_unstable();
    ranges
        .windows(2)
        .any(|pair| pair[0].0 + pair[0].1 > pair[1].0)
}

fn offsets_have_their_namespace(check: &mut Check<'_>) {
    let offsets = check
        .linux()
        .and_then(|linux| linux.time_offsets().as_ref());
    if offsets.is_none_or(HashMap::is_empty) {
        return;
    }
    if !check.namespaces.has(LinuxNamespaceType::Time) {
        check.say(
            "linux.timeOffsets",
            "time namespace offsets specified, but time namespace isn't enabled in the config",
        );
    } else if check.namespaces.joins(LinuxNamespaceType::Time) {
        check.say(
            "linux.timeOffsets",
            "time namespace offsets specified, but the time namespace is joined by its path",
        );
    }
}

fn offsets_name_a_clock(check: &mut Check<'_>) {
    let offsets = check
        .linux()
        .and_then(|linux| linux.time_offsets().as_ref());
    for (clock, offset) in sorted(offsets) {
        if !["monotonic", "boottime"].contains(&clock.as_str()) {
            check.say(
                "linux.timeOffsets",
                format!("unknown clock {clock:?}: monotonic or boottime expected"),
            );
        }
        if offset.nanosecs().is_some_and(|n| n >= 1_000_000_000) {
            check.say(
                format!("linux.timeOffsets.{clock}.nanosecs"),
                "nanosecs must be below 1000000000",
            );
        }
    }
}

fn sorted<V>(map: Option<&HashMap<String, V>>) -> BTreeMap<&String, &V> {
    map.into_iter().flatten().collect()
}

// config-linux.md, masked paths, readonly paths, rootfs mount propagation.

fn restricted_paths<'a>(check: &Check<'a>) -> [(&'static str, &'a [String]); 2] {
    let list = |list: Option<&'a Vec<String>>| list.map_or(&[][..], Vec::as_slice);
    [
        (
            "linux.maskedPaths",
            list(check.linux().and_then(|l| l.masked_paths().as_ref())),
        ),
        (
            "linux.readonlyPaths",
            list(check.linux().and_then(|l| l.readonly_paths().as_ref())),
        ),
    ]
}

fn restricted_paths_have_their_namespace(check: &mut Check<'_>) {
    if check.namespaces.has(LinuxNamespaceType::Mount) {
        return;
    }
    for (field, paths) in restricted_paths(check) {
        if !paths.is_empty() {
            check.say(
                field,
                "unable to restrict sys entries without a private MNT namespace",
            );
        }
    }
}

fn restricted_paths_are_absolute(check: &mut Check<'_>) {
    for (field, paths) in restricted_paths(check) {
        for (i, path) in paths.iter().enumerate() {
            if !path.starts_with('/') {
                check.say(
                    format!("{field}[{i}]"),
                    format!("{path:?} is not an absolute path"),
                );
            }
        }
    }
}

fn propagation_is_known(check: &mut Check<'_>) {
    let Some(word) = check
        .linux()
        .and_then(|l| l.rootfs_propagation().as_deref())
    else {
        return;
    };
    match word {
        "" | "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable" => {}
        "private" | "rprivate" if !check.how.no_pivot => {}
        "private" | "rprivate" => check.say(
            "linux.rootfsPropagation",
            "rootfsPropagation of [r]private is not safe without pivot_root",
        ),
        _ => check.say(
            "linux.rootfsPropagation",
            format!("rootfsPropagation={word} is not supported"),
        ),
    }
}

// config-linux.md, devices and allowed device list.

/// Linux keeps 12 bits of major and 20 bits of minor number (MINORBITS in kdev_t.h).
const MAJOR_MAX: i64 = (1 << 12) - 1;
const MINOR_MAX: i64 = (1 << 20) - 1;

fn devices<'a>(check: &Check<'a>) -> &'a [LinuxDevice] {
    let devices = check.linux().and_then(|linux| linux.devices().as_ref());
    devices.map_or(&[], Vec::as_slice)
}

fn devices_are_devices(check: &mut Check<'_>) {
    for (i, device) in devices(check).iter().enumerate() {
        let field = format!("linux.devices[{i}]");
        if device.typ() == LinuxDeviceType::A {
            check.say(format!("{field}.type"), "invalid device type \"a\"");
        }
        if !device.path().is_absolute() {
            check.say(
                format!("{field}.path"),
                format!("device path {:?} is not absolute", device.path()),
            );
        }
        let numbered = device.typ() != LinuxDeviceType::P;
        if numbered && !(0..=MAJOR_MAX).contains(&device.major()) {
            check.say(
                format!("{field}.major"),
                format!("invalid major number {}", device.major()),
            );
        }
        if numbered && !(0..=MINOR_MAX).contains(&device.minor()) {
            check.say(
                format!("{field}.minor"),
                format!("invalid minor number {}", device.minor()),
            );
        }
    }
}

// COMPAT: the same device listed twice is let pass, as runc does; engines do it for privileged containers.
fn device_paths_are_single(check: &mut Check<'_>) {
    let node = |d: &LinuxDevice| (d.typ().as_str().replace('u', "c"), d.major(), d.minor());
    let devices = devices(check);
    for (i, device) in devices.iter().enumerate() {
        let path = inside(device.path());
        let mut earlier = devices[..i].iter();
        if earlier.any(|e| inside(e.path()) == path && node(e) != node(device)) {
            check.say(
                format!("linux.devices[{i}].path"),
                format!("two different devices at {path:?}"),
            );
        }
    }
}

fn device_rules_are_complete(check: &mut Check<'_>) {
    let rules = check
        .resources()
        .and_then(|resources| resources.devices().as_ref());
    for (i, rule) in rules.into_iter().flatten().enumerate() {
        let field = format!("linux.resources.devices[{i}]");
        match rule.access().as_deref() {
            None | Some("") => check.say(
                format!("{field}.access"),
                format!("device access at {i} field cannot be empty"),
            ),
            Some(access) if !access.chars().all(|c| "rwm".contains(c)) => {
                check.say(
                    format!("{field}.access"),
                    format!("invalid device access {access:?}"),
                );
            }
            Some(_) => {}
        }
        if let Some(kind @ (LinuxDeviceType::U | LinuxDeviceType::P)) = rule.typ() {
            check.say(
                format!("{field}.type"),
                format!("invalid cgroup device type {:?}", kind.as_str()),
            );
        }
        // -1 is every number, as in the v1 interface.
        for (name, number) in [("major", rule.major()), ("minor", rule.minor())] {
            if let Some(n) = number.filter(|n| !(-1..=i64::from(u32::MAX)).contains(n)) {
                check.say(
                    format!("{field}.{name}"),
                    format!("invalid {name} number {n}"),
                );
            }
        }
    }
}

// config-linux.md, control groups.

fn systemd_path_has_three_parts(check: &mut Check<'_>) {
    let path = check
        .linux()
        .and_then(|linux| linux.cgroups_path().as_ref());
    if let Some(path) = path.filter(|path| check.how.systemd_cgroup && *path != "")
        && path.to_string_lossy().split(':').count() != 3
    {
        let rule = format!(
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
        );
        check.say("linux.cgroupsPath", rule);
    }
}

/// The specification's swap is memory and swap together, the kernel's is swap alone.
fn swap_fits_memory(check: &mut Check<'_>) {
    let Some(memory) = check.resources().and_then(|r| r.memory().as_ref()) else {
        return;
    };
    let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    if swap == 0 || swap == -1 {
        return;
    }
    if limit == 0 {
        check.say(
            "linux.resources.memory.swap",
            "unable to set swap limit without memory limit",
        );
    } else if limit < 0 {
        check.say(
            "linux.resources.memory.limit",
            format!("invalid memory value: {limit}"),
        );
    } else if swap < limit {
        check.say(
            "linux.resources.memory.swap",
            "memory+swap limit should be >= memory limit",
        );
    }
}

/// config-linux.md, unified: each key is a file in the container's cgroup.
fn unified_keys_are_file_names(check: &mut Check<'_>) {
    let unified = check
        .resources()
        .and_then(|resources| resources.unified().as_ref());
    for key in sorted(unified).into_keys() {
        if key.contains('/') || ["", ".", ".."].contains(&key.as_str()) {
            check.say(
                "linux.resources.unified",
                format!("unified resource {key:?} must be a file name (no slashes)"),
            );
        }
    }
}

// config-linux.md, seccomp: listeners.

fn seccomp_default_is_no_notify(check: &mut Check<'_>) {
    let seccomp = check.linux().and_then(|linux| linux.seccomp().as_ref());
    if seccomp.is_some_and(|s| s.default_action() == LinuxSeccompAction::ScmpActNotify) {
        check.say(
            "linux.seccomp.defaultAction",
            "SCMP_ACT_NOTIFY cannot be used as default action",
        );
    }
}

// config-linux.md, sysctl.

/// The path below /proc/sys of a sysctl, by the rule of sysctl(8): the first separator decides whether `/` or `.`
/// parts the name, and the other one is then part of a component, as in `net.ipv4.conf.eth0/1.forwarding`.
///
/// `None`: a component is empty, `.` or `..`, so that the name could lead somewhere else.
pub(crate) fn sysctl_path(key: &str) -> Option<String> {
    let path = match key.find(['.', '/']).map(|at| key.as_bytes()[at]) {
        Some(b'/') => key.to_string(),
        _ => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    };
    let sound = path.split('/').all(|part| !["", ".", ".."].contains(&part));
    sound.then_some(path)
}

fn sysctls_belong_to_the_container(check: &mut Check<'_>) {
    let sysctl = check.linux().and_then(|linux| linux.sysctl().as_ref());
    for key in sorted(sysctl).into_keys() {
        let rule = match sysctl_path(key) {
            None => Some(format!("invalid sysctl name {key:?}")),
            Some(path) => sysctl_rule(check, key, &path),
        };
        if let Some(rule) = rule {
            check.say("linux.sysctl", rule);
        }
    }
}

fn sysctl_rule(check: &Check<'_>, key: &str, path: &str) -> Option<String> {
    let unless = |kind, rule: String| (!check.namespaces.has(kind)).then_some(rule);
    let set = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    let elsewhere = format!("sysctl {key:?} is not in a separate kernel namespace");
    let conflict = |field| {
        Some(format!(
            "sysctl {key:?} is not allowed as it conflicts with the OCI {field:?} field"
        ))
    };
    match path {
        "kernel/msgmax"
        | "kernel/msgmnb"
        | "kernel/msgmni"
        | "kernel/sem"
        | "kernel/shmall"
        | "kernel/shmmax"
        | "kernel/shmmni"
        | "kernel/shm_rmid_forced" => unless(
            LinuxNamespaceType::Ipc,
            format!("sysctl {key:?} is not allowed in the hosts ipc namespace"),
        ),
        _ if path.starts_with("fs/mqueue/") => unless(
            LinuxNamespaceType::Ipc,
            format!("sysctl {key:?} is not allowed in the hosts ipc namespace"),
        ),
        _ if path.starts_with("net/") => unless(
            LinuxNamespaceType::Network,
            format!("sysctl {key:?} not allowed in host network namespace"),
        ),
        _ if path.starts_with("user/") => unless(LinuxNamespaceType::User, elsewhere),
        "kernel/hostname" if check.namespaces.has(LinuxNamespaceType::Uts) => conflict("hostname"),
        "kernel/domainname" if set(check.spec.domainname()) => conflict("domainname"),
        "kernel/domainname" => unless(LinuxNamespaceType::Uts, elsewhere),
        _ => Some(elsewhere),
    }
}

// What the specification has and this build has not.

fn nothing_is_asked_that_is_absent(check: &mut Check<'_>) {
    for absent in ABSENT {
        if let Some(field) = (absent.asked)(check.spec) {
            check
                .faults
                .push(Fault::new(absent.stage, field, absent.rule));
        }
    }
}

// Rootless containers: what an unprivileged caller cannot have.

fn rootless_has_a_user_namespace(check: &mut Check<'_>) {
    if check.how.rootless && !check.namespaces.has(LinuxNamespaceType::User) {
        check.say(
            "linux.namespaces",
            "rootless container requires user namespaces",
        );
    }
}

fn rootless_mount_owners_are_mapped(check: &mut Check<'_>) {
    if !check.how.rootless || !check.maps_decide() {
        return;
    }
    for (field, mount) in check.mounts() {
        for option in mount.options().iter().flatten() {
            for (name, map) in [("uid", check.uid_map()), ("gid", check.gid_map())] {
                let id = option
                    .strip_prefix(name)
                    .and_then(|rest| rest.strip_prefix('='));
                let Some(id) = id else {
                    continue;
                };
                if id.parse().map_or(true, |id| !maps(map, id)) {
                    let rule = format!(
                        "cannot specify {option} mount option for unmapped {name} in rootless container"
                    );
                    check.say(format!("{field}.options"), rule);
                }
            }
        }
    }
}

// config.md, mounts.

/// What may be mounted over inside /proc: files that container engines replace by per-container views.
const PROC_ALLOWED: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

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

fn is_bind(mount: &Mount) -> bool {
    mount
        .options()
        .iter()
        .flatten()
        .any(|word| word == "bind" || word == "rbind")
}

fn destinations_are_allowed(check: &mut Check<'_>) {
    for (field, mount) in check.mounts() {
        let field = format!("{field}.destination");
        let destination = mount.destination();
        let clean = inside(destination);
        if destination == "" {
            check.say(field, "destination must not be empty");
        } else if clean == Path::new("/") {
            check.say(field, format!("{destination:?} is on the top of rootfs"));
        } else if clean == Path::new("/proc") {
            // CVE-2019-16884: a false /proc would take the writes that confine the container's process. A bind of the
            // host's own is a real one, which engines use together with the host's pid namespace.
            let real = match is_bind(mount) {
                true => mount.source().as_deref() == Some(Path::new("/proc")),
                false => mount.typ().as_deref() == Some("proc"),
            };
            if !real {
                check.say(
                    field,
                    format!("{destination:?} cannot be mounted because it is not of type proc"),
                );
            }
        } else if clean.starts_with("/proc")
            && !PROC_ALLOWED
                .iter()
                .any(|allowed| clean == Path::new(allowed))
        {
            check.say(
                field,
                format!("{destination:?} cannot be mounted because it is inside /proc"),
            );
        }
    }
}

fn mounts_have_what_they_need(check: &mut Check<'_>) {
    for (field, mount) in check.mounts() {
        let empty = |text: Option<&str>| text.is_none_or(str::is_empty);
        let remount = mount
            .options()
            .iter()
            .flatten()
            .any(|word| word == "remount");
        if is_bind(mount) {
            if mount.source().as_ref().is_none_or(|source| source == "") {
                check.say(format!("{field}.source"), "bind mount has no source");
            }
        } else if !remount && empty(mount.typ().as_deref()) {
            check.say(format!("{field}.type"), "mount has no type");
        }
    }
}

fn binds_have_no_data(check: &mut Check<'_>) {
    for (field, mount) in check.mounts() {
        let known = |word: &String| {
            MOUNT_OPTIONS.binary_search(&word.as_str()).is_ok()
                || ["idmap", "ridmap", ""].contains(&word.as_str())
        };
        if is_bind(mount) && !mount.options().iter().flatten().all(known) {
            check.say(
                format!("{field}.options"),
                "bind mounts cannot have any filesystem-specific options applied",
            );
        }
    }
}

fn id_mapped_mounts_have_both_maps(check: &mut Check<'_>) {
    for (field, mount) in check.mounts() {
        let given = |map: &Option<Vec<_>>| map.as_ref().is_some_and(|map| !map.is_empty());
        if given(mount.uid_mappings()) != given(mount.gid_mappings()) {
            check.say(
                field,
                "id-mapped mounts must have both uid and gid mappings specified",
            );
        }
    }
}

// config.md, hooks, annotations, specification version.

fn hooks_can_run(check: &mut Check<'_>) {
    let Some(hooks) = check.spec.hooks() else {
        return;
    };
    let lists: [(&str, &Option<Vec<Hook>>); 6] = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (name, list) in lists {
        for (i, hook) in list.iter().flatten().enumerate() {
            if !hook.path().is_absolute() {
                check.say(
                    format!("hooks.{name}[{i}].path"),
                    format!("hook path {:?} is not absolute", hook.path()),
                );
            }
            if let Some(timeout) = hook.timeout().filter(|timeout| *timeout <= 0) {
                check.say(
                    format!("hooks.{name}[{i}].timeout"),
                    format!("hook timeout {timeout} is not greater than zero"),
                );
            }
        }
    }
}

fn annotations_have_keys(check: &mut Check<'_>) {
    if check
        .spec
        .annotations()
        .as_ref()
        .is_some_and(|a| a.contains_key(""))
    {
        check.say("annotations", "annotation key must not be empty");
    }
}

// COMPAT: runc does not look at the version at all. An absent one passes here too; a next major version may give
// every member another meaning.
fn version_is_known(check: &mut Check<'_>) {
    let version = check.spec.version();
    let major = version.split('.').next().unwrap_or_default();
    if !["", "0", "1"].contains(&major) {
        check.say(
            "ociVersion",
            format!("version {version:?} is not supported: up to {OCI_VERSION_MAX} is"),
        );
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::spec::{default_config, parse};
    use serde_json::{Value, json};

    /// Put `value` at the JSON pointer `at`, making the members on the way; null removes.
    pub(in crate::spec) fn set(config: &mut Value, at: &str, value: Value) {
        let (parent, name) = at.rsplit_once('/').unwrap();
        let parent = parent
            .split('/')
            .skip(1)
            .fold(config, |node, step| match node {
                Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
                node => &mut node[step],
            });
        match parent {
            Value::Array(items) => items[name.parse::<usize>().unwrap()] = value,
            parent if value.is_null() => {
                parent.as_object_mut().unwrap().remove(name);
            }
            parent => parent[name] = value,
        }
    }

    /// A config with something in every section the rules look at.
    pub(in crate::spec) fn everything() -> Value {
        let mut config: Value = serde_json::from_str(&default_config(None, true)).unwrap();
        for (at, value) in [
            ("/domainname", json!("example")),
            (
                "/hooks",
                json!({"createRuntime": [{"path": "/bin/true", "args": ["true"], "timeout": 3}]}),
            ),
            ("/annotations", json!({"a": "b"})),
            (
                "/process/user",
                json!({"uid": 0, "gid": 0, "umask": 18, "additionalGids": [5]}),
            ),
            ("/process/oomScoreAdj", json!(100)),
            (
                "/linux/sysctl",
                json!({"net.ipv4.ip_forward": "1", "kernel/shmmax": "1"}),
            ),
            ("/linux/cgroupsPath", json!("/a/b")),
            (
                "/linux/timeOffsets",
                json!({"monotonic": {"secs": -3, "nanosecs": 5}}),
            ),
            ("/linux/namespaces/6", json!({"type": "time"})),
            ("/linux/namespaces/7", json!({"type": "user"})),
            (
                "/linux/uidMappings",
                json!([{"containerID": 0, "hostID": 1000, "size": 65536}]),
            ),
            (
                "/linux/gidMappings",
                json!([{"containerID": 0, "hostID": 1000, "size": 65536}]),
            ),
            (
                "/linux/devices",
                json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}]),
            ),
            ("/linux/rootfsPropagation", json!("rslave")),
            (
                "/linux/resources/memory",
                json!({"limit": 1000, "swap": 2000}),
            ),
            ("/linux/resources/pids", json!({"limit": 10})),
            ("/linux/resources/unified", json!({"memory.high": "1"})),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}),
            ),
        ] {
            if let Some((list, _)) = at
                .rsplit_once('/')
                .filter(|_| at.starts_with("/linux/namespaces/"))
            {
                config
                    .pointer_mut(list)
                    .unwrap()
                    .as_array_mut()
                    .unwrap()
                    .push(value);
            } else {
                set(&mut config, at, value);
            }
        }
        config
    }

    fn faults(changes: &[(&str, Value)], how: Context) -> Vec<String> {
        let mut config = everything();
        for (at, value) in changes {
            set(&mut config, at, value.clone());
        }
        let spec = parse(config.to_string().as_bytes()).unwrap();
        check(&spec, &how).iter().map(Fault::to_string).collect()
    }

    const PLAIN: Context = Context {
        rootless: false,
        no_pivot: false,
        systemd_cgroup: false,
    };

    #[test]
    fn a_config_that_uses_everything_has_no_faults() {
        assert_eq!(faults(&[], PLAIN), [""; 0]);
        assert_eq!(
            check(&parse(everything().to_string().as_bytes()).unwrap(), &PLAIN),
            []
        );
    }

    #[test]
    fn each_broken_rule_is_reported_alone_with_its_field() {
        let mount = |value: Value| ("/mounts/1", value);
        for (change, fault) in [
            (
                ("/process", json!(null)),
                "process: process property must not be empty",
            ),
            (
                ("/process/cwd", json!("")),
                "process.cwd: Cwd property must not be empty",
            ),
            (
                ("/process/cwd", json!("tmp")),
                "process.cwd: Cwd must be an absolute path",
            ),
            (
                ("/process/args", json!([])),
                "process.args: args must not be empty",
            ),
            (
                ("/process/args", json!(null)),
                "process.args: args must not be empty",
            ),
            (
                ("/process/env/1", json!("A")),
                "process.env[1]: invalid environment variable: missing '='",
            ),
            (
                ("/process/env/1", json!("=A")),
                "process.env[1]: invalid environment variable: name cannot be empty",
            ),
            (
                ("/process/user/uid", json!(u32::MAX)),
                "process.user.uid: 4294967295 is not a valid id",
            ),
            (
                ("/process/user/additionalGids", json!([1, u32::MAX])),
                "process.user.additionalGids[1]: 4294967295 is not a valid id",
            ),
            (
                ("/process/user/uid", json!(65536)),
                "process.user.uid: cannot setuid to unmapped uid 65536 in user namespace",
            ),
            (
                ("/process/user/gid", json!(65536)),
                "process.user.gid: cannot setgid to unmapped gid 65536 in user namespace",
            ),
            (
                ("/process/user/umask", json!(512)),
                "process.user.umask: umask 0o1000 is above 0o777",
            ),
            (
                ("/process/oomScoreAdj", json!(1001)),
                "process.oomScoreAdj: 1001 is not within -1000 and 1000",
            ),
            (
                ("/process/consoleSize", json!({"height": 65536, "width": 1})),
                "process.consoleSize: width and height must be at most 65535",
            ),
            (
                ("/process/rlimits/0/soft", json!(1025)),
                "process.rlimits[0]: RLIMIT_NOFILE soft limit 1025 is above its hard limit 1024",
            ),
            (
                (
                    "/process/rlimits",
                    json!([{"type": "RLIMIT_AS"}, {"type": "RLIMIT_AS"}]),
                ),
                "process.rlimits[1].type: duplicated rlimit RLIMIT_AS",
            ),
            (
                ("/process/apparmorProfile", json!("x")),
                "process.apparmorProfile: apparmor: config provided but apparmor not supported",
            ),
            (
                ("/process/selinuxLabel", json!("x")),
                "process.selinuxLabel: selinux label is specified in config, but selinux is disabled or not supported",
            ),
            (
                ("/process/scheduler", json!({"policy": "SCHED_IDLE"})),
                "process.scheduler: scheduler is not supported by this build",
            ),
            (
                (
                    "/process/ioPriority",
                    json!({"class": "IOPRIO_CLASS_BE", "priority": 1}),
                ),
                "process.ioPriority: ioPriority is not supported by this build",
            ),
            (("/root", json!(null)), "root: root must be specified"),
            (
                ("/root/path", json!("")),
                "root.path: root path must not be empty",
            ),
            (
                ("/hostname", json!("x".repeat(65))),
                "hostname: hostname is longer than 64 bytes",
            ),
            (
                ("/ociVersion", json!("2.0.0")),
                "ociVersion: version \"2.0.0\" is not supported: up to 1.3.0 is",
            ),
            (
                ("/annotations", json!({"": "x"})),
                "annotations: annotation key must not be empty",
            ),
            (
                ("/hooks/createRuntime/0/path", json!("true")),
                "hooks.createRuntime[0].path: hook path \"true\" is not absolute",
            ),
            (
                ("/hooks/createRuntime/0/timeout", json!(0)),
                "hooks.createRuntime[0].timeout: hook timeout 0 is not greater than zero",
            ),
            (
                ("/hooks/prestart", json!([{"path": "true"}])),
                "hooks.prestart[0].path: hook path \"true\" is not absolute",
            ),
            (
                ("/linux/namespaces/1/type", json!("pid")),
                "linux.sysctl: sysctl \"net.ipv4.ip_forward\" not allowed in host network namespace",
            ),
            (
                ("/linux/namespaces/1/path", json!("ns/net")),
                "linux.namespaces[1].path: namespace path must be absolute",
            ),
            (
                ("/linux/uidMappings", json!([])),
                "linux.uidMappings: user namespaces enabled, but no namespace path to join nor mappings to apply specified",
            ),
            (
                (
                    "/linux/gidMappings",
                    json!([{"containerID": 0, "hostID": 0, "size": 6}, {"containerID": 9, "hostID": 9}]),
                ),
                "linux.gidMappings[1].size: size must be greater than zero",
            ),
            (
                ("/linux/gidMappings/0/hostID", json!(u32::MAX - 3)),
                "linux.gidMappings[0].size: range goes beyond the largest id",
            ),
            (
                ("/linux/gidMappings/0/containerID", json!(1)),
                "linux.gidMappings: user namespaces enabled, but no user mapping found: id 0 is not mapped",
            ),
            (
                (
                    "/linux/gidMappings",
                    json!([{"containerID": 0, "hostID": 0, "size": 6}, {"containerID": 6, "hostID": 5, "size": 6}]),
                ),
                "linux.gidMappings: host id ranges overlap",
            ),
            (
                (
                    "/linux/gidMappings",
                    json!([{"containerID": 5, "hostID": 10, "size": 6}, {"containerID": 0, "hostID": 0, "size": 6}]),
                ),
                "linux.gidMappings: container id ranges overlap",
            ),
            (
                ("/linux/timeOffsets", json!({"realtime": {}})),
                "linux.timeOffsets: unknown clock \"realtime\": monotonic or boottime expected",
            ),
            (
                (
                    "/linux/timeOffsets/monotonic/nanosecs",
                    json!(1_000_000_000),
                ),
                "linux.timeOffsets.monotonic.nanosecs: nanosecs must be below 1000000000",
            ),
            (
                ("/linux/namespaces/6/path", json!("/proc/1/ns/time")),
                "linux.timeOffsets: time namespace offsets specified, but the time namespace is joined by its path",
            ),
            (
                ("/linux/maskedPaths", json!(["x"])),
                "linux.maskedPaths[0]: \"x\" is not an absolute path",
            ),
            (
                ("/linux/readonlyPaths", json!(["/x", ""])),
                "linux.readonlyPaths[1]: \"\" is not an absolute path",
            ),
            (
                ("/linux/rootfsPropagation", json!("x")),
                "linux.rootfsPropagation: rootfsPropagation=x is not supported",
            ),
            (
                ("/linux/devices/0/type", json!("a")),
                "linux.devices[0].type: invalid device type \"a\"",
            ),
            (
                ("/linux/devices/0/path", json!("fuse")),
                "linux.devices[0].path: device path \"fuse\" is not absolute",
            ),
            (
                ("/linux/devices/0/major", json!(4096)),
                "linux.devices[0].major: invalid major number 4096",
            ),
            (
                ("/linux/devices/0/minor", json!(-1)),
                "linux.devices[0].minor: invalid minor number -1",
            ),
            (
                (
                    "/linux/devices",
                    json!([{"path": "/dev/a", "type": "p"}, {"path": "/dev//a", "type": "c"}]),
                ),
                "linux.devices[1].path: two different devices at \"/dev/a\"",
            ),
            (
                ("/linux/resources/devices/0/access", json!("")),
                "linux.resources.devices[0].access: device access at 0 field cannot be empty",
            ),
            (
                ("/linux/resources/devices/0/access", json!("rx")),
                "linux.resources.devices[0].access: invalid device access \"rx\"",
            ),
            (
                ("/linux/resources/devices/0/type", json!("p")),
                "linux.resources.devices[0].type: invalid cgroup device type \"p\"",
            ),
            (
                ("/linux/resources/devices/0/major", json!(-2)),
                "linux.resources.devices[0].major: invalid major number -2",
            ),
            (
                ("/linux/resources/memory", json!({"swap": 1})),
                "linux.resources.memory.swap: unable to set swap limit without memory limit",
            ),
            (
                ("/linux/resources/memory", json!({"swap": 1, "limit": -1})),
                "linux.resources.memory.limit: invalid memory value: -1",
            ),
            (
                ("/linux/resources/memory/swap", json!(999)),
                "linux.resources.memory.swap: memory+swap limit should be >= memory limit",
            ),
            (
                ("/linux/resources/unified", json!({"a/b": "1"})),
                "linux.resources.unified: unified resource \"a/b\" must be a file name (no slashes)",
            ),
            (
                ("/linux/resources/rdma", json!({"mlx": {}})),
                "linux.resources.rdma: rdma limits are not supported by this build",
            ),
            (
                ("/linux/sysctl", json!({"kernel.panic": "1"})),
                "linux.sysctl: sysctl \"kernel.panic\" is not in a separate kernel namespace",
            ),
            (
                ("/linux/sysctl", json!({"net/../kernel/panic": "1"})),
                "linux.sysctl: invalid sysctl name \"net/../kernel/panic\"",
            ),
            (
                ("/linux/sysctl", json!({"net.": "1"})),
                "linux.sysctl: invalid sysctl name \"net.\"",
            ),
            (
                ("/linux/sysctl", json!({"kernel/hostname": "1"})),
                "linux.sysctl: sysctl \"kernel/hostname\" is not allowed as it conflicts with the OCI \"hostname\" field",
            ),
            (
                ("/linux/sysctl", json!({"kernel.domainname": "1"})),
                "linux.sysctl: sysctl \"kernel.domainname\" is not allowed as it conflicts with the OCI \"domainname\" field",
            ),
            (
                ("/linux/seccomp/syscalls/0/action", json!("SCMP_ACT_NOTIFY")),
                "linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY is not supported by this build",
            ),
            (
                ("/linux/personality", json!({"domain": "LINUX32"})),
                "linux.personality: personality is not supported by this build",
            ),
            (
                ("/linux/memoryPolicy", json!({"mode": "MPOL_LOCAL"})),
                "linux.memoryPolicy: memoryPolicy is not supported by this build",
            ),
            (
                ("/linux/intelRdt", json!({})),
                "linux.intelRdt: intelRdt is not supported by this build",
            ),
            (
                ("/linux/netDevices", json!({"eth0": {}})),
                "linux.netDevices: network devices are not supported by this build",
            ),
            (
                ("/linux/mountLabel", json!("x")),
                "linux.mountLabel: mount label is specified in config, but selinux is disabled or not supported",
            ),
            (
                mount(json!({"destination": "", "type": "tmpfs"})),
                "mounts[1].destination: destination must not be empty",
            ),
            (
                mount(json!({"destination": "/a/..", "type": "tmpfs"})),
                "mounts[1].destination: \"/a/..\" is on the top of rootfs",
            ),
            (
                mount(json!({"destination": "/proc/", "type": "tmpfs"})),
                "mounts[1].destination: \"/proc/\" cannot be mounted because it is not of type proc",
            ),
            (
                mount(json!({"destination": "/proc", "source": "/x", "options": ["rbind"]})),
                "mounts[1].destination: \"/proc\" cannot be mounted because it is not of type proc",
            ),
            (
                mount(json!({"destination": "proc/self/attr", "type": "tmpfs"})),
                "mounts[1].destination: \"proc/self/attr\" cannot be mounted because it is inside /proc",
            ),
            (
                mount(json!({"destination": "/a", "options": ["bind"]})),
                "mounts[1].source: bind mount has no source",
            ),
            (
                mount(json!({"destination": "/a", "source": "b"})),
                "mounts[1].type: mount has no type",
            ),
            (
                mount(json!({"destination": "/a", "source": "b", "options": ["bind", "size=3"]})),
                "mounts[1].options: bind mounts cannot have any filesystem-specific options applied",
            ),
            (
                mount(json!({"destination": "/a", "source": "b", "options": ["bind", "idmap"]})),
                "mounts[1]: id-mapped mounts are not supported by this build",
            ),
        ] {
            let at = change.0;
            let mut found = faults(&[change], PLAIN);
            // A doubled namespace takes the place of another one.
            found.retain(|fault| !fault.contains("duplicated ns"));
            assert_eq!(found, [fault], "{at}");
        }
    }

    #[test]
    fn a_missing_namespace_is_reported_where_it_is_used() {
        for (kind, found) in [
            (
                "uts",
                vec![
                    "hostname: unable to set hostname without a private UTS namespace",
                    "domainname: unable to set domainname without a private UTS namespace",
                ],
            ),
            (
                "mount",
                vec![
                    "linux.maskedPaths: unable to restrict sys entries without a private MNT namespace",
                    "linux.readonlyPaths: unable to restrict sys entries without a private MNT namespace",
                ],
            ),
            (
                "ipc",
                vec![
                    "linux.sysctl: sysctl \"kernel/shmmax\" is not allowed in the hosts ipc namespace",
                ],
            ),
            (
                "user",
                vec![
                    "linux.uidMappings: user namespace mappings specified, but user namespace isn't enabled in the config",
                ],
            ),
            (
                "time",
                vec![
                    "linux.timeOffsets: time namespace offsets specified, but time namespace isn't enabled in the config",
                ],
            ),
            ("pid", vec![]),
        ] {
            let mut config = everything();
            config["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .retain(|n| n["type"] != kind);
            let spec = parse(config.to_string().as_bytes()).unwrap();
            let faults: Vec<_> = check(&spec, &PLAIN).iter().map(Fault::to_string).collect();
            assert_eq!(faults, found, "{kind}");
        }
    }

    #[test]
    fn what_the_caller_may_not_do_depends_on_the_caller() {
        let rootless = Context {
            rootless: true,
            ..PLAIN
        };
        let no_pivot = Context {
            no_pivot: true,
            ..PLAIN
        };
        let systemd = Context {
            systemd_cgroup: true,
            ..PLAIN
        };
        let one = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let none = ("/process/user/additionalGids", json!(null));
        assert_eq!(
            faults(&[], rootless),
            [
                "process.user.additionalGids: cannot set any additional groups in a rootless container"
            ]
        );
        assert_eq!(
            faults(&[none.clone(), ("/linux/gidMappings", one)], rootless),
            [
                "mounts[2].options: cannot specify gid=5 mount option for unmapped gid in rootless container"
            ]
        );
        assert_eq!(
            faults(
                &[
                    none,
                    ("/linux/namespaces", json!([])),
                    ("/linux/uidMappings", json!(null)),
                    ("/linux/gidMappings", json!(null)),
                    ("/hostname", json!("")),
                    ("/domainname", json!("")),
                    ("/linux/maskedPaths", json!([])),
                    ("/linux/readonlyPaths", json!([])),
                    ("/linux/timeOffsets", json!({})),
                    ("/linux/sysctl", json!({}))
                ],
                rootless
            ),
            ["linux.namespaces: rootless container requires user namespaces"]
        );
        assert_eq!(
            faults(&[("/linux/rootfsPropagation", json!("private"))], no_pivot),
            [
                "linux.rootfsPropagation: rootfsPropagation of [r]private is not safe without pivot_root"
            ]
        );
        assert_eq!(
            faults(&[], systemd),
            [
                "linux.cgroupsPath: expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \"/a/b\" instead"
            ]
        );
        assert_eq!(
            faults(
                &[("/linux/cgroupsPath", json!("system.slice:x:y"))],
                systemd
            ),
            [""; 0]
        );
    }

    #[test]
    fn faults_come_in_the_order_of_runc() {
        assert_eq!(
            faults(
                &[
                    ("/ociVersion", json!("9")),
                    ("/process/rlimits/0/soft", json!(2000)),
                    ("/mounts/0/destination", json!("/")),
                    ("/linux/sysctl", json!({"x": "1"})),
                    ("/linux/namespaces/3/type", json!("pid")),
                    ("/linux/rootfsPropagation", json!("x")),
                    ("/root", json!(null)),
                    ("/process/args", json!([])),
                ],
                PLAIN
            ),
            [
                "process.args: args must not be empty",
                "root: root must be specified",
                "linux.rootfsPropagation: rootfsPropagation=x is not supported",
                "linux.namespaces[3]: malformed spec file: duplicated ns \"pid\"",
                "hostname: unable to set hostname without a private UTS namespace",
                "domainname: unable to set domainname without a private UTS namespace",
                "linux.sysctl: sysctl \"x\" is not in a separate kernel namespace",
                "mounts[0].destination: \"/\" is on the top of rootfs",
                "process.rlimits[0]: RLIMIT_NOFILE soft limit 2000 is above its hard limit 1024",
                "ociVersion: version \"9\" is not supported: up to 1.3.0 is",
            ]
        );
    }

    #[test]
    fn what_is_odd_but_allowed_passes() {
        for change in [
            ("/ociVersion", json!("1.0.2-dev")),
            ("/ociVersion", json!(null)),
            ("/process/env", json!(["A=1", "A=2", "B=", "C=x=y"])),
            ("/process/apparmorProfile", json!("")),
            ("/linux/namespaces/1/path", json!("/proc/1/ns/net")),
            (
                "/linux/sysctl",
                json!({"net/ipv4/conf/eth0.1/forwarding": "1", "fs.mqueue.msg_max": "1", "user.max_user_namespaces": "1"}),
            ),
            (
                "/linux/resources/memory",
                json!({"limit": 1000, "swap": -1}),
            ),
            ("/linux/resources/memory", json!({"limit": -1, "swap": 0})),
            (
                "/linux/devices",
                json!([{"path": "/dev/a", "type": "c", "major": 1}, {"path": "/dev/a", "type": "u", "major": 1}]),
            ),
            (
                "/linux/devices",
                json!([{"path": "/dev/a", "type": "p", "major": -1, "minor": -1}]),
            ),
            (
                "/mounts/1",
                json!({"destination": "/proc/uptime", "source": "/x", "options": ["bind"]}),
            ),
            (
                "/mounts/0",
                json!({"destination": "/proc", "source": "/proc", "options": ["rbind", "rslave", "rro"]}),
            ),
            (
                "/mounts/1",
                json!({"destination": "/procfs", "type": "tmpfs"}),
            ),
            (
                "/mounts/1",
                json!({"destination": "/a", "type": "", "source": "b", "options": ["bind", "ro"]}),
            ),
        ] {
            let at = change.0;
            assert_eq!(faults(&[change], PLAIN), [""; 0], "{at}");
        }
    }

    #[test]
    fn the_first_separator_of_a_sysctl_decides() {
        for (key, path) in [
            ("net.ipv4.ip_forward", Some("net/ipv4/ip_forward")),
            ("net/ipv4/ip_forward", Some("net/ipv4/ip_forward")),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                Some("net/ipv4/conf/eth0.1/forwarding"),
            ),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                Some("net/ipv4/conf/eth0.1/forwarding"),
            ),
            ("/net/ipv4", None),
            ("net/../x", None),
            ("net.//.x", None),
            ("net..x", None),
            ("", None),
        ] {
            assert_eq!(sysctl_path(key).as_deref(), path, "{key}");
        }
    }
}
