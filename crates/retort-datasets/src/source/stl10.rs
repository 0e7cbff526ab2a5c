//! STL-10's binary files (Coates, Lee, Ng 2011, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning").
//!
//! `train_X.bin`, `test_X.bin` and `unlabeled_X.bin` hold images of `3 * 96 * 96` bytes without a header: three colour
//! planes, each column after column. `train_y.bin` and `test_y.bin` hold one byte an image, 1 to 10.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::files::{read_limited, row_error, shown};
use super::image::{Fit, ImageDecoder};
use crate::{DatasetBuilder, Error, ImageShape, Result};

/// Shape of the images before a [`Fit`].
pub const SHAPE: ImageShape = ImageShape { channels: 3, height: SIDE, width: SIDE };

/// Names of the classes 0 to 9; the files count from 1.
pub const CLASS_NAMES: [&str; 10] =
    ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"];

const SIDE: usize = 96;
const IMAGE_BYTES: usize = 3 * SIDE * SIDE;

/// Official part of STL-10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// 5,000 labelled images.
    Train,
    /// 8,000 labelled images.
    Test,
    /// 100,000 images without labels, from a broader distribution.
    Unlabelled,
}

impl Part {
    /// Number of images.
    pub fn rows(self) -> usize {
        match self {
            Self::Train => 5_000,
            Self::Test => 8_000,
            Self::Unlabelled => 100_000,
        }
    }

    /// Number of classes, 0 without labels: what the builder is made with.
    pub fn classes(self) -> usize {
        if self == Self::Unlabelled { 0 } else { CLASS_NAMES.len() }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
            Self::Unlabelled => "unlabeled",
        }
    }

    /// The file of images and that of labels, in `folder` or in its `stl10_binary`.
    ///
    /// # Errors
    ///
    /// Files that are not there.
    pub fn locate(self, folder: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
        let images = format!("{}_X.bin", self.prefix());
        let labels = (self != Self::Unlabelled).then(|| format!("{}_y.bin", self.prefix()));
        let folders = [folder.to_owned(), folder.join("stl10_binary")];
        let there = |folder: &PathBuf| {
            folder.join(&images).is_file() && labels.as_ref().is_none_or(|labels| folder.join(labels).is_file())
        };
        match folders.iter().find(|folder| there(folder)) {
            Some(folder) => Ok((folder.join(&images), labels.map(|labels| folder.join(labels)))),
            None => {
                let labels = labels.map(|labels| format!(" and `{labels}`")).unwrap_or_default();
                let expected = format!(
                    "`{images}`{labels} there or in `stl10_binary`: unpack stl10_binary.tar.gz from \
                     https://cs.stanford.edu/~acoates/stl10"
                );
                Err(Error::format(&shown(folder), "folder of STL-10", expected, "no such files"))
            }
        }
    }
}

/// Appends all images of a part to a builder of `fit.shape(SHAPE)` and [`Part::classes`].
///
/// # Errors
///
/// Files that are not there, of another size than the official ones, or with a label outside 1 to 10 (with its row).
pub fn read(builder: DatasetBuilder, folder: &Path, part: Part, fit: Fit) -> Result<DatasetBuilder> {
    let (images, labels) = part.locate(folder)?;
    read_files(builder, &images, labels.as_deref(), part.rows(), fit)
}

/// As [`read`], from files of exactly `rows` images.
///
/// # Errors
///
/// As for [`read`].
pub fn read_files(
    mut builder: DatasetBuilder,
    images: &Path,
    labels: Option<&Path>,
    rows: usize,
    fit: Fit,
) -> Result<DatasetBuilder> {
    let decoder = ImageDecoder::new(SHAPE, fit)?;
    let labels = labels.map(|path| read_labels(path, rows)).transpose()?;
    let name = shown(images);
    let io = |reason| Error::Io { file: name.clone(), reason };
    let file = File::open(images).map_err(io)?;
    let expected = (rows as u64).saturating_mul(IMAGE_BYTES as u64);
    let size = file.metadata().map_err(io)?.len();
    if size != expected {
        return Err(Error::format(&name, "bytes", format!("{expected} ({rows} images)"), size));
    }
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut stored, mut pixels) = (vec![0; IMAGE_BYTES], vec![0; IMAGE_BYTES]);
    for row in 0..rows {
        reader.read_exact(&mut stored).map_err(io)?;
        transpose(&stored, &mut pixels, SIDE);
        let label = labels.as_ref().and_then(|labels| labels.get(row)).copied();
        builder.push(&decoder.fit(&name, row, &pixels)?, label, None)?;
    }
    Ok(builder)
}

