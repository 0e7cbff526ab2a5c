//! The figures of a table about features.

use crate::features::{Features, Reports, Seen, against_accuracy, distance_columns};
use crate::plan::{Plan, PlannedRun};
use crate::plot::{COLORS, Mark, Panel, Series, Sheet};
use crate::stats::rank_correlation;
use crate::table::Records;
use crate::tsne::tsne;
use crate::{Error, Result};
use candle_core::DType;
use clap::ValueEnum;
use retort_metrics::PrincipalComponents;
use retort_nn::write_atomically;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Test images in a picture of features, the first ones.
const POINTS: usize = 300;
/// Effective neighbours of t-SNE, as in the code of KD2M.
const PERPLEXITY: f64 = 30.0;

/// How features are brought into the plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Embedding {
    /// The first two principal components of all shown features.
    Pca,
    /// t-SNE with perplexity 30, started from the principal components.
    Tsne,
}

/// Writes all figures into `folder`; returns their paths.
pub(crate) fn save(
    (plan, baseline): (&Plan, &str),
    records: &Records,
    reports: &Reports,
    features: &Features<'_>,
    embedding: Embedding,
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    let mut figures = vec![
        ("accuracy-distance.svg".to_string(), accuracy_distance(plan, records, reports)),
        ("bound-risk.svg".to_string(), bound_risk(plan, records)),
    ];
    for (method, svg) in clouds((plan, baseline), records, features, embedding)? {
        figures.push((format!("features-{method}.svg"), svg));
    }
    let mut paths = Vec::new();
    for (name, svg) in figures {
        let path = folder.join("figures").join(name);
        write_atomically(&path, svg.as_bytes())?;
        paths.push(path);
    }
    Ok(paths)
}

/// A panel a distance: a dot for every run.
fn accuracy_distance(plan: &Plan, records: &Records, reports: &Reports) -> String {
    let methods = methods(plan);
    let panel = |column: &&'static str| {
        let found = against_accuracy(plan, records, &reports.by_id, column);
        let points: Vec<(f64, f64)> = found.iter().map(|(_, point)| *point).collect();
        let rho = rank_correlation(&points).map_or(String::new(), |rho| format!(", rank correlation {rho:.2}"));
        let of = |(i, method): (usize, &&str)| Series {
            name: (*method).to_string(),
            color: COLORS[i % COLORS.len()],
            mark: if i < COLORS.len() { Mark::Dots(3.0) } else { Mark::Squares(3.0) },
            points: found.iter().filter(|(other, _)| other == method).map(|(_, point)| *point).collect(),
        };
        Panel {
            title: format!("{column}{rho}"),
            x: "final distance".into(),
            y: "test accuracy in %".into(),
            log_x: true,
            log_y: false,
            series: methods.iter().enumerate().map(of).collect(),
        }
    };
    let title = "Test accuracy against the final distance to the teacher's features";
    sheet(title, distance_columns().iter().map(panel).collect(), false)
}

/// A panel a pair and method: measured risk and its bounds over the epochs, means over seeds.
fn bound_risk(plan: &Plan, records: &Records) -> String {
    let panel = |(pair, method): (usize, &str)| {
        let runs = plan.runs.iter().filter(|run| (run.pair, run.method.as_str()) == (pair, method));
        let runs: Vec<_> = runs.filter_map(|run| records.get(&run.spec.id())).collect();
        let line = |name: &str, color, value: fn(&retort_trainers::engine::RiskBounds) -> f64| {
            let mut sums: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
            for epoch in runs.iter().flat_map(|record| &record.epochs) {
                let bounds = epoch.evaluations.get("student").and_then(|student| student.bounds.as_ref());
                if let Some(bounds) = bounds {
                    let sum = sums.entry(epoch.epoch).or_default();
                    *sum = (sum.0 + value(bounds), sum.1 + 1.0);
                }
            }
            let points = sums.into_iter().map(|(epoch, (sum, n))| (epoch as f64, sum / n)).collect();
            Series { name: name.to_string(), color, mark: Mark::Line, points }
        };
        Panel {
            title: named(plan, pair, method),
            x: "epoch".into(),
            y: "nats".into(),
            log_x: false,
            log_y: true,
            series: vec![
                line("risk on student features", COLORS[0], |b| b.student_features),
                line("risk on teacher features", COLORS[4], |b| b.teacher_features),
                line("bound by class", COLORS[2], |b| b.by_class),
                line("paired bound", COLORS[1], |b| b.paired),
            ],
        }
    };
    let title = "Risk of the teacher's head on the student's features, and what bounds it";
    let rows = (0..plan.pairs()).flat_map(|pair| methods(plan).into_iter().map(move |method| (pair, method)));
    let rows = rows.filter(|row| plan.runs.iter().any(|run| (run.pair, run.method.as_str()) == *row));
    sheet(title, rows.map(panel).collect(), true)
}

