//! From options to the messages that a kubelet would send for a pod of their kind.

use clap::Args;
use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::*;

/// A pod. The engine is told of it twice, for the sandbox and for each container in it.
#[derive(Args)]
pub(crate) struct Pod {
    /// The pod's name; its host name too, where it has a network of its own.
    name: String,
    /// Where the logs of its containers are.
    #[arg(long)]
    logs: String,
    /// The cgroup that its sandbox and its containers are in: a path, or with systemd's driver a slice.
    #[arg(long, default_value = "")]
    cgroup_parent: String,
    /// The host's network instead of one that a CNI plugin makes.
    #[arg(long)]
    host_network: bool,
    /// One process namespace for the whole pod.
    #[arg(long)]
    share_processes: bool,
    /// Its containers may be privileged.
    #[arg(long)]
    privileged_pod: bool,
}

/// A container in it.
#[derive(Args)]
pub(crate) struct Container {
    /// Its name, and that of its log.
    container: String,
    /// The image that it is made of.
    image: String,
    #[command(flatten)]
    limits: Limits,
    /// The user whom it runs as.
    #[arg(long)]
    user: Option<i64>,
    /// Nothing in its root file system can be changed.
    #[arg(long)]
    read_only: bool,
    /// Everything that root may.
    #[arg(long)]
    privileged: bool,
    /// The command instead of the image's.
    #[arg(last = true)]
    command: Vec<String>,
}

/// What a container may use; 0 says nothing about it.
#[derive(Args)]
pub(crate) struct Limits {
    /// Bytes of memory.
    #[arg(long, default_value_t = 0)]
    memory: i64,
    /// Microseconds of processor time in every 100 ms.
    #[arg(long, default_value_t = 0)]
    cpu_quota: i64,
}

pub(crate) fn image(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        ..Default::default()
    }
}

impl Pod {
    pub(crate) fn message(&self) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: self.name.clone(),
                uid: format!("uid-{}", self.name),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            // The kubelet gives none to a pod with the host's network: it has the host's.
            hostname: if self.host_network {
                String::new()
            } else {
                self.name.clone()
            },
            log_directory: self.logs.clone(),
            // Without this the engine copies the host's, and the test machine has none.
            dns_config: Some(DnsConfig {
                servers: vec!["192.0.2.53".to_owned()],
                ..Default::default()
            }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(self.namespaces()),
                    privileged: self.privileged_pod,
                    seccomp: Some(default_profile()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn namespaces(&self) -> NamespaceOption {
        let network = if self.host_network {
            NamespaceMode::Node
        } else {
            NamespaceMode::Pod
        };
        let pid = if self.share_processes {
            NamespaceMode::Pod
        } else {
            NamespaceMode::Container
        };
        NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ipc: NamespaceMode::Pod.into(),
            ..Default::default()
        }
    }
}

impl Container {
    pub(crate) fn message(&self, pod: &Pod) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: self.container.clone(),
                attempt: 0,
            }),
            image: Some(image(&self.image)),
            command: self.command.clone(),
            log_path: format!("{}.log", self.container),
            linux: Some(LinuxContainerConfig {
                resources: Some(self.limits.message()),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(pod.namespaces()),
                    privileged: self.privileged,
                    readonly_rootfs: self.read_only,
                    run_as_user: self.user.map(|value| Int64Value { value }),
                    seccomp: Some(default_profile()),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }
}

impl Limits {
    pub(crate) fn message(&self) -> LinuxContainerResources {
        LinuxContainerResources {
            memory_limit_in_bytes: self.memory,
            cpu_quota: self.cpu_quota,
            cpu_period: if self.cpu_quota == 0 { 0 } else { 100_000 },
            ..Default::default()
        }
    }
}

/// The engine's own filter, as a cluster with sensible defaults asks for.
fn default_profile() -> SecurityProfile {
    SecurityProfile {
        profile_type: ProfileType::RuntimeDefault.into(),
        ..Default::default()
    }
}
