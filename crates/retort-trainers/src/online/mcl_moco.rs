//! Mutual contrastive learning without labels: momentum encoders and queues of their keys.

use super::cohort::Others;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::self_supervised::reached;
use crate::state::{Part, Parts};
use crate::system::{Kind, MAIN, System, SystemContext, SystemInfo};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use retort_losses::online::{MclQueues, MclSettings};
use retort_models::Head;
use retort_nn::{Mode, Network, Params, Taps, Tensors, no_grad};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Networks without labels: each tells the second view of an image, as a slowly moving copy of itself or of another
/// network sees it, from queues of earlier images (Yang et al. 2022, arXiv 2104.12565; He et al. 2020, arXiv
/// 1911.05722); see [`MclQueues`].
///
/// The classifiers are not trained, so there is nothing to evaluate by classification: see [`crate::probe`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MclMocoConfig {
    /// The networks beside the student, 1 to 15.
    pub others: Others,
    /// Width of queries and keys, at least 1.
    pub dim: usize,
    /// Keys in the queue of each network, 1 to 1048576.
    pub queue: usize,
    /// Share of its own weights that a copy keeps in a step, 0 to 1.
    pub momentum: f64,
    /// Divisor of the scores, > 0.
    pub tau: f64,
    /// Softmax temperature of the imitation on top of it, > 0.
    pub temperature: f64,
    /// Weight of the contrast of each network with its own copy, >= 0.
    pub vcl: f64,
    /// Weight of its imitation, >= 0.
    pub soft_vcl: f64,
    /// Weight of the contrast with the others' copies, >= 0.
    pub icl: f64,
    /// Weight of its imitation, >= 0.
    pub soft_icl: f64,
}

impl Default for MclMocoConfig {
    fn default() -> Self {
        let MclSettings { tau, temperature, vcl, soft_vcl, icl, soft_icl, .. } = MclSettings::moco();
        Self {
            others: Others::default(),
            dim: 128,
            queue: 65_536,
            momentum: 0.999,
            tau,
            temperature,
            vcl,
            soft_vcl,
            icl,
            soft_icl,
        }
    }
}

/// Longer queues than any method has; a larger number is a slip.
const MOST_KEYS: usize = 1 << 20;

impl MclMocoConfig {
    fn loss(&self) -> MclSettings {
        MclSettings {
            tau: self.tau,
            temperature: self.temperature,
            vcl: self.vcl,
            soft_vcl: self.soft_vcl,
            icl: self.icl,
            soft_icl: self.soft_icl,
            ..MclSettings::moco()
        }
    }
}

fn wrong(message: String) -> Error {
    Error::Config { what: MclMocoConfig::INFO.id.into(), message }
}

impl System for MclMocoConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "mcl-moco",
        title: "Mutual contrastive learning with momentum encoders, without labels",
        kind: Kind::SelfSupervised,
        paper: Some("Mutual Contrastive Learning for Visual Representation Learning"),
        year: Some(2022),
        arxiv: Some("2104.12565"),
        views: 2,
        losses: false,
        trainable: &["further networks", "linear head of each network"],
        state: &["momentum encoder of each network", "queue of keys of each network"],
        code_bases: &[super::MCL_CODE],
    };

    fn check(&self) -> Result<()> {
        self.others.check(Self::INFO.id, 1)?;
        if !(1..=MOST_KEYS).contains(&self.queue) {
            return Err(wrong(format!("`queue` must be 1 to {MOST_KEYS}, found {}", self.queue)));
        }
        if !(0.0..=1.0).contains(&self.momentum) {
            return Err(wrong(format!("`momentum` must be from 0 to 1, found {}", self.momentum)));
        }
        Ok(self.loss().validate(Self::INFO.id)?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let models = self.others.with(ctx.student);
        let pairs = models.into_iter().enumerate().map(|(k, model)| Pair::new(ctx, k, model, self.dim));
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        let seed = ctx.seed.child(Self::INFO.id).child("queues");
        let queues = MclQueues::init(pairs.len(), self.queue, self.dim, seed, DType::F32, &ctx.device)?;
        let parts = Parts::new(pairs.iter().flat_map(Pair::parts));
        let method = MclMoco { pairs, queues, due: Vec::new(), config: self.clone() };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(parts, method)))])
    }
}

/// A network with a linear head to rows of length 1.
struct Encoder {
    network: Arc<dyn Network>,
    head: Head,
    params: Params,
    head_params: Params,
}

