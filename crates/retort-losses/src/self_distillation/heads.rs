//! Auxiliary classifiers on the stages of one network.

use crate::config::check;
use crate::online::terms::{Heads, check_all, imitate, sum_of};
use crate::{Error, Result, Term, reduce};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// Deeply-supervised knowledge synergy, DKS (Sun, Yao, Zhou and Zhao 2019, arXiv 1906.00675).
///
/// Terms: `ce`, the sum over the main head and the auxiliary ones, and `dks`, `sum_{a != b} KD_T(z_a <- z_b)`: every
/// head learns from every other one. T = 4 in winycg/Self-KD-Lib.
///
/// # Shapes
///
/// `logits`: one `[B, C]` for each head, `labels`: class indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into all logits; targets are constants.
///
/// # Errors
///
/// No logits, several shapes or types, labels that do not fit, a temperature out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let z = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let labels = Tensor::new(&[0u32], &Device::Cpu)?;
/// let terms = retort_losses::self_distillation::dks(&[z.clone(), z.clone(), z], &labels, 4.0)?;
/// assert_eq!((terms[0].parts.len(), terms[1].parts.len()), (3, 6));
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn dks(logits: &[Tensor], labels: &Tensor, temperature: f64) -> Result<Vec<Term>> {
    const METHOD: &str = "dks";
    check::temperature(METHOD, temperature)?;
    let heads = Heads::new(METHOD, "head", logits, labels)?;
    Ok(vec![heads.task(1.0, &[])?, heads.mutual(1.0, 1.0, temperature)?])
}

const BYOT: &str = "byot";

/// Hyper-parameters of [`byot`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ByotSettings {
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// Weight of the hint, >= 0.
    pub feature_weight: f64,
}

impl Default for ByotSettings {
    fn default() -> Self {
        Self { temperature: 4.0, feature_weight: 0.05 }
    }
}

impl ByotSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::temperature(BYOT, self.temperature)?;
        check::non_negative(BYOT, "feature_weight", self.feature_weight)
    }
}

/// Be your own teacher, BYOT (Zhang, Song, Gao, Chen, Bao and Ma 2019, arXiv 1905.08094), as winycg/Self-KD-Lib has it.
///
/// The shallow heads learn from the deepest one, number 0. Terms: `ce`, the sum over all heads; `byot`,
/// `sum_{k > 0} KD_T(z_k <- z_0)`; `byot-feature` with [`ByotSettings::feature_weight`], `sum_{k > 0} mean((f_k -
/// f_0)^2)` of the heads' last maps.
///
/// # Shapes
///
/// `logits`: one `[B, C]` for each head, `maps`: one `[B, D, H, W]` for each head, all of one shape; `labels`: class
/// indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into all logits, by the cross-entropy alone into `z_0`; into the maps of the shallow heads. `z_0` and `f_0` are
/// constants as teachers.
///
/// # Errors
///
/// No logits, another number of maps than of logits, several shapes or types, labels that do not fit, a setting out of
/// range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{ByotSettings, byot};
/// let (z, f) = (Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?, Tensor::new(&[[[[1f32]]]], &Device::Cpu)?);
/// let labels = Tensor::new(&[0u32], &Device::Cpu)?;
/// let terms = byot(&[z.clone(), z], &[f.clone(), (f + 2.0)?], &labels, &ByotSettings::default())?;
/// assert_eq!((terms[1].value.to_scalar::<f32>()?, terms[2].value.to_scalar::<f32>()?), (0.0, 4.0));
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn byot(logits: &[Tensor], maps: &[Tensor], labels: &Tensor, settings: &ByotSettings) -> Result<Vec<Term>> {
    settings.validate()?;
    let heads = Heads::new(BYOT, "head", logits, labels)?;
    let rows = check_all(BYOT, "map of head", maps)?;
    if (maps.len(), rows) != (logits.len(), logits[0].dims()[0]) {
        let (maps, found) = (maps.len(), maps[0].dims());
        let message = format!("expected a map of each of {} heads, found {maps} of shape {found:?}", logits.len());
        return Err(Error::Undefined { method: BYOT, message });
    }
    let (mut imitations, mut hints) = (Vec::new(), Vec::new());
    let teacher = maps[0].detach();
    for (k, (z, map)) in logits.iter().zip(maps).enumerate().skip(1) {
        imitations.push((heads.name(k), imitate(z, &logits[0], settings.temperature)?));
        hints.push((heads.name(k), reduce::mean_squared_error(map, &teacher)?));
    }
    Ok(vec![
        heads.task(1.0, &[])?,
        sum_of(BYOT, 1.0, imitations, &logits[0])?,
        sum_of("byot-feature", settings.feature_weight, hints, &maps[0])?,
    ])
}
