//! Proof of optimality.

use crate::{Cost, Error, Plan, Result};

/// How far a plan and its duals are from proving each other optimal; all zero up to rounding if they do.
///
/// For any plan with the right marginals and any duals with `u_i + v_j <= C_ij`, `dual <= optimum <= primal`: whoever
/// recomputes these numbers need not trust the solver.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Certificate {
    /// `sum_ij P_ij C_ij`.
    pub primal: f64,
    /// `sum_i a_i u_i + sum_j b_j v_j`.
    pub dual: f64,
    /// `primal - dual`.
    pub gap: f64,
    /// The largest `u_i + v_j - C_ij`, or 0.
    pub worst_violation: f64,
    /// The largest absolute deviation of a row or column sum from its marginal.
    pub marginal_error: f64,
}

impl Certificate {
    /// Checks a plan between the marginals `a` and `b` against duals, in `O(nm)`.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit `cost`.
    ///
    /// # Example
    ///
    /// ```
    /// use retort_transport::{Certificate, Cost, TransportOptions, transport};
    /// let cost = Cost::new(vec![0.0, 1.0, 2.0, 1.0], 2, 2)?;
    /// let (a, b) = ([0.25, 0.75], [0.5, 0.5]);
    /// let best = transport(&cost, &a, &b, &TransportOptions::default())?;
    /// let check = Certificate::new(&cost, &a, &b, &best.plan, &best.u, &best.v)?;
    /// assert_eq!((check.primal, check.gap, check.worst_violation, check.marginal_error), (1.0, 0.0, 0.0, 0.0));
    /// # Ok::<(), retort_transport::Error>(())
    /// ```
    pub fn new(cost: &Cost, a: &[f64], b: &[f64], plan: &Plan, u: &[f64], v: &[f64]) -> Result<Self> {
        let (rows, columns) = (cost.rows(), cost.columns());
        let lengths = [("a", a.len(), rows), ("b", b.len(), columns), ("u", u.len(), rows), ("v", v.len(), columns)];
        let plan_size = [("rows of the plan", plan.rows(), rows), ("columns of the plan", plan.columns(), columns)];
        for (what, found, expected) in lengths.into_iter().chain(plan_size) {
            if found != expected {
                let (expected, found) = (expected.to_string(), found.to_string());
                return Err(Error::Shape { what: what.into(), expected, found });
            }
        }
        let primal = plan.total_cost(cost);
        let weighted = |mass: &[f64], price: &[f64]| mass.iter().zip(price).map(|(m, p)| m * p).sum::<f64>();
        let dual = weighted(a, u) + weighted(b, v);
        let deviation = |sums: Vec<f64>, mass: &[f64]| {
            sums.iter().zip(mass).map(|(sum, mass)| (sum - mass).abs()).fold(0.0, f64::max)
        };
        let marginal_error = deviation(plan.row_sums(), a).max(deviation(plan.column_sums(), b));
        let worst_violation = worst_violation(cost, u, v);
        Ok(Self { primal, dual, gap: primal - dual, worst_violation, marginal_error })
    }
}

/// The largest `u_i + v_j - C_ij`, or 0.
pub(crate) fn worst_violation(cost: &Cost, u: &[f64], v: &[f64]) -> f64 {
    let row = |(u, cost): (&f64, &[f64])| cost.iter().zip(v).map(|(c, v)| u + v - c).fold(0.0, f64::max);
    u.iter().zip(cost.values().chunks_exact(v.len())).map(row).fold(0.0, f64::max)
}
