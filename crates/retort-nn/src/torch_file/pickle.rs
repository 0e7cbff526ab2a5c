//! The instructions of pickle protocol 2 that `torch.save` writes for a state dict, and no others.

use super::{Element, MAX_RANK, Refusal, View, shown};
use candle_core::DType;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What a pickle is about.
pub(super) struct StateDict {
    pub(super) container: Option<&'static str>,
    pub(super) views: BTreeMap<String, View>,
    pub(super) others: BTreeSet<String>,
}

/// Keys under which training programs keep the state dict beside other things.
const CONTAINERS: [&str; 3] = ["model", "state_dict", "net"];

/// A state dict takes about 200 bytes and 20 values a tensor; these are the limits for 40,000 tensors.
const MAX_PICKLE: usize = 8 << 20;
const MAX_VALUES: usize = 1 << 20;

/// A key of the state dict, the name of a storage. A text is stored once but may be referred to by every second byte of a
/// pickle, so nothing long may be copied for each reference.
const MAX_NAME: usize = 1024;

/// A value by its number: a pickle may refer to one value many times, or make it part of itself.
type Id = u32;

enum Value {
    /// A number, a list, anything that is read over.
    Other,
    Int(i64),
    Text(Arc<str>),
    Global(Global),
    Tuple(Vec<Id>),
    List,
    Dict(Vec<(Id, Id)>),
    Storage {
        element: Element,
        name: Arc<str>,
        count: usize,
    },
    Tensor(View),
}

/// Everything of Python that a state dict names.
#[derive(Clone, Copy)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        let element = |name, size, float| Some(Self::Storage(Element { name, size, float }));
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", "FloatStorage") => element("float32", 4, Some(DType::F32)),
            ("torch", "DoubleStorage") => element("float64", 8, Some(DType::F64)),
            ("torch", "HalfStorage") => element("float16", 2, Some(DType::F16)),
            ("torch", "BFloat16Storage") => element("bfloat16", 2, Some(DType::BF16)),
            ("torch", "LongStorage") => element("int64", 8, None),
            ("torch", "IntStorage") => element("int32", 4, None),
            ("torch", "ShortStorage") => element("int16", 2, None),
            ("torch", "CharStorage") => element("int8", 1, None),
            ("torch", "ByteStorage") => element("uint8", 1, None),
            ("torch", "BoolStorage") => element("bool", 1, None),
            _ => None,
        }
    }
}

/// Reads the pickle and finds the state dict in it.
pub(super) fn state_dict(bytes: &[u8]) -> Result<StateDict, Refusal> {
    if bytes.len() > MAX_PICKLE {
        return Err(format!("data.pkl has {} bytes, a state dict at most {MAX_PICKLE}", bytes.len()));
    }
    let mut machine = Machine { bytes, at: 0, values: vec![], stack: vec![], marks: vec![], memo: HashMap::new() };
    while let Some(opcode) = machine.next_opcode()? {
        let at = machine.at - 1;
        machine.step(opcode).map_err(|reason| format!("data.pkl, byte {at}: {reason}"))?;
    }
    let root = machine.pop().map_err(|reason| format!("data.pkl: {reason}"))?;
    machine.select(root)
}

/// The stack machine of a pickle.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

const CUT_OFF: &str = "the pickle is cut off";

