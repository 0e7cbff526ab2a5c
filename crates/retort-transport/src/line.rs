//! Distances between samples on the line: closed forms, by sorting.

use crate::checks;
use crate::{Distance, Error, Estimator, Points, Result};

/// `W_p^p`, the cheapest transport between two samples of equal weights.
///
/// `integral over u in (0, 1) of |F^-1(u) - G^-1(u)|^p`, where the quantile functions are constant on steps of `1/n`
/// and `1/m`; for `n = m` this is `(1/n) sum |x_(i) - y_(i)|^p` over the sorted samples.
/// The power stays: `p = 2` gives the squared distance.
///
/// # Shapes
///
/// `x`: n numbers, `y`: m numbers, in any order; `n` and `m` may differ.
///
/// # Gradient
///
/// `d/dx_i = sum w p |x_i - y_j|^(p-1) sign(x_i - y_j)` over the intervals (of lengths `w`) on which `x_i` meets `y_j`;
/// `sign(0) = 0`. Among equal numbers any order is optimal: there it is a subgradient.
///
/// # Errors
///
/// An empty sample, a number that is not finite, `p` below 1 or not finite, a result that overflows.
///
/// Source: F. Santambrogio, "Optimal Transport for Applied Mathematicians", 2015, proposition 2.17.
///
/// # Example
///
/// ```
/// let w = retort_transport::line::wasserstein(&[3.0, 0.0], &[1.0, 1.0], 2.0)?;
/// assert_eq!(w.value, 2.5); // 0 goes to 1, 3 goes to 1
/// assert_eq!(w.grad_x, [2.0, -1.0]);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn wasserstein(x: &[f64], y: &[f64], p: f64) -> Result<Distance> {
    let (x, y) = samples(x, y)?;
    check_power(p)?;
    let mut distance = zero(x.values.len(), y.values.len());
    distance.value = with_power(p, Couple(&x, &y, &mut distance.grad_x, &mut distance.grad_y));
    checks::finite("wasserstein", distance)
}

/// `W_p^p` between two samples whose points carry weights.
///
/// As [`wasserstein`], with steps of the given lengths. Each list of weights is divided by its sum.
///
/// # Shapes
///
/// `x`, `x_weights`: n numbers, `y`, `y_weights`: m numbers.
///
/// # Gradient
///
/// With respect to the points, as in [`wasserstein`]; the weights are constants. A point of weight 0 gets 0.
///
/// # Errors
///
/// Those of [`wasserstein`]; weights of another number than the points, negative, not finite, or of sum 0.
///
/// # Example
///
/// ```
/// use retort_transport::line;
/// let w = line::wasserstein_weighted(&[0.0, 4.0], &[3.0, 1.0], &[1.0], &[1.0], 1.0)?;
/// assert_eq!(w.value, 0.75 * 1.0 + 0.25 * 3.0);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn wasserstein_weighted(x: &[f64], x_weights: &[f64], y: &[f64], y_weights: &[f64], p: f64) -> Result<Distance> {
    let (a, b) = (shares("weights of x", x_weights, x.len())?, shares("weights of y", y_weights, y.len())?);
    let (x, y) = samples(x, y)?;
    check_power(p)?;
    let mut distance = zero(x.values.len(), y.values.len());
    let couple = WeightedCouple(&x, &a, &y, &b, &mut distance.grad_x, &mut distance.grad_y);
    distance.value = with_power(p, couple);
    checks::finite("wasserstein", distance)
}

