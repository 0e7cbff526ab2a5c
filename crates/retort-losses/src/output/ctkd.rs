//! Softened class distributions whose temperature is learned against the student.

use super::dkd::{DkdLoss, Targets, WARMUP_EPOCHS};
use crate::config::{Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Error, Result, ops, reduce};
use candle_core::{DType, Tensor};
use retort_nn::{Head, HeadLayer, Init, Mode};
use serde::{Deserialize, Serialize};

const GLOBAL: &str = "ctkd";
const INSTANCE: &str = "ctkd-instance";

/// The learned temperature of CTKD: `T = t_start + t_end sigmoid(theta)` (Li et al. 2023, arXiv 2211.16231).
///
/// The gradient is multiplied by `lambda` on its way into `theta`: with `lambda < 0` an optimiser that makes the loss
/// small for the student makes it large for the temperature. See [`Curriculum`] for `lambda`.
///
/// # Shapes
///
/// `theta` of any shape; `t_start` and `t_end` finite and > 0. Returns temperatures of the same shape, in
/// `t_start .. t_start + t_end`.
///
/// # Gradients
///
/// `lambda t_end sigmoid(theta) (1 - sigmoid(theta))` into `theta`; 0 and not absent for `lambda = 0`.
///
/// # Errors
///
/// A number out of range, integers.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let theta = Tensor::new(&[0f32], &Device::Cpu)?;
/// let temperature = retort_losses::output::learned_temperature(&theta, 1.0, 20.0, -1.0)?;
/// assert_eq!(temperature.to_vec1::<f32>()?, [11.0]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn learned_temperature(theta: &Tensor, t_start: f64, t_end: f64, lambda: f64) -> Result<Tensor> {
    check::positive(GLOBAL, "t_start", t_start)?;
    check::positive(GLOBAL, "t_end", t_end)?;
    check::coefficient(GLOBAL, "lambda", lambda)?;
    ops::float(GLOBAL, "theta", theta)?;
    let theta = ops::stop_grad_scale(theta, lambda)?;
    let share = candle_nn::ops::sigmoid(&theta.to_dtype(DType::F64)?)?;
    Ok(share.affine(t_end, t_start)?.to_dtype(theta.dtype())?)
}

/// Knowledge distillation at a temperature that is a tensor (CTKD, global; Li et al. 2023, arXiv 2211.16231).
///
/// `T^2 / B * sum_b KL(softmax(z_t / T) || softmax(z_s / T))`, the loss of [`kd`](fn@super::kd), with a gradient for `T`: the factor
/// `T^2` and the teacher's distribution are differentiated, too. See [`learned_temperature`] for the tensor.
/// The derivative by `T` is a difference of nearly equal sums, so all of it is f64.
///
/// # Shapes
///
/// `student`, `teacher`: logits `[B, C]`; `temperature`: one number > 0, `[]` or `[1]`. Returns a scalar.
///
/// # Gradients
///
/// Into `student` and `temperature`; `teacher` is detached.
///
/// # Errors
///
/// Two shapes that differ, an empty batch, a temperature that is not one number > 0.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let z = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu)?;
/// let temperature = Tensor::new(&[4f32], &Device::Cpu)?;
/// let loss = retort_losses::output::ctkd(&z, &z, &temperature)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn ctkd(student: &Tensor, teacher: &Tensor, temperature: &Tensor) -> Result<Tensor> {
    let (b, _, teacher) = ops::logit_pair(GLOBAL, student, teacher)?;
    let t = temperatures(GLOBAL, temperature, 1)?;
    let (log_s, log_t) = (ops::log_softmax(&softened(student, &t)?)?, ops::log_softmax(&softened(&teacher, &t)?)?);
    batch_mean(&divergence(&log_t, &log_s)?, &t, b, student)
}

