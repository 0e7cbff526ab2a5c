//! The numbers of the embedded data, computed by other programs from the same files.

use super::sha256;
use retort_datasets::{Dataset, Sources, Split, info, load, registry};

fn label_bytes(dataset: &Dataset) -> Vec<u8> {
    dataset.labels().iter().map(|&l| l as u8).collect()
}

fn mean_std(pixels: &[u8], max: f64) -> (f64, f64) {
    let n = pixels.len() as f64;
    let mean = pixels.iter().map(|&p| f64::from(p) / max).sum::<f64>() / n;
    let squares = pixels.iter().map(|&p| (f64::from(p) / max - mean).powi(2));
    (mean, (squares.sum::<f64>() / n).sqrt())
}

fn assert_near(found: (f64, f64), expected: (f64, f64)) {
    let near = |a: f64, b: f64| (a - b).abs() < 1e-5;
    assert!(near(found.0, expected.0) && near(found.1, expected.1), "{found:?} {expected:?}");
}

struct Expected {
    split: Split,
    per_class: usize,
    statistics: (f64, f64),
    pixels: &'static str,
    labels: &'static str,
    digest: &'static str,
    first10: [u32; 10],
    /// Row 0 at (row 5, column 20) and (row 20, column 5): a transposed image swaps them.
    probes: (u8, u8),
}

fn check_fashion(expected: &Expected) {
    let data = load("fashion-mnist-10k", expected.split, None).unwrap();
    assert_eq!(data.class_counts(), [expected.per_class; 10]);
    assert_eq!(data.split(), expected.split);
    assert_near(mean_std(data.pixels().unwrap(), 255.0), expected.statistics);
    assert_eq!(sha256(data.pixels().unwrap()), expected.pixels);
    assert_eq!(sha256(&label_bytes(&data)), expected.labels);
    assert_eq!(data.digest(), expected.digest);
    assert_eq!(data.labels()[..10], expected.first10);
    let image = data.image(0).unwrap();
    assert_eq!((image[5 * 28 + 20], image[20 * 28 + 5]), expected.probes);
    assert_eq!(data.class_names()[9], "Ankle boot");
    assert_eq!(data.max_value(), 255.0);
}

#[test]
fn fashion_train() {
    check_fashion(&Expected {
        split: Split::Train,
        per_class: 800,
        statistics: (0.286422, 0.353668),
        pixels: "dcda5d31d243feac2ab8288403fb2d43b54ca240d7c12197455f1e39d833ad86",
        labels: "2e644148ef646934f58b19f0438388158849ba050e4e3f3ac4f56f55972b496f",
        digest: "90750e05b31ea4911763562a082dda5a8526eda03ec3ddc0fb7c3be6fce54796",
        first10: [9, 0, 0, 3, 0, 2, 7, 2, 5, 5],
        probes: (23, 205),
    });
}

#[test]
fn fashion_test() {
    check_fashion(&Expected {
        split: Split::Test,
        per_class: 200,
        statistics: (0.285296, 0.351642),
        pixels: "96315b1732ab731e68b8def3c284f34b605f7deb7a61e683c7d786265c827c83",
        labels: "b2095bc797d1201e84da76c94012c02d0e6f07af0938df4e00120a3b42d1aa4c",
        digest: "cf11d8c3a2ca7716ecec776a63e5ed9958dc00b625a012b090d24d9ee8b7dcc9",
        first10: [9, 2, 1, 1, 6, 1, 4, 6, 5, 7],
        probes: (0, 184),
    });
}

#[test]
fn digits() {
    let train = load("digits-8x8", Split::Train, None).unwrap();
    let test = load("digits-8x8", Split::Test, None).unwrap();
    assert_eq!((train.len(), test.len()), (1_437, 360));
    // Both splits one after the other are the whole file.
    let pixels = [train.pixels().unwrap(), test.pixels().unwrap()].concat();
    let labels = [label_bytes(&train), label_bytes(&test)].concat();
    let statistics = mean_std(&pixels, 16.0);
    assert_near(statistics, (0.30526, 0.376049));
    assert_eq!(sha256(&pixels), "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3");
    assert_eq!(sha256(&labels), "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0");
    assert_eq!(train.digest(), "ca0fcd32fc93b74fe4981b49fc715282b2d8db88d6b5d12d79e7a15b0928c88e");
    assert_eq!(test.digest(), "9331708456cb380132f9e867403ad5ce9d6d64cce1e2973e972fcdf7f309f2db");
    assert_eq!(train.class_counts(), [143, 146, 142, 146, 144, 145, 144, 143, 141, 143]);
    let image = train.image(0).unwrap();
    assert_eq!((image[8 + 4], image[4 * 8 + 1]), (10, 5));
    assert_eq!(train.max_value(), 16.0);
    // The constants of the registry are those of the data.
    let n = train.normalization();
    assert_near((f64::from(n.mean[0]), f64::from(n.std[0])), statistics);
}

#[test]
fn registry_agrees_with_the_embedded_data() {
    let embedded = registry().iter().filter(|info| info.embedded());
    let mut count = 0;
    for info in embedded {
        for split in [Split::Train, Split::Test] {
            let data = load(info.name, split, None).unwrap();
            assert_eq!(data.name(), info.name);
            assert_eq!(Some(data.len()), info.rows(split));
            assert_eq!(data.shape(), info.shape);
            assert_eq!(data.classes(), info.classes);
            count += 1;
        }
    }
    assert_eq!(count, 4);
}

#[test]
fn a_second_load_shares_the_pixels() {
    let pixels = || load("digits-8x8", Split::Test, None).unwrap().pixels().unwrap().as_ptr();
    assert_eq!(pixels(), pixels());
}

#[test]
fn wrong_requests_say_what_to_do() {
    let message = |name: &str, folder: Option<&str>| {
        let folder = folder.map(std::path::Path::new);
        load(name, Split::Train, folder).unwrap_err().to_string()
    };
    let unknown = message("fashion-mnist10k", None);
    assert!(unknown.contains("did you mean `fashion-mnist-10k`?"), "{unknown}");
    for known in registry() {
        assert!(unknown.contains(known.name), "{unknown}");
    }
    assert!(message("cifar", None).contains("did you mean `cifar10`?"));
    // A cache that is empty: what the machine has must not matter.
    let nowhere = Sources { cache: Some("nowhere".into()), offline: true, ..Sources::default() };
    let folder_required = nowhere.load("cifar100", Split::Train).unwrap_err().to_string();
    assert!(folder_required.contains("`cifar100`") && folder_required.contains("`train.bin`"));
    let in_vain = message("digits-8x8", Some("somewhere"));
    assert!(in_vain.contains("embedded") && in_vain.contains("`somewhere`"), "{in_vain}");
    assert!(info("mnist").is_ok());
}
