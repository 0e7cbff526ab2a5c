//! The bound of the risk by the joint law of features and labels.

use crate::bounds::{Data, ROUNDING, distance};
use crate::classification::log_softmax;
use crate::{Error, FeaturePair, Head, Result};
use rayon::prelude::*;
use retort_transport::{Cost, assignment};

/// Risks of the teacher's head on both networks' features, and the bound of their difference by one transport problem over
/// features and labels together (bound B2 of the derivations behind KD2M, arXiv 2504.01757).
///
/// With the ground metric `||z - z'|| + beta [c != c']` and a loss in `[0, M]` on the samples, `l(h(z), c)` is Lipschitz with
/// `max(L, M / beta)`, which is L at `beta = M / L`; within class `c` the smaller constant `L_c = max_k ||w_k - w_c||` will do. So
/// the risks differ by at most the least mean over all assignments of student to teacher samples of
/// `L_c ||z_s - z_t||` (same class) or `L ||z_s - z_t|| + M` (different ones), `L = sqrt(2) ||W||_2`.
///
/// Never above [`crate::Bounds::bound_by_class`] of the same samples, whose assignments keep the classes, nor above the risk plus
/// M. M is what was observed, the student's own losses included, so nothing is promised for other samples. It needs exact
/// assignments of all N samples: memory about `8 N^2` bytes, time up to `N^3` (2,000 samples take about a second).
#[derive(Clone, Debug, PartialEq)]
pub struct JointBound {
    /// Mean cross-entropy of the head on the teacher's features, in nats.
    pub ce_teacher_features: f64,
    /// The same on the student's features: what is bounded.
    pub ce_student_features: f64,
    /// M: the largest cross-entropy of a sample, of either network, in nats.
    pub largest_loss: f64,
    /// The bound of the risks' difference, in nats.
    pub gap: f64,
    /// `ce_teacher_features + gap`.
    pub bound: f64,
    /// W1 of the two clouds, labels left aside: bounds no risk by itself (two classes may swap places).
    pub w1_marginal: f64,
    /// `sum_c pi_c W1` of the rows of each class: never below `w1_marginal`.
    pub w1_conditional: f64,
}

impl JointBound {
    /// Computes it.
    ///
    /// # Errors
    ///
    /// Shapes or labels that do not fit, a value that is not finite, a bound below what it bounds (a defect).
    pub fn new(pair: FeaturePair<'_>, head: Head<'_>) -> Result<Self> {
        let data = Data::new(pair, head)?;
        let losses = |features: &[Vec<f64>]| -> Vec<f64> {
            let loss = |(z, label): (&Vec<f64>, &u32)| -log_softmax(z)[*label as usize];
            data.logits(features).iter().zip(data.labels).map(loss).collect()
        };
        let (student, teacher) = (losses(&data.student), losses(&data.teacher));
        let n = data.n as f64;
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / n;
        let largest_loss = student.iter().chain(&teacher).copied().fold(0.0, f64::max);
        let lipschitz = data.lipschitz();
        let cost = |apart: f64, label: u32, other: u32| match label == other {
            true => data.constant_of(label as usize).min(lipschitz) * apart,
            false => lipschitz * apart + largest_loss,
        };
        let gap = data.cheapest(cost)?;
        let found = Self {
            ce_teacher_features: mean(&teacher),
            ce_student_features: mean(&student),
            largest_loss,
            gap,
            bound: mean(&teacher) + gap,
            w1_marginal: data.cheapest(|apart, _, _| apart)?,
            w1_conditional: data.w1_conditional()?,
        };
        found.check()?;
        Ok(found)
    }

    /// What the theory promises, up to rounding.
    fn check(&self) -> Result<()> {
        let ordered = [
            ("risk on student features", self.ce_student_features, "its joint bound", self.bound),
            ("marginal W1", self.w1_marginal, "conditional W1", self.w1_conditional),
        ];
        match ordered.iter().find(|(_, low, _, high)| *low > high + ROUNDING * (1.0 + high.abs())) {
            Some((what, low, than, high)) => Err(Error::Invariant(format!("{what} {low} is above {than} {high}"))),
            None => Ok(()),
        }
    }
}

