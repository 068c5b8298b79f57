//! Layers as a hostile registry may write them, through the tar reader.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pelagos::fuzz::tar(data));
