//! What losses are made of: products of matrices, softmax, the logistic function, powers over channels.

mod known;
mod logistic;
mod numeric;
mod power;
mod product;
mod softmax;

pub use known::with_gradient;
pub use logistic::logistic_contrast;
pub use power::channel_power_mean;
pub use product::{gram, inner_products, weighted_sums};
pub use softmax::{softmax_cross_entropy, softmax_divergence};
