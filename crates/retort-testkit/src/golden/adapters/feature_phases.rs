//! Feature losses with a phase before the training. Maps are `in.s0`, `in.s1`, ... and `in.t0`, `in.t1`, ...

use super::feature::{produce_stages, shape_of};
use super::heads_scope;
use crate::golden::{Case, Run};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_losses::feature::{self, Connector, FactorEncoder, FactorNorm, Paraphraser};
use retort_nn::{Mode, Params};

/// Running statistics at their start, 0 and 1, of every batch norm among the parameters: the weights of rank 1.
fn running_statistics(case: &Case) -> Result<Vec<(String, Tensor)>> {
    let mut statistics = Vec::new();
    for (name, weight) in case.with_prefix("in.param.") {
        if let (Some(norm), 1) = (name.strip_suffix(".weight"), weight.rank()) {
            statistics.push((format!("{norm}.running_mean"), weight.zeros_like()?));
            statistics.push((format!("{norm}.running_var"), weight.ones_like()?));
        }
    }
    Ok(statistics)
}

/// Maps before the activation.
pub(super) fn ab(run: &mut Run<'_>) -> Result<()> {
    let (student, teacher) = (run.numbered("s")?, run.numbered("t")?);
    let (weights, scale): (Vec<f64>, f64) = (run.param("stage_weights")?, run.param("scale")?);
    let weights: Vec<f64> = weights.into_iter().map(|weight| weight * scale).collect();
    let params = run.params(running_statistics(run.case())?);
    let mut connected = student.clone();
    if run.case().param_or("connector", true)? {
        let scope = heads_scope(&params, "connectors");
        for (i, (s, t)) in student.iter().zip(&teacher).enumerate() {
            connected[i] = Connector::new(shape_of(s)?, shape_of(t)?, &scope.child(i))?.forward(s)?;
        }
    }
    let loss = feature::activation_boundaries(&connected, &teacher, run.param("margin")?, &weights)?;
    produce_stages(run, &loss)
}

/// Translator in training mode and frozen paraphraser, of which the case holds the encoder alone.
pub(super) fn ft(run: &mut Run<'_>) -> Result<()> {
    let (student, teacher) = (run.input("s0")?, run.input("t0")?);
    let (c_s, c_t) = (shape_of(&student)?.channels, shape_of(&teacher)?.channels);
    let norm = match run.case().param_or("factor_norm", "channel-mean".to_string())?.as_str() {
        "channel-mean" | "channel_mean" => FactorNorm::ChannelMean,
        "full" => FactorNorm::Full,
        other => return Err(Error::Unsupported(format!("factor_norm `{other}` of ft"))),
    };
    let slope = run.case().param_or("leaky_slope", 0.1)?;
    let factors = feature::factor_channels(c_t, run.param("k")?)?;
    let params = run.params(running_statistics(run.case())?);
    let frozen = Params::frozen(run.case().with_prefix("in.paraphraser."), DType::F32, &Device::Cpu);
    let translator = FactorEncoder::new(c_s, factors, slope, true, &heads_scope(&params, "translator"))?;
    let paraphraser = FactorEncoder::new(c_t, factors, slope, false, &frozen.root())?;
    let ours = translator.forward(&student, Mode::Train)?;
    let theirs = paraphraser.forward(&teacher, Mode::Eval)?;
    let loss = feature::factor_transfer(&ours, &theirs, [run.param("p1")?, run.param("p2")?], norm)?;
    run.produce("student_factor", ours);
    run.produce("teacher_factor", theirs);
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn ft_paraphraser(run: &mut Run<'_>) -> Result<()> {
    let teacher = run.input("t0")?;
    let channels = shape_of(&teacher)?.channels;
    let factors = feature::factor_channels(channels, run.param("k")?)?;
    let (slope, batch_norm) = (run.case().param_or("leaky_slope", 0.1)?, run.case().param_or("use_bn", false)?);
    let params = run.params(running_statistics(run.case())?);
    let paraphrase = Paraphraser::new(channels, factors, slope, batch_norm, &params.root())?.paraphrase(&teacher)?;
    run.produce("factor", paraphrase.factor);
    run.loss(&paraphrase.loss)?;
    Ok(())
}

pub(super) fn fsp(run: &mut Run<'_>) -> Result<()> {
    let (student, teacher) = (run.numbered("s")?, run.numbered("t")?);
    let loss = feature::flow(&student, &teacher)?;
    for (i, pair) in loss.stages.iter().enumerate() {
        run.produce(format!("pair{i}"), pair.clone());
    }
    run.loss(&loss.total)?;
    Ok(())
}
