//! Tests of the transforms, one file per question.

use super::*;
use crate::{Dataset, Normalization, Split, sample_rng};

mod crops;
mod every_kind;
mod pillow;
mod views;

fn shape(channels: usize, height: usize, width: usize) -> ImageShape {
    ImageShape { channels, height, width }
}

/// Three kinds of pixels out of a linear congruential generator: any value, few values, values of low contrast.
///
/// The reference results of Pillow were computed on the same ones.
fn pixels(shape: ImageShape, kind: usize) -> Vec<u8> {
    let count = shape.channels * shape.height * shape.width;
    let mut state = (12345 + count + kind) as u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = state >> 24;
        [value, 60 + value % 70, value / 16 * value % 251][kind] as u8
    };
    (0..count).map(|_| next()).collect()
}

fn image(shape: ImageShape) -> Image {
    Image::new(shape, pixels(shape, 0)).unwrap()
}

/// The transform applied to a copy, with the generator of `row`.
fn applied(transform: &TransformConfig, image: &Image, row: u64) -> Image {
    let mut image = image.clone();
    transform.apply(&mut image, &mut sample_rng(1, 2, row, 0)).unwrap();
    image
}

/// Two rows of these images.
fn dataset(shape: ImageShape, max_value: f32) -> Dataset {
    let pixels = [pixels(shape, 0), pixels(shape, 1)].concat();
    let pixels = pixels.into_iter().map(|p| p.min(max_value as u8)).collect();
    let mean = (0..shape.channels).map(|c| 0.4 + 0.1 * c as f32).collect();
    let std = (0..shape.channels).map(|c| 0.2 + 0.05 * c as f32).collect();
    Dataset::from_parts("test", Split::Train, shape, 2, pixels, vec![0, 1], Normalization { mean, std })
        .and_then(|dataset| dataset.with_max_value(max_value))
        .unwrap()
}
