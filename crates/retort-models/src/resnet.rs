//! Residual networks with the activation behind the addition (He et al. 2016, arXiv 1512.03385).

use crate::block::{Block, Blocks, ConvRelu, MaxPool, Tap, Trace};
use crate::common::{MOST_BLOCKS, MOST_CHANNELS, check_range, config_error};
use crate::staged::{Architecture, Shows, Site};
use crate::{ModelConfig, Result};
use retort_kernels::{Activation, Conv2dSpec, FeatureMap, Pool2dSpec};
use retort_nn::{BatchNorm, Conv2d, ConvBatchNorm, Init, Mode, Scope, StageNorm};

/// The residual branch of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1, 3x3 and 1x1 to four times the channels.
    Bottleneck,
}

impl Branch {
    /// Convolutions of one block.
    pub(crate) fn convolutions(self) -> usize {
        match self {
            Self::Basic => 2,
            Self::Bottleneck => 3,
        }
    }

    /// Output channels over nominal channels.
    pub(crate) fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }

    /// Kernel, stride, inputs and outputs of each convolution; the stride sits in the first 3x3.
    pub(crate) fn rows(self, from: usize, narrow: usize, stride: usize) -> Vec<(usize, usize, usize, usize)> {
        match self {
            Self::Basic => vec![(3, stride, from, narrow), (3, 1, narrow, narrow)],
            Self::Bottleneck => vec![(1, 1, from, narrow), (3, stride, narrow, narrow), (1, 1, narrow, 4 * narrow)],
        }
    }

    /// Blocks of each of three stages for a depth of `6n + 2` (basic) or `9n + 2` (bottleneck).
    pub(crate) fn blocks_of_depth(self, model: &str, depth: usize) -> Result<usize> {
        let per_block = 3 * self.convolutions();
        match depth.checked_sub(2) {
            Some(rest) if (1..=MOST_BLOCKS).contains(&(rest / per_block)) && rest.is_multiple_of(per_block) => {
                Ok(rest / per_block)
            }
            _ => {
                let rule = format!("depth must be {per_block}n + 2 with n from 1 to {MOST_BLOCKS}");
                Err(config_error(model, format!("{rule}, found {depth}")))
            }
        }
    }
}

/// One stage: a row of the paper's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Channels before expansion.
    pub channels: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Stride of the first block.
    pub stride: usize,
}

/// One block of a stage.
pub(crate) struct BlockRow {
    pub(crate) index: usize,
    /// Channels that it is fed with.
    pub(crate) inputs: usize,
    pub(crate) stride: usize,
}

impl Stage {
    /// The blocks of the stage at a site: the first one changes channels and size, the others keep them.
    pub(crate) fn blocks_at(&self, site: &Site, branch: Branch) -> impl Iterator<Item = BlockRow> {
        let first = BlockRow { index: 0, inputs: site.inputs, stride: if site.keeps_size { 1 } else { self.stride } };
        let inputs = self.channels * branch.expansion();
        let later = (1..site.blocks.unwrap_or(self.blocks)).map(move |index| BlockRow { index, inputs, stride: 1 });
        std::iter::once(first).chain(later)
    }

    /// Stages with stride 1, then 2.
    pub(crate) fn rows(channels: &[usize], blocks: &[usize]) -> Vec<Self> {
        let row = |(i, (&channels, &blocks))| Self { channels, blocks, stride: if i == 0 { 1 } else { 2 } };
        channels.iter().zip(blocks).enumerate().map(row).collect()
    }

    /// Refuses an empty row, zeros and absurd numbers.
    pub(crate) fn check(stages: &[Self], model: &str) -> Result<()> {
        check_range(model, MOST_BLOCKS, [("number of stages", stages.len())])?;
        for stage in stages {
            check_range(model, MOST_CHANNELS, [("channels", stage.channels)])?;
            check_range(model, MOST_BLOCKS, [("blocks", stage.blocks), ("stride", stage.stride)])?;
        }
        Ok(())
    }
}

