//! What losses of several networks, heads or views have in common: named terms, checked logits, imitation, saved state.

use crate::{Error, Result, Term, ops, reduce};
use candle_core::{DType, Tensor};
use retort_kernels::{softmax_cross_entropy, softmax_divergence};
use retort_nn::Tensors;

/// The objective that a list of terms stands for: `sum_i weight_i value_i`.
///
/// # Errors
///
/// No terms.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::online::{DmlSettings, dml, total};
/// let logits = [Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?, Tensor::new(&[[3f32, 0.0]], &Device::Cpu)?];
/// let terms = dml(&logits, &Tensor::new(&[0u32], &Device::Cpu)?, &DmlSettings::default())?;
/// assert_eq!(terms.iter().map(|term| term.name).collect::<Vec<_>>(), ["ce", "dml"]);
/// assert!(total(&terms)?.to_scalar::<f32>()? > 0.0);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn total(terms: &[Term]) -> Result<Tensor> {
    if terms.is_empty() {
        return Err(Error::Undefined { method: "loss", message: "expected at least one term, found none".into() });
    }
    ops::total(&terms.iter().map(Term::weighted).collect::<Result<Vec<_>>>()?)
}

/// A term without parts.
pub(crate) fn term(name: &'static str, weight: f64, value: Tensor) -> Term {
    Term { name, weight, value, parts: Vec::new() }
}

/// A term that is the sum of its parts, the constant 0 without any; `like` has its type.
pub(crate) fn sum_of(name: &'static str, weight: f64, parts: Vec<(String, Tensor)>, like: &Tensor) -> Result<Term> {
    let values: Vec<Tensor> = parts.iter().map(|(_, value)| value.clone()).collect();
    let value = if values.is_empty() { reduce::constant(0.0, like)? } else { ops::total(&values)? };
    Ok(Term { name, weight, value, parts })
}

/// In f64; the gradient comes back in the type of `x`.
pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(DType::F64)?)
}

/// Back in the type of `like`.
pub(crate) fn narrow(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(like.dtype())?)
}

/// Refuses a tensor of another shape or type than `reference`.
pub(crate) fn check_like(method: &'static str, what: &str, x: &Tensor, reference: &Tensor) -> Result<()> {
    if x.dims() != reference.dims() {
        let expected = format!("{:?}", reference.dims());
        return Err(Error::Shape { method, what: what.to_string(), expected, found: x.dims().to_vec() });
    }
    if x.dtype() != reference.dtype() {
        let message = format!("{what}: expected type {:?}, found {:?}", reference.dtype(), x.dtype());
        return Err(Error::Undefined { method, message });
    }
    Ok(())
}

/// Refuses an empty list of tensors `[B, ..]`, or one whose tensors differ in shape or type; returns B.
pub(crate) fn check_all(method: &'static str, what: &str, list: &[Tensor]) -> Result<usize> {
    let Some(first) = list.first() else {
        return Err(Error::Undefined { method, message: format!("{what}: expected at least one, found none") });
    };
    let b = ops::samples(method, &format!("{what} 0"), first)?;
    let mut others = list.iter().enumerate().skip(1);
    others.try_for_each(|(k, x)| check_like(method, &format!("{what} {k}"), x, first))?;
    Ok(b)
}

/// `T^2 / B sum_b KL(softmax(t_b / T) || softmax(s_b / T))` with a constant target: what a student learns from
/// another's logits of the same shape and type.
pub(crate) fn imitate(student: &Tensor, target: &Tensor, temperature: f64) -> Result<Tensor> {
    Ok((softmax_divergence(student, &target.detach(), temperature)? * (temperature * temperature))?)
}

/// The same with `q + 1e-7` in place of the target's probabilities `q`, both as weights and in the logarithm; the
/// gradient reaches the target, too.
///
/// Without normalisation, so it is not 0 for equal logits: the published behaviour of some code bases.
pub(crate) fn imitate_shifted(student: &Tensor, target: &Tensor, temperature: f64) -> Result<Tensor> {
    let log_p = ops::log_softmax(&(wide(student)? / temperature)?)?;
    let q = (ops::log_softmax(&(wide(target)? / temperature)?)?.exp()? + 1e-7)?;
    let sum = reduce::sum_all(&(&q * (q.log()? - log_p)?)?)?;
    narrow(&(sum * (temperature * temperature / student.dims()[0] as f64))?, student)
}

/// The mean of logits.
pub(crate) fn mean_of(logits: &[Tensor]) -> Result<Tensor> {
    Ok((ops::total(logits)? / logits.len() as f64)?)
}

/// Logits of several classifiers on one batch, of one shape and type, and the labels on the host.
pub(crate) struct Heads<'a> {
    method: &'static str,
    /// What one of them is called in the log: `peer`, `head`.
    noun: &'static str,
    pub(crate) logits: &'a [Tensor],
    ids: Vec<u32>,
}

