//! Batch normalisation against its formula.

use candle_core::{DType, Device, Tensor, Var};
use retort_kernels::{Activation, BatchStats, InstructionSet, batch_norm_eval, batch_norm_train, with_instruction_set};

use crate::support::{bits, check_gradients, difference, f32s, gradients, numbers, random, values};

const EPS: f64 = 1e-5;

/// The formula, and the statistics.
fn reference(x: &Tensor, w: &Tensor, b: &Tensor, relu: bool) -> (Tensor, BatchStats) {
    let dims = x.dims().to_vec();
    let (c, run) = (dims[1], dims[2..].iter().product::<usize>());
    let (xs, w, b) = (values(x), values(w), values(b));
    let count = xs.len() / c;
    let (mut mean, mut var) = (vec![0.0; c], vec![0.0; c]);
    for (i, x) in xs.iter().enumerate() {
        mean[i / run % c] += x / count as f64;
    }
    for (i, x) in xs.iter().enumerate() {
        var[i / run % c] += (x - mean[i / run % c]).powi(2) / count as f64;
    }
    let y = xs.iter().enumerate().map(|(i, x)| {
        let c = i / run % c;
        let y = (x - mean[c]) / (var[c] + EPS).sqrt() * w[c] + b[c];
        if relu { y.max(0.0) } else { y }
    });
    let y = Tensor::from_vec(y.collect::<Vec<_>>(), dims, &Device::Cpu).unwrap();
    (y, BatchStats { mean, var, count })
}

fn inputs(dims: &[usize]) -> [Tensor; 3] {
    [random(dims.to_vec(), 1), random(dims[1], 2), random(dims[1], 3)]
}

const SHAPES: [&[usize]; 6] = [&[2, 3, 4, 5], &[1, 2, 1, 2], &[3, 4], &[4, 1, 1, 1], &[2, 2, 5, 7], &[9, 17, 3, 3]];

#[test]
fn forward_and_statistics_are_the_formula() {
    for dims in SHAPES {
        let [x, w, b] = inputs(dims);
        for (act, relu) in [(Activation::None, false), (Activation::Relu, true)] {
            let (y, stats) = batch_norm_train(&x, &w, &b, EPS, act).unwrap();
            let (expected, expected_stats) = reference(&x, &w, &b, relu);
            assert!(difference(&y, &expected) < 1e-10, "{dims:?}");
            assert_eq!(stats.count, expected_stats.count);
            for (got, expected) in stats.mean.iter().zip(&expected_stats.mean) {
                assert!((got - expected).abs() < 1e-13);
            }
            for (got, expected) in stats.var.iter().zip(&expected_stats.var) {
                assert!((got - expected).abs() < 1e-13);
            }
        }
    }
}

#[test]
fn unbiased_variance_divides_by_one_less() {
    let x = Tensor::new(&[[1f64], [2.], [4.]], &Device::Cpu).unwrap();
    let one = Tensor::ones(1, DType::F64, &Device::Cpu).unwrap();
    let (_, stats) = batch_norm_train(&x, &one, &one, EPS, Activation::None).unwrap();
    assert!((stats.var[0] - 14.0 / 9.0).abs() < 1e-14);
    assert!((stats.unbiased_var()[0] - 7.0 / 3.0).abs() < 1e-14);
}

#[test]
fn gradients_in_training_and_evaluation() {
    for dims in [&[2, 3, 4, 5][..], &[2, 2, 1, 3], &[5, 4], &[3, 2, 5, 7]] {
        for act in [Activation::None, Activation::Relu] {
            let train = |t: &[Tensor]| batch_norm_train(&t[0], &t[1], &t[2], EPS, act).unwrap().0;
            check_gradients(&format!("train {dims:?} {act:?}"), &train, &inputs(dims));
            let mean = random(dims[1], 4);
            let var = random(dims[1], 5).sqr().unwrap();
            let eval = |t: &[Tensor]| batch_norm_eval(&t[0], &t[1], &t[2], &mean, &var, EPS, act).unwrap();
            check_gradients(&format!("eval {dims:?} {act:?}"), &eval, &inputs(dims));
        }
    }
}

