//! Augmentation of images: crops, flips, warps, colours, policies, erasing; and what of an image a network sees.
//!
//! Everything random comes from the generator that is handed in, in the order that each transform documents.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, ImageShape, Result};

mod check;
mod colour;
pub(crate) mod draw;
mod erase;
mod geometry;
mod modality;
mod pipeline;
mod pixel;
mod policy;
mod resample;
#[cfg(test)]
mod tests;
mod warp;

pub use colour::{ColourJitter, GaussianBlur};
pub use erase::{EraseFill, ErasePatch, RandomErasing};
pub use modality::Modality;
pub use pipeline::ViewConfig;
pub(crate) use pipeline::{Pipeline, Scratch};
pub use policy::{AugMix, AutoAugment, RandAugment, TrivialAugment};
pub use resample::RandomResizedCrop;
pub use warp::{RandomAffine, RandomPerspective};

/// One image of `u8` pixels, `[C, H, W]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    shape: ImageShape,
    pixels: Vec<u8>,
}

impl Default for Image {
    /// A single black pixel.
    fn default() -> Self {
        Self { shape: ImageShape { channels: 1, height: 1, width: 1 }, pixels: vec![0] }
    }
}

impl Image {
    /// An image from its pixels.
    ///
    /// # Errors
    ///
    /// A zero or overflowing shape, another number of pixels than `C * H * W`.
    pub fn new(shape: ImageShape, pixels: Vec<u8>) -> Result<Self> {
        const OP: &str = "image";
        let bytes =
            shape.bytes().filter(|&n| n > 0).ok_or_else(|| Error::invalid(OP, "shape", "positive sizes", shape))?;
        if pixels.len() != bytes {
            return Err(Error::invalid(OP, format!("pixels of an image {shape}"), bytes, pixels.len()));
        }
        Ok(Self { shape, pixels })
    }

