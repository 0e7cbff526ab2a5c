//! Weights of other code bases, and trained networks as folders.

#[path = "../../../retort-nn/tests/it/forge.rs"]
mod forge;

use candle_core::{DType, Device, Tensor};
use retort_models::{Card, Imported, ModelConfig, Normalisation, Pretrained, PretrainedConfig};
use retort_models::{build, facts, import_weights, info, load_pretrained};
use retort_nn::{Checkpoint, Mode, Network, Params, Seed, Taps, Tensors, WeightFile};
use std::io::Write;
use std::path::{Path, PathBuf};

const TINY: ModelConfig = ModelConfig { in_channels: 1, image: [16, 16], classes: 5 };

/// A network whose weights and statistics are all different.
fn trained(model: &str, config: &ModelConfig) -> Tensors {
    let params = Params::new(Seed::root(3), DType::F32, &Device::Cpu);
    build(model, config, &params.root()).unwrap();
    crate::check::shaken(&params, DType::F32)
}

fn same(a: &Tensors, b: &Tensors) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, tensor) in a {
        assert_eq!(tensor.dims(), b[name].dims(), "{name}");
        assert_eq!(crate::flat(tensor), crate::flat(&b[name]), "{name}");
    }
}

/// A folder with one file of these tensors.
struct Saved(tempfile::TempDir);

impl Saved {
    fn new(tensors: Tensors) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint { tensors, meta: serde_json::Value::Null };
        checkpoint.save(&folder.path().join("theirs.safetensors")).unwrap();
        Self(folder)
    }

    fn file(&self) -> WeightFile {
        WeightFile::open(&self.0.path().join("theirs.safetensors")).unwrap()
    }
}

fn renamed(tensors: &Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect()
}

fn imported(tensors: Tensors, model: &str, prefix: Option<&str>) -> Imported {
    import_weights(&Saved::new(tensors).file(), model, &TINY, prefix).unwrap()
}

fn refused(tensors: Tensors, model: &str, prefix: Option<&str>, parts: &[&str]) {
    let message = import_weights(&Saved::new(tensors).file(), model, &TINY, prefix).unwrap_err().to_string();
    for part in [&["theirs.safetensors"], parts].concat() {
        assert!(message.contains(part), "expected `{part}` in: {message}");
    }
}

#[test]
fn the_names_of_every_code_base() {
    type Rename = fn(&str) -> String;
    let cases: [(&str, Rename, &str); 7] = [
        ("resnet8", |name| name.into(), "RepDistiller"),
        ("resnet8", |name| format!("module.{name}"), "RepDistiller"),
        ("vgg8", |name| format!("module.backbone.{name}"), "HSAKD"),
        ("resnet8", |name| name.replace("fc.", "classifier."), "MCL"),
        ("ResNet18", |name| name.replace("linear.", "fc.").replace("shortcut", "downsample"), "torchvision"),
        ("MobileNetV2", |name| name.replace("classifier.0", "classifier"), "one linear layer"),
        ("MobileNetV2", |name| format!("backbone.{}", name.replace("classifier.0", "classifier")), "HSAKD"),
    ];
    for (model, rename, naming) in cases {
        let ours = trained(model, &TINY);
        let read = imported(renamed(&ours, rename), model, None);
        same(&read.tensors, &ours);
        assert!(read.naming.contains(naming), "{model}: {}", read.naming);
    }
}

#[test]
fn what_the_network_does_not_need_is_left_out() {
    let ours = trained("resnet8", &TINY);
    let mut theirs = renamed(&ours, |name| format!("module.backbone.{name}"));
    let counter = Tensor::new(7i64, &Device::Cpu).unwrap();
    theirs.insert("module.backbone.bn1.num_batches_tracked".into(), counter);
    theirs.insert(
        "module.auxiliary_classifier.fc1.weight".into(),
        Tensor::ones((20, 64), DType::F32, &Device::Cpu).unwrap(),
    );
    let read = imported(theirs, "resnet8", None);
    same(&read.tensors, &ours);
    assert_eq!(read.left_out, ["module.auxiliary_classifier.fc1.weight", "module.backbone.bn1.num_batches_tracked"]);
}

