//! Wasserstein distance of Gaussians.

use super::Gaussian;
use crate::linalg::{Svd, product, solve_upper, transposed, transposed_product};
use crate::moments::Centred;
use crate::{Distance, Error, Points, Result, checks};

/// Options of [`gaussian_w2`].
#[derive(Clone, Debug, PartialEq)]
pub struct GaussianW2Options {
    /// Divide covariances by n (true) or by n - 1.
    pub bias: bool,
    /// Added to every variance of both clouds, >= 0.
    pub reg: f64,
    /// A cloud with fewer than `2 d` points is accepted only if `reg` is at least this share of its mean variance (with
    /// `reg`), because the gradient grows like `1 / sqrt(reg)` there; 0 switches the rule off.
    pub reg_floor: f64,
}

impl Default for GaussianW2Options {
    fn default() -> Self {
        Self { bias: true, reg: 1e-6, reg_floor: 1e-3 }
    }
}

/// W2 squared of two Gaussians.
#[derive(Clone, Debug, PartialEq)]
pub struct GaussianW2 {
    /// `mean_part + cov_part`, with its gradients.
    pub distance: Distance,
    /// `||m_x - m_y||^2`.
    pub mean_part: f64,
    /// What the covariances add: the squared Bures distance.
    pub cov_part: f64,
    /// `reg` from which on the gradient is tame: 1e-3 mean variances of a cloud with fewer than `2 d` points, the
    /// larger of both; 0 where both have at least `2 d` points, and for [`gaussian_w2_diag`].
    pub advised_reg: f64,
}

/// W2 squared between the Gaussians with the moments of two clouds (Bures-Wasserstein).
///
/// `||m_x - m_y||^2 + tr(A + B - 2 (B^1/2 A B^1/2)^1/2)`, `A = Cov(X) + reg I`, `B = Cov(Y) + reg I`. At most the W2
/// squared of the clouds themselves (Gelbrich 1990), if `reg` is 0 and `bias` true.
///
/// With triangular roots `A = R_x' R_x`, `B = R_y' R_y` and the singular value decomposition `R_y R_x' = U S V'` the
/// second part is `||R_x - V U' R_y||_F^2`: a sum of squares, so nothing cancels where the clouds are close.
///
/// # Shapes
///
/// `x`: `[n, d]`, `y`: `[m, d]`.
///
/// # Gradient
///
/// `d/dx_i = (2/n)(m_x - m_y) + (2/n)(I - T)(x_i - m_x)`, with n - 1 in the second term for `bias` false;
/// `T = R_x^-1 V S V' R_x'^-1` is the optimal linear map from x to y, `T A T = B`. For `y` its inverse takes its place.
///
/// # Errors
///
/// Different widths; one point with `bias` false; options out of range; a covariance that is singular to working
/// precision (the gradient does not exist; [`frechet`] still gives the value) or breaks the rule of `reg_floor`; a
/// result that overflows.
///
/// Source: D. C. Dowson and B. V. Landau, "The Frechet Distance between Multivariate Normal Distributions", 1982;
/// R. Bhatia, T. Jain, Y. Lim, "On the Bures-Wasserstein distance between positive definite matrices", 2019, arXiv
/// 1712.01504.
///
/// # Example
///
/// ```
/// use retort_transport::{GaussianW2Options, Points, gaussian_w2};
/// let x = Points::new("student", &[-1.0, 1.0], 1)?; // mean 0, deviation 1
/// let y = Points::new("teacher", &[1.0, 7.0], 1)?; // mean 4, deviation 3
/// let found = gaussian_w2(x, y, &GaussianW2Options { reg: 0.0, ..GaussianW2Options::default() })?;
/// assert!((found.mean_part - 16.0).abs() < 1e-12 && (found.cov_part - 4.0).abs() < 1e-12);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn gaussian_w2(x: Points<'_>, y: Points<'_>, options: &GaussianW2Options) -> Result<GaussianW2> {
    const METRIC: &str = "gaussian-w2";
    checks::not_negative("reg", options.reg)?;
    checks::not_negative("reg_floor", options.reg_floor)?;
    x.same_width(&y)?;
    if !options.bias {
        checks::two_points(x.name(), x.len())?;
        checks::two_points(y.name(), y.len())?;
    }
    let (a, b) = (Gaussian::new(x, options.bias, options.reg), Gaussian::new(y, options.bias, options.reg));
    check_floor(&a, x.name(), options)?;
    check_floor(&b, y.name(), options)?;
    let bures = Bures::new(METRIC, &a, &b)?;
    a.definite(METRIC, x.name())?;
    b.definite(METRIC, y.name())?;

    let gap = a.cloud.mean_minus(&b.cloud);
    let mean_part = gap.iter().map(|g| g * g).sum();
    let grad_x = pull_back(&a, &gap, 1.0, &bures.svd.v, &bures.svd.values);
    let grad_y = pull_back(&b, &gap, -1.0, &bures.svd.u, &bures.svd.values);
    let distance = checks::finite(METRIC, Distance { value: mean_part + bures.value, grad_x, grad_y })?;
    let advised_reg = share_of_variance(&a, RULE).max(share_of_variance(&b, RULE));
    Ok(GaussianW2 { distance, mean_part, cov_part: bures.value, advised_reg })
}

