//! Images and labels in memory, and class-balanced subsets of them.

use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Official part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Rows to learn from.
    Train,
    /// Rows to report on.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Test => "test",
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
}

/// Labelled images of one split: `u8` pixels as `[N, C, H, W]` and one class per row.
///
/// Immutable; a clone shares the pixels and costs nothing.
#[derive(Clone)]
pub struct Dataset {
    meta: Arc<Meta>,
    pixels: Arc<[u8]>,
    labels: Arc<[u32]>,
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
    /// `>= classes` (with its row), more than `u32::MAX` rows or classes, statistics that are not one finite
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
        let image_bytes =
            shape.bytes().filter(|&n| n > 0).ok_or_else(|| Error::invalid(OP, "shape", "positive sizes", shape))?;
        for (what, count) in [("rows", labels.len()), ("classes", classes)] {
            if count == 0 || u32::try_from(count).is_err() {
                return Err(Error::invalid(OP, what, "1 to 4294967295", count));
            }
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
        let meta = Meta {
            name: name.into(),
            split,
            shape,
            image_bytes,
            class_names: (0..classes).map(|k| k.to_string()).collect(),
            normalization,
            max_value: 255.0,
        };
        Ok(Self::assemble(Arc::new(meta), pixels, labels))
    }

    fn assemble(meta: Arc<Meta>, pixels: Vec<u8>, labels: Vec<u32>) -> Self {
        Self { meta, pixels: pixels.into(), labels: labels.into(), digest: Arc::default() }
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

    /// The same rows, with the pixel value that counts as 1.0 (255 for photographs, 16 for the digits).
    ///
    /// # Errors
    ///
    /// Not finite, not positive, or smaller than a pixel of the data.
    pub fn with_max_value(self, max_value: f32) -> Result<Self> {
        let largest = self.pixels.iter().copied().max().unwrap_or(0);
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

    /// Number of classes, whether or not each one occurs.
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
        self.labels.len()
    }

    /// Always false: a data set without rows cannot be made.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Pixels of row `i` as `[C, H, W]`.
    ///
    /// # Errors
    ///
    /// `i >= len()`.
    pub fn image(&self, i: usize) -> Result<&[u8]> {
        self.check_row("image", i)?;
        let n = self.meta.image_bytes;
        Ok(&self.pixels[i * n..(i + 1) * n])
    }

    /// Class of row `i`.
    ///
    /// # Errors
    ///
    /// `i >= len()`.
    pub fn label(&self, i: usize) -> Result<u32> {
        self.check_row("label", i)?;
        Ok(self.labels[i])
    }

    /// Classes of all rows.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Pixels of all rows as `[N, C, H, W]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
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
    /// Hashed are `N, C, H, W` as little-endian `u64`, the pixels, and the labels as little-endian `u32`; names and
    /// statistics are not. Computed at the first call and kept.
    pub fn digest(&self) -> &str {
        self.digest.get_or_init(|| {
            let shape = self.meta.shape;
            let mut hash = Sha256::new();
            for n in [self.len(), shape.channels, shape.height, shape.width] {
                hash.update((n as u64).to_le_bytes());
            }
            hash.update(&self.pixels);
            for label in self.labels.iter() {
                hash.update(label.to_le_bytes());
            }
            let bytes: [u8; 32] = hash.finalize().into();
            bytes.iter().map(|b| format!("{b:02x}")).collect()
        })
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
        let mut pixels = Vec::with_capacity(rows.len() * self.meta.image_bytes);
        let mut labels = Vec::with_capacity(rows.len());
        for &row in rows {
            self.check_row("select", row as usize)?;
            pixels.extend_from_slice(self.image(row as usize)?);
            labels.push(self.labels[row as usize]);
        }
        Ok(Self::assemble(self.meta.clone(), pixels, labels))
    }

    /// The first `n / classes` rows of every class, in stored order: the usual small training set.
    ///
    /// # Errors
    ///
    /// `n` is 0 or not a multiple of the number of classes, or a class has too few rows.
    pub fn take_balanced(&self, n: usize) -> Result<Dataset> {
        const OP: &str = "take_balanced";
        let classes = self.classes();
        if n == 0 || !n.is_multiple_of(classes) {
            let expected = format!("a positive multiple of the {classes} classes");
            return Err(Error::invalid(OP, "n", expected, n));
        }
        let each = n / classes;
        self.check_counts(OP, each, 0)?;
        let mut seen = vec![0; classes];
        let mut rows = Vec::with_capacity(n);
        for (row, &label) in (0u32..).zip(self.labels.iter()) {
            let seen = &mut seen[label as usize];
            if *seen < each {
                *seen += 1;
                rows.push(row);
            }
        }
        self.select(&rows)
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
