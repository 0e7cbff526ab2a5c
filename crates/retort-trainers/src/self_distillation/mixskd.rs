//! A network and its branches agree on mixed images and on interpolations of the unmixed ones.

use super::{MAPS, check_labels, check_range, check_unread};
use crate::Result;
use crate::branched::Exits;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method, stream};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use candle_core::Tensor;
use retort_datasets::batch::{draw_beta, draw_permutation, mixup};
use retort_losses::self_distillation::{
    Discriminators, MixSkdBatch, MixSkdSettings, mixskd, mixskd_discriminator_input, mixskd_interpolate,
};
use retort_models::{BranchesConfig, MapDiscriminator, SelfTeacher};
use retort_nn::{MapShape, Seed};
use serde::{Deserialize, Serialize};

/// Self-distillation from mixup, with branches, a self-teacher on all last maps and discriminators (Yang et al. 2022,
/// arXiv 2208.05768); see [`mixskd`].
///
/// `loss = { mix_cross_entropy = false, train_discriminators = false }` is the published script for CIFAR.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixSkdConfig {
    /// Parameter of the law `Beta(alpha, alpha)` of the share of an image in its mixture, > 0.
    pub alpha: f64,
    /// Temperature, and what is learned.
    pub loss: MixSkdSettings,
}

impl Default for MixSkdConfig {
    fn default() -> Self {
        Self { alpha: 0.4, loss: MixSkdSettings::default() }
    }
}

/// Hidden width of a discriminator.
const HIDDEN: usize = 128;

impl System for MixSkdConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "mixskd",
        title: "Self-knowledge distillation from mixup",
        paper: Some("MixSKD: Self-Knowledge Distillation from Mixup for Image Recognition"),
        year: Some(2022),
        arxiv: Some("2208.05768"),
        trainable: &["auxiliary classifiers behind every stage but the last", "self-teacher", "discriminators"],
        code_bases: &["winycg/Self-KD-Lib"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        let ok = self.alpha > 0.0 && self.alpha.is_finite();
        check_range(ok, Self::INFO.id, "alpha", "a finite number > 0", self.alpha)?;
        if self.loss.discriminators == Discriminators::Off {
            let untrained = [("loss.train_discriminators", !self.loss.train_discriminators)];
            check_unread(Self::INFO.id, "where `discriminators` are off", &untrained)?;
        }
        Ok(self.loss.validate()?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let rows = BranchesConfig::mixskd(&retort_models::info(ctx.student)?.family, ctx.model.classes);
        let (student, parts) = Exits::new(ctx, &rows)?;
        let mut parts = Vec::from(parts);
        let map = last_map(&student)?;
        let heads = rows.rows.len() + 1;
        let teacher_params = ctx.params("self-teacher");
        let teacher = SelfTeacher::new(heads, map, ctx.model.classes, &teacher_params.root())?;
        let part = Part::new("self-teacher", teacher_params);
        // Without the cross-entropy of mixed images nothing teaches it, and weight decay alone would move it.
        parts.push(if self.loss.mix_cross_entropy { part } else { part.not_optimised() });
        let params = ctx.params("discriminators");
        let mut discriminators = Vec::new();
        if self.loss.discriminators != Discriminators::Off {
            for k in 0..heads {
                discriminators.push(MapDiscriminator::new(map.channels, HIDDEN, &params.root().child(k))?);
            }
            let part = Part::new("discriminators", params);
            parts.push(if self.loss.train_discriminators { part } else { part.not_optimised() });
        }
        let seed = ctx.seed.child(Self::INFO.id);
        let method = MixSkd { student, teacher, discriminators, config: *self, seed };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

/// Shape of the last maps of network and branches, which are compared with each other.
fn last_map(student: &Exits) -> Result<MapShape> {
    let specs = [student.backbone().spec()].into_iter().chain(student.branches().specs());
    let maps: Vec<MapShape> = specs.filter_map(|spec| spec.maps.last().copied()).collect();
    match maps.first() {
        Some(first) if maps.iter().all(|map| map == first) => Ok(*first),
        _ => {
            let message = format!("last maps of network and branches must have one shape, found {maps:?}");
            Err(super::wrong(MixSkdConfig::INFO.id, message))
        }
    }
}

struct MixSkd {
    student: Exits,
    teacher: SelfTeacher,
    discriminators: Vec<MapDiscriminator>,
    config: MixSkdConfig,
    seed: Seed,
}

impl MixSkd {
    /// What the self-teacher says about interpolated maps and about those of mixed images.
    fn self_teacher(&self, maps: &[Tensor], partners: &[u32], lambda: f64) -> Result<[Tensor; 2]> {
        let (mut interpolated, mut mixed) = (Vec::new(), Vec::new());
        for map in maps {
            let [between, of_mixed] = mixskd_interpolate(map, partners, lambda)?;
            interpolated.push(between);
            mixed.push(of_mixed);
        }
        Ok([self.teacher.forward(&interpolated)?, self.teacher.forward(&mixed)?])
    }

    /// What the discriminators say; nothing where there are none.
    fn scores(&self, maps: &[Tensor], partners: &[u32], lambda: f64) -> Result<Vec<Tensor>> {
        let mut scores = Vec::new();
        for (discriminator, map) in self.discriminators.iter().zip(maps) {
            let seen = mixskd_discriminator_input(map, partners, lambda, self.config.loss.discriminators)?;
            scores.push(discriminator.forward(&seen)?);
        }
        Ok(scores)
    }
}

impl Method for MixSkd {
    /// Unmixed and mixed images pass at once, under common batch statistics.
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let (batch, mut rng) = (step.batch, stream(self.seed, step));
        let lambda = draw_beta(self.config.alpha, &mut rng)?;
        let partners = draw_permutation(batch.len() as u32, &mut rng);
        let images = Tensor::cat(&[&batch.images, &mixup(&batch.images, &partners, lambda)?], 0)?;
        let outputs = self.student.forward(&images, MAPS)?;
        let (mut logits, mut maps) = (Vec::new(), Vec::new());
        for head in outputs.branches.iter().chain([&outputs.backbone]) {
            logits.push(head.logits.clone());
            maps.push(head.last_map()?.clone());
        }
        let [interpolated, mixed] = self.self_teacher(&maps, &partners, lambda)?;
        let scores = self.scores(&maps, &partners, lambda)?;
        let shown = MixSkdBatch {
            logits: &logits,
            maps: &maps,
            self_teacher: [&interpolated, &mixed],
            scores: &scores,
            partners: &partners,
            lambda,
            labels: batch.labels()?,
        };
        let terms = mixskd(&shown, &self.config.loss)?;
        Ok(StepOutput { terms, logits: Some(outputs.backbone.logits.narrow(0, 0, batch.len())?) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.student.evaluated()
    }
}
