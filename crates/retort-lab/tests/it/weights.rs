//! `import-weights`, what `list models` says of trained networks, and the committed ones.

use super::Lab;
use candle_core::{DType, Device};
use retort_models::{ModelConfig, PretrainedConfig, build, facts, load_pretrained};
use retort_nn::{Checkpoint, Params, Seed, Tensors};
use std::fs;
use std::path::{Path, PathBuf};

const CONFIG: ModelConfig = ModelConfig { in_channels: 1, image: [28, 28], classes: 10 };

/// Weights of resnet8 under MCL's names, on `theirs.safetensors`.
fn with_weights() -> (Lab, Tensors) {
    let params = Params::new(Seed::root(1), DType::F32, &Device::Cpu);
    build("resnet8", &CONFIG, &params.root()).unwrap();
    let tensors = params.snapshot().unwrap();
    let theirs = tensors.iter().map(|(name, t)| (format!("module.{}", name.replace("fc.", "classifier.")), t.clone()));
    let lab = Lab::new();
    let checkpoint = Checkpoint { tensors: theirs.collect(), meta: serde_json::Value::Null };
    checkpoint.save(&lab.path("theirs.safetensors")).unwrap();
    (lab, tensors)
}

const IMPORT: [&str; 10] = [
    "import-weights",
    "theirs.safetensors",
    "--model",
    "resnet8",
    "--classes",
    "10",
    "--channels",
    "1",
    "--image",
    "28x28",
];

/// The command with one argument replaced.
fn but<'a>(from: &str, to: &'a str) -> Vec<&'a str> {
    IMPORT.iter().map(|arg| if *arg == from { to } else { *arg }).collect()
}

#[test]
fn an_imported_network_is_loaded_and_listed() {
    let (lab, tensors) = with_weights();
    let none = models(&lab);
    assert_eq!(none["resnet8"]["weights"], serde_json::json!([]));
    let said = lab.ok(&IMPORT);
    for part in ["theirs.safetensors", "MCL", "left out: nothing", "written to models/resnet8"] {
        assert!(said.contains(part), "expected `{part}` in {said}");
    }
    let read = load_pretrained(lab.path("models/resnet8").to_str().unwrap()).unwrap();
    assert_eq!(read.config.model(), CONFIG);
    assert_eq!(read.tensors.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>());
    let card = fs::read_to_string(lab.path("models/resnet8/README.md")).unwrap();
    assert!(card.contains("import-weights theirs.safetensors --model resnet8 --classes 10"), "{card}");
    assert!(!card.contains(lab.path("").to_str().unwrap()), "a card is published: {card}");
    let listed = models(&lab);
    assert_eq!(listed["resnet8"]["weights"], serde_json::json!(["resnet8"]));
    assert_eq!(listed["resnet14"]["weights"], serde_json::json!([]));
    assert_eq!(listed["resnet20"]["parameters"], 278_324);
    assert_eq!(listed["resnet20"]["multiply_adds"], 40_818_944);
    assert_eq!(listed["resnet20"]["maps"], "16x32x32 16x32x32 32x16x16 64x8x8");
    assert_eq!(listed["resnet20"]["embedding"], 64);
    // Not twice into one folder, but into another one.
    assert!(lab.refused(&IMPORT).contains("holds a trained network already"));
    lab.ok(&[&IMPORT[..], &["--out", "elsewhere/mine"]].concat());
    assert!(lab.path("elsewhere/mine/config.json").is_file());
}

/// The list of models by name.
fn models(lab: &Lab) -> serde_json::Map<String, serde_json::Value> {
    let list: serde_json::Value = serde_json::from_str(&lab.ok(&["list", "models", "--json"])).unwrap();
    let entries = list.as_array().unwrap().iter().cloned();
    entries.map(|entry| (entry["name"].as_str().unwrap().to_string(), entry)).collect()
}

#[test]
fn a_broken_folder_is_listed_as_such() {
    let (lab, _) = with_weights();
    assert!(!models(&lab).contains_key("broken"));
    lab.ok(&[&IMPORT[..], &["--out", "models/whole"]].concat());
    // Neither a folder called like an architecture nor one that is called otherwise is passed over.
    for name in ["resnet8", "my-teacher", "no-weights", "no-config"] {
        fs::create_dir_all(lab.path("models").join(name)).unwrap();
    }
    fs::write(lab.path("models/resnet8/config.json"), "{}").unwrap();
    fs::write(lab.path("models/my-teacher/config.json"), "nonsense").unwrap();
    fs::copy(lab.path("models/whole/config.json"), lab.path("models/no-weights/config.json")).unwrap();
    fs::copy(lab.path("models/whole/model.safetensors"), lab.path("models/no-config/model.safetensors")).unwrap();
    let listed = models(&lab);
    assert_eq!(listed["resnet8"]["weights"], serde_json::json!(["whole"]));
    let broken: Vec<&str> = listed["broken"]["folders"].as_array().unwrap().iter().filter_map(|b| b.as_str()).collect();
    assert_eq!(broken.len(), 4, "{broken:?}");
    let parts =
        ["my-teacher: ", "no-config: ", "no-weights: model.safetensors is missing", "resnet8: "].iter().zip(&broken);
    parts.for_each(|(part, line)| assert!(line.starts_with(part), "{line}"));
    assert!(lab.ok(&["list", "models"]).contains("model.safetensors is missing"));
}

