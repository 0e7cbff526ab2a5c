//! Networks that learn from themselves, and targets that are shaped without a teacher.

use super::{Renamed, two_layers, value};
use crate::golden::Run;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use retort_losses::online::total;
use retort_losses::self_distillation::{
    self as own, BakeSettings, ByotSettings, CsKdSettings, DdgsdSettings, Discriminators, DlbBatch, DlbSettings,
    FrskdSettings, ManyToOne, MixSkdBatch, MixSkdSettings, NodeWeights, PsKdMemory, RankDistribution, SadSettings,
    TfKdRegConfig, TfKdRegLibConfig, TfKdSelfSettings, ZipfRanking, ZipfSettings,
};
use retort_losses::{Term, output};
use retort_models::{MapDiscriminator, SelfTeacher};
use retort_nn::{MapShape, Seed};

fn number(x: f64) -> Result<Tensor> {
    Ok(Tensor::new(&[x], &Device::Cpu)?)
}

/// `loss`, the cross-entropy with its weight as `loss_cls`, and the rest as `loss_div`.
fn produce_rest(run: &mut Run<'_>, terms: &[Term]) -> Result<()> {
    run.produce("loss_cls", terms[0].weighted()?);
    run.produce("loss_div", total(&terms[1..])?);
    run.loss(&total(terms)?)?;
    Ok(())
}

/// `loss`, and the second term alone as `kd`.
fn produce_kd(run: &mut Run<'_>, terms: &[Term]) -> Result<()> {
    run.produce("kd", terms[1].value.clone());
    run.loss(&total(terms)?)?;
    Ok(())
}

