//! Accuracy and fidelity.

use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// Sums over samples of what is measured on a test set.
///
/// Fidelity as in Stanton et al. 2021, "Does knowledge distillation really work?" (arXiv 2106.05945):
/// agreement is the share of samples with equal argmax, KL is the mean of `sum_c p_t (ln p_t - ln p_s)`
/// at temperature 1 in nats. Ties of the argmax go to the first class.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Classification {
    count: usize,
    correct: usize,
    nll: f64,
    with_teacher: usize,
    agree: usize,
    kl: f64,
}

impl Classification {
    /// Nothing measured yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a batch: student logits `[B, K]`, teacher logits `[B, K]` if there is a teacher, B labels.
    ///
    /// # Errors
    ///
    /// Shapes that do not agree, labels >= K, logits that are not finite. Nothing is added then.
    pub fn update(&mut self, student: &Tensor, teacher: Option<&Tensor>, labels: &[u32]) -> Result<()> {
        let (batch, classes) =
            student.dims2().map_err(|_| Error::Shape(format!("expected logits [B, K], found {:?}", student.dims())))?;
        if labels.len() != batch {
            return Err(Error::Shape(format!("{batch} rows of logits but {} labels", labels.len())));
        }
        if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
            return Err(Error::Shape(format!("label {label} with {classes} classes")));
        }
        if let Some(teacher) = teacher
            && teacher.dims() != student.dims()
        {
            return Err(Error::Shape(format!(
                "student logits {:?} but teacher logits {:?}",
                student.dims(),
                teacher.dims()
            )));
        }
        let student = rows(student, "student")?;
        let teacher = teacher.map(|t| rows(t, "teacher")).transpose()?;
        for (i, &label) in labels.iter().enumerate() {
            let log_p = log_softmax(&student[i]);
            self.count += 1;
            self.correct += usize::from(argmax(&student[i]) == label as usize);
            self.nll -= log_p[label as usize];
            if let Some(teacher) = &teacher {
                let log_t = log_softmax(&teacher[i]);
                self.with_teacher += 1;
                self.agree += usize::from(argmax(&student[i]) == argmax(&teacher[i]));
                self.kl += log_t.iter().zip(&log_p).map(|(t, s)| t.exp() * (t - s)).sum::<f64>();
            }
        }
        Ok(())
    }

    /// Number of samples.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Share of correct predictions in `[0, 1]`; none without samples.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        mean(self.correct as f64, self.count)
    }

    /// Mean negative log-likelihood of the labels, in nats.
    #[must_use]
    pub fn nll(&self) -> Option<f64> {
        mean(self.nll, self.count)
    }

    /// Share of samples on which student and teacher predict the same class.
    #[must_use]
    pub fn agreement(&self) -> Option<f64> {
        mean(self.agree as f64, self.with_teacher)
    }

    /// Mean KL(teacher || student), in nats.
    #[must_use]
    pub fn kl(&self) -> Option<f64> {
        mean(self.kl, self.with_teacher)
    }
}

fn mean(sum: f64, count: usize) -> Option<f64> {
    (count > 0).then(|| sum / count as f64)
}

fn rows(logits: &Tensor, network: &'static str) -> Result<Vec<Vec<f64>>> {
    let rows: Vec<Vec<f64>> = logits.detach().to_dtype(DType::F64)?.to_vec2()?;
    match rows.iter().position(|row| row.iter().any(|x| !x.is_finite())) {
        Some(sample) => Err(Error::NotFinite { network, sample }),
        None => Ok(rows),
    }
}

pub(crate) fn argmax(row: &[f64]) -> usize {
    // `>` keeps the first of equal values.
    row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best })
}

pub(crate) fn log_softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() + max;
    row.iter().map(|x| x - log_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(rows: &[[f32; 3]]) -> Tensor {
        Tensor::from_iter(rows.iter().flatten().copied(), &Device::Cpu).unwrap().reshape((rows.len(), 3)).unwrap()
    }

    #[test]
    fn a_batch_by_hand() {
        let mut m = Classification::new();
        m.update(
            &tensor(&[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
            Some(&tensor(&[[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])),
            &[0, 2],
        )
        .unwrap();
        assert_eq!((m.accuracy(), m.agreement(), m.count()), (Some(0.5), Some(0.5), 2));
        let z = (1f64.exp() + 2.0).ln();
        assert!((m.nll().unwrap() - (3f64.ln() + z) / 2.0).abs() < 1e-12);
        let zt = (2f64.exp() + 2.0).ln();
        let (p0, p1) = ((-zt).exp(), (2.0 - zt).exp());
        let kl = p0 * (-zt - (1.0 - z)) + p1 * (2.0 - zt + z) + p0 * (-zt + z);
        assert!((m.kl().unwrap() - kl / 2.0).abs() < 1e-12);
    }

    #[test]
    fn batches_add_up_to_the_sample_mean() {
        let (a, b) = (tensor(&[[3.0, 1.0, 0.0], [0.0, 1.0, 0.5]]), tensor(&[[1.0, 1.5, 2.0]]));
        let mut split = Classification::new();
        split.update(&a, None, &[0, 0]).unwrap();
        split.update(&b, None, &[2]).unwrap();
        let mut whole = Classification::new();
        whole.update(&Tensor::cat(&[&a, &b], 0).unwrap(), None, &[0, 0, 2]).unwrap();
        assert_eq!(split, whole);
        assert_eq!(split.agreement(), None);
    }

    #[test]
    fn extreme_logits_stay_finite_and_bad_input_is_refused() {
        let mut m = Classification::new();
        m.update(&tensor(&[[1e4, -1e4, 0.0]]), Some(&tensor(&[[-1e4, 1e4, 0.0]])), &[1]).unwrap();
        assert!(m.kl().unwrap().is_finite() && m.nll().unwrap() == 2e4);
        let before = m.clone();
        assert!(matches!(
            m.update(&tensor(&[[f32::NAN, 0.0, 0.0]]), None, &[0]),
            Err(Error::NotFinite { sample: 0, .. })
        ));
        assert!(m.update(&tensor(&[[0.0; 3]]), None, &[3]).is_err());
        assert!(m.update(&tensor(&[[0.0; 3]]), None, &[0, 1]).is_err());
        assert!(m.update(&tensor(&[[0.0; 3]]), Some(&tensor(&[[0.0; 3], [0.0; 3]])), &[0]).is_err());
        assert_eq!(m, before);
        assert_eq!(Classification::new().accuracy(), None);
    }
}
