#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod checkpoint;
mod error;
mod fields;
mod head;
mod init;
mod layers;
mod names;
mod network;
mod optim;
mod params;
mod safetensors_file;
mod schedule;
mod seed;
mod torch_file;
mod weight_file;

pub use checkpoint::{Checkpoint, write_atomically};
pub use error::{Error, Result};
pub use fields::no_fields;
pub use head::{Head, HeadLayer, SimRegHead, dropout, normalise_rows};
pub use init::{Init, fan_in};
pub use layers::{BatchNorm, Conv2d, ConvBatchNorm, Linear};
pub use names::{nearest, shown};
pub use network::{MapShape, Mode, Network, NetworkSpec, Outputs, StageNorm, Taps};
pub use optim::{Optimizer, OptimizerConfig, ParamGroup};
pub use params::{Buffer, LoadReport, Params, Scope, Tensors};
pub use retort_kernels::{Activation, no_grad};
pub use schedule::{Decay, ScheduleConfig};
pub use seed::Seed;
pub use weight_file::{WeightFile, WeightInfo};
