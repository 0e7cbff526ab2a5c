//! Neighbour distributions within a batch.

use crate::config::{self, Family, Inputs, Method, MethodInfo, Side};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Result, ops, reduce};
use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

const METHOD: &str = "pkt";
/// What the reference adds to norms and probabilities.
const EPS: f64 = 1e-7;

/// Probabilistic knowledge transfer (Passalis and Tefas 2018, arXiv 1803.10837).
///
/// With `f = x / (||x|| + eps)`, `K = (f f^T + 1) / 2` and `p` the rows of `K` divided by their sum (diagonal
/// included), the loss is the mean over all B x B entries of `p_t ln((p_t + eps) / (p_s + eps))`;
/// eps is 1e-7 in the reference. It can be slightly negative near 0.
///
/// A zero row stays zero and gets no gradient.
/// For opposite samples `K` is of the size of the rounding of f32, so on the CPU everything after the input is f64.
///
/// # Shapes
///
/// `student`: `[B, ..]`, `teacher`: `[B, ..]`, flattened per sample; trailing dimensions may differ. Returns a scalar.
///
/// # Gradients
///
/// Into `student`; `teacher` is detached.
///
/// # Errors
///
/// Batch sizes that differ, an empty batch, or an `eps` that is not positive.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let f = Tensor::new(&[[1f32, 0.5], [0., 1.]], &Device::Cpu)?;
/// let loss = retort_losses::relational::probabilistic_transfer(&f, &f, 1e-7)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn probabilistic_transfer(student: &Tensor, teacher: &Tensor, eps: f64) -> Result<Tensor> {
    config::check::positive(METHOD, "eps", eps)?;
    let (s, t) = ops::rows(METHOD, student, teacher)?;
    let wide = if s.device().is_cpu() { DType::F64 } else { s.dtype() };
    let p_s = (neighbours(&s.to_dtype(wide)?, eps)? + eps)?;
    let p_t = neighbours(&t.to_dtype(wide)?, eps)?;
    let ratio = ((&p_t + eps)? / p_s)?.log()?;
    Ok(reduce::mean_all(&(p_t * ratio)?)?.to_dtype(s.dtype())?)
}

/// The rows of `(f f^T + 1) / 2`, divided by their sums.
fn neighbours(x: &Tensor, eps: f64) -> Result<Tensor> {
    let square = x.sqr()?.sum_keepdim(1)?;
    let zero = square.le(0.0)?;
    let inverse = (zero.where_cond(&square.ones_like()?, &square)?.sqrt()? + eps)?.recip()?;
    let f = x.broadcast_mul(&zero.where_cond(&square.zeros_like()?, &inverse)?)?;
    let kernel = ((f.matmul(&f.t()?)? + 1.0)? * 0.5)?;
    // Rounding can push the kernel below 0. The correction is a constant, so the gradient stays that of the kernel.
    let plain = kernel.detach();
    let kernel = (kernel + (plain.maximum(0.0)? - &plain)?)?;
    Ok(kernel.broadcast_div(&kernel.sum_keepdim(D::Minus1)?)?)
}

/// Hyper-parameters of probabilistic knowledge transfer; it reads the embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PktConfig {
    /// Weight of the term; large because the loss is a mean over all pairs.
    pub weight: f64,
    /// Added to norms and probabilities, > 0.
    pub eps: f64,
}

impl Default for PktConfig {
    fn default() -> Self {
        Self { weight: 30_000.0, eps: EPS }
    }
}

impl Method for PktConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Probabilistic knowledge transfer",
        family: Family::Relational,
        paper: Some("Learning Deep Representations with Probabilistic Knowledge Transfer"),
        year: Some(2018),
        arxiv: Some("1803.10837"),
        inputs: Inputs { embedding: Side::Both, ..Inputs::NONE },
        trainable: &[],
        state: &[],
        ce_weight: Some(1.0),
        weight: 30_000.0,
        code_bases: config::BOTH,
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        config::check::positive(METHOD, "eps", self.eps)
    }
    fn needs(&self) -> Needs {
        Needs::TEACHER
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        ctx.teacher(METHOD)?;
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for PktConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let value = probabilistic_transfer(&ctx.student.embedding, &ctx.teacher(METHOD)?.embedding, self.eps)?;
        Ok(Term { name: METHOD, weight: self.weight, value, parts: Vec::new() })
    }
}
