//! Losses on feature maps.

mod at;
mod fitnet;
mod nst;
mod pkd;
mod vid;

pub use at::{AtConfig, attention_transfer};
pub use fitnet::{ConvRegressor, FitnetConfig, hint};
pub use nst::{NstConfig, neuron_selectivity};
pub use pkd::{PkdConfig, Resize, pearson};
pub use vid::{VidConfig, VidRegressor, variational_information};
