//! Random changes of colour.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Image, check, draw, pixel};
use crate::{Error, ImageShape, Result};

pub(super) fn check_channels(operation: &'static str, shape: ImageShape) -> Result<ImageShape> {
    if matches!(shape.channels, 1 | 3) {
        return Ok(shape);
    }
    Err(Error::invalid(operation, "channels", "1 (grey) or 3 (red, green, blue)", shape.channels))
}

/// Random brightness, contrast, saturation and hue in random order (torchvision's `ColorJitter` on Pillow images).
///
/// The first three blend with black, with the mean luma and with the grey image, by factors uniform in
/// `max(0, 1 - x) ..= 1 + x`; the hue turns by a part of the circle uniform in `-hue ..= hue`, through 8-bit HSV. A
/// setting of 0 leaves its step out. Saturation and hue do nothing to grey images. Defaults: those of SimSiam (Chen and
/// He 2020, arXiv 2011.10566).
///
/// Drawn: probability; the order (three numbers); brightness, contrast, saturation, hue, also for settings of 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColourJitter {
    /// >= 0.
    pub brightness: f64,
    /// >= 0.
    pub contrast: f64,
    /// >= 0.
    pub saturation: f64,
    /// 0 to 0.5.
    pub hue: f64,
    /// Probability of any change, 0 to 1.
    pub probability: f64,
}

impl Default for ColourJitter {
    fn default() -> Self {
        Self { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1, probability: 0.8 }
    }
}

impl ColourJitter {
    pub(super) fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        const OP: &str = "colour-jitter";
        for (what, value) in
            [("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)]
        {
            check::within(OP, what, value, [0.0, 1e6])?;
        }
        check::within(OP, "hue", self.hue, [0.0, 0.5])?;
        check::probability(OP, self.probability)?;
        check_channels(OP, shape)
    }

    pub(super) fn apply(&self, image: &mut Image, rng: &mut ChaCha8Rng) {
        if !draw::chance(self.probability, rng) {
            return;
        }
        let mut order = [0, 1, 2, 3];
        (1..4).rev().for_each(|i| order.swap(i, draw::below(i + 1, rng)));
        let mut factor = |setting: f64| draw::uniform([(1.0 - setting).max(0.0), 1.0 + setting], rng);
        let (brightness, contrast, saturation) =
            (factor(self.brightness), factor(self.contrast), factor(self.saturation));
        let hue = draw::uniform([-self.hue, self.hue], rng);
        for step in order {
            match step {
                0 if self.brightness > 0.0 => pixel::brightness(image, brightness),
                1 if self.contrast > 0.0 => pixel::contrast(image, contrast),
                2 if self.saturation > 0.0 => pixel::saturation(image, saturation),
                3 if self.hue > 0.0 => pixel::hue(image, hue),
                _ => {}
            }
        }
    }
}

/// Gaussian blur as Pillow's `ImageFilter.GaussianBlur`: three box filters that together have this standard deviation.
///
/// The standard deviation is uniform in `sigma`, in pixels. Defaults: those of SimCLR and its descendants (Chen et al.
/// 2020, arXiv 2002.05709). Drawn: probability, standard deviation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianBlur {
    /// Least and greatest standard deviation in pixels, 0 to 100.
    pub sigma: [f64; 2],
    /// Probability of a blur, 0 to 1.
    pub probability: f64,
}

impl Default for GaussianBlur {
    fn default() -> Self {
        Self { sigma: [0.1, 2.0], probability: 0.5 }
    }
}

impl GaussianBlur {
    pub(super) fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        const OP: &str = "gaussian-blur";
        check::range(OP, "sigma", self.sigma, [0.0, 100.0])?;
        check::probability(OP, self.probability)?;
        Ok(shape)
    }

    pub(super) fn apply(&self, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        if draw::chance(self.probability, rng) {
            let sigma = draw::uniform(self.sigma, rng);
            pixel::gaussian_blur(image, spare, sigma);
        }
    }
}
