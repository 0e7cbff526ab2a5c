//! Maximum mean discrepancy.

use crate::classes::Classes;
use crate::moments::Centred;
use crate::pairs::Pool;
use crate::{ClassReduction, Distance, Error, Estimator, Points, Result, checks};

/// A similarity of two points.
#[derive(Clone, Debug, PartialEq)]
pub enum Kernel {
    /// `<x, y>`: compares means only. Both estimators cost `O(n d)`.
    Linear,
    /// `(<x, y> / d + coef0)^degree`. Depends on where the origin is.
    Polynomial {
        /// At least 1.
        degree: u32,
        /// Added to the inner product.
        coef0: f64,
    },
    /// The mean over bandwidths `s` of `exp(-||x - y||^2 / (2 s^2))`.
    Rbf {
        /// The bandwidth before multiplication.
        bandwidth: Bandwidth,
        /// Each one times `bandwidth` is a bandwidth; positive, at least one. `[0.25, 0.5, 1, 2, 4]` is the usual set.
        multipliers: Vec<f64>,
    },
}

/// How wide an RBF kernel is. What the data decide is a constant of the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bandwidth {
    /// A positive number.
    Fixed(f64),
    /// The mean of all entries of the three distance matrices XX, YY and XY, zero diagonals included.
    MeanDistance,
    /// The root of the median of the squared distances of all pairs of distinct points of the pooled clouds; of two
    /// middle values the mean. Holds `(n + m)(n + m - 1) / 2` numbers.
    Median,
}

/// Options of [`mmd`].
#[derive(Clone, Debug, PartialEq)]
pub struct MmdOptions {
    /// RBF with the mean distance as its only bandwidth by default.
    pub kernel: Kernel,
    /// Biased by default.
    pub estimator: Estimator,
}

impl Default for MmdOptions {
    fn default() -> Self {
        let kernel = Kernel::Rbf { bandwidth: Bandwidth::MeanDistance, multipliers: vec![1.0] };
        Self { kernel, estimator: Estimator::Biased }
    }
}

/// A maximum mean discrepancy, squared.
#[derive(Clone, Debug, PartialEq)]
pub struct Mmd {
    /// The squared discrepancy, with its gradients.
    pub distance: Distance,
    /// The bandwidths used, one for each multiplier; `[1]` for kernels without.
    pub bandwidths: Vec<f64>,
}

/// A maximum mean discrepancy by class.
#[derive(Clone, Debug, PartialEq)]
pub struct ConditionalMmd {
    /// The reduced value, with its gradients.
    pub distance: Distance,
    /// The classes present on both sides, ascending.
    pub classes: Vec<u32>,
    /// The value of each of them.
    pub per_class: Vec<f64>,
}

