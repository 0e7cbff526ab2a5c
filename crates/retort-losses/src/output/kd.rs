//! Softened class distributions.

use crate::config::{self, Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Result, ops};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// Knowledge distillation (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).
///
/// With `p = softmax(z / T)` the loss is `T^2 / B * sum_b KL(p_t || p_s)`: a mean over samples, a sum over classes.
/// Everything between the logits and the result is f64, and a probability that underflows contributes 0.
///
/// # Shapes
///
/// `student`, `teacher`: logits `[B, C]`; `temperature` finite and > 0. Returns a scalar.
///
/// # Gradients
///
/// `(T / B) (p_s - p_t)` into `student`; `teacher` is detached.
///
/// # Errors
///
/// Two shapes that differ, an empty batch, a temperature out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let z = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu)?;
/// let loss = retort_losses::output::kd(&z, &z, 4.0)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn kd(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    check::temperature("kd", temperature)?;
    let (_, _, teacher) = ops::logit_pair("kd", student, teacher)?;
    let divergence = retort_kernels::softmax_divergence(student, &teacher, temperature)?;
    Ok((divergence * (temperature * temperature))?)
}

/// Hyper-parameters of knowledge distillation; the published partner is cross-entropy with weight 0.1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KdConfig {
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for KdConfig {
    fn default() -> Self {
        Self { temperature: 4.0, weight: 0.9 }
    }
}

impl Method for KdConfig {
    const INFO: MethodInfo = MethodInfo {
        id: "kd",
        title: "Knowledge distillation",
        family: Family::Output,
        paper: Some("Distilling the Knowledge in a Neural Network"),
        year: Some(2015),
        arxiv: Some("1503.02531"),
        inputs: Inputs { logits: Side::Both, ..Inputs::NONE },
        trainable: &[],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: Some(0.1),
        weight: 0.9,
        code_bases: config::BOTH,
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::temperature(Self::INFO.id, self.temperature)
    }
    fn needs(&self) -> Needs {
        Needs::TEACHER
    }
    fn teacher_temperature(&self) -> Option<f64> {
        Some(self.temperature)
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        ctx.same_classes(Self::INFO.id)?;
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for KdConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let teacher = ctx.teacher(Self::INFO.id)?;
        let value = kd(&ctx.student.logits, &teacher.logits, self.temperature)?;
        Ok(Term { name: Self::INFO.id, weight: self.weight, value, parts: Vec::new() })
    }
}
