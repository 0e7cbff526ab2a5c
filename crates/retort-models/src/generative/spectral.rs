//! Spectral normalisation (Miyato et al. 2018, arXiv 1802.05957).

use crate::Result;
use crate::common::config_error;
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap};
use retort_nn::{Buffer, Init, Mode, Scope, fan_in};

/// Below this norm a vector is not scaled up, as in PyTorch.
const EPS: f64 = 1e-12;

/// A weight divided by an estimate of its largest singular value: `torch.nn.utils.spectral_norm`.
///
/// The weight is read as a matrix W of one row for each output. Each pass in training mode takes one step of the power
/// iteration, `v = W^T u / |W^T u|` and `u = W v / |W v|`, and every pass divides by `sigma = u^T W v`. In the gradient
/// u and v are constants, sigma is not. The vectors are saved with the network; evaluation uses them as they are, so it
/// makes sense only behind some training passes.
///
/// Keys: `weight_orig`, and the buffers `weight_u` and `weight_v`. PyTorch draws the first vectors at random; here
/// their entries are equal, which needs no draw and does as well for weights that are random.
///
/// A weight of zeros has no spectral norm: the result is NaN.
#[derive(Clone)]
pub struct SpectralWeight {
    weight: Tensor,
    u: Buffer,
    v: Buffer,
    /// The quotient, in a frozen network.
    frozen: Option<Tensor>,
}

impl SpectralWeight {
    /// A weight of `shape` that starts by `init`; the first dimension counts the outputs.
    ///
    /// # Errors
    ///
    /// A shape without entries, or weights that do not fit (see [`Scope::weight`]).
    pub fn new(scope: &Scope, shape: &[usize], init: Init) -> Result<Self> {
        if shape.is_empty() || shape.contains(&0) {
            return Err(config_error("spectral norm", format!("a weight must have entries, found shape {shape:?}")));
        }
        let (rows, columns) = (shape[0], fan_in(shape));
        let weight = scope.weight("weight_orig", shape, init)?;
        let even = |n: usize| 1.0 / (n as f64).sqrt();
        let u = scope.buffer("weight_u", &[rows], even(rows))?;
        let v = scope.buffer("weight_v", &[columns], even(columns))?;
        let mut result = Self { weight, u, v, frozen: None };
        if scope.is_frozen() {
            result.frozen = Some(result.divided(&result.u.get(), &result.v.get())?);
        }
        Ok(result)
    }

    /// Shape of the weight.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        self.weight.dims()
    }

    /// The weight divided by its spectral norm, with gradient.
    ///
    /// # Errors
    ///
    /// Training mode in a frozen network.
    pub fn get(&self, mode: Mode) -> retort_nn::Result<Tensor> {
        if mode == Mode::Train {
            let [u, v] = self.iterate()?;
            return self.divided(&u, &v);
        }
        match &self.frozen {
            Some(weight) => Ok(weight.clone()),
            // Copies: a later training pass must not change what the gradient of this one is computed with.
            None => self.divided(&self.u.get().copy()?, &self.v.get().copy()?),
        }
    }

    /// One step of the power iteration.
    fn iterate(&self) -> retort_nn::Result<[Tensor; 2]> {
        if self.frozen.is_some() {
            return Err(retort_nn::Error::invalid("spectral norm", "a frozen network has no training mode"));
        }
        let matrix = self.matrix()?.detach();
        let v = unit(&matrix.t()?.matmul(&self.u.get().unsqueeze(1)?)?.squeeze(1)?)?;
        let u = unit(&matrix.matmul(&v.unsqueeze(1)?)?.squeeze(1)?)?;
        self.u.set(&u)?;
        self.v.set(&v)?;
        Ok([u, v])
    }

    fn divided(&self, u: &Tensor, v: &Tensor) -> retort_nn::Result<Tensor> {
        let sigma = (self.matrix()?.matmul(&v.unsqueeze(1)?)?.squeeze(1)? * u)?.sum_all()?;
        Ok(self.weight.broadcast_div(&sigma)?)
    }

    fn matrix(&self) -> candle_core::Result<Tensor> {
        self.weight.reshape((self.weight.dims()[0], ()))
    }
}

fn unit(x: &Tensor) -> candle_core::Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_all()?.sqrt()?.maximum(EPS)?)
}

/// A convolution with bias and a spectrally normalised weight.
#[derive(Clone)]
pub struct SpectralConv2d {
    weight: SpectralWeight,
    bias: Tensor,
    spec: Conv2dSpec,
}

impl SpectralConv2d {
    /// A weight of `shape` (see [`retort_nn::Conv2d::new`]) that starts by `init`; the bias starts at 0.
    ///
    /// # Errors
    ///
    /// As for [`SpectralWeight::new`].
    pub fn new(scope: &Scope, shape: [usize; 4], spec: Conv2dSpec, init: Init) -> Result<Self> {
        let weight = SpectralWeight::new(scope, &shape, init)?;
        Ok(Self { weight, bias: scope.weight("bias", &shape[..1], Init::Constant(0.0))?, spec })
    }

    /// `act(conv(x) + residual)`.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit, or training mode in a frozen network.
    pub fn forward(
        &self,
        x: &FeatureMap,
        residual: Option<&FeatureMap>,
        activation: Activation,
        mode: Mode,
    ) -> retort_nn::Result<FeatureMap> {
        Ok(x.conv2d(&self.weight.get(mode)?, Some(&self.bias), residual, activation, &self.spec)?)
    }
}

/// A linear layer with bias and a spectrally normalised weight.
#[derive(Clone)]
pub struct SpectralLinear {
    weight: SpectralWeight,
    bias: Tensor,
}

impl SpectralLinear {
    /// A weight `[outputs, inputs]` that starts by `init`; the bias starts at 0.
    ///
    /// # Errors
    ///
    /// As for [`SpectralWeight::new`].
    pub fn new(scope: &Scope, inputs: usize, outputs: usize, init: Init) -> Result<Self> {
        let weight = SpectralWeight::new(scope, &[outputs, inputs], init)?;
        Ok(Self { weight, bias: scope.weight("bias", &[outputs], Init::Constant(0.0))? })
    }

    /// `[B, in]` to `[B, out]`.
    ///
    /// # Errors
    ///
    /// Another width than `in`, or training mode in a frozen network.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> retort_nn::Result<Tensor> {
        Ok(x.matmul(&self.weight.get(mode)?.t()?)?.broadcast_add(&self.bias)?)
    }
}
