#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod assignment;
mod certificate;
mod checks;
mod classes;
mod conditional;
mod coral;
mod cosine;
mod cost;
mod distance;
mod energy;
mod error;
mod gaussian;
mod gromov;
mod joint;
mod linalg;
pub mod line;
mod mmd;
mod moments;
mod network;
mod pairs;
mod plan;
mod points;
mod report;
mod scan;
mod sinkhorn;
mod sliced;
mod transport;
mod wasserstein;

pub use assignment::{Assignment, assignment};
pub use certificate::Certificate;
pub use classes::ClassReduction;
pub use conditional::{Conditional, w2_conditional};
pub use coral::{CoralMatrix, CoralOptions, coral};
pub use cost::Cost;
pub use distance::Distance;
pub use energy::energy_distance;
pub use error::{Error, Result};
pub use gaussian::{
    GaussianKl, GaussianKlOptions, GaussianW2, GaussianW2Options, KlCovariance, KlDirection, frechet, gaussian_kl,
    gaussian_w2, gaussian_w2_diag,
};
pub use gromov::{
    GromovOptions, GromovWasserstein, InnerDistance, gromov_wasserstein, gromov_wasserstein_at,
    gromov_wasserstein_weighted,
};
pub use joint::{FeatureScale, Joint, JointOptions, LabelCost, w2_joint};
pub use mmd::{Bandwidth, ConditionalMmd, Kernel, Mmd, MmdOptions, mmd, mmd_conditional};
pub use pairs::Estimator;
pub use plan::Plan;
pub use points::Points;
pub use report::Convergence;
pub use sinkhorn::{
    Regularisation, Sinkhorn, SinkhornDistance, SinkhornDivergence, SinkhornHistograms, SinkhornOptions, SinkhornPart,
    class_costs, sinkhorn, sinkhorn_distance, sinkhorn_distance_weighted, sinkhorn_divergence,
    sinkhorn_divergence_weighted, sinkhorn_histograms,
};
pub use sliced::{
    Ascent, LearnedSlice, MaxSliced, Sliced, max_sliced_w2, max_sliced_w2_learned, random_directions, sliced_cramer,
    sliced_w2,
};
pub use transport::{Transport, TransportOptions, transport, uniform_transport};
pub use wasserstein::{Wasserstein, w1, w1_weighted, w2, w2_weighted};
