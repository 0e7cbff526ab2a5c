//! Layer-wise mutual contrastive learning: every stage of a network with every stage of another one.

use super::MclSettings;
use super::contrast::{Positives, both_ways_rows};
use super::mcl::{Sums, check_embeddings, scores};
use super::terms::{Heads, check_like, imitate, sum_of, wide};
use crate::config::check;
use crate::{Error, Result, Term, ops};
use candle_core::Tensor;

const METHOD: &str = "lmcl";

/// Layer-wise mutual contrastive learning, L-MCL (Yang, An, Zhou, Zhuang, Xu and Zhang 2023, arXiv 2207.11518).
///
/// For every ordered pair of networks (i, j) and every pair of their stages (k, l), with `a = v_ik`, `b = v_jl`, the
/// four losses of [`mcl`](super::mcl()) between `a` and `b` in both directions, each sample's row times its weight
/// `w_ijkl`, and divided by the number of rows, not by the sum of the weights:
///
/// * `vcl`: `con_w(G_aa) + con_w(G_bb)`, `icl`: `con_w(G_ab) + con_w(G_ba)`;
/// * `soft-vcl`: both imitations between `G_aa` and `G_bb`, `soft-icl`: between `G_ab` and `G_ba`.
///
/// So every unordered pair counts twice, and the contrast within a stage is repeated for each partner.
///
/// # Shapes
///
/// `embeddings`: by network and stage, `[B, D]` with rows of length 1; `labels`: class indices (u32 or i64) `[B]`;
/// `weights`: `[pairs, B]` in the order of the loops over i, j other than i, k, l, the last one fastest. Without
/// weights all are 0.5, the middle of their range (no meta-learning).
///
/// # Gradients
///
/// Into the embeddings and the weights: hand over detached weights where only the meta step trains them.
///
/// # Errors
///
/// No embeddings, a network without stages, several shapes or types, labels or weights that do not fit, a setting out
/// of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::online::{MclSettings, lmcl, mcl};
/// let v = Tensor::new(&[[1f32, 0.0], [0.6, 0.8], [0.0, 1.0]], &Device::Cpu)?;
/// let labels = Tensor::new(&[0u32, 0, 0], &Device::Cpu)?;
/// // One stage each, and twice 0.5: the plain form.
/// let layers = lmcl(&[vec![v.clone()], vec![v.clone()]], &labels, None, &MclSettings::default())?;
/// let plain = mcl(&[v.clone(), v], &labels, &MclSettings::default())?;
/// for (layers, plain) in layers.iter().zip(&plain) {
///     assert!((layers.value.to_scalar::<f32>()? - plain.value.to_scalar::<f32>()?).abs() < 1e-6);
/// }
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn lmcl(
    embeddings: &[Vec<Tensor>],
    labels: &Tensor,
    weights: Option<&Tensor>,
    settings: &MclSettings,
) -> Result<Vec<Term>> {
    towards(embeddings, None, labels, weights, settings)
}