/// Maximum mean discrepancy, squared: how far the means of two clouds are apart in the space of a kernel.
///
/// `mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`; the [`Estimator`] says which pairs the first two means run over.
/// A bandwidth of 0 (all points coincide, or with [`Bandwidth::Median`] most pairs do) gives 0 and zero gradients.
///
/// # Shapes
///
/// `x`: `[n, d]`, `y`: `[m, d]`. Memory: `O((n + m) d)` and blocks of pairs, except for [`Bandwidth::Median`].
///
/// # Gradient
///
/// RBF, biased: `d/dx_i = mean over s of (1/s^2) [(2/(nm)) sum_j k_s(x_i, y_j)(x_i - y_j)
/// - (2/n^2) sum_j k_s(x_i, x_j)(x_i - x_j)]`. Linear: `(2/n)(m_x - m_y)`. Polynomial:
/// `(2/n^2) sum_j k'(x_i, x_j) x_j - (2/(nm)) sum_j k'(x_i, y_j) y_j`, `k' = (degree/d)(<x, y>/d + coef0)^(degree-1)`.
/// Unbiased: `n (n-1)` for `n^2`, without the terms `j = i`. Bandwidths are constants.
///
/// # Errors
///
/// Different widths, fewer than two points on a side for the unbiased estimator, options out of range, a result that
/// overflows.
///
/// Source: A. Gretton et al., "A Kernel Two-Sample Test", 2012.
///
/// # Example
///
/// ```
/// use retort_transport::{Bandwidth, Estimator, Kernel, MmdOptions, Points, mmd};
/// let x = Points::new("student", &[0.0, 0.0], 2)?;
/// let y = Points::new("teacher", &[3.0, 4.0], 2)?;
/// let kernel = Kernel::Rbf { bandwidth: Bandwidth::Fixed(5.0), multipliers: vec![1.0] };
/// let found = mmd(x, y, &MmdOptions { kernel, estimator: Estimator::Biased })?;
/// assert!((found.distance.value - 2.0 * (1.0 - (-0.5f64).exp())).abs() < 1e-15);
/// assert_eq!(found.bandwidths, [5.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn mmd(x: Points<'_>, y: Points<'_>, options: &MmdOptions) -> Result<Mmd> {
    check(&options.kernel)?;
    x.same_width(&y)?;
    if options.estimator == Estimator::Unbiased {
        checks::two_points(x.name(), x.len())?;
        checks::two_points(y.name(), y.len())?;
    }
    let (distance, bandwidths) = match &options.kernel {
        Kernel::Linear => (linear(x, y, options.estimator), vec![1.0]),
        Kernel::Polynomial { degree, coef0 } => (polynomial(x, y, options.estimator, *degree, *coef0), vec![1.0]),
        Kernel::Rbf { bandwidth, multipliers } => rbf(x, y, options.estimator, *bandwidth, multipliers),
    };
    Ok(Mmd { distance: checks::finite("mmd", distance)?, bandwidths })
}

/// [`mmd`] for each class, reduced to one number.
///
/// For each class on both sides, the discrepancy of its points, with a bandwidth of its own where the data decide it.
/// Classes that are missing on a side are left out; without a common class the value is 0 and so are the gradients.
///
/// # Shapes
///
/// `x`: `[n, d]` with n labels, `y`: `[m, d]` with m labels.
///
/// # Gradient
///
/// That of [`mmd`] within each class, times the weight that [`ClassReduction`] gives the class.
///
/// # Errors
///
/// Those of [`mmd`], within a class too (the unbiased estimator needs two points of each common class on each side);
/// another number of labels than of points.
///
/// # Example
///
/// ```
/// use retort_transport::{ClassReduction, Kernel, MmdOptions, Points, mmd_conditional};
/// let x = Points::new("student", &[0.0, 1.0, 5.0], 1)?;
/// let y = Points::new("teacher", &[2.0, 3.0], 1)?;
/// let options = MmdOptions { kernel: Kernel::Linear, ..MmdOptions::default() };
/// let found = mmd_conditional(x, y, &[0, 1, 7], &[1, 0], &options, ClassReduction::Sum)?;
/// assert_eq!(found.classes, [0, 1]);
/// assert_eq!(found.per_class, [9.0, 1.0]);
/// assert_eq!(found.distance.grad_x, [-6.0, -2.0, 0.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn mmd_conditional(
    x: Points<'_>,
    y: Points<'_>,
    labels_x: &[u32],
    labels_y: &[u32],
    options: &MmdOptions,
    reduction: ClassReduction,
) -> Result<ConditionalMmd> {
    check(&options.kernel)?;
    x.same_width(&y)?;
    let classes = Classes::new(x, y, labels_x, labels_y, reduction)?;
    let mut distance = Distance::zero(x, y);
    let mut per_class = Vec::with_capacity(classes.common.len());
    for class in &classes.common {
        if options.estimator == Estimator::Unbiased {
            checks::two_points(&format!("class {} of {}", class.label, x.name()), class.rows_x.len())?;
            checks::two_points(&format!("class {} of {}", class.label, y.name()), class.rows_y.len())?;
        }
        let [some_x, some_y] = class.points(x, y);
        let (some_x, some_y) = (Points::new(x.name(), &some_x, x.width())?, Points::new(y.name(), &some_y, x.width())?);
        let found = mmd(some_x, some_y, options)?.distance;
        class.add(&mut distance, &found, x.width());
        per_class.push(found.value);
    }
    Ok(ConditionalMmd { distance: checks::finite("mmd-conditional", distance)?, classes: classes.labels(), per_class })
}

