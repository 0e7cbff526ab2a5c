//! From tensors to point clouds and back.

use crate::{Error, Result, ops, reduce};
use candle_core::{Device, Tensor};
use retort_kernels::with_gradient;
use retort_transport::{Distance, Points};

/// How far the law of the student's features is from the teacher's.
#[derive(Clone, Debug)]
pub struct Discrepancy {
    /// The distance, a scalar of the student's type; its gradient reaches the student.
    pub value: Tensor,
    /// Its derivative with respect to the teacher's features, `[M, D]`, without a graph: nothing is trained by it.
    pub grad_teacher: Tensor,
    /// What else is known, by name: `plan` `[N, M]`, `per_class` `[K]`, scalars such as `mean_part`.
    pub details: Vec<(&'static str, Tensor)>,
}

impl Discrepancy {
    /// The detail `name`.
    #[must_use]
    pub fn detail(&self, name: &str) -> Option<&Tensor> {
        self.details.iter().find(|(known, _)| *known == name).map(|(_, tensor)| tensor)
    }

    /// The details that are finite real scalars, for the log: a record cannot hold the infinite divergence of a direction
    /// that nobody asked for.
    pub(super) fn scalars(&self) -> Result<Vec<(String, Tensor)>> {
        let scalars = self.details.iter().filter(|(_, tensor)| tensor.rank() == 0 && tensor.dtype().is_float());
        let mut parts = Vec::new();
        for (name, tensor) in scalars {
            if reduce::number(tensor)?.is_finite() {
                parts.push(((*name).to_string(), tensor.clone()));
            }
        }
        Ok(parts)
    }
}

const FEATURES: [&str; 2] = ["student features", "teacher features"];

/// Features of both networks on the host, in f64: solvers and sums need the digits.
pub(super) struct Clouds<'a> {
    names: [&'static str; 2],
    method: &'static str,
    student: &'a Tensor,
    values: [Vec<f64>; 2],
    /// `[N, D]` of the student and `[M, D']` of the teacher.
    shapes: [(usize, usize); 2],
}

impl<'a> Clouds<'a> {
    /// `student` `[N, D]` and `teacher` `[M, D']`, neither of them empty.
    pub(super) fn new(method: &'static str, student: &'a Tensor, teacher: &Tensor) -> Result<Self> {
        Self::of(FEATURES, method, student, teacher)
    }

    /// The same for other rows of both networks than their features, under these names.
    pub(super) fn of(
        names: [&'static str; 2],
        method: &'static str,
        student: &'a Tensor,
        teacher: &Tensor,
    ) -> Result<Self> {
        let shapes = [ops::logits(method, names[0], student)?, ops::logits(method, names[1], teacher)?];
        let values = [reduce::wide(student)?, reduce::wide(teacher)?];
        Ok(Self { names, method, student, values, shapes })
    }

    /// Both clouds for a solver.
    pub(super) fn points(&self) -> Result<[Points<'_>; 2]> {
        let points = |i: usize| Points::new(self.names[i], &self.values[i], self.shapes[i].1);
        Ok([points(0).map_err(|e| self.refused(e))?, points(1).map_err(|e| self.refused(e))?])
    }

    /// A solver's error under the method's name.
    pub(super) fn refused(&self, error: retort_transport::Error) -> Error {
        refused(self.method, error)
    }

    /// The solver's answer as tensors.
    pub(super) fn discrepancy(&self, distance: &Distance, details: Vec<(&'static str, Tensor)>) -> Result<Discrepancy> {
        let value = attach(distance.value, self.student, &distance.grad_x)?;
        let grad_teacher = plain(&distance.grad_y, &[self.shapes[1].0, self.shapes[1].1], self.student)?;
        Ok(Discrepancy { value, grad_teacher, details })
    }

    /// A detail of this shape, in the student's type.
    pub(super) fn detail(&self, values: &[f64], shape: &[usize]) -> Result<Tensor> {
        plain(values, shape, self.student)
    }

    /// A detail that is one number.
    pub(super) fn number(&self, value: f64) -> Result<Tensor> {
        plain(&[value], &[], self.student)
    }
}

/// A solver's error under the method's name.
pub(super) fn refused(method: &'static str, error: retort_transport::Error) -> Error {
    Error::Undefined { method, message: error.to_string() }
}

/// A scalar with this value, whose derivative with respect to `x` is `gradient`.
pub(super) fn attach(value: f64, x: &Tensor, gradient: &[f64]) -> Result<Tensor> {
    Ok(with_gradient(value, x, &plain(gradient, x.dims(), x)?)?)
}

/// Numbers as a tensor of the type and on the device of `like`, without a graph.
pub(super) fn plain(values: &[f64], shape: &[usize], like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, shape, &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())?)
}
