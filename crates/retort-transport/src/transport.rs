//! Exact transport between arbitrary marginals.

use crate::network::{Network, Solved};
use crate::{Certificate, Cost, Error, Plan, Result, assignment};

/// Marginals may differ in total mass by this share: the rounding of weights that were normalised in single precision
/// and summed in double is far more, so those have to be normalised again.
const MASS_TOLERANCE: f64 = 1e-9;
/// Masses become integers in units of their total divided by this power of two.
const UNITS: i32 = 100;

/// How long the network simplex may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportOptions {
    /// Pivots after which it stops with `converged: false`; some tens of `n + m` are usual.
    pub max_pivots: usize,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self { max_pivots: 1_000_000 }
    }
}

/// A cheapest plan with the duals that prove it.
#[derive(Clone, Debug, PartialEq)]
pub struct Transport {
    /// `<P, C>`.
    pub value: f64,
    /// The plan P; at most `n + m - 1` entries.
    pub plan: Plan,
    /// A price per source: the derivative of the value by its mass, up to a constant.
    pub u: Vec<f64>,
    /// A price per sink.
    pub v: Vec<f64>,
    /// Pivots of the network simplex; 0 where the assignment solver did the work.
    pub pivots: usize,
    /// Whether the plan is optimal, with reduced costs of at least `-2^-46` of the largest cost; if not, it still has the right
    /// marginals, but `u` and `v` prove nothing.
    pub converged: bool,
}

impl Transport {
    /// Checks plan and duals against the problem they were computed from, see [`Certificate`].
    ///
    /// # Errors
    ///
    /// Shapes that do not fit.
    pub fn certificate(&self, cost: &Cost, a: &[f64], b: &[f64]) -> Result<Certificate> {
        Certificate::new(cost, a, b, &self.plan, &self.u, &self.v)
    }
}

/// Moves the masses `a` of the sources to the sinks, which take the masses `b`, at the least total cost.
///
/// `min <P, C>` over `P >= 0` with row sums `a` and column sums `b`. Masses may be 0; their totals must agree up to
/// rounding and need not be 1. The duals satisfy `u_i + v_j <= C_ij` and `=` where mass flows, so that
/// `sum a u + sum b v` equals the value. Where several plans are optimal one of them is returned, always the same.
///
/// Equal weights on equally many sources and sinks are an assignment problem, see [`assignment`]. Everything else goes to
/// a primal network simplex (Dantzig 1951; the trees of Cunningham 1976 that exclude cycling, in the form of a symbolic
/// perturbation of the masses) with block pivots as in Kovács 2015, "Minimum-cost flow algorithms: an experimental
/// evaluation". Masses are integers inside, so that the flows are exact.
///
/// # Errors
///
/// Lengths that do not fit `cost`, a mass that is negative or not finite, no mass at all, totals that differ by more than
/// a share of 1e-9.
///
/// # Example
///
/// ```
/// use retort_transport::{Cost, TransportOptions, transport};
/// let cost = Cost::new(vec![0.0, 1.0, 2.0, 1.0], 2, 2)?;
/// let best = transport(&cost, &[0.25, 0.75], &[0.5, 0.5], &TransportOptions::default())?;
/// assert_eq!(best.plan.entries(), [(0, 0, 0.25), (1, 0, 0.25), (1, 1, 0.5)]);
/// assert_eq!(best.value, 1.0);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn transport(cost: &Cost, a: &[f64], b: &[f64], options: &TransportOptions) -> Result<Transport> {
    let total_a = total("a", a, cost.rows())?;
    let total_b = total("b", b, cost.columns())?;
    if (total_a - total_b).abs() > MASS_TOLERANCE * total_a.max(total_b) {
        let expected = "marginals of equal total mass".into();
        return Err(Error::Shape { what: "a and b".into(), expected, found: format!("{total_a} and {total_b}") });
    }
    let equal = |mass: &[f64]| mass.iter().all(|x| *x == mass[0]);
    if equal(a) && equal(b) {
        return Ok(even(cost, a[0] * a.len() as f64, options));
    }
    let unit = total_a / f64::from(UNITS).exp2();
    Ok(solve(cost, &units(a, total_a), &units(b, total_b), |flow| flow as f64 * unit, options))
}

/// [`transport`] with the masses `1/n` and `1/m`.
///
/// # Example
///
/// ```
/// use retort_transport::{Cost, TransportOptions, uniform_transport};
/// let cost = Cost::new(vec![3.0, 1.0, 2.0], 1, 3)?;
/// assert_eq!(uniform_transport(&cost, &TransportOptions::default()).value, 2.0);
/// # Ok::<(), retort_transport::Error>(())
/// ```
#[must_use]
pub fn uniform_transport(cost: &Cost, options: &TransportOptions) -> Transport {
    even(cost, 1.0, options)
}

