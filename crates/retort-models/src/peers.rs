//! Peers that learn from each other: complete networks side by side, or branches behind a shared trunk.

use crate::block::Blocks;
use crate::common::{
    MOST_PARAMETERS, MOST_PARTS, check_images, check_layer, check_mode, check_range, config_error, saturating_sum,
};
use crate::head::{mix, softmax};
use crate::staged::{End, Group, Plan, Shows, Walk, stage_norms};
use crate::{Family, ModelConfig, Result};
use candle_core::Tensor;
use retort_nn::{
    Head, HeadLayer, Init, Linear, MapShape, Mode, Network, NetworkSpec, Outputs, Scope, StageNorm, Taps, Tensors,
};

/// How many peers there are and what they share.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use retort_models::{ModelConfig, Peers, PeersConfig, info};
/// use retort_nn::{Mode, Params, Seed, Taps};
/// let family = &info("resnet8")?.family;
/// let config = ModelConfig { in_channels: 1, image: [8, 8], classes: 3 };
/// let params = Params::new(Seed::root(1), DType::F32, &Device::Cpu);
/// let peers = Peers::new("resnet8", family, &config, &PeersConfig::mcl(family, 4), &params.root())?;
/// let images = Tensor::zeros((2, 1, 8, 8), DType::F32, &Device::Cpu)?;
/// let outputs = peers.forward(&images, Mode::Eval, Taps::default())?;
/// assert_eq!(outputs.peers.len(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeersConfig {
    /// Number of peers, 1 to 64.
    pub peers: usize,
    /// Groups of blocks in the trunk, at most all of the network's; `None`: complete networks, which share nothing, not
    /// even the stem.
    pub shared: Option<usize>,
    /// Whether the gradient that enters the trunk is divided by the number of peers (intermediate-level rescaling).
    pub rescales: bool,
    /// Key of the classifier of complete residual networks in place of `fc`; `None`: that of the network.
    pub classifier: Option<&'static str>,
}

impl PeersConfig {
    /// Complete networks.
    #[must_use]
    pub fn complete(peers: usize) -> Self {
        Self { peers, shared: None, rescales: false, classifier: None }
    }

    /// Mutual contrastive learning (Yang et al. 2022, arXiv 2104.12565): two complete networks, or more than two
    /// branches behind the first stage (of an HCGNet: behind its transition). The classifiers of residual networks have
    /// the key `classifier` of its code, whatever the family has.
    #[must_use]
    pub fn mcl(family: &Family, peers: usize) -> Self {
        let shared = (peers > 2).then(|| shared_stages(family, |_| 1));
        Self { peers, shared, rescales: false, classifier: Some("classifier") }
    }

    /// ONE (Lan et al. 2018, arXiv 1806.04606): the branches repeat the last stage; see [`Gate`].
    #[must_use]
    pub fn one(family: &Family, peers: usize) -> Self {
        let shared = Some(shared_stages(family, |stages| stages.saturating_sub(1)));
        Self { peers, shared, rescales: false, classifier: None }
    }

    /// CL-ILR (Song and Chai 2018, arXiv 1805.11761): the same with rescaled gradients.
    #[must_use]
    pub fn cl_ilr(family: &Family, peers: usize) -> Self {
        Self { rescales: true, ..Self::one(family, peers) }
    }
}

/// Groups up to the end of as many stages as `count` says of all of them.
fn shared_stages(family: &Family, count: impl FnOnce(usize) -> usize) -> usize {
    let Some(architecture) = family.architecture() else { return 0 };
    let shown: Vec<usize> = (0..architecture.groups()).filter(|&group| architecture.is_shown(group)).collect();
    let last = count(shown.len()).checked_sub(1).and_then(|stage| shown.get(stage));
    match (last, family) {
        (None, _) => 0,
        // The transition belongs to the block before it.
        (Some(group), Family::HcgNet(_)) => (group + 2).min(architecture.groups()),
        (Some(group), _) => group + 1,
    }
}

/// Networks that see the same images.
///
/// Keys of complete networks: `module_list.{i}.*` with the keys of the network (the classifier's may be another one,
/// see [`PeersConfig::classifier`]). Keys behind a trunk: those of the network for
/// stem and shared groups, and for peer i from 0 the same with `_{i}`: `layer2_{i}`, `layer3_{i}`, `classifier_{i}`
/// (also where the network says `fc`), `block2_{i}`, `bn_{i}` (wide ResNet), `conv2_{i}`, `bn2_{i}`, `linear_{i}`
/// (ShuffleNetV2).
///
/// Initial values are those of the network; only the classifier of a pre-activation network behind a trunk has
/// PyTorch's default bias, as in MCL's code, in place of 0.
pub struct Peers {
    form: Form,
    specs: Vec<NetworkSpec>,
    multiply_adds: usize,
    /// For each peer, what stands for what: its keys here and those of the network alone.
    keys: Vec<Vec<(String, String)>>,
}

