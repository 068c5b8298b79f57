//! The data of an entry as a stream, for those who keep it as it is.

use std::io::{BufRead, Error, ErrorKind, Read, Result};

use super::Archive;

/// Reads what is left of the present entry's data as it is stored: of a sparse file, without the holes.
impl<R: BufRead> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..most])?;
        if count == 0 {
            let text = "the archive ends within a file";
            return Err(Error::new(ErrorKind::UnexpectedEof, text));
        }
        self.data -= count as u64;
        Ok(count)
    }
}
