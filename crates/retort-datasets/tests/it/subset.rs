//! Parts of a data set: which rows, which labels, and that the seed alone decides.

use super::data;
use proptest::prelude::*;
use retort_datasets::{Dataset, LabelNoise, NoiseKind, Split, SubsetConfig, load};

fn digits() -> Dataset {
    load("digits-8x8", Split::Train, None).unwrap()
}

fn rows(part: &Dataset) -> Vec<(Vec<u8>, u32)> {
    (0..part.len()).map(|i| (part.image(i).unwrap().into_owned(), part.label(i).unwrap())).collect()
}

fn config(text: &str) -> SubsetConfig {
    serde_json::from_str(text).unwrap()
}

#[test]
fn the_whole_is_the_whole() {
    let all = digits();
    assert_eq!(all.subset(&SubsetConfig::default()).unwrap().digest(), all.digest());
    assert_eq!(all.subset(&config(r#"{"fraction": 1.0}"#)).unwrap().digest(), all.digest());
    assert_eq!(serde_json::to_string(&SubsetConfig::default()).unwrap(), "{}");
}

#[test]
fn a_count_takes_the_first_rows_and_a_seed_draws_them() {
    let all = digits();
    let first = all.subset(&config(r#"{"count": 100}"#)).unwrap();
    assert_eq!(first.digest(), all.take_balanced(100).unwrap().digest());
    let drawn =
        |seed| all.subset(&SubsetConfig { count: Some(100), seed: Some(seed), ..SubsetConfig::default() }).unwrap();
    assert_eq!(drawn(1).class_counts(), vec![10; 10]);
    assert_eq!(drawn(1).digest(), drawn(1).digest());
    let digests: std::collections::BTreeSet<String> =
        (0..8).map(|seed| drawn(seed).digest().to_owned()).chain([first.digest().to_owned()]).collect();
    assert_eq!(digests.len(), 9);
    // Pinned: a record that names a seed must find the same rows again.
    assert_eq!(&drawn(1).digest()[..16], "0f884414103ef9bf");
}

#[test]
fn parts_behind_each_other_share_no_row() {
    let all = digits();
    for seed in ["", r#", "seed": 7"#] {
        let part = |text: &str| all.subset(&config(&format!("{{{text}{seed}}}"))).unwrap();
        let (first, second) = (part(r#""count": 200"#), part(r#""skip": 200, "count": 300"#));
        assert_eq!(second.class_counts(), vec![30; 10]);
        let (first, second) = (rows(&first), rows(&second));
        // Equal images of one class would be no mistake, but there are none among the digits.
        assert!(second.iter().all(|row| !first.contains(row)), "{seed}");
        let rest = part(r#""skip": 200"#);
        assert_eq!(rest.len(), all.len() - 200);
        assert!(second.iter().all(|row| rows(&rest).contains(row)));
    }
    let half = all.subset(&config(r#"{"skip": 200, "fraction": 0.5}"#)).unwrap();
    let left: Vec<usize> = all.class_counts().iter().map(|n| ((n - 20) as f64 * 0.5).round() as usize).collect();
    assert_eq!(half.class_counts(), left);
    for wrong in [r#"{"skip": 0}"#, r#"{"skip": 7}"#, r#"{"skip": 100000}"#, r#"{"skip": 1000, "count": 900}"#] {
        let text = all.subset(&config(wrong)).unwrap_err().to_string();
        assert!(text.contains("multiple of the 10 classes") || text.contains("rows of class"), "{wrong}: {text}");
    }
}

#[test]
fn more_of_a_class_keeps_what_was_drawn_before() {
    let all = digits();
    let drawn =
        |n| rows(&all.subset(&SubsetConfig { count: Some(n), seed: Some(3), ..SubsetConfig::default() }).unwrap());
    let (few, many) = (drawn(50), drawn(200));
    assert!(few.iter().all(|row| many.contains(row)));
}

#[test]
fn a_fraction_is_of_every_class() {
    let all = digits();
    let quarter = all.subset(&config(r#"{"fraction": 0.25, "seed": 1}"#)).unwrap();
    let expected: Vec<usize> = all.class_counts().iter().map(|&n| (n as f64 * 0.25).round() as usize).collect();
    assert_eq!(quarter.class_counts(), expected);
    let least = all.subset(&config(r#"{"fraction": 1e-9}"#)).unwrap();
    assert_eq!(least.class_counts(), vec![1; 10]);
}

#[test]
fn classes_are_numbered_anew() {
    let part = digits().subset(&config(r#"{"classes": [7, 2], "count": 20}"#)).unwrap();
    assert_eq!(
        (part.classes(), part.class_names(), part.class_counts()),
        (2, &["7".into(), "2".into()][..], vec![10, 10])
    );
    let sevens: Vec<_> =
        rows(&digits()).into_iter().filter(|(_, label)| *label == 7).take(10).map(|(i, _)| i).collect();
    let first: Vec<_> = rows(&part).into_iter().filter(|(_, label)| *label == 0).map(|(i, _)| i).collect();
    assert_eq!(first, sevens);
}

#[test]
fn noise_changes_labels_and_nothing_else() {
    let all = digits();
    let noisy = |kind, rate, seed| {
        let noise = Some(LabelNoise { kind, rate, seed });
        all.subset(&SubsetConfig { noise, ..SubsetConfig::default() }).unwrap()
    };
    let wrong = |part: &Dataset| -> Vec<usize> {
        (0..all.len()).filter(|&i| part.label(i).unwrap() != all.label(i).unwrap()).collect()
    };
    assert_eq!(noisy(NoiseKind::Symmetric, 0.0, 1).digest(), all.digest());
    assert_eq!(wrong(&noisy(NoiseKind::Symmetric, 1.0, 1)).len(), all.len());
    let some = noisy(NoiseKind::Symmetric, 0.2, 1);
    assert_eq!(some.pixels(), all.pixels());
    // Five standard deviations of a binomial.
    let spread = 5.0 * (all.len() as f64 * 0.2 * 0.8).sqrt();
    assert!((wrong(&some).len() as f64 - 0.2 * all.len() as f64).abs() < spread);
    assert_ne!(wrong(&some), wrong(&noisy(NoiseKind::Symmetric, 0.2, 2)));
    let more = wrong(&noisy(NoiseKind::Symmetric, 0.4, 1));
    assert!(wrong(&some).iter().all(|row| more.contains(row)), "a higher rate keeps what was wrong");
    let paired = noisy(NoiseKind::Pair, 0.5, 1);
    let next = |row: usize| (all.label(row).unwrap() + 1) % 10;
    assert!(wrong(&paired).iter().all(|&row| paired.label(row).unwrap() == next(row)));
    // Every wrong label occurs.
    let to: std::collections::BTreeSet<u32> = wrong(&noisy(NoiseKind::Symmetric, 1.0, 1))
        .into_iter()
        .map(|row| (noisy(NoiseKind::Symmetric, 1.0, 1).label(row).unwrap() + 10 - all.label(row).unwrap()) % 10)
        .collect();
    assert_eq!(to.len(), 9);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let all = digits();
    for (text, named) in [
        (r#"{"classes": []}"#, "`classes`"),
        (r#"{"classes": [10]}"#, "less than 10"),
        (r#"{"classes": [1, 1]}"#, "1 twice"),
        (r#"{"fraction": 0.0}"#, "`fraction`"),
        (r#"{"fraction": 1.5}"#, "`fraction`"),
        (r#"{"fraction": 0.5, "count": 10}"#, "both"),
        (r#"{"count": 0}"#, "multiple"),
        (r#"{"count": 15}"#, "multiple"),
        (r#"{"count": 10000}"#, "rows of class"),
        (r#"{"seed": 1, "noise": {"kind": "pair", "rate": 0.1}}"#, "`seed`"),
        (r#"{"noise": {"kind": "pair", "rate": 1.1}}"#, "`rate`"),
        (r#"{"noise": {"kind": "pair", "rate": -0.1}}"#, "`rate`"),
        (r#"{"classes": [3], "noise": {"kind": "pair", "rate": 0.1}}"#, "at least 2 classes"),
    ] {
        let error = all.subset(&config(text)).unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
    let nan = SubsetConfig { fraction: Some(f64::NAN), ..SubsetConfig::default() };
    assert!(nan.check(10).is_err());
    for text in [r#"{"clases": [1]}"#, r#"{"noise": {"kind": "pairs", "rate": 0.1}}"#, r#"{"noise": {"rate": 0.1}}"#] {
        assert!(serde_json::from_str::<SubsetConfig>(text).is_err(), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn rows_keep_their_order_and_their_labels(n in 1usize..60, fraction in 0.01f64..1.0, seed in proptest::option::of(0u64..4)) {
        let all = data(n);
        let part = all.subset(&SubsetConfig { fraction: Some(fraction), seed, ..SubsetConfig::default() }).unwrap();
        let (all, part) = (rows(&all), rows(&part));
        let mut rest = all.iter();
        prop_assert!(part.iter().all(|row| rest.any(|other| other == row)), "a subsequence of the rows");
    }
}
