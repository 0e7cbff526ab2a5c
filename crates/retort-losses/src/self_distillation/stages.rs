//! Stage maps of one network, among themselves and against those of a self-teacher.

use crate::config::check;
use crate::online::terms::{Heads, check_like, imitate, narrow, sum_of, term, wide};
use crate::{Error, Result, Term, ops, reduce};
use candle_core::Tensor;
use retort_kernels::{channel_power_mean, resize_bilinear2d};
use serde::{Deserialize, Serialize};

/// Hyper-parameters of [`sad`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SadSettings {
    /// Power of the activations, >= 1.
    pub power: f64,
    /// Weight of the attention's difference, >= 0.
    pub weight: f64,
}

impl Default for SadSettings {
    fn default() -> Self {
        Self { power: 2.0, weight: 1000.0 }
    }
}

impl SadSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::exponent("sad", "power", self.power)?;
        check::non_negative("sad", "weight", self.weight)
    }
}

/// Self-attention distillation, SAD (Hou, Ma, Liu and Loy 2019, arXiv 1908.00821).
///
/// With the attention `a(f) = softmax over the locations of mean_c |f|^p` the terms are `ce`, and `sad`, `sum_s
/// mean((a(f_s) - a(up(f_{s+1})))^2)`, a mean over batch and locations: every stage learns where the next one looks.
/// `up` enlarges the deeper map twice by bilinear interpolation (half-pixel centres) before its attention is taken.
///
/// # Shapes
///
/// `maps`: shallow to deep, `[B, C_s, H_s, W_s]`, each exactly half as large as the one before; `logits`: `[B, C]`,
/// `labels`: class indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into the logits and all maps but the deepest; the deeper map of a pair is a constant.
///
/// # Errors
///
/// Fewer than two maps, maps that are not halved, shapes or labels that do not fit, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{SadSettings, sad};
/// let f = Tensor::new(&[[[[1f32, 1.0], [1.0, 1.0]]]], &Device::Cpu)?;
/// let g = Tensor::new(&[[[[5f32]]]], &Device::Cpu)?;
/// let (z, labels) = (Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?, Tensor::new(&[0u32], &Device::Cpu)?);
/// let terms = sad(&z, &[f, g], &labels, &SadSettings::default())?;
/// assert_eq!(terms[1].value.to_scalar::<f32>()?, 0.0); // both look everywhere alike
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn sad(logits: &Tensor, maps: &[Tensor], labels: &Tensor, settings: &SadSettings) -> Result<Vec<Term>> {
    const METHOD: &str = "sad";
    settings.validate()?;
    let heads = Heads::one(METHOD, logits, labels)?;
    check_maps(METHOD, "map", maps, logits)?;
    if maps.len() < 2 {
        let message = format!("expected at least two maps, found {}", maps.len());
        return Err(Error::Undefined { method: METHOD, message });
    }
    let attention = |map: &Tensor| -> Result<Tensor> {
        Ok(ops::log_softmax(&wide(&channel_power_mean(map, settings.power)?)?)?.exp()?)
    };
    let mut parts = Vec::new();
    for (s, pair) in maps.windows(2).enumerate() {
        let ([h, w], [small_h, small_w]) = (size(&pair[0]), size(&pair[1]));
        if [h, w] != [2 * small_h, 2 * small_w] {
            let message =
                format!("map {} must be half as large as map {s}, found {h}x{w} and {small_h}x{small_w}", s + 1);
            return Err(Error::Undefined { method: METHOD, message });
        }
        let deeper = attention(&resize_bilinear2d(&pair[1].detach(), [h, w])?)?;
        let value = reduce::mean_squared_error(&attention(&pair[0])?, &deeper)?;
        parts.push((format!("stage{s}"), narrow(&value, logits)?));
    }
    Ok(vec![heads.task(1.0, &[])?, sum_of(METHOD, settings.weight, parts, logits)?])
}

/// Height and width.
fn size(map: &Tensor) -> [usize; 2] {
    [map.dims()[2], map.dims()[3]]
}

/// Refuses anything but maps `[B, C, H, W]` with the batch size and type of `logits`.
fn check_maps(method: &'static str, what: &str, maps: &[Tensor], logits: &Tensor) -> Result<()> {
    for (s, map) in maps.iter().enumerate() {
        let b = logits.dims()[0];
        if map.rank() != 4 || map.dims()[0] != b || map.elem_count() == 0 || map.dtype() != logits.dtype() {
            let (what, found) = (format!("{what} {s} of type {:?}", map.dtype()), map.dims().to_vec());
            let expected = format!("[{b}, C, H, W] of type {:?}", logits.dtype());
            return Err(Error::Shape { method, what, expected, found });
        }
    }
    Ok(())
}

