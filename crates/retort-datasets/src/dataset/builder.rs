//! Data sets row by row.

use std::sync::Arc;

use super::{Dataset, ImageShape, Meta, Normalization, Split};
use crate::store::PixelWriter;
use crate::{Error, Result};

/// Takes rows one by one, in memory or, above a limit, in a temporary file: for readers of data larger than memory.
///
/// ```
/// use retort_datasets::{DatasetBuilder, ImageShape, Normalization, Split};
///
/// let shape = ImageShape { channels: 1, height: 2, width: 2 };
/// let mut rows = DatasetBuilder::new("dots", Split::Train, shape, 2)?;
/// rows.push(&[0, 255, 0, 0], Some(0), None)?;
/// rows.push(&[0, 0, 255, 0], Some(1), None)?;
/// let dots = rows.finish(Normalization::identity(1))?;
/// assert_eq!((dots.len(), dots.labels()), (2, &[0, 1][..]));
/// # Ok::<(), retort_datasets::Error>(())
/// ```
#[derive(Debug)]
pub struct DatasetBuilder {
    meta: Meta,
    pixels: PixelWriter,
    labels: Vec<u32>,
    values: Vec<f32>,
}

impl DatasetBuilder {
    const OP: &str = "dataset builder";

    /// A builder for images of this shape in so many classes; 0 for images without labels.
    ///
    /// # Errors
    ///
    /// A zero or overflowing shape, more than 2^20 classes.
    pub fn new(name: impl Into<String>, split: Split, shape: ImageShape, classes: usize) -> Result<Self> {
        let meta = Meta::new(Self::OP, name.into(), split, shape, classes)?;
        let pixels = PixelWriter::new(meta.image_bytes, meta.memory_limit);
        Ok(Self { meta, pixels, labels: Vec::new(), values: Vec::new() })
    }

    /// Every row has a regression target in this unit.
    #[must_use]
    pub fn with_values(mut self, unit: impl Into<String>) -> Self {
        self.meta.unit = Some(unit.into());
        self
    }

    /// Bytes of pixels above which the rows move to a temporary file; also of subsets made later.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.meta.memory_limit = bytes;
        self.pixels.set_limit(bytes);
        self
    }

    /// The same rows with these class names, where there is one for each class.
    pub(crate) fn with_names(mut self, names: &[String]) -> Result<Self> {
        if names.len() == self.meta.class_names.len() {
            self.meta.class_names = names.to_vec();
        }
        Ok(self)
    }

    /// Number of rows so far.
    pub fn len(&self) -> usize {
        self.pixels.rows()
    }

    /// Whether there is no row yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a row of pixels `[C, H, W]`.
    ///
    /// # Errors
    ///
    /// Pixels of another length, a label or a regression target that is missing or not wanted, a label outside the
    /// classes, a target that is not finite, a temporary file that cannot be written.
    pub fn push(&mut self, pixels: &[u8], label: Option<u32>, value: Option<f32>) -> Result<()> {
        let row = self.len();
        let wrong = |what: &str, expected: String, found: String| {
            Err(Error::invalid(Self::OP, format!("{what} of row {row}"), expected, found))
        };
        let shown = |there: bool| if there { "one" } else { "none" }.to_owned();
        if pixels.len() != self.meta.image_bytes {
            return wrong("pixels", self.meta.image_bytes.to_string(), pixels.len().to_string());
        }
        if u32::try_from(row + 1).is_err() {
            return wrong("number", "at most 4294967295 rows".into(), "more".into());
        }
        let (classes, valued) = (self.meta.class_names.len(), self.meta.unit.is_some());
        match label {
            Some(label) if classes > 0 && label as usize >= classes => {
                return wrong("label", format!("less than {classes}"), label.to_string());
            }
            _ if label.is_some() != (classes > 0) => return wrong("label", shown(classes > 0), shown(label.is_some())),
            _ => {}
        }
        match value {
            Some(value) if !value.is_finite() => return wrong("target", "a finite number".into(), value.to_string()),
            _ if value.is_some() != valued => return wrong("target", shown(valued), shown(value.is_some())),
            _ => {}
        }
        self.pixels.push(pixels)?;
        self.labels.extend(label);
        self.values.extend(value);
        Ok(())
    }

    /// The data set with these channel statistics.
    ///
    /// # Errors
    ///
    /// No row, statistics as refused by [`Dataset::from_parts`].
    pub fn finish(mut self, normalization: Normalization) -> Result<Dataset> {
        if self.is_empty() {
            return Err(Error::invalid(Self::OP, "rows", "at least 1", 0));
        }
        normalization.check(self.meta.shape.channels)?;
        self.meta.normalization = normalization;
        Dataset::assemble(Arc::new(self.meta), self.pixels.finish()?, self.labels, self.values)
    }

    /// The data set with the statistics of its own pixels, counted as `pixel / 255`; a constant channel gets a standard
    /// deviation of 1.
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish).
    pub fn finish_with_statistics(self) -> Result<Dataset> {
        let channels = self.meta.shape.channels;
        let dataset = self.finish(Normalization::identity(channels))?;
        let normalization = dataset.statistics()?;
        Ok(dataset.with_meta(|meta| meta.normalization = normalization))
    }
}
