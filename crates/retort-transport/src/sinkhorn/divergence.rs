//! Entropic distances between clouds.

use super::kernel::{row_sums, weighted_rows};
use super::solve::Problem;
use super::{Sinkhorn, SinkhornOptions, solve, solve_self, uniform, weights};
use crate::linalg::{product, transposed_product};
use crate::{Convergence, Cost, Distance, Points, Result, checks, moments};

/// What [`sinkhorn_distance`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkhornDistance {
    /// The value with its gradients.
    pub distance: Distance,
    /// Plan, duals and the rest of the solution.
    pub solution: Sinkhorn,
}

/// One of the three problems of a [`SinkhornDivergence`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SinkhornPart {
    /// Its value.
    pub value: f64,
    /// How its iteration ended.
    pub convergence: Convergence,
}

impl SinkhornPart {
    fn of(solution: &Sinkhorn) -> Self {
        Self { value: solution.value, convergence: solution.convergence }
    }
}

/// What [`sinkhorn_divergence`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkhornDivergence {
    /// The value with its gradients.
    pub distance: Distance,
    /// The derivative of the value by the weight of each point of `x`, up to a constant.
    pub potential_x: Vec<f64>,
    /// The derivative of the value by the weight of each point of `y`, up to a constant.
    pub potential_y: Vec<f64>,
    /// The eps of all three problems.
    pub eps: f64,
    /// The problem between `x` and `y`.
    pub between: SinkhornPart,
    /// The problem of `x` with itself.
    pub within_x: SinkhornPart,
    /// The problem of `y` with itself.
    pub within_y: SinkhornPart,
}

impl SinkhornDivergence {
    /// Whether all three problems converged.
    #[must_use]
    pub fn converged(&self) -> bool {
        [self.between, self.within_x, self.within_y].iter().all(|part| part.convergence.converged)
    }
}

/// Entropic transport between two clouds with squared Euclidean costs.
///
/// The value of [`sinkhorn`](crate::sinkhorn) for `C_ij = ||x_i - y_j||^2` and equal weights; with eps relative to the
/// mean cost, eps is constant in the gradient. Not 0 for equal clouds: see [`sinkhorn_divergence`].
///
/// # Gradients
///
/// `2 sum_j P_ij (x_i - y_j)` for `x_i`, `2 sum_i P_ij (y_j - x_i)` for `y_j`, by the envelope theorem: exact at
/// convergence.
///
/// # Errors
///
/// Clouds of different widths, distances that overflow, options outside their range.
///
/// # Example
///
/// ```
/// use retort_transport::{Points, SinkhornOptions, sinkhorn_distance};
/// let x = Points::new("student", &[0.0, 0.0], 2)?;
/// let y = Points::new("teacher", &[3.0, 4.0], 2)?;
/// let result = sinkhorn_distance(x, y, &SinkhornOptions::default())?;
/// assert_eq!(result.distance.value, 25.0);
/// assert_eq!(result.distance.grad_x, [-6.0, -8.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn sinkhorn_distance(x: Points<'_>, y: Points<'_>, options: &SinkhornOptions) -> Result<SinkhornDistance> {
    sinkhorn_distance_weighted(x, y, &uniform(x.len()), &uniform(y.len()), options)
}

/// [`sinkhorn_distance`] with weights `a` of the points of `x` and `b` of those of `y`, each of sum 1.
///
/// # Errors
///
/// As [`sinkhorn_distance`] and [`sinkhorn`](crate::sinkhorn).
///
/// # Example
///
/// ```
/// use retort_transport::{Points, SinkhornOptions, sinkhorn_distance_weighted};
/// let x = Points::new("student", &[0.0, 5.0], 1)?;
/// let y = Points::new("teacher", &[3.0], 1)?;
/// let result = sinkhorn_distance_weighted(x, y, &[0.75, 0.25], &[1.0], &SinkhornOptions::default())?;
/// assert!((result.distance.value - 7.75).abs() < 1e-12); // 0.75 * 9 + 0.25 * 4
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn sinkhorn_distance_weighted(
    x: Points<'_>,
    y: Points<'_>,
    a: &[f64],
    b: &[f64],
    options: &SinkhornOptions,
) -> Result<SinkhornDistance> {
    let cost = Cost::squared_euclidean(x, y)?;
    let solution = super::sinkhorn(&cost, a, b, options)?;
    let (grad_x, grad_y) = pulls(&solution.plan, x, y);
    let distance = checks::finite("sinkhorn", Distance { value: solution.value, grad_x, grad_y })?;
    Ok(SinkhornDistance { distance, solution })
}

