//! One golden case: a JSON file and the safetensors file next to it.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Absolute and relative tolerance of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
pub struct Tolerance {
    /// Absolute part, >= 0.
    pub atol: f64,
    /// Part relative to the expected value, >= 0.
    pub rtol: f64,
}

impl Tolerance {
    fn checked(self, path: &Path, field: &str) -> Result<Self> {
        for (name, value) in [("atol", self.atol), ("rtol", self.rtol)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::field(path, join(field, name), format!("must be finite and >= 0, found {value}")));
            }
        }
        Ok(self)
    }
}

/// A golden case with its tensors in memory.
///
/// Tensors are f32 or i64; `in.*` are inputs, `out.*` and `grad.*` are expectations.
#[derive(Debug)]
pub struct Case {
    path: PathBuf,
    name: String,
    family: String,
    id: String,
    fields: Map<String, Value>,
    params: Map<String, Value>,
    tolerance: Tolerance,
    tolerances: BTreeMap<String, Tolerance>,
    tensors: BTreeMap<String, Tensor>,
}

impl Case {
    /// Reads `path` and the file of the same name with the extension `safetensors`.
    ///
    /// # Errors
    ///
    /// A file that is missing, broken or truncated, a field that is missing or of the wrong type (named),
    /// a tensor of another type than f32 and i64, a tolerance without a tensor, a case that expects nothing.
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_value(path, &read_json(path)?)
    }

    /// As [`Case::load`], for a JSON file that has been read already.
    ///
    /// # Errors
    ///
    /// As for [`Case::load`].
    pub fn from_value(path: &Path, json: &Value) -> Result<Self> {
        let fields = json.as_object().ok_or_else(|| Error::file(path, "expected a JSON object"))?.clone();
        let get =
            |name: &str| fields.get(name).cloned().ok_or_else(|| Error::field(path, name, "the field is missing"));
        let tolerance =
            Tolerance { atol: convert(path, "atol", get("atol")?)?, rtol: convert(path, "rtol", get("rtol")?)? }
                .checked(path, "")?;
        let case = Self {
            path: path.to_path_buf(),
            name: convert(path, "name", get("name")?)?,
            family: convert(path, "family", get("family")?)?,
            id: convert(path, "loss", get("loss")?)?,
            params: match fields.get("params") {
                None => Map::new(),
                Some(value) => convert(path, "params", value.clone())?,
            },
            tolerance,
            tolerances: tolerances(path, &fields)?,
            tensors: read_tensors(&path.with_extension("safetensors"))?,
            fields,
        };
        if case.expected().next().is_none() {
            return Err(Error::file(path, "the case expects nothing: there is no tensor `out.*` or `grad.*`"));
        }
        if let Some(name) = case.tolerances.keys().find(|name| !case.tensors.contains_key(*name)) {
            return Err(Error::field(path, join("tolerances", name), "there is no tensor of this name"));
        }
        Ok(case)
    }

    /// The JSON file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name of the case.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Family: `output`, `feature`, ...
    #[must_use]
    pub fn family(&self) -> &str {
        &self.family
    }

    /// Method id: the field `loss`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The tensor with this full name, for example `in.x`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.lacks(name))
    }

    /// Whether a tensor with this full name exists.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All tensors whose full name starts with `prefix`, under the rest of their name.
    #[must_use]
    pub fn with_prefix(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let rest = |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor.clone()));
        self.tensors.iter().filter_map(rest).collect()
    }

    /// What must be reproduced: the tensors `out.*` and `grad.*` in the order of their names.
    pub fn expected(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().filter(|(name, _)| !name.starts_with("in.")).map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tolerance of the tensor `name`: its own one, else the default of the case.
    #[must_use]
    pub fn tolerance(&self, name: &str) -> Tolerance {
        self.tolerances.get(name).copied().unwrap_or(self.tolerance)
    }

    /// The hyper-parameter `name` of `params`.
    ///
    /// # Errors
    ///
    /// It is missing or of another type.
    pub fn param<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let field = join("params", name);
        let value = self.params.get(name).ok_or_else(|| Error::field(&self.path, &field, "the field is missing"))?;
        convert(&self.path, &field, value.clone())
    }

    /// The hyper-parameter `name`, or `default` where the case does not give it.
    ///
    /// # Errors
    ///
    /// It is of another type.
    pub fn param_or<T: DeserializeOwned>(&self, name: &str, default: T) -> Result<T> {
        if self.params.contains_key(name) { self.param(name) } else { Ok(default) }
    }

    /// The top-level field `name` of the JSON.
    ///
    /// # Errors
    ///
    /// It is missing or of another type.
    pub fn field<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let value = self.fields.get(name).ok_or_else(|| Error::field(&self.path, name, "the field is missing"))?;
        convert(&self.path, name, value.clone())
    }

    /// Whether the JSON has the top-level field `name`.
    #[must_use]
    pub fn has_field(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    fn lacks(&self, name: &str) -> Error {
        Error::field(&self.path.with_extension("safetensors"), name, "there is no such tensor")
    }
}

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, error))?;
    serde_json::from_str(&text).map_err(|error| Error::file(path, format!("not valid JSON: {error}")))
}

fn convert<T: DeserializeOwned>(path: &Path, field: &str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Error::field(path, field, error))
}

fn join(field: &str, name: &str) -> String {
    if field.is_empty() { name.to_string() } else { format!("{field}.{name}") }
}

fn tolerances(path: &Path, fields: &Map<String, Value>) -> Result<BTreeMap<String, Tolerance>> {
    let Some(value) = fields.get("tolerances") else { return Ok(BTreeMap::new()) };
    let entries: Map<String, Value> = convert(path, "tolerances", value.clone())?;
    entries
        .into_iter()
        .map(|(name, value)| {
            let field = join("tolerances", &name);
            let tolerance: Tolerance = convert(path, &field, value)?;
            Ok((name, tolerance.checked(path, &field)?))
        })
        .collect()
}

fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(|error| Error::file(path, error))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Error::file(path, format!("not a safetensors file: {error:?}")))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        if !["in.", "out.", "grad."].iter().any(|prefix| name.starts_with(prefix)) {
            return Err(Error::field(path, name, "the name must start with `in.`, `out.` or `grad.`"));
        }
        let (shape, data) = (view.shape(), view.data());
        let tensor = match view.dtype() {
            Dtype::F32 => Tensor::from_vec(words(data, f32::from_le_bytes), shape, &Device::Cpu),
            Dtype::I64 => Tensor::from_vec(words(data, i64::from_le_bytes), shape, &Device::Cpu),
            other => return Err(Error::field(path, name, format!("expected type F32 or I64, found {other:?}"))),
        };
        tensors.insert(name.to_string(), tensor.map_err(|error| Error::field(path, name, error))?);
    }
    Ok(tensors)
}

/// Little-endian words of `N` bytes; safetensors has checked that the length is a multiple of it.
fn words<T, const N: usize>(data: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
    data.chunks_exact(N).map(|chunk| from(chunk.try_into().expect("a chunk has N bytes"))).collect()
}
