//! Pearson correlation of feature maps.

use crate::config::{self, Family, Inputs, MapChoice, Method, MethodInfo, Side};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::reduce::{by_float, slice};
use crate::stages::Pairing;
use crate::{Align, Error, Result, StageLoss, ops, reduce};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, WithDType};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

const METHOD: &str = "pkd";
/// What the reference adds to deviations.
const EPS: f64 = 1e-6;

/// Which map is resized where the heights differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// The student's, to the teacher's size.
    #[default]
    Student,
    /// The teacher's, to the student's size.
    Teacher,
}

/// Pearson correlation of maps (Cao et al. 2022, arXiv 2207.02039).
///
/// Per stage and channel, over all B H W values: `z = (x - mean) / (std + eps)` with the unbiased standard deviation (eps is 1e-6 in the reference);
/// the stage's loss is `mean((z_s - z_t)^2) / 2`, up to rounding the mean over channels of one minus the correlation.
/// Stages are summed.
/// Maps of different heights are resized bilinearly (half-pixel centres, no antialiasing).
/// A constant channel has `z = 0` and no gradient.
///
/// # Shapes
///
/// `student[i]`: `[B, C_i, H_i, W_i]`, `teacher[i]`: `[B, C_i, H'_i, W'_i]`.
///
/// # Gradients
///
/// Into the student's maps, through their means and deviations; the teacher's are detached.
/// A channel that is nearly constant has gradients of up to 1e6.
///
/// # Errors
///
/// Lists of different lengths or empty ones, batch sizes or channels that differ, maps of one height and two widths,
/// a single value per channel (its deviation is undefined), an `eps` that is not positive.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::feature::{Resize, pearson};
/// let f = Tensor::new(&[[[[1f32, 2.0], [3.0, 5.0]]]], &Device::Cpu)?;
/// let same = pearson(&[f.clone()], &[((&f * 3.0)? + 2.0)?], Resize::Student, 1e-6)?;
/// let opposite = pearson(&[f.clone()], &[f.neg()?], Resize::Student, 1e-6)?;
/// assert!(same.total.to_scalar::<f32>()? < 1e-6);
/// // 2 (n - 1) / n with n = 4 values.
/// assert!((opposite.total.to_scalar::<f32>()? - 1.5).abs() < 1e-5);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn pearson(student: &[Tensor], teacher: &[Tensor], resize: Resize, eps: f64) -> Result<StageLoss> {
    config::check::positive(METHOD, "std_eps", eps)?;
    StageLoss::sum(METHOD, student, teacher, |i, s, t| {
        let (s, t) = matched(i, s, t, resize)?;
        let (b, _, h, w) = s.dims4()?;
        if b * h * w < 2 {
            return Err(Error::Shape {
                method: METHOD,
                what: format!("stage {i}"),
                expected: "at least two values per channel, otherwise the deviation is undefined".into(),
                found: s.dims().to_vec(),
            });
        }
        let (s, t) = (standardize(&s, eps)?, standardize(&t, eps)?);
        reduce::squared_error(&s, &t, 0.5 / s.elem_count() as f64)
    })
}

/// Both maps in one size, the teacher's detached.
fn matched(stage: usize, s: &Tensor, t: &Tensor, resize: Resize) -> Result<(Tensor, Tensor)> {
    ops::check_maps(METHOD, stage, s, t)?;
    let (_, c_s, h_s, w_s) = s.dims4()?;
    let (_, c_t, h_t, w_t) = t.dims4()?;
    if c_s != c_t {
        return Err(ops::mismatch(METHOD, format!("stage {stage}: channels must agree"), s, t));
    }
    let detached = t.detach();
    let (a, b) = match (h_s == h_t, resize) {
        (true, _) => (s.clone(), detached),
        (false, Resize::Student) => (retort_kernels::resize_bilinear2d(s, [h_t, w_t])?, detached),
        (false, Resize::Teacher) => (s.clone(), retort_kernels::resize_bilinear2d(&detached, [h_s, w_s])?),
    };
    if a.dims() != b.dims() {
        return Err(ops::mismatch(METHOD, format!("stage {stage}: maps of one height must have one width"), s, t));
    }
    Ok((a, b))
}

