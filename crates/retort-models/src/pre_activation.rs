//! Residual networks with the activation before the convolutions (He et al. 2016, arXiv 1603.05027), wide ones among
//! them (Zagoruyko and Komodakis 2016, arXiv 1605.07146).

use crate::block::{Block, Blocks, ConvRelu, NormRelu, Tap, Trace};
use crate::common::{MOST_BLOCKS, MOST_CHANNELS, check_range, config_error};
use crate::resnet::{Branch, Stage, check_window};
use crate::staged::{Architecture, Shows, Site};
use crate::{ModelConfig, Result};
use retort_kernels::{Activation, Conv2dSpec, FeatureMap};
use retort_nn::{BatchNorm, Conv2d, ConvBatchNorm, Init, Linear, Mode, Scope, StageNorm};

/// What differs between the code bases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `wrn_*`: bare stem; identity shortcuts take the raw map, projections (`convShortcut`) the activated one; batch
    /// norm and ReLU behind the last group. Blocks are `block{G}.layer.{i}`.
    Wide,
    /// `preact_resnet18` of Self-KD-Lib and zipfls: stem with batch norm and ReLU; **all** shortcuts take the activated
    /// map; nothing behind the last stage. Blocks are `layer{L}.{b}`, projections `shortcut.0`; all layers start with
    /// PyTorch's default.
    Activated,
    /// `preresnet*` of the fidelity study: bare stem; all shortcuts take the raw map (projections `downsample.0`);
    /// batch norm and ReLU behind the last stage. Blocks are `layer{L}.{b}`.
    Raw,
}

/// A pre-activation network.
///
/// A block is `shortcut + conv2(relu(bn2(conv1(a))))` with `a = relu(bn1(x))`; whether the shortcut takes `x` or `a` is
/// the flavour's choice.
///
/// f0 is the stem and f1 .. are the sums at the end of the stages: none of them is activated, save the stem where it
/// ends with a ReLU. Where a batch norm follows the last stage the pre-activations are the batch norms by which the
/// network goes on, for a wide ResNet `block2.layer.0.bn1(f1)`, `block3.layer.0.bn1(f2)` and `bn1(f3)`, taken from the
/// ordinary pass: tapping them does not update the running statistics a second time (mdistiller's forward pass does).
///
/// Convolutions start with the fan-out normal rule, `fc` with PyTorch's default (a wide ResNet's with bias 0).
///
/// In a frozen network `bn2` is folded into `conv1`; `bn1` stands behind an addition and before a ReLU, so it stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreActivationConfig {
    /// Which code base.
    pub flavour: Flavour,
    /// Kind of block.
    pub branch: Branch,
    /// Channels of the stem.
    pub stem: usize,
    /// Width of its window, odd, at most 255; 3 in the papers.
    pub stem_kernel: usize,
    /// Its step; 1 in the papers.
    pub stem_stride: usize,
    /// The stages, in order.
    pub stages: Vec<Stage>,
    /// Key of the classifier.
    pub classifier: &'static str,
}

impl PreActivationConfig {
    /// WRN-d-w: depth d = `6n + 4` with n >= 1 blocks a group, groups of `16w`, `32w` and `64w` channels, w from 1 to
    /// 1024.
    ///
    /// # Errors
    ///
    /// A depth that no number of blocks gives, or a width out of range.
    pub fn wide(depth: usize, widen: usize) -> Result<Self> {
        let model = format!("wrn_{depth}_{widen}");
        let blocks = match depth.checked_sub(4) {
            Some(rest) if (1..=MOST_BLOCKS).contains(&(rest / 6)) && rest.is_multiple_of(6) => rest / 6,
            _ => {
                let message = format!("depth must be 6n + 4 with n from 1 to {MOST_BLOCKS}, found {depth}");
                return Err(config_error(&model, message));
            }
        };
        if !(1..=1024).contains(&widen) {
            return Err(config_error(&model, format!("widen must be from 1 to 1024, found {widen}")));
        }
        let stages = Stage::rows(&[16 * widen, 32 * widen, 64 * widen], &[blocks; 3]);
        Ok(Self { stem: 16, stages, flavour: Flavour::Wide, ..Self::resnet18() })
    }

