//! Image data sets of the Hugging Face hub: parquet files with a picture, a class and perhaps a number a row.
//!
//! Columns are found by name. A picture is a `struct<bytes: binary, path: string>`, as the library `datasets` writes it,
//! or a plain binary column; its bytes are PNG or JPEG. Class names come from the `huggingface` entry of the metadata.
//! Read are uncompressed, Snappy, Zstandard and gzip pages in plain or dictionary encoding, which is what `datasets`,
//! pandas and the hub's own conversion write.
//!
//! A file is checked before it is believed: lengths against the size of the file, sizes of pages against what their
//! compressed bytes can hold, numbers of values against the bytes there are. The parquet library panics on some damaged
//! files; such a panic becomes an error here (it still prints its message, unless the program has another panic hook).

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::basic::{ConvertedType, Encoding, LogicalType, Type};
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use ::parquet::data_type::{ByteArray, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use ::parquet::file::reader::{ChunkReader, Length};
use ::parquet::file::serialized_reader::SerializedPageReader;
use ::parquet::schema::types::ColumnDescriptor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::files::{row_error, shown};
use super::image::{ImageDecoder, picture_shape};
use crate::{DatasetBuilder, Error, ImageShape, Result};

/// Rows that are decoded side by side: bounds the memory of a data set that streams.
const BATCH: usize = 256;

/// Bytes of the metadata at the end of a file; a file of a data set has less than one million.
const MAX_FOOTER: u32 = 16 << 20;

/// Classes of a data set whose metadata name none.
const MAX_CLASSES: i64 = 1 << 20;

/// A page may decompress to so many bytes, or to [`MAX_RATIO`] times its compressed ones.
const MAX_PAGE: u64 = 64 << 20;
const MAX_RATIO: u64 = 64;

/// Which columns hold what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParquetColumns {
    /// The pictures.
    pub image: String,
    /// The classes, integers from 0; none for images without labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The regression targets, floating-point numbers or integers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl ParquetColumns {
    /// What the schema of a file leaves no doubt about.
    ///
    /// The picture is the only struct with `bytes`, else the only binary column. The class is `label`, else `fine_label`,
    /// else the only column of integers; without integers the images have no labels. The regression target is the only
    /// column of floating-point numbers where there is no class.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, no column or several that could be meant; the message lists all columns.
    pub fn guess(path: &Path) -> Result<Self> {
        let shard = Shard::open(path)?;
        let leaves = shard.leaves();
        let top = |wanted: fn(&ColumnDescriptor) -> bool| -> Vec<&str> {
            let top = leaves.iter().filter(|leaf| leaf.path().parts().len() == 1 && wanted(leaf));
            top.map(|leaf| leaf.name()).collect()
        };
        let structs: Vec<&str> = leaves.iter().filter_map(|leaf| struct_of_bytes(leaf)).collect();
        let image = match (&structs[..], &top(is_binary)[..]) {
            ([one], _) | ([], [one]) => (*one).to_owned(),
            _ => return Err(shard.no_column("column of pictures", "one struct with `bytes`, or one binary column")),
        };
        let (integers, floats) = (top(is_integer), top(is_float));
        let label = match ["label", "fine_label"].into_iter().find(|name| integers.contains(name)) {
            Some(name) => Some(name),
            None if integers.len() > 1 => {
                return Err(shard.no_column("column of classes", "`label`, `fine_label` or one column of integers"));
            }
            None => integers.first().copied(),
        };
        let value = match (label, &floats[..]) {
            (None, [one]) => Some((*one).to_owned()),
            (None, [_, _, ..]) => {
                return Err(shard.no_column("column of targets", "one column of floating-point numbers"));
            }
            _ => None,
        };
        Ok(Self { image, label: label.map(str::to_owned), value })
    }
}

/// A split of a data set in parquet: its files in order. Only their metadata has been read.
#[derive(Clone, Debug)]
pub struct ParquetImages {
    files: Vec<PathBuf>,
    columns: ParquetColumns,
    class_names: Vec<String>,
    rows: usize,
}

