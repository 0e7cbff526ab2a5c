//! The micro-kernels: sixteen channels in a vector, pixels broadcast.
//!
//! A run of outputs is computed in tiles of `P` pixels times `Q` vectors of target channels that stay in registers.
//! For each source channel and tap the kernel loads `Q` vectors of weights and multiplies them with `P` numbers of the
//! plane; the addresses of the pixels of a tile differ by constants.
#![allow(clippy::needless_range_loop)] // reason: constant ranges over arrays of registers

use std::ops::Range;

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
    /// Where the pixels of the run go in a target block; `None`: one after the other.
    pub(super) places: Option<&'a Places>,
}

/// Where the pixels of a run go.
#[derive(Debug)]
pub(super) struct Places {
    at: Vec<usize>,
    /// Pixels of a target that holds all of them.
    pub(super) end: usize,
}

impl Places {
    /// Pixels that go nowhere.
    const NOWHERE: usize = usize::MAX;

    /// `None`: the pixel goes nowhere.
    pub(super) fn new(at: impl Iterator<Item = Option<usize>>) -> Self {
        let at: Vec<_> = at.map(|at| at.unwrap_or(Self::NOWHERE)).collect();
        let end = at.iter().filter(|&&at| at != Self::NOWHERE).max().map_or(0, |last| last + 1);
        Self { at, end }
    }

    /// Pixels of the run.
    pub(super) fn len(&self) -> usize {
        self.at.len()
    }

    /// Loads pixels of the run from `at`.
    ///
    /// # Safety
    ///
    /// As for [`Places::store`].
    #[inline(always)]
    unsafe fn load<V: Simd, const P: usize>(&self, values: &mut [V; P], at: usize, to: *const V::Elem) {
        for (value, &place) in values.iter_mut().zip(&self.at[at..at + P]) {
            if place != Self::NOWHERE {
                // SAFETY: the caller's promise.
                *value = unsafe { V::load(to.add(place * BLOCK)) };
            }
        }
    }

    /// Stores pixels of the run from `at`.
    ///
    /// # Safety
    ///
    /// Behind `to`, there must be as many pixels as [`Places::end`] says, less the part of a pixel before `to`.
    #[inline(always)]
    pub(super) unsafe fn store<V: Simd, const P: usize>(&self, values: [V; P], at: usize, to: *mut V::Elem) {
        for (value, &place) in values.into_iter().zip(&self.at[at..at + P]) {
            if place != Self::NOWHERE {
                // SAFETY: the caller's promise.
                unsafe { value.store(to.add(place * BLOCK)) };
            }
        }
    }
}

/// Bytes of weights that are used for all tiles of a run before the next ones: they should stay in the first cache.
const NEAR_WEIGHTS: usize = 24 << 10;

/// Elements of weights between the one that is used and the one that is asked for: the third cache is slow.
const AHEAD: usize = 1 << 10;

