//! How much something takes, told twice: blocks on disk, and the sizes that the files say they have.

use std::iter::Sum;
use std::ops::{Add, AddAssign};

use serde::Serialize;

/// In bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Size {
    /// Blocks on disk, hard links once.
    #[serde(rename = "diskBytes")]
    pub(crate) disk: u64,
    /// Sizes of the files, hard links once. More than the blocks where files have holes.
    #[serde(rename = "apparentBytes")]
    pub(crate) apparent: u64,
}

impl Add for Size {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            disk: self.disk.saturating_add(other.disk),
            apparent: self.apparent.saturating_add(other.apparent),
        }
    }
}

impl AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Size {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::default(), Add::add)
    }
}
