//! A step of training, in the order of the engine and cut into laps.
//!
//! The engine's own loop cannot be cut from outside: an objective runs both networks and its losses in one call.

use super::batch::{Samples, normal};
use super::clock::Stopwatch;
use super::{Run, candle_error, loss_error, seed};
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use retort_losses::{BuildContext, Context, Distiller, LossConfig, Needs};
use retort_models::ModelConfig;
use retort_nn::{Mode, Network, Optimizer, OptimizerConfig, Outputs, ParamGroup, Params, Taps, no_grad};
use retort_trainers::offline::frozen;
use std::time::Duration;

const OPTIMIZER: OptimizerConfig =
    OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, dampening: 0.0, weight_decay: 5e-4 };

const LEARNING_RATE: f64 = 0.01;

/// What is trained.
pub(super) struct Setup<'a> {
    pub(super) student: &'a str,
    pub(super) teacher: Option<&'a str>,
    pub(super) losses: Vec<LossConfig>,
    pub(super) model: ModelConfig,
}

/// Networks, losses, optimiser and the one batch that every step sees.
pub(super) struct Training {
    student: Box<dyn Network>,
    teacher: Option<Box<dyn Network>>,
    terms: Vec<Box<dyn Distiller>>,
    needs: Needs,
    optimizer: Optimizer,
    images: Tensor,
    samples: Samples,
}

/// How long the parts of a step took.
pub(super) struct Laps {
    pub(super) teacher: Duration,
    pub(super) forward: Duration,
    pub(super) loss: Duration,
    pub(super) backward: Duration,
    /// The optimiser's step and what the losses update after it.
    pub(super) optimizer: Duration,
}

impl Training {
    pub(super) fn new(setup: &Setup<'_>, run: &Run<'_>, rows: usize) -> Result<Self> {
        let params = |name: &str| Params::new(seed().child(name), DType::F32, &Device::Cpu);
        let (student_params, method_params, init_params) = (params("student"), params("method"), params("init"));
        let student = build(setup.student, &setup.model, &student_params)?;
        let [height, width] = setup.model.image;
        let images = normal("images", &[run.options.batch, setup.model.in_channels, height, width])?;
        let samples = Samples::new(run, rows)?;
        let teacher = setup.teacher.map(|name| settled_teacher(name, &setup.model, &params("teacher"))).transpose()?;
        let teacher_norms = match &teacher {
            Some(teacher) => teacher.stage_norms()?,
            None => None,
        };
        let mut terms = Vec::new();
        let mut needs = Needs::default();
        for loss in &setup.losses {
            let context = BuildContext {
                student: student.spec(),
                teacher: teacher.as_deref().map(Network::spec),
                train_labels: &samples.train_labels,
                seed: seed().child("sampler"),
                scope: method_params.root().child(loss.id()),
                init_scope: init_params.root().child(loss.id()),
                teacher_norms: teacher_norms.as_deref(),
            };
            terms.push(loss.build(&context).map_err(loss_error)?);
            needs = needs.or(loss.needs());
        }
        let mut trained = student_params.trainable();
        trained.extend(method_params.trainable().into_iter().map(|(name, var)| (format!("method.{name}"), var)));
        let optimizer = Optimizer::new(OPTIMIZER, vec![ParamGroup::new(trained)])?;
        Ok(Self { student, teacher, terms, needs, optimizer, images, samples })
    }

    /// Forward, loss, backward, update; returns when the step's tensors are freed.
    pub(super) fn step(&mut self, number: usize) -> Result<Laps> {
        let mut watch = Stopwatch::start();
        let taps = self.needs.taps;
        let teacher = match &self.teacher {
            Some(teacher) if self.needs.teacher => {
                let mode = if self.needs.batch_statistics { Mode::BatchStatistics } else { Mode::Eval };
                Some(teacher.forward(&self.images, mode, taps)?)
            }
            _ => None,
        };
        let teacher_lap = watch.lap();
        let student = self.student.forward(&self.images, Mode::Train, taps)?;
        let forward = watch.lap();
        let total = self.loss(&student, teacher.as_ref(), number)?;
        let loss = watch.lap();
        let grads = total.backward().map_err(candle_error)?;
        let backward = watch.lap();
        if number == 0 {
            self.check_gradients(&grads)?;
            watch.lap();
        }
        self.optimizer.step(&grads, LEARNING_RATE)?;
        for term in &mut self.terms {
            term.after_step().map_err(loss_error)?;
        }
        Ok(Laps { teacher: teacher_lap, forward, loss, backward, optimizer: watch.lap() })
    }

    /// The forward pass of an evaluation with the network that is being trained.
    pub(super) fn eval_forward(&self) -> Result<Duration> {
        let mut watch = Stopwatch::start();
        let outputs = no_grad(|| self.student.forward(&self.images, Mode::Eval, Taps::default()))?;
        let lap = watch.lap();
        drop(outputs);
        Ok(lap)
    }

    /// The weighted sum; every term is read and checked, as in training.
    fn loss(&mut self, student: &Outputs, teacher: Option<&Outputs>, number: usize) -> Result<Tensor> {
        let context = Context {
            student,
            teacher,
            labels: &self.samples.labels,
            label_ids: &self.samples.label_ids,
            index: &self.samples.index,
            // Samplers draw by epoch and row: with a constant epoch the same negatives would wait in the cache.
            epoch: number,
        };
        let mut total: Option<Tensor> = None;
        for term in &mut self.terms {
            let term = term.term(&context).map_err(loss_error)?;
            let value = term.value.to_dtype(DType::F64).and_then(|v| v.to_scalar::<f64>()).map_err(candle_error)?;
            if !value.is_finite() {
                let message = format!("step {}: term `{}` is {value}, so this is not training", number + 1, term.name);
                return Err(Error::Failed(message));
            }
            let weighted = term.weighted().map_err(loss_error)?;
            total = Some(match total {
                Some(sum) => (sum + weighted).map_err(candle_error)?,
                None => weighted,
            });
        }
        total.ok_or_else(|| Error::Failed("a step needs at least one loss".into()))
    }