impl ParquetImages {
    /// Checks the metadata of all files.
    ///
    /// # Errors
    ///
    /// No file, a file that is no whole parquet file, columns that are not there or of another type (the message lists
    /// all), class names that differ between files.
    pub fn open(files: &[PathBuf], columns: ParquetColumns) -> Result<Self> {
        if files.is_empty() {
            return Err(Error::invalid("parquet", "files", "at least 1", 0));
        }
        let (mut rows, mut class_names) = (0usize, None);
        for path in files {
            let shard = Shard::open(path)?;
            shard.find(&columns)?;
            rows = rows.saturating_add(shard.rows()?);
            let names = match &columns.label {
                Some(label) => shard.class_names(label)?,
                None => Vec::new(),
            };
            match &class_names {
                None => class_names = Some(names),
                Some(first) if *first == names => {}
                Some(_) => {
                    let expected = "those of the first file";
                    return Err(Error::format(&shard.name, "class names", expected, format!("{names:?}")));
                }
            }
        }
        if rows == 0 {
            let files: Vec<String> = files.iter().map(|path| shown(path)).collect();
            return Err(Error::format(&files.join("`, `"), "rows", "at least 1", 0));
        }
        Ok(Self { files: files.to_vec(), columns, class_names: class_names.unwrap_or_default(), rows })
    }

    /// Number of rows, as the files say.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Names of the classes; empty where the metadata have none.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Number of classes: as many as have names, else one more than the largest label; 0 without labels.
    ///
    /// # Errors
    ///
    /// Without names all labels are read: one that is missing, negative or above a million, with its file and row.
    pub fn classes(&self) -> Result<usize> {
        let Some(label) = self.columns.label.as_deref().filter(|_| self.class_names.is_empty()) else {
            return Ok(self.class_names.len());
        };
        let mut classes = 0;
        for path in &self.files {
            let shard = Shard::open(path)?;
            let column = shard.leaf(label, is_integer, "column of classes", "integers")?;
            shard.each_batch(&[column], |first, columns| {
                let labels = columns.first().map(Values::integers).unwrap_or_default();
                for (row, label) in (first..).zip(labels) {
                    classes = classes.max(shard.label(row, label, MAX_CLASSES)? + 1);
                }
                Ok(true)
            })?;
        }
        Ok(classes as usize)
    }

    /// Shape of the first picture: what the others must have with [`Fit::Exact`](super::image::Fit::Exact).
    ///
    /// # Errors
    ///
    /// No row, a picture that is missing or cannot be read.
    pub fn first_shape(&self) -> Result<ImageShape> {
        for path in &self.files {
            let shard = Shard::open(path)?;
            let mut first = None;
            let column = shard.image(&self.columns.image)?;
            shard.each_batch(&[column], |_, columns| {
                first = columns.first().and_then(|column| column.pictures().first().cloned());
                Ok(first.is_none())
            })?;
            if let Some(picture) = first {
                let bytes = picture.ok_or_else(|| row_error(&shard.name, 0, "picture", "a PNG or JPEG", "null"))?;
                return picture_shape(&shard.name, 0, bytes.data());
            }
        }
        Err(Error::invalid("parquet", "rows", "at least 1", 0))
    }

