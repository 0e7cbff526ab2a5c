//! Reductions to a scalar that accumulate in f64, and other small operations with their own gradients.
//!
//! candle sums f32 in f32; over a batch of feature maps that costs three to four digits.
//! Here every partial sum is f64 over a fixed block, and the blocks are added in order, so that the
//! result depends neither on the number of threads nor (beyond rounding once) on the number of elements.

use crate::Result;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor, WithDType};
use rayon::prelude::*;

/// Elements of one partial sum; fixed, so that the partition does not depend on the number of threads.
const BLOCK: usize = 1 << 13;

/// The elements of a contiguous tensor.
pub(crate) fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [T]> {
    let (start, end) =
        layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("expected a contiguous tensor".into()))?;
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}

/// Calls a generic function for the float type of a storage.
macro_rules! by_float {
    ($storage:expr, $T:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32(_) => {
                type $T = f32;
                $body
            }
            candle_core::CpuStorage::F64(_) => {
                type $T = f64;
                $body
            }
            _ => Err(candle_core::Error::Msg("expected elements of type f32 or f64".into())),
        }
    };
}
pub(crate) use by_float;

/// `sum_i f(i)` over blocks of indices, each summed by `f(start..end)`.
fn blocked(len: usize, f: impl Fn(std::ops::Range<usize>) -> f64 + Sync + Send) -> f64 {
    let blocks: Vec<_> = (0..len).step_by(BLOCK).map(|start| start..(start + BLOCK).min(len)).collect();
    if blocks.len() < 4 {
        return blocks.into_iter().map(f).sum();
    }
    let partial: Vec<f64> = blocks.into_par_iter().map(f).collect();
    partial.into_iter().sum()
}

/// Sum with eight independent accumulators, so that the additions overlap.
pub(crate) fn lanes(len: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut acc = [0.0; 8];
    let whole = len - len % 8;
    for i in (0..whole).step_by(8) {
        for (lane, a) in acc.iter_mut().enumerate() {
            *a += f(i + lane);
        }
    }
    let tail: f64 = (whole..len).map(f).sum();
    ((acc[0] + acc[4]) + (acc[1] + acc[5])) + ((acc[2] + acc[6]) + (acc[3] + acc[7])) + tail
}

fn scalar<T: WithDType>(value: f64) -> (CpuStorage, Shape) {
    (T::to_cpu_storage_owned(vec![T::from_f64(value)]), Shape::from(()))
}

/// The scalar gradient that reaches a reduction.
fn host(g: &Tensor) -> candle_core::Result<f64> {
    g.to_device(&candle_core::Device::Cpu)?.to_dtype(candle_core::DType::F64)?.to_scalar()
}

struct Sum {
    scale: f64,
}

impl CustomOp1 for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_float!(s, T => {
            let x = slice::<T>(s, l)?;
            let sum = blocked(x.len(), |r| {
                let x = &x[r];
                lanes(x.len(), |i| x[i].to_f64())
            });
            Ok(scalar::<T>(sum * self.scale))
        })
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Tensor::full(host(g)? * self.scale, x.shape(), x.device())?.to_dtype(x.dtype()).map(Some)
    }
}

/// `scale * sum(x)`.
fn scaled_sum(x: &Tensor, scale: f64) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return Ok((x.sum_all()? * scale)?);
    }
    Ok(x.contiguous()?.apply_op1(Sum { scale })?)
}

/// Sum of all elements, a scalar.
pub(crate) fn sum_all(x: &Tensor) -> Result<Tensor> {
    scaled_sum(x, 1.0)
}

/// Mean of all elements, a scalar; the caller has checked that there are some.
pub(crate) fn mean_all(x: &Tensor) -> Result<Tensor> {
    scaled_sum(x, 1.0 / x.elem_count() as f64)
}

/// `scale * sum((a - b)^2)`: one pass forward, one backward.
struct SquaredError {
    scale: f64,
}

impl SquaredError {
    fn gradient<T: WithDType>(&self, a: &Tensor, b: &Tensor, g: f64) -> candle_core::Result<Tensor> {
        let ((sa, la), (sb, lb)) = (a.storage_and_layout(), b.storage_and_layout());
        let (candle_core::Storage::Cpu(ca), candle_core::Storage::Cpu(cb)) = (&*sa, &*sb) else {
            return Err(candle_core::Error::Msg("expected tensors on the CPU".into()));
        };
        let (x, y) = (slice::<T>(ca, la)?, slice::<T>(cb, lb)?);
        let k = 2.0 * g * self.scale;
        let mut out = vec![T::zero(); x.len()];
        out.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK).zip(y.par_chunks(BLOCK))).for_each(|(out, (x, y))| {
            for ((o, x), y) in out.iter_mut().zip(x).zip(y) {
                *o = T::from_f64(k * (x.to_f64() - y.to_f64()));
            }
        });
        Tensor::from_vec(out, a.shape(), a.device())
    }
}

