//! Averages over seeds.

/// Mean and spread of a few values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Number of values.
    pub n: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation (divisor n - 1); none for a single value.
    pub std: Option<f64>,
}

impl Sample {
    /// None without values.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let std = (n > 1).then(|| (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt());
        Some(Self { n, mean, std })
    }

    /// Whether the mean, taken as a difference, is larger than its spread; never with a single value.
    #[must_use]
    pub fn exceeds_spread(&self) -> bool {
        self.std.is_some_and(|std| self.mean.abs() > std)
    }
}

/// Differences between values of the same seed; seeds that only one side has are left out.
#[must_use]
pub fn paired(values: &[(u64, f64)], baseline: &[(u64, f64)]) -> Vec<f64> {
    values.iter().filter_map(|(seed, x)| baseline.iter().find(|(other, _)| other == seed).map(|(_, y)| x - y)).collect()
}

/// Spearman's rank correlation; none for fewer than two pairs or where one side is constant. Equal values share their ranks.
#[must_use]
pub fn rank_correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let ranks = |values: Vec<f64>| -> Vec<f64> {
        let below = |x: &f64| values.iter().filter(|y| *y < x).count() as f64;
        let equal = |x: &f64| values.iter().filter(|y| *y == x).count() as f64;
        values.iter().map(|x| below(x) + 0.5 * (equal(x) - 1.0)).collect()
    };
    let (x, y): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let (x, y) = (ranks(x), ranks(y));
    let middle = (pairs.len() as f64 - 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - middle) * (b - middle)).sum::<f64>();
    let scale = (product(&x, &x) * product(&y, &y)).sqrt();
    (scale > 0.0).then(|| product(&x, &y) / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let s = Sample::of(&[1.0, 2.0, 6.0]).unwrap();
        assert_eq!(s.mean, 3.0);
        assert!((s.std.unwrap() - 7f64.sqrt()).abs() < 1e-12);
        assert!(s.exceeds_spread());
        assert!(!Sample::of(&[-1.0, 2.0]).unwrap().exceeds_spread());
        let one = Sample::of(&[5.0]).unwrap();
        assert!(one.std.is_none() && !one.exceeds_spread());
        assert_eq!(Sample::of(&[]), None);
    }

    #[test]
    fn pairing_is_by_seed() {
        assert_eq!(paired(&[(2, 5.0), (1, 3.0), (3, 9.0)], &[(1, 1.0), (2, 2.0)]), [3.0, 2.0]);
    }

    #[test]
    fn ranks_are_what_counts() {
        assert_eq!(rank_correlation(&[(1.0, 2.0), (2.0, 3.0), (9.0, 100.0)]), Some(1.0));
        assert_eq!(rank_correlation(&[(1.0, 9.0), (2.0, 3.0), (9.0, -5.0)]), Some(-1.0));
        // Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: 4.5 / sqrt(4.5 * 5).
        let tied = rank_correlation(&[(1.0, 1.0), (2.0, 2.0), (2.0, 3.0), (5.0, 4.0)]).unwrap();
        assert!((tied - 4.5 / 22.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(rank_correlation(&[(1.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(rank_correlation(&[(1.0, 1.0)]), None);
    }
}
