//! Networks that shuffle channels between groups: ShuffleNet (Zhang et al. 2018, arXiv 1707.01083) and ShuffleNetV2 (Ma
//! et al. 2018, arXiv 1807.11164), for small images as in RepDistiller.

use crate::block::{Block, Blocks, ConvRelu, NormRelu, Tap, Trace};
use crate::common::{MOST_BLOCKS, MOST_CHANNELS, check_range, config_error};
use crate::staged::{Architecture, Shows, Site};
use crate::{ModelConfig, Result};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap, Pool2dSpec};
use retort_nn::{BatchNorm, Conv2d, ConvBatchNorm, Init, Mode, Scope};

/// Channels of the stem.
const STEM: usize = 24;
/// `conv1` and `bn1`, stride 1.
fn stem(kernel: usize, inputs: usize, scope: &Scope) -> Result<Blocks> {
    let (shape, spec) = ([STEM, inputs, kernel, kernel], Conv2dSpec::new(1, kernel / 2));
    Ok(vec![Box::new(ConvRelu(ConvBatchNorm::new(scope, "conv1", "bn1", shape, spec, Init::PyTorch)?))])
}

/// `conv{i}` and `bn{i}`.
fn unit(scope: &Scope, i: usize, shape: [usize; 4], spec: Conv2dSpec, init: Init) -> Result<ConvBatchNorm> {
    Ok(ConvBatchNorm::new(scope, &format!("conv{i}"), &format!("bn{i}"), shape, spec, init)?)
}

/// `conv{i}` and `bn{i}` with a 3x3 window for each channel.
fn depthwise(scope: &Scope, i: usize, channels: usize, stride: usize, init: Init) -> Result<ConvBatchNorm> {
    unit(scope, i, [channels, 1, 3, 3], Conv2dSpec::new(stride, 1).with_groups(channels), init)
}

/// Channel `i` of group `g` becomes channel `g` of group `i`.
fn shuffled(x: &FeatureMap, groups: usize) -> retort_nn::Result<FeatureMap> {
    if groups == 1 {
        return Ok(x.clone());
    }
    Ok(x.through_tensor(|x| {
        let (batch, channels, height, width) = x.dims4()?;
        let grouped = x.reshape((batch, groups, channels / groups, height, width))?;
        Ok(grouped.transpose(1, 2)?.contiguous()?.reshape(x.shape())?)
    })?)
}

/// The channels of both, one after the other.
fn joined(a: &Tensor, b: &FeatureMap) -> retort_nn::Result<FeatureMap> {
    Ok(FeatureMap::from_tensor(&Tensor::cat(&[a, &b.to_tensor()?], 1)?)?)
}

/// The shuffle of two joined halves: the channels of both in turn.
fn interleaved(a: &Tensor, b: &FeatureMap) -> retort_nn::Result<FeatureMap> {
    let (batch, channels, height, width) = a.dims4()?;
    let pairs = Tensor::stack(&[a, &b.to_tensor()?], 2)?;
    Ok(FeatureMap::from_tensor(&pairs.reshape((batch, 2 * channels, height, width))?)?)
}

/// ShuffleNet: a 1x1 stem of 24 channels, three stages that halve the map, global average, linear classifier.
///
/// A block is a grouped 1x1 convolution to a quarter of its output channels, channel shuffle, a depthwise 3x3
/// convolution and a grouped 1x1 one, and ends with `relu(branch + x)`; the first block of a stage with
/// `relu(cat[branch, pooled x])`, pooled by the mean of 3x3 windows whose border counts (divisor 9).
/// f0 is the stem and f1 .. f3 are the stages after the ReLU; a pre-activation is the sum or concatenation before it.
///
/// Keys: `conv1`, `bn1`, `layer{L}.{b}.conv{1,2,3}`, `layer{L}.{b}.bn{1,2,3}`, `linear`. All layers start with
/// PyTorch's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShuffleNetV1Config {
    /// Channels of the stages; each must exceed that of the stage before, the first one the stem's 24.
    pub out_planes: [usize; 3],
    /// Blocks of each stage.
    pub blocks: [usize; 3],
    /// Groups of the 1x1 convolutions; the one that reads 24 channels always has 1.
    pub groups: usize,
}

impl ShuffleNetV1Config {
    /// `ShuffleV1`: 240, 480, 960 channels, 4, 8, 4 blocks, 3 groups.
    #[must_use]
    pub fn cifar() -> Self {
        Self { out_planes: [240, 480, 960], blocks: [4, 8, 4], groups: 3 }
    }

