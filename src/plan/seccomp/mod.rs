//! A seccomp profile, compiled to the BPF program that the child loads.
//!
//! libseccomp writes the program; a stub of our own stands before it and answers ENOSYS for system calls newer than the
//! profile, so that a libc that probes for them falls back instead of reporting EPERM. Both together are then written
//! again in fewer instructions. Nothing here touches the process: the program leaves libseccomp through a memfd. Rules:
//! runtime-spec `config-linux.md`, "Seccomp".

mod compact;

use std::path::PathBuf;

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek};

use anyhow::{Context, Result, anyhow, bail};
use libseccomp::error::SeccompErrno;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
    ScmpVersion,
};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};
use sha2::{Digest, Sha256};

use crate::sys::filter::{
    ARCH, Comparison, INSTRUCTION_SIZE, Instruction, MAX_INSTRUCTIONS, NUMBER,
};

/// Part of the cache key: to be raised with every change of the programs written here for an unchanged profile.
const GENERATOR: u32 = 2;

#[cfg(target_arch = "x86_64")]
const NATIVE: Arch = Arch::ScmpArchX86_64;
#[cfg(target_arch = "aarch64")]
const NATIVE: Arch = Arch::ScmpArchAarch64;

/// Set in the numbers of x32 calls, which share the audit architecture of x86_64 (`__X32_SYSCALL_BIT`).
const X32_BIT: u32 = 0x4000_0000;

/// Where Arm's private calls begin (`__ARM_NR_BASE`), far above the ordinary ones.
const ARM_PRIVATE: u32 = 0x000f_0000;

/// The highest number given to a call that had been reached only through socketcall(2) or ipc(2) before (Linux 5.1, on
/// x86, PowerPC and s390). No such call is left, so no higher number will follow.
const LAST_DEMULTIPLEXED: u32 = 402;

/// The highest errno that libseccomp takes, one below the kernel's own bound (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4094;

/// Naming more system calls than this makes libseccomp sort them into a binary tree: the linear search costs every call
/// of the container more than the tree costs to build.
const LINEAR_NAMES: usize = 32;

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    /// `struct sock_filter` items in native byte order.
    pub(crate) bpf: Vec<u8>,
    /// The `SECCOMP_FILTER_FLAG_*` to load it with.
    pub(crate) flags: u32,
}

/// Who answers the notifications of a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agent {
    /// Its socket, on the host.
    pub(crate) path: PathBuf,
    /// What it is told, as it stands in config.json.
    pub(crate) metadata: Option<String>,
}

/// The agent of a profile that has a rule that notifies. COMPAT: else the path is ignored.
pub(crate) fn agent(profile: &LinuxSeccomp) -> Option<Agent> {
    let path = profile
        .listener_path()
        .clone()
        .filter(|_| notifies(profile))?;
    Some(Agent {
        path,
        metadata: profile.listener_metadata().clone(),
    })
}

/// Whether some rule asks an agent.
fn notifies(profile: &LinuxSeccomp) -> bool {
    let mut rules = profile.syscalls().iter().flatten();
    rules.any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify)
}

/// Every fault of the profile that its types allow, each naming the field and the rule.
pub(crate) fn check(profile: &LinuxSeccomp) -> Result<(), Vec<String>> {
    let mut faults = Vec::new();
    let default = profile.default_action();
    if default == LinuxSeccompAction::ScmpActNotify {
        faults.push(format!(
            "linux.seccomp.defaultAction: {default} cannot be used as default action"
        ));
    } else {
        faults.extend(
            errno_fault(default, profile.default_errno_ret())
                .map(|fault| format!("linux.seccomp.defaultErrnoRet: {fault}")),
        );
    }
    for (at, rule) in profile.syscalls().iter().flatten().enumerate() {
        faults.extend(
            errno_fault(rule.action(), rule.errno_ret())
                .map(|fault| format!("linux.seccomp.syscalls[{at}].errnoRet: {fault}")),
        );
        for (nth, arg) in rule.args().iter().flatten().enumerate() {
            if arg.index() > 5 {
                faults.push(format!(
                    "linux.seccomp.syscalls[{at}].args[{nth}].index: {} is above 5, the last argument of a system call",
                    arg.index()
                ));
            }
        }
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(faults)
    }
}

/// The first system call of the profile's that libseccomp does not know.
///
/// # Errors
/// Its name, and where it stands.
pub(crate) fn all_calls_are_known(profile: &LinuxSeccomp) -> Result<()> {
    for (at, rule) in profile.syscalls().iter().flatten().enumerate() {
        let unknown = |name: &&String| ScmpSyscall::from_name(name).is_err();
        if let Some(name) = rule.names().iter().find(unknown) {
            bail!(
                "linux.seccomp.syscalls[{at}]: {name}: unknown system call (annotations.run.oci.seccomp_fail_unknown_syscall)"
            );
        }
    }
    Ok(())
}