    /// Appends all rows to a builder of `decoder.shape()`, [`classes`](Self::classes), and regression targets where the
    /// columns name them.
    ///
    /// Pictures are decoded on all threads and appended in order.
    ///
    /// # Errors
    ///
    /// A damaged file; with file and row: a picture that is missing or refused by [`ImageDecoder::decode`], a label that is
    /// missing, negative or not below the number of classes, a target that is missing or not finite as `f32`.
    pub fn read(&self, mut builder: DatasetBuilder, decoder: &ImageDecoder) -> Result<DatasetBuilder> {
        let classes = self.classes()?;
        for path in &self.files {
            let shard = Shard::open(path)?;
            let Found { image, label, value } = shard.find(&self.columns)?;
            let columns: Vec<usize> = [Some(image), label, value].into_iter().flatten().collect();
            shard.each_batch(&columns, |first, columns| {
                let mut columns = columns.iter();
                let pictures = columns.next().map(Values::pictures).unwrap_or_default();
                let labels = label.and_then(|_| columns.next()).map(Values::integers);
                let values = value.and_then(|_| columns.next()).map(Values::numbers);
                let decode = |(i, picture): (usize, &Option<ByteArray>)| match picture {
                    Some(bytes) => decoder.decode(&shard.name, first + i, bytes.data()),
                    None => Err(row_error(&shard.name, first + i, "picture", "a PNG or JPEG", "null")),
                };
                let decoded: Vec<Result<Vec<u8>>> = pictures.par_iter().enumerate().map(decode).collect();
                for (i, pixels) in decoded.into_iter().enumerate() {
                    let row = first + i;
                    let label = labels.as_ref().map(|labels| {
                        let label = shard.label(row, labels.get(i).copied().flatten(), classes as i64)?;
                        u32::try_from(label).map_err(|_| row_error(&shard.name, row, "label", "32 bits", label))
                    });
                    let value = values.as_ref().map(|values| shard.value(row, values.get(i).copied().flatten()));
                    builder.push(&pixels?, label.transpose()?, value.transpose()?)?;
                }
                Ok(true)
            })?;
        }
        Ok(builder)
    }
}

/// The files of a split in a listing of a repository of the hub, in order.
///
/// Two layouts are known: `CONFIG/SPLIT/0000.parquet`, `0001.parquet`, .. of the branch `refs/convert/parquet`, and
/// `SPLIT-00000-of-00002.parquet`, .. (in the folder CONFIG, in `data`, or in none) of data sets that are kept in parquet.
///
/// # Errors
///
/// No such files, a file missing between others, files of several configurations where none is named; the message lists
/// the parquet files there are.
pub fn split_files(listing: &[String], config: Option<&str>, split: &str) -> Result<Vec<String>> {
    let refuse = |expected: String| {
        let mut there: Vec<&str> =
            listing.iter().map(String::as_str).filter(|file| file.ends_with(".parquet")).collect();
        there.sort_unstable();
        let more = there.len().saturating_sub(20);
        there.truncate(20);
        let dots = if more > 0 { format!(" and {more} more") } else { String::new() };
        let found = if there.is_empty() { "none".to_owned() } else { there.join(", ") + &dots };
        Err(Error::invalid("parquet files", format!("split `{split}`"), expected, found))
    };
    // (folder, number, how many there should be, path)
    let mut files: Vec<(&str, usize, Option<usize>, &String)> = Vec::new();
    for path in listing {
        let Some(stem) = path.strip_suffix(".parquet") else { continue };
        let (folder, name) = stem.rsplit_once('/').unwrap_or(("", stem));
        if let Some((number, of)) = numbered(name, split) {
            files.push((folder, number, Some(of), path));
        } else if let (Some((config, last)), Ok(number)) = (folder.rsplit_once('/'), name.parse())
            && last == split
        {
            files.push((config, number, None, path));
        }
    }
    if let Some(config) = config {
        // A data set with one configuration, `default`, keeps its files in `data`.
        let named = config != "default" || files.iter().any(|(folder, ..)| *folder == config);
        files.retain(|(folder, ..)| if named { *folder == config } else { *folder == "data" || folder.is_empty() });
    }
    files.sort_unstable();
    let Some(&(folder, _, of, _)) = files.first() else {
        return refuse(format!("`SPLIT/0000.parquet` or `{split}-00000-of-00001.parquet`"));
    };
    if files.iter().any(|file| file.0 != folder) {
        return refuse("files of one configuration, or its name".to_owned());
    }
    let expected = of.unwrap_or(files.len());
    if files.len() != expected || files.iter().enumerate().any(|(i, file)| file.1 != i || file.2 != of) {
        return refuse(format!("each of {} files once", expected.max(files.last().map_or(0, |file| file.1 + 1))));
    }
    Ok(files.into_iter().map(|file| file.3.clone()).collect())
}