/// W2 squared between the Gaussians with the means and variances of two clouds: no correlations, no solver.
///
/// `||m_x - m_y||^2 + ||s_x - s_y||^2`, `s = sqrt(biased variance + eps)`. Equals [`gaussian_w2`] where both
/// covariances are diagonal.
///
/// # Shapes
///
/// `x`: `[n, d]`, `y`: `[m, d]`.
///
/// # Gradient
///
/// `d/dx_i = (2/n) [(m_x - m_y) + (1 - s_y / s_x) .* (x_i - m_x)]`. Where `s_x` is 0 (a dead unit or a single point
/// with `eps` 0) the derivative of `s_x` is defined as 0.
///
/// # Errors
///
/// Different widths, `eps` negative or not finite, a result that overflows.
///
/// Source: E. Fernandes Montesuma, "KD2M: A unifying framework for feature knowledge distillation", 2025, arXiv
/// 2504.01757.
///
/// # Example
///
/// ```
/// use retort_transport::{Points, gaussian_w2_diag};
/// let x = Points::new("student", &[-1.0, 1.0], 1)?;
/// let y = Points::new("teacher", &[1.0, 7.0], 1)?;
/// let found = gaussian_w2_diag(x, y, 0.0)?;
/// assert_eq!((found.mean_part, found.cov_part), (16.0, 4.0));
/// assert_eq!(found.distance.grad_x, [-2.0, -6.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn gaussian_w2_diag(x: Points<'_>, y: Points<'_>, eps: f64) -> Result<GaussianW2> {
    checks::not_negative("eps", eps)?;
    x.same_width(&y)?;
    let (x, y) = (Centred::new(x), Centred::new(y));
    let deviations = |cloud: &Centred| -> Vec<f64> {
        cloud.squares().iter().map(|sum| (sum / cloud.n as f64 + eps).sqrt()).collect()
    };
    let (s_x, s_y) = (deviations(&x), deviations(&y));
    let gap = x.mean_minus(&y);
    let mean_part = gap.iter().map(|g| g * g).sum();
    let cov_part = s_x.iter().zip(&s_y).map(|(a, b)| (a - b) * (a - b)).sum();
    let gradient = |cloud: &Centred, sign: f64, own: &[f64], other: &[f64]| -> Vec<f64> {
        let share = 2.0 / cloud.n as f64;
        let stretch: Vec<f64> = own.iter().zip(other).map(|(a, b)| if *a == 0.0 { 0.0 } else { (a - b) / a }).collect();
        let points = cloud.rows.chunks_exact(cloud.width);
        let one = |(x, (gap, stretch)): (&f64, (&f64, &f64))| share * (sign * gap + stretch * x);
        points.flat_map(|row| row.iter().zip(gap.iter().zip(&stretch)).map(one)).collect()
    };
    let (grad_x, grad_y) = (gradient(&x, 1.0, &s_x, &s_y), gradient(&y, -1.0, &s_y, &s_x));
    let distance = checks::finite("gaussian-w2-diag", Distance { value: mean_part + cov_part, grad_x, grad_y })?;
    Ok(GaussianW2 { distance, mean_part, cov_part, advised_reg: 0.0 })
}

