//! Two tiny networks that do not exist: outputs made of seeded numbers.

use candle_core::{DType, Device, Tensor, Var};
use rand::RngExt;
use retort_losses::{BuildContext, Context, Distiller, LossConfig};
use retort_nn::{MapShape, NetworkSpec, Outputs, Params, Seed};

pub(crate) const CLASSES: usize = 4;

/// Uniform in (-1, 1), f64.
pub(crate) fn numbers(label: &str, n: usize) -> Vec<f64> {
    let mut rng = Seed::root(11).child(label).rng();
    (0..n).map(|_| 2.0 * rng.random::<f64>() - 1.0).collect()
}

pub(crate) fn random(label: &str, shape: &[usize], dtype: DType) -> Tensor {
    let values = numbers(label, shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

pub(crate) fn scalar(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

pub(crate) fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn spec(name: &str, maps: &[[usize; 2]], embedding: usize) -> NetworkSpec {
    NetworkSpec {
        name: name.into(),
        in_channels: 3,
        image: [8, 8],
        classes: CLASSES,
        maps: maps.iter().map(|&[channels, size]| MapShape { channels, height: size, width: size }).collect(),
        embedding,
        pre_activations: false,
    }
}

/// A student and a teacher of different widths and, in one stage, different sizes; of equal widths where a method needs that.
pub(crate) fn networks(config: &LossConfig) -> (NetworkSpec, NetworkSpec) {
    let student = spec("student", &[[3, 8], [4, 8], [6, 4], [5, 4]], 5);
    let teacher = match config {
        LossConfig::Pkd(_) => spec("teacher", &[[3, 8], [4, 8], [6, 4], [5, 2]], 9),
        _ => spec("teacher", &[[5, 8], [8, 8], [7, 4], [9, 2]], 9),
    };
    (student, teacher)
}

/// The default with the sizes of these networks.
pub(crate) fn small(config: LossConfig) -> LossConfig {
    match config {
        LossConfig::Crd(mut c) => {
            (c.negatives, c.dim) = (6, 7);
            LossConfig::Crd(c)
        }
        LossConfig::Cc(mut c) => {
            c.dim = 7;
            LossConfig::Cc(c)
        }
        other => other,
    }
}

pub(crate) struct Side {
    pub(crate) outputs: Outputs,
    pub(crate) vars: Vec<(String, Var)>,
}

/// Outputs of a network on `b` samples; `value` gives the numbers of each tensor.
pub(crate) fn side(
    spec: &NetworkSpec,
    b: usize,
    dtype: DType,
    mut value: impl FnMut(&str, &[usize]) -> Vec<f64>,
) -> Side {
    let mut vars = Vec::new();
    let mut tensor = |name: String, shape: Vec<usize>| {
        let t = Tensor::from_vec(value(&name, &shape), shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let var = Var::from_tensor(&t).unwrap();
        vars.push((name, var.clone()));
        var.as_tensor().clone()
    };
    let logits = tensor("logits".into(), vec![b, spec.classes]);
    let embedding = tensor("embedding".into(), vec![b, spec.embedding]);
    let maps = spec.maps.iter().enumerate();
    let maps = maps.map(|(i, m)| tensor(format!("map{i}"), vec![b, m.channels, m.height, m.width])).collect();
    Side { outputs: Outputs { logits, embedding, maps, pre_activations: Vec::new() }, vars }
}

pub(crate) fn random_side(spec: &NetworkSpec, b: usize, dtype: DType) -> Side {
    side(spec, b, dtype, |name, shape| numbers(&format!("{}.{name}", spec.name), shape.iter().product()))
}

/// A built loss and one batch for it.
pub(crate) struct Bench {
    pub(crate) params: Params,
    pub(crate) loss: Box<dyn Distiller>,
    pub(crate) student: Side,
    pub(crate) teacher: Side,
    pub(crate) labels: Tensor,
    pub(crate) label_ids: Vec<u32>,
    pub(crate) index: Vec<u32>,
    pub(crate) epoch: usize,
}

/// Labels of a training set of 20 samples.
pub(crate) fn train_labels() -> Vec<u32> {
    (0..20).map(|i| i % CLASSES as u32).collect()
}

pub(crate) fn build(config: &LossConfig, dtype: DType) -> (Params, Box<dyn Distiller>) {
    let (student, teacher) = networks(config);
    let params = Params::new(Seed::root(3).child("parts"), dtype, &Device::Cpu);
    let loss = config
        .build(&BuildContext {
            student: &student,
            teacher: Some(&teacher),
            train_labels: &train_labels(),
            seed: Seed::root(3),
            scope: params.root(),
        })
        .unwrap();
    (params, loss)
}

impl Bench {
    pub(crate) fn new(config: &LossConfig, b: usize, dtype: DType) -> Self {
        let (student, teacher) = networks(config);
        Self::with_sides(config, b, dtype, random_side(&student, b, dtype), random_side(&teacher, b, dtype))
    }

    pub(crate) fn with_sides(config: &LossConfig, b: usize, dtype: DType, student: Side, teacher: Side) -> Self {
        let (params, loss) = build(config, dtype);
        let index: Vec<u32> = (0..b as u32).map(|i| (i * 7 + 2) % 20).collect();
        let label_ids: Vec<u32> = index.iter().map(|&i| train_labels()[i as usize]).collect();
        let labels = Tensor::new(label_ids.clone(), &Device::Cpu).unwrap();
        Self { params, loss, student, teacher, labels, label_ids, index, epoch: 0 }
    }

    pub(crate) fn term(&mut self) -> retort_losses::Result<retort_losses::Term> {
        self.loss.term(&Context {
            student: &self.student.outputs,
            teacher: Some(&self.teacher.outputs),
            labels: &self.labels,
            label_ids: &self.label_ids,
            index: &self.index,
            epoch: self.epoch,
        })
    }
}