/// Decoupled knowledge distillation at a temperature that is a tensor (CTKD with DKD; Li et al. 2023, arXiv 2211.16231).
///
/// The two parts of [`dkd`](fn@super::dkd), both with the factor `T^2 / B` and with a gradient for `T`.
/// The wrong classes are gathered, not masked: a masked probability of 0 would give `0 * ln 0` in the gradient of `T`.
///
/// # Shapes
///
/// As for [`ctkd`]; `labels`: class indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into `student` and `temperature`; `teacher` is detached.
///
/// # Errors
///
/// As for [`ctkd`]; one class, labels that are no class indices.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let z = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu)?;
/// let (labels, temperature) = (Tensor::new(&[2u32], &Device::Cpu)?, Tensor::new(&[4f32], &Device::Cpu)?);
/// let loss = retort_losses::output::ctkd_dkd(&z, &z, &labels, &temperature)?.combine(1.0, 2.0)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn ctkd_dkd(student: &Tensor, teacher: &Tensor, labels: &Tensor, temperature: &Tensor) -> Result<DkdLoss> {
    let (b, _, teacher) = ops::logit_pair(GLOBAL, student, teacher)?;
    let t = temperatures(GLOBAL, temperature, 1)?;
    let targets = Targets::new(GLOBAL, labels, student)?;
    let (h_s, wrong_s) = targets.split(&softened(student, &t)?)?;
    let (h_t, wrong_t) = targets.split(&softened(&teacher, &t)?)?;
    let target = divergence(&log_binary(&h_t)?, &log_binary(&h_s)?)?;
    let others = divergence(&ops::log_softmax(&wrong_t)?, &ops::log_softmax(&wrong_s)?)?;
    Ok(DkdLoss { tckd: batch_mean(&target, &t, b, student)?, nckd: batch_mean(&others, &t, b, student)? })
}

/// Knowledge distillation at a temperature of each sample's own (CTKD, instance-wise; Li et al. 2023, arXiv 2211.16231,
/// formula of the code's README).
///
/// `1 / B * sum_b T_b^2 sum_c q_bc (ln q_bc - ln p_bc)` with `p = softmax(z_s / T_b)` and `q = softmax(z_t / T_b) + eps`: the
/// shifted `q` is weight and logarithm, so that the sum is no exact divergence and not 0 for equal logits.
/// All of it is f64.
///
/// # Shapes
///
/// `student`, `teacher`: logits `[B, C]`; `temperature`: `[B]`, all > 0; `eps >= 0`. Returns a scalar.
///
/// # Gradients
///
/// Into `student` and `temperature`; `teacher` is detached.
///
/// # Errors
///
/// Two shapes that differ, an empty batch, temperatures that are not B numbers > 0, `eps` out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let z = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu)?;
/// let temperature = Tensor::new(&[4f32], &Device::Cpu)?;
/// let loss = retort_losses::output::ctkd_instance(&z, &z, &temperature, 0.0)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn ctkd_instance(student: &Tensor, teacher: &Tensor, temperature: &Tensor, eps: f64) -> Result<Tensor> {
    check::non_negative(INSTANCE, "eps", eps)?;
    let (b, _, teacher) = ops::logit_pair(INSTANCE, student, teacher)?;
    let t = temperatures(INSTANCE, temperature, b)?;
    let (log_s, log_t) = (ops::log_softmax(&softened(student, &t)?)?, ops::log_softmax(&softened(&teacher, &t)?)?);
    let q = (log_t.exp()? + eps)?;
    // Without the shift a probability of 0 has a finite logarithm only there.
    let log_q = if eps > 0.0 { q.log()? } else { log_t };
    let rows = (q * (log_q - log_s)?)?.broadcast_mul(&t.sqr()?)?;
    Ok((reduce::sum_all(&rows)? / b as f64)?.to_dtype(student.dtype())?)
}

/// `n` temperatures in f64, a column `[n, 1]`. NaN is left to whoever looks at the value.
fn temperatures(method: &'static str, temperature: &Tensor, n: usize) -> Result<Tensor> {
    ops::float(method, "temperature", temperature)?;
    if temperature.elem_count() != n || temperature.rank() > 1 {
        let (what, expected) = ("temperature".into(), if n == 1 { "[1]".into() } else { format!("[{n}]") });
        return Err(Error::Shape { method, what, expected, found: temperature.dims().to_vec() });
    }
    if let Some(found) = reduce::wide(temperature)?.into_iter().find(|&t| t <= 0.0 || t.is_infinite()) {
        let (expected, found) = ("finite numbers > 0".into(), found.to_string());
        return Err(Error::Config { method, field: "temperature", expected, found });
    }
    Ok(temperature.to_dtype(DType::F64)?.reshape((n, 1))?)
}

