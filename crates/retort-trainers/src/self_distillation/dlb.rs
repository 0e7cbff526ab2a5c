//! A network learns from what it said one step ago.

use super::{check_labels, second_view};
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use candle_core::Tensor;
use retort_losses::self_distillation::{DlbBatch, DlbMemory, DlbSettings, dlb};
use retort_nn::{Mode, Network, Taps, Tensors};
use std::sync::Arc;

impl System for DlbSettings {
    const INFO: SystemInfo = SystemInfo {
        id: "dlb",
        title: "Self-distillation from the last mini-batch",
        paper: Some("Self-Distillation from the Last Mini-Batch for Consistency Regularization"),
        year: Some(2022),
        arxiv: Some("2203.16172"),
        views: 2,
        state: &["second views, labels and logits of the last batch"],
        code_bases: &["Meta-knowledge-Lab/DLB"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        Ok(self.validate()?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let (student, params) = ctx.network(ctx.student, "student")?;
        let parts = Parts::new([Part::new("student", params)]);
        let method = Dlb { student, last: DlbMemory::new(), said: None, settings: *self };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(parts, method)))])
    }
}

struct Dlb {
    student: Arc<dyn Network>,
    last: DlbMemory,
    /// What the next step needs of the one that is under way.
    said: Option<DlbBatch>,
    settings: DlbSettings,
}

impl Dlb {
    fn pass(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.student.forward(images, Mode::Train, Taps::default())?.logits)
    }
}

impl Method for Dlb {
    /// The first views of this batch and the second ones of the last batch pass one after the other, each with its own
    /// batch statistics, and both move the running ones.
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let (batch, labels) = (step.batch, step.batch.labels()?);
        let logits = self.pass(&batch.images)?;
        let terms = match self.last.batch() {
            Some(last) => {
                // A loaded state lies on the host.
                let again = self.pass(&last.images.to_device(batch.images.device())?)?;
                dlb(&logits, labels, Some((&again, last)), &self.settings)?
            }
            None => dlb(&logits, labels, None, &self.settings)?,
        };
        let images = second_view(batch, DlbSettings::INFO.id)?.clone();
        self.said = Some(DlbBatch { images, labels: labels.clone(), logits: logits.detach() });
        Ok(StepOutput { terms, logits: Some(logits) })
    }

    fn after_step(&mut self) -> Result<()> {
        match self.said.take() {
            Some(DlbBatch { images, labels, logits }) => Ok(self.last.update(&images, &labels, &logits)?),
            None => Ok(()),
        }
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.as_ref(), None)]
    }

    fn memory(&self) -> Result<Tensors> {
        Ok(self.last.state()?)
    }

    fn load_memory(&mut self, memory: &Tensors) -> Result<()> {
        Ok(self.last.load_state(memory)?)
    }
}
