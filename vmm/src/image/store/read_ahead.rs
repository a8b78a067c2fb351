//! Reads, decompresses and hashes a blob on a thread of its own, ahead of whoever uses it.
//!
//! Hashing takes about as long as all the rest of a conversion, so the two go on side by side.
//! The thread ends before the function that started it returns.

use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use super::super::compression::{Compression, Counted, decoder};
use super::super::digest::{Digest, HashingReader};
use super::super::progress::Progress;
use super::super::source::FilePart;

/// Bytes handed over at a time.
const BLOCK_BYTES: usize = 256 * 1024;
/// Blocks that the thread may be ahead.
const BLOCKS_AHEAD: usize = 4;

/// What is known of a blob that was read to its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digests {
    /// The digest of the blob.
    pub(super) blob: Digest,
    /// The digest of what it unpacks to.
    pub(super) stream: Digest,
    /// Length of what it unpacks to.
    pub(super) stream_bytes: u64,
}

/// What a blob unpacks to.
pub(super) struct Stream<'a> {
    full: Receiver<io::Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    block: Vec<u8>,
    at: usize,
    /// Bytes of the blob that the thread has read, and how many of them were reported.
    compressed: &'a AtomicU64,
    reported: u64,
    progress: &'a dyn Progress,
}

impl Stream<'_> {
    /// Bytes of the blob that were read so far.
    pub(super) fn compressed_bytes(&self) -> u64 {
        self.reported
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            let used = std::mem::take(&mut self.block);
            // The thread may have ended: then nobody needs the buffer any more.
            let _ = self.empty.send(used);
            self.at = 0;
            match self.full.recv() {
                Ok(block) => self.block = block?,
                // The thread has hung up behind the last block.
                Err(_) => return Ok(0),
            }
            let compressed = self.compressed.load(Ordering::Relaxed);
            self.progress.advance(compressed - self.reported);
            self.reported = compressed;
        }
        let count = buffer.len().min(self.block.len() - self.at);
        buffer[..count].copy_from_slice(&self.block[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Calls `body` with what `blob` unpacks to, and returns with its result what the blob was.
///
/// The digests are there only if `body` read the stream to its end.
pub(super) fn read_ahead<T>(
    blob: FilePart,
    compression: Compression,
    progress: &dyn Progress,
    body: impl FnOnce(Stream<'_>) -> T,
) -> io::Result<(T, io::Result<Digests>)> {
    let compressed = AtomicU64::new(0);
    thread::scope(|scope| {
        let (full_sender, full) = sync_channel(BLOCKS_AHEAD);
        let (empty, empty_receiver) = channel();
        let counted = Counted {
            inner: blob,
            count: &compressed,
        };
        let reader = thread::Builder::new()
            .name("layer".to_owned())
            .spawn_scoped(scope, move || {
                produce(counted, compression, &full_sender, &empty_receiver)
            })?;
        let stream = Stream {
            full,
            empty,
            block: Vec::new(),
            at: 0,
            compressed: &compressed,
            reported: 0,
            progress,
        };
        let result = body(stream);
        let digests = reader
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the reading thread failed")));
        Ok((result, digests))
    })
}

fn produce(
    blob: impl Read,
    compression: Compression,
    full: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<Digests> {
    // What is not compressed is its own stream: one digest is enough.
    let mut blob = match compression {
        Compression::None => HashingReader::idle(blob),
        _ => HashingReader::new(blob),
    };
    let (stream, stream_bytes) = {
        let buffered = BufReader::with_capacity(BLOCK_BYTES, &mut blob);
        let mut stream = HashingReader::new(decoder(compression, Box::new(buffered))?);
        loop {
            let mut block = empty.try_recv().unwrap_or_default();
            block.resize(BLOCK_BYTES, 0);
            let filled = fill(&mut stream, &mut block);
            let ends = !matches!(filled, Ok(count) if count > 0);
            let failed = filled.is_err();
            let message = filled.map(|count| {
                block.truncate(count);
                block
            });
            if failed || !ends {
                // A user that has hung up has no use for the rest.
                full.send(message)
                    .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            }
            if failed {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if ends {
                break;
            }
        }
        let bytes = stream.count();
        (stream.digest(), bytes)
    };
    blob.drain()?;
    let none = || io::Error::other("no digest was computed");
    let stream = stream.ok_or_else(none)?;
    let blob = match compression {
        Compression::None => stream,
        _ => blob.digest().ok_or_else(none)?,
    };
    Ok(Digests {
        blob,
        stream,
        stream_bytes,
    })
}

/// Fills a buffer as far as the input goes.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
