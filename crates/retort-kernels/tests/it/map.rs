//! Feature maps.

mod backward;
mod chains;
mod convolution;
mod hostile;
mod ops;

use candle_core::Tensor;
use retort_kernels::*;

const SETS: [InstructionSet; 3] = [InstructionSet::Portable, InstructionSet::Avx2Fma, InstructionSet::Avx512];
const NONE: Activation = Activation::None;
const RELU: Activation = Activation::Relu;
const EPS: f64 = 1e-5;

fn map(t: &Tensor) -> FeatureMap {
    FeatureMap::from_tensor(t).unwrap()
}