/// For each method three panels of one plane: teacher, the student without distillation, the distilled one (first seed).
fn clouds(
    (plan, baseline): (&Plan, &str),
    records: &Records,
    features: &Features<'_>,
    embedding: Embedding,
) -> Result<Vec<(String, String)>> {
    let mut figures = Vec::new();
    for pair in 0..plan.pairs() {
        let first = |run: &&PlannedRun| run.pair == pair && run.seed == 1 && records.contains_key(&run.spec.id());
        let runs: Vec<&PlannedRun> = plan.runs.iter().filter(first).collect();
        let Some(plain) = runs.iter().find(|run| run.method == baseline) else { continue };
        let Some(teacher) = features.teacher_of(&plain.spec)? else { continue };
        let before = features.student(&plain.spec)?;
        for run in runs.iter().filter(|run| run.method != baseline) {
            let after = features.student(&run.spec)?;
            if [&before, &after].iter().any(|seen| seen.features.dims() != teacher.features.dims()) {
                continue;
            }
            let panels = [("teacher", &teacher), (plain.method.as_str(), &before), (run.method.as_str(), &after)];
            let name = named(plan, pair, &run.method);
            figures.push((name, cloud(&panels, features.labels(), embedding)?));
        }
    }
    Ok(figures)
}

/// The clouds side by side, in one plane that is found for all of them.
fn cloud(clouds: &[(&str, &Seen)], labels: &[u32], embedding: Embedding) -> Result<String> {
    let rows = labels.len().min(POINTS);
    let width = clouds[0].1.features.dim(1).map_err(failed)?;
    let mut values: Vec<f64> = Vec::new();
    for (_, seen) in clouds {
        let part =
            seen.features.narrow(0, 0, rows).and_then(|x| x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>());
        values.extend(part.map_err(failed)?);
    }
    let components = PrincipalComponents::new(&values, width, 2.min(width)).map_err(failed)?;
    let projected = components.project(&values).map_err(failed)?;
    let mut points: Vec<(f64, f64)> = projected.iter().map(|p| (p[0], p.get(1).copied().unwrap_or(0.0))).collect();
    let axes = match embedding {
        Embedding::Pca => {
            let share = |k: usize| 100.0 * components.shares.get(k).copied().unwrap_or(0.0);
            [format!("component 1 ({:.0} % of variance)", share(0)), format!("component 2 ({:.0} %)", share(1))]
        }
        Embedding::Tsne => {
            points = tsne(&squares(&values, width), &points, PERPLEXITY);
            ["t-SNE 1".to_string(), "t-SNE 2".to_string()]
        }
    };
    let panel = |(i, (name, _)): (usize, &(&str, &Seen))| {
        let part = &points[i * rows..(i + 1) * rows];
        let mut classes: BTreeMap<u32, Vec<(f64, f64)>> = BTreeMap::new();
        labels.iter().zip(part).for_each(|(label, point)| classes.entry(*label).or_default().push(*point));
        let series = |(class, points): (u32, Vec<(f64, f64)>)| Series {
            name: format!("class {class}"),
            color: COLORS[class as usize % COLORS.len()],
            mark: Mark::Dots(2.0),
            points,
        };
        let [x, y] = axes.clone();
        let series = classes.into_iter().map(series).collect();
        Panel { title: (*name).to_string(), x, y, log_x: false, log_y: false, series }
    };
    Ok(sheet("Features of the first test images, in one plane", clouds.iter().enumerate().map(panel).collect(), true))
}

/// The method, with the teacher's name where there are several pairs.
fn named(plan: &Plan, pair: usize, method: &str) -> String {
    if plan.pairs() > 1 { format!("{}-{method}", plan.teacher_model(pair)) } else { method.to_string() }
}

fn sheet(title: &str, panels: Vec<Panel>, same_axes: bool) -> String {
    Sheet { title: title.to_string(), columns: 3, cell: [400.0, 300.0], same_axes, panels }.svg()
}

fn squares(values: &[f64], width: usize) -> Vec<f64> {
    let rows: Vec<&[f64]> = values.chunks_exact(width).collect();
    let square = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    rows.iter().flat_map(|a| rows.iter().map(|b| square(a, b)).collect::<Vec<f64>>()).collect()
}

/// The rows of the table, in order.
fn methods(plan: &Plan) -> Vec<&str> {
    let mut methods: Vec<&str> = Vec::new();
    for run in &plan.runs {
        if !methods.contains(&run.method.as_str()) {
            methods.push(&run.method);
        }
    }
    methods
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Failed(format!("figures: {error}"))
}