enum Form {
    Complete(Vec<Box<dyn Network>>),
    Split { trunk: Trunk, peers: Vec<Rest> },
}

/// What is computed once for all peers.
struct Trunk {
    shows: Shows,
    stem: Blocks,
    groups: Vec<Group>,
    /// The number by which the gradient is divided.
    divisor: usize,
    frozen: bool,
}

/// What a peer has of its own.
struct Rest {
    groups: Vec<Group>,
    end: End,
}

/// What peers show of themselves on one batch.
#[derive(Clone, Debug)]
pub struct PeerOutputs {
    /// The map at the end of the trunk, pooled, `[B, C]`; `None` for complete networks.
    pub trunk: Option<Tensor>,
    /// Of each peer as of a network; the maps of the trunk are the same tensors in all of them.
    pub peers: Vec<Outputs>,
}

impl Peers {
    /// Declares all peers in `scope`; `name` appears in the specs and in errors.
    ///
    /// # Errors
    ///
    /// As for [`Family::build`], and numbers of the configuration that are out of range.
    pub fn new(name: &str, family: &Family, config: &ModelConfig, peers: &PeersConfig, scope: &Scope) -> Result<Self> {
        check_range(name, MOST_PARTS, [("peers", peers.peers)])?;
        let weights = family.parameter_count(name, config)?.saturating_mul(peers.peers);
        if weights > MOST_PARAMETERS {
            let message = format!("all peers must have at most {MOST_PARAMETERS} weights, found up to {weights}");
            return Err(config_error(name, message));
        }
        let Some(shared) = peers.shared else {
            let family = peers.classifier.map_or_else(|| family.clone(), |key| family.with_classifier(key));
            return Self::complete(name, &family, config, peers.peers, scope);
        };
        let Some(architecture) = family.architecture() else {
            return Err(config_error(name, "there are no groups of blocks that peers could share"));
        };
        if shared > architecture.groups() {
            let message = format!("shared must be at most {}, found {shared}", architecture.groups());
            return Err(config_error(name, message));
        }
        let mut plan = Plan::new(name, architecture, config)?;
        let stem = plan.stem(scope)?;
        let mut groups = Vec::new();
        for group in 0..shared {
            groups.push(plan.group(&plan.site(group), &scope.child(architecture.group_key(group)))?);
        }
        let common = plan.multiply_adds();
        let own_keys = (shared..architecture.groups()).map(|group| architecture.group_key(group));
        let tail_keys = architecture.tail_keys().iter().map(|key| (*key).to_string());
        let own_keys: Vec<String> = own_keys.chain(tail_keys).chain([architecture.classifier_key().into()]).collect();
        let keys_of = |peer| own_keys.iter().map(|key| (architecture.peer_key(key, peer), key.clone())).collect();
        let keys = (0..peers.peers).map(keys_of).collect();
        let divisor = if peers.rescales { peers.peers } else { 1 };
        let trunk = Trunk { shows: architecture.shows(), stem, groups, divisor, frozen: scope.is_frozen() };
        let (mut rests, mut specs) = (Vec::new(), Vec::new());
        for peer in 0..peers.peers {
            let (rest, spec) = Rest::new(peer, plan.clone(), shared, (name, family, config), scope)?;
            rests.push(rest);
            specs.push(spec);
        }
        // Counts of absurd sizes stay at the largest number, the common part then, too.
        let own = |spec: &NetworkSpec| spec.multiply_adds.saturating_sub(common);
        let multiply_adds = common.saturating_add(saturating_sum(specs.iter().map(own)));
        Ok(Self { form: Form::Split { trunk, peers: rests }, specs, multiply_adds, keys })
    }

    fn complete(name: &str, family: &Family, config: &ModelConfig, peers: usize, scope: &Scope) -> Result<Self> {
        let list = scope.child("module_list");
        let networks: Vec<_> = (0..peers).map(|i| family.build(name, config, &list.child(i))).collect::<Result<_>>()?;
        let specs: Vec<_> = networks.iter().map(|network| network.spec().clone()).collect();
        let multiply_adds = saturating_sum(specs.iter().map(|spec| spec.multiply_adds));
        let keys = (0..peers).map(|i| vec![(format!("module_list.{i}"), String::new())]).collect();
        Ok(Self { form: Form::Complete(networks), specs, multiply_adds, keys })
    }

