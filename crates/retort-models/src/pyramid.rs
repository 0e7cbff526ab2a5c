//! FRSKD's self-teacher: one pass up and one down over the stage maps, and a classifier at the end.

use crate::Result;
use crate::block::Trace;
use crate::common::{MOST_PARTS, check_layer, check_range, check_shape, config_error};
use crate::fusion::check_map;
use crate::head::check_count;
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap, Pool2dSpec, max_pool2d, resize_nearest2d};
use retort_nn::{Conv2d, ConvBatchNorm, Init, Linear, MapShape, Mode, Outputs, Scope, Taps};

/// The bidirectional feature pyramid of FRSKD (Ji et al. 2021, arXiv 2103.08273), a self-teacher that is dropped after
/// training.
///
/// For maps f_1 .. f_L of c_s channels, each half as large as the one before (rounded up), with w_s = `width` c_s:
///
/// * Lateral: `l_s = bn(conv1x1(relu(f_s)))` to w_s channels, and a second one `m_s` of its own for s > 1.
/// * Up: `u_L = l_L`, `u_s = D_s(mean(l_s, bn(conv1x1(resize(relu(u_{s+1}))))))`, resized to the nearest position.
/// * Down: `g_1 = u_1`, `g_s = D_s'(mean(m_s, u_s, bn(conv1x1(pool(relu(g_{s-1}))))))`, for the last one without u_L;
///   pooled by 3x3 maxima of stride 2 whose border is zero and, if it is uneven, wider at the end.
/// * Means are weighted by `relu(w) / (sum relu(w) + 1e-6)` with trainable w that start at 1.
/// * D is `depth` times: ReLU, depthwise 3x3 convolution, 1x1 convolution, batch norm.
/// * Classifier: global average of `relu(g_L)`, linear.
///
/// Which convolutions, norms and weights there are is settled by the published counts (width 2, depth 2: 6 375 794
/// parameters and 392 171 520 multiply-adds on a ResNet18 for 100 classes); where the ReLUs stand is not, and is as
/// written here.
///
/// Keys: `lateral.{s}`, `lateral2.{s}`, `up_sample.{s}`, `down_sample.{s}` (each `.0` convolution, `.1` batch norm),
/// `up.{s}.{d}`, `down.{s}.{d}` (`.0` depthwise, `.1` 1x1, `.2` batch norm), `up_weight.{s}`, `down_weight.{s}`, `fc`,
/// with s from 0. PyTorch's default initialisation.
pub struct Pyramid {
    maps: Vec<MapShape>,
    lateral: Vec<ConvBatchNorm>,
    /// From the second map on.
    lateral2: Vec<ConvBatchNorm>,
    /// Entry s makes u_s of u_{s+1}.
    up: Vec<Step>,
    /// Entry s makes g_{s+1} of g_s.
    down: Vec<Step>,
    fc: Linear,
    multiply_adds: usize,
}

/// What a pass does at one map.
struct Step {
    /// Of the resized neighbour.
    neighbour: ConvBatchNorm,
    weights: Tensor,
    blocks: Vec<Separable>,
}

/// Depthwise 3x3 convolution, 1x1 convolution, batch norm.
struct Separable {
    depthwise: Conv2d,
    pointwise: ConvBatchNorm,
}

/// Size of the pyramid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PyramidConfig {
    /// Channels of its maps over those of the network, 1 to 64.
    pub width: usize,
    /// Separable convolutions of a step, 1 to 64.
    pub depth: usize,
}

impl Default for PyramidConfig {
    fn default() -> Self {
        Self { width: 2, depth: 2 }
    }
}

const NAME: &str = "pyramid";

