//! The files of `torch.save` (`.pth`, `.pt`), read as data.
//!
//! Such a file is a zip archive of a pickle and of one entry of raw bytes a storage; before PyTorch 1.6 it was a row of
//! pickles with the storages behind them (`legacy.rs`). A pickle is a program for a small machine that may call any function
//! of Python; this reader knows the few instructions that a checkpoint is made of, refuses every other one, and has nothing
//! that could be called.
//!
//! Why not candle's reader (`candle_core::pickle`, 0.11.1): it runs no code either, but it was not written for files of
//! strangers. A short argument tuple makes it panic, an integer of nine bytes or a huge offset too where overflow is checked;
//! the memo hands out deep copies, so a kilobyte of nested tuples fills the memory; clones and drops recurse, so deep nesting
//! overflows the stack; the length of a text and the shape of a tensor are allocated before anything is compared with the
//! file; a global that it does not know is kept, or skipped with its tensor, without a word; int8, int16, int32, bool,
//! big-endian files and most views that are not contiguous are not read, and a negative offset wraps round.
//! (`tests/it/upstream.rs` shows some of it.)
//!
//! What holds here for every file:
//! - values refer to each other by number and are freed in one go, nothing recurses, however deep the nesting;
//! - nothing is allocated by a size that the file claims: entries are slices of the file, which are never compressed, and a
//!   tensor has no more elements than its storage has bytes for;
//! - a pickle of more than 8 MiB or of more than a million values is refused: a state dict takes about twenty a tensor;
//! - entries are compared with their CRC, where the writer computed one; the older format has none, but every byte of such a
//!   file belongs to a pickle or to a storage of the announced size.

mod legacy;
mod pickle;
mod state_dict;
mod value;
mod zip;

use pickle::{Limits, MAX_PICKLE, Pickled};
use state_dict::StateDict;

use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// What a storage holds, under PyTorch's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: &'static str,
    /// Bytes of one.
    size: usize,
    /// The type to read it in, for numbers that a weight may be.
    pub(crate) float: Option<DType>,
}

/// A tensor as the pickle describes it: a view of a storage, offset and strides in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) element: Element,
    /// Name of the storage, which is that of its entry below `data/` in a zip file.
    storage: Arc<str>,
    /// Elements of the storage.
    count: usize,
    /// Where in the storage the piece begins that the view is of, and how many elements it has: in newer files always all.
    start: usize,
    length: usize,
    /// From the beginning of the piece.
    offset: usize,
    pub(crate) shape: Vec<usize>,
    strides: Vec<usize>,
}

/// An open file: the views of its state dict, and the bytes that they look at.
pub(crate) struct TorchFile {
    bytes: Vec<u8>,
    /// Whether the file is no zip archive, but has the format before PyTorch 1.6.
    pub(crate) legacy: bool,
    /// Under which key of the pickle the state dict was, if it was not the whole of it.
    pub(crate) container: Option<&'static str>,
    pub(crate) views: BTreeMap<String, View>,
    /// Keys of the state dict that hold something else than a tensor.
    pub(crate) others: BTreeSet<String>,
    storages: BTreeMap<Arc<str>, Range<usize>>,
    big_endian: bool,
}

/// More dimensions than any weight has.
const MAX_RANK: usize = 8;

/// A key of the state dict. A text is stored once but may be referred to by every second byte of a pickle, so nothing long
/// may be copied for each reference.
const MAX_NAME: usize = 1024;

/// Why a file was refused, without its name.
type Refusal = String;

/// How a zip file begins.
const ARCHIVE: &[u8] = b"PK\x03\x04";

