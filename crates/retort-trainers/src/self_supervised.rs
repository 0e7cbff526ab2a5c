//! Self-supervised teachers: a backbone that learns from two views of every image and from no label.

use crate::engine::{Evaluated, Objective, Phase, Step, StepOutput};
use crate::state::{named, part, under};
use crate::system::{Kind, System, SystemContext, SystemInfo};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_losses::Term;
use retort_losses::self_supervised::{VicregWeights, simsiam, vicreg};
use retort_metrics::{effective_rank, mean_std, unit_std};
use retort_models::{Head, HeadLayer, ModelConfig};
use retort_nn::{Mode, Network, ParamGroup, Params, Scope, Seed, Taps, Tensors};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Twice what VICReg has behind a ResNet-50: a layer between two such has a gigabyte.
const MOST_WIDTH: usize = 1 << 14;

/// More layers than anybody's projector has.
const MOST_LAYERS: usize = 16;

/// How a backbone learns without labels.
///
/// In a manifest: `{ method = { kind = "simsiam", bottleneck = 64 }, projector = [256, 256, 256] }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelfSupervisedConfig {
    /// What is asked of the two views.
    pub method: SelfSupervisedMethod,
    /// Widths of the projector's linear layers behind the embedding: 1 to 16 of them, each in `1 ..= 16384`.
    ///
    /// By default three of 256, for networks of the CIFAR kind; VICReg's ResNet-50 has three of 8192, SimSiam's three of
    /// 2048.
    pub projector: Vec<usize>,
}

/// What is asked of the two views.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum SelfSupervisedMethod {
    /// See [`vicreg`].
    Vicreg(VicregWeights),
    /// See [`simsiam`].
    Simsiam(SimsiamConfig),
}

/// SimSiam's predictor (Chen and He 2021, arXiv 2011.10566).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimsiamConfig {
    /// Hidden width, in `1 ..= 16384`; by default 64, a quarter of the projector's, as 512 is of 2048 in the paper.
    pub bottleneck: usize,
}

impl Default for SelfSupervisedConfig {
    fn default() -> Self {
        Self { method: SelfSupervisedMethod::Vicreg(VicregWeights::default()), projector: vec![256; 3] }
    }
}

impl Default for SimsiamConfig {
    fn default() -> Self {
        Self { bottleneck: 64 }
    }
}

impl SelfSupervisedConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// Names the field, the value and the range.
    pub fn validate(&self) -> Result<()> {
        if self.projector.is_empty() {
            return Err(wrong("projector", "expected at least one width, found none"));
        }
        let bottleneck = match self.method {
            SelfSupervisedMethod::Vicreg(weights) => {
                weights.validate()?;
                None
            }
            SelfSupervisedMethod::Simsiam(config) => Some(("bottleneck", config.bottleneck)),
        };
        if self.projector.len() > MOST_LAYERS {
            return Err(wrong(
                "projector",
                &format!("expected at most {MOST_LAYERS} widths, found {}", self.projector.len()),
            ));
        }
        let widths = self.projector.iter().map(|&width| ("projector", width));
        match widths.chain(bottleneck).find(|(_, width)| !(1..=MOST_WIDTH).contains(width)) {
            Some((field, width)) => Err(wrong(field, &format!("widths must be in 1 ..= {MOST_WIDTH}, found {width}"))),
            None => Ok(()),
        }
    }

    /// Linear layers without bias, batch norm and ReLU behind all but the last; SimSiam's last has a batch norm, too.
    fn projector(&self) -> Vec<HeadLayer> {
        let unit = |&width: &usize| [HeadLayer::LinearWithoutBias(width), HeadLayer::BatchNorm, HeadLayer::Relu];
        let mut layers: Vec<HeadLayer> = self.projector.iter().flat_map(unit).collect();
        let behind_the_last = match self.method {
            SelfSupervisedMethod::Vicreg(_) => 2,
            SelfSupervisedMethod::Simsiam(_) => 1,
        };
        layers.truncate(layers.len() - behind_the_last);
        layers
    }
}

fn wrong(field: &str, message: &str) -> Error {
    Error::Config { what: format!("self-supervised: `{field}`"), message: message.to_string() }
}

