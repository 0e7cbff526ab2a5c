//! The forward kernel over flat planes; the input gradient is the same with other planes and weights.
#![allow(clippy::needless_range_loop)] // reason: constant ranges over arrays of registers

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::geometry::Geometry;
use super::plan::{Job, Planes, backward, forward};
use crate::pointwise::relu_of;
use crate::raw::{as_uninit, copy_run, filled};
use crate::simd::{Float, Kernel, Simd};
use crate::{Activation, InstructionSet};

/// What is done to a result on its way out.
#[derive(Clone, Copy)]
pub(super) struct Epilogue<'a, T> {
    pub(super) bias: Option<&'a [T]>,
    /// Of the shape of the result.
    pub(super) residual: Option<&'a [T]>,
    pub(super) act: Activation,
}

impl<T> Epilogue<'_, T> {
    pub(super) const NONE: Self = Self { bias: None, residual: None, act: Activation::None };
}

/// A block of target channels whose weights lie together as `[source channel][tap][row]`.
struct Block {
    /// First channel, counted in the group.
    channel: usize,
    /// Channels that exist; the others have zero weights.
    used: usize,
    /// 1, 2, 4 or 8.
    rows: usize,
    /// Where its weights start.
    at: usize,
}

/// Weights of all groups of a job.
struct Packed<T> {
    blocks: Vec<Block>,
    /// Elements of a group.
    group: usize,
    values: Vec<T>,
}

/// Reorders weights for the kernel: `weight(group, target, source, tap)`.
struct Pack<'a, F> {
    groups: usize,
    targets: usize,
    sources: usize,
    taps: &'a [usize],
    weight: F,
}

impl<T: Float, F: Fn(usize, usize, usize, usize) -> T> Kernel<T> for Pack<'_, F> {
    type Output = Packed<T>;

    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> Packed<T> {
        let mut blocks = Vec::new();
        let (mut channel, mut group) = (0, 0);
        while channel < self.targets {
            let used = (self.targets - channel).min(V::ROWS);
            let rows = used.next_power_of_two();
            blocks.push(Block { channel, used, rows, at: group });
            group += rows * self.sources * self.taps.len();
            channel += used;
        }
        let mut values = Vec::with_capacity(group * self.groups);
        for g in 0..self.groups {
            for block in &blocks {
                for source in 0..self.sources {
                    for &tap in self.taps {
                        for row in 0..block.rows {
                            values.push(if row < block.used {
                                (self.weight)(g, block.channel + row, source, tap)
                            } else {
                                T::default()
                            });
                        }
                    }
                }
            }
        }
        Packed { blocks, group, values }
    }
}

/// One image.
struct Image<'a, T> {
    planes: &'a Planes,
    jobs: &'a [(Job, Packed<T>)],
    /// Channels of a group.
    sources: usize,
    targets: usize,
    maps: &'a [T],
    target_size: [usize; 2],
    epilogue: Epilogue<'a, T>,
    to: &'a mut [MaybeUninit<T>],
}

impl<T: Float> Kernel<T> for Image<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let channels = self.maps.len() / self.planes.map();
        let plane = self.planes.buffer(channels);
        let longest = self.jobs.iter().map(|(job, _)| job.run(self.planes.width)).max().unwrap_or(0);
        let stride = longest.next_multiple_of(V::LANES) + 2 * V::LANES;
        let (mut scratch, offset) = T::take_scratch(plane + 2 * V::ROWS * stride);
        let (planes, block) = scratch[offset..].split_at_mut(plane);
        self.planes.fill(self.maps, planes);
        self.compute::<V>(planes, block, stride);
        T::keep_scratch(scratch);
    }
}

