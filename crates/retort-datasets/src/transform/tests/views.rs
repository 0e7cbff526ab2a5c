//! Views: order of the steps, modalities, erasing.

use super::*;
use crate::transform::pipeline::view;

/// What a network sees of the first row.
fn seen(config: &ViewConfig, dataset: &Dataset) -> Result<Vec<f32>> {
    view(config, dataset, 0, &mut sample_rng(0, 0, 0, 0))
}

fn modality(modality: Modality, dataset: &Dataset) -> Vec<f32> {
    seen(&ViewConfig { modality, ..ViewConfig::default() }, dataset).unwrap()
}

fn assert_close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(found) - expected).abs() < 1e-6, "{i}: {found} against {expected}");
    }
}

/// Computed with NumPy from the formulas, for the pixels below.
const LIGHTNESS: [f64; 6] = [
    -0.4261921401273136,
    -0.2969565785648382,
    0.6118258842992637,
    0.5478172769757017,
    0.031385188943509376,
    -0.3702177190490902,
];
const CHROMINANCE: [f64; 12] = [
    0.1274083433682281,
    0.5290269290014274,
    0.11941950140004663,
    -0.29982503000566413,
    0.6065094876015618,
    0.47272873757099293,
    -0.4210632889405513,
    0.19549463718536134,
    -0.03242755088269756,
    -0.13245659041266966,
    0.45986959528385635,
    0.10276855838654857,
];
const GREY: [f64; 6] = [
    -0.5591529411764706,
    -0.5181803921568627,
    0.5896470588235292,
    0.33681568627450975,
    -0.18166274509803926,
    -0.5219921568627451,
];
const SOBEL: [f64; 6] = [
    0.38127266365724094,
    0.32846269871089534,
    0.5287012984434392,
    0.4228019462122887,
    0.18738710834447075,
    0.3749571560813024,
];

#[test]
fn colour_modalities_agree_with_numpy() {
    let shape = shape(3, 2, 3);
    let expected = [7, 166, 222, 77, 232, 146, 65, 10, 192, 209, 52, 18, 140, 52, 207, 217, 39, 59];
    assert_eq!(pixels(shape, 0), expected);
    let data = dataset(shape, 255.0);
    assert_close(&modality(Modality::Lightness, &data), &LIGHTNESS);
    assert_close(&modality(Modality::Chrominance, &data), &CHROMINANCE);
    assert_close(&modality(Modality::Grey, &data), &GREY);
    assert_close(&modality(Modality::Sobel, &data), &SOBEL);
}

#[test]
fn lightness_and_chrominance_of_known_colours() {
    // Black, white, red, blue and a dark colour on the linear part of the curves.
    let colours = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255], [10, 5, 2]];
    let planes: Vec<u8> = (0..3).flat_map(|c| colours.map(|colour| colour[c])).collect();
    let data =
        Dataset::from_parts("colours", Split::Test, shape(3, 1, 5), 1, planes, vec![0], Normalization::identity(3))
            .unwrap();
    let lightness = [-1.0, 1.0000000773333309, 0.0648158828261441, -0.3540597813429855, -0.9679388762396829];
    let a = [0.0, -1.5151514689357917e-07, 0.7281132690582831, 0.7198865440465658, 0.00809405301631435];
    let b = [0.0, 6.060605875743166e-08, 0.610938150144118, -0.9805469250377099, 0.014509706249098621];
    assert_close(&modality(Modality::Lightness, &data), &lightness);
    assert_close(&modality(Modality::Chrominance, &data), &[a, b].concat());
}

#[test]
fn grey_images_have_a_luma() {
    let data = dataset(shape(1, 5, 5), 255.0);
    let pixels = pixels(shape(1, 5, 5), 0);
    let grey: Vec<f64> = pixels.iter().map(|&p| 2.0 * f64::from(p) / 255.0 - 1.0).collect();
    assert_close(&modality(Modality::Grey, &data), &grey);
    assert_eq!(modality(Modality::Lightness, &data).len(), 25);
}

#[test]
fn a_step_edge_has_gradient_one() {
    let planes: Vec<u8> = (0..16).map(|i| if i % 4 < 2 { 0 } else { 16 }).collect();
    let data = Dataset::from_parts("edge", Split::Test, shape(1, 4, 4), 1, planes, vec![0], Normalization::identity(1))
        .and_then(|data| data.with_max_value(16.0))
        .unwrap();
    assert_eq!(modality(Modality::Sobel, &data), [0.0, 1.0, 1.0, 0.0].repeat(4));
}

