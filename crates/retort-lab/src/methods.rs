//! The table of methods: what each one reads, trains and keeps, from the registry of losses.

use crate::costs::Costs;
use retort_losses::feature::FtConfig;
use retort_losses::{ExtraPhase, Family, Inputs, LossConfig, MapChoice, MethodInfo, Side};
use retort_nn::OptimizerConfig;
use retort_trainers::{Kind, SystemConfig};
use serde::Serialize;
use serde_json::Value;

/// One method in words; `-` where there is nothing to say. `s` is the student, `t` the teacher.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MethodRow {
    pub(crate) id: String,
    title: String,
    paper: Option<String>,
    year: Option<u16>,
    arxiv: Option<String>,
    family: String,
    logits: String,
    pooled: String,
    maps: String,
    labels: String,
    sample_index: String,
    extra_phase: String,
    trainable: String,
    state: String,
    /// Cross-entropy / method.
    default_weight: String,
    /// The other numbers and words among the defaults.
    settings: String,
    /// Trainable numbers beside the student's, where they were measured.
    extra_parameters: String,
    /// Time and memory of a step relative to plain training, where they were measured.
    cost: String,
    code_base: String,
}

/// Headings of [`MethodRow::cells`].
pub(crate) const COLUMNS: [&str; 15] = [
    "method",
    "family",
    "logits",
    "pooled",
    "maps (post/pre)",
    "labels",
    "sample index",
    "extra phase",
    "trainable",
    "state",
    "weight (CE / method)",
    "settings",
    "extra parameters",
    "cost (of plain training)",
    "code base",
];

impl MethodRow {
    fn new(config: &LossConfig) -> Self {
        let info = config.info();
        let yes = |flag: bool| if flag { "yes" } else { "-" }.to_string();
        let inputs = &info.inputs;
        Self {
            id: info.id.into(),
            title: info.title.into(),
            paper: info.paper.map(String::from),
            year: info.year,
            arxiv: info.arxiv.map(String::from),
            family: family(info.family).into(),
            logits: side(inputs.logits).into(),
            pooled: side(inputs.embedding).into(),
            maps: maps(inputs),
            labels: yes(inputs.labels),
            sample_index: yes(inputs.index),
            extra_phase: phase(info.phase),
            trainable: list(&trainable(info)),
            state: list(&state(info)),
            default_weight: weights(info),
            settings: settings(config, &["method", "weight"]),
            extra_parameters: "-".into(),
            cost: "-".into(),
            code_base: code_base(info.code_bases),
        }
    }

    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// Paper, year and arXiv page in Markdown.
    pub(crate) fn source(&self) -> String {
        let source = match (&self.paper, self.year) {
            (Some(paper), Some(year)) => format!("{paper} ({year})"),
            (Some(paper), None) => paper.clone(),
            (None, _) => "none".into(),
        };
        match &self.arxiv {
            Some(id) => format!("{source}, [arXiv {id}](https://arxiv.org/abs/{id})"),
            None => source,
        }
    }

    pub(crate) fn cells(&self) -> [&str; 15] {
        [
            &self.id,
            &self.family,
            &self.logits,
            &self.pooled,
            &self.maps,
            &self.labels,
            &self.sample_index,
            &self.extra_phase,
            &self.trainable,
            &self.state,
            &self.default_weight,
            &self.settings,
            &self.extra_parameters,
            &self.cost,
            &self.code_base,
        ]
    }
}

pub(crate) fn family(family: Family) -> &'static str {
    match family {
        Family::Output => "output",
        Family::Feature => "feature",
        Family::Relational => "relational",
        Family::Contrastive => "contrastive",
        Family::Distribution => "distribution",
    }
}

fn side(side: Side) -> &'static str {
    match side {
        Side::None => "-",
        Side::Student => "s",
        Side::Teacher => "t",
        Side::Both => "s,t",
    }
}

