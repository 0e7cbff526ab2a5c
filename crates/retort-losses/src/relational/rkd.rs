//! Distances and angles within a batch.

use crate::config::{self, Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Result, ops, reduce};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use retort_kernels::with_gradient;
use serde::{Deserialize, Serialize};

const METHOD: &str = "rkd";
/// Pairs with at most this squared distance count as coincident.
const FLOOR: f64 = 1e-12;

/// The two parts of relational distillation, unweighted.
#[derive(Clone, Debug)]
pub struct RkdLoss {
    /// Distance part, a scalar.
    pub distance: Tensor,
    /// Angle part, a scalar.
    pub angle: Tensor,
}

impl RkdLoss {
    /// `distance_weight * distance + angle_weight * angle`.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn combine(&self, distance_weight: f64, angle_weight: f64) -> Result<Tensor> {
        Ok(((&self.distance * distance_weight)? + (&self.angle * angle_weight)?)?)
    }
}

/// Relational knowledge distillation (Park et al. 2019, arXiv 1904.05068).
///
/// With `D_ij` the distance of samples `i` and `j` divided by the mean distance of all pairs `i != j` (which is part of
/// the graph) and `A_ijk` the cosine of the angle at `i` between `j` and `k`:
/// `distance = mean over B^2 of smoothL1(D_s - D_t)`, `angle = mean over B^3 of smoothL1(A_s - A_t)`, with
/// `smoothL1(d) = d^2 / 2` for `|d| < 1`, else `|d| - 1/2`.
///
/// Differences are formed before they are squared: the usual `|x|^2 + |y|^2 - 2 x.y` loses all digits for near duplicates.
/// A pair with squared distance <= 1e-12 has the constant distance 1e-6 and the constant direction 0.
/// A batch of one sample has loss 0.
///
/// # Shapes
///
/// `student`: `[B, ..]`, `teacher`: `[B, ..]`, flattened per sample; trailing dimensions may differ.
///
/// # Gradients
///
/// Into `student`; `teacher` is detached.
///
/// # Errors
///
/// Batch sizes that differ, or an empty batch.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let f = Tensor::new(&[[0f32, 0.0], [3.0, 4.0], [1.0, 0.0]], &Device::Cpu)?;
/// // Distances relative to their mean and angles do not see the scale.
/// let loss = retort_losses::relational::relational(&f, &(&f * 2.0)?)?.combine(25.0, 50.0)?;
/// assert!(loss.to_scalar::<f32>()? < 1e-10);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn relational(student: &Tensor, teacher: &Tensor) -> Result<RkdLoss> {
    relate(student, teacher, false)
}

/// [`relational`] with squared distances, relative to the mean squared distance, in its distance part: the option
/// `squared` of mdistiller.
///
/// A pair with squared distance <= 1e-12 has the constant squared distance 1e-12. The angles are the same.
///
/// # Errors
///
/// As for [`relational`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let s = Tensor::new(&[[0f64], [1.0], [2.0]], &Device::Cpu)?;
/// let t = Tensor::new(&[[0f64], [1.0], [1.0 + 3f64.sqrt()]], &Device::Cpu)?;
/// let loss = retort_losses::relational::relational_squared(&s, &t)?;
/// assert!(loss.distance.to_scalar::<f64>()? > 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn relational_squared(student: &Tensor, teacher: &Tensor) -> Result<RkdLoss> {
    relate(student, teacher, true)
}

fn relate(student: &Tensor, teacher: &Tensor, squared: bool) -> Result<RkdLoss> {
    let (s, t) = ops::rows(METHOD, student, teacher)?;
    let (geometry_s, geometry_t) = (Geometry::new(&s)?, Geometry::new(&t)?);
    let attach = |(value, laplacian): (f64, Vec<f64>)| -> Result<Tensor> {
        if !s.track_op() {
            return reduce::constant(value, &s);
        }
        Ok(with_gradient(value, &s, &geometry_s.apply(&laplacian, &s)?)?)
    };
    Ok(RkdLoss {
        distance: attach(distances(&geometry_s, &geometry_t, squared))?,
        angle: attach(angles(&geometry_s, &geometry_t))?,
    })
}

/// A batch of points and their distances, in f64 on the host.
///
/// Both parts of the loss depend on differences of points only, so their gradients have the form `L E` with a
/// `[B, B]` matrix L, and nothing of size B^2 D is ever formed.
struct Geometry {
    b: usize,
    d: usize,
    /// `[B, D]`, relative to the mean of the batch, which keeps inner products small.
    points: Vec<f64>,
    /// Inner products of the points, `[B, B]`.
    gram: Vec<f64>,
    /// Distances `[B, B]`; 1e-6 for coincident pairs, 0 on the diagonal.
    distance: Vec<f64>,
    /// Inverse distances `[B, B]`; 0 for coincident pairs and on the diagonal.
    inverse: Vec<f64>,
}

