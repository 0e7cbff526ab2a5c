//! Rows with systems, ensembles, other modalities and probes, from a manifest to the table.

use super::{Lab, reproducible};
use std::fs;

const SYSTEMS: &str = r#"
title = "Systems"
paper = "none"
baseline = "ce"
default_profile = "quick"
measures = [{ name = "ensemble", label = "teachers %" }, { name = "term:hsakd.kd", label = "kd" }]

[[teachers]]
id = "heads"
label = "teacher + heads"
system = { kind = "hsakd-teacher" }

[[teachers]]
id = "joint"
label = "joint"
system = { kind = "hsakd-teacher", joint = true }

[[methods]]
id = "ce"
label = "cross-entropy"
losses = [{ method = "ce" }]

[[methods]]
id = "hsakd"
label = "HSAKD"
system = { kind = "hsakd" }
teacher = "heads"

[[methods]]
id = "online"
label = "online"
system = { kind = "hssakd-online" }

[[methods]]
id = "kd-2"
label = "two teachers"
losses = [{ method = "ce" }, { method = "kd" }, { method = "crd", negatives = 8, dim = 16 }]
ensemble = 2

[profiles.quick]
about = "For tests."
data = { name = "digits-8x8", train = 60, test = 40 }
pairs = [{ teacher = "resnet14", student = "resnet8" }]
seeds = 1
batch_size = 20
augmentation = [{ kind = "random-crop", padding = 1 }]
teacher = { epochs = 1, optimizer = { kind = "sgd", momentum = 0.9 }, schedule = { lr = 0.05 } }
student = { epochs = 1, optimizer = { kind = "sgd", momentum = 0.9 }, schedule = { lr = 0.05 } }

[profiles.quick.teachers.heads]
epochs = 2
optimizer = { kind = "sgd", momentum = 0.9 }
schedule = { lr = 0.02 }
"#;

const PROBED: &str = r#"
title = "Probed"
paper = "none"
baseline = "random"
default_profile = "quick"
default_teacher = "views"
measures = [{ name = "knn-1", label = "1-NN %" }, { name = "linear-f2", label = "stage 2 %" }]

[[teachers]]
id = "views"
label = "VICReg"
system = { kind = "self-supervised", projector = [16, 16] }

[[methods]]
id = "random"
label = "untrained"
losses = [{ method = "ce" }]
epochs = 0

[[methods]]
id = "simreg"
label = "SimReg"
losses = [{ method = "simreg", head = "linear" }]
unlabelled = true

[[methods]]
id = "plain-teacher"
label = "SimReg, plain images for the teacher"
losses = [{ method = "simreg", head = "linear" }]
unlabelled = true
teacher_augmentation = []
system = { kind = "distil", teacher_table = true }

[[methods]]
id = "labels"
label = "labels"
losses = [{ method = "ce" }]
data = "probe"

[profiles.quick]
about = "For tests."
data = { name = "digits-8x8", skip = 100, train = 60, test = 40 }
teacher_data = { name = "digits-8x8", train = 100, test = 40 }
modality = "sobel"
teacher_modality = "stored"
pairs = [{ teacher = "resnet14", student = "resnet8" }]
seeds = 1
batch_size = 20
augmentation = [{ kind = "random-crop", padding = 1 }]
teacher = { epochs = 1, optimizer = { kind = "sgd", momentum = 0.9 }, schedule = { lr = 0.05 } }
student = { epochs = 1, optimizer = { kind = "sgd", momentum = 0.9 }, schedule = { lr = 0.05 } }

[profiles.quick.probe]
data = { name = "digits-8x8", skip = 100, train = 40, test = 40 }
config = { knn = [1, 3], linear = { epochs = 3, batch_size = 10, lr = 0.1 }, stages = true }
"#;

fn record(lab: &Lab, plan: &str, what: &str) -> serde_json::Value {
    let line = plan.lines().find(|line| line.contains(&format!("  {what}"))).unwrap();
    let id = line.split_whitespace().next().unwrap();
    let text = fs::read_to_string(lab.path(&format!("runs/records/{id}.jsonl"))).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    serde_json::Value::Array(lines)
}

