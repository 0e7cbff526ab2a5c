//! Self-feature regularisation: deep maps of a network supervise its shallow ones. **A reconstruction.**
//!
//! W. Fan and Z. Hou 2021, "Self-Feature Regularization: Self-Feature Distillation Without Teacher Models", arXiv
//! 2103.07350, was withdrawn by its authors, and its formulas are not published. Everything here follows the abstract
//! in a design of our own.

use crate::config::check;
use crate::online::terms::narrow;
use crate::{Error, Result, ops, reduce};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use retort_kernels::{adaptive_avg_pool2d, with_gradient};
use retort_transport::{Points, TransportOptions, Wasserstein, w2, w2_weighted};
use serde::{Deserialize, Serialize};

const EMD: &str = "sfr-emd-l2";
const MANY: &str = "sfr-many-to-one";
/// A vector with at most this norm counts as zero.
const NORM_EPS: f64 = 1e-12;
/// What a location weighs whose vector points away from the mean of the other map.
const LEAST_WEIGHT: f64 = 1e-3;

/// Hyper-parameters of self-feature regularisation, a reconstruction (see [`sfr_emd_l2`]): the objective is [`sfr_dls`]
/// of the logits plus, over the S - 1 shallow stages with the weights `1 / (S - 1)`, `alpha` times [`sfr_emd_l2`] and
/// `beta` times [`sfr_many_to_one`] of the stage's adapted map.
///
/// [`sfr_dls`]: super::sfr_dls()
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SfrSettings {
    /// Weight of the transport between local features, >= 0.
    pub alpha: f64,
    /// Weight of the supervision along channels, >= 0.
    pub beta: f64,
    /// Deep channels for each channel of an adapter.
    pub reduction: usize,
    /// Share of the epochs in which both weights rise linearly, in `0 ..= 1`.
    pub warm_up: f64,
    /// What the locations of a map weigh.
    pub node_weights: NodeWeights,
    /// Weight of the distance at equal locations beside the transport, >= 0.
    pub l2_weight: f64,
    /// How several deep channels supervise a shallow one.
    pub many_to_one: ManyToOne,
    /// Largest share of the smoothed labels, in `0 ..= 1`.
    pub epsilon: f64,
    /// Share of a table's old row that stays after an epoch, in `0 ..= 1`.
    pub momentum: f64,
}

impl Default for SfrSettings {
    fn default() -> Self {
        Self {
            alpha: 0.1,
            beta: 0.1,
            reduction: 2,
            warm_up: 0.1,
            node_weights: NodeWeights::Uniform,
            l2_weight: 1.0,
            many_to_one: ManyToOne::Each,
            epsilon: 0.1,
            momentum: 0.5,
        }
    }
}

impl SfrSettings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        const METHOD: &str = "sfr";
        check::non_negative(METHOD, "alpha", self.alpha)?;
        check::non_negative(METHOD, "beta", self.beta)?;
        check::count(METHOD, "reduction", self.reduction)?;
        check::unit(METHOD, "warm_up", self.warm_up)?;
        check::non_negative(METHOD, "l2_weight", self.l2_weight)?;
        if let ManyToOne::Attention { tau } = self.many_to_one {
            check::positive(METHOD, "tau", tau)?;
        }
        check::unit(METHOD, "epsilon", self.epsilon)?;
        check::unit(METHOD, "momentum", self.momentum)
    }

    /// Factor of `alpha` and `beta` in an epoch, counted from 0: `min(1, (epoch + 1) / (warm_up epochs))`.
    #[must_use]
    pub fn rise(&self, epoch: usize, epochs: usize) -> f64 {
        let length = self.warm_up * epochs as f64;
        if length > 0.0 { ((epoch as f64 + 1.0) / length).min(1.0) } else { 1.0 }
    }
}

/// What the locations of a map weigh in [`sfr_emd_l2`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeWeights {
    /// All the same: an assignment.
    #[default]
    Uniform,
    /// By how well a location's vector fits the mean of the other map, `relu(<u_i, mean_j v_j>) + 1e-3`, made to sum to
    /// 1 and constant, as in DeepEMD (Zhang et al. 2020, arXiv 2003.06777).
    CrossReference,
}

