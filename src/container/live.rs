//! `mounts`: mounts of a container that runs, made or taken away.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::unistd::Uid;
use oci_spec::runtime::{LinuxNamespaceType as Kind, MountBuilder};

use super::exec::{differing, root_of};
use super::state::Record;
use super::{Fault, Id, alive, held, is_no_root, read_input};
use crate::idmap::Maps;
use crate::launch::{self, Live};
use crate::plan::host::Host;
use crate::plan::mounts::{Hierarchy, IdMaps, MountOp, What, operation};
use crate::plan::namespaces::Namespaces;
use crate::plan::{Options, Plan};
use crate::report;
use crate::spec::{self, Bundle};

/// Make the mounts that `file` lists, an array as `mounts` of a config.json is one, in a container that is created, running
/// or paused; or detach what is mounted at their destinations. Relative sources are below the bundle.
///
/// # Errors
/// Names the member, the mount and the reason; then nothing has changed. [`Fault::NotRunning`].
pub(crate) fn change_mounts(root: &Path, id: &Id, live: Live, file: &Path) -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("mounts: only root can change the mounts of a running container");
    }
    let text = read_input(file).with_context(|| format!("read {}", file.display()))?;
    let (locked, record) = held(root, id, alive)?;
    let mut bundle = Bundle::kept(record.bundle.clone(), locked.config()?)?;
    bundle
        .take_mounts(&text)
        .with_context(|| file.display().to_string())?;
    if live == Live::Remove {
        destinations_alone(&mut bundle)?;
    }
    let context = spec::Context {
        rootless: is_no_root(),
        ..spec::Context::default()
    };
    if let Some(fault) = bundle.check_mounts(&context) {
        bail!("{fault}");
    }
    for warning in &bundle.warnings {
        report::warn(format_args!("{warning}"));
    }
    let pid = record.init_process_pid;
    let linux = bundle.spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref());
    let own_mounts = Namespaces::new(namespaces.unwrap_or_default()).is_new(Kind::Mount);
    let below = match own_mounts {
        true => None,
        false => Some(root_of(pid)?),
    };
    let plan = plan(&bundle, &record)?;
    // ORDER: after everything that was looked up by the init's number. It is the init's still, or nobody's.
    let init = record.init().ok_or(Fault::NotRunning)?;
    report::debug!("mounts {id}: {live:?} {}", plan.mounts.len());
    launch::change_mounts(&plan, live, init, below)
}

/// Of what is to be removed only the place counts.
fn destinations_alone(bundle: &mut Bundle) -> Result<()> {
    let mounts = bundle.spec.mounts().iter().flatten().map(|mount| {
        MountBuilder::default()
            .destination(mount.destination())
            .source("/")
            .options(["bind".to_owned()])
            .build()
    });
    // What was mounted last goes first: it may lie on another.
    let mounts = mounts.rev().collect::<Result<Vec<_>, _>>()?;
    bundle.spec.set_mounts(Some(mounts));
    Ok(())
}

/// The plan for a process that goes into the container's mounts and nowhere else but its user namespace.
fn plan(bundle: &Bundle, record: &Record) -> Result<Plan> {
    let pid = record.init_process_pid;
    let mut kinds = differing(pid)?;
    kinds.retain(|kind| matches!(kind, Kind::User | Kind::Mount));
    if !kinds.contains(&Kind::Mount) {
        bail!("mounts: the container has no mount namespace of its own");
    }
    let maps = match kinds.contains(&Kind::User) {
        true => Some(Maps::of(pid)?),
        false => None,
    };
    let mut id_maps = IdMaps {
        container: maps.as_ref(),
        ..IdMaps::default()
    };
    let options = Options {
        id: record.id.clone(),
        no_new_keyring: true,
        root: record.rootfs.clone(),
        ..Options::default()
    };
    let plan = Plan::join(&bundle.spec, &options, &kinds, &Host::probe()?)?;
    let label = bundle.spec.linux().as_ref();
    let label = label.and_then(|linux| linux.mount_label().as_deref());
    let mounts = bundle.spec.mounts().iter().flatten().map(|mount| {
        let mut op = operation(mount, &bundle.path, Hierarchy::New, &mut id_maps)?;
        can_come_later(&op)?;
        op.label(label, plan.extensions.label_option)?;
        Ok(op)
    });
    Ok(Plan {
        mounts: mounts.collect::<Result<_>>()?,
        id_maps: id_maps.distinct,
        parent_clones_sources: true,
        ..plan
    })
}

/// Whether a mount can be made from outside, by what has the host's rights and sees the container's files.
// A source by name would be looked up in the container, and a device of that name is not the one that was meant.
fn can_come_later(op: &MountOp) -> Result<()> {
    match &op.what {
        What::Filesystem { .. } if op.what.is_tmpfs() && op.id_map.is_none() => Ok(()),
        What::Bind { .. } => Ok(()),
        _ => bail!(
            "mounts: {}: only bind mounts and tmpfs can be added to a running container, and tmpfs without maps",
            op.destination()
        ),
    }
}
