//! Convolutions against plain loops.

use candle_core::{DType, Tensor, Var};
use retort_kernels::*;

use super::{NONE, RELU, SETS, map};
use crate::support::{Shape, bits, difference, gradients, numbers, random};

/// What result and gradients in `f32` have against the loops.
fn complaints(shape: &Shape, set: InstructionSet) -> Vec<String> {
    let inputs = shape.inputs();
    let conv = |t: &[Tensor]| map(&t[0]).conv2d(&t[1], Some(&t[2]), None, NONE, &shape.spec).unwrap();
    let (y, grads) = with_instruction_set(set, || gradients(&|t| conv(t).to_tensor().unwrap(), &inputs));
    let got = [("result", y)].into_iter().chain(["input", "weight", "bias"].into_iter().zip(grads));
    // Winograd's algorithm has larger rounding errors than the direct sum, whose errors grow as the root of its terms.
    let terms = shape.sizes[1] / shape.spec.groups * shape.kernel[0] * shape.kernel[1];
    let of_result = if winograd(shape) { 4e-6 } else { 2e-6 * (terms as f64 / 1000.0).sqrt().max(1.0) };
    got.zip(&shape.loops(&inputs))
        .map(|((name, got), expected)| {
            (name, difference(&got, expected), if name == "result" { of_result } else { 4e-6 })
        })
        .filter(|(_, difference, bound)| difference >= bound)
        .map(|(name, difference, _)| format!("{set:?} {shape:?} {name}: {difference:.1e}"))
        .collect()
}

/// Whether Winograd's algorithm computes such a shape: a copy of the rule.
fn winograd(shape: &Shape) -> bool {
    let ([_, c_in, c_out, h, w], [oh, ow], spec) = (shape.sizes, shape.output(), shape.spec);
    let step = match spec.stride {
        [1, 1] => spec.padding.iter().all(|&p| p <= 2),
        [2, 2] => spec.padding == [1, 1] && 5 * 81 * oh.div_ceil(4) * ow.div_ceil(4) <= 4 * 9 * oh * ow,
        _ => false,
    };
    let large = [h, w, oh, ow].iter().all(|&n| n >= 3);
    step && large && shape.kernel == [3, 3] && spec.dilation == [1, 1] && spec.groups == 1 && c_in.min(c_out) >= 32
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
        // Of every three shapes one is meant for Winograd's algorithm, but for a border of three.
        let winograd = self.below(3) == 0;
        let kernel = if winograd { [3, 3] } else { self.of(&kernels) };
        let [c_in, c_out, groups] =
            if winograd { [32 + self.below(39), 32 + self.below(39), 1] } else { self.grouping() };
        let step = |dice: &mut Self, most| [0; 2].map(|_| 1 + dice.below(most));
        let (stride, dilation) =
            if winograd { ([1 + self.below(2); 2], [1; 2]) } else { (step(self, 3), step(self, 2)) };
        let padding = if winograd && stride[0] == 2 { [1; 2] } else { kernel.map(|k| self.below(k + 1)) };
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
    let shapes: Vec<_> = (0..1000).map(|_| dice.shape()).collect();
    for stride in [1, 2] {
        let count = shapes.iter().filter(|shape| winograd(shape) && shape.spec.stride[0] == stride).count();
        assert!(count > 20, "{count} shapes of stride {stride} for Winograd's algorithm");
    }
    let sets = |(i, shape)| if winograd(shape) { SETS.to_vec() } else { vec![SETS[i % 3]] };
    let shapes =
        shapes.iter().enumerate().flat_map(|(i, shape)| sets((i, shape)).into_iter().map(move |set| (shape, set)));
    let complaints: Vec<_> = shapes.flat_map(|(shape, set)| complaints(shape, set)).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// Sizes at which the engine changes the order of its loops: several strips of an image, weights that are read group
/// by group, weight gradients by parts of the batch, by groups and by places.
#[test]
fn large_convolutions_are_the_definition() {
    let shapes = [
        Shape::simple([2, 48, 40, 45, 46]),
        Shape::simple([1, 256, 256, 4, 4]),
        Shape::simple([3, 192, 192, 5, 4]),
        Shape::simple([13, 32, 33, 6, 5]),
        Shape::simple([17, 3, 18, 17, 16]),
        Shape::simple([35, 16, 16, 4, 4]),
        Shape { spec: Conv2dSpec::new(2, 1), ..Shape::simple([2, 40, 34, 60, 57]) },
        Shape { spec: Conv2dSpec::new(2, 1), ..Shape::simple([9, 96, 160, 9, 10]) },
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
