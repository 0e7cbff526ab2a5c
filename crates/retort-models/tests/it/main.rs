//! Tests of the networks.

mod branches;
mod check;
mod families;
mod generative;
mod hcgnet;
mod heads;
mod import;
mod limits;
mod mixing;
mod mlp;
mod mobile;
mod peers;
mod registry;
mod weights;

use candle_core::{DType, Device, Tensor};
use retort_models::ModelConfig;
use retort_nn::{Params, Seed};

fn images(config: &ModelConfig, batch: usize) -> Tensor {
    let shape = [batch, config.in_channels, config.image[0], config.image[1]];
    retort_nn::Init::Normal { std: 1.0 }.draw(&shape, Seed::root(5), DType::F32, &Device::Cpu).unwrap()
}

fn params() -> Params {
    Params::new(Seed::root(1), DType::F32, &Device::Cpu)
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}
