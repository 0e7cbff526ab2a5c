//! Data sets from the command line and in manifests.

use super::{Lab, TINY};
use std::fs;
use std::path::PathBuf;

#[test]
fn the_list_says_what_is_there_and_what_is_missing() {
    let text = Lab::new().ok(&["data", "list"]);
    assert!(text.contains("fashion-mnist-10k") && text.contains("embedded"), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let stl = lines.iter().position(|line| line.starts_with("stl10")).unwrap();
    assert!(lines[stl].contains("unlabelled 100000") && lines[stl + 1].contains("not found"), "{text}");
}

#[test]
fn embedded_sets_are_verified_and_drawn() {
    let lab = Lab::new();
    let text = lab.ok(&["data", "verify", "fashion-mnist-10k", "digits-8x8"]);
    assert_eq!(text.matches("verified: ").count(), 4, "{text}");
    // Without names: whatever is found.
    assert_eq!(lab.ok(&["data", "verify"]), text);
    let text = lab.ok(&["data", "show", "digits-8x8", "--split", "test", "--columns", "4", "--to", "sheet.png"]);
    assert!(text.contains("digits-8x8 test, 360 images 1x8x8") && text.contains("sheet.png"), "{text}");
    let png = fs::read(lab.path("sheet.png")).unwrap();
    assert_eq!(png[..8], *b"\x89PNG\r\n\x1a\n");
    // Width and height of the header: 4 columns and 10 rows of 8 pixels, with gaps of one.
    assert_eq!((png[16..20].to_vec(), png[20..24].to_vec()), (vec![0, 0, 0, 35], vec![0, 0, 0, 89]));
    assert!(lab.refused(&["data", "show", "digits-8x8", "--columns", "0"]).contains("columns"));
    assert!(lab.refused(&["data", "show", "digits"]).contains("did you mean `digits-8x8`"));
    assert!(lab.refused(&["data", "show", "digits-8x8", "--split", "validation"]).contains("train, test"));
    assert!(lab.refused(&["data", "verify", "digits-8x8", "--data", "nowhere"]).contains("must be a folder"));
}

#[test]
fn wrong_and_missing_files_are_told() {
    let lab = Lab::new();
    let text = lab.run(&["data", "verify", "cifar10"]);
    assert_eq!(text.status.code(), Some(1));
    let text = String::from_utf8(text.stderr).unwrap();
    assert!(text.contains("WRONG: cifar10 train") && text.contains("hf download"), "{text}");
    fs::create_dir(lab.path("cifar10")).unwrap();
    fs::write(lab.path("cifar10/test_batch.bin"), vec![3; 10_000 * 3073]).unwrap();
    let text = lab.run(&["data", "verify", "cifar10", "--data", "cifar10"]);
    let text = String::from_utf8(text.stderr).unwrap();
    assert!(text.contains("WRONG: cifar10 test: verify: SHA-256 of the pixels"), "{text}");
}

#[test]
fn a_manifest_chooses_rows_and_the_record_says_which() {
    let data = "test = 10, classes = [3, 1], fraction = 0.1, seed = 4, noise = { kind = \"symmetric\", rate = 0.3 }";
    let lab = Lab::with(&TINY.replacen("train = 60, test = 40", data, 1));
    lab.ok(&["reproduce", "tiny", "--only", "ce", "--seeds", "1", "--threads", "1"]);
    let records: Vec<PathBuf> = fs::read_dir(lab.path("runs/records")).unwrap().map(|e| e.unwrap().path()).collect();
    let record = fs::read_to_string(&records[0]).unwrap();
    for part in [r#""classes":[3,1]"#, r#""fraction":0.1"#, r#""seed":4"#, r#""noise":{"kind":"symmetric","rate":0.3"#]
    {
        assert!(record.contains(part), "{part} in {record}");
    }
    // The record alone finds the rows again, and the same numbers.
    let path = records[0].display().to_string();
    assert!(lab.ok(&["rerun", &path, "--threads", "1"]).contains("agrees"));
    for (wrong, named) in [
        ("classes = [3, 11]", "less than 10"),
        ("classes = [3], noise = { kind = \"pair\", rate = 0.1 }", "at least 2 classes"),
        ("train = 60, fraction = 0.5", "one of them"),
        ("fraction = 2.0", "`fraction`"),
        ("seed = 1", "`seed`"),
        ("train = 60, classes = [1, 2, 3, 4, 5, 6, 7]", "multiple of the 7 classes"),
        ("custom = { image = \"img\" }", "`custom`"),
    ] {
        let lab = Lab::with(&TINY.replacen("train = 60, test = 40", wrong, 1));
        let text = lab.refused(&["reproduce", "tiny", "--plan"]);
        assert!(text.contains(named) && text.contains("tiny.toml:"), "{wrong}: {text}");
    }
}

#[test]
fn classes_of_unequal_size_are_found_again() {
    // The digits have no equal numbers of rows a class; all of them are used, and the record names them by their number.
    let lab = Lab::with(&TINY.replacen("train = 60, test = 40", "classes = [0, 1, 2]", 1));
    lab.ok(&["reproduce", "tiny", "--only", "ce", "--seeds", "1", "--threads", "1"]);
    let record = fs::read_dir(lab.path("runs/records")).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.contains(r#""train":431"#) && text.contains(r#""test":106"#), "{text}");
    assert!(lab.ok(&["rerun", &record.display().to_string(), "--threads", "1"]).contains("agrees"));
}

#[test]
fn transforms_that_do_not_go_together_are_found_in_the_plan() {
    for (augmentation, named) in [
        (r#"[{ kind = "cutout", length = 2 }, { kind = "random-crop", padding = 1 }]"#, "before"),
        (r#"[{ kind = "rand-augment" }]"#, "largest pixel value"),
        (r#"[{ kind = "random-resized-crop", height = 4, width = 4 }]"#, "test images are 1x8x8"),
    ] {
        let old = "augmentation = [{ kind = \"random-crop\", padding = 1 }]";
        let lab = Lab::with(&TINY.replacen(old, &format!("augmentation = {augmentation}"), 1));
        let text = lab.refused(&["reproduce", "tiny", "--plan"]);
        assert!(text.contains(named) && text.contains("tiny.toml:"), "{augmentation}: {text}");
    }
}

#[test]
fn a_folder_of_images_can_be_trained_on() {
    let lab = Lab::with(&TINY.replacen("name = \"digits-8x8\", train = 60, test = 40", "name = \"image-folder\"", 1));
    let shape = retort_datasets::ImageShape { channels: 1, height: 8, width: 8 };
    for (split, count) in [("train", 20), ("test", 5)] {
        for class in 0..3u8 {
            let folder = lab.path(&format!("images/{split}/class-{class}"));
            fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                let pixels: Vec<u8> = (0..64).map(|k| (k as u8).wrapping_mul(class + 1).wrapping_add(i)).collect();
                retort_datasets::write_png(&folder.join(format!("{i}.png")), shape, &pixels).unwrap();
            }
        }
    }
    let text = lab.ok(&["reproduce", "tiny", "--only", "ce", "--seeds", "1", "--threads", "1", "--data", "images"]);
    assert!(text.contains("image-folder (60 training, 15 test images)"), "{text}");
    assert!(lab.refused(&["reproduce", "tiny", "--plan"]).contains("train/CLASS"));
}

/// The `cpu` profile of table 1 on the full Fashion-MNIST of the hub's cache, where there is one.
#[test]
fn the_cpu_profile_is_planned_from_the_cache_of_the_hub() {
    let Some(home) = std::env::var_os("HF_HOME") else {
        eprintln!("skipped: HF_HOME is not set");
        return;
    };
    let experiments = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    let lab = Lab::new();
    let mut command = lab.command(&["reproduce", "table1", "--profile", "cpu", "--plan", "--offline", "--experiments"]);
    let output = command.arg(&experiments).env("HF_HOME", home).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The id is a hash of the rows, too: those of the IDX files and those of the cache are the same.
    assert!(text.starts_with("ecd74f4e2a49  resnet20"), "{text}");
}
