//! Objective of the conditional density-ratio network of cGAN-KD.

use super::discrepancy::attach;
use crate::config::check;
use crate::{Result, ops, reduce};
use candle_core::Tensor;

const METHOD: &str = "cdre-softplus";

/// Softplus objective of a density-ratio network (cGAN-KD; Ding et al. 2023, arXiv 2104.03164):
/// `mean sigmoid(k) k - mean softplus(k) - mean sigmoid(r) + lambda (mean k - 1)^2`.
///
/// # Shapes
///
/// `real` (`r`): outputs of the network on real samples; `fake` (`k`): on generated ones; any shapes, not empty.
///
/// # Gradients
///
/// Into both: the network is what is trained.
///
/// # Errors
///
/// An empty tensor, a negative `lambda`.
///
/// # Example
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// let zeros = Tensor::zeros((4, 1), DType::F64, &Device::Cpu)?;
/// let loss = retort_losses::distribution::cdre_softplus(&zeros, &zeros, 0.5)?;
/// assert!((loss.to_scalar::<f64>()? + 2f64.ln()).abs() < 1e-12); // -ln 2 - 1/2 + 1/2
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn cdre_softplus(real: &Tensor, fake: &Tensor, lambda: f64) -> Result<Tensor> {
    check::non_negative(METHOD, "lambda", lambda)?;
    ops::samples(METHOD, "ratios of real samples", real)?;
    ops::samples(METHOD, "ratios of generated samples", fake)?;
    let (r, k) = (reduce::wide(real)?, reduce::wide(fake)?);
    let (m, n) = (r.len() as f64, k.len() as f64);
    let slope = |x: f64| reduce::sigmoid_of(x) * reduce::sigmoid_of(-x);
    let beyond = k.iter().sum::<f64>() / n - 1.0;
    let matched = k.iter().map(|&k| reduce::sigmoid_of(k) * k - reduce::softplus_of(k)).sum::<f64>() / n;
    let of_fake = matched + lambda * beyond * beyond;
    let of_real = -r.iter().map(|&r| reduce::sigmoid_of(r)).sum::<f64>() / m;
    // The derivative of the softplus cancels that of the factor k.
    let grad_fake: Vec<f64> = k.iter().map(|&k| (slope(k) * k + 2.0 * lambda * beyond) / n).collect();
    let grad_real: Vec<f64> = r.iter().map(|&r| -slope(r) / m).collect();
    Ok((attach(of_fake, fake, &grad_fake)? + attach(of_real, real, &grad_real)?)?)
}
