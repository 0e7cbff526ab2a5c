//! Small modules of the methods on embeddings and pooled maps.

use crate::Result;
use crate::common::{MOST_PARTS, check_layer, check_range, check_shape};
use crate::head::{check_count, mix, pooled, sigmoid, softmax};
use candle_core::{D, Tensor};
use retort_kernels::{Activation, Conv2dSpec, FeatureMap};
use retort_nn::{Conv2d, ConvBatchNorm, Head, HeadLayer, Init, Linear, MapShape, Mode, Scope, normalise_rows};

/// Squeeze-and-Span's squeeze module: maps of a generator to one vector (Yang et al. 2022, NeurIPS).
///
/// Each map is pooled and sent through a linear layer of its own to `hidden` numbers; their sum goes through `layers`
/// linear layers, all but the last without bias and followed by batch norm and ReLU. 2048 hidden and outputs, 3 layers
/// in the paper.
///
/// Keys: `lateral{i}`, `to_repr.{0,1,3,4,6}`. PyTorch's default initialisation.
pub struct SqueezeModule {
    lateral: Vec<Linear>,
    head: Head,
}

impl SqueezeModule {
    /// Declares the layers in `scope` for maps of these numbers of channels.
    ///
    /// # Errors
    ///
    /// Maps that are not 1 to 64, sizes of zero or absurd ones, a number of layers that is not from 1 to 64, or weights
    /// that do not fit.
    pub fn new(channels: &[usize], hidden: usize, layers: usize, outputs: usize, scope: &Scope) -> Result<Self> {
        let name = "squeeze module";
        check_range(name, MOST_PARTS, [("number of maps", channels.len())])?;
        let lateral = |(i, &channels): (usize, &usize)| {
            check_layer(name, channels, hidden)?;
            Ok(Linear::new(&scope.child(format!("lateral{i}")), channels, hidden)?)
        };
        let rows = HeadLayer::perceptron(name, hidden, HeadLayer::Linear(outputs), layers)?;
        Ok(Self {
            lateral: channels.iter().enumerate().map(lateral).collect::<Result<_>>()?,
            head: Head::new(name, hidden, &rows, &scope.child("to_repr"))?,
        })
    }

    /// Maps `[B, C_i, H_i, W_i]` to `[B, outputs]`.
    ///
    /// # Errors
    ///
    /// Another number of maps or of channels, or a single image in [`Mode::Train`].
    pub fn forward(&self, maps: &[Tensor], mode: Mode) -> retort_nn::Result<Tensor> {
        check_count("squeeze module", "maps", self.lateral.len(), maps.len())?;
        let rows = self.lateral.iter().zip(maps).map(|(linear, map)| linear.forward(&pooled(map)?));
        let rows = rows.collect::<retort_nn::Result<Vec<_>>>()?;
        self.head.forward(&Tensor::stack(&rows, 0)?.sum(0)?, mode)
    }
}

/// L-MCL's ensemble of one network's stages (Yang et al. 2023, arXiv 2207.11518).
///
/// The embeddings of the S stages, one after the other, give S shares by linear to D, ReLU, linear to S and softmax;
/// the result is the sum of the stages' logits with these shares.
///
/// Keys: `0`, `2`. PyTorch's default initialisation.
pub struct Aggregator {
    head: Head,
    stages: usize,
}

impl Aggregator {
    /// Declares the layers in `scope` for embeddings of `width` numbers.
    ///
    /// # Errors
    ///
    /// Sizes of zero or absurd ones, or weights that do not fit.
    pub fn new(width: usize, stages: usize, scope: &Scope) -> Result<Self> {
        let layers = [HeadLayer::Linear(width), HeadLayer::Relu, HeadLayer::Linear(stages)];
        Ok(Self { head: Head::new("aggregator", width.saturating_mul(stages), &layers, scope)?, stages })
    }

    /// S embeddings `[B, D]` to the shares `[B, S]`.
    ///
    /// # Errors
    ///
    /// Another number or width of embeddings.
    pub fn shares(&self, embeddings: &[Tensor]) -> retort_nn::Result<Tensor> {
        check_count("aggregator", "embeddings", self.stages, embeddings.len())?;
        softmax(&self.head.forward(&Tensor::cat(embeddings, 1)?, Mode::Eval)?)
    }

