//! From the bytes of config.json to types.
//!
//! A sound file is read by one `serde_json::from_slice`. Only when that fails is the file looked at again, as a tree:
//! what Go's decoder (and so every engine that was tested with runc) takes but oci-spec does not is put right, words
//! outside the specification's lists are collected as faults or warnings, and the rest is decoded once more with the
//! path of each member in hand, so that the error can name it.

use std::ffi::OsStr;

use anyhow::{Context as _, Result, anyhow, bail};
use oci_spec::runtime::{
    Arch, Capability, IOPriorityClass, LinuxDeviceType, LinuxNamespaceType, LinuxPersonalityDomain,
    LinuxResources, LinuxSchedulerFlag, LinuxSchedulerPolicy, LinuxSeccompAction,
    LinuxSeccompFilterFlag, LinuxSeccompOperator, MemoryPolicyFlagType, MemoryPolicyModeType,
    PosixRlimitType, Spec,
};
use serde::de::{Deserialize as _, DeserializeOwned};
use serde_json::{Map, Value};

use super::check::{Fault, Stage};
use super::strict::Strict;

/// What a config.json says, and what was wrong with single words of it.
pub(super) struct Decoded {
    pub(super) spec: Spec,
    pub(super) warnings: Vec<String>,
    pub(super) faults: Vec<Fault>,
}

/// Parse a config.json. Pure.
///
/// Errors: no JSON, a member of the wrong type, or a word outside the specification's list for it; each names the
/// member and the rule. Unknown members are ignored, as the specification asks (spec.md, extensibility).
#[cfg(test)]
pub(crate) fn parse(raw: &[u8]) -> Result<Spec> {
    let decoded = decode(raw)?;
    match decoded.faults.into_iter().min_by_key(Fault::stage) {
        Some(fault) => bail!("{fault}"),
        None => Ok(decoded.spec),
    }
}

/// As [`parse`], but go on past words that are not in the specification's lists: they are left out of the result and
/// returned as faults, so that `check` can report them together with everything else.
pub(super) fn decode(raw: &[u8]) -> Result<Decoded> {
    let mut decoded = match sound(raw) {
        Ok(spec) if !is_misspelled(&spec) => Decoded {
            spec,
            warnings: Vec::new(),
            faults: Vec::new(),
        },
        _ => decode_again(raw)?,
    };
    if mentions_nul(raw) {
        let config = serde_json::from_slice(raw).context("config.json")?;
        report_nul(&config, &mut String::new(), &mut decoded.faults);
    }
    forget_empty(&mut decoded.spec);
    forget_absent_pids_limit(raw, &mut decoded.spec)?;
    report_absent_class(raw, &mut decoded)?;
    decoded
        .warnings
        .extend(decoded.spec.mounts().iter().flatten().filter_map(|mount| {
            // config.md, mounts: relative destinations are deprecated but mean a path under "/".
            let destination = mount.destination();
            (destination.is_relative() && destination != "").then(|| {
            format!(
                "mount {destination:?}: relative destination is deprecated, taken as relative to /"
            )
        })
        }));
    let linux = decoded.spec.linux().as_ref();
    let flags = linux
        .and_then(|linux| linux.personality().as_ref()?.flags().as_ref())
        .filter(|flags| !flags.is_empty());
    if let Some(flags) = flags {
        // config-linux.md, personality: no flag is supported so far. COMPAT: runc goes on, and so do we.
        let flags = flags.join(", ");
        decoded.warnings.push(format!(
            "linux.personality.flags: ignoring unsupported personality flags: {flags}"
        ));
    }
    Ok(decoded)
}

/// A configuration that needs nothing put right.
fn sound(raw: &[u8]) -> serde_json::Result<Spec> {
    let mut json = serde_json::Deserializer::from_slice(raw);
    let spec = Spec::deserialize(Strict(&mut json))?;
    json.end()?;
    Ok(spec)
}

