//! Resizing with Pillow's bilinear filter, and crops that are resized.
//!
//! Pillow (and torchvision on its images) widens the triangle when it reduces an image, so that every pixel counts, and
//! works in fixed point with 22 fractional bits; horizontally first, rounding to 8 bits in between. The same here, bit
//! for bit as Pillow 11.3.0; later versions take the other direction first where that is less work, which moves some
//! values by 1.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::geometry::{Window, check_sides, crop};
use super::{Image, check, draw};
use crate::{ImageShape, Result};

/// Fractional bits of a weight.
const PRECISION: u32 = 22;

/// For every pixel of the result: the first pixel that it sees and their weights.
struct Weights {
    spans: Vec<(usize, usize)>,
    /// The weights of all spans, one after the other.
    values: Vec<i32>,
}

impl Weights {
    fn new(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let support = scale.max(1.0);
        let mut weights = Self { spans: Vec::with_capacity(to), values: Vec::new() };
        let mut span = Vec::new();
        for place in 0..to {
            let centre = (place as f64 + 0.5) * scale;
            // Casts of negative numbers give 0.
            let start = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            span.clear();
            let inverse = 1.0 / support;
            span.extend((start..end).map(|x| (1.0 - ((x as f64 - centre + 0.5) * inverse).abs()).max(0.0)));
            let total: f64 = span.iter().sum();
            let fixed = |weight: &f64| (0.5 + weight / total * f64::from(1 << PRECISION)) as i32;
            weights.spans.push((start, span.len()));
            weights.values.extend(span.iter().map(fixed));
        }
        weights
    }

    /// Calls `write` with the place in the result and the weighted mean of what `read` gives.
    fn sum(&self, read: impl Fn(usize) -> u8, mut write: impl FnMut(usize, u8)) {
        let mut rest = self.values.as_slice();
        for (place, &(start, length)) in self.spans.iter().enumerate() {
            let (weights, after) = rest.split_at(length);
            rest = after;
            let terms = weights.iter().enumerate().map(|(i, &weight)| i32::from(read(start + i)) * weight);
            let sum = (1 << (PRECISION - 1)) + terms.sum::<i32>();
            write(place, (sum >> PRECISION).clamp(0, 255) as u8);
        }
    }
}

/// Resizes an image; nothing happens where the size is right.
pub(super) fn resize(image: &mut Image, spare: &mut Vec<u8>, height: usize, width: usize) {
    let from = image.shape;
    if from.width != width {
        let weights = Weights::new(from.width, width);
        image.rewrite(spare, ImageShape { width, ..from }, |source, target| {
            for (source, target) in source.chunks_exact(from.width).zip(target.chunks_exact_mut(width)) {
                weights.sum(|x| source[x], |x, value| target[x] = value);
            }
        });
    }
    if from.height != height {
        let weights = Weights::new(from.height, height);
        image.rewrite(spare, ImageShape { height, width, ..from }, |source, target| {
            let planes = source.chunks_exact(from.height * width).zip(target.chunks_exact_mut(height * width));
            for (source, target) in planes {
                for x in 0..width {
                    weights.sum(|y| source[y * width + x], |y, value| target[y * width + x] = value);
                }
            }
        });
    }
}

/// A crop of random area and aspect ratio, resized (Szegedy et al. 2014, arXiv 1409.4842; torchvision's
/// `RandomResizedCrop`).
///
/// Up to ten times an area `a H W`, `a` uniform in `scale`, and a ratio width to height, uniform in its logarithm, are
/// drawn; the first window that lies inside the image is put at a uniform place. Without one it is the largest central
/// window whose ratio is in range. The resizing is that of [`Resize`](super::TransformConfig::Resize).
///
/// Drawn, per attempt: area, ratio, and for the window that fits: row, column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// Rows of the result, 1 to 4096; those of the image where absent.
    pub height: Option<usize>,
    /// Columns of the result, 1 to 4096; those of the image where absent.
    pub width: Option<usize>,
    /// Least and greatest part of the area, > 0; above 1 such attempts fail, which makes the whole image more likely.
    pub scale: [f64; 2],
    /// Least and greatest width divided by height, > 0.
    pub ratio: [f64; 2],
}

impl Default for RandomResizedCrop {
    fn default() -> Self {
        Self { height: None, width: None, scale: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0] }
    }
}

impl RandomResizedCrop {
    const OP: &str = "random-resized-crop";

    pub(super) fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        check::range(Self::OP, "scale", self.scale, [f64::MIN_POSITIVE, 1e3])?;
        check::range(Self::OP, "ratio", self.ratio, [1e-3, 1e3])?;
        let (height, width) = self.sides(shape);
        check_sides(Self::OP, shape, height, width)
    }

    fn sides(&self, shape: ImageShape) -> (usize, usize) {
        (self.height.unwrap_or(shape.height), self.width.unwrap_or(shape.width))
    }

    pub(super) fn apply(&self, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        let (height, width) = self.sides(image.shape);
        let window = self.window(image.shape, rng);
        crop(image, spare, window);
        resize(image, spare, height, width);
    }

    pub(super) fn window(&self, shape: ImageShape, rng: &mut ChaCha8Rng) -> Window {
        let ImageShape { height, width, .. } = shape;
        let logs = self.ratio.map(libm::log);
        for _ in 0..10 {
            let area = (height * width) as f64 * draw::uniform(self.scale, rng);
            let ratio = libm::exp(draw::uniform(logs, rng));
            let w = (area * ratio).sqrt().round_ties_even() as usize;
            let h = (area / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = draw::below(height - h + 1, rng);
                let left = draw::below(width - w + 1, rng);
                return Window { top, left, height: h, width: w };
            }
        }
        self.central(height, width)
    }

    fn central(&self, height: usize, width: usize) -> Window {
        let ratio = width as f64 / height as f64;
        let round = |side: f64, limit: usize| (side.round_ties_even() as usize).clamp(1, limit);
        let (h, w) = match self.ratio {
            [least, _] if ratio < least => (round(width as f64 / least, height), width),
            [_, greatest] if ratio > greatest => (height, round(height as f64 * greatest, width)),
            _ => (height, width),
        };
        Window { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
    }
}
