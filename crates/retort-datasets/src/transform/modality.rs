//! What of an image a network sees: all of it, its grey or its colours alone, edges, a half, a coarse copy.

use serde::{Deserialize, Serialize};

use crate::{Dataset, Error, ImageShape, Normalization, Result};

/// What of an image a network sees, so that teacher and student can be shown different sides of the same image.
///
/// It comes after the transforms and takes the place of the normalisation. Below, `c` are the channels as
/// `pixel / max_value`, `Y = 0.299 R + 0.587 G + 0.114 B` is the luma (of a grey image: the image), and "normalised"
/// means `(c - mean) / std` with the statistics of the data set.
///
/// In TOML: `modality = "lightness"`, `modality = { down-sampled = { size = 7 } }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Modality {
    /// The whole image, normalised: `[C, H, W]`.
    #[default]
    Stored,
    /// `2 Y - 1`: `[1, H, W]`.
    Grey,
    /// `(L - 50) / 50` of CIE L*a*b* (sRGB, white D65): `[1, H, W]`, from -1 to 1.
    Lightness,
    /// `(a, b) / 110` of CIE L*a*b* (sRGB, white D65): `[2, H, W]`, of colour images.
    Chrominance,
    /// Magnitude `sqrt(gx^2 + gy^2)` of the luma's gradient by Sobel's filter over 4, the edge repeated: `[1, H, W]`.
    ///
    /// A step from black to white across a vertical or horizontal line gives 1.
    Sobel,
    /// The first `floor(W / 2)` columns, normalised: `[C, H, floor(W / 2)]`.
    LeftHalf,
    /// The last `floor(W / 2)` columns, normalised: `[C, H, floor(W / 2)]`; the middle of an odd width is in no half.
    RightHalf,
    /// Means over blocks, normalised: `[C, size, size]`.
    DownSampled {
        /// Side of the result, a divisor of height and width.
        size: usize,
    },
}

impl Modality {
    const OP: &str = "modality";

    /// The shape that a network sees of images of this shape.
    ///
    /// # Errors
    ///
    /// Channels other than 1 or 3 for the luma, other than 3 for the chrominance; halves of a single column; a size
    /// that does not divide height and width.
    pub fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        let wrong = |what: &str, expected: &str| Err(Error::invalid(Self::OP, what, expected, shape));
        let luma = matches!(shape.channels, 1 | 3);
        match *self {
            _ if shape.bytes().is_none_or(|n| n == 0) => wrong("image", "positive sizes that fit memory"),
            Self::Stored => Ok(shape),
            Self::Grey | Self::Lightness | Self::Sobel if luma => Ok(ImageShape { channels: 1, ..shape }),
            Self::Grey | Self::Lightness | Self::Sobel => wrong("channels of the image", "1 or 3"),
            Self::Chrominance if shape.channels == 3 => Ok(ImageShape { channels: 2, ..shape }),
            Self::Chrominance => wrong("channels of the image", "3 (red, green, blue)"),
            Self::LeftHalf | Self::RightHalf if shape.width >= 2 => Ok(ImageShape { width: shape.width / 2, ..shape }),
            Self::LeftHalf | Self::RightHalf => wrong("width of the image", "at least 2"),
            Self::DownSampled { size } => {
                let divides = |side: usize| size > 0 && side.is_multiple_of(size);
                if divides(shape.height) && divides(shape.width) {
                    return Ok(ImageShape { height: size, width: size, ..shape });
                }
                let expected = format!("a divisor of height and width of images {shape}");
                Err(Error::invalid(Self::OP, "size of the down-sampled image", expected, size))
            }
        }
    }

    /// Whether the channels are those of the data set, normalised by its statistics.
    pub(super) fn is_normalised(&self) -> bool {
        matches!(self, Self::Stored | Self::LeftHalf | Self::RightHalf | Self::DownSampled { .. })
    }
}

/// A modality of one data set, checked, with its tables.
#[derive(Debug)]
pub(super) struct Viewer {
    modality: Modality,
    shape: ImageShape,
    /// `[C, 256]`: normalised value of each pixel value.
    normalised: Vec<f32>,
    /// `[256]`: each pixel value on the scale 0 to 1.
    scaled: Vec<f64>,
    /// `[256]`: light that each pixel value stands for, of sRGB.
    linear: Vec<f64>,
    /// Mean and standard deviation of each channel.
    statistics: Vec<(f64, f64)>,
    /// Pixel value that counts as 1.
    max: f64,
}

impl Viewer {
    /// For images of `shape`, which differs from that of the data set where transforms have changed it.
    pub(super) fn new(modality: Modality, shape: ImageShape, dataset: &Dataset) -> Result<Self> {
        modality.check(shape)?;
        let max = f64::from(dataset.max_value());
        let scaled: Vec<f64> = (0..256u32).map(|pixel| f64::from(pixel) / max).collect();
        let Normalization { mean, std } = dataset.normalization();
        let linear = scaled.iter().map(|&c| match c {
            c if c <= 0.04045 => c / 12.92,
            c => libm::pow((c + 0.055) / 1.055, 2.4),
        });
        let statistics = mean.iter().zip(std).map(|(&mean, &std)| (f64::from(mean), f64::from(std)));
        Ok(Self {
            modality,
            shape,
            normalised: normalization_table(dataset),
            linear: linear.collect(),
            statistics: statistics.collect(),
            scaled,
            max,
        })
    }

