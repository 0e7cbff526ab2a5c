//! `docs`: one page a method, one a data set. The upper part of a page comes from the registry, the manifests and the published tables,
//! the lower part is written by hand and kept.

use crate::costs::Costs;
use crate::manifest::{Loaded, MethodConfig as Row};
use crate::methods::{COLUMNS, MethodRow, rows};
use crate::published::{Published, Row as PublishedRow};
use crate::{Error, Result, data_pages};
use clap::Args;
use retort_losses::{LossConfig, MethodInfo};
use retort_nn::OptimizerConfig;
use retort_trainers::{SystemConfig, Teachers};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const BEGIN: &str = "<!-- generated: begin -->\n";
const END: &str = "<!-- generated: end -->\n";

/// What the hand-written part of a page must have, in this order.
const SECTIONS: [&str; 5] = ["Idea", "Formula", "Shapes", "Cost", "Hazards and deviations"];

const INDEX: &str = "README.md";

/// The trainer among the methods.
const DOT: &str = "dot";

/// Rows of published tables that others are compared with, the first of them that a table has.
const REFERENCES: [&str; 5] = ["student", "no KD", "baseline", "Cross-entropy", "KD"];

#[derive(Debug, Args)]
pub(crate) struct DocsArgs {
    /// Write nothing; fail if a page is missing, stale, unfinished, or of no method.
    #[arg(long)]
    check: bool,
    /// Folder of the pages of the methods.
    #[arg(long, env = "RETORT_METHOD_PAGES", default_value = "docs/methods", hide_env_values = true)]
    pages: PathBuf,
    /// Folder of the pages of the data sets.
    #[arg(long, env = "RETORT_DATASET_PAGES", default_value = "docs/datasets", hide_env_values = true)]
    dataset_pages: PathBuf,
    /// Folder of manifests.
    #[arg(long, env = "RETORT_EXPERIMENTS", default_value = "experiments", hide_env_values = true)]
    experiments: PathBuf,
}

impl DocsArgs {
    /// Writes or compares; returns what was done.
    pub(crate) fn execute(&self) -> Result<String> {
        let pages = generated(&self.experiments)?;
        let mut written = Vec::new();
        let mut problems = strangers(&self.pages, &pages)?;
        for (name, upper) in &pages {
            let path = self.pages.join(name);
            let old = match path.exists() {
                true => Some(fs::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot read: {e}")))?),
                false => None,
            };
            let lower = match &old {
                Some(text) => by_hand(text).map_err(|message| Error::file(&path, message))?.to_string(),
                None => skeleton(name),
            };
            let new = format!("{BEGIN}{upper}{END}{lower}");
            if old.as_ref() != Some(&new) {
                match (self.check, &old) {
                    (true, None) => problems.push(format!("{name}: missing")),
                    (true, Some(_)) => problems.push(format!("{name}: the generated part is stale")),
                    (false, _) => written.push((path, new)),
                }
            }
            if name != INDEX && (old.is_some() || !self.check) {
                problems.extend(
                    unwritten(&lower)
                        .into_iter()
                        .map(|section| format!("{name}: section `{section}` is missing or empty")),
                );
            }
        }
        for (name, new) in data_pages::pages() {
            let path = self.dataset_pages.join(&name);
            if fs::read_to_string(&path).ok().as_ref() != Some(&new) {
                match self.check {
                    true => problems.push(format!("{}: missing or stale", path.display())),
                    false => written.push((path, new)),
                }
            }
        }
        self.report(&written, &problems)
    }

    fn report(&self, written: &[(PathBuf, String)], problems: &[String]) -> Result<String> {
        for folder in [&self.pages, &self.dataset_pages].into_iter().filter(|_| !written.is_empty()) {
            fs::create_dir_all(folder).map_err(|e| Error::file(folder, format!("cannot create: {e}")))?;
        }
        for (path, text) in written {
            fs::write(path, text).map_err(|e| Error::file(path, format!("cannot write: {e}")))?;
        }
        if !problems.is_empty() {
            let hint = if self.check { "; `cargo xtask docs` writes the generated parts" } else { "" };
            return Err(Error::Failed(format!("{}{hint}", problems.join("\n"))));
        }
        let lines = written.iter().map(|(path, _)| format!("wrote {}\n", path.display()));
        Ok(lines.collect::<String>() + "every method and every data set has its page\n")
    }
}

/// The generated part of every page, by file name.
fn generated(experiments: &Path) -> Result<BTreeMap<String, String>> {
    let manifests = Loaded::all(experiments)?;
    let published = published(&experiments.join("published"))?;
    let published = Gains { tables: &published, names: PublishedNames::of(&manifests) };
    let rows = rows();
    let mut pages = BTreeMap::from([(INDEX.to_string(), index(&rows))]);
    for config in LossConfig::defaults() {
        let row = rows.iter().find(|row| row.id == config.id()).expect("the rows come from the registry");
        let page = [facts(config.info(), row, &manifests), defaults(&config, "method"), published.page(config.id())];
        pages.insert(format!("{}.md", config.id()), page.concat());
    }
    for config in SystemConfig::defaults().into_iter().filter(|config| !config.is_default()) {
        let row = rows.iter().find(|row| row.id == config.id()).expect("the rows come from the registry");
        let page = [system(&config, row, &manifests), defaults(&config, "kind"), published.page(config.id())];
        pages.insert(format!("{}.md", config.id()), page.concat());
    }
    pages.insert(format!("{DOT}.md"), trainer(&rows, &manifests) + &published.page(DOT));
    Ok(pages)
}

/// Published tables, and which methods their rows are of.
struct Gains<'a> {
    tables: &'a [Published],
    names: PublishedNames,
}