/// `SPLIT-00001-of-00005` as 1 and 5.
fn numbered(name: &str, split: &str) -> Option<(usize, usize)> {
    let (number, of) = name.strip_prefix(split)?.strip_prefix('-')?.split_once("-of-")?;
    Some((number.parse().ok()?, of.parse().ok()?))
}

/// Columns of a file, by their place among the leaves of its schema.
struct Found {
    image: usize,
    label: Option<usize>,
    value: Option<usize>,
}

/// One file and its metadata.
struct Shard {
    name: String,
    file: Arc<Checked>,
    metadata: ParquetMetaData,
}

/// Turns a panic of the parquet library into an error.
fn guarded<T>(name: &str, work: impl FnOnce() -> std::result::Result<T, ParquetError>) -> Result<T> {
    // What a panic leaves half done is dropped: nothing of `work` is used afterwards.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|e| damaged(name, e)),
        Err(_) => Err(damaged(name, "damage that the parquet library does not expect")),
    }
}

fn damaged(name: &str, found: impl ToString) -> Error {
    Error::format(name, "content", "a whole parquet file", found)
}

impl Shard {
    fn open(path: &Path) -> Result<Self> {
        let name = shown(path);
        let io = |reason| Error::Io { file: name.clone(), reason };
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length < 12 {
            return Err(Error::format(&name, "bytes", "a parquet file, at least 12", length));
        }
        let (mut start, mut end) = ([0; 4], [0; 8]);
        file.read_exact(&mut start).map_err(io)?;
        file.seek(SeekFrom::End(-8)).map_err(io)?;
        file.read_exact(&mut end).map_err(io)?;
        let [a, b, c, d, magic @ ..] = end;
        if (start, magic) != (*b"PAR1", *b"PAR1") {
            let found = format!("{start:02x?} and {magic:02x?}");
            return Err(Error::format(&name, "format", "PAR1 at the start and the end of a parquet file", found));
        }
        let footer = u32::from_le_bytes([a, b, c, d]);
        if footer > MAX_FOOTER || u64::from(footer) + 12 > length {
            let expected = format!("at most {}", u64::from(MAX_FOOTER).min(length - 12));
            return Err(Error::format(&name, "bytes of metadata", expected, footer));
        }
        let metadata = guarded(&name, || ParquetMetaDataReader::new().parse_and_finish(&file))?;
        Ok(Self { name, file: Arc::new(Checked { file, length }), metadata })
    }

    fn leaves(&self) -> Vec<&ColumnDescriptor> {
        self.metadata.file_metadata().schema_descr().columns().iter().map(AsRef::as_ref).collect()
    }

    /// Rows of all groups, which is what will be read.
    fn rows(&self) -> Result<usize> {
        let mut rows = 0usize;
        for group in self.metadata.row_groups() {
            let some = usize::try_from(group.num_rows()).ok();
            let sum = some.and_then(|some| rows.checked_add(some)).filter(|&sum| u32::try_from(sum).is_ok());
            let wrong = || Error::format(&self.name, "rows of a group", "0 to 4294967295 in all", group.num_rows());
            rows = sum.ok_or_else(wrong)?;
        }
        let total = self.metadata.file_metadata().num_rows();
        if i64::try_from(rows) != Ok(total) {
            return Err(Error::format(&self.name, "rows of all groups", total, rows));
        }
        Ok(rows)
    }

    fn find(&self, columns: &ParquetColumns) -> Result<Found> {
        let number: fn(&ColumnDescriptor) -> bool = |leaf| is_float(leaf) || is_integer(leaf);
        let label = columns.label.as_ref().map(|name| self.leaf(name, is_integer, "column of classes", "integers"));
        let value = columns.value.as_ref().map(|name| self.leaf(name, number, "column of targets", "numbers"));
        Ok(Found { image: self.image(&columns.image)?, label: label.transpose()?, value: value.transpose()? })
    }