impl CustomOp2 for SquaredError {
    fn name(&self) -> &'static str {
        "squared error"
    }
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_float!(s1, T => {
            let (x, y) = (slice::<T>(s1, l1)?, slice::<T>(s2, l2)?);
            let sum = blocked(x.len(), |r| {
                let (x, y) = (&x[r.clone()], &y[r]);
                lanes(x.len(), |i| (x[i].to_f64() - y[i].to_f64()).powi(2))
            });
            Ok(scalar::<T>(sum * self.scale))
        })
    }
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        if !a.track_op() && !b.track_op() {
            return Ok((None, None));
        }
        let g = host(g)?;
        let grad = match a.dtype() {
            candle_core::DType::F64 => self.gradient::<f64>(a, b, g)?,
            _ => self.gradient::<f32>(a, b, g)?,
        };
        let other = b.track_op().then(|| grad.neg()).transpose()?;
        Ok((a.track_op().then_some(grad), other))
    }
}

/// `scale * sum((a - b)^2)` of two tensors of one shape.
pub(crate) fn squared_error(a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    debug_assert_eq!(a.dims(), b.dims(), "the caller compares shapes");
    if !a.device().is_cpu() {
        return scaled_sum(&(a - b)?.sqr()?, scale);
    }
    Ok(a.contiguous()?.apply_op2(&b.contiguous()?, SquaredError { scale })?)
}

/// `mean((a - b)^2)` of two tensors of one shape.
pub(crate) fn mean_squared_error(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    squared_error(a, b, 1.0 / a.elem_count() as f64)
}

/// `x / ||x||` over the last dimension, 0 where `||x|| <= eps`.
struct Normalize {
    eps: f64,
}

impl Normalize {
    /// `1 / ||x||`, or 0. For NaN the comparison fails and the result is NaN.
    fn factor<T: WithDType>(&self, x: &[T]) -> f64 {
        let square = lanes(x.len(), |i| x[i].to_f64() * x[i].to_f64());
        if square <= self.eps * self.eps { 0.0 } else { square.sqrt().recip() }
    }

    fn forward<T: WithDType>(&self, x: &[T], n: usize) -> Vec<T> {
        let mut out = vec![T::zero(); x.len()];
        out.par_chunks_mut(n).zip(x.par_chunks(n)).with_min_len(BLOCK.div_ceil(n)).for_each(|(out, x)| {
            let factor = self.factor(x);
            out.iter_mut().zip(x).for_each(|(o, x)| *o = T::from_f64(x.to_f64() * factor));
        });
        out
    }

    /// `f (g - f^2 (x . g) x)` with `f = 1 / ||x||`.
    fn backward<T: WithDType>(&self, x: &Tensor, g: &Tensor) -> candle_core::Result<Tensor> {
        let g = g.contiguous()?;
        let ((sx, lx), (sg, lg)) = (x.storage_and_layout(), g.storage_and_layout());
        let (candle_core::Storage::Cpu(cx), candle_core::Storage::Cpu(cg)) = (&*sx, &*sg) else {
            return Err(candle_core::Error::Msg("expected tensors on the CPU".into()));
        };
        let (values, g_values) = (slice::<T>(cx, lx)?, slice::<T>(cg, lg)?);
        let n = x.dim(candle_core::D::Minus1)?;
        let mut out = vec![T::zero(); values.len()];
        let rows = out.par_chunks_mut(n).zip(values.par_chunks(n).zip(g_values.par_chunks(n)));
        rows.with_min_len(BLOCK.div_ceil(n)).for_each(|(out, (x, g))| {
            let factor = self.factor(x);
            let along = factor * factor * lanes(n, |i| x[i].to_f64() * g[i].to_f64());
            for ((o, x), g) in out.iter_mut().zip(x).zip(g) {
                *o = T::from_f64(factor * (g.to_f64() - along * x.to_f64()));
            }
        });
        Tensor::from_vec(out, x.shape(), x.device())
    }
}

impl CustomOp1 for Normalize {
    fn name(&self) -> &'static str {
        "normalize"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let n = l.shape().dim(candle_core::D::Minus1)?;
        by_float!(s, T => Ok((T::to_cpu_storage_owned(self.forward(slice::<T>(s, l)?, n)), l.shape().clone())))
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        match x.dtype() {
            candle_core::DType::F64 => self.backward::<f64>(x, g).map(Some),
            _ => self.backward::<f32>(x, g).map(Some),
        }
    }
}

/// `x / ||x||` over the last dimension of a tensor on the CPU, which has elements; 0 where `||x|| <= eps`.
pub(crate) fn normalize_rows(x: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op1(Normalize { eps })?)
}

/// A scalar without gradient, of the type and on the device of `like`.
pub(crate) fn constant(value: f64, like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::full(value, (), like.device())?.to_dtype(like.dtype())?)
}

/// The value of a scalar.
pub(crate) fn number(x: &Tensor) -> Result<f64> {
    Ok(host(x)?)
}

