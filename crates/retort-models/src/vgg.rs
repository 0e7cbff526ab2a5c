//! VGG with batch norm for small images (Simonyan and Zisserman 2015, arXiv 1409.1556; normalised, with one linear
//! layer in place of three, as in RepDistiller).

use crate::common::{Shown, area, check_images, check_sizes, config_error, map, network_spec};
use crate::{ModelConfig, Result};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap, Pool2dSpec};
use retort_nn::{ConvBatchNorm, Init, Linear, MapShape, Mode, Network, NetworkSpec, Outputs, Scope, StageNorm, Taps};

/// Channels and convolutions of the five blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VggConfig {
    /// Output channels of every convolution of a block; `[64, 128, 256, 512, 512]` in the paper.
    pub channels: [usize; 5],
    /// Convolutions of a block, at least 1 each.
    pub convolutions: [usize; 5],
}

/// Whether a 2x2 pooling follows `block`: after blocks 0, 1 and 2, and after block 3 for images of exactly 64 rows.
fn is_pooled(block: usize, config: &ModelConfig) -> bool {
    block < 3 || (block == 3 && config.image[0] == 64)
}

impl VggConfig {
    /// Shapes of f0 .. f4 for this input.
    fn maps(&self, model: &str, config: &ModelConfig) -> Result<Vec<MapShape>> {
        check_sizes(model, config, &self.channels)?;
        if self.convolutions.contains(&0) {
            let message = format!("every block must have a convolution, found {:?}", self.convolutions);
            return Err(config_error(model, message));
        }
        let [height, width] = config.image;
        let poolings = (0..5).filter(|&block| is_pooled(block, config)).count();
        let least = 1 << poolings;
        if height.min(width) < least {
            let message = format!(
                "image must be at least {least}x{least} for {poolings} poolings of 2x2, found {height}x{width}"
            );
            return Err(config_error(model, message));
        }
        let mut size = config.image;
        let mut maps = Vec::new();
        for (block, &channels) in self.channels.iter().enumerate() {
            maps.push(map(channels, size));
            if is_pooled(block, config) {
                size = size.map(|n| n / 2);
            }
        }
        Ok(maps)
    }

    /// Multiply-adds of convolutions and classifier for one image.
    pub(crate) fn multiply_adds(&self, model: &str, config: &ModelConfig) -> Result<usize> {
        let maps = self.maps(model, config)?;
        let mut total = maps[4].channels * config.classes;
        let mut from = config.in_channels;
        for (shape, convolutions) in maps.iter().zip(self.convolutions) {
            let to = shape.channels;
            total += area(shape) * 9 * (from + (convolutions - 1) * to) * to;
            from = to;
        }
        Ok(total)
    }
}

/// `vgg8` .. `vgg19`: five blocks of 3x3 convolutions with bias, batch norm and ReLU, 2x2 maximum pooling between them,
/// global average, linear classifier.
///
/// f0 .. f4 are the blocks after their last ReLU, before the pooling; a pre-activation is the last batch norm of its
/// block (entry 0 is f0 itself).
/// The pooling after block 3 exists for images of exactly 64 rows only, as in the reference.
///
/// Keys: `block{B}.{3j}.weight`, `block{B}.{3j}.bias` (convolution j), `block{B}.{3j+1}.*` (its batch norm),
/// `classifier.*`. Convolutions start with the fan-out normal rule and bias 0, the classifier with N(0, 0.01^2) and
/// bias 0.
pub struct Vgg {
    spec: NetworkSpec,
    blocks: Vec<VggBlock>,
    classifier: Linear,
}

/// Units of convolution, batch norm and ReLU, and whether a pooling follows.
struct VggBlock {
    units: Vec<ConvBatchNorm>,
    pooled: bool,
}

impl Vgg {
    /// Declares all parameters in `scope`; `name` appears in the spec and in errors.
    ///
    /// # Errors
    ///
    /// Sizes of zero, an image that the poolings would make empty, or weights that do not fit.
    pub fn new(name: &str, family: &VggConfig, config: &ModelConfig, scope: &Scope) -> Result<Self> {
        let maps = family.maps(name, config)?;
        let mut from = config.in_channels;
        let mut blocks = Vec::new();
        for (block, (shape, convolutions)) in maps.iter().zip(family.convolutions).enumerate() {
            let (scope, to) = (scope.child(format!("block{block}")), shape.channels);
            let mut units = Vec::new();
            for j in 0..convolutions {
                let (conv, norm) = ((3 * j).to_string(), (3 * j + 1).to_string());
                let (shape, spec) = ([to, from, 3, 3], Conv2dSpec::new(1, 1));
                let init = [Init::KaimingNormalFanOut, Init::Constant(0.0)];
                units.push(ConvBatchNorm::with_bias(&scope, [&conv, &norm], shape, spec, init)?);
                from = to;
            }
            blocks.push(VggBlock { units, pooled: is_pooled(block, config) });
        }
        let embedding = maps[4].channels;
        let (weight, bias) = (Init::Normal { std: 0.01 }, Some(Init::Constant(0.0)));
        let classifier = Linear::with_init(&scope.child("classifier"), embedding, config.classes, weight, bias)?;
        let spec = network_spec(name, config, maps, embedding);
        Ok(Self { spec, blocks, classifier })
    }
}

impl Network for Vgg {
    fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    fn stage_norms(&self) -> retort_nn::Result<Option<Vec<StageNorm>>> {
        Ok(self.blocks[1..].iter().map(|block| block.units.last().map(ConvBatchNorm::stage_norm)).collect())
    }

    fn classifier(&self) -> Option<&Linear> {
        Some(&self.classifier)
    }

    fn forward(&self, images: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<Outputs> {
        check_images(&self.spec, images)?;
        let mut shown = Shown::new(taps);
        let mut x = FeatureMap::from_tensor(images)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let (last, inner) = block.units.split_last().expect("a block has at least one convolution");
            for unit in inner {
                x = unit.forward(&x, mode, Activation::Relu)?;
            }
            if index == 0 {
                x = last.forward(&x, mode, Activation::Relu)?;
                shown.stem(&x)?;
            } else {
                x = shown.stage(|activation| last.forward(&x, mode, activation))?;
            }
            if block.pooled {
                x = x.max_pool2d(&Pool2dSpec::new(2, 2, 0))?;
            }
        }
        let embedding = x.global_avg_pool2d()?;
        Ok(shown.outputs(self.classifier.forward(&embedding)?, embedding))
    }
}
