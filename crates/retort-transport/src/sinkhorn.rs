//! Entropic transport.

mod divergence;
mod exp;
mod histograms;
mod kernel;
mod laplacian;
mod solve;
mod symmetric;

pub use divergence::{
    SinkhornDistance, SinkhornDivergence, SinkhornPart, sinkhorn_distance, sinkhorn_distance_weighted,
    sinkhorn_divergence, sinkhorn_divergence_weighted,
};
pub use histograms::{SinkhornHistograms, class_costs, sinkhorn_histograms};

use crate::{Convergence, Cost, Error, Result, checks};
use kernel::{Coupling, weighted_rows};
use solve::Problem;

/// Lighter points are left out of the iteration: products with them would underflow.
const WEIGHTLESS: f64 = 1e-100;
/// Weights may miss the sum 1 by so much: the rounding of weights that were normalised in double precision.
const SUM_TOLERANCE: f64 = 1e-9;
/// Range of eps in units of the largest cost: below, rounding decides the plan; above, it is `a b'` to 7 digits.
const SMALLEST_EPS: f64 = 1e-15;
const LARGEST_EPS: f64 = 1e7;
/// Larger costs could overflow in sums.
const LARGEST_COST: f64 = 1e300;

/// The strength of the entropic term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Regularisation {
    /// This eps, in the unit of the costs.
    Absolute(f64),
    /// This multiple of the mean of all entries of the cost matrix; constant in derivatives.
    RelativeToMean(f64),
}

/// How to solve an entropic transport problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SinkhornOptions {
    /// The strength of the entropic term, > 0; 0.05 of the mean cost by default.
    pub eps: Regularisation,
    /// Sweeps at most, > 0.
    pub max_iter: usize,
    /// Newton steps at most, on top of the sweeps; 0 for plain Sinkhorn iterations.
    pub max_newton: usize,
    /// Summed absolute error of the marginals at which the iteration stops, > 0.
    pub tolerance: f64,
}

impl Default for SinkhornOptions {
    fn default() -> Self {
        Self { eps: Regularisation::RelativeToMean(0.05), max_iter: 500, max_newton: 50, tolerance: 1e-4 }
    }
}

impl SinkhornOptions {
    fn check(&self) -> Result<()> {
        let (Regularisation::Absolute(eps) | Regularisation::RelativeToMean(eps)) = self.eps;
        checks::positive("eps", eps)?;
        checks::positive("tolerance", self.tolerance)?;
        checks::option("max_iter", "at least 1", self.max_iter as f64, self.max_iter > 0)
    }

    /// The eps for these costs.
    fn resolve(&self, cost: &Cost) -> Result<f64> {
        let largest = cost.largest();
        if largest > LARGEST_COST {
            let expected = format!("entries of at most {LARGEST_COST:e}");
            return Err(Error::Shape { what: "cost".into(), expected, found: format!("{largest:e}") });
        }
        let eps = match self.eps {
            Regularisation::Absolute(eps) => eps,
            Regularisation::RelativeToMean(factor) => {
                let share = (cost.values().len() as f64).recip();
                let mean: f64 = weighted_rows(cost.values(), &vec![share; cost.rows()], cost.columns()).iter().sum();
                if mean < 0.0 || (mean == 0.0 && largest > 0.0) {
                    return Err(Error::Undefined(format!(
                        "sinkhorn: eps relative to the mean cost needs a positive mean, found {mean}"
                    )));
                }
                factor * mean
            }
        };
        if eps < SMALLEST_EPS * largest {
            let found = format!("{eps:e} with costs up to {largest:e}");
            return Err(Error::Option { field: "eps", expected: "at least 1e-15 of the largest cost", found });
        }
        Ok(eps.min(LARGEST_EPS * largest).max(f64::MIN_POSITIVE))
    }
}

/// The solution of an entropic transport problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Sinkhorn {
    /// The dual value, a lower bound of the optimum that is reached at convergence.
    pub value: f64,
    /// `<P, C>`.
    pub transport: f64,
    /// `KL(P || a b')`.
    pub kl: f64,
    /// The plan P, row after row; its rows sum to `a` up to rounding.
    pub plan: Vec<f64>,
    /// The dual of each row: the derivative of the value by its weight, up to a constant.
    pub f: Vec<f64>,
    /// The dual of each column.
    pub g: Vec<f64>,
    /// The eps that was used, in the unit of the costs.
    pub eps: f64,
    /// How the iteration ended.
    pub convergence: Convergence,
}

