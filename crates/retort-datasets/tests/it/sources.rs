//! Names that become rows: folders of official files, the hub's cache, data that the registry does not have.

use super::sha256;
use retort_datasets::{CustomConfig, Files, Origin, Sources, Split, Verdict, info, registry};
use std::fs;
use std::path::Path;

fn folder(path: &Path) -> Sources {
    // A cache that is empty: what the machine has must not matter.
    Sources { folder: Some(path.to_owned()), cache: Some(path.join("no-cache")), offline: true, ..Sources::default() }
}

fn idx(path: &Path, magic: u32, dims: &[u32], bytes: &[u8]) {
    let head: Vec<u8> = [magic].iter().chain(dims).flat_map(|n| n.to_be_bytes()).collect();
    fs::write(path, [&head, bytes].concat()).unwrap();
}

#[test]
fn what_is_missing_is_said_with_a_way_to_get_it() {
    let empty = tempfile::tempdir().unwrap();
    for info in registry().iter().filter(|info| !info.embedded()) {
        let error = folder(empty.path()).load(info.name, Split::Train).unwrap_err();
        assert!(error.is_absence(), "{error}");
        let text = error.to_string();
        assert!(text.contains(info.name) || text.contains("fashion-mnist"), "{text}");
        if let Some(copy) = info.hub() {
            assert!(text.contains(copy.repository) && text.contains("hf download"), "{text}");
        }
        let none = Sources { folder: None, ..folder(empty.path()) }.load(info.name, Split::Train).unwrap_err();
        assert!(none.is_absence(), "{none}");
        assert!(folder(empty.path()).find(info.name).is_err());
    }
}

#[test]
fn a_split_that_a_set_does_not_have_is_named() {
    for (name, split) in [("fashion-mnist-10k", Split::Extra), ("svhn", Split::Unlabelled), ("stl10", Split::Extra)] {
        let text = Sources::default().load(name, split).unwrap_err().to_string();
        assert!(text.contains(name) && text.contains("train, test") && text.contains(&split.to_string()), "{text}");
    }
}

#[test]
fn the_two_files_of_mnist_5k_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let named = dir.path().join("mnist-5k");
    fs::create_dir(&named).unwrap();
    let pixels: Vec<u8> = (0..5000).flat_map(|row| std::iter::repeat_n((row % 251) as u8, 784)).collect();
    let labels: Vec<u8> = (0..5000).map(|row| (row % 10) as u8).collect();
    idx(&named.join("images-idx3-ubyte"), 0x803, &[5000, 28, 28], &pixels);
    idx(&named.join("labels-idx1-ubyte"), 0x801, &[5000], &labels);
    let train = folder(dir.path()).load("mnist-5k", Split::Train).unwrap();
    let test = folder(dir.path()).load("mnist-5k", Split::Test).unwrap();
    assert_eq!((train.len(), test.len()), (4000, 1000));
    assert_eq!(test.image(0).unwrap()[0], (4000 % 251) as u8);
    let other = train.verify(info("mnist-5k").unwrap()).unwrap_err().to_string();
    assert!(other.contains("SHA-256 of the pixels"), "{other}");
    // The folder itself works as well as its parent.
    assert_eq!(folder(&named).load("mnist-5k", Split::Test).unwrap().digest(), test.digest());
}