    /// S embeddings `[B, D]` and S logits `[B, C]` to the aggregated logits `[B, C]`.
    ///
    /// # Errors
    ///
    /// Other numbers or widths.
    pub fn forward(&self, embeddings: &[Tensor], logits: &[Tensor]) -> retort_nn::Result<Tensor> {
        mix(&self.shares(embeddings)?, logits)
    }
}

/// L-MCL's weights of pairs of stages (Yang et al. 2023, arXiv 2207.11518).
///
/// The pair of stage k of network i and stage l of network j has, for every image, the weight
/// `sigmoid(cos(A_ik e_ik, A_jl e_jl))`, with a linear projection A (128 outputs in the paper) for every network and
/// stage. It lies between 0.26 and 0.74.
///
/// Keys: `proj_{i}_{k}.*`. PyTorch's default initialisation.
pub struct PairWeights {
    /// By network, then stage.
    projections: Vec<Vec<Linear>>,
}

impl PairWeights {
    /// Declares the projections in `scope` for embeddings of these widths, by network and stage.
    ///
    /// # Errors
    ///
    /// Sizes of zero or absurd ones, or weights that do not fit.
    pub fn new(widths: &[Vec<usize>], outputs: usize, scope: &Scope) -> Result<Self> {
        let linear = |i: usize, k: usize, width: usize| {
            check_layer("pair weights", width, outputs)?;
            Ok(Linear::new(&scope.child(format!("proj_{i}_{k}")), width, outputs)?)
        };
        let network = |(i, widths): (usize, &Vec<usize>)| {
            widths.iter().enumerate().map(|(k, &width)| linear(i, k, width)).collect::<Result<Vec<_>>>()
        };
        Ok(Self { projections: widths.iter().enumerate().map(network).collect::<Result<_>>()? })
    }

    /// Embeddings `[B, D_ik]` by network and stage to the weights `[pairs, B]`, in the order of the loops over i, j
    /// other than i, k and l, the last one fastest.
    ///
    /// # Errors
    ///
    /// Other numbers or widths, or fewer than two networks.
    pub fn forward(&self, embeddings: &[Vec<Tensor>]) -> retort_nn::Result<Tensor> {
        let name = "pair weights";
        check_count(name, "networks", self.projections.len(), embeddings.len())?;
        let mut rows: Vec<Vec<Tensor>> = Vec::new();
        for (linears, embeddings) in self.projections.iter().zip(embeddings) {
            check_count(name, "stages", linears.len(), embeddings.len())?;
            let project = |(linear, e): (&Linear, &Tensor)| normalise_rows(&linear.forward(e)?);
            rows.push(linears.iter().zip(embeddings).map(project).collect::<retort_nn::Result<_>>()?);
        }
        let mut cosines = Vec::new();
        for i in 0..rows.len() {
            for j in (0..rows.len()).filter(|&j| j != i) {
                for a in &rows[i] {
                    for b in &rows[j] {
                        cosines.push((a * b)?.sum(D::Minus1)?);
                    }
                }
            }
        }
        if cosines.is_empty() {
            return Err(retort_nn::Error::invalid(name, "there must be at least two networks with a stage each"));
        }
        sigmoid(&Tensor::stack(&cosines, 0)?)
    }
}

/// MixSKD's self-teacher: the last maps of all branches and of the network, to logits (Yang et al. 2022, arXiv
/// 2208.05768).
///
/// The K maps on top of each other (`K D` channels), a 1x1 convolution to D channels without bias, norm or activation,
/// global average, linear classifier. Mean and convolution are both linear, so the mean is taken first.
///
/// Keys: `conv.weight` `[D, K D, 1, 1]`, `fc.*`; the reference keeps it under `final_aux_classifier`. PyTorch's default
/// initialisation.
pub struct SelfTeacher {
    conv: Conv2d,
    fc: Linear,
    multiply_adds: usize,
    maps: usize,
}

