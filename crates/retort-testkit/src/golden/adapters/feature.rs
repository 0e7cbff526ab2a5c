//! Feature losses. Maps are `in.s0`, `in.s1`, ... and `in.t0`, `in.t1`, ...

use super::{fixed, heads_scope};
use crate::golden::Run;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_losses::StageLoss;
use retort_losses::feature::{self, ConvRegressor, PolynomialKernel, Resize, VidRegressor};
use retort_nn::MapShape;

/// The maps of all stages; the family `distribution` calls its only pair `f_s`, `f_t`.
fn stages(run: &mut Run<'_>) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    if run.case().has("in.f_s") {
        return Ok((vec![run.input("f_s")?], vec![run.input("f_t")?]));
    }
    Ok((run.numbered("s")?, run.numbered("t")?))
}

pub(super) fn produce_stages(run: &mut Run<'_>, loss: &StageLoss) -> Result<()> {
    for (i, stage) in loss.stages.iter().enumerate() {
        run.produce(format!("stage{i}"), stage.clone());
    }
    run.loss(&loss.total)?;
    Ok(())
}

pub(super) fn shape_of(map: &Tensor) -> Result<MapShape> {
    let (_, channels, height, width) = map.dims4()?;
    Ok(MapShape { channels, height, width })
}

/// Regressor with batch norm in training mode, whose running statistics start at 0 and 1.
pub(super) fn fitnet(run: &mut Run<'_>) -> Result<()> {
    fixed(run, "bn_eps", 1e-5)?;
    fixed(run, "bn_momentum", 0.1)?;
    let relu = run.case().param_or("regressor_relu", true)?;
    let (student, teacher) = (run.input("s0")?, run.input("t0")?);
    let (from, to) = (shape_of(&student)?, shape_of(&teacher)?);
    let mean = Tensor::zeros(to.channels, DType::F32, &Device::Cpu)?;
    let var = Tensor::ones(to.channels, DType::F32, &Device::Cpu)?;
    let params = run.params([("bn.running_mean".to_string(), mean), ("bn.running_var".to_string(), var)]);
    let regressed = ConvRegressor::new(from, to, relu, &params.root())?.forward(&student)?;
    let loss = feature::hint(&regressed, &teacher)?;
    run.produce("regressed", regressed);
    for (name, tensor) in params.snapshot()? {
        run.produce(name.replace('.', "_"), tensor);
    }
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn at(run: &mut Run<'_>) -> Result<()> {
    let (student, teacher) = stages(run)?;
    let loss = feature::attention_transfer(&student, &teacher, run.param("p")?)?;
    produce_stages(run, &loss)
}

/// The kernel is `poly` with `degree` and `coef0`, or a text such as `polynomial degree 2 offset 0`.
pub(super) fn nst(run: &mut Run<'_>) -> Result<()> {
    let text: String = run.param("kernel")?;
    let words: Vec<&str> = text.split_whitespace().collect();
    if !["poly", "polynomial"].contains(&words.first().copied().unwrap_or_default()) {
        return Err(Error::Unsupported(format!("kernel `{text}` of nst")));
    }
    let word = |name: &str| words.windows(2).find(|pair| pair[0] == name).and_then(|pair| pair[1].parse().ok());
    let degree: f64 = run.case().param_or("degree", word("degree").unwrap_or(2.0))?;
    let offset: f64 = run.case().param_or("coef0", word("offset").unwrap_or(0.0))?;
    if degree.fract() != 0.0 || !(1.0..=16.0).contains(&degree) {
        return Err(Error::Unsupported(format!("nst with a kernel of degree {degree}")));
    }
    let (student, teacher) = stages(run)?;
    let kernel = PolynomialKernel { degree: degree as u32, offset };
    let loss = feature::neuron_selectivity_with(&student, &teacher, kernel)?;
    produce_stages(run, &loss)
}

pub(super) fn pkd(run: &mut Run<'_>) -> Result<()> {
    let resize = match run.case().param_or("resize", "student".to_string())?.as_str() {
        "student" => Resize::Student,
        "teacher" => Resize::Teacher,
        other => return Err(Error::Unsupported(format!("resize `{other}` of pkd"))),
    };
    let (student, teacher) = stages(run)?;
    let loss = feature::pearson(&student, &teacher, resize, run.case().param_or("std_eps", 1e-6)?)?;
    produce_stages(run, &loss)
}

/// One regressor a stage, in the order of their names where there are several.
pub(super) fn vid(run: &mut Run<'_>) -> Result<()> {
    let case = run.case();
    let (init_var, min_var) = (case.param("init_pred_var")?, case.param("eps")?);
    let (student, teacher) = stages(run)?;
    let params = run.params([]);
    let names = case.with_prefix("in.param.");
    let prefixes: Vec<&str> = names.keys().filter_map(|name| name.strip_suffix("log_scale")).collect();
    if prefixes.len() != student.len() || prefixes.len() != teacher.len() {
        let found =
            format!("{} student maps, {} teacher maps, {} `log_scale`", student.len(), teacher.len(), prefixes.len());
        return Err(Error::invalid("vid", format!("expected one of each a stage, found {found}")));
    }
    let mut total: Option<Tensor> = None;
    for (i, prefix) in prefixes.iter().enumerate() {
        let (c_s, c_t) = (shape_of(&student[i])?.channels, shape_of(&teacher[i])?.channels);
        let regressor = VidRegressor::new(c_s, c_t, init_var, min_var, &heads_scope(&params, prefix))?;
        let loss = regressor.loss(i, &student[i], &teacher[i])?;
        run.produce(format!("{prefix}pred_var"), regressor.variance()?);
        run.produce(format!("stage{i}"), loss.clone());
        total = Some(match total {
            Some(sum) => (sum + loss)?,
            None => loss,
        });
    }
    run.loss(&total.expect("there is at least the stage s0"))?;
    Ok(())
}
