//! The transformations between pixels, patches, tiles and weights.
//!
//! Each is a matrix that is applied along both axes of a square of pixels.
#![allow(clippy::needless_range_loop)] // reason: constant ranges over arrays of registers

use std::ops::Range;

use super::{Grid, KINDS, Stride, distance, stride_one, stride_two};
use crate::conv::plan::Planes;
use crate::map::buffer::{BLOCK, Pixel, elements, elements_mut};
use crate::simd::{Float, Kernel, Simd};

/// A matrix as the sums that it stands for.
pub(super) trait Matrix<const FROM: usize, const TO: usize> {
    /// # Safety
    ///
    /// `V`'s instruction set must be there.
    unsafe fn times<V: Simd>(x: [V; FROM]) -> [V; TO];
}

/// `x * factor`.
///
/// # Safety
///
/// `V`'s instruction set must be there.
#[inline(always)]
pub(super) unsafe fn scaled<V: Simd>(x: V, factor: f64) -> V {
    // SAFETY: the caller's promise.
    unsafe { x.mul_add(V::splat(V::Elem::of(factor)), V::splat(V::Elem::default())) }
}

/// `x * factor + y`.
///
/// # Safety
///
/// `V`'s instruction set must be there.
#[inline(always)]
pub(super) unsafe fn scaled_add<V: Simd>(x: V, factor: f64, y: V) -> V {
    // SAFETY: the caller's promise.
    unsafe { x.mul_add(V::splat(V::Elem::of(factor)), y) }
}

/// `even` and `odd` parts of a polynomial at `x` and `-x`.
///
/// # Safety
///
/// `V`'s instruction set must be there.
#[inline(always)]
pub(super) unsafe fn at<V: Simd>(x: f64, even: V, odd: V) -> [V; 2] {
    // SAFETY: the caller's promise.
    unsafe { [scaled_add(odd, x, even), scaled_add(odd, -x, even)] }
}

/// A vector of each pixel of a square that is read or written: where the first one is, and the elements from row to row
/// and from column to column.
#[derive(Clone, Copy)]
struct Square<P> {
    at: P,
    row: usize,
    col: usize,
}

impl<T> Square<*mut T> {
    fn read(self) -> Square<*const T> {
        Square { at: self.at.cast_const(), row: self.row, col: self.col }
    }
}

/// Applies a matrix along both axes of a square; of the result, the first `size` rows and columns are stored.
///
/// # Safety
///
/// `V`'s instruction set must be there, and all pixels of both squares, those that are not stored excepted.
#[inline(always)]
unsafe fn both<M: Matrix<FROM, TO>, V: Simd, const FROM: usize, const TO: usize>(
    from: Square<*const V::Elem>,
    to: Square<*mut V::Elem>,
    size: [usize; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(V::Elem::default());
        let mut rows = [[zero; FROM]; TO];
        for b in 0..FROM {
            let mut column = [zero; FROM];
            for a in 0..FROM {
                column[a] = V::load(from.at.add(a * from.row + b * from.col));
            }
            let column = M::times(column);
            for a in 0..TO {
                rows[a][b] = column[a];
            }
        }
        let whole = size == [TO; 2];
        for a in 0..TO {
            let row = M::times(rows[a]);
            for b in 0..TO {
                if whole || (a < size[0] && b < size[1]) {
                    row[b].store(to.at.add(a * to.row + b * to.col));
                }
            }
        }
    }
}

/// Transforms all tiles of a strip of a block; `to` is `[place][block][tile]` with `tiles` tiles, of which this strip's
/// start at `first`.
pub(super) struct Transform<'a, T> {
    pub(super) planes: &'a [Pixel<T>],
    pub(super) shape: &'a Planes,
    pub(super) stride: Stride,
    pub(super) side: Side,
    pub(super) block: usize,
    pub(super) blocks: usize,
    pub(super) grid: Grid,
    pub(super) first: usize,
    pub(super) tiles: usize,
    pub(super) to: &'a mut [Pixel<T>],
}

/// What is transformed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Patches of the input.
    Input,
    /// Patches of the output gradient, for the input gradient.
    BackInput,
    /// Tiles of the output gradient, for the weight gradient.
    Gradient,
}

impl<T: Float> Kernel<T> for Transform<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let ([size, step], width) = (self.stride.patch(self.side), self.shape.width);
        let Grid { rows, cols } = self.grid;
        assert!(rows > 0 && cols > 0);
        assert!(width >= step * (cols - 1) + size && self.shape.rows >= step * (rows - 1) + size);
        assert!(self.planes.len() >= self.shape.plane());
        let place = distance(self.blocks, self.tiles);
        let axis = self.stride.axis();
        assert!(self.block < self.blocks && self.to.len() >= axis * axis * place);
        assert!(self.first + rows * cols <= self.tiles);
        for part in (0..BLOCK).step_by(V::LANES) {
            for row in 0..rows {
                for col in 0..cols {
                    let tile = self.block * self.tiles + self.first + row * cols + col;
                    // SAFETY: the assertions cover the last pixel of the last tile.
                    unsafe {
                        let at = elements(self.planes).add((row * width + col) * step * BLOCK + part);
                        let from = Square { at, row: width * BLOCK, col: BLOCK };
                        let at = elements_mut(self.to).add(tile * BLOCK + part);
                        let to = Square { at, row: axis * place * BLOCK, col: place * BLOCK };
                        match (self.stride, self.side) {
                            (Stride::One, Side::Gradient) => both::<stride_one::Gradient, V, 4, 6>(from, to, [6; 2]),
                            (Stride::One, _) => both::<stride_one::Input, V, 6, 6>(from, to, [6; 2]),
                            (Stride::Two, Side::Gradient) => both::<stride_two::Gradient, V, 4, 9>(from, to, [9; 2]),
                            (Stride::Two, Side::Input) => both::<stride_two::Input, V, 9, 9>(from, to, [9; 2]),
                            (Stride::Two, Side::BackInput) => both::<stride_two::BackInput, V, 5, 9>(from, to, [9; 2]),
                        }
                    }
                }
            }
        }
    }
}

