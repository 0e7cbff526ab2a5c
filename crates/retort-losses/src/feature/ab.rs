//! Activation boundaries.

use super::fitnet::ConvRegressor;
use crate::config::{self, ExtraPhase, Family, Inputs, MapChoice, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, InitPhase, Needs, Term};
use crate::reduce::{by_float, slice};
use crate::stages::{Pairing, check_pre_activations};
use crate::{Align, Error, Result, StageLoss, ops, reduce};
use candle_core::{Device, Storage, Tensor, WithDType};
use rayon::prelude::*;
use retort_kernels::with_gradient;
use retort_nn::{MapShape, NetworkSpec, Scope, Taps};
use serde::{Deserialize, Serialize};

const METHOD: &str = "ab";
const INIT_EPOCHS: usize = 30;

/// Factor of the published loss, beside that of the stage.
const SCALE: f64 = 3.0 / 1000.0;

/// Elements of one partial sum.
const BLOCK: usize = 1 << 13;

/// Transfer of activation boundaries (Heo et al. 2019, arXiv 1811.03233): on which side of zero each neuron is.
///
/// For a teacher's value t > 0 an element `x` of the student costs `max(0, m - x)^2`, for t <= 0 `max(0, m + x)^2`;
/// how far the teacher is from zero does not matter.
/// A stage's loss is `weights[i] / B` times the **sum** over all elements, so it grows with the resolution.
/// Stages are summed.
///
/// # Shapes
///
/// `student[i]`, `teacher[i]`: maps before the activation, `[B, C_i, H_i, W_i]` of one shape, see [`Connector`];
/// `margin` m >= 0; one weight a stage, see [`boundary_weights`] for the published ones.
///
/// # Gradients
///
/// Into the student's maps, 0 at `x = m` and `x = -m`; the teacher's are detached.
///
/// # Errors
///
/// Lists of different lengths or empty ones, two shapes that differ, a margin or weight out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let s = Tensor::new(&[[[[0.5f32, 2.0], [-0.5, 1.0]]]], &Device::Cpu)?;
/// let t = Tensor::new(&[[[[3.0f32, 3.0], [-3.0, 0.0]]]], &Device::Cpu)?;
/// let loss = retort_losses::feature::activation_boundaries(&[s], &[t], 1.0, &[1.0])?;
/// assert_eq!(loss.total.to_scalar::<f32>()?, 0.25 + 0.0 + 0.25 + 4.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn activation_boundaries(
    student: &[Tensor],
    teacher: &[Tensor],
    margin: f64,
    weights: &[f64],
) -> Result<StageLoss> {
    check::non_negative(METHOD, "margin", margin)?;
    if weights.len() != student.len() {
        let message = format!("expected one weight a stage, found {} for {} stages", weights.len(), student.len());
        return Err(Error::Undefined { method: METHOD, message });
    }
    StageLoss::sum(METHOD, student, teacher, |i, s, t| {
        check::non_negative(METHOD, "weights", weights[i])?;
        ops::check_maps(METHOD, i, s, t)?;
        if s.dims() != t.dims() {
            return Err(ops::mismatch(METHOD, format!("stage {i}: maps must have one shape"), s, t));
        }
        let (value, gradient) = boundaries(s, t, margin, weights[i] / s.dims()[0] as f64)?;
        Ok(with_gradient(value, s, &gradient)?)
    })
}

/// The published weight of each of `stages` stages: 3/1000 for the last one and half of it from there to each stage
/// before.
#[must_use]
pub fn boundary_weights(stages: usize) -> Vec<f64> {
    (0..stages).rev().map(|above| SCALE * 0.5f64.powi(above.min(1100) as i32)).collect()
}

/// `scale * sum r^2` with `r = max(0, m - sign(t) x)`, and its derivative.
fn boundaries(x: &Tensor, t: &Tensor, margin: f64, scale: f64) -> Result<(f64, Tensor)> {
    let host = |t: &Tensor| t.detach().to_device(&Device::Cpu)?.contiguous();
    let (plain, t) = (host(x)?, host(t)?);
    let ((sx, lx), (st, lt)) = (plain.storage_and_layout(), t.storage_and_layout());
    let (Storage::Cpu(cx), Storage::Cpu(ct)) = (&*sx, &*st) else {
        unreachable!("both tensors were moved to the CPU");
    };
    let (value, gradient) = by_float!(cx, T => {
        let (value, gradient) = evaluate::<T>(slice(cx, lx)?, slice(ct, lt)?, margin, scale);
        Ok((value, Tensor::from_vec(gradient, plain.shape(), &Device::Cpu)?))
    })?;
    Ok((value, gradient.to_device(x.device())?))
}

/// Blocks of fixed size, so that the sum does not depend on the number of threads.
fn evaluate<T: WithDType>(x: &[T], t: &[T], margin: f64, scale: f64) -> (f64, Vec<T>) {
    let mut gradient = vec![T::zero(); x.len()];
    let blocks = gradient.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK).zip(t.par_chunks(BLOCK)));
    let sums: Vec<f64> = blocks
        .map(|(gradient, (x, t))| {
            let at = |i: usize| residual(x[i].to_f64(), t[i].to_f64(), margin);
            for (i, g) in gradient.iter_mut().enumerate() {
                let (sign, r) = at(i);
                *g = T::from_f64(-2.0 * scale * sign * r);
            }
            reduce::lanes(x.len(), |i| at(i).1.powi(2))
        })
        .collect();
    (scale * sums.iter().sum::<f64>(), gradient)
}

