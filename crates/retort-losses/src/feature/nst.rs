//! Distributions of channel activation patterns.

use crate::config::{self, Family, Inputs, MapChoice, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::stages::Pairing;
use crate::{Align, Result, StageLoss, ops, reduce};
use candle_core::Tensor;
use retort_kernels::with_gradient;
use serde::{Deserialize, Serialize};

const METHOD: &str = "nst";
const EPS: f64 = 1e-12;

/// Neuron selectivity transfer (Huang and Wang 2017, arXiv 1707.01219), polynomial kernel of degree 2.
///
/// Per stage the larger map, by height, is adaptively average-pooled to the smaller one's size; each channel is
/// flattened and divided by its norm. With `k(x, y) = (x . y)^2` the stage's loss is
/// `mean k(t, t) + mean k(s, s) - 2 mean k(s, t)`, each mean over the batch and all pairs of channels:
/// the squared maximum mean discrepancy of the two sets of channels. Stages are summed.
///
/// With `S` `[C_s, H W]` the rows of one sample, `sum_ij k(s_i, s_j) = ||S S^T||^2 = ||S^T S||^2`, so the
/// loss is also the mean over the batch of `||S^T S / C_s - T^T T / C_t||^2`. Whichever form needs fewer products is
/// used; neither materialises anything larger than the products of one batched matrix multiplication.
/// A channel with norm <= 1e-12 is the constant 0.
///
/// # Shapes
///
/// `student[i]`: `[B, C_i, H_i, W_i]`, `teacher[i]`: `[B, C'_i, H'_i, W'_i]`.
///
/// # Gradients
///
/// Into the student's maps; the teacher's are detached, their own kernel mean is part of the value.
///
/// # Errors
///
/// Lists of different lengths or empty ones, batch sizes that differ, maps of one height and two widths.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let f = Tensor::new(&[[[[1f32, 2.0], [3.0, 4.0]]]], &Device::Cpu)?;
/// let loss = retort_losses::feature::neuron_selectivity(&[f.clone()], &[f])?;
/// assert_eq!(loss.total.to_scalar::<f32>()?, 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn neuron_selectivity(student: &[Tensor], teacher: &[Tensor]) -> Result<StageLoss> {
    neuron_selectivity_with(student, teacher, PolynomialKernel::default())
}

/// Polynomial kernel `k(x, y) = (x . y + offset)^degree` of two channels' patterns; by default `(x . y)^2`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolynomialKernel {
    /// Exponent, in `1 ..= 16`.
    pub degree: u32,
    /// Added to the inner product, finite and >= 0.
    pub offset: f64,
}

impl Default for PolynomialKernel {
    fn default() -> Self {
        Self { degree: 2, offset: 0.0 }
    }
}

impl PolynomialKernel {
    fn validate(self) -> Result<()> {
        check::exponent(METHOD, "degree", f64::from(self.degree))?;
        check::non_negative(METHOD, "offset", self.offset)
    }

    /// `(products + offset)^exponent`.
    fn power(self, products: &Tensor, exponent: u32) -> Result<Tensor> {
        let shifted = if self.offset == 0.0 { products.clone() } else { (products + self.offset)? };
        Ok(match exponent {
            0 => shifted.ones_like()?,
            1 => shifted,
            2 => shifted.sqr()?,
            // A whole exponent: defined for negative numbers too.
            _ => shifted.powf(f64::from(exponent))?,
        })
    }
}

/// [`neuron_selectivity`] with another polynomial kernel.
///
/// A channel that counts as 0 has the kernel `offset^degree` with every other and gets no gradient.
///
/// # Errors
///
/// As for [`neuron_selectivity`]; a kernel whose degree or offset is out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::feature::{PolynomialKernel, neuron_selectivity_with};
/// let (s, t) = (Tensor::new(&[[[[1f32, 0.0]]]], &Device::Cpu)?, Tensor::new(&[[[[0f32, 1.0]]]], &Device::Cpu)?);
/// // (1 + 1)^3 + (1 + 1)^3 - 2 (0 + 1)^3
/// let loss = neuron_selectivity_with(&[s], &[t], PolynomialKernel { degree: 3, offset: 1.0 })?;
/// assert_eq!(loss.total.to_scalar::<f32>()?, 14.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn neuron_selectivity_with(student: &[Tensor], teacher: &[Tensor], kernel: PolynomialKernel) -> Result<StageLoss> {
    kernel.validate()?;
    StageLoss::sum(METHOD, student, teacher, |i, s, t| {
        let (s, t) = ops::pool_match(METHOD, i, s, t)?;
        let patterns = |x: &Tensor| ops::guarded_normalize(&x.flatten_from(2)?, EPS);
        let (s, t) = (patterns(&s)?, patterns(&t)?);
        let (c_s, n) = (s.dims()[1], s.dims()[2]);
        let c_t = t.dims()[1];
        // Multiply-adds of the two forms, up to the common factor B n.
        let shorter = n * (c_s + c_t) < c_s * c_s + c_t * c_t + c_s * c_t;
        if shorter && kernel == PolynomialKernel::default() { by_position(&s, &t) } else { by_channel(&s, &t, kernel) }
    })
}

