//! Networks that learn from each other. Logits are `in.logits_0`, `in.logits_1`, ..., the value of the ramp `weight`.

use super::{Renamed, two_layers, value};
use crate::golden::Run;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_losses::Term;
use retort_losses::online::{self, DmlSettings, KdclSettings, KdclTeacher, MclSettings, RampedSettings};
use retort_models::{Aggregator, Gate, Head, PairWeights, PeerAttention};
use retort_nn::Mode;

/// `loss`, and the two terms as `loss_cls` and `loss_kd`.
fn produce_two(run: &mut Run<'_>, terms: &[Term]) -> Result<()> {
    run.produce("loss_cls", terms[0].value.clone());
    run.produce("loss_kd", terms[1].value.clone());
    run.loss(&online::total(terms)?)?;
    Ok(())
}

fn dml_settings(run: &Run<'_>) -> Result<DmlSettings> {
    Ok(DmlSettings { temperature: run.param("temperature")?, weight: run.param("weight")? })
}

pub(super) fn dml(run: &mut Run<'_>) -> Result<()> {
    let terms = online::dml(&run.numbered("logits_")?, &run.labels("labels")?, &dml_settings(run)?)?;
    produce_two(run, &terms)
}

pub(super) fn dml_ensemble(run: &mut Run<'_>) -> Result<()> {
    let terms = online::dml_ensemble(&run.numbered("logits_")?, &run.labels("labels")?, &dml_settings(run)?)?;
    produce_two(run, &terms)
}

pub(super) fn kdcl_mean(run: &mut Run<'_>) -> Result<()> {
    let (temperature, alpha) = (run.param("temperature")?, run.param("alpha")?);
    let settings = KdclSettings { temperature, alpha, teacher: KdclTeacher::Mean };
    let terms = online::kdcl(&run.numbered("logits_")?, &run.labels("labels")?, &settings)?;
    run.loss(&online::total(&terms)?)?;
    Ok(())
}

/// Linear heads without bias on a trunk: their cross-entropies alone.
pub(super) fn ilr(run: &mut Run<'_>) -> Result<()> {
    let heads = run.numbered("param.w_")?;
    let shared = online::scale_gradient(&run.input("shared")?, 1.0 / heads.len() as f64)?;
    let logits: Vec<Tensor> = heads.iter().map(|w| Ok(shared.matmul(&w.t()?)?)).collect::<Result<_>>()?;
    let terms = online::cl_ilr(&logits, &run.labels("labels")?, &RampedSettings::default(), 0.0)?;
    run.loss(&value(&terms, "ce")?)?;
    Ok(())
}

fn ramped(run: &Run<'_>) -> Result<(RampedSettings, f64)> {
    let settings = RampedSettings { temperature: run.param("temperature")?, ..RampedSettings::default() };
    Ok((settings, run.param("weight")?))
}

pub(super) fn one(run: &mut Run<'_>) -> Result<()> {
    let (logits, input, (settings, ramp)) = (run.numbered("logits_")?, run.input("gate_input")?, ramped(run)?);
    let statistics = [("bn.running_mean", 0.0f32), ("bn.running_var", 1.0)];
    let statistics =
        statistics.map(|(name, x)| Ok::<_, Error>((name.to_string(), Tensor::full(x, logits.len(), &Device::Cpu)?)));
    let params = run.params(statistics.into_iter().collect::<Result<Vec<_>>>()?);
    let gate = Gate::new(input.dims2()?.1, logits.len(), &params.root())?.forward(&input, Mode::Train)?;
    let gated = Gate::mix(&gate, &logits)?;
    let terms = online::one(&logits, &gated, &run.labels("labels")?, &settings, ramp)?;
    run.produce("gate", gate);
    run.produce("teacher_logits", gated);
    produce_two(run, &terms)
}