#[test]
fn letters_stand_upright_and_count_from_zero() {
    let dir = tempfile::tempdir().unwrap();
    let mut pixels = vec![0; 20_800 * 784];
    pixels[5 * 28 + 20] = 77; // row 5, column 20 of the file
    let labels: Vec<u8> = (0..20_800).map(|row| (row % 26) as u8 + 1).collect();
    idx(&dir.path().join("emnist-letters-test-images-idx3-ubyte"), 0x803, &[20_800, 28, 28], &pixels);
    idx(&dir.path().join("emnist-letters-test-labels-idx1-ubyte"), 0x801, &[20_800], &labels);
    let test = folder(dir.path()).load("emnist-letters", Split::Test).unwrap();
    assert_eq!(test.image(0).unwrap()[20 * 28 + 5], 77);
    assert_eq!((test.label(0).unwrap(), test.label(25).unwrap()), (0, 25));
    let zero: Vec<u8> = (0..20_800).map(|row| (row % 26) as u8).collect();
    idx(&dir.path().join("emnist-letters-test-labels-idx1-ubyte"), 0x801, &[20_800], &zero);
    let text = folder(dir.path()).load("emnist-letters", Split::Test).unwrap_err().to_string();
    assert!(text.contains("row 0") && text.contains("1 to 26"), "{text}");
}

#[test]
fn superclasses_come_from_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let record = |row: usize| {
        let mut record = vec![(row % 20) as u8, (row % 100) as u8];
        record.extend(std::iter::repeat_n(row as u8, 3072));
        record
    };
    fs::write(dir.path().join("test.bin"), (0..10_000).flat_map(record).collect::<Vec<u8>>()).unwrap();
    let coarse = folder(dir.path()).load("cifar100-coarse", Split::Test).unwrap();
    let fine = folder(dir.path()).load("cifar100", Split::Test).unwrap();
    assert_eq!((coarse.classes(), fine.classes()), (20, 100));
    assert_eq!((coarse.label(77).unwrap(), fine.label(77).unwrap()), (17, 77));
    assert_eq!(coarse.class_names()[0], "aquatic_mammals");
    assert_eq!(coarse.pixels(), fine.pixels());
}

#[test]
fn stl10_without_labels() {
    let dir = tempfile::tempdir().unwrap();
    // The right size without 2.6 GiB of disk: a sparse file.
    let file = fs::File::create(dir.path().join("unlabeled_X.bin")).unwrap();
    file.set_len(100_000 * 27_648 - 1).unwrap();
    let error = folder(dir.path()).load("stl10", Split::Unlabelled).unwrap_err().to_string();
    assert!(error.contains("unlabeled_X.bin") && error.contains("2764800000"), "{error}");
    let stl = info("stl10").unwrap();
    assert!(stl.origins.contains(&Origin::Folder(Files::Stl10)) && stl.rows(Split::Unlabelled) == Some(100_000));
}

#[test]
fn a_folder_of_images_is_a_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let shape = retort_datasets::ImageShape { channels: 3, height: 6, width: 5 };
    for (split, classes) in [("train", &["cat", "dog"][..]), ("test", &["dog"][..])] {
        for class in classes {
            let at = dir.path().join(split).join(class);
            fs::create_dir_all(&at).unwrap();
            for i in 0..3u8 {
                let pixels: Vec<u8> = (0..90).map(|k| k * i + class.len() as u8).collect();
                retort_datasets::write_png(&at.join(format!("{i}.png")), shape, &pixels).unwrap();
            }
        }
    }
    let sources = folder(dir.path());
    let train = sources.load("image-folder", Split::Train).unwrap();
    assert_eq!(
        (train.len(), train.class_names(), train.labels()),
        (6, &["cat".into(), "dog".into()][..], &[0, 0, 0, 1, 1, 1][..])
    );
    assert_eq!(train.image(1).unwrap()[7], 7 + 3);
    let test = sources.load("image-folder", Split::Test).unwrap();
    assert_eq!((test.labels(), test.normalization()), (&[1, 1, 1][..], train.normalization()));
    let small: CustomConfig = serde_json::from_str(r#"{"fit": {"kind": "resize", "height": 3, "width": 3}}"#).unwrap();
    assert_eq!(sources.load_custom("image-folder", &small, Split::Train).unwrap().shape().height, 3);
    let stray: CustomConfig = serde_json::from_str(r#"{"label": "label"}"#).unwrap();
    let text = sources.load_custom("image-folder", &stray, Split::Train).unwrap_err().to_string();
    assert!(text.contains("`label` of `custom`"), "{text}");
    // A device would never end, a pipe never begin.
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("train/cat/zero.png")).unwrap();
        let text = sources.load("image-folder", Split::Train).unwrap_err().to_string();
        assert!(text.contains("zero.png") && text.contains("regular file"), "{text}");
        fs::remove_file(dir.path().join("train/cat/zero.png")).unwrap();
    }
    let none = Sources { folder: None, ..sources }.load("image-folder", Split::Train).unwrap_err().to_string();
    assert!(none.contains("train/CLASS"), "{none}");
}

