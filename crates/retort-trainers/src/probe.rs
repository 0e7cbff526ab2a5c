//! Judging a frozen network by its representation: nearest neighbours and linear classifiers on stored features.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_datasets::{Dataset, Loader, LoaderConfig, Sampling, TransformConfig, ViewConfig};
use retort_losses::output::cross_entropy;
use retort_metrics::{Classification, knn_accuracy};
use retort_nn::{
    Decay, Linear, Mode, Network, Optimizer, OptimizerConfig, ParamGroup, Params, ScheduleConfig, Seed, Taps, no_grad,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Images in a batch of the pass that computes the features, and rows in one of the final evaluation.
const ROWS: usize = 256;

/// How a network is judged.
///
/// In a manifest: `{ knn = [1, 20], linear = { epochs = 40, lr = 0.01 }, stages = true }`. The defaults are SimReg's
/// (Navaneet et al. 2021, BMVC; code UCDvision/simreg).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeConfig {
    /// Numbers of neighbours of the votes by the embedding; empty for none.
    pub knn: Vec<usize>,
    /// The linear classifier's training.
    pub linear: LinearProbeConfig,
    /// Whether the maps of all stages get a classifier, too.
    pub stages: bool,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { knn: vec![1, 20], linear: LinearProbeConfig::default(), stages: false }
    }
}

/// Training of a linear classifier on stored features, by stochastic gradient descent without Nesterov's form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinearProbeConfig {
    /// Passes over the training features, at least 1.
    pub epochs: usize,
    /// Features in a batch, at least 1; the last one of an epoch may be smaller.
    pub batch_size: usize,
    /// Learning rate, > 0.
    pub lr: f64,
    /// Momentum, in `[0, 1)`.
    pub momentum: f64,
    /// On weight and bias, >= 0.
    pub weight_decay: f64,
    /// How the rate falls.
    pub schedule: Decay,
}

impl Default for LinearProbeConfig {
    fn default() -> Self {
        let schedule = Decay::MultiStep { milestones: vec![15, 30, 40], gamma: 0.1 };
        Self { epochs: 40, batch_size: 256, lr: 0.01, momentum: 0.9, weight_decay: 1e-4, schedule }
    }
}

impl ProbeConfig {
    /// Checks the ranges that need no data.
    ///
    /// # Errors
    ///
    /// Names the field, the value and the range.
    pub fn validate(&self) -> Result<()> {
        let counts = [("linear.epochs", self.linear.epochs), ("linear.batch_size", self.linear.batch_size)];
        let knn = self.knn.iter().map(|&k| ("knn", k));
        if let Some((field, _)) = counts.into_iter().chain(knn).find(|(_, count)| *count == 0) {
            return Err(wrong(field, "must be at least 1, found 0"));
        }
        self.linear.optimizer().validate()?;
        Ok(self.linear.rates().validate()?)
    }
}

impl LinearProbeConfig {
    fn optimizer(&self) -> OptimizerConfig {
        let Self { momentum, weight_decay, .. } = *self;
        OptimizerConfig::Sgd { momentum, nesterov: false, dampening: 0.0, weight_decay }
    }

    fn rates(&self) -> ScheduleConfig {
        ScheduleConfig { lr: self.lr, warmup_epochs: 0, decay: self.schedule.clone() }
    }
}

/// What a network is judged on.
pub struct ProbeData<'a> {
    /// Labelled images that neighbours and classifiers come from: a part of a set, where labels are scarce.
    pub train: &'a Dataset,
    /// Labelled images that the measures are taken on.
    pub test: &'a Dataset,
    /// What of an image the network sees; no transform in it may be random.
    pub view: ViewConfig,
}

/// What a probe found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// By name: `knn-1`, `knn-20` ..., `linear` and `linear-f1` .. `linear-fL` are accuracies in `[0, 1]`, `linear-nll`
    /// is the mean negative log-likelihood in nats.
    pub measures: BTreeMap<String, f64>,
}

