//! Networks and a classifier on their fused maps that teach each other: what FFL and the reconstruction of MFEF have in
//! common.

use super::cohort::{Cohort, Others, logits};
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{MAIN, SystemContext};
use crate::{Error, Result};
use candle_core::Tensor;
use retort_losses::online::{RampedSettings, ffl};
use retort_models::{FusionModule, Head, MultiScaleAttention, MultiScaleConfig};
use retort_nn::{MapShape, Mode, Network, NetworkSpec, Outputs, Scope, Taps};
use std::sync::Arc;

/// A system of this kind.
pub(super) struct FusionSystem<'a> {
    pub(super) id: &'static str,
    pub(super) others: &'a Others,
    pub(super) loss: RampedSettings,
    pub(super) weight_decay: f64,
    pub(super) layers: FusionLayers,
}

/// What stands between the last maps and the fused classifier.
#[derive(Clone, Copy)]
pub(super) struct FusionLayers {
    /// On each network's map, if anything.
    pub(super) attention: Option<MultiScaleConfig>,
    /// Convolutions over all maps; without them the classifier reads the pooled maps side by side.
    pub(super) convolutions: bool,
}

impl FusionSystem<'_> {
    pub(super) fn check(&self) -> Result<()> {
        self.others.check(self.id, 1)?;
        self.loss.validate(self.id)?;
        if self.weight_decay >= 0.0 && self.weight_decay.is_finite() {
            return Ok(());
        }
        let message = format!("`fusion_weight_decay` must be >= 0, found {}", self.weight_decay);
        Err(Error::Config { what: self.id.into(), message })
    }

    pub(super) fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let (cohort, mut parts) = Cohort::complete(ctx, self.others)?;
        let params = ctx.params("fusion");
        let fused = Fused::new(self.id, cohort.networks(), self.layers, &params.root())?;
        parts.push(Part::new("fusion", params).weight_decay(self.weight_decay));
        let method = Fusing { cohort, fused, settings: self.loss };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

struct Fusing {
    cohort: Cohort,
    fused: Fused,
    settings: RampedSettings,
}

impl Method for Fusing {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let outputs = self.cohort.forward(&step.batch.images, MAPS)?.peers;
        let fused = self.fused.fuse(&outputs, Mode::Train)?.logits;
        let logits = logits(&outputs);
        let terms = ffl(&logits, &fused, step.batch.labels()?, &self.settings, self.settings.ramp(step.epoch))?;
        Ok(StepOutput { terms, logits: logits.into_iter().next() })
    }

    /// The networks, their `ensemble`, and the classifier on their fused maps as `fused`.
    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        let mut all = self.cohort.evaluated();
        all.push(Evaluated { name: "fused".into(), network: &self.fused, teacher: None });
        all
    }
}

const MAPS: Taps = Taps { maps: true, pre_activations: false };

/// All networks and the classifier on their fused last maps, as one network.
struct Fused {
    networks: Vec<Arc<dyn Network>>,
    /// For each network; none where their maps are taken as they are.
    attention: Vec<MultiScaleAttention>,
    end: End,
    spec: NetworkSpec,
}

enum End {
    Module(Box<FusionModule>),
    Pooled(Head),
}

impl Fused {
    fn new(id: &'static str, networks: &[Arc<dyn Network>], layers: FusionLayers, scope: &Scope) -> Result<Self> {
        let maps = networks.iter().map(|network| last_map(id, network.spec())).collect::<Result<Vec<_>>>()?;
        let attend = |config| {
            let attention = |(k, map): (usize, &MapShape)| {
                MultiScaleAttention::new(*map, config, &scope.child("attention").child(k))
            };
            maps.iter().enumerate().map(attention).collect::<retort_models::Result<Vec<_>>>()
        };
        let attention = layers.attention.map(attend).transpose()?.unwrap_or_default();
        let first = networks[0].spec();
        let width = maps.iter().map(|map| map.channels).sum();
        let (end, embedding, multiply_adds) = if layers.convolutions {
            let module = FusionModule::new(&maps, first.classes, &scope.child("module"))?;
            let multiply_adds = module.multiply_adds();
            (End::Module(Box::new(module)), maps[0].channels, multiply_adds)
        } else {
            let head = Head::linear_probe(width, first.classes, &scope.child("classifier"))?;
            let multiply_adds = head.multiply_adds();
            (End::Pooled(head), width, multiply_adds)
        };
        let names: Vec<&str> = networks.iter().map(|network| network.spec().name.as_str()).collect();
        let sums = networks.iter().map(|network| network.spec().multiply_adds);
        let spec = NetworkSpec {
            name: format!("{}, fused", names.join(" + ")),
            maps: Vec::new(),
            embedding,
            pre_activations: false,
            multiply_adds: sums.fold(multiply_adds, usize::saturating_add),
            ..first.clone()
        };
        Ok(Self { networks: networks.to_vec(), attention, end, spec })
    }

    /// The fused classifier on what the networks have shown.
    fn fuse(&self, outputs: &[Outputs], mode: Mode) -> retort_nn::Result<Outputs> {
        let mut maps = Vec::new();
        for (k, outputs) in outputs.iter().enumerate() {
            let map = outputs.last_map()?;
            maps.push(match self.attention.get(k) {
                Some(attention) => attention.forward(map, mode)?,
                None => map.clone(),
            });
        }
        match &self.end {
            End::Module(module) => module.forward(&maps, mode, Taps::default()),
            End::Pooled(head) => {
                let pooled = maps.iter().map(|map| Ok(map.flatten_from(2)?.mean(2)?));
                let embedding = Tensor::cat(&pooled.collect::<retort_nn::Result<Vec<_>>>()?, 1)?;
                let logits = head.forward(&embedding, mode)?;
                Ok(Outputs { logits, embedding, maps: vec![], pre_activations: vec![] })
            }
        }
    }
}

fn last_map(id: &'static str, spec: &NetworkSpec) -> Result<MapShape> {
    spec.stages().last().copied().ok_or_else(|| {
        let message = format!("expected networks with maps that can be fused, found `{}` without any", spec.name);
        Error::Config { what: id.into(), message }
    })
}

impl Network for Fused {
    fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    fn forward(&self, images: &Tensor, mode: Mode, _taps: Taps) -> retort_nn::Result<Outputs> {
        let outputs = self.networks.iter().map(|network| network.forward(images, mode, MAPS));
        self.fuse(&outputs.collect::<retort_nn::Result<Vec<_>>>()?, mode)
    }
}
