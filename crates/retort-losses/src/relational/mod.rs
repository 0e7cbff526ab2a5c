//! Losses on relations between the samples of a batch.

mod cc;
mod pkt;
mod rkd;
mod sp;

pub use cc::{CcConfig, correlation_congruence};
pub use pkt::{PktConfig, probabilistic_transfer};
pub use rkd::{RkdConfig, RkdLoss, relational, relational_squared};
pub use sp::{SpConfig, similarity_preserving};
