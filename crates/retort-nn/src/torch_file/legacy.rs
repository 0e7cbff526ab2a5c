//! The files of `torch.save` before PyTorch 1.6: five pickles in a row, then the storages.
//!
//! The pickles are a magic number, the version of the format, facts about the machine that wrote the file, the object,
//! and the keys of the storages. Behind them stands for each key, in that order, a count of eight bytes and as many
//! elements, all little-endian. (PyTorch before 0.1.11 wrote a tar file instead.)
//!
//! Nothing says how long a pickle is but the pickle itself, and only the object says of which type a storage is. So the
//! object is read first, every storage that it speaks of must be in the list once and no other, and each count must be
//! the one that the object has announced.

use super::pickle::{Limits, Pickled};
use super::state_dict::StateDict;
use super::value::Value;
use super::{Element, Refusal, TorchFile, shown};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The first pickle: protocol 2 and the number 0x1950a86a20f9469cfc6c.
pub(super) const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The only version of the format that there has been.
const VERSION: i64 = 1001;

/// Reads the pickles behind the magic number, and checks every storage and every tensor of the state dict against the
/// file.
pub(super) fn parse(bytes: Vec<u8>) -> Result<TorchFile, Refusal> {
    let version = Pickled::read(&bytes, MAGIC.len(), "the version's pickle", Limits::HEADER)?;
    check_version(&version)?;
    let system = Pickled::read(&bytes, version.end, "the pickle of sys_info", Limits::HEADER)?;
    check_system(&system)?;
    let object = Pickled::read(&bytes, system.end, "the object's pickle", Limits::OBJECT)?;
    let keys = Pickled::read(&bytes, object.end, "the pickle of the storages' keys", Limits::OBJECT)?;
    let storages = storages(&bytes, keys.end, &listed(&keys)?, &object.storages)?;
    let StateDict { container, views, others } = object.state_dict()?;
    for (key, view) in &views {
        let range = storages.get(&view.storage).ok_or_else(|| format!("`{}`: its storage is missing", shown(key)))?;
        view.check(range.len()).map_err(|reason| format!("`{}`: {reason}", shown(key)))?;
    }
    Ok(TorchFile { bytes, legacy: true, container, views, others, storages, big_endian: false })
}

fn check_version(pickled: &Pickled) -> Result<(), Refusal> {
    match pickled.root() {
        Value::Int(VERSION) => Ok(()),
        Value::Int(other) => Err(format!("version {other} of the format of torch.save, expected {VERSION}")),
        _ => Err(format!("the version of the format is no number, expected {VERSION}")),
    }
}

/// `{protocol_version, little_endian, type_sizes}`. A file of a big-endian machine is refused, because there is none to
/// test with.
fn check_system(pickled: &Pickled) -> Result<(), Refusal> {
    let Value::Dict(entries) = pickled.root() else {
        return Err("sys_info is no dict".into());
    };
    match pickled.under(entries, "protocol_version") {
        Some(Value::Int(VERSION)) => {}
        _ => return Err(format!("sys_info: protocol_version is not {VERSION}")),
    }
    match pickled.under(entries, "little_endian") {
        Some(Value::Bool(true)) => {}
        Some(Value::Bool(false)) => return Err("sys_info: a file of a big-endian machine, which is not read".into()),
        _ => return Err("sys_info: little_endian is not True".into()),
    }
    let Some(Value::Dict(sizes)) = pickled.under(entries, "type_sizes") else {
        return Err("sys_info: type_sizes is no dict".into());
    };
    for (name, expected) in [("short", 2), ("int", 4), ("long", 4)] {
        match pickled.under(sizes, name) {
            Some(Value::Int(size)) if *size == expected => {}
            Some(Value::Int(size)) => {
                return Err(format!("sys_info: type_sizes.{name} is {size}, expected {expected}"));
            }
            _ => return Err(format!("sys_info: type_sizes.{name} is missing, expected {expected}")),
        }
    }
    Ok(())
}

/// The list of keys.
fn listed(pickled: &Pickled) -> Result<Vec<Arc<str>>, Refusal> {
    let Value::List(ids) = pickled.root() else {
        return Err("the keys of the storages are no list".into());
    };
    let text = |id: &u32| match pickled.value(*id) {
        Value::Text(text) => Ok(text.clone()),
        _ => Err("a key of a storage is no text".into()),
    };
    ids.iter().map(text).collect()
}

/// Where each storage's elements are, from byte `at` to the very end of the file.
fn storages(
    bytes: &[u8],
    mut at: usize,
    keys: &[Arc<str>],
    announced: &BTreeMap<Arc<str>, (Element, usize)>,
) -> Result<BTreeMap<Arc<str>, Range<usize>>, Refusal> {
    let mut found = BTreeMap::new();
    for key in keys {
        let refuse = |reason: String| format!("storage `{}`: {reason}", shown(key));
        let (element, count) =
            announced.get(key).ok_or_else(|| refuse("in the list of storages, but no tensor has it".into()))?;
        let end = storage_end(bytes, at, *element, *count).map_err(refuse)?;
        if found.insert(key.clone(), at + COUNT..end).is_some() {
            return Err(refuse("twice in the list of storages".into()));
        }
        at = end;
    }
    if let Some(key) = announced.keys().find(|key| !found.contains_key(*key)) {
        return Err(format!("storage `{}`: a tensor has it, but it is not in the list of storages", shown(key)));
    }
    match bytes.len() - at {
        0 => Ok(found),
        rest => Err(format!("{rest} bytes behind the last storage, expected the end of the file at byte {at}")),
    }
}

/// Bytes of the count before each storage.
const COUNT: usize = 8;

/// One beyond the last byte of a storage whose count is at byte `at`.
fn storage_end(bytes: &[u8], at: usize, element: Element, count: usize) -> Result<usize, Refusal> {
    let rest = bytes.get(at..).unwrap_or_default();
    let Some((stated, rest)) = rest.split_first_chunk::<COUNT>() else {
        return Err(format!("the file is cut off at byte {} before its count", bytes.len()));
    };
    let stated = u64::from_le_bytes(*stated);
    if usize::try_from(stated) != Ok(count) {
        return Err(format!("{count} {} were announced, byte {at} says {stated}", element.name));
    }
    match count.checked_mul(element.size) {
        Some(size) if size <= rest.len() => Ok(at + COUNT + size),
        _ => Err(format!("{count} {} are more than the {} bytes that are left of the file", element.name, rest.len())),
    }
}
