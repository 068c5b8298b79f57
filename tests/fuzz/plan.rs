//! A bundle's config.json, through the rules and into a plan.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pelagos::fuzz::plan(data));