/// `z / T` in f64.
fn softened(z: &Tensor, t: &Tensor) -> Result<Tensor> {
    Ok(z.to_dtype(DType::F64)?.broadcast_div(t)?)
}

/// `[ln p_y, ln(1 - p_y)]` `[B, 2]` from the log-odds `h` of the label.
fn log_binary(h: &Tensor) -> Result<Tensor> {
    Ok(Tensor::stack(&[reduce::softplus(&h.neg()?)?, reduce::softplus(h)?], 1)?.neg()?)
}

/// `q (ln q - ln p)`, whose sum over a row is its divergence.
fn divergence(log_q: &Tensor, log_p: &Tensor) -> Result<Tensor> {
    Ok((log_q.exp()? * (log_q - log_p)?)?)
}

/// `T^2 / B` times the sum of all entries, in the type of `like`.
fn batch_mean(entries: &Tensor, t: &Tensor, b: usize, like: &Tensor) -> Result<Tensor> {
    let scaled = (reduce::sum_all(entries)? * t.sqr()?.reshape(())?)?;
    Ok((scaled / b as f64)?.to_dtype(like.dtype())?)
}

/// How the coefficient of the reversed gradient goes from `max` to `min`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CurriculumKind {
    /// `min + (max - min) / 2 (1 + cos(pi min(e, E) / E))`.
    #[default]
    Cosine,
    /// `-min(e, E - 1) (max - min) / E`, as the reference computes it: it starts at 0 whatever `max` is, and stays one step
    /// short of `min - max`.
    Linear,
}

/// The coefficient that the temperature's gradient is multiplied by, epoch by epoch: easy at first, harder later.
///
/// Negative numbers reverse the gradient; the minus sign is part of the coefficient.
///
/// ```
/// use retort_losses::output::Curriculum;
/// let curriculum = Curriculum::default();
/// assert!((curriculum.factor(1) + 0.024_471_74).abs() < 1e-8);
/// assert_eq!(curriculum.factor(10), -1.0);
/// assert_eq!(curriculum.factor(200), -1.0);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Curriculum {
    /// The curve.
    pub kind: CurriculumKind,
    /// Where it ends, at most `max`.
    pub min: f64,
    /// Where it begins, before the first epoch.
    pub max: f64,
    /// Epochs E that it takes, at least 1; the published one is 10 on CIFAR-100 and 5 on ImageNet.
    pub epochs: usize,
}

impl Default for Curriculum {
    fn default() -> Self {
        Self { kind: CurriculumKind::Cosine, min: -1.0, max: 0.0, epochs: 10 }
    }
}

impl Curriculum {
    /// The coefficient of an epoch counted from 1.
    #[must_use]
    pub fn factor(&self, epoch: usize) -> f64 {
        let (length, range) = (self.epochs.max(1), self.max - self.min);
        match self.kind {
            CurriculumKind::Cosine => {
                let angle = std::f64::consts::PI * epoch.min(length) as f64 / length as f64;
                self.min + range / 2.0 * (1.0 + angle.cos())
            }
            CurriculumKind::Linear => -(epoch.min(length - 1) as f64) * range / length as f64,
        }
    }

    fn validate(&self, method: &'static str) -> Result<()> {
        check::coefficient(method, "curriculum.max", self.max)?;
        check::coefficient(method, "curriculum.min", self.min)?;
        if self.min > self.max {
            let expected = format!("at most `curriculum.max` = {}", self.max);
            let found = self.min.to_string();
            return Err(Error::Config { method, field: "curriculum.min", expected, found });
        }
        check::count(method, "curriculum.epochs", self.epochs)
    }
}

/// The range of temperatures must be one that `kd` takes.
fn check_temperatures(method: &'static str, t_start: f64, t_end: f64) -> Result<()> {
    check::temperature_field(method, "t_start", t_start)?;
    if t_end > 0.0 && t_start + t_end <= 1e3 {
        return Ok(());
    }
    let expected = format!("a number > 0 and at most 1000 - `t_start` = {}", 1e3 - t_start);
    Err(Error::Config { method, field: "t_end", expected, found: t_end.to_string() })
}

