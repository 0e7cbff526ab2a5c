//! The operations of maps and of tensors by the same names, so that a chain is written once for both.

use candle_core::Tensor;
use retort_kernels::*;

use super::{EPS, NONE, RELU, map};
use crate::support::random;

pub(super) trait Ops: Sized {
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
pub(super) fn running(like: &Tensor) -> [Tensor; 2] {
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
