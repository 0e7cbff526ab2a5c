//! Order, values and reproducibility of batches.

use super::data;
use proptest::prelude::*;
use rand::Rng;
use retort_datasets::{Batch, Loader, LoaderConfig, Sampling, Split, TransformConfig, ViewConfig, load, sample_rng};

fn config(batch_size: usize) -> LoaderConfig {
    LoaderConfig {
        batch_size,
        sampling: Sampling::Shuffled,
        drop_last: false,
        views: vec![ViewConfig::new(vec![
            TransformConfig::RandomCrop { padding: 2 },
            TransformConfig::HorizontalFlip { probability: 0.5 },
        ])],
        seed: 7,
    }
}

fn values(batch: &Batch) -> Vec<f32> {
    batch.images.flatten_all().unwrap().to_vec1().unwrap()
}

/// Rows, labels and the bits of the pixels.
type Bits = (Vec<u32>, Vec<u32>, Vec<u32>);

fn bits(batches: impl Iterator<Item = retort_datasets::Result<Batch>>) -> Vec<Bits> {
    batches
        .map(|batch| {
            let batch = batch.unwrap();
            let pixels = values(&batch).iter().map(|v| v.to_bits()).collect();
            (batch.index.clone(), batch.label_ids.clone(), pixels)
        })
        .collect()
}

#[test]
fn evaluation_is_in_stored_order_and_normalised() {
    let data = data(10);
    let loader = Loader::eval(data.clone(), 4).unwrap();
    let batches: Vec<Batch> = loader.epoch(3).map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(Batch::len).collect::<Vec<_>>(), [4, 4, 2]);
    let mut row = 0;
    for batch in &batches {
        assert_eq!(batch.images.dims(), [batch.len(), 3, 4, 5]);
        assert_eq!(batch.labels().unwrap().to_vec1::<u32>().unwrap(), batch.label_ids);
        for image in values(batch).chunks(60) {
            let stored = data.image(row).unwrap();
            for (k, &value) in image.iter().enumerate() {
                let (mean, std) = ([0.1, 0.3, 0.5][k / 20], [0.5, 0.6, 0.7][k / 20]);
                let expected = (f64::from(stored[k]) / 255.0 - mean) / std;
                assert!((f64::from(value) - expected).abs() < 1e-6, "row {row}, byte {k}");
            }
            row += 1;
        }
    }
    let index: Vec<u32> = batches.iter().flat_map(|b| b.index.clone()).collect();
    assert_eq!(index, (0..10).collect::<Vec<_>>());
    let labels: Vec<u32> = batches.iter().flat_map(|b| b.label_ids.clone()).collect();
    assert_eq!(labels, data.labels());
}

#[test]
fn padding_is_black_before_normalization() {
    let mut config = config(64);
    config.views[0].transforms.truncate(1);
    let loader = Loader::new(data(64), config).unwrap();
    let batch = loader.epoch(0).next().unwrap().unwrap();
    let black = [-0.1f64 / 0.5, -0.3 / 0.6, -0.5 / 0.7];
    // A crop that moved: some image has a first row that is all padding, in each channel with its own value.
    let padded = values(&batch).chunks(60).any(|image| {
        (0..3).all(|c| {
            let row = &image[c * 20..c * 20 + 5];
            row.iter().all(|&v| (f64::from(v) - black[c]).abs() < 1e-6)
        })
    });
    assert!(padded);
}

#[test]
fn digits_are_divided_by_sixteen() {
    let digits = load("digits-8x8", Split::Train, None).unwrap();
    let loader = Loader::eval(digits, 2000).unwrap();
    let values = values(&loader.epoch(0).next().unwrap().unwrap());
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
    assert!(mean.abs() < 0.02, "{mean}");
}

#[test]
fn augmentation_and_order_change_with_epoch_and_seed() {
    let loader = Loader::new(data(40), config(40)).unwrap();
    let first = bits(loader.epoch(0));
    assert_eq!(first, bits(loader.epoch(0)));
    assert_ne!(first, bits(loader.epoch(1)));
    let other = LoaderConfig { seed: 8, ..config(40) };
    assert_ne!(first, bits(Loader::new(data(40), other).unwrap().epoch(0)));
    // Without a shuffle the images still differ from epoch to epoch.
    let fixed = LoaderConfig { sampling: Sampling::Sequential, ..config(40) };
    let loader = Loader::new(data(40), fixed).unwrap();
    assert_eq!(loader.order(0), loader.order(1));
    assert_ne!(bits(loader.epoch(0)), bits(loader.epoch(1)));
}

