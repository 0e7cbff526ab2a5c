//! The parameter store: named, ordered, seeded.

use crate::{Error, Init, Result, Seed};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

/// Tensors by name, in the order of their names.
pub type Tensors = BTreeMap<String, Tensor>;

/// Parameters and buffers of one network or of a method's trainable parts, by dotted name.
///
/// The initial value of a parameter depends on the seed and on its name only: neither the order of
/// construction nor other parameters matter.
/// A clone is another handle on the same store.
///
/// ```
/// use candle_core::{DType, Device};
/// use retort_nn::{Init, Params, Seed};
/// let params = Params::new(Seed::root(1), DType::F32, &Device::Cpu);
/// let weight = params.root().child("fc").weight("weight", &[10, 64], Init::PyTorch)?;
/// assert_eq!(weight.dims(), [10, 64]);
/// assert_eq!(params.trainable()[0].0, "fc.weight");
/// # Ok::<(), retort_nn::Error>(())
/// ```
#[derive(Clone)]
pub struct Params {
    inner: Arc<Mutex<Inner>>,
    dtype: DType,
    device: Device,
    frozen: bool,
}

struct Inner {
    source: Source,
    entries: BTreeMap<String, Entry>,
}

enum Source {
    Seed(Seed),
    Nothing,
    Tensors { given: Tensors, used: BTreeSet<String> },
}

#[derive(Clone)]
struct Entry {
    kind: Kind,
    value: Value,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Weight,
    Buffer,
}

/// A frozen weight is a plain tensor, so that no operation records a graph for it.
#[derive(Clone)]
enum Value {
    Variable(Var),
    Plain(Tensor),
}

impl Value {
    fn tensor(&self) -> &Tensor {
        match self {
            Self::Variable(var) => var.as_tensor(),
            Self::Plain(tensor) => tensor,
        }
    }
}

/// What a non-strict load did not find a place for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Declared by the network, absent from the file.
    pub missing: Vec<String>,
    /// In the file, unknown to the network.
    pub unexpected: Vec<String>,
}

impl Params {
    /// An empty trainable store whose parameters are drawn from `seed`.
    #[must_use]
    pub fn new(seed: Seed, dtype: DType, device: &Device) -> Self {
        Self::with_source(Source::Seed(seed), dtype, device, false)
    }

    /// A trainable store that takes every value from `tensors`.
    #[must_use]
    pub fn from_tensors(tensors: Tensors, dtype: DType, device: &Device) -> Self {
        Self::with_source(Source::Tensors { given: tensors, used: BTreeSet::new() }, dtype, device, false)
    }

    /// Like [`Params::from_tensors`], but nothing is trainable: the network builds no graph, and layers fold what they can.
    #[must_use]
    pub fn frozen(tensors: Tensors, dtype: DType, device: &Device) -> Self {
        Self::with_source(Source::Tensors { given: tensors, used: BTreeSet::new() }, dtype, device, true)
    }

    /// A store of names and shapes without values (all read as 0): a network built in it can be asked what it is, at no
    /// cost, and is of no other use. Nothing in it is trainable.
    #[must_use]
    pub fn declared(dtype: DType, device: &Device) -> Self {
        Self::with_source(Source::Nothing, dtype, device, false)
    }

    fn with_source(source: Source, dtype: DType, device: &Device, frozen: bool) -> Self {
        let inner = Inner { source, entries: BTreeMap::new() };
        Self { inner: Arc::new(Mutex::new(inner)), dtype, device: device.clone(), frozen }
    }

    /// The scope with the empty prefix.
    #[must_use]
    pub fn root(&self) -> Scope {
        Scope { params: self.clone(), prefix: String::new() }
    }

    /// Trainable weights in the order of their names, buffers excluded.
    #[must_use]
    pub fn trainable(&self) -> Vec<(String, Var)> {
        self.lock()
            .entries
            .iter()
            .filter_map(|(name, entry)| match (&entry.kind, &entry.value) {
                (Kind::Weight, Value::Variable(var)) => Some((name.clone(), var.clone())),
                _ => None,
            })
            .collect()
    }