#[test]
fn systems_and_ensembles_run_from_a_manifest_and_again() {
    let lab = Lab::with(SYSTEMS);
    let plan = lab.ok(&["reproduce", "tiny", "--plan"]);
    // Two plain teachers, one with heads; nobody asks for the joint one.
    assert_eq!(plan.lines().count(), 3 + 4, "{plan}");
    let text = lab.ok(&["reproduce", "tiny"]);
    for part in ["teacher + heads", "HSAKD", "two teachers", "teachers %"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("joint"), "{text}");
    let ensemble = record(&lab, &plan, "kd-2, seed 1");
    let result = ensemble.as_array().unwrap().iter().find(|line| line["event"] == "result").unwrap();
    for measure in ["ensemble", "disagreement"] {
        assert!(result["measures"][measure].as_f64().is_some_and(|x| (0.0..=1.0).contains(&x)), "{result}");
    }
    let heads = record(&lab, &plan, "heads");
    assert_eq!(heads[0]["spec"]["system"]["kind"], "hsakd-teacher");
    assert!(heads[0]["spec"]["teacher"]["system"].is_null(), "the plain teacher keeps the id of old records");
    // The same again, somewhere else, from the records alone.
    let line = plan.lines().find(|line| line.contains("  hsakd, seed 1")).unwrap();
    let id = line.split_whitespace().next().unwrap();
    let text = lab.ok(&["rerun", &format!("runs/records/{id}.jsonl")]);
    assert!(text.contains("agrees with"), "{text}");
    let before = reproducible(&lab.path("runs/records"));
    let other = Lab::with(SYSTEMS);
    other.ok(&["reproduce", "tiny", "--threads", "1", "--jobs", "1"]);
    assert_eq!(before, reproducible(&other.path("runs/records")));
}

