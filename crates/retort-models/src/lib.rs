#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod cifar_resnet;
mod error;
mod registry;

pub use cifar_resnet::{Block, CifarResNet, CifarResNetConfig};
pub use error::{Error, Result};
pub use registry::{ModelConfig, ModelInfo, build, info, registry};