/// Refuses the window of a stem that would not keep the place of a pixel.
pub(crate) fn check_window(model: &str, kernel: usize, stride: usize) -> Result<()> {
    check_range(model, 255, [("stem kernel", kernel), ("stem stride", stride)])?;
    match kernel.is_multiple_of(2) {
        true => Err(config_error(model, format!("stem kernel must be odd, found {kernel}"))),
        false => Ok(()),
    }
}

/// From the image to f0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResNetStem {
    /// Output channels.
    pub channels: usize,
    /// Width of the window, odd, at most 255.
    pub kernel: usize,
    /// Its step.
    pub stride: usize,
    /// Whether a ReLU follows the batch norm (MixSKD's code leaves it out).
    pub activated: bool,
    /// Whether a 3x3 pooling of stride 2 stands between f0 and the first stage.
    pub pooled: bool,
}

impl ResNetStem {
    /// 3x3, stride 1, no pooling: for small images.
    #[must_use]
    pub fn small(channels: usize) -> Self {
        Self { channels, kernel: 3, stride: 1, activated: true, pooled: false }
    }

    /// 7x7, stride 2, pooling: for ImageNet.
    #[must_use]
    pub fn imagenet() -> Self {
        Self { channels: 64, kernel: 7, stride: 2, activated: true, pooled: true }
    }
}

/// The 1x1 convolution of a shortcut whose shape changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Its key in the block: `downsample` or `shortcut`.
    pub key: &'static str,
    /// Whether a batch norm follows.
    pub normalised: bool,
}

/// A residual network: stem, stages, global average, linear classifier.
///
/// A block is `relu(branch(x) + shortcut(x))`, with batch norm behind every convolution and ReLU behind all but the
/// last; the shortcut is a projection where the shape changes. f0 is the stem, f1 .. are the stages after the ReLU; a
/// pre-activation is the sum before it.
///
/// Keys: `conv1.weight`, `bn1.*`, `layer{L}.{b}.conv{1,2,3}.weight`, `layer{L}.{b}.bn{1,2,3}.*`,
/// `layer{L}.0.{downsample,shortcut}.{0,1}.*`, `{fc,linear}.*`. Convolutions start with the fan-out normal rule unless
/// it is said otherwise, the classifier with PyTorch's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResNetConfig {
    /// Kind of block.
    pub branch: Branch,
    /// From the image to f0.
    pub stem: ResNetStem,
    /// The stages, in order.
    pub stages: Vec<Stage>,
    /// The shortcuts' convolutions.
    pub projection: Projection,
    /// Key of the classifier.
    pub classifier: &'static str,
    /// Convolutions start with PyTorch's default instead of the fan-out normal rule.
    pub pytorch_init: bool,
    /// The last batch norm of every block starts at weight 0, so that the block starts as its shortcut.
    pub zero_init_residual: bool,
}

const DOWNSAMPLE: Projection = Projection { key: "downsample", normalised: true };
const SHORTCUT: Projection = Projection { key: "shortcut", normalised: true };

impl ResNetConfig {
    /// `resnet8` .. `resnet110`, `resnet8x4`, `resnet32x4`: three stages; `channels` are those of the stem and the
    /// stages (before expansion), `depth` is `6n + 2` with basic blocks and `9n + 2` with bottlenecks.
    ///
    /// # Errors
    ///
    /// A depth that no number of blocks gives.
    pub fn cifar(depth: usize, branch: Branch, channels: [usize; 4]) -> Result<Self> {
        let blocks = branch.blocks_of_depth(&format!("resnet{depth}"), depth)?;
        Ok(Self {
            branch,
            stem: ResNetStem::small(channels[0]),
            stages: Stage::rows(&channels[1..], &[blocks; 3]),
            projection: DOWNSAMPLE,
            classifier: "fc",
            pytorch_init: false,
            zero_init_residual: false,
        })
    }

