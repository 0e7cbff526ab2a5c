//! Whether methods and pairs of networks fit, found out before anything is trained.

use crate::{Error, Result};
use candle_core::{DType, Device};
use retort_losses::{BuildContext, LossConfig};
use retort_models::ModelConfig;
use retort_nn::{NetworkSpec, Params, Seed, StageNorm};
use std::collections::BTreeMap;

/// What a network declares about itself.
pub(crate) struct Declared {
    pub(crate) spec: NetworkSpec,
    /// The batch norms before the last activations of its stages, where it shows them.
    pub(crate) norms: Option<Vec<StageNorm>>,
}

impl Declared {
    /// Builds the network and gives it back.
    pub(crate) fn of(name: &str, config: &ModelConfig) -> Result<Self> {
        let network = retort_models::build(name, config, &params().root()).map_err(Error::request)?;
        Ok(Self { spec: network.spec().clone(), norms: network.stage_norms()? })
    }
}

/// Builds losses for pairs of networks; every network and every loss of a pair once.
pub(crate) struct Fit<'a> {
    model: ModelConfig,
    train_labels: &'a [u32],
    networks: BTreeMap<String, Declared>,
    checked: Vec<[String; 3]>,
}

impl<'a> Fit<'a> {
    pub(crate) fn new(model: ModelConfig, train_labels: &'a [u32]) -> Self {
        Self { model, train_labels, networks: BTreeMap::new(), checked: Vec::new() }
    }

    /// Refuses a loss that the pair's shapes do not allow.
    pub(crate) fn check(&mut self, teacher: &str, student: &str, loss: &LossConfig) -> Result<()> {
        let key = [teacher.to_string(), student.to_string(), serde_json::to_string(loss).unwrap_or_default()];
        if self.checked.contains(&key) {
            return Ok(());
        }
        for name in [teacher, student] {
            if !self.networks.contains_key(name) {
                self.networks.insert(name.to_string(), Declared::of(name, &self.model)?);
            }
        }
        let (teacher, student) = (&self.networks[teacher], &self.networks[student]);
        let (parts, init_parts) = (params(), params());
        let context = BuildContext {
            student: &student.spec,
            teacher: Some(&teacher.spec),
            train_labels: self.train_labels,
            seed: Seed::root(1),
            scope: parts.root(),
            init_scope: init_parts.root(),
            teacher_norms: teacher.norms.as_deref(),
        };
        loss.build(&context).map_err(Error::request)?;
        self.checked.push(key);
        Ok(())
    }
}

fn params() -> Params {
    Params::new(Seed::root(1), DType::F32, &Device::Cpu)
}
