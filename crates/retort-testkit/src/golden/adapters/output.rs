//! Output losses.

use crate::golden::Run;
use crate::{Error, Result};
use candle_core::Tensor;
use retort_losses::output::{self, Spread};

/// The task loss of training steps.
pub(super) fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok(output::cross_entropy(logits, labels)?)
}

pub(super) fn ce(run: &mut Run<'_>) -> Result<()> {
    let smoothing: f64 = run.case().param_or("smoothing", 0.0)?;
    if smoothing != 0.0 {
        return Err(Error::invalid("ce", format!("smoothing must be 0, found {smoothing}: that is `label-smoothing`")));
    }
    let loss = output::cross_entropy(&run.input("logits")?, &run.labels("labels")?)?;
    run.loss(&loss)?;
    Ok(())
}

/// Hyper-parameters: `smoothing`, or `epsilon` with `convention` `uniform` or `others`.
pub(super) fn label_smoothing(run: &mut Run<'_>) -> Result<()> {
    let case = run.case();
    let smoothing: f64 = match case.param::<f64>("smoothing") {
        Ok(value) => value,
        Err(_) => case.param("epsilon")?,
    };
    let spread = match case.param_or("convention", "uniform".to_string())?.as_str() {
        "uniform" => Spread::All,
        "others" => Spread::Wrong,
        other => return Err(Error::Unsupported(format!("convention `{other}` of label smoothing"))),
    };
    let loss = output::label_smoothing(&run.input("logits")?, &run.labels("labels")?, smoothing, spread)?;
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn kd(run: &mut Run<'_>) -> Result<()> {
    let (student, teacher) = (run.input("student_logits")?, run.input("teacher_logits")?);
    let loss = output::kd(&student, &teacher, run.param("T")?)?;
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn dkd(run: &mut Run<'_>) -> Result<()> {
    let (student, teacher) = (run.input("student_logits")?, run.input("teacher_logits")?);
    let parts = output::dkd(&student, &teacher, &run.labels("labels")?, run.param("T")?)?;
    let loss = parts.combine(run.param("alpha")?, run.param("beta")?)?;
    run.produce("tckd", parts.tckd);
    run.produce("nckd", parts.nckd);
    run.loss(&loss)?;
    Ok(())
}