impl TorchFile {
    /// Whether the file begins as one that `torch.save` writes.
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(ARCHIVE) || bytes.starts_with(legacy::MAGIC)
    }

    /// Finds the state dict and checks every tensor of it against the file; reads no value yet.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, Refusal> {
        if bytes.starts_with(ARCHIVE) { Self::parse_archive(bytes) } else { legacy::parse(bytes) }
    }

    fn parse_archive(bytes: Vec<u8>) -> Result<Self, Refusal> {
        let entries = zip::entries(&bytes)?;
        let root = root(&entries)?;
        let entry = |name: &str| -> Result<Option<&[u8]>, Refusal> {
            let name = format!("{root}/{name}");
            entries.get(&name).map(|entry| entry.content(&bytes, &name)).transpose()
        };
        let big_endian = match entry("byteorder")? {
            None | Some(b"little") => false,
            Some(b"big") => true,
            Some(other) => return Err(format!("unknown byte order `{}`", shown(&String::from_utf8_lossy(other)))),
        };
        let pickle = entry("data.pkl")?.expect("the root was found by it");
        if pickle.len() > MAX_PICKLE {
            return Err(format!("data.pkl has {} bytes, a state dict at most {MAX_PICKLE}", pickle.len()));
        }
        let pickled = Pickled::read(pickle, 0, "data.pkl", Limits::OBJECT)?;
        let StateDict { container, views, others } = pickled.state_dict()?;
        let mut storages = BTreeMap::new();
        for (key, view) in &views {
            let name = format!("{root}/data/{}", view.storage);
            let found =
                entries.get(&name).ok_or_else(|| format!("`{}`: the entry `{}` is missing", shown(key), shown(&name)));
            let range = found?.range.clone();
            view.check(range.len()).map_err(|reason| format!("`{}`: {reason}", shown(key)))?;
            if !storages.contains_key(&view.storage) {
                entries[&name].content(&bytes, &name)?;
                storages.insert(view.storage.clone(), range);
            }
        }
        Ok(Self { bytes, legacy: false, container, views, others, storages, big_endian })
    }

    /// A copy of one tensor in row-major order, in its own type; `name` is a key of `views`.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor, Refusal> {
        let view = &self.views[name];
        let Some(dtype) = view.element.float else {
            return Err(format!("`{}` is {}, not a floating-point number", shown(name), view.element.name));
        };
        let mut bytes = view.gather(&self.bytes[self.storages[&view.storage].clone()]);
        // candle reads numbers in the order of the processor.
        if self.big_endian != cfg!(target_endian = "big") {
            bytes.chunks_exact_mut(view.element.size).for_each(<[u8]>::reverse);
        }
        Tensor::from_raw_buffer(&bytes, dtype, &view.shape, &Device::Cpu).map_err(|e| e.to_string())
    }
}

/// The folder that all entries lie in.
fn root(entries: &BTreeMap<String, zip::Entry>) -> Result<&str, Refusal> {
    let mut roots = entries.keys().filter_map(|name| name.strip_suffix("/data.pkl")).filter(|root| !root.contains('/'));
    let (Some(root), None) = (roots.next(), roots.next()) else {
        return Err("a zip file without exactly one `NAME/data.pkl`: not written by torch.save".into());
    };
    if entries.contains_key(&format!("{root}/constants.pkl")) {
        return Err("a TorchScript module, which is a program; save its state_dict() by torch.save instead".into());
    }
    Ok(root)
}

impl View {
    /// Refuses a view that does not lie within a storage of `bytes` bytes.
    fn check(&self, bytes: usize) -> Result<(), Refusal> {
        let Element { name, size, .. } = self.element;
        if self.count.checked_mul(size) != Some(bytes) {
            return Err(format!("a storage of {} {name} was announced, its entry has {bytes} bytes", self.count));
        }
        if self.shape.len() != self.strides.len() {
            return Err(format!("shape {:?} with strides {:?}", self.shape, self.strides));
        }
        // Sizes of zero count as one here, so that no product of the others can overflow later.
        let most = self.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size.max(1)));
        let elements = if self.shape.contains(&0) { most.map(|_| 0) } else { most };
        // An expanded tensor repeats elements; without a limit a storage of four bytes could become a terabyte.
        if elements.is_none_or(|n| n > self.length) {
            return Err(format!("shape {:?} has more elements than its storage of {}", self.shape, self.length));
        }
        match self.end() {
            Some(end) if end <= self.length => Ok(()),
            _ => Err(format!(
                "offset {}, shape {:?} and strides {:?} reach beyond a storage of {} elements",
                self.offset, self.shape, self.strides, self.length
            )),
        }
    }

    /// One beyond the last element of the piece that the view touches.
    fn end(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(self.offset);
        }
        let mut last = self.offset;
        for (size, stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((size - 1).checked_mul(*stride)?)?;
        }
        last.checked_add(1)
    }

    /// The elements in row-major order, out of the bytes of the storage.
    fn gather(&self, storage: &[u8]) -> Vec<u8> {
        let size = self.element.size;
        let elements: usize = self.shape.iter().product();
        let mut gathered = Vec::with_capacity(elements * size);
        let mut index = vec![0; self.shape.len()];
        let mut at = self.start + self.offset;
        for _ in 0..elements {
            gathered.extend_from_slice(&storage[at * size..][..size]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        gathered
    }
}

/// Text of a file as it may stand in a message: without control characters, and not longer than a line.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 120;
    let mut line: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        line.push_str("...");
    }
    line
}
