//! Bounds of a classifier's error by distances of feature laws.

use crate::classification::{argmax, log_softmax};
use crate::spectral::spectral_norm;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use rayon::prelude::*;
use retort_transport::{Points, w1, w2};
use std::collections::BTreeMap;
use std::f64::consts::SQRT_2;

/// Margins at which the bound of the error rate is tried, log-spaced.
const GAMMAS: usize = 50;
/// Rounding that the comparison of two sides of an inequality allows for, relative.
pub(crate) const ROUNDING: f64 = 1e-9;

/// Features of both networks on the same samples, with their labels.
#[derive(Clone, Copy, Debug)]
pub struct FeaturePair<'a> {
    /// The student's, `[N, D]`.
    pub student: &'a Tensor,
    /// The teacher's, `[N, D]`.
    pub teacher: &'a Tensor,
    /// Classes, `N`.
    pub labels: &'a [u32],
}

/// A linear classifier `z -> W z + b`.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `[K, D]`.
    pub weight: &'a Tensor,
    /// `[K]`; none is 0.
    pub bias: Option<&'a Tensor>,
}

/// What the student's own classifier adds.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnHead {
    /// Mean cross-entropy of the student's logits on its own features, in nats.
    pub risk: f64,
    /// The teacher's risk, plus how far its head is on the student's features, plus `sqrt(2)` times the mean distance of
    /// the two heads' logits there: never below `risk`.
    pub bound: f64,
}

/// Risks of the teacher's head on both networks' features, and what bounds their difference (KD2M, arXiv 2504.01757; the
/// inequalities are proved for the empirical laws of the samples at hand, not for the population).
///
/// The cross-entropy of a linear head is Lipschitz in the features, with the constant `sqrt(2) ||W||_2`, or for samples of
/// class `c` `max_k ||w_k - w_c||`; with the classes' shares `pi_c`, Kantorovich and Rubinstein give
/// `|risk(student) - risk(teacher)| <= L sum_c pi_c W1(S_c, T_c) <= L mean ||z_s - z_t||`.
///
/// All risks are in nats. A bound above `ln K` says nothing about a classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds {
    /// Mean cross-entropy of the head on the teacher's features.
    pub ce_teacher_features: f64,
    /// The same on the student's features: what is bounded.
    pub ce_student_features: f64,
    /// `sqrt(2) ||W||_2`.
    pub lipschitz: f64,
    /// `sum_c pi_c W1` of the rows of each class.
    pub w1_conditional: f64,
    /// `sqrt(sum_c pi_c W2^2)`.
    pub w2_conditional: f64,
    /// `mean ||z_s - z_t||`.
    pub paired_l1: f64,
    /// `sqrt(mean ||z_s - z_t||^2)`.
    pub paired_l2: f64,
    /// `ce_teacher_features + lipschitz * w1_conditional`.
    pub bound: f64,
    /// The same with the constant of each class: never above `bound`.
    pub bound_by_class: f64,
    /// `ce_teacher_features + lipschitz * paired_l1`.
    pub bound_paired: f64,
    /// Error rate of the head on the student's features.
    pub error_student_features: f64,
    /// Its bound by margins: `min over gamma of mean ramp_gamma(margin on teacher features) + (G / gamma) w1_conditional`
    /// with `G = max ||w_k - w_k'||`; at most 1.
    pub error_bound: f64,
    /// The margin that gives it.
    pub gamma: f64,
    /// With the student's own classifier, where its logits were given.
    pub own: Option<OwnHead>,
}

