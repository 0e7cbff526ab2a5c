//! What losses are made of.

use candle_core::{DType, Device, Tensor, Var};
use retort_kernels::{
    InstructionSet, channel_power_mean, gram, inner_products, logistic_contrast, softmax_cross_entropy,
    softmax_divergence, weighted_sums, with_gradient, with_instruction_set,
};

use crate::support::{bits, check_gradients, difference, gradients, numbers, random, values};

const SETS: [InstructionSet; 3] = [InstructionSet::Portable, InstructionSet::Avx2Fma, InstructionSet::Avx512];

/// Compares a function of `f64` tensors and its gradients with those of another one, and its `f32` version with both.
fn same(name: &str, f: &dyn Fn(&[Tensor]) -> Tensor, expected: &dyn Fn(&[Tensor]) -> Tensor, inputs: &[Tensor]) {
    let (y, grads) = gradients(expected, inputs);
    let check = |inputs: &[Tensor], tolerance: f64| {
        let (ours, ours_grads) = gradients(f, inputs);
        for (part, (ours, expected)) in std::iter::once((&ours, &y)).chain(ours_grads.iter().zip(&grads)).enumerate() {
            let d = difference(ours, expected);
            assert!(d < tolerance, "{name}, {}, part {part}: {d}", if tolerance < 1e-9 { "f64" } else { "f32" });
        }
    };
    check(inputs, 1e-12);
    let inputs: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect();
    for set in SETS {
        with_instruction_set(set, || check(&inputs, 5e-6));
    }
}

/// Rows and columns around the borders of register tiles, blocks and slices.
const SIZES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (2, 3, 5),
    (3, 8, 16),
    (7, 9, 17),
    (5, 6, 127),
    (4, 25, 129),
    (65, 33, 64),
    (97, 95, 33),
    (96, 193, 20),
    (12, 13, 2100),
    (3, 2, 8200),
    (6, 4300, 9),
];

#[test]
fn inner_products_are_those_of_a_matmul() {
    for (m, n, d) in SIZES {
        let inputs = [random((m, d), 1), random((n, d), 2)];
        let plain = |t: &[Tensor]| t[0].matmul(&t[1].t().unwrap()).unwrap();
        same(&format!("{m} {n} {d}"), &|t| inner_products(&t[0], &t[1]).unwrap(), &plain, &inputs);
    }
}

#[test]
fn gram_matrices_are_symmetric_inner_products() {
    for (m, n, d) in SIZES {
        let rows = m.max(n).min(200);
        let plain = |t: &[Tensor]| t[0].matmul(&t[0].t().unwrap()).unwrap();
        let x = random((rows, d), 1);
        let g = gram(&x).unwrap();
        assert_eq!(bits(&g), bits(&g.t().unwrap()));
        same(&format!("{rows} {d}"), &|t| gram(&t[0]).unwrap(), &plain, &[x]);
    }
}

#[test]
fn weighted_sums_are_those_of_a_matmul() {
    for (m, d, n) in SIZES {
        let inputs = [random((m, n), 1), random((n, d), 2)];
        let plain = |t: &[Tensor]| t[0].matmul(&t[1]).unwrap();
        same(&format!("{m} {n} {d}"), &|t| weighted_sums(&t[0], &t[1]).unwrap(), &plain, &inputs);
    }
}

#[test]
fn products_have_the_slopes_of_their_values() {
    let (maps, rows) = (random((5, 2, 3, 3), 1), random((4, 18), 2));
    check_gradients("gram", &|t| gram(&t[0]).unwrap(), std::slice::from_ref(&maps));
    check_gradients("inner", &|t| inner_products(&t[0], &t[1]).unwrap(), &[maps.clone(), rows]);
    check_gradients("inner twice", &|t| inner_products(&t[0], &t[0]).unwrap(), std::slice::from_ref(&maps));
    let sums = |t: &[Tensor]| weighted_sums(&t[0].t().unwrap(), &t[1]).unwrap();
    check_gradients("weighted", &sums, &[random((5, 7), 3), maps]);
}

