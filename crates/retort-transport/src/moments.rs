//! Means, centred clouds and origins.

use crate::{Points, linalg};

/// The middle of the pooled range of each coordinate.
///
/// An origin close to both clouds that doesn't depend on the order of the points, to the last bit: far from the origin
/// differences of projections and of inner products would lose digits.
pub(crate) fn middle(x: Points<'_>, y: Points<'_>) -> Vec<f64> {
    let mut low = x.row(0).to_vec();
    let mut high = low.clone();
    for row in x.rows().chain(y.rows()) {
        for ((low, high), value) in low.iter_mut().zip(&mut high).zip(row) {
            *low = low.min(*value);
            *high = high.max(*value);
        }
    }
    low.iter().zip(&high).map(|(low, high)| 0.5 * low + 0.5 * high).collect()
}

/// The points seen from `origin`, coordinate by coordinate: `[d, n]`.
pub(crate) fn columns(points: Points<'_>, origin: &[f64]) -> Vec<f64> {
    let n = points.len();
    let mut out = vec![0.0; points.values().len()];
    for (i, row) in points.rows().enumerate() {
        for (c, (value, origin)) in row.iter().zip(origin).enumerate() {
            out[c * n + i] = value - origin;
        }
    }
    out
}

/// A cloud seen from its mean.
pub(crate) struct Centred {
    /// Number of points.
    pub(crate) n: usize,
    /// Number of coordinates.
    pub(crate) width: usize,
    /// The points minus their mean, row after row.
    pub(crate) rows: Vec<f64>,
    first: Vec<f64>,
    /// The mean minus the first point.
    shift: Vec<f64>,
}

impl Centred {
    /// The mean is taken from the first point on, so that a coordinate in which all points agree is exactly 0 after.
    pub(crate) fn new(points: Points<'_>) -> Self {
        let (n, width) = (points.len(), points.width());
        let first = points.row(0).to_vec();
        let mut rows: Vec<f64> = points.rows().flat_map(|row| row.iter().zip(&first).map(|(x, o)| x - o)).collect();
        let mut shift = vec![0.0; width];
        for row in rows.chunks_exact(width) {
            shift.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        shift.iter_mut().for_each(|sum| *sum /= n as f64);
        for row in rows.chunks_exact_mut(width) {
            row.iter_mut().zip(&shift).for_each(|(x, mean)| *x -= mean);
        }
        Self { n, width, rows, first, shift }
    }

    /// The mean of this cloud minus that of another.
    pub(crate) fn mean_minus(&self, other: &Self) -> Vec<f64> {
        let firsts = self.first.iter().zip(&other.first).map(|(a, b)| a - b);
        firsts.zip(self.shift.iter().zip(&other.shift)).map(|(first, (a, b))| first + (a - b)).collect()
    }

    /// The sums of squares of each coordinate.
    pub(crate) fn squares(&self) -> Vec<f64> {
        let mut out = vec![0.0; self.width];
        for row in self.rows.chunks_exact(self.width) {
            out.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
        }
        out
    }

    /// The sums of products of each pair of coordinates, `[d, d]`: the covariance times its divisor.
    pub(crate) fn scatter(&self) -> Vec<f64> {
        linalg::transposed_product(&self.rows, self.width, &self.rows, self.width)
    }

    /// What a function of mean and covariance passes to each point: `by_mean + scale * slope (x_i - mean)`.
    ///
    /// `slope`: `[d, d]`, symmetric.
    pub(crate) fn pull_back(&self, by_mean: &[f64], slope: &[f64], scale: f64) -> Vec<f64> {
        let mut out = linalg::product(&self.rows, self.width, slope, self.width);
        for row in out.chunks_exact_mut(self.width) {
            row.iter_mut().zip(by_mean).for_each(|(g, mean)| *g = mean + scale * *g);
        }
        out
    }
}