/// The Frechet distance (squared) of two clouds: the formula of FID on any features.
///
/// `||m_x - m_y||^2 + tr(A + B - 2 (A B)^1/2)` with unbiased covariances, as [`gaussian_w2`] with `bias` false and
/// `reg` 0, but for any number of points: the value needs no inverse. Its bias falls with n; thousands of points are
/// advised where d is large.
///
/// # Shapes
///
/// `x`: `[n, d]`, `y`: `[m, d]`, at least two points each.
///
/// # Gradient
///
/// None: a metric for evaluation.
///
/// # Errors
///
/// Different widths, fewer than two points, a result that overflows.
///
/// Source: M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017,
/// arXiv 1706.08500.
///
/// # Example
///
/// ```
/// use retort_transport::{Points, frechet};
/// let x = Points::new("student", &[0.0, 0.0, 2.0, 0.0], 2)?;
/// let y = Points::new("teacher", &[1.0, 3.0, 3.0, 3.0], 2)?;
/// assert!((frechet(x, y)? - 10.0).abs() < 1e-12);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn frechet(x: Points<'_>, y: Points<'_>) -> Result<f64> {
    x.same_width(&y)?;
    checks::two_points(x.name(), x.len())?;
    checks::two_points(y.name(), y.len())?;
    let (a, b) = (Gaussian::new(x, false, 0.0), Gaussian::new(y, false, 0.0));
    let means: f64 = a.cloud.mean_minus(&b.cloud).iter().map(|g| g * g).sum();
    let value = means + Bures::new("frechet", &a, &b)?.value;
    Ok(checks::finite("frechet", Distance { value, grad_x: Vec::new(), grad_y: Vec::new() })?.value)
}

/// The share of the mean variance that `reg` should have where a cloud has fewer than `2 d` points.
const RULE: f64 = 1e-3;

/// `share` of the mean variance, or 0 where the cloud has at least `2 d` points.
fn share_of_variance(gaussian: &Gaussian, share: f64) -> f64 {
    let d = gaussian.cloud.width;
    if gaussian.cloud.n >= 2 * d {
        return 0.0;
    }
    share * gaussian.root.iter().map(|r| r * r).sum::<f64>() / d as f64
}

fn check_floor(gaussian: &Gaussian, name: &str, options: &GaussianW2Options) -> Result<()> {
    let needed = share_of_variance(gaussian, options.reg_floor);
    // NaN, from coordinates that are too large, is left to the checks that follow.
    if needed > options.reg {
        let (n, d, reg) = (gaussian.cloud.n, gaussian.cloud.width, options.reg);
        return Err(Error::Undefined(format!(
            "gaussian-w2: {name} has {n} points in {d} coordinates: `reg` must be at least {needed:.3e} (`reg_floor` \
             mean variances), found {reg:e}"
        )));
    }
    Ok(())
}

/// The squared Bures distance, and the singular value decomposition that it and the optimal map come from.
struct Bures {
    value: f64,
    svd: Svd,
}

impl Bures {
    fn new(metric: &'static str, a: &Gaussian, b: &Gaussian) -> Result<Self> {
        let d = a.cloud.width;
        let svd = Svd::new(metric, &product(&b.root, d, &transposed(&a.root, d), d), d)?;
        let rotation = product(&svd.v, d, &transposed(&svd.u, d), d);
        let turned = product(&rotation, d, &b.root, d);
        let value = a.root.iter().zip(&turned).map(|(a, b)| (a - b) * (a - b)).sum();
        Ok(Self { value, svd })
    }
}

/// The gradient of one cloud, from the singular vectors on its side.
fn pull_back(gaussian: &Gaussian, gap: &[f64], sign: f64, vectors: &[f64], values: &[f64]) -> Vec<f64> {
    let d = gaussian.cloud.width;
    // T = F F' with F = R^-1 V S^1/2.
    let mut f: Vec<f64> =
        vectors.chunks_exact(d).flat_map(|row| row.iter().zip(values).map(|(v, s)| v * s.sqrt())).collect();
    solve_upper(&gaussian.root, d, &mut f);
    let f = transposed(&f, d);
    let mut slope = transposed_product(&f, d, &f, d);
    for (i, row) in slope.chunks_exact_mut(d).enumerate() {
        row.iter_mut().for_each(|t| *t = -*t);
        row[i] += 1.0;
    }
    let by_mean: Vec<f64> = gap.iter().map(|g| sign * 2.0 / gaussian.cloud.n as f64 * g).collect();
    gaussian.cloud.pull_back(&by_mean, &slope, 2.0 / gaussian.divisor)
}
