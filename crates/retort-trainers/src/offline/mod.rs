//! Students of frozen teachers: by a weighted sum of losses, or by a system of its own.

mod branched;
mod distil;
mod ensemble;
mod hsakd;
mod sskd;
mod table;

pub use crate::trained::frozen;
pub(crate) use branched::{Branched, unrotated};
pub use distil::{DistilConfig, Offline, OfflineConfig, student_weights};
pub use ensemble::Ensemble;
pub use hsakd::HsakdTeacherConfig;
pub(crate) use hsakd::{CODE as HSAKD_CODE, check_square};
pub use retort_losses::self_supervised::{HsakdConfig, SskdConfig};
pub use sskd::SskdTeacherConfig;
pub use table::TeacherTable;
