//! Networks that learn from each other.

mod hssakd;

pub use hssakd::HssakdOnlineConfig;