#[test]
fn students_without_labels_are_judged_by_probes() {
    let lab = Lab::with(PROBED);
    let plan = lab.ok(&["reproduce", "tiny", "--plan"]);
    let text = lab.ok(&["reproduce", "tiny"]);
    for part in ["VICReg", "untrained", "1-NN %", "stage 2 %", "trained on 40 labelled images"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let result = |what: &str| {
        let lines = record(&lab, &plan, what);
        lines.as_array().unwrap().iter().find(|line| line["event"] == "result").unwrap().clone()
    };
    let simreg = result("simreg, seed 1");
    assert_eq!(simreg["accuracy"], simreg["measures"]["linear"]);
    assert!(simreg["measures"]["classifier"].is_null() && simreg["agreement"].is_null(), "{simreg}");
    assert!(simreg["measures"]["embedding-cosine"].is_number(), "{simreg}");
    assert!(result("labels, seed 1")["measures"]["classifier"].is_number());
    assert_eq!(record(&lab, &plan, "random, seed 1").as_array().unwrap().len(), 3, "no epoch");
    assert_eq!(fs::read_dir(lab.path("runs/teacher-outputs")).unwrap().count(), 1);
    let train = |what: &str| record(&lab, &plan, what)[0]["spec"]["data"]["train_digest"].clone();
    let digests = [train("views"), train("simreg, seed 1"), train("labels, seed 1")];
    assert!(digests[0] != digests[1] && digests[1] != digests[2], "{digests:?}");
}

#[test]
fn several_tables_in_one_report() {
    let lab = Lab::with(SYSTEMS);
    fs::write(lab.path("experiments/other.toml"), PROBED).unwrap();
    fs::write(lab.path("experiments/both.toml"), "title = \"Both\"\nparts = [\"tiny\", \"other\"]\n").unwrap();
    let text = lab.ok(&["reproduce", "both", "--only", "kd-2,simreg"]);
    assert!(text.contains("Systems") && text.contains("Probed") && text.contains("one report"), "{text}");
    let report = fs::read_to_string(lab.path("runs/tables/both-quick/table.md")).unwrap();
    assert!(report.starts_with("# Both\n\n## Systems") && report.contains("\n## Probed"), "{report}");
    assert!(lab.ok(&["list", "tables"]).contains("both"));
    // A part with none of the rows is left out, it does not run all of its own.
    let text = lab.ok(&["reproduce", "both", "--only", "simreg"]);
    assert!(!text.contains("Systems") && text.contains("Probed"), "{text}");
    // A profile that only one part has, and a run of a part.
    let more = PROBED.replace("[profiles.quick", "[profiles.more");
    let profiles = more.find("[profiles.more]").unwrap();
    fs::write(lab.path("experiments/other.toml"), format!("{PROBED}{}", &more[profiles..])).unwrap();
    let plan = lab.ok(&["reproduce", "both", "--plan", "--profile", "more"]);
    assert!(plan.contains("simreg") && !plan.contains("kd-2"), "{plan}");
    let text = lab.refused(&["reproduce", "both", "--plan", "--profile", "most"]);
    assert!(text.contains("tiny.toml") && text.contains("unknown profile `most`"), "{text}");
    let id = plan.lines().find(|line| line.contains("random")).unwrap().split_whitespace().next().unwrap();
    assert!(lab.ok(&["train", "experiments/both.toml", "--run", id]).contains(id));
    let text = lab.refused(&["train", "experiments/both.toml", "--run", "0123456789ab"]);
    assert!(text.contains("profile `quick` has no run `0123456789ab`"), "{text}");
    let text = lab.refused(&["reproduce", "both", "--only", "kd-3"]);
    assert!(text.contains("unknown method `kd-3`") && text.contains("did you mean `kd-2`"), "{text}");
    for (parts, message) in [("[]", "at least one table"), ("[\"tiny\", \"tiny\"]", "part `tiny` occurs twice")] {
        fs::write(lab.path("experiments/both.toml"), format!("title = \"Both\"\nparts = {parts}\n")).unwrap();
        let text = lab.refused(&["reproduce", "both", "--plan"]);
        assert!(text.contains("both.toml") && text.contains(message), "{text}");
    }
    fs::write(lab.path("experiments/both.toml"), "title = \"Both\"\nparts = [\"tinny\"]\n").unwrap();
    let text = lab.refused(&["reproduce", "both"]);
    assert!(text.contains("both.toml:2:") && text.contains("did you mean `tiny`"), "{text}");
}

/// Runs the manifest after one replacement and checks that all parts occur in the message.
fn typo(manifest: &str, from: &str, to: &str, parts: &[&str]) {
    assert!(manifest.contains(from), "{from}");
    let text = Lab::with(&manifest.replacen(from, to, 1)).refused(&["reproduce", "tiny", "--plan"]);
    for part in parts {
        assert!(text.contains(part), "expected `{part}` in: {text}");
    }
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    let wrong = |from, to, parts: &[&str]| typo(SYSTEMS, from, to, parts);
    wrong(r#"teacher = "heads""#, r#"teacher = "haeds""#, &["tiny.toml:", "did you mean `heads`"]);
    wrong(r#"teacher = "heads""#, "", &["starts from a teacher of the system `hsakd-teacher`", "heads", "joint"]);
    wrong(r#"kind = "hsakd" }"#, r#"kind = "hsakdd" }"#, &["tiny.toml:", "did you mean `hsakd`"]);
    wrong(r#"kind = "hsakd" }"#, r#"kind = "hsakd", temperture = 2.0 }"#, &["did you mean `temperature`"]);
    wrong(r#"kind = "hsakd" }"#, r#"kind = "hsakd", temperature = 0.0 }"#, &["temperature", "0.001"]);
    wrong(r#"kind = "hssakd-online" }"#, r#"kind = "hssakd-online", peer = "vgg8" }"#, &["tiny.toml:", "vgg8"]);
    wrong("ensemble = 2", "ensemble = 0", &["tiny.toml:", "`ensemble`", "found 0"]);
    wrong(r#"teacher = "heads""#, "teacher = \"heads\"\nensemble = 2", &["`ensemble`", "start from one teacher"]);
    wrong(r#"id = "joint""#, r#"id = "heads""#, &["`heads` occurs twice"]);
    wrong(r#"id = "heads""#, "id = \"heads\"\nfrom = \"joint\"", &["no teacher before `heads`"]);
    wrong(r#"id = "joint""#, "id = \"joint\"\nfrom = \"heads\"", &["tiny.toml:", "`joint` is trained from scratch"]);
    let idle = "label = \"online\"\nteacher = \"heads\"";
    wrong(r#"label = "online""#, idle, &["tiny.toml:", "`hssakd-online` starts from no teacher", "heads"]);
    wrong("[profiles.quick.teachers.heads]", "[profiles.quick.teachers.haeds]", &["did you mean `heads`"]);
    let losses = "losses = [{ method = \"kd\" }]\nteacher = \"heads\"";
    wrong(r#"teacher = "heads""#, losses, &["reads no `losses`", "`kd`"]);
    wrong(r#"label = "online""#, "label = \"online\"\nepochs = 0", &["`epochs = 0` needs profiles with a `probe`"]);
    // A kind without `from` starts from the plain teacher, also where it is itself the default.
    let own = SYSTEMS.replacen("default_profile", "default_teacher = \"heads\"\ndefault_profile", 1);
    Lab::with(&own).ok(&["reproduce", "tiny", "--plan"]);
    let sided = "system = { kind = \"hsakd\" }\nteacher_augmentation = []";
    wrong(r#"system = { kind = "hsakd" }"#, sided, &["tiny.toml:", "`hsakd` shows 1 view(s)", "found 2"]);
    let silent = "losses = [{ method = \"crd\", negatives = 8, dim = 16 }]";
    wrong(
        "losses = [{ method = \"ce\" }, { method = \"kd\" }, { method = \"crd\", negatives = 8, dim = 16 }]",
        silent,
        &["trains no classifier"],
    );
    let smaller = r#"teacher = "resnet14", student = "resnet8""#;
    wrong(smaller, r#"teacher = "resnet14", student = "mlp-512-256-128""#, &["no stages", "mlp-512-256-128"]);

    let wrong = |from, to, parts: &[&str]| typo(PROBED, from, to, parts);
    wrong("{ method = \"simreg\", head = \"linear\" }", "{ method = \"ce\" }", &["`ce` reads labels", "unlabelled"]);
    let kd = "{ method = \"kd\" }";
    wrong("{ method = \"simreg\", head = \"linear\" }", kd, &["`kd` reads the teacher's logits", "self-supervised"]);
    let least = "`self-supervised` needs batches of at least 2 rows";
    wrong("batch_size = 20", "batch_size = 99", &["tiny.toml:", least, "leave 1 for the last one"]);
    wrong("knn = [1, 3]", "knn = [0]", &["tiny.toml:", "knn"]);
    wrong("knn = [1, 3]", "knn = [1, 41]", &["tiny.toml:", "`knn` must be at most the 40 rows", "found 41"]);
    let other = "[profiles.quick.probe]\ndata = { name = \"fashion-mnist-10k\", train = 40, test = 40 }";
    let own = "[profiles.quick.probe]\ndata = { name = \"digits-8x8\", skip = 100, train = 40, test = 40 }";
    wrong(own, other, &["tiny.toml:", "images of 1x8x8", "found 1x28x28"]);
    let smaller = r#"teacher = "resnet14", student = "resnet8""#;
    let mlp = r#"teacher = "resnet14", student = "mlp-512-256-128""#;
    wrong(smaller, mlp, &["tiny.toml:", "`stages` needs networks with stages", "mlp-512-256-128"]);
    wrong("modality = \"sobel\"", "modality = \"chrominance\"", &["modality", "3 (red, green, blue)"]);
    wrong("skip = 100, train = 60", "skip = 7, train = 60", &["tiny.toml:", "`skip`"]);
    wrong("skip = 100, train = 60", "skip = 1000, train = 900", &["rows of class"]);
    wrong("default_teacher = \"views\"", "default_teacher = \"vews\"", &["did you mean `views`"]);
    wrong("teacher_augmentation = []", "", &["teacher_augmentation = []", "augmented"]);
}