    /// The trunk that cGAN-KD regresses with, for images of 64 pixels: [`ResNetConfig::cifar`] with basic blocks whose
    /// first stage halves the map too (Ding et al. 2023, arXiv 2104.03164). The head that follows there is no part of
    /// it.
    ///
    /// # Errors
    ///
    /// As for [`ResNetConfig::cifar`].
    pub fn regression(depth: usize, channels: [usize; 4]) -> Result<Self> {
        let mut config = Self::cifar(depth, Branch::Basic, channels)?;
        config.stages[0].stride = 2;
        Ok(config)
    }

    /// `ResNet18`, `ResNet34`, `ResNet50`: the four stages of the ImageNet networks behind a stem for small images.
    #[must_use]
    pub fn wide_cifar(branch: Branch, blocks: [usize; 4]) -> Self {
        Self {
            stem: ResNetStem::small(64),
            projection: SHORTCUT,
            classifier: "linear",
            ..Self::imagenet(branch, blocks)
        }
    }

    /// The ImageNet networks, with torchvision's keys.
    #[must_use]
    pub fn imagenet(branch: Branch, blocks: [usize; 4]) -> Self {
        Self {
            branch,
            stem: ResNetStem::imagenet(),
            stages: Stage::rows(&[64, 128, 256, 512], &blocks),
            projection: DOWNSAMPLE,
            classifier: "fc",
            pytorch_init: false,
            zero_init_residual: false,
        }
    }

    /// The resnet110 of mutual contrastive learning, which is one of bottlenecks (Yang et al. 2022, arXiv 2104.12565).
    #[must_use]
    pub fn mutual_contrastive_resnet110() -> Self {
        Self {
            stem: ResNetStem::small(16),
            stages: Stage::rows(&[16, 32, 64], &[12; 3]),
            classifier: "classifier",
            ..Self::imagenet(Branch::Bottleneck, [12; 4])
        }
    }

    /// The 50 layers of the self-distillation code bases: projections are bare convolutions, all layers start with
    /// PyTorch's default.
    #[must_use]
    pub fn self_distillation_resnet50() -> Self {
        Self {
            projection: Projection { key: "shortcut", normalised: false },
            classifier: "fc",
            pytorch_init: true,
            ..Self::wide_cifar(Branch::Bottleneck, [3, 4, 6, 3])
        }
    }

    /// The 18 layers below MixSKD's heads: no ReLU between the stem and the first stage (Yang et al. 2022, arXiv
    /// 2208.05768).
    #[must_use]
    pub fn mixskd_backbone() -> Self {
        Self {
            stem: ResNetStem { activated: false, ..ResNetStem::small(64) },
            ..Self::imagenet(Branch::Basic, [2, 2, 2, 2])
        }
    }

    /// The encoder of Squeeze-and-Span for small images: torchvision's 18 layers with a 3x3 stem of stride 1, no
    /// pooling, and blocks that start as their shortcuts.
    #[must_use]
    pub fn squeeze_and_span() -> Self {
        Self { stem: ResNetStem::small(64), zero_init_residual: true, ..Self::imagenet(Branch::Basic, [2, 2, 2, 2]) }
    }

    fn init(&self) -> Init {
        if self.pytorch_init { Init::PyTorch } else { Init::KaimingNormalFanOut }
    }
}

impl Architecture for ResNetConfig {
    fn check(&self, model: &str, _config: &ModelConfig) -> Result<()> {
        let ResNetStem { channels, kernel, stride, .. } = self.stem;
        check_range(model, MOST_CHANNELS, [("stem channels", channels)])?;
        check_window(model, kernel, stride)?;
        Stage::check(&self.stages, model)
    }

    fn shows(&self) -> Shows {
        Shows::Ends
    }

    fn groups(&self) -> usize {
        self.stages.len()
    }

    fn stem(&self, inputs: usize, scope: &Scope) -> Result<Blocks> {
        let ResNetStem { channels, kernel, stride, activated, .. } = self.stem;
        let (shape, spec) = ([channels, inputs, kernel, kernel], Conv2dSpec::new(stride, kernel / 2));
        let unit = ConvBatchNorm::new(scope, "conv1", "bn1", shape, spec, self.init())?;
        Ok(vec![if activated { Box::new(ConvRelu(unit)) } else { Box::new(unit) }])
    }

