//! Integration tests: every method of the registry, then what is special to single ones.
#![allow(clippy::unwrap_used)]

mod configs;
mod crd;
mod distribution;
mod fixture;
mod phases;
mod properties;
mod registry;
mod robustness;
mod stage_methods;
mod values;
mod variants;
