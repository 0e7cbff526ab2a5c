//! From images to scores.

use super::{Condition, SpectralConv2d, SpectralLinear, SpectralWeight, Style, halvings};
use crate::Result;
use crate::common::{check_batch, check_positive, check_weights, config_error};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap, Pool2dSpec};
use retort_nn::{Mode, Scope};

const MODEL: &str = "discriminator";
/// Slope of a plain discriminator's activation at negative values, as in DCGAN.
const SLOPE: f64 = 0.2;

/// A discriminator with projection (Miyato and Koyama 2018, arXiv 1802.05637): blocks of spectrally normalised
/// convolutions, sum over positions `phi`, score `linear(phi) + <embed(condition), phi>`.
///
/// A plain block is a convolution of 4x4 and stride 2, or of 3x3 where it does not halve, and a leaky ReLU of slope
/// 0.2. A residual one is `ReLU, 3x3, ReLU, 3x3`, averaged over 2x2 where it halves, beside the input, itself or
/// through a 1x1 convolution; the first one has no ReLU in front. A ReLU stands before the sum then.
///
/// Keys: `blocks.{i}.conv1.*`, in residual blocks also `conv2`, `shortcut`, then `linear.*`, and `embed.*` under a
/// condition; each with `weight_orig`, `weight_u`, `weight_v`, and all but `embed` with `bias`. Initial weights are
/// those of the [`Style`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscriminatorConfig {
    /// What the blocks are.
    pub style: Style,
    /// Channels of the result of every block.
    pub channels: Vec<usize>,
    /// How many blocks, counted from the image, halve the map.
    pub halvings: usize,
    /// What the discriminator is told.
    pub condition: Condition,
    /// Channels of the images.
    pub image_channels: usize,
    /// Height and width of the images, at least `2^halvings`.
    pub image: [usize; 2],
}

impl DiscriminatorConfig {
    /// For two processor cores: 16, 32 and 64 channels (and 64 in further blocks), halved to at least 3x3.
    #[must_use]
    pub fn small(image_channels: usize, image: [usize; 2]) -> Self {
        let halvings = halvings(image, 3, false).clamp(1, 8);
        let channels = (0..halvings).map(|i| 16 << i.min(2)).collect();
        Self { style: Style::Plain, channels, halvings, condition: Condition::None, image_channels, image }
    }

    /// SNGAN as in its paper for 32x32, and in the fidelity study: blocks of 128 channels, halved to at least 7x7, and
    /// two more that do not halve.
    #[must_use]
    pub fn sngan(image_channels: usize, image: [usize; 2]) -> Self {
        let halvings = halvings(image, 7, false).clamp(1, 8);
        let channels = vec![128; halvings + 2];
        Self { style: Style::Residual, channels, halvings, ..Self::small(image_channels, image) }
    }

    fn check(&self) -> Result<()> {
        let [height, width] = self.image;
        check_positive(MODEL, [("image_channels", self.image_channels), ("image", height.min(width))])?;
        check_positive(MODEL, self.channels.iter().map(|&channels| ("channels", channels)))?;
        let Some(last) = self.channels.last() else {
            return Err(config_error(MODEL, "channels must have at least one entry, found none"));
        };
        if self.halvings > self.channels.len() {
            let message =
                format!("halvings must be at most {} (the blocks), found {}", self.channels.len(), self.halvings);
            return Err(config_error(MODEL, message));
        }
        let most = halvings(self.image, 1, false);
        if self.halvings > most {
            let message = format!("image {height}x{width} allows {most} halvings at most, found {}", self.halvings);
            return Err(config_error(MODEL, message));
        }
        let mut from = self.image_channels;
        for &to in &self.channels {
            check_weights(MODEL, from.max(to).saturating_mul(16), to)?;
            from = to;
        }
        self.condition.check(MODEL, *last)
    }
}

/// What a discriminator shows of itself on one batch.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// `[B, 1]`, high for real.
    pub scores: Tensor,
    /// `phi`, `[B, C]`.
    pub features: Tensor,
    /// The results of the blocks, shallow to deep.
    pub maps: Vec<FeatureMap>,
}

/// A network of a [`DiscriminatorConfig`].
pub struct Discriminator {
    config: DiscriminatorConfig,
    blocks: Vec<Block>,
    linear: SpectralLinear,
    embed: Option<SpectralWeight>,
}

impl Discriminator {
    /// Declares all parameters in `scope`.
    ///
    /// # Errors
    ///
    /// Sizes of zero, an image too small for its halvings, layers of absurd size, or weights that do not fit (see
    /// [`Scope::weight`]).
    pub fn new(config: &DiscriminatorConfig, scope: &Scope) -> Result<Self> {
        config.check()?;
        let DiscriminatorConfig { style, condition, .. } = *config;
        let mut from = config.image_channels;
        let mut blocks = Vec::new();
        for (i, &to) in config.channels.iter().enumerate() {
            let place = Place { first: i == 0, halves: i < config.halvings };
            blocks.push(Block::new(style, [from, to], place, &scope.child("blocks").child(i))?);
            from = to;
        }
        let linear = SpectralLinear::new(&scope.child("linear"), from, 1, style.outer(&[1, from]))?;
        let shape = condition.weight_shape(from);
        let embed = match condition {
            Condition::None => None,
            _ => Some(SpectralWeight::new(&scope.child("embed"), &shape, style.outer(&shape))?),
        };
        Ok(Self { config: config.clone(), blocks, linear, embed })
    }

