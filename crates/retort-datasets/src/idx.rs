//! The IDX format of MNIST and its relatives, plain or gzip-compressed.
//!
//! A big-endian magic number (`0x00000803` for images, `0x00000801` for labels), one big-endian `u32` for each
//! dimension, then unsigned bytes (LeCun, Cortes, Burges 1998, "The MNIST database of handwritten digits").
//! Everything in a header is checked against limits before memory is asked for, and memory grows with the bytes that
//! really come, so neither a lying header nor a small compressed file can take more than [`MAX_BYTES`].

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::{Error, Result};

/// Largest payload accepted, 1 GiB; the largest of the common sets, EMNIST by class, has 0.55 GB.
pub const MAX_BYTES: usize = 1 << 30;

const IMAGES: u32 = 0x0803;
const LABELS: u32 = 0x0801;

/// Grey images of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Number of images, at least 1.
    pub rows: usize,
    /// Pixel rows of each image, at least 1.
    pub height: usize,
    /// Pixel columns of each image, at least 1.
    pub width: usize,
    /// `rows * height * width` bytes as `[N, H, W]`.
    pub pixels: Vec<u8>,
}

/// Reads an image file, decompressing where it begins like gzip.
///
/// # Errors
///
/// Unreadable file, broken compression, wrong magic number, a dimension of 0, more than [`MAX_BYTES`], fewer or more
/// bytes than the header says. Each names the file.
pub fn read_images(path: &Path) -> Result<Images> {
    with_file(path, images)
}

/// Reads a label file, decompressing where it begins like gzip.
///
/// # Errors
///
/// As for [`read_images`].
pub fn read_labels(path: &Path) -> Result<Vec<u8>> {
    with_file(path, labels)
}

/// As [`read_images`], from bytes; `name` stands for the file in errors.
///
/// # Errors
///
/// As for [`read_images`].
pub fn parse_images(name: &str, bytes: &[u8]) -> Result<Images> {
    with_reader(name, bytes, images)
}

/// As [`read_labels`], from bytes; `name` stands for the file in errors.
///
/// # Errors
///
/// As for [`read_images`].
pub fn parse_labels(name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    with_reader(name, bytes, labels)
}

fn with_file<T>(path: &Path, parse: fn(&str, &mut dyn Read) -> Result<T>) -> Result<T> {
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => with_reader(&name, BufReader::new(file), parse),
        Err(reason) => Err(Error::Io { file: name, reason }),
    }
}

fn with_reader<T>(name: &str, mut reader: impl BufRead, parse: fn(&str, &mut dyn Read) -> Result<T>) -> Result<T> {
    let start = reader.fill_buf().map_err(|reason| Error::Io { file: name.to_owned(), reason })?;
    if start.starts_with(&[0x1f, 0x8b]) {
        parse(name, &mut MultiGzDecoder::new(reader))
    } else {
        parse(name, &mut reader)
    }
}

fn images(file: &str, reader: &mut dyn Read) -> Result<Images> {
    let [rows, height, width] = header(file, reader, IMAGES)?;
    let pixels = payload(file, reader, "bytes of pixels", &[rows, height, width])?;
    Ok(Images { rows, height, width, pixels })
}

fn labels(file: &str, reader: &mut dyn Read) -> Result<Vec<u8>> {
    let [rows] = header(file, reader, LABELS)?;
    payload(file, reader, "bytes of labels", &[rows])
}

/// Magic number and `D` dimensions.
fn header<const D: usize>(file: &str, reader: &mut dyn Read, magic: u32) -> Result<[usize; D]> {
    let bytes = read_at_most(file, reader, "bytes of header", 4 + 4 * D, 0)?;
    let word = |i: usize| -> Option<u32> {
        let bytes = bytes.get(4 * i..4 * i + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    // The magic number first: a label file in place of an image file may also be shorter than the header.
    if let Some(found) = word(0).filter(|&found| found != magic) {
        let found = format!("{found:#010x}");
        return Err(Error::format(file, "magic number", format!("{magic:#010x}"), found));
    }
    let mut dims = [0; D];
    for (i, dim) in dims.iter_mut().enumerate() {
        let Some(value) = word(i + 1) else {
            return Err(Error::format(file, "bytes of header", 4 + 4 * D, bytes.len()));
        };
        if value == 0 {
            return Err(Error::format(file, "dimension in the header", "at least 1", 0));
        }
        *dim = value as usize;
    }
    Ok(dims)
}

/// Exactly the product of `dims` bytes, then the end of the file.
fn payload(file: &str, reader: &mut dyn Read, what: &'static str, dims: &[usize]) -> Result<Vec<u8>> {
    let expected =
        dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_BYTES).ok_or_else(|| {
            let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
            let limit = format!("at most {MAX_BYTES} bytes");
            Error::format(file, "size in the header", limit, dims.join(" x "))
        })?;
    // One byte more shows whether something follows; it also makes a gzip stream check its sum at the end.
    let bytes = read_at_most(file, reader, what, expected, 1)?;
    match bytes.len() {
        n if n == expected => Ok(bytes),
        n if n < expected => Err(Error::format(file, what, expected, n)),
        _ => Err(Error::format(file, what, expected, "more")),
    }
}

/// Up to `expected + extra` bytes; an error only where the file or the compression is broken.
fn read_at_most(file: &str, reader: &mut dyn Read, what: &'static str, expected: usize, extra: u64) -> Result<Vec<u8>> {
    // No more than 16 MiB on the header's word alone.
    let mut bytes = Vec::with_capacity(expected.min(1 << 24));
    let limit = expected as u64 + extra;
    match reader.take(limit).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        // What flate2 says about a stream that is cut off or damaged.
        Err(reason)
            if matches!(reason.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput) =>
        {
            let found = format!("a damaged gzip stream after {} ({reason})", bytes.len());
            Err(Error::format(file, what, expected, found))
        }
        Err(reason) => Err(Error::Io { file: file.to_owned(), reason }),
    }
}
