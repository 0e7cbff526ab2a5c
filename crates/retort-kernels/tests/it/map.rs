//! Feature maps: convolutions against plain loops, operations and chains against the functions on tensors and finite
//! differences, the backward pass as candle drives it, hostile arguments.

use candle_core::{DType, Device, Tensor, Var, backprop::GradStore};
use retort_kernels::*;

use crate::support::{Shape, bits, check_gradients, difference, f32s, gradients, numbers, random, values};

const SETS: [InstructionSet; 3] = [InstructionSet::Portable, InstructionSet::Avx2Fma, InstructionSet::Avx512];
const NONE: Activation = Activation::None;
const RELU: Activation = Activation::Relu;
const EPS: f64 = 1e-5;

fn map(t: &Tensor) -> FeatureMap {
    FeatureMap::from_tensor(t).unwrap()
}

// Convolutions against plain loops.

/// What result and gradients in `f32` have against the loops.
fn complaints(shape: &Shape, set: InstructionSet) -> Vec<String> {
    let inputs = shape.inputs();
    let conv = |t: &[Tensor]| map(&t[0]).conv2d(&t[1], Some(&t[2]), None, NONE, &shape.spec).unwrap();
    let (y, grads) = with_instruction_set(set, || gradients(&|t| conv(t).to_tensor().unwrap(), &inputs));
    let got = [("result", y)].into_iter().chain(["input", "weight", "bias"].into_iter().zip(grads));
    got.zip(&shape.loops(&inputs))
        .map(|((name, got), expected)| (name, difference(&got, expected), if name == "result" { 2e-6 } else { 4e-6 }))
        .filter(|(_, difference, bound)| difference >= bound)
        .map(|(name, difference, _)| format!("{set:?} {shape:?} {name}: {difference:.1e}"))
        .collect()
}

struct Dice(std::vec::IntoIter<f64>);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        ((self.0.next().unwrap() + 1.0) / 2.0 * n as f64) as usize
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn channels(&mut self) -> usize {
        let any = 1 + self.below(70);
        self.of(&[1, 3, 15, 16, 17, 31, 32, 33, 48, 64, any, any, any, any])
    }

    /// Channels in and out, and groups.
    fn grouping(&mut self) -> [usize; 3] {
        match self.below(4) {
            0 => {
                let (c, times) = (self.channels(), 1 + self.below(2));
                [c, if times * c > 70 { c } else { times * c }, c]
            }
            1 => {
                let groups = 2 + self.below(7);
                [groups * (1 + self.below(70 / groups)), groups * (1 + self.below(70 / groups)), groups]
            }
            _ => [self.channels(), self.channels(), 1],
        }
    }

    fn shape(&mut self) -> Shape {
        const MOST: usize = 3_000_000;
        let kernels =
            [[1, 1], [2, 2], [3, 3], [3, 3], [5, 5], [7, 7], [1, 3], [3, 1], [2, 5], [5, 1], [7, 2], [3, 2], [1, 7]];
        // Of every three shapes one is for Winograd's algorithm, but for a border of three.
        let winograd = self.below(3) == 0;
        let kernel = if winograd { [3, 3] } else { self.of(&kernels) };
        let [c_in, c_out, groups] =
            if winograd { [32 + self.below(39), 32 + self.below(39), 1] } else { self.grouping() };
        let step = |dice: &mut Self, most| if winograd { [1; 2] } else { [0; 2].map(|_| 1 + dice.below(most)) };
        let (stride, dilation) = (step(self, 3), step(self, 2));
        let padding = kernel.map(|k| self.below(k + 1));
        let least = [0, 1].map(|i| (dilation[i] * (kernel[i] - 1) + 1).saturating_sub(2 * padding[i]).max(1));
        let [h, w] = least.map(|n| n + self.below(21 - n));
        let spec = Conv2dSpec { stride, padding, dilation, groups };
        let mut shape = Shape { sizes: [1 + self.below(5), c_in, c_out, h, w], kernel, spec };
        while shape.multiplications() > MOST {
            let [b, .., h, w] = &mut shape.sizes;
            let (size, least) = if *h - least[0] > *w - least[1] { (h, least[0]) } else { (w, least[1]) };
            match (*b > 1, *size > least) {
                (true, false) => *b -= 1,
                (true, true) if self.below(2) == 0 => *b -= 1,
                (_, true) => *size -= 1,
                (false, false) => break,
            }
        }
        shape
    }
}

