//! What runs on a device other than the CPU: chains of candle operations whose gradients are right.

use candle_core::{Device, Tensor};

use crate::error::{parameter, shape};
pub use crate::norm::train_elsewhere;
use crate::{Activation, Conv2dSpec, ConvTranspose2dSpec, Result};

/// `x * [x > 0]`: candle's `relu` has derivative 1 at 0.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    let mask = x.detach().gt(0f64)?.to_dtype(x.dtype())?;
    Ok((x * mask)?)
}

/// `x * sign(x)`: candle's `abs` has derivative 1 at 0.
pub fn abs(x: &Tensor) -> Result<Tensor> {
    Ok((x * x.detach().sign()?)?)
}

pub(crate) fn activate(x: Tensor, act: Activation) -> Result<Tensor> {
    match act {
        Activation::None => Ok(x),
        Activation::Relu => relu(&x),
    }
}

/// Runs an operation on the host; copies between devices carry gradients.
pub(crate) fn on_host(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    Ok(f(&x.to_device(&Device::Cpu)?)?.to_device(x.device())?)
}

fn one(op: &'static str, name: &'static str, values: [usize; 2]) -> Result<usize> {
    if values[0] == values[1] {
        Ok(values[0])
    } else {
        Err(parameter(op, name, "equal in both directions on this device", values))
    }
}

fn add_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        None => Ok(y),
        Some(bias) => Ok(y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?),
    }
}

pub fn conv2d(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: &Conv2dSpec) -> Result<Tensor> {
    let stride = one("conv2d", "stride", spec.stride)?;
    let dilation = one("conv2d", "dilation", spec.dilation)?;
    let [vertical, horizontal] = spec.padding;
    let x = input.pad_with_zeros(2, vertical, vertical)?.pad_with_zeros(3, horizontal, horizontal)?;
    #[allow(clippy::disallowed_methods)] // reason: the accelerator's own kernel; the slow part is the CPU's
    let y = x.conv2d(weight, 0, stride, dilation, spec.groups)?;
    add_bias(y, bias)
}

pub fn conv_transpose2d(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    spec: &ConvTranspose2dSpec,
) -> Result<Tensor> {
    const OP: &str = "conv_transpose2d";
    if spec.groups != 1 {
        return Err(shape(OP, "one group on this device", spec.groups));
    }
    let y = input.conv_transpose2d(
        weight,
        one(OP, "padding", spec.padding)?,
        one(OP, "output_padding", spec.output_padding)?,
        one(OP, "stride", spec.stride)?,
        one(OP, "dilation", spec.dilation)?,
    )?;
    add_bias(y, bias)
}

/// `(x - mean) / sqrt(var + eps) * weight + bias`, all four of shape `[1, C, 1, 1]` or `[1, C]`.
pub(crate) fn normalise(
    x: &Tensor,
    [mean, var, weight, bias]: [&Tensor; 4],
    eps: f64,
    act: Activation,
) -> Result<Tensor> {
    let scale = weight.div(&(var + eps)?.sqrt()?)?;
    let y = x.broadcast_sub(mean)?.broadcast_mul(&scale)?.broadcast_add(bias)?;
    activate(y, act)
}
