//! What a network is told besides its input.

use crate::Result;
use crate::common::{check_mode, check_weights, config_error, refused};
use candle_core::{DType, Tensor};
use retort_kernels::{Activation, BatchStats, FeatureMap};
use retort_nn::{BatchNorm, Buffer, Init, Mode, Scope};

/// What a network is told besides its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// One of so many classes: labels `[B]` of an integer type.
    Classes(usize),
    /// A vector of so many entries, `[B, E]`: a continuous label through a [`LabelEmbedding`](super::LabelEmbedding).
    Embedding(usize),
}

impl Condition {
    /// Rows of a table, or entries of a vector; 0 for nothing.
    fn size(self) -> usize {
        match self {
            Self::None => 0,
            Self::Classes(size) | Self::Embedding(size) => size,
        }
    }

    /// Refuses a condition of no size, and maps to `outputs` entries that are too large.
    pub(super) fn check(self, model: &str, outputs: usize) -> Result<()> {
        if self != Self::None && self.size() == 0 {
            return Err(config_error(model, "condition: classes or entries must be positive, found 0"));
        }
        check_weights(model, self.size(), outputs)
    }

    /// Shape of the weight that makes `outputs` entries of a condition: a table for classes, a linear map for vectors.
    pub(super) fn weight_shape(self, outputs: usize) -> [usize; 2] {
        match self {
            Self::Embedding(size) => [outputs, size],
            _ => [self.size(), outputs],
        }
    }

    /// `[B, outputs]`: rows of the table, or images under the linear map.
    pub(super) fn apply(self, weight: &Tensor, given: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Embedding(_) => given.matmul(&weight.t()?),
            _ => weight.index_select(given, 0),
        }
    }

    /// What was given for a batch, refused if it does not fit; classes as row numbers.
    pub(super) fn checked(
        self,
        model: &str,
        batch: usize,
        given: Option<&Tensor>,
    ) -> retort_nn::Result<Option<Tensor>> {
        let found = given.map(|given| format!("{:?} {:?}", given.dtype(), given.dims()));
        let unfit = |expected: String| {
            let found = found.clone().unwrap_or_else(|| "nothing".to_string());
            Err(refused(model, format!("condition: expected {expected}, found {found}")))
        };
        match (self, given) {
            (Self::None, None) => Ok(None),
            (Self::None, Some(_)) => unfit("nothing".into()),
            (Self::Classes(classes), Some(labels)) if labels.dims() == [batch] && !labels.dtype().is_float() => {
                let labels = labels.to_dtype(DType::I64)?;
                let outside = |label: &i64| usize::try_from(*label).map_or(true, |label| label >= classes);
                if let Some(label) = labels.to_vec1::<i64>()?.into_iter().find(outside) {
                    let message = format!("condition: labels must be from 0 to {}, found {label}", classes - 1);
                    return Err(refused(model, message));
                }
                Ok(Some(labels))
            }
            (Self::Classes(_), _) => unfit(format!("integer labels [{batch}]")),
            (Self::Embedding(size), Some(vectors)) if vectors.dims() == [batch, size] && vectors.dtype().is_float() => {
                Ok(Some(vectors.clone()))
            }
            (Self::Embedding(size), _) => unfit(format!("floating point vectors [{batch}, {size}]")),
        }
    }
}

/// Batch norm whose scale and shift depend on a condition (de Vries et al. 2017, arXiv 1707.00683):
/// `(1 + gamma(condition)) bn(x) + beta(condition)`, with a batch norm that has no weights of its own.
///
/// For classes gamma and beta are rows of tables that start at 0; for vectors they are linear maps without bias and
/// start with PyTorch's default, as in CcGAN's code.
///
/// Keys: `bn.running_mean`, `bn.running_var`, `embed_gamma.weight`, `embed_beta.weight`, the latter two `[classes, C]`
/// or `[C, entries]`.
#[derive(Clone)]
pub struct ConditionalBatchNorm {
    condition: Condition,
    running: [Buffer; 2],
    gamma: Tensor,
    beta: Tensor,
    /// Weight and bias of the batch norm, as constants.
    unit: [Tensor; 2],
    frozen: bool,
}

/// As in [`BatchNorm`].
const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

