//! Cross-entropy with a penalty on confident predictions.

use crate::config::{self, Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::online::terms::{Heads, narrow, term, wide};
use crate::{Result, ops, reduce};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

const METHOD: &str = "max-entropy";

/// Confidence penalty (Pereyra et al. 2017, arXiv 1701.06548; in this form winycg/Self-KD-Lib).
///
/// Terms: `ce`, and `max-entropy` with `weight`, `1 / (B C) sum_b sum_c p_bc ln p_bc` of `p = softmax(z)`, the negative
/// entropy. As in the code it is a mean over classes, too: per sample the entropy has the weight `weight / C`.
///
/// # Shapes
///
/// `logits`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`; `weight >= 0`, 0.5 in the code.
///
/// # Gradients
///
/// Into the logits, summed in f64; finite for every finite input.
///
/// # Errors
///
/// Other shapes, an empty batch, labels that are no class indices or not below C, a weight out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let logits = Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?;
/// let terms = retort_losses::self_distillation::max_entropy(&logits, &Tensor::new(&[1u32], &Device::Cpu)?, 0.5)?;
/// assert!((terms[1].value.to_scalar::<f32>()? + std::f32::consts::LN_2 / 2.0).abs() < 1e-7);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn max_entropy(logits: &Tensor, labels: &Tensor, weight: f64) -> Result<Vec<Term>> {
    check::non_negative(METHOD, "weight", weight)?;
    let task = Heads::one(METHOD, logits, labels)?.task(1.0, &[])?;
    let log_p = ops::log_softmax(&wide(logits)?)?;
    let value = reduce::mean_all(&(log_p.exp()? * log_p)?)?;
    Ok(vec![task, term(METHOD, weight, narrow(&value, logits)?)])
}

/// Hyper-parameters of the confidence penalty, cross-entropy included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaxEntropyConfig {
    /// Weight of the negative entropy beside the cross-entropy, >= 0.
    pub entropy: f64,
    /// Weight of both together.
    pub weight: f64,
}

impl Default for MaxEntropyConfig {
    fn default() -> Self {
        Self { entropy: 0.5, weight: 1.0 }
    }
}

impl Method for MaxEntropyConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Confidence penalty",
        family: Family::Output,
        paper: Some("Regularizing Neural Networks by Penalizing Confident Output Distributions"),
        year: Some(2017),
        arxiv: Some("1701.06548"),
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
        check::non_negative(METHOD, "entropy", self.entropy)
    }
    fn needs(&self) -> Needs {
        Needs { teacher: false, labels: true, ..Needs::TEACHER }
    }
    fn build(&self, _: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for MaxEntropyConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let terms = max_entropy(&ctx.student.logits, ctx.labels, self.entropy)?;
        super::target::as_one(METHOD, self.weight, &terms)
    }
}
