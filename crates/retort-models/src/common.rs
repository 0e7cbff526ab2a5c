//! What every family checks in the same way.

use crate::{Error, ModelConfig, Result};
use candle_core::Tensor;
use retort_kernels::{Activation, FeatureMap};
use retort_nn::{MapShape, NetworkSpec, Outputs, Taps};

/// An [`Error::Config`].
pub(crate) fn config_error(model: &str, message: impl Into<String>) -> Error {
    Error::Config { model: model.to_string(), message: message.into() }
}

/// Refuses sizes of zero; `widths` are the numbers of channels or units inside of the network.
pub(crate) fn check_sizes(model: &str, config: &ModelConfig, widths: &[usize]) -> Result<()> {
    let [height, width] = config.image;
    if [config.in_channels, height, width, config.classes].contains(&0) || widths.contains(&0) {
        let message = format!("channels, image and classes must be positive, found {config:?} and {widths:?}");
        return Err(config_error(model, message));
    }
    Ok(())
}

/// The spec of a network with these maps; all families that have maps show them before the activation too.
pub(crate) fn network_spec(name: &str, config: &ModelConfig, maps: Vec<MapShape>, embedding: usize) -> NetworkSpec {
    NetworkSpec {
        name: name.to_string(),
        in_channels: config.in_channels,
        image: config.image,
        classes: config.classes,
        pre_activations: !maps.is_empty(),
        maps,
        embedding,
    }
}

/// Refuses a batch of another shape than the network was built for.
pub(crate) fn check_images(spec: &NetworkSpec, images: &Tensor) -> retort_nn::Result<()> {
    let [height, width] = spec.image;
    let expected = [spec.in_channels, height, width];
    if images.rank() == 4 && images.dims()[1..] == expected {
        return Ok(());
    }
    let message = format!("expected images [B, {}, {height}, {width}], found {:?}", expected[0], images.dims());
    Err(retort_nn::Error::invalid(format!("model `{}`", spec.name), message))
}

/// Size after a 3x3 convolution with stride 2 and padding 1.
pub(crate) fn halved([height, width]: [usize; 2]) -> [usize; 2] {
    [height.div_ceil(2), width.div_ceil(2)]
}

/// A map of this size.
pub(crate) fn map(channels: usize, [height, width]: [usize; 2]) -> MapShape {
    MapShape { channels, height, width }
}

/// Positions of a map.
pub(crate) fn area(map: &MapShape) -> usize {
    map.height * map.width
}

/// What a network shows of itself, collected on the way.
pub(crate) struct Shown {
    taps: Taps,
    maps: Vec<Tensor>,
    pre_activations: Vec<Tensor>,
}

impl Shown {
    pub(crate) fn new(taps: Taps) -> Self {
        Self { taps, maps: Vec::new(), pre_activations: Vec::new() }
    }

    /// f0, which is its own pre-activation.
    pub(crate) fn stem(&mut self, x: &FeatureMap) -> retort_nn::Result<()> {
        self.map(x)?;
        if self.taps.pre_activations {
            self.pre_activations.push(x.to_tensor()?);
        }
        Ok(())
    }

    /// A map.
    pub(crate) fn map(&mut self, x: &FeatureMap) -> retort_nn::Result<()> {
        if self.taps.maps {
            self.maps.push(x.to_tensor()?);
        }
        Ok(())
    }

    /// A value and its ReLU, in one pass where nobody asks for the value before it.
    pub(crate) fn activated(
        &mut self,
        compute: impl FnOnce(Activation) -> retort_nn::Result<FeatureMap>,
    ) -> retort_nn::Result<FeatureMap> {
        if !self.taps.pre_activations {
            return compute(Activation::Relu);
        }
        let value = compute(Activation::None)?;
        self.pre_activations.push(value.to_tensor()?);
        Ok(value.relu()?)
    }

    /// The end of a stage: its last map before and after the ReLU.
    pub(crate) fn stage(
        &mut self,
        compute: impl FnOnce(Activation) -> retort_nn::Result<FeatureMap>,
    ) -> retort_nn::Result<FeatureMap> {
        let x = self.activated(compute)?;
        self.map(&x)?;
        Ok(x)
    }

    pub(crate) fn outputs(self, logits: Tensor, embedding: Tensor) -> Outputs {
        Outputs { logits, embedding, maps: self.maps, pre_activations: self.pre_activations }
    }
}
