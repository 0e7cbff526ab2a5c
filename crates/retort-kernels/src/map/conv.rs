//! Convolution of maps.

mod depthwise;
mod kernel;
mod pack;
mod pass;
mod planes;
mod weight;
mod winograd;

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::buffer::{BLOCK, Buffer, Pixel};
use super::node::{Dims, Gradient, GradientSum, Node, by_block};
use super::pass::{Part, Partial, by_images};
use super::tape::Backward;
use crate::conv::geometry::Geometry;
use crate::raw::{tensor, with_slice};
use crate::simd::Float;
use crate::{Activation, InstructionSet, isa};
use pass::{Backward as Settle, Direct, Finish, Forward};
use planes::Source;

/// Pixels of a weight gradient that a thread adds up at once.
const ADDED_AT_ONCE: usize = 1 << 9;

/// What happens to the sums of a convolution on their way out.
pub(super) struct Epilogue<'a, T: Float> {
    pub(super) bias: Option<&'a [T]>,
    pub(super) residual: Option<&'a Node<T>>,
    pub(super) act: Activation,
    /// Whether the moments of the result will be asked for.
    pub(super) moments: bool,
}

/// Which way a convolution goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// From the geometry's input to its output.
    Forward,
    /// From its output to its input: a transposed convolution, or an input gradient.
    Backward,
}

impl Direction {
    fn pass<T: Float>(self, set: InstructionSet, g: &Geometry, w: &[T]) -> Pass<T> {
        if depthwise::applies(g) {
            return Pass::Depthwise(match self {
                Self::Forward => depthwise::Pass::forward(g, w),
                Self::Backward => depthwise::Pass::backward(g, w),
            });
        }
        match (self, winograd::applies(g)) {
            (Self::Forward, false) => Pass::Direct(Direct::forward(set, g, w)),
            (Self::Backward, false) => Pass::Direct(Direct::backward(set, g, w)),
            (Self::Forward, true) => Pass::Winograd(winograd::Pass::forward(set, g, w)),
            (Self::Backward, true) => Pass::Winograd(winograd::Pass::backward(set, g, w)),
        }
    }

    fn reversed(self) -> Self {
        match self {
            Self::Forward => Self::Backward,
            Self::Backward => Self::Forward,
        }
    }
}

/// One way of computing a convolution from map to map.
enum Pass<T: Float> {
    Depthwise(depthwise::Pass<T>),
    Direct(Direct<T>),
    Winograd(winograd::Pass<T>),
}

impl<T: Float> Pass<T> {
    fn target(&self) -> Dims {
        match self {
            Self::Depthwise(pass) => pass.target,
            Self::Direct(pass) => pass.target,
            Self::Winograd(pass) => pass.target(),
        }
    }

    /// Images that are best computed together.
    fn together(&self) -> usize {
        match self {
            Self::Depthwise(_) | Self::Direct(_) => 1,
            Self::Winograd(pass) => pass.together(),
        }
    }

    /// Whether all images must be computed at once.
    fn is_whole(&self) -> bool {
        matches!(self, Self::Direct(pass) if pass.group_by_group())
    }

    fn images(
        &self,
        set: InstructionSet,
        source: Source<'_, T>,
        first: usize,
        part: Part<'_, T>,
        finish: &impl Finish<T>,
    ) {
        match self {
            Self::Depthwise(pass) => pass.images(set, source, first, part, finish),
            Self::Direct(pass) => pass.images(set, (source, first), part, finish, |_, _| ()),
            Self::Winograd(pass) => pass.images(set, source, first, part, finish),
        }
    }

    /// Computes all images.
    fn run(&self, set: InstructionSet, source: Source<'_, T>, finish: &impl Finish<T>) -> Computed<T> {
        let mut result = Computed::stale(self.target());
        match self {
            Self::Direct(pass) if self.is_whole() => pass.groups(set, source, result.whole(), finish),
            _ => {
                // A chunk for each core of a small machine at least.
                let together = self.together().min(self.target().batch.div_ceil(2));
                result.chunks(together).for_each(|(first, part)| self.images(set, source, first, part, finish));
            }
        }
        result
    }
}

/// A map as it is being computed, with the sums of its blocks.
struct Computed<T: Float> {
    dims: Dims,
    values: Buffer<T>,
    partials: Vec<Partial<T>>,
}

impl<T: Float> Computed<T> {
    fn stale(dims: Dims) -> Self {
        Self { dims, values: Buffer::stale(dims.len()), partials: vec![Partial::zero(); dims.batch * dims.blocks()] }
    }

    fn whole(&mut self) -> Part<'_, T> {
        (&mut self.values, &mut self.partials)
    }

    /// So many images each, with the number of the first.
    fn chunks(&mut self, images: usize) -> impl IndexedParallelIterator<Item = (usize, Part<'_, T>)> {
        let values = self.values.par_chunks_mut(images * self.dims.image());
        let partials = self.partials.par_chunks_mut(images * self.dims.blocks());
        values.zip(partials).enumerate().map(move |(i, part)| (i * images, part))
    }
}