impl Gains<'_> {
    /// The published gains of a method.
    fn page(&self, id: &str) -> String {
        let tables: String = self.tables.iter().map(|table| table.gains(id, &self.names)).collect();
        let none = "No published table in `experiments/published` has it.\n\n";
        format!("## Published gain\n\n{}", if tables.is_empty() { none } else { &tables })
    }
}

/// The methods of published rows, as far as manifests say under which name a row was published.
#[derive(Default)]
struct PublishedNames(BTreeMap<String, BTreeSet<String>>);

impl PublishedNames {
    fn of(manifests: &[Loaded]) -> Self {
        let mut names = Self::default();
        for loaded in manifests {
            let baseline = loaded.manifest.baseline.as_ref();
            for row in loaded.manifest.methods.iter().filter(|row| row.id.as_ref() != baseline) {
                if let Some(name) = &row.published {
                    names.0.entry(name.as_ref().clone()).or_default().extend(methods_of(row));
                }
            }
        }
        names
    }

    /// Whether a published row is one of a method: as a manifest says, or else by a part of its name.
    fn is_of(&self, name: &str, id: &str) -> bool {
        let plain = |name: &str| name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
        let said = self.0.get(name);
        let parts = || name.split('+').any(|part| plain(part) == plain(id));
        said.is_some_and(|methods| methods.contains(id)) || ((said.is_none() || name.contains('+')) && parts())
    }
}

/// The methods of a row: its system, or its losses but for the task's own where there are others.
fn methods_of(row: &Row) -> Vec<String> {
    if let Some(system) = row.system.as_ref().map(toml::Spanned::as_ref).filter(|system| !system.info().losses) {
        return vec![system.id().into()];
    }
    let losses = row.losses.iter().map(|loss| loss.as_ref().info());
    let of_losses = losses.filter(|info| info.ce_weight.is_some() || info.id == row.id.as_ref()).map(|info| info.id);
    of_losses.map(String::from).collect()
}

/// The upper part of the page of the trainer that is no loss.
fn trainer(rows: &[MethodRow], manifests: &[Loaded]) -> String {
    let row = rows.iter().find(|row| row.id == DOT).expect("the rows have it");
    let [_, family, .., state, _, settings, _, _, code] = row.cells();
    let is_dot = |row: &Row| matches!(row.optimizer.as_ref().map(AsRef::as_ref), Some(OptimizerConfig::Dot { .. }));
    let lines = [
        ("Source", row.source()),
        ("Family", family.to_string()),
        ("Code bases compared with", code.to_string()),
        ("State in a checkpoint", state.to_string()),
        ("Published settings", settings.to_string()),
        ("Tables", usage(manifests, is_dot)),
    ];
    heading(row.title(), DOT, &lines)
}

