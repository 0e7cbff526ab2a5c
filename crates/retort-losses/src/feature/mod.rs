//! Losses on feature maps.

mod ab;
mod at;
mod eigen;
mod fitnet;
mod fsp;
mod ft;
mod gate;
mod kdsvd;
mod nst;
mod ofd;
mod pkd;
mod reviewkd;
mod simreg;
mod vid;

pub use ab::{AbConfig, Connector, activation_boundaries, boundary_weights};
pub use at::{AtConfig, attention_transfer};
pub use fitnet::{ConvRegressor, FitnetConfig, hint};
pub use fsp::{FspConfig, flow, flow_matrix};
pub use ft::{FactorEncoder, FactorNorm, FtConfig, Paraphrase, Paraphraser, factor_channels, factor_transfer};
pub use kdsvd::{KdsvdConfig, SvdSpec, SvdVariant, singular_vector_affinity};
pub use nst::{NstConfig, PolynomialKernel, neuron_selectivity, neuron_selectivity_with};
pub use ofd::{OfdConfig, OfdConnector, TeacherBn, ofd_margin, overhaul, overhaul_weights, partial_l2};
pub use pkd::{PkdConfig, Resize, pearson};
pub use reviewkd::{Review, ReviewkdConfig, hierarchical_context};
pub use simreg::{SimregConfig, simreg};
pub use vid::{VidConfig, VidRegressor, variational_information};
