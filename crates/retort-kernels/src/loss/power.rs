//! Means of powers over the channels.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::error::{dims4, float, parameter};
use crate::raw::{by_dtype, dtype, filled, slice, tensor, with_slice};
use crate::simd::{Float, Kernel, Simd};
use crate::{InstructionSet, Result, fallback, isa};

/// Positions whose sums are gathered at a time; they stay in the first-level cache.
const TILE: usize = 1024;
/// Channels that are added before the sums are touched.
const GROUP: usize = 4;

/// `|x|^p` and its derivative.
trait Power: Copy + Send + Sync {
    fn value(self, x: f64) -> f64;
    /// The derivative times `scale`; 0 at 0.
    fn slope<T: Float>(self, x: T, scale: T) -> T;
}

#[derive(Clone, Copy)]
struct Square;

impl Power for Square {
    #[inline(always)]
    fn value(self, x: f64) -> f64 {
        x * x
    }
    #[inline(always)]
    fn slope<T: Float>(self, x: T, scale: T) -> T {
        (x + x) * scale
    }
}

#[derive(Clone, Copy)]
struct General(f64);

impl Power for General {
    #[inline(always)]
    fn value(self, x: f64) -> f64 {
        x.abs().powf(self.0)
    }
    #[inline(always)]
    fn slope<T: Float>(self, x: T, scale: T) -> T {
        let x = x.wide();
        // For p < 2 the power itself has no finite limit, or none that is 0.
        let slope = if x == 0.0 { 0.0 } else { self.0 * x.signum() * x.abs().powf(self.0 - 1.0) };
        T::of(scale.wide() * slope)
    }
}

/// The means of one image, `[C, N]` to `[N]`.
struct Mean<'a, T, P> {
    x: &'a [T],
    power: P,
    to: &'a mut [MaybeUninit<T>],
}

impl<T: Float, P: Power> Kernel<T> for Mean<'_, T, P> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let n = self.to.len();
        let channels = self.x.len() / n;
        for (tile, to) in self.to.chunks_mut(TILE).enumerate() {
            let mut sums = [0.0; TILE];
            let sums = &mut sums[..to.len()];
            let row = |channel: usize| &self.x[channel * n + tile * TILE..][..to.len()];
            let whole = channels - channels % GROUP;
            for channel in (0..whole).step_by(GROUP) {
                let (a, b, c, d) = (row(channel), row(channel + 1), row(channel + 2), row(channel + 3));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let [a, b, c, d] = [a[i], b[i], c[i], d[i]].map(|x| self.power.value(x.wide()));
                    *sum += (a + b) + (c + d);
                }
            }
            for channel in whole..channels {
                for (sum, x) in sums.iter_mut().zip(row(channel)) {
                    *sum += self.power.value(x.wide());
                }
            }
            for (to, sum) in to.iter_mut().zip(sums) {
                to.write(T::of(*sum / channels as f64));
            }
        }
    }
}

/// The gradient of one image.
struct Gradient<'a, T, P> {
    x: &'a [T],
    g: &'a [T],
    power: P,
    to: &'a mut [MaybeUninit<T>],
}

impl<T: Float, P: Power> Kernel<T> for Gradient<'_, T, P> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let n = self.g.len();
        let share = T::of(n as f64 / self.x.len() as f64);
        for (to, x) in self.to.chunks_exact_mut(n).zip(self.x.chunks_exact(n)) {
            for ((to, &x), &g) in to.iter_mut().zip(x).zip(self.g) {
                to.write(self.power.slope(x, g * share));
            }
        }
    }
}

struct PowerMean {
    p: f64,
}

impl PowerMean {
    fn forward<T: Float>(set: InstructionSet, x: &[T], [c, n]: [usize; 2], power: impl Power) -> Vec<T> {
        // SAFETY: every image has its part of the result, and `Mean` writes all of it.
        unsafe {
            filled(x.len() / c, |to| {
                let images = to.par_chunks_mut(n).zip(x.par_chunks(c * n));
                images.for_each(|(to, x)| T::dispatch(set, Mean { x, power, to }));
            })
        }
    }

    fn backward<T: Float>(set: InstructionSet, x: &[T], g: &[T], [c, n]: [usize; 2], power: impl Power) -> Vec<T> {
        // SAFETY: every image has its part of the result, whole rows of `n`, and `Gradient` writes all of them.
        unsafe {
            filled(x.len(), |to| {
                let images = to.par_chunks_mut(c * n).zip(x.par_chunks(c * n).zip(g.par_chunks(n)));
                images.for_each(|(to, (x, g))| T::dispatch(set, Gradient { x, g, power, to }));
            })
        }
    }
}

impl CustomOp1 for PowerMean {
    fn name(&self) -> &'static str {
        "channel_power_mean"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = l.shape().dims4()?;
        by_dtype!("channel_power_mean", dtype(s), T => {
            let (x, size, set) = (slice::<T>(s, l)?, [c, h * w], isa::current());
            let out = match self.p {
                2.0 => Self::forward(set, x, size, Square),
                p => Self::forward(set, x, size, General(p)),
            };
            Ok((candle_core::WithDType::to_cpu_storage_owned(out), (b, h * w).into()))
        })
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, c, h, w) = x.dims4()?;
        let (g, size, set) = (g.contiguous()?, [c, h * w], isa::current());
        by_dtype!("channel_power_mean", x.dtype(), T => {
            let out = with_slice::<T, _>(x, |x| {
                with_slice::<T, _>(&g, |g| match self.p {
                    2.0 => Self::backward(set, x, g, size, Square),
                    p => Self::backward(set, x, g, size, General(p)),
                })
            })??;
            tensor(out, x.shape()).map(Some)
        })
    }
}

/// Mean over the channels of `|x|^p` at every position, summed in `f64`.
///
/// The spatial attention map of Zagoruyko and Komodakis 2017 (arXiv 1612.03928), before it is normalised.
///
/// # Shapes
///
/// `x`: `[B, C, H, W]`, `p >= 1`. Returns `[B, H W]`.
///
/// # Gradients
///
/// `p / C |x|^(p - 1) sign(x)`, which is 0 at 0 for every `p`.
///
/// # Errors
///
/// Another rank, a size of zero, elements that are neither `f32` nor `f64`, a `p` that is not finite or below 1.
pub fn channel_power_mean(x: &Tensor, p: f64) -> Result<Tensor> {
    const OP: &str = "channel_power_mean";
    float(OP, x)?;
    let [b, _, h, w] = dims4(OP, "x", x)?;
    if !(p >= 1.0 && p.is_finite()) {
        return Err(parameter(OP, "p", "finite and at least 1", p));
    }
    if !x.device().is_cpu() {
        let power = if p == 2.0 { x.sqr()? } else { fallback::abs(x)?.powf(p)? };
        return Ok(power.mean(1)?.reshape((b, h * w))?);
    }
    Ok(x.contiguous()?.apply_op1(PowerMean { p })?)
}
