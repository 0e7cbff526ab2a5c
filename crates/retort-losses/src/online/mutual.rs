//! Peers that imitate each other's class scores.

use super::terms::{Heads, imitate, mean_of, term};
use crate::config::check;
use crate::{Error, Result, Term, ops, reduce};
use candle_core::Tensor;
use retort_kernels::softmax_cross_entropy;
use serde::{Deserialize, Serialize};

/// Weight of an imitation that starts late: `exp(-5 (1 - min(e, E) / E)^2)`, 0.0067 in epoch 0 and 1 from epoch E on.
///
/// The Gaussian ramp of Laine and Aila 2017 (arXiv 1610.02242), as the code of OKDDip has it for ONE, CL-ILR, OKDDip
/// and FFL with E = 80. Epochs count from 0; 1 for E = 0.
///
/// # Example
///
/// ```
/// use retort_losses::online::ramp;
/// assert_eq!((ramp(80, 80), ramp(200, 80), ramp(0, 0)), (1.0, 1.0, 1.0));
/// assert!((ramp(0, 80) - (-5f64).exp()).abs() < 1e-15);
/// ```
#[must_use]
pub fn ramp(epoch: usize, epochs: usize) -> f64 {
    if epoch >= epochs {
        return 1.0;
    }
    (-5.0 * (1.0 - epoch as f64 / epochs as f64).powi(2)).exp()
}

/// Temperature and ramp of the methods whose imitation starts late: ONE, CL-ILR, OKDDip, FFL and the reconstruction of MFEF.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RampedSettings {
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// Epochs until the imitation has its full weight, see [`ramp`].
    pub ramp_epochs: usize,
}

impl Default for RampedSettings {
    fn default() -> Self {
        Self { temperature: 3.0, ramp_epochs: 80 }
    }
}

impl RampedSettings {
    /// The weight of the imitation in an epoch, counted from 0.
    #[must_use]
    pub fn ramp(&self, epoch: usize) -> f64 {
        ramp(epoch, self.ramp_epochs)
    }

    /// Checks the ranges of all fields; `method` appears in errors.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self, method: &'static str) -> Result<()> {
        check::temperature(method, self.temperature)
    }

    pub(super) fn check(&self, method: &'static str, ramp: f64) -> Result<()> {
        self.validate(method)?;
        check::non_negative(method, "ramp", ramp)
    }
}

/// Hyper-parameters of [`dml`] and [`dml_ensemble`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DmlSettings {
    /// Softmax temperature, > 0; 1 in the paper, 3 in the code of OKDDip.
    pub temperature: f64,
    /// Weight of the imitation, >= 0.
    pub weight: f64,
}

impl Default for DmlSettings {
    fn default() -> Self {
        Self { temperature: 1.0, weight: 1.0 }
    }
}

impl DmlSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.check("dml")
    }

    fn check(&self, method: &'static str) -> Result<()> {
        check::temperature(method, self.temperature)?;
        check::non_negative(method, "weight", self.weight)
    }
}

/// Deep mutual learning (Zhang, Xiang, Hospedales and Lu 2018, arXiv 1706.00384), all K networks updated at once.
///
/// Terms: `ce`, `sum_k CE(z_k, y)`, and `dml`, `1 / (K - 1) sum_{a != b} KD_T(z_a <- z_b)`; 0 for one network.
///
/// The paper updates one network after the other with fresh predictions in between: call it with the others' logits
/// recomputed and step only the network in turn.
///
/// # Shapes
///
/// `logits`: K times `[B, C]`, `labels`: class indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into all logits; targets are constants.
///
/// # Errors
///
/// No logits, several shapes or types, labels that do not fit, a setting out of range.
///
/// # Example
///
/// See [`total`](super::total).
pub fn dml(logits: &[Tensor], labels: &Tensor, settings: &DmlSettings) -> Result<Vec<Term>> {
    const METHOD: &str = "dml";
    settings.check(METHOD)?;
    let peers = Heads::new(METHOD, "peer", logits, labels)?;
    let scale = 1.0 / (logits.len() - 1).max(1) as f64;
    Ok(vec![peers.task(1.0, &[])?, peers.mutual(settings.weight, scale, settings.temperature)?])
}

