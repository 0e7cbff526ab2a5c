//! Convolution against plain loops and finite differences.

use candle_core::{Device, Tensor};
use retort_kernels::{
    Activation, Conv2dSpec, ConvTranspose2dSpec, FeatureMap, InstructionSet, conv_transpose2d, conv2d,
    with_instruction_set,
};

use crate::support::{bits, check_gradients, difference, f32s, gradients, random, values};

/// One convolution: batch, channels in and out, height and width, kernel.
struct Case {
    sizes: [usize; 5],
    kernel: [usize; 2],
    spec: Conv2dSpec,
}

fn spec(stride: [usize; 2], padding: [usize; 2], dilation: [usize; 2], groups: usize) -> Conv2dSpec {
    Conv2dSpec { stride, padding, dilation, groups }
}

impl Case {
    fn inputs(&self) -> [Tensor; 3] {
        let [b, i, o, h, w] = self.sizes;
        let [kh, kw] = self.kernel;
        [random((b, i, h, w), 1), random((o, i / self.spec.groups, kh, kw), 2), random(o, 3)]
    }

    fn name(&self) -> String {
        format!("{:?} kernel {:?} {:?}", self.sizes, self.kernel, self.spec)
    }
}

/// The definition, in `f64`.
fn reference(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, spec: &Conv2dSpec) -> Tensor {
    let (b, c, h, wd) = x.dims4().unwrap();
    let (o, cg, kh, kw) = w.dims4().unwrap();
    let [oh, ow] = spec.output_size([h, wd], [kh, kw]).unwrap();
    let (xs, ws) = (values(x), values(w));
    let bias = bias.map_or(vec![0.0; o], values);
    let mut out = Vec::with_capacity(b * o * oh * ow);
    for n in 0..b {
        for f in 0..o {
            let group = f / (o / spec.groups);
            for i in 0..oh {
                for j in 0..ow {
                    let mut sum = bias[f];
                    for k in 0..cg {
                        for u in 0..kh {
                            for v in 0..kw {
                                let y = (i * spec.stride[0] + u * spec.dilation[0]).wrapping_sub(spec.padding[0]);
                                let z = (j * spec.stride[1] + v * spec.dilation[1]).wrapping_sub(spec.padding[1]);
                                if y < h && z < wd {
                                    let channel = group * cg + k;
                                    sum +=
                                        xs[((n * c + channel) * h + y) * wd + z] * ws[((f * cg + k) * kh + u) * kw + v];
                                }
                            }
                        }
                    }
                    out.push(sum);
                }
            }
        }
    }
    Tensor::from_vec(out, (b, o, oh, ow), &Device::Cpu).unwrap()
}

fn small_cases() -> Vec<Case> {
    let case = |sizes, kernel, spec| Case { sizes, kernel, spec };
    vec![
        case([2, 3, 4, 5, 7], [3, 3], spec([1, 1], [1, 1], [1, 1], 1)),
        case([1, 1, 1, 1, 1], [1, 1], spec([1, 1], [0, 0], [1, 1], 1)),
        case([2, 3, 2, 6, 7], [3, 3], spec([2, 2], [1, 1], [1, 1], 1)),
        case([2, 2, 3, 7, 6], [3, 3], spec([2, 2], [1, 1], [1, 1], 1)),
        case([2, 2, 3, 8, 8], [3, 3], spec([2, 2], [1, 1], [1, 1], 1)),
        case([2, 2, 3, 7, 9], [1, 1], spec([2, 2], [0, 0], [1, 1], 1)),
        case([1, 2, 3, 9, 11], [3, 3], spec([3, 3], [0, 0], [1, 1], 1)),
        case([1, 2, 3, 9, 11], [2, 2], spec([3, 3], [1, 1], [1, 1], 1)),
        case([1, 2, 3, 10, 9], [1, 1], spec([4, 3], [0, 0], [1, 1], 1)),
        case([2, 2, 2, 9, 8], [3, 3], spec([1, 1], [2, 2], [2, 2], 1)),
        case([2, 2, 2, 9, 8], [3, 3], spec([2, 2], [2, 2], [2, 2], 1)),
        case([2, 2, 2, 9, 8], [3, 3], spec([2, 3], [1, 2], [3, 1], 1)),
        case([2, 4, 6, 5, 6], [3, 3], spec([1, 1], [1, 1], [1, 1], 2)),
        case([2, 6, 6, 5, 6], [3, 3], spec([1, 1], [1, 1], [1, 1], 6)),
        case([2, 3, 6, 7, 6], [3, 3], spec([2, 2], [1, 1], [1, 1], 3)),
        case([1, 2, 2, 7, 8], [5, 5], spec([1, 1], [2, 2], [1, 1], 1)),
        case([1, 2, 2, 9, 8], [7, 7], spec([2, 2], [2, 2], [1, 1], 1)),
        case([1, 2, 2, 9, 8], [7, 7], spec([1, 1], [3, 3], [1, 1], 1)),
        case([2, 2, 3, 4, 9], [1, 3], spec([1, 1], [0, 1], [1, 1], 1)),
        case([2, 2, 3, 1, 9], [1, 5], spec([1, 2], [0, 2], [1, 1], 1)),
        case([2, 2, 3, 4, 5], [3, 3], spec([1, 1], [0, 2], [1, 1], 1)),
        case([2, 2, 3, 4, 5], [1, 1], spec([1, 1], [2, 2], [1, 1], 1)),
        case([2, 2, 3, 3, 3], [3, 3], spec([1, 1], [0, 0], [1, 1], 1)),
        case([9, 2, 3, 4, 4], [3, 3], spec([1, 1], [1, 1], [1, 1], 1)),
        case([2, 2, 3, 3, 4], [2, 2], spec([1, 1], [5, 4], [1, 1], 1)),
    ]
}

