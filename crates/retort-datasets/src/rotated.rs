//! Rotated Fashion-MNIST: a regression problem with an exact target.

use rand::RngExt;

use crate::rng::stream;
use crate::{Dataset, DatasetBuilder, Error, ImageShape, Result, Split};

/// Largest angle in degrees, to both sides.
const MOST: f64 = 60.0;

/// Pixels of black border on each side.
const BORDER: usize = 2;

/// Turns pictures of Fashion-MNIST about their centres by angles that are the targets, and pushes them into `rows`.
///
/// Each picture lies in the middle of a black canvas with a border of 2 pixels (28x28 becomes 32x32) and is rotated by an
/// angle drawn uniformly from [-60, 60] degrees, rounded to 0.001; positive is counter-clockwise. Bilinear interpolation,
/// black outside. The target is the angle in degrees; the class of the garment is kept as label.
///
/// Training rows are the first 600 of every class from official training row 10,000 on, test rows the first 150 of every
/// class from official test row 2,500 on, so nothing overlaps `fashion-mnist-10k`. The angle of a picture is a function of
/// its official split and row alone. Do not flip such images without negating the target.
///
/// `rows` must be for images with the border, 10 classes, and targets.
///
/// # Errors
///
/// Another split than train or test, fewer rows than that, a builder for something else.
pub fn rotated_fashion(upright: &Dataset, rows: DatasetBuilder) -> Result<DatasetBuilder> {
    const OP: &str = "rotated fashion";
    let (first, each) = match upright.split() {
        Split::Train => (10_000, 600),
        Split::Test => (2_500, 150),
        other => return Err(Error::invalid(OP, "split", "train or test", other)),
    };
    let mut rows = rows.with_values("degrees");
    let mut left = vec![each; upright.classes()];
    let shape = upright.shape();
    for row in first..upright.len() {
        let label = upright.label(row)?;
        let left = &mut left[label as usize];
        if *left == 0 {
            continue;
        }
        *left -= 1;
        let mut rng = stream("retort-datasets/rotated-fashion/1", &[upright.split() as u64, row as u64]);
        let angle = (rng.random_range(-MOST..=MOST) * 1000.0).round() / 1000.0;
        rows.push(&rotated(&upright.image(row)?, shape, angle), Some(label), Some(angle as f32))?;
    }
    match left.iter().position(|&left| left > 0) {
        None => Ok(rows),
        Some(class) => {
            let expected = format!("{each} from row {first} on");
            Err(Error::invalid(OP, format!("rows of class {class}"), expected, each - left[class]))
        }
    }
}

/// `image` on its canvas, turned counter-clockwise by `degrees`.
fn rotated(image: &[u8], shape: ImageShape, degrees: f64) -> Vec<u8> {
    let ImageShape { channels, height, width } = shape;
    let (out_height, out_width) = (height + 2 * BORDER, width + 2 * BORDER);
    // Not the system's, whose last bit differs between platforms: the digest of the rows must not.
    let (sin, cos) = libm::sincos(degrees.to_radians());
    let centre = |size: usize| (size as f64 - 1.0) / 2.0;
    let mut canvas = Vec::with_capacity(channels * out_height * out_width);
    for plane in image.chunks_exact(height * width) {
        for y in 0..out_height {
            for x in 0..out_width {
                let (dx, dy) = (x as f64 - centre(out_width), y as f64 - centre(out_height));
                // Where the pixel comes from: rows count downwards, so counter-clockwise turns (dx, dy) like this.
                let (from_x, from_y) = (centre(width) + cos * dx - sin * dy, centre(height) + sin * dx + cos * dy);
                canvas.push(bilinear(plane, [height, width], from_y, from_x));
            }
        }
    }
    canvas
}

/// Black outside of the plane.
fn bilinear(plane: &[u8], [height, width]: [usize; 2], y: f64, x: f64) -> u8 {
    let (top, left) = (y.floor(), x.floor());
    let pixel = |row: f64, column: f64| {
        let inside = row >= 0.0 && column >= 0.0 && row < height as f64 && column < width as f64;
        if inside { f64::from(plane[row as usize * width + column as usize]) } else { 0.0 }
    };
    let (down, right) = (y - top, x - left);
    let upper = pixel(top, left) * (1.0 - right) + pixel(top, left + 1.0) * right;
    let lower = pixel(top + 1.0, left) * (1.0 - right) + pixel(top + 1.0, left + 1.0) * right;
    (upper * (1.0 - down) + lower * down).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ImageShape = ImageShape { channels: 1, height: 4, width: 4 };

    fn at(canvas: &[u8], y: usize, x: usize) -> u8 {
        canvas[y * 8 + x]
    }

    #[test]
    fn quarter_turns_move_pixels_exactly() {
        let mut image = vec![0; 16];
        image[1] = 200; // row 0, column 1: row 2, column 3 of the canvas
        assert_eq!(at(&rotated(&image, SHAPE, 0.0), 2, 3), 200);
        // Counter-clockwise: what is at the top goes to the left.
        assert_eq!(at(&rotated(&image, SHAPE, 90.0), 4, 2), 200);
        assert_eq!(at(&rotated(&image, SHAPE, -90.0), 3, 5), 200);
        assert_eq!(at(&rotated(&image, SHAPE, 180.0), 5, 4), 200);
    }

    #[test]
    fn there_and_back_keeps_the_middle() {
        let shape = ImageShape { channels: 1, height: 28, width: 28 };
        let image: Vec<u8> = (0..28 * 28).map(|i| (128.0 + 100.0 * ((i / 28) as f64 / 6.0).sin()) as u8).collect();
        let turned = rotated(&image, shape, 30.0);
        let wide = ImageShape { channels: 1, height: 32, width: 32 };
        let back = rotated(&turned, wide, -30.0);
        for (y, x) in [(13, 13), (10, 15), (16, 11)] {
            let (a, b) = (f64::from(image[y * 28 + x]), f64::from(back[(y + 4) * 36 + x + 4]));
            assert!((a - b).abs() < 6.0, "{a} {b}");
        }
    }
}
