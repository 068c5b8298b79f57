//! What a registry's manifests need, found by walking from the roots: pure, but for a door that reads one more manifest.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::super::super::digest::Digest;
use super::document::Needs;
use super::survey::{Repository, Stored, Survey};

/// What stays.
#[derive(Debug, Default)]
pub(super) struct Marked {
    /// Manifests, by repository.
    pub(super) kept: BTreeMap<String, BTreeSet<Digest>>,
    /// Content, by repository: that of the manifests too.
    pub(super) needed: BTreeMap<String, BTreeSet<Digest>>,
    /// Content that is needed and should be there by its type: repository and digest. The caller knows what is there.
    pub(super) expected: BTreeSet<(String, Digest)>,
    /// What makes it unsafe to remove anything.
    pub(super) faults: Vec<String>,
}

impl Marked {
    /// Whether any repository needs the content.
    pub(super) fn anywhere(&self, digest: &Digest) -> bool {
        self.needed.values().any(|set| set.contains(digest))
    }
}

/// Walk from the roots of every repository.
///
/// A root is a tag and, unless `only_tags`, every stored manifest; with `only_tags` also a manifest for which `recent`
/// holds, since its tag may be on the way. Kept with a manifest are the children of an index and, when it is in the same
/// repository, what says that it is about it: referrers of referrers too. A subject is not kept by its referrers.
/// `fetch` finds a manifest that its repository does not list.
///
/// A child that is nowhere is a fault: what it needs is not known (G-1).
pub(super) fn mark(
    survey: &Survey,
    only_tags: bool,
    recent: &dyn Fn(&Stored) -> bool,
    fetch: &mut dyn FnMut(&Digest) -> Result<Option<Needs>>,
) -> Marked {
    let mut marked = Marked::default();
    for (name, repository) in &survey.repositories {
        let roots = repository
            .manifests
            .iter()
            .filter(|(_, stored)| !stored.aside && (!only_tags || recent(stored)))
            .map(|(digest, _)| digest);
        let roots: Vec<Digest> = repository.tags.values().chain(roots).cloned().collect();
        let mut walk = Walk {
            name,
            repository,
            stored_as: &survey.stored_as,
            referrers: referrers(repository),
            kept: BTreeSet::new(),
            needed: BTreeSet::new(),
            marked: &mut marked,
        };
        walk.from(roots, fetch);
        let Walk { kept, needed, .. } = walk;
        marked.kept.insert(name.clone(), kept);
        marked.needed.insert(name.clone(), needed);
    }
    marked
}

/// By subject, the manifests that are about it.
fn referrers(repository: &Repository) -> BTreeMap<Digest, Vec<Digest>> {
    let mut found: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    for (digest, stored) in &repository.manifests {
        if let Some(subject) = &stored.needs.subject {
            let subject = repository.aliases.get(subject).unwrap_or(subject);
            found
                .entry(subject.clone())
                .or_default()
                .push(digest.clone());
        }
    }
    found
}

struct Walk<'mark> {
    name: &'mark str,
    repository: &'mark Repository,
    stored_as: &'mark BTreeMap<Digest, Digest>,
    referrers: BTreeMap<Digest, Vec<Digest>>,
    kept: BTreeSet<Digest>,
    needed: BTreeSet<Digest>,
    marked: &'mark mut Marked,
}

