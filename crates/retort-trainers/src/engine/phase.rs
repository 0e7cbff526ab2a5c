//! A stretch of training: data, transform, optimiser, schedule, objective.

use super::Objective;
use crate::Result;
use rand_chacha::ChaCha8Rng;
use retort_datasets::{Batch, Dataset, Loader, LoaderConfig, Sampling, ViewConfig};
use retort_nn::{OptimizerConfig, ScheduleConfig, Seed};

/// Batches that are made while a step goes on, where that takes a noticeable part of it.
const AHEAD: usize = 4;

/// Which samples form a batch, and how they are augmented.
#[derive(Clone, Debug)]
pub struct BatchPlan {
    /// Images in a batch; the last one of an epoch may be smaller, unless batches are class-balanced.
    pub batch_size: usize,
    /// Which images form a batch.
    pub sampling: Sampling,
    /// What a batch shows of its images, at least one view.
    pub views: Vec<ViewConfig>,
}

impl BatchPlan {
    pub(super) fn loader(&self, dataset: &Dataset, seed: Seed) -> Result<Loader> {
        let config = LoaderConfig {
            batch_size: self.batch_size,
            sampling: self.sampling,
            drop_last: false,
            views: self.views.clone(),
            seed: seed.value(),
        };
        let loader = Loader::new(dataset.clone(), config)?;
        // Rows in a file are waited for, and colours take a while; a crop is made faster than it is handed over.
        let quick = dataset.pixels().is_some() && self.views.iter().all(ViewConfig::is_quick);
        Ok(if quick { loader } else { loader.prefetch(1, AHEAD)? })
    }
}

/// Turns a batch into another one, for example by rotation or mixing.
///
/// Everything random must come from `rng`, whose stream belongs to this step: then a step can be repeated and resumed.
pub trait BatchTransform: Send {
    /// The batch that the objective sees.
    ///
    /// # Errors
    ///
    /// Whatever the tensor operations refuse.
    fn apply(&self, batch: Batch, rng: &mut ChaCha8Rng) -> Result<Batch>;
}

/// Leaves the batch as the loader made it.
pub struct Identity;

impl BatchTransform for Identity {
    fn apply(&self, batch: Batch, _rng: &mut ChaCha8Rng) -> Result<Batch> {
        Ok(batch)
    }
}

/// One entry of the phase list of a run.
pub struct Phase {
    /// For example `teacher`, `init`, `distil`.
    pub name: String,
    /// Passes over the training set.
    pub epochs: usize,
    /// How batches are formed.
    pub plan: BatchPlan,
    /// What happens to a batch before the objective sees it.
    pub transform: Box<dyn BatchTransform>,
    /// Which optimiser.
    pub optimizer: OptimizerConfig,
    /// Its rate over time.
    pub schedule: ScheduleConfig,
    /// The method.
    pub objective: Box<dyn Objective>,
}
