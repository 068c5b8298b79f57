//! What this build supports, as data: `features` prints it.

use std::collections::HashMap;

use oci_spec::runtime::{
    self as oci, Arch, LinuxNamespaceType, LinuxSeccompAction, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, MemoryPolicyFlagType, MemoryPolicyModeType,
};
use serde_json::{Serializer, Value, ser::PrettyFormatter};

/// The oldest and the newest runtime-spec whose config.json is understood.
const OCI_VERSION_MIN: &str = "1.0.0";
pub(super) const OCI_VERSION_MAX: &str = "1.3.0";

/// Mount option words that are not data for the filesystem, sorted (config.md, Linux mount options).
// COMPAT: runc does not list idmap and ridmap, which have their own member in the structure (mountExtensions).
#[rustfmt::skip]
pub(crate) const MOUNT_OPTIONS: &[&str] = &[
    "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "iversion", "lazytime", "loud",
    "mand", "noatime", "nodev", "nodiratime", "noexec", "noiversion", "nolazytime", "nomand", "norelatime",
    "nostrictatime", "nosuid", "nosymfollow", "private", "ratime", "rbind", "rdev", "rdiratime", "relatime",
    "remount", "rexec", "rnoatime", "rnodev", "rnodiratime", "rnoexec", "rnorelatime", "rnostrictatime", "rnosuid",
    "rnosymfollow", "ro", "rprivate", "rrelatime", "rro", "rrw", "rshared", "rslave", "rstrictatime", "rsuid",
    "rsymfollow", "runbindable", "rw", "shared", "silent", "slave", "strictatime", "suid", "symfollow", "sync",
    "tmpcopyup", "unbindable",
];

/// Words of bind mounts alone. COMPAT: crun's, and not listed, since runc lists none such.
pub(crate) const BIND_OPTIONS: &[&str] = &["copy-symlink", "dest-nofollow", "src-nofollow"];

