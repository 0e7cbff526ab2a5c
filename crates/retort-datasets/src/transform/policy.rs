//! Augmentation policies: random operations out of a list.
//!
//! All use the nearest pixel for shear, shift and rotation; what comes in from outside has the value `fill`, 128 by
//! default as in AutoAugment's own code. A positive shear moves row (column) `i` left (up) by `magnitude * i` pixels, a
//! positive shift moves right (down); a positive rotation is counter-clockwise. The operations on values are those of
//! Pillow.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::colour::check_channels;
use super::{Image, check, draw, pixel, warp};
use crate::{ImageShape, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
    Invert,
}

use Operation::*;

/// What RandAugment and TrivialAugment choose from; AugMix leaves out the first.
const OPERATIONS: [Operation; 14] = [
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
];

/// Magnitudes at the strongest of some levels; level 0 does nothing, apart from Solarize, which then inverts white
/// alone.
struct Space {
    shear: f64,
    translate: Reach,
    /// Degrees.
    rotate: f64,
    /// Bits that Posterize keeps.
    bits: f64,
    /// How far brightness, color, contrast and sharpness go from 1.
    enhance: f64,
    /// Number of the strongest level.
    last: u32,
}

/// Largest shift.
enum Reach {
    /// Part of width and height.
    Part(f64),
    Pixels(f64),
}

/// AutoAugment, and AugMix.
const AUTO: Space =
    Space { shear: 0.3, translate: Reach::Part(150.0 / 331.0), rotate: 30.0, bits: 4.0, enhance: 0.9, last: 9 };
const RAND: Space = Space { last: 30, ..AUTO };
const WIDE: Space =
    Space { shear: 0.99, translate: Reach::Pixels(32.0), rotate: 135.0, bits: 2.0, enhance: 0.99, last: 30 };

impl Space {
    /// The setting of an operation at a level; `sign` counts where an operation has two directions.
    fn value(&self, operation: Operation, level: u32, sign: f64, shape: ImageShape) -> f64 {
        let (level, last) = (f64::from(level), f64::from(self.last));
        let linear = |largest: f64| largest * level / last;
        let shift = |side: usize| match self.translate {
            Reach::Part(part) => linear(part * side as f64).trunc(),
            Reach::Pixels(pixels) => linear(pixels).trunc(),
        };
        match operation {
            ShearX | ShearY => sign * linear(self.shear),
            TranslateX => sign * shift(shape.width),
            TranslateY => sign * shift(shape.height),
            Rotate => sign * linear(self.rotate),
            Brightness | Color | Contrast | Sharpness => 1.0 + sign * linear(self.enhance),
            Posterize => 8.0 - linear(8.0 - self.bits).round_ties_even(),
            Solarize => 255.0 - linear(255.0),
            Identity | AutoContrast | Equalize | Invert => 0.0,
        }
    }
}

impl Operation {
    pub(super) fn apply(self, value: f64, fill: u8, image: &mut Image, spare: &mut Vec<u8>) {
        let mut warp = |matrix| warp::affine(image, spare, matrix, fill);
        match self {
            Identity => {}
            ShearX => warp([1.0, value, 0.0, 0.0, 1.0, 0.0]),
            ShearY => warp([1.0, 0.0, 0.0, value, 1.0, 0.0]),
            TranslateX => warp([1.0, 0.0, -value, 0.0, 1.0, 0.0]),
            TranslateY => warp([1.0, 0.0, 0.0, 0.0, 1.0, -value]),
            Rotate => {
                let matrix = warp::rotation(value, image.shape);
                warp::affine(image, spare, matrix, fill);
            }
            Brightness => pixel::brightness(image, value),
            Color => pixel::saturation(image, value),
            Contrast => pixel::contrast(image, value),
            Sharpness => pixel::sharpness(image, spare, value),
            Posterize => pixel::posterize(image, value as u32),
            Solarize => pixel::solarize(image, value),
            AutoContrast => pixel::autocontrast(image),
            Equalize => pixel::equalize(image),
            Invert => pixel::invert(image),
        }
    }
}

/// Value of pixels that come in from outside.
const GREY: u8 = 128;

/// Two operations, their probabilities and levels.
type SubPolicy = [(Operation, f64, u32); 2];

