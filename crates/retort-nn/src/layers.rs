//! Layers: a few tensors and one kernel call each.

use crate::{Buffer, Error, Init, Mode, Result, Scope, StageNorm};
use candle_core::{DType, Tensor};
use retort_kernels::{Activation, BatchStats, Conv2dSpec, FeatureMap, batch_norm_eval, batch_norm_train};

/// 2-D convolution, weight `[C_out, C_in / groups, k_h, k_w]` under `weight`, optional `bias`.
#[derive(Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    spec: Conv2dSpec,
}

impl Conv2d {
    /// A convolution without bias whose weight has `shape` and starts by `init`.
    ///
    /// # Errors
    ///
    /// See [`Scope::weight`].
    pub fn new(scope: &Scope, shape: [usize; 4], spec: Conv2dSpec, init: Init) -> Result<Self> {
        Ok(Self { weight: scope.weight("weight", &shape, init)?, bias: None, spec })
    }

    /// The same with a bias that starts by `bias`.
    ///
    /// # Errors
    ///
    /// See [`Scope::weight`].
    pub fn with_bias(scope: &Scope, shape: [usize; 4], spec: Conv2dSpec, init: Init, bias: Init) -> Result<Self> {
        let mut conv = Self::new(scope, shape, spec, init)?;
        conv.bias = Some(scope.weight("bias", &shape[..1], bias)?);
        Ok(conv)
    }

    /// `[C_out, C_in / groups, k_h, k_w]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 4] {
        <[usize; 4]>::try_from(self.weight.dims()).expect("the weight was declared with four dimensions")
    }

    /// Step, border, tap distance and groups.
    #[must_use]
    pub fn spec(&self) -> &Conv2dSpec {
        &self.spec
    }

    /// `[B, C_in, H, W]` to `[B, C_out, H', W']`.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit.
    pub fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        self.forward_with(x, None, Activation::None)
    }

    /// `act(conv(x) + residual)` in one pass.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit.
    pub fn forward_with(
        &self,
        x: &FeatureMap,
        residual: Option<&FeatureMap>,
        activation: Activation,
    ) -> Result<FeatureMap> {
        Ok(x.conv2d(&self.weight, self.bias.as_ref(), residual, activation, &self.spec)?)
    }
}