#[test]
fn a_number_that_is_none_reaches_its_rows_only() {
    let mut x = numbers(4 * 700, 1);
    x[700] = f64::NAN;
    let x = Tensor::from_vec(x, (4, 700), &Device::Cpu).unwrap();
    for (at, g) in values(&gram(&x).unwrap()).into_iter().enumerate() {
        assert_eq!(g.is_nan(), at / 4 == 1 || at % 4 == 1, "{at}");
    }
}

/// `mean_c |x|^p` by loops.
fn power_by_loops(x: &Tensor, p: f64) -> Tensor {
    let (b, c, h, w) = x.dims4().unwrap();
    let (v, n) = (values(x), h * w);
    let mean = |i: usize| (0..c).map(|k| v[(i / n * c + k) * n + i % n].abs().powf(p)).sum::<f64>() / c as f64;
    Tensor::from_vec((0..b * n).map(mean).collect(), (b, n), &Device::Cpu).unwrap()
}

#[test]
fn powers_are_averaged_over_channels() {
    for dims in [[1, 1, 1, 1], [2, 3, 2, 5], [3, 4, 1, 7], [2, 9, 3, 3], [1, 2, 33, 32]] {
        for p in [1.0, 1.5, 2.0, 3.0] {
            let x = random(dims.to_vec(), 1);
            let f = |t: &[Tensor]| channel_power_mean(&t[0], p).unwrap();
            assert!(difference(&f(std::slice::from_ref(&x)), &power_by_loops(&x, p)) < 1e-14);
            check_gradients(&format!("{dims:?} {p}"), &f, std::slice::from_ref(&x));
            let (y, g) = gradients(&f, std::slice::from_ref(&x));
            for set in SETS {
                let x = x.to_dtype(DType::F32).unwrap();
                let (single, slope) = with_instruction_set(set, || gradients(&f, &[x]));
                assert!(difference(&single, &y) < 3e-7 && difference(&slope[0], &g[0]) < 3e-7, "{dims:?} {p}");
            }
        }
    }
    let turned = |t: &[Tensor]| channel_power_mean(&t[0].transpose(2, 3).unwrap(), 2.0).unwrap();
    check_gradients("strided", &turned, &[random((2, 3, 4, 5), 1)]);
}

#[test]
fn the_slope_of_a_power_at_zero_is_zero() {
    for p in [1.0, 1.3, 2.0, 4.0] {
        let x = Var::zeros((1, 2, 1, 2), DType::F64, &Device::Cpu).unwrap();
        let y = channel_power_mean(&x, p).unwrap();
        assert_eq!(values(&y), [0.0, 0.0]);
        assert_eq!(values(y.backward().unwrap().get(&x).unwrap()), [0.0; 4]);
    }
}

/// `ln softmax(x / t)` of every row, by the formula.
fn log_softmax(x: &Tensor, t: f64) -> Vec<Vec<f64>> {
    let rows = x.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
    let row = |row: Vec<f64>| {
        let max = row.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
        let total: f64 = row.iter().map(|x| ((x - max) / t).exp()).sum();
        row.iter().map(|x| (x - max) / t - total.ln()).collect()
    };
    rows.into_iter().map(row).collect()
}

fn labels(b: usize, c: usize) -> Vec<u32> {
    (0..b).map(|i| (i * 7 % c) as u32).collect()
}

#[test]
fn cross_entropy_is_that_of_the_formula() {
    for (b, c) in [(1, 1), (1, 2), (3, 7), (5, 8), (2, 17), (40, 1000)] {
        for smoothing in [0.0, 0.1, 1.0, 1.05] {
            let (z, y) = ((random((b, c), 1) * 5.0).unwrap(), labels(b, c));
            let expected = -log_softmax(&z, 1.0)
                .iter()
                .zip(&y)
                .map(|(p, &y)| (1.0 - smoothing) * p[y as usize] + smoothing / c as f64 * p.iter().sum::<f64>())
                .sum::<f64>()
                / b as f64;
            let f = |t: &[Tensor]| softmax_cross_entropy(&t[0], &y, smoothing).unwrap();
            let value = values(&f(std::slice::from_ref(&z)))[0];
            assert!((value - expected).abs() < 1e-13 * (1.0 + expected.abs()), "{b} {c} {smoothing}");
            check_gradients(&format!("{b} {c} {smoothing}"), &f, std::slice::from_ref(&z));
            let (_, g) = gradients(&f, std::slice::from_ref(&z));
            for set in SETS {
                let (y, h) = with_instruction_set(set, || gradients(&f, &[z.to_dtype(DType::F32).unwrap()]));
                assert!((values(&y)[0] - expected).abs() < 2e-6 && difference(&h[0], &g[0]) < 1e-5);
            }
        }
    }
}

