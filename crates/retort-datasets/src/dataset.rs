//! Images with labels, regression targets or neither, and subsets of them.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::store::{DEFAULT_MEMORY_LIMIT, PixelWriter, Pixels};
use crate::verify::hex;
use crate::{Error, Result, SubsetConfig};

mod builder;

pub use builder::DatasetBuilder;

/// Official part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Rows to learn from.
    Train,
    /// Rows to report on.
    Test,
    /// More rows of the same kind, easier or less certain (SVHN).
    Extra,
    /// Rows without labels (STL-10).
    Unlabelled,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Test => "test",
            Split::Extra => "extra",
            Split::Unlabelled => "unlabelled",
        })
    }
}

/// Size of one image; pixels lie as `[C, H, W]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageShape {
    /// Colour channels: 1 grey, 3 red, green, blue.
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
}

impl ImageShape {
    /// Bytes of one image, `C * H * W`; `None` where that overflows.
    pub fn bytes(&self) -> Option<usize> {
        self.channels.checked_mul(self.height)?.checked_mul(self.width)
    }
}

impl fmt::Display for ImageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}

/// Channel statistics: a network sees `(pixel / max_value - mean) / std`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// Mean of each channel on the scale 0 to 1.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel on the scale 0 to 1, > 0.
    pub std: Vec<f32>,
}

impl Normalization {
    /// Mean 0 and standard deviation 1: the network sees `pixel / max_value`.
    pub fn identity(channels: usize) -> Self {
        Self { mean: vec![0.0; channels], std: vec![1.0; channels] }
    }

    fn check(&self, channels: usize) -> Result<()> {
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != channels {
                return Err(Error::invalid(
                    "from_parts",
                    format!("values of the normalization's {name}"),
                    channels,
                    values.len(),
                ));
            }
            let positive = name == "std";
            if let Some(&bad) = values.iter().find(|v| !v.is_finite() || (positive && **v <= 0.0)) {
                return Err(Error::invalid(
                    "from_parts",
                    format!("normalization's {name}"),
                    if positive { "finite and > 0" } else { "finite" },
                    bad,
                ));
            }
        }
        Ok(())
    }
}

/// What all subsets of one data set share.
#[derive(Clone, Debug)]
struct Meta {
    name: String,
    split: Split,
    shape: ImageShape,
    image_bytes: usize,
    class_names: Vec<String>,
    normalization: Normalization,
    max_value: f32,
    /// Unit of the regression targets.
    unit: Option<String>,
    /// Bytes of pixels above which a subset goes to a file.
    memory_limit: u64,
}

/// Fifty times as many as the largest of the known sets has; a larger number is a slip that would only fill the memory.
const MAX_CLASSES: usize = 1 << 20;

impl Meta {
    fn new(operation: &'static str, name: String, split: Split, shape: ImageShape, classes: usize) -> Result<Self> {
        let positive = shape.bytes().filter(|&n| n > 0);
        let image_bytes = positive.ok_or_else(|| Error::invalid(operation, "shape", "positive sizes", shape))?;
        if classes > MAX_CLASSES {
            return Err(Error::invalid(operation, "classes", format!("at most {MAX_CLASSES}"), classes));
        }
        Ok(Self {
            name,
            split,
            shape,
            image_bytes,
            class_names: (0..classes).map(|k| k.to_string()).collect(),
            normalization: Normalization::identity(shape.channels),
            max_value: 255.0,
            unit: None,
            memory_limit: DEFAULT_MEMORY_LIMIT,
        })
    }
}

/// Images of one split: `u8` pixels as `[N, C, H, W]`, with a class per row, a regression target per row, both, or neither.
///
/// Immutable; a clone shares the pixels and costs nothing. Pixels lie in memory, or in a temporary file where they would
/// take more than a limit (see [`DatasetBuilder::memory_limit`]); nothing else changes with that.
#[derive(Clone)]
pub struct Dataset {
    meta: Arc<Meta>,
    pixels: Pixels,
    /// Empty without labels.
    labels: Arc<[u32]>,
    /// Empty without regression targets.
    values: Arc<[f32]>,
    // Lazy: hashing CIFAR takes a noticeable time and a test rarely asks.
    digest: Arc<OnceLock<String>>,
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset")
            .field("name", &self.meta.name)
            .field("split", &self.meta.split)
            .field("shape", &self.meta.shape)
            .field("classes", &self.classes())
            .field("unit", &self.meta.unit)
            .field("len", &self.len())
            .finish()
    }
}