    /// Number of trainable or frozen weights, buffers excluded.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        let inner = self.lock();
        inner.entries.values().filter(|e| e.kind == Kind::Weight).map(|e| e.value.tensor().elem_count()).sum()
    }

    /// Names and shapes of all weights and buffers.
    #[must_use]
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let inner = self.lock();
        inner.entries.iter().map(|(name, entry)| (name.clone(), entry.value.tensor().dims().to_vec())).collect()
    }

    /// Copies of all weights and buffers: a snapshot that later steps do not change.
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated on the device.
    pub fn snapshot(&self) -> Result<Tensors> {
        let inner = self.lock();
        inner.entries.iter().map(|(name, entry)| Ok((name.clone(), entry.value.tensor().copy()?.detach()))).collect()
    }

    /// Overwrites every weight and buffer. Names and shapes must agree exactly; nothing is changed otherwise.
    ///
    /// # Errors
    ///
    /// The first missing name, unexpected name or differing shape.
    pub fn load(&self, tensors: &Tensors) -> Result<()> {
        let report = self.check(tensors)?;
        if let Some(name) = report.missing.first() {
            return Err(missing(name, self.lock().entries[name].value.tensor().dims(), tensors.keys()));
        }
        if let Some(name) = report.unexpected.first() {
            return Err(Error::invalid("load", format!("the weights hold `{name}`, which the network does not have")));
        }
        self.assign(tensors)
    }

    /// Overwrites what has a counterpart in `tensors` and reports the rest.
    ///
    /// # Errors
    ///
    /// A tensor of the right name and another shape; nothing is changed then.
    pub fn load_partial(&self, tensors: &Tensors) -> Result<LoadReport> {
        let report = self.check(tensors)?;
        self.assign(tensors)?;
        Ok(report)
    }

    /// Names in the given tensors that no layer has asked for.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        match &self.lock().source {
            Source::Seed(_) | Source::Nothing => Vec::new(),
            Source::Tensors { given, used } => given.keys().filter(|k| !used.contains(*k)).cloned().collect(),
        }
    }

    fn check(&self, tensors: &Tensors) -> Result<LoadReport> {
        let inner = self.lock();
        let mut report = LoadReport::default();
        for (name, entry) in &inner.entries {
            match tensors.get(name) {
                None => report.missing.push(name.clone()),
                Some(tensor) => check_shape(name, entry.value.tensor().dims(), tensor)?,
            }
        }
        report.unexpected = tensors.keys().filter(|k| !inner.entries.contains_key(*k)).cloned().collect();
        Ok(report)
    }

    fn assign(&self, tensors: &Tensors) -> Result<()> {
        for (name, entry) in &mut self.lock().entries {
            let Some(tensor) = tensors.get(name) else { continue };
            match &mut entry.value {
                Value::Variable(var) => {
                    // A copy: the variable must not share storage with the caller's tensor.
                    var.set(&tensor.to_dtype(self.dtype)?.to_device(&self.device)?.copy()?.contiguous()?)?;
                }
                Value::Plain(_) => return Err(Error::invalid("load", "a frozen store cannot be overwritten")),
            }
        }
        Ok(())
    }

    /// A poisoned lock only means that another thread panicked between two map operations; the map itself is whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn declare(&self, name: &str, shape: &[usize], init: Init, kind: Kind) -> Result<Value> {
        let mut inner = self.lock();
        if inner.entries.contains_key(name) {
            return Err(Error::Duplicate(name.to_string()));
        }
        let tensor = match &mut inner.source {
            Source::Seed(seed) => init.draw(shape, seed.child(name), self.dtype, &self.device)?,
            // One zero seen everywhere: no memory, however large the shape.
            Source::Nothing => {
                crate::init::check_size(shape)?;
                Tensor::zeros((), self.dtype, &self.device)?.broadcast_as(shape)?
            }
            Source::Tensors { given, used } => {
                let tensor = given.get(name).ok_or_else(|| missing(name, shape, given.keys()))?;
                check_shape(name, shape, tensor)?;
                used.insert(name.to_string());
                tensor.to_dtype(self.dtype)?.to_device(&self.device)?.copy()?.detach()
            }
        };
        let plain = self.frozen || matches!(inner.source, Source::Nothing);
        let value = match plain {
            true => Value::Plain(tensor),
            false => Value::Variable(Var::from_tensor(&tensor)?),
        };
        inner.entries.insert(name.to_string(), Entry { kind, value: value.clone() });
        Ok(value)
    }
}

/// A place in the tree of names, handed to the layer that lives there.
#[derive(Clone)]
pub struct Scope {
    params: Params,
    prefix: String,
}

impl Scope {
    /// The scope `name` below this one.
    #[must_use]
    pub fn child(&self, name: impl std::fmt::Display) -> Self {
        Self { params: self.params.clone(), prefix: self.full(&name.to_string()) }
    }

    /// Dotted path of this scope, empty at the root.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.prefix
    }

    /// Declares a weight: drawn by `init`, or taken from the given tensors.
    ///
    /// In a trainable store the result is a variable; later optimiser steps are seen through it.
    ///
    /// # Errors
    ///
    /// The name is taken, or the given tensors lack it or hold another shape.
    pub fn weight(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let value = self.params.declare(&self.full(name), shape, init, Kind::Weight)?;
        Ok(value.tensor().clone())
    }

    /// Declares a buffer: saved with the network, never trained.
    ///
    /// # Errors
    ///
    /// As for [`Scope::weight`].
    pub fn buffer(&self, name: &str, shape: &[usize], initial: f64) -> Result<Buffer> {
        let value = self.params.declare(&self.full(name), shape, Init::Constant(initial), Kind::Buffer)?;
        Ok(Buffer { value })
    }

    /// Whether nothing here is trainable.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.params.frozen
    }

    /// The type of all tensors of the store.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.params.dtype
    }

    /// The device of all tensors of the store.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.params.device
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}

