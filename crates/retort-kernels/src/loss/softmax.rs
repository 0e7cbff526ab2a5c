//! Losses on the softmax of a row, value and gradient in one pass.

use candle_core::Tensor;
use rayon::prelude::*;

use super::known::with_gradient;
use super::numeric::{LANES, exp, sum};
use crate::error::{Error, float, like, parameter, shape};
use crate::raw::{by_dtype, tensor, with_slice};
use crate::simd::{Float, Kernel, Simd};
use crate::{Result, fallback, isa};

/// Logits that a task works on, at least.
const TASK: usize = 1 << 14;

/// The distribution of a row, by its logarithms.
struct Softmax<'a> {
    /// The logits less their maximum, divided by the temperature.
    logits: &'a [f64],
    /// Their exponentials.
    powers: &'a [f64],
    /// The sum of those, its logarithm and its inverse.
    log_total: f64,
    inverse: f64,
}

impl<'a> Softmax<'a> {
    #[inline(always)]
    fn new<T: Float>(x: &[T], inverse_temperature: f64, scratch: &'a mut [f64]) -> Self {
        let (logits, powers) = scratch.split_at_mut(x.len());
        let mut lanes = [T::NEG_INFINITY; LANES];
        for x in x.chunks(LANES) {
            for (lane, &x) in lanes.iter_mut().zip(x) {
                *lane = if x > *lane { x } else { *lane };
            }
        }
        // NaN is passed over here, and comes through in the sum.
        let max = lanes.iter().fold(f64::NEG_INFINITY, |max, lane| max.max(lane.wide()));
        for ((logit, power), x) in logits.iter_mut().zip(powers.iter_mut()).zip(x) {
            *logit = (x.wide() - max) * inverse_temperature;
            *power = exp(*logit);
        }
        let (logits, powers) = (&*logits, &*powers);
        let total = sum(x.len(), |i| powers[i]);
        Self { logits, powers, log_total: total.ln(), inverse: total.recip() }
    }

    #[inline(always)]
    fn log(&self, i: usize) -> f64 {
        self.logits[i] - self.log_total
    }

    #[inline(always)]
    fn probability(&self, i: usize) -> f64 {
        self.powers[i] * self.inverse
    }
}

/// Cross-entropy of one row against the distribution `each + label * [i = target]`.
struct CrossEntropy<'a, T> {
    x: &'a [T],
    target: usize,
    label: f64,
    each: f64,
    /// Factor of the gradient.
    share: f64,
    scratch: &'a mut [f64],
    to: &'a mut [T],
}

impl<T: Float> Kernel<T> for CrossEntropy<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> f64 {
        let p = Softmax::new(self.x, 1.0, self.scratch);
        let n = self.x.len();
        let mass = self.label + self.each * n as f64;
        for (i, to) in self.to.iter_mut().enumerate() {
            *to = T::of((mass * p.probability(i) - self.each) * self.share);
        }
        let own = (mass * p.probability(self.target) - self.each - self.label) * self.share;
        self.to[self.target] = T::of(own);
        // Without smoothing a class that is ruled out (a logit of -inf) costs nothing.
        let others = if self.each == 0.0 { 0.0 } else { self.each * sum(n, |i| p.log(i)) };
        -(self.label * p.log(self.target) + others)
    }
}

/// Kullback-Leibler divergence of one row.
struct Divergence<'a, T> {
    x: &'a [T],
    target: &'a [T],
    inverse_temperature: f64,
    /// Factor of the gradient.
    share: f64,
    scratch: &'a mut [f64],
    to: &'a mut [T],
}

impl<T: Float> Kernel<T> for Divergence<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> f64 {
        let n = self.x.len();
        let (own, other) = self.scratch.split_at_mut(2 * n);
        let p = Softmax::new(self.x, self.inverse_temperature, own);
        let q = Softmax::new(self.target, self.inverse_temperature, other);
        for (i, to) in self.to.iter_mut().enumerate() {
            *to = T::of((p.probability(i) - q.probability(i)) * self.share);
        }
        sum(n, |i| q.probability(i) * (q.log(i) - p.log(i)))
    }
}

/// The mean of a loss over the rows of `[B, C]` logits with its gradient; `row` is given the number of a row, scratch
/// memory and the row of the gradient.
fn mean<T: Float>([b, c]: [usize; 2], row: impl Fn(usize, &mut [f64], &mut [T]) -> f64 + Sync) -> (f64, Vec<T>) {
    let mut gradient = vec![T::default(); b * c];
    let mut losses = vec![0.0; b];
    let rows = TASK.div_ceil(c);
    let tasks = gradient.par_chunks_mut(rows * c).zip(losses.par_chunks_mut(rows)).enumerate();
    tasks.for_each(|(task, (gradient, losses))| {
        let mut scratch = vec![0.0; 4 * c];
        for (i, (gradient, loss)) in gradient.chunks_exact_mut(c).zip(losses).enumerate() {
            *loss = row(task * rows + i, &mut scratch, gradient);
        }
    });
    (losses.iter().sum::<f64>() / b as f64, gradient)
}

