//! Special numbers and wrong arguments.

use candle_core::{DType, Device, Tensor, Var};
use retort_kernels::*;

use super::ops::Ops;
use super::{EPS, NONE, RELU, SETS, map};
use crate::support::{bits, difference, f32s, gradients, numbers, random, values};

#[test]
fn nan_is_not_hidden() {
    for set in SETS {
        for dtype in [DType::F32, DType::F64] {
            with_instruction_set(set, || {
                let mut numbers = numbers(17 * 4 * 4, 1);
                // Channel 3, row 1, column 2; all positive, so that nothing else is cut off.
                numbers.iter_mut().for_each(|x| *x = x.abs() + 0.1);
                numbers[3 * 16 + 6] = f64::NAN;
                let x = Tensor::from_vec(numbers, (1, 17, 4, 4), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                let ones = Tensor::ones(17, dtype, &Device::Cpu).unwrap();
                let nans = |t: Tensor| -> Vec<usize> {
                    values(&t).iter().enumerate().filter(|(_, v)| v.is_nan()).map(|(i, _)| i).collect()
                };
                let x = map(&x);
                assert_eq!(nans(x.tensor()), [54]);
                assert_eq!(nans(x.positive().tensor()), [54]);
                assert_eq!(nans(x.plus(&x, RELU).tensor()), [54]);
                assert_eq!(nans(x.eval(&ones, &ones, RELU).tensor()), [54]);
                assert_eq!(nans(x.train(&ones, &ones, RELU).tensor()), (48..64).collect::<Vec<_>>());
                assert_eq!(nans(x.through_tensor(abs).unwrap().tensor()), [54]);
                assert_eq!(nans(x.global()), [3]);
                assert_eq!(nans(x.averaged(Pool2dSpec::new(2, 2, 0), false).tensor()), [13]);
                assert_eq!(nans(x.largest(Pool2dSpec::new(2, 2, 0)).tensor()), [13], "{set:?} {dtype:?}");
            });
        }
    }
}

/// As in PyTorch, and as for tensors.
#[test]
fn the_maximum_of_nan_and_its_gradient() {
    let nan = f64::NAN;
    for window in [[5.0, nan, 7.0, 1.0], [nan, 9.0, nan, 1.0], [1.0, 1.0, 0.0, 1.0], [f64::NEG_INFINITY; 4]] {
        let x = Var::from_tensor(&Tensor::from_slice(&window, (1, 1, 2, 2), &Device::Cpu).unwrap()).unwrap();
        let spec = Pool2dSpec::new(2, 2, 0);
        let of = |y: Tensor| [bits(&y), bits(y.backward().unwrap().get(&x).unwrap())];
        assert_eq!(of(map(&x).largest(spec).tensor()), of(max_pool2d(&x, &spec).unwrap()), "{window:?}");
    }
}

#[test]
fn a_large_mean_costs_no_accuracy() {
    let values: Vec<f32> = numbers(8 * 17 * 11 * 11, 1).iter().map(|v| (1e4 + v) as f32).collect();
    let x = Tensor::from_vec(values, (8, 17, 11, 11), &Device::Cpu).unwrap();
    let inputs = [x.to_dtype(DType::F64).unwrap(), random(17, 2), random(17, 3)];
    let norm = |t: &[Tensor]| map(&t[0]).train(&t[1], &t[2], NONE).tensor();
    let (expected, exact) = gradients(&norm, &inputs);
    for set in SETS {
        let (y, grads) = with_instruction_set(set, || gradients(&norm, &f32s(&inputs)));
        assert!(difference(&y, &expected) < 1e-6, "{set:?} {}", difference(&y, &expected));
        for (i, (got, exact)) in grads.iter().zip(&exact).enumerate() {
            assert!(difference(got, exact) < 4e-6, "{set:?} gradient {i}: {}", difference(got, exact));
        }
    }
}

#[track_caller]
fn refused<T>(result: Result<T>, words: &[&str]) {
    let message = result.map(|_| ()).expect_err("an error").to_string();
    for word in words {
        assert!(message.contains(word), "`{message}` lacks `{word}`");
    }
}

#[test]
fn wrong_convolutions_are_refused() {
    let x = map(&random((2, 4, 5, 5), 1));
    let (w, b, spec) = (random((6, 4, 3, 3), 2), random(6, 3), Conv2dSpec::new(1, 1));
    let conv = |w: &Tensor, b: Option<&Tensor>, r: Option<&Tensor>, spec: Conv2dSpec| {
        x.conv2d(w, b, r.map(map).as_ref(), RELU, &spec)
    };
    let f32 = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
    refused(FeatureMap::from_tensor(&random((2, 4, 5), 1)), &["feature_map", "four dimensions", "[2, 4, 5]"]);
    refused(FeatureMap::from_tensor(&random((2, 0, 5, 5), 1)), &["feature_map", "zero"]);
    refused(FeatureMap::from_tensor(&x.tensor().to_dtype(DType::U8).unwrap()), &["feature_map", "U8"]);
    refused(conv(&random((6, 4, 8, 3), 2), None, None, spec), &["conv2d", "padded input"]);
    refused(conv(&random((0, 4, 3, 3), 2), None, None, spec), &["conv2d", "weight", "zero"]);
    refused(conv(&random((6, 5, 3, 3), 2), None, None, spec), &["conv2d", "weight", "[6, 5, 3, 3]"]);
    refused(conv(&f32(&w), None, None, spec), &["conv2d", "weight", "F32"]);
    refused(conv(&w, None, None, spec.with_groups(0)), &["conv2d", "groups"]);
    refused(conv(&random((6, 1, 3, 3), 2), None, None, spec.with_groups(3)), &["conv2d", "multiple of 3"]);
    refused(conv(&random((6, 1, 3, 3), 2), None, None, spec.with_groups(4)), &["conv2d", "multiple of 4"]);
    refused(conv(&w, None, None, Conv2dSpec::new(0, 1)), &["conv2d", "stride"]);
    refused(conv(&w, None, None, spec.with_dilation(0)), &["conv2d", "dilation"]);
    for huge in [1 << 21, usize::MAX / 2, usize::MAX] {
        refused(conv(&w, None, None, Conv2dSpec { stride: [1, huge], ..spec }), &["conv2d", "stride"]);
        refused(conv(&w, None, None, Conv2dSpec { padding: [huge, 1], ..spec }), &["conv2d", "padding"]);
        refused(conv(&w, None, None, Conv2dSpec { dilation: [huge, 1], ..spec }), &["conv2d", "dilation"]);
    }
    // Within the limits, but no memory holds the padded map.
    refused(conv(&w, None, None, Conv2dSpec::new(1, 1 << 20)), &["conv2d", "padded"]);
    refused(conv(&w, None, None, Conv2dSpec::new(1 << 20, 1 << 20)), &["conv2d", "padded"]);
    refused(conv(&w, None, None, Conv2dSpec::new(1, 1 << 20).with_dilation(1 << 20)), &["conv2d", "padded"]);
    refused(conv(&w, Some(&random(5, 3)), None, spec), &["conv2d", "bias", "[5]"]);
    refused(conv(&w, Some(&random((6, 1), 3)), None, spec), &["conv2d", "bias", "[6, 1]"]);
    refused(conv(&w, Some(&f32(&b)), None, spec), &["conv2d", "bias", "F32"]);
    refused(conv(&w, None, Some(&random((2, 6, 5, 4), 1)), spec), &["conv2d", "residual", "[2, 6, 5, 4]"]);
    refused(conv(&w, None, Some(&f32(&random((2, 6, 5, 5), 1))), spec), &["conv2d", "residual", "F32"]);
    let transposed = |w: &Tensor, b: Option<&Tensor>, spec| x.conv_transpose2d(w, b, RELU, &spec);
    let (w, base) = (random((4, 3, 2, 2), 2), ConvTranspose2dSpec::new(2, 0));
    refused(transposed(&random((3, 4, 2, 2), 2), None, base), &["conv_transpose2d", "weight"]);
    refused(transposed(&w, Some(&b), base), &["conv_transpose2d", "bias", "[6]"]);
    for groups in [0, 3, usize::MAX] {
        refused(transposed(&w, None, ConvTranspose2dSpec { groups, ..base }), &["conv_transpose2d"]);
    }
    refused(transposed(&w, None, ConvTranspose2dSpec::new(0, 0)), &["conv_transpose2d", "stride"]);
    refused(transposed(&w, None, ConvTranspose2dSpec::new(1, 3)), &["conv_transpose2d", "at least one"]);
    refused(transposed(&w, None, ConvTranspose2dSpec::new(1 << 20, 0)), &["conv_transpose2d"]);
    refused(transposed(&w, None, ConvTranspose2dSpec::new(usize::MAX, 0)), &["conv_transpose2d", "stride"]);
}

#[test]
fn huge_groups_and_windows_do_not_overflow() {
    let (x, w) = (map(&random((2, 4, 5, 5), 1)), random((6, 4, 3, 3), 2));
    for huge in [1 << 62, usize::MAX] {
        refused(x.max_pool2d(&Pool2dSpec::new(huge, 1, 0)), &["max_pool2d", "from 1"]);
        refused(x.avg_pool2d(&Pool2dSpec::new(huge, 1, 0), true), &["avg_pool2d", "from 1"]);
        refused(x.conv2d(&w, None, None, NONE, &Conv2dSpec::new(1, 1).with_groups(huge)), &["conv2d", "weight"]);
    }
}

#[test]
fn other_wrong_arguments_are_refused() {
    let x = map(&random((2, 4, 5, 5), 1));
    let single = map(&random((2, 4, 5, 5), 1).to_dtype(DType::F32).unwrap());
    refused(x.add(&single, RELU), &["add", "F32"]);
    refused(single.add(&x, RELU), &["add", "F64"]);
    refused(x.add(&map(&random((2, 4, 5, 1), 1)), RELU), &["add", "[2, 4, 5, 1]"]);
    let (v, short) = (&random(4, 1), &random(3, 1));
    let train = |w: &Tensor, b: &Tensor, eps| x.batch_norm_train([w, b], eps, RELU);
    refused(train(short, v, EPS), &["batch_norm_train", "weight", "[3]"]);
    refused(train(v, short, EPS), &["batch_norm_train", "bias", "[3]"]);
    refused(train(v, &v.to_dtype(DType::F32).unwrap(), EPS), &["batch_norm_train", "bias", "F32"]);
    refused(train(v, v, -1.0), &["batch_norm_train", "eps"]);
    refused(train(v, v, f64::NAN), &["batch_norm_train", "eps"]);
    let one = map(&random((1, 4, 1, 1), 1));
    refused(one.batch_norm_train([v, v], EPS, RELU), &["batch_norm_train", "more than one value"]);
    let eval = |mean: &Tensor, var: &Tensor| x.batch_norm_eval([v, v], [mean, var], EPS, RELU);
    refused(eval(short, v), &["batch_norm_eval", "running mean", "[3]"]);
    refused(eval(v, short), &["batch_norm_eval", "running variance", "[3]"]);
    let tracked = (Var::from_tensor(v).unwrap().as_tensor() * 2.0).unwrap();
    refused(eval(v, &tracked), &["batch_norm_eval", "running variance", "detach"]);
    for (kernel, stride, padding, word) in
        [(0, 1, 0, "from 1"), (2, 0, 0, "from 1"), (2, 1, 2, "padding"), (8, 1, 1, "padded")]
    {
        let spec = Pool2dSpec::new(kernel, stride, padding);
        refused(x.max_pool2d(&spec), &["max_pool2d", word]);
        refused(x.avg_pool2d(&spec, true), &["avg_pool2d", word]);
    }
    refused(x.through_tensor(|t| Ok(t.flatten_all()?)), &["feature_map", "four dimensions"]);
}
