//! Cases about something else than one classifier: heads, and networks with auxiliary branches.

use super::build::Build;
use crate::golden::Case;
use crate::{Error, Result};
use candle_core::Tensor;
use retort_models::{BranchedNetwork, BranchesConfig, Family, Head, SelfTeacher, SimRegHead, SqueezeModule};
use retort_nn::{Mode, Outputs, Scope, Taps};
use serde::Deserialize;

/// Inputs in, outputs out under the case's names.
pub(super) type Part = Box<dyn Fn(&[Tensor], Mode) -> Result<Vec<(String, Tensor)>>>;

/// The part that a case is about, its tensors in `scope`; `None` if the case is about a network.
pub(super) fn part(case: &Case, build: &Build, scope: &Scope) -> Result<Option<Part>> {
    Ok(Some(match build.model.as_str() {
        "hsakd" => hsakd(case, build, scope)?,
        "mixskd_resnet18" => mixskd(case, build, scope)?,
        "mcl_embed_head" => {
            let HeadOptions { inputs, hidden, outputs } = build.options(case)?;
            vectors("z", Head::mcl(inputs, hidden, outputs, scope)?)
        }
        "simreg_head" => {
            let SimRegOptions { layers, inputs, outputs } = build.options(case)?;
            let head = match layers {
                1 => SimRegHead::Linear,
                2 => SimRegHead::Two,
                4 => SimRegHead::Four,
                _ => return Err(Error::Unsupported(format!("`simreg_head` with {layers} layers"))),
            };
            vectors("y", Head::simreg(head, inputs, outputs, scope)?)
        }
        "squeeze_module" => {
            let SqueezeOptions { inputs, hidden, layers, outputs } = build.options(case)?;
            let module = SqueezeModule::new(&inputs, hidden, layers, outputs, scope)?;
            Box::new(move |maps, mode| Ok(vec![("z".to_string(), module.forward(maps, mode)?)]))
        }
        _ => return Ok(None),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadOptions {
    #[serde(rename = "in")]
    inputs: usize,
    hidden: usize,
    #[serde(rename = "out")]
    outputs: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SimRegOptions {
    layers: usize,
    #[serde(rename = "in")]
    inputs: usize,
    #[serde(rename = "out")]
    outputs: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SqueezeOptions {
    #[serde(rename = "in")]
    inputs: Vec<usize>,
    hidden: usize,
    layers: usize,
    #[serde(rename = "out")]
    outputs: usize,
}

/// A head on the one input.
fn vectors(output: &'static str, head: Head) -> Part {
    Box::new(move |inputs, mode| Ok(vec![(output.to_string(), head.forward(&inputs[0], mode)?)]))
}

/// The network below HSAKD's branches.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HsakdOptions {
    backbone: Build,
}

fn hsakd(case: &Case, build: &Build, scope: &Scope) -> Result<Part> {
    let HsakdOptions { backbone } = build.options(case)?;
    let mut family = backbone.family(case)?;
    if let Family::MobileNetV2(config) = &mut family {
        // HSAKD's code has a bare linear layer here.
        config.classifier = "classifier";
    }
    let config = build.config(case)?;
    let rows = BranchesConfig::hsakd(&family, config.classes);
    let network = BranchedNetwork::new(&backbone.model, &family, &config, &rows, scope)?;
    Ok(Box::new(move |images, mode| {
        let outputs = network.forward(&images[0], mode, Taps::default())?;
        let branches = numbered("ss_logits", outputs.branches.into_iter().map(|branch| branch.logits));
        Ok(branches.chain([("logits".to_string(), outputs.backbone.logits)]).collect())
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

fn mixskd(case: &Case, build: &Build, scope: &Scope) -> Result<Part> {
    let family = retort_models::info("mixskd_backbone")?.family.clone();
    let NoOptions {} = build.options(case)?;
    let config = build.config(case)?;
    let rows = BranchesConfig::mixskd(&family, config.classes);
    let network = BranchedNetwork::new(&build.model, &family, &config, &rows, scope)?;
    let last = network.backbone.spec().maps[4];
    let teacher = SelfTeacher::new(4, last, config.classes, &scope.child("final_aux_classifier"))?;
    Ok(Box::new(move |images, mode| {
        let outputs = network.forward(&images[0], mode, Taps { maps: true, pre_activations: false })?;
        let stages: Vec<Outputs> = outputs.branches.into_iter().chain([outputs.backbone]).collect();
        let maps = stages.iter().map(|stage| Ok(stage.last_map()?.clone())).collect::<Result<Vec<_>>>()?;
        let taught = ("self_teacher_logits".to_string(), teacher.forward(&maps)?);
        let logits = numbered("stage_logits", stages.into_iter().map(|stage| stage.logits));
        Ok(logits.chain(numbered("stage_feat", maps.into_iter())).chain([taught]).collect())
    }))
}

/// `prefix1`, `prefix2`, ..
fn numbered(prefix: &'static str, tensors: impl Iterator<Item = Tensor>) -> impl Iterator<Item = (String, Tensor)> {
    tensors.enumerate().map(move |(i, tensor)| (format!("{prefix}{}", i + 1), tensor))
}
