//! Products of matrices whose rows are samples or rows of a memory bank.
//!
//! Two kernels, and their gradients are the same two kernels again: inner products of rows, `A B^T`, and weighted sums
//! of rows, `W X`.
//! Both copy a block that fits the caches into rows that lie side by side: the rows of a batch are often a power of two
//! apart, where they would displace each other.
#![allow(clippy::needless_range_loop)] // reason: constant ranges over arrays of registers

use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::error::{float, like, shape};
use crate::raw::{by_dtype, dtype, filled, slice, tensor, with_slice};
use crate::simd::{Float, Kernel, Simd};
use crate::{InstructionSet, Result, isa};

/// Rows of the first factor in a register tile of inner products; `Simd::ROWS` of the second one fill the registers.
const FEW: usize = 3;
/// Tasks that a product is cut into at least, if it is large enough, whatever the number of threads.
const TASKS: usize = 16;
/// Most rows of a block of both factors of inner products.
const ROWS: usize = 96;
/// The rows of a block are a multiple of this one, and so of every register tile.
const TILE: usize = 24;
/// Elements of a row of such a block.
const DEPTH: usize = 512;
/// Columns of a task of weighted sums.
const COLUMNS: usize = 384;
/// Rows of a block of summands.
const SUMMANDS: usize = 256;
/// Sums of slices that a thread adds at a time.
const TERMS: usize = 1024;

/// A matrix, row after row.
#[derive(Clone, Copy)]
struct Matrix<'a, T> {
    values: &'a [T],
    columns: usize,
}

impl<'a, T: Float> Matrix<'a, T> {
    /// The values as `rows` rows.
    fn new(values: &'a [T], rows: usize) -> Self {
        Self { values, columns: values.len() / rows }
    }

    #[inline(always)]
    fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    #[inline(always)]
    fn row(&self, row: usize, columns: Range<usize>) -> &'a [T] {
        &self.values[row * self.columns..][columns]
    }
}

/// A part of the result: pieces of consecutive rows.
type Piece<'a, T> = Vec<&'a mut [MaybeUninit<T>]>;

/// Cuts a matrix with `columns` columns into pieces that are `width` wide.
fn pieces<T>(out: &mut [MaybeUninit<T>], columns: usize, width: usize) -> Vec<Piece<'_, T>> {
    let mut pieces: Vec<Piece<T>> = (0..columns.div_ceil(width)).map(|_| Vec::new()).collect();
    for row in out.chunks_mut(columns) {
        for (piece, part) in pieces.iter_mut().zip(row.chunks_mut(width)) {
            piece.push(part);
        }
    }
    pieces
}

/// Computes a matrix of `rows` rows and `columns` columns, pieces of `width` columns at a time; `work` is given a piece,
/// its number and the range of the sum.
///
/// If the pieces are few the sum over `0 .. depth` is cut into slices too, each a multiple of `unit` long.
fn sliced<T: Float>(
    [rows, columns, width]: [usize; 3],
    (depth, unit): (usize, usize),
    work: impl Fn(Piece<'_, T>, usize, Range<usize>) + Sync,
) -> Vec<T> {
    let slices = TASKS.div_ceil(columns.div_ceil(width));
    let length = depth.div_ceil(slices).next_multiple_of(unit);
    let slices = depth.div_ceil(length);
    // SAFETY: the pieces of all slices are the whole of it, and both kernels write every element of a piece.
    let parts = unsafe {
        filled(slices * rows * columns, |out| {
            let slices = out.chunks_mut(rows * columns).enumerate();
            let tasks: Vec<_> = slices
                .flat_map(|(s, out)| {
                    pieces(out, columns, width).into_iter().enumerate().map(move |(at, piece)| (s, at, piece))
                })
                .collect();
            tasks.into_par_iter().for_each(|(s, at, piece)| {
                work(piece, at, s * length..((s + 1) * length).min(depth));
            });
        })
    };
    if slices == 1 {
        return parts;
    }
    let mut sums = vec![0.0; rows * columns];
    sums.par_chunks_mut(TERMS).enumerate().for_each(|(chunk, sums)| {
        for slice in parts.chunks(rows * columns) {
            for (sum, x) in sums.iter_mut().zip(&slice[chunk * TERMS..]) {
                *sum += x.wide();
            }
        }
    });
    sums.into_iter().map(T::of).collect()
}

/// Inner products of the rows of `a` with some rows of `b`.
struct Inner<'a, T> {
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    /// The first of the rows of `b`; there are as many as the piece has columns.
    first: usize,
    depth: Range<usize>,
    /// Both are one matrix: what lies below the diagonal is left out.
    symmetric: bool,
    to: Piece<'a, T>,
}

