//! Similarities within a batch.

use crate::config::{self, Family, Inputs, MapChoice, Method, MethodInfo, Side};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::{Result, ops, reduce};
use candle_core::Tensor;
use retort_kernels::gram;
use serde::{Deserialize, Serialize};

const METHOD: &str = "sp";
const EPS: f64 = 1e-12;

/// Similarity-preserving loss (Tung and Mori 2019, arXiv 1907.09682).
///
/// With rows `f_i` the flattened features of sample `i`, `G = F F^T`, and each row of `G` divided by its norm,
/// the loss is `||G_t - G_s||_F^2 / B^2`.
/// A row of `G` with norm <= 1e-12 (a zero sample) is the constant 0; the sample still gets gradient from the other rows.
///
/// # Shapes
///
/// `student`: `[B, ..]`, `teacher`: `[B, ..]`; trailing dimensions may differ. Returns a scalar.
///
/// # Gradients
///
/// Into `student`; `teacher` is detached.
///
/// # Errors
///
/// Batch sizes that differ, or an empty batch.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let f = Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let loss = retort_losses::relational::similarity_preserving(&f, &f)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn similarity_preserving(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (b, teacher) = ops::batches(METHOD, student, teacher)?;
    let similarity = |x: &Tensor| ops::guarded_normalize(&gram(x)?, EPS);
    let (s, t) = rayon::join(|| similarity(student), || similarity(&teacher));
    reduce::squared_error(&s?, &t?, 1.0 / (b * b) as f64)
}

/// Hyper-parameters of the similarity-preserving loss; it reads the last feature map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpConfig {
    /// Weight of the term.
    pub weight: f64,
}

impl Default for SpConfig {
    fn default() -> Self {
        Self { weight: 3000.0 }
    }
}

impl Method for SpConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Similarity-preserving distillation",
        family: Family::Relational,
        paper: Some("Similarity-Preserving Knowledge Distillation"),
        year: Some(2019),
        arxiv: Some("1907.09682"),
        inputs: Inputs { maps: Side::Both, which: MapChoice::Last, ..Inputs::NONE },
        trainable: &[],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: Some(1.0),
        weight: 3000.0,
        code_bases: config::BOTH,
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        Ok(())
    }
    fn needs(&self) -> Needs {
        Needs::MAPS
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        ctx.teacher(METHOD)?;
        Ok(Box::new(self.clone()))
    }
}

impl Distiller for SpConfig {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let value = similarity_preserving(ctx.student.last_map()?, ctx.teacher(METHOD)?.last_map()?)?;
        Ok(Term { name: METHOD, weight: self.weight, value, parts: Vec::new() })
    }
}
