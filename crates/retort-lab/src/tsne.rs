//! t-SNE of a few hundred points (van der Maaten and Hinton 2008), in its exact form: the same bits every time.

/// Steps, and those of them with exaggerated attraction.
const STEPS: usize = 750;
const EARLY: usize = 250;
const EXAGGERATION: f64 = 12.0;
/// Spread of the starting points along the first axis.
const START: f64 = 1e-4;

/// Places points in the plane so that near ones stay near; `squares` are their squared distances, `[n, n]`, `start` any first
/// placing (its scale does not matter). `perplexity` is the effective number of neighbours, smaller than n.
pub(crate) fn tsne(squares: &[f64], start: &[(f64, f64)], perplexity: f64) -> Vec<(f64, f64)> {
    let n = start.len();
    if n < 2 {
        return start.to_vec();
    }
    let p = joint(squares, n, perplexity.min((n - 1) as f64));
    let mut y = scaled(start);
    let (mut velocity, mut gains) = (vec![(0.0, 0.0); n], vec![(1.0f64, 1.0f64); n]);
    let rate = (n as f64 / EXAGGERATION / 4.0).max(50.0);
    for step in 0..STEPS {
        let (exaggeration, momentum) = if step < EARLY { (EXAGGERATION, 0.5) } else { (1.0, 0.8) };
        let gradient = gradient(&p, &y, exaggeration);
        for i in 0..n {
            let (g, v, gain) = (gradient[i], &mut velocity[i], &mut gains[i]);
            let adapted =
                |gain: f64, g: f64, v: f64| if (g > 0.0) == (v > 0.0) { (gain * 0.8).max(0.01) } else { gain + 0.2 };
            *gain = (adapted(gain.0, g.0, v.0), adapted(gain.1, g.1, v.1));
            *v = (momentum * v.0 - rate * gain.0 * g.0, momentum * v.1 - rate * gain.1 * g.1);
            y[i] = (y[i].0 + v.0, y[i].1 + v.1);
        }
    }
    y
}

fn scaled(start: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let n = start.len() as f64;
    let mean = start.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0 / n, sum.1 + p.1 / n));
    let spread = (start.iter().map(|p| (p.0 - mean.0).powi(2)).sum::<f64>() / n).sqrt();
    let factor = if spread > 0.0 { START / spread } else { 1.0 };
    start.iter().map(|p| ((p.0 - mean.0) * factor, (p.1 - mean.1) * factor)).collect()
}

/// Symmetric neighbour probabilities, `[n, n]`, with sum 1.
fn joint(squares: &[f64], n: usize, perplexity: f64) -> Vec<f64> {
    let mut p = vec![0.0; n * n];
    for (i, row) in p.chunks_exact_mut(n).enumerate() {
        neighbours(&squares[i * n..][..n], i, perplexity, row);
    }
    (0..n * n).map(|k| ((p[k] + p[k % n * n + k / n]) / (2 * n) as f64).max(1e-12)).collect()
}

/// `exp(-beta d)` with the beta that gives the perplexity, by bisection.
fn neighbours(squares: &[f64], own: usize, perplexity: f64, row: &mut [f64]) {
    let nearest = squares.iter().enumerate().filter(|(j, _)| *j != own).map(|(_, d)| *d).fold(f64::INFINITY, f64::min);
    let (mut low, mut high, mut beta) = (0.0, f64::INFINITY, 1.0);
    for _ in 0..100 {
        let weight = |(j, d): (usize, &f64)| if j == own { 0.0 } else { (-beta * (d - nearest)).exp() };
        row.iter_mut().zip(squares.iter().enumerate().map(weight)).for_each(|(to, w)| *to = w);
        let total: f64 = row.iter().sum();
        let mean = row.iter().zip(squares).map(|(w, d)| w * (d - nearest)).sum::<f64>() / total;
        row.iter_mut().for_each(|w| *w /= total);
        let entropy = total.ln() + beta * mean;
        if (entropy - perplexity.ln()).abs() < 1e-5 {
            break;
        }
        if entropy > perplexity.ln() {
            low = beta;
            beta = if high.is_finite() { 0.5 * (low + high) } else { 2.0 * beta };
        } else {
            high = beta;
            beta = 0.5 * (low + high);
        }
    }
}