/// One way of computing a weight gradient.
enum WeightSums {
    Depthwise(depthwise::Weights),
    Direct(weight::Weights),
    Winograd(winograd::Adjoint),
}

impl WeightSums {
    fn new<T: Float>(set: InstructionSet, g: &Geometry) -> Self {
        if depthwise::applies(g) {
            Self::Depthwise(depthwise::Weights::new(g))
        } else if winograd::applies(g) {
            Self::Winograd(winograd::Adjoint::new::<T>(set, g))
        } else {
            Self::Direct(weight::Weights::new::<T>(set, g))
        }
    }

    /// Pixels of the sums.
    fn len(&self) -> usize {
        match self {
            Self::Depthwise(sums) => sums.len(),
            Self::Direct(sums) => sums.len(),
            Self::Winograd(sums) => sums.len(),
        }
    }

    /// Images of a part of the batch with sums of its own; the parts are added in order. The number depends on the
    /// shape only, so that the bits do not depend on the number of threads.
    fn per_slice<T: Float>(&self, batch: usize) -> usize {
        let slices = if self.len() * size_of::<Pixel<T>>() <= 1 << 17 { 16 } else { 8 };
        batch.div_ceil(slices)
    }

    /// Whether parts of the batch have sums of their own.
    fn by_slices<T: Float>(&self) -> bool {
        match self {
            Self::Depthwise(_) => true,
            Self::Direct(sums) => sums.by_slices::<T>(),
            Self::Winograd(sums) => sums.by_slices::<T>(),
        }
    }

    fn slice<T: Float>(
        &self,
        set: InstructionSet,
        sources: (Source<'_, T>, Source<'_, T>),
        images: Range<usize>,
        to: &mut [Pixel<T>],
    ) {
        match self {
            Self::Depthwise(sums) => sums.slice(set, sources, images, to),
            Self::Direct(sums) => sums.slice(set, sources, images, to),
            Self::Winograd(sums) => sums.slice(set, sources, images, to),
        }
    }

    fn all<T: Float>(&self, set: InstructionSet, sources: (Source<'_, T>, Source<'_, T>), to: &mut [Pixel<T>]) {
        match self {
            Self::Depthwise(_) => unreachable!("small sums are computed in slices"),
            Self::Direct(sums) => sums.all(set, sources, to),
            Self::Winograd(sums) => sums.all(set, sources, to),
        }
    }

    /// Adds the slices in order; `[O, I / groups, kh, kw]`.
    fn unpack<T: Float>(&self, set: InstructionSet, mut parts: Buffer<T>) -> Vec<T> {
        let (total, rest) = parts.split_at_mut(self.len());
        let parts: Vec<_> = rest.chunks_exact(total.len()).collect();
        total.par_chunks_mut(ADDED_AT_ONCE).enumerate().for_each(|(i, total)| {
            for part in &parts {
                for (total, part) in total.iter_mut().zip(&part[i * ADDED_AT_ONCE..]) {
                    for (total, &part) in total.0.iter_mut().zip(&part.0) {
                        *total += part;
                    }
                }
            }
        });
        match self {
            Self::Depthwise(sums) => sums.unpack(total),
            Self::Direct(sums) => sums.unpack(total),
            Self::Winograd(sums) => sums.unpack(set, total),
        }
    }
}

/// `act(conv(x, w) + bias + residual)`.
pub(super) fn convolve<T: Float>(
    set: InstructionSet,
    (g, direction): (&Geometry, Direction),
    x: &Node<T>,
    w: &[T],
    epilogue: &Epilogue<'_, T>,
) -> Node<T> {
    let pass = direction.pass(set, g, w);
    let finish = Forward {
        bias: epilogue.bias.map(|b| by_block(b.iter().map(|b| b.wide()))),
        residual: epilogue.residual,
        act: epilogue.act,
        moments: epilogue.moments,
    };
    let y = pass.run(set, Source::Values(x), &finish);
    let node = Node::new(y.dims, Arc::new(y.values), None, epilogue.act);
    if epilogue.moments {
        let stats = node.merge(&y.partials);
        node.stats.get_or_init(|| stats);
    }
    node
}

/// From the result of a convolution back to its map, weight and bias.
pub(super) struct Convolution<T: Float> {
    pub(super) geometry: Geometry,
    pub(super) direction: Direction,
    pub(super) from: Arc<Node<T>>,
    /// Whether `from` wants a gradient.
    pub(super) tracked: bool,
    /// The residual, if it wants a gradient.
    pub(super) residual: Option<Arc<Node<T>>>,
    pub(super) to: Arc<Node<T>>,
}

