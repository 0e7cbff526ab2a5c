//! Two views of the same images.

use crate::config::check;
use crate::online::terms::{Heads, imitate, narrow, sum_of, term, wide};
use crate::{Error, Result, Term, ops, reduce};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

const METHOD: &str = "ddgsd";

/// Hyper-parameters of [`ddgsd`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DdgsdSettings {
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// Weight of the difference of the embeddings, >= 0.
    pub feature_weight: f64,
}

impl Default for DdgsdSettings {
    fn default() -> Self {
        Self { temperature: 4.0, feature_weight: 5e-4 }
    }
}

impl DdgsdSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::temperature(METHOD, self.temperature)?;
        check::non_negative(METHOD, "feature_weight", self.feature_weight)
    }
}

/// Data-distortion guided self-distillation, DDGSD (Xu and Liu 2019, "Data-Distortion Guided Self-Distillation for Deep
/// Neural Networks", AAAI), as winycg/Self-KD-Lib has it.
///
/// The rows are the first views of B images and then the second views of the same, from one forward pass. Terms: `ce`
/// over the 2B rows with the weight 1/2; `ddgsd`, `KD_T(z_1 <- z_2) + KD_T(z_2 <- z_1)`; `ddgsd-feature` with
/// [`DdgsdSettings::feature_weight`], `(mean(e_1) - mean(e_2))^2`, where `mean` is one number over batch and width (in
/// the paper a discrepancy of the two laws).
///
/// # Shapes
///
/// `logits`: `[2B, C]`, `embedding`: `[2B, D]`, `labels`: class indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into logits and embedding; targets of `KD` are constants.
///
/// # Errors
///
/// An odd number of rows, shapes or labels that do not fit, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{DdgsdSettings, ddgsd};
/// let z = Tensor::new(&[[1f32, 2.0], [1.0, 2.0]], &Device::Cpu)?;
/// let terms = ddgsd(&z, &z, &Tensor::new(&[0u32], &Device::Cpu)?, &DdgsdSettings::default())?;
/// assert_eq!((terms[1].value.to_scalar::<f32>()?, terms[2].value.to_scalar::<f32>()?), (0.0, 0.0));
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn ddgsd(logits: &Tensor, embedding: &Tensor, labels: &Tensor, settings: &DdgsdSettings) -> Result<Vec<Term>> {
    settings.validate()?;
    let (first, second) = halves(METHOD, "logits", logits)?;
    let (e1, e2) = halves(METHOD, "embedding", embedding)?;
    if e1.dims()[0] != first.dims()[0] {
        return Err(ops::mismatch(METHOD, "logits and embedding need as many rows", logits, embedding));
    }
    let views = [first, second];
    let heads = Heads::new(METHOD, "view", &views, labels)?;
    let mut task = heads.task(0.5, &[])?;
    // The mean over 2B rows.
    task.value = (task.value * 0.5)?;
    task.parts.clear();
    let [first, second] = &views;
    let parts = vec![
        ("1<-2".to_string(), imitate(first, second, settings.temperature)?),
        ("2<-1".to_string(), imitate(second, first, settings.temperature)?),
    ];
    let feature = (reduce::mean_all(&wide(&e1)?)? - reduce::mean_all(&wide(&e2)?)?)?.sqr()?;
    Ok(vec![
        task,
        sum_of(METHOD, 1.0, parts, logits)?,
        term("ddgsd-feature", settings.feature_weight, narrow(&feature, embedding)?),
    ])
}

/// The rows `0 .. B` and `B .. 2B` of `[2B, ..]`.
pub(super) fn halves(method: &'static str, what: &str, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let rows = ops::samples(method, what, x)?;
    if !rows.is_multiple_of(2) {
        let expected = "two rows for each image".to_string();
        return Err(Error::Shape { method, what: what.to_string(), expected, found: x.dims().to_vec() });
    }
    Ok((x.narrow(0, 0, rows / 2)?, x.narrow(0, rows / 2, rows / 2)?))
}
