//! Students with auxiliary classifiers, and those classifiers as networks of their own.

use crate::Result;
use crate::engine::Evaluated;
use crate::state::Part;
use crate::system::SystemContext;
use candle_core::Tensor;
use retort_losses::self_supervised::class_scores;
use retort_models::{BranchedNetwork, BranchedOutputs, Branches, BranchesConfig};
use retort_nn::{Mode, Network, NetworkSpec, Outputs, Taps};
use std::sync::Arc;

/// What the outputs of an auxiliary classifier are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scores {
    /// One for each class.
    Classes,
    /// One for each class under each of four rotations; those of a class are summed.
    Rotations,
}

/// An auxiliary classifier as an ordinary one.
pub(crate) struct HeadClassifier {
    network: Arc<BranchedNetwork>,
    head: usize,
    scores: Scores,
    spec: NetworkSpec,
}

impl HeadClassifier {
    /// All those of a network, in order.
    pub(crate) fn all(network: &Arc<BranchedNetwork>, scores: Scores) -> Vec<Self> {
        (0..network.branches.specs().len()).map(|head| Self::new(network, head, scores)).collect()
    }

    fn new(network: &Arc<BranchedNetwork>, head: usize, scores: Scores) -> Self {
        let (of_network, of_head) = (network.backbone.spec(), network.branches.specs()[head]);
        let spec = NetworkSpec {
            name: of_head.name.clone(),
            maps: Vec::new(),
            embedding: of_head.embedding,
            pre_activations: false,
            multiply_adds: of_network.multiply_adds.saturating_add(of_head.multiply_adds),
            ..of_network.clone()
        };
        Self { network: Arc::clone(network), head, scores, spec }
    }
}

impl Network for HeadClassifier {
    fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    fn forward(&self, images: &Tensor, mode: Mode, _taps: Taps) -> retort_nn::Result<Outputs> {
        let mut branches = self.network.forward(images, mode, Taps::default())?.branches;
        let head = branches.swap_remove(self.head);
        let logits = match self.scores {
            Scores::Classes => head.logits.clone(),
            Scores::Rotations => {
                class_scores(&head.logits).map_err(|e| retort_nn::Error::invalid(&self.spec.name, e.to_string()))?
            }
        };
        Ok(Outputs { logits, ..head })
    }
}

/// A network as `student` and its auxiliary classifiers as `head1` ...
pub(crate) fn evaluated<'a>(
    network: &'a dyn Network,
    heads: &'a [HeadClassifier],
    teacher: Option<&'a dyn Network>,
) -> Vec<Evaluated<'a>> {
    let mut all = vec![Evaluated::student(network, teacher)];
    for (i, head) in heads.iter().enumerate() {
        all.push(Evaluated { name: format!("head{}", i + 1), network: head, teacher: None });
    }
    all
}

/// A student whose auxiliary classifiers learn the classes with it, and are dropped at the end.
pub(crate) struct Exits {
    network: Arc<BranchedNetwork>,
    heads: Vec<HeadClassifier>,
}

impl Exits {
    /// The student as it always starts, with these branches, and the parts `student` and `heads`.
    pub(crate) fn new(ctx: &SystemContext<'_>, rows: &BranchesConfig) -> Result<(Self, [Part; 2])> {
        let (params, head_params) = (ctx.params("student"), ctx.params("heads"));
        let backbone: Arc<dyn Network> = Arc::from(retort_models::build(ctx.student, &ctx.model, &params.root())?);
        let family = &retort_models::info(ctx.student)?.family;
        let branches = Branches::new(family, backbone.spec(), rows, &head_params.root())?;
        let network = Arc::new(BranchedNetwork { backbone, branches });
        let heads = HeadClassifier::all(&network, Scores::Classes);
        Ok((Self { network, heads }, [Part::new("student", params), Part::new("heads", head_params)]))
    }

    /// One pass in training; the maps of the network are always there.
    pub(crate) fn forward(&self, images: &Tensor, taps: Taps) -> Result<BranchedOutputs> {
        Ok(self.network.forward(images, Mode::Train, taps)?)
    }

    /// The network without its branches.
    pub(crate) fn backbone(&self) -> &dyn Network {
        self.network.backbone.as_ref()
    }

    /// The branches.
    pub(crate) fn branches(&self) -> &Branches {
        &self.network.branches
    }

    /// `student`, `head1` ...
    pub(crate) fn evaluated(&self) -> Vec<Evaluated<'_>> {
        evaluated(self.backbone(), &self.heads, None)
    }
}
