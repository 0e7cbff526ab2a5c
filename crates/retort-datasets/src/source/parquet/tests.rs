//! Files as other programs write them, and damaged ones.

use super::super::image::{Fit, png_bytes};
use super::*;
use crate::{Dataset, Split};
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::data_type::{ByteArrayType, DoubleType, Int64Type};
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use tempfile::TempDir;

const SHAPE: ImageShape = ImageShape { channels: 1, height: 2, width: 3 };
const NAMES: &str = r#"{"info": {"features": {"label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"},
    "image": {"_type": "Image"}}}}"#;

/// What a file is made of; `None` is null.
#[derive(Clone)]
struct Content {
    pictures: Vec<Option<Vec<u8>>>,
    labels: Vec<Option<i64>>,
    targets: Vec<Option<f64>>,
    metadata: Option<&'static str>,
    compression: Compression,
    dictionary: bool,
}

fn picture(i: usize) -> Vec<u8> {
    let pixels: Vec<u8> = (0..6).map(|p| (i * 10 + p) as u8).collect();
    png_bytes(SHAPE, &pixels).unwrap()
}

fn content(rows: usize) -> Content {
    Content {
        pictures: (0..rows).map(|i| Some(picture(i))).collect(),
        labels: (0..rows).map(|i| Some(i as i64 * 7 % 3)).collect(),
        targets: (0..rows).map(|i| Some(i as f64 / 2.0 - 1.0)).collect(),
        metadata: Some(NAMES),
        compression: Compression::SNAPPY,
        dictionary: true,
    }
}

impl Content {
    /// A file with row groups of three rows.
    fn bytes(&self) -> Vec<u8> {
        let schema = "message schema {
            optional group image { optional binary bytes; optional binary path (UTF8); }
            optional int64 label; optional double target; optional binary note (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let entries = self.metadata.map(|text| vec![KeyValue::new("huggingface".to_owned(), text.to_owned())]);
        let properties = WriterProperties::builder()
            .set_compression(self.compression)
            .set_dictionary_enabled(self.dictionary)
            .set_key_value_metadata(entries)
            .build();
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
        for group in (0..self.pictures.len()).collect::<Vec<_>>().chunks(3) {
            let (from, to) = (group[0], group[group.len() - 1] + 1);
            let mut rows = writer.next_row_group().unwrap();
            let pictures = self.pictures[from..to].iter().map(|p| p.clone().map(ByteArray::from)).collect();
            write::<ByteArrayType, _>(&mut rows, pictures, 2);
            write::<ByteArrayType, _>(&mut rows, vec![None; to - from], 1);
            write::<Int64Type, _>(&mut rows, self.labels[from..to].to_vec(), 1);
            write::<DoubleType, _>(&mut rows, self.targets[from..to].to_vec(), 1);
            write::<ByteArrayType, _>(&mut rows, vec![Some(ByteArray::from("text")); to - from], 1);
            rows.close().unwrap();
        }
        writer.into_inner().unwrap()
    }
}

fn write<T: DataType, W: std::io::Write + Send>(
    rows: &mut ::parquet::file::writer::SerializedRowGroupWriter<'_, W>,
    values: Vec<Option<T::T>>,
    level: i16,
) {
    let levels: Vec<i16> = values.iter().map(|value| if value.is_some() { level } else { 0 }).collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    let mut column = rows.next_column().unwrap().unwrap();
    column.typed::<T>().write_batch(&values, Some(&levels), None).unwrap();
    column.close().unwrap();
}

fn files(contents: &[Vec<u8>]) -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let write = |(i, bytes): (usize, &Vec<u8>)| {
        let path = folder.path().join(format!("{i:04}.parquet"));
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let paths = contents.iter().enumerate().map(write).collect();
    (folder, paths)
}

fn columns(value: bool) -> ParquetColumns {
    let value = value.then(|| "target".to_owned());
    ParquetColumns { image: "image".to_owned(), label: Some("label".to_owned()), value }
}

fn load(contents: &[Vec<u8>], columns: ParquetColumns) -> Result<Dataset> {
    let (_folder, paths) = files(contents);
    let source = ParquetImages::open(&paths, columns)?;
    let decoder = ImageDecoder::new(source.first_shape()?, Fit::Exact)?;
    let mut builder = DatasetBuilder::new("x", Split::Train, decoder.shape(), source.classes()?)?;
    if source.columns.value.is_some() {
        builder = builder.with_values("degrees");
    }
    let data = source.read(builder, &decoder)?.finish_with_statistics()?;
    if source.class_names().is_empty() { Ok(data) } else { data.with_class_names(source.class_names().to_vec()) }
}

fn refused(change: impl FnOnce(&mut Content)) -> String {
    let mut broken = content(5);
    change(&mut broken);
    let error = load(&[content(4).bytes(), broken.bytes()], columns(true)).unwrap_err().to_string();
    assert!(error.contains("0001.parquet`"), "{error}");
    error
}

#[test]
fn shards_come_in_order_whatever_their_compression() {
    let zstd = Compression::ZSTD(ZstdLevel::try_new(3).unwrap());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd, Compression::GZIP(Default::default())] {
        for dictionary in [false, true] {
            let part = |rows| Content { compression, dictionary, ..content(rows) }.bytes();
            let data = load(&[part(7), part(2)], columns(true)).unwrap();
            assert_eq!(data.labels(), [0, 1, 2, 0, 1, 2, 0, 0, 1]);
            assert_eq!(data.class_names(), ["cat", "dog", "eel"]);
            assert_eq!(data.values(), [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, -1.0, -0.5]);
            let first: Vec<u8> = data.pixels().unwrap().iter().copied().step_by(6).collect();
            assert_eq!(first, [0, 10, 20, 30, 40, 50, 60, 0, 10]);
        }
    }
}

