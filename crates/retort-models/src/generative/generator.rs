//! From noise to images.

use super::condition::Norm;
use super::{Condition, Style, doubled, halvings};
use crate::Result;
use crate::common::{check_positive, check_weights, config_error, refused};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, ConvTranspose2dSpec, FeatureMap};
use retort_nn::{Conv2d, Init, Linear, Mode, Scope};

const MODEL: &str = "generator";

/// How a generator is told its condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Entrance {
    /// By its batch norms, see [`ConditionalBatchNorm`](super::ConditionalBatchNorm).
    #[default]
    Norms,
    /// Beside the noise: a vector as it is, a class as a row of a table of the width of the noise, key `embed.weight`,
    /// that starts as N(0, 1).
    Noise,
}

/// A generator: a linear layer from the noise to a small map, blocks that double it, batch norm, ReLU, 3x3 convolution,
/// tanh. Images have values from -1 to 1.
///
/// Every block begins with batch norm and ReLU. A plain one goes on with a transposed convolution of 4x4 and stride 2
/// without bias; a residual one with nearest doubling, 3x3 convolution, batch norm, ReLU and 3x3 convolution, beside a
/// doubled 1x1 convolution of its input.
///
/// Keys: `linear.*`, `blocks.{i}.norm1.*`, `blocks.{i}.conv1.*`, in residual blocks also `norm2`, `conv2`, `shortcut`,
/// then `norm.*`, `conv.*`. Initial weights are those of the [`Style`], biases 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratorConfig {
    /// What the blocks are.
    pub style: Style,
    /// Entries of the noise.
    pub latent: usize,
    /// Channels of the first map and of the result of every block; each block doubles the map.
    pub channels: Vec<usize>,
    /// What the generator is told.
    pub condition: Condition,
    /// How.
    pub entrance: Entrance,
    /// Channels of the images.
    pub image_channels: usize,
    /// Height and width of the images: multiples of `2^blocks`.
    pub image: [usize; 2],
}

impl GeneratorConfig {
    /// DCGAN for two processor cores: noise of 64, 64 channels on the smallest map of at least 4x4 that halvings reach
    /// (7x7 for 28x28), half as many in each block but at least 16.
    #[must_use]
    pub fn small(image_channels: usize, image: [usize; 2]) -> Self {
        let channels = (0..=halvings(image, 4, true)).map(|i| (64 >> i.min(2)).max(16)).collect();
        let (style, condition, entrance) = (Style::Plain, Condition::None, Entrance::Norms);
        Self { style, latent: 64, channels, condition, entrance, image_channels, image }
    }

    /// SNGAN as in its paper for 32x32, and in the fidelity study: noise of 128, 256 channels everywhere.
    #[must_use]
    pub fn sngan(image_channels: usize, image: [usize; 2]) -> Self {
        let channels = vec![256; halvings(image, 4, true) + 1];
        Self { style: Style::Residual, latent: 128, channels, ..Self::small(image_channels, image) }
    }

    /// Height and width of the first map.
    fn base(&self) -> Result<[usize; 2]> {
        let [height, width] = self.image;
        let numbers = [("latent", self.latent), ("image_channels", self.image_channels), ("image", height.min(width))];
        check_positive(MODEL, numbers)?;
        check_positive(MODEL, self.channels.iter().map(|&channels| ("channels", channels)))?;
        let Some(blocks) = self.channels.len().checked_sub(1) else {
            return Err(config_error(MODEL, "channels must have at least one entry, found none"));
        };
        let factor = 1usize.checked_shl(blocks as u32).filter(|_| blocks < usize::BITS as usize);
        match factor {
            Some(factor) if height.is_multiple_of(factor) && width.is_multiple_of(factor) => {
                Ok([height / factor, width / factor])
            }
            _ => {
                let message =
                    format!("image must be a multiple of 2^{blocks} for {blocks} blocks, found {height}x{width}");
                Err(config_error(MODEL, message))
            }
        }
    }

