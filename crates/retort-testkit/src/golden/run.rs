//! What an adapter sees: the inputs of a case going in, the produced tensors coming out.

use super::{Case, Outcome};
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use retort_nn::{Params, Tensors};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// One execution of one case.
///
/// An adapter reads its inputs by short names (`x` for `in.x`) and hands over results by short names (`x` for `out.x`).
/// An input with an expected gradient `grad.x` in the file becomes a variable, every other one is a plain tensor;
/// [`Run::loss`] then fills in the gradients.
pub struct Run<'a> {
    case: &'a Case,
    variables: BTreeMap<String, Var>,
    stores: Vec<Params>,
    outcome: Outcome,
}

impl<'a> Run<'a> {
    pub(crate) fn new(case: &'a Case) -> Self {
        Self { case, variables: BTreeMap::new(), stores: Vec::new(), outcome: Outcome::default() }
    }

    pub(crate) fn finish(self) -> Outcome {
        self.outcome
    }

    /// The case.
    #[must_use]
    pub fn case(&self) -> &'a Case {
        self.case
    }

    /// The hyper-parameter `name`.
    ///
    /// # Errors
    ///
    /// See [`Case::param`].
    pub fn param<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        self.case.param(name)
    }

    /// The real input `in.NAME`; a variable if the case expects its gradient.
    ///
    /// # Errors
    ///
    /// The case lacks it, or it holds integers.
    pub fn input(&mut self, name: &str) -> Result<Tensor> {
        let tensor = self.constant(name)?;
        if !self.case.has(&format!("grad.{name}")) {
            return Ok(tensor);
        }
        if !self.variables.contains_key(name) {
            self.variables.insert(name.to_string(), Var::from_tensor(&tensor)?);
        }
        Ok(self.variables[name].as_tensor().clone())
    }

    /// The real input `in.NAME` as a plain tensor, also where the case expects its gradient: for what a loss detaches.
    ///
    /// # Errors
    ///
    /// As for [`Run::input`].
    pub fn constant(&self, name: &str) -> Result<Tensor> {
        let tensor = self.case.tensor(&format!("in.{name}"))?;
        if tensor.dtype() != DType::F32 {
            return Err(self.wrong(name, "expected type F32, found I64"));
        }
        Ok(tensor.clone())
    }

    /// Hands over `grad.NAME` of an input that a loss detaches, which the loss has written down by itself.
    pub fn gradient(&mut self, name: &str, tensor: Tensor) {
        self.outcome.insert(format!("grad.{name}"), tensor);
    }

    /// The inputs `in.PREFIX0`, `in.PREFIX1`, ... as long as they go on.
    ///
    /// # Errors
    ///
    /// There is not even the first.
    pub fn numbered(&mut self, prefix: &str) -> Result<Vec<Tensor>> {
        let mut tensors = vec![self.input(&format!("{prefix}0"))?];
        while self.case.has(&format!("in.{prefix}{}", tensors.len())) {
            tensors.push(self.input(&format!("{prefix}{}", tensors.len()))?);
        }
        Ok(tensors)
    }

    /// The integer input `in.NAME` in row-major order.
    ///
    /// # Errors
    ///
    /// The case lacks it, or an entry is negative or above 2^32 - 1.
    pub fn indices(&self, name: &str) -> Result<Vec<u32>> {
        let tensor = self.case.tensor(&format!("in.{name}"))?;
        if tensor.dtype() != DType::I64 {
            return Err(self.wrong(name, "expected type I64, found F32"));
        }
        let values: Vec<i64> = tensor.flatten_all()?.to_vec1()?;
        let narrow = |v: i64| u32::try_from(v).map_err(|_| self.wrong(name, format!("expected an index, found {v}")));
        values.into_iter().map(narrow).collect()
    }

    /// The integer input `in.NAME` as a u32 tensor of the same shape.
    ///
    /// # Errors
    ///
    /// As for [`Run::indices`].
    pub fn labels(&self, name: &str) -> Result<Tensor> {
        let values = self.indices(name)?;
        let shape = self.case.tensor(&format!("in.{name}"))?.dims();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// A trainable store with all `in.param.*`; [`Run::loss`] takes the gradients of `grad.param.*` from it.
    ///
    /// `extra` holds what a golden file leaves out, for example running statistics at their start.
    pub fn params(&mut self, extra: impl IntoIterator<Item = (String, Tensor)>) -> Params {
        let mut tensors: Tensors = self.case.with_prefix("in.param.");
        for (name, tensor) in extra {
            tensors.entry(name).or_insert(tensor);
        }
        let params = Params::from_tensors(tensors, DType::F32, &Device::Cpu);
        self.stores.push(params.clone());
        params
    }

    /// Hands over `out.NAME`.
    pub fn produce(&mut self, name: impl std::fmt::Display, tensor: Tensor) {
        self.outcome.insert(format!("out.{name}"), tensor.detach());
    }

    /// Hands over `out.NAME`, computed in a second way that error messages name.
    pub fn produce_variant(&mut self, name: impl std::fmt::Display, variant: &'static str, tensor: Tensor) {
        self.outcome.insert_variant(format!("out.{name}"), variant, tensor.detach());
    }

    /// Hands over `out.loss` and its gradients with respect to all variables and stores; returns the gradients.
    ///
    /// A variable that the loss does not depend on has the gradient 0.
    ///
    /// # Errors
    ///
    /// A loss that is not one number, or a weight of the case that no part of the method has asked for.
    pub fn loss(&mut self, loss: &Tensor) -> Result<GradStore> {
        if loss.elem_count() != 1 {
            return Err(Error::invalid("loss", format!("expected one number, found shape {:?}", loss.dims())));
        }
        let gradients = loss.backward()?;
        for store in &self.stores {
            if let Some(name) = store.unused().first() {
                return Err(self.wrong(&format!("param.{name}"), "the method has no parameter of this name"));
            }
        }
        let weights = self.stores.iter().flat_map(Params::trainable).map(|(name, var)| (format!("param.{name}"), var));
        for (name, var) in self.variables.clone().into_iter().chain(weights) {
            let gradient = match gradients.get(&var) {
                Some(gradient) => gradient.clone(),
                None => var.as_tensor().zeros_like()?,
            };
            self.outcome.insert(format!("grad.{name}"), gradient);
        }
        self.produce("loss", loss.clone());
        Ok(gradients)
    }

    fn wrong(&self, name: &str, message: impl std::fmt::Display) -> Error {
        Error::field(&self.case.path().with_extension("safetensors"), format!("in.{name}"), message)
    }
}