#[test]
fn one_network_of_several_by_its_prefix() {
    let ours = trained("resnet8", &TINY);
    let mut theirs = renamed(&ours, |name| format!("module_list.0.{}", name.replace("fc.", "classifier.")));
    theirs.extend(renamed(&trained("resnet14", &TINY), |name| format!("module_list.1.{name}")));
    same(&imported(theirs.clone(), "resnet8", Some("module_list.0")).tensors, &ours);
    same(&imported(theirs.clone(), "resnet8", Some("module_list.0.")).tensors, &ours);
    refused(theirs.clone(), "resnet8", None, &["missing", "unexpected"]);
    refused(theirs, "resnet8", Some("modules.0"), &["`modules.0.`", "`module_list`"]);
}

#[test]
fn a_file_of_pytorch() {
    let ours = trained("resnet8", &TINY);
    let tensors =
        ours.iter().map(|(name, tensor)| (format!("module.{name}"), tensor.dims().to_vec(), crate::flat(tensor)));
    let tensors: Vec<_> = tensors.collect();
    let folder = tempfile::tempdir().unwrap();
    for container in [None, Some("model"), Some("state_dict"), Some("net")] {
        let path = folder.path().join("teacher.pth");
        std::fs::write(&path, forge::state_dict(container, &tensors)).unwrap();
        let file = WeightFile::open(&path).unwrap();
        same(&import_weights(&file, "resnet8", &TINY, None).unwrap().tensors, &ours);
    }
}

/// What RepDistiller's `train_teacher.py` saves, in the format of its time, before PyTorch 1.6.
#[test]
fn a_file_of_old_pytorch() {
    let ours = trained("resnet8", &TINY);
    let tensors = ours.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec(), crate::flat(tensor)));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ckpt_epoch_240.pth");
    std::fs::write(&path, forge::legacy_training(&tensors.collect::<Vec<_>>())).unwrap();
    let read = import_weights(&WeightFile::open(&path).unwrap(), "resnet8", &TINY, None).unwrap();
    same(&read.tensors, &ours);
    assert!(read.naming.contains("RepDistiller"), "{}", read.naming);
}

#[test]
fn all_that_does_not_fit_is_said() {
    let ours = trained("resnet8", &TINY);
    let mut theirs = renamed(&ours, |name| name.replace("layer2.0.conv1", "layer2.0.konv1"));
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    theirs.insert("bn1.bias".into(), zeros(&[17]));
    theirs.insert("bn1.weight".into(), Tensor::new(&[1i64; 16], &Device::Cpu).unwrap());
    theirs.insert("head.\n.weight".into(), zeros(&[2]));
    let parts = [
        "do not fit `resnet8`",
        "missing: `layer2.0.conv1.weight` [32, 16, 3, 3], nearest in the file: `layer2.0.konv1.weight` [32, 16, 3, 3]",
        "unexpected: `layer2.0.konv1.weight` [32, 16, 3, 3]",
        "unexpected: `head.\\n.weight` [2]",
        "other shape: `bn1.bias` [17], expected [16]",
        "no floating-point numbers: `bn1.weight` [16] is int64",
    ];
    refused(theirs, "resnet8", None, &parts);
    let empty = Tensors::from([("x".to_string(), zeros(&[1]))]);
    refused(empty, "resnet8", None, &["0 of", "missing: `bn1.bias` [16]", "more"]);
    let classes = ModelConfig { classes: 7, ..TINY };
    refused(trained("resnet8", &classes), "resnet8", None, &["other shape: `fc.bias` [7], expected [5]", "7 classes"]);
    refused(trained("resnet8", &TINY), "resnet14", None, &["missing: `layer1.1.bn1.bias` [16]", "missing: 22 more"]);
}