/// Judges the representation of a network, which is left as it was to the bit.
///
/// Every image is seen once, in evaluation mode, without a graph and without augmentation. The neighbours vote by cosine
/// similarity ([`knn_accuracy`]); the linear classifiers are trained on the stored features as they are, nothing is
/// standardised. A stage's feature is its map, averaged over all positions. The same network, data, settings and seed
/// give the same bits, with any number of threads.
///
/// # Errors
///
/// A setting out of range, more neighbours than training images, images without labels, sets of different classes, a random
/// transform, images of another shape than the network's, stages of a network that shows none, features or a classifier
/// that are not finite.
pub fn probe(
    network: &dyn Network,
    data: ProbeData<'_>,
    config: &ProbeConfig,
    seed: Seed,
    device: &Device,
) -> Result<ProbeReport> {
    config.validate()?;
    data.check(config)?;
    if config.stages && network.spec().stages().is_empty() {
        return Err(wrong("stages", &format!("the network `{}` shows no maps", network.spec().name)));
    }
    let [train, test] = [data.train, data.test].map(|set| Features::of(network, set, &data.view, config, device));
    let (train, test) = (train?, test?);
    let (labels, test_labels) = (data.train.labels(), data.test.labels());
    let mut measures = BTreeMap::new();
    let votes = knn_accuracy(&train.embedding, labels, &test.embedding, test_labels, &config.knn)?;
    measures.extend(config.knn.iter().map(|k| format!("knn-{k}")).zip(votes));
    let judge = |name: &str, features: [&Tensor; 2]| {
        let linear = LinearProbe { name, data: &data, config: &config.linear, seed: seed.child(name), device };
        linear.judge(features)
    };
    let found = judge("linear", [&train.embedding, &test.embedding])?;
    measures.insert("linear".into(), found.accuracy().unwrap_or(0.0));
    measures.insert("linear-nll".into(), found.nll().unwrap_or(0.0));
    for (i, pair) in train.stages.iter().zip(&test.stages).enumerate() {
        let name = format!("linear-f{}", i + 1);
        let found = judge(&name, [pair.0, pair.1])?;
        measures.insert(name, found.accuracy().unwrap_or(0.0));
    }
    Ok(ProbeReport { measures })
}

fn wrong(field: &str, message: &str) -> Error {
    Error::Config { what: format!("probe: `{field}`"), message: message.to_string() }
}

impl ProbeData<'_> {
    fn check(&self, config: &ProbeConfig) -> Result<()> {
        let settled =
            |t: &TransformConfig| matches!(t, TransformConfig::Resize { .. } | TransformConfig::CenterCrop { .. });
        if let Some(random) = self.view.transforms.iter().find(|t| !settled(t)) {
            let message =
                format!("features are computed without augmentation, found the transform `{}`", random.kind());
            return Err(wrong("view", &message));
        }
        for (what, set) in [("train", self.train), ("test", self.test)] {
            if !set.is_labelled() {
                return Err(wrong(what, &format!("the rows of `{}` have no labels", set.name())));
            }
        }
        let [classes, test_classes] = [self.train.classes(), self.test.classes()];
        if classes != test_classes {
            return Err(wrong("test", &format!("expected the {classes} classes of `train`, found {test_classes}")));
        }
        match config.knn.iter().find(|&&k| k > self.train.len()) {
            Some(k) => {
                Err(wrong("knn", &format!("must be at most the {} training images, found {k}", self.train.len())))
            }
            None => Ok(()),
        }
    }
}

/// What a network shows of all images of a set, in their order.
struct Features {
    /// `[N, D]`.
    embedding: Tensor,
    /// `[N, C_i]` for each stage; empty unless wanted.
    stages: Vec<Tensor>,
}

