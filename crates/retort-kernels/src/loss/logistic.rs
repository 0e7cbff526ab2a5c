//! The logistic function on scores of one right answer and many wrong ones.

use candle_core::Tensor;
use rayon::prelude::*;

use super::numeric::{LANES, exp, total};
use crate::error::{float, shape};
use crate::raw::{by_dtype, tensor, with_slice};
use crate::simd::{Float, Kernel, Simd};
use crate::{Result, isa};

/// Terms of one lane whose logarithms are taken at once, as that of a product.
const FACTORS: usize = 16;
/// Above this `ln(1 + e^x) = x` in `f64`, and a product of `FACTORS` powers of it is far from the limit.
const LARGE: f64 = 40.0;

/// One row of scores.
struct Row<'a, T> {
    scores: &'a [T],
    scale: f64,
    shift: f64,
    /// Factor of the derivatives.
    share: f64,
    slopes: &'a mut [T],
}

impl<T: Float> Kernel<T> for Row<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> f64 {
        const CHUNK: usize = LANES * FACTORS;
        let slope = self.share * self.scale;
        let right = self.scale * self.scores[0].wide() + self.shift;
        // `max` would turn NaN into 0, but the other summand keeps it.
        let mut loss = (-right).max(0.0) + (-right.abs()).exp().ln_1p();
        self.slopes[0] = T::of(-slope / (1.0 + right.exp()));
        for (scores, slopes) in self.scores[1..].chunks(CHUNK).zip(self.slopes[1..].chunks_mut(CHUNK)) {
            // What is missing in the last chunk counts as a score that no loss comes from.
            let mut h = [f64::NEG_INFINITY; CHUNK];
            for (h, score) in h.iter_mut().zip(scores) {
                *h = self.scale * score.wide() + self.shift;
            }
            let (mut factors, mut excess) = ([1.0; LANES], [0.0; LANES]);
            for h in h.chunks_exact_mut(LANES) {
                for ((h, factor), excess) in h.iter_mut().zip(&mut factors).zip(&mut excess) {
                    let beyond = *h - LARGE;
                    *excess += if beyond > 0.0 { beyond } else { 0.0 };
                    let e = exp(if beyond > 0.0 { LARGE } else { *h });
                    *factor *= 1.0 + e;
                    *h = slope * (e / (1.0 + e));
                }
            }
            for (slope, h) in slopes.iter_mut().zip(h) {
                *slope = T::of(h);
            }
            loss += total(excess) + total(factors.map(f64::ln));
        }
        loss
    }
}

/// Logistic loss of scores whose first column is right and all others wrong, with its derivatives.
///
/// With `h = scale * scores + shift` the value is the mean over the rows of
/// `ln(1 + exp(-h_0)) + sum_{k >= 1} ln(1 + exp(h_k))`, in `f64`: the sum that noise-contrastive estimation minimises
/// (Gutmann and Hyvärinen 2010, AISTATS) with `h` the logarithm of the ratio of model and noise.
/// It neither overflows nor saturates, and NaN stays NaN.
/// The result is no part of a graph; [`with_gradient`](crate::with_gradient) puts it into one.
///
/// # Shapes
///
/// `scores`: `[B, K + 1]`. Returns the value and its derivatives with respect to the scores, of their shape and type.
///
/// # Errors
///
/// Wrong ranks, no row or no column, elements that are neither `f32` nor `f64`.
pub fn logistic_contrast(scores: &Tensor, scale: f64, shift: f64) -> Result<(f64, Tensor)> {
    const OP: &str = "logistic_contrast";
    float(OP, scores)?;
    let [b, width] = match *scores.dims() {
        [b, width] if b * width > 0 => [b, width],
        ref other => return Err(shape(OP, "scores [B, K + 1] with at least one row and one column", other)),
    };
    if !scores.device().is_cpu() {
        let (value, slopes) = logistic_contrast(&scores.to_device(&candle_core::Device::Cpu)?, scale, shift)?;
        return Ok((value, slopes.to_device(scores.device())?));
    }
    let (set, share) = (isa::current(), 1.0 / b as f64);
    let (value, slopes) = by_dtype!(OP, scores.dtype(), T => {
        with_slice::<T, _>(&scores.contiguous()?, |scores| {
            let mut slopes = vec![T::default(); scores.len()];
            let rows = slopes.par_chunks_mut(width).zip(scores.par_chunks(width));
            let losses: Vec<f64> = rows
                .map(|(slopes, scores)| T::dispatch(set, Row { scores, scale, shift, share, slopes }))
                .collect();
            (losses.iter().sum::<f64>() * share, tensor(slopes, (b, width)))
        })
    })?;
    Ok((value, slopes?))
}
