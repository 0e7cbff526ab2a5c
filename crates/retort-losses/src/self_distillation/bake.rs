//! Targets that samples of a batch make for each other.

use super::target::divergence;
use crate::config::check;
use crate::online::terms::{Heads, narrow, term, wide};
use crate::{Error, Result, Term, ops};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

const METHOD: &str = "bake";

/// Hyper-parameters of [`bake`]; the defaults are those for CIFAR-100 and CUB with three partners an anchor (omega 0.9
/// and one partner on Tiny-ImageNet, Stanford Dogs and MIT67).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BakeSettings {
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// Share of what the others say, at least 0 and less than 1.
    pub omega: f64,
    /// Weight of the imitation, >= 0.
    pub weight: f64,
}

impl Default for BakeSettings {
    fn default() -> Self {
        Self { temperature: 4.0, omega: 0.5, weight: 1.0 }
    }
}

impl BakeSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::temperature(METHOD, self.temperature)?;
        check::unit(METHOD, "omega", self.omega)?;
        // With all weight on the others nothing is left of what a sample says itself, and the series has no sum.
        check::positive(METHOD, "1 - omega", 1.0 - self.omega)?;
        check::non_negative(METHOD, "weight", self.weight)
    }
}

/// The targets of [`bake`]: `Q = (1 - omega) (I - omega A)^-1 softmax(z / T)`, f64, without history.
///
/// `A` is the row-wise softmax of the cosines between embeddings, a sample's own one left out, without temperature. It
/// is row-stochastic, so that `Q = (1 - omega) sum_i (omega A)^i P`, which doubling sums (`S <- S + M S`, `M <- M M`
/// from `S = P` and `M = omega A`) until what is left is below 1e-15: 6 steps for omega = 0.5, 9 for 0.9. Rows of `Q`
/// sum to 1. A sample that is alone in its batch keeps its own prediction; an embedding of zeros is as near to all
/// others.
///
/// # Shapes
///
/// `embedding`: `[B, D]`, `logits`: `[B, C]`. Returns `[B, C]`.
///
/// # Errors
///
/// Other shapes, an empty batch, a setting out of range.
pub fn bake_targets(embedding: &Tensor, logits: &Tensor, settings: &BakeSettings) -> Result<Tensor> {
    settings.validate()?;
    let (b, _) = ops::logits(METHOD, "logits", logits)?;
    if ops::logits(METHOD, "embedding", embedding)?.0 != b {
        let (what, expected) = ("embedding".to_string(), format!("[{b}, D]"));
        return Err(Error::Shape { method: METHOD, what, expected, found: embedding.dims().to_vec() });
    }
    let mut sum = ops::log_softmax(&(wide(&logits.detach())? / settings.temperature)?)?.exp()?;
    if b == 1 || settings.omega == 0.0 {
        return Ok(sum);
    }
    let e = ops::guarded_normalize(&wide(&embedding.detach())?, 1e-12)?;
    let own: Vec<f64> = (0..b * b).map(|i| if i % (b + 1) == 0 { f64::NEG_INFINITY } else { 0.0 }).collect();
    let own = Tensor::from_vec(own, (b, b), logits.device())?;
    let affinity = ops::log_softmax(&(e.matmul(&e.t()?)? + own)?)?.exp()?;
    let mut step = (affinity * settings.omega)?;
    let mut left = settings.omega;
    while left >= 1e-15 {
        sum = (&sum + step.matmul(&sum)?)?;
        step = step.matmul(&step)?;
        left *= left;
    }
    Ok((sum * (1.0 - settings.omega))?)
}

/// Batch knowledge ensembling, BAKE (Ge et al. 2021, arXiv 2104.13298).
///
/// Terms: `ce`, and `bake`, `T^2 / B sum_b KL(Q_b || softmax(z_b / T))` with the targets of [`bake_targets`]. This is
/// the authors' form; a copy in winycg/Self-KD-Lib takes the softmax of `Q` once more, which makes the targets almost
/// even. The batch holds anchors and other samples of their classes.
///
/// # Shapes
///
/// `embedding`: `[B, D]`, `logits`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into the logits; targets, and with them the embeddings, are constants.
///
/// # Errors
///
/// Shapes or labels that do not fit, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{BakeSettings, bake};
/// let (e, z) = (Tensor::new(&[[1f32], [2.0]], &Device::Cpu)?, Tensor::new(&[[1f32, 2.0], [1.0, 2.0]], &Device::Cpu)?);
/// let terms = bake(&e, &z, &Tensor::new(&[0u32, 1], &Device::Cpu)?, &BakeSettings::default())?;
/// assert!(terms[1].value.to_scalar::<f32>()?.abs() < 1e-6); // both say the same
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn bake(embedding: &Tensor, logits: &Tensor, labels: &Tensor, settings: &BakeSettings) -> Result<Vec<Term>> {
    let targets = bake_targets(embedding, logits, settings)?;
    let heads = Heads::one(METHOD, logits, labels)?;
    let t = settings.temperature;
    let value = (divergence(&wide(logits)?, &targets, t)? * (t * t))?;
    Ok(vec![heads.task(1.0, &[])?, term(METHOD, settings.weight, narrow(&value, logits)?)])
}
