//! Class-balanced batches.

use super::{RGB, synthetic};
use proptest::prelude::*;
use retort_datasets::{
    Batch, Contrast, ContrastSampler, Dataset, Loader, LoaderConfig, Sampling, Split, TransformConfig, ViewConfig, load,
};
use std::collections::{BTreeMap, BTreeSet};

fn config(batch_size: usize, classes: usize) -> LoaderConfig {
    LoaderConfig {
        batch_size,
        sampling: Sampling::ClassBalanced { classes },
        drop_last: false,
        views: vec![ViewConfig::new(vec![
            TransformConfig::RandomCrop { padding: 2 },
            TransformConfig::HorizontalFlip { probability: 0.5 },
        ])],
        seed: 7,
    }
}

/// Labels with `counts[c]` rows of class c, mixed.
fn labels(counts: &[usize]) -> Vec<u32> {
    let most = counts.iter().copied().max().unwrap_or(0);
    (0..most).flat_map(|i| (0u32..).zip(counts).filter(move |(_, n)| i < **n).map(|(class, _)| class)).collect()
}

fn data(counts: &[usize]) -> Dataset {
    synthetic(RGB, counts.len(), labels(counts))
}

fn loader(counts: &[usize], batch_size: usize, classes: usize) -> Loader {
    Loader::new(data(counts), config(batch_size, classes)).unwrap()
}

/// Rows of every class in the batch.
fn by_class(batch: &Batch) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for &label in &batch.label_ids {
        *counts.entry(label).or_default() += 1;
    }
    counts
}

/// Rows, labels and the bits of the pixels.
type Bits = (Vec<u32>, Vec<u32>, Vec<u32>);

fn bits(batches: impl Iterator<Item = retort_datasets::Result<Batch>>) -> Vec<Bits> {
    let pixels = |batch: &Batch| batch.images.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bits = |batch: Batch| {
        let pixels = pixels(&batch).iter().map(|v| v.to_bits()).collect();
        (batch.index, batch.label_ids, pixels)
    };
    batches.map(|batch| bits(batch.unwrap())).collect()
}

/// The largest number of batches, by trying all ways to fill one after the other (small cases only).
fn most_batches(left: &mut Vec<usize>, classes: usize) -> usize {
    let k = left.len();
    let mut best = 0;
    for chosen in (0..1usize << k).filter(|set| set.count_ones() as usize == classes) {
        let in_set = |c: &usize| chosen >> c & 1 == 1;
        if (0..k).filter(in_set).all(|c| left[c] > 0) {
            (0..k).filter(in_set).for_each(|c| left[c] -= 1);
            best = best.max(1 + most_batches(left, classes));
            (0..k).filter(in_set).for_each(|c| left[c] += 1);
        }
    }
    best
}

#[test]
fn equal_classes_come_equally_often_and_leave_out_the_remainder_only() {
    // 50 rows of each of 10 classes, 4 classes of 8 rows: 6 times 8 rows a class, 60 such portions, 15 batches.
    let loader = loader(&[50; 10], 32, 4);
    assert_eq!(loader.batches_per_epoch(), 15);
    let mut batches_of = [0; 10];
    for batch in loader.epoch(0).map(Result::unwrap) {
        for (class, rows) in by_class(&batch) {
            assert_eq!(rows, 8);
            batches_of[class as usize] += 1;
        }
    }
    assert_eq!(batches_of, [6; 10]);
    // 7 portions of 5 rows a class cannot all be used by batches of 3 out of 4: 28 = 9 x 3 + 1.
    let loader = self::loader(&[39; 4], 15, 3);
    assert_eq!((loader.batches_per_epoch(), loader.order(0).len()), (9, 135));
}

