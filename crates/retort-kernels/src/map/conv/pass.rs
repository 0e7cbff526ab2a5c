//! The two directions of a convolution: planes, groups of target channels, and what is done to a block when it is ready.

use rayon::prelude::*;

use super::kernel::{Compute, Places, Run, Width};
use super::pack::{Group, Order};
use super::planes::{Source, fill_all};
use crate::conv::geometry::Geometry;
use crate::conv::plan::{Job, Planes, backward, forward};
use crate::map::buffer::{BLOCK, Buffer, Pixel, elements_mut};
use crate::map::node::{Dims, Node};
use crate::map::pass::{Copied, Normalised, Part, Partial, Read, moments, settle};
use crate::simd::{Float, Kernel, Simd};
use crate::{Activation, InstructionSet};

/// Weights above this size are kept in the cache while all images pass by, instead of the other way round.
const RESIDENT: usize = 1 << 20;

/// What is done to a block of the target when its sums are there.
pub(super) trait Finish<T: Float>: Sync {
    /// Must be `#[inline(always)]`.
    fn block<V: Simd<Elem = T>>(&self, at: (usize, usize), to: &mut [Pixel<T>]) -> Partial<T>;
}

/// Bias, residual addition and activation; gathers the moments of the result.
pub(super) struct Forward<'a, T: Float> {
    pub(super) bias: Option<Vec<Pixel<T>>>,
    pub(super) residual: Option<&'a Node<T>>,
    pub(super) act: Activation,
    pub(super) moments: bool,
}

impl<T: Float> Finish<T> for Forward<'_, T> {
    #[inline(always)]
    fn block<V: Simd<Elem = T>>(&self, at: (usize, usize), to: &mut [Pixel<T>]) -> Partial<T> {
        let (image, block) = at;
        for part in (0..BLOCK).step_by(V::LANES) {
            // SAFETY: the residual has the shape of the target; `part` is a part of a pixel.
            unsafe {
                let bias = match &self.bias {
                    Some(bias) => V::load(bias[block].0.as_ptr().add(part)),
                    None => V::splat(T::default()),
                };
                let relu = self.act == Activation::Relu;
                match self.residual {
                    Some(r) => match &r.normal {
                        None => add(Copied::<V>::new(r.block(image, block), part), bias, relu, to, part),
                        Some(normal) => {
                            let r = Normalised::<V>::new(r.block(image, block), normal, block, r.act, part);
                            add(r, bias, relu, to, part);
                        }
                    },
                    None if self.bias.is_some() || relu => {
                        let target = elements_mut(to);
                        for i in 0..to.len() {
                            let at = target.add(i * BLOCK + part);
                            let y = V::load(at).add(bias);
                            if relu { y.positive() } else { y }.store(at);
                        }
                    }
                    None => {}
                }
            }
        }
        if self.moments { moments::<T, V>(to) } else { Partial::zero() }
    }
}

/// `to = act(to + bias + residual)`.
///
/// # Safety
///
/// The residual must have as many pixels as the target, and `part` be a part of a pixel.
#[inline(always)]
unsafe fn add<V: Simd, R: Read<V>>(residual: R, bias: V, relu: bool, to: &mut [Pixel<V::Elem>], part: usize) {
    let target = elements_mut(to);
    for i in 0..to.len() {
        // SAFETY: the caller's promise.
        unsafe {
            let at = target.add(i * BLOCK + part);
            let y = V::load(at).add(bias).add(residual.at(i));
            if relu { y.positive() } else { y }.store(at);
        }
    }
}

/// Adds what the gradient of a map has gathered before, masks and sums.
pub(super) struct Backward<'a, T: Float> {
    pub(super) node: &'a Node<T>,
    pub(super) old: Option<&'a [Pixel<T>]>,
}

impl<T: Float> Finish<T> for Backward<'_, T> {
    #[inline(always)]
    fn block<V: Simd<Elem = T>>(&self, at: (usize, usize), to: &mut [Pixel<T>]) -> Partial<T> {
        settle::<T, V>(self.node, self.old, at, to)
    }
}

/// A convolution from one map to another: the forward pass or the input gradient.
pub(super) struct Direct<T: Float> {
    pub(super) planes: Planes,
    pub(super) jobs: Vec<Packed<T>>,
    pub(super) order: Order,
    pub(super) target: Dims,
}

/// A job with its weights in the order of the kernels.
pub(super) struct Packed<T: Float> {
    job: Job,
    weights: Buffer<T>,
    places: Places,
}

/// Where the flat run of a job over planes of this width goes in the target: the columns behind a row go nowhere.
pub(super) fn places(job: &Job, width: usize, target: [usize; 2]) -> Places {
    let ([_, cols], [row_step, col_step]) = (job.size, job.step);
    Places::new((0..job.run(width)).map(|i| {
        let (row, col) = (i / width, i % width);
        let at = (job.first[0] + row * row_step) * target[1] + job.first[1] + col * col_step;
        (col < cols).then_some(at)
    }))
}

/// Blocks that the kernels of an instruction set compute together.
pub(super) fn group_width<T: Float>(set: InstructionSet) -> usize {
    T::dispatch(set, Width)
}

