//! Ranks of classes, and distributions over ranks.

use crate::config::check;
use crate::online::terms::wide;
use crate::{Error, Result, ops, reduce};
use candle_core::{Device, Tensor};
use rand::RngExt;
use retort_kernels::resize_bilinear2d;
use retort_nn::Seed;
use serde::{Deserialize, Serialize};

const METHOD: &str = "zipf-ls";

/// The class that a classifier says at every location of a feature map, `[B, P]` (u32).
///
/// The linear classifier `W f + b` of the pooled map is applied to each of the `H W` locations, or with `upsample` to
/// the `2H 2W` locations of the map enlarged by bilinear interpolation (half-pixel centres). Enlarging the scores is
/// the same, because the weights of an interpolation sum to 1, and is what is done. In f64; the first of equal classes
/// wins.
///
/// # Shapes
///
/// `map`: `[B, D, H, W]`, `weight`: `[C, D]`, `bias`: `[C]`. P counts the locations row by row; several heads' votes
/// are put side by side by the caller.
///
/// # Gradients
///
/// None.
///
/// # Errors
///
/// Other shapes, or no elements.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let map = Tensor::new(&[[[[1f32, -1.0]]]], &Device::Cpu)?; // one channel, two locations
/// let weight = Tensor::new(&[[1f32], [-1.0]], &Device::Cpu)?;
/// let votes = retort_losses::self_distillation::dense_votes(&map, &weight, None, false)?;
/// assert_eq!(votes.to_vec2::<u32>()?, [[0, 1]]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn dense_votes(map: &Tensor, weight: &Tensor, bias: Option<&Tensor>, upsample: bool) -> Result<Tensor> {
    let b = ops::samples(METHOD, "feature map", map)?;
    let (c, width) = ops::logits(METHOD, "weight of the classifier", weight)?;
    let [_, d, h, w] = *map.dims() else {
        let (what, expected) = ("feature map".to_string(), "[B, D, H, W]".to_string());
        return Err(Error::Shape { method: METHOD, what, expected, found: map.dims().to_vec() });
    };
    let wrong_bias = bias.filter(|bias| bias.dims() != [c]);
    if d != width || wrong_bias.is_some() {
        let bias = bias.map(|bias| bias.dims().to_vec());
        let message = format!("a map of {d} channels does not fit a weight {:?} and a bias {bias:?}", weight.dims());
        return Err(Error::Undefined { method: METHOD, message });
    }
    let locations = wide(&map.detach())?.flatten_from(2)?.transpose(1, 2)?.reshape((b * h * w, d))?;
    let mut scores = locations.contiguous()?.matmul(&wide(&weight.detach())?.t()?)?;
    if let Some(bias) = bias {
        scores = scores.broadcast_add(&wide(&bias.detach())?)?;
    }
    if upsample {
        let maps = scores.reshape((b, h, w, c))?.permute((0, 3, 1, 2))?.contiguous()?;
        scores = resize_bilinear2d(&maps, [2 * h, 2 * w])?.permute((0, 2, 3, 1))?.contiguous()?;
    }
    let votes: Vec<u32> = reduce::wide(&scores)?.chunks(c).map(largest).collect();
    let locations = votes.len() / b;
    Ok(Tensor::from_vec(votes, (b, locations), &Device::Cpu)?)
}

/// Position of the first largest value.
pub(super) fn largest(scores: &[f64]) -> u32 {
    let mut best = 0;
    for (class, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = class;
        }
    }
    best as u32
}

/// How often each class is voted for, `[B, C]` row after row.
pub(super) fn count_votes(votes: &Tensor, b: usize, c: usize) -> Result<Vec<f64>> {
    if votes.rank() != 2 || votes.dims()[0] != b || votes.elem_count() == 0 {
        let (what, expected) = ("votes".to_string(), format!("[{b}, P] with at least one vote"));
        return Err(Error::Shape { method: METHOD, what, expected, found: votes.dims().to_vec() });
    }
    let ids = ops::class_ids(METHOD, &votes.flatten_all()?, votes.elem_count(), c)?;
    let mut counts = vec![0.0; b * c];
    for (row, votes) in ids.chunks(ids.len() / b).enumerate() {
        votes.iter().for_each(|&class| counts[row * c + class as usize] += 1.0);
    }
    Ok(counts)
}