/// The title and what a table of two columns says below it.
fn heading(title: &str, id: &str, lines: &[(&str, String)]) -> String {
    let lines: String = lines.iter().map(|(key, value)| line([key, value.as_str()])).collect();
    format!("# {title} (`{id}`)\n\n| | |\n|---|---|\n{lines}\n")
}

fn index(rows: &[MethodRow]) -> String {
    let of_losses = retort_losses::registry().iter().map(|info| info.id);
    let pages: BTreeSet<&str> = of_losses.chain(retort_trainers::systems().iter().map(|info| info.id)).collect();
    let mut text = "# Methods\n\n".to_string() + &line(COLUMNS) + &line(COLUMNS.map(|_| "---"));
    for row in rows {
        let mut cells = row.cells().map(String::from);
        let page = match row.id.as_str() {
            "ft-paraphraser" => Some("ft"),
            DOT => Some(DOT),
            id => pages.get(id).copied(),
        };
        cells[0] = match page {
            Some(page) => format!("[`{}`]({page}.md)", row.id),
            None => format!("`{}`", row.id),
        };
        text += &line(cells);
    }
    let about = Costs::measured().map(|costs| costs.about).unwrap_or_default();
    text + &format!(
        "\nCost: seconds of a step and peak memory of the process relative to plain training with cross-entropy; {about}. \
         `cargo xtask bench costs` measures anew.\n"
    )
}

fn line<const N: usize>(cells: [impl AsRef<str>; N]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| cell.as_ref().replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}

fn facts(info: &MethodInfo, row: &MethodRow, manifests: &[Loaded]) -> String {
    let none = |cell: &str| if cell == "-" { "none".to_string() } else { cell.to_string() };
    let [_, family, logits, pooled, maps, labels, index, phase, trainable, state, _, _, extra, cost, _] = row.cells();
    let reads =
        [("logits", logits), ("pooled embedding", pooled), ("maps", maps), ("labels", labels), ("sample index", index)];
    let reads = reads.iter().filter(|(_, whose)| *whose != "-").map(|(what, whose)| match *whose {
        "yes" => (*what).to_string(),
        whose => format!("{what} ({whose})"),
    });
    let weights = match info.ce_weight {
        Some(ce) => format!("{ce} for the cross-entropy, {} for the method", info.weight),
        None => info.weight.to_string(),
    };
    // A task loss is named only where a row has nothing else.
    let is_task = |config: &LossConfig| config.info().ce_weight.is_none();
    let uses = |row: &Row| {
        let mut losses = row.losses.iter().map(toml::Spanned::as_ref);
        losses.clone().any(|config| config.id() == info.id) && (info.ce_weight.is_some() || losses.all(is_task))
    };
    let code = if info.code_bases.is_empty() { "none".to_string() } else { info.code_bases.join(", ") };
    let lines = [
        ("Source", row.source()),
        ("Family", family.to_string()),
        ("Code bases compared with", code),
        ("Reads (s student, t teacher)", reads.collect::<Vec<_>>().join(", ")),
        ("Trainable parts", none(trainable)),
        ("Cost of a step, measured", measured(cost, extra)),
        ("Extra phase", none(phase)),
        ("State in a checkpoint", none(state)),
        ("Default weights", weights),
        ("Tables", usage(manifests, uses)),
    ];
    heading(info.title, info.id, &lines)
}

/// Relative to plain training; see [`Costs`].
fn measured(cost: &str, extra: &str) -> String {
    match cost {
        "-" => "not measured".into(),
        cost => format!(
            "{cost} (of plain training, see the [index](README.md)); {extra} trainable numbers beside the student's"
        ),
    }
}

/// The tables with such rows.
fn usage(manifests: &[Loaded], uses: impl Fn(&Row) -> bool) -> String {
    let mut found = Vec::new();
    for loaded in manifests {
        let rows = loaded.manifest.methods.iter().filter(|row| uses(row));
        let rows: Vec<String> = rows.map(|row| format!("`{}`", row.id.as_ref())).collect();
        if !rows.is_empty() {
            found.push(format!("`{}` (rows {})", loaded.name, rows.join(", ")));
        }
    }
    if found.is_empty() { "none".into() } else { found.join("; ") }
}

