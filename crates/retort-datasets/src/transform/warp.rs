//! Rotation, shear, shift and perspective: every pixel of the result looks up where it came from.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Image, check, draw};
use crate::{Error, ImageShape, Result};

/// Pixel `(x, y)` of the result shows `(a x + b y + c, d x + e y + f)`, in continuous coordinates.
pub(super) type Affine = [f64; 6];

/// Nearest pixel, in 16.16 fixed point as Pillow's `Image.transform`; `fill` for what lies outside.
pub(super) fn affine(image: &mut Image, spare: &mut Vec<u8>, [a, b, c, d, e, f]: Affine, fill: u8) {
    let fixed = |v: f64| (v * 65536.0 + 0.5).floor() as i64;
    let shape = image.shape;
    let (height, width) = (shape.height, shape.width);
    let start = (fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5));
    let (step_x, step_y) = ((fixed(a), fixed(d)), (fixed(b), fixed(e)));
    let inside = |v: i64, limit: usize| usize::try_from(v >> 16).ok().filter(|&v| v < limit);
    image.rewrite(spare, shape, |source, target| {
        let planes = source.chunks_exact(height * width).zip(target.chunks_exact_mut(height * width));
        for (source, target) in planes {
            let mut row = start;
            for line in target.chunks_exact_mut(width) {
                let mut at = row;
                for pixel in line {
                    *pixel = match inside(at.0, width).zip(inside(at.1, height)) {
                        Some((x, y)) => source[y * width + x],
                        None => fill,
                    };
                    at = (at.0 + step_x.0, at.1 + step_x.1);
                }
                row = (row.0 + step_y.0, row.1 + step_y.1);
            }
        }
    });
}

/// Counter-clockwise about the centre, with the matrix of Pillow's `Image.rotate`.
pub(super) fn rotation(degrees: f64, shape: ImageShape) -> Affine {
    let angle = -(degrees.rem_euclid(360.0)).to_radians();
    let (cos, sin) = (digits(libm::cos(angle)), digits(libm::sin(angle)));
    about_centre([cos, sin, -sin, cos], shape, (0.0, 0.0))
}

/// To 15 decimal places as Pillow does, so that quarter turns are exact.
fn digits(v: f64) -> f64 {
    (v * 1e15).round_ties_even() / 1e15
}

/// The matrix `[a, b; d, e]` about the centre of the image, after a shift of the result by `(x, y)` pixels.
fn about_centre([a, b, d, e]: [f64; 4], shape: ImageShape, shift: (f64, f64)) -> Affine {
    let centre = (shape.width as f64 / 2.0, shape.height as f64 / 2.0);
    let (x, y) = (-centre.0 - shift.0, -centre.1 - shift.1);
    [a, b, a * x + b * y + centre.0, d, e, d * x + e * y + centre.1]
}

pub(super) fn check_degrees(operation: &'static str, degrees: f64) -> Result<()> {
    check::within(operation, "degrees", degrees, [0.0, 180.0])
}

pub(super) fn random_rotation(degrees: f64, fill: u8, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let angle = draw::uniform([-degrees, degrees], rng);
    let matrix = rotation(angle, image.shape);
    affine(image, spare, matrix, fill);
}

/// A random rotation about the centre and a random shift (torchvision's `RandomAffine` with degrees and translate).
///
/// The angle is uniform in `-degrees ..= degrees`; the shift is uniform in `-translate ..= translate` times width and
/// height and rounded to whole pixels (half to even). Nearest pixel. Drawn: angle, shift in x, shift in y.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomAffine {
    /// Largest angle in degrees, 0 to 180.
    pub degrees: f64,
    /// Largest shift as parts of width and height, 0 to 1 each.
    pub translate: [f64; 2],
    /// Pixel value of what comes in from outside.
    #[serde(default)]
    pub fill: u8,
}

impl RandomAffine {
    pub(super) fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        const OP: &str = "random-affine";
        check_degrees(OP, self.degrees)?;
        self.translate.iter().try_for_each(|&part| check::within(OP, "translate", part, [0.0, 1.0]))?;
        Ok(shape)
    }

    pub(super) fn apply(&self, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        let angle = draw::uniform([-self.degrees, self.degrees], rng);
        let [x, y] = self.translate;
        let mut shift = |reach: f64| draw::uniform([-reach, reach], rng).round_ties_even();
        let shift = (shift(x * image.shape.width as f64), shift(y * image.shape.height as f64));
        let matrix = rotation_and_shift(angle, image.shape, shift);
        affine(image, spare, matrix, self.fill);
    }
}

/// Clockwise about the centre and then by so many pixels, as torchvision counts.
pub(super) fn rotation_and_shift(degrees: f64, shape: ImageShape, shift: (f64, f64)) -> Affine {
    let angle = degrees.to_radians();
    let (cos, sin) = (digits(libm::cos(angle)), digits(libm::sin(angle)));
    about_centre([cos, sin, -sin, cos], shape, shift)
}

/// Moves the four corners inwards at random (torchvision's `RandomPerspective`), bilinear.
///
/// Every corner moves by a uniform number of pixels, 0 to `distortion` times half of the side, along both axes. Where
/// the four points have no perspective map (three on a line, possible for tiny images alone) the image stays. Drawn:
/// probability; then x, y of the corners top left, top right, bottom right, bottom left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomPerspective {
    /// How far corners may move, 0 to 1.
    pub distortion: f64,
    /// Probability of any change, 0 to 1.
    pub probability: f64,
    /// Pixel value of what comes in from outside.
    pub fill: u8,
}