    /// Size.
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Pixels as `[C, H, W]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Pixels as `[C, H, W]`.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// Takes over the pixels of an image of this shape.
    fn assign(&mut self, shape: ImageShape, pixels: &[u8]) {
        self.shape = shape;
        self.pixels.clear();
        self.pixels.extend_from_slice(pixels);
    }

    /// Replaces the image by one of another shape; `write` sees the old pixels and must write all new ones.
    fn rewrite(&mut self, spare: &mut Vec<u8>, shape: ImageShape, write: impl FnOnce(&[u8], &mut [u8])) {
        spare.resize(shape.channels * shape.height * shape.width, 0);
        write(&self.pixels, spare);
        std::mem::swap(&mut self.pixels, spare);
        self.shape = shape;
    }
}

/// One step of augmentation, applied in the order of the list.
///
/// All but [`Cutout`](Self::Cutout) and [`RandomErasing`](Self::RandomErasing) work on pixels, before normalisation;
/// those two come after it and stand at the end of a list. In a manifest: `{ kind = "random-crop", padding = 4 }`,
/// `{ kind = "horizontal-flip", probability = 0.5 }`, `{ kind = "rand-augment" }`.
///
/// A probability is 0 to 1, and draws its number also for 0 and 1, so that the steps after it see the same stream for
/// any value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TransformConfig {
    /// Pads all four sides with zero pixels and cuts the original size out again at a uniform position
    /// (He et al. 2015, arXiv 1512.03385, section 4.2).
    ///
    /// The padding is 0 before normalization, that is black, as in the reference recipes. Drawn: row, column.
    RandomCrop {
        /// Zero pixels on each side, less than the height and the width; 0 changes nothing.
        padding: usize,
    },
    /// Mirrors left and right. Drawn: probability.
    HorizontalFlip {
        /// Probability of the mirror image, 0 to 1.
        probability: f64,
    },
    /// Mirrors top and bottom. Drawn: probability.
    VerticalFlip {
        /// Probability of the mirror image, 0 to 1.
        probability: f64,
    },
    /// Rotates about the centre by a uniform angle in `-degrees ..= degrees`, nearest pixel, with the arithmetic of
    /// Pillow.
    ///
    /// Drawn: angle, counter-clockwise.
    RandomRotation {
        /// Largest angle, 0 to 180.
        degrees: f64,
        /// Pixel value of what comes in from outside.
        #[serde(default)]
        fill: u8,
    },
    /// Turns a square image by 0, 1, 2 or 3 quarters counter-clockwise, equally likely. Drawn: probability; number of
    /// turns.
    RandomQuarterTurn {
        /// Probability that the number of turns is drawn, 0 to 1.
        #[serde(default = "always")]
        probability: f64,
    },
    /// Resizes bilinearly with antialias, bit for bit as Pillow 11.3.0 (first horizontally, then vertically). Draws
    /// nothing.
    Resize {
        /// Rows of the result, 1 to 4096.
        height: usize,
        /// Columns of the result, 1 to 4096.
        width: usize,
    },
    /// Cuts out the middle; of an odd rest the even half is above (left), as in torchvision. Draws nothing.
    CenterCrop {
        /// Rows of the result, at most those of the image.
        height: usize,
        /// Columns of the result, at most those of the image.
        width: usize,
    },
    /// A crop of random size and shape, resized.
    RandomResizedCrop(RandomResizedCrop),
    /// A random rotation and shift.
    RandomAffine(RandomAffine),
    /// A random view from the side.
    RandomPerspective(RandomPerspective),
    /// Random brightness, contrast, saturation, hue.
    ColourJitter(ColourJitter),
    /// Replaces all three channels by the luma; nothing happens to a grey image. Drawn: probability.
    Greyscale {
        /// Probability of a grey image, 0 to 1; by default that of SimCLR and its descendants, 0.2.
        #[serde(default = "seldom")]
        probability: f64,
    },
    /// A blur of random width.
    GaussianBlur(GaussianBlur),
    /// AutoAugment with the policy found on CIFAR-10.
    AutoAugment(AutoAugment),
    /// RandAugment.
    RandAugment(RandAugment),
    /// TrivialAugment, wide.
    TrivialAugment(TrivialAugment),
    /// AugMix.
    AugMix(AugMix),
    /// Zeroes a square whose centre is uniform over all pixels, after normalisation (DeVries and Taylor 2017, arXiv
    /// 1708.04552).
    ///
    /// See [`ErasePatch::square`] for its edges. Drawn: row, column.
    Cutout {
        /// Side of the square, at least 1; an odd one erases a pixel less.
        #[serde(default = "cutout_length")]
        length: usize,
    },
    /// Random erasing, after normalisation.
    RandomErasing(RandomErasing),
}

fn always() -> f64 {
    1.0
}

fn seldom() -> f64 {
    0.2
}

fn cutout_length() -> usize {
    8
}

impl TransformConfig {
    /// Checks the settings for images of this shape, and says which shape they have afterwards.
    ///
    /// # Errors
    ///
    /// A setting out of its range, which the message gives; a shape that the transform cannot work on: zero or
    /// overflowing sizes, a padding that is not less than height and width (the crop could miss the image altogether),
    /// an image that is not square for quarter turns, channels other than 1 or 3 for operations on colours.
    pub fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        if shape.bytes().is_none_or(|n| n == 0) {
            return Err(Error::invalid(self.kind(), "image", "positive sizes that fit memory", shape));
        }
        match self {
            Self::RandomCrop { padding } => geometry::check_crop(*padding, shape),
            Self::HorizontalFlip { probability } | Self::VerticalFlip { probability } => {
                check::probability(self.kind(), *probability).map(|()| shape)
            }
            Self::RandomRotation { degrees, .. } => warp::check_degrees(self.kind(), *degrees).map(|()| shape),
            Self::RandomQuarterTurn { probability } => {
                check::probability(self.kind(), *probability)?;
                geometry::check_square(self.kind(), shape)
            }
            Self::Resize { height, width } => geometry::check_sides(self.kind(), shape, *height, *width),
            Self::CenterCrop { height, width } => geometry::check_center_crop(shape, *height, *width),
            Self::RandomResizedCrop(config) => config.check(shape),
            Self::RandomAffine(config) => config.check(shape),
            Self::RandomPerspective(config) => config.check(shape),
            Self::ColourJitter(config) => config.check(shape),
            Self::Greyscale { probability } => {
                check::probability(self.kind(), *probability)?;
                colour::check_channels(self.kind(), shape)
            }
            Self::GaussianBlur(config) => config.check(shape),
            Self::AutoAugment(config) => config.check(shape),
            Self::RandAugment(config) => config.check(shape),
            Self::TrivialAugment(config) => config.check(shape),
            Self::AugMix(config) => config.check(shape),
            Self::Cutout { length } => erase::check_cutout(*length, shape),
            Self::RandomErasing(config) => config.check(shape),
        }
    }

    /// Augments one image of pixels.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check), and a transform [after normalisation](Self::is_after_normalisation), which
    /// [`apply_normalised`](Self::apply_normalised) is for.
    pub fn apply(&self, image: &mut Image, rng: &mut ChaCha8Rng) -> Result<()> {
        if self.is_after_normalisation() {
            return Err(Error::invalid(self.kind(), "image", "normalised values", "pixels"));
        }
        self.check(image.shape)?;
        self.run(image, &mut Vec::new(), rng);
        Ok(())
    }

    /// Erases a part of a normalised image `[C, H, W]` in place; `means` are those of its channels on the scale 0 to 1.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check), a transform on pixels, another number of values than `C * H * W`, not one mean
    /// per channel where they are used.
    pub fn apply_normalised(
        &self,
        values: &mut [f32],
        shape: ImageShape,
        means: &[f32],
        rng: &mut ChaCha8Rng,
    ) -> Result<()> {
        if !self.is_after_normalisation() {
            return Err(Error::invalid(self.kind(), "image", "pixels", "normalised values"));
        }
        self.check(shape)?;
        self.check_means(shape, means)?;
        let expected = shape.channels * shape.height * shape.width;
        if values.len() != expected {
            return Err(Error::invalid(self.kind(), format!("values of an image {shape}"), expected, values.len()));
        }
        self.erase(values, shape, means, rng);
        Ok(())
    }

    /// Whether it works on normalised values rather than on pixels.
    pub fn is_after_normalisation(&self) -> bool {
        matches!(self, Self::Cutout { .. } | Self::RandomErasing(_))
    }

    /// The name of the kind, as in a manifest.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RandomCrop { .. } => "random-crop",
            Self::HorizontalFlip { .. } => "horizontal-flip",
            Self::VerticalFlip { .. } => "vertical-flip",
            Self::RandomRotation { .. } => "random-rotation",
            Self::RandomQuarterTurn { .. } => "random-quarter-turn",
            Self::Resize { .. } => "resize",
            Self::CenterCrop { .. } => "center-crop",
            Self::RandomResizedCrop(_) => "random-resized-crop",
            Self::RandomAffine(_) => "random-affine",
            Self::RandomPerspective(_) => "random-perspective",
            Self::ColourJitter(_) => "colour-jitter",
            Self::Greyscale { .. } => "greyscale",
            Self::GaussianBlur(_) => "gaussian-blur",
            Self::AutoAugment(_) => "auto-augment",
            Self::RandAugment(_) => "rand-augment",
            Self::TrivialAugment(_) => "trivial-augment",
            Self::AugMix(_) => "aug-mix",
            Self::Cutout { .. } => "cutout",
            Self::RandomErasing(_) => "random-erasing",
        }
    }

    /// Whether it works with what pixel values stand for, and not only with their places and means.
    fn changes_values(&self) -> bool {
        matches!(
            self,
            Self::ColourJitter(_)
                | Self::AutoAugment(_)
                | Self::RandAugment(_)
                | Self::TrivialAugment(_)
                | Self::AugMix(_)
        )
    }

    /// As [`apply`](Self::apply), for arguments already checked; `spare` is a reused buffer.
    fn run(&self, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        match self {
            Self::RandomCrop { padding } => geometry::random_crop(*padding, image, spare, rng),
            Self::HorizontalFlip { probability } => {
                if draw::chance(*probability, rng) {
                    geometry::flip_horizontal(image);
                }
            }
            Self::VerticalFlip { probability } => {
                if draw::chance(*probability, rng) {
                    geometry::flip_vertical(image);
                }
            }
            Self::RandomRotation { degrees, fill } => warp::random_rotation(*degrees, *fill, image, spare, rng),
            Self::RandomQuarterTurn { probability } => {
                if draw::chance(*probability, rng) {
                    geometry::random_quarter_turn(image, spare, rng);
                }
            }
            Self::Resize { height, width } => resample::resize(image, spare, *height, *width),
            Self::CenterCrop { height, width } => geometry::center_crop(image, spare, *height, *width),
            Self::RandomResizedCrop(config) => config.apply(image, spare, rng),
            Self::RandomAffine(config) => config.apply(image, spare, rng),
            Self::RandomPerspective(config) => config.apply(image, spare, rng),
            Self::ColourJitter(config) => config.apply(image, rng),
            Self::Greyscale { probability } => {
                if draw::chance(*probability, rng) {
                    pixel::greyscale(image);
                }
            }
            Self::GaussianBlur(config) => config.apply(image, spare, rng),
            Self::AutoAugment(config) => config.apply(image, spare, rng),
            Self::RandAugment(config) => config.apply(image, spare, rng),
            Self::TrivialAugment(config) => config.apply(image, spare, rng),
            Self::AugMix(config) => config.apply(image, spare, rng),
            Self::Cutout { .. } | Self::RandomErasing(_) => {}
        }
    }

    fn check_means(&self, shape: ImageShape, means: &[f32]) -> Result<()> {
        match self {
            Self::RandomErasing(config) => config.check_means(shape, means),
            _ => Ok(()),
        }
    }

    /// As [`apply_normalised`](Self::apply_normalised), for arguments already checked.
    fn erase(&self, values: &mut [f32], shape: ImageShape, means: &[f32], rng: &mut ChaCha8Rng) {
        match self {
            Self::Cutout { length } => erase::cutout(*length, values, shape, rng),
            Self::RandomErasing(config) => config.apply(values, shape, means, rng),
            _ => {}
        }
    }
}