impl Walk<'_> {
    /// A list of what is to be visited in place of recursion: an index may be as deep as somebody made it.
    fn from(
        &mut self,
        roots: Vec<Digest>,
        fetch: &mut dyn FnMut(&Digest) -> Result<Option<Needs>>,
    ) {
        let mut left: Vec<(Digest, Option<Digest>)> =
            roots.into_iter().map(|root| (root, None)).collect();
        while let Some((digest, parent)) = left.pop() {
            let digest = self
                .repository
                .aliases
                .get(&digest)
                .cloned()
                .unwrap_or(digest);
            if !self.kept.insert(digest.clone()) {
                continue;
            }
            let needs = match self.repository.manifests.get(&digest) {
                Some(stored) => stored.needs.clone(),
                None => match fetch(&digest) {
                    Ok(Some(needs)) => needs,
                    Ok(None) => {
                        self.missing(&digest, parent.as_ref());
                        continue;
                    }
                    Err(error) => {
                        self.marked.faults.push(crate::report::sentence(&error));
                        continue;
                    }
                },
            };
            self.needed.insert(digest.clone());
            for content in &needs.blobs {
                self.marked
                    .expected
                    .insert((self.name.to_owned(), content.clone()));
            }
            for content in needs.content() {
                self.needed.extend(self.stored_as.get(content).cloned());
                self.needed.insert(content.clone());
            }
            // An entry of an index whose type is not known may be a manifest of this repository all the same.
            let other = needs.blobs.iter().filter(|content| {
                let content = self.repository.aliases.get(content).unwrap_or(content);
                self.repository.manifests.contains_key(content)
            });
            let referrers = self.referrers.get(&digest).into_iter().flatten();
            left.extend(
                needs
                    .children
                    .iter()
                    .chain(other)
                    .chain(referrers)
                    .map(|next| (next.clone(), Some(digest.clone()))),
            );
        }
    }

    fn missing(&mut self, digest: &Digest, parent: Option<&Digest>) {
        let what = match parent {
            Some(parent) => format!(
                "repository {}: manifest {digest}, which index {parent} lists, is not there: push it again or delete the index",
                self.name
            ),
            None => format!("repository {}: manifest {digest} is not there", self.name),
        };
        self.marked.faults.push(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn list(words: &[&str]) -> Vec<Digest> {
        words.iter().map(|word| digest(word)).collect()
    }

    /// One repository: manifests with children, blobs and subject; tags.
    fn survey(manifests: &[(&str, &[&str], &[&str], &str)], tags: &[&str]) -> Survey {
        let mut repository = Repository::default();
        for (name, children, blobs, subject) in manifests {
            let needs = Needs {
                children: list(children),
                blobs: list(blobs),
                elsewhere: Vec::new(),
                subject: (!subject.is_empty()).then(|| digest(subject)),
            };
            let stored = Stored {
                needs,
                ..Stored::default()
            };
            repository.manifests.insert(digest(name), stored);
        }
        for tag in tags {
            repository.tags.insert(format!("t-{tag}"), digest(tag));
        }
        let mut survey = Survey::default();
        survey.repositories.insert("r".to_owned(), repository);
        survey
    }

    fn marked(survey: &Survey, only_tags: bool) -> Marked {
        mark(survey, only_tags, &|_| false, &mut |_| Ok(None))
    }

    fn kept(marked: &Marked, words: &[&str]) -> bool {
        marked.kept["r"] == list(words).into_iter().collect()
    }

    // G-2, G-3: children of an index and referrers, and those of referrers, stay with what is tagged.
    #[test]
    fn what_a_tag_leads_to_is_kept_and_nothing_else() {
        let survey = survey(
            &[
                ("index", &["one", "two"], &[], ""),
                ("one", &[], &["layer 1"], ""),
                ("two", &[], &["layer 2"], ""),
                ("signature", &[], &["sig"], "one"),
                ("about signature", &[], &["about"], "signature"),
                ("loose", &[], &["layer 3"], ""),
                ("about loose", &[], &["layer 4"], "loose"),
            ],
            &["index"],
        );
        let tagged = marked(&survey, true);
        assert!(kept(
            &tagged,
            &["index", "one", "two", "signature", "about signature"]
        ));
        for (content, needed) in [
            ("layer 1", true),
            ("sig", true),
            ("about", true),
            ("layer 3", false),
        ] {
            assert_eq!(tagged.anywhere(&digest(content)), needed, "{content}");
        }
        let all = marked(&survey, false);
        assert_eq!(all.kept["r"].len(), 7);
        assert!(all.anywhere(&digest("layer 4")) && all.faults.is_empty());
    }

    #[test]
    fn indexes_that_list_each_other_end_and_a_missing_child_is_a_fault() {
        let survey = survey(
            &[("a", &["b"], &[], ""), ("b", &["a", "gone"], &[], "a")],
            &["a"],
        );
        let marked = marked(&survey, true);
        assert_eq!(marked.faults.len(), 1, "{:?}", marked.faults);
        assert!(marked.faults[0].contains(&digest("gone").to_string()));
    }

    #[test]
    fn what_was_put_aside_is_no_root_but_is_kept_when_something_needs_it() {
        let mut survey = survey(
            &[
                ("index", &["child"], &[], ""),
                ("child", &[], &["layer"], ""),
                ("other", &[], &["l"], ""),
            ],
            &[],
        );
        for name in ["child", "other"] {
            let repository = survey.repositories.get_mut("r").unwrap();
            repository.manifests.get_mut(&digest(name)).unwrap().aside = true;
        }
        let marked = marked(&survey, false);
        assert!(kept(&marked, &["index", "child"]));
        assert!(marked.anywhere(&digest("layer")) && !marked.anywhere(&digest("l")));
    }
}
