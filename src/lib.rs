//! pelagos, a low-level OCI container runtime.
//!
//! The modules in reading order: what the caller typed (`cli`), what a container is to its callers (`container`), what
//! the bundle asks for (`spec`), what that means on this host (`plan`), how one process is made from it (`launch`,
//! talking through `handshake` to `child`), and the subjects they rest on. `src/README.md` is the map: the arrows that
//! may exist between these rooms and the invariants that hold in each.

mod cli;
mod container;

mod plan;
mod spec;

mod child;
mod handshake;
mod launch;

mod cgroup;
mod criu;
mod hooks;
mod idmap;
mod report;

#[cfg(feature = "image")]
mod image;

// The only room where `unsafe` may stand: the kernel's doors, each with its argument why it is sound.
#[allow(unsafe_code)]
mod sys;

#[cfg(debug_assertions)]
#[global_allocator]
static HEAP: sys::alloc_guard::Guard = sys::alloc_guard::Guard;

/// The `pelagos` program: parse the command line, carry out one verb, report its outcome as an exit code.
///
/// It may be called without Rust's own start.
pub fn runtime() -> u8 {
    cli::main()
}

/// The `pelagos-image` program: parse the command line, carry out one verb, report its outcome as an exit code.
#[cfg(feature = "image")]
pub fn image() -> std::process::ExitCode {
    image::main()
}

/// The parsers, for the fuzz targets in `tests/fuzz`; no part of what the package offers.
#[cfg(feature = "_fuzz")]
pub mod fuzz {
    pub use crate::container::fuzz::plan;
    pub use crate::image::fuzz::{manifest, reference, tar};
}
