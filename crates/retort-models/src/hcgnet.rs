//! Networks of hybrid connectivity with gates (HCGNet; Yang et al. 2020, arXiv 1908.09699), the largest peers of mutual
//! contrastive learning.

use crate::block::{Block, Blocks, NormRelu, Tap, Trace};
use crate::common::{check_range, config_error};
use crate::head::{sigmoid, softmax};
use crate::staged::{Architecture, Shows, Site};
use crate::{ModelConfig, Result};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap};
use retort_nn::{BatchNorm, Conv2d, ConvBatchNorm, Init, Linear, Mode, Scope, StageNorm};

/// Groups of the 3x3 convolution of a layer; the growth must divide by it.
const GROUPS: usize = 4;
/// Width of a layer over its growth.
const WIDTH: usize = 4;
/// The bounds of a configuration, far beyond the published networks.
const MOST_GROWTH: usize = 256;
const MOST_LAYERS: usize = 64;
/// With fewer channels nothing would be left for the gates of a transition.
const LEAST_INPUTS: usize = 8;

/// HCGNet: a 3x3 stem, three blocks of layers that each append their result to what they were fed with, two transitions
/// that halve channels, rows and columns, batch norm and ReLU, global average, linear classifier.
///
/// Every convolution takes `relu(bn(x))`. A layer of growth k computes `u` by a 1x1 convolution to 4k channels and a
/// 3x3 one in four groups; gates then decide what of `u` is kept and what is new:
///
/// * A map is *pooled* to a vector by the softmax over its positions of a 1x1 convolution to one channel.
/// * Forget gate: `keep = sigmoid(fc2(tanh(bn(fc1(pooled u)))))`, with `fc1` to k/2 channels.
/// * Update: `a` and `b` are pooled from two depthwise 3x3 convolutions of `u`, the second of dilation 2;
///   `h = tanh(bn(fcall([a, b])))` has k channels; `new = share a + (1 - share) b`, where the share is the softmax of
///   the pair `fc3x3(h)`, `fc5x5(h)`.
/// * Result: `[x, keep u + new]`; `keep` and `new` are vectors, the same at every position.
///
/// A transition does the same with a 3x3 convolution of stride 2 without groups, half as many channels in the gates,
/// and nothing appended.
///
/// f0 is the stem and f1, f2, f3 are the blocks, before their transitions; none of them is activated. The
/// pre-activations are the batch norms by which the network goes on, as in a wide ResNet. A shared trunk in mutual
/// learning is the stem, block 1 and transition 1.
///
/// The gates normalise one vector for each image, so training needs a batch of two.
///
/// Keys: `features.conv0`, `features.HybridBlock{1..3}.SMG{1..}.X`, `features.Transition{1,2}.X`, `features.norm5`,
/// `classifier`, with X = `conv1_1x1`, `conv2_3x3`, `conv_3x3`, `conv_5x5` (each with `.norm` and `.conv`),
/// `global_forget_context`, `fc1`, `bn_forget`, `fc2`, `global_context3x3`, `global_context5x5`, `fcall`,
/// `bn_attention`, `fc3x3`, `fc5x5`.
///
/// Initial values, which the specification leaves open, are those of DenseNet's code: normal with variance `2 / fan_in`
/// for the convolutions, PyTorch's default for their biases and for the classifier's weight, 0 for its bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HcgNetConfig {
    /// Channels that a layer adds, for each of the blocks; multiples of 4 from 4 to 256.
    pub growth: [usize; 3],
    /// Layers of a block, from 1 to 64; 8 in the paper.
    pub layers: usize,
}

impl HcgNetConfig {
    /// HCGNet-A1.
    pub const A1: Self = Self { growth: [12, 24, 36], layers: 8 };
    /// HCGNet-A2.
    pub const A2: Self = Self { growth: [24, 36, 64], layers: 8 };
}

/// Groups 0, 2 and 4 are the blocks, 1 and 3 the transitions.
impl Architecture for HcgNetConfig {
    fn check(&self, model: &str, _config: &ModelConfig) -> Result<()> {
        let allowed = |growth: &usize| growth.is_multiple_of(GROUPS) && (1..=MOST_GROWTH).contains(growth);
        if let Some(growth) = self.growth.iter().find(|growth| !allowed(growth)) {
            let message =
                format!("growth must be a multiple of {GROUPS} from {GROUPS} to {MOST_GROWTH}, found {growth}");
            return Err(config_error(model, message));
        }
        check_range(model, MOST_LAYERS, [("layers", self.layers)])
    }

    fn shows(&self) -> Shows {
        Shows::Entrances
    }

    fn groups(&self) -> usize {
        2 * self.growth.len() - 1
    }

    fn is_shown(&self, group: usize) -> bool {
        group.is_multiple_of(2)
    }

