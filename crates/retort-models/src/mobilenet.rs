//! Networks of depthwise separable convolutions: MobileNet (Howard et al. 2017, arXiv 1704.04861) and MobileNetV2
//! (Sandler et al. 2018, arXiv 1801.04381).

use crate::block::{Block, Blocks, ConvRelu, Tap, Trace};
use crate::common::{MOST_BLOCKS, MOST_CHANNELS, check_range, config_error};
use crate::staged::{Architecture, Shows, Site};
use crate::{ModelConfig, Result};
use retort_kernels::{Activation, Conv2dSpec, FeatureMap};
use retort_nn::{ConvBatchNorm, Init, Linear, Mode, Scope, StageNorm};

/// A row of MobileNetV2's table: blocks of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvertedStage {
    /// Channels inside of a block over the channels before it, 1 to 64.
    pub expansion: usize,
    /// Output channels.
    pub channels: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Stride of the first block.
    pub stride: usize,
    /// Whether the map behind the row is a feature.
    pub shown: bool,
}

/// What differs between the code bases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvertedFlavour {
    /// RepDistiller and HSAKD: ReLU, bare convolutions, 3x3 stem; convolutions start with the fan-out normal rule (a
    /// depthwise one not divided by its groups), the classifier with N(0, 0.01^2) and bias 0.
    ///
    /// Keys: `conv1.{0,1}`, `blocks.{g}.{b}.conv.{0,1,3,4,6,7}`, `conv2.{0,1}`.
    Plain,
    /// mdistiller for Tiny-ImageNet: ReLU6, convolutions with bias, a 1x1 stem with padding 1 (which widens the map by
    /// two pixels), the last 1x1 convolution is a feature, the classifier is stored as a 1x1 convolution; all layers
    /// start with PyTorch's default.
    ///
    /// Keys: `pre.{0,1}`, `stage{g+1}.{b}.residual.{0,1,3,4,6,7}` (a row of one block has no `{b}`), `conv1.{0,1}`,
    /// `conv2.{weight,bias}`.
    Capped,
}

/// MobileNetV2: stem, rows of inverted residual blocks, 1x1 convolution, global average, linear classifier.
///
/// A block is a 1x1 convolution to `expansion` times the channels (also where that is 1), a depthwise 3x3 one and a 1x1
/// one to the output channels without activation; the input is added where the shape stays.
/// f0 is the stem after its ReLU, f1 .. are the sums behind the rows that are shown: they have no ReLU, so there are no
/// pre-activations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MobileNetV2Config {
    /// Which code base.
    pub flavour: InvertedFlavour,
    /// Channels of the stem.
    pub stem: usize,
    /// Stride of the stem, 1 or 2.
    pub stem_stride: usize,
    /// The rows, in order.
    pub stages: Vec<InvertedStage>,
    /// Channels of the last 1x1 convolution.
    pub last: usize,
    /// Key of the classifier.
    pub classifier: &'static str,
}

/// Expansion, channels, blocks and stride of each row for CIFAR, at full width.
const ROWS: [[usize; 4]; 7] =
    [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]];

/// The same for Tiny-ImageNet.
const TINY_ROWS: [[usize; 4]; 7] =
    [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 1], [6, 320, 1, 1]];

fn stages(rows: [[usize; 4]; 7], shown: &[usize]) -> Vec<InvertedStage> {
    let rows = rows.into_iter().enumerate();
    rows.map(|(i, [expansion, channels, blocks, stride])| {
        let shown = shown.contains(&i);
        InvertedStage { expansion, channels, blocks, stride, shown }
    })
    .collect()
}