impl System for SelfSupervisedConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "self-supervised",
        title: "VICReg or SimSiam, a network without labels",
        kind: Kind::SelfSupervised,
        paper: Some("VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning"),
        year: Some(2022),
        arxiv: Some("2105.04906"),
        views: 2,
        losses: false,
        trainable: &["projector", "predictor (SimSiam)"],
        state: &[],
        code_bases: &[],
    };

    fn check(&self) -> Result<()> {
        self.validate()
    }

    /// The projector has batch norms.
    fn least_rows(&self) -> usize {
        2
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let objective = SelfSupervised::new(ctx.student, &ctx.model, self, ctx.seed, &ctx.device)?;
        Ok(vec![ctx.recipe.phase("views", Box::new(objective))])
    }
}

/// A backbone with projector (and predictor) on the first two views of a batch.
///
/// `L = vicreg(z_1, z_2)` or `simsiam(p_1, p_2, z_1, z_2)` with `z_v = projector(embedding(view v))` and
/// `p_v = predictor(z_v)`; the views pass the network one after the other, so each has its own batch statistics and each
/// moves the running ones. SimSiam's projector ends in a batch norm with weight and bias, where the released code has one
/// without.
///
/// The log holds the loss under the method's name, and under `NAME.` its bare terms and what a collapse shows in, of the
/// first view: `embedding.std`, `embedding.rank`, `projection.std` and `projection.rank` are mean standard deviation and
/// effective rank in the batch ([`mean_std`], [`effective_rank`]). SimSiam's projections are normalised by the batch, so
/// its log has `projection.unit-std`, too ([`unit_std`]).
///
/// The backbone's classifier is not trained, so there is nothing to evaluate by classification: see [`crate::probe`].
/// [`crate::offline::student_weights`] gives the backbone alone.
pub struct SelfSupervised {
    backbone: Arc<dyn Network>,
    projector: Head,
    method: Method,
    backbone_params: Params,
    method_params: Params,
    /// The backbone's parameters that its embedding depends on.
    reached: Vec<String>,
}

/// A method with its own parts.
enum Method {
    Vicreg(VicregWeights),
    /// With the predictor.
    Simsiam(Head),
}

impl SelfSupervised {
    /// Builds the backbone, a name of the model registry, with its heads; it starts as the student of
    /// [`crate::offline::Offline`] does with this seed.
    ///
    /// # Errors
    ///
    /// A setting out of range, an unknown model, sizes that no layer has.
    pub fn new(
        backbone: &str,
        model: &ModelConfig,
        config: &SelfSupervisedConfig,
        seed: Seed,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        let params = |name: &str| Params::new(seed.child(name), DType::F32, device);
        let (backbone_params, method_params) = (params("student"), params("method"));
        let backbone = retort_models::build(backbone, model, &backbone_params.root())?;
        let scope = |name: &str| method_params.root().child(name);
        let width = backbone.spec().embedding;
        let projector = Head::new("projector", width, &config.projector(), &scope("projector"))?;
        let method = match config.method {
            SelfSupervisedMethod::Vicreg(weights) => Method::Vicreg(weights),
            SelfSupervisedMethod::Simsiam(SimsiamConfig { bottleneck }) => {
                Method::Simsiam(predictor(projector.outputs(), bottleneck, &scope("predictor"))?)
            }
        };
        let reached = reached(backbone.as_ref(), &backbone_params)?;
        Ok(Self { backbone: Arc::from(backbone), projector, method, backbone_params, method_params, reached })
    }

    /// The backbone; what it shows changes with every step.
    #[must_use]
    pub fn backbone(&self) -> Arc<dyn Network> {
        Arc::clone(&self.backbone)
    }