impl<T: Float> Image<'_, T> {
    #[inline(always)]
    fn compute<V: Simd<Elem = T>>(mut self, planes: &[T], out: &mut [T], stride: usize) {
        let groups = self.to.len() / (self.map() * self.targets);
        let (even, odd) = out.split_at_mut(V::ROWS * stride);
        for g in 0..groups {
            let source = &planes[g * self.sources * self.planes.channel()..];
            let mut at = 0;
            while at < self.jobs.len() {
                let job = &self.jobs[at];
                let partner = self.jobs.get(at + 1).filter(|other| job.0.interleaves(&other.0));
                at += 1 + usize::from(partner.is_some());
                for index in 0..job.1.blocks.len() {
                    self.block::<V>(job, (g, index), source, even, stride);
                    if let Some(partner) = partner {
                        self.block::<V>(partner, (g, index), source, odd, stride);
                    }
                    self.finish(job, partner, (g, index), (even, odd), stride);
                }
            }
        }
    }

    /// Elements of a target channel.
    #[inline(always)]
    fn map(&self) -> usize {
        self.target_size[0] * self.target_size[1]
    }

    /// Computes the flat runs of one block of target channels of a group.
    #[inline(always)]
    fn block<V: Simd<Elem = T>>(
        &self,
        (job, packed): &(Job, Packed<T>),
        (group, index): (usize, usize),
        source: &[T],
        out: &mut [T],
        stride: usize,
    ) {
        let block = &packed.blocks[index];
        let run = Run {
            channel: self.planes.channel(),
            channels: self.sources,
            offsets: &job.offsets,
            vectors: job.run(self.planes.width).div_ceil(V::LANES),
            stride,
        };
        let weights = &packed.values[group * packed.group + block.at..];
        debug_assert!(weights.len() >= self.sources * job.offsets.len() * block.rows);
        debug_assert!(out.len() >= block.rows * stride && stride >= run.vectors * V::LANES);
        // SAFETY: a vector read starts at most at the last output of the run plus the largest offset, which lies in the
        // channel or, for shared borders, less than a row behind it; the buffer ends with a row and `SLACK` more
        // elements. `out` holds `ROWS * stride` elements and `stride` covers the run.
        unsafe {
            match block.rows {
                8 => run.block::<V, 8>(source, weights, out),
                4 => run.block::<V, 4>(source, weights, out),
                2 => run.block::<V, 2>(source, weights, out),
                _ => run.block::<V, 1>(source, weights, out),
            }
        }
    }

    /// Copies the runs of a block to the result.
    #[inline(always)]
    fn finish(
        &mut self,
        (job, packed): &(Job, Packed<T>),
        partner: Option<&(Job, Packed<T>)>,
        (group, index): (usize, usize),
        (even, odd): (&[T], &[T]),
        stride: usize,
    ) {
        let block = &packed.blocks[index];
        let map = self.map();
        let widths = (self.planes.width, self.target_size[1]);
        for row in 0..block.used {
            let channel = group * self.targets + block.channel + row;
            let range = channel * map..(channel + 1) * map;
            let residual = self.epilogue.residual.map(|r| &r[range.clone()]);
            let bias = self.epilogue.bias.map_or(T::default(), |b| b[channel]);
            let to = &mut self.to[range];
            let from = row * stride..(row + 1) * stride;
            match partner {
                Some((partner, _)) => {
                    interleave([job, partner], widths, (&even[from.clone()], &odd[from]), to, bias);
                }
                None => copy_out(job, widths, &even[from], to, (bias, residual, self.epilogue.act)),
            }
        }
    }
}

/// Copies the runs of the even and odd columns to the same rows of a map.
#[inline(always)]
fn interleave<T: Float>(
    jobs: [&Job; 2],
    (width, map_width): (usize, usize),
    (even, odd): (&[T], &[T]),
    to: &mut [MaybeUninit<T>],
    bias: T,
) {
    for row in 0..jobs[0].size[0] {
        let start = (jobs[0].first[0] + row * jobs[0].step[0]) * map_width;
        let (pairs, rest) = to[start..start + map_width].as_chunks_mut::<2>();
        let even = &even[row * width..row * width + jobs[0].size[1]];
        let odd = &odd[row * width..row * width + jobs[1].size[1]];
        for (pair, (&a, &b)) in pairs.iter_mut().zip(even.iter().zip(odd)) {
            *pair = [MaybeUninit::new(a + bias), MaybeUninit::new(b + bias)];
        }
        if let ([last], Some(&a)) = (rest, even.last()) {
            last.write(a + bias);
        }
    }
}

