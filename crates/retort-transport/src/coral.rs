//! Alignment of second moments.

use crate::linalg::{Svd, product, transposed, transposed_product, triangular};
use crate::moments::Centred;
use crate::{Distance, Error, Points, Result, checks};

/// Which matrix of second moments is compared; `A` is the unbiased covariance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CoralMatrix {
    /// `A`.
    #[default]
    Covariance,
    /// `A_ij / sqrt((A_ii + reg)(A_jj + reg))`: free of scale. A coordinate with `A_ii + reg = 0` counts as 0
    /// throughout.
    Correlation,
    /// The matrix logarithm of `A + reg I`: the log-Euclidean distance.
    Log,
}

/// Options of [`coral`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CoralOptions {
    /// Which matrix is compared.
    pub matrix: CoralMatrix,
    /// Added to the variances, >= 0. [`CoralMatrix::Log`] needs it where a cloud has no more points than coordinates;
    /// without effect on [`CoralMatrix::Covariance`].
    pub reg: f64,
}

/// CORAL: the squared Frobenius distance of the second moments of two clouds; means are ignored.
///
/// `||M_x - M_y||_F^2 / (4 d^2)`, `M` the covariance, the correlation or the logarithm of the covariance.
///
/// # Shapes
///
/// `x`: `[n, d]`, `y`: `[m, d]`, at least two points each.
///
/// # Gradient
///
/// `d/dx_i = (2/(n-1)) (dL/dA)(x_i - m_x)`. Covariance: `dL/dA = G = (M_x - M_y) / (2 d^2)`. Correlation, with
/// `t_i = (A_ii + reg)^(-1/2)`: `diag(t) [G - diag(rowsum(G .* M_x))] diag(t)`. Logarithm, with `A + reg I = V diag(w)
/// V'`:
/// `V [(V' G V) .* K] V'`, `K_ij = (log w_i - log w_j)/(w_i - w_j)`, `1/w_i` where they are equal.
///
/// # Errors
///
/// Different widths, fewer than two points, `reg` negative, a covariance that is singular where its logarithm is asked
/// for, a result that overflows.
///
/// Source: B. Sun and K. Saenko, "Deep CORAL", 2016, arXiv 1607.01719; the logarithm: Y. Wang, W. Li, D. Dai, L. Van
/// Gool, "Deep Domain Adaptation by Geodesic Distance Minimization", 2017, arXiv 1707.09842.
///
/// # Example
///
/// ```
/// use retort_transport::{CoralOptions, Points, coral};
/// let x = Points::new("student", &[0.0, 2.0], 1)?; // variance 2
/// let y = Points::new("teacher", &[1.0, 3.0, 5.0], 1)?; // variance 4
/// let distance = coral(x, y, &CoralOptions::default())?;
/// assert_eq!(distance.value, 1.0);
/// assert_eq!(distance.grad_x, [2.0, -2.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn coral(x: Points<'_>, y: Points<'_>, options: &CoralOptions) -> Result<Distance> {
    checks::not_negative("reg", options.reg)?;
    x.same_width(&y)?;
    checks::two_points(x.name(), x.len())?;
    checks::two_points(y.name(), y.len())?;
    let d = x.width();
    let (x, y) = (Side::new(x, options)?, Side::new(y, options)?);
    let gap: Vec<f64> = x.matrix.iter().zip(&y.matrix).map(|(a, b)| a - b).collect();
    let size = d as f64;
    let value = gap.iter().map(|g| g / size * (g / size)).sum::<f64>() / 4.0;
    let slope: Vec<f64> = gap.iter().map(|g| g / (2.0 * size * size)).collect();
    let (grad_x, mut grad_y) = (x.gradient(&slope), y.gradient(&slope));
    grad_y.iter_mut().for_each(|g| *g = -*g);
    checks::finite("coral", Distance { value, grad_x, grad_y })
}

/// One cloud, the matrix compared, and what its derivative needs.
struct Side {
    cloud: Centred,
    matrix: Vec<f64>,
    kind: Kind,
}

