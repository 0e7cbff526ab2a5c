//! Files of PyTorch itself.

use crate::forge::{self, SQUARE};
use crate::{Written, fixture};
use retort_nn::WeightFile;

fn open(name: &str) -> WeightFile {
    WeightFile::open(&fixture(name)).unwrap()
}

/// As in `tests/data/README.md`.
fn count(elements: usize) -> Vec<f32> {
    (0..elements).map(|i| i as f32 / 4.0 - 1.0).collect()
}

fn values(file: &WeightFile, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dims(), file.entries()[name].shape);
    assert!(tensor.is_contiguous(), "{name}");
    (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1().unwrap())
}

/// The same tensors in both formats.
const VIEWS: [&str; 2] = ["views.pth", "legacy-views.pth"];

#[test]
fn every_floating_point_type() {
    for file in VIEWS.map(open) {
        for name in ["float32", "float64", "float16", "bfloat16", "parameter", "shared_a", "shared_b"] {
            assert_eq!(values(&file, &format!("module.{name}")), (vec![2, 3], count(6)), "{name}");
        }
        for name in ["float64", "float16", "bfloat16"] {
            assert_eq!(file.entries()[&format!("module.{name}")].dtype, name);
        }
    }
}

#[test]
fn views_of_storages() {
    let all = count(24);
    let pick = |indices: &[usize]| indices.iter().map(|i| all[*i]).collect::<Vec<f32>>();
    let permuted: Vec<usize> = (0..4).flat_map(|k| [0, 4, 8, 12, 16, 20].map(|i| i + k)).collect();
    for file in VIEWS.map(open) {
        assert_eq!(values(&file, "module.transposed"), (vec![2, 3], pick(&[0, 2, 4, 1, 3, 5])));
        assert_eq!(values(&file, "module.permuted"), (vec![4, 2, 3], pick(&permuted)));
        assert_eq!(values(&file, "module.slice"), (vec![2, 2], pick(&[5, 6, 13, 14])));
        assert_eq!(values(&file, "module.channels_last"), (vec![2, 3, 2, 2], all.clone()));
        assert_eq!(values(&file, "module.shared_row"), (vec![3], pick(&[3, 4, 5])));
        assert_eq!(values(&file, "module.scalar"), (vec![], vec![0.5]));
        assert_eq!(values(&file, "module.empty"), (vec![0, 3], vec![]));
    }
}

#[test]
fn what_is_no_weight_is_said() {
    let described = ["PyTorch, state dict under `model`", "PyTorch (format before 1.6), state dict under `model`"];
    for (path, described) in VIEWS.into_iter().zip(described) {
        let file = open(path);
        assert_eq!(file.describe(), described);
        assert_eq!(file.others(), ["module.version"]);
        for (name, dtype) in [("module.num_batches_tracked", "int64"), ("module.mask", "bool")] {
            assert!(!file.entries()[name].is_float);
            let message = file.tensor(name).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(dtype) && message.contains(path), "{message}");
        }
        let message = file.tensor("module.nothing").unwrap_err().to_string();
        assert!(message.contains("`module.nothing` is missing"), "{message}");
    }
}

/// `python2.pth` is a file of PyTorch 1.0 on Python 2.7; the `training` ones hold options, NumPy's numbers, an
/// optimiser's state, and tensors that were on a GPU.
#[test]
fn state_dicts_of_modules() {
    let cases = [
        ("bare.pth", "PyTorch, a bare state dict"),
        ("no-crc.pth", "PyTorch, state dict under `state_dict`"),
        ("options.pth", "PyTorch, state dict under `model`"),
        ("training.pth", "PyTorch, state dict under `model`"),
        ("legacy.pth", "PyTorch (format before 1.6), a bare state dict"),
        ("legacy-training.pth", "PyTorch (format before 1.6), state dict under `model`"),
        ("python2.pth", "PyTorch (format before 1.6), state dict under `model`"),
    ];
    for (name, described) in cases {
        let file = open(name);
        assert_eq!(file.describe(), described, "{name}");
        assert_eq!(values(&file, "bn.weight"), (vec![2], vec![1.0, 1.0]), "{name}");
        assert_eq!(values(&file, "bn.running_mean"), (vec![2], vec![0.0, 0.0]), "{name}");
        assert_eq!(values(&file, "bn.running_var"), (vec![2], vec![1.0, 1.0]), "{name}");
        assert_eq!(file.entries()["bn.num_batches_tracked"].dtype, "int64", "{name}");
        assert_eq!(file.entries().len(), 6, "{name}");
        assert!(file.others().is_empty(), "{name}");
        assert_eq!(values(&file, "conv.weight"), (vec![2, 1, 2, 2], count(8)), "{name}");
    }
}

#[test]
fn refused_with_a_reason() {
    let cases = [
        ("array.pth", "multiarray._reconstruct`"),
        ("module.pth", "`torch.nn.modules.container.Sequential`"),
        ("complex.pth", "`torch.ComplexFloatStorage`"),
        ("expanded.pth", "`x`: shape [4, 2] has more elements than its storage of 2"),
    ];
    for (name, reason) in cases {
        let message = WeightFile::open(&fixture(name)).err().unwrap().to_string();
        assert!(message.contains(name) && message.contains(reason), "{message}");
    }
}

#[test]
fn a_file_of_the_other_byte_order() {
    let big: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_be_bytes()).collect();
    let [pickle, order] = [forge::entry("data.pkl", &forge::dict(&SQUARE)), forge::entry("byteorder", b"big")];
    let file = Written::new("big.pt", &forge::zip(&[pickle, order, forge::entry("data/0", &big)]));
    assert_eq!(values(&WeightFile::open(&file.path()).unwrap(), "w").1, [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn one_flipped_bit_is_noticed() {
    let mut bytes = std::fs::read(fixture("bare.pth")).unwrap();
    let weight = bytes.windows(4).position(|window| window == (-0.75f32).to_le_bytes()).unwrap();
    bytes[weight] ^= 1;
    crate::refused(&bytes, &["data/0", "damaged"]);
}
