#![deny(missing_docs)]
#![doc = include_str!("../README.md")]

mod bench;
pub mod cli;
mod costs;
mod data;
mod data_pages;
mod docs;
mod error;
mod export;
mod features;
mod figures;
mod fit;
mod import;
mod list;
pub mod manifest;
mod measures;
mod methods;
pub mod plan;
mod plot;
mod progress;
pub mod published;
pub mod record;
mod run;
pub mod runner;
mod source;
pub mod splits;
pub mod stats;
pub mod table;
mod tsne;
mod tune;

pub use error::{Error, Result};
