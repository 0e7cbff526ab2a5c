//! One pair of tests for each candle 0.11.1 defect that this crate or its callers work around.
//!
//! `upstream_*_is_still_wrong` fails when an upgrade repairs the defect: then the workaround can go.
#![allow(clippy::disallowed_methods)] // reason: the subject of these tests

use candle_core::{D, Device, Result, Tensor, Var};
use retort_kernels as ours;

use crate::support::{check_gradients, numbers, random, values};

fn var(values: &[f64], dims: &[usize]) -> Var {
    Var::from_tensor(&Tensor::from_slice(values, dims, &Device::Cpu).unwrap()).unwrap()
}

/// The gradient of the sum of `f(x)`; an error if backward fails.
fn gradient(f: impl Fn(&Tensor) -> Result<Tensor>, x: &Var) -> Result<Vec<f64>> {
    let grads = f(x)?.sum_all()?.backward()?;
    Ok(grads.get(x).map_or_else(Vec::new, values))
}

/// Largest error of candle's gradient of `sum(f(x) * weights)` against central differences.
fn error(f: &dyn Fn(&Tensor) -> Result<Tensor>, x: &Tensor) -> Result<f64> {
    let x = Var::from_tensor(x)?;
    let weighted = |x: &Tensor| -> Result<Tensor> {
        let y = f(x)?;
        let w = Tensor::from_vec(numbers(y.elem_count(), 99), y.shape(), &Device::Cpu)?;
        (y * w)?.sum_all()
    };
    let grads = weighted(&x)?.backward()?;
    let grad = values(grads.get(&x).expect("x is a variable"));
    let base = values(&x);
    let mut worst = 0f64;
    for at in 0..base.len() {
        let side = |step: f64| -> Result<f64> {
            let mut moved = base.clone();
            moved[at] += step;
            weighted(&Tensor::from_vec(moved, x.shape(), &Device::Cpu)?)?.to_scalar::<f64>()
        };
        worst = worst.max(((side(1e-5)? - side(-1e-5)?) / 2e-5 - grad[at]).abs());
    }
    Ok(worst)
}