#[test]
fn a_class_that_is_ruled_out_costs_nothing() {
    let z = Var::new(&[[f64::NEG_INFINITY, 1.0, 1.0]], &Device::Cpu).unwrap();
    let loss = softmax_cross_entropy(&z, &[1], 0.0).unwrap();
    assert!((values(&loss)[0] - std::f64::consts::LN_2).abs() < 1e-15);
    assert_eq!(values(loss.backward().unwrap().get(&z).unwrap()), [0.0, -0.5, 0.5]);
}

#[test]
fn divergence_is_that_of_the_formula() {
    for (b, c) in [(1, 1), (1, 2), (3, 7), (5, 8), (2, 17), (20, 1000)] {
        for t in [0.5, 1.0, 4.0] {
            let (s, teacher) = ((random((b, c), 1) * 5.0).unwrap(), (random((b, c), 2) * 5.0).unwrap());
            let rows = log_softmax(&s, t).into_iter().zip(log_softmax(&teacher, t));
            let expected =
                rows.map(|(s, q)| s.iter().zip(&q).map(|(s, q)| q.exp() * (q - s)).sum::<f64>()).sum::<f64>()
                    / b as f64;
            let f = |x: &[Tensor]| softmax_divergence(&x[0], &teacher.to_dtype(x[0].dtype()).unwrap(), t).unwrap();
            let value = values(&f(std::slice::from_ref(&s)))[0];
            assert!((value - expected).abs() < 1e-13 * (1.0 + expected), "{b} {c} {t}: {value} {expected}");
            check_gradients(&format!("{b} {c} {t}"), &f, std::slice::from_ref(&s));
            let (_, g) = gradients(&f, std::slice::from_ref(&s));
            for set in SETS {
                let (y, h) = with_instruction_set(set, || gradients(&f, &[s.to_dtype(DType::F32).unwrap()]));
                assert!((values(&y)[0] - expected).abs() < 3e-6 * (1.0 + expected));
                assert!(difference(&h[0], &g[0]) < 1e-5);
            }
        }
    }
}

#[test]
fn the_divergence_of_close_distributions_keeps_its_digits() {
    // Exact in f32; a log-softmax in f32 gives this value to a few per cent.
    let s = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap();
    let t = Tensor::new(&[[1f32, 2.0, 3.0 + 1.0 / 1024.0]], &Device::Cpu).unwrap();
    let expected = {
        let (s, t) = (s.to_dtype(DType::F64).unwrap(), t.to_dtype(DType::F64).unwrap());
        values(&softmax_divergence(&s, &t, 4.0).unwrap())[0]
    };
    let value = values(&softmax_divergence(&s, &t, 4.0).unwrap())[0];
    assert!(expected > 0.0 && (value / expected - 1.0).abs() < 1e-6, "{value} {expected}");
}

#[test]
fn equal_distributions_have_no_divergence_and_no_gradient() {
    let z = (random((4, 9), 3) * 1e4).unwrap();
    for dtype in [DType::F32, DType::F64] {
        let z = Var::from_tensor(&z.to_dtype(dtype).unwrap()).unwrap();
        let loss = softmax_divergence(&z, &z.detach(), 4.0).unwrap();
        assert_eq!(values(&loss), [0.0]);
        assert_eq!(values(loss.backward().unwrap().get(&z).unwrap()), [0.0; 36]);
    }
}

