//! Hints: regression of one teacher map.

use crate::config::{self, Family, Inputs, MapChoice, Method, MethodInfo, Side};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Error, Result, ops, reduce};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, ConvTranspose2dSpec, FeatureMap};
use retort_nn::{BatchNorm, Conv2d, Init, MapShape, Mode, Scope};
use serde::{Deserialize, Serialize};

const METHOD: &str = "fitnet";
/// The second stage.
const MAP: usize = 2;

/// Hint loss (Romero et al. 2015, arXiv 1412.6550): `mean((r(f_s) - f_t)^2)` over all elements.
///
/// # Shapes
///
/// `regressed`, `teacher`: `[B, C, H, W]` of one shape; see [`ConvRegressor`] for the first. Returns a scalar.
///
/// # Gradients
///
/// Into `regressed`; `teacher` is detached.
///
/// # Errors
///
/// Two shapes that differ, or empty maps.
///
/// # Example
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// let zeros = Tensor::zeros((1, 2, 3, 3), DType::F32, &Device::Cpu)?;
/// let ones = Tensor::ones((1, 2, 3, 3), DType::F32, &Device::Cpu)?;
/// assert_eq!(retort_losses::feature::hint(&zeros, &ones)?.to_scalar::<f32>()?, 1.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn hint(regressed: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    if regressed.dims() != teacher.dims() || teacher.elem_count() == 0 {
        return Err(ops::mismatch(METHOD, "the regressed map must have the teacher's shape", regressed, teacher));
    }
    reduce::mean_squared_error(regressed, &teacher.detach())
}

/// The regressor of RepDistiller and mdistiller: convolution with bias, batch norm in training mode, ReLU if wanted.
///
/// The convolution is chosen by the heights, in this order:
/// `H_s = 2 H_t`: 3x3 with stride 2 and padding 1; `2 H_s = H_t`: transposed 4x4 with stride 2 and padding 1;
/// `H_s >= H_t`: `(1 + H_s - H_t) x (1 + W_s - W_t)` with stride 1 and no padding.
///
/// Parameters: `conv.weight` (the transposed one is `[C_s, C_t, 4, 4]`), `conv.bias`, `bn.weight`, `bn.bias`;
/// buffers `bn.running_mean`, `bn.running_var`.
/// The bias is cancelled by the batch norm: its gradient is 0 up to rounding.
pub struct ConvRegressor {
    method: &'static str,
    conv: Convolution,
    norm: BatchNorm,
    activation: Activation,
}

impl ConvRegressor {
    /// Declares the parts for maps of these shapes in `scope`.
    ///
    /// # Errors
    ///
    /// A student map that none of the three rules brings to the teacher's size, or a name that is taken.
    pub fn new(student: MapShape, teacher: MapShape, relu: bool, scope: &Scope) -> Result<Self> {
        Self::of(METHOD, student, teacher, relu, scope)
    }

    /// The same for another method, which errors then name.
    pub(super) fn of(
        method: &'static str,
        student: MapShape,
        teacher: MapShape,
        relu: bool,
        scope: &Scope,
    ) -> Result<Self> {
        let (h_s, w_s, h_t, w_t) = (student.height, student.width, teacher.height, teacher.width);
        let (to, from, conv) = (teacher.channels, student.channels, scope.child("conv"));
        let conv = if Some(h_s) == h_t.checked_mul(2) && w_s.div_ceil(2) == w_t {
            Convolution::plain(&conv, [to, from, 3, 3], Conv2dSpec::new(2, 1))?
        } else if h_s.checked_mul(2) == Some(h_t) && w_s.checked_mul(2) == Some(w_t) {
            Convolution::transposed(&conv, [from, to, 4, 4], ConvTranspose2dSpec::new(2, 1))?
        } else if h_s >= h_t && w_s >= w_t && Some(h_s) != h_t.checked_mul(2) {
            Convolution::plain(&conv, [to, from, h_s - h_t + 1, w_s - w_t + 1], Conv2dSpec::new(1, 0))?
        } else {
            let (student, teacher) = (ops::describe(&student), ops::describe(&teacher));
            let expected = "expected a student map that is twice, half, or at least as large";
            let message = format!("no regressor brings {student} to {teacher}: {expected}");
            return Err(Error::Undefined { method, message });
        };
        let norm = BatchNorm::new(&scope.child("bn"), to)?;
        let activation = if relu { Activation::Relu } else { Activation::None };
        Ok(Self { method, conv, norm, activation })
    }

