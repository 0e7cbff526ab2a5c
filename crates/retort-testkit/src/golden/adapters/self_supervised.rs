//! Self-supervised augmented distillation. Rows are `4i + k`: image i under k quarter turns.

use crate::golden::Run;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use retort_losses::Term;
use retort_losses::self_supervised::{self as selfsup, HsakdConfig, HsakdOutputs, SskdConfig, SskdOutputs};

/// What a trainer makes of terms.
fn weighted_sum(terms: &[Term]) -> Result<Tensor> {
    let mut total: Option<Tensor> = None;
    for term in terms {
        let term = term.weighted()?;
        total = Some(match total {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    total.ok_or_else(|| Error::invalid("terms", "there are none"))
}

/// The sum of the terms whose names end so.
fn named(terms: &[Term], endings: &[&str]) -> Result<Tensor> {
    let fits = |term: &&Term| endings.iter().any(|ending| term.name.ends_with(ending));
    weighted_sum(&terms.iter().filter(fits).cloned().collect::<Vec<_>>())
}

/// Hyper-parameters `kd_T`, `tf_T`, `ss_T`, `ratio_tf`, `ratio_ss`, `weights` (of the four parts).
pub(super) fn sskd(run: &mut Run<'_>) -> Result<()> {
    let [ce_weight, kd_weight, tf_weight, ss_weight]: [f64; 4] = run.param("weights")?;
    let config = SskdConfig {
        kd_temperature: run.param("kd_T")?,
        tf_temperature: run.param("tf_T")?,
        ss_temperature: run.param("ss_T")?,
        ratio_tf: run.param("ratio_tf")?,
        ratio_ss: run.param("ratio_ss")?,
        ce_weight,
        kd_weight,
        tf_weight,
        ss_weight,
    };
    let (logits, proj) = (run.input("logits")?, run.input("proj")?);
    let (t_logits, t_proj) = (run.input("t_logits")?, run.input("t_proj")?);
    let student = SskdOutputs { logits: &logits, proj: &proj };
    let teacher = SskdOutputs { logits: &t_logits, proj: &t_proj };
    let loss = selfsup::sskd(&student, &teacher, &run.indices("labels")?, &config)?;
    let total = weighted_sum(&loss.terms(&config)?)?;
    for (name, part) in [("ce", loss.ce), ("kd", loss.kd), ("tf", loss.tf), ("ss", loss.ss)] {
        run.produce(name, part);
    }
    run.produce("kept_tf", Tensor::new(loss.kept_tf, &Device::Cpu)?);
    run.produce("kept_ss", Tensor::new(loss.kept_ss, &Device::Cpu)?);
    run.loss(&total)?;
    Ok(())
}

pub(super) fn sskd_ssp(run: &mut Run<'_>) -> Result<()> {
    let loss = selfsup::ssp(&run.input("t_proj")?)?;
    run.loss(&loss)?;
    Ok(())
}

/// The auxiliary heads `in.PREFIX0`, `in.PREFIX1`, ... of which the case may say how many there are.
fn heads(run: &mut Run<'_>, prefix: &str) -> Result<Vec<Tensor>> {
    let heads = run.numbered(prefix)?;
    let expected = run.case().param_or("branches", heads.len())?;
    if heads.len() == expected {
        return Ok(heads);
    }
    Err(Error::invalid(run.case().id(), format!("expected {expected} heads `{prefix}*`, found {}", heads.len())))
}

pub(super) fn hsakd_teacher(run: &mut Run<'_>) -> Result<()> {
    let (logits, heads) = (run.input("logits")?, heads(run, "ss_logits_")?);
    let network = HsakdOutputs { logits: &logits, heads: &heads };
    let loss = selfsup::hsakd_teacher(&network, &run.indices("labels")?)?;
    run.loss(&weighted_sum(&loss.terms(&HsakdConfig::default())?)?)?;
    Ok(())
}

pub(super) fn hsakd_student(run: &mut Run<'_>) -> Result<()> {
    let config = HsakdConfig { temperature: run.param("temperature")?, ..HsakdConfig::default() };
    let (logits, of_student) = (run.input("logits")?, heads(run, "ss_logits_")?);
    let (t_logits, of_teacher) = (run.input("t_logits")?, heads(run, "t_ss_logits_")?);
    let student = HsakdOutputs { logits: &logits, heads: &of_student };
    let teacher = HsakdOutputs { logits: &t_logits, heads: &of_teacher };
    let loss = selfsup::hsakd_student(&student, &teacher, &run.indices("labels")?, config.temperature)?;
    let terms = loss.terms(&config)?;
    let scores = of_student.iter().map(selfsup::class_scores).collect::<retort_losses::Result<Vec<_>>>()?;
    run.produce("class_scores", Tensor::stack(&scores, 0)?);
    run.produce("loss_cls", named(&terms, &[".ce"])?);
    run.produce("loss_div", named(&terms, &[".kd", ".heads"])?);
    run.loss(&weighted_sum(&terms)?)?;
    Ok(())
}

pub(super) fn hssakd_online(run: &mut Run<'_>) -> Result<()> {
    let config = HsakdConfig { temperature: run.param("temperature")?, ..HsakdConfig::default() };
    let logits = [run.input("logits_0")?, run.input("logits_1")?];
    let heads = [heads(run, "ss_logits_0_")?, heads(run, "ss_logits_1_")?];
    let networks = [0, 1].map(|n| HsakdOutputs { logits: &logits[n], heads: &heads[n] });
    let loss = selfsup::hssakd_online(&networks, &run.indices("labels")?, config.temperature)?;
    let terms = loss.terms(&config)?;
    run.produce("loss_cls", named(&terms, &[".ce", ".joint"])?);
    run.produce("loss_div", named(&terms, &[".kd", ".heads"])?);
    run.loss(&weighted_sum(&terms)?)?;
    Ok(())
}
