//! Pre-activation transfer with a margin ReLU and a partial distance.

use crate::config::{self, Family, Inputs, MapChoice, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::reduce::{self, by_float, lanes, slice};
use crate::stages::{Pairing, check_pre_activations};
use crate::{Align, Error, Result, StageLoss, ops};
use candle_core::cpu::erf::erfc_f64;
use candle_core::{Device, Storage, Tensor, WithDType};
use rayon::prelude::*;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap, adaptive_avg_pool2d, with_gradient};
use retort_nn::{ConvBatchNorm, Init, Mode, Scope, StageNorm, Taps};
use serde::{Deserialize, Serialize};
use std::f64::consts::{PI, SQRT_2};

const METHOD: &str = "ofd";

/// The expected value of the negative responses of each channel, `E[x | x < 0]` for `x ~ N(bias, weight^2)`.
///
/// With `z = bias / |weight|` it is `bias - |weight| phi(z) / Phi(-z)` where the probability `Phi(-z)` of a negative
/// response is above `cdf_threshold`, and `-3 |weight|` where it is not.
/// For a weight of 0 it is the limit, `min(bias, 0)`.
///
/// # Shapes
///
/// `weight`, `bias`: `[C]`, those of the batch norm whose results are the responses; returns `[C]`, a constant.
///
/// # Errors
///
/// Two shapes that differ, or a threshold outside 0 ..= 1.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let (weight, bias) = (Tensor::new(&[2f64, 1.0], &Device::Cpu)?, Tensor::new(&[0f64, 9.0], &Device::Cpu)?);
/// let margin = retort_losses::feature::ofd_margin(&weight, &bias, 1e-3)?.to_vec1::<f64>()?;
/// assert!((margin[0] + 2.0 * (2.0 / std::f64::consts::PI).sqrt()).abs() < 1e-14);
/// assert_eq!(margin[1], -3.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn ofd_margin(weight: &Tensor, bias: &Tensor, cdf_threshold: f64) -> Result<Tensor> {
    check::unit(METHOD, "cdf_threshold", cdf_threshold)?;
    if weight.rank() != 1 || weight.dims() != bias.dims() {
        let what = format!("bias of a batch norm with weight {:?}", weight.dims());
        return Err(Error::Shape { method: METHOD, what, expected: "[C], twice".into(), found: bias.dims().to_vec() });
    }
    let pairs = reduce::wide(weight)?.into_iter().zip(reduce::wide(bias)?);
    let margins: Vec<f64> = pairs.map(|(weight, bias)| negative_mean(weight.abs(), bias, cdf_threshold)).collect();
    Ok(Tensor::from_vec(margins, weight.dims(), &Device::Cpu)?.to_dtype(weight.dtype())?.to_device(weight.device())?)
}

fn negative_mean(std: f64, mean: f64, threshold: f64) -> f64 {
    if std == 0.0 {
        // `min` would turn NaN into 0.
        return if mean > 0.0 { 0.0 } else { mean };
    }
    let z = mean / std;
    let below = 0.5 * erfc_f64(z / SQRT_2);
    if below <= threshold {
        return -3.0 * std;
    }
    mean - std * (-0.5 * z * z).exp() / (2.0 * PI).sqrt() / below
}

