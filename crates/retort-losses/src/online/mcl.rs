//! Mutual contrastive learning on the samples of one batch.

use super::contrast::{Positives, both_ways};
use super::terms::{check_all, imitate, mean_of, narrow, sum_of, wide};
use crate::config::check;
use crate::{Result, Term, ops};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// Hyper-parameters of mutual contrastive learning in all its forms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MclSettings {
    /// Divisor of the scores, > 0.
    pub tau: f64,
    /// Softmax temperature of the imitation on top of it, > 0.
    pub temperature: f64,
    /// Weight of the contrast within each network, >= 0.
    pub vcl: f64,
    /// Weight of its imitation, >= 0.
    pub soft_vcl: f64,
    /// Weight of the contrast across networks, >= 0.
    pub icl: f64,
    /// Weight of its imitation, >= 0.
    pub soft_icl: f64,
    /// Whether an image is a positive of itself across networks in the batch form; not so in the published code.
    pub icl_include_self: bool,
}

impl Default for MclSettings {
    /// Those of the batch form.
    fn default() -> Self {
        Self { tau: 0.1, temperature: 3.0, vcl: 0.1, soft_vcl: 1.0, icl: 0.1, soft_icl: 1.0, icl_include_self: false }
    }
}

impl MclSettings {
    /// Those of the form with memory banks ([`MclMemory`](super::MclMemory)).
    #[must_use]
    pub fn memory() -> Self {
        Self { tau: 0.07, ..Self::default() }
    }

    /// Those of the form with momentum encoders ([`MclQueues`](super::MclQueues)).
    #[must_use]
    pub fn moco() -> Self {
        Self { vcl: 1.0, icl: 1.0, ..Self::memory() }
    }

    /// Checks the ranges of all fields; `method` appears in errors.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self, method: &'static str) -> Result<()> {
        check::positive(method, "tau", self.tau)?;
        check::temperature(method, self.temperature)?;
        check::non_negative(method, "vcl", self.vcl)?;
        check::non_negative(method, "soft_vcl", self.soft_vcl)?;
        check::non_negative(method, "icl", self.icl)?;
        check::non_negative(method, "soft_icl", self.soft_icl)
    }

    /// The terms of the four sums; `like` has their type.
    pub(super) fn terms(&self, sums: Sums, like: &Tensor) -> Result<Vec<Term>> {
        let all = [
            ("vcl", self.vcl, sums.vcl),
            ("soft-vcl", self.soft_vcl, sums.soft_vcl),
            ("icl", self.icl, sums.icl),
            ("soft-icl", self.soft_icl, sums.soft_icl),
        ];
        all.into_iter()
            .map(|(name, weight, parts)| {
                let parts = parts.into_iter().map(|(part, value)| Ok((part, narrow(&value, like)?)));
                sum_of(name, weight, parts.collect::<Result<_>>()?, like)
            })
            .collect()
    }
}

/// The four losses, by networks, in f64.
#[derive(Default)]
pub(super) struct Sums {
    pub(super) vcl: Vec<(String, Tensor)>,
    pub(super) soft_vcl: Vec<(String, Tensor)>,
    pub(super) icl: Vec<(String, Tensor)>,
    pub(super) soft_icl: Vec<(String, Tensor)>,
}

impl Sums {
    /// Of the scores of each network with itself and, by `pair`, of (a, b) and of (b, a); `within` and `across` are the
    /// contrast of either kind.
    pub(super) fn new(
        own: &[Tensor],
        pair: impl Fn(usize, usize) -> Result<[Tensor; 2]>,
        within: impl Fn(&Tensor) -> Result<Tensor>,
        across: impl Fn(&Tensor) -> Result<Tensor>,
        temperature: f64,
    ) -> Result<Self> {
        let mut sums = Self::default();
        for (a, scores_a) in own.iter().enumerate() {
            sums.vcl.push((a.to_string(), within(scores_a)?));
            for (b, scores_b) in own.iter().enumerate().skip(a + 1) {
                let [there, back] = pair(a, b)?;
                sums.icl.push((format!("{a}-{b}"), across(&there)?));
                sums.icl.push((format!("{b}-{a}"), across(&back)?));
                sums.soft_vcl.push((format!("{a}-{b}"), both_ways(scores_a, scores_b, temperature)?));
                sums.soft_icl.push((format!("{a}-{b}"), both_ways(&there, &back, temperature)?));
            }
        }
        Ok(sums)
    }
}

