//! `bench loss`.

use super::batch::{ROWS, Samples, normal};
use super::clock::{Stopwatch, measure};
use super::kd_step::method;
use super::report::Report;
use super::{ImageShape, Options, Run, candle_error, check_entries, loss_error, positive, seed};
use crate::fit::Declared;
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use clap::Args;
use retort_losses::{BuildContext, Context, Distiller, LossConfig};
use retort_nn::{NetworkSpec, Outputs, Params, Taps};
use std::time::Duration;

/// The pair whose outputs' shapes are used: equal channels, so that every method is defined for it.
const STUDENT: &str = "resnet8x4";
const TEACHER: &str = "resnet32x4";
const IMAGE: ImageShape = ImageShape([3, 32, 32]);

#[derive(Debug, Args)]
pub(super) struct LossArgs {
    /// Method, as `list methods` names it.
    #[arg(long, value_name = "ID")]
    loss: String,
    /// Width of the trained projections of the embeddings (crd, cc) [default: the method's].
    #[arg(long)]
    dim: Option<usize>,
    /// Rows of the memory banks (crd) [default: 50000].
    #[arg(long)]
    rows: Option<usize>,
    /// Negatives per sample (crd) [default: the method's].
    #[arg(long)]
    negatives: Option<usize>,
    #[command(flatten)]
    pub(super) options: Options,
}

/// A loss and those of its sizes that can be chosen.
struct Choice {
    config: LossConfig,
    dim: Option<usize>,
    rows: Option<usize>,
    negatives: Option<usize>,
}

impl LossArgs {
    pub(super) fn run(&self, run: &Run<'_>) -> Result<Report> {
        let Options { batch, classes, steps, .. } = self.options;
        let choice = self.choice()?;
        let mut case = Case::new(&choice, run)?;
        let medians = measure(steps, run.stop, |number| Ok([case.step(number)?]))?;
        Ok(Report::new()
            .with("loss", self.loss.as_str())
            .with("forward_backward_ms", medians.whole)
            .with_peak_memory()
            .with("batch", batch)
            .with("classes", classes)
            .with_some("dim", choice.dim)
            .with_some("rows", choice.rows)
            .with_some("negatives", choice.negatives)
            .with("threads", run.threads)
            .with("steps", steps)
            .with_instruction_set())
    }

    /// The method with the sizes that were asked for; a size that it does not have is refused.
    fn choice(&self) -> Result<Choice> {
        let choice = match method(&self.loss)? {
            LossConfig::Crd(mut crd) => {
                crd.dim = self.dim.unwrap_or(crd.dim);
                crd.negatives = self.negatives.unwrap_or(crd.negatives);
                let (dim, negatives) = (Some(crd.dim), Some(crd.negatives));
                Choice { dim, rows: Some(self.rows.unwrap_or(ROWS)), negatives, config: LossConfig::Crd(crd) }
            }
            LossConfig::Cc(mut cc) => {
                cc.dim = self.dim.unwrap_or(cc.dim);
                Choice { dim: Some(cc.dim), rows: None, negatives: None, config: LossConfig::Cc(cc) }
            }
            config => Choice { config, dim: None, rows: None, negatives: None },
        };
        let asked = [("dim", self.dim, choice.dim), ("rows", self.rows, choice.rows)];
        for (name, asked, used) in asked.into_iter().chain([("negatives", self.negatives, choice.negatives)]) {
            if asked.is_some() && used.is_none() {
                return Err(Error::Request(format!("`--{name}` means nothing to the loss `{}`", self.loss)));
            }
        }
        choice.config.validate().map_err(loss_error)?;
        Ok(choice)
    }
}

/// A loss with the outputs of two networks that are not there.
struct Case {
    loss: Box<dyn Distiller>,
    /// Whether the student learns from the loss in the phase before the training only (`ab`, `fsp`): then that is measured.
    init: bool,
    /// Trainable parts of the loss.
    parts: Params,
    student: Outputs,
    /// The student's tensors, so that gradients flow as far as the network would begin.
    vars: Vec<Var>,
    teacher: Outputs,
    samples: Samples,
}

impl Case {
    fn new(choice: &Choice, run: &Run<'_>) -> Result<Self> {
        let rows = choice.rows.unwrap_or(ROWS);
        positive("--rows", rows)?;
        check_entries("the memory bank", &[rows, choice.dim.unwrap_or(1)])?;
        check_entries("the negatives", &[run.options.batch, choice.negatives.unwrap_or(0) + 1])?;
        let declared = |name| Declared::of(name, &run.options.model(IMAGE));
        let (student, teacher) = (declared(STUDENT)?, declared(TEACHER)?);
        let samples = Samples::new(run, rows)?;
        let params = |name: &str| Params::new(seed().child(name), DType::F32, &Device::Cpu);
        let (parts, init_parts) = (params("method"), params("init"));
        let context = BuildContext {
            student: &student.spec,
            teacher: Some(&teacher.spec),
            train_labels: &samples.train_labels,
            seed: seed().child("sampler"),
            scope: parts.root(),
            init_scope: init_parts.root(),
            teacher_norms: teacher.norms.as_deref(),
        };
        let loss = choice.config.build(&context).map_err(loss_error)?;
        let init = choice.config.init_phase(&student.spec).is_some_and(|phase| phase.student);
        let parts = if init { init_parts } else { parts };
        let mut vars = Vec::new();
        let taps = choice.config.needs().taps;
        let student = outputs(&student.spec, run.options.batch, taps, |tensor| {
            let var = Var::from_tensor(&tensor).map_err(candle_error)?;
            vars.push(var.clone());
            Ok(var.into_inner())
        })?;
        let teacher = outputs(&teacher.spec, run.options.batch, taps, Ok)?;
        Ok(Self { loss, init, parts, student, vars, teacher, samples })
    }

