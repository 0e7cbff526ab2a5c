//! What the features of teacher and student have to do with each other on the test images: every distance of the zoo, and
//! the bounds of the risk. Computed from the weights of finished runs, and kept beside their records.

use crate::plan::{Plan, RunSpec};
use crate::record::Record;
use crate::runner::Layout;
use crate::splits::Splits;
use crate::stats::{Sample, rank_correlation};
use crate::table::Records;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use retort_datasets::Loader;
use retort_losses::distribution::{
    self as laws, Covariance, Direction, Discrepancy, Entropic, Estimator, Inner, Kernel, LabelCost, Reduction,
    SecondMoment,
};
use retort_metrics::{Bounds, FeaturePair, Head, JointBound};
use retort_nn::{Checkpoint, Mode, Network, Taps, no_grad, write_atomically};
use retort_trainers::offline::frozen;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Raised when a measure changes, so that reports kept by an older program are made again.
const MEASURES: u32 = 3;
/// Rows that the distances look at, drawn once for all networks; the bounds look at all rows, the joint one at 2,000.
const ROWS: usize = 1000;
const JOINT_ROWS: usize = 2000;
/// Rows for Gromov-Wasserstein, whose every iteration is cubic.
const FEW_ROWS: usize = 200;
const BATCH: usize = 250;
/// Of the sliced distances, the same for all runs.
const DIRECTIONS: usize = 128;

/// Distances and bounds of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    /// Of [`MEASURES`].
    measures: u32,
    /// By column heading.
    values: BTreeMap<String, f64>,
    /// Columns whose solver stopped early.
    unconverged: Vec<String>,
}

/// The columns, in order: risks and bounds, then distances.
const COLUMNS: [&str; 35] = [
    "CE teacher features",
    "CE student features",
    "bound by class",
    "bound",
    "joint bound",
    "paired bound",
    "bound / measured",
    "error student features %",
    "error bound %",
    "own risk",
    "own bound",
    "W1 marginal",
    "W1 conditional",
    // The rest are distances, see [`DISTANCES`].
    "paired L2",
    "W2^2",
    "W1",
    "CW2 (weighted)",
    "JW2",
    "Sinkhorn",
    "Sinkhorn div.",
    "Sinkhorn on classes",
    "sliced W2^2",
    "max-sliced W2^2",
    "sliced Cramer",
    "Gauss W2 diag",
    "Gauss W2 full",
    "Frechet",
    "Gauss KL",
    "Jeffreys",
    "MMD linear",
    "MMD RBF",
    "MMD RBF by class",
    "energy",
    "CORAL",
    "Gromov",
];

/// Number of the columns that are distances.
const DISTANCES: usize = 22;

/// The columns that are distances.
pub(crate) fn distance_columns() -> &'static [&'static str] {
    &COLUMNS[COLUMNS.len() - DISTANCES..]
}

impl Report {
    /// The value of a column.
    pub(crate) fn value(&self, column: &str) -> f64 {
        self.values.get(column).copied().unwrap_or(f64::NAN)
    }
}

/// A network's outputs on the test set.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) logits: Tensor,
    pub(crate) features: Tensor,
}

/// A teacher with a linear head, and what it says.
struct Teacher {
    network: Box<dyn Network>,
    seen: Seen,
}

/// Everything that reports of one plan share.
pub(crate) struct Features<'a> {
    layout: &'a Layout,
    splits: &'a Splits,
    /// By id; none for a teacher without a linear head.
    teachers: RefCell<BTreeMap<String, Option<Arc<Teacher>>>>,
}

/// What became of the finished runs.
#[derive(Default)]
pub(crate) struct Reports {
    pub(crate) by_id: BTreeMap<String, Report>,
    /// Rows without a report, and why.
    left_out: BTreeMap<String, &'static str>,
}

impl<'a> Features<'a> {
    pub(crate) fn new(layout: &'a Layout, splits: &'a Splits) -> Self {
        Self { layout, splits, teachers: RefCell::default() }
    }

    /// Labels of the test images.
    pub(crate) fn labels(&self) -> &[u32] {
        self.splits.test.labels()
    }