    /// The 18-layer network of the self-distillation code bases.
    #[must_use]
    pub fn resnet18() -> Self {
        let stages = Stage::rows(&[64, 128, 256, 512], &[2; 4]);
        Self {
            flavour: Flavour::Activated,
            branch: Branch::Basic,
            stem: 64,
            stem_kernel: 3,
            stem_stride: 1,
            stages,
            classifier: "fc",
        }
    }

    /// The networks of the fidelity study: basic blocks below a depth of 44 (`6n + 2`), bottlenecks from there on
    /// (`9n + 2`).
    ///
    /// # Errors
    ///
    /// A depth that no number of blocks gives.
    pub fn fidelity(depth: usize) -> Result<Self> {
        let branch = if depth < 44 { Branch::Basic } else { Branch::Bottleneck };
        let blocks = branch.blocks_of_depth(&format!("preresnet{depth}"), depth)?;
        let stages = Stage::rows(&[16, 32, 64], &[blocks; 3]);
        Ok(Self { flavour: Flavour::Raw, branch, stem: 16, stages, ..Self::resnet18() })
    }

    fn init(&self) -> Init {
        if self.flavour == Flavour::Activated { Init::PyTorch } else { Init::KaimingNormalFanOut }
    }
}

impl Architecture for PreActivationConfig {
    fn check(&self, model: &str, _config: &ModelConfig) -> Result<()> {
        check_range(model, MOST_CHANNELS, [("stem channels", self.stem)])?;
        check_window(model, self.stem_kernel, self.stem_stride)?;
        Stage::check(&self.stages, model)
    }

    fn shows(&self) -> Shows {
        if self.flavour == Flavour::Activated { Shows::Nothing } else { Shows::Entrances }
    }

    fn groups(&self) -> usize {
        self.stages.len()
    }

    fn stem(&self, inputs: usize, scope: &Scope) -> Result<Blocks> {
        let kernel = self.stem_kernel;
        let (shape, spec) = ([self.stem, inputs, kernel, kernel], Conv2dSpec::new(self.stem_stride, kernel / 2));
        Ok(match self.flavour {
            Flavour::Activated => {
                vec![Box::new(ConvRelu(ConvBatchNorm::new(scope, "conv1", "bn1", shape, spec, self.init())?))]
            }
            _ => vec![Box::new(Conv2d::new(&scope.child("conv1"), shape, spec, self.init())?)],
        })
    }

    fn group(&self, site: &Site, scope: &Scope) -> Result<Blocks> {
        let stage = self.stages[site.group];
        let scope = if self.flavour == Flavour::Wide { scope.child("layer") } else { scope.clone() };
        let mut blocks = Blocks::new();
        for row in stage.blocks_at(site, self.branch) {
            blocks.push(Box::new(self.block(row.inputs, stage.channels, row.stride, &scope.child(row.index))?));
        }
        Ok(blocks)
    }

    fn group_key(&self, group: usize) -> String {
        let prefix = if self.flavour == Flavour::Wide { "block" } else { "layer" };
        format!("{prefix}{}", group + 1)
    }

    fn tail_keys(&self) -> &'static [&'static str] {
        match self.flavour {
            Flavour::Wide => &["bn1"],
            Flavour::Activated => &[],
            Flavour::Raw => &["bn"],
        }
    }

    fn branch_tail_keys(&self, branch: usize, _groups: usize) -> Vec<String> {
        self.tail_keys().iter().map(|_| format!("bn{branch}")).collect()
    }

    fn peer_key(&self, key: &str, peer: usize) -> String {
        match key {
            "bn" | "bn1" => format!("bn_{peer}"),
            "fc" => format!("classifier_{peer}"),
            group => format!("{group}_{peer}"),
        }
    }

    fn tail(&self, inputs: usize, keys: &[Scope]) -> Result<Blocks> {
        keys.iter().map(|key| Ok(Box::new(NormRelu(BatchNorm::new(key, inputs)?)) as Box<dyn Block>)).collect()
    }

    fn classifier_key(&self) -> &'static str {
        self.classifier
    }

    fn classifier(&self, inputs: usize, classes: usize, scope: &Scope) -> Result<Linear> {
        Ok(match self.flavour {
            Flavour::Wide => Linear::with_init(scope, inputs, classes, Init::PyTorch, Some(Init::Constant(0.0)))?,
            _ => Linear::new(scope, inputs, classes)?,
        })
    }
}

