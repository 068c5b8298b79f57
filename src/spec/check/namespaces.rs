//! Namespaces, the maps and offsets of new ones, and what may only be changed in a container's own: sysctls, paths in
//! /proc and /sys, propagation. config-linux.md.

use std::collections::HashMap;
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType};

use super::{Check, inside, maps, path_of, sorted, word};

// config-linux.md, namespaces, user namespace mappings, offset for time namespace.

pub(super) fn namespaces_are_single(check: &mut Check<'_>) {
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

pub(super) fn namespace_paths_are_absolute(check: &mut Check<'_>) {
    for (i, namespace) in check.namespaces.0.iter().enumerate() {
        if path_of(namespace).is_some_and(Path::is_relative) {
            check.say(
                format!("linux.namespaces[{i}].path"),
                "namespace path must be absolute, not relative",
            );
        }
    }
}

pub(super) fn user_namespace_has_maps(check: &mut Check<'_>) {
    if check.namespaces.creates(LinuxNamespaceType::User) && !check.maps_decide() {
        check.say(
            "linux.uidMappings",
            "user namespaces enabled, but no namespace path to join nor mappings to apply specified",
        );
    }
}

pub(super) fn maps_have_their_namespace(check: &mut Check<'_>) {
    let mapped = !check.uid_map().is_empty() || !check.gid_map().is_empty();
    if mapped && !check.namespaces.has(LinuxNamespaceType::User) {
        check.say(
            "linux.uidMappings",
            "user namespace mappings specified, but user namespace isn't enabled in the config",
        );
    }
}

/// What the kernel takes as a map; and the container's root must be in it, since it is who sets the container up.
pub(super) fn id_maps_are_sound(check: &mut Check<'_>) {
    for (field, map) in [
        ("linux.uidMappings", check.uid_map()),
        ("linux.gidMappings", check.gid_map()),
    ] {
        if !map.is_empty() && check.namespaces.creates(LinuxNamespaceType::User) && !maps(map, 0) {
            check.say(
                field,
                "user namespaces enabled, but no user mapping found: id 0 is not mapped",
            );
        }
        id_map_is_sound(check, field, map);
    }
}

/// user_namespaces(7): what the kernel takes as a map.
pub(super) fn id_map_is_sound(check: &mut Check<'_>, field: &str, map: &[LinuxIdMapping]) {
    if map.len() > 340 {
        check.say(field, "the kernel takes no more than 340 mappings");
    }
    let line = |range: &LinuxIdMapping| {
        format!(
            "{} {} {}\n",
            range.container_id(),
            range.host_id(),
            range.size()
        )
        .len()
    };
    if map.len() > 100 && map.iter().map(line).sum::<usize>() >= 4096 {
        check.say(
            field,
            "the kernel takes less than 4096 bytes of mappings, and these are more: put ranges together",
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

pub(super) fn offsets_have_their_namespace(check: &mut Check<'_>) {
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

pub(super) fn offsets_name_a_clock(check: &mut Check<'_>) {
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

pub(super) fn restricted_paths_have_their_namespace(check: &mut Check<'_>) {
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

pub(super) fn restricted_paths_are_absolute(check: &mut Check<'_>) {
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

/// What would cover it nobody inside would see.
pub(super) fn the_root_is_not_masked(check: &mut Check<'_>) {
    let [(field, masked), _] = restricted_paths(check);
    for (i, path) in masked.iter().enumerate() {
        if path.starts_with('/') && inside(Path::new(path)) == Path::new("/") {
            check.say(format!("{field}[{i}]"), "the root cannot be masked");
        }
    }
}

pub(super) fn propagation_is_known(check: &mut Check<'_>) {
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

pub(super) fn sysctls_belong_to_the_container(check: &mut Check<'_>) {
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

// Rootless containers: what an unprivileged caller cannot have.

pub(super) fn rootless_has_a_user_namespace(check: &mut Check<'_>) {
    if check.how.rootless && !check.namespaces.has(LinuxNamespaceType::User) {
        check.say(
            "linux.namespaces",
            "rootless container requires user namespaces",
        );
    }
}

pub(super) fn rootless_mount_owners_are_mapped(check: &mut Check<'_>) {
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
