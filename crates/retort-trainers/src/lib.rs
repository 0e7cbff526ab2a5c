#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod branched;
pub mod engine;
mod error;
mod learner;
pub mod offline;
pub mod online;
pub mod probe;
pub mod self_distillation;
pub mod self_supervised;
mod state;
mod system;
mod trained;

pub use error::{Error, Result};
pub use system::{Kind, Recipe, SystemConfig, SystemContext, SystemInfo, Teachers, systems};
pub use trained::Trained;
