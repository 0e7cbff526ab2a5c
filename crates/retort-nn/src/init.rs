//! Initial values of parameters.

use crate::{Error, Result, Seed};
use candle_core::{DType, Device, Tensor};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};

/// More entries than any layer here has; a larger request is a slip, not a tensor to allocate. They are drawn in f64, 2
/// GiB.
const MAX_ELEMENTS: usize = 1 << 28;

/// A rule for the initial values of one tensor.
///
/// `fan_in` is the number of inputs of one output unit (`C_in / groups * k_h * k_w`), `fan_out` the
/// number of outputs of one input unit, not divided by groups, as in the reference code bases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Every entry has this value.
    Constant(f64),
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Half width of the interval, >= 0.
        bound: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation, >= 0.
        std: f64,
    },
    /// He et al. 2015 (arXiv 1502.01852): `N(0, 2 / fan_out)`, `fan_out = C_out * k_h * k_w`.
    KaimingNormalFanOut,
    /// He et al. 2015: `N(0, 2 / fan_in)`.
    KaimingNormalFanIn,
    /// PyTorch's default for weights of convolutions and linear layers: uniform with bound `1 / sqrt(fan_in)`.
    PyTorch,
}

/// Inputs of one output unit: the product of all dimensions but the first.
#[must_use]
pub fn fan_in(shape: &[usize]) -> usize {
    shape.iter().skip(1).fold(1, |product, &n| product.saturating_mul(n))
}

/// Number of entries of `shape`, unless it is absurd: also a dimension of 0 does not excuse the others.
pub(crate) fn check_size(shape: &[usize]) -> Result<usize> {
    let most = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n.max(1)));
    match most.filter(|&n| n <= MAX_ELEMENTS) {
        Some(count) => Ok(if shape.contains(&0) { 0 } else { count }),
        None => {
            Err(Error::invalid("weight", format!("a tensor of shape {shape:?} has more than {MAX_ELEMENTS} entries")))
        }
    }
}

impl Init {
    /// PyTorch's default for the bias that belongs to a weight of `weight_shape`: uniform with bound
    /// `1 / sqrt(fan_in)`.
    #[must_use]
    pub fn pytorch_bias(weight_shape: &[usize]) -> Self {
        Self::Uniform { bound: 1.0 / (fan_in(weight_shape).max(1) as f64).sqrt() }
    }

    /// Draws a tensor of `shape` from the stream `seed`.
    ///
    /// The numbers are drawn in f64 and rounded once, so f32 and f64 networks start from the same point.
    ///
    /// # Errors
    ///
    /// A bound or deviation that is negative or not finite, or a tensor of more than 2^28 entries.
    pub fn draw(self, shape: &[usize], seed: Seed, dtype: DType, device: &Device) -> Result<Tensor> {
        let count = check_size(shape)?;
        let mut rng = seed.rng();
        let values: Vec<f64> = match self.resolved(shape)? {
            Self::Constant(value) => vec![value; count],
            Self::Uniform { bound } => (0..count).map(|_| bound * (2.0 * rng.random::<f64>() - 1.0)).collect(),
            Self::Normal { std } => {
                (0..count).map(|_| std * Distribution::<f64>::sample(&StandardNormal, &mut rng)).collect()
            }
            _ => unreachable!("resolved() returns the first three rules only"),
        };
        Ok(Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)
    }

