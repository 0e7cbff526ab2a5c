//! Gaussian likelihood of the teacher's maps given the student's.

use crate::config::{self, Family, Inputs, MapChoice, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::stages::Pairing;
use crate::{Align, Result, StageLoss, ops, reduce};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap};
use retort_nn::{Conv2d, Init, Scope};
use serde::{Deserialize, Serialize};

const METHOD: &str = "vid";

/// Variational information distillation of one stage (Ahn et al. 2019, arXiv 1904.05835).
///
/// With the per-channel variance `v_c = softplus(rho_c) + min_var` the loss is
/// `mean(((mu - f_t)^2 / v_c + ln v_c) / 2)` over all elements; it may be negative.
///
/// # Shapes
///
/// `mean`, `teacher`: `[B, C, H, W]` of one shape; `rho`: `[C]`; `min_var` > 0. Returns a scalar.
///
/// # Gradients
///
/// Into `mean` and `rho`; `teacher` is detached.
///
/// # Errors
///
/// Shapes that do not fit, empty maps, `min_var` out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let f = Tensor::new(&[[[[1f32, 2.0]]]], &Device::Cpu)?;
/// let rho = Tensor::new(&[0f32], &Device::Cpu)?;
/// let loss = retort_losses::feature::variational_information(&f, &f, &rho, 1e-5)?;
/// assert!((loss.to_scalar::<f32>()? - 0.5 * (2f32.ln() + 1e-5).ln()).abs() < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn variational_information(mean: &Tensor, teacher: &Tensor, rho: &Tensor, min_var: f64) -> Result<Tensor> {
    check::positive(METHOD, "min_var", min_var)?;
    ops::check_maps(METHOD, 0, mean, teacher)?;
    if mean.dims() != teacher.dims() {
        return Err(ops::mismatch(METHOD, "the predicted mean must have the teacher's shape", mean, teacher));
    }
    let (b, c, h, w) = mean.dims4()?;
    if rho.dims() != [c] {
        let found = rho.dims().to_vec();
        return Err(crate::Error::Shape { method: METHOD, what: "rho".into(), expected: format!("[{c}]"), found });
    }
    // One variance per channel: the squared residuals are averaged first, so nothing is broadcast over the map.
    let residual = (mean - teacher.detach())?.sqr()?.reshape((b, c, h * w))?;
    let error = (residual.sum(2)?.sum(0)? * (1.0 / (b * h * w) as f64))?;
    let variance = (reduce::softplus(rho)? + min_var)?;
    let per_channel = ((error / &variance)? + variance.log()?)?;
    Ok((reduce::mean_all(&per_channel)? * 0.5)?)
}

/// The student's side of one stage: three 1x1 convolutions without bias, ReLU between them, and the variances.
///
/// Parameters: `regressor.0.weight` `[C_t, C_s, 1, 1]`, `regressor.2.weight` and `regressor.4.weight`
/// `[C_t, C_t, 1, 1]`, `log_scale` `[C_t]` (rho).
pub struct VidRegressor {
    convs: [Conv2d; 3],
    rho: Tensor,
    min_var: f64,
}

impl VidRegressor {
    /// Declares the parts in `scope`; the variances start at `init_var`.
    ///
    /// # Errors
    ///
    /// `min_var` not > 0, `init_var` not above it, or a name that is taken.
    pub fn new(c_s: usize, c_t: usize, init_var: f64, min_var: f64, scope: &Scope) -> Result<Self> {
        check::positive(METHOD, "min_var", min_var)?;
        check::positive(METHOD, "init_var - min_var", init_var - min_var)?;
        let regressor = scope.child("regressor");
        let conv = |name: usize, inputs: usize| {
            Conv2d::new(&regressor.child(name), [c_t, inputs, 1, 1], Conv2dSpec::new(1, 0), Init::PyTorch)
        };
        let convs = [conv(0, c_s)?, conv(2, c_t)?, conv(4, c_t)?];
        // The inverse of softplus, ln(exp(v) - 1), in a form that does not overflow.
        let v = init_var - min_var;
        let rho = scope.weight("log_scale", &[c_t], Init::Constant(v + (-(-v).exp_m1()).ln()))?;
        Ok(Self { convs, rho, min_var })
    }