impl PreActivationConfig {
    fn block(&self, from: usize, narrow: usize, stride: usize, scope: &Scope) -> Result<PreActivationBlock> {
        let rows = self.branch.rows(from, narrow, stride);
        let to = narrow * self.branch.expansion();
        let mut inner = Vec::new();
        for (i, (kernel, stride, inputs, outputs)) in rows[..rows.len() - 1].iter().copied().enumerate() {
            // Each convolution with the batch norm that follows it; the first one of all stands alone.
            let (conv, norm) = (format!("conv{}", i + 1), format!("bn{}", i + 2));
            let (shape, spec) = ([outputs, inputs, kernel, kernel], Conv2dSpec::new(stride, kernel / 2));
            inner.push(ConvBatchNorm::new(scope, &conv, &norm, shape, spec, self.init())?);
        }
        let (kernel, stride_of_last, inputs, outputs) = rows[rows.len() - 1];
        let last = Conv2d::new(
            &scope.child(format!("conv{}", rows.len())),
            [outputs, inputs, kernel, kernel],
            Conv2dSpec::new(stride_of_last, kernel / 2),
            self.init(),
        )?;
        let key = match self.flavour {
            Flavour::Wide => "convShortcut",
            Flavour::Activated => "shortcut.0",
            Flavour::Raw => "downsample.0",
        };
        let shortcut = match from != to || stride != 1 {
            true => Some(Conv2d::new(&scope.child(key), [to, from, 1, 1], Conv2dSpec::new(stride, 0), self.init())?),
            false => None,
        };
        let norm = BatchNorm::new(&scope.child("bn1"), from)?;
        Ok(PreActivationBlock { flavour: self.flavour, norm, inner, last, shortcut })
    }
}

/// `shortcut + conv(relu(bn(conv(a))))` for `a = relu(norm(x))`; the tap is `norm(x)`.
struct PreActivationBlock {
    flavour: Flavour,
    norm: BatchNorm,
    /// `conv1` with `bn2`, in a bottleneck also `conv2` with `bn3`.
    inner: Vec<ConvBatchNorm>,
    last: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Block for PreActivationBlock {
    fn forward(&self, x: &FeatureMap, mode: Mode, tap: &mut Tap) -> retort_nn::Result<FeatureMap> {
        let activated = tap.relu(|activation| self.norm.forward(x, mode, activation))?;
        let mut y = activated.clone();
        for conv in &self.inner {
            y = conv.forward(&y, mode, Activation::Relu)?;
        }
        let add = |shortcut: &FeatureMap| self.last.forward_with(&y, Some(shortcut), Activation::None);
        match (&self.shortcut, self.flavour) {
            (Some(projection), Flavour::Raw) => add(&projection.forward(x)?),
            (Some(projection), _) => add(&projection.forward(&activated)?),
            (None, Flavour::Activated) => add(&activated),
            (None, _) => add(x),
        }
    }

    fn trace(&self, trace: &mut Trace) -> Result<()> {
        if let Some(projection) = &self.shortcut {
            trace.beside(|trace| trace.conv(projection))?;
        }
        self.inner.iter().map(ConvBatchNorm::conv).chain([&self.last]).try_for_each(|conv| trace.conv(conv))
    }

    /// None where the network shows no pre-activations: there the batch norm is inside of the stage, not at its end.
    fn norm(&self) -> Option<StageNorm> {
        (self.flavour != Flavour::Activated).then(|| self.norm.stage_norm())
    }
}
