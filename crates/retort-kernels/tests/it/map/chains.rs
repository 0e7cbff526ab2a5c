//! Operations and chains, written once for maps and for tensors.

use candle_core::Tensor;
use retort_kernels::*;

use super::ops::Ops;
use super::{NONE, RELU, SETS};
use crate::support::{check_gradients, difference, f32s, gradients, random};

type Function<'a> = &'a dyn Fn(&[Tensor]) -> Tensor;

/// Values and gradients agree with those of the tensors and with finite differences, and in `f32` nearly so.
fn agree(name: &str, ours: Function, theirs: Function, inputs: &[Tensor]) {
    let (y, grads) = gradients(ours, inputs);
    let (expected, exact) = gradients(theirs, inputs);
    assert!(difference(&y, &expected) < 1e-12, "{name}: {}", difference(&y, &expected));
    for (i, (got, exact)) in grads.iter().zip(&exact).enumerate() {
        assert!(difference(got, exact) < 1e-10, "{name} gradient {i}: {}", difference(got, exact));
    }
    check_gradients(name, ours, inputs);
    for set in SETS {
        let (y, grads) = with_instruction_set(set, || gradients(ours, &f32s(inputs)));
        assert!(difference(&y, &expected) < 1e-5, "{set:?} {name}: {}", difference(&y, &expected));
        for (i, (got, exact)) in grads.iter().zip(&exact).enumerate() {
            assert!(difference(got, exact) < 1e-4, "{set:?} {name} gradient {i}: {}", difference(got, exact));
        }
    }
}

/// A chain for both, `$m` being what it is made of; the inputs are given by their shapes.
macro_rules! chain {
    ($name:expr, [$($shape:expr),*], |$t:ident, $m:ident| $body:expr) => {{
        let shapes: Vec<Vec<usize>> = vec![$($shape.to_vec()),*];
        let inputs: Vec<Tensor> = shapes.into_iter().zip(11..).map(|(shape, salt)| random(shape, salt)).collect();
        let ours = |$t: &[Tensor]| {
            type $m = FeatureMap;
            $body
        };
        let theirs = |$t: &[Tensor]| {
            type $m = Tensor;
            $body
        };
        agree(&format!("{} {:?}", $name, inputs[0].dims()), &ours, &theirs, &inputs)
    }};
}

/// Maps around every border: one pixel, one channel, one image, a block and a bit.
const DIMS: [[usize; 4]; 6] = [[2, 3, 4, 5], [1, 17, 1, 1], [1, 1, 3, 2], [3, 16, 1, 2], [2, 33, 3, 3], [1, 1, 1, 1]];

#[test]
fn convolution_with_all_that_follows() {
    for [b, c, h, w] in DIMS {
        for act in [NONE, RELU] {
            let spec = Conv2dSpec::new(1, 1);
            let (x, weight, bias, r) = ([b, c, h, w], [19, c, 3, 3], [19], [b, 19, h, w]);
            chain!("bias", [x, weight, bias], |t, M| M::of(&t[0]).conv(&t[1], Some(&t[2]), None, act, spec).tensor());
            chain!("residual", [x, weight, r], |t, M| M::of(&t[0])
                .conv(&t[1], None, Some(&M::of(&t[2])), act, spec)
                .tensor());
            chain!("normalised residual", [x, weight, bias, r, [19], [19]], |t, M| {
                let r = M::of(&t[3]).eval(&t[4], &t[5], act);
                M::of(&t[0]).conv(&t[1], Some(&t[2]), Some(&r), act, spec).tensor()
            });
            chain!("itself as residual", [x, [c, c, 3, 3]], |t, M| {
                let x = M::of(&t[0]);
                x.conv(&t[1], None, Some(&x), act, spec).tensor()
            });
            let spec = ConvTranspose2dSpec::new(2, 1);
            let (h, w) = (h + 1, w + 1);
            chain!("transposed", [[b, c, h, w], [c, 7, 3, 3], [7]], |t, M| M::of(&t[0])
                .transposed(&t[1], &t[2], act, spec)
                .tensor());
        }
    }
}

#[test]
fn transposed_convolution_by_winograd() {
    chain!("transposed", [[2, 33, 5, 4], [33, 34, 3, 3], [34]], |t, M| M::of(&t[0])
        .transposed(&t[1], &t[2], RELU, ConvTranspose2dSpec::new(1, 1))
        .tensor());
    for output_padding in [[0, 1], [1, 0]] {
        let spec = ConvTranspose2dSpec { output_padding, ..ConvTranspose2dSpec::new(2, 1) };
        chain!("transposed, stride 2", [[2, 33, 4, 8], [33, 34, 3, 3], [34]], |t, M| M::of(&t[0])
            .transposed(&t[1], &t[2], RELU, spec)
            .tensor());
    }
}

