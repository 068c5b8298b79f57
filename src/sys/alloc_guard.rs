//! The seal on the heap. In debug builds an allocation after [`seal`] aborts: the payload's seccomp filter may forbid
//! the calls that the allocator makes, so nothing after it may allocate, not even std on our behalf.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

static SEALED: AtomicBool = AtomicBool::new(false);

/// From here to execve or _exit nothing is allocated.
pub(crate) fn seal() {
    SEALED.store(true, Ordering::Relaxed);
}

/// The system's allocator behind the seal.
pub(crate) struct Guard;

fn check() {
    if SEALED.load(Ordering::Relaxed) {
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator with the arguments it came with.
unsafe impl GlobalAlloc for Guard {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's promises are those that System asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        check();
        // SAFETY: as above; the pointer came from System.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check();
        // SAFETY: as above; the pointer came from System.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