/// What is wrong with giving `errno` to `action`.
fn errno_fault(action: LinuxSeccompAction, errno: Option<u32>) -> Option<String> {
    let errno = errno?;
    match action {
        LinuxSeccompAction::ScmpActErrno if errno > MAX_ERRNO => {
            Some(format!("{errno} is above {MAX_ERRNO}, the highest errno"))
        }
        LinuxSeccompAction::ScmpActTrace if errno > u32::from(u16::MAX) => Some(format!(
            "{errno} is above {}, the highest value a tracer can be told",
            u16::MAX
        )),
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace => None,
        _ => Some(format!("{action} takes no errno")),
    }
}

/// The `SECCOMP_FILTER_FLAG_*` to load the profile's filter with.
pub(crate) fn flags(profile: &LinuxSeccomp) -> u32 {
    // COMPAT: runc asks for SPEC_ALLOW when the profile has no flags; an empty list means none.
    let default = [LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow];
    let wanted = profile.flags().as_deref().unwrap_or(&default);
    let notifies = notifies(profile);
    let listener = match notifies {
        true => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
        false => 0,
    };
    let bits = wanted.iter().fold(listener, |bits, flag| {
        bits | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            // How a waiting notification may be interrupted: the kernel refuses it for a filter without a listener.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notifies => {
                libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            // The process that loads the filter has one thread.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        }
    });
    u32::try_from(bits).expect("the flags of seccomp(2) have 32 bits")
}

/// A name for the program that [`compile`] makes of this profile here: 64 hex digits, different when anything that goes
/// into the program is.
pub(crate) fn key(profile: &LinuxSeccomp) -> String {
    let version = ScmpVersion::current().map_or_else(|_| "unknown".to_owned(), |v| v.to_string());
    let head = format!(
        "{GENERATOR} {} {version} {}\n",
        std::env::consts::ARCH,
        flags(profile)
    );
    let mut text = head.into_bytes();
    serde_json::to_writer(&mut text, profile).expect("a profile is always JSON");
    Sha256::digest(&text)
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// The profile as a BPF program, `struct sock_filter` items in native byte order. Refuses what [`check`] refuses, an
/// architecture that libseccomp cannot combine with this one, contradicting rules, and a program that is longer than
/// the kernel takes.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    let wordy = generate(profile)?;
    let bpf = compact::compact(&wordy).unwrap_or(wordy);
    let length = bpf.len() / INSTRUCTION_SIZE;
    if length > MAX_INSTRUCTIONS {
        bail!(
            "linux.seccomp: the profile needs a filter of {length} instructions; the kernel takes {MAX_INSTRUCTIONS}"
        );
    }
    Ok(bpf)
}

/// The program for the profile as it comes: the stub and what libseccomp makes of the rules, of any length.
fn generate(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    check(profile).map_err(|faults| anyhow!(faults.join("; ")))?;
    let default = action(profile.default_action(), profile.default_errno_ret());
    let architectures = architectures(profile);

    let mut bpf: Vec<u8> = stub(&newest(profile, default, &architectures))
        .into_iter()
        .flat_map(Instruction::bytes)
        .collect();
    bpf.extend(rules(profile, default, &architectures)?);
    Ok(bpf)
}

/// libseccomp's program for the profile.
fn rules(profile: &LinuxSeccomp, default: ScmpAction, architectures: &[Arch]) -> Result<Vec<u8>> {
    let mut filter = ScmpFilterContext::new(default)
        .with_context(|| format!("linux.seccomp.defaultAction: {}", profile.default_action()))?;
    for &architecture in architectures {
        filter.add_arch(scmp(architecture)).with_context(|| {
            format!("linux.seccomp.architectures: filter {architecture} beside {NATIVE}")
        })?;
    }
    let named: usize = profile
        .syscalls()
        .iter()
        .flatten()
        .map(|rule| rule.names().len())
        .sum();
    if named > LINEAR_NAMES {
        filter
            .set_ctl_optimize(2)
            .context("linux.seccomp: sort the filter into a binary tree")?;
    }
    for (at, rule) in profile.syscalls().iter().flatten().enumerate() {
        let action = action(rule.action(), rule.errno_ret());
        // libseccomp refuses a rule that does what happens anyway.
        if action == default {
            continue;
        }
        let conditions = conditions(rule.args().as_deref().unwrap_or_default());
        for name in rule.names() {
            // A name that this libseccomp does not know, often of a newer kernel's call, is not an error by spec.
            let Ok(call) = ScmpSyscall::from_name(name) else {
                continue;
            };
            for all in &conditions {
                match filter.add_rule_conditional(action, call, all) {
                    Ok(_) => {}
                    Err(error) if error.errno() == Some(SeccompErrno::EEXIST) => bail!(
                        "linux.seccomp.syscalls[{at}]: {name}: an earlier rule gives the same case another action"
                    ),
                    Err(error) => {
                        return Err(error)
                            .with_context(|| format!("linux.seccomp.syscalls[{at}]: {name}"));
                    }
                }
            }
        }
    }
    export(&filter).context("linux.seccomp: take the filter from libseccomp")
}