impl Pyramid {
    /// Declares the layers in `scope` for the stage maps f_1 .. f_L of these shapes.
    ///
    /// # Errors
    ///
    /// Fewer than two maps, maps that are not each half as large as the one before (rounded up), numbers out of range,
    /// or weights that do not fit.
    pub fn new(maps: &[MapShape], classes: usize, config: PyramidConfig, scope: &Scope) -> Result<Self> {
        check_range(NAME, MOST_PARTS, [("width", config.width), ("depth", config.depth)])?;
        check_halving(maps)?;
        let wide: Vec<MapShape> =
            maps.iter().map(|map| MapShape { channels: config.width * map.channels, ..*map }).collect();
        check_layer(NAME, wide[wide.len() - 1].channels, classes)?;
        let mut trace = Trace::new(NAME, maps[0]);
        let (mut lateral, mut lateral2, mut up, mut down) = (vec![], vec![], vec![], vec![]);
        for (s, (from, to)) in maps.iter().zip(&wide).enumerate() {
            trace.shape = *from;
            let unit = |key: &str| pointwise(&scope.child(key).child(s), from.channels, to.channels);
            let mut push = |units: &mut Vec<ConvBatchNorm>, unit: ConvBatchNorm| {
                trace.beside(|trace| trace.conv(unit.conv()))?;
                units.push(unit);
                crate::Result::Ok(())
            };
            push(&mut lateral, unit("lateral")?)?;
            if s > 0 {
                push(&mut lateral2, unit("lateral2")?)?;
            }
        }
        for s in 0..maps.len() - 1 {
            let (fine, coarse) = (wide[s], wide[s + 1]);
            up.push(Step::new("up", s, (coarse.channels, fine), 2, config.depth, (scope, &mut trace))?);
            let summands = if s + 2 < maps.len() { 3 } else { 2 };
            down.push(Step::new("down", s, (fine.channels, coarse), summands, config.depth, (scope, &mut trace))?);
        }
        let fc = Linear::new(&scope.child("fc"), wide[wide.len() - 1].channels, classes)?;
        trace.linear(&fc);
        Ok(Self { maps: maps.to_vec(), lateral, lateral2, up, down, fc, multiply_adds: trace.multiply_adds })
    }

    /// Multiply-adds for one image.
    #[must_use]
    pub fn multiply_adds(&self) -> usize {
        self.multiply_adds
    }

    /// Stage maps f_1 .. f_L ([`Outputs::stages`]) to the self-teacher's outputs; its maps are g_1 .. g_L **after** the
    /// ReLU, its pre-activations the same before it.
    ///
    /// # Errors
    ///
    /// Another number or other shapes of maps, or a frozen store in [`Mode::Train`].
    pub fn forward(&self, maps: &[Tensor], mode: Mode, taps: Taps) -> retort_nn::Result<Outputs> {
        check_count(NAME, "maps", self.maps.len(), maps.len())?;
        self.maps.iter().zip(maps).try_for_each(|(shape, map)| check_map(NAME, shape, map))?;
        let activated = |map: &Tensor| FeatureMap::from_tensor(map)?.relu();
        let x: Vec<FeatureMap> = maps.iter().map(activated).collect::<retort_kernels::Result<_>>()?;
        let unit = |unit: &ConvBatchNorm, x: &FeatureMap| -> retort_nn::Result<Tensor> {
            Ok(unit.forward(x, mode, Activation::None)?.to_tensor()?)
        };
        let last = x.len() - 1;
        let mut ups = vec![unit(&self.lateral[last], &x[last])?];
        for s in (0..last).rev() {
            let size = [self.maps[s].height, self.maps[s].width];
            let resized = |x: &Tensor| resize_nearest2d(x, size);
            let lateral = unit(&self.lateral[s], &x[s])?;
            ups.push(self.up[s].forward(&[lateral], &ups[ups.len() - 1], resized, mode)?);
        }
        ups.reverse();
        let mut refined = vec![ups[0].clone()];
        for s in 0..last {
            let mut summands = vec![unit(&self.lateral2[s], &x[s + 1])?];
            if s + 1 < last {
                summands.push(ups[s + 1].clone());
            }
            refined.push(self.down[s].forward(&summands, &refined[s], pooled_to_half, mode)?);
        }
        let top = FeatureMap::from_tensor(&refined[last])?.relu()?;
        let embedding = top.global_avg_pool2d()?;
        let logits = self.fc.forward(&embedding)?;
        let maps = match taps.maps {
            true => refined.iter().map(retort_kernels::relu).collect::<retort_kernels::Result<_>>()?,
            false => vec![],
        };
        Ok(Outputs { logits, embedding, maps, pre_activations: if taps.pre_activations { refined } else { vec![] } })
    }
}

