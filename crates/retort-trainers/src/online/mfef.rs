//! Networks and a classifier on their fused maps, with attention over several scales before the fusion.

use super::cohort::Others;
use super::fusion::{FusionLayers, FusionSystem};
use crate::Result;
use crate::engine::Phase;
use crate::system::{Kind, System, SystemContext, SystemInfo};
use retort_losses::online::RampedSettings;
use retort_models::MultiScaleConfig;
use serde::{Deserialize, Serialize};

/// **A reconstruction** of multi-scale feature extraction and fusion (Zou et al. 2022, arXiv 2206.08224), of which there
/// is no public code: the networks' last maps pass convolutions of several widths and two kinds of attention
/// ([`MultiScaleAttention`](retort_models::MultiScaleAttention)) before they are fused as in [`FflConfig`](super::FflConfig);
/// the loss is that of FFL, too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MfefConfig {
    /// The networks beside the student, 1 to 15. Their last maps may have other shapes.
    pub others: Others,
    /// Whether each map passes convolutions of several widths; its channels must be a multiple of 4 then.
    pub scales: bool,
    /// Whether important channels and places of each map are strengthened.
    pub attention: bool,
    /// Whether the maps are fused by convolutions; if not, a linear classifier reads the pooled maps side by side.
    pub fusion: bool,
    /// Weight decay of all these layers, >= 0, in place of the optimiser's.
    pub fusion_weight_decay: f64,
    /// Temperature and ramp of the imitation.
    pub loss: RampedSettings,
}

impl Default for MfefConfig {
    fn default() -> Self {
        Self {
            others: Others::default(),
            scales: true,
            attention: true,
            fusion: true,
            fusion_weight_decay: 1e-5,
            loss: RampedSettings::default(),
        }
    }
}

impl MfefConfig {
    fn system(&self) -> FusionSystem<'_> {
        let attention = MultiScaleConfig { scales: self.scales, attention: self.attention };
        let attention = (self.scales || self.attention).then_some(attention);
        FusionSystem {
            id: Self::INFO.id,
            others: &self.others,
            loss: self.loss,
            weight_decay: self.fusion_weight_decay,
            layers: FusionLayers { attention, convolutions: self.fusion },
        }
    }
}

impl System for MfefConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "mfef",
        title: "Multi-scale feature extraction and fusion (reconstruction)",
        kind: Kind::Online,
        paper: Some("Multi scale Feature Extraction and Fusion for Online Knowledge Distillation"),
        year: Some(2022),
        arxiv: Some("2206.08224"),
        views: 1,
        losses: false,
        trainable: &["further networks", "multi-scale convolutions and attention", "fusion module with a classifier"],
        state: &["batch norm statistics of the fusion module"],
        code_bases: &[],
    };

    fn check(&self) -> Result<()> {
        self.system().check()
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        self.system().phases(ctx)
    }
}