impl<T: Float> Kernel<T> for Inner<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        match V::ROWS {
            8 => self.rows::<V, 8>(),
            _ => self.rows::<V, 4>(),
        }
    }
}

impl<T: Float> Inner<'_, T> {
    #[inline(always)]
    fn rows<V: Simd<Elem = T>, const R: usize>(mut self) {
        let columns = self.to[0].len();
        let (mut scratch, at) = T::take_scratch(ROWS * (2 * DEPTH + ROWS));
        let (blocks, sums) = scratch[at..].split_at_mut(2 * ROWS * DEPTH);
        let (block_a, block_b) = blocks.split_at_mut(ROWS * DEPTH);
        for (number, to) in self.to.chunks_mut(ROWS).enumerate() {
            let top = number * ROWS;
            if self.symmetric && top >= self.first + columns {
                to.iter_mut().for_each(|row| row.fill(MaybeUninit::new(T::default())));
                continue;
            }
            let sums = &mut sums[..ROWS * ROWS];
            sums.fill(T::default());
            for from in self.depth.clone().step_by(DEPTH) {
                let part = from..(from + DEPTH).min(self.depth.end);
                let step = part.len().next_multiple_of(V::LANES);
                let rows_a = block(self.a, top..top + to.len(), part.clone(), step, block_a);
                let rows_b = match self.symmetric && top == self.first {
                    true => rows_a,
                    false => block(self.b, self.first..self.first + columns, part, step, block_b),
                };
                for j in (0..columns).step_by(R) {
                    for i in (0..to.len()).step_by(FEW) {
                        if self.symmetric && self.first + j + R <= top + i {
                            continue;
                        }
                        // SAFETY: both hold rows of `step` elements, a multiple of `LANES`, and the last tile ends with
                        // the block at the latest: `FEW` and `R` divide `TILE`, and `TILE` divides `ROWS`.
                        let tile =
                            unsafe { dots::<V, R>(rows_a.as_ptr().add(i * step), rows_b.as_ptr().add(j * step), step) };
                        for (i, tile) in (i..).zip(tile) {
                            for (sum, dot) in sums[i * ROWS + j..][..R].iter_mut().zip(tile) {
                                *sum += dot;
                            }
                        }
                    }
                }
            }
            for (to, sums) in to.iter_mut().zip(sums.chunks(ROWS)) {
                for (to, &sum) in to.iter_mut().zip(sums) {
                    to.write(sum);
                }
            }
        }
        T::keep_scratch(scratch);
    }
}

/// A part of some rows as rows of `step` elements: those of the matrix itself, or a copy with zeros for what is missing.
#[inline(always)]
fn block<'a, T: Float>(
    from: Matrix<'a, T>,
    rows: Range<usize>,
    columns: Range<usize>,
    step: usize,
    to: &'a mut [T],
) -> &'a [T] {
    if columns.len() == step && from.columns == step && rows.len() == ROWS {
        return &from.values[rows.start * step..][..ROWS * step];
    }
    let to = &mut to[..rows.len().next_multiple_of(TILE) * step];
    let (used, rest) = to.split_at_mut(rows.len() * step);
    for (row, to) in rows.zip(used.chunks_exact_mut(step)) {
        let (to, gap) = to.split_at_mut(columns.len());
        to.copy_from_slice(from.row(row, columns.clone()));
        gap.fill(T::default());
    }
    rest.fill(T::default());
    to
}

/// Inner products of `FEW` rows with `R` rows; all lie `step` apart and are as long.
///
/// # Safety
///
/// All the rows are valid, and `step` is a multiple of `LANES`.
#[inline(always)]
unsafe fn dots<V: Simd, const R: usize>(a: *const V::Elem, b: *const V::Elem, step: usize) -> [[V::Elem; R]; FEW] {
    // SAFETY: every load lies in one of the rows.
    unsafe {
        let zero = V::splat(V::Elem::default());
        let mut sums = [[zero; R]; FEW];
        for at in (0..step).step_by(V::LANES) {
            let few = [V::load(a.add(at)), V::load(a.add(step + at)), V::load(a.add(2 * step + at))];
            for r in 0..R {
                let other = V::load(b.add(r * step + at));
                for i in 0..FEW {
                    sums[i][r] = other.mul_add(few[i], sums[i][r]);
                }
            }
        }
        if size_of::<V::Elem>() == size_of::<f64>() {
            // Vectors that are arrays: a compiler that sees their sums coming vectorises the loop across the wrong axis.
            sums = std::hint::black_box(sums);
        }
        [V::sums(sums[0]), V::sums(sums[1]), V::sums(sums[2])]
    }
}

