//! Measuring networks on a test set.

use super::Evaluated;
use crate::Result;
use candle_core::{Device, Tensor};
use retort_datasets::Loader;
use retort_metrics::Classification;
use retort_nn::{Mode, Network, Taps, no_grad};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Exact means over the test set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Number of samples.
    pub samples: usize,
    /// Top-1 accuracy in `[0, 1]`.
    pub accuracy: f64,
    /// Mean negative log-likelihood in nats.
    pub nll: f64,
    /// Top-1 agreement with the teacher in `[0, 1]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// Mean KL(teacher || student) at temperature 1 in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
}

/// A frozen teacher's logits on the test set never change, so they are computed once.
#[derive(Default)]
pub(super) struct TeacherLogits(BTreeMap<&'static str, Vec<Tensor>>);

impl TeacherLogits {
    fn of(&mut self, name: &'static str, teacher: &dyn Network, loader: &Loader, device: &Device) -> Result<&[Tensor]> {
        if !self.0.contains_key(name) {
            let logits = loader
                .epoch(0)
                .map(|batch| {
                    let images = batch?.images.to_device(device)?;
                    Ok(no_grad(|| teacher.forward(&images, Mode::Eval, Taps::default()))?.logits.detach())
                })
                .collect::<Result<_>>()?;
            self.0.insert(name, logits);
        }
        Ok(&self.0[name])
    }
}

pub(super) fn evaluate(
    item: &Evaluated<'_>,
    loader: &Loader,
    device: &Device,
    cache: &mut TeacherLogits,
) -> Result<Evaluation> {
    let teacher = item.teacher.map(|t| cache.of(item.name, t, loader, device)).transpose()?;
    let mut metrics = Classification::new();
    for (i, batch) in loader.epoch(0).enumerate() {
        let batch = batch?;
        let images = batch.images.to_device(device)?;
        let logits = no_grad(|| item.network.forward(&images, Mode::Eval, Taps::default()))?.logits;
        metrics.update(&logits, teacher.map(|t| &t[i]), &batch.label_ids)?;
    }
    Ok(Evaluation {
        samples: metrics.count(),
        accuracy: metrics.accuracy().unwrap_or(0.0),
        nll: metrics.nll().unwrap_or(0.0),
        agreement: metrics.agreement(),
        kl: metrics.kl(),
    })
}
