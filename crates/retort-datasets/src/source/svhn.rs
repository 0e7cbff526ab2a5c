//! SVHN's cropped digits (Netzer et al. 2011, "Reading Digits in Natural Images with Unsupervised Feature Learning") in
//! MATLAB's format of level 5 ("MAT-File Format", The MathWorks 1999).
//!
//! `X` is `uint8 [32, 32, 3, N]`, `y` is `[N, 1]` with 10 for the digit 0; both column-major, so that an image lies in
//! one piece, plane after plane and column after column. Either may be compressed by zlib. Images are decoded one at a
//! time; nothing is allocated on the word of a header.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom, Take};
use std::path::Path;

use flate2::bufread::ZlibDecoder;

use super::files::{row_error, shown};
use super::stl10::transpose;
use crate::{DatasetBuilder, Error, ImageShape, Result};

/// Shape of the images.
pub const SHAPE: ImageShape = ImageShape { channels: 3, height: SIDE, width: SIDE };

/// Number of classes, the digits 0 to 9.
pub const CLASSES: usize = 10;

/// More images than any of the three files has (`extra` has 531,131).
pub const MAX_ROWS: usize = 1 << 20;

const SIDE: usize = 32;
const IMAGE_BYTES: usize = 3 * SIDE * SIDE;

/// Types of elements that occur here.
const INT8: u32 = 1;
const UINT8: u32 = 2;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const DOUBLE: u32 = 9;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
/// Class of an array of bytes.
const UINT8_CLASS: u8 = 9;

/// Variables of a file; the official ones have two.
const MAX_VARIABLES: usize = 64;

/// Name of the official file of a part: `train`, `test` or `extra`.
pub fn file_name(part: &str) -> String {
    format!("{part}_32x32.mat")
}

/// Appends all images of a file to a builder of [`SHAPE`] and [`CLASSES`].
///
/// # Errors
///
/// A file that cannot be read, is no MAT-file of level 5 in little endian, is cut off or damaged, lacks `X` or `y`, has
/// them in another shape or type, or has a label outside 1 to 10 (with its row).
pub fn read(mut builder: DatasetBuilder, path: &Path) -> Result<DatasetBuilder> {
    let file = Mat::open(path)?;
    let variables = file.variables()?;
    let find = |name: &str| {
        let names = || variables.iter().map(|v| format!("`{}`", v.name)).collect::<Vec<_>>().join(", ");
        let found = variables.iter().find(|v| v.name == name);
        found.ok_or_else(|| Error::format(&file.name, "variables", format!("`{name}`"), format!("[{}]", names())))
    };
    let (x, y) = (find("X")?, find("y")?);
    let rows = match x.dims[..] {
        [32, 32, 3, rows] if x.class == UINT8_CLASS && (1..=MAX_ROWS).contains(&rows) => rows,
        // MATLAB drops a last dimension of 1.
        [32, 32, 3] if x.class == UINT8_CLASS => 1,
        _ => {
            let expected = format!("uint8 [32, 32, 3, N] with N from 1 to {MAX_ROWS}");
            return Err(Error::format(&file.name, "variable `X`", expected, x.describe()));
        }
    };
    if y.dims != [rows, 1] && y.dims != [1, rows] {
        return Err(Error::format(&file.name, "variable `y`", format!("[{rows}, 1]"), y.describe()));
    }
    let labels = file.labels(y, rows)?;
    let mut body = file.body(x)?;
    let (kind, bytes) = body.tag()?;
    if kind != UINT8 || bytes as usize != rows * IMAGE_BYTES {
        let expected = format!("{} bytes of uint8", rows * IMAGE_BYTES);
        return Err(Error::format(&file.name, "data of `X`", expected, format!("{bytes} bytes of type {kind}")));
    }
    let (mut stored, mut pixels) = (vec![0; IMAGE_BYTES], vec![0; IMAGE_BYTES]);
    for (row, label) in labels.into_iter().enumerate() {
        body.fill(&mut stored).map_err(|found| row_error(&file.name, row, "pixels", "3072 bytes", found))?;
        transpose(&stored, &mut pixels, SIDE);
        builder.push(&pixels, Some(label), None)?;
    }
    body.end()?;
    Ok(builder)
}