impl Bounds {
    /// Computes all of it but the joint bound, which is a [`crate::JointBound`] of its own; `own_logits` `[N, K]` are the student's.
    ///
    /// # Errors
    ///
    /// Shapes or labels that do not fit, a value that is not finite, a bound below what it bounds (a defect).
    pub fn new(pair: FeaturePair<'_>, head: Head<'_>, own_logits: Option<&Tensor>) -> Result<Self> {
        let data = Data::new(pair, head)?;
        let [on_student, on_teacher] = [&data.student, &data.teacher].map(|rows| data.logits(rows));
        let classes = data.classes()?;
        let n = data.n as f64;
        let shares =
            |f: &dyn Fn(&Class) -> f64| classes.iter().map(|class| class.rows as f64 / n * f(class)).sum::<f64>();
        let w1_conditional = shares(&|class| class.w1);
        let gaps: Vec<f64> = data.student.iter().zip(&data.teacher).map(|(s, t)| distance(s, t)).collect();
        let ce_teacher_features = risk(&on_teacher, pair.labels);
        let ce_student_features = risk(&on_student, pair.labels);
        let lipschitz = data.lipschitz();
        let constant = |class: &Class| data.constant_of(class.label as usize);
        let paired_l1 = gaps.iter().sum::<f64>() / n;
        let (error_bound, gamma) = data.error_bound(&on_teacher, pair.labels, w1_conditional);
        let wrong = on_student.iter().zip(pair.labels).filter(|(z, label)| argmax(z) != **label as usize).count();
        let own = own_logits.map(|own| data.own(own, &on_student, pair.labels, ce_teacher_features)).transpose()?;
        let bounds = Self {
            ce_teacher_features,
            ce_student_features,
            lipschitz,
            w1_conditional,
            w2_conditional: shares(&|class| class.w2).sqrt(),
            paired_l1,
            paired_l2: (gaps.iter().map(|gap| gap * gap).sum::<f64>() / n).sqrt(),
            bound: ce_teacher_features + lipschitz * w1_conditional,
            bound_by_class: ce_teacher_features + shares(&|class| constant(class) * class.w1),
            bound_paired: ce_teacher_features + lipschitz * paired_l1,
            error_student_features: wrong as f64 / n,
            error_bound,
            gamma,
            own,
        };
        bounds.check()?;
        Ok(bounds)
    }

    /// How many times the bound is the measured risk on the student's features.
    #[must_use]
    pub fn tightness(&self) -> f64 {
        self.bound_by_class / self.ce_student_features
    }

    /// What the theory promises, up to rounding.
    fn check(&self) -> Result<()> {
        let mut ordered = vec![
            ("risk on student features", self.ce_student_features, "bound by class", self.bound_by_class),
            ("bound by class", self.bound_by_class, "bound", self.bound),
            ("bound", self.bound, "paired bound", self.bound_paired),
            ("conditional W1", self.w1_conditional, "paired L1", self.paired_l1),
            ("conditional W1", self.w1_conditional, "conditional W2", self.w2_conditional),
            ("conditional W2", self.w2_conditional, "paired L2", self.paired_l2),
            ("error rate on student features", self.error_student_features, "its bound", self.error_bound),
        ];
        if let Some(own) = &self.own {
            ordered.push(("risk of the student", own.risk, "its bound", own.bound));
        }
        match ordered.iter().find(|(_, low, _, high)| *low > high + ROUNDING * (1.0 + high.abs())) {
            Some((what, low, than, high)) => Err(Error::Invariant(format!("{what} {low} is above {than} {high}"))),
            None => Ok(()),
        }
    }
}

/// Everything on the host, in f64.
pub(crate) struct Data<'a> {
    pub(crate) student: Vec<Vec<f64>>,
    pub(crate) teacher: Vec<Vec<f64>>,
    pub(crate) labels: &'a [u32],
    weight: Vec<Vec<f64>>,
    bias: Vec<f64>,
    pub(crate) n: usize,
    d: usize,
}

/// The rows of one class.
struct Class {
    label: u32,
    rows: usize,
    w1: f64,
    /// Squared.
    w2: f64,
}

