//! Virtual teachers that know the labels alone.

use super::target::{as_one, x_ln_x};
use crate::config::{self, Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::online::terms::{Heads, term};
use crate::{Error, Result};
use candle_core::Tensor;
use retort_kernels::softmax_cross_entropy;
use serde::{Deserialize, Serialize};

const REG: &str = "tf-kd-reg";
const LIB: &str = "tf-kd-reg-lib";

/// What both methods have in common.
const INFO: MethodInfo = MethodInfo {
    id: "",
    title: "",
    family: Family::Output,
    paper: Some("Revisiting Knowledge Distillation via Label Smoothing Regularization"),
    year: Some(2020),
    arxiv: Some("1909.11723"),
    inputs: Inputs { logits: Side::Student, labels: true, ..Inputs::NONE },
    trainable: &[],
    phase: None,
    state: &[],
    buffers: &[],
    ce_weight: None,
    weight: 1.0,
    code_bases: &[],
};
const NEEDS: Needs = Needs { teacher: false, labels: true, ..Needs::TEACHER };

/// Teacher-free distillation with a virtual teacher (Yuan, Tay, Li, Wang and Feng 2020, arXiv 1909.11723).
///
/// With `u` the distribution that has `correct_prob` on the label and the rest evenly elsewhere, the terms are `ce`
/// with the weight `1 - alpha`, and `tf-kd-reg` with `alpha multiplier`, `1 / (B C) sum_b KL(q_b || softmax(z_b))`. As
/// in the published code `q = softmax(u / T)`, a softmax of probabilities and nearly even; the student's softmax has no
/// temperature; and the mean is over the classes, too. The configuration's `weight` is not read here.
///
/// # Shapes
///
/// `logits`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into the logits, summed in f64; finite for every finite input.
///
/// # Errors
///
/// Other shapes, an empty batch, labels that are no class indices or not below C, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{TfKdRegConfig, tf_kd_reg};
/// let z = Tensor::new(&[[1f32, 2.0, 0.0]], &Device::Cpu)?;
/// let terms = tf_kd_reg(&z, &Tensor::new(&[1u32], &Device::Cpu)?, &TfKdRegConfig::default())?;
/// assert_eq!((terms[0].weight, terms[1].weight), (0.9, 10.0));
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn tf_kd_reg(logits: &Tensor, labels: &Tensor, settings: &TfKdRegConfig) -> Result<Vec<Term>> {
    settings.validate()?;
    let student = Heads::one(REG, logits, labels)?;
    let (c, u, t) = (student.classes(), settings.correct_prob, settings.temperature);
    let others = (c - 1) as f64;
    let rest = if c == 1 { 0.0 } else { (1.0 - u) / others };
    // Less the larger of both, in case of tiny temperatures.
    let largest = u.max(rest);
    let (own, other) = (((u - largest) / t).exp(), ((rest - largest) / t).exp());
    let sum = own + others * other;
    let (own, other) = (own / sum, other / sum);
    let negative_entropy = x_ln_x(own) + others * x_ln_x(other);
    // `other` on every class, and what is left on the label; with one class everything is left.
    let smoothing = if c == 1 { 0.0 } else { other * c as f64 };
    let cross = softmax_cross_entropy(logits, student.ids(), smoothing)?;
    let value = ((cross + negative_entropy)? / c as f64)?;
    let task = student.task(1.0 - settings.alpha, &[])?;
    Ok(vec![task, term(REG, settings.alpha * settings.multiplier, value)])
}

/// Hyper-parameters of teacher-free distillation with a virtual teacher, cross-entropy included; the defaults are those
/// for a ResNet-18 on CIFAR-100.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TfKdRegConfig {
    /// Share of the virtual teacher, in `0 ..= 1`; the cross-entropy has the rest.
    pub alpha: f64,
    /// Temperature of the virtual teacher, > 0.
    pub temperature: f64,
    /// Factor of the virtual teacher's term, >= 0: it is a mean over the classes, too.
    pub multiplier: f64,
    /// What the virtual teacher gives the label, in `0 ..= 1`.
    pub correct_prob: f64,
    /// Weight of all together.
    pub weight: f64,
}