#[test]
fn halves_and_blocks_are_parts_of_the_normalised_image() {
    for (w, max) in [(7, 255.0), (6, 16.0)] {
        let data = dataset(shape(3, 4, w), max);
        let whole = modality(Modality::Stored, &data);
        let half = w / 2;
        let columns =
            |from: usize| -> Vec<f32> { whole.chunks(w).flat_map(|row| row[from..from + half].to_vec()).collect() };
        assert_eq!(modality(Modality::LeftHalf, &data), columns(0));
        assert_eq!(modality(Modality::RightHalf, &data), columns(w - half));
    }
    let data = dataset(shape(3, 4, 6), 16.0);
    let whole = modality(Modality::Stored, &data);
    let mut expected = vec![0.0; 12];
    for (i, &value) in whole.iter().enumerate() {
        let (c, y, x) = (i / 24, i / 6 % 4, i % 6);
        expected[(c * 2 + y / 2) * 2 + x / 3] += f64::from(value) / 6.0;
    }
    assert_close(&modality(Modality::DownSampled { size: 2 }, &data), &expected);
    assert_eq!(modality(Modality::DownSampled { size: 1 }, &data).len(), 3);
}

#[test]
fn modalities_that_images_do_not_have_are_errors() {
    let message =
        |modality: Modality, c: usize, h: usize, w: usize| modality.check(shape(c, h, w)).unwrap_err().to_string();
    assert!(message(Modality::Chrominance, 1, 4, 4).contains("expected 3 (red, green, blue), found 1x4x4"));
    for luma in [Modality::Grey, Modality::Lightness, Modality::Sobel] {
        assert!(message(luma, 2, 4, 4).contains("expected 1 or 3"));
    }
    assert!(message(Modality::LeftHalf, 3, 4, 1).contains("at least 2"));
    for size in [0, 3, 8] {
        assert!(message(Modality::DownSampled { size }, 3, 4, 8).contains("a divisor of height and width"));
    }
    assert!(message(Modality::Stored, 0, 4, 4).contains("positive sizes"));
}

#[test]
fn modalities_are_closed_words() {
    let parse = serde_json::from_str::<Modality>;
    assert_eq!(parse("\"left-half\"").unwrap(), Modality::LeftHalf);
    assert_eq!(parse("{\"down-sampled\":{\"size\":7}}").unwrap(), Modality::DownSampled { size: 7 });
    assert!(parse("{\"down-sampled\":{\"size\":7,\"sizes\":7}}").unwrap_err().to_string().contains("unknown field"));
    assert!(parse("\"gray\"").unwrap_err().to_string().contains("`grey`"));
    let view: ViewConfig = serde_json::from_str("{}").unwrap();
    assert_eq!(view, ViewConfig::default());
    assert!(serde_json::from_str::<ViewConfig>("{\"modalities\":\"grey\"}").is_err());
}

#[test]
fn transforms_change_the_shape_that_the_network_sees() {
    let data = dataset(shape(3, 12, 16), 255.0);
    let config = ViewConfig {
        transforms: vec![
            TransformConfig::CenterCrop { height: 12, width: 12 },
            TransformConfig::RandomQuarterTurn { probability: 1.0 },
            TransformConfig::Resize { height: 8, width: 10 },
            TransformConfig::Cutout { length: 4 },
        ],
        modality: Modality::Chrominance,
        same_as: None,
    };
    assert_eq!(seen(&config, &data).unwrap().len(), 2 * 8 * 10);
    let mut late = config.clone();
    late.transforms.push(TransformConfig::HorizontalFlip { probability: 0.5 });
    let error = seen(&late, &data).unwrap_err().to_string();
    assert!(error.contains("transform 4, `horizontal-flip`") && error.contains("found `cutout` before it"), "{error}");
    let mut turned = config;
    turned.transforms.remove(0);
    assert!(seen(&turned, &data).unwrap_err().to_string().contains("height equal to width"));
}