impl<'a> Heads<'a> {
    /// Checks at least one tensor of logits, and the labels.
    pub(crate) fn new(method: &'static str, noun: &'static str, logits: &'a [Tensor], labels: &Tensor) -> Result<Self> {
        check_all(method, &format!("logits of {noun}"), logits)?;
        let (b, c) = ops::logits(method, &format!("logits of {noun} 0"), &logits[0])?;
        Ok(Self { method, noun, logits, ids: ops::class_ids(method, labels, b, c)? })
    }

    /// One classifier.
    pub(crate) fn one(method: &'static str, logits: &'a Tensor, labels: &Tensor) -> Result<Self> {
        Self::new(method, "head", std::slice::from_ref(logits), labels)
    }

    /// The labels.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Number of classes.
    pub(crate) fn classes(&self) -> usize {
        self.logits[0].dims()[1]
    }

    /// The term `ce`, the sum of the cross-entropies of all classifiers and of `others`, by name.
    pub(crate) fn task(&self, weight: f64, others: &[(&str, &Tensor)]) -> Result<Term> {
        let own = self.logits.iter().enumerate().map(|(k, z)| (self.name(k), z));
        let others = others.iter().map(|(name, z)| ((*name).to_string(), *z));
        let mut parts = Vec::new();
        for (name, z) in own.chain(others) {
            check_like(self.method, &name, z, &self.logits[0])?;
            parts.push((name, softmax_cross_entropy(z, &self.ids, 0.0)?));
        }
        if let [(_, value)] = &parts[..] {
            return Ok(term("ce", weight, value.clone()));
        }
        sum_of("ce", weight, parts, &self.logits[0])
    }

    /// `scale sum_{a != b} KD_T(z_a <- z_b)`, every classifier from every other one.
    pub(crate) fn mutual(&self, weight: f64, scale: f64, temperature: f64) -> Result<Term> {
        let mut parts = Vec::new();
        for (a, student) in self.logits.iter().enumerate() {
            for (b, target) in self.logits.iter().enumerate().filter(|(b, _)| *b != a) {
                parts.push((format!("{a}<-{b}"), (imitate(student, target, temperature)? * scale)?));
            }
        }
        sum_of(self.method, weight, parts, &self.logits[0])
    }

    /// `sum_k KD_T(z_k <- target(k))`.
    pub(crate) fn imitate(
        &self,
        weight: f64,
        temperature: f64,
        target: impl Fn(usize) -> Result<Tensor>,
    ) -> Result<Term> {
        let mut parts = Vec::new();
        for (k, student) in self.logits.iter().enumerate() {
            parts.push((self.name(k), imitate(student, &target(k)?, temperature)?));
        }
        sum_of(self.method, weight, parts, &self.logits[0])
    }

    pub(crate) fn name(&self, k: usize) -> String {
        format!("{}{k}", self.noun)
    }
}

/// The tensors of a checkpoint: all that a state has, and nothing else.
pub(crate) struct Saved<'a> {
    method: &'static str,
    state: &'a Tensors,
}

impl<'a> Saved<'a> {
    /// Refuses names that are missing or unknown.
    pub(crate) fn new(method: &'static str, state: &'a Tensors, names: &[String]) -> Result<Self> {
        let saved = Self { method, state };
        if let Some(name) = state.keys().find(|name| !names.contains(name)) {
            return Err(saved.refuse(name, format!("unknown, expected {names:?}")));
        }
        if let Some(name) = names.iter().find(|name| !state.contains_key(*name)) {
            return Err(saved.refuse(name, "missing; without it a resumed run would optimise another loss".into()));
        }
        Ok(saved)
    }

    /// A copy of the tensor `name`, which must have the shape of `own` and finite values, in the type of `own`.
    pub(crate) fn like(&self, name: &str, own: &Tensor) -> Result<Tensor> {
        let found = self.get(name)?;
        if found.dims() != own.dims() {
            return Err(self.refuse(name, format!("expected shape {:?}, found {:?}", own.dims(), found.dims())));
        }
        if !reduce::wide(found)?.iter().all(|x| x.is_finite()) {
            return Err(self.refuse(name, "holds values that are not finite".into()));
        }
        copy(&found.to_device(own.device())?.to_dtype(own.dtype())?)
    }

    /// The whole number `name`, below `size`.
    pub(crate) fn position(&self, name: &str, size: usize) -> Result<usize> {
        let values = reduce::wide(self.get(name)?)?;
        match values[..] {
            [x] if x.fract() == 0.0 && (0.0..size as f64).contains(&x) => Ok(x as usize),
            _ => Err(self.refuse(name, format!("expected a whole number below {size}, found {values:?}"))),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Result<&'a Tensor> {
        self.state.get(name).ok_or_else(|| self.refuse(name, "missing".into()))
    }

    pub(crate) fn refuse(&self, name: &str, message: String) -> Error {
        Error::State { method: self.method, name: name.into(), message }
    }
}

/// A contiguous copy without history that shares no storage with `x`.
pub(crate) fn copy(x: &Tensor) -> Result<Tensor> {
    Ok(x.detach().contiguous()?.copy()?.detach())
}
