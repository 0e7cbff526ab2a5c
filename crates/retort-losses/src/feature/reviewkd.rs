//! Knowledge review: deeper stages of the student are fused into shallower ones.

use super::gate::gated_sum;
use crate::config::{self, ExtraPhase, Family, Inputs, MapChoice, Method, MethodInfo, Side, check};
use crate::distiller::{BuildContext, Context, Distiller, Needs, Term};
use crate::stages::{Pairing, check_pre_activations};
use crate::{Align, Error, Result, StageLoss, ops, reduce};
use candle_core::Tensor;
use retort_kernels::{Activation, Conv2dSpec, FeatureMap, adaptive_avg_pool2d, resize_nearest2d};
use retort_nn::{ConvBatchNorm, Init, MapShape, Mode, Scope, Taps, fan_in};
use serde::{Deserialize, Serialize};

const METHOD: &str = "reviewkd";
const WARMUP_EPOCHS: usize = 20;
/// Grids that the maps are compared on, besides their own.
const LEVELS: [usize; 3] = [4, 2, 1];

/// Hierarchical context loss (Chen et al. 2021, arXiv 2104.09044).
///
/// For maps of height h: the mean squared error, and for each s of 4, 2, 1 below h that of the maps adaptively
/// average-pooled to `s x s`, with the weights 1, 1/2, 1/4 ... in this order, divided by the sum of the weights.
/// Pairs are summed.
///
/// # Shapes
///
/// `student[i]`, `teacher[i]`: `[B, C_i, H_i, W_i]` of one shape; see [`Review`] for the first.
///
/// # Gradients
///
/// Into the student's maps; the teacher's are detached.
///
/// # Errors
///
/// Lists of different lengths or empty ones, a pair of two shapes.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let s = Tensor::new(&[[[[1f32, -1.0], [1.0, -1.0]]]], &Device::Cpu)?;
/// let loss = retort_losses::feature::hierarchical_context(&[s.clone()], &[s.zeros_like()?])?;
/// // Pooled to one value, the maps agree.
/// assert_eq!(loss.total.to_scalar::<f32>()?, 1.0 / 1.5);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn hierarchical_context(student: &[Tensor], teacher: &[Tensor]) -> Result<StageLoss> {
    StageLoss::sum(METHOD, student, teacher, |i, s, t| {
        ops::check_maps(METHOD, i, s, t)?;
        if s.dims() != t.dims() {
            return Err(ops::mismatch(METHOD, format!("stage {i}: the maps must have one shape"), s, t));
        }
        let t = t.detach();
        let mut loss = reduce::mean_squared_error(s, &t)?;
        let levels: Vec<usize> = LEVELS.into_iter().filter(|level| *level < s.dims()[2]).collect();
        if levels.is_empty() {
            return Ok(loss);
        }
        // Pooling is linear.
        let difference = (s - t)?;
        let (mut weight, mut total) = (1.0, 1.0);
        for level in levels {
            weight /= 2.0;
            total += weight;
            let pooled = adaptive_avg_pool2d(&difference, [level, level])?;
            loss = (loss + (reduce::mean_all(&pooled.sqr()?)? * weight)?)?;
        }
        Ok((loss / total)?)
    })
}

/// Attention-based fusion of one entry of the student with the entries below it.
///
/// `a = BN(conv1x1(x))`; unless it is the deepest entry, the map `y` that the deeper block hands on is resized to the
/// entry's size (nearest), `g = sigmoid(conv1x1([a; y]))` has two channels and `a <- g_0 a + g_1 y`.
/// Then `a` is resized to the teacher's size if it differs; it is what is handed on, and `BN(conv3x3(a))` the result.
///
/// Parameters: `conv1.0.weight` `[M, C, 1, 1]`, `conv1.1.weight`, `conv1.1.bias`, `conv2.0.weight` `[O, M, 3, 3]`,
/// `conv2.1.weight`, `conv2.1.bias`, and unless it is the deepest `att_conv.0.weight` `[2, 2 M, 1, 1]`, `att_conv.0.bias`.
struct Fusion {
    conv1: ConvBatchNorm,
    conv2: ConvBatchNorm,
    attention: Option<Attention>,
    student: MapShape,
    out_size: [usize; 2],
}

/// The two gates: a convolution of the concatenated maps.
struct Attention {
    weight: Tensor,
    bias: Tensor,
}

impl Attention {
    fn new(mid: usize, scope: &Scope) -> Result<Self> {
        let shape = [2, 2 * mid, 1, 1];
        let weight = scope.weight("weight", &shape, Init::PyTorch)?;
        let bias = scope.weight("bias", &shape[..1], Init::pytorch_bias(&shape))?;
        Ok(Self { weight, bias })
    }

