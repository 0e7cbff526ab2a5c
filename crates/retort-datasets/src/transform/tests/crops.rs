//! Crops and flips by their definitions; their bits and draws are those of committed results.

use proptest::prelude::*;
use rand::RngExt;

use super::*;
use crate::transform::geometry;

const SHAPE: ImageShape = ImageShape { channels: 2, height: 3, width: 4 };

fn counted(shape: ImageShape) -> Vec<u8> {
    (1..=shape.bytes().unwrap()).map(|i| i as u8).collect()
}

fn cropped(shape: ImageShape, padding: usize, at: (usize, usize)) -> Vec<u8> {
    let source = counted(shape);
    // Not zero, so that a byte left unwritten shows.
    let mut target = vec![255; source.len()];
    geometry::crop_padded(&source, &mut target, shape, padding, at);
    target
}

fn after(transform: &TransformConfig, row: u64) -> Vec<u8> {
    applied(transform, &Image::new(SHAPE, counted(SHAPE)).unwrap(), row).into_pixels()
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
fn flips_mirror_rows_and_columns() {
    let horizontal = after(&TransformConfig::HorizontalFlip { probability: 1.0 }, 0);
    assert_eq!(horizontal[..8], [4, 3, 2, 1, 8, 7, 6, 5]);
    let vertical = after(&TransformConfig::VerticalFlip { probability: 1.0 }, 0);
    assert_eq!(vertical[..12], [9, 10, 11, 12, 5, 6, 7, 8, 1, 2, 3, 4]);
    assert_eq!(vertical[12..16], [21, 22, 23, 24]);
}

#[test]
fn flip_frequency_follows_the_probability() {
    for (probability, range) in [(0.0, 0..=0), (0.25, 200..=300), (1.0, 1000..=1000)] {
        let flip = TransformConfig::HorizontalFlip { probability };
        let flipped = (0..1000).filter(|&i| after(&flip, i) != counted(SHAPE)).count();
        assert!(range.contains(&flipped), "p {probability}: {flipped} of 1000");
    }
}

#[test]
fn crop_reaches_every_offset() {
    let crop = TransformConfig::RandomCrop { padding: 1 };
    let seen: std::collections::BTreeSet<_> = (0..500).map(|i| after(&crop, i)).collect();
    let all = (0..3).flat_map(|t| (0..3).map(move |l| cropped(SHAPE, 1, (t, l))));
    assert_eq!(seen, all.collect());
}

#[test]
fn crop_and_flip_draw_what_they_always_drew() {
    let (crop, flip) =
        (TransformConfig::RandomCrop { padding: 2 }, TransformConfig::HorizontalFlip { probability: 0.5 });
    for row in 0..50 {
        let mut image = Image::new(SHAPE, counted(SHAPE)).unwrap();
        let rng = &mut sample_rng(7, 3, row, 0);
        crop.apply(&mut image, rng).unwrap();
        flip.apply(&mut image, rng).unwrap();
        let rng = &mut sample_rng(7, 3, row, 0);
        let at = (rng.random_range(0..=4u64) as usize, rng.random_range(0..=4u64) as usize);
        let mut expected = cropped(SHAPE, 2, at);
        if rng.random::<f64>() < 0.5 {
            expected.chunks_exact_mut(4).for_each(<[u8]>::reverse);
        }
        assert_eq!(image.pixels(), expected);
    }
}

#[test]
fn ranges_are_checked() {
    let message = |t: TransformConfig| t.check(SHAPE).unwrap_err().to_string();
    let padding = message(TransformConfig::RandomCrop { padding: 3 });
    assert_eq!(padding, "random-crop: padding for images 2x3x4: expected less than 3, found 3");
    for probability in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let text = message(TransformConfig::HorizontalFlip { probability });
        assert!(text.contains("horizontal-flip: probability: expected 0 to 1"), "{text}");
    }
    let flip = TransformConfig::HorizontalFlip { probability: 1.0 };
    let empty = ImageShape { width: 0, ..SHAPE };
    let endless = ImageShape { width: usize::MAX, ..SHAPE };
    for wrong in [empty, endless] {
        assert!(flip.check(wrong).is_err());
        assert!(Image::new(wrong, vec![0; 23]).is_err());
    }
    let short = Image::new(SHAPE, vec![0; 23]).unwrap_err().to_string();
    assert_eq!(short, "image: pixels of an image 2x3x4: expected 24, found 23");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn crop_at_the_padding_is_identity(c in 1..4usize, h in 1..7usize, w in 1..7usize, padding in 0..6usize) {
        let shape = ImageShape { channels: c, height: h, width: w };
        prop_assert_eq!(cropped(shape, padding, (padding, padding)), counted(shape));
    }

    #[test]
    fn crop_agrees_with_its_definition(
        h in 1..7usize, w in 1..7usize, padding in 0..6usize, top in 0..12usize, left in 0..12usize,
    ) {
        let shape = ImageShape { channels: 2, height: h, width: w };
        let at = (top % (2 * padding + 1), left % (2 * padding + 1));
        let (source, out) = (counted(shape), cropped(shape, padding, at));
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
    fn flips_twice_are_the_identity(c in 1..4usize, h in 1..8usize, w in 1..8usize) {
        let start = image(shape(c, h, w));
        for flip in [
            TransformConfig::HorizontalFlip { probability: 1.0 },
            TransformConfig::VerticalFlip { probability: 1.0 },
        ] {
            prop_assert_eq!(applied(&flip, &applied(&flip, &start, 0), 1), start.clone());
        }
    }
}
