//! Seccomp filters: the instructions a filter is written in, and the door that loads one into the calling thread.
//!
//! Here because nix has neither; libseccomp's own load allocates and needs its context, whereas the sealed part of the
//! child has only bytes. See seccomp(2) and the kernel's `Documentation/userspace-api/seccomp_filter.rst`.

use std::mem::offset_of;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD,
    BPF_RET, BPF_W,
};
use nix::errno::Errno;

/// The longest program the kernel takes, in instructions (`BPF_MAXINSNS`).
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;

/// Bytes of one instruction (`struct sock_filter`).
pub(crate) const INSTRUCTION_SIZE: usize = size_of::<libc::sock_filter>();

/// Where [`Instruction::Load`] finds the number of the call.
pub(crate) const NUMBER: u32 = offset(offset_of!(libc::seccomp_data, nr));

/// Where [`Instruction::Load`] finds the audit architecture of the call.
pub(crate) const ARCH: u32 = offset(offset_of!(libc::seccomp_data, arch));

#[expect(
    clippy::cast_possible_truncation,
    reason = "the structure has 64 bytes"
)]
const fn offset(field: usize) -> u32 {
    field as u32
}

/// One classic BPF instruction of a seccomp filter: those of the kernel's choice (`seccomp_check_filter`) that do
/// without scratch memory and index register. Jumps count the instructions to skip and lead only forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instruction {
    /// Load the 32-bit word at this offset of `struct seccomp_data`.
    Load(u32),
    /// Keep these bits of the loaded value.
    And(u32),
    /// Skip `yes` instructions when the loaded value compares so with `value`, else `no`.
    Jump {
        when: Comparison,
        value: u32,
        yes: u8,
        no: u8,
    },
    /// Skip this many instructions; the only jump that may be longer than 255.
    Skip(u32),
    /// End with this verdict, `SECCOMP_RET_*` with its data.
    Return(u32),
}

/// How a [`Instruction::Jump`] compares the loaded value with its own; neither has a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Comparison {
    Equal,
    /// The loaded value is the greater one.
    Above,
    /// The loaded value is the greater one or the same.
    AtLeast,
    /// The two have a bit in common.
    AnyBit,
}

const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
const AND: u32 = BPF_ALU | BPF_AND | BPF_K;
const EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
const ABOVE: u32 = BPF_JMP | BPF_JGT | BPF_K;
const AT_LEAST: u32 = BPF_JMP | BPF_JGE | BPF_K;
const ANY_BIT: u32 = BPF_JMP | BPF_JSET | BPF_K;
const SKIP: u32 = BPF_JMP | BPF_JA;
const RETURN: u32 = BPF_RET | BPF_K;

impl Instruction {
    /// Let the call fail with this errno.
    pub(crate) fn return_errno(errno: Errno) -> Self {
        Self::Return(libc::SECCOMP_RET_ERRNO | (errno as i32).unsigned_abs())
    }

