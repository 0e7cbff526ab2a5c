//! Which method computes which case: one short function per method id.
//!
//! An adapter translates names and hyper-parameters and calls the public functions of the other crates;
//! it computes nothing that belongs to the method.
//! To support a new id, write its function in the file of its family and add a line to [`adapter`].

mod augment;
mod contrastive;
mod distribution;
mod feature;
mod feature_phases;
mod feature_stages;
mod model;
mod output;
mod relational;

use super::Run;
use crate::{Error, Result};
use retort_nn::{Linear, Params, Scope};

/// Computes one case: reads inputs from the [`Run`], hands over outputs and loss.
///
/// [`Error::Unsupported`] says that the project cannot compute this case yet.
pub type Adapter = fn(&mut Run<'_>) -> Result<()>;

/// The adapter of a method id, `None` for an unknown one.
#[must_use]
pub fn adapter(id: &str) -> Option<Adapter> {
    Some(match id {
        "ce" => output::ce,
        "label-smoothing" => output::label_smoothing,
        "kd" => output::kd,
        "dkd" => output::dkd,
        "fitnet" => feature::fitnet,
        "at" => feature::at,
        "ab" => feature_phases::ab,
        "ft" => feature_phases::ft,
        "ft-paraphraser" => feature_phases::ft_paraphraser,
        "fsp" => feature_phases::fsp,
        "nst" => feature::nst,
        "vid" => feature::vid,
        "pkd" => feature::pkd,
        "sp" => relational::sp,
        "rkd" => relational::rkd,
        "pkt" => relational::pkt,
        "cc" => relational::cc,
        "crd" => contrastive::crd,
        "alias-sampler" => contrastive::alias_sampler,
        "kdsvd" => feature_stages::kdsvd,
        "ofd" => feature_stages::ofd,
        "ofd-margin" => feature_stages::ofd_margin,
        "reviewkd" => feature_stages::reviewkd,
        "w2-empirical" => distribution::w2,
        "w1-empirical" => distribution::w1,
        "w2-conditional" => distribution::w2_conditional,
        "w2-joint" => distribution::w2_joint,
        "sinkhorn" => distribution::sinkhorn,
        "sinkhorn-divergence" => distribution::sinkhorn_divergence,
        "sinkhorn-logits" => distribution::sinkhorn_logits,
        "gromov-wasserstein-fixed-plan" => distribution::gromov_wasserstein,
        "cdre-softplus" => distribution::cdre_softplus,
        "kd2m-bound" => distribution::kd2m_bound,
        "sliced-w2" => distribution::sliced_w2,
        "max-sliced-w2" => distribution::max_sliced_w2,
        "sliced-cramer" => distribution::sliced_cramer,
        "gaussian-w2" => distribution::gaussian_w2,
        "gaussian-w2-diag" => distribution::gaussian_w2_diag,
        "gaussian-kl" => distribution::gaussian_kl,
        "frechet" => distribution::frechet,
        "coral" => distribution::coral,
        "mmd" => distribution::mmd,
        "mmd-conditional" => distribution::mmd_conditional,
        "energy-distance" => distribution::energy_distance,
        "aug-mixup" => augment::mixup,
        "aug-cutmix" => augment::cutmix,
        "aug-cutout" => augment::cutout,
        "aug-random-erase" => augment::random_erase,
        "aug-rotate4" => augment::rotate4,
        "model-forward" => model::forward,
        "model-train-step" => model::train_step,
        _ => return None,
    })
}

/// Refuses a hyper-parameter that our function does not offer, rather than ignoring it.
fn fixed(run: &Run<'_>, name: &str, value: f64) -> Result<()> {
    let found: f64 = run.case().param_or(name, value)?;
    if found == value {
        return Ok(());
    }
    Err(Error::Unsupported(format!("{} with {name} other than {value:e}", run.case().id())))
}

/// The scope called `prefix`, which may end in a dot and may be empty.
fn heads_scope(params: &Params, prefix: &str) -> Scope {
    match prefix.trim_end_matches('.') {
        "" => params.root(),
        name => params.root().child(name),
    }
}

/// The linear layer `in.param.NAME.weight`, `in.param.NAME.bias`.
fn linear(run: &Run<'_>, params: &Params, name: &str) -> Result<Linear> {
    let (outputs, inputs) = run.case().tensor(&format!("in.param.{name}.weight"))?.dims2()?;
    Ok(Linear::new(&params.root().child(name), inputs, outputs)?)
}
