#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod cifar_resnet;
mod common;
mod error;
mod mlp;
mod registry;
mod vgg;
mod wide_resnet;

pub use cifar_resnet::{Block, CifarResNet, CifarResNetConfig};
pub use error::{Error, Result};
pub use mlp::{Mlp, MlpConfig};
pub use registry::{ModelConfig, ModelInfo, build, info, registry};
pub use vgg::{Vgg, VggConfig};
pub use wide_resnet::{WideResNet, WideResNetConfig};