    fn forward(&self, own: &FeatureMap, deeper: &Tensor) -> Result<Tensor> {
        // A convolution of each half, so that nothing is concatenated.
        let mid = self.weight.dims()[1] / 2;
        let half = |i: usize| self.weight.narrow(1, i * mid, mid);
        let (spec, none) = (Conv2dSpec::new(1, 0), Activation::None);
        let part = FeatureMap::from_tensor(deeper)?.conv2d(&half(1)?, None, None, none, &spec)?;
        let logits = own.conv2d(&half(0)?, Some(&self.bias), Some(&part), none, &spec)?;
        gated_sum(&own.to_tensor()?, deeper, &logits.to_tensor()?)
    }
}

impl Fusion {
    fn new(student: MapShape, teacher: MapShape, mid: usize, deepest: bool, scope: &Scope) -> Result<Self> {
        let conv = |name: &str, shape: [usize; 4]| {
            // Kaiming's uniform rule for a linear unit.
            let init = Init::Uniform { bound: (3.0 / fan_in(&shape) as f64).sqrt() };
            ConvBatchNorm::new(&scope.child(name), "0", "1", shape, Conv2dSpec::new(1, shape[2] / 2), init)
        };
        let attention = match deepest {
            true => None,
            false => Some(Attention::new(mid, &scope.child("att_conv").child(0))?),
        };
        Ok(Self {
            conv1: conv("conv1", [mid, student.channels, 1, 1])?,
            conv2: conv("conv2", [teacher.channels, mid, 3, 3])?,
            attention,
            student,
            out_size: [teacher.height, teacher.width],
        })
    }

    /// The result and what is handed on.
    fn forward(&self, x: &Tensor, deeper: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let own = self.conv1.forward(&FeatureMap::from_tensor(x)?, mode(x)?, Activation::None)?;
        let mut fused = match (&self.attention, deeper) {
            (Some(attention), Some(deeper)) => {
                attention.forward(&own, &resized(deeper, [self.student.height, self.student.width])?)?
            }
            _ => own.to_tensor()?,
        };
        fused = resized(&fused, self.out_size)?;
        let out = self.conv2.forward(&FeatureMap::from_tensor(&fused)?, mode(&fused)?, Activation::None)?;
        Ok((out.to_tensor()?, fused))
    }
}

/// A single value per channel has no variance: the running statistics take its place, and are left alone.
fn mode(x: &Tensor) -> Result<Mode> {
    let (b, _, h, w) = x.dims4()?;
    Ok(if b * h * w == 1 { Mode::Eval } else { Mode::Train })
}

fn resized(x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    if x.dims()[2..] == size {
        return Ok(x.clone());
    }
    Ok(resize_nearest2d(x, size)?)
}

/// The fusion of all entries of the student, from the deepest (the pooled embedding) up.
///
/// Parameters of block `K` in order of execution, 0 being the deepest: `K.conv1.0.weight` `[M, C, 1, 1]`,
/// `K.conv1.1.weight`, `K.conv1.1.bias`, `K.conv2.0.weight` `[O, M, 3, 3]`, `K.conv2.1.weight`, `K.conv2.1.bias`, and
/// from block 1 on `K.att_conv.0.weight` `[2, 2 M, 1, 1]`, `K.att_conv.0.bias`; buffers `running_mean`, `running_var`
/// beside the weights of the batch norms.
pub struct Review {
    /// Deep to shallow.
    blocks: Vec<Fusion>,
}

impl Review {
    /// Declares the parts in `scope` for pairs of student's and teacher's entries, shallow to deep, the embeddings as
    /// maps of one position; `mid` channels are fused.
    ///
    /// # Errors
    ///
    /// No entries, no `mid` channels, or a name that is taken.
    pub fn new(entries: &[(MapShape, MapShape)], mid: usize, scope: &Scope) -> Result<Self> {
        check::width(METHOD, "mid channels", mid)?;
        if entries.is_empty() {
            return Err(Error::Missing { method: METHOD, what: "at least one pair of maps" });
        }
        let block = |(k, (student, teacher)): (usize, &(MapShape, MapShape))| {
            Fusion::new(*student, *teacher, mid, k == 0, &scope.child(k))
        };
        Ok(Self { blocks: entries.iter().rev().enumerate().map(block).collect::<Result<_>>()? })
    }

