//! Properties of all transforms.

use proptest::prelude::*;

use super::*;

/// The next kind after this one, with other than default settings where there are any: [`every_kind`] walks along.
///
/// A new kind does not compile until it has its place here.
fn successor(of: &TransformConfig) -> Option<TransformConfig> {
    use TransformConfig::*;
    Some(match of {
        RandomCrop { .. } => HorizontalFlip { probability: 0.5 },
        HorizontalFlip { .. } => VerticalFlip { probability: 0.5 },
        VerticalFlip { .. } => RandomRotation { degrees: 20.0, fill: 7 },
        RandomRotation { .. } => RandomQuarterTurn { probability: 0.8 },
        RandomQuarterTurn { .. } => Resize { height: 9, width: 13 },
        Resize { .. } => CenterCrop { height: 1, width: 1 },
        CenterCrop { .. } => RandomResizedCrop(super::RandomResizedCrop { width: Some(5), ..Default::default() }),
        RandomResizedCrop(_) => RandomAffine(super::RandomAffine { degrees: 10.0, translate: [0.1, 0.2], fill: 0 }),
        RandomAffine(_) => RandomPerspective(super::RandomPerspective { probability: 0.9, ..Default::default() }),
        RandomPerspective(_) => ColourJitter(super::ColourJitter::default()),
        ColourJitter(_) => Greyscale { probability: 0.2 },
        Greyscale { .. } => GaussianBlur(super::GaussianBlur::default()),
        GaussianBlur(_) => AutoAugment(super::AutoAugment::default()),
        AutoAugment(_) => RandAugment(super::RandAugment { operations: 3, magnitude: 17, fill: 0 }),
        RandAugment(_) => TrivialAugment(super::TrivialAugment::default()),
        TrivialAugment(_) => AugMix(super::AugMix { severity: 10, ..Default::default() }),
        AugMix(_) => Cutout { length: 5 },
        Cutout { .. } => RandomErasing(super::RandomErasing::default()),
        RandomErasing(_) => return None,
    })
}

fn every_kind() -> Vec<TransformConfig> {
    let first = TransformConfig::RandomCrop { padding: 0 };
    std::iter::successors(Some(first), successor).collect()
}

/// Runs a transform on an image of either sort; nothing where its check refuses.
fn outcome(transform: &TransformConfig, start: &Image, spare: Vec<u8>, row: u64) -> Option<(ImageShape, Vec<u8>)> {
    let expected = transform.check(start.shape()).ok()?;
    let rng = &mut sample_rng(3, 1, row, 0);
    if transform.is_after_normalisation() {
        let mut values: Vec<f32> = start.pixels().iter().map(|&p| f32::from(p)).collect();
        let means = vec![0.5; start.shape().channels];
        transform.apply_normalised(&mut values, start.shape(), &means, rng).unwrap();
        return Some((expected, values.iter().flat_map(|v| v.to_le_bytes()).collect()));
    }
    let (mut image, mut spare) = (start.clone(), spare);
    transform.run(&mut image, &mut spare, rng);
    assert_eq!(image.shape(), expected, "{}", transform.kind());
    assert_eq!(image.pixels().len(), expected.bytes().unwrap());
    Some((expected, image.into_pixels()))
}

#[test]
fn every_kind_does_something_and_is_named_by_its_tag() {
    let kinds = every_kind();
    assert_eq!(kinds.len(), 19);
    for transform in kinds {
        let json = serde_json::to_value(&transform).unwrap();
        assert_eq!(json["kind"], transform.kind());
        assert_eq!(serde_json::from_value::<TransformConfig>(json.clone()).unwrap(), transform);
        let mut typo = json;
        typo["probabilty"] = 0.5.into();
        let error = serde_json::from_value::<TransformConfig>(typo).unwrap_err().to_string();
        assert!(error.contains("unknown field `probabilty`"), "{error}");
        if matches!(transform, TransformConfig::RandomCrop { padding: 0 }) {
            continue;
        }
        let start = image(shape(3, 16, 16));
        let (same, _) = outcome(&TransformConfig::RandomCrop { padding: 0 }, &start, vec![], 0).unwrap();
        let unchanged: Vec<u8> = match transform.is_after_normalisation() {
            true => start.pixels().iter().flat_map(|&p| f32::from(p).to_le_bytes()).collect(),
            false => start.pixels().to_vec(),
        };
        let changed =
            (0..20).filter(|&row| outcome(&transform, &start, vec![], row) != Some((same, unchanged.clone())));
        assert!(changed.count() > 0, "{}", transform.kind());
    }
}

