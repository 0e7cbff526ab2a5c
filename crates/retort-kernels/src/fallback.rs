//! What runs on a device other than the CPU: chains of candle operations whose gradients are right.

use candle_core::{Device, Tensor};

use crate::error::{parameter, shape};
use crate::{Activation, Conv2dSpec, ConvTranspose2dSpec, Result};

/// `x * [x > 0]`: candle's `relu` has derivative 1 at 0.
pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    let mask = x.detach().gt(0f64)?.to_dtype(x.dtype())?;
    Ok((x * mask)?)
}

/// `x * sign(x)`: candle's `abs` has derivative 1 at 0.
pub(crate) fn abs(x: &Tensor) -> Result<Tensor> {
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

pub(crate) fn conv2d(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: &Conv2dSpec) -> Result<Tensor> {
    let stride = one("conv2d", "stride", spec.stride)?;
    let dilation = one("conv2d", "dilation", spec.dilation)?;
    let [vertical, horizontal] = spec.padding;
    let x = input.pad_with_zeros(2, vertical, vertical)?.pad_with_zeros(3, horizontal, horizontal)?;
    #[allow(clippy::disallowed_methods)] // reason: the accelerator's own kernel; the slow part is the CPU's
    let y = x.conv2d(weight, 0, stride, dilation, spec.groups)?;
    add_bias(y, bias)
}

pub(crate) fn conv_transpose2d(
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    fn ramp(dims: &[usize]) -> Var {
        let count: usize = dims.iter().product();
        let values: Vec<f64> = (0..count).map(|i| (i * 37 % 101) as f64 / 50.0 - 1.0).collect();
        Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap()
    }

    /// Both give the same values and gradients on the CPU.
    fn same(ours: &Tensor, theirs: &Tensor, vars: &[&Var]) {
        let near = |a: &Tensor, b: &Tensor| {
            let d = (a - b).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(d < 1e-16, "{d}");
        };
        near(ours, theirs);
        let weights = ramp(ours.dims()).detach();
        let grads = [ours, theirs].map(|y| (y * &weights).unwrap().backward().unwrap());
        for var in vars {
            near(grads[0].get(var).unwrap(), grads[1].get(var).unwrap());
        }
    }

    #[test]
    fn convolutions_agree_with_the_kernels() {
        let (x, w, b) = (ramp(&[2, 4, 7, 7]), ramp(&[6, 2, 3, 3]), ramp(&[6]));
        let spec = Conv2dSpec { padding: [1, 2], ..Conv2dSpec::new(1, 0) }.with_groups(2);
        let theirs = conv2d(&x, &w, Some(&b), &spec).unwrap();
        same(&crate::conv2d(&x, &w, Some(&b), &spec).unwrap(), &theirs, &[&x, &w, &b]);
        let (w, spec) = (ramp(&[4, 3, 3, 3]), ConvTranspose2dSpec::new(2, 1));
        let theirs = conv_transpose2d(&x, &w, None, &spec).unwrap();
        same(&crate::conv_transpose2d(&x, &w, None, &spec).unwrap(), &theirs, &[&x, &w]);
    }

    #[test]
    fn activations_and_normalisation_agree_with_the_kernels() {
        let (x, w, b) = (ramp(&[3, 2, 4, 5]), ramp(&[2]), ramp(&[2]));
        same(&crate::relu(&x).unwrap(), &relu(&x).unwrap(), &[&x]);
        same(&crate::abs(&x).unwrap(), &abs(&x).unwrap(), &[&x]);
        let act = Activation::Relu;
        let (ours, stats) = crate::batch_norm_train(&x, &w, &b, 1e-5, act).unwrap();
        let (theirs, other) = crate::norm::train_elsewhere(&x, &w, &b, 1e-5, act, 60).unwrap();
        same(&ours, &theirs, &[&x, &w, &b]);
        assert!(stats.var.iter().zip(&other.var).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn unequal_directions_are_refused() {
        let (x, w) = (ramp(&[1, 1, 5, 5]), ramp(&[1, 1, 1, 1]));
        let spec = Conv2dSpec { stride: [1, 2], ..Conv2dSpec::new(1, 0) };
        assert!(conv2d(&x, &w, None, &spec).unwrap_err().to_string().contains("stride"));
    }
}