/// The policy found on CIFAR-10. An operation without a magnitude has level 0.
const CIFAR: [SubPolicy; 25] = [
    [(Invert, 0.1, 0), (Contrast, 0.2, 6)],
    [(Rotate, 0.7, 2), (TranslateX, 0.3, 9)],
    [(Sharpness, 0.8, 1), (Sharpness, 0.9, 3)],
    [(ShearY, 0.5, 8), (TranslateY, 0.7, 9)],
    [(AutoContrast, 0.5, 0), (Equalize, 0.9, 0)],
    [(ShearY, 0.2, 7), (Posterize, 0.3, 7)],
    [(Color, 0.4, 3), (Brightness, 0.6, 7)],
    [(Sharpness, 0.3, 9), (Brightness, 0.7, 9)],
    [(Equalize, 0.6, 0), (Equalize, 0.5, 0)],
    [(Contrast, 0.6, 7), (Sharpness, 0.6, 5)],
    [(Color, 0.7, 7), (TranslateX, 0.5, 8)],
    [(Equalize, 0.3, 0), (AutoContrast, 0.4, 0)],
    [(TranslateY, 0.4, 3), (Sharpness, 0.2, 6)],
    [(Brightness, 0.9, 6), (Color, 0.2, 8)],
    [(Solarize, 0.5, 2), (Invert, 0.0, 0)],
    [(Equalize, 0.2, 0), (AutoContrast, 0.6, 0)],
    [(Equalize, 0.2, 0), (Equalize, 0.6, 0)],
    [(Color, 0.9, 9), (Equalize, 0.6, 0)],
    [(AutoContrast, 0.8, 0), (Solarize, 0.2, 8)],
    [(Brightness, 0.1, 3), (Color, 0.7, 0)],
    [(Solarize, 0.4, 5), (AutoContrast, 0.9, 0)],
    [(TranslateY, 0.9, 9), (TranslateY, 0.7, 9)],
    [(AutoContrast, 0.9, 0), (Solarize, 0.8, 3)],
    [(Equalize, 0.8, 0), (Invert, 0.1, 0)],
    [(TranslateY, 0.7, 9), (AutoContrast, 0.9, 0)],
];

/// AutoAugment (Cubuk et al. 2019, arXiv 1805.09501) with the policy found on CIFAR-10.
///
/// One of 25 pairs of operations; each of the two happens with its probability at its level, 0 to 9: shear up to 0.3,
/// shift up to `trunc(150/331 size)` pixels, rotation up to 30 degrees, brightness, color, contrast and sharpness `1 +-
/// 0.9`, Posterize 8 to 4 bits, Solarize threshold 255 to 0. Drawn: the pair; then for each of the two probability and
/// sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoAugment {
    /// Pixel value of what comes in from outside.
    pub fill: u8,
}

impl Default for AutoAugment {
    fn default() -> Self {
        Self { fill: GREY }
    }
}

impl AutoAugment {
    pub(super) fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        check_channels("auto-augment", shape)
    }

    pub(super) fn apply(&self, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        for (operation, probability, level) in CIFAR[draw::below(CIFAR.len(), rng)] {
            let (happens, sign) = (draw::chance(probability, rng), draw::sign(rng));
            if happens {
                operation.apply(AUTO.value(operation, level, sign, image.shape), self.fill, image, spare);
            }
        }
    }
}

/// RandAugment (Cubuk et al. 2019, arXiv 1909.13719).
///
/// `operations` times one of 14 (identity, shear, shift, rotation, brightness, color, contrast, sharpness, Posterize,
/// Solarize, AutoContrast, Equalize), each at `magnitude` on a scale from 0 to 30 of the ranges of [`AutoAugment`].
/// Drawn, per operation: which, sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandAugment {
    /// Number of operations, 0 to 100.
    pub operations: u32,
    /// Strength, 0 to 30.
    pub magnitude: u32,
    /// Pixel value of what comes in from outside.
    pub fill: u8,
}

impl Default for RandAugment {
    fn default() -> Self {
        Self { operations: 2, magnitude: 9, fill: GREY }
    }
}

