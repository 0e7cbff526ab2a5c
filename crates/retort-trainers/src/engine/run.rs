//! The loop.

use super::evaluate::{TeacherOutputs, evaluate};
use super::progress::{Progress, Running};
use super::{Observer, Phase, Step, StepOutput, StepReport, Summary};
use crate::state::under;
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Tensor};
use retort_datasets::{Batch, Dataset, Loader, LoaderConfig, Sampling, ViewConfig};
use retort_losses::Term;
use retort_nn::{Checkpoint, Optimizer, Seed};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where and how often a run saves itself.
#[derive(Clone, Debug)]
pub struct CheckpointPolicy {
    /// The file; it is replaced atomically.
    pub path: PathBuf,
    /// At least this often, also in the middle of an epoch, and always at the end of one.
    pub every: Duration,
    /// What run this is (a hash of its specification); a checkpoint of another run is refused.
    pub fingerprint: String,
}

/// Runs phases on a training set and measures on a test set.
pub struct Trainer<'a> {
    /// Training samples.
    pub train: &'a Dataset,
    /// Test samples.
    pub test: &'a Dataset,
    /// Root of all randomness of the loop.
    pub seed: Seed,
    /// Where tensors live.
    pub device: Device,
    /// What of the test images networks see, without augmentation: students the first view, teachers the second one, where
    /// there is one.
    pub test_views: Vec<ViewConfig>,
    /// Images in a batch of the evaluation.
    pub eval_batch_size: usize,
    /// Evaluate every so many epochs, and always after the last one of a phase.
    pub evaluate_every: usize,
    /// Whether an evaluation computes [`super::RiskBounds`] too, which costs an assignment for every class.
    pub bounds: bool,
    /// Saves, if wanted.
    pub checkpoint: Option<CheckpointPolicy>,
    /// Raised from outside (Ctrl-C): the run saves itself and returns [`Error::Interrupted`].
    pub stop: &'a AtomicBool,
}

