//! Soft labels by the rank of the wrong classes in what a network says about the places of an image.

use super::{MAPS, check_labels, check_range, check_unread, wrong};
use crate::Result;
use crate::branched::Exits;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use candle_core::Tensor;
use retort_losses::self_distillation::{ZipfRanking, ZipfSettings, dense_votes, zipf_ls};
use retort_models::{BranchInit, BranchRow, BranchesConfig};
use retort_nn::{Linear, Mode, Network, NetworkSpec, Outputs, Seed, Taps};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Zipf's label smoothing (Liang et al. 2022, arXiv 2207.12980); see [`zipf_ls`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZipfLsConfig {
    /// What the classes of a sample are ranked by.
    pub ranking: ZipfLsRanking,
    /// Whether the last map is enlarged twice before its places vote: four times as many votes.
    pub upsample: bool,
    /// Classifiers that vote, 1 to 3: the network's own, then one on the pooled map of each stage before, which learn
    /// with [`ZipfSettings::heads_weight`].
    pub deeplayer: usize,
    /// Distribution over the ranks and weights.
    pub loss: ZipfSettings,
}

/// What the classes of a sample are ranked by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZipfLsRanking {
    /// How many places of the last map say the class, as in the paper.
    #[default]
    DenseVote,
    /// The sample's own logits.
    Logits,
    /// The logits of the other sample of the batch whose embedding is nearest.
    Friend,
}

impl Default for ZipfLsConfig {
    fn default() -> Self {
        Self { ranking: ZipfLsRanking::default(), upsample: true, deeplayer: 1, loss: ZipfSettings::default() }
    }
}

