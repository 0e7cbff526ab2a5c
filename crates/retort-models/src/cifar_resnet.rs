//! Residual networks for small images (He et al. 2016, arXiv 1512.03385, section 4.2).

use crate::common::{Shown, area, check_images, check_sizes, config_error, halved, map, network_spec};
use crate::{ModelConfig, Result};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap};
use retort_nn::{ConvBatchNorm, Init, Linear, MapShape, Mode, Network, NetworkSpec, Outputs, Scope, StageNorm, Taps};

/// The residual branch of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Two 3x3 convolutions; depth `6n + 2`.
    Basic,
    /// 1x1, 3x3 and 1x1 to four times the channels; depth `9n + 2`.
    Bottleneck,
}

impl Block {
    /// Convolutions of one block.
    fn convolutions(self) -> usize {
        match self {
            Self::Basic => 2,
            Self::Bottleneck => 3,
        }
    }

    /// Output channels over nominal channels.
    fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// Depth, block and channels of stem and stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CifarResNetConfig {
    /// `6n + 2` with basic blocks, `9n + 2` with bottlenecks.
    pub depth: usize,
    /// Kind of block.
    pub block: Block,
    /// Channels of the stem and of the three stages (before expansion).
    pub channels: [usize; 4],
}

impl CifarResNetConfig {
    /// Blocks n of each stage.
    fn blocks(&self, model: &str) -> Result<usize> {
        let per_block = 3 * self.block.convolutions();
        match self.depth.checked_sub(2) {
            Some(rest) if rest > 0 && rest.is_multiple_of(per_block) => Ok(rest / per_block),
            _ => Err(config_error(model, format!("depth must be {per_block}n + 2 with n >= 1, found {}", self.depth))),
        }
    }

    /// Shapes of f0 .. f3 for this input.
    fn maps(&self, model: &str, config: &ModelConfig) -> Result<Vec<MapShape>> {
        check_sizes(model, config, &self.channels)?;
        let second = halved(config.image);
        let wide = |stage: usize| self.channels[stage] * self.block.expansion();
        Ok(vec![
            map(self.channels[0], config.image),
            map(wide(1), config.image),
            map(wide(2), second),
            map(wide(3), halved(second)),
        ])
    }

    /// Multiply-adds of convolutions and classifier for one image.
    pub(crate) fn multiply_adds(&self, model: &str, config: &ModelConfig) -> Result<usize> {
        let (blocks, maps) = (self.blocks(model)?, self.maps(model, config)?);
        let mut total = area(&maps[0]) * 9 * config.in_channels * maps[0].channels;
        for stage in 1..4 {
            let (input, output, narrow) = (maps[stage - 1], maps[stage], self.channels[stage]);
            for block in 0..blocks {
                let (from, before) = if block == 0 { (input.channels, input) } else { (output.channels, output) };
                total += match self.block {
                    Block::Basic => area(&output) * 9 * (from * narrow + narrow * narrow),
                    Block::Bottleneck => {
                        area(&before) * from * narrow + area(&output) * (9 * narrow * narrow + narrow * output.channels)
                    }
                };
                if block == 0 && has_projection(stage, from, output.channels) {
                    total += area(&output) * from * output.channels;
                }
            }
        }
        Ok(total + maps[3].channels * config.classes)
    }
}

/// The shortcut of a stage's first block is a projection where the shape changes.
fn has_projection(stage: usize, from: usize, to: usize) -> bool {
    stage > 1 || from != to
}

/// `resnet8` .. `resnet110`, `resnet8x4`, `resnet32x4`: stem, three stages with strides 1, 2, 2, global average, linear classifier.
///
/// Keys: `conv1.weight`, `bn1.*`, `layer{1,2,3}.{b}.conv{1,2}.weight`, `layer{L}.{b}.bn{1,2}.*`,
/// `layer{L}.0.downsample.{0,1}.*`, `fc.*`. Convolutions start with the fan-out normal rule, `fc` with PyTorch's default.
pub struct CifarResNet {
    spec: NetworkSpec,
    stem: ConvBatchNorm,
    stages: Vec<Vec<ResidualBlock>>,
    classifier: Linear,
}

