//! index.json: the names of the images. Entries and members that we do not know stay as they are, since skopeo and umoci
//! write there too.

use anyhow::{Context as _, Error, Result, bail};
use serde_json::{Map, Value, json};

use super::super::digest::Digest;
use super::super::manifest::Descriptor;
use super::Store;

/// The largest index.json that is read, in bytes.
const LARGEST: u64 = 64 << 20;
/// The annotation that names an entry (image-spec annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The entries of index.json as far as they can be read.
#[derive(Default)]
pub(crate) struct Readable {
    /// With their names, "" where they have none, in order.
    pub(crate) names: Vec<(String, Descriptor)>,
    /// Names of those that cannot, and why.
    pub(crate) others: Vec<(String, Error)>,
}

/// The entries of index.json, to be changed.
pub(crate) struct Names {
    document: Map<String, Value>,
    entries: Vec<Value>,
    changed: bool,
    /// Names that were given to something.
    given: Vec<String>,
}

impl Names {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let Value::Object(mut document) = serde_json::from_slice(bytes)? else {
            bail!("not a JSON object");
        };
        if document.get("schemaVersion") != Some(&json!(2)) {
            bail!("schemaVersion is not 2");
        }
        let entries = match document.remove("manifests") {
            Some(Value::Array(entries)) => entries,
            None | Some(Value::Null) => Vec::new(),
            Some(_) => bail!("manifests is not an array"),
        };
        Ok(Self {
            document,
            entries,
            changed: false,
            given: Vec::new(),
        })
    }

    fn bytes(mut self) -> Result<Vec<u8>> {
        self.document
            .insert("manifests".into(), Value::Array(self.entries));
        Ok(serde_json::to_vec(&self.document)?)
    }

    /// Every entry with its name, "" where it has none.
    pub(crate) fn all(&self) -> Result<Vec<(String, Descriptor)>> {
        self.entries
            .iter()
            .enumerate()
            .map(|(at, entry)| {
                let descriptor: Descriptor = serde_json::from_value(entry.clone())
                    .with_context(|| format!("manifests[{at}]"))?;
                Ok((name_of(entry).to_owned(), descriptor))
            })
            .collect()
    }

    /// The entries of all that we can read, with their names, and of the others the names and what is wrong: other tools
    /// write digests here that we do not know, and our images are no worse for that (L-33).
    fn readable(&self) -> Readable {
        let mut readable = Readable::default();
        for (at, entry) in self.entries.iter().enumerate() {
            let name = name_of(entry).to_owned();
            match serde_json::from_value(entry.clone()).with_context(|| format!("manifests[{at}]"))
            {
                Ok(target) => readable.names.push((name, target)),
                Err(error) => readable.others.push((name, error)),
            }
        }
        readable
    }

    /// What `name` means. The first entry counts where several have the name (L-34).
    pub(crate) fn get(&self, name: &str) -> Result<Option<Descriptor>> {
        self.entries
            .iter()
            .find(|entry| name_of(entry) == name)
            .map(|entry| {
                serde_json::from_value(entry.clone()).with_context(|| format!("entry {name}"))
            })
            .transpose()
    }

    /// Whether something has the name, if only something that we cannot read.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| name_of(entry) == name)
    }

    /// Give `name` to what `target` names; what had the name before loses it.
    pub(crate) fn set(&mut self, name: &str, target: &Descriptor) -> Result<()> {
        self.given.push(format!("image:{name}"));
        let mut target = target.clone();
        target.annotations.insert(REF_NAME.into(), name.to_owned());
        target.data = None;
        let entry = serde_json::to_value(target)?;
        let mut places = (0..self.entries.len()).filter(|at| name_of(&self.entries[*at]) == name);
        match places.next() {
            Some(first) => {
                let others: Vec<usize> = places.collect();
                self.entries[first] = entry;
                for at in others.into_iter().rev() {
                    self.entries.remove(at);
                }
            }
            None => self.entries.push(entry),
        }
        self.changed = true;
        Ok(())
    }

    /// Add `target` without a name, unless an entry for it is there: what refers to an image, such as a signature.
    pub(crate) fn keep(&mut self, target: &Descriptor) -> Result<()> {
        let digest = target.digest.to_string();
        if !self.entries.iter().any(|entry| entry["digest"] == digest) {
            self.entries.push(serde_json::to_value(target)?);
            self.changed = true;
        }
        Ok(())
    }

    /// Take the name away from everything that has it: whether anything had.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| name_of(entry) != name);
        self.changed |= self.entries.len() != before;
        self.entries.len() != before
    }

    /// Take every entry that leads to `target` away, named or not: how many there were.
    pub(crate) fn remove_target(&mut self, target: &Digest) -> usize {
        let before = self.entries.len();
        let target = target.to_string();
        self.entries
            .retain(|entry| entry["digest"].as_str() != Some(&target));
        self.changed |= self.entries.len() != before;
        before - self.entries.len()
    }
}

