//! The conditional density ratio of real and generated samples.

use super::label::{GROUPS, check_groups};
use super::{Condition, GroupNorm};
use crate::Result;
use crate::common::{check_positive, check_weights, config_error, refused};
use candle_core::Tensor;
use retort_nn::{Init, Linear, Scope, Seed};

const MODEL: &str = "density ratio network";

/// The ratio network of cGAN-KD (cDRE; Ding et al. 2021, arXiv 2103.11166): a fully connected network on features of a
/// sample and its condition.
///
/// Every hidden layer is linear, group norm of 8 groups, ReLU, dropout; the last one is linear to one entry, ReLU. The
/// condition stands behind the features: a vector as it is, a class as a row of a table that is as wide as there are
/// classes. The objective is that of `retort_losses::distribution::cdre_softplus`.
///
/// Keys: `label_emb.weight` for classes, `main.{4i}.*` (linear), `main.{4i+1}.*` (group norm). Layers start with
/// PyTorch's default, the table as N(0, 1).
#[derive(Clone, Debug, PartialEq)]
pub struct RatioConfig {
    /// Entries of the features.
    pub features: usize,
    /// What the network is told.
    pub condition: Condition,
    /// Widths of the hidden layers, multiples of 8.
    pub hidden: Vec<usize>,
    /// Share of the hidden entries that training sets to 0, in [0, 1).
    pub dropout: f64,
}

impl RatioConfig {
    /// The published network: hidden layers of 1024, 512, 256, 128 and 64, dropout 0.5.
    #[must_use]
    pub fn new(features: usize, condition: Condition) -> Self {
        Self { features, condition, hidden: vec![1024, 512, 256, 128, 64], dropout: 0.5 }
    }

    fn inputs(&self) -> usize {
        let beside = match self.condition {
            Condition::None => 0,
            Condition::Classes(size) | Condition::Embedding(size) => size,
        };
        self.features.saturating_add(beside)
    }

    fn check(&self) -> Result<()> {
        check_positive(MODEL, [("features", self.features)])?;
        self.hidden.iter().try_for_each(|&width| check_groups(MODEL, width, GROUPS))?;
        let mut from = self.inputs();
        for &to in self.hidden.iter().chain([&1]) {
            check_weights(MODEL, from, to)?;
            from = to;
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(config_error(MODEL, format!("dropout must be in [0, 1), found {}", self.dropout)));
        }
        // The table of a class is as wide as there are classes; a vector needs none.
        match self.condition {
            Condition::Classes(classes) => self.condition.check(MODEL, classes),
            condition => condition.check(MODEL, 1),
        }
    }
}

/// A network of a [`RatioConfig`].
pub struct RatioNet {
    config: RatioConfig,
    table: Option<Tensor>,
    hidden: Vec<(Linear, GroupNorm)>,
    last: Linear,
}

impl RatioNet {
    /// Declares all parameters in `scope`.
    ///
    /// # Errors
    ///
    /// Sizes of zero, widths that are no multiples of 8, layers of absurd size, a dropout out of range, or weights that
    /// do not fit (see [`Scope::weight`]).
    pub fn new(config: &RatioConfig, scope: &Scope) -> Result<Self> {
        config.check()?;
        let table = match config.condition {
            Condition::Classes(classes) => {
                Some(scope.child("label_emb").weight("weight", &[classes; 2], Init::Normal { std: 1.0 })?)
            }
            _ => None,
        };
        let main = scope.child("main");
        let mut from = config.inputs();
        let mut hidden = Vec::new();
        for (i, &to) in config.hidden.iter().enumerate() {
            let norm = GroupNorm::new(&main.child(4 * i + 1), to, GROUPS)?;
            hidden.push((Linear::new(&main.child(4 * i), from, to)?, norm));
            from = to;
        }
        let last = Linear::new(&main.child(4 * config.hidden.len()), from, 1)?;
        Ok(Self { config: config.clone(), table, hidden, last })
    }

    /// Ratios `[B, 1]`, not negative, of samples with `features` `[B, D]` under the condition `given`. With a seed it
    /// is a training pass and the seed draws the dropout; take another one for each step.
    ///
    /// # Errors
    ///
    /// Features or a condition that does not fit.
    pub fn forward(
        &self,
        features: &Tensor,
        given: Option<&Tensor>,
        dropout: Option<Seed>,
    ) -> retort_nn::Result<Tensor> {
        let RatioConfig { features: width, condition, .. } = self.config;
        if features.rank() != 2 || features.dims()[1] != width {
            return Err(refused(MODEL, format!("expected features [B, {width}], found {:?}", features.dims())));
        }
        let given = condition.checked(MODEL, features.dims()[0], given)?;
        let mut x = match (given, &self.table) {
            (None, _) => features.clone(),
            (Some(labels), Some(table)) => Tensor::cat(&[features, &table.index_select(&labels, 0)?], 1)?,
            (Some(vectors), None) => Tensor::cat(&[features, &vectors], 1)?,
        };
        for (i, (linear, norm)) in self.hidden.iter().enumerate() {
            x = retort_kernels::relu(&norm.forward(&linear.forward(&x)?)?)?;
            if let Some(seed) = dropout {
                x = retort_nn::dropout(&x, self.config.dropout, seed.child(&i.to_string()))?;
            }
        }
        Ok(retort_kernels::relu(&self.last.forward(&x)?)?)
    }
}