#[test]
fn a_hundred_classes_with_a_batch_of_128() {
    // CIFAR-100's counts, 16 classes x 8: floor(100 x 62 / 16) batches.
    let pixel = retort_datasets::ImageShape { channels: 1, height: 1, width: 1 };
    let data = synthetic(pixel, 100, labels(&[500; 100]));
    let sampling = Sampling::ClassBalanced { classes: 16 };
    let config =
        LoaderConfig { batch_size: 128, sampling, drop_last: true, views: vec![ViewConfig::default()], seed: 1 };
    let loader = Loader::new(data, config).unwrap();
    assert_eq!(loader.batches_per_epoch(), 387);
    let mut batches_of = [0usize; 100];
    for batch in loader.epoch(3).map(Result::unwrap) {
        let counts = by_class(&batch);
        assert!(counts.len() == 16 && counts.values().all(|&n| n == 8));
        counts.keys().for_each(|&class| batches_of[class as usize] += 1);
    }
    assert!(batches_of.iter().all(|n| (61..=62).contains(n)), "{batches_of:?}");
}

#[test]
fn a_dominant_class_is_in_every_batch_and_gives_up_the_rest() {
    // Class 0 could fill 20 batches, but each needs a second class: 3 + 2 of them.
    let loader = loader(&[40, 6, 5], 4, 2);
    assert_eq!(loader.batches_per_epoch(), 5);
    let mut left_out = BTreeSet::new();
    for epoch in 0..20 {
        let mut seen = [0; 3];
        for batch in loader.epoch(epoch).map(Result::unwrap) {
            by_class(&batch).iter().for_each(|(&class, rows)| seen[class as usize] += rows);
        }
        assert_eq!(seen, [10, 6, 4]);
        let order = loader.order(epoch);
        left_out.insert((0..51).filter(|row| !order.contains(row)).collect::<Vec<_>>());
    }
    assert!(left_out.len() > 15, "another epoch leaves out other rows");
}

#[test]
fn the_largest_classes_do_not_all_come_first() {
    // Taking the fullest classes first, the first three batches would all hold classes 0 and 1.
    let loader = loader(&[6, 6, 2, 2, 2, 2], 2, 2);
    assert_eq!(loader.batches_per_epoch(), 10);
    let mut first = BTreeSet::new();
    for epoch in 0..200 {
        let batch = loader.epoch(epoch).next().unwrap().unwrap();
        first.extend(batch.label_ids);
    }
    assert_eq!(first.len(), 6);
}

#[test]
fn rows_and_classes_are_drawn_evenly() {
    // 5 classes of 4 rows, 2 x 2 a batch: all 20 rows in 5 batches; two classes meet in a tenth of the batches.
    let loader = loader(&[4; 5], 4, 2);
    let (mut pairs, mut first) = (BTreeMap::new(), BTreeMap::new());
    let epochs = 2000;
    for epoch in 0..epochs {
        let order = loader.order(epoch);
        *first.entry(order[0]).or_insert(0) += 1;
        for batch in order.chunks(4) {
            let classes: BTreeSet<u32> = batch.iter().map(|row| row % 5).collect();
            *pairs.entry(classes).or_insert(0) += 1;
        }
    }
    assert_eq!((pairs.len(), first.len()), (10, 20));
    // Five standard deviations of binomials with n = 10000, p = 1/10 and n = 2000, p = 1/20.
    assert!(pairs.values().all(|n: &i32| (n - 1000).abs() < 150), "{pairs:?}");
    assert!(first.values().all(|n: &i32| (n - 100).abs() < 49), "{first:?}");
}

#[test]
fn order_depends_on_seed_and_epoch_alone() {
    let loader = loader(&[9, 8, 7], 4, 2);
    let again = self::loader(&[9, 8, 7], 4, 2);
    assert_eq!(loader.order(5), again.order(5));
    assert_ne!(loader.order(5), loader.order(6));
    let other = LoaderConfig { seed: 8, ..config(4, 2) };
    assert_ne!(loader.order(5), Loader::new(data(&[9, 8, 7]), other).unwrap().order(5));
    // Pinned: a record made today can be made again later.
    let pinned = self::loader(&[4, 4, 4], 4, 2).order(0);
    assert_eq!(pinned, PINNED);
}

