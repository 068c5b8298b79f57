//! bpf(2): load, attach, query and detach the programs that guard device access of a cgroup.
//!
//! Since Linux 5.11 program memory is charged to the memory cgroup, so nothing here touches `RLIMIT_MEMLOCK`.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;

/// Commands of bpf(2) (`enum bpf_cmd`).
mod command {
    pub(super) const PROG_LOAD: libc::c_int = 5;
    pub(super) const PROG_ATTACH: libc::c_int = 8;
    pub(super) const PROG_DETACH: libc::c_int = 9;
    pub(super) const PROG_GET_FD_BY_ID: libc::c_int = 13;
    pub(super) const PROG_QUERY: libc::c_int = 16;
}

/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const CGROUP_DEVICE_PROGRAM: u32 = 15;
/// `BPF_CGROUP_DEVICE`, the point in a cgroup where such a program is attached.
const CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: programs of this cgroup and of its ancestors must all agree.
const ALLOW_MULTI: u32 = 1 << 1;
/// `BPF_F_REPLACE` (Linux 5.6).
const REPLACE: u32 = 1 << 2;
/// The kernel allows this many programs at one attach point (`BPF_CGROUP_MAX_PROGS`).
const MAX_PROGRAMS: usize = 64;
/// Room for the verifier's words about a refused program.
const LOG_BYTES: usize = 64 * 1024;

/// One instruction (`struct bpf_insn`): `registers` holds the destination in the low and the source in the high four bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// The head of `union bpf_attr` for `PROG_LOAD`, up to the program's name. No padding.
#[repr(C)]
#[derive(Clone, Copy)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// `union bpf_attr` for `PROG_ATTACH` and `PROG_DETACH`. No padding.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attach {
    target: i32,
    program: i32,
    attach_type: u32,
    flags: u32,
    replaced: i32,
}

/// The head of `union bpf_attr` for `PROG_QUERY`, up to the count. No padding.
#[repr(C)]
#[derive(Clone, Copy)]
struct Query {
    target: i32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    reserved: u32,
}

/// `union bpf_attr`, always passed at full size.
///
/// KERNEL(6.17): up to 7.1, `PROG_QUERY` writes `query.revision` at offset 56 however small a structure the caller
/// announced; a short one on the stack would be overrun. A kernel that knows fewer bytes accepts the zeros behind them.
#[repr(C)]
#[derive(Clone, Copy)]
union Attr {
    whole: [u64; 20],
    load: Load,
    attach: Attach,
    query: Query,
    id: u32,
}

impl Attr {
    const fn zeroed() -> Self {
        Self { whole: [0; 20] }
    }
}

/// # Safety
/// Every address in the member of `attr` that `command` reads must be valid for the length given beside it.
unsafe fn bpf(command: libc::c_int, attr: &mut Attr) -> nix::Result<libc::c_int> {
    // SAFETY: `attr` is a live structure of the announced size; what it points to is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<Attr>(),
        )
    };
    // The calls used here return 0 or a file descriptor.
    Errno::result(result).map(|value| libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX))
}

fn address<T: ?Sized>(what: &T) -> u64 {
    std::ptr::from_ref(what).cast::<u8>().expose_provenance() as u64
}

/// Load a device program (Linux 4.15); `name` shows in the listings of bpf tools and is cut to 15 bytes.
///
/// The descriptor is close-on-exec. An error carries what the verifier said, if it said anything. Needs CAP_BPF or
/// CAP_SYS_ADMIN in the initial user namespace.
pub(crate) fn load_device_program(name: &CStr, instructions: &[Instruction]) -> Result<OwnedFd> {
    let errno = match load(name, instructions, &mut []) {
        Ok(fd) => return Ok(fd),
        Err(errno) => errno,
    };
    // Having the log written costs time, so only a refused program is loaded with it.
    let mut log = vec![0; LOG_BYTES];
    if let Ok(fd) = load(name, instructions, &mut log) {
        return Ok(fd);
    }
    let said = conclusion(&log);
    let cause = if said.is_empty() {
        anyhow!(errno)
    } else {
        anyhow!(errno).context(format!("the verifier says: {said}"))
    };
    Err(cause).context("load the device program")
}

/// What the verifier's log ends with: the reason, and then numbers about the work done. Before it stands every
/// instruction that was looked at.
fn conclusion(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log)
        .map_or(String::new(), |log| log.to_string_lossy().into_owned());
    text.lines()
        .rfind(|line| !line.is_empty() && !line.starts_with("processed "))
        .unwrap_or_default()
        .to_owned()
}

