//! A network learns from what it says about similar images of its batch.

use super::check_labels;
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use retort_datasets::Sampling;
use retort_losses::self_distillation::{BakeSettings, bake};
use retort_nn::{Mode, Network, Taps};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Targets by the predictions for similar samples of a batch of anchors and others of their classes (Ge et al. 2021,
/// arXiv 2104.13298); see [`bake`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BakeConfig {
    /// Other images of its class beside each anchor, from 1; a batch has `(1 + partners) batch_size` rows. 3 on
    /// CIFAR-100 and CUB, 1 on Tiny-ImageNet, Stanford Dogs and MIT67.
    pub partners: usize,
    /// Temperature and weights.
    pub loss: BakeSettings,
}

impl Default for BakeConfig {
    fn default() -> Self {
        Self { partners: 3, loss: BakeSettings::default() }
    }
}

impl BakeConfig {
    fn sampling(&self) -> Sampling {
        Sampling::SameClassPartners { partners: self.partners }
    }
}

impl System for BakeConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "bake",
        title: "Batch knowledge ensembling",
        paper: Some("Self-distillation with Batch Knowledge Ensembling Improves ImageNet Classification"),
        year: Some(2021),
        arxiv: Some("2104.13298"),
        code_bases: &["yxgeee/BAKE"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        // The number of partners alone: the classes are known with the data only.
        self.sampling().check(1, &[])?;
        Ok(self.loss.validate()?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let recipe = ctx.sampled(Self::INFO.id, self.sampling())?;
        let (student, params) = ctx.network(ctx.student, "student")?;
        let parts = Parts::new([Part::new("student", params)]);
        let method = Bake { student, settings: self.loss };
        Ok(vec![recipe.phase(MAIN, Box::new(Learner::new(parts, method)))])
    }
}

struct Bake {
    student: Arc<dyn Network>,
    settings: BakeSettings,
}

impl Method for Bake {
    /// Every row is anchor and neighbour alike, so that their order does not matter.
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let outputs = self.student.forward(&step.batch.images, Mode::Train, Taps::default())?;
        let terms = bake(&outputs.embedding, &outputs.logits, step.batch.labels()?, &self.settings)?;
        Ok(StepOutput { terms, logits: Some(outputs.logits) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.as_ref(), None)]
    }
}
