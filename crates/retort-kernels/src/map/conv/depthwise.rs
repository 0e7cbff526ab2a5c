//! Depthwise convolutions: every channel by itself, so that nothing is broadcast and memory sets the pace.
#![allow(clippy::needless_range_loop)] // reason: constant ranges over arrays of registers

use std::ops::Range;

use super::kernel::Places;
use super::pass::{Finish, FinishBlock, places};
use super::planes::Source;
use super::weight::{each_image, rows_of};
use crate::InstructionSet;
use crate::conv::geometry::Geometry;
use crate::conv::plan::{Job, Planes, backward, forward};
use crate::map::buffer::{BLOCK, Buffer, Pixel, Pixels, elements, elements_mut};
use crate::map::node::Dims;
use crate::map::pass::Part;
use crate::simd::{Float, Kernel, Simd};

/// Whether a convolution is one for this module.
pub(super) fn applies(g: &Geometry) -> bool {
    g.spec.groups == g.c_in && g.c_in == g.c_out && g.c_in > 1
}

/// Outputs that are computed together: enough to hide the latency of the additions.
const TOGETHER: usize = 4;

/// A run of outputs of one block.
struct Compute<'a, T> {
    plane: &'a [Pixel<T>],
    offsets: &'a [usize],
    /// A pixel for each tap.
    weights: &'a [Pixel<T>],
    places: &'a Places,
    to: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for Compute<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let len = self.places.len();
        assert!(self.to.len() >= self.places.end);
        assert!(self.plane.len() >= self.offsets.iter().max().unwrap_or(&0) + len);
        assert!(self.weights.len() >= self.offsets.len());
        let taps = (self.plane, self.offsets, self.weights);
        for part in (0..BLOCK).step_by(V::LANES) {
            let mut at = 0;
            while at < len {
                let now = if len - at >= TOGETHER { TOGETHER } else { 1 };
                // SAFETY: the assertions cover the last output and its furthest tap.
                unsafe {
                    match now {
                        TOGETHER => tile::<V, TOGETHER>(taps, at, part, (self.places, self.to)),
                        _ => tile::<V, 1>(taps, at, part, (self.places, self.to)),
                    }
                }
                at += now;
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Simd, const P: usize>(
    (plane, offsets, weights): (&Pixels<V::Elem>, &[usize], &Pixels<V::Elem>),
    at: usize,
    part: usize,
    (places, to): (&Places, &mut [Pixel<V::Elem>]),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [V::splat(V::Elem::default()); P];
        for (&offset, w) in offsets.iter().zip(weights) {
            let w = V::load(w.0.as_ptr().add(part));
            let x = elements(plane).add((at + offset) * BLOCK + part);
            for p in 0..P {
                sums[p] = V::load(x.add(p * BLOCK)).mul_add(w, sums[p]);
            }
        }
        places.store(sums, at, elements_mut(to).add(part));
    }
}

/// Adds the products of a run of output gradients with the shifted input, tap by tap.
struct AddProducts<'a, T> {
    plane: &'a [Pixel<T>],
    offsets: &'a [usize],
    dy: &'a [Pixel<T>],
    to: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for AddProducts<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        assert!(self.plane.len() >= self.offsets.iter().max().unwrap_or(&0) + self.dy.len());
        assert!(self.to.len() >= self.offsets.len());
        for part in (0..BLOCK).step_by(V::LANES) {
            for (offsets, to) in self.offsets.chunks(3).zip(self.to.chunks_mut(3)) {
                // SAFETY: the assertions cover the last gradient and its furthest tap.
                unsafe {
                    match offsets {
                        &[a, b, c] => sums::<V, 3>(self.plane, self.dy, [a, b, c], part, to),
                        _ => {
                            for (&offset, to) in offsets.iter().zip(to) {
                                sums::<V, 1>(self.plane, self.dy, [offset], part, std::slice::from_mut(to));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The sums of `N` taps, in two interleaved parts each, which hides the latency of the additions.
#[inline(always)]
unsafe fn sums<V: Simd, const N: usize>(
    plane: &[Pixel<V::Elem>],
    dy: &[Pixel<V::Elem>],
    offsets: [usize; N],
    part: usize,
    to: &mut [Pixel<V::Elem>],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(V::Elem::default());
        let mut sums = [[zero; N]; 2];
        let (x, g) = (elements(plane).add(part), elements(dy).add(part));
        for i in 0..dy.len() {
            let g = V::load(g.add(i * BLOCK));
            for n in 0..N {
                let x = V::load(x.add((i + offsets[n]) * BLOCK));
                sums[i % 2][n] = g.mul_add(x, sums[i % 2][n]);
            }
        }
        for n in 0..N {
            let at = elements_mut(to).add(n * BLOCK + part);
            V::load(at).add(sums[0][n].add(sums[1][n])).store(at);
        }
    }
}

/// A job with its weights as `[block][tap]`.
struct Packed<T> {
    job: Job,
    weights: Vec<Pixel<T>>,
    places: Places,
}

/// The forward pass or the input gradient.
pub(super) struct Pass<T: Float> {
    planes: Planes,
    jobs: Vec<Packed<T>>,
    pub(super) target: Dims,
}

impl<T: Float> Pass<T> {
    pub(super) fn forward(g: &Geometry, w: &[T]) -> Self {
        let (planes, job) = forward(g);
        let (weights, places) = (pack(g, &job.taps, w), places(&job, planes.width, g.output));
        let target = Dims { batch: g.batch, channels: g.c_out, size: g.output };
        Self { planes, jobs: vec![Packed { job, weights, places }], target }
    }

    pub(super) fn backward(g: &Geometry, w: &[T]) -> Self {
        let (planes, jobs) = backward(g);
        let width = planes.width;
        let packed = |job: Job| {
            let (weights, places) = (pack(g, &job.taps, w), places(&job, width, g.input));
            Packed { job, weights, places }
        };
        let target = Dims { batch: g.batch, channels: g.c_in, size: g.input };
        Self { planes, jobs: jobs.into_iter().map(packed).collect(), target }
    }

    /// Computes some images, one after the other.
    pub(super) fn images(
        &self,
        set: InstructionSet,
        source: Source<'_, T>,
        first: usize,
        (to, partials): Part<'_, T>,
        finish: &impl Finish<T>,
    ) {
        let (area, plane) = (self.target.area(), self.planes.plane());
        let mut scratch = Buffer::stale(self.planes.pixels(source.blocks()));
        let images = to.chunks_exact_mut(self.target.image()).zip(partials.chunks_exact_mut(self.target.blocks()));
        for (image, (to, partials)) in (first..).zip(images) {
            let planes = self.planes.of(set, source, image, &mut scratch);
            for (block, (to, partial)) in to.chunks_exact_mut(area).zip(partials).enumerate() {
                for Packed { job, weights, places } in &self.jobs {
                    let taps = job.taps.len();
                    let compute = Compute {
                        plane: &planes[block * plane..],
                        offsets: &job.offsets,
                        weights: &weights[block * taps..(block + 1) * taps],
                        places,
                        to: &mut *to,
                    };
                    T::dispatch(set, compute);
                }
                *partial = T::dispatch(set, FinishBlock { finish, at: (image, block), to });
            }
        }
    }
}

/// Weights `[C, 1, kh, kw]` as `[block][tap]`.
fn pack<T: Float>(g: &Geometry, taps: &[usize], w: &[T]) -> Vec<Pixel<T>> {
    let mut packed = vec![Pixel::zero(); g.c_in.div_ceil(BLOCK) * taps.len()];
    for c in 0..g.c_in {
        for (i, &tap) in taps.iter().enumerate() {
            packed[c / BLOCK * taps.len() + i].0[c % BLOCK] = w[c * g.taps() + tap];
        }
    }
    packed
}

/// The sums of a weight gradient as `[block][tap]`.
pub(super) struct Weights {
    channels: usize,
    planes: Planes,
    job: Job,
    rows: Planes,
}

impl Weights {
    pub(super) fn new(g: &Geometry) -> Self {
        let (planes, job) = forward(g);
        Self { channels: g.c_in, rows: rows_of(g, &planes), planes, job }
    }

    /// Pixels of the sums.
    pub(super) fn len(&self) -> usize {
        self.channels.div_ceil(BLOCK) * self.job.taps.len()
    }

    /// Adds some images, one after the other.
    pub(super) fn slice<T: Float>(
        &self,
        set: InstructionSet,
        (x, dy): (Source<'_, T>, Source<'_, T>),
        images: Range<usize>,
        to: &mut [Pixel<T>],
    ) {
        let run = self.job.run(self.planes.width);
        each_image(set, (&self.planes, x), (&self.rows, dy), images, |planes, rows| {
            for (block, to) in to.chunks_exact_mut(self.job.taps.len()).enumerate() {
                let plane = &planes[block * self.planes.plane()..];
                let dy = &rows[block * self.rows.plane()..][..run];
                T::dispatch(set, AddProducts { plane, offsets: &self.job.offsets, dy, to });
            }
        });
    }

    /// From the sums to `[C, 1, kh, kw]`.
    pub(super) fn unpack<T: Float>(&self, sums: &[Pixel<T>]) -> Vec<T> {
        let taps = self.job.taps.len();
        let weight = |i: usize| sums[i / taps / BLOCK * taps + i % taps].0[i / taps % BLOCK];
        (0..self.channels * taps).map(weight).collect()
    }
}