#[test]
fn saturated_logits_are_finite_and_nan_shows() {
    let z = Var::new(&[[1e4f32, -1e4, 0.0], [-1e4, 1e4, 1e4]], &Device::Cpu).unwrap();
    let t = Tensor::new(&[[-1e4f32, 1e4, 0.0], [1e4, -1e4, -1e4]], &Device::Cpu).unwrap();
    for loss in [softmax_divergence(&z, &t, 1.0), softmax_cross_entropy(&z, &[1, 0], 0.1)] {
        let loss = loss.unwrap();
        assert!(values(&loss)[0] > 1e3 && values(&loss)[0].is_finite());
        assert!(values(loss.backward().unwrap().get(&z).unwrap()).iter().all(|g| g.is_finite()));
    }
    let nan = Tensor::new(&[[0f32, f32::NAN, 1.0], [0.0, 1.0, 2.0]], &Device::Cpu).unwrap();
    assert!(values(&softmax_cross_entropy(&nan, &[0, 0], 0.0).unwrap())[0].is_nan());
    assert!(values(&softmax_divergence(&nan, &t, 4.0).unwrap())[0].is_nan());
    assert!(values(&softmax_divergence(&t, &nan, 4.0).unwrap())[0].is_nan());
}

/// `ln(1 + e^x)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[test]
fn logistic_losses_are_those_of_the_formula() {
    let (scale, shift) = (7.0, -1.5);
    for (b, width) in [(1, 1), (2, 2), (3, 9), (2, 128), (2, 129), (1, 130), (4, 700)] {
        let scores = random((b, width), 1);
        let value = |scores: &[f64]| {
            let term = |(i, s): (usize, &f64)| {
                let h = scale * s + shift;
                softplus(if i % width == 0 { -h } else { h })
            };
            scores.iter().enumerate().map(term).sum::<f64>() / b as f64
        };
        let (loss, slopes) = logistic_contrast(&scores, scale, shift).unwrap();
        let v = values(&scores);
        assert!((loss - value(&v)).abs() < 1e-13 * loss, "{b} {width}: {loss} {}", value(&v));
        for (i, slope) in values(&slopes).into_iter().enumerate() {
            let side = |step: f64| {
                let mut moved = v.clone();
                moved[i] += step;
                value(&moved)
            };
            assert!((slope - (side(1e-5) - side(-1e-5)) / 2e-5).abs() < 1e-6, "{b} {width}: {i}");
        }
        for set in SETS {
            let (single, slope) = with_instruction_set(set, || {
                logistic_contrast(&scores.to_dtype(DType::F32).unwrap(), scale, shift).unwrap()
            });
            assert!((single / loss - 1.0).abs() < 1e-6 && difference(&slope, &slopes) < 1e-5, "{set:?}");
        }
    }
}

#[test]
fn scores_far_out_neither_overflow_nor_lose_nan() {
    let row = |scores: &[f64]| {
        let scores = Tensor::from_vec(scores.to_vec(), (1, scores.len()), &Device::Cpu).unwrap();
        let (loss, slopes) = logistic_contrast(&scores, 1.0, 0.0).unwrap();
        (loss, values(&slopes))
    };
    let (loss, slopes) = row(&[-2000.0, 2000.0, 61.0, 39.9, 40.1, -2000.0]);
    assert!((loss - 4141.0).abs() < 1e-9, "{loss}");
    assert_eq!(slopes, [-1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    // As many factors as a product has, all as large as they get.
    assert!((row(&[40.0; 300]).0 - 299.0 * 40.0).abs() < 1e-9);
    for at in 0..4 {
        let mut scores = [0.0; 4];
        scores[at] = f64::NAN;
        assert!(row(&scores).0.is_nan());
    }
}

#[test]
fn a_known_gradient_is_scaled_by_what_follows() {
    let x = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
    let gradient = Tensor::new(&[3f32, -4.0], &Device::Cpu).unwrap();
    let loss = with_gradient(5.0, &x, &gradient).unwrap();
    assert_eq!(values(&loss), [5.0]);
    assert_eq!(values(loss.backward().unwrap().get(&x).unwrap()), [3.0, -4.0]);
    let twice = (loss * 2.0).unwrap();
    assert_eq!(values(twice.backward().unwrap().get(&x).unwrap()), [6.0, -8.0]);
    assert!(!with_gradient(5.0, &x.detach(), &gradient).unwrap().track_op());
}

#[test]
fn threads_change_no_bit() {
    let (x, y) = (random((70, 3, 9, 9), 1), random((110, 243), 2));
    let (w, z, t) = (random((5, 9000), 3), random((60, 900), 4), random((60, 900), 5));
    let long = random((9000, 7), 6);
    let ids = labels(60, 900);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut out = Vec::new();
            let mut run = |f: &dyn Fn(&[Tensor]) -> Tensor, inputs: &[&Tensor]| {
                for dtype in [DType::F32, DType::F64] {
                    let inputs: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(dtype).unwrap()).collect();
                    let (y, grads) = gradients(f, &inputs);
                    out.extend(std::iter::once(&y).chain(&grads).flat_map(bits));
                }
            };
            run(&|t| gram(&t[0]).unwrap(), &[&x]);
            run(&|t| inner_products(&t[0], &t[1]).unwrap(), &[&x, &y]);
            run(&|t| weighted_sums(&t[0], &t[1]).unwrap(), &[&w, &long]);
            run(&|t| channel_power_mean(&t[0], 2.0).unwrap(), &[&x]);
            run(&|t| softmax_cross_entropy(&t[0], &ids, 0.1).unwrap(), &[&z]);
            run(&|x| softmax_divergence(&x[0], &t.to_dtype(x[0].dtype()).unwrap(), 4.0).unwrap(), &[&z]);
            let (loss, slopes) = logistic_contrast(&z, 3.0, 0.1).unwrap();
            out.push(loss.to_bits());
            out.extend(bits(&slopes));
            out
        })
    };
    assert_eq!(with(1), with(2));
    assert_eq!(with(1), with(3));
}