impl Geometry {
    fn new(e: &Tensor) -> Result<Self> {
        let (b, d) = e.dims2()?;
        let mut points = reduce::wide(e)?;
        let mut mean = vec![0.0; d];
        points.chunks_exact(d).for_each(|p| mean.iter_mut().zip(p).for_each(|(m, x)| *m += x / b as f64));
        points.chunks_exact_mut(d).for_each(|p| p.iter_mut().zip(&mean).for_each(|(x, m)| *x -= m));
        let row = |i: usize| &points[i * d..][..d];
        let pairs = |f: &(dyn Fn(usize, usize) -> f64 + Sync)| -> Vec<f64> {
            (0..b * b).into_par_iter().with_min_len(b).map(|ij| f(ij / b, ij % b)).collect()
        };
        let gram = pairs(&|i, j| reduce::lanes(d, |k| row(i)[k] * row(j)[k]));
        let square = pairs(&|i, j| reduce::lanes(d, |k| (row(i)[k] - row(j)[k]).powi(2)));
        // Written so that NaN passes.
        let distance = pairs(&|i, j| match (i == j, square[i * b + j] <= FLOOR) {
            (true, _) => square[i * b + j],
            (false, true) => FLOOR.sqrt(),
            (false, false) => square[i * b + j].sqrt(),
        });
        let inverse = pairs(&|i, j| if square[i * b + j] <= FLOOR { 0.0 } else { distance[i * b + j].recip() });
        Ok(Self { b, d, points, gram, distance, inverse })
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.points[i * self.d..][..self.d]
    }

    /// Cosine of the angle at `i` between `j` and `k`.
    fn cosine(&self, i: usize, j: usize, k: usize) -> f64 {
        let (b, g) = (self.b, &self.gram);
        let scale = self.inverse[i * b + j] * self.inverse[i * b + k];
        let product = g[j * b + k] - g[i * b + j] - g[i * b + k] + g[i * b + i];
        // Three points close together and far from the mean: the inner products would cancel.
        if scale * (g[i * b + i] + g[j * b + j] + g[k * b + k]) > 1e7 {
            let (p, q, r) = (self.row(i), self.row(j), self.row(k));
            return scale * reduce::lanes(self.d, |x| (q[x] - p[x]) * (r[x] - p[x]));
        }
        scale * product
    }

    /// `L E` for a matrix L `[B, B]` whose rows sum to 0, as a tensor like `e`.
    fn apply(&self, laplacian: &[f64], e: &Tensor) -> Result<Tensor> {
        let (b, d) = (self.b, self.d);
        let mut out = vec![0.0; b * d];
        out.par_chunks_mut(d).zip(laplacian.par_chunks(b)).for_each(|(out, weights)| {
            for (weight, point) in weights.iter().zip(self.points.chunks_exact(d)) {
                out.iter_mut().zip(point).for_each(|(o, x)| *o += weight * x);
            }
        });
        Ok(Tensor::from_vec(out, (b, d), &Device::Cpu)?.to_dtype(e.dtype())?.to_device(e.device())?)
    }
}

/// `(value, derivative)` of the smooth L1 penalty; NaN stays NaN.
fn smooth_l1(x: f64) -> (f64, f64) {
    let slope = x.clamp(-1.0, 1.0);
    (slope * (x - 0.5 * slope), slope)
}

/// Value and L of the distance part, of distances or of squared ones.
fn distances(s: &Geometry, t: &Geometry, squared: bool) -> (f64, Vec<f64>) {
    let b = s.b;
    let measure = |g: &Geometry| -> Vec<f64> {
        if squared { g.distance.iter().map(|d| d * d).collect() } else { g.distance.clone() }
    };
    let (d_s, d_t) = (measure(s), measure(t));
    // The derivative by one point is this multiple of the difference; coincident pairs are constants.
    let lever = |inverse: f64| if squared && inverse != 0.0 { 2.0 } else { inverse };
    let pairs = (b * (b - 1)).max(1) as f64;
    // One sample: both distances are 0 (or NaN), and so is the difference.
    let mean = |d: &[f64]| if b == 1 { 1.0 } else { d.iter().sum::<f64>() / pairs };
    let (mean_s, mean_t) = (mean(&d_s), mean(&d_t));
    let penalties = d_s.iter().zip(&d_t).map(|(s, t)| smooth_l1(s / mean_s - t / mean_t));
    let (values, slopes): (Vec<f64>, Vec<f64>) = penalties.unzip();
    let entries = (b * b) as f64;
    // Every distance also moves the mean.
    let through_mean = slopes.iter().zip(&d_s).map(|(w, d)| w * d).sum::<f64>() / (mean_s * mean_s * pairs);
    let mut laplacian = vec![0.0; b * b];
    for (i, row) in laplacian.chunks_exact_mut(b).enumerate() {
        for j in (0..b).filter(|&j| j != i) {
            // The pair counts twice, as (i, j) and as (j, i).
            let pull = 2.0 * (slopes[i * b + j] / mean_s - through_mean) * lever(s.inverse[i * b + j]) / entries;
            row[j] -= pull;
            row[i] += pull;
        }
    }
    (values.iter().sum::<f64>() / entries, laplacian)
}

