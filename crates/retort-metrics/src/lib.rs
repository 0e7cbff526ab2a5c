#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod classification;

pub use classification::{Classification, Error, Result};
