//! Networks that a finished run left.

use crate::state::part;
use crate::{Error, Result};
use candle_core::{DType, Device};
use retort_models::{BranchedNetwork, BranchesConfig, Head, ModelConfig};
use retort_nn::{Network, Params, Tensors};
use std::sync::Arc;

/// Key of the network in the weights of a network with branches or a head.
pub(crate) const BACKBONE: &str = "backbone";

/// What a finished run left: a network, alone or as the `backbone.*` of one with auxiliary parts.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Architecture, a name of the model registry.
    pub model: String,
    /// Images and classes.
    pub config: ModelConfig,
    /// What [`Objective::weights`](crate::engine::Objective::weights) gave.
    pub weights: Tensors,
    /// Whether its classifier has been trained; if not, nobody's agreement with it is measured.
    pub classifies: bool,
}

impl Trained {
    /// The network in its frozen form: nothing trainable, batch norms folded, no graph.
    ///
    /// # Errors
    ///
    /// As for [`frozen`].
    pub fn network(&self, device: &Device) -> Result<Arc<dyn Network>> {
        Ok(Arc::from(frozen(&self.model, &self.config, self.backbone(), device)?))
    }

    /// Weights of the network alone.
    #[must_use]
    pub fn backbone(&self) -> Tensors {
        let inner = part(&self.weights, &format!("{BACKBONE}."));
        if inner.is_empty() { self.weights.clone() } else { inner }
    }

    /// The network with these branches, frozen.
    ///
    /// # Errors
    ///
    /// A run that trained no such branches.
    pub fn branched(&self, rows: &BranchesConfig, device: &Device) -> Result<BranchedNetwork> {
        self.check_holds("auxiliary_classifier.", "auxiliary classifiers (`hsakd-teacher`)")?;
        let family = &retort_models::info(&self.model)?.family;
        let params = Params::frozen(self.weights.clone(), DType::F32, device);
        let network = BranchedNetwork::new(&self.model, family, &self.config, rows, &params.root())?;
        self.all_used(&params)?;
        Ok(network)
    }

    /// The network and the projection head of SSKD, frozen.
    ///
    /// # Errors
    ///
    /// A run that trained no such head.
    pub(crate) fn projected(&self, device: &Device) -> Result<(Arc<dyn Network>, Head)> {
        self.check_holds("proj_head.", "a projection head (`sskd-teacher`)")?;
        let network = self.network(device)?;
        let head = self.weights.iter().filter(|(name, _)| !name.starts_with(BACKBONE));
        let params = Params::frozen(head.map(|(k, v)| (k.clone(), v.clone())).collect(), DType::F32, device);
        let head = Head::sskd(network.spec().embedding, &params.root())?;
        self.all_used(&params)?;
        Ok((network, head))
    }

    fn check_holds(&self, prefix: &str, what: &str) -> Result<()> {
        if self.weights.keys().any(|name| name.starts_with(prefix)) {
            return Ok(());
        }
        let message = format!("the run of `{}` trained no {what}: its weights hold no `{prefix}*`", self.model);
        Err(Error::Config { what: "teacher".into(), message })
    }

    fn all_used(&self, params: &Params) -> Result<()> {
        unused(params, &self.model)
    }
}

fn unused(params: &Params, model: &str) -> Result<()> {
    match params.unused().first() {
        None => Ok(()),
        Some(name) => {
            let message = format!("the weights hold `{name}`, which `{model}` does not have");
            Err(Error::Config { what: "weights".into(), message })
        }
    }
}

/// Rebuilds a trained network in its frozen form: nothing trainable, batch norms folded, no graph.
///
/// # Errors
///
/// An unknown model, or weights that lack a tensor, hold one too many or one of another shape.
pub fn frozen(model: &str, config: &ModelConfig, weights: Tensors, device: &Device) -> Result<Box<dyn Network>> {
    let params = Params::frozen(weights, DType::F32, device);
    let network = retort_models::build(model, config, &params.root())?;
    unused(&params, model)?;
    Ok(network)
}
