//! Convolution and transposed convolution.

mod flat;
mod geometry;
mod op;
mod plan;
mod weight;

use candle_core::Tensor;

use crate::error::{Error, LIMIT, dims4, float, like, parameter, shape};
use crate::raw::by_dtype;
use crate::{Activation, Result, fallback};
use geometry::Geometry;
use op::{Conv, ConvBias, frozen};

/// Step, border, tap distance and channel groups of a convolution, `[vertical, horizontal]` each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Conv2dSpec {
    /// Step from output to output.
    pub stride: [usize; 2],
    /// Zeros on each side.
    pub padding: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Groups that the channels are split into; output group `g` sees input group `g` only.
    pub groups: usize,
}

impl Default for Conv2dSpec {
    fn default() -> Self {
        Self::new(1, 0)
    }
}

impl Conv2dSpec {
    /// The same stride and padding in both directions, dilation 1, one group.
    #[must_use]
    pub fn new(stride: usize, padding: usize) -> Self {
        Self { stride: [stride; 2], padding: [padding; 2], dilation: [1; 2], groups: 1 }
    }

    /// Sets the distance between taps in both directions.
    #[must_use]
    pub fn with_dilation(self, dilation: usize) -> Self {
        Self { dilation: [dilation; 2], ..self }
    }

    /// Sets the number of groups.
    #[must_use]
    pub fn with_groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Output size for an input and a kernel size: `floor((n + 2p - d(k - 1) - 1) / s) + 1`.
    ///
    /// # Errors
    ///
    /// A stride, dilation or kernel of 0, or a kernel that is larger than the padded input.
    pub fn output_size(&self, input: [usize; 2], kernel: [usize; 2]) -> Result<[usize; 2]> {
        const OP: &str = "conv2d";
        self.check(OP, kernel)?;
        let mut out = [0; 2];
        for i in 0..2 {
            let padded = input[i] + 2 * self.padding[i];
            let extent = self.dilation[i] * (kernel[i] - 1) + 1;
            if padded < extent {
                return Err(shape(
                    OP,
                    format!("padded input of at least {extent} in direction {i} for kernel {kernel:?}"),
                    padded,
                ));
            }
            out[i] = (padded - extent) / self.stride[i] + 1;
        }
        Ok(out)
    }

    fn check(&self, op: &'static str, kernel: [usize; 2]) -> Result<()> {
        let positive = [("stride", self.stride), ("dilation", self.dilation), ("kernel", kernel)];
        for (name, value) in positive {
            if value.iter().any(|v| !(1..=LIMIT).contains(v)) {
                return Err(parameter(op, name, "from 1 to 2^20", value));
            }
        }
        if self.padding.iter().any(|&p| p > LIMIT) {
            return Err(parameter(op, "padding", "at most 2^20", self.padding));
        }
        if self.groups == 0 {
            return Err(parameter(op, "groups", "at least 1", self.groups));
        }
        Ok(())
    }
}

/// Parameters of a transposed convolution, `[vertical, horizontal]` each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct ConvTranspose2dSpec {
    /// Step in the output from input to input.
    pub stride: [usize; 2],
    /// Rows and columns cut from each side of the output.
    pub padding: [usize; 2],
    /// Rows and columns added at the lower and right side; below the larger of stride and dilation.
    pub output_padding: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Groups that the channels are split into.
    pub groups: usize,
}

impl Default for ConvTranspose2dSpec {
    fn default() -> Self {
        Self::new(1, 0)
    }
}

impl ConvTranspose2dSpec {
    /// The same stride and padding in both directions, no output padding, dilation 1, one group.
    #[must_use]
    pub fn new(stride: usize, padding: usize) -> Self {
        Self { stride: [stride; 2], padding: [padding; 2], output_padding: [0; 2], dilation: [1; 2], groups: 1 }
    }

    /// Output size: `(n - 1) s - 2p + d(k - 1) + output_padding + 1`.
    ///
    /// # Errors
    ///
    /// A stride, dilation or kernel of 0, an output padding that is not below the larger of stride and dilation, an
    /// output without elements.
    pub fn output_size(&self, input: [usize; 2], kernel: [usize; 2]) -> Result<[usize; 2]> {
        const OP: &str = "conv_transpose2d";
        self.adjoint().check(OP, kernel)?;
        let mut out = [0; 2];
        for i in 0..2 {
            if self.output_padding[i] >= self.stride[i].max(self.dilation[i]) {
                return Err(parameter(
                    OP,
                    "output_padding",
                    "below the larger of stride and dilation",
                    self.output_padding,
                ));
            }
            let full = input[i].saturating_sub(1) * self.stride[i]
                + self.dilation[i] * (kernel[i] - 1)
                + self.output_padding[i]
                + 1;
            out[i] = full.saturating_sub(2 * self.padding[i]);
            if out[i] == 0 || input[i] == 0 {
                return Err(shape(OP, "an output with at least one element", input));
            }
        }
        Ok(out)
    }

    /// The convolution whose input gradient this is.
    fn adjoint(&self) -> Conv2dSpec {
        Conv2dSpec { stride: self.stride, padding: self.padding, dilation: self.dilation, groups: self.groups }
    }
}

