//! What tests of single families share.

use candle_core::{DType, Device, Tensor, Var};
use retort_nn::{Init, Params, Seed, Tensors};

/// Numbers of a normal distribution in f64.
pub(crate) fn normal(shape: &[usize], seed: u64) -> Tensor {
    Init::Normal { std: 1.0 }.draw(shape, Seed::root(seed), DType::F64, &Device::Cpu).unwrap()
}

/// A state with every weight and statistic away from its start; variances stay positive.
pub(crate) fn shaken(store: &Params, dtype: DType) -> Tensors {
    let shake = |(name, tensor): (String, Tensor)| {
        let noise = Init::Normal { std: 0.2 };
        let noise = noise.draw(tensor.dims(), Seed::root(9).child(&name), dtype, &Device::Cpu).unwrap();
        let noise = if name.ends_with("running_var") { noise.sqr().unwrap() } else { noise };
        (name, (tensor + noise).unwrap())
    };
    store.snapshot().unwrap().into_iter().map(shake).collect()
}

/// The largest difference of two tensors.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let wide = |t: &Tensor| t.detach().to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    wide(a).iter().zip(wide(b)).fold(0.0, |most, (a, b)| if (a - b).abs() <= most { most } else { (a - b).abs() })
}

/// The derivative of `value`, a scalar in f64, along a random direction of all weights of `store` and of `inputs`,
/// against a central difference. The store is as it was before each evaluation.
pub(crate) fn check_directional_derivative(store: &Params, inputs: &[Var], value: impl Fn() -> Tensor) {
    let start = store.snapshot().unwrap();
    let vars = store.trainable().into_iter().chain(inputs.iter().cloned().map(|var| ("input".to_string(), var)));
    let vars: Vec<(String, Var)> = vars.collect();
    let gradients = value().backward().unwrap();
    let mut expected = 0.0;
    let mut moves = Vec::new();
    for (i, (name, var)) in vars.iter().enumerate() {
        let step = normal(var.dims(), 100 + i as u64);
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} got no gradient"));
        expected += (gradient * &step).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        moves.push((var, var.as_tensor().copy().unwrap(), step));
    }
    // So small that no unit crosses its kink on the way; rounding leaves 8 digits.
    let h = 1e-8;
    let at = |sign: f64| {
        store.load(&start).unwrap();
        for (var, origin, step) in &moves {
            var.set(&(origin + (step * (sign * h)).unwrap()).unwrap()).unwrap();
        }
        value().to_scalar::<f64>().unwrap()
    };
    let found = (at(1.0) - at(-1.0)) / (2.0 * h);
    at(0.0);
    assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found} and {expected}");
}
