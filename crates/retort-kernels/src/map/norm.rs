//! Batch normalisation of maps: numbers now, the pass over the map when it is read.

use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::buffer::BLOCK;
use super::node::{Node, Normal, Slope, by_block};
use super::pass::{Partial, moments};
use super::tape::Backward;
use crate::norm::BatchStats;
use crate::raw::tensor;
use crate::simd::{Float, Kernel, Simd};
use crate::{InstructionSet, isa};

/// Moments of a block of the stored numbers.
struct Moments<'a, T: Float> {
    node: &'a Node<T>,
    at: (usize, usize),
}

impl<T: Float> Kernel<T> for Moments<'_, T> {
    type Output = Partial<T>;
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> Partial<T> {
        moments::<T, V>(self.node.block(self.at.0, self.at.1))
    }
}

impl<T: Float> Node<T> {
    /// Mean and variance of the stored numbers: gathered on the way, or in a pass of their own.
    pub(super) fn batch_stats(&self, set: InstructionSet) -> &BatchStats {
        self.stats.get_or_init(|| {
            let blocks = self.dims.blocks();
            let partials: Vec<_> = (0..self.dims.batch * blocks)
                .into_par_iter()
                .map(|i| T::dispatch(set, Moments { node: self, at: (i / blocks, i % blocks) }))
                .collect();
            self.merge(&partials)
        })
    }

    /// Mean and biased variance of each channel from the moments of its images, merged in order (Chan et al. 1979).
    pub(super) fn merge(&self, partials: &[Partial<T>]) -> BatchStats {
        let (blocks, area) = (self.dims.blocks(), self.dims.area() as f64);
        let channel = |c: usize| {
            let (block, lane) = (c / BLOCK, c % BLOCK);
            let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
            for partial in partials.iter().skip(block).step_by(blocks) {
                let offset = partial.sums[lane] / area;
                let here = partial.shift.0[lane].wide() + offset;
                let distance = here - mean;
                count += area;
                mean += distance * area / count;
                squares += partial.products[lane] - offset * partial.sums[lane]
                    + distance * distance * area * (count - area) / count;
            }
            // `f64::max` would turn a NaN into 0.
            let var = squares / count;
            (mean, if var < 0.0 { 0.0 } else { var })
        };
        let (mean, var) = (0..self.dims.channels).map(channel).unzip();
        BatchStats { mean, var, count: self.dims.count() }
    }
}

/// The numbers of a normalisation.
pub(super) struct Affine {
    pub(super) stats: BatchStats,
    pub(super) weight: Vec<f64>,
    pub(super) bias: Vec<f64>,
    pub(super) eps: f64,
    /// Whether the statistics depend on the map.
    pub(super) train: bool,
}

impl Affine {
    fn inverse(&self, channel: usize) -> f64 {
        1.0 / (self.stats.var[channel] + self.eps).sqrt()
    }

    pub(super) fn normal<T: Float>(&self) -> Normal<T> {
        let channels = 0..self.weight.len();
        let scale = |c: usize| self.inverse(c) * self.weight[c];
        // The part of the mean that `T` cannot hold goes into the shift, so that a large mean costs no digits.
        let rest = |c: usize| self.stats.mean[c] - T::of(self.stats.mean[c]).wide();
        Normal {
            centre: by_block(self.stats.mean.iter().copied()),
            scale: by_block(channels.clone().map(scale)),
            shift: by_block(channels.map(|c| self.bias[c] - rest(c) * scale(c))),
        }
    }

    /// Gradients of weight and bias from the sums of the gradient and its products with `x - centre`.
    fn parameters<T: Float>(&self, sums: &[[f64; 2]]) -> (Vec<T>, Vec<T>) {
        sums.iter()
            .enumerate()
            .map(|(c, &[sum, product])| {
                let rest = self.stats.mean[c] - T::of(self.stats.mean[c]).wide();
                (T::of((product - rest * sum) * self.inverse(c)), T::of(sum))
            })
            .unzip()
    }

    /// The gradient of the stored numbers, from that of the normalised ones and its sums.
    fn slope<T: Float>(&self, sums: &[[f64; 2]]) -> Slope<T> {
        let count = self.stats.count as f64;
        let numbers: Vec<[f64; 3]> = sums
            .iter()
            .enumerate()
            .map(|(c, &[sum, product])| {
                let inverse = self.inverse(c);
                let scale = self.weight[c] * inverse;
                if !self.train {
                    return [scale, 0.0, 0.0];
                }
                let rest = self.stats.mean[c] - T::of(self.stats.mean[c]).wide();
                let by_value = -scale * inverse * inverse * (product - rest * sum) / count;
                // The formula has `x - mean`, the kernel `x - centre`.
                [scale, by_value, -scale * sum / count - by_value * rest]
            })
            .collect();
        let part = |i: usize| by_block(numbers.iter().map(move |n| n[i]));
        Slope {
            centre: by_block(self.stats.mean.iter().copied()),
            by_gradient: part(0),
            by_value: part(1),
            constant: part(2),
        }
    }
}

/// From the normalised map back to the one with the stored numbers.
pub(super) struct Normalisation<T: Float> {
    pub(super) from: Arc<Node<T>>,
    pub(super) to: Arc<Node<T>>,
    pub(super) affine: Affine,
    /// Whether `from` wants a gradient.
    pub(super) tracked: bool,
}

impl<T: Float> Backward for Normalisation<T> {
    fn backward(&self, [weight, bias]: [&Tensor; 2]) -> candle_core::Result<[Option<Tensor>; 2]> {
        let set = isa::current();
        let Some((values, sums)) = self.to.take_with_sums(set) else { return Ok([None, None]) };
        if self.tracked {
            self.from.give(set, values, Some(self.affine.slope(&sums)));
        }
        let (dw, db) = self.affine.parameters::<T>(&sums);
        let dw = weight.track_op().then(|| tensor(dw, weight.shape())).transpose()?;
        let db = bias.track_op().then(|| tensor(db, bias.shape())).transpose()?;
        Ok([dw, db])
    }
}
