//! Crops, flips and quarter turns: pixels move, and keep their values.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Image;
use super::draw;
use crate::{Error, ImageShape, Result};

/// Longer sides than this are a slip.
const MAX_SIDE: usize = 4096;

pub(super) fn check_crop(padding: usize, shape: ImageShape) -> Result<ImageShape> {
    let limit = shape.height.min(shape.width);
    if padding < limit {
        return Ok(shape);
    }
    let what = format!("padding for images {shape}");
    Err(Error::invalid("random-crop", what, format!("less than {limit}"), padding))
}

pub(super) fn random_crop(padding: usize, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let top = rng.random_range(0..=2 * padding as u64) as usize;
    let left = rng.random_range(0..=2 * padding as u64) as usize;
    let shape = image.shape;
    image.rewrite(spare, shape, |source, target| crop_padded(source, target, shape, padding, (top, left)));
}

/// Writes the window at `(top, left)` of the zero-padded `source` into `target`, both `[C, H, W]`.
pub(super) fn crop_padded(
    source: &[u8],
    target: &mut [u8],
    shape: ImageShape,
    padding: usize,
    (top, left): (usize, usize),
) {
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

pub(super) fn flip_horizontal(image: &mut Image) {
    image.pixels.chunks_exact_mut(image.shape.width).for_each(<[u8]>::reverse);
}

pub(super) fn flip_vertical(image: &mut Image) {
    let ImageShape { height, width, .. } = image.shape;
    for plane in image.pixels.chunks_exact_mut(height * width) {
        for y in 0..height / 2 {
            let (upper, lower) = plane.split_at_mut((height - 1 - y) * width);
            upper[y * width..(y + 1) * width].swap_with_slice(&mut lower[..width]);
        }
    }
}

pub(super) fn check_square(operation: &'static str, shape: ImageShape) -> Result<ImageShape> {
    if shape.height == shape.width {
        return Ok(shape);
    }
    Err(Error::invalid(operation, "image", "height equal to width", shape))
}

/// Turns a square image by 0 to 3 quarters, counter-clockwise, each equally likely.
pub(super) fn random_quarter_turn(image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    quarter_turns(image, spare, draw::below(4, rng));
}

/// As `torch.rot90`: one turn gives `out[i, j] = in[j, N - 1 - i]`.
pub(super) fn quarter_turns(image: &mut Image, spare: &mut Vec<u8>, turns: usize) {
    let (shape, n) = (image.shape, image.shape.width);
    let from = |i: usize, j: usize| match turns % 4 {
        1 => (j, n - 1 - i),
        2 => (n - 1 - i, n - 1 - j),
        3 => (n - 1 - j, i),
        _ => (i, j),
    };
    image.rewrite(spare, shape, |source, target| {
        for (source, target) in source.chunks_exact(n * n).zip(target.chunks_exact_mut(n * n)) {
            for (place, pixel) in target.iter_mut().enumerate() {
                let (y, x) = from(place / n, place % n);
                *pixel = source[y * n + x];
            }
        }
    });
}

/// The shape with other sides, which must be 1 to 4096.
pub(super) fn check_sides(
    operation: &'static str,
    shape: ImageShape,
    height: usize,
    width: usize,
) -> Result<ImageShape> {
    for (what, side) in [("height", height), ("width", width)] {
        if !(1..=MAX_SIDE).contains(&side) {
            return Err(Error::invalid(operation, what, format!("1 to {MAX_SIDE}"), side));
        }
    }
    let result = ImageShape { height, width, ..shape };
    match result.bytes() {
        Some(_) => Ok(result),
        None => Err(Error::invalid(operation, "result", "an image that fits memory", result)),
    }
}

pub(super) fn check_center_crop(shape: ImageShape, height: usize, width: usize) -> Result<ImageShape> {
    const OP: &str = "center-crop";
    let result = check_sides(OP, shape, height, width)?;
    for (what, side, limit) in [("height", height, shape.height), ("width", width, shape.width)] {
        if side > limit {
            let what = format!("{what} for images {shape}");
            return Err(Error::invalid(OP, what, format!("at most {limit}"), side));
        }
    }
    Ok(result)
}

pub(super) fn center_crop(image: &mut Image, spare: &mut Vec<u8>, height: usize, width: usize) {
    // Half of an odd rest goes to the even number of pixels, as torchvision rounds it.
    let half = |rest: usize| (rest as f64 / 2.0).round_ties_even() as usize;
    let (top, left) = (half(image.shape.height - height), half(image.shape.width - width));
    crop(image, spare, Window { top, left, height, width });
}

/// A part of an image, inside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) top: usize,
    pub(super) left: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

pub(super) fn crop(image: &mut Image, spare: &mut Vec<u8>, window: Window) {
    let ImageShape { height, width, .. } = image.shape;
    let shape = ImageShape { height: window.height, width: window.width, ..image.shape };
    image.rewrite(spare, shape, |source, target| {
        for (row, line) in target.chunks_exact_mut(window.width).enumerate() {
            let (plane, y) = (row / window.height, row % window.height);
            let start = (plane * height + window.top + y) * width + window.left;
            line.copy_from_slice(&source[start..start + window.width]);
        }
    });
}
