//! Batch normalisation with its activation (Ioffe and Szegedy 2015, arXiv 1502.03167).

mod kernels;

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};

use crate::error::{Error, float, like, parameter, shape};
use crate::raw::{by_dtype, dtype, slice, tensor, to_f64, with_slice};
use crate::{Activation, Result, fallback, isa};
use kernels::{Maps, backward, forward, statistics};

/// Mean and variance of each channel of one batch.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct BatchStats {
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Biased variance of each channel: the sum of squared deviations divided by `count`.
    pub var: Vec<f64>,
    /// Elements of a channel: `B * H * W`.
    pub count: usize,
}

impl BatchStats {
    /// The variance with divisor `count - 1`, which the running variance is updated with.
    #[must_use]
    pub fn unbiased_var(&self) -> Vec<f64> {
        let factor = self.count as f64 / (self.count as f64 - 1.0);
        self.var.iter().map(|v| v * factor).collect()
    }
}

/// Batch normalisation; the arguments are input, weight and bias.
struct BatchNorm {
    /// Given (evaluation) or filled by the forward pass (training).
    stats: Arc<OnceLock<BatchStats>>,
    /// Whether the statistics depend on the input.
    train: bool,
    eps: f64,
    act: Activation,
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let maps = Maps::of(l1.dims());
        by_dtype!("batch_norm", dtype(s1), T => {
            let x = slice::<T>(s1, l1)?;
            let set = isa::current();
            let stats = self.stats.get_or_init(|| statistics(set, maps, x));
            let affine = (slice::<T>(s2, l2)?, slice::<T>(s3, l3)?);
            let y = forward(set, maps, x, &maps.channels(stats, affine, self.eps), self.act);
            Ok((candle_core::WithDType::to_cpu_storage_owned(y), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(stats) = self.stats.get() else {
            candle_core::bail!("batch_norm: backward before forward");
        };
        let maps = Maps::of(x.dims());
        let g = g.contiguous()?;
        by_dtype!("batch_norm", x.dtype(), T => {
            let w = with_slice::<T, _>(weight, <[T]>::to_vec)?;
            let b = with_slice::<T, _>(bias, <[T]>::to_vec)?;
            let channels = maps.channels(stats, (&w, &b), self.eps);
            let wanted = x.track_op();
            let out = with_slice::<T, _>(x, |x| with_slice::<T, _>(&g, |g| {
                backward(isa::current(), maps, (x, g), &channels, (self.train, wanted, self.act))
            }))??;
            let dx = out.input.map(|dx| tensor(dx, x.shape())).transpose()?;
            let dw = weight.track_op().then(|| tensor(out.weight, weight.shape())).transpose()?;
            let db = bias.track_op().then(|| tensor(out.bias, bias.shape())).transpose()?;
            Ok((dx, dw, db))
        })
    }
}

/// Checks the arguments and returns the channels and the elements of a channel.
fn checked(op: &'static str, x: &Tensor, vectors: &[(&str, &Tensor)], eps: f64) -> Result<(usize, usize)> {
    float(op, x)?;
    let (c, count) = match *x.dims() {
        [b, c] if b * c > 0 => (c, b),
        [b, c, h, w] if b * c * h * w > 0 => (c, b * h * w),
        ref other => return Err(shape(op, "input [B, C, H, W] or [B, C], no dimension zero", other)),
    };
    for (name, vector) in vectors {
        like(op, name, vector, x.dtype(), &[c])?;
    }
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(parameter(op, "eps", "finite and not negative", eps));
    }
    Ok((c, count))
}

/// `[C]` to the shape that broadcasts along the channels of `x`.
pub(crate) fn along(vector: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut dims = vec![1; x.rank()];
    dims[1] = vector.dims1()?;
    Ok(vector.reshape(dims)?)
}

/// Batch normalisation with the statistics of this batch, and its activation.
///
/// `y = act((x - mean) / sqrt(var + eps) * weight + bias)` with mean and biased variance over all axes but the
/// channels; they are accumulated in `f64`.
/// The caller updates running averages from the returned statistics
/// (PyTorch: `(1 - momentum) * running + momentum * batch`, with [`BatchStats::unbiased_var`]).
///
/// # Shapes
///
/// `input`: `[B, C, H, W]` or `[B, C]`; `weight`, `bias`: `[C]`.
///
/// # Gradients
///
/// Into all three, through the statistics too; the returned [`BatchStats`] are numbers and carry none.
///
/// # Errors
///
/// Wrong shapes or element types, a negative `eps`, and a batch with a single value per channel, whose variance would
/// be 0 whatever the input.
pub fn batch_norm_train(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    act: Activation,
) -> Result<(Tensor, BatchStats)> {
    const OP: &str = "batch_norm_train";
    let (_, count) = checked(OP, input, &[("weight", weight), ("bias", bias)], eps)?;
    if count < 2 {
        return Err(shape(OP, "more than one value per channel", input.dims()));
    }
    if !input.device().is_cpu() {
        return train_elsewhere(input, weight, bias, eps, act, count);
    }
    let stats = Arc::new(OnceLock::new());
    let op = BatchNorm { stats: Arc::clone(&stats), train: true, eps, act };
    let y = input.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?;
    Ok((y, stats.get().cloned().unwrap_or_default()))
}

/// [`batch_norm_train`] as a chain of candle's operations; `count` values a channel.
pub fn train_elsewhere(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    act: Activation,
    count: usize,
) -> Result<(Tensor, BatchStats)> {
    let axes: Vec<usize> = (0..input.rank()).filter(|&axis| axis != 1).collect();
    let mean = input.mean_keepdim(axes.as_slice())?;
    let var = input.broadcast_sub(&mean)?.sqr()?.mean_keepdim(axes.as_slice())?;
    let stats = BatchStats { mean: to_f64(&mean)?, var: to_f64(&var)?, count };
    let vectors = [&mean, &var, &along(weight, input)?, &along(bias, input)?];
    Ok((fallback::normalise(input, vectors, eps, act)?, stats))
}

/// Batch normalisation with given statistics, and its activation: formula and shapes of [`batch_norm_train`].
///
/// # Gradients
///
/// Into `input`, `weight` and `bias`; the running statistics are constants.
///
/// # Errors
///
/// Wrong shapes or element types, a negative `eps`, running statistics with a history (a plain variable is a constant
/// here).
pub fn batch_norm_eval(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    running_mean: &Tensor,
    running_var: &Tensor,
    eps: f64,
    act: Activation,
) -> Result<Tensor> {
    const OP: &str = "batch_norm_eval";
    let vectors =
        [("weight", weight), ("bias", bias), ("running mean", running_mean), ("running variance", running_var)];
    let (_, count) = checked(OP, input, &vectors, eps)?;
    for (argument, vector) in &vectors[2..] {
        // A buffer may be kept as a variable; only a history is a mistake.
        if vector.track_op() && !vector.is_variable() {
            return Err(Error::Tracked { op: OP, argument });
        }
    }
    if !input.device().is_cpu() {
        let (mean, var) = (along(&running_mean.detach(), input)?, along(&running_var.detach(), input)?);
        let vectors = [&mean, &var, &along(weight, input)?, &along(bias, input)?];
        return fallback::normalise(input, vectors, eps, act);
    }
    let stats = BatchStats { mean: to_f64(running_mean)?, var: to_f64(running_var)?, count };
    let op = BatchNorm { stats: Arc::new(OnceLock::from(stats)), train: false, eps, act };
    Ok(input.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?)
}