fn read_labels(path: &Path, rows: usize) -> Result<Vec<u32>> {
    let name = shown(path);
    let bytes = read_limited(path, rows as u64)?;
    if bytes.len() != rows {
        return Err(Error::format(&name, "labels", rows, bytes.len()));
    }
    let label = |(row, &byte): (usize, &u8)| match byte {
        1..=10 => Ok(u32::from(byte) - 1),
        _ => Err(row_error(&name, row, "label", "1 to 10", byte)),
    };
    bytes.iter().enumerate().map(label).collect()
}

/// Swaps rows and columns of every `side x side` plane.
pub(crate) fn transpose(stored: &[u8], pixels: &mut [u8], side: usize) {
    for (from, to) in stored.chunks_exact(side * side).zip(pixels.chunks_exact_mut(side * side)) {
        for (y, line) in to.chunks_exact_mut(side).enumerate() {
            line.iter_mut().zip(from.iter().skip(y).step_by(side)).for_each(|(to, &from)| *to = from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Split;

    fn files(images: &[u8], labels: &[u8]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (x, y) = (folder.path().join("train_X.bin"), folder.path().join("train_y.bin"));
        std::fs::write(&x, images).unwrap();
        std::fs::write(&y, labels).unwrap();
        (folder, x, y)
    }

    fn builder(fit: Fit, classes: usize) -> DatasetBuilder {
        DatasetBuilder::new("stl10", Split::Train, fit.shape(SHAPE), classes).unwrap()
    }

    /// Pixel `(c, y, x)` of image `n` as the files hold it: column after column.
    fn stored(n: usize) -> Vec<u8> {
        let value = |c: usize, y: usize, x: usize| ((c * 50 + y * 2 + x / 2 + n * 7) % 256) as u8;
        let mut bytes = Vec::new();
        for c in 0..3 {
            for x in 0..SIDE {
                bytes.extend((0..SIDE).map(|y| value(c, y, x)));
            }
        }
        bytes
    }

    #[test]
    fn columns_become_rows() {
        let (_folder, x, y) = files(&[stored(0), stored(1)].concat(), &[10, 1]);
        let rows = read_files(builder(Fit::Exact, 10), &x, Some(&y), 2, Fit::Exact).unwrap();
        let data = rows.finish_with_statistics().unwrap();
        assert_eq!(data.labels(), [9, 0]);
        let image = data.image(1).unwrap();
        let at = |c: usize, y: usize, x: usize| usize::from(image[(c * SIDE + y) * SIDE + x]);
        assert_eq!((at(0, 5, 20), at(2, 20, 5)), (10 + 10 + 7, 100 + 40 + 2 + 7));

        let unlabelled = read_files(builder(Fit::Exact, 0), &x, None, 2, Fit::Exact).unwrap();
        assert_eq!(unlabelled.len(), 2);
        let small = Fit::Resize { height: 32, width: 32 };
        let data = read_files(builder(small, 10), &x, Some(&y), 2, small).unwrap().finish_with_statistics().unwrap();
        assert_eq!(data.shape().to_string(), "3x32x32");
        // The mean of a smooth picture stays.
        let mean = |image: &[u8]| image.iter().map(|&p| f64::from(p)).sum::<f64>() / image.len() as f64;
        assert!((mean(&data.image(0).unwrap()) - mean(&stored(0))).abs() < 3.0);
    }

    #[test]
    fn hostile_files_are_refused() {
        let whole = stored(0);
        let cases: [(&[u8], &[u8], &str); 7] = [
            (&whole[..whole.len() - 1], &[1], "train_X.bin`: bytes: expected 27648 (1 images), found 27647"),
            (&[], &[1], "found 0"),
            (&[whole.clone(), vec![0]].concat(), &[1], "found 27649"),
            (&whole, &[0], "train_y.bin`, row 0: label: expected 1 to 10, found 0"),
            (&whole, &[11], "found 11"),
            (&whole, &[], "train_y.bin`: labels: expected 1, found 0"),
            (&whole, &[1, 1], "at most 1"),
        ];
        for (images, labels, message) in cases {
            let (_folder, x, y) = files(images, labels);
            let error = read_files(builder(Fit::Exact, 10), &x, Some(&y), 1, Fit::Exact).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let (folder, _, _) = files(&whole, &[1]);
        let error = read(builder(Fit::Exact, 10), folder.path(), Part::Test, Fit::Exact).unwrap_err().to_string();
        assert!(error.contains("`test_X.bin` and `test_y.bin`"), "{error}");
        let error = read(builder(Fit::Exact, 10), folder.path(), Part::Train, Fit::Exact).unwrap_err().to_string();
        assert!(error.contains("expected 5000, found 1"), "{error}");
    }
}
