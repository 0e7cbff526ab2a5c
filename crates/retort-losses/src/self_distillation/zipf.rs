//! Soft labels by the rank of the wrong classes.

use super::rank::{RankDistribution, count_votes, friends, largest, ranks};
use super::target::{as_one, cross_entropy, wrong_classes, x_ln_x};
use crate::config::{Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::online::terms::{Heads, narrow, sum_of, term, wide};
use crate::{Error, Result, ops, reduce};
use candle_core::{Device, Tensor};
use retort_kernels::softmax_cross_entropy;
use retort_nn::Seed;
use serde::{Deserialize, Serialize};

const METHOD: &str = "zipf-ls";

/// What the classes of a sample are ranked by.
#[derive(Clone, Copy, Debug)]
pub enum ZipfRanking<'a> {
    /// How many locations of the feature map say the class: class indices `[B, P]`, see
    /// [`dense_votes`](super::dense_votes). What the paper trains with.
    DenseVote(&'a Tensor),
    /// The sample's own logits.
    Logits,
    /// The logits of the other sample whose embedding, of these `[B, D]`, is nearest; without reference numbers.
    Friend(&'a Tensor),
}

/// Hyper-parameters of Zipf's label smoothing; the weight is that for CIFAR-100 and ImageNet (1 for Tiny-ImageNet).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZipfSettings {
    /// How the target falls with the rank.
    pub distribution: RankDistribution,
    /// Whether only samples that are classified correctly count.
    pub loss_mask: bool,
    /// Weight of the soft labels beside the cross-entropy, >= 0.
    pub weight: f64,
    /// Weight of the cross-entropies of further heads that vote, >= 0.
    pub heads_weight: f64,
}

impl Default for ZipfSettings {
    fn default() -> Self {
        Self { distribution: RankDistribution::default(), loss_mask: false, weight: 0.1, heads_weight: 0.1 }
    }
}

impl ZipfSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.check(METHOD)
    }

    /// Checks what depends on the number of classes.
    ///
    /// # Errors
    ///
    /// Fewer than two classes, a smallest share that so many classes cannot have.
    pub fn check_classes(&self, classes: usize) -> Result<()> {
        if classes < 2 {
            let message = format!("needs at least two classes, found {classes}: there is no wrong class");
            return Err(Error::Undefined { method: METHOD, message });
        }
        self.distribution.check_classes(METHOD, classes)
    }

    fn check(&self, method: &'static str) -> Result<()> {
        self.distribution.validate(method)?;
        check::non_negative(method, "weight", self.weight)?;
        check::non_negative(method, "heads_weight", self.heads_weight)
    }
}

/// The soft-label part of Zipf's label smoothing.
#[derive(Clone, Debug)]
pub struct ZipfLoss {
    /// The divergence, a scalar.
    pub value: Tensor,
    /// The target over the wrong classes in ascending order, `[B, C - 1]`.
    pub pdf: Tensor,
    /// Rank of every class among all, the label included, from 1 on; ties share the best one: `[B, C]` (u32).
    pub ranks: Tensor,
}

/// The soft-label part of Zipf's label smoothing (Liang et al. 2022, arXiv 2207.12980).
///
/// Classes are ranked without gradient, the label among them. With the weights `w_c` of the ranks
/// ([`RankDistribution`]) the target is `q_c = w_c / sum_{c' != y} w_c'` over the wrong classes, `p` is the softmax of
/// their logits, and the loss is `1 / B sum_b KL(q_b || p_b)`. With `loss_mask` it is the mean over the samples whose
/// largest logit is the label's, and 0 without any. With two classes it is 0.
///
/// # Shapes
///
/// `logits`: `[B, C]`, `labels`: class indices (u32 or i64) `[B]`. `seed` is read by the random distributions alone,
/// and should be a new one in every step.
///
/// # Gradients
///
/// Into the logits of the wrong classes, `(p - q) / B`; they are gathered, not masked, and summed in f64.
///
/// # Errors
///
/// Other shapes, an empty batch, one class, labels or votes that are no class indices or not below C, a setting out of
/// range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{ZipfRanking, ZipfSettings, zipf};
/// use retort_nn::Seed;
/// let z = Tensor::new(&[[2f32, 1.0, 0.0]], &Device::Cpu)?;
/// let labels = Tensor::new(&[0u32], &Device::Cpu)?;
/// let loss = zipf(&z, &labels, ZipfRanking::Logits, &ZipfSettings::default(), Seed::root(1))?;
/// assert_eq!(loss.ranks.to_vec2::<u32>()?, [[1, 2, 3]]);
/// let pdf = loss.pdf.to_vec2::<f32>()?; // 1/2 to 1/3
/// assert!((pdf[0][0] - 0.6).abs() < 1e-6 && (pdf[0][1] - 0.4).abs() < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn zipf(
    logits: &Tensor,
    labels: &Tensor,
    ranking: ZipfRanking<'_>,
    settings: &ZipfSettings,
    seed: Seed,
) -> Result<ZipfLoss> {
    soft_labels(METHOD, logits, labels, ranking, settings, seed)
}

