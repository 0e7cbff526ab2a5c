//! Matrices: products whose sums run in one fixed order, and the factorisations that faer brings.
//!
//! Matrices are slices, row after row.
//! The factorisations run on one thread; their last bits may depend on the instruction set of the processor.

use crate::{Error, Result};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::qr::no_pivoting::factor as qr;
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::linalg::triangular_solve;
use faer::prelude::default;
use faer::traits::pulp;
use faer::{Mat, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a product that one task computes.
const ROWS: usize = 16;
/// Terms of a sum that are added before the next tile has its turn: what they read stays in the cache.
const DEPTH: usize = 128;

/// Columns of a matrix with `stride` numbers in a row: those that `values` begins with, `count` of them.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) values: &'a [f64],
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

impl<'a> Columns<'a> {
    pub(crate) fn all(values: &'a [f64], count: usize) -> Self {
        Self { values, stride: count, count }
    }

    /// `count` columns from `start` on.
    pub(crate) fn part(values: &'a [f64], stride: usize, start: usize, count: usize) -> Self {
        Self { values: &values[start.min(values.len())..], stride, count }
    }
}

/// How a pair of numbers enters a sum, seen from an origin of this sum.
pub(crate) trait Term: Copy {
    fn add(sum: f64, a: f64, b: f64, origin: f64) -> f64;
}

/// `a b`, for products.
#[derive(Clone, Copy)]
pub(crate) struct Times;

/// `a (b - origin)`, for pulls towards points.
#[derive(Clone, Copy)]
pub(crate) struct TimesOffset;

/// `(a - b)^2`, for squared distances.
#[derive(Clone, Copy)]
pub(crate) struct SquaredDifference;

impl Term for Times {
    #[inline(always)]
    fn add(sum: f64, a: f64, b: f64, _origin: f64) -> f64 {
        sum + a * b
    }
}

impl Term for TimesOffset {
    #[inline(always)]
    fn add(sum: f64, a: f64, b: f64, origin: f64) -> f64 {
        sum + a * (b - origin)
    }
}

impl Term for SquaredDifference {
    #[inline(always)]
    fn add(sum: f64, a: f64, b: f64, _origin: f64) -> f64 {
        sum + (a - b) * (a - b)
    }
}

/// `out[i][j] += sum over k < depth of term(a[k][i], b[k][j])`, for each pair of columns.
///
/// Every sum runs over k in ascending order and without fused operations, so an entry has the same bits wherever it
/// stands and on every processor.
pub(crate) fn contract<T: Term>(term: T, depth: usize, a: Columns<'_>, b: Columns<'_>, out: &mut [f64]) {
    pulp::Arch::new().dispatch(Contract { sums: Sums { _term: term, depth, a, b, origins: None }, out });
}

/// `out[i][j] += sum over k < depth of a[k][i] (b[k][j] - origins[i][j])`: how points `b` pull at the `origins`.
///
/// Not the difference of two sums: that would cost digits where points are close and the weights `a` large.
pub(crate) fn pull(depth: usize, a: Columns<'_>, b: Columns<'_>, origins: &[f64], out: &mut [f64]) {
    let sums = Sums { _term: TimesOffset, depth, a, b, origins: Some(origins) };
    pulp::Arch::new().dispatch(Contract { sums, out });
}

struct Sums<'a, T> {
    _term: T,
    depth: usize,
    a: Columns<'a>,
    b: Columns<'a>,
    /// One for each sum; 0 if there are none.
    origins: Option<&'a [f64]>,
}

struct Contract<'a, T> {
    sums: Sums<'a, T>,
    out: &'a mut [f64],
}

impl<T: Term> pulp::WithSimd for Contract<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) {
        let Self { sums, out } = self;
        for from in (0..sums.depth).step_by(DEPTH) {
            let terms = from..sums.depth.min(from + DEPTH);
            let mut i = 0;
            while i + 4 <= sums.a.count {
                sums.strip::<4>(&terms, i, out);
                i += 4;
            }
            while i < sums.a.count {
                sums.strip::<1>(&terms, i, out);
                i += 1;
            }
        }
    }
}

