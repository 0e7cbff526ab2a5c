//! Batches of normalised tensors in a reproducible order.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::rng::{sample_rng, shuffled};
use crate::sampling::Balanced;
use crate::{Dataset, Error, Normalization, Result, Sampling, TransformConfig};

/// How a [`Loader`] walks through a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderConfig {
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Which rows form a batch.
    pub sampling: Sampling,
    /// Leaves out a last batch that is not full; class-balanced batches always are.
    pub drop_last: bool,
    /// Augmentation, in order; empty for none.
    pub transforms: Vec<TransformConfig>,
    /// Where the order and the augmentation come from.
    pub seed: u64,
}

/// Some rows of a data set as tensors on the CPU.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `f32 [B, C, H, W]`: `(pixel / max_value - mean) / std` after augmentation.
    pub images: Tensor,
    /// `u32 [B]`: class of each image.
    pub labels: Tensor,
    /// Row of each image in the [`Dataset`], for memory banks and stored teacher outputs.
    pub index: Vec<u32>,
    /// The same as `labels`, for work on the host.
    pub label_ids: Vec<u32>,
}

impl Batch {
    /// Number of images, `B`.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no image; never true for a batch that a loader made.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The same batch with its tensors on `device`.
    ///
    /// # Errors
    ///
    /// The device's own.
    pub fn to_device(&self, device: &Device) -> Result<Batch> {
        Ok(Batch {
            images: self.images.to_device(device)?,
            labels: self.labels.to_device(device)?,
            index: self.index.clone(),
            label_ids: self.label_ids.clone(),
        })
    }
}

/// What is needed to make any batch; shared by a loader and its iterators.
#[derive(Debug)]
struct Source {
    dataset: Dataset,
    config: LoaderConfig,
    /// For [`Sampling::ClassBalanced`].
    balanced: Option<Balanced>,
    /// `[C, 256]`: normalised value of each pixel value.
    table: Vec<f32>,
}

/// Makes the batches of any epoch, in an order that depends on the seed and the epoch alone.
///
/// The same bits come out for any number of threads, and an epoch can be entered in the middle.
#[derive(Clone, Debug)]
pub struct Loader {
    source: Arc<Source>,
}

impl Loader {
    /// A loader over all rows of `dataset`.
    ///
    /// # Errors
    ///
    /// A batch size of 0, a batch size above the number of rows with `drop_last` (an epoch would have no batch), what
    /// [`Sampling::check`] refuses, a transform out of range.
    pub fn new(dataset: Dataset, config: LoaderConfig) -> Result<Self> {
        const OP: &str = "loader";
        if config.batch_size == 0 {
            return Err(Error::invalid(OP, "batch_size", "at least 1", 0));
        }
        if config.drop_last && config.batch_size > dataset.len() {
            let expected = format!("at most the {} rows", dataset.len());
            let what = "batch_size with drop_last";
            return Err(Error::invalid(OP, what, expected, config.batch_size));
        }
        for transform in &config.transforms {
            transform.check(dataset.shape())?;
        }
        let counts = dataset.class_counts();
        config.sampling.check(config.batch_size, &counts)?;
        let balanced = match config.sampling {
            Sampling::ClassBalanced { classes } => {
                Some(Balanced::new(dataset.labels(), &counts, classes, config.batch_size))
            }
            Sampling::Sequential | Sampling::Shuffled => None,
        };
        let table = normalization_table(&dataset);
        Ok(Self { source: Arc::new(Source { dataset, config, balanced, table }) })
    }

    /// A loader for evaluation: stored order, every row once, no augmentation.
    ///
    /// # Errors
    ///
    /// A batch size of 0.
    pub fn eval(dataset: Dataset, batch_size: usize) -> Result<Self> {
        let sampling = Sampling::Sequential;
        Self::new(dataset, LoaderConfig { batch_size, sampling, drop_last: false, transforms: Vec::new(), seed: 0 })
    }

    /// The data set.
    pub fn dataset(&self) -> &Dataset {
        &self.source.dataset
    }

    /// The configuration.
    pub fn config(&self) -> &LoaderConfig {
        &self.source.config
    }

    /// Batches in every epoch, at least 1.
    pub fn batches_per_epoch(&self) -> usize {
        if let Some(balanced) = &self.source.balanced {
            return balanced.batches;
        }
        let (rows, size) = (self.source.dataset.len(), self.source.config.batch_size);
        if self.source.config.drop_last { rows / size } else { rows.div_ceil(size) }
    }

