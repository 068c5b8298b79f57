//! A streaming tar reader: ustar, old GNU and PAX, as layers have them (layer.md, "Distributable Format").
//!
//! It reads bytes and makes entries; it opens nothing. Where writers are careless it reads as Go's `archive/tar` does, with
//! which other engines read layers; what would let two readers see two archives is refused.

mod content;
mod fields;
mod pax;
mod sparse;

use std::io::{BufRead, ErrorKind, Read as _};

use anyhow::{Context as _, Result, anyhow, bail};

pub(crate) use sparse::Run;

use fields::{BLOCK, Block, Format};

/// The largest extended header or long name, in bytes (S-6).
const LARGEST_HEADER: u64 = 1 << 20;

/// Extended headers in a row before an entry.
const MOST_HEADERS: usize = 64;

/// What may follow the end of an archive, in bytes: writers fill up to their block size.
const LONGEST_TRAILER: u64 = 1 << 30;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    /// Always counted forward.
    pub(crate) nanos: u32,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attribute {
    /// Without NUL, at most 255 bytes.
    pub(crate) name: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    File,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// One entry. Names are bytes (L-30), and without NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it is written in the archive.
    pub(crate) path: Vec<u8>,
    /// Of a hard link or symbolic link.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// The twelve permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Of the file, holes included; 0 for everything else.
    pub(crate) size: u64,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) xattrs: Vec<Attribute>,
    /// Where the data lies, when the file is sparse.
    pub(crate) runs: Option<Vec<Run>>,
}

/// An archive being read.
pub(crate) struct Archive<R> {
    input: R,
    /// Data of the present entry that has not been read.
    data: u64,
    /// What fills it up to a block.
    padding: u64,
    ended: bool,
}