impl Trainer<'_> {
    /// Runs all phases, from the checkpoint if there is one, to the end.
    ///
    /// The same phases, data and seed give the same bits, whatever the number of threads and however often the run
    /// was cut off in between. The objectives hold the trained networks afterwards; the checkpoint stays until the caller deletes it.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] when the stop flag was raised; a checkpoint of another run or shape; a term that is not finite;
    /// a trainable parameter that no term reaches, unless a term has weight 0; the optimiser `dot` in the last phase
    /// without terms of both kinds.
    pub fn run(&self, phases: &mut [Phase], observer: &mut dyn Observer) -> Result<Summary> {
        if self.eval_batch_size == 0 || self.evaluate_every == 0 {
            let message = "`eval_batch_size` and `evaluate_every` must be at least 1, found 0".to_string();
            return Err(Error::Config { what: "trainer".into(), message });
        }
        let test = self.test_loader()?;
        let mut saved = self.saved()?;
        let mut progress = match &saved {
            Some(checkpoint) => self.progress_of(checkpoint)?,
            None => Progress::default(),
        };
        let last = phases.len().saturating_sub(1);
        for (number, phase) in phases.iter_mut().enumerate().skip(progress.phase) {
            let mut state = PhaseState::new(phase, self.train, self.seed)?;
            state.last = number == last;
            if let Some(checkpoint) = saved.take() {
                state.load(&checkpoint).map_err(|e| self.checkpoint_error(e))?;
            }
            self.phase(&mut state, &mut progress, &test, observer)?;
            progress.phase += 1;
            progress.epoch = 0;
        }
        Ok(progress.summary)
    }

    /// Every row once, in stored order.
    fn test_loader(&self) -> Result<Loader> {
        let config = LoaderConfig {
            batch_size: self.eval_batch_size,
            sampling: Sampling::Sequential,
            drop_last: false,
            views: self.test_views.clone(),
            seed: 0,
        };
        Ok(Loader::new(self.test.clone(), config)?)
    }

    fn phase(
        &self,
        state: &mut PhaseState<'_>,
        progress: &mut Progress,
        test: &Loader,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let epochs = state.phase.epochs;
        let mut teachers = TeacherOutputs::default();
        let mut clock = Clock::start();
        while progress.epoch < epochs {
            let epoch = progress.epoch;
            for batch in state.loader.epoch_from(epoch as u64, progress.running.steps) {
                if self.stop.load(Ordering::Relaxed) {
                    self.save(state, progress)?;
                    return Err(Error::Interrupted);
                }
                let before = Instant::now();
                state.step(batch?, epoch, &mut progress.running, self.seed, &self.device)?;
                progress.running.seconds += before.elapsed().as_secs_f64();
                clock.steps += 1;
                observer.on_step(&clock.report(state, epoch, &progress.running));
                if self.checkpoint.as_ref().is_some_and(|policy| clock.saved.elapsed() >= policy.every) {
                    self.save(state, progress)?;
                    clock.saved = Instant::now();
                }
            }
            state.phase.objective.after_epoch(epoch)?;
            let mut evaluations = BTreeMap::new();
            if (epoch + 1).is_multiple_of(self.evaluate_every) || epoch + 1 == epochs {
                for item in state.phase.objective.evaluated() {
                    let found = evaluate(&item, test, &self.device, self.bounds, &mut teachers)?;
                    evaluations.insert(item.name.to_string(), found);
                }
            }
            let running = std::mem::take(&mut progress.running);
            let record = running.record(&state.phase.name, epoch, evaluations);
            observer.on_epoch(&record, epochs);
            progress.summary.epochs.push(record);
            progress.summary.seconds.push(running.seconds);
            progress.epoch += 1;
            self.save(state, progress)?;
            clock.saved = Instant::now();
        }
        Ok(())
    }

    fn save(&self, state: &PhaseState<'_>, progress: &Progress) -> Result<()> {
        let Some(policy) = &self.checkpoint else { return Ok(()) };
        let mut tensors = under(OBJECTIVE, state.phase.objective.state()?);
        for (turn, optimizer) in state.optimizers.iter().enumerate() {
            tensors.extend(under(&of_turn(turn), optimizer.state()?));
        }
        let meta = serde_json::json!({ "fingerprint": policy.fingerprint, "progress": progress });
        Ok(Checkpoint { tensors, meta }.save(&policy.path)?)
    }

    fn saved(&self) -> Result<Option<Checkpoint>> {
        match &self.checkpoint {
            Some(policy) if policy.path.exists() => {
                let damaged = |e: retort_nn::Error| self.checkpoint_error(e.into());
                Checkpoint::load(&policy.path).map(Some).map_err(damaged)
            }
            _ => Ok(None),
        }
    }

    fn progress_of(&self, checkpoint: &Checkpoint) -> Result<Progress> {
        let expected = self.checkpoint.as_ref().map(|policy| policy.fingerprint.as_str()).unwrap_or_default();
        let found = checkpoint.meta["fingerprint"].as_str().unwrap_or("none");
        if found != expected {
            let message = format!("belongs to another run: expected fingerprint {expected}, found {found}");
            return Err(self.checkpoint_error(Error::Config { what: "checkpoint".into(), message }));
        }
        serde_json::from_value(checkpoint.meta["progress"].clone())
            .map_err(|e| self.checkpoint_error(Error::Config { what: "progress".into(), message: e.to_string() }))
    }

    fn checkpoint_error(&self, error: Error) -> Error {
        let path = self.checkpoint.as_ref().map(|policy| policy.path.display().to_string()).unwrap_or_default();
        let message = format!("{error}; delete the file to start this run anew");
        Error::Checkpoint { path, message }
    }
}

const OBJECTIVE: &str = "objective";

/// What the optimiser of a turn is called in a checkpoint.
fn of_turn(turn: usize) -> String {
    if turn == 0 { "optimizer".into() } else { format!("optimizer{turn}") }
}