#[test]
fn an_image_is_augmented_alike_in_any_batch() {
    let images = |batch_size, sampling| {
        let config = LoaderConfig { sampling, ..config(batch_size) };
        let loader = Loader::new(data(30), config).unwrap();
        let mut images: Vec<(u32, Vec<f32>)> = loader
            .epoch(5)
            .flat_map(|batch| {
                let batch = batch.unwrap();
                let images: Vec<Vec<f32>> = values(&batch).chunks(60).map(<[f32]>::to_vec).collect();
                batch.index.into_iter().zip(images).collect::<Vec<_>>()
            })
            .collect();
        images.sort_by_key(|(row, _)| *row);
        images
    };
    assert_eq!(images(30, Sampling::Shuffled), images(7, Sampling::Sequential));
    // Ten rows in each of three classes: batches of 2 x 5 leave none out.
    assert_eq!(images(10, Sampling::ClassBalanced { classes: 2 }), images(7, Sampling::Sequential));
}

#[test]
fn every_order_of_three_rows_is_equally_likely() {
    let loader = Loader::new(data(3), config(3)).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    for epoch in 0..6000 {
        *counts.entry(loader.order(epoch)).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 6);
    // Five standard deviations of a binomial with n = 6000, p = 1/6.
    assert!(counts.values().all(|n: &i32| (n - 1000).abs() < 145), "{counts:?}");
}

#[test]
fn sample_stream_is_pinned() {
    // SHA-256 and ChaCha8 written out in Python: a record made today can be made again later.
    let mut rng = sample_rng(1, 2, 3, 0);
    assert_eq!(rng.next_u64(), 0x7cbb_0342_2fc5_aff2);
    assert_eq!(rng.next_u64(), 0xea0f_b79e_e58c_6832);
    let distinct: std::collections::BTreeSet<u64> = [(1, 2, 3), (3, 2, 1), (2, 1, 3), (1, 3, 2), (0, 2, 3), (1, 2, 4)]
        .map(|(s, e, i)| sample_rng(s, e, i, 0).next_u64())
        .into();
    assert_eq!(distinct.len(), 6);
}

#[test]
fn wrong_configurations_are_refused() {
    let message = |config| Loader::new(data(10), config).unwrap_err().to_string();
    let zero = message(config(0));
    assert_eq!(zero, "loader: batch_size: expected at least 1, found 0");
    let drop_last = LoaderConfig { drop_last: true, ..config(11) };
    assert!(message(drop_last).contains("at most the 10 rows, found 11"));
    let mut wide = config(2);
    wide.views = vec![ViewConfig::new(vec![TransformConfig::RandomCrop { padding: 4 }])];
    assert!(message(wide).contains("random-crop"));
    assert!(Loader::eval(data(10), 0).is_err());
    // One batch of everything, however large the number.
    assert_eq!(Loader::eval(data(10), usize::MAX).unwrap().epoch(0).count(), 1);
}

