//! The networks of an online method: complete ones, or branches on one trunk.

use crate::engine::Evaluated;
use crate::offline::Ensemble;
use crate::state::Part;
use crate::system::SystemContext;
use crate::{Error, Result};
use candle_core::Tensor;
use retort_losses::output::cross_entropy;
use retort_losses::{EnsembleRule, Term};
use retort_models::{Family, PeerOutputs, Peers, PeersConfig};
use retort_nn::{Mode, Network, NetworkSpec, Outputs, Taps, Tensors};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most networks that learn together.
const MOST: usize = 16;

/// The networks beside the student: their number, or their architectures.
///
/// In a manifest `others = 1` for one more of the student's architecture, or `others = ["resnet20", "wrn_16_2"]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number of networks or a list of architectures")]
pub enum Others {
    /// So many of the student's architecture.
    Copies(usize),
    /// One of each of these.
    Models(Vec<String>),
}

impl Default for Others {
    /// One of the student's architecture.
    fn default() -> Self {
        Self::Copies(1)
    }
}

impl Others {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Copies(count) => *count,
            Self::Models(models) => models.len(),
        }
    }

    /// The student and they; never more than there can be, also where [`Others::check`] has yet to refuse them.
    pub(crate) fn networks(&self) -> usize {
        self.count().saturating_add(1).min(MOST)
    }

    pub(crate) fn check(&self, system: &'static str, least: usize) -> Result<()> {
        let count = self.count();
        if (least..MOST).contains(&count) {
            return Ok(());
        }
        let message = format!("`others` must be {least} to {} networks beside the student, found {count}", MOST - 1);
        Err(Error::Config { what: system.into(), message })
    }

    /// The architectures of all networks, the student's first.
    pub(crate) fn with<'a>(&'a self, student: &'a str) -> Vec<&'a str> {
        let others = match self {
            Self::Copies(count) => vec![student; *count],
            Self::Models(models) => models.iter().map(String::as_str).collect(),
        };
        [student].into_iter().chain(others).collect()
    }
}

/// What the networks of a method share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CohortForm {
    /// Nothing: complete networks, which may be of several architectures.
    #[default]
    Networks,
    /// Stem and first stages: branches of the student's architecture on one trunk, which is cheaper.
    Branches,
}

/// Networks that see the same images and are trained together; the first one is the student.
pub(crate) struct Cohort {
    networks: Vec<Arc<dyn Network>>,
    /// Where they stand on one trunk.
    joined: Option<Arc<Peers>>,
    /// All of them, by the mean of their logits.
    ensemble: Ensemble,
}

impl Cohort {
    /// Complete networks, the first one with the values that every student of this seed starts with; a part for each.
    pub(crate) fn complete(ctx: &SystemContext<'_>, others: &Others) -> Result<(Self, Vec<Part>)> {
        let (mut networks, mut parts) = (Vec::new(), Vec::new());
        for (k, model) in others.with(ctx.student).into_iter().enumerate() {
            let name = if k == 0 { "student".to_string() } else { format!("peer{k}") };
            let (network, params) = ctx.network(model, &name)?;
            networks.push(network);
            parts.push(Part::new(name, params));
        }
        Ok((Self::new(networks, None)?, parts))
    }

    /// Branches of the student's architecture on one trunk, a single part for all.
    pub(crate) fn on_trunk(ctx: &SystemContext<'_>, peers: &PeersConfig) -> Result<(Self, Vec<Part>)> {
        let params = ctx.params("student");
        let family = &retort_models::info(ctx.student)?.family;
        let peers = Arc::new(Peers::new(ctx.student, family, &ctx.model, peers, &params.root())?);
        let branch = |index| Arc::new(Branch { peers: Arc::clone(&peers), index }) as Arc<dyn Network>;
        let networks = (0..peers.specs().len()).map(branch).collect();
        Ok((Self::new(networks, Some(peers))?, vec![Part::new("student", params)]))
    }

