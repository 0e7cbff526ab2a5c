//! Constant target distributions.

use crate::online::terms::{narrow, wide};
use crate::online::total;
use crate::{Result, Term, ops, reduce};
use candle_core::{Device, Tensor};

/// `-(1 / B) sum_b sum_c q_bc ln softmax(z_b / T)[c]` with a constant `q` of the shape of `z`; the rows of `q` may have
/// any sum. In f64.
pub(super) fn cross_entropy(logits: &Tensor, target: &Tensor, temperature: f64) -> Result<Tensor> {
    let log_p = ops::log_softmax(&(wide(logits)? / temperature)?)?;
    let sum = reduce::sum_all(&(log_p * wide(&target.detach())?)?)?;
    narrow(&(sum * (-1.0 / logits.dims()[0] as f64))?, logits)
}

/// `(1 / B) sum_b KL(q_b || softmax(z_b / T))` with a constant `q`; a probability of 0 contributes 0.
pub(super) fn divergence(logits: &Tensor, target: &Tensor, temperature: f64) -> Result<Tensor> {
    let log_p = ops::log_softmax(&(wide(logits)? / temperature)?)?;
    let cross = reduce::sum_all(&(log_p * wide(&target.detach())?)?)?;
    let entropy: f64 = reduce::wide(target)?.into_iter().map(x_ln_x).sum();
    let b = logits.dims()[0] as f64;
    narrow(&cross.affine(-1.0 / b, entropy / b)?, logits)
}

/// `x ln x`, 0 at 0; NaN stays NaN.
pub(super) fn x_ln_x(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x * x.ln() }
}

/// For each label the classes other than it, in ascending order, `[B, C - 1]`; C is at least 2.
pub(super) fn wrong_classes(ids: &[u32], classes: usize, device: &Device) -> Result<Tensor> {
    let others: Vec<u32> = ids.iter().flat_map(|&y| (0..classes as u32).filter(move |&c| c != y)).collect();
    Ok(Tensor::from_vec(others, (ids.len(), classes - 1), device)?)
}

/// `share onehot(y)`, without history, of the type of `like` `[B, C]`.
pub(super) fn one_hot(ids: &[u32], share: f64, like: &Tensor) -> Result<Tensor> {
    let (b, c) = like.dims2()?;
    let mut values = vec![0.0; b * c];
    ids.iter().enumerate().for_each(|(row, &y)| values[row * c + y as usize] = share);
    Ok(Tensor::from_vec(values, (b, c), &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())?)
}

/// Several terms as one of a [`LossConfig`](crate::LossConfig), whose parts are their values.
pub(super) fn as_one(name: &'static str, weight: f64, terms: &[Term]) -> Result<Term> {
    let parts = terms.iter().map(|term| (term.name.to_string(), term.value.clone())).collect();
    Ok(Term { name, weight, value: total(terms)?, parts })
}