/// Parse what stands at `linux.resources` in a config.json, alone. Errors: as for the whole; the first fault is one.
pub(super) fn resources(raw: &[u8]) -> Result<LinuxResources> {
    let value: Value = serde_json::from_slice(raw).map_err(|e| anyhow!("resources: {e}"))?;
    let whole = serde_json::json!({ "ociVersion": "1.0.0", "linux": { "resources": value } });
    let decoded = decode(whole.to_string().as_bytes()).map_err(|error| {
        let text = format!("{error:#}");
        anyhow!(
            "{}",
            text.strip_prefix("config.json: ")
                .unwrap_or(&text)
                .to_owned()
        )
    })?;
    if let Some(fault) = decoded.faults.into_iter().min_by_key(Fault::stage) {
        bail!("{fault}");
    }
    let linux = decoded.spec.linux().as_ref();
    Ok(linux
        .and_then(|linux| linux.resources().clone())
        .unwrap_or_default())
}

/// The same for a process by itself, which may hold whatever `process` of a config.json may.
pub(super) fn process(text: &[u8]) -> Result<Decoded> {
    member("process", text)
}

/// The same for mounts by themselves.
pub(super) fn mounts(text: &[u8]) -> Result<Decoded> {
    member("mounts", text)
}

fn member(name: &str, text: &[u8]) -> Result<Decoded> {
    // One value and nothing behind it, so that it can stand in another.
    serde_json::from_slice::<serde::de::IgnoredAny>(text).map_err(|e| anyhow!("{e}"))?;
    let head = format!(r#"{{"ociVersion":"1.0.0","{name}":"#);
    let config = [head.as_bytes(), text, b"}"].concat();
    decode(&config).map_err(|error| {
        let text = error.to_string();
        anyhow!(
            "{}",
            text.strip_prefix("config.json: ")
                .unwrap_or(&text)
                .to_owned()
        )
    })
}

fn decode_again(raw: &[u8]) -> Result<Decoded> {
    let mut config: Value = serde_json::from_slice(raw).map_err(|e| anyhow!("config.json: {e}"))?;
    if config.is_null() {
        bail!("config cannot be null");
    }
    let mut warnings = Vec::new();
    let mut faults = Vec::new();
    fill_null(&mut config);
    drop_null(&mut config);
    accept_what_go_accepts(&mut config);
    for word in WORDS {
        let mut report = |field: &str, found: &str| match word.stage {
            Some(stage) => faults.push(Fault::new(stage, field, (word.rule)(found))),
            None => warnings.push(format!("{field}: {}", (word.rule)(found))),
        };
        drop_unknown(&mut config, word.at, &mut String::new(), word, &mut report);
    }
    respell(&mut config);
    let spec = serde_path_to_error::deserialize(Strict(config)).map_err(|e| {
        // What was left out has moved the indexes: name it rather than a place that may be wrong.
        if let Some(fault) = faults.iter().min_by_key(|fault| fault.stage()) {
            return anyhow!("{fault}");
        }
        match e.path().to_string().as_str() {
            "." => anyhow!("config.json: {}", e.inner()),
            path => anyhow!("config.json: {path}: {}", e.inner()),
        }
    })?;
    Ok(Decoded {
        spec,
        warnings,
        faults,
    })
}

/// A member whose value is one of a closed list of words.
struct Word {
    /// Where it stands; `*` is every item of an array or every value of an object.
    at: &'static [&'static str],
    known: fn(&Value) -> bool,
    /// What to say of an unknown word.
    rule: fn(&str) -> String,
    /// When runc would come upon it; `None`: only a warning.
    stage: Option<Stage>,
}