impl ConditionalBatchNorm {
    /// Over `channels`.
    ///
    /// # Errors
    ///
    /// No condition, sizes of zero, or weights that do not fit (see [`Scope::weight`]).
    pub fn new(scope: &Scope, channels: usize, condition: Condition) -> Result<Self> {
        const MODEL: &str = "conditional batch norm";
        condition.check(MODEL, channels)?;
        if condition == Condition::None || channels == 0 {
            let message = format!("expected a condition and positive channels, found {condition:?} and {channels}");
            return Err(config_error(MODEL, message));
        }
        let init = match condition {
            Condition::Embedding(_) => Init::PyTorch,
            _ => Init::Constant(0.0),
        };
        let weight = |key: &str| scope.child(key).weight("weight", &condition.weight_shape(channels), init);
        let running = |key: &str, start: f64| scope.child("bn").buffer(key, &[channels], start);
        Ok(Self {
            condition,
            running: [running("running_mean", 0.0)?, running("running_var", 1.0)?],
            gamma: weight("embed_gamma")?,
            beta: weight("embed_beta")?,
            unit: unit(channels, scope)?,
            frozen: scope.is_frozen(),
        })
    }

    /// `[B, C, H, W]` of the same shape; `given` are labels `[B]` or vectors `[B, E]`.
    ///
    /// # Errors
    ///
    /// A condition that does not fit; one value per channel in training mode; training mode in a frozen network.
    pub fn forward(
        &self,
        x: &FeatureMap,
        given: &Tensor,
        mode: Mode,
        activation: Activation,
    ) -> retort_nn::Result<FeatureMap> {
        let given = self.condition.checked("conditional batch norm", x.dims()[0], Some(given))?;
        match given {
            Some(given) => self.forward_checked(x, &given, mode, activation),
            None => unreachable!("a conditional batch norm has a condition"),
        }
    }

    fn forward_checked(
        &self,
        x: &FeatureMap,
        given: &Tensor,
        mode: Mode,
        activation: Activation,
    ) -> retort_nn::Result<FeatureMap> {
        let normal = self.normalised(x, mode)?.to_tensor()?;
        let entry = |weight: &Tensor| -> retort_nn::Result<Tensor> {
            Ok(self.condition.apply(weight, given)?.unsqueeze(2)?.unsqueeze(3)?)
        };
        let y = normal.broadcast_mul(&(entry(&self.gamma)? + 1.0)?)?.broadcast_add(&entry(&self.beta)?)?;
        let y = if activation == Activation::Relu { retort_kernels::relu(&y)? } else { y };
        Ok(FeatureMap::from_tensor(&y)?)
    }

    fn normalised(&self, x: &FeatureMap, mode: Mode) -> retort_nn::Result<FeatureMap> {
        let unit = [&self.unit[0], &self.unit[1]];
        if mode == Mode::Eval {
            let [mean, var] = self.running.each_ref().map(Buffer::get);
            return Ok(x.batch_norm_eval(unit, [&mean, &var], EPS, Activation::None)?);
        }
        check_mode("conditional batch norm", self.frozen, mode)?;
        let (y, stats) = x.batch_norm_train(unit, EPS, Activation::None)?;
        if mode == Mode::Train {
            self.track(stats)?;
        }
        Ok(y)
    }

    fn track(&self, stats: BatchStats) -> retort_nn::Result<()> {
        let unbiased = stats.unbiased_var();
        for (buffer, batch) in self.running.iter().zip([stats.mean, unbiased]) {
            let old = buffer.get();
            let batch = Tensor::new(batch, old.device())?;
            let new = ((old.to_dtype(DType::F64)? * (1.0 - MOMENTUM))? + (batch * MOMENTUM)?)?;
            buffer.set(&new.to_dtype(old.dtype())?)?;
        }
        Ok(())
    }
}

/// A scale of 1 and a shift of 0.
fn unit(channels: usize, scope: &Scope) -> retort_nn::Result<[Tensor; 2]> {
    let one = Tensor::ones(channels, scope.dtype(), scope.device())?;
    Ok([one.clone(), one.zeros_like()?])
}

/// Batch norm, conditional where there is a condition.
pub(super) enum Norm {
    Plain(BatchNorm),
    Conditional(ConditionalBatchNorm),
}

impl Norm {
    pub(super) fn new(scope: &Scope, channels: usize, condition: Condition) -> Result<Self> {
        Ok(match condition {
            Condition::None => Self::Plain(BatchNorm::new(scope, channels)?),
            _ => Self::Conditional(ConditionalBatchNorm::new(scope, channels, condition)?),
        })
    }

    /// `relu(norm(x))`; the condition is checked already.
    pub(super) fn relu(&self, x: &FeatureMap, given: Option<&Tensor>, mode: Mode) -> retort_nn::Result<FeatureMap> {
        match (self, given) {
            (Self::Plain(norm), _) => norm.forward(x, mode, Activation::Relu),
            (Self::Conditional(norm), Some(given)) => norm.forward_checked(x, given, mode, Activation::Relu),
            (Self::Conditional(_), None) => unreachable!("the network has checked its condition"),
        }
    }
}
