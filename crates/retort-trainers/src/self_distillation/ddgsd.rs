//! A network agrees with itself on two views of an image.

use super::{check_labels, second_view};
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use candle_core::Tensor;
use retort_losses::self_distillation::{DdgsdSettings, ddgsd};
use retort_nn::{Mode, Network, Taps};
use std::sync::Arc;

impl System for DdgsdSettings {
    const INFO: SystemInfo = SystemInfo {
        id: "ddgsd",
        title: "Data-distortion guided self-distillation",
        paper: Some("Data-Distortion Guided Self-Distillation for Deep Neural Networks"),
        year: Some(2019),
        views: 2,
        code_bases: &["winycg/Self-KD-Lib"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        Ok(self.validate()?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let (student, params) = ctx.network(ctx.student, "student")?;
        let parts = Parts::new([Part::new("student", params)]);
        let method = Ddgsd { student, settings: *self };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(parts, method)))])
    }
}

struct Ddgsd {
    student: Arc<dyn Network>,
    settings: DdgsdSettings,
}

impl Method for Ddgsd {
    /// Both views pass at once, under common batch statistics.
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let batch = step.batch;
        let images = Tensor::cat(&[&batch.images, second_view(batch, DdgsdSettings::INFO.id)?], 0)?;
        let outputs = self.student.forward(&images, Mode::Train, Taps::default())?;
        let terms = ddgsd(&outputs.logits, &outputs.embedding, batch.labels()?, &self.settings)?;
        Ok(StepOutput { terms, logits: Some(outputs.logits.narrow(0, 0, batch.len())?) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.as_ref(), None)]
    }
}