fn dims2(op: &'static str, x: &Tensor) -> Result<[usize; 2]> {
    float(op, x)?;
    match *x.dims() {
        [b, c] if b * c > 0 => Ok([b, c]),
        ref other => Err(shape(op, "logits [B, C] with at least one row and one class", other)),
    }
}

/// Cross-entropy of the softmax of `logits` with class labels, averaged over the rows.
///
/// `-(1/B) sum_b sum_c q_bc ln softmax(z_b)[c]` with `q = (1 - smoothing) onehot(y) + smoothing / C`
/// (Szegedy et al. 2015, arXiv 1512.00567).
/// The arithmetic is `f64`, in one pass that finds the gradient too.
///
/// # Shapes
///
/// `logits`: `[B, C]`, `labels`: B class indices. Returns a scalar.
///
/// # Gradients
///
/// `(softmax(z) - q) / B`, finite for all finite logits.
///
/// # Errors
///
/// Wrong ranks, no rows or classes, a number of labels other than B, a label that is no class, a `smoothing` that is
/// not finite, elements that are neither `f32` nor `f64`.
pub fn softmax_cross_entropy(logits: &Tensor, labels: &[u32], smoothing: f64) -> Result<Tensor> {
    const OP: &str = "softmax_cross_entropy";
    let [b, c] = dims2(OP, logits)?;
    if labels.len() != b {
        return Err(shape(OP, format!("{b} labels"), labels.len()));
    }
    if let Some(position) = labels.iter().position(|&label| label as usize >= c) {
        return Err(Error::Index { op: OP, index: labels[position], position, len: c });
    }
    if !smoothing.is_finite() {
        return Err(parameter(OP, "smoothing", "finite", smoothing));
    }
    if !logits.device().is_cpu() {
        return fallback::on_host(logits, |logits| softmax_cross_entropy(logits, labels, smoothing));
    }
    let (set, share) = (isa::current(), 1.0 / b as f64);
    let (label, each) = (1.0 - smoothing, smoothing / c as f64);
    let (value, gradient) = by_dtype!(OP, logits.dtype(), T => {
        let (value, gradient) = with_slice::<T, _>(&logits.contiguous()?, |x| {
            mean::<T>([b, c], |row, scratch, to| {
                let (x, target) = (&x[row * c..][..c], labels[row] as usize);
                T::dispatch(set, CrossEntropy { x, target, label, each, share, scratch, to })
            })
        })?;
        tensor(gradient, (b, c)).map(|gradient| (value, gradient))
    })?;
    with_gradient(value, logits, &gradient)
}

/// Kullback-Leibler divergence of two softmax distributions, averaged over the rows.
///
/// `(1/B) sum_b KL(softmax(target_b / T) || softmax(logits_b / T))`, in `f64`, in one pass that finds the gradient too.
/// A probability that underflows contributes 0.
///
/// # Shapes
///
/// `logits`, `target`: `[B, C]`; `temperature` finite and > 0. Returns a scalar.
///
/// # Gradients
///
/// `(softmax(logits / T) - softmax(target / T)) / (B T)` into `logits`; the target is a constant.
///
/// # Errors
///
/// Wrong ranks, two shapes or element types that differ, no rows or classes, a temperature out of range, a target that
/// tracks gradients, elements that are neither `f32` nor `f64`.
pub fn softmax_divergence(logits: &Tensor, target: &Tensor, temperature: f64) -> Result<Tensor> {
    const OP: &str = "softmax_divergence";
    let [b, c] = dims2(OP, logits)?;
    like(OP, "target", target, logits.dtype(), &[b, c])?;
    if target.track_op() {
        return Err(Error::Tracked { op: OP, argument: "target" });
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(parameter(OP, "temperature", "finite and positive", temperature));
    }
    if !logits.device().is_cpu() {
        let target = target.to_device(&candle_core::Device::Cpu)?;
        return fallback::on_host(logits, |logits| softmax_divergence(logits, &target, temperature));
    }
    let set = isa::current();
    let (inverse_temperature, share) = (temperature.recip(), 1.0 / (b as f64 * temperature));
    let (plain, target) = (logits.contiguous()?, target.contiguous()?);
    let (value, gradient) = by_dtype!(OP, logits.dtype(), T => {
        let (value, gradient) = with_slice::<T, _>(&plain, |x| with_slice::<T, _>(&target, |target| {
            mean::<T>([b, c], |row, scratch, to| {
                let (x, target) = (&x[row * c..][..c], &target[row * c..][..c]);
                T::dispatch(set, Divergence { x, target, inverse_temperature, share, scratch, to })
            })
        }))??;
        tensor(gradient, (b, c)).map(|gradient| (value, gradient))
    })?;
    with_gradient(value, logits, &gradient)
}
