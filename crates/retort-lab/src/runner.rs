//! Runs what a plan lacks, side by side, and goes on where it was cut off.

use crate::measures::beside_teachers;
use crate::plan::{NUMERICS, Plan, ProbeSpec, RunSpec};
use crate::progress::Ui;
use crate::record::{Machine, Record, weights_digest};
use crate::run::{RunData, phases, test_views, trained};
use crate::splits::DataSets;
use crate::table::Records;
use crate::{Error, Result};
use candle_core::Device;
use rayon::ThreadPoolBuilder;
use retort_datasets::ViewConfig;
use retort_nn::{Checkpoint, Seed};
use retort_trainers::Trained;
use retort_trainers::engine::{CheckpointPolicy, Observer, Trainer};
use retort_trainers::probe::{ProbeData, ProbeReport, probe};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
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

    /// What teachers said about training rows, for runs that share them.
    #[must_use]
    pub fn teacher_outputs(&self) -> PathBuf {
        // What changes the numbers of a pass without changing weights or rows.
        let program = format!("numerics-{NUMERICS}-{:?}", retort_kernels::instruction_set()).to_lowercase();
        self.root.join("teacher-outputs").join(program)
    }

    /// Removes what teachers said.
    pub(crate) fn forget_teacher_outputs(&self) -> Result<()> {
        let folder = self.root.join("teacher-outputs");
        match folder.is_dir() {
            true => std::fs::remove_dir_all(&folder).map_err(|e| Error::file(&folder, format!("cannot remove: {e}"))),
            false => Ok(()),
        }
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
    /// The rows that the specifications are about.
    pub data: &'a DataSets,
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
        let models: BTreeMap<usize, &str> =
            plan.teachers.iter().map(|teacher| (teacher.pair, teacher.spec.model.as_str())).collect();
        let pair = |index: usize| match models.get(&index) {
            Some(model) if models.len() > 1 => format!("{model} "),
            _ => String::new(),
        };
        let teachers = plan.teachers.iter().map(|run| (&run.spec, format!("{} {}", run.method, run.spec.model)));
        let students = plan.runs.iter().map(|run| {
            let label = format!("{}{}, seed {}", pair(run.pair), run.method, run.seed);
            (&run.spec, label)
        });
        self.all(teachers.chain(students).collect())
    }

    /// Runs one specification (its teachers first, if they are not finished), with all threads.
    ///
    /// # Errors
    ///
    /// As [`Runner::run`], and [`Error::Failed`] if the run fails.
    pub fn one(&self, spec: &RunSpec) -> Result<Record> {
        let label = |spec: &RunSpec| format!("{} {}", spec.model, spec.id());
        let mut outcome = self.all(spec.with_teachers().into_iter().map(|spec| (spec, label(spec))).collect())?;
        match outcome.failures.first() {
            Some((id, reason)) => Err(Error::Failed(format!("run {id}: {reason}"))),
            None => outcome
                .records
                .remove(&spec.id())
                .ok_or_else(|| Error::Failed(format!("run {} left no record", spec.id()))),
        }
    }

    /// Runs specifications, each once, those without teachers first.
    fn all(&self, wanted: Vec<(&RunSpec, String)>) -> Result<Outcome> {
        let mut due: Vec<(String, String, RunSpec)> = Vec::new();
        for (spec, label) in wanted {
            let id = spec.id();
            if !due.iter().any(|(known, ..)| *known == id) {
                due.push((id, label, spec.clone()));
            }
        }
        let ui = Ui::new(due.len());
        let mut outcome = Outcome { records: Records::new(), failures: Vec::new() };
        for depth in 0..=due.iter().map(|(.., spec)| spec.depth()).max().unwrap_or(0) {
            let level = due.iter().filter(|(.., spec)| spec.depth() == depth).cloned().collect();
            self.batch(level, &ui, &mut outcome)?;
        }
        ui.clear();
        Ok(outcome)
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
        let data = RunData::of(spec, self.data)?;
        let mut teachers = spec.teachers().map(|teacher| self.trained(teacher)).collect::<Result<Vec<_>>>()?;
        for (trained, teacher) in teachers.iter_mut().zip(spec.teachers()) {
            // Agreement of classifiers means nothing between other classes, nor beside a probe's accuracy.
            let rows = |spec: &RunSpec| Ok::<_, Error>(self.data.find(&spec.data)?.train.class_names().to_vec());
            trained.classifies &= spec.probe.is_none() && rows(spec)? == rows(teacher)?;
        }
        let mut phases = phases(spec, &data, &teachers, Some(self.layout.teacher_outputs()))?;
        let checkpoint = self.layout.checkpoint(&id);
        let trainer = Trainer {
            train: &data.train,
            test: &data.test,
            seed: Seed::root(spec.seed),
            device: Device::Cpu,
            test_views: test_views(spec),
            eval_batch_size: EVAL_BATCH,
            evaluate_every: spec.evaluate_every.max(1),
            bounds: spec.bounds,
            checkpoint: Some(CheckpointPolicy { path: checkpoint.clone(), every: SAVE_EVERY, fingerprint: id.clone() }),
            stop: self.stop,
        };
        let summary = trainer.run(&mut phases, observer)?;
        let last = phases.last().ok_or_else(|| Error::Failed("a system without a phase".into()))?;
        let weights = last.objective.weights()?;
        let student = trained(spec, &data, weights.clone());
        let probed = spec.probe.as_ref().map(|probe| self.probed(spec, probe, &student)).transpose()?;
        let measures = beside_teachers(spec, &data, &student, &teachers)?;
        let machine = Machine::here(summary.seconds.clone(), threads, side_by_side);
        let mut record = Record::new(spec, summary, probed.as_ref(), &weights, machine)?;
        record.result.measures.extend(measures);
        // Weights before the record: a record says that the run is finished.
        let meta = serde_json::json!({ "run": id, "model": spec.model });
        Checkpoint { tensors: weights, meta }.save(&self.layout.weights(&id))?;
        record.save(&self.layout.records())?;
        // The checkpoint is superseded; if it cannot be removed it only takes room.
        drop(std::fs::remove_file(checkpoint));
        Ok(record)
    }

    /// Judges the network of a finished run.
    fn probed(&self, spec: &RunSpec, settings: &ProbeSpec, student: &Trained) -> Result<ProbeReport> {
        let rows = self.data.find(&settings.data)?;
        let view = ViewConfig { modality: spec.modality, ..ViewConfig::default() };
        let rows = ProbeData { train: &rows.train, test: &rows.test, view };
        let seed = Seed::root(spec.seed).child("probe");
        Ok(probe(student.network(&Device::Cpu)?.as_ref(), rows, &settings.config, seed, &Device::Cpu)?)
    }

    /// What a finished run left; its weights must be those that the record speaks of.
    fn trained(&self, spec: &RunSpec) -> Result<Trained> {
        let (id, path) = (spec.id(), self.layout.weights(&spec.id()));
        let record = self.layout.finished(&id)?;
        let record = record.ok_or_else(|| Error::Failed(format!("the teacher's run {id} is not finished")))?;
        let weights = Checkpoint::load(&path)?.tensors;
        let found = weights_digest(&weights)?;
        if found != record.result.weights_sha256 {
            let message =
                format!("the teacher's weights have digest {found}, its record says {}", record.result.weights_sha256);
            return Err(Error::file(&path, message));
        }
        let trained = trained(spec, &RunData::of(spec, self.data)?, weights);
        trained.network(&Device::Cpu).map_err(|e| Error::file(&path, e))?;
        Ok(trained)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
