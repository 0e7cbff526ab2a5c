//! Auxiliary classifiers on the stages of a network and the network itself learn from each other.

use super::{check_labels, check_range};
use crate::Result;
use crate::branched::Exits;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::Parts;
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use retort_losses::self_distillation::dks;
use retort_models::BranchesConfig;
use retort_nn::Taps;
use serde::{Deserialize, Serialize};

/// Every classifier, the network's own one included, learns from every other one (Sun et al. 2019, arXiv 1906.00675);
/// see [`dks`]. The auxiliary ones stand behind the two stages before the last, see [`BranchesConfig::dks`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DksConfig {
    /// Softmax temperature, in `0.001 ..= 1000`.
    pub temperature: f64,
}

impl Default for DksConfig {
    fn default() -> Self {
        Self { temperature: 4.0 }
    }
}

impl System for DksConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "dks",
        title: "Deeply-supervised knowledge synergy",
        paper: Some("Deeply-supervised Knowledge Synergy"),
        year: Some(2019),
        arxiv: Some("1906.00675"),
        trainable: &["auxiliary classifiers behind the two stages before the last"],
        code_bases: &["winycg/Self-KD-Lib"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        let ok = (1e-3..=1e3).contains(&self.temperature);
        check_range(ok, Self::INFO.id, "temperature", "in 0.001 ..= 1000", self.temperature)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let rows = BranchesConfig::dks(&retort_models::info(ctx.student)?.family, ctx.model.classes);
        let (student, parts) = Exits::new(ctx, &rows)?;
        let method = Dks { student, temperature: self.temperature };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

struct Dks {
    student: Exits,
    temperature: f64,
}

impl Method for Dks {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let outputs = self.student.forward(&step.batch.images, Taps::default())?;
        let mut logits = vec![outputs.backbone.logits];
        logits.extend(outputs.branches.into_iter().map(|branch| branch.logits));
        let terms = dks(&logits, step.batch.labels()?, self.temperature)?;
        Ok(StepOutput { terms, logits: Some(logits.swap_remove(0)) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.student.evaluated()
    }
}