/// What the first version drew.
const PINNED: [u32; 12] = [6, 2, 3, 11, 10, 5, 8, 4, 0, 9, 7, 1];

#[test]
fn settings_that_mean_nothing_are_refused() {
    let message = |counts: &[usize], batch_size, classes| {
        Loader::new(data(counts), config(batch_size, classes)).unwrap_err().to_string()
    };
    let too_many = message(&[5, 5, 0], 6, 3);
    assert_eq!(too_many, "class-balanced: `classes`: expected 1 to the 2 classes that occur, found 3");
    assert!(message(&[5, 5], 4, 0).contains("found 0"));
    assert!(message(&[5, 5], usize::MAX, usize::MAX).contains("`classes`"));
    let odd = message(&[5, 5], 5, 2);
    assert_eq!(odd, "class-balanced: `batch_size`: expected a positive multiple of the 2 classes of a batch, found 5");
    assert!(message(&[5, 5], 0, 2).contains("batch_size"));
    let short = message(&[5, 2, 0], 6, 2);
    assert_eq!(short, "class-balanced: rows of class 1: expected at least the 3 that a batch takes, found 2");
    assert!(message(&[5, 5], usize::MAX - 1, 2).contains("rows of class 0"));
    assert!(Sampling::ClassBalanced { classes: 2 }.check(0, &[3, 3]).is_err());
    assert!(Sampling::ClassBalanced { classes: 1 }.check(1, &[]).is_err());
    for sampling in [Sampling::Sequential, Sampling::Shuffled] {
        assert!(sampling.check(7, &[1, 0]).is_ok());
    }
    // A class that does not occur at all is nobody's loss.
    assert_eq!(loader(&[4, 0, 4], 4, 2).batches_per_epoch(), 2);
}

