#![deny(missing_docs)]
//! Training operations for the CPU with their own gradients.
//!
//! candle 0.11.1 trains convolutional networks slowly on the CPU, and the gradients of several of its operations are
//! wrong.
//! This crate holds the operations that such a network needs (convolution, batch normalisation, pooling, activations,
//! resizing, scores against a memory bank) as candle custom operations with gradients of their own, for `f32` and
//! `f64` tensors in `[B, C, H, W]` layout.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use retort_kernels::{Activation, Conv2dSpec, batch_norm_train, conv2d, global_avg_pool2d};
//!
//! let images = Tensor::ones((2, 3, 8, 8), candle_core::DType::F32, &Device::Cpu)?;
//! let kernel = Var::from_tensor(&Tensor::ones((4, 3, 3, 3), candle_core::DType::F32, &Device::Cpu)?)?;
//! let gain = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu)?;
//! let shift = Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu)?;
//!
//! let maps = conv2d(&images, &kernel, None, &Conv2dSpec::new(1, 1))?;
//! let (maps, stats) = batch_norm_train(&maps, &gain, &shift, 1e-5, Activation::Relu)?;
//! assert_eq!(stats.count, 2 * 8 * 8);
//! let gradients = global_avg_pool2d(&maps)?.sum_all()?.backward()?;
//! assert_eq!(gradients.get(&kernel).expect("the kernel is a variable").dims(), &[4, 3, 3, 3]);
//! # Ok::<(), retort_kernels::Error>(())
//! ```
//!
//! # What every function promises
//!
//! * Arguments may be strided views; results are contiguous.
//! * The same bits for any number of rayon threads, on one machine and with one [`InstructionSet`].
//! * No gradient is computed for an argument that tracks none.
//! * Wrong ranks, shapes, element types and parameters are an [`Error`] that names the operation; nothing panics.
//! * On a device other than the CPU the functions fall back to candle's own operations, or compute on the host where
//!   candle's gradient would be wrong.

mod conv;
mod error;
// Open to the tests: without an accelerator nothing else reaches it.
#[doc(hidden)]
pub mod fallback;
mod gather;
mod isa;
mod loss;
mod map;
mod norm;
mod pointwise;
mod pool;
mod raw;
mod resize;
mod simd;

pub use conv::{Conv2dSpec, ConvTranspose2dSpec, conv_transpose2d, conv2d};
pub use error::{Error, Result};
pub use gather::gather_dot;
#[doc(hidden)]
pub use isa::with_instruction_set;
pub use isa::{InstructionSet, instruction_set};
pub use loss::{
    channel_power_mean, gram, inner_products, logistic_contrast, softmax_cross_entropy, softmax_divergence,
    weighted_sums, with_gradient,
};
pub use map::{FeatureMap, no_grad, release_memory};
pub use norm::{BatchStats, batch_norm_eval, batch_norm_train};
pub use pointwise::{Activation, abs, relu};
pub use pool::{Pool2dSpec, adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d, global_avg_pool2d, max_pool2d};
pub use resize::{resize_bilinear2d, resize_nearest2d};
