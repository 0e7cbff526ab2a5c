//! Sums over all pairs of points, in blocks.

use crate::linalg::{Columns, SquaredDifference, Term, Times, contract, pull};
use crate::{Distance, Points, moments};
use rayon::prelude::*;

/// Points whose pairs with all others one task holds.
const BLOCK: usize = 32;

/// How means over the pairs within a cloud are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Estimator {
    /// Over all pairs, each point with itself included: divides by `n^2`. Never negative (up to rounding), too large on
    /// average.
    #[default]
    Biased,
    /// Over pairs of distinct points: divides by `n (n - 1)`, needs two points a cloud. Can be negative.
    Unbiased,
}

impl Estimator {
    /// Number of pairs within a cloud.
    pub(crate) fn pairs(self, n: usize) -> f64 {
        match self {
            Self::Biased => n as f64 * n as f64,
            Self::Unbiased => n as f64 * (n - 1) as f64,
        }
    }
}

/// Two clouds, one after the other.
pub(crate) struct Pool {
    /// Points of the first cloud, and of both.
    n: usize,
    total: usize,
    width: usize,
    /// `[total, width]` and its transpose.
    rows: Vec<f64>,
    columns: Vec<f64>,
    /// What the coordinates were divided by.
    pub(crate) scale: f64,
}

/// Where the points of a block stand, for sums by side: the first cloud is 0, the second 1.
type BySide = [f64; 2];

impl Pool {
    /// The clouds as they are.
    pub(crate) fn new(x: Points<'_>, y: Points<'_>) -> Self {
        Self::seen_from(x, y, &vec![0.0; x.width()], 1.0)
    }

    /// The clouds moved to the origin and divided by a power of two, so that squares neither lose digits nor overflow.
    pub(crate) fn centred(x: Points<'_>, y: Points<'_>) -> Self {
        let origin = moments::middle(x, y);
        let offsets = x.rows().chain(y.rows()).flat_map(|row| row.iter().zip(&origin).map(|(v, o)| (v - o).abs()));
        let largest = offsets.fold(0.0, f64::max);
        // The exponent alone: the division is then exact.
        let power = f64::from_bits(largest.to_bits() & f64::INFINITY.to_bits());
        Self::seen_from(x, y, &origin, if largest > 0.0 { power.max(f64::MIN_POSITIVE) } else { 1.0 })
    }

    fn seen_from(x: Points<'_>, y: Points<'_>, origin: &[f64], scale: f64) -> Self {
        let (n, total, width) = (x.len(), x.len() + y.len(), x.width());
        let mut rows = Vec::with_capacity(total * width);
        for row in x.rows().chain(y.rows()) {
            rows.extend(row.iter().zip(origin).map(|(v, o)| (v - o) / scale));
        }
        let columns = crate::linalg::transposed(&rows, width);
        Self { n, total, width, rows, columns, scale }
    }

    fn side(&self, point: usize) -> usize {
        usize::from(point >= self.n)
    }

    /// `mean k(x, x') + mean k(y, y') - 2 mean k(x, y)` for a kernel of the squared distance.
    ///
    /// `kernel` returns `k` and the `w` of `dk(z, z')/dz = -w (z - z')`; `w` is not asked for where the distance is 0.
    pub(crate) fn of_distances(&self, estimator: Estimator, kernel: impl Fn(f64) -> (f64, f64) + Sync) -> Distance {
        // Without the guard the w of a kernel with a cusp would be infinite, and its product with 0 no number.
        let guarded = |square: f64| {
            let (k, w) = kernel(square);
            (k, if square == 0.0 { 0.0 } else { w })
        };
        self.discrepancy(SquaredDifference, true, estimator, guarded)
    }

    /// The same for a kernel of the inner product: `kernel` returns `k` and its derivative.
    pub(crate) fn of_products(&self, estimator: Estimator, kernel: impl Fn(f64) -> (f64, f64) + Sync) -> Distance {
        self.discrepancy(Times, false, estimator, kernel)
    }

    fn discrepancy<T: Term + Sync>(
        &self,
        term: T,
        radial: bool,
        estimator: Estimator,
        kernel: impl Fn(f64) -> (f64, f64) + Sync,
    ) -> Distance {
        let (n, m) = (self.n, self.total - self.n);
        let mut grad = vec![0.0; self.rows.len()];
        let blocks = grad.par_chunks_mut(BLOCK * self.width).enumerate();
        let sums: Vec<Vec<BySide>> = blocks
            .map_init(Vec::new, |slopes, (block, grad)| {
                let sums = self.slopes(term, block * BLOCK, grad.len() / self.width, estimator, &kernel, slopes);
                self.gradient(radial, block * BLOCK, estimator, slopes, grad);
                sums
            })
            .collect();
        let (mut within, mut across) = ([0.0; 2], 0.0);
        for (point, sums) in sums.iter().flatten().enumerate() {
            let side = self.side(point);
            within[side] += sums[side];
            across += if side == 0 { sums[1] } else { 0.0 };
        }
        let within = within[0] / estimator.pairs(n) + within[1] / estimator.pairs(m);
        let grad_y = grad.split_off(n * self.width);
        Distance { value: within - 2.0 * (across / (n as f64 * m as f64)), grad_x: grad, grad_y }
    }

