//! Integration tests: every method of the registry, then what is special to single ones.
#![allow(clippy::unwrap_used)]

mod configs;
mod crd;
mod ctkd;
mod distribution;
mod ensemble;
mod fixture;
mod online;
mod phases;
mod probe;
mod properties;
mod registry;
mod robustness;
mod self_distillation;
mod self_supervised;
mod sfr;
mod simreg;
mod stage_methods;
mod values;
mod variants;