#[test]
fn defaults_are_read_from_the_kind_alone() {
    let read = |kind: &str| {
        serde_json::from_str::<TransformConfig>(&format!("{{\"kind\":\"{kind}\"}}")).map_err(|e| e.to_string())
    };
    let rand = RandAugment { operations: 2, magnitude: 9, fill: 128 };
    assert_eq!(read("rand-augment").unwrap(), TransformConfig::RandAugment(rand));
    assert_eq!(read("cutout").unwrap(), TransformConfig::Cutout { length: 8 });
    assert_eq!(read("random-erasing").unwrap(), TransformConfig::RandomErasing(RandomErasing::default()));
    assert_eq!(read("greyscale").unwrap(), TransformConfig::Greyscale { probability: 0.2 });
    assert_eq!(read("random-quarter-turn").unwrap(), TransformConfig::RandomQuarterTurn { probability: 1.0 });
    for needed in ["random-crop", "horizontal-flip", "random-rotation", "resize", "random-affine"] {
        assert!(read(needed).unwrap_err().contains("missing field"), "{needed}");
    }
    assert!(read("random-crops").unwrap_err().contains("`random-crop`"));
}

#[test]
fn settings_without_strength_change_nothing() {
    let start = image(shape(3, 17, 12));
    let still = [
        TransformConfig::RandomCrop { padding: 0 },
        TransformConfig::RandomRotation { degrees: 0.0, fill: 9 },
        TransformConfig::RandomAffine(RandomAffine { degrees: 0.0, translate: [0.0; 2], fill: 9 }),
        TransformConfig::RandomPerspective(RandomPerspective { distortion: 0.0, probability: 1.0, fill: 9 }),
        TransformConfig::Resize { height: 17, width: 12 },
        TransformConfig::CenterCrop { height: 17, width: 12 },
        TransformConfig::RandomResizedCrop(RandomResizedCrop {
            scale: [1.0; 2],
            ratio: [12.0 / 17.0; 2],
            ..Default::default()
        }),
        TransformConfig::ColourJitter(ColourJitter {
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
            probability: 1.0,
        }),
        TransformConfig::GaussianBlur(GaussianBlur { sigma: [0.0; 2], probability: 1.0 }),
        TransformConfig::RandAugment(RandAugment { operations: 0, ..Default::default() }),
    ];
    for transform in still {
        for row in 0..5 {
            assert_eq!(applied(&transform, &start, row), start, "{transform:?}");
        }
    }
}

#[test]
fn weak_policies_do_what_level_zero_means() {
    // At magnitude 0 only Solarize (of white), AutoContrast and Equalize do anything.
    let weak = TransformConfig::RandAugment(RandAugment { operations: 1, magnitude: 0, fill: 128 });
    let start = Image::new(shape(3, 16, 16), pixels(shape(3, 16, 16), 1)).unwrap();
    let kept = (0..700).filter(|&row| applied(&weak, &start, row) == start).count();
    // 12 of 14: Solarize does nothing either, there is no white.
    assert!((560..=640).contains(&kept), "{kept} of 700");
}

#[test]
fn grey_images_keep_hue_and_saturation() {
    let start = image(shape(1, 9, 8));
    let jitter = ColourJitter { brightness: 0.0, contrast: 0.0, saturation: 5.0, hue: 0.5, probability: 1.0 };
    assert_eq!(applied(&TransformConfig::ColourJitter(jitter), &start, 0), start);
    assert_eq!(applied(&TransformConfig::Greyscale { probability: 1.0 }, &start, 0), start);
}

#[test]
fn a_step_that_does_not_happen_has_drawn_its_number() {
    use rand::RngExt;
    for transform in [
        TransformConfig::HorizontalFlip { probability: 0.0 },
        TransformConfig::VerticalFlip { probability: 0.0 },
        TransformConfig::RandomQuarterTurn { probability: 0.0 },
        TransformConfig::RandomPerspective(RandomPerspective { probability: 0.0, ..Default::default() }),
        TransformConfig::ColourJitter(ColourJitter { probability: 0.0, ..Default::default() }),
        TransformConfig::Greyscale { probability: 0.0 },
        TransformConfig::GaussianBlur(GaussianBlur { probability: 0.0, ..Default::default() }),
    ] {
        let (mut image, rng) = (image(shape(3, 6, 6)), &mut sample_rng(0, 0, 0, 0));
        transform.apply(&mut image, rng).unwrap();
        let other = &mut sample_rng(0, 0, 0, 0);
        other.random::<f64>();
        assert_eq!(rng.random::<u64>(), other.random::<u64>(), "{}", transform.kind());
    }
}