// The words follow runc's, as far as callers see them.
#[rustfmt::skip]
const WORDS: &[Word] = &[
    Word { at: &["linux", "namespaces", "*", "type"], known: is::<LinuxNamespaceType>,
        rule: |w| format!("namespace {w:?} does not exist"), stage: Some(Stage::Namespaces) },
    Word { at: &["linux", "devices", "*", "type"], known: is::<LinuxDeviceType>,
        rule: |w| format!("invalid device type {w:?}"), stage: Some(Stage::Devices) },
    Word { at: &["linux", "resources", "devices", "*", "type"], known: is::<LinuxDeviceType>,
        rule: |w| format!("invalid cgroup device type {w:?}"), stage: Some(Stage::DeviceRules) },
    Word { at: &["linux", "seccomp", "defaultAction"], known: is::<LinuxSeccompAction>,
        rule: |w| format!("string {w} is not a valid action for seccomp"), stage: Some(Stage::Seccomp) },
    // ORDER: before the action, whose fault takes a rule out and so moves the indexes after it.
    Word { at: &["linux", "seccomp", "syscalls", "*", "args", "*", "op"], known: is::<LinuxSeccompOperator>,
        rule: |w| format!("string {w} is not a valid operator for seccomp"), stage: Some(Stage::Seccomp) },
    Word { at: &["linux", "seccomp", "syscalls", "*", "action"], known: is::<LinuxSeccompAction>,
        rule: |w| format!("string {w} is not a valid action for seccomp"), stage: Some(Stage::Seccomp) },
    Word { at: &["linux", "seccomp", "architectures", "*"], known: is::<Arch>,
        rule: |w| format!("string {w} is not a valid arch for seccomp"), stage: Some(Stage::Seccomp) },
    Word { at: &["linux", "seccomp", "flags", "*"], known: is::<LinuxSeccompFilterFlag>,
        rule: |w| format!("seccomp flag {w} is not known to pelagos"), stage: Some(Stage::Seccomp) },
    Word { at: &["process", "rlimits", "*", "type"], known: is::<PosixRlimitType>,
        rule: |w| format!("wrong rlimit value: {w}"), stage: Some(Stage::Process) },
    Word { at: &["process", "scheduler", "policy"], known: is::<LinuxSchedulerPolicy>,
        rule: |w| format!("invalid scheduler policy: {w}"), stage: Some(Stage::Scheduler) },
    Word { at: &["process", "scheduler", "flags", "*"], known: is_scheduler_flag,
        rule: |w| format!("invalid scheduler flag: {w}"), stage: Some(Stage::Scheduler) },
    Word { at: &["process", "ioPriority", "class"], known: is::<IOPriorityClass>,
        rule: |w| format!("invalid ioPriority.Class: {w}"), stage: Some(Stage::IoPriority) },
    Word { at: &["linux", "personality", "domain"], known: is::<LinuxPersonalityDomain>,
        rule: |w| format!("invalid personality domain {w}"), stage: Some(Stage::Seccomp) },
    Word { at: &["linux", "memoryPolicy", "mode"], known: is::<MemoryPolicyModeType>,
        rule: |w| format!("invalid memory policy mode: {w}"), stage: Some(Stage::MemoryPolicy) },
    Word { at: &["linux", "memoryPolicy", "flags", "*"], known: is::<MemoryPolicyFlagType>,
        rule: |w| format!("invalid memory policy flag: {w}"), stage: Some(Stage::MemoryPolicy) },
    // config.md, Linux process: a capability that cannot be mapped must be a warning, not an error.
    Word { at: &["process", "capabilities", "*", "*"], known: is::<Capability>,
        rule: |w| format!("unknown capability {w:?} ignored"), stage: None },
];

fn is<T: DeserializeOwned>(value: &Value) -> bool {
    T::deserialize(value).is_ok()
}

/// Look at every word at `at`; report the unknown ones and drop the smallest thing that has no meaning without its
/// word. True: drop `value` itself.
fn drop_unknown(
    value: &mut Value,
    at: &[&str],
    path: &mut String,
    word: &Word,
    report: &mut dyn FnMut(&str, &str),
) -> bool {
    let Some((step, rest)) = at.split_first() else {
        // Anything but a string is a wrong type, which the decoder names.
        return match value.as_str() {
            Some(found) if !(word.known)(value) => {
                report(path, found);
                true
            }
            _ => false,
        };
    };
    let length = path.len();
    match value {
        Value::Array(items) if *step == "*" => {
            let mut index = 0;
            items.retain_mut(|item| {
                path.push_str(&format!("[{index}]"));
                index += 1;
                let dropped = drop_unknown(item, rest, path, word, report);
                path.truncate(length);
                !dropped
            });
        }
        Value::Object(members) => {
            let mut incomplete = false;
            members.retain(|key, member| {
                if *step != "*" && step != key {
                    return true;
                }
                push_key(path, key);
                let dropped = drop_unknown(member, rest, path, word, report);
                path.truncate(length);
                incomplete |= dropped && rest.is_empty();
                !dropped
            });
            return incomplete;
        }
        _ => {}
    }
    false
}

