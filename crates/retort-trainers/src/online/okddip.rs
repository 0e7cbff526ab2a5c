//! Peers that learn from mixtures of each other, and a leader that learns from all.

use super::cohort::{Cohort, CohortForm, Others, logits};
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{Kind, MAIN, System, SystemContext, SystemInfo};
use crate::{Error, Result};
use candle_core::Tensor;
use retort_losses::online::{RampedSettings, okddip};
use retort_models::{PeerAttention, PeersConfig};
use retort_nn::{Network, Taps, Tensors};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Peers learn from mixtures of all peers that an attention on their embeddings makes, and the group's leader from their
/// mean (Chen et al. 2020, arXiv 1912.00350); see [`okddip`]. The leader is the student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OkddipConfig {
    /// The peers beside the leader, 2 to 15; their embeddings must have one width.
    pub others: Others,
    /// What leader and peers share.
    pub form: CohortForm,
    /// Temperature and ramp of the imitation.
    pub loss: RampedSettings,
}

impl Default for OkddipConfig {
    fn default() -> Self {
        Self { others: Others::Copies(3), form: CohortForm::Networks, loss: RampedSettings::default() }
    }
}

impl System for OkddipConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "okddip",
        title: "Online knowledge distillation with diverse peers",
        kind: Kind::Online,
        paper: Some("Online Knowledge Distillation with Diverse Peers"),
        year: Some(2020),
        arxiv: Some("1912.00350"),
        views: 1,
        losses: false,
        trainable: &["peers (networks or branches)", "attention between the peers"],
        state: &[],
        code_bases: &[super::OKDDIP_CODE],
    };

    fn check(&self) -> Result<()> {
        self.others.check(Self::INFO.id, 2)?;
        Ok(self.loss.validate(Self::INFO.id)?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let (cohort, mut parts) = Cohort::of(ctx, Self::INFO.id, &self.others, self.form, PeersConfig::one)?;
        let width = embedding_width(&cohort.networks()[1..])?;
        let params = ctx.params("attention");
        let attention = PeerAttention::new(width, (width / 8).max(1), &params.root())?;
        parts.push(Part::new("attention", params));
        let method = Okddip { cohort, attention, settings: self.loss };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

/// The width of all peers' embeddings.
fn embedding_width(peers: &[Arc<dyn Network>]) -> Result<usize> {
    let first = peers[0].spec();
    match peers.iter().map(|peer| peer.spec()).find(|spec| spec.embedding != first.embedding) {
        None => Ok(first.embedding),
        Some(other) => {
            let message = format!(
                "the attention needs peers with embeddings of one width, found {} of `{}` and {} of `{}`",
                first.embedding, first.name, other.embedding, other.name
            );
            Err(Error::Config { what: OkddipConfig::INFO.id.into(), message })
        }
    }
}

struct Okddip {
    cohort: Cohort,
    attention: PeerAttention,
    settings: RampedSettings,
}

impl Method for Okddip {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let outputs = self.cohort.forward(&step.batch.images, Taps::default())?.peers;
        let embeddings: Vec<Tensor> = outputs[1..].iter().map(|peer| peer.embedding.clone()).collect();
        let attention = self.attention.forward(&embeddings)?;
        let logits = logits(&outputs);
        let (settings, labels) = (&self.settings, step.batch.labels()?);
        let terms = okddip(&logits[1..], &attention, &logits[0], labels, settings, settings.ramp(step.epoch))?;
        Ok(StepOutput { terms, logits: logits.into_iter().next() })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.cohort.evaluated()
    }

    fn deployed(&self, student: Tensors) -> Result<Tensors> {
        Ok(self.cohort.deployed(student))
    }
}