    /// Rows in the order of `epoch`, also those that `drop_last` leaves out; those of class-balanced batches batch after
    /// batch, without the rows that find no place in one.
    pub fn order(&self, epoch: u64) -> Vec<u32> {
        let Source { dataset, config, balanced, .. } = self.source.as_ref();
        if let Some(balanced) = balanced {
            return balanced.order(config.seed, epoch);
        }
        let rows = u32::try_from(dataset.len()).expect("a Dataset has at most u32::MAX rows: checked in from_parts");
        if config.sampling == Sampling::Sequential { (0..rows).collect() } else { shuffled(config.seed, epoch, rows) }
    }

    /// All batches of `epoch`.
    pub fn epoch(&self, epoch: u64) -> EpochIter {
        self.epoch_from(epoch, 0)
    }

    /// The batches of `epoch` from number `first_batch` on: exactly those that [`epoch`](Self::epoch) would give
    /// there.
    ///
    /// Nothing comes for `first_batch >= batches_per_epoch()`: the epoch is over.
    pub fn epoch_from(&self, epoch: u64, first_batch: usize) -> EpochIter {
        let end = self.batches_per_epoch();
        EpochIter { source: self.source.clone(), order: self.order(epoch), epoch, next: first_batch.min(end), end }
    }
}

/// Batches of one epoch; made one by one when asked for.
#[derive(Clone, Debug)]
pub struct EpochIter {
    source: Arc<Source>,
    order: Vec<u32>,
    epoch: u64,
    next: usize,
    end: usize,
}

impl Iterator for EpochIter {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.end {
            return None;
        }
        let size = self.source.config.batch_size;
        let start = self.next * size;
        let rows = &self.order[start..start.saturating_add(size).min(self.order.len())];
        self.next += 1;
        Some(self.source.batch(self.epoch, rows))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for EpochIter {}

impl std::iter::FusedIterator for EpochIter {}

impl Source {
    fn batch(&self, epoch: u64, rows: &[u32]) -> Result<Batch> {
        let shape = self.dataset.shape();
        let image_bytes = self.dataset.pixels().len() / self.dataset.len();
        let mut images = vec![0f32; rows.len() * image_bytes];
        images
            .par_chunks_exact_mut(image_bytes)
            .zip(rows)
            // An image is a few microseconds of work: fewer than this many are not worth a task.
            .with_min_len(8)
            .for_each_init(
                || (Vec::new(), Vec::new()),
                |(image, scratch), (target, &row)| {
                    let at = row as usize * image_bytes;
                    let stored = &self.dataset.pixels()[at..at + image_bytes];
                    if self.config.transforms.is_empty() {
                        self.normalize(stored, target);
                        return;
                    }
                    image.clear();
                    image.extend_from_slice(stored);
                    let mut rng = sample_rng(self.config.seed, epoch, u64::from(row));
                    for transform in &self.config.transforms {
                        transform.apply_checked(image, scratch, shape, &mut rng);
                    }
                    self.normalize(image, target);
                },
            );
        let label_ids: Vec<u32> = rows.iter().map(|&row| self.dataset.labels()[row as usize]).collect();
        let dims = (rows.len(), shape.channels, shape.height, shape.width);
        Ok(Batch {
            images: Tensor::from_vec(images, dims, &Device::Cpu)?,
            labels: Tensor::from_slice(&label_ids, rows.len(), &Device::Cpu)?,
            index: rows.to_vec(),
            label_ids,
        })
    }

    fn normalize(&self, image: &[u8], target: &mut [f32]) {
        let shape = self.dataset.shape();
        let plane = shape.height * shape.width;
        let planes = image.chunks_exact(plane).zip(target.chunks_exact_mut(plane));
        for ((pixels, values), table) in planes.zip(self.table.chunks_exact(256)) {
            for (value, &pixel) in values.iter_mut().zip(pixels) {
                *value = table[usize::from(pixel)];
            }
        }
    }
}

/// `[C, 256]`: `(pixel / max_value - mean) / std`, computed in f64 and rounded once.
fn normalization_table(dataset: &Dataset) -> Vec<f32> {
    let Normalization { mean, std } = dataset.normalization();
    let max = f64::from(dataset.max_value());
    mean.iter()
        .zip(std)
        .flat_map(|(&mean, &std)| {
            (0..256u32).map(move |pixel| ((f64::from(pixel) / max - f64::from(mean)) / f64::from(std)) as f32)
        })
        .collect()
}
