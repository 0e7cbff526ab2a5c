//! Cross-entropy of mixed inputs.

use crate::config::check;
use crate::{Result, ops};
use candle_core::Tensor;
use retort_kernels::softmax_cross_entropy;

/// Cross-entropy of inputs that show two classes: `lambda CE(z, y) + (1 - lambda) CE(z, y')`.
///
/// For mixup (Zhang et al. 2017, arXiv 1710.09412), manifold mixup (Verma et al. 2018, arXiv 1806.05236) and cutmix
/// (Yun et al. 2019, arXiv 1905.04899), where `y'` are the labels of the partners; `CE(z, y) = -(1/B) sum_b ln
/// softmax(z_b)[y_b]`.
///
/// # Shapes
///
/// `logits`: `[B, C]`, `labels` and `other_labels`: class indices (u32 or i64) `[B]`, `lambda` in
/// `0 ..= 1`. Returns a scalar.
///
/// # Gradients
///
/// `(softmax(z) - lambda onehot(y) - (1 - lambda) onehot(y')) / B`; finite for every finite input.
///
/// # Errors
///
/// Other shapes, an empty batch, labels that are no class indices or not below C, `lambda` outside of its range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let logits = Tensor::new(&[[0f32, 0.0]], &Device::Cpu)?;
/// let (labels, others) = (Tensor::new(&[1u32], &Device::Cpu)?, Tensor::new(&[0u32], &Device::Cpu)?);
/// let loss = retort_losses::output::mix_cross_entropy(&logits, &labels, &others, 0.25)?;
/// assert!((loss.to_scalar::<f32>()? - std::f32::consts::LN_2).abs() < 1e-6);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn mix_cross_entropy(logits: &Tensor, labels: &Tensor, other_labels: &Tensor, lambda: f64) -> Result<Tensor> {
    const METHOD: &str = "mix-ce";
    check::unit(METHOD, "lambda", lambda)?;
    let (b, c) = ops::logits(METHOD, "logits", logits)?;
    let first = softmax_cross_entropy(logits, &ops::class_ids(METHOD, labels, b, c)?, 0.0)?;
    let other = softmax_cross_entropy(logits, &ops::class_ids(METHOD, other_labels, b, c)?, 0.0)?;
    Ok(((first * lambda)? + (other * (1.0 - lambda))?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    const LOGITS: [[f64; 3]; 4] = [[0.3, -1.2, 2.0], [80.0, -80.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 4.0, 0.5]];

    fn labels(ids: [u32; 4]) -> Tensor {
        Tensor::new(&ids, &Device::Cpu).unwrap()
    }

    fn logits() -> Tensor {
        Tensor::new(&LOGITS, &Device::Cpu).unwrap()
    }

    #[test]
    fn value_and_gradient_follow_the_formula() {
        let (y, other, lambda) = ([2, 1, 0, 1], [0, 1, 2, 0], 0.3);
        let z = Var::from_tensor(&logits()).unwrap();
        let loss = mix_cross_entropy(&z, &labels(y), &labels(other), lambda).unwrap();
        let gradient: Vec<Vec<f64>> = loss.backward().unwrap().get(&z).unwrap().to_vec2().unwrap();
        let mut expected = 0.0;
        for (b, row) in LOGITS.iter().enumerate() {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = row.iter().map(|v| (v - largest).exp()).sum();
            let (y, other) = (y[b] as usize, other[b] as usize);
            let log = |c: usize| row[c] - largest - total.ln();
            expected -= (lambda * log(y) + (1.0 - lambda) * log(other)) / 4.0;
            for (c, &slope) in gradient[b].iter().enumerate() {
                let target = lambda * f64::from(c == y) + (1.0 - lambda) * f64::from(c == other);
                assert!((slope - (log(c).exp() - target) / 4.0).abs() < 1e-12, "{b}, {c}: {slope}");
            }
        }
        assert!((loss.to_scalar::<f64>().unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn the_ends_of_lambda_are_plain_cross_entropy() {
        let (y, other) = (labels([2, 1, 0, 1]), labels([0, 1, 2, 0]));
        let value = |loss: Tensor| loss.to_scalar::<f64>().unwrap();
        let plain = |labels: &Tensor| value(crate::output::cross_entropy(&logits(), labels).unwrap());
        assert_eq!(value(mix_cross_entropy(&logits(), &y, &other, 1.0).unwrap()), plain(&y));
        assert_eq!(value(mix_cross_entropy(&logits(), &y, &other, 0.0).unwrap()), plain(&other));
        let mixed = value(mix_cross_entropy(&logits(), &y, &y, 0.37).unwrap());
        assert!((mixed - plain(&y)).abs() < 1e-12);
    }

    #[test]
    fn wrong_arguments_are_errors() {
        let right = labels([0, 1, 2, 0]);
        for lambda in [-0.1, 1.5, f64::NAN] {
            let error = mix_cross_entropy(&logits(), &right, &right, lambda).unwrap_err().to_string();
            assert!(error.contains("lambda"), "{error}");
        }
        let high = labels([0, 1, 3, 0]);
        assert!(
            mix_cross_entropy(&logits(), &right, &high, 0.5).unwrap_err().to_string().contains("label 3 is no class")
        );
        assert!(mix_cross_entropy(&logits(), &high, &right, 0.5).is_err());
        let soft = right.to_dtype(DType::F32).unwrap();
        assert!(mix_cross_entropy(&logits(), &right, &soft, 0.5).is_err());
        let short = right.narrow(0, 0, 3).unwrap();
        assert!(mix_cross_entropy(&logits(), &right, &short, 0.5).is_err());
    }
}
