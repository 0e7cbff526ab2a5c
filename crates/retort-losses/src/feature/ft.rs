//! Factor transfer.

use super::fitnet::{Convolution, has_variance};
use crate::config::{self, ExtraPhase, Family, Inputs, MapChoice, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, InitPhase, Needs, Term};
use crate::reduce::{by_float, slice};
use crate::{Error, Result, ops, reduce};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, WithDType};
use rayon::prelude::*;
use retort_kernels::{Activation, Conv2dSpec, ConvTranspose2dSpec, FeatureMap, channel_power_mean, no_grad};
use retort_nn::{BatchNorm, Mode, NetworkSpec, Outputs, Scope};
use serde::{Deserialize, Serialize};

const METHOD: &str = "ft";
const INIT_EPOCHS: usize = 30;
const EPS: f64 = 1e-12;

/// Slope of the leaky ReLU for negative arguments.
const SLOPE: f64 = 0.1;

/// What of a factor is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FactorNorm {
    /// The normalised mean over the channels of `F^p1`, as in RepDistiller: an attention map.
    #[default]
    ChannelMean,
    /// The whole factor, flattened and normalised, which is the paper's description; `p1` is not used.
    Full,
}

/// Factor transfer (Kim et al. 2018, arXiv 1802.04977): compares compressed descriptions of the last maps.
///
/// The larger factor, by height, is adaptively average-pooled to the smaller one's size; then
/// `a(F) = vec(mean_c F^p1) / ||.||` in `[B, H W]`, or `vec(F) / ||.||` in `[B, C H W]` for [`FactorNorm::Full`],
/// and the loss is the mean of `|a_s - a_t|^p2` over all entries.
///
/// A power `p1` that is no whole number is taken of `|F|`.
/// A vector of norm at most 1e-12 is the constant 0.
///
/// # Shapes
///
/// `student`: `[B, C, H, W]`, `teacher`: `[B, C', H', W']`, with `C = C'` for [`FactorNorm::Full`]; powers in 1 ..= 16.
/// Returns a scalar.
///
/// # Gradients
///
/// Into `student`, 0 where `a_s = a_t`; `teacher` is detached.
///
/// # Errors
///
/// Batch sizes that differ, maps of one height and two widths, channels that must agree and do not, a power out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::feature::{FactorNorm, factor_transfer};
/// let s = Tensor::new(&[[[[1f32, 0.0]]]], &Device::Cpu)?;
/// let t = Tensor::new(&[[[[0f32, 2.0]]]], &Device::Cpu)?;
/// let loss = factor_transfer(&s, &t, [2.0, 1.0], FactorNorm::ChannelMean)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 1.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn factor_transfer(student: &Tensor, teacher: &Tensor, [p1, p2]: [f64; 2], norm: FactorNorm) -> Result<Tensor> {
    check::exponent(METHOD, "p1", p1)?;
    check::exponent(METHOD, "p2", p2)?;
    let (s, t) = ops::pool_match(METHOD, 0, student, teacher)?;
    if norm == FactorNorm::Full && s.dims()[1] != t.dims()[1] {
        return Err(ops::mismatch(METHOD, "whole factors must have as many channels", student, teacher));
    }
    let description = |x: &Tensor| match norm {
        FactorNorm::ChannelMean => ops::guarded_normalize(&power_mean(x, p1)?, EPS),
        FactorNorm::Full => ops::guarded_normalize(&x.flatten_from(1)?, EPS),
    };
    let (s, t) = (description(&s)?, description(&t)?);
    if p2 == 2.0 {
        return reduce::mean_squared_error(&s, &t);
    }
    let distance = retort_kernels::abs(&(s - t)?)?;
    reduce::mean_all(&if p2 == 1.0 { distance } else { distance.powf(p2)? })
}

/// `mean_c x^p` as `[B, H W]`.
fn power_mean(x: &Tensor, p: f64) -> Result<Tensor> {
    if p % 2.0 == 1.0 {
        // Odd powers keep the sign, which the kernel drops.
        return Ok(x.powf(p)?.mean(1)?.flatten_from(1)?);
    }
    Ok(channel_power_mean(x, p)?)
}

