//! Cross-entropy that fades for samples that are right already.

use super::target::wrong_classes;
use crate::config::{self, Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::online::terms::{narrow, wide};
use crate::{Result, ops, reduce};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

const METHOD: &str = "focal";

/// Focal loss of a softmax: `-(1/B) sum_b (1 - p_y)^gamma ln p_y` (Lin et al. 2017, arXiv 1708.02002; in this form the
/// self-distillation library winycg/Self-KD-Lib).
///
/// With `h = z_y - ln sum_{c != y} exp z_c`, `ln p_y = -softplus(-h)` and `ln(1 - p_y) = -softplus(h)`: nothing
/// saturates. `gamma = 0` is cross-entropy. With one class the loss is 0.
///
/// # Shapes
///
/// `logits`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`; `gamma >= 0`. Returns a scalar.
///
/// # Gradients
///
/// Into the logits, summed in f64; finite for every finite input.
///
/// # Errors
///
/// Other shapes, an empty batch, labels that are no class indices or not below C, `gamma` out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let logits = Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?;
/// let loss = retort_losses::self_distillation::focal(&logits, &Tensor::new(&[1u32], &Device::Cpu)?, 2.0)?;
/// assert!((loss.to_scalar::<f32>()? - std::f32::consts::LN_2 / 4.0).abs() < 1e-7);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn focal(logits: &Tensor, labels: &Tensor, gamma: f64) -> Result<Tensor> {
    check::non_negative(METHOD, "gamma", gamma)?;
    let (b, c) = ops::logits(METHOD, "logits", logits)?;
    let ids = ops::class_ids(METHOD, labels, b, c)?;
    if c == 1 {
        return Ok((reduce::sum_all(logits)? * 0.0)?);
    }
    let z = wide(logits)?;
    let wrong = z.contiguous()?.gather(&wrong_classes(&ids, c, z.device())?, 1)?;
    let h = (ops::pick(&z, &ids)? - ops::log_sum_exp(&wrong)?.squeeze(1)?)?;
    let fade = (reduce::softplus(&h)? * -gamma)?.exp()?;
    narrow(&reduce::mean_all(&(fade * reduce::softplus(&h.neg()?)?)?)?, logits)
}

/// Hyper-parameters of the focal loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FocalConfig {
    /// Exponent of the fading, >= 0.
    pub gamma: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for FocalConfig {
    fn default() -> Self {
        Self { gamma: 2.0, weight: 1.0 }
    }
}

impl Method for FocalConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Focal loss",
        family: Family::Output,
        paper: Some("Focal Loss for Dense Object Detection"),
        year: Some(2017),
        arxiv: Some("1708.02002"),
        inputs: Inputs { logits: Side::Student, labels: true, ..Inputs::NONE },
        trainable: &[],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: None,
        weight: 1.0,
        code_bases: &[config::SELF_KD_LIB],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::non_negative(METHOD, "gamma", self.gamma)
    }
    fn needs(&self) -> Needs {
        Needs { teacher: false, labels: true, ..Needs::TEACHER }
    }
    fn build(&self, _: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for FocalConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let value = focal(&ctx.student.logits, ctx.labels, self.gamma)?;
        Ok(Term { name: METHOD, weight: self.weight, value, parts: Vec::new() })
    }
}