    /// Channels of the branch and whether the block halves the map, for block `index` of a stage fed with `from`
    /// channels.
    fn branch(&self, model: &str, site: &Site, index: usize, from: usize) -> Result<(usize, bool)> {
        let to = self.out_planes[site.group];
        let halves = index == 0 && !site.keeps_size;
        let branch = if halves { to.saturating_sub(from) } else { to };
        if branch == 0 {
            let message = format!("out_planes must grow from stage to stage, found {to} behind {from} channels");
            return Err(config_error(model, message));
        }
        if !halves && from != to {
            let message = format!("a stage that keeps the size must keep the {from} channels, found {to}");
            return Err(config_error(model, message));
        }
        let mut grouped = vec![branch / 4, branch];
        if first_groups(from, self.groups) != 1 {
            grouped.push(from);
        }
        let groups = self.groups;
        match grouped.into_iter().find(|&size| size == 0 || !size.is_multiple_of(groups)) {
            Some(size) => {
                let stage = format!("a stage of {to} behind {from} channels");
                Err(config_error(model, format!("channels must split into {groups} groups, found {size} in {stage}")))
            }
            None => Ok((branch, halves)),
        }
    }
}

/// Groups of the first convolution of a block.
fn first_groups(inputs: usize, groups: usize) -> usize {
    if inputs == STEM { 1 } else { groups }
}

impl Architecture for ShuffleNetV1Config {
    fn check(&self, model: &str, config: &ModelConfig) -> Result<()> {
        check_range(model, MOST_CHANNELS, self.out_planes.map(|channels| ("out_planes", channels)))?;
        check_range(model, MOST_BLOCKS, self.blocks.map(|blocks| ("blocks", blocks)))?;
        check_range(model, MOST_CHANNELS, [("groups", self.groups)])?;
        let mut from = STEM;
        for group in 0..3 {
            let site = Site::new(group, from, config.image);
            for index in 0..self.blocks[group].min(2) {
                self.branch(model, &site, index, from)?;
                from = self.out_planes[group];
            }
        }
        Ok(())
    }

    fn shows(&self) -> Shows {
        Shows::Ends
    }

    fn groups(&self) -> usize {
        3
    }

    fn stem(&self, inputs: usize, scope: &Scope) -> Result<Blocks> {
        stem(1, inputs, scope)
    }

    fn group(&self, site: &Site, scope: &Scope) -> Result<Blocks> {
        let init = site.init.unwrap_or(Init::PyTorch);
        let mut blocks = Blocks::new();
        let mut from = site.inputs;
        for index in 0..site.blocks.unwrap_or(self.blocks[site.group]) {
            let (branch, halves) = self.branch("ShuffleNetV1", site, index, from)?;
            blocks.push(Box::new(self.block([from, branch], halves, &scope.child(index), init)?));
            from = self.out_planes[site.group];
        }
        Ok(blocks)
    }

    fn group_key(&self, group: usize) -> String {
        format!("layer{}", group + 1)
    }

    fn classifier_key(&self) -> &'static str {
        "linear"
    }
}

impl ShuffleNetV1Config {
    fn block(&self, [from, branch]: [usize; 2], halves: bool, scope: &Scope, init: Init) -> Result<GroupedBlock> {
        let (narrow, groups) = (branch / 4, first_groups(from, self.groups));
        let pointwise = |i, inputs, outputs, groups| {
            unit(scope, i, [outputs, inputs / groups, 1, 1], Conv2dSpec::default().with_groups(groups), init)
        };
        Ok(GroupedBlock {
            reduce: pointwise(1, from, narrow, groups)?,
            groups,
            depthwise: depthwise(scope, 2, narrow, if halves { 2 } else { 1 }, init)?,
            expand: pointwise(3, narrow, branch, self.groups)?,
            halves,
        })
    }
}

/// The 3x3 means beside the branch of a block that halves the map.
const POOLING: Pool2dSpec = Pool2dSpec { kernel: [3; 2], stride: [2; 2], padding: [1; 2] };

/// A block of ShuffleNet.
struct GroupedBlock {
    reduce: ConvBatchNorm,
    /// Groups of `reduce`.
    groups: usize,
    depthwise: ConvBatchNorm,
    expand: ConvBatchNorm,
    halves: bool,
}

