//! Image names, through their grammar.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pelagos::fuzz::reference(data));
