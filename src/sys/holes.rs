//! Copies of files with holes in them.

use std::fs::File;
use std::io::{self, Read as _};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Copy `size` bytes from file to file. Holes stay holes: a small image can have a file of a terabyte of them.
pub(crate) fn copy_with_holes(from: &File, mut to: &File, size: u64) -> io::Result<()> {
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let offset = i64::try_from(at).map_err(io::Error::other)?;
        let data = match lseek(from, offset, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            data => data?,
        };
        let end = lseek(from, data, Whence::SeekHole)?;
        lseek(from, data, Whence::SeekSet)?;
        lseek(to, data, Whence::SeekSet)?;
        io::copy(&mut from.take((end - data).unsigned_abs()), &mut to)?;
        at = end.unsigned_abs();
    }
    Ok(())
}
