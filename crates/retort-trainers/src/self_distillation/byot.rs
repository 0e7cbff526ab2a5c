//! Auxiliary classifiers on the stages of a network learn from its own classifier.

use super::{MAPS, check_labels};
use crate::Result;
use crate::branched::Exits;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::Parts;
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use retort_losses::self_distillation::{ByotSettings, byot};
use retort_models::BranchesConfig;

impl System for ByotSettings {
    const INFO: SystemInfo = SystemInfo {
        id: "byot",
        title: "Be your own teacher",
        paper: Some(
            "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation",
        ),
        year: Some(2019),
        arxiv: Some("1905.08094"),
        trainable: &["auxiliary classifiers behind the two stages before the last"],
        code_bases: &["winycg/Self-KD-Lib"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        Ok(self.validate()?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let rows = BranchesConfig::byot(&retort_models::info(ctx.student)?.family, ctx.model.classes);
        let (student, parts) = Exits::new(ctx, &rows)?;
        let method = Byot { student, settings: *self };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

struct Byot {
    student: Exits,
    settings: ByotSettings,
}

impl Method for Byot {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let outputs = self.student.forward(&step.batch.images, MAPS)?;
        let (mut logits, mut maps) = (Vec::new(), Vec::new());
        for head in [&outputs.backbone].into_iter().chain(&outputs.branches) {
            logits.push(head.logits.clone());
            maps.push(head.last_map()?.clone());
        }
        let terms = byot(&logits, &maps, step.batch.labels()?, &self.settings)?;
        Ok(StepOutput { terms, logits: Some(logits.swap_remove(0)) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.student.evaluated()
    }
}
