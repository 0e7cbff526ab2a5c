//! Energy distance.

use crate::pairs::Pool;
use crate::{Distance, Estimator, Points, Result, checks};

/// The squared energy distance: maximum mean discrepancy with the kernel `-||x - y||`, without a bandwidth.
///
/// `2 E||X - Y|| - E||X - X'|| - E||Y - Y'||`. SciPy's 1-D function returns its square root, GeomLoss half of it.
///
/// # Shapes
///
/// `x`: `[n, d]`, `y`: `[m, d]`. Memory: `O((n + m) d)` and blocks of pairs.
///
/// # Gradient
///
/// `d/dx_i = (2/n) [mean_j u(x_i - y_j) - mean_j u(x_i - x_j)]`, `u(z) = z / ||z||`, `u(0) = 0`; the second mean is
/// over `n` for the biased and over `n - 1` for the unbiased estimator.
///
/// # Errors
///
/// Different widths, fewer than two points on a side for the unbiased estimator, a result that overflows.
///
/// Source: G. J. Szekely and M. L. Rizzo, "Energy statistics", 2013.
///
/// # Example
///
/// ```
/// use retort_transport::{Estimator, Points, energy_distance};
/// let x = Points::new("student", &[0.0, 0.0], 2)?;
/// let y = Points::new("teacher", &[3.0, 4.0], 2)?;
/// let distance = energy_distance(x, y, Estimator::Biased)?;
/// assert_eq!(distance.value, 10.0);
/// assert!((distance.grad_y[0] - 1.2).abs() < 1e-15 && distance.grad_y[1] == 1.6);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn energy_distance(x: Points<'_>, y: Points<'_>, estimator: Estimator) -> Result<Distance> {
    x.same_width(&y)?;
    if estimator == Estimator::Unbiased {
        checks::two_points(x.name(), x.len())?;
        checks::two_points(y.name(), y.len())?;
    }
    let pool = Pool::centred(x, y);
    let mut distance = pool.of_distances(estimator, |square| {
        let length = square.sqrt();
        (-length, 1.0 / length)
    });
    distance.value *= pool.scale;
    checks::finite("energy-distance", distance)
}
