//! From config.json to a plan, for the fuzz target in `tests/fuzz`: any bytes, and a panic where an answer contradicts what
//! the rooms that follow rely on. Nothing is created.

use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Uid};

use crate::cgroup;
use crate::plan::host::Host;
use crate::plan::seccomp;
use crate::plan::{Options, Plan};
use crate::spec::{Bundle, Context};

/// Read a config.json, check it, and plan what passes, for root and for an ordinary user.
pub fn plan(bytes: &[u8]) {
    let Ok(bundle) = Bundle::decoded(PathBuf::from("/bundle"), bytes.to_vec()) else {
        return;
    };
    for (rootless, no_pivot) in [(false, false), (true, true)] {
        let how = Context {
            rootless,
            no_pivot,
            systemd_cgroup: no_pivot,
        };
        let faults = bundle.check(&how);
        // A few for each member, however it is wrong.
        assert!(faults.len() <= 8 * bytes.len(), "{} faults", faults.len());
        for fault in &faults {
            assert!(!fault.field.is_empty() && !fault.rule.is_empty());
        }
        if faults.is_empty() {
            follow(&bundle, rootless, no_pivot, bytes.len());
        }
    }
}

fn follow(bundle: &Bundle, rootless: bool, no_pivot: bool, size: usize) {
    let host = Host {
        uid: Uid::from_raw(if rootless { 1000 } else { 0 }),
        gid: Gid::from_raw(0),
        in_user_namespace: false,
        capabilities: u64::MAX,
    };
    let options = Options {
        id: "web".into(),
        no_pivot,
        root: PathBuf::from("/bundle/rootfs"),
        ..Options::default()
    };
    let Ok(plan) = Plan::init(&bundle.spec, &bundle.path, &options, &host) else {
        return;
    };
    assert!(plan.mounts.len() <= size && plan.id_maps.len() <= plan.mounts.len());
    for op in &plan.mounts {
        assert!(op.untrusted_target.is_relative(), "{op:?}");
        assert!(!op.destination().is_empty() && !op.kind().is_empty());
    }
    for (file, _) in &plan.sysctl {
        assert!(stays_inside(file), "{}", file.display());
    }
    for path in plan.masked.iter().chain(&plan.read_only) {
        assert!(path.is_relative(), "{}", path.display());
    }
    let own = || Ok(PathBuf::from("/own/cgroup"));
    if let Ok(path) = cgroup::path_for(plan.control.path.as_deref(), "web", own) {
        assert!(path.is_absolute() && stays_inside(path.strip_prefix("/").unwrap_or(&path)));
    }
    if let Ok(limits) = cgroup::limits(&plan.control.resources) {
        assert!(limits.len() <= 16 * size);
    }
    let rules = plan.control.resources.devices().as_deref();
    cgroup::Devices::compile(rules.unwrap_or_default()).ok();
    let linux = bundle.spec.linux().as_ref();
    if let Some(profile) = linux.and_then(|linux| linux.seccomp().as_ref()) {
        // The compiler is libseccomp's own; what it is given is looked at first.
        seccomp::check(profile).ok();
        seccomp::flags(profile);
        assert_eq!(seccomp::key(profile), seccomp::key(profile));
    }
}

fn stays_inside(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::Normal(_)))
}