/// `(sign(t), r)`, where 0 counts as negative; NaN in either argument is NaN in the second.
#[inline]
fn residual(x: f64, t: f64, margin: f64) -> (f64, f64) {
    let sign = if t > 0.0 {
        1.0
    } else if t <= 0.0 {
        -1.0
    } else {
        t
    };
    let r = margin - sign * x;
    (sign, if r <= 0.0 { 0.0 } else { r })
}

/// What brings a student's map to the teacher's shape: nothing where channels and height agree, else the
/// convolution and batch norm of a [`ConvRegressor`] without ReLU.
pub struct Connector(Option<ConvRegressor>);

impl Connector {
    /// Declares the parts for maps of these shapes in `scope`, if there are any.
    ///
    /// # Errors
    ///
    /// As for [`ConvRegressor::new`].
    pub fn new(student: MapShape, teacher: MapShape, scope: &Scope) -> Result<Self> {
        if (student.channels, student.height) == (teacher.channels, teacher.height) {
            return Ok(Self(None));
        }
        Ok(Self(Some(ConvRegressor::of(METHOD, student, teacher, false, scope)?)))
    }

    /// `[B, C_s, H_s, W_s]` to `[B, C_t, H_t, W_t]`.
    ///
    /// # Errors
    ///
    /// As for [`ConvRegressor::forward`].
    pub fn forward(&self, student: &Tensor) -> Result<Tensor> {
        self.0.as_ref().map_or_else(|| Ok(student.clone()), |regressor| regressor.forward(student))
    }
}

/// Hyper-parameters of the transfer of activation boundaries: a phase before the training, after which the term is 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AbConfig {
    /// Epochs of the phase before the training.
    pub init_epochs: usize,
    /// Learning rate of that phase, constant; none: the run's initial one.
    pub init_lr: Option<f64>,
    /// How far beyond zero a neuron has to be, >= 0.
    pub margin: f64,
    /// Pairing of stages.
    pub align: Align,
    /// Weight of the term in the phase before the training; in the training it multiplies 0.
    pub weight: f64,
}

impl Default for AbConfig {
    fn default() -> Self {
        Self { init_epochs: INIT_EPOCHS, init_lr: None, margin: 1.0, align: Align::Exact, weight: 1.0 }
    }
}

impl Method for AbConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Activation boundaries",
        family: Family::Feature,
        paper: Some("Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons"),
        year: Some(2019),
        arxiv: Some("1811.03233"),
        inputs: Inputs { pre_activations: Side::Both, which: MapChoice::Stages, ..Inputs::NONE },
        trainable: &["connector of each stage whose shapes differ"],
        phase: Some(ExtraPhase::InitStudent(INIT_EPOCHS)),
        state: &[],
        buffers: &["batch norm statistics"],
        ce_weight: Some(1.0),
        weight: 1.0,
        code_bases: &[config::REP_DISTILLER],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::count(METHOD, "init_epochs", self.init_epochs)?;
        self.init_lr.map_or(Ok(()), |lr| check::positive(METHOD, "init_lr", lr))?;
        check::non_negative(METHOD, "margin", self.margin)
    }
    fn needs(&self) -> Needs {
        Needs { taps: Taps { maps: false, pre_activations: true }, ..Needs::TEACHER }
    }
    fn init_phase(&self, _student: &NetworkSpec) -> Option<InitPhase> {
        Some(InitPhase { epochs: self.init_epochs, lr: self.init_lr, student: true })
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        check_pre_activations(METHOD, "teacher", ctx.teacher(METHOD)?)?;
        check_pre_activations(METHOD, "student", ctx.student)?;
        let pairing = Pairing::new(METHOD, self.align, ctx)?;
        let scope = ctx.init_scope.child("connectors");
        let shapes = pairing.shapes(ctx)?.into_iter().enumerate();
        let connector = |(i, (s, t))| Connector::new(s, t, &scope.child(i)).map_err(|e| e.at(&format!("stage {i}")));
        let connectors = shapes.map(connector).collect::<Result<_>>()?;
        Ok(Box::new(Ab { config: self.clone(), pairing, connectors }))
    }
}

struct Ab {
    config: AbConfig,
    pairing: Pairing,
    connectors: Vec<Connector>,
}

impl Distiller for Ab {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let value = reduce::constant(0.0, &ctx.student.logits)?;
        Ok(Term { name: METHOD, weight: self.config.weight, value, parts: Vec::new() })
    }

    fn init_term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let (student, teacher) = self.pairing.pre_activations(ctx)?;
        let connected = self.connectors.iter().zip(student.iter().zip(&teacher)).enumerate();
        let student = connected
            .map(|(i, (connector, (s, t)))| {
                ops::check_maps(METHOD, i, s, t)?;
                connector.forward(s).map_err(|e| e.at(&format!("stage {i}")))
            })
            .collect::<Result<Vec<_>>>()?;
        let weights = boundary_weights(student.len());
        let loss = activation_boundaries(&student, &teacher, self.config.margin, &weights)?;
        Ok(Term { name: METHOD, weight: self.config.weight, parts: loss.parts(), value: loss.total })
    }
}
