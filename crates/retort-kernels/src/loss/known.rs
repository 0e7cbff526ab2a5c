//! Scalars whose gradient is known.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Tensor};

use crate::Result;
use crate::error::{float, like};
use crate::raw::{by_dtype, dtype};
use crate::simd::Float;

struct Known {
    value: f64,
    gradient: Tensor,
}

impl CustomOp1 for Known {
    fn name(&self) -> &'static str {
        "with_gradient"
    }
    fn cpu_fwd(&self, s: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!("with_gradient", dtype(s), T => {
            Ok((candle_core::WithDType::to_cpu_storage_owned(vec![T::of(self.value)]), ().into()))
        })
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        match g.to_dtype(DType::F64)?.to_scalar::<f64>()? {
            1.0 => Ok(Some(self.gradient.clone())),
            g => self.gradient.affine(g, 0.0).map(Some),
        }
    }
}

/// The scalar `value`, whose gradient with respect to `x` is the constant `gradient`.
///
/// For losses with a gradient in closed form: nothing that was needed to work it out stays in the graph, and nothing
/// that changes between forward and backward can spoil it.
/// Where `x` tracks no gradient the result is a constant.
///
/// # Shapes
///
/// `gradient`: that of `x`; its own history is ignored. Returns a scalar of the type of `x`.
///
/// # Errors
///
/// Two shapes or element types that differ, or elements that are neither `f32` nor `f64`.
pub fn with_gradient(value: f64, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    const OP: &str = "with_gradient";
    float(OP, x)?;
    like(OP, "gradient", gradient, x.dtype(), x.dims())?;
    if !x.track_op() {
        return Ok(Tensor::full(value, (), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())?);
    }
    let gradient = gradient.detach().contiguous()?;
    if !x.device().is_cpu() {
        return Ok(((x - x.detach())? * gradient)?.sum_all()?.affine(1.0, value)?);
    }
    Ok(x.contiguous()?.apply_op1(Known { value, gradient })?)
}
