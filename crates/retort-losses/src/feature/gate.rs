//! The sum of two maps, each times a gate of its own.

use crate::Result;
use crate::reduce::{by_float, sigmoid_of, slice};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Storage, Tensor, WithDType};
use rayon::prelude::*;

/// `x sigmoid(z[:, 0]) + y sigmoid(z[:, 1])`; `x`, `y`: `[B, C, H, W]`, `z`: `[B, 2, H, W]`.
///
/// One pass forward and one backward: with tensor operations each gate would be spread over all channels.
pub(crate) fn gated_sum(x: &Tensor, y: &Tensor, z: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        let gate = candle_nn::ops::sigmoid(z)?;
        let part = |x: &Tensor, i: usize| x.broadcast_mul(&gate.narrow(1, i, 1)?);
        return Ok((part(x, 0)? + part(y, 1)?)?);
    }
    Ok(x.contiguous()?.apply_op3(&y.contiguous()?, &z.contiguous()?, GatedSum)?)
}

struct GatedSum;

/// Both gates of one sample.
fn gates<T: WithDType>(z: &[T]) -> Vec<f64> {
    z.iter().map(|z| sigmoid_of(z.to_f64())).collect()
}

/// The values of a batch of samples of `n` elements.
fn sums<T: WithDType>(x: &[T], y: &[T], z: &[T], [n, area]: [usize; 2]) -> Vec<T> {
    let mut out = vec![T::zero(); x.len()];
    let inputs = (x.par_chunks(n), y.par_chunks(n), z.par_chunks(2 * area)).into_par_iter();
    out.par_chunks_mut(n).zip(inputs).for_each(|(out, (x, y, z))| {
        let gates = gates(z);
        let (first, second) = gates.split_at(area);
        for (out, (x, y)) in out.chunks_mut(area).zip(x.chunks(area).zip(y.chunks(area))) {
            for i in 0..area {
                out[i] = T::from_f64(x[i].to_f64() * first[i] + y[i].to_f64() * second[i]);
            }
        }
    });
    out
}

/// Gradients of one sample.
fn sample_gradient<T: WithDType>([x, y, z, g]: [&[T]; 4], [dx, dy, dz]: [&mut [T]; 3]) {
    let area = z.len() / 2;
    let gates = gates(z);
    let (first, second) = gates.split_at(area);
    let mut along = vec![0.0; z.len()];
    let (along_x, along_y) = along.split_at_mut(area);
    for at in (0..x.len()).step_by(area) {
        for i in 0..area {
            let g = g[at + i].to_f64();
            along_x[i] += g * x[at + i].to_f64();
            along_y[i] += g * y[at + i].to_f64();
            dx[at + i] = T::from_f64(g * first[i]);
            dy[at + i] = T::from_f64(g * second[i]);
        }
    }
    for ((dz, along), gate) in dz.iter_mut().zip(&along).zip(&gates) {
        *dz = T::from_f64(along * gate * (1.0 - gate));
    }
}

impl GatedSum {
    fn gradient<T: WithDType>([x, y, z, g]: [&Tensor; 4]) -> candle_core::Result<[Tensor; 3]> {
        let stored = [x, y, z, g].map(Tensor::storage_and_layout);
        let slices = stored.each_ref().map(|(storage, layout)| match &**storage {
            Storage::Cpu(storage) => slice::<T>(storage, layout),
            _ => Err(candle_core::Error::Msg("expected tensors on the CPU".into())),
        });
        let [xs, ys, zs, gs] = slices;
        let (xs, ys, zs, gs) = (xs?, ys?, zs?, gs?);
        let (b, c, h, w) = x.dims4()?;
        let (n, area) = (c * h * w, h * w);
        let [mut dx, mut dy, mut dz] = [b * n, b * n, b * 2 * area].map(|len| vec![T::zero(); len]);
        let inputs = (xs.par_chunks(n), ys.par_chunks(n), zs.par_chunks(2 * area), gs.par_chunks(n)).into_par_iter();
        let outputs = (dx.par_chunks_mut(n), dy.par_chunks_mut(n), dz.par_chunks_mut(2 * area)).into_par_iter();
        inputs.zip(outputs).for_each(|((x, y, z, g), (dx, dy, dz))| sample_gradient([x, y, z, g], [dx, dy, dz]));
        let tensor = |values: Vec<T>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok([tensor(dx, x)?, tensor(dy, y)?, tensor(dz, z)?])
    }
}

impl CustomOp3 for GatedSum {
    fn name(&self) -> &'static str {
        "gated sum"
    }
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, c, h, w) = l1.shape().dims4()?;
        by_float!(s1, T => {
            let out = sums(slice::<T>(s1, l1)?, slice::<T>(s2, l2)?, slice::<T>(s3, l3)?, [c * h * w, h * w]);
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }
    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let [dx, dy, dz] = match x.dtype() {
            candle_core::DType::F64 => Self::gradient::<f64>([x, y, z, &g])?,
            _ => Self::gradient::<f32>([x, y, z, &g])?,
        };
        Ok((Some(dx), Some(dy), Some(dz)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn value_and_gradients_are_those_of_the_composition() {
        let numbers = |n: usize, k: f64| (0..n).map(|i| 3.0 * (i as f64 * k).sin()).collect::<Vec<_>>();
        let var = |shape: (usize, usize, usize, usize), k: f64| {
            Var::from_vec(numbers(shape.0 * shape.1 * shape.2 * shape.3, k), shape, &Device::Cpu).unwrap()
        };
        let (x, y, z) = (var((2, 3, 2, 5), 1.7), var((2, 3, 2, 5), 2.3), var((2, 2, 2, 5), 0.9));
        let gate = candle_nn::ops::sigmoid(z.as_tensor()).unwrap();
        let part = |x: &Var, i: usize| x.broadcast_mul(&gate.narrow(1, i, 1).unwrap()).unwrap();
        let plain = (part(&x, 0) + part(&y, 1)).unwrap();
        let fused = gated_sum(&x, &y, &z).unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let close = |a: &Tensor, b: &Tensor| flat(a).iter().zip(&flat(b)).all(|(a, b)| (a - b).abs() < 1e-13);
        assert!(close(&plain, &fused));
        let grads = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let (expected, found) = (grads(&plain), grads(&fused));
        for var in [&x, &y, &z] {
            assert!(close(expected.get(var).unwrap(), found.get(var).unwrap()));
        }
    }
}
