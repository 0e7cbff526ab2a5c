//! Losses of networks that learn from each other while they are trained (online distillation).
//!
//! Every function takes what the networks show of one batch and returns named, weighted [`Term`](crate::Term)s, the
//! cross-entropy under `ce`; [`total`] is the objective. Gates, attention and fusion modules belong to the networks:
//! their outputs are arguments here. What lives from step to step ([`MclMemory`], [`MclQueues`]) is a struct with
//! `update`, `state` and `load_state`.
//!
//! Throughout, `CE(z, y)` is the mean over the batch of `-ln softmax(z)_y`, and
//! `KD_T(s <- t) = (T^2 / B) sum_b KL(softmax(t_b / T) || softmax(s_b / T))` with a constant `t`.

mod contrast;
mod ffl;
mod lmcl;
mod mcl;
mod mcl_memory;
mod mcl_moco;
mod mutual;
mod okddip;
mod one;
mod rescale;
pub(crate) mod terms;

pub use ffl::ffl;
pub use lmcl::{lmcl, lmcl_logits, lmcl_towards};
pub use mcl::{MclSettings, mcl, mcl_logit_kd};
pub use mcl_memory::MclMemory;
pub use mcl_moco::MclQueues;
pub use mutual::{
    DmlSettings, KdclSettings, KdclTeacher, RampedSettings, cl_ilr, dml, dml_ensemble, dml_turn, kdcl, ramp,
};
pub use okddip::{okddip, okddip_targets};
pub use one::one;
pub use rescale::scale_gradient;
pub use terms::total;
