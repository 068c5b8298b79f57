//! Manifests, indexes and configurations, through their readers.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pelagos::fuzz::manifest(data));
