//! Continuous labels as vectors (CcGAN; Ding et al. 2021, arXiv 2011.07529).

use crate::Result;
use crate::common::{check_positive, check_weights, config_error, refused};
use candle_core::Tensor;
use retort_kernels::Activation;
use retort_nn::{BatchNorm, Init, Linear, Mode, Scope};

/// Groups of every group norm here.
pub(super) const GROUPS: usize = 8;

/// Group normalisation of vectors (Wu and He 2018, arXiv 1803.08494): each group of entries of each row is brought to
/// mean 0 and variance 1 (biased, eps 1e-5), then scaled and shifted entry by entry.
#[derive(Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
}

impl GroupNorm {
    /// Over `width` entries in `groups`, starting at weight 1 and bias 0.
    ///
    /// # Errors
    ///
    /// Sizes of zero, groups that do not divide the width, or weights that do not fit (see [`Scope::weight`]).
    pub fn new(scope: &Scope, width: usize, groups: usize) -> Result<Self> {
        check_groups("group norm", width, groups)?;
        let weight = scope.weight("weight", &[width], Init::Constant(1.0))?;
        Ok(Self { weight, bias: scope.weight("bias", &[width], Init::Constant(0.0))?, groups })
    }

    /// `[B, width]` of the same shape.
    ///
    /// # Errors
    ///
    /// Another shape.
    pub fn forward(&self, x: &Tensor) -> retort_nn::Result<Tensor> {
        let (batch, width) = x.dims2()?;
        let x = x.reshape((batch, self.groups, width / self.groups))?;
        let x = x.broadcast_sub(&x.mean_keepdim(2)?)?;
        let x = x.broadcast_div(&(x.sqr()?.mean_keepdim(2)? + 1e-5)?.sqrt()?)?.reshape((batch, width))?;
        Ok(x.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?)
    }
}

pub(super) fn check_groups(model: &str, width: usize, groups: usize) -> Result<()> {
    if groups > 0 && width > 0 && width.is_multiple_of(groups) {
        return Ok(());
    }
    Err(config_error(model, format!("a width must be a positive multiple of the {groups} groups, found {width}")))
}

/// The network `y2h`: a label to a vector.
///
/// Four times linear, group norm of 8 groups, ReLU; then linear, ReLU. CcGAN trains it so that a [`LabelReader`] finds
/// the label again, with noise on the labels, and freezes it for the generator and the discriminator.
///
/// Keys: `main.{0,3,6,9,12}.*` (linear), `main.{1,4,7,10}.*` (group norm). All layers start with PyTorch's default.
pub struct LabelEmbedding {
    hidden: Vec<(Linear, GroupNorm)>,
    last: Linear,
}

impl LabelEmbedding {
    /// To vectors of `width` entries, a multiple of 8; 128 in the papers.
    ///
    /// # Errors
    ///
    /// Another width, or weights that do not fit (see [`Scope::weight`]).
    pub fn new(scope: &Scope, width: usize) -> Result<Self> {
        const MODEL: &str = "label embedding";
        check_groups(MODEL, width, GROUPS)?;
        check_weights(MODEL, width, width)?;
        let main = scope.child("main");
        let mut hidden = Vec::new();
        for i in 0..4 {
            let linear = Linear::new(&main.child(3 * i), if i == 0 { 1 } else { width }, width)?;
            hidden.push((linear, GroupNorm::new(&main.child(3 * i + 1), width, GROUPS)?));
        }
        Ok(Self { hidden, last: Linear::new(&main.child(12), width, width)? })
    }

    /// Labels `[B]` or `[B, 1]`, scaled to `[0, 1]`, to `[B, width]`.
    ///
    /// # Errors
    ///
    /// Another shape.
    pub fn forward(&self, labels: &Tensor) -> retort_nn::Result<Tensor> {
        let mut x = match *labels.dims() {
            [_] => labels.unsqueeze(1)?,
            [_, 1] => labels.clone(),
            ref found => {
                return Err(refused("label embedding", format!("expected labels [B] or [B, 1], found {found:?}")));
            }
        };
        for (linear, norm) in &self.hidden {
            x = retort_kernels::relu(&norm.forward(&linear.forward(&x)?)?)?;
        }
        Ok(retort_kernels::relu(&self.last.forward(&x)?)?)
    }
}

/// The networks `x2h` and `h2y`: features of an image to the vector of its label, and the vector to the label.
///
/// `x2h` is twice linear, batch norm, ReLU (to 512 entries, then to those of the vector); `h2y` is linear, ReLU.
///
/// Keys: `x2h.{0,3}.*` (linear), `x2h.{1,4}.*` (batch norm), `h2y.0.*`. All layers start with PyTorch's default.
pub struct LabelReader {
    x2h: [(Linear, BatchNorm); 2],
    h2y: Linear,
}

impl LabelReader {
    /// From `features` entries to vectors of `width` entries.
    ///
    /// # Errors
    ///
    /// Sizes of zero or of absurd size, or weights that do not fit (see [`Scope::weight`]).
    pub fn new(scope: &Scope, features: usize, width: usize) -> Result<Self> {
        const MODEL: &str = "label reader";
        const HIDDEN: usize = 512;
        check_positive(MODEL, [("features", features), ("width", width)])?;
        check_weights(MODEL, features, HIDDEN)?;
        check_weights(MODEL, HIDDEN, width)?;
        let x2h = scope.child("x2h");
        let layer = |i: usize, from: usize, to: usize| -> Result<_> {
            Ok((Linear::new(&x2h.child(i), from, to)?, BatchNorm::new(&x2h.child(i + 1), to)?))
        };
        let h2y = Linear::new(&scope.child("h2y").child(0), width, 1)?;
        Ok(Self { x2h: [layer(0, features, HIDDEN)?, layer(3, HIDDEN, width)?], h2y })
    }

    /// Features `[B, D]` to vectors `[B, width]`.
    ///
    /// # Errors
    ///
    /// Another shape, a single row in training mode, or training mode in a frozen network.
    pub fn embed(&self, features: &Tensor, mode: Mode) -> retort_nn::Result<Tensor> {
        let mut x = features.clone();
        for (linear, norm) in &self.x2h {
            x = norm.forward_vectors(&linear.forward(&x)?, mode, Activation::Relu)?;
        }
        Ok(x)
    }

    /// Vectors `[B, width]` to labels `[B, 1]`, not negative.
    ///
    /// # Errors
    ///
    /// Another shape.
    pub fn read(&self, vectors: &Tensor) -> retort_nn::Result<Tensor> {
        Ok(retort_kernels::relu(&self.h2y.forward(vectors)?)?)
    }
}