    /// The predicted mean: `[B, C_s, H, W]` to `[B, C_t, H, W]`.
    ///
    /// # Errors
    ///
    /// A map with another number of channels.
    pub fn forward(&self, student: &Tensor) -> Result<Tensor> {
        let x = FeatureMap::from_tensor(student)?;
        let x = self.convs[0].forward_with(&x, None, Activation::Relu)?;
        let x = self.convs[1].forward_with(&x, None, Activation::Relu)?;
        Ok(self.convs[2].forward(&x)?.to_tensor()?)
    }

    /// The present variances `softplus(rho) + min_var`, `[C_t]`.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    pub fn variance(&self) -> Result<Tensor> {
        Ok((reduce::softplus(&self.rho)? + self.min_var)?)
    }

    /// The loss of one stage, the larger map (by height) being average-pooled to the smaller one's size first.
    ///
    /// # Errors
    ///
    /// Batch sizes or channels that do not fit, maps of one height and two widths; the message names `stage`.
    pub fn loss(&self, stage: usize, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        let (student, teacher) = ops::pool_match(METHOD, stage, student, teacher)?;
        variational_information(&self.forward(&student)?, &teacher, &self.rho, self.min_var)
    }
}

/// Hyper-parameters of variational information distillation.
///
/// The variances are trained (in mdistiller they are in no optimiser group and stay where they start).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VidConfig {
    /// Variance at the start, above `min_var`.
    pub init_var: f64,
    /// Lower bound of the variances, > 0; it bounds the gradient by `1 / min_var` times the residual.
    pub min_var: f64,
    /// Pairing of stages.
    pub align: Align,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for VidConfig {
    fn default() -> Self {
        Self { init_var: 5.0, min_var: 1e-5, align: Align::Exact, weight: 1.0 }
    }
}

impl Method for VidConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Variational information distillation",
        family: Family::Feature,
        paper: Some("Variational Information Distillation for Knowledge Transfer"),
        year: Some(2019),
        arxiv: Some("1904.05835"),
        inputs: Inputs { maps: Side::Both, which: MapChoice::Stages, ..Inputs::NONE },
        trainable: &["regressor of each stage", "variances of each stage"],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: Some(1.0),
        weight: 1.0,
        code_bases: config::BOTH,
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::positive(METHOD, "min_var", self.min_var)?;
        if self.init_var.is_finite() && self.init_var > self.min_var {
            return Ok(());
        }
        Err(crate::Error::Config {
            method: METHOD,
            field: "init_var",
            expected: format!("a finite number above `min_var` = {}", self.min_var),
            found: self.init_var.to_string(),
        })
    }
    fn needs(&self) -> Needs {
        Needs::MAPS
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let pairing = Pairing::new(METHOD, self.align, ctx)?;
        let regressors = pairing
            .shapes(ctx)?
            .iter()
            .enumerate()
            .map(|(i, (s, t))| {
                let scope = ctx.scope.child(format!("stage{i}"));
                VidRegressor::new(s.channels, t.channels, self.init_var, self.min_var, &scope)
            })
            .collect::<Result<_>>()?;
        Ok(Box::new(Vid { weight: self.weight, pairing, regressors }))
    }
}

struct Vid {
    weight: f64,
    pairing: Pairing,
    regressors: Vec<VidRegressor>,
}

impl Distiller for Vid {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let (student, teacher) = self.pairing.maps(ctx)?;
        let loss = StageLoss::sum(METHOD, &student, &teacher, |i, s, t| self.regressors[i].loss(i, s, t))?;
        Ok(Term { name: METHOD, weight: self.weight, parts: loss.parts(), value: loss.total })
    }
}
