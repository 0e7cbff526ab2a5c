//! Two tiny networks that do not exist: outputs made of seeded numbers.

use candle_core::{DType, Device, Tensor, Var};
use rand::RngExt;
use retort_losses::distribution::{Bandwidth, CostScale, Entropic, Kernel};
use retort_losses::feature::SvdVariant;
use retort_losses::output::Curriculum;
use retort_losses::{BuildContext, Context, Distiller, Family, InitPhase, LossConfig};
use retort_nn::{MapShape, NetworkSpec, Outputs, Params, Seed, StageNorm};

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
        pre_activations: true,
        multiply_adds: 0,
    }
}

/// A student and a teacher of different widths and, in one stage, different sizes; of equal widths where a method needs that.
pub(crate) fn networks(config: &LossConfig) -> (NetworkSpec, NetworkSpec) {
    let student = spec("student", &[[3, 8], [4, 8], [6, 4], [5, 4]], 5);
    let teacher = match config {
        LossConfig::Pkd(_) | LossConfig::Fsp(_) => spec("teacher", &[[3, 8], [4, 8], [6, 4], [5, 2]], 9),
        // Twice as large in this map: the transposed regressor.
        LossConfig::Fitnet(c) if c.map == 1 => spec("teacher", &[[5, 8], [8, 16], [7, 4], [9, 2]], 9),
        // Laws of features can only be compared in one space.
        config if config.info().family == Family::Distribution => {
            spec("teacher", &[[5, 8], [8, 8], [7, 4], [9, 2]], student.embedding)
        }
        LossConfig::Kdsvd(c) if c.variant == SvdVariant::Channel => {
            spec("teacher", &[[5, 8], [4, 8], [6, 4], [5, 2]], 9)
        }
        LossConfig::Kdsvd(_) => spec("teacher", &[[5, 8], [8, 8], [7, 4], [9, 4]], 9),
        _ => spec("teacher", &[[5, 8], [8, 8], [7, 4], [9, 2]], 9),
    };
    (student, teacher)
}

/// Converged, with an entropic term that does not depend on the batch.
fn entropic() -> Entropic {
    Entropic { eps: Some(0.2), tolerance: 1e-12, max_iter: 10_000, ..Entropic::default() }
}

/// With the sizes of these networks, and without what a batch decides and the backward pass holds constant.
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
        LossConfig::Sinkhorn(mut c) => {
            c.entropic = entropic();
            LossConfig::Sinkhorn(c)
        }
        LossConfig::SinkhornDivergence(mut c) => {
            c.entropic = entropic();
            LossConfig::SinkhornDivergence(c)
        }
        LossConfig::SinkhornLogits(mut c) => {
            c.entropic = entropic();
            LossConfig::SinkhornLogits(c)
        }
        LossConfig::W2Joint(mut c) => {
            c.scale = CostScale::None;
            LossConfig::W2Joint(c)
        }
        LossConfig::Mmd(mut c) => {
            c.kernel = fixed(c.kernel);
            LossConfig::Mmd(c)
        }
        LossConfig::MmdConditional(mut c) => {
            c.kernel = fixed(c.kernel);
            LossConfig::MmdConditional(c)
        }
        // A gradient that is not reversed is one that differences can be compared with; the factor T^2 magnifies the
        // rounding of the value.
        LossConfig::Ctkd(mut c) => {
            (c.t_end, c.curriculum) = (c.t_end.min(4.0), unreversed());
            LossConfig::Ctkd(c)
        }
        LossConfig::CtkdInstance(mut c) => {
            (c.hidden, c.t_end, c.curriculum) = (6, c.t_end.min(4.0), unreversed());
            LossConfig::CtkdInstance(c)
        }
        other => other,
    }
}

fn unreversed() -> Curriculum {
    Curriculum { min: 1.0, max: 1.0, ..Curriculum::default() }
}

fn fixed(kernel: Kernel) -> Kernel {
    match kernel {
        Kernel::Rbf { multipliers, .. } => Kernel::Rbf { bandwidth: Bandwidth::Fixed(0.7), multipliers },
        other => other,
    }
}

