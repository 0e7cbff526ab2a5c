//! VGG for small images (Simonyan and Zisserman 2015, arXiv 1409.1556), with batch norm or without, and with one linear
//! layer in place of three, as in RepDistiller.

use crate::block::{BareConvRelu, Blocks, ConvRelu, MaxPool};
use crate::common::{MOST_BLOCKS, MOST_CHANNELS, check_range, config_error};
use crate::staged::{Architecture, Shows, Site};
use crate::{ModelConfig, Result};
use retort_kernels::{Conv2dSpec, Pool2dSpec};
use retort_nn::{Conv2d, ConvBatchNorm, Init, Linear, Scope};

/// `vgg8` .. `vgg19`: five blocks of 3x3 convolutions with bias, batch norm and ReLU, 2x2 maximum pooling between them,
/// global average, linear classifier. `gnosis_vgg16` is the same without batch norm: the fidelity study's network, of
/// which nothing else is specified.
///
/// f0 .. f4 are the blocks after their last ReLU, before the pooling; a pre-activation is the last batch norm of its
/// block, or the last convolution where there is none (entry 0 is f0 itself).
/// The pooling after block 3 exists for images of exactly 64 rows only, as in the reference.
///
/// Keys: `block{B}.{3j}.weight`, `block{B}.{3j}.bias` (convolution j), `block{B}.{3j+1}.*` (its batch norm),
/// `classifier.*`; without batch norm `block{B}.{2j}.*`. Convolutions start with the fan-out normal rule and bias 0,
/// the classifier with N(0, 0.01^2) and bias 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VggConfig {
    /// Output channels of each convolution, block by block; at least one a block.
    pub blocks: [Vec<usize>; 5],
    /// Whether a batch norm stands behind every convolution.
    pub normalised: bool,
}

/// Whether a 2x2 pooling follows `block`: after blocks 0, 1 and 2, and after block 3 for images of exactly 64 rows.
fn is_pooled(block: usize, image: [usize; 2]) -> bool {
    block < 3 || (block == 3 && image[0] == 64)
}

/// Block 0 is the stem; group g is block g + 1 with the pooling before it.
impl Architecture for VggConfig {
    fn check(&self, model: &str, config: &ModelConfig) -> Result<()> {
        for widths in &self.blocks {
            check_range(model, MOST_BLOCKS, [("convolutions of a block", widths.len())])?;
            check_range(model, MOST_CHANNELS, widths.iter().map(|&channels| ("channels", channels)))?;
        }
        let [height, width] = config.image;
        let poolings = (0..5).filter(|&block| is_pooled(block, config.image)).count();
        let least = 1 << poolings;
        if height.min(width) < least {
            let message = format!(
                "image must be at least {least}x{least} for {poolings} poolings of 2x2, found {height}x{width}"
            );
            return Err(config_error(model, message));
        }
        Ok(())
    }

    fn shows(&self) -> Shows {
        Shows::Ends
    }

    fn groups(&self) -> usize {
        4
    }

    fn stem(&self, inputs: usize, scope: &Scope) -> Result<Blocks> {
        self.block(&Site::new(0, inputs, [0; 2]), 0, &scope.child("block0"))
    }

    fn group(&self, site: &Site, scope: &Scope) -> Result<Blocks> {
        let mut blocks = Blocks::new();
        if is_pooled(site.group, site.image) && !site.keeps_size {
            blocks.push(Box::new(MaxPool(Pool2dSpec::new(2, 2, 0))));
        }
        blocks.extend(self.block(site, site.group + 1, scope)?);
        Ok(blocks)
    }

    fn group_key(&self, group: usize) -> String {
        format!("block{}", group + 1)
    }

    /// Poolings and the ReLU behind each block have places, too.
    fn branch_group_keys(&self, branch: usize, sites: &[Site]) -> Vec<String> {
        let mut place = 0;
        let key = |site: &Site| {
            place += usize::from(is_pooled(site.group, site.image) && !site.keeps_size);
            let key = format!("block_extractor{branch}.{place}");
            place += 2;
            key
        };
        sites.iter().map(key).collect()
    }

    fn classifier_key(&self) -> &'static str {
        "classifier"
    }

    fn classifier(&self, inputs: usize, classes: usize, scope: &Scope) -> Result<Linear> {
        let (weight, bias) = (Init::Normal { std: 0.01 }, Some(Init::Constant(0.0)));
        Ok(Linear::with_init(scope, inputs, classes, weight, bias)?)
    }
}

impl VggConfig {
    /// The paper's channels, 64, 128, 256, 512 and 512, with so many convolutions of each, and batch norm.
    #[must_use]
    pub fn of(convolutions: [usize; 5]) -> Self {
        Self::uniform([64, 128, 256, 512, 512], convolutions)
    }

    /// Blocks of one width each, with so many convolutions, and batch norm.
    #[must_use]
    pub fn uniform(channels: [usize; 5], convolutions: [usize; 5]) -> Self {
        let mut count = convolutions.into_iter();
        // More convolutions than any network has are refused as well by one too many.
        let blocks = channels.map(|width| vec![width; count.next().unwrap_or(0).min(MOST_BLOCKS + 1)]);
        Self { blocks, normalised: true }
    }

    /// Block number `block`, fed as `site` is; with another number of convolutions than the family's all have the last
    /// one's channels.
    fn block(&self, site: &Site, block: usize, scope: &Scope) -> Result<Blocks> {
        let own = &self.blocks[block];
        let widths = match (site.blocks, own.last()) {
            (Some(count), Some(&last)) if count != own.len() => vec![last; count],
            _ => own.clone(),
        };
        let mut units = Blocks::new();
        let mut from = site.inputs;
        for (j, to) in widths.into_iter().enumerate() {
            let (shape, spec) = ([to, from, 3, 3], Conv2dSpec::new(1, 1));
            let init = match site.init {
                Some(init) => [init, Init::pytorch_bias(&shape)],
                None => [Init::KaimingNormalFanOut, Init::Constant(0.0)],
            };
            units.push(if self.normalised {
                let (conv, norm) = ((3 * j).to_string(), (3 * j + 1).to_string());
                Box::new(ConvRelu(ConvBatchNorm::with_bias(scope, [&conv, &norm], shape, spec, init)?))
            } else {
                Box::new(BareConvRelu(Conv2d::with_bias(&scope.child(2 * j), shape, spec, init[0], init[1])?))
            });
            from = to;
        }
        Ok(units)
    }
}
