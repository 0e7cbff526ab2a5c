#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod bounds;
mod classification;
mod error;
mod spectral;

pub use bounds::{Bounds, FeaturePair, Head, OwnHead};
pub use classification::Classification;
pub use error::{Error, Result};
