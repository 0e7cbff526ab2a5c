//! A network learns from a pyramid over its own stage maps.

use super::{MAPS, check_labels};
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use retort_losses::self_distillation::{FrskdSettings, frskd};
use retort_models::{Pyramid, PyramidConfig};
use retort_nn::{Mode, Network, Taps};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A bidirectional pyramid refines the stage maps, classifies, and is imitated by the network under it (Ji et al. 2021,
/// arXiv 2103.08273); see [`frskd`] and [`Pyramid`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FrskdConfig {
    /// Channels of the pyramid over those of the network, 1 to 64.
    pub width: usize,
    /// Separable convolutions of a step of the pyramid, 1 to 64.
    pub depth: usize,
    /// Which maps of the pyramid the network's attention follows.
    pub refined: RefinedMaps,
    /// Temperature and weights.
    pub loss: FrskdSettings,
}

/// Which maps of the pyramid the network's attention follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefinedMaps {
    /// Those behind the ReLU, as the authors' code has it.
    #[default]
    AfterRelu,
    /// Those before it, as winycg/Self-KD-Lib has it.
    BeforeRelu,
}

impl Default for FrskdConfig {
    fn default() -> Self {
        let PyramidConfig { width, depth } = PyramidConfig::default();
        Self { width, depth, refined: RefinedMaps::default(), loss: FrskdSettings::default() }
    }
}

impl System for FrskdConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "frskd",
        title: "Feature refinement via self-knowledge distillation",
        paper: Some("Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation"),
        year: Some(2021),
        arxiv: Some("2103.08273"),
        trainable: &["pyramid over the stage maps with a classifier"],
        code_bases: &["MingiJi/FRSKD", "winycg/Self-KD-Lib"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        Ok(self.loss.validate()?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let (student, params) = ctx.network(ctx.student, "student")?;
        let pyramid_params = ctx.params("pyramid");
        let size = PyramidConfig { width: self.width, depth: self.depth };
        let pyramid = Pyramid::new(student.spec().stages(), ctx.model.classes, size, &pyramid_params.root())?;
        let parts = Parts::new([Part::new("student", params), Part::new("pyramid", pyramid_params)]);
        let method = Frskd { student, pyramid, config: *self };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(parts, method)))])
    }
}

struct Frskd {
    student: Arc<dyn Network>,
    pyramid: Pyramid,
    config: FrskdConfig,
}

impl Method for Frskd {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let outputs = self.student.forward(&step.batch.images, Mode::Train, MAPS)?;
        let after = self.config.refined == RefinedMaps::AfterRelu;
        let taps = Taps { maps: after, pre_activations: !after };
        let teacher = self.pyramid.forward(outputs.stages(), Mode::Train, taps)?;
        let refined = if after { &teacher.maps } else { &teacher.pre_activations };
        let logits = [&outputs.logits, &teacher.logits];
        let terms = frskd(logits, outputs.stages(), refined, step.batch.labels()?, &self.config.loss)?;
        Ok(StepOutput { terms, logits: Some(outputs.logits) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.as_ref(), None)]
    }
}
