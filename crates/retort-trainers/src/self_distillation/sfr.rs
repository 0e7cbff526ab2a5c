//! Deep maps of a network supervise its shallow ones. **A reconstruction of a withdrawn paper.**

use super::{MAPS, check_labels, check_unread, wrong};
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method, stream};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use candle_core::Tensor;
use retort_datasets::batch::draw_permutation;
use retort_losses::Term;
use retort_losses::output::cross_entropy;
use retort_losses::self_distillation::{
    SfrSettings, SfrTable, sfr_assigned, sfr_dls, sfr_emd_l2, sfr_epsilon, sfr_many_to_one, sfr_reduce,
};
use retort_models::MapAdapter;
use retort_nn::{Mode, Network, NetworkSpec, Outputs, Seed, Tensors};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Self-feature regularisation, **a reconstruction of a withdrawn paper** (Fan and Hou 2021, arXiv 2103.07350): its
/// formulas are not published and its figures were withdrawn. See [`SfrSettings`].
///
/// Every shallow stage has an adapter, dropped at the end. With `loss.alpha = 0`, `loss.beta = 0` or another
/// `smoothing` one of the three ingredients is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SfrConfig {
    /// How the labels are smoothed.
    pub smoothing: SfrSmoothing,
    /// Which deep location a shallow one learns from.
    pub assignment: SfrAssignment,
    /// Weights and settings of the ingredients.
    pub loss: SfrSettings,
}

/// How the labels are smoothed in [`SfrConfig`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SfrSmoothing {
    /// By the table of what the network says of each class, with a share that grows over half of the epochs.
    #[default]
    Dynamic,
    /// Evenly over all classes, with the same growing share.
    Even,
    /// Evenly over all classes, with the full share from the start: label smoothing.
    Fixed,
    /// Not at all: plain cross-entropy.
    None,
}

/// Which deep location a shallow one learns from in [`SfrConfig`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SfrAssignment {
    /// By the cheapest transport.
    #[default]
    Cheapest,
    /// From the one at its own place: plain distance.
    SamePlace,
    /// From a random one, drawn anew in every step.
    Random,
}

