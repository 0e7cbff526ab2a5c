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
mod online;
mod output;
mod relational;
mod renamed;
mod self_distillation;
mod self_supervised;
mod squeeze_span;

use super::Run;
use crate::{Error, Result};
use candle_core::Tensor;
use renamed::{Renamed, two_layers};
use retort_losses::Term;
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
        "ctkd" => output::ctkd,
        "ctkd-dkd" => output::ctkd_dkd,
        "ctkd-instance" => output::ctkd_instance,
        "ctkd-schedule" => output::ctkd_schedule,
        "ctkd-trajectory" => output::ctkd_trajectory,
        "fitnet" => feature::fitnet,
        "at" => feature::at,
        "ab" => feature_phases::ab,
        "ft" => feature_phases::ft,
        "ft-paraphraser" => feature_phases::ft_paraphraser,
        "fsp" => feature_phases::fsp,
        "nst" => feature::nst,
        "vid" => feature::vid,
        "pkd" => feature::pkd,
        "simreg" => feature::simreg,
        "simreg-mlp" => feature::simreg_mlp,
        "simreg-multi" => feature::simreg_multi,
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
        "squeeze-span" => squeeze_span::squeeze_span,
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
        "sskd" => self_supervised::sskd,
        "sskd-ssp" => self_supervised::sskd_ssp,
        "hsakd-teacher" => self_supervised::hsakd_teacher,
        "hsakd-student" => self_supervised::hsakd_student,
        "hssakd-online" => self_supervised::hssakd_online,
        "dml" => online::dml,
        "dml-ensemble" => online::dml_ensemble,
        "kdcl-mean" => online::kdcl_mean,
        "ilr" => online::ilr,
        "one" => online::one,
        "okddip" => online::okddip,
        "ffl" => online::ffl,
        "mcl" => online::mcl,
        "mcl-memory" => online::mcl_memory,
        "mcl-moco" => online::mcl_moco,
        "mcl-logit-kd" => online::mcl_logit_kd,
        "lmcl" => online::lmcl,
        "lmcl-weights" => online::lmcl_weights,
        "lmcl-aggregator" => online::lmcl_aggregator,
        "zipf-ls" => self_distillation::zipf_ls,
        "zipf-ls-dense" => self_distillation::zipf_ls_dense,
        "focal" => self_distillation::focal,
        "max-entropy" => self_distillation::max_entropy,
        "virtual-softmax" => self_distillation::virtual_softmax,
        "tf-kd-self" => self_distillation::tf_kd_self,
        "tf-kd-reg" => self_distillation::tf_kd_reg,
        "tf-kd-reg-lib" => self_distillation::tf_kd_reg_lib,
        "cs-kd" => self_distillation::cs_kd,
        "ps-kd" => self_distillation::ps_kd,
        "bake" => self_distillation::bake,
        "dlb" => self_distillation::dlb,
        "ddgsd" => self_distillation::ddgsd,
        "dks" => self_distillation::dks,
        "byot" => self_distillation::byot,
        "sad" => self_distillation::sad,
        "frskd" => self_distillation::frskd,
        "mixskd" => self_distillation::mixskd,
        "mixskd-self-teacher" => self_distillation::mixskd_self_teacher,
        "sfr-emd-l2" => self_distillation::sfr_emd_l2,
        "sfr-many-to-one" => self_distillation::sfr_many_to_one,
        "sfr-dls" => self_distillation::sfr_dls,
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

/// The bare value of the term `name`.
fn value(terms: &[Term], name: &str) -> Result<Tensor> {
    let found = terms.iter().find(|term| term.name == name);
    Ok(found.ok_or_else(|| Error::invalid("terms", format!("there is no term `{name}`")))?.value.clone())
}
