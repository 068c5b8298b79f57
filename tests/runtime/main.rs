//! Black-box tests of the runtime. One binary: it is linked once, and can be copied to another machine.

#[path = "../probe/mod.rs"]
mod probe;
#[path = "../support/mod.rs"]
#[macro_use]
mod support;

mod driver;
mod hostile;
mod inside;

mod annotations;
mod cgroup;
mod checkpoint;
mod cli;
mod concurrency;
mod console;
mod devices;
mod errors;
mod events;
mod exec;
mod execution;
mod faults;
mod features;
mod hooks;
mod idmap;
mod labels;
mod lifecycle;
mod limits;
mod live;
mod mounts;
mod namespaces;
mod netdevices;
mod notify;
mod origins;
mod pause;
mod process;
mod ps;
mod readiness;
mod rootfs;
mod rootless;
mod seccomp;
mod security;
mod streams;
mod systemd;
mod update;
