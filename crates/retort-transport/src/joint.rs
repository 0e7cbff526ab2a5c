//! Transport that pays for features and labels at once.

use crate::classes::check_labels;
use crate::cost::pairwise;
use crate::wasserstein::pull;
use crate::{Cost, Distance, Error, Plan, Points, Result, Transport, TransportOptions, checks, uniform_transport};

/// What it costs to move a point to one with another label; x is the student's side, y the teacher's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LabelCost<'a> {
    /// `||e_l - e_l'||^2`, which is 2 where the labels differ.
    OneHotSq {
        /// A label for each point of x.
        x: &'a [u32],
        /// A label for each point of y.
        y: &'a [u32],
    },
    /// `||z_i - z'_j||^2` between logits.
    LogitsSq {
        /// Logits of each point of x.
        x: Points<'a>,
        /// Logits of each point of y.
        y: Points<'a>,
    },
    /// `||p_i - p'_j||^2` between the softmax of logits at temperature 1.
    ProbsSq {
        /// Logits of each point of x.
        x: Points<'a>,
        /// Logits of each point of y.
        y: Points<'a>,
    },
    /// `KL(p_i || p'_j)` between the softmax of logits at temperature 1, the student first.
    Kl {
        /// Logits of each point of x.
        x: Points<'a>,
        /// Logits of each point of y.
        y: Points<'a>,
    },
}

/// How the feature costs are scaled before the label costs are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FeatureScale {
    /// Not at all.
    None,
    /// Divided by their maximum, a constant in the gradient; left alone if all points are equal.
    #[default]
    Max,
}

/// Options of [`w2_joint`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JointOptions {
    /// Weight of the label costs, >= 0.
    pub beta: f64,
    /// Scale of the feature costs.
    pub scale: FeatureScale,
}

impl Default for JointOptions {
    fn default() -> Self {
        Self { beta: 1.0, scale: FeatureScale::Max }
    }
}

/// A distance between points with labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Joint {
    /// Value and gradients with respect to the features.
    pub distance: Distance,
    /// Derivative with respect to the logits of x; empty for hard labels.
    pub grad_logits_x: Vec<f64>,
    /// Derivative with respect to the logits of y; empty for hard labels.
    pub grad_logits_y: Vec<f64>,
    /// `<P, s D2>`, the scaled feature cost.
    pub feature_part: f64,
    /// `<P, l>`, the label cost without its weight.
    pub label_part: f64,
    /// The factor s.
    pub scale: f64,
    /// Plan, duals, and whether the solver finished.
    pub transport: Transport,
}

/// Squared 2-Wasserstein distance between points that carry labels, hard or soft.
///
/// `min_P sum_ij P_ij (s ||x_i - y_j||^2 + beta l_ij)` over plans with row sums `1/n` and column sums `1/m`, with the
/// label cost l of [`LabelCost`] and `s = 1` or `1 / max_ij ||x_i - y_j||^2`. For beta = 0 it is s times
/// [`w2`](crate::w2); for a large beta and labels that occur equally often on both sides, s times the weighted
/// [`w2_conditional`](crate::w2_conditional).
///
/// # Shapes
///
/// `x`: `[n, d]`, `y`: `[m, d]`, gradients likewise, plan `[n, m]`. Labels: n and m, or logits `[n, K]` and `[m, K]`.
///
/// # Gradients
///
/// With P and s held constant: features `2 s sum_j P_ij (x_i - y_j)`. Logits of x, with `p_i`, `p'_j` the softmax:
///
/// - logits: `2 beta sum_j P_ij (z_i - z'_j)`
/// - probabilities: `p_i .* (g_i - <p_i, g_i>)`, `g_i = 2 beta sum_j P_ij (p_i - p'_j)`
/// - KL: `beta p_i .* (q_i - <p_i, q_i>)`, `q_i = sum_j P_ij (log p_i - log p'_j)`
///
/// The squares give the teacher the same with the roles exchanged, KL gives it `beta sum_i P_ij (p'_j - p_i)`.
///
/// # Errors
///
/// Widths or numbers of rows that do not fit, a beta that is negative or not finite, costs that overflow.
///
/// # Source
///
/// The joint metric that Fernandes Montesuma 2025 (arXiv 2504.01757) intends; the published code takes the feature costs
/// between the student and itself.
///
/// # Example
///
/// ```
/// use retort_transport::{FeatureScale, JointOptions, LabelCost, Points, w2_joint};
/// let x = Points::new("student", &[0.0, 5.0], 1)?;
/// let y = Points::new("teacher", &[6.0, 2.0], 1)?;
/// let labels = LabelCost::OneHotSq { x: &[0, 1], y: &[0, 1] };
/// let w = w2_joint(x, y, labels, &JointOptions { beta: 100.0, scale: FeatureScale::None })?;
/// assert_eq!((w.distance.value, w.feature_part, w.label_part), (22.5, 22.5, 0.0));
/// # Ok::<(), retort_transport::Error>(())
/// ```
pub fn w2_joint(x: Points<'_>, y: Points<'_>, labels: LabelCost<'_>, options: &JointOptions) -> Result<Joint> {
    checks::not_negative("beta", options.beta)?;
    let soft = labels.soft(x, y)?;
    let features = Cost::squared_euclidean(x, y)?;
    let label_costs = labels.costs(soft.as_ref())?;
    let scale = match options.scale {
        FeatureScale::None => 1.0,
        FeatureScale::Max => Some(1.0 / features.largest()).filter(|s| s.is_finite()).unwrap_or(1.0),
    };
    let total = features.values().iter().zip(label_costs.values()).map(|(f, l)| scale * f + options.beta * l).collect();
    let cost = Cost::finite(&format!("joint cost between {} and {}", x.name(), y.name()), total, x.len(), y.len())?;

    let transport = uniform_transport(&cost, &TransportOptions::default());
    let plan = &transport.plan;
    let feature_part = scale * plan.total_cost(&features);
    let label_part = plan.total_cost(&label_costs);
    let (grad_x, grad_y) = pull(x, y, plan, |_, _, difference| 2.0 * scale * difference);
    let (grad_logits_x, grad_logits_y) = match &soft {
        Some(soft) => labels.gradients(soft, plan, options.beta),
        None => (Vec::new(), Vec::new()),
    };
    let value = feature_part + options.beta * label_part;
    let distance = checks::finite("w2-joint", Distance { value, grad_x, grad_y })?;
    Ok(Joint { distance, grad_logits_x, grad_logits_y, feature_part, label_part, scale, transport })
}

