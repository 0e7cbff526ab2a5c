//! Rows one by one, in memory and in a file, with labels, with targets, with neither.

use super::{SHAPE, data};
use retort_datasets::{
    Dataset, DatasetBuilder, ImageShape, Loader, LoaderConfig, Normalization, Sampling, Split, SubsetConfig, ViewConfig,
};

fn rebuilt(rows: &Dataset, limit: u64) -> Dataset {
    let mut builder =
        DatasetBuilder::new(rows.name(), rows.split(), rows.shape(), rows.classes()).unwrap().memory_limit(limit);
    for i in 0..rows.len() {
        builder.push(&rows.image(i).unwrap(), Some(rows.label(i).unwrap()), None).unwrap();
    }
    builder.finish(rows.normalization().clone()).unwrap()
}

fn bits(rows: Dataset) -> Vec<Vec<u32>> {
    let config = LoaderConfig {
        batch_size: 7,
        sampling: Sampling::Shuffled,
        drop_last: false,
        views: vec![ViewConfig::default()],
        seed: 3,
    };
    let batch = |batch: retort_datasets::Result<retort_datasets::Batch>| {
        let values = batch.unwrap().images.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    Loader::new(rows, config).unwrap().epoch(1).map(batch).collect()
}

#[test]
fn a_file_gives_the_same_rows_as_memory() {
    let memory = data(40);
    // The limit falls between rows, before the first one, and exactly at the end.
    let bytes = memory.pixels().unwrap().len() as u64;
    for limit in [0, 1, bytes / 2 + 1, bytes - 1] {
        let file = rebuilt(&memory, limit);
        assert!(file.pixels().is_none());
        assert_eq!(file.digest(), memory.digest());
        assert_eq!(file.statistics().unwrap(), memory.statistics().unwrap());
        assert_eq!(bits(file.clone()), bits(memory.clone()));
        let part = SubsetConfig { fraction: Some(0.5), seed: Some(1), ..SubsetConfig::default() };
        assert_eq!(file.subset(&part).unwrap().digest(), memory.subset(&part).unwrap().digest());
        let largest = file.clone().with_max_value(1.0);
        assert_eq!(largest.is_err(), memory.clone().with_max_value(1.0).is_err());
    }
    assert!(rebuilt(&memory, bytes).pixels().is_some(), "at the limit it still fits");
}

#[test]
fn images_without_labels_have_none_to_give() {
    let mut builder = DatasetBuilder::new("dots", Split::Unlabelled, SHAPE, 0).unwrap();
    for row in 0..5u8 {
        builder.push(&vec![row; SHAPE.bytes().unwrap()], None, None).unwrap();
    }
    let dots = builder.finish_with_statistics().unwrap();
    assert!(!dots.is_labelled() && dots.labels().is_empty() && dots.classes() == 0 && dots.class_counts().is_empty());
    assert!(dots.label(0).unwrap_err().to_string().contains("labelled"));
    assert!(dots.take_balanced(2).is_err() && dots.split_validation(1).is_err());
    assert!(dots.subset(&SubsetConfig { fraction: Some(0.5), ..SubsetConfig::default() }).is_err());
    let batch = Loader::eval(dots.clone(), 3).unwrap().epoch(0).next().unwrap().unwrap();
    assert!(batch.labels().is_err() && batch.label_ids.is_empty() && batch.len() == 3);
    let by_class = LoaderConfig {
        batch_size: 2,
        sampling: Sampling::ClassBalanced { classes: 1 },
        drop_last: false,
        views: vec![ViewConfig::default()],
        seed: 0,
    };
    assert!(Loader::new(dots.clone(), by_class).unwrap_err().to_string().contains("labelled"));
    assert_eq!(dots.select(&[4, 0]).unwrap().image(0).unwrap()[0], 4);
}

#[test]
fn labels_can_be_taken_away() {
    let labelled = data(6);
    let bare = labelled.clone().without_labels().unwrap();
    assert!(!bare.is_labelled() && bare.classes() == 0);
    assert_eq!(bare.pixels(), labelled.pixels());
    assert_ne!(bare.digest(), labelled.digest());
}

#[test]
fn targets_come_with_the_batch() {
    let mut builder = DatasetBuilder::new("angles", Split::Train, SHAPE, 0).unwrap().with_values("degrees");
    for row in 0..5u8 {
        builder.push(&vec![row; SHAPE.bytes().unwrap()], None, Some(f32::from(row) - 2.5)).unwrap();
    }
    let angles = builder.finish_with_statistics().unwrap();
    assert_eq!((angles.unit(), angles.values().len()), (Some("degrees"), 5));
    let batch = Loader::eval(angles.clone(), 4).unwrap().epoch(0).next().unwrap().unwrap();
    assert_eq!(batch.values.unwrap().to_vec1::<f32>().unwrap(), [-2.5, -1.5, -0.5, 0.5]);
    let two = angles.select(&[3, 1]).unwrap();
    assert_eq!(two.values(), [0.5, -1.5]);
    // Another target is another data set, also for a record.
    let mut other = DatasetBuilder::new("angles", Split::Train, SHAPE, 0).unwrap().with_values("degrees");
    for row in 0..5u8 {
        other.push(&vec![row; SHAPE.bytes().unwrap()], None, Some(f32::from(row))).unwrap();
    }
    assert_ne!(other.finish_with_statistics().unwrap().digest(), angles.digest());
}

#[test]
fn a_builder_refuses_what_does_not_fit() {
    let pixels = vec![0; SHAPE.bytes().unwrap()];
    let plain = || DatasetBuilder::new("x", Split::Train, SHAPE, 2).unwrap();
    let message = |result: retort_datasets::Result<()>| result.unwrap_err().to_string();
    assert!(message(plain().push(&pixels[1..], Some(0), None)).contains("pixels of row 0"));
    assert!(message(plain().push(&pixels, Some(2), None)).contains("label of row 0"));
    assert!(message(plain().push(&pixels, None, None)).contains("label of row 0"));
    assert!(message(plain().push(&pixels, Some(0), Some(1.0))).contains("target of row 0"));
    let valued = || plain().with_values("m");
    assert!(message(valued().push(&pixels, Some(0), None)).contains("target of row 0"));
    assert!(message(valued().push(&pixels, Some(0), Some(f32::NAN))).contains("finite"));
    assert!(
        message(DatasetBuilder::new("x", Split::Train, SHAPE, 0).unwrap().push(&pixels, Some(0), None))
            .contains("label")
    );
    assert!(plain().finish(Normalization::identity(SHAPE.channels)).unwrap_err().to_string().contains("at least 1"));
    let mut one = plain();
    one.push(&pixels, Some(0), None).unwrap();
    assert!(one.finish(Normalization { mean: vec![], std: vec![] }).is_err());
    let huge = ImageShape { channels: usize::MAX, height: 2, width: 2 };
    assert!(DatasetBuilder::new("x", Split::Train, huge, 2).is_err());
    assert!(DatasetBuilder::new("x", Split::Train, SHAPE, usize::MAX).is_err());
}

#[test]
fn statistics_of_a_constant_channel_are_usable() {
    let mut builder = DatasetBuilder::new("flat", Split::Train, SHAPE, 0).unwrap();
    builder.push(&vec![255; SHAPE.bytes().unwrap()], None, None).unwrap();
    let flat = builder.finish_with_statistics().unwrap();
    assert!(flat.normalization().mean.iter().all(|&m| m == 1.0) && flat.normalization().std.iter().all(|&s| s == 1.0));
}