impl MobileNetV2Config {
    /// RepDistiller's network: `expansion` (its T) is that of all rows but the first, from 1 to 64; `width` from 1/16
    /// to 16 scales stem and rows, truncating, and above 1 the last convolution, too; `stem_stride` is 1 or 2.
    ///
    /// `MobileNetV2` is `(6, 0.5, 2)`.
    ///
    /// # Errors
    ///
    /// A number out of its range.
    pub fn cifar(expansion: usize, width: f64, stem_stride: usize) -> Result<Self> {
        let model = "MobileNetV2";
        check_range(model, 64, [("expansion", expansion)])?;
        if !(1.0 / 16.0..=16.0).contains(&width) {
            return Err(config_error(model, format!("width must be from 1/16 to 16, found {width}")));
        }
        let scaled = |channels: usize| (channels as f64 * width) as usize;
        let mut stages = stages(ROWS, &[1, 2, 4, 6]);
        for (i, stage) in stages.iter_mut().enumerate() {
            stage.channels = scaled(stage.channels);
            stage.expansion = if i == 0 { 1 } else { expansion };
        }
        let last = if width > 1.0 { scaled(1280) } else { 1280 };
        let (flavour, stem, classifier) = (InvertedFlavour::Plain, scaled(32), "classifier.0");
        let family = Self { flavour, stem, stem_stride, stages, last, classifier };
        family.check_ranges(model)?;
        Ok(family)
    }

    /// HSAKD's form of the half-width network: the stem keeps the size, and the classifier is called `classifier`.
    #[must_use]
    pub fn hsakd() -> Self {
        let stages = stages(ROWS.map(|[t, channels, n, s]| [t, channels / 2, n, s]), &[1, 2, 4, 6]);
        let (flavour, classifier) = (InvertedFlavour::Plain, "classifier");
        Self { flavour, stem: 16, stem_stride: 1, stages, last: 1280, classifier }
    }

    /// mdistiller's network for Tiny-ImageNet.
    #[must_use]
    pub fn tiny_imagenet() -> Self {
        let (flavour, classifier) = (InvertedFlavour::Capped, "conv2");
        Self { flavour, stem: 32, stem_stride: 1, stages: stages(TINY_ROWS, &[1, 2, 3]), last: 1280, classifier }
    }

    fn check_ranges(&self, model: &str) -> Result<()> {
        check_range(model, MOST_CHANNELS, [("stem channels", self.stem), ("last channels", self.last)])?;
        check_range(model, 2, [("stem_stride", self.stem_stride)])?;
        check_range(model, MOST_BLOCKS, [("number of stages", self.stages.len())])?;
        for stage in &self.stages {
            check_range(model, MOST_CHANNELS, [("channels", stage.channels)])?;
            check_range(model, MOST_BLOCKS, [("blocks", stage.blocks), ("stride", stage.stride)])?;
            check_range(model, 64, [("expansion", stage.expansion)])?;
        }
        Ok(())
    }

    /// How the convolutions start.
    fn init(&self) -> Init {
        match self.flavour {
            InvertedFlavour::Plain => Init::KaimingNormalFanOut,
            InvertedFlavour::Capped => Init::PyTorch,
        }
    }

    /// A convolution with its batch norm; its weight starts by `init`.
    fn unit(
        &self,
        scope: &Scope,
        keys: [&str; 2],
        shape: [usize; 4],
        spec: Conv2dSpec,
        init: Init,
    ) -> Result<ConvBatchNorm> {
        Ok(match self.flavour {
            InvertedFlavour::Plain => ConvBatchNorm::new(scope, keys[0], keys[1], shape, spec, init)?,
            InvertedFlavour::Capped => {
                ConvBatchNorm::with_bias(scope, keys, shape, spec, [init, Init::pytorch_bias(&shape)])?
            }
        })
    }

    fn activated(&self, unit: ConvBatchNorm) -> Activated {
        Activated { unit, capped: self.flavour == InvertedFlavour::Capped }
    }

    /// The 1x1 convolution behind the rows, its two layers below `scope`.
    fn last(&self, inputs: usize, scope: &Scope) -> Result<Blocks> {
        let shape = [self.last, inputs, 1, 1];
        let unit = self.unit(scope, ["0", "1"], shape, Conv2dSpec::default(), self.init())?;
        Ok(vec![Box::new(self.activated(unit))])
    }

