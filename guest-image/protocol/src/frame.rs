//! Frames: a length, then that many bytes of postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// The longest body of a hello. Small, because it is read before anything is known about the peer.
pub const MAX_HELLO_BYTES: usize = 64;

/// The longest body of a request. Linux refuses arguments and environment above 2 MiB by default, so a config that could
/// start fits.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// The longest body of a report: bounds what a hostile guest makes the host keep.
pub const MAX_REPORT_BYTES: usize = 16 << 10;

/// Length of the length.
const PREFIX_BYTES: usize = size_of::<u32>();

/// Why bytes are not a frame, or a message cannot become one.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The length is above the limit.
    #[error("a frame of {length_bytes} bytes exceeds the limit of {limit_bytes}")]
    TooLong {
        /// The length that was found.
        length_bytes: usize,
        /// The limit that holds for this kind of message.
        limit_bytes: usize,
    },
    /// The body is not the encoding of a message.
    #[error("a frame's body is not a message of this protocol")]
    Malformed(#[source] postcard::Error),
    /// The body holds more than a message.
    #[error("a frame's body has {0} bytes after the message")]
    Trailing(usize),
    /// The message could not be encoded.
    #[error("a message could not be encoded")]
    Encode(#[source] postcard::Error),
}

/// Appends `message` as one frame to `out`.
///
/// # Errors
///
/// If the body is longer than `limit_bytes` or cannot be encoded; `out` is then as it was.
pub fn encode<M: Serialize>(
    message: &M,
    limit_bytes: usize,
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let body = postcard::to_stdvec(message).map_err(FrameError::Encode)?;
    let too_long = FrameError::TooLong {
        length_bytes: body.len(),
        limit_bytes,
    };
    if body.len() > limit_bytes {
        return Err(too_long);
    }
    let Ok(length) = u32::try_from(body.len()) else {
        return Err(too_long);
    };
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

/// Collects received bytes and takes frames out of them.
///
/// It holds at most one incomplete frame beyond what the caller pushed last, so a caller that takes all frames after each
/// push bounds it by the limit plus the size of its reads.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// Where the first byte that was not taken yet stands.
    start: usize,
    limit_bytes: usize,
}

impl FrameBuffer {
    /// Makes an empty buffer for frames with bodies of at most `limit_bytes`.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            bytes: Vec::new(),
            start: 0,
            limit_bytes,
        }
    }

    /// Adds received bytes.
    pub fn push(&mut self, received: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(received);
    }

    /// Takes the next message, or `None` if its frame is not complete.
    ///
    /// # Errors
    ///
    /// If the bytes cannot be a frame; the connection is then of no further use.
    pub fn take<M: DeserializeOwned>(&mut self) -> Result<Option<M>, FrameError> {
        let pending = self.bytes.get(self.start..).unwrap_or_default();
        let Some((prefix, rest)) = pending.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length_bytes = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        if length_bytes > self.limit_bytes {
            return Err(FrameError::TooLong {
                length_bytes,
                limit_bytes: self.limit_bytes,
            });
        }
        let Some(body) = rest.get(..length_bytes) else {
            return Ok(None);
        };
        let (message, left) = postcard::take_from_bytes(body).map_err(FrameError::Malformed)?;
        if !left.is_empty() {
            return Err(FrameError::Trailing(left.len()));
        }
        self.start += PREFIX_BYTES + length_bytes;
        Ok(Some(message))
    }

    /// How many bytes are needed, at least, until [`FrameBuffer::take`] can find another frame; 0 if it can now.
    ///
    /// A reader that asks for no more than this never reads beyond the frame.
    #[must_use]
    pub fn missing_bytes(&self) -> usize {
        let pending = self.bytes.get(self.start..).unwrap_or_default();
        match pending.split_first_chunk::<PREFIX_BYTES>() {
            None => PREFIX_BYTES - pending.len(),
            Some((prefix, rest)) => {
                let length_bytes =
                    usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
                length_bytes.saturating_sub(rest.len())
            }
        }
    }

    /// Ends the frames and gives back the bytes after them.
    #[must_use]
    pub fn into_rest(mut self) -> Vec<u8> {
        self.bytes.drain(..self.start);
        self.bytes
    }
}
