//! A plan carried out: marked again alone with the store, records first, trees and blobs renamed to trash, and unlinked
//! after the lock was let go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::image::bundle;
use crate::image::containers::RuntimeRoots;
use crate::image::digest::Digest;
use crate::image::store::{Store, Trashed, Used, is_full, now};
use crate::image::volume;

use super::mark::{Marked, survey};
use super::report::Report;
use crate::image::prune::plan::{Item, Options, Plan, Sort, make, used_key};

/// Remove what `plan` lists and what is still unreferenced. What fails is reported, and the rest goes on.
///
/// # Errors
/// What is in use is not known any more, or the store cannot be locked or written: nothing was removed.
pub(crate) fn sweep(
    store: &Store,
    plan: &Plan,
    roots: &RuntimeRoots,
    options: &Options,
) -> Result<Report> {
    let begun = Instant::now();
    let mut report = Report::of(plan);
    let mut doomed = Vec::new();
    let mut runs = Vec::new();
    {
        let _alone = store.exclusive()?;
        let going = match take_names(store, plan, roots, options, &mut report) {
            Err(error) if is_full(&error) => {
                report = Report::of(plan);
                let rest = make_room(store, plan, roots, options, &mut report)?;
                match take_names(store, &rest, roots, options, &mut report) {
                    Err(error) if is_full(&error) && !report.deleted.is_empty() => {
                        for item in &rest.items {
                            report.failed(item, &error);
                        }
                        Vec::new()
                    }
                    going => going?,
                }
            }
            going => going?,
        };
        for item in going {
            match discard(store, &item) {
                Ok(Outcome::Done(freed)) => report.deleted(item, freed),
                Ok(Outcome::Doomed(trashed)) => doomed.push((item, trashed)),
                Ok(Outcome::Run(name)) => runs.push((item, name)),
                Ok(Outcome::InUse) => spare(item, "a command has begun to use it", &mut report),
                Err(error) => report.failed(&item, &error),
            }
        }
    }
    for (item, trashed) in doomed {
        match trashed.remove() {
            Ok(freed) => report.deleted(item, freed),
            Err(error) => report.failed(&item, &error),
        }
    }
    for (item, name) in runs {
        match bundle::sweep_run(store, roots, &name) {
            Ok(Some(freed)) => report.deleted(item, freed),
            Ok(None) => spare(item, "it has come into use", &mut report),
            Err(error) => report.failed(&item, &error),
        }
    }
    report.took(plan.took + begun.elapsed());
    Ok(report)
}

/// Take the names of the plan away, and remember what is referenced: what of the plan goes.
fn take_names(
    store: &Store,
    plan: &Plan,
    roots: &RuntimeRoots,
    options: &Options,
    report: &mut Report,
) -> Result<Vec<Item>> {
    // ORDER: the names go before anything they lead to, and no name can come while they are changed.
    store.change_names(|names| {
        let marked = survey(store, roots);
        marked.sound(options.force_corrupt)?;
        let used = super::used(store, roots)?;
        let going = still_unreferenced(store, plan, &marked, &used, options, report)?;
        for item in going.iter().filter(|item| item.sort == Sort::Image) {
            if let Some(digest) = &item.digest {
                names.remove_entry(&item.id, digest);
                // An entry without a name goes by its digest.
                if item.id == digest.to_string() {
                    names.remove_entry("", digest);
                }
            }
        }
        store.put_used(&remember(&marked, used, &going, now()))?;
        Ok(going)
    })
}