pub(super) fn okddip(run: &mut Run<'_>) -> Result<()> {
    let (logits, features, leader) =
        (run.numbered("logits_")?, run.numbered("features_")?, run.input("leader_logits")?);
    let (settings, ramp) = ramped(run)?;
    let (outputs, inputs) = run.case().tensor("in.param.query")?.dims2()?;
    let weights = Renamed::new(run, |name| format!("{name}.weight"));
    let attention = PeerAttention::new(inputs, outputs, &weights.root())?.forward(&features)?;
    let targets = online::okddip_targets(&logits, &attention)?;
    let terms = online::okddip(&logits, &attention, &leader, &run.labels("labels")?, &settings, ramp)?;
    run.produce("attention", attention);
    run.produce("targets", Tensor::stack(&targets, 2)?);
    weights.loss(run, &online::total(&terms)?)
}

pub(super) fn ffl(run: &mut Run<'_>) -> Result<()> {
    let (logits, fused, (settings, ramp)) = (run.numbered("logits_")?, run.input("fused_logits")?, ramped(run)?);
    let terms = online::ffl(&logits, &fused, &run.labels("labels")?, &settings, ramp)?;
    produce_two(run, &terms)
}

/// Weights of the batch and memory forms are called `alpha` (vcl), `gamma` (soft vcl), `beta` (icl), `lam` (soft icl).
fn mcl_settings(run: &Run<'_>, default: MclSettings) -> Result<MclSettings> {
    let case = run.case();
    Ok(MclSettings {
        tau: case.param("tau")?,
        temperature: case.param("kd_T")?,
        vcl: case.param_or("alpha", default.vcl)?,
        soft_vcl: case.param_or("gamma", default.soft_vcl)?,
        icl: case.param_or("beta", default.icl)?,
        soft_icl: case.param_or("lam", default.soft_icl)?,
        icl_include_self: case.param_or("icl_include_self", false)?,
    })
}

fn produce_four(run: &mut Run<'_>, terms: &[Term]) -> Result<Tensor> {
    for (out, name) in [("vcl", "vcl"), ("soft_vcl", "soft-vcl"), ("icl", "icl"), ("soft_icl", "soft-icl")] {
        run.produce(out, value(terms, name)?);
    }
    Ok(online::total(terms)?)
}

/// Embeddings, or features with a head for each network.
pub(super) fn mcl(run: &mut Run<'_>) -> Result<()> {
    let settings = mcl_settings(run, MclSettings::default())?;
    let labels = run.labels("labels")?;
    if run.case().has("in.embedding_0") {
        let terms = online::mcl(&run.numbered("embedding_")?, &labels, &settings)?;
        let loss = produce_four(run, &terms)?;
        run.loss(&loss)?;
        return Ok(());
    }
    let features = run.numbered("features_")?;
    let weights = Renamed::new(run, |name| {
        let (head, rest) = name.trim_start_matches("head").split_once('.').unwrap_or(("", name));
        format!("{head}.proj_head.{}", two_layers(rest))
    });
    let mut embeddings = Vec::new();
    for (k, feature) in features.iter().enumerate() {
        let shape = |name: &str| Ok::<_, Error>(run.case().tensor(&format!("in.param.head{k}.{name}"))?.dims2()?);
        let ((hidden, inputs), (outputs, _)) = (shape("w1")?, shape("w2")?);
        let head = Head::mcl(inputs, hidden, outputs, &weights.root().child(k))?;
        embeddings.push(head.forward(feature, Mode::Train)?);
    }
    let loss = produce_four(run, &online::mcl(&embeddings, &labels, &settings)?)?;
    weights.loss(run, &loss)
}

pub(super) fn mcl_memory(run: &mut Run<'_>) -> Result<()> {
    let settings = mcl_settings(run, MclSettings::memory())?;
    let (embeddings, banks) = (run.numbered("embedding_")?, run.numbered("memory_")?);
    let (positives, negatives) = (run.indices("pos_idx")?, run.indices("neg_idx")?);
    let mut memory = online::MclMemory::new(&banks, run.case().param_or("momentum", 0.5)?)?;
    let terms = memory.terms(&embeddings, &positives, &negatives, &settings)?;
    let loss = produce_four(run, &terms)?;
    run.loss(&loss)?;
    let per_sample = positives.len() / embeddings[0].dims()[0];
    let own: Vec<u32> = positives.chunks(per_sample).map(|rows| rows[0]).collect();
    memory.update(&embeddings, &own)?;
    for (k, bank) in memory.banks()?.into_iter().enumerate() {
        run.produce(format!("memory_{k}"), bank);
    }
    Ok(())
}

