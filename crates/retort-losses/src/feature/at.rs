//! Spatial attention maps.

use crate::config::{self, Family, Inputs, MapChoice, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::stages::Pairing;
use crate::{Align, Result, StageLoss, ops, reduce};
use candle_core::Tensor;
use retort_kernels::channel_power_mean;
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
        let attention = |x: &Tensor| ops::guarded_normalize(&channel_power_mean(x, p)?, EPS);
        reduce::mean_squared_error(&attention(&s)?, &attention(&t)?)
    })
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
        inputs: Inputs { maps: Side::Both, which: MapChoice::Stages, ..Inputs::NONE },
        trainable: &[],
        phase: None,
        state: &[],
        buffers: &[],
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