/// The three kernel means; `s` `[B, C_s, N]`, `t` `[B, C_t, N]`.
fn by_channel(s: &Tensor, t: &Tensor, kernel: PolynomialKernel) -> Result<Tensor> {
    let (b, c_s, _) = s.dims3()?;
    let (plain, c_t) = (s.detach(), t.dims()[1]);
    let products = |x: &Tensor, y: &Tensor| x.matmul(&y.t()?);
    let mean = |products: &Tensor| reduce::number(&reduce::mean_all(&kernel.power(products, kernel.degree)?)?);
    let (ss, st) = (products(&plain, &plain)?, products(&plain, t)?);
    let value = mean(&ss)? + mean(&products(t, t)?)? - 2.0 * mean(&st)?;
    if !s.track_op() {
        return reduce::constant(value, s);
    }
    // With k' the kernel's derivative: d sum k(s_i, s_j) / ds = 2 k'(S S^T) S, d sum k(s_i, t_j) / ds = k'(S T^T) T.
    let slopes = |products: &Tensor| kernel.power(products, kernel.degree - 1);
    let scale = |pairs: usize| f64::from(2 * kernel.degree) / (b * pairs) as f64;
    let own = slopes(&ss)?.matmul(&plain)?.affine(scale(c_s * c_s), 0.0)?;
    let cross = slopes(&st)?.matmul(t)?.affine(scale(c_s * c_t), 0.0)?;
    Ok(with_gradient(value, s, &(own - cross)?)?)
}

/// The same by the second-moment matrices over positions.
fn by_position(s: &Tensor, t: &Tensor) -> Result<Tensor> {
    let (b, c_s, _) = s.dims3()?;
    let plain = s.detach();
    let moment = |x: &Tensor| -> Result<Tensor> { Ok((x.t()?.matmul(x)? * (1.0 / x.dims()[1] as f64))?) };
    let difference = (moment(&plain)? - moment(t)?)?;
    let value = reduce::number(&reduce::sum_all(&difference.sqr()?)?)? / b as f64;
    if !s.track_op() {
        return reduce::constant(value, s);
    }
    let gradient = plain.matmul(&difference)?.affine(4.0 / (b * c_s) as f64, 0.0)?;
    Ok(with_gradient(value, s, &gradient)?)
}

/// Hyper-parameters of neuron selectivity transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NstConfig {
    /// Degree of the polynomial kernel, in `1 ..= 16`.
    pub degree: u32,
    /// Offset of the polynomial kernel, finite and >= 0.
    pub offset: f64,
    /// Pairing of stages.
    pub align: Align,
    /// Weight of the term.
    pub weight: f64,
}

impl Default for NstConfig {
    fn default() -> Self {
        let PolynomialKernel { degree, offset } = PolynomialKernel::default();
        Self { degree, offset, align: Align::Exact, weight: 50.0 }
    }
}

impl NstConfig {
    fn kernel(&self) -> PolynomialKernel {
        PolynomialKernel { degree: self.degree, offset: self.offset }
    }
}

impl Method for NstConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Neuron selectivity transfer",
        family: Family::Feature,
        paper: Some("Like What You Like: Knowledge Distill via Neuron Selectivity Transfer"),
        year: Some(2017),
        arxiv: Some("1707.01219"),
        inputs: Inputs { maps: Side::Both, which: MapChoice::Stages, ..Inputs::NONE },
        trainable: &[],
        phase: None,
        state: &[],
        buffers: &[],
        ce_weight: Some(1.0),
        weight: 50.0,
        code_bases: config::BOTH,
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        self.kernel().validate()
    }
    fn needs(&self) -> Needs {
        Needs::MAPS
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let pairing = Pairing::new(METHOD, self.align, ctx)?;
        Ok(Box::new(Nst { weight: self.weight, kernel: self.kernel(), pairing }))
    }
}

struct Nst {
    weight: f64,
    kernel: PolynomialKernel,
    pairing: Pairing,
}

impl Distiller for Nst {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let (student, teacher) = self.pairing.maps(ctx)?;
        let loss = neuron_selectivity_with(&student, &teacher, self.kernel)?;
        Ok(Term { name: METHOD, weight: self.weight, parts: loss.parts(), value: loss.total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn both_forms_agree_in_value_and_gradient() {
        let numbers =
            |n: usize, k: f64| (0..n).map(|i| ((i as f64 * k).sin() * 43_758.545_3).fract()).collect::<Vec<_>>();
        let s = Var::from_vec(numbers(2 * 5 * 6, 1.7), (2, 5, 6), &Device::Cpu).unwrap();
        let t = Tensor::from_vec(numbers(2 * 3 * 6, 2.3), (2, 3, 6), &Device::Cpu).unwrap();
        let run = |f: fn(&Tensor, &Tensor) -> Result<Tensor>| {
            let loss = f(s.as_tensor(), &t).unwrap();
            let grad = loss.backward().unwrap().get(&s).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            (loss.to_scalar::<f64>().unwrap(), grad)
        };
        let ((a, ga), (b, gb)) = (run(|s, t| by_channel(s, t, PolynomialKernel::default())), run(by_position));
        assert!((a - b).abs() < 1e-13 && a > 1e-3, "{a} {b}");
        assert!(ga.iter().zip(&gb).all(|(x, y)| (x - y).abs() < 1e-13));
    }
}