    /// A parameter that no term reaches would make the step cheaper than training is.
    fn check_gradients(&self, grads: &GradStore) -> Result<()> {
        match self.optimizer.without_gradient(&[grads]).first() {
            Some(name) => Err(Error::Failed(format!("parameter `{name}` gets no gradient"))),
            None => Ok(()),
        }
    }
}

/// A network with fresh weights.
pub(super) fn build(name: &str, model: &ModelConfig, params: &Params) -> Result<Box<dyn Network>> {
    retort_models::build(name, model, &params.root()).map_err(Error::request)
}

/// Images and passes that settle a teacher's running statistics: 0.9^20 = 0.12 of the initial ones is left.
/// Two images are the fewest with a variance; their graph must stay smaller than that of the student's batch, because
/// the peak of the memory is measured.
const SETTLE: (usize, usize) = (2, 20);

/// A frozen teacher with fresh weights and running statistics that belong to them.
///
/// With the initial statistics (mean 0, variance 1) a deep network does not normalise in evaluation: its outputs grow
/// with every block, and the student of a regression on them diverges within a few steps.
fn settled_teacher(name: &str, model: &ModelConfig, params: &Params) -> Result<Box<dyn Network>> {
    let network = build(name, model, params)?;
    let (batch, passes) = SETTLE;
    let images = normal("settling images", &[batch, model.in_channels, model.image[0], model.image[1]])?;
    for _ in 0..passes {
        network.forward(&images, Mode::Train, Taps::default())?;
    }
    Ok(frozen(name, model, params.snapshot()?, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Options;
    use std::sync::atomic::AtomicBool;

    const MODEL: ModelConfig = ModelConfig { in_channels: 1, image: [8, 8], classes: 4 };

    fn training(losses: Vec<LossConfig>) -> Training {
        let options = Options { batch: 2, classes: 4, steps: 1, threads: None, json: false };
        let run = Run { options: &options, threads: 1, stop: &AtomicBool::new(false) };
        let setup = Setup { student: "resnet8", teacher: Some("resnet14"), losses, model: MODEL };
        Training::new(&setup, &run, 40).unwrap()
    }

    fn loss(id: &str) -> LossConfig {
        let config = LossConfig::defaults().into_iter().find(|c| c.id() == id).unwrap();
        match config {
            LossConfig::Crd(mut crd) => {
                crd.negatives = 6;
                LossConfig::Crd(crd)
            }
            other => other,
        }
    }

    fn logits(network: &dyn Network, images: &Tensor) -> Vec<Vec<f32>> {
        network.forward(images, Mode::Eval, Taps::default()).unwrap().logits.to_vec2().unwrap()
    }

    #[test]
    fn a_step_trains_the_student_and_not_the_teacher() {
        let mut training = training(vec![loss("ce"), loss("kd")]);
        let both = |training: &Training| {
            let teacher = training.teacher.as_deref().unwrap();
            [logits(teacher, &training.images), logits(training.student.as_ref(), &training.images)]
        };
        let before = both(&training);
        training.step(0).unwrap();
        let after = both(&training);
        assert_eq!(before[0], after[0]);
        assert_ne!(before[1], after[1]);
    }

    #[test]
    fn a_step_updates_heads_and_banks() {
        let mut training = training(vec![loss("ce"), loss("crd")]);
        let bank = |training: &Training| {
            let state = training.terms[1].state().unwrap();
            let (_, bank) = state.iter().find(|(name, _)| name.contains("student")).expect("crd has banks");
            bank.to_vec2::<f32>().unwrap()
        };
        let row = training.samples.index[0] as usize;
        let before = bank(&training);
        training.step(0).unwrap();
        let after = bank(&training);
        assert_ne!(before[row], after[row]);
        // Momentum of the heads and of the student: everything trainable took a step.
        let state = training.optimizer.state().unwrap();
        let steps = |prefix: &str| {
            let taken = state.iter().filter(|(name, _)| name.starts_with(prefix) && name.ends_with(".steps"));
            taken.map(|(_, steps)| steps.to_vec1::<i64>().unwrap()[0]).collect::<Vec<_>>()
        };
        assert_eq!(steps("method.crd.embed_"), [1; 4]);
        assert!(steps("").len() > 4 && steps("").iter().all(|&steps| steps == 1));
    }

    #[test]
    fn a_settled_teacher_is_tame() {
        let images = normal("images", &[4, 1, 8, 8]).unwrap();
        let largest = |network: &dyn Network| {
            logits(network, &images).into_iter().flatten().fold(0.0f32, |max, x| max.max(x.abs()))
        };
        let params = || Params::new(seed().child("teacher"), DType::F32, &Device::Cpu);
        let fresh = params();
        build("resnet56", &MODEL, &fresh).unwrap();
        let fresh = frozen("resnet56", &MODEL, fresh.snapshot().unwrap(), &Device::Cpu).unwrap();
        let settled = settled_teacher("resnet56", &MODEL, &params()).unwrap();
        let (fresh, settled) = (largest(fresh.as_ref()), largest(settled.as_ref()));
        // 27 blocks: without statistics of its own the network multiplies by about the square root of 2 in each.
        assert!(settled < 20.0 && fresh > 20.0 * settled, "{settled} {fresh}");
    }
}