#[test]
fn files_of_strangers_are_not_overwritten() {
    let (lab, _) = with_weights();
    for name in ["README.md", "model.safetensors", "config.json"] {
        let folder = lab.path("mine").join(name);
        fs::create_dir_all(folder.parent().unwrap()).unwrap();
        fs::write(&folder, "mine").unwrap();
        let said = lab.refused(&[&IMPORT[..], &["--out", "mine"]].concat());
        assert!(said.contains(name) && said.contains("--out"), "{said}");
        assert_eq!(fs::read_to_string(&folder).unwrap(), "mine");
        assert_eq!(fs::read_dir(lab.path("mine")).unwrap().count(), 1, "nothing may be written beside {name}");
        fs::remove_file(&folder).unwrap();
    }
    lab.ok(&[&IMPORT[..], &["--out", "mine"]].concat());
}

#[test]
fn requests_that_are_refused() {
    let (lab, _) = with_weights();
    let refused = |args: &[&str], part: &str| {
        let text = lab.refused(args);
        assert!(text.contains(part), "expected `{part}` in: {text}");
    };
    refused(&but("resnet8", "resnet9"), "did you mean `resnet8`");
    refused(&but("theirs.safetensors", "nowhere.pth"), "nowhere.pth");
    refused(&but("theirs.safetensors", "experiments"), "is a folder");
    refused(&but("theirs.safetensors", "experiments/tiny.toml"), "tiny.toml: neither safetensors nor");
    refused(&but("28x28", "28"), "HxW");
    refused(&but("28x28", "28x28x1"), "HxW");
    refused(&but("28x28", "0x28"), "positive");
    refused(&but("1", "3"), "`module.conv1.weight` [16, 1, 3, 3], expected [16, 3, 3, 3]");
    refused(&but("10", "100"), "only the classifier differs: the file's network has 10 classes");
    refused(&but("10", "18446744073709551615"), "18446744073709551615");
    refused(&[&IMPORT[..], &["--prefix", "backbone"]].concat(), "`backbone.`");
    assert!(!lab.path("models").exists(), "nothing may be written");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../retort-nn/tests/data/module.pth");
    refused(&but("theirs.safetensors", fixture.to_str().unwrap()), "`torch.nn.modules.container.Sequential`");
}

#[test]
fn every_committed_model_loads_and_its_card_is_about_it() {
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let folders = fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let folders: Vec<PathBuf> = folders.collect();
    assert!(folders.len() >= 2);
    for folder in folders {
        let read = load_pretrained(folder.to_str().unwrap()).unwrap();
        read.frozen(&Device::Cpu).unwrap();
        let card = fs::read_to_string(folder.join("README.md")).unwrap();
        let facts = facts(&PretrainedConfig::load(&folder).unwrap()).unwrap();
        assert!(card.contains(&facts), "{}: expected\n{facts}", folder.display());
        let data = read.config.data.as_deref().unwrap();
        if !retort_datasets::info(data).unwrap().embedded() {
            continue;
        }
        // The accuracy of the card is what the network has, to the last image.
        let test = retort_datasets::load(data, retort_datasets::Split::Test, None).unwrap();
        let network = read.frozen(&Device::Cpu).unwrap();
        let mut right = 0;
        for batch in retort_datasets::Loader::eval(test.clone(), 250).unwrap().epoch(0) {
            let batch = batch.unwrap();
            let logits =
                network.forward(&batch.images, retort_nn::Mode::Eval, retort_nn::Taps::default()).unwrap().logits;
            let predicted = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
            right += predicted.iter().zip(&batch.label_ids).filter(|(a, b)| a == b).count();
        }
        let accuracy = right as f64 / test.len() as f64;
        assert!(card.contains(&format!("\naccuracy: {accuracy}\n")), "{}: {accuracy}", folder.display());
    }
}

#[test]
fn a_finished_run_becomes_a_folder() {
    let lab = Lab::new();
    lab.ok(&["reproduce", "tiny", "--only", "ce", "--seeds", "1", "--threads", "1"]);
    let records = fs::read_dir(lab.path("runs/records")).unwrap();
    let ids: Vec<String> =
        records.map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect();
    for id in &ids {
        let text = lab.ok(&["export-weights", id, "--name", &format!("m-{id}")]);
        assert!(text.contains("test accuracy"), "{text}");
        let folder = lab.path(&format!("models/m-{id}"));
        load_pretrained(folder.to_str().unwrap()).unwrap().frozen(&Device::Cpu).unwrap();
        let card = fs::read_to_string(folder.join("README.md")).unwrap();
        assert!(card.contains(&format!("cargo xtask rerun models/m-{id}/{id}.jsonl")), "{card}");
    }
    let id = &ids[0];
    let again = lab.refused(&["export-weights", id, "--name", &format!("m-{id}")]);
    assert!(again.contains("holds a trained network already"), "{again}");
    assert!(lab.refused(&["export-weights", "0123456789ab", "--name", "x"]).contains("0123456789ab.jsonl"));
    for name in ["", "../x", "a/b", ".hidden"] {
        assert!(lab.refused(&["export-weights", id, "--name", name]).contains("`--name`"), "{name}");
    }
    // Weights of another run are not exported under this record.
    fs::copy(
        lab.path(&format!("runs/weights/{}.safetensors", ids[1])),
        lab.path(&format!("runs/weights/{id}.safetensors")),
    )
    .unwrap();
    assert!(lab.refused(&["export-weights", id, "--name", "other"]).contains("not the weights"));
}
