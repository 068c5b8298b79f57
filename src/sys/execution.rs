//! How a process is executed: scheduling, processors, I/O priority, personality, memory policy. All of it outlasts execve.

use std::collections::BTreeSet;

use nix::errno::Errno;

/// The members of struct sched_attr (sched_setattr(2)) that the runtime specification names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SchedulerAttributes {
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    /// These three in nanoseconds, for SCHED_DEADLINE.
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// The structure as Linux 5.3 has it: libc's ends before the last two, without which the kernel refuses the flags
/// SCHED_FLAG_UTIL_CLAMP_MIN and SCHED_FLAG_UTIL_CLAMP_MAX.
#[repr(C)]
struct SchedAttr {
    known: libc::sched_attr,
    util_min: u32,
    util_max: u32,
}

/// The scheduling of this thread: sched_setattr(2).
pub(crate) fn set_scheduler(wanted: &SchedulerAttributes) -> nix::Result<()> {
    // SAFETY: a structure of numbers.
    let mut attributes: SchedAttr = unsafe { std::mem::zeroed() };
    let known = &mut attributes.known;
    known.size = u32::try_from(size_of::<SchedAttr>()).unwrap_or_default();
    known.sched_policy = wanted.policy;
    known.sched_flags = wanted.flags;
    known.sched_nice = wanted.nice;
    known.sched_priority = wanted.priority;
    known.sched_runtime = wanted.runtime;
    known.sched_deadline = wanted.deadline;
    known.sched_period = wanted.period;
    // SAFETY: the kernel reads as many bytes as the structure says that it has.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    Errno::result(done).map(drop)
}

/// Let this thread run on every processor that its cgroup has, whatever it inherited: sched_setaffinity(2).
pub(crate) fn use_all_processors() -> nix::Result<()> {
    // More than any kernel can be built for; it takes what it knows of.
    let all = [u64::MAX; 128];
    // SAFETY: the kernel reads at most the size that is said.
    let done = unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            size_of_val(&all),
            all.as_ptr(),
        )
    };
    Errno::result(done).map(drop)
}

/// Let this thread run on these processors only: sched_setaffinity(2). EINVAL where it may use none of them.
pub(crate) fn set_processors(processors: &BTreeSet<u32>) -> nix::Result<()> {
    let words = processors.last().map_or(1, |last| *last as usize / 64 + 1);
    let mut mask = vec![0u64; words];
    for processor in processors {
        mask[*processor as usize / 64] |= 1 << (processor % 64);
    }
    // SAFETY: the kernel reads at most the size that is said.
    let done = unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            words * size_of::<u64>(),
            mask.as_ptr(),
        )
    };
    Errno::result(done).map(drop)
}

/// The I/O priority of this thread: ioprio_set(2).
pub(crate) fn set_io_priority(priority: i32) -> nix::Result<()> {
    /// linux/ioprio.h.
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: numbers.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) };
    Errno::result(done).map(drop)
}

/// The execution domain of this process: personality(2).
pub(crate) fn set_personality(domain: u64) -> nix::Result<()> {
    // SAFETY: a number.
    let done = unsafe { libc::syscall(libc::SYS_personality, domain) };
    Errno::result(done).map(drop)
}

/// Where memory comes from: the arguments of set_mempolicy(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryPolicy {
    /// The mode, with the flags.
    pub(crate) mode: i32,
    pub(crate) nodes: BTreeSet<u32>,
}

/// The memory policy of this thread: set_mempolicy(2).
pub(crate) fn set_memory_policy(policy: &MemoryPolicy) -> nix::Result<()> {
    let bits = policy.nodes.last().map_or(0, |last| *last as usize + 1);
    let mut mask = vec![0u64; bits.div_ceil(64)];
    for node in &policy.nodes {
        mask[*node as usize / 64] |= 1 << (node % 64);
    }
    // The kernel takes one bit less than it is told, and a mask without bits only as null (get_nodes in mm/mempolicy.c).
    let (at, told) = match mask.is_empty() {
        true => (std::ptr::null(), 0),
        false => (mask.as_ptr(), mask.len() * 64 + 1),
    };
    // SAFETY: the mask has as many bits as the kernel then reads.
    let done = unsafe { libc::syscall(libc::SYS_set_mempolicy, policy.mode, at, told) };
    Errno::result(done).map(drop)
}
