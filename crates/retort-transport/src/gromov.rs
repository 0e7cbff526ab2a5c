//! Gromov-Wasserstein: clouds compared through their inner distances.

use crate::linalg::{product, transposed, transposed_product};
use crate::sinkhorn::weights;
use crate::{Cost, Distance, Error, Points, Result, TransportOptions, checks, cosine, moments, transport};

/// The distance between two points of one cloud.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InnerDistance {
    /// `||x_i - x_k||`; its gradient is 0 where points coincide.
    #[default]
    Euclidean,
    /// `||x_i - x_k||^2`.
    SquaredEuclidean,
    /// `1 - cos(x_i, x_k)`; a zero point is orthogonal to all others and gets no gradient.
    Cosine,
}

/// How to look for a Gromov-Wasserstein plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GromovOptions {
    /// The distance within each cloud.
    pub inner: InnerDistance,
    /// Steps at most.
    pub max_iter: usize,
    /// The duality gap at which the search stops, in units of the mean squared inner distances of both clouds, > 0.
    pub tolerance: f64,
    /// For the linear problem of each step.
    pub transport: TransportOptions,
}

impl Default for GromovOptions {
    fn default() -> Self {
        let (inner, transport) = (InnerDistance::default(), TransportOptions::default());
        Self { inner, max_iter: 500, tolerance: 1e-9, transport }
    }
}

/// A stationary plan of the Gromov-Wasserstein problem.
#[derive(Clone, Debug, PartialEq)]
pub struct GromovWasserstein {
    /// The value at the plan, with the gradients that hold the plan constant.
    pub distance: Distance,
    /// The plan, row after row.
    pub plan: Vec<f64>,
    /// Steps done.
    pub iterations: usize,
    /// `max_T <grad, P - T>` over all plans T: 0 at stationary points. No bound of the distance to a global minimum.
    pub gap: f64,
    /// Whether the gap is below the tolerance and every linear problem was solved.
    pub converged: bool,
}

/// The Gromov-Wasserstein objective at a given plan, with gradients that hold the plan constant.
///
/// `sum_ijkl (A_ik - B_jl)^2 P_ij P_kl` with the inner distances A of `x` and B of `y` (Mémoli 2011; the square loss of
/// Peyré, Cuturi and Solomon 2016), computed as `p' A.^2 p + q' B.^2 q - 2 <A P B, P>` where p and q are the row and
/// column sums of P. The widths of the clouds may differ.
///
/// # Shapes
///
/// `plan`: `[n, m]`, row after row, not negative; its sum need not be 1.
///
/// # Gradients
///
/// `sum_k 2 W_ik dA_ik/dx_i` for `x_i`, with `W = 2 (p p') .* A - 2 P B P'`; likewise for `y`.
///
/// # Errors
///
/// A plan of the wrong size, negative or not finite; distances that overflow.
///
/// # Example
///
/// ```
/// use retort_transport::{InnerDistance, Points, gromov_wasserstein_at};
/// let x = Points::new("student", &[0.0, 1.0], 1)?;
/// let y = Points::new("teacher", &[0.0, 0.0, 0.0, 3.0], 2)?;
/// let at = gromov_wasserstein_at(x, y, &[0.5, 0.0, 0.0, 0.5], InnerDistance::Euclidean)?;
/// // Two of the four pairs are (1 - 3)^2 apart.
/// assert_eq!(at.value, 2.0);
/// assert_eq!(at.grad_x, [2.0, -2.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn gromov_wasserstein_at(x: Points<'_>, y: Points<'_>, plan: &[f64], inner: InnerDistance) -> Result<Distance> {
    if x.len().checked_mul(y.len()) != Some(plan.len()) {
        let (expected, found) = (format!("{} x {} entries", x.len(), y.len()), plan.len().to_string());
        return Err(Error::Shape { what: "plan".into(), expected, found });
    }
    if let Some(index) = plan.iter().position(|p| !p.is_finite() || *p < 0.0) {
        return Err(Error::Value { what: "plan".into(), expected: "a finite mass >= 0", found: plan[index], index });
    }
    let (a, b) = (Inner::new(x, inner)?, Inner::new(y, inner)?);
    at(&a, &b, plan)
}

