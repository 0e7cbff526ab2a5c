//! What a finished run leaves: one file of JSON lines.
//!
//! Lines, in order: `run` (the specification), one `epoch` each, `result`, `machine`.
//! All but the last are the same, bit for bit, whenever the same specification runs on the same machine;
//! `machine` holds what may differ: times, threads, processor.

use crate::plan::RunSpec;
use crate::{Error, Result};
use retort_nn::{Tensors, write_atomically};
use retort_trainers::engine::{EpochRecord, Evaluation, Summary};
use retort_trainers::probe::ProbeReport;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A finished run.
#[derive(Clone, Debug)]
pub struct Record {
    /// Hash of the specification.
    pub id: String,
    /// What was run.
    pub spec: RunSpec,
    /// Version of this program.
    pub version: String,
    /// All epochs.
    pub epochs: Vec<EpochRecord>,
    /// Final figures.
    pub result: RunResult,
    /// Where and how fast.
    pub machine: Machine,
}

/// The figures that tables are made of, after the last epoch.
///
/// Of a run with a linear probe, accuracy and nll are the probe's; those of the network's own classifier, where it has
/// been trained, are among the measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Test images.
    pub samples: usize,
    /// Top-1 test accuracy in `[0, 1]`.
    pub accuracy: f64,
    /// The highest of all evaluated epochs; it has seen the test set.
    pub best_accuracy: f64,
    /// Mean negative log-likelihood in nats.
    pub nll: f64,
    /// Top-1 agreement with the teacher in `[0, 1]`.
    pub agreement: Option<f64>,
    /// Mean KL(teacher || student) in nats.
    pub kl: Option<f64>,
    /// Other figures of the finished network, by name: those of its probe and of its heads, accuracies in `[0, 1]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measures: BTreeMap<String, f64>,
    /// SHA-256 over names and values of the final weights.
    pub weights_sha256: String,
}

/// What may differ between two runs of one specification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Seconds of training in each epoch, evaluation not counted.
    pub seconds: Vec<f64>,
    /// Seconds since 1970 at the end of the run.
    pub finished: u64,
    /// Threads that the run used.
    pub threads: usize,
    /// Runs that went on side by side.
    pub side_by_side: usize,
    /// Processor, as the system names it.
    pub cpu: String,
    /// Instruction set of the kernels.
    pub instruction_set: String,
    /// Operating system and architecture.
    pub platform: String,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Line {
    Run { id: String, version: String, spec: Box<RunSpec> },
    Epoch(EpochRecord),
    Result(RunResult),
    Machine(Machine),
}

impl Record {
    /// Where the record of the run `id` lies.
    #[must_use]
    pub fn path(folder: &Path, id: &str) -> PathBuf {
        folder.join(format!("{id}.jsonl"))
    }

    /// The record of a finished run.
    pub(crate) fn new(
        spec: &RunSpec,
        summary: Summary,
        probed: Option<&ProbeReport>,
        weights: &Tensors,
        machine: Machine,
    ) -> Result<Self> {
        let samples = spec.probe.as_ref().map_or(spec.data.test, |probe| probe.data.test);
        let result = RunResult::new(samples, &summary, probed, weights_digest(weights)?)?;
        let version = env!("CARGO_PKG_VERSION").to_string();
        Ok(Self { id: spec.id(), spec: spec.clone(), version, epochs: summary.epochs, result, machine })
    }

