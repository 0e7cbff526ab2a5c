//! What all distances between feature laws have in common when they become a term of the objective.

use super::Discrepancy;
use crate::config::{Method, MethodInfo, Side};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Error, Result, ops, reduce};
use candle_core::{DType, Device, Tensor};
use retort_kernels::{Activation, FeatureMap};
use retort_nn::{BatchNorm, Linear, Mode, Scope, Seed, Tensors};
use serde::{Deserialize, Serialize};

/// A first distance below this one does not enlarge the coefficient any more.
const SMALLEST_FIRST: f64 = 1e-6;

/// Name of the part of a term that logs what the distance is multiplied with: weight and scale together.
pub const COEFFICIENT: &str = "coefficient";

/// How a distance becomes a term: what its weight multiplies, and what the features go through before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matching {
    /// What the weight multiplies.
    pub coefficient: Coefficient,
    /// Whether the features of both networks are divided by their Euclidean norms first; a zero vector stays zero.
    pub normalize: bool,
    /// What brings the student's features to the teacher's width; it is trained with the student and changes what is
    /// compared.
    pub regressor: Regressor,
}

/// The unit of a weight. Distances differ by orders of magnitude: W2 squared is a sum over coordinates, an RBF MMD lies
/// in `[0, 2]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coefficient {
    /// The weight is the coefficient.
    Fixed,
    /// Free of scale: the coefficient is `weight / max(D, 1e-6)` with the distance `D` of the run's first batch.
    #[default]
    FirstBatch,
}

/// A trained layer on the student's features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Regressor {
    /// None: both networks must have the same width.
    #[default]
    None,
    /// Linear with bias.
    Linear,
    /// Linear without bias, then batch norm.
    LinearBn,
}

/// A distance between the features of one batch: the configuration of a method, which is a [`Method`] by this.
pub(crate) trait Metric: Clone + Send + 'static {
    /// What is known about the method.
    const INFO: MethodInfo;
    /// Whether both networks must show features of the same width.
    const SAME_WIDTH: bool = true;
    /// Weight of the term.
    fn weight(&self) -> f64;
    /// What the weight multiplies, and what the features go through before.
    fn matching(&self) -> &Matching;
    /// Range checks of the other fields.
    fn check(&self) -> Result<()> {
        Ok(())
    }
    /// Rows that the distance needs at least.
    fn least_rows(&self) -> usize {
        1
    }
    /// Rows that it needs of each class that is in the batch.
    fn least_rows_of_class(&self) -> usize {
        1
    }
    /// Whether the distance reads the batch's class labels.
    fn reads_labels(&self) -> bool {
        Self::INFO.inputs.labels
    }
    /// The distance; `student` may be the output of a regressor.
    fn distance(&self, student: &Tensor, teacher: &Tensor, batch: &Batch<'_>) -> Result<Discrepancy>;
}

impl<M: Metric> Method for M {
    const INFO: MethodInfo = <M as Metric>::INFO;
    fn weight(&self) -> f64 {
        Metric::weight(self)
    }
    fn validate(&self) -> Result<()> {
        self.check()
    }
    fn needs(&self) -> Needs {
        Needs { labels: self.reads_labels(), ..Needs::TEACHER }
    }
    fn least_rows(&self) -> usize {
        let regressor = if self.matching().regressor == Regressor::LinearBn { 2 } else { 1 };
        Metric::least_rows(self).max(regressor)
    }
    fn least_rows_of_class(&self) -> usize {
        Metric::least_rows_of_class(self)
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        Matcher::build(self.clone(), ctx)
    }
}

/// What a distance may ask for besides the features.
pub(crate) struct Batch<'a> {
    /// Both networks' logits, and the labels.
    pub(super) context: &'a Context<'a>,
    /// Of this step, for directions that are drawn.
    pub(super) seed: Seed,
}

/// A distance as a distiller.
struct Matcher<M> {
    metric: M,
    layer: Option<Layer>,
    seed: Seed,
    /// `1 / max(D, 1e-6)` of the first batch, once there was one.
    scale: Option<f64>,
    /// Training steps that were finished.
    steps: u64,
}

struct Layer {
    linear: Linear,
    norm: Option<BatchNorm>,
}

impl Layer {
    fn new(regressor: Regressor, inputs: usize, outputs: usize, scope: &Scope) -> Result<Option<Self>> {
        let (linear, bn) = (scope.child("linear"), scope.child("bn"));
        Ok(match regressor {
            Regressor::None => None,
            Regressor::Linear => Some(Self { linear: Linear::new(&linear, inputs, outputs)?, norm: None }),
            Regressor::LinearBn => {
                let linear = Linear::with_init(&linear, inputs, outputs, retort_nn::Init::PyTorch, None)?;
                Some(Self { linear, norm: Some(BatchNorm::new(&bn, outputs)?) })
            }
        })
    }

