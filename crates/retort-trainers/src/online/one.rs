//! Branches that learn from their gated ensemble.

use super::cohort::{Cohort, Others, logits};
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{Kind, MAIN, System, SystemContext, SystemInfo};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_losses::online::{RampedSettings, one};
use retort_models::{Gate, PeerOutputs, Peers, PeersConfig};
use retort_nn::{Mode, Network, NetworkSpec, Outputs, Taps, Tensors, no_grad};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Branches of the last stage on one trunk learn from their gated ensemble (Lan, Zhu and Gong 2018, arXiv 1806.04606);
/// see [`one`] and [`Gate`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OneConfig {
    /// The branches beside the student's, 1 to 15.
    pub others: usize,
    /// Temperature and ramp of the imitation.
    pub loss: RampedSettings,
}

impl Default for OneConfig {
    fn default() -> Self {
        Self { others: 2, loss: RampedSettings::default() }
    }
}

impl System for OneConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "one",
        title: "Knowledge distillation by on-the-fly native ensemble",
        kind: Kind::Online,
        paper: Some("Knowledge Distillation by On-the-Fly Native Ensemble"),
        year: Some(2018),
        arxiv: Some("1806.04606"),
        views: 1,
        losses: false,
        trainable: &["further branches of the last stage", "gate"],
        state: &["batch norm statistics of the gate"],
        code_bases: &[super::OKDDIP_CODE],
    };

    fn check(&self) -> Result<()> {
        Others::Copies(self.others).check(Self::INFO.id, 1)?;
        Ok(self.loss.validate(Self::INFO.id)?)
    }

    /// The gate has a batch norm on pooled maps.
    fn least_rows(&self) -> usize {
        2
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let family = &retort_models::info(ctx.student)?.family;
        let (cohort, mut parts) = Cohort::on_trunk(ctx, &PeersConfig::one(family, 1 + self.others))?;
        let params = ctx.params("gate");
        let gated = Gated::new(&cohort, &ctx.device, |width, peers| Ok(Gate::new(width, peers, &params.root())?))?;
        parts.push(Part::new("gate", params));
        let method = One { cohort, gated, settings: self.loss };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

struct One {
    cohort: Cohort,
    gated: Gated,
    settings: RampedSettings,
}

impl Method for One {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let outputs = self.cohort.forward(&step.batch.images, Taps::default())?;
        let gated = self.gated.mix(&outputs, Mode::Train)?.logits;
        let logits = logits(&outputs.peers);
        let terms = one(&logits, &gated, step.batch.labels()?, &self.settings, self.settings.ramp(step.epoch))?;
        Ok(StepOutput { terms, logits: logits.into_iter().next() })
    }

    /// The branches, the mean of their logits as `ensemble`, and their gated logits as `gated`.
    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        let mut all = self.cohort.evaluated();
        all.push(Evaluated { name: "gated".into(), network: &self.gated, teacher: None });
        all
    }

    fn deployed(&self, student: Tensors) -> Result<Tensors> {
        Ok(self.cohort.deployed(student))
    }
}

/// All branches with their gate, as one network.
struct Gated {
    peers: Arc<Peers>,
    gate: Gate,
    spec: NetworkSpec,
}

impl Gated {
    /// `gate` makes a gate for a trunk of some width and a number of branches.
    fn new(cohort: &Cohort, device: &Device, gate: impl FnOnce(usize, usize) -> Result<Gate>) -> Result<Self> {
        let Some(peers) = cohort.joined() else {
            let message = "the gate needs branches on one trunk, found complete networks".into();
            return Err(Error::Config { what: OneConfig::INFO.id.into(), message });
        };
        let (first, count) = (&peers.specs()[0], peers.specs().len());
        let embedding = trunk_width(peers, device)?;
        let spec = NetworkSpec {
            name: format!("{}, {count} gated branches", first.name),
            maps: Vec::new(),
            embedding,
            pre_activations: false,
            multiply_adds: peers.multiply_adds().saturating_add(embedding.saturating_mul(count)),
            ..first.clone()
        };
        Ok(Self { peers: Arc::clone(peers), gate: gate(embedding, count)?, spec })
    }

    /// The mixture of the branches' logits, and the trunk that the gate has looked at.
    fn mix(&self, outputs: &PeerOutputs, mode: Mode) -> retort_nn::Result<Outputs> {
        let none = || retort_nn::Error::invalid(&self.spec.name, "there is no trunk");
        let trunk = outputs.trunk.as_ref().ok_or_else(none)?;
        let logits = Gate::mix(&self.gate.forward(trunk, mode)?, &logits(&outputs.peers))?;
        Ok(Outputs { logits, embedding: trunk.clone(), maps: vec![], pre_activations: vec![] })
    }
}

impl Network for Gated {
    fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    fn forward(&self, images: &Tensor, mode: Mode, _taps: Taps) -> retort_nn::Result<Outputs> {
        self.mix(&self.peers.forward(images, mode, Taps::default())?, mode)
    }
}

/// Channels at the end of the trunk, found by a pass of one blank image: a trunk may end behind the last map that it
/// shows.
fn trunk_width(peers: &Peers, device: &Device) -> Result<usize> {
    let NetworkSpec { in_channels, image: [height, width], .. } = peers.specs()[0];
    let blank = Tensor::zeros((1, in_channels, height, width), DType::F32, device)?;
    let trunk = no_grad(|| peers.forward(&blank, Mode::Eval, Taps::default()))?.trunk;
    Ok(trunk.map_or(Ok(0), |trunk| trunk.dim(1))?)
}
