//! What readers of many files share.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::image::ImageDecoder;
use crate::{DatasetBuilder, Error, Result};

/// Bytes of one picture's file; photographs have a few million.
pub(crate) const MAX_FILE: u64 = 64 << 20;

/// Pictures that are decoded side by side before they are pushed in order: bounds the memory of a data set that streams.
const CHUNK: usize = 256;

/// SHA-256 of a file, in hex.
///
/// # Errors
///
/// A file that cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let io = |reason| Error::Io { file: shown(path), reason };
    let mut file = File::open(path).map_err(io)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        let read = file.read(&mut buffer).map_err(io)?;
        if read == 0 {
            break;
        }
        hash.update(buffer.get(..read).unwrap_or_default());
    }
    let digest: [u8; 32] = hash.finalize().into();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}

pub(crate) fn row_error(
    file: &str,
    row: usize,
    what: &'static str,
    expected: impl ToString,
    found: impl ToString,
) -> Error {
    Error::Row { file: file.to_owned(), row, what, expected: expected.to_string(), found: found.to_string() }
}

/// The whole file, which must not be larger than `limit`.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let io = |reason| Error::Io { file: shown(path), reason };
    // Opening a pipe would wait for a writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::format(&shown(path), "file", "a regular file", "something else"));
    }
    let file = File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    // One byte more than allowed shows that there are too many, also where the size is not known before.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(Error::format(&shown(path), "bytes", format!("at most {limit}"), "more"));
    }
    Ok(bytes)
}

/// A text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let bytes = read_limited(path, limit)?;
    String::from_utf8(bytes).map_err(|e| {
        let found = format!("another byte at {}", e.utf8_error().valid_up_to());
        Error::format(&shown(path), "text", "UTF-8", found)
    })
}

/// A picture in a file of its own, and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) path: PathBuf,
    pub(crate) label: u32,
}

/// Decodes the pictures on all threads and pushes them in their order.
pub(crate) fn push_pictures(
    mut builder: DatasetBuilder,
    pictures: &[Picture],
    decoder: &ImageDecoder,
) -> Result<DatasetBuilder> {
    for (chunk, start) in pictures.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
        let decode = |(at, picture): (usize, &Picture)| {
            let bytes = read_limited(&picture.path, MAX_FILE)?;
            decoder.decode(&shown(&picture.path), start + at, &bytes)
        };
        // Results are collected in order, so the first broken row is the one named, whatever the threads do.
        let decoded: Vec<Result<Vec<u8>>> = chunk.par_iter().enumerate().map(|(at, p)| decode((at, p))).collect();
        for (pixels, picture) in decoded.into_iter().zip(chunk) {
            builder.push(&pixels?, Some(picture.label), None)?;
        }
    }
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_digest_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_file(&path).unwrap(), expected);
        assert!(sha256_file(folder.path()).unwrap_err().to_string().contains("cannot read"));
        assert!(read_limited(&path, 2).unwrap_err().to_string().contains("at most 2"));
        assert_eq!(read_limited(&path, 3).unwrap(), b"abc");
    }
}
