//! Variance, invariance and covariance of embeddings, and what Squeeze-and-Span makes of them.

use super::simsiam::same_embeddings;
use crate::config::check;
use crate::{Error, Result, ops, reduce};
use candle_core::{DType, Tensor};
use retort_kernels::{gram, relu};
use serde::{Deserialize, Serialize};

/// What the root of a variance is kept away from 0 by.
const EPS: f64 = 1e-4;
const VICREG: &str = "vicreg";
const SQUEEZE_SPAN: &str = "squeeze-span";

/// `mean_j max(0, 1 - sqrt(var_j + 1e-4))` with the unbiased variance of dimension j over the batch: 0 where every
/// dimension spreads by 1 or more, 0.99 where all rows are equal (the variance term of VICReg, arXiv 2105.04906).
///
/// Everything after the input is f64.
///
/// # Shapes
///
/// `z`: `[N, D]` with N >= 2. Returns a scalar.
///
/// # Gradients
///
/// `-(z_ij - mean_j) / (D (N - 1) sqrt(var_j + 1e-4))` in the dimensions that spread by less than 1, 0 in the others.
///
/// # Errors
///
/// Another shape, a single row.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let z = Tensor::new(&[[3f32, 0.0], [3.0, 5.0]], &Device::Cpu)?;
/// let hinge = retort_losses::self_supervised::variance_hinge(&z)?;
/// assert!((hinge.to_scalar::<f32>()? - 0.495).abs() < 1e-6); // (1 - 0.01) / 2
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn variance_hinge(z: &Tensor) -> Result<Tensor> {
    Ok(hinge(&centred(VICREG, z)?)?.to_dtype(z.dtype())?)
}

/// `(1/D) sum_{i != j} C_ij^2` with the unbiased covariance C of the dimensions over the batch: 0 where they are
/// uncorrelated (the covariance term of VICReg, arXiv 2105.04906).
///
/// Everything after the input is f64.
///
/// # Shapes
///
/// `z`: `[N, D]` with N >= 2. Returns a scalar.
///
/// # Gradients
///
/// `4 / (D (N - 1)) (Z - mean) C_off` with C_off the covariance without its diagonal.
///
/// # Errors
///
/// As for [`variance_hinge`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let z = Tensor::new(&[[1f32, 1.0], [-1.0, -1.0]], &Device::Cpu)?; // every entry of C is 2
/// let penalty = retort_losses::self_supervised::covariance_penalty(&z)?;
/// assert_eq!(penalty.to_scalar::<f32>()?, 4.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn covariance_penalty(z: &Tensor) -> Result<Tensor> {
    Ok(off_diagonal(&centred(VICREG, z)?)?.to_dtype(z.dtype())?)
}

/// Rows minus their mean, in f64.
fn centred(method: &'static str, z: &Tensor) -> Result<Tensor> {
    let n = ops::samples(method, "embeddings", z)?;
    if z.rank() != 2 || n < 2 {
        let (what, expected) = ("embeddings".to_string(), "[N, D] with at least 2 rows".to_string());
        return Err(Error::Shape { method, what, expected, found: z.dims().to_vec() });
    }
    let z = z.to_dtype(DType::F64)?;
    Ok(z.broadcast_sub(&z.mean_keepdim(0)?)?)
}

fn hinge(centred: &Tensor) -> Result<Tensor> {
    let (n, _) = centred.dims2()?;
    let variance = (centred.sqr()?.sum(0)? / (n - 1) as f64)?;
    reduce::mean_all(&relu(&(variance + EPS)?.sqrt()?.affine(-1.0, 1.0)?)?)
}

fn off_diagonal(centred: &Tensor) -> Result<Tensor> {
    let (n, d) = centred.dims2()?;
    let covariance = (gram(&centred.t()?)? / (n - 1) as f64)?;
    let others = Tensor::eye(d, DType::F64, centred.device())?.affine(-1.0, 1.0)?;
    Ok(reduce::sum_all(&(covariance.sqr()? * others)?)?.affine(1.0 / d as f64, 0.0)?)
}

/// Weights of the three terms of [`vicreg`] and [`squeeze_span`].
///
/// By default 25, 25 and 1, those of VICReg and of Squeeze-and-Span on CIFAR-10 and STL-10; the latter takes 10, 10 and 1
/// on CIFAR-100.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VicregWeights {
    /// Of the mean squared difference of the two embeddings, >= 0.
    pub similarity: f64,
    /// Of the [`variance_hinge`] of each, >= 0.
    pub variance: f64,
    /// Of the [`covariance_penalty`] of each, >= 0.
    pub covariance: f64,
}

impl Default for VicregWeights {
    fn default() -> Self {
        Self { similarity: 25.0, variance: 25.0, covariance: 1.0 }
    }
}