/// The program as bytes.
fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>> {
    // Where the sysctl vm.memfd_noexec is 2, a memfd must say that it is not for executing.
    let sealed = MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let memfd = match memfd_create(c"seccomp", sealed) {
        // KERNEL(6.3): the kernel does not know the flag.
        Err(Errno::EINVAL) => memfd_create(c"seccomp", MFdFlags::MFD_CLOEXEC)?,
        other => other?,
    };
    let mut file = File::from(memfd);
    filter.export_bpf(&file)?;
    file.rewind()?;
    let mut bpf = Vec::new();
    file.read_to_end(&mut bpf)?;
    Ok(bpf)
}

/// The architectures of the filter: those listed and the one we run on, each once.
fn architectures(profile: &LinuxSeccomp) -> Vec<Arch> {
    let mut list = vec![NATIVE];
    for &architecture in profile.architectures().iter().flatten() {
        if architecture != Arch::ScmpArchNative && !list.contains(&architecture) {
            list.push(architecture);
        }
    }
    list
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> ScmpAction {
    #[expect(clippy::cast_possible_truncation, reason = "EPERM is 1")]
    const EPERM: u16 = libc::EPERM as u16;
    // `check` has refused what does not fit.
    let errno = errno.map_or(EPERM, |errno| u16::try_from(errno).unwrap_or(u16::MAX));
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno.into()),
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(errno),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    }
}

/// The conditions of one rule as the rules libseccomp needs: inside each all hold, of the rules one suffices.
fn conditions(args: &[LinuxSeccompArg]) -> Vec<Vec<ScmpArgCompare>> {
    let compare = |arg: &LinuxSeccompArg| {
        let (operator, value) = match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
            LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
            LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
            LinuxSeccompOperator::ScmpCmpMaskedEq => (
                ScmpCompareOp::MaskedEqual(arg.value()),
                arg.value_two().unwrap_or(0),
            ),
        };
        // `check` has refused an index above 5.
        let index = u32::try_from(arg.index()).unwrap_or(u32::MAX);
        ScmpArgCompare::new(index, operator, value)
    };
    let mut seen = HashSet::new();
    if args.iter().all(|arg| seen.insert(arg.index())) {
        vec![args.iter().map(compare).collect()]
    } else {
        // COMPAT: as soon as one argument has two conditions, runc makes every condition of the rule a rule of its own,
        // those on other arguments too.
        args.iter().map(|arg| vec![compare(arg)]).collect()
    }
}

/// For the calls of one audit architecture: the numbers from above `last` to below `limit` are newer than the profile.
#[derive(Debug, PartialEq, Eq)]
struct Newer {
    /// `AUDIT_ARCH_*`
    token: u32,
    last: u32,
    limit: Option<u32>,
}

/// Which numbers are newer than the profile: those above the highest one it names for an architecture, with whatever
/// action. None when such calls would go through anyway or fail with ENOSYS already.
fn newest(profile: &LinuxSeccomp, default: ScmpAction, architectures: &[Arch]) -> Vec<Newer> {
    if matches!(
        default,
        ScmpAction::Allow
            | ScmpAction::Log
            | ScmpAction::Trace(_)
            | ScmpAction::Errno(libc::ENOSYS)
    ) {
        return Vec::new();
    }
    let names: HashSet<&str> = (profile.syscalls().iter().flatten())
        .flat_map(|rule| rule.names())
        .map(String::as_str)
        .collect();
    let newer = |&architecture| {
        let limit = match architecture {
            Arch::ScmpArchX86_64 => Some(X32_BIT),
            Arch::ScmpArchArm => Some(ARM_PRIVATE),
            _ => None,
        };
        let token = match architecture {
            Arch::ScmpArchX32 => Arch::ScmpArchX86_64,
            other => other,
        } as u32;
        // Where a profile names nothing, nothing tells how new it is.
        let last = highest(&names, scmp(architecture), limit)?;
        Some(Newer { token, last, limit })
    };
    architectures.iter().filter_map(newer).collect()
}

