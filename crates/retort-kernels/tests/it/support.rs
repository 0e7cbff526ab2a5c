//! Numbers without a generator, finite differences, plain loops.

use candle_core::{DType, Device, Shape, Tensor, Var};

/// Numbers in -1..1 that look random; the same for the same salt.
pub(crate) fn numbers(count: usize, salt: u64) -> Vec<f64> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

pub(crate) fn random(shape: impl Into<Shape>, salt: u64) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(numbers(shape.elem_count(), salt), shape, &Device::Cpu).unwrap()
}

pub(crate) fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Largest difference, relative to the largest expected value (or 1e-3).
pub(crate) fn difference(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.dims(), expected.dims());
    let (got, expected) = (values(got), values(expected));
    let scale = expected.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    got.iter().zip(&expected).fold(0.0, |m, (g, e)| {
        let d = (g - e).abs() / scale;
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    })
}

pub(crate) fn bits(t: &Tensor) -> Vec<u64> {
    values(t).iter().map(|v| v.to_bits()).collect()
}

/// The gradients of `sum(f(inputs) * weights)` with fixed random weights.
pub(crate) fn gradients(f: &dyn Fn(&[Tensor]) -> Tensor, inputs: &[Tensor]) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors);
    let w = random(y.shape().clone(), 99).to_dtype(y.dtype()).unwrap();
    let grads = (&y * w).unwrap().sum_all().unwrap().backward().unwrap();
    let grads = vars
        .iter()
        .map(|v| {
            let g = grads.get(v).expect("a gradient for every variable").clone();
            assert_eq!(g.dims(), v.dims());
            assert_eq!(g.dtype(), v.dtype());
            assert!(g.is_contiguous());
            g
        })
        .collect();
    (y.detach(), grads)
}

/// Compares the gradients of every input with central differences, in `f64`, on up to 60 elements of each.
pub(crate) fn check_gradients(name: &str, f: &dyn Fn(&[Tensor]) -> Tensor, inputs: &[Tensor]) {
    const STEP: f64 = 1e-5;
    let (y, grads) = gradients(f, inputs);
    let weights = numbers(y.elem_count(), 99);
    let value = |inputs: &[Tensor]| -> f64 { values(&f(inputs)).iter().zip(&weights).map(|(y, w)| y * w).sum() };
    for (i, input) in inputs.iter().enumerate() {
        let base = values(input);
        let grad = values(&grads[i]);
        let scale = grad.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        let stride = base.len().div_ceil(60);
        for at in (0..base.len()).step_by(stride) {
            let side = |step: f64| {
                let mut moved = base.clone();
                moved[at] += step;
                let mut all = inputs.to_vec();
                all[i] = Tensor::from_vec(moved, input.shape(), &Device::Cpu).unwrap();
                value(&all)
            };
            let slope = (side(STEP) - side(-STEP)) / (2.0 * STEP);
            let error = (slope - grad[at]).abs() / scale;
            assert!(error < 1e-6, "{name}: input {i} element {at}: slope {slope}, gradient {}", grad[at]);
        }
    }
}

pub(crate) fn f32s(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect()
}
