//! Fully connected networks on flattened images, as the code of KD2M uses them for MNIST (Fernandes Montesuma 2025,
//! arXiv 2504.01757).

use crate::common::{
    MOST_PARAMETERS, check_images, check_layer, check_mode, check_positive, check_sizes, config_error, saturating_sum,
};
use crate::{ModelConfig, Result};
use candle_core::Tensor;
use retort_nn::{Linear, Mode, Network, NetworkSpec, Outputs, Scope, Taps};

/// `mlp-512-256-128`, `mlp-512-256-128-128-128`: the flattened image, a linear layer and ReLU for every hidden width,
/// linear classifier.
///
/// The embedding is the last hidden layer after its ReLU, so it has no negative entry.
/// There are no feature maps: [`Outputs::maps`] and [`Outputs::pre_activations`] stay empty whatever is tapped.
///
/// Keys: `feature_extractor.{2i}.weight`, `feature_extractor.{2i}.bias` (hidden layer i; the odd numbers are the ReLUs
/// of PyTorch's `Sequential`), `classifier.*`. All layers start with PyTorch's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MlpConfig {
    /// Widths from the first hidden layer to the embedding, at least one.
    pub hidden: Vec<usize>,
}

impl MlpConfig {
    /// Inputs and outputs of every layer, the classifier last.
    fn layers(&self, model: &str, config: &ModelConfig) -> Result<Vec<[usize; 2]>> {
        check_sizes(model, config)?;
        check_positive(model, self.hidden.iter().map(|&width| ("hidden", width)))?;
        if self.hidden.is_empty() {
            return Err(config_error(model, "there must be at least one hidden layer, found none"));
        }
        let [height, width] = config.image;
        let mut from = config.in_channels.saturating_mul(height).saturating_mul(width);
        let mut layers = Vec::new();
        for &to in self.hidden.iter().chain([&config.classes]) {
            check_layer(model, from, to)?;
            layers.push([from, to]);
            from = to;
        }
        let weights = saturating_sum(layers.iter().map(|[from, to]| from * to));
        if weights > MOST_PARAMETERS {
            let message = format!("a network must have at most {MOST_PARAMETERS} weights, found {weights}");
            return Err(config_error(model, message));
        }
        Ok(layers)
    }
}

/// A network of an [`MlpConfig`].
pub(crate) struct Mlp {
    spec: NetworkSpec,
    hidden: Vec<Linear>,
    classifier: Linear,
    frozen: bool,
}

impl Mlp {
    /// Declares all parameters in `scope`; `name` appears in the spec and in errors.
    pub(crate) fn new(name: &str, family: &MlpConfig, config: &ModelConfig, scope: &Scope) -> Result<Self> {
        let layers = family.layers(name, config)?;
        let ([embedding, classes], hidden) = layers.split_last().expect("the classifier is always there");
        let layer = |(i, [from, to]): (usize, &[usize; 2])| {
            Linear::new(&scope.child("feature_extractor").child(2 * i), *from, *to)
        };
        let spec = NetworkSpec {
            name: name.to_string(),
            in_channels: config.in_channels,
            image: config.image,
            classes: config.classes,
            maps: vec![],
            embedding: *embedding,
            pre_activations: false,
            // Every weight once.
            multiply_adds: layers.iter().map(|[from, to]| from * to).sum(),
        };
        Ok(Self {
            spec,
            hidden: hidden.iter().enumerate().map(layer).collect::<retort_nn::Result<_>>()?,
            classifier: Linear::new(&scope.child("classifier"), *embedding, *classes)?,
            frozen: scope.is_frozen(),
        })
    }
}

impl Network for Mlp {
    fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    fn classifier(&self) -> Option<&Linear> {
        Some(&self.classifier)
    }

    fn forward(&self, images: &Tensor, mode: Mode, _taps: Taps) -> retort_nn::Result<Outputs> {
        check_images(&self.spec, images)?;
        check_mode(&self.spec.name, self.frozen, mode)?;
        let mut embedding = images.flatten_from(1)?;
        for layer in &self.hidden {
            embedding = retort_kernels::relu(&layer.forward(&embedding)?)?;
        }
        let logits = self.classifier.forward(&embedding)?;
        Ok(Outputs { logits, embedding, maps: vec![], pre_activations: vec![] })
    }
}