#[test]
fn values_that_no_network_has() {
    let mut theirs = trained("resnet8", &TINY);
    theirs.insert("fc.bias".into(), Tensor::new(&[1f32, 2.0, f32::NAN, 0.0, 0.0], &Device::Cpu).unwrap());
    refused(theirs.clone(), "resnet8", None, &["`fc.bias`: 1 of 5 values are not finite"]);
    theirs.insert("fc.bias".into(), Tensor::zeros(5, DType::F32, &Device::Cpu).unwrap());
    theirs.insert("bn1.running_var".into(), Tensor::full(-0.5f32, 16, &Device::Cpu).unwrap());
    refused(theirs, "resnet8", None, &["`bn1.running_var`", "must not be negative", "-0.5"]);
}

#[test]
fn numbers_that_no_network_has() {
    let saved = Saved::new(trained("resnet8", &TINY));
    let most = usize::MAX;
    for config in [
        ModelConfig { classes: 0, ..TINY },
        ModelConfig { classes: most, ..TINY },
        ModelConfig { classes: 1 << 40, ..TINY },
        ModelConfig { in_channels: most, ..TINY },
        ModelConfig { in_channels: 1 << 40, ..TINY },
        ModelConfig { image: [most, most], ..TINY },
        ModelConfig { image: [0, 16], ..TINY },
    ] {
        for model in ["resnet8", "vgg8", "mlp-512-256-128", "MobileNetV2", "wrn_16_2"] {
            assert!(import_weights(&saved.file(), model, &config, None).is_err(), "{model}: {config:?}");
        }
    }
    assert!(import_weights(&saved.file(), "resnet9", &TINY, None).unwrap_err().to_string().contains("`resnet8`"));
}

fn pretrained(model: &str) -> Pretrained {
    let mut config = PretrainedConfig::new(model, &TINY);
    config.data = Some("digits: 8x8".into());
    config.normalisation = Some(Normalisation { mean: vec![0.5], std: vec![0.25] });
    Pretrained { config, tensors: trained(model, &TINY) }
}

fn card() -> Card {
    let recipe = "SGD, 4 epochs: \"quick\"\nand dirty".to_string();
    Card { recipe, seed: Some(3), accuracy: Some(0.7125), command: "cargo xtask train x.toml --run 12".into() }
}

/// A folder as [`Pretrained::save`] leaves it.
fn saved_folder(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    pretrained(model).save(folder.path(), &card()).unwrap();
    folder
}