    /// The student's entries, shallow to deep, as maps of the teacher's shapes; updates the running statistics, except
    /// where a map holds a single value per channel.
    ///
    /// # Errors
    ///
    /// Another number of entries, batch sizes that differ, or an entry of another shape than declared.
    pub fn forward(&self, student: &[Tensor]) -> Result<Vec<Tensor>> {
        if student.len() != self.blocks.len() {
            let message = format!("expected {} maps of the student, found {}", self.blocks.len(), student.len());
            return Err(Error::Undefined { method: METHOD, message });
        }
        let mut results = Vec::with_capacity(student.len());
        let mut deeper: Option<Tensor> = None;
        for (i, (block, x)) in (0..student.len()).rev().zip(self.blocks.iter().zip(student.iter().rev())) {
            let b = student[0].dims().first().copied().unwrap_or(0);
            let MapShape { channels, height, width } = block.student;
            if x.dims() != [b, channels, height, width] {
                let (what, expected) =
                    (format!("stage {i}: student map"), format!("[{b}, {channels}, {height}, {width}]"));
                return Err(Error::Shape { method: METHOD, what, expected, found: x.dims().to_vec() });
            }
            let (result, handed_on) = block.forward(x, deeper.as_ref())?;
            results.push(result);
            deeper = Some(handed_on);
        }
        results.reverse();
        Ok(results)
    }
}

/// Hyper-parameters of knowledge review; all shapes come from the networks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReviewkdConfig {
    /// Whether the student's maps are those before the activation too, as on ImageNet.
    pub student_pre_activations: bool,
    /// The blocks fuse as many channels as the student's embedding is wide, but no more than this.
    pub max_mid_channels: usize,
    /// The term's weight rises linearly over these epochs, `min((epoch + 1) / warmup_epochs, 1)`; 0 is no ramp.
    pub warmup_epochs: usize,
    /// Pairing of stages; the embeddings are a pair of their own.
    pub align: Align,
    /// Weight of the term: 5 on CIFAR; 1 and 8 have been used on ImageNet.
    pub weight: f64,
}

impl Default for ReviewkdConfig {
    fn default() -> Self {
        let (student_pre_activations, align) = (false, Align::Exact);
        Self { student_pre_activations, max_mid_channels: 512, warmup_epochs: WARMUP_EPOCHS, align, weight: 5.0 }
    }
}

impl Method for ReviewkdConfig {
    const INFO: MethodInfo = MethodInfo {
        id: METHOD,
        title: "Knowledge review",
        family: Family::Feature,
        paper: Some("Distilling Knowledge via Knowledge Review"),
        year: Some(2021),
        arxiv: Some("2104.09044"),
        inputs: Inputs {
            embedding: Side::Both,
            maps: Side::Student,
            pre_activations: Side::Teacher,
            which: MapChoice::Stages,
            ..Inputs::NONE
        },
        trainable: &["fusion block of each stage and of the embedding"],
        phase: Some(ExtraPhase::Ramp(WARMUP_EPOCHS)),
        state: &[],
        buffers: &["batch norm statistics"],
        ce_weight: Some(1.0),
        weight: 5.0,
        code_bases: &[config::MDISTILLER],
    };
    fn weight(&self) -> f64 {
        self.weight
    }
    fn validate(&self) -> Result<()> {
        check::width(METHOD, "max_mid_channels", self.max_mid_channels)
    }
    fn needs(&self) -> Needs {
        Needs { taps: Taps { maps: !self.student_pre_activations, pre_activations: true }, ..Needs::TEACHER }
    }
    fn build(&self, ctx: &BuildContext<'_>) -> Result<Box<dyn Distiller>> {
        let (student, teacher) = (ctx.student, ctx.teacher(METHOD)?);
        check_pre_activations(METHOD, "teacher", teacher)?;
        if self.student_pre_activations {
            check_pre_activations(METHOD, "student", student)?;
        }
        let pairing = Pairing::new(METHOD, self.align, ctx)?;
        let vector = |channels: usize| MapShape { channels, height: 1, width: 1 };
        let mut entries = pairing.shapes(ctx)?;
        entries.push((vector(student.embedding), vector(teacher.embedding)));
        let review = Review::new(&entries, student.embedding.min(self.max_mid_channels), &ctx.scope)?;
        Ok(Box::new(Reviewkd { config: self.clone(), pairing, review }))
    }
}

struct Reviewkd {
    config: ReviewkdConfig,
    pairing: Pairing,
    review: Review,
}

impl Distiller for Reviewkd {
    fn term(&mut self, ctx: &Context<'_>) -> Result<Term> {
        let teacher = ctx.teacher(METHOD)?;
        let maps = match self.config.student_pre_activations {
            true => ctx.student.stage_pre_activations(),
            false => ctx.student.stages(),
        };
        let (mut student_maps, mut teacher_maps) = self.pairing.pick(maps, teacher.stage_pre_activations())?;
        let as_map = |x: &Tensor| x.unsqueeze(2)?.unsqueeze(3);
        student_maps.push(as_map(&ctx.student.embedding)?);
        teacher_maps.push(as_map(&teacher.embedding)?);
        let loss = hierarchical_context(&self.review.forward(&student_maps)?, &teacher_maps)?;
        let weight = self.config.weight * ctx.ramp(self.config.warmup_epochs);
        Ok(Term { name: METHOD, weight, parts: loss.parts(), value: loss.total })
    }
}
