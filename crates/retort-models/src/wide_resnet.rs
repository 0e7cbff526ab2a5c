//! Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146).

use crate::common::{Shown, area, check_images, check_sizes, config_error, halved, map, network_spec};
use crate::{ModelConfig, Result};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap};
use retort_nn::{
    BatchNorm, Conv2d, ConvBatchNorm, Init, Linear, MapShape, Mode, Network, NetworkSpec, Outputs, Scope, StageNorm,
    Taps,
};

/// Depth and width: WRN-d-w.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WideResNetConfig {
    /// d = `6n + 4` with n >= 1 blocks a group.
    pub depth: usize,
    /// w from 1 to 1024: the groups have `16w`, `32w` and `64w` channels.
    pub widen: usize,
}

impl WideResNetConfig {
    /// Blocks n of each group.
    fn blocks(&self, model: &str) -> Result<usize> {
        match self.depth.checked_sub(4) {
            Some(rest) if rest > 0 && rest.is_multiple_of(6) => Ok(rest / 6),
            _ => Err(config_error(model, format!("depth must be 6n + 4 with n >= 1, found {}", self.depth))),
        }
    }

    /// Shapes of f0 .. f3 for this input.
    fn maps(&self, model: &str, config: &ModelConfig) -> Result<Vec<MapShape>> {
        if !(1..=1024).contains(&self.widen) {
            return Err(config_error(model, format!("widen must be from 1 to 1024, found {}", self.widen)));
        }
        check_sizes(model, config, &[])?;
        let second = halved(config.image);
        Ok(vec![
            map(16, config.image),
            map(16 * self.widen, config.image),
            map(32 * self.widen, second),
            map(64 * self.widen, halved(second)),
        ])
    }

    /// Multiply-adds of convolutions and classifier for one image.
    pub(crate) fn multiply_adds(&self, model: &str, config: &ModelConfig) -> Result<usize> {
        let (blocks, maps) = (self.blocks(model)?, self.maps(model, config)?);
        let mut total = area(&maps[0]) * 9 * config.in_channels * maps[0].channels;
        for pair in maps.windows(2) {
            let (from, to) = (pair[0].channels, pair[1].channels);
            let projection = if from == to { 0 } else { from * to };
            // The first block changes the channels, the others keep them.
            total += area(&pair[1]) * (9 * (from + (2 * blocks - 1) * to) * to + projection);
        }
        Ok(total + maps[3].channels * config.classes)
    }
}

/// `wrn_16_1` .. `wrn_40_2`: stem without normalisation, three groups of pre-activation blocks with strides 1, 2, 2,
/// batch norm, ReLU, global average, linear classifier; no dropout.
///
/// A block is `x + conv2(relu(bn2(conv1(a))))` with `a = relu(bn1(x))`; where the channels change the shortcut is a
/// 1x1 convolution of `a` in place of `x`.
///
/// f0 is the bare stem and f1 .. f3 are the sums at the end of the groups: none of them is activated.
/// Their pre-activations are the batch norms by which the network goes on, `block2.layer.0.bn1(f1)`,
/// `block3.layer.0.bn1(f2)` and `bn1(f3)`, taken from the ordinary pass: tapping them does not update
/// the running statistics a second time (mdistiller's forward pass does).
///
/// Keys: `conv1.weight`, `block{1,2,3}.layer.{i}.{bn1,bn2}.*`, `.conv1.weight`, `.conv2.weight`, `.convShortcut.weight`,
/// `bn1.*`, `fc.*`. Convolutions start with the fan-out normal rule, `fc` with PyTorch's default and bias 0.
///
/// In a frozen network `bn2` is folded into `conv1`; `bn1` stands behind an addition and before a ReLU, so it stays.
pub struct WideResNet {
    spec: NetworkSpec,
    stem: Conv2d,
    groups: Vec<Vec<PreActivationBlock>>,
    norm: BatchNorm,
    classifier: Linear,
}

