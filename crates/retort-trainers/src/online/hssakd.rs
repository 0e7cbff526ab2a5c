//! HSAKD without a trained teacher: two networks with auxiliary classifiers.

use crate::engine::{Evaluated, Objective, Phase, Step, StepOutput};
use crate::offline::{Branched, Ensemble};
use crate::state::{part, under};
use crate::system::{Kind, System, SystemContext, SystemInfo};
use crate::{Error, Result};
use candle_core::Tensor;
use retort_datasets::batch::rotate4;
use retort_losses::self_supervised::{HsakdConfig, hssakd_online};
use retort_losses::{EnsembleRule, Error as LossError};
use retort_nn::{ParamGroup, Tensors};
use serde::{Deserialize, Serialize};

/// Two networks with an auxiliary classifier behind every stage teach each other class and rotation (Yang et al. 2022,
/// arXiv 2109.03075); see [`hssakd_online`]. The first one is what the run is for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HssakdOnlineConfig {
    /// Architecture of the second network; that of the first where absent. It must have as many stages.
    pub peer: Option<String>,
    /// Temperature and weights.
    pub weights: HsakdConfig,
}

impl System for HssakdOnlineConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "hssakd-online",
        title: "Hierarchical self-supervised augmented distillation, online",
        kind: Kind::Online,
        paper: Some("Knowledge Distillation Using Hierarchical Self-Supervision Augmented Distribution"),
        year: Some(2022),
        arxiv: Some("2109.03075"),
        views: 1,
        losses: false,
        trainable: &["a second network", "auxiliary classifiers behind every stage of both"],
        state: &[],
        code_bases: crate::offline::HSAKD_CODE,
    };

    fn check(&self) -> Result<()> {
        // The weights are a type that all phases of HSAKD share, and it speaks of itself as `hsakd`.
        self.weights.validate().map_err(|error| match error {
            LossError::Config { field, expected, found, .. } => {
                LossError::Config { method: Self::INFO.id, field, expected, found }.into()
            }
            other => other.into(),
        })
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        crate::offline::check_square(ctx)?;
        let peer = self.peer.as_deref().unwrap_or(ctx.student);
        let networks = [Branched::new(ctx, ctx.student, "student")?, Branched::new(ctx, peer, "peer")?];
        if networks[0].heads() != networks[1].heads() {
            let message = format!(
                "heads are paired one to one: expected the same number, found {} of `{}` and {} of `{peer}`",
                networks[0].heads(),
                ctx.student,
                networks[1].heads()
            );
            return Err(Error::Config { what: Self::INFO.id.into(), message });
        }
        let both = networks.iter().map(Branched::shared_backbone).collect();
        let ensemble = Ensemble::new(both, EnsembleRule::LogitMean)?;
        let objective = Mutual { networks, ensemble, config: self.weights.clone() };
        Ok(vec![ctx.recipe.phase("mutual", Box::new(objective))])
    }
}

struct Mutual {
    networks: [Branched; 2],
    /// Both without their heads, by the mean of their logits.
    ensemble: Ensemble,
    config: HsakdConfig,
}

/// Names of the networks in checkpoints.
const NAMES: [&str; 2] = ["first", "second"];

impl Objective for Mutual {
    fn groups(&self) -> Vec<ParamGroup> {
        let named = |(name, network): (&str, &Branched)| {
            let params = network.parts().groups().into_iter().flat_map(|group| group.params);
            params.map(|(param, var)| (format!("{name}.{param}"), var)).collect::<Vec<_>>()
        };
        vec![ParamGroup::new(NAMES.into_iter().zip(&self.networks).flat_map(named).collect())]
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let images = rotate4(&step.batch.images)?;
        let [a, b] = &self.networks;
        let (a, b) = (a.forward(&images)?, b.forward(&images)?);
        let loss = hssakd_online(&[a.outputs(), b.outputs()], &step.batch.label_ids, self.config.temperature)?;
        let logits: Tensor = crate::offline::unrotated(&a.logits, step.batch)?;
        Ok(StepOutput { terms: loss.terms(&self.config)?, logits: Some(logits) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        let [first, second] = &self.networks;
        let mut all = first.evaluated(None);
        all.push(Evaluated { name: "peer".into(), network: second.backbone(), teacher: None });
        all.push(Evaluated { name: "ensemble".into(), network: &self.ensemble, teacher: None });
        all
    }

    /// The first network without its heads.
    fn weights(&self) -> Result<Tensors> {
        self.networks[0].backbone_weights()
    }

    fn state(&self) -> Result<Tensors> {
        let mut state = Tensors::new();
        for (name, network) in NAMES.into_iter().zip(&self.networks) {
            state.extend(under(name, network.parts().state()?));
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        for (name, network) in NAMES.into_iter().zip(&self.networks) {
            network.parts().load(&part(state, &format!("{name}.")))?;
        }
        Ok(())
    }
}