#[test]
fn normalisation_sum_and_activation() {
    for x @ [b, c, h, w] in DIMS {
        for act in [NONE, RELU] {
            chain!("eval", [x, [c], [c]], |t, M| M::of(&t[0]).eval(&t[1], &t[2], act).tensor());
            chain!("sum", [x, x], |t, M| M::of(&t[0]).plus(&M::of(&t[1]), act).tensor());
            chain!("twice itself", [x], |t, M| M::of(&t[0]).plus(&M::of(&t[0]), act).tensor());
            chain!("normalised and plain", [x, x, [c], [c]], |t, M| {
                let (a, b) = (M::of(&t[0]).eval(&t[2], &t[3], act), M::of(&t[1]));
                (a.plus(&b, RELU).tensor() + b.plus(&a, NONE).tensor()).unwrap()
            });
            chain!("eval of eval", [x, [c], [c]], |t, M| {
                M::of(&t[0]).eval(&t[1], &t[2], act).eval(&t[2], &t[1], RELU).tensor()
            });
            chain!("mean", [x, [c], [c]], |t, M| M::of(&t[0]).eval(&t[1], &t[2], act).global());
            if b * h * w > 2 {
                chain!("train", [x, [c], [c]], |t, M| M::of(&t[0]).train(&t[1], &t[2], act).tensor());
                chain!("train and relu", [x, [c], [c]], |t, M| M::of(&t[0])
                    .train(&t[1], &t[2], act)
                    .positive()
                    .tensor());
                chain!("both normalised", [x, x, [c], [c]], |t, M| {
                    let a = M::of(&t[0]).train(&t[2], &t[3], act);
                    a.plus(&M::of(&t[1]).train(&t[3], &t[2], NONE), RELU).tensor()
                });
            }
        }
        chain!("relu", [x], |t, M| M::of(&t[0]).positive().positive().tensor());
    }
}

#[test]
fn pooling() {
    for x @ [_, c, h, w] in [[2, 3, 7, 6], [1, 17, 5, 9], [1, 1, 1, 1], [3, 16, 2, 3]] {
        for spec in [Pool2dSpec::new(2, 2, 1), Pool2dSpec::new(3, 2, 1), Pool2dSpec::new(2, 1, 0)] {
            if h.min(w) + 2 * spec.padding[0] < spec.kernel[0] {
                continue;
            }
            chain!("max", [x], |t, M| M::of(&t[0]).largest(spec).tensor());
            // Zeros in a row are ties.
            chain!("max of normalised", [x, [c], [c]], |t, M| M::of(&t[0])
                .eval(&t[1], &t[2], RELU)
                .largest(spec)
                .global());
            for count_pad in [false, true] {
                chain!("avg", [x, [c], [c]], |t, M| {
                    let y = M::of(&t[0]).eval(&t[1], &t[2], RELU);
                    y.averaged(spec, count_pad).tensor()
                });
            }
        }
    }
}

#[test]
fn residual_blocks() {
    let (x, w) = ([3, 4, 6, 5], [18, 18, 3, 3]);
    chain!("projection", [x, [18, 4, 3, 3], w, [18, 4, 1, 1], [18], [18], [18], [18]], |t, M| {
        let x = M::of(&t[0]);
        let y = x.conv(&t[1], None, None, NONE, Conv2dSpec::new(2, 1)).train(&t[4], &t[5], RELU);
        let shortcut = x.conv(&t[3], None, None, NONE, Conv2dSpec::new(2, 0)).train(&t[5], &t[6], NONE);
        y.conv3(&t[2]).train(&t[6], &t[7], NONE).plus(&shortcut, RELU).global()
    });
    // The raw sum is read by a normalisation and by the next sum.
    chain!("pre-activation", [[2, 18, 4, 3], w, w, w, [18], [18]], |t, M| {
        let x = M::of(&t[0]);
        let sum = x.train(&t[4], &t[5], RELU).conv(&t[1], None, Some(&x), NONE, Conv2dSpec::new(1, 1));
        let y = sum.train(&t[5], &t[4], RELU).conv3(&t[2]).train(&t[4], &t[5], RELU);
        y.conv(&t[3], None, Some(&sum), NONE, Conv2dSpec::new(1, 1)).train(&t[4], &t[5], RELU).tensor()
    });
    chain!("winograd", [[2, 32, 4, 5], [34, 32, 3, 3], [32, 34, 3, 3], [34], [34], [32], [32]], |t, M| {
        let x = M::of(&t[0]);
        let y = x.conv3(&t[1]).train(&t[3], &t[4], RELU).conv3(&t[2]).train(&t[5], &t[6], NONE);
        y.plus(&x, RELU).tensor()
    });
    chain!("winograd, stride 2", [[2, 32, 8, 15], [34, 32, 3, 3], [34], [34]], |t, M| {
        let y = M::of(&t[0]).conv(&t[1], None, None, NONE, Conv2dSpec::new(2, 1));
        y.train(&t[2], &t[3], RELU).tensor()
    });
}

