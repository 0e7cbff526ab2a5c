//! A network learns from what it says about another image of the same class.

use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use retort_datasets::Sampling;
use retort_losses::self_distillation::{CsKdSettings, cs_kd};
use retort_nn::{Mode, Network, Taps, no_grad};
use std::sync::Arc;

impl System for CsKdSettings {
    const INFO: SystemInfo = SystemInfo {
        id: "cs-kd",
        title: "Class-wise self-knowledge distillation",
        paper: Some("Regularizing Class-wise Predictions via Self-knowledge Distillation"),
        year: Some(2020),
        arxiv: Some("2003.13964"),
        code_bases: &["alinlab/cs-kd"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        Ok(self.validate()?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        super::check_labels(ctx, Self::INFO.id)?;
        let recipe = ctx.sampled(Self::INFO.id, Sampling::SameClassPartners { partners: 1 })?;
        let (student, params) = ctx.network(ctx.student, "student")?;
        let parts = Parts::new([Part::new("student", params)]);
        let method = CsKd { student, settings: *self };
        Ok(vec![recipe.phase(MAIN, Box::new(Learner::new(parts, method)))])
    }
}

struct CsKd {
    student: Arc<dyn Network>,
    settings: CsKdSettings,
}

impl Method for CsKd {
    /// Anchors and partners pass one after the other, each with its own batch statistics, and both move the running ones.
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let batch = step.batch;
        let anchors = batch.len() / 2;
        let labels = batch.labels()?.narrow(0, 0, anchors)?;
        let rows = |start| batch.images.narrow(0, start, anchors);
        let pass = |start| Ok::<_, crate::Error>(self.student.forward(&rows(start)?, Mode::Train, Taps::default())?);
        let logits = pass(0)?.logits;
        let partners = no_grad(|| pass(anchors))?.logits;
        let terms = cs_kd(&logits, &partners, &labels, &self.settings)?;
        Ok(StepOutput { terms, logits: Some(logits) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.as_ref(), None)]
    }
}