#[test]
fn a_folder_holds_the_whole_network() {
    let folder = saved_folder("resnet8");
    let read = load_pretrained(folder.path().to_str().unwrap()).unwrap();
    let written = pretrained("resnet8");
    assert_eq!(read.config, written.config);
    same(&read.tensors, &written.tensors);
    let images = crate::images(&TINY, 2);
    let logits =
        |network: &dyn Network| crate::flat(&network.forward(&images, Mode::Eval, Taps::default()).unwrap().logits);
    let (params, trainable) = read.trainable(&Device::Cpu).unwrap();
    assert_eq!(params.parameter_count(), info("resnet8").unwrap().parameter_count(&TINY).unwrap());
    let frozen = logits(read.frozen(&Device::Cpu).unwrap().as_ref());
    for (a, b) in frozen.iter().zip(logits(trainable.as_ref())) {
        assert!((a - b).abs() < 1e-4, "{a} and {b}");
    }
    let card = std::fs::read_to_string(folder.path().join("README.md")).unwrap();
    let parts = [
        "---\nlibrary_name: retort\n",
        "\narchitecture: \"resnet8\"\n",
        "\ndatasets: [\"digits: 8x8\"]\n",
        "\nrecipe: \"SGD, 4 epochs: \\\"quick\\\"\\nand dirty\"\n",
        "\nseed: 3\n",
        "\naccuracy: 0.7125\n",
        "71.25 %",
        "cargo xtask train x.toml --run 12",
        &facts(&written.config).unwrap(),
        "normalisation | mean [0.5], std [0.25]",
    ];
    for part in parts {
        assert!(card.contains(part), "expected `{part}` in {card}");
    }
    // The same once more, byte for byte.
    let again = saved_folder("resnet8");
    for name in ["README.md", "config.json", "model.safetensors"] {
        assert_eq!(
            std::fs::read(folder.path().join(name)).unwrap(),
            std::fs::read(again.path().join(name)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn nothing_is_written_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("models/broken");
    let refused = |change: fn(&mut Pretrained), part: &str| {
        let mut broken = pretrained("resnet8");
        change(&mut broken);
        let message = broken.save(&target, &card()).unwrap_err().to_string();
        assert!(message.contains(part), "expected `{part}` in {message}");
        assert!(!target.exists());
    };
    refused(|p| drop(p.tensors.remove("fc.bias")), "`fc.bias`");
    refused(|p| drop(p.tensors.insert("extra".into(), p.tensors["fc.bias"].clone())), "`extra`");
    refused(|p| drop(p.tensors.insert("fc.bias".into(), p.tensors["bn1.bias"].clone())), "`fc.bias`");
    refused(
        |p| drop(p.tensors.insert("fc.bias".into(), Tensor::full(f32::NAN, 5, &Device::Cpu).unwrap())),
        "`fc.bias`",
    );
    refused(|p| p.config.architecture = "resnet9".into(), "did you mean `resnet8`");
    refused(|p| p.config.classes = 0, "classes");
    refused(|p| p.config.normalisation = Some(Normalisation { mean: vec![0.0; 3], std: vec![1.0; 3] }), "3 means");
    refused(|p| p.config.normalisation = Some(Normalisation { mean: vec![0.0], std: vec![0.0] }), "positive stds");
}

#[test]
fn configurations_that_are_none() {
    let folder = saved_folder("resnet8");
    let path = folder.path().join("config.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let refused = |text: &str, parts: &[&str]| {
        std::fs::write(&path, text).unwrap();
        let message = Pretrained::load(folder.path()).unwrap_err().to_string();
        for part in [&["config.json"], parts].concat() {
            assert!(message.contains(part), "expected `{part}` in: {message}");
        }
    };
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from), "{good}");
        good.replacen(from, to, 1)
    };
    refused("", &["EOF"]);
    refused("[]", &["line 1"]);
    refused(&good[..good.len() / 2], &["EOF"]);
    refused(&changed("\"image\"", "\"imagee\""), &["unknown field `imagee`", "`image`", "line 5"]);
    refused(&changed("\"mean\"", "\"meen\""), &["unknown field `meen`"]);
    refused(&changed("\"format\": 1", "\"format\": 2"), &["`format` is 2", "reads 1"]);
    refused(&changed("resnet8", "resnet9"), &["unknown model `resnet9`", "did you mean `resnet8`"]);
    refused(&changed("resnet8", "../../resnet8"), &["unknown model"]);
    refused(&changed("\"classes\": 5", "\"classes\": 0"), &["classes"]);
    refused(&changed("\"classes\": 5", "\"classes\": 1000000000000"), &[]);
    refused(&changed("\"classes\": 5", "\"classes\": -5"), &["`-5`", "line 9"]);
    refused(&changed("0.25", "0.0"), &["positive stds"]);
    refused(&changed("0.25", "1e999"), &[]);
    refused(&"[".repeat(10_000), &["invalid type"]);
    refused(&format!("{good}{}", " ".repeat(1 << 17)), &["at most 65536 bytes"]);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(Pretrained::load(folder.path()).unwrap_err().to_string().contains("expected a file"));
    std::fs::remove_dir(&path).unwrap();
    assert!(Pretrained::load(folder.path()).unwrap_err().to_string().contains("config.json: cannot read"));
}