#[test]
fn configuration_is_closed() {
    let text = r#"{"batch_size":2,"sampling":{"kind":"shuffled"},"drop_last":true,"views":[{}],"seed":1"#;
    assert!(serde_json::from_str::<LoaderConfig>(&format!("{text}}}")).is_ok());
    let typo = serde_json::from_str::<LoaderConfig>(&format!("{text},\"sede\":2}}"));
    assert!(typo.unwrap_err().to_string().contains("unknown field `sede`"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_epoch_is_a_permutation(n in 1..80usize, size in 1..20usize, seed: u64, epoch: u64) {
        let config = LoaderConfig { seed, ..config(size) };
        let loader = Loader::new(data(n), config).unwrap();
        let mut rows: Vec<u32> = loader.epoch(epoch).flat_map(|b| b.unwrap().index).collect();
        prop_assert_eq!(&rows, &loader.order(epoch));
        rows.sort_unstable();
        prop_assert_eq!(rows, (0..n as u32).collect::<Vec<_>>());
    }

    #[test]
    fn drop_last_leaves_only_full_batches(n in 1..60usize, size in 1..20usize) {
        let config = LoaderConfig { drop_last: true, ..config(size) };
        prop_assume!(size <= n);
        let loader = Loader::new(data(n), config).unwrap();
        let sizes: Vec<usize> = loader.epoch(0).map(|b| b.unwrap().len()).collect();
        prop_assert_eq!(sizes, vec![size; n / size]);
        prop_assert_eq!(loader.batches_per_epoch(), n / size);
    }

    #[test]
    fn a_resumed_epoch_is_the_tail(n in 1..60usize, size in 1..20usize, first in 0..70usize) {
        let loader = Loader::new(data(n), config(size)).unwrap();
        let all = bits(loader.epoch(4));
        let tail = loader.epoch_from(4, first);
        prop_assert_eq!(tail.len(), all.len().saturating_sub(first));
        prop_assert_eq!(bits(tail), all[first.min(all.len())..].to_vec());
    }

    #[test]
    fn threads_do_not_change_a_bit(n in 1..100usize, size in 1..64usize, seed: u64) {
        let config = LoaderConfig { seed, ..config(size) };
        let loader = Loader::new(data(n), config).unwrap();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| bits(loader.epoch(1)))
        };
        prop_assert_eq!(run(1), run(2));
    }
}

#[test]
fn prefetching_changes_no_bit() {
    let loader = Loader::new(data(50), config(8)).unwrap();
    let plain = bits(loader.epoch(2));
    for (threads, depth) in [(1, 1), (1, 3), (2, 1), (2, 100)] {
        let ahead = loader.clone().prefetch(threads, depth).unwrap();
        assert_eq!(bits(ahead.epoch(2)), plain);
        assert_eq!(bits(ahead.epoch_from(2, 3)), plain[3..]);
        assert_eq!(bits(ahead.epoch_from(2, 99)), []);
        // Two iterators at once, and one that is dropped in the middle with batches on their way.
        let (mut a, mut b) = (ahead.epoch(2), ahead.epoch(2));
        drop((a.next(), b.next()));
        assert_eq!(bits(a), plain[1..]);
    }
    for (threads, depth) in [(0, 1), (1, 0), (1, 5000)] {
        assert!(loader.clone().prefetch(threads, depth).unwrap_err().to_string().contains("1 to 1024"));
    }
}

#[test]
fn prefetching_does_not_wait_for_the_pool_of_the_training() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let loader = Loader::new(data(50), config(8)).unwrap().prefetch(1, 2).unwrap();
    // The only thread of the pool waits for batches; a loader that used it would never deliver.
    assert_eq!(pool.install(|| loader.epoch(0).count()), 7);
}

#[test]
fn views_are_augmented_apart_or_alike() {
    let crop = || ViewConfig::new(vec![TransformConfig::RandomCrop { padding: 3 }]);
    let views = vec![crop(), crop(), ViewConfig { same_as: Some(0), ..crop() }, ViewConfig::default()];
    let loader = Loader::new(data(50), LoaderConfig { views, ..config(50) }).unwrap();
    let batch = loader.epoch(0).next().unwrap().unwrap();
    let view = |i: usize| batch.more_views[i - 1].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(batch.more_views.len(), 3);
    assert_ne!(values(&batch), view(1));
    assert_eq!(values(&batch), view(2));
    assert_ne!(values(&batch), view(3));
    // The first view is what it would be alone.
    let alone = Loader::new(data(50), LoaderConfig { views: vec![crop()], ..config(50) }).unwrap();
    assert_eq!(values(&alone.epoch(0).next().unwrap().unwrap()), values(&batch));
    for same_as in [0, 1] {
        let views = vec![ViewConfig { same_as: Some(same_as), ..crop() }];
        let error = Loader::new(data(50), LoaderConfig { views, ..config(50) }).unwrap_err().to_string();
        assert!(error.contains("`same_as` of view 0"), "{error}");
    }
    assert!(Loader::new(data(50), LoaderConfig { views: vec![], ..config(50) }).is_err());
}
