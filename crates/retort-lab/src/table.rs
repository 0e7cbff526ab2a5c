//! The table: from records to terminal, Markdown, CSV and LaTeX.

use crate::manifest::{Loaded, Profile, TEACHER};
use crate::plan::{Plan, PlannedRun};
use crate::published::{Cell, Published, same_protocol, same_rate};
use crate::record::Record;
use crate::stats::{Sample, paired};
use crate::tune::Weights;
use crate::{Error, Result};
use retort_nn::write_atomically;
use std::collections::BTreeMap;
use std::path::Path;

/// Finished runs by id.
pub type Records = BTreeMap<String, Record>;

const HEADINGS: [&str; 8] =
    ["method", "seeds", "accuracy %", "vs baseline", "agreement %", "KL to teacher", "s/epoch", "published %"];

/// A benchmark table with one section a pair.
#[derive(Clone, Debug)]
pub struct Table {
    /// Heading.
    pub title: String,
    /// What was run and how to read it, a sentence each.
    pub notes: Vec<String>,
    /// One per pair of networks.
    pub sections: Vec<Section>,
}

/// The rows of one pair.
#[derive(Clone, Debug)]
pub struct Section {
    /// Architecture of the teacher.
    pub teacher: String,
    /// Architecture of the student.
    pub student: String,
    /// The teacher first, then the methods.
    pub rows: Vec<Row>,
}

/// Averages of one method over seeds.
#[derive(Clone, Debug)]
pub struct Row {
    /// Id of the method, `teacher` for the teacher.
    pub id: String,
    /// Name in the table.
    pub label: String,
    /// Runs that finished, and runs that were planned.
    pub finished: (usize, usize),
    /// Test accuracy in percent.
    pub accuracy: Option<Sample>,
    /// Difference to the baseline in points, paired by seed; none for the baseline itself and for the teacher.
    pub difference: Option<Sample>,
    /// Agreement with the teacher in percent.
    pub agreement: Option<Sample>,
    /// KL(teacher || student) in nats.
    pub kl: Option<Sample>,
    /// Seconds of an epoch.
    pub seconds: Option<Sample>,
    /// The published figure.
    pub published: Cell,
}

impl Table {
    /// Builds the table from whatever runs of the plan are finished.
    ///
    /// # Errors
    ///
    /// A profile that the manifest does not have.
    pub fn new(loaded: &Loaded, plan: &Plan, records: &Records) -> Result<Self> {
        let (_, profile) = loaded.profile(Some(&plan.profile))?;
        let published = loaded.published.as_ref();
        let data = &plan.teachers[0].data;
        let same = same_protocol(loaded, profile, data);
        // A row whose losses the profile replaces, or that has an optimiser or batches of its own, is not the published one either.
        let cell = |method: Option<&str>, teacher: &str, student: &str, replaced: bool| {
            published.map_or(Cell::None, |p| p.cell(method, teacher, student, same && !replaced))
        };
        let mut sections = Vec::new();
        for (index, pair) in profile.pairs.as_ref().iter().enumerate() {
            let (teacher, student) = (pair.teacher.as_ref(), pair.student.as_ref());
            let other_rate = !same_rate(loaded, profile, pair);
            let mut rows = vec![teacher_row(
                records.get(&plan.teachers[index].id()),
                cell(Some(TEACHER), teacher, student, false),
            )];
            let runs =
                |id: &str| plan.runs.iter().filter(|run| run.pair == index && run.method == id).collect::<Vec<_>>();
            let baseline = accuracies(&runs(loaded.manifest.baseline.as_ref()), records);
            for method in &loaded.manifest.methods {
                let id = method.id.as_ref();
                let runs = runs(id);
                if runs.is_empty() {
                    continue;
                }
                let overrides = [&profile.overrides, &pair.overrides];
                let replaced = other_rate
                    || method.optimizer.is_some()
                    || method.batches.is_some()
                    || overrides.iter().any(|o| o.keys().any(|key| key.as_ref() == id));
                let published = method.published.as_ref().map(|name| name.as_ref().as_str());
                let cell = cell(published, teacher, student, replaced);
                let mut row = method_row(id, &method.label, &runs, records, cell);
                if id != loaded.manifest.baseline.as_ref() {
                    row.difference = Sample::of(&paired(&accuracies(&runs, records), &baseline));
                }
                rows.push(row);
            }
            sections.push(Section { teacher: teacher.clone(), student: student.clone(), rows });
        }
        let title = format!("{} [profile {}]", loaded.manifest.title, plan.profile);
        Ok(Self { title, notes: notes(loaded, plan, profile, records, published)?, sections })
    }