impl Default for TfKdRegConfig {
    fn default() -> Self {
        Self { alpha: 0.1, temperature: 20.0, multiplier: 100.0, correct_prob: 0.99, weight: 1.0 }
    }
}

impl Method for TfKdRegConfig {
    const INFO: MethodInfo = MethodInfo {
        id: REG,
        title: "Teacher-free distillation, virtual teacher",
        code_bases: &["yuanli2333/Teacher-free-Knowledge-Distillation"],
        ..INFO
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::unit(REG, "alpha", self.alpha)?;
        check::temperature(REG, self.temperature)?;
        check::non_negative(REG, "multiplier", self.multiplier)?;
        check::unit(REG, "correct_prob", self.correct_prob)
    }
    fn needs(&self) -> Needs {
        NEEDS
    }
    fn build(&self, _: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for TfKdRegConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        as_one(REG, self.weight, &tf_kd_reg(&ctx.student.logits, ctx.labels, self)?)
    }
}

/// The virtual teacher as winycg/Self-KD-Lib has it: smoothed labels against a softened softmax.
///
/// Terms: `ce`, and `tf-kd-reg-lib` with the weight `1 / T`, `-(1/B) sum_b sum_c s_bc ln softmax(z_b / T)[c]`, where
/// `s` has `1 - epsilon` on the label and the rest evenly on the other classes: a cross-entropy, no divergence.
///
/// # Shapes
///
/// As for [`tf_kd_reg`].
///
/// # Gradients
///
/// As for [`tf_kd_reg`].
///
/// # Errors
///
/// As for [`tf_kd_reg`], and one class, as there are no others then.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{TfKdRegLibConfig, tf_kd_reg_lib};
/// let z = Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?;
/// let terms = tf_kd_reg_lib(&z, &Tensor::new(&[1u32], &Device::Cpu)?, &TfKdRegLibConfig::default())?;
/// assert_eq!(terms[1].weight, 0.05);
/// assert!((terms[1].value.to_scalar::<f32>()? - std::f32::consts::LN_2).abs() < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn tf_kd_reg_lib(logits: &Tensor, labels: &Tensor, settings: &TfKdRegLibConfig) -> Result<Vec<Term>> {
    settings.validate()?;
    let student = Heads::one(LIB, logits, labels)?;
    let c = student.classes();
    if c == 1 {
        let message = "smoothed labels need at least two classes, found one".into();
        return Err(Error::Undefined { method: LIB, message });
    }
    let smoothing = settings.epsilon * c as f64 / (c - 1) as f64;
    let value = softmax_cross_entropy(&(logits / settings.temperature)?, student.ids(), smoothing)?;
    Ok(vec![student.task(1.0, &[])?, term(LIB, 1.0 / settings.temperature, value)])
}

/// Hyper-parameters of the library's virtual teacher, cross-entropy included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TfKdRegLibConfig {
    /// Mass taken from the label, in `0 ..= 1`.
    pub epsilon: f64,
    /// Temperature of the network's softmax, > 0.
    pub temperature: f64,
    /// Weight of both together.
    pub weight: f64,
}

impl Default for TfKdRegLibConfig {
    fn default() -> Self {
        Self { epsilon: 0.1, temperature: 20.0, weight: 1.0 }
    }
}

impl Method for TfKdRegLibConfig {
    const INFO: MethodInfo = MethodInfo {
        id: LIB,
        title: "Teacher-free distillation, virtual teacher of the library",
        code_bases: &[config::SELF_KD_LIB],
        ..INFO
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::unit(LIB, "epsilon", self.epsilon)?;
        check::temperature(LIB, self.temperature)
    }
    fn needs(&self) -> Needs {
        NEEDS
    }
    fn build(&self, _: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for TfKdRegLibConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        as_one(LIB, self.weight, &tf_kd_reg_lib(&ctx.student.logits, ctx.labels, self)?)
    }
}
