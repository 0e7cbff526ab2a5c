#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod config;
pub mod contrastive;
mod distiller;
pub mod distribution;
mod ensemble;
mod error;
pub mod feature;
pub mod online;
mod ops;
pub mod output;
mod reduce;
pub mod relational;
pub mod self_distillation;
pub mod self_supervised;
mod stages;

pub use config::{ExtraPhase, Family, Inputs, LossConfig, MapChoice, MethodInfo, Side, registry};
pub use distiller::{BuildContext, Context, Distiller, InitPhase, Needs, Term};
pub use ensemble::{EnsembleDistiller, EnsembleRule, mean_over_teachers, merged_logits};
pub use error::{Error, Result};
pub use ops::stop_grad_scale;
pub use stages::{Align, StageLoss};