/// [`sfr_emd_l2`] with its parts.
#[derive(Clone, Debug)]
pub struct SfrEmd {
    /// `transport + l2_weight l2`, a scalar.
    pub loss: Tensor,
    /// `mean_b <P_b, C_b>`, a scalar.
    pub transport: Tensor,
    /// `mean_b mean_i ||u_i - v_i||^2`, a scalar.
    pub l2: Tensor,
    /// The plans P, `[B, N, N]`, without history.
    pub plan: Tensor,
}

/// Transport between the local features of a shallow and a deep map; **a reconstruction** of a withdrawn paper (Fan and
/// Hou 2021, arXiv 2103.07350), without published formulas or numbers.
///
/// The shallow map is average-pooled to the deep one's N locations. With `u_i` and `v_j` the vectors over the channels,
/// each divided by its length, `C_ij = ||u_i - v_j||^2` and P the cheapest plan between the locations' weights, the
/// loss is `mean_b [<P_b, C_b> + l2_weight mean_i ||u_i - v_i||^2]`. The second part keeps the spatial correspondence.
///
/// # Shapes
///
/// `shallow`: `[B, C, H, W]` of an adapter with as many channels as `deep`, `[B, C, h, w]` (see [`sfr_reduce`]) with `h
/// <= H`, `w <= W`; `l2_weight >= 0`.
///
/// # Gradients
///
/// Into the shallow map, with the plan constant (envelope theorem); the deep map is a constant. A vector of length <=
/// 1e-12 counts as 0 and gets no gradient.
///
/// # Errors
///
/// Maps that do not fit, values that are not finite, a weight out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{NodeWeights, sfr_emd_l2};
/// let shallow = Tensor::new(&[[[[1f32, 0.0]], [[0.0, 2.0]]]], &Device::Cpu)?;
/// let deep = Tensor::new(&[[[[0f32, 1.0]], [[1.0, 0.0]]]], &Device::Cpu)?; // the same vectors in other places
/// let loss = sfr_emd_l2(&shallow, &deep, NodeWeights::Uniform, 1.0)?;
/// assert_eq!((loss.transport.to_scalar::<f32>()?, loss.l2.to_scalar::<f32>()?), (0.0, 2.0));
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn sfr_emd_l2(shallow: &Tensor, deep: &Tensor, weights: NodeWeights, l2_weight: f64) -> Result<SfrEmd> {
    check::non_negative(EMD, "l2_weight", l2_weight)?;
    let [u, v] = local_vectors(shallow, deep)?;
    let (b, n, c) = u.dims3()?;
    let (points_u, points_v) = (reduce::wide(&u)?, reduce::wide(&v)?);
    let samples = points_u.par_chunks(n * c).zip(points_v.par_chunks(n * c));
    let solved: Vec<Wasserstein> = samples.map(|(u, v)| solve(u, v, c, weights)).collect::<Result<_>>()?;
    let value = solved.iter().map(|s| s.distance.value).sum::<f64>() / b as f64;
    let gradient: Vec<f64> = solved.iter().flat_map(|s| s.distance.grad_x.iter().map(|g| g / b as f64)).collect();
    let plan: Vec<f64> = solved.iter().flat_map(|s| s.transport.plan.dense()).collect();
    let like = |values: Vec<f64>, shape: (usize, usize, usize)| -> Result<Tensor> {
        narrow(&Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(u.device())?, &u)
    };
    let transport = with_gradient(value, &u, &like(gradient, (b, n, c))?)?;
    let l2 = reduce::squared_error(&u, &v, 1.0 / (b * n) as f64)?;
    let loss = (&transport + (&l2 * l2_weight)?)?;
    Ok(SfrEmd { loss, transport, l2, plan: like(plan, (b, n, n))? })
}

