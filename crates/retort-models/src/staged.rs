//! Networks that are a stem, a row of groups of blocks, and a linear classifier: all but the fully connected ones.

use crate::block::{Blocks, Tap, Trace};
use crate::common::{check_images, check_mode, check_sizes};
use crate::{ModelConfig, Result};
use candle_core::Tensor;
use retort_kernels::FeatureMap;
use retort_nn::{Init, Linear, MapShape, Mode, Network, NetworkSpec, Outputs, Scope, StageNorm, Taps};

/// A family of architectures: how its stem, its groups of blocks and its end are built.
///
/// A group can be built anywhere: in the network, in a branch behind an earlier group (auxiliary classifiers), or once
/// for each peer behind a shared trunk. Groups are counted from 0.
pub(crate) trait Architecture: Send + Sync {
    /// Refuses numbers that no network can be built from; sizes of zero are refused already.
    fn check(&self, model: &str, config: &ModelConfig) -> Result<()>;

    /// Where the pre-activations are.
    fn shows(&self) -> Shows;

    /// Number of groups.
    fn groups(&self) -> usize;

    /// Whether the map behind `group` is a feature (f1, f2, ..; the stem's is f0).
    fn is_shown(&self, _group: usize) -> bool {
        true
    }

    /// Blocks from the image to f0; `scope` is that of the whole network.
    fn stem(&self, inputs: usize, scope: &Scope) -> Result<Blocks>;

    /// The blocks of a group; `scope` is the network's [`Architecture::group_key`], or wherever else the group stands.
    fn group(&self, site: &Site, scope: &Scope) -> Result<Blocks>;

    /// Where a group stands below the scope of the network.
    fn group_key(&self, group: usize) -> String;

    /// Keys of the layers of [`Architecture::tail`] below the scope of the network.
    fn tail_keys(&self) -> &'static [&'static str] {
        &[]
    }

    /// What stands between the last group and the pooling, its layers in `keys`.
    fn tail(&self, _inputs: usize, _keys: &[Scope]) -> Result<Blocks> {
        Ok(Blocks::new())
    }

    /// Key of the classifier below the scope of the network.
    fn classifier_key(&self) -> &'static str {
        "fc"
    }

    /// Where the groups of the auxiliary classifier `branch` (from 1) stand below the scope of all of them: by their
    /// place in a PyTorch `Sequential`.
    fn branch_group_keys(&self, branch: usize, sites: &[Site]) -> Vec<String> {
        (0..sites.len()).map(|place| format!("block_extractor{branch}.{place}")).collect()
    }

    /// Keys of its tail: further places of the `Sequential`.
    fn branch_tail_keys(&self, branch: usize, groups: usize) -> Vec<String> {
        (0..self.tail_keys().len()).map(|i| format!("block_extractor{branch}.{}", groups + i)).collect()
    }

    /// What `key` (of a group, the tail or the classifier) is called in `peer` (from 0) behind a shared trunk.
    fn peer_key(&self, key: &str, peer: usize) -> String {
        let (first, rest) = key.split_at(key.find('.').unwrap_or(key.len()));
        format!("{first}_{peer}{rest}")
    }

    /// The classifier in its own `scope`.
    fn classifier(&self, inputs: usize, classes: usize, scope: &Scope) -> Result<Linear> {
        Ok(Linear::new(scope, inputs, classes)?)
    }
}

/// Where the values are that a family shows as pre-activations of its features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shows {
    /// It has none.
    Nothing,
    /// At the end of each shown group; f0 is its own.
    Ends,
    /// At the end of the stem and of each shown group.
    StemAndEnds,
    /// At the start of what follows a shown group; f0 is its own.
    Entrances,
}

/// Which group is built, and what for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// The group.
    pub(crate) group: usize,
    /// Channels that it is fed with.
    pub(crate) inputs: usize,
    /// Height and width of the network's images.
    pub(crate) image: [usize; 2],
    /// Keeps the size of the map where the group would reduce it.
    pub(crate) keeps_size: bool,
    /// Another number of blocks than the family's.
    pub(crate) blocks: Option<usize>,
    /// Another rule for the convolutions' initial values than the family's.
    pub(crate) init: Option<Init>,
}

