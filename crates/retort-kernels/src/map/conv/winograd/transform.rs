//! The transformations between pixels, patches, tiles and weights; all factors are 0, 1 and 1/2.
#![allow(clippy::needless_range_loop)] // reason: constant ranges over arrays of registers

use std::ops::Range;

use super::{PLACES, Tiles, distance};
use crate::conv::plan::Planes;
use crate::map::buffer::{BLOCK, Pixel, elements, elements_mut};
use crate::simd::{Float, Kernel, Simd};

/// Transforms all tiles of a strip of a block; `to` is `[place][block][tile]` with `tiles` tiles, of which this strip's
/// start at `first`.
pub(super) struct Transform<'a, T> {
    pub(super) planes: &'a [Pixel<T>],
    pub(super) shape: &'a Planes,
    pub(super) block: usize,
    pub(super) blocks: usize,
    pub(super) strip: Tiles,
    pub(super) first: usize,
    pub(super) tiles: usize,
    pub(super) kind: Side,
    pub(super) to: &'a mut [Pixel<T>],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// `B' d B` of patches.
    Input,
    /// `A dY A'` of tiles.
    Gradient,
}

/// `B' x`.
#[inline(always)]
unsafe fn input<V: Simd>(x: [V; 4]) -> [V; 4] {
    // SAFETY: the caller's promise: `V`'s instruction set is there.
    unsafe { [x[0].sub(x[2]), x[1].add(x[2]), x[2].sub(x[1]), x[1].sub(x[3])] }
}

/// `A x`.
#[inline(always)]
unsafe fn gradient<V: Simd>(x: [V; 2]) -> [V; 4] {
    // SAFETY: as for `input`.
    unsafe { [x[0], x[0].add(x[1]), x[0].sub(x[1]), V::splat(V::Elem::default()).sub(x[1])] }
}

/// `A' x`.
#[inline(always)]
unsafe fn output<V: Simd>(x: [V; 4]) -> [V; 2] {
    // SAFETY: as for `input`.
    unsafe { [x[0].add(x[1]).add(x[2]), x[1].sub(x[2]).sub(x[3])] }
}