/// On a disk so full that not even the names can be written: remove what no name has to go for, one thing after the other
/// and at once. Layers of images that go are among it, since they can be unpacked again. What of the plan is left.
fn make_room(
    store: &Store,
    plan: &Plan,
    roots: &RuntimeRoots,
    options: &Options,
    report: &mut Report,
) -> Result<Plan> {
    let marked = survey(store, roots);
    marked.sound(options.force_corrupt)?;
    let used = super::used(store, roots)?;
    let mut judged = Report::of(plan);
    let going = still_unreferenced(store, plan, &marked, &used, options, &mut judged)?;
    let kept = marked.kept(|_| true, |_| true);
    let users = marked.volume_users(|_| true);
    let free = |item: &Item| {
        let digest = item.id.parse::<Digest>();
        match item.sort {
            Sort::Leftover => true,
            Sort::Blob => digest.is_ok_and(|digest| !kept.blobs.contains(&digest)),
            Sort::Layer => digest.is_ok_and(|chain| !kept.held_layers.contains(&chain)),
            Sort::Volume => !users.contains_key(&item.id),
            Sort::Image | Sort::Bundle => false,
        }
    };
    let mut rest = plan.clone();
    for item in going.into_iter().filter(free) {
        let freed = match discard(store, &item) {
            Ok(Outcome::Done(freed)) => Ok(freed),
            Ok(Outcome::Doomed(trashed)) => trashed.remove(),
            Ok(Outcome::Run(name)) => match bundle::sweep_run(store, roots, &name) {
                Ok(None) => continue,
                freed => freed.map(Option::unwrap_or_default),
            },
            Ok(Outcome::InUse) => continue,
            Err(error) => Err(error),
        };
        rest.items.retain(|other| *other != item);
        match freed {
            Ok(freed) => report.deleted(item, freed),
            Err(error) => report.failed(&item, &error),
        }
    }
    Ok(rest)
}

/// Of the plan, what a plan made now has too. The rest is spared.
fn still_unreferenced(
    store: &Store,
    plan: &Plan,
    marked: &Marked,
    used: &Used,
    options: &Options,
    report: &mut Report,
) -> Result<Vec<Item>> {
    let again = Options {
        // What was shown and asked for does not depend on how large the store is by now.
        keep_storage: None,
        ..options.clone()
    };
    let fresh = make(store, marked, used, &again, now())?;
    let key = |item: &Item| (item.sort, item.id.clone(), item.digest.clone());
    let still: BTreeSet<_> = fresh.items.iter().map(key).collect();
    let mut going = Vec::new();
    for item in &plan.items {
        match still.contains(&key(item)) {
            true => going.push(item.clone()),
            false => {
                let stays = fresh.spared.iter().find(|spared| key(spared) == key(item));
                let reason = stays.map_or(why_not(item, marked), |spared| spared.reason.as_str());
                spare(item.clone(), reason, report);
            }
        }
    }
    // Only with all names of the plan gone is the rest of it unreferenced; where one stays, what it needs does.
    let names = |item: &&Item| matches!(item.sort, Sort::Image | Sort::Bundle);
    let planned: BTreeSet<_> = going.iter().filter(names).map(key).collect();
    let entry_goes = |at: usize| {
        let entry = &marked.entries[at];
        planned.contains(&(Sort::Image, entry.id(), Some(entry.target.digest.clone())))
    };
    let bundle_stays = |id: &str| !planned.contains(&(Sort::Bundle, id.to_owned(), None));
    let kept = marked.kept(|at| !entry_goes(at), bundle_stays);
    let users = marked.volume_users(bundle_stays);
    let (going, needed): (Vec<Item>, Vec<Item>) = going.into_iter().partition(|item| {
        let digest = || item.id.parse::<Digest>();
        match item.sort {
            Sort::Blob => digest().is_ok_and(|digest| !kept.blobs.contains(&digest)),
            Sort::Layer => digest().is_ok_and(|chain| {
                let whole = marked
                    .scan
                    .layers
                    .get(&chain)
                    .is_some_and(|found| found.record.is_some());
                !(kept.held_layers.contains(&chain) || whole && kept.layers.contains(&chain))
            }),
            Sort::Volume => !users.contains_key(&item.id),
            Sort::Image | Sort::Bundle | Sort::Leftover => true,
        }
    });
    for item in needed {
        spare(item, "it has come into use", report);
    }
    Ok(going)
}