    /// Reports of all finished runs whose teacher has a linear head and whose student the teacher's width.
    pub(crate) fn reports(&self, plan: &Plan, records: &Records) -> Result<Reports> {
        let mut reports = Reports::default();
        let mut due: BTreeMap<String, (Arc<Teacher>, Seen)> = BTreeMap::new();
        for run in plan.runs.iter().filter(|run| records.contains_key(&run.spec.id())) {
            let id = run.spec.id();
            if let Some(report) = self.kept(&id)? {
                reports.by_id.insert(id, report);
                continue;
            }
            let Some(teacher) = self.teacher(&run.spec)? else {
                reports.left_out.insert(run.method.clone(), "the teacher's classifier is no linear layer");
                continue;
            };
            let student = self.student(&run.spec)?;
            if student.features.dims() != teacher.seen.features.dims() {
                reports.left_out.insert(run.method.clone(), "student and teacher have features of different widths");
                continue;
            }
            due.insert(id, (teacher, student));
        }
        // A report is mostly solvers on one thread.
        let labels = self.labels();
        let made = due.into_par_iter().map(|(id, (teacher, student))| Ok((id, report(&teacher, &student, labels)?)));
        for (id, report) in made.collect::<Result<Vec<_>>>()? {
            self.keep(&id, &report)?;
            reports.by_id.insert(id, report);
        }
        Ok(reports)
    }

    /// What the teacher of a run says, if it has a linear head.
    pub(crate) fn teacher_of(&self, spec: &RunSpec) -> Result<Option<Seen>> {
        Ok(self.teacher(spec)?.map(|teacher| teacher.seen.clone()))
    }

    /// What the network of a finished run says.
    pub(crate) fn student(&self, spec: &RunSpec) -> Result<Seen> {
        self.seen(self.network(spec)?.as_ref())
    }

    fn teacher(&self, spec: &RunSpec) -> Result<Option<Arc<Teacher>>> {
        let Some(teacher) = spec.teacher.as_deref() else { return Ok(None) };
        let id = teacher.id();
        if let Some(known) = self.teachers.borrow().get(&id) {
            return Ok(known.clone());
        }
        let network = self.network(teacher)?;
        let found = match network.classifier() {
            Some(_) => Some(Arc::new(Teacher { seen: self.seen(network.as_ref())?, network })),
            None => None,
        };
        self.teachers.borrow_mut().insert(id, found.clone());
        Ok(found)
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
        // A file of another shape is an older program's.
        let Ok(report) = serde_json::from_str::<Report>(&text) else { return Ok(None) };
        Ok((report.measures == MEASURES).then_some(report))
    }

    fn keep(&self, id: &str, report: &Report) -> Result<()> {
        let text = serde_json::to_string_pretty(report).map_err(Error::request)?;
        Ok(write_atomically(&self.path(id), text.as_bytes())?)
    }