impl VicregWeights {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// Names the first field that is negative or not finite.
    pub fn validate(&self) -> Result<()> {
        self.check(VICREG)
    }

    fn check(&self, method: &'static str) -> Result<()> {
        check::non_negative(method, "similarity", self.similarity)?;
        check::non_negative(method, "variance", self.variance)?;
        check::non_negative(method, "covariance", self.covariance)
    }
}

/// The bare terms of two embeddings of the same samples, all scalars.
#[derive(Clone, Debug)]
pub struct VicregLoss {
    /// Mean squared difference over all N x D entries.
    pub similarity: Tensor,
    /// [`variance_hinge`] of each embedding.
    pub variance: [Tensor; 2],
    /// [`covariance_penalty`] of each embedding.
    pub covariance: [Tensor; 2],
    /// The weighted sum.
    pub total: Tensor,
}

impl VicregLoss {
    /// `regularised` says which of the two embeddings pay for their variance and covariance.
    fn new(method: &'static str, z: [&Tensor; 2], weights: &VicregWeights, regularised: [bool; 2]) -> Result<Self> {
        weights.check(method)?;
        same_embeddings(method, z[0], z[1])?;
        let dtype = z[0].dtype();
        let wide = [z[0].to_dtype(DType::F64)?, z[1].to_dtype(DType::F64)?];
        let similarity = reduce::mean_squared_error(&wide[0], &wide[1])?;
        let mut total = similarity.affine(weights.similarity, 0.0)?;
        let (mut variances, mut covariances) = (Vec::new(), Vec::new());
        for (z, pays) in wide.into_iter().zip(regularised) {
            let rows = centred(method, &if pays { z } else { z.detach() })?;
            let (variance, covariance) = (hinge(&rows)?, off_diagonal(&rows)?);
            if pays {
                total = (total + variance.affine(weights.variance, 0.0)?)?;
                total = (total + covariance.affine(weights.covariance, 0.0)?)?;
            }
            variances.push(variance.to_dtype(dtype)?);
            covariances.push(covariance.to_dtype(dtype)?);
        }
        let pair = |list: Vec<Tensor>| <[Tensor; 2]>::try_from(list).expect("there are two embeddings");
        Ok(Self {
            similarity: similarity.to_dtype(dtype)?,
            variance: pair(variances),
            covariance: pair(covariances),
            total: total.to_dtype(dtype)?,
        })
    }
}

/// VICReg (Bardes, Ponce and LeCun 2022, arXiv 2105.04906), with the terms as Squeeze-and-Span scales them:
/// `l_s mean((z_1 - z_2)^2) + l_v (var z_1 + var z_2) + l_c (cov z_1 + cov z_2)`, var being the [`variance_hinge`] and
/// cov the [`covariance_penalty`].
///
/// # Shapes
///
/// `z1`, `z2`: `[N, D]`, the embeddings of two views of N >= 2 samples. All results are scalars.
///
/// # Gradients
///
/// Into both.
///
/// # Errors
///
/// Shapes that differ, a single row, a weight that is negative or not finite.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_supervised::{VicregWeights, vicreg};
/// let z = Tensor::new(&[[2f32, -2.0], [-2.0, -2.0], [2.0, 2.0], [-2.0, 2.0]], &Device::Cpu)?;
/// assert_eq!(vicreg(&z, &z, &VicregWeights::default())?.total.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn vicreg(z1: &Tensor, z2: &Tensor, weights: &VicregWeights) -> Result<VicregLoss> {
    VicregLoss::new(VICREG, [z1, z2], weights, [true; 2])
}

/// Settings of [`squeeze_span`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SqueezeSpanConfig {
    /// Of both parts.
    pub weights: VicregWeights,
    /// rho: share of generated images in a batch, in `[0, 1]`; 1 squeezes only, the published mixture is 0.5.
    pub synthetic_share: f64,
    /// Whether the squeezed features pay for their variance and covariance, too; the released code only logs these.
    pub regularize_teacher_branch: bool,
}

impl Default for SqueezeSpanConfig {
    fn default() -> Self {
        Self { weights: VicregWeights::default(), synthetic_share: 0.5, regularize_teacher_branch: false }
    }
}

/// What [`squeeze_span`] found.
#[derive(Clone, Debug)]
pub struct SqueezeSpanLoss {
    /// Squeezed features (0) against embeddings of the generated images (1).
    pub squeeze: VicregLoss,
    /// The two views of the real images.
    pub span: Option<VicregLoss>,
    /// `rho squeeze + (1 - rho) span`.
    pub total: Tensor,
}