/// The upper part of the page of a system.
fn system(config: &SystemConfig, row: &MethodRow, manifests: &[Loaded]) -> String {
    let none = |cell: &str| if cell == "-" { "none".to_string() } else { cell.to_string() };
    let [_, family, .., trainable, state, _, _, extra, cost, _] = row.cells();
    let start = match config.teachers() {
        Teachers::None => "nothing".to_string(),
        Teachers::Any => "any number of trained networks".into(),
        Teachers::One => "a trained network".into(),
        Teachers::Of(id) => format!("a teacher of the system [`{id}`]({id}.md)"),
    };
    let code = config.info().code_bases;
    let lines = [
        ("Source", row.source()),
        ("Family", family.to_string()),
        ("Code bases compared with", if code.is_empty() { "none".into() } else { code.join(", ") }),
        ("Starts from", start),
        ("Trainable parts", none(trainable)),
        ("Cost of a step, measured", measured(cost, extra)),
        ("State in a checkpoint", none(state)),
        ("Tables", system_usage(config.id(), manifests)),
    ];
    heading(row.title(), config.id(), &lines)
}

/// The tables with rows or teachers of a system.
fn system_usage(id: &str, manifests: &[Loaded]) -> String {
    let of_teachers = |loaded: &&Loaded| loaded.manifest.teachers.iter().any(|t| t.system.as_ref().id() == id);
    let teachers: Vec<String> =
        manifests.iter().filter(of_teachers).map(|loaded| format!("`{}` (teachers)", loaded.name)).collect();
    let rows = usage(manifests, |row| row.system.as_ref().is_some_and(|system| system.as_ref().id() == id));
    match teachers.is_empty() {
        true => rows,
        false => [vec![rows].into_iter().filter(|rows| rows != "none").collect(), teachers].concat().join("; "),
    }
}

/// The fields of a configuration; `tag` is the one that names it.
fn defaults(config: &impl serde::Serialize, tag: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::to_value(config) else {
        unreachable!("a configuration is a table of fields")
    };
    let fields: Vec<(&String, &Value)> = fields.iter().filter(|(name, _)| *name != tag).collect();
    if fields.is_empty() {
        return "## Defaults\n\nNo settings.\n\n".into();
    }
    let mut text = "## Defaults\n\n".to_string() + &line(["field", "default"]) + &line(["---", "---"]);
    for (name, value) in fields {
        let value = if value.is_null() { "not set".into() } else { format!("`{value}`") };
        text += &line([format!("`{name}`"), value]);
    }
    text + "\n"
}

/// All published tables, by file name.
fn published(folder: &Path) -> Result<Vec<Published>> {
    let tables = names(folder)?.into_iter().filter(|name| name.ends_with(".json"));
    tables.map(|name| Published::read(&folder.join(name))).collect()
}

/// Names of the files in a folder, sorted; none where there is no folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let unreadable = |e: std::io::Error| Error::file(folder, format!("cannot read: {e}"));
    let entries = fs::read_dir(folder).map_err(unreadable)?.collect::<std::io::Result<Vec<_>>>().map_err(unreadable)?;
    let mut names: Vec<String> = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

impl Published {
    /// A table of the rows in which a method occurs, alone or with others; empty where there is none.
    fn gains(&self, id: &str, names: &PublishedNames) -> String {
        let mut lines = String::new();
        let mut sources = BTreeSet::new();
        for row in self.rows.iter().filter(|row| names.is_of(&row.method, id)) {
            let Some(value) = row.value else { continue };
            sources.insert(row.source.as_str());
            let pair = match row.teacher.as_str() {
                "" => row.student.clone(),
                teacher => format!("{teacher} -> {}", row.student),
            };
            // Some tables have nothing that a row could be compared with.
            let (reference, without, gain) = match self.reference(row) {
                Some((name, without)) => (name, format!("{without:.2}"), format!("{:+.2}", value - without)),
                None => ("-", "-".into(), "-".into()),
            };
            lines += &line([pair, row.method.clone(), reference.into(), without, format!("{value:.2}"), gain]);
        }
        if lines.is_empty() {
            return lines;
        }
        let sources: Vec<&str> = sources.into_iter().collect();
        format!(
            "Accuracy in percent on {}: {}, {}; source: {}.\n\n{}{}{lines}\n",
            self.dataset,
            self.paper,
            self.table,
            sources.join(", "),
            line(["networks", "row", "reference", "accuracy of the reference", "of the row", "gain"]),
            "|---|---|---|---:|---:|---:|\n",
        )
    }