/// Mutual contrastive learning, MCL (Yang, An, Cai and Xu 2022, arXiv 2104.12565), of K networks on one labelled batch.
///
/// With the score matrices `G_ab = v_a v_b^T / tau`, the positives `P(i)` of a sample (the others of its class) and
/// `con(G) = - mean_i mean_{j in P(i)} [G_ij - ln sum_{l != i} exp G_il]` the terms are
///
/// * `vcl`, `sum_k con(G_kk)`, and `icl`, `sum_{a != b} con(G_ab)`;
/// * `soft-vcl`, `sum_{a != b} KD_T(G_aa <- G_bb)`, and `soft-icl`, `sum_{a != b} KD_T(G_ab <- G_ba)`, on all columns.
///
/// As in the published code an image is no positive of itself across networks, unless
/// [`MclSettings::icl_include_self`] says so. A sample without a positive is left out of the mean, and a batch without
/// any gives 0. The cross-entropy of the classifiers is not among the terms.
///
/// # Shapes
///
/// `embeddings`: K times `[B, D]` with rows of length 1 (the head's business), `labels`: class indices (u32 or i64)
/// `[B]`.
///
/// # Gradients
///
/// Into all embeddings; targets of `KD` are constants. All is summed in f64.
///
/// # Errors
///
/// No embeddings, several shapes or types, labels that do not fit, a setting out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::online::{MclSettings, mcl};
/// let v = Tensor::new(&[[1f32, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], &Device::Cpu)?;
/// let labels = Tensor::new(&[0u32, 0, 1, 1], &Device::Cpu)?;
/// let terms = mcl(&[v.clone(), v], &labels, &MclSettings::default())?;
/// assert_eq!(terms.iter().map(|term| term.name).collect::<Vec<_>>(), ["vcl", "soft-vcl", "icl", "soft-icl"]);
/// assert!(terms[1].value.to_scalar::<f32>()?.abs() < 1e-6); // both networks say the same
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn mcl(embeddings: &[Tensor], labels: &Tensor, settings: &MclSettings) -> Result<Vec<Term>> {
    const METHOD: &str = "mcl";
    settings.validate(METHOD)?;
    let b = check_embeddings(METHOD, embeddings)?;
    let (labels, device) = (ops::class_ids(METHOD, labels, b, usize::MAX)?, embeddings[0].device());
    let within = Positives::new(&labels, false, device)?;
    let across = Positives::new(&labels, settings.icl_include_self, device)?;
    let v = embeddings.iter().map(wide).collect::<Result<Vec<_>>>()?;
    let own = v.iter().map(|v| scores(v, v, settings.tau)).collect::<Result<Vec<_>>>()?;
    let pair = |a: usize, b: usize| -> Result<[Tensor; 2]> {
        let there = scores(&v[a], &v[b], settings.tau)?;
        let back = there.t()?.contiguous()?;
        Ok([there, back])
    };
    let sums = Sums::new(&own, pair, |x| within.mean(x), |x| across.mean(x), settings.temperature)?;
    settings.terms(sums, &embeddings[0])
}

/// Refuses anything but embeddings `[B, D]` of one shape and type, at least one; returns B.
pub(super) fn check_embeddings(method: &'static str, embeddings: &[Tensor]) -> Result<usize> {
    let b = check_all(method, "embeddings of network", embeddings)?;
    ops::logits(method, "embeddings of network 0", &embeddings[0])?;
    Ok(b)
}

/// `a b^T / tau`.
pub(super) fn scores(a: &Tensor, b: &Tensor, tau: f64) -> Result<Tensor> {
    Ok((retort_kernels::inner_products(a, b)? / tau)?)
}

/// MCL's imitation of the networks' mean logits, the term `mcl-logit-kd`.
///
/// `KD_T(z_k <- mean_j z_j)`, T = 3 in the paper's code; two networks both learn from it, of more only the last one
/// does.
///
/// # Shapes
///
/// `logits`: K times `[B, C]`.
///
/// # Gradients
///
/// Into the logits that learn; the mean is a constant.
///
/// # Errors
///
/// No logits, several shapes or types, a temperature out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let z = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let term = retort_losses::online::mcl_logit_kd(&[z.clone(), z], 3.0)?;
/// assert_eq!(term.value.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn mcl_logit_kd(logits: &[Tensor], temperature: f64) -> Result<Term> {
    const METHOD: &str = "mcl-logit-kd";
    check::temperature(METHOD, temperature)?;
    check_all(METHOD, "logits of network", logits)?;
    ops::logits(METHOD, "logits of network 0", &logits[0])?;
    let target = mean_of(logits)?;
    let first = if logits.len() == 2 { 0 } else { logits.len() - 1 };
    let mut parts = Vec::new();
    for (k, z) in logits.iter().enumerate().skip(first) {
        parts.push((format!("peer{k}"), imitate(z, &target, temperature)?));
    }
    sum_of(METHOD, 1.0, parts, &logits[0])
}