/// Every other way through a method's code than the default one.
pub(crate) fn variants() -> Vec<LossConfig> {
    let texts = [
        r#"{"method": "label-smoothing", "smoothing": 0.3, "spread": "wrong"}"#,
        r#"{"method": "focal", "gamma": 0.5}"#,
        r#"{"method": "max-entropy", "entropy": 0.0}"#,
        r#"{"method": "tf-kd-reg", "temperature": 0.5, "correct_prob": 0.6}"#,
        r#"{"method": "tf-kd-reg-lib", "epsilon": 0.3, "temperature": 2.0}"#,
        r#"{"method": "zipf-ls-logits", "lambda": 2.0, "distribution": {"kind": "linear-decay", "smallest_prob": 0.01}}"#,
        r#"{"method": "zipf-ls-logits", "loss_mask": true, "distribution": {"kind": "exponential-decay", "exp_lambda": 0.5}}"#,
        r#"{"method": "zipf-ls-logits", "distribution": {"kind": "unbiased-zipf", "left_bound": 0.01, "right_bound": 1.0}}"#,
        r#"{"method": "kd", "temperature": 1.5}"#,
        r#"{"method": "dkd", "alpha": 0.5, "beta": 2.0, "temperature": 2.0}"#,
        r#"{"method": "ctkd", "loss": {"kind": "dkd", "beta": 3.0}, "theta": -0.4}"#,
        r#"{"method": "ctkd", "t_start": 0.5, "t_end": 2.0}"#,
        r#"{"method": "ctkd-instance", "eps": 0.01, "t_end": 3.0}"#,
        r#"{"method": "simreg", "head": "linear"}"#,
        r#"{"method": "simreg", "head": "two"}"#,
        r#"{"method": "simreg", "head": "two-activated"}"#,
        r#"{"method": "fitnet", "map": 1}"#,
        r#"{"method": "fitnet", "map": 3, "regressor_relu": false}"#,
        r#"{"method": "at", "p": 1.0, "align": "tail"}"#,
        r#"{"method": "at", "p": 3.5, "align": "head"}"#,
        r#"{"method": "ab", "margin": 0.25, "align": "tail"}"#,
        r#"{"method": "ft", "k": 1.0, "p1": 3.0, "p2": 2.0}"#,
        r#"{"method": "ft", "factor_norm": "full", "p1": 1.0, "p2": 1.5}"#,
        r#"{"method": "nst", "degree": 1}"#,
        r#"{"method": "nst", "degree": 3, "offset": 0.5}"#,
        r#"{"method": "kdsvd", "variant": "channel"}"#,
        r#"{"method": "kdsvd", "variant": "channel", "k": 2, "extra": 1, "rbf_div": 2.0}"#,
        r#"{"method": "kdsvd", "k": 3, "extra": 0}"#,
        r#"{"method": "vid", "init_var": 0.5, "min_var": 0.1}"#,
        r#"{"method": "ofd", "kernel_size": 3, "teacher_bn": "running", "cdf_threshold": 0.2}"#,
        r#"{"method": "reviewkd", "student_pre_activations": true, "max_mid_channels": 3}"#,
        r#"{"method": "pkd", "resize": "teacher"}"#,
        r#"{"method": "rkd", "squared": true, "angle": 1.0}"#,
        r#"{"method": "rkd", "distance": 0.0}"#,
        r#"{"method": "pkt", "eps": 0.001}"#,
        r#"{"method": "crd", "mode": "relax", "momentum": 0.0}"#,
        r#"{"method": "crd", "negatives_by": "instance", "temperature": 1.0}"#,
        r#"{"method": "crd", "percent": 0.5}"#,
        r#"{"method": "w2-empirical", "matching": {"coefficient": "fixed", "normalize": true, "regressor": "linear"}}"#,
        r#"{"method": "energy-distance", "estimator": "unbiased", "matching": {"coefficient": "fixed", "regressor": "linear-bn"}}"#,
        r#"{"method": "w2-conditional", "reduction": "weighted"}"#,
        r#"{"method": "w2-joint", "label_cost": "onehot-sq", "beta": 0.3}"#,
        r#"{"method": "w2-joint", "label_cost": "probs-sq"}"#,
        r#"{"method": "w2-joint", "label_cost": "kl", "beta": 2.0}"#,
        r#"{"method": "sinkhorn-logits", "temperature": 2.0, "cost": "uniform"}"#,
        r#"{"method": "gaussian-w2", "bias": false}"#,
        r#"{"method": "gaussian-w2-diag", "eps": 0.01}"#,
        r#"{"method": "gaussian-kl", "covariance": "full", "direction": "jeffreys", "reg": 0.01}"#,
        r#"{"method": "gaussian-kl", "covariance": "diag", "direction": "teacher-student", "matching": {"coefficient": "fixed"}}"#,
        r#"{"method": "coral", "matrix": "correlation"}"#,
        r#"{"method": "coral", "matrix": "log", "reg": 0.1}"#,
        r#"{"method": "mmd", "kernel": {"kind": "linear"}, "estimator": "unbiased", "matching": {"coefficient": "fixed"}}"#,
        r#"{"method": "mmd", "kernel": {"kind": "poly", "degree": 3, "coef0": 1.0}}"#,
        r#"{"method": "mmd", "kernel": {"kind": "rbf", "multipliers": [0.5, 2.0]}, "estimator": "unbiased", "matching": {"coefficient": "fixed"}}"#,
        r#"{"method": "mmd-conditional", "kernel": {"kind": "linear"}, "reduction": "mean"}"#,
        r#"{"method": "gromov-wasserstein", "inner": "squared-euclidean"}"#,
        r#"{"method": "gromov-wasserstein", "inner": "cosine"}"#,
    ];
    texts.map(|text| small(serde_json::from_str(text).unwrap())).to_vec()
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
    let mut maps = |name: &str| {
        let maps = spec.maps.iter().enumerate();
        maps.map(|(i, m)| tensor(format!("{name}{i}"), vec![b, m.channels, m.height, m.width])).collect()
    };
    let (maps, pre_activations) = (maps("map"), maps("pre"));
    Side { outputs: Outputs { logits, embedding, maps, pre_activations }, vars }
}