    /// Complete networks or branches, which `peers` describes by their family and number.
    pub(crate) fn of(
        ctx: &SystemContext<'_>,
        system: &'static str,
        others: &Others,
        form: CohortForm,
        peers: impl FnOnce(&Family, usize) -> PeersConfig,
    ) -> Result<(Self, Vec<Part>)> {
        match (form, others) {
            (CohortForm::Networks, _) => Self::complete(ctx, others),
            (CohortForm::Branches, Others::Copies(_)) => {
                let family = &retort_models::info(ctx.student)?.family;
                Self::on_trunk(ctx, &peers(family, others.networks()))
            }
            (CohortForm::Branches, Others::Models(models)) => {
                let message = format!("`others` must be a number where `form` is \"branches\", found {models:?}");
                Err(Error::Config { what: system.into(), message })
            }
        }
    }

    fn new(networks: Vec<Arc<dyn Network>>, joined: Option<Arc<Peers>>) -> Result<Self> {
        let ensemble = Ensemble::new(networks.clone(), EnsembleRule::LogitMean)?;
        Ok(Self { networks, joined, ensemble })
    }

    /// Each as a network of its own; branches run their trunk, too.
    pub(crate) fn networks(&self) -> &[Arc<dyn Network>] {
        &self.networks
    }

    /// All of them, where they stand on one trunk.
    pub(crate) fn joined(&self) -> Option<&Arc<Peers>> {
        self.joined.as_ref()
    }

    /// One pass of all over the same images in training.
    pub(crate) fn forward(&self, images: &Tensor, taps: Taps) -> Result<PeerOutputs> {
        if let Some(peers) = &self.joined {
            return Ok(peers.forward(images, Mode::Train, taps)?);
        }
        let peers = self.networks.iter().map(|network| network.forward(images, Mode::Train, taps));
        Ok(PeerOutputs { trunk: None, peers: peers.collect::<retort_nn::Result<_>>()? })
    }

    /// `student`, `peer1`, ..., and `ensemble`, where there are several.
    pub(crate) fn evaluated(&self) -> Vec<Evaluated<'_>> {
        let mut all = vec![Evaluated::student(self.networks[0].as_ref(), None)];
        for (k, network) in self.networks.iter().enumerate().skip(1) {
            all.push(Evaluated { name: format!("peer{k}"), network: network.as_ref(), teacher: None });
        }
        if self.networks.len() > 1 {
            all.push(Evaluated { name: "ensemble".into(), network: &self.ensemble, teacher: None });
        }
        all
    }

    /// The first network's weights under its own keys, out of the part `student`.
    pub(crate) fn deployed(&self, student: Tensors) -> Tensors {
        match &self.joined {
            Some(peers) => peers.weights_of(0, &student),
            None => student,
        }
    }
}

/// Logits of all networks.
pub(crate) fn logits(outputs: &[Outputs]) -> Vec<Tensor> {
    outputs.iter().map(|outputs| outputs.logits.clone()).collect()
}

/// The term `ce` of networks whose losses have none of their own: the sum of their cross-entropies.
pub(crate) fn task(logits: &[Tensor], labels: &Tensor) -> Result<Term> {
    let mut parts = Vec::new();
    for (k, logits) in logits.iter().enumerate() {
        parts.push((format!("peer{k}"), cross_entropy(logits, labels)?));
    }
    let values: Vec<&Tensor> = parts.iter().map(|(_, value)| value).collect();
    Ok(Term { name: "ce", weight: 1.0, value: Tensor::stack(&values, 0)?.sum_all()?, parts })
}

/// A branch with its trunk.
struct Branch {
    peers: Arc<Peers>,
    index: usize,
}

impl Network for Branch {
    fn spec(&self) -> &NetworkSpec {
        &self.peers.specs()[self.index]
    }

    fn forward(&self, images: &Tensor, mode: Mode, taps: Taps) -> retort_nn::Result<Outputs> {
        let none = || retort_nn::Error::invalid(&self.spec().name, format!("there is no peer {}", self.index));
        self.peers.peer(self.index).ok_or_else(none)?.forward(images, mode, taps)
    }
}
