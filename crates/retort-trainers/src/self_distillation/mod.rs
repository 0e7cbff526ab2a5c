//! Networks that learn from themselves.

mod bake;
mod byot;
mod cs_kd;
mod ddgsd;
mod dks;
mod dlb;
mod frskd;
mod mixed_images;
mod mixskd;
mod ps_kd;
mod sad;
mod sfr;
mod tf_kd_self;
mod virtual_softmax;
mod zipf_ls;

pub use bake::BakeConfig;
pub use dks::DksConfig;
pub use frskd::{FrskdConfig, RefinedMaps};
pub use mixed_images::{MixedImagesConfig, Mixing};
pub use mixskd::MixSkdConfig;
pub use ps_kd::PsKdConfig;
pub use retort_losses::self_distillation::{
    ByotSettings, CsKdSettings, DdgsdSettings, DlbSettings, SadSettings, TfKdSelfSettings,
};
pub use sfr::{SfrAssignment, SfrConfig, SfrSmoothing};
pub use virtual_softmax::VirtualSoftmaxConfig;
pub use zipf_ls::{ZipfLsConfig, ZipfLsRanking};

use crate::system::{Kind, SystemContext, SystemInfo};
use crate::{Error, Result};
use candle_core::Tensor;
use retort_datasets::Batch;
use retort_nn::Taps;

/// What most of them have in common; id, title, paper and year are each system's own.
const INFO: SystemInfo = SystemInfo {
    id: "",
    title: "",
    kind: Kind::SelfDistillation,
    paper: None,
    year: None,
    arxiv: None,
    views: 1,
    losses: false,
    trainable: &[],
    state: &[],
    code_bases: &[],
};

/// Stage maps, too.
const MAPS: Taps = Taps { maps: true, pre_activations: false };

/// Refuses training rows without labels.
fn check_labels(ctx: &SystemContext<'_>, system: &'static str) -> Result<()> {
    if ctx.train.is_labelled() {
        return Ok(());
    }
    Err(wrong(system, "expected a class for every training row, found none".into()))
}

fn wrong(system: &'static str, message: String) -> Error {
    Error::Config { what: system.into(), message }
}

/// A setting and its range.
fn check_range(ok: bool, system: &'static str, field: &str, expected: &str, found: impl ToString) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(wrong(system, format!("`{field}` must be {expected}, found {}", found.to_string())))
}

/// Refuses settings other than their defaults where nothing reads them: `(field, differs)`.
fn check_unread(system: &'static str, reason: &str, settings: &[(&str, bool)]) -> Result<()> {
    match settings.iter().find(|(_, differs)| *differs) {
        Some((field, _)) => Err(wrong(system, format!("`{field}` has no effect {reason}; leave it out"))),
        None => Ok(()),
    }
}

/// The second view of the images.
fn second_view<'a>(batch: &'a Batch, system: &'static str) -> Result<&'a Tensor> {
    batch.more_views.first().ok_or_else(|| wrong(system, "expected two views of every image, found one".into()))
}
