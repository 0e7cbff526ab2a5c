//! Losses that learn from images without labels, or with a self-supervised task beside the labels.

mod hsakd;
mod rotation;
mod simsiam;
mod sskd;
mod vicreg;

pub use hsakd::{
    HsakdConfig, HsakdLoss, HsakdOutputs, HsakdTeacherLoss, HssakdOnlineLoss, class_scores, hsakd_student,
    hsakd_teacher, hssakd_online,
};
pub use simsiam::{negative_cosine, simsiam};
pub use sskd::{SskdConfig, SskdLoss, SskdOutputs, answer_ranks, rotation_similarity, select_rows, sskd, ssp};
pub use vicreg::{
    SqueezeSpanConfig, SqueezeSpanLoss, VicregLoss, VicregWeights, covariance_penalty, squeeze_span, variance_hinge,
    vicreg,
};
