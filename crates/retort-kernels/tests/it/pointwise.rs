//! Activations.

use candle_core::{DType, Device, Tensor, Var};
use retort_kernels::{abs, relu};

use crate::support::{bits, check_gradients, gradients, random, values};

#[test]
fn gradients_away_from_kinks() {
    let inputs = [random((3, 5, 7), 1)];
    check_gradients("relu", &|t| relu(&t[0]).unwrap(), &inputs);
    check_gradients("abs", &|t| abs(&t[0]).unwrap(), &inputs);
    check_gradients("strided", &|t| relu(&t[0].t().unwrap()).unwrap(), &[random((7, 5), 1)]);
}

fn at(f: &dyn Fn(&Tensor) -> Tensor, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let x = Var::new(x, &Device::Cpu).unwrap();
    let y = f(&x);
    let grads = y.backward().unwrap();
    (values(&y), values(grads.get(&x).unwrap()))
}

#[test]
fn special_points() {
    let points = [-1.0, -0.0, 0.0, 2.0, f64::INFINITY];
    let (y, g) = at(&|x| relu(x).unwrap(), &points);
    assert_eq!(y, [0.0, 0.0, 0.0, 2.0, f64::INFINITY]);
    assert_eq!(g, [0.0, 0.0, 0.0, 1.0, 1.0]);
    let (y, g) = at(&|x| abs(x).unwrap(), &points);
    assert_eq!(y, [1.0, 0.0, 0.0, 2.0, f64::INFINITY]);
    assert_eq!(g, [-1.0, 0.0, 0.0, 1.0, 1.0]);
    for f in [relu, abs] {
        assert!(at(&|x| f(x).unwrap(), &[f64::NAN]).0[0].is_nan());
    }
}

#[test]
fn long_and_empty_tensors() {
    for count in [0, 1, 16_383, 16_384, 16_385, 50_001] {
        let x = random(count, 1).to_dtype(DType::F32).unwrap();
        let expected: Vec<f64> = values(&x).iter().map(|v| v.max(0.0)).collect();
        assert_eq!(values(&relu(&x).unwrap()), expected);
    }
}

#[test]
fn threads_change_no_bit() {
    let inputs = [random(70_000, 1)];
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (y, grads) = pool.install(|| gradients(&|t| relu(&t[0]).unwrap(), &inputs));
        std::iter::once(y).chain(grads).flat_map(|t| bits(&t)).collect::<Vec<_>>()
    };
    assert_eq!(with(1), with(2));
}
