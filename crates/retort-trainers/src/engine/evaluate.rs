//! Measuring networks on a test set.

use super::Evaluated;
use crate::Result;
use candle_core::{Device, Tensor};
use retort_datasets::Loader;
use retort_metrics::{Bounds, Classification, FeaturePair, Head};
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
    /// What bounds the risk on the student's features, where it was asked for and both networks allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<RiskBounds>,
}

/// Risks of the teacher's head and their bounds by distances of features, in nats, see [`Bounds`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RiskBounds {
    /// On the teacher's features.
    pub teacher_features: f64,
    /// On the student's: what is bounded.
    pub student_features: f64,
    /// Bound by the features of each class.
    pub by_class: f64,
    /// Bound by the features of each sample.
    pub paired: f64,
}

/// What a network says about a batch of the test set.
struct Said {
    logits: Tensor,
    embedding: Tensor,
}

fn said(network: &dyn Network, images: &Tensor, device: &Device) -> Result<Said> {
    let images = images.to_device(device)?;
    let outputs = no_grad(|| network.forward(&images, Mode::Eval, Taps::default()))?;
    Ok(Said { logits: outputs.logits.detach(), embedding: outputs.embedding.detach() })
}

/// What a frozen teacher says about the test set never changes, so it is computed once.
#[derive(Default)]
pub(super) struct TeacherOutputs(BTreeMap<String, Vec<Said>>);

impl TeacherOutputs {
    fn of(&mut self, name: &str, teacher: &dyn Network, loader: &Loader, device: &Device) -> Result<&[Said]> {
        if !self.0.contains_key(name) {
            let outputs = loader.epoch(0).map(|batch| {
                let batch = batch?;
                said(teacher, batch.more_views.first().unwrap_or(&batch.images), device)
            });
            self.0.insert(name.to_string(), outputs.collect::<Result<_>>()?);
        }
        Ok(&self.0[name])
    }
}

pub(super) fn evaluate(
    item: &Evaluated<'_>,
    loader: &Loader,
    device: &Device,
    bounds: bool,
    cache: &mut TeacherOutputs,
) -> Result<Evaluation> {
    let teacher = item.teacher.map(|t| cache.of(&item.name, t, loader, device)).transpose()?;
    let mut metrics = Classification::new();
    let (mut embeddings, mut labels) = (Vec::new(), Vec::new());
    for (i, batch) in loader.epoch(0).enumerate() {
        let batch = batch?;
        let student = said(item.network, &batch.images, device)?;
        metrics.update(&student.logits, teacher.map(|t| &t[i].logits), &batch.label_ids)?;
        embeddings.push(student.embedding);
        labels.extend_from_slice(&batch.label_ids);
    }
    let bounds = match (item.teacher, teacher) {
        (Some(network), Some(teacher)) if bounds => risk_bounds(network, &embeddings, teacher, &labels)?,
        _ => None,
    };
    Ok(Evaluation {
        bounds,
        samples: metrics.count(),
        accuracy: metrics.accuracy().unwrap_or(0.0),
        nll: metrics.nll().unwrap_or(0.0),
        agreement: metrics.agreement(),
        kl: metrics.kl(),
    })
}

/// None where the teacher's last step is no linear one or the widths differ.
fn risk_bounds(teacher: &dyn Network, student: &[Tensor], said: &[Said], labels: &[u32]) -> Result<Option<RiskBounds>> {
    let Some(classifier) = teacher.classifier() else { return Ok(None) };
    let joined = |parts: Vec<&Tensor>| Ok::<_, crate::Error>(Tensor::cat(&parts, 0)?);
    let student = joined(student.iter().collect())?;
    let teacher = joined(said.iter().map(|said| &said.embedding).collect())?;
    if student.dims() != teacher.dims() {
        return Ok(None);
    }
    let head = Head { weight: classifier.weight(), bias: classifier.bias() };
    let found = Bounds::new(FeaturePair { student: &student, teacher: &teacher, labels }, head, None)?;
    Ok(Some(RiskBounds {
        teacher_features: found.ce_teacher_features,
        student_features: found.ce_student_features,
        by_class: found.bound_by_class,
        paired: found.bound_paired,
    }))
}
