//! Compressed streams, recognised by content.
//!
//! A layer's media type says how it is compressed, and is often wrong: every compressed type, and Docker's plain
//! `diff.tar`, is decided by its first bytes, as containerd does. OCI's plain `.tar` is taken at its word (L-31).

use std::io::{self, BufRead, Read};

use anyhow::{Context as _, Result, bail};
use flate2::bufread::GzDecoder;

use crate::report::{self, Hinted};

/// The largest zstd window that is accepted, as a power of two: 128 MiB, what the zstd tool decompresses unasked. A
/// frame may ask for 2 GiB, and the decoder would allocate it.
const LARGEST_WINDOW: u32 = 27;

/// What the first bytes of a stream say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Self::None => "not compressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// Recognise a stream by its first four bytes: gzip (RFC 1952), zstd and its skippable frames (RFC 8878, 3.1).
pub(crate) fn sniff(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// A compression that is not read, and what undoes it.
fn unread(start: &[u8]) -> Option<(&'static str, &'static str)> {
    match start {
        [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Some(("xz", "xz -dc")),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..] => Some(("bzip2", "bzip2 -dc")),
        [0x04, 0x22, 0x4d, 0x18, ..] => Some(("lz4", "lz4 -dc")),
        _ => None,
    }
}

/// How far a media type can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Declared {
    /// A plain tar whatever its bytes look like.
    Literally,
    /// Sniffed; the type as it ought to be.
    As(Compression),
}

fn declared(media_type: &str) -> Option<Declared> {
    let as_gzip = Declared::As(Compression::Gzip);
    let as_zstd = Declared::As(Compression::Zstd);
    if let Some(layer) = media_type.strip_prefix("application/vnd.oci.image.layer.") {
        return match layer.strip_prefix("nondistributable.").unwrap_or(layer) {
            "v1.tar" => Some(Declared::Literally),
            "v1.tar+gzip" => Some(as_gzip),
            "v1.tar+zstd" => Some(as_zstd),
            _ => None,
        };
    }
    match media_type.strip_prefix("application/vnd.docker.image.rootfs.")? {
        "diff.tar" | "foreign.diff.tar" => Some(Declared::As(Compression::None)),
        "diff.tar.gzip" | "foreign.diff.tar.gzip" => Some(as_gzip),
        "diff.tar.zstd" => Some(as_zstd),
        _ => None,
    }
}

/// The uncompressed bytes of a layer of type `media_type`.
///
/// A gzip stream may have several members and zeros after them; other bytes there are warned of and left, as gzip(1)
/// does (L-26). A zstd stream may have several frames, and none may ask for a window over [`LARGEST_WINDOW`].
///
/// # Errors
/// The media type is not that of a layer (L-33); `reader` fails at its start.
pub(crate) fn decoder<'a>(
    mut reader: impl BufRead + Send + 'a,
    media_type: &str,
) -> Result<Box<dyn Read + Send + 'a>> {
    let Some(declared) = declared(media_type) else {
        bail!("media type {media_type:?}: not one of a layer that can be unpacked");
    };
    let wanted = match declared {
        Declared::Literally => return Ok(Box::new(reader)),
        Declared::As(compression) => compression,
    };
    let found = sniff(reader.fill_buf().context("read its start")?);
    if found != wanted {
        report::warn(format_args!(
            "a layer says that it is {media_type}, and is {}",
            found.name()
        ));
    }
    Ok(match found {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(Members::new(reader)),
        Compression::Zstd => Box::new(zstd_frames(reader)?),
    })
}

/// The uncompressed bytes of a stream that has no media type, such as an archive on stdin.
pub(crate) fn sniffed<'a>(
    mut reader: impl BufRead + Send + 'a,
) -> Result<Box<dyn Read + Send + 'a>> {
    let start = reader.fill_buf().context("read its start")?;
    Ok(match sniff(start) {
        Compression::None => match unread(start) {
            Some((name, tool)) => {
                let hint = format!("decompress it first: `{tool} FILE | pelagos-image import -`");
                let error = format!("it is compressed with {name}; gzip and zstd are read");
                return Err(Hinted::new(error, hint).into());
            }
            None => Box::new(reader),
        },
        Compression::Gzip => Box::new(Members::new(reader)),
        Compression::Zstd => Box::new(zstd_frames(reader)?),
    })
}

fn zstd_frames<'a, R: BufRead + 'a>(reader: R) -> Result<zstd::stream::read::Decoder<'a, R>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(reader).context("set up zstd")?;
    decoder
        .window_log_max(LARGEST_WINDOW)
        .context("set up zstd")?;
    Ok(decoder)
}

/// The members of a gzip stream one after the other.
struct Members<R> {
    /// Absent between two members, and after the last.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Members<R> {
    fn new(reader: R) -> Self {
        Self {
            member: Some(GzDecoder::new(reader)),
        }
    }

    /// The next member after `reader`'s position, if one is there.
    fn next(mut reader: R) -> io::Result<Option<GzDecoder<R>>> {
        let mut zeros = 0usize;
        loop {
            let rest = reader.fill_buf()?;
            let Some(&first) = rest.first() else {
                return Ok(None);
            };
            if first == 0 {
                let run = rest.iter().take_while(|byte| **byte == 0).count();
                reader.consume(run);
                zeros += run;
                continue;
            }
            if first == 0x1f && zeros == 0 {
                return Ok(Some(GzDecoder::new(reader)));
            }
            report::warn(format_args!(
                "bytes after the end of a gzip stream are ignored"
            ));
            return Ok(None);
        }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Some(member) = &mut self.member {
            let count = member.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            let ended = self.member.take().map(GzDecoder::into_inner);
            self.member = match ended {
                Some(reader) => Self::next(reader)?,
                None => None,
            };
        }
        Ok(0)
    }
}