#[test]
fn wrong_arguments_are_errors() {
    #[track_caller]
    fn check<T>(result: retort_kernels::Result<T>, words: &[&str]) {
        let message = result.map(|_| ()).expect_err("an error was expected").to_string();
        assert!(words.iter().all(|word| message.contains(word)) && !message.ends_with('.'), "{message}");
    }
    let (x, single) = (random((2, 3), 1), random((2, 3), 1).to_dtype(DType::F32).unwrap());
    let whole = x.to_dtype(DType::U32).unwrap();
    check(gram(&whole), &["gram", "U32"]);
    check(gram(&random((0, 3), 1)), &["gram", "[0, 3]"]);
    check(gram(&Tensor::new(1f64, &Device::Cpu).unwrap()), &["gram", "at least one element"]);
    check(inner_products(&x, &random((2, 4), 1)), &["inner_products", "rows of 3", "[2, 4]"]);
    check(inner_products(&x, &single), &["inner_products", "F64", "F32"]);
    check(weighted_sums(&x, &random((2, 4), 1)), &["weighted_sums", "[2, 2]", "[2, 3]"]);
    check(weighted_sums(&random((2, 3, 1), 1), &random((3, 4), 1)), &["weighted_sums", "[2, 3]"]);
    check(channel_power_mean(&x, 2.0), &["channel_power_mean", "four dimensions"]);
    for p in [0.5, f64::NAN, f64::INFINITY] {
        check(channel_power_mean(&random((1, 1, 1, 1), 1), p), &["p must be", "at least 1"]);
    }
    check(softmax_cross_entropy(&x, &[0], 0.0), &["softmax_cross_entropy", "2 labels"]);
    check(softmax_cross_entropy(&x, &[0, 3], 0.0), &["below 3", "found 3 at position 1"]);
    check(softmax_cross_entropy(&x, &[0, 0], f64::NAN), &["smoothing"]);
    check(softmax_cross_entropy(&random((2, 0), 1), &[0, 0], 0.0), &["[2, 0]"]);
    check(softmax_divergence(&x, &random((2, 4), 1), 4.0), &["softmax_divergence", "target", "[2, 4]"]);
    check(softmax_divergence(&x, &single, 4.0), &["target", "F32"]);
    check(softmax_divergence(&x, Var::from_tensor(&x).unwrap().as_tensor(), 4.0), &["target", "detach"]);
    for t in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        check(softmax_divergence(&x, &x, t), &["temperature must be"]);
    }
    check(logistic_contrast(&random((2, 0), 1), 1.0, 0.0), &["logistic_contrast", "[2, 0]"]);
    check(logistic_contrast(&whole, 1.0, 0.0), &["U32"]);
    check(with_gradient(1.0, &x, &random((3, 2), 1)), &["with_gradient", "[3, 2]"]);
}
