//! What runs on devices other than the CPU, here on the CPU, against the kernels.

use candle_core::{Device, Tensor, Var};
use retort_kernels::fallback::{abs, conv_transpose2d, conv2d, relu, train_elsewhere};
use retort_kernels::{Activation, Conv2dSpec, ConvTranspose2dSpec};

fn ramp(dims: &[usize]) -> Var {
    let count: usize = dims.iter().product();
    let values: Vec<f64> = (0..count).map(|i| (i * 37 % 101) as f64 / 50.0 - 1.0).collect();
    Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap()
}

/// Both give the same values and gradients on the CPU.
fn same(ours: &Tensor, theirs: &Tensor, vars: &[&Var]) {
    let near = |a: &Tensor, b: &Tensor| {
        let d = (a - b).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(d < 1e-16, "{d}");
    };
    near(ours, theirs);
    let weights = ramp(ours.dims()).detach();
    let grads = [ours, theirs].map(|y| (y * &weights).unwrap().backward().unwrap());
    for var in vars {
        near(grads[0].get(var).unwrap(), grads[1].get(var).unwrap());
    }
}

#[test]
fn convolutions_agree_with_the_kernels() {
    let (x, w, b) = (ramp(&[2, 4, 7, 7]), ramp(&[6, 2, 3, 3]), ramp(&[6]));
    let spec = Conv2dSpec { padding: [1, 2], ..Conv2dSpec::new(1, 0) }.with_groups(2);
    let theirs = conv2d(&x, &w, Some(&b), &spec).unwrap();
    same(&retort_kernels::conv2d(&x, &w, Some(&b), &spec).unwrap(), &theirs, &[&x, &w, &b]);
    let (w, spec) = (ramp(&[4, 3, 3, 3]), ConvTranspose2dSpec::new(2, 1));
    let theirs = conv_transpose2d(&x, &w, None, &spec).unwrap();
    same(&retort_kernels::conv_transpose2d(&x, &w, None, &spec).unwrap(), &theirs, &[&x, &w]);
}

#[test]
fn activations_and_normalisation_agree_with_the_kernels() {
    let (x, w, b) = (ramp(&[3, 2, 4, 5]), ramp(&[2]), ramp(&[2]));
    same(&retort_kernels::relu(&x).unwrap(), &relu(&x).unwrap(), &[&x]);
    same(&retort_kernels::abs(&x).unwrap(), &abs(&x).unwrap(), &[&x]);
    let act = Activation::Relu;
    let (ours, stats) = retort_kernels::batch_norm_train(&x, &w, &b, 1e-5, act).unwrap();
    let (theirs, other) = train_elsewhere(&x, &w, &b, 1e-5, act, 60).unwrap();
    same(&ours, &theirs, &[&x, &w, &b]);
    assert!(stats.var.iter().zip(&other.var).all(|(a, b)| (a - b).abs() < 1e-12));
}

#[test]
fn unequal_directions_are_refused() {
    let (x, w) = (ramp(&[1, 1, 5, 5]), ramp(&[1, 1, 1, 1]));
    let spec = Conv2dSpec { stride: [1, 2], ..Conv2dSpec::new(1, 0) };
    assert!(conv2d(&x, &w, None, &spec).unwrap_err().to_string().contains("stride"));
}