#[test]
fn evaluation_with_the_batch_statistics_is_training() {
    let [x, w, b] = inputs(&[3, 5, 4, 4]);
    let (y, stats) = batch_norm_train(&x, &w, &b, EPS, Activation::Relu).unwrap();
    let mean = Tensor::new(stats.mean, &Device::Cpu).unwrap();
    let var = Tensor::new(stats.var, &Device::Cpu).unwrap();
    let eval = batch_norm_eval(&x, &w, &b, &mean, &var, EPS, Activation::Relu).unwrap();
    assert_eq!(bits(&y), bits(&eval));
}

#[test]
fn a_large_mean_costs_no_accuracy() {
    let noise = numbers(8 * 2 * 15 * 15, 1);
    // An outlier in front, where a shift by the first element alone would suffer.
    let mut data: Vec<f32> = noise.iter().map(|v| (1e3 + v) as f32).collect();
    data[0] = 0.0;
    let x = Tensor::from_vec(data, (8, 2, 15, 15), &Device::Cpu).unwrap();
    let (w, b) = (random(2, 2), random(2, 3));
    let (expected, expected_stats) = reference(&x, &w, &b, false);
    for set in [InstructionSet::Portable, InstructionSet::Avx2Fma, InstructionSet::Avx512] {
        let [w, b] = [&w, &b].map(|t| t.to_dtype(DType::F32).unwrap());
        let (y, stats) = with_instruction_set(set, || batch_norm_train(&x, &w, &b, EPS, Activation::None).unwrap());
        assert!(difference(&y, &expected) < 1e-6);
        for (got, expected) in stats.var.iter().zip(&expected_stats.var) {
            assert!((got - expected).abs() < 1e-9 * expected, "{got} {expected}");
        }
    }
}

#[test]
fn single_precision_follows_double() {
    for set in [InstructionSet::Portable, InstructionSet::Avx2Fma, InstructionSet::Avx512] {
        for dims in SHAPES {
            let f = |t: &[Tensor]| batch_norm_train(&t[0], &t[1], &t[2], EPS, Activation::Relu).unwrap().0;
            let inputs = inputs(dims);
            let (y, grads) = gradients(&f, &inputs);
            let (y32, grads32) = with_instruction_set(set, || gradients(&f, &f32s(&inputs)));
            assert!(difference(&y32, &y) < 1e-5, "{set:?} {dims:?}");
            for (got, expected) in grads32.iter().zip(&grads) {
                assert!(difference(got, expected) < 2e-4, "{set:?} {dims:?} {}", difference(got, expected));
            }
        }
    }
}

#[test]
fn buffers_kept_as_variables_get_no_gradient() {
    let [x, w, b] = inputs(&[2, 3, 2, 2]);
    let mean = Var::zeros(3, DType::F64, &Device::Cpu).unwrap();
    let var = Var::ones(3, DType::F64, &Device::Cpu).unwrap();
    let x = Var::from_tensor(&x).unwrap();
    let y = batch_norm_eval(&x, &w, &b, &mean, &var, EPS, Activation::None).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some());
    assert!(grads.get(&mean).is_none() && grads.get(&var).is_none());
}

#[test]
fn nan_is_not_hidden() {
    let [x, w, b] = inputs(&[2, 1, 2, 2]);
    let x = (x * f64::NAN).unwrap();
    let (y, stats) = batch_norm_train(&x, &w, &b, EPS, Activation::Relu).unwrap();
    assert!(values(&y).iter().all(|v| v.is_nan()));
    assert!(stats.mean[0].is_nan() && stats.var[0].is_nan());
}

#[test]
fn threads_change_no_bit() {
    let inputs = f32s(&inputs(&[11, 7, 13, 13]));
    let f = |t: &[Tensor]| batch_norm_train(&t[0], &t[1], &t[2], EPS, Activation::Relu).unwrap().0;
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (y, grads) = pool.install(|| gradients(&f, &inputs));
        std::iter::once(y).chain(grads).flat_map(|t| bits(&t)).collect::<Vec<_>>()
    };
    assert_eq!(with(1), with(2));
}