impl Names {
    /// Remove the entries that give `name` ("" for none) to `digest`, and no other: whether there were any.
    pub(crate) fn remove_entry(&mut self, name: &str, digest: &Digest) -> bool {
        let before = self.entries.len();
        let wanted = digest.to_string();
        self.entries.retain(|entry| {
            name_of(entry) != name || entry["digest"].as_str() != Some(wanted.as_str())
        });
        self.changed |= self.entries.len() != before;
        self.entries.len() != before
    }
}

fn name_of(entry: &Value) -> &str {
    entry["annotations"][REF_NAME].as_str().unwrap_or_default()
}

impl Store {
    fn read_names(&self) -> Result<Names> {
        let context = || format!("read {}", self.root().join("index.json").display());
        let bytes = self
            .read("index.json", LARGEST)?
            .context("there is none")
            .with_context(context)?;
        Names::parse(&bytes).with_context(context)
    }

    /// Every entry of index.json with its name, "" where it has none, in order.
    pub(crate) fn names(&self) -> Result<Vec<(String, Descriptor)>> {
        self.read_names()?
            .all()
            .with_context(|| format!("read {}", self.root().join("index.json").display()))
    }

    /// The entries of index.json that can be read, and those that cannot. For who decides what stays there is only
    /// [`Self::names`].
    pub(crate) fn readable_names(&self) -> Result<Readable> {
        let mut readable = self.read_names()?.readable();
        let path = self.root().join("index.json");
        for (_, error) in &mut readable.others {
            let inner = std::mem::replace(error, Error::msg(""));
            *error = inner.context(format!("read {}", path.display()));
        }
        Ok(readable)
    }

    /// Change index.json, as a whole or not at all. What it names is on the disk before, as the durability asks for it.
    pub(crate) fn change_names<T>(
        &self,
        change: impl FnOnce(&mut Names) -> Result<T>,
    ) -> Result<T> {
        let _lock = self.index_lock()?;
        let mut names = self.read_names()?;
        let outcome = change(&mut names)?;
        if names.changed {
            // A name that has come to something else is not as old as it was.
            self.renew(&names.given)?;
            self.settle()?;
            self.replace("index.json", &names.bytes()?)?;
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(digit: char) -> Descriptor {
        serde_json::from_value(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{}", digit.to_string().repeat(64)),
            "size": 7,
        }))
        .unwrap()
    }

    #[test]
    fn foreign_entries_and_members_survive_a_change() {
        let foreign =
            json!({"mediaType": "x/y", "digest": target('a').digest, "size": 1, "strange": [1]});
        let text = json!({"schemaVersion": 2, "manifests": [foreign], "odd": {"a": null}});
        let mut names = Names::parse(text.to_string().as_bytes()).unwrap();
        names.set("one:1", &target('b')).unwrap();
        assert!(names.changed);
        let after: Value = serde_json::from_slice(&names.bytes().unwrap()).unwrap();
        assert_eq!(after["odd"], json!({"a": null}));
        assert_eq!(after["manifests"][0], foreign);
        assert_eq!(after["manifests"][1]["annotations"][REF_NAME], "one:1");
    }

    #[test]
    fn a_name_means_one_thing_after_it_was_set() {
        let mut names = Names::parse(br#"{"schemaVersion":2,"manifests":null}"#).unwrap();
        names.set("a:1", &target('a')).unwrap();
        names.set("b:1", &target('a')).unwrap();
        names.set("a:1", &target('c')).unwrap();
        let all = names.all().unwrap();
        assert_eq!(
            all.iter()
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>(),
            ["a:1", "b:1"]
        );
        assert_eq!(
            names.get("a:1").unwrap().unwrap().digest,
            target('c').digest
        );
        assert!(names.remove("a:1"));
        assert!(!names.remove("a:1"));
        assert_eq!(names.get("a:1").unwrap(), None);
    }
}
