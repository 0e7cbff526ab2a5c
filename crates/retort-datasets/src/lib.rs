#![deny(missing_docs)]
//! Image classification data sets for distillation experiments: embedded and from folders, with augmentation and a loader.
//!
//! Pixels stay `u8` in memory, and every batch is a pure function of the rows, the configuration, the seed and the
//! epoch: the same bits come out for any number of threads and in an epoch that is entered in the middle.
//!
//! ```
//! use retort_datasets::{Loader, LoaderConfig, Sampling, Split, TransformConfig, load};
//!
//! let train = load("digits-8x8", Split::Train, None)?.take_balanced(500)?;
//! let loader = Loader::new(
//!     train,
//!     LoaderConfig {
//!         batch_size: 64,
//!         sampling: Sampling::Shuffled,
//!         drop_last: true,
//!         transforms: vec![TransformConfig::RandomCrop { padding: 1 }],
//!         seed: 0,
//!     },
//! )?;
//! for batch in loader.epoch(0) {
//!     let batch = batch?;
//!     assert_eq!(batch.images.dims(), [64, 1, 8, 8]);
//!     assert_eq!(batch.labels.dims(), [64]);
//! }
//! # Ok::<(), retort_datasets::Error>(())
//! ```
//!
//! # Map
//!
//! - [`registry`], [`info`], [`load`]: the data sets that have a name.
//! - [`Dataset`]: rows in memory; balanced subsets, a validation split, a digest for records.
//! - [`TransformConfig`], [`sample_rng`]: augmentation and where its randomness comes from.
//! - [`Sampling`]: which rows form a batch; class-balanced batches.
//! - [`Loader`], [`Batch`]: tensors in a reproducible order.
//! - [`idx`], [`cifar`]: the file formats, for data sets without a name.
//!
//! # What it is not
//!
//! No downloads, no image file decoding, no regression targets, no prefetching thread.

mod dataset;
mod error;
mod folder;
mod loader;
mod names;
mod registry;
mod rng;
mod sampling;
mod transform;

pub mod cifar;
pub mod idx;

pub use dataset::{Dataset, ImageShape, Normalization, Split};
pub use error::{Error, Result};
pub use loader::{Batch, EpochIter, Loader, LoaderConfig};
pub use registry::{DatasetInfo, info, load, registry};
pub use rng::sample_rng;
pub use sampling::Sampling;
pub use transform::TransformConfig;
