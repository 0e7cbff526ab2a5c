//! Fusion of the peers' last maps: FFL's module, and the attention that MFEF puts before it (a reconstruction).

use crate::Result;
use crate::block::Trace;
use crate::common::{MOST_PARTS, check_batch, check_layer, check_range, check_shape, config_error};
use crate::head::{check_count, pooled, sigmoid};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap, Pool2dSpec, adaptive_avg_pool2d, max_pool2d};
use retort_nn::{Conv2d, ConvBatchNorm, Head, HeadLayer, Init, Linear, MapShape, Mode, Outputs, Scope, Taps};

/// FFL's fusion of the last maps of K peers (Kim et al. 2019, arXiv 1904.09058).
///
/// The maps on top of each other, depthwise 3x3 convolution, batch norm, ReLU, 1x1 convolution to C channels, batch
/// norm, ReLU, global average, linear classifier. Where the peers' maps differ, each is brought to the first one's
/// channels by a 1x1 convolution and to the smallest rows and columns by an adaptive mean.
///
/// Keys: `conv1`, `bn1` (depthwise), `conv1_1`, `bn1_1` (1x1), `fc2`; `project{k}` for a peer of other channels.
/// PyTorch's default initialisation.
pub struct FusionModule {
    projections: Vec<Option<Conv2d>>,
    maps: Vec<MapShape>,
    size: [usize; 2],
    depthwise: ConvBatchNorm,
    pointwise: ConvBatchNorm,
    fc: Linear,
    multiply_adds: usize,
}

impl FusionModule {
    /// Declares the layers in `scope` for maps of these shapes.
    ///
    /// # Errors
    ///
    /// Maps that are not 1 to 64, sizes of zero or absurd ones, or weights that do not fit.
    pub fn new(maps: &[MapShape], classes: usize, scope: &Scope) -> Result<Self> {
        let name = "fusion module";
        check_range(name, MOST_PARTS, [("number of maps", maps.len())])?;
        maps.iter().try_for_each(|map| check_shape(name, map))?;
        let first = maps[0];
        let channels = first.channels;
        let all = maps.len() * channels;
        check_layer(name, all, channels)?;
        check_layer(name, channels, classes)?;
        let size = |size: fn(&MapShape) -> usize| maps.iter().map(size).fold(size(&first), usize::min);
        let [height, width] = [size(|map| map.height), size(|map| map.width)];
        let mut trace = Trace::new(name, first);
        let mut projections = Vec::new();
        for (k, map) in maps.iter().enumerate() {
            let shape = [channels, map.channels, 1, 1];
            let conv = || Conv2d::new(&scope.child(format!("project{k}")), shape, Conv2dSpec::new(1, 0), Init::PyTorch);
            let conv = (map.channels != channels).then(conv).transpose()?;
            trace.shape = *map;
            conv.iter().try_for_each(|conv| trace.conv(conv))?;
            projections.push(conv);
        }
        trace.shape = MapShape { channels: all, height, width };
        let (shape, spec) = ([all, 1, 3, 3], Conv2dSpec::new(1, 1).with_groups(all));
        let depthwise = ConvBatchNorm::new(scope, "conv1", "bn1", shape, spec, Init::PyTorch)?;
        let (shape, spec) = ([channels, all, 1, 1], Conv2dSpec::new(1, 0));
        let pointwise = ConvBatchNorm::new(scope, "conv1_1", "bn1_1", shape, spec, Init::PyTorch)?;
        let fc = Linear::new(&scope.child("fc2"), channels, classes)?;
        [&depthwise, &pointwise].into_iter().try_for_each(|unit| trace.conv(unit.conv()))?;
        trace.linear(&fc);
        let multiply_adds = trace.multiply_adds;
        Ok(Self { projections, maps: maps.to_vec(), size: [height, width], depthwise, pointwise, fc, multiply_adds })
    }

    /// Multiply-adds for one image.
    #[must_use]
    pub fn multiply_adds(&self) -> usize {
        self.multiply_adds
    }

    /// K maps `[B, C_k, H_k, W_k]` to the fused classifier's outputs; its one map is the fused one.
    ///
    /// # Errors
    ///
    /// Another number or other shapes of maps, or a frozen store in [`Mode::Train`].
    pub fn forward(&self, maps: &[Tensor], mode: Mode, taps: Taps) -> retort_nn::Result<Outputs> {
        check_count("fusion module", "maps", self.maps.len(), maps.len())?;
        let aligned = (0..maps.len()).map(|k| self.aligned(k, &maps[k])).collect::<retort_nn::Result<Vec<_>>>()?;
        let x = FeatureMap::from_tensor(&Tensor::cat(&aligned, 1)?)?;
        let x = self.depthwise.forward(&x, mode, Activation::Relu)?;
        let x = self.pointwise.forward(&x, mode, Activation::Relu)?;
        let embedding = x.global_avg_pool2d()?;
        let maps = if taps.maps { vec![x.to_tensor()?] } else { vec![] };
        Ok(Outputs { logits: self.fc.forward(&embedding)?, embedding, maps, pre_activations: vec![] })
    }

    fn aligned(&self, k: usize, map: &Tensor) -> retort_nn::Result<Tensor> {
        check_map("fusion module", &self.maps[k], map)?;
        let map = match &self.projections[k] {
            Some(conv) => conv.forward(&FeatureMap::from_tensor(map)?)?.to_tensor()?,
            None => map.clone(),
        };
        match map.dims()[2..] == self.size {
            true => Ok(map),
            false => Ok(adaptive_avg_pool2d(&map, self.size)?),
        }
    }
}