    fn network(&self, spec: &RunSpec) -> Result<Box<dyn Network>> {
        let path = self.layout.weights(&spec.id());
        let weights = Checkpoint::load(&path)?.tensors;
        frozen(&spec.model, &self.splits.model(spec.modality)?, weights, &Device::Cpu)
            .map_err(|e| Error::file(&path, e))
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
}

/// Distances and bounds of one student.
fn report(teacher: &Teacher, s: &Seen, labels: &[u32]) -> Result<Report> {
    let t = &teacher.seen;
    let head = teacher.network.classifier().ok_or_else(|| Error::Failed("the teacher has no linear head".into()))?;
    let head = Head { weight: head.weight(), bias: head.bias() };
    let pair = FeaturePair { student: &s.features, teacher: &t.features, labels };
    let bounds = Bounds::new(pair, head, Some(&s.logits)).map_err(failed)?;
    let part = Part::of(s, t, labels, JOINT_ROWS)?;
    let pair = FeaturePair { student: &part.student.features, teacher: &part.teacher.features, labels: &part.labels };
    let joint = JointBound::new(pair, head).map_err(failed)?;
    let mut values: BTreeMap<String, f64> = [
        ("CE teacher features", bounds.ce_teacher_features),
        ("CE student features", bounds.ce_student_features),
        ("bound by class", bounds.bound_by_class),
        ("bound", bounds.bound),
        ("joint bound", joint.bound),
        ("paired bound", bounds.bound_paired),
        ("bound / measured", bounds.tightness()),
        ("error student features %", 100.0 * bounds.error_student_features),
        ("error bound %", 100.0 * bounds.error_bound),
        ("own risk", bounds.own.as_ref().map_or(f64::NAN, |own| own.risk)),
        ("own bound", bounds.own.as_ref().map_or(f64::NAN, |own| own.bound)),
        ("W1 marginal", joint.w1_marginal),
        ("W1 conditional", bounds.w1_conditional),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .into();
    let mut unconverged = Vec::new();
    for (name, value, converged) in distances(&Part::of(s, t, labels, ROWS)?)? {
        values.insert(name.to_string(), value);
        if !converged {
            unconverged.push(name.to_string());
        }
    }
    Ok(Report { measures: MEASURES, values, unconverged })
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Failed(format!("features: {error}"))
}

type Distance<'a> = Box<dyn Fn() -> retort_losses::Result<Discrepancy> + Sync + 'a>;

/// Some rows of what both networks say, the same for all networks.
struct Part {
    student: Seen,
    teacher: Seen,
    labels: Vec<u32>,
}

impl Part {
    /// At most `most` rows, drawn by number alone.
    fn of(student: &Seen, teacher: &Seen, labels: &[u32], most: usize) -> Result<Self> {
        let rows = drawn(labels.len(), most);
        let index = Tensor::from_slice(&rows, rows.len(), &Device::Cpu).map_err(failed)?;
        let select = |x: &Tensor| x.index_select(&index, 0).map_err(failed);
        let part =
            |seen: &Seen| Ok::<_, Error>(Seen { logits: select(&seen.logits)?, features: select(&seen.features)? });
        let labels = rows.iter().map(|&row| labels[row as usize]).collect();
        Ok(Self { student: part(student)?, teacher: part(teacher)?, labels })
    }
}

/// `most` of `count` rows in ascending order: those whose scrambled numbers are the smallest. The first rows would do for shuffled
/// test sets only.
fn drawn(count: usize, most: usize) -> Vec<u32> {
    let scrambled = |row: u64| {
        let z = (row + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut rows: Vec<u32> = (0..count as u32).collect();
    if count > most {
        rows.sort_by_key(|&row| scrambled(u64::from(row)));
        rows.truncate(most);
        rows.sort_unstable();
    }
    rows
}

/// Every distance between both clouds, and whether its solver got to its end.
fn distances(part: &Part) -> Result<Vec<(&'static str, f64, bool)>> {
    let (x, y, labels) = (&part.student.features, &part.teacher.features, &part.labels[..]);
    let (s, t) = (&part.student.logits, &part.teacher.logits);
    let width = x.dims().get(1).copied().unwrap_or(1);
    let directions = laws::random_directions(DIRECTIONS, width, 0).map_err(failed)?;
    let lines = &directions;
    let classes = s.dims().get(1).copied().unwrap_or(1);
    let apart = (0..classes * classes).map(|i| if i / classes == i % classes { 0f32 } else { 1.0 });
    let apart =
        Tensor::from_iter(apart, &Device::Cpu).and_then(|cost| cost.reshape((classes, classes))).map_err(failed)?;
    let few = drawn(labels.len(), FEW_ROWS);
    let few = Tensor::from_slice(&few, few.len(), &Device::Cpu).map_err(failed)?;
    let few = |x: &Tensor| x.index_select(&few, 0).map_err(failed);
    let (few_x, few_y) = (&few(x)?, &few(y)?);
    // Regularised like the losses: by a thousandth of the teacher's mean variance.
    let variance = y.var(0).and_then(|v| v.mean_all()?.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>());
    let reg = 1e-3 * variance.map_err(failed)?.max(1e-12);
    let kl = move |direction| move || laws::gaussian_kl(x, y, Covariance::Variances, direction, reg);
    let (rbf, biased) = (&Kernel::default(), Estimator::Biased);
    let entropic = &Entropic::default();
    let value_only = |value: Tensor| Discrepancy { grad_teacher: value.clone(), value, details: vec![] };
    let all: Vec<(&'static str, Distance<'_>)> = vec![
        ("paired L2", Box::new(|| laws::paired_l2(x, y))),
        ("W2^2", Box::new(|| laws::w2(x, y))),
        ("W1", Box::new(|| laws::w1(x, y))),
        ("CW2 (weighted)", Box::new(|| laws::w2_conditional(x, y, labels, labels, Reduction::Weighted))),
        ("JW2", Box::new(|| laws::w2_joint(x, y, LabelCost::LogitsSq(s, t), 1.0, true))),
        ("Sinkhorn", Box::new(|| laws::sinkhorn(x, y, entropic))),
        ("Sinkhorn div.", Box::new(|| laws::sinkhorn_divergence(x, y, entropic))),
        ("Sinkhorn on classes", Box::new(|| laws::sinkhorn_logits(s, t, &apart, 1.0, entropic))),
        ("sliced W2^2", Box::new(|| laws::sliced_w2(x, y, lines))),
        ("max-sliced W2^2", Box::new(|| laws::max_sliced_w2(x, y, lines))),
        ("sliced Cramer", Box::new(|| laws::sliced_cramer(x, y, lines))),
        ("Gauss W2 diag", Box::new(|| laws::gaussian_w2_diag(x, y, 0.0))),
        ("Gauss W2 full", Box::new(move || laws::gaussian_w2(x, y, reg, true))),
        ("Frechet", Box::new(|| laws::frechet(x, y).map(value_only))),
        ("Gauss KL", Box::new(kl(Direction::StudentTeacher))),
        ("Jeffreys", Box::new(kl(Direction::Jeffreys))),
        ("MMD linear", Box::new(|| laws::mmd(x, y, &Kernel::Linear, biased))),
        ("MMD RBF", Box::new(|| laws::mmd(x, y, rbf, biased))),
        ("MMD RBF by class", Box::new(|| laws::mmd_conditional(x, y, labels, labels, rbf, biased, Reduction::Mean))),
        ("energy", Box::new(|| laws::energy_distance(x, y, biased))),
        ("CORAL", Box::new(|| laws::coral(x, y, SecondMoment::Covariance, 0.0))),
        ("Gromov", Box::new(|| laws::gromov_wasserstein(few_x, few_y, Inner::default(), 50))),
    ];
    let number = |tensor: &Tensor| tensor.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>();
    let value = |(name, distance): (&'static str, Distance<'_>)| {
        let found = distance().map_err(failed)?;
        let converged = found.detail("converged").map_or(Ok(1.0), number).map_err(failed)?;
        Ok((name, number(&found.value).map_err(failed)?, converged == 1.0))
    };
    all.into_iter().map(value).collect()
}

/// Columns of the report that come from the records.
const RUN_COLUMNS: [&str; 2] = ["ms / step", "coef"];

/// Milliseconds of a training step (class-balanced batches may be a few fewer than the rows would fill), and what the distance was
/// multiplied with (not a number for other losses).
fn of_run(record: &Record) -> [f64; 2] {
    let steps = record.spec.data.train.div_ceil(record.spec.batch_size.max(1));
    let terms = record.epochs.last().map(|epoch| &epoch.terms);
    let suffix = format!(".{}", laws::COEFFICIENT);
    let coefficient = terms.and_then(|terms| terms.iter().find(|(name, _)| name.ends_with(&suffix)));
    [1e3 * record.seconds_per_epoch() / steps as f64, coefficient.map_or(f64::NAN, |(_, value)| *value)]
}

/// Means over seeds as Markdown and CSV, a row for each row of the table.
pub(crate) fn save(plan: &Plan, records: &Records, reports: &Reports, folder: &Path) -> Result<()> {
    let mut rows: Vec<(usize, &str)> = Vec::new();
    for run in &plan.runs {
        if !rows.contains(&(run.pair, run.method.as_str())) {
            rows.push((run.pair, &run.method));
        }
    }
    let mut markdown = String::from(
        "Features of teacher and student on the test images: mean over seeds (sample standard deviations in the CSV file).\n\n\
         Risks and bounds in nats, of the teacher's head on both networks' features; a bound above ln K says nothing. \
         They hold for these images, not for the population; the joint bound and W1 marginal for at most 2,000 of them, drawn \
         once. Distances on at most 1,000 of them (Gromov-Wasserstein on 200), of the features as they are, before any regressor. coef: what the distance was multiplied with; unless a row says `coefficient = \"fixed\"`, its \
         weight over the distance of the first batch.\n\n",
    );
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let columns: Vec<&str> = RUN_COLUMNS.into_iter().chain(COLUMNS).collect();
    let heading: Vec<String> = ["pair", "method"].iter().chain(&columns).map(|name| name.to_string()).collect();
    markdown += &line(&heading);
    markdown += &line(&heading.iter().map(|_| "---".to_string()).collect::<Vec<_>>());
    let mut csv = csv::Writer::from_writer(Vec::new());
    let mut csv_heading = vec!["pair".to_string(), "method".to_string(), "runs".to_string()];
    csv_heading.extend(columns.iter().flat_map(|column| [column.to_string(), format!("{column} std")]));
    csv.write_record(&csv_heading).map_err(failed)?;
    for (pair, method) in rows {
        let runs = plan.runs.iter().filter(|run| run.pair == pair && run.method == method).map(|run| run.spec.id());
        let found: Vec<(&Record, &Report)> =
            runs.filter_map(|id| Some((records.get(&id)?, reports.by_id.get(&id)?))).collect();
        if found.is_empty() {
            continue;
        }
        let of_runs = (0..RUN_COLUMNS.len()).map(|k| found.iter().map(|(record, _)| of_run(record)[k]).collect());
        let of_features = COLUMNS.iter().map(|column| found.iter().map(|(_, report)| report.value(column)).collect());
        let values: Vec<Vec<f64>> = of_runs.chain(of_features).collect();
        let samples: Vec<Option<Sample>> = values
            .iter()
            .map(|values| if values.iter().any(|x| x.is_nan()) { None } else { Sample::of(values) })
            .collect();
        let names = [plan.teacher_model(pair).to_string(), method.to_string()];
        let cell = |sample: &Option<Sample>| sample.as_ref().map_or("-".into(), |s| short(s.mean));
        markdown += &line(&names.iter().cloned().chain(samples.iter().map(cell)).collect::<Vec<_>>());
        let mut record = vec![names[0].clone(), names[1].clone(), found.len().to_string()];
        for sample in &samples {
            let number = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
            record.extend([number(sample.as_ref().map(|s| s.mean)), number(sample.as_ref().and_then(|s| s.std))]);
        }
        csv.write_record(&record).map_err(failed)?;
    }
    markdown += &correlations(plan, records, &reports.by_id);
    markdown += &remarks(reports);
    let csv = csv.into_inner().map_err(failed)?;
    write_atomically(&folder.join("features.md"), markdown.as_bytes())?;
    Ok(write_atomically(&folder.join("features.csv"), &csv)?)
}

/// What a reader of the report must know besides.
fn remarks(reports: &Reports) -> String {
    let mut text = String::new();
    for (method, why) in &reports.left_out {
        text += &format!("\nLeft out: {method} ({why}).\n");
    }
    let mut early: BTreeMap<&str, usize> = BTreeMap::new();
    reports
        .by_id
        .values()
        .flat_map(|report| &report.unconverged)
        .for_each(|column| *early.entry(column).or_default() += 1);
    for (column, runs) in early {
        text += &format!("\n{column}: the solver stopped before it had converged in {runs} run(s).\n");
    }
    text
}

/// How the final distance goes with the test accuracy, over all runs.
fn correlations(plan: &Plan, records: &Records, reports: &BTreeMap<String, Report>) -> String {
    let mut text = String::from(
        "\nSpearman's rank correlation between the final distance and the test accuracy over all runs (every method and seed); \
         a distance that told good students from bad ones would have -1.\n\n| distance | rank correlation | runs |\n| --- | ---: | ---: |\n",
    );
    for column in distance_columns() {
        let pairs = against_accuracy(plan, records, reports, column);
        let points: Vec<(f64, f64)> = pairs.iter().map(|(_, point)| *point).collect();
        let found = rank_correlation(&points).map_or("-".into(), |rho| format!("{rho:.2}"));
        text += &format!("| {column} | {found} | {} |\n", points.len());
    }
    text
}

/// Method, final distance and test accuracy in percent, of every run that has both.
pub(crate) fn against_accuracy<'a>(
    plan: &'a Plan,
    records: &Records,
    reports: &BTreeMap<String, Report>,
    column: &str,
) -> Vec<(&'a str, (f64, f64))> {
    let point = |run: &'a crate::plan::PlannedRun| {
        let id = run.spec.id();
        let accuracy = 100.0 * records.get(&id)?.result.accuracy;
        Some((run.method.as_str(), (reports.get(&id)?.value(column), accuracy)))
    };
    plan.runs.iter().filter_map(point).collect()
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
