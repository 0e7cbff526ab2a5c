#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

pub mod engine;
mod error;
pub mod offline;

pub use error::{Error, Result};