/// An open file, and its name for errors.
struct Mat {
    name: String,
    file: File,
    bytes: u64,
}

/// A variable's header, and where its element begins.
#[derive(Debug)]
struct Variable {
    name: String,
    class: u8,
    dims: Vec<usize>,
    /// Offset of the element's tag.
    at: u64,
}

impl Variable {
    fn describe(&self) -> String {
        format!("class {} {:?}", self.class, self.dims)
    }
}

impl Mat {
    fn open(path: &Path) -> Result<Self> {
        let name = shown(path);
        let io = |reason| Error::Io { file: name.clone(), reason };
        let mut file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut header = Vec::new();
        file.by_ref().take(128).read_to_end(&mut header).map_err(io)?;
        if header.len() != 128 {
            return Err(Error::format(&name, "bytes of header", 128, header.len()));
        }
        // Version 0x0100 and the letters MI, swapped by little endian.
        if header.get(124..128) != Some(&[0x00, 0x01, b'I', b'M']) {
            let found = match header.get(..4) {
                Some(b"MATL") => "another version of it, or big endian",
                _ => "something else",
            };
            return Err(Error::format(&name, "format", "a MAT-file of level 5 in little endian", found));
        }
        Ok(Self { name, file, bytes })
    }

    /// Headers of all variables; no data is read.
    fn variables(&self) -> Result<Vec<Variable>> {
        let mut variables = Vec::new();
        let mut at = 128;
        while at < self.bytes {
            if variables.len() == MAX_VARIABLES {
                return Err(Error::format(&self.name, "variables", format!("at most {MAX_VARIABLES}"), "more"));
            }
            let (mut body, end) = self.element(at)?;
            variables.push(body.header(at)?);
            at = end;
        }
        Ok(variables)
    }

    /// The inside of the variable at this offset, decompressed, and the offset after it.
    fn element(&self, at: u64) -> Result<(Body<'_>, u64)> {
        let io = |reason| Error::Io { file: self.name.clone(), reason };
        let mut file = &self.file;
        file.seek(SeekFrom::Start(at)).map_err(io)?;
        let mut plain = Body { file: &self.name, source: Source::Plain(Box::new(BufReader::new(file.take(8)))) };
        let (kind, bytes) = plain.tag()?;
        let end = at + 8 + u64::from(bytes);
        if end > self.bytes {
            let expected = format!("{bytes} bytes after byte {}", at + 8);
            return Err(Error::format(
                &self.name,
                "length of a variable",
                expected,
                self.bytes - (at + 8).min(self.bytes),
            ));
        }
        let inside = BufReader::with_capacity(1 << 16, file.take(u64::from(bytes)));
        let body = match kind {
            MATRIX => Body { file: &self.name, source: Source::Plain(Box::new(inside)) },
            COMPRESSED => {
                let mut body = Body { file: &self.name, source: Source::Zlib(Box::new(ZlibDecoder::new(inside))) };
                let (kind, _) = body.tag()?;
                if kind != MATRIX {
                    return Err(Error::format(&self.name, "type of a variable", "a matrix (14)", kind));
                }
                body
            }
            _ => return Err(Error::format(&self.name, "type of a variable", "a matrix (14) or compressed (15)", kind)),
        };
        Ok((body, end))
    }

