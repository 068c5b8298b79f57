//! Mounts. config.md and its Linux mount options.

use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount};

use super::namespaces::id_map_is_sound;
use super::{Check, inside};
use crate::spec::features::{BIND_OPTIONS, MOUNT_OPTIONS};

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

fn is_bind(mount: &Mount) -> bool {
    mount
        .options()
        .iter()
        .flatten()
        .any(|word| word == "bind" || word == "rbind")
}

/// Whether a file of /proc is one that engines replace; `inner` is relative to the root.
pub(crate) fn may_replace_in_proc(inner: &Path) -> bool {
    PROC_ALLOWED
        .iter()
        .any(|allowed| inner == Path::new(allowed.trim_start_matches('/')))
}

pub(super) fn destinations_are_allowed(check: &mut Check<'_>) {
    for (field, mount) in check.mounts() {
        let field = || format!("{field}.destination");
        let destination = mount.destination();
        let clean = inside(destination);
        if destination == "" {
            check.say(field(), "destination must not be empty");
        } else if clean == Path::new("/") {
            check.say(field(), format!("{destination:?} is on the top of rootfs"));
        } else if clean == Path::new("/proc") {
            // CVE-2019-16884: a false /proc would take the writes that confine the container's process. A bind of the
            // host's own is a real one, which engines use together with the host's pid namespace.
            let real = match is_bind(mount) {
                true => mount.source().as_deref() == Some(Path::new("/proc")),
                false => mount.typ().as_deref() == Some("proc"),
            };
            if !real {
                check.say(
                    field(),
                    format!("{destination:?} cannot be mounted because it is not of type proc"),
                );
            }
        } else if let Ok(inner) = clean.strip_prefix("/")
            && inner.starts_with("proc")
            && !may_replace_in_proc(inner)
        {
            check.say(
                field(),
                format!("{destination:?} cannot be mounted because it is inside /proc"),
            );
        }
    }
}

pub(super) fn mounts_have_what_they_need(check: &mut Check<'_>) {
    for (field, mount) in check.mounts() {
        let empty = |text: Option<&str>| text.is_none_or(str::is_empty);
        let remount = mount
            .options()
            .iter()
            .flatten()
            .any(|word| word == "remount");
        // A remount changes what is there already.
        if remount {
            continue;
        }
        if is_bind(mount) {
            if mount.source().as_ref().is_none_or(|source| source == "") {
                check.say(format!("{field}.source"), "bind mount has no source");
            }
        } else if empty(mount.typ().as_deref()) {
            check.say(format!("{field}.type"), "mount has no type");
        }
    }
}

pub(super) fn binds_have_no_data(check: &mut Check<'_>) {
    for (field, mount) in check.mounts() {
        let known = |word: &String| {
            MOUNT_OPTIONS.binary_search(&word.as_str()).is_ok()
                || BIND_OPTIONS.contains(&word.as_str())
                || is_id_map(word)
                || word.is_empty()
        };
        if is_bind(mount) && !mount.options().iter().flatten().all(known) {
            check.say(
                format!("{field}.options"),
                "bind mounts cannot have any filesystem-specific options applied",
            );
        }
    }
}

/// What is below the destination is copied into an empty file system alone.
pub(super) fn only_a_tmpfs_is_filled(check: &mut Check<'_>) {
    for (field, mount) in check.mounts() {
        let is_tmpfs = !is_bind(mount) && mount.typ().as_deref() == Some("tmpfs");
        if !is_tmpfs && has(mount, &["tmpcopyup"]) {
            check.say(
                format!("{field}.options"),
                "tmpcopyup can only be used with a tmpfs",
            );
        }
    }
}

/// Whether the ids of a mount are to be mapped: by maps of its own, or by a word.
fn is_id_mapped(mount: &Mount) -> bool {
    let mut words = mount.options().iter().flatten();
    given(mount.uid_mappings()) || given(mount.gid_mappings()) || words.any(|word| is_id_map(word))
}

fn is_id_map(word: &str) -> bool {
    let name = word.split('=').next();
    matches!(name, Some("idmap" | "ridmap"))
}

/// Whether a word brings maps with it.
fn has_maps(mount: &Mount) -> bool {
    let mut words = mount.options().iter().flatten();
    words.any(|word| is_id_map(word) && word.contains('='))
}

fn given(map: &Option<Vec<LinuxIdMapping>>) -> bool {
    map.as_ref().is_some_and(|map| !map.is_empty())
}

fn has(mount: &Mount, words: &[&str]) -> bool {
    let mut all = mount.options().iter().flatten();
    all.any(|word| words.contains(&word.as_str()))
}

pub(super) fn id_mapped_mounts_have_both_maps(check: &mut Check<'_>) {
    for (field, mount) in check.mounts() {
        let (uids, gids) = (given(mount.uid_mappings()), given(mount.gid_mappings()));
        if uids != gids {
            check.say(
                field,
                "id-mapped mounts must have both uid and gid mappings specified",
            );
        } else if uids && has_maps(mount) {
            check.say(
                field,
                "an id-mapped mount has its maps from its members or from an option, not from both",
            );
        } else if is_id_mapped(mount)
            && !uids
            && !has_maps(mount)
            && !check.namespaces.has(LinuxNamespaceType::User)
        {
            check.say(
                field,
                "id-mapped mounts must have both uid and gid mappings specified: the container has no user namespace to take them from",
            );
        }
    }
}

pub(super) fn id_maps_of_mounts_are_sound(check: &mut Check<'_>) {
    for (field, mount) in check.mounts() {
        for (name, map) in [
            ("uidMappings", mount.uid_mappings()),
            ("gidMappings", mount.gid_mappings()),
        ] {
            if let Some(map) = map {
                id_map_is_sound(check, &format!("{field}.{name}"), map);
            }
        }
    }
}

/// mount_setattr(2): only a mount that nobody has seen yet can be mapped, and only by who owns its file system.
pub(super) fn id_mapped_mounts_can_be(check: &mut Check<'_>) {
    for (field, mount) in check.mounts() {
        if !is_id_mapped(mount) {
            continue;
        }
        if check.how.rootless {
            check.say(
                field,
                "id-mapped mounts are not supported for rootless containers",
            );
        }
        if has(mount, &["remount"]) {
            check.say(field, "a remount cannot change what ids are mapped to");
        } else if !is_bind(mount) && matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) {
            check.say(field, "the cgroup hierarchy cannot be id-mapped");
        }
    }
}