/// The elements in f64 on the host.
pub(crate) fn wide(x: &Tensor) -> Result<Vec<f64>> {
    let x = x.detach().to_device(&candle_core::Device::Cpu)?.to_dtype(candle_core::DType::F64)?;
    Ok(x.flatten_all()?.to_vec1()?)
}

struct Softplus;

/// `ln(1 + exp(x))` without overflow.
#[inline]
pub(crate) fn softplus_of(x: f64) -> f64 {
    // `max` would turn NaN into 0, but `abs` keeps it.
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + exp(-x))` without overflow.
#[inline]
pub(crate) fn sigmoid_of(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

impl Softplus {
    fn map<T: WithDType>(x: &[T], f: impl Fn(f64) -> f64 + Sync) -> Vec<T> {
        x.par_iter().with_min_len(1024).map(|x| T::from_f64(f(x.to_f64()))).collect()
    }
}

impl CustomOp1 for Softplus {
    fn name(&self) -> &'static str {
        "softplus"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_float!(s, T => {
            Ok((T::to_cpu_storage_owned(Self::map(slice::<T>(s, l)?, softplus_of)), l.shape().clone()))
        })
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        (g * sigmoid(x)?).map(Some)
    }
}

/// `1 / (1 + exp(-x))`, as a constant: no gradient flows through it.
pub(crate) fn sigmoid(x: &Tensor) -> candle_core::Result<Tensor> {
    let x = x.detach().contiguous()?;
    if !x.device().is_cpu() {
        return candle_nn::ops::sigmoid(&x);
    }
    let (storage, layout) = x.storage_and_layout();
    let candle_core::Storage::Cpu(cpu) = &*storage else {
        return Err(candle_core::Error::Msg("expected a tensor on the CPU".into()));
    };
    by_float!(cpu, T => Tensor::from_vec(Softplus::map(slice::<T>(cpu, layout)?, sigmoid_of), x.shape(), x.device()))
}

/// `ln(1 + exp(x))`, computed as `max(x, 0) + ln(1 + exp(-|x|))`; its gradient is the sigmoid everywhere, also at 0.
pub(crate) fn softplus(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        let plain = x.detach();
        // |x| written with the sign, whose gradient candle gets right and which is not needed here anyway.
        let magnitude = (&plain * plain.sign()?)?;
        let value = (((magnitude.neg()?.exp()? + 1.0)?.log()? + (&plain + &magnitude)? * 0.5)?).detach();
        return Ok((value + ((x - &plain)? * sigmoid(x)?)?)?);
    }
    Ok(x.contiguous()?.apply_op1(Softplus)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn a_long_f32_sum_keeps_its_digits() {
        let n = 3_000_001;
        let x = Tensor::full(0.1f32, n, &Device::Cpu).unwrap();
        let mean: f32 = mean_all(&x).unwrap().to_scalar().unwrap();
        assert_eq!(mean, 0.1);
        let sum: f32 = sum_all(&x).unwrap().to_scalar().unwrap();
        assert!((f64::from(sum) / (n as f64 * f64::from(0.1f32)) - 1.0).abs() < 1e-7);
    }

    #[test]
    fn sums_are_independent_of_the_number_of_threads() {
        let x: Vec<f32> = (0..100_003u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32 / 4e9 - 0.5) * 1e3).collect();
        let x = Tensor::new(x, &Device::Cpu).unwrap();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sum_all(&x).unwrap().to_scalar::<f32>().unwrap().to_bits())
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn squared_error_reaches_both_sides() {
        let a = Var::new(&[1.0f64, 4.0], &Device::Cpu).unwrap();
        let b = Var::new(&[3.0f64, 1.0], &Device::Cpu).unwrap();
        let loss = squared_error(&a, &b, 0.5).unwrap();
        assert_eq!(loss.to_scalar::<f64>().unwrap(), 6.5);
        let grads = loss.backward().unwrap();
        assert_eq!(grads.get(&a).unwrap().to_vec1::<f64>().unwrap(), [-2.0, 3.0]);
        assert_eq!(grads.get(&b).unwrap().to_vec1::<f64>().unwrap(), [2.0, -3.0]);
    }

    #[test]
    fn softplus_is_stable_and_its_slope_at_zero_is_one_half() {
        let x = Var::new(&[0.0f32, 1e4, -1e4, 95.0, -3.0], &Device::Cpu).unwrap();
        let y = softplus(&x).unwrap();
        let values = y.to_vec1::<f32>().unwrap();
        assert_eq!(values[..4], [std::f32::consts::LN_2, 1e4, 0.0, 95.0]);
        assert!((values[4] - 0.048_587_35).abs() < 1e-8);
        let grad = y.sum_all().unwrap().backward().unwrap().get(&x).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(grad[..3], [0.5, 1.0, 0.0]);
        let nan = softplus(&Tensor::new(&[f32::NAN], &Device::Cpu).unwrap()).unwrap();
        assert!(nan.to_vec1::<f32>().unwrap()[0].is_nan());
    }
}
