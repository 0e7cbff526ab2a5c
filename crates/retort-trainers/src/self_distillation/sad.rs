//! Every stage of a network learns where the next one looks.

use super::{MAPS, check_labels, wrong};
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use retort_losses::self_distillation::{SadSettings, sad};
use retort_nn::{Mode, Network, NetworkSpec};
use std::sync::Arc;

impl System for SadSettings {
    const INFO: SystemInfo = SystemInfo {
        id: "sad",
        title: "Self-attention distillation",
        paper: Some("Learning Lightweight Lane Detection CNNs by Self Attention Distillation"),
        year: Some(2019),
        arxiv: Some("1908.00821"),
        code_bases: &["winycg/Self-KD-Lib"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        Ok(self.validate()?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let (student, params) = ctx.network(ctx.student, "student")?;
        check_halving(student.spec())?;
        let parts = Parts::new([Part::new("student", params)]);
        let method = Sad { student, settings: *self };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(parts, method)))])
    }
}

/// Each stage must be exactly half as large as the one before: its map is enlarged twice.
fn check_halving(spec: &NetworkSpec) -> Result<()> {
    let sizes: Vec<[usize; 2]> = spec.stages().iter().map(|map| [map.height, map.width]).collect();
    let halved = |pair: &[[usize; 2]]| pair[0] == pair[1].map(|side| 2 * side);
    if sizes.len() >= 2 && sizes.windows(2).all(halved) {
        return Ok(());
    }
    let expected = "at least two stages, each exactly half as large as the one before";
    Err(wrong(SadSettings::INFO.id, format!("expected {expected}, found {sizes:?} of `{}`", spec.name)))
}

struct Sad {
    student: Arc<dyn Network>,
    settings: SadSettings,
}

impl Method for Sad {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let outputs = self.student.forward(&step.batch.images, Mode::Train, MAPS)?;
        let terms = sad(&outputs.logits, outputs.stages(), step.batch.labels()?, &self.settings)?;
        Ok(StepOutput { terms, logits: Some(outputs.logits) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.as_ref(), None)]
    }
}
