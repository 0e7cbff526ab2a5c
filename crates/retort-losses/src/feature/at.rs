//! Spatial attention maps.

use crate::config::{self, Family, Inputs, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::reduce::{by_float, slice};
use crate::stages::Pairing;
use crate::{Align, Result, StageLoss, ops, reduce};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, WithDType};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

const METHOD: &str = "at";
const EPS: f64 = 1e-12;

/// Attention transfer (Zagoruyko and Komodakis 2017, arXiv 1612.03928).
///
/// Per stage the larger map, by height, is adaptively average-pooled to the smaller one's size;
/// then `A = vec(mean_c |f|^p)` in `[B, H W]`, `a = A / ||A||`, and the stage's loss is the mean of `(a_s - a_t)^2`
/// over all B H W entries. Stages are summed.
///
/// For even `p` this is the references' `f^p`; for odd `p` they differ on negative activations.
/// A map with `||A|| <= 1e-12` has the constant attention 0.
///
/// # Shapes
///
/// `student[i]`: `[B, C_i, H_i, W_i]`, `teacher[i]`: `[B, C'_i, H'_i, W'_i]`; `p >= 1`.
///
/// # Gradients
///
/// Into the student's maps; the teacher's are detached.
///
/// # Errors
///
/// Lists of different lengths or empty ones, batch sizes that differ, maps of one height and two widths, `p < 1`.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let f = Tensor::new(&[[[[1f32, 2.0], [3.0, 4.0]]]], &Device::Cpu)?;
/// let g = (&f * 3.0)?;
/// let loss = retort_losses::feature::attention_transfer(&[f], &[g], 2.0)?;
/// assert!(loss.total.to_scalar::<f32>()? < 1e-12);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn attention_transfer(student: &[Tensor], teacher: &[Tensor], p: f64) -> Result<StageLoss> {
    check::exponent(METHOD, "p", p)?;
    StageLoss::sum(METHOD, student, teacher, |i, s, t| {
        let (s, t) = ops::pool_match(METHOD, i, s, t)?;
        let attention = |x: &Tensor| ops::guarded_normalize(&energy(x, p)?, EPS);
        reduce::mean_squared_error(&attention(&s)?, &attention(&t)?)
    })
}

/// `mean_c |x|^p`: `[B, C, H, W]` to `[B, H W]`.
fn energy(x: &Tensor, p: f64) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if !x.device().is_cpu() {
        let power = if p == 2.0 { x.sqr()? } else { retort_kernels::abs(x)?.powf(p)? };
        return Ok(power.mean(1)?.reshape((b, h * w))?);
    }
    Ok(x.contiguous()?.reshape((b, c, h * w))?.apply_op1(Energy { p })?)
}

/// One pass forward and one backward, where a chain of power and mean writes four tensors of the map's size.
struct Energy {
    p: f64,
}

impl Energy {
    /// `|x|^p`, with a plain product for the usual exponent.
    #[inline(always)]
    fn power(&self, x: f64) -> f64 {
        if self.p == 2.0 { x * x } else { x.abs().powf(self.p) }
    }

    /// `d |x|^p / dx`; 0 at 0.
    #[inline(always)]
    fn slope(&self, x: f64) -> f64 {
        if self.p == 2.0 {
            2.0 * x
        } else if x == 0.0 {
            0.0
        } else {
            self.p * x.signum() * x.abs().powf(self.p - 1.0)
        }
    }

    fn forward<T: WithDType>(&self, x: &[T], [c, n]: [usize; 2]) -> Vec<T> {
        let mut out = vec![T::zero(); x.len() / c];
        out.par_chunks_mut(n).zip(x.par_chunks(c * n)).for_each(|(out, x)| {
            let mut sum = vec![0.0; n];
            for x in x.chunks_exact(n) {
                sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += self.power(x.to_f64()));
            }
            out.iter_mut().zip(sum).for_each(|(o, sum)| *o = T::from_f64(sum / c as f64));
        });
        out
    }

    fn backward<T: WithDType>(&self, x: &Tensor, g: &Tensor) -> candle_core::Result<Tensor> {
        let (_, c, n) = x.dims3()?;
        let g: Vec<T> = g.contiguous()?.flatten_all()?.to_vec1()?;
        let (storage, layout) = x.storage_and_layout();
        let candle_core::Storage::Cpu(cpu) = &*storage else {
            return Err(candle_core::Error::Msg("expected a tensor on the CPU".into()));
        };
        let values = slice::<T>(cpu, layout)?;
        let mut out = vec![T::zero(); values.len()];
        out.par_chunks_mut(n).zip(values.par_chunks(n)).enumerate().for_each(|(row, (out, x))| {
            let g = &g[row / c * n..][..n];
            for ((o, x), g) in out.iter_mut().zip(x).zip(g) {
                *o = T::from_f64(g.to_f64() / c as f64 * self.slope(x.to_f64()));
            }
        });
        Tensor::from_vec(out, x.shape(), x.device())
    }
}

impl CustomOp1 for Energy {
    fn name(&self) -> &'static str {
        "attention energy"
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, c, n) = l.shape().dims3()?;
        by_float!(s, T => {
            Ok((T::to_cpu_storage_owned(self.forward(slice::<T>(s, l)?, [c, n])), Shape::from((b, n))))
        })
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        match x.dtype() {
            candle_core::DType::F64 => self.backward::<f64>(x, g).map(Some),
            _ => self.backward::<f32>(x, g).map(Some),
        }
    }
}

/// Hyper-parameters of attention transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AtConfig {
    /// Power of the activations, >= 1.
    pub p: f64,
    /// Pairing of stages.
    pub align: Align,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for AtConfig {
    fn default() -> Self {
        Self { p: 2.0, align: Align::Exact, weight: 1000.0 }
    }
}

impl Method for AtConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Attention transfer",
        family: Family::Feature,
        paper: Some(
            "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention Transfer",
        ),
        year: Some(2017),
        arxiv: Some("1612.03928"),
        inputs: Inputs { maps: Side::Both, ..Inputs::NONE },
        trainable: &[],
        state: &[],
        ce_weight: Some(1.0),
        weight: 1000.0,
        code_bases: config::BOTH,
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::exponent(METHOD, "p", self.p)
    }
    fn needs(&self) -> Needs {
        Needs::MAPS
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        Ok(Box::new(At { config: self.clone(), pairing: Pairing::new(METHOD, self.align, ctx)? }))
    }
}

struct At {
    config: AtConfig,
    pairing: Pairing,
}

impl Distiller for At {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let (student, teacher) = self.pairing.maps(ctx)?;
        let loss = attention_transfer(&student, &teacher, self.config.p)?;
        Ok(Term { name: METHOD, weight: self.config.weight, parts: loss.parts(), value: loss.total })
    }
}
