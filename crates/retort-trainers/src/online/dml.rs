//! Deep mutual learning.

use super::cohort::{Cohort, Others, logits};
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::Parts;
use crate::system::{Kind, MAIN, System, SystemContext, SystemInfo};
use candle_core::Tensor;
use retort_losses::online::{DmlSettings, dml, dml_ensemble, dml_turn};
use retort_nn::{Mode, Taps, no_grad};
use serde::{Deserialize, Serialize};

/// Networks that see the same images and imitate each other's class scores (Zhang et al. 2018, arXiv 1706.00384); see
/// [`dml`] and [`dml_ensemble`]. With `others = 0` this is plain training, bit for bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DmlConfig {
    /// The networks beside the student.
    pub others: Others,
    /// Whom a network imitates.
    pub target: DmlTarget,
    /// When the networks are updated.
    pub update: DmlUpdate,
    /// Temperature and weight.
    pub loss: DmlSettings,
}

/// Whom a network imitates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DmlTarget {
    /// Every other one.
    #[default]
    Each,
    /// The mean logits of the others (`dml-ensemble`).
    Ensemble,
}

/// When the networks are updated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DmlUpdate {
    /// All at once, which is cheaper.
    #[default]
    Joint,
    /// One after the other, the updated ones' logits computed anew in between, as in the paper. Targets have batch
    /// statistics, and only the pass with gradients moves the running ones.
    Sequential,
}

impl System for DmlConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "dml",
        title: "Deep mutual learning",
        kind: Kind::Online,
        paper: Some("Deep Mutual Learning"),
        year: Some(2018),
        arxiv: Some("1706.00384"),
        views: 1,
        losses: false,
        trainable: &["further networks"],
        state: &[],
        code_bases: &[super::OKDDIP_CODE],
    };

    fn check(&self) -> Result<()> {
        self.others.check(Self::INFO.id, 0)?;
        Ok(self.loss.validate()?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let (cohort, parts) = Cohort::complete(ctx, &self.others)?;
        let said = vec![None; cohort.networks().len()];
        let method = Dml { cohort, said, config: self.clone() };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

struct Dml {
    cohort: Cohort,
    /// In the middle of a batch with several turns, what each network says with its present weights.
    said: Vec<Option<Tensor>>,
    config: DmlConfig,
}

impl Method for Dml {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        match self.config.update {
            DmlUpdate::Joint => self.joint(step),
            DmlUpdate::Sequential => self.turn(step),
        }
    }

    fn turns(&self) -> usize {
        match self.config.update {
            DmlUpdate::Joint => 1,
            DmlUpdate::Sequential => self.cohort.networks().len(),
        }
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.cohort.evaluated()
    }
}

impl Dml {
    fn joint(&self, step: &Step<'_>) -> Result<StepOutput> {
        let logits = logits(&self.cohort.forward(&step.batch.images, Taps::default())?.peers);
        let labels = step.batch.labels()?;
        let terms = match self.config.target {
            DmlTarget::Each => dml(&logits, labels, &self.config.loss)?,
            DmlTarget::Ensemble => dml_ensemble(&logits, labels, &self.config.loss)?,
        };
        Ok(StepOutput { terms, logits: logits.into_iter().next() })
    }

    /// The update of one network by what the others say now.
    fn turn(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let (images, turn) = (&step.batch.images, step.turn);
        if turn == 0 {
            self.said.fill(None);
        } else {
            self.said[turn - 1] = None;
        }
        let mut logits = Vec::new();
        for (k, network) in self.cohort.networks().iter().enumerate() {
            let said = match &self.said[k] {
                _ if k == turn => network.forward(images, Mode::Train, Taps::default())?.logits,
                Some(said) => said.clone(),
                None => no_grad(|| network.forward(images, Mode::BatchStatistics, Taps::default()))?.logits.detach(),
            };
            self.said[k] = (k != turn).then(|| said.clone());
            logits.push(said);
        }
        let from_ensemble = self.config.target == DmlTarget::Ensemble;
        let terms = dml_turn(turn, &logits, step.batch.labels()?, &self.config.loss, from_ensemble)?;
        Ok(StepOutput { terms, logits: (turn == 0).then(|| logits.swap_remove(0)) })
    }
}