#[test]
fn weights_of_a_folder_that_are_none() {
    let folder = saved_folder("resnet8");
    let path = folder.path().join("model.safetensors");
    let good = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8], part: &str| {
        std::fs::write(&path, bytes).unwrap();
        let message = Pretrained::load(folder.path()).unwrap_err().to_string();
        assert!(message.contains("model.safetensors") && message.contains(part), "{message}");
    };
    refused(&[], "is empty");
    refused(&good[..good.len() - 1], "not a whole safetensors file");
    // A pickle under the name of a safetensors file, with the right tensors and with code.
    let tensors = pretrained("resnet8").tensors;
    let list: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), t.dims().to_vec(), crate::flat(t))).collect();
    refused(&forge::state_dict(None, &list), "import-weights");
    let code = forge::Pickle::new().global("os", "system").text("touch marker").raw(b"\x85R").stop();
    refused(&forge::torch_file(&code), "`os.system`");
    // Another network's, and one name too many: no translation happens here.
    for tensors in [trained("resnet14", &TINY), renamed(&tensors, |name| format!("module.{name}"))] {
        Checkpoint { tensors, meta: serde_json::Value::Null }.save(&path).unwrap();
        let message = Pretrained::load(folder.path()).unwrap_err().to_string();
        assert!(message.contains("model.safetensors: the weights do not fit `resnet8`"), "{message}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(Pretrained::load(folder.path()).unwrap_err().to_string().contains("model.safetensors: cannot read"));
}

#[test]
fn neither_a_folder_nor_a_name() {
    for source in ["", "nothing", "../nothing", "/nowhere/at/all", "a/b/c", "owner/..", "owner/na me"] {
        let message = load_pretrained(source).unwrap_err().to_string();
        assert!(message.contains("owner/name"), "{message}");
    }
}

/// Lays a cache of the hub as Python does, with files in `blobs` and links to them.
fn cache(root: &Path) -> PathBuf {
    let repository = root.join("hub/models--someone--resnet8-digits");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0123456789abcdef"));
    pretrained("resnet8").save(&snapshot, &card()).unwrap();
    std::fs::create_dir_all(&blobs).unwrap();
    #[cfg(unix)]
    for (i, name) in ["config.json", "model.safetensors"].iter().enumerate() {
        std::fs::rename(snapshot.join(name), blobs.join(i.to_string())).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{i}"), snapshot.join(name)).unwrap();
    }
    std::fs::create_dir(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), "0123456789abcdef").unwrap();
    repository
}

/// Environment variables belong to a process, so each case is this program once more.
#[test]
fn a_name_is_found_in_the_cache() {
    let root = tempfile::tempdir().unwrap();
    let repository = cache(root.path());
    let child = |variables: &[(&str, &Path)], expected: &str| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "weights::child_loads_from_the_cache", "--ignored", "--nocapture"]);
        for name in ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HOME", "USERPROFILE"] {
            command.env_remove(name);
        }
        command.env("HF_HUB_OFFLINE", "1").envs(variables.iter().copied());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains(expected), "expected `{expected}` in {said}");
    };
    child(&[("HF_HOME", root.path())], "loaded resnet8");
    child(&[("HF_HUB_CACHE", &root.path().join("hub")), ("HF_HOME", Path::new("/nowhere"))], "loaded resnet8");
    child(&[("HF_HOME", Path::new(""))], "no cache");
    child(&[("HOME", root.path())], "neither a folder nor in the cache");
    std::fs::write(repository.join("refs/main"), "../../../elsewhere").unwrap();
    child(&[("HF_HOME", root.path())], "neither a folder nor in the cache");
}

#[test]
#[ignore = "started by a_name_is_found_in_the_cache"]
fn child_loads_from_the_cache() {
    let said = match load_pretrained("someone/resnet8-digits") {
        Ok(read) => format!("loaded {}", read.config.architecture),
        Err(error) => error.to_string(),
    };
    writeln!(std::io::stdout(), "{said}").unwrap();
}