/// Refuses a batch of maps of another shape.
pub(crate) fn check_map(what: &str, shape: &MapShape, map: &Tensor) -> retort_nn::Result<()> {
    check_batch(what, "a map", [shape.channels, shape.height, shape.width], map)
}

/// What MFEF does with a peer's last map before the fusion, a reconstruction (after Zou et al. 2022, arXiv 2206.08224).
///
/// **A reconstruction**: no code of the paper is public and only its abstract was available. Each part can be left out.
///
/// * Scales: the channels in four equal parts, part s convolved with a window of `3 + 2s` in the groups of EPSANet (1,
///   4, 8, 16; 1 where they do not divide the part's channels), together `M`.
/// * Channel attention: `a = sigmoid(W2 relu(W1 mean(M)))` with C/16 hidden numbers.
/// * Spatial attention: `b = sigmoid(conv7x7([mean_c, max_c](a M)))`; the result is `b a M`. The gradient of `max_c`
///   goes to the first of equal channels.
///
/// Keys: `scale{s}.weight`, `channel.{0,2}`, `spatial.weight`. PyTorch's default initialisation, no biases in
/// convolutions.
pub struct MultiScaleAttention {
    scales: Option<Vec<Conv2d>>,
    attention: Option<(Head, Conv2d)>,
    map: MapShape,
}

/// Which parts of [`MultiScaleAttention`] there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiScaleConfig {
    /// Convolutions of several widths.
    pub scales: bool,
    /// Channel and spatial attention.
    pub attention: bool,
}

impl Default for MultiScaleConfig {
    fn default() -> Self {
        Self { scales: true, attention: true }
    }
}

/// Groups of the convolution of each part.
const GROUPS: [usize; 4] = [1, 4, 8, 16];
const PARTS: usize = GROUPS.len();

impl MultiScaleAttention {
    /// Declares the layers in `scope` for maps of this shape.
    ///
    /// # Errors
    ///
    /// Channels that four does not divide, sizes of zero or absurd ones, or weights that do not fit.
    pub fn new(map: MapShape, config: MultiScaleConfig, scope: &Scope) -> Result<Self> {
        let name = "multi-scale attention";
        check_shape(name, &map)?;
        if config.scales && !map.channels.is_multiple_of(PARTS) {
            let message = format!("channels must be a multiple of {PARTS}, found {}", map.channels);
            return Err(config_error(name, message));
        }
        let part = map.channels / PARTS;
        let scale = |s: usize| -> Result<Conv2d> {
            let groups = if part.is_multiple_of(GROUPS[s]) { GROUPS[s] } else { 1 };
            let kernel = 3 + 2 * s;
            check_layer(name, part / groups * kernel * kernel, part)?;
            let (shape, spec) = ([part, part / groups, kernel, kernel], Conv2dSpec::new(1, 1 + s).with_groups(groups));
            Ok(Conv2d::new(&scope.child(format!("scale{s}")), shape, spec, Init::PyTorch)?)
        };
        let scales = config.scales.then(|| (0..PARTS).map(scale).collect::<Result<_>>()).transpose()?;
        let attention = || -> Result<_> {
            let hidden = (map.channels / 16).max(1);
            let layers = [HeadLayer::Linear(hidden), HeadLayer::Relu, HeadLayer::Linear(map.channels)];
            let head = Head::new(name, map.channels, &layers, &scope.child("channel"))?;
            let conv = Conv2d::new(&scope.child("spatial"), [1, 2, 7, 7], Conv2dSpec::new(1, 3), Init::PyTorch)?;
            Ok((head, conv))
        };
        Ok(Self { scales, attention: config.attention.then(attention).transpose()?, map })
    }

    /// `[B, C, H, W]` to the same shape.
    ///
    /// # Errors
    ///
    /// A map of another shape.
    pub fn forward(&self, map: &Tensor, mode: Mode) -> retort_nn::Result<Tensor> {
        check_map("multi-scale attention", &self.map, map)?;
        let map = match &self.scales {
            Some(scales) => multi_scale(scales, map)?,
            None => map.clone(),
        };
        let Some((channel, spatial)) = &self.attention else { return Ok(map) };
        let share = sigmoid(&channel.forward(&pooled(&map)?, mode)?)?;
        let map = map.broadcast_mul(&share.unsqueeze(2)?.unsqueeze(3)?)?;
        let both = Tensor::cat(&[map.mean_keepdim(1)?, channel_max(&map)?], 1)?;
        let share = sigmoid(&spatial.forward(&FeatureMap::from_tensor(&both)?)?.to_tensor()?)?;
        Ok(map.broadcast_mul(&share)?)
    }
}

fn multi_scale(scales: &[Conv2d], map: &Tensor) -> retort_nn::Result<Tensor> {
    let parts = map.chunk(scales.len(), 1)?;
    let convolve = |(conv, part): (&Conv2d, &Tensor)| -> retort_nn::Result<Tensor> {
        Ok(conv.forward(&FeatureMap::from_tensor(part)?)?.to_tensor()?)
    };
    Ok(Tensor::cat(&scales.iter().zip(&parts).map(convolve).collect::<retort_nn::Result<Vec<_>>>()?, 1)?)
}

/// The largest channel at every position, `[B, 1, H, W]`; a pooling, whose gradient goes to the first of equal ones.
fn channel_max(map: &Tensor) -> retort_nn::Result<Tensor> {
    let (batch, channels, height, width) = map.dims4()?;
    let rows = map.flatten_from(2)?.transpose(1, 2)?.contiguous()?.unsqueeze(1)?;
    let spec = Pool2dSpec { kernel: [1, channels], stride: [1, channels], padding: [0, 0] };
    Ok(max_pool2d(&rows, &spec)?.reshape((batch, 1, height, width))?)
}