impl System for SfrConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "sfr",
        title: "Self-feature regularisation (reconstruction; withdrawn paper)",
        paper: Some("Self-Feature Regularization: Self-Feature Distillation Without Teacher Models"),
        year: Some(2021),
        arxiv: Some("2103.07350"),
        trainable: &["adapter of every shallow stage"],
        state: &["table of dynamic label smoothing"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        self.loss.validate()?;
        let (own, default) = (&self.loss, SfrSettings::default());
        let unread = |reason: &str, settings: &[(&str, bool)]| check_unread(Self::INFO.id, reason, settings);
        let node_weights = ("loss.node_weights", own.node_weights != default.node_weights);
        if own.alpha == 0.0 {
            let assignment = ("assignment", self.assignment != SfrAssignment::default());
            unread(
                "with `alpha = 0`",
                &[assignment, node_weights, ("loss.l2_weight", own.l2_weight != default.l2_weight)],
            )?;
        }
        if self.assignment != SfrAssignment::Cheapest {
            unread("where `assignment` is not `cheapest`", &[node_weights])?;
        }
        if own.beta == 0.0 {
            unread("with `beta = 0`", &[("loss.many_to_one", own.many_to_one != default.many_to_one)])?;
        }
        if self.smoothing != SfrSmoothing::Dynamic {
            unread("where `smoothing` is not `dynamic`", &[("loss.momentum", own.momentum != default.momentum)])?;
        }
        if self.smoothing == SfrSmoothing::None {
            unread("where `smoothing` is `none`", &[("loss.epsilon", own.epsilon != default.epsilon)])?;
        }
        Ok(())
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let (student, params) = ctx.network(ctx.student, "student")?;
        let table = SfrTable::new(ctx.model.classes, self.loss.momentum)?;
        let mut parts = vec![Part::new("student", params)];
        let mut adapters = Vec::new();
        // Without terms that look at maps nothing would train an adapter.
        if self.loss.alpha > 0.0 || self.loss.beta > 0.0 {
            let width = adapter_width(student.spec(), self.loss.reduction)?;
            let params = ctx.params("adapters");
            let shallow = student.spec().stages().split_last().map_or(&[][..], |(_, shallow)| shallow);
            for (s, map) in shallow.iter().enumerate() {
                adapters.push(MapAdapter::new(map.channels, width, &params.root().child(s))?);
            }
            parts.push(Part::new("adapters", params));
        }
        let (epochs, seed) = (ctx.recipe.epochs, ctx.seed.child(Self::INFO.id));
        let method = Sfr { student, adapters, table, said: None, config: *self, epochs, seed };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

/// Channels that an adapter makes of a shallow map: those of the last one over `reduction`.
fn adapter_width(spec: &NetworkSpec, reduction: usize) -> Result<usize> {
    let refuse = |message: String| Err(wrong(SfrConfig::INFO.id, message));
    let Some((deep, shallow @ [_, ..])) = spec.stages().split_last() else {
        return refuse(format!("expected at least two stages, found {} of `{}`", spec.stages().len(), spec.name));
    };
    if let Some(map) = shallow.iter().find(|map| map.height < deep.height || map.width < deep.width) {
        let sizes = [deep, map].map(|map| format!("{}x{}", map.height, map.width));
        return refuse(format!("the last map must not be larger than the others, found {} and {}", sizes[0], sizes[1]));
    }
    if reduction == 0 || !deep.channels.is_multiple_of(reduction) {
        let (channels, name) = (deep.channels, &spec.name);
        return refuse(format!("`reduction` must divide the {channels} channels of `{name}`, found {reduction}"));
    }
    Ok(deep.channels / reduction)
}

struct Sfr {
    student: Arc<dyn Network>,
    /// One for each stage but the last; none where no term looks at maps.
    adapters: Vec<MapAdapter>,
    table: SfrTable,
    /// Logits and labels of the step that is under way, for the table.
    said: Option<(Tensor, Tensor)>,
    config: SfrConfig,
    epochs: usize,
    seed: Seed,
}

impl Sfr {
    fn is_dynamic(&self) -> bool {
        self.config.smoothing == SfrSmoothing::Dynamic
    }

    fn task(&self, logits: &Tensor, labels: &Tensor, epoch: usize) -> Result<Term> {
        let largest = self.config.loss.epsilon;
        let epsilon = match self.config.smoothing {
            SfrSmoothing::None => {
                let value = cross_entropy(logits, labels)?;
                return Ok(Term { name: "ce", weight: 1.0, value, parts: Vec::new() });
            }
            SfrSmoothing::Fixed => largest,
            SfrSmoothing::Dynamic | SfrSmoothing::Even => sfr_epsilon(largest, epoch, self.epochs)?,
        };
        let table = self.table.table()?.to_device(logits.device())?;
        let value = sfr_dls(logits, labels, &table, epsilon)?;
        Ok(Term { name: "sfr-dls", weight: 1.0, value, parts: Vec::new() })
    }

    /// What the shallow stages learn from the last one.
    fn of_maps(&self, outputs: &Outputs, step: &Step<'_>) -> Result<Vec<Term>> {
        let settings = &self.config.loss;
        let rise = settings.rise(step.epoch, self.epochs);
        let Some((deep, shallow)) = outputs.stages().split_last() else { return Ok(Vec::new()) };
        let reduced = sfr_reduce(&deep.detach(), settings.reduction)?;
        let places = self.places(deep, step)?;
        let (mut local, mut channels) = (Vec::new(), Vec::new());
        for (s, (adapter, map)) in self.adapters.iter().zip(shallow).enumerate() {
            let adapted = adapter.forward(map, Mode::Train)?;
            if settings.alpha > 0.0 {
                let value = match &places {
                    Some(places) => sfr_assigned(&adapted, &reduced, places, settings.l2_weight)?,
                    None => sfr_emd_l2(&adapted, &reduced, settings.node_weights, settings.l2_weight)?.loss,
                };
                local.push((format!("stage{s}"), value));
            }
            if settings.beta > 0.0 {
                channels.push((format!("stage{s}"), sfr_many_to_one(&adapted, deep, settings.many_to_one)?));
            }
        }
        let lists = [("sfr-emd-l2", settings.alpha, local), ("sfr-many-to-one", settings.beta, channels)];
        let wanted = lists.into_iter().filter(|(_, _, parts)| !parts.is_empty());
        wanted.map(|(name, weight, parts)| mean(name, weight * rise, parts)).collect()
    }

    /// The deep location of each shallow one, where it is not the cheapest.
    fn places(&self, deep: &Tensor, step: &Step<'_>) -> Result<Option<Vec<u32>>> {
        let (_, _, height, width) = deep.dims4()?;
        let n = (height * width) as u32;
        Ok(match self.config.assignment {
            SfrAssignment::Cheapest => None,
            SfrAssignment::SamePlace => Some((0..n).collect()),
            SfrAssignment::Random => Some(draw_permutation(n, &mut stream(self.seed, step))),
        })
    }
}

/// The mean over the stages.
fn mean(name: &'static str, weight: f64, parts: Vec<(String, Tensor)>) -> Result<Term> {
    let values: Vec<&Tensor> = parts.iter().map(|(_, value)| value).collect();
    let value = (Tensor::stack(&values, 0)?.sum(0)? / values.len() as f64)?;
    Ok(Term { name, weight, value, parts })
}

impl Method for Sfr {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let outputs = self.student.forward(&step.batch.images, Mode::Train, MAPS)?;
        let labels = step.batch.labels()?;
        let mut terms = vec![self.task(&outputs.logits, labels, step.epoch)?];
        if !self.adapters.is_empty() {
            terms.extend(self.of_maps(&outputs, step)?);
        }
        self.said = Some((outputs.logits.detach(), labels.clone()));
        Ok(StepOutput { terms, logits: Some(outputs.logits) })
    }

    fn after_step(&mut self) -> Result<()> {
        match self.said.take() {
            Some((logits, labels)) if self.is_dynamic() => Ok(self.table.update(&logits, &labels)?),
            _ => Ok(()),
        }
    }

    fn after_epoch(&mut self, _epoch: usize) -> Result<()> {
        if self.is_dynamic() {
            self.table.end_epoch();
        }
        Ok(())
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.as_ref(), None)]
    }

    fn memory(&self) -> Result<Tensors> {
        Ok(if self.is_dynamic() { self.table.state()? } else { Tensors::new() })
    }

    fn load_memory(&mut self, memory: &Tensors) -> Result<()> {
        match self.is_dynamic() {
            true => Ok(self.table.load_state(memory)?),
            false => Ok(()),
        }
    }
}
