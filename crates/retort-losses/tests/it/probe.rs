//! Small helpers for losses that are functions of a few tensors.

use crate::fixture::{flat, random, scalar};
use candle_core::{DType, Device, Tensor, Var};
use retort_losses::Term;

pub(crate) const CPU: &Device = &Device::Cpu;

/// Seeded numbers in (-1, 1), f64, as a variable.
pub(crate) fn var(label: &str, shape: &[usize]) -> Var {
    Var::from_tensor(&random(label, shape, DType::F64)).unwrap()
}

/// Several of them, with a number behind the label.
pub(crate) fn vars(label: &str, shape: &[usize], count: usize) -> Vec<Var> {
    (0..count).map(|i| var(&format!("{label}{i}"), shape)).collect()
}

pub(crate) fn tensors(vars: &[Var]) -> Vec<Tensor> {
    vars.iter().map(|var| var.as_tensor().clone()).collect()
}

pub(crate) fn labels(ids: &[u32]) -> Tensor {
    Tensor::new(ids, CPU).unwrap()
}

/// The value of the term `name`.
pub(crate) fn value(terms: &[Term], name: &str) -> Tensor {
    let names: Vec<&str> = terms.iter().map(|term| term.name).collect();
    terms.iter().find(|term| term.name == name).unwrap_or_else(|| panic!("no {name} in {names:?}")).value.clone()
}

pub(crate) fn total(terms: &[Term]) -> f64 {
    scalar(&retort_losses::online::total(terms).unwrap())
}

/// The gradient of `loss` with respect to `var`, zeros where there is none.
pub(crate) fn gradient(loss: &Tensor, var: &Var) -> Vec<f64> {
    let gradients = loss.backward().unwrap();
    gradients.get(var).map_or_else(|| vec![0.0; var.elem_count()], flat)
}

/// Compares the gradients of `loss` with central differences, at most eleven entries of each variable.
pub(crate) fn slopes_agree(what: &str, vars: &[&Var], loss: impl Fn() -> Tensor) {
    let first = loss();
    let rounding = f64::EPSILON * scalar(&first).abs() / 1e-6;
    for (number, var) in vars.iter().enumerate() {
        let (values, slopes) = (flat(var.as_tensor()), gradient(&first, var));
        for i in (0..values.len()).step_by((values.len() / 11).max(1)) {
            let at = |x: f64| {
                let mut moved = values.clone();
                moved[i] = x;
                var.set(&Tensor::from_vec(moved, var.shape(), CPU).unwrap()).unwrap();
                scalar(&loss())
            };
            let slope = (at(values[i] + 1e-6) - at(values[i] - 1e-6)) / 2e-6;
            at(values[i]);
            let error = (slope - slopes[i]).abs();
            let allowed = 1e-8 + 1e-5 * slope.abs() + 4.0 * rounding;
            assert!(error <= allowed, "{what}: input {number}, entry {i}: {} against {slope}", slopes[i]);
        }
    }
}

/// Value and all gradients are finite.
pub(crate) fn finite(what: &str, vars: &[&Var], terms: &[Term]) {
    let loss = retort_losses::online::total(terms).unwrap();
    assert!(scalar(&loss).is_finite(), "{what}: {loss:?}");
    let gradients = loss.backward().unwrap();
    for (number, var) in vars.iter().enumerate() {
        if let Some(gradient) = gradients.get(var) {
            assert!(flat(gradient).iter().all(|g| g.is_finite()), "{what}: gradient of input {number}");
        }
    }
}

/// Rows in another order.
pub(crate) fn reordered(x: &Tensor, order: &[u32]) -> Tensor {
    x.index_select(&labels(order), 0).unwrap()
}
