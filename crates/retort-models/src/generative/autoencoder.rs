//! Features of images without classes.

use super::{Generator, GeneratorConfig, halvings};
use crate::Result;
use crate::common::check_positive;
use crate::common::{check_batch, check_weights};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap};
use retort_nn::{BatchNorm, ConvBatchNorm, Init, Linear, Mode, Scope};

const MODEL: &str = "autoencoder";
/// Entries of the hidden layer in front of the label.
const HIDDEN: usize = 512;

/// The sparse autoencoder of cGAN-KD with a branch that predicts the label: images to a code, the code to images and to
/// the label. The code is the feature of a [`RatioNet`](super::RatioNet) for continuous labels.
///
/// The encoder is a row of 4x4 convolutions of stride 2 with batch norm and ReLU, then linear, ReLU: the code is not
/// negative, and training adds 1e-3 times its mean to the loss. The decoder is a plain [`Generator`] without condition,
/// the branch linear, batch norm, ReLU, linear, ReLU.
///
/// Keys: `encoder.{3i}.weight` (convolution), `encoder.{3i+1}.*` (batch norm), `code.*`, `decoder.*` (those of the
/// generator), `label.{0,3}.*` (linear), `label.1.*` (batch norm). Layers outside of the decoder start with PyTorch's
/// default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutoencoderConfig {
    /// Entries of the code.
    pub code: usize,
    /// Channels of the maps from the image to the code, each of half the size; the decoder has them in reverse.
    pub channels: Vec<usize>,
    /// Channels of the images.
    pub image_channels: usize,
    /// Height and width of the images: multiples of `2^channels.len()`.
    pub image: [usize; 2],
}

impl AutoencoderConfig {
    /// A code of 128 and maps of 16, 32 and 64 channels (64 in further ones), down to at least 4x4.
    #[must_use]
    pub fn small(image_channels: usize, image: [usize; 2]) -> Self {
        let channels = (0..halvings(image, 4, true)).map(|i| 16 << i.min(2)).collect();
        Self { code: 128, channels, image_channels, image }
    }

    /// The last map of the decoder has the channels of the encoder's first one.
    fn decoder(&self) -> GeneratorConfig {
        let mut channels: Vec<usize> = self.channels.iter().rev().copied().collect();
        channels.extend(self.channels.first());
        let small = GeneratorConfig::small(self.image_channels, self.image);
        GeneratorConfig { latent: self.code, channels, ..small }
    }
}

/// What an autoencoder makes of one batch.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// `[B, code]`, not negative.
    pub code: Tensor,
    /// `[B, C, H, W]`, values from -1 to 1.
    pub images: Tensor,
    /// `[B, 1]`, not negative.
    pub labels: Tensor,
}

/// A network of an [`AutoencoderConfig`].
pub struct Autoencoder {
    encoder: Vec<ConvBatchNorm>,
    code: Linear,
    decoder: Generator,
    hidden: Linear,
    norm: BatchNorm,
    label: Linear,
}

impl Autoencoder {
    /// Declares all parameters in `scope`.
    ///
    /// # Errors
    ///
    /// Sizes of zero, no channels, an image that halvings do not reach, layers of absurd size, or weights that do not
    /// fit (see [`Scope::weight`]).
    pub fn new(config: &AutoencoderConfig, scope: &Scope) -> Result<Self> {
        check_positive(MODEL, [("code", config.code), ("channels", config.channels.len())])?;
        // The decoder knows what can be halved, and refuses numbers that the encoder could not bear either.
        let decoder = Generator::new(&config.decoder(), &scope.child("decoder"))?;
        let mut from = config.image_channels;
        let mut encoder = Vec::new();
        let keys = scope.child("encoder");
        for (i, &to) in config.channels.iter().enumerate() {
            check_weights(MODEL, from.saturating_mul(16), to)?;
            let (conv, norm) = ((3 * i).to_string(), (3 * i + 1).to_string());
            let spec = Conv2dSpec::new(2, 1);
            encoder.push(ConvBatchNorm::new(&keys, &conv, &norm, [to, from, 4, 4], spec, Init::PyTorch)?);
            from = to;
        }
        let [height, width] = config.image.map(|size| size >> config.channels.len());
        let label = scope.child("label");
        Ok(Self {
            encoder,
            code: Linear::new(&scope.child("code"), from * height * width, config.code)?,
            decoder,
            hidden: Linear::new(&label.child(0), config.code, HIDDEN)?,
            norm: BatchNorm::new(&label.child(1), HIDDEN)?,
            label: Linear::new(&label.child(3), HIDDEN, 1)?,
        })
    }

    /// The code alone.
    ///
    /// # Errors
    ///
    /// Images of another shape, or training mode in a frozen network.
    pub fn encode(&self, images: &Tensor, mode: Mode) -> retort_nn::Result<Tensor> {
        let GeneratorConfig { image_channels, image, .. } = self.decoder.config();
        check_batch(MODEL, "images", [*image_channels, image[0], image[1]], images)?;
        let mut x = FeatureMap::from_tensor(images)?;
        for conv in &self.encoder {
            x = conv.forward(&x, mode, Activation::Relu)?;
        }
        Ok(retort_kernels::relu(&self.code.forward(&x.to_tensor()?.flatten_from(1)?)?)?)
    }

    /// One pass over `images` `[B, C, H, W]`.
    ///
    /// # Errors
    ///
    /// As for [`Autoencoder::encode`].
    pub fn forward(&self, images: &Tensor, mode: Mode) -> retort_nn::Result<Encoded> {
        let code = self.encode(images, mode)?;
        let images = self.decoder.forward(&code, None, mode)?.images;
        let hidden = self.norm.forward_vectors(&self.hidden.forward(&code)?, mode, Activation::Relu)?;
        let labels = retort_kernels::relu(&self.label.forward(&hidden)?)?;
        Ok(Encoded { code, images, labels })
    }
}