/// Channels of a factor: `floor(k C)` of a teacher with `C` channels.
///
/// # Errors
///
/// A ratio `k` outside (0, 1], or one so small that nothing is left.
pub fn factor_channels(channels: usize, k: f64) -> Result<usize> {
    check_ratio(k)?;
    let factors = (k * channels as f64).floor() as usize;
    if factors > 0 {
        return Ok(factors);
    }
    let message = format!("field `k`: {k} of the teacher's {channels} channels is less than one");
    Err(Error::Undefined { method: METHOD, message })
}

fn check_ratio(k: f64) -> Result<()> {
    check::positive(METHOD, "k", k)?;
    check::unit(METHOD, "k", k)
}

/// Three 3x3 convolutions to the factor, each followed by batch norm where wanted and a leaky ReLU: the translator of
/// the student's map and the first half of the [`Paraphraser`].
///
/// Parameters: `encoder.{0,3,6}.weight` `[C_out, C_in, 3, 3]` and `.bias`, the batch norms `encoder.{1,4,7}`.
pub struct FactorEncoder(Layers);

impl FactorEncoder {
    /// Declares the parts in `scope`, for maps of `inputs` channels and a factor of `factors`.
    ///
    /// # Errors
    ///
    /// A slope that is negative or not finite, or a name that is taken.
    pub fn new(inputs: usize, factors: usize, slope: f64, batch_norm: bool, scope: &Scope) -> Result<Self> {
        let convolution =
            |scope: &Scope, [from, to]: [usize; 2]| Convolution::plain(scope, [to, from, 3, 3], Conv2dSpec::new(1, 1));
        let channels = [inputs, inputs, factors, factors];
        Ok(Self(Layers::new(channels, slope, batch_norm, &scope.child("encoder"), convolution)?))
    }

    /// `[B, inputs, H, W]` to `[B, factors, H, W]`; in training mode batch norms update their running statistics.
    ///
    /// # Errors
    ///
    /// A map of another shape, or, in training mode with batch norm, a single value per channel.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        Ok(self.0.forward(&FeatureMap::from_tensor(x)?, mode)?.to_tensor()?)
    }
}

/// Compresses a teacher's map to a factor and reconstructs it; trained on the teacher alone, before the student.
///
/// Parameters: those of the [`FactorEncoder`], and `decoder.{0,3,6}.weight` `[C_in, C_out, 3, 3]` and `.bias`.
pub struct Paraphraser {
    encoder: FactorEncoder,
    decoder: Layers,
}

/// What a [`Paraphraser`] makes of a map.
#[derive(Clone, Debug)]
pub struct Paraphrase {
    /// The factor, `[B, factors, H, W]`.
    pub factor: Tensor,
    /// `mean((P(f) - f)^2)` over all elements, a scalar: the objective of the phase before the training.
    pub loss: Tensor,
}

impl Paraphraser {
    /// Declares the parts in `scope`, for maps of `channels` channels; the published one has no batch norm.
    ///
    /// # Errors
    ///
    /// A slope that is negative or not finite, or a name that is taken.
    pub fn new(channels: usize, factors: usize, slope: f64, batch_norm: bool, scope: &Scope) -> Result<Self> {
        let convolution = |scope: &Scope, [from, to]: [usize; 2]| {
            Convolution::transposed(scope, [from, to, 3, 3], ConvTranspose2dSpec::new(1, 1))
        };
        let decoder = [factors, factors, channels, channels];
        Ok(Self {
            encoder: FactorEncoder::new(channels, factors, slope, batch_norm, scope)?,
            decoder: Layers::new(decoder, slope, batch_norm, &scope.child("decoder"), convolution)?,
        })
    }

    /// Factor and reconstruction error of the teacher's map, which is detached: gradients go into the parameters.
    ///
    /// # Errors
    ///
    /// As for [`FactorEncoder::forward`].
    pub fn paraphrase(&self, teacher: &Tensor) -> Result<Paraphrase> {
        let teacher = teacher.detach();
        let factor = self.encoder.0.forward(&FeatureMap::from_tensor(&teacher)?, Mode::Train)?;
        let reconstruction = self.decoder.forward(&factor, Mode::Train)?.to_tensor()?;
        let loss = reduce::mean_squared_error(&reconstruction, &teacher)?;
        Ok(Paraphrase { factor: factor.to_tensor()?, loss })
    }

