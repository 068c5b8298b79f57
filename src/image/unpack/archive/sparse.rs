//! Sparse files: four ways to say where the data of a file lies (GNU tar manual, "Storing Sparse Files"). Layers should not
//! have them (layer.md), and some do.

use std::io::BufRead;

use anyhow::{Context as _, Result, bail};

use super::fields::{self, BLOCK, Block};
use super::pax::decimal;

/// One run of data in the file; the archive has the runs one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// As many runs as are read: 4 MiB of them.
const MOST_RUNS: usize = 1 << 18;

/// The records `GNU.sparse.*` of an extended header.
#[derive(Debug, Default)]
pub(super) struct Pax {
    major: Option<u64>,
    minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    real_size: Option<u64>,
    /// Versions 0.0 and 0.1: offsets and lengths in turn.
    numbers: Vec<u64>,
}

impl Pax {
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"realsize" => self.real_size = Some(decimal(value)?),
            b"name" if value.contains(&0) => bail!("a NUL byte in a name"),
            b"name" => self.name = Some(value.to_vec()),
            b"numblocks" => self.numbers.clear(),
            b"offset" | b"numbytes" => {
                if (key == b"offset") != self.numbers.len().is_multiple_of(2) {
                    bail!("offset and length do not take turns");
                }
                self.push(decimal(value)?)?;
            }
            b"map" => {
                self.numbers.clear();
                if !value.is_empty() {
                    for number in value.split(|byte| *byte == b',') {
                        self.push(decimal(number)?)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, number: u64) -> Result<()> {
        if self.numbers.len() >= 2 * MOST_RUNS {
            bail!("a sparse file of more than {MOST_RUNS} pieces");
        }
        self.numbers.push(number);
        Ok(())
    }

    /// Whether the map stands before the data (version 1.0).
    pub(super) fn map_in_data(&self) -> Result<bool> {
        match (self.major, self.minor) {
            (None, _) | (Some(0), _) => Ok(false),
            (Some(1), Some(0)) => Ok(true),
            _ => bail!("a sparse file of an unknown version"),
        }
    }

    /// The size of the file when these records are those of a sparse file.
    pub(super) fn file_size(&self) -> Option<u64> {
        self.real_size.or(self.size)
    }

    /// The map of versions 0.0 and 0.1.
    pub(super) fn runs(&self) -> Result<Vec<Run>> {
        pairs(&self.numbers)
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<Run>> {
    if !numbers.len().is_multiple_of(2) {
        bail!("an offset without a length in the map of a sparse file");
    }
    let run = |pair: &[u64]| Run {
        offset: pair[0],
        length: pair[1],
    };
    Ok(numbers.chunks_exact(2).map(run).collect())
}

/// Check a map: in order, without overlap, within the file, and of exactly the data that the archive has.
pub(super) fn check(runs: &[Run], file_size: u64, stored: u64) -> Result<()> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for run in runs {
        let next = run.offset.checked_add(run.length);
        match next {
            Some(next) if run.offset >= end && next <= file_size => end = next,
            _ => bail!("the map of a sparse file is not in order or leaves the file"),
        }
        // No overflow: what does not overlap within 64 bits adds up within them.
        sum += run.length;
    }
    if sum != stored {
        bail!("the map of a sparse file is of {sum} bytes, and the archive has {stored}");
    }
    Ok(())
}

/// The map in an old GNU header (type `S`) and its extension blocks: the runs and the size of the file.
pub(super) fn old_gnu(header: &Block, input: &mut impl BufRead) -> Result<(Vec<Run>, u64)> {
    let mut runs = Vec::new();
    let real_size = fields::number(&header[483..495]).context("size of a sparse file")?;
    let real_size = u64::try_from(real_size).context("size of a sparse file")?;
    table(&header[386..482], &mut runs)?;
    let mut more = header[482] != 0;
    let mut block = [0; BLOCK];
    while more {
        if runs.len() > MOST_RUNS {
            bail!("a sparse file of more than {MOST_RUNS} pieces");
        }
        input
            .read_exact(&mut block)
            .context("the archive ends in the map of a sparse file")?;
        table(&block[..504], &mut runs)?;
        more = block[504] != 0;
    }
    Ok((runs, real_size))
}

fn table(bytes: &[u8], runs: &mut Vec<Run>) -> Result<()> {
    for slot in bytes.chunks_exact(24) {
        if slot[0] == 0 {
            break;
        }
        let field = |bytes: &[u8]| -> Result<u64> {
            u64::try_from(fields::number(bytes)?).context("a negative number")
        };
        runs.push(Run {
            offset: field(&slot[..12]).context("map of a sparse file")?,
            length: field(&slot[12..]).context("map of a sparse file")?,
        });
    }
    Ok(())
}

/// The map of version 1.0, in front of the data: decimal lines, filled up to a block. Returns it and the bytes it took.
pub(super) fn in_data(input: &mut impl BufRead, stored: u64) -> Result<(Vec<Run>, u64)> {
    let mut reader = Lines {
        input,
        block: [0; BLOCK],
        at: BLOCK,
        taken: 0,
        stored,
    };
    let count = reader.number()?;
    if count > MOST_RUNS as u64 {
        bail!("a sparse file of more than {MOST_RUNS} pieces");
    }
    let mut numbers = Vec::new();
    for _ in 0..2 * count {
        numbers.push(reader.number()?);
    }
    Ok((pairs(&numbers)?, reader.taken))
}

struct Lines<'i, R> {
    input: &'i mut R,
    block: Block,
    at: usize,
    taken: u64,
    stored: u64,
}

impl<R: BufRead> Lines<'_, R> {
    fn number(&mut self) -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                if self.stored - self.taken < BLOCK as u64 {
                    bail!("the map of a sparse file is longer than its data");
                }
                self.input
                    .read_exact(&mut self.block)
                    .context("the archive ends in the map of a sparse file")?;
                self.taken += BLOCK as u64;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return decimal(&digits),
                _ if digits.len() > 20 => bail!("malformed map of a sparse file"),
                _ => digits.push(byte),
            }
        }
    }
}