#[test]
fn forward_is_the_definition() {
    for case in small_cases() {
        let [x, w, b] = case.inputs();
        let expected = reference(&x, &w, Some(&b), &case.spec);
        let got = conv2d(&x, &w, Some(&b), &case.spec).unwrap();
        assert!(difference(&got, &expected) < 1e-12, "{}", case.name());
        let got = conv2d(&x, &w, None, &case.spec).unwrap();
        let expected = reference(&x, &w, None, &case.spec);
        assert!(difference(&got, &expected) < 1e-12, "{} without bias", case.name());
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for case in small_cases() {
        let f = |t: &[Tensor]| conv2d(&t[0], &t[1], Some(&t[2]), &case.spec).unwrap();
        check_gradients(&case.name(), &f, &case.inputs());
    }
}

/// Channels and widths around every tile border, all instruction sets, forward and all gradients, in `f32`.
#[test]
fn every_tile_and_instruction_set_agrees_with_f64() {
    let mut cases = Vec::new();
    for (at, width) in (1..=33).enumerate() {
        let channels = [1, 3, 5, 8, 16, 17];
        let (i, o) = (channels[at % 6], channels[(at * 5 + at / 6 + 1) % 6]);
        let stride = 1 + at % 3 / 2;
        let kernel = [[3, 3], [1, 1], [3, 3], [5, 5], [3, 3]][at % 5];
        let padding = kernel[0] / 2;
        cases.push(Case {
            sizes: [1 + at % 3, i, o, 1 + (at * 7) % 19, width],
            kernel,
            spec: Conv2dSpec::new(stride, padding),
        });
    }
    for groups in [3, 17, 34] {
        cases.push(Case {
            sizes: [2, 102, 102, 9, 13],
            kernel: [3, 3],
            spec: Conv2dSpec::new(1 + groups % 2, 1).with_groups(groups),
        });
    }
    cases.push(Case { sizes: [2, 33, 33, 14, 14], kernel: [3, 3], spec: Conv2dSpec::new(1, 1).with_groups(33) });
    for case in cases {
        let inputs = case.inputs();
        let f = |t: &[Tensor]| conv2d(&t[0], &t[1], Some(&t[2]), &case.spec).unwrap();
        let (y, grads) = gradients(&f, &inputs);
        assert!(difference(&y, &reference(&inputs[0], &inputs[1], Some(&inputs[2]), &case.spec)) < 1e-12);
        for set in [InstructionSet::Portable, InstructionSet::Avx2Fma, InstructionSet::Avx512] {
            let (y32, grads32) = with_instruction_set(set, || gradients(&f, &f32s(&inputs)));
            assert!(difference(&y32, &y) < 2e-6, "{set:?} {}", case.name());
            for (i, (got, expected)) in grads32.iter().zip(&grads).enumerate() {
                let d = difference(got, expected);
                assert!(d < 4e-6, "{set:?} {} gradient {i}: {d}", case.name());
            }
        }
    }
}

#[test]
fn strided_views_are_accepted() {
    let x = random((5, 2, 6, 3), 1).permute((1, 3, 2, 0)).unwrap(); // [2, 3, 6, 5]
    let w = random((3, 3, 3, 4), 2).permute((3, 0, 1, 2)).unwrap();
    let b = random((4, 2), 3).narrow(1, 1, 1).unwrap().squeeze(1).unwrap();
    let spec = Conv2dSpec::new(1, 1);
    let expected = reference(&x, &w, Some(&b), &spec);
    assert!(difference(&conv2d(&x, &w, Some(&b), &spec).unwrap(), &expected) < 1e-12);
    let view = random((4, 3, 6, 5), 7);
    let part = view.narrow(0, 1, 2).unwrap();
    let f = |t: &[Tensor]| conv2d(&t[0].permute((0, 1, 3, 2)).unwrap(), &t[1], None, &spec).unwrap();
    check_gradients("transposed input", &f, &[part, w.contiguous().unwrap()]);
}

#[test]
fn a_map_adds_bias_residual_and_relu() {
    for (groups, stride) in [(1, 1), (2, 2), (4, 1)] {
        let spec = Conv2dSpec::new(stride, 1).with_groups(groups);
        let (x, w, b) = (random((3, 4, 7, 9), 1), random((8, 4 / groups, 3, 3), 2), random(8, 3));
        let plain = reference(&x, &w, Some(&b), &spec);
        let r = random(plain.shape().clone(), 4);
        let sum = (&plain + &r).unwrap();
        let zero = sum.zeros_like().unwrap();
        let map = |t: &Tensor| FeatureMap::from_tensor(t).unwrap();
        let run = |residual: Option<&Tensor>, act| {
            let residual = residual.map(map);
            map(&x).conv2d(&w, Some(&b), residual.as_ref(), act, &spec).unwrap().to_tensor().unwrap()
        };
        assert!(difference(&run(None, Activation::None), &plain) < 1e-12);
        assert!(difference(&run(Some(&r), Activation::None), &sum) < 1e-12);
        assert!(difference(&run(None, Activation::Relu), &plain.maximum(&zero).unwrap()) < 1e-12);
        assert!(difference(&run(Some(&r), Activation::Relu), &sum.maximum(&zero).unwrap()) < 1e-12);
    }
}

fn transposed_cases() -> Vec<([usize; 4], [usize; 4], ConvTranspose2dSpec)> {
    let base = ConvTranspose2dSpec::new;
    vec![
        ([2, 3, 4, 5], [3, 2, 2, 2], base(2, 0)),
        ([2, 3, 4, 5], [3, 2, 3, 3], base(1, 1)),
        ([2, 2, 3, 4], [2, 3, 4, 4], base(2, 1)),
        ([1, 2, 3, 4], [2, 3, 3, 3], ConvTranspose2dSpec { output_padding: [1, 1], ..base(2, 1) }),
        ([1, 2, 3, 4], [2, 3, 3, 3], ConvTranspose2dSpec { dilation: [2, 2], ..base(1, 0) }),
        ([2, 4, 3, 4], [4, 3, 3, 3], ConvTranspose2dSpec { groups: 2, ..base(2, 1) }),
        ([2, 4, 3, 4], [4, 1, 1, 1], ConvTranspose2dSpec { groups: 4, ..base(3, 0) }),
    ]
}

/// Scatters every input through the kernel.
fn transposed_reference(x: &Tensor, w: &Tensor, bias: &Tensor, spec: &ConvTranspose2dSpec) -> Tensor {
    let (b, c, h, wd) = x.dims4().unwrap();
    let (_, og, kh, kw) = w.dims4().unwrap();
    let o = og * spec.groups;
    let [oh, ow] = spec.output_size([h, wd], [kh, kw]).unwrap();
    let (xs, ws, bias) = (values(x), values(w), values(bias));
    let mut out: Vec<f64> = (0..b * o * oh * ow).map(|i| bias[i / (oh * ow) % o]).collect();
    for (n, x) in xs.iter().enumerate() {
        let (image, channel, i, j) = (n / (c * h * wd), n / (h * wd) % c, n / wd % h, n % wd);
        for k in 0..og * kh * kw {
            let (f, u, v) = (k / (kh * kw), k / kw % kh, k % kw);
            let y = (i * spec.stride[0] + u * spec.dilation[0]).wrapping_sub(spec.padding[0]);
            let z = (j * spec.stride[1] + v * spec.dilation[1]).wrapping_sub(spec.padding[1]);
            if y < oh && z < ow {
                let target = channel / (c / spec.groups) * og + f;
                out[((image * o + target) * oh + y) * ow + z] += x * ws[(channel * og + f) * kh * kw + u * kw + v];
            }
        }
    }
    Tensor::from_vec(out, (b, o, oh, ow), &Device::Cpu).unwrap()
}

#[test]
fn transposed_convolution() {
    for (x, w, spec) in transposed_cases() {
        let inputs = [random(x.to_vec(), 1), random(w.to_vec(), 2), random(w[1] * spec.groups, 3)];
        let f = |t: &[Tensor]| conv_transpose2d(&t[0], &t[1], Some(&t[2]), &spec).unwrap();
        let expected = transposed_reference(&inputs[0], &inputs[1], &inputs[2], &spec);
        assert!(difference(&f(&inputs), &expected) < 1e-12, "{spec:?}");
        check_gradients(&format!("{spec:?}"), &f, &inputs);
    }
}

#[test]
fn threads_change_no_bit() {
    let spec = Conv2dSpec::new(1, 1);
    let inputs = f32s(&[random((13, 16, 14, 14), 1), random((24, 16, 3, 3), 2), random(24, 3)]);
    let f = |t: &[Tensor]| conv2d(&t[0], &t[1], Some(&t[2]), &spec).unwrap();
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (y, grads) = pool.install(|| gradients(&f, &inputs));
        std::iter::once(y).chain(grads).flat_map(|t| bits(&t)).collect::<Vec<_>>()
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(3));
}