#[test]
fn digests_tell_other_rows_and_another_order() {
    let digits = Sources::default().load("digits-8x8", Split::Train).unwrap();
    assert_eq!(digits.verify(info("digits-8x8").unwrap()).unwrap(), Verdict::Verified);
    let fashion = Sources::default().load("fashion-mnist-10k", Split::Test).unwrap();
    let known = info("fashion-mnist-10k").unwrap();
    assert_eq!(fashion.verify(known).unwrap(), Verdict::Verified);
    let order: Vec<u32> = (0..2000).rev().collect();
    let message = |rows: retort_datasets::Dataset| rows.verify(known).unwrap_err().to_string();
    assert!(message(fashion.select(&order).unwrap()).contains("SHA-256 of the pixels"));
    assert!(message(fashion.take_balanced(1000).unwrap()).contains("expected 2000, found 1000"));
    assert!(message(digits).contains("rows of `fashion-mnist-10k`"));
    assert_eq!(fashion.pixels_sha256().unwrap(), sha256(fashion.pixels().unwrap()));
}

#[cfg(feature = "parquet")]
#[test]
fn names_of_repositories_do_no_harm() {
    let empty = tempfile::tempdir().unwrap();
    for name in ["../x", "a/../b", "a/b/c", "/etc/passwd", "a/", "/"] {
        let error = folder(empty.path()).load(name, Split::Train).unwrap_err();
        assert!(matches!(error, retort_datasets::Error::Hub(_)), "{name}: {error}");
    }
    let absent = folder(empty.path()).load("owner/name", Split::Train).unwrap_err();
    assert!(absent.is_absence() && absent.to_string().contains("hf download"), "{absent}");
}