fn at(a: &Inner<'_>, b: &Inner<'_>, plan: &[f64]) -> Result<Distance> {
    let (n, m) = (a.points.len(), b.points.len());
    let p: Vec<f64> = plan.chunks_exact(m).map(|row| row.iter().sum()).collect();
    let mut q = vec![0.0; m];
    plan.chunks_exact(m).for_each(|row| q.iter_mut().zip(row).for_each(|(q, p)| *q += p));
    let (ap, pb) = (product(&a.distances, n, plan, m), product(plan, m, &b.distances, m));
    let value = a.mean_square(&p) + b.mean_square(&q) - 2.0 * dot(&ap, &pb);
    let slope_a = a.slope(&p, &product(&pb, m, &transposed(plan, m), n));
    let slope_b = b.slope(&q, &transposed_product(plan, m, &ap, m));
    // Rounding can push the value below 0.
    let distance = Distance { value: value.max(0.0), grad_x: a.pull(&slope_a), grad_y: b.pull(&slope_b) };
    checks::finite("gromov-wasserstein", distance)
}

/// A plan at which the Gromov-Wasserstein objective is stationary, and the objective there.
///
/// Conditional gradients from `P = a b'` with equal weights: each step solves a linear transport problem with the costs
/// `-4 A P B` exactly, and goes to the minimum of the objective on the way to its solution, which is a quadratic. The
/// problem is not convex: what is found is a local minimum in general, or a saddle in symmetric cases. Cost per step:
/// `O(n^2 m)` and the transport problem.
///
/// # Gradients
///
/// Those of [`gromov_wasserstein_at`] at the plan.
///
/// # Errors
///
/// Options outside their range, distances that overflow.
///
/// # Example
///
/// ```
/// use retort_transport::{GromovOptions, Points, gromov_wasserstein};
/// // The same shape, turned, moved and in another order.
/// let x = Points::new("student", &[0.0, 1.0, 5.0], 1)?;
/// let y = Points::new("teacher", &[0.0, 6.0, 0.0, 1.0, 0.0, 2.0], 2)?;
/// let found = gromov_wasserstein(x, y, &GromovOptions::default())?;
/// assert!(found.converged && found.distance.value < 1e-12);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn gromov_wasserstein(x: Points<'_>, y: Points<'_>, options: &GromovOptions) -> Result<GromovWasserstein> {
    let uniform = |points: Points<'_>| vec![1.0 / points.len() as f64; points.len()];
    gromov_wasserstein_weighted(x, y, &uniform(x), &uniform(y), options)
}

/// [`gromov_wasserstein`] with weights `a` of the points of `x` and `b` of those of `y`, each of sum 1.
///
/// # Errors
///
/// As [`gromov_wasserstein`] and [`transport`](crate::transport()).
///
/// # Example
///
/// ```
/// use retort_transport::{GromovOptions, Points, gromov_wasserstein_weighted};
/// let x = Points::new("student", &[0.0, 1.0], 1)?;
/// let y = Points::new("teacher", &[0.0, 5.0], 1)?;
/// let found = gromov_wasserstein_weighted(x, y, &[0.75, 0.25], &[0.75, 0.25], &GromovOptions::default())?;
/// // Pairs of distance 1 and 5 meet with weight 2 * 0.75 * 0.25.
/// assert!((found.distance.value - 6.0).abs() < 1e-12);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn gromov_wasserstein_weighted(
    x: Points<'_>,
    y: Points<'_>,
    a: &[f64],
    b: &[f64],
    options: &GromovOptions,
) -> Result<GromovWasserstein> {
    checks::positive("tolerance", options.tolerance)?;
    let (weights_x, weights_y) = (weights("a", a, x.len())?, weights("b", b, y.len())?);
    let (a, b) = (Inner::new(x, options.inner)?, Inner::new(y, options.inner)?);
    let scale = a.mean_square(&weights_x) + b.mean_square(&weights_y);
    if !scale.is_finite() {
        return Err(Error::Undefined("gromov-wasserstein: squared inner distances overflow".into()));
    }
    let (n, m) = (x.len(), y.len());
    let mut plan: Vec<f64> = weights_x.iter().flat_map(|a| weights_y.iter().map(move |b| a * b)).collect();
    let mut image = product(&product(&a.distances, n, &plan, m), m, &b.distances, m);
    let (mut iterations, mut solved) = (0, true);
    let (gap, small) = loop {
        // The objective grows by <-4 image, change> for a change of the plan that keeps the marginals.
        let cost = Cost::new(image.iter().map(|x| -4.0 * x).collect(), n, m)?;
        let target = transport(&cost, &weights_x, &weights_y, &options.transport)?;
        solved &= target.converged;
        let gap = dot(cost.values(), &plan) - target.value;
        let small = gap <= options.tolerance * scale;
        if small || iterations >= options.max_iter {
            break (gap.max(0.0), small);
        }
        iterations += 1;
        let mut change = target.plan.dense();
        change.iter_mut().zip(&plan).for_each(|(t, p)| *t -= p);
        let image_change = product(&product(&a.distances, n, &change, m), m, &b.distances, m);
        let curvature = -2.0 * dot(&image_change, &change);
        let step = if curvature > 0.0 { (gap / (2.0 * curvature)).min(1.0) } else { 1.0 };
        plan.iter_mut().zip(&change).for_each(|(p, c)| *p += step * c);
        image.iter_mut().zip(&image_change).for_each(|(x, c)| *x += step * c);
    };
    let distance = at(&a, &b, &plan)?;
    Ok(GromovWasserstein { distance, plan, iterations, gap, converged: small && solved })
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// A cloud with its inner distances, `[n, n]`.
struct Inner<'a> {
    points: Points<'a>,
    kind: InnerDistance,
    distances: Vec<f64>,
}

