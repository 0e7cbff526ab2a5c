//! Auxiliary classifiers grown from a network's own groups of blocks.

use crate::common::{
    MOST_BLOCKS, MOST_CLASSES, MOST_PARTS, check_batch, check_mode, check_range, check_shape, check_size, check_sizes,
    config_error, named, saturating_sum,
};
use crate::staged::{Architecture, End, Group, Plan, Shows, Site, Walk};
use crate::{Family, ModelConfig, Result};
use candle_core::{D, Tensor};
use retort_kernels::resize_bilinear2d;
use retort_nn::{Init, Linear, MapShape, Mode, Network, NetworkSpec, Outputs, Scope, Taps, no_grad};
use std::ops::Range;
use std::sync::Arc;

/// A group of the network, built once more in a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// The group, from 0: a residual network's `layer1` is group 0.
    pub group: usize,
    /// Number of blocks, from 1 to 256; `None`: as many as in the network. A ShuffleNetV2's first block of a stage is
    /// not counted; groups that are no row of equal blocks (a transition of HCGNet, a stage of MobileNetV1) have no
    /// other number.
    pub blocks: Option<usize>,
    /// Whether the map keeps its size where the network's group reduces it.
    pub keeps_size: bool,
}

impl Repeat {
    /// The group as it stands in the network.
    #[must_use]
    pub fn whole(group: usize) -> Self {
        Self { group, blocks: None, keeps_size: false }
    }

    /// The group with another number of blocks.
    #[must_use]
    pub fn with_blocks(group: usize, blocks: usize) -> Self {
        Self { group, blocks: Some(blocks), keeps_size: false }
    }

    /// The group without reduction of the map.
    #[must_use]
    pub fn keeping_size(group: usize) -> Self {
        Self { group, blocks: None, keeps_size: true }
    }
}

/// One branch: where it hangs, and what it repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchRow {
    /// The map that the branch is fed with, an index into [`Outputs::maps`]: 0 is the stem.
    pub map: usize,
    /// The groups between that map and the branch's end; none: the classifier stands on the pooled map itself.
    pub groups: Vec<Repeat>,
    /// Key of the classifier in place of `fc{i}`.
    pub classifier: Option<String>,
}

impl BranchRow {
    fn new(map: usize, groups: Vec<Repeat>) -> Self {
        Self { map, groups, classifier: None }
    }
}

/// Initial values of branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BranchInit {
    /// As in the network.
    Network,
    /// As in HSAKD's code: the fan-out normal rule for convolutions and a classifier with bias 0 (residual networks and
    /// ShuffleNet), PyTorch's default throughout (VGG, ShuffleNetV2), as in the network (MobileNetV2 and whatever HSAKD
    /// does not have).
    Hsakd,
}

/// Which branches a network has.
///
/// The functions below are the published tables; any other list of rows is as good.
///
/// ```
/// use retort_models::{BranchesConfig, info};
/// let family = &info("resnet20")?.family;
/// let config = BranchesConfig::hsakd(family, 100);
/// assert_eq!(config.rows.len(), 3);
/// assert_eq!(config.outputs, 400);
/// # Ok::<(), retort_models::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchesConfig {
    /// The branches, in order.
    pub rows: Vec<BranchRow>,
    /// Outputs of each classifier.
    pub outputs: usize,
    /// Initial values.
    pub init: BranchInit,
}

impl BranchesConfig {
    /// One branch behind every stage, with `4 * classes` outputs for the joint labels of class and rotation (HSAKD,
    /// Yang et al. 2021, arXiv 2107.13715).
    ///
    /// Branch i repeats the groups behind map i, the last one the groups of the last stage without reducing the map. A
    /// VGG has its branches behind the blocks 0, 1, 2 and 4.
    #[must_use]
    pub fn hsakd(family: &Family, classes: usize) -> Self {
        let rows = match (family, family.architecture()) {
            (_, None) => vec![],
            (Family::Vgg(_), _) => vgg_rows(),
            (_, Some(architecture)) => {
                let mut rows = rows_before_last(architecture);
                if let Some(last) = steps(architecture).pop() {
                    rows.push(BranchRow::new(rows.len() + 1, last.map(Repeat::keeping_size).collect()));
                }
                rows
            }
        };
        Self { rows, outputs: classes.saturating_mul(4), init: BranchInit::Hsakd }
    }