impl<R: BufRead> Archive<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            data: 0,
            padding: 0,
            ended: false,
        }
    }

    /// The next entry, or none at the end of the archive. What is left of the present one is skipped.
    ///
    /// # Errors
    /// The input fails or ends within an entry; a header is malformed or of an unknown type (L-18); an extended header
    /// is over 1 MiB.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        if self.ended {
            return Ok(None);
        }
        self.skip_data()?;
        let mut records = pax::Records::default();
        let (mut long_name, mut long_link) = (None, None);
        for _ in 0..MOST_HEADERS {
            let Some(header) = self.header()? else {
                self.ended = true;
                return Ok(None);
            };
            match header[fields::TYPE] {
                b'x' => records = pax::Records::parse(&self.extension(&header)?)?,
                // Nobody who writes layers uses it, and every reader of layers ignores it.
                b'g' => drop(self.extension(&header)?),
                b'L' => long_name = Some(fields::text(&self.extension(&header)?).to_vec()),
                b'K' => long_link = Some(fields::text(&self.extension(&header)?).to_vec()),
                _ => {
                    let mut entry = self.entry(&header, records)?;
                    if let Some(name) = long_name {
                        entry.path = name;
                    }
                    if let Some(link) = long_link {
                        entry.link = link;
                    }
                    return Ok(Some(entry));
                }
            }
        }
        bail!("more than {MOST_HEADERS} extended headers before one entry")
    }

    /// Give the data of the present entry to `sink`, piece by piece with the offset in the file.
    pub(crate) fn data(
        &mut self,
        runs: Option<&[Run]>,
        mut sink: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let whole = [Run {
            offset: 0,
            length: self.data,
        }];
        for run in runs.unwrap_or(&whole) {
            let mut offset = run.offset;
            let end = run.offset.saturating_add(run.length);
            while offset < end {
                let piece = fill(&mut self.input)?;
                if piece.is_empty() {
                    bail!("the archive ends within a file");
                }
                let wanted = usize::try_from((end - offset).min(self.data)).unwrap_or(usize::MAX);
                let count = piece.len().min(wanted);
                if count == 0 {
                    bail!("the map of a sparse file is of more bytes than it has");
                }
                sink(offset, &piece[..count])?;
                self.input.consume(count);
                self.data -= count as u64;
                offset += count as u64;
            }
        }
        Ok(())
    }

    /// Read what follows the end of the archive, which is part of the layer's digest (L-26).
    ///
    /// # Errors
    /// There is more than 1 GiB of it.
    pub(crate) fn drain(&mut self) -> Result<()> {
        let mut total = 0u64;
        loop {
            let count = fill(&mut self.input)?.len();
            if count == 0 {
                return Ok(());
            }
            self.input.consume(count);
            total += count as u64;
            if total > LONGEST_TRAILER {
                bail!("more than {LONGEST_TRAILER} bytes after the end of the archive");
            }
        }
    }

    /// The next header block; none at two blocks of zeros or at the end of the input.
    fn header(&mut self) -> Result<Option<Block>> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block != [0; BLOCK] {
            if !fields::checksum_matches(&block) {
                bail!("not a tar header: the checksum is wrong");
            }
            return Ok(Some(block));
        }
        match self.block()? {
            None => Ok(None),
            Some(second) if second == [0; BLOCK] => Ok(None),
            Some(_) => bail!("a single block of zeros within the archive"),
        }
    }

    fn block(&mut self) -> Result<Option<Block>> {
        let mut block = [0; BLOCK];
        let mut length = 0;
        while length < BLOCK {
            let piece = fill(&mut self.input)?;
            let count = piece.len().min(BLOCK - length);
            if count == 0 && length == 0 {
                return Ok(None);
            }
            if count == 0 {
                bail!("the archive ends within a header");
            }
            block[length..length + count].copy_from_slice(&piece[..count]);
            self.input.consume(count);
            length += count;
        }
        Ok(Some(block))
    }

    /// The content of an extended header or long name.
    fn extension(&mut self, header: &Block) -> Result<Vec<u8>> {
        let size = size(header)?;
        if size > LARGEST_HEADER {
            bail!("an extended header of {size} bytes: more than {LARGEST_HEADER} are not read");
        }
        let mut content = Vec::new();
        (&mut self.input)
            .take(size)
            .read_to_end(&mut content)
            .context("read an extended header")?;
        if content.len() as u64 != size {
            bail!("the archive ends within an extended header");
        }
        self.padding = padding(size);
        self.skip_data()?;
        Ok(content)
    }

    fn entry(&mut self, header: &Block, records: pax::Records) -> Result<Entry> {
        let format = fields::format(header);
        let mut entry = Entry {
            path: fields::name(header, format),
            link: fields::text(&header[fields::LINK]).to_vec(),
            ..Entry::default()
        };
        if let Some(path) = records.path {
            entry.path = path;
        }
        let shown = entry.path.escape_ascii().to_string();
        let named = |what: &str| format!("{what} of {shown}");
        entry.kind = match header[fields::TYPE] {
            // A directory of the time before there was a type for it.
            0 if entry.path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => bail!("{shown}: unknown entry type {:?}", char::from(other)),
        };
        entry.mode = u32::try_from(
            fields::number(&header[fields::MODE]).with_context(|| named("mode"))? & 0o7777,
        )?;
        entry.uid = match records.uid {
            Some(uid) => uid,
            None => id(fields::number(&header[fields::UID])?).with_context(|| named("uid"))?,
        };
        entry.gid = match records.gid {
            Some(gid) => gid,
            None => id(fields::number(&header[fields::GID])?).with_context(|| named("gid"))?,
        };
        entry.mtime = match records.mtime {
            Some(mtime) => mtime,
            None => Time {
                seconds: fields::number(&header[fields::MTIME]).with_context(|| named("mtime"))?,
                nanos: 0,
            },
        };
        if let Some(link) = records.link {
            entry.link = link;
        }
        if matches!(entry.kind, Kind::Character | Kind::Block) && format != Format::V7 {
            entry.major =
                device(&header[fields::MAJOR], 12).with_context(|| named("major number"))?;
            entry.minor =
                device(&header[fields::MINOR], 20).with_context(|| named("minor number"))?;
        }
        entry.xattrs = records.xattrs;
        // L-25: the position in the stream follows the pax record, whatever ustar's field says.
        let stored = match records.size {
            Some(size) => size,
            None => size(header).with_context(|| named("size"))?,
        };
        if entry.kind != Kind::File {
            // COMPAT: Go's reader takes no data for these types, whatever the size field says, and all layers are read
            // by it.
            return Ok(entry);
        }
        self.data = stored;
        self.padding = padding(stored);
        entry.size = stored;
        self.sparse(header, format, &records.sparse, &mut entry)
            .with_context(|| shown.clone())?;
        Ok(entry)
    }

    /// Turn the entry into a sparse file if the header or the extended header says so.
    fn sparse(
        &mut self,
        header: &Block,
        format: Format,
        records: &sparse::Pax,
        entry: &mut Entry,
    ) -> Result<()> {
        let (runs, size) = if header[fields::TYPE] == b'S' {
            if format != Format::Gnu {
                bail!("a sparse file outside GNU's format");
            }
            sparse::old_gnu(header, &mut self.input)?
        } else if let Some(size) = records.file_size() {
            if let Some(name) = &records.name {
                entry.path.clone_from(name);
            }
            if records.map_in_data()? {
                let (runs, taken) = sparse::in_data(&mut self.input, self.data)?;
                self.data -= taken;
                (runs, size)
            } else {
                (records.runs()?, size)
            }
        } else {
            return Ok(());
        };
        sparse::check(&runs, size, self.data)?;
        entry.size = size;
        entry.runs = Some(runs);
        Ok(())
    }

    fn skip_data(&mut self) -> Result<()> {
        while self.data > 0 {
            let count = fill(&mut self.input)?.len() as u64;
            if count == 0 {
                bail!("the archive ends within a file");
            }
            let count = count.min(self.data);
            self.input.consume(usize::try_from(count)?);
            self.data -= count;
        }
        while self.padding > 0 {
            let count = fill(&mut self.input)?.len() as u64;
            if count == 0 {
                // Some writers leave out the padding of the last entry.
                self.padding = 0;
            }
            let count = count.min(self.padding);
            self.input.consume(usize::try_from(count)?);
            self.padding -= count;
        }
        Ok(())
    }
}

/// [`BufRead::fill_buf`], again when a signal came.
fn fill(input: &mut impl BufRead) -> Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    // What has been filled is there: the second call reads nothing.
    Ok(input.fill_buf()?)
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn size(header: &Block) -> Result<u64> {
    let size = fields::number(&header[fields::SIZE])?;
    u64::try_from(size).map_err(|_| anyhow!("a negative size"))
}

/// An owner as the kernel has it; the last of 32 bits stands for none (chown(2)).
fn id(number: i64) -> Result<u32> {
    match u32::try_from(number) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => bail!("{number} is not an id"),
    }
}

/// One of a device's numbers, of `bits` bits (L-28).
fn device(field: &[u8], bits: u32) -> Result<u32> {
    let number = fields::number(field)?;
    match u32::try_from(number) {
        Ok(number) if number >> bits == 0 => Ok(number),
        _ => bail!("{number} has more than {bits} bits"),
    }
}