/// `(x - mean) / (std + eps)` per channel of `[B, C, H, W]`.
fn standardize(x: &Tensor, eps: f64) -> Result<Tensor> {
    let dims = x.dims4()?;
    let flat = x.contiguous()?.reshape((dims.0, dims.1, dims.2 * dims.3))?;
    if !x.device().is_cpu() {
        return Ok(standardize_by_parts(&flat, eps)?.reshape(dims)?);
    }
    Ok(flat.apply_op1(Standardize { eps })?.reshape(dims)?)
}

/// The same by candle's operations, for accelerators; `x` is `[B, C, N]`.
fn standardize_by_parts(x: &Tensor, eps: f64) -> Result<Tensor> {
    let (b, c, n) = x.dims3()?;
    let rows = x.transpose(0, 1)?.contiguous()?.reshape((c, b * n))?;
    let centred = rows.broadcast_sub(&rows.mean_keepdim(1)?)?;
    let variance = (centred.sqr()?.sum_keepdim(1)? / (b * n - 1) as f64)?;
    let constant = rows.max_keepdim(1)?.eq(&rows.min_keepdim(1)?)?;
    let safe = constant.where_cond(&variance.ones_like()?, &variance)?;
    let factor = (safe.sqrt()? + eps)?.recip()?;
    let factor = constant.where_cond(&factor.zeros_like()?, &factor)?;
    Ok(centred.broadcast_mul(&factor)?.reshape((c, b, n))?.transpose(0, 1)?.contiguous()?)
}

/// Statistics in f64, one pass to write; the backward pass recomputes the statistics instead of storing `z`'s parts.
struct Standardize {
    eps: f64,
}

/// Mean and unbiased deviation of one channel; a deviation of exactly 0 if all values are equal.
struct Moments {
    mean: f64,
    std: f64,
    count: f64,
}

impl Moments {
    /// Of channel `c` in `[B, C, N]`.
    fn of<T: WithDType>(x: &[T], channels: usize, c: usize, n: usize) -> Self {
        let rows = || x.chunks_exact(n).skip(c).step_by(channels);
        let count = (x.len() / channels) as f64;
        let mean = rows().map(|row| reduce::lanes(n, |i| row[i].to_f64())).sum::<f64>() / count;
        let square = |x: f64| (x - mean) * (x - mean);
        let variance = rows().map(|row| reduce::lanes(n, |i| square(row[i].to_f64()))).sum::<f64>() / (count - 1.0);
        // The mean is rounded, so a constant channel would show a deviation of the size of that rounding.
        let first = x[c * n].to_f64();
        let constant = rows().all(|row| row.iter().all(|x| x.to_f64() == first));
        Self { mean, std: if constant { 0.0 } else { variance.sqrt() }, count }
    }

    /// `1 / (std + eps)`, 0 for a constant channel.
    fn factor(&self, eps: f64) -> f64 {
        if self.std == 0.0 { 0.0 } else { 1.0 / (self.std + eps) }
    }
}

impl Standardize {
    fn moments<T: WithDType>(x: &[T], [c, n]: [usize; 2]) -> Vec<Moments> {
        (0..c).into_par_iter().map(|channel| Moments::of(x, c, channel, n)).collect()
    }

    fn forward<T: WithDType>(&self, x: &[T], [c, n]: [usize; 2]) -> Vec<T> {
        let moments = Self::moments(x, [c, n]);
        let mut out = vec![T::zero(); x.len()];
        out.par_chunks_mut(n).zip(x.par_chunks(n)).enumerate().for_each(|(row, (out, x))| {
            let m = &moments[row % c];
            let factor = m.factor(self.eps);
            out.iter_mut().zip(x).for_each(|(o, x)| *o = T::from_f64((x.to_f64() - m.mean) * factor));
        });
        out
    }