#[test]
fn maps_with_several_readers() {
    let (x, w) = ([2, 3, 5, 4], [17, 17, 3, 3]);
    let first = [17, 3, 3, 3];
    chain!("three readers", [x, first, w, w, [17], [17]], |t, M| {
        let y = M::of(&t[0]).conv(&t[1], None, None, RELU, Conv2dSpec::new(1, 1));
        let a = y.conv3(&t[2]).train(&t[4], &t[5], NONE);
        let b = y.largest(Pool2dSpec::new(3, 1, 1));
        a.plus(&b, RELU).plus(&y.train(&t[5], &t[4], RELU).conv3(&t[3]), NONE).tensor()
    });
    chain!("normalised, read by conv and tensor", [x, first, w, [17], [17]], |t, M| {
        let y = M::of(&t[0]).conv3(&t[1]).train(&t[3], &t[4], RELU);
        (y.conv3(&t[2]).tensor() + y.tensor().sqr().unwrap()).unwrap()
    });
    chain!("normalised, read by sum, pool, norm and mean", [x, first, [17], [17]], |t, M| {
        let y = M::of(&t[0]).conv3(&t[1]).train(&t[2], &t[3], NONE);
        let z = y.plus(&y.train(&t[3], &t[2], RELU), RELU).plus(&y.largest(Pool2dSpec::new(3, 1, 1)), NONE);
        z.global().mul(&y.global()).unwrap()
    });
    chain!("one map normalised twice", [x, first, [17], [17], [17], [17]], |t, M| {
        let y = M::of(&t[0]).conv3(&t[1]);
        y.train(&t[2], &t[3], RELU).plus(&y.train(&t[4], &t[5], RELU), NONE).plus(&y, NONE).tensor()
    });
}

#[test]
fn normalisations_in_a_row() {
    let (x, v) = ([3, 17, 3, 4], [17]);
    chain!("norm of norm", [x, v, v, v, v], |t, M| {
        M::of(&t[0]).train(&t[1], &t[2], RELU).train(&t[3], &t[4], NONE).tensor()
    });
    chain!("norm of an activated sum", [x, x, v, v, v, v], |t, M| {
        let sum = M::of(&t[0]).train(&t[2], &t[3], NONE).plus(&M::of(&t[1]), RELU);
        sum.train(&t[4], &t[5], RELU).tensor()
    });
    chain!("norm of relu, pool and activated convolution", [x, [17, 17, 3, 3], v, v], |t, M| {
        let y = M::of(&t[0])
            .positive()
            .train(&t[2], &t[3], NONE)
            .largest(Pool2dSpec::new(2, 1, 0))
            .train(&t[3], &t[2], RELU);
        y.conv(&t[1], Some(&t[2]), None, RELU, Conv2dSpec::new(1, 1)).train(&t[2], &t[3], RELU).tensor()
    });
}

#[test]
fn frozen_parts_of_a_tracked_chain() {
    let (w, v, image) = (random((17, 17, 3, 3), 21), random(17, 22), random((2, 17, 4, 4), 23));
    let frozen = |t: &Tensor| [&w, &v, &image].map(|f| f.to_dtype(t.dtype()).unwrap());
    chain!("frozen branch", [[2, 17, 4, 4], [17, 17, 3, 3]], |t, M| {
        let [w, v, image] = frozen(&t[0]);
        let x = M::of(&t[0]);
        let y = x.conv3(&w).train(&v, &v, RELU).conv(&w, Some(&v), Some(&x), RELU, Conv2dSpec::new(1, 1));
        y.conv3(&t[1]).eval(&v, &v, NONE).plus(&M::of(&image), RELU).tensor()
    });
    // Weights only, behind frozen layers and an image without gradients.
    chain!("frozen beginning", [[17, 17, 3, 3], [17], [17]], |t, M| {
        let [w, v, image] = frozen(&t[0]);
        let x = M::of(&image).conv3(&w).train(&v, &v, RELU);
        let y = x.train(&t[1], &t[2], RELU);
        y.conv(&t[0], None, Some(&x), NONE, Conv2dSpec::new(1, 1)).plus(&x, RELU).global()
    });
    chain!("through a tensor", [[2, 17, 4, 4], [17], [17]], |t, M| {
        M::of(&abs(&M::of(&t[0]).train(&t[1], &t[2], NONE).tensor().t().unwrap()).unwrap()).global()
    });
}
