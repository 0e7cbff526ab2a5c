//! Networks that learn from each other.

mod cl_ilr;
mod cohort;
mod dml;
mod ffl;
mod fusion;
mod hssakd;
mod kdcl;
mod lmcl;
mod mcl;
mod mcl_memory;
mod mcl_moco;
mod mfef;
mod okddip;
mod one;

pub use cl_ilr::ClIlrConfig;
pub use cohort::{CohortForm, Others};
pub use dml::{DmlConfig, DmlTarget, DmlUpdate};
pub use ffl::FflConfig;
pub use hssakd::HssakdOnlineConfig;
pub use kdcl::KdclConfig;
pub use lmcl::{LmclConfig, LmclMeta};
pub use mcl::MclConfig;
pub use mcl_memory::MclMemoryConfig;
pub use mcl_moco::MclMocoConfig;
pub use mfef::MfefConfig;
pub use okddip::OkddipConfig;
pub use one::OneConfig;

/// The public code of ONE, CL-ILR, OKDDip, deep mutual learning and FFL side by side.
const OKDDIP_CODE: &str = "DefangChen/OKDDip-AAAI2020";
/// The public code of MCL.
const MCL_CODE: &str = "winycg/MCL";