    /// For a terminal.
    #[must_use]
    pub fn terminal(&self) -> String {
        let mut text = format!("{}\n", self.title);
        for section in &self.sections {
            text += &format!("\n{} -> {}\n", section.teacher, section.student);
            let mut table = comfy_table::Table::new();
            table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(HEADINGS);
            for row in &section.rows {
                table.add_row(row.cells());
            }
            for column in 1..HEADINGS.len() {
                if let Some(column) = table.column_mut(column) {
                    column.set_cell_alignment(comfy_table::CellAlignment::Right);
                }
            }
            text += &format!("{table}\n");
        }
        text + &self.notes.iter().map(|note| format!("\n{note}")).collect::<String>() + "\n"
    }

    /// As Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("# {}\n", self.title);
        for section in &self.sections {
            text += &format!("\n## {} -> {}\n\n", section.teacher, section.student);
            text += &line(HEADINGS.map(String::from).to_vec());
            text += "|---|---:|---:|---:|---:|---:|---:|---:|\n";
            for row in &section.rows {
                text += &line(row.cells().map(|cell| cell.replace('|', "\\|")).to_vec());
            }
        }
        text + "\n" + &self.notes.iter().map(|note| format!("{note}\n")).collect::<String>()
    }

    /// As LaTeX: one `tabular` a pair, for `booktabs`.
    #[must_use]
    pub fn latex(&self) -> String {
        let line =
            |cells: Vec<String>| format!("{} \\\\\n", cells.iter().map(|c| escape(c)).collect::<Vec<_>>().join(" & "));
        let mut text = format!("% {}\n", self.title);
        for section in &self.sections {
            text +=
                &format!("% {} -> {}\n\\begin{{tabular}}{{lrrrrrrr}}\n\\toprule\n", section.teacher, section.student);
            text += &line(HEADINGS.map(String::from).to_vec());
            text += "\\midrule\n";
            for row in &section.rows {
                text += &line(row.cells().to_vec());
            }
            text += "\\bottomrule\n\\end{tabular}\n";
        }
        text + &self.notes.iter().map(|note| format!("% {note}\n")).collect::<String>()
    }

    /// As CSV: a row a method and pair, plain numbers, empty where there is none.
    ///
    /// # Errors
    ///
    /// Never for values of this program; the writer's error otherwise.
    pub fn csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let failed = |e: &dyn std::fmt::Display| Error::Failed(format!("csv: {e}"));
        writer.write_record(CSV_HEADINGS).map_err(|e| failed(&e))?;
        for section in &self.sections {
            for row in &section.rows {
                writer.write_record(row.numbers(&section.teacher, &section.student)).map_err(|e| failed(&e))?;
            }
        }
        let bytes = writer.into_inner().map_err(|e| failed(&e))?;
        String::from_utf8(bytes).map_err(|e| failed(&e))
    }

    /// Writes `table.md`, `table.csv` and `table.tex`, each atomically.
    ///
    /// # Errors
    ///
    /// Names the file and what the system said.
    pub fn save(&self, folder: &Path) -> Result<()> {
        for (name, text) in [("table.md", self.markdown()), ("table.csv", self.csv()?), ("table.tex", self.latex())] {
            write_atomically(&folder.join(name), text.as_bytes())?;
        }
        Ok(())
    }
}