impl CifarResNet {
    /// Declares all parameters in `scope`; `name` appears in the spec and in errors.
    ///
    /// # Errors
    ///
    /// A depth that no number of blocks gives, sizes of zero, or weights that do not fit.
    pub fn new(name: &str, family: &CifarResNetConfig, config: &ModelConfig, scope: &Scope) -> Result<Self> {
        let (blocks, maps) = (family.blocks(name)?, family.maps(name, config)?);
        let stem_shape = [maps[0].channels, config.in_channels, 3, 3];
        let stem =
            ConvBatchNorm::new(scope, "conv1", "bn1", stem_shape, Conv2dSpec::new(1, 1), Init::KaimingNormalFanOut)?;
        let mut stages = Vec::new();
        for stage in 1..4 {
            let scope = scope.child(format!("layer{stage}"));
            let mut from = maps[stage - 1].channels;
            let mut built = Vec::new();
            for index in 0..blocks {
                let stride = if stage > 1 && index == 0 { 2 } else { 1 };
                let projection = index == 0 && has_projection(stage, from, maps[stage].channels);
                let shape =
                    BlockShape { from, narrow: family.channels[stage], to: maps[stage].channels, stride, projection };
                built.push(ResidualBlock::new(family.block, &shape, &scope.child(index))?);
                from = maps[stage].channels;
            }
            stages.push(built);
        }
        let embedding = maps[3].channels;
        let classifier = Linear::new(&scope.child("fc"), embedding, config.classes)?;
        let spec = network_spec(name, config, maps, embedding);
        Ok(Self { spec, stem, stages, classifier })
    }
}

impl Network for CifarResNet {
    fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    fn stage_norms(&self) -> retort_nn::Result<Option<Vec<StageNorm>>> {
        Ok(self.stages.iter().map(|stage| stage.last().map(|block| block.last.stage_norm())).collect())
    }

    fn classifier(&self) -> Option<&Linear> {
        Some(&self.classifier)
    }

    fn forward(&self, images: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<Outputs> {
        check_images(&self.spec, images)?;
        let mut shown = Shown::new(taps);
        let mut x = self.stem.forward(&FeatureMap::from_tensor(images)?, mode, Activation::Relu)?;
        shown.stem(&x)?;
        for stage in &self.stages {
            let (last, inner) = stage.split_last().expect("a stage has at least one block");
            for block in inner {
                x = block.forward(&x, mode)?;
            }
            x = shown.stage(|activation| last.forward_with(&x, mode, activation))?;
        }
        let embedding = x.global_avg_pool2d()?;
        Ok(shown.outputs(self.classifier.forward(&embedding)?, embedding))
    }
}

struct BlockShape {
    from: usize,
    narrow: usize,
    to: usize,
    stride: usize,
    projection: bool,
}

/// `relu(branch(x) + shortcut(x))`; the branch is a chain of convolutions, each but the last followed by ReLU.
struct ResidualBlock {
    inner: Vec<ConvBatchNorm>,
    last: ConvBatchNorm,
    shortcut: Option<ConvBatchNorm>,
}

impl ResidualBlock {
    fn new(block: Block, shape: &BlockShape, scope: &Scope) -> retort_nn::Result<Self> {
        let &BlockShape { from, narrow, to, stride, projection } = shape;
        // (kernel, stride, inputs, outputs) of each convolution; the stride sits in the first 3x3.
        let rows: Vec<(usize, usize, usize, usize)> = match block {
            Block::Basic => vec![(3, stride, from, narrow), (3, 1, narrow, to)],
            Block::Bottleneck => vec![(1, 1, from, narrow), (3, stride, narrow, narrow), (1, 1, narrow, to)],
        };
        let mut convolutions = Vec::new();
        for (i, (kernel, stride, inputs, outputs)) in rows.into_iter().enumerate() {
            let (conv, norm) = (format!("conv{}", i + 1), format!("bn{}", i + 1));
            let spec = Conv2dSpec::new(stride, kernel / 2);
            let shape = [outputs, inputs, kernel, kernel];
            convolutions.push(ConvBatchNorm::new(scope, &conv, &norm, shape, spec, Init::KaimingNormalFanOut)?);
        }
        let shortcut = if projection {
            let (scope, spec) = (scope.child("downsample"), Conv2dSpec::new(stride, 0));
            Some(ConvBatchNorm::new(&scope, "0", "1", [to, from, 1, 1], spec, Init::KaimingNormalFanOut)?)
        } else {
            None
        };
        let last = convolutions.pop().expect("a block has at least two convolutions");
        Ok(Self { inner: convolutions, last, shortcut })
    }

    fn forward(&self, x: &FeatureMap, mode: Mode) -> retort_nn::Result<FeatureMap> {
        self.forward_with(x, mode, Activation::Relu)
    }

    /// The sum before the last ReLU is the pre-activation feature.
    fn forward_with(&self, x: &FeatureMap, mode: Mode, activation: Activation) -> retort_nn::Result<FeatureMap> {
        let mut y = x.clone();
        for conv in &self.inner {
            y = conv.forward(&y, mode, Activation::Relu)?;
        }
        match &self.shortcut {
            Some(projection) => {
                let shortcut = projection.forward(x, mode, Activation::None)?;
                self.last.forward_add(&y, &shortcut, mode, activation)
            }
            None => self.last.forward_add(&y, x, mode, activation),
        }
    }
}
