//! Neighbour distributions within a batch.

use crate::config::{self, Family, Inputs, Method, MethodInfo, Side};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Result, ops, reduce};
use candle_core::{DType, Device, Tensor};
use retort_kernels::{gram, weighted_sums, with_gradient};
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
/// For opposite samples `K` is of the size of the rounding of f32, so everything after the input is f64.
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
    let (b, teacher) = ops::batches(METHOD, student, teacher)?;
    let neighbours = |x: &Tensor| Neighbours::new(&gram(&x.detach().to_dtype(DType::F64)?)?, eps);
    let (s, t) = rayon::join(|| neighbours(student), || neighbours(&teacher));
    let (s, t) = (s?, t?);
    let value = s.divergence(&t, eps);
    if !student.track_op() {
        return reduce::constant(value, student);
    }
    let slope = Tensor::from_vec(s.slope(&t, eps), (b, b), &Device::Cpu)?.to_dtype(student.dtype())?;
    let gradient = weighted_sums(&slope.to_device(student.device())?, &student.detach())?;
    Ok(with_gradient(value, student, &gradient)?)
}

/// The neighbour distributions of a batch, all matrices `[B, B]`.
struct Neighbours {
    b: usize,
    /// Inner products of the samples.
    gram: Vec<f64>,
    /// Norms of the samples and `1 / (norm + eps)`; both 0 for a zero sample.
    norm: Vec<f64>,
    inverse: Vec<f64>,
    /// Sums of the rows of the kernel.
    total: Vec<f64>,
    /// The rows of the kernel, divided by their sums.
    p: Vec<f64>,
}

impl Neighbours {
    fn new(gram: &Tensor, eps: f64) -> Result<Self> {
        let (b, gram) = (gram.dims()[0], reduce::wide(gram)?);
        // Written so that NaN passes.
        let guarded = |square: f64, value: f64| if square <= 0.0 { 0.0 } else { value };
        let norm: Vec<f64> = (0..b).map(|i| guarded(gram[i * b + i], gram[i * b + i].sqrt())).collect();
        let inverse: Vec<f64> = (0..b).map(|i| guarded(gram[i * b + i], (norm[i] + eps).recip())).collect();
        let mut p = gram.clone();
        let mut total = Vec::with_capacity(b);
        for (row, own) in p.chunks_exact_mut(b).zip(&inverse) {
            for (p, other) in row.iter_mut().zip(&inverse) {
                let kernel = (*p * own * other + 1.0) * 0.5;
                // Rounding can push the kernel below 0.
                *p = if kernel < 0.0 { 0.0 } else { kernel };
            }
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|p| *p /= sum);
            total.push(sum);
        }
        Ok(Self { b, gram, norm, inverse, total, p })
    }

    /// `mean p_t ln((p_t + eps) / (p_s + eps))`.
    fn divergence(&self, teacher: &Self, eps: f64) -> f64 {
        let terms = self.p.iter().zip(&teacher.p).map(|(s, t)| t * ((t + eps) / (s + eps)).ln());
        terms.sum::<f64>() / (self.b * self.b) as f64
    }

    /// A symmetric matrix W such that `W X` is the gradient with respect to the samples `X`: the derivative with respect
    /// to the inner products, plus its transpose.
    ///
    /// Where rounding has pushed the kernel below 0 the derivative stays that of the kernel.
    fn slope(&self, teacher: &Self, eps: f64) -> Vec<f64> {
        let b = self.b;
        let scale = -1.0 / (b * b) as f64;
        let mut slope = vec![0.0; b * b];
        // Derivatives with respect to the inverse norms.
        let mut pull = vec![0.0; b];
        for i in 0..b {
            let (p, t, gram) = (&self.p[i * b..][..b], &teacher.p[i * b..][..b], &self.gram[i * b..][..b]);
            let by_p: Vec<f64> = p.iter().zip(t).map(|(p, t)| scale * t / (p + eps)).collect();
            let along = reduce::lanes(b, |j| by_p[j] * p[j]);
            for j in 0..b {
                let by_cosine = 0.5 * (by_p[j] - along) / self.total[i];
                pull[i] += by_cosine * gram[j] * self.inverse[j];
                pull[j] += by_cosine * gram[j] * self.inverse[i];
                let by_gram = by_cosine * self.inverse[i] * self.inverse[j];
                slope[i * b + j] += by_gram;
                slope[j * b + i] += by_gram;
            }
        }
        for i in (0..b).filter(|&i| self.norm[i] != 0.0) {
            slope[i * b + i] -= pull[i] * self.inverse[i] * self.inverse[i] / self.norm[i];
        }
        slope
    }
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
        phase: None,
        state: &[],
        buffers: &[],
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