impl Sinkhorn {
    fn conclude(
        problem: Problem<'_>,
        coupling: Coupling,
        (f, g): (Vec<f64>, Vec<f64>),
        iterations: usize,
        newton_steps: usize,
    ) -> Self {
        let Problem { a, b, eps, options, .. } = problem;
        let Coupling { values: plan, rows, columns, transport } = coupling;
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let off = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y).abs()).sum::<f64>();
        // ln(P_ij / (a_i b_j)) = (f_i + g_j - C_ij) / eps.
        let kl = ((dot(&rows, &f) + dot(&columns, &g) - transport) / eps).max(0.0);
        // The last term is 0 up to rounding after an update of either side.
        let value = dot(a, &f) + dot(b, &g) + eps * (1.0 - rows.iter().sum::<f64>());
        let marginal_error = off(&rows, a) + off(&columns, b);
        let converged = marginal_error <= options.tolerance;
        let convergence = Convergence { converged, iterations, newton_steps, marginal_error };
        Self { value, transport, kl, plan, f, g, eps, convergence }
    }
}

/// Entropic optimal transport between the weights `a` of the rows and `b` of the columns of a cost matrix.
///
/// `min_P <P, C> + eps KL(P || a b')` over plans with row sums `a` and column sums `b` (Cuturi 2013, arXiv 1306.0895,
/// with the entropy relative to `a b'`). The plan is `P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)`, and the value is
/// that of the dual, `sum a f + sum b g`. POT's entropy is `sum P ln P`: same plan, other value.
///
/// Derivatives of the value: `P` by the costs, `f` and `g` by the weights, up to constants.
///
/// # Method
///
/// Sinkhorn iterations in the stabilised form of Schmitzer 2019 (arXiv 1610.06519): the kernel holds the duals, so that
/// no exponential overflows or vanishes, and a sweep is one pass over it without exponentials. Small eps is
/// reached over levels, each a quarter of the last. Where sweeps would take long, damped Newton steps on the dual
/// alternate with them (compare Brauer, Clason, Lorenz and Wirth 2017, arXiv 1710.06635): by conjugate gradients, or,
/// where these fail, by elimination. An update of `f` comes last, so that the rows of the plan sum to `a`.
///
/// Weights may be 0: such a row of the plan is 0, and its dual is what the update formula gives.
/// An eps beyond 1e7 times the largest cost counts as that.
///
/// The result has the same bits for any number of threads. Memory: one matrix beside the costs, which becomes the plan.
///
/// # Errors
///
/// Weights of the wrong number, negative, not finite, or not of sum 1 up to 1e-9; options outside their range; costs
/// beyond 1e300; an eps below 1e-15 of the largest cost, or relative to a mean cost that is not positive.
///
/// # Example
///
/// ```
/// use retort_transport::{Cost, Regularisation, SinkhornOptions, sinkhorn};
/// let cost = Cost::new(vec![0.0, 1.0, 1.0, 0.0], 2, 2)?;
/// let options = SinkhornOptions { eps: Regularisation::Absolute(1.0), ..Default::default() };
/// let solution = sinkhorn(&cost, &[0.5, 0.5], &[0.5, 0.5], &options)?;
/// // Weights e / (e + 1) and 1 / (e + 1).
/// assert!((solution.plan[0] / solution.plan[1] - 1f64.exp()).abs() < 1e-12);
/// assert!(solution.convergence.converged);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn sinkhorn(cost: &Cost, a: &[f64], b: &[f64], options: &SinkhornOptions) -> Result<Sinkhorn> {
    options.check()?;
    let (a, b) = (weights("a", a, cost.rows())?, weights("b", b, cost.columns())?);
    let eps = options.resolve(cost)?;
    Ok(solve(Problem { cost, a: &a, b: &b, eps, options }, None))
}

/// Solves, with the points that have no weight left out; `start` are column duals to begin with.
fn solve(problem: Problem<'_>, start: Option<&[f64]>) -> Sinkhorn {
    with_support(problem, |part, columns| {
        let start = start.map(|g| columns.iter().map(|&j| g[j]).collect::<Vec<_>>());
        solve::solve(part, start.as_deref())
    })
}