    /// Entries of what the first layer is fed with.
    fn inputs(&self) -> usize {
        let beside = match (self.entrance, self.condition) {
            (Entrance::Norms, _) | (_, Condition::None) => 0,
            (Entrance::Noise, Condition::Classes(_)) => self.latent,
            (Entrance::Noise, Condition::Embedding(size)) => size,
        };
        self.latent.saturating_add(beside)
    }

    fn check(&self, [height, width]: [usize; 2]) -> Result<()> {
        let area = height.saturating_mul(width);
        check_weights(MODEL, self.inputs(), self.channels[0].saturating_mul(area))?;
        let last = [self.channels[self.channels.len() - 1], self.image_channels];
        for pair in self.channels.windows(2).chain([last.as_slice()]) {
            check_weights(MODEL, pair[0].saturating_mul(16), pair[1])?;
        }
        self.condition.check(MODEL, self.channels.iter().copied().fold(self.latent, usize::max))
    }
}

/// What a generator shows of itself on one batch.
#[derive(Clone, Debug)]
pub struct Generated {
    /// `[B, C, H, W]`, values from -1 to 1.
    pub images: Tensor,
    /// The results of the blocks, shallow to deep, for methods that distil from a generator (Squeeze-and-Span).
    pub maps: Vec<FeatureMap>,
}

/// A network of a [`GeneratorConfig`].
pub struct Generator {
    config: GeneratorConfig,
    base: [usize; 2],
    embed: Option<Tensor>,
    linear: Linear,
    blocks: Vec<Block>,
    norm: Norm,
    conv: Conv2d,
}

impl Generator {
    /// Declares all parameters in `scope`.
    ///
    /// # Errors
    ///
    /// Sizes of zero, an image that halvings do not reach, layers of absurd size, or weights that do not fit (see
    /// [`Scope::weight`]).
    pub fn new(config: &GeneratorConfig, scope: &Scope) -> Result<Self> {
        let base = config.base()?;
        config.check(base)?;
        let GeneratorConfig { style, condition, .. } = *config;
        let first = config.channels[0] * base[0] * base[1];
        let embed = match (config.entrance, condition) {
            (Entrance::Noise, Condition::Classes(classes)) => {
                Some(scope.child("embed").weight("weight", &[classes, config.latent], Init::Normal { std: 1.0 })?)
            }
            _ => None,
        };
        let inner = if config.entrance == Entrance::Norms { condition } else { Condition::None };
        let init = style.outer(&[first, config.inputs()]);
        let zero = Init::Constant(0.0);
        let linear = Linear::with_init(&scope.child("linear"), config.inputs(), first, init, Some(zero))?;
        let mut blocks = Vec::new();
        for (i, pair) in config.channels.windows(2).enumerate() {
            blocks.push(Block::new(style, [pair[0], pair[1]], inner, &scope.child("blocks").child(i))?);
        }
        let last = config.channels[config.channels.len() - 1];
        let shape = [config.image_channels, last, 3, 3];
        let conv = Conv2d::with_bias(&scope.child("conv"), shape, Conv2dSpec::new(1, 1), style.outer(&shape), zero)?;
        let norm = Norm::new(&scope.child("norm"), last, inner)?;
        Ok(Self { config: config.clone(), base, embed, linear, blocks, norm, conv })
    }

    /// What the generator was built of.
    #[must_use]
    pub fn config(&self) -> &GeneratorConfig {
        &self.config
    }