impl<'a> Data<'a> {
    pub(crate) fn new(pair: FeaturePair<'a>, head: Head<'_>) -> Result<Self> {
        let (n, d) = matrix("student features", pair.student)?;
        let (k, _) = matrix("head weight", head.weight)?;
        let fits = [("teacher features", pair.teacher, [n, d]), ("head weight", head.weight, [k, d])];
        for (what, tensor, expected) in fits {
            if tensor.dims() != expected {
                return Err(Error::Shape(format!("{what}: expected {expected:?}, found {:?}", tensor.dims())));
            }
        }
        if pair.labels.len() != n {
            return Err(Error::Shape(format!("{n} rows of features but {} labels", pair.labels.len())));
        }
        if let Some(label) = pair.labels.iter().find(|&&label| label as usize >= k) {
            return Err(Error::Shape(format!("label {label} with {k} classes")));
        }
        let bias = match head.bias {
            None => vec![0.0; k],
            Some(bias) if bias.dims() == [k] => rows("head bias", &bias.unsqueeze(0)?)?.concat(),
            Some(bias) => return Err(Error::Shape(format!("head bias: expected [{k}], found {:?}", bias.dims()))),
        };
        let (student, teacher) = (rows("student features", pair.student)?, rows("teacher features", pair.teacher)?);
        Ok(Self { student, teacher, labels: pair.labels, weight: rows("head weight", head.weight)?, bias, n, d })
    }

    pub(crate) fn logits(&self, features: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let scores = |z: &Vec<f64>| self.weight.iter().zip(&self.bias).map(|(w, b)| dot(w, z) + b).collect();
        features.iter().map(scores).collect()
    }

    fn classes(&self) -> Result<Vec<Class>> {
        let mut members: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        self.labels.iter().enumerate().for_each(|(i, &label)| members.entry(label).or_default().push(i));
        let class = |(label, members): (u32, Vec<usize>)| {
            let of = |rows: &[Vec<f64>]| members.iter().flat_map(|&i| rows[i].iter().copied()).collect::<Vec<_>>();
            let (s, t) = (of(&self.student), of(&self.teacher));
            let (x, y) = (Points::new("student", &s, self.d)?, Points::new("teacher", &t, self.d)?);
            let (w1, w2) = (w1(x, y)?.distance.value, w2(x, y)?.distance.value);
            Ok(Class { label, rows: members.len(), w1, w2 })
        };
        members.into_par_iter().map(class).collect()
    }

    /// `sqrt(2) ||W||_2`.
    pub(crate) fn lipschitz(&self) -> f64 {
        SQRT_2 * spectral_norm(&self.weight.concat(), self.d)
    }

    /// `sum_c pi_c W1` of the rows of each class.
    pub(crate) fn w1_conditional(&self) -> Result<f64> {
        let share = |class: &Class| class.rows as f64 / self.n as f64 * class.w1;
        Ok(self.classes()?.iter().map(share).sum())
    }

    /// `max_k ||w_k - w_c||`.
    pub(crate) fn constant_of(&self, class: usize) -> f64 {
        self.weight.iter().map(|w| distance(w, &self.weight[class])).fold(0.0, f64::max)
    }

    fn error_bound(&self, on_teacher: &[Vec<f64>], labels: &[u32], w1: f64) -> (f64, f64) {
        let margins: Vec<f64> = on_teacher.iter().zip(labels).map(|(z, &label)| margin(z, label as usize)).collect();
        let slope = (0..self.weight.len()).map(|class| self.constant_of(class)).fold(0.0, f64::max);
        let scale = margins.iter().map(|m| m.abs()).filter(|m| m.is_finite()).sum::<f64>() / self.n as f64;
        let scale = if scale > 0.0 { scale } else { 1.0 };
        let gamma = |i: usize| scale * 10f64.powf(-2.0 + 4.0 * i as f64 / (GAMMAS - 1) as f64);
        let at = |gamma: f64| {
            let ramp = margins.iter().map(|m| (1.0 - m / gamma).clamp(0.0, 1.0)).sum::<f64>() / self.n as f64;
            ((ramp + slope / gamma * w1).min(1.0), gamma)
        };
        (0..GAMMAS).map(|i| at(gamma(i))).fold((1.0, scale), |best, new| if new.0 < best.0 { new } else { best })
    }