impl SelfTeacher {
    /// Declares the layers in `scope` for `maps` maps of this shape.
    ///
    /// # Errors
    ///
    /// Sizes of zero or absurd ones, or weights that do not fit.
    pub fn new(maps: usize, map: MapShape, classes: usize, scope: &Scope) -> Result<Self> {
        let (name, channels) = ("self-teacher", map.channels);
        check_shape(name, &map)?;
        let inputs = maps.saturating_mul(channels);
        check_layer(name, inputs, channels)?;
        check_layer(name, channels, classes)?;
        let shape = [channels, inputs, 1, 1];
        let conv = Conv2d::new(&scope.child("conv"), shape, Conv2dSpec::new(1, 0), Init::PyTorch)?;
        let fc = Linear::new(&scope.child("fc"), channels, classes)?;
        let at_every_position = (map.height * map.width).saturating_mul(inputs * channels);
        let multiply_adds = at_every_position.saturating_add(channels * classes);
        Ok(Self { conv, fc, multiply_adds, maps })
    }

    /// Multiply-adds for one image, counted as a convolution of the whole maps.
    #[must_use]
    pub fn multiply_adds(&self) -> usize {
        self.multiply_adds
    }

    /// K maps `[B, D, H, W]` to logits `[B, C]`.
    ///
    /// # Errors
    ///
    /// Another number of maps or of channels.
    pub fn forward(&self, maps: &[Tensor]) -> retort_nn::Result<Tensor> {
        check_count("self-teacher", "maps", self.maps, maps.len())?;
        let means = maps.iter().map(pooled).collect::<retort_nn::Result<Vec<_>>>()?;
        let means = FeatureMap::from_tensor(&Tensor::cat(&means, 1)?.unsqueeze(2)?.unsqueeze(3)?)?;
        self.fc.forward(&self.conv.forward(&means)?.to_tensor()?.flatten_from(1)?)
    }
}

/// MixSKD's discriminator of interpolated and mixed maps: global average, linear to 128, ReLU, linear to 2 (Yang et al.
/// 2022, arXiv 2208.05768).
///
/// Keys: `0`, `2`. PyTorch's default initialisation.
pub struct MapDiscriminator(Head);

impl MapDiscriminator {
    /// Declares the layers in `scope` for maps of so many channels.
    ///
    /// # Errors
    ///
    /// Sizes of zero or absurd ones, or weights that do not fit.
    pub fn new(channels: usize, hidden: usize, scope: &Scope) -> Result<Self> {
        let layers = [HeadLayer::Linear(hidden), HeadLayer::Relu, HeadLayer::Linear(2)];
        Ok(Self(Head::new("map discriminator", channels, &layers, scope)?))
    }

    /// `[B, D, H, W]` to `[B, 2]`.
    ///
    /// # Errors
    ///
    /// Another number of channels.
    pub fn forward(&self, map: &Tensor) -> retort_nn::Result<Tensor> {
        self.0.forward(&pooled(map)?, Mode::Eval)
    }
}

/// A map with other channels: 1x1 convolution without bias and batch norm, no activation. What a shallow stage gets in
/// self-feature regularisation, a reconstruction (after Fan and Hou 2021, arXiv 2103.07350, withdrawn).
///
/// Keys: `0` convolution, `1` batch norm. PyTorch's default initialisation.
pub struct MapAdapter(ConvBatchNorm);

impl MapAdapter {
    /// Declares the layers in `scope`.
    ///
    /// # Errors
    ///
    /// Sizes of zero or absurd ones, or weights that do not fit.
    pub fn new(channels: usize, outputs: usize, scope: &Scope) -> Result<Self> {
        check_layer("map adapter", channels, outputs)?;
        let (shape, spec) = ([outputs, channels, 1, 1], Conv2dSpec::new(1, 0));
        Ok(Self(ConvBatchNorm::new(scope, "0", "1", shape, spec, Init::PyTorch)?))
    }

    /// `[B, C, H, W]` to `[B, outputs, H, W]`.
    ///
    /// # Errors
    ///
    /// Another number of channels, or a frozen store in [`Mode::Train`].
    pub fn forward(&self, map: &Tensor, mode: Mode) -> retort_nn::Result<Tensor> {
        Ok(self.0.forward(&FeatureMap::from_tensor(map)?, mode, Activation::None)?.to_tensor()?)
    }
}
