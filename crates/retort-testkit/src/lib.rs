#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

pub mod close;
mod error;
pub mod golden;
pub mod gradient;
mod rng;

pub use error::{Error, Result};