/// Solves a problem of a cloud with itself.
fn solve_self(problem: Problem<'_>) -> Sinkhorn {
    with_support(problem, |part, _| symmetric::solve(part))
}

/// Solves the problem of the points that have weight, columns being the indices of theirs, and extends the solution.
fn with_support(problem: Problem<'_>, solve: impl Fn(Problem<'_>, &[usize]) -> Sinkhorn + Send + Sync) -> Sinkhorn {
    let Problem { cost, a, b, eps, .. } = problem;
    let kept = |w: &[f64]| (0..w.len()).filter(|&i| w[i] >= WEIGHTLESS).collect::<Vec<_>>();
    let (rows, columns) = (kept(a), kept(b));
    // In the pool from the start: the many short parallel loops need not be handed over one by one.
    let solve = |part: Problem<'_>| match kernel::is_parallel(part.cost) {
        true => rayon::scope(|_| solve(part, &columns)),
        false => solve(part, &columns),
    };
    if rows.len() == a.len() && columns.len() == b.len() {
        return solve(problem);
    }
    let pick = |w: &[f64], kept: &[usize]| kept.iter().map(|&i| w[i]).collect::<Vec<_>>();
    let costs = rows.iter().flat_map(|&i| pick(cost.row(i), &columns)).collect();
    let costs = Cost::new(costs, rows.len(), columns.len());
    let costs = costs.expect("a part of a cost matrix that has an entry");
    let (a_part, b_part) = (pick(a, &rows), pick(b, &columns));
    let mut solution = solve(Problem { cost: &costs, a: &a_part, b: &b_part, ..problem });

    let mut plan = vec![0.0; a.len() * b.len()];
    for (part, &i) in solution.plan.chunks_exact(columns.len()).zip(&rows) {
        columns.iter().zip(part).for_each(|(&j, p)| plan[i * b.len() + j] = *p);
    }
    let dual_of_row =
        |i: usize| softmin(eps, columns.iter().zip(&solution.g).map(|(&j, g)| (b[j], cost.row(i)[j] - g)));
    let dual_of_column =
        |j: usize| softmin(eps, rows.iter().zip(&solution.f).map(|(&i, f)| (a[i], cost.row(i)[j] - f)));
    let f = extend(a.len(), &rows, &solution.f, dual_of_row);
    let g = extend(b.len(), &columns, &solution.g, dual_of_column);
    (solution.plan, solution.f, solution.g) = (plan, f, g);
    solution
}

/// The known values in their places, the others computed.
fn extend(len: usize, places: &[usize], known: &[f64], other: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut all = vec![None; len];
    places.iter().zip(known).for_each(|(&i, x)| all[i] = Some(*x));
    all.into_iter().enumerate().map(|(i, x)| x.unwrap_or_else(|| other(i))).collect()
}

/// `-eps ln sum_k w_k exp(-c_k / eps)` over positive weights.
fn softmin(eps: f64, terms: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let lowest = terms.clone().map(|(_, c)| c).fold(f64::INFINITY, f64::min);
    lowest - eps * terms.map(|(w, c)| w * ((lowest - c) / eps).exp()).sum::<f64>().ln()
}

/// Weights that sum to 1, up to rounding exactly.
pub(crate) fn weights(what: &str, weights: &[f64], len: usize) -> Result<Vec<f64>> {
    if weights.len() != len {
        let (expected, found) = (format!("{len} weights"), weights.len().to_string());
        return Err(Error::Shape { what: what.into(), expected, found });
    }
    if let Some(index) = weights.iter().position(|w| !w.is_finite() || *w < 0.0) {
        let found = weights[index];
        return Err(Error::Value { what: what.into(), expected: "a finite weight >= 0", found, index });
    }
    let sum: f64 = weights.iter().sum();
    if (sum - 1.0).abs() > SUM_TOLERANCE {
        return Err(Error::Shape { what: what.into(), expected: "weights of sum 1".into(), found: sum.to_string() });
    }
    Ok(weights.iter().map(|w| w / sum).collect())
}

fn uniform(len: usize) -> Vec<f64> {
    vec![(len as f64).recip(); len]
}
