//! Runs what a plan lacks, side by side, and goes on where it was cut off.

use crate::plan::{Plan, RunSpec, Splits};
use crate::progress::Ui;
use crate::record::{Machine, Record, weights_digest};
use crate::table::Records;
use crate::{Error, Result};
use candle_core::Device;
use rayon::ThreadPoolBuilder;
use retort_datasets::ViewConfig;
use retort_models::ModelConfig;
use retort_nn::{Checkpoint, Decay, Network, ScheduleConfig, Seed};
use retort_trainers::engine::{BatchPlan, CheckpointPolicy, Identity, Observer, Phase, Trainer};
use retort_trainers::offline::{Offline, OfflineConfig, frozen, student_weights};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Images in a batch of the evaluation; it changes no number.
const EVAL_BATCH: usize = 250;

/// A long epoch is saved at least this often.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// The folder in which runs live: `records`, `weights`, `checkpoints`, all named by run id.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout under this folder.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Finished runs, a JSON-lines file each.
    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.root.join("records")
    }

    /// Final weights of a run.
    #[must_use]
    pub fn weights(&self, id: &str) -> PathBuf {
        self.root.join("weights").join(format!("{id}.safetensors"))
    }

    /// Distances and bounds between the features of a finished run and its teacher's.
    #[must_use]
    pub fn features(&self, id: &str) -> PathBuf {
        self.root.join("features").join(format!("{id}.json"))
    }

    /// State of a run that is not finished.
    #[must_use]
    pub fn checkpoint(&self, id: &str) -> PathBuf {
        self.root.join("checkpoints").join(format!("{id}.safetensors"))
    }

    /// Where the table of a profile is left.
    #[must_use]
    pub fn table(&self, table: &str, profile: &str) -> PathBuf {
        self.root.join("tables").join(format!("{table}-{profile}"))
    }

    /// Removes what a run has left, so that it is run again.
    pub(crate) fn forget(&self, id: &str) -> Result<()> {
        for path in [Record::path(&self.records(), id), self.weights(id), self.checkpoint(id), self.features(id)] {
            if path.exists() {
                std::fs::remove_file(&path).map_err(|e| Error::file(&path, format!("cannot remove: {e}")))?;
            }
        }
        Ok(())
    }

    /// Copies a finished run from another layout, if it is finished there and not here.
    pub(crate) fn borrow(&self, other: &Self, id: &str) -> Result<()> {
        if self.finished(id)?.is_some() || other.finished(id)?.is_none() {
            return Ok(());
        }
        // Weights before the record: a record says that the run is finished.
        let pairs = [
            (other.weights(id), self.weights(id)),
            (Record::path(&other.records(), id), Record::path(&self.records(), id)),
        ];
        for (from, to) in pairs {
            let bytes = std::fs::read(&from).map_err(|e| Error::file(&from, format!("cannot read: {e}")))?;
            retort_nn::write_atomically(&to, &bytes)?;
        }
        Ok(())
    }

    /// The record and weights of a finished run, if both are there.
    fn finished(&self, id: &str) -> Result<Option<Record>> {
        let path = Record::path(&self.records(), id);
        if !path.exists() || !self.weights(id).exists() {
            return Ok(None);
        }
        Record::load(&path).map(Some)
    }
}

/// How much of the machine to use.
#[derive(Clone, Copy, Debug)]
pub struct Resources {
    /// Runs side by side; two runs with one thread each do more work than one with two threads.
    pub jobs: usize,
    /// Threads over all runs.
    pub threads: usize,
}

impl Default for Resources {
    /// As many runs as there are cores.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads =
            std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0).unwrap_or(cores);
        Self { jobs: threads, threads }
    }
}

/// Runs specifications.
pub struct Runner<'a> {
    /// Where files go.
    pub layout: Layout,
    /// The rows that all specifications are about.
    pub splits: &'a Splits,
    /// How much of the machine to use.
    pub resources: Resources,
    /// Raised by Ctrl-C.
    pub stop: &'a AtomicBool,
}

/// What became of a plan.
#[derive(Debug)]
pub struct Outcome {
    /// Finished runs by id.
    pub records: Records,
    /// Id and reason of each run that failed.
    pub failures: Vec<(String, String)>,
}

