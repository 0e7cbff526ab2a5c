//! Convolution and transposed convolution.

pub(crate) mod geometry;
pub(crate) mod plan;

use candle_core::{DType, Tensor};

use crate::error::{LIMIT, MOST, dims4, float, like, parameter, shape};
use crate::{Activation, FeatureMap, Result};
use geometry::Geometry;

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
    dtype: DType,
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
        let fits = found[1].checked_mul(groups) == Some(channels) && found[0].is_multiple_of(groups);
        (fits, format!("weight [O, {channels}/{groups}, kh, kw] with O a multiple of {groups}"))
    };
    if !fits {
        return Err(shape(op, expected, found));
    }
    like(op, "weight", weight, dtype, &found)?;
    Ok(found)
}

pub(crate) fn checked_geometry(
    op: &'static str,
    ([batch, c_in, h, w], dtype): ([usize; 4], DType),
    weight: &Tensor,
    spec: &Conv2dSpec,
) -> Result<Geometry> {
    let [c_out, _, kh, kw] = check_weight(op, (c_in, spec.groups), dtype, weight, false)?;
    let output = spec.output_size([h, w], [kh, kw])?;
    check_planes(op, batch, (c_in, c_out), ([h, w], output), spec)?;
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
    float("conv2d", input)?;
    dims4("conv2d", "input", input)?;
    FeatureMap::from_tensor(input)?.conv2d(weight, bias, None, Activation::None, spec)?.to_tensor()
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
    float("conv_transpose2d", input)?;
    dims4("conv_transpose2d", "input", input)?;
    FeatureMap::from_tensor(input)?.conv_transpose2d(weight, bias, Activation::None, spec)?.to_tensor()
}

/// Refuses sizes that no memory holds: the padded planes of either side.
fn check_planes(
    op: &'static str,
    batch: usize,
    (c_in, c_out): (usize, usize),
    (input, output): ([usize; 2], [usize; 2]),
    spec: &Conv2dSpec,
) -> Result<()> {
    let side = |channels: usize, size: [usize; 2]| {
        let padded = |i: usize| (size[i] + 2 * spec.padding[i]) as u128;
        batch as u128 * channels.next_multiple_of(16) as u128 * padded(0) * padded(1)
    };
    let elements = side(c_in, input).max(side(c_out, output));
    if elements > MOST {
        return Err(shape(op, format!("padded maps of at most {MOST} elements"), elements));
    }
    Ok(())
}

/// The convolution whose input gradient a transposed convolution is.
pub(crate) fn checked_adjoint(
    ([batch, channels, h, w], dtype): ([usize; 4], DType),
    weight: &Tensor,
    bias: Option<&Tensor>,
    spec: &ConvTranspose2dSpec,
) -> Result<Geometry> {
    const OP: &str = "conv_transpose2d";
    let [_, per_group, kh, kw] = check_weight(OP, (channels, spec.groups), dtype, weight, true)?;
    let size = spec.output_size([h, w], [kh, kw])?;
    let c_out = per_group * spec.groups;
    if let Some(bias) = bias {
        like(OP, "bias", bias, dtype, &[c_out])?;
    }
    check_planes(OP, batch, (c_out, channels), (size, [h, w]), &spec.adjoint())?;
    // The adjoint convolution runs from the result to the input.
    Ok(Geometry {
        batch,
        c_in: c_out,
        c_out: channels,
        input: size,
        output: [h, w],
        kernel: [kh, kw],
        spec: spec.adjoint(),
    })
}
