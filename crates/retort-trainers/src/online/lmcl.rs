//! Layer-wise mutual contrastive learning: every stage of a network with every stage of another one.

use super::cohort::{Cohort, Others};
use super::mcl::class_balanced;
use crate::branched::{HeadClassifier, Scores};
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts, named};
use crate::system::{Kind, MAIN, System, SystemContext, SystemInfo};
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use retort_losses::online::{MclSettings, lmcl, lmcl_logits, lmcl_towards, total};
use retort_losses::output::cross_entropy;
use retort_models::{Aggregator, BranchedNetwork, Branches, BranchesConfig, Head, PairWeights};
use retort_nn::{Mode, Network, Optimizer, OptimizerConfig, ParamGroup, Params, Taps, Tensors, no_grad};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Networks with a classifier behind every stage, whose stages contrast the classes of a batch with each other, with
/// learned weights of the pairs of stages (Yang et al. 2023, arXiv 2207.11518); see [`lmcl`], [`lmcl_logits`] and
/// [`PairWeights`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LmclConfig {
    /// The networks beside the student, 1 to 15; they may have other numbers of stages.
    pub others: Others,
    /// Images of each class in a batch, at least 2: a divisor of the batch size that leaves at least 2 classes, and no
    /// more than there are. Where absent, the smallest such number; 2 where there are many classes, as published.
    pub per_class: Option<usize>,
    /// Hidden width of the heads, at least 1.
    pub hidden: usize,
    /// Width of the contrasted embeddings, at least 1.
    pub dim: usize,
    /// How the weights of the pairs of stages are found.
    pub meta: LmclMeta,
    /// Steps from one update of these weights to the next, at least 1.
    pub meta_every: usize,
    /// Width of the projections that the weights are made of, at least 1.
    pub projection: usize,
    /// Temperatures and weights; the temperature is also that of the class scores.
    pub loss: MclSettings,
}

/// How the weights of the pairs of stages are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LmclMeta {
    /// By the cross-entropy after a step on the weighted losses, differentiated by finite differences.
    #[default]
    FiniteDifferences,
    /// Not at all: all are 0.5.
    Off,
}

impl Default for LmclConfig {
    fn default() -> Self {
        Self {
            others: Others::default(),
            per_class: None,
            hidden: 128,
            dim: 128,
            meta: LmclMeta::default(),
            meta_every: 50,
            projection: 128,
            loss: MclSettings::default(),
        }
    }
}

fn wrong(message: String) -> Error {
    Error::Config { what: LmclConfig::INFO.id.into(), message }
}

impl System for LmclConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "lmcl",
        title: "Layer-wise mutual contrastive learning",
        kind: Kind::Online,
        paper: Some("Online Knowledge Distillation via Mutual Contrastive Learning for Visual Recognition"),
        year: Some(2023),
        arxiv: Some("2207.11518"),
        views: 1,
        losses: false,
        trainable: &[
            "further networks",
            "classifiers behind every stage but the last",
            "head of each stage",
            "aggregator of each network",
            "weights of pairs of stages, by an optimiser of their own",
        ],
        state: &["momentum of the weights' optimiser"],
        code_bases: &["winycg/L-MCL"],
    };

    fn check(&self) -> Result<()> {
        self.others.check(Self::INFO.id, 1)?;
        if self.meta_every == 0 {
            return Err(wrong("`meta_every` must be at least 1, found 0".into()));
        }
        let default = Self::default();
        let unused = (self.meta_every, self.projection) != (default.meta_every, default.projection);
        if self.meta == LmclMeta::Off && unused {
            let message = "`meta_every` and `projection` belong to the weights that `meta = \"off\"` leaves at 0.5";
            return Err(wrong(message.into()));
        }
        Ok(self.loss.validate(Self::INFO.id)?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let recipe = class_balanced(ctx, Self::INFO.id, self.per_class)?;
        let (cohort, mut parts) = Cohort::complete(ctx, &self.others)?;
        let [branches, heads, aggregators] = ["branches", "heads", "aggregators"].map(|name| ctx.params(name));
        let staged = |(k, network): (usize, &Arc<dyn Network>)| {
            Staged::new(network, ctx, self, [&branches, &heads, &aggregators].map(|params| params.root().child(k)))
        };
        let networks = cohort.networks().iter().enumerate().map(staged).collect::<Result<Vec<_>>>()?;
        check_widths(&networks)?;
        let projections = ctx.params("pair-weights");
        parts.extend([
            Part::new("branches", branches),
            Part::new("heads", heads),
            Part::new("aggregators", aggregators),
            Part::new("pair-weights", projections.clone()).not_optimised(),
        ]);
        let parts = Parts::new(parts);
        let moved = parts.groups().into_iter().flat_map(|group| group.params).map(|(_, var)| var).collect();
        let meta = match self.meta {
            LmclMeta::FiniteDifferences => Some(Meta::new(&networks, self, &projections, moved)?),
            LmclMeta::Off => None,
        };
        let heads = HeadClassifier::all(&networks[0].network, Scores::Classes);
        let method = Lmcl { cohort, networks, heads, meta, settings: self.loss };
        Ok(vec![recipe.phase(MAIN, Box::new(Learner::new(parts, method)))])
    }
}

