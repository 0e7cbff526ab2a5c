//! What a run has done so far: the part of a checkpoint that is not tensors.

use super::Evaluation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One finished epoch. Holds no times: the same run gives the same record, bit for bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Phase name.
    pub phase: String,
    /// Epoch of the phase, counted from 1.
    pub epoch: usize,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean over samples of the weighted sum of terms.
    pub loss: f64,
    /// Mean over samples of each term and sub-term, unweighted.
    pub terms: BTreeMap<String, f64>,
    /// Accuracy on the augmented training batches, in `[0, 1]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_accuracy: Option<f64>,
    /// Test-set measures by network, in the epochs in which they were due.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evaluations: BTreeMap<String, Evaluation>,
}

/// What a finished run leaves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// All epochs of all phases.
    pub epochs: Vec<EpochRecord>,
    /// Wall-clock seconds of training in each epoch, evaluation not counted.
    pub seconds: Vec<f64>,
}

impl Summary {
    /// The last evaluation of the network `name`.
    #[must_use]
    pub fn last(&self, name: &str) -> Option<&Evaluation> {
        self.epochs.iter().rev().find_map(|epoch| epoch.evaluations.get(name))
    }

    /// The highest test accuracy of the network `name` over all evaluated epochs: a figure that has seen the test set.
    #[must_use]
    pub fn best_accuracy(&self, name: &str) -> Option<f64> {
        self.epochs.iter().filter_map(|epoch| epoch.evaluations.get(name)).map(|e| e.accuracy).reduce(f64::max)
    }
}

/// Sums of the epoch that is under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) steps: usize,
    pub(super) samples: usize,
    pub(super) loss: f64,
    pub(super) terms: BTreeMap<String, f64>,
    pub(super) predicted: usize,
    pub(super) correct: usize,
    pub(super) lr: f64,
    pub(super) seconds: f64,
}

impl Running {
    pub(super) fn accuracy(&self) -> Option<f64> {
        (self.predicted > 0).then(|| self.correct as f64 / self.predicted as f64)
    }

    pub(super) fn mean_loss(&self) -> f64 {
        self.loss / self.samples.max(1) as f64
    }

    pub(super) fn record(&self, phase: &str, epoch: usize, evaluations: BTreeMap<String, Evaluation>) -> EpochRecord {
        let samples = self.samples.max(1) as f64;
        EpochRecord {
            phase: phase.to_string(),
            epoch: epoch + 1,
            lr: self.lr,
            loss: self.mean_loss(),
            terms: self.terms.iter().map(|(name, sum)| (name.clone(), sum / samples)).collect(),
            train_accuracy: self.accuracy(),
            evaluations,
        }
    }
}

/// Position and history, as written into a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) phase: usize,
    pub(super) epoch: usize,
    pub(super) running: Running,
    pub(super) summary: Summary,
}
