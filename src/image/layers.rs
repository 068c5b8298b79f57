//! Shared layers: each unpacked once, by its ChainID, in overlay form.