/// The Sinkhorn divergence between two clouds: entropic transport without its bias.
///
/// `S = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2` with squared Euclidean costs and the same eps in all three
/// (Genevay, Peyré and Cuturi 2018, arXiv 1706.00292). `S >= 0`, and 0 only for equal clouds (Feydy et al. 2019, arXiv
/// 1810.08278); it tends to the squared 2-Wasserstein distance as eps goes to 0, and to the squared distance of the
/// means as eps grows. An eps relative to the mean cost means the mean over `C_ij = ||x_i - y_j||^2`, and is constant
/// in the gradient. Twice the value of GeomLoss at `blur = sqrt(eps / 2)`.
///
/// The problems of a cloud with itself take the symmetric iteration; the one between the clouds starts from their duals,
/// so that it is short for clouds that are nearly equal. What rounding leaves below 0 is returned as 0.
///
/// # Gradients
///
/// `2 sum_j P_xy_ij (x_i - y_j) - 2 sum_j P_xx_ij (x_i - x_j)` for `x_i`, likewise for `y_j`: exact at convergence.
///
/// # Errors
///
/// As [`sinkhorn_distance`].
///
/// # Example
///
/// ```
/// use retort_transport::{Points, SinkhornOptions, sinkhorn_divergence};
/// let x = Points::new("student", &[0.0, 1.0], 1)?;
/// let y = Points::new("teacher", &[2.0, 3.0], 1)?;
/// let result = sinkhorn_divergence(x, y, &SinkhornOptions { tolerance: 1e-9, ..Default::default() })?;
/// // A translation by t costs t^2.
/// assert!((result.distance.value - 4.0).abs() < 1e-8);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn sinkhorn_divergence(x: Points<'_>, y: Points<'_>, options: &SinkhornOptions) -> Result<SinkhornDivergence> {
    sinkhorn_divergence_weighted(x, y, &uniform(x.len()), &uniform(y.len()), options)
}

/// [`sinkhorn_divergence`] with weights `a` of the points of `x` and `b` of those of `y`, each of sum 1.
///
/// # Errors
///
/// As [`sinkhorn_distance_weighted`].
///
/// # Example
///
/// ```
/// use retort_transport::{Points, SinkhornOptions, sinkhorn_divergence_weighted};
/// // The same distribution, written with one point and with two.
/// let x = Points::new("student", &[0.0, 0.0, 1.0], 1)?;
/// let y = Points::new("teacher", &[0.0, 1.0], 1)?;
/// let result = sinkhorn_divergence_weighted(x, y, &[0.25, 0.5, 0.25], &[0.75, 0.25], &SinkhornOptions::default())?;
/// assert!(result.distance.value < 1e-9);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn sinkhorn_divergence_weighted(
    x: Points<'_>,
    y: Points<'_>,
    a: &[f64],
    b: &[f64],
    options: &SinkhornOptions,
) -> Result<SinkhornDivergence> {
    options.check()?;
    let (a, b) = (weights("a", a, x.len())?, weights("b", b, y.len())?);
    let cost = Cost::squared_euclidean(x, y)?;
    let eps = options.resolve(&cost)?;
    let within = |x: Points<'_>, a: &[f64]| -> Result<_> {
        let cost = Cost::squared_euclidean(x, x)?;
        let mut solution = solve_self(Problem { cost: &cost, a, b: a, eps, options });
        let pull = pull_within(&solution.plan, x);
        // Read no more, and as large as a cost matrix.
        solution.plan = Vec::new();
        Ok((solution, pull))
    };
    let (self_x, pull_x) = within(x, &a)?;
    let (self_y, pull_y) = within(y, &b)?;
    let between = solve(Problem { cost: &cost, a: &a, b: &b, eps, options }, Some(&self_y.g));
    let (grad_x, grad_y) = pulls(&between.plan, x, y);

    let value = (between.value - 0.5 * (self_x.value + self_y.value)).max(0.0);
    let minus = |x: Vec<f64>, y: &[f64]| x.iter().zip(y).map(|(x, y)| x - y).collect::<Vec<_>>();
    let distance = Distance { value, grad_x: minus(grad_x, &pull_x), grad_y: minus(grad_y, &pull_y) };
    Ok(SinkhornDivergence {
        distance: checks::finite("sinkhorn divergence", distance)?,
        eps,
        between: SinkhornPart::of(&between),
        within_x: SinkhornPart::of(&self_x),
        within_y: SinkhornPart::of(&self_y),
        potential_x: minus(between.f, &self_x.f),
        potential_y: minus(between.g, &self_y.f),
    })
}

/// `2 sum_j P_ij (x_i - y_j)` for every i, and `2 sum_i P_ij (y_j - x_i)` for every j.
fn pulls(plan: &[f64], x: Points<'_>, y: Points<'_>) -> (Vec<f64>, Vec<f64>) {
    let (m, origin) = (y.len(), moments::middle(x, y));
    let (x, y) = (centred(x, &origin), centred(y, &origin));
    let columns = weighted_rows(plan, &vec![1.0; plan.len() / m], m);
    let from_y = product(plan, m, &y, origin.len());
    let from_x = transposed_product(plan, m, &x, origin.len());
    (away(&x, &row_sums(plan, m), &from_y), away(&y, &columns, &from_x))
}

/// The first of [`pulls`] for the plan of a cloud with itself, which is symmetric.
fn pull_within(plan: &[f64], x: Points<'_>) -> Vec<f64> {
    let (n, origin) = (x.len(), moments::middle(x, x));
    let x = centred(x, &origin);
    away(&x, &row_sums(plan, n), &transposed_product(plan, n, &x, origin.len()))
}

/// Coordinates relative to a point near the clouds, so that differences of sums lose no digits.
fn centred(x: Points<'_>, origin: &[f64]) -> Vec<f64> {
    x.rows().flat_map(|row| row.iter().zip(origin).map(|(x, o)| x - o)).collect()
}

/// `2 (mass_i x_i - target_i)`.
fn away(x: &[f64], mass: &[f64], targets: &[f64]) -> Vec<f64> {
    let width = x.len() / mass.len();
    let rows = x.chunks_exact(width).zip(targets.chunks_exact(width)).zip(mass);
    rows.flat_map(|((x, t), mass)| x.iter().zip(t).map(move |(x, t)| 2.0 * (mass * x - t))).collect()
}
