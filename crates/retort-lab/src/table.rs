//! The table: from records to terminal, Markdown, CSV and LaTeX.

use crate::manifest::{Loaded, Profile, Rule, TEACHER};
use crate::plan::{Plan, PlannedRun};
use crate::published::{Cell, Published, same_protocol, same_rate};
use crate::record::Record;
use crate::stats::{Sample, paired};
use crate::tune::Weights;
use crate::{Error, Result};
use retort_nn::write_atomically;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Finished runs by id.
pub type Records = BTreeMap<String, Record>;

const HEADINGS: [&str; 8] =
    ["method", "seeds", "accuracy %", "vs baseline", "agreement %", "KL to teacher", "s/epoch", "published %"];

/// A column beside the usual ones.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measure {
    /// A measure of the record, for example `knn-1`, or `term:NAME` for a term's mean over the last epoch.
    pub name: String,
    /// Heading.
    pub label: String,
    /// What values are multiplied with: 100 for measures, which are shares, and 1 for terms, where absent.
    pub scale: Option<f64>,
}

impl Measure {
    fn of(&self, record: &Record, rule: Rule) -> Option<f64> {
        let (value, usual) = match self.name.strip_prefix("term:") {
            Some(term) => (record.epochs.last()?.terms.get(term).copied(), 1.0),
            None => (rule.measure(record, &self.name), 100.0),
        };
        Some(value? * self.scale.unwrap_or(usual))
    }
}

impl Rule {
    /// Of the student, in `[0, 1]`.
    fn accuracy(self, record: &Record) -> f64 {
        match self {
            Self::Last => record.result.accuracy,
            Self::BestEpoch => record.result.best_accuracy,
        }
    }

    /// A measure of the record: an accuracy of a network beside the student by this rule, all else as it ended.
    fn measure(self, record: &Record, name: &str) -> Option<f64> {
        let measures = &record.result.measures;
        let last = || measures.get(name).copied();
        match self {
            Self::Last => last(),
            Self::BestEpoch => {
                let evaluated = record.epochs.iter().filter_map(|epoch| epoch.evaluations.get(name));
                let best = evaluated.map(|evaluation| evaluation.accuracy).max_by(f64::total_cmp);
                measures.get(&format!("best.{name}")).copied().or(best).or_else(last)
            }
        }
    }

    /// What the table says about it.
    fn note(self) -> &'static str {
        match self {
            Self::Last => {
                "Accuracy, agreement and KL are those of the last epoch on the test images: mean ± sample standard deviation over seeds."
            }
            Self::BestEpoch => {
                "Accuracies of students and of networks beside them are those of each network's best evaluated epoch on the test \
                 images, which were looked at for that choice; all else is of the last epoch. Mean ± sample standard deviation over seeds."
            }
        }
    }
}

/// What the cells of a table are made of.
#[derive(Clone, Copy)]
struct Source<'a> {
    records: &'a Records,
    measures: &'a [Measure],
    rule: Rule,
}

/// A benchmark table with one section a pair.
#[derive(Clone, Debug)]
pub struct Table {
    /// Heading.
    pub title: String,
    /// What was run and how to read it, a sentence each.
    pub notes: Vec<String>,
    /// Columns behind the usual ones.
    pub measures: Vec<Measure>,
    /// One per pair of networks.
    pub sections: Vec<Section>,
}