pub(super) fn focal(run: &mut Run<'_>) -> Result<()> {
    let loss = own::focal(&run.input("logits")?, &run.labels("labels")?, run.param("gamma")?)?;
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn max_entropy(run: &mut Run<'_>) -> Result<()> {
    let terms = own::max_entropy(&run.input("logits")?, &run.labels("labels")?, run.param("weight")?)?;
    run.loss(&total(&terms)?)?;
    Ok(())
}

pub(super) fn virtual_softmax(run: &mut Run<'_>) -> Result<()> {
    let (embedding, weight, labels) = (run.input("embedding")?, run.input("param.weight")?, run.labels("labels")?);
    run.produce("logits", own::virtual_logits(&embedding, &weight, &labels)?);
    run.loss(&own::virtual_softmax(&embedding, &weight, &labels)?)?;
    Ok(())
}

pub(super) fn tf_kd_self(run: &mut Run<'_>) -> Result<()> {
    let (alpha, temperature) = (run.param("alpha")?, run.param("temperature")?);
    let settings = TfKdSelfSettings { alpha, temperature, multiplier: run.param("multiplier")? };
    let (logits, teacher) = (run.input("logits")?, run.input("teacher_logits")?);
    let terms = own::tf_kd_self(&logits, &teacher, &run.labels("labels")?, &settings)?;
    run.loss(&total(&terms)?)?;
    Ok(())
}

pub(super) fn tf_kd_reg(run: &mut Run<'_>) -> Result<()> {
    let settings = TfKdRegConfig {
        alpha: run.param("alpha")?,
        temperature: run.param("temperature")?,
        multiplier: run.param("multiplier")?,
        correct_prob: run.param("correct_prob")?,
        ..TfKdRegConfig::default()
    };
    let terms = own::tf_kd_reg(&run.input("logits")?, &run.labels("labels")?, &settings)?;
    run.loss(&total(&terms)?)?;
    Ok(())
}

pub(super) fn tf_kd_reg_lib(run: &mut Run<'_>) -> Result<()> {
    let (epsilon, temperature) = (run.param("epsilon")?, run.param("temperature")?);
    let settings = TfKdRegLibConfig { epsilon, temperature, ..TfKdRegLibConfig::default() };
    let terms = own::tf_kd_reg_lib(&run.input("logits")?, &run.labels("labels")?, &settings)?;
    run.loss(&total(&terms)?)?;
    Ok(())
}

/// The distribution's parameters stand beside its name.
fn distribution(run: &Run<'_>) -> Result<RankDistribution> {
    let case = run.case();
    Ok(match case.param_or("distribution", "rank_zipf".to_string())?.as_str() {
        "rank_zipf" => RankDistribution::RankZipf { power: case.param_or("power", 1.0)? },
        "unbiased_zipf" => RankDistribution::UnbiasedZipf {
            left_bound: case.param("left_bound")?,
            right_bound: case.param("right_bound")?,
        },
        "linear_decay" => RankDistribution::LinearDecay { smallest_prob: case.param_or("smallest_prob", 1e-6)? },
        "exponential_decay" => RankDistribution::ExponentialDecay { exp_lambda: case.param("exp_lambda")? },
        "constant" => RankDistribution::Constant,
        other => return Err(Error::Unsupported(format!("distribution `{other}` of zipf-ls"))),
    })
}

/// The soft labels alone.
pub(super) fn zipf_ls(run: &mut Run<'_>) -> Result<()> {
    let (logits, labels) = (run.input("logits")?, run.labels("labels")?);
    let loss_mask = run.case().param_or("loss_mask", false)?;
    let settings = ZipfSettings { distribution: distribution(run)?, loss_mask, ..ZipfSettings::default() };
    let votes = if run.case().has("in.votes") { Some(run.labels("votes")?) } else { None };
    let ranking = match (run.param::<String>("ranking")?.as_str(), &votes) {
        ("dense-vote", Some(votes)) => ZipfRanking::DenseVote(votes),
        ("logits", _) => ZipfRanking::Logits,
        (other, _) => return Err(Error::Unsupported(format!("ranking `{other}` of zipf-ls"))),
    };
    let loss = own::zipf(&logits, &labels, ranking, &settings, Seed::root(0))?;
    run.produce("pdf", loss.pdf);
    run.produce("rank", loss.ranks);
    run.loss(&loss.value)?;
    Ok(())
}

/// The whole loss from feature maps and their linear classifiers, that of the last stage first.
pub(super) fn zipf_ls_dense(run: &mut Run<'_>) -> Result<()> {
    let (maps, weights) = (run.numbered("features_")?, run.numbered("param.weight_")?);
    let (biases, labels) = (run.numbered("param.bias_")?, run.labels("labels")?);
    let upsample = match run.param::<Option<String>>("upsample")?.as_deref() {
        None => false,
        Some("bilinear") => true,
        Some(other) => return Err(Error::Unsupported(format!("upsample `{other}` of zipf-ls-dense"))),
    };
    let (mut logits, mut votes) = (Vec::new(), Vec::new());
    for ((map, weight), bias) in maps.iter().zip(&weights).zip(&biases) {
        logits.push(map.mean((2, 3))?.matmul(&weight.t()?)?.broadcast_add(bias)?);
        votes.push(own::dense_votes(map, weight, Some(bias), upsample)?);
    }
    let votes = Tensor::cat(&votes, 1)?;
    let (weight, heads_weight) = (run.param("loss_lambda")?, run.param("alpha")?);
    let loss_mask = run.case().param_or("loss_mask", false)?;
    let settings = ZipfSettings { distribution: distribution(run)?, loss_mask, weight, heads_weight };
    let (ranking, seed) = (ZipfRanking::DenseVote(&votes), Seed::root(0));
    run.produce("pdf", own::zipf(&logits[0], &labels, ranking, &settings, seed)?.pdf);
    let terms = own::zipf_ls(&logits[0], &logits[1..], &labels, ranking, &settings, seed)?;
    run.produce("zipf", value(&terms, "zipf-ls")?);
    run.produce("votes", votes);
    run.produce("logits", logits[0].clone());
    run.loss(&total(&terms)?)?;
    Ok(())
}

/// Anchors, and behind them their partners.
pub(super) fn cs_kd(run: &mut Run<'_>) -> Result<()> {
    let (logits, labels) = (run.input("logits")?, run.labels("labels")?);
    let b = logits.dims2()?.0 / 2;
    let settings = CsKdSettings { temperature: run.param("temperature")?, weight: run.param("lambda")? };
    let (anchors, partners) = (logits.narrow(0, 0, b)?, logits.narrow(0, b, b)?);
    let terms = own::cs_kd(&anchors, &partners, &labels.narrow(0, 0, b)?, &settings)?;
    produce_kd(run, &terms)
}

pub(super) fn ps_kd(run: &mut Run<'_>) -> Result<()> {
    let (logits, labels) = (run.input("logits")?, run.labels("labels")?);
    let epoch = run.param("epoch")?;
    let alpha = own::ps_kd_alpha(run.param("alpha_T")?, epoch, run.param("epochs")?)?;
    let mut memory = PsKdMemory::from_rows(&run.constant("prev_probs")?)?;
    let index: Vec<u32> = (0..logits.dims2()?.0 as u32).collect();
    let term = memory.term(&logits, &labels, &index, epoch, alpha)?;
    memory.update(&logits, &index)?;
    run.produce("alpha", number(alpha)?);
    run.produce("new_probs", memory.rows(&index)?);
    run.loss(&term.weighted()?)?;
    Ok(())
}

pub(super) fn bake(run: &mut Run<'_>) -> Result<()> {
    let (embedding, logits) = (run.input("features")?, run.input("logits")?);
    let (temperature, omega) = (run.param("temperature")?, run.param("omega")?);
    let settings = BakeSettings { temperature, omega, weight: run.param("lambda")? };
    run.produce("targets", own::bake_targets(&embedding, &logits, &settings)?);
    let terms = own::bake(&embedding, &logits, &run.labels("labels")?, &settings)?;
    produce_kd(run, &terms)
}

pub(super) fn dlb(run: &mut Run<'_>) -> Result<()> {
    let (logits, again) = (run.input("logits")?, run.input("logits_prev")?);
    let stored = run.input("stored_logits")?;
    // The loss does not look at the images.
    let batch = DlbBatch { images: stored.clone(), labels: run.labels("labels_prev")?, logits: stored };
    let settings = DlbSettings { temperature: run.param("temperature")?, alpha: run.param("alpha")? };
    let terms = own::dlb(&logits, &run.labels("labels")?, Some((&again, &batch)), &settings)?;
    produce_kd(run, &terms)
}

pub(super) fn ddgsd(run: &mut Run<'_>) -> Result<()> {
    let (logits, embedding) = (run.input("logits")?, run.input("features")?);
    let (temperature, feature_weight) = (run.param("temperature")?, run.param("feature_weight")?);
    let settings = DdgsdSettings { temperature, feature_weight };
    let terms = own::ddgsd(&logits, &embedding, &run.labels("labels")?, &settings)?;
    produce_rest(run, &terms)
}

pub(super) fn dks(run: &mut Run<'_>) -> Result<()> {
    let terms = own::dks(&run.numbered("logits_")?, &run.labels("labels")?, run.param("temperature")?)?;
    produce_rest(run, &terms)
}

pub(super) fn byot(run: &mut Run<'_>) -> Result<()> {
    let (temperature, feature_weight) = (run.param("temperature")?, run.param("feature_weight")?);
    let settings = ByotSettings { temperature, feature_weight };
    let (logits, maps) = (run.numbered("logits_")?, run.numbered("features_")?);
    let terms = own::byot(&logits, &maps, &run.labels("labels")?, &settings)?;
    produce_rest(run, &terms)
}

pub(super) fn sad(run: &mut Run<'_>) -> Result<()> {
    let settings = SadSettings { power: run.param("power")?, weight: run.param("weight")? };
    let (logits, maps) = (run.input("logits")?, run.numbered("features_")?);
    let terms = own::sad(&logits, &maps, &run.labels("labels")?, &settings)?;
    produce_rest(run, &terms)
}

pub(super) fn frskd(run: &mut Run<'_>) -> Result<()> {
    let (alpha, beta) = (run.param("alpha")?, run.param("beta")?);
    let settings = FrskdSettings { temperature: run.param("temperature")?, alpha, beta, detach_teacher: true };
    let (logits, teacher) = (run.input("logits")?, run.input("bi_logits")?);
    let (maps, refined) = (run.numbered("features_")?, run.numbered("bi_features_")?);
    let terms = own::frskd([&logits, &teacher], &maps, &refined, &run.labels("labels")?, &settings)?;
    produce_rest(run, &terms)
}

/// Discriminators are the networks' own, trained and cooperative.
pub(super) fn mixskd(run: &mut Run<'_>) -> Result<()> {
    let (logits, maps, partners) = (run.numbered("logits_")?, run.numbered("features_")?, run.indices("perm")?);
    let self_teacher = [run.input("ens_logits_clean")?, run.input("ens_logits_mix")?];
    let (lambda, labels) = (run.param("lambda")?, run.labels("labels")?);
    let settings = MixSkdSettings { temperature: run.param("temperature")?, ..MixSkdSettings::default() };
    let weights = Renamed::new(run, |name| {
        let (branch, rest) = name.trim_start_matches("disc").split_once('.').unwrap_or(("", name));
        format!("{branch}.{}", two_layers(rest))
    });
    let mut scores = Vec::new();
    for (k, map) in maps.iter().enumerate() {
        let (hidden, channels) = run.case().tensor(&format!("in.param.disc{k}.w1"))?.dims2()?;
        let discriminator = MapDiscriminator::new(channels, hidden, &weights.root().child(k))?;
        let shown = own::mixskd_discriminator_input(map, &partners, lambda, Discriminators::Cooperative)?;
        scores.push(discriminator.forward(&shown)?);
    }
    let batch = MixSkdBatch {
        logits: &logits,
        maps: &maps,
        self_teacher: [&self_teacher[0], &self_teacher[1]],
        scores: &scores,
        partners: &partners,
        lambda,
        labels: &labels,
    };
    let terms = own::mixskd(&batch, &settings)?;
    let names = ["ce", "mix-ce", "mixskd", "mixskd-feature", "mixskd-discriminator"];
    for (out, name) in ["cls", "mixcls", "div", "fea", "gan"].into_iter().zip(names) {
        run.produce(format!("loss_{out}"), value(&terms, name)?);
    }
    weights.loss(run, &total(&terms)?)
}

pub(super) fn mixskd_self_teacher(run: &mut Run<'_>) -> Result<()> {
    let (maps, partners, lambda): (_, _, f64) =
        (run.numbered("features_")?, run.indices("perm")?, run.param("lambda")?);
    let (_, channels, height, width) = maps[0].dims4()?;
    let classes = run.case().tensor("in.param.fc.bias")?.dims1()?;
    let weights = Renamed::new(run, |name| if name == "conv" { "conv.weight".into() } else { name.to_string() });
    let shape = MapShape { channels, height, width };
    let teacher = SelfTeacher::new(maps.len(), shape, classes, &weights.root())?;
    let split = |map: &Tensor| Ok::<_, Error>(own::mixskd_interpolate(map, &partners, lambda)?);
    let pairs = maps.iter().map(split).collect::<Result<Vec<_>>>()?;
    let labels = run.labels("labels")?;
    let others = labels.index_select(&Tensor::new(partners.as_slice(), &Device::Cpu)?, 0)?;
    let mut losses = Vec::new();
    for (side, name) in ["ens_logits_clean", "ens_logits_mix"].into_iter().enumerate() {
        let maps: Vec<Tensor> = pairs.iter().map(|pair| pair[side].clone()).collect();
        let logits = teacher.forward(&maps)?;
        losses.push(output::mix_cross_entropy(&logits, &labels, &others, lambda)?);
        run.produce(name, logits);
    }
    weights.loss(run, &(&losses[0] + &losses[1])?)
}

pub(super) fn sfr_emd_l2(run: &mut Run<'_>) -> Result<()> {
    let weights = match run.param::<String>("weights")?.as_str() {
        "uniform" => NodeWeights::Uniform,
        "cross-reference" => NodeWeights::CrossReference,
        other => return Err(Error::Unsupported(format!("weights `{other}` of sfr-emd-l2"))),
    };
    let (shallow, deep) = (run.input("shallow")?, run.input("deep")?);
    let loss = own::sfr_emd_l2(&shallow, &deep, weights, run.param("l2_weight")?)?;
    run.produce("plan", loss.plan);
    run.loss(&loss.loss)?;
    Ok(())
}

pub(super) fn sfr_many_to_one(run: &mut Run<'_>) -> Result<()> {
    let mode = match run.param::<String>("mode")?.as_str() {
        "each" => ManyToOne::Each,
        "attention" => ManyToOne::Attention { tau: run.param("tau")? },
        other => return Err(Error::Unsupported(format!("mode `{other}` of sfr-many-to-one"))),
    };
    let loss = own::sfr_many_to_one(&run.input("shallow")?, &run.input("deep")?, mode)?;
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn sfr_dls(run: &mut Run<'_>) -> Result<()> {
    let (logits, labels) = (run.input("logits")?, run.labels("labels")?);
    let loss = own::sfr_dls(&logits, &labels, &run.constant("table")?, run.param("epsilon")?)?;
    run.loss(&loss)?;
    Ok(())
}