fn load(name: &CStr, instructions: &[Instruction], log: &mut [u8]) -> nix::Result<OwnedFd> {
    let mut short_name = [0; 16];
    for (to, from) in short_name.iter_mut().take(15).zip(name.to_bytes()) {
        *to = *from;
    }
    let mut attr = Attr::zeroed();
    attr.load = Load {
        program_type: CGROUP_DEVICE_PROGRAM,
        instruction_count: u32::try_from(instructions.len()).map_err(|_| Errno::E2BIG)?,
        instructions: address(instructions),
        license: address(c"Apache-2.0"),
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).map_err(|_| Errno::EINVAL)?,
        log: if log.is_empty() {
            0
        } else {
            log.as_mut_ptr().expose_provenance() as u64
        },
        kernel_version: 0,
        flags: 0,
        name: short_name,
    };
    // SAFETY: the instructions, the licence and the log outlive the call and have the lengths announced; the kernel
    // writes to the log alone, which is borrowed mutably.
    let fd = unsafe { bpf(command::PROG_LOAD, &mut attr) }?;
    // SAFETY: a successful load returns a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attach a device program to a cgroup, beside those that may be there: access needs the consent of all.
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> nix::Result<()> {
    attach(cgroup, program, ALLOW_MULTI, 0)
}

/// Attach a device program in the place of `old`, in one step (Linux 5.6).
pub(crate) fn replace_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    old: BorrowedFd<'_>,
) -> nix::Result<()> {
    attach(cgroup, program, ALLOW_MULTI | REPLACE, old.as_raw_fd())
}

fn attach(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    flags: u32,
    replaced: i32,
) -> nix::Result<()> {
    let mut attr = Attr::zeroed();
    attr.attach = Attach {
        target: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        flags,
        replaced,
    };
    // SAFETY: this member holds no addresses.
    unsafe { bpf(command::PROG_ATTACH, &mut attr) }.map(drop)
}

/// Take a device program off a cgroup.
pub(crate) fn detach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> nix::Result<()> {
    let mut attr = Attr::zeroed();
    attr.attach = Attach {
        target: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        flags: 0,
        replaced: 0,
    };
    // SAFETY: this member holds no addresses.
    unsafe { bpf(command::PROG_DETACH, &mut attr) }.map(drop)
}

/// The device programs attached to a cgroup itself, not those of its ancestors. Needs CAP_SYS_ADMIN.
pub(crate) fn device_programs(cgroup: BorrowedFd<'_>) -> nix::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut attr = Attr::zeroed();
    attr.query = Query {
        target: cgroup.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: 64,
        reserved: 0,
    };
    // SAFETY: the kernel writes at most the announced 64 numbers into `ids`, which lives on, and the rest into `attr`,
    // which has its full size.
    unsafe { bpf(command::PROG_QUERY, &mut attr) }?;
    // SAFETY: every bit pattern is a valid `Query`, and the union was zeroed before.
    let count = unsafe { attr.query.count } as usize;

    let mut programs = Vec::new();
    for id in ids.iter().take(count) {
        let mut attr = Attr::zeroed();
        attr.id = *id;
        // SAFETY: this member holds no addresses.
        match unsafe { bpf(command::PROG_GET_FD_BY_ID, &mut attr) } {
            // SAFETY: a successful call returns a new descriptor that nobody else owns.
            Ok(fd) => programs.push(unsafe { OwnedFd::from_raw_fd(fd) }),
            // Detached since the query.
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_line_before_the_numbers() {
        let log = b"0: (95) exit\nR0 !read_ok\nprocessed 1 insns (limit 1000000)\n\0\0";
        assert_eq!(conclusion(log), "R0 !read_ok");
        assert_eq!(conclusion(&[0; 8]), "");
    }

    #[test]
    fn structures_lie_as_in_the_kernel_header() {
        assert!(size_of::<Attr>() >= 128);
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(size_of::<Load>(), 64);
        assert_eq!(size_of::<Attach>(), 20);
        assert_eq!(std::mem::offset_of!(Load, name), 48);
        assert_eq!(std::mem::offset_of!(Query, ids), 16);
        assert_eq!(std::mem::offset_of!(Query, count), 24);
    }
}
