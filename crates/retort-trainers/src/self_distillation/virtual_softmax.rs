//! Training with one more class, which nobody belongs to.

use super::{check_labels, wrong};
use crate::Result;
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method};
use crate::state::{Part, Parts};
use crate::system::{MAIN, System, SystemContext, SystemInfo};
use retort_losses::Term;
use retort_losses::self_distillation::virtual_softmax;
use retort_nn::{Linear, Mode, Network, Params, Taps};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Cross-entropy with a virtual class (Chen, Deng and Shen 2018, NeurIPS); see [`virtual_softmax`].
///
/// The classifier has no bias: where the network has one, it is 0 from the start and is not trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VirtualSoftmaxConfig {}

impl System for VirtualSoftmaxConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "virtual-softmax",
        title: "Virtual softmax",
        paper: Some("Virtual Class Enhanced Discriminative Embedding Learning"),
        year: Some(2018),
        code_bases: &["winycg/Self-KD-Lib"],
        ..super::INFO
    };

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        check_labels(ctx, Self::INFO.id)?;
        let (student, params) = ctx.network(ctx.student, "student")?;
        let fixed = without_bias(classifier(student.as_ref())?, &params)?;
        let parts = Parts::new([Part::new("student", params).fixed(fixed)]);
        let method = VirtualSoftmax { student };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(parts, method)))])
    }
}

fn classifier(network: &dyn Network) -> Result<&Linear> {
    let none = || wrong(VirtualSoftmaxConfig::INFO.id, format!("`{}` has no linear classifier", network.spec().name));
    network.classifier().ok_or_else(none)
}

/// Makes the bias of a classifier 0; its name in the store.
fn without_bias(classifier: &Linear, params: &Params) -> Result<Vec<String>> {
    let Some(bias) = classifier.bias() else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for (name, var) in params.trainable().into_iter().filter(|(_, var)| var.as_tensor().id() == bias.id()) {
        var.set(&var.zeros_like()?)?;
        names.push(name);
    }
    Ok(names)
}

struct VirtualSoftmax {
    student: Arc<dyn Network>,
}

impl Method for VirtualSoftmax {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let outputs = self.student.forward(&step.batch.images, Mode::Train, Taps::default())?;
        let weight = classifier(self.student.as_ref())?.weight();
        let value = virtual_softmax(&outputs.embedding, weight, step.batch.labels()?)?;
        let terms = vec![Term { name: VirtualSoftmaxConfig::INFO.id, weight: 1.0, value, parts: Vec::new() }];
        Ok(StepOutput { terms, logits: Some(outputs.logits) })
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        vec![Evaluated::student(self.student.as_ref(), None)]
    }
}
