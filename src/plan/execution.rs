//! How the payload is executed, besides as whom: scheduling, I/O priority, personality and memory policy (config.md, POSIX process; config-linux.md, personality and memory policy).

use std::collections::BTreeSet;

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType,
    Scheduler, Spec,
};

use crate::spec::{numbers_of_list, processors_of_list};
use crate::sys::execution::{MemoryPolicy, SchedulerAttributes};

/// None is what the process has from the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Execution {
    pub(crate) scheduler: Option<SchedulerAttributes>,
    /// As ioprio_set(2) takes it: the class in the upper bits, the level in the lower 13.
    pub(crate) io_priority: Option<i32>,
    /// The execution domain of personality(2).
    pub(crate) personality: Option<u64>,
    pub(crate) memory_policy: Option<MemoryPolicy>,
    /// On which processors the runtime is before a process more of a container comes into its cgroup.
    pub(crate) first_processors: Option<BTreeSet<u32>>,
    pub(crate) processors: Processors,
}

/// On which processors the payload runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Processors {
    /// Every one that its cgroup has.
    #[default]
    All,
    /// Those that the kernel makes of the ones before, when the process comes into its cgroup.
    AsTheyAre,
    These(BTreeSet<u32>),
}

impl Execution {
    /// What the specification asks for; `spec::check` has found it to be possible.
    pub(super) fn new(spec: &Spec) -> Self {
        let process = spec.process().as_ref();
        let linux = spec.linux().as_ref();
        Self {
            scheduler: process.and_then(|p| p.scheduler().as_ref()).map(scheduler),
            io_priority: process
                .and_then(|p| p.io_priority().as_ref())
                .map(io_priority),
            personality: linux
                .and_then(|l| l.personality().as_ref())
                .map(personality),
            memory_policy: linux
                .and_then(|l| l.memory_policy().as_ref())
                .map(memory_policy),
            // config.md, execCPUAffinity: not for a container's first process.
            first_processors: None,
            processors: Processors::All,
        }
    }

    /// The same for a process more of a container.
    pub(super) fn of_joining(spec: &Spec) -> Self {
        let affinity = spec
            .process()
            .as_ref()
            .and_then(|process| process.exec_cpu_affinity().as_ref());
        let list = |list: &Option<String>| {
            processors_of_list(list.as_deref()?).filter(|processors| !processors.is_empty())
        };
        Self {
            first_processors: affinity.and_then(|affinity| list(affinity.initial())),
            processors: match affinity {
                None => Processors::All,
                // config.md: not to be changed.
                Some(affinity) => list(affinity.cpu_affinity_final())
                    .map_or(Processors::AsTheyAre, Processors::These),
            },
            ..Self::new(spec)
        }
    }
}

/// The numbers of linux/sched.h.
fn scheduler(wanted: &Scheduler) -> SchedulerAttributes {
    let policy = match wanted.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    SchedulerAttributes {
        policy,
        flags: wanted.flags().iter().flatten().map(flag).sum(),
        nice: wanted.nice().unwrap_or(0),
        priority: wanted.priority().unwrap_or(0).unsigned_abs(),
        runtime: wanted.runtime().unwrap_or(0),
        deadline: wanted.deadline().unwrap_or(0),
        period: wanted.period().unwrap_or(0),
    }
}

/// The numbers of linux/ioprio.h.
fn io_priority(wanted: &LinuxIOPriority) -> i32 {
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    class << 13 | i32::try_from(wanted.priority()).unwrap_or(0)
}

/// The numbers of linux/personality.h.
fn personality(wanted: &LinuxPersonality) -> u64 {
    match wanted.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }
}

/// The numbers of linux/mempolicy.h.
fn memory_policy(wanted: &LinuxMemoryPolicy) -> MemoryPolicy {
    let mode = match wanted.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flag = |flag: &MemoryPolicyFlagType| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    };
    let nodes = wanted.nodes().as_deref().and_then(numbers_of_list);
    MemoryPolicy {
        mode: mode | wanted.flags().iter().flatten().map(flag).sum::<i32>(),
        nodes: nodes.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::default_config;
    use serde_json::{Value, json};

    fn execution(process: Value, linux: Value) -> Execution {
        let mut config: Value = serde_json::from_str(&default_config(None, true)).unwrap();
        for (section, members) in [("process", process), ("linux", linux)] {
            for (name, value) in members.as_object().unwrap() {
                config[section][name] = value.clone();
            }
        }
        Execution::new(&serde_json::from_value(config).unwrap())
    }

    #[test]
    fn nothing_is_set_that_is_not_asked_for() {
        assert_eq!(execution(json!({}), json!({})), Execution::default());
    }

    #[test]
    fn words_become_the_kernels_numbers() {
        let found = execution(
            json!({
                "scheduler": {"policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_RECLAIM"], "runtime": 1, "deadline": 2,
                    "period": 3},
                "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 7},
            }),
            json!({
                "personality": {"domain": "LINUX32"},
                "memoryPolicy": {"mode": "MPOL_INTERLEAVE", "nodes": "0-1,64", "flags": ["MPOL_F_STATIC_NODES"]},
            }),
        );
        let wanted = Execution {
            scheduler: Some(SchedulerAttributes {
                policy: 6,
                flags: 2,
                nice: 0,
                priority: 0,
                runtime: 1,
                deadline: 2,
                period: 3,
            }),
            io_priority: Some(0x4007),
            personality: Some(8),
            memory_policy: Some(MemoryPolicy {
                mode: 0x8003,
                nodes: [0, 1, 64].into(),
            }),
            ..Execution::default()
        };
        assert_eq!(found, wanted);
    }
}
