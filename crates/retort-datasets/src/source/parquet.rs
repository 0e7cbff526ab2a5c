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
mod tests {
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
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd, Compression::GZIP(Default::default())]
        {
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
        let all = "found `image.bytes` BYTE_ARRAY, `image.path` BYTE_ARRAY, `label` INT64, `target` DOUBLE, `note` BYTE_ARRAY";
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
}