#[test]
fn classes_without_names_are_counted_and_labels_may_be_absent() {
    let plain = Content { metadata: None, ..content(6) }.bytes();
    assert_eq!(load(std::slice::from_ref(&plain), columns(false)).unwrap().classes(), 3);
    let unlabelled = ParquetColumns { image: "image".to_owned(), label: None, value: None };
    let data = load(std::slice::from_ref(&plain), unlabelled.clone()).unwrap();
    assert_eq!((data.len(), data.is_labelled()), (6, false));
    let (_folder, paths) = files(&[plain]);
    assert_eq!(ParquetColumns::guess(&paths[0]).unwrap(), columns(false));
    let number = ParquetColumns { value: Some("label".to_owned()), ..unlabelled };
    let (_folder, paths) = files(&[content(6).bytes()]);
    let source = ParquetImages::open(&paths, number).unwrap();
    assert_eq!(source.rows(), 6);
}

#[test]
fn columns_that_are_not_there_list_those_that_are() {
    let all =
        "found `image.bytes` BYTE_ARRAY, `image.path` BYTE_ARRAY, `label` INT64, `target` DOUBLE, `note` BYTE_ARRAY";
    let (_folder, paths) = files(&[content(3).bytes()]);
    for (image, label, value) in [
        ("img", None, None),
        ("note", None, None),
        ("label", None, None),
        ("image", Some("target"), None),
        ("image", Some("image"), None),
        ("image", Some("fine_label"), None),
        ("image", None, Some("note")),
    ] {
        let text = |name: Option<&str>| name.map(str::to_owned);
        let columns = ParquetColumns { image: image.to_owned(), label: text(label), value: text(value) };
        let error = ParquetImages::open(&paths, columns).unwrap_err().to_string();
        assert!(error.contains("0000.parquet`: column of") && error.contains(all), "{error}");
    }
}

#[test]
fn wrong_rows_are_named_with_their_file() {
    type Change = fn(&mut Content);
    let cases: [(Change, &str); 11] = [
        (|c| c.pictures[4] = None, "row 4: picture: expected a PNG or JPEG, found null"),
        (|c| c.pictures[3] = Some(vec![]), "row 3: picture: expected PNG or JPEG, found no bytes"),
        (|c| c.pictures[2].as_mut().unwrap().truncate(40), "row 2: picture: expected a complete PNG"),
        (|c| c.pictures[1] = Some(b"<html>".to_vec()), "row 1: picture: expected PNG or JPEG"),
        (
            |c| c.pictures[4] = png_bytes(ImageShape { height: 1, ..SHAPE }, &[0; 3]).ok(),
            "row 4: size of the picture: expected 2 x 3, found 1 x 3",
        ),
        (
            |c| c.pictures[4] = png_bytes(ImageShape { channels: 3, ..SHAPE }, &[0; 18]).ok(),
            "row 4: channels of the picture: expected grey, found colour",
        ),
        (|c| c.labels[4] = None, "row 4: label: expected 0 to 2, found null"),
        (|c| c.labels[0] = Some(-1), "row 0: label: expected 0 to 2, found -1"),
        (|c| c.labels[3] = Some(3), "row 3: label: expected 0 to 2, found 3"),
        (|c| c.targets[2] = None, "row 2: target: expected a finite number, found null"),
        (|c| c.targets[2] = Some(1e300), "row 2: target: expected a finite number, found 1e300"),
    ];
    for (change, message) in cases {
        let error = refused(change);
        assert!(error.contains(message), "{error}");
    }
    assert!(refused(|c| c.metadata = None).contains("class names: expected those of the first file"));
    assert!(refused(|c| c.metadata = Some("{\"info\"")).contains("metadata `huggingface`: expected JSON"));
    let without = |labels: Vec<Option<i64>>| Content { metadata: None, labels, ..content(3) }.bytes();
    let error = load(&[without(vec![Some(0), Some(1 << 40), Some(1)])], columns(false)).unwrap_err().to_string();
    assert!(error.contains("row 1: label: expected 0 to 1048575"), "{error}");
}