/// What the learned temperature softens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CtkdLoss {
    /// The loss of [`kd`](fn@super::kd).
    #[default]
    #[serde(deserialize_with = "retort_nn::no_fields")]
    Kd,
    /// The loss of [`dkd`](fn@super::dkd); its published partner is cross-entropy with weight 1, and `weight` is 1.
    Dkd {
        /// Weight of the target-class part.
        #[serde(default = "alpha")]
        alpha: f64,
        /// Weight of the non-target-class part; 2 in the published runs on CIFAR-100.
        #[serde(default = "beta")]
        beta: f64,
        /// The term's weight rises linearly over these epochs, as in [`DkdConfig`](super::DkdConfig).
        #[serde(default = "warmup_epochs")]
        warmup_epochs: usize,
    },
}

fn alpha() -> f64 {
    1.0
}

fn beta() -> f64 {
    2.0
}

fn warmup_epochs() -> usize {
    WARMUP_EPOCHS
}

/// Hyper-parameters of distillation at one temperature that is learned against the student (CTKD, global).
///
/// The parameter `theta` is one of the student's optimiser, with its momentum and weight decay, which pulls the
/// temperature towards the middle of its range. The published partner is cross-entropy with weight 0.1.
/// Beside another method (PKT, SP, VID, CRD, SRRL in the paper) it stays as it is, and that method adds its own term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CtkdConfig {
    /// What the temperature softens.
    pub loss: CtkdLoss,
    /// Lower end of the temperatures, > 0.
    pub t_start: f64,
    /// Length of their range, > 0.
    pub t_end: f64,
    /// How strong the reversed gradient is in each epoch.
    pub curriculum: Curriculum,
    /// Where the parameter starts, in `-30 ..= 30`: beyond it the sigmoid has no slope.
    pub theta: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for CtkdConfig {
    fn default() -> Self {
        let (loss, curriculum) = (CtkdLoss::Kd, Curriculum::default());
        Self { loss, t_start: 1.0, t_end: 20.0, curriculum, theta: 1.0, weight: 0.9 }
    }
}

impl Method for CtkdConfig {
    const INFO: MethodInfo = MethodInfo {
        id: GLOBAL,
        title: "Curriculum temperature",
        family: Family::Output,
        paper: Some("Curriculum Temperature for Knowledge Distillation"),
        year: Some(2023),
        arxiv: Some("2211.16231"),
        inputs: Inputs { logits: Side::Both, ..Inputs::NONE },
        trainable: &["parameter of the temperature, by a reversed gradient"],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: Some(0.1),
        weight: 0.9,
        code_bases: &["zhengli97/CTKD"],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check_temperatures(GLOBAL, self.t_start, self.t_end)?;
        check::logit(GLOBAL, "theta", self.theta)?;
        self.curriculum.validate(GLOBAL)?;
        if let CtkdLoss::Dkd { alpha, beta, .. } = self.loss {
            check::non_negative(GLOBAL, "loss.alpha", alpha)?;
            check::non_negative(GLOBAL, "loss.beta", beta)?;
        }
        Ok(())
    }
    fn needs(&self) -> Needs {
        Needs { labels: self.loss != CtkdLoss::Kd, ..Needs::TEACHER }
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        ctx.same_classes(GLOBAL)?;
        let theta = ctx.scope.weight("theta", &[1], Init::Constant(self.theta))?;
        Ok(Box::new(Ctkd { config: self.clone(), theta }))
    }
}

struct Ctkd {
    config: CtkdConfig,
    theta: Tensor,
}

