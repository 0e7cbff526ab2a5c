//! What the heads of this crate are made of besides the layers of [`retort_nn::Head`].

use candle_core::{D, Tensor};
use retort_kernels::global_avg_pool2d;

/// Refuses another number of arguments.
pub(crate) fn check_count(what: &str, of: &str, expected: usize, found: usize) -> retort_nn::Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(retort_nn::Error::invalid(what, format!("expected {expected} {of}, found {found}")))
}

/// Over the last dimension; the shift that keeps the exponentials in range is a constant.
pub(crate) fn softmax(x: &Tensor) -> retort_nn::Result<Tensor> {
    let exp = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    Ok(exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?)
}

/// `1 / (1 + exp(-x))`, without overflow.
pub(crate) fn sigmoid(x: &Tensor) -> retort_nn::Result<Tensor> {
    Ok((((x * 0.5)?.tanh()? + 1.0)? * 0.5)?)
}

/// `sum_k shares[:, k] rows[k]`.
pub(crate) fn mix(shares: &Tensor, rows: &[Tensor]) -> retort_nn::Result<Tensor> {
    if shares.rank() != 2 || shares.dims()[1] != rows.len() || rows.is_empty() {
        let message = format!("expected as many shares as rows, found {:?} and {}", shares.dims(), rows.len());
        return Err(retort_nn::Error::invalid("mix", message));
    }
    // [B, 1, K] x [B, K, C].
    Ok(shares.unsqueeze(1)?.matmul(&Tensor::stack(rows, 1)?)?.squeeze(1)?)
}

/// `[B, C, H, W]` to `[B, C]`.
pub(crate) fn pooled(map: &Tensor) -> retort_nn::Result<Tensor> {
    Ok(global_avg_pool2d(map)?)
}
