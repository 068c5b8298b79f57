//! `pelagos`: the OCI container runtime.
//!
//! Entered by the C library and not through Rust's own start, which would read the memory map of every process for a guard
//! page that no command needs. What that start does besides is in `sys/start.rs`.
#![no_main]

#[expect(unsafe_code, reason = "the C library looks for the name")]
// SAFETY: the program has no other `main`.
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    pelagos::runtime().into()
}