/// Partial L2 distance to the teacher's map after a margin ReLU, one stage
/// (Heo et al. 2019, arXiv 1904.01866).
///
/// The teacher's map is adaptively average-pooled to the student's size. With `t' = max(t, m_c)` the loss is the sum of
/// `(x - t')^2` over all elements, divided by B; an element with `t <= 0` and `x <= t'` counts 0: where the teacher's
/// neuron is off, the student's may be as far below as it likes.
///
/// # Shapes
///
/// `student`: `[B, C, H, W]`, see [`OfdConnector`]; `teacher`: `[B, C, H', W']`; `margin`: `[C]`, see [`ofd_margin`].
/// Returns a scalar.
///
/// # Gradients
///
/// Into `student`; `teacher` and `margin` are constants.
///
/// # Errors
///
/// Batch sizes, channels or element types that do not fit; the message names `stage`.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let student = Tensor::new(&[[[[-5f32, 1.0]]]], &Device::Cpu)?;
/// let teacher = Tensor::new(&[[[[-2f32, 3.0]]]], &Device::Cpu)?;
/// let margin = Tensor::new(&[-0.5f32], &Device::Cpu)?;
/// // The first neuron is off in both networks.
/// let loss = retort_losses::feature::partial_l2(0, &student, &teacher, &margin)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 4.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn partial_l2(stage: usize, student: &Tensor, teacher: &Tensor, margin: &Tensor) -> Result<Tensor> {
    ops::check_maps(METHOD, stage, student, teacher)?;
    let (_, c, h, w) = student.dims4()?;
    if teacher.dims()[1] != c {
        let what = format!("stage {stage}: maps must have equally many channels");
        return Err(ops::mismatch(METHOD, what, student, teacher));
    }
    if margin.dims() != [c] {
        let (what, expected) = (format!("stage {stage}: margin"), format!("[{c}]"));
        return Err(Error::Shape { method: METHOD, what, expected, found: margin.dims().to_vec() });
    }
    let host = |x: &Tensor| x.detach().to_device(&Device::Cpu)?.contiguous();
    let t = adaptive_avg_pool2d(&host(teacher)?, [h, w])?;
    let (value, gradient) = value_and_gradient(&host(student)?, &t, reduce::wide(margin)?, student.track_op())?;
    match gradient {
        Some(gradient) => Ok(with_gradient(value, student, &gradient.to_device(student.device())?)?),
        None => reduce::constant(value, student),
    }
}

/// The loss of maps on the host, and its gradient where it is wanted.
fn value_and_gradient(x: &Tensor, t: &Tensor, margin: Vec<f64>, wanted: bool) -> Result<(f64, Option<Tensor>)> {
    let (b, _, h, w) = x.dims4()?;
    let ((x_storage, x_layout), (t_storage, t_layout)) = (x.storage_and_layout(), t.storage_and_layout());
    let (Storage::Cpu(x_cpu), Storage::Cpu(t_cpu)) = (&*x_storage, &*t_storage) else {
        unreachable!("both tensors are on the host");
    };
    Ok(by_float!(x_cpu, T => {
        let planes = Planes { x: slice::<T>(x_cpu, x_layout)?, t: slice::<T>(t_cpu, t_layout)?, area: h * w, margin };
        let gradient = wanted.then(|| Tensor::from_vec(planes.gradient(2.0 / b as f64), x.shape(), &Device::Cpu));
        Ok::<_, candle_core::Error>((planes.sum() / b as f64, gradient.transpose()?))
    })?)
}

/// Maps of one shape as `B C` planes of `area` elements.
struct Planes<'a, T> {
    x: &'a [T],
    t: &'a [T],
    area: usize,
    margin: Vec<f64>,
}

impl<T: WithDType> Planes<'_, T> {
    /// Planes of the student and the teacher with their margin.
    fn each(&self) -> impl IndexedParallelIterator<Item = (&[T], &[T], f64)> {
        let planes = self.x.par_chunks(self.area).zip(self.t.par_chunks(self.area)).with_min_len(16);
        planes.enumerate().map(move |(i, (x, t))| (x, t, self.margin[i % self.margin.len()]))
    }

    fn sum(&self) -> f64 {
        let plane = |(x, t, m): (&[T], &[T], f64)| lanes(self.area, |i| difference(x[i], t[i], m).powi(2));
        let sums: Vec<f64> = self.each().map(plane).collect();
        lanes(sums.len(), |i| sums[i])
    }

    fn gradient(&self, factor: f64) -> Vec<T> {
        let mut out = vec![T::zero(); self.x.len()];
        out.par_chunks_mut(self.area).zip(self.each()).for_each(|(out, (x, t, m))| {
            for (out, (x, t)) in out.iter_mut().zip(x.iter().zip(t)) {
                *out = T::from_f64(factor * difference(*x, *t, m));
            }
        });
        out
    }
}

/// `x - max(t, m)`, 0 where it does not count; NaN stays NaN.
#[inline(always)]
fn difference<T: WithDType>(x: T, t: T, margin: f64) -> f64 {
    let (x, t) = (x.to_f64(), t.to_f64());
    let target = if t < margin || margin.is_nan() { margin } else { t };
    if t <= 0.0 && x <= target { 0.0 } else { x - target }
}

