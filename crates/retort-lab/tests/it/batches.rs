//! Class-balanced batches and networks without maps, from manifests.

use super::{Lab, TINY, reproducible};
use retort_lab::plan::RunSpec;

/// `tiny` with these keys before `batch_size` of its first profile and before `label` of its second row.
fn manifest(profile: &str, row: &str) -> String {
    let text = TINY.replacen("batch_size = 20", &format!("{profile}batch_size = 20"), 1);
    text.replacen("label = \"CRD + KD\"", &format!("{row}label = \"CRD + KD\""), 1)
}

const BALANCED: &str = "batches = { kind = \"class-balanced\", classes = 5 }\n";
const SHUFFLED: &str = "batches = { kind = \"shuffled\" }\n";

/// Ids of the plan: the teacher, then `ce` and `crd+kd` for both seeds.
fn ids(profile: &str, row: &str) -> Vec<String> {
    let text = Lab::with(&manifest(profile, row)).ok(&["reproduce", "tiny", "--plan"]);
    text.lines().map(|line| line.split_whitespace().next().unwrap().to_string()).collect()
}

#[test]
fn ids_change_where_batches_are_formed_in_another_way() {
    let plain = ids("", "");
    assert_eq!(plain.len(), 5);
    assert_eq!(plain, ids(SHUFFLED, SHUFFLED), "the default may be said");
    let row = ids("", BALANCED);
    let differ = |other: &[String]| plain.iter().zip(other).map(|(a, b)| a != b).collect::<Vec<_>>();
    assert_eq!(differ(&row), [false, false, true, false, true]);
    let profile = ids(BALANCED, "");
    assert_eq!(differ(&profile), [true; 5]);
    // The row's own word counts; its teacher's batches are the profile's all the same.
    let both = ids(BALANCED, SHUFFLED);
    assert_eq!((&both[..2], &both[3]), (&profile[..2], &profile[3]));
    assert!(both[2] != profile[2] && both[2] != plain[2] && both[2] != row[2]);
    assert_eq!(ids(BALANCED, BALANCED), profile);
}

#[test]
fn specifications_without_batches_are_shuffled_and_stay_as_they_are() {
    let lab = Lab::new();
    let plan = lab.ok(&["reproduce", "tiny", "--plan"]);
    let teacher = plan.split_whitespace().next().unwrap();
    lab.ok(&["train", "experiments/tiny.toml", "--run", teacher]);
    let record = std::fs::read_to_string(lab.path("runs/records").join(format!("{teacher}.jsonl"))).unwrap();
    let line: serde_json::Value = serde_json::from_str(record.lines().next().unwrap()).unwrap();
    let text = line["spec"].to_string();
    assert!(!text.contains("\"batches\"") && !text.contains("\"held_out\""), "{text}");
    let spec: RunSpec = serde_json::from_str(&text).unwrap();
    assert!(spec.batches.is_default() && !spec.data.held_out);
    assert_eq!(serde_json::to_value(&spec).unwrap().to_string(), text);
    assert_eq!(spec.id(), teacher);
}

#[test]
fn records_of_balanced_runs_are_the_same_bits_and_run_again() {
    let text = manifest("", BALANCED).replacen("\"resnet14\"", "\"mlp-512-256-128-128-128\"", 1);
    let lab = Lab::with(&text.replacen("\"resnet8\"", "\"mlp-512-256-128\"", 1));
    for threads in ["1", "2"] {
        let args = ["reproduce", "tiny", "--seeds", "1", "--out", threads, "--threads", threads, "--jobs", "1"];
        let mut command = lab.command(&args);
        command.env("RAYON_NUM_THREADS", threads).env("CANDLE_NUM_THREADS", threads);
        assert!(command.output().unwrap().status.success());
    }
    let records = reproducible(&lab.path("1/records"));
    assert_eq!(records.len(), 3, "teacher, baseline, the method");
    assert_eq!(records, reproducible(&lab.path("2/records")));
    let balanced: Vec<_> = records.iter().filter(|(_, lines)| lines[0].contains("class-balanced")).collect();
    assert_eq!(balanced.len(), 1);
    let record = format!("1/records/{}", balanced[0].0);
    assert!(lab.ok(&["rerun", &record, "--out", "again"]).contains("agrees"));
}

