//! Kullback-Leibler divergence of Gaussians.

use super::Gaussian;
use crate::linalg::{product, solve_upper, solve_upper_transposed, transposed, transposed_product};
use crate::moments::Centred;
use crate::{Distance, Error, Points, Result, checks};

/// Which covariance the Gaussians have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KlCovariance {
    /// Variances only, with `reg` placed as in KD2M's code.
    #[default]
    Diagonal,
    /// Variances only, each plus `reg`: the full form of independent coordinates, 0 for equal clouds whatever `reg` is, and
    /// finite with `reg > 0`.
    Variances,
    /// The whole covariance plus `reg I`.
    Full,
}

/// Which divergence is the value; `x` is the student, `y` the teacher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KlDirection {
    /// `KL(student || teacher)`.
    #[default]
    StudentTeacher,
    /// `KL(teacher || student)`.
    TeacherStudent,
    /// The sum of both.
    Jeffreys,
}

/// Options of [`gaussian_kl`]. The defaults are those of KD2M's code.
#[derive(Clone, Debug, PartialEq)]
pub struct GaussianKlOptions {
    /// Which covariance.
    pub covariance: KlCovariance,
    /// Which divergence.
    pub direction: KlDirection,
    /// Added to standard deviations (diagonal) or to variances (variances, full), >= 0. With 1e-9 a coordinate that is constant on
    /// one side gives values around 1e18: 1e-3 to 1e-2 of the mean deviation is safer.
    pub reg: f64,
}

impl Default for GaussianKlOptions {
    fn default() -> Self {
        Self { covariance: KlCovariance::Diagonal, direction: KlDirection::StudentTeacher, reg: 1e-9 }
    }
}

/// The divergence of two Gaussians.
#[derive(Clone, Debug, PartialEq)]
pub struct GaussianKl {
    /// The divergence in the chosen direction, with its gradients.
    pub distance: Distance,
    /// `KL(student || teacher)`; not finite where only the other direction is defined.
    pub student_teacher: f64,
    /// `KL(teacher || student)`; not finite where only the other direction is defined.
    pub teacher_student: f64,
}

/// The Kullback-Leibler divergence between the Gaussians with the (biased) moments of two clouds.
///
/// Full, with `A = Cov(a) + reg I`, `B = Cov(b) + reg I`:
/// `KL(a || b) = 1/2 [tr(B^-1 A) + (m_b - m_a)' B^-1 (m_b - m_a) - d + log det B - log det A]`, from Cholesky factors.
/// [`KlCovariance::Variances`] is the same with the diagonals of A and B.
/// [`KlCovariance::Diagonal`], with standard deviations `s` and `r = reg`:
/// `1/2 [sum (s_a / (s_b + r))^2 + sum ((m_a - m_b) / (s_b + r))^2 - d + 2 sum log(s_b / (s_a + r))]`.
///
/// # Shapes
///
/// `x` (student): `[n, d]`, `y` (teacher): `[m, d]`.
///
/// # Gradient
///
/// Full: `dKL(a || b)/da_i = (1/n) [B^-1 g + (B^-1 - A^-1)(a_i - m_a)]` and
/// `dKL(a || b)/db_j = (1/m) [-B^-1 g + (B^-1 - B^-1 (A + g g') B^-1)(b_j - m_b)]`, `g = m_a - m_b`.
/// Diagonal: through the formula above; the derivative of a standard deviation of 0 is defined as 0.
///
/// # Errors
///
/// Different widths; `reg` negative; full: a covariance that is not positive definite; diagonal: a chosen divergence
/// that is infinite because a coordinate is constant; a result that overflows.
///
/// Source: E. Fernandes Montesuma, "KD2M: A unifying framework for feature knowledge distillation", 2025, arXiv
/// 2504.01757.
///
/// # Example
///
/// ```
/// use retort_transport::{GaussianKlOptions, Points, gaussian_kl};
/// let x = Points::new("student", &[-1.0, 1.0], 1)?; // mean 0, deviation 1
/// let y = Points::new("teacher", &[-1.0, 3.0], 1)?; // mean 1, deviation 2
/// let found = gaussian_kl(x, y, &GaussianKlOptions { reg: 0.0, ..GaussianKlOptions::default() })?;
/// let by_hand = 0.5 * (0.25 + 0.25 - 1.0) + 2f64.ln();
/// assert!((found.student_teacher - by_hand).abs() < 1e-15);
/// assert_eq!(found.distance.value, found.student_teacher);
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn gaussian_kl(x: Points<'_>, y: Points<'_>, options: &GaussianKlOptions) -> Result<GaussianKl> {
    checks::not_negative("reg", options.reg)?;
    x.same_width(&y)?;
    match options.covariance {
        KlCovariance::Diagonal | KlCovariance::Variances => diagonal(x, y, options),
        KlCovariance::Full => full(x, y, options),
    }
}

