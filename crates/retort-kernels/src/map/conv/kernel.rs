//! The micro-kernels: sixteen channels in a vector, pixels broadcast.
//!
//! A run of outputs is computed in tiles of `P` pixels times `Q` vectors of target channels that stay in registers.
//! For each source channel and tap the kernel loads `Q` vectors of weights and multiplies them with `P` numbers of the
//! plane; the addresses of the pixels of a tile differ by constants.
#![allow(clippy::needless_range_loop)] // reason: constant ranges over arrays of registers

use super::pack::Segment;
use crate::map::buffer::{BLOCK, Pixel, elements, elements_mut};
use crate::simd::{Float, Kernel, Simd};

/// Blocks of target channels that are computed together.
pub(super) struct Width;

impl<T: Float> Kernel<T> for Width {
    type Output = usize;
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> usize {
        if V::LANES == BLOCK { 2 } else { 1 }
    }
}

/// What a run of outputs is computed from.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) segments: &'a [Segment],
    /// Where the taps look, in pixels.
    pub(super) offsets: &'a [usize],
    /// Pixels from source block to source block.
    pub(super) plane: usize,
    /// Pixels of the run.
    pub(super) len: usize,
    /// Blocks of target channels, 1 or 2.
    pub(super) blocks: usize,
    /// Pixels from target block to target block.
    pub(super) stride: usize,
}

macro_rules! tiles {
    ($self:ident, $v:ident, $q:literal, $now:expr, $args:expr, [$($p:literal)*]) => {
        match $now {
            $($p => $self.tile::<$v, $q, $p>($args.0, $args.1, $args.2),)*
            _ => unreachable!("a tile has at most as many pixels as there are kernels"),
        }
    };
}

/// A run with its numbers.
pub(super) struct Compute<'a, T> {
    pub(super) run: Run<'a>,
    pub(super) planes: &'a [Pixel<T>],
    pub(super) weights: &'a [Pixel<T>],
    pub(super) to: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for Compute<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        self.run.compute::<V>(self.planes, self.weights, self.to);
    }
}

impl Run<'_> {
    #[inline(always)]
    fn compute<V: Simd>(self, planes: &[Pixel<V::Elem>], weights: &[Pixel<V::Elem>], to: &mut [Pixel<V::Elem>]) {
        let lanes: usize = self.segments.iter().map(|s| s.lanes.len()).sum();
        let reach = self.segments.iter().map(|s| s.block).max().unwrap_or(0) * self.plane
            + self.offsets.iter().max().unwrap_or(&0)
            + self.len;
        assert!(planes.len() >= reach, "planes of {} pixels, {reach} needed", planes.len());
        assert!(weights.len() >= lanes * self.offsets.len() * self.blocks, "too few weights");
        assert!(to.len() >= (self.blocks - 1) * self.stride + self.len, "the target is too short");
        let most = match (V::LANES, self.blocks) {
            (BLOCK, 2) => 14,
            (BLOCK, _) => 24,
            (8, _) => 6,
            _ => 3,
        };
        let mut at = 0;
        let tiles = self.len.div_ceil(most);
        for tile in 0..tiles {
            // Tiles of nearly the same size: a short last one could not hide the latency of its additions.
            let now = (self.len - at).div_ceil(tiles - tile);
            // SAFETY: the assertions cover the last pixel of the last tile.
            unsafe {
                let args = (elements(planes).add(at * BLOCK), elements(weights), elements_mut(to).add(at * BLOCK));
                // `const`: the compiler must not see the tiles of the other vectors.
                if const { V::LANES == BLOCK } {
                    if self.blocks == 2 {
                        tiles!(self, V, 2, now, args, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]);
                    } else {
                        tiles!(self, V, 1, now, args, [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24]);
                    }
                } else if const { V::LANES == 8 } {
                    tiles!(self, V, 2, now, args, [1 2 3 4 5 6]);
                } else {
                    tiles!(self, V, 4, now, args, [1 2 3]);
                }
            }
            at += now;
        }
    }

    #[inline(always)]
    unsafe fn tile<V: Simd, const Q: usize, const P: usize>(
        self,
        planes: *const V::Elem,
        mut weights: *const V::Elem,
        to: *mut V::Elem,
    ) {
        let parts = BLOCK / V::LANES;
        // SAFETY: see `compute`.
        unsafe {
            let zero = V::splat(V::Elem::default());
            let mut sums = [[zero; Q]; P];
            for segment in self.segments {
                let plane = planes.add(segment.block * self.plane * BLOCK);
                for &offset in self.offsets {
                    let pixel = plane.add(offset * BLOCK);
                    for lane in segment.lanes.clone() {
                        let x = pixel.add(lane);
                        let mut w = [zero; Q];
                        for q in 0..Q {
                            w[q] = V::load(weights.add(q * V::LANES));
                        }
                        for p in 0..P {
                            let x = V::splat(*x.add(p * BLOCK));
                            for q in 0..Q {
                                sums[p][q] = w[q].mul_add(x, sums[p][q]);
                            }
                        }
                        weights = weights.add(Q * V::LANES);
                    }
                }
            }
            for q in 0..Q {
                let to = to.add(q / parts * self.stride * BLOCK + q % parts * V::LANES);
                for p in 0..P {
                    sums[p][q].store(to.add(p * BLOCK));
                }
            }
        }
    }
}

/// One image of a weight gradient.
#[derive(Clone, Copy)]
pub(super) struct Sums<'a, T> {
    /// Of the input, with pixels `plane` apart from block to block.
    pub(super) planes: &'a [Pixel<T>],
    pub(super) plane: usize,
    /// Of the output gradient: the blocks of a group, pixels `stride` apart; zero where a run holds junk.
    pub(super) dy: &'a [Pixel<T>],
    pub(super) stride: usize,
}

