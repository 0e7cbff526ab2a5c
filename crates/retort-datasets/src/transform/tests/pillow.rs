//! Bit equality with Pillow and, for windows and matrices, with torchvision 0.29.2.
//!
//! Pillow 11.3.0 and 13.0.0 gave the same digests, apart from `resize`: 13.0.0 sometimes resizes vertically first, and
//! that digest is of 11.3.0.

use sha2::{Digest, Sha256};

use super::*;
use crate::transform::policy::Operation;
use crate::transform::{geometry, pixel, resample, warp};

/// First 16 hex digits of SHA-256 over all results: for every setting of [`results`], every shape, every kind of
/// pixels.
const PILLOW: [(&str, &str); 19] = [
    ("brightness", "ace1826db1574e50"),
    ("saturation", "165724a7ff5e444d"),
    ("contrast", "94a1ff83ec417e16"),
    ("sharpness", "cbd7eee2cb91ddbb"),
    ("posterize", "ba30ebc0fa540302"),
    ("solarize", "ed2dd850379c52af"),
    ("invert", "1ece4d7f3d659f28"),
    ("autocontrast", "96dbb1333ba23b9c"),
    ("equalize", "4078e9bd7598dcd1"),
    ("greyscale", "cb0b461e331f7a98"),
    ("hue", "c95b75027e60dd35"),
    ("blur", "cf35b146de79b66c"),
    ("shear-x", "597ed9ad7566e5fd"),
    ("shear-y", "92749c31ca05cdcd"),
    ("translate-x", "a4adc5477d7c19bb"),
    ("translate-y", "a672b562c50a0327"),
    ("rotate", "9cc87a6419acfa27"),
    ("resize", "4f76788d8fbc1af6"),
    ("perspective", "79032844529caf1a"),
];

const FACTORS: [f64; 8] = [0.0, 0.1, 0.3, 0.55, 1.0, 1.37, 1.9, 3.2];
const SHEARS: [f64; 6] = [-0.3, -0.1, 0.0, 0.0333, 0.25, 0.99];
const SHIFTS: [f64; 5] = [-40.0, -3.0, 0.0, 1.0, 14.0];
const ANGLES: [f64; 10] = [-135.0, -90.0, -30.0, -7.3, 0.0, 3.33, 22.0, 45.0, 90.0, 180.0];
const TURNS: [f64; 7] = [-0.5, -0.1, -0.033, 0.0, 0.02, 0.25, 0.5];
const SIGMAS: [f64; 7] = [0.05, 0.1, 0.37, 0.8, 1.3, 2.0, 5.5];
const SIDES: [(usize, usize); 6] = [(32, 32), (7, 9), (28, 40), (1, 1), (64, 20), (33, 80)];
const PERSPECTIVES: [[f64; 8]; 2] =
    [[1.0, 0.1, -2.0, 0.05, 0.9, 1.0, 0.001, 0.002], [1.2, -0.3, 3.3, 0.2, 1.1, -4.0, 0.01, -0.004]];

/// The image under every setting of an operation.
fn results(operation: &str, image: &Image) -> Vec<Image> {
    let each = |settings: &[f64], change: &dyn Fn(&mut Image, f64)| {
        let changed = |&setting: &f64| {
            let mut image = image.clone();
            change(&mut image, setting);
            image
        };
        settings.iter().map(changed).collect()
    };
    let policy = |settings: &[f64], operation: Operation| {
        each(settings, &|image, value| operation.apply(value, 128, image, &mut Vec::new()))
    };
    match operation {
        "brightness" => policy(&FACTORS, Operation::Brightness),
        "saturation" => policy(&FACTORS, Operation::Color),
        "contrast" => policy(&FACTORS, Operation::Contrast),
        "sharpness" => policy(&FACTORS, Operation::Sharpness),
        "posterize" => policy(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], Operation::Posterize),
        "solarize" => policy(&[0.0, 28.5, 100.0, 127.5, 170.0, 255.0], Operation::Solarize),
        "invert" => policy(&[0.0], Operation::Invert),
        "autocontrast" => policy(&[0.0], Operation::AutoContrast),
        "equalize" => policy(&[0.0], Operation::Equalize),
        "greyscale" => each(&[0.0], &|image, _| pixel::greyscale(image)),
        "hue" => each(&TURNS, &pixel::hue),
        "blur" => each(&SIGMAS, &|image, sigma| pixel::gaussian_blur(image, &mut Vec::new(), sigma)),
        "shear-x" => policy(&SHEARS, Operation::ShearX),
        "shear-y" => policy(&SHEARS, Operation::ShearY),
        "translate-x" => policy(&SHIFTS, Operation::TranslateX),
        "translate-y" => policy(&SHIFTS, Operation::TranslateY),
        "rotate" => policy(&ANGLES, Operation::Rotate),
        "resize" => each(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &|image, i| {
            let (height, width) = SIDES[i as usize];
            resample::resize(image, &mut Vec::new(), height, width);
        }),
        "perspective" => each(&[0.0, 1.0], &|image, i| warp::perspective_for_tests(image, PERSPECTIVES[i as usize])),
        other => panic!("no operation {other}"),
    }
}