    /// The kernel's derivatives of `count` points from `start` on with all points, `[total, count]`, and for each of
    /// the points the sums of the kernel over the two clouds.
    fn slopes<T: Term>(
        &self,
        term: T,
        start: usize,
        count: usize,
        estimator: Estimator,
        kernel: &impl Fn(f64) -> (f64, f64),
        slopes: &mut Vec<f64>,
    ) -> Vec<BySide> {
        self.block(term, start, count, self.total, slopes);
        let mut sums = vec![[0.0; 2]; count];
        for (other, row) in slopes.chunks_exact_mut(count).enumerate() {
            let side = self.side(other);
            for (c, (slope, sums)) in row.iter_mut().zip(&mut sums).enumerate() {
                if estimator == Estimator::Unbiased && start + c == other {
                    *slope = 0.0;
                    continue;
                }
                let (k, w) = kernel(*slope);
                sums[side] += k;
                *slope = w;
            }
        }
        sums
    }

    /// `term` summed over the coordinates of each pair: the first `others` points with `count` points from `start` on.
    fn block<T: Term>(&self, term: T, start: usize, count: usize, others: usize, out: &mut Vec<f64>) {
        out.clear();
        out.resize(others * count, 0.0);
        let others = Columns { count: others, ..Columns::all(&self.columns, self.total) };
        contract(term, self.width, others, Columns::part(&self.columns, self.total, start, count), out);
    }

    /// The gradient of the points from `start` on.
    ///
    /// The two clouds are summed apart: for equal clouds the sums are then equal to the last bit and cancel.
    fn gradient(&self, radial: bool, start: usize, estimator: Estimator, slopes: &[f64], grad: &mut [f64]) {
        let (n, m, width) = (self.n, self.total - self.n, self.width);
        let count = grad.len() / width;
        let (from_x, from_y) = slopes.split_at(n * count);
        let (x, y) = self.rows.split_at(n * width);
        let here = &self.rows[start * width..][..grad.len()];
        for (side, (slopes, points)) in [(from_x, x), (from_y, y)].into_iter().enumerate() {
            let mut pulls = vec![0.0; grad.len()];
            let (depth, slopes, points) =
                (points.len() / width, Columns::all(slopes, count), Columns::all(points, width));
            match radial {
                true => pull(depth, slopes, points, here, &mut pulls),
                false => contract(Times, depth, slopes, points, &mut pulls),
            }
            for (c, (grad, pulls)) in grad.chunks_exact_mut(width).zip(pulls.chunks_exact(width)).enumerate() {
                let own = self.side(start + c);
                let share = match own == side {
                    true => 2.0 / estimator.pairs([n, m][own]),
                    false => -2.0 / (n as f64 * m as f64),
                };
                grad.iter_mut().zip(pulls).for_each(|(grad, pull)| *grad += share * pull);
            }
        }
    }

    /// The mean of all entries of the three distance matrices XX, YY, XY, diagonals included.
    pub(crate) fn mean_distance(&self) -> f64 {
        let (n, m) = (self.n as f64, (self.total - self.n) as f64);
        let starts: Vec<usize> = (0..self.total).step_by(BLOCK).collect();
        let sums: Vec<f64> = starts
            .par_iter()
            .map_init(Vec::new, |squares, &start| {
                let end = self.total.min(start + BLOCK);
                self.block(SquaredDifference, start, end - start, end, squares);
                let mut sum = 0.0;
                for (other, row) in squares.chunks_exact(end - start).enumerate() {
                    for (point, square) in (start..end).zip(row).filter(|(point, _)| other < *point) {
                        // A pair within a cloud stands in its matrix twice.
                        let times = if self.side(point) == self.side(other) { 2.0 } else { 1.0 };
                        sum += times * square.sqrt();
                    }
                }
                sum
            })
            .collect();
        sums.iter().sum::<f64>() / (n * n + m * m + n * m)
    }

    /// The root of the median of the squared distances of all pairs of distinct points, of either cloud.
    pub(crate) fn median_distance(&self) -> f64 {
        let count = self.total * (self.total - 1) / 2;
        let mut squares = vec![0.0; count];
        let mut parts = Vec::new();
        let mut rest = squares.as_mut_slice();
        for start in (0..self.total).step_by(BLOCK) {
            let pairs = (start..self.total.min(start + BLOCK)).sum();
            let (part, tail) = rest.split_at_mut(pairs);
            parts.push((start, part));
            rest = tail;
        }
        parts.into_par_iter().for_each_init(Vec::new, |block, (start, part)| {
            let end = self.total.min(start + BLOCK);
            self.block(SquaredDifference, start, end - start, end, block);
            let pairs = block.chunks_exact(end - start).enumerate().flat_map(|(other, row)| {
                (start..end).zip(row).filter(move |(point, _)| other < *point).map(|(_, square)| square)
            });
            part.iter_mut().zip(pairs).for_each(|(to, square)| *to = *square);
        });
        let (below, upper, _) = squares.select_nth_unstable_by(count / 2, f64::total_cmp);
        let lower = if count % 2 == 1 { *upper } else { below.iter().copied().fold(0.0, f64::max) };
        (0.5 * (lower + *upper)).sqrt()
    }
}