/// `A B^T`, `[M, D]` and `[N, D]` to `[M, N]`.
fn inner<T: Float>(set: InstructionSet, a: Matrix<'_, T>, b: Matrix<'_, T>) -> Vec<T> {
    blocks(set, a, b, false)
}

fn blocks<T: Float>(set: InstructionSet, a: Matrix<'_, T>, b: Matrix<'_, T>, symmetric: bool) -> Vec<T> {
    sliced([a.rows(), b.rows(), ROWS], (a.columns, 128), |to, at, depth| {
        T::dispatch(set, Inner { a, b, first: at * ROWS, depth, symmetric, to });
    })
}

/// `A A^T`.
fn inner_own<T: Float>(set: InstructionSet, a: Matrix<'_, T>) -> Vec<T> {
    let mut out = blocks(set, a, a, true);
    let n = a.rows();
    for i in 0..n {
        for j in 0..i {
            out[i * n + j] = out[j * n + i];
        }
    }
    out
}

/// Weighted sums of the rows of `x`, some columns of them.
struct Weighted<'a, T> {
    weights: Matrix<'a, T>,
    x: Matrix<'a, T>,
    /// The first of the columns; there are as many as the piece has.
    first: usize,
    depth: Range<usize>,
    to: Piece<'a, T>,
}

impl<T: Float> Kernel<T> for Weighted<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        match V::ROWS {
            8 => self.sums::<V, 6, 4>(),
            _ => self.sums::<V, 4, 3>(),
        }
    }
}

impl<T: Float> Weighted<'_, T> {
    #[inline(always)]
    fn sums<V: Simd<Elem = T>, const R: usize, const W: usize>(mut self) {
        let (columns, width) = (self.to[0].len(), W * V::LANES);
        let panels = columns.div_ceil(width);
        let (mut scratch, at) = T::take_scratch((panels * SUMMANDS + 1) * width);
        let (spare, block) = scratch[at..].split_at_mut(width);
        for from in self.depth.clone().step_by(SUMMANDS) {
            let part = from..(from + SUMMANDS).min(self.depth.end);
            let panel_len = part.len() * width;
            // Panels of `width` columns, in each of them row after row.
            for (i, row) in part.clone().enumerate() {
                let row = self.x.row(row, self.first..self.first + columns);
                for (row, panel) in row.chunks(width).zip(block.chunks_mut(panel_len)) {
                    let (to, gap) = panel[i * width..][..width].split_at_mut(row.len());
                    to.copy_from_slice(row);
                    gap.fill(T::default());
                }
            }
            for (panel, x) in block.chunks(panel_len).take(panels).enumerate() {
                for (tile, to) in self.to.chunks_mut(R).enumerate() {
                    let mut weights = [&[][..]; R];
                    for (r, weights) in weights.iter_mut().enumerate() {
                        // Rows that do not exist are computed like the last one and not stored.
                        *weights = self.weights.row(tile * R + r.min(to.len() - 1), part.clone());
                    }
                    // SAFETY: `x` holds a row of `width` elements for each weight, `spare` one such row, and blocks
                    // other than the first one add to what the first one has written.
                    unsafe {
                        let sums = combine::<V, R, W>(weights, x);
                        for (to, sums) in to.iter_mut().zip(sums) {
                            let end = columns.min((panel + 1) * width);
                            settle(sums, from > self.depth.start, &mut to[panel * width..end], spare);
                        }
                    }
                }
            }
        }
        T::keep_scratch(scratch);
    }
}