    /// Value, gradient, and what the loss updates after the optimiser's step.
    fn step(&mut self, number: usize) -> Result<Duration> {
        let mut watch = Stopwatch::start();
        let context = Context {
            student: &self.student,
            teacher: Some(&self.teacher),
            labels: &self.samples.labels,
            label_ids: &self.samples.label_ids,
            index: &self.samples.index,
            // Samplers draw by epoch and row: with a constant epoch the same negatives would wait in the cache.
            epoch: number,
        };
        let term = if self.init { self.loss.init_term(&context) } else { self.loss.term(&context) };
        let term = term.map_err(loss_error)?;
        let grads = term.value.backward().map_err(candle_error)?;
        self.loss.after_step().map_err(loss_error)?;
        let lap = watch.lap();
        if number == 0 {
            self.check_gradients(&grads)?;
        }
        Ok(lap)
    }

    /// The student and every trainable part must be reached: less would be cheaper than training is.
    fn check_gradients(&self, grads: &GradStore) -> Result<()> {
        if !self.vars.iter().any(|var| grads.get(var).is_some()) {
            return Err(Error::Failed("the student gets no gradient".into()));
        }
        match self.parts.trainable().iter().find(|(_, var)| grads.get(var).is_none()) {
            Some((name, _)) => Err(Error::Failed(format!("parameter `{name}` gets no gradient"))),
            None => Ok(()),
        }
    }
}

/// Random outputs of these shapes, with the maps only where the loss reads them; `wrap` is shown each tensor.
fn outputs(
    spec: &NetworkSpec,
    batch: usize,
    taps: Taps,
    mut wrap: impl FnMut(Tensor) -> Result<Tensor>,
) -> Result<Outputs> {
    let mut tensor = |name: String, shape: &[usize]| wrap(normal(&format!("{}: {name}", spec.name), shape)?);
    let logits = tensor("logits".into(), &[batch, spec.classes])?;
    let embedding = tensor("embedding".into(), &[batch, spec.embedding])?;
    let mut maps = |kind: &str, wanted: bool| -> Result<Vec<Tensor>> {
        let shapes = spec.maps.iter().filter(|_| wanted).enumerate();
        shapes.map(|(i, m)| tensor(format!("{kind} {i}"), &[batch, m.channels, m.height, m.width])).collect()
    };
    let (maps, pre_activations) = (maps("map", taps.maps)?, maps("pre-activation", taps.pre_activations)?);
    Ok(Outputs { logits, embedding, maps, pre_activations })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn args(loss: &str, dim: Option<usize>, rows: Option<usize>, negatives: Option<usize>) -> LossArgs {
        let options = Options { batch: 2, classes: 4, steps: 1, threads: None, json: false };
        LossArgs { loss: loss.into(), dim, rows, negatives, options }
    }

    #[test]
    fn sizes_reach_the_loss() {
        let choice = args("crd", Some(8), Some(40), Some(3)).choice().unwrap();
        let LossConfig::Crd(crd) = &choice.config else { panic!("expected crd") };
        assert_eq!((crd.dim, crd.negatives, choice.rows), (8, 3, Some(40)));
        let LossConfig::Cc(cc) = args("cc", Some(8), None, None).choice().unwrap().config else {
            panic!("expected cc")
        };
        assert_eq!(cc.dim, 8);
        let choice = args("crd", None, None, None).choice().unwrap();
        assert_eq!((choice.dim, choice.rows, choice.negatives), (Some(128), Some(50_000), Some(16_384)));
    }

    #[test]
    fn the_memory_update_belongs_to_the_step() {
        let args = args("crd", Some(8), Some(40), Some(3));
        let run = Run { options: &args.options, threads: 1, stop: &AtomicBool::new(false) };
        let mut case = Case::new(&args.choice().unwrap(), &run).unwrap();
        let banks = |case: &Case| {
            let state = case.loss.state().unwrap();
            let banks = state.iter().filter(|(name, _)| name.contains("bank"));
            banks.map(|(_, bank)| bank.to_vec2::<f32>().unwrap()).collect::<Vec<_>>()
        };
        let before = banks(&case);
        case.step(0).unwrap();
        let after = banks(&case);
        let row = case.samples.index[0] as usize;
        assert!(before.len() == 2 && before.iter().zip(&after).all(|(a, b)| a[row] != b[row]));
    }
}