impl Block for GroupedBlock {
    /// The tap is the sum or the concatenation.
    fn forward(&self, x: &FeatureMap, mode: Mode, tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        let y = shuffled(&self.reduce.forward(x, mode, Activation::Relu)?, self.groups)?;
        let y = self.depthwise.forward(&y, mode, Activation::Relu)?;
        if !self.halves {
            return tap.relu(|activation| self.expand.forward_add(&y, x, mode, activation));
        }
        let pooled = x.avg_pool2d(&POOLING, true)?;
        // The means are those of an activated map: the ReLU would change nothing about them.
        tap.relu(|activation| joined(&self.expand.forward(&y, mode, activation)?.to_tensor()?, &pooled))
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        let inputs = trace.shape.channels;
        [&self.reduce, &self.depthwise, &self.expand].into_iter().try_for_each(|unit| trace.conv(unit.conv()))?;
        if self.halves {
            trace.shape.channels += inputs;
        }
        Ok(())
    }
}

/// ShuffleNetV2: a stem of 24 channels, three stages that halve the map, a 1x1 convolution, global average, linear
/// classifier.
///
/// A stage begins with a block of two convolved halves (a depthwise 3x3 convolution of stride 2 and a 1x1 one, the
/// right half behind another 1x1 one) and goes on with blocks that convolve the second half of their channels and leave
/// the first; each block ends with a channel shuffle of the two halves.
/// f0 is the stem and f1 .. f3 are the stages behind the shuffle; a pre-activation is the concatenation of the
/// untouched half and the last batch norm, before ReLU **and shuffle**, so its channels have another order than the
/// feature's.
///
/// Keys: `conv1`, `bn1`, `layer{L}.0.conv{1..5}`, `layer{L}.0.bn{1..5}` (left 1 and 2, right 3 to 5),
/// `layer{L}.{b}.conv{1,2,3}`, `layer{L}.{b}.bn{1,2,3}`, `conv2`, `bn2`, `linear`. All layers start with PyTorch's
/// default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShuffleNetV2Config {
    /// Channels of the stages, even.
    pub out_planes: [usize; 3],
    /// Channels of the last convolution.
    pub last: usize,
    /// Blocks of each stage behind the one that halves the map.
    pub blocks: [usize; 3],
    /// Width of the stem's window: 1, or 3 in MCL and L-MCL.
    pub stem_kernel: usize,
}

/// Net size, channels of the stages and of the last convolution, blocks of the second stage.
const SIZES: [(f64, [usize; 3], usize, usize); 6] = [
    (0.2, [40, 80, 160], 512, 3),
    (0.3, [40, 80, 160], 512, 7),
    (0.5, [48, 96, 192], 1024, 7),
    (1.0, [116, 232, 464], 1024, 7),
    (1.5, [176, 352, 704], 1024, 7),
    (2.0, [224, 488, 976], 2048, 7),
];

impl ShuffleNetV2Config {
    /// The network of a net size (0.2, 0.3, 0.5, 1, 1.5 or 2) with a stem of 1x1 or 3x3.
    ///
    /// # Errors
    ///
    /// Another net size or stem.
    pub fn of_size(net_size: f64, stem_kernel: usize) -> Result<Self> {
        let model = "ShuffleNetV2";
        let Some(&(_, out_planes, last, middle)) = SIZES.iter().find(|row| row.0 == net_size) else {
            let known = SIZES.map(|row| row.0.to_string()).join(", ");
            return Err(config_error(model, format!("net_size must be one of {known}, found {net_size}")));
        };
        let family = Self { out_planes, last, blocks: [3, middle, 3], stem_kernel };
        family.check_ranges(model)?;
        Ok(family)
    }

    fn check_ranges(&self, model: &str) -> Result<()> {
        check_range(model, MOST_CHANNELS, self.out_planes.map(|channels| ("out_planes", channels)))?;
        check_range(model, MOST_CHANNELS, [("last channels", self.last)])?;
        check_range(model, MOST_BLOCKS, self.blocks.map(|blocks| ("blocks", blocks)))?;
        if let Some(odd) = self.out_planes.iter().find(|channels| !channels.is_multiple_of(2)) {
            return Err(config_error(model, format!("out_planes must be even, found {odd}")));
        }
        match self.stem_kernel {
            1 | 3 => Ok(()),
            other => Err(config_error(model, format!("stem_kernel must be 1 or 3, found {other}"))),
        }
    }
}

impl Architecture for ShuffleNetV2Config {
    fn check(&self, model: &str, _config: &ModelConfig) -> Result<()> {
        self.check_ranges(model)
    }

    fn shows(&self) -> Shows {
        Shows::Ends
    }

    fn groups(&self) -> usize {
        3
    }