fn push_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// To Go a null in a map is an entry, whose value is empty.
fn fill_null(config: &mut Value) {
    for (map, empty) in [
        ("/annotations", Value::from("")),
        ("/linux/sysctl", Value::from("")),
        ("/linux/resources/unified", Value::from("")),
        ("/linux/netDevices", Value::Object(Map::new())),
        ("/linux/resources/rdma", Value::Object(Map::new())),
        ("/linux/timeOffsets", Value::Object(Map::new())),
    ] {
        let entries = config.pointer_mut(map).and_then(Value::as_object_mut);
        for value in entries.into_iter().flat_map(Map::values_mut) {
            if value.is_null() {
                *value = empty.clone();
            }
        }
    }
}

/// To Go a null for a member is "not set", whatever the type.
fn drop_null(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_null);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_null),
        _ => {}
    }
}

/// What is sound to runc and means something, but has no place in oci-spec's types.
fn accept_what_go_accepts(config: &mut Value) {
    let Some(config) = config.as_object_mut() else {
        return;
    };
    // Sections of other platforms, and two members that oci-spec knows and the specification does not.
    for foreign in [
        "solaris",
        "windows",
        "vm",
        "zos",
        "freebsd",
        "uidMappings",
        "gidMappings",
    ] {
        config.remove(foreign);
    }
    if let Some(Value::Object(process)) = config.get_mut("process") {
        // Left to `check`, which has the words for an empty working directory.
        process.entry("cwd").or_insert_with(|| Value::from(""));
        process
            .entry("user")
            .or_insert_with(|| Value::Object(Map::new()));
        if let Some(Value::Object(affinity)) = process.get_mut("execCPUAffinity") {
            affinity.retain(|_, list| list != "");
        }
    }
    let Some(Value::Object(linux)) = config.get_mut("linux") else {
        return;
    };
    // Neither an action nor a rule: no filter.
    let is_empty = |seccomp: &Value| {
        let action = seccomp.get("defaultAction").is_none_or(|word| word == "");
        let rules = seccomp.get("syscalls").and_then(Value::as_array);
        action && seccomp.is_object() && rules.is_none_or(Vec::is_empty)
    };
    if linux.get("seccomp").is_some_and(is_empty) {
        linux.remove("seccomp");
    }
    let Some(Value::Object(resources)) = linux.get_mut("resources") else {
        return;
    };
    for rule in items(resources, "devices") {
        if rule.get("type").is_some_and(|word| word == "") {
            rule.remove("type");
        }
    }
    for limit in items(resources, "hugepageLimits") {
        // The specification has an unsigned number here, oci-spec a signed one. No machine has 2^63 bytes.
        if let Some(number) = limit.get_mut("limit")
            && number.as_u64() > Some(i64::MAX as u64)
        {
            *number = Value::from(i64::MAX);
        }
    }
}

/// Two words of the specification that oci-spec spells in its own way.
const RESPELLED: [(&str, LinuxSchedulerFlag); 2] = [
    (
        "SCHED_FLAG_RESET_ON_FORK",
        LinuxSchedulerFlag::SchedResetOnFork,
    ),
    (
        "SCHED_FLAG_DL_OVERRUN",
        LinuxSchedulerFlag::SchedFlagDLOverrun,
    ),
];

fn is_respelled(flag: &LinuxSchedulerFlag) -> bool {
    RESPELLED.iter().any(|(_, own)| own == flag)
}