/// A saved tensor without gradient, for example running statistics.
#[derive(Clone)]
pub struct Buffer {
    value: Value,
}

impl Buffer {
    /// The present value, detached; it shares storage, so a later [`Buffer::set`] shows in it.
    #[must_use]
    pub fn get(&self) -> Tensor {
        self.value.tensor().detach()
    }

    /// Replaces the value.
    ///
    /// # Errors
    ///
    /// The store is frozen, or the shape differs.
    pub fn set(&self, tensor: &Tensor) -> Result<()> {
        match &self.value {
            Value::Variable(var) => Ok(var.set(&tensor.detach())?),
            Value::Plain(_) => Err(Error::invalid("buffer", "a frozen network cannot change its buffers")),
        }
    }
}

fn check_shape(name: &str, expected: &[usize], tensor: &Tensor) -> Result<()> {
    if tensor.dims() == expected {
        return Ok(());
    }
    Err(Error::Shape { name: name.to_string(), expected: expected.to_vec(), found: tensor.dims().to_vec() })
}

fn missing<'a>(name: &str, expected: &[usize], candidates: impl Iterator<Item = &'a String>) -> Error {
    let hint = crate::names::nearest(name, candidates.map(String::as_str))
        .map(|near| format!("; the nearest name there is `{near}`"))
        .unwrap_or_default();
    Error::Missing { name: name.to_string(), expected: expected.to_vec(), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn initial_values_do_not_depend_on_order() {
        let a = Params::new(Seed::root(1), DType::F32, &Device::Cpu);
        let first = a.root().weight("x", &[4], Init::PyTorch).unwrap();
        a.root().weight("y", &[4], Init::PyTorch).unwrap();
        let b = Params::new(Seed::root(1), DType::F32, &Device::Cpu);
        b.root().weight("y", &[4], Init::PyTorch).unwrap();
        let second = b.root().weight("x", &[4], Init::PyTorch).unwrap();
        assert_eq!(values(&first), values(&second));
    }

    #[test]
    fn duplicate_and_missing_names_are_errors() {
        let p = Params::new(Seed::root(1), DType::F32, &Device::Cpu);
        p.root().weight("x", &[4], Init::PyTorch).unwrap();
        assert!(matches!(p.root().weight("x", &[4], Init::PyTorch), Err(Error::Duplicate(_))));
        let q = Params::from_tensors(p.snapshot().unwrap(), DType::F32, &Device::Cpu);
        let error = q.root().weight("xx", &[4], Init::PyTorch).unwrap_err().to_string();
        assert!(error.contains("`xx`") && error.contains("`x`"), "{error}");
        assert!(matches!(q.root().weight("x", &[5], Init::PyTorch), Err(Error::Shape { .. })));
        assert_eq!(q.unused(), ["x"]);
    }

    #[test]
    fn a_snapshot_does_not_move_and_loads_back() {
        let p = Params::new(Seed::root(1), DType::F32, &Device::Cpu);
        let w = p.root().weight("w", &[3], Init::PyTorch).unwrap();
        let buffer = p.root().buffer("running", &[3], 1.0).unwrap();
        let snapshot = p.snapshot().unwrap();
        let before = values(&w);
        p.trainable()[0].1.set(&Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap()).unwrap();
        buffer.set(&Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap()).unwrap();
        assert_eq!(values(&w), [0.0; 3]);
        assert_eq!(values(&snapshot["w"]), before);
        p.load(&snapshot).unwrap();
        assert_eq!(values(&w), before);
        assert_eq!(values(&buffer.get()), [1.0; 3]);
        assert_eq!(p.trainable().len(), 1);
        assert_eq!(p.parameter_count(), 3);
    }

    #[test]
    fn strict_load_names_what_differs() {
        let p = Params::new(Seed::root(1), DType::F32, &Device::Cpu);
        p.root().weight("w", &[3], Init::PyTorch).unwrap();
        let mut tensors = p.snapshot().unwrap();
        tensors.insert("extra".into(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
        assert!(p.load(&tensors).unwrap_err().to_string().contains("`extra`"));
        assert_eq!(p.load_partial(&tensors).unwrap().unexpected, ["extra"]);
    }

    #[test]
    fn a_frozen_store_tracks_nothing() {
        let p = Params::new(Seed::root(1), DType::F32, &Device::Cpu);
        p.root().weight("w", &[3], Init::PyTorch).unwrap();
        let f = Params::frozen(p.snapshot().unwrap(), DType::F32, &Device::Cpu);
        let w = f.root().weight("w", &[3], Init::PyTorch).unwrap();
        assert!(!w.track_op());
        assert!(f.trainable().is_empty());
    }
}