impl<'a> Inner<'a> {
    fn new(points: Points<'a>, kind: InnerDistance) -> Result<Self> {
        let distances = match kind {
            InnerDistance::Euclidean => Cost::euclidean(points, points)?.values().to_vec(),
            InnerDistance::SquaredEuclidean => Cost::squared_euclidean(points, points)?.values().to_vec(),
            InnerDistance::Cosine => cosine::distances(points)?,
        };
        Ok(Self { points, kind, distances })
    }

    /// `p' A.^2 p`.
    fn mean_square(&self, p: &[f64]) -> f64 {
        let row = |row: &[f64]| row.iter().zip(p).map(|(a, p)| a * a * p).sum::<f64>();
        self.distances.chunks_exact(p.len()).zip(p).map(|(a, p)| p * row(a)).sum()
    }

    /// `2 (p p') .* A - 2 cross`, the derivative of the objective by the distances.
    fn slope(&self, p: &[f64], cross: &[f64]) -> Vec<f64> {
        let rows = self.distances.chunks_exact(p.len()).zip(cross.chunks_exact(p.len())).zip(p);
        let row = |((a, c), own): ((&'_ [f64], &'_ [f64]), &f64)| {
            a.iter().zip(c).zip(p).map(|((a, c), p)| 2.0 * (own * p * a - c)).collect::<Vec<_>>()
        };
        rows.flat_map(row).collect()
    }

    /// `sum_k 2 W_ik dA_ik/dx_i` for every i, with a symmetric W.
    fn pull(&self, slope: &[f64]) -> Vec<f64> {
        match self.kind {
            InnerDistance::Cosine => self.pull_of_cosines(slope),
            InnerDistance::SquaredEuclidean => self.pull_of_differences(slope.iter().map(|w| 4.0 * w).collect()),
            InnerDistance::Euclidean => {
                let unit = |(w, a): (&f64, &f64)| if *a == 0.0 { 0.0 } else { 2.0 * w / a };
                self.pull_of_differences(slope.iter().zip(&self.distances).map(unit).collect())
            }
        }
    }

    /// `sum_k c_ik (x_i - x_k)`.
    fn pull_of_differences(&self, c: Vec<f64>) -> Vec<f64> {
        let (n, width) = (self.points.len(), self.points.width());
        let origin = moments::middle(self.points, self.points);
        let x: Vec<f64> = self.points.rows().flat_map(|row| row.iter().zip(&origin).map(|(x, o)| x - o)).collect();
        let mut grad = product(&c, n, &x, width);
        for ((grad, x), c) in grad.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(c.chunks_exact(n)) {
            let sum: f64 = c.iter().sum();
            grad.iter_mut().zip(x).for_each(|(g, x)| *g = sum * x - *g);
        }
        grad
    }

    /// `-2 / ||x_i|| sum_k W_ik (u_k - cos_ik u_i)` with the unit vectors u.
    fn pull_of_cosines(&self, slope: &[f64]) -> Vec<f64> {
        let (n, width) = (self.points.len(), self.points.width());
        let units = cosine::directions(self.points);
        let mut grad = product(slope, n, &units, width);
        for (i, grad) in grad.chunks_exact_mut(width).enumerate() {
            let (w, a) = (&slope[i * n..][..n], &self.distances[i * n..][..n]);
            let along: f64 = w.iter().zip(a).map(|(w, a)| w * (1.0 - a)).sum();
            let (norm, own) = (cosine::norm(self.points.row(i)), &units[i * width..][..width]);
            for (g, u) in grad.iter_mut().zip(own) {
                *g = if norm == 0.0 { 0.0 } else { -2.0 / norm * (*g - along * u) };
            }
        }
        grad
    }
}
