//! Gradients that are scaled on their way back.

use crate::Result;
use candle_core::Tensor;

/// `x` itself, whose incoming gradient is multiplied by `factor`: `sg(x) + factor (x - sg(x))`, with `sg` a constant
/// copy.
///
/// `1 / K` is the intermediate-level rescaling of CL-ILR (Song and Chai 2018, arXiv 1805.11761), where K heads read one
/// trunk; a negative factor is a gradient reversal (Ganin and Lempitsky 2015, arXiv 1409.7495).
///
/// # Shapes
///
/// Any; the result has the shape of `x`. Its value is that of `x` where `x` is finite, NaN elsewhere.
///
/// # Errors
///
/// Fails if candle does.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Var};
/// let x = Var::new(&[3f32], &Device::Cpu)?;
/// let y = retort_losses::online::scale_gradient(&x, 0.25)?;
/// assert_eq!(y.to_vec1::<f32>()?, [3.0]);
/// assert_eq!(y.sum_all()?.backward()?.get(&x).unwrap().to_vec1::<f32>()?, [0.25]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn scale_gradient(x: &Tensor, factor: f64) -> Result<Tensor> {
    let constant = x.detach();
    Ok((&constant + ((x - &constant)? * factor)?)?)
}
