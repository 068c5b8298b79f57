#[path = "../probe/mod.rs"]
mod probe;