/// Runs where `HF_HOME` names a cache with the data; the numbers are those of the official files.
#[cfg(feature = "parquet")]
#[test]
fn the_cache_of_the_hub_has_the_official_rows() {
    let Some(home) = std::env::var_os("HF_HOME").map(std::path::PathBuf::from) else {
        eprintln!("skipped: HF_HOME is not set");
        return;
    };
    let sources = Sources { cache: Some(home.join("hub")), offline: true, ..Sources::default() };
    for split in [Split::Train, Split::Test] {
        let fashion = sources.load("fashion-mnist", split).unwrap();
        assert_eq!(fashion.verify(info("fashion-mnist").unwrap()).unwrap(), Verdict::Verified);
        assert_eq!(fashion.class_names()[9], "Ankle boot");
    }
    assert!(sources.find("fashion-mnist").unwrap().contains("zalando-datasets/fashion_mnist"));
    let fine = sources.load("cifar100", Split::Test).unwrap();
    let coarse = sources.load("cifar100-coarse", Split::Test).unwrap();
    assert_eq!(fine.pixels_sha256().unwrap(), "b461734a5b52e392856742bd511901cd67af4ceee98f2d8b4740d79c48a80598");
    assert_eq!(fine.labels_sha256(), "1c3e6a65c84c7a69adf32ab3fb5932ddfe6becde145d7845a26e5c014837c7f0");
    assert_eq!(coarse.labels_sha256(), "76b58e1743846a37ce77a4ee5fac58891d31a5a62e34e84d0f318ebbd50be286");
    assert_eq!((&fine.labels()[..5], fine.class_names()[26].as_str()), (&[80, 47, 13, 69, 75][..], "crab"));
    assert_eq!(fine.class_counts(), vec![100; 100]);
    // Row and column, to tell a transposed image.
    let image = fine.image(0).unwrap();
    let pixel = |y: usize, x: usize| [0, 1, 2].map(|c| image[c * 1024 + y * 32 + x]);
    assert_eq!((pixel(5, 20), pixel(20, 5)), ([110, 115, 118], [101, 93, 83]));
    // The same repository by its name, with columns that are named.
    let custom: CustomConfig =
        serde_json::from_str(r#"{"config": "cifar100", "image": "img", "label": "coarse_label"}"#).unwrap();
    let by_name = sources.load_custom("uoft-cs/cifar100", &custom, Split::Test).unwrap();
    assert_eq!((by_name.labels(), by_name.class_names()), (coarse.labels(), coarse.class_names()));
    let mean = &by_name.normalization().mean;
    assert!(mean.iter().zip([0.507075, 0.486549, 0.440918]).all(|(a, b)| (a - b).abs() < 1e-5), "{mean:?}");
    // Above its limit a set lies in a file, with the same rows.
    let streamed = Sources { memory_limit: 1 << 20, ..sources.clone() }.load("fashion-mnist", Split::Test).unwrap();
    assert!(streamed.pixels().is_none());
    assert_eq!(streamed.digest(), sources.load("fashion-mnist", Split::Test).unwrap().digest());
    // A cache of one's own: shards with one missing, then whole, on `main` as `hf download` leaves it.
    let own = tempfile::tempdir().unwrap();
    let repository = own.path().join("datasets--me--mine");
    let test_file = fs::read_dir(home.join("hub/datasets--zalando-datasets--fashion_mnist/snapshots")).unwrap();
    let test_file = test_file.flatten().next().unwrap().path().join("fashion_mnist/test/0000.parquet");
    for folder in ["refs", "snapshots/0123abcd/data"] {
        fs::create_dir_all(repository.join(folder)).unwrap();
    }
    fs::write(repository.join("refs/main"), "0123abcd").unwrap();
    let data = repository.join("snapshots/0123abcd/data");
    fs::copy(&test_file, data.join("train-00000-of-00002.parquet")).unwrap();
    let mine = Sources { cache: Some(own.path().to_owned()), ..sources.clone() };
    let gap = mine.load("me/mine", Split::Train).unwrap_err().to_string();
    assert!(gap.contains("each of 2 files"), "{gap}");
    fs::copy(&test_file, data.join("train-00001-of-00002.parquet")).unwrap();
    assert_eq!(mine.load("me/mine", Split::Train).unwrap().len(), 20_000);
    // Made from what the cache has.
    let rotated = sources.load("rotated-fashion", Split::Test).unwrap();
    assert_eq!((rotated.len(), rotated.unit(), rotated.class_counts()), (1500, Some("degrees"), vec![150; 10]));
    assert!(rotated.values().iter().all(|angle| (-60.0..=60.0).contains(angle)));
    let spread = rotated.values().iter().map(|v| v * v).sum::<f32>() / 1500.0;
    assert!((spread.sqrt() - 34.6).abs() < 1.5, "{spread}");
    for (name, folder, rows) in [("rotated-fashion", "regression", 1500), ("mnist-5k", "extra", 1000)] {
        let place = home.join(folder);
        if place.is_dir() {
            let rows_there = Sources { folder: Some(place), ..sources.clone() }.load(name, Split::Test).unwrap();
            assert_eq!(rows_there.len(), rows);
            let verdict = rows_there.verify(info(name).unwrap()).unwrap();
            assert_eq!(verdict == Verdict::Verified, name == "mnist-5k");
            if name == "rotated-fashion" {
                let digest = "cb5996b229ca605817b78782613a5a84e9924e1551d32662021e678286121e56";
                assert_eq!(rows_there.pixels_sha256().unwrap(), digest);
                assert_eq!(rows_there.values()[..2], [-41.426, -38.981]);
            }
        }
    }
}