    /// The variable's inside, after its header.
    fn body(&self, variable: &Variable) -> Result<Body<'_>> {
        let (mut body, _) = self.element(variable.at)?;
        body.header(variable.at)?;
        Ok(body)
    }

    fn labels(&self, y: &Variable, rows: usize) -> Result<Vec<u32>> {
        let mut body = self.body(y)?;
        let (kind, bytes, inline) = body.short_tag()?;
        let size = match kind {
            INT8 | UINT8 => 1,
            INT32 | UINT32 => 4,
            DOUBLE => 8,
            _ => {
                let expected = "int8, uint8, int32, uint32 or double";
                return Err(Error::format(&self.name, "type of the labels", expected, format!("type {kind}")));
            }
        };
        if bytes as usize != rows * size {
            return Err(Error::format(&self.name, "bytes of labels", rows * size, bytes));
        }
        let mut labels = Vec::new();
        for row in 0..rows {
            let mut raw = [0; 8];
            let raw = raw.get_mut(..size).unwrap_or_default();
            match inline.and_then(|inline| inline.get(row * size..(row + 1) * size).map(<[u8]>::to_vec)) {
                Some(bytes) => raw.copy_from_slice(&bytes),
                None => body.fill(raw).map_err(|found| row_error(&self.name, row, "label", "1 to 10", found))?,
            }
            labels.push(self.label(row, kind, raw)?);
        }
        Ok(labels)
    }

    fn label(&self, row: usize, kind: u32, raw: &[u8]) -> Result<u32> {
        let value = match (kind, raw) {
            (DOUBLE, raw) => raw.try_into().map_or(f64::NAN, f64::from_le_bytes),
            (INT8, &[byte]) => f64::from(i8::from_le_bytes([byte])),
            (INT32, raw) => raw.try_into().map_or(f64::NAN, |raw| f64::from(i32::from_le_bytes(raw))),
            (_, &[byte]) => f64::from(byte),
            (_, raw) => raw.try_into().map_or(f64::NAN, |raw| f64::from(u32::from_le_bytes(raw))),
        };
        let digit = (1..=10u32).find(|&digit| f64::from(digit) == value);
        digit.map(|digit| digit % 10).ok_or_else(|| row_error(&self.name, row, "label", "1 to 10", value))
    }
}

enum Source<'a> {
    Plain(Box<BufReader<Take<&'a File>>>),
    Zlib(Box<ZlibDecoder<BufReader<Take<&'a File>>>>),
}

/// The inside of one variable.
struct Body<'a> {
    file: &'a str,
    source: Source<'a>,
}