enum Kind {
    Covariance,
    /// `t_i`.
    Correlation(Vec<f64>),
    /// Eigenvectors (in columns) and eigenvalues.
    Log(Vec<f64>, Vec<f64>),
}

impl Side {
    fn new(points: Points<'_>, options: &CoralOptions) -> Result<Self> {
        let cloud = Centred::new(points);
        let (d, divisor) = (cloud.width, (cloud.n - 1) as f64);
        if options.matrix == CoralMatrix::Log {
            return Self::log(points.name(), cloud, options.reg);
        }
        let mut matrix = cloud.scatter();
        matrix.iter_mut().for_each(|a| *a /= divisor);
        if options.matrix == CoralMatrix::Covariance {
            return Ok(Self { cloud, matrix, kind: Kind::Covariance });
        }
        let variances = (0..d).map(|i| matrix[i * d + i] + options.reg);
        let t: Vec<f64> = variances.map(|v| if v == 0.0 { 0.0 } else { 1.0 / v.sqrt() }).collect();
        for (row, a) in matrix.chunks_exact_mut(d).zip(&t) {
            row.iter_mut().zip(&t).for_each(|(r, b)| *r *= a * b);
        }
        Ok(Self { cloud, matrix, kind: Kind::Correlation(t) })
    }

    fn log(name: &str, cloud: Centred, reg: f64) -> Result<Self> {
        let (d, divisor) = (cloud.width, (cloud.n - 1) as f64);
        let root = triangular(&cloud.rows, d, (reg * divisor).sqrt());
        let Svd { values, v, .. } = Svd::new("coral", &root, d)?;
        if values[d - 1] <= values[0] * f64::EPSILON * (d.max(cloud.n)) as f64 {
            return Err(Error::Undefined(format!(
                "coral: the covariance of {name} ({} points, {d} coordinates) is singular and has no logarithm; raise \
                 `reg`",
                cloud.n
            )));
        }
        let roots = values.iter().map(|s| s / divisor.sqrt());
        let (logs, eigenvalues): (Vec<f64>, Vec<f64>) = roots.map(|s| (2.0 * s.ln(), s * s)).unzip();
        let scaled: Vec<f64> =
            v.chunks_exact(d).flat_map(|row| row.iter().zip(&logs).map(|(v, log)| v * log)).collect();
        let matrix = product(&scaled, d, &transposed(&v, d), d);
        Ok(Self { cloud, matrix, kind: Kind::Log(v, eigenvalues) })
    }

    /// The gradient for `dL/dM = slope`.
    fn gradient(&self, slope: &[f64]) -> Vec<f64> {
        let d = self.cloud.width;
        let by_covariance = match &self.kind {
            Kind::Covariance => slope.to_vec(),
            Kind::Correlation(t) => {
                let mut out = slope.to_vec();
                for (i, (out, row)) in out.chunks_exact_mut(d).zip(self.matrix.chunks_exact(d)).enumerate() {
                    out[i] -= slope[i * d..][..d].iter().zip(row).map(|(g, r)| g * r).sum::<f64>();
                    out.iter_mut().zip(t).for_each(|(g, other)| *g *= t[i] * other);
                }
                out
            }
            Kind::Log(v, w) => {
                let mut inner = transposed_product(v, d, &product(slope, d, v, d), d);
                for (row, a) in inner.chunks_exact_mut(d).zip(w) {
                    row.iter_mut().zip(w).for_each(|(g, b)| *g *= slope_of_log(*a, *b));
                }
                product(&product(v, d, &inner, d), d, &transposed(v, d), d)
            }
        };
        self.cloud.pull_back(&vec![0.0; d], &by_covariance, 2.0 / (self.cloud.n - 1) as f64)
    }
}

/// `(log a - log b) / (a - b)`, and its limit `1/a`, without cancellation.
fn slope_of_log(a: f64, b: f64) -> f64 {
    let (low, high) = (a.min(b), a.max(b));
    let ratio = (high - low) / low;
    if ratio == 0.0 { 1.0 / low } else { ratio.ln_1p() / ratio / low }
}