/// For every sample the scores of the sample of the batch whose embedding is nearest to its own; of equal distances the
/// first, and its own scores where there is no other sample.
pub(super) fn friends(scores: &[f64], embedding: &Tensor, c: usize) -> Result<Vec<f64>> {
    let b = scores.len() / c;
    let (rows, d) = ops::logits(METHOD, "embedding", embedding)?;
    if rows != b {
        let (what, expected) = ("embedding".to_string(), format!("[{b}, D]"));
        return Err(Error::Shape { method: METHOD, what, expected, found: embedding.dims().to_vec() });
    }
    let e = reduce::wide(embedding)?;
    let distance = |i: usize, j: usize| -> f64 {
        e[i * d..][..d].iter().zip(&e[j * d..][..d]).map(|(x, y)| (x - y).powi(2)).sum()
    };
    let friend = |i: usize| {
        let others = (0..b).filter(|&j| j != i).map(|j| (distance(i, j), j));
        others.min_by(|x, y| x.0.total_cmp(&y.0)).map_or(i, |(_, j)| j)
    };
    Ok((0..b).flat_map(|i| scores[friend(i) * c..][..c].iter().copied()).collect())
}

/// Rank of every class of one sample: 1 + the number of classes with a higher score; ties share the best rank.
pub(super) fn ranks(scores: &[f64]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
    let mut ranks = vec![1; scores.len()];
    for place in 1..order.len() {
        let (before, class) = (order[place - 1], order[place]);
        ranks[class] = if scores[class] == scores[before] { ranks[before] } else { place as u32 + 1 };
    }
    ranks
}

/// How much a class gets of the target by its rank r among all C classes, before the sum over the wrong classes is made
/// 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RankDistribution {
    /// Zipf's law, `r^(-power)`; power 1 in the paper.
    RankZipf {
        /// The exponent, >= 0.
        power: f64,
    },
    /// Zipf's law integrated over bins: with `iv = (right - left) / C`, the integral of `1 / x` from `left + (r - 1)
    /// iv` to `left + r iv`; classes that share a rank share the integral over all their bins.
    UnbiasedZipf {
        /// Start of the first bin, > 0.
        left_bound: f64,
        /// End of the last bin, > `left_bound`.
        right_bound: f64,
    },
    /// `(C - r) 2 (1 - C s) / (C (C - 1)) + s`.
    LinearDecay {
        /// s, the share of the last rank, > 0 and at most 1 / C.
        smallest_prob: f64,
    },
    /// `exp(-lambda (r - 1))`.
    ExponentialDecay {
        /// lambda, >= 0.
        exp_lambda: f64,
    },
    /// The same for all.
    #[serde(deserialize_with = "retort_nn::no_fields")]
    Constant,
    /// Independent of the rank: uniform in (0, 1], drawn for every sample and class. Without reference numbers.
    #[serde(deserialize_with = "retort_nn::no_fields")]
    RandomUniform,
    /// Independent of the rank: Pareto-distributed from 1 on, drawn for every sample and class. Without reference
    /// numbers.
    RandomPareto {
        /// The exponent of the law's tail, > 0.
        shape: f64,
    },
}

impl Default for RankDistribution {
    fn default() -> Self {
        Self::RankZipf { power: 1.0 }
    }
}

impl RankDistribution {
    pub(super) fn validate(&self, method: &'static str) -> Result<()> {
        match *self {
            Self::RankZipf { power } => check::non_negative(method, "power", power),
            Self::UnbiasedZipf { left_bound, right_bound } => {
                check::positive(method, "left_bound", left_bound)?;
                check::positive(method, "right_bound", right_bound)?;
                // Their difference may not be lost beside them either.
                check::positive(method, "right_bound - left_bound", right_bound - left_bound)
            }
            Self::LinearDecay { smallest_prob } => {
                check::positive(method, "smallest_prob", smallest_prob)?;
                check::unit(method, "smallest_prob", smallest_prob)
            }
            Self::ExponentialDecay { exp_lambda } => check::non_negative(method, "exp_lambda", exp_lambda),
            Self::Constant | Self::RandomUniform => Ok(()),
            Self::RandomPareto { shape } => check::positive(method, "shape", shape),
        }
    }

