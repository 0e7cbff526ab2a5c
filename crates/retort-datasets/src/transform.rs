//! Augmentation of `u8` images.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, ImageShape, Result};

/// One step of augmentation, applied in the order of the list and before normalization.
///
/// In a manifest: `{ kind = "random-crop", padding = 4 }`, `{ kind = "horizontal-flip", probability = 0.5 }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TransformConfig {
    /// Pads all four sides with zero pixels and cuts the original size out again at a uniform position
    /// (He et al. 2015, arXiv 1512.03385, section 4.2).
    ///
    /// The padding is 0 before normalization, that is black, as in the reference recipes.
    RandomCrop {
        /// Zero pixels on each side, less than the height and the width; 0 changes nothing.
        padding: usize,
    },
    /// Mirrors left and right.
    HorizontalFlip {
        /// Probability of the mirror image, 0 to 1.
        probability: f64,
    },
}

impl TransformConfig {
    /// Checks the ranges for images of this shape.
    ///
    /// # Errors
    ///
    /// A padding that is not less than height and width (the crop could miss the image altogether), a
    /// probability outside 0 to 1 or NaN.
    pub fn check(&self, shape: ImageShape) -> Result<()> {
        match *self {
            Self::RandomCrop { padding } => {
                let limit = shape.height.min(shape.width);
                if padding >= limit {
                    return Err(Error::invalid(
                        "random-crop",
                        format!("padding for images {shape}"),
                        format!("less than {limit}"),
                        padding,
                    ));
                }
            }
            Self::HorizontalFlip { probability } => {
                if !(0.0..=1.0).contains(&probability) {
                    return Err(Error::invalid("horizontal-flip", "probability", "0 to 1", probability));
                }
            }
        }
        Ok(())
    }

    /// Augments one image `[C, H, W]` in place.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check), and an image whose length is not `C * H * W`.
    pub fn apply(&self, image: &mut [u8], shape: ImageShape, rng: &mut ChaCha8Rng) -> Result<()> {
        self.check(shape)?;
        match shape.bytes() {
            Some(bytes) if bytes > 0 && bytes == image.len() => {}
            bytes => {
                let what = format!("bytes of an image {shape}");
                let expected = match bytes {
                    None | Some(0) => "a shape of positive sizes that fits memory".to_owned(),
                    Some(bytes) => bytes.to_string(),
                };
                return Err(Error::invalid("apply", what, expected, image.len()));
            }
        }
        self.apply_checked(image, &mut Vec::new(), shape, rng);
        Ok(())
    }

    /// As [`apply`](Self::apply), for arguments already checked; `scratch` is a reused buffer.
    pub(crate) fn apply_checked(
        &self,
        image: &mut [u8],
        scratch: &mut Vec<u8>,
        shape: ImageShape,
        rng: &mut ChaCha8Rng,
    ) {
        match *self {
            Self::RandomCrop { padding } => {
                let top = rng.random_range(0..=2 * padding as u64) as usize;
                let left = rng.random_range(0..=2 * padding as u64) as usize;
                scratch.clear();
                scratch.extend_from_slice(image);
                crop_padded(scratch, image, shape, padding, (top, left));
            }
            Self::HorizontalFlip { probability } => {
                // Drawn even for 0 and 1, so that the steps after it see the same stream for any probability.
                if rng.random::<f64>() < probability {
                    flip_horizontal(image, shape);
                }
            }
        }
    }
}

/// Writes the window at `(top, left)` of the zero-padded `source` into `target`, both `[C, H, W]`.
fn crop_padded(source: &[u8], target: &mut [u8], shape: ImageShape, padding: usize, (top, left): (usize, usize)) {
    let ImageShape { height, width, .. } = shape;
    // Columns of the target that lie on the image: target x shows source column x + left - padding.
    let first = padding.saturating_sub(left);
    let end = (width + padding).saturating_sub(left).min(width);
    for (row, line) in target.chunks_exact_mut(width).enumerate() {
        let (plane, y) = (row / height, row % height);
        let from = (y + top).checked_sub(padding).filter(|&y| y < height);
        match from {
            Some(from) if first < end => {
                let start = (plane * height + from) * width + first + left - padding;
                line[..first].fill(0);
                line[first..end].copy_from_slice(&source[start..start + end - first]);
                line[end..].fill(0);
            }
            _ => line.fill(0),
        }
    }
}

