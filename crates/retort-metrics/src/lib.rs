#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod bounds;
mod classification;
mod error;
mod joint_bound;
mod neighbours;
mod principal;
mod spectral;

pub use bounds::{Bounds, FeaturePair, Head, OwnHead};
pub use classification::Classification;
pub use error::{Error, Result};
pub use joint_bound::JointBound;
pub use neighbours::{effective_rank, knn_accuracy, mean_std, unit_std, weighted_knn_accuracy};
pub use principal::PrincipalComponents;
