//! The matrix of the iteration and the loops over it.

use super::exp::exp;
use crate::Cost;
use rayon::prelude::*;

/// Rows of a block: the unit of summation, whatever the number of threads.
const BLOCK: usize = 32;
/// Entries that are worth another thread.
const GRAIN: usize = 1 << 14;

/// Whether loops over a matrix of this size are shared between threads.
pub(super) fn is_parallel(cost: &Cost) -> bool {
    cost.values().len() >= 2 * GRAIN
}

/// `K_ij = exp((g_j - C_ij - top_i) / eps)` with `top_i = max_j (g_j - C_ij)`: the largest entry of each row is 1.
pub(super) struct Kernel {
    values: Vec<f64>,
    top: Vec<f64>,
    columns: usize,
    /// Column sums of each block.
    partial: Vec<f64>,
}

/// A plan with its marginals and `<P, C>`.
pub(super) struct Coupling {
    pub(super) values: Vec<f64>,
    pub(super) rows: Vec<f64>,
    pub(super) columns: Vec<f64>,
    pub(super) transport: f64,
}

impl Kernel {
    pub(super) fn new(rows: usize, columns: usize) -> Self {
        let partial = vec![0.0; rows.div_ceil(BLOCK) * columns];
        Self { values: vec![0.0; rows * columns], top: vec![0.0; rows], columns, partial }
    }

    pub(super) fn values(&self) -> &[f64] {
        &self.values
    }

    pub(super) fn top(&self) -> &[f64] {
        &self.top
    }

    /// Blocks of rows that are worth another thread.
    fn grain(&self) -> usize {
        GRAIN.div_ceil(BLOCK * self.columns)
    }

    /// Computes the matrix anew; returns the largest spread of `g_j - C_ij` within a row.
    pub(super) fn fill(&mut self, cost: &Cost, g: &[f64], eps: f64) -> f64 {
        let (m, grain, inverse) = (self.columns, self.grain(), eps.recip());
        let blocks = self.values.par_chunks_mut(BLOCK * m).zip(self.top.par_chunks_mut(BLOCK)).enumerate();
        let spread = |(b, (values, top)): (usize, (&mut [f64], &mut [f64]))| {
            let mut spread = 0.0f64;
            for (k, (row, top)) in values.chunks_exact_mut(m).zip(top).enumerate() {
                let cost = cost.row(b * BLOCK + k);
                let low;
                (low, *top) = range(g, cost);
                spread = spread.max(*top - low);
                for ((x, g), c) in row.iter_mut().zip(g).zip(cost) {
                    *x = exp(((g - c) - *top) * inverse);
                }
            }
            spread
        };
        blocks.with_min_len(grain).map(spread).reduce(|| 0.0, f64::max)
    }

    /// Row sums `s_i = sum_j K_ij w_j`, then column sums `t_j = sum_i c(i, s_i) K_ij`, reading the matrix once.
    pub(super) fn sweep(
        &mut self,
        w: &[f64],
        c: impl Fn(usize, f64) -> f64 + Sync,
        sums: &mut [f64],
        totals: &mut [f64],
    ) {
        let (m, grain) = (self.columns, self.grain());
        let blocks = self.values.par_chunks(BLOCK * m).zip(self.partial.par_chunks_exact_mut(m));
        let blocks = blocks.zip(sums.par_chunks_mut(BLOCK)).enumerate();
        blocks.with_min_len(grain).for_each(|(b, ((values, partial), sums))| {
            partial.fill(0.0);
            for (k, (rows, sums)) in values.chunks(4 * m).zip(sums.chunks_mut(4)).enumerate() {
                let first = b * BLOCK + 4 * k;
                if let Ok(four) = <&mut [f64; 4]>::try_from(&mut *sums) {
                    let rows = std::array::from_fn(|r| &rows[r * m..(r + 1) * m]);
                    *four = dots(rows, w);
                    add(partial, rows, std::array::from_fn(|l| c(first + l, four[l])));
                } else {
                    for (l, (row, sum)) in rows.chunks_exact(m).zip(sums).enumerate() {
                        [*sum] = dots([row], w);
                        add(partial, [row], [c(first + l, *sum)]);
                    }
                }
            }
        });
        fold(&self.partial, totals);
    }

