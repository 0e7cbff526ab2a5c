//! Learning-rate schedules.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Linear warm-up followed by a decay; a pure function of the step, so resuming needs no state.
///
/// Warm-up: at step `s < w * n` (w warm-up epochs of n steps) the rate is `lr * (s + 1) / (w * n)`.
///
/// ```
/// use retort_nn::{Decay, ScheduleConfig};
/// let schedule = ScheduleConfig { lr: 0.05, warmup_epochs: 0, decay: Decay::MultiStep { milestones: vec![150, 180, 210], gamma: 0.1 } };
/// assert_eq!(schedule.rate(149 * 782, 782, 240), 0.05);
/// assert!((schedule.rate(150 * 782, 782, 240) - 0.005).abs() < 1e-12);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Base learning rate, > 0.
    pub lr: f64,
    /// Epochs of linear warm-up.
    #[serde(default)]
    pub warmup_epochs: usize,
    /// What happens afterwards.
    #[serde(default)]
    pub decay: Decay,
}

/// How the rate falls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Decay {
    /// It does not.
    #[default]
    #[serde(deserialize_with = "crate::no_fields")]
    Constant,
    /// Multiplied by `gamma` from the first step of each milestone epoch on (epochs counted from 0).
    MultiStep {
        /// Increasing epoch numbers.
        milestones: Vec<usize>,
        /// Factor in (0, 1].
        gamma: f64,
    },
    /// `floor + (lr - floor) (1 + cos(pi p)) / 2`, where p runs from 0 to 1 over the steps after the warm-up (Loshchilov and Hutter 2017, arXiv 1608.03983).
    Cosine {
        /// Rate that the last step approaches, >= 0.
        #[serde(default)]
        floor: f64,
    },
}

impl ScheduleConfig {
    /// Checks the ranges once, before the first batch.
    ///
    /// # Errors
    ///
    /// Names the field, the value and the range.
    pub fn validate(&self) -> Result<()> {
        let positive = |name: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            Err(Error::invalid("schedule", format!("`{name}` must be > 0 and finite, found {value}")))
        };
        positive("lr", self.lr)?;
        match &self.decay {
            Decay::Constant => Ok(()),
            Decay::MultiStep { milestones, gamma } => {
                if milestones.windows(2).any(|pair| pair[0] >= pair[1]) {
                    return Err(Error::invalid(
                        "schedule",
                        format!("`milestones` must increase, found {milestones:?}"),
                    ));
                }
                if !(*gamma > 0.0 && *gamma <= 1.0) {
                    return Err(Error::invalid("schedule", format!("`gamma` must lie in (0, 1], found {gamma}")));
                }
                Ok(())
            }
            Decay::Cosine { floor } if !(floor.is_finite() && (0.0..=self.lr).contains(floor)) => {
                Err(Error::invalid("schedule", format!("`floor` must lie in 0..=lr, found {floor}")))
            }
            Decay::Cosine { .. } => Ok(()),
        }
    }

    /// The rate at `step` (counted from 0) of a run of `epochs` epochs with `steps_per_epoch` steps each.
    #[must_use]
    pub fn rate(&self, step: usize, steps_per_epoch: usize, epochs: usize) -> f64 {
        let warmup = self.warmup_epochs.saturating_mul(steps_per_epoch);
        if step < warmup {
            return self.lr * (step + 1) as f64 / warmup as f64;
        }
        match &self.decay {
            Decay::Constant => self.lr,
            Decay::MultiStep { milestones, gamma } => {
                let epoch = step / steps_per_epoch.max(1);
                let passed = milestones.iter().filter(|&&m| epoch >= m).count();
                self.lr * gamma.powi(passed as i32)
            }
            Decay::Cosine { floor } => {
                let total = epochs.saturating_mul(steps_per_epoch).saturating_sub(warmup).max(1);
                let progress = ((step - warmup) as f64 / total as f64).min(1.0);
                floor + (self.lr - floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_starts_at_the_base_and_ends_at_the_floor() {
        let s = ScheduleConfig { lr: 0.1, warmup_epochs: 0, decay: Decay::Cosine { floor: 0.01 } };
        assert_eq!(s.rate(0, 10, 4), 0.1);
        assert!((s.rate(20, 10, 4) - 0.055).abs() < 1e-12);
        assert!((s.rate(40, 10, 4) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn warm_up_is_linear_per_step() {
        let s = ScheduleConfig { lr: 0.1, warmup_epochs: 2, decay: Decay::Cosine { floor: 0.0 } };
        assert!((s.rate(0, 5, 10) - 0.01).abs() < 1e-12);
        assert!((s.rate(9, 5, 10) - 0.1).abs() < 1e-12);
        assert_eq!(s.rate(10, 5, 10), 0.1);
    }

    #[test]
    fn a_variant_without_fields_takes_none() {
        let parse = |text: &str| serde_json::from_str::<Decay>(text);
        assert_eq!(parse(r#"{"kind":"constant"}"#).unwrap(), Decay::Constant);
        let stray = parse(r#"{"kind":"constant","floor":0.1}"#).unwrap_err().to_string();
        assert!(stray.contains("unknown field `floor`"), "{stray}");
    }

    #[test]
    fn bad_ranges_are_named() {
        let bad = |s: ScheduleConfig, field: &str| assert!(s.validate().unwrap_err().to_string().contains(field));
        bad(ScheduleConfig { lr: -0.1, warmup_epochs: 0, decay: Decay::Constant }, "`lr`");
        bad(ScheduleConfig { lr: 0.1, warmup_epochs: 0, decay: Decay::Cosine { floor: 0.2 } }, "`floor`");
        let growing = Decay::MultiStep { milestones: vec![3], gamma: 2.0 };
        bad(ScheduleConfig { lr: 0.1, warmup_epochs: 0, decay: growing }, "`gamma`");
        let endless = ScheduleConfig { lr: 0.1, warmup_epochs: usize::MAX, decay: Decay::Constant };
        assert!(endless.rate(5, 100, 10) < 1e-12);
        bad(
            ScheduleConfig {
                lr: 0.1,
                warmup_epochs: 0,
                decay: Decay::MultiStep { milestones: vec![3, 3], gamma: 0.1 },
            },
            "`milestones`",
        );
    }
}
