//! Training images that are held out where settings are chosen.

use super::{Lab, TINY};
use retort_datasets::{Modality, Sources, SubsetConfig};
use retort_lab::splits::{DataSpec, Splits, Wanted};
use std::collections::BTreeSet;

fn digits(train: Option<usize>, test: Option<usize>) -> retort_lab::Result<Splits> {
    let train = SubsetConfig { count: train, ..SubsetConfig::default() };
    Splits::load(&Wanted { name: "digits-8x8", train, test, ..Wanted::default() }, &Sources::default())
}

fn images(data: &retort_datasets::Dataset) -> Vec<(Vec<u8>, u32)> {
    (0..data.len()).map(|i| (data.image(i).unwrap().to_vec(), data.label(i).unwrap())).collect()
}

#[test]
fn the_last_rows_of_every_class_are_held_out() {
    let splits = digits(Some(60), Some(40)).unwrap();
    let held = splits.validation(20).unwrap();
    assert_eq!((held.train.class_counts(), held.test.class_counts()), (vec![4; 10], vec![2; 10]));
    // Of each class the rest comes first, then what is held out; together they are the training rows.
    for class in 0..10 {
        let of = |data| images(data).into_iter().filter(|(_, label)| *label == class).collect::<Vec<_>>();
        assert_eq!([of(&held.train), of(&held.test)].concat(), of(&splits.train));
    }
    // Test images do not come in.
    let test: BTreeSet<_> = images(&splits.test).into_iter().collect();
    assert!(images(&held.test).iter().all(|image| !test.contains(image)));
    assert_eq!(held.model(Modality::Stored).unwrap(), splits.model(Modality::Stored).unwrap());
}

#[test]
fn digests_say_which_rows_they_are_and_find_them_again() {
    for (train, test) in [(Some(60), Some(40)), (None, None)] {
        let splits = digits(train, test).unwrap();
        let held = splits.validation(20).unwrap();
        let (data, whole) = (held.spec(), splits.spec());
        assert!(data.held_out && !whole.held_out);
        assert_eq!((data.train, data.test), (splits.train.len() - 20, 20));
        assert_eq!((&data.train_digest, &data.test_digest), (&held.train.digest().into(), &held.test.digest().into()));
        let digests = [&data.train_digest, &data.test_digest, &whole.train_digest, &whole.test_digest];
        assert_eq!(BTreeSet::from(digests).len(), 4);
        for spec in [data, whole] {
            assert_eq!(Splits::of(&spec, &Sources::default()).unwrap().spec(), spec);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(json.contains("held_out"), spec.held_out, "{json}");
            assert_eq!(serde_json::from_str::<DataSpec>(&json).unwrap(), spec);
        }
    }
}

#[test]
fn numbers_that_cannot_be_held_out() {
    let splits = digits(Some(60), Some(40)).unwrap();
    for n in [0, 7, 60, 70, usize::MAX, usize::MAX - 5] {
        let error = splits.validation(n).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    let twice = splits.validation(10).unwrap().validation(10).unwrap_err().to_string();
    assert!(twice.contains("already"), "{twice}");
    let mut data = splits.validation(10).unwrap().spec();
    data.train = usize::MAX;
    assert!(Splits::of(&data, &Sources::default()).is_err());

    let line = TINY[..TINY.find("train = 60").unwrap()].matches('\n').count() + 1;
    for n in ["0", "7", "60", "70"] {
        let lab = Lab::with(&TINY.replacen("test = 40", &format!("test = 40, validation = {n}"), 1));
        let text = lab.refused(&["reproduce", "tiny", "--plan"]);
        assert!(text.contains(&format!("tiny.toml:{line}:")) && text.contains("`validation`"), "{text}");
    }
}

#[test]
fn a_table_trains_on_all_images_whatever_may_be_held_out() {
    let plan = |lab: Lab| lab.ok(&["reproduce", "tiny", "--plan"]);
    let with = Lab::with(&TINY.replacen("test = 40", "test = 40, validation = 20", 1));
    assert_eq!(plan(with), plan(Lab::new()));
}
