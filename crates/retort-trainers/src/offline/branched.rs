//! Networks with HSAKD's auxiliary classifiers behind every stage.

use crate::branched::{HeadClassifier, Scores, evaluated};
use crate::engine::Evaluated;
use crate::state::{Part, Parts, part, under};
use crate::system::SystemContext;
use crate::trained::BACKBONE;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use retort_datasets::Batch;
use retort_losses::self_supervised::HsakdOutputs;
use retort_models::{BranchedNetwork, Branches, BranchesConfig, ModelConfig};
use retort_nn::{Mode, Network, Outputs, Params, Taps, Tensors};
use std::sync::Arc;

/// A network with HSAKD's branches, whole or with a frozen backbone, in training.
pub(crate) struct Branched {
    network: Arc<BranchedNetwork>,
    heads: Vec<HeadClassifier>,
    parts: Parts,
    /// Weights of a backbone that is not trained.
    frozen: Option<Tensors>,
}

/// The branches of HSAKD for a network of the registry.
pub(crate) fn rows(model: &str, config: &ModelConfig) -> Result<BranchesConfig> {
    let rows = BranchesConfig::hsakd(&retort_models::info(model)?.family, config.classes);
    if rows.rows.is_empty() {
        let message = format!("`{model}` has no stages that an auxiliary classifier could stand behind");
        return Err(Error::Config { what: "hsakd".into(), message });
    }
    Ok(rows)
}

impl Branched {
    /// A network with branches from scratch; the network starts as every student of this seed does. `name` keeps the
    /// parameters of several networks apart.
    pub(crate) fn new(ctx: &SystemContext<'_>, model: &str, name: &'static str) -> Result<Self> {
        let params = |seed| Params::new(seed, DType::F32, &ctx.device);
        let (backbone, branches) = (params(ctx.seed.child(name)), params(ctx.seed.child("branches").child(name)));
        let network = retort_models::build(model, &ctx.model, &backbone.root())?;
        let params = Parts::new([Part::new("student", backbone), Part::new("branches", branches.clone())]);
        Self::with(ctx, model, network, &branches, params, None)
    }

    /// Branches from scratch on the only teacher, which stays as it is.
    pub(crate) fn on_teacher(ctx: &SystemContext<'_>, system: &'static str) -> Result<Self> {
        let teacher = ctx.teacher(system)?;
        if teacher.config != ctx.model || teacher.model != ctx.student {
            let message = format!(
                "the branches stand on the teacher itself: expected `{}` for {:?}, found `{}` for {:?}",
                ctx.student, ctx.model, teacher.model, teacher.config
            );
            return Err(Error::Config { what: system.into(), message });
        }
        let weights = teacher.backbone();
        let network = crate::trained::frozen(&teacher.model, &teacher.config, weights.clone(), &ctx.device)?;
        let branches = ctx.params("branches");
        let params = Parts::new([Part::new("branches", branches.clone())]);
        Self::with(ctx, ctx.student, network, &branches, params, Some(weights))
    }

    fn with(
        ctx: &SystemContext<'_>,
        model: &str,
        backbone: Box<dyn Network>,
        params: &Params,
        parts: Parts,
        frozen: Option<Tensors>,
    ) -> Result<Self> {
        let family = &retort_models::info(model)?.family;
        let scope = params.root().child("auxiliary_classifier");
        let branches = Branches::new(family, backbone.spec(), &rows(model, &ctx.model)?, &scope)?;
        let network = Arc::new(BranchedNetwork { backbone: Arc::from(backbone), branches });
        let heads = HeadClassifier::all(&network, Scores::Rotations);
        Ok(Self { network, heads, parts, frozen })
    }

    /// What the network says about images; a frozen backbone runs in evaluation.
    pub(crate) fn forward(&self, images: &Tensor) -> Result<Said> {
        let outputs = match self.frozen {
            Some(_) => self.network.forward_branches(images, Mode::Train, Taps::default())?,
            None => self.network.forward(images, Mode::Train, Taps::default())?,
        };
        Ok(Said::of(outputs.backbone, outputs.branches))
    }

    /// Number of auxiliary classifiers.
    pub(crate) fn heads(&self) -> usize {
        self.heads.len()
    }

    /// The network without its branches.
    pub(crate) fn backbone(&self) -> &dyn Network {
        self.network.backbone.as_ref()
    }

    pub(crate) fn shared_backbone(&self) -> Arc<dyn Network> {
        Arc::clone(&self.network.backbone)
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The network as `student` and its auxiliary classifiers as `head1` ...
    pub(crate) fn evaluated<'a>(&'a self, teacher: Option<&'a dyn Network>) -> Vec<Evaluated<'a>> {
        evaluated(self.backbone(), &self.heads, teacher)
    }

    /// Weights of the network alone.
    pub(crate) fn backbone_weights(&self) -> Result<Tensors> {
        match &self.frozen {
            Some(weights) => Ok(weights.clone()),
            None => Ok(part(&self.parts.state()?, "student.")),
        }
    }

    /// Weights of network and branches, under the keys of [`BranchedNetwork`].
    pub(crate) fn weights(&self) -> Result<Tensors> {
        let mut weights = under(BACKBONE, self.backbone_weights()?);
        weights.extend(part(&self.parts.state()?, "branches."));
        Ok(weights)
    }
}

/// Logits of a network and of its branches.
pub(crate) struct Said {
    pub(crate) logits: Tensor,
    pub(crate) heads: Vec<Tensor>,
}

impl Said {
    pub(crate) fn of(backbone: Outputs, branches: Vec<Outputs>) -> Self {
        Self { logits: backbone.logits, heads: branches.into_iter().map(|branch| branch.logits).collect() }
    }

    /// The same for the losses.
    pub(crate) fn outputs(&self) -> HsakdOutputs<'_> {
        HsakdOutputs { logits: &self.logits, heads: &self.heads }
    }
}

/// The unrotated rows of `4 B`, for the training accuracy.
pub(crate) fn unrotated(logits: &Tensor, batch: &Batch) -> Result<Tensor> {
    let rows: Vec<u32> = (0..batch.len() as u32).map(|row| 4 * row).collect();
    Ok(logits.detach().index_select(&Tensor::from_vec(rows, batch.len(), logits.device())?, 0)?)
}