impl Runner<'_> {
    /// Runs teachers, then students; what is finished already is not run again.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`], or a request that cannot be carried out (a checkpoint of another shape, an unreadable file).
    /// A run that fails on its own account does not stop the others.
    pub fn run(&self, plan: &Plan) -> Result<Outcome> {
        let labelled = |spec: &RunSpec, label: String| (spec.id(), label, spec.clone());
        let teachers: BTreeMap<_, _> = plan
            .teachers
            .iter()
            .map(|t| labelled(t, format!("teacher {}", t.model)))
            .map(|item| (item.0.clone(), item))
            .collect();
        let pair = |index: usize| {
            if plan.teachers.len() > 1 { format!("{} ", plan.teachers[index].model) } else { String::new() }
        };
        let mut seen = Vec::new();
        let mut students = Vec::new();
        for run in &plan.runs {
            let item = labelled(&run.spec, format!("{}{}, seed {}", pair(run.pair), run.method, run.seed));
            if !seen.contains(&item.0) {
                seen.push(item.0.clone());
                students.push(item);
            }
        }
        let ui = Ui::new(teachers.len() + students.len());
        let mut outcome = Outcome { records: Records::new(), failures: Vec::new() };
        let result = self
            .batch(teachers.into_values().collect(), &ui, &mut outcome)
            .and_then(|()| self.batch(students, &ui, &mut outcome));
        ui.clear();
        result.map(|()| outcome)
    }

    /// Runs one specification (its teacher first, if it is not finished), with all threads.
    ///
    /// # Errors
    ///
    /// As [`Runner::run`], and [`Error::Failed`] if the run fails.
    pub fn one(&self, spec: &RunSpec) -> Result<Record> {
        let ui = Ui::new(1 + usize::from(spec.teacher.is_some()));
        let mut outcome = Outcome { records: Records::new(), failures: Vec::new() };
        let queue = |spec: &RunSpec| vec![(spec.id(), format!("{} {}", spec.model, spec.id()), spec.clone())];
        if let Some(teacher) = &spec.teacher {
            self.batch(queue(teacher), &ui, &mut outcome)?;
        }
        self.batch(queue(spec), &ui, &mut outcome)?;
        ui.clear();
        match outcome.failures.first() {
            Some((id, reason)) => Err(Error::Failed(format!("run {id}: {reason}"))),
            None => outcome
                .records
                .remove(&spec.id())
                .ok_or_else(|| Error::Failed(format!("run {} left no record", spec.id()))),
        }
    }

    /// Runs a queue with `jobs` workers of equal numbers of threads.
    fn batch(&self, queue: Vec<(String, String, RunSpec)>, ui: &Ui, outcome: &mut Outcome) -> Result<()> {
        let mut due = Vec::new();
        for (id, label, spec) in queue {
            match self.layout.finished(&id)? {
                Some(record) => {
                    ui.finished();
                    outcome.records.insert(id, record);
                }
                None => due.push((id, label, spec)),
            }
        }
        let jobs = self.resources.jobs.clamp(1, due.len().max(1));
        let threads = (self.resources.threads / jobs).max(1);
        let (next, fatal, shared) = (AtomicUsize::new(0), Mutex::new(None), Mutex::new(&mut *outcome));
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while let Some((id, label, spec)) = due.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = self.execute(spec, label, ui, threads, jobs);
                        ui.finished();
                        match result {
                            Ok(record) => drop(lock(&shared).records.insert(id.clone(), record)),
                            Err(Error::Failed(reason)) => {
                                ui.say(&format!("{label} FAILED: {reason}"));
                                lock(&shared).failures.push((id.clone(), reason));
                            }
                            Err(error) => {
                                // Interrupted, or nothing that another run could do better: let the others save themselves.
                                self.stop.store(true, Ordering::Relaxed);
                                let mut slot = lock(&fatal);
                                if slot.is_none() || matches!(*slot, Some(Error::Interrupted)) {
                                    *slot = Some(error);
                                }
                                return;
                            }
                        }
                    }
                });
            }
        });
        match fatal.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn execute(&self, spec: &RunSpec, label: &str, ui: &Ui, threads: usize, side_by_side: usize) -> Result<Record> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .stack_size(16 << 20) // candle walks its graph recursively
            .build()
            .map_err(|e| Error::Failed(format!("cannot start {threads} threads: {e}")))?;
        let mut progress = ui.run(label);
        let record = pool.install(|| self.train(spec, &mut progress, threads, side_by_side))?;
        drop(progress);
        let figures = &record.result;
        let agreement = figures.agreement.map(|a| format!(", agreement {:.2} %", 100.0 * a)).unwrap_or_default();
        ui.say(&format!("{label} done: test accuracy {:.2} %{agreement}", 100.0 * figures.accuracy));
        Ok(record)
    }

    fn train(
        &self,
        spec: &RunSpec,
        observer: &mut dyn Observer,
        threads: usize,
        side_by_side: usize,
    ) -> Result<Record> {
        let id = spec.id();
        let model = self.splits.model();
        let teacher = spec.teacher.as_deref().map(|teacher| self.teacher(teacher, &model)).transpose()?;
        let seed = Seed::root(spec.seed);
        let objective = Offline::new(&OfflineConfig {
            student: &spec.model,
            model,
            losses: &spec.losses,
            teacher,
            train_labels: self.splits.train.labels(),
            seed,
            device: Device::Cpu,
        })?;
        let phase = |name: String, epochs: usize, schedule: ScheduleConfig, objective: Offline| Phase {
            name,
            epochs,
            plan: BatchPlan {
                batch_size: spec.batch_size,
                sampling: spec.batches,
                views: vec![ViewConfig::new(spec.augmentation.clone())],
            },
            transform: Box::new(Identity),
            optimizer: spec.optimizer.clone(),
            schedule,
            objective: Box::new(objective),
        };
        let constant = |lr: Option<f64>| ScheduleConfig {
            lr: lr.unwrap_or(spec.schedule.lr),
            warmup_epochs: 0,
            decay: Decay::Constant,
        };
        let init = objective.init_phases()?.into_iter();
        let mut phases: Vec<Phase> =
            init.map(|(name, init, objective)| phase(name, init.epochs, constant(init.lr), objective)).collect();
        phases.push(phase("train".into(), spec.epochs, spec.schedule.clone(), objective));
        let checkpoint = self.layout.checkpoint(&id);
        let trainer = Trainer {
            train: &self.splits.train,
            test: &self.splits.test,
            seed,
            device: Device::Cpu,
            eval_batch_size: EVAL_BATCH,
            evaluate_every: spec.evaluate_every,
            bounds: spec.bounds,
            checkpoint: Some(CheckpointPolicy { path: checkpoint.clone(), every: SAVE_EVERY, fingerprint: id.clone() }),
            stop: self.stop,
        };
        let summary = trainer.run(&mut phases, observer)?;
        let weights = student_weights(phases[phases.len() - 1].objective.as_ref())?;
        let machine = Machine::here(summary.seconds.clone(), threads, side_by_side);
        let record = Record::new(spec, summary, &weights, machine)?;
        // Weights before the record: a record says that the run is finished.
        let meta = serde_json::json!({ "run": id, "model": spec.model });
        Checkpoint { tensors: weights, meta }.save(&self.layout.weights(&id))?;
        record.save(&self.layout.records())?;
        // The checkpoint is superseded; if it cannot be removed it only takes room.
        drop(std::fs::remove_file(checkpoint));
        Ok(record)
    }

    /// The frozen network of a finished run; its weights must be those that the record speaks of.
    fn teacher(&self, spec: &RunSpec, model: &ModelConfig) -> Result<Arc<dyn Network>> {
        let (id, path) = (spec.id(), self.layout.weights(&spec.id()));
        let record = self.layout.finished(&id)?;
        let record = record.ok_or_else(|| Error::Failed(format!("the teacher's run {id} is not finished")))?;
        let weights = Checkpoint::load(&path)?.tensors;
        let network = frozen(&spec.model, model, weights.clone(), &Device::Cpu).map_err(|e| Error::file(&path, e))?;
        let found = weights_digest(&weights)?;
        if found != record.result.weights_sha256 {
            let message =
                format!("the teacher's weights have digest {found}, its record says {}", record.result.weights_sha256);
            return Err(Error::file(&path, message));
        }
        Ok(Arc::from(network))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
