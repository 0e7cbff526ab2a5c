//! Tables without a teacher: online and self-distillation, and the rule by which an epoch's accuracy is chosen.

use super::Lab;
use serde_json::Value;
use std::fs;

const COHORTS: &str = r#"
title = "Cohorts"
paper = "none"
baseline = "ce"
default_profile = "quick"
measures = [{ name = "networks", label = "mean %" }, { name = "ensemble", label = "ensemble %" }]

[[methods]]
id = "ce"
label = "cross-entropy"
losses = [{ method = "ce" }]

[[methods]]
id = "dml"
label = "DML"
system = { kind = "dml", others = 2 }

[[methods]]
id = "cs-kd"
label = "CS-KD"
system = { kind = "cs-kd" }

[[methods]]
id = "cutout"
label = "Cutout"
losses = [{ method = "ce" }]
augmentation_before = [{ kind = "horizontal-flip", probability = 0.5 }]
augmentation_behind = [{ kind = "cutout", length = 2 }]

[profiles.quick]
about = "For tests."
data = { name = "digits-8x8", train = 60, test = 40 }
pairs = [{ student = "resnet8" }]
seeds = 1
batch_size = 20
augmentation = [{ kind = "random-crop", padding = 1 }]
student = { epochs = 3, evaluate_every = 1, optimizer = { kind = "sgd", momentum = 0.9 }, schedule = { lr = 0.05 } }

[profiles.quick.systems]
dml = { kind = "dml", others = 1, loss = { temperature = 2.0 } }
"#;

fn lines(lab: &Lab, plan: &str, what: &str) -> Vec<Value> {
    let line = plan.lines().find(|line| line.contains(&format!("  {what}"))).unwrap();
    let id = line.split_whitespace().next().unwrap();
    let text = fs::read_to_string(lab.path(&format!("runs/records/{id}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn networks_without_a_teacher_make_a_table() {
    let lab = Lab::with(COHORTS);
    let plan = lab.ok(&["reproduce", "tiny", "--plan"]);
    assert_eq!(plan.lines().count(), 4, "{plan}");
    let text = lab.ok(&["reproduce", "tiny"]);
    assert!(text.contains("\nresnet8\n") && !text.contains("->") && !text.contains("teacher 1 epochs"), "{text}");
    assert!(text.contains("those of the last epoch"), "{text}");
    let dml = lines(&lab, &plan, "dml, seed 1");
    assert_eq!(dml[0]["spec"]["system"]["loss"]["temperature"], 2.0, "the profile's own settings");
    let result = dml.iter().find(|line| line["event"] == "result").unwrap();
    let epochs: Vec<&Value> = dml.iter().filter(|line| line["event"] == "epoch").collect();
    let accuracy = |epoch: &Value, name: &str| epoch["evaluations"][name]["accuracy"].as_f64().unwrap();
    let last = epochs.last().unwrap();
    let mean = 0.5 * (accuracy(last, "student") + accuracy(last, "peer1"));
    assert_eq!(result["measures"]["networks"].as_f64(), Some(mean), "{result}");
    let best = epochs.iter().map(|epoch| accuracy(epoch, "ensemble")).fold(0.0, f64::max);
    assert_eq!(result["measures"]["best.ensemble"].as_f64(), Some(best), "{result}");
    let kinds: Vec<String> = lines(&lab, &plan, "cutout, seed 1")[0]["spec"]["augmentation"]
        .as_array()
        .unwrap()
        .iter()
        .map(|transform| transform["kind"].to_string())
        .collect();
    assert_eq!(kinds, [r#""horizontal-flip""#, r#""random-crop""#, r#""cutout""#]);
}

#[test]
fn the_rule_holds_for_every_accuracy_of_a_table() {
    let lab = Lab::with(COHORTS);
    lab.ok(&["reproduce", "tiny"]);
    let plan = lab.ok(&["reproduce", "tiny", "--plan"]);
    let dml = lines(&lab, &plan, "dml, seed 1");
    let result = dml.iter().find(|line| line["event"] == "result").unwrap().clone();
    let manifest = COHORTS.replacen("seeds = 1", "seeds = 1\nrule = \"best-epoch\"", 1);
    fs::write(lab.path("experiments/tiny.toml"), manifest).unwrap();
    // Nothing runs again: the rule is the table's.
    let text = lab.ok(&["reproduce", "tiny", "--from", "runs/records"]);
    assert!(text.contains("best evaluated epoch"), "{text}");
    let row = text.lines().find(|line| line.contains("DML")).unwrap();
    let percent = |value: &Value| format!("{:.2}", 100.0 * value.as_f64().unwrap());
    for value in [&result["best_accuracy"], &result["measures"]["best.networks"], &result["measures"]["best.ensemble"]]
    {
        assert!(row.contains(&percent(value)), "{} in {row}", percent(value));
    }
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    let wrong = |from: &str, to: &str, parts: &[&str]| {
        assert!(COHORTS.contains(from), "{from}");
        let text = Lab::with(&COHORTS.replacen(from, to, 1)).refused(&["reproduce", "tiny", "--plan"]);
        for part in parts {
            assert!(text.contains(part), "expected `{part}` in: {text}");
        }
    };
    let kd = "losses = [{ method = \"kd\" }]";
    wrong(r#"system = { kind = "cs-kd" }"#, kd, &["tiny.toml:", "`cs-kd` needs a teacher", "`resnet8`"]);
    wrong(
        r#"pairs = [{ student"#,
        r#"pairs = [{ teacher = "resnet14", student"#,
        &["`teacher` is missing", "resnet14"],
    );
    wrong("dml = { kind = \"dml\", others", "dlm = { kind = \"dml\", others", &["did you mean `dml`"]);
    wrong(
        "dml = { kind = \"dml\", others = 1, loss = { temperature = 2.0 } }",
        "dml = { kind = \"cs-kd\" }",
        &["changes settings, not the kind", "`dml`", "`cs-kd`"],
    );
    wrong("temperature = 2.0", "temperature = 0.0", &["tiny.toml:", "temperature"]);
    wrong("others = 2", "others = 99", &["`others`", "99"]);
    wrong("seeds = 1", "seeds = 1\nrule = \"best\"", &["expected `last` or `best-epoch`"]);
    wrong("length = 2", "length = 0", &["cutout", "length"]);
    let batches = "system = { kind = \"cs-kd\" }\nbatches = { kind = \"class-balanced\", classes = 5 }";
    wrong(r#"system = { kind = "cs-kd" }"#, batches, &["cs-kd", "SameClassPartners"]);
}