impl<T: Float> Backward for Convolution<T> {
    fn backward(&self, [weight, bias]: [&Tensor; 2]) -> candle_core::Result<[Option<Tensor>; 2]> {
        let set = isa::current();
        let Some(mut gradient) = self.to.take(set) else { return Ok([None, None]) };
        if self.residual.is_some() {
            // It is needed as plain numbers twice.
            gradient = self.to.plain(set, gradient);
        }
        let dy = Source::Gradient(&self.to, &gradient);
        let db = bias.track_op().then(|| tensor(bias_gradient(set, &self.to, &gradient), bias.shape())).transpose()?;
        let dw = with_slice::<T, _>(weight, |w| self.gradients(set, (w, weight.track_op()), dy))?;
        if let Some(residual) = &self.residual {
            residual.give(set, Arc::clone(&gradient.values), None);
        }
        Ok([dw.map(|dw| tensor(dw, weight.shape())).transpose()?, db])
    }
}

impl<T: Float> Convolution<T> {
    /// Moves the gradient on to the input, if it wants it, and returns that of the weights, if they do.
    fn gradients(&self, set: InstructionSet, (w, of_weights): (&[T], bool), dy: Source<'_, T>) -> Option<Vec<T>> {
        let g = &self.geometry;
        let pass = self.tracked.then(|| self.direction.reversed().pass(set, g, w));
        let sums = of_weights.then(|| WeightSums::new::<T>(set, g));
        let old = if self.tracked { self.from.open(set) } else { None };
        let finish = Settle { node: &self.from, old: old.as_ref().map(|old| &***old) };
        let x = Source::Values(&self.from);
        // Of a transposed convolution the adjoint's input is the operation's output.
        let sources = if self.direction == Direction::Forward { (x, dy) } else { (dy, x) };
        let per_slice = sums.as_ref().map_or(1, |sums| sums.per_slice::<T>(g.batch));
        let parts = |sums: &WeightSums| {
            let count = if sums.by_slices::<T>() { g.batch.div_ceil(per_slice) } else { 1 };
            Buffer::zeroed(count * sums.len())
        };
        let images = |first: usize| first..(first + per_slice).min(g.batch);
        match (pass, sums) {
            // Both in one go: the gradient is in the cache for the second.
            (Some(pass), Some(sums)) if !pass.is_whole() && sums.by_slices::<T>() => {
                let mut parts = parts(&sums);
                let mut dx = Computed::stale(pass.target());
                let slices = dx.chunks(per_slice).zip(parts.par_chunks_mut(sums.len()));
                slices.for_each(|((first, part), to)| {
                    let images = images(first);
                    match (&pass, &sums) {
                        (Pass::Direct(pass), WeightSums::Direct(sums)) if self.direction == Direction::Forward => {
                            direct(set, (pass, sums), (x, dy), images, (part, to), &finish);
                        }
                        _ => {
                            let together = pass.together();
                            for (i, part) in by_images(pass.target(), part, together).enumerate() {
                                let first = first + i * together;
                                pass.images(set, dy, first, part, &finish);
                                sums.slice(set, sources, first..(first + together).min(images.end), to);
                            }
                        }
                    }
                });
                self.from.close(dx.values, &dx.partials);
                Some(sums.unpack(set, parts))
            }
            (pass, sums) => {
                if let Some(pass) = pass {
                    let dx = pass.run(set, dy, &finish);
                    self.from.close(dx.values, &dx.partials);
                }
                sums.map(|sums| {
                    let mut parts = parts(&sums);
                    if sums.by_slices::<T>() {
                        let slices = parts.par_chunks_mut(sums.len()).enumerate();
                        slices.for_each(|(i, to)| sums.slice(set, sources, images(i * per_slice), to));
                    } else {
                        sums.all(set, sources, &mut parts);
                    }
                    sums.unpack(set, parts)
                })
            }
        }
    }
}

/// The input gradient and the weight gradient of some images in the direct form: the planes of the output gradient
/// serve both.
fn direct<T: Float>(
    set: InstructionSet,
    (pass, sums): (&Direct<T>, &weight::Weights),
    (x, dy): (Source<'_, T>, Source<'_, T>),
    images: Range<usize>,
    (part, to): (Part<'_, T>, &mut [Pixel<T>]),
    finish: &impl Finish<T>,
) {
    let Some(at) = sums.rows_in(&pass.planes) else {
        pass.images(set, (dy, images.start), part, finish, |_, _| ());
        return sums.slice(set, (x, dy), images, to);
    };
    let mut scratch = Buffer::stale(sums.planes().pixels(x.blocks()));
    pass.images(set, (dy, images.start), part, finish, |image, rows| {
        let planes = sums.planes().of(set, x, image, &mut scratch);
        sums.image(set, planes, (&rows[at..], pass.planes.plane()), to);
    });
}

/// Sums of the output gradient over images and positions.
fn bias_gradient<T: Float>(set: InstructionSet, node: &Node<T>, gradient: &Gradient<T>) -> Vec<T> {
    let (dims, blocks) = (node.dims, node.dims.blocks());
    let sums: Vec<[f64; BLOCK]> = (0..dims.batch * blocks)
        .into_par_iter()
        .map(|i| T::dispatch(set, GradientSum { node, gradient, at: (i / blocks, i % blocks) }))
        .collect();
    let of_channel = |c: usize| T::of(sums.iter().skip(c / BLOCK).step_by(blocks).map(|sums| sums[c % BLOCK]).sum());
    (0..dims.channels).map(of_channel).collect()
}