/// [`sfr_emd_l2`] with a given assignment in place of the cheapest one, for ablations: location i of the shallow map
/// learns from location `places[i]` of the deep one in every sample. With `places = 0, 1, ..` both parts are the same,
/// the plain distance at equal locations. Part of a reconstruction.
///
/// # Shapes
///
/// As for [`sfr_emd_l2`]; `places`: N numbers below N. Returns a scalar.
///
/// # Gradients
///
/// As for [`sfr_emd_l2`].
///
/// # Errors
///
/// As for [`sfr_emd_l2`]; places that do not fit.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let shallow = Tensor::new(&[[[[1f32, 0.0]], [[0.0, 2.0]]]], &Device::Cpu)?;
/// let deep = Tensor::new(&[[[[0f32, 1.0]], [[1.0, 0.0]]]], &Device::Cpu)?; // the same vectors in other places
/// let loss = |places: &[u32]| retort_losses::self_distillation::sfr_assigned(&shallow, &deep, places, 0.0);
/// assert_eq!(loss(&[1, 0])?.to_scalar::<f32>()?, 0.0);
/// assert_eq!(loss(&[0, 1])?.to_scalar::<f32>()?, 2.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn sfr_assigned(shallow: &Tensor, deep: &Tensor, places: &[u32], l2_weight: f64) -> Result<Tensor> {
    check::non_negative(EMD, "l2_weight", l2_weight)?;
    let [u, v] = local_vectors(shallow, deep)?;
    let (b, n, _) = u.dims3()?;
    if places.len() != n {
        let message = format!("expected a place for each of {n} locations, found {}", places.len());
        return Err(Error::Undefined { method: EMD, message });
    }
    if let Some(&place) = places.iter().find(|&&place| place as usize >= n) {
        return Err(Error::Index { method: EMD, what: "place", index: place.into(), size: n });
    }
    let distance = |v: &Tensor| reduce::squared_error(&u, v, 1.0 / (b * n) as f64);
    let moved = v.index_select(&Tensor::new(places, v.device())?, 1)?;
    Ok((distance(&moved)? + (distance(&v)? * l2_weight)?)?)
}

/// The vectors over the channels at every location of the deep map's grid, each of length 1: `[B, N, C]` of both.
fn local_vectors(shallow: &Tensor, deep: &Tensor) -> Result<[Tensor; 2]> {
    let (pooled, deep) = on_deep_grid(EMD, shallow, deep)?;
    if pooled.dims() != deep.dims() {
        return Err(ops::mismatch(EMD, "maps need as many channels (shallow and deep)", &pooled, &deep));
    }
    let vectors = |map: &Tensor| ops::guarded_normalize(&map.flatten_from(2)?.transpose(1, 2)?.contiguous()?, NORM_EPS);
    Ok([vectors(&pooled)?, vectors(&deep)?])
}

/// Plan, value and gradient of one sample.
fn solve(u: &[f64], v: &[f64], width: usize, weights: NodeWeights) -> Result<Wasserstein> {
    let refused = |error: retort_transport::Error| Error::Undefined { method: EMD, message: error.to_string() };
    let x = Points::new("shallow map", u, width).map_err(refused)?;
    let y = Points::new("deep map", v, width).map_err(refused)?;
    match weights {
        NodeWeights::Uniform => w2(x, y),
        NodeWeights::CrossReference => {
            let (a, b) = (cross_reference(u, v, width), cross_reference(v, u, width));
            w2_weighted(x, y, &a, &b, &TransportOptions::default())
        }
    }
    .map_err(refused)
}

/// `relu(<x_i, mean y>) + 1e-3`, made to sum to 1.
fn cross_reference(x: &[f64], y: &[f64], width: usize) -> Vec<f64> {
    let rows = (y.len() / width) as f64;
    let mean: Vec<f64> = (0..width).map(|c| y.iter().skip(c).step_by(width).sum::<f64>() / rows).collect();
    let fits = |x: &[f64]| x.iter().zip(&mean).map(|(x, m)| x * m).sum::<f64>().max(0.0) + LEAST_WEIGHT;
    let weights: Vec<f64> = x.chunks(width).map(fits).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// The shallow map pooled to the deep one's grid, and the deep one as a constant.
fn on_deep_grid(method: &'static str, shallow: &Tensor, deep: &Tensor) -> Result<(Tensor, Tensor)> {
    ops::check_maps(method, 0, shallow, deep)?;
    let ([_, _, height, width], [_, _, h, w]) = (shallow.dims(), deep.dims()) else {
        unreachable!("the maps' ranks have been checked")
    };
    if h > height || w > width {
        return Err(ops::mismatch(method, "the deep map must not be larger (shallow and deep)", shallow, deep));
    }
    let deep = deep.detach();
    match [h, w] == [height, width] {
        true => Ok((shallow.clone(), deep)),
        false => Ok((adaptive_avg_pool2d(shallow, [*h, *w])?, deep)),
    }
}

/// The mean over groups of consecutive channels, `[B, r C, H, W]` to `[B, C, H, W]`: what brings a deep map to the
/// channels of the adapters for [`sfr_emd_l2`]. Part of a reconstruction.
///
/// # Errors
///
/// No map, or channels that `reduction` does not divide.
pub fn sfr_reduce(deep: &Tensor, reduction: usize) -> Result<Tensor> {
    match *deep.dims() {
        [b, c, h, w] if reduction > 0 && c.is_multiple_of(reduction) && deep.dtype().is_float() => {
            Ok(deep.reshape((b, c / reduction, reduction, h, w))?.mean(2)?)
        }
        _ => {
            let (what, expected) =
                ("deep map".to_string(), format!("floats [B, C, H, W], C a multiple of the reduction {reduction}"));
            Err(Error::Shape { method: EMD, what, expected, found: deep.dims().to_vec() })
        }
    }
}

/// How several deep channels supervise a shallow one in [`sfr_many_to_one`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ManyToOne {
    /// Each for itself: `mean_bck ||s_c - d_ck||^2`.
    #[default]
    #[serde(deserialize_with = "retort_nn::no_fields")]
    Each,
    /// As a mixture: `mean_bc ||s_c - sum_k a_k d_ck||^2` with `a = softmax_k` of the deep channels' mean squares,
    /// divided by `tau`; the mixture is not normalised again.
    Attention {
        /// Temperature of the shares, > 0.
        tau: f64,
    },
}