#[test]
fn batches_that_cannot_be_formed() {
    let refused = |profile: &str, row: &str, place: &str, words: &str| {
        let text = Lab::with(&manifest(profile, row)).refused(&["reproduce", "tiny", "--plan"]);
        assert!(text.contains(&format!("tiny.toml:{place}: ")) && text.contains(words), "{place} {words} in: {text}");
    };
    let line = |text: &str, word: &str| text[..text.find(word).unwrap()].matches('\n').count() + 1;
    let in_profile = line(&manifest(BALANCED, ""), "batches");
    let in_row = line(&manifest("", BALANCED), "batches");
    for (classes, words) in [("11", "1 to the 10 classes"), ("0", "found 0"), ("3", "multiple of the 3 classes")] {
        let batches = BALANCED.replace('5', classes);
        // The batch size is another line's; then the whole entry is meant.
        let column = if classes == "3" { 11 } else { 38 };
        refused(&batches, "", &format!("{in_profile}:{column}"), words);
        refused("", &batches, &format!("{in_row}:{column}"), words);
    }
    // 60 rows are 6 of a class.
    let few = BALANCED.replace('5', "2");
    refused(&few, "", &format!("{in_profile}:11"), "at least the 10 that a batch takes, found 6");
    refused("", &few, &format!("{in_row}:11"), "rows of class 0");
    let typo = BALANCED.replace("class-balanced", "class-balance");
    refused(&typo, "", &format!("{in_profile}:21"), "did you mean `class-balanced`");
    let typo = BALANCED.replace("classes", "clases");
    refused("", &typo, &format!("{in_row}:38"), "did you mean `classes`");
}

#[test]
fn a_row_that_does_not_run_may_ask_for_other_classes() {
    let batches = BALANCED.replace('5', "11");
    let lab = Lab::with(&manifest("", &batches));
    lab.ok(&["reproduce", "tiny", "--plan", "--only", "ce"]);
    assert!(lab.refused(&["reproduce", "tiny", "--plan"]).contains("`classes`"));
}

#[test]
fn networks_without_maps_are_listed_benched_and_refused_where_maps_are_read() {
    let lab = Lab::new();
    let models: serde_json::Value = serde_json::from_str(&lab.ok(&["list", "models", "--json"])).unwrap();
    let student = models.as_array().unwrap().iter().find(|model| model["name"] == "mlp-512-256-128").unwrap();
    assert_eq!((student["parameters"].as_u64(), student["multiply_adds"].as_u64()), (Some(1_750_500), Some(1_749_504)));
    let student = ["--student", "mlp-512-256-128", "--image", "1x28x28", "--classes", "10", "--batch", "4"];
    let bench = |teacher: &str, method: &str| {
        let steps = ["--steps", "1", "--threads", "1"];
        let words = ["bench", "kd-step", "--teacher", teacher, "--method", method];
        lab.command(&[&words[..], &student, &steps].concat()).env("RAYON_NUM_THREADS", "1").output().unwrap()
    };
    assert!(bench("mlp-512-256-128-128-128", "rkd").status.success());
    assert!(bench("resnet8", "kd").status.success());
    for (teacher, method) in [("mlp-512-256-128-128-128", "at"), ("resnet8", "sp")] {
        let output = bench(teacher, method);
        let text = String::from_utf8(output.stderr).unwrap();
        let words = format!("{method}: reads feature maps, but the student `mlp-512-256-128` shows none");
        assert!(output.status.code() == Some(2) && text.contains(&words), "{text}");
    }
    let step = ["bench", "train-step", "--model", "mlp-512-256-128", "--image", "1x28x28", "--steps", "1"];
    assert!(
        lab.command(&[&step[..], &["--threads", "1"]].concat())
            .env("RAYON_NUM_THREADS", "1")
            .output()
            .unwrap()
            .status
            .success()
    );

    // In a manifest the message points at the loss.
    let kd = "{ method = \"kd\", temperature = 4.0 }";
    let line = TINY[..TINY.find(kd).unwrap()].matches('\n').count() + 1;
    for method in ["at", "fitnet", "sp", "reviewkd"] {
        let text = TINY.replacen(kd, &format!("{{ method = \"{method}\" }}"), 1);
        let lab = Lab::with(&text.replacen("\"resnet8\"", "\"mlp-512-256-128\"", 1));
        let text = lab.refused(&["reproduce", "tiny", "--plan"]);
        let place = format!("tiny.toml:{line}:3: {method}: reads feature maps, but the student");
        assert!(text.contains(&place) && text.contains("`without`"), "{text}");
    }
}

#[test]
fn a_last_batch_that_is_too_small_is_found_in_the_plan() {
    // 60 images in batches of 59 leave 1.
    let text = TINY.replacen("batch_size = 20", "batch_size = 59", 1);
    let with = |loss: &str| text.replacen("{ method = \"kd\", temperature = 4.0 }", loss, 1);
    for loss in [
        "{ method = \"coral\" }",
        "{ method = \"energy-distance\", estimator = \"unbiased\" }",
        "{ method = \"w2-empirical\", matching = { regressor = \"linear-bn\" } }",
    ] {
        let said = Lab::with(&with(loss)).refused(&["reproduce", "tiny", "--plan"]);
        assert!(said.contains("batches of at least 2 rows") && said.contains("leave 1"), "{said}");
    }
    let by_class = "{ method = \"mmd-conditional\", estimator = \"unbiased\" }";
    let said = Lab::with(&TINY.replacen("{ method = \"kd\", temperature = 4.0 }", by_class, 1)).refused(&[
        "reproduce",
        "tiny",
        "--plan",
    ]);
    assert!(said.contains("2 rows of every class"), "{said}");
    Lab::with(&with("{ method = \"energy-distance\" }")).ok(&["reproduce", "tiny", "--plan"]);
}
