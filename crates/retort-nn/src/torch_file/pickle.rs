//! The instructions of pickle protocol 2 that `torch.save` writes for a checkpoint, and no others.

mod calls;

use super::value::{Global, Id, Value};
use super::{Element, Refusal, shown};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A state dict takes about 200 bytes and 20 values a tensor; these are the limits for 40,000 tensors.
pub(super) const MAX_PICKLE: usize = 8 << 20;
const MAX_VALUES: usize = 1 << 20;

/// How large a pickle may be.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    bytes: usize,
    values: usize,
}

impl Limits {
    pub(super) const OBJECT: Self = Self { bytes: MAX_PICKLE, values: MAX_VALUES };
    /// A number, or a dict of numbers.
    pub(super) const HEADER: Self = Self { bytes: 4096, values: 256 };
}

/// A pickle that was read: values that refer to each other.
pub(super) struct Pickled {
    values: Vec<Value>,
    root: Id,
    /// Every storage that the pickle speaks of, by name.
    pub(super) storages: BTreeMap<Arc<str>, (Element, usize)>,
    /// One beyond its last byte.
    pub(super) end: usize,
}

impl Pickled {
    /// Reads the pickle that begins at byte `start`; `what` names it in messages.
    pub(super) fn read(bytes: &[u8], start: usize, what: &str, limits: Limits) -> Result<Self, Refusal> {
        let most = start.saturating_add(limits.bytes);
        let mut machine = Machine {
            bytes: bytes.get(..most).unwrap_or(bytes),
            cut_off: if most < bytes.len() { "the pickle is longer than such a pickle may be" } else { CUT_OFF },
            at: start,
            values: vec![],
            room: limits.values,
            limit: limits.values,
            stack: vec![],
            marks: vec![],
            memo: HashMap::new(),
            storages: BTreeMap::new(),
        };
        while let Some(opcode) = machine.next_opcode().map_err(|reason| format!("{what}: {reason}"))? {
            let at = machine.at - 1;
            machine.step(opcode).map_err(|reason| format!("{what}, byte {at}: {reason}"))?;
        }
        let root = machine.pop().map_err(|reason| format!("{what}: {reason}"))?;
        Ok(Self { values: machine.values, root, storages: machine.storages, end: machine.at })
    }

    pub(super) fn value(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    pub(super) fn root(&self) -> &Value {
        self.value(self.root)
    }

    /// What a dict holds under a key, the last one if there are several.
    pub(super) fn under(&self, entries: &[(Id, Id)], key: &str) -> Option<&Value> {
        let is_key = |id: Id| matches!(self.value(id), Value::Text(text) if &**text == key);
        entries.iter().rev().find(|(id, _)| is_key(*id)).map(|(_, value)| self.value(*value))
    }
}

/// The stack machine of a pickle.
struct Machine<'a> {
    bytes: &'a [u8],
    /// Why there are no more bytes, where there are none.
    cut_off: &'static str,
    at: usize,
    values: Vec<Value>,
    /// How many values may still be made, of `limit`.
    room: usize,
    limit: usize,
    stack: Vec<Id>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
    storages: BTreeMap<Arc<str>, (Element, usize)>,
}

const CUT_OFF: &str = "the pickle is cut off";

impl<'a> Machine<'a> {
    /// The next instruction; none behind the last one, `STOP`.
    fn next_opcode(&mut self) -> Result<Option<u8>, Refusal> {
        let opcode = *self.bytes.get(self.at).ok_or(self.cut_off)?;
        self.at += 1;
        Ok(Some(opcode).filter(|opcode| *opcode != b'.'))
    }

