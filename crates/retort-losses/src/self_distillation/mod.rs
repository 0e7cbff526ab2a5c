//! Losses by which a network learns from itself: from its heads and stages, other views and samples, earlier
//! predictions, or from targets that are shaped without a teacher.
//!
//! A function with several terms returns named, weighted [`Term`](crate::Term)s, the cross-entropy under `ce`;
//! [`online::total`](crate::online::total) is the objective. Auxiliary heads, pyramids and discriminators belong to the
//! networks: their outputs are arguments here. What lives from step to step ([`PsKdMemory`], [`DlbMemory`],
//! [`SfrTable`]) is a struct with `update`, `state` and `load_state`. [`FocalConfig`], [`MaxEntropyConfig`],
//! [`TfKdRegConfig`], [`TfKdRegLibConfig`] and [`ZipfLsLogitsConfig`] need logits and labels alone, and are variants of
//! [`LossConfig`](crate::LossConfig), too.
//!
//! `CE` and `KD_T` are those of [`online`](crate::online).

mod bake;
mod cs_kd;
mod dlb;
mod focal;
mod heads;
mod max_entropy;
mod mixskd;
mod pairs;
mod ps_kd;
mod rank;
mod sfr;
mod sfr_dls;
mod stages;
mod target;
mod tf_kd;
mod tf_kd_reg;
mod virtual_softmax;
mod zipf;

pub use bake::{BakeSettings, bake, bake_targets};
pub use cs_kd::{CsKdSettings, cs_kd};
pub use dlb::{DlbBatch, DlbMemory, DlbSettings, dlb};
pub use focal::{FocalConfig, focal};
pub use heads::{ByotSettings, byot, dks};
pub use max_entropy::{MaxEntropyConfig, max_entropy};
pub use mixskd::{Discriminators, MixSkdBatch, MixSkdSettings, mixskd, mixskd_discriminator_input, mixskd_interpolate};
pub use pairs::{DdgsdSettings, ddgsd};
pub use ps_kd::{PsKdMemory, ps_kd, ps_kd_alpha};
pub use rank::{RankDistribution, dense_votes};
pub use sfr::{ManyToOne, NodeWeights, SfrEmd, SfrSettings, sfr_assigned, sfr_emd_l2, sfr_many_to_one, sfr_reduce};
pub use sfr_dls::{SfrTable, sfr_dls, sfr_epsilon};
pub use stages::{FrskdSettings, SadSettings, frskd, sad};
pub use tf_kd::{TfKdSelfSettings, tf_kd_self};
pub use tf_kd_reg::{TfKdRegConfig, TfKdRegLibConfig, tf_kd_reg, tf_kd_reg_lib};
pub use virtual_softmax::{virtual_logits, virtual_softmax};
pub use zipf::{ZipfLoss, ZipfLsLogitsConfig, ZipfRanking, ZipfSettings, zipf, zipf_ls, zipf_mixed};
