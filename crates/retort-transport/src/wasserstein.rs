//! Exact Wasserstein distances between point clouds.

use crate::{Cost, Distance, Plan, Points, Result, Transport, TransportOptions, checks, transport, uniform_transport};

/// A distance with the plan and the duals behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wasserstein {
    /// Value and gradients.
    pub distance: Distance,
    /// Plan, duals, and whether the solver finished.
    pub transport: Transport,
}

/// The squared 2-Wasserstein distance between two clouds whose points all weigh the same.
///
/// `min_P sum_ij P_ij ||x_i - y_j||^2` over plans with row sums `1/n` and column sums `1/m`. The square: its root has an
/// infinite gradient at 0. With n = m the plan is a permutation divided by n.
///
/// # Shapes
///
/// `x`: `[n, d]`, `y`: `[m, d]`, gradients likewise, plan `[n, m]`.
///
/// # Gradients
///
/// With the plan held constant (envelope theorem), `grad x_i = 2 sum_j P_ij (x_i - y_j)` and
/// `grad y_j = 2 sum_i P_ij (y_j - x_i)`. Where several plans are optimal this is a subgradient.
///
/// # Errors
///
/// Clouds of different widths, or coordinates so large that a square overflows.
///
/// # Source
///
/// The empirical metric of Fernandes Montesuma 2025, "KD2M: A unifying framework for feature knowledge distillation"
/// (arXiv 2504.01757).
///
/// # Example
///
/// ```
/// use retort_transport::{Points, w2};
/// let x = Points::new("student", &[0.0, 5.0], 1)?;
/// let y = Points::new("teacher", &[6.0, 2.0], 1)?;
/// let w = w2(x, y)?;
/// assert_eq!(w.distance.value, 2.5); // (0 - 2)^2 / 2 + (5 - 6)^2 / 2
/// assert_eq!(w.distance.grad_x, [-2.0, -1.0]);
/// assert_eq!(w.transport.plan.dense(), [0.0, 0.5, 0.5, 0.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn w2(x: Points<'_>, y: Points<'_>) -> Result<Wasserstein> {
    squared(x, y, uniform_transport(&Cost::squared_euclidean(x, y)?, &TransportOptions::default()))
}

/// [`w2`] between clouds whose points have the masses `a` and `b`, as in [`transport`].
///
/// Points without mass take no part, and their gradient is 0.
///
/// # Errors
///
/// Those of [`w2`] and of [`transport`].
///
/// # Example
///
/// ```
/// use retort_transport::{Points, TransportOptions, w2_weighted};
/// let x = Points::new("student", &[0.0, 5.0], 1)?;
/// let y = Points::new("teacher", &[6.0, 2.0], 1)?;
/// let w = w2_weighted(x, y, &[0.5, 0.5], &[0.0, 1.0], &TransportOptions::default())?;
/// assert_eq!(w.distance.value, 6.5); // (0 - 2)^2 / 2 + (5 - 2)^2 / 2
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn w2_weighted(
    x: Points<'_>,
    y: Points<'_>,
    a: &[f64],
    b: &[f64],
    options: &TransportOptions,
) -> Result<Wasserstein> {
    squared(x, y, transport(&Cost::squared_euclidean(x, y)?, a, b, options)?)
}

/// The 1-Wasserstein distance between two clouds whose points all weigh the same.
///
/// `min_P sum_ij P_ij ||x_i - y_j||` over plans with row sums `1/n` and column sums `1/m`; it bounds the difference of
/// the means of any 1-Lipschitz function (Kantorovich and Rubinstein 1958).
///
/// # Shapes
///
/// `x`: `[n, d]`, `y`: `[m, d]`, gradients likewise, plan `[n, m]`.
///
/// # Gradients
///
/// `grad x_i = sum_j P_ij u(x_i - y_j)` with `u(z) = z / ||z||` and `u(0) = 0`; for y with the opposite sign.
///
/// # Errors
///
/// Clouds of different widths, or coordinates so large that a distance overflows.
///
/// # Example
///
/// ```
/// use retort_transport::{Points, w1};
/// let x = Points::new("student", &[0.0, 0.0, 1.0, 1.0], 2)?;
/// let y = Points::new("teacher", &[1.0, 1.0, 3.0, 4.0], 2)?;
/// let w = w1(x, y)?;
/// assert_eq!(w.distance.value, 2.5);
/// assert_eq!(w.distance.grad_x, [-0.3, -0.4, 0.0, 0.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn w1(x: Points<'_>, y: Points<'_>) -> Result<Wasserstein> {
    let cost = Cost::euclidean(x, y)?;
    norms(x, y, &cost, uniform_transport(&cost, &TransportOptions::default()))
}

/// [`w1`] between clouds whose points have the masses `a` and `b`, as in [`transport`].
///
/// # Errors
///
/// Those of [`w1`] and of [`transport`].
///
/// # Example
///
/// ```
/// use retort_transport::{Points, TransportOptions, w1_weighted};
/// let x = Points::new("student", &[0.0, 5.0], 1)?;
/// let y = Points::new("teacher", &[6.0, 2.0], 1)?;
/// let w = w1_weighted(x, y, &[0.25, 0.75], &[0.5, 0.5], &TransportOptions::default())?;
/// assert_eq!(w.distance.value, 1.75); // 2 / 4 + 3 / 4 + 1 / 2
/// assert_eq!(w.distance.grad_x, [-0.25, -0.25]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn w1_weighted(
    x: Points<'_>,
    y: Points<'_>,
    a: &[f64],
    b: &[f64],
    options: &TransportOptions,
) -> Result<Wasserstein> {
    let cost = Cost::euclidean(x, y)?;
    let solved = transport(&cost, a, b, options)?;
    norms(x, y, &cost, solved)
}

fn squared(x: Points<'_>, y: Points<'_>, transport: Transport) -> Result<Wasserstein> {
    let (grad_x, grad_y) = pull(x, y, &transport.plan, |_, _, difference| 2.0 * difference);
    let distance = checks::finite("w2", Distance { value: transport.value, grad_x, grad_y })?;
    Ok(Wasserstein { distance, transport })
}

fn norms(x: Points<'_>, y: Points<'_>, cost: &Cost, transport: Transport) -> Result<Wasserstein> {
    let unit = |i: usize, j: usize, difference: f64| {
        let norm = cost.row(i)[j];
        if norm == 0.0 { 0.0 } else { difference / norm }
    };
    let (grad_x, grad_y) = pull(x, y, &transport.plan, unit);
    let distance = checks::finite("w1", Distance { value: transport.value, grad_x, grad_y })?;
    Ok(Wasserstein { distance, transport })
}

/// `sum_j P_ij f_ij(x_i - y_j)` for every i, and the opposite forces on every j.
///
/// From the differences: they are exactly 0 where a point is matched with its equal.
pub(crate) fn pull(
    x: Points<'_>,
    y: Points<'_>,
    plan: &Plan,
    force: impl Fn(usize, usize, f64) -> f64,
) -> (Vec<f64>, Vec<f64>) {
    let width = x.width();
    let (mut grad_x, mut grad_y) = (vec![0.0; x.values().len()], vec![0.0; y.values().len()]);
    for &(i, j, mass) in plan.entries() {
        let (grad_x, grad_y) = (&mut grad_x[i * width..][..width], &mut grad_y[j * width..][..width]);
        for (k, (x, y)) in x.row(i).iter().zip(y.row(j)).enumerate() {
            let force = mass * force(i, j, x - y);
            grad_x[k] += force;
            grad_y[k] -= force;
        }
    }
    (grad_x, grad_y)
}