    fn step(&mut self, opcode: u8) -> Result<(), Refusal> {
        match opcode {
            0x80 => self.protocol(),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'q' => self.remember::<1>(),
            b'r' => self.remember::<4>(),
            b'h' => self.recall::<1>(),
            b'j' => self.recall::<4>(),
            b'X' => self.text(),
            b'U' => self.number::<1>().and_then(|length| self.string(length)),
            b'T' => self.number::<4>().and_then(|length| self.string(length)),
            b'c' => self.global(),
            b'Q' => self.storage(),
            b'R' => self.call(),
            0x81 => self.instance(),
            b'b' => self.attributes(),
            b'K' => self.int::<1>(),
            b'M' => self.int::<2>(),
            b'J' => self.int::<4>(),
            b'I' => self.decimal(),
            0x8A => self.long(),
            b'G' => self.take(8).map(drop).and_then(|()| self.push(Value::Other)),
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool(opcode == 0x88)),
            b')' => self.push(Value::Tuple(vec![])),
            0x85..=0x87 => self.tuple(usize::from(opcode - 0x84)),
            b't' => self.taken_to_mark().and_then(|ids| self.push(Value::Tuple(ids))),
            b']' => self.push(Value::List(vec![])),
            b'a' => self.pop().and_then(|id| self.append(vec![id])),
            b'e' => self.taken_to_mark().and_then(|ids| self.append(ids)),
            b'}' => self.push(Value::Dict(vec![])),
            b's' => self.pair().and_then(|pair| self.insert(vec![pair])),
            b'u' => self.pairs().and_then(|pairs| self.insert(pairs)),
            other => Err(format!("instruction {other:#04x}, which no state dict needs; nothing of the file was run")),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len()).ok_or(self.cut_off)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// The rest of a line.
    fn line(&mut self) -> Result<&'a [u8], Refusal> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or(self.cut_off)?;
        self.at += length + 1;
        Ok(&rest[..length])
    }

    /// A little-endian number without sign, of at most four bytes.
    fn number<const N: usize>(&mut self) -> Result<usize, Refusal> {
        Ok(self.take(N)?.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn push(&mut self, value: Value) -> Result<(), Refusal> {
        self.charge(1)?;
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    /// Takes from the room for values.
    fn charge(&mut self, values: usize) -> Result<(), Refusal> {
        self.room = self.room.checked_sub(values).ok_or_else(|| format!("more than {} values", self.limit))?;
        Ok(())
    }

    /// Takes from above the last mark.
    fn pop(&mut self) -> Result<Id, Refusal> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let id = self.stack.pop().filter(|_| self.stack.len() >= floor);
        id.ok_or_else(|| "an instruction without a value to work on".into())
    }

    fn taken_to_mark(&mut self) -> Result<Vec<Id>, Refusal> {
        let mark =
            self.marks.pop().filter(|mark| *mark <= self.stack.len()).ok_or("an instruction without its mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn value(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// The value that an instruction adds to.
    fn target(&mut self) -> Option<&mut Value> {
        self.stack.last().map(|id| &mut self.values[*id as usize])
    }

    fn protocol(&mut self) -> Result<(), Refusal> {
        match self.number::<1>()? {
            2 => Ok(()),
            other => Err(format!("pickle protocol {other}; torch.save writes 2 unless it is told otherwise")),
        }
    }

    fn remember<const N: usize>(&mut self) -> Result<(), Refusal> {
        let key = self.number::<N>()?;
        let id = *self.stack.last().ok_or("nothing to remember")?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall<const N: usize>(&mut self) -> Result<(), Refusal> {
        let key = self.number::<N>()?;
        let id = *self.memo.get(&key).ok_or_else(|| format!("nothing was remembered as {key}"))?;
        self.stack.push(id);
        Ok(())
    }

    fn text(&mut self) -> Result<(), Refusal> {
        let length = self.number::<4>()?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a text that is not UTF-8")?.into();
        self.push(Value::Text(text))
    }

    /// A text of Python 2, which may also be the bytes of a number.
    fn string(&mut self, length: usize) -> Result<(), Refusal> {
        let value = match std::str::from_utf8(self.take(length)?) {
            Ok(text) => Value::Text(text.into()),
            Err(_) => Value::Bytes(length),
        };
        self.push(value)
    }

    fn int<const N: usize>(&mut self) -> Result<(), Refusal> {
        let number = self.number::<N>()?;
        // Only the instruction for four bytes has a sign.
        let value = if N == 4 { i64::from(number as u32 as i32) } else { number as i64 };
        self.push(Value::Int(value))
    }

    /// An integer in decimal digits: how Python 2 writes what four bytes cannot hold. (`00` and `01` were its
    /// booleans.)
    fn decimal(&mut self) -> Result<(), Refusal> {
        let line = self.line()?;
        let number = std::str::from_utf8(line).ok().and_then(|digits| digits.parse().ok());
        let value = match (line, number) {
            (b"00" | b"01", _) => Value::Bool(line == b"01"),
            (_, Some(number)) => Value::Int(number),
            _ => return Err(format!("`{}` is no integer", shown(&String::from_utf8_lossy(line)))),
        };
        self.push(value)
    }

    /// An integer of any length; what does not fit 64 bits is no size and no count.
    fn long(&mut self) -> Result<(), Refusal> {
        let length = self.number::<1>()?;
        let bytes = self.take(length)?;
        let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xFF } else { 0 };
        let mut wide = [fill; 8];
        let value = match wide.get_mut(..length) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(wide))
            }
            None => Value::Other,
        };
        self.push(value)
    }

    /// A name of Python, module and name each in a line. Everything that could do harm would begin here.
    fn global(&mut self) -> Result<(), Refusal> {
        let (module, name) = (self.line()?, self.line()?);
        let (module, name) = (String::from_utf8_lossy(module), String::from_utf8_lossy(name));
        let global = Global::named(&module, &name).ok_or_else(|| {
            let name = shown(&format!("{module}.{name}"));
            format!(
                "the file asks for `{name}`; only tensors, dicts and plain values are read, nothing of the file was run \
                 (save a state dict alone: torch.save(model.state_dict(), ..))"
            )
        })?;
        self.push(Value::Global(global))
    }

    fn tuple(&mut self, length: usize) -> Result<(), Refusal> {
        let mut ids = (0..length).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        ids.reverse();
        self.push(Value::Tuple(ids))
    }

    fn append(&mut self, ids: Vec<Id>) -> Result<(), Refusal> {
        match self.target() {
            Some(Value::List(list)) => {
                list.extend(ids);
                Ok(())
            }
            _ => Err("an entry of something that is no list".into()),
        }
    }

    fn pair(&mut self) -> Result<(Id, Id), Refusal> {
        let (value, key) = (self.pop()?, self.pop()?);
        Ok((key, value))
    }

    fn pairs(&mut self) -> Result<Vec<(Id, Id)>, Refusal> {
        let ids = self.taken_to_mark()?;
        let pairs = ids.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        if ids.len().is_multiple_of(2) { Ok(pairs) } else { Err("a key without a value".into()) }
    }

    fn insert(&mut self, pairs: Vec<(Id, Id)>) -> Result<(), Refusal> {
        match self.target() {
            Some(Value::Dict(entries)) => {
                entries.extend(pairs);
                Ok(())
            }
            _ => Err("an entry of something that is no dict".into()),
        }
    }
}
