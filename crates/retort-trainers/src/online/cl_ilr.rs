//! Branches that learn from the mean of the others, on a trunk whose gradient is divided by their number.

use super::cohort::{Cohort, Others, logits};
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::Parts;
use crate::system::{Kind, MAIN, System, SystemContext, SystemInfo};
use retort_losses::online::{RampedSettings, cl_ilr};
use retort_models::PeersConfig;
use retort_nn::{Taps, Tensors};
use serde::{Deserialize, Serialize};

/// Branches of the last stage on one trunk imitate the mean scores of the others; the gradient that enters the trunk is
/// divided by their number (Song and Chai 2018, arXiv 1805.11761). See [`cl_ilr`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClIlrConfig {
    /// The branches beside the student's, 1 to 15.
    pub others: usize,
    /// Temperature and ramp of the imitation.
    pub loss: RampedSettings,
}

impl Default for ClIlrConfig {
    fn default() -> Self {
        Self { others: 2, loss: RampedSettings::default() }
    }
}

impl System for ClIlrConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "cl-ilr",
        title: "Collaborative learning with intermediate-level rescaling",
        kind: Kind::Online,
        paper: Some("Collaborative Learning for Deep Neural Networks"),
        year: Some(2018),
        arxiv: Some("1805.11761"),
        views: 1,
        losses: false,
        trainable: &["further branches of the last stage"],
        state: &[],
        code_bases: &[super::OKDDIP_CODE],
    };

    fn check(&self) -> Result<()> {
        Others::Copies(self.others).check(Self::INFO.id, 1)?;
        Ok(self.loss.validate(Self::INFO.id)?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let family = &retort_models::info(ctx.student)?.family;
        let (cohort, parts) = Cohort::on_trunk(ctx, &PeersConfig::cl_ilr(family, 1 + self.others))?;
        let method = ClIlr { cohort, settings: self.loss };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

struct ClIlr {
    cohort: Cohort,
    settings: RampedSettings,
}

impl Method for ClIlr {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let logits = logits(&self.cohort.forward(&step.batch.images, Taps::default())?.peers);
        let terms = cl_ilr(&logits, step.batch.labels()?, &self.settings, self.settings.ramp(step.epoch))?;
        Ok(StepOutput { terms, logits: logits.into_iter().next() })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.cohort.evaluated()
    }

    fn deployed(&self, student: Tensors) -> Result<Tensors> {
        Ok(self.cohort.deployed(student))
    }
}
