//! Between tensors in `[B, C, H, W]` and maps.

use std::sync::Arc;

use candle_core::{CpuStorage, Shape, Tensor};
use rayon::prelude::*;

use super::buffer::{BLOCK, Buffer, Pixel};
use super::node::{Dims, Node, Values};
use super::tape::{Export, Import};
use crate::InstructionSet;
use crate::isa;
use crate::raw::{filled, tensor, with_slice};
use crate::simd::{Float, Kernel, Simd};

/// Elements of the channels of one block, channel after channel, to pixels.
struct ToPixels<'a, T> {
    from: &'a [T],
    area: usize,
    to: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for ToPixels<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let channels = self.from.len() / self.area;
        if channels < BLOCK {
            self.to.fill(Pixel::zero());
            for (c, from) in self.from.chunks_exact(self.area).enumerate() {
                for (to, &x) in self.to.iter_mut().zip(from) {
                    to.0[c] = x;
                }
            }
            return;
        }
        for (chunk, to) in self.to.chunks_mut(BLOCK).enumerate() {
            let at = chunk * BLOCK;
            for c in 0..BLOCK {
                let from = &self.from[c * self.area + at..][..to.len()];
                for (to, &x) in to.iter_mut().zip(from) {
                    to.0[c] = x;
                }
            }
        }
    }
}

/// The pixels of `[B, C, H, W]` elements.
pub(super) fn pixels<T: Float>(set: InstructionSet, dims: Dims, from: &[T]) -> Buffer<T> {
    let (area, blocks) = (dims.area(), dims.blocks());
    let mut to = Buffer::stale(dims.len());
    to.par_chunks_mut(area).enumerate().for_each(|(i, to)| {
        let (image, block) = (i / blocks, i % blocks);
        let first = image * dims.channels + block * BLOCK;
        let last = image * dims.channels + ((block + 1) * BLOCK).min(dims.channels);
        T::dispatch(set, ToPixels { from: &from[first * area..last * area], area, to });
    });
    to
}

/// The `[B, C, H, W]` elements of pixels that `read` writes, block by block.
pub(super) fn planes<T: Float>(dims: Dims, read: impl Fn(usize, usize, &mut [Pixel<T>]) + Sync) -> Vec<T> {
    let area = dims.area();
    // SAFETY: the blocks of an image cover its channels, and every element of a channel is written.
    unsafe {
        filled(dims.batch * dims.channels * area, |to| {
            to.par_chunks_mut(dims.channels * area).enumerate().for_each(|(image, to)| {
                let mut block_pixels = Buffer::stale(area);
                for (block, to) in to.chunks_mut(BLOCK * area).enumerate() {
                    read(image, block, &mut block_pixels);
                    for (chunk, pixels) in block_pixels.chunks(BLOCK).enumerate() {
                        for (c, to) in to.chunks_exact_mut(area).enumerate() {
                            for (to, pixel) in to[chunk * BLOCK..].iter_mut().zip(pixels) {
                                to.write(pixel.0[c]);
                            }
                        }
                    }
                }
            });
        })
    }
}

/// Reads the gradient of a map that was made of a tensor.
pub(super) struct FromTensor<T: Float> {
    pub(super) node: Arc<Node<T>>,
    pub(super) shape: Shape,
}

impl<T: Float> Import for FromTensor<T> {
    fn gradient(&self) -> candle_core::Result<Option<Tensor>> {
        let Some(gradient) = self.node.take_plain(isa::current()) else { return Ok(None) };
        let dims = self.node.dims;
        let values = planes(dims, |image, block, to| {
            let from = image * dims.image() + block * dims.area();
            to.copy_from_slice(&gradient[from..from + to.len()]);
        });
        tensor(values, self.shape.clone()).map(Some)
    }
}

/// The values of a map.
pub(super) struct ToTensor<T: Float>(pub(super) Arc<Node<T>>);

impl<T: Float> Export for ToTensor<T> {
    fn values(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        let (set, node, dims) = (isa::current(), &*self.0, self.0.dims);
        let values = planes(dims, |image, block, to| T::dispatch(set, Values { node, at: (image, block), to }));
        let shape = (dims.batch, dims.channels, dims.size[0], dims.size[1]);
        Ok((candle_core::WithDType::to_cpu_storage_owned(values), shape.into()))
    }

    fn give(&self, gradient: &Tensor) -> candle_core::Result<()> {
        let set = isa::current();
        let values = with_slice::<T, _>(gradient, |g| pixels(set, self.0.dims, g))?;
        self.0.give(set, Arc::new(values), None);
        Ok(())
    }
}

/// The mean of each channel of each image.
pub(super) struct GlobalMean<T: Float>(pub(super) Arc<Node<T>>);

/// Sums the values of a block.
struct SumOf<'a, T: Float> {
    node: &'a Node<T>,
    at: (usize, usize),
    scratch: &'a mut [Pixel<T>],
}

impl<T: Float> Kernel<T> for SumOf<'_, T> {
    type Output = [f64; BLOCK];
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> [f64; BLOCK] {
        Values { node: self.node, at: self.at, to: self.scratch }.run::<V>();
        let mut sums = [0.0; BLOCK];
        for pixel in &*self.scratch {
            for (sum, x) in sums.iter_mut().zip(pixel.0) {
                *sum += x.wide();
            }
        }
        sums
    }
}

impl<T: Float> Export for GlobalMean<T> {
    fn values(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        let (set, node, dims) = (isa::current(), &*self.0, self.0.dims);
        let mut means = vec![T::default(); dims.batch * dims.channels];
        means.par_chunks_mut(dims.channels).enumerate().for_each(|(image, to)| {
            let mut scratch = Buffer::stale(dims.area());
            for (block, to) in to.chunks_mut(BLOCK).enumerate() {
                let sums = T::dispatch(set, SumOf { node, at: (image, block), scratch: &mut scratch });
                for (to, sum) in to.iter_mut().zip(sums) {
                    *to = T::of(sum / dims.area() as f64);
                }
            }
        });
        Ok((candle_core::WithDType::to_cpu_storage_owned(means), (dims.batch, dims.channels).into()))
    }

    fn give(&self, gradient: &Tensor) -> candle_core::Result<()> {
        let dims = self.0.dims;
        with_slice::<T, _>(gradient, |g| {
            self.0.contribute(isa::current(), |image, block, to| {
                let from = image * dims.channels + block * BLOCK;
                let mut pixel = Pixel::zero();
                for (to, g) in pixel.0.iter_mut().zip(&g[from..(image + 1) * dims.channels]) {
                    *to = T::of(g.wide() / dims.area() as f64);
                }
                to.fill(pixel);
            });
        })
    }
}