/// Deep mutual learning from the ensemble of the others: logits are averaged before the softmax.
///
/// Terms: `ce`, `sum_k CE(z_k, y)`, and `dml-ensemble`, `sum_k KD_T(z_k <- 1 / (K - 1) sum_{j != k} z_j)`; 0 for one
/// network.
///
/// # Shapes
///
/// As for [`dml`].
///
/// # Gradients
///
/// As for [`dml`].
///
/// # Errors
///
/// As for [`dml`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::online::{DmlSettings, dml, dml_ensemble, total};
/// let logits = [Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?, Tensor::new(&[[3f32, 0.0]], &Device::Cpu)?];
/// let (labels, settings) = (Tensor::new(&[0u32], &Device::Cpu)?, DmlSettings::default());
/// // The other of two is the ensemble of the others.
/// let pairs = total(&dml(&logits, &labels, &settings)?)?.to_scalar::<f32>()?;
/// assert_eq!(total(&dml_ensemble(&logits, &labels, &settings)?)?.to_scalar::<f32>()?, pairs);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn dml_ensemble(logits: &[Tensor], labels: &Tensor, settings: &DmlSettings) -> Result<Vec<Term>> {
    const METHOD: &str = "dml-ensemble";
    settings.check(METHOD)?;
    ensemble(METHOD, logits, labels, settings.temperature, settings.weight)
}

/// What network `k` alone learns in [`dml`] or, from the ensemble of the others, in [`dml_ensemble`]: for networks that
/// are updated one after the other, as in the paper, with the others' logits computed anew after each update.
///
/// The terms of all networks together are those of the function itself, where nothing is updated in between.
///
/// # Shapes
///
/// As for [`dml`]; `k` below K.
///
/// # Gradients
///
/// Into `logits[k]`.
///
/// # Errors
///
/// As for [`dml`], and a network that there is not.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::online::{DmlSettings, dml, dml_turn, total};
/// let logits = [Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?, Tensor::new(&[[3f32, 0.0]], &Device::Cpu)?];
/// let (labels, settings) = (Tensor::new(&[0u32], &Device::Cpu)?, DmlSettings::default());
/// let first = total(&dml_turn(0, &logits, &labels, &settings, false)?)?.to_scalar::<f32>()?;
/// let second = total(&dml_turn(1, &logits, &labels, &settings, false)?)?.to_scalar::<f32>()?;
/// let both = total(&dml(&logits, &labels, &settings)?)?.to_scalar::<f32>()?;
/// assert!((first + second - both).abs() < 1e-5);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn dml_turn(
    k: usize,
    logits: &[Tensor],
    labels: &Tensor,
    settings: &DmlSettings,
    from_ensemble: bool,
) -> Result<Vec<Term>> {
    let method = if from_ensemble { "dml-ensemble" } else { "dml" };
    settings.check(method)?;
    let peers = Heads::new(method, "peer", logits, labels)?;
    let Some(own) = logits.get(k) else {
        return Err(Error::Index { method, what: "network", index: k as u64, size: logits.len() });
    };
    let ce = softmax_cross_entropy(own, peers.ids(), 0.0)?;
    let others: Vec<Tensor> = (0..logits.len()).filter(|&j| j != k).map(|j| logits[j].clone()).collect();
    let imitation = match (from_ensemble, others.len()) {
        (_, 0) => reduce::constant(0.0, own)?,
        (true, _) => imitate(own, &mean_of(&others)?, settings.temperature)?,
        (false, count) => {
            let each = others.iter().map(|other| imitate(own, other, settings.temperature));
            (ops::total(&each.collect::<Result<Vec<_>>>()?)? / count as f64)?
        }
    };
    Ok(vec![term("ce", 1.0, ce), term(method, settings.weight, imitation)])
}

/// Collaborative learning of branches on one trunk, CL-ILR (Song and Chai 2018, arXiv 1805.11761).
///
/// Terms: `ce`, `sum_k CE(z_k, y)`, and `cl-ilr` with the weight `ramp`, as in [`dml_ensemble`]. The gradient that
/// enters the trunk from the K branches is divided by K: [`scale_gradient`](super::scale_gradient) between trunk and
/// branches.
///
/// # Shapes
///
/// As for [`dml`]; `ramp >= 0`, see [`RampedSettings::ramp`].
///
/// # Gradients
///
/// As for [`dml`].
///
/// # Errors
///
/// As for [`dml`].
pub fn cl_ilr(logits: &[Tensor], labels: &Tensor, settings: &RampedSettings, ramp: f64) -> Result<Vec<Term>> {
    const METHOD: &str = "cl-ilr";
    settings.check(METHOD, ramp)?;
    ensemble(METHOD, logits, labels, settings.temperature, ramp)
}