fn soft_labels(
    method: &'static str,
    logits: &Tensor,
    labels: &Tensor,
    ranking: ZipfRanking<'_>,
    settings: &ZipfSettings,
    seed: Seed,
) -> Result<ZipfLoss> {
    settings.check(method)?;
    let (b, c) = ops::logits(method, "logits", logits)?;
    let ids = ops::class_ids(method, labels, b, c)?;
    if c < 2 {
        let message = "needs at least two classes, found one: there is no wrong class".into();
        return Err(Error::Undefined { method, message });
    }
    settings.distribution.check_classes(method, c)?;
    let own = reduce::wide(logits)?;
    let scores = match ranking {
        ZipfRanking::DenseVote(votes) => count_votes(votes, b, c)?,
        ZipfRanking::Logits => own.clone(),
        ZipfRanking::Friend(embedding) => friends(&own, embedding, c)?,
    };
    let ranked: Vec<Vec<u32>> = scores.chunks(c).map(ranks).collect();
    let target = |(row, ranks): (usize, &Vec<u32>)| {
        settings.distribution.target(ranks, ids[row] as usize, seed.child(&format!("row {row}")))
    };
    let q: Vec<f64> = ranked.iter().enumerate().flat_map(target).collect();
    let counts = |(z, &label): (&[f64], &u32)| !settings.loss_mask || largest(z) == label;
    let counted: Vec<bool> = own.chunks(c).zip(&ids).map(counts).collect();
    let value = divergence_of_wrong(logits, &ids, &q, &counted)?;
    let pdf = Tensor::from_vec(q, (b, c - 1), &Device::Cpu)?.to_dtype(logits.dtype())?;
    let ranks = Tensor::from_vec(ranked.concat(), (b, c), &Device::Cpu)?;
    Ok(ZipfLoss { value, pdf, ranks })
}

/// The mean over the samples that count of `KL(q || p)`, `p` the softmax of the wrong classes' logits.
fn divergence_of_wrong(logits: &Tensor, ids: &[u32], q: &[f64], counted: &[bool]) -> Result<Tensor> {
    let wrong = q.len() / ids.len();
    let number = counted.iter().filter(|counts| **counts).count();
    let share = |row: usize| if counted[row] { 1.0 / number as f64 } else { 0.0 };
    let weighted: Vec<f64> = q.iter().enumerate().map(|(i, q)| q * share(i / wrong)).collect();
    let negative_entropy: f64 = q.iter().enumerate().map(|(i, &q)| share(i / wrong) * x_ln_x(q)).sum();
    let gathered = wide(logits)?.contiguous()?.gather(&wrong_classes(ids, wrong + 1, logits.device())?, 1)?;
    let weighted = Tensor::from_vec(weighted, (ids.len(), wrong), &Device::Cpu)?.to_device(logits.device())?;
    let cross = reduce::sum_all(&(ops::log_softmax(&gathered)? * weighted)?)?;
    narrow(&cross.affine(-1.0, negative_entropy)?, logits)
}

/// Zipf's label smoothing (Liang et al. 2022, arXiv 2207.12980).
///
/// Terms: `ce`; `ce-heads`, the sum of the cross-entropies of further heads that vote, with
/// [`ZipfSettings::heads_weight`], where there are any; `zipf-ls`, see [`zipf`], with [`ZipfSettings::weight`].
///
/// # Shapes
///
/// As for [`zipf`]; `heads`: any number of `[B, C]`.
///
/// # Gradients
///
/// Into all logits; none into what the ranking reads.
///
/// # Errors
///
/// As for [`zipf`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{ZipfRanking, ZipfSettings, zipf_ls};
/// use retort_nn::Seed;
/// let z = Tensor::new(&[[2f32, 1.0, 0.0]], &Device::Cpu)?;
/// let (labels, votes) = (Tensor::new(&[0u32], &Device::Cpu)?, Tensor::new(&[[0u32, 2, 2, 0]], &Device::Cpu)?);
/// let ranking = ZipfRanking::DenseVote(&votes);
/// let terms = zipf_ls(&z, &[], &labels, ranking, &ZipfSettings::default(), Seed::root(1))?;
/// assert_eq!(terms.iter().map(|term| term.name).collect::<Vec<_>>(), ["ce", "zipf-ls"]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn zipf_ls(
    logits: &Tensor,
    heads: &[Tensor],
    labels: &Tensor,
    ranking: ZipfRanking<'_>,
    settings: &ZipfSettings,
    seed: Seed,
) -> Result<Vec<Term>> {
    let loss = zipf(logits, labels, ranking, settings, seed)?;
    let mut terms = vec![Heads::one(METHOD, logits, labels)?.task(1.0, &[])?];
    if !heads.is_empty() {
        let further = Heads::new(METHOD, "head", heads, labels)?;
        let mut parts = Vec::new();
        for (k, z) in heads.iter().enumerate() {
            parts.push((further.name(k), softmax_cross_entropy(z, further.ids(), 0.0)?));
        }
        terms.push(sum_of("ce-heads", settings.heads_weight, parts, logits)?);
    }
    terms.push(term(METHOD, settings.weight, loss.value));
    Ok(terms)
}

