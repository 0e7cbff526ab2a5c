//! What the features of teacher and student have to do with each other on the test images: every distance of the zoo, and
//! the bounds of the risk. Computed from the weights of finished runs, and kept beside their records.

use crate::plan::{Plan, RunSpec, Splits};
use crate::runner::Layout;
use crate::stats::Sample;
use crate::table::Records;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use retort_datasets::Loader;
use retort_losses::distribution::{
    self as laws, Covariance, Direction, Discrepancy, Entropic, Estimator, Kernel, Reduction, SecondMoment,
};
use retort_metrics::{Bounds, FeaturePair, Head};
use retort_nn::{Checkpoint, Mode, Network, Taps, no_grad, write_atomically};
use retort_trainers::offline::frozen;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

/// Rows that the distances look at, the first of the test set; the bounds look at all.
const ROWS: usize = 1000;
const BATCH: usize = 250;
/// Of the sliced distances, the same for all runs.
const DIRECTIONS: usize = 128;

/// Distances and bounds of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    /// By column heading.
    values: BTreeMap<String, f64>,
}

/// The columns, in order: risks and bounds, then distances.
const COLUMNS: [&str; 26] = [
    "CE teacher features",
    "CE student features",
    "bound by class",
    "bound",
    "paired bound",
    "bound / measured",
    "error student features %",
    "error bound %",
    "own risk",
    "own bound",
    "W1 conditional",
    "paired L2",
    "W2^2",
    "W1",
    "CW2 (weighted)",
    "Sinkhorn div.",
    "sliced W2^2",
    "max-sliced W2^2",
    "Gauss W2 diag",
    "Gauss W2 full",
    "Gauss KL",
    "Jeffreys",
    "MMD linear",
    "MMD RBF",
    "energy",
    "CORAL",
];

/// Both networks' outputs on the test set.
struct Seen {
    logits: Tensor,
    features: Tensor,
}

/// Everything that reports of one plan share.
pub(crate) struct Features<'a> {
    layout: &'a Layout,
    splits: &'a Splits,
}

impl<'a> Features<'a> {
    pub(crate) fn new(layout: &'a Layout, splits: &'a Splits) -> Self {
        Self { layout, splits }
    }