/// Value and L of the angle part, O(B^3) whatever the width of the embedding.
///
/// With `d_ij = e_j - e_i`, `c_ijk` the cosine and `M` the derivative of the penalty (symmetric in j and k), the
/// derivative with respect to `d_ij` is `2 / B^3 sum_k R_i[j, k] d_ik`, where
/// `R_i[j, k] = M_ijk / (|d_ij| |d_ik|)`, less `sum_k M_ijk c_ijk / |d_ij|^2` on the diagonal.
/// With `R = sum_i R_i` and `Q[i, j]` the row sums of `R_i`: `L = 2 / B^3 (R - Q - Q^T + diag(Q 1))`.
fn angles(s: &Geometry, t: &Geometry) -> (f64, Vec<f64>) {
    let b = s.b;
    // A fixed number of groups of anchors: partial sums do not depend on the number of threads.
    let group = b.div_ceil(16);
    let anchors: Vec<usize> = (0..b).collect();
    let partial: Vec<(f64, Vec<f64>, Vec<f64>)> = anchors
        .par_chunks(group)
        .map(|anchors| {
            let (mut value, mut r, mut q) = (0.0, vec![0.0; b * b], Vec::with_capacity(anchors.len() * b));
            for &i in anchors {
                let inverse = &s.inverse[i * b..][..b];
                for j in 0..b {
                    let (mut own, mut sum) = (0.0, 0.0);
                    for (k, r) in r[j * b..][..b].iter_mut().enumerate() {
                        let cosine = s.cosine(i, j, k);
                        let (penalty, slope) = smooth_l1(cosine - t.cosine(i, j, k));
                        let weight = slope * inverse[j] * inverse[k];
                        value += penalty;
                        own += slope * cosine;
                        sum += weight;
                        *r += weight;
                    }
                    let diagonal = own * inverse[j] * inverse[j];
                    r[j * b + j] -= diagonal;
                    q.push(sum - diagonal);
                }
            }
            (value, r, q)
        })
        .collect();
    let triples = (b * b * b) as f64;
    let mut laplacian = vec![0.0; b * b];
    let mut value = 0.0;
    for (g, (part, r, q)) in partial.iter().enumerate() {
        value += part;
        laplacian.iter_mut().zip(r).for_each(|(l, r)| *l += r);
        for (offset, q) in q.chunks_exact(b).enumerate() {
            let i = g * group + offset;
            for (j, q) in q.iter().enumerate() {
                laplacian[i * b + j] -= q;
                laplacian[j * b + i] -= q;
                laplacian[i * b + i] += q;
            }
        }
    }
    laplacian.iter_mut().for_each(|l| *l *= 2.0 / triples);
    (value / triples, laplacian)
}

/// Hyper-parameters of relational distillation; it reads the embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RkdConfig {
    /// Weight of the distances within the term.
    pub distance: f64,
    /// Weight of the angles within the term.
    pub angle: f64,
    /// Whether distances are squared.
    pub squared: bool,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for RkdConfig {
    fn default() -> Self {
        Self { distance: 25.0, angle: 50.0, squared: false, weight: 1.0 }
    }
}

impl Method for RkdConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Relational knowledge distillation",
        family: Family::Relational,
        paper: Some("Relational Knowledge Distillation"),
        year: Some(2019),
        arxiv: Some("1904.05068"),
        inputs: Inputs { embedding: Side::Both, ..Inputs::NONE },
        trainable: &[],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: Some(1.0),
        weight: 1.0,
        code_bases: config::BOTH,
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::non_negative(METHOD, "distance", self.distance)?;
        check::non_negative(METHOD, "angle", self.angle)
    }
    fn needs(&self) -> Needs {
        Needs::TEACHER
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        ctx.teacher(METHOD)?;
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for RkdConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let loss = relate(&ctx.student.embedding, &ctx.teacher(METHOD)?.embedding, self.squared)?;
        let value = loss.combine(self.distance, self.angle)?;
        let parts = vec![("distance".to_string(), loss.distance), ("angle".to_string(), loss.angle)];
        Ok(Term { name: METHOD, weight: self.weight, value, parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smooth_l1_by_hand_with_borders() {
        let got = [0.0, 0.5, 1.0, -1.0, 3.0, -2.5].map(smooth_l1);
        assert_eq!(got, [(0.0, 0.0), (0.125, 0.5), (0.5, 1.0), (0.5, -1.0), (2.5, 1.0), (2.0, -1.0)]);
        assert!(smooth_l1(f64::NAN).0.is_nan());
    }
}