    /// What the discriminator was built of.
    #[must_use]
    pub fn config(&self) -> &DiscriminatorConfig {
        &self.config
    }

    /// Scores of `images` `[B, C, H, W]` under the condition `given`: labels `[B]` of an integer type, or vectors
    /// `[B, E]`. Gradients flow to the images too.
    ///
    /// # Errors
    ///
    /// Images or a condition that does not fit, or training mode in a frozen network.
    pub fn forward(&self, images: &Tensor, given: Option<&Tensor>, mode: Mode) -> retort_nn::Result<Judgement> {
        let DiscriminatorConfig { image_channels, image: [height, width], condition, style, .. } = self.config;
        check_batch(MODEL, "images", [image_channels, height, width], images)?;
        let given = condition.checked(MODEL, images.dims()[0], given)?;
        let mut x = FeatureMap::from_tensor(images)?;
        let mut maps = Vec::new();
        for block in &self.blocks {
            x = block.forward(&x, mode)?;
            maps.push(x.clone());
        }
        let last = if style == Style::Residual { x.relu()? } else { x };
        let [.., height, width] = last.dims();
        let features = (last.global_avg_pool2d()? * (height * width) as f64)?;
        let mut scores = self.linear.forward(&features, mode)?;
        if let (Some(embed), Some(given)) = (&self.embed, &given) {
            let vectors = condition.apply(&embed.get(mode)?, given)?;
            scores = (scores + (vectors * &features)?.sum_keepdim(1)?)?;
        }
        Ok(Judgement { scores, features, maps })
    }
}

/// Where a block stands.
#[derive(Clone, Copy)]
struct Place {
    first: bool,
    halves: bool,
}

enum Block {
    Plain(SpectralConv2d),
    Residual(Box<Residual>),
}

impl Block {
    fn new(style: Style, [from, to]: [usize; 2], place: Place, scope: &Scope) -> Result<Self> {
        if style == Style::Residual {
            return Ok(Self::Residual(Box::new(Residual::new([from, to], place, scope)?)));
        }
        let (kernel, stride) = if place.halves { (4, 2) } else { (3, 1) };
        let shape = [to, from, kernel, kernel];
        let spec = Conv2dSpec::new(stride, 1);
        Ok(Self::Plain(SpectralConv2d::new(&scope.child("conv1"), shape, spec, style.branch(&shape))?))
    }

    fn forward(&self, x: &FeatureMap, mode: Mode) -> retort_nn::Result<FeatureMap> {
        match self {
            Self::Plain(conv) => leaky_relu(&conv.forward(x, None, Activation::None, mode)?),
            Self::Residual(block) => block.forward(x, mode),
        }
    }
}

struct Residual {
    place: Place,
    convs: [SpectralConv2d; 2],
    shortcut: Option<SpectralConv2d>,
}

impl Residual {
    fn new([from, to]: [usize; 2], place: Place, scope: &Scope) -> Result<Self> {
        let conv = |key: &str, [outputs, inputs, kernel]: [usize; 3]| {
            let shape = [outputs, inputs, kernel, kernel];
            let init = if kernel == 1 { Style::Residual.outer(&shape) } else { Style::Residual.branch(&shape) };
            SpectralConv2d::new(&scope.child(key), shape, Conv2dSpec::new(1, kernel / 2), init)
        };
        // As in the authors' code the channels change in the second convolution, but for the first block.
        let hidden = if place.first { to } else { from };
        let convs = [conv("conv1", [hidden, from, 3])?, conv("conv2", [to, hidden, 3])?];
        let shortcut = match place.halves || place.first || from != to {
            true => Some(conv("shortcut", [to, from, 1])?),
            false => None,
        };
        Ok(Self { place, convs, shortcut })
    }

    fn forward(&self, x: &FeatureMap, mode: Mode) -> retort_nn::Result<FeatureMap> {
        let [first, second] = &self.convs;
        let y = if self.place.first { x.clone() } else { x.relu()? };
        let y = first.forward(&y, None, Activation::Relu, mode)?;
        // The mean and the 1x1 convolution commute; in this order the latter has a quarter of the work.
        let x = if self.place.halves { halved(x)? } else { x.clone() };
        let x = match &self.shortcut {
            Some(conv) => conv.forward(&x, None, Activation::None, mode)?,
            None => x,
        };
        match self.place.halves {
            true => Ok(halved(&second.forward(&y, None, Activation::None, mode)?)?.add(&x, Activation::None)?),
            false => second.forward(&y, Some(&x), Activation::None, mode),
        }
    }
}

fn halved(x: &FeatureMap) -> retort_nn::Result<FeatureMap> {
    Ok(x.avg_pool2d(&Pool2dSpec::new(2, 2, 0), false)?)
}

fn leaky_relu(x: &FeatureMap) -> retort_nn::Result<FeatureMap> {
    Ok(x.through_tensor(|x| Ok(((retort_kernels::relu(x)? * (1.0 - SLOPE))? + (x * SLOPE)?)?))?)
}