/// The highest number below `limit` that one of the names has on this architecture.
fn highest(names: &HashSet<&str>, architecture: ScmpArch, limit: Option<u32>) -> Option<u32> {
    let mut last = None;
    let mut multiplexed = false;
    for name in names {
        let Ok(call) = ScmpSyscall::from_name_by_arch(name, architecture) else {
            continue;
        };
        // Negative numbers are libseccomp's own: a call that this architecture lacks, or that it once had only as a
        // case of socketcall(2) or ipc(2), for which the rewritten number is theirs.
        match u32::try_from(call.as_raw_syscall()) {
            Ok(number) if limit.is_none_or(|limit| number < limit) => last = last.max(Some(number)),
            Ok(_) => {}
            Err(_) => {
                let rewritten = ScmpSyscall::from_name_by_arch_rewrite(name, architecture);
                if let Some(number) = rewritten
                    .ok()
                    .and_then(|call| u32::try_from(call.as_raw_syscall()).ok())
                {
                    multiplexed = true;
                    last = last.max(Some(number));
                }
            }
        }
    }
    if multiplexed {
        // The number of the call itself is known to libseccomp only from number to name.
        let named = |number: &u32| {
            let call = i32::try_from(*number).map(ScmpSyscall::from);
            let name = call
                .ok()
                .and_then(|call| call.get_name_by_arch(architecture).ok());
            name.is_some_and(|name| names.contains(name.as_str()))
        };
        let above = last.map_or(0, |last| last + 1);
        last = (above..=LAST_DEMULTIPLEXED).rev().find(named).or(last);
    }
    last
}

/// The instructions that answer ENOSYS for newer calls and lead every other call to the program that follows.
///
/// For each audit architecture: compare it, load the number, test the ranges, skip the rest.
fn stub(newer: &[Newer]) -> Vec<Instruction> {
    let mut tokens: Vec<u32> = Vec::new();
    for range in newer {
        if !tokens.contains(&range.token) {
            tokens.push(range.token);
        }
    }
    let mut program = Vec::new();
    // From the last to the first, since each skips what follows it.
    for &token in tokens.iter().rev() {
        let mut block = vec![Instruction::Load(NUMBER)];
        for range in newer.iter().filter(|range| range.token == token) {
            block.push(Instruction::Jump {
                when: Comparison::Above,
                value: range.last,
                yes: 0,
                no: if range.limit.is_some() { 2 } else { 1 },
            });
            block.extend(range.limit.map(|value| Instruction::Jump {
                when: Comparison::AtLeast,
                value,
                yes: 1,
                no: 0,
            }));
            block.push(Instruction::return_errno(Errno::ENOSYS));
        }
        let rest =
            u32::try_from(program.len()).expect("a handful of instructions for each architecture");
        block.push(Instruction::Skip(rest));
        let no = u8::try_from(block.len()).expect("two ranges at most share an architecture");
        block.insert(
            0,
            Instruction::Jump {
                when: Comparison::Equal,
                value: token,
                yes: 0,
                no,
            },
        );
        block.append(&mut program);
        program = block;
    }
    if !program.is_empty() {
        program.insert(0, Instruction::Load(ARCH));
    }
    program
}