    /// One branch behind every stage but the last (L-MCL, Yang et al. 2023, arXiv 2207.11518).
    #[must_use]
    pub fn lmcl(family: &Family, classes: usize) -> Self {
        let rows = family.architecture().map(rows_before_last).unwrap_or_default();
        Self { rows, outputs: classes, init: BranchInit::Network }
    }

    /// One branch behind every stage but the last (MixSKD, Yang et al. 2022, arXiv 2208.05768).
    ///
    /// For a residual network with the stem of ImageNet the branches have 4, 6 and 3 blocks a stage, whatever the
    /// network itself has, as in the reference.
    #[must_use]
    pub fn mixskd(family: &Family, classes: usize) -> Self {
        match family {
            Family::ResNet(config) if config.stem.pooled => Self::exits(family, &[&[4, 6, 3], &[6, 3], &[3]], classes),
            _ => Self::lmcl(family, classes),
        }
    }

    /// A branch behind each of the two stages before the last: of one and two blocks, and of two (DKS, Sun et al. 2019,
    /// *Deeply-supervised Knowledge Synergy*, CVPR).
    #[must_use]
    pub fn dks(family: &Family, classes: usize) -> Self {
        Self::exits(family, &[&[1, 2], &[2]], classes)
    }

    /// The same with one block for each stage (BYOT, Zhang et al. 2019, arXiv 1905.08094).
    #[must_use]
    pub fn byot(family: &Family, classes: usize) -> Self {
        Self::exits(family, &[&[1, 1], &[1]], classes)
    }

    /// `blocks`: for each branch the numbers of blocks of the last groups, one number a group; the branch hangs before
    /// them.
    #[must_use]
    pub fn exits(family: &Family, blocks: &[&[usize]], outputs: usize) -> Self {
        let groups = family.architecture().map_or(0, |architecture| architecture.groups());
        let row = |counts: &&[usize]| {
            let first = groups.saturating_sub(counts.len());
            let repeats = counts.iter().zip(first..).map(|(&blocks, group)| Repeat::with_blocks(group, blocks));
            // The map before the first of these groups: f0 and one for every shown group until there.
            let shown =
                |architecture: &dyn Architecture| (0..first).filter(|&group| architecture.is_shown(group)).count();
            BranchRow::new(family.architecture().map_or(0, shown), repeats.collect())
        };
        Self { rows: blocks.iter().map(row).collect(), outputs, init: BranchInit::Network }
    }

    /// A linear classifier on every pooled stage f1 .. fL: the probes by which a representation is judged (Tian et al.
    /// 2020, arXiv 1910.10699). The network below them is to stay as it is: see [`BranchedNetwork::forward_branches`].
    #[must_use]
    pub fn probes(family: &Family, classes: usize) -> Self {
        let stages = family.architecture().map_or(0, |architecture| steps(architecture).len());
        let rows = (1..=stages).map(|map| BranchRow::new(map, vec![])).collect();
        Self { rows, outputs: classes, init: BranchInit::Network }
    }

    /// Linear classifiers on the pooled maps f3 and f2, `linear3` and `linear2` (Zipf's label smoothing, Liang et al.
    /// 2022, arXiv 2207.12980); see [`dense_votes`].
    #[must_use]
    pub fn zipf(classes: usize) -> Self {
        let row = |map| BranchRow { map, groups: vec![], classifier: Some(format!("linear{map}")) };
        Self { rows: vec![row(3), row(2)], outputs: classes, init: BranchInit::Network }
    }
}

/// The groups that lead from each map to the next.
fn steps(architecture: &dyn Architecture) -> Vec<Range<usize>> {
    let mut steps = Vec::new();
    let mut start = 0;
    for group in (0..architecture.groups()).filter(|&group| architecture.is_shown(group)) {
        steps.push(start..group + 1);
        start = group + 1;
    }
    steps
}

/// For every map but f0 and the last one a branch of all groups behind it.
fn rows_before_last(architecture: &dyn Architecture) -> Vec<BranchRow> {
    let later = steps(architecture).into_iter().enumerate().skip(1);
    later
        .map(|(map, step)| BranchRow::new(map, (step.start..architecture.groups()).map(Repeat::whole).collect()))
        .collect()
}

