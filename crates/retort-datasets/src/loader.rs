//! Batches of normalised tensors in a reproducible order.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::prefetch::{Prefetch, Prefetched};
use crate::rng::{sample_rng, shuffled};
use crate::sampling::{Balanced, Partners};
use crate::transform::{Pipeline, Scratch};
use crate::{Dataset, Error, Result, Sampling, ViewConfig};

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
    /// What a batch shows of its images: one view for most methods, at least 1.
    pub views: Vec<ViewConfig>,
    /// Where the order and the augmentation come from.
    pub seed: u64,
}

/// Some rows of a data set as tensors on the CPU.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `f32 [B, C, H, W]`: the first view, `(pixel / max_value - mean) / std` after augmentation.
    pub images: Tensor,
    /// The other views, in order.
    pub more_views: Vec<Tensor>,
    /// `u32 [B]`: class of each image; nothing for images without labels.
    pub labels: Option<Tensor>,
    /// `f32 [B]`: regression target of each image; nothing without them.
    pub values: Option<Tensor>,
    /// Row of each image in the [`Dataset`], for memory banks and stored teacher outputs.
    pub index: Vec<u32>,
    /// The same as `labels`, for work on the host; empty for images without labels.
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

    /// Class of each image, `u32 [B]`.
    ///
    /// # Errors
    ///
    /// Images without labels.
    pub fn labels(&self) -> Result<&Tensor> {
        self.labels.as_ref().ok_or_else(|| Error::invalid("batch", "labels", "a class for each image", "none"))
    }

    /// The same batch with its tensors on `device`.
    ///
    /// # Errors
    ///
    /// The device's own.
    pub fn to_device(&self, device: &Device) -> Result<Batch> {
        let moved = |tensor: &Tensor| tensor.to_device(device);
        Ok(Batch {
            images: moved(&self.images)?,
            more_views: self.more_views.iter().map(moved).collect::<candle_core::Result<_>>()?,
            labels: self.labels.as_ref().map(moved).transpose()?,
            values: self.values.as_ref().map(moved).transpose()?,
            index: self.index.clone(),
            label_ids: self.label_ids.clone(),
        })
    }
}

/// What the order of an epoch is made of.
#[derive(Debug)]
enum EpochPlan {
    Sequential,
    Shuffled,
    Balanced(Balanced),
    Partners(Partners),
}

impl EpochPlan {
    fn new(dataset: &Dataset, config: &LoaderConfig) -> Result<Self> {
        let (sampling, size) = (config.sampling, config.batch_size);
        let checked_counts = || {
            dataset.check_labelled("loader")?;
            let counts = dataset.class_counts();
            sampling.check(size, &counts)?;
            Ok::<_, Error>(counts)
        };
        Ok(match sampling {
            Sampling::Sequential => Self::Sequential,
            Sampling::Shuffled => Self::Shuffled,
            Sampling::ClassBalanced { classes } => {
                Self::Balanced(Balanced::new(dataset.labels(), &checked_counts()?, classes, size))
            }
            Sampling::SameClassPartners { partners } => {
                Self::Partners(Partners::new(dataset.labels(), checked_counts()?.len(), partners, size))
            }
        })
    }
}

/// What is needed to make any batch; shared by a loader and its iterators.
#[derive(Debug)]
struct Source {
    dataset: Dataset,
    config: LoaderConfig,
    plan: EpochPlan,
    /// One for each view.
    pipelines: Vec<Pipeline>,
}

/// Makes the batches of any epoch, in an order that depends on the seed and the epoch alone.
///
/// The same bits come out for any number of threads, with and without [prefetching](Self::prefetch), and an epoch can be
/// entered in the middle.
#[derive(Clone, Debug)]
pub struct Loader {
    source: Arc<Source>,
    prefetch: Option<Arc<Prefetch>>,
}

