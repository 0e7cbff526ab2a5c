//! Hierarchical self-supervised augmented distillation: class and rotation together, behind every stage.

use super::branched::{Branched, Said, rows, unrotated};
use crate::engine::{Evaluated, Objective, Phase, Step, StepOutput};
use crate::system::{Kind, System, SystemContext, SystemInfo, Teachers};
use crate::{Error, Result};
use retort_datasets::batch::rotate4;
use retort_losses::self_supervised::{HsakdConfig, hsakd_student, hsakd_teacher};
use retort_models::BranchedNetwork;
use retort_nn::{Mode, ParamGroup, Taps, Tensors};
use serde::{Deserialize, Serialize};

pub(crate) const PAPER: &str = "Hierarchical Self-supervised Augmented Knowledge Distillation";
pub(crate) const CODE: &[&str] = &["winycg/HSAKD"];

/// The teacher of [`HsakdConfig`]: auxiliary classifiers of the joint labels of class and rotation, one behind every stage
/// (Yang et al. 2021, arXiv 2107.13715).
///
/// `L = CE(z, y) + sum_l CE(head_l, 4 y + k)` on every image under `k = 0 .. 3` quarter turns, the first term on the
/// unrotated ones. The published schedules are 100 epochs for branches alone and 240 for both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HsakdTeacherConfig {
    /// Whether the network learns with its branches, from scratch ("Teacher*" of the paper); otherwise it is a trained
    /// teacher, frozen with its running statistics, and only the branches learn.
    pub joint: bool,
}

impl System for HsakdTeacherConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "hsakd-teacher",
        title: "Teacher with auxiliary classifiers",
        kind: Kind::Teacher,
        paper: Some(PAPER),
        year: Some(2021),
        arxiv: Some("2107.13715"),
        views: 1,
        losses: false,
        trainable: &["auxiliary classifiers behind every stage"],
        state: &[],
        code_bases: CODE,
    };

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn teachers(&self) -> Teachers {
        if self.joint { Teachers::None } else { Teachers::One }
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let network = match self.joint {
            true => Branched::new(ctx, ctx.student, "student")?,
            false => Branched::on_teacher(ctx, Self::INFO.id)?,
        };
        check_square(ctx)?;
        Ok(vec![ctx.recipe.phase("branches", Box::new(TeacherPhase(network)))])
    }
}

/// Quarter turns keep the shape of square images only.
pub(crate) fn check_square(ctx: &SystemContext<'_>) -> Result<()> {
    let [height, width] = ctx.model.image;
    if height == width {
        return Ok(());
    }
    let message = format!("rotations by quarter turns need square images, found {height}x{width}");
    Err(Error::Config { what: "images".into(), message })
}

struct TeacherPhase(Branched);

impl Objective for TeacherPhase {
    fn groups(&self) -> Vec<ParamGroup> {
        self.0.parts().groups()
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let said = self.0.forward(&rotate4(&step.batch.images)?)?;
        let loss = hsakd_teacher(&said.outputs(), &step.batch.label_ids)?;
        Ok(StepOutput {
            terms: loss.terms(&HsakdConfig::default())?,
            logits: Some(unrotated(&said.logits, step.batch)?),
        })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.0.evaluated(None)
    }

    fn weights(&self) -> Result<Tensors> {
        self.0.weights()
    }

    fn state(&self) -> Result<Tensors> {
        self.0.parts().state()
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        self.0.parts().load(state)
    }
}

impl System for HsakdConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "hsakd",
        title: "Hierarchical self-supervised augmented distillation",
        kind: Kind::Offline,
        ..HsakdTeacherConfig::INFO
    };

    fn check(&self) -> Result<()> {
        self.validate()?;
        if self.joint_weight == Self::default().joint_weight {
            return Ok(());
        }
        // The settings are one type for three phases; this one would never be read.
        let found = self.joint_weight;
        let message =
            format!("`joint_weight` belongs to `hssakd-online`: the student's heads get no labels; found {found}");
        Err(Error::Config { what: Self::INFO.id.into(), message })
    }

    fn teachers(&self) -> Teachers {
        Teachers::Of(HsakdTeacherConfig::INFO.id)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_square(ctx)?;
        let trained = ctx.teacher(Self::INFO.id)?;
        let teacher = trained.branched(&rows(&trained.model, &trained.config)?, &ctx.device)?;
        let student = Branched::new(ctx, ctx.student, "student")?;
        let (of_student, of_teacher) = (student.heads(), teacher.branches.specs().len());
        let wrong = |message: String| Err(Error::Config { what: Self::INFO.id.into(), message });
        if of_student != of_teacher {
            return wrong(format!(
                "heads are paired one to one: expected the same number, found {of_student} of `{}` and {of_teacher} of `{}`",
                ctx.student, trained.model
            ));
        }
        if trained.config != ctx.model {
            return wrong(format!(
                "student and teacher must have the same images and classes, found {:?} and {:?}",
                ctx.model, trained.config
            ));
        }
        let objective = StudentPhase { student, teacher, config: self.clone() };
        Ok(vec![ctx.recipe.phase("distil", Box::new(objective))])
    }
}

struct StudentPhase {
    student: Branched,
    teacher: BranchedNetwork,
    config: HsakdConfig,
}

impl Objective for StudentPhase {
    fn groups(&self) -> Vec<ParamGroup> {
        self.student.parts().groups()
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let images = rotate4(&step.batch.images)?;
        let teacher = self.teacher.forward(&images, Mode::Eval, Taps::default())?;
        let teacher = Said::of(teacher.backbone, teacher.branches);
        let student = self.student.forward(&images)?;
        let (labels, temperature) = (&step.batch.label_ids, self.config.temperature);
        let loss = hsakd_student(&student.outputs(), &teacher.outputs(), labels, temperature)?;
        Ok(StepOutput { terms: loss.terms(&self.config)?, logits: Some(unrotated(&student.logits, step.batch)?) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.student.evaluated(Some(self.teacher.backbone.as_ref()))
    }

    /// The network alone: the branches are dropped.
    fn weights(&self) -> Result<Tensors> {
        self.student.backbone_weights()
    }

    fn state(&self) -> Result<Tensors> {
        self.student.parts().state()
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        self.student.parts().load(state)
    }
}