#[test]
fn erasing_comes_after_normalisation() {
    let data = dataset(shape(3, 8, 10), 255.0);
    let whole = seen(&ViewConfig::default(), &data).unwrap();
    let cut = seen(&ViewConfig::new(vec![TransformConfig::Cutout { length: 5 }]), &data).unwrap();
    let zeros = cut.iter().zip(&whole).filter(|(cut, whole)| cut != whole).inspect(|(cut, _)| assert_eq!(**cut, 0.0));
    // A square of side 4 in each channel, or what clipping leaves of it.
    assert!((12..=48).contains(&zeros.count()));
    let erasing = RandomErasing { probability: 1.0, ..RandomErasing::default() };
    let view = ViewConfig::new(vec![TransformConfig::RandomErasing(erasing.clone())]);
    let erased = seen(&view, &data).unwrap();
    let means = &data.normalization().mean;
    let mut changed = 0;
    for (place, (&erased, &whole)) in erased.iter().zip(&whole).enumerate() {
        if erased != whole {
            assert_eq!(erased, means[place / 80]);
            changed += 1;
        }
    }
    assert!(changed >= 3);
    // The other channels of a modality have no means.
    let grey = ViewConfig { modality: Modality::Grey, ..view };
    assert!(seen(&grey, &data).unwrap_err().to_string().contains("fill = \"zero\""));
    let zero = RandomErasing { fill: EraseFill::Zero, ..erasing };
    let grey = ViewConfig { transforms: vec![TransformConfig::RandomErasing(zero)], ..grey };
    assert!(seen(&grey, &data).unwrap().contains(&0.0));
}

#[test]
fn erased_rectangles_follow_their_definition() {
    let shape = shape(2, 6, 9);
    let erased = |patch: ErasePatch| {
        let mut values = vec![1.0; 108];
        patch.fill(&mut values, &[0.0, 5.0]).unwrap();
        let places: Vec<usize> = (0..54).filter(|&i| values[i] == 0.0 && values[54 + i] == 5.0).collect();
        assert_eq!(values.iter().filter(|&&v| v != 1.0).count(), 2 * places.len());
        (places.first().copied(), places.last().copied(), places.len())
    };
    // Rows 1..5, columns 2..6; an odd length is one less.
    assert_eq!(erased(ErasePatch::square(shape, (3, 4), 4)), (Some(11), Some(41), 16));
    assert_eq!(erased(ErasePatch::square(shape, (3, 4), 5)), erased(ErasePatch::square(shape, (3, 4), 4)));
    assert_eq!(erased(ErasePatch::square(shape, (0, 8), 4)), (Some(6), Some(17), 6));
    assert_eq!(erased(ErasePatch::square(shape, (0, 0), usize::MAX)).2, 54);
    assert_eq!(erased(ErasePatch::square(shape, (99, 99), 4)).2, 0);
    assert_eq!(erased(ErasePatch::square(shape, (0, 0), 1)).2, 0);
    // Area 54 / 6 = 9: 3 by 3, clipped at the corner; 6 high does not fit.
    let of_area = |aspect: f64, corner| ErasePatch::of_area(shape, 1.0 / 6.0, aspect, corner).unwrap();
    assert_eq!(erased(of_area(1.0, (1, 2)).unwrap()), (Some(11), Some(31), 9));
    assert_eq!(erased(of_area(1.0, (4, 8)).unwrap()).2, 2);
    assert_eq!(of_area(4.0, (0, 0)), None);
    assert_eq!(of_area(0.1, (0, 0)), None);
    assert!(ErasePatch::of_area(shape, f64::NAN, 1.0, (0, 0)).is_err());
    assert!(ErasePatch::of_area(shape, 0.5, 0.0, (0, 0)).is_err());
    let patch = ErasePatch::square(shape, (3, 4), 4);
    assert!(patch.fill(&mut [0.0; 107], &[0.0; 2]).is_err());
    assert!(patch.fill(&mut [0.0; 108], &[0.0; 3]).is_err());
}

#[test]
fn colours_need_white_at_255() {
    let data = dataset(shape(1, 8, 8), 16.0);
    let policy = ViewConfig::new(vec![TransformConfig::TrivialAugment(TrivialAugment::default())]);
    let error = seen(&policy, &data).unwrap_err().to_string();
    assert!(error.contains("largest pixel value of `test` for `trivial-augment`: expected 255, found 16"), "{error}");
}

#[test]
fn the_plain_view_is_the_normalised_image() {
    let data = dataset(shape(3, 3, 5), 255.0);
    let Normalization { mean, std } = data.normalization();
    let expected: Vec<f32> = pixels(shape(3, 3, 5), 0)
        .iter()
        .enumerate()
        .map(|(i, &p)| ((f64::from(p) / 255.0 - f64::from(mean[i / 15])) / f64::from(std[i / 15])) as f32)
        .collect();
    assert_eq!(seen(&ViewConfig::default(), &data).unwrap(), expected);
}