/// Steps and saves of this process, for the estimate of the time left.
struct Clock {
    start: Instant,
    saved: Instant,
    steps: usize,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now(), saved: Instant::now(), steps: 0 }
    }

    fn report<'a>(&self, state: &'a PhaseState<'_>, epoch: usize, running: &Running) -> StepReport<'a> {
        let per_epoch = state.loader.batches_per_epoch();
        let (done, total) = (epoch * per_epoch + running.steps, state.phase.epochs * per_epoch);
        let per_step = self.start.elapsed().as_secs_f64() / self.steps.max(1) as f64;
        StepReport {
            phase: &state.phase.name,
            epoch: epoch + 1,
            epochs: state.phase.epochs,
            done,
            total,
            loss: running.mean_loss(),
            accuracy: running.accuracy(),
            left: Duration::from_secs_f64(per_step * total.saturating_sub(done) as f64),
        }
    }
}

/// A phase with the things that it needs while it runs.
struct PhaseState<'a> {
    phase: &'a mut Phase,
    loader: Loader,
    /// One for each turn.
    optimizers: Vec<Optimizer>,
    /// Whether it is what the run is for.
    last: bool,
}

impl<'a> PhaseState<'a> {
    fn new(phase: &'a mut Phase, train: &Dataset, seed: Seed) -> Result<Self> {
        phase.schedule.validate()?;
        let loader = phase.plan.loader(train, seed.child("data").child(&phase.name))?;
        let optimizer = |groups| Ok(Optimizer::new(phase.optimizer.clone(), groups)?);
        let groups = phase.objective.groups();
        let optimizers = match phase.objective.turns() {
            1 => vec![optimizer(groups)?],
            turns if turns == groups.len() => {
                groups.into_iter().map(|group| optimizer(vec![group])).collect::<Result<_>>()?
            }
            turns => {
                let message = format!("{turns} turns need as many groups of parameters, found {}", groups.len());
                return Err(Error::Config { what: "objective".into(), message });
            }
        };
        Ok(Self { phase, loader, optimizers, last: false })
    }

    fn load(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.phase.objective.load_state(&checkpoint.part(OBJECTIVE))?;
        let mut optimizers = self.optimizers.iter_mut().enumerate();
        optimizers.try_for_each(|(turn, optimizer)| Ok(optimizer.load_state(&checkpoint.part(&of_turn(turn)))?))
    }

    fn step(&mut self, batch: Batch, epoch: usize, running: &mut Running, seed: Seed, device: &Device) -> Result<()> {
        let per_epoch = self.loader.batches_per_epoch();
        let number = epoch * per_epoch + running.steps;
        let mut rng = seed.child("transform").child(&self.phase.name).child(&number.to_string()).rng();
        let batch = self.phase.transform.apply(batch.to_device(device)?, &mut rng)?;
        running.lr = self.phase.schedule.rate(number, per_epoch, self.phase.epochs);
        for turn in 0..self.optimizers.len() {
            self.turn(&Step { batch: &batch, epoch, step: number, lr: running.lr, turn }, running)?;
        }
        running.samples += batch.len();
        self.phase.objective.after_step()?;
        running.steps += 1;
        Ok(())
    }

    fn turn(&mut self, step: &Step<'_>, running: &mut Running) -> Result<()> {
        let output = self.phase.objective.step(step)?;
        let optimizer = &self.optimizers[step.turn];
        let [task, method] = self.account(&output, step, optimizer.splits(), running)?;
        // A phase before it may have one kind of term; its steps are those of SGD with momentum then.
        if step.step == 0 && self.last && optimizer.splits() && task.is_some() != method.is_some() {
            let names: Vec<&str> = output.terms.iter().map(|term| term.name).collect();
            let message = format!(
                "`dot` keeps the gradients of the task's terms (`ce`, `label-smoothing`) and of a method's apart and needs \
                 both; found {names:?} alone"
            );
            return Err(Error::Config { what: "optimizer".into(), message });
        }
        let backward = |sum: Option<Tensor>| sum.map(|sum| sum.backward()).transpose();
        let grads = [backward(task)?, backward(method)?];
        let present: Vec<&GradStore> = grads.iter().flatten().collect();
        if step.step == 0 {
            self.check_gradients(&optimizer.without_gradient(&present), &output.terms)?;
        }
        Ok(self.optimizers[step.turn].step_split([grads[0].as_ref(), grads[1].as_ref()], step.lr)?)
    }