#[test]
fn pixels_and_normalised_values_are_kept_apart() {
    let mut start = image(shape(3, 4, 4));
    let rng = &mut sample_rng(0, 0, 0, 0);
    for transform in every_kind() {
        let after = transform.is_after_normalisation();
        if after {
            assert!(transform.apply(&mut start, rng).unwrap_err().to_string().contains("normalised values"));
            let mut short = vec![0.0; 47];
            assert!(transform.apply_normalised(&mut short, start.shape(), &[0.0; 3], rng).is_err());
        } else {
            let mut values = vec![0.0; 48];
            let error = transform.apply_normalised(&mut values, start.shape(), &[0.0; 3], rng).unwrap_err();
            assert!(error.to_string().contains("expected pixels"), "{error}");
        }
    }
    let erasing = TransformConfig::RandomErasing(RandomErasing::default());
    assert!(erasing.apply_normalised(&mut [0.0; 48], shape(3, 4, 4), &[0.0], rng).is_err());
}

/// Any number, a few of them likely to be right.
fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..1.5f64,
        1 => -10.0..400.0f64,
        1 => proptest::sample::select(vec![0.0, 1.0, -0.0, f64::NAN, f64::INFINITY, f64::MAX, 5e-324]),
    ]
}

fn side() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0..40usize, 1 => Just(usize::MAX), 1 => Just(5000)]
}

/// Every kind with any settings, most of them wrong for most kinds.
fn any_kind(n: [f64; 5], s: [usize; 2], fill: u8, small: [u32; 4]) -> Vec<TransformConfig> {
    use TransformConfig as T;
    let [a, b, c, d, probability] = n;
    let [height, width] = s;
    vec![
        T::RandomCrop { padding: height },
        T::HorizontalFlip { probability },
        T::VerticalFlip { probability },
        T::RandomRotation { degrees: 100.0 * a, fill },
        T::RandomQuarterTurn { probability },
        T::Resize { height, width },
        T::CenterCrop { height, width },
        T::RandomResizedCrop(RandomResizedCrop {
            height: Some(height).filter(|h| h % 3 > 0),
            width: Some(width).filter(|w| w % 3 > 0),
            scale: [a, b],
            ratio: [c, d],
        }),
        T::RandomAffine(RandomAffine { degrees: 100.0 * a, translate: [b, c], fill }),
        T::RandomPerspective(RandomPerspective { distortion: a, probability, fill }),
        T::ColourJitter(ColourJitter { brightness: a, contrast: b, saturation: c, hue: d / 3.0, probability }),
        T::Greyscale { probability },
        T::GaussianBlur(GaussianBlur { sigma: [a, 10.0 * b], probability }),
        T::AutoAugment(AutoAugment { fill }),
        T::RandAugment(RandAugment { operations: small[0], magnitude: small[1] * 4, fill }),
        T::TrivialAugment(TrivialAugment { fill }),
        T::AugMix(AugMix { severity: small[2], chains: small[1], depth: small[3], alpha: a, fill }),
        T::Cutout { length: height },
        T::RandomErasing(RandomErasing { probability, scale: [a, b], ratio: [c, d], fill: EraseFill::Zero }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_kind_keeps_its_promises(grey: bool, h in 1..=33usize, w in 1..=20usize, turned: bool, row: u64) {
        let (h, w) = if turned { (w, h) } else { (h, w) };
        let start = image(shape(if grey { 1 } else { 3 }, h, w));
        for transform in every_kind() {
            let once = outcome(&transform, &start, Vec::new(), row);
            let again = outcome(&transform, &start, vec![77; 5000], row);
            prop_assert_eq!(once, again, "{}", transform.kind());
        }
    }

    #[test]
    fn no_setting_panics(
        n in proptest::array::uniform5(number()), s in proptest::array::uniform2(side()), fill: u8,
        small in proptest::array::uniform4(0..12u32), channels in 1..=4usize, h in 1..=33usize, w in 1..=20usize,
        row: u64,
    ) {
        let start = image(shape(channels, h, w));
        let all = any_kind(n, s, fill, small);
        prop_assert_eq!(all.len(), every_kind().len());
        for transform in all {
            outcome(&transform, &start, vec![5; 10], row);
        }
    }
}