    /// Needs a smallest share that C classes can have.
    pub(super) fn check_classes(&self, method: &'static str, c: usize) -> Result<()> {
        match *self {
            Self::LinearDecay { smallest_prob } if smallest_prob * c as f64 > 1.0 => {
                let (field, expected) = ("smallest_prob", format!("at most 1 / {c}, as there are {c} classes"));
                Err(Error::Config { method, field, expected, found: smallest_prob.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// The target of one sample over the classes other than `label`, in ascending order.
    ///
    /// From logarithms less their maximum, so that no choice of ranks makes all of them 0.
    pub(super) fn target(&self, ranks: &[u32], label: usize, seed: Seed) -> Vec<f64> {
        let mut logs = self.logarithms(ranks, seed);
        logs.remove(label);
        let max = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logs.iter().map(|x| (x - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    fn logarithms(&self, ranks: &[u32], seed: Seed) -> Vec<f64> {
        let c = ranks.len() as f64;
        let each = |f: &dyn Fn(f64) -> f64| ranks.iter().map(|&r| f(f64::from(r))).collect();
        let mut rng = seed.rng();
        // In (0, 1].
        let mut draw = || 1.0 - rng.random::<f64>();
        match *self {
            Self::RankZipf { power } => each(&|r| -power * r.ln()),
            Self::UnbiasedZipf { left_bound, right_bound } => {
                let (bin, mut sharing) = ((right_bound - left_bound) / c, vec![0.0; ranks.len() + 1]);
                ranks.iter().for_each(|&r| sharing[r as usize] += 1.0);
                each(&|r| {
                    let ties = sharing[r as usize];
                    ((ties * bin / (left_bound + (r - 1.0) * bin)).ln_1p() / ties).ln()
                })
            }
            Self::LinearDecay { smallest_prob: s } => {
                each(&|r| ((c - r) * 2.0 * (1.0 - c * s) / (c * (c - 1.0)) + s).ln())
            }
            Self::ExponentialDecay { exp_lambda } => each(&|r| -exp_lambda * (r - 1.0)),
            Self::Constant => vec![0.0; ranks.len()],
            Self::RandomUniform => ranks.iter().map(|_| draw().ln()).collect(),
            Self::RandomPareto { shape } => ranks.iter().map(|_| -draw().ln() / shape).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_the_best_rank() {
        assert_eq!(ranks(&[3.0, 5.0, 3.0, -1.0, 5.0, 0.0]), [3, 1, 3, 6, 1, 5]);
        assert_eq!(ranks(&[0.0, -0.0, 0.0]), [1, 1, 1]);
        assert_eq!(ranks(&[2.0]), [1]);
    }

    #[test]
    fn distributions_by_hand() {
        let ranks = [1, 2, 2, 4];
        let target = |distribution: RankDistribution| distribution.target(&ranks, 0, Seed::root(1));
        let close = |got: Vec<f64>, want: [f64; 3]| {
            let sum: f64 = want.iter().sum();
            assert!(got.iter().zip(want).all(|(g, w)| (g - w / sum).abs() < 1e-14), "{got:?} {want:?}");
        };
        close(target(RankDistribution::default()), [0.5, 0.5, 0.25]);
        close(target(RankDistribution::RankZipf { power: 2.0 }), [0.25, 0.25, 0.0625]);
        close(target(RankDistribution::ExponentialDecay { exp_lambda: 0.3 }), [1.0, 1.0, (-0.6f64).exp()]);
        // Bins of 1/4 from 1 on: the second and the third together, and the last.
        let shared = (1.75f64 / 1.25).ln() / 2.0;
        let unbiased = RankDistribution::UnbiasedZipf { left_bound: 1.0, right_bound: 2.0 };
        close(target(unbiased), [shared, shared, (2.0f64 / 1.75).ln()]);
        let s = 0.01;
        let line = |r: f64| (4.0 - r) * 2.0 * (1.0 - 4.0 * s) / 12.0 + s;
        close(target(RankDistribution::LinearDecay { smallest_prob: s }), [line(2.0), line(2.0), line(4.0)]);
        close(target(RankDistribution::Constant), [1.0, 1.0, 1.0]);
        // Weights that would all underflow.
        close(RankDistribution::ExponentialDecay { exp_lambda: 1e6 }.target(&ranks, 0, Seed::root(1)), [1.0, 1.0, 0.0]);
    }

    #[test]
    fn random_distributions_depend_on_the_seed() {
        for distribution in [RankDistribution::RandomUniform, RankDistribution::RandomPareto { shape: 1.5 }] {
            let target = |seed| distribution.target(&[1, 2, 3, 4], 2, Seed::root(seed));
            assert_eq!(target(1), target(1));
            assert_ne!(target(1), target(2));
            assert!((target(1).iter().sum::<f64>() - 1.0).abs() < 1e-14 && target(1).iter().all(|q| *q > 0.0));
        }
    }
}
