//! A network learns from another one of its architecture that was trained before it.

use super::check_labels;
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use retort_losses::Term;
use retort_losses::output::cross_entropy;
use retort_losses::self_distillation::{TfKdSelfSettings, tf_kd_self};
use retort_nn::{Mode, Network, Taps, no_grad};
use std::sync::Arc;

impl System for TfKdSelfSettings {
    const INFO: SystemInfo = SystemInfo {
        id: "tf-kd-self",
        title: "Teacher-free distillation by self-training",
        paper: Some("Revisiting Knowledge Distillation via Label Smoothing Regularization"),
        year: Some(2020),
        arxiv: Some("1909.11723"),
        trainable: &["a first network of the same architecture, in a phase before"],
        state: &["the first network"],
        code_bases: &["yuanli2333/Teacher-free-Knowledge-Distillation"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        Ok(self.validate()?)
    }

    /// Both phases follow the recipe. They share the teacher's parameters, which the second one saves as well.
    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let (teacher, teacher_params) = ctx.network(ctx.student, "teacher")?;
        let (student, params) = ctx.network(ctx.student, "student")?;
        let of_teacher = || Part::new("teacher", teacher_params.clone());
        let first = Learner::new(Parts::new([of_teacher()]), Plain { network: Arc::clone(&teacher) });
        let parts = Parts::new([Part::new("student", params), of_teacher().not_optimised()]);
        let second = Learner::new(parts, TfKdSelf { student, teacher, settings: *self });
        Ok(vec![ctx.recipe.phase("teacher", Box::new(first)), ctx.recipe.phase(MAIN, Box::new(second))])
    }
}

/// The teacher in its own phase.
struct Plain {
    network: Arc<dyn Network>,
}

impl Method for Plain {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let logits = self.network.forward(&step.batch.images, Mode::Train, Taps::default())?.logits;
        let value = cross_entropy(&logits, step.batch.labels()?)?;
        Ok(StepOutput { terms: vec![Term { name: "ce", weight: 1.0, value, parts: Vec::new() }], logits: Some(logits) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated { name: "teacher".into(), network: self.network.as_ref(), teacher: None }]
    }
}

struct TfKdSelf {
    student: Arc<dyn Network>,
    teacher: Arc<dyn Network>,
    settings: TfKdSelfSettings,
}

impl Method for TfKdSelf {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let images = &step.batch.images;
        let teacher = no_grad(|| self.teacher.forward(images, Mode::Eval, Taps::default()))?.logits.detach();
        let logits = self.student.forward(images, Mode::Train, Taps::default())?.logits;
        let terms = tf_kd_self(&logits, &teacher, step.batch.labels()?, &self.settings)?;
        Ok(StepOutput { terms, logits: Some(logits) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.as_ref(), Some(self.teacher.as_ref()))]
    }
}
