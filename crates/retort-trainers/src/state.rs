//! Names of tensors in checkpoints: parts under prefixes.

use crate::Result;
use candle_core::Var;
use retort_nn::{ParamGroup, Params, Tensors};

/// The tensors whose names start with `prefix`, without it.
pub(crate) fn part(state: &Tensors, prefix: &str) -> Tensors {
    state.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_string(), v.clone()))).collect()
}

/// The tensors under `prefix` and a dot.
pub(crate) fn under(prefix: &str, tensors: Tensors) -> Tensors {
    tensors.into_iter().map(|(name, tensor)| (format!("{prefix}.{name}"), tensor)).collect()
}

/// The parameter stores of an objective, each under its own prefix.
pub(crate) struct Parts(Vec<(&'static str, Params)>);

impl Parts {
    pub(crate) fn new(parts: impl IntoIterator<Item = (&'static str, Params)>) -> Self {
        Self(parts.into_iter().collect())
    }

    /// Everything that can be trained, as one group.
    pub(crate) fn groups(&self) -> Vec<ParamGroup> {
        let all: Vec<(String, Var)> = self.0.iter().flat_map(|(prefix, params)| named(prefix, params)).collect();
        vec![ParamGroup::new(all)]
    }

    pub(crate) fn state(&self) -> Result<Tensors> {
        let mut state = Tensors::new();
        for (prefix, params) in &self.0 {
            state.extend(under(prefix, params.snapshot()?));
        }
        Ok(state)
    }

    pub(crate) fn load(&self, state: &Tensors) -> Result<()> {
        for (prefix, params) in &self.0 {
            params.load(&part(state, &format!("{prefix}.")))?;
        }
        Ok(())
    }
}

/// Trainable parameters under `prefix`.
pub(crate) fn named(prefix: &str, params: &Params) -> Vec<(String, Var)> {
    params.trainable().into_iter().map(|(name, var)| (format!("{prefix}.{name}"), var)).collect()
}
