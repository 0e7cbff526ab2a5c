//! Weights that a module knows under other keys than the case.

use crate::golden::Run;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_nn::{Params, Scope, Tensors};
use std::collections::BTreeMap;

/// A trainable store of all `in.param.*` under a module's keys.
pub(super) struct Renamed {
    params: Params,
    /// The case's names by the module's keys.
    names: BTreeMap<String, String>,
}

impl Renamed {
    /// `key` makes the module's key of what stands behind `in.param.`.
    pub(super) fn new(run: &Run<'_>, key: impl Fn(&str) -> String) -> Self {
        let (mut tensors, mut names) = (Tensors::new(), BTreeMap::new());
        for (name, tensor) in run.case().with_prefix("in.param.") {
            tensors.insert(key(&name), tensor);
            names.insert(key(&name), name);
        }
        Self { params: Params::from_tensors(tensors, DType::F32, &Device::Cpu), names }
    }

    /// Where modules declare their weights.
    pub(super) fn root(&self) -> Scope {
        self.params.root()
    }

    /// [`Run::loss`], with the gradients of these weights under the case's names.
    pub(super) fn loss(self, run: &mut Run<'_>, loss: &Tensor) -> Result<()> {
        if let Some(key) = self.params.unused().first() {
            let message = format!("the method has no parameter `{}` (as `{key}`)", self.names[key]);
            return Err(Error::invalid("in.param", message));
        }
        let gradients = run.loss(loss)?;
        for (key, var) in self.params.trainable() {
            let gradient = match gradients.get(&var) {
                Some(gradient) => gradient.clone(),
                None => var.as_tensor().zeros_like()?,
            };
            run.gradient(&format!("param.{}", self.names[&key]), gradient);
        }
        Ok(())
    }
}

/// Keys of two linear layers with a ReLU between them, which cases call `w1`, `b1`, `w2`, `b2`.
pub(super) fn two_layers(name: &str) -> String {
    match name {
        "w1" => "0.weight".into(),
        "b1" => "0.bias".into(),
        "w2" => "2.weight".into(),
        "b2" => "2.bias".into(),
        other => other.into(),
    }
}
