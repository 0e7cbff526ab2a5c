//! Losses on class scores.

mod ce;
mod dkd;
mod kd;
mod mix;

pub use ce::{CeConfig, LabelSmoothingConfig, Spread, cross_entropy, label_smoothing};
pub use dkd::{DkdConfig, DkdLoss, dkd};
pub use kd::{KdConfig, kd};
pub use mix::mix_cross_entropy;