    /// Writes what the network sees of an image; `plane` is a reused buffer.
    pub(super) fn write(&self, image: &[u8], target: &mut [f32], plane: &mut Vec<f32>) {
        let width = self.shape.width;
        match self.modality {
            Modality::Stored => self.normalise(image, target),
            Modality::Grey => self.each(image, target, |pixel| [2.0 * self.luma(pixel) - 1.0]),
            Modality::Lightness => self.each(image, target, |pixel| [(self.lab(pixel)[0] - 50.0) / 50.0]),
            Modality::Chrominance => self.each(image, target, |pixel| {
                let [_, a, b] = self.lab(pixel);
                [a / 110.0, b / 110.0]
            }),
            Modality::Sobel => {
                plane.resize(self.plane(), 0.0);
                self.each(image, plane, |pixel| [self.luma(pixel)]);
                sobel(plane, target, width);
            }
            Modality::LeftHalf => self.columns(image, target, 0),
            Modality::RightHalf => self.columns(image, target, width - width / 2),
            Modality::DownSampled { size } => self.down_sample(image, target, size),
        }
    }

    fn plane(&self) -> usize {
        self.shape.height * self.shape.width
    }

    fn normalise(&self, image: &[u8], target: &mut [f32]) {
        let planes = image.chunks_exact(self.plane()).zip(target.chunks_exact_mut(self.plane()));
        for ((pixels, values), table) in planes.zip(self.normalised.chunks_exact(256)) {
            for (value, &pixel) in values.iter_mut().zip(pixels) {
                *value = table[usize::from(pixel)];
            }
        }
    }

    /// Half of the columns, from `first` on.
    fn columns(&self, image: &[u8], target: &mut [f32], first: usize) {
        let ImageShape { height, width, .. } = self.shape;
        let half = width / 2;
        for (row, line) in target.chunks_exact_mut(half).enumerate() {
            let table = &self.normalised[row / height * 256..][..256];
            let pixels = &image[row * width + first..][..half];
            line.iter_mut().zip(pixels).for_each(|(value, &pixel)| *value = table[usize::from(pixel)]);
        }
    }

    fn down_sample(&self, image: &[u8], target: &mut [f32], size: usize) {
        let ImageShape { height, width, .. } = self.shape;
        let (rows, columns) = (height / size, width / size);
        for (place, value) in target.iter_mut().enumerate() {
            let (channel, y, x) = (place / (size * size), place / size % size, place % size);
            let start = (channel * height + y * rows) * width + x * columns;
            let block = (0..rows).flat_map(|row| &image[start + row * width..][..columns]);
            let sum: u64 = block.map(|&pixel| u64::from(pixel)).sum();
            let (mean, std) = self.statistics[channel];
            *value = ((sum as f64 / ((rows * columns) as f64 * self.max) - mean) / std) as f32;
        }
    }

    /// `N` values out of the three colours of every pixel; a grey pixel has three equal ones.
    fn each<const N: usize>(&self, image: &[u8], target: &mut [f32], see: impl Fn([u8; 3]) -> [f64; N]) {
        let plane = self.plane();
        let channel = |c: usize| &image[if self.shape.channels == 3 { c * plane } else { 0 }..][..plane];
        let (reds, greens, blues) = (channel(0), channel(1), channel(2));
        for place in 0..plane {
            let seen = see([reds[place], greens[place], blues[place]]);
            seen.into_iter().enumerate().for_each(|(c, value)| target[c * plane + place] = value as f32);
        }
    }

    fn luma(&self, [red, green, blue]: [u8; 3]) -> f64 {
        let [red, green, blue] = [red, green, blue].map(|pixel| self.scaled[usize::from(pixel)]);
        // Not three products, so that grey stays exactly grey.
        green + 0.299 * (red - green) + 0.114 * (blue - green)
    }

    /// CIE 1976 L*a*b* of an sRGB colour.
    fn lab(&self, pixel: [u8; 3]) -> [f64; 3] {
        let [red, green, blue] = pixel.map(|value| self.linear[usize::from(value)]);
        let x = 0.4124564 * red + 0.3575761 * green + 0.1804375 * blue;
        let y = 0.2126729 * red + 0.7151522 * green + 0.0721750 * blue;
        let z = 0.0193339 * red + 0.1191920 * green + 0.9503041 * blue;
        let [x, y, z] = [x / 0.95047, y, z / 1.08883].map(|t| {
            const EDGE: f64 = 6.0 / 29.0;
            if t > EDGE * EDGE * EDGE { libm::cbrt(t) } else { t / (3.0 * EDGE * EDGE) + 4.0 / 29.0 }
        });
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }
}

fn sobel(plane: &[f32], target: &mut [f32], width: usize) {
    let height = plane.len() / width;
    for y in 0..height {
        let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)].map(|y| &plane[y * width..][..width]);
        for x in 0..width {
            let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
            let [above, here, below] = rows.map(|row| columns.map(|x| row[x]));
            let across = |row: [f32; 3]| row[2] - row[0];
            let down = |i: usize| below[i] - above[i];
            let gx = (across(above) + 2.0 * across(here) + across(below)) / 4.0;
            let gy = (down(0) + 2.0 * down(1) + down(2)) / 4.0;
            target[y * width + x] = (gx * gx + gy * gy).sqrt();
        }
    }
}

/// `[C, 256]`: `(pixel / max_value - mean) / std`, computed in f64 and rounded once.
fn normalization_table(dataset: &Dataset) -> Vec<f32> {
    let Normalization { mean, std } = dataset.normalization();
    let max = f64::from(dataset.max_value());
    mean.iter()
        .zip(std)
        .flat_map(|(&mean, &std)| {
            (0..256u32).map(move |pixel| ((f64::from(pixel) / max - f64::from(mean)) / f64::from(std)) as f32)
        })
        .collect()
}