    fn stem(&self, inputs: usize, scope: &Scope) -> Result<Blocks> {
        let (scope, shape) = (scope.child("features.conv0"), [2 * self.growth[0], inputs, 3, 3]);
        Ok(vec![Box::new(Conv2d::new(&scope, shape, Conv2dSpec::new(1, 1), Init::KaimingNormalFanIn)?)])
    }

    /// A transition is one unit, whatever the site's number of blocks.
    fn group(&self, site: &Site, scope: &Scope) -> Result<Blocks> {
        if !self.is_shown(site.group) {
            let stride = if site.keeps_size { 1 } else { 2 };
            if site.inputs < LEAST_INPUTS {
                let message =
                    format!("a transition must have at least {LEAST_INPUTS} channels to halve, found {}", site.inputs);
                return Err(config_error("HCGNet", message));
            }
            return Ok(vec![Box::new(Unit::transition(site.inputs, stride, scope)?)]);
        }
        let growth = self.growth[site.group / 2];
        let layer = |i: usize| {
            let unit = Unit::layer(site.inputs + i * growth, growth, &scope.child(format!("SMG{}", i + 1)))?;
            Ok(Box::new(unit) as Box<dyn Block>)
        };
        (0..site.blocks.unwrap_or(self.layers)).map(layer).collect()
    }

    fn group_key(&self, group: usize) -> String {
        let kind = if self.is_shown(group) { "HybridBlock" } else { "Transition" };
        format!("features.{kind}{}", group / 2 + 1)
    }

    fn tail_keys(&self) -> &'static [&'static str] {
        &["features.norm5"]
    }

    fn tail(&self, inputs: usize, keys: &[Scope]) -> Result<Blocks> {
        keys.iter().map(|key| Ok(Box::new(NormRelu(BatchNorm::new(key, inputs)?)) as Box<dyn Block>)).collect()
    }

    fn classifier_key(&self) -> &'static str {
        "classifier"
    }

    fn classifier(&self, inputs: usize, classes: usize, scope: &Scope) -> Result<Linear> {
        Ok(Linear::with_init(scope, inputs, classes, Init::PyTorch, Some(Init::Constant(0.0)))?)
    }
}

/// A layer or a transition; the tap is its first batch norm.
struct Unit {
    norm: BatchNorm,
    /// The 1x1 convolution with the batch norm of the 3x3 one behind it.
    narrow: ConvBatchNorm,
    conv: Conv2d,
    gates: Gates,
    /// Whether the result is appended to what the unit was fed with.
    appends: bool,
}

impl Unit {
    fn layer(inputs: usize, growth: usize, scope: &Scope) -> Result<Self> {
        let spec = Conv2dSpec::new(1, 1).with_groups(GROUPS);
        Self::new([inputs, WIDTH * growth, growth], spec, 2, true, scope)
    }

    fn transition(inputs: usize, stride: usize, scope: &Scope) -> Result<Self> {
        let outputs = inputs / 2;
        let width = inputs - (inputs - outputs) / 2;
        Self::new([inputs, width, outputs], Conv2dSpec::new(stride, 1), 4, false, scope)
    }

    fn new(
        [inputs, width, outputs]: [usize; 3],
        spec: Conv2dSpec,
        reduction: usize,
        appends: bool,
        scope: &Scope,
    ) -> Result<Self> {
        let init = Init::KaimingNormalFanIn;
        let narrow = [width, inputs, 1, 1];
        let shape = [outputs, width / spec.groups, 3, 3];
        Ok(Self {
            norm: BatchNorm::new(&scope.child("conv1_1x1.norm"), inputs)?,
            narrow: ConvBatchNorm::new(scope, "conv1_1x1.conv", "conv2_3x3.norm", narrow, Conv2dSpec::new(1, 0), init)?,
            conv: Conv2d::new(&scope.child("conv2_3x3.conv"), shape, spec, init)?,
            gates: Gates::new(outputs, reduction, scope)?,
            appends,
        })
    }
}

impl Block for Unit {
    fn forward(&self, x: &FeatureMap, mode: Mode, tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        let y = tap.relu(|activation| self.norm.forward(x, mode, activation))?;
        let y = self.narrow.forward(&y, mode, Activation::Relu)?;
        let y = self.gates.forward(&self.conv.forward(&y)?, mode)?;
        let y = if self.appends { Tensor::cat(&[&x.to_tensor()?, &y], 1)? } else { y };
        Ok(FeatureMap::from_tensor(&y)?)
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        let inputs = trace.shape.channels;
        trace.conv(self.narrow.conv())?;
        trace.conv(&self.conv)?;
        self.gates.trace(trace)?;
        if self.appends {
            trace.shape.channels += inputs;
        }
        Ok(())
    }

    fn norm(&self) -> Option<StageNorm> {
        Some(self.norm.stage_norm())
    }
}

/// What of a map is kept and what is added to it.
struct Gates {
    forget: Context,
    forget_hidden: ConvBatchNorm,
    forget_out: Conv2d,
    /// The depthwise convolutions, dilation 1 and 2.
    spread: [(BatchNorm, Conv2d, Context); 2],
    update_hidden: ConvBatchNorm,
    update_out: [Conv2d; 2],
}