/// The products that a weight gradient sums.
#[derive(Clone, Copy)]
pub(super) struct Products<'a> {
    pub(super) segments: &'a [Segment],
    pub(super) offsets: &'a [usize],
    /// Pixels of the run.
    pub(super) len: usize,
    /// Blocks of target channels, 1 or 2.
    pub(super) blocks: usize,
}

macro_rules! sums {
    ($self:ident, $v:ident, $q:literal, $t:literal, $now:expr, $args:expr, [$($i:literal)*]) => {
        match $now {
            $($i => $self.tile::<$v, $q, $t, $i>($args.0, $args.1, $args.2, $args.3, $args.4),)*
            _ => unreachable!("a tile has at most as many channels as there are kernels"),
        }
    };
}

/// The products of some images, added to `to` in the order of the packed weights.
pub(super) struct AddProducts<'a, T> {
    pub(super) products: Products<'a>,
    pub(super) images: &'a [Sums<'a, T>],
    pub(super) to: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for AddProducts<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        self.products.add::<V>(self.images, self.to);
    }
}

impl Products<'_> {
    #[inline(always)]
    fn add<V: Simd>(self, images: &[Sums<'_, V::Elem>], to: &mut [Pixel<V::Elem>]) {
        let block = self.segments.iter().map(|s| s.block).max().unwrap_or(0);
        let far = self.offsets.iter().max().unwrap_or(&0) + self.len;
        for image in images {
            assert!(image.planes.len() >= block * image.plane + far, "planes are too short");
            assert!(image.dy.len() >= (self.blocks - 1) * image.stride + self.len, "gradients are too short");
        }
        let lanes: usize = self.segments.iter().map(|s| s.lanes.len()).sum();
        assert!(to.len() >= lanes * self.offsets.len() * self.blocks, "the target is too short");
        let two = V::LANES == BLOCK && self.blocks == 2;
        // Source channels of a tile: with three taps, with one.
        let most = match (V::LANES, two) {
            (BLOCK, true) => [4, 8],
            (BLOCK, false) => [8, 16],
            (8, _) => [2, 4],
            _ => [1, 2],
        };
        let mut base = 0;
        for segment in self.segments {
            let lanes = segment.lanes.len();
            let mut tap = 0;
            while tap < self.offsets.len() {
                let taps = if self.offsets.len() - tap >= 3 { 3 } else { 1 };
                let offsets = &self.offsets[tap..tap + taps];
                let most = most[usize::from(taps == 1)];
                let mut at = 0;
                while at < lanes {
                    let now = (lanes - at).min(most);
                    let first = (base + tap * lanes + at) * self.blocks;
                    let lane = segment.lanes.start + at;
                    // SAFETY: the assertions cover all reads; `first` and what follows it lie in the segment's part.
                    unsafe {
                        let args = (images, segment.block, lane, offsets, (&mut to[first..], lanes * self.blocks));
                        if const { V::LANES == BLOCK } {
                            match (two, taps) {
                                (true, 3) => sums!(self, V, 2, 3, now, args, [1 2 3 4]),
                                (true, _) => sums!(self, V, 2, 1, now, args, [1 2 3 4 5 6 7 8]),
                                (_, 3) => sums!(self, V, 1, 3, now, args, [1 2 3 4 5 6 7 8]),
                                _ => sums!(self, V, 1, 1, now, args, [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16]),
                            }
                        } else if const { V::LANES == 8 } {
                            match taps {
                                3 => sums!(self, V, 2, 3, now, args, [1 2]),
                                _ => sums!(self, V, 2, 1, now, args, [1 2 3 4]),
                            }
                        } else {
                            match taps {
                                3 => sums!(self, V, 4, 3, now, args, [1]),
                                _ => sums!(self, V, 4, 1, now, args, [1 2]),
                            }
                        }
                    }
                    at += now;
                }
                tap += taps;
            }
            base += lanes * self.offsets.len();
        }
    }

    /// `T` taps times `I` source channels times `Q` vectors of target channels in registers.
    #[inline(always)]
    unsafe fn tile<V: Simd, const Q: usize, const T: usize, const I: usize>(
        self,
        images: &[Sums<'_, V::Elem>],
        block: usize,
        lane: usize,
        offsets: &[usize],
        (to, tap_stride): (&mut [Pixel<V::Elem>], usize),
    ) {
        let parts = BLOCK / V::LANES;
        // SAFETY: see `add`.
        unsafe {
            let zero = V::splat(V::Elem::default());
            let mut sums = [[[zero; Q]; I]; T];
            for image in images {
                let plane = elements(image.planes).add(block * image.plane * BLOCK + lane);
                let mut x = [plane; T];
                for t in 0..T {
                    x[t] = plane.add(offsets[t] * BLOCK);
                }
                let dy = elements(image.dy);
                for n in 0..self.len {
                    let mut g = [zero; Q];
                    for q in 0..Q {
                        g[q] = V::load(dy.add((q / parts * image.stride + n) * BLOCK + q % parts * V::LANES));
                    }
                    for t in 0..T {
                        for i in 0..I {
                            let x = V::splat(*x[t].add(n * BLOCK + i));
                            for q in 0..Q {
                                sums[t][i][q] = g[q].mul_add(x, sums[t][i][q]);
                            }
                        }
                    }
                }
            }
            let to = elements_mut(to);
            for t in 0..T {
                for i in 0..I {
                    for q in 0..Q {
                        let pixel = t * tap_stride + i * self.blocks + q / parts;
                        let at = to.add(pixel * BLOCK + q % parts * V::LANES);
                        V::load(at).add(sums[t][i][q]).store(at);
                    }
                }
            }
        }
    }
}
