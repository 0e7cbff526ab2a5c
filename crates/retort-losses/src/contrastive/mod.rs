//! Losses of one sample against many others.

mod alias;
mod anchor;
mod crd;
mod memory;
mod negatives;

pub use alias::AliasTable;
pub use crd::CrdConfig;
pub use memory::{CrdMemory, CrdStep, MemoryConfig};
pub use negatives::{NegativeSampler, NegativesBy, PositiveMode};