fn check(kernel: &Kernel) -> Result<()> {
    match kernel {
        Kernel::Linear => Ok(()),
        Kernel::Polynomial { degree, coef0 } => {
            let small = i32::try_from(*degree).is_ok_and(|degree| degree >= 1);
            checks::option("degree", "an integer in 1..=2147483647", f64::from(*degree), small)?;
            checks::option("coef0", "a finite number", *coef0, true)
        }
        Kernel::Rbf { bandwidth, multipliers } => {
            if let Bandwidth::Fixed(s) = bandwidth {
                checks::positive("bandwidth", *s)?;
            }
            if multipliers.is_empty() {
                let expected = "at least one positive number";
                return Err(Error::Option { field: "multipliers", expected, found: "none".into() });
            }
            multipliers.iter().try_for_each(|multiplier| checks::positive("multipliers", *multiplier))
        }
    }
}

/// `||m_x - m_y||^2`; the unbiased form subtracts the mean square deviations over `n (n-1)` and `m (m-1)`.
fn linear(x: Points<'_>, y: Points<'_>, estimator: Estimator) -> Distance {
    let (x, y) = (Centred::new(x), Centred::new(y));
    let gap = x.mean_minus(&y);
    let mut value: f64 = gap.iter().map(|g| g * g).sum();
    let mut grads = [(&x, 2.0), (&y, -2.0)].map(|(cloud, sign)| {
        let by_mean = gap.iter().map(|g| sign / cloud.n as f64 * g).collect::<Vec<_>>();
        by_mean.repeat(cloud.n)
    });
    if estimator == Estimator::Unbiased {
        for (cloud, grad) in [&x, &y].into_iter().zip(&mut grads) {
            let pairs = estimator.pairs(cloud.n);
            value -= cloud.squares().iter().sum::<f64>() / pairs;
            grad.iter_mut().zip(&cloud.rows).for_each(|(g, x)| *g -= 2.0 / pairs * x);
        }
    }
    let [grad_x, grad_y] = grads;
    Distance { value, grad_x, grad_y }
}

fn polynomial(x: Points<'_>, y: Points<'_>, estimator: Estimator, degree: u32, coef0: f64) -> Distance {
    let (width, exponent) = (x.width() as f64, degree.cast_signed());
    Pool::new(x, y).of_products(estimator, |product| {
        let base = product / width + coef0;
        let lower = base.powi(exponent - 1);
        (lower * base, f64::from(degree) / width * lower)
    })
}

fn rbf(
    x: Points<'_>,
    y: Points<'_>,
    estimator: Estimator,
    bandwidth: Bandwidth,
    multipliers: &[f64],
) -> (Distance, Vec<f64>) {
    let pool = Pool::centred(x, y);
    // In the units of the pool.
    let base = match bandwidth {
        Bandwidth::Fixed(s) => s / pool.scale,
        Bandwidth::MeanDistance => pool.mean_distance(),
        Bandwidth::Median => pool.median_distance(),
    };
    let bandwidths: Vec<f64> = multipliers.iter().map(|multiplier| base * multiplier).collect();
    let used = bandwidths.iter().map(|s| s * pool.scale).collect();
    let share = 1.0 / bandwidths.len() as f64;
    let inverse: Vec<f64> = bandwidths.iter().map(|s| 1.0 / s).collect();
    if base == 0.0 || inverse.iter().any(|inverse| inverse.is_infinite()) {
        let zero = Distance { value: 0.0, grad_x: vec![0.0; x.values().len()], grad_y: vec![0.0; y.values().len()] };
        return (zero, used);
    }
    let mut distance = pool.of_distances(estimator, |square| {
        let (mut k, mut w) = (0.0, 0.0);
        for inverse in &inverse {
            let value = (-0.5 * (square * inverse * inverse)).exp();
            k += value;
            w += value * inverse * inverse;
        }
        (k * share, w * share)
    });
    distance.grad_x.iter_mut().chain(&mut distance.grad_y).for_each(|g| *g /= pool.scale);
    (distance, used)
}