impl Body<'_> {
    /// Exactly as many bytes as the buffer has; an error says in words what came instead.
    fn fill(&mut self, buffer: &mut [u8]) -> std::result::Result<(), String> {
        let read = match &mut self.source {
            Source::Plain(reader) => reader.read_exact(buffer),
            Source::Zlib(reader) => reader.read_exact(buffer),
        };
        read.map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => "the end of the variable".to_owned(),
            _ => format!("a damaged variable ({e})"),
        })
    }

    fn bytes<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes).map_err(|found| Error::format(self.file, what, format!("{N} bytes"), found))?;
        Ok(bytes)
    }

    /// Type and number of bytes of an element that is not short.
    fn tag(&mut self) -> Result<(u32, u32)> {
        match self.short_tag()? {
            (kind, bytes, None) => Ok((kind, bytes)),
            (kind, bytes, Some(_)) => {
                let found = format!("type {kind} with {bytes} bytes inside");
                Err(Error::format(self.file, "tag", "a type and a length", found))
            }
        }
    }

    /// Type, number of bytes and, for a short element of up to 4 bytes, these.
    fn short_tag(&mut self) -> Result<(u32, u32, Option<[u8; 4]>)> {
        let [a, b, c, d, rest @ ..] = self.bytes::<8>("tag")?;
        let (low, high) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        match high {
            0 => Ok((u32::from(low), u32::from_le_bytes(rest), None)),
            1..=4 => Ok((u32::from(low), u32::from(high), Some(rest))),
            _ => Err(Error::format(self.file, "bytes of a short element", "at most 4", high)),
        }
    }

    /// A small element of the header: its type and bytes, without the filling up to a multiple of 8.
    fn small(&mut self, what: &'static str) -> Result<(u32, Vec<u8>)> {
        const MOST: u32 = 256;
        let (kind, bytes, inline) = self.short_tag()?;
        if let Some(inline) = inline {
            return Ok((kind, inline.into_iter().take(bytes as usize).collect()));
        }
        if bytes > MOST {
            return Err(Error::format(self.file, what, format!("at most {MOST} bytes"), bytes));
        }
        let mut content = vec![0; (bytes as usize).next_multiple_of(8)];
        self.fill(&mut content).map_err(|found| Error::format(self.file, what, format!("{bytes} bytes"), found))?;
        content.truncate(bytes as usize);
        Ok((kind, content))
    }

    /// Flags, dimensions and name.
    fn header(&mut self, at: u64) -> Result<Variable> {
        let (kind, flags) = self.small("flags of a variable")?;
        let (Some(&class), Some(&bits), UINT32, 8) = (flags.first(), flags.get(1), kind, flags.len()) else {
            let found = format!("{} bytes of type {kind}", flags.len());
            return Err(Error::format(self.file, "flags of a variable", "8 bytes of type 6", found));
        };
        // Complex, global and logical arrays have other data than ours.
        if bits & 0x0e != 0 {
            return Err(Error::format(
                self.file,
                "flags of a variable",
                "an array of real numbers",
                format!("{bits:#x}"),
            ));
        }
        let (kind, dims) = self.small("dimensions of a variable")?;
        if kind != INT32 || dims.is_empty() || dims.len() % 4 != 0 {
            let found = format!("{} bytes of type {kind}", dims.len());
            return Err(Error::format(self.file, "dimensions of a variable", "numbers of type 5", found));
        }
        let dims = dims.chunks_exact(4).map(|raw| {
            let value = raw.try_into().map_or(-1, i32::from_le_bytes);
            let wrong = || Error::format(self.file, "dimension of a variable", "at least 0", value);
            usize::try_from(value).map_err(|_| wrong())
        });
        let dims = dims.collect::<Result<Vec<usize>>>()?;
        let (_, name) = self.small("name of a variable")?;
        Ok(Variable { name: String::from_utf8_lossy(&name).into_owned(), class, dims, at })
    }

    /// Reads a compressed variable to its end, which compares its check sum.
    fn end(mut self) -> Result<()> {
        let Source::Zlib(reader) = &mut self.source else { return Ok(()) };
        // The filling up to a multiple of 8, and not more.
        let mut rest = Vec::new();
        match reader.take(9).read_to_end(&mut rest) {
            Ok(n) if n < 8 => Ok(()),
            Ok(_) => Err(Error::format(self.file, "end of `X`", "the end of the variable", "more bytes")),
            Err(e) => Err(Error::format(self.file, "end of `X`", "a whole zlib stream", e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dataset, Split};
    use proptest::prelude::*;

    /// Written by SciPy's `savemat`: 4 images and `uint8` labels, compressed.
    const PACKED: &[u8] = include_bytes!("../../tests/data/svhn-compressed.mat");
    /// 2 images and `double` labels, not compressed.
    const PLAIN: &[u8] = include_bytes!("../../tests/data/svhn-plain.mat");

    fn load(bytes: &[u8]) -> Result<Dataset> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name("train"));
        std::fs::write(&path, bytes).unwrap();
        read(DatasetBuilder::new("svhn", Split::Train, SHAPE, CLASSES)?, &path)?.finish_with_statistics()
    }

    #[test]
    fn files_of_scipy_are_read() {
        for (bytes, labels) in [(PACKED, &[0, 1, 2, 9][..]), (PLAIN, &[0, 3])] {
            let data = load(bytes).unwrap();
            assert_eq!(data.labels(), labels);
            for n in 0..data.len() {
                let image = data.image(n).unwrap();
                let found = |c: usize, y: usize, x: usize| usize::from(image[(c * SIDE + y) * SIDE + x]);
                for (c, y, x) in [(0, 0, 0), (0, 5, 20), (1, 20, 5), (2, 31, 30)] {
                    assert_eq!(found(c, y, x), (y * 7 + x * 3 + c * 50 + n * 11) % 256, "{n} {c} {y} {x}");
                }
            }
        }
    }

    #[test]
    fn every_beginning_is_refused() {
        for whole in [PACKED, PLAIN] {
            for length in (0..whole.len()).filter(|n| n % 7 == 0 || *n > whole.len() - 40) {
                let error = load(&whole[..length]).unwrap_err().to_string();
                assert!(error.contains("train_32x32.mat"), "{length}: {error}");
            }
        }
    }

    /// The uncompressed file with some bytes replaced. Its variable X begins at 128.
    fn changed(at: usize, bytes: &[u8]) -> String {
        let mut file = PLAIN.to_vec();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        load(&file).unwrap_err().to_string()
    }

    #[test]
    fn hostile_headers_are_refused() {
        let dims = 128 + 8 + 16 + 8;
        let y = PLAIN.len() - 16;
        assert_eq!(PLAIN[y..y + 8], 10f64.to_le_bytes());
        let cases = [
            (124, [1, 0, b'M', b'I'].as_slice(), "expected a MAT-file of level 5 in little endian"),
            (128, &[9, 0, 0, 0], "type of a variable: expected a matrix (14) or compressed (15), found 9"),
            (132, &[0xff; 4], "length of a variable: expected 4294967295 bytes"),
            (dims, &[31], "expected uint8 [32, 32, 3, N]"),
            (dims + 12, &[3], "variable `y`: expected [3, 1], found class 6 [2, 1]"),
            (dims + 12, &[0], "expected uint8 [32, 32, 3, N]"),
            (dims + 12, &[0xff, 0xff, 0xff, 0x7f], "expected uint8 [32, 32, 3, N]"),
            (dims + 12, &[0xff; 4], "dimension of a variable: expected at least 0, found -1"),
            (dims - 4, &[0xff; 4], "dimensions of a variable: expected at most 256 bytes"),
            (128 + 16, &[6], "variable `X`: expected uint8"),
            (128 + 17, &[8], "an array of real numbers"),
            (y, &11f64.to_le_bytes(), "train_32x32.mat`, row 0: label: expected 1 to 10, found 11"),
            (y + 8, &0f64.to_le_bytes(), "row 1: label: expected 1 to 10, found 0"),
            (y, &f64::NAN.to_le_bytes(), "found NaN"),
            (y, &1.5f64.to_le_bytes(), "found 1.5"),
            (y - 4, &[8], "bytes of labels: expected 16, found 8"),
            (y - 8, &[7], "type of the labels"),
        ];
        for (at, bytes, message) in cases {
            let error = changed(at, bytes);
            assert!(error.contains(message), "{at}: {error}");
        }
        let mut text = PLAIN.to_vec();
        text[0] = b'm';
        assert!(load(&text).is_ok(), "the text is free");
        assert!(load(b"").unwrap_err().to_string().contains("bytes of header: expected 128, found 0"));
        assert!(load(&PLAIN[..128]).unwrap_err().to_string().contains("variables: expected `X`, found []"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn changed_bytes_never_panic(at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            for whole in [PACKED, PLAIN] {
                let mut bytes = whole.to_vec();
                // The first 300 bytes hold the headers: half of the changes go there.
                for (i, (index, value)) in at.iter().enumerate() {
                    bytes[index.index(if i % 2 == 0 { 300 } else { whole.len() })] = *value;
                }
                if let Ok(data) = load(&bytes) {
                    prop_assert!(data.labels().iter().all(|&label| label < 10));
                }
            }
        }
    }
}