/// The Cramer distance of two samples, `integral (F - G)^2` over the line.
///
/// `F` and `G` are the empirical distribution functions. Half the biased [`energy`] distance.
///
/// # Shapes
///
/// `x`: n numbers, `y`: m numbers, in any order.
///
/// # Gradient
///
/// `d/dx_i = (1/n) [mean_j sign(x_i - y_j) - mean_j sign(x_i - x_j)]`, `sign(0) = 0`; the roles exchanged for `y`.
///
/// # Errors
///
/// An empty sample, a number that is not finite, a result that overflows.
///
/// Source: H. Cramer 1928; G. J. Szekely and M. L. Rizzo, "Energy statistics", 2013.
///
/// # Example
///
/// ```
/// let c = retort_transport::line::cramer(&[0.0], &[2.0])?;
/// assert_eq!((c.value, c.grad_x[0], c.grad_y[0]), (2.0, -1.0, 1.0));
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn cramer(x: &[f64], y: &[f64]) -> Result<Distance> {
    let (x, y) = samples(x, y)?;
    let mut distance = zero(x.values.len(), y.values.len());
    distance.value = cramer_into(&x, &y, &mut distance.grad_x, &mut distance.grad_y);
    checks::finite("cramer", distance)
}

/// The squared energy distance of two samples on the line, in `O(n log n)`.
///
/// `2 E|X-Y| - E|X-X'| - E|Y-Y'|`, the same number as [`energy_distance`](crate::energy_distance) for clouds of width
/// 1.
///
/// # Shapes
///
/// `x`: n numbers, `y`: m numbers, in any order.
///
/// # Gradient
///
/// `d/dx_i = (2/n) [mean_j sign(x_i - y_j) - mean_j sign(x_i - x_j)]`, `sign(0) = 0`; the second mean is over `n` for
/// the biased and over `n - 1` for the unbiased estimator.
///
/// # Errors
///
/// Those of [`cramer`]; fewer than two numbers on a side for the unbiased estimator.
///
/// Source: G. J. Szekely and M. L. Rizzo, "Energy statistics", 2013.
///
/// # Example
///
/// ```
/// use retort_transport::{Estimator, line};
/// assert_eq!(line::energy(&[0.0, 1.0], &[1.0, 2.0], Estimator::Biased)?.value, 1.0);
/// assert_eq!(line::energy(&[0.0, 1.0], &[1.0, 2.0], Estimator::Unbiased)?.value, 0.0);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn energy(x: &[f64], y: &[f64], estimator: Estimator) -> Result<Distance> {
    let (x, y) = samples(x, y)?;
    let mut distance = zero(x.values.len(), y.values.len());
    let half = cramer_into(&x, &y, &mut distance.grad_x, &mut distance.grad_y);
    distance.value = 2.0 * half;
    distance.grad_x.iter_mut().chain(&mut distance.grad_y).for_each(|g| *g *= 2.0);
    if estimator == Estimator::Unbiased {
        for (name, sample, grad) in [("x", &x, &mut distance.grad_x), ("y", &y, &mut distance.grad_y)] {
            checks::two_points(name, sample.values.len())?;
            distance.value -= spread(sample, grad);
        }
    }
    checks::finite("energy", distance)
}

fn zero(n: usize, m: usize) -> Distance {
    Distance { value: 0.0, grad_x: vec![0.0; n], grad_y: vec![0.0; m] }
}

fn samples(x: &[f64], y: &[f64]) -> Result<(Sorted, Sorted)> {
    Points::new("x", x, 1)?;
    Points::new("y", y, 1)?;
    Ok((Sorted::new(x), Sorted::new(y)))
}

fn check_power(p: f64) -> Result<()> {
    checks::option("p", "a finite number >= 1", p, p >= 1.0)
}

/// The weights divided by their sum.
fn shares(what: &str, weights: &[f64], len: usize) -> Result<Vec<f64>> {
    if weights.len() != len {
        let (expected, found) = (format!("{len} weights"), weights.len().to_string());
        return Err(Error::Shape { what: what.into(), expected, found });
    }
    if let Some(index) = weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        let (expected, found) = ("a finite weight >= 0", weights[index]);
        return Err(Error::Value { what: what.into(), expected, found, index });
    }
    let total: f64 = weights.iter().sum();
    if total > 0.0 && total.is_finite() {
        return Ok(weights.iter().map(|w| w / total).collect());
    }
    Err(Error::Shape { what: what.into(), expected: "a positive finite sum".into(), found: total.to_string() })
}

