//! Numbers without a generator, finite differences, plain loops.

use candle_core::{DType, Device, Tensor, Var};
use retort_kernels::Conv2dSpec;

/// Numbers in -1..1 that look random; the same for the same salt.
pub(crate) fn numbers(count: usize, salt: u64) -> Vec<f64> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

pub(crate) fn random(shape: impl Into<candle_core::Shape>, salt: u64) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(numbers(shape.elem_count(), salt), shape, &Device::Cpu).unwrap()
}

pub(crate) fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Largest difference, relative to the largest expected value (or 1e-3).
pub(crate) fn difference(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.dims(), expected.dims());
    let (got, expected) = (values(got), values(expected));
    let scale = expected.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    got.iter().zip(&expected).fold(0.0, |m, (g, e)| {
        let d = (g - e).abs() / scale;
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    })
}

pub(crate) fn bits(t: &Tensor) -> Vec<u64> {
    values(t).iter().map(|v| v.to_bits()).collect()
}

/// The gradients of `sum(f(inputs) * weights)` with fixed random weights.
pub(crate) fn gradients(f: &dyn Fn(&[Tensor]) -> Tensor, inputs: &[Tensor]) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors);
    let w = random(y.shape().clone(), 99).to_dtype(y.dtype()).unwrap();
    let grads = (&y * w).unwrap().sum_all().unwrap().backward().unwrap();
    let grads = vars
        .iter()
        .map(|v| {
            let g = grads.get(v).expect("a gradient for every variable").clone();
            assert_eq!(g.dims(), v.dims());
            assert_eq!(g.dtype(), v.dtype());
            assert!(g.is_contiguous());
            g
        })
        .collect();
    (y.detach(), grads)
}

/// Compares the gradients of every input with central differences, in `f64`, on up to 60 elements of each.
pub(crate) fn check_gradients(name: &str, f: &dyn Fn(&[Tensor]) -> Tensor, inputs: &[Tensor]) {
    const STEP: f64 = 1e-5;
    let (y, grads) = gradients(f, inputs);
    let weights = numbers(y.elem_count(), 99);
    let value = |inputs: &[Tensor]| -> f64 { values(&f(inputs)).iter().zip(&weights).map(|(y, w)| y * w).sum() };
    for (i, input) in inputs.iter().enumerate() {
        let base = values(input);
        let grad = values(&grads[i]);
        let scale = grad.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        let stride = base.len().div_ceil(60);
        for at in (0..base.len()).step_by(stride) {
            let side = |step: f64| {
                let mut moved = base.clone();
                moved[at] += step;
                let mut all = inputs.to_vec();
                all[i] = Tensor::from_vec(moved, input.shape(), &Device::Cpu).unwrap();
                value(&all)
            };
            let slope = (side(STEP) - side(-STEP)) / (2.0 * STEP);
            let error = (slope - grad[at]).abs() / scale;
            assert!(error < 1e-6, "{name}: input {i} element {at}: slope {slope}, gradient {}", grad[at]);
        }
    }
}

pub(crate) fn f32s(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect()
}

/// One convolution: batch, channels in and out, height and width; kernel.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) sizes: [usize; 5],
    pub(crate) kernel: [usize; 2],
    pub(crate) spec: Conv2dSpec,
}

impl Shape {
    /// Three by three, with a border of one.
    pub(crate) fn simple(sizes: [usize; 5]) -> Self {
        Self { sizes, kernel: [3, 3], spec: Conv2dSpec::new(1, 1) }
    }

    pub(crate) fn output(&self) -> [usize; 2] {
        self.spec.output_size([self.sizes[3], self.sizes[4]], self.kernel).unwrap()
    }

    pub(crate) fn multiplications(&self) -> usize {
        let ([b, i, o, ..], [kh, kw], [oh, ow]) = (self.sizes, self.kernel, self.output());
        b * o * i / self.spec.groups * kh * kw * oh * ow
    }

    pub(crate) fn inputs(&self) -> Vec<Tensor> {
        let ([b, i, o, h, w], [kh, kw]) = (self.sizes, self.kernel);
        f32s(&[random((b, i, h, w), 1), random((o, i / self.spec.groups, kh, kw), 2), random(o, 3)])
    }

    /// Of each tap of an axis the outputs, each with the place that it reads.
    fn reads(&self, axis: usize) -> Vec<Vec<(usize, usize)>> {
        let (size, out, spec) = (self.sizes[3 + axis], self.output()[axis], &self.spec);
        let place =
            |tap: usize, i: usize| (i * spec.stride[axis] + tap * spec.dilation[axis]).wrapping_sub(spec.padding[axis]);
        let taps = 0..self.kernel[axis];
        taps.map(|tap| (0..out).map(|i| (i, place(tap, i))).filter(|&(_, at)| at < size).collect()).collect()
    }

    /// The result and the gradients of input, weight and bias, by definition and in `f64`.
    pub(crate) fn loops(&self, inputs: &[Tensor]) -> [Tensor; 4] {
        let ([b, c, o, h, w], [oh, ow]) = (self.sizes, self.output());
        let (rows, cols, per_group) = (self.reads(0), self.reads(1), c / self.spec.groups);
        let [x, weight, bias] = [0, 1, 2].map(|i| values(&inputs[i]));
        let dy = values(&random((b, o, oh, ow), 99).to_dtype(DType::F32).unwrap());
        let mut y: Vec<f64> = (0..dy.len()).map(|at| bias[at / (oh * ow) % o]).collect();
        let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; weight.len()], vec![0.0; o]);
        for (at, g) in dy.iter().enumerate() {
            db[at / (oh * ow) % o] += g;
        }
        for (n, f, k) in (0..b * o * per_group).map(|at| (at / (o * per_group), at / per_group % o, at % per_group)) {
            let (at_y, at_x) = ((n * o + f) * oh * ow, (n * c + f / (o / self.spec.groups) * per_group + k) * h * w);
            for (t, (rows, cols)) in rows.iter().flat_map(|r| cols.iter().map(move |c| (r, c))).enumerate() {
                let tap = (f * per_group + k) * self.kernel[0] * self.kernel[1] + t;
                let mut sum = 0.0;
                for &(i, row) in rows {
                    for &(j, col) in cols {
                        let (p, q) = (at_y + i * ow + j, at_x + row * w + col);
                        y[p] += weight[tap] * x[q];
                        dx[q] += weight[tap] * dy[p];
                        sum += x[q] * dy[p];
                    }
                }
                dw[tap] += sum;
            }
        }
        let of = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu).unwrap();
        let y = Tensor::from_vec(y, (b, o, oh, ow), &Device::Cpu).unwrap();
        [y, of(dx, &inputs[0]), of(dw, &inputs[1]), of(db, &inputs[2])]
    }
}