    /// `[B, C_s, H_s, W_s]` to `[B, C_t, H_t, W_t]`; updates the running statistics.
    ///
    /// # Errors
    ///
    /// A map of another shape, or a single value per channel (`B = H_t = W_t = 1`), whose variance is undefined.
    pub fn forward(&self, student: &Tensor) -> Result<Tensor> {
        let x = self.conv.forward(&FeatureMap::from_tensor(student)?)?;
        has_variance(self.method, &x)?;
        Ok(self.norm.forward(&x, Mode::Train, self.activation)?.to_tensor()?)
    }
}

/// A convolution with bias, plain or transposed, with PyTorch's initial values.
pub(super) enum Convolution {
    Plain(Conv2d),
    Transposed { weight: Tensor, bias: Tensor, spec: ConvTranspose2dSpec },
}

impl Convolution {
    /// `shape`: `[C_out, C_in, k_h, k_w]`.
    pub(super) fn plain(scope: &Scope, shape: [usize; 4], spec: Conv2dSpec) -> Result<Self> {
        let bias = Init::pytorch_bias(&shape);
        Ok(Self::Plain(Conv2d::with_bias(scope, shape, spec, Init::PyTorch, bias)?))
    }

    /// `shape`: `[C_in, C_out, k_h, k_w]`.
    pub(super) fn transposed(scope: &Scope, shape: [usize; 4], spec: ConvTranspose2dSpec) -> Result<Self> {
        let weight = scope.weight("weight", &shape, Init::PyTorch)?;
        let bias = scope.weight("bias", &shape[1..2], Init::pytorch_bias(&shape))?;
        Ok(Self::Transposed { weight, bias, spec })
    }

    pub(super) fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        Ok(match self {
            Self::Plain(conv) => conv.forward(x)?,
            Self::Transposed { weight, bias, spec } => {
                x.conv_transpose2d(weight, Some(bias), Activation::None, spec)?
            }
        })
    }
}

/// Refuses a map with a single value per channel, which batch norm in training mode cannot normalise.
pub(super) fn has_variance(method: &'static str, x: &FeatureMap) -> Result<()> {
    let [b, _, h, w] = x.dims();
    if b * h * w > 1 {
        return Ok(());
    }
    Err(Error::Shape {
        method,
        what: "map before batch norm".into(),
        expected: "more than one value per channel (a larger batch)".into(),
        found: x.dims().to_vec(),
    })
}

/// Hyper-parameters of the hint loss; one joint phase, as in the reference code bases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FitnetConfig {
    /// Index of the map, counted from the stem: 2 is the second stage.
    pub map: usize,
    /// Whether the regressor ends in a ReLU; it makes sense where the teacher's map comes after one
    /// (not for wide residual networks and MobileNetV2).
    pub regressor_relu: bool,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for FitnetConfig {
    fn default() -> Self {
        Self { map: MAP, regressor_relu: true, weight: 100.0 }
    }
}

impl Method for FitnetConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "FitNets hints",
        family: Family::Feature,
        paper: Some("FitNets: Hints for Thin Deep Nets"),
        year: Some(2015),
        arxiv: Some("1412.6550"),
        inputs: Inputs { maps: Side::Both, which: MapChoice::Entry(MAP), ..Inputs::NONE },
        trainable: &["convolutional regressor of the student's map"],
        phase: None,
        state: &[],
        buffers: &["batch norm statistics"],
        ce_weight: Some(1.0),
        weight: 100.0,
        code_bases: config::BOTH,
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        Ok(())
    }
    fn needs(&self) -> Needs {
        Needs::MAPS
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let student = ops::map_shape(METHOD, "student", ctx.student, self.map)?;
        let teacher = ops::map_shape(METHOD, "teacher", ctx.teacher(METHOD)?, self.map)?;
        let regressor = ConvRegressor::new(student, teacher, self.regressor_relu, &ctx.scope);
        let regressor = regressor.map_err(|e| e.at(&format!("map {}", self.map)))?;
        Ok(Box::new(Fitnet { config: self.clone(), regressor }))
    }
}

struct Fitnet {
    config: FitnetConfig,
    regressor: ConvRegressor,
}

impl Distiller for Fitnet {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let missing = Error::Missing { method: METHOD, what: "the feature maps of both networks" };
        let maps = (ctx.student.maps.get(self.config.map), ctx.teacher(METHOD)?.maps.get(self.config.map));
        let (Some(student), Some(teacher)) = maps else { return Err(missing) };
        let value = hint(&self.regressor.forward(student)?, teacher)?;
        Ok(Term { name: METHOD, weight: self.config.weight, value, parts: Vec::new() })
    }
}