/// Both sides' logits with their softmax and its logarithm.
struct Soft<'a> {
    x: Points<'a>,
    y: Points<'a>,
    /// Pairs `(p, log p)`.
    p_x: Vec<(f64, f64)>,
    p_y: Vec<(f64, f64)>,
}

impl<'a> LabelCost<'a> {
    /// Checks the labels against the points; soft labels come back with their softmax.
    fn soft(&self, x: Points<'_>, y: Points<'_>) -> Result<Option<Soft<'a>>> {
        match *self {
            Self::OneHotSq { x: labels_x, y: labels_y } => {
                check_labels(x, labels_x)?;
                check_labels(y, labels_y)?;
                Ok(None)
            }
            Self::LogitsSq { x: z, y: t } | Self::ProbsSq { x: z, y: t } | Self::Kl { x: z, y: t } => {
                z.same_width(&t)?;
                for (points, logits) in [(x, z), (y, t)] {
                    if points.len() != logits.len() {
                        let (expected, found) = (format!("{} rows", points.len()), logits.len().to_string());
                        return Err(Error::Shape { what: logits.name().into(), expected, found });
                    }
                }
                Ok(Some(Soft { x: z, y: t, p_x: softmax(z), p_y: softmax(t) }))
            }
        }
    }

    /// The matrix l.
    fn costs(&self, soft: Option<&Soft<'_>>) -> Result<Cost> {
        let soft = match (self, soft) {
            (Self::OneHotSq { x, y }, _) => {
                let differ = x.iter().flat_map(|a| y.iter().map(move |b| if a == b { 0.0 } else { 2.0 }));
                return Cost::new(differ.collect(), x.len(), y.len());
            }
            (_, soft) => soft.expect("soft labels come with their softmax"),
        };
        let (x, y, width) = (soft.x, soft.y, soft.x.width());
        let [p_x, p_y] = [&soft.p_x, &soft.p_y].map(|p| p.iter().map(|p| p.0).collect::<Vec<_>>());
        let values = match self {
            Self::ProbsSq { .. } => pairwise(&p_x, &p_y, width, |p, q| (p - q) * (p - q)),
            Self::Kl { .. } => {
                let log_y: Vec<f64> = soft.p_y.iter().map(|p| p.1).collect();
                pairwise(&soft.p_x, &log_y, width, |(p, log_p), log_q| p * (log_p - log_q))
            }
            _ => return Cost::squared_euclidean(x, y),
        };
        Cost::finite(&format!("label cost between {} and {}", x.name(), y.name()), values, x.len(), y.len())
    }

    /// Derivatives of `beta <P, l>` with respect to both sides' logits.
    fn gradients(&self, soft: &Soft<'_>, plan: &Plan, beta: f64) -> (Vec<f64>, Vec<f64>) {
        if matches!(self, Self::LogitsSq { .. }) {
            return pull(soft.x, soft.y, plan, |_, _, difference| 2.0 * beta * difference);
        }
        let width = soft.x.width();
        let (mut grad_x, mut grad_y) = (vec![0.0; soft.p_x.len()], vec![0.0; soft.p_y.len()]);
        let kl = matches!(self, Self::Kl { .. });
        for &(i, j, mass) in plan.entries() {
            let weight = beta * mass;
            let (p, q) = (&soft.p_x[i * width..][..width], &soft.p_y[j * width..][..width]);
            let (grad_x, grad_y) = (&mut grad_x[i * width..][..width], &mut grad_y[j * width..][..width]);
            for k in 0..width {
                let difference = p[k].0 - q[k].0;
                grad_x[k] += weight * if kl { p[k].1 - q[k].1 } else { 2.0 * difference };
                grad_y[k] -= weight * if kl { difference } else { 2.0 * difference };
            }
        }
        through_softmax(&mut grad_x, &soft.p_x, width);
        // The teacher's derivative of KL is already one with respect to logits.
        if !kl {
            through_softmax(&mut grad_y, &soft.p_y, width);
        }
        (grad_x, grad_y)
    }
}

/// `(p, log p)` of the softmax of every row.
fn softmax(logits: Points<'_>) -> Vec<(f64, f64)> {
    let row = |row: &[f64]| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = row.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        row.iter().map(|z| z - max - log_sum).map(|log_p| (log_p.exp(), log_p)).collect::<Vec<_>>()
    };
    logits.rows().flat_map(row).collect()
}

/// Turns derivatives g with respect to probabilities into those with respect to logits: `p .* (g - <p, g>)`.
fn through_softmax(grad: &mut [f64], p: &[(f64, f64)], width: usize) {
    for (grad, p) in grad.chunks_exact_mut(width).zip(p.chunks_exact(width)) {
        let along: f64 = grad.iter().zip(p).map(|(g, p)| g * p.0).sum();
        grad.iter_mut().zip(p).for_each(|(g, p)| *g = p.0 * (*g - along));
    }
}