    /// `dL/dx = f (g - mean(g) - (x - mean) f sum(g (x - mean)) / (std (count - 1)))` with `f = 1 / (std + eps)`.
    fn backward<T: WithDType>(&self, x: &Tensor, g: &Tensor) -> candle_core::Result<Tensor> {
        let (_, c, n) = x.dims3()?;
        let (x_values, g_values) = (x.flatten_all()?.to_vec1::<T>()?, g.contiguous()?.flatten_all()?.to_vec1::<T>()?);
        let moments = Self::moments(&x_values, [c, n]);
        let sums: Vec<(f64, f64)> = (0..c)
            .into_par_iter()
            .map(|channel| {
                let mean = moments[channel].mean;
                let rows = x_values.chunks_exact(n).zip(g_values.chunks_exact(n)).skip(channel).step_by(c);
                rows.fold((0.0, 0.0), |(sum, product), (x, g)| {
                    let more = reduce::lanes(n, |i| g[i].to_f64() * (x[i].to_f64() - mean));
                    (sum + reduce::lanes(n, |i| g[i].to_f64()), product + more)
                })
            })
            .collect();
        let mut out = vec![T::zero(); x_values.len()];
        out.par_chunks_mut(n).enumerate().for_each(|(row, out)| {
            let (m, (sum, product)) = (&moments[row % c], sums[row % c]);
            if m.std == 0.0 {
                return;
            }
            let factor = m.factor(self.eps);
            let slope = factor * product / (m.std * (m.count - 1.0));
            let (x, g) = (&x_values[row * n..][..n], &g_values[row * n..][..n]);
            for ((o, x), g) in out.iter_mut().zip(x).zip(g) {
                *o = T::from_f64(factor * (g.to_f64() - sum / m.count - (x.to_f64() - m.mean) * slope));
            }
        });
        Tensor::from_vec(out, x.shape(), x.device())
    }
}

impl CustomOp1 for Standardize {
    fn name(&self) -> &'static str {
        "standardize"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, c, n) = l.shape().dims3()?;
        by_float!(s, T => Ok((T::to_cpu_storage_owned(self.forward(slice::<T>(s, l)?, [c, n])), l.shape().clone())))
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        match x.dtype() {
            candle_core::DType::F64 => self.backward::<f64>(x, g).map(Some),
            _ => self.backward::<f32>(x, g).map(Some),
        }
    }
}

/// Hyper-parameters of the Pearson correlation of maps; published weights exist for detectors only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PkdConfig {
    /// Which map is resized where the heights differ.
    pub resize: Resize,
    /// Pairing of stages.
    pub align: Align,
    /// Added to deviations, > 0.
    pub std_eps: f64,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for PkdConfig {
    fn default() -> Self {
        Self { resize: Resize::Student, align: Align::Exact, std_eps: EPS, weight: 6.0 }
    }
}

impl Method for PkdConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Pearson correlation of maps",
        family: Family::Feature,
        paper: Some("PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient"),
        year: Some(2022),
        arxiv: Some("2207.02039"),
        inputs: Inputs { maps: Side::Both, which: MapChoice::Stages, ..Inputs::NONE },
        trainable: &[],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: Some(1.0),
        weight: 6.0,
        code_bases: &["open-mmlab/mmrazor"],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        config::check::positive(METHOD, "std_eps", self.std_eps)
    }
    fn needs(&self) -> Needs {
        Needs::MAPS
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let pairing = Pairing::new(METHOD, self.align, ctx)?;
        for (i, (s, t)) in pairing.shapes(ctx)?.iter().enumerate() {
            if s.channels != t.channels {
                let (s, t) = (ops::describe(s), ops::describe(t));
                let message =
                    format!("stage {i}: channels must agree, found {s} in the student and {t} in the teacher");
                return Err(Error::Undefined { method: METHOD, message });
            }
        }
        Ok(Box::new(Pkd { config: self.clone(), pairing }))
    }
}

struct Pkd {
    config: PkdConfig,
    pairing: Pairing,
}

impl Distiller for Pkd {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let (student, teacher) = self.pairing.maps(ctx)?;
        let loss = pearson(&student, &teacher, self.config.resize, self.config.std_eps)?;
        Ok(Term { name: METHOD, weight: self.config.weight, parts: loss.parts(), value: loss.total })
    }
}