    /// The instruction as the kernel reads it: `struct sock_filter` in native byte order.
    pub(crate) fn bytes(self) -> [u8; INSTRUCTION_SIZE] {
        let (code, yes, no, value) = match self {
            Self::Load(offset) => (LOAD, 0, 0, offset),
            Self::And(mask) => (AND, 0, 0, mask),
            Self::Jump {
                when,
                value,
                yes,
                no,
            } => {
                let code = match when {
                    Comparison::Equal => EQUAL,
                    Comparison::Above => ABOVE,
                    Comparison::AtLeast => AT_LEAST,
                    Comparison::AnyBit => ANY_BIT,
                };
                (code, yes, no, value)
            }
            Self::Skip(count) => (SKIP, 0, 0, count),
            Self::Return(verdict) => (RETURN, 0, 0, verdict),
        };
        let code = u16::try_from(code).expect("operation codes of classic BPF have 16 bits");
        let mut bytes = [0; INSTRUCTION_SIZE];
        bytes[..2].copy_from_slice(&code.to_ne_bytes());
        bytes[2] = yes;
        bytes[3] = no;
        bytes[4..].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    /// The instruction that the kernel would read here; none when it is one that this type lacks.
    pub(crate) fn read(bytes: [u8; INSTRUCTION_SIZE]) -> Option<Self> {
        let [low, high, yes, no, value @ ..] = bytes;
        let value = u32::from_ne_bytes(value);
        let jump = |when| Self::Jump {
            when,
            value,
            yes,
            no,
        };
        match u32::from(u16::from_ne_bytes([low, high])) {
            LOAD => Some(Self::Load(value)),
            AND => Some(Self::And(value)),
            EQUAL => Some(jump(Comparison::Equal)),
            ABOVE => Some(jump(Comparison::Above)),
            AT_LEAST => Some(jump(Comparison::AtLeast)),
            ANY_BIT => Some(jump(Comparison::AnyBit)),
            SKIP => Some(Self::Skip(value)),
            RETURN => Some(Self::Return(value)),
            _ => None,
        }
    }
}

/// Put the calling thread, and what it executes from here on, under the filter `bpf` (`struct sock_filter` items in
/// native byte order). `flags` are `SECCOMP_FILTER_FLAG_*`. Allocates nothing.
///
/// The caller has no_new_privs set or CAP_SYS_ADMIN in its user namespace (else EACCES). EINVAL: not a program of 1 to
/// 4096 whole instructions, a program the kernel's checker refuses, a flag this kernel does not know, or one that makes
/// a thread's number the result (TSYNC and TSYNC_ESRCH), which this door does not carry.
///
/// With NEW_LISTENER the result is the listener, which closes on exec.
pub(crate) fn load(bpf: &[u8], flags: u32) -> nix::Result<Option<OwnedFd>> {
    let flags = libc::c_ulong::from(flags);
    let answering = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
    let count = bpf.len() / INSTRUCTION_SIZE;
    if !bpf.len().is_multiple_of(INSTRUCTION_SIZE)
        || count > MAX_INSTRUCTIONS
        || flags & answering != 0
    {
        return Err(Errno::EINVAL);
    }
    let program = libc::sock_fprog {
        len: u16::try_from(count).map_err(|_| Errno::EINVAL)?,
        filter: bpf.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `program` names `count` whole instructions inside `bpf`, both live through the call, and the kernel only
    // copies from them. The pointer is never followed on this side, so bytes aligned to nothing are as good as any.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    let result = Errno::result(result)?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let listener = RawFd::try_from(result).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(listener) }))
}

#[cfg(test)]
mod tests {
    use nix::sys::prctl::set_no_new_privs;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    /// A filter under which getpgid fails with EXFULL and everything else goes through.
    fn without_getpgid() -> Vec<u8> {
        let getpgid = u32::try_from(libc::SYS_getpgid).unwrap();
        let program = [
            Instruction::Load(NUMBER),
            Instruction::Jump {
                when: Comparison::Equal,
                value: getpgid,
                yes: 0,
                no: 1,
            },
            Instruction::return_errno(Errno::EXFULL),
            Instruction::Return(libc::SECCOMP_RET_ALLOW),
        ];
        program.iter().flat_map(|i| i.bytes()).collect()
    }

    /// Load `bpf` in a child of its own; true when getpgid fails with EXFULL there afterwards.
    fn filters_getpgid(bpf: &[u8], flags: u32) -> nix::Result<bool> {
        // SAFETY: the child makes system calls only and leaves by _exit; it takes no lock another thread may hold.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let code = match set_no_new_privs().and_then(|()| load(bpf, flags)) {
                    Ok(_) => {
                        // SAFETY: getpgid takes no pointers.
                        let result = unsafe { libc::getpgid(0) };
                        let refused = result == -1 && Errno::last() == Errno::EXFULL;
                        if refused { 0 } else { 255 }
                    }
                    Err(errno) => errno as i32,
                };
                // SAFETY: ends the child without the parent's destructors.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, 0) => Ok(true),
                WaitStatus::Exited(_, 255) => Ok(false),
                WaitStatus::Exited(_, errno) => Err(Errno::from_raw(errno)),
                other => panic!("the child ended with {other:?}"),
            },
        }
    }

    #[test]
    fn an_instruction_is_read_as_it_was_written() {
        let jump = |when| Instruction::Jump {
            when,
            value: 0xc000_003e,
            yes: 1,
            no: 255,
        };
        for instruction in [
            Instruction::Load(ARCH),
            Instruction::And(0xff00),
            jump(Comparison::Equal),
            jump(Comparison::Above),
            jump(Comparison::AtLeast),
            jump(Comparison::AnyBit),
            Instruction::Skip(1000),
            Instruction::Return(libc::SECCOMP_RET_TRAP),
        ] {
            assert_eq!(Instruction::read(instruction.bytes()), Some(instruction));
        }
        // BPF_ST: into scratch memory.
        let store = [2_u16.to_ne_bytes(), [0; 2], [0; 2], [0; 2]].concat();
        assert_eq!(Instruction::read(store.try_into().unwrap()), None);
    }

    #[test]
    fn a_loaded_filter_makes_a_call_fail_with_its_errno() {
        let flags = u32::try_from(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW).unwrap();
        assert_eq!(filters_getpgid(&without_getpgid(), flags), Ok(true));
    }

    #[test]
    fn a_filter_may_begin_at_any_byte() {
        let mut shifted = vec![0; 1];
        shifted.extend(without_getpgid());
        assert_eq!(filters_getpgid(&shifted[1..], 0), Ok(true));
    }

    #[test]
    fn what_is_not_a_program_is_refused() {
        let good = without_getpgid();
        let endless = good.repeat(MAX_INSTRUCTIONS / 4 + 1);
        let without_return = &good[..INSTRUCTION_SIZE];
        for bpf in [&[], &good[1..], &endless[..], without_return] {
            assert_eq!(
                filters_getpgid(bpf, 0),
                Err(Errno::EINVAL),
                "{} bytes",
                bpf.len()
            );
        }
    }

    #[test]
    fn a_flag_the_kernel_does_not_know_is_reported() {
        assert_eq!(
            filters_getpgid(&without_getpgid(), 1 << 31),
            Err(Errno::EINVAL)
        );
    }

    #[test]
    fn flags_whose_result_would_be_lost_are_refused() {
        for flag in [
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH,
        ] {
            let flag = u32::try_from(flag).unwrap();
            assert_eq!(load(&without_getpgid(), flag).err(), Some(Errno::EINVAL));
        }
    }
}
