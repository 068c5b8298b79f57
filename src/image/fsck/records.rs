//! The records of bundles and volumes, and what dead commands left.

use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use anyhow::Result;

use crate::report::sentence;

use super::super::store::{BundleRecord, Store, VolumeRecord, entries};
use super::repair::QUARANTINE;
use super::{Dangling, Fault, Findings, Kind};

const LOOK: &str = "look what it is and move it away: prune stops at it";

pub(super) fn check(store: &Store, findings: &mut Findings) {
    let bundles = settled(store.bundle_records(), "records/bundles", findings);
    let volumes = settled(store.volume_records(), "records/volumes", findings);
    findings.report.checked.bundles = bundles.len();
    findings.report.checked.volumes = volumes.len();
    for volume in &volumes {
        volume_content(store, volume, findings);
    }
    for bundle in &bundles {
        let found = bundle_place(bundle, findings);
        if found {
            bundle_needs(store, bundle, &volumes, findings);
        }
    }
    let held = entries_of(store, "volumes", findings);
    for name in held {
        if !volumes.iter().any(|volume| volume.name == name) {
            findings.remark(format!(
                "volumes/{name}: a directory without a record; `volume create {name}` takes it up again"
            ));
        }
    }
    if let Err(error) = store.used() {
        findings.fault(Fault::new(
            Kind::Record,
            "records/used.json",
            sentence(&error),
            "`fsck --repair` begins it anew: what is not in it counts as just used",
        ));
        findings.dangling.push(Dangling::Used);
    }
    leftovers(store, findings);
}

/// Records that can all be read, or a fault and none.
fn settled<T>(records: Result<Vec<T>>, folder: &str, findings: &mut Findings) -> Vec<T> {
    records.unwrap_or_else(|error| {
        findings.fault(Fault::new(Kind::Record, folder, sentence(&error), LOOK));
        Vec::new()
    })
}

fn entries_of(store: &Store, folder: &str, findings: &mut Findings) -> Vec<String> {
    let names = store
        .subdirectory(folder)
        .and_then(|dir| entries(dir.as_fd()));
    match names {
        Ok(names) => names
            .into_iter()
            .map(|name| name.to_string_lossy().into_owned())
            .collect(),
        Err(error) => {
            findings.fault(Fault::new(Kind::Record, folder, sentence(&error), LOOK));
            Vec::new()
        }
    }
}

fn volume_content(store: &Store, volume: &VolumeRecord, findings: &mut Findings) {
    let place = format!("volumes/{}", volume.name);
    if let Err(error) = store.subdirectory(&place) {
        let what = format!("its content is not there: {}", sentence(&error));
        let absent = store.read(&place, 0).is_ok_and(|content| content.is_none());
        let advice = if absent {
            findings
                .dangling
                .push(Dangling::Volume(volume.name.clone()));
            "put its content back, or `fsck --repair` removes the record"
        } else {
            "look what is in its place"
        };
        findings.fault(Fault::new(Kind::Volume, &volume.name, what, advice));
    }
}

/// Whether the bundle's directory is in its place. That one is gone whose disk is there is what a killed command leaves.
fn bundle_place(bundle: &BundleRecord, findings: &mut Findings) -> bool {
    let shown = bundle.path.display();
    match bundle.path.symlink_metadata() {
        Ok(_) => return true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            findings.fault(Fault::new(Kind::Bundle, shown, error, LOOK));
            return false;
        }
    }
    let parent = bundle.path.parent().map(std::fs::metadata);
    match parent {
        Some(Ok(parent)) if parent.dev() == bundle.parent_device => {
            findings.remark(format!(
                "bundle {shown}: its directory is gone; prune forgets it after the grace, `fsck --repair` at once"
            ));
            findings.dangling.push(Dangling::Bundle(bundle.id.clone()));
        }
        _ => findings.fault(Fault::new(
            Kind::Bundle,
            shown,
            "neither its directory nor the disk that it was made on is there",
            "mount the disk; where it is gone for good, forget the bundle with `rm --force`",
        )),
    }
    false
}

/// A bundle on shared layers needs each of them, and any bundle its volumes.
fn bundle_needs(
    store: &Store,
    bundle: &BundleRecord,
    volumes: &[VolumeRecord],
    findings: &mut Findings,
) {
    let shown = bundle.path.display().to_string();
    for chain in &bundle.chain {
        if matches!(store.layer_record(chain), Ok(None)) {
            findings.fault(Fault::new(
                Kind::Bundle,
                &shown,
                format!("layer {chain}, which it mounts, has no record"),
                "remove the bundle and make it again",
            ));
        }
    }
    for name in &bundle.volumes {
        if !volumes.iter().any(|volume| volume.name == *name) {
            findings.fault(Fault::new(
                Kind::Bundle,
                &shown,
                format!("volume {name}, which it mounts, has no record"),
                format!("`volume create {name}`, or remove the bundle and make it again"),
            ));
        }
    }
}

/// What the next command that changes the store removes by itself.
fn leftovers(store: &Store, findings: &mut Findings) {
    match store.stages() {
        Ok(stages) => {
            for (name, _) in stages.iter().filter(|(_, live)| !live) {
                findings.remark(format!(
                    "staging/{name}: left by a command that was killed; the next command removes it"
                ));
            }
        }
        Err(error) => findings.fault(Fault::new(Kind::Record, "staging", sentence(&error), LOOK)),
    }
    for name in entries_of(store, "trash", findings) {
        findings.remark(format!(
            "trash/{name}: not removed to its end; the next command goes on"
        ));
    }
    match store.leases() {
        Ok(leases) if !leases.dead.is_empty() => findings.remark(format!(
            "leases: {} were left by commands that were killed",
            leases.dead.len()
        )),
        Ok(_) => {}
        Err(error) => findings.fault(Fault::new(
            Kind::Record,
            "leases",
            sentence(&error),
            "end the command that holds it, or move the file away: prune stops at it",
        )),
    }
    let quarantined = match store.subdirectory(QUARANTINE) {
        Ok(dir) => entries(dir.as_fd()).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    for name in quarantined {
        let name = name.to_string_lossy();
        findings.remark(format!(
            "{QUARANTINE}/{name}: a damaged blob that was set aside; remove it when nobody wants to look at it"
        ));
    }
}