impl Distiller for Ctkd {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let CtkdConfig { loss, t_start, t_end, ref curriculum, weight, .. } = self.config;
        let (student, teacher) = (&ctx.student.logits, &ctx.teacher(GLOBAL)?.logits);
        let lambda = curriculum.factor(ctx.epoch.saturating_add(1));
        let temperature = learned_temperature(&self.theta, t_start, t_end, lambda)?;
        // A copy: the optimiser's step moves the variable before the log is read.
        let theta = self.theta.copy()?.detach().reshape(())?;
        let mut parts = named([("temperature", temperature.detach().reshape(())?), ("theta", theta)]);
        let (value, ramp) = match loss {
            CtkdLoss::Kd => (ctkd(student, teacher, &temperature)?, 1.0),
            CtkdLoss::Dkd { alpha, beta, warmup_epochs } => {
                let loss = ctkd_dkd(student, teacher, ctx.labels, &temperature)?;
                let value = loss.combine(alpha, beta)?;
                parts.extend(named([("tckd", loss.tckd), ("nckd", loss.nckd)]));
                (value, ctx.ramp(warmup_epochs))
            }
        };
        Ok(Term { name: GLOBAL, weight: weight * ramp, value, parts })
    }
}

fn named<const N: usize>(parts: [(&str, Tensor); N]) -> Vec<(String, Tensor)> {
    parts.map(|(name, tensor)| (name.to_string(), tensor)).into()
}

/// Hyper-parameters of distillation at a temperature of each sample's own, learned against the student (CTKD,
/// instance-wise).
///
/// The temperature comes from the logits of both networks through a linear layer to `hidden`, ReLU and a linear layer to
/// one number, which takes the place of `theta` in [`learned_temperature`]. The released code does not hold this network:
/// its form is ours. It reads the logits as constants, so that the student is taught by the divergence alone and
/// not by steering its temperature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CtkdInstanceConfig {
    /// Width of the hidden layer.
    pub hidden: usize,
    /// Lower end of the temperatures, > 0.
    pub t_start: f64,
    /// Length of their range, > 0.
    pub t_end: f64,
    /// How strong the reversed gradient is in each epoch.
    pub curriculum: Curriculum,
    /// Added to the teacher's probabilities, >= 0.
    pub eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for CtkdInstanceConfig {
    fn default() -> Self {
        Self { hidden: 64, t_start: 1.0, t_end: 20.0, curriculum: Curriculum::default(), eps: 1e-7, weight: 0.9 }
    }
}

impl Method for CtkdInstanceConfig {
    const INFO: MethodInfo = MethodInfo {
        id: INSTANCE,
        title: "Curriculum temperature of each sample",
        trainable: &["network from both networks' logits to the temperature, by a reversed gradient"],
        ..CtkdConfig::INFO
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::width(INSTANCE, "hidden", self.hidden)?;
        check_temperatures(INSTANCE, self.t_start, self.t_end)?;
        self.curriculum.validate(INSTANCE)?;
        check::non_negative(INSTANCE, "eps", self.eps)
    }
    fn needs(&self) -> Needs {
        Needs::TEACHER
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        ctx.same_classes(INSTANCE)?;
        let layers = [HeadLayer::Linear(self.hidden), HeadLayer::Relu, HeadLayer::Linear(1)];
        let inputs = ctx.student.classes.saturating_mul(2);
        let head = Head::new(INSTANCE, inputs, &layers, &ctx.scope.child("mlp"))?;
        Ok(Box::new(CtkdInstance { config: self.clone(), head }))
    }
}

struct CtkdInstance {
    config: CtkdInstanceConfig,
    head: Head,
}

impl Distiller for CtkdInstance {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let CtkdInstanceConfig { t_start, t_end, ref curriculum, eps, weight, .. } = self.config;
        let student = &ctx.student.logits;
        let (_, _, teacher) = ops::logit_pair(INSTANCE, student, &ctx.teacher(INSTANCE)?.logits)?;
        let lambda = curriculum.factor(ctx.epoch.saturating_add(1));
        let theta = self.head.forward(&Tensor::cat(&[&teacher, &student.detach()], 1)?, Mode::Train)?.squeeze(1)?;
        let temperature = learned_temperature(&theta, t_start, t_end, lambda)?;
        let value = ctkd_instance(student, &teacher, &temperature, eps)?;
        let logged = temperature.detach();
        let (mean, min, max) = (logged.mean_all()?, logged.min_all()?, logged.max_all()?);
        let theta = theta.detach().mean_all()?;
        let parts =
            named([("temperature", mean), ("temperature_min", min), ("temperature_max", max), ("theta", theta)]);
        Ok(Term { name: INSTANCE, weight, value, parts })
    }
}
