//! The frame of a layer: its tar stream without the contents of the files.
//!
//! Records behind each other, the whole compressed: a tag byte, then for raw bytes a length and
//! the bytes, for contents their offset in the data file and their length.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

use super::super::tar::RawSink;

const TAG_RAW: u8 = 0;
const TAG_CONTENT: u8 = 1;
const TAG_END: u8 = 2;

/// Longest raw record that a frame may hold.
const RAW_MAX_BYTES: usize = 2 << 20;

/// Writes a frame.
pub(super) struct FrameWriter<W: Write> {
    output: ZlibEncoder<W>,
    pending: Vec<u8>,
}

impl<W: Write> FrameWriter<W> {
    pub(super) fn new(output: W) -> Self {
        Self {
            output: ZlibEncoder::new(output, Compression::fast()),
            pending: Vec::new(),
        }
    }

    /// Says that `length` bytes of the stream are in the data file at `offset`.
    pub(super) fn content(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.flush_raw()?;
        self.output.write_all(&[TAG_CONTENT])?;
        self.output.write_all(&offset.to_le_bytes())?;
        self.output.write_all(&length.to_le_bytes())
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.flush_raw()?;
        self.output.write_all(&[TAG_END])?;
        self.output.finish()
    }

    fn flush_raw(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            let length = u32::try_from(self.pending.len()).map_err(io::Error::other)?;
            self.output.write_all(&[TAG_RAW])?;
            self.output.write_all(&length.to_le_bytes())?;
            self.output.write_all(&self.pending)?;
            self.pending.clear();
        }
        Ok(())
    }
}

impl<W: Write> RawSink for FrameWriter<W> {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.pending.len() + bytes.len() > RAW_MAX_BYTES {
            self.flush_raw()?;
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }
}

/// Writes the tar stream of a layer again.
pub(in crate::image) fn replay(
    frame: impl Read,
    data: &File,
    mut output: impl Write,
) -> io::Result<()> {
    let bad = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "not a layer frame of this version",
        )
    };
    let mut frame = BufReader::new(ZlibDecoder::new(frame));
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let mut tag = [0];
        frame.read_exact(&mut tag)?;
        match tag[0] {
            TAG_RAW => {
                let mut length = [0; 4];
                frame.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                if io::copy(&mut frame.by_ref().take(length), &mut output)? != length {
                    return Err(bad());
                }
            }
            TAG_CONTENT => {
                let (mut offset, mut length) = ([0; 8], [0; 8]);
                frame.read_exact(&mut offset)?;
                frame.read_exact(&mut length)?;
                let (mut offset, mut left) =
                    (u64::from_le_bytes(offset), u64::from_le_bytes(length));
                while left > 0 {
                    let step = usize::try_from(left)
                        .unwrap_or(usize::MAX)
                        .min(buffer.len());
                    data.read_exact_at(&mut buffer[..step], offset)?;
                    output.write_all(&buffer[..step])?;
                    offset += step as u64;
                    left -= step as u64;
                }
            }
            TAG_END => return Ok(()),
            _ => return Err(bad()),
        }
    }
}