impl RandAugment {
    pub(super) fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        const OP: &str = "rand-augment";
        check::count(OP, "operations", self.operations, [0, 100])?;
        check::count(OP, "magnitude", self.magnitude, [0, RAND.last])?;
        check_channels(OP, shape)
    }

    pub(super) fn apply(&self, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        for _ in 0..self.operations {
            let (operation, sign) = (OPERATIONS[draw::below(OPERATIONS.len(), rng)], draw::sign(rng));
            operation.apply(RAND.value(operation, self.magnitude, sign, image.shape), self.fill, image, spare);
        }
    }
}

/// TrivialAugment, wide (Mueller and Hutter 2021, arXiv 2103.10158).
///
/// One operation of [`RandAugment`]'s 14 at a uniform level of 31: shear up to 0.99, shift up to 32 pixels, rotation up
/// to 135 degrees, brightness, color, contrast and sharpness `1 +- 0.99`, Posterize 8 to 2 bits, Solarize threshold 255
/// to 0. Drawn: operation, level, sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrivialAugment {
    /// Pixel value of what comes in from outside.
    pub fill: u8,
}

impl Default for TrivialAugment {
    fn default() -> Self {
        Self { fill: GREY }
    }
}

impl TrivialAugment {
    pub(super) fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        check_channels("trivial-augment", shape)
    }

    pub(super) fn apply(&self, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        let operation = OPERATIONS[draw::below(OPERATIONS.len(), rng)];
        let level = draw::below(WIDE.last as usize + 1, rng) as u32;
        let value = WIDE.value(operation, level, draw::sign(rng), image.shape);
        operation.apply(value, self.fill, image, spare);
    }
}

/// AugMix (Hendrycks et al. 2019, arXiv 1912.02781), without its consistency loss.
///
/// The result is `m x + (1 - m) sum_i w_i chain_i(x)`, rounded to the nearest value, with `m ~ Beta(alpha, alpha)` and
/// `w ~ Dirichlet(alpha, .., alpha)`. A chain is 1 to `depth` operations, each uniform over those of [`RandAugment`]
/// without the identity, at one of the lowest `severity` of the ten levels of [`AutoAugment`].
/// Drawn: `w`, `m`; then per chain its length, and per operation which, level, sign.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugMix {
    /// Levels to choose from, 1 to 10.
    pub severity: u32,
    /// Number of chains, 1 to 100.
    pub chains: u32,
    /// Longest chain, 1 to 100.
    pub depth: u32,
    /// Parameter of both distributions, > 0.
    pub alpha: f64,
    /// Pixel value of what comes in from outside.
    pub fill: u8,
}

impl Default for AugMix {
    fn default() -> Self {
        Self { severity: 3, chains: 3, depth: 3, alpha: 1.0, fill: GREY }
    }
}

impl AugMix {
    pub(super) fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        const OP: &str = "aug-mix";
        check::count(OP, "severity", self.severity, [1, AUTO.last + 1])?;
        check::count(OP, "chains", self.chains, [1, 100])?;
        check::count(OP, "depth", self.depth, [1, 100])?;
        check::within(OP, "alpha", self.alpha, [1e-3, 1e6])?;
        check_channels(OP, shape)
    }

    pub(super) fn apply(&self, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        let weights = draw::dirichlet(self.alpha, self.chains as usize, rng);
        let clean = draw::beta(self.alpha, rng);
        let mut mixed: Vec<f64> = image.pixels.iter().map(|&pixel| clean * f64::from(pixel)).collect();
        let mut chain = image.clone();
        for weight in weights {
            chain.pixels.clone_from(&image.pixels);
            self.chain(&mut chain, spare, rng);
            let part = (1.0 - clean) * weight;
            mixed.iter_mut().zip(&chain.pixels).for_each(|(sum, &pixel)| *sum += part * f64::from(pixel));
        }
        image.pixels.iter_mut().zip(mixed).for_each(|(pixel, mixed)| *pixel = mixed.round() as u8);
    }

    fn chain(&self, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        for _ in 0..=draw::below(self.depth as usize, rng) {
            let operation = OPERATIONS[1 + draw::below(OPERATIONS.len() - 1, rng)];
            let level = draw::below(self.severity as usize, rng) as u32;
            let value = AUTO.value(operation, level, draw::sign(rng), image.shape);
            operation.apply(value, self.fill, image, spare);
        }
    }
}