/// [`partial_l2`] of every stage times its weight.
///
/// # Errors
///
/// Lists of different lengths or empty ones; otherwise as for [`partial_l2`].
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::feature::{overhaul, overhaul_weights};
/// let map = Tensor::new(&[[[[1f32]]]], &Device::Cpu)?;
/// let (zero, margin) = (map.zeros_like()?, Tensor::new(&[-1f32], &Device::Cpu)?);
/// let maps = [map.clone(), map];
/// let loss = overhaul(&maps, &[zero.clone(), zero], &[margin.clone(), margin], &overhaul_weights(2))?;
/// assert_eq!(loss.total.to_scalar::<f32>()?, 1.5);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn overhaul(student: &[Tensor], teacher: &[Tensor], margins: &[Tensor], weights: &[f64]) -> Result<StageLoss> {
    if margins.len() != student.len() || weights.len() != student.len() {
        let (n, m, w) = (student.len(), margins.len(), weights.len());
        let message = format!("expected a margin and a weight for each of {n} stages, found {m} and {w}");
        return Err(Error::Undefined { method: METHOD, message });
    }
    StageLoss::sum(METHOD, student, teacher, |i, s, t| Ok((partial_l2(i, s, t, &margins[i])? * weights[i])?))
}

/// The weights of `n` stages: 1 for the last one, and half of the next one's for every other.
#[must_use]
pub fn overhaul_weights(n: usize) -> Vec<f64> {
    (1..=n).rev().map(|i| 0.5f64.powi(i as i32 - 1)).collect()
}

/// The student's side of one stage: a convolution without bias to the teacher's channels, then batch norm in training
/// mode.
///
/// Parameters: `0.weight` `[C_t, C_s, k, k]`, `1.weight` and `1.bias` `[C_t]`; buffers `1.running_mean`, `1.running_var`.
pub struct OfdConnector {
    conv: ConvBatchNorm,
}

impl OfdConnector {
    /// Declares the parts in `scope`; the kernel is `k x k`, the padding `(k - 1) / 2`, rounded down.
    ///
    /// # Errors
    ///
    /// A kernel size of 0, or a name that is taken.
    pub fn new(c_s: usize, c_t: usize, kernel_size: usize, scope: &Scope) -> Result<Self> {
        check_kernel(kernel_size)?;
        let shape = [c_t, c_s, kernel_size, kernel_size];
        let spec = Conv2dSpec::new(1, (kernel_size - 1) / 2);
        Ok(Self { conv: ConvBatchNorm::new(scope, "0", "1", shape, spec, Init::KaimingNormalFanOut)? })
    }

    /// `[B, C_s, H, W]` to `[B, C_t, H, W]` (for an odd kernel); updates the running statistics.
    ///
    /// # Errors
    ///
    /// A map with other channels, or a single value per channel (`B = H = W = 1`), whose variance is undefined.
    pub fn forward(&self, student: &Tensor) -> Result<Tensor> {
        if let [1, _, 1, 1] = *student.dims() {
            return Err(Error::Shape {
                method: METHOD,
                what: "student map".into(),
                expected: "more than one value per channel for the connector's batch norm".into(),
                found: student.dims().to_vec(),
            });
        }
        let x = FeatureMap::from_tensor(student)?;
        Ok(self.conv.forward(&x, Mode::Train, Activation::None)?.to_tensor()?)
    }
}

/// Larger kernels than any map have no use.
fn check_kernel(size: usize) -> Result<()> {
    if (1..=31).contains(&size) {
        return Ok(());
    }
    let (expected, found) = ("a whole number in 1 ..= 31".to_string(), size.to_string());
    Err(Error::Config { method: METHOD, field: "kernel_size", expected, found })
}

/// What the teacher's batch norms normalise with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TeacherBn {
    /// The statistics of the batch, as in the authors' code; here the stored ones do not move.
    #[default]
    Batch,
    /// The running statistics, as for every other method.
    Running,
}

/// Hyper-parameters of the overhaul of feature distillation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OfdConfig {
    /// Kernel of the connectors, >= 1.
    pub kernel_size: usize,
    /// Up to this probability of a negative response the margin is minus three standard deviations.
    pub cdf_threshold: f64,
    /// What the teacher's batch norms normalise with.
    pub teacher_bn: TeacherBn,
    /// Pairing of stages; margins are paired with their maps.
    pub align: Align,
    /// Weight of the term: 0.001 on CIFAR; 0.0001 has been used on ImageNet.
    pub weight: f64,
}

