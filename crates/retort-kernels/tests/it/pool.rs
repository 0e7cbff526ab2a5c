//! Pooling against plain loops, ties, NaN, borders.

use candle_core::{DType, Device, Tensor, Var};
use retort_kernels::{
    InstructionSet, Pool2dSpec, adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d, global_avg_pool2d, max_pool2d,
    with_instruction_set,
};

use crate::support::{bits, check_gradients, difference, gradients, random, values};

fn specs() -> Vec<([usize; 4], Pool2dSpec)> {
    let spec = Pool2dSpec::new;
    let skewed = Pool2dSpec { kernel: [2, 3], stride: [1, 2], padding: [0, 1] };
    vec![
        ([2, 3, 8, 8], spec(2, 2, 0)),
        ([2, 3, 7, 7], spec(2, 2, 0)),
        ([2, 3, 7, 9], spec(3, 2, 1)),
        ([1, 2, 8, 5], spec(3, 1, 1)),
        ([1, 1, 5, 6], spec(2, 3, 0)),
        ([1, 1, 1, 1], spec(1, 1, 0)),
        ([2, 2, 6, 7], skewed),
        ([1, 2, 2, 2], spec(2, 2, 1)),
        ([3, 40, 9, 9], spec(5, 3, 2)),
        ([1, 2, 6, 41], spec(3, 2, 1)),
        ([1, 2, 5, 70], spec(2, 2, 0)),
        ([1, 2, 5, 11], spec(2, 4, 1)),
        ([1, 1, 3, 3], spec(7, 2, 3)),
    ]
}