    /// The loss of the two views' projections, with its bare terms.
    fn term(&self, z: [&Tensor; 2]) -> Result<Term> {
        match &self.method {
            Method::Vicreg(weights) => {
                let found = vicreg(z[0], z[1], weights)?;
                let sum = |[a, b]: &[Tensor; 2]| a + b;
                let parts = [
                    ("similarity", found.similarity),
                    ("variance", sum(&found.variance)?),
                    ("covariance", sum(&found.covariance)?),
                ];
                let parts = parts.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
                Ok(Term { name: "vicreg", weight: 1.0, value: found.total, parts })
            }
            Method::Simsiam(predictor) => {
                let predict = |z: &Tensor| predictor.forward(z, Mode::Train);
                let value = simsiam([&predict(z[0])?, &predict(z[1])?], z)?;
                let parts = vec![measured("projection.unit-std", unit_std(z[0]))?];
                Ok(Term { name: "simsiam", weight: 1.0, value, parts })
            }
        }
    }
}

/// Linear, batch norm and ReLU to the hidden width, linear back.
fn predictor(width: usize, hidden: usize, scope: &Scope) -> Result<Head> {
    use HeadLayer::{BatchNorm, Linear, LinearWithoutBias, Relu};
    let layers = [LinearWithoutBias(hidden), BatchNorm, Relu, Linear(width)];
    Ok(Head::new("predictor", width, &layers, scope)?)
}

/// The backbone's parameters that the embedding depends on, found by a pass over two blank images: the classifier's get
/// no gradient, and how a network keeps it differs.
pub(crate) fn reached(backbone: &dyn Network, params: &Params) -> Result<Vec<String>> {
    let spec = backbone.spec();
    let [height, width] = spec.image;
    let images = Tensor::zeros((2, spec.in_channels, height, width), DType::F32, params.root().device())?;
    let embedding = backbone.forward(&images, Mode::Eval, Taps::default())?.embedding;
    let grads = embedding.sum_all()?.backward()?;
    let reached = params.trainable().into_iter().filter(|(_, var)| grads.get(var).is_some());
    Ok(reached.map(|(name, _)| name).collect())
}

/// A number for the log. What cannot be measured is logged as NaN: the loop names the term that is not finite.
fn measured(name: impl ToString, value: retort_metrics::Result<f64>) -> Result<(String, Tensor)> {
    Ok((name.to_string(), Tensor::new(value.unwrap_or(f64::NAN), &Device::Cpu)?))
}

impl Objective for SelfSupervised {
    fn groups(&self) -> Vec<ParamGroup> {
        let reached = |name: &str| self.reached.iter().any(|r| name.strip_prefix("student.") == Some(r));
        let student = named("student", &self.backbone_params).into_iter().filter(|(name, _)| reached(name));
        vec![ParamGroup::new(student.chain(named("method", &self.method_params)).collect())]
    }

    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let first = &step.batch.images;
        let Some(second) = step.batch.more_views.first() else {
            return Err(wrong("views", "expected two views of every image, found one"));
        };
        if step.batch.len() < 2 {
            // The last batch of an epoch, where the images leave a rest of one.
            let message = "must leave no rest of a single image, whose variance is undefined; found one";
            return Err(wrong("batch_size", message));
        }
        let embedding = |images: &Tensor| self.backbone.forward(images, Mode::Train, Taps::default());
        let (first, second) = (embedding(first)?.embedding, embedding(second)?.embedding);
        let project = |embedding: &Tensor| self.projector.forward(embedding, Mode::Train);
        let projections = [project(&first)?, project(&second)?];
        let mut term = self.term(projections.each_ref())?;
        for (name, rows) in [("embedding", &first), ("projection", &projections[0])] {
            term.parts.push(measured(format!("{name}.std"), mean_std(rows))?);
            term.parts.push(measured(format!("{name}.rank"), effective_rank(rows))?);
        }
        Ok(StepOutput { terms: vec![term], logits: None })
    }

    /// None: the classifier is not trained.
    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        Vec::new()
    }

    /// The backbone alone: the heads are dropped.
    fn weights(&self) -> Result<Tensors> {
        Ok(self.backbone_params.snapshot()?)
    }

    fn state(&self) -> Result<Tensors> {
        let mut state = under("student", self.backbone_params.snapshot()?);
        state.extend(under("method", self.method_params.snapshot()?));
        Ok(state)
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        self.backbone_params.load(&part(state, "student."))?;
        Ok(self.method_params.load(&part(state, "method."))?)
    }
}
