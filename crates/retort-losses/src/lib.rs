#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod config;
pub mod contrastive;
mod distiller;
pub mod distribution;
mod error;
pub mod feature;
mod ops;
pub mod output;
mod reduce;
pub mod relational;
mod stages;

pub use config::{ExtraPhase, Family, Inputs, LossConfig, MapChoice, MethodInfo, Side, registry};
pub use distiller::{BuildContext, Context, Distiller, InitPhase, Needs, Term};
pub use error::{Error, Result};
pub use stages::{Align, StageLoss};