impl Data<'_> {
    /// The least mean cost over all assignments of student to teacher samples; `cost` sees their distance and labels.
    fn cheapest(&self, cost: impl Fn(f64, u32, u32) -> f64 + Sync) -> Result<f64> {
        let mut costs = vec![0.0; self.n * self.n];
        costs.par_chunks_mut(self.n).zip(&self.student).zip(self.labels).for_each(|((row, s), label)| {
            for ((to, t), other) in row.iter_mut().zip(&self.teacher).zip(self.labels) {
                *to = cost(distance(s, t), *label, *other);
            }
        });
        Ok(assignment(&Cost::new(costs, self.n, self.n)?).value / self.n as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bounds;
    use candle_core::{Device, Tensor};

    fn noise(i: usize, k: usize) -> f64 {
        ((i * 7919 + k * 104_729) as f64 * 0.618).sin()
    }

    fn tensor(n: usize, d: usize, f: impl Fn(usize, usize) -> f64) -> Tensor {
        let values: Vec<f64> = (0..n * d).map(|i| f(i / d, i % d)).collect();
        Tensor::from_vec(values, (n, d), &Device::Cpu).unwrap()
    }

    #[test]
    fn between_the_risk_and_the_conditional_bound() {
        let labels: Vec<u32> = (0..24).map(|i| i % 3).collect();
        let weight = tensor(3, 4, noise);
        let head = Head { weight: &weight, bias: None };
        let teacher = tensor(24, 4, noise);
        for shift in [0.0, 0.1, 1.0, 10.0] {
            let student = tensor(24, 4, |i, k| noise(i, k) + shift * noise(i + 50, k));
            let pair = FeaturePair { student: &student, teacher: &teacher, labels: &labels };
            let (joint, bounds) = (JointBound::new(pair, head).unwrap(), Bounds::new(pair, head, None).unwrap());
            assert!((joint.ce_student_features - bounds.ce_student_features).abs() < 1e-12);
            assert!(joint.ce_student_features <= joint.bound + 1e-12 && joint.bound <= bounds.bound_by_class + 1e-9);
            assert!((joint.w1_conditional - bounds.w1_conditional).abs() < 1e-12);
            assert!(joint.w1_marginal <= joint.w1_conditional + 1e-12);
            assert!(shift > 0.0 || (joint.gap == 0.0 && joint.w1_marginal == 0.0));
        }
    }

    #[test]
    fn by_hand() {
        // The identity head on (t, 0) and (0, t), classes 0 and 1; the student swaps the two points. Moving a point to its own
        // class costs sqrt(2) sqrt(2) t = 2t (L_c = sqrt(2)), taking the other class's M = ln(1 + e^t).
        for (t, expected) in [(0.1, 0.2), (10.0, (1.0 + 10f64.exp()).ln())] {
            let teacher = Tensor::new(&[[t, 0.0], [0.0, t]], &Device::Cpu).unwrap();
            let student = Tensor::new(&[[0.0, t], [t, 0.0]], &Device::Cpu).unwrap();
            let weight = Tensor::new(&[[1.0f64, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
            let pair = FeaturePair { student: &student, teacher: &teacher, labels: &[0, 1] };
            let found = JointBound::new(pair, Head { weight: &weight, bias: None }).unwrap();
            assert!((found.largest_loss - (1.0 + f64::exp(t)).ln()).abs() < 1e-12);
            assert!((found.gap - expected).abs() < 1e-9, "{found:?}");
            // As clouds the two are equal.
            assert!(found.w1_marginal == 0.0 && (found.w1_conditional - 2f64.sqrt() * t).abs() < 1e-12);
        }
    }
}