/// The variant that mixes the soft labels into the hard ones: the cross-entropy against `(1 - share) onehot(y) + share
/// q` over all classes, with the `q` of [`zipf`] on the wrong ones.
///
/// # Shapes
///
/// As for [`zipf`]; `pdf`: `[B, C - 1]` of it, `share` in `0 ..= 1`. Returns a scalar.
///
/// # Gradients
///
/// Into the logits, summed in f64.
///
/// # Errors
///
/// Other shapes, one class, labels that do not fit, a share out of range.
pub fn zipf_mixed(logits: &Tensor, labels: &Tensor, pdf: &Tensor, share: f64) -> Result<Tensor> {
    check::unit(METHOD, "share", share)?;
    let (b, c) = ops::logits(METHOD, "logits", logits)?;
    let ids = ops::class_ids(METHOD, labels, b, c)?;
    if c < 2 || pdf.dims() != [b, c - 1] || !pdf.dtype().is_float() {
        let expected = format!("[{b}, {}] for two classes or more", c - 1);
        return Err(Error::Shape { method: METHOD, what: "target".into(), expected, found: pdf.dims().to_vec() });
    }
    let mut target = Vec::with_capacity(b * c);
    for (q, &label) in reduce::wide(pdf)?.chunks(c - 1).zip(&ids) {
        let (before, behind) = q.split_at(label as usize);
        target.extend(before.iter().map(|q| share * q));
        target.push(1.0 - share);
        target.extend(behind.iter().map(|q| share * q));
    }
    cross_entropy(logits, &Tensor::from_vec(target, (b, c), &Device::Cpu)?.to_device(logits.device())?, 1.0)
}

const BY_LOGITS: &str = "zipf-ls-logits";

/// Zipf's label smoothing with the classes ranked by the sample's own logits, the paper's ablation that needs no
/// feature map; cross-entropy included. [`zipf_ls`] has the other rankings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZipfLsLogitsConfig {
    /// Weight of the soft labels beside the cross-entropy, >= 0; 0.1 on CIFAR-100 and ImageNet, 1 on Tiny-ImageNet.
    pub lambda: f64,
    /// How the target falls with the rank; the random ones are refused, as they need a seed for every step.
    pub distribution: RankDistribution,
    /// Whether only samples that are classified correctly count.
    pub loss_mask: bool,
    /// Weight of both together.
    pub weight: f64,
}

impl Default for ZipfLsLogitsConfig {
    fn default() -> Self {
        Self { lambda: 0.1, distribution: RankDistribution::default(), loss_mask: false, weight: 1.0 }
    }
}

impl Method for ZipfLsLogitsConfig {
    const INFO: MethodInfo = MethodInfo {
        id: BY_LOGITS,
        title: "Zipf's label smoothing by logits",
        family: Family::Output,
        paper: Some("Efficient One Pass Self-distillation with Zipf's Label Smoothing"),
        year: Some(2022),
        arxiv: Some("2207.12980"),
        inputs: Inputs { logits: Side::Student, labels: true, ..Inputs::NONE },
        trainable: &[],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: None,
        weight: 1.0,
        code_bases: &["megvii-research/zipfls"],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::non_negative(BY_LOGITS, "lambda", self.lambda)?;
        self.distribution.validate(BY_LOGITS)?;
        match self.distribution {
            RankDistribution::RandomUniform | RankDistribution::RandomPareto { .. } => Err(Error::Config {
                method: BY_LOGITS,
                field: "distribution",
                expected: "one that follows the rank".into(),
                found: "a random one".into(),
            }),
            _ => Ok(()),
        }
    }
    fn needs(&self) -> Needs {
        Needs { teacher: false, labels: true, ..Needs::TEACHER }
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        self.distribution.check_classes(BY_LOGITS, ctx.student.classes)?;
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for ZipfLsLogitsConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let logits = &ctx.student.logits;
        let (distribution, loss_mask) = (self.distribution, self.loss_mask);
        let settings = ZipfSettings { distribution, loss_mask, weight: self.lambda, heads_weight: 0.0 };
        // No distribution that is allowed here draws from the seed.
        let soft = soft_labels(BY_LOGITS, logits, ctx.labels, ZipfRanking::Logits, &settings, Seed::root(0))?;
        let task = Heads::one(BY_LOGITS, logits, ctx.labels)?.task(1.0, &[])?;
        as_one(BY_LOGITS, self.weight, &[task, term(METHOD, self.lambda, soft.value)])
    }
}
