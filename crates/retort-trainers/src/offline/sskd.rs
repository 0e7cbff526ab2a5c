//! Distillation of what a teacher knows about rotated views.

use super::branched::unrotated;
use super::hsakd::check_square;
use crate::engine::{BatchTransform, Evaluated, Objective, Phase, Step, StepOutput};
use crate::state::{Part, Parts, part};
use crate::system::{Kind, System, SystemContext, SystemInfo, Teachers};
use crate::trained::BACKBONE;
use crate::{Error, Result};
use candle_core::Tensor;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use retort_datasets::batch::rotate4;
use retort_datasets::{Batch, ImageShape, Modality, TransformConfig};
use retort_losses::Term;
use retort_losses::self_supervised::{SskdConfig, SskdOutputs, sskd, ssp};
use retort_models::Head;
use retort_nn::{Mode, Network, Outputs, ParamGroup, Taps, Tensors, no_grad};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The teacher of [`SskdConfig`]: a projection head on a trained network, which stays as it is (Xu et al. 2020, arXiv
/// 2006.07114).
///
/// The head learns to tell of which image a rotated view is, by the cross-entropy of cosine similarities. Published: 60
/// epochs, rate 0.05, times 0.1 after 30 and 45.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SskdTeacherConfig {}

impl System for SskdTeacherConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "sskd-teacher",
        title: "Teacher with a projection head for rotated views",
        kind: Kind::Teacher,
        paper: Some("Knowledge Distillation Meets Self-Supervision"),
        year: Some(2020),
        arxiv: Some("2006.07114"),
        views: 1,
        losses: false,
        trainable: &["projection head"],
        state: &[],
        code_bases: &["xuguodong03/SSKD"],
    };

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn teachers(&self) -> Teachers {
        Teachers::One
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let trained = ctx.teacher(Self::INFO.id)?;
        let network = trained.network(&ctx.device)?;
        let params = ctx.params("head");
        let head = Head::sskd(network.spec().embedding, &params.root())?;
        let parts = Parts::new([Part::new("head", params)]);
        let objective = TeacherPhase { network, backbone: trained.backbone(), head, parts };
        Ok(vec![phase(ctx, "head", Box::new(objective))?])
    }
}

struct TeacherPhase {
    network: Arc<dyn Network>,
    backbone: Tensors,
    head: Head,
    parts: Parts,
}

impl Objective for TeacherPhase {
    fn groups(&self) -> Vec<ParamGroup> {
        self.parts.groups()
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let said = no_grad(|| self.network.forward(&step.batch.images, Mode::Eval, Taps::default()))?;
        let value = ssp(&self.head.forward(&said.embedding.detach(), Mode::Train)?)?;
        let terms = vec![Term { name: "ssp", weight: 1.0, value, parts: Vec::new() }];
        Ok(StepOutput { terms, logits: Some(unrotated(&said.logits, step.batch)?) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.network.as_ref(), None)]
    }

    fn weights(&self) -> Result<Tensors> {
        let mut weights = crate::state::under(BACKBONE, self.backbone.clone());
        weights.extend(part(&self.parts.state()?, "head."));
        Ok(weights)
    }

    fn state(&self) -> Result<Tensors> {
        self.parts.state()
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        self.parts.load(state)
    }
}

impl System for SskdConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "sskd",
        title: "Distillation with self-supervision",
        kind: Kind::Offline,
        ..SskdTeacherConfig::INFO
    };

    fn check(&self) -> Result<()> {
        Ok(self.validate()?)
    }

    fn teachers(&self) -> Teachers {
        Teachers::Of(SskdTeacherConfig::INFO.id)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let trained = ctx.teacher(Self::INFO.id)?;
        if trained.config != ctx.model {
            let message = format!(
                "student and teacher must have the same images and classes, found {:?} and {:?}",
                ctx.model, trained.config
            );
            return Err(Error::Config { what: Self::INFO.id.into(), message });
        }
        let [params, head_params] = ["student", "head"].map(|name| ctx.params(name));
        let student = retort_models::build(ctx.student, &ctx.model, &params.root())?;
        let head = Head::sskd(student.spec().embedding, &head_params.root())?;
        let parts = Parts::new([Part::new("student", params), Part::new("head", head_params)]);
        let teacher = trained.projected(&ctx.device)?;
        let objective = StudentPhase { student: (student, head), teacher, parts, config: self.clone() };
        Ok(vec![phase(ctx, "distil", Box::new(objective))?])
    }
}

struct StudentPhase {
    student: (Box<dyn Network>, Head),
    teacher: (Arc<dyn Network>, Head),
    parts: Parts,
    config: SskdConfig,
}