/// Both directions by name and whether they are part of the value.
fn wanted(direction: KlDirection) -> (bool, bool) {
    (direction != KlDirection::TeacherStudent, direction != KlDirection::StudentTeacher)
}

fn full(x: Points<'_>, y: Points<'_>, options: &GaussianKlOptions) -> Result<GaussianKl> {
    const METRIC: &str = "gaussian-kl";
    let (a, b) = (Gaussian::new(x, true, options.reg), Gaussian::new(y, true, options.reg));
    a.definite(METRIC, x.name())?;
    b.definite(METRIC, y.name())?;
    let gap = a.cloud.mean_minus(&b.cloud);
    let back: Vec<f64> = gap.iter().map(|g| -g).collect();
    let (there, back) = (Divergence::new(&a, &b, gap), Divergence::new(&b, &a, back));
    let mut distance =
        Distance { value: 0.0, grad_x: vec![0.0; x.values().len()], grad_y: vec![0.0; y.values().len()] };
    let (student_teacher, teacher_student) = wanted(options.direction);
    if student_teacher {
        distance.value += there.value;
        there.add_gradients(&a, &b, &mut distance.grad_x, &mut distance.grad_y);
    }
    if teacher_student {
        distance.value += back.value;
        back.add_gradients(&b, &a, &mut distance.grad_y, &mut distance.grad_x);
    }
    let distance = checks::finite(METRIC, distance)?;
    Ok(GaussianKl { distance, student_teacher: there.value, teacher_student: back.value })
}

/// `KL(a || b)` with `B = R' R`.
struct Divergence {
    value: f64,
    /// `R'^-1 R_a'`, lower triangular.
    k: Vec<f64>,
    /// `R'^-1 (m_a - m_b)`.
    q: Vec<f64>,
}

impl Divergence {
    fn new(a: &Gaussian, b: &Gaussian, gap: Vec<f64>) -> Self {
        let d = a.cloud.width;
        let (mut k, mut q) = (transposed(&a.root, d), gap);
        solve_upper_transposed(&b.root, d, &mut k);
        solve_upper_transposed(&b.root, d, &mut q);
        // tr(K K') - d - log det(K K'), term by term: none is negative, and close clouds don't cancel.
        let terms = k.iter().enumerate().map(|(at, k)| {
            let above_one = k * k - 1.0;
            if at / d == at % d { above_one - above_one.ln_1p() } else { k * k }
        });
        let value = 0.5 * (terms.sum::<f64>() + q.iter().map(|q| q * q).sum::<f64>());
        Self { value, k, q }
    }

    fn add_gradients(&self, a: &Gaussian, b: &Gaussian, grad_a: &mut [f64], grad_b: &mut [f64]) {
        let d = a.cloud.width;
        let mut by_mean = self.q.clone();
        solve_upper(&b.root, d, &mut by_mean);

        let points = transposed(&a.cloud.rows, d);
        let own = solved(&a.root, d, &points);
        let pull: Vec<f64> = solved(&b.root, d, &points).iter().zip(own).map(|(other, own)| other - own).collect();
        add(grad_a, &by_mean, &pull, a.cloud.n);

        // (I - K K' - q q') R'^-1 (b_j - m_b), then R^-1.
        let mut points = transposed(&b.cloud.rows, d);
        solve_upper_transposed(&b.root, d, &mut points);
        let m = b.cloud.n;
        let inner = product(&self.k, d, &transposed_product(&self.k, d, &points, m), m);
        let along = transposed_product(&self.q, 1, &points, m);
        for (row, (inner, q)) in points.chunks_exact_mut(m).zip(inner.chunks_exact(m).zip(&self.q)) {
            row.iter_mut().zip(inner.iter().zip(&along)).for_each(|(p, (inner, along))| *p -= inner + q * along);
        }
        solve_upper(&b.root, d, &mut points);
        by_mean.iter_mut().for_each(|g| *g = -*g);
        add(grad_b, &by_mean, &points, m);
    }
}

/// `(R' R)^-1 B`.
fn solved(root: &[f64], d: usize, b: &[f64]) -> Vec<f64> {
    let mut out = b.to_vec();
    solve_upper_transposed(root, d, &mut out);
    solve_upper(root, d, &mut out);
    out
}