/// Queues hold a key in every column.
pub(super) fn mcl_moco(run: &mut Run<'_>) -> Result<()> {
    let settings = mcl_settings(run, MclSettings::moco())?;
    let (queries, keys, queues) = (run.numbered("query_")?, run.numbered("key_")?, run.numbered("queue_")?);
    let queues: Vec<Tensor> = queues.iter().map(|queue| Ok(queue.t()?)).collect::<Result<_>>()?;
    let terms = online::MclQueues::new(&queues)?.terms(&queries, &keys, &settings)?;
    let loss = produce_four(run, &terms)?;
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn mcl_logit_kd(run: &mut Run<'_>) -> Result<()> {
    let term = online::mcl_logit_kd(&run.numbered("logits_")?, run.param("temperature")?)?;
    run.loss(&term.weighted()?)?;
    Ok(())
}

/// `in.PREFIX_i_k` by network i and stage k.
fn stages(run: &mut Run<'_>, prefix: &str) -> Result<Vec<Vec<Tensor>>> {
    let mut networks = Vec::new();
    while run.case().has(&format!("in.{prefix}_{}_0", networks.len())) {
        networks.push(run.numbered(&format!("{prefix}_{}_", networks.len()))?);
    }
    Ok(networks)
}

pub(super) fn lmcl(run: &mut Run<'_>) -> Result<()> {
    let settings = mcl_settings(run, MclSettings::default())?;
    let (embeddings, weights) = (stages(run, "embedding")?, run.input("weights")?);
    let terms = online::lmcl(&embeddings, &run.labels("labels")?, Some(&weights), &settings)?;
    let loss = produce_four(run, &terms)?;
    run.loss(&loss)?;
    Ok(())
}

/// The weights of the pairs, reduced to a number by given coefficients.
pub(super) fn lmcl_weights(run: &mut Run<'_>) -> Result<()> {
    let (features, coefficients) = (stages(run, "features")?, run.constant("coef")?);
    let widths: Vec<Vec<usize>> =
        features.iter().map(|f| f.iter().map(|f| Ok(f.dims2()?.1)).collect()).collect::<Result<_>>()?;
    let outputs = run.case().tensor("in.param.proj_0_0.bias")?.dims1()?;
    let params = run.params([]);
    let weights = PairWeights::new(&widths, outputs, &params.root())?.forward(&features)?;
    let loss = (&weights * coefficients)?.to_dtype(DType::F64)?.sum_all()?.to_dtype(DType::F32)?;
    run.produce("weights", weights);
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn lmcl_aggregator(run: &mut Run<'_>) -> Result<()> {
    let (features, logits) = (stages(run, "features")?, stages(run, "logits")?);
    let weights = Renamed::new(run, |name| {
        let (network, rest) = name.trim_start_matches("agg_").split_once('.').unwrap_or(("", name));
        format!("{network}.{}", two_layers(rest))
    });
    let mut aggregated = Vec::new();
    for (i, (features, logits)) in features.iter().zip(&logits).enumerate() {
        let width = features[0].dims2()?.1;
        let aggregator = Aggregator::new(width, features.len(), &weights.root().child(i))?;
        aggregated.push(aggregator.forward(features, logits)?);
    }
    let terms = online::lmcl_logits(&logits, &aggregated, &run.labels("labels")?, run.param("kd_T")?)?;
    run.produce("aggregated", Tensor::stack(&aggregated, 0)?);
    run.produce("loss_cls", terms[0].value.clone());
    run.produce("loss_kd", terms[1].value.clone());
    weights.loss(run, &online::total(&terms)?)
}