/// Equal masses on either side, `total` in all.
fn even(cost: &Cost, total: f64, options: &TransportOptions) -> Transport {
    let (n, m) = (cost.rows(), cost.columns());
    if n != m {
        // The least integers in the same proportion.
        let common = gcd(n, m);
        let (supply, demand) = (vec![(m / common) as i128; n], vec![(n / common) as i128; m]);
        let units = (n / common) as f64 * m as f64;
        return solve(cost, &supply, &demand, |flow| flow as f64 * total / units, options);
    }
    let best = assignment(cost);
    let plan = Plan::sorted(n, m, best.pairs().map(|(i, j)| (i, j, total / n as f64)).collect());
    Transport { value: plan.total_cost(cost), plan, u: best.u, v: best.v, pivots: 0, converged: true }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The sum of a marginal, if it is one.
fn total(what: &str, mass: &[f64], len: usize) -> Result<f64> {
    if mass.len() != len {
        return Err(Error::Shape { what: what.into(), expected: len.to_string(), found: mass.len().to_string() });
    }
    if let Some(index) = mass.iter().position(|x| !x.is_finite() || *x < 0.0) {
        return Err(Error::Value { what: what.into(), expected: "a finite mass >= 0", found: mass[index], index });
    }
    let total: f64 = mass.iter().sum();
    if total.is_normal() {
        return Ok(total);
    }
    Err(Error::Shape { what: what.into(), expected: "a positive finite total mass".into(), found: total.to_string() })
}

/// Masses as integers that sum to `2^UNITS`; the rounding of the sum falls to the largest of them.
fn units(mass: &[f64], total: f64) -> Vec<i128> {
    let all = f64::from(UNITS).exp2();
    let mut units: Vec<i128> = mass.iter().map(|x| (x / total * all) as i128).collect();
    let rest = all as i128 - units.iter().sum::<i128>();
    let largest = units.iter_mut().max().expect("a marginal has an entry");
    *largest += rest;
    units
}

/// Solves for the sources and sinks that have mass, and prices the others.
fn solve(
    cost: &Cost,
    supply: &[i128],
    demand: &[i128],
    mass: impl Fn(i128) -> f64,
    options: &TransportOptions,
) -> Transport {
    let active = |mass: &[i128]| -> Vec<usize> { (0..mass.len()).filter(|&i| mass[i] > 0).collect() };
    let (rows, columns) = (active(supply), active(demand));
    let factor = cost.factor().unwrap_or(1.0);
    let mut values = Vec::with_capacity(rows.len() * columns.len());
    rows.iter().for_each(|&i| values.extend(columns.iter().map(|&j| cost.row(i)[j] * factor)));
    let keep = |mass: &[i128], kept: &[usize]| -> Vec<i128> { kept.iter().map(|&i| mass[i]).collect() };
    let network = Network::new(values, &keep(supply, &rows), &keep(demand, &columns));
    let Solved { flows, u: row_prices, v: column_prices, pivots, converged } = network.solve(options.max_pivots);

    let mut entries: Vec<_> = flows.into_iter().map(|(i, j, flow)| (rows[i], columns[j], mass(flow))).collect();
    entries.sort_unstable_by_key(|&(i, j, _)| (i, j));
    let plan = Plan::sorted(cost.rows(), cost.columns(), entries);
    let (mut u, mut v) = (vec![f64::INFINITY; cost.rows()], vec![f64::INFINITY; cost.columns()]);
    rows.iter().zip(row_prices).for_each(|(&i, price)| u[i] = price / factor);
    columns.iter().zip(column_prices).for_each(|(&j, price)| v[j] = price / factor);
    price_the_idle(cost, &rows, supply, demand, &mut u, &mut v);
    Transport { value: plan.total_cost(cost), plan, u, v, pivots, converged }
}

/// The highest prices that sinks, then sources without mass can have.
fn price_the_idle(cost: &Cost, rows: &[usize], supply: &[i128], demand: &[i128], u: &mut [f64], v: &mut [f64]) {
    for j in (0..v.len()).filter(|&j| demand[j] == 0) {
        v[j] = rows.iter().map(|&i| cost.row(i)[j] - u[i]).fold(f64::INFINITY, f64::min);
    }
    for i in (0..u.len()).filter(|&i| supply[i] == 0) {
        u[i] = cost.row(i).iter().zip(&*v).map(|(c, v)| c - v).fold(f64::INFINITY, f64::min);
    }
}