/// Hook lists that are run (config.md, POSIX-platform hooks).
const HOOKS: &[&str] = &[
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

const NAMESPACES: &[LinuxNamespaceType] = &[
    LinuxNamespaceType::Cgroup,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Time,
    LinuxNamespaceType::User,
    LinuxNamespaceType::Uts,
];

const SECCOMP_ACTIONS: &[LinuxSeccompAction] = &[
    LinuxSeccompAction::ScmpActAllow,
    LinuxSeccompAction::ScmpActErrno,
    LinuxSeccompAction::ScmpActKill,
    LinuxSeccompAction::ScmpActKillProcess,
    LinuxSeccompAction::ScmpActKillThread,
    LinuxSeccompAction::ScmpActLog,
    LinuxSeccompAction::ScmpActNotify,
    LinuxSeccompAction::ScmpActTrace,
    LinuxSeccompAction::ScmpActTrap,
];

const SECCOMP_OPERATORS: &[LinuxSeccompOperator] = &[
    LinuxSeccompOperator::ScmpCmpEq,
    LinuxSeccompOperator::ScmpCmpGe,
    LinuxSeccompOperator::ScmpCmpGt,
    LinuxSeccompOperator::ScmpCmpLe,
    LinuxSeccompOperator::ScmpCmpLt,
    LinuxSeccompOperator::ScmpCmpMaskedEq,
    LinuxSeccompOperator::ScmpCmpNe,
];

/// Architectures that the linked libseccomp (2.5) can compile for.
const SECCOMP_ARCHS: &[Arch] = &[
    Arch::ScmpArchAarch64,
    Arch::ScmpArchArm,
    Arch::ScmpArchMips,
    Arch::ScmpArchMips64,
    Arch::ScmpArchMips64n32,
    Arch::ScmpArchMipsel,
    Arch::ScmpArchMipsel64,
    Arch::ScmpArchMipsel64n32,
    Arch::ScmpArchPpc,
    Arch::ScmpArchPpc64,
    Arch::ScmpArchPpc64le,
    Arch::ScmpArchRiscv64,
    Arch::ScmpArchS390,
    Arch::ScmpArchS390x,
    Arch::ScmpArchX32,
    Arch::ScmpArchX86,
    Arch::ScmpArchX86_64,
];

/// All that the specification knows.
const SECCOMP_FLAGS: &[LinuxSeccompFilterFlag] = &[
    LinuxSeccompFilterFlag::SeccompFilterFlagLog,
    LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow,
    LinuxSeccompFilterFlag::SeccompFilterFlagTsync,
    LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv,
];

const MEMORY_MODES: &[MemoryPolicyModeType] = &[
    MemoryPolicyModeType::MpolBind,
    MemoryPolicyModeType::MpolDefault,
    MemoryPolicyModeType::MpolInterleave,
    MemoryPolicyModeType::MpolLocal,
    MemoryPolicyModeType::MpolPreferred,
    MemoryPolicyModeType::MpolPreferredMany,
    MemoryPolicyModeType::MpolWeightedInterleave,
];

const MEMORY_FLAGS: &[MemoryPolicyFlagType] = &[
    MemoryPolicyFlagType::MpolFNumaBalancing,
    MemoryPolicyFlagType::MpolFRelativeNodes,
    MemoryPolicyFlagType::MpolFStaticNodes,
];

/// Annotations of config.json that change what is done with it; a trailing dot marks a prefix.
const UNSAFE_ANNOTATIONS: &[&str] = &[
    "bundle",
    "org.systemd.property.",
    "org.criu.config",
    "run.oci.",
];

/// The members of the features structure.
const TOP: [&str; 7] = [
    "ociVersionMin",
    "ociVersionMax",
    "hooks",
    "mountOptions",
    "linux",
    "annotations",
    "potentiallyUnsafeConfigAnnotations",
];

/// What the `features` verb prints: the features structure of runtime-spec 1.3 (features.md, features-linux.md), indented
/// by four spaces, without a final newline. It depends on the build alone, never on the host.
pub(crate) fn features_json() -> String {
    // Through a tree: maps come out in one order every time, and what is not set stays out.
    let mut tree = serde_json::to_value(features()).expect("string keys only");
    drop_unset(&mut tree);
    let mut text = Vec::new();
    let mut writer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    // COMPAT: the members in runc's order.
    let known = TOP.iter().filter_map(|name| Some((name, tree.get(name)?)));
    serde::Serializer::collect_map(&mut writer, known).expect("a Vec takes every write");
    String::from_utf8(text).expect("JSON is UTF-8")
}

fn features() -> oci::Features {
    let mut features = oci::Features::default();
    features
        .set_oci_version_min(OCI_VERSION_MIN.into())
        .set_oci_version_max(OCI_VERSION_MAX.into())
        .set_hooks(Some(owned(HOOKS)))
        .set_mount_options(Some(owned(MOUNT_OPTIONS)))
        .set_linux(Some(linux()))
        .set_annotations(Some(annotations()))
        .set_potentially_unsafe_config_annotations(Some(owned(UNSAFE_ANNOTATIONS)));
    features
}

fn linux() -> oci::LinuxFeature {
    let mut cgroup = oci::Cgroup::default();
    cgroup
        .set_v1(Some(false))
        .set_v2(Some(true))
        .set_systemd(Some(true))
        .set_systemd_user(Some(true))
        .set_rdma(Some(true));
    let mut apparmor = oci::Apparmor::default();
    apparmor.set_enabled(Some(true));
    let mut selinux = oci::Selinux::default();
    selinux.set_enabled(Some(true));
    let mut intel_rdt = oci::IntelRdt::default();
    intel_rdt
        .set_enabled(Some(true))
        .set_schemata(Some(true))
        .set_monitoring(Some(true));
    let mut idmap = oci::IDMap::default();
    idmap.set_enabled(Some(true));
    let mut mount_extensions = oci::MountExtensions::default();
    mount_extensions.set_idmap(Some(idmap));
    let mut net_devices = oci::NetDevices::default();
    net_devices.set_enabled(Some(true));

    let mut memory_policy = oci::MemoryPolicy::default();
    memory_policy
        .set_modes(Some(owned(MEMORY_MODES)))
        .set_flags(Some(owned(MEMORY_FLAGS)));

    let mut linux = oci::LinuxFeature::default();
    linux
        .set_namespaces(Some(NAMESPACES.to_vec()))
        .set_capabilities(Some(capabilities()))
        .set_cgroup(Some(cgroup))
        .set_seccomp(Some(seccomp()))
        .set_apparmor(Some(apparmor))
        .set_selinux(Some(selinux))
        .set_intel_rdt(Some(intel_rdt))
        .set_memory_policy(Some(memory_policy))
        .set_mount_extensions(Some(mount_extensions))
        .set_net_devices(Some(net_devices));
    linux
}

fn seccomp() -> oci::Seccomp {
    let mut seccomp = oci::Seccomp::default();
    seccomp
        .set_enabled(Some(true))
        .set_actions(Some(SECCOMP_ACTIONS.to_vec()))
        .set_operators(Some(owned(SECCOMP_OPERATORS)))
        .set_archs(Some(SECCOMP_ARCHS.to_vec()))
        .set_known_flags(Some(owned(SECCOMP_FLAGS)))
        .set_supported_flags(Some(owned(SECCOMP_FLAGS)));
    seccomp
}

/// Every capability the build knows by name, in the kernel's order.
fn capabilities() -> Vec<String> {
    let mut all: Vec<_> = caps::all().into_iter().collect();
    all.sort_by_key(caps::Capability::index);
    owned(&all)
}

fn annotations() -> HashMap<String, String> {
    let mut annotations = HashMap::from([(
        "run.pelagos.version".to_string(),
        env!("CARGO_PKG_VERSION").to_string(),
    )]);
    if let Ok(version) = libseccomp::ScmpVersion::current() {
        annotations.insert(
            "io.github.seccomp.libseccomp.version".into(),
            version.to_string(),
        );
    }
    annotations
}

fn owned(words: &[impl ToString]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn drop_unset(tree: &mut Value) {
    if let Value::Object(members) = tree {
        members.retain(|_, member| !member.is_null());
        members.values_mut().for_each(drop_unset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_what_the_specification_names() {
        let text = features_json();
        let tree: Value = serde_json::from_str(&text).unwrap();
        for (at, value) in [
            ("/ociVersionMin", "\"1.0.0\""),
            ("/ociVersionMax", "\"1.3.0\""),
            ("/hooks/0", "\"prestart\""),
            ("/linux/namespaces/2", "\"mount\""),
            ("/linux/capabilities/0", "\"CAP_CHOWN\""),
            ("/linux/capabilities/40", "\"CAP_CHECKPOINT_RESTORE\""),
            (
                "/linux/cgroup",
                r#"{"rdma":true,"systemd":true,"systemdUser":true,"v1":false,"v2":true}"#,
            ),
            ("/linux/seccomp/enabled", "true"),
            ("/linux/seccomp/actions/0", "\"SCMP_ACT_ALLOW\""),
            ("/linux/seccomp/operators/0", "\"SCMP_CMP_EQ\""),
            ("/linux/seccomp/archs/0", "\"SCMP_ARCH_AARCH64\""),
            (
                "/linux/seccomp/knownFlags/3",
                "\"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV\"",
            ),
            (
                "/linux/seccomp/supportedFlags/0",
                "\"SECCOMP_FILTER_FLAG_LOG\"",
            ),
            ("/linux/memoryPolicy/modes/0", "\"MPOL_BIND\""),
            ("/linux/memoryPolicy/flags/2", "\"MPOL_F_STATIC_NODES\""),
            ("/linux/apparmor", r#"{"enabled":true}"#),
            ("/linux/selinux", r#"{"enabled":true}"#),
            (
                "/linux/intelRdt",
                r#"{"enabled":true,"monitoring":true,"schemata":true}"#,
            ),
            ("/linux/mountExtensions/idmap/enabled", "true"),
            ("/linux/netDevices/enabled", "true"),
            (
                "/annotations/run.pelagos.version",
                concat!("\"", env!("CARGO_PKG_VERSION"), "\""),
            ),
            (
                "/potentiallyUnsafeConfigAnnotations/1",
                "\"org.systemd.property.\"",
            ),
        ] {
            assert_eq!(
                tree.pointer(at).map(Value::to_string).as_deref(),
                Some(value),
                "{at}"
            );
        }
        assert!(!text.contains("null"));
        assert!(
            text.starts_with("{\n    \"ociVersionMin\": \"1.0.0\",\n"),
            "{text}"
        );
    }

    #[test]
    fn option_words_are_sorted_and_single() {
        assert!(MOUNT_OPTIONS.is_sorted_by(|a, b| a < b));
        assert_eq!(MOUNT_OPTIONS.len(), 60);
    }
}
