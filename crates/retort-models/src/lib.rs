#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod block;
mod branches;
mod common;
mod error;
mod fusion;
pub mod generative;
mod hcgnet;
mod head;
mod heads;
mod hub;
mod import;
mod lenet;
mod mlp;
mod mobilenet;
mod peers;
mod pre_activation;
mod pretrained;
mod pyramid;
mod registry;
mod resnet;
mod shufflenet;
mod staged;
mod vgg;

pub use branches::{
    BranchInit, BranchRow, BranchedNetwork, BranchedOutputs, Branches, BranchesConfig, Repeat, dense_votes,
};
pub use error::{Error, Result};
pub use fusion::{FusionModule, MultiScaleAttention, MultiScaleConfig};
pub use hcgnet::HcgNetConfig;
pub use heads::{Aggregator, MapAdapter, MapDiscriminator, PairWeights, SelfTeacher, SqueezeModule};
pub use import::{Imported, import_weights};
pub use lenet::LeNetConfig;
pub use mlp::MlpConfig;
pub use mobilenet::{InvertedFlavour, InvertedStage, MobileNetV1Config, MobileNetV2Config, SeparableUnit};
pub use peers::{Gate, Peer, PeerAttention, PeerOutputs, Peers, PeersConfig};
pub use pre_activation::{Flavour, PreActivationConfig};
pub use pretrained::{Card, Normalisation, Pretrained, PretrainedConfig, facts, load_pretrained};
pub use pyramid::{Pyramid, PyramidConfig};
pub use registry::{Family, ModelConfig, ModelInfo, build, info, registry};
pub use resnet::{Branch, Projection, ResNetConfig, ResNetStem, Stage};
pub use retort_nn::{Head, HeadLayer, SimRegHead};
pub use shufflenet::{ShuffleNetV1Config, ShuffleNetV2Config};
pub use vgg::VggConfig;
