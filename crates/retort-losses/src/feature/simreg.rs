//! Regression of the teacher's embedding by a head that is dropped afterwards.

use crate::config::{Family, Inputs, Method, MethodInfo, Side};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Error, Result, ops, reduce};
use candle_core::{DType, Tensor};
use retort_nn::{Head, Mode, SimRegHead};
use serde::{Deserialize, Serialize};

const METHOD: &str = "simreg";
/// Rows up to this length count as zero.
const ZERO: f64 = 1e-12;

/// SimReg (Navaneet et al. 2021, BMVC, code UCDvision/simreg): `1 / B * sum_b (2 - 2 cos(p_b, t_b))`, the squared distance of
/// unit vectors.
///
/// A row of zeros has cosine 0 with every other, so that it contributes 2, and no gradient.
/// The arithmetic is f64.
///
/// With several teachers the loss is the mean over them, with a head for each: see
/// [`EnsembleDistiller`](crate::EnsembleDistiller) and [`mean_over_teachers`](crate::mean_over_teachers).
///
/// # Shapes
///
/// `head_output` (of the student's head), `teacher`: `[B, D]` of one shape. Returns a scalar in `0 ..= 4`.
///
/// # Gradients
///
/// Into `head_output`; `teacher` is detached.
///
/// # Errors
///
/// Two shapes that differ, an empty batch.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let p = Tensor::new(&[[1f32, 0.0], [0.0, 2.0]], &Device::Cpu)?;
/// let t = Tensor::new(&[[3f32, 0.0], [5.0, 0.0]], &Device::Cpu)?;
/// assert_eq!(retort_losses::feature::simreg(&p, &t)?.to_scalar::<f32>()?, 1.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn simreg(head_output: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (b, teacher) = ops::batches(METHOD, head_output, teacher)?;
    if head_output.rank() != 2 || head_output.dims() != teacher.dims() {
        let what = "the head must give embeddings [B, D] of the teacher's shape";
        return Err(ops::mismatch(METHOD, what, head_output, &teacher));
    }
    let unit = |x: &Tensor| ops::guarded_normalize(&x.to_dtype(DType::F64)?, ZERO);
    let cosines = reduce::sum_all(&(unit(head_output)? * unit(&teacher)?)?)?;
    Ok(cosines.affine(-2.0 / b as f64, 2.0)?.to_dtype(head_output.dtype())?)
}

/// Hyper-parameters of SimReg; the head is trained with the student and is no part of it afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimregConfig {
    /// The head from the student's embedding to the teacher's: `linear`, `two`, `two-activated` or `four`.
    pub head: SimRegHead,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SimregConfig {
    fn default() -> Self {
        Self { head: SimRegHead::Four, weight: 1.0 }
    }
}

impl Method for SimregConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Regression of the embedding (SimReg)",
        family: Family::Feature,
        paper: Some("SimReg: Regression as a Simple Yet Effective Tool for Self-supervised Knowledge Distillation"),
        year: Some(2021),
        arxiv: None,
        inputs: Inputs { embedding: Side::Both, ..Inputs::NONE },
        trainable: &["head from the student's embedding to the teacher's"],
        phase: None,
        state: &[],
        buffers: &["batch norm statistics"],
        ce_weight: Some(1.0),
        weight: 1.0,
        code_bases: &["UCDvision/simreg"],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        Ok(())
    }
    fn needs(&self) -> Needs {
        Needs::TEACHER
    }
    fn least_rows(&self) -> usize {
        if self.head.has_batch_norm() { 2 } else { 1 }
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let teacher = ctx.teacher(METHOD)?;
        let head = Head::simreg(self.head, ctx.student.embedding, teacher.embedding, &ctx.scope.child("head"))?;
        Ok(Box::new(Simreg { config: self.clone(), head }))
    }
}

struct Simreg {
    config: SimregConfig,
    head: Head,
}

impl Distiller for Simreg {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let (student, teacher) = (&ctx.student.embedding, &ctx.teacher(METHOD)?.embedding);
        let (b, teacher) = ops::batches(METHOD, student, teacher)?;
        let least = self.config.least_rows();
        if b < least {
            let (what, expected) = ("student embedding".into(), format!("at least {least} rows before batch norm"));
            return Err(Error::Shape { method: METHOD, what, expected, found: student.dims().to_vec() });
        }
        let value = simreg(&self.head.forward(student, Mode::Train)?, &teacher)?;
        Ok(Term { name: METHOD, weight: self.config.weight, value, parts: Vec::new() })
    }
}