/// Checks the weight and bias of an operation and returns the kernel's size.
fn check_weight(
    op: &'static str,
    (channels, groups): (usize, usize),
    input: &Tensor,
    weight: &Tensor,
    transposed: bool,
) -> Result<[usize; 4]> {
    let found = dims4(op, "weight", weight)?;
    if groups == 0 {
        return Err(parameter(op, "groups", "at least 1", groups));
    }
    let (fits, expected) = if transposed {
        (found[0] == channels && channels.is_multiple_of(groups), format!("weight [{channels}, O/{groups}, kh, kw]"))
    } else {
        let fits = found[1] * groups == channels && found[0].is_multiple_of(groups);
        (fits, format!("weight [O, {channels}/{groups}, kh, kw] with O a multiple of {groups}"))
    };
    if !fits {
        return Err(shape(op, expected, found));
    }
    like(op, "weight", weight, input.dtype(), &found)?;
    Ok(found)
}

fn geometry(op: &'static str, input: &Tensor, weight: &Tensor, spec: &Conv2dSpec) -> Result<Geometry> {
    float(op, input)?;
    let [batch, c_in, h, w] = dims4(op, "input", input)?;
    let [c_out, _, kh, kw] = check_weight(op, (c_in, spec.groups), input, weight, false)?;
    let output = spec.output_size([h, w], [kh, kw])?;
    Ok(Geometry { batch, c_in, c_out, input: [h, w], output, kernel: [kh, kw], spec: *spec })
}

/// Two-dimensional convolution (cross-correlation, as in every deep learning library).
///
/// `y[b, o, i, j] = bias[o] + sum over c, u, v of weight[o, c, u, v] * x[b, c, i s + u d - p, j s + v d - p]`.
///
/// # Shapes
///
/// `input`: `[B, I, H, W]`, `weight`: `[O, I / groups, kh, kw]`, `bias`: `[O]`.
/// Returns `[B, O, H', W']`, see [`Conv2dSpec::output_size`].
///
/// # Gradients
///
/// Into all three; each is skipped for an argument that tracks none.
///
/// # Errors
///
/// Wrong ranks, channel numbers, element types or parameters, an empty tensor, a kernel larger than the padded input.
pub fn conv2d(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: &Conv2dSpec) -> Result<Tensor> {
    const OP: &str = "conv2d";
    let geometry = geometry(OP, input, weight, spec)?;
    if let Some(bias) = bias {
        like(OP, "bias", bias, input.dtype(), &[geometry.c_out])?;
    }
    if !input.device().is_cpu() {
        return fallback::conv2d(input, weight, bias, spec);
    }
    apply(input, weight, bias, Conv { geometry, transposed: false })
}

fn apply(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: Conv) -> Result<Tensor> {
    let (input, weight) = (input.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        None => input.apply_op2(&weight, conv)?,
        Some(bias) => input.apply_op3(&weight, &bias.contiguous()?, ConvBias(conv))?,
    })
}

/// Convolution of a frozen network: `act(conv2d(input, weight, bias) + residual)` in one pass, forward only.
///
/// `residual` has the shape of the result; the other shapes are those of [`conv2d`].
///
/// # Errors
///
/// As for [`conv2d`], and any argument that tracks gradients: the result has no history.
pub fn conv2d_frozen(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    act: Activation,
    spec: &Conv2dSpec,
) -> Result<Tensor> {
    const OP: &str = "conv2d_frozen";
    let geometry = geometry(OP, input, weight, spec)?;
    let [oh, ow] = geometry.output;
    if let Some(bias) = bias {
        like(OP, "bias", bias, input.dtype(), &[geometry.c_out])?;
    }
    if let Some(residual) = residual {
        let expected = [geometry.batch, geometry.c_out, oh, ow];
        like(OP, "residual", residual, input.dtype(), &expected)?;
    }
    let arguments = [("input", Some(input)), ("weight", Some(weight)), ("bias", bias), ("residual", residual)];
    for (argument, tensor) in arguments {
        if tensor.is_some_and(Tensor::track_op) {
            return Err(Error::Tracked { op: OP, argument });
        }
    }
    if !input.device().is_cpu() {
        let y = fallback::conv2d(input, weight, bias, spec)?;
        return fallback::activate(residual.map_or(Ok(y.clone()), |r| &y + r)?, act);
    }
    Ok(by_dtype!(OP, input.dtype(), T => frozen::<T>(&geometry, (input, weight), (bias, residual), act))?)
}

/// Transposed convolution: the input gradient of a [`conv2d`] as an operation of its own.
///
/// # Shapes
///
/// `input`: `[B, I, H, W]`, `weight`: `[I, O / groups, kh, kw]`, `bias`: `[O]`.
/// Returns `[B, O, H', W']`, see [`ConvTranspose2dSpec::output_size`].
///
/// # Gradients
///
/// Into all three; each is skipped for an argument that tracks none.
///
/// # Errors
///
/// Wrong ranks, channel numbers, element types or parameters, an empty tensor or result.
pub fn conv_transpose2d(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    spec: &ConvTranspose2dSpec,
) -> Result<Tensor> {
    const OP: &str = "conv_transpose2d";
    float(OP, input)?;
    let [batch, channels, h, w] = dims4(OP, "input", input)?;
    let [_, per_group, kh, kw] = check_weight(OP, (channels, spec.groups), input, weight, true)?;
    let size = spec.output_size([h, w], [kh, kw])?;
    let c_out = per_group * spec.groups;
    if let Some(bias) = bias {
        like(OP, "bias", bias, input.dtype(), &[c_out])?;
    }
    if !input.device().is_cpu() {
        return fallback::conv_transpose2d(input, weight, bias, spec);
    }
    // The adjoint convolution runs from the result to the input.
    let geometry = Geometry {
        batch,
        c_in: c_out,
        c_out: channels,
        input: size,
        output: [h, w],
        kernel: [kh, kw],
        spec: spec.adjoint(),
    };
    apply(input, weight, bias, Conv { geometry, transposed: true })
}
