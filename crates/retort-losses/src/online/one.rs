//! Branches that learn from their gated ensemble.

use super::RampedSettings;
use super::terms::Heads;
use crate::{Result, Term};
use candle_core::Tensor;

/// The native ensemble on the fly, ONE (Lan, Zhu and Gong 2018, arXiv 1806.04606).
///
/// With the gated logits `m = sum_k g_k z_k` of K branches, the terms are `ce`, `sum_k CE(z_k, y) + CE(m, y)`, and
/// `one`, `sum_k KD_T(z_k <- m)`, with the weight `ramp`. The gate is a part of the network and learns by `CE(m, y)`
/// alone: `m` is a constant in the imitation (the public reimplementation does not say).
///
/// # Shapes
///
/// `logits`: K times `[B, C]`, `gated`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`; `ramp >= 0`, see
/// [`RampedSettings::ramp`].
///
/// # Gradients
///
/// Into the branches' logits, and through `CE(m, y)` into the gated ones.
///
/// # Errors
///
/// No logits, several shapes or types, labels that do not fit, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::online::{RampedSettings, one};
/// let z = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let (labels, settings) = (Tensor::new(&[0u32], &Device::Cpu)?, RampedSettings::default());
/// let terms = one(&[z.clone(), z.clone()], &z, &labels, &settings, settings.ramp(0))?;
/// assert_eq!(terms[0].parts.len(), 3);
/// assert_eq!(terms[1].value.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn one(
    logits: &[Tensor],
    gated: &Tensor,
    labels: &Tensor,
    settings: &RampedSettings,
    ramp: f64,
) -> Result<Vec<Term>> {
    const METHOD: &str = "one";
    settings.check(METHOD, ramp)?;
    let branches = Heads::new(METHOD, "branch", logits, labels)?;
    let task = branches.task(1.0, &[("gated", gated)])?;
    Ok(vec![task, branches.imitate(ramp, settings.temperature, |_| Ok(gated.clone()))?])
}