fn maps(inputs: &Inputs) -> String {
    let which = match inputs.which {
        MapChoice::None => return "-".into(),
        MapChoice::Stages => "stages".into(),
        MapChoice::StemAndStages => "stem + stages".into(),
        MapChoice::Last => "last".into(),
        MapChoice::Entry(index) => format!("list entry {index}"),
    };
    let sides = [("post", inputs.maps), ("pre", inputs.pre_activations)];
    let sides = sides.iter().filter(|(_, of)| *of != Side::None);
    let mut parts: Vec<String> = sides.map(|(name, of)| format!("{name} {}", side(*of))).collect();
    parts.push(which);
    parts.extend(inputs.teacher_norms.then(|| "t's batch norms".into()));
    parts.join("; ")
}

fn phase(phase: Option<ExtraPhase>) -> String {
    match phase {
        None => "-".into(),
        Some(ExtraPhase::InitStudent(epochs)) => format!("init {epochs} epochs, then cross-entropy only"),
        Some(ExtraPhase::InitParts(epochs)) => format!("init {epochs} epochs, parts only"),
        Some(ExtraPhase::Ramp(epochs)) => format!("weight ramp, {epochs} epochs"),
    }
}

fn trainable(info: &MethodInfo) -> Vec<&'static str> {
    let student = matches!(info.phase, Some(ExtraPhase::InitStudent(_))).then_some("student up to its last map (init)");
    info.trainable.iter().copied().chain(student).collect()
}

/// What a run has to know in order to go on, the trainer's epoch where a weight depends on it.
fn state(info: &MethodInfo) -> Vec<&'static str> {
    let epoch = matches!(info.phase, Some(ExtraPhase::Ramp(_))).then_some("epoch");
    let margins = info.inputs.teacher_norms.then_some("margins (from t's batch norms)");
    info.state.iter().chain(info.buffers).copied().chain(epoch).chain(margins).collect()
}

/// `temperature 4, variant rep-distiller`: every default that is a number or a word, but for those called `besides`.
fn settings(config: &impl Serialize, besides: &[&str]) -> String {
    let words = words(&serde_json::to_value(config).unwrap_or_default(), besides).join(", ");
    if words.is_empty() { "-".into() } else { words }
}

fn words(config: &Value, besides: &[&str]) -> Vec<String> {
    let fields = config.as_object().into_iter().flatten().filter(|(name, _)| !besides.contains(&name.as_str()));
    let of_field = |(name, value): (&String, &Value)| match value {
        Value::String(word) => vec![format!("{name} {word}")],
        Value::Number(number) => vec![format!("{name} {}", number.as_f64().unwrap_or_default())],
        // The settings of a system's loss.
        Value::Object(_) if name == "loss" => {
            words(value, &["kind"]).iter().map(|word| format!("{name}.{word}")).collect()
        }
        _ => Vec::new(),
    };
    fields.flat_map(of_field).collect()
}

fn list(words: &[&str]) -> String {
    if words.is_empty() { "-".into() } else { words.join(", ") }
}

fn weights(info: &MethodInfo) -> String {
    match info.ce_weight {
        Some(ce) => format!("{ce} / {}", info.weight),
        None => format!("{} / -", info.weight),
    }
}

