//! Images without any data: for tests, benchmarks, and questions about methods that need no photographs.

use rand::RngExt;

use crate::rng::stream;
use crate::{Dataset, DatasetBuilder, Error, ImageShape, Result, Split};

/// Grey levels that a class's pattern and the noise of an image reach to both sides of the middle.
const PATTERN: f64 = 64.0;
const NOISE: f64 = 63.0;

/// `rows` images in `classes` classes, as equally many of each as the number allows: a smooth random pattern for every
/// class, shifted by a few pixels and covered with uniform noise in every image.
///
/// Row `i` has class `i % classes`. Patterns are a function of `seed`, images of `seed`, split and row; training and test
/// rows share the patterns and no image. A small network learns such a set in a few epochs, not in one step.
///
/// # Errors
///
/// No row, no class, a zero or overflowing shape.
pub fn synthetic(shape: ImageShape, classes: usize, rows: usize, split: Split, seed: u64) -> Result<Dataset> {
    if classes == 0 {
        return Err(Error::invalid("synthetic", "classes", "at least 1", 0));
    }
    let mut builder = DatasetBuilder::new("synthetic", split, shape, classes)?;
    let ImageShape { channels, height, width } = shape;
    let waves: Vec<[f64; 4]> = (0..classes * channels).map(|wave| draw_wave(seed, wave as u64)).collect();
    let mut image = vec![0; channels * height * width];
    for row in 0..rows {
        let class = row % classes;
        let mut rng = stream("retort-datasets/synthetic-image/1", &[seed, split as u64, row as u64]);
        let (dy, dx) = (rng.random_range(0..4u32), rng.random_range(0..4u32));
        for (i, pixel) in image.iter_mut().enumerate() {
            let (channel, y, x) = (i / (height * width), i / width % height, i % width);
            let [rows, columns, phase, tilt] = waves[class * channels + channel];
            let (y, x) = ((y as f64 + f64::from(dy)) / height as f64, (x as f64 + f64::from(dx)) / width as f64);
            let wave = libm::sin(rows * y + phase) + libm::sin(columns * x + tilt * y);
            let noise = rng.random_range(-NOISE..=NOISE);
            *pixel = (127.0 + 0.5 * PATTERN * wave + noise).clamp(0.0, 255.0) as u8;
        }
        builder.push(&image, Some(class as u32), None)?;
    }
    builder.finish_with_statistics()
}

/// Two frequencies, a phase and a tilt.
fn draw_wave(seed: u64, wave: u64) -> [f64; 4] {
    let mut rng = stream("retort-datasets/synthetic-pattern/1", &[seed, wave]);
    let mut draw = |most: f64| rng.random_range(0.0..=most);
    [4.0 + draw(12.0), 4.0 + draw(12.0), draw(std::f64::consts::TAU), draw(6.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ImageShape = ImageShape { channels: 3, height: 12, width: 10 };

    #[test]
    fn classes_are_balanced_and_images_differ() {
        let train = synthetic(SHAPE, 4, 40, Split::Train, 1).unwrap();
        let test = synthetic(SHAPE, 4, 40, Split::Test, 1).unwrap();
        assert_eq!((train.class_counts(), train.labels()[..5].to_vec()), (vec![10; 4], vec![0, 1, 2, 3, 0]));
        assert_ne!(train.image(0).unwrap(), train.image(4).unwrap());
        assert_ne!(train.image(0).unwrap(), test.image(0).unwrap());
        assert_eq!(train.digest(), synthetic(SHAPE, 4, 40, Split::Train, 1).unwrap().digest());
        assert_ne!(train.digest(), synthetic(SHAPE, 4, 40, Split::Train, 2).unwrap().digest());
        assert!(synthetic(SHAPE, 0, 40, Split::Train, 1).is_err() && synthetic(SHAPE, 4, 0, Split::Train, 1).is_err());
    }

    #[test]
    fn the_nearest_class_mean_finds_most_test_images() {
        // What can be learned is there: means over training images classify test images, better than chance by far.
        let (train, test) = (synthetic(SHAPE, 4, 400, Split::Train, 3), synthetic(SHAPE, 4, 100, Split::Test, 3));
        let (train, test) = (train.unwrap(), test.unwrap());
        let mut means = vec![vec![0.0; 360]; 4];
        for row in 0..400 {
            let mean = &mut means[row % 4];
            mean.iter_mut().zip(train.image(row).unwrap().iter()).for_each(|(m, &p)| *m += f64::from(p) / 100.0);
        }
        let distance = |row: usize, mean: &[f64]| -> f64 {
            test.image(row).unwrap().iter().zip(mean).map(|(&p, m)| (f64::from(p) - m).powi(2)).sum()
        };
        let nearest = |row| (0..4).min_by(|&a, &b| distance(row, &means[a]).total_cmp(&distance(row, &means[b])));
        let right = (0..100).filter(|&row| nearest(row) == Some(row % 4)).count();
        assert!(right > 80, "{right}");
    }
}