impl<T: Float> Kernel<T> for Transform<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let width = self.shape.width;
        let reach = if self.kind == Side::Input { 2 } else { 0 };
        assert!(width >= 2 * self.strip.cols + reach && self.shape.rows >= 2 * self.strip.rows + reach);
        assert!(self.planes.len() >= self.shape.plane());
        assert!(self.block < self.blocks && self.to.len() >= PLACES * distance(self.blocks, self.tiles));
        assert!(self.first + self.strip.rows * self.strip.cols <= self.tiles);
        let place = distance(self.blocks, self.tiles) * BLOCK;
        for part in (0..BLOCK).step_by(V::LANES) {
            for row in 0..self.strip.rows {
                for col in 0..self.strip.cols {
                    let tile = self.block * self.tiles + self.first + row * self.strip.cols + col;
                    let from = 2 * row * width + 2 * col;
                    // SAFETY: the assertions cover the last pixel of the last tile.
                    unsafe {
                        let from = elements(self.planes).add(from * BLOCK + part);
                        let to = elements_mut(self.to).add(tile * BLOCK + part);
                        match self.kind {
                            Side::Input => patch::<V>(from, width * BLOCK, to, place),
                            Side::Gradient => square::<V>(from, width * BLOCK, to, place),
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn patch<V: Simd>(from: *const V::Elem, width: usize, to: *mut V::Elem, place: usize) {
    // SAFETY: the caller's promise: a 4x4 patch, 16 places.
    unsafe {
        let mut rows = [[V::splat(V::Elem::default()); 4]; 4];
        for b in 0..4 {
            let mut column = [rows[0][0]; 4];
            for a in 0..4 {
                column[a] = V::load(from.add(a * width + b * BLOCK));
            }
            let column = input(column);
            for a in 0..4 {
                rows[a][b] = column[a];
            }
        }
        for a in 0..4 {
            let row = input(rows[a]);
            for b in 0..4 {
                row[b].store(to.add((4 * a + b) * place));
            }
        }
    }
}

#[inline(always)]
unsafe fn square<V: Simd>(from: *const V::Elem, width: usize, to: *mut V::Elem, place: usize) {
    // SAFETY: the caller's promise: a 2x2 tile, 16 places.
    unsafe {
        let mut rows = [[V::splat(V::Elem::default()); 2]; 4];
        for b in 0..2 {
            let column = gradient([V::load(from.add(b * BLOCK)), V::load(from.add(width + b * BLOCK))]);
            for a in 0..4 {
                rows[a][b] = column[a];
            }
        }
        for a in 0..4 {
            let row = gradient(rows[a]);
            for b in 0..4 {
                row[b].store(to.add((4 * a + b) * place));
            }
        }
    }
}

/// Transforms sums back to a strip of a block of the target.
pub(super) struct Untransform<'a, T> {
    /// `[place][block][tile]`.
    pub(super) sums: &'a [Pixel<T>],
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
        assert!(self.sums.len() >= PLACES * distance(self.blocks, self.tiles) && self.block < self.blocks);
        assert!(self.first + self.rows.len() * self.cols <= self.tiles);
        assert!(self.to.len() == self.size[0] * self.size[1]);
        let place = distance(self.blocks, self.tiles) * BLOCK;
        for part in (0..BLOCK).step_by(V::LANES) {
            for (i, row) in self.rows.clone().enumerate() {
                for col in 0..self.cols {
                    let tile = self.block * self.tiles + self.first + i * self.cols + col;
                    // SAFETY: the assertions cover the sums; only pixels inside of the target are written.
                    unsafe {
                        let from = elements(self.sums).add(tile * BLOCK + part);
                        let mut rows = [[V::splat(T::default()); 4]; 2];
                        for b in 0..4 {
                            let mut column = [rows[0][0]; 4];
                            for a in 0..4 {
                                column[a] = V::load(from.add((4 * a + b) * place));
                            }
                            let column = output(column);
                            (rows[0][b], rows[1][b]) = (column[0], column[1]);
                        }
                        for a in 0..2 {
                            let y = output(rows[a]);
                            for b in 0..2 {
                                let (row, col) = (2 * row + a, 2 * col + b);
                                if row < self.size[0] && col < self.size[1] {
                                    let at = (row * self.size[1] + col) * BLOCK + part;
                                    y[b].store(elements_mut(self.to).add(at));
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Weights between the taps and the places: `[tap][pixel]` and `[place][pixel]`.
pub(super) struct Weights<'a, T> {
    pub(super) taps: &'a mut [Pixel<T>],
    pub(super) places: &'a mut [Pixel<T>],
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
        let pixels = self.taps.len() / 9;
        assert!(self.taps.len() == 9 * pixels && self.places.len() == PLACES * pixels);
        let stride = pixels * BLOCK;
        for i in 0..pixels {
            for part in (0..BLOCK).step_by(V::LANES) {
                let at = i * BLOCK + part;
                // SAFETY: nine and sixteen pixels that are `pixels` apart, as asserted.
                unsafe {
                    let (w, u) = (elements_mut(self.taps).add(at), elements_mut(self.places).add(at));
                    match self.direction {
                        Transposed::No => spread::<V>(w, u, stride),
                        Transposed::Yes => gather::<V>(u, w, stride),
                    }
                }
            }
        }
    }
}

/// `G w G'`.
#[inline(always)]
unsafe fn spread<V: Simd>(w: *const V::Elem, u: *mut V::Elem, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let half = V::splat(V::Elem::of(0.5));
        let zero = V::splat(V::Elem::default());
        let g = |x: [V; 3]| {
            let even = x[0].add(x[2]).mul_add(half, zero);
            let odd = x[1].mul_add(half, zero);
            [x[0], even.add(odd), even.sub(odd), x[2]]
        };
        let mut rows = [[zero; 3]; 4];
        for b in 0..3 {
            let mut column = [zero; 3];
            for a in 0..3 {
                column[a] = V::load(w.add((3 * a + b) * stride));
            }
            let column = g(column);
            for a in 0..4 {
                rows[a][b] = column[a];
            }
        }
        for a in 0..4 {
            let row = g(rows[a]);
            for b in 0..4 {
                row[b].store(u.add((4 * a + b) * stride));
            }
        }
    }
}

/// `G' u G`.
#[inline(always)]
unsafe fn gather<V: Simd>(u: *const V::Elem, w: *mut V::Elem, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let half = V::splat(V::Elem::of(0.5));
        let zero = V::splat(V::Elem::default());
        let g = |x: [V; 4]| {
            let even = x[1].add(x[2]).mul_add(half, zero);
            let odd = x[1].sub(x[2]).mul_add(half, zero);
            [x[0].add(even), odd, even.add(x[3])]
        };
        let mut rows = [[zero; 4]; 3];
        for b in 0..4 {
            let mut column = [zero; 4];
            for a in 0..4 {
                column[a] = V::load(u.add((4 * a + b) * stride));
            }
            let column = g(column);
            for a in 0..3 {
                rows[a][b] = column[a];
            }
        }
        for a in 0..3 {
            let row = g(rows[a]);
            for b in 0..3 {
                row[b].store(w.add((3 * a + b) * stride));
            }
        }
    }
}
