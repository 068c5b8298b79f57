//! Doors to the kernel.

pub(crate) mod filter;