const CSV_HEADINGS: [&str; 18] = [
    "teacher",
    "student",
    "method",
    "seeds",
    "planned",
    "accuracy_mean",
    "accuracy_std",
    "difference_mean",
    "difference_std",
    "exceeds_spread",
    "agreement_mean",
    "agreement_std",
    "kl_mean",
    "kl_std",
    "seconds_per_epoch",
    "published",
    "published_note",
    "label",
];

impl Row {
    fn cells(&self) -> [String; HEADINGS.len()] {
        let (finished, planned) = self.finished;
        let seeds =
            if finished == planned { finished.to_string() } else { format!("{finished} of {planned} finished") };
        let difference = self.difference.map_or("-".into(), |d| {
            let note = if d.exceeds_spread() { "" } else { " (within spread)" };
            format!("{:+.2}{}{note}", d.mean, d.std.map(|s| format!(" ± {s:.2}")).unwrap_or_default())
        });
        let published = match self.published {
            Cell::None => "-".to_string(),
            Cell::OtherProtocol => "other protocol".to_string(),
            Cell::Value(value) => format!("{value:.2}"),
        };
        let seconds = self.seconds.map_or("-".into(), |s| format!("{:.1}", s.mean));
        let (label, accuracy) = (self.label.clone(), plus_minus(self.accuracy, 2));
        [label, seeds, accuracy, difference, plus_minus(self.agreement, 2), plus_minus(self.kl, 4), seconds, published]
    }

    fn numbers(&self, teacher: &str, student: &str) -> [String; CSV_HEADINGS.len()] {
        let number = |x: Option<f64>| x.map(|x| format!("{x:.6}")).unwrap_or_default();
        let mean = |s: Option<Sample>| number(s.map(|s| s.mean));
        let std = |s: Option<Sample>| number(s.and_then(|s| s.std));
        let (published, note) = match self.published {
            Cell::None => (None, ""),
            Cell::OtherProtocol => (None, "other protocol"),
            Cell::Value(value) => (Some(value), ""),
        };
        [
            teacher.to_string(),
            student.to_string(),
            self.id.clone(),
            self.finished.0.to_string(),
            self.finished.1.to_string(),
            mean(self.accuracy),
            std(self.accuracy),
            mean(self.difference),
            std(self.difference),
            self.difference.map(|d| d.exceeds_spread().to_string()).unwrap_or_default(),
            mean(self.agreement),
            std(self.agreement),
            mean(self.kl),
            std(self.kl),
            mean(self.seconds),
            number(published),
            note.to_string(),
            self.label.clone(),
        ]
    }
}

fn plus_minus(sample: Option<Sample>, digits: usize) -> String {
    sample.map_or("-".into(), |s| {
        let spread = s.std.map(|std| format!(" ± {std:.digits$}")).unwrap_or_default();
        format!("{:.digits$}{spread}", s.mean)
    })
}

fn escape(cell: &str) -> String {
    cell.replace('%', "\\%").replace('&', "\\&").replace('_', "\\_").replace('#', "\\#").replace('±', "$\\pm$")
}

fn accuracies(runs: &[&PlannedRun], records: &Records) -> Vec<(u64, f64)> {
    runs.iter().filter_map(|run| Some((run.seed, 100.0 * records.get(&run.spec.id())?.result.accuracy))).collect()
}

fn method_row(id: &str, label: &str, runs: &[&PlannedRun], records: &Records, published: Cell) -> Row {
    let found: Vec<&Record> = runs.iter().filter_map(|run| records.get(&run.spec.id())).collect();
    let over = |f: &dyn Fn(&Record) -> Option<f64>| Sample::of(&found.iter().filter_map(|r| f(r)).collect::<Vec<_>>());
    Row {
        id: id.to_string(),
        label: label.to_string(),
        finished: (found.len(), runs.len()),
        accuracy: over(&|r| Some(100.0 * r.result.accuracy)),
        difference: None,
        agreement: over(&|r| Some(100.0 * r.result.agreement?)),
        kl: over(&|r| r.result.kl),
        seconds: over(&|r| Some(r.seconds_per_epoch())),
        published,
    }
}