    /// Sums the terms, refusing any that is not finite, and adds them to the epoch's means. The sums of the task's and of
    /// the methods' terms are apart where the optimiser wants two gradients; otherwise the first one is the whole sum.
    fn account(
        &self,
        output: &StepOutput,
        &Step { batch, epoch, .. }: &Step<'_>,
        splits: bool,
        running: &mut Running,
    ) -> Result<[Option<Tensor>; 2]> {
        let samples = batch.len();
        let mut totals: [Option<Tensor>; 2] = [None, None];
        let mut loss = 0.0;
        for term in &output.terms {
            let value = scalar(&term.value)?;
            let weighted = term.weighted()?;
            // A weight may overflow what the loss itself does not.
            let summand = scalar(&weighted)?;
            if !(value.is_finite() && summand.is_finite()) {
                return Err(self.not_finite(term, [value, summand], batch, epoch, running));
            }
            loss += term.weight * value;
            *running.terms.entry(term.name.to_string()).or_default() += value * samples as f64;
            for (part, value) in &term.parts {
                let found = scalar(value)?;
                let name = format!("{}.{part}", term.name);
                if !found.is_finite() {
                    // A record could not be read back.
                    return Err(self.not_finite_part(name, found, batch, epoch, running));
                }
                *running.terms.entry(name).or_default() += found * samples as f64;
            }
            let total = &mut totals[usize::from(splits && !term.is_task())];
            *total = Some(match total.take() {
                Some(sum) => (sum + weighted)?,
                None => weighted,
            });
        }
        running.loss += loss * samples as f64;
        if let Some(logits) = &output.logits {
            let rows = logits.dim(0)?;
            running.predicted += rows;
            running.correct += correct(logits, &batch.labels()?.narrow(0, 0, rows)?)?;
        }
        if totals.iter().all(Option::is_none) {
            let message = "a step needs at least one loss term".into();
            return Err(Error::Config { what: "objective".into(), message });
        }
        Ok(totals)
    }

    /// The term that is not finite, or whose weight makes it so.
    fn not_finite(
        &self,
        term: &Term,
        [value, summand]: [f64; 2],
        batch: &Batch,
        epoch: usize,
        running: &Running,
    ) -> Error {
        let name = term.name.to_string();
        let (term, value) = match value.is_finite() {
            true => (format!("{name}` = {value} times its weight `{}", term.weight), summand),
            false => (name, value),
        };
        self.not_finite_part(term, value, batch, epoch, running)
    }

    fn not_finite_part(&self, term: String, value: f64, batch: &Batch, epoch: usize, running: &Running) -> Error {
        let rows: Vec<String> = batch.index.iter().take(8).map(ToString::to_string).collect();
        let samples = format!("{}{}", rows.join(", "), if batch.index.len() > 8 { ", ..." } else { "" });
        let phase = self.phase.name.clone();
        Error::NotFinite { phase, epoch: epoch + 1, step: running.steps + 1, term, value, samples }
    }

    fn check_gradients(&self, without: &[&str], terms: &[Term]) -> Result<()> {
        let Some(parameter) = without.first() else { return Ok(()) };
        // A term with weight 0 reaches nothing, as was asked for.
        if terms.iter().any(|term| term.weight == 0.0) {
            return Ok(());
        }
        let names: Vec<&str> = terms.iter().map(|term| term.name).collect();
        let (phase, parameter) = (self.phase.name.clone(), (*parameter).to_string());
        Err(Error::NoGradient { phase, parameter, terms: format!("{names:?}") })
    }
}

fn scalar(value: &Tensor) -> Result<f64> {
    Ok(value.detach().to_dtype(DType::F64)?.flatten_all()?.get(0)?.to_scalar()?)
}

fn correct(logits: &Tensor, labels: &Tensor) -> Result<usize> {
    let hits = logits.detach().argmax(D::Minus1)?.eq(&labels.to_dtype(DType::U32)?)?;
    Ok(hits.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? as usize)
}
