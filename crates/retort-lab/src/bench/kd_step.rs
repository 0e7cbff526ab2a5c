//! `bench kd-step`.

use super::batch::ROWS;
use super::clock::measure;
use super::report::Report;
use super::training::{Setup, Training};
use super::{ImageShape, Options, Run};
use crate::source::{no_loss, suggestion};
use crate::tune::with_weight;
use crate::{Error, Result};
use clap::Args;
use retort_losses::output::CeConfig;
use retort_losses::{ExtraPhase, LossConfig};

#[derive(Debug, Args)]
pub(super) struct KdStepArgs {
    /// Architecture of the frozen teacher, as `list models` names it.
    #[arg(long)]
    teacher: String,
    /// Architecture of the student.
    #[arg(long)]
    student: String,
    /// Method beside the cross-entropy, as `list methods` names it.
    #[arg(long, value_name = "ID")]
    method: String,
    /// Weight of the method instead of the published one.
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    weight: Option<f64>,
    /// Channels, height and width of an image.
    #[arg(long, value_name = "CxHxW", default_value = "3x32x32")]
    image: ImageShape,
    #[command(flatten)]
    pub(super) options: Options,
}

impl KdStepArgs {
    pub(super) fn run(&self, run: &Run<'_>) -> Result<Report> {
        let Options { batch, classes, steps, .. } = self.options;
        let setup = Setup {
            student: &self.student,
            teacher: Some(&self.teacher),
            losses: terms(method(&self.method)?, self.weight)?,
            model: self.options.model(self.image),
        };
        let mut training = Training::new(&setup, run, ROWS)?;
        let medians = measure(steps, run.stop, |number| {
            let laps = training.step(number)?;
            Ok([laps.teacher, laps.forward, laps.loss, laps.backward, laps.optimizer])
        })?;
        let [teacher, forward, loss, backward, optimizer] = medians.parts;
        let idle = matches!(method(&self.method)?.info().phase, Some(ExtraPhase::InitStudent(_)));
        let note =
            idle.then_some("a step of the training; the method's own term is in the phase before it (`bench loss`)");
        Ok(Report::new()
            .with("teacher", self.teacher.as_str())
            .with("student", self.student.as_str())
            .with("method", self.method.as_str())
            .with("batch", batch)
            .with("threads", run.threads)
            .with("steps", steps)
            .with("images_per_second", 1e3 * batch as f64 / medians.whole)
            .with("teacher_ms", teacher)
            .with("forward_ms", forward)
            .with("loss_ms", loss)
            .with("backward_ms", backward)
            .with("optimizer_ms", optimizer)
            .with_peak_memory()
            .with_instruction_set()
            .with("image", self.image.to_string())
            .with("classes", classes)
            .with_some("note", note))
    }
}

/// A method with its published settings.
pub(super) fn method(id: &str) -> Result<LossConfig> {
    LossConfig::defaults().into_iter().find(|config| config.id() == id).ok_or_else(|| {
        let known = || suggestion(id, retort_losses::registry().iter().map(|info| info.id));
        let hint = no_loss(id).map_or_else(known, |place| format!("; {place}"));
        Error::Request(format!("unknown method `{id}`{hint}"))
    })
}

/// The objective as published: cross-entropy with its weight beside the method; a task loss stands alone.
fn terms(method: LossConfig, weight: Option<f64>) -> Result<Vec<LossConfig>> {
    let ce = method.info().ce_weight.map(|weight| LossConfig::Ce(CeConfig { weight }));
    let method = match weight {
        Some(weight) => with_weight(&method, weight)?,
        None => method,
    };
    Ok(ce.into_iter().chain([method]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_the_published_ones() {
        let weights = |id: &str, weight: Option<f64>| {
            let terms = terms(method(id).unwrap(), weight).unwrap();
            terms.iter().map(|config| (config.id(), config.weight())).collect::<Vec<_>>()
        };
        assert_eq!(weights("kd", None), [("ce", 0.1), ("kd", 0.9)]);
        assert_eq!(weights("crd", Some(0.5)), [("ce", 1.0), ("crd", 0.5)]);
        assert_eq!(weights("ce", None), [("ce", 1.0)]);
        assert_eq!(weights("label-smoothing", Some(2.0)), [("label-smoothing", 2.0)]);
    }

    #[test]
    fn only_the_weight_is_replaced() {
        for config in LossConfig::defaults() {
            let changed = with_weight(&config, 0.125).unwrap();
            assert_eq!(changed.weight(), 0.125);
            assert_eq!(with_weight(&changed, config.weight()).unwrap(), config);
        }
    }

    #[test]
    fn a_weight_that_means_nothing() {
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = with_weight(&method("rkd").unwrap(), weight).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains("`weight`"), "{error}");
        }
    }
}
