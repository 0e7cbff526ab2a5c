//! The calls that a checkpoint makes, each of which makes a value: tensors, dicts, options, numbers.

use super::super::value::{Global, Id, Storage, Value, number_size};
use super::super::{MAX_RANK, Refusal, View, shown};
use super::Machine;

/// The name of a storage is a number: of its place in the file, or of its address in memory.
const MAX_STORAGE_NAME: usize = 64;

/// Bytes of a NumPy number, of which the longest has 16; written as text.
const MAX_NUMBER: usize = 64;

impl Machine<'_> {
    /// `("storage", type, name, location, count)` becomes a storage. Before PyTorch 1.6 there is a sixth part, which is
    /// None or `(key, offset, size)`: a piece of the storage.
    pub(super) fn storage(&mut self) -> Result<(), Refusal> {
        let id = self.pop()?;
        let [kind, element, name, location, count] = self.parts::<5>(id)?;
        let (
            Value::Text(kind),
            Value::Global(Global::Storage(element)),
            Value::Text(name),
            Value::Text(_),
            Value::Int(count),
        ) = (kind, element, name, location, count)
        else {
            return Err("a reference to something else than a storage".into());
        };
        if &**kind != "storage" || name.len() > MAX_STORAGE_NAME {
            return Err(format!("a reference to `{}` called `{}`, not to a storage", shown(kind), shown(name)));
        }
        let (element, name, count) = (*element, name.clone(), size(*count)?);
        let (start, length) = self.piece(id)?.unwrap_or((0, count));
        if start.checked_add(length).is_none_or(|end| end > count) {
            let place = format!("{length} elements from {start} on");
            return Err(format!("a piece of storage `{}`, {place}, is beyond its {count} elements", shown(&name)));
        }
        let known = *self.storages.entry(name.clone()).or_insert((element, count));
        if known != (element, count) {
            let known = format!("{} {}", known.1, known.0.name);
            return Err(format!("storage `{}` has {known} once, {count} {} once", shown(&name), element.name));
        }
        self.push(Value::Storage(Storage { element, name, count, start, length }))
    }

    /// Offset and size of the piece of a storage that a reference is about.
    fn piece(&self, reference: Id) -> Result<Option<(usize, usize)>, Refusal> {
        let Ok([.., metadata]) = self.parts::<6>(reference) else {
            return Ok(None);
        };
        match metadata {
            Value::None => Ok(None),
            Value::Tuple(ids) => match ids[..] {
                [_, offset, length] => Ok(Some((self.size(offset)?, self.size(length)?))),
                _ => Err("a piece of a storage that is not described by key, offset and size".into()),
            },
            _ => Err("a storage with something else than a piece of it".into()),
        }
    }

    /// One of the calls that a checkpoint makes.
    pub(super) fn call(&mut self) -> Result<(), Refusal> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Global(global), Value::Tuple(ids)) = (self.value(function), self.value(arguments)) else {
            return Err("a call of something that is no function".into());
        };
        let made = match (*global, &ids[..]) {
            (Global::OrderedDict, []) => Value::Dict(vec![]),
            (Global::OrderedDict, [items]) => {
                let items = *items;
                self.items(items)?
            }
            (Global::RebuildTensor, _) => self.view::<4>(arguments).map(Value::Tensor)?,
            (Global::RebuildTensorV2, _) => self.view::<6>(arguments).map(Value::Tensor)?,
            (Global::RebuildParameter, [tensor, ..]) if matches!(self.value(*tensor), Value::Tensor(_)) => {
                self.stack.push(*tensor);
                return Ok(());
            }
            (Global::RebuildParameter, _) => return Err("a parameter without a tensor".into()),
            (Global::Reconstructor, [class, base, state]) => self.reconstructed(*class, *base, *state)?,
            (Global::NumberType, [code, _, _]) => self.number_type(*code)?,
            (Global::NumPyScalar, [kind, bytes]) => self.numpy_scalar(*kind, *bytes)?,
            (Global::Encode, [text, encoding]) => self.encoded(*text, *encoding)?,
            _ => return Err("a call with arguments that torch.save does not write".into()),
        };
        self.push(made)
    }

    /// The dict of a list of pairs, as Python 2 writes an `OrderedDict`.
    fn items(&mut self, list: Id) -> Result<Value, Refusal> {
        const NO_ITEMS: &str = "a call of an OrderedDict with something else than a list of pairs";
        let Value::List(ids) = self.value(list) else {
            return Err(NO_ITEMS.into());
        };
        let pair = |id: &Id| match self.value(*id) {
            Value::List(pair) | Value::Tuple(pair) => match pair[..] {
                [key, value] => Ok((key, value)),
                _ => Err(NO_ITEMS),
            },
            _ => Err(NO_ITEMS),
        };
        let pairs = ids.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
        // Many calls may refer to one list, and each makes a copy of it.
        self.charge(pairs.len())?;
        Ok(Value::Dict(pairs))
    }

    /// `(Namespace, object, None)`: an empty instance, as the protocols before 2 write it.
    fn reconstructed(&self, class: Id, base: Id, state: Id) -> Result<Value, Refusal> {
        match (self.value(class), self.value(base), self.value(state)) {
            (Value::Global(Global::Options), Value::Global(Global::Object), Value::None) => Ok(Value::Options),
            _ => Err("a call for an instance of something else than argparse.Namespace".into()),
        }
    }

    /// `numpy.dtype("f8", False, True)`.
    fn number_type(&self, code: Id) -> Result<Value, Refusal> {
        let Value::Text(code) = self.value(code) else {
            return Err("a NumPy type that is no text".into());
        };
        let size = number_size(code).ok_or_else(|| format!("the NumPy type `{}`, which is no number", shown(code)))?;
        Ok(Value::NumberType(size))
    }

    /// A number of a type and its bytes; its value is not needed.
    fn numpy_scalar(&self, kind: Id, bytes: Id) -> Result<Value, Refusal> {
        let Value::NumberType(size) = self.value(kind) else {
            return Err("a NumPy scalar without a type".into());
        };
        let length = match self.value(bytes) {
            Value::Bytes(length) => *length,
            Value::Text(text) => text.len(),
            _ => return Err("a NumPy scalar without its bytes".into()),
        };
        match length == *size {
            true => Ok(Value::Other),
            false => Err(format!("a NumPy scalar of {size} bytes has {length}")),
        }
    }

    /// `_codecs.encode(text, "latin1")`: bytes, a character each.
    fn encoded(&self, text: Id, encoding: Id) -> Result<Value, Refusal> {
        match (self.value(text), self.value(encoding)) {
            (Value::Text(text), Value::Text(encoding)) if &**encoding == "latin1" => {
                if text.len() > MAX_NUMBER || text.chars().any(|character| u32::from(character) > 0xFF) {
                    return Err(format!("`{}` is not the bytes of a number", shown(text)));
                }
                Ok(Value::Bytes(text.chars().count()))
            }
            _ => Err("a call of _codecs.encode for something else than Latin-1".into()),
        }
    }

    /// A new object of a class, without arguments.
    pub(super) fn instance(&mut self) -> Result<(), Refusal> {
        let (arguments, class) = (self.pop()?, self.pop()?);
        match (self.value(class), self.value(arguments)) {
            (Value::Global(Global::Options), Value::Tuple(ids)) if ids.is_empty() => self.push(Value::Options),
            _ => Err("an instance of something else than argparse.Namespace".into()),
        }
    }

    /// The first parts of a tuple that has as many; a longer one is not walked.
    fn parts<const N: usize>(&self, id: Id) -> Result<[&Value; N], Refusal> {
        match self.value(id) {
            Value::Tuple(ids) if ids.len() >= N => Ok(std::array::from_fn(|i| self.value(ids[i]))),
            _ => Err(format!("a tuple of at least {N} was expected")),
        }
    }

    /// `(storage, offset, shape, strides, ..)`, at least `N` of them.
    fn view<const N: usize>(&self, arguments: Id) -> Result<View, Refusal> {
        self.parts::<N>(arguments)?;
        let [storage, offset, shape, strides] = self.parts::<4>(arguments)?;
        let (Value::Storage(storage), Value::Int(offset), Value::Tuple(shape), Value::Tuple(strides)) =
            (storage, offset, shape, strides)
        else {
            return Err("a tensor that is not described as torch.save does it".into());
        };
        Ok(View {
            element: storage.element,
            storage: storage.name.clone(),
            count: storage.count,
            start: storage.start,
            length: storage.length,
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

    /// Attributes of a dict (state dicts carry versions of their modules), of options, of a NumPy type (byte order):
    /// read over.
    pub(super) fn attributes(&mut self) -> Result<(), Refusal> {
        let state = self.pop()?;
        let target = self.stack.last().map(|id| self.value(*id));
        match (target, self.value(state)) {
            (Some(Value::Dict(_)), _)
            | (Some(Value::Options), Value::Dict(_))
            | (Some(Value::NumberType(_)), Value::Tuple(_)) => Ok(()),
            (Some(Value::Options), _) => Err("options that are no dict".into()),
            _ => Err("attributes of something that is no dict".into()),
        }
    }
}

fn size(value: i64) -> Result<usize, Refusal> {
    usize::try_from(value).map_err(|_| format!("a size of {value}"))
}