impl Site {
    /// The group as it stands in the network.
    pub(crate) fn new(group: usize, inputs: usize, image: [usize; 2]) -> Self {
        Self { group, inputs, image, keeps_size: false, blocks: None, init: None }
    }
}

/// Builds one part after another and follows the map through them.
#[derive(Clone)]
pub(crate) struct Plan<'a> {
    architecture: &'a dyn Architecture,
    image: [usize; 2],
    trace: Trace,
    maps: Vec<MapShape>,
}

impl<'a> Plan<'a> {
    /// Starts at the image; `name` appears in errors.
    pub(crate) fn new(name: &str, architecture: &'a dyn Architecture, config: &ModelConfig) -> Result<Self> {
        check_sizes(name, config)?;
        architecture.check(name, config)?;
        let [height, width] = config.image;
        let trace = Trace::new(name, MapShape { channels: config.in_channels, height, width });
        Ok(Self { architecture, image: config.image, trace, maps: vec![] })
    }

    /// Starts at a map inside of a network for such images; the map is f0 of what is built.
    pub(crate) fn at(name: &str, architecture: &'a dyn Architecture, image: [usize; 2], map: MapShape) -> Self {
        Self { architecture, image, trace: Trace::new(name, map), maps: vec![map] }
    }

    /// The blocks up to f0.
    pub(crate) fn stem(&mut self, scope: &Scope) -> Result<Blocks> {
        let stem = self.traced(self.architecture.stem(self.trace.shape.channels, scope)?)?;
        self.maps.push(self.trace.shape);
        Ok(stem)
    }

    /// The site of `group` if it is built next.
    pub(crate) fn site(&self, group: usize) -> Site {
        Site::new(group, self.trace.shape.channels, self.image)
    }

    pub(crate) fn group(&mut self, site: &Site, scope: &Scope) -> Result<Group> {
        let blocks = self.traced(self.architecture.group(site, scope)?)?;
        let shown = self.architecture.is_shown(site.group);
        if shown {
            self.maps.push(self.trace.shape);
        }
        Ok(Group { blocks, shown })
    }

    /// Tail and classifier; the latter is built by `classifier` for the channels that it is given.
    pub(crate) fn end(&mut self, keys: &[Scope], classifier: impl FnOnce(usize) -> Result<Linear>) -> Result<End> {
        let tail = self.traced(self.architecture.tail(self.trace.shape.channels, keys)?)?;
        Ok(End { tail, ..self.classifier(classifier)? })
    }

    /// A classifier on what there is, without the family's tail.
    pub(crate) fn classifier(&mut self, classifier: impl FnOnce(usize) -> Result<Linear>) -> Result<End> {
        let classifier = classifier(self.trace.shape.channels)?;
        self.trace.linear(&classifier);
        Ok(End { tail: vec![], classifier })
    }

    /// Multiply-adds of everything built so far.
    pub(crate) fn multiply_adds(&self) -> usize {
        self.trace.multiply_adds
    }

    /// What was built, from what it starts with to its classifier.
    pub(crate) fn spec(self, name: &str, start: MapShape, classes: usize) -> NetworkSpec {
        NetworkSpec {
            name: name.to_string(),
            in_channels: start.channels,
            image: [start.height, start.width],
            classes,
            maps: self.maps,
            embedding: self.trace.shape.channels,
            pre_activations: self.architecture.shows() != Shows::Nothing,
            multiply_adds: self.trace.multiply_adds,
        }
    }

    fn traced(&mut self, blocks: Blocks) -> Result<Blocks> {
        blocks.iter().try_for_each(|block| block.trace(&mut self.trace))?;
        Ok(blocks)
    }
}

