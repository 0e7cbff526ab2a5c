//! Maximum and average pooling of maps.
#![allow(clippy::needless_range_loop)] // reason: the lanes of several arrays at once

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::buffer::{BLOCK, Buffer, Pixel};
use super::node::{Dims, Node, Values};
use super::pass::{Partial, moments};
use super::tape::Backward;
use crate::pool::Windows;
use crate::simd::{Float, Kernel, Simd};
use crate::{Activation, InstructionSet, isa};

/// What a window is reduced to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reduction {
    /// The largest value; its gradient goes to the first of equals.
    Max,
    /// The mean.
    Mean,
}

/// One block of the pooled map, from the values of a block.
struct Pool<'a, T: Float> {
    windows: &'a Windows,
    reduction: Reduction,
    node: &'a Node<T>,
    at: (usize, usize),
    to: &'a mut [Pixel<T>],
    scratch: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for Pool<'_, T> {
    type Output = Partial<T>;
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> Partial<T> {
        Values { node: self.node, at: self.at, to: self.scratch }.run::<V>();
        let width = self.node.dims.size[1];
        let windows = self.windows.rows.iter().flat_map(|rows| self.windows.cols.iter().map(move |cols| (rows, cols)));
        for (to, (rows, cols)) in self.to.iter_mut().zip(windows) {
            *to = match self.reduction {
                Reduction::Max => largest(self.scratch, width, rows, cols).0,
                Reduction::Mean => {
                    let mut sum = Pixel::<T>::zero();
                    for x in window(width, rows, cols) {
                        for lane in 0..BLOCK {
                            sum.0[lane] += self.scratch[x].0[lane];
                        }
                    }
                    let count = T::of(self.windows.count(rows, cols) as f64);
                    Pixel(sum.0.map(|x| x / count))
                }
            };
        }
        moments::<T, V>(self.to)
    }
}

/// The pixels of a window.
#[inline(always)]
fn window(width: usize, rows: &Range<usize>, cols: &Range<usize>) -> impl Iterator<Item = usize> {
    let cols = cols.clone();
    rows.clone().flat_map(move |row| cols.clone().map(move |col| row * width + col))
}

/// The largest value of each channel and its pixel: the first one of equals, the last NaN if there is one.
#[inline(always)]
fn largest<T: Float>(
    x: &[Pixel<T>],
    width: usize,
    rows: &Range<usize>,
    cols: &Range<usize>,
) -> (Pixel<T>, [u32; BLOCK]) {
    let mut best = Pixel([T::NEG_INFINITY; BLOCK]);
    let mut places = [(rows.start * width + cols.start) as u32; BLOCK];
    for at in window(width, rows, cols) {
        for lane in 0..BLOCK {
            let v = x[at].0[lane];
            let taken = v > best.0[lane] || v.nan();
            best.0[lane] = if taken { v } else { best.0[lane] };
            places[lane] = if taken { at as u32 } else { places[lane] };
        }
    }
    (best, places)
}

/// Distributes the gradient of a block of the pooled map.
struct Spread<'a, T: Float> {
    windows: &'a Windows,
    reduction: Reduction,
    node: &'a Node<T>,
    at: (usize, usize),
    gradient: &'a [Pixel<T>],
    to: &'a mut [Pixel<T>],
    scratch: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for Spread<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        self.to.fill(Pixel::zero());
        let width = self.node.dims.size[1];
        let windows = self.windows.rows.iter().flat_map(|rows| self.windows.cols.iter().map(move |cols| (rows, cols)));
        if self.reduction == Reduction::Mean {
            for (g, (rows, cols)) in self.gradient.iter().zip(windows) {
                let count = T::of(self.windows.count(rows, cols) as f64);
                for at in window(width, rows, cols) {
                    for (to, &g) in self.to[at].0.iter_mut().zip(&g.0) {
                        *to += g / count;
                    }
                }
            }
            return;
        }
        Values { node: self.node, at: self.at, to: self.scratch }.run::<V>();
        for (g, (rows, cols)) in self.gradient.iter().zip(windows) {
            let (_, places) = largest(self.scratch, width, rows, cols);
            for (lane, place) in places.into_iter().enumerate() {
                self.to[place as usize].0[lane] += g.0[lane];
            }
        }
    }
}

/// The pooled map.
pub(super) fn pool<T: Float>(set: InstructionSet, node: &Node<T>, windows: &Windows, reduction: Reduction) -> Node<T> {
    let size = [windows.rows.len(), windows.cols.len()];
    let dims = Dims { size, ..node.dims };
    let (area, blocks) = (dims.area(), dims.blocks());
    let mut values = Buffer::stale(dims.len());
    let mut partials = vec![Partial::zero(); dims.batch * blocks];
    values.par_chunks_mut(area).zip(&mut partials).enumerate().for_each(|(i, (to, partial))| {
        let scratch = &mut Buffer::stale(node.dims.area());
        let at = (i / blocks, i % blocks);
        *partial = T::dispatch(set, Pool { windows, reduction, node, at, to, scratch });
    });
    let pooled = Node::new(dims, Arc::new(values), None, Activation::None);
    let stats = pooled.merge(&partials);
    pooled.stats.get_or_init(|| stats);
    pooled
}

/// From the pooled map back.
pub(super) struct Pooled<T: Float> {
    pub(super) windows: Windows,
    pub(super) reduction: Reduction,
    pub(super) from: Arc<Node<T>>,
    pub(super) to: Arc<Node<T>>,
}

impl<T: Float> Backward for Pooled<T> {
    fn backward(&self, _: [&Tensor; 2]) -> candle_core::Result<[Option<Tensor>; 2]> {
        let set = isa::current();
        let Some(gradient) = self.to.take_plain(set) else { return Ok([None, None]) };
        let (windows, reduction, node) = (&self.windows, self.reduction, &*self.from);
        let (image_len, area) = (self.to.dims.image(), self.to.dims.area());
        node.contribute(set, |image, block, to| {
            let scratch = &mut Buffer::stale(to.len());
            let from = image * image_len + block * area;
            let gradient = &gradient[from..from + area];
            T::dispatch(set, Spread { windows, reduction, node, at: (image, block), gradient, to, scratch });
        });
        Ok([None, None])
    }
}