/// [`lmcl`] with the embeddings that the imitation's targets are made of apart from those that imitate them.
///
/// Of the same embeddings it is `lmcl` itself. Others are for derivatives of its gradient, in which targets are
/// constants: with fixed `targets`, this loss moves with the embeddings as that gradient says.
///
/// # Shapes
///
/// As for [`lmcl`]; `targets` like `embeddings`.
///
/// # Gradients
///
/// Into the embeddings and the weights; the targets are detached.
///
/// # Errors
///
/// As for [`lmcl`], and targets of other numbers or shapes than the embeddings.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::online::{MclSettings, lmcl, lmcl_towards};
/// let v = Tensor::new(&[[1f32, 0.0], [0.6, 0.8], [0.0, 1.0]], &Device::Cpu)?;
/// let networks = [vec![v.clone()], vec![v.narrow(1, 0, 1)?.broadcast_as((3, 2))?.contiguous()?]];
/// let (labels, settings) = (Tensor::new(&[0u32, 0, 0], &Device::Cpu)?, MclSettings::default());
/// let plain = lmcl(&networks, &labels, None, &settings)?;
/// let same = lmcl_towards(&networks, &networks, &labels, None, &settings)?;
/// assert_eq!(plain[1].value.to_scalar::<f32>()?, same[1].value.to_scalar::<f32>()?);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn lmcl_towards(
    embeddings: &[Vec<Tensor>],
    targets: &[Vec<Tensor>],
    labels: &Tensor,
    weights: Option<&Tensor>,
    settings: &MclSettings,
) -> Result<Vec<Term>> {
    let stages = |networks: &[Vec<Tensor>]| networks.iter().map(Vec::len).collect::<Vec<_>>();
    let (expected, found) = (stages(embeddings), stages(targets));
    if expected != found {
        let message = format!("expected targets of the stages {expected:?}, found {found:?}");
        return Err(Error::Undefined { method: METHOD, message });
    }
    for (v, target) in embeddings.iter().flatten().zip(targets.iter().flatten()) {
        check_like(METHOD, "target", target, v)?;
    }
    towards(embeddings, Some(targets), labels, weights, settings)
}

fn towards(
    embeddings: &[Vec<Tensor>],
    targets: Option<&[Vec<Tensor>]>,
    labels: &Tensor,
    weights: Option<&Tensor>,
    settings: &MclSettings,
) -> Result<Vec<Term>> {
    settings.validate(METHOD)?;
    let all: Vec<Tensor> = embeddings.iter().flatten().cloned().collect();
    let b = check_embeddings(METHOD, &all)?;
    if let Some(network) = embeddings.iter().position(Vec::is_empty) {
        return Err(Error::Undefined { method: METHOD, message: format!("network {network} has no stage") });
    }
    let labels = ops::class_ids(METHOD, labels, b, usize::MAX)?;
    let weights = PairRows::new(embeddings, weights, b)?;
    let within = Positives::new(&labels, false, all[0].device())?;
    let across = Positives::new(&labels, settings.icl_include_self, all[0].device())?;
    let stage = |n: usize, s: usize| {
        let target = targets.map(|targets| &targets[n][s]);
        Stage::new(&embeddings[n][s], target, &within, settings.tau)
    };
    let network = |n: usize| (0..embeddings[n].len()).map(|s| stage(n, s)).collect::<Result<Vec<_>>>();
    let stages = (0..embeddings.len()).map(network).collect::<Result<Vec<_>>>()?;
    let mut sums = Sums::default();
    for i in 0..stages.len() {
        for j in i + 1..stages.len() {
            let mut pair = PairSums::default();
            for (k, a) in stages[i].iter().enumerate() {
                for (l, b) in stages[j].iter().enumerate() {
                    // Both orders of the pair have the same losses.
                    let weight = (weights.get([i, j, k, l])? + weights.get([j, i, l, k])?)?;
                    pair.add(a, b, [&within, &across], &weight, settings)?;
                }
            }
            pair.into_sums(&format!("{i}-{j}"), &mut sums);
        }
    }
    settings.terms(sums, &all[0])
}

/// One stage of one network.
struct Stage {
    v: Tensor,
    scores: Tensor,
    /// Rows of `con(G_aa)`.
    contrast: Option<Tensor>,
    /// Where the targets are of other embeddings, these and their scores.
    target: Option<[Tensor; 2]>,
}

impl Stage {
    fn new(v: &Tensor, target: Option<&Tensor>, within: &Positives, tau: f64) -> Result<Self> {
        let with_scores = |v: &Tensor| -> Result<[Tensor; 2]> {
            let v = wide(v)?;
            Ok([v.clone(), scores(&v, &v, tau)?])
        };
        let [v, scores] = with_scores(v)?;
        let target = target.map(|target| with_scores(&target.detach())).transpose()?;
        Ok(Self { contrast: within.rows(&scores)?, scores, v, target })
    }
}