    /// The same rule with its numbers worked out for `shape`.
    fn resolved(self, shape: &[usize]) -> Result<Self> {
        let fan_in = fan_in(shape).max(1) as f64;
        let outputs = shape.first().into_iter().chain(shape.iter().skip(2));
        let fan_out = outputs.fold(1, |product: usize, &n| product.saturating_mul(n)).max(1) as f64;
        let rule = match self {
            Self::KaimingNormalFanOut => Self::Normal { std: (2.0 / fan_out).sqrt() },
            Self::KaimingNormalFanIn => Self::Normal { std: (2.0 / fan_in).sqrt() },
            Self::PyTorch => Self::Uniform { bound: 1.0 / fan_in.sqrt() },
            other => other,
        };
        match rule {
            Self::Uniform { bound: x } | Self::Normal { std: x } if !(x.is_finite() && x >= 0.0) => {
                Err(Error::invalid("init", format!("spread must be finite and >= 0, found {x}")))
            }
            rule => Ok(rule),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(init: Init, shape: &[usize]) -> (f64, f64, f64) {
        let t = init.draw(shape, Seed::root(3), DType::F64, &Device::Cpu).unwrap();
        let v: Vec<f64> = t.flatten_all().unwrap().to_vec1().unwrap();
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let var = v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64;
        (mean, var.sqrt(), v.iter().fold(0.0, |m: f64, x| m.max(x.abs())))
    }

    #[test]
    fn spreads_are_those_of_the_references() {
        // 73,728 draws: the standard error of the deviations is below 2e-4, so that 1e-3 tells the rules apart.
        let shape = [64, 128, 3, 3];
        let (mean, std, _) = moments(Init::KaimingNormalFanOut, &shape);
        assert!(mean.abs() < 2e-3 && (std - (2.0f64 / (64.0 * 9.0)).sqrt()).abs() < 1e-3);
        let (_, std, _) = moments(Init::KaimingNormalFanIn, &shape);
        assert!((std - (2.0f64 / (128.0 * 9.0)).sqrt()).abs() < 1e-3);
        let (_, _, max) = moments(Init::PyTorch, &shape);
        let bound = 1.0 / (128.0f64 * 9.0).sqrt();
        assert!(max <= bound && max > 0.99 * bound);
        assert_eq!(Init::pytorch_bias(&[10, 64]), Init::Uniform { bound: 0.125 });
    }

    #[test]
    fn draws_are_pinned() {
        let draw = |init: Init| {
            let values = init.draw(&[3], Seed::root(1).child("student"), DType::F64, &Device::Cpu).unwrap();
            values.to_vec1::<f64>().unwrap()
        };
        assert_eq!(draw(Init::Normal { std: 1.0 }), [0.8730830668541392, 0.6528374712672157, 0.7438813592226706]);
        assert_eq!(draw(Init::Uniform { bound: 1.0 }), [0.8190667032376182, 0.29205635132370866, 0.5386404005187155]);
    }

    #[test]
    fn absurd_shapes_are_no_panic() {
        let rules = [Init::KaimingNormalFanOut, Init::KaimingNormalFanIn, Init::PyTorch, Init::Constant(1.0)];
        let absurd: [&[usize]; 6] = [
            &[usize::MAX, 0, 5],
            &[usize::MAX, 0, usize::MAX],
            &[0, usize::MAX, usize::MAX, 3],
            &[1 << 14, (1 << 14) + 1],
            &[17_000_000_000, 64],
            &[usize::MAX, usize::MAX],
        ];
        for rule in rules {
            for shape in absurd {
                let message = rule.draw(shape, Seed::root(0), DType::F32, &Device::Cpu).unwrap_err().to_string();
                assert!(message.contains(&format!("{shape:?} has more than 268435456 entries")), "{message}");
            }
            let none = rule.draw(&[1 << 20, 0, 5], Seed::root(0), DType::F32, &Device::Cpu).unwrap();
            assert_eq!(none.elem_count(), 0);
        }
    }

    #[test]
    fn negative_spread_is_refused() {
        assert!(Init::Normal { std: -1.0 }.draw(&[2], Seed::root(0), DType::F32, &Device::Cpu).is_err());
        assert!(Init::PyTorch.draw(&[usize::MAX, 2], Seed::root(0), DType::F32, &Device::Cpu).is_err());
        assert!(Init::Uniform { bound: f64::NAN }.draw(&[2], Seed::root(0), DType::F32, &Device::Cpu).is_err());
    }
}