/// The blocks of one group.
pub(crate) struct Group {
    blocks: Blocks,
    shown: bool,
}

/// What follows the last group.
pub(crate) struct End {
    tail: Blocks,
    pub(crate) classifier: Linear,
}

/// A network of an [`Architecture`].
pub(crate) struct Staged {
    spec: NetworkSpec,
    shows: Shows,
    stem: Blocks,
    groups: Vec<Group>,
    end: End,
    frozen: bool,
}

impl Staged {
    /// Declares all parameters in `scope`; `name` appears in the spec and in errors.
    pub(crate) fn new(
        name: &str,
        architecture: &dyn Architecture,
        config: &ModelConfig,
        scope: &Scope,
    ) -> Result<Self> {
        let mut plan = Plan::new(name, architecture, config)?;
        let stem = plan.stem(scope)?;
        let mut groups = Vec::new();
        for group in 0..architecture.groups() {
            groups.push(plan.group(&plan.site(group), &scope.child(architecture.group_key(group)))?);
        }
        let keys: Vec<Scope> = architecture.tail_keys().iter().map(|key| scope.child(key)).collect();
        let (classes, frozen) = (config.classes, scope.is_frozen());
        let scope = scope.child(architecture.classifier_key());
        let end = plan.end(&keys, |inputs| architecture.classifier(inputs, classes, &scope))?;
        let [height, width] = config.image;
        let spec = plan.spec(name, MapShape { channels: config.in_channels, height, width }, classes);
        Ok(Self { spec, shows: architecture.shows(), stem, groups, end, frozen })
    }
}

impl Network for Staged {
    fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    fn stage_norms(&self) -> retort_nn::Result<Option<Vec<StageNorm>>> {
        Ok(stage_norms(self.shows, &self.groups.iter().collect::<Vec<_>>(), &self.end))
    }

    fn classifier(&self) -> Option<&Linear> {
        Some(&self.end.classifier)
    }

    fn forward(&self, images: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<Outputs> {
        check_images(&self.spec, images)?;
        check_mode(&self.spec.name, self.frozen, mode)?;
        let mut walk = Walk::new(self.shows, mode, taps, images)?;
        walk.stem(&self.stem)?;
        walk.groups(&self.groups)?;
        walk.end(&self.end)
    }

    fn mixing_points(&self) -> usize {
        self.groups.len()
    }

    fn forward_mixed(
        &self,
        images: &Tensor,
        mode: Mode,
        taps: Taps,
        point: usize,
        change: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> retort_nn::Result<Outputs> {
        check_images(&self.spec, images)?;
        check_mode(&self.spec.name, self.frozen, mode)?;
        let Some((before, behind)) = self.groups.split_at_checked(point).filter(|(_, behind)| !behind.is_empty())
        else {
            let message = format!("expected a mixing point less than {}, found {point}", self.groups.len());
            return Err(retort_nn::Error::invalid(&self.spec.name, message));
        };
        let mut walk = Walk::new(self.shows, mode, taps, images)?;
        walk.stem(&self.stem)?;
        walk.groups(before)?;
        walk.change(&self.spec.name, change)?;
        walk.groups(behind)?;
        walk.end(&self.end)
    }
}

/// The batch norms whose results are the pre-activations of the shown groups.
pub(crate) fn stage_norms(shows: Shows, groups: &[&Group], end: &End) -> Option<Vec<StageNorm>> {
    let next = groups.iter().skip(1).map(|group| &group.blocks).chain([&end.tail]);
    let norm = |(group, next): (&&Group, &Blocks)| match shows {
        Shows::Entrances => next.first()?.norm(),
        _ => group.blocks.last()?.norm(),
    };
    groups.iter().zip(next).filter(|(group, _)| group.shown).map(norm).collect()
}

/// Which block of a row shows its pre-activation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Start,
    End,
}

/// One forward pass, part by part; a clone goes another way from where it is.
#[derive(Clone)]
pub(crate) struct Walk {
    shows: Shows,
    mode: Mode,
    taps: Taps,
    x: FeatureMap,
    maps: Vec<Tensor>,
    pre_activations: Vec<Tensor>,
    /// Whether the last map has its pre-activation at the next entrance.
    due: bool,
}

impl Walk {
    pub(crate) fn new(shows: Shows, mode: Mode, taps: Taps, x: &Tensor) -> retort_nn::Result<Self> {
        let x = FeatureMap::from_tensor(x)?;
        Ok(Self { shows, mode, taps, x, maps: vec![], pre_activations: vec![], due: false })
    }

