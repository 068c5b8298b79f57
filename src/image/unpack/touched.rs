//! What the present layer has written, so that its whiteouts spare it (L-8).
//!
//! A directory's inode number and a name stand for a path: two paths that lead to one file through links are one. A number
//! that is used again belongs to a directory made in this layer, whose content is all of this layer. Eight bytes are kept
//! of each.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

/// How many are gathered before they are sorted into the rest.
const RECENT: usize = 1 << 16;

/// A set of names in directories.
#[derive(Default)]
pub(super) struct Touched {
    keys: RandomState,
    sorted: Vec<u64>,
    recent: HashSet<u64>,
}

impl Touched {
    pub(super) fn insert(&mut self, directory: u64, name: &[u8]) {
        let key = self.keys.hash_one((directory, name));
        self.recent.insert(key);
        if self.recent.len() >= RECENT {
            self.sorted.reserve_exact(self.recent.len());
            self.sorted.extend(self.recent.drain());
            // A stable sort finds the sorted run and merges the rest into it.
            self.sorted.sort();
            self.sorted.dedup();
        }
    }

    pub(super) fn contains(&self, directory: u64, name: &[u8]) -> bool {
        let key = self.keys.hash_one((directory, name));
        self.recent.contains(&key) || self.sorted.binary_search(&key).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_remembered_beyond_the_first_run() {
        let mut touched = Touched::default();
        let names = 3 * RECENT;
        for at in 0..names {
            touched.insert(7, at.to_string().as_bytes());
        }
        for at in [0, 1, RECENT - 1, RECENT, names - 1] {
            assert!(touched.contains(7, at.to_string().as_bytes()), "{at}");
        }
        assert!(!touched.contains(8, b"0"));
        assert!(!touched.contains(7, b"x"));
    }
}
