//! Output losses.

use crate::golden::Run;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use retort_losses::output::{self, Curriculum, CurriculumKind, Spread};
use retort_nn::{Init, Optimizer, OptimizerConfig, ParamGroup, Params};

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

/// The temperature that `in.param.theta` stands for.
fn learned_temperature(run: &Run<'_>, params: &Params, lambda: f64) -> Result<Tensor> {
    let theta = params.root().weight("theta", &[1], Init::Constant(0.0))?;
    Ok(output::learned_temperature(&theta, run.param("t_start")?, run.param("t_end")?, lambda)?)
}

pub(super) fn ctkd(run: &mut Run<'_>) -> Result<()> {
    let (student, teacher, params) = (run.input("student_logits")?, run.input("teacher_logits")?, run.params([]));
    let temperature = learned_temperature(run, &params, run.param("lambda")?)?;
    let loss = output::ctkd(&student, &teacher, &temperature)?;
    run.produce("temperature", temperature);
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn ctkd_dkd(run: &mut Run<'_>) -> Result<()> {
    let (student, teacher, params) = (run.input("student_logits")?, run.input("teacher_logits")?, run.params([]));
    let temperature = learned_temperature(run, &params, run.param("lambda")?)?;
    let parts = output::ctkd_dkd(&student, &teacher, &run.labels("labels")?, &temperature)?;
    let loss = parts.combine(run.param("alpha")?, run.param("beta")?)?;
    run.produce("temperature", temperature);
    run.produce("tckd", parts.tckd);
    run.produce("nckd", parts.nckd);
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn ctkd_instance(run: &mut Run<'_>) -> Result<()> {
    let (student, teacher) = (run.input("student_logits")?, run.input("teacher_logits")?);
    let eps = run.case().param_or("eps", 1e-7)?;
    let loss = output::ctkd_instance(&student, &teacher, &run.input("temperature")?, eps)?;
    run.loss(&loss)?;
    Ok(())
}

/// Hyper-parameters: `decay_max`, `decay_min`, `decay_loops`, `kind` (`cosine` unless it says `linear`).
fn curriculum(run: &Run<'_>) -> Result<Curriculum> {
    let kind = match run.case().param_or("kind", "cosine".to_string())?.as_str() {
        "cosine" => CurriculumKind::Cosine,
        "linear" => CurriculumKind::Linear,
        other => return Err(Error::Unsupported(format!("curriculum `{other}`"))),
    };
    let (min, max, epochs) = (run.param("decay_min")?, run.param("decay_max")?, run.param("decay_loops")?);
    Ok(Curriculum { kind, min, max, epochs })
}

/// There is no loss.
pub(super) fn ctkd_schedule(run: &mut Run<'_>) -> Result<()> {
    let curriculum = curriculum(run)?;
    let factors: Vec<f64> = run.indices("epochs")?.into_iter().map(|e| curriculum.factor(e as usize)).collect();
    run.produce("lambda", Tensor::new(factors, &Device::Cpu)?);
    Ok(())
}

/// Steps of the temperature's parameter alone, by SGD with momentum, on logits that are given for each step.
pub(super) fn ctkd_trajectory(run: &mut Run<'_>) -> Result<()> {
    let curriculum = curriculum(run)?;
    let (alpha, lr, per_epoch): (f64, f64, usize) =
        (run.param("alpha")?, run.param("lr")?, run.param("steps_per_epoch")?);
    let (students, teachers) = (run.constant("student_logits")?, run.constant("teacher_logits")?);
    let params = run.params([]);
    let theta = params.root().weight("theta0", &[1], Init::Constant(0.0))?;
    let (momentum, weight_decay) = (run.param("momentum")?, run.param("weight_decay")?);
    let sgd = OptimizerConfig::Sgd { momentum, nesterov: false, dampening: 0.0, weight_decay };
    let mut optimizer = Optimizer::new(sgd, vec![ParamGroup::new(params.trainable())])?;
    let mut found: [Vec<Tensor>; 4] = Default::default();
    for step in 0..students.dim(0)? {
        let lambda = curriculum.factor(step / per_epoch.max(1) + 1);
        let temperature = output::learned_temperature(&theta, run.param("t_start")?, run.param("t_end")?, lambda)?;
        let loss = output::ctkd(&students.get(step)?, &teachers.get(step)?, &temperature)?;
        optimizer.step(&(&loss * alpha)?.backward()?, lr)?;
        let lambda = Tensor::new(&[lambda as f32], &Device::Cpu)?;
        let values = [theta.copy()?, temperature, loss.reshape(1)?, lambda];
        found.iter_mut().zip(values).for_each(|(list, value)| list.push(value.detach()));
    }
    for (name, values) in ["theta", "temperature", "kd", "lambda"].into_iter().zip(found) {
        run.produce(name, Tensor::cat(&values, 0)?);
    }
    Ok(())
}