fn short(hash: Sha256) -> String {
    let bytes: [u8; 32] = hash.finalize().into();
    bytes[..8].iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn operations_have_the_bits_of_pillow() {
    let shapes = [(3, 32, 32), (3, 20, 33), (1, 28, 28), (3, 64, 48), (1, 40, 25), (3, 2, 3), (3, 5, 1), (1, 1, 1)];
    let images: Vec<Image> = shapes
        .iter()
        .flat_map(|&(c, h, w)| (0..3).map(move |kind| (shape(c, h, w), kind)))
        .map(|(shape, kind)| Image::new(shape, pixels(shape, kind)).unwrap())
        .collect();
    let mut wrong = Vec::new();
    for (operation, expected) in PILLOW {
        let by_image: Vec<Vec<Image>> = images.iter().map(|image| results(operation, image)).collect();
        let mut hash = Sha256::new();
        for setting in 0..by_image[0].len() {
            by_image.iter().for_each(|results| hash.update(results[setting].pixels()));
        }
        if short(hash) != expected {
            wrong.push(operation);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

fn digest(image: &Image) -> String {
    let mut hash = Sha256::new();
    hash.update(image.pixels());
    short(hash)
}

#[test]
fn windows_and_matrices_are_those_of_torchvision() {
    let start = image(shape(3, 20, 33));
    let spare = &mut Vec::new();
    let fallback = |ratio: [f64; 2]| {
        let crop = RandomResizedCrop { scale: [2.0, 3.0], ratio, ..RandomResizedCrop::default() };
        let window = crop.window(start.shape(), &mut sample_rng(0, 0, 0, 0));
        (window.top, window.left, window.height, window.width)
    };
    assert_eq!(fallback([3.0 / 4.0, 4.0 / 3.0]), (0, 3, 20, 27));
    assert_eq!(fallback([2.0, 3.0]), (2, 0, 16, 33));
    assert_eq!(fallback([0.3, 0.5]), (0, 11, 20, 10));

    let mut resized = start.clone();
    geometry::crop(&mut resized, spare, geometry::Window { top: 3, left: 5, height: 13, width: 17 });
    resample::resize(&mut resized, spare, 32, 28);
    assert_eq!(digest(&resized), "2c16a2826efdc773");

    let mut middle = start.clone();
    geometry::center_crop(&mut middle, spare, 15, 10);
    assert_eq!(digest(&middle), "34f698f66a66b677");

    let mut moved = start.clone();
    let matrix = warp::rotation_and_shift(7.25, moved.shape(), (3.0, -2.0));
    warp::affine(&mut moved, spare, matrix, 9);
    assert_eq!(digest(&moved), "9d4621eefa4dd369");

    let corners = [(0.0, 0.0), (32.0, 0.0), (32.0, 19.0), (0.0, 19.0)];
    let from = [(3.0, 2.0), (29.0, 1.0), (30.0, 17.0), (1.0, 15.0)];
    let mut tilted = start.clone();
    warp::perspective_for_tests(&mut tilted, warp::perspective_map(&from, &corners).unwrap());
    assert_eq!(digest(&tilted), "763e5f27e15e9a72");
}
