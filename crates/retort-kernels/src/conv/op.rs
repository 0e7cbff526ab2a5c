//! The candle operations.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};

use super::flat::{Epilogue, convolve, input_gradient};
use super::geometry::Geometry;
use super::weight::{bias_gradient, weight_gradient};
use crate::raw::{by_dtype, dtype, slice, tensor, with_slice};
use crate::simd::Float;
use crate::{Activation, isa};

/// A convolution without bias.
pub(super) struct Conv {
    pub(super) geometry: Geometry,
    /// The operation is the adjoint: its input has the shape of the geometry's output.
    pub(super) transposed: bool,
}

impl Conv {
    fn output_shape(&self) -> Shape {
        let g = &self.geometry;
        if self.transposed {
            (g.batch, g.c_in, g.input[0], g.input[1]).into()
        } else {
            (g.batch, g.c_out, g.output[0], g.output[1]).into()
        }
    }

    fn forward<T: Float>(&self, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
        let set = isa::current();
        if self.transposed {
            input_gradient(set, &self.geometry, x, w, bias)
        } else {
            convolve(set, &self.geometry, x, w, Epilogue { bias, ..Epilogue::NONE })
        }
    }

    /// The gradients of input and weight, where they are wanted.
    fn backward<T: Float>(
        &self,
        input: &Tensor,
        weight: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let set = isa::current();
        let geometry = &self.geometry;
        let dx = input.track_op().then(|| {
            let dx = with_slice::<T, _>(g, |g| {
                with_slice::<T, _>(weight, |w| {
                    if self.transposed {
                        convolve(set, geometry, g, w, Epilogue::NONE)
                    } else {
                        input_gradient(set, geometry, g, w, None)
                    }
                })
            })??;
            tensor(dx, input.shape())
        });
        let dw = weight.track_op().then(|| {
            // Of the adjoint: the convolution's input is the operation's output.
            let (x, dy) = if self.transposed { (g, input) } else { (input, g) };
            let dw = with_slice::<T, _>(x, |x| with_slice::<T, _>(dy, |dy| weight_gradient(set, geometry, x, dy)))??;
            tensor(dw, weight.shape())
        });
        Ok((dx.transpose()?, dw.transpose()?))
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("conv2d", dtype(s1), T => {
            let y = self.forward::<T>(slice(s1, l1)?, slice(s2, l2)?, None);
            Ok((candle_core::WithDType::to_cpu_storage_owned(y), self.output_shape()))
        })
    }
    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        by_dtype!("conv2d", input.dtype(), T => self.backward::<T>(input, weight, &g))
    }
}

/// A convolution with bias.
pub(super) struct ConvBias(pub(super) Conv);

impl CustomOp3 for ConvBias {
    fn name(&self) -> &'static str {
        "conv2d"
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
        by_dtype!("conv2d", dtype(s1), T => {
            let y = self.0.forward::<T>(slice(s1, l1)?, slice(s2, l2)?, Some(slice(s3, l3)?));
            Ok((candle_core::WithDType::to_cpu_storage_owned(y), self.0.output_shape()))
        })
    }
    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (_, channels, h, w) = g.dims4()?;
        by_dtype!("conv2d", input.dtype(), T => {
            let (dx, dw) = self.0.backward::<T>(input, weight, &g)?;
            let db = bias.track_op().then(|| {
                let db = with_slice::<T, _>(&g, |g| bias_gradient(channels, h * w, g))?;
                tensor(db, channels)
            });
            Ok((dx, dw, db.transpose()?))
        })
    }
}

/// The fused forward pass of a frozen network.
pub(super) fn frozen<T: Float>(
    geometry: &Geometry,
    (input, weight): (&Tensor, &Tensor),
    (bias, residual): (Option<&Tensor>, Option<&Tensor>),
    act: Activation,
) -> candle_core::Result<Tensor> {
    let (input, weight) = (input.contiguous()?, weight.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let bias: Option<Vec<T>> = bias.map(|b| with_slice(&b, <[T]>::to_vec)).transpose()?;
    let bias = bias.as_deref();
    let run = |residual: Option<&[T]>| {
        with_slice::<T, _>(&input, |x| {
            with_slice::<T, _>(&weight, |w| convolve(isa::current(), geometry, x, w, Epilogue { bias, residual, act }))
        })
    };
    let y = match &residual {
        None => run(None)??,
        Some(residual) => with_slice::<T, _>(residual, |r| run(Some(r)))???,
    };
    tensor(y, (geometry.batch, geometry.c_out, geometry.output[0], geometry.output[1]))
}