/// Copies a flat run to its places in a map.
#[inline(always)]
fn copy_out<T: Float>(
    job: &Job,
    (width, map_width): (usize, usize),
    from: &[T],
    to: &mut [MaybeUninit<T>],
    (bias, residual, act): (T, Option<&[T]>, Activation),
) {
    // Without junk between the rows the map is one long row.
    let whole = job.step == [1; 2] && width == map_width && job.size[1] == map_width;
    let [rows, cols] = if whole { [1, job.size[0] * map_width] } else { job.size };
    for row in 0..rows {
        let from = &from[row * width..row * width + cols];
        let start = (job.first[0] + row * job.step[0]) * map_width + job.first[1];
        if job.step[1] > 1 {
            // Input gradients: no epilogue but a bias (transposed convolution).
            for (to, &x) in to[start..].iter_mut().step_by(job.step[1]).zip(from) {
                to.write(x + bias);
            }
            continue;
        }
        let to = &mut to[start..start + cols];
        match (residual, act) {
            (None, Activation::None) if bias == T::default() => copy_run(as_uninit(from), to),
            (None, Activation::None) => {
                for (to, &x) in to.iter_mut().zip(from) {
                    to.write(x + bias);
                }
            }
            (None, Activation::Relu) => {
                for (to, &x) in to.iter_mut().zip(from) {
                    to.write(relu_of(x + bias));
                }
            }
            (Some(r), Activation::None) => {
                for ((to, &x), &r) in to.iter_mut().zip(from).zip(&r[start..start + cols]) {
                    to.write(x + bias + r);
                }
            }
            (Some(r), Activation::Relu) => {
                for ((to, &x), &r) in to.iter_mut().zip(from).zip(&r[start..start + cols]) {
                    to.write(relu_of(x + bias + r));
                }
            }
        }
    }
}

/// A flat run of outputs.
#[derive(Clone, Copy)]
struct Run<'a> {
    /// Elements of a source channel.
    channel: usize,
    channels: usize,
    offsets: &'a [usize],
    vectors: usize,
    /// Elements of a row of the output block.
    stride: usize,
}

impl Run<'_> {
    /// # Safety
    ///
    /// `source` must reach `vectors * LANES` elements beyond the last channel's largest offset, `weights` hold
    /// `channels * offsets * R` elements and `out` hold `R * stride`.
    #[inline(always)]
    unsafe fn block<V: Simd, const R: usize>(self, source: &[V::Elem], weights: &[V::Elem], out: &mut [V::Elem]) {
        let (source, weights, out) = (source.as_ptr(), weights.as_ptr(), out.as_mut_ptr());
        let mut left = self.vectors;
        let mut at = 0;
        while left > 0 {
            // Four are two and two: a single vector cannot hide the latency of the additions.
            let now = if left == 4 { 2 } else { left.min(3) };
            // SAFETY: the caller's promise; `at` counts up to `vectors * LANES`.
            unsafe {
                let (source, out) = (source.add(at), out.add(at));
                match now {
                    3 => self.tile::<V, R, 3>(source, weights, out),
                    2 => self.tile::<V, R, 2>(source, weights, out),
                    _ => self.tile::<V, R, 1>(source, weights, out),
                }
            }
            at += now * V::LANES;
            left -= now;
        }
    }

    /// `R` target channels times `N` vectors of outputs in registers.
    #[inline(always)]
    unsafe fn tile<V: Simd, const R: usize, const N: usize>(
        self,
        source: *const V::Elem,
        mut weights: *const V::Elem,
        out: *mut V::Elem,
    ) {
        // SAFETY: see `block`.
        unsafe {
            let mut sums = [[V::splat(V::Elem::default()); N]; R];
            for c in 0..self.channels {
                let channel = source.add(c * self.channel);
                for &offset in self.offsets {
                    let mut x = [V::splat(V::Elem::default()); N];
                    for n in 0..N {
                        x[n] = V::load(channel.add(offset + n * V::LANES));
                    }
                    for r in 0..R {
                        let w = V::splat(*weights.add(r));
                        for n in 0..N {
                            sums[r][n] = w.mul_add(x[n], sums[r][n]);
                        }
                    }
                    weights = weights.add(R);
                }
            }
            for r in 0..R {
                for n in 0..N {
                    sums[r][n].store(out.add(r * self.stride + n * V::LANES));
                }
            }
        }
    }
}