impl Dataset {
    /// A data set from pixels `[N, C, H, W]` and labels `[N]`, for tests and for your own readers.
    ///
    /// Class names are `0`, `1`, .. and the largest pixel value is 255 until
    /// [`with_class_names`](Self::with_class_names) and [`with_max_value`](Self::with_max_value) say otherwise.
    ///
    /// # Errors
    ///
    /// No row, no class, a zero or overflowing shape, a pixel count other than `N * C * H * W`, a label
    /// `>= classes` (with its row), more than `u32::MAX` rows or 2^20 classes, statistics that are not one finite
    /// number per channel, a standard deviation that is not positive.
    pub fn from_parts(
        name: impl Into<String>,
        split: Split,
        shape: ImageShape,
        classes: usize,
        pixels: Vec<u8>,
        labels: Vec<u32>,
        normalization: Normalization,
    ) -> Result<Self> {
        const OP: &str = "from_parts";
        let mut meta = Meta::new(OP, name.into(), split, shape, classes)?;
        let image_bytes = meta.image_bytes;
        if classes == 0 {
            return Err(Error::invalid(OP, "classes", "at least 1", 0));
        }
        if labels.is_empty() || u32::try_from(labels.len()).is_err() {
            return Err(Error::invalid(OP, "rows", "1 to 4294967295", labels.len()));
        }
        let expected = labels.len().checked_mul(image_bytes);
        if expected != Some(pixels.len()) {
            return Err(Error::invalid(
                OP,
                format!("pixels of {} images {shape}", labels.len()),
                expected.map_or("a number that fits memory".to_owned(), |n| n.to_string()),
                pixels.len(),
            ));
        }
        if let Some(row) = labels.iter().position(|&l| l as usize >= classes) {
            return Err(Error::invalid(OP, format!("label of row {row}"), format!("less than {classes}"), labels[row]));
        }
        normalization.check(shape.channels)?;
        meta.normalization = normalization;
        Self::assemble(Arc::new(meta), Pixels::in_memory(image_bytes, pixels), labels, Vec::new())
    }

    /// Hashes pixels in a file at once: reading them may fail, and later nobody asks.
    fn assemble(meta: Arc<Meta>, pixels: Pixels, labels: Vec<u32>, values: Vec<f32>) -> Result<Self> {
        let dataset = Self { meta, pixels, labels: labels.into(), values: values.into(), digest: Arc::default() };
        if dataset.pixels().is_none() {
            let digest = dataset.hash()?;
            dataset.digest.get_or_init(|| digest);
        }
        Ok(dataset)
    }

    fn with_meta(mut self, change: impl FnOnce(&mut Meta)) -> Self {
        change(Arc::make_mut(&mut self.meta));
        self
    }

    /// The same rows with these class names.
    ///
    /// # Errors
    ///
    /// Not one name per class.
    pub fn with_class_names(self, names: Vec<String>) -> Result<Self> {
        if names.len() != self.classes() {
            return Err(Error::invalid("with_class_names", "names", self.classes(), names.len()));
        }
        Ok(self.with_meta(|meta| meta.class_names = names))
    }

    /// The same images without labels, for methods that must not see any.
    ///
    /// # Errors
    ///
    /// A file that cannot be read any more.
    pub fn without_labels(self) -> Result<Self> {
        let values = self.values.to_vec();
        let mut meta = Meta::clone(&self.meta);
        meta.class_names = Vec::new();
        Self::assemble(Arc::new(meta), self.pixels, Vec::new(), values)
    }

    /// The same rows with these channel statistics.
    ///
    /// # Errors
    ///
    /// Statistics as refused by [`Dataset::from_parts`].
    pub fn with_normalization(self, normalization: Normalization) -> Result<Self> {
        normalization.check(self.shape().channels)?;
        Ok(self.with_meta(|meta| meta.normalization = normalization))
    }

    /// The same rows with these labels, which the caller has checked.
    pub(crate) fn with_labels(self, labels: Vec<u32>, class_names: Vec<String>) -> Result<Self> {
        debug_assert!(labels.len() == self.len() && labels.iter().all(|&l| (l as usize) < class_names.len()));
        let mut meta = Meta::clone(&self.meta);
        meta.class_names = class_names;
        Self::assemble(Arc::new(meta), self.pixels, labels, self.values.to_vec())
    }

    /// The same rows, with the pixel value that counts as 1.0 (255 for photographs, 16 for the digits).
    ///
    /// # Errors
    ///
    /// Not finite, not positive, or smaller than a pixel of the data.
    pub fn with_max_value(self, max_value: f32) -> Result<Self> {
        let mut largest = 0;
        for row in 0..self.len() {
            largest = largest.max(self.pixels.row(row)?.iter().copied().max().unwrap_or(0));
        }
        if !max_value.is_finite() || max_value <= 0.0 || f32::from(largest) > max_value {
            return Err(Error::invalid(
                "with_max_value",
                "max_value",
                format!("finite, positive and at least the largest pixel, {largest}"),
                max_value,
            ));
        }
        Ok(self.with_meta(|meta| meta.max_value = max_value))
    }

