//! A network that learns from a frozen copy of itself.

use crate::config::check;
use crate::online::terms::{Heads, check_like, imitate, term};
use crate::{Result, Term};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

const METHOD: &str = "tf-kd-self";

/// Hyper-parameters of [`tf_kd_self`]; the defaults are those for a ResNet-18 on CIFAR-100.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TfKdSelfSettings {
    /// Share of the imitation, in `0 ..= 1`; the cross-entropy has the rest.
    pub alpha: f64,
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// Factor of the imitation, >= 0: it is a mean over the classes, too.
    pub multiplier: f64,
}

impl Default for TfKdSelfSettings {
    fn default() -> Self {
        Self { alpha: 0.95, temperature: 6.0, multiplier: 50.0 }
    }
}

impl TfKdSelfSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::unit(METHOD, "alpha", self.alpha)?;
        check::temperature(METHOD, self.temperature)?;
        check::non_negative(METHOD, "multiplier", self.multiplier)
    }
}

/// Teacher-free distillation by self-training (Yuan, Tay, Li, Wang and Feng 2020, arXiv 1909.11723): a fresh network
/// learns from a trained and frozen one of the same architecture.
///
/// Terms: `ce` with the weight `1 - alpha`, and `tf-kd-self` with `alpha multiplier`, `T^2 / (B C) sum_b KL(softmax(t_b
/// / T) || softmax(z_b / T))`. As in the code this is a mean over the classes, too, C times smaller than the usual one.
///
/// # Shapes
///
/// `logits`, `teacher`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into `logits`; `teacher` is detached.
///
/// # Errors
///
/// Two shapes or types that differ, labels that do not fit, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{TfKdSelfSettings, tf_kd_self};
/// let z = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let terms = tf_kd_self(&z, &z, &Tensor::new(&[0u32], &Device::Cpu)?, &TfKdSelfSettings::default())?;
/// assert_eq!((terms[1].weight, terms[1].value.to_scalar::<f32>()?), (47.5, 0.0));
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn tf_kd_self(
    logits: &Tensor,
    teacher: &Tensor,
    labels: &Tensor,
    settings: &TfKdSelfSettings,
) -> Result<Vec<Term>> {
    settings.validate()?;
    let student = Heads::one(METHOD, logits, labels)?;
    check_like(METHOD, "logits of the teacher", teacher, logits)?;
    let value = (imitate(logits, teacher, settings.temperature)? / student.classes() as f64)?;
    let task = student.task(1.0 - settings.alpha, &[])?;
    Ok(vec![task, term(METHOD, settings.alpha * settings.multiplier, value)])
}
