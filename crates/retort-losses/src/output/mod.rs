//! Losses on class scores.

mod ce;
mod ctkd;
mod dkd;
mod kd;
mod mix;

pub use ce::{CeConfig, LabelSmoothingConfig, Spread, cross_entropy, label_smoothing};
pub use ctkd::{
    CtkdConfig, CtkdInstanceConfig, CtkdLoss, Curriculum, CurriculumKind, ctkd, ctkd_dkd, ctkd_instance,
    learned_temperature,
};
pub use dkd::{DkdConfig, DkdLoss, dkd};
pub use kd::{KdConfig, kd};
pub use mix::mix_cross_entropy;