/// A network with its classifiers, the last one being its own, and what makes embeddings and one ensemble of them.
struct Staged {
    network: Arc<BranchedNetwork>,
    heads: Vec<Head>,
    aggregator: Aggregator,
    /// Embedding of each stage.
    widths: Vec<usize>,
}

/// What the stages of a network say.
struct Said {
    embeddings: Vec<Tensor>,
    logits: Vec<Tensor>,
}

impl Staged {
    fn new(
        network: &Arc<dyn Network>,
        ctx: &SystemContext<'_>,
        config: &LmclConfig,
        [branches, heads, aggregator]: [retort_nn::Scope; 3],
    ) -> Result<Self> {
        let spec = network.spec();
        let family = &retort_models::info(&spec.name)?.family;
        let rows = BranchesConfig::lmcl(family, ctx.model.classes);
        if rows.rows.is_empty() {
            let message = format!("expected networks of at least two stages, found `{}`, which shows fewer", spec.name);
            return Err(wrong(message));
        }
        let branches = Branches::new(family, spec, &rows, &branches)?;
        let mut widths: Vec<usize> = branches.specs().iter().map(|branch| branch.embedding).collect();
        widths.push(spec.embedding);
        let head = |(s, width): (usize, &usize)| Ok(Head::mcl(*width, config.hidden, config.dim, &heads.child(s))?);
        let heads = widths.iter().enumerate().map(head).collect::<Result<_>>()?;
        let aggregator = Aggregator::new(spec.embedding, widths.len(), &aggregator)?;
        let network = Arc::new(BranchedNetwork { backbone: Arc::clone(network), branches });
        Ok(Self { network, heads, aggregator, widths })
    }

    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Said> {
        let said = self.network.forward(images, mode, Taps::default())?;
        let all = said.branches.into_iter().chain([said.backbone]);
        let (embeddings, logits) = all.map(|stage| (stage.embedding, stage.logits)).unzip();
        Ok(Said { embeddings, logits })
    }

    fn project(&self, said: &Said) -> Result<Vec<Tensor>> {
        let stages = self.heads.iter().zip(&said.embeddings);
        stages.map(|(head, embedding)| Ok(head.forward(embedding, Mode::Train)?)).collect()
    }
}

/// The aggregator of a network reads embeddings of one width.
fn check_widths(networks: &[Staged]) -> Result<()> {
    let uneven = |network: &&Staged| network.widths.iter().any(|&width| width != network.widths[0]);
    match networks.iter().find(uneven) {
        None => Ok(()),
        Some(network) => {
            let (name, widths) = (&network.network.backbone.spec().name, &network.widths);
            Err(wrong(format!("expected stages with embeddings of one width, found {widths:?} in `{name}`")))
        }
    }
}

struct Lmcl {
    cohort: Cohort,
    networks: Vec<Staged>,
    /// The student's classifiers behind its stages, each as a network.
    heads: Vec<HeadClassifier>,
    meta: Option<Meta>,
    settings: MclSettings,
}