impl<T: Term> Sums<'_, T> {
    /// The rows `i .. i + P` of the result.
    #[inline(always)]
    fn strip<const P: usize>(&self, terms: &Range<usize>, i: usize, out: &mut [f64]) {
        let mut j = 0;
        while j + 8 <= self.b.count {
            self.tile::<P, 8>(terms, i, j, out);
            j += 8;
        }
        while j < self.b.count {
            self.tile::<P, 1>(terms, i, j, out);
            j += 1;
        }
    }

    #[inline(always)]
    fn tile<const P: usize, const Q: usize>(&self, terms: &Range<usize>, i: usize, j: usize, out: &mut [f64]) {
        let Self { a, b, .. } = self;
        let read = |from: &[f64]| {
            let mut tile = [[0.0; Q]; P];
            for (r, row) in tile.iter_mut().enumerate() {
                row.copy_from_slice(&from[(i + r) * b.count + j..][..Q]);
            }
            tile
        };
        let mut sums = read(out);
        let origins = self.origins.map_or([[0.0; Q]; P], read);
        for k in terms.clone() {
            let a = a.values[k * a.stride + i..].first_chunk::<P>().expect("a row of a has P columns from i on");
            let b = b.values[k * b.stride + j..].first_chunk::<Q>().expect("a row of b has Q columns from j on");
            for ((sums, a), origins) in sums.iter_mut().zip(a).zip(&origins) {
                for ((sum, b), origin) in sums.iter_mut().zip(b).zip(origins) {
                    *sum = T::add(*sum, *a, *b, *origin);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            out[(i + r) * b.count + j..][..Q].copy_from_slice(sums);
        }
    }
}

/// `A' B` of `a`: `[k, p]` and `b`: `[k, q]`.
pub(crate) fn transposed_product(a: &[f64], p: usize, b: &[f64], q: usize) -> Vec<f64> {
    let depth = a.len() / p;
    let mut out = vec![0.0; p * q];
    out.par_chunks_mut(ROWS * q).enumerate().for_each(|(block, out)| {
        let a = Columns::part(a, p, block * ROWS, out.len() / q);
        contract(Times, depth, a, Columns::all(b, q), out);
    });
    out
}

/// `A B` of `a`: `[n, k]` and `b`: `[k, q]`.
pub(crate) fn product(a: &[f64], k: usize, b: &[f64], q: usize) -> Vec<f64> {
    transposed_product(&transposed(a, k), a.len() / k, b, q)
}

/// The transpose of `a`: `[n, width]`.
pub(crate) fn transposed(a: &[f64], width: usize) -> Vec<f64> {
    let n = a.len() / width;
    let mut out = vec![0.0; a.len()];
    for (i, row) in a.chunks_exact(width).enumerate() {
        for (c, x) in row.iter().enumerate() {
            out[c * n + i] = *x;
        }
    }
    out
}

/// The upper triangular R of `R' R = A' A + ridge^2 I`, `[d, d]`, for `a`: `[n, d]`.
///
/// By Householder reflections of A over `ridge I`: the Cholesky factor without forming the product, which would square
/// the condition number. The diagonal may be negative.
pub(crate) fn triangular(a: &[f64], d: usize, ridge: f64) -> Vec<f64> {
    let n = a.len() / d;
    let extra = if ridge == 0.0 { 0 } else { d };
    let mut stacked = Mat::from_fn(n + extra, d, |i, j| {
        if i < n {
            a[i * d + j]
        } else if i - n == j {
            ridge
        } else {
            0.0
        }
    });
    let (rows, size) = (n + extra, d.min(n + extra));
    let block = qr::recommended_block_size::<f64>(rows, d);
    let mut coefficients = Mat::<f64>::zeros(block, size);
    let scratch = qr::qr_in_place_scratch::<f64>(rows, d, block, Par::Seq, default());
    let mut memory = MemBuffer::new(scratch);
    qr::qr_in_place(stacked.as_mut(), coefficients.as_mut(), Par::Seq, MemStack::new(&mut memory), default());
    (0..d * d).map(|at| (at / d, at % d)).map(|(i, j)| if i <= j && i < size { stacked[(i, j)] } else { 0.0 }).collect()
}

/// `A = U diag(values) V'`, values in descending order; all `[d, d]`.
pub(crate) struct Svd {
    pub(crate) u: Vec<f64>,
    pub(crate) values: Vec<f64>,
    pub(crate) v: Vec<f64>,
}

impl Svd {
    pub(crate) fn new(metric: &'static str, a: &[f64], d: usize) -> Result<Self> {
        if !a.iter().all(|x| x.is_finite()) {
            return Err(Error::Undefined(format!(
                "{metric}: the coordinates are so large that a covariance overflows"
            )));
        }
        let (mut u, mut v) = (Mat::<f64>::zeros(d, d), Mat::<f64>::zeros(d, d));
        let mut values = faer::Col::<f64>::zeros(d);
        let full = ComputeSvdVectors::Full;
        let mut memory = MemBuffer::new(svd::svd_scratch::<f64>(d, d, full, full, Par::Seq, default()));
        svd::svd(
            MatRef::from_row_major_slice(a, d, d),
            values.as_mut().as_diagonal_mut(),
            Some(u.as_mut()),
            Some(v.as_mut()),
            Par::Seq,
            MemStack::new(&mut memory),
            default(),
        )
        .map_err(|_| Error::Undefined(format!("{metric}: a singular value decomposition did not converge")))?;
        let rows = |m: &Mat<f64>| (0..d * d).map(|at| m[(at / d, at % d)]).collect();
        Ok(Self { u: rows(&u), values: (0..d).map(|i| values[i]).collect(), v: rows(&v) })
    }
}

/// Solves `R X = B` in place for an upper triangular `r`: `[d, d]` and `b`: `[d, q]`.
pub(crate) fn solve_upper(r: &[f64], d: usize, b: &mut [f64]) {
    let q = b.len() / d;
    let b = MatMut::from_row_major_slice_mut(b, d, q);
    triangular_solve::solve_upper_triangular_in_place(MatRef::from_row_major_slice(r, d, d), b, Par::Seq);
}

/// Solves `R' X = B` in place for an upper triangular `r`: `[d, d]` and `b`: `[d, q]`.
pub(crate) fn solve_upper_transposed(r: &[f64], d: usize, b: &mut [f64]) {
    let q = b.len() / d;
    let b = MatMut::from_row_major_slice_mut(b, d, q);
    let lower = MatRef::from_row_major_slice(r, d, d).transpose();
    triangular_solve::solve_lower_triangular_in_place(lower, b, Par::Seq);
}
