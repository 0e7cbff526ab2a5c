//! Samples of one class predict alike.

use crate::config::check;
use crate::online::terms::{Heads, check_like, imitate, term};
use crate::{Result, Term};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

const METHOD: &str = "cs-kd";

/// Hyper-parameters of [`cs_kd`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CsKdSettings {
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// Weight of the imitation, >= 0; 1 on CIFAR-100, 3 on fine-grained sets.
    pub weight: f64,
}

impl Default for CsKdSettings {
    fn default() -> Self {
        Self { temperature: 4.0, weight: 1.0 }
    }
}

impl CsKdSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::temperature(METHOD, self.temperature)?;
        check::non_negative(METHOD, "weight", self.weight)
    }
}

/// Class-wise self-distillation, CS-KD (Yun, Park, Lee and Shin 2020, arXiv 2003.13964).
///
/// Terms: `ce` of the anchors, and `cs-kd`, `KD_T(z <- z')`, with the logits `z'` of a random partner of the same
/// class. Anchors and partners go through the network apart, in training mode both, the partners without gradient.
///
/// # Shapes
///
/// `anchors`, `partners`: `[B, C]`, row by row of one class; `labels`: class indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into the anchors' logits; partners are constants.
///
/// # Errors
///
/// Two shapes or types that differ, labels that do not fit, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{CsKdSettings, cs_kd};
/// let z = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let terms = cs_kd(&z, &z, &Tensor::new(&[0u32], &Device::Cpu)?, &CsKdSettings::default())?;
/// assert_eq!(terms[1].value.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn cs_kd(anchors: &Tensor, partners: &Tensor, labels: &Tensor, settings: &CsKdSettings) -> Result<Vec<Term>> {
    settings.validate()?;
    let heads = Heads::one(METHOD, anchors, labels)?;
    check_like(METHOD, "logits of the partners", partners, anchors)?;
    let value = imitate(anchors, partners, settings.temperature)?;
    Ok(vec![heads.task(1.0, &[])?, term(METHOD, settings.weight, value)])
}
