//! Flow between consecutive layers.

use crate::config::{self, ExtraPhase, Family, Inputs, MapChoice, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, InitPhase, Needs, Term};
use crate::{Error, Result, StageLoss, ops, reduce};
use candle_core::Tensor;
use retort_kernels::adaptive_avg_pool2d;
use retort_nn::{MapShape, NetworkSpec};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

const METHOD: &str = "fsp";
const INIT_EPOCHS: usize = 30;

/// Transfer of the flow of the solution procedure (Yim et al., "A Gift from Knowledge Distillation", CVPR 2017):
/// how consecutive layers relate, measured by their channels' inner products.
///
/// Every two consecutive maps of a network make a matrix `G`, see [`flow_matrix`].
/// A pair's loss is `mean((G_s - G_t)^2)` over all entries; pairs are summed and stand in the result's `stages`.
///
/// # Shapes
///
/// `student[i]`: `[B, C_i, H_i, W_i]`, `teacher[i]`: `[B, C_i, H'_i, W'_i]` for the maps f0 (stem), f1 .. fL, at least two;
/// channels must agree, sizes may differ.
///
/// # Gradients
///
/// Into the student's maps; the teacher's are detached.
///
/// # Errors
///
/// Lists of different lengths or with fewer than two maps, batch sizes or channels that differ, consecutive maps of one
/// height and two widths.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let s = [Tensor::new(&[[[[1f32, 2.0]]]], &Device::Cpu)?, Tensor::new(&[[[[3f32, 1.0]]]], &Device::Cpu)?];
/// let t = [Tensor::new(&[[[[1f32, 1.0]]]], &Device::Cpu)?, Tensor::new(&[[[[1f32, 2.0]]]], &Device::Cpu)?];
/// // G_s = (3 + 2) / 2, G_t = (1 + 2) / 2.
/// let loss = retort_losses::feature::flow(&s, &t)?;
/// assert_eq!(loss.total.to_scalar::<f32>()?, 1.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn flow(student: &[Tensor], teacher: &[Tensor]) -> Result<StageLoss> {
    let count = student.len();
    if count < 2 || count != teacher.len() {
        let found = format!("the student has {count} and the teacher {}", teacher.len());
        let message = format!("expected as many maps of both networks, at least two, but {found}");
        return Err(Error::Undefined { method: METHOD, message });
    }
    for (i, (s, t)) in student.iter().zip(teacher).enumerate() {
        ops::check_maps(METHOD, i, s, t)?;
        if s.dims()[1] != t.dims()[1] {
            return Err(ops::mismatch(METHOD, format!("stage {i}: maps must have as many channels"), s, t));
        }
    }
    StageLoss::sum(METHOD, &student[..count - 1], &teacher[..count - 1], |i, s, t| {
        let student = flow_matrix(s, &student[i + 1])?;
        reduce::mean_squared_error(&student, &flow_matrix(&t.detach(), &teacher[i + 1].detach())?)
    })
}

/// Inner products of the channels of two consecutive maps, `G[b, j, i] = mean_hw bottom[b, i, hw] top[b, j, hw]`; the
/// larger map, by height, is average-pooled to the smaller one's size first.
///
/// # Shapes
///
/// `bottom`: `[B, C1, H, W]`, `top`: `[B, C2, H', W']`. Returns `[B, C2, C1]`.
///
/// # Gradients
///
/// Into both.
///
/// # Errors
///
/// Batch sizes or types that differ, empty maps, maps of one height and two widths.
pub fn flow_matrix(bottom: &Tensor, top: &Tensor) -> Result<Tensor> {
    let fits = bottom.rank() == 4 && top.rank() == 4 && bottom.dims()[0] == top.dims()[0];
    if !fits || bottom.dtype() != top.dtype() || bottom.elem_count() == 0 || top.elem_count() == 0 {
        return Err(unrelated("expected non-empty maps [B, C, H, W] of one batch size and type", bottom, top));
    }
    let (b, c1, h, w) = bottom.dims4()?;
    let (_, c2, h2, w2) = top.dims4()?;
    let (bottom_map, top_map) = match h.cmp(&h2) {
        Ordering::Greater => (adaptive_avg_pool2d(bottom, [h2, w2])?, top.clone()),
        Ordering::Less => (bottom.clone(), adaptive_avg_pool2d(top, [h, w])?),
        Ordering::Equal if w == w2 => (bottom.clone(), top.clone()),
        Ordering::Equal => return Err(unrelated("maps of one height must have one width", bottom, top)),
    };
    let positions = h.min(h2) * bottom_map.dims()[3];
    let rows = bottom_map.reshape((b, c1, positions))?;
    let products = top_map.reshape((b, c2, positions))?.matmul(&rows.t()?)?;
    Ok(products.affine(1.0 / positions as f64, 0.0)?)
}