#[test]
fn random_convolutions_are_the_definition() {
    let mut dice = Dice(numbers(100_000, 5).into_iter());
    let complaints: Vec<_> = (0..1000).flat_map(|i| complaints(&dice.shape(), SETS[i % 3])).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// Sizes at which the engine changes the order of its loops: several strips of an image, weights that are read group
/// by group, weight gradients by parts of the batch, by groups and by places.
#[test]
fn large_convolutions_are_the_definition() {
    let shapes = [
        Shape::simple([2, 48, 40, 33, 30]),
        Shape::simple([3, 192, 192, 5, 4]),
        Shape::simple([13, 32, 33, 6, 5]),
        Shape::simple([17, 3, 18, 17, 16]),
        Shape::simple([35, 16, 16, 4, 4]),
        Shape { sizes: [3, 40, 288, 9, 8], kernel: [5, 5], spec: Conv2dSpec::new(2, 2) },
        Shape { sizes: [9, 256, 24, 9, 8], kernel: [3, 3], spec: Conv2dSpec::new(1, 1).with_dilation(2) },
    ];
    let complaints: Vec<_> = shapes.iter().flat_map(|shape| SETS.map(|set| complaints(shape, set))).flatten().collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// What is not asked for leaves the rest as it is.
#[test]
fn every_subset_of_the_gradients() {
    for shape in [
        Shape::simple([3, 33, 35, 7, 6]),
        Shape::simple([3, 5, 17, 12, 9]),
        Shape { spec: Conv2dSpec::new(2, 1).with_groups(3), ..Shape::simple([2, 6, 9, 5, 5]) },
    ] {
        let inputs = shape.inputs();
        let run = |tracked: usize| {
            let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
            let t: Vec<Tensor> = vars
                .iter()
                .enumerate()
                .map(|(i, v)| if tracked >> i & 1 == 1 { v.as_tensor().clone() } else { v.detach() })
                .collect();
            let y = map(&t[0]).conv2d(&t[1], Some(&t[2]), None, RELU, &shape.spec).unwrap();
            assert_eq!(y.track_op(), tracked > 0);
            let y = y.to_tensor().unwrap();
            let grads = (&y * random(y.shape(), 99).to_dtype(DType::F32).unwrap()).unwrap().backward().unwrap();
            vars.iter().map(|v| grads.get(v).map(bits)).collect::<Vec<_>>()
        };
        let all = run(7);
        for tracked in 0..7 {
            for (i, (got, expected)) in run(tracked).iter().zip(&all).enumerate() {
                assert_eq!(got.as_ref(), expected.as_ref().filter(|_| tracked >> i & 1 == 1), "{shape:?} {tracked}");
            }
        }
    }
}

// Operations and chains, written once for maps and for tensors.

trait Ops: Sized {
    fn of(t: &Tensor) -> Self;
    fn tensor(&self) -> Tensor;
    fn conv(&self, w: &Tensor, bias: Option<&Tensor>, r: Option<&Self>, act: Activation, spec: Conv2dSpec) -> Self;
    fn transposed(&self, w: &Tensor, bias: &Tensor, act: Activation, spec: ConvTranspose2dSpec) -> Self;
    fn train(&self, w: &Tensor, b: &Tensor, act: Activation) -> Self;
    fn eval(&self, w: &Tensor, b: &Tensor, act: Activation) -> Self;
    fn plus(&self, other: &Self, act: Activation) -> Self;
    fn positive(&self) -> Self;
    fn largest(&self, spec: Pool2dSpec) -> Self;
    fn averaged(&self, spec: Pool2dSpec, count_pad: bool) -> Self;
    fn global(&self) -> Tensor;

    /// Three by three, with a border of one.
    fn conv3(&self, w: &Tensor) -> Self {
        self.conv(w, None, None, NONE, Conv2dSpec::new(1, 1))
    }
}

/// Running statistics of so many channels.
fn running(like: &Tensor) -> [Tensor; 2] {
    let c = like.elem_count();
    [random(c, 41), (random(c, 42).sqr().unwrap() + 0.1).unwrap()].map(|t| t.to_dtype(like.dtype()).unwrap())
}

impl Ops for FeatureMap {
    fn of(t: &Tensor) -> Self {
        map(t)
    }
    fn tensor(&self) -> Tensor {
        self.to_tensor().unwrap()
    }
    fn conv(&self, w: &Tensor, bias: Option<&Tensor>, r: Option<&Self>, act: Activation, spec: Conv2dSpec) -> Self {
        self.conv2d(w, bias, r, act, &spec).unwrap()
    }
    fn transposed(&self, w: &Tensor, bias: &Tensor, act: Activation, spec: ConvTranspose2dSpec) -> Self {
        self.conv_transpose2d(w, Some(bias), act, &spec).unwrap()
    }
    fn train(&self, w: &Tensor, b: &Tensor, act: Activation) -> Self {
        self.batch_norm_train([w, b], EPS, act).unwrap().0
    }
    fn eval(&self, w: &Tensor, b: &Tensor, act: Activation) -> Self {
        let [mean, var] = &running(w);
        self.batch_norm_eval([w, b], [mean, var], EPS, act).unwrap()
    }
    fn plus(&self, other: &Self, act: Activation) -> Self {
        self.add(other, act).unwrap()
    }
    fn positive(&self) -> Self {
        FeatureMap::relu(self).unwrap()
    }
    fn largest(&self, spec: Pool2dSpec) -> Self {
        self.max_pool2d(&spec).unwrap()
    }
    fn averaged(&self, spec: Pool2dSpec, count_pad: bool) -> Self {
        self.avg_pool2d(&spec, count_pad).unwrap()
    }
    fn global(&self) -> Tensor {
        self.global_avg_pool2d().unwrap()
    }
}

impl Ops for Tensor {
    fn of(t: &Tensor) -> Self {
        t.clone()
    }
    fn tensor(&self) -> Tensor {
        self.clone()
    }
    fn conv(&self, w: &Tensor, bias: Option<&Tensor>, r: Option<&Self>, act: Activation, spec: Conv2dSpec) -> Self {
        let y = conv2d(self, w, bias, &spec).unwrap();
        let y = r.map_or(y.clone(), |r| (&y + r).unwrap());
        if act == RELU { relu(&y).unwrap() } else { y }
    }
    fn transposed(&self, w: &Tensor, bias: &Tensor, act: Activation, spec: ConvTranspose2dSpec) -> Self {
        let y = conv_transpose2d(self, w, Some(bias), &spec).unwrap();
        if act == RELU { relu(&y).unwrap() } else { y }
    }
    fn train(&self, w: &Tensor, b: &Tensor, act: Activation) -> Self {
        batch_norm_train(self, w, b, EPS, act).unwrap().0
    }
    fn eval(&self, w: &Tensor, b: &Tensor, act: Activation) -> Self {
        let [mean, var] = &running(w);
        batch_norm_eval(self, w, b, mean, var, EPS, act).unwrap()
    }
    fn plus(&self, other: &Self, act: Activation) -> Self {
        let y = (self + other).unwrap();
        if act == RELU { relu(&y).unwrap() } else { y }
    }
    fn positive(&self) -> Self {
        relu(self).unwrap()
    }
    fn largest(&self, spec: Pool2dSpec) -> Self {
        max_pool2d(self, &spec).unwrap()
    }
    fn averaged(&self, spec: Pool2dSpec, count_pad: bool) -> Self {
        avg_pool2d(self, &spec, count_pad).unwrap()
    }
    fn global(&self) -> Tensor {
        global_avg_pool2d(self).unwrap()
    }
}

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

// The backward pass as candle drives it.

/// A small network with every kind of operation, up to two results.
struct Network {
    vars: Vec<Var>,
    image: Var,
}

impl Network {
    fn new(batch: usize, dtype: DType) -> Self {
        let var = |t: Tensor| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap();
        let shapes: [&[usize]; 8] =
            [&[32, 3, 3, 3], &[48, 32, 3, 3], &[48, 1, 3, 3], &[17, 48, 3, 3], &[17, 48, 1, 1], &[32], &[48], &[17]];
        let vars = shapes.iter().zip(1..).map(|(shape, salt)| var(random(shape.to_vec(), salt))).collect();
        Self { vars, image: var(random((batch, 3, 10, 9), 9)) }
    }

    /// The last maps of the two branches.
    fn maps(&self) -> [FeatureMap; 2] {
        let v: Vec<&Tensor> = self.vars.iter().map(Var::as_tensor).collect();
        let x = map(&self.image).conv3(v[0]).train(v[5], v[5], RELU).largest(Pool2dSpec::new(3, 2, 1));
        let y = x.conv3(v[1]).train(v[6], v[6], RELU);
        let y = y.conv(v[2], None, Some(&y), RELU, Conv2dSpec::new(1, 1).with_groups(48));
        let strided = y.conv(v[3], Some(v[7]), None, NONE, Conv2dSpec::new(2, 1)).train(v[7], v[7], NONE);
        let pooled = y.conv(v[4], None, None, NONE, Conv2dSpec::new(1, 0)).averaged(Pool2dSpec::new(2, 2, 1), false);
        [strided.plus(&pooled, RELU), pooled]
    }

    fn losses(&self) -> [Tensor; 2] {
        self.maps().map(|m| m.global().sqr().unwrap().sum_all().unwrap())
    }

    fn gradients(&self, loss: &Tensor) -> Vec<Option<Vec<u64>>> {
        self.of(&loss.backward().unwrap())
    }

    fn of(&self, grads: &GradStore) -> Vec<Option<Vec<u64>>> {
        self.vars.iter().chain([&self.image]).map(|v| grads.get(v).map(bits)).collect()
    }
}

#[test]
fn a_graph_serves_several_backward_passes() {
    let network = Network::new(2, DType::F32);
    // Each loss alone on a graph of its own.
    let alone = [0, 1].map(|i| network.gradients(&network.losses()[i]));
    assert!(alone[0].iter().all(Option::is_some));
    assert!(alone[1][3].is_none(), "the second branch does not depend on the strided convolution");
    let losses = network.losses();
    for i in [0, 1, 1, 0, 0] {
        assert_eq!(network.gradients(&losses[i]), alone[i]);
    }
    // The sum of both, on the same graph: the gradients gather.
    let both = (&losses[0] + &losses[1]).unwrap().backward().unwrap();
    for (i, var) in network.vars.iter().enumerate() {
        let parts = losses.each_ref().map(|l| l.backward().unwrap().get(var).cloned());
        let expected = parts.into_iter().flatten().reduce(|a, b| (a + b).unwrap()).unwrap();
        let d = difference(both.get(var).unwrap(), &expected);
        assert!(d < 1e-5, "variable {i}: {d}");
    }
}

#[test]
fn what_is_not_used_changes_nothing() {
    let network = Network::new(2, DType::F32);
    let expected = network.gradients(&network.losses()[0]);
    let maps = network.maps();
    let unused = maps[1].conv3(&random((17, 17, 3, 3), 1).to_dtype(DType::F32).unwrap()).positive();
    let loss = maps[0].global().sqr().unwrap().sum_all().unwrap();
    assert_eq!(network.gradients(&loss), expected);
    drop(unused);
    assert_eq!(network.gradients(&loss), expected);
}

#[test]
fn detached_maps_have_no_history() {
    let vars = [[2, 17, 4, 4], [17, 17, 3, 3]].map(|d| Var::from_tensor(&random(d.to_vec(), 1)).unwrap());
    let v = random(17, 3);
    let (x, w) = (vars[0].as_tensor(), vars[1].as_tensor());
    for lazy in [false, true] {
        let y = map(x).conv3(w);
        let y = if lazy { y.train(&v, &v, RELU) } else { y };
        let cut = y.detach().unwrap();
        assert!(y.track_op() && !cut.track_op() && !cut.tensor().track_op());
        assert_eq!((cut.dims(), cut.dtype()), ([2, 17, 4, 4], DType::F64));
        assert_eq!(bits(&cut.tensor()), bits(&y.tensor()));
        assert!(!cut.train(&v, &v, RELU).conv(&w.detach(), None, Some(&cut), RELU, Conv2dSpec::new(1, 1)).track_op());
        // One factor with and one without history, read by operations on the same numbers.
        let of = |m: &FeatureMap| {
            let both = m.plus(&cut, RELU).conv(&w.detach(), None, Some(&cut), NONE, Conv2dSpec::new(1, 1));
            (both.plus(&cut.train(&v, &v, NONE), NONE).global() * cut.global()).unwrap().backward().unwrap()
        };
        let grads = of(&y);
        let constant = cut.tensor();
        let z = relu(&(y.tensor() + &constant).unwrap()).unwrap().conv3(&w.detach());
        let z = ((z + &constant).unwrap() + constant.train(&v, &v, NONE)).unwrap();
        let expected = (z.global() * constant.global()).unwrap().backward().unwrap();
        for var in &vars {
            assert!(difference(grads.get(var).unwrap(), expected.get(var).unwrap()) < 1e-10, "lazy {lazy}");
        }
        // Only the weight of what follows.
        let grads = cut.conv3(w).global().backward().unwrap();
        assert!(grads.get(&vars[0]).is_none() && grads.get(&vars[1]).is_some());
    }
}

#[test]
fn threads_and_released_memory_change_no_bit() {
    let network = Network::new(13, DType::F32);
    let run = |between: fn()| {
        let losses = network.losses();
        between();
        let loss = (&losses[0] + &losses[1]).unwrap();
        between();
        (bits(&loss), network.gradients(&loss), network.gradients(&losses[1]))
    };
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(|| {}))
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(3));
    assert_eq!(one, run(release_memory));
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while waiting.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                release_memory()
            }
        });
        assert_eq!(one, run(|| {}));
        drop(done);
    });
}

#[test]
fn nothing_is_recorded_without_gradients() {
    let network = Network::new(2, DType::F32);
    let expected = network.maps().map(|m| bits(&m.tensor()));
    let maps = no_grad(|| network.maps());
    assert!(maps.iter().all(|m| !m.track_op() && !m.tensor().track_op()));
    assert_eq!(maps.map(|m| bits(&m.tensor())), expected);
    assert!(network.maps().iter().all(FeatureMap::track_op));
}

// Special numbers.

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

// Wrong arguments.

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