pub(crate) fn random_side(spec: &NetworkSpec, b: usize, dtype: DType) -> Side {
    side(spec, b, dtype, |name, shape| numbers(&format!("{}.{name}", spec.name), shape.iter().product()))
}

/// A built loss and one batch for it.
pub(crate) struct Bench {
    pub(crate) built: Built,
    /// Whether [`Bench::term`] is that of the phase before the training.
    pub(crate) init: bool,
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

/// A loss with the parts that the training and the phase before it change.
pub(crate) struct Built {
    pub(crate) params: Params,
    pub(crate) init_params: Params,
    pub(crate) loss: Box<dyn Distiller>,
}

/// Batch norms of the teacher's stages.
pub(crate) fn norms(teacher: &NetworkSpec, dtype: DType) -> Vec<StageNorm> {
    let norm = |(i, stage): (usize, &MapShape)| {
        let vector = |name: &str| random(&format!("norm{i}.{name}"), &[stage.channels], dtype);
        StageNorm { weight: vector("weight"), bias: vector("bias") }
    };
    teacher.stages().iter().enumerate().map(norm).collect()
}

pub(crate) fn build(config: &LossConfig, dtype: DType) -> Built {
    build_for(config, &networks(config), &train_labels(), dtype).unwrap()
}

/// For other networks or labels than the usual ones.
pub(crate) fn build_for(
    config: &LossConfig,
    (student, teacher): &(NetworkSpec, NetworkSpec),
    train_labels: &[u32],
    dtype: DType,
) -> retort_losses::Result<Built> {
    let params = |name: &str| Params::new(Seed::root(3).child(name), dtype, &Device::Cpu);
    let (params, init_params) = (params("parts"), params("init"));
    let loss = config.build(&BuildContext {
        student,
        teacher: Some(teacher),
        train_labels,
        seed: Seed::root(3),
        scope: params.root(),
        init_scope: init_params.root(),
        teacher_norms: Some(&norms(teacher, dtype)),
    })?;
    Ok(Built { params, init_params, loss })
}

pub(crate) fn init_phase(config: &LossConfig) -> Option<InitPhase> {
    config.init_phase(&networks(config).0)
}

/// Every configuration with the term of its training and, where there is one, that of the phase before it; a term that
/// is 0 by definition (`ab` and `fsp` in the training) is left out.
pub(crate) fn terms(configs: Vec<LossConfig>) -> Vec<(LossConfig, bool)> {
    let of = |config: LossConfig| match init_phase(&config) {
        None => vec![(config, false)],
        Some(phase) if phase.student => vec![(config, true)],
        Some(_) => vec![(config.clone(), true), (config, false)],
    };
    configs.into_iter().flat_map(of).collect()
}

impl Bench {
    pub(crate) fn new(config: &LossConfig, b: usize, dtype: DType) -> Self {
        let (student, teacher) = networks(config);
        Self::with_sides(config, b, dtype, random_side(&student, b, dtype), random_side(&teacher, b, dtype))
    }

    pub(crate) fn with_sides(config: &LossConfig, b: usize, dtype: DType, student: Side, teacher: Side) -> Self {
        Self::with_built(build(config, dtype), b, student, teacher)
    }

    /// A loss that has been built already, on rows of the usual training set.
    pub(crate) fn with_built(built: Built, b: usize, student: Side, teacher: Side) -> Self {
        let index: Vec<u32> = (0..b as u32).map(|i| (i * 7 + 2) % 20).collect();
        let label_ids: Vec<u32> = index.iter().map(|&i| train_labels()[i as usize]).collect();
        let labels = Tensor::new(label_ids.clone(), &Device::Cpu).unwrap();
        Self { built, init: false, student, teacher, labels, label_ids, index, epoch: 0 }
    }

    pub(crate) fn term(&mut self) -> retort_losses::Result<retort_losses::Term> {
        let context = Context {
            student: &self.student.outputs,
            teacher: Some(&self.teacher.outputs),
            labels: &self.labels,
            label_ids: &self.label_ids,
            index: &self.index,
            epoch: self.epoch,
        };
        if self.init { self.built.loss.init_term(&context) } else { self.built.loss.term(&context) }
    }

    /// The parts that the term trains.
    pub(crate) fn parts(&self) -> Vec<(String, Var)> {
        if self.init { self.built.init_params.trainable() } else { self.built.params.trainable() }
    }
}