fn code_base(code_bases: &[&str]) -> String {
    let name = |path: &&str| path.rsplit('/').next().unwrap_or(path).to_string();
    match code_bases {
        [] => "-".into(),
        some => some.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

/// Every method in the order of the registry; before `ft` the phase that trains its paraphraser; then the optimiser that
/// treats the gradients of task and method apart, and the systems with terms of their own.
pub(crate) fn rows() -> Vec<MethodRow> {
    let mut rows = Vec::new();
    for config in LossConfig::defaults() {
        let row = MethodRow::new(&config);
        if config.id() == "ft" {
            rows.push(paraphraser(&row));
        }
        rows.push(row);
    }
    rows.push(dot());
    rows.extend(SystemConfig::defaults().iter().filter(|config| !config.info().losses).map(system));
    let measured = Costs::measured().map(|costs| costs.methods).unwrap_or_default();
    for row in &mut rows {
        if let Some(cost) = measured.get(&row.id) {
            row.extra_parameters = cost.parameters.to_string();
            row.cost = cost.to_string();
        }
    }
    rows
}

/// A kind of training with terms of its own.
fn system(config: &SystemConfig) -> MethodRow {
    let info = config.info();
    let none = "-".to_string();
    let labels = if info.kind == Kind::SelfSupervised { none.clone() } else { "yes".into() };
    MethodRow {
        id: info.id.into(),
        title: info.title.into(),
        paper: info.paper.map(String::from),
        year: info.year,
        arxiv: info.arxiv.map(String::from),
        family: format!("{}{}", kind(info.kind), if info.is_reconstruction() { " (reconstruction)" } else { "" }),
        logits: none.clone(),
        pooled: none.clone(),
        maps: none.clone(),
        labels,
        sample_index: none.clone(),
        extra_phase: none.clone(),
        trainable: list(info.trainable),
        state: list(info.state),
        default_weight: none.clone(),
        settings: settings(config, &["kind"]),
        extra_parameters: none.clone(),
        cost: none,
        code_base: code_base(info.code_bases),
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Offline => "offline system",
        Kind::Online => "online system",
        Kind::SelfDistillation => "self-distillation",
        Kind::SelfSupervised => "self-supervised teacher",
        Kind::Teacher => "teacher of a system",
    }
}

fn paraphraser(ft: &MethodRow) -> MethodRow {
    MethodRow {
        id: "ft-paraphraser".into(),
        title: "Paraphraser of factor transfer".into(),
        maps: "post t; last".into(),
        extra_phase: format!("the phase before ft, {} epochs", FtConfig::default().init_epochs),
        trainable: "paraphraser".into(),
        state: "-".into(),
        default_weight: "- / 1".into(),
        settings: "-".into(),
        ..ft.clone()
    }
}

fn dot() -> MethodRow {
    let default: OptimizerConfig = serde_json::from_str(r#"{"kind": "dot"}"#).expect("every field has a default");
    let OptimizerConfig::Dot { momentum, delta, .. } = default else { unreachable!("the kind is `dot`") };
    let [any, none] = ["any", "-"].map(String::from);
    MethodRow {
        id: "dot".into(),
        title: "Distillation-oriented trainer (optimiser kind `dot`)".into(),
        paper: Some("DOT: A Distillation-Oriented Trainer".into()),
        year: Some(2023),
        arxiv: Some("2307.08436".into()),
        family: "trainer".into(),
        logits: any.clone(),
        pooled: any.clone(),
        maps: any,
        labels: "yes".into(),
        sample_index: none.clone(),
        extra_phase: none.clone(),
        trainable: none,
        state: "two momentum buffers".into(),
        default_weight: "-".into(),
        settings: format!("momentum {momentum}, delta {delta}"),
        extra_parameters: "-".into(),
        cost: "-".into(),
        code_base: code_base(&["megvii-research/mdistiller"]),
    }
}

/// A table in plain text.
pub(crate) fn table(rows: &[MethodRow]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN).set_header(COLUMNS);
    for row in rows {
        table.add_row(row.cells());
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_row_for_every_method_and_system_and_two_more() {
        let rows = rows();
        assert_eq!(rows.len(), LossConfig::defaults().len() + 2 + retort_trainers::systems().len() - 1);
        let row = |id: &str| rows.iter().find(|row| row.id == id).unwrap().cells();
        assert_eq!(row("kd")[1..3], ["output", "s,t"]);
        assert_eq!(row("kd")[10..12], ["0.1 / 0.9", "temperature 4"]);
        assert_eq!(row("kd")[14], "RepDistiller, mdistiller");
        assert_eq!(row("ce")[10], "1 / -");
        assert_eq!(row("at")[4], "post s,t; stages");
        assert_eq!(row("sp")[4], "post s,t; last");
        assert_eq!(row("fitnet")[4], "post s,t; list entry 2");
        assert_eq!(row("reviewkd")[4], "post s; pre t; stages");
        assert_eq!(row("ofd")[4], "pre s,t; stages; t's batch norms");
        assert_eq!(row("dkd")[7..10], ["weight ramp, 20 epochs", "-", "epoch"]);
        assert_eq!(row("fsp")[7], "init 30 epochs, then cross-entropy only");
        assert_eq!(row("dot")[11], "momentum 0.9, delta 0.075");
        assert!(row("crd")[5..7] == ["yes", "yes"] && row("ft-paraphraser")[7].contains("30 epochs"));
        let text = table(&rows);
        assert!(text.lines().count() == rows.len() + 2 && text.contains("ft-paraphraser"), "{text}");
    }
}
