//! `rm`: images and bundles removed.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::image::bundle;
use crate::image::containers::{Containers, RuntimeRoots};
use crate::image::digest::Digest;
use crate::image::manifest::{DEEPEST_INDEX, Descriptor, Document};
use crate::image::output::visible;
use crate::image::store::Store;
use crate::image::userns;
use crate::report::{Hinted, sentence};

use super::{Global, print};

/// Remove bundles, or images; what an image is made of stays until prune
#[derive(Args)]
pub(super) struct Rm {
    /// Also what is in use, and an image with several names
    #[arg(long, short)]
    force: bool,

    /// The directory of a bundle; or a name of an image, a digest, or the beginning of one
    #[arg(required = true, value_name = "BUNDLE|IMAGE")]
    things: Vec<String>,
}

impl Rm {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        userns::enter(userns::Wanted { mounts: false })?;
        let store = Store::open(&global.root, global.durability)?;
        let roots = RuntimeRoots::usual()?;
        bundle::sweep(&store, &roots)?;
        // One that cannot go does not keep the others.
        let mut failures = Vec::new();
        for thing in &self.things {
            let done = match bundle::by_path(&store, Path::new(thing)) {
                Err(error) => Err(error),
                Ok(Some(record)) => Containers::read(&roots).and_then(|containers| {
                    bundle::remove(&store, &containers, &record, self.force).map(drop)
                }),
                Ok(None) => remove_image(&store, &roots, thing, self.force)
                    .and_then(|said| if global.quiet { Ok(()) } else { print(&said) }),
            };
            failures.extend(done.err());
        }
        match failures.len() {
            0 => Ok(ExitCode::SUCCESS),
            1 => Err(failures.remove(0)),
            _ => {
                let all: Vec<String> = failures.iter().map(sentence).collect();
                bail!("{}", all.join("; "))
            }
        }
    }
}

/// Take the names of an image away: what was done, for people.
fn remove_image(store: &Store, roots: &RuntimeRoots, text: &str, force: bool) -> Result<String> {
    // Alone, so that nobody begins to use it between the look and the removal.
    let _alone = store.exclusive()?;
    let found = store.find(text);
    if found.is_err() && Path::new(text).is_dir() {
        bail!("{}: not a bundle of this store", visible(text));
    }
    let (name, target) = found?;
    let names: Vec<String> = store
        .readable_names()?
        .names
        .into_iter()
        .filter(|(_, other)| other.digest == target.digest)
        .map(|(name, _)| name)
        .collect();
    if let Some(name) = &name {
        let others: Vec<String> = names
            .iter()
            .filter(|other| *other != name)
            .map(|other| visible(other).into_owned())
            .collect();
        if !others.is_empty() {
            store.change_names(|entries| Ok(entries.remove(name)))?;
            let others = others.join(", ");
            return Ok(format!(
                "untagged {}; the image is also called {others}\n",
                visible(name)
            ));
        }
    } else if names.len() > 1 && !force {
        let names: Vec<_> = names.iter().map(|name| visible(name)).collect();
        let message = format!("image {text} has several names: {}", names.join(", "));
        return Err(Hinted::new(message, "--force takes them all away").into());
    }
    let users = users(store, roots, &target)?;
    if !users.is_empty() && !force {
        let message = format!("image {}: used by {}", visible(text), users.join(", "));
        return Err(Hinted::new(message, "--force removes its names all the same").into());
    }
    store.change_names(|entries| Ok(entries.remove_target(&target.digest)))?;
    let names: Vec<_> = names
        .iter()
        .filter(|name| !name.is_empty())
        .map(|name| visible(name))
        .collect();
    let gone = if names.is_empty() {
        target.digest.to_string()
    } else {
        names.join(", ")
    };
    Ok(format!(
        "removed {gone}; what it is made of stays until prune\n"
    ))
}

/// The bundles made of the image, and the containers made of those.
fn users(store: &Store, roots: &RuntimeRoots, target: &Descriptor) -> Result<Vec<String>> {
    let mut manifests = BTreeSet::new();
    manifests_below(store, target, 0, &mut manifests)?;
    let containers = Containers::read(roots)?;
    let mut users = Vec::new();
    for record in store.bundle_records()? {
        if !manifests.contains(&record.manifest) {
            continue;
        }
        users.push(format!("bundle {}", record.path.display()));
        let containers = containers.of_bundle(&record.path);
        users.extend(containers.map(|container| format!("container {}", container.id)));
    }
    Ok(users)
}

/// The manifests that `target` is or leads to, as far as the store has them.
fn manifests_below(
    store: &Store,
    target: &Descriptor,
    depth: usize,
    found: &mut BTreeSet<Digest>,
) -> Result<()> {
    if !found.insert(target.digest.clone()) || depth > DEEPEST_INDEX {
        return Ok(());
    }
    // An index may be stored without all that it names.
    if store.blob_size(&target.digest)?.is_none() {
        return Ok(());
    }
    let bytes = store.document(target)?;
    if let Document::Index(index) = Document::parse(&bytes, &target.media_type)
        .with_context(|| format!("blob {}", target.digest))?
    {
        for child in &index.manifests {
            manifests_below(store, child, depth + 1, found)?;
        }
    }
    Ok(())
}
