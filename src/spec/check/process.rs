//! The process, its root directory and names, and the rest of config.md that no other file has.

use std::collections::BTreeSet;

use oci_spec::runtime::{Hook, LinuxNamespaceType, Process};

use super::{Check, maps};
use crate::spec::features::OCI_VERSION_MAX;

// config.md, process.

pub(super) fn process_exists(check: &mut Check<'_>) {
    if check.process().is_none() {
        check.say("process", "process property must not be empty");
    }
}

pub(super) fn cwd_is_absolute(check: &mut Check<'_>) {
    match check.process().map(Process::cwd) {
        Some(cwd) if cwd == "" => check.say("process.cwd", "Cwd property must not be empty"),
        Some(cwd) if !cwd.is_absolute() => {
            check.say("process.cwd", "Cwd must be an absolute path");
        }
        _ => {}
    }
}

pub(super) fn args_has_one(check: &mut Check<'_>) {
    if check
        .process()
        .is_some_and(|p| p.args().as_ref().is_none_or(Vec::is_empty))
    {
        check.say("process.args", "args must not be empty");
    }
}

/// IEEE Std 1003.1 `environ`, as config.md asks; and POSIX process: a variable has a name.
pub(super) fn env_is_an_environment(check: &mut Check<'_>) {
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
pub(super) fn rlimits_are_single_and_ordered(check: &mut Check<'_>) {
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
pub(super) fn ids_are_ids(check: &mut Check<'_>) {
    for (field, id, _) in check.process().into_iter().flat_map(ids) {
        if id == u32::MAX {
            check.say(field, format!("{id} is not a valid id"));
        }
    }
}

pub(super) fn ids_are_mapped(check: &mut Check<'_>) {
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

pub(super) fn rootless_has_no_groups(check: &mut Check<'_>) {
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
pub(super) fn numbers_are_in_range(check: &mut Check<'_>) {
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

pub(super) fn root_exists(check: &mut Check<'_>) {
    match check.spec.root() {
        None => check.say("root", "root must be specified"),
        Some(root) if root.path() == "" => check.say("root.path", "root path must not be empty"),
        Some(_) => {}
    }
}

pub(super) fn names_have_their_namespace(check: &mut Check<'_>) {
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

// config.md, hooks, annotations, specification version.

pub(super) fn hooks_can_run(check: &mut Check<'_>) {
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

pub(super) fn annotations_have_keys(check: &mut Check<'_>) {
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
pub(super) fn version_is_known(check: &mut Check<'_>) {
    let version = check.spec.version();
    let major = version.split('.').next().unwrap_or_default();
    if !["", "0", "1"].contains(&major) {
        check.say(
            "ociVersion",
            format!("version {version:?} is not supported: up to {OCI_VERSION_MAX} is"),
        );
    }
}
