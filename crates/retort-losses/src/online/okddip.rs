//! Peers that learn from mixtures of each other, and a leader that learns from all.

use super::RampedSettings;
use super::terms::{Heads, check_all, check_like, imitate_shifted, mean_of, sum_of};
use crate::{Error, Result, Term, ops};
use candle_core::Tensor;

const METHOD: &str = "okddip";

/// What each peer of [`okddip`] learns from: `sum_j A_ij z_j`, P times `[B, C]`.
///
/// # Shapes
///
/// `logits`: P times `[B, C]`, `attention`: `[B, P, P]`, row i the shares of peer i's teachers.
///
/// # Gradients
///
/// Into logits and attention.
///
/// # Errors
///
/// No logits, several shapes or types, an attention of another shape.
pub fn okddip_targets(logits: &[Tensor], attention: &Tensor) -> Result<Vec<Tensor>> {
    check_all(METHOD, "logits of peer", logits)?;
    let ((b, _), p) = (ops::logits(METHOD, "logits of peer 0", &logits[0])?, logits.len());
    if attention.dims() != [b, p, p] {
        let (what, expected) = ("attention".to_string(), format!("[{b}, {p}, {p}]"));
        return Err(Error::Shape { method: METHOD, what, expected, found: attention.dims().to_vec() });
    }
    let attention = attention.to_dtype(logits[0].dtype())?;
    let mixed = attention.contiguous()?.matmul(&Tensor::stack(logits, 1)?)?;
    (0..p).map(|i| Ok(mixed.narrow(1, i, 1)?.squeeze(1)?)).collect()
}

/// Online distillation with diverse peers, OKDDip (Chen, Mei, Wang, Feng and Chen 2020, arXiv 1912.00350).
///
/// Terms: `ce`, the cross-entropies of P peers and of the group's leader, and `okddip` with the weight `ramp`, `sum_i
/// KL(target_i -> z_i) + KL(mean_j z_j -> leader)`, where target i is the mixture of all peers' logits by the attention
/// (see [`okddip_targets`]). `KL` is `KD_T` with `q + 1e-7` for the target's probabilities, both as weights and in the
/// logarithm, as in the code, and so is not 0 for equal logits.
///
/// No target is a constant, the leader's included: the attention's projections learn through the targets alone.
/// The leader is the network to deploy.
///
/// # Shapes
///
/// `logits`: P times `[B, C]`, `attention`: `[B, P, P]`, `leader`: `[B, C]`, `labels`: class indices (u32 or i64)
/// `[B]`; `ramp >= 0`, see [`RampedSettings::ramp`].
///
/// # Gradients
///
/// Into everything but the labels.
///
/// # Errors
///
/// No logits, several shapes or types, labels that do not fit, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::online::{RampedSettings, okddip};
/// let z = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let even = Tensor::new(&[[[0.5f32, 0.5], [0.5, 0.5]]], &Device::Cpu)?;
/// let (labels, settings) = (Tensor::new(&[0u32], &Device::Cpu)?, RampedSettings::default());
/// let terms = okddip(&[z.clone(), z.clone()], &even, &z, &labels, &settings, 1.0)?;
/// assert!(terms[1].value.to_scalar::<f32>()?.abs() < 1e-5);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn okddip(
    logits: &[Tensor],
    attention: &Tensor,
    leader: &Tensor,
    labels: &Tensor,
    settings: &RampedSettings,
    ramp: f64,
) -> Result<Vec<Term>> {
    settings.check(METHOD, ramp)?;
    let peers = Heads::new(METHOD, "peer", logits, labels)?;
    check_like(METHOD, "logits of the leader", leader, &logits[0])?;
    let mut parts = Vec::new();
    for (k, (z, target)) in logits.iter().zip(okddip_targets(logits, attention)?).enumerate() {
        parts.push((peers.name(k), imitate_shifted(z, &target, settings.temperature)?));
    }
    parts.push(("leader".to_string(), imitate_shifted(leader, &mean_of(logits)?, settings.temperature)?));
    Ok(vec![peers.task(1.0, &[("leader", leader)])?, sum_of(METHOD, ramp, parts, leader)?])
}