impl Method for Lmcl {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let labels = step.batch.labels()?;
        let said = forward(&self.networks, &step.batch.images, Mode::Train)?;
        let weights = match &mut self.meta {
            Some(meta) => {
                meta.remember(step)?;
                Some(no_grad(|| meta.weights.forward(&constants(&said)))?.detach())
            }
            None => None,
        };
        let aggregated = self.networks.iter().zip(&said);
        let aggregated = aggregated.map(|(network, said)| network.aggregator.forward(&said.embeddings, &said.logits));
        let aggregated = aggregated.collect::<retort_nn::Result<Vec<_>>>()?;
        let logits: Vec<Vec<Tensor>> = said.iter().map(|said| said.logits.clone()).collect();
        let mut terms = lmcl_logits(&logits, &aggregated, labels, self.settings.temperature)?;
        terms.extend(lmcl(&project(&self.networks, &said)?, labels, weights.as_ref(), &self.settings)?);
        Ok(StepOutput { terms, logits: logits[0].last().cloned() })
    }

    fn after_step(&mut self) -> Result<()> {
        match &mut self.meta {
            Some(meta) => meta.update(&self.networks, &self.settings),
            None => Ok(()),
        }
    }

    /// The networks, their `ensemble`, and the student's classifiers behind its first stages as `head1` ...
    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        let mut all = self.cohort.evaluated();
        for (s, head) in self.heads.iter().enumerate() {
            all.push(Evaluated { name: format!("head{}", s + 1), network: head, teacher: None });
        }
        all
    }

    fn memory(&self) -> Result<Tensors> {
        match &self.meta {
            Some(meta) => Ok(meta.optimizer.state()?),
            None => Ok(Tensors::new()),
        }
    }

    fn load_memory(&mut self, memory: &Tensors) -> Result<()> {
        match &mut self.meta {
            Some(meta) => Ok(meta.optimizer.load_state(memory)?),
            None => Ok(()),
        }
    }
}

fn forward(networks: &[Staged], images: &Tensor, mode: Mode) -> Result<Vec<Said>> {
    networks.iter().map(|network| network.forward(images, mode)).collect()
}

fn project(networks: &[Staged], said: &[Said]) -> Result<Vec<Vec<Tensor>>> {
    networks.iter().zip(said).map(|(network, said)| network.project(said)).collect()
}

/// Embeddings without history, by network and stage.
fn constants(said: &[Said]) -> Vec<Vec<Tensor>> {
    let embeddings: Vec<Vec<Tensor>> = said.iter().map(|said| said.embeddings.clone()).collect();
    detached(&embeddings)
}

fn detached(stages: &[Vec<Tensor>]) -> Vec<Vec<Tensor>> {
    stages.iter().map(|stages| stages.iter().map(Tensor::detach).collect()).collect()
}

/// The weights of pairs of stages, and how they learn.
///
/// With all parameters theta of the main step, the projections A and the weighted losses
/// `L(theta, A)`, whose embeddings in the weights are constants as in the main step, they descend on the cross-entropy
/// of all classifiers at `theta' = theta - lr grad_theta L(theta, A)`. With `u = grad_theta CE(theta')` its gradient is
/// `-lr d/dA (u . grad_theta L(theta, A))`, the derivative of `grad_A L` in the direction of u, by a central difference.
/// The targets of the imitation are constants in `grad_theta L`, so in that difference they stay those at theta.
struct Meta {
    weights: PairWeights,
    /// The projections.
    params: Vec<(String, Var)>,
    optimizer: Optimizer,
    every: usize,
    /// What the main step moves.
    theta: Vec<Var>,
    due: Option<Due>,
}

/// The batch of a step after which the weights are updated.
struct Due {
    images: Tensor,
    labels: Tensor,
    lr: f64,
}

/// Length of the step of the central difference.
const REACH: f64 = 0.01;