#[test]
fn files_that_are_no_parquet_are_refused() {
    let whole = content(5).bytes();
    let mut footer = whole.clone();
    let at = footer.len() - 8;
    footer[at..at + 4].fill(0xff);
    for (bytes, message) in [
        (vec![], "bytes: expected a parquet file, at least 12, found 0"),
        (b"PAR1".to_vec(), "found 4"),
        (b"PK\x03\x04 is no parquet file".to_vec(), "expected PAR1 at the start and the end"),
        (footer, "bytes of metadata: expected at most"),
        (content(0).bytes(), "rows: expected at least 1, found 0"),
    ] {
        let error = load(&[bytes], columns(true)).unwrap_err().to_string();
        assert!(error.contains("0000.parquet") && error.contains(message), "{error}");
    }
    for length in (0..whole.len()).step_by(13) {
        assert!(load(&[whole[..length].to_vec()], columns(true)).is_err(), "{length}");
    }
    assert!(ParquetImages::open(&[], columns(true)).is_err());
    assert!(ParquetImages::open(&[PathBuf::from("/nowhere.parquet")], columns(true)).is_err());
}

/// Hundreds of damaged files: an error or rows, and neither a panic nor a huge allocation.
#[test]
fn damaged_files_never_panic() {
    let mut seed = 1u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let zstd = Compression::ZSTD(ZstdLevel::try_new(3).unwrap());
    let mut errors = 0;
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd] {
        for dictionary in [false, true] {
            let whole = Content { compression, dictionary, ..content(7) }.bytes();
            for _ in 0..150 {
                let mut bytes = whole.clone();
                for _ in 0..1 + random(3) {
                    let at = random(bytes.len());
                    bytes[at] = random(256) as u8;
                }
                errors += usize::from(load(&[bytes], columns(true)).is_err());
            }
        }
    }
    assert!(errors > 300, "{errors} errors in 900 damaged files");
}

/// A data page that says it needs a dictionary, where there is none, is one of the cases.
#[test]
fn a_panic_of_the_library_is_an_error() {
    let whole = Content { compression: Compression::UNCOMPRESSED, dictionary: false, ..content(3) }.bytes();
    let mut caught = 0;
    for at in 0..whole.len() / 4 {
        let mut bytes = whole.clone();
        bytes[at] = 16;
        if let Err(error) = load(&[bytes], columns(true)) {
            caught += usize::from(error.to_string().contains("does not expect"));
        }
    }
    assert!(caught > 0, "the parquet library no longer panics: `guarded` need not catch anything");
}

#[test]
fn pages_that_lie_are_refused() {
    // DATA_PAGE, zigzag varints of size and compressed size.
    let header = |size: u64, compressed: u64| {
        let mut bytes = vec![0x15, 0];
        for mut value in [size * 2, compressed * 2] {
            bytes.push(0x15);
            while value >= 0x80 {
                bytes.push((value & 0x7f) as u8 | 0x80);
                value >>= 7;
            }
            bytes.push(value as u8);
        }
        bytes
    };
    assert!(check_page(&header(1 << 20, 10)).is_ok());
    assert!(check_page(&header(1 << 30, 1 << 25)).is_ok());
    assert!(check_page(&header(1 << 30, 1 << 10)).unwrap_err().contains("1024 bytes that claims 1073741824"));
    assert!(check_page(&header(1 << 33, 1 << 32)).is_err());
    for header in [&[][..], &[0x15], &[0x15, 0, 0x25, 0], &[0x15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]] {
        assert!(check_page(header).unwrap_err().contains("no header of a page"));
    }
}

#[test]
fn files_of_a_split_are_found_in_both_layouts() {
    let listing = |files: &[&str]| files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>();
    let converted = listing(&["a/test/0000.parquet", "a/train/0001.parquet", "a/train/0000.parquet", "README.md"]);
    let train = ["a/train/0000.parquet", "a/train/0001.parquet"];
    assert_eq!(split_files(&converted, None, "train").unwrap(), train);
    assert_eq!(split_files(&converted, Some("a"), "train").unwrap(), train);
    let kept = listing(&["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet"]);
    for config in [None, Some("default")] {
        assert_eq!(split_files(&kept, config, "train").unwrap()[1], "data/train-00001-of-00002.parquet");
    }
    let two = listing(&["a/train/0000.parquet", "b/train/0000.parquet"]);
    assert_eq!(split_files(&two, Some("b"), "train").unwrap(), ["b/train/0000.parquet"]);
    for (files, config, split, message) in [
        (&two, None, "train", "files of one configuration, or its name"),
        (&two, Some("c"), "train", "SPLIT/0000.parquet"),
        (&kept, None, "test", "found data/train-00000-of-00002.parquet"),
        (&listing(&["data/train-00001-of-00002.parquet"]), None, "train", "each of 2 files once"),
        (&listing(&["a/train/0000.parquet", "a/train/0002.parquet"]), None, "train", "each of 3 files once"),
        (&listing(&[]), None, "train", "found none"),
    ] {
        let error = split_files(files, config, split).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