    /// Writes the file atomically.
    ///
    /// # Errors
    ///
    /// Names the file and what the system said.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let text: String = self.lines().iter().map(|line| format!("{line}\n")).collect();
        Ok(write_atomically(&Self::path(folder, &self.id), text.as_bytes())?)
    }

    /// The lines that must be the same in every run of the specification.
    #[must_use]
    pub fn reproducible_lines(&self) -> Vec<String> {
        let mut lines = self.lines();
        lines.pop();
        lines
    }

    fn lines(&self) -> Vec<String> {
        let run = Line::Run { id: self.id.clone(), version: self.version.clone(), spec: Box::new(self.spec.clone()) };
        let mut lines = vec![run];
        lines.extend(self.epochs.iter().cloned().map(Line::Epoch));
        lines.push(Line::Result(self.result.clone()));
        lines.push(Line::Machine(self.machine.clone()));
        lines
            .iter()
            .map(|line| serde_json::to_string(line).expect("records hold finite numbers and string keys"))
            .collect()
    }

    /// Reads a record.
    ///
    /// # Errors
    ///
    /// File and line of the first mistake; an id that does not belong to the specification or to the file's name.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, format!("cannot read: {e}")))?;
        let (mut run, mut epochs, mut result, mut machine) = (None, Vec::new(), None, None);
        for (number, line) in text.lines().enumerate() {
            match serde_json::from_str(line) {
                Ok(Line::Run { id, version, spec }) => run = Some((id, version, *spec)),
                Ok(Line::Epoch(epoch)) => epochs.push(epoch),
                Ok(Line::Result(line)) => result = Some(line),
                Ok(Line::Machine(line)) => machine = Some(line),
                Err(e) => return Err(Error::Request(format!("{}:{}: {e}", path.display(), number + 1))),
            }
        }
        let (Some((id, version, spec)), Some(result), Some(machine)) = (run, result, machine) else {
            return Err(Error::file(path, "not a whole record: expected the lines `run`, `result` and `machine`"));
        };
        if id != spec.id() {
            return Err(Error::file(
                path,
                format!("id {id} does not belong to its specification, which has {}", spec.id()),
            ));
        }
        if path.file_stem().is_none_or(|stem| stem.to_string_lossy() != id) {
            return Err(Error::file(path, format!("holds the run {id}, so it must be called {id}.jsonl")));
        }
        Ok(Self { id, spec, version, epochs, result, machine })
    }

    /// Mean seconds of an epoch of the training; phases before it are another kind of work.
    #[must_use]
    pub fn seconds_per_epoch(&self) -> f64 {
        let last = self.epochs.last().map(|epoch| &epoch.phase);
        let epochs = self.epochs.iter().zip(&self.machine.seconds).filter(|(epoch, _)| Some(&epoch.phase) == last);
        let (count, sum) = epochs.fold((0, 0.0), |(count, sum), (_, seconds)| (count + 1, sum + seconds));
        sum / f64::from(count.max(1))
    }
}

impl RunResult {
    fn new(samples: usize, summary: &Summary, probed: Option<&ProbeReport>, weights_sha256: String) -> Result<Self> {
        let own = summary.last("student");
        let mut measures = probed.map(|probed| probed.measures.clone()).unwrap_or_default();
        if let Some(last) = summary.epochs.last() {
            let others = last.evaluations.iter().filter(|(name, _)| *name != "student");
            measures.extend(others.map(|(name, evaluation)| (name.clone(), evaluation.accuracy)));
            measures.extend(of_cohort(summary, &last.evaluations));
        }
        let linear = measures.get("linear").copied();
        let (agreement, kl) = (own.and_then(|own| own.agreement), own.and_then(|own| own.kl));
        let (samples, accuracy, best_accuracy, nll) = match (linear, own) {
            (Some(accuracy), own) => {
                measures.extend(own.map(|own| ("classifier".to_string(), own.accuracy)));
                (samples, accuracy, accuracy, measures.get("linear-nll").copied().unwrap_or(0.0))
            }
            (None, Some(own)) => {
                let best = summary.best_accuracy("student").unwrap_or(own.accuracy);
                (own.samples, own.accuracy, best, own.nll)
            }
            (None, None) => {
                let message = "no classifier was trained: a `probe` with a linear classifier would judge the network";
                return Err(Error::Failed(message.into()));
            }
        };
        Ok(Self { samples, accuracy, best_accuracy, nll, agreement, kl, measures, weights_sha256 })
    }
}

/// Of networks that were trained together, `networks`, their mean accuracy after the last epoch, and under `best.` the
/// highest accuracy of each network and of their ensemble over the evaluated epochs, `best.networks` the mean of the former.
fn of_cohort(summary: &Summary, last: &BTreeMap<String, Evaluation>) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    let cohort: Vec<&String> = last.keys().filter(|name| *name == "student" || name.starts_with("peer")).collect();
    if cohort.len() < 2 {
        return found;
    }
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let best = |name: &String| summary.best_accuracy(name).unwrap_or_default();
    found.insert("networks".into(), mean(cohort.iter().map(|name| last[*name].accuracy).collect()));
    found.insert("best.networks".into(), mean(cohort.iter().map(|name| best(name)).collect()));
    let others = last.keys().filter(|name| *name != "student");
    found.extend(others.map(|name| (format!("best.{name}"), best(name))));
    found
}

/// SHA-256 over names, shapes and values, in the order of the names.
pub(crate) fn weights_digest(weights: &Tensors) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, tensor) in weights {
        let bytes = |t: &candle_core::Tensor| -> candle_core::Result<Vec<u8>> {
            Ok(t.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect())
        };
        let values = bytes(tensor).map_err(|e| Error::Failed(format!("weights `{name}`: {e}")))?;
        hash.update(format!("{name} {:?}\n", tensor.dims()));
        hash.update(values);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Machine {
    pub(crate) fn here(seconds: Vec<f64>, threads: usize, side_by_side: usize) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            seconds,
            finished: now.map(|d| d.as_secs()).unwrap_or(0),
            threads,
            side_by_side,
            cpu: processor(),
            instruction_set: format!("{:?}", retort_kernels::instruction_set()),
            platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    name.unwrap_or("unknown").to_string()
}