impl Features {
    fn of(
        network: &dyn Network,
        set: &Dataset,
        view: &ViewConfig,
        config: &ProbeConfig,
        device: &Device,
    ) -> Result<Self> {
        let taps = Taps { maps: config.stages, pre_activations: false };
        let (mut embeddings, mut stages) = (Vec::new(), Vec::new());
        for batch in loader(set, view, ROWS, Sampling::Sequential, 0)?.epoch(0) {
            let images = batch?.images.to_device(device)?;
            let outputs = no_grad(|| network.forward(&images, Mode::Eval, taps))?;
            embeddings.push(outputs.embedding.detach());
            stages.push(outputs.stages().iter().map(pooled).collect::<Result<Vec<_>>>()?);
        }
        let depth = stages.first().map_or(0, Vec::len);
        let stage = |i: usize| Ok(Tensor::cat(&stages.iter().map(|batch| &batch[i]).collect::<Vec<_>>(), 0)?);
        Ok(Self { embedding: Tensor::cat(&embeddings, 0)?, stages: (0..depth).map(stage).collect::<Result<_>>()? })
    }
}

/// `[B, C, H, W]` to `[B, C]`, summed in f64.
fn pooled(map: &Tensor) -> Result<Tensor> {
    Ok(map.detach().to_dtype(DType::F64)?.mean((2, 3))?.to_dtype(map.dtype())?)
}

fn loader(set: &Dataset, view: &ViewConfig, batch_size: usize, sampling: Sampling, seed: u64) -> Result<Loader> {
    let views = vec![ViewConfig { same_as: None, ..view.clone() }];
    Ok(Loader::new(set.clone(), LoaderConfig { batch_size, sampling, drop_last: false, views, seed })?)
}

/// A linear classifier on stored features.
struct LinearProbe<'a> {
    name: &'a str,
    data: &'a ProbeData<'a>,
    config: &'a LinearProbeConfig,
    seed: Seed,
    device: &'a Device,
}

impl LinearProbe<'_> {
    /// Trains on the first features and measures on the second, both `[N, D]`.
    fn judge(&self, [train, test]: [&Tensor; 2]) -> Result<Classification> {
        let classifier = self.train(train)?;
        let mut found = Classification::new();
        for (i, labels) in self.data.test.labels().chunks(ROWS).enumerate() {
            let rows = test.narrow(0, i * ROWS, labels.len())?;
            found.update(&classifier.forward(&rows)?, None, labels)?;
        }
        Ok(found)
    }

    fn train(&self, features: &Tensor) -> Result<Linear> {
        let config = self.config;
        let params = Params::new(self.seed, features.dtype(), self.device);
        let classifier = Linear::new(&params.root(), features.dim(1)?, self.data.train.classes())?;
        let mut optimizer = Optimizer::new(config.optimizer(), vec![ParamGroup::new(params.trainable())])?;
        let order = self.seed.child("order").value();
        let order = loader(self.data.train, &self.data.view, config.batch_size, Sampling::Shuffled, order)?;
        let (rates, per_epoch) = (config.rates(), order.batches_per_epoch());
        for epoch in 0..config.epochs {
            for (step, rows) in order.order(epoch as u64).chunks(config.batch_size).enumerate() {
                let loss = self.loss(&classifier, features, rows)?;
                let value = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                if !value.is_finite() {
                    return Err(self.not_finite(value, epoch, step, rows));
                }
                optimizer.step(&loss.backward()?, rates.rate(epoch * per_epoch + step, per_epoch, config.epochs))?;
            }
        }
        Ok(classifier)
    }

    fn loss(&self, classifier: &Linear, features: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let labels: Vec<u32> = rows.iter().map(|&row| self.data.train.labels()[row as usize]).collect();
        let (rows, labels) = (Tensor::new(rows, self.device)?, Tensor::new(labels, self.device)?);
        Ok(cross_entropy(&classifier.forward(&features.index_select(&rows, 0)?)?, &labels)?)
    }

    fn not_finite(&self, value: f64, epoch: usize, step: usize, rows: &[u32]) -> Error {
        let samples: Vec<String> = rows.iter().take(8).map(ToString::to_string).collect();
        let (phase, term) = ("probe".to_string(), self.name.to_string());
        Error::NotFinite { phase, epoch: epoch + 1, step: step + 1, term, value, samples: samples.join(", ") }
    }
}
