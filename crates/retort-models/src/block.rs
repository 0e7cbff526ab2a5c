//! What networks are made of: blocks of layers, and what is known of them before the first batch.

use crate::common::{MOST_PARAMETERS, MOST_PIXELS, check_range, config_error};
use crate::{Error, Result};
use retort_kernels::{Activation, Conv2dSpec, FeatureMap, Pool2dSpec};
use retort_nn::{BatchNorm, Conv2d, ConvBatchNorm, Linear, MapShape, Mode, StageNorm};

/// A row of blocks, each fed with the map of the one before.
pub(crate) type Blocks = Vec<Box<dyn Block>>;

/// A piece of a network: a map in, a map out.
pub(crate) trait Block: Send + Sync {
    /// One pass. A block that has a value to show (see [`Tap`]) computes it through `tap`.
    fn forward(&self, x: &FeatureMap, mode: Mode, tap: &mut Tap) -> retort_nn::Result<FeatureMap>;

    /// Follows the shape of the map through the block and counts multiply-adds.
    fn trace(&self, trace: &mut Trace) -> Result<()>;

    /// The batch norm whose result the block's [`Tap`] shows, where there is one.
    fn norm(&self) -> Option<StageNorm> {
        None
    }
}

/// The one value of a block before its ReLU that a network may show as a pre-activation.
#[derive(Default)]
pub(crate) struct Tap {
    wanted: bool,
    seen: Option<FeatureMap>,
}

impl Tap {
    /// A tap that shows what it is given if `wanted`.
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, seen: None }
    }

    /// `relu(value)`, in one pass where nobody wants to see the value itself.
    pub(crate) fn relu(
        &mut self,
        compute: impl FnOnce(Activation) -> retort_nn::Result<FeatureMap>,
    ) -> retort_nn::Result<FeatureMap> {
        self.relu_within(compute, |value| Ok(value.clone()))
    }

    /// The same where the value is only a part of what is shown, `whole(value)`.
    pub(crate) fn relu_within(
        &mut self,
        compute: impl FnOnce(Activation) -> retort_nn::Result<FeatureMap>,
        whole: impl FnOnce(&FeatureMap) -> retort_nn::Result<FeatureMap>,
    ) -> retort_nn::Result<FeatureMap> {
        if !self.wanted {
            return compute(Activation::Relu);
        }
        let value = compute(Activation::None)?;
        self.seen = Some(whole(&value)?);
        Ok(value.relu()?)
    }

    /// The value, if it was wanted and the block has one.
    pub(crate) fn into_seen(self) -> Option<FeatureMap> {
        self.seen
    }
}

/// The shape of a map on its way through a network, and the multiply-adds so far, for one image.
///
/// Convolutions and linear layers count, biases and everything else do not.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    model: String,
    pub(crate) shape: MapShape,
    pub(crate) multiply_adds: usize,
    /// Weights of the convolutions so far, whose memory is already taken.
    weights: usize,
}

impl Trace {
    /// Nothing counted yet; `model` appears in errors.
    pub(crate) fn new(model: &str, shape: MapShape) -> Self {
        Self { model: model.to_string(), shape, multiply_adds: 0, weights: 0 }
    }

    pub(crate) fn conv(&mut self, conv: &Conv2d) -> Result<()> {
        let [outputs, inputs, height, width] = conv.shape();
        self.slide(conv.spec(), [height, width])?;
        self.shape.channels = outputs;
        self.weights = self.weights.saturating_add(conv.shape().into_iter().fold(1, usize::saturating_mul));
        if self.weights > MOST_PARAMETERS {
            let message = format!("a network must have at most {MOST_PARAMETERS} weights, found {}", self.weights);
            return Err(config_error(&self.model, message));
        }
        self.count([self.shape.height, self.shape.width, outputs, inputs, height, width]);
        Ok(())
    }

    pub(crate) fn linear(&mut self, linear: &Linear) {
        self.count(linear.weight().dims().iter().copied());
    }

    /// Absurd sizes give an absurd count, not a panic.
    fn count(&mut self, factors: impl IntoIterator<Item = usize>) {
        let product = factors.into_iter().fold(1usize, usize::saturating_mul);
        self.multiply_adds = self.multiply_adds.saturating_add(product);
    }

    pub(crate) fn pool(&mut self, spec: &Pool2dSpec) -> Result<()> {
        self.slide(&Conv2dSpec { padding: spec.padding, stride: spec.stride, ..Conv2dSpec::new(1, 0) }, spec.kernel)
    }

    /// Counts `other`, a branch that began at an earlier shape, without following its shape.
    pub(crate) fn beside(&mut self, other: impl FnOnce(&mut Self) -> Result<()>) -> Result<MapShape> {
        let mut branch = self.clone();
        other(&mut branch)?;
        [self.multiply_adds, self.weights] = [branch.multiply_adds, branch.weights];
        Ok(branch.shape)
    }

    fn slide(&mut self, spec: &Conv2dSpec, kernel: [usize; 2]) -> Result<()> {
        let MapShape { height, width, .. } = self.shape;
        check_range(&self.model, MOST_PIXELS, [("image", height), ("image", width)])?;
        let size = spec.output_size([height, width], kernel).map_err(|error| Error::Config {
            model: self.model.clone(),
            message: format!(
                "the image is too small: a map of {height}x{width} is left for a {kernel:?} window ({error})"
            ),
        })?;
        [self.shape.height, self.shape.width] = size;
        Ok(())
    }
}

/// `relu(bn(conv(x)))`, the plainest block; its tap is the batch norm.
pub(crate) struct ConvRelu(pub(crate) ConvBatchNorm);

impl Block for ConvRelu {
    fn forward(&self, x: &FeatureMap, mode: Mode, tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        tap.relu(|activation| self.0.forward(x, mode, activation))
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        trace.conv(self.0.conv())
    }

    fn norm(&self) -> Option<StageNorm> {
        Some(self.0.stage_norm())
    }
}

/// `relu(conv(x))`; its tap is the convolution.
pub(crate) struct BareConvRelu(pub(crate) Conv2d);

impl Block for BareConvRelu {
    fn forward(&self, x: &FeatureMap, _mode: Mode, tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        tap.relu(|activation| self.0.forward_with(x, None, activation))
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        trace.conv(&self.0)
    }
}

/// `bn(conv(x))` without activation.
impl Block for ConvBatchNorm {
    fn forward(&self, x: &FeatureMap, mode: Mode, _tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        Self::forward(self, x, mode, Activation::None)
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        trace.conv(self.conv())
    }

    fn norm(&self) -> Option<StageNorm> {
        Some(self.stage_norm())
    }
}

/// A bare convolution.
impl Block for Conv2d {
    fn forward(&self, x: &FeatureMap, _mode: Mode, _tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        Conv2d::forward(self, x)
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        trace.conv(self)
    }
}

/// `relu(bn(x))`; its tap is the batch norm.
pub(crate) struct NormRelu(pub(crate) BatchNorm);

impl Block for NormRelu {
    fn forward(&self, x: &FeatureMap, mode: Mode, tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        tap.relu(|activation| self.0.forward(x, mode, activation))
    }

    fn trace(&self, _trace: &mut Trace) -> Result<()> {
        Ok(())
    }

    fn norm(&self) -> Option<StageNorm> {
        Some(self.0.stage_norm())
    }
}

/// Maximum pooling.
pub(crate) struct MaxPool(pub(crate) Pool2dSpec);

impl Block for MaxPool {
    fn forward(&self, x: &FeatureMap, _mode: Mode, _tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        Ok(x.max_pool2d(&self.0)?)
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        trace.pool(&self.0)
    }
}
