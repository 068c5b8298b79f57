//! Devices, control groups, seccomp. config-linux.md.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxSeccompAction};

use super::{Check, inside, sorted};

// config-linux.md, devices and allowed device list.

/// Linux keeps 12 bits of major and 20 bits of minor number (MINORBITS in kdev_t.h).
const MAJOR_MAX: i64 = (1 << 12) - 1;
const MINOR_MAX: i64 = (1 << 20) - 1;

fn devices<'a>(check: &Check<'a>) -> &'a [LinuxDevice] {
    let devices = check.linux().and_then(|linux| linux.devices().as_ref());
    devices.map_or(&[], Vec::as_slice)
}

pub(super) fn devices_are_devices(check: &mut Check<'_>) {
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
        // The kernel takes the greatest number for "as it is".
        for (name, id) in [("uid", device.uid()), ("gid", device.gid())] {
            if id == Some(u32::MAX) {
                check.say(
                    format!("{field}.{name}"),
                    format!("invalid id {}", u32::MAX),
                );
            }
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
pub(super) fn device_paths_are_single(check: &mut Check<'_>) {
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

pub(super) fn device_rules_are_complete(check: &mut Check<'_>) {
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

pub(super) fn systemd_path_has_three_parts(check: &mut Check<'_>) {
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
pub(super) fn swap_fits_memory(check: &mut Check<'_>) {
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
    } else if swap < limit {
        check.say(
            "linux.resources.memory.swap",
            "memory+swap limit should be >= memory limit",
        );
    }
}

/// -1 is no limit, and nothing else below 0 means anything.
pub(super) fn memory_values_are_amounts(check: &mut Check<'_>) {
    let Some(memory) = check.resources().and_then(|r| r.memory().as_ref()) else {
        return;
    };
    for (name, what, value) in [
        ("limit", "memory", memory.limit()),
        ("reservation", "memory reservation", memory.reservation()),
        ("swap", "memory+swap", memory.swap()),
    ] {
        if let Some(value @ ..-1) = value {
            check.say(
                format!("linux.resources.memory.{name}"),
                format!("invalid {what} value: {value}"),
            );
        }
    }
    if let Some(value @ 101..) = memory.swappiness() {
        check.say(
            "linux.resources.memory.swappiness",
            format!("invalid value {value}: 0 to 100 is expected"),
        );
    }
}

/// config-linux.md, block IO and RDMA: an entry says at least one of two things.
pub(super) fn limits_of_devices_say_something(check: &mut Check<'_>) {
    let block = check.resources().and_then(|r| r.block_io().as_ref());
    let weights = block.and_then(|block| block.weight_device().as_ref());
    for (at, entry) in weights.into_iter().flatten().enumerate() {
        if entry.weight().is_none() && entry.leaf_weight().is_none() {
            check.say(
                format!("linux.resources.blockIO.weightDevice[{at}]"),
                "neither weight nor leafWeight is given",
            );
        }
    }
    let rdma = check.resources().and_then(|r| r.rdma().as_ref());
    for (device, entry) in sorted(rdma) {
        if entry.hca_handles().is_none() && entry.hca_objects().is_none() {
            check.say(
                format!("linux.resources.rdma.{device}"),
                "neither hcaHandles nor hcaObjects is given",
            );
        }
    }
}

/// config.md, Valid values: an unsupported value is an error. Packets have classes and priorities with cgroup v1 alone.
pub(super) fn packets_have_no_classes(check: &mut Check<'_>) {
    let network = check.resources().and_then(|r| r.network().as_ref());
    let Some(network) = network else { return };
    let rule = "network limits are not supported on cgroup v2";
    if network.class_id().is_some() {
        check.say("linux.resources.network.classID", rule);
    }
    if network.priorities().iter().flatten().next().is_some() {
        check.say("linux.resources.network.priorities", rule);
    }
}

/// config-linux.md, unified: each key is a file in the container's cgroup.
pub(super) fn unified_keys_are_file_names(check: &mut Check<'_>) {
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

// config-linux.md, IntelRdt.

/// A class is a directory below the root of resctrl, or the root itself. COMPAT: runc's words.
pub(super) fn rdt_class_is_a_name(check: &mut Check<'_>) {
    /// What the kernel has there itself.
    const TAKEN: [&str; 3] = ["info", "mon_data", "mon_groups"];
    let class = check
        .linux()
        .and_then(|linux| linux.intel_rdt().as_ref()?.clos_id().as_deref());
    let Some(class) = class.filter(|class| !["", "/"].contains(class)) else {
        return;
    };
    if [".", ".."].contains(&class) || class.contains(['/', '\n']) || TAKEN.contains(&class) {
        check.say(
            "linux.intelRdt.closID",
            format!("invalid intelRdt.ClosID {class:?}"),
        );
    }
}

pub(super) fn rdt_schemata_are_lines(check: &mut Check<'_>) {
    let Some(rdt) = check.linux().and_then(|linux| linux.intel_rdt().as_ref()) else {
        return;
    };
    if let Some(schema) = rdt.mem_bw_schema().as_deref().filter(|s| !s.is_empty())
        && (!schema.starts_with("MB:") || schema.contains('\n'))
    {
        check.say(
            "linux.intelRdt.memBwSchema",
            format!("{schema:?} is not one line that begins with \"MB:\""),
        );
    }
    for (i, line) in rdt.schemata().iter().flatten().enumerate() {
        if line.contains('\n') {
            check.say(
                format!("linux.intelRdt.schemata[{i}]"),
                format!("{line:?} is more than one line"),
            );
        }
    }
}

// config-linux.md, seccomp: listeners.

pub(super) fn seccomp_default_is_no_notify(check: &mut Check<'_>) {
    let seccomp = check.linux().and_then(|linux| linux.seccomp().as_ref());
    if seccomp.is_some_and(|s| s.default_action() == LinuxSeccompAction::ScmpActNotify) {
        check.say(
            "linux.seccomp.defaultAction",
            "SCMP_ACT_NOTIFY cannot be used as default action",
        );
    }
}

fn given(text: &Option<String>) -> bool {
    text.as_ref().is_some_and(|text| !text.is_empty())
}

/// config-linux.md, seccomp: at least one name. A rule about no call would be one that somebody believes in.
pub(super) fn seccomp_rules_are_about_calls(check: &mut Check<'_>) {
    let seccomp = check.linux().and_then(|linux| linux.seccomp().as_ref());
    let rules = seccomp.and_then(|seccomp| seccomp.syscalls().as_ref());
    for (at, rule) in rules.into_iter().flatten().enumerate() {
        if rule.names().is_empty() {
            check.say(
                format!("linux.seccomp.syscalls[{at}].names"),
                "names must not be empty",
            );
        }
    }
}

/// The runtime itself has to write after the filter is loaded, before anybody could answer. COMPAT: runc's words.
pub(super) fn seccomp_notifies_somebody_who_can_answer(check: &mut Check<'_>) {
    let Some(seccomp) = check.linux().and_then(|linux| linux.seccomp().as_ref()) else {
        return;
    };
    let rules = seccomp.syscalls().iter().flatten().enumerate();
    let mut notifies = false;
    for (at, rule) in rules.filter(|(_, r)| r.action() == LinuxSeccompAction::ScmpActNotify) {
        notifies = true;
        if rule.names().iter().any(|name| name == "write") {
            check.say(
                format!("linux.seccomp.syscalls[{at}].action"),
                "SCMP_ACT_NOTIFY cannot be used for the write syscall",
            );
        }
    }
    if !notifies && seccomp.listener_path().is_none() && given(seccomp.listener_metadata()) {
        check.say(
            "linux.seccomp.listenerMetadata",
            "listenerMetadata is not to be set without a listenerPath",
        );
    }
    if notifies && seccomp.listener_path().is_none() {
        check.say(
            "linux.seccomp.listenerPath",
            "seccomp listenerPath is not set",
        );
    }
}