fn ensemble(
    method: &'static str,
    logits: &[Tensor],
    labels: &Tensor,
    temperature: f64,
    weight: f64,
) -> Result<Vec<Term>> {
    let peers = Heads::new(method, "peer", logits, labels)?;
    let others = |k: usize| {
        let others: Vec<Tensor> = (0..logits.len()).filter(|&j| j != k).map(|j| logits[j].detach()).collect();
        // A single network has nobody to learn from but itself, which costs nothing.
        if others.is_empty() { Ok(logits[k].detach()) } else { mean_of(&others) }
    };
    Ok(vec![peers.task(1.0, &[])?, peers.imitate(weight, temperature, others)?])
}

/// What the networks of [`kdcl`] learn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KdclTeacher {
    /// The mean of all logits, the learner's included.
    #[default]
    Mean,
    /// The smallest difference to the label's logit: `min_k (z_k[c] - z_k[y])` for every class c. It is 0 at the label,
    /// so that the teacher's cross-entropy is an upper bound for that of every network.
    MinLogit,
}

/// Hyper-parameters of [`kdcl`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KdclSettings {
    /// Softmax temperature, > 0.
    pub temperature: f64,
    /// Share of the imitation, in `0 ..= 1`; the cross-entropy has the rest.
    pub alpha: f64,
    /// What is imitated.
    pub teacher: KdclTeacher,
}

impl Default for KdclSettings {
    fn default() -> Self {
        Self { temperature: 4.0, alpha: 0.5, teacher: KdclTeacher::Mean }
    }
}

impl KdclSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        check::temperature("kdcl", self.temperature)?;
        check::unit("kdcl", "alpha", self.alpha)
    }
}

/// Collaborative learning, KDCL (Guo et al. 2020, "Online Knowledge Distillation via Collaborative Learning", CVPR).
///
/// Terms: `ce`, `sum_k CE(z_k, y)`, with the weight `1 - alpha`, and `kdcl`, `sum_k KD_T(z_k <- m)`, with `alpha`; the
/// teacher's logits `m` are made of all networks' by [`KdclTeacher`]. Each network may see its own augmentation of the
/// same images. The mean is that of the public reimplementation; `MinLogit` follows the paper's description and has no
/// reference numbers.
///
/// # Shapes
///
/// As for [`dml`].
///
/// # Gradients
///
/// Into all logits; the teacher is a constant.
///
/// # Errors
///
/// As for [`dml`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::online::{KdclSettings, kdcl};
/// let z = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let terms = kdcl(&[z.clone(), z], &Tensor::new(&[0u32], &Device::Cpu)?, &KdclSettings::default())?;
/// assert_eq!((terms[1].weight, terms[1].value.to_scalar::<f32>()?), (0.5, 0.0));
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn kdcl(logits: &[Tensor], labels: &Tensor, settings: &KdclSettings) -> Result<Vec<Term>> {
    settings.validate()?;
    let peers = Heads::new("kdcl", "peer", logits, labels)?;
    let teacher = match settings.teacher {
        KdclTeacher::Mean => mean_of(logits)?.detach(),
        KdclTeacher::MinLogit => min_logit(&peers)?,
    };
    let imitation = peers.imitate(settings.alpha, settings.temperature, |_| Ok(teacher.clone()))?;
    Ok(vec![peers.task(1.0 - settings.alpha, &[])?, imitation])
}

/// `min_k (z_k - z_k[y])`, without history.
fn min_logit(peers: &Heads<'_>) -> Result<Tensor> {
    let mut smallest: Option<Tensor> = None;
    for z in peers.logits {
        let z = z.detach();
        let z = z.broadcast_sub(&ops::pick(&z, peers.ids())?.unsqueeze(1)?)?;
        smallest = Some(match smallest {
            Some(smallest) => smallest.minimum(&z)?,
            None => z,
        });
    }
    Ok(smallest.expect("there is at least one peer"))
}