/// There is no pooling before the last block of a branch, at 64 rows neither.
fn vgg_rows() -> Vec<BranchRow> {
    let from = |first: usize| (first..3).map(Repeat::whole).chain([Repeat::keeping_size(3)]).collect();
    vec![
        BranchRow::new(0, from(0)),
        BranchRow::new(1, from(1)),
        BranchRow::new(2, from(2)),
        BranchRow::new(4, vec![Repeat::keeping_size(2), Repeat::keeping_size(3)]),
    ]
}

/// Auxiliary classifiers on the maps of a network.
///
/// A branch is a row of groups of the network's own kind with weights of its own, the network's tail where it has one
/// (batch norm and ReLU of a wide ResNet, last convolution of a MobileNetV2), global average and linear classifier.
/// Gradients flow into the maps that it is given: a caller who wants the network left alone detaches them.
///
/// Keys: `block_extractor{i}.{place}..` for branch i from 1, the places counted as in HSAKD's code (a VGG's poolings
/// and ReLUs count, too; a ShuffleNetV2's last convolution and batch norm are further places); `bn{i}` (wide ResNet),
/// `conv2_{i}.{0,1}` (MobileNetV2); `fc{i}`.
pub struct Branches {
    branches: Vec<Branch>,
    /// Shapes of the maps that branches read, by index.
    maps: Vec<MapShape>,
}

struct Branch {
    map: usize,
    shows: Shows,
    groups: Vec<Group>,
    end: End,
    spec: NetworkSpec,
    frozen: bool,
}

impl Branches {
    /// Declares the branches in `scope` for a network of `family` that is described by `network`.
    ///
    /// # Errors
    ///
    /// A family without groups of blocks, rows that are not 1 to 64, a map or group that the network does not have,
    /// sizes of zero, maps that become too small, or weights that do not fit (see [`Scope::weight`]).
    pub fn new(family: &Family, network: &NetworkSpec, config: &BranchesConfig, scope: &Scope) -> Result<Self> {
        let name = &network.name;
        let Some(architecture) = family.architecture() else {
            return Err(config_error(name, "there are no groups of blocks that a branch could repeat"));
        };
        check_size(name, "outputs of a branch", config.outputs, MOST_CLASSES)?;
        check_range(name, MOST_PARTS, [("number of branches", config.rows.len())])?;
        // A description that was made by hand may hold any numbers.
        let &NetworkSpec { in_channels, image, classes, .. } = network;
        check_sizes(name, &ModelConfig { in_channels, image, classes })?;
        network.maps.iter().try_for_each(|map| check_shape(name, map))?;
        let rows = config.rows.iter().enumerate();
        let branch = |(i, row)| named(name, Branch::new(i + 1, row, (family, architecture), network, config, scope));
        Ok(Self { branches: rows.map(branch).collect::<Result<_>>()?, maps: network.maps.clone() })
    }

    /// What each branch is: its images are the maps that it reads, its f0 is that map.
    #[must_use]
    pub fn specs(&self) -> Vec<&NetworkSpec> {
        self.branches.iter().map(|branch| &branch.spec).collect()
    }

    /// The linear layers at the ends.
    #[must_use]
    pub fn classifiers(&self) -> Vec<&Linear> {
        self.branches.iter().map(|branch| &branch.end.classifier).collect()
    }

    /// Multiply-adds of all branches for one image.
    #[must_use]
    pub fn multiply_adds(&self) -> usize {
        saturating_sum(self.branches.iter().map(|branch| branch.spec.multiply_adds))
    }

    /// One pass over the maps of a network ([`Outputs::maps`]), in the order of the rows.
    ///
    /// The maps of a branch are the one that it reads and those behind its groups, the last one before the tail.
    ///
    /// # Errors
    ///
    /// Maps that were not tapped or have other shapes than the network's, or a frozen store in [`Mode::Train`].
    pub fn forward(&self, maps: &[Tensor], mode: Mode, taps: Taps) -> retort_nn::Result<Vec<Outputs>> {
        if maps.len() != self.maps.len() {
            let message =
                format!("expected the {} maps f0, f1, .. of the network, found {}", self.maps.len(), maps.len());
            return Err(retort_nn::Error::invalid("branches", message));
        }
        self.branches.iter().map(|branch| branch.forward(&maps[branch.map], mode, taps)).collect()
    }
}

