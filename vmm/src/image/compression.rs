//! Compressions of archives and layers, recognised by their first bytes.

use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Recognises a compression (RFC 1952 section 2.3.1; RFC 8878 sections 3.1.1 and 3.1.2).
    pub(super) fn of(start: &[u8]) -> Self {
        let is_skippable = |start: &[u8]| {
            start
                .first_chunk::<4>()
                .is_some_and(|magic| u32::from_le_bytes(*magic) & !0xf == 0x184D_2A50)
        };
        if start.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable(start) {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// Decompresses `input`.
pub(super) fn decoder<'a, R: BufRead + 'a>(
    compression: Compression,
    input: Box<R>,
) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => input,
        Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(ZstdReader { input, frame: None }),
    })
}

/// Counts what is read, for whoever compares it with what it unpacks to.
pub(super) struct Counted<'a, R> {
    pub(super) inner: R,
    pub(super) count: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

type Frame = ruzstd::decoding::FrameDecoder;

/// Decompresses zstd frames one after the other.
struct ZstdReader<R> {
    input: R,
    frame: Option<Box<Frame>>,
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::BlockDecodingStrategy;
        use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
        let bad = |error: FrameDecoderError| io::Error::new(io::ErrorKind::InvalidData, error);
        loop {
            let Some(frame) = &mut self.frame else {
                if self.input.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                let mut frame = Box::new(Frame::new());
                match frame.reset(&mut self.input) {
                    Ok(()) => self.frame = Some(frame),
                    Err(FrameDecoderError::ReadFrameHeaderError(
                        ReadFrameHeaderError::SkipFrame { length, .. },
                    )) => {
                        let length = u64::from(length);
                        if io::copy(&mut (&mut self.input).take(length), &mut io::sink())? != length
                        {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                    }
                    Err(error) => return Err(bad(error)),
                }
                continue;
            };
            while frame.can_collect() == 0 && !frame.is_finished() {
                let strategy = BlockDecodingStrategy::UptoBytes(buffer.len().max(1));
                frame
                    .decode_blocks(&mut self.input, strategy)
                    .map_err(bad)?;
            }
            let count = frame.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            if let (Some(stored), Some(computed)) = (
                frame.get_checksum_from_data(),
                frame.get_calculated_checksum(),
            ) && stored != computed
            {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the checksum of a zstd frame is wrong",
                ));
            }
            self.frame = None;
        }
    }
}