    /// The weights of peer `index` under the keys of the network alone, out of those of all peers; empty if there is no
    /// such peer. With another [`PeersConfig::classifier`] the classifier of a complete network keeps that key.
    #[must_use]
    pub fn weights_of(&self, index: usize, all: &Tensors) -> Tensors {
        let under = |name: &str, key: &str| name.strip_prefix(key)?.strip_prefix('.').map(str::to_string);
        let alone = |name: &str| {
            let own = self.keys.get(index)?.iter().find_map(|(here, alone)| {
                let rest = under(name, here)?;
                Some(if alone.is_empty() { rest } else { format!("{alone}.{rest}") })
            });
            let of_others = || self.keys.iter().flatten().any(|(here, _)| under(name, here).is_some());
            own.or_else(|| (!of_others()).then(|| name.to_string()))
        };
        all.iter().filter_map(|(name, tensor)| Some((alone(name)?, tensor.clone()))).collect()
    }

    /// What each peer is as a network of its own, with the trunk.
    #[must_use]
    pub fn specs(&self) -> &[NetworkSpec] {
        &self.specs
    }

    /// Multiply-adds of all peers for one image; a trunk counts once.
    #[must_use]
    pub fn multiply_adds(&self) -> usize {
        self.multiply_adds
    }

    /// One pass of all peers over `images` `[B, C, H, W]`.
    ///
    /// # Errors
    ///
    /// As for [`Network::forward`].
    pub fn forward(&self, images: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<PeerOutputs> {
        match &self.form {
            Form::Complete(networks) => {
                let peers = networks.iter().map(|network| network.forward(images, mode, taps));
                Ok(PeerOutputs { trunk: None, peers: peers.collect::<retort_nn::Result<_>>()? })
            }
            Form::Split { trunk, peers } => {
                let mut walk = trunk.walk(&self.specs[0], images, mode, taps)?;
                let pooled = walk.pooled()?;
                walk.divide_gradient(trunk.divisor)?;
                let peers = peers.iter().map(|rest| rest.forward(walk.clone()));
                Ok(PeerOutputs { trunk: Some(pooled), peers: peers.collect::<retort_nn::Result<_>>()? })
            }
        }
    }

    /// Peer `index` as a network of its own, for evaluation and deployment; `None` if there is no such peer.
    #[must_use]
    pub fn peer(&self, index: usize) -> Option<Peer<'_>> {
        (index < self.specs.len()).then_some(Peer { peers: self, index })
    }
}

impl Trunk {
    fn walk(&self, spec: &NetworkSpec, images: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<Walk> {
        check_images(spec, images)?;
        check_mode(&spec.name, self.frozen, mode)?;
        let mut walk = Walk::new(self.shows, mode, taps, images)?;
        walk.stem(&self.stem)?;
        walk.groups(&self.groups)?;
        Ok(walk)
    }
}

impl Rest {
    fn new(
        peer: usize,
        mut plan: Plan<'_>,
        shared: usize,
        (name, family, config): (&str, &Family, &ModelConfig),
        scope: &Scope,
    ) -> Result<(Self, NetworkSpec)> {
        let architecture = family.architecture().expect("a trunk is built for families with groups only");
        let key = |key: &str| scope.child(architecture.peer_key(key, peer));
        let mut groups = Vec::new();
        for group in shared..architecture.groups() {
            groups.push(plan.group(&plan.site(group), &key(&architecture.group_key(group)))?);
        }
        let tail: Vec<Scope> = architecture.tail_keys().iter().map(|tail| key(tail)).collect();
        let classifier_scope = key(architecture.classifier_key());
        let classifier = |inputs| match family {
            Family::PreActivation(_) => Ok(Linear::new(&classifier_scope, inputs, config.classes)?),
            _ => architecture.classifier(inputs, config.classes, &classifier_scope),
        };
        let end = plan.end(&tail, classifier)?;
        let [height, width] = config.image;
        let start = MapShape { channels: config.in_channels, height, width };
        Ok((Self { groups, end }, plan.spec(name, start, config.classes)))
    }

    fn forward(&self, mut walk: Walk) -> retort_nn::Result<Outputs> {
        walk.groups(&self.groups)?;
        walk.end(&self.end)
    }
}

/// One of the [`Peers`], as a network.
pub struct Peer<'a> {
    peers: &'a Peers,
    index: usize,
}