/// Two consecutive maps that do not fit together.
fn unrelated(rule: &str, bottom: &Tensor, top: &Tensor) -> Error {
    let (bottom, top) = ((bottom.dims(), bottom.dtype()), (top.dims(), top.dtype()));
    let message = format!("consecutive maps: {rule}, found {bottom:?} and {top:?}");
    Error::Undefined { method: METHOD, message }
}

/// Hyper-parameters of the flow transfer: a phase before the training, after which the term is 0.
///
/// Both networks need as many maps with the same channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FspConfig {
    /// Epochs of the phase before the training.
    pub init_epochs: usize,
    /// Learning rate of that phase, constant; none: the run's initial one.
    pub init_lr: Option<f64>,
    /// Weight of the term in the phase before the training; in the training it multiplies 0.
    pub weight: f64,
}

impl Default for FspConfig {
    fn default() -> Self {
        Self { init_epochs: INIT_EPOCHS, init_lr: None, weight: 1.0 }
    }
}

impl Method for FspConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Flow of solution procedure",
        family: Family::Feature,
        paper: Some(
            "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
        ),
        year: Some(2017),
        arxiv: None,
        inputs: Inputs { maps: Side::Both, which: MapChoice::StemAndStages, ..Inputs::NONE },
        trainable: &[],
        phase: Some(ExtraPhase::InitStudent(INIT_EPOCHS)),
        state: &[],
        buffers: &[],
        ce_weight: Some(1.0),
        weight: 1.0,
        code_bases: &[config::REP_DISTILLER],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::count(METHOD, "init_epochs", self.init_epochs)?;
        self.init_lr.map_or(Ok(()), |lr| check::positive(METHOD, "init_lr", lr))
    }
    fn needs(&self) -> Needs {
        Needs::MAPS
    }
    fn init_phase(&self, _student: &NetworkSpec) -> Option<InitPhase> {
        Some(InitPhase { epochs: self.init_epochs, lr: self.init_lr, student: true })
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let (student, teacher) = (&ctx.student.maps, &ctx.teacher(METHOD)?.maps);
        let channels = |maps: &[MapShape]| maps.iter().map(|map| map.channels).collect::<Vec<_>>();
        if student.len() < 2 || channels(student) != channels(teacher) {
            let list = |maps: &[MapShape]| maps.iter().map(ops::describe).collect::<Vec<_>>().join(", ");
            let message = format!(
                "both networks must show as many maps, at least two, with the same channels; found [{}] in the student \
                 and [{}] in the teacher",
                list(student),
                list(teacher)
            );
            return Err(Error::Undefined { method: METHOD, message });
        }
        Ok(Box::new(Fsp { weight: self.weight }))
    }
}

struct Fsp {
    weight: f64,
}

impl Distiller for Fsp {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let value = reduce::constant(0.0, &ctx.student.logits)?;
        Ok(Term { name: METHOD, weight: self.weight, value, parts: Vec::new() })
    }

    fn init_term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let loss = flow(&ctx.student.maps, &ctx.teacher(METHOD)?.maps)?;
        let pairs = loss.stages.into_iter().enumerate();
        let parts = pairs.map(|(i, pair)| (format!("pair{i}"), pair)).collect();
        Ok(Term { name: METHOD, weight: self.weight, value: loss.total, parts })
    }
}
