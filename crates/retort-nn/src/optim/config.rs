//! Settings of the optimisers.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which optimiser, and with what settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Stochastic gradient descent in PyTorch's order:
    /// `d = g + wd w; v <- mu v + (1 - dampening) d` (v = d on the first step);
    /// `w <- w - lr (d + mu v)` with Nesterov momentum, `w <- w - lr v` without, `w <- w - lr d` for mu = 0.
    Sgd {
        /// mu, in [0, 1).
        #[serde(default)]
        momentum: f64,
        /// Nesterov's form; needs momentum > 0 and dampening 0.
        #[serde(default)]
        nesterov: bool,
        /// In [0, 1].
        #[serde(default)]
        dampening: f64,
        /// wd, >= 0, on all parameters, biases and norms included.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Distillation-oriented training (Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023): SGD with one
    /// momentum buffer for the gradient of the task's loss and one for that of the distillation losses,
    /// `v_kd <- (mu + delta) v_kd + g_kd`, `v_ce <- (mu - delta) v_ce + g_ce + wd w`, `w <- w - lr (v_ce + v_kd)`;
    /// on the first step each buffer is its gradient.
    ///
    /// A parameter that only one of the losses reaches is trained as by SGD with momentum mu.
    Dot {
        /// mu, in [0, 1).
        #[serde(default = "beta1")]
        momentum: f64,
        /// delta, in [0, mu], with mu + delta < 1: 0.075 for CIFAR-100 and Tiny-ImageNet, 0.09 for ImageNet.
        #[serde(default = "delta")]
        delta: f64,
        /// wd, >= 0, once, in the task's buffer.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101):
    /// `w <- w - lr wd w - lr m^ / (sqrt(v^) + eps)`, bias-corrected moments.
    #[serde(rename = "adamw")]
    AdamW {
        /// Decay of the first moment, in [0, 1).
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the second moment, in [0, 1).
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root, > 0.
        #[serde(default = "epsilon")]
        eps: f64,
        /// wd, >= 0.
        #[serde(default)]
        weight_decay: f64,
    },
}

fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn delta() -> f64 {
    0.075
}
fn epsilon() -> f64 {
    1e-8
}

impl OptimizerConfig {
    /// Checks the ranges once, before the first batch.
    ///
    /// # Errors
    ///
    /// Names the field, the value and the range.
    pub fn validate(&self) -> Result<()> {
        let within = |name: &str, value: f64, ok: bool, range: &str| {
            if ok && value.is_finite() {
                return Ok(());
            }
            Err(Error::invalid("optimizer", format!("`{name}` must be {range}, found {value}")))
        };
        let unit = |name: &str, value: f64| within(name, value, (0.0..1.0).contains(&value), "in [0, 1)");
        match *self {
            Self::Sgd { momentum, nesterov, dampening, weight_decay } => {
                unit("momentum", momentum)?;
                within("dampening", dampening, (0.0..=1.0).contains(&dampening), "in [0, 1]")?;
                within("weight_decay", weight_decay, weight_decay >= 0.0, ">= 0")?;
                if nesterov && (momentum == 0.0 || dampening != 0.0) {
                    return Err(Error::invalid("optimizer", "`nesterov` needs momentum > 0 and dampening 0"));
                }
                Ok(())
            }
            Self::Dot { momentum, delta, weight_decay } => {
                unit("momentum", momentum)?;
                let range = "in [0, momentum], and momentum + delta below 1";
                within("delta", delta, (0.0..=momentum).contains(&delta) && momentum + delta < 1.0, range)?;
                within("weight_decay", weight_decay, weight_decay >= 0.0, ">= 0")
            }
            Self::AdamW { beta1, beta2, eps, weight_decay } => {
                unit("beta1", beta1)?;
                unit("beta2", beta2)?;
                within("eps", eps, eps > 0.0, "> 0")?;
                within("weight_decay", weight_decay, weight_decay >= 0.0, ">= 0")
            }
        }
    }
}
