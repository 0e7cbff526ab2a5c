//! Contrastive representation distillation as a method: heads, sampler and memory.

use super::negatives::check_percent;
use super::{AliasTable, CrdMemory, CrdStep, MemoryConfig, NegativeSampler, NegativesBy, PositiveMode};
use crate::config::{self, Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Error, Result, ops};
use retort_nn::{Linear, Seed, Tensors};
use serde::{Deserialize, Serialize};

const METHOD: &str = "crd";

/// Hyper-parameters of contrastive representation distillation (Tian, Krishnan and Isola 2020, arXiv 1910.10699).
///
/// It reads the embeddings through two trained linear heads `embed_s` and `embed_t`; see
/// [`CrdMemory`](crate::contrastive::CrdMemory) for the loss and
/// [`NegativeSampler`](crate::contrastive::NegativeSampler) for the negatives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrdConfig {
    /// Negatives K per sample.
    pub negatives: usize,
    /// Width of the heads and of the banks.
    pub dim: usize,
    /// Divisor of the scores, > 0.
    pub temperature: f64,
    /// Share of the old row that stays in an update of the banks, in `0 ..= 1`.
    pub momentum: f64,
    /// Which row is a sample's positive; a random one of the class needs negatives of other classes.
    pub mode: PositiveMode,
    /// Which rows the negatives are drawn from; only `class` reads labels.
    pub negatives_by: NegativesBy,
    /// Share of the other classes' samples that a class keeps as its negatives, fixed at the start, `0 < percent <= 1`.
    pub percent: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for CrdConfig {
    fn default() -> Self {
        let memory = MemoryConfig::default();
        Self {
            negatives: 16_384,
            dim: 128,
            temperature: memory.temperature,
            momentum: memory.momentum,
            mode: PositiveMode::Exact,
            negatives_by: NegativesBy::Class,
            percent: 1.0,
            weight: 0.8,
        }
    }
}

impl CrdConfig {
    /// What is said about classes must fit the negatives.
    fn check_classes(&self) -> Result<()> {
        let wrong = |field: &'static str, expected: &str, found: String| {
            let expected = format!("{expected} unless `negatives_by` is `class`");
            Err(Error::Config { method: METHOD, field, expected, found })
        };
        match (self.negatives_by, self.mode) {
            (NegativesBy::Class, _) => Ok(()),
            (_, PositiveMode::Relax) => wrong("mode", "`exact`", "`relax`".into()),
            _ if self.percent != 1.0 => wrong("percent", "1", self.percent.to_string()),
            _ => Ok(()),
        }
    }

    fn sampler(&self, labels: &[u32], seed: Seed) -> Result<NegativeSampler> {
        match self.negatives_by {
            NegativesBy::Class => {
                NegativeSampler::new(labels, self.negatives, self.mode, seed)?.with_percent(self.percent)
            }
            NegativesBy::Instance => NegativeSampler::by_instance(labels.len(), self.negatives, seed),
            NegativesBy::Any => NegativeSampler::from_table(AliasTable::uniform(labels.len())?, self.negatives, seed),
        }
    }
}

impl Method for CrdConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Contrastive representation distillation",
        family: Family::Contrastive,
        paper: Some("Contrastive Representation Distillation"),
        year: Some(2020),
        arxiv: Some("1910.10699"),
        inputs: Inputs { embedding: Side::Both, labels: true, index: true, ..Inputs::NONE },
        trainable: &["linear head of the student", "linear head of the teacher"],
        phase: None,
        state: &["memory bank of the student", "memory bank of the teacher", "two normalisers"],
        buffers: &[],
        ce_weight: Some(1.0),
        weight: 0.8,
        code_bases: config::BOTH,
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::count(METHOD, "negatives", self.negatives)?;
        check::width(METHOD, "dim", self.dim)?;
        check::positive(METHOD, "temperature", self.temperature)?;
        check::unit(METHOD, "momentum", self.momentum)?;
        check_percent(self.percent)?;
        self.check_classes()
    }
    fn needs(&self) -> Needs {
        Needs { labels: self.negatives_by == NegativesBy::Class, index: true, ..Needs::TEACHER }
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let teacher = ctx.teacher(METHOD)?;
        let sampler = self.sampler(ctx.train_labels, ctx.seed.child("negatives"))?;
        let memory = MemoryConfig { temperature: self.temperature, momentum: self.momentum, ..Default::default() };
        let (seed, scope) = (ctx.seed.child("banks"), &ctx.scope);
        let memory = CrdMemory::init(sampler.rows(), self.dim, memory, seed, scope.dtype(), scope.device())?;
        let embed_s = Linear::new(&scope.child("embed_s"), ctx.student.embedding, self.dim)?;
        let embed_t = Linear::new(&scope.child("embed_t"), teacher.embedding, self.dim)?;
        Ok(Box::new(Crd { weight: self.weight, sampler, memory, embed_s, embed_t, pending: None }))
    }
}

struct Crd {
    weight: f64,
    sampler: NegativeSampler,
    memory: CrdMemory,
    embed_s: Linear,
    embed_t: Linear,
    /// Embeddings and rows of the last batch, on their way into the banks.
    pending: Option<(CrdStep, Vec<u32>)>,
}

impl Distiller for Crd {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let (s, t) = ops::rows(METHOD, &ctx.student.embedding, &ctx.teacher(METHOD)?.embedding)?;
        if ctx.index.len() != s.dims()[0] {
            let message =
                format!("expected the row of each of {} samples, found {} rows", s.dims()[0], ctx.index.len());
            return Err(Error::Undefined { method: METHOD, message });
        }
        let contrast = self.sampler.draw(ctx.epoch, ctx.index)?;
        let step = self.memory.step(&self.embed_s.forward(&s)?, &self.embed_t.forward(&t)?, &contrast)?;
        let parts = vec![("student".to_string(), step.loss_s.clone()), ("teacher".to_string(), step.loss_t.clone())];
        let term = Term { name: METHOD, weight: self.weight, value: step.loss.clone(), parts };
        // The graph of the step must not outlive it.
        self.pending = Some((step.detached(), ctx.index.to_vec()));
        Ok(term)
    }

    fn after_step(&mut self) -> Result<()> {
        match self.pending.take() {
            Some((step, index)) => self.memory.update(&step, &index),
            None => Ok(()),
        }
    }

    fn state(&self) -> Result<Tensors> {
        self.memory.state()
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        self.memory.load_state(state)?;
        self.pending = None;
        Ok(())
    }
}
