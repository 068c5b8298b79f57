//! The kernel's words for an error.

use std::fmt::{self, Write};

use nix::errno::Errno;

/// An errno as messages have it, and as engines search for it: lower case, no number. Printing allocates nothing.
pub(crate) struct Words(pub(crate) Errno);

impl fmt::Display for Words {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut letters = self.0.desc().chars();
        if let Some(first) = letters.next() {
            out.write_char(first.to_ascii_lowercase())?;
        }
        out.write_str(letters.as_str())
    }
}