macro_rules! tiles {
    ($self:ident, $v:ident, $q:literal, $now:expr, $args:expr, [$($p:literal)*]) => {
        match $now {
            $($p => $self.tile::<$v, $q, $p>($args.0, $args.1, ($args.2, $args.3)),)*
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
        assert!(self.places.is_none_or(|places| places.len() >= self.len), "too few places");
        let end = self.places.map_or(self.len, |places| places.end);
        assert!(to.len() >= (self.blocks - 1) * self.stride + end, "the target is too short");
        let (mut later, mut used) = (self.segments, 0);
        while !later.is_empty() {
            let (now, rest) = later.split_at(self.near::<V::Elem>(later));
            Run { segments: now, ..self }.part::<V>(planes, &weights[used..], to, used > 0);
            used += now.iter().map(|s| s.lanes.len()).sum::<usize>() * self.offsets.len() * self.blocks;
            later = rest;
        }
    }

    /// As many segments, at least one, as have weights that stay in the first cache from tile to tile.
    fn near<T>(&self, segments: &[Segment]) -> usize {
        let mut bytes = 0;
        let fits = |segment: &&Segment| {
            bytes += segment.lanes.len() * self.offsets.len() * self.blocks * size_of::<Pixel<T>>();
            bytes <= NEAR_WEIGHTS
        };
        segments.iter().take_while(fits).count().max(1)
    }

    /// Computes the sums over some segments, or adds them to what is there.
    #[inline(always)]
    fn part<V: Simd>(
        self,
        planes: &[Pixel<V::Elem>],
        weights: &[Pixel<V::Elem>],
        to: &mut [Pixel<V::Elem>],
        adds: bool,
    ) {
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
            // SAFETY: the assertions of `compute` cover the last pixel of the last tile.
            unsafe {
                let args = (elements(planes).add(at * BLOCK), elements(weights), elements_mut(to), (at, adds));
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

    /// `P` pixels of the run from `at`.
    #[inline(always)]
    unsafe fn tile<V: Simd, const Q: usize, const P: usize>(
        self,
        planes: *const V::Elem,
        mut weights: *const V::Elem,
        (to, (at, adds)): (*mut V::Elem, (usize, bool)),
    ) {
        let parts = BLOCK / V::LANES;
        // SAFETY: see `compute`.
        unsafe {
            let zero = V::splat(V::Elem::default());
            let mut sums = [[zero; Q]; P];
            if adds {
                for q in 0..Q {
                    let to = to.add(q / parts * self.stride * BLOCK + q % parts * V::LANES);
                    let values: [V; P] = self.load(to, at);
                    for p in 0..P {
                        sums[p][q] = values[p];
                    }
                }
            }
            for segment in self.segments {
                let plane = planes.add(segment.block * self.plane * BLOCK);
                let mut offsets = self.offsets;
                while let Some((&offset, mut rest)) = offsets.split_first() {
                    let pixel = plane.add(offset * BLOCK);
                    // Two vectors of weights for each pixel are enough work for its load; with one, a pixel that is
                    // loaded serves three taps.
                    if const { Q == 1 } && neighbours(offsets) {
                        rest = &rest[2..];
                        let next = segment.lanes.len() * V::LANES;
                        for lane in segment.lanes.clone() {
                            let x = pixel.add(lane);
                            V::prefetch(pixel.wrapping_add((P + 2 + lane) * BLOCK));
                            let w = [V::load(weights), V::load(weights.add(next)), V::load(weights.add(2 * next))];
                            let mut x01 = [V::splat(*x), V::splat(*x.add(BLOCK))];
                            // No loop: the compiler would not unroll one of this length, and the sums would lie in
                            // memory.
                            macro_rules! outputs {
                                ($($p:literal)*) => {$(
                                    if const { $p < P } {
                                        let x2 = V::splat(*x.add(($p + 2) * BLOCK));
                                        sums[$p][0] = w[0].mul_add(x01[0], sums[$p][0]);
                                        sums[$p][0] = w[1].mul_add(x01[1], sums[$p][0]);
                                        sums[$p][0] = w[2].mul_add(x2, sums[$p][0]);
                                        x01 = [x01[1], x2];
                                    }
                                )*};
                            }
                            outputs!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23);
                            let _ = x01; // the last output's neighbours serve nobody
                            weights = weights.add(V::LANES);
                        }
                        weights = weights.add(2 * next);
                    } else {
                        for lane in segment.lanes.clone() {
                            let x = pixel.add(lane);
                            let mut w = [zero; Q];
                            for q in 0..Q {
                                w[q] = V::load(weights.add(q * V::LANES));
                                V::prefetch(weights.wrapping_add(AHEAD + q * V::LANES));
                            }
                            // Lane by lane, the next tile's pixels.
                            V::prefetch(pixel.wrapping_add((P + lane) * BLOCK));
                            for p in 0..P {
                                let x = V::splat(*x.add(p * BLOCK));
                                for q in 0..Q {
                                    sums[p][q] = w[q].mul_add(x, sums[p][q]);
                                }
                            }
                            weights = weights.add(Q * V::LANES);
                        }
                    }
                    offsets = rest;
                }
            }
            for q in 0..Q {
                let to = to.add(q / parts * self.stride * BLOCK + q % parts * V::LANES);
                let mut values = [zero; P];
                for p in 0..P {
                    values[p] = sums[p][q];
                }
                self.store(values, to, at);
            }
        }
    }

    /// The pixels of the run from `at` as they are in the target.
    #[inline(always)]
    unsafe fn load<V: Simd, const P: usize>(&self, to: *const V::Elem, at: usize) -> [V; P] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut values = [V::splat(V::Elem::default()); P];
            match self.places {
                None => {
                    for p in 0..P {
                        values[p] = V::load(to.add((at + p) * BLOCK));
                    }
                }
                Some(places) => places.load(&mut values, at, to),
            }
            values
        }
    }

    #[inline(always)]
    unsafe fn store<V: Simd, const P: usize>(&self, values: [V; P], to: *mut V::Elem, at: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.places {
                None => {
                    for p in 0..P {
                        values[p].store(to.add((at + p) * BLOCK));
                    }
                }
                Some(places) => places.store(values, at, to),
            }
        }
    }
}