    fn forward(&self, method: &'static str, x: &Tensor) -> Result<Tensor> {
        let y = self.linear.forward(x)?;
        let Some(norm) = &self.norm else { return Ok(y) };
        let (b, d) = y.dims2()?;
        if b < 2 {
            let (what, expected) = ("student features".into(), "more than one row before batch norm".into());
            return Err(Error::Shape { method, what, expected, found: y.dims().to_vec() });
        }
        let map = FeatureMap::from_tensor(&y.reshape((b, d, 1, 1))?)?;
        Ok(norm.forward(&map, Mode::Train, Activation::None)?.to_tensor()?.reshape((b, d))?)
    }
}

impl<M: Metric> Matcher<M> {
    const METHOD: &'static str = <M as Metric>::INFO.id;

    fn build(metric: M, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let method = Self::METHOD;
        let (student, teacher) = (ctx.student.embedding, ctx.teacher(method)?.embedding);
        let regressor = metric.matching().regressor;
        if regressor == Regressor::None && M::SAME_WIDTH && student != teacher {
            let message = format!(
                "features must have one width, found {student} in the student and {teacher} in the teacher; \
                 `matching` with `regressor = \"linear\"` trains a layer between them"
            );
            return Err(Error::Undefined { method, message });
        }
        if <M as Metric>::INFO.inputs.logits == Side::Both {
            ctx.same_classes(method)?;
        }
        let layer = Layer::new(regressor, student, teacher, &ctx.scope.child("regressor"))?;
        Ok(Box::new(Self { metric, layer, seed: ctx.seed, scale: None, steps: 0 }))
    }

    /// Features of one network as the metric sees them.
    fn prepared(&self, features: &Tensor) -> Result<Tensor> {
        match self.metric.matching().normalize {
            true => ops::guarded_normalize(features, 0.0),
            false => Ok(features.clone()),
        }
    }
}

impl<M: Metric> Distiller for Matcher<M> {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let method = Self::METHOD;
        let (student, teacher) = (&ctx.student.embedding, ctx.teacher(method)?.embedding.detach());
        if student.dims().first() != teacher.dims().first() {
            return Err(ops::mismatch(method, "batch sizes must agree", student, &teacher));
        }
        let student = match &self.layer {
            Some(layer) => layer.forward(method, student)?,
            None => student.clone(),
        };
        let batch = Batch { context: ctx, seed: self.seed.child(&self.steps.to_string()) };
        let distance = self.metric.distance(&self.prepared(&student)?, &self.prepared(&teacher)?, &batch)?;
        let scale = match (self.metric.matching().coefficient, self.scale) {
            (Coefficient::Fixed, _) => 1.0,
            (Coefficient::FirstBatch, Some(scale)) => scale,
            (Coefficient::FirstBatch, None) => *self.scale.insert(scale_of(method, reduce::number(&distance.value)?)?),
        };
        let weight = Metric::weight(&self.metric) * scale;
        let mut parts = distance.scalars()?;
        parts.push(coefficient(weight, &distance.value)?);
        Ok(Term { name: method, weight, value: distance.value, parts })
    }

    fn after_step(&mut self) -> Result<()> {
        self.steps += 1;
        Ok(())
    }

    fn state(&self) -> Result<Tensors> {
        let scale = Tensor::new(self.scale.map_or(f64::NAN, |scale| scale), &Device::Cpu)?;
        let steps = Tensor::new(self.steps as i64, &Device::Cpu)?;
        Ok(Tensors::from([("scale".to_string(), scale), ("steps".to_string(), steps)]))
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let method = Self::METHOD;
        let entry = |name: &str, dtype: DType| {
            let found = state.get(name).filter(|tensor| tensor.rank() == 0 && tensor.dtype() == dtype);
            let message = format!("expected one {dtype:?}");
            found.ok_or_else(|| Error::State { method, name: name.into(), message })
        };
        let scale = entry("scale", DType::F64)?.to_scalar::<f64>()?;
        let steps = entry("steps", DType::I64)?.to_scalar::<i64>()?;
        if let Some(name) = state.keys().find(|name| !["scale", "steps"].contains(&name.as_str())) {
            return Err(Error::State { method, name: name.clone(), message: "belongs to no part of this loss".into() });
        }
        let steps = u64::try_from(steps).map_err(|_| {
            let message = format!("expected a number of steps, found {steps}");
            Error::State { method, name: "steps".into(), message }
        })?;
        (self.scale, self.steps) = (scale.is_finite().then_some(scale), steps);
        Ok(())
    }
}

/// What the distance is multiplied with, for the log.
pub(super) fn coefficient(weight: f64, value: &Tensor) -> Result<(String, Tensor)> {
    Ok((COEFFICIENT.to_string(), Tensor::new(weight, value.device())?.to_dtype(value.dtype())?))
}

/// One over the first distance. Not a number is left to whoever looks at the term.
fn scale_of(method: &'static str, first: f64) -> Result<f64> {
    if first < 0.0 {
        let message = format!(
            "the first batch's distance is {first}, so it cannot be the unit of the weight; \
             `matching` with `coefficient = \"fixed\"` takes the weight as it is"
        );
        return Err(Error::Undefined { method, message });
    }
    Ok(1.0 / first.max(SMALLEST_FIRST))
}
