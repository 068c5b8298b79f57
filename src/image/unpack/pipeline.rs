//! A layer's way through the machine: one thread inflates, one hashes what comes out, and the caller's reads it as an
//! archive. The next layer is inflated while the present one is being written.
//!
//! The buffers are few and go round: who holds none waits for one, so memory is bounded and nobody runs ahead.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};

use super::super::compression;
use super::super::digest::{Algorithm, Digest};
use super::super::progress::{Bar, Progress};
use super::Layer;

/// Large enough that handing one over costs nothing, small enough to stay in a second level cache.
const BUFFER: usize = 256 << 10;

/// Together 16 MiB.
const BUFFERS: usize = 64;

/// What is read of the blob at once.
const CHUNK: usize = 128 << 10;

/// A filled buffer. It goes back to where empty ones are taken from when the last holder drops it.
struct Block {
    bytes: Vec<u8>,
    home: Sender<Vec<u8>>,
}

impl Drop for Block {
    fn drop(&mut self) {
        // Nobody takes empty buffers any more when the inflating thread has ended.
        drop(self.home.send(std::mem::take(&mut self.bytes)));
    }
}

enum Message {
    Bytes(Arc<Block>),
    /// The layer is complete.
    End,
    /// Reading or inflating it failed.
    Failed(anyhow::Error),
}

enum ToHash {
    Start(Algorithm),
    Bytes(Arc<Block>),
    End,
}

/// Run every layer through, base first: `consume` is given the index and the uncompressed bytes, and reads to their end.
///
/// # Errors
/// The first that happens, naming the layer: of the blob, of `consume`, or that the bytes are not those of the DiffID
/// (L-37).
pub(super) fn run(
    layers: Vec<Layer>,
    progress: &Progress,
    mut consume: impl FnMut(usize, &mut Stream) -> Result<()>,
) -> Result<()> {
    let wanted: Vec<(Digest, Digest)> = layers
        .iter()
        .map(|layer| (layer.descriptor.digest.clone(), layer.diff_id.clone()))
        .collect();
    let (to_archive, from_inflater) = channel();
    let (to_hash, hash_work) = channel();
    let (digest_made, digests) = channel();
    let (home, empty) = channel();
    for _ in 0..BUFFERS {
        // The receiver is in this function.
        drop(home.send(Vec::new()));
    }
    thread::scope(|scope| {
        scope.spawn(move || hash(&hash_work, &digest_made));
        scope.spawn(move || {
            let mut outlet = Outlet {
                to_archive,
                to_hash,
                home,
                empty,
            };
            for layer in layers {
                if inflate(layer, progress, &mut outlet).is_none() {
                    break;
                }
            }
        });
        // The stream is dropped before the scope waits for its threads, which end when nobody listens.
        let mut stream = Stream::new(from_inflater);
        for (index, (blob, diff_id)) in wanted.iter().enumerate() {
            stream.ended = false;
            one(
                &mut stream,
                |stream| consume(index, stream),
                &digests,
                diff_id,
            )
            .with_context(|| format!("layer {blob}"))?;
        }
        Ok(())
    })
}

/// The consumer's part of one layer, and the comparison of what it was.
fn one(
    stream: &mut Stream,
    consume: impl FnOnce(&mut Stream) -> Result<()>,
    digests: &Receiver<Digest>,
    diff_id: &Digest,
) -> Result<()> {
    consume(stream)?;
    if !stream.fill_buf()?.is_empty() {
        bail!("its archive was not read to the end");
    }
    let found = digests.recv().context("hash it")?;
    if found != *diff_id {
        bail!("its content is {found}, and its configuration says {diff_id}");
    }
    Ok(())
}

/// Where the inflating thread's output goes.
struct Outlet {
    to_archive: Sender<Message>,
    to_hash: Sender<ToHash>,
    home: Sender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
}

/// Inflate one layer. None when nobody listens any more.
fn inflate(layer: Layer, progress: &Progress, outlet: &mut Outlet) -> Option<()> {
    let digest = &layer.descriptor.digest;
    let bar = progress.bar(digest.short(), layer.descriptor.size);
    outlet
        .to_hash
        .send(ToHash::Start(layer.diff_id.algorithm()))
        .ok()?;
    let blob = BufReader::with_capacity(
        CHUNK,
        Counted {
            inner: layer.blob,
            bar,
        },
    );
    let mut source = match compression::decoder(blob, &layer.descriptor.media_type) {
        Ok(source) => source,
        Err(error) => {
            outlet.to_archive.send(Message::Failed(error)).ok()?;
            return None;
        }
    };
    loop {
        let mut bytes = outlet.empty.recv().ok()?;
        bytes.resize(BUFFER, 0);
        let count = match read_full(&mut source, &mut bytes) {
            Ok(count) => count,
            Err(error) => {
                let error = anyhow!(error).context("read and decompress it");
                outlet.to_archive.send(Message::Failed(error)).ok()?;
                return None;
            }
        };
        bytes.truncate(count);
        let block = Arc::new(Block {
            bytes,
            home: outlet.home.clone(),
        });
        if count > 0 {
            outlet.to_hash.send(ToHash::Bytes(block.clone())).ok()?;
            outlet.to_archive.send(Message::Bytes(block)).ok()?;
        }
        if count < BUFFER {
            outlet.to_hash.send(ToHash::End).ok()?;
            outlet.to_archive.send(Message::End).ok()?;
            return Some(());
        }
    }
}

/// Fill `buffer` as far as the input reaches.
fn read_full(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match input.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Hash layer after layer until nobody sends or nobody listens.
fn hash(work: &Receiver<ToHash>, made: &Sender<Digest>) {
    let mut hasher = Algorithm::Sha256.hasher();
    for message in work {
        match message {
            ToHash::Start(algorithm) => hasher = algorithm.hasher(),
            ToHash::Bytes(block) => hasher.update(&block.bytes),
            ToHash::End => {
                let next = Algorithm::Sha256.hasher();
                let digest = std::mem::replace(&mut hasher, next).finish();
                if made.send(digest).is_err() {
                    return;
                }
            }
        }
    }
}

/// The uncompressed bytes of one layer.
pub(super) struct Stream {
    input: Receiver<Message>,
    block: Option<Arc<Block>>,
    /// How much of the block has been read.
    at: usize,
    ended: bool,
}

impl Stream {
    fn new(input: Receiver<Message>) -> Self {
        Self {
            input,
            block: None,
            at: 0,
            ended: false,
        }
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self
            .block
            .as_ref()
            .is_some_and(|block| self.at == block.bytes.len())
        {
            self.block = None;
        }
        if self.block.is_none() && !self.ended {
            self.at = 0;
            match self.input.recv() {
                Ok(Message::Bytes(block)) => self.block = Some(block),
                Ok(Message::End) => self.ended = true,
                Ok(Message::Failed(error)) => {
                    self.ended = true;
                    return Err(io::Error::other(format!("{error:#}")));
                }
                Err(_) => {
                    self.ended = true;
                    return Err(io::Error::other("the decompressing thread has ended"));
                }
            }
        }
        Ok(self
            .block
            .as_ref()
            .map_or(&[], |block| &block.bytes[self.at..]))
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// A blob that moves its bar.
struct Counted<R> {
    inner: R,
    bar: Bar,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bar.add(count as u64);
        Ok(count)
    }
}