/// The losses of two networks so far.
#[derive(Default)]
struct PairSums([Option<Tensor>; 4]);

impl PairSums {
    fn add(
        &mut self,
        a: &Stage,
        b: &Stage,
        [within, across]: [&Positives; 2],
        weight: &Tensor,
        settings: &MclSettings,
    ) -> Result<()> {
        let there = scores(&a.v, &b.v, settings.tau)?;
        let back = there.t()?.contiguous()?;
        let contrast = |positives: &Positives, x: Option<&Tensor>, y: Option<&Tensor>| -> Result<Tensor> {
            Ok((positives.weighted_mean(x, weight)? + positives.weighted_mean(y, weight)?)?)
        };
        let soft = |own: [&Tensor; 2], targets: Option<[&Tensor; 2]>| -> Result<Tensor> {
            crate::reduce::mean_all(&(both_ways_rows(own, targets, settings.temperature)? * weight)?)
        };
        let (within_targets, across_targets) = match (&a.target, &b.target) {
            (Some([a, a_scores]), Some([b, b_scores])) => {
                let there = scores(a, b, settings.tau)?;
                let back = there.t()?.contiguous()?;
                (Some([a_scores, b_scores]), Some([there, back]))
            }
            _ => (None, None),
        };
        let values = [
            contrast(within, a.contrast.as_ref(), b.contrast.as_ref())?,
            soft([&a.scores, &b.scores], within_targets)?,
            contrast(across, across.rows(&there)?.as_ref(), across.rows(&back)?.as_ref())?,
            soft([&there, &back], across_targets.as_ref().map(|[there, back]| [there, back]))?,
        ];
        for (sum, value) in self.0.iter_mut().zip(values) {
            *sum = Some(match sum.take() {
                Some(sum) => (sum + value)?,
                None => value,
            });
        }
        Ok(())
    }

    fn into_sums(self, name: &str, sums: &mut Sums) {
        let lists = [&mut sums.vcl, &mut sums.soft_vcl, &mut sums.icl, &mut sums.soft_icl];
        for (list, value) in lists.into_iter().zip(self.0) {
            list.extend(value.map(|value| (name.to_string(), value)));
        }
    }
}

/// The rows of the weights `[pairs, B]`.
struct PairRows {
    /// f64.
    weights: Tensor,
    /// Stages of each network.
    stages: Vec<usize>,
}

impl PairRows {
    fn new(embeddings: &[Vec<Tensor>], weights: Option<&Tensor>, b: usize) -> Result<Self> {
        let stages: Vec<usize> = embeddings.iter().map(Vec::len).collect();
        let (all, squares) = (stages.iter().sum::<usize>(), stages.iter().map(|s| s * s).sum::<usize>());
        let pairs = all * all - squares;
        let weights = match weights {
            Some(weights) if weights.dims() == [pairs, b] && weights.dtype().is_float() => wide(weights)?,
            Some(weights) => {
                let (what, expected) =
                    (format!("weights of type {:?}", weights.dtype()), format!("floats [{pairs}, {b}]"));
                return Err(Error::Shape { method: METHOD, what, expected, found: weights.dims().to_vec() });
            }
            // There may be no pair at all, and candle has no empty tensors worth the name.
            None => Tensor::full(0.5f64, (pairs.max(1), b), embeddings[0][0].device())?,
        };
        Ok(Self { weights, stages })
    }

    /// Row of the pair of stage k of network i and stage l of network j.
    fn get(&self, [i, j, k, l]: [usize; 4]) -> Result<Tensor> {
        let all: usize = self.stages.iter().sum();
        let networks: usize = (0..i).map(|n| self.stages[n] * (all - self.stages[n])).sum();
        let partners: usize = (0..j).filter(|&n| n != i).map(|n| self.stages[i] * self.stages[n]).sum();
        Ok(self.weights.get(networks + partners + k * self.stages[j] + l)?)
    }
}

