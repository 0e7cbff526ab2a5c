//! Writes tiny golden cases.

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A case of the id `ce` with hand-computed numbers, to be bent by each test.
pub(crate) struct Sample {
    pub(crate) json: Value,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

pub(crate) fn reals(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
}

pub(crate) fn integers(values: &[i64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

impl Sample {
    /// Cross-entropy of two samples: `-ln p_y`, mean over the batch, gradient `(p - onehot) / B`.
    pub(crate) fn ce(name: &str) -> Self {
        let logits = [[0.5f64, -1.0, 2.0], [0.0, 0.25, -0.5]];
        let labels = [2usize, 0];
        let (mut loss, mut gradient) = (0.0, Vec::new());
        for (row, &label) in logits.iter().zip(&labels) {
            let total: f64 = row.iter().map(|z| z.exp()).sum();
            loss -= (row[label].exp() / total).ln() / 2.0;
            gradient.extend((0..3).map(|c| ((row[c].exp() / total - f64::from(u8::from(c == label))) / 2.0) as f32));
        }
        let flat: Vec<f32> = logits.iter().flatten().map(|&z| z as f32).collect();
        let tensors = [
            ("in.logits", reals(&flat, &[2, 3])),
            ("in.labels", integers(&[2, 0])),
            ("out.loss", reals(&[loss as f32], &[1])),
            ("grad.logits", reals(&gradient, &[2, 3])),
        ];
        let json = json!({
            "name": name, "family": "output", "loss": "ce", "params": {"smoothing": 0.0},
            "inputs": {}, "outputs": {}, "atol": 1e-6, "rtol": 1e-5, "convention": "reference", "checked": true
        });
        Self { json, tensors: tensors.map(|(name, tensor)| (name.to_string(), tensor)).into() }
    }

    /// Replaces one entry of a stored tensor.
    pub(crate) fn set(&mut self, tensor: &str, index: usize, value: f32) {
        let old = &self.tensors[tensor];
        let mut values: Vec<f32> = old.flatten_all().unwrap().to_vec1().unwrap();
        values[index] = value;
        let shape = old.dims().to_vec();
        self.tensors.insert(tensor.to_string(), reals(&values, &shape));
    }

    /// Writes both files and returns the path of the JSON.
    pub(crate) fn write(&self, folder: &Path) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.join(format!("{}.json", self.json["name"].as_str().unwrap()));
        std::fs::write(&path, self.json.to_string()).unwrap();
        let bytes = safetensors::serialize(&self.tensors, None).unwrap();
        std::fs::write(path.with_extension("safetensors"), bytes).unwrap();
        path
    }
}
