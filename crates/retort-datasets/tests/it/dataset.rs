//! Checks of the constructor, subsets, digest.

use super::{RGB, synthetic};
use proptest::prelude::*;
use retort_datasets::{Dataset, ImageShape, Normalization, Result, Split, load};

const PIXEL_PAIR: ImageShape = ImageShape { channels: 1, height: 1, width: 2 };

fn tiny(pixels: Vec<u8>, labels: Vec<u32>) -> Result<Dataset> {
    let identity = Normalization::identity(1);
    Dataset::from_parts("tiny", Split::Test, PIXEL_PAIR, 2, pixels, labels, identity)
}

#[test]
fn parts_are_checked() {
    let message = |result: Result<Dataset>| result.unwrap_err().to_string();
    let label = message(tiny(vec![0; 4], vec![1, 2]));
    assert_eq!(label, "from_parts: label of row 1: expected less than 2, found 2");
    let pixels = message(tiny(vec![0; 5], vec![1, 0]));
    assert_eq!(pixels, "from_parts: pixels of 2 images 1x1x2: expected 4, found 5");
    assert!(message(tiny(vec![], vec![])).contains("rows"));

    let with = |shape, classes, normalization| {
        Dataset::from_parts("x", Split::Test, shape, classes, vec![0; 2], vec![0], normalization)
    };
    let identity = Normalization::identity(1);
    let flat = ImageShape { height: 0, ..PIXEL_PAIR };
    assert!(message(with(flat, 2, identity.clone())).contains("shape"));
    let huge = ImageShape { height: usize::MAX, ..PIXEL_PAIR };
    assert!(message(with(huge, 2, identity.clone())).contains("shape"));
    assert!(message(with(PIXEL_PAIR, 0, identity.clone())).contains("classes"));
    assert!(message(with(PIXEL_PAIR, 2, Normalization::identity(3))).contains("mean"));
    for std in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let normalization = Normalization { mean: vec![0.0], std: vec![std] };
        assert!(message(with(PIXEL_PAIR, 2, normalization)).contains("std"));
    }

    let good = tiny(vec![0, 9, 0, 0], vec![1, 0]).unwrap();
    assert!(good.clone().with_max_value(8.0).is_err());
    assert_eq!(good.clone().with_max_value(9.0).unwrap().max_value(), 9.0);
    assert!(good.clone().with_class_names(vec!["a".into()]).is_err());
    assert!(good.image(2).is_err() && good.label(2).is_err());
    assert!(good.select(&[]).is_err() && good.select(&[0, 2]).is_err());
}

#[test]
fn digest_is_the_documented_hash() {
    // Computed with Python's hashlib from the description of the method.
    let data = tiny(vec![1, 2, 3, 4], vec![1, 0]).unwrap();
    let expected = "db970f5036c451dd8ddb6c4106e83762490041483f2975d3a19314002b50a3fc";
    assert_eq!(data.digest(), expected);
    let swapped = data.select(&[1, 0]).unwrap();
    assert_ne!(swapped.digest(), expected);
    assert_eq!(swapped.select(&[1, 0]).unwrap().digest(), expected);
    let relabelled = tiny(vec![1, 2, 3, 4], vec![0, 0]).unwrap();
    assert_ne!(relabelled.digest(), expected);
}

#[test]
fn balanced_subset_takes_the_first_rows_of_each_class() {
    let data = synthetic(RGB, 2, vec![0, 0, 1, 0, 1, 1, 0]);
    let four = data.take_balanced(4).unwrap();
    assert_eq!(four.labels(), [0, 0, 1, 1]);
    for (i, row) in [0, 1, 2, 4].into_iter().enumerate() {
        assert_eq!(four.image(i).unwrap(), data.image(row).unwrap());
    }
    for n in [0, 3, 8, usize::MAX - 1] {
        assert!(data.take_balanced(n).is_err(), "{n}");
    }
    let short = data.take_balanced(8).unwrap_err().to_string();
    assert!(short.contains("class 1 (`1`): expected at least 4, found 3"), "{short}");
}

#[test]
fn validation_takes_the_last_rows_of_each_class() {
    let data = synthetic(RGB, 2, vec![0, 0, 1, 0, 1, 1, 0]);
    let (rest, validation) = data.split_validation(1).unwrap();
    assert_eq!(rest.labels(), [0, 0, 1, 0, 1]);
    assert_eq!(validation.labels(), [1, 0]);
    assert_eq!(validation.image(0).unwrap(), data.image(5).unwrap());
    assert_eq!(validation.image(1).unwrap(), data.image(6).unwrap());
    assert!(data.split_validation(0).is_err());
    assert!(data.split_validation(3).is_err(), "nothing of class 1 would be left");
    assert!(data.split_validation(usize::MAX).is_err());
}

#[test]
fn subsets_keep_what_the_data_set_knows() {
    let data = load("digits-8x8", Split::Train, None).unwrap();
    let subset = data.take_balanced(100).unwrap();
    assert_eq!(subset.class_counts(), [10; 10]);
    assert_eq!(subset.name(), data.name());
    assert_eq!(subset.max_value(), 16.0);
    assert_eq!(subset.normalization(), data.normalization());
    assert_ne!(subset.digest(), data.digest());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn subsets_are_balanced_and_disjoint(
        labels in prop::collection::vec(0..3u32, 1..60), each in 1..6usize,
    ) {
        let data = synthetic(RGB, 3, labels);
        let smallest = *data.class_counts().iter().min().unwrap();
        let subset = data.take_balanced(3 * each);
        prop_assert_eq!(subset.is_ok(), smallest >= each);
        if let Ok(subset) = subset {
            prop_assert_eq!(subset.class_counts(), vec![each; 3]);
        }
        let parts = data.split_validation(each);
        prop_assert_eq!(parts.is_ok(), smallest > each);
        if let Ok((rest, validation)) = parts {
            prop_assert_eq!(validation.class_counts(), vec![each; 3]);
            // The images of `synthetic` are distinct, so equal multisets mean: each row in exactly one part.
            let rows = |d: &Dataset| -> Vec<Vec<u8>> {
                (0..d.len()).map(|i| d.image(i).unwrap().to_vec()).collect()
            };
            let mut all = [rows(&rest), rows(&validation)].concat();
            let mut expected = rows(&data);
            all.sort();
            expected.sort();
            prop_assert_eq!(all, expected);
        }
    }
}
