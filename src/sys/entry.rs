//! The program's first instructions on x86_64, before the C library has started.
//!
//! A command that makes a container process executes its own file twice (see `seal`). The C library's start asks the
//! processor what it can do, some 80 times, and in a virtual machine each `cpuid` is an exit to the hypervisor: starting
//! a static program that does nothing costs six times as much with it as without. So the program is entered here
//! (`build.rs` names the entry), and the first execution does nothing but the second.
//!
//! All of this only saves time: whatever fails here is left to `seal::ensure`, which goes through every case.
//!
//! INVARIANT: nothing here calls the C library. Even memcpy is not there yet: glibc chooses one by processor, and that
//! choice has not been made.

#![allow(
    clippy::cast_possible_truncation,
    reason = "all numbers here are of one size: the file is only for x86_64"
)]

use std::arch::{asm, naked_asm};
use std::ffi::c_char;
use std::mem::MaybeUninit;

/// Where the kernel enters: the stack holds argc, argv and the environment (System V ABI, AMD64 supplement, 3.4.1).
///
/// # Safety
/// Only the kernel may enter here.
// SAFETY: whole in assembler.
#[unsafe(naked)]
// SAFETY: the name is nobody else's.
#[unsafe(no_mangle)]
unsafe extern "C" fn pelagos_start() -> ! {
    // rdx holds what the C library registers with atexit. Two words are pushed, for calls want rsp at a multiple of 16.
    naked_asm!(
        "mov rdi, rsp",
        "push rdx",
        "push rdx",
        "call {execute_again}",
        "pop rdx",
        "pop rdx",
        "jmp _start",
        execute_again = sym execute_again,
    )
}

/// Execute our file again through a read-only mount of itself, where the command makes a process and the file is one
/// that somebody can write. Returns in every other case, and where that fails.
///
/// # Safety
/// `stack` is the initial stack of the process.
unsafe extern "C" fn execute_again(stack: *const usize) {
    // SAFETY: the kernel puts argc, argc pointers to strings, null, the environment's and null there.
    let (argc, argv) = unsafe { (*stack, stack.add(1).cast::<*const c_char>()) };
    // SAFETY: as above.
    if !unsafe { makes_a_process(argv) } {
        return;
    }
    // SAFETY: as above.
    let environment = unsafe { argv.add(argc + 1) };
    let own = c"/proc/self/exe".as_ptr() as usize;
    let read = (libc::O_RDONLY | libc::O_CLOEXEC) as usize;
    let clone = libc::OPEN_TREE_CLONE as usize | libc::O_CLOEXEC as usize;
    // linux/mount.h: attr_set, attr_clr, propagation, userns_fd of struct mount_attr.
    static READ_ONLY: [u64; 4] = [libc::MOUNT_ATTR_RDONLY, 0, 0, 0];
    // SAFETY: strings and arrays end with null, and what the kernel writes has room (`is_protected`). Descriptors are
    // our own, and those that stay open here close when the program is executed again or ends.
    unsafe {
        let file = call(libc::SYS_openat, [HERE, own, read, 0, 0]);
        if file < 0 || is_protected(file as usize) {
            call(libc::SYS_close, [file as usize, 0, 0, 0, 0]);
            return;
        }
        call(libc::SYS_close, [file as usize, 0, 0, 0, 0]);
        let tree = call(libc::SYS_open_tree, [HERE, own, clone, 0, 0]);
        if tree < 0 {
            return;
        }
        let (tree, empty) = (tree as usize, c"".as_ptr() as usize);
        let attributes = (&raw const READ_ONLY) as usize;
        let itself = libc::AT_EMPTY_PATH as usize;
        let size = size_of_val(&READ_ONLY);
        if call(
            libc::SYS_mount_setattr,
            [tree, empty, itself, attributes, size],
        ) == 0
        {
            let (argv, environment) = (argv as usize, environment as usize);
            call(libc::SYS_execveat, [tree, empty, argv, environment, itself]);
        }
        call(libc::SYS_close, [tree, 0, 0, 0, 0]);
    }
}

/// Relative paths, of which there are none, begin here.
const HERE: usize = libc::AT_FDCWD as usize;

/// Whether one of the arguments is one of the words `create`, `run` and `exec`, whatever is meant by it.
///
/// # Safety
/// `argv` is an array of strings that ends with null.
unsafe fn makes_a_process(argv: *const *const c_char) -> bool {
    let mut at = argv;
    // SAFETY: not read past the null.
    unsafe {
        while !(*at).is_null() {
            if is(*at, c"create".as_ptr()) || is(*at, c"run".as_ptr()) || is(*at, c"exec".as_ptr())
            {
                return true;
            }
            at = at.add(1);
        }
    }
    false
}

/// Whether two strings are equal.
///
/// # Safety
/// Both end with zero.
unsafe fn is(left: *const c_char, right: *const c_char) -> bool {
    let (mut left, mut right) = (left, right);
    // SAFETY: not read past the first difference or the zero of both.
    unsafe {
        while *left == *right {
            if *left == 0 {
                return true;
            }
            (left, right) = (left.add(1), right.add(1));
        }
    }
    false
}

/// Whether the file lies on a read-only mount, as the second execution's does, or has fs-verity enabled.
///
/// # Safety
/// Safe with any number; unsafe only for what it calls.
unsafe fn is_protected(file: usize) -> bool {
    /// `f_flags` of struct statfs (asm-generic/statfs.h), by words.
    const FLAGS: usize = 10;
    const READ_ONLY: u64 = libc::ST_RDONLY;
    // Not zeroed: that would be a call of memset.
    let mut status = MaybeUninit::<[u64; 15]>::uninit();
    let mut digest = MaybeUninit::<[u16; 34]>::uninit();
    // SAFETY: struct statfs has 15 words, which the kernel writes where it returns zero; of struct fsverity_digest it reads
    // the size, the second number, and writes no more than that after both.
    unsafe {
        let to = status.as_mut_ptr().cast::<u64>();
        if call(libc::SYS_fstatfs, [file, to as usize, 0, 0, 0]) == 0
            && *to.add(FLAGS) & READ_ONLY != 0
        {
            return true;
        }
        let to = digest.as_mut_ptr().cast::<u16>();
        *to.add(1) = 64;
        let measure = super::seal::MEASURE_VERITY as usize;
        call(libc::SYS_ioctl, [file, measure, to as usize, 0, 0]) == 0
    }
}

/// A system call; what the kernel returns, a negative errno among it.
///
/// # Safety
/// That of the call with these arguments.
#[inline(always)]
unsafe fn call(number: libc::c_long, arguments: [usize; 5]) -> isize {
    let result;
    let [first, second, third, fourth, fifth] = arguments;
    // SAFETY: the caller's. The kernel changes rax, rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