    /// The stem, which ends with f0; none if the walk begins there.
    pub(crate) fn stem(&mut self, stem: &Blocks) -> retort_nn::Result<()> {
        let at_end = self.shows == Shows::StemAndEnds && !stem.is_empty();
        self.through(stem, if at_end { Place::End } else { Place::Nowhere })?;
        self.map()?;
        if self.taps.pre_activations && !at_end && self.shows != Shows::Nothing {
            self.pre_activations.push(self.x.to_tensor()?);
        }
        Ok(())
    }

    pub(crate) fn groups(&mut self, groups: &[Group]) -> retort_nn::Result<()> {
        for group in groups {
            self.through(&group.blocks, self.place(group.shown))?;
            if group.shown {
                self.map()?;
            }
            self.due = group.shown && self.shows == Shows::Entrances;
        }
        Ok(())
    }

    pub(crate) fn end(mut self, end: &End) -> retort_nn::Result<Outputs> {
        self.through(&end.tail, self.place(false))?;
        let embedding = self.x.global_avg_pool2d()?;
        let logits = end.classifier.forward(&embedding)?;
        Ok(Outputs { logits, embedding, maps: self.maps, pre_activations: self.pre_activations })
    }

    /// The map of now, pooled: `[B, C]`.
    pub(crate) fn pooled(&self) -> retort_nn::Result<Tensor> {
        Ok(self.x.global_avg_pool2d()?)
    }

    /// Puts what `change` makes of the map of now in its place.
    fn change(
        &mut self,
        network: &str,
        change: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> retort_nn::Result<()> {
        let map = self.x.to_tensor()?;
        let changed = change(&map)?;
        if changed.dims() != map.dims() {
            let message = format!("a mixed map must keep its shape {:?}, found {:?}", map.dims(), changed.dims());
            return Err(retort_nn::Error::invalid(network, message));
        }
        self.x = FeatureMap::from_tensor(&changed)?;
        Ok(())
    }

    /// Divides the gradient that comes back to the map of now; its values stay.
    pub(crate) fn divide_gradient(&mut self, divisor: usize) -> retort_nn::Result<()> {
        if divisor > 1 {
            self.x = self.x.through_tensor(|x| {
                let constant = x.detach();
                Ok((&constant + ((x - &constant)? / divisor as f64)?)?)
            })?;
        }
        Ok(())
    }

    fn place(&self, shown: bool) -> Place {
        match self.shows {
            Shows::Ends | Shows::StemAndEnds if shown => Place::End,
            Shows::Entrances if self.due => Place::Start,
            _ => Place::Nowhere,
        }
    }

    fn map(&mut self) -> retort_nn::Result<()> {
        if self.taps.maps {
            self.maps.push(self.x.to_tensor()?);
        }
        Ok(())
    }

    fn through(&mut self, blocks: &Blocks, place: Place) -> retort_nn::Result<()> {
        let tapped = match place {
            Place::Nowhere => None,
            Place::Start => Some(0),
            Place::End => blocks.len().checked_sub(1),
        };
        for (i, block) in blocks.iter().enumerate() {
            let mut tap = Tap::new(self.taps.pre_activations && tapped == Some(i));
            self.x = block.forward(&self.x, self.mode, &mut tap)?;
            if let Some(seen) = tap.into_seen() {
                self.pre_activations.push(seen.to_tensor()?);
            }
        }
        Ok(())
    }
}