    /// The factor of the teacher's map with nothing recorded for a backward pass.
    ///
    /// # Errors
    ///
    /// As for [`FactorEncoder::forward`].
    pub fn factor(&self, teacher: &Tensor) -> Result<Tensor> {
        Ok(no_grad(|| self.encoder.forward(&teacher.detach(), Mode::Eval))?.detach())
    }
}

/// Three times convolution, batch norm where wanted, leaky ReLU; named as in an `nn.Sequential` of nine modules.
struct Layers {
    layers: Vec<(Convolution, Option<BatchNorm>)>,
    slope: f64,
}

impl Layers {
    fn new(
        channels: [usize; 4],
        slope: f64,
        batch_norm: bool,
        scope: &Scope,
        convolution: impl Fn(&Scope, [usize; 2]) -> Result<Convolution>,
    ) -> Result<Self> {
        check::non_negative(METHOD, "slope", slope)?;
        let layer = |i: usize| {
            let convolution = convolution(&scope.child(3 * i), [channels[i], channels[i + 1]])?;
            let norm = batch_norm.then(|| BatchNorm::new(&scope.child(3 * i + 1), channels[i + 1])).transpose()?;
            Ok((convolution, norm))
        };
        Ok(Self { layers: (0..3).map(layer).collect::<Result<_>>()?, slope })
    }

    fn forward(&self, x: &FeatureMap, mode: Mode) -> Result<FeatureMap> {
        self.layers.iter().try_fold(x.clone(), |x, (convolution, norm)| {
            let mut x = convolution.forward(&x)?;
            if let Some(norm) = norm {
                if mode != Mode::Eval {
                    has_variance(METHOD, &x)?;
                }
                x = norm.forward(&x, mode, Activation::None)?;
            }
            Ok(x.through_tensor(|x| leaky_relu(x, self.slope))?)
        })
    }
}

/// `x` where it is positive, `slope * x` elsewhere; the derivative at 0 is the slope, as in PyTorch.
fn leaky_relu(x: &Tensor, slope: f64) -> retort_kernels::Result<Tensor> {
    if !x.device().is_cpu() {
        return Ok((retort_kernels::relu(x)?.affine(1.0 - slope, 0.0)? + x.affine(slope, 0.0)?)?);
    }
    Ok(x.contiguous()?.apply_op1(LeakyRelu { slope })?)
}

struct LeakyRelu {
    slope: f64,
}

impl LeakyRelu {
    /// `f` times 1 or the slope, by the sign of `x`.
    fn apply<T: WithDType>(&self, x: &[T], f: &[T]) -> Vec<T> {
        let (zero, slope) = (T::zero(), T::from_f64(self.slope));
        let pairs = x.par_iter().zip(f).with_min_len(1 << 13);
        pairs.map(|(&x, &f)| if x > zero { f } else { slope * f }).collect()
    }

    fn gradient<T: WithDType>(&self, x: &Tensor, g: &Tensor) -> candle_core::Result<Tensor> {
        let ((sx, lx), (sg, lg)) = (x.storage_and_layout(), g.storage_and_layout());
        let (candle_core::Storage::Cpu(cx), candle_core::Storage::Cpu(cg)) = (&*sx, &*sg) else {
            return Err(candle_core::Error::Msg("expected tensors on the CPU".into()));
        };
        Tensor::from_vec(self.apply::<T>(slice(cx, lx)?, slice(cg, lg)?), x.shape(), x.device())
    }
}

impl CustomOp1 for LeakyRelu {
    fn name(&self) -> &'static str {
        "leaky relu"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_float!(s, T => {
            let x = slice::<T>(s, l)?;
            Ok((T::to_cpu_storage_owned(self.apply(x, x)), l.shape().clone()))
        })
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let g = g.contiguous()?;
        match x.dtype() {
            DType::F64 => self.gradient::<f64>(x, &g).map(Some),
            _ => self.gradient::<f32>(x, &g).map(Some),
        }
    }
}

/// Hyper-parameters of factor transfer: the paraphraser is trained before the student, then frozen; the translator is
/// trained with the student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FtConfig {
    /// Epochs in which the paraphraser is trained.
    pub init_epochs: usize,
    /// Learning rate of that phase, constant; none: 0.01 for students whose name starts with `resnet` or `wrn`, else the
    /// run's initial one.
    pub init_lr: Option<f64>,
    /// Channels of the factor, as a share of the teacher's, in (0, 1].
    pub k: f64,
    /// Power of the factors, in 1 ..= 16.
    pub p1: f64,
    /// Power of the differences, in 1 ..= 16.
    pub p2: f64,
    /// What of a factor is compared.
    pub factor_norm: FactorNorm,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for FtConfig {
    fn default() -> Self {
        Self {
            init_epochs: INIT_EPOCHS,
            init_lr: None,
            k: 0.5,
            p1: 2.0,
            p2: 1.0,
            factor_norm: FactorNorm::ChannelMean,
            weight: 200.0,
        }
    }
}