impl<T: Float> Direct<T> {
    pub(super) fn forward(set: InstructionSet, g: &Geometry, w: &[T]) -> Self {
        let (planes, job) = forward(g);
        let order = Order::forward(g, group_width::<T>(set));
        let (sources, taps) = (g.group_in(), g.taps());
        let packed = order.pack(&job.taps, |source, target, tap| w[(target * sources + source) * taps + tap]);
        let target = Dims { batch: g.batch, channels: g.c_out, size: g.output };
        let places = places(&job, planes.width, g.output);
        Self { planes, jobs: vec![Packed { job, weights: packed, places }], order, target }
    }

    pub(super) fn backward(set: InstructionSet, g: &Geometry, w: &[T]) -> Self {
        let (planes, jobs) = backward(g);
        let order = Order::backward(g, group_width::<T>(set));
        let (per_in, per_out, taps) = (g.group_in(), g.group_out(), g.taps());
        let weight = |source: usize, target: usize, tap: usize| {
            w[((target / per_in * per_out + source) * per_in + target % per_in) * taps + tap]
        };
        let jobs = jobs
            .into_iter()
            .map(|job| {
                let weights = order.pack(&job.taps, weight);
                let places = places(&job, planes.width, g.input);
                Packed { job, weights, places }
            })
            .collect();
        Self { planes, jobs, order, target: Dims { batch: g.batch, channels: g.c_in, size: g.input } }
    }

    /// Whether the groups of channels are the outer loop and the images the inner one.
    pub(super) fn group_by_group(&self) -> bool {
        let pixels: usize = self.jobs.iter().map(|packed| packed.weights.len()).sum();
        self.target.batch > 1 && pixels * size_of::<Pixel<T>>() > RESIDENT
    }

    /// Computes some images, one after the other; `with_planes` sees each image's planes while they are in the cache.
    pub(super) fn images(
        &self,
        set: InstructionSet,
        (source, first): (Source<'_, T>, usize),
        (to, partials): Part<'_, T>,
        finish: &impl Finish<T>,
        mut with_planes: impl FnMut(usize, &[Pixel<T>]),
    ) {
        let mut scratch = Buffer::stale(self.planes.pixels(source.blocks()));
        let images = to.chunks_exact_mut(self.target.image()).zip(partials.chunks_exact_mut(self.target.blocks()));
        for (image, (to, partials)) in (first..).zip(images) {
            let planes = self.planes.of(set, source, image, &mut scratch);
            for (group, part) in self.order.groups.iter().zip(self.parts(to, partials)) {
                self.group(set, (planes, image), group, part, finish);
            }
            with_planes(image, planes);
        }
    }

    /// Computes all images, each group of channels by itself.
    pub(super) fn groups(
        &self,
        set: InstructionSet,
        source: Source<'_, T>,
        (to, partials): Part<'_, T>,
        finish: &impl Finish<T>,
    ) {
        let (image, blocks) = (self.target.image(), self.target.blocks());
        let (planes, len) = fill_all(set, &self.planes, source);
        let mut tasks: Vec<Vec<_>> = self.order.groups.iter().map(|_| Vec::new()).collect();
        for (to, partials) in to.chunks_mut(image).zip(partials.chunks_mut(blocks)) {
            for (task, part) in tasks.iter_mut().zip(self.parts(to, partials)) {
                task.push(part);
            }
        }
        tasks.into_par_iter().zip(&self.order.groups).for_each(|(task, group)| {
            for (i, part) in task.into_iter().enumerate() {
                self.group(set, (&planes[i * len..(i + 1) * len], i), group, part, finish);
            }
        });
    }

    /// The parts of an image that belong to the groups.
    fn parts<'a, P>(
        &self,
        mut values: &'a mut [Pixel<T>],
        mut partials: &'a mut [P],
    ) -> Vec<(&'a mut [Pixel<T>], &'a mut [P])> {
        let mut parts = Vec::with_capacity(self.order.groups.len());
        for group in &self.order.groups {
            let blocks = group.blocks.len();
            let (to, rest) = std::mem::take(&mut values).split_at_mut(blocks * self.target.area());
            let (partial, others) = std::mem::take(&mut partials).split_at_mut(blocks);
            parts.push((to, partial));
            (values, partials) = (rest, others);
        }
        parts
    }

    /// Computes the blocks of a group of an image.
    fn group(
        &self,
        set: InstructionSet,
        (planes, image): (&[Pixel<T>], usize),
        group: &Group,
        (to, partials): Part<'_, T>,
        finish: &impl Finish<T>,
    ) {
        let area = self.target.area();
        for Packed { job, weights, places } in &self.jobs {
            let run = Run {
                segments: &group.segments,
                offsets: &job.offsets,
                plane: self.planes.plane(),
                len: job.run(self.planes.width),
                blocks: group.blocks.len(),
                stride: area,
                places: Some(places),
            };
            let weights = &weights[self.order.range(group, job.offsets.len())];
            T::dispatch(set, Compute { run, planes, weights, to: &mut *to });
        }
        for ((to, partial), block) in to.chunks_exact_mut(area).zip(partials).zip(group.blocks.clone()) {
            *partial = T::dispatch(set, FinishBlock { finish, at: (image, block), to });
        }
    }
}

/// Finishes a block.
pub(super) struct FinishBlock<'a, T: Float, F> {
    pub(super) finish: &'a F,
    pub(super) at: (usize, usize),
    pub(super) to: &'a mut [Pixel<T>],
}

impl<T: Float, F: Finish<T>> Kernel<T> for FinishBlock<'_, T, F> {
    type Output = Partial<T>;
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> Partial<T> {
        self.finish.block::<V>(self.at, self.to)
    }
}