    /// Reports of all finished runs whose student has a linear head and the teacher's width.
    pub(crate) fn reports(&self, plan: &Plan, records: &Records) -> Result<BTreeMap<String, Report>> {
        let mut teachers: BTreeMap<String, Seen> = BTreeMap::new();
        let mut reports = BTreeMap::new();
        for run in plan.runs.iter().filter(|run| records.contains_key(&run.spec.id())) {
            let id = run.spec.id();
            if let Some(report) = self.kept(&id)? {
                reports.insert(id, report);
                continue;
            }
            let Some(teacher) = run.spec.teacher.as_deref() else { continue };
            let network = self.network(teacher)?;
            if network.classifier().is_none() {
                continue;
            }
            let student = self.seen(self.network(&run.spec)?.as_ref())?;
            let seen = match teachers.entry(teacher.id()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.seen(network.as_ref())?),
            };
            if student.features.dims() != seen.features.dims() {
                continue;
            }
            let report = self.report(network.as_ref(), seen, &student)?;
            self.keep(&id, &report)?;
            reports.insert(id, report);
        }
        Ok(reports)
    }

    fn path(&self, id: &str) -> std::path::PathBuf {
        self.layout.features(id)
    }

    fn kept(&self, id: &str) -> Result<Option<Report>> {
        let path = self.path(id);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot read: {e}")))?;
        let report: Report = serde_json::from_str(&text).map_err(|e| Error::file(&path, e))?;
        Ok(COLUMNS.iter().all(|column| report.values.contains_key(*column)).then_some(report))
    }

    fn keep(&self, id: &str, report: &Report) -> Result<()> {
        let text = serde_json::to_string_pretty(report).map_err(Error::request)?;
        Ok(write_atomically(&self.path(id), text.as_bytes())?)
    }

    fn network(&self, spec: &RunSpec) -> Result<Box<dyn Network>> {
        let path = self.layout.weights(&spec.id());
        let weights = Checkpoint::load(&path)?.tensors;
        frozen(&spec.model, &self.splits.model(), weights, &Device::Cpu).map_err(|e| Error::file(&path, e))
    }

    fn seen(&self, network: &dyn Network) -> Result<Seen> {
        let loader = Loader::eval(self.splits.test.clone(), BATCH).map_err(Error::request)?;
        let (mut logits, mut features) = (Vec::new(), Vec::new());
        for batch in loader.epoch(0) {
            let images = batch.map_err(Error::request)?.images;
            let outputs = no_grad(|| network.forward(&images, Mode::Eval, Taps::default()))?;
            logits.push(outputs.logits.detach());
            features.push(outputs.embedding.detach());
        }
        let joined = |parts: &[Tensor]| Tensor::cat(parts, 0).map_err(failed);
        Ok(Seen { logits: joined(&logits)?, features: joined(&features)? })
    }

    fn report(&self, teacher: &dyn Network, t: &Seen, s: &Seen) -> Result<Report> {
        let labels = self.splits.test.labels();
        let head = teacher.classifier().ok_or_else(|| Error::Failed("the teacher has no linear head".into()))?;
        let head = Head { weight: head.weight(), bias: head.bias() };
        let pair = FeaturePair { student: &s.features, teacher: &t.features, labels };
        let bounds = Bounds::new(pair, head, Some(&s.logits)).map_err(failed)?;
        let mut values: BTreeMap<String, f64> = [
            ("CE teacher features", bounds.ce_teacher_features),
            ("CE student features", bounds.ce_student_features),
            ("bound by class", bounds.bound_by_class),
            ("bound", bounds.bound),
            ("paired bound", bounds.bound_paired),
            ("bound / measured", bounds.tightness()),
            ("error student features %", 100.0 * bounds.error_student_features),
            ("error bound %", 100.0 * bounds.error_bound),
            ("own risk", bounds.own.as_ref().map_or(f64::NAN, |own| own.risk)),
            ("own bound", bounds.own.as_ref().map_or(f64::NAN, |own| own.bound)),
            ("W1 conditional", bounds.w1_conditional),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into();
        values.extend(distances(&s.features, &t.features, labels)?);
        Ok(Report { values })
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Failed(format!("features: {error}"))
}

type Distance<'a> = Box<dyn Fn() -> retort_losses::Result<Discrepancy> + Sync + 'a>;

/// Every distance between the first rows of both clouds.
fn distances(student: &Tensor, teacher: &Tensor, labels: &[u32]) -> Result<Vec<(String, f64)>> {
    let rows = labels.len().min(ROWS);
    let head = |x: &Tensor| x.narrow(0, 0, rows).and_then(|x| x.contiguous()).map_err(failed);
    let (x, y, labels) = (&head(student)?, &head(teacher)?, &labels[..rows]);
    let width = x.dims().get(1).copied().unwrap_or(1);
    let directions = laws::random_directions(DIRECTIONS, width, 0).map_err(failed)?;
    let lines = &directions;
    // Regularised like the losses: by a thousandth of the teacher's mean variance.
    let variance = y.var(0).and_then(|v| v.mean_all()?.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>());
    let reg = 1e-3 * variance.map_err(failed)?.max(1e-12);
    let kl = move |direction| move || laws::gaussian_kl(x, y, Covariance::Variances, direction, reg);
    let all: Vec<(&str, Distance<'_>)> = vec![
        ("paired L2", Box::new(|| laws::paired_l2(x, y))),
        ("W2^2", Box::new(|| laws::w2(x, y))),
        ("W1", Box::new(|| laws::w1(x, y))),
        ("CW2 (weighted)", Box::new(|| laws::w2_conditional(x, y, labels, labels, Reduction::Weighted))),
        ("Sinkhorn div.", Box::new(|| laws::sinkhorn_divergence(x, y, &Entropic::default()))),
        ("sliced W2^2", Box::new(|| laws::sliced_w2(x, y, lines))),
        ("max-sliced W2^2", Box::new(|| laws::max_sliced_w2(x, y, lines))),
        ("Gauss W2 diag", Box::new(|| laws::gaussian_w2_diag(x, y, 0.0))),
        ("Gauss W2 full", Box::new(move || laws::gaussian_w2(x, y, reg, true))),
        ("Gauss KL", Box::new(kl(Direction::StudentTeacher))),
        ("Jeffreys", Box::new(kl(Direction::Jeffreys))),
        ("MMD linear", Box::new(|| laws::mmd(x, y, &Kernel::Linear, Estimator::Biased))),
        ("MMD RBF", Box::new(|| laws::mmd(x, y, &Kernel::default(), Estimator::Biased))),
        ("energy", Box::new(|| laws::energy_distance(x, y, Estimator::Biased))),
        ("CORAL", Box::new(|| laws::coral(x, y, SecondMoment::Covariance, 0.0))),
    ];
    let value = |(name, distance): (&str, Distance<'_>)| {
        let value = distance().map_err(failed)?.value.to_dtype(candle_core::DType::F64).map_err(failed)?;
        Ok((name.to_string(), value.to_scalar::<f64>().map_err(failed)?))
    };
    all.into_iter().map(value).collect()
}

/// Means over seeds as Markdown and CSV, a row for each row of the table.
pub(crate) fn save(plan: &Plan, reports: &BTreeMap<String, Report>, folder: &Path) -> Result<()> {
    let mut rows: Vec<(usize, &str)> = Vec::new();
    for run in &plan.runs {
        if !rows.contains(&(run.pair, run.method.as_str())) {
            rows.push((run.pair, &run.method));
        }
    }
    let mut markdown = String::from(
        "Features of teacher and student on the test images: mean over seeds (sample standard deviations in the CSV file).\n\n\
         Risks and bounds in nats, of the teacher's head on both networks' features; a bound above ln K says nothing. \
         They hold for these images, not for the population. Distances on the first 1,000 test images.\n\n",
    );
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let heading: Vec<String> = ["pair", "method"].into_iter().chain(COLUMNS).map(String::from).collect();
    markdown += &line(&heading);
    markdown += &line(&heading.iter().map(|_| "---".to_string()).collect::<Vec<_>>());
    let mut csv = csv::Writer::from_writer(Vec::new());
    let mut csv_heading = vec!["pair".to_string(), "method".to_string(), "runs".to_string()];
    csv_heading.extend(COLUMNS.iter().flat_map(|column| [column.to_string(), format!("{column} std")]));
    csv.write_record(&csv_heading).map_err(failed)?;
    for (pair, method) in rows {
        let found: Vec<&Report> = plan
            .runs
            .iter()
            .filter(|run| run.pair == pair && run.method == method)
            .filter_map(|run| reports.get(&run.spec.id()))
            .collect();
        if found.is_empty() {
            continue;
        }
        let of = |column: &str| Sample::of(&found.iter().map(|report| report.values[column]).collect::<Vec<_>>());
        let samples: Vec<Option<Sample>> = COLUMNS.iter().map(|column| of(column)).collect();
        let names = [plan.teachers[pair].model.clone(), method.to_string()];
        let cell = |sample: &Option<Sample>| sample.as_ref().map_or("-".into(), |s| short(s.mean));
        markdown += &line(&names.iter().cloned().chain(samples.iter().map(cell)).collect::<Vec<_>>());
        let mut record = vec![names[0].clone(), names[1].clone(), found.len().to_string()];
        for sample in &samples {
            let (mean, std) = sample.as_ref().map_or((f64::NAN, None), |s| (s.mean, s.std));
            record.extend([mean.to_string(), std.map_or(String::new(), |std| std.to_string())]);
        }
        csv.write_record(&record).map_err(failed)?;
    }
    let csv = csv.into_inner().map_err(failed)?;
    write_atomically(&folder.join("features.md"), markdown.as_bytes())?;
    Ok(write_atomically(&folder.join("features.csv"), &csv)?)
}

/// Four digits.
fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        size if (1e-3..1e5).contains(&size) => {
            let digits = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
            format!("{x:.digits$}")
        }
        _ => format!("{x:.3e}"),
    }
}