impl Meta {
    fn new(networks: &[Staged], config: &LmclConfig, params: &Params, theta: Vec<Var>) -> Result<Self> {
        let widths: Vec<Vec<usize>> = networks.iter().map(|network| network.widths.clone()).collect();
        let weights = PairWeights::new(&widths, config.projection, &params.root())?;
        let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, dampening: 0.0, weight_decay: 5e-4 };
        let params = named("pair-weights", params);
        let optimizer = Optimizer::new(sgd, vec![ParamGroup::new(params.clone())])?;
        Ok(Self { weights, params, optimizer, every: config.meta_every, theta, due: None })
    }

    fn remember(&mut self, step: &Step<'_>) -> Result<()> {
        let (images, labels) = (step.batch.images.clone(), step.batch.labels()?.clone());
        let is_due = (step.step + 1).is_multiple_of(self.every);
        self.due = is_due.then_some(Due { images, labels, lr: step.lr });
        Ok(())
    }

    /// One step of the projections, where it is due; networks and running statistics are the same afterwards.
    fn update(&mut self, networks: &[Staged], settings: &MclSettings) -> Result<()> {
        let Some(due) = self.due.take() else { return Ok(()) };
        let copy = |var: &Var| Ok(var.as_tensor().copy()?.detach());
        let start = self.theta.iter().map(copy).collect::<Result<Vec<_>>>()?;
        let gradient = self.gradient(networks, settings, &due, &start);
        // Also where the batch was refused.
        self.theta.iter().zip(&start).try_for_each(|(var, start)| var.set(start))?;
        match gradient? {
            Some(gradient) => Ok(self.optimizer.step(&gradient, due.lr)?),
            None => Ok(()),
        }
    }

    /// The gradient of the projections; none where the cross-entropy has none. Leaves other parameters than it found.
    fn gradient(
        &self,
        networks: &[Staged],
        settings: &MclSettings,
        due: &Due,
        start: &[Tensor],
    ) -> Result<Option<GradStore>> {
        let said = forward(networks, &due.images, Mode::BatchStatistics)?;
        let embeddings = constants(&said);
        let weights = no_grad(|| self.weights.forward(&embeddings))?.detach();
        let v = project(networks, &said)?;
        let targets = detached(&v);
        let grads = total(&lmcl(&v, &due.labels, Some(&weights), settings)?)?.backward()?;
        self.shift(start, -due.lr, |var| grads.get(var))?;
        let said = forward(networks, &due.images, Mode::BatchStatistics)?;
        let direction = heads_cross_entropy(&said, &due.labels)?.backward()?;
        let length = self.length(&direction)?;
        if length == 0.0 {
            return Ok(None);
        }
        if !length.is_finite() {
            return Err(wrong(format!("the cross-entropy after the virtual step has a gradient of length {length}")));
        }
        let reach = REACH / length;
        let side = |reach: f64| -> Result<GradStore> {
            self.shift(start, reach, |var| direction.get(var))?;
            let v = no_grad(|| project(networks, &forward(networks, &due.images, Mode::BatchStatistics)?))?;
            let weights = self.weights.forward(&embeddings)?;
            let terms = lmcl_towards(&detached(&v), &targets, &due.labels, Some(&weights), settings)?;
            Ok(total(&terms)?.backward()?)
        };
        let (mut gradient, behind) = (side(reach)?, side(-reach)?);
        for (_, var) in &self.params {
            if let (Some(ahead), Some(back)) = (gradient.get(var), behind.get(var)) {
                let slope = ((ahead - back)? * (-due.lr / (2.0 * reach)))?;
                gradient.insert(var, slope);
            }
        }
        Ok(Some(gradient))
    }

    /// Sets the parameters to `start + factor * by`; those that `by` says nothing of, to `start`.
    fn shift<'a>(&self, start: &[Tensor], factor: f64, by: impl Fn(&Var) -> Option<&'a Tensor>) -> Result<()> {
        for (var, start) in self.theta.iter().zip(start) {
            match by(var) {
                Some(by) => var.set(&(start + (by.detach() * factor)?)?)?,
                None => var.set(start)?,
            }
        }
        Ok(())
    }

    /// Euclidean length of a gradient of all parameters.
    fn length(&self, gradient: &GradStore) -> Result<f64> {
        let mut sum = 0.0;
        for grad in self.theta.iter().filter_map(|var| gradient.get(var)) {
            sum += grad.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        }
        Ok(sum.sqrt())
    }
}

/// The sum of the cross-entropies of all classifiers, aggregated logits apart.
fn heads_cross_entropy(said: &[Said], labels: &Tensor) -> Result<Tensor> {
    let each = said.iter().flat_map(|said| &said.logits).map(|logits| Ok(cross_entropy(logits, labels)?));
    Ok(Tensor::stack(&each.collect::<Result<Vec<_>>>()?, 0)?.sum_all()?)
}
