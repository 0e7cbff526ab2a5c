//! Networks and a classifier on their fused maps teach each other.

use super::cohort::Others;
use super::fusion::{FusionLayers, FusionSystem};
use crate::Result;
use crate::engine::Phase;
use crate::system::{Kind, System, SystemContext, SystemInfo};
use retort_losses::online::RampedSettings;
use serde::{Deserialize, Serialize};

/// Networks learn from a classifier on their fused last maps, and it learns from their mean (Kim et al. 2019, arXiv
/// 1904.09058); see [`ffl`](retort_losses::online::ffl()) and [`FusionModule`](retort_models::FusionModule).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FflConfig {
    /// The networks beside the student, 1 to 15. Their last maps may have other shapes.
    pub others: Others,
    /// Weight decay of the fusion module, >= 0, in place of the optimiser's.
    pub fusion_weight_decay: f64,
    /// Temperature and ramp of the imitation.
    pub loss: RampedSettings,
}

impl Default for FflConfig {
    fn default() -> Self {
        Self { others: Others::default(), fusion_weight_decay: 1e-5, loss: RampedSettings::default() }
    }
}

impl FflConfig {
    fn system(&self) -> FusionSystem<'_> {
        FusionSystem {
            id: Self::INFO.id,
            others: &self.others,
            loss: self.loss,
            weight_decay: self.fusion_weight_decay,
            layers: FusionLayers { attention: None, convolutions: true },
        }
    }
}

impl System for FflConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "ffl",
        title: "Feature fusion for online mutual knowledge distillation",
        kind: Kind::Online,
        paper: Some("Feature Fusion for Online Mutual Knowledge Distillation"),
        year: Some(2019),
        arxiv: Some("1904.09058"),
        views: 1,
        losses: false,
        trainable: &["further networks", "fusion module with a classifier"],
        state: &["batch norm statistics of the fusion module"],
        code_bases: &["Jangho-Kim/FFL-pytorch", super::OKDDIP_CODE],
    };

    fn check(&self) -> Result<()> {
        self.system().check()
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        self.system().phases(ctx)
    }
}
