//! Training on images that are mixed of two, the baselines of self-distillation that change a whole batch.

use super::{check_labels, check_range, wrong};
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method, stream};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use candle_core::Tensor;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use retort_datasets::batch::{CutmixBox, cutmix, draw_beta, draw_permutation, mixup};
use retort_losses::Term;
use retort_losses::output::mix_cross_entropy;
use retort_nn::{Mode, Network, Seed, Taps};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Cross-entropy of images that are mixed with a partner of their batch, by the shares of both; see
/// [`mix_cross_entropy`]. One share and one permutation are drawn for each batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixedImagesConfig {
    /// How two images become one.
    pub method: Mixing,
    /// Parameter of the law `Beta(alpha, alpha)` of the share of an image in its mixture, > 0; where absent 0.4 for
    /// mixup, 1 for cutmix, 2 for manifold mixup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
}

/// How two images become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mixing {
    /// Their weighted sum (Zhang et al. 2017, arXiv 1710.09412).
    #[default]
    Mixup,
    /// A rectangle of the second one on the first one (Yun et al. 2019, arXiv 1905.04899).
    Cutmix,
    /// The weighted sum of what goes into a stage of the network, one of them at random for each batch (Verma et al.
    /// 2018, arXiv 1806.05236).
    ManifoldMixup,
}

impl MixedImagesConfig {
    fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(match self.method {
            Mixing::Mixup => 0.4,
            Mixing::Cutmix => 1.0,
            Mixing::ManifoldMixup => 2.0,
        })
    }
}

impl System for MixedImagesConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "mixed-images",
        title: "Mixup, cutmix and manifold mixup",
        code_bases: &["winycg/Self-KD-Lib"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        let alpha = self.alpha();
        check_range(alpha > 0.0 && alpha.is_finite(), Self::INFO.id, "alpha", "a finite number > 0", alpha)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let (student, params) = ctx.network(ctx.student, "student")?;
        if self.method == Mixing::ManifoldMixup && student.mixing_points() == 0 {
            let message = format!("`manifold-mixup` mixes what goes into a stage, but `{}` has none", ctx.student);
            return Err(wrong(Self::INFO.id, message));
        }
        let parts = Parts::new([Part::new("student", params)]);
        let method = MixedImages { student, config: *self, seed: ctx.seed.child(Self::INFO.id) };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(parts, method)))])
    }
}

struct MixedImages {
    student: Arc<dyn Network>,
    config: MixedImagesConfig,
    seed: Seed,
}

impl MixedImages {
    /// Logits of mixed images, and the share that an image has in its mixture.
    fn forward(&self, images: &Tensor, partners: &[u32], rng: &mut ChaCha8Rng) -> Result<(Tensor, f64)> {
        let lambda = draw_beta(self.config.alpha(), rng)?;
        let plain = |images: &Tensor| self.student.forward(images, Mode::Train, Taps::default());
        let (outputs, lambda) = match self.config.method {
            Mixing::Mixup => (plain(&mixup(images, partners, lambda)?)?, lambda),
            Mixing::Cutmix => {
                let (_, _, height, width) = images.dims4()?;
                let patch = CutmixBox::draw(height, width, lambda, rng)?;
                (plain(&cutmix(images, partners, &patch)?)?, patch.lambda_adjusted())
            }
            Mixing::ManifoldMixup => {
                let point = rng.random_range(0..self.student.mixing_points());
                let mix = |map: &Tensor| mixup(map, partners, lambda).map_err(candle_core::Error::wrap);
                (self.student.forward_mixed(images, Mode::Train, Taps::default(), point, &mix)?, lambda)
            }
        };
        Ok((outputs.logits, lambda))
    }
}

impl Method for MixedImages {
    /// Mixed images have two labels, so that there is no training accuracy.
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let (batch, mut rng) = (step.batch, stream(self.seed, step));
        let labels = batch.labels()?;
        let partners = draw_permutation(batch.len() as u32, &mut rng);
        let (logits, lambda) = self.forward(&batch.images, &partners, &mut rng)?;
        let others = labels.index_select(&Tensor::from_vec(partners, batch.len(), labels.device())?, 0)?;
        let value = mix_cross_entropy(&logits, labels, &others, lambda)?;
        Ok(StepOutput { terms: vec![Term { name: "mix-ce", weight: 1.0, value, parts: Vec::new() }], logits: None })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.as_ref(), None)]
    }
}