    fn image(&self, name: &str) -> Result<usize> {
        let leaves = self.leaves();
        let by_struct = leaves.iter().position(|leaf| struct_of_bytes(leaf) == Some(name));
        match by_struct {
            Some(column) => Ok(column),
            None => self.leaf(name, is_binary, "column of pictures", "a struct with `bytes`, or binary"),
        }
    }

    fn leaf(&self, name: &str, wanted: fn(&ColumnDescriptor) -> bool, what: &'static str, kind: &str) -> Result<usize> {
        let is_it = |leaf: &&ColumnDescriptor| leaf.path().parts() == [name] && wanted(leaf);
        let found = self.leaves().iter().position(is_it);
        found.ok_or_else(|| self.no_column(what, &format!("`{name}`, {kind}")))
    }

    /// An error that lists all columns.
    fn no_column(&self, what: &'static str, expected: &str) -> Error {
        let leaves = self.leaves();
        let columns = leaves.iter().map(|leaf| format!("`{}` {}", leaf.path().string(), leaf.physical_type()));
        Error::format(&self.name, what, expected, columns.collect::<Vec<_>>().join(", "))
    }

    /// Names of the column's classes, where the library `datasets` wrote them.
    fn class_names(&self, column: &str) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Huggingface {
            info: Option<Info>,
        }
        #[derive(Deserialize)]
        struct Info {
            features: Option<serde_json::Map<String, serde_json::Value>>,
        }
        #[derive(Deserialize)]
        struct ClassLabel {
            names: Vec<String>,
        }
        let entries = self.metadata.file_metadata().key_value_metadata();
        let entry = entries.into_iter().flatten().find(|entry| entry.key == "huggingface");
        let Some(text) = entry.and_then(|entry| entry.value.as_ref()) else { return Ok(Vec::new()) };
        let wrong = |e: serde_json::Error| Error::format(&self.name, "metadata `huggingface`", "JSON of its kind", e);
        let known: Huggingface = serde_json::from_str(text).map_err(wrong)?;
        let feature = known.info.and_then(|info| info.features?.remove(column));
        match feature.filter(|feature| feature.get("_type").is_some_and(|kind| kind == "ClassLabel")) {
            None => Ok(Vec::new()),
            Some(feature) => Ok(serde_json::from_value::<ClassLabel>(feature).map_err(wrong)?.names),
        }
    }

    fn label(&self, row: usize, label: Option<i64>, classes: i64) -> Result<i64> {
        let wrong = |found: String| row_error(&self.name, row, "label", format!("0 to {}", classes - 1), found);
        let label = label.ok_or_else(|| wrong("null".to_owned()))?;
        if (0..classes).contains(&label) { Ok(label) } else { Err(wrong(label.to_string())) }
    }

    fn value(&self, row: usize, value: Option<f64>) -> Result<f32> {
        let wrong = |found: String| row_error(&self.name, row, "target", "a finite number", found);
        let value = value.ok_or_else(|| wrong("null".to_owned()))?;
        Some(value as f32).filter(|value| value.is_finite()).ok_or_else(|| wrong(format!("{value:?}")))
    }

    /// Calls `take` with the number of the first row and the values of the columns, for all rows in order, until it says
    /// `false`.
    fn each_batch(&self, columns: &[usize], mut take: impl FnMut(usize, &[Values]) -> Result<bool>) -> Result<()> {
        let mut row = 0;
        self.rows()?;
        for group in self.metadata.row_groups() {
            let rows = usize::try_from(group.num_rows()).unwrap_or(0);
            let readers = columns.iter().map(|&column| self.column(group, column, rows));
            let mut readers = readers.collect::<Result<Vec<_>>>()?;
            let mut left = rows;
            while left > 0 {
                let want = left.min(BATCH);
                let mut batch = Vec::with_capacity(columns.len());
                for reader in &mut readers {
                    let values = guarded(&self.name, || reader.read(want))?;
                    if values.len() != want {
                        let expected = format!("{want} from row {row} on");
                        return Err(Error::format(&self.name, "rows of a column", expected, values.len()));
                    }
                    batch.push(values);
                }
                if !take(row, &batch)? {
                    return Ok(());
                }
                row += want;
                left -= want;
            }
        }
        Ok(())
    }

    fn column(&self, group: &RowGroupMetaData, column: usize, rows: usize) -> Result<Column> {
        let chunk = group.columns().get(column).ok_or_else(|| damaged(&self.name, "a group that lacks a column"))?;
        let descriptor = chunk.column_descr_ptr();
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let end = u64::try_from(start).ok().zip(u64::try_from(chunk.compressed_size()).ok());
        if end.and_then(|(start, bytes)| start.checked_add(bytes)).is_none_or(|end| end > self.file.length) {
            let found = format!("{} bytes at {start}", chunk.compressed_size());
            let expected = format!("inside of {} bytes", self.file.length);
            return Err(Error::format(&self.name, "place of a column", expected, found));
        }
        let max_level = descriptor.max_def_level();
        let reader = guarded(&self.name, || {
            let pages = SerializedPageReader::new(self.file.clone(), chunk, rows, None)?;
            let least = if matches!(descriptor.physical_type(), Type::INT64 | Type::DOUBLE) { 8 } else { 4 };
            Ok(get_column_reader(descriptor, Box::new(Pages { pages, least })))
        })?;
        Ok(Column { reader, max_level })
    }
}