impl System for ZipfLsConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "zipf-ls",
        title: "Zipf's label smoothing",
        paper: Some("Efficient One Pass Self-distillation with Zipf's Label Smoothing"),
        year: Some(2022),
        arxiv: Some("2207.12980"),
        trainable: &["linear classifiers on pooled stages (`deeplayer` > 1)"],
        code_bases: &["megvii-research/zipfls"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        check_range((1..=3).contains(&self.deeplayer), Self::INFO.id, "deeplayer", "in 1 ..= 3", self.deeplayer)?;
        if self.deeplayer > 1 && self.ranking != ZipfLsRanking::DenseVote {
            let message = "`deeplayer` adds classifiers that vote: it must be 1 where `ranking` is not `dense-vote`";
            return Err(wrong(Self::INFO.id, format!("{message}, found {}", self.deeplayer)));
        }
        let default = Self::default();
        if self.ranking != ZipfLsRanking::DenseVote {
            let upsample = self.upsample != default.upsample;
            check_unread(Self::INFO.id, "where `ranking` is not `dense-vote`", &[("upsample", upsample)])?;
        }
        if self.deeplayer == 1 {
            let weight = self.loss.heads_weight.to_bits() != default.loss.heads_weight.to_bits();
            check_unread(Self::INFO.id, "with `deeplayer = 1`", &[("loss.heads_weight", weight)])?;
        }
        Ok(self.loss.validate()?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        self.loss.check_classes(ctx.model.classes)?;
        let (body, parts) = match self.deeplayer {
            1 => {
                let (student, params) = ctx.network(ctx.student, "student")?;
                (Body::Plain(student), vec![Part::new("student", params)])
            }
            classifiers => {
                let spec = retort_models::info(ctx.student)?.spec(&ctx.model)?;
                let (exits, parts) = Exits::new(ctx, &rows(&spec, classifiers - 1)?)?;
                (Body::Exits(exits), Vec::from(parts))
            }
        };
        if self.ranking == ZipfLsRanking::DenseVote {
            check_votes(body.network())?;
        }
        let method = ZipfLs { body, config: *self, seed: ctx.seed.child(Self::INFO.id) };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

/// Linear classifiers on the pooled maps of so many stages before the last, from the deepest on.
fn rows(spec: &NetworkSpec, heads: usize) -> Result<BranchesConfig> {
    let last = spec.stages().len();
    if last <= heads {
        let message = format!(
            "`deeplayer` = {} needs as many stages, found {last} of `{}`: lower it or take another network",
            heads + 1,
            spec.name
        );
        return Err(wrong(ZipfLsConfig::INFO.id, message));
    }
    let row = |map| BranchRow { map, groups: vec![], classifier: Some(format!("linear{map}")) };
    let rows = (last - heads..last).rev().map(row).collect();
    Ok(BranchesConfig { rows, outputs: spec.classes, init: BranchInit::Network })
}

/// Places vote by the network's own classifier, which must fit the last map.
fn check_votes(network: &dyn Network) -> Result<()> {
    let spec = network.spec();
    let channels = spec.stages().last().map(|map| map.channels);
    let inputs = classifier(network)?.weight().dims().get(1).copied();
    if channels.is_some() && channels == inputs {
        return Ok(());
    }
    let message = format!(
        "places of the last map vote by the linear classifier: expected a map of {} channels, found {} of `{}`; \
         `ranking = \"logits\"` needs no map",
        inputs.unwrap_or(0),
        channels.map_or("none".to_string(), |channels| channels.to_string()),
        spec.name
    );
    Err(wrong(ZipfLsConfig::INFO.id, message))
}

fn classifier(network: &dyn Network) -> Result<&Linear> {
    let none = || wrong(ZipfLsConfig::INFO.id, format!("`{}` has no linear classifier", network.spec().name));
    network.classifier().ok_or_else(none)
}

/// The student, alone or with further classifiers.
enum Body {
    Plain(Arc<dyn Network>),
    Exits(Exits),
}

impl Body {
    fn network(&self) -> &dyn Network {
        match self {
            Self::Plain(network) => network.as_ref(),
            Self::Exits(exits) => exits.backbone(),
        }
    }

    /// What the network and its further classifiers say; only dense votes look at maps.
    fn forward(&self, images: &Tensor, taps: Taps) -> Result<(Outputs, Vec<Outputs>)> {
        match self {
            Self::Plain(network) => Ok((network.forward(images, Mode::Train, taps)?, Vec::new())),
            Self::Exits(exits) => {
                let outputs = exits.forward(images, MAPS)?;
                Ok((outputs.backbone, outputs.branches))
            }
        }
    }
}

struct ZipfLs {
    body: Body,
    config: ZipfLsConfig,
    seed: Seed,
}

impl ZipfLs {
    /// The class that each place says, the votes of all classifiers side by side.
    fn votes(&self, outputs: &Outputs, heads: &[Outputs]) -> Result<Tensor> {
        let vote =
            |map: &Tensor, linear: &Linear| dense_votes(map, linear.weight(), linear.bias(), self.config.upsample);
        let mut votes = vec![vote(outputs.last_map()?, classifier(self.body.network())?)?];
        if let Body::Exits(exits) = &self.body {
            for (head, linear) in heads.iter().zip(exits.branches().classifiers()) {
                // Nothing stands between the map that a head reads and its classifier.
                votes.push(vote(head.last_map()?, linear)?);
            }
        }
        Ok(Tensor::cat(&votes, 1)?)
    }
}

impl Method for ZipfLs {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let dense = self.config.ranking == ZipfLsRanking::DenseVote;
        let taps = if dense { MAPS } else { Taps::default() };
        let (outputs, heads) = self.body.forward(&step.batch.images, taps)?;
        let votes = dense.then(|| self.votes(&outputs, &heads)).transpose()?;
        let ranking = match (&votes, self.config.ranking) {
            (Some(votes), _) => ZipfRanking::DenseVote(votes),
            (None, ZipfLsRanking::Friend) => ZipfRanking::Friend(&outputs.embedding),
            (None, _) => ZipfRanking::Logits,
        };
        let heads: Vec<Tensor> = heads.into_iter().map(|head| head.logits).collect();
        let seed = self.seed.child(&step.step.to_string());
        let labels = step.batch.labels()?;
        let terms = zipf_ls(&outputs.logits, &heads, labels, ranking, &self.config.loss, seed)?;
        Ok(StepOutput { terms, logits: Some(outputs.logits) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        match &self.body {
            Body::Plain(network) => vec![Evaluated::student(network.as_ref(), None)],
            Body::Exits(exits) => exits.evaluated(),
        }
    }
}