/// A sample in ascending order; equal numbers in the order in which they came.
#[derive(Default)]
pub(crate) struct Sorted {
    values: Vec<f64>,
    /// Where each number stood.
    order: Vec<usize>,
    keys: Vec<u64>,
}

impl Sorted {
    pub(crate) fn new(sample: &[f64]) -> Self {
        let mut sorted = Self::default();
        sorted.fill(sample);
        sorted
    }

    /// Sorts another sample into the same memory.
    ///
    /// What is sorted are 64-bit integers: the high bits of a number, in an image that orders like the number, above
    /// its index. Numbers whose high bits agree are put in order afterwards.
    pub(crate) fn fill(&mut self, sample: &[f64]) {
        let low = u64::BITS - (sample.len() as u64).leading_zeros();
        let mask = (1u64 << low) - 1;
        self.keys.clear();
        self.keys.extend(sample.iter().zip(0..).map(|(x, index)| (ascending(*x) & !mask) | index));
        self.keys.sort_unstable();
        self.order.clear();
        self.order.extend(self.keys.iter().map(|key| (key & mask) as usize));
        let mut start = 0;
        for end in 1..=self.keys.len() {
            if end == self.keys.len() || (self.keys[end] ^ self.keys[start]) > mask {
                if end - start > 1 {
                    self.order[start..end].sort_by(|&i, &j| (sample[i] + 0.0).total_cmp(&(sample[j] + 0.0)));
                }
                start = end;
            }
        }
        self.values.clear();
        self.values.extend(self.order.iter().map(|&i| sample[i]));
    }
}

/// An integer that orders like the number; both zeros have the same.
fn ascending(x: f64) -> u64 {
    let bits = (x + 0.0).to_bits();
    let flip = ((bits as i64) >> 63) as u64 | (1 << 63);
    bits ^ flip
}

/// A merge of two samples, for any cost of a difference: `cost(x - y)` is the cost and its derivative.
trait Merge {
    fn run(self, cost: impl Fn(f64) -> (f64, f64)) -> f64;
}

/// Points of equal weights; the derivatives go to the places where the numbers stood.
struct Couple<'a>(&'a Sorted, &'a Sorted, &'a mut [f64], &'a mut [f64]);

/// Points with shares of 1.
struct WeightedCouple<'a>(&'a Sorted, &'a [f64], &'a Sorted, &'a [f64], &'a mut [f64], &'a mut [f64]);

/// The common exponents without calls of `powf`.
fn with_power(p: f64, merge: impl Merge) -> f64 {
    let sign = |d: f64| if d == 0.0 { 0.0 } else { d.signum() };
    if p == 1.0 {
        merge.run(|d| (d.abs(), sign(d)))
    } else if p == 2.0 {
        merge.run(square)
    } else {
        merge.run(|d| (d.abs().powf(p), p * d.abs().powf(p - 1.0) * sign(d)))
    }
}

fn square(d: f64) -> (f64, f64) {
    (d * d, 2.0 * d)
}

impl Merge for Couple<'_> {
    fn run(self, cost: impl Fn(f64) -> (f64, f64)) -> f64 {
        let Self(x, y, grad_x, grad_y) = self;
        let (n, m) = (x.values.len(), y.values.len());
        if n == m {
            let weight = 1.0 / n as f64;
            let mut value = 0.0;
            for k in 0..n {
                let (c, slope) = cost(x.values[k] - y.values[k]);
                value += weight * c;
                grad_x[x.order[k]] = weight * slope;
                grad_y[y.order[k]] = -weight * slope;
            }
            return value;
        }
        grad_x.fill(0.0);
        grad_y.fill(0.0);
        // Breakpoints k/n and k/m in units of 1/(nm), as integers: no interval is missed or made up by rounding.
        let unit = 1.0 / (n as f64 * m as f64);
        let (mut value, mut i, mut j, mut from) = (0.0, 0, 0, 0);
        while i < n && j < m {
            let (end_x, end_y) = ((i + 1) * m, (j + 1) * n);
            let to = end_x.min(end_y);
            let weight = (to - from) as f64 * unit;
            let (c, slope) = cost(x.values[i] - y.values[j]);
            value += weight * c;
            grad_x[x.order[i]] += weight * slope;
            grad_y[y.order[j]] -= weight * slope;
            i += usize::from(to == end_x);
            j += usize::from(to == end_y);
            from = to;
        }
        value
    }
}

