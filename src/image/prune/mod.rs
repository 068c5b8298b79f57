//! What nothing needs, found by marking from the roots, and removed.
//!
//! A prune is three values: [`mark::Marked`] says what is needed and why, [`plan::Plan`] lists what shall go, and
//! [`report::Report`] tells what became of it. The plan that is shown is the plan that is carried out: the sweep marks
//! again, alone with the store, and removes of the plan what is still unreferenced, never more.

pub(crate) mod bundles;
pub(crate) mod filter;
pub(crate) mod mark;
pub(crate) mod plan;
pub(crate) mod registry;
pub(crate) mod report;
pub(crate) mod scan;
pub(crate) mod size;
mod sweep;
mod walk;

use std::time::Instant;

use anyhow::Result;

use super::containers::RuntimeRoots;
use super::store::{Guard, Store, Used, now};

pub(crate) use mark::survey;
pub(crate) use sweep::sweep;

use plan::{Options, Plan};

/// Work out what shall go.
///
/// # Errors
/// Something could not be read or is missing: every such thing is named, and there is no plan.
pub(crate) fn plan(store: &Store, roots: &RuntimeRoots, options: &Options) -> Result<Plan> {
    let begun = Instant::now();
    let marked = {
        // Held off for this moment is only another prune. A store that cannot be written can still be looked at.
        let _moment: Option<Guard> = store.shared().ok();
        survey(store, roots)
    };
    marked.sound(options.force_corrupt)?;
    let mut plan = plan::make(store, &marked, &used(store, roots)?, options, now())?;
    plan.took = begun.elapsed();
    Ok(plan)
}

/// When everything was last seen referenced, and when references have changed since.
fn used(store: &Store, roots: &RuntimeRoots) -> Result<Used> {
    let changed = store.last_change()?.max(roots.last_change());
    // G-5: a time to come says nothing.
    let changed = if changed <= now() { changed } else { 0 };
    Ok(Used {
        changed,
        ..store.used()?
    })
}