    fn own(&self, own: &Tensor, on_student: &[Vec<f64>], labels: &[u32], teacher_risk: f64) -> Result<OwnHead> {
        let expected = [self.n, self.weight.len()];
        if own.dims() != expected {
            return Err(Error::Shape(format!("student logits: expected {expected:?}, found {:?}", own.dims())));
        }
        let own = rows("student logits", own)?;
        let apart = own.iter().zip(on_student).map(|(a, b)| distance(a, b)).sum::<f64>() / self.n as f64;
        let moved = (risk(on_student, labels) - teacher_risk).abs();
        Ok(OwnHead { risk: risk(&own, labels), bound: teacher_risk + moved + SQRT_2 * apart })
    }
}

fn matrix(what: &str, tensor: &Tensor) -> Result<(usize, usize)> {
    match *tensor.dims() {
        [n, d] if n * d > 0 => Ok((n, d)),
        _ => Err(Error::Shape(format!("{what}: expected a matrix with at least one entry, found {:?}", tensor.dims()))),
    }
}

fn rows(what: &str, tensor: &Tensor) -> Result<Vec<Vec<f64>>> {
    let rows: Vec<Vec<f64>> = tensor.detach().to_dtype(DType::F64)?.to_vec2()?;
    match rows.iter().position(|row| row.iter().any(|x| !x.is_finite())) {
        Some(row) => Err(Error::Value(format!("{what}: row {row} is not finite"))),
        None => Ok(rows),
    }
}

fn risk(logits: &[Vec<f64>], labels: &[u32]) -> f64 {
    let loss = |(z, &label): (&Vec<f64>, &u32)| -log_softmax(z)[label as usize];
    logits.iter().zip(labels).map(loss).sum::<f64>() / labels.len() as f64
}

/// The label's logit minus the largest other one; infinite with a single class.
fn margin(logits: &[f64], label: usize) -> f64 {
    let others = logits.iter().enumerate().filter(|(k, _)| *k != label).map(|(_, z)| *z);
    logits[label] - others.fold(f64::NEG_INFINITY, f64::max)
}