/// Reduces each window, given the elements inside of the input.
fn reference(x: &Tensor, spec: &Pool2dSpec, reduce: impl Fn(&[f64]) -> f64) -> Tensor {
    let (b, c, h, w) = x.dims4().unwrap();
    let xs = values(x);
    let out = |n: usize, i: usize| (n + 2 * spec.padding[i] - spec.kernel[i]) / spec.stride[i] + 1;
    let (oh, ow) = (out(h, 0), out(w, 1));
    let mut y = Vec::new();
    for plane in xs.chunks(h * w) {
        for at in 0..oh * ow {
            let mut inside = Vec::new();
            for u in 0..spec.kernel[0] {
                for v in 0..spec.kernel[1] {
                    let row = (at / ow * spec.stride[0] + u).wrapping_sub(spec.padding[0]);
                    let col = (at % ow * spec.stride[1] + v).wrapping_sub(spec.padding[1]);
                    if row < h && col < w {
                        inside.push(plane[row * w + col]);
                    }
                }
            }
            y.push(reduce(&inside));
        }
    }
    Tensor::from_vec(y, (b, c, oh, ow), &Device::Cpu).unwrap()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn sliding_windows() {
    for (dims, spec) in specs() {
        let x = random(dims.to_vec(), 1);
        let max = |v: &[f64]| v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(bits(&max_pool2d(&x, &spec).unwrap()), bits(&reference(&x, &spec, max)));
        let inside = avg_pool2d(&x, &spec, false).unwrap();
        assert!(difference(&inside, &reference(&x, &spec, mean)) < 1e-12);
        let area = (spec.kernel[0] * spec.kernel[1]) as f64;
        let all = avg_pool2d(&x, &spec, true).unwrap();
        let expected = reference(&x, &spec, |v| v.iter().sum::<f64>() / area);
        assert!(difference(&all, &expected) < 1e-12);
        let x32 = x.to_dtype(DType::F32).unwrap();
        assert!(difference(&avg_pool2d(&x32, &spec, true).unwrap(), &expected) < 1e-6);
        for set in [InstructionSet::Portable, InstructionSet::Avx2Fma, InstructionSet::Avx512] {
            let y = with_instruction_set(set, || max_pool2d(&x32, &spec).unwrap());
            assert_eq!(bits(&y), bits(&reference(&x32, &spec, max)), "{set:?} {spec:?}");
        }
        let x = [x];
        check_gradients("max", &|t| max_pool2d(&t[0], &spec).unwrap(), &x);
        check_gradients("avg", &|t| avg_pool2d(&t[0], &spec, false).unwrap(), &x);
        check_gradients("avg with padding", &|t| avg_pool2d(&t[0], &spec, true).unwrap(), &x);
    }
}

#[test]
fn adaptive_windows() {
    for (dims, size) in [([2, 3, 7, 9], [3, 4]), ([1, 2, 5, 5], [1, 1]), ([1, 2, 3, 2], [7, 5]), ([2, 1, 8, 8], [4, 2])]
    {
        let x = random(dims.to_vec(), 1);
        let got = values(&adaptive_avg_pool2d(&x, size).unwrap());
        let top = values(&adaptive_max_pool2d(&x, size).unwrap());
        let (h, w) = (dims[2], dims[3]);
        let xs = values(&x);
        for (at, (got, top)) in got.iter().zip(&top).enumerate() {
            let (plane, i, j) = (at / (size[0] * size[1]), at / size[1] % size[0], at % size[1]);
            let mut inside = Vec::new();
            for row in i * h / size[0]..((i + 1) * h).div_ceil(size[0]) {
                for col in j * w / size[1]..((j + 1) * w).div_ceil(size[1]) {
                    inside.push(xs[(plane * h + row) * w + col]);
                }
            }
            assert!((got - mean(&inside)).abs() < 1e-12, "{dims:?} {size:?} {at}");
            assert_eq!(*top, inside.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
        check_gradients("adaptive avg", &|t| adaptive_avg_pool2d(&t[0], size).unwrap(), std::slice::from_ref(&x));
        check_gradients("adaptive max", &|t| adaptive_max_pool2d(&t[0], size).unwrap(), &[x]);
    }
}

#[test]
fn global_average() {
    let x = random((3, 5, 4, 7), 1);
    let y = global_avg_pool2d(&x).unwrap();
    assert_eq!(y.dims(), [3, 5]);
    assert!(difference(&y, &x.mean((2, 3)).unwrap()) < 1e-12);
    check_gradients("global", &|t| global_avg_pool2d(&t[0]).unwrap(), &[x]);
}

fn max_gradient(values_in: &[f64], dims: [usize; 4], spec: Pool2dSpec) -> (Vec<f64>, Vec<f64>) {
    let x = Tensor::from_slice(values_in, dims.to_vec(), &Device::Cpu).unwrap();
    let x = Var::from_tensor(&x).unwrap();
    let y = max_pool2d(&x, &spec).unwrap();
    let grads = y.backward().unwrap();
    (values(&y), values(grads.get(&x).unwrap()))
}

#[test]
fn the_first_of_equal_maxima_gets_the_gradient() {
    let (y, g) = max_gradient(&[1.0, 1.0, 1.0, 1.0], [1, 1, 2, 2], Pool2dSpec::new(2, 2, 0));
    assert_eq!((y, g), (vec![1.0], vec![1.0, 0.0, 0.0, 0.0]));
    let (_, g) = max_gradient(&[0.0, 2.0, 2.0, 1.0], [1, 1, 2, 2], Pool2dSpec::new(2, 2, 0));
    assert_eq!(g, [0.0, 1.0, 0.0, 0.0]);
    let low = f64::NEG_INFINITY;
    let (y, g) = max_gradient(&[low; 4], [1, 1, 2, 2], Pool2dSpec::new(2, 2, 0));
    assert_eq!((y, g), (vec![low], vec![1.0, 0.0, 0.0, 0.0]));
}

#[test]
fn overlapping_windows_add_up() {
    let (y, g) =
        max_gradient(&[0.0, 3.0, 1.0], [1, 1, 1, 3], Pool2dSpec { kernel: [1, 2], stride: [1, 1], padding: [0, 0] });
    assert_eq!((y, g), (vec![3.0, 3.0], vec![0.0, 2.0, 0.0]));
}

#[test]
fn nan_wins() {
    let (y, g) = max_gradient(&[5.0, f64::NAN, 7.0, 1.0], [1, 1, 2, 2], Pool2dSpec::new(2, 2, 0));
    assert!(y[0].is_nan());
    assert_eq!(g, [0.0, 1.0, 0.0, 0.0]);
    // The last of several, as in PyTorch.
    let nan = f64::NAN;
    let (_, g) = max_gradient(&[nan, 9.0, nan, 1.0], [1, 1, 2, 2], Pool2dSpec::new(2, 2, 0));
    assert_eq!(g, [0.0, 0.0, 1.0, 0.0]);
}

#[test]
fn padding_is_minus_infinity_for_the_maximum() {
    let x = Tensor::full(-3.0, (1, 1, 2, 2), &Device::Cpu).unwrap();
    let y = max_pool2d(&x, &Pool2dSpec::new(3, 1, 1)).unwrap();
    assert_eq!(values(&y), [-3.0; 4]);
}

#[test]
fn threads_change_no_bit() {
    let inputs = [random((9, 30, 11, 11), 1)];
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let spec = Pool2dSpec::new(3, 2, 1);
        let f = |t: &[Tensor]| avg_pool2d(&max_pool2d(&t[0], &spec).unwrap(), &spec, false).unwrap();
        let (y, grads) = pool.install(|| gradients(&f, &inputs));
        std::iter::once(y).chain(grads).flat_map(|t| bits(&t)).collect::<Vec<_>>()
    };
    assert_eq!(with(1), with(2));
}
