//! What a network declares about itself and what it shows of itself on a batch.

use crate::{Error, Linear, Result};
use candle_core::Tensor;

/// Training or evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Normalise with batch statistics and update the running ones.
    Train,
    /// Normalise with running statistics.
    Eval,
    /// Normalise with batch statistics and leave the running ones alone, also in a frozen network.
    BatchStatistics,
}

/// What a caller wants to see besides logits and embedding; plain inference asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taps {
    /// Fill [`Outputs::maps`].
    pub maps: bool,
    /// Fill [`Outputs::pre_activations`].
    pub pre_activations: bool,
}

impl Taps {
    /// Everything that the network can show.
    pub const ALL: Self = Self { maps: true, pre_activations: true };

    /// The union of two wishes.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { maps: self.maps || other.maps, pre_activations: self.pre_activations || other.pre_activations }
    }
}

/// Channels and spatial size of one feature map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Channels C.
    pub channels: usize,
    /// Rows H.
    pub height: usize,
    /// Columns W.
    pub width: usize,
}

/// What a network is, known before the first batch; methods size their trainable parts by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Name of the architecture in the registry.
    pub name: String,
    /// Channels of the input.
    pub in_channels: usize,
    /// Height and width of the input.
    pub image: [usize; 2],
    /// Number of classes K.
    pub classes: usize,
    /// Shapes of the maps f0 (stem), f1 .. fL (stages).
    pub maps: Vec<MapShape>,
    /// Width D of the embedding.
    pub embedding: usize,
    /// Whether the network can show its maps before the activation.
    pub pre_activations: bool,
    /// Multiply-adds of convolutions and linear layers for one image; biases, normalisation and pooling are not counted.
    pub multiply_adds: usize,
}

impl NetworkSpec {
    /// Shapes of the stages f1 .. fL.
    #[must_use]
    pub fn stages(&self) -> &[MapShape] {
        self.maps.get(1..).unwrap_or_default()
    }
}

/// What a network shows of itself on one batch.
///
/// Two index conventions are in use: RepDistiller counts f0 (the stem) as a feature, mdistiller does not.
/// [`Outputs::maps`] holds f0 .. fL, [`Outputs::stages`] f1 .. fL.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// `[B, K]`.
    pub logits: Tensor,
    /// `[B, D]`, pooled, input of the classifier.
    pub embedding: Tensor,
    /// f0 .. fL, each `[B, C_i, H_i, W_i]`, after the last activation of the stage, where the stage ends with one
    /// (a wide ResNet's maps are raw sums); empty unless tapped.
    pub maps: Vec<Tensor>,
    /// The same maps before that activation (entry 0 is f0 itself); empty unless tapped.
    pub pre_activations: Vec<Tensor>,
}

impl Outputs {
    /// f1 .. fL after the activation.
    #[must_use]
    pub fn stages(&self) -> &[Tensor] {
        self.maps.get(1..).unwrap_or_default()
    }

    /// f1 .. fL before the activation.
    #[must_use]
    pub fn stage_pre_activations(&self) -> &[Tensor] {
        self.pre_activations.get(1..).unwrap_or_default()
    }

    /// fL.
    ///
    /// # Errors
    ///
    /// The maps were not tapped.
    pub fn last_map(&self) -> Result<&Tensor> {
        self.maps.last().ok_or_else(|| Error::invalid("outputs", "the feature maps were not tapped"))
    }
}

/// Weight and bias of the batch norm whose result is a stage's pre-activation: per channel, the mean is the bias and the
/// standard deviation the weight's absolute value.
#[derive(Clone, Debug)]
pub struct StageNorm {
    /// `[C]`.
    pub weight: Tensor,
    /// `[C]`.
    pub bias: Tensor,
}

/// A network: images in, [`Outputs`] out.
pub trait Network: Send + Sync {
    /// What the network is.
    fn spec(&self) -> &NetworkSpec;

    /// The batch norms before the last activations of f1 .. fL, detached; `None` where the architecture has none to show.
    ///
    /// Behind a residual addition it is the last norm of the residual branch; the shortcut is ignored.
    ///
    /// # Errors
    ///
    /// Fails if candle does.
    fn stage_norms(&self) -> Result<Option<Vec<StageNorm>>> {
        Ok(None)
    }

    /// The linear layer from the embedding to the logits; `None` where the last step is another one.
    fn classifier(&self) -> Option<&Linear> {
        None
    }

    /// One forward pass over `images` `[B, C, H, W]`.
    ///
    /// # Errors
    ///
    /// Images of another shape than the network was built for, or a frozen network in [`Mode::Train`].
    fn forward(&self, images: &Tensor, mode: Mode, taps: Taps) -> Result<Outputs>;

    /// Number of places at which [`Network::forward_mixed`] can change what goes on: the inputs of the stages behind the
    /// stem. 0 for a network without stages.
    fn mixing_points(&self) -> usize {
        0
    }

    /// As [`Network::forward`], with the input of one stage changed on the way, `[B, C, H, W]` to a tensor of the same
    /// shape: manifold mixup (Verma et al. 2019, arXiv 1806.05236) mixes the rows of a batch there.
    ///
    /// # Errors
    ///
    /// As for [`Network::forward`]; `point >= mixing_points()`, whatever `change` refuses, another shape than it was given.
    fn forward_mixed(
        &self,
        _images: &Tensor,
        _mode: Mode,
        _taps: Taps,
        point: usize,
        _change: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Outputs> {
        Err(Error::invalid(&self.spec().name, format!("expected a mixing point, found {point}: it has no stages")))
    }
}