/// `R` weighted sums of rows that are `W` vectors long.
///
/// # Safety
///
/// All weights are as many, and `x` has a row for each of them.
#[inline(always)]
unsafe fn combine<V: Simd, const R: usize, const W: usize>(weights: [&[V::Elem]; R], x: &[V::Elem]) -> [[V; W]; R] {
    // SAFETY: row `k` of `x` starts at `k * W * LANES`.
    unsafe {
        let zero = V::splat(V::Elem::default());
        let mut sums = [[zero; W]; R];
        for k in 0..weights[0].len() {
            let mut row = [zero; W];
            for (c, row) in row.iter_mut().enumerate() {
                *row = V::load(x.as_ptr().add((k * W + c) * V::LANES));
            }
            for r in 0..R {
                let weight = V::splat(*weights[r].get_unchecked(k));
                for c in 0..W {
                    sums[r][c] = weight.mul_add(row[c], sums[r][c]);
                }
            }
        }
        sums
    }
}

/// Writes a row of sums, or adds it to what is there; the row may end early.
///
/// # Safety
///
/// `spare` has room for `W` vectors; to be added to, `to` must be initialised.
#[inline(always)]
unsafe fn settle<V: Simd, const W: usize>(
    sums: [V; W],
    add: bool,
    to: &mut [MaybeUninit<V::Elem>],
    spare: &mut [V::Elem],
) {
    let full = to.len() == W * V::LANES;
    let target: *mut V::Elem = if full { to.as_mut_ptr().cast() } else { spare.as_mut_ptr() };
    // SAFETY: both targets have room for `W` vectors, and what is read is initialised, by the caller's promise.
    unsafe {
        for (c, mut sum) in sums.into_iter().enumerate() {
            let target = target.add(c * V::LANES);
            if add && full {
                sum = V::load(target).add(sum);
            }
            sum.store(target);
        }
        if !full {
            for (to, &sum) in to.iter_mut().zip(&*spare) {
                to.write(if add { to.assume_init() + sum } else { sum });
            }
        }
    }
}

/// `W X`, `[M, N]` and `[N, D]` to `[M, D]`.
fn weighted<T: Float>(set: InstructionSet, weights: Matrix<'_, T>, x: Matrix<'_, T>) -> Vec<T> {
    // Few summands: the columns are what the threads share.
    let pieces = (TASKS * SUMMANDS).div_ceil(x.rows()).min(TASKS);
    let width = x.columns.div_ceil(pieces).next_multiple_of(64).min(COLUMNS);
    sliced([weights.rows(), x.columns, width], (x.rows(), SUMMANDS), |to, at, depth| {
        T::dispatch(set, Weighted { weights, x, first: at * width, depth, to });
    })
}

/// Calls `f` with the matrices of two contiguous tensors on the CPU and makes a tensor of its result.
fn product<T: Float>(
    [a, b]: [&Tensor; 2],
    shape: impl Into<Shape>,
    f: impl Fn(InstructionSet, Matrix<'_, T>, Matrix<'_, T>) -> Vec<T>,
) -> candle_core::Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let (m, n) = (a.dims()[0], b.dims()[0]);
    let out = with_slice::<T, _>(&a, |x| {
        with_slice::<T, _>(&b, |y| f(isa::current(), Matrix::new(x, m), Matrix::new(y, n)))
    })??;
    tensor(out, shape)
}

struct Gram;

impl CustomOp1 for Gram {
    fn name(&self) -> &'static str {
        "gram"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let n = l.dims()[0];
        by_dtype!("gram", dtype(s), T => {
            let out = inner_own(isa::current(), Matrix::new(slice::<T>(s, l)?, n));
            Ok((candle_core::WithDType::to_cpu_storage_owned(out), (n, n).into()))
        })
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let both = (g + g.t()?)?;
        by_dtype!("gram", x.dtype(), T => product::<T>([&both, x], x.shape(), weighted).map(Some))
    }
}

struct InnerProducts;

impl CustomOp2 for InnerProducts {
    fn name(&self) -> &'static str {
        "inner_products"
    }
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (m, n) = (l1.dims()[0], l2.dims()[0]);
        by_dtype!("inner_products", dtype(s1), T => {
            let (a, b) = (Matrix::new(slice::<T>(s1, l1)?, m), Matrix::new(slice::<T>(s2, l2)?, n));
            let out = inner(isa::current(), a, b);
            Ok((candle_core::WithDType::to_cpu_storage_owned(out), (m, n).into()))
        })
    }
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let turned = g.t()?;
        by_dtype!("inner_products", a.dtype(), T => {
            let into_a = a.track_op().then(|| product::<T>([g, b], a.shape(), weighted)).transpose()?;
            let into_b = b.track_op().then(|| product::<T>([&turned, a], b.shape(), weighted)).transpose()?;
            Ok((into_a, into_b))
        })
    }
}

struct WeightedSums;