#[test]
fn upstream_max_pool_gradient_is_still_wrong() {
    let x = var(&[1.0, 2.0, 3.0, 4.0], &[1, 1, 2, 2]);
    assert_eq!(gradient(|x| x.max_pool2d(2), &x).unwrap(), [0.0, 0.0, 0.0, 0.25]);
    let right = gradient(|x| Ok(ours::max_pool2d(x, &ours::Pool2dSpec::new(2, 2, 0)).unwrap()), &x);
    assert_eq!(right.unwrap(), [0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn upstream_max_pool_with_a_rest_is_still_wrong() {
    let x = random((1, 1, 7, 7), 1);
    assert!(error(&|x| x.max_pool2d(2), &x).map_or(true, |e| e > 1e-2));
    check_gradients("ours", &|t| ours::max_pool2d(&t[0], &ours::Pool2dSpec::new(2, 2, 0)).unwrap(), &[x]);
}

#[test]
fn upstream_overlapping_max_pool_is_still_wrong() {
    let x = random((1, 1, 7, 7), 1);
    assert!(error(&|x| x.max_pool2d_with_stride(3, 2), &x).is_err());
    check_gradients("ours", &|t| ours::max_pool2d(&t[0], &ours::Pool2dSpec::new(3, 2, 0)).unwrap(), &[x]);
}

#[test]
fn upstream_avg_pool_with_a_rest_is_still_wrong() {
    let x = random((1, 1, 7, 7), 1);
    assert!(error(&|x| x.avg_pool2d(2), &x).map_or(true, |e| e > 1e-2));
    check_gradients("ours", &|t| ours::avg_pool2d(&t[0], &ours::Pool2dSpec::new(2, 2, 0), true).unwrap(), &[x]);
}

#[test]
fn upstream_non_square_strided_convolution_is_still_wrong() {
    let (x, w) = (random((2, 3, 6, 7), 1), random((2, 3, 3, 3), 2));
    assert!(error(&|x| x.conv2d(&w, 1, 2, 1, 1), &x).is_err());
    let spec = ours::Conv2dSpec::new(2, 1);
    check_gradients("ours", &|t| ours::conv2d(&t[0], &t[1], None, &spec).unwrap(), &[x, w]);
}

#[test]
fn upstream_conv1d_weight_gradient_is_still_wrong() {
    let (x, w) = (random((2, 3, 9), 1), random((4, 3, 3), 2));
    assert!(error(&|w| x.conv1d(w, 1, 1, 1, 1), &w).map_or(true, |e| e > 1e-2));
    let spec = ours::Conv2dSpec { padding: [0, 1], ..ours::Conv2dSpec::new(1, 0) };
    let f = |t: &[Tensor]| {
        let (x, w) = (t[0].unsqueeze(2).unwrap(), t[1].unsqueeze(2).unwrap());
        ours::conv2d(&x, &w, None, &spec).unwrap().squeeze(2).unwrap()
    };
    let expected = x.conv1d(&w, 1, 1, 1, 1).unwrap();
    assert!(crate::support::difference(&f(&[x.clone(), w.clone()]), &expected) < 1e-12);
    check_gradients("ours", &f, &[x, w]);
}

#[test]
fn upstream_relu_at_zero_is_still_wrong() {
    let x = var(&[0.0], &[1]);
    assert_eq!(gradient(Tensor::relu, &x).unwrap(), [1.0]);
    assert_eq!(gradient(|x| Ok(ours::relu(x).unwrap()), &x).unwrap(), [0.0]);
}

#[test]
fn upstream_abs_at_zero_is_still_wrong() {
    let x = var(&[0.0], &[1]);
    assert_eq!(gradient(Tensor::abs, &x).unwrap(), [1.0]);
    assert_eq!(gradient(|x| Ok(ours::abs(x).unwrap()), &x).unwrap(), [0.0]);
}

#[test]
fn upstream_bilinear_resize_is_still_without_gradient() {
    let x = random((1, 1, 3, 4), 1);
    assert!(error(&|x| x.upsample_bilinear2d(6, 8, false), &x).is_err());
    check_gradients("ours", &|t| ours::resize_bilinear2d(&t[0], [6, 8]).unwrap(), &[x]);
}

// What callers avoid, beside what they do instead.

#[test]
fn upstream_softmax_last_dim_is_still_without_gradient() {
    let x = var(&[0.3, -0.2, 0.5], &[1, 3]);
    let f = |softmax: fn(&Tensor) -> Result<Tensor>| gradient(move |x| softmax(x)?.sqr(), &x);
    assert!(f(candle_nn::ops::softmax_last_dim).unwrap().is_empty());
    assert!(error(&|x| candle_nn::ops::softmax(x, D::Minus1)?.sqr(), &x).unwrap() < 1e-9);
}

#[test]
fn upstream_layer_norm_is_still_without_gradient() {
    let x = Var::from_tensor(&random((2, 3), 1).to_dtype(candle_core::DType::F32).unwrap()).unwrap();
    let (weight, bias) = (x.ones_like().unwrap().get(0).unwrap(), x.zeros_like().unwrap().get(0).unwrap());
    let norm = |f: &dyn Fn() -> Result<Tensor>| f()?.sqr()?.sum_all()?.backward().map(|grads| grads.get(&x).is_some());
    assert!(!norm(&|| candle_nn::ops::layer_norm(&x, &weight, &bias, 1e-5)).unwrap());
    assert!(norm(&|| candle_nn::ops::layer_norm_slow(&x, &weight, &bias, 1e-5)).unwrap());
    let (w, b) = (random(3, 2), random(3, 3));
    assert!(error(&|x| candle_nn::ops::layer_norm_slow(x, &w, &b, 1e-5), &random((2, 3), 1)).unwrap() < 1e-8);
}

/// Places overwritten by the source keep a gradient in candle; a mask by hand has none there.
#[test]
fn upstream_scatter_gradient_is_still_wrong() {
    let source = random((1, 2), 2);
    let index = Tensor::new(&[[0u32, 2]], &Device::Cpu).unwrap();
    assert!(error(&|x| x.scatter(&index, &source, 1), &random((1, 4), 1)).map_or(true, |e| e > 1e-2));
    let keep = Tensor::new(&[[0.0, 1.0, 0.0, 1.0]], &Device::Cpu).unwrap();
    let placed = keep.zeros_like().unwrap().scatter(&index, &source, 1).unwrap();
    let instead = |x: &Tensor| (x * &keep)? + &placed;
    let x = random((1, 4), 1);
    assert_eq!(values(&instead(&x).unwrap()), values(&x.scatter(&index, &source, 1).unwrap()));
    assert!(error(&instead, &x).unwrap() < 1e-9);
}

#[test]
fn upstream_scatter_add_gradient_is_still_wrong() {
    let source = random((1, 2), 2);
    let index = Tensor::new(&[[0u32, 2]], &Device::Cpu).unwrap();
    assert!(error(&|x| x.scatter_add(&index, &source, 1), &random((1, 4), 1)).map_or(true, |e| e > 1e-2));
    let rows = index.flatten_all().unwrap();
    assert!(error(&|x| x.index_add(&rows, &source, 1), &random((1, 4), 1)).unwrap() < 1e-9);
}

#[test]
fn upstream_nearest_upsampling_of_a_reused_input_is_still_wrong() {
    let x = random((1, 1, 2, 2), 1);
    let before = |x: &Tensor| x.upsample_nearest2d(4, 4)?.mean_all()? + x.sqr()?.sum_all()?;
    let after = |x: &Tensor| x.sqr()?.sum_all()? + x.upsample_nearest2d(4, 4)?.mean_all()?;
    let wrong = |e: Result<f64>| e.map_or(true, |e| e > 1e-3);
    assert!(wrong(error(&before, &x)) || wrong(error(&after, &x)));
    let ours = |x: &Tensor| ours::resize_nearest2d(x, [4, 4]).unwrap().mean_all()? + x.sqr()?.sum_all()?;
    assert!(error(&ours, &x).unwrap() < 1e-9);
}

#[test]
fn upstream_nearest_upsampling_by_other_factors_is_still_without_gradient() {
    for (from, to) in [((3, 3), [5, 5]), ((3, 3), [6, 9]), ((6, 6), [3, 3])] {
        let x = random((1, 2, from.0, from.1), 1);
        assert!(error(&|x| x.upsample_nearest2d(to[0], to[1]), &x).is_err(), "{to:?}");
        let expected = x.upsample_nearest2d(to[0], to[1]).unwrap();
        assert_eq!(values(&ours::resize_nearest2d(&x, to).unwrap()), values(&expected), "{to:?}");
        check_gradients("ours", &|t| ours::resize_nearest2d(&t[0], to).unwrap(), &[x]);
    }
}

/// The root of a masked square has gradient 0 at the zero vector, as PyTorch's norm.
#[test]
fn upstream_norm_of_zero_is_still_wrong() {
    let x = var(&[0.0, 0.0], &[2]);
    assert!(gradient(|x| x.sqr()?.sum_all()?.sqrt(), &x).unwrap().iter().all(|g| g.is_nan()));
    let guarded = |x: &Tensor| {
        let square = x.sqr()?.sum_all()?;
        let positive = square.gt(0.0)?;
        let root = positive.where_cond(&square, &square.ones_like()?)?.sqrt()?;
        positive.where_cond(&root, &square.zeros_like()?)
    };
    assert_eq!(gradient(guarded, &x).unwrap(), [0.0, 0.0]);
    assert!(error(&guarded, &random(2, 1)).unwrap() < 1e-8);
}
