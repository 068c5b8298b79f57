//! Annotations of the container, from the image's configuration (image-spec conversion.md).
//!
//! Labels are written by whoever made the image, while annotations are read by runtimes, their shims and hooks as the
//! operator's orders: units of systemd, paths of host programs and devices. So a label under a prefix that one of them is
//! known to act on is left out, and reported, unless the operator asks for all.

use std::collections::BTreeMap;

use clap::ValueEnum;

use super::super::manifest::Config;

/// Which labels of an image become annotations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Labels {
    /// All but those that a runtime is known to act on.
    #[default]
    Safe,
    /// All, whatever they may make a runtime do.
    All,
}

/// Beginnings of annotations that are acted on, and by whom.
// CVE-2026-53488, CVE-2026-53492: a label reached the runtime as an order to run host commands and to inject devices.
pub(super) const ACTED_ON: &[(&str, &str)] = &[
    (
        "org.systemd.property.",
        "runc, crun, youki: properties of the unit",
    ),
    ("org.criu.", "runc, crun: a configuration file for CRIU"),
    (
        "run.oci.",
        "crun, youki: hooks' output, handlers, groups, seccomp",
    ),
    ("run.pelagos.", "pelagos: kept for it"),
    ("bundle", "runc: the bundle's place in its state"),
    ("cdi.k8s.io/", "engines and pelagos: devices of the host"),
    (
        "nvidia.cdi.k8s.io/",
        "nvidia-container-runtime: devices of the host",
    ),
    (
        "module.wasm.image/",
        "crun, youki: run by a WebAssembly engine on the host",
    ),
    ("krun.", "krun: the virtual machine"),
    ("io.katacontainers.", "Kata: hypervisor, kernel and agent"),
    (
        "dev.gvisor.",
        "runsc: flags, mounts and the root filesystem",
    ),
    ("com.urunc.", "urunc: the unikernel to boot"),
    (
        "io.microsoft.",
        "hcsshim: devices, host paths, virtual machines",
    ),
    (
        "aws.firecracker.",
        "firecracker-containerd: the virtual machine",
    ),
    (
        "io.kubernetes.cri.",
        "containerd's CRI, shims: which sandbox it belongs to",
    ),
    (
        "io.kubernetes.cri-o.",
        "CRI-O: devices, namespaces, cgroups",
    ),
    (
        "io.kubernetes.container.",
        "CRI-O, hooks: what the pod says",
    ),
    ("io.kubernetes.pod.", "CRI-O, hooks: what the pod says"),
    (
        "cpu-load-balancing.crio.io",
        "CRI-O: scheduling on the host",
    ),
    ("cpu-quota.crio.io", "CRI-O: limits"),
    ("cpu-shared.crio.io", "CRI-O: limits"),
    ("cpu-c-states.crio.io", "CRI-O: power states of the host"),
    (
        "cpu-freq-governor.crio.io",
        "CRI-O: power states of the host",
    ),
    (
        "irq-load-balancing.crio.io",
        "CRI-O: interrupts of the host",
    ),
    (
        "seccomp-profile.kubernetes.cri-o.io",
        "CRI-O: the seccomp profile",
    ),
    (
        "io.containerd.",
        "containerd's shims: grouping, runtime options",
    ),
    (
        "containerd.io/",
        "containerd: snapshots and runtime options",
    ),
    (
        "io.podman.annotations.",
        "Podman: privileges, seccomp, init, limits",
    ),
    (
        "io.containers.",
        "Podman, seccomp tracing hook: programs on the host",
    ),
    (
        "rdt.resources.beta.kubernetes.io/",
        "engines: cache and bandwidth classes",
    ),
    (
        "blockio.resources.beta.kubernetes.io/",
        "engines: block I/O classes",
    ),
    (
        "seccomp.security.alpha.kubernetes.io/",
        "engines: the seccomp profile",
    ),
    (
        "container.seccomp.security.alpha.kubernetes.io/",
        "engines: the seccomp profile",
    ),
    (
        "container.apparmor.security.beta.kubernetes.io/",
        "engines: the AppArmor profile",
    ),
];

/// The annotations, and the keys of the labels that were left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Annotations {
    pub(super) map: BTreeMap<String, String>,
    pub(super) withheld: Vec<String>,
}

/// Whether some runtime is known to act on an annotation `key`, in whatever case it compares.
fn acted_on(key: &str) -> bool {
    let key = key.trim_start().to_ascii_lowercase();
    ACTED_ON.iter().any(|(prefix, _)| {
        // A whole name, not a beginning: labels such as bundle-version are nobody's orders.
        if *prefix == "bundle" {
            key == *prefix
        } else {
            key.starts_with(prefix)
        }
    })
}