impl Method for FtConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Factor transfer",
        family: Family::Feature,
        paper: Some("Paraphrasing Complex Network: Network Compression via Factor Transfer"),
        year: Some(2018),
        arxiv: Some("1802.04977"),
        inputs: Inputs { maps: Side::Both, which: MapChoice::Last, ..Inputs::NONE },
        trainable: &["paraphraser of the teacher's last map", "translator of the student's last map"],
        phase: Some(ExtraPhase::InitParts(INIT_EPOCHS)),
        state: &[],
        buffers: &["paraphraser", "batch norm statistics"],
        ce_weight: Some(1.0),
        weight: 200.0,
        code_bases: &[config::REP_DISTILLER],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::count(METHOD, "init_epochs", self.init_epochs)?;
        self.init_lr.map_or(Ok(()), |lr| check::positive(METHOD, "init_lr", lr))?;
        check_ratio(self.k)?;
        check::exponent(METHOD, "p1", self.p1)?;
        check::exponent(METHOD, "p2", self.p2)
    }
    fn needs(&self) -> Needs {
        Needs::MAPS
    }
    fn init_phase(&self, student: &NetworkSpec) -> Option<InitPhase> {
        let residual = ["resnet", "wrn"].iter().any(|family| student.name.starts_with(family));
        let lr = self.init_lr.or(residual.then_some(0.01));
        Some(InitPhase { epochs: self.init_epochs, lr, student: false })
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let last = |who: &str, spec: &NetworkSpec| {
            ops::map_shape(METHOD, who, spec, spec.maps.len().saturating_sub(1)).map(|map| map.channels)
        };
        let teacher = last("teacher", ctx.teacher(METHOD)?)?;
        let student = last("student", ctx.student)?;
        let factors = factor_channels(teacher, self.k)?;
        let (theirs, ours) = (ctx.init_scope.child("paraphraser"), ctx.scope.child("translator"));
        let paraphraser = Paraphraser::new(teacher, factors, SLOPE, false, &theirs)?;
        let translator = FactorEncoder::new(student, factors, SLOPE, true, &ours)?;
        Ok(Box::new(Ft { config: self.clone(), paraphraser, translator }))
    }
}

struct Ft {
    config: FtConfig,
    paraphraser: Paraphraser,
    translator: FactorEncoder,
}

fn last(outputs: &Outputs) -> Result<&Tensor> {
    outputs.maps.last().ok_or(Error::Missing { method: METHOD, what: "the feature maps of both networks" })
}

impl Distiller for Ft {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let (student, teacher) = (last(ctx.student)?, last(ctx.teacher(METHOD)?)?);
        ops::check_maps(METHOD, 0, student, teacher)?;
        let (ours, theirs) = (self.translator.forward(student, Mode::Train)?, self.paraphraser.factor(teacher)?);
        let powers = [self.config.p1, self.config.p2];
        let value = factor_transfer(&ours, &theirs, powers, self.config.factor_norm)?;
        Ok(Term { name: METHOD, weight: self.config.weight, value, parts: Vec::new() })
    }

    /// The paraphraser's own objective, of weight 1.
    fn init_term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let loss = self.paraphraser.paraphrase(last(ctx.teacher(METHOD)?)?)?.loss;
        Ok(Term { name: METHOD, weight: 1.0, value: loss, parts: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn leaky_relu_at_zero_and_on_nan() {
        let x = Var::new(&[2.0f32, 0.0, -3.0, f32::NAN], &Device::Cpu).unwrap();
        let y = leaky_relu(&x, 0.25).unwrap();
        let values = y.to_vec1::<f32>().unwrap();
        assert_eq!(values[..3], [2.0, 0.0, -0.75]);
        assert!(values[3].is_nan());
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().to_vec1::<f32>().unwrap(), [1.0, 0.25, 0.25, 0.25]);
    }
}