/// Class scores and projections of all views.
fn said((network, head): (&dyn Network, &Head), images: &Tensor, mode: Mode) -> Result<(Tensor, Tensor)> {
    let Outputs { logits, embedding, .. } = network.forward(images, mode, Taps::default())?;
    let proj = head.forward(&embedding, mode)?;
    Ok((logits, proj))
}

impl Objective for StudentPhase {
    fn groups(&self) -> Vec<ParamGroup> {
        self.parts.groups()
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let images = &step.batch.images;
        let (logits, proj) = no_grad(|| said((self.teacher.0.as_ref(), &self.teacher.1), images, Mode::Eval))?;
        let teacher = SskdOutputs { logits: &logits, proj: &proj };
        let (logits, proj) = said((self.student.0.as_ref(), &self.student.1), images, Mode::Train)?;
        let student = SskdOutputs { logits: &logits, proj: &proj };
        let loss = sskd(&student, &teacher, &step.batch.label_ids, &self.config)?;
        Ok(StepOutput { terms: loss.terms(&self.config)?, logits: Some(unrotated(&logits, step.batch)?) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.0.as_ref(), Some(self.teacher.0.as_ref()))]
    }

    /// The network alone: the head is dropped.
    fn weights(&self) -> Result<Tensors> {
        Ok(part(&self.parts.state()?, "student."))
    }

    fn state(&self) -> Result<Tensors> {
        self.parts.state()
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        self.parts.load(state)
    }
}

/// The main phase with views as SSKD makes them: what the augmentation says but for its random crop, then four quarter
/// turns, then a crop of each.
fn phase(ctx: &SystemContext<'_>, name: &str, objective: Box<dyn Objective>) -> Result<Phase> {
    check_square(ctx)?;
    let mut phase = ctx.recipe.phase(name, objective);
    let mut paddings = Vec::new();
    let [height, width] = ctx.model.image;
    let shape = ImageShape { channels: ctx.model.in_channels, height, width };
    for view in &mut phase.plan.views {
        if view.modality != Modality::Stored {
            let message = "crops behind the rotation are padded with black, which other modalities do not show as such";
            return Err(Error::Config { what: "modality".into(), message: message.into() });
        }
        view.transforms.retain(|transform| match transform {
            TransformConfig::RandomCrop { padding: found } => {
                paddings.push(*found);
                false
            }
            _ => true,
        });
    }
    if let [padding, more @ ..] = paddings.as_slice() {
        TransformConfig::RandomCrop { padding: *padding }.check(shape)?;
        if !more.is_empty() {
            let message = format!("one `random-crop` is done behind the rotation, found {}", paddings.len());
            return Err(Error::Config { what: "augmentation".into(), message });
        }
    }
    phase.transform = Box::new(RotateThenCrop::new(ctx, paddings.first().copied().unwrap_or(0)));
    Ok(phase)
}

/// Every image under 0, 1, 2 and 3 quarter turns, row `4 i + k`, then each view moved by up to `padding` pixels, what
/// comes in being black.
struct RotateThenCrop {
    padding: usize,
    /// Black as networks see it, by channel.
    black: Vec<f32>,
}

impl RotateThenCrop {
    fn new(ctx: &SystemContext<'_>, padding: usize) -> Self {
        let normalization = ctx.train.normalization();
        let black = normalization.mean.iter().zip(&normalization.std).map(|(mean, std)| (0.0 - mean) / std).collect();
        Self { padding, black }
    }

    fn crop(&self, images: &Tensor, rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let (n, channels, height, width) = images.dims4()?;
        let source: Vec<f32> = images.flatten_all()?.to_vec1()?;
        let mut cropped = vec![0f32; source.len()];
        let (plane, reach) = (height * width, 2 * self.padding);
        let padding = self.padding as isize;
        for row in 0..n {
            let [top, left] = [0; 2].map(|_: i32| rng.random_range(0..=reach) as isize - padding);
            for channel in 0..channels {
                let start = (row * channels + channel) * plane;
                let (from, to) = (&source[start..start + plane], &mut cropped[start..start + plane]);
                for (place, value) in to.iter_mut().enumerate() {
                    let (y, x) = ((place / width) as isize + top, (place % width) as isize + left);
                    let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
                    *value = if inside { from[y as usize * width + x as usize] } else { self.black[channel] };
                }
            }
        }
        Ok(Tensor::from_vec(cropped, images.dims(), images.device())?)
    }
}

impl BatchTransform for RotateThenCrop {
    fn apply(&self, mut batch: Batch, rng: &mut ChaCha8Rng) -> Result<Batch> {
        batch.images = rotate4(&batch.images)?;
        if self.padding > 0 {
            batch.images = self.crop(&batch.images, rng)?;
        }
        Ok(batch)
    }
}