/// Squeeze-and-Span (Yang et al. 2022, NeurIPS; code yangyu12/squeeze-and-span): a generator's features, squeezed into a
/// vector z_g, are predicted from the generated image, and real images span the gap to the data:
///
/// ```text
/// squeeze = l_s mean((z_g - z_f)^2) + l_v var(z_f) + l_c cov(z_f)
/// span    = vicreg(z_r1, z_r2)
/// total   = rho squeeze + (1 - rho) span
/// ```
///
/// Without real images the total is `rho squeeze`.
///
/// # Shapes
///
/// `generated`: z_g and z_f, `[N, D]`; `real`: z_r1 and z_r2, `[M, D']`; N, M >= 2. All results are scalars.
///
/// # Gradients
///
/// Into all embeddings. z_g, the trainable squeeze module's, gets its own from the difference alone unless
/// `regularize_teacher_branch` is set.
///
/// # Errors
///
/// Shapes of a pair that differ, a single row, a weight that is negative or not finite, a share outside `[0, 1]`.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_supervised::{SqueezeSpanConfig, squeeze_span};
/// let (g, f) = (Tensor::new(&[[1f32], [3.0]], &Device::Cpu)?, Tensor::new(&[[0f32], [4.0]], &Device::Cpu)?);
/// let config = SqueezeSpanConfig { synthetic_share: 1.0, ..SqueezeSpanConfig::default() };
/// assert_eq!(squeeze_span([&g, &f], None, &config)?.total.to_scalar::<f32>()?, 25.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn squeeze_span(
    generated: [&Tensor; 2],
    real: Option<[&Tensor; 2]>,
    config: &SqueezeSpanConfig,
) -> Result<SqueezeSpanLoss> {
    let share = config.synthetic_share;
    check::unit(SQUEEZE_SPAN, "synthetic_share", share)?;
    let regularised = [config.regularize_teacher_branch, true];
    let squeeze = VicregLoss::new(SQUEEZE_SPAN, generated, &config.weights, regularised)?;
    let span = real.map(|views| VicregLoss::new(SQUEEZE_SPAN, views, &config.weights, [true; 2])).transpose()?;
    let mut total = squeeze.total.affine(share, 0.0)?;
    if let Some(span) = &span {
        total = (total + span.total.affine(1.0 - share, 0.0)?)?;
    }
    Ok(SqueezeSpanLoss { squeeze, span, total })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use rand::RngExt;
    use retort_nn::Seed;

    pub(crate) fn scalar(t: &Tensor) -> f64 {
        t.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
    }

    /// Uniform in (-1, 1), f64.
    pub(crate) fn noise(label: &str, n: usize, d: usize) -> Tensor {
        let mut rng = Seed::root(4).child(label).rng();
        let values: Vec<f64> = (0..n * d).map(|_| 2.0 * rng.random::<f64>() - 1.0).collect();
        Tensor::from_vec(values, (n, d), &Device::Cpu).unwrap()
    }

    /// Every derivative against a central difference.
    pub(crate) fn check_gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Tensor) {
        let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let grads = f(&tensors).backward().unwrap();
        for (k, var) in vars.iter().enumerate() {
            let found: Vec<f64> = match grads.get(var) {
                Some(grad) => grad.flatten_all().unwrap().to_vec1().unwrap(),
                None => vec![0.0; var.elem_count()],
            };
            let values: Vec<f64> = inputs[k].flatten_all().unwrap().to_vec1().unwrap();
            for (i, found) in found.iter().enumerate() {
                let at = |h: f64| {
                    let mut moved = values.clone();
                    moved[i] += h;
                    let mut all = inputs.to_vec();
                    all[k] = Tensor::from_vec(moved, inputs[k].dims(), &Device::Cpu).unwrap();
                    scalar(&f(&all))
                };
                let numeric = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!((found - numeric).abs() < 1e-7 * (1.0 + numeric.abs()), "input {k}[{i}]: {found}, {numeric}");
            }
        }
    }

    #[test]
    fn gradients_agree_with_central_differences() {
        // Spreads below and above 1, so that the hinge has both sides.
        let z =
            |label: &str| noise(label, 6, 4).broadcast_mul(&Tensor::new(&[0.3, 1.0, 2.0, 4.0], &Device::Cpu).unwrap());
        let inputs: Vec<Tensor> = ["g", "f", "r1", "r2"].iter().map(|label| z(label).unwrap()).collect();
        check_gradients(&inputs[..1], |x| variance_hinge(&x[0]).unwrap());
        check_gradients(&inputs[..1], |x| covariance_penalty(&x[0]).unwrap());
        let weights = VicregWeights { similarity: 3.0, variance: 2.0, covariance: 0.5 };
        check_gradients(&inputs[..2], |x| vicreg(&x[0], &x[1], &weights).unwrap().total);
        for regularize_teacher_branch in [false, true] {
            let config = SqueezeSpanConfig { weights, synthetic_share: 0.3, regularize_teacher_branch };
            let real = |x: &[Tensor]| squeeze_span([&x[0], &x[1]], Some([&x[2], &x[3]]), &config).unwrap().total;
            check_gradients(&inputs, real);
        }
    }

    #[test]
    fn the_squeezed_side_pays_only_where_it_is_told_to() {
        let (g, f) = (noise("g", 8, 3), noise("f", 8, 3));
        let with = |regularize_teacher_branch| {
            let config = SqueezeSpanConfig { regularize_teacher_branch, synthetic_share: 1.0, ..Default::default() };
            squeeze_span([&g, &f], None, &config).unwrap()
        };
        let (plain, regularised) = (with(false), with(true));
        assert_eq!(scalar(&plain.squeeze.variance[0]), scalar(&regularised.squeeze.variance[0]));
        let more = 25.0 * scalar(&plain.squeeze.variance[0]) + scalar(&plain.squeeze.covariance[0]);
        assert!((scalar(&regularised.total) - scalar(&plain.total) - more).abs() < 1e-12 && more > 0.0);
        assert!(
            (scalar(&regularised.total) - scalar(&vicreg(&g, &f, &Default::default()).unwrap().total)).abs() < 1e-12
        );
    }

    #[test]
    fn shifts_and_orders_are_of_no_consequence() {
        let (a, b) = (noise("a", 7, 5), noise("b", 7, 5));
        let value = |a: &Tensor, b: &Tensor| scalar(&vicreg(a, b, &Default::default()).unwrap().total);
        let order = Tensor::new(&[3u32, 6, 0, 2, 5, 1, 4], &Device::Cpu).unwrap();
        let turned = |x: &Tensor| x.index_select(&order, 0).unwrap();
        let columns = Tensor::new(&[4u32, 2, 0, 1, 3], &Device::Cpu).unwrap();
        let mixed = |x: &Tensor| x.index_select(&columns, 1).unwrap();
        let shift = Tensor::new(&[[5.0f64, -3.0, 0.0, 100.0, 1.0]], &Device::Cpu).unwrap();
        let moved = |x: &Tensor| x.broadcast_add(&shift).unwrap();
        let plain = value(&a, &b);
        for other in [
            value(&turned(&a), &turned(&b)),
            value(&moved(&a), &moved(&b)),
            value(&mixed(&a), &mixed(&b)),
            value(&b, &a),
        ] {
            assert!((plain - other).abs() < 1e-10, "{plain} {other}");
        }
    }

    #[test]
    fn a_collapse_is_finite_and_dear() {
        let z = Var::from_tensor(&Tensor::full(0.3f32, (5, 4), &Device::Cpu).unwrap()).unwrap();
        let loss = vicreg(&z, &z, &Default::default()).unwrap();
        assert!((scalar(&loss.total) - 2.0 * 25.0 * 0.99).abs() < 1e-4);
        let grads = loss.total.backward().unwrap();
        let grad = grads.get(&z).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(grad.iter().all(|g| g.abs() < 1e-6), "{grad:?}");
        // One dimension has nothing to correlate with.
        assert_eq!(scalar(&covariance_penalty(&noise("one", 5, 1)).unwrap()), 0.0);
        let nan = Tensor::new(&[[f32::NAN, 0.0], [1.0, 1.0]], &Device::Cpu).unwrap();
        assert!(scalar(&variance_hinge(&nan).unwrap()).is_nan() && scalar(&covariance_penalty(&nan).unwrap()).is_nan());
        let large = (noise("large", 6, 4) * 1e3).unwrap().to_dtype(DType::F32).unwrap();
        assert!(scalar(&vicreg(&large, &large, &Default::default()).unwrap().total).is_finite());
    }

    #[test]
    fn wrong_input_is_named() {
        let (z, other) = (noise("z", 4, 3), noise("z", 4, 2));
        let message = |r: Result<VicregLoss>| r.unwrap_err().to_string();
        assert!(message(vicreg(&z, &other, &Default::default())).contains("[4, 3]"));
        let one = noise("z", 1, 3);
        assert!(message(vicreg(&one, &one, &Default::default())).contains("at least 2 rows, found [1, 3]"));
        let weights = VicregWeights { variance: -1.0, ..Default::default() };
        assert!(message(vicreg(&z, &z, &weights)).contains("`variance`"));
        assert!(weights.validate().is_err() && VicregWeights::default().validate().is_ok());
        for synthetic_share in [-0.1, 1.1, f64::NAN] {
            let config = SqueezeSpanConfig { synthetic_share, ..Default::default() };
            let message = squeeze_span([&z, &z], None, &config).unwrap_err().to_string();
            assert!(message.starts_with("squeeze-span: field `synthetic_share`"), "{message}");
        }
        assert!(
            serde_json::from_str::<SqueezeSpanConfig>(r#"{"weights": {"similarity": 10, "varience": 1}}"#).is_err()
        );
    }
}