/// Everything but the images: planes, jobs and packed weights.
struct Setup<T> {
    planes: Planes,
    jobs: Vec<(Job, Packed<T>)>,
    groups: usize,
    /// Channels of a group.
    sources: usize,
    targets: usize,
    target_size: [usize; 2],
}

impl<T: Float> Setup<T> {
    fn run(&self, set: InstructionSet, maps: &[T], batch: usize, epilogue: Epilogue<'_, T>) -> Vec<T> {
        let image = self.groups * self.targets * self.target_size[0] * self.target_size[1];
        let source = maps.len() / batch;
        let one = |i: usize, maps: &[T], to: &mut [MaybeUninit<T>]| {
            let residual = epilogue.residual.map(|r| &r[i * image..(i + 1) * image]);
            let image = Image {
                planes: &self.planes,
                jobs: &self.jobs,
                sources: self.sources,
                targets: self.targets,
                maps,
                target_size: self.target_size,
                epilogue: Epilogue { residual, ..epilogue },
                to,
            };
            T::dispatch(set, image);
        };
        // SAFETY: the jobs cover the target map, and the blocks all channels: every element is written.
        unsafe {
            filled(batch * image, |out| {
                out.par_chunks_mut(image)
                    .zip(maps.par_chunks(source))
                    .enumerate()
                    .for_each(|(i, (to, maps))| one(i, maps, to));
            })
        }
    }
}

/// `epilogue(conv(x, w))`.
pub(super) fn convolve<T: Float>(
    set: InstructionSet,
    g: &Geometry,
    x: &[T],
    w: &[T],
    epilogue: Epilogue<'_, T>,
) -> Vec<T> {
    let (planes, job) = forward(g);
    let (sources, targets, taps) = (g.group_in(), g.group_out(), g.taps());
    let weight = |group: usize, target: usize, source: usize, tap: usize| {
        w[((group * targets + target) * sources + source) * taps + tap]
    };
    let pack = Pack { groups: g.spec.groups, targets, sources, taps: &job.taps, weight };
    let packed = T::dispatch(set, pack);
    let jobs = vec![(job, packed)];
    let setup = Setup { planes, jobs, groups: g.spec.groups, sources, targets, target_size: g.output };
    setup.run(set, x, g.batch, epilogue)
}

/// The input gradient of a convolution (or the forward pass of a transposed one), plus a bias.
pub(super) fn input_gradient<T: Float>(
    set: InstructionSet,
    g: &Geometry,
    dy: &[T],
    w: &[T],
    bias: Option<&[T]>,
) -> Vec<T> {
    let (planes, jobs) = backward(g);
    let (sources, targets, taps) = (g.group_out(), g.group_in(), g.taps());
    let weight = |group: usize, target: usize, source: usize, tap: usize| {
        w[((group * sources + source) * targets + target) * taps + tap]
    };
    let jobs = jobs
        .into_iter()
        .map(|job| {
            let pack = Pack { groups: g.spec.groups, targets, sources, taps: &job.taps, weight };
            let packed = T::dispatch(set, pack);
            (job, packed)
        })
        .collect();
    let setup = Setup { planes, jobs, groups: g.spec.groups, sources, targets, target_size: g.input };
    setup.run(set, dy, g.batch, Epilogue { bias, ..Epilogue::NONE })
}