    fn group(&self, site: &Site, scope: &Scope) -> Result<Blocks> {
        let stage = self.stages[site.group];
        let mut blocks = Blocks::new();
        if site.group == 0 && self.stem.pooled && !site.keeps_size {
            blocks.push(Box::new(MaxPool(Pool2dSpec::new(3, 2, 1))));
        }
        for row in stage.blocks_at(site, self.branch) {
            blocks.push(Box::new(self.block(row.inputs, stage.channels, row.stride, &scope.child(row.index))?));
        }
        Ok(blocks)
    }

    fn group_key(&self, group: usize) -> String {
        format!("layer{}", group + 1)
    }

    fn classifier_key(&self) -> &'static str {
        self.classifier
    }

    fn peer_key(&self, key: &str, peer: usize) -> String {
        format!("{}_{peer}", if key == "fc" { "classifier" } else { key })
    }
}

impl ResNetConfig {
    fn block(&self, from: usize, narrow: usize, stride: usize, scope: &Scope) -> Result<ResidualBlock> {
        let rows = self.branch.rows(from, narrow, stride);
        let mut convolutions = Vec::new();
        for (i, &(kernel, stride, inputs, outputs)) in rows.iter().enumerate() {
            let (conv, norm) = (scope.child(format!("conv{}", i + 1)), scope.child(format!("bn{}", i + 1)));
            let (shape, spec) = ([outputs, inputs, kernel, kernel], Conv2dSpec::new(stride, kernel / 2));
            let weight = if self.zero_init_residual && i + 1 == rows.len() { 0.0 } else { 1.0 };
            let norm = BatchNorm::with_weight(&norm, outputs, weight)?;
            convolutions.push(ConvBatchNorm::of(Conv2d::new(&conv, shape, spec, self.init())?, norm)?);
        }
        let to = narrow * self.branch.expansion();
        let shortcut = match stride != 1 || from != to {
            false => None,
            true => {
                Some(self.shortcut([to, from, 1, 1], Conv2dSpec::new(stride, 0), &scope.child(self.projection.key))?)
            }
        };
        let last = convolutions.pop().expect("a block has at least two convolutions");
        Ok(ResidualBlock { inner: convolutions, last, shortcut })
    }

    fn shortcut(&self, shape: [usize; 4], spec: Conv2dSpec, scope: &Scope) -> Result<Box<dyn Block>> {
        Ok(match self.projection.normalised {
            true => Box::new(ConvBatchNorm::new(scope, "0", "1", shape, spec, self.init())?),
            false => Box::new(Conv2d::new(&scope.child("0"), shape, spec, self.init())?),
        })
    }
}

/// `relu(branch(x) + shortcut(x))`; the branch is a chain of convolutions, each but the last followed by ReLU.
struct ResidualBlock {
    inner: Vec<ConvBatchNorm>,
    last: ConvBatchNorm,
    shortcut: Option<Box<dyn Block>>,
}

impl Block for ResidualBlock {
    /// The tap is the sum.
    fn forward(&self, x: &FeatureMap, mode: Mode, tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        let mut y = x.clone();
        for conv in &self.inner {
            y = conv.forward(&y, mode, Activation::Relu)?;
        }
        match &self.shortcut {
            Some(projection) => {
                let shortcut = projection.forward(x, mode, &mut Tap::default())?;
                tap.relu(|activation| self.last.forward_add(&y, &shortcut, mode, activation))
            }
            None => tap.relu(|activation| self.last.forward_add(&y, x, mode, activation)),
        }
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        if let Some(projection) = &self.shortcut {
            trace.beside(|trace| projection.trace(trace))?;
        }
        self.inner.iter().chain([&self.last]).try_for_each(|conv| trace.conv(conv.conv()))
    }

    /// The last one of the branch; the shortcut's is left out.
    fn norm(&self) -> Option<StageNorm> {
        Some(self.last.stage_norm())
    }
}