fn scmp(architecture: Arch) -> ScmpArch {
    match architecture {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What a filter makes of one call.
    #[derive(Debug, PartialEq, Eq, Clone, Copy)]
    pub(super) enum Verdict {
        Allow,
        Log,
        Errno(u32),
        Trace(u32),
        Trap,
        KillThread,
        KillProcess,
    }
    use Verdict::*;

    pub(super) const X86_64: u32 = Arch::ScmpArchX86_64 as u32;
    pub(super) const X86: u32 = Arch::ScmpArchX86 as u32;
    const AARCH64: u32 = Arch::ScmpArchAarch64 as u32;
    const ARM: u32 = Arch::ScmpArchArm as u32;
    const EPERM: Verdict = Errno(1);
    const ENOSYS: Verdict = Errno(38);

    /// Runs a seccomp filter as the kernel's interpreter does, over `struct seccomp_data`.
    pub(super) fn run(bpf: &[u8], arch: u32, number: u32, args: [u64; 6]) -> Verdict {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(arch.to_ne_bytes());
        data.extend(0_u64.to_ne_bytes());
        data.extend(args.iter().flat_map(|arg| arg.to_ne_bytes()));

        let (program, rest) = bpf.as_chunks::<8>();
        assert!(rest.is_empty(), "the program is whole instructions");
        let mut accumulator = 0_u32;
        let mut at = 0;
        loop {
            let i = program[at];
            let code = u32::from(u16::from_ne_bytes([i[0], i[1]]));
            let (yes, no) = (usize::from(i[2]), usize::from(i[3]));
            let k = u32::from_ne_bytes([i[4], i[5], i[6], i[7]]);
            at += 1;
            let mut jump = |holds: bool| at += if holds { yes } else { no };
            match code {
                0x20 => {
                    let offset = k as usize;
                    let word = data[offset..offset + 4].try_into().unwrap();
                    accumulator = u32::from_ne_bytes(word);
                }
                0x54 => accumulator &= k,
                0x05 => at += k as usize,
                0x15 => jump(accumulator == k),
                0x25 => jump(accumulator > k),
                0x35 => jump(accumulator >= k),
                0x45 => jump(accumulator & k != 0),
                0x06 => {
                    return match (k & libc::SECCOMP_RET_ACTION_FULL, k & 0xffff) {
                        (libc::SECCOMP_RET_ALLOW, _) => Allow,
                        (libc::SECCOMP_RET_LOG, _) => Log,
                        (libc::SECCOMP_RET_ERRNO, errno) => Errno(errno),
                        (libc::SECCOMP_RET_TRACE, value) => Trace(value),
                        (libc::SECCOMP_RET_TRAP, _) => Trap,
                        (libc::SECCOMP_RET_KILL_THREAD, _) => KillThread,
                        (libc::SECCOMP_RET_KILL_PROCESS, _) => KillProcess,
                        other => panic!("the filter returns {other:x?}"),
                    };
                }
                other => panic!("operation {other:#x} at {}", at - 1),
            }
        }
    }

    fn profile(value: Value) -> LinuxSeccomp {
        serde_json::from_value(value).unwrap()
    }

    fn program(value: Value) -> Vec<u8> {
        compile(&profile(value)).unwrap()
    }

    fn number(name: &str, arch: ScmpArch) -> u32 {
        let call = ScmpSyscall::from_name_by_arch(name, arch).unwrap();
        u32::try_from(call.as_raw_syscall()).unwrap()
    }

    /// The verdict on a call of the architecture we run on.
    fn native(bpf: &[u8], name: &str, args: [u64; 6]) -> Verdict {
        run(bpf, NATIVE as u32, number(name, ScmpArch::Native), args)
    }

    fn faults(value: Value) -> Vec<String> {
        check(&profile(value)).unwrap_err()
    }

    /// A profile that refuses everything but these.
    fn allowing(names: &[&str], architectures: &[&str]) -> Value {
        json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": architectures,
            "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
        })
    }

    #[test]
    fn named_calls_get_their_action_and_others_the_default() {
        for (word, verdict) in [
            ("SCMP_ACT_KILL", KillThread),
            ("SCMP_ACT_KILL_THREAD", KillThread),
            ("SCMP_ACT_KILL_PROCESS", KillProcess),
            ("SCMP_ACT_TRAP", Trap),
            ("SCMP_ACT_ERRNO", EPERM),
            ("SCMP_ACT_TRACE", Trace(1)),
            ("SCMP_ACT_LOG", Log),
        ] {
            let rule = json!({"names": ["getpid", "openat2"], "action": "SCMP_ACT_ALLOW"});
            let by_default = program(json!({"defaultAction": word, "syscalls": [rule]}));
            assert_eq!(native(&by_default, "getpid", [0; 6]), Allow, "{word}");
            assert_eq!(native(&by_default, "getppid", [0; 6]), verdict, "{word}");

            let rule = json!({"names": ["getpid"], "action": word});
            let named = program(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
            assert_eq!(native(&named, "getpid", [0; 6]), verdict, "{word}");
            assert_eq!(native(&named, "getppid", [0; 6]), Allow, "{word}");
        }
    }

    #[test]
    fn errno_and_trace_carry_the_value_given() {
        let bpf = program(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 95,
            "syscalls": [
                {"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4094},
                {"names": ["getppid"], "action": "SCMP_ACT_TRACE", "errnoRet": 65535},
                {"names": ["openat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
            ],
        }));
        assert_eq!(native(&bpf, "getpid", [0; 6]), Errno(4094));
        assert_eq!(native(&bpf, "getppid", [0; 6]), Trace(65535));
        assert_eq!(native(&bpf, "openat2", [0; 6]), Errno(0));
        assert_eq!(native(&bpf, "read", [0; 6]), Errno(95));
    }

    #[test]
    fn a_profile_without_rules_is_its_default_action() {
        let bpf = program(json!({"defaultAction": "SCMP_ACT_ERRNO"}));
        assert_eq!(native(&bpf, "read", [0; 6]), EPERM);
        assert_eq!(run(&bpf, NATIVE as u32, 9999, [0; 6]), EPERM);
    }

    #[test]
    fn a_rule_that_repeats_the_default_is_no_error() {
        let rule = json!({"names": ["getpid"], "action": "SCMP_ACT_KILL_THREAD"});
        let bpf = program(json!({"defaultAction": "SCMP_ACT_KILL", "syscalls": [rule]}));
        assert_eq!(native(&bpf, "getpid", [0; 6]), KillThread);
    }

    #[test]
    fn unknown_names_are_ignored() {
        let long = "x".repeat(100);
        let names = ["no_such_call", "", "nul\0", &long, "getpid"];
        let bpf = program(allowing(&names, &[]));
        assert_eq!(native(&bpf, "getpid", [0; 6]), Allow);
    }

    #[test]
    fn conditions_compare_all_64_bits_without_sign() {
        const BIG: u64 = 0x8000_0001_0000_0000;
        let cases = [
            (
                "SCMP_CMP_NE",
                BIG,
                [(BIG, false), (BIG - 1, true), (0, true)],
            ),
            (
                "SCMP_CMP_LT",
                BIG,
                [(BIG, false), (BIG - 1, true), (BIG + 1, false)],
            ),
            (
                "SCMP_CMP_LE",
                BIG,
                [(BIG, true), (BIG - 1, true), (BIG + 1, false)],
            ),
            (
                "SCMP_CMP_EQ",
                BIG,
                [(BIG, true), (BIG - 1, false), (BIG + 1, false)],
            ),
            (
                "SCMP_CMP_GE",
                BIG,
                [(BIG, true), (BIG - 1, false), (u64::MAX, true)],
            ),
            (
                "SCMP_CMP_GT",
                BIG,
                [(BIG, false), (BIG - 1, false), (BIG + 1, true)],
            ),
        ];
        for (op, value, expected) in cases {
            let bpf = program(json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{
                    "names": ["personality"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 5, "value": value, "op": op}],
                }],
            }));
            for (arg, holds) in expected {
                let verdict = native(&bpf, "personality", [0, 0, 0, 0, 0, arg]);
                assert_eq!(verdict, if holds { Allow } else { EPERM }, "{op} {arg:#x}");
            }
        }
    }

    #[test]
    fn masked_equal_has_the_mask_first() {
        let bpf = program(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{
                "names": ["clone"],
                "action": "SCMP_ACT_ALLOW",
                "args": [
                    {"index": 0, "value": 0xff00, "valueTwo": 0x1200, "op": "SCMP_CMP_MASKED_EQ"},
                    {"index": 1, "value": 0xf0, "op": "SCMP_CMP_MASKED_EQ"},
                ],
            }],
        }));
        assert_eq!(native(&bpf, "clone", [0x1234, 0x0f, 0, 0, 0, 0]), Allow);
        assert_eq!(native(&bpf, "clone", [0x1334, 0x0f, 0, 0, 0, 0]), EPERM);
        assert_eq!(native(&bpf, "clone", [0x1234, 0x10, 0, 0, 0, 0]), EPERM);
    }

    #[test]
    fn conditions_on_different_arguments_all_hold_and_on_the_same_one_suffices() {
        let equal =
            |index: usize, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
        let of = |args: Value| {
            program(json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": args}],
            }))
        };
        let different = of(json!([equal(0, 1), equal(1, 2)]));
        let same = of(json!([equal(0, 1), equal(0, 2)]));
        let mixed = of(json!([equal(0, 1), equal(0, 2), equal(1, 3)]));
        for (args, verdicts) in [
            ([1, 2], [Allow, Allow, Allow]),
            ([1, 0], [EPERM, Allow, Allow]),
            ([2, 2], [EPERM, Allow, Allow]),
            ([0, 2], [EPERM, EPERM, EPERM]),
            ([0, 3], [EPERM, EPERM, Allow]),
        ] {
            let args = [args[0], args[1], 0, 0, 0, 0];
            let found = [&different, &same, &mixed].map(|bpf| native(bpf, "socket", args));
            assert_eq!(found, verdicts, "{args:?}");
        }
    }

    #[test]
    fn calls_above_the_highest_named_one_do_not_exist() {
        let clone3 = number("clone3", ScmpArch::Native);
        for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_TRAP"] {
            let bpf = program(json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [
                    {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["clone3"], "action": action},
                ],
            }));
            let native = NATIVE as u32;
            assert_eq!(run(&bpf, native, clone3 - 1, [0; 6]), EPERM, "{action}");
            assert_eq!(run(&bpf, native, clone3 + 1, [0; 6]), ENOSYS, "{action}");
            assert_eq!(run(&bpf, native, X32_BIT - 1, [0; 6]), ENOSYS, "{action}");
        }
    }

    #[test]
    fn defaults_that_refuse_nothing_or_say_enosys_need_no_stub() {
        for (default, errno, verdict) in [
            ("SCMP_ACT_ALLOW", None, Allow),
            ("SCMP_ACT_LOG", None, Log),
            ("SCMP_ACT_TRACE", Some(7), Trace(7)),
            ("SCMP_ACT_ERRNO", Some(38), ENOSYS),
        ] {
            let rule = json!({"names": ["getpid"], "action": "SCMP_ACT_KILL"});
            let profile = profile(json!({
                "defaultAction": default, "defaultErrnoRet": errno, "syscalls": [rule],
            }));
            let bpf = compile(&profile).unwrap();
            assert_eq!(run(&bpf, NATIVE as u32, 9999, [0; 6]), verdict, "{default}");
            let default = action(profile.default_action(), profile.default_errno_ret());
            assert_eq!(newest(&profile, default, &[NATIVE]), []);
        }
    }

    #[test]
    fn the_highest_named_call_is_found_for_each_architecture() {
        let newer = |names: &[&str], architecture: Arch| {
            let profile = profile(allowing(names, &[]));
            newest(&profile, ScmpAction::KillProcess, &[architecture])
                .first()
                .map(|newer| (newer.token, newer.last, newer.limit))
        };
        use Arch::*;
        for (names, architecture, expected) in [
            (
                &["read", "clone3"][..],
                ScmpArchX86_64,
                Some((X86_64, 435, Some(X32_BIT))),
            ),
            (
                &["read", "clone3"],
                ScmpArchX32,
                Some((X86_64, X32_BIT + 435, None)),
            ),
            (
                &["read", "clone3"],
                ScmpArchAarch64,
                Some((AARCH64, 435, None)),
            ),
            // Arm's private calls lie far above and tell nothing.
            (
                &["read", "cacheflush"],
                ScmpArchArm,
                Some((ARM, 3, Some(ARM_PRIVATE))),
            ),
            // Once a case of socketcall (102) or ipc (117), since then calls of their own.
            (&["read", "socket"], ScmpArchX86, Some((X86, 359, None))),
            (&["shmget", "socket"], ScmpArchX86, Some((X86, 395, None))),
            // semop has only ipc there.
            (&["semop"], ScmpArchX86, Some((X86, 117, None))),
            (&["fstat64"], ScmpArchX86_64, None),
            (&["no_such_call"], ScmpArchX86_64, None),
        ] {
            assert_eq!(
                newer(names, architecture),
                expected,
                "{names:?} {architecture}"
            );
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn each_listed_architecture_has_its_own_numbers() {
        let bpf = program(allowing(
            &["getpid", "openat2"],
            &["SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
        ));
        for (arch, token) in [
            (ScmpArch::X8664, X86_64),
            (ScmpArch::X86, X86),
            (ScmpArch::Aarch64, AARCH64),
        ] {
            let verdict = |nr| run(&bpf, token, nr, [0; 6]);
            assert_eq!(verdict(number("getpid", arch)), Allow, "{arch:?}");
            assert_eq!(verdict(number("openat2", arch)), Allow, "{arch:?}");
            assert_eq!(verdict(number("openat2", arch) + 1), ENOSYS, "{arch:?}");
            assert_eq!(verdict(number("getppid", arch)), EPERM, "{arch:?}");
        }
        assert_eq!(
            run(&bpf, ARM, 20, [0; 6]),
            KillThread,
            "an architecture not listed"
        );
        assert_eq!(
            run(&bpf, ARM, 9999, [0; 6]),
            KillThread,
            "an architecture not listed"
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn x32_calls_are_judged_by_their_own_numbers_when_listed_and_killed_when_not() {
        let names = ["getpid", "openat2"];
        let with = program(allowing(&names, &["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]));
        let without = program(allowing(&names, &["SCMP_ARCH_X86_64"]));
        for (nr, listed, not) in [
            (39, Allow, Allow),
            (437, Allow, Allow),
            (438, ENOSYS, ENOSYS),
            (X32_BIT + 39, Allow, KillThread),
            (X32_BIT + 110, EPERM, KillThread),
            (X32_BIT + 437, Allow, KillThread),
            (X32_BIT + 438, ENOSYS, KillThread),
        ] {
            assert_eq!(run(&with, X86_64, nr, [0; 6]), listed, "{nr:#x}");
            assert_eq!(run(&without, X86_64, nr, [0; 6]), not, "{nr:#x}");
        }
    }

    #[test]
    fn a_large_profile_judges_like_a_small_one() {
        let call = |nr: i32| ScmpSyscall::from(nr).get_name().ok();
        let names: Vec<String> = (0..440).filter_map(call).collect();
        let even: Vec<&str> = names.iter().step_by(2).map(String::as_str).collect();
        assert!(even.len() > LINEAR_NAMES);
        let tree = program(allowing(&even, &["SCMP_ARCH_NATIVE"]));
        for name in &names {
            let expected = if even.contains(&name.as_str()) {
                Allow
            } else {
                EPERM
            };
            let verdict = native(&tree, name, [0; 6]);
            let top = even.iter().map(|name| number(name, ScmpArch::Native)).max();
            if Some(number(name, ScmpArch::Native)) <= top {
                assert_eq!(verdict, expected, "{name}");
            } else {
                assert_eq!(verdict, ENOSYS, "{name}");
            }
        }
    }

    #[test]
    fn a_program_the_kernel_would_not_take_is_one_clear_error() {
        let args: Vec<Value> = (0..4096)
            .map(|value| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"}))
            .collect();
        let error = compile(&profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": args}],
        })))
        .map(|bpf| bpf.len())
        .unwrap_err()
        .to_string();
        assert!(
            error.starts_with("linux.seccomp: the profile needs a filter of "),
            "{error}"
        );
        assert!(
            error.ends_with(" instructions; the kernel takes 4096"),
            "{error}"
        );
    }

    #[test]
    fn contradicting_rules_and_foreign_byte_orders_are_named() {
        let arg = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]);
        let contradiction = profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": arg},
                {"names": ["socket"], "action": "SCMP_ACT_LOG", "args": arg},
            ],
        }));
        let error = compile(&contradiction).unwrap_err().to_string();
        assert_eq!(
            error,
            "linux.seccomp.syscalls[1]: socket: an earlier rule gives the same case another action"
        );
        let foreign = profile(allowing(&["read"], &["SCMP_ARCH_S390X"]));
        let error = compile(&foreign).unwrap_err().to_string();
        let beside = format!("filter SCMP_ARCH_S390X beside {NATIVE}");
        assert_eq!(error, format!("linux.seccomp.architectures: {beside}"));
    }

    #[test]
    fn check_names_every_fault() {
        let value = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "defaultErrnoRet": 1,
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 5},
                {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4095},
                {"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536},
                {"names": ["read"], "action": "SCMP_ACT_NOTIFY", "errnoRet": 1},
                {"names": ["read"], "action": "SCMP_ACT_LOG", "args": [
                    {"index": 6, "value": 0, "op": "SCMP_CMP_EQ"},
                ]},
            ],
        });
        let expected = [
            "linux.seccomp.defaultErrnoRet: SCMP_ACT_ALLOW takes no errno",
            "linux.seccomp.syscalls[0].errnoRet: SCMP_ACT_KILL takes no errno",
            "linux.seccomp.syscalls[1].errnoRet: 4095 is above 4094, the highest errno",
            "linux.seccomp.syscalls[2].errnoRet: 65536 is above 65535, the highest value a tracer can be told",
            "linux.seccomp.syscalls[3].errnoRet: SCMP_ACT_NOTIFY takes no errno",
            "linux.seccomp.syscalls[4].args[0].index: 6 is above 5, the last argument of a system call",
        ];
        assert_eq!(faults(value.clone()), expected);
        assert_eq!(
            compile(&profile(value)).unwrap_err().to_string(),
            expected.join("; ")
        );
    }

    #[test]
    fn notify_cannot_be_the_default() {
        assert_eq!(
            faults(json!({"defaultAction": "SCMP_ACT_NOTIFY"})),
            ["linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action"]
        );
    }

    #[test]
    fn flags_absent_mean_spec_allow_and_an_empty_list_means_none() {
        for (list, expected) in [
            (None, 4),
            (Some(vec![]), 0),
            (Some(vec!["LOG"]), 2),
            (Some(vec!["TSYNC"]), 0),
            (Some(vec!["SPEC_ALLOW", "LOG", "LOG"]), 6),
            (Some(vec!["WAIT_KILLABLE_RECV"]), 0),
        ] {
            let list = list.map(|list| {
                let word = |flag| format!("SECCOMP_FILTER_FLAG_{flag}");
                list.into_iter().map(word).collect::<Vec<_>>()
            });
            let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": list}));
            assert_eq!(flags(&profile), expected, "{list:?}");
        }
        let waiting = profile(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}],
        }));
        assert_eq!(flags(&waiting), 8 | 32);
    }

    #[test]
    fn the_key_follows_the_profile() {
        let base = allowing(&["read"], &[]);
        let one = key(&profile(base.clone()));
        assert_eq!(one, key(&profile(base)));
        assert_eq!(one.len(), 64);
        assert!(one.bytes().all(|digit| digit.is_ascii_hexdigit()));
        for other in [
            allowing(&["write"], &[]),
            allowing(&["read"], &["SCMP_ARCH_X86"]),
        ] {
            assert_ne!(one, key(&profile(other)));
        }
    }
}