/// The part of L-MCL on class scores.
///
/// With the logits `z_ns` of stage s of network n and the network's aggregated logits `a_n` (shares of its stages, made
/// of their embeddings by a part of the network), the terms are `ce`, `sum_ns CE(z_ns, y) + sum_n CE(a_n, y)`, and
/// `lmcl-logit-kd`, `sum_n sum_m KD_T(z_n,last <- a_m)`, `m = n` included; T = 3 in the paper's code.
///
/// # Shapes
///
/// `logits`: by network and stage, the classifier last, `[B, C]`; `aggregated`: one `[B, C]` a network; `labels`: class
/// indices (u32 or i64) `[B]`.
///
/// # Gradients
///
/// Into all logits, into the aggregated ones by the cross-entropy alone.
///
/// # Errors
///
/// No logits, a network without stages, another number of aggregated logits than of networks, several shapes or types,
/// labels that do not fit, a temperature out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::online::lmcl_logits;
/// let z = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let networks = [vec![z.clone(), z.clone()], vec![z.clone(), z.clone()]];
/// let terms = lmcl_logits(&networks, &[z.clone(), z], &Tensor::new(&[0u32], &Device::Cpu)?, 3.0)?;
/// assert_eq!((terms[0].parts.len(), terms[1].parts.len()), (6, 4));
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn lmcl_logits(
    logits: &[Vec<Tensor>],
    aggregated: &[Tensor],
    labels: &Tensor,
    temperature: f64,
) -> Result<Vec<Term>> {
    const METHOD: &str = "lmcl-logit-kd";
    check::temperature(METHOD, temperature)?;
    let undefined = |message: String| Err(Error::Undefined { method: METHOD, message });
    if aggregated.len() != logits.len() {
        let found = aggregated.len();
        return undefined(format!("expected aggregated logits of each of {} networks, found {found}", logits.len()));
    }
    if let Some(network) = logits.iter().position(Vec::is_empty) {
        return undefined(format!("network {network} has no stage"));
    }
    let all: Vec<Tensor> = logits.iter().flatten().cloned().collect();
    let heads = Heads::new(METHOD, "head", &all, labels)?;
    let names: Vec<String> = (0..aggregated.len()).map(|n| format!("aggregated{n}")).collect();
    let others: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(aggregated).collect();
    let task = heads.task(1.0, &others)?;
    let mut parts = Vec::new();
    for (n, stages) in logits.iter().enumerate() {
        let last = stages.last().expect("every network has a stage");
        for (m, target) in aggregated.iter().enumerate() {
            check_like(METHOD, &names[m], target, last)?;
            parts.push((format!("{n}<-{m}"), imitate(last, target, temperature)?));
        }
    }
    Ok(vec![task, sum_of(METHOD, 1.0, parts, &all[0])?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn rows_of_weights_are_those_of_the_loops() {
        let v = Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap();
        let embeddings: Vec<Vec<Tensor>> = [2, 1, 3].map(|stages| vec![v.clone(); stages]).to_vec();
        let mut row = 0;
        let weights = Tensor::arange(0f64, 22.0, &Device::Cpu).unwrap().reshape((22, 1)).unwrap();
        let rows = PairRows::new(&embeddings, Some(&weights), 1).unwrap();
        for i in 0..3 {
            for j in (0..3).filter(|&j| j != i) {
                for k in 0..embeddings[i].len() {
                    for l in 0..embeddings[j].len() {
                        assert_eq!(rows.get([i, j, k, l]).unwrap().to_vec1::<f64>().unwrap(), [f64::from(row)]);
                        row += 1;
                    }
                }
            }
        }
        assert_eq!(row, 22);
        assert!(PairRows::new(&embeddings, Some(&weights.narrow(0, 0, 21).unwrap()), 1).is_err());
    }
}