/// conversion.md, "Annotation Fields" and "Config.Labels": labels win over what follows from other fields.
pub(super) fn annotations(config: &Config, labels: Labels) -> Annotations {
    let mut found = Annotations::default();
    let platform = &config.platform;
    let optional = [
        ("os", Some(platform.os.clone())),
        ("architecture", Some(platform.architecture.clone())),
        ("variant", platform.variant.clone()),
        ("os.version", platform.os_version.clone()),
        ("os.features", Some(platform.os_features.join(","))),
        ("author", config.author.clone()),
        ("created", config.created.clone()),
        ("stopSignal", config.execution.stop_signal.clone()),
        (
            "exposedPorts",
            Some(config.execution.exposed_ports.join(",")),
        ),
    ];
    for (name, value) in optional {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            found
                .map
                .insert(format!("org.opencontainers.image.{name}"), value);
        }
    }
    for (key, value) in &config.execution.labels {
        // runtime-spec, config.md, "Annotations": keys must not be empty.
        if key.is_empty() || (labels == Labels::Safe && acted_on(key)) {
            found.withheld.push(key.clone());
        } else {
            found.map.insert(key.clone(), value.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::super::manifest::{Execution, Platform};
    use super::*;

    fn labelled(labels: &[&str]) -> Config {
        Config {
            execution: Execution {
                labels: labels
                    .iter()
                    .map(|key| ((*key).to_owned(), "evil".to_owned()))
                    .collect(),
                ..Execution::default()
            },
            ..Config::default()
        }
    }

    // L-50, S-11: CVE-2026-53488, CVE-2026-53492
    #[test]
    fn each_prefix_that_a_runtime_acts_on_is_withheld_and_named() {
        for (prefix, who) in ACTED_ON {
            let key = match *prefix {
                "bundle" => "bundle".to_owned(),
                prefix => format!("{prefix}x"),
            };
            for key in [key.clone(), key.to_uppercase(), format!(" {key}")] {
                let config = labelled(&[&key]);
                let safe = annotations(&config, Labels::Safe);
                assert_eq!(safe.map.len(), 0, "{key} ({who})");
                assert_eq!(safe.withheld, std::slice::from_ref(&key));
                let all = annotations(&config, Labels::All);
                assert_eq!(all.map.get(&key).map(String::as_str), Some("evil"));
                assert_eq!(all.withheld, [""; 0]);
            }
        }
    }

    // The keys as they are in use, whatever the table says.
    #[test]
    fn orders_to_runtimes_are_withheld() {
        for key in [
            "org.systemd.property.ExecStartPre",
            "org.criu.config",
            "run.oci.hooks.stdout",
            "run.oci.handler",
            "cdi.k8s.io/vendor_device",
            "io.katacontainers.config.hypervisor.path",
            "dev.gvisor.spec.mount.data.source",
            "io.kubernetes.cri.sandbox-id",
            "io.kubernetes.cri-o.Devices",
            "io.podman.annotations.privileged",
            "io.containers.trace-syscall",
            "module.wasm.image/variant",
            "krun.use_passt",
            "bundle",
        ] {
            assert_eq!(annotations(&labelled(&[key]), Labels::Safe).withheld, [key]);
        }
    }

    #[test]
    fn ordinary_labels_become_annotations() {
        let ordinary = [
            "maintainer",
            "com.docker.compose.project",
            "org.opencontainers.image.title",
            "org.label-schema.name",
            "bundle-version",
            "io.buildah.version",
        ];
        let safe = annotations(&labelled(&ordinary), Labels::Safe);
        assert_eq!(safe.map.len(), ordinary.len());
        assert_eq!(safe.withheld, [""; 0]);
        let empty = annotations(&labelled(&[""]), Labels::All);
        assert_eq!((empty.map.len(), empty.withheld.len()), (0, 1));
    }

    // L-49, L-52
    #[test]
    fn fields_become_annotations_and_labels_win_over_them() {
        let mut config = labelled(&["org.opencontainers.image.author"]);
        config.platform = Platform {
            os: "linux".into(),
            architecture: "arm64".into(),
            variant: Some("v8".into()),
            os_version: Some("6.1".into()),
            os_features: vec!["a".into(), "b".into()],
        };
        config.author = Some("the field".into());
        config.created = Some("2026-01-01T00:00:00Z".into());
        config.execution.stop_signal = Some("SIGRTMIN+3".into());
        config.execution.exposed_ports = vec!["80".into(), "443/tcp".into()];
        let map = annotations(&config, Labels::Safe).map;
        let expected = [
            ("architecture", "arm64"),
            ("author", "evil"),
            ("created", "2026-01-01T00:00:00Z"),
            ("exposedPorts", "80,443/tcp"),
            ("os", "linux"),
            ("os.features", "a,b"),
            ("os.version", "6.1"),
            ("stopSignal", "SIGRTMIN+3"),
            ("variant", "v8"),
        ];
        let expected = expected
            .map(|(name, value)| (format!("org.opencontainers.image.{name}"), value.to_owned()));
        assert_eq!(map.into_iter().collect::<Vec<_>>(), expected);
    }
}