    /// A block from `from` channels inside of a row.
    fn block(
        &self,
        from: usize,
        stage: &InvertedStage,
        stride: usize,
        scope: &Scope,
        init: Init,
    ) -> Result<InvertedResidual> {
        let (to, inside) = (stage.channels, from.saturating_mul(stage.expansion));
        let pointwise = Conv2dSpec::default();
        let depthwise = Conv2dSpec::new(stride, 1).with_groups(inside);
        let expand = self.unit(scope, ["0", "1"], [inside, from, 1, 1], pointwise, init)?;
        let depthwise = self.unit(scope, ["3", "4"], [inside, 1, 3, 3], depthwise, init)?;
        Ok(InvertedResidual {
            expand: self.activated(expand),
            depthwise: self.activated(depthwise),
            project: self.unit(scope, ["6", "7"], [to, inside, 1, 1], pointwise, init)?,
            skips: stride == 1 && from == to,
        })
    }
}

/// In the capped flavour the last 1x1 convolution is the last group, in the plain one it is the tail.
impl Architecture for MobileNetV2Config {
    fn check(&self, model: &str, _config: &ModelConfig) -> Result<()> {
        self.check_ranges(model)
    }

    fn shows(&self) -> Shows {
        Shows::Nothing
    }

    fn groups(&self) -> usize {
        match self.flavour {
            InvertedFlavour::Plain => self.stages.len(),
            InvertedFlavour::Capped => self.stages.len() + 1,
        }
    }

    fn is_shown(&self, group: usize) -> bool {
        self.stages.get(group).is_none_or(|stage| stage.shown)
    }

    fn stem(&self, inputs: usize, scope: &Scope) -> Result<Blocks> {
        let (key, kernel) = match self.flavour {
            InvertedFlavour::Plain => ("conv1", 3),
            InvertedFlavour::Capped => ("pre", 1),
        };
        let (shape, spec) = ([self.stem, inputs, kernel, kernel], Conv2dSpec::new(self.stem_stride, 1));
        let unit = self.unit(&scope.child(key), ["0", "1"], shape, spec, self.init())?;
        Ok(vec![Box::new(self.activated(unit))])
    }

    fn group(&self, site: &Site, scope: &Scope) -> Result<Blocks> {
        let Some(stage) = self.stages.get(site.group) else { return self.last(site.inputs, scope) };
        let init = site.init.unwrap_or(self.init());
        let mut blocks = Blocks::new();
        let mut from = site.inputs;
        for index in 0..site.blocks.unwrap_or(stage.blocks) {
            let stride = if index == 0 && !site.keeps_size { stage.stride } else { 1 };
            let scope = match self.flavour {
                InvertedFlavour::Plain => scope.child(index).child("conv"),
                InvertedFlavour::Capped if stage.blocks == 1 => scope.child("residual"),
                InvertedFlavour::Capped => scope.child(index).child("residual"),
            };
            blocks.push(Box::new(self.block(from, stage, stride, &scope, init)?));
            from = stage.channels;
        }
        Ok(blocks)
    }

    fn group_key(&self, group: usize) -> String {
        match self.flavour {
            InvertedFlavour::Plain => format!("blocks.{group}"),
            InvertedFlavour::Capped if group == self.stages.len() => "conv1".into(),
            InvertedFlavour::Capped => format!("stage{}", group + 1),
        }
    }

    fn tail_keys(&self) -> &'static [&'static str] {
        match self.flavour {
            InvertedFlavour::Plain => &["conv2"],
            InvertedFlavour::Capped => &[],
        }
    }

    fn branch_tail_keys(&self, branch: usize, _groups: usize) -> Vec<String> {
        self.tail_keys().iter().map(|key| format!("{key}_{branch}")).collect()
    }

    fn tail(&self, inputs: usize, keys: &[Scope]) -> Result<Blocks> {
        keys.first().map_or(Ok(Blocks::new()), |key| self.last(inputs, key))
    }

    fn classifier_key(&self) -> &'static str {
        self.classifier
    }

    fn classifier(&self, inputs: usize, classes: usize, scope: &Scope) -> Result<Linear> {
        Ok(match self.flavour {
            InvertedFlavour::Plain => {
                let (weight, bias) = (Init::Normal { std: 0.01 }, Some(Init::Constant(0.0)));
                Linear::with_init(scope, inputs, classes, weight, bias)?
            }
            InvertedFlavour::Capped => Linear::pointwise(scope, inputs, classes)?,
        })
    }
}