    fn stem(&self, inputs: usize, scope: &Scope) -> Result<Blocks> {
        stem(self.stem_kernel, inputs, scope)
    }

    fn group(&self, site: &Site, scope: &Scope) -> Result<Blocks> {
        let half = self.out_planes[site.group] / 2;
        let stride = if site.keeps_size { 1 } else { 2 };
        let init = site.init.unwrap_or(Init::PyTorch);
        let mut blocks: Blocks = vec![Box::new(DownBlock::new(site.inputs, half, stride, &scope.child(0), init)?)];
        for index in 1..=site.blocks.unwrap_or(self.blocks[site.group]) {
            blocks.push(Box::new(SplitBlock::new(half, &scope.child(index), init)?));
        }
        Ok(blocks)
    }

    fn group_key(&self, group: usize) -> String {
        format!("layer{}", group + 1)
    }

    fn tail_keys(&self) -> &'static [&'static str] {
        &["conv2", "bn2"]
    }

    fn tail(&self, inputs: usize, keys: &[Scope]) -> Result<Blocks> {
        let [conv, norm] = keys else { return Err(config_error("ShuffleNetV2", "the tail needs two keys")) };
        let shape = [self.last, inputs, 1, 1];
        Ok(vec![
            Box::new(Conv2d::new(conv, shape, Conv2dSpec::default(), Init::PyTorch)?),
            Box::new(NormRelu(BatchNorm::new(norm, self.last)?)),
        ])
    }

    fn classifier_key(&self) -> &'static str {
        "linear"
    }
}

/// Two convolved halves of the whole input.
struct DownBlock {
    left: [ConvBatchNorm; 2],
    right: [ConvBatchNorm; 3],
}

impl DownBlock {
    fn new(from: usize, half: usize, stride: usize, scope: &Scope, init: Init) -> Result<Self> {
        let pointwise = |i, inputs| unit(scope, i, [half, inputs, 1, 1], Conv2dSpec::default(), init);
        Ok(Self {
            left: [depthwise(scope, 1, from, stride, init)?, pointwise(2, from)?],
            right: [pointwise(3, from)?, depthwise(scope, 4, half, stride, init)?, pointwise(5, half)?],
        })
    }
}

impl Block for DownBlock {
    fn forward(&self, x: &FeatureMap, mode: Mode, _tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        let left = self.left[0].forward(x, mode, Activation::None)?;
        let left = self.left[1].forward(&left, mode, Activation::Relu)?;
        let right = convolved(&self.right, x, mode, Activation::Relu)?;
        interleaved(&left.to_tensor()?, &right)
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        trace.beside(|trace| self.left.iter().try_for_each(|unit| trace.conv(unit.conv())))?;
        self.right.iter().try_for_each(|unit| trace.conv(unit.conv()))?;
        trace.shape.channels *= 2;
        Ok(())
    }
}

/// A 1x1 convolution, a depthwise one without activation, and another 1x1 one with the given activation.
fn convolved(
    [first, depthwise, last]: &[ConvBatchNorm; 3],
    x: &FeatureMap,
    mode: Mode,
    activation: Activation,
) -> retort_nn::Result<FeatureMap> {
    let y = first.forward(x, mode, Activation::Relu)?;
    last.forward(&depthwise.forward(&y, mode, Activation::None)?, mode, activation)
}

/// One half left alone, the other convolved.
struct SplitBlock {
    half: usize,
    convolutions: [ConvBatchNorm; 3],
}

impl SplitBlock {
    fn new(half: usize, scope: &Scope, init: Init) -> Result<Self> {
        let pointwise = |i| unit(scope, i, [half, half, 1, 1], Conv2dSpec::default(), init);
        Ok(Self { half, convolutions: [pointwise(1)?, depthwise(scope, 2, half, 1, init)?, pointwise(3)?] })
    }
}

impl Block for SplitBlock {
    /// The tap is the concatenation before ReLU and shuffle.
    fn forward(&self, x: &FeatureMap, mode: Mode, tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        let x = x.to_tensor()?;
        let left = x.narrow(1, 0, self.half)?.contiguous()?;
        let right = FeatureMap::from_tensor(&x.narrow(1, self.half, self.half)?)?;
        let right = tap.relu_within(
            |activation| convolved(&self.convolutions, &right, mode, activation),
            |right| joined(&left, right),
        )?;
        interleaved(&left, &right)
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        trace.shape.channels = self.half;
        self.convolutions.iter().try_for_each(|unit| trace.conv(unit.conv()))?;
        trace.shape.channels = 2 * self.half;
        Ok(())
    }
}
