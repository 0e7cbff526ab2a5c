//! Networks that each see their own augmentation and learn from all together.

use super::cohort::{Cohort, Others};
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::Parts;
use crate::system::{Kind, MAIN, System, SystemContext, SystemInfo};
use retort_losses::online::{KdclSettings, kdcl};
use retort_nn::{Mode, Taps};
use serde::{Deserialize, Serialize};
use std::iter::once;

/// Networks that learn from the scores of all, each seeing the batch under an augmentation of its own (Guo et al. 2020,
/// CVPR); see [`kdcl`].
///
/// The batch has as many views as there are networks: `others = 2` needs three.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KdclConfig {
    /// The networks beside the student, 1 to 15.
    pub others: Others,
    /// Temperature, share of the imitation and its teacher.
    pub loss: KdclSettings,
}

impl System for KdclConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "kdcl",
        title: "Online knowledge distillation via collaborative learning",
        kind: Kind::Online,
        paper: Some("Online Knowledge Distillation via Collaborative Learning"),
        year: Some(2020),
        arxiv: None,
        views: 2,
        losses: false,
        trainable: &["further networks"],
        state: &[],
        code_bases: &["shaoeric/Online-Knowledge-Distillation-via-Collaborative-Learning"],
    };

    fn check(&self) -> Result<()> {
        self.others.check(Self::INFO.id, 1)?;
        Ok(self.loss.validate()?)
    }

    /// One for each network.
    fn views(&self) -> usize {
        self.others.networks()
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let (cohort, parts) = Cohort::complete(ctx, &self.others)?;
        let method = Kdcl { cohort, settings: self.loss };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

struct Kdcl {
    cohort: Cohort,
    settings: KdclSettings,
}

impl Method for Kdcl {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let batch = step.batch;
        let views = once(&batch.images).chain(&batch.more_views);
        let said = self.cohort.networks().iter().zip(views);
        let logits = said.map(|(network, images)| Ok(network.forward(images, Mode::Train, Taps::default())?.logits));
        let logits = logits.collect::<Result<Vec<_>>>()?;
        let terms = kdcl(&logits, batch.labels()?, &self.settings)?;
        Ok(StepOutput { terms, logits: logits.into_iter().next() })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.cohort.evaluated()
    }
}