fn flip_horizontal(image: &mut [u8], shape: ImageShape) {
    for line in image.chunks_exact_mut(shape.width) {
        line.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_rng;
    use proptest::prelude::*;

    const SHAPE: ImageShape = ImageShape { channels: 2, height: 3, width: 4 };

    fn image(shape: ImageShape) -> Vec<u8> {
        (1..=shape.bytes().unwrap()).map(|i| i as u8).collect()
    }

    fn cropped(shape: ImageShape, padding: usize, at: (usize, usize)) -> Vec<u8> {
        let source = image(shape);
        // Not zero, so that a byte left unwritten shows.
        let mut target = vec![255; source.len()];
        crop_padded(&source, &mut target, shape, padding, at);
        target
    }

    #[test]
    fn crop_moves_the_image_and_fills_with_zero() {
        // Window one row down and two columns right of the original position.
        let expected = [7, 8, 0, 0, 11, 12, 0, 0, 0, 0, 0, 0];
        assert_eq!(cropped(SHAPE, 2, (3, 4))[..12], expected);
        let second: Vec<u8> = expected.map(|v| if v == 0 { 0 } else { v + 12 }).into();
        assert_eq!(cropped(SHAPE, 2, (3, 4))[12..], second);
        // One row up and one column left.
        assert_eq!(cropped(SHAPE, 1, (0, 0))[..12], [0, 0, 0, 0, 0, 1, 2, 3, 0, 5, 6, 7]);
    }

    #[test]
    fn flip_mirrors_each_line() {
        let mut flipped = image(SHAPE);
        flip_horizontal(&mut flipped, SHAPE);
        assert_eq!(flipped[..8], [4, 3, 2, 1, 8, 7, 6, 5]);
    }

    #[test]
    fn flip_frequency_follows_the_probability() {
        for (probability, range) in [(0.0, 0..=0), (0.25, 200..=300), (1.0, 1000..=1000)] {
            let flip = TransformConfig::HorizontalFlip { probability };
            let flipped = (0..1000)
                .filter(|&i| {
                    let mut out = image(SHAPE);
                    flip.apply(&mut out, SHAPE, &mut sample_rng(1, 2, i)).unwrap();
                    out != image(SHAPE)
                })
                .count();
            assert!(range.contains(&flipped), "p {probability}: {flipped} of 1000");
        }
    }

    #[test]
    fn crop_reaches_every_offset() {
        let crop = TransformConfig::RandomCrop { padding: 1 };
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..500 {
            let mut out = image(SHAPE);
            crop.apply(&mut out, SHAPE, &mut sample_rng(0, 0, i)).unwrap();
            seen.insert(out);
        }
        let all = (0..3).flat_map(|t| (0..3).map(move |l| cropped(SHAPE, 1, (t, l))));
        assert_eq!(seen, all.collect());
    }

    #[test]
    fn ranges_are_checked() {
        let message = |t: TransformConfig| t.check(SHAPE).unwrap_err().to_string();
        let padding = message(TransformConfig::RandomCrop { padding: 3 });
        assert_eq!(padding, "random-crop: padding for images 2x3x4: expected less than 3, found 3");
        for probability in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let text = message(TransformConfig::HorizontalFlip { probability });
            assert!(text.contains("probability: expected 0 to 1"), "{text}");
        }
        let flip = TransformConfig::HorizontalFlip { probability: 1.0 };
        let empty = ImageShape { width: 0, ..SHAPE };
        let rng = &mut sample_rng(0, 0, 0);
        assert!(flip.apply(&mut [], empty, rng).is_err());
        assert!(flip.apply(&mut [0; 23], SHAPE, rng).is_err());
        let endless = ImageShape { width: usize::MAX, ..SHAPE };
        assert!(flip.apply(&mut [0; 23], endless, rng).is_err());
    }

    #[test]
    fn configuration_is_tagged_and_closed() {
        let parse = serde_json::from_str::<TransformConfig>;
        assert_eq!(parse(r#"{"kind":"random-crop","padding":4}"#).unwrap(), TransformConfig::RandomCrop { padding: 4 });
        let typo = parse(r#"{"kind":"horizontal-flip","probabilty":0.5}"#);
        assert!(typo.unwrap_err().to_string().contains("unknown field `probabilty`"));
        let unknown = parse(r#"{"kind":"random-crops","padding":4}"#);
        assert!(unknown.unwrap_err().to_string().contains("`random-crop`"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn crop_at_the_padding_is_identity(c in 1..4usize, h in 1..7usize, w in 1..7usize, padding in 0..6usize) {
            let shape = ImageShape { channels: c, height: h, width: w };
            prop_assert_eq!(cropped(shape, padding, (padding, padding)), image(shape));
        }

        #[test]
        fn crop_agrees_with_its_definition(
            h in 1..7usize, w in 1..7usize, padding in 0..6usize, top in 0..12usize, left in 0..12usize,
        ) {
            let shape = ImageShape { channels: 2, height: h, width: w };
            let at = (top % (2 * padding + 1), left % (2 * padding + 1));
            let (source, out) = (image(shape), cropped(shape, padding, at));
            for (i, &pixel) in out.iter().enumerate() {
                let (c, y, x) = (i / (h * w), i / w % h, i % w);
                let inside = (y + at.0).checked_sub(padding).zip((x + at.1).checked_sub(padding));
                let expected = match inside {
                    Some((y, x)) if y < h && x < w => source[(c * h + y) * w + x],
                    _ => 0,
                };
                prop_assert_eq!(pixel, expected);
            }
        }

        #[test]
        fn flip_twice_is_identity(c in 1..4usize, h in 1..7usize, w in 1..7usize) {
            let shape = ImageShape { channels: c, height: h, width: w };
            let mut out = image(shape);
            flip_horizontal(&mut out, shape);
            flip_horizontal(&mut out, shape);
            prop_assert_eq!(out, image(shape));
        }
    }
}