fn teacher_row(record: Option<&Record>, published: Cell) -> Row {
    let over = |f: &dyn Fn(&Record) -> f64| record.and_then(|r| Sample::of(&[f(r)]));
    Row {
        id: TEACHER.into(),
        label: TEACHER.into(),
        finished: (usize::from(record.is_some()), 1),
        accuracy: over(&|r| 100.0 * r.result.accuracy),
        difference: None,
        agreement: None,
        kl: None,
        seconds: over(&|r| r.seconds_per_epoch()),
        published,
    }
}

/// What the weights of distances between feature laws multiply.
fn coefficients(plan: &Plan) -> Option<String> {
    let mut fixed = Vec::new();
    let mut relative = false;
    for run in &plan.runs {
        for loss in &run.spec.losses {
            let settings = toml::Table::try_from(loss).ok()?;
            match settings
                .get("matching")
                .and_then(|matching| matching.get("coefficient"))
                .and_then(|rule| rule.as_str())
            {
                Some("first-batch") => relative = true,
                Some(_) if !fixed.contains(&run.method) => fixed.push(run.method.clone()),
                _ => {}
            }
        }
    }
    if !relative && fixed.is_empty() {
        return None;
    }
    let rule = "A distance is multiplied with its weight over the distance of the run's first batch (at least 1e-6)";
    let fixed =
        if fixed.is_empty() { String::new() } else { format!(", save for the bare weight in: {}", fixed.join(", ")) };
    Some(format!("{rule}{fixed}."))
}

fn notes(
    loaded: &Loaded,
    plan: &Plan,
    profile: &Profile,
    records: &Records,
    published: Option<&Published>,
) -> Result<Vec<String>> {
    let data = &plan.teachers[0].data;
    let mut notes = vec![
        profile.about.clone(),
        format!(
            "Data: {} ({} training, {} test images); teacher {} epochs, students {} epochs, batch {}.",
            data.name, data.train, data.test, profile.teacher.epochs.as_ref(), profile.student.epochs.as_ref(), profile.batch_size.as_ref()
        ),
        "Accuracy, agreement and KL are those of the last epoch on the test images: mean ± sample standard deviation over seeds.".into(),
        format!(
            "\"vs baseline\" is the mean difference to `{}` in points, paired by seed; \"within spread\" means that it is not larger \
             than the standard deviation of the paired differences, or that there is only one seed.",
            loaded.manifest.baseline.as_ref()
        ),
    ];
    if profile.tuning.is_some() {
        notes.push(Weights::read(loaded, &plan.profile)?.note(loaded));
    }
    notes.extend(coefficients(plan));
    let mut machines: Vec<String> = records
        .values()
        .map(|r| format!("{} thread(s), {} run(s) side by side", r.machine.threads, r.machine.side_by_side))
        .collect();
    machines.sort();
    machines.dedup();
    // A spread over seeds says nothing about the choice of test images.
    let error = 100.0 * (0.8 * 0.2 / data.test as f64).sqrt();
    notes.push(format!(
        "The spread over seeds does not show the choice of test images: with {} of them an accuracy of 80 % has a standard error of {error:.1} points.",
        data.test
    ));
    if !machines.is_empty() {
        notes.push(format!(
            "s/epoch: wall-clock seconds of a training epoch, evaluation not counted; measured with {}.",
            machines.join(" or ")
        ));
    }
    notes.push(match published {
        Some(p) if same_protocol(loaded, profile, data) => {
            format!("Published: {}, {}, {}; {}.", p.paper, p.table, p.dataset, p.sources())
        }
        Some(p) => {
            format!("Published numbers ({}, {}) belong to another protocol and are not shown.", p.paper, p.dataset)
        }
        None => "No published numbers.".into(),
    });
    Ok(notes)
}
