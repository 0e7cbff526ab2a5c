//! The table of methods: what each one reads, trains and keeps, from the registry of losses.

use retort_losses::feature::FtConfig;
use retort_losses::{Family, MethodInfo, Side, registry};
use retort_nn::OptimizerConfig;
use serde::Serialize;

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
    code_base: String,
}

/// Headings of [`MethodRow::cells`].
pub(crate) const COLUMNS: [&str; 12] = [
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
    "code base",
];

impl MethodRow {
    fn new(info: &MethodInfo) -> Self {
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
            maps: maps(inputs.maps, inputs.pre_activations),
            labels: yes(inputs.labels),
            sample_index: yes(inputs.index),
            extra_phase: info.phase.unwrap_or("-").into(),
            trainable: list(info.trainable),
            state: list(&[info.state, info.buffers].concat()),
            default_weight: weights(info),
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

    pub(crate) fn cells(&self) -> [&str; 12] {
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

fn maps(post: Side, pre: Side) -> String {
    let parts =
        [("post", post), ("pre", pre)].map(|(name, of)| (of != Side::None).then(|| format!("{name} {}", side(of))));
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "-".into() } else { parts.join("; ") }
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

/// Every method in the order of the registry; before `ft` the phase that trains its paraphraser, and at the end the
/// optimiser that treats the gradients of task and method apart.
pub(crate) fn rows() -> Vec<MethodRow> {
    let mut rows = Vec::new();
    for info in registry() {
        let row = MethodRow::new(info);
        if info.id == "ft" {
            rows.push(paraphraser(&row));
        }
        rows.push(row);
    }
    rows.push(dot());
    rows
}

fn paraphraser(ft: &MethodRow) -> MethodRow {
    MethodRow {
        id: "ft-paraphraser".into(),
        title: "Paraphraser of factor transfer".into(),
        maps: maps(Side::Teacher, Side::None),
        extra_phase: format!("the phase before ft, {} epochs", FtConfig::default().init_epochs),
        trainable: "paraphraser".into(),
        state: "-".into(),
        default_weight: "- / 1".into(),
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
        default_weight: format!("momentum {momentum}, delta {delta}"),
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
    fn there_is_a_row_for_every_method_and_two_more() {
        let rows = rows();
        assert_eq!(rows.len(), registry().len() + 2);
        let row = |id: &str| rows.iter().find(|row| row.id == id).unwrap().cells();
        assert_eq!(row("kd")[1..3], ["output", "s,t"]);
        assert_eq!(row("kd")[10..], ["0.1 / 0.9", "RepDistiller, mdistiller"]);
        assert_eq!(row("ce")[10], "1 / -");
        assert_eq!(row("at")[4], "post s,t");
        assert_eq!(row("reviewkd")[4], "post s; pre t");
        assert_eq!(row("dot")[10], "momentum 0.9, delta 0.075");
        assert!(row("crd")[5..7] == ["yes", "yes"] && row("ft-paraphraser")[7].contains("30 epochs"));
        let text = table(&rows);
        assert!(text.lines().count() == rows.len() + 2 && text.contains("ft-paraphraser"), "{text}");
    }
}
