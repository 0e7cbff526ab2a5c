//! Mutual contrastive learning on the samples of a batch.

use super::cohort::{Cohort, CohortForm, Others, logits, task};
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{Kind, MAIN, Recipe, System, SystemContext, SystemInfo};
use crate::{Error, Result};
use candle_core::Tensor;
use retort_datasets::Sampling;
use retort_losses::online::{MclSettings, mcl, mcl_logit_kd};
use retort_models::{Family, Head, PeersConfig};
use retort_nn::{Mode, Network, Outputs, Taps, Tensors};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Networks whose embeddings contrast the classes of a batch, within each network and across networks, and imitate each
/// other's similarities (Yang et al. 2022, arXiv 2104.12565); see [`mcl`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MclConfig {
    /// The networks beside the student, 1 to 15.
    pub others: Others,
    /// What they share. Where absent, as published: nothing for two networks or several architectures, stem and first
    /// stage for more than two of one architecture.
    pub form: Option<CohortForm>,
    /// Images of each class in a batch, at least 2: a divisor of the batch size that leaves at least 2 classes, and no
    /// more than there are. Where absent, the smallest such number; 2 where there are many classes, as published.
    pub per_class: Option<usize>,
    /// Hidden width of the heads, at least 1.
    pub hidden: usize,
    /// Width of the contrasted embeddings, at least 1.
    pub dim: usize,
    /// Whether class scores are imitated, too; see [`mcl_logit_kd`]. Its temperature is that of the loss.
    pub logit_kd: bool,
    /// Temperatures and weights.
    pub loss: MclSettings,
}

impl Default for MclConfig {
    fn default() -> Self {
        Self {
            others: Others::default(),
            form: None,
            per_class: None,
            hidden: 128,
            dim: 128,
            logit_kd: false,
            loss: MclSettings::default(),
        }
    }
}

impl System for MclConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "mcl",
        title: "Mutual contrastive learning",
        kind: Kind::Online,
        paper: Some("Mutual Contrastive Learning for Visual Representation Learning"),
        year: Some(2022),
        arxiv: Some("2104.12565"),
        views: 1,
        losses: false,
        trainable: &["further networks or branches", "head of each network"],
        state: &[],
        code_bases: &[super::MCL_CODE],
    };

    fn check(&self) -> Result<()> {
        self.others.check(Self::INFO.id, 1)?;
        Ok(self.loss.validate(Self::INFO.id)?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let recipe = class_balanced(ctx, Self::INFO.id, self.per_class)?;
        let (cohort, mut parts) = cohort(ctx, Self::INFO.id, &self.others, self.form)?;
        let (heads, part) = heads(ctx, &cohort, self.hidden, self.dim)?;
        parts.push(part);
        let method = Mcl { cohort, heads, settings: self.loss, logit_kd: self.logit_kd };
        Ok(vec![recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

/// The recipe with batches of `per_class` images of every class in them.
pub(super) fn class_balanced(
    ctx: &SystemContext<'_>,
    system: &'static str,
    per_class: Option<usize>,
) -> Result<Recipe> {
    let batch = ctx.recipe.plan.batch_size;
    let counts = ctx.train.class_counts();
    let occur = counts.iter().filter(|&&count| count > 0).count();
    // One class alone has nothing to be told from.
    let fits = |m: usize| m >= 2 && batch.is_multiple_of(m) && (2..=occur).contains(&(batch / m));
    let each = match per_class {
        Some(m) => Some(m).filter(|&m| fits(m)),
        // The most classes make the fewest images of each.
        None => {
            (2..=occur).rev().filter(|&classes| batch.is_multiple_of(classes)).map(|c| batch / c).find(|&m| fits(m))
        }
    };
    let Some(each) = each else {
        let message = match per_class {
            Some(m) => format!(
                "`per_class` must be at least 2 and divide the batch into 2 to {occur} classes, found {m} for batches of {batch}"
            ),
            None => format!(
                "a batch must hold at least 2 images each of 2 to {occur} classes, which `batch_size` = {batch} cannot be \
                 divided into; take a multiple of such a number of classes"
            ),
        };
        return Err(Error::Config { what: system.into(), message });
    };
    let sampling = Sampling::ClassBalanced { classes: batch / each };
    ctx.sampled(system, sampling)
}

/// The networks of MCL: complete ones, or branches behind the first stage.
pub(super) fn cohort(
    ctx: &SystemContext<'_>,
    system: &'static str,
    others: &Others,
    form: Option<CohortForm>,
) -> Result<(Cohort, Vec<Part>)> {
    let published = match others {
        Others::Copies(count) if *count > 1 => CohortForm::Branches,
        _ => CohortForm::Networks,
    };
    // The trunk that is published for more than two, also for two.
    let peers = |family: &Family, peers: usize| PeersConfig { peers, ..PeersConfig::mcl(family, peers.max(3)) };
    Cohort::of(ctx, system, others, form.unwrap_or(published), peers)
}

/// A head for each network, and their parameters.
pub(super) fn heads(ctx: &SystemContext<'_>, cohort: &Cohort, hidden: usize, dim: usize) -> Result<(Vec<Head>, Part)> {
    let params = ctx.params("heads");
    let head = |(k, network): (usize, &Arc<dyn Network>)| {
        Ok(Head::mcl(network.spec().embedding, hidden, dim, &params.root().child(k))?)
    };
    let heads = cohort.networks().iter().enumerate().map(head).collect::<Result<_>>()?;
    Ok((heads, Part::new("heads", params)))
}

/// What the heads make of the networks' embeddings: rows of length 1.
pub(super) fn projected(heads: &[Head], outputs: &[Outputs]) -> Result<Vec<Tensor>> {
    heads.iter().zip(outputs).map(|(head, peer)| Ok(head.forward(&peer.embedding, Mode::Train)?)).collect()
}

struct Mcl {
    cohort: Cohort,
    heads: Vec<Head>,
    settings: MclSettings,
    logit_kd: bool,
}

impl Method for Mcl {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let labels = step.batch.labels()?;
        let outputs = self.cohort.forward(&step.batch.images, Taps::default())?.peers;
        let logits = logits(&outputs);
        let mut terms = vec![task(&logits, labels)?];
        terms.extend(mcl(&projected(&self.heads, &outputs)?, labels, &self.settings)?);
        if self.logit_kd {
            terms.push(mcl_logit_kd(&logits, self.settings.temperature)?);
        }
        Ok(StepOutput { terms, logits: logits.into_iter().next() })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.cohort.evaluated()
    }

    fn deployed(&self, student: Tensors) -> Result<Tensors> {
        Ok(self.cohort.deployed(student))
    }
}
