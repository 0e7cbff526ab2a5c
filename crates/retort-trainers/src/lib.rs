#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

pub mod engine;
mod error;
pub mod offline;
pub mod online;
pub mod probe;
pub mod self_supervised;
mod state;
mod system;
mod trained;

pub use error::{Error, Result};
pub use system::{Kind, Recipe, SystemConfig, SystemContext, SystemInfo, Teachers, systems};
pub use trained::Trained;
