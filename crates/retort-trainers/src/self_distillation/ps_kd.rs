//! A network learns from what it said about the same images an epoch ago.

use super::{check_labels, check_range};
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use candle_core::Tensor;
use retort_losses::self_distillation::{PsKdMemory, ps_kd_alpha};
use retort_nn::{Mode, Network, Taps, Tensors};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Labels that are softened by the network's own earlier predictions (Kim et al. 2021, arXiv 2006.12000); see
/// [`PsKdMemory`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PsKdConfig {
    /// Share of the earlier prediction in the last epoch, in `0 ..= 1`; it grows linearly until then.
    pub alpha: f64,
}

impl Default for PsKdConfig {
    fn default() -> Self {
        Self { alpha: 0.8 }
    }
}

impl System for PsKdConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "ps-kd",
        title: "Progressive self-knowledge distillation",
        paper: Some("Self-Knowledge Distillation with Progressive Refinement of Targets"),
        year: Some(2021),
        arxiv: Some("2006.12000"),
        state: &["last prediction for every training row"],
        code_bases: &["lgcnsai/PS-KD-Pytorch"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        check_range((0.0..=1.0).contains(&self.alpha), Self::INFO.id, "alpha", "in 0 ..= 1", self.alpha)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let (student, params) = ctx.network(ctx.student, "student")?;
        let memory = PsKdMemory::new(ctx.train.labels(), ctx.model.classes)?;
        let parts = Parts::new([Part::new("student", params)]);
        let method = PsKd { student, memory, epochs: ctx.recipe.epochs, said: None, alpha: self.alpha };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(parts, method)))])
    }
}

struct PsKd {
    student: Arc<dyn Network>,
    memory: PsKdMemory,
    epochs: usize,
    /// Logits and rows of the step that is under way.
    said: Option<(Tensor, Vec<u32>)>,
    alpha: f64,
}

impl Method for PsKd {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let batch = step.batch;
        let logits = self.student.forward(&batch.images, Mode::Train, Taps::default())?.logits;
        let alpha = ps_kd_alpha(self.alpha, step.epoch, self.epochs)?;
        let term = self.memory.term(&logits, batch.labels()?, &batch.index, step.epoch, alpha)?;
        self.said = Some((logits.detach(), batch.index.clone()));
        Ok(StepOutput { terms: vec![term], logits: Some(logits) })
    }

    fn after_step(&mut self) -> Result<()> {
        match self.said.take() {
            Some((logits, index)) => Ok(self.memory.update(&logits, &index)?),
            None => Ok(()),
        }
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.as_ref(), None)]
    }

    fn memory(&self) -> Result<Tensors> {
        Ok(self.memory.state()?)
    }

    fn load_memory(&mut self, memory: &Tensors) -> Result<()> {
        Ok(self.memory.load_state(memory)?)
    }
}
