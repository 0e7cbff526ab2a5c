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

/// A parameter store of an objective.
pub(crate) struct Part {
    prefix: String,
    params: Params,
    weight_decay: Option<f64>,
    optimised: bool,
    fixed: Vec<String>,
}

impl Part {
    pub(crate) fn new(prefix: impl Into<String>, params: Params) -> Self {
        Self { prefix: prefix.into(), params, weight_decay: None, optimised: true, fixed: Vec::new() }
    }

    /// With another weight decay than the optimiser's.
    pub(crate) fn weight_decay(self, weight_decay: f64) -> Self {
        Self { weight_decay: Some(weight_decay), ..self }
    }

    /// Saved with the others, but not for the loop's optimiser.
    pub(crate) fn not_optimised(self) -> Self {
        Self { optimised: false, ..self }
    }

    /// The same for these parameters alone.
    pub(crate) fn fixed(self, names: Vec<String>) -> Self {
        Self { fixed: names, ..self }
    }

    /// What the optimiser may touch, under the part's prefix.
    fn trainable(&self) -> Vec<(String, Var)> {
        let fixed = |name: &String| self.fixed.iter().any(|fixed| *name == format!("{}.{fixed}", self.prefix));
        named(&self.prefix, &self.params).into_iter().filter(|(name, _)| !fixed(name)).collect()
    }
}

/// The parameter stores of an objective, each under its own prefix.
pub(crate) struct Parts(Vec<Part>);

impl Parts {
    pub(crate) fn new(parts: impl IntoIterator<Item = Part>) -> Self {
        Self(parts.into_iter().collect())
    }

    /// Everything that can be trained, a group for each part.
    pub(crate) fn groups(&self) -> Vec<ParamGroup> {
        let group = |part: &Part| ParamGroup { weight_decay: part.weight_decay, ..ParamGroup::new(part.trainable()) };
        self.0.iter().filter(|part| part.optimised).map(group).collect()
    }

    pub(crate) fn state(&self) -> Result<Tensors> {
        let mut state = Tensors::new();
        for part in &self.0 {
            state.extend(under(&part.prefix, part.params.snapshot()?));
        }
        Ok(state)
    }

    pub(crate) fn load(&self, state: &Tensors) -> Result<()> {
        self.0.iter().try_for_each(|own| Ok(own.params.load(&part(state, &format!("{}.", own.prefix)))?))
    }
}

/// Trainable parameters under `prefix`.
pub(crate) fn named(prefix: &str, params: &Params) -> Vec<(String, Var)> {
    params.trainable().into_iter().map(|(name, var)| (format!("{prefix}.{name}"), var)).collect()
}