impl Default for RandomPerspective {
    fn default() -> Self {
        Self { distortion: 0.5, probability: 0.5, fill: 0 }
    }
}

/// The corners of an image or their new places, clockwise from top left, as `(x, y)`.
type Corners = [(f64, f64); 4];

impl RandomPerspective {
    pub(super) fn check(&self, shape: ImageShape) -> Result<ImageShape> {
        const OP: &str = "random-perspective";
        check::within(OP, "distortion", self.distortion, [0.0, 1.0])?;
        check::probability(OP, self.probability)?;
        if shape.height < 2 || shape.width < 2 {
            return Err(Error::invalid(OP, "image", "at least 2 by 2 pixels", shape));
        }
        Ok(shape)
    }

    pub(super) fn apply(&self, image: &mut Image, spare: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        if !draw::chance(self.probability, rng) {
            return;
        }
        let ImageShape { height, width, .. } = image.shape;
        let reach = |side: usize| (self.distortion * (side / 2) as f64) as usize + 1;
        let mut corner = |right: bool, low: bool| {
            let x = draw::below(reach(width), rng);
            let y = draw::below(reach(height), rng);
            let from = |far: bool, side: usize, by: usize| if far { side - 1 - by } else { by } as f64;
            (from(right, width, x), from(low, height, y))
        };
        let moved = [corner(false, false), corner(true, false), corner(true, true), corner(false, true)];
        let (right, low) = ((width - 1) as f64, (height - 1) as f64);
        let corners = [(0.0, 0.0), (right, 0.0), (right, low), (0.0, low)];
        if let Some(map) = perspective_map(&moved, &corners) {
            perspective(image, spare, map, self.fill);
        }
    }
}

/// The eight numbers that take `from` to `to`: `x' = (a x + b y + c) / (g x + h y + 1)`, `y' = (d x + e y + f) / (g x +
/// h y + 1)`.
pub(super) fn perspective_map(from: &Corners, to: &Corners) -> Option<[f64; 8]> {
    let mut system = [[0.0; 9]; 8];
    for (rows, (&(x, y), &(u, v))) in system.chunks_exact_mut(2).zip(from.iter().zip(to)) {
        rows[0] = [x, y, 1.0, 0.0, 0.0, 0.0, -u * x, -u * y, u];
        rows[1] = [0.0, 0.0, 0.0, x, y, 1.0, -v * x, -v * y, v];
    }
    solve(system)
}

/// Gauss-Jordan elimination with pivots; nothing for a singular system.
fn solve(mut system: [[f64; 9]; 8]) -> Option<[f64; 8]> {
    for column in 0..8 {
        let pivot = (column..8).max_by(|&i, &j| system[i][column].abs().total_cmp(&system[j][column].abs()))?;
        system.swap(column, pivot);
        let lead = system[column];
        if lead[column].abs() < 1e-9 {
            return None;
        }
        for (_, row) in system.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column] / lead[column];
            row.iter_mut().zip(lead).for_each(|(value, lead)| *value -= factor * lead);
        }
    }
    Some(std::array::from_fn(|i| system[i][8] / system[i][i]))
}

/// Bilinear as Pillow's `Image.transform`: interpolated in f64, the fraction of the result cut off.
fn perspective(image: &mut Image, spare: &mut Vec<u8>, [a, b, c, d, e, f, g, h]: [f64; 8], fill: u8) {
    let shape = image.shape;
    let (height, width) = (shape.height, shape.width);
    image.rewrite(spare, shape, |source, target| {
        let planes = source.chunks_exact(height * width).zip(target.chunks_exact_mut(height * width));
        for (source, target) in planes {
            for (place, pixel) in target.iter_mut().enumerate() {
                let (x, y) = ((place % width) as f64 + 0.5, (place / width) as f64 + 0.5);
                let depth = g * x + h * y + 1.0;
                let at = ((a * x + b * y + c) / depth, (d * x + e * y + f) / depth);
                *pixel = bilinear(source, height, width, at).unwrap_or(fill);
            }
        }
    });
}

fn bilinear(plane: &[u8], height: usize, width: usize, (x, y): (f64, f64)) -> Option<u8> {
    if !(x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64) {
        return None;
    }
    let (x, y) = (x - 0.5, y - 0.5);
    let (left, top) = (x.floor(), y.floor());
    let (dx, dy) = (x - left, y - top);
    // -1 at the edge: the edge pixel counts for both.
    let clip = |v: f64, limit: usize| (v.max(0.0) as usize).min(limit - 1);
    let (x0, x1) = (clip(left, width), clip(left + 1.0, width));
    let (y0, y1) = (clip(top, height), clip(top + 1.0, height));
    let mix = |y: usize| {
        let (a, b) = (f64::from(plane[y * width + x0]), f64::from(plane[y * width + x1]));
        a + (b - a) * dx
    };
    let (above, below) = (mix(y0), mix(y1));
    Some((above + (below - above) * dy) as u8)
}

#[cfg(test)]
pub(super) fn perspective_for_tests(image: &mut Image, coefficients: [f64; 8]) {
    perspective(image, &mut Vec::new(), coefficients, 0);
}