fn check_halving(maps: &[MapShape]) -> Result<()> {
    if maps.len() < 2 {
        return Err(config_error(NAME, format!("there must be at least two maps, found {}", maps.len())));
    }
    maps.iter().try_for_each(|map| check_shape(NAME, map))?;
    let halves =
        |pair: &&[MapShape]| pair[1].height != pair[0].height.div_ceil(2) || pair[1].width != pair[0].width.div_ceil(2);
    match maps.windows(2).find(halves) {
        Some(pair) => {
            let [from, to] = [pair[0], pair[1]].map(|map| format!("{}x{}", map.height, map.width));
            Err(config_error(NAME, format!("each map must be half as large as the one before, found {from} and {to}")))
        }
        None => Ok(()),
    }
}

/// A 1x1 convolution with batch norm.
fn pointwise(scope: &Scope, from: usize, to: usize) -> Result<ConvBatchNorm> {
    Ok(ConvBatchNorm::new(scope, "0", "1", [to, from, 1, 1], Conv2dSpec::new(1, 0), Init::PyTorch)?)
}

impl Step {
    /// Of pass `key` at map `s`: from a neighbour of so many channels to `map`.
    fn new(
        key: &str,
        s: usize,
        (from, map): (usize, MapShape),
        summands: usize,
        depth: usize,
        (scope, trace): (&Scope, &mut Trace),
    ) -> Result<Self> {
        let neighbour = pointwise(&scope.child(format!("{key}_sample")).child(s), from, map.channels)?;
        trace.shape = MapShape { channels: from, ..map };
        trace.conv(neighbour.conv())?;
        let weights = scope.child(format!("{key}_weight")).weight(&s.to_string(), &[summands], Init::Constant(1.0))?;
        let mut blocks = Vec::new();
        for d in 0..depth {
            let block = Separable::new(map.channels, &scope.child(key).child(s).child(d))?;
            trace.conv(&block.depthwise)?;
            trace.conv(block.pointwise.conv())?;
            blocks.push(block);
        }
        Ok(Self { neighbour, weights, blocks })
    }

    /// `blocks(mean(.. summands, neighbour(resize(relu(other)))))`.
    fn forward(
        &self,
        summands: &[Tensor],
        other: &Tensor,
        resize: impl Fn(&Tensor) -> retort_kernels::Result<Tensor>,
        mode: Mode,
    ) -> retort_nn::Result<Tensor> {
        let other = FeatureMap::from_tensor(&resize(&retort_kernels::relu(other)?)?)?;
        let other = self.neighbour.forward(&other, mode, Activation::None)?.to_tensor()?;
        let mut x = FeatureMap::from_tensor(&self.mean(summands.iter().chain([&other]))?)?;
        for block in &self.blocks {
            x = block.pointwise.forward(&block.depthwise.forward(&x.relu()?)?, mode, Activation::None)?;
        }
        Ok(x.to_tensor()?)
    }

    fn mean<'a>(&self, summands: impl Iterator<Item = &'a Tensor>) -> retort_nn::Result<Tensor> {
        let weights = retort_kernels::relu(&self.weights)?;
        let weights = weights.broadcast_div(&(weights.sum_all()? + 1e-6)?)?;
        let mut sum: Option<Tensor> = None;
        for (i, x) in summands.enumerate() {
            let part = x.broadcast_mul(&weights.narrow(0, i, 1)?)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        Ok(sum.expect("there are at least two summands"))
    }
}

impl Separable {
    fn new(channels: usize, scope: &Scope) -> Result<Self> {
        let spec = Conv2dSpec::new(1, 1).with_groups(channels);
        let depthwise = Conv2d::new(&scope.child("0"), [channels, 1, 3, 3], spec, Init::PyTorch)?;
        let (shape, spec) = ([channels, channels, 1, 1], Conv2dSpec::new(1, 0));
        Ok(Self { depthwise, pointwise: ConvBatchNorm::new(scope, "1", "2", shape, spec, Init::PyTorch)? })
    }
}

/// 3x3 maxima of stride 2: `ceil(H / 2)` rows. The border of zeros takes one row at the end of an even map and one on
/// each side of an odd one; the maps are not negative, so that it never wins.
fn pooled_to_half(x: &Tensor) -> retort_kernels::Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let pad = |x: &Tensor, dim: usize, size: usize| x.pad_with_zeros(dim, size % 2, 1);
    max_pool2d(&pad(&pad(x, 2, height)?, 3, width)?, &Pool2dSpec::new(3, 2, 0))
}