/// `4 sum_j (e p_ij - q_ij) (y_i - y_j) / (1 + |y_i - y_j|^2)`.
fn gradient(p: &[f64], y: &[(f64, f64)], exaggeration: f64) -> Vec<(f64, f64)> {
    let near = |a: (f64, f64), b: (f64, f64)| 1.0 / (1.0 + (a.0 - b.0).powi(2) + (a.1 - b.1).powi(2));
    let total: f64 = y.iter().map(|&a| y.iter().map(|&b| near(a, b)).sum::<f64>() - 1.0).sum::<f64>().max(1e-300);
    let pull = |(i, &a): (usize, &(f64, f64))| {
        y.iter().zip(&p[i * y.len()..]).fold((0.0, 0.0), |sum, (&b, p)| {
            let w = near(a, b);
            let force = 4.0 * (exaggeration * p - w / total) * w;
            (sum.0 + force * (a.0 - b.0), sum.1 + force * (a.1 - b.1))
        })
    };
    y.iter().enumerate().map(pull).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_have_the_perplexity() {
        let squares: Vec<f64> = (0..30).map(|j| (j as f64).powi(2)).collect();
        let mut row = vec![0.0; 30];
        neighbours(&squares, 0, 7.0, &mut row);
        let entropy: f64 = row.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        assert!((entropy.exp() - 7.0).abs() < 1e-3 && row[0] == 0.0);
    }

    #[test]
    fn the_gradient_is_that_of_the_divergence() {
        let squares: Vec<f64> = (0..25).map(|k| ((k / 5) as f64 - (k % 5) as f64).powi(2)).collect();
        let p = joint(&squares, 5, 2.0);
        let y: Vec<(f64, f64)> = (0..5).map(|i| ((i as f64 * 1.3).sin(), (i as f64 * 0.7).cos())).collect();
        let divergence = |y: &[(f64, f64)]| {
            let near = |i: usize, j: usize| 1.0 / (1.0 + (y[i].0 - y[j].0).powi(2) + (y[i].1 - y[j].1).powi(2));
            let pairs: Vec<(usize, usize)> = (0..25).map(|k| (k / 5, k % 5)).filter(|(i, j)| i != j).collect();
            let total: f64 = pairs.iter().map(|&(i, j)| near(i, j)).sum();
            pairs.iter().map(|&(i, j)| p[i * 5 + j] * (p[i * 5 + j] / (near(i, j) / total)).ln()).sum::<f64>()
        };
        let found = gradient(&p, &y, 1.0);
        for i in 0..5 {
            let moved = |h: f64| {
                let mut y = y.clone();
                y[i].0 += h;
                divergence(&y)
            };
            // The smallest probabilities are lifted a little, so that they do not sum to exactly 1.
            assert!((found[i].0 - (moved(1e-6) - moved(-1e-6)) / 2e-6).abs() < 1e-6);
        }
    }

    #[test]
    fn two_clouds_stay_apart_and_every_run_is_the_same() {
        let points: Vec<(f64, f64)> =
            (0..40).map(|i| ((i % 7) as f64 + if i < 20 { 0.0 } else { 100.0 }, (i % 3) as f64)).collect();
        let squares: Vec<f64> = (0..1600)
            .map(|k| (points[k / 40].0 - points[k % 40].0).powi(2) + (points[k / 40].1 - points[k % 40].1).powi(2))
            .collect();
        let placed = tsne(&squares, &points, 10.0);
        assert_eq!(placed, tsne(&squares, &points, 10.0));
        let centre = |part: &[(f64, f64)]| part.iter().map(|p| p.0).sum::<f64>() / part.len() as f64;
        let radius = |part: &[(f64, f64)]| part.iter().map(|p| (p.0 - centre(part)).abs()).fold(0.0, f64::max);
        let (a, b) = placed.split_at(20);
        assert!((centre(a) - centre(b)).abs() > radius(a) + radius(b), "{placed:?}");
        assert!(tsne(&[0.0], &[(1.0, 2.0)], 5.0) == [(1.0, 2.0)]);
        assert!(tsne(&[0.0; 9], &[(0.0, 0.0); 3], 30.0).iter().all(|p| p.0.is_finite() && p.1.is_finite()));
    }
}