impl WideResNet {
    /// Declares all parameters in `scope`; `name` appears in the spec and in errors.
    ///
    /// # Errors
    ///
    /// A depth that no number of blocks gives, sizes out of range, or weights that do not fit.
    pub fn new(name: &str, family: &WideResNetConfig, config: &ModelConfig, scope: &Scope) -> Result<Self> {
        let (blocks, maps) = (family.blocks(name)?, family.maps(name, config)?);
        let stem_shape = [maps[0].channels, config.in_channels, 3, 3];
        let stem = Conv2d::new(&scope.child("conv1"), stem_shape, Conv2dSpec::new(1, 1), Init::KaimingNormalFanOut)?;
        let mut groups = Vec::new();
        for group in 1..4 {
            let scope = scope.child(format!("block{group}")).child("layer");
            let to = maps[group].channels;
            let mut built = Vec::new();
            for index in 0..blocks {
                let (from, stride) = match index {
                    0 => (maps[group - 1].channels, if group == 1 { 1 } else { 2 }),
                    _ => (to, 1),
                };
                built.push(PreActivationBlock::new(from, to, stride, &scope.child(index))?);
            }
            groups.push(built);
        }
        let embedding = maps[3].channels;
        let norm = BatchNorm::new(&scope.child("bn1"), embedding)?;
        let bias = Some(Init::Constant(0.0));
        let classifier = Linear::with_init(&scope.child("fc"), embedding, config.classes, Init::PyTorch, bias)?;
        let spec = network_spec(name, config, maps, embedding);
        Ok(Self { spec, stem, groups, norm, classifier })
    }
}

impl Network for WideResNet {
    fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    fn stage_norms(&self) -> retort_nn::Result<Option<Vec<StageNorm>>> {
        let next = self.groups[1..].iter().map(|group| group.first().map(|block| block.norm.stage_norm()));
        Ok(next.chain([Some(self.norm.stage_norm())]).collect())
    }

    fn classifier(&self) -> Option<&Linear> {
        Some(&self.classifier)
    }

    fn forward(&self, images: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<Outputs> {
        check_images(&self.spec, images)?;
        let mut shown = Shown::new(taps);
        let mut x = self.stem.forward(&FeatureMap::from_tensor(images)?)?;
        shown.stem(&x)?;
        for (group, blocks) in self.groups.iter().enumerate() {
            for (index, block) in blocks.iter().enumerate() {
                // The first normalisation of a group is the pre-activation of the group before it; f0 has none.
                let normalise = |activation| block.norm.forward(&x, mode, activation);
                let activated =
                    if group > 0 && index == 0 { shown.activated(normalise)? } else { normalise(Activation::Relu)? };
                x = block.forward(&x, &activated, mode)?;
            }
            shown.map(&x)?;
        }
        let activated = shown.activated(|activation| self.norm.forward(&x, mode, activation))?;
        let embedding = activated.global_avg_pool2d()?;
        Ok(shown.outputs(self.classifier.forward(&embedding)?, embedding))
    }
}

/// `shortcut + conv2(relu(bn2(conv1(a))))` for `a = relu(norm(x))`.
struct PreActivationBlock {
    norm: BatchNorm,
    /// `conv1` and `bn2`.
    inner: ConvBatchNorm,
    last: Conv2d,
    shortcut: Option<Conv2d>,
}

impl PreActivationBlock {
    fn new(from: usize, to: usize, stride: usize, scope: &Scope) -> retort_nn::Result<Self> {
        let init = Init::KaimingNormalFanOut;
        let shortcut = match from == to {
            true => None,
            false => {
                let spec = Conv2dSpec::new(stride, 0);
                Some(Conv2d::new(&scope.child("convShortcut"), [to, from, 1, 1], spec, init)?)
            }
        };
        Ok(Self {
            norm: BatchNorm::new(&scope.child("bn1"), from)?,
            inner: ConvBatchNorm::new(scope, "conv1", "bn2", [to, from, 3, 3], Conv2dSpec::new(stride, 1), init)?,
            last: Conv2d::new(&scope.child("conv2"), [to, to, 3, 3], Conv2dSpec::new(1, 1), init)?,
            shortcut,
        })
    }

    /// `activated` is `relu(norm(x))`; the identity shortcut takes the raw `x`, the projection the activated one.
    fn forward(&self, x: &FeatureMap, activated: &FeatureMap, mode: Mode) -> retort_nn::Result<FeatureMap> {
        let y = self.inner.forward(activated, mode, Activation::Relu)?;
        match &self.shortcut {
            Some(projection) => self.last.forward_with(&y, Some(&projection.forward(activated)?), Activation::None),
            None => self.last.forward_with(&y, Some(x), Activation::None),
        }
    }
}
