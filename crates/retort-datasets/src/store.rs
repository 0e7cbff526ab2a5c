//! Where the pixels of a data set lie: in memory, or in a temporary file where they would take too much of it.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Bytes of pixels that a data set keeps in memory unless it is told otherwise: 4 GiB, or 1.4 million images of 32 x 32
/// in colour.
pub const DEFAULT_MEMORY_LIMIT: u64 = 4 << 30;

/// Pixels of all rows, each of the same number of bytes.
#[derive(Clone, Debug)]
pub(crate) struct Pixels {
    image_bytes: usize,
    rows: usize,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Memory(Arc<Vec<u8>>),
    /// Nameless, so that the system removes it with its last user, however the program ends.
    File(Arc<File>),
}

impl Pixels {
    pub(crate) fn in_memory(image_bytes: usize, pixels: Vec<u8>) -> Self {
        Self { image_bytes, rows: pixels.len() / image_bytes, place: Place::Memory(Arc::new(pixels)) }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// All bytes, where they lie in memory.
    pub(crate) fn in_memory_bytes(&self) -> Option<&[u8]> {
        match &self.place {
            Place::Memory(bytes) => Some(bytes),
            Place::File(_) => None,
        }
    }

    /// Pixels of one row; the caller has checked that it exists.
    pub(crate) fn row(&self, row: usize) -> Result<Cow<'_, [u8]>> {
        match &self.place {
            Place::Memory(bytes) => {
                let at = row * self.image_bytes;
                Ok(Cow::Borrowed(&bytes[at..at + self.image_bytes]))
            }
            Place::File(_) => {
                let mut image = vec![0; self.image_bytes];
                self.read(row, &mut image)?;
                Ok(Cow::Owned(image))
            }
        }
    }

    /// Adds all rows to a digest.
    pub(crate) fn hash(&self, digest: &mut Sha256) -> Result<()> {
        if let Place::Memory(bytes) = &self.place {
            digest.update(bytes.as_slice());
            return Ok(());
        }
        for row in 0..self.rows {
            digest.update(self.row(row)?);
        }
        Ok(())
    }

    /// Copies the pixels of one row.
    pub(crate) fn read(&self, row: usize, target: &mut [u8]) -> Result<()> {
        match &self.place {
            Place::Memory(_) => {
                target.copy_from_slice(&self.row(row)?);
                Ok(())
            }
            Place::File(file) => read_at(file, target, row as u64 * self.image_bytes as u64)
                .map_err(|reason| Error::Io { file: format!("{SPILL}, row {row}"), reason }),
        }
    }
}

const SPILL: &str = "temporary file of pixels";

#[cfg(unix)]
fn read_at(file: &File, target: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, target, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut target: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !target.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, target, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        target = &mut target[n..];
        offset += n as u64;
    }
    Ok(())
}

/// Takes rows one by one, and moves them to a file when they pass the limit.
#[derive(Debug)]
pub(crate) struct PixelWriter {
    image_bytes: usize,
    limit: u64,
    rows: usize,
    place: Filling,
}

#[derive(Debug)]
enum Filling {
    Memory(Vec<u8>),
    File(BufWriter<File>),
}

impl PixelWriter {
    pub(crate) fn new(image_bytes: usize, limit: u64) -> Self {
        Self { image_bytes, limit, rows: 0, place: Filling::Memory(Vec::new()) }
    }

    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Number of rows so far.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Appends a row of `image_bytes` bytes.
    pub(crate) fn push(&mut self, image: &[u8]) -> Result<()> {
        debug_assert_eq!(image.len(), self.image_bytes);
        if let Filling::Memory(bytes) = &mut self.place
            && (bytes.len() + image.len()) as u64 > self.limit
        {
            let mut file = BufWriter::with_capacity(1 << 20, tempfile::tempfile().map_err(spill_error)?);
            file.write_all(bytes).map_err(spill_error)?;
            self.place = Filling::File(file);
        }
        match &mut self.place {
            Filling::Memory(bytes) => bytes.extend_from_slice(image),
            Filling::File(file) => file.write_all(image).map_err(spill_error)?,
        }
        self.rows += 1;
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Pixels> {
        let place = match self.place {
            Filling::Memory(bytes) => Place::Memory(Arc::new(bytes)),
            Filling::File(file) => {
                let file = file.into_inner().map_err(|e| spill_error(e.into_error()))?;
                Place::File(Arc::new(file))
            }
        };
        Ok(Pixels { image_bytes: self.image_bytes, rows: self.rows, place })
    }
}

fn spill_error(reason: std::io::Error) -> Error {
    Error::Io { file: format!("{SPILL} in {}", std::env::temp_dir().display()), reason }
}