/// Deep channels supervise shallow ones; **a reconstruction** of a withdrawn paper (Fan and Hou 2021, arXiv
/// 2103.07350), without published formulas or numbers.
///
/// The deep channels `c r .. (c + 1) r` supervise the shallow channel c. The shallow map is average-pooled to the deep
/// one's locations, and every channel's map `s_c`, `d_ck` is flattened and divided by its length; see [`ManyToOne`].
///
/// # Shapes
///
/// `shallow`: `[B, C, H, W]`, `deep`: `[B, r C, h, w]` with `h <= H`, `w <= W`. Returns a scalar.
///
/// # Gradients
///
/// Into the shallow map; the deep map is a constant. A channel of length <= 1e-12 counts as 0 and gets no gradient.
///
/// # Errors
///
/// Maps that do not fit, a `tau` out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_distillation::{ManyToOne, sfr_many_to_one};
/// let shallow = Tensor::new(&[[[[3f32, 0.0]]]], &Device::Cpu)?;
/// let deep = Tensor::new(&[[[[1f32, 0.0]], [[0.0, 1.0]]]], &Device::Cpu)?; // one channel agrees, one does not
/// assert_eq!(sfr_many_to_one(&shallow, &deep, ManyToOne::Each)?.to_scalar::<f32>()?, 1.0);
/// assert_eq!(sfr_many_to_one(&shallow, &deep, ManyToOne::Attention { tau: 1.0 })?.to_scalar::<f32>()?, 0.5);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn sfr_many_to_one(shallow: &Tensor, deep: &Tensor, mode: ManyToOne) -> Result<Tensor> {
    let (pooled, deep) = on_deep_grid(MANY, shallow, deep)?;
    let (b, c, h, w) = pooled.dims4()?;
    let r = deep.dims()[1] / c;
    if deep.dims()[1] != r * c || r == 0 {
        let what = "the deep channels must be a multiple of the shallow ones (shallow and deep)";
        return Err(ops::mismatch(MANY, what, &pooled, &deep));
    }
    let deep = deep.reshape((b, c, r, h * w))?;
    let s = ops::guarded_normalize(&pooled.reshape((b, c, h * w))?, NORM_EPS)?;
    let d = ops::guarded_normalize(&deep.contiguous()?, NORM_EPS)?;
    match mode {
        ManyToOne::Each => {
            let s = s.unsqueeze(2)?.broadcast_as(d.shape())?;
            reduce::squared_error(&s, &d, 1.0 / (b * c * r) as f64)
        }
        ManyToOne::Attention { tau } => {
            check::positive(MANY, "tau", tau)?;
            let shares = ops::log_softmax(&(deep.sqr()?.mean(3)? / tau)?)?.exp()?;
            let mixture = d.broadcast_mul(&shares.unsqueeze(3)?)?.sum(2)?;
            reduce::squared_error(&s, &mixture, 1.0 / (b * c) as f64)
        }
    }
}
