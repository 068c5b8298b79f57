//! Black-box tests of the runtime. One binary: it is linked once, and can be copied to another machine.

#[path = "../support/mod.rs"]
#[macro_use]
mod support;

mod cli;
mod concurrency;
mod console;
mod errors;
mod faults;
mod hooks;
mod lifecycle;
