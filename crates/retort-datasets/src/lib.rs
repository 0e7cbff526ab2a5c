#![deny(missing_docs)]
//! Image data sets for distillation experiments: embedded, from official files and from the Hugging Face hub's cache, with
//! augmentation, samplers and a loader.
//!
//! Pixels stay `u8` in memory, and every batch is a pure function of the rows, the configuration, the seed and the
//! epoch: the same bits come out for any number of threads and in an epoch that is entered in the middle.
//!
//! ```
//! use retort_datasets::{Loader, LoaderConfig, Sampling, Split, TransformConfig, ViewConfig, load};
//!
//! let train = load("digits-8x8", Split::Train, None)?.take_balanced(500)?;
//! let loader = Loader::new(
//!     train,
//!     LoaderConfig {
//!         batch_size: 64,
//!         sampling: Sampling::Shuffled,
//!         drop_last: true,
//!         views: vec![ViewConfig::new(vec![TransformConfig::RandomCrop { padding: 1 }])],
//!         seed: 0,
//!     },
//! )?;
//! for batch in loader.epoch(0) {
//!     let batch = batch?;
//!     assert_eq!(batch.images.dims(), [64, 1, 8, 8]);
//!     assert_eq!(batch.labels()?.dims(), [64]);
//! }
//! # Ok::<(), retort_datasets::Error>(())
//! ```
//!
//! # Map
//!
//! - [`registry`], [`info`], [`load`], [`Sources`]: the data sets that have a name, and where they are looked for.
//! - [`Dataset`], [`DatasetBuilder`]: rows in memory or in a file; a validation split, a digest for records.
//! - [`SubsetConfig`]: parts of a data set, and wrong labels.
//! - [`TransformConfig`], [`sample_rng`]: augmentation and where its randomness comes from.
//! - [`ViewConfig`], [`Modality`]: how often and as what a batch shows its images.
//! - [`batch`]: mixup, cutmix and four rotations of whole batches.
//! - [`Sampling`], [`ContrastSampler`]: which rows form a batch, and which stand against each of them.
//! - [`Loader`], [`Batch`]: tensors in a reproducible order.
//! - [`source`], [`idx`], [`cifar`]: the file formats, for data sets without a name.

mod custom;
mod dataset;
mod error;
mod folder;
mod load;
mod loader;
mod names;
mod prefetch;
mod registry;
mod rng;
mod rotated;
mod sampling;
mod sheet;
mod store;
mod subset;
mod synthetic;
mod transform;
mod verify;

pub mod batch;
pub mod cifar;
pub mod idx;
pub mod source;

pub use custom::{CustomConfig, IMAGE_FOLDER};
pub use dataset::{Dataset, DatasetBuilder, ImageShape, Normalization, Split};
pub use error::{Error, Result};
pub use load::{Sources, load};
pub use loader::{Batch, EpochIter, Loader, LoaderConfig};
pub use registry::{DatasetInfo, Digests, Files, HubCopy, Origin, SplitInfo, info, registry};
pub use rng::sample_rng;
pub use rotated::rotated_fashion;
pub use sampling::{Contrast, ContrastSampler, Sampling};
pub use sheet::contact_sheet;
pub use source::image::{Fit, write_png};
pub use store::DEFAULT_MEMORY_LIMIT;
pub use subset::{LabelNoise, NoiseKind, SubsetConfig};
pub use synthetic::synthetic;
pub use transform::{
    AugMix, AutoAugment, ColourJitter, EraseFill, ErasePatch, GaussianBlur, Image, Modality, RandAugment, RandomAffine,
    RandomErasing, RandomPerspective, RandomResizedCrop, TransformConfig, TrivialAugment, ViewConfig,
};
pub use verify::Verdict;