impl Branch {
    fn new(
        number: usize,
        row: &BranchRow,
        (family, architecture): (&Family, &dyn Architecture),
        network: &NetworkSpec,
        config: &BranchesConfig,
        scope: &Scope,
    ) -> Result<Self> {
        let name = format!("{}, branch {number}", network.name);
        let Some(&start) = network.maps.get(row.map) else {
            let message = format!("map must be below {}, found {}", network.maps.len(), row.map);
            return Err(config_error(&name, message));
        };
        let mut plan = Plan::at(&name, architecture, network.image, start);
        let hsakd = config.init == BranchInit::Hsakd;
        let sites = row.groups.iter().map(|repeat| site(&name, architecture, repeat, network, hsakd.then_some(family)));
        let mut sites = sites.collect::<Result<Vec<_>>>()?;
        let keys = architecture.branch_group_keys(number, &sites);
        let mut groups = Vec::new();
        for (site, key) in sites.iter_mut().zip(keys) {
            site.inputs = plan.site(site.group).inputs;
            groups.push(plan.group(site, &scope.child(key))?);
        }
        let tail = match groups.is_empty() {
            true => vec![],
            false => architecture.branch_tail_keys(number, groups.len()),
        };
        let tail: Vec<Scope> = tail.iter().map(|key| scope.child(key)).collect();
        let key = row.classifier.clone().unwrap_or_else(|| format!("fc{number}"));
        let scope = scope.child(key);
        let classifier = |inputs| match hsakd {
            true => hsakd_classifier(family, inputs, config.outputs, &scope),
            false => architecture.classifier(inputs, config.outputs, &scope),
        };
        let end = if groups.is_empty() { plan.classifier(classifier)? } else { plan.end(&tail, classifier)? };
        Ok(Self {
            map: row.map,
            shows: architecture.shows(),
            groups,
            end,
            spec: plan.spec(&name, start, config.outputs),
            frozen: scope.is_frozen(),
        })
    }