impl Encoder {
    fn new(model: &str, ctx: &SystemContext<'_>, dim: usize, params: Params, head_params: Params) -> Result<Self> {
        let network: Arc<dyn Network> = Arc::from(retort_models::build(model, &ctx.model, &params.root())?);
        let head = Head::embed(network.spec().embedding, dim, &head_params.root())?;
        Ok(Self { network, head, params, head_params })
    }

    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let embedding = self.network.forward(images, mode, Taps::default())?.embedding;
        Ok(self.head.forward(&embedding, mode)?)
    }
}

/// A trained encoder and the copy that follows it.
struct Pair {
    name: String,
    query: Encoder,
    key: Encoder,
    /// Parameters of the trained network that its embedding does not depend on: the classifier's.
    unreached: Vec<String>,
}

impl Pair {
    fn new(ctx: &SystemContext<'_>, k: usize, model: &str, dim: usize) -> Result<Self> {
        let name = if k == 0 { "student".to_string() } else { format!("peer{k}") };
        let query = Encoder::new(model, ctx, dim, ctx.params(&name), ctx.params(&format!("{name}-head")))?;
        let copy = |params: &Params| Ok::<_, Error>(Params::from_tensors(params.snapshot()?, DType::F32, &ctx.device));
        let key = Encoder::new(model, ctx, dim, copy(&query.params)?, copy(&query.head_params)?)?;
        let reached = reached(query.network.as_ref(), &query.params)?;
        let all = query.params.trainable().into_iter().map(|(name, _)| name);
        let unreached = all.filter(|name| !reached.contains(name)).collect();
        Ok(Self { name, query, key, unreached })
    }

    fn parts(&self) -> [Part; 4] {
        let part = |suffix: &str, params: &Params| Part::new(format!("{}{suffix}", self.name), params.clone());
        [
            part("", &self.query.params).fixed(self.unreached.clone()),
            part("-head", &self.query.head_params),
            part("-key", &self.key.params).not_optimised(),
            part("-key-head", &self.key.head_params).not_optimised(),
        ]
    }

    /// Moves the copy towards the trained encoder.
    fn follow(&self, momentum: f64) -> Result<()> {
        follow(&self.query.params, &self.key.params, momentum)?;
        follow(&self.query.head_params, &self.key.head_params, momentum)
    }
}

/// `key <- momentum key + (1 - momentum) query`; batch norm statistics have no part in it, since a copy normalises by
/// those of its batch.
fn follow(query: &Params, key: &Params, momentum: f64) -> Result<()> {
    for ((_, query), (_, key)) in query.trainable().iter().zip(key.trainable()) {
        let (from, to) = (key.as_detached_tensor(), query.as_detached_tensor());
        key.set(&((from * momentum)? + (to * (1.0 - momentum))?)?)?;
    }
    Ok(())
}

struct MclMoco {
    pairs: Vec<Pair>,
    queues: MclQueues,
    /// The keys of this step.
    due: Vec<Tensor>,
    config: MclMocoConfig,
}

impl Method for MclMoco {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let Some(second) = step.batch.more_views.first() else {
            return Err(wrong("expected two views of every image, found one".into()));
        };
        let first = &step.batch.images;
        let queries = self.pairs.iter().map(|pair| pair.query.forward(first, Mode::Train));
        let queries = queries.collect::<Result<Vec<_>>>()?;
        let keys = self.pairs.iter().map(|pair| pair.key.forward(second, Mode::BatchStatistics));
        let keys: Vec<Tensor> = no_grad(|| keys.collect::<Result<Vec<_>>>())?;
        self.due = keys.iter().map(Tensor::detach).collect();
        Ok(StepOutput { terms: self.queues.terms(&queries, &self.due, &self.config.loss())?, logits: None })
    }

    fn after_step(&mut self) -> Result<()> {
        self.pairs.iter().try_for_each(|pair| pair.follow(self.config.momentum))?;
        match std::mem::take(&mut self.due) {
            keys if keys.is_empty() => Ok(()),
            keys => Ok(self.queues.update(&keys)?),
        }
    }

    /// None: the classifiers are not trained.
    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        Vec::new()
    }

    fn memory(&self) -> Result<Tensors> {
        Ok(self.queues.state()?)
    }

    fn load_memory(&mut self, memory: &Tensors) -> Result<()> {
        Ok(self.queues.load_state(memory)?)
    }
}