impl Default for OfdConfig {
    fn default() -> Self {
        let (teacher_bn, align) = (TeacherBn::Batch, Align::Tail);
        Self { kernel_size: 1, cdf_threshold: 1e-3, teacher_bn, align, weight: 1e-3 }
    }
}

impl Method for OfdConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Overhaul of feature distillation",
        family: Family::Feature,
        paper: Some("A Comprehensive Overhaul of Feature Distillation"),
        year: Some(2019),
        arxiv: Some("1904.01866"),
        inputs: Inputs { pre_activations: Side::Both, which: MapChoice::Stages, teacher_norms: true, ..Inputs::NONE },
        trainable: &["connector of each stage"],
        phase: None,
        state: &[],
        buffers: &["batch norm statistics"],
        ce_weight: Some(1.0),
        weight: 1e-3,
        code_bases: &[config::MDISTILLER],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check_kernel(self.kernel_size)?;
        check::unit(METHOD, "cdf_threshold", self.cdf_threshold)
    }
    fn needs(&self) -> Needs {
        let taps = Taps { maps: false, pre_activations: true };
        Needs { taps, batch_statistics: self.teacher_bn == TeacherBn::Batch, ..Needs::TEACHER }
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        check_pre_activations(METHOD, "student", ctx.student)?;
        check_pre_activations(METHOD, "teacher", ctx.teacher(METHOD)?)?;
        let pairing = Pairing::new(METHOD, self.align, ctx)?;
        let (_, norms) = pairing.pick(ctx.student.stages(), teacher_norms(ctx)?)?;
        let shapes = pairing.shapes(ctx)?;
        let margins = norms.iter().zip(&shapes).map(|(norm, (_, teacher))| {
            let margin = ofd_margin(&norm.weight, &norm.bias, self.cdf_threshold)?;
            if margin.dims() == [teacher.channels] {
                return Ok(margin);
            }
            let what = format!("batch norm before the teacher's map {}", ops::describe(teacher));
            let expected = format!("[{}]", teacher.channels);
            Err(Error::Shape { method: METHOD, what, expected, found: margin.dims().to_vec() })
        });
        let margins = margins.collect::<Result<_>>()?;
        let connectors = shapes.iter().enumerate().map(|(i, (s, t))| {
            let scope = ctx.scope.child("connectors").child(i);
            OfdConnector::new(s.channels, t.channels, self.kernel_size, &scope)
        });
        let connectors = connectors.collect::<Result<_>>()?;
        Ok(Box::new(Ofd { weight: self.weight, pairing, connectors, margins }))
    }
}

/// One batch norm for each of the teacher's stages.
fn teacher_norms<'a>(ctx: &BuildContext<'a>) -> Result<&'a [StageNorm]> {
    let teacher = ctx.teacher(METHOD)?;
    let found = ctx.teacher_norms.map_or(0, <[StageNorm]>::len);
    match ctx.teacher_norms {
        Some(norms) if found == teacher.stages().len() => Ok(norms),
        _ => {
            let (name, stages) = (&teacher.name, teacher.stages().len());
            let message = format!(
                "teacher `{name}` shows the batch norms before the activations of {found} of its {stages} stages, but \
                 the margins come from them"
            );
            Err(Error::Undefined { method: METHOD, message })
        }
    }
}

struct Ofd {
    weight: f64,
    pairing: Pairing,
    connectors: Vec<OfdConnector>,
    margins: Vec<Tensor>,
}

impl Distiller for Ofd {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let (student, teacher) = self.pairing.pre_activations(ctx)?;
        let stages = self.connectors.iter().zip(student.iter().zip(&teacher)).enumerate();
        let connected = stages
            .map(|(i, (connector, (s, t)))| {
                ops::check_maps(METHOD, i, s, t)?;
                connector.forward(s)
            })
            .collect::<Result<Vec<_>>>()?;
        let loss = overhaul(&connected, &teacher, &self.margins, &overhaul_weights(connected.len()))?;
        Ok(Term { name: METHOD, weight: self.weight, parts: loss.parts(), value: loss.total })
    }
}
