//! Distances between the laws of student and teacher features (KD2M; Fernandes Montesuma 2025, arXiv 2504.01757).
//!
//! For a batch of images, `x_i` and `y_j` are the embeddings of student and teacher, the vectors that the classifiers read.
//! They depend on the two sets of rows only, not on which row of one belongs to which row of the other; [`paired_l2`], the
//! baseline, and [`sinkhorn_logits`], between the class probabilities of one sample, are the exceptions.
//! Gradients are written down, in f64; nothing is differentiated through the iterations of a solver.

mod density_ratio;
mod discrepancy;
mod entropic;
mod exact;
mod gromov;
mod kernel;
mod matching;
mod moments;
mod paired;
mod sliced;

pub use density_ratio::cdre_softplus;
pub use discrepancy::Discrepancy;
pub use entropic::{
    Entropic, GroundCost, SinkhornConfig, SinkhornDivergenceConfig, SinkhornLogitsConfig, sinkhorn,
    sinkhorn_divergence, sinkhorn_logits,
};
pub use exact::{
    CostScale, LabelCost, LabelCostKind, Reduction, W1EmpiricalConfig, W2ConditionalConfig, W2EmpiricalConfig,
    W2JointConfig, w1, w2, w2_conditional, w2_joint,
};
pub use gromov::{GromovWassersteinConfig, Inner, gromov_wasserstein, gromov_wasserstein_at};
pub use kernel::{
    Bandwidth, BandwidthRule, EnergyDistanceConfig, Estimator, Kernel, MmdConditionalConfig, MmdConfig,
    energy_distance, mmd, mmd_conditional,
};
pub use matching::{COEFFICIENT, Coefficient, Matching, Regressor};
pub use moments::{
    CoralConfig, Covariance, Direction, GaussianKlConfig, GaussianW2Config, GaussianW2DiagConfig, SecondMoment, coral,
    frechet, gaussian_kl, gaussian_w2, gaussian_w2_diag,
};
pub use paired::{PairedL2Config, paired_l2};
pub use sliced::{
    MaxSlicedW2Config, SlicedCramerConfig, SlicedW2Config, max_sliced_w2, random_directions, sliced_cramer, sliced_w2,
};

use crate::config::{Family, Inputs, MethodInfo, Side};

/// What the methods of this family have in common; those that the paper's code does not have name their own source.
const KD2M: MethodInfo = MethodInfo {
    id: "",
    title: "",
    family: Family::Distribution,
    paper: Some("KD2M: A unifying framework for feature knowledge distillation"),
    year: Some(2025),
    arxiv: Some("2504.01757"),
    inputs: Inputs { embedding: Side::Both, ..Inputs::NONE },
    trainable: &[],
    phase: None,
    state: &["coefficient of the first batch", "number of steps"],
    buffers: &[],
    ce_weight: Some(1.0),
    weight: WEIGHT,
    code_bases: &["eddardd/kddm"],
};

/// Times the first batch's distance; the reference multiplies every distance by 1e-4, whatever its scale.
const WEIGHT: f64 = 0.1;