impl Gates {
    fn new(channels: usize, reduction: usize, scope: &Scope) -> Result<Self> {
        let pointwise = |key: &str, to: usize, from: usize| conv_with_bias(&scope.child(key), [to, from, 1, 1]);
        let hidden = |conv: &str, norm: &str, to: usize, from: usize| {
            let (shape, spec) = ([to, from, 1, 1], Conv2dSpec::new(1, 0));
            let init = [Init::KaimingNormalFanIn, Init::pytorch_bias(&shape)];
            ConvBatchNorm::with_bias(scope, [conv, norm], shape, spec, init)
        };
        let spread = |size: usize, dilation: usize| -> Result<_> {
            let key = scope.child(format!("conv_{size}x{size}"));
            let spec = Conv2dSpec::new(1, dilation).with_dilation(dilation).with_groups(channels);
            let norm = BatchNorm::new(&key.child("norm"), channels)?;
            let conv = Conv2d::new(&key.child("conv"), [channels, 1, 3, 3], spec, Init::KaimingNormalFanIn)?;
            Ok((norm, conv, Context(pointwise(&format!("global_context{size}x{size}"), 1, channels)?)))
        };
        let (forget, update) = (channels / reduction, 2 * channels / reduction);
        Ok(Self {
            forget: Context(pointwise("global_forget_context", 1, channels)?),
            forget_hidden: hidden("fc1", "bn_forget", forget, channels)?,
            forget_out: pointwise("fc2", channels, forget)?,
            spread: [spread(3, 1)?, spread(5, 2)?],
            update_hidden: hidden("fcall", "bn_attention", update, 2 * channels)?,
            update_out: [pointwise("fc3x3", channels, update)?, pointwise("fc5x5", channels, update)?],
        })
    }

    /// `keep u + new`.
    fn forward(&self, u: &FeatureMap, mode: Mode) -> retort_nn::Result<Tensor> {
        let hidden = through(&self.forget_hidden, &self.forget.pool(u)?, mode)?.tanh()?;
        let keep = sigmoid(&through(&self.forget_out, &hidden, mode)?)?;
        let mut parts = Vec::new();
        for (norm, conv, context) in &self.spread {
            parts.push(context.pool(&conv.forward(&norm.forward(u, mode, Activation::Relu)?)?)?);
        }
        let hidden = through(&self.update_hidden, &Tensor::cat(&parts, 1)?, mode)?.tanh()?;
        let [small, large] = &self.update_out;
        // The softmax of a pair is the logistic function of its difference.
        let share = sigmoid(&(through(small, &hidden, mode)? - through(large, &hidden, mode)?)?)?;
        let new = (&parts[1] + (share * (&parts[0] - &parts[1])?)?)?;
        Ok(u.to_tensor()?.broadcast_mul(&keep)?.broadcast_add(&new)?)
    }

    /// The shape stays; layers on vectors count as convolutions of one position.
    fn trace(&self, trace: &mut Trace) -> Result<()> {
        trace.beside(|trace| trace.conv(&self.forget.0))?;
        for (_, conv, context) in &self.spread {
            trace.beside(|trace| [conv, &context.0].into_iter().try_for_each(|conv| trace.conv(conv)))?;
        }
        let vectors = [self.forget_hidden.conv(), &self.forget_out, self.update_hidden.conv()];
        for conv in vectors.into_iter().chain(&self.update_out) {
            trace.beside(|trace| {
                [trace.shape.height, trace.shape.width] = [1, 1];
                trace.conv(conv)
            })?;
        }
        Ok(())
    }
}

fn conv_with_bias(scope: &Scope, shape: [usize; 4]) -> Result<Conv2d> {
    let init = [Init::KaimingNormalFanIn, Init::pytorch_bias(&shape)];
    Ok(Conv2d::with_bias(scope, shape, Conv2dSpec::new(1, 0), init[0], init[1])?)
}

/// Where to look in a map: a 1x1 convolution to one channel.
struct Context(Conv2d);

impl Context {
    /// `[B, C, H, W]` to `[B, C, 1, 1]`: the sum over positions, weighted by the softmax of the context.
    fn pool(&self, x: &FeatureMap) -> retort_nn::Result<Tensor> {
        let [batch, channels, height, width] = x.dims();
        let score = self.0.forward(x)?.to_tensor()?.reshape((batch, 1, height * width))?;
        let share = softmax(&score)?.reshape((batch, height * width, 1))?;
        Ok(x.to_tensor()?.reshape((batch, channels, height * width))?.matmul(&share)?.unsqueeze(3)?)
    }
}

/// A layer on vectors `[B, C, 1, 1]`.
fn through(layer: &dyn Block, x: &Tensor, mode: Mode) -> retort_nn::Result<Tensor> {
    Ok(layer.forward(&FeatureMap::from_tensor(x)?, mode, &mut Tap::default())?.to_tensor()?)
}