/// Adds `(by_mean + pull_i) / n`, `pull`: `[d, n]`.
fn add(grad: &mut [f64], by_mean: &[f64], pull: &[f64], n: usize) {
    for (i, row) in grad.chunks_exact_mut(by_mean.len()).enumerate() {
        for (c, (g, mean)) in row.iter_mut().zip(by_mean).enumerate() {
            *g += (mean + pull[c * n + i]) / n as f64;
        }
    }
}

fn diagonal(x: Points<'_>, y: Points<'_>, options: &GaussianKlOptions) -> Result<GaussianKl> {
    let (name_x, name_y) = (x.name(), y.name());
    let (x, y) = (Centred::new(x), Centred::new(y));
    // Either a part of the variances, or beside the deviations where the formula divides by them.
    let (inside, beside) =
        if options.covariance == KlCovariance::Variances { (options.reg, 0.0) } else { (0.0, options.reg) };
    let deviations = |cloud: &Centred| -> Vec<f64> {
        cloud.squares().iter().map(|sum| (sum / cloud.n as f64 + inside).sqrt()).collect()
    };
    let (s_x, s_y) = (deviations(&x), deviations(&y));
    let gap = x.mean_minus(&y);
    let mut slopes = Slopes::new(x.width);
    let (student_teacher, teacher_student) = wanted(options.direction);
    let there = slopes.add([&s_x, &s_y], &gap, beside, student_teacher);
    slopes.swap();
    let back = slopes.add([&s_y, &s_x], &gap, beside, teacher_student);
    slopes.swap();
    for (wanted, value) in [(student_teacher, there), (teacher_student, back)] {
        if wanted && !value.is_finite() {
            let constant = |s: &[f64]| s.iter().position(|s| *s == 0.0);
            let found = constant(&s_x).map(|c| (name_x, c)).or(constant(&s_y).map(|c| (name_y, c)));
            let reason = match found {
                Some((name, c)) => {
                    format!("coordinate {c} of {name} is constant; drop it, or use another covariance with `reg`")
                }
                None => "the coordinates are so large or so small that it overflows".to_string(),
            };
            return Err(Error::Undefined(format!("gaussian-kl: the divergence is not finite: {reason}")));
        }
    }
    let value = if student_teacher { there } else { 0.0 } + if teacher_student { back } else { 0.0 };
    let back_mean: Vec<f64> = slopes.gap.iter().map(|g| -g).collect();
    let (grad_x, grad_y) = (spread(&x, &s_x, &slopes.gap, &slopes.a), spread(&y, &s_y, &back_mean, &slopes.b));
    let distance = checks::finite("gaussian-kl", Distance { value, grad_x, grad_y })?;
    Ok(GaussianKl { distance, student_teacher: there, teacher_student: back })
}

/// Derivatives of the value with respect to the difference of the means and to the standard deviations of both sides.
struct Slopes {
    gap: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
}

impl Slopes {
    fn new(d: usize) -> Self {
        Self { gap: vec![0.0; d], a: vec![0.0; d], b: vec![0.0; d] }
    }

    fn swap(&mut self) {
        std::mem::swap(&mut self.a, &mut self.b);
    }

    /// `KL(a || b)` for deviations `[s_a, s_b]`; adds its derivatives if they are wanted.
    fn add(&mut self, [s_a, s_b]: [&[f64]; 2], gap: &[f64], reg: f64, wanted: bool) -> f64 {
        let mut value = 0.0;
        for c in 0..gap.len() {
            let (a, b, wide) = (s_a[c], s_b[c], s_b[c] + reg);
            let (ratio, shift) = (a / wide, gap[c] / wide);
            value += 0.5 * (ratio * ratio + shift * shift - 1.0) + (b / (a + reg)).ln();
            if wanted {
                self.gap[c] += shift / wide;
                self.a[c] += ratio / wide - 1.0 / (a + reg);
                self.b[c] += 1.0 / b - (ratio * ratio + shift * shift) / wide;
            }
        }
        value
    }
}

/// What the derivatives with respect to mean and deviation pass to each point.
fn spread(cloud: &Centred, deviations: &[f64], by_mean: &[f64], by_deviation: &[f64]) -> Vec<f64> {
    let n = cloud.n as f64;
    let stretch: Vec<f64> =
        deviations.iter().zip(by_deviation).map(|(s, g)| if *s == 0.0 { 0.0 } else { g / s }).collect();
    let one = |(x, (mean, stretch)): (&f64, (&f64, &f64))| (mean + stretch * x) / n;
    cloud.rows.chunks_exact(cloud.width).flat_map(|row| row.iter().zip(by_mean.iter().zip(&stretch)).map(one)).collect()
}