/// Whether three taps follow that look at neighbouring pixels: a pixel that is loaded then serves three outputs.
#[inline(always)]
fn neighbours(offsets: &[usize]) -> bool {
    matches!(*offsets, [a, b, c, ..] if b == a + 1 && c == a + 2)
}

/// Pixels of a run over which the tiles of a weight gradient pass before the next ones: those of three blocks (two of
/// the output gradient, one of the input) should stay in the first cache.
const NEAR: usize = 128;

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
        // All tiles pass over a part of the pixels before the next part, so that it is read from the first cache.
        for images in images.chunks((NEAR / self.len).max(1)) {
            for from in (0..self.len).step_by(NEAR) {
                let part = from..self.len.min(from + NEAR);
                self.add_part::<V>(images, part, to);
            }
        }
    }

    /// Adds the products of a part of the run.
    #[inline(always)]
    fn add_part<V: Simd>(self, images: &[Sums<'_, V::Elem>], part: Range<usize>, to: &mut [Pixel<V::Elem>]) {
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
                    let part = part.clone();
                    // SAFETY: the assertions of `add` cover all reads; `first` and what follows lie in the segment's
                    // part of the target.
                    unsafe {
                        let args =
                            (images, (segment.block, part), lane, offsets, (&mut to[first..], lanes * self.blocks));
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
        (block, part): (usize, Range<usize>),
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
                // Adds the products of pixel `$m` of the first tap's plane for taps `$from..$to`.
                macro_rules! shared {
                    ($m:expr, $from:literal, $to:expr) => {
                        let mut g = [[zero; Q]; T];
                        for t in $from..$to {
                            for q in 0..Q {
                                let at = (q / parts * image.stride + $m - t) * BLOCK + q % parts * V::LANES;
                                g[t][q] = V::load(dy.add(at));
                            }
                        }
                        for i in 0..I {
                            let x = V::splat(*x[0].add($m * BLOCK + i));
                            for t in $from..$to {
                                for q in 0..Q {
                                    sums[t][i][q] = g[t][q].mul_add(x, sums[t][i][q]);
                                }
                            }
                        }
                    };
                }
                if const { T == 3 } && part.len() >= 2 && neighbours(offsets) {
                    // Tap `t` joins pixel `m` of the input with pixel `m - t` of the gradient; at the ends of the
                    // part some of those lie outside.
                    shared!(part.start, 0, 1);
                    shared!(part.start + 1, 0, 2);
                    for m in part.start + 2..part.end {
                        shared!(m, 0, T);
                    }
                    shared!(part.end, 1, T);
                    shared!(part.end + 1, 2, T);
                    continue;
                }
                for n in part.clone() {
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