/// The struct that this leaf is the `bytes` of.
fn struct_of_bytes(leaf: &ColumnDescriptor) -> Option<&str> {
    match leaf.path().parts() {
        [name, bytes] if bytes == "bytes" && is_flat(leaf, Type::BYTE_ARRAY) => Some(name),
        _ => None,
    }
}

/// Of this type, and no part of a list.
fn is_flat(leaf: &ColumnDescriptor, kind: Type) -> bool {
    leaf.physical_type() == kind && leaf.max_rep_level() == 0
}

fn is_binary(leaf: &ColumnDescriptor) -> bool {
    let text = leaf.converted_type() == ConvertedType::UTF8 || leaf.logical_type_ref() == Some(&LogicalType::String);
    is_flat(leaf, Type::BYTE_ARRAY) && !text
}

fn is_integer(leaf: &ColumnDescriptor) -> bool {
    is_flat(leaf, Type::INT32) || is_flat(leaf, Type::INT64)
}

fn is_float(leaf: &ColumnDescriptor) -> bool {
    is_flat(leaf, Type::FLOAT) || is_flat(leaf, Type::DOUBLE)
}

/// Values of some rows; `None` is null.
enum Values {
    Bytes(Vec<Option<ByteArray>>),
    Integers(Vec<Option<i64>>),
    Numbers(Vec<Option<f64>>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(values) => values.len(),
            Self::Integers(values) => values.len(),
            Self::Numbers(values) => values.len(),
        }
    }

    fn pictures(&self) -> &[Option<ByteArray>] {
        if let Self::Bytes(values) = self { values } else { &[] }
    }

    fn integers(&self) -> Vec<Option<i64>> {
        if let Self::Integers(values) = self { values.clone() } else { Vec::new() }
    }

    fn numbers(&self) -> Vec<Option<f64>> {
        match self {
            Self::Numbers(values) => values.clone(),
            Self::Integers(values) => values.iter().map(|value| value.map(|value| value as f64)).collect(),
            Self::Bytes(_) => Vec::new(),
        }
    }
}

/// A column of one row group.
struct Column {
    reader: ColumnReader,
    /// Definition level of a value that is not null.
    max_level: i16,
}

impl Column {
    fn read(&mut self, want: usize) -> std::result::Result<Values, ParquetError> {
        let level = self.max_level;
        Ok(match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) => Values::Bytes(values(reader, level, want)?),
            ColumnReader::Int32ColumnReader(reader) => {
                Values::Integers(values(reader, level, want)?.into_iter().map(|v| v.map(i64::from)).collect())
            }
            ColumnReader::Int64ColumnReader(reader) => Values::Integers(values(reader, level, want)?),
            ColumnReader::FloatColumnReader(reader) => {
                Values::Numbers(values(reader, level, want)?.into_iter().map(|v| v.map(f64::from)).collect())
            }
            ColumnReader::DoubleColumnReader(reader) => Values::Numbers(values(reader, level, want)?),
            _ => return Err(ParquetError::General("a column of another type".to_owned())),
        })
    }
}

