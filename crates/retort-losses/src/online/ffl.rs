//! Networks and the classifier on their fused maps teach each other.

use super::RampedSettings;
use super::terms::{Heads, check_like, imitate_shifted, mean_of, sum_of};
use crate::{Result, Term};
use candle_core::Tensor;

/// Feature fusion learning, FFL (Kim, Hyun, Chung and Kwak 2019, arXiv 1904.09058); MFEF (Zou et al. 2022, arXiv
/// 2206.08224), of which there is a reconstruction only, is given the same form.
///
/// With the logits `z_k` of K networks and `z_f` of the fused classifier the terms are `ce`, `sum_k CE(z_k, y) +
/// CE(z_f, y)`, and `ffl` with the weight `ramp`, `sum_k KD_T(z_k <- z_f) + KD_T(z_f <- mean_k z_k)`. Targets are
/// constants; as in the code their probabilities are `q + 1e-7`, both as weights and in the logarithm, so that the term
/// is not 0 for equal logits.
///
/// # Shapes
///
/// `logits`: K times `[B, C]`, `fused`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`; `ramp >= 0`, see
/// [`RampedSettings::ramp`].
///
/// # Gradients
///
/// Into all logits.
///
/// # Errors
///
/// No logits, several shapes or types, labels that do not fit, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::online::{RampedSettings, ffl};
/// let z = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let (labels, settings) = (Tensor::new(&[0u32], &Device::Cpu)?, RampedSettings::default());
/// let terms = ffl(&[z.clone(), z.clone()], &z, &labels, &settings, 1.0)?;
/// assert!(terms[1].value.to_scalar::<f32>()?.abs() < 1e-5);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn ffl(
    logits: &[Tensor],
    fused: &Tensor,
    labels: &Tensor,
    settings: &RampedSettings,
    ramp: f64,
) -> Result<Vec<Term>> {
    const METHOD: &str = "ffl";
    settings.check(METHOD, ramp)?;
    let peers = Heads::new(METHOD, "peer", logits, labels)?;
    check_like(METHOD, "logits of the fused classifier", fused, &logits[0])?;
    let (target, mut parts) = (fused.detach(), Vec::new());
    for (k, z) in logits.iter().enumerate() {
        parts.push((peers.name(k), imitate_shifted(z, &target, settings.temperature)?));
    }
    let mean = mean_of(logits)?.detach();
    parts.push(("fused".to_string(), imitate_shifted(fused, &mean, settings.temperature)?));
    Ok(vec![peers.task(1.0, &[("fused", fused)])?, sum_of(METHOD, ramp, parts, fused)?])
}