    /// Images for `noise` `[B, latent]`, usually N(0, 1), under the condition `given`: labels `[B]` of an integer type,
    /// or vectors `[B, E]`.
    ///
    /// # Errors
    ///
    /// Noise or a condition that does not fit, or training mode in a frozen network.
    pub fn forward(&self, noise: &Tensor, given: Option<&Tensor>, mode: Mode) -> retort_nn::Result<Generated> {
        let GeneratorConfig { latent, condition, .. } = self.config;
        let batch = match *noise.dims() {
            [batch, width] if width == latent => batch,
            _ => return Err(refused(MODEL, format!("expected noise [B, {latent}], found {:?}", noise.dims()))),
        };
        let given = condition.checked(MODEL, batch, given)?;
        let given = given.as_ref();
        let x = self.linear.forward(&self.entered(noise, given)?)?;
        let [height, width] = self.base;
        let mut x = FeatureMap::from_tensor(&x.reshape((batch, self.config.channels[0], height, width))?)?;
        let mut maps = Vec::new();
        for block in &self.blocks {
            x = block.forward(&x, given, mode)?;
            maps.push(x.clone());
        }
        let images = self.conv.forward(&self.norm.relu(&x, given, mode)?)?.to_tensor()?.tanh()?;
        Ok(Generated { images, maps })
    }

    /// The noise, with the condition beside it where it enters there.
    fn entered(&self, noise: &Tensor, given: Option<&Tensor>) -> candle_core::Result<Tensor> {
        match (self.config.entrance, given, &self.embed) {
            (Entrance::Noise, Some(labels), Some(table)) => Tensor::cat(&[noise, &table.index_select(labels, 0)?], 1),
            (Entrance::Noise, Some(vectors), None) => Tensor::cat(&[noise, vectors], 1),
            _ => Ok(noise.clone()),
        }
    }
}

/// A doubling.
enum Block {
    Plain(Norm, Tensor),
    Residual(Box<Residual>),
}

impl Block {
    fn new(style: Style, [from, to]: [usize; 2], condition: Condition, scope: &Scope) -> Result<Self> {
        if style == Style::Residual {
            return Ok(Self::Residual(Box::new(Residual::new([from, to], condition, scope)?)));
        }
        // A transposed convolution has its inputs first.
        let shape = [from, to, 4, 4];
        let weight = scope.child("conv1").weight("weight", &shape, style.branch(&shape))?;
        Ok(Self::Plain(Norm::new(&scope.child("norm1"), from, condition)?, weight))
    }

    fn forward(&self, x: &FeatureMap, given: Option<&Tensor>, mode: Mode) -> retort_nn::Result<FeatureMap> {
        match self {
            Self::Plain(norm, weight) => {
                let x = norm.relu(x, given, mode)?;
                Ok(x.conv_transpose2d(weight, None, Activation::None, &ConvTranspose2dSpec::new(2, 1))?)
            }
            Self::Residual(block) => block.forward(x, given, mode),
        }
    }
}

struct Residual {
    norms: [Norm; 2],
    convs: [Conv2d; 2],
    shortcut: Conv2d,
}

impl Residual {
    fn new([from, to]: [usize; 2], condition: Condition, scope: &Scope) -> Result<Self> {
        let norm = |key: &str, channels: usize| Norm::new(&scope.child(key), channels, condition);
        let conv = |key: &str, [outputs, inputs, kernel]: [usize; 3]| {
            let shape = [outputs, inputs, kernel, kernel];
            let init = if kernel == 1 { Style::Residual.outer(&shape) } else { Style::Residual.branch(&shape) };
            let spec = Conv2dSpec::new(1, kernel / 2);
            Conv2d::with_bias(&scope.child(key), shape, spec, init, Init::Constant(0.0))
        };
        Ok(Self {
            norms: [norm("norm1", from)?, norm("norm2", to)?],
            convs: [conv("conv1", [to, from, 3])?, conv("conv2", [to, to, 3])?],
            shortcut: conv("shortcut", [to, from, 1])?,
        })
    }

    fn forward(&self, x: &FeatureMap, given: Option<&Tensor>, mode: Mode) -> retort_nn::Result<FeatureMap> {
        let y = self.convs[0].forward(&doubled(&self.norms[0].relu(x, given, mode)?)?)?;
        let y = self.norms[1].relu(&y, given, mode)?;
        // The doubling and the 1x1 convolution commute; in this order the latter has a quarter of the work.
        let shortcut = doubled(&self.shortcut.forward(x)?)?;
        self.convs[1].forward_with(&y, Some(&shortcut), Activation::None)
    }
}