/// `relu(bn(conv(x)))`, with ReLU6 where `capped`.
struct Activated {
    unit: ConvBatchNorm,
    capped: bool,
}

impl Activated {
    fn pass(&self, x: &FeatureMap, mode: Mode) -> retort_nn::Result<FeatureMap> {
        match self.capped {
            true => relu6(&self.unit.forward(x, mode, Activation::None)?),
            false => self.unit.forward(x, mode, Activation::Relu),
        }
    }
}

impl Block for Activated {
    fn forward(&self, x: &FeatureMap, mode: Mode, _tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        self.pass(x, mode)
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        trace.conv(self.unit.conv())
    }

    fn norm(&self) -> Option<StageNorm> {
        Some(self.unit.stage_norm())
    }
}

/// `min(max(x, 0), 6)`; the derivative is 1 inside of (0, 6) and 0 elsewhere, as in PyTorch.
fn relu6(x: &FeatureMap) -> retort_nn::Result<FeatureMap> {
    Ok(x.through_tensor(|x| {
        let inside = (x.gt(0.0)? * x.lt(6.0)?)?;
        Ok(inside.where_cond(x, &x.detach().clamp(0.0, 6.0)?)?)
    })?)
}

/// Wide inside, narrow at both ends, with the input added where the shape stays.
struct InvertedResidual {
    expand: Activated,
    depthwise: Activated,
    project: ConvBatchNorm,
    skips: bool,
}

impl Block for InvertedResidual {
    fn forward(&self, x: &FeatureMap, mode: Mode, _tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        let y = self.depthwise.pass(&self.expand.pass(x, mode)?, mode)?;
        match self.skips {
            true => self.project.forward_add(&y, x, mode, Activation::None),
            false => self.project.forward(&y, mode, Activation::None),
        }
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        [&self.expand.unit, &self.depthwise.unit, &self.project]
            .into_iter()
            .try_for_each(|unit| trace.conv(unit.conv()))
    }

    fn norm(&self) -> Option<StageNorm> {
        Some(self.project.stage_norm())
    }
}

/// A unit of MobileNet: a depthwise 3x3 convolution and a 1x1 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeparableUnit {
    /// Output channels.
    pub channels: usize,
    /// Stride of the depthwise convolution.
    pub stride: usize,
}

/// MobileNet: a 3x3 convolution of stride 2, separable units, global average, linear classifier; batch norm and ReLU
/// behind every convolution.
///
/// f0, f1, .. are the ends of the stages, so f0 is not the stem; a pre-activation is the last batch norm of its stage,
/// that of f0 among them, unlike in every other family.
///
/// Keys: `model.0.{0,1}` (stem), `model.{i}.{0,1,3,4}` (unit i from 1), `fc.*`. All layers start with PyTorch's
/// default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MobileNetV1Config {
    /// Channels of the first convolution.
    pub stem: usize,
    /// The units, split where the features are.
    pub stages: Vec<Vec<SeparableUnit>>,
}

impl MobileNetV1Config {
    /// The paper's network as mdistiller shows it: features behind units 3, 5, 11 and 13.
    #[must_use]
    pub fn imagenet() -> Self {
        let units = |rows: &[(usize, usize)]| {
            rows.iter().map(|&(channels, stride)| SeparableUnit { channels, stride }).collect::<Vec<_>>()
        };
        let mut third = units(&[(512, 2)]);
        third.extend(units(&[(512, 1); 5]));
        Self {
            stem: 32,
            stages: vec![
                units(&[(64, 1), (128, 2), (128, 1)]),
                units(&[(256, 2), (256, 1)]),
                third,
                units(&[(1024, 2), (1024, 1)]),
            ],
        }
    }

