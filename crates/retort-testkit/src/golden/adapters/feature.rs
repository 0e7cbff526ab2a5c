//! Feature losses. Maps are `in.s0`, `in.s1`, ... and `in.t0`, `in.t1`, ...

use super::{fixed, heads_scope};
use crate::golden::Run;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_losses::feature::{self, ConvRegressor, PolynomialKernel, Resize, VidRegressor};
use retort_losses::{StageLoss, mean_over_teachers};
use retort_nn::{Head, MapShape, Mode, Params, SimRegHead, Tensors};

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

/// `normalize` tells nothing: the reference normalises in either case.
pub(super) fn simreg(run: &mut Run<'_>) -> Result<()> {
    let loss = feature::simreg(&run.input("pred")?, &run.input("teacher")?)?;
    run.loss(&loss)?;
    Ok(())
}

/// A head for each teacher, `in.pred0` and `in.teacher0`, ...
pub(super) fn simreg_multi(run: &mut Run<'_>) -> Result<()> {
    let (heads, teachers) = (run.numbered("pred")?, run.numbered("teacher")?);
    let expected: usize = run.case().param_or("teachers", heads.len())?;
    if heads.len() != expected || teachers.len() != expected {
        let found = format!("{} heads and {} teachers", heads.len(), teachers.len());
        return Err(Error::invalid("simreg-multi", format!("expected {expected} of each, found {found}")));
    }
    let losses = heads.iter().zip(&teachers).map(|(head, teacher)| feature::simreg(head, teacher));
    let loss = mean_over_teachers(&losses.collect::<retort_losses::Result<Vec<_>>>()?)?;
    run.loss(&loss)?;
    Ok(())
}

/// The head with `layers` linear layers, and our name of each of the case's layers `fc0`, `bn0`, ...
fn simreg_head(run: &Run<'_>) -> Result<(SimRegHead, &'static [(&'static str, &'static str)])> {
    Ok(match (run.param("layers")?, run.case().has("in.param.bn0.weight")) {
        (1, true) => (SimRegHead::Linear, &[("bn0", "0"), ("fc0", "1")]),
        (2, false) => (SimRegHead::Two, &[("fc0", "0"), ("fc1", "1")]),
        (2, true) => (SimRegHead::TwoActivated, &[("fc0", "0"), ("bn0", "1"), ("fc1", "3")]),
        (4, true) => {
            (SimRegHead::Four, &[("fc0", "0"), ("bn0", "1"), ("fc1", "3"), ("fc2", "4"), ("bn2", "5"), ("fc3", "7")])
        }
        (layers, _) => return Err(Error::Unsupported(format!("simreg-mlp with {layers} layers"))),
    })
}

/// The published head and its loss; running statistics start at 0 and 1 where the case holds none.
pub(super) fn simreg_mlp(run: &mut Run<'_>) -> Result<()> {
    fixed(run, "bn_eps", 1e-5)?;
    let mode = match run.case().param_or("mode", "train".to_string())?.as_str() {
        "train" => Mode::Train,
        "eval" => Mode::Eval,
        other => return Err(Error::Unsupported(format!("simreg-mlp in mode `{other}`"))),
    };
    let (head, names) = simreg_head(run)?;
    let mut tensors = Tensors::new();
    for (theirs, ours) in names {
        for (part, tensor) in run.case().with_prefix(&format!("in.param.{theirs}.")) {
            if theirs.starts_with("bn") && part == "weight" {
                tensors.entry(format!("{ours}.running_mean")).or_insert(tensor.zeros_like()?);
                tensors.entry(format!("{ours}.running_var")).or_insert(tensor.ones_like()?);
            }
            tensors.insert(format!("{ours}.{part}"), tensor);
        }
    }
    let (features, teacher) = (run.input("feat")?, run.input("teacher")?);
    let params = Params::from_tensors(tensors, DType::F32, &Device::Cpu);
    let head = Head::simreg(head, features.dim(1)?, teacher.dim(1)?, &params.root())?;
    let output = head.forward(&features, mode)?;
    let loss = feature::simreg(&output, &teacher)?;
    run.produce("pred", output);
    let gradients = run.loss(&loss)?;
    for (name, var) in params.trainable() {
        let (layer, part) = name.split_once('.').unwrap_or((&name, ""));
        let theirs = names.iter().find(|(_, ours)| *ours == layer).map_or(layer, |(theirs, _)| theirs);
        let gradient = match gradients.get(&var) {
            Some(gradient) => gradient.clone(),
            None => var.as_tensor().zeros_like()?,
        };
        run.gradient(&format!("param.{theirs}.{part}"), gradient);
    }
    Ok(())
}