impl Network for Peer<'_> {
    fn spec(&self) -> &NetworkSpec {
        &self.peers.specs[self.index]
    }

    fn stage_norms(&self) -> retort_nn::Result<Option<Vec<StageNorm>>> {
        match &self.peers.form {
            Form::Complete(networks) => networks[self.index].stage_norms(),
            Form::Split { trunk, peers } => {
                let rest = &peers[self.index];
                let groups: Vec<&Group> = trunk.groups.iter().chain(&rest.groups).collect();
                Ok(stage_norms(trunk.shows, &groups, &rest.end))
            }
        }
    }

    fn classifier(&self) -> Option<&Linear> {
        match &self.peers.form {
            Form::Complete(networks) => networks[self.index].classifier(),
            Form::Split { peers, .. } => Some(&peers[self.index].end.classifier),
        }
    }

    fn forward(&self, images: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<Outputs> {
        match &self.peers.form {
            Form::Complete(networks) => networks[self.index].forward(images, mode, taps),
            Form::Split { trunk, peers } => peers[self.index].forward(trunk.walk(self.spec(), images, mode, taps)?),
        }
    }
}

/// ONE's gate: which peer counts how much for an image (Lan et al. 2018, arXiv 1806.04606).
///
/// `softmax(relu(bn(gate(x))))` of the pooled trunk `x` `[B, D]`, a share for each of the K peers: `[B, K]`. The
/// teacher's logits are the sum of the peers' logits with these shares.
///
/// Keys: `gate.*` (linear, D to K), `bn.*`. PyTorch's default initialisation.
pub struct Gate(Head);

impl Gate {
    /// Declares the layers in `scope` for trunks of `inputs` channels.
    ///
    /// # Errors
    ///
    /// Sizes of zero, or weights that do not fit.
    pub fn new(inputs: usize, peers: usize, scope: &Scope) -> Result<Self> {
        let layers = [HeadLayer::Linear(peers), HeadLayer::BatchNorm, HeadLayer::Relu];
        Ok(Self(Head::with_keys("gate", inputs, &layers, |layer| ["gate", "bn", ""][layer].to_string(), scope)?))
    }

    /// `[B, D]` to `[B, K]`, rows that sum to 1.
    ///
    /// # Errors
    ///
    /// Another width, or a single row in [`Mode::Train`], whose variance is undefined.
    pub fn forward(&self, trunk: &Tensor, mode: Mode) -> retort_nn::Result<Tensor> {
        softmax(&self.0.forward(trunk, mode)?)
    }

    /// `sum_k shares[:, k] logits[k]`, `[B, C]`.
    ///
    /// # Errors
    ///
    /// Another number of logits than of shares, or shapes that do not fit.
    pub fn mix(shares: &Tensor, logits: &[Tensor]) -> retort_nn::Result<Tensor> {
        mix(shares, logits)
    }
}

/// OKDDip's attention between peers (Chen et al. 2020, arXiv 1912.00350).
///
/// With queries `q_i = Wq e_i` and keys `k_j = Wk e_j` of the embeddings `[B, D]`, one pair of projections for all
/// peers and D/8 outputs without bias, peer i learns from peer j with the share `softmax_j(q_i . k_j)`, itself
/// included.
///
/// Keys: `query.weight`, `key.weight`. PyTorch's default initialisation.
pub struct PeerAttention {
    query: Linear,
    key: Linear,
}

impl PeerAttention {
    /// Declares the projections in `scope` for embeddings of `inputs` numbers; `outputs` is `inputs / 8` in the paper.
    ///
    /// # Errors
    ///
    /// Sizes of zero, or weights that do not fit.
    pub fn new(inputs: usize, outputs: usize, scope: &Scope) -> Result<Self> {
        check_layer("peer attention", inputs, outputs)?;
        let linear = |key| Linear::with_init(&scope.child(key), inputs, outputs, Init::PyTorch, None);
        Ok(Self { query: linear("query")?, key: linear("key")? })
    }

    /// K embeddings `[B, D]` to the shares `[B, K, K]`: row i says from whom peer i learns.
    ///
    /// # Errors
    ///
    /// No embedding, or other widths.
    pub fn forward(&self, embeddings: &[Tensor]) -> retort_nn::Result<Tensor> {
        let project = |linear: &Linear| -> retort_nn::Result<Tensor> {
            let rows: Vec<Tensor> = embeddings.iter().map(|e| linear.forward(e)).collect::<retort_nn::Result<_>>()?;
            Ok(Tensor::stack(&rows, 1)?)
        };
        if embeddings.is_empty() {
            return Err(retort_nn::Error::invalid("peer attention", "there must be at least one peer, found none"));
        }
        softmax(&project(&self.query)?.matmul(&project(&self.key)?.transpose(1, 2)?.contiguous()?)?)
    }
}