    /// Name in the registry, or the one given to [`from_parts`](Self::from_parts).
    pub fn name(&self) -> &str {
        &self.meta.name
    }

    /// The official split that the rows come from; a validation set cut from `train` says `train`.
    pub fn split(&self) -> Split {
        self.meta.split
    }

    /// Number of classes, whether or not each one occurs; 0 for images without labels.
    pub fn classes(&self) -> usize {
        self.meta.class_names.len()
    }

    /// One name per class.
    pub fn class_names(&self) -> &[String] {
        &self.meta.class_names
    }

    /// Size of every image.
    pub fn shape(&self) -> ImageShape {
        self.meta.shape
    }

    /// Channel statistics used by the loader; constants of the data set, not recomputed for subsets.
    pub fn normalization(&self) -> &Normalization {
        &self.meta.normalization
    }

    /// Pixel value that counts as 1.0 before normalization.
    pub fn max_value(&self) -> f32 {
        self.meta.max_value
    }

    /// Number of rows, at least 1.
    pub fn len(&self) -> usize {
        self.pixels.rows()
    }

    /// Always false: a data set without rows cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels of row `i` as `[C, H, W]`; copied only where they lie in a file.
    ///
    /// # Errors
    ///
    /// `i >= len()`, a file that cannot be read any more.
    pub fn image(&self, i: usize) -> Result<Cow<'_, [u8]>> {
        self.check_row("image", i)?;
        self.pixels.row(i)
    }

    /// Class of row `i`.
    ///
    /// # Errors
    ///
    /// `i >= len()`, images without labels.
    pub fn label(&self, i: usize) -> Result<u32> {
        self.check_row("label", i)?;
        self.labels.get(i).copied().ok_or_else(|| self.no_labels("label"))
    }

    /// Classes of all rows; empty for images without labels.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Whether every row has a class.
    pub fn is_labelled(&self) -> bool {
        !self.labels.is_empty()
    }

    /// Regression targets of all rows; empty without them.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Unit of the regression targets, for example `degrees`; nothing without them.
    pub fn unit(&self) -> Option<&str> {
        self.meta.unit.as_deref()
    }

    /// Pixels of all rows as `[N, C, H, W]`, where they lie in memory.
    pub fn pixels(&self) -> Option<&[u8]> {
        self.pixels.in_memory_bytes()
    }

    pub(crate) fn store(&self) -> &Pixels {
        &self.pixels
    }

    pub(crate) fn check_labelled(&self, operation: &'static str) -> Result<()> {
        if self.is_labelled() { Ok(()) } else { Err(self.no_labels(operation)) }
    }

    fn no_labels(&self, operation: &'static str) -> Error {
        let what = format!("rows of `{}`", self.name());
        Error::invalid(operation, what, "labelled ones", "images without labels")
    }

    fn check_row(&self, operation: &'static str, i: usize) -> Result<()> {
        if i < self.len() {
            return Ok(());
        }
        let expected = format!("less than {}", self.len());
        Err(Error::invalid(operation, "row", expected, i))
    }

    /// SHA-256, in hex, of the rows in their order: what a record names as its data.
    ///
    /// Hashed are `N, C, H, W` as little-endian `u64`, the pixels, the labels as little-endian `u32` and the regression
    /// targets as little-endian `f32`; names and statistics are not. Computed once.
    pub fn digest(&self) -> &str {
        self.digest
            .get_or_init(|| self.hash().expect("pixels in memory can be read; those in a file were hashed before"))
    }

    fn hash(&self) -> Result<String> {
        let shape = self.meta.shape;
        let mut hash = Sha256::new();
        for n in [self.len(), shape.channels, shape.height, shape.width] {
            hash.update((n as u64).to_le_bytes());
        }
        self.pixels.hash(&mut hash)?;
        self.labels.iter().for_each(|label| hash.update(label.to_le_bytes()));
        self.values.iter().for_each(|value| hash.update(value.to_le_bytes()));
        Ok(hex(hash))
    }

    /// Mean and standard deviation of each channel over all pixels of all rows, on the scale of
    /// [`max_value`](Self::max_value); a constant channel gets a standard deviation of 1.
    ///
    /// Counted exactly in integers, so neither order nor number of rows costs precision.
    ///
    /// # Errors
    ///
    /// A file that cannot be read any more.
    pub fn statistics(&self) -> Result<Normalization> {
        let ImageShape { channels, height, width } = self.meta.shape;
        let mut histograms = vec![[0u64; 256]; channels];
        for row in 0..self.len() {
            let image = self.pixels.row(row)?;
            for (histogram, plane) in histograms.iter_mut().zip(image.chunks_exact(height * width)) {
                plane.iter().for_each(|&pixel| histogram[usize::from(pixel)] += 1);
            }
        }
        let count = (self.len() as f64) * (height * width) as f64;
        let max = f64::from(self.meta.max_value);
        let moment = |histogram: &[u64; 256], power: i32| -> f64 {
            let terms = (0u32..).zip(histogram).map(|(pixel, &n)| n as f64 * (f64::from(pixel) / max).powi(power));
            terms.sum::<f64>() / count
        };
        let mean: Vec<f64> = histograms.iter().map(|h| moment(h, 1)).collect();
        let std = histograms.iter().zip(&mean).map(|(h, mean)| (moment(h, 2) - mean * mean).max(0.0).sqrt());
        // Equal pixels leave rounding of the two moments behind.
        let std = std.map(|std| if std > 1e-6 { std as f32 } else { 1.0 }).collect();
        Ok(Normalization { mean: mean.iter().map(|&mean| mean as f32).collect(), std })
    }

    /// Rows per class.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes()];
        for &label in self.labels.iter() {
            counts[label as usize] += 1;
        }
        counts
    }

    /// The given rows in the given order; a row may occur twice.
    ///
    /// # Errors
    ///
    /// No row, or a row `>= len()`.
    pub fn select(&self, rows: &[u32]) -> Result<Dataset> {
        if rows.is_empty() {
            return Err(Error::invalid("select", "rows", "at least 1", 0));
        }
        let mut pixels = PixelWriter::new(self.meta.image_bytes, self.meta.memory_limit);
        for &row in rows {
            self.check_row("select", row as usize)?;
            pixels.push(&self.pixels.row(row as usize)?)?;
        }
        let of = |row: &u32| *row as usize;
        let labels = if self.is_labelled() { rows.iter().map(|r| self.labels[of(r)]).collect() } else { vec![] };
        let values = if self.values.is_empty() { vec![] } else { rows.iter().map(|r| self.values[of(r)]).collect() };
        Self::assemble(self.meta.clone(), pixels.finish()?, labels, values)
    }

    /// The first `n / classes` rows of every class, in stored order: the usual small training set.
    ///
    /// # Errors
    ///
    /// `n` is 0 or not a multiple of the number of classes, a class has too few rows, images without labels.
    pub fn take_balanced(&self, n: usize) -> Result<Dataset> {
        self.balanced_counts("take_balanced", n)?;
        self.subset(&SubsetConfig { count: Some(n), ..SubsetConfig::default() })
    }

    /// Rows of every class where `n` are wanted in all.
    pub(crate) fn balanced_counts(&self, operation: &'static str, n: usize) -> Result<Vec<usize>> {
        self.check_labelled(operation)?;
        let classes = self.classes();
        if n == 0 || !n.is_multiple_of(classes) {
            let expected = format!("a positive multiple of the {classes} classes");
            return Err(Error::invalid(operation, "n", expected, n));
        }
        self.check_counts(operation, n / classes, 0)?;
        Ok(vec![n / classes; classes])
    }

    /// Cuts off the last `per_class` rows of every class as a validation set: `(rest, validation)`.
    ///
    /// Both keep the stored order. There is no seed: the same rows are held out in every run, so runs with
    /// different seeds are selected on the same images. Both parts keep the [`split`](Self::split) of the original.
    ///
    /// # Errors
    ///
    /// `per_class` is 0, or a class has no more than `per_class` rows, so that nothing of it would be left to learn from.
    pub fn split_validation(&self, per_class: usize) -> Result<(Dataset, Dataset)> {
        const OP: &str = "split_validation";
        if per_class == 0 {
            return Err(Error::invalid(OP, "per_class", "at least 1", per_class));
        }
        self.check_labelled(OP)?;
        self.check_counts(OP, per_class, 1)?;
        let mut left = self.class_counts();
        let (mut rest, mut validation) = (Vec::new(), Vec::new());
        for (row, &label) in (0u32..).zip(self.labels.iter()) {
            let left = &mut left[label as usize];
            if *left > per_class {
                rest.push(row);
            } else {
                validation.push(row);
            }
            *left -= 1;
        }
        Ok((self.select(&rest)?, self.select(&validation)?))
    }

    /// Every class has at least `each + spare` rows.
    fn check_counts(&self, operation: &'static str, each: usize, spare: usize) -> Result<()> {
        let counts = self.class_counts();
        match counts.iter().position(|&n| n.saturating_sub(spare) < each) {
            None => Ok(()),
            Some(class) => Err(Error::invalid(
                operation,
                format!("rows of class {class} (`{}`)", self.meta.class_names[class]),
                format!("at least {}", each.saturating_add(spare)),
                counts[class],
            )),
        }
    }
}