impl CustomOp2 for WeightedSums {
    fn name(&self) -> &'static str {
        "weighted_sums"
    }
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (m, n) = l1.shape().dims2()?;
        by_dtype!("weighted_sums", dtype(s1), T => {
            let (weights, x) = (Matrix::new(slice::<T>(s1, l1)?, m), Matrix::new(slice::<T>(s2, l2)?, n));
            let out = weighted(isa::current(), weights, x);
            let dims: Vec<usize> = std::iter::once(m).chain(l2.dims()[1..].iter().copied()).collect();
            Ok((candle_core::WithDType::to_cpu_storage_owned(out), dims.into()))
        })
    }
    fn bwd(
        &self,
        weights: &Tensor,
        x: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let turned = weights.t()?;
        by_dtype!("weighted_sums", x.dtype(), T => {
            let into_weights =
                weights.track_op().then(|| product::<T>([g, x], weights.shape(), inner)).transpose()?;
            let into_x = x.track_op().then(|| product::<T>([&turned, g], x.shape(), weighted)).transpose()?;
            Ok((into_weights, into_x))
        })
    }
}

/// `[rows, elements of a row]`, neither of them zero.
fn matrix(op: &'static str, argument: &str, x: &Tensor) -> Result<[usize; 2]> {
    float(op, x)?;
    match *x.dims() {
        [rows, ..] if x.elem_count() > 0 => Ok([rows, x.elem_count() / rows]),
        ref other => Err(shape(op, format!("{argument} of shape [N, ..] with at least one element"), other)),
    }
}

/// Inner products of every two rows: `G = X X^T` with `X` the rows of `x`, flattened.
///
/// # Shapes
///
/// `x`: `[B, ..]`. Returns `[B, B]`.
///
/// # Gradients
///
/// `(G' + G'^T) X`, one product where the chain rule of a general one takes two.
///
/// # Errors
///
/// No elements, or elements that are neither `f32` nor `f64`.
pub fn gram(x: &Tensor) -> Result<Tensor> {
    let [b, d] = matrix("gram", "x", x)?;
    if !x.device().is_cpu() {
        let x = x.reshape((b, d))?;
        return Ok(x.matmul(&x.t()?)?);
    }
    Ok(x.contiguous()?.apply_op1(Gram)?)
}

/// Inner products of the rows of `a` with those of `b`, flattened: `A B^T`.
///
/// # Shapes
///
/// `a`: `[M, ..]`, `b`: `[N, ..]` with rows of as many elements. Returns `[M, N]`.
///
/// # Gradients
///
/// Into both: `G B` and `G^T A`.
///
/// # Errors
///
/// No elements, rows of different lengths, element types that differ or are neither `f32` nor `f64`.
pub fn inner_products(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const OP: &str = "inner_products";
    let ([m, d], [n, other]) = (matrix(OP, "a", a)?, matrix(OP, "b", b)?);
    like(OP, "b", b, a.dtype(), b.dims())?;
    if other != d {
        return Err(shape(OP, format!("rows of {d} elements in b"), b.dims()));
    }
    if !a.device().is_cpu() {
        return Ok(a.reshape((m, d))?.matmul(&b.reshape((n, d))?.t()?)?);
    }
    Ok(a.contiguous()?.apply_op2(&b.contiguous()?, InnerProducts)?)
}

/// Weighted sums of the rows of `x`: `y[m] = sum_n weights[m, n] x[n]`.
///
/// # Shapes
///
/// `weights`: `[M, N]`, `x`: `[N, ..]`. Returns `[M, ..]`.
///
/// # Gradients
///
/// Into both: the inner products of `G` with `X`, and `W^T G`.
///
/// # Errors
///
/// Wrong ranks, no elements, element types that differ or are neither `f32` nor `f64`.
pub fn weighted_sums(weights: &Tensor, x: &Tensor) -> Result<Tensor> {
    const OP: &str = "weighted_sums";
    let ([m, _], [n, d]) = (matrix(OP, "weights", weights)?, matrix(OP, "x", x)?);
    like(OP, "weights", weights, x.dtype(), &[m, n])?;
    if !x.device().is_cpu() {
        let mut dims = x.dims().to_vec();
        dims[0] = m;
        return Ok(weights.matmul(&x.reshape((n, d))?)?.reshape(dims)?);
    }
    Ok(weights.contiguous()?.apply_op2(&x.contiguous()?, WeightedSums)?)
}
