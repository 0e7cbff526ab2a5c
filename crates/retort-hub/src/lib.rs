#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod cache;
mod error;
#[cfg(feature = "fetch")]
mod fetch;
mod repository;

pub use cache::{Hub, verify};
pub use error::{Error, Result};
pub use repository::{Kind, Repository};
