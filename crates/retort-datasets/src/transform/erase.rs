//! Rectangles that are erased from what the network sees, after normalisation.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{check, draw};
use crate::{Error, ImageShape, Result};

/// A rectangle of an image, clipped to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErasePatch {
    shape: ImageShape,
    /// Rows from, to (exclusive).
    rows: (usize, usize),
    /// Columns from, to (exclusive).
    columns: (usize, usize),
}

impl ErasePatch {
    /// The square of Cutout: rows `y - L/2 .. y + L/2` and columns `x - L/2 .. x + L/2`, `L/2` cut off to a whole
    /// number.
    ///
    /// So an odd length erases `L - 1` pixels, as in the authors' code.
    #[must_use]
    pub fn square(shape: ImageShape, (y, x): (usize, usize), length: usize) -> Self {
        let half = length / 2;
        let around = |at: usize| (at.saturating_sub(half), at.saturating_add(half));
        Self::clipped(shape, around(y), around(x))
    }

    /// The rectangle of random erasing: height `round(sqrt(A r))`, width `round(sqrt(A / r))` for the area
    /// `A = fraction * H * W` and the aspect ratio `r`, its upper left pixel at `corner` (row, column); halves round to
    /// even.
    ///
    /// Nothing unless it is lower than the image and narrower than it. What goes over the edge is clipped.
    ///
    /// # Errors
    ///
    /// A fraction that is negative or not finite, an aspect ratio that is not positive and finite.
    pub fn of_area(shape: ImageShape, fraction: f64, aspect: f64, corner: (usize, usize)) -> Result<Option<Self>> {
        const OP: &str = "random-erasing";
        check::within(OP, "area fraction", fraction, [0.0, f64::MAX])?;
        check::within(OP, "aspect ratio", aspect, [f64::MIN_POSITIVE, f64::MAX])?;
        let sides = sides(shape, fraction, aspect);
        Ok(sides.map(|(height, width)| {
            let from = |at: usize, side: usize| (at, at.saturating_add(side));
            Self::clipped(shape, from(corner.0, height), from(corner.1, width))
        }))
    }

    fn clipped(shape: ImageShape, rows: (usize, usize), columns: (usize, usize)) -> Self {
        let clip = |(from, to): (usize, usize), limit: usize| (from.min(limit), to.min(limit));
        Self { shape, rows: clip(rows, shape.height), columns: clip(columns, shape.width) }
    }

    /// Writes one value per channel into the rectangle of an image `[C, H, W]`.
    ///
    /// # Errors
    ///
    /// Another number of values than `C * H * W`, not one fill value per channel.
    pub fn fill(&self, values: &mut [f32], fill: &[f32]) -> Result<()> {
        const OP: &str = "erase";
        let expected = self.shape.bytes().unwrap_or(usize::MAX);
        if values.len() != expected {
            return Err(Error::invalid(OP, format!("values of an image {}", self.shape), expected, values.len()));
        }
        if fill.len() != self.shape.channels {
            return Err(Error::invalid(OP, "fill values", self.shape.channels, fill.len()));
        }
        self.write(values, fill.iter().copied());
        Ok(())
    }

    /// As [`fill`](Self::fill), for lengths already checked.
    fn write(&self, values: &mut [f32], fill: impl Iterator<Item = f32>) {
        let ImageShape { height, width, .. } = self.shape;
        if height == 0 || width == 0 {
            return;
        }
        let ((top, bottom), (left, right)) = (self.rows, self.columns);
        for (plane, value) in values.chunks_exact_mut(height * width).zip(fill) {
            for line in plane.chunks_exact_mut(width).take(bottom).skip(top) {
                line[left..right].fill(value);
            }
        }
    }
}

/// Height and width of an erased rectangle, if it is smaller than the image.
fn sides(shape: ImageShape, fraction: f64, aspect: f64) -> Option<(usize, usize)> {
    let area = fraction * shape.height as f64 * shape.width as f64;
    let side = |square: f64| square.sqrt().round_ties_even() as usize;
    let (height, width) = (side(area * aspect), side(area / aspect));
    (height < shape.height && width < shape.width).then_some((height, width))
}

pub(super) fn check_cutout(length: usize, shape: ImageShape) -> Result<ImageShape> {
    if length > 0 {
        return Ok(shape);
    }
    Err(Error::invalid("cutout", "length", "at least 1", length))
}

/// Zeroes a square whose centre is uniform over all pixels.
pub(super) fn cutout(length: usize, values: &mut [f32], shape: ImageShape, rng: &mut ChaCha8Rng) {
    let centre = (draw::below(shape.height, rng), draw::below(shape.width, rng));
    ErasePatch::square(shape, centre, length).write(values, std::iter::repeat(0.0));
}

/// What an erased rectangle shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EraseFill {
    /// The mean of each channel on the scale 0 to 1, though the image is normalised: what the authors' code does.
    #[default]
    ChannelMeans,
    /// 0, which is the mean of a normalised image.
    Zero,
}

/// Random erasing (Zhong et al. 2017, arXiv 1708.04896), after normalisation.
///
/// With some probability up to 100 attempts at a rectangle: its part of the area is uniform in `scale` and height
/// divided by width uniform in `ratio` (not in its logarithm), sides rounded; the first one that is lower and narrower
/// than the image is put at a uniform place. Drawn: probability; per attempt area, ratio; for the one that fits row,
/// column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomErasing {
    /// Probability of a rectangle, 0 to 1.
    pub probability: f64,
    /// Least and greatest part of the area, 0 to 1.
    pub scale: [f64; 2],
    /// Least and greatest height divided by width, > 0.
    pub ratio: [f64; 2],
    /// What the rectangle shows.
    pub fill: EraseFill,
}

impl Default for RandomErasing {
    fn default() -> Self {
        Self { probability: 0.5, scale: [0.02, 0.4], ratio: [0.3, 1.0 / 0.3], fill: EraseFill::ChannelMeans }
    }
}

impl RandomErasing {
    const OP: &str = "random-erasing";

    pub(super) fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        check::probability(Self::OP, self.probability)?;
        check::range(Self::OP, "scale", self.scale, [0.0, 1.0])?;
        check::range(Self::OP, "ratio", self.ratio, [1e-3, 1e3])?;
        Ok(shape)
    }

    /// Whether there is a mean for every channel, where they are asked for.
    pub(super) fn check_means(&self, shape: ImageShape, means: &[f32]) -> Result<()> {
        if self.fill == EraseFill::Zero || means.len() == shape.channels {
            return Ok(());
        }
        let what = "channel means to fill with (`fill = \"zero\"` needs none)";
        Err(Error::invalid(Self::OP, what, shape.channels, means.len()))
    }

    pub(super) fn apply(&self, values: &mut [f32], shape: ImageShape, means: &[f32], rng: &mut ChaCha8Rng) {
        if !draw::chance(self.probability, rng) {
            return;
        }
        for _ in 0..100 {
            let (fraction, aspect) = (draw::uniform(self.scale, rng), draw::uniform(self.ratio, rng));
            let Some((height, width)) = sides(shape, fraction, aspect) else { continue };
            let top = draw::below(shape.height - height + 1, rng);
            let left = draw::below(shape.width - width + 1, rng);
            let patch = ErasePatch::clipped(shape, (top, top + height), (left, left + width));
            match self.fill {
                EraseFill::ChannelMeans => patch.write(values, means.iter().copied()),
                EraseFill::Zero => patch.write(values, std::iter::repeat(0.0)),
            }
            return;
        }
    }
}