impl Loader {
    /// A loader over all rows of `dataset`.
    ///
    /// # Errors
    ///
    /// A batch size of 0, a batch size above the number of rows with `drop_last` (an epoch would have no batch), what
    /// [`Sampling::check`] refuses, no view, a transform out of range.
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
        if config.views.is_empty() {
            return Err(Error::invalid(OP, "views", "at least 1", 0));
        }
        ViewConfig::check_all(&config.views)?;
        let pipelines = config.views.iter().map(|view| Pipeline::new(view, &dataset)).collect::<Result<_>>()?;
        let plan = EpochPlan::new(&dataset, &config)?;
        Ok(Self { source: Arc::new(Source { dataset, config, plan, pipelines }), prefetch: None })
    }

    /// A loader for evaluation: stored order, every row once, no augmentation.
    ///
    /// # Errors
    ///
    /// A batch size of 0.
    pub fn eval(dataset: Dataset, batch_size: usize) -> Result<Self> {
        let (sampling, views) = (Sampling::Sequential, vec![ViewConfig::default()]);
        Self::new(dataset, LoaderConfig { batch_size, sampling, drop_last: false, views, seed: 0 })
    }

    /// The same batches, made ahead of time by `threads` threads of its own, at most `depth` batches at once beside the
    /// one that is in use.
    ///
    /// The threads are started here and end with the last clone of the loader and its iterators. An iterator starts to
    /// work when it is made, so the first batch of an epoch is the only one that is waited for, unless making a batch takes
    /// longer than using one.
    ///
    /// # Errors
    ///
    /// `threads` or `depth` of 0, more than 1,024 of either, a system that gives no more threads.
    pub fn prefetch(self, threads: usize, depth: usize) -> Result<Self> {
        Ok(Self { prefetch: Some(Arc::new(Prefetch::new(threads, depth)?)), ..self })
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
        if let EpochPlan::Balanced(balanced) = &self.source.plan {
            return balanced.batches;
        }
        let (rows, size) = (self.source.dataset.len(), self.source.config.batch_size);
        if self.source.config.drop_last { rows / size } else { rows.div_ceil(size) }
    }

    /// Rows in the order of `epoch`, also those that `drop_last` leaves out; those of class-balanced batches batch after
    /// batch, without the rows that find no place in one, and those of anchors with partners batch after batch, too.
    pub fn order(&self, epoch: u64) -> Vec<u32> {
        let Source { dataset, config, plan, .. } = self.source.as_ref();
        let rows = u32::try_from(dataset.len()).expect("a Dataset has at most u32::MAX rows: checked where it is made");
        match plan {
            EpochPlan::Sequential => (0..rows).collect(),
            EpochPlan::Shuffled => shuffled(config.seed, epoch, rows),
            EpochPlan::Balanced(balanced) => balanced.order(config.seed, epoch),
            EpochPlan::Partners(partners) => partners.order(&shuffled(config.seed, epoch, rows), config.seed, epoch),
        }
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
        let work = EpochWork { source: self.source.clone(), order: self.order(epoch), epoch };
        let next = first_batch.min(end);
        let ahead = self.prefetch.as_ref().map(|prefetch| {
            let work = work.clone();
            prefetch.start(next..end, move |batch| work.batch(batch))
        });
        EpochIter { work, ahead, next, end }
    }
}

/// What the batches of an epoch are made of.
#[derive(Clone, Debug)]
struct EpochWork {
    source: Arc<Source>,
    order: Vec<u32>,
    epoch: u64,
}

impl EpochWork {
    fn batch(&self, number: usize) -> Result<Batch> {
        let LoaderConfig { sampling, batch_size, .. } = &self.source.config;
        let size = sampling.rows_per_batch(*batch_size);
        let start = number * size;
        let rows = &self.order[start..start.saturating_add(size).min(self.order.len())];
        self.source.batch(self.epoch, rows)
    }
}

/// Batches of one epoch; made one by one when asked for, or ahead of time.
#[derive(Debug)]
pub struct EpochIter {
    work: EpochWork,
    ahead: Option<Prefetched<Result<Batch>>>,
    next: usize,
    end: usize,
}

impl Iterator for EpochIter {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.end {
            return None;
        }
        let number = self.next;
        self.next += 1;
        // A worker that is gone has panicked; then the batch is made here, where the panic can be seen.
        let ready = self.ahead.as_mut().and_then(Prefetched::take);
        Some(ready.unwrap_or_else(|| self.work.batch(number)))
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
        let mut views = (0..self.pipelines.len()).map(|view| self.view(view, epoch, rows));
        let images = views.next().expect("a loader has a view: checked in new")?;
        let more_views = views.collect::<Result<_>>()?;
        let of = |row: &u32| *row as usize;
        let label_ids: Vec<u32> = match self.dataset.labels() {
            [] => Vec::new(),
            labels => rows.iter().map(|row| labels[of(row)]).collect(),
        };
        let labels = (!label_ids.is_empty()).then(|| Tensor::from_slice(&label_ids, rows.len(), &Device::Cpu));
        let values = match self.dataset.values() {
            [] => None,
            values => {
                let values = rows.iter().map(|row| values[of(row)]).collect();
                Some(Tensor::from_vec(values, rows.len(), &Device::Cpu)?)
            }
        };
        Ok(Batch { images, more_views, labels: labels.transpose()?, values, index: rows.to_vec(), label_ids })
    }

    /// One view of some rows.
    fn view(&self, view: usize, epoch: u64, rows: &[u32]) -> Result<Tensor> {
        let pipeline = &self.pipelines[view];
        let stream = self.config.views[view].same_as.unwrap_or(view);
        let anchors = rows.len() / (1 + self.config.sampling.partners());
        let shape = pipeline.shape();
        let length = shape.channels * shape.height * shape.width;
        let mut images = vec![0f32; rows.len() * length];
        images
            .par_chunks_exact_mut(length)
            .zip(rows.par_iter().enumerate())
            // An image is a few microseconds of work: fewer than this many are not worth a task.
            .with_min_len(8)
            .try_for_each_init(Scratch::default, |scratch, (target, (place, &row))| {
                // A row that is anchor and partner in an epoch shows itself differently each time.
                let stream = stream + self.pipelines.len() * (place / anchors);
                let mut rng = sample_rng(self.config.seed, epoch, u64::from(row), stream as u64);
                pipeline.run(&self.dataset.store().row(row as usize)?, target, scratch, &mut rng);
                Ok::<_, Error>(())
            })?;
        let dims = (rows.len(), shape.channels, shape.height, shape.width);
        Ok(Tensor::from_vec(images, dims, &Device::Cpu)?)
    }
}
