//! Matrices of costs.

use crate::{Error, Points, Result};
use rayon::prelude::*;

/// Columns that one step of [`pairwise`] works on.
const LANES: usize = 8;
/// Rows of a task; fixed, although no entry depends on it.
const BLOCK: usize = 16;
/// Below this many terms, waking other threads costs more than they save.
const PARALLEL_FROM: usize = 1 << 19;

/// A dense matrix of finite costs: row `i` is a source, column `j` a sink.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    values: Vec<f64>,
    rows: usize,
    columns: usize,
    largest: f64,
}

impl Cost {
    /// A matrix from its entries, row after row.
    ///
    /// # Errors
    ///
    /// No entry, another number of entries than `rows * columns`, or an entry that is not finite.
    ///
    /// # Example
    ///
    /// ```
    /// use retort_transport::Cost;
    /// let cost = Cost::new(vec![1.0, 2.0, 3.0, 4.0, 5.0, -6.0], 2, 3)?;
    /// assert_eq!((cost.get(1), cost.get(2), cost.largest()), (Some(&[4.0, 5.0, -6.0][..]), None, 6.0));
    /// assert!(Cost::new(vec![f64::NAN], 1, 1).is_err());
    /// # Ok::<(), retort_transport::Error>(())
    /// ```
    pub fn new(values: Vec<f64>, rows: usize, columns: usize) -> Result<Self> {
        if values.is_empty() || rows.checked_mul(columns) != Some(values.len()) {
            let (expected, found) = (format!("{rows} x {columns} > 0 entries"), values.len().to_string());
            return Err(Error::Shape { what: "cost".into(), expected, found });
        }
        Self::finite("cost", values, rows, columns)
    }

    /// A matrix of the right size, refused by `what` if an entry is not finite.
    pub(crate) fn finite(what: &str, values: Vec<f64>, rows: usize, columns: usize) -> Result<Self> {
        debug_assert_eq!(values.len(), rows * columns);
        match largest(&values) {
            Some(largest) => Ok(Self { largest, values, rows, columns }),
            None => {
                let index = values.iter().position(|x| !x.is_finite()).expect("one is not finite");
                Err(Error::Value { what: what.into(), expected: "a finite cost", found: values[index], index })
            }
        }
    }

    /// `||x_i - y_j||^2`, from the differences themselves.
    ///
    /// The form `|x|^2 + |y|^2 - 2 x.y` needs a third fewer operations, but loses digits where points are close together
    /// and the clouds far from the origin. Here equal points have exactly the cost 0, the cost of two points depends on
    /// nothing else, and a common translation changes nothing but the rounding of the coordinates.
    ///
    /// # Errors
    ///
    /// Clouds of different widths, or a square that overflows.
    ///
    /// # Example
    ///
    /// ```
    /// use retort_transport::{Cost, Points};
    /// let x = Points::new("student", &[0.0, 0.0, 3.0, 4.0], 2)?;
    /// let y = Points::new("teacher", &[3.0, 4.0], 2)?;
    /// assert_eq!(Cost::squared_euclidean(x, y)?.values(), [25.0, 0.0]);
    /// # Ok::<(), retort_transport::Error>(())
    /// ```
    pub fn squared_euclidean(x: Points<'_>, y: Points<'_>) -> Result<Self> {
        x.same_width(&y)?;
        let values = pairwise(x.values(), y.values(), x.width(), |a, b| (a - b) * (a - b));
        Self::finite(&format!("squared distance between {} and {}", x.name(), y.name()), values, x.len(), y.len())
    }

    /// `||x_i - y_j||`; its squares neither overflow nor vanish, however large or small the coordinates.
    ///
    /// # Errors
    ///
    /// Clouds of different widths, or a distance that overflows.
    ///
    /// # Example
    ///
    /// ```
    /// use retort_transport::{Cost, Points};
    /// let x = Points::new("student", &[3.0, 4.0, 1.0, 1.0], 2)?;
    /// let y = Points::new("teacher", &[0.0, 0.0, 1.0, 1.0], 2)?;
    /// assert_eq!(Cost::euclidean(x, y)?.values(), [5.0, 13f64.sqrt(), 2f64.sqrt(), 0.0]);
    /// # Ok::<(), retort_transport::Error>(())
    /// ```
    pub fn euclidean(x: Points<'_>, y: Points<'_>) -> Result<Self> {
        x.same_width(&y)?;
        // Powers of two scale without rounding.
        let size = [x, y].map(|p| largest(p.values()).expect("points are finite"));
        let factor = out_of_range(size[0].max(size[1])).unwrap_or(1.0);
        let scaled = |p: Points<'_>| p.values().iter().map(|c| c * factor).collect::<Vec<_>>();
        let mut values = if factor == 1.0 {
            pairwise(x.values(), y.values(), x.width(), |a, b| (a - b) * (a - b))
        } else {
            pairwise(&scaled(x), &scaled(y), x.width(), |a, b| (a - b) * (a - b))
        };
        values.iter_mut().for_each(|c| *c = c.sqrt() / factor);
        Self::finite(&format!("distance between {} and {}", x.name(), y.name()), values, x.len(), y.len())
    }