impl<'a> Machine<'a> {
    /// The next instruction; none behind the last one, `STOP`.
    fn next_opcode(&mut self) -> Result<Option<u8>, Refusal> {
        let opcode = *self.bytes.get(self.at).ok_or("data.pkl: the pickle is cut off")?;
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
            b'c' => self.global(),
            b'Q' => self.storage(),
            b'R' => self.call(),
            b'b' => self.attributes(),
            b'K' => self.int::<1>(),
            b'M' => self.int::<2>(),
            b'J' => self.int::<4>(),
            0x8A => self.long(),
            b'G' => self.take(8).map(drop).and_then(|()| self.push(Value::Other)),
            b'N' | 0x88 | 0x89 => self.push(Value::Other),
            b')' => self.push(Value::Tuple(vec![])),
            0x85..=0x87 => self.tuple(usize::from(opcode - 0x84)),
            b't' => self.taken_to_mark().and_then(|ids| self.push(Value::Tuple(ids))),
            b']' => self.push(Value::List),
            b'a' => self.pop().and_then(|_| self.expect_list()),
            b'e' => self.taken_to_mark().and_then(|_| self.expect_list()),
            b'}' => self.push(Value::Dict(vec![])),
            b's' => self.pair().and_then(|pair| self.insert(vec![pair])),
            b'u' => self.pairs().and_then(|pairs| self.insert(pairs)),
            other => Err(format!("instruction {other:#04x}, which no state dict needs; nothing of the file was run")),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len()).ok_or(CUT_OFF)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number without sign, of at most four bytes.
    fn number<const N: usize>(&mut self) -> Result<usize, Refusal> {
        Ok(self.take(N)?.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn push(&mut self, value: Value) -> Result<(), Refusal> {
        if self.values.len() == MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
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

    fn int<const N: usize>(&mut self) -> Result<(), Refusal> {
        let number = self.number::<N>()?;
        // Only the instruction for four bytes has a sign.
        let value = if N == 4 { i64::from(number as u32 as i32) } else { number as i64 };
        self.push(Value::Int(value))
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
        let mut line = || {
            let rest = &self.bytes[self.at..];
            let length = rest.iter().position(|byte| *byte == b'\n').ok_or(CUT_OFF)?;
            self.at += length + 1;
            Ok::<_, Refusal>(String::from_utf8_lossy(&rest[..length]))
        };
        let (module, name) = (line()?, line()?);
        let global = Global::named(&module, &name).ok_or_else(|| {
            let name = shown(&format!("{module}.{name}"));
            format!(
                "the file asks for `{name}`; only tensors, dicts and plain values are read, nothing of the file was run \
                 (save a state dict alone: torch.save(model.state_dict(), ..))"
            )
        })?;
        self.push(Value::Global(global))
    }

    /// `("storage", type, name, location, count)` becomes a storage.
    fn storage(&mut self) -> Result<(), Refusal> {
        let id = self.pop()?;
        let [kind, element, name, _, count] = self.parts::<5>(id)?;
        let (Value::Text(kind), Value::Global(Global::Storage(element)), Value::Text(name), Value::Int(count)) =
            (kind, element, name, count)
        else {
            return Err("a reference to something else than a storage".into());
        };
        if &**kind != "storage" || name.len() > MAX_NAME {
            return Err(format!("a reference to `{}` called `{}`, not to a storage", shown(kind), shown(name)));
        }
        let storage = Value::Storage { element: *element, name: name.clone(), count: size(*count)? };
        self.push(storage)
    }

    /// One of the three calls that a state dict makes.
    fn call(&mut self) -> Result<(), Refusal> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Global(global), Value::Tuple(ids)) = (self.value(function), self.value(arguments)) else {
            return Err("a call of something that is no function".into());
        };
        match global {
            Global::OrderedDict if ids.is_empty() => self.push(Value::Dict(vec![])),
            Global::RebuildTensor => {
                let view = self.view(arguments)?;
                self.push(Value::Tensor(view))
            }
            Global::RebuildParameter => match ids[..] {
                [tensor, ..] if matches!(self.value(tensor), Value::Tensor(_)) => {
                    self.stack.push(tensor);
                    Ok(())
                }
                _ => Err("a parameter without a tensor".into()),
            },
            _ => Err("a call with arguments that torch.save does not write".into()),
        }
    }

    /// The first parts of a tuple that has as many; a longer one is not walked.
    fn parts<const N: usize>(&self, id: Id) -> Result<[&Value; N], Refusal> {
        match self.value(id) {
            Value::Tuple(ids) if ids.len() >= N => Ok(std::array::from_fn(|i| self.value(ids[i]))),
            _ => Err(format!("a tuple of at least {N} was expected")),
        }
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks)`, and metadata in newer files.
    fn view(&self, arguments: Id) -> Result<View, Refusal> {
        let [storage, offset, shape, strides, _, _] = self.parts::<6>(arguments)?;
        let (Value::Storage { element, name, count }, Value::Int(offset), Value::Tuple(shape), Value::Tuple(strides)) =
            (storage, offset, shape, strides)
        else {
            return Err("a tensor that is not described as torch.save does it".into());
        };
        Ok(View {
            element: *element,
            storage: name.clone(),
            count: *count,
            offset: size(*offset)?,
            shape: self.sizes(shape)?,
            strides: self.sizes(strides)?,
        })
    }

    fn sizes(&self, ids: &[Id]) -> Result<Vec<usize>, Refusal> {
        if ids.len() > MAX_RANK {
            return Err(format!("a tensor of {} dimensions, expected at most {MAX_RANK}", ids.len()));
        }
        ids.iter().map(|id| self.size(*id)).collect()
    }

    fn size(&self, id: Id) -> Result<usize, Refusal> {
        match self.value(id) {
            Value::Int(value) => size(*value),
            _ => Err("a size that is no number".into()),
        }
    }

    /// Attributes of a dict (state dicts carry versions of their modules): read over.
    fn attributes(&mut self) -> Result<(), Refusal> {
        self.pop()?;
        match self.stack.last().map(|id| self.value(*id)) {
            Some(Value::Dict(_)) => Ok(()),
            _ => Err("attributes of something that is no dict".into()),
        }
    }

    fn tuple(&mut self, length: usize) -> Result<(), Refusal> {
        let mut ids = (0..length).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        ids.reverse();
        self.push(Value::Tuple(ids))
    }

    fn expect_list(&self) -> Result<(), Refusal> {
        match self.stack.last().map(|id| self.value(*id)) {
            Some(Value::List) => Ok(()),
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
        let target = self.stack.last().map(|id| &mut self.values[*id as usize]);
        match target {
            Some(Value::Dict(entries)) => {
                entries.extend(pairs);
                Ok(())
            }
            _ => Err("an entry of something that is no dict".into()),
        }
    }

    /// The state dict: under one of the known keys, or the whole.
    fn select(&self, root: Id) -> Result<StateDict, Refusal> {
        let Value::Dict(entries) = self.value(root) else {
            return Err("the file holds no dict of tensors; save model.state_dict()".into());
        };
        let mut found = Vec::new();
        for container in CONTAINERS {
            let inner = entries.iter().rev().find(|(key, _)| self.is_text(*key, container)).map(|(_, value)| *value);
            if let Some(Value::Dict(inner)) = inner.map(|id| self.value(id))
                && self.has_tensors(inner)
            {
                found.push((Some(container), inner));
            }
        }
        if found.is_empty() && self.has_tensors(entries) {
            found.push((None, entries));
        }
        match found[..] {
            [(container, entries)] => self.collect(container, entries),
            [] => Err(format!(
                "no tensors, neither as a whole nor under {}; keys: {}",
                CONTAINERS.join(", "),
                self.keys(entries)
            )),
            _ => Err(format!("several state dicts: {}; save one of them alone", self.keys(entries))),
        }
    }

    fn is_text(&self, id: Id, expected: &str) -> bool {
        matches!(self.value(id), Value::Text(text) if &**text == expected)
    }

    fn has_tensors(&self, entries: &[(Id, Id)]) -> bool {
        entries.iter().any(|(_, value)| matches!(self.value(*value), Value::Tensor(_)))
    }

    /// The first keys, for messages.
    fn keys(&self, entries: &[(Id, Id)]) -> String {
        const SHOWN: usize = 10;
        let text = |(key, _): &(Id, Id)| match self.value(*key) {
            Value::Text(text) => format!("`{}`", shown(text)),
            _ => "(no text)".into(),
        };
        let mut keys: Vec<String> = entries.iter().take(SHOWN).map(text).collect();
        if entries.len() > SHOWN {
            keys.push("..".into());
        }
        if keys.is_empty() { "none".into() } else { keys.join(", ") }
    }

    fn collect(&self, container: Option<&'static str>, entries: &[(Id, Id)]) -> Result<StateDict, Refusal> {
        let mut dict = StateDict { container, views: BTreeMap::new(), others: BTreeSet::new() };
        for (key, value) in entries {
            let Value::Text(key) = self.value(*key) else {
                return Err("a key of the state dict is no text".into());
            };
            if key.len() > MAX_NAME {
                return Err(format!("a key of {} bytes: `{}`", key.len(), shown(key)));
            }
            match self.value(*value) {
                Value::Tensor(view) => {
                    if dict.views.insert(key.to_string(), view.clone()).is_some() {
                        return Err(format!("the key `{}` occurs twice", shown(key)));
                    }
                }
                _ => drop(dict.others.insert(key.to_string())),
            }
        }
        Ok(dict)
    }
}

fn size(value: i64) -> Result<usize, Refusal> {
    usize::try_from(value).map_err(|_| format!("a size of {value}"))
}