    /// The units of a stage, counted from 1 through the network, below the scope of all units.
    fn units(&self, stage: usize, site: &Site, scope: &Scope) -> Result<Blocks> {
        let init = site.init.unwrap_or(Init::PyTorch);
        let mut from = site.inputs;
        let first = 1 + self.stages[..stage].iter().map(Vec::len).sum::<usize>();
        let mut blocks = Blocks::new();
        for (i, unit) in self.stages[stage].iter().enumerate() {
            let (scope, to) = (scope.child(first + i), unit.channels);
            let depthwise = Conv2dSpec::new(if site.keeps_size { 1 } else { unit.stride }, 1).with_groups(from);
            let (narrow, wide) = ([from, 1, 3, 3], [to, from, 1, 1]);
            blocks.push(Box::new(Separable {
                depthwise: ConvBatchNorm::new(&scope, "0", "1", narrow, depthwise, init)?,
                pointwise: ConvBatchNorm::new(&scope, "3", "4", wide, Conv2dSpec::default(), init)?,
            }));
            from = to;
        }
        Ok(blocks)
    }
}

/// The first stage belongs to the stem; group g is stage g + 1.
impl Architecture for MobileNetV1Config {
    fn check(&self, model: &str, _config: &ModelConfig) -> Result<()> {
        check_range(model, MOST_CHANNELS, [("stem channels", self.stem)])?;
        if !(2..=MOST_BLOCKS).contains(&self.stages.len()) {
            let message = format!("number of stages must be from 2 to {MOST_BLOCKS}, found {}", self.stages.len());
            return Err(config_error(model, message));
        }
        for stage in &self.stages {
            check_range(model, MOST_BLOCKS, [("units of a stage", stage.len())])?;
            for unit in stage {
                check_range(model, MOST_CHANNELS, [("channels", unit.channels), ("stride", unit.stride)])?;
            }
        }
        Ok(())
    }

    fn shows(&self) -> Shows {
        Shows::StemAndEnds
    }

    fn groups(&self) -> usize {
        self.stages.len().saturating_sub(1)
    }

    fn stem(&self, inputs: usize, scope: &Scope) -> Result<Blocks> {
        let (shape, scope) = ([self.stem, inputs, 3, 3], scope.child("model"));
        let stem = ConvBatchNorm::new(&scope.child(0), "0", "1", shape, Conv2dSpec::new(2, 1), Init::PyTorch)?;
        let mut blocks: Blocks = vec![Box::new(ConvRelu(stem))];
        blocks.extend(self.units(0, &Site::new(0, self.stem, [0; 2]), &scope)?);
        Ok(blocks)
    }

    /// Always with all units of the stage: the number of blocks is not the site's to choose.
    fn group(&self, site: &Site, scope: &Scope) -> Result<Blocks> {
        self.units(site.group + 1, site, scope)
    }

    fn group_key(&self, _group: usize) -> String {
        "model".into()
    }
}

/// `relu(bn(conv1x1(relu(bn(depthwise(x))))))`; the tap is the last batch norm.
struct Separable {
    depthwise: ConvBatchNorm,
    pointwise: ConvBatchNorm,
}

impl Block for Separable {
    fn forward(&self, x: &FeatureMap, mode: Mode, tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        let y = self.depthwise.forward(x, mode, Activation::Relu)?;
        tap.relu(|activation| self.pointwise.forward(&y, mode, activation))
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        [&self.depthwise, &self.pointwise].into_iter().try_for_each(|unit| trace.conv(unit.conv()))
    }

    fn norm(&self) -> Option<StageNorm> {
        Some(self.pointwise.stage_norm())
    }
}

#[cfg(test)]
mod tests {
    use super::relu6;
    use candle_core::{Device, Var};
    use retort_kernels::FeatureMap;

    #[test]
    fn relu6_passes_gradients_inside_only() {
        let values = [-1.0, 0.0, 1e-30, 3.7, 5.999999999999999, 6.0, 7.0, f64::INFINITY];
        let x = Var::new(&values, &Device::Cpu).unwrap();
        let map = FeatureMap::from_tensor(&x.reshape((1, 1, 2, 4)).unwrap()).unwrap();
        let y = relu6(&map).unwrap().to_tensor().unwrap().flatten_all().unwrap();
        assert_eq!(y.to_vec1::<f64>().unwrap(), values.map(|x| x.clamp(0.0, 6.0)));
        let gradients = y.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&x).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(gradient, [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    }
}
