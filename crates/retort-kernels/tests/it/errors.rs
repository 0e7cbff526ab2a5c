//! Every wrong argument is an error that names the operation; nothing panics.

use candle_core::{DType, Device, Tensor, Var};
use retort_kernels::*;

use crate::support::random;

fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn check<T>(result: Result<T>, words: &[&str]) {
    let message = message(result);
    for word in words {
        assert!(message.contains(word), "`{message}` lacks `{word}`");
    }
    assert!(!message.ends_with('.'));
}

#[test]
fn convolution() {
    let x = random((2, 4, 5, 5), 1);
    let w = random((6, 4, 3, 3), 2);
    let spec = Conv2dSpec::new(1, 1);
    check(conv2d(&random((4, 5, 5), 1), &w, None, &spec), &["conv2d", "four dimensions", "[4, 5, 5]"]);
    check(conv2d(&random((0, 4, 5, 5), 1), &w, None, &spec), &["conv2d", "zero"]);
    check(conv2d(&x, &random((6, 3, 3, 3), 2), None, &spec), &["weight", "[6, 3, 3, 3]"]);
    check(conv2d(&x, &random((0, 4, 3, 3), 2), None, &spec), &["weight", "zero"]);
    check(conv2d(&x, &w, Some(&random(5, 3)), &spec), &["bias", "[5]"]);
    check(conv2d(&x, &w, None, &spec.with_groups(0)), &["groups"]);
    check(conv2d(&x, &random((6, 1, 3, 3), 2), None, &spec.with_groups(4)), &["multiple of 4"]);
    check(conv2d(&x, &w, None, &Conv2dSpec::new(0, 1)), &["stride"]);
    check(conv2d(&x, &w, None, &spec.with_dilation(0)), &["dilation"]);
    check(conv2d(&x, &w, None, &Conv2dSpec::new(1, usize::MAX)), &["padding"]);
    check(conv2d(&x, &w, None, &Conv2dSpec::new(1, 0).with_dilation(9)), &["padded input"]);
    check(conv2d(&x, &w.to_dtype(DType::F32).unwrap(), None, &spec), &["weight", "F32"]);
    check(conv2d(&x.to_dtype(DType::U32).unwrap(), &w, None, &spec), &["conv2d", "U32"]);
    check(spec.output_size([1, 1], [0, 1]), &["kernel"]);
    let residual = random((2, 6, 5, 4), 1);
    let map = |t: &Tensor| FeatureMap::from_tensor(t).unwrap();
    check(map(&x).conv2d(&w, None, Some(&map(&residual)), Activation::Relu, &spec), &["residual"]);
    let transposed = ConvTranspose2dSpec { output_padding: [2, 2], ..ConvTranspose2dSpec::new(2, 0) };
    let w = random((4, 3, 2, 2), 2);
    check(conv_transpose2d(&x, &w, None, &transposed), &["output_padding"]);
    check(conv_transpose2d(&x, &random((3, 4, 2, 2), 2), None, &ConvTranspose2dSpec::new(2, 0)), &["weight"]);
    check(conv_transpose2d(&x, &w, None, &ConvTranspose2dSpec::new(1, 9)), &["at least one element"]);
}

#[test]
fn batch_norm() {
    let (x, v) = (random((1, 3, 1, 1), 1), random(3, 2));
    let act = Activation::None;
    check(batch_norm_train(&x, &v, &v, 1e-5, act), &["batch_norm_train", "more than one value"]);
    check(batch_norm_train(&random((2, 3, 4), 1), &v, &v, 1e-5, act), &["[2, 3, 4]"]);
    check(batch_norm_train(&random((2, 4), 1), &v, &v, 1e-5, act), &["weight", "[4]"]);
    check(batch_norm_train(&random((2, 3), 1), &v, &random(2, 1), 1e-5, act), &["bias"]);
    check(batch_norm_train(&random((2, 3), 1), &v, &v, f64::NAN, act), &["eps"]);
    check(batch_norm_train(&random((2, 3), 1), &v, &v, -1.0, act), &["eps"]);
    let tracked = (Var::from_tensor(&v).unwrap().as_tensor() * 2.0).unwrap();
    check(batch_norm_eval(&x, &v, &v, &tracked, &v, 1e-5, act), &["batch_norm_eval", "running mean"]);
}

#[test]
fn pooling_and_resizing() {
    let x = random((1, 1, 4, 4), 1);
    check(max_pool2d(&x, &Pool2dSpec::new(2, 2, 2)), &["max_pool2d", "padding"]);
    check(max_pool2d(&x, &Pool2dSpec::new(5, 1, 0)), &["max_pool2d", "padded input"]);
    check(avg_pool2d(&x, &Pool2dSpec::new(0, 1, 0), true), &["avg_pool2d", "from 1"]);
    check(avg_pool2d(&x, &Pool2dSpec::new(2, 0, 0), true), &["avg_pool2d", "from 1"]);
    check(max_pool2d(&x, &Pool2dSpec::new(usize::MAX, 1, usize::MAX / 2)), &["max_pool2d", "from 1"]);
    check(adaptive_max_pool2d(&x, [usize::MAX, 1]), &["adaptive_max_pool2d", "size"]);
    check(resize_bilinear2d(&x, [1, usize::MAX]), &["resize_bilinear2d", "size"]);
    check(adaptive_avg_pool2d(&x, [0, 1]), &["adaptive_avg_pool2d", "size"]);
    check(adaptive_max_pool2d(&random((1, 0, 2, 2), 1), [1, 1]), &["adaptive_max_pool2d", "zero"]);
    check(global_avg_pool2d(&random((2, 2), 1)), &["global_avg_pool2d"]);
    check(resize_bilinear2d(&x, [3, 0]), &["resize_bilinear2d", "size"]);
}

#[test]
fn the_rest() {
    let x = random((2, 3), 1);
    let integers = Tensor::zeros((2, 3), DType::U8, &Device::Cpu).unwrap();
    check(relu(&integers), &["relu", "U8"]);
    check(abs(&integers), &["abs", "U8"]);
    let bank = random((4, 3), 2);
    check(gather_dot(&x, &bank, &[0, 4]), &["gather_dot", "below 4", "found 4", "position 1"]);
    check(gather_dot(&x, &bank, &[0, 1, 2]), &["multiple of 2"]);
    check(gather_dot(&x, &bank, &[]), &["multiple of 2"]);
    check(gather_dot(&x, &random((4, 2), 2), &[0, 1]), &["bank"]);
    check(gather_dot(&x, &Var::from_tensor(&bank).unwrap(), &[0, 1]), &["bank", "detach"]);
}
