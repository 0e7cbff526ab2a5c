//! The error type.

use candle_core::{DType, Tensor};

/// What can go wrong in an operation of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A shape, rank or size does not fit.
    #[error("{op}: expected {expected}, found {found}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// What it expects.
        expected: String,
        /// What it was given.
        found: String,
    },
    /// The element type is not supported, or two arguments disagree.
    #[error("{op}: expected elements of type {expected}, found {found:?}")]
    DType {
        /// The operation.
        op: &'static str,
        /// What it expects.
        expected: String,
        /// What it was given.
        found: DType,
    },
    /// A parameter (stride, padding, epsilon ...) is out of range.
    #[error("{op}: {parameter} must be {expected}, found {found}")]
    Parameter {
        /// The operation.
        op: &'static str,
        /// Name of the parameter.
        parameter: &'static str,
        /// The allowed range.
        expected: String,
        /// What was given.
        found: String,
    },
    /// An argument tracks gradients although the operation has none for it.
    #[error("{op}: expected {argument} without gradient tracking, found a tracked tensor; detach it first")]
    Tracked {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
    },
    /// An index points outside of a table.
    #[error("{op}: expected indices below {len}, found {index} at position {position}")]
    Index {
        /// The operation.
        op: &'static str,
        /// The offending index.
        index: u32,
        /// Where in the list of indices it stands.
        position: usize,
        /// Rows of the table.
        len: usize,
    },
    /// candle reported an error.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn shape(op: &'static str, expected: impl Into<String>, found: impl std::fmt::Debug) -> Error {
    Error::Shape { op, expected: expected.into(), found: format!("{found:?}") }
}

pub(crate) fn parameter(
    op: &'static str,
    parameter: &'static str,
    expected: impl Into<String>,
    found: impl std::fmt::Debug,
) -> Error {
    Error::Parameter { op, parameter, expected: expected.into(), found: format!("{found:?}") }
}

/// Sizes and parameters above this are refused, which keeps every product far from overflow.
pub(crate) const LIMIT: usize = 1 << 20;

/// Elements above this are refused: no memory holds them.
pub(crate) const MOST: u128 = 1 << 34;

/// The four sizes of a `[B, C, H, W]` tensor; none may be zero.
pub(crate) fn dims4(op: &'static str, argument: &str, t: &Tensor) -> Result<[usize; 4]> {
    match *t.dims() {
        [b, c, h, w] if !t.dims().contains(&0) => {
            if t.dims().iter().map(|&n| n as u128).product::<u128>() > MOST {
                return Err(shape(op, format!("{argument} with at most {MOST} elements"), t.dims()));
            }
            Ok([b, c, h, w])
        }
        ref other => Err(shape(op, format!("{argument} with four dimensions, none of them zero"), other)),
    }
}

/// Checks that a tensor holds `f32` or `f64`.
pub(crate) fn float(op: &'static str, t: &Tensor) -> Result<()> {
    match t.dtype() {
        DType::F32 | DType::F64 => Ok(()),
        // Accelerators run candle's own operations, which know more types.
        _ if !t.device().is_cpu() && t.dtype().is_float() => Ok(()),
        found => Err(Error::DType { op, expected: "f32 or f64".into(), found }),
    }
}

/// Checks that `t` has the element type and the shape of a second operand.
pub(crate) fn like(op: &'static str, argument: &str, t: &Tensor, dtype: DType, dims: &[usize]) -> Result<()> {
    if t.dtype() != dtype {
        return Err(Error::DType { op, expected: format!("{dtype:?} ({argument})"), found: t.dtype() });
    }
    if t.dims() != dims {
        return Err(shape(op, format!("{argument} of shape {dims:?}"), t.dims()));
    }
    Ok(())
}
