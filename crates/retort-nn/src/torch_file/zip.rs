//! The zip archives of `torch.save`: all entries stored as they are, none compressed, with 64-bit sizes where needed.

use super::{Refusal, shown};
use std::collections::BTreeMap;
use std::ops::Range;

/// Where an entry's bytes are.
pub(super) struct Entry {
    pub(super) range: Range<usize>,
    /// 0 where the writer was told not to compute it.
    crc: u32,
}

impl Entry {
    /// The bytes, which must be those that were written.
    pub(super) fn content<'a>(&self, archive: &'a [u8], name: &str) -> Result<&'a [u8], Refusal> {
        let bytes = &archive[self.range.clone()];
        if self.crc != 0 && crc32(bytes) != self.crc {
            return Err(format!(
                "the entry `{}` is damaged: its bytes do not have the CRC in the directory",
                shown(name)
            ));
        }
        Ok(bytes)
    }
}

const TRUNCATED: &str = "not a whole zip file: cut off, or damaged";

/// All entries by name. They may not overlap, so that reading each of them once costs no more than reading the file.
pub(super) fn entries(archive: &[u8]) -> Result<BTreeMap<String, Entry>, Refusal> {
    let directory = directory(archive)?;
    let mut entries = BTreeMap::new();
    let mut ranges = Vec::new();
    let mut at = directory.start;
    while at < directory.end {
        let record = Record::read(archive, at)?;
        at += record.length;
        let entry = record.locate(archive, directory.start)?;
        ranges.push(entry.range.clone());
        if entries.insert(record.name.clone(), entry).is_some() {
            return Err(format!("the entry `{}` occurs twice", shown(&record.name)));
        }
    }
    ranges.sort_by_key(|range| (range.start, range.end));
    match ranges.windows(2).any(|pair| pair[1].start < pair[0].end) {
        true => Err("entries of the zip file overlap".into()),
        false => Ok(entries),
    }
}

/// A record of the central directory.
struct Record {
    name: String,
    crc: u32,
    size: usize,
    /// Where the entry's own header is.
    header: usize,
    /// Bytes of the record.
    length: usize,
}

impl Record {
    fn read(archive: &[u8], at: usize) -> Result<Self, Refusal> {
        expect(archive, at, b"PK\x01\x02")?;
        let [flags, method] = [8, 10].map(|offset| number::<2>(archive, at + offset));
        let [name_length, extra, comment] = [28, 30, 32].map(|offset| number::<2>(archive, at + offset));
        let (name_length, extra_length) = (name_length?, extra?);
        let name = archive.get(at + 46..at + 46 + name_length).ok_or(TRUNCATED)?;
        let name = String::from_utf8(name.to_vec()).map_err(|_| "an entry's name is not UTF-8")?;
        if method? != 0 || flags? & 1 != 0 {
            let reason = "is compressed or encrypted, which torch.save never does; load and save the weights once more";
            return Err(format!("the entry `{}` {reason}", shown(&name)));
        }
        let extra = archive.get(at + 46 + name_length..at + 46 + name_length + extra_length).ok_or(TRUNCATED)?;
        let mut wide = wide_numbers(extra).into_iter();
        // A number of 32 bits that is full stands in the extra field with 64 bits, in this order.
        let mut read = |offset| match number::<4>(archive, at + offset)? {
            0xFFFF_FFFF => wide.next().ok_or_else(|| TRUNCATED.to_string()),
            narrow => Ok(narrow),
        };
        let (size, stored, header) = (read(24)?, read(20)?, read(42)?);
        if size != stored {
            return Err(format!("the entry `{}` has two different sizes, {size} and {stored}", shown(&name)));
        }
        let length = 46 + name_length + extra_length + comment?;
        let crc = number::<4>(archive, at + 16)? as u32;
        Ok(Self { name, crc, size, header, length })
    }

    /// Finds the bytes behind the entry's own header; they end before the directory.
    fn locate(&self, archive: &[u8], directory: usize) -> Result<Entry, Refusal> {
        expect(archive, self.header, b"PK\x03\x04")?;
        let [name, extra] = [26, 28].map(|offset| number::<2>(archive, self.header + offset));
        let start = self.header + 30 + name? + extra?;
        match start.checked_add(self.size) {
            Some(end) if end <= directory => Ok(Entry { range: start..end, crc: self.crc }),
            _ => Err(format!("the entry `{}` reaches beyond the end of the file", shown(&self.name))),
        }
    }
}

/// The 64-bit numbers of a record's extra field: behind the id 1, in a list of (id, length, bytes).
fn wide_numbers(mut extra: &[u8]) -> Vec<usize> {
    while let [id_low, id_high, low, high, rest @ ..] = extra {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (field, next) = rest.split_at(length);
        if [*id_low, *id_high] == [1, 0] {
            return (0..length / 8).filter_map(|i| number::<8>(field, 8 * i).ok()).collect();
        }
        extra = next;
    }
    Vec::new()
}

/// Where the central directory is: named by the last record of the file, or by its 64-bit form before it.
fn directory(archive: &[u8]) -> Result<Range<usize>, Refusal> {
    const LONGEST_COMMENT: usize = 0xFFFF;
    let from = archive.len().saturating_sub(22 + LONGEST_COMMENT);
    let end = archive[from..].windows(4).rposition(|bytes| bytes == b"PK\x05\x06").ok_or(TRUNCATED)? + from;
    let [size, start] = [12, 16].map(|offset| number::<4>(archive, end + offset));
    let (mut size, mut start) = (size?, start?);
    if number::<2>(archive, end + 20)? != archive.len() - end - 22 {
        return Err(TRUNCATED.into());
    }
    if size == 0xFFFF_FFFF || start == 0xFFFF_FFFF {
        let locator = end.checked_sub(20).ok_or(TRUNCATED)?;
        expect(archive, locator, b"PK\x06\x07")?;
        let record = number::<8>(archive, locator + 8)?;
        expect(archive, record, b"PK\x06\x06")?;
        (size, start) =
            (number::<8>(archive, record.saturating_add(40))?, number::<8>(archive, record.saturating_add(48))?);
    }
    match start.checked_add(size) {
        Some(stop) if stop <= end => Ok(start..stop),
        _ => Err(TRUNCATED.into()),
    }
}

fn expect(archive: &[u8], at: usize, signature: &[u8; 4]) -> Result<(), Refusal> {
    let found = at.checked_add(4).and_then(|end| archive.get(at..end));
    if found == Some(&signature[..]) { Ok(()) } else { Err(TRUNCATED.into()) }
}

/// A little-endian number of N bytes.
fn number<const N: usize>(archive: &[u8], at: usize) -> Result<usize, Refusal> {
    let bytes = at.checked_add(N).and_then(|end| archive.get(at..end)).ok_or(TRUNCATED)?;
    let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    usize::try_from(value).map_err(|_| TRUNCATED.into())
}

fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !bytes.iter().fold(!0, |crc: u32, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut value = i as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xEDB8_8320 ^ value >> 1 } else { value >> 1 };
            bit += 1;
        }
        table[i] = value;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    #[test]
    fn crc_of_the_standard_check_value() {
        assert_eq!(super::crc32(b"123456789"), 0xCBF4_3926);
    }
}