/// Transforms sums back to a strip of a block of the target.
pub(super) struct Untransform<'a, T> {
    /// `[place][block][tile]`.
    pub(super) sums: &'a [Pixel<T>],
    pub(super) stride: Stride,
    /// What the sums were made of.
    pub(super) side: Side,
    pub(super) blocks: usize,
    pub(super) tiles: usize,
    pub(super) block: usize,
    pub(super) first: usize,
    pub(super) cols: usize,
    /// Tile rows of the target.
    pub(super) rows: Range<usize>,
    pub(super) size: [usize; 2],
    pub(super) to: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for Untransform<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let (tile_size, [height, width]) = (self.stride.tile(self.side), self.size);
        let (axis, place) = (self.stride.axis(), distance(self.blocks, self.tiles));
        assert!(self.sums.len() >= axis * axis * place && self.block < self.blocks);
        assert!(self.first + self.rows.len() * self.cols <= self.tiles);
        assert!(self.to.len() == height * width);
        assert!(self.cols <= width.div_ceil(tile_size) && self.rows.end <= height.div_ceil(tile_size));
        for part in (0..BLOCK).step_by(V::LANES) {
            for (i, row) in self.rows.clone().enumerate() {
                for col in 0..self.cols {
                    let tile = self.block * self.tiles + self.first + i * self.cols + col;
                    let (y, x) = (tile_size * row, tile_size * col);
                    let inside = [(height - y).min(tile_size), (width - x).min(tile_size)];
                    // SAFETY: the assertions cover the sums; only pixels inside of the target are written.
                    unsafe {
                        let at = elements(self.sums).add(tile * BLOCK + part);
                        let from = Square { at, row: axis * place * BLOCK, col: place * BLOCK };
                        let at = elements_mut(self.to).add((y * width + x) * BLOCK + part);
                        let to = Square { at, row: width * BLOCK, col: BLOCK };
                        match (self.stride, self.side) {
                            (Stride::One, _) => both::<stride_one::Output, V, 6, 4>(from, to, inside),
                            (Stride::Two, Side::BackInput) => both::<stride_two::BackOutput, V, 9, 8>(from, to, inside),
                            (Stride::Two, _) => both::<stride_two::Output, V, 9, 4>(from, to, inside),
                        }
                    }
                }
            }
        }
    }
}

/// Some weights as `[tap][pixel]` and as they are multiplied, `[kind][pixel]`.
pub(super) struct Weights<'a, T> {
    pub(super) stride: Stride,
    pub(super) taps: &'a mut [Pixel<T>],
    pub(super) kinds: &'a mut [Pixel<T>],
    /// The first of the taps' pixels among those of a kind.
    pub(super) first: usize,
    pub(super) direction: Transposed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transposed {
    /// `G w G'`.
    No,
    /// `G' u G`.
    Yes,
}

impl<T: Float> Kernel<T> for Weights<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let (pixels, each) = (self.taps.len() / 9, self.kinds.len() / KINDS);
        assert!(self.taps.len() == 9 * pixels && self.kinds.len() == KINDS * each && self.first + pixels <= each);
        let (next_tap, next_kind) = (pixels * BLOCK, each * BLOCK);
        let (taps, kinds) = (elements_mut(self.taps), elements_mut(self.kinds));
        for at in (0..pixels * BLOCK).step_by(V::LANES) {
            // SAFETY: nine taps and all kinds of the pixel are there, as asserted.
            unsafe {
                let w = Square { at: taps.add(at), row: 3 * next_tap, col: next_tap };
                let u = Square { at: kinds.add(self.first * BLOCK + at), row: 6 * next_kind, col: next_kind };
                match (self.direction, self.stride) {
                    (Transposed::No, Stride::One) => both::<stride_one::Spread, V, 3, 6>(w.read(), u, [6; 2]),
                    (Transposed::No, Stride::Two) => both::<stride_two::Spread, V, 3, 6>(w.read(), u, [6; 2]),
                    (Transposed::Yes, Stride::One) => both::<stride_one::Gather, V, 6, 3>(u.read(), w, [3; 2]),
                    (Transposed::Yes, Stride::Two) => both::<stride_two::Gather, V, 6, 3>(u.read(), w, [3; 2]),
                }
            }
        }
    }
}