#[test]
fn a_manifest_can_say_it() {
    let parse = |text: &str| serde_json::from_str::<Sampling>(text);
    let balanced = parse(r#"{"kind":"class-balanced","classes":16}"#).unwrap();
    assert_eq!(balanced, Sampling::ClassBalanced { classes: 16 });
    assert_eq!(serde_json::to_string(&balanced).unwrap(), r#"{"kind":"class-balanced","classes":16}"#);
    assert_eq!(parse(r#"{"kind":"shuffled"}"#).unwrap(), Sampling::default());
    assert!(Sampling::Shuffled.is_default() && !balanced.is_default());
    assert!(parse(r#"{"kind":"class-balanced"}"#).unwrap_err().to_string().contains("`classes`"));
    let typo = parse(r#"{"kind":"class-balanced","classses":16}"#).unwrap_err().to_string();
    assert!(typo.contains("unknown field `classses`"), "{typo}");
    for stray in [r#"{"kind":"shuffled","classes":16}"#, r#"{"kind":"sequential","classes":16}"#] {
        assert!(parse(stray).unwrap_err().to_string().contains("unknown field `classes`"));
    }
    assert!(parse(r#"{"kind":"balanced","classes":16}"#).unwrap_err().to_string().contains("class-balanced"));
}

#[test]
fn embedded_digits_with_their_own_counts() {
    // 1437 rows, 139 to 149 of a class.
    let digits = load("digits-8x8", Split::Train, None).unwrap();
    let sampling = Sampling::ClassBalanced { classes: 10 };
    let config =
        LoaderConfig { batch_size: 40, sampling, drop_last: false, views: vec![ViewConfig::default()], seed: 1 };
    let smallest = *digits.class_counts().iter().min().unwrap();
    let loader = Loader::new(digits, config).unwrap();
    assert_eq!(loader.batches_per_epoch(), smallest / 4);
    for batch in loader.epoch(0).map(Result::unwrap) {
        assert_eq!(by_class(&batch).into_values().collect::<Vec<_>>(), [4; 10]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batches_are_balanced_and_disjoint(
        counts in prop::collection::vec(0..40usize, 1..8), classes in 1..6usize, each in 1..5usize,
        seed: u64, epoch: u64,
    ) {
        let occur = counts.iter().filter(|n| **n > 0).count();
        prop_assume!(occur > 0);
        let config = LoaderConfig { seed, ..config(classes * each, classes) };
        let loader = Loader::new(data(&counts), config);
        let possible = classes <= occur && counts.iter().all(|&n| n == 0 || n >= each);
        prop_assert_eq!(loader.is_ok(), possible);
        let Ok(loader) = loader else { return Ok(()) };
        let mut seen = BTreeSet::new();
        let mut batches = 0;
        for batch in loader.epoch(epoch).map(Result::unwrap) {
            let found = by_class(&batch);
            prop_assert_eq!(found.len(), classes);
            prop_assert!(found.values().all(|&n| n == each));
            for row in &batch.index {
                prop_assert!(seen.insert(*row), "row {} comes twice", row);
            }
            batches += 1;
        }
        prop_assert!(batches > 0);
        prop_assert_eq!(batches, loader.batches_per_epoch());
        prop_assert_eq!(loader.order(epoch).len(), batches * classes * each);
    }

    #[test]
    fn no_other_choice_gives_more_batches(
        mut portions in prop::collection::vec(1..4usize, 1..5), classes in 1..5usize,
    ) {
        prop_assume!(classes <= portions.len());
        let counts: Vec<usize> = portions.iter().map(|n| 2 * n).collect();
        prop_assert_eq!(loader(&counts, 2 * classes, classes).batches_per_epoch(), most_batches(&mut portions, classes));
    }

    #[test]
    fn a_resumed_epoch_is_the_tail(
        counts in prop::collection::vec(3..12usize, 2..5), first in 0..30usize, epoch: u64,
    ) {
        let loader = loader(&counts, 6, 2);
        let all = bits(loader.epoch(epoch));
        let tail = loader.epoch_from(epoch, first);
        prop_assert_eq!(tail.len(), all.len().saturating_sub(first));
        prop_assert_eq!(bits(tail), all[first.min(all.len())..].to_vec());
    }

    #[test]
    fn threads_do_not_change_a_bit(counts in prop::collection::vec(8..30usize, 2..5), seed: u64) {
        let loader = Loader::new(data(&counts), LoaderConfig { seed, ..config(16, 2) }).unwrap();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| bits(loader.epoch(1)))
        };
        prop_assert_eq!(run(1), run(2));
    }
}

fn partners(n: usize, batch_size: usize, partners: usize) -> Loader {
    let config = LoaderConfig {
        batch_size,
        sampling: Sampling::SameClassPartners { partners },
        drop_last: false,
        views: vec![ViewConfig::new(vec![TransformConfig::RandomCrop { padding: 2 }])],
        seed: 5,
    };
    Loader::new(super::data(n), config).unwrap()
}

#[test]
fn partners_stand_behind_their_anchors() {
    // 3 classes of 10 rows; the last batch has 6 anchors.
    for (count, loader) in [(1, partners(30, 8, 1)), (3, partners(30, 8, 3)), (15, partners(30, 8, 15))] {
        assert_eq!(loader.batches_per_epoch(), 4);
        let mut anchors = Vec::new();
        for batch in loader.epoch(2) {
            let batch = batch.unwrap();
            let n = batch.len() / (1 + count);
            assert_eq!(batch.len(), n * (1 + count));
            for slot in 1..=count {
                for i in 0..n {
                    assert_eq!(batch.label_ids[slot * n + i], batch.label_ids[i]);
                    assert_ne!(batch.index[slot * n + i], batch.index[i], "an anchor is not its own partner");
                }
            }
            if count <= 9 {
                let of = |i: usize| (1..=count).map(|slot| batch.index[slot * n + i]).collect::<BTreeSet<_>>().len();
                assert!((0..n).all(|i| of(i) == count), "different partners where the class has enough rows");
            }
            anchors.extend_from_slice(&batch.index[..n]);
        }
        anchors.sort_unstable();
        assert_eq!(anchors, (0..30).collect::<Vec<u32>>());
    }
    assert_eq!(partners(30, 8, 3).order(1), partners(30, 8, 3).order(1));
    assert_ne!(partners(30, 8, 3).order(1), partners(30, 8, 3).order(2));
}

#[test]
fn partners_are_equally_likely_and_augmented_apart() {
    // 2 rows a class: the other one is always the partner, and both come as anchor in one batch.
    let loader = partners(6, 6, 1);
    let batch = loader.epoch(0).next().unwrap().unwrap();
    let values: Vec<Vec<f32>> = batch.images.flatten_from(1).unwrap().to_vec2().unwrap();
    let place =
        |slot: usize, row: u32| slot * 6 + batch.index[slot * 6..slot * 6 + 6].iter().position(|&r| r == row).unwrap();
    assert!((0..6).any(|row| values[place(0, row)] != values[place(1, row)]));
    let loader = partners(15, 15, 1);
    let mut counts = [0i32; 15];
    for epoch in 0..1000 {
        let order = loader.order(epoch);
        let anchor = order.iter().position(|&row| row == 4).unwrap();
        counts[order[15 + anchor] as usize] += 1;
    }
    // Class 1 has rows 1, 4, 7, 10, 13; five standard deviations of a binomial with p = 1/4.
    assert_eq!(counts.iter().filter(|&&n| n > 0).count(), 4);
    assert!([1, 7, 10, 13].iter().all(|&row| (counts[row] - 250).abs() < 69), "{counts:?}");
}

#[test]
fn impossible_partners_are_refused() {
    let check = |partners, counts: &[usize]| Sampling::SameClassPartners { partners }.check(4, counts);
    assert!(check(1, &[2, 0, 5]).is_ok());
    assert!(check(0, &[2, 2]).unwrap_err().to_string().contains("`partners`"));
    assert!(check(2000, &[2, 2]).is_err());
    assert!(check(1, &[2, 1]).unwrap_err().to_string().contains("rows of class 1"));
}

#[test]
fn contrast_is_of_the_class_and_of_the_others() {
    let labels: Vec<u32> = (0..60).map(|i| i % 3).collect();
    let sampler = ContrastSampler::new(&labels, 4, 5, 500, 1).unwrap();
    let mut seen = BTreeSet::new();
    for row in 0..60 {
        let Contrast { positives, negatives } = sampler.draw(0, row).unwrap();
        assert_eq!((positives.len(), negatives.len()), (5, 500));
        let class = labels[row as usize];
        assert!(positives.iter().all(|&other| labels[other as usize] == class && other != row));
        assert_eq!(positives.iter().collect::<BTreeSet<_>>().len(), 5);
        assert!(negatives.iter().all(|&other| labels[other as usize] != class));
        seen.extend(negatives);
        assert_eq!(sampler.draw(0, row).unwrap(), sampler.draw(0, row).unwrap());
        assert_ne!(sampler.draw(0, row).unwrap(), sampler.draw(1, row).unwrap());
    }
    assert_eq!(seen.len(), 60);
    // 40 rows of other classes: as many negatives are all of them, more repeat.
    let all = ContrastSampler::new(&labels, 3, 0, 40, 1).unwrap().draw(0, 0).unwrap().negatives;
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 40);
    // 19 others of the class: more positives than that repeat.
    assert_eq!(ContrastSampler::new(&labels, 3, 40, 0, 1).unwrap().draw(0, 0).unwrap().positives.len(), 40);
    assert!(sampler.draw(0, 60).is_err());
    for (labels, classes, positives, negatives) in [
        (&[][..], 1, 0, 0),
        (&[0], usize::MAX, 0, 0),
        (&[0, 3], 3, 0, 0),
        (&[0, 0, 1], 2, 1, 0),
        (&[0, 0], 2, 0, 1),
        (&[0, 0], 2, usize::MAX, 0),
    ] {
        assert!(ContrastSampler::new(labels, classes, positives, negatives, 0).is_err());
    }
}