    /// `P_ij = scale_i K_ij w_j`, in place of the matrix.
    pub(super) fn into_plan(self, cost: &Cost, scale: &[f64], w: &[f64]) -> Coupling {
        let (m, n, grain) = (self.columns, self.top.len(), self.grain());
        let Self { mut values, mut partial, .. } = self;
        let (mut rows, mut transport) = (vec![0.0; n], vec![0.0; n.div_ceil(BLOCK)]);
        let blocks = values.par_chunks_mut(BLOCK * m).zip(partial.par_chunks_exact_mut(m));
        let blocks = blocks.zip(rows.par_chunks_mut(BLOCK)).zip(&mut transport).enumerate();
        let ones = vec![1.0; m];
        blocks.with_min_len(grain).for_each(|(b, (((values, partial), rows), transport))| {
            partial.fill(0.0);
            for (k, (plan, sum)) in values.chunks_exact_mut(m).zip(rows).enumerate() {
                let i = b * BLOCK + k;
                plan.iter_mut().zip(w).for_each(|(x, w)| *x *= scale[i] * w);
                [*sum] = dots([plan], &ones);
                *transport += dots([plan], cost.row(i))[0];
                add(partial, [plan], [1.0]);
            }
        });
        let mut columns = vec![0.0; m];
        fold(&partial, &mut columns);
        Coupling { values, rows, columns, transport: transport.iter().sum() }
    }
}

/// Adds the column sums of the blocks.
fn fold(partial: &[f64], totals: &mut [f64]) {
    totals.fill(0.0);
    for block in partial.chunks_exact(totals.len()) {
        totals.iter_mut().zip(block).for_each(|(t, p)| *t += p);
    }
}

/// The smallest and the largest `g_j - c_j`, in lanes, so that it vectorises.
fn range(g: &[f64], c: &[f64]) -> (f64, f64) {
    let smaller = |a: f64, b: f64| if b < a { b } else { a };
    let larger = |a: f64, b: f64| if b > a { b } else { a };
    let ((g, g_tail), (c, c_tail)) = (g.as_chunks::<4>(), c.as_chunks::<4>());
    let (mut low, mut high) = ([f64::INFINITY; 4], [f64::NEG_INFINITY; 4]);
    for (g, c) in g.iter().zip(c) {
        for l in 0..4 {
            let z = g[l] - c[l];
            (low[l], high[l]) = (smaller(low[l], z), larger(high[l], z));
        }
    }
    for (l, (g, c)) in g_tail.iter().zip(c_tail).enumerate() {
        let z = g - c;
        (low[l], high[l]) = (smaller(low[l], z), larger(high[l], z));
    }
    (low.into_iter().fold(f64::INFINITY, smaller), high.into_iter().fold(f64::NEG_INFINITY, larger))
}

/// `sum_i a_i row_i` of a matrix with `m` columns.
pub(super) fn weighted_rows(matrix: &[f64], a: &[f64], m: usize) -> Vec<f64> {
    let mut sum = vec![0.0; m];
    for (rows, a) in matrix.chunks(4 * m).zip(a.chunks(4)) {
        if let Ok(four) = <[f64; 4]>::try_from(a) {
            add(&mut sum, std::array::from_fn::<_, 4, _>(|r| &rows[r * m..(r + 1) * m]), four);
        } else {
            rows.chunks_exact(m).zip(a).for_each(|(row, a)| add(&mut sum, [row], [*a]));
        }
    }
    sum
}

/// The row sums of a matrix with `m` columns.
pub(super) fn row_sums(matrix: &[f64], m: usize) -> Vec<f64> {
    let ones = vec![1.0; m];
    matrix.chunks_exact(m).map(|row| dots([row], &ones)[0]).collect()
}

/// Inner products of R rows with `w`.
fn dots<const R: usize>(rows: [&[f64]; R], w: &[f64]) -> [f64; R] {
    let (chunks, tail) = w.as_chunks::<4>();
    let rows = rows.map(|row| row[..w.len()].as_chunks::<4>());
    let mut lanes = [[0.0; 4]; R];
    for (k, w) in chunks.iter().enumerate() {
        for (lanes, (row, _)) in lanes.iter_mut().zip(&rows) {
            for l in 0..4 {
                lanes[l] += row[k][l] * w[l];
            }
        }
    }
    std::array::from_fn(|r| {
        let rest: f64 = rows[r].1.iter().zip(tail).map(|(x, w)| x * w).sum();
        ((lanes[r][0] + lanes[r][2]) + (lanes[r][1] + lanes[r][3])) + rest
    })
}

/// Adds `sum_r c_r row_r` to `out`.
pub(super) fn add<const R: usize>(out: &mut [f64], rows: [&[f64]; R], c: [f64; R]) {
    let rows = rows.map(|row| &row[..out.len()]);
    for (j, out) in out.iter_mut().enumerate() {
        let mut sum = 0.0;
        for r in 0..R {
            sum += c[r] * rows[r][j];
        }
        *out += sum;
    }
}