    /// What the gain of a row is over: the plain student of the same pair or, in tables without it, KD.
    fn reference(&self, of: &PublishedRow) -> Option<(&str, f64)> {
        let same = |row: &&PublishedRow| row.teacher == of.teacher && row.student == of.student;
        let named = |name: &&str| self.rows.iter().filter(same).find(|row| row.method == **name);
        let row = REFERENCES.iter().filter(|name| **name != of.method).find_map(named)?;
        Some((row.method.as_str(), row.value?))
    }
}

/// Files in the folder that are the page of no method.
fn strangers(folder: &Path, pages: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let strange = names(folder)?.into_iter().filter(|name| !pages.contains_key(name));
    Ok(strange.map(|name| format!("{name}: no method of this name")).collect())
}

/// What follows the generated part.
fn by_hand(text: &str) -> std::result::Result<&str, String> {
    let rest = text.strip_prefix(BEGIN).and_then(|rest| rest.split_once(END));
    let message = || format!("expected `{}` in the first line and `{}` below it", BEGIN.trim(), END.trim());
    rest.map(|(_, lower)| lower).ok_or_else(message)
}

fn skeleton(name: &str) -> String {
    if name == INDEX {
        return String::new();
    }
    SECTIONS.iter().map(|section| format!("\n## {section}\n")).collect()
}

/// Sections that a hand-written part lacks or leaves empty.
fn unwritten(lower: &str) -> Vec<&'static str> {
    let filled = |section: &&str| {
        let heading = format!("\n## {section}\n");
        let body = lower.split_once(&heading).map(|(_, rest)| rest.split("\n## ").next().unwrap_or(rest));
        body.is_some_and(|body| !body.trim().is_empty())
    };
    SECTIONS.into_iter().filter(|section| !filled(section)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gains_are_differences_to_the_reference_of_the_pair() {
        let row = |method: &str, student: &str, value: f64| PublishedRow {
            method: method.into(),
            teacher: "big".into(),
            student: student.into(),
            value: Some(value),
            source: "there".into(),
        };
        let rows = vec![
            row("student", "a", 70.0),
            row("student", "b", 60.0),
            row("KD", "a", 72.5),
            row("CRD+KD", "b", 59.0),
            row("SKD", "a", 1.0),
            row("KD", "c", 1.0),
            row("DKD", "c", 3.0),
        ];
        let table = Published { paper: "P".into(), table: "T".into(), dataset: "D".into(), rows };
        let mut names = PublishedNames::default();
        let gains = |id: &str| table.gains(id, &names);
        let text = gains("kd");
        assert!(text.contains("| big -> a | KD | student | 70.00 | 72.50 | +2.50 |"), "{text}");
        assert!(text.contains("| big -> b | CRD+KD | student | 60.00 | 59.00 | -1.00 |"), "{text}");
        assert!(!text.contains("SKD") && text.contains("| big -> c | KD | - | - | 1.00 | - |"), "{text}");
        // Where a table has no plain student, KD is what it compares with.
        assert!(gains("dkd").contains("| big -> c | DKD | KD | 1.00 | 3.00 | +2.00 |"), "{}", gains("dkd"));
        assert_eq!(gains("at"), "");
        // A manifest knows better than the name.
        names.0.insert("SKD".into(), BTreeSet::from(["at".to_string()]));
        assert!(table.gains("at", &names).contains("| big -> a | SKD | student |"));
        assert_eq!(table.gains("skd", &names), "");
    }

    #[test]
    fn sections_must_have_text() {
        let all: String = SECTIONS.iter().map(|section| format!("\n## {section}\n\ntext\n")).collect();
        assert!(unwritten(&all).is_empty());
        assert_eq!(unwritten(&skeleton("kd.md")), SECTIONS);
        assert_eq!(unwritten(&all.replace("\n## Cost\n\ntext\n", "\n## Cost\n\n")), ["Cost"]);
        assert!(by_hand("text").is_err() && by_hand(&format!("{BEGIN}a\n")).is_err());
        assert_eq!(by_hand(&format!("{BEGIN}a\n{END}rest")), Ok("rest"));
    }
}