impl Merge for WeightedCouple<'_> {
    fn run(self, cost: impl Fn(f64) -> (f64, f64)) -> f64 {
        let Self(x, a, y, b, grad_x, grad_y) = self;
        let (n, m) = (x.values.len(), y.values.len());
        let (mut value, mut i, mut j) = (0.0, 0, 0);
        let (mut left, mut right) = (a[x.order[0]], b[y.order[0]]);
        loop {
            let weight = left.min(right);
            if weight > 0.0 {
                let (c, slope) = cost(x.values[i] - y.values[j]);
                value += weight * c;
                grad_x[x.order[i]] += weight * slope;
                grad_y[y.order[j]] -= weight * slope;
            }
            left -= weight;
            right -= weight;
            // What rounding leaves on one side when the other is used up is of the size of an ulp of 1.
            if left <= 0.0 {
                i += 1;
                if i == n {
                    return value;
                }
                left = a[x.order[i]];
            }
            if right <= 0.0 {
                j += 1;
                if j == m {
                    return value;
                }
                right = b[y.order[j]];
            }
        }
    }
}

/// `W_2^2` of two sorted samples; overwrites the gradients.
pub(crate) fn w2_into(x: &Sorted, y: &Sorted, grad_x: &mut [f64], grad_y: &mut [f64]) -> f64 {
    Couple(x, y, grad_x, grad_y).run(square)
}

/// `integral (F - G)^2` of two sorted samples; overwrites the gradients.
pub(crate) fn cramer_into(x: &Sorted, y: &Sorted, grad_x: &mut [f64], grad_y: &mut [f64]) -> f64 {
    let (n, m) = (x.values.len(), y.values.len());
    let (across, to_x, to_y) = (1.0 / (n as f64 * m as f64), 1.0 / n as f64, -1.0 / m as f64);
    // F - G in units of 1/(nm).
    let gap = |i: usize, j: usize| (i * m) as f64 - (j * n) as f64;
    let (mut value, mut i, mut j) = (0.0, 0, 0);
    let mut last = x.values[0].min(y.values[0]);
    while i < n || j < m {
        let z = if j == m || (i < n && x.values[i] <= y.values[j]) { x.values[i] } else { y.values[j] };
        let height = gap(i, j) * across;
        value += height * height * (z - last);
        last = z;
        let (next_i, next_j) = (past(&x.values, i, z), past(&y.values, j, z));
        // The mean of sign(z - y) is G before z plus G after z minus 1.
        let slope = -(gap(i, j) + gap(next_i, next_j)) * across;
        x.order[i..next_i].iter().for_each(|&k| grad_x[k] = slope * to_x);
        y.order[j..next_j].iter().for_each(|&k| grad_y[k] = slope * to_y);
        (i, j) = (next_i, next_j);
    }
    value
}

/// `E|X-X'| / (n-1)` with the mean over all pairs: by how much the unbiased mean is larger. Subtracts the gradient.
fn spread(x: &Sorted, grad: &mut [f64]) -> f64 {
    let n = x.values.len();
    let unit = 2.0 / (n as f64 * n as f64 * (n - 1) as f64);
    let (mut value, mut i, mut last) = (0.0, 0, x.values[0]);
    while i < n {
        let z = x.values[i];
        value += (i * (n - i)) as f64 * unit * (z - last);
        last = z;
        let next = past(&x.values, i, z);
        let slope = ((i + next) as f64 - n as f64) * unit;
        x.order[i..next].iter().for_each(|&k| grad[k] -= slope);
        i = next;
    }
    value
}

/// The first place from `start` on whose number is not `z`.
fn past(values: &[f64], start: usize, z: f64) -> usize {
    start + values[start..].iter().take_while(|x| **x == z).count()
}
