//! Congruence of neighbouring samples' errors.

use crate::config::{self, Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Result, ops, reduce};
use candle_core::Tensor;
use retort_nn::Linear;
use serde::{Deserialize, Serialize};

const METHOD: &str = "cc";

/// Correlation congruence in the reduced form of RepDistiller (Peng et al. 2019, arXiv 1904.01802).
///
/// With `d = |e_s - e_t|` `[B, D]`, the loss is the mean over `b = 0 .. B - 2` of `sum_i d[b, i] d[b + 1, i]`.
/// This is not the kernel matrix of the paper; the order of the samples in the batch matters.
/// A batch of one sample has loss 0.
///
/// # Shapes
///
/// `student`, `teacher`: embeddings `[B, D]` of one shape. Returns a scalar.
///
/// # Gradients
///
/// Into **both**: the teacher's embedding comes from a trained head. Detach the teacher's features before the head.
/// The gradient of `|x|` at 0 is 0.
///
/// # Errors
///
/// Two shapes that differ, or an empty batch.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let s = Tensor::new(&[[1f32, 0.0], [2.0, 5.0]], &Device::Cpu)?;
/// let t = Tensor::zeros((2, 2), candle_core::DType::F32, &Device::Cpu)?;
/// assert_eq!(retort_losses::relational::correlation_congruence(&s, &t)?.to_scalar::<f32>()?, 2.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn correlation_congruence(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    if student.dims() != teacher.dims() || student.rank() != 2 || student.elem_count() == 0 {
        let what = "expected non-empty embeddings [B, D] of one shape";
        return Err(ops::mismatch(METHOD, what, student, teacher));
    }
    let delta = retort_kernels::abs(&(student - teacher)?)?;
    let b = delta.dims()[0];
    if b == 1 {
        // Times zeros rather than a fresh zero: NaN stays NaN, and the heads stay in the graph, from which candle would
        // cut a factor that is a number.
        return reduce::sum_all(&(&delta * delta.zeros_like()?)?);
    }
    let products = (delta.narrow(0, 0, b - 1)? * delta.narrow(0, 1, b - 1)?)?;
    Ok((reduce::sum_all(&products)? * (1.0 / (b - 1) as f64))?)
}

/// Hyper-parameters of correlation congruence; it reads the embeddings through two trained linear heads
/// `embed_s` and `embed_t`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CcConfig {
    /// Width of both heads.
    pub dim: usize,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for CcConfig {
    fn default() -> Self {
        Self { dim: 128, weight: 0.02 }
    }
}

impl Method for CcConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Correlation congruence (reduced form)",
        family: Family::Relational,
        paper: Some("Correlation Congruence for Knowledge Distillation"),
        year: Some(2019),
        arxiv: Some("1904.01802"),
        inputs: Inputs { embedding: Side::Both, ..Inputs::NONE },
        trainable: &["linear head of the student", "linear head of the teacher"],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: Some(1.0),
        weight: 0.02,
        code_bases: &[config::REP_DISTILLER],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::width(METHOD, "dim", self.dim)
    }
    fn needs(&self) -> Needs {
        Needs::TEACHER
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let teacher = ctx.teacher(METHOD)?;
        let embed_s = Linear::new(&ctx.scope.child("embed_s"), ctx.student.embedding, self.dim)?;
        let embed_t = Linear::new(&ctx.scope.child("embed_t"), teacher.embedding, self.dim)?;
        Ok(Box::new(Cc { weight: self.weight, embed_s, embed_t }))
    }
}

struct Cc {
    weight: f64,
    embed_s: Linear,
    embed_t: Linear,
}

impl Distiller for Cc {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let (s, t) = ops::rows(METHOD, &ctx.student.embedding, &ctx.teacher(METHOD)?.embedding)?;
        let (e_s, e_t) = (self.embed_s.forward(&s)?, self.embed_t.forward(&t)?);
        let value = correlation_congruence(&e_s, &e_t)?;
        // Both heads can shrink towards the trivial solution; their norms show it.
        let norm = |e: &Tensor| -> Result<Tensor> { Ok(e.detach().sqr()?.sum(1)?.sqrt()?.mean_all()?) };
        let parts = vec![("norm_s".to_string(), norm(&e_s)?), ("norm_t".to_string(), norm(&e_t)?)];
        Ok(Term { name: METHOD, weight: self.weight, value, parts })
    }
}