pub(crate) fn distance(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt()
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(n: usize, d: usize, f: impl Fn(usize, usize) -> f64) -> Tensor {
        let values: Vec<f64> = (0..n * d).map(|i| f(i / d, i % d)).collect();
        Tensor::from_vec(values, (n, d), &Device::Cpu).unwrap()
    }

    fn noise(i: usize, k: usize) -> f64 {
        ((i * 7919 + k * 104_729) as f64 * 0.618).sin()
    }

    fn case(shift: f64) -> (Tensor, Tensor, Vec<u32>, Tensor, Tensor) {
        let labels: Vec<u32> = (0..30).map(|i| i % 3).collect();
        let centre = |i: usize, k: usize| if i % 3 == k { 3.0 } else { 0.0 };
        let teacher = tensor(30, 4, |i, k| centre(i, k) + 0.3 * noise(i, k));
        let student = tensor(30, 4, |i, k| centre(i, k) + 0.3 * noise(i, k) + shift * noise(i + 99, k));
        let weight = tensor(3, 4, |c, k| if c == k { 1.0 } else { 0.1 * noise(c, k) });
        let bias = tensor(1, 3, |_, c| 0.1 * noise(5, c)).squeeze(0).unwrap();
        (student, teacher, labels, weight, bias)
    }

    #[test]
    fn bounds_hold_and_vanish_for_equal_networks() {
        for shift in [0.0, 0.1, 1.0, 10.0] {
            let (student, teacher, labels, weight, bias) = case(shift);
            let pair = FeaturePair { student: &student, teacher: &teacher, labels: &labels };
            let own = tensor(30, 3, noise);
            let b = Bounds::new(pair, Head { weight: &weight, bias: Some(&bias) }, Some(&own)).unwrap();
            assert!(b.ce_student_features <= b.bound_by_class + 1e-12 && b.bound_by_class <= b.bound + 1e-12);
            assert!(b.own.as_ref().unwrap().risk <= b.own.as_ref().unwrap().bound && b.error_bound <= 1.0);
            if shift == 0.0 {
                assert_eq!((b.w1_conditional, b.w2_conditional, b.paired_l1, b.paired_l2), (0.0, 0.0, 0.0, 0.0));
                assert_eq!((b.bound, b.tightness()), (b.ce_teacher_features, 1.0));
                // All margins are beyond the smallest gamma.
                assert_eq!((b.error_bound, b.error_student_features), (0.0, 0.0));
            }
        }
    }

    #[test]
    fn a_case_by_hand() {
        // One class moves by (3, 4), the other stays; the head is the identity.
        let student = Tensor::new(&[[3f64, 4.0], [1.0, 1.0]], &Device::Cpu).unwrap();
        let teacher = Tensor::new(&[[0f64, 0.0], [1.0, 1.0]], &Device::Cpu).unwrap();
        let weight = Tensor::new(&[[1f64, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
        let pair = FeaturePair { student: &student, teacher: &teacher, labels: &[0, 1] };
        let b = Bounds::new(pair, Head { weight: &weight, bias: None }, None).unwrap();
        assert!((b.w1_conditional - 2.5).abs() < 1e-15 && (b.w2_conditional - 12.5f64.sqrt()).abs() < 1e-15);
        assert!((b.lipschitz - SQRT_2).abs() < 1e-15);
        assert!((b.ce_teacher_features - 2f64.ln()).abs() < 1e-15);
        assert!((b.ce_student_features - 0.5 * (2f64.ln() + 1.0 + (1.0 + (-1f64).exp()).ln())).abs() < 1e-15);
        assert!((b.bound - (2f64.ln() + 2.5 * SQRT_2)).abs() < 1e-14);
        assert!((b.bound_paired - b.bound).abs() < 1e-14, "one sample a class has one partner");
    }

    #[test]
    fn constants_of_classes_margins_and_own_heads_by_hand() {
        // Heads (0, 0), (3, 0), (0, 4): L_0 = 4, L_1 = L_2 = 5 = G; sqrt(2) ||W|| = 4 sqrt(2).
        let weight = Tensor::new(&[[0f64, 0.0], [3.0, 0.0], [0.0, 4.0]], &Device::Cpu).unwrap();
        // One sample of class 0 moves by 1, one of class 1 by 2.
        let teacher = Tensor::new(&[[-1f64, -1.0], [2.0, 0.0]], &Device::Cpu).unwrap();
        let student = Tensor::new(&[[-2f64, -1.0], [2.0, 2.0]], &Device::Cpu).unwrap();
        let own = Tensor::new(&[[0f64, -6.0, -4.0], [6.0, 9.0, 12.0]], &Device::Cpu).unwrap();
        let pair = FeaturePair { student: &student, teacher: &teacher, labels: &[0, 1] };
        let b = Bounds::new(pair, Head { weight: &weight, bias: None }, Some(&own)).unwrap();
        let mean_loss = |rows: [[f64; 3]; 2]| {
            let loss = |z: [f64; 3], c: usize| z.iter().map(|x| x.exp()).sum::<f64>().ln() - z[c];
            0.5 * (loss(rows[0], 0) + loss(rows[1], 1))
        };
        let (on_teacher, on_student) = ([[0.0, -3.0, -4.0], [0.0, 6.0, 0.0]], [[0.0, -6.0, -4.0], [0.0, 6.0, 8.0]]);
        assert!((b.ce_teacher_features - mean_loss(on_teacher)).abs() < 1e-14);
        assert!((b.lipschitz - 4.0 * SQRT_2).abs() < 1e-13 && (b.w1_conditional - 1.5).abs() < 1e-15);
        assert!((b.bound_by_class - (b.ce_teacher_features + 0.5 * (4.0 * 1.0 + 5.0 * 2.0))).abs() < 1e-13);
        // Margins on teacher features are 3 and 6, the slope is 5 / gamma times 1.5: at best all of it counts, but no more than 1.
        let ramp = |gamma: f64| 0.5 * ((1.0 - 3.0 / gamma).clamp(0.0, 1.0) + (1.0 - 6.0 / gamma).clamp(0.0, 1.0));
        assert_eq!(b.error_bound, (ramp(b.gamma) + 7.5 / b.gamma).min(1.0));
        assert_eq!(b.error_student_features, 0.5);
        // The own head disagrees with the teacher's by (0, 0, 0) and (6, 3, 4).
        let own = b.own.unwrap();
        let apart = 0.5 * (36f64 + 9.0 + 16.0).sqrt();
        let moved = (mean_loss(on_student) - mean_loss(on_teacher)).abs();
        assert!((own.bound - (b.ce_teacher_features + moved + SQRT_2 * apart)).abs() < 1e-12);
        assert!((own.risk - mean_loss([[0.0, -6.0, -4.0], [6.0, 9.0, 12.0]])).abs() < 1e-13);
    }

    #[test]
    fn margins_far_beyond_the_gap_bound_the_error() {
        // Margins 20, a gap of 0.1 and slope sqrt(2): at gamma <= 20 the bound is sqrt(2) 0.1 / gamma.
        let weight = Tensor::new(&[[1f64, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
        let teacher = Tensor::new(&[[20f64, 0.0], [0.0, 20.0]], &Device::Cpu).unwrap();
        let student = Tensor::new(&[[20f64, 0.1], [0.1, 20.0]], &Device::Cpu).unwrap();
        let pair = FeaturePair { student: &student, teacher: &teacher, labels: &[0, 1] };
        let b = Bounds::new(pair, Head { weight: &weight, bias: None }, None).unwrap();
        // The grid of gammas has 50 points between 0.2 and 2000: one within 10 % below 20.
        assert!(b.gamma <= 20.0 && b.gamma > 18.0 - 2.0, "{}", b.gamma);
        assert!((b.error_bound - SQRT_2 * 0.1 / b.gamma).abs() < 1e-15);
    }

    #[test]
    fn borders_and_wrong_input() {
        let (student, teacher, labels, weight, bias) = case(1.0);
        let head = Head { weight: &weight, bias: Some(&bias) };
        let pair = FeaturePair { student: &student, teacher: &teacher, labels: &labels };
        let refused = |pair, head, own| Bounds::new(pair, head, own).unwrap_err().to_string();
        let short = teacher.narrow(0, 0, 29).unwrap();
        assert!(refused(FeaturePair { teacher: &short, ..pair }, head, None).contains("[29, 4]"));
        assert!(refused(FeaturePair { labels: &labels[1..], ..pair }, head, None).contains("29 labels"));
        assert!(refused(FeaturePair { labels: &[9; 30], ..pair }, head, None).contains("label 9"));
        assert!(refused(pair, Head { weight: &short, ..head }, None).contains("[3]"));
        assert!(refused(pair, head, Some(&short)).contains("student logits"));
        let nan = (&student * f64::NAN).unwrap();
        assert!(refused(FeaturePair { student: &nan, ..pair }, head, None).contains("row 0"));
        // One class: nothing can be wrong.
        let one = weight.narrow(0, 0, 1).unwrap();
        let b = Bounds::new(FeaturePair { labels: &[0; 30], ..pair }, Head { weight: &one, bias: None }, None).unwrap();
        assert_eq!((b.ce_student_features, b.error_student_features, b.error_bound), (0.0, 0.0, 0.0));
    }
}
