//! The kernel's words for an error.

use std::fmt::{self, Write};

use nix::errno::Errno;

/// An errno as messages have it, and as engines search for it: lower case, no number. Printing allocates nothing.
pub(crate) struct Words(pub(crate) Errno);

/// As strerror(3) has it: some of nix's words are about other things than ours.
fn described(errno: Errno) -> &'static str {
    match errno {
        Errno::EAGAIN => "resource temporarily unavailable",
        Errno::EIO => "input/output error",
        Errno::ELOOP => "too many levels of symbolic links",
        Errno::EOPNOTSUPP => "operation not supported",
        Errno::ERANGE => "numerical result out of range",
        other => other.desc(),
    }
}

impl fmt::Display for Words {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut letters = described(self.0).chars();
        if let Some(first) = letters.next() {
            out.write_char(first.to_ascii_lowercase())?;
        }
        out.write_str(letters.as_str())
    }
}
