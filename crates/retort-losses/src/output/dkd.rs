//! Target and non-target parts of the softened distributions, weighted apart.

use crate::config::{self, ExtraPhase, Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Error, Result, ops, reduce};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

pub(super) const WARMUP_EPOCHS: usize = 20;

/// The two parts of decoupled knowledge distillation, each with the factor `T^2 / B`.
#[derive(Clone, Debug)]
pub struct DkdLoss {
    /// Target-class part, a scalar.
    pub tckd: Tensor,
    /// Non-target-class part, a scalar.
    pub nckd: Tensor,
}

impl DkdLoss {
    /// `alpha * TCKD + beta * NCKD`.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn combine(&self, alpha: f64, beta: f64) -> Result<Tensor> {
        Ok(((&self.tckd * alpha)? + (&self.nckd * beta)?)?)
    }
}

/// Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679).
///
/// With `p = softmax(z / T)`, `b = [p_y, 1 - p_y]` and `q` the softmax over the classes other than `y`:
/// `TCKD = T^2 / B * sum KL(b_t || b_s)`, `NCKD = T^2 / B * sum KL(q_t || q_s)`.
///
/// The wrong classes are gathered, not masked, and with `h = z_y / T - ln sum_{c != y} exp(z_c / T)` the binary part
/// is written as `ln p_y = -softplus(-h)`, `ln(1 - p_y) = -softplus(h)`: nothing saturates.
/// With two classes NCKD is 0 and has no gradient.
///
/// # Shapes
///
/// `student`, `teacher`: logits `[B, C]`, `labels`: class indices (u32 or i64) `[B]`; `temperature` finite and > 0.
///
/// # Gradients
///
/// Into `student`; `teacher` is detached.
///
/// # Errors
///
/// Shapes that differ, an empty batch, one class, labels that are no class indices, a temperature out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let z = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu)?;
/// let labels = Tensor::new(&[2u32], &Device::Cpu)?;
/// let loss = retort_losses::output::dkd(&z, &z, &labels, 4.0)?.combine(1.0, 8.0)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn dkd(student: &Tensor, teacher: &Tensor, labels: &Tensor, temperature: f64) -> Result<DkdLoss> {
    const METHOD: &str = "dkd";
    check::temperature(METHOD, temperature)?;
    let (b, _, teacher) = ops::logit_pair(METHOD, student, teacher)?;
    let targets = Targets::new(METHOD, labels, student)?;
    let (h_s, wrong_s) = targets.split(&(student / temperature)?)?;
    let (h_t, wrong_t) = targets.split(&(&teacher / temperature)?)?;

    // KL(b_t || b_s) = p_t (ln p_t - ln p_s) + (1 - p_t) (ln(1 - p_t) - ln(1 - p_s)).
    let (minus_s, minus_t) = (h_s.neg()?, h_t.neg()?);
    let right = (reduce::sigmoid(&h_t)? * (reduce::softplus(&minus_s)? - reduce::softplus(&minus_t)?)?)?;
    let wrong = (reduce::sigmoid(&minus_t)? * (reduce::softplus(&h_s)? - reduce::softplus(&h_t)?)?)?;
    let scale = temperature * temperature / b as f64;
    let tckd = (reduce::sum_all(&(right + wrong)?)? * scale)?;

    let (log_s, log_t) = (ops::log_softmax(&wrong_s)?, ops::log_softmax(&wrong_t)?);
    let nckd = (reduce::sum_all(&(log_t.exp()? * (log_t - log_s)?)?)? * scale)?;
    Ok(DkdLoss { tckd, nckd })
}

/// Which logits belong to the label and which to the other classes.
pub(super) struct Targets {
    ids: Vec<u32>,
    /// `[B, C - 1]`.
    others: Tensor,
}

impl Targets {
    pub(super) fn new(method: &'static str, labels: &Tensor, logits: &Tensor) -> Result<Self> {
        let (b, c) = logits.dims2()?;
        if c < 2 {
            let message = "needs at least two classes, found one: there is no wrong class".into();
            return Err(Error::Undefined { method, message });
        }
        let ids = ops::class_ids(method, labels, b, c)?;
        let others: Vec<u32> = ids.iter().flat_map(|&y| (0..c as u32).filter(move |&class| class != y)).collect();
        let others = Tensor::from_vec(others, (b, c - 1), logits.device())?;
        Ok(Self { ids, others })
    }

    /// `h` `[B]` and the logits of the wrong classes `[B, C - 1]`; `z` has been divided by the temperature.
    pub(super) fn split(&self, z: &Tensor) -> Result<(Tensor, Tensor)> {
        let wrong = z.contiguous()?.gather(&self.others, 1)?;
        let h = (ops::pick(z, &self.ids)? - ops::log_sum_exp(&wrong)?.squeeze(1)?)?;
        Ok((h, wrong))
    }
}

/// Hyper-parameters of decoupled knowledge distillation.
///
/// The published `beta` differs from pair to pair on CIFAR-100: 2 for resnet56 to resnet20 and resnet110 to resnet32,
/// 6 for the wide residual networks, vgg13 to vgg8 and vgg13 to MobileNetV2, 8 for the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DkdConfig {
    /// Weight of the target-class part.
    pub alpha: f64,
    /// Weight of the non-target-class part.
    pub beta: f64,
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// The term's weight rises linearly over these epochs, `min((epoch + 1) / warmup_epochs, 1)`; 0 is no ramp.
    pub warmup_epochs: usize,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for DkdConfig {
    fn default() -> Self {
        Self { alpha: 1.0, beta: 8.0, temperature: 4.0, warmup_epochs: WARMUP_EPOCHS, weight: 1.0 }
    }
}

impl Method for DkdConfig {
    const INFO: MethodInfo = MethodInfo {
        id: "dkd",
        title: "Decoupled knowledge distillation",
        family: Family::Output,
        paper: Some("Decoupled Knowledge Distillation"),
        year: Some(2022),
        arxiv: Some("2203.08679"),
        inputs: Inputs { logits: Side::Both, labels: true, ..Inputs::NONE },
        trainable: &[],
        phase: Some(ExtraPhase::Ramp(WARMUP_EPOCHS)),
        state: &[],
        buffers: &[],
        ce_weight: Some(1.0),
        weight: 1.0,
        code_bases: &[config::MDISTILLER],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::non_negative(Self::INFO.id, "alpha", self.alpha)?;
        check::non_negative(Self::INFO.id, "beta", self.beta)?;
        check::temperature(Self::INFO.id, self.temperature)
    }
    fn needs(&self) -> Needs {
        Needs { labels: true, ..Needs::TEACHER }
    }
    fn teacher_temperature(&self) -> Option<f64> {
        Some(self.temperature)
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        ctx.same_classes(Self::INFO.id)?;
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for DkdConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let teacher = ctx.teacher(Self::INFO.id)?;
        let loss = dkd(&ctx.student.logits, &teacher.logits, ctx.labels, self.temperature)?;
        let value = loss.combine(self.alpha, self.beta)?;
        let parts = vec![("tckd".to_string(), loss.tckd), ("nckd".to_string(), loss.nckd)];
        Ok(Term { name: Self::INFO.id, weight: self.weight * ctx.ramp(self.warmup_epochs), value, parts })
    }
}
