//! Scheduling, I/O priority and memory policy: what belongs together, and what is a number of what.

use std::collections::BTreeSet;

use oci_spec::runtime::{
    LinuxMemoryPolicy, LinuxSchedulerPolicy as Policy, MemoryPolicyModeType as Mode,
};

use super::Check;

/// The largest number of a NUMA node that a kernel can be built for is 1023 (CONFIG_NODES_SHIFT).
const NODES: u32 = 1024;
/// As many processors as any kernel can be built for (CONFIG_NR_CPUS).
const PROCESSORS: u32 = 8192;

/// sched_setattr(2). COMPAT: the words are runc's.
pub(super) fn scheduler_has_what_its_policy_takes(check: &mut Check<'_>) {
    let Some(scheduler) = check.process().and_then(|p| p.scheduler().as_ref()) else {
        return;
    };
    let policy = *scheduler.policy();
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        check.say(
            "process.scheduler.nice",
            format!("invalid scheduler.nice: {nice}"),
        );
    }
    let priority = scheduler.priority().unwrap_or(0);
    if priority != 0 && !matches!(policy, Policy::SchedFifo | Policy::SchedRr) {
        check.say(
            "process.scheduler.priority",
            "scheduler.priority can only be specified for SchedFIFO or SchedRR policy",
        );
    }
    if priority < 0 {
        check.say(
            "process.scheduler.priority",
            format!("{priority} is below 0"),
        );
    }
    let times = [
        scheduler.runtime(),
        scheduler.deadline(),
        scheduler.period(),
    ];
    if policy != Policy::SchedDeadline && times.iter().any(|time| time.unwrap_or(0) != 0) {
        check.say(
            "process.scheduler",
            "scheduler runtime/deadline/period can only be specified for SchedDeadline policy",
        );
    }
}

/// ioprio_set(2): eight levels.
pub(super) fn io_priority_is_a_level(check: &mut Check<'_>) {
    let wanted = check.process().and_then(|p| p.io_priority().as_ref());
    if let Some(wanted) = wanted.filter(|wanted| !(0..=7).contains(&wanted.priority())) {
        check.say(
            "process.ioPriority.priority",
            format!("invalid ioPriority.Priority: {}", wanted.priority()),
        );
    }
}

/// set_mempolicy(2).
pub(super) fn memory_policy_has_its_nodes(check: &mut Check<'_>) {
    let Some(policy) = check.linux().and_then(|l| l.memory_policy().as_ref()) else {
        return;
    };
    let Some(nodes) = nodes(policy) else {
        let list = policy.nodes().as_deref().unwrap_or_default();
        check.say(
            "linux.memoryPolicy.nodes",
            format!("invalid memory policy nodes {list:?}"),
        );
        return;
    };
    let rule = match policy.mode() {
        Mode::MpolDefault | Mode::MpolLocal if !nodes.is_empty() => {
            format!(
                "memory policy mode requires 0 nodes but got {}",
                nodes.len()
            )
        }
        Mode::MpolBind
        | Mode::MpolInterleave
        | Mode::MpolWeightedInterleave
        | Mode::MpolPreferredMany
            if nodes.is_empty() =>
        {
            "memory policy mode requires at least one node but got 0".to_owned()
        }
        _ => return,
    };
    check.say("linux.memoryPolicy.nodes", rule);
}

fn nodes(policy: &LinuxMemoryPolicy) -> Option<BTreeSet<u32>> {
    numbers_of_list(policy.nodes().as_deref().unwrap_or_default())
}

/// config.md, execCPUAffinity; that it is a list, the decoder has seen.
pub(super) fn affinity_is_of_processors(check: &mut Check<'_>) {
    let Some(affinity) = check.process().and_then(|p| p.exec_cpu_affinity().as_ref()) else {
        return;
    };
    for (member, list) in [
        ("initial", affinity.initial()),
        ("final", affinity.cpu_affinity_final()),
    ] {
        let list = list.as_deref().unwrap_or_default();
        if processors_of_list(list).is_none() {
            check.say(
                format!("process.execCPUAffinity.{member}"),
                format!("invalid list of processors {list:?}"),
            );
        }
    }
}

/// The numbers of a list like `0-3,8`, as the kernel writes processors and nodes (cpuset(7), list format); none where it
/// is not one, or names a node that cannot be.
pub(crate) fn numbers_of_list(list: &str) -> Option<BTreeSet<u32>> {
    numbers_below(list, NODES)
}

/// The same for processors.
pub(crate) fn processors_of_list(list: &str) -> Option<BTreeSet<u32>> {
    numbers_below(list, PROCESSORS)
}

fn numbers_below(list: &str, end: u32) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        // A sign would be parsed too.
        let number = |text: &str| {
            let number = text.trim().parse::<u32>().ok();
            number.filter(|_| !text.contains('+'))
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= end {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_numbers_and_ranges() {
        for (list, wanted) in [
            ("", Some(vec![])),
            ("3", Some(vec![3])),
            ("0-2,1,7", Some(vec![0, 1, 2, 7])),
            (" 0 , 4-4 ", Some(vec![0, 4])),
            ("1023", Some(vec![1023])),
            ("1024", None),
            ("2-1", None),
            ("-1", None),
            ("a", None),
            ("0-4294967295", None),
        ] {
            let wanted = wanted.map(BTreeSet::from_iter);
            assert_eq!(numbers_of_list(list), wanted, "{list:?}");
        }
    }
}