fn values<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    max_level: i16,
    want: usize,
) -> std::result::Result<Vec<Option<T::T>>, ParquetError> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (rows, _, _) = reader.read_records(want, Some(&mut levels), None, &mut values)?;
    if max_level == 0 {
        return Ok(values.into_iter().map(Some).collect());
    }
    let mut values = values.into_iter();
    let of = |&level: &i16| if level == max_level { values.next() } else { None };
    Ok(levels.iter().take(rows).map(of).collect())
}

/// A file whose pages are checked before memory is asked for them.
#[derive(Debug)]
struct Checked {
    file: File,
    length: u64,
}

impl Length for Checked {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Checked {
    type T = BufReader<File>;

    /// Called at the start of each page.
    fn get_read(&self, start: u64) -> std::result::Result<Self::T, ParquetError> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        let mut reader = BufReader::with_capacity(4096, file);
        check_page(reader.fill_buf()?).map_err(|found| ParquetError::General(format!("{found} at byte {start}")))?;
        Ok(reader)
    }

    fn get_bytes(&self, start: u64, length: usize) -> std::result::Result<bytes::Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start}, of {}", self.length)));
        }
        self.file.get_bytes(start, length)
    }
}

/// The first three fields of a page's header in Thrift's compact protocol: type, size, compressed size.
fn check_page(header: &[u8]) -> std::result::Result<(), String> {
    let mut bytes = header.iter();
    let mut fields = [0i64; 3];
    for field in &mut fields {
        // A field one further than the last, of 32 bits: every writer begins so.
        if bytes.next() != Some(&0x15) {
            return Err("no header of a page".to_owned());
        }
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let &byte = bytes.next().filter(|_| shift < 35).ok_or("no header of a page")?;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        // Zigzag.
        *field = (value >> 1) as i64 ^ -((value & 1) as i64);
    }
    let [_, size, compressed] = fields.map(|field| u64::try_from(field).unwrap_or(u64::MAX));
    if size > MAX_PAGE.max(compressed.saturating_mul(MAX_RATIO)) || size > i32::MAX as u64 {
        return Err(format!("a page of {compressed} bytes that claims {size}"));
    }
    Ok(())
}

/// Pages whose claims the decoders can trust.
struct Pages {
    pages: SerializedPageReader<Checked>,
    /// Fewest bytes of a value in a dictionary.
    least: usize,
}

impl Pages {
    fn check(&self, page: &Page) -> std::result::Result<(), ParquetError> {
        let refuse = |found: String| Err(ParquetError::General(found));
        match (page, page.encoding()) {
            (Page::DictionaryPage { buf, num_values, .. }, Encoding::PLAIN | Encoding::PLAIN_DICTIONARY) => {
                if (*num_values as usize).checked_mul(self.least).is_none_or(|bytes| bytes > buf.len()) {
                    return refuse(format!("a dictionary of {num_values} values in {} bytes", buf.len()));
                }
                Ok(())
            }
            (Page::DictionaryPage { .. }, encoding) => refuse(format!("a dictionary in encoding {encoding}")),
            (_, Encoding::PLAIN | Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY) => Ok(()),
            (_, encoding) => refuse(format!("values in encoding {encoding}, where PLAIN or a dictionary can be read")),
        }
    }
}

impl Iterator for Pages {
    type Item = std::result::Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> std::result::Result<Option<Page>, ParquetError> {
        let page = self.pages.get_next_page()?;
        page.iter().try_for_each(|page| self.check(page))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> std::result::Result<Option<PageMetadata>, ParquetError> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> std::result::Result<(), ParquetError> {
        self.pages.skip_next_page()
    }
}

#[cfg(test)]
mod tests;
