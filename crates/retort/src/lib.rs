#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

pub use retort_datasets as datasets;
pub use retort_kernels as kernels;
pub use retort_losses as losses;
pub use retort_metrics as metrics;
pub use retort_models as models;
pub use retort_nn as nn;
pub use retort_trainers as trainers;
pub use retort_transport as transport;