fn is_scheduler_flag(word: &Value) -> bool {
    RESPELLED.iter().any(|(theirs, _)| word == theirs)
        || LinuxSchedulerFlag::deserialize(word).is_ok_and(|flag| !is_respelled(&flag))
}

/// Whether a word stands in a configuration as oci-spec alone spells it.
fn is_misspelled(spec: &Spec) -> bool {
    let scheduler = spec.process().as_ref().and_then(|p| p.scheduler().as_ref());
    let mut flags = scheduler.iter().flat_map(|s| s.flags()).flatten();
    flags.any(is_respelled)
}

fn respell(config: &mut Value) {
    let flags = config.pointer_mut("/process/scheduler/flags");
    for flag in flags.into_iter().filter_map(Value::as_array_mut).flatten() {
        if let Some((_, own)) = RESPELLED.iter().find(|(theirs, _)| flag == theirs) {
            *flag = serde_json::json!(own);
        }
    }
}

/// The objects of the array `name`.
fn items<'a>(
    of: &'a mut Map<String, Value>,
    name: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    of.get_mut(name)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

fn mentions_nul(raw: &[u8]) -> bool {
    const NUL: &[u8] = b"\\u0000";
    let mut rest = raw;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
        rest = &rest[at..];
        if rest.starts_with(NUL) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// No string that may reach the kernel can hold a NUL: all are read to the first one. Annotations stay among us.
fn report_nul(value: &Value, path: &mut String, faults: &mut Vec<Fault>) {
    let length = path.len();
    match value {
        Value::String(text) if text.contains('\0') => {
            let rule = match path.starts_with("process.env[") {
                true => "invalid environment variable: contains nul byte",
                false => "contains nul byte",
            };
            faults.push(Fault::new(Stage::Load, path.as_str(), rule));
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                report_nul(item, path, faults);
                path.truncate(length);
            }
        }
        Value::Object(members) => {
            for (key, member) in members {
                if path.is_empty() && key == "annotations" {
                    continue;
                }
                push_key(path, &key.escape_debug().to_string());
                if key.contains('\0') {
                    faults.push(Fault::new(Stage::Load, path.as_str(), "contains nul byte"));
                }
                report_nul(member, path, faults);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

// COMPAT: runc cannot tell an empty string from an absent one, and engines send both.
fn forget_empty(spec: &mut Spec) {
    unset(spec.hostname_mut());
    unset(spec.domainname_mut());
    if let Some(process) = spec.process_mut() {
        if process.selinux_label().as_deref() == Some("") {
            process.set_selinux_label(None);
        }
        if process.apparmor_profile().as_deref() == Some("") {
            process.set_apparmor_profile(None);
        }
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        unset(mount.typ_mut());
        unset(mount.source_mut());
    }
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    unset(linux.cgroups_path_mut());
    unset(linux.mount_label_mut());
    unset(linux.rootfs_propagation_mut());
    for namespace in linux.namespaces_mut().iter_mut().flatten() {
        if namespace.path().as_ref().is_some_and(|p| p == "") {
            namespace.set_path(None);
        }
    }
    if let Some(seccomp) = linux.seccomp_mut()
        && seccomp.listener_path().as_ref().is_some_and(|p| p == "")
    {
        seccomp.set_listener_path(None);
    }
    let Some(resources) = linux.resources_mut() else {
        return;
    };
    for rule in resources.devices_mut().iter_mut().flatten() {
        unset(rule.access_mut());
    }
    if let Some(cpu) = resources.cpu_mut() {
        if cpu.cpus().as_deref() == Some("") {
            cpu.set_cpus(None);
        }
        if cpu.mems().as_deref() == Some("") {
            cpu.set_mems(None);
        }
    }
}

fn unset<T: AsRef<OsStr>>(text: &mut Option<T>) {
    if text.as_ref().is_some_and(|t| t.as_ref().is_empty()) {
        *text = None;
    }
}

/// oci-spec reads an absent pids limit as 0, but 0 is a limit since runtime-spec 1.3 (config-linux.md, PIDs).
fn forget_absent_pids_limit(raw: &[u8], spec: &mut Spec) -> Result<()> {
    let resources = spec
        .linux_mut()
        .as_mut()
        .and_then(|l| l.resources_mut().as_mut());
    if let Some(resources) = resources
        && resources.pids().is_some_and(|pids| pids.limit() == 0)
        && is_absent(raw, "/linux/resources/pids/limit")?
    {
        resources.set_pids(None);
    }
    Ok(())
}

/// oci-spec makes up a class of I/O priority, but it is required (config.md, ioPriority). COMPAT: runc's words for none.
fn report_absent_class(raw: &[u8], decoded: &mut Decoded) -> Result<()> {
    const FIELD: &str = "process.ioPriority.class";
    let process = decoded.spec.process().as_ref();
    let made_up = process
        .and_then(|process| process.io_priority().as_ref())
        .is_some_and(|wanted| wanted.class() == IOPriorityClass::default());
    if made_up
        && decoded.faults.iter().all(|fault| fault.field != FIELD)
        && is_absent(raw, "/process/ioPriority/class")?
    {
        let rule = "invalid ioPriority.Class: \"\"";
        decoded
            .faults
            .push(Fault::new(Stage::IoPriority, FIELD, rule));
    }
    Ok(())
}

/// Whether config.json does not say what its decoder says for it.
fn is_absent(raw: &[u8], pointer: &str) -> Result<bool> {
    let config: Value = serde_json::from_slice(raw).context("config.json")?;
    Ok(config.pointer(pointer).is_none_or(Value::is_null))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::default_config;
    use serde_json::json;

    /// The template with the value at `at` replaced; `null` stands for a removed member.
    fn config(at: &str, value: Value) -> Vec<u8> {
        let mut config: Value = serde_json::from_str(&default_config(None, true)).unwrap();
        super::super::check::tests::set(&mut config, at, value);
        config.to_string().into_bytes()
    }

    #[test]
    fn what_runc_accepts_is_accepted() {
        for (at, value) in [
            ("/process/user", Value::Null),
            ("/process/capabilities/bounding", json!(null)),
            ("/windows", json!({"layerFolders": 1})),
            ("/uidMappings", json!("never existed")),
            ("/mounts/0/unknown", json!({"x": [1]})),
            ("/linux/newerMember", json!({"x": [1]})),
            ("/linux/netDevices", json!({})),
            ("/linux/resources/devices/0/type", json!("")),
            (
                "/linux/resources/hugepageLimits",
                json!([{"pageSize": "2MB", "limit": u64::MAX}]),
            ),
            (
                "/process/execCPUAffinity",
                json!({"initial": "", "final": "0-3,7"}),
            ),
            ("/annotations", json!({"a": "\u{0}"})),
        ] {
            let raw = config(at, value);
            assert_eq!(parse(&raw).err().map(|e| e.to_string()), None, "{at}");
        }
        let raw = String::from_utf8(config("/hostname", json!("x"))).unwrap();
        let nulls = raw.replacen(
            "\"hostname\":\"x\"",
            "\"hostname\":null,\"hooks\":null,\"root2\":null",
            1,
        );
        assert_eq!(parse(nulls.as_bytes()).unwrap().hostname(), &None);
    }

    #[test]
    fn unknown_capabilities_are_dropped_with_a_warning() {
        let raw = config(
            "/process/capabilities/bounding",
            json!(["CAP_KILL", "CAP_NEWER", "CAP_CHOWN"]),
        );
        let decoded = decode(&raw).unwrap();
        assert_eq!(
            decoded.warnings,
            ["process.capabilities.bounding[1]: unknown capability \"CAP_NEWER\" ignored"]
        );
        assert_eq!(decoded.faults, []);
        let process = decoded.spec.process().as_ref().unwrap();
        let bounding = process
            .capabilities()
            .as_ref()
            .unwrap()
            .bounding()
            .clone()
            .unwrap();
        assert_eq!(bounding, [Capability::Kill, Capability::Chown].into());
    }

    #[test]
    fn a_relative_mount_destination_is_a_warning() {
        let raw = config("/mounts/0/destination", json!("proc"));
        assert_eq!(
            decode(&raw).unwrap().warnings,
            ["mount \"proc\": relative destination is deprecated, taken as relative to /"]
        );
    }

    #[test]
    fn an_empty_string_is_an_absent_one() {
        for at in [
            "/hostname",
            "/linux/cgroupsPath",
            "/linux/mountLabel",
            "/linux/rootfsPropagation",
        ] {
            let spec = parse(&config(at, json!(""))).unwrap();
            let tree = serde_json::to_value(&spec).unwrap();
            assert_eq!(tree.pointer(at), None, "{at}");
        }
        let spec = parse(&config("/linux/namespaces/0/path", json!(""))).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap()[0].path(), &None);
    }

    #[test]
    fn a_pids_limit_of_zero_is_a_limit_and_an_absent_one_is_none() {
        for (pids, limit) in [
            (json!({"limit": 0}), Some(0)),
            (json!({"limit": 7}), Some(7)),
            (json!({"limit": null}), None),
            (json!({}), None),
        ] {
            let spec = parse(&config("/linux/resources/pids", pids.clone())).unwrap();
            let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
            assert_eq!(resources.pids().map(|p| p.limit()), limit, "{pids}");
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_its_rule() {
        for (at, value, error) in [
            (
                "/process/args",
                json!("sh"),
                "config.json: process.args: invalid type: string \"sh\", expected a sequence",
            ),
            (
                "/process/user/uid",
                json!(-1),
                "config.json: process.user.uid: invalid value: integer `-1`, expected u32",
            ),
            (
                "/mounts/0/destination",
                json!(null),
                "config.json: mounts[0]: missing field `destination`",
            ),
            (
                "/linux/namespaces",
                json!({}),
                "config.json: linux.namespaces: invalid type: map, expected a sequence",
            ),
            (
                "/linux/namespaces/1/type",
                json!(7),
                "config.json: linux.namespaces[1].type: invalid type: integer `7`, expected a string",
            ),
            (
                "/linux/namespaces/1/type",
                json!("x"),
                "linux.namespaces[1].type: namespace \"x\" does not exist",
            ),
            (
                "/linux/namespaces/1/type",
                json!(""),
                "linux.namespaces[1].type: namespace \"\" does not exist",
            ),
            (
                "/process/rlimits/0/type",
                json!("RLIMIT_X"),
                "process.rlimits[0].type: wrong rlimit value: RLIMIT_X",
            ),
            (
                "/linux/devices",
                json!([{"path": "/dev/x", "type": "q"}]),
                "linux.devices[0].type: invalid device type \"q\"",
            ),
            (
                "/linux/resources/devices/0/type",
                json!("q"),
                "linux.resources.devices[0].type: invalid cgroup device type \"q\"",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "X"}),
                "linux.seccomp.defaultAction: string X is not a valid action for seccomp",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86", "X"]}),
                "linux.seccomp.architectures[1]: string X is not a valid arch for seccomp",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}),
                "linux.seccomp.flags[0]: seccomp flag X is not known to pelagos",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG",
                "args": [{"index": 0, "value": 1, "op": "X"}]}]}),
                "linux.seccomp.syscalls[0].args[0].op: string X is not a valid operator for seccomp",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "X"}]}),
                "linux.seccomp.syscalls[0].action: string X is not a valid action for seccomp",
            ),
            (
                "/process/scheduler",
                json!({"policy": "X"}),
                "process.scheduler.policy: invalid scheduler policy: X",
            ),
            (
                "/process/scheduler",
                json!({"policy": "SCHED_IDLE", "flags": ["SCHED_FLAG_RESET_ON_FORK", "X"]}),
                "process.scheduler.flags[1]: invalid scheduler flag: X",
            ),
            (
                "/process/ioPriority",
                json!({"class": "X", "priority": 1}),
                "process.ioPriority.class: invalid ioPriority.Class: X",
            ),
            (
                "/process/ioPriority",
                json!({"priority": 1}),
                "process.ioPriority.class: invalid ioPriority.Class: \"\"",
            ),
            (
                "/process/ioPriority",
                json!({"class": null, "priority": 1}),
                "process.ioPriority.class: invalid ioPriority.Class: \"\"",
            ),
            (
                "/linux/personality",
                json!({"domain": "X"}),
                "linux.personality.domain: invalid personality domain X",
            ),
            (
                "/linux/memoryPolicy",
                json!({"mode": "X"}),
                "linux.memoryPolicy.mode: invalid memory policy mode: X",
            ),
            (
                "/linux/memoryPolicy",
                json!({"mode": "MPOL_LOCAL", "flags": ["X"]}),
                "linux.memoryPolicy.flags[0]: invalid memory policy flag: X",
            ),
            (
                "/process/cwd",
                json!("/\u{0}"),
                "process.cwd: contains nul byte",
            ),
            (
                "/process/env/0",
                json!("A=\u{0}"),
                "process.env[0]: invalid environment variable: contains nul byte",
            ),
            (
                "/linux/sysctl",
                json!({"net.a\u{0}": "1"}),
                "linux.sysctl.net.a\\0: contains nul byte",
            ),
            (
                "/mounts/0/options",
                json!(["a\u{0}"]),
                "mounts[0].options[0]: contains nul byte",
            ),
        ] {
            let raw = config(at, value);
            assert_eq!(parse(&raw).unwrap_err().to_string(), error, "{at}");
        }
    }

    /// A small generator of its own, so that a failure can be repeated (Vigna, splitmix64).
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
        }
    }

    /// Every node of the tree by its JSON pointer.
    fn pointers(value: &Value, at: String, out: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (key, member) in members {
                    pointers(member, format!("{at}/{key}"), out);
                }
            }
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    pointers(item, format!("{at}/{i}"), out);
                }
            }
            _ => {}
        }
        out.push(at);
    }

    #[test]
    fn no_mutation_of_a_config_makes_the_parser_or_a_rule_panic() {
        let text = super::super::check::tests::everything().to_string();
        let tree: Value = serde_json::from_str(&text).unwrap();
        let mut places = Vec::new();
        pointers(&tree, String::new(), &mut places);
        let values = [
            json!(null),
            json!(0),
            json!(-1),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(0.5),
            json!(""),
            json!("x"),
            json!("/"),
            json!("../.."),
            json!("\u{0}"),
            json!("é=\u{202e}"),
            json!([]),
            json!({}),
            json!([[]]),
            json!({"": ""}),
            json!([null]),
            json!(true),
            json!("net/./x"),
            json!("bind"),
        ];
        let mut random = Random(7);
        let mut accepted = 0;
        for round in 0..4000 {
            let raw = if round % 4 != 0 {
                let mut config = tree.clone();
                for _ in 0..8 {
                    if let Some(value) = config.pointer_mut(&places[random.below(places.len())]) {
                        let other = &values[random.below(values.len())];
                        // Mostly of the same type, or the rules would see little of it.
                        let same = std::mem::discriminant(other) == std::mem::discriminant(value);
                        if same || random.below(10) == 0 {
                            *value = other.clone();
                        }
                    }
                }
                config.to_string().into_bytes()
            } else {
                let mut raw = text.clone().into_bytes();
                for _ in 0..=random.below(3) {
                    let at = random.below(raw.len());
                    match random.below(3) {
                        0 => raw[at] = u8::try_from(random.below(256)).unwrap(),
                        1 => raw.truncate(at.max(1)),
                        _ => {
                            raw.remove(at);
                        }
                    }
                    if raw.is_empty() {
                        raw.push(b'{');
                    }
                }
                raw
            };
            if let Ok(decoded) = decode(&raw) {
                accepted += 1;
                let how = super::super::Context {
                    rootless: round % 3 == 0,
                    ..Default::default()
                };
                super::super::check::check(&decoded.spec, &how, decoded.faults);
            }
        }
        assert!(
            (1000..3900).contains(&accepted),
            "{accepted} of 4000 reached the rules"
        );
    }
}