/// Fully connected layer `y = x W^T + b`, weight `[out, in]`.
#[derive(Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// With PyTorch's default initialisation of weight and bias.
    ///
    /// # Errors
    ///
    /// See [`Scope::weight`].
    pub fn new(scope: &Scope, inputs: usize, outputs: usize) -> Result<Self> {
        let shape = [outputs, inputs];
        Self::with_init(scope, inputs, outputs, Init::PyTorch, Some(Init::pytorch_bias(&shape)))
    }

    /// With the given initialisation; no bias where `bias` is `None`.
    ///
    /// # Errors
    ///
    /// See [`Scope::weight`].
    pub fn with_init(scope: &Scope, inputs: usize, outputs: usize, weight: Init, bias: Option<Init>) -> Result<Self> {
        let weight = scope.weight("weight", &[outputs, inputs], weight)?;
        let bias = bias.map(|init| scope.weight("bias", &[outputs], init)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// The same stored as a 1x1 convolution, its weight `[out, in, 1, 1]`, with PyTorch's default initialisation.
    ///
    /// # Errors
    ///
    /// See [`Scope::weight`].
    pub fn pointwise(scope: &Scope, inputs: usize, outputs: usize) -> Result<Self> {
        let shape = [outputs, inputs, 1, 1];
        let weight = scope.weight("weight", &shape, Init::PyTorch)?;
        let bias = scope.weight("bias", &[outputs], Init::pytorch_bias(&shape))?;
        // A view: it follows the stored tensor, and gradients pass through it.
        Ok(Self { weight: weight.reshape((outputs, inputs))?, bias: Some(bias) })
    }

    /// `[out, in]`.
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[out]`, where there is one.
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `[B, in]` to `[B, out]`.
    ///
    /// # Errors
    ///
    /// Another width than `in`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

/// Batch normalisation by PyTorch's rule, for `[B, C, H, W]` and `[B, C]` (Ioffe and Szegedy 2015, arXiv 1502.03167).
///
/// Training: `y = w (x - mean) / sqrt(var + eps) + b` with the biased variance of the batch;
/// `running <- (1 - m) running + m batch` with the unbiased variance, m = 0.1, eps = 1e-5.
/// Evaluation: the same formula with the running statistics.
/// Every forward pass in training mode updates the statistics, also a second one of the same batch, as in PyTorch.
#[derive(Clone)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Buffer,
    running_var: Buffer,
    eps: f64,
    momentum: f64,
    frozen: bool,
}

impl BatchNorm {
    /// Over `channels`, starting at weight 1, bias 0, running mean 0 and variance 1.
    ///
    /// # Errors
    ///
    /// See [`Scope::weight`].
    pub fn new(scope: &Scope, channels: usize) -> Result<Self> {
        Self::with_weight(scope, channels, 1.0)
    }

    /// The same, starting at another weight; a residual branch that ends at weight 0 starts as the identity.
    ///
    /// # Errors
    ///
    /// See [`Scope::weight`].
    pub fn with_weight(scope: &Scope, channels: usize, weight: f64) -> Result<Self> {
        Ok(Self {
            weight: scope.weight("weight", &[channels], Init::Constant(weight))?,
            bias: scope.weight("bias", &[channels], Init::Constant(0.0))?,
            running_mean: scope.buffer("running_mean", &[channels], 0.0)?,
            running_var: scope.buffer("running_var", &[channels], 1.0)?,
            eps: 1e-5,
            momentum: 0.1,
            frozen: scope.is_frozen(),
        })
    }

    /// Normalises and activates feature maps.
    ///
    /// # Errors
    ///
    /// One value per channel in training mode (the variance is undefined), or training mode in a frozen network.
    pub fn forward(&self, x: &FeatureMap, mode: Mode, activation: Activation) -> Result<FeatureMap> {
        let affine = [&self.weight, &self.bias];
        if mode == Mode::Eval {
            let running = [&self.running_mean.get(), &self.running_var.get()];
            return Ok(x.batch_norm_eval(affine, running, self.eps, activation)?);
        }
        self.check_mode(mode)?;
        let (y, stats) = x.batch_norm_train(affine, self.eps, activation)?;
        self.track(&stats, mode)?;
        Ok(y)
    }

    /// The same for vectors, `[B, C]`.
    ///
    /// # Errors
    ///
    /// As for [`BatchNorm::forward`].
    pub fn forward_vectors(&self, x: &Tensor, mode: Mode, activation: Activation) -> Result<Tensor> {
        if mode == Mode::Eval {
            let (mean, var) = (self.running_mean.get(), self.running_var.get());
            return Ok(batch_norm_eval(x, &self.weight, &self.bias, &mean, &var, self.eps, activation)?);
        }
        self.check_mode(mode)?;
        let (y, stats) = batch_norm_train(x, &self.weight, &self.bias, self.eps, activation)?;
        self.track(&stats, mode)?;
        Ok(y)
    }

    /// Weight and bias, detached.
    #[must_use]
    pub fn stage_norm(&self) -> StageNorm {
        StageNorm { weight: self.weight.detach(), bias: self.bias.detach() }
    }

    fn check_mode(&self, mode: Mode) -> Result<()> {
        if self.frozen && mode == Mode::Train {
            return Err(Error::invalid("batch norm", "a frozen network has no training mode"));
        }
        Ok(())
    }

    fn track(&self, stats: &BatchStats, mode: Mode) -> Result<()> {
        if mode != Mode::Train {
            return Ok(());
        }
        self.update(&self.running_mean, stats.mean.clone())?;
        self.update(&self.running_var, stats.unbiased_var())
    }

    fn update(&self, buffer: &Buffer, batch: Vec<f64>) -> Result<()> {
        let old = buffer.get();
        let values: Vec<f64> = old.to_dtype(DType::F64)?.to_vec1()?;
        let m = self.momentum;
        let new: Vec<f64> = values.iter().zip(batch).map(|(r, b)| (1.0 - m) * r + m * b).collect();
        buffer.set(&Tensor::from_vec(new, old.dims(), old.device())?.to_dtype(old.dtype())?)
    }

    /// `(scale, shift)` of the evaluation mode as vectors in `f64`: `y = scale x + shift` per channel.
    fn affine(&self) -> Result<(Tensor, Tensor)> {
        let wide = |t: &Tensor| t.detach().to_dtype(DType::F64);
        let std = (wide(&self.running_var.get())? + self.eps)?.sqrt()?;
        let scale = (wide(&self.weight)? / std)?;
        let shift = (wide(&self.bias)? - (wide(&self.running_mean.get())? * &scale)?)?;
        Ok((scale, shift))
    }
}

/// A convolution followed by batch norm: the unit of convolutional networks.
///
/// In a frozen network the normalisation is folded into weight and bias once, and residual addition
/// and ReLU happen in the convolution's own pass; the outputs agree with the unfolded form up to rounding.
/// The unfolded form stays beside it, for batch statistics.
///
/// A bias of the convolution is cancelled by the batch statistics, so that its gradient in training is rounding noise
/// around zero; VGG has one all the same: it counts as a parameter and moves the running mean.
#[derive(Clone)]
pub struct ConvBatchNorm {
    conv: Conv2d,
    norm: BatchNorm,
    /// Both in one, in a frozen network.
    folded: Option<Conv2d>,
}

impl ConvBatchNorm {
    /// Without bias; the convolution lives under `conv_name`, the normalisation under `norm_name` of `scope`.
    ///
    /// # Errors
    ///
    /// See [`Scope::weight`].
    pub fn new(
        scope: &Scope,
        conv_name: &str,
        norm_name: &str,
        shape: [usize; 4],
        spec: Conv2dSpec,
        init: Init,
    ) -> Result<Self> {
        let conv = Conv2d::new(&scope.child(conv_name), shape, spec, init)?;
        Self::of(conv, BatchNorm::new(&scope.child(norm_name), shape[0])?)
    }

    /// The same with a bias of the convolution that starts by `bias`.
    ///
    /// # Errors
    ///
    /// See [`Scope::weight`].
    pub fn with_bias(
        scope: &Scope,
        [conv_name, norm_name]: [&str; 2],
        shape: [usize; 4],
        spec: Conv2dSpec,
        [init, bias]: [Init; 2],
    ) -> Result<Self> {
        let conv = Conv2d::with_bias(&scope.child(conv_name), shape, spec, init, bias)?;
        Self::of(conv, BatchNorm::new(&scope.child(norm_name), shape[0])?)
    }

    /// Of two layers, over as many channels as the convolution gives.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn of(conv: Conv2d, norm: BatchNorm) -> Result<Self> {
        if !norm.frozen {
            return Ok(Self { conv, norm, folded: None });
        }
        let channels = conv.shape()[0];
        let wide = |t: &Tensor| t.to_dtype(DType::F64);
        let (scale, shift) = norm.affine()?;
        let weight = wide(&conv.weight)?.broadcast_mul(&scale.reshape((channels, 1, 1, 1))?)?;
        let bias = match &conv.bias {
            Some(bias) => ((wide(bias)? * scale)? + shift)?,
            None => shift,
        };
        let dtype = conv.weight.dtype();
        let (weight, bias) = (weight.to_dtype(dtype)?.contiguous()?, Some(bias.to_dtype(dtype)?));
        let folded = Some(Conv2d { weight, bias, spec: conv.spec });
        Ok(Self { conv, norm, folded })
    }

    /// The convolution alone.
    #[must_use]
    pub fn conv(&self) -> &Conv2d {
        &self.conv
    }

    /// `act(bn(conv(x)))`.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit, or training mode in a frozen network.
    pub fn forward(&self, x: &FeatureMap, mode: Mode, activation: Activation) -> Result<FeatureMap> {
        match &self.folded {
            Some(folded) if mode == Mode::Eval => folded.forward_with(x, None, activation),
            _ => self.norm.forward(&self.conv.forward(x)?, mode, activation),
        }
    }

    /// `act(bn(conv(x)) + residual)`.
    ///
    /// # Errors
    ///
    /// As for [`ConvBatchNorm::forward`].
    pub fn forward_add(
        &self,
        x: &FeatureMap,
        residual: &FeatureMap,
        mode: Mode,
        activation: Activation,
    ) -> Result<FeatureMap> {
        match &self.folded {
            Some(folded) if mode == Mode::Eval => folded.forward_with(x, Some(residual), activation),
            _ => {
                let y = self.norm.forward(&self.conv.forward(x)?, mode, Activation::None)?;
                Ok(y.add(residual, activation)?)
            }
        }
    }

    /// Weight and bias of the batch norm, detached.
    #[must_use]
    pub fn stage_norm(&self) -> StageNorm {
        self.norm.stage_norm()
    }
}