    /// Number of sources.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of sinks.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The largest absolute value of an entry.
    #[must_use]
    pub fn largest(&self) -> f64 {
        self.largest
    }

    /// All entries, row after row.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The costs of source `i`; none if there are not that many.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<&[f64]> {
        (i < self.rows).then(|| self.row(i))
    }

    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.columns..(i + 1) * self.columns]
    }

    /// The power of two to solve with instead, where sums of costs could overflow or lose digits; none in between.
    pub(crate) fn factor(&self) -> Option<f64> {
        out_of_range(self.largest)
    }
}

/// A power of two that brings values up to `largest` near 1, if their squares or sums are in danger.
fn out_of_range(largest: f64) -> Option<f64> {
    if largest == 0.0 || (1e-100..=1e100).contains(&largest) {
        return None;
    }
    // The exponent is kept where both the power and its inverse are normal numbers.
    Some((-largest.log2().ceil().clamp(-1022.0, 1022.0)).exp2())
}

/// The largest absolute value, unless one is not finite.
fn largest(values: &[f64]) -> Option<f64> {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let (mut lanes, mut zeros) = ([0.0; LANES], [0.0; LANES]);
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] = if chunk[l].abs() > lanes[l] { chunk[l].abs() } else { lanes[l] };
            // NaN for NaN and for infinity.
            zeros[l] += chunk[l] * 0.0;
        }
    }
    let zero = zeros.iter().sum::<f64>() + rest.iter().map(|x| x * 0.0).sum::<f64>();
    (zero == 0.0).then(|| lanes.iter().chain(rest).fold(0.0, |a, b| b.abs().max(a)))
}

/// The matrix `sum_k term(x_ik, y_jk)`, rows of `x` against rows of `y`.
///
/// Every sum runs over k in order, so an entry depends on its two rows alone: not on block, lane or thread.
pub(crate) fn pairwise<X: Copy + Sync>(
    x: &[X],
    y: &[f64],
    width: usize,
    term: impl Fn(X, f64) -> f64 + Sync,
) -> Vec<f64> {
    let columns = y.len() / width;
    let mut sums = vec![0.0; x.len() / width * columns];
    let panels = panels(y, width);
    let block = |(sums, x): (&mut [f64], &[X])| {
        for (panel, j) in panels.chunks_exact(width).zip((0..columns).step_by(LANES)) {
            let lanes = LANES.min(columns - j);
            let pairs = sums.chunks_mut(2 * columns).zip(x.chunks(2 * width));
            for (sums, x) in pairs {
                // Two rows at a time: each load of the panel serves twice.
                let (first, second) = if x.len() > width { x.split_at(width) } else { (x, x) };
                let (mut s, mut t) = ([0.0; LANES], [0.0; LANES]);
                for ((panel, &a), &b) in panel.iter().zip(first).zip(second) {
                    for (s, &y) in s.iter_mut().zip(panel) {
                        *s += term(a, y);
                    }
                    for (t, &y) in t.iter_mut().zip(panel) {
                        *t += term(b, y);
                    }
                }
                sums[j..j + lanes].copy_from_slice(&s[..lanes]);
                if x.len() > width {
                    sums[columns + j..][..lanes].copy_from_slice(&t[..lanes]);
                }
            }
        }
    };
    if x.len() * columns < PARALLEL_FROM {
        block((&mut sums, x));
    } else {
        sums.par_chunks_mut(BLOCK * columns).zip(x.par_chunks(BLOCK * width)).for_each(block);
    }
    sums
}

/// The rows of `y` side by side, [`LANES`] at a time and padded with zeros, so that coordinate k of a panel is contiguous.
fn panels(y: &[f64], width: usize) -> Vec<[f64; LANES]> {
    let mut panels = vec![[0.0; LANES]; (y.len() / width).div_ceil(LANES) * width];
    for (j, row) in y.chunks_exact(width).enumerate() {
        for (panel, &c) in panels[j / LANES * width..].iter_mut().zip(row) {
            panel[j % LANES] = c;
        }
    }
    panels
}