/// The rows of one pair.
#[derive(Clone, Debug)]
pub struct Section {
    /// What stands above the rows.
    pub heading: String,
    /// Architecture of the teacher; empty where there is none.
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
    /// Of the columns behind the usual ones.
    pub measures: Vec<Option<Sample>>,
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
        let measures: Vec<Measure> = loaded.manifest.measures.iter().map(|m| m.as_ref().clone()).collect();
        let same = plan.runs.first().is_some_and(|run| same_protocol(loaded, profile, &run.spec.data));
        // A row whose losses the profile replaces, or that has an optimiser or batches of its own, is not the published one either.
        let cell = |method: Option<&str>, teacher: &str, student: &str, replaced: bool| {
            published.map_or(Cell::None, |p| p.cell(method, teacher, student, same && !replaced))
        };
        let source = Source { records, measures: &measures, rule: profile.rule };
        let mut sections = Vec::new();
        for (index, pair) in profile.pairs.as_ref().iter().enumerate() {
            let (teacher, student) = (pair.teacher.as_ref().map_or("", |name| name.as_ref()), pair.student.as_ref());
            let other_rate = !same_rate(loaded, profile, pair);
            let mut rows = teacher_rows(loaded, plan, index, source);
            if let Some(plain) = rows.iter_mut().find(|row| row.id == TEACHER) {
                plain.published = cell(Some(TEACHER), teacher, student, false);
            }
            let runs =
                |id: &str| plan.runs.iter().filter(|run| run.pair == index && run.method == id).collect::<Vec<_>>();
            let baseline = source.accuracies(&runs(loaded.manifest.baseline.as_ref()));
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
                    || method.epochs.is_some()
                    || method.augmentation.is_some()
                    || method.teacher_augmentation.is_some()
                    || method.ensemble.is_some()
                    || profile.systems.contains_key(id.as_str())
                    || overrides.iter().any(|o| o.keys().any(|key| key.as_ref() == id));
                let published = method.published.as_ref().map(|name| name.as_ref().as_str());
                let cell = cell(published, teacher, student, replaced);
                let mut row = source.row(id, &method.label, &runs);
                row.published = cell;
                if id != loaded.manifest.baseline.as_ref() {
                    row.difference = Sample::of(&paired(&source.accuracies(&runs), &baseline));
                }
                rows.push(row);
            }
            let (teacher, student) = (teacher.to_string(), student.clone());
            sections.push(Section { heading: pair.heading(), teacher, student, rows });
        }
        let title = format!("{} [profile {}]", loaded.manifest.title, plan.profile);
        Ok(Self { title, notes: notes(loaded, plan, profile, records, published)?, measures, sections })
    }

    /// Headings of the columns.
    fn headings(&self) -> Vec<String> {
        let more = self.measures.iter().map(|measure| measure.label.clone());
        HEADINGS.into_iter().map(String::from).chain(more).collect()
    }

    /// For a terminal.
    #[must_use]
    pub fn terminal(&self) -> String {
        let mut text = format!("{}\n", self.title);
        for section in &self.sections {
            text += &format!("\n{}\n", section.heading);
            let mut table = comfy_table::Table::new();
            table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(self.headings());
            for row in &section.rows {
                table.add_row(row.cells());
            }
            for column in 1..self.headings().len() {
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
            text += &format!("\n## {}\n\n", section.heading);
            text += &line(self.headings());
            text += &format!("|---|{}\n", "---:|".repeat(self.headings().len() - 1));
            for row in &section.rows {
                text += &line(row.cells().iter().map(|cell| cell.replace('|', "\\|")).collect());
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
            text += &format!(
                "% {}\n\\begin{{tabular}}{{l{}}}\n\\toprule\n",
                section.heading,
                "r".repeat(self.headings().len() - 1)
            );
            text += &line(self.headings());
            text += "\\midrule\n";
            for row in &section.rows {
                text += &line(row.cells());
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
        let more = self.measures.iter().flat_map(|m| [format!("{}_mean", m.name), format!("{}_std", m.name)]);
        let headings: Vec<String> = CSV_HEADINGS.into_iter().map(String::from).chain(more).collect();
        writer.write_record(headings).map_err(|e| failed(&e))?;
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
        write(folder, &self.markdown(), &self.csv()?, &self.latex())
    }

    /// Several tables as one report: Markdown, CSV and LaTeX, the tables one behind the other.
    ///
    /// # Errors
    ///
    /// As [`Table::csv`].
    pub fn report(title: &str, tables: &[&Self]) -> Result<[String; 3]> {
        let below = |table: &&Self| table.markdown().replace("\n## ", "\n### ").replacen("# ", "## ", 1);
        let markdown = format!("# {title}\n\n{}", tables.iter().map(below).collect::<Vec<_>>().join("\n"));
        let csv = tables.iter().map(|table| table.csv()).collect::<Result<Vec<_>>>()?.join("\n");
        let latex = tables.iter().map(|table| table.latex()).collect::<Vec<_>>().join("\n");
        Ok([markdown, csv, latex])
    }

    /// Writes several tables as one report, in the files of [`Table::save`].
    ///
    /// # Errors
    ///
    /// As [`Table::save`].
    pub fn save_all(title: &str, tables: &[&Self], folder: &Path) -> Result<()> {
        let [markdown, csv, latex] = Self::report(title, tables)?;
        write(folder, &markdown, &csv, &latex)
    }
}

fn write(folder: &Path, markdown: &str, csv: &str, latex: &str) -> Result<()> {
    for (name, text) in [("table.md", markdown), ("table.csv", csv), ("table.tex", latex)] {
        write_atomically(&folder.join(name), text.as_bytes())?;
    }
    Ok(())
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
    fn cells(&self) -> Vec<String> {
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
        let (agreement, kl) = (plus_minus(self.agreement, 2), plus_minus(self.kl, 4));
        let usual = [label, seeds, accuracy, difference, agreement, kl, seconds, published];
        // Terms may be small: four digits say more than two decimals.
        let digits = |sample: &Sample| if sample.mean.abs() < 1.0 { 4 } else { 2 };
        let more = self.measures.iter().map(|sample| plus_minus(*sample, sample.as_ref().map_or(2, digits)));
        usual.into_iter().chain(more).collect()
    }

    fn numbers(&self, teacher: &str, student: &str) -> Vec<String> {
        let number = |x: Option<f64>| x.map(|x| format!("{x:.6}")).unwrap_or_default();
        let mean = |s: Option<Sample>| number(s.map(|s| s.mean));
        let std = |s: Option<Sample>| number(s.and_then(|s| s.std));
        let (published, note) = match self.published {
            Cell::None => (None, ""),
            Cell::OtherProtocol => (None, "other protocol"),
            Cell::Value(value) => (Some(value), ""),
        };
        let usual: [String; CSV_HEADINGS.len()] = [
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
        ];
        usual.into_iter().chain(self.measures.iter().flat_map(|sample| [mean(*sample), std(*sample)])).collect()
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

impl Source<'_> {
    /// In percent, by seed.
    fn accuracies(&self, runs: &[&PlannedRun]) -> Vec<(u64, f64)> {
        let of = |run: &&PlannedRun| Some((run.seed, 100.0 * self.rule.accuracy(self.records.get(&run.spec.id())?)));
        runs.iter().filter_map(of).collect()
    }

    /// Averages over the finished runs.
    fn row(&self, id: &str, label: &str, runs: &[&PlannedRun]) -> Row {
        let found: Vec<&Record> = runs.iter().filter_map(|run| self.records.get(&run.spec.id())).collect();
        let over =
            |f: &dyn Fn(&Record) -> Option<f64>| Sample::of(&found.iter().filter_map(|r| f(r)).collect::<Vec<_>>());
        Row {
            id: id.to_string(),
            label: label.to_string(),
            finished: (found.len(), runs.len()),
            accuracy: over(&|r| Some(100.0 * self.rule.accuracy(r))),
            difference: None,
            agreement: over(&|r| Some(100.0 * r.result.agreement?)),
            kl: over(&|r| r.result.kl),
            seconds: over(&|r| (!r.epochs.is_empty()).then(|| r.seconds_per_epoch())),
            published: Cell::None,
            measures: self.measures.iter().map(|measure| over(&|r| measure.of(r, self.rule))).collect(),
        }
    }
}

/// A row for every kind of teacher of a pair. Its agreement with the network that it starts from is nobody's question.
fn teacher_rows(loaded: &Loaded, plan: &Plan, pair: usize, source: Source<'_>) -> Vec<Row> {
    let teachers: Vec<&PlannedRun> = plan.teachers.iter().filter(|run| run.pair == pair).collect();
    let mut ids: Vec<&str> = Vec::new();
    teachers.iter().for_each(|run| {
        if !ids.contains(&run.method.as_str()) {
            ids.push(&run.method)
        }
    });
    let of = |id: &str| {
        let runs: Vec<&PlannedRun> = teachers.iter().filter(|run| run.method == id).copied().collect();
        let config = loaded.manifest.teachers.iter().find(|config| config.id.as_ref() == id);
        let label = config.map_or(TEACHER, |config| &config.label);
        Row { agreement: None, kl: None, ..source.row(id, label, &runs) }
    };
    ids.into_iter().map(of).collect()
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
    let Some(data) = plan.runs.first().map(|run| &run.spec.data) else { return Ok(vec![profile.about.clone()]) };
    let teacher = profile.teacher.as_ref().map(|recipe| format!("teacher {} epochs, ", recipe.epochs.as_ref()));
    let teacher = teacher.unwrap_or_default();
    let mut notes = vec![
        profile.about.clone(),
        format!(
            "Data: {} ({} training, {} test images); {teacher}students {} epochs, batch {}.",
            data.name,
            data.train,
            data.test,
            profile.student.epochs.as_ref(),
            profile.batch_size.as_ref()
        ),
        profile.rule.note().into(),
        format!(
            "\"vs baseline\" is the mean difference to `{}` in points, paired by seed; \"within spread\" means that it is not larger \
             than the standard deviation of the paired differences, or that there is only one seed.",
            loaded.manifest.baseline.as_ref()
        ),
    ];
    notes.extend(profile.probe.as_ref().map(|probe| {
        let config = serde_json::to_string(probe.config.as_ref()).unwrap_or_default();
        let of = plan.runs.iter().find_map(|run| run.spec.probe.as_ref()).map_or(0, |probe| probe.data.train);
        format!(
            "Every network is judged by classifiers on its frozen embedding, trained on {of} labelled images ({config}): \
             \"accuracy\" is the linear classifier's."
        )
    }));
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
