//! The binary format of CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images").
//!
//! Records without a header: one label byte (CIFAR-10) or a coarse and a fine label byte (CIFAR-100), then 3,072 bytes
//! of pixels as `[3, 32, 32]`.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::{Error, Result};

/// Bytes of one image, `3 * 32 * 32`.
pub const IMAGE_BYTES: usize = 3 * 32 * 32;

/// Which of the two record layouts a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One label byte, 0 to 9.
    Cifar10,
    /// A coarse label byte, 0 to 19, then a fine one, 0 to 99.
    Cifar100,
}

impl Layout {
    /// Name and number of classes of each label byte; the last one is the class.
    fn label_bytes(self) -> &'static [(&'static str, u8)] {
        match self {
            Layout::Cifar10 => &[("label", 10)],
            Layout::Cifar100 => &[("coarse label", 20), ("fine label", 100)],
        }
    }

    /// Bytes of one record.
    pub fn record_bytes(self) -> usize {
        self.label_bytes().len() + IMAGE_BYTES
    }
}

/// Records of one file, or of several appended to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// `[N, 3, 32, 32]`.
    pub pixels: Vec<u8>,
    /// Class of each image; the fine label for CIFAR-100.
    pub labels: Vec<u32>,
    /// Superclass of each image; empty for CIFAR-10.
    pub coarse_labels: Vec<u32>,
}

impl Records {
    /// Appends the records of a file of exactly `rows` records.
    ///
    /// # Errors
    ///
    /// An unreadable file, a size other than `rows` records, a label outside the classes (with its row). Each names
    /// the file. After an error the records hold part of the file.
    pub fn append_file(&mut self, path: &Path, layout: Layout, rows: usize) -> Result<()> {
        let name = path.display().to_string();
        let io = |reason| Error::Io { file: name.clone(), reason };
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let expected = (rows as u64).saturating_mul(layout.record_bytes() as u64);
        if size != expected {
            let expected = format!("{expected} ({rows} records)");
            return Err(Error::format(&name, "bytes", expected, size));
        }
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let mut record = vec![0; layout.record_bytes()];
        self.pixels.reserve_exact(rows * IMAGE_BYTES);
        for row in 0..rows {
            reader.read_exact(&mut record).map_err(io)?;
            self.push(&name, layout, row, &record)?;
        }
        Ok(())
    }

    fn push(&mut self, file: &str, layout: Layout, row: usize, record: &[u8]) -> Result<()> {
        let parts = layout.label_bytes();
        let (labels, pixels) = record.split_at(parts.len());
        for (&label, &(what, classes)) in labels.iter().zip(parts) {
            if label >= classes {
                return Err(Error::Row {
                    file: file.to_owned(),
                    row,
                    what,
                    expected: format!("less than {classes}"),
                    found: label.to_string(),
                });
            }
        }
        self.pixels.extend_from_slice(pixels);
        let (&class, coarse) = labels.split_last().expect("a layout has a label byte");
        self.labels.push(u32::from(class));
        self.coarse_labels.extend(coarse.iter().map(|&l| u32::from(l)));
        Ok(())
    }
}