/// Hyper-parameters of [`frskd`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FrskdSettings {
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// Weight of the imitation of class scores, >= 0.
    pub alpha: f64,
    /// Weight of the attention's difference, >= 0.
    pub beta: f64,
    /// Whether the self-teacher's class scores are a constant in the imitation; not so in winycg/Self-KD-Lib.
    pub detach_teacher: bool,
}

impl Default for FrskdSettings {
    fn default() -> Self {
        Self { temperature: 4.0, alpha: 2.0, beta: 100.0, detach_teacher: true }
    }
}

impl FrskdSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::temperature("frskd", self.temperature)?;
        check::non_negative("frskd", "alpha", self.alpha)?;
        check::non_negative("frskd", "beta", self.beta)
    }
}

/// Feature refinement via self-knowledge distillation, FRSKD (Ji, Shin, Hwang, Park and Moon 2021, arXiv 2103.08273),
/// its attention variant.
///
/// A pyramid over the stage maps `f_s` gives refined maps `g_s` and class scores `z'` of a self-teacher. With `n(f)`,
/// the channel mean of `f^2`, flattened and of length 1 for each sample, the terms are `ce`, `CE(z, y) + CE(z', y)`;
/// `frskd` with [`FrskdSettings::alpha`], `KD_T(z <- z')`; `frskd-feature` with [`FrskdSettings::beta`], `sum_s
/// mean((n(f_s) - n(g_s))^2)`, a mean over batch and locations.
///
/// The published code reads the refined maps after their ReLU, the library before it: hand over what you mean.
///
/// # Shapes
///
/// `logits`, `teacher_logits`: `[B, C]`; `maps[s]`: `[B, C_s, H_s, W_s]`, `refined[s]`: `[B, C'_s, H_s, W_s]`;
/// `labels`: class indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into logits and maps; into the self-teacher's logits by its cross-entropy (and, if asked, through the imitation).
/// Refined maps are constants. A map of zeros has the constant attention 0.
///
/// # Errors
///
/// Lists of different lengths or empty ones, shapes, types or labels that do not fit, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{FrskdSettings, frskd};
/// let (f, z) = (Tensor::new(&[[[[1f32, 2.0]]]], &Device::Cpu)?, Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?);
/// let (g, labels) = ((&f * 3.0)?, Tensor::new(&[0u32], &Device::Cpu)?);
/// let terms = frskd([&z, &z], &[f], &[g], &labels, &FrskdSettings::default())?;
/// assert_eq!(terms[1].value.to_scalar::<f32>()?, 0.0);
/// assert!(terms[2].value.to_scalar::<f32>()? < 1e-12);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn frskd(
    [logits, teacher_logits]: [&Tensor; 2],
    maps: &[Tensor],
    refined: &[Tensor],
    labels: &Tensor,
    settings: &FrskdSettings,
) -> Result<Vec<Term>> {
    const METHOD: &str = "frskd";
    settings.validate()?;
    let heads = Heads::one(METHOD, logits, labels)?;
    check_like(METHOD, "logits of the self-teacher", teacher_logits, logits)?;
    check_maps(METHOD, "map", maps, logits)?;
    check_maps(METHOD, "refined map", refined, logits)?;
    if maps.len() != refined.len() || maps.is_empty() {
        let message =
            format!("expected as many maps as refined maps, at least one, found {} and {}", maps.len(), refined.len());
        return Err(Error::Undefined { method: METHOD, message });
    }
    let attention = |map: &Tensor| ops::guarded_normalize(&channel_power_mean(map, 2.0)?, 1e-12);
    let mut parts = Vec::new();
    for (s, (map, refined)) in maps.iter().zip(refined).enumerate() {
        if size(map) != size(refined) {
            let what = format!("stage {s}: maps must have one height and width");
            return Err(ops::mismatch(METHOD, what, map, refined));
        }
        let value = reduce::mean_squared_error(&attention(map)?, &attention(&refined.detach())?)?;
        parts.push((format!("stage{s}"), value));
    }
    let imitation = match settings.detach_teacher {
        true => imitate(logits, teacher_logits, settings.temperature)?,
        false => divergence(logits, teacher_logits, settings.temperature)?,
    };
    Ok(vec![
        heads.task(1.0, &[("self-teacher", teacher_logits)])?,
        term(METHOD, settings.alpha, imitation),
        sum_of("frskd-feature", settings.beta, parts, logits)?,
    ])
}

/// `KD_T` whose gradient reaches both sides.
fn divergence(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let log = |z: &Tensor| -> Result<Tensor> { ops::log_softmax(&(wide(z)? / temperature)?) };
    let (log_p, log_q) = (log(student)?, log(teacher)?);
    let sum = reduce::sum_all(&(log_q.exp()? * (log_q - log_p)?)?)?;
    narrow(&(sum * (temperature * temperature / student.dims()[0] as f64))?, student)
}