fn why_not(item: &Item, marked: &Marked) -> &'static str {
    let digest = || item.id.parse::<Digest>().ok();
    let there = match item.sort {
        Sort::Image => marked.entries.iter().any(|entry| entry.id() == item.id),
        Sort::Bundle => marked
            .bundles
            .iter()
            .any(|bundle| bundle.record.id == item.id),
        Sort::Layer => digest().is_some_and(|chain| marked.scan.layers.contains_key(&chain)),
        Sort::Blob => digest().is_some_and(|digest| marked.scan.blobs.contains_key(&digest)),
        Sort::Volume => marked.scan.volumes.contains_key(&item.id),
        Sort::Leftover => false,
    };
    if there {
        "it has come into use"
    } else {
        "it was gone already"
    }
}

fn spare(mut item: Item, reason: &str, report: &mut Report) {
    item.reason = reason.to_owned();
    report.spared.push(item);
}

enum Outcome {
    /// Gone, with that many bytes.
    Done(u64),
    /// In trash.
    Doomed(Trashed),
    /// The bundle of a run, which has its own way to go.
    Run(String),
    InUse,
}

/// Take one thing out of the store: it does not count from here on.
fn discard(store: &Store, item: &Item) -> Result<Outcome> {
    let id = item.id.as_str();
    let trashed = match item.sort {
        // It went with index.json.
        Sort::Image => return Ok(Outcome::Done(0)),
        Sort::Bundle => {
            store.remove_bundle_record(id)?;
            return Ok(Outcome::Done(0));
        }
        Sort::Layer => {
            let chain: Digest = id.parse()?;
            // ORDER: the record first. A tree without one does not count, a record without its tree would lie.
            store.remove_layer_record(&chain)?;
            store.discard(&format!("layers/{}", chain.hex()))?
        }
        Sort::Blob => {
            let digest: Digest = id.parse()?;
            store.discard(&format!(
                "blobs/{}/{}",
                digest.algorithm().name(),
                digest.hex()
            ))?
        }
        Sort::Volume => volume::discard(store, id)?,
        Sort::Leftover => return leftover(store, id),
    };
    Ok(trashed.map_or(Outcome::Done(0), Outcome::Doomed))
}

fn leftover(store: &Store, path: &str) -> Result<Outcome> {
    match path.split_once('/') {
        Some(("staging", name)) => Ok(store
            .discard_dead_stage(name)?
            .map_or(Outcome::InUse, Outcome::Doomed)),
        Some(("bundles", name)) => Ok(Outcome::Run(name.to_owned())),
        Some(("trash", name)) => Ok(Outcome::Done(store.remove_trash(name)?)),
        Some(("leases", name)) => Ok(store
            .remove_dead_lease(name)?
            .map_or(Outcome::InUse, Outcome::Done)),
        _ => Err(anyhow!("{path}: not a leftover")),
    }
}

/// When everything was last seen referenced: what is referenced now gets the present time, what is not and never was
/// gets it as its first sight, and what is gone is forgotten.
fn remember(marked: &Marked, used: Used, going: &[Item], now: u64) -> Used {
    let gone: BTreeSet<String> = going
        .iter()
        .map(|item| used_key(item.sort, &item.id))
        .collect();
    let kept = marked.kept(|_| true, |_| true);
    let users = marked.volume_users(|_| true);
    let mut seen = BTreeMap::new();
    let mut note = |sort: Sort, id: String, referenced: bool| {
        let key = used_key(sort, &id);
        if gone.contains(&key) {
            return;
        }
        // Before this prune: the time of the prune itself is for what is referenced.
        let before = used
            .last(&key, now)
            .unwrap_or(now)
            .min(now.saturating_sub(1));
        seen.insert(key, if referenced { now } else { before });
    };
    for entry in &marked.entries {
        note(Sort::Image, entry.id(), !entry.used_by.is_empty());
    }
    for bundle in &marked.bundles {
        note(Sort::Bundle, bundle.record.id.clone(), !bundle.gone);
    }
    for chain in marked.scan.layers.keys() {
        note(Sort::Layer, chain.to_string(), kept.layers.contains(chain));
    }
    for digest in marked.scan.blobs.keys() {
        note(Sort::Blob, digest.to_string(), kept.blobs.contains(digest));
    }
    for name in marked.scan.volumes.keys() {
        note(Sort::Volume, name.clone(), users.contains_key(name));
    }
    Used {
        schema: used.schema,
        at: now,
        changed: 0,
        seen,
    }
}