    fn forward(&self, map: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<Outputs> {
        let MapShape { channels, height, width } = self.spec.maps[0];
        check_batch(&self.spec.name, "a map", [channels, height, width], map)?;
        check_mode(&self.spec.name, self.frozen, mode)?;
        let mut walk = Walk::new(self.shows, mode, taps, map)?;
        walk.stem(&vec![])?;
        walk.groups(&self.groups)?;
        walk.end(&self.end)
    }
}

/// The site of a repeated group; its number of inputs is settled when it is built. `hsakd` is the family whose initial
/// values are those of HSAKD's branches.
fn site(
    name: &str,
    architecture: &dyn Architecture,
    repeat: &Repeat,
    network: &NetworkSpec,
    hsakd: Option<&Family>,
) -> Result<Site> {
    let Repeat { group, blocks, keeps_size } = *repeat;
    if group >= architecture.groups() {
        let message = format!("group must be below {}, found {group}", architecture.groups());
        return Err(config_error(name, message));
    }
    check_range(name, MOST_BLOCKS, blocks.map(|blocks| ("blocks", blocks)))?;
    let init = match hsakd {
        Some(Family::Vgg(_)) => Some(Init::PyTorch),
        Some(Family::ShuffleNetV1(_)) => Some(Init::KaimingNormalFanOut),
        _ => None,
    };
    Ok(Site { keeps_size, blocks, init, ..Site::new(group, 0, network.image) })
}

fn hsakd_classifier(family: &Family, inputs: usize, outputs: usize, scope: &Scope) -> Result<Linear> {
    Ok(match family {
        Family::Vgg(_) | Family::ShuffleNetV2(_) => Linear::new(scope, inputs, outputs)?,
        Family::ResNet(_) | Family::PreActivation(_) | Family::ShuffleNetV1(_) => {
            Linear::with_init(scope, inputs, outputs, Init::PyTorch, Some(Init::Constant(0.0)))?
        }
        other => {
            let architecture = other.architecture().expect("branches are built for families with groups only");
            architecture.classifier(inputs, outputs, scope)?
        }
    })
}

/// What a linear `classifier` of the pooled map says at every position: the class of the largest logit, `[B, P]` of
/// `u32`.
///
/// With `upsampled` the map is first made twice as high and wide, bilinearly with half-pixel centres. Positions are in
/// row-major order; of equal logits the first class wins. There is no gradient (Liang et al. 2022, arXiv 2207.12980).
///
/// # Errors
///
/// A map that is not `[B, D, H, W]` with the classifier's D.
pub fn dense_votes(classifier: &Linear, map: &Tensor, upsampled: bool) -> retort_nn::Result<Tensor> {
    let [_, inputs] = <[usize; 2]>::from(classifier.weight().dims2()?);
    let dims = map.dims().to_vec();
    let [batch, channels, height, width] = dims[..] else {
        return Err(retort_nn::Error::invalid("dense votes", format!("expected a map [B, D, H, W], found {dims:?}")));
    };
    if channels != inputs {
        let message = format!("expected {inputs} channels, the classifier's inputs, found {dims:?}");
        return Err(retort_nn::Error::invalid("dense votes", message));
    }
    let map = match upsampled {
        true => resize_bilinear2d(&map.detach(), [2 * height, 2 * width])?,
        false => map.detach(),
    };
    let positions = map.flatten_from(2)?.transpose(1, 2)?.contiguous()?.reshape(((), channels))?;
    let logits = classifier.forward(&positions)?.detach();
    Ok(logits.argmax(D::Minus1)?.reshape((batch, ()))?)
}

/// A network with branches, under the keys of the reference code: `backbone.*` and `auxiliary_classifier.*`.
pub struct BranchedNetwork {
    /// The network; others may have it without the branches.
    pub backbone: Arc<dyn Network>,
    /// Its branches.
    pub branches: Branches,
}

/// What a network with branches shows of itself.
#[derive(Clone, Debug)]
pub struct BranchedOutputs {
    /// Of the network; its maps are always there.
    pub backbone: Outputs,
    /// Of the branches, in order.
    pub branches: Vec<Outputs>,
}

impl BranchedNetwork {
    /// Declares both in `scope`; `name` appears in the spec and in errors.
    ///
    /// # Errors
    ///
    /// As for [`Family::build`] and [`Branches::new`].
    pub fn new(
        name: &str,
        family: &Family,
        config: &ModelConfig,
        rows: &BranchesConfig,
        scope: &Scope,
    ) -> Result<Self> {
        let backbone: Arc<dyn Network> = Arc::from(family.build(name, config, &scope.child("backbone"))?);
        let branches = Branches::new(family, backbone.spec(), rows, &scope.child("auxiliary_classifier"))?;
        Ok(Self { backbone, branches })
    }

    /// Multiply-adds of both for one image.
    #[must_use]
    pub fn multiply_adds(&self) -> usize {
        self.backbone.spec().multiply_adds.saturating_add(self.branches.multiply_adds())
    }

    /// One pass; gradients of the branches flow into the network.
    ///
    /// # Errors
    ///
    /// As for [`Network::forward`].
    pub fn forward(&self, images: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<BranchedOutputs> {
        let backbone = self.backbone.forward(images, mode, Taps { maps: true, ..taps })?;
        let branches = self.branches.forward(&backbone.maps, mode, taps)?;
        Ok(BranchedOutputs { backbone, branches })
    }

    /// One pass that leaves the network alone: it runs in evaluation, its statistics stay, and its maps are detached;
    /// the branches run in `mode`.
    ///
    /// # Errors
    ///
    /// As for [`Network::forward`].
    pub fn forward_branches(&self, images: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<BranchedOutputs> {
        let seen = Taps { maps: true, ..taps };
        let mut backbone = no_grad(|| self.backbone.forward(&images.detach(), Mode::Eval, seen))?;
        let lists = [&mut backbone.maps, &mut backbone.pre_activations];
        let tensors = lists.into_iter().flatten().chain([&mut backbone.logits, &mut backbone.embedding]);
        tensors.for_each(|tensor| *tensor = tensor.detach());
        let branches = self.branches.forward(&backbone.maps, mode, taps)?;
        Ok(BranchedOutputs { backbone, branches })
    }
}
