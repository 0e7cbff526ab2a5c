//! Several networks that speak with one voice.

use crate::{Error, Result};
use candle_core::Tensor;
use retort_losses::{EnsembleRule, merged_logits};
use retort_nn::{Mode, Network, NetworkSpec, Outputs, Taps};
use std::sync::Arc;

/// Networks with the same classes as one: its softmax is the mean of theirs, or that of their mean logits.
///
/// The embedding is that of all networks, one behind the other; there are no maps to show.
pub struct Ensemble {
    members: Vec<Arc<dyn Network>>,
    rule: EnsembleRule,
    spec: NetworkSpec,
}

impl Ensemble {
    /// An ensemble of at least one network.
    ///
    /// # Errors
    ///
    /// No network, or different images or numbers of classes.
    pub fn new(members: Vec<Arc<dyn Network>>, rule: EnsembleRule) -> Result<Self> {
        let wrong = |message: String| Error::Config { what: "ensemble".into(), message };
        let first = members.first().ok_or_else(|| wrong("at least one network is needed, found none".into()))?.spec();
        let about = |spec: &NetworkSpec| (spec.in_channels, spec.image, spec.classes);
        if let Some(other) = members.iter().map(|member| member.spec()).find(|spec| about(spec) != about(first)) {
            let message = format!(
                "all networks must have the same channels, images and classes, found {:?} of `{}` and {:?} of `{}`",
                about(first),
                first.name,
                about(other),
                other.name
            );
            return Err(wrong(message));
        }
        let sum = |of: fn(&NetworkSpec) -> usize| members.iter().map(|m| of(m.spec())).fold(0, usize::saturating_add);
        let names: Vec<&str> = members.iter().map(|member| member.spec().name.as_str()).collect();
        let spec = NetworkSpec {
            name: names.join(" + "),
            maps: Vec::new(),
            embedding: sum(|spec| spec.embedding),
            pre_activations: false,
            multiply_adds: sum(|spec| spec.multiply_adds),
            ..first.clone()
        };
        Ok(Self { members, rule, spec })
    }
}

impl Network for Ensemble {
    fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    fn forward(&self, images: &Tensor, mode: Mode, _taps: Taps) -> retort_nn::Result<Outputs> {
        let outputs: Vec<Outputs> =
            self.members.iter().map(|m| m.forward(images, mode, Taps::default())).collect::<retort_nn::Result<_>>()?;
        let logits: Vec<&Tensor> = outputs.iter().map(|o| &o.logits).collect();
        let merged = merged_logits(&logits, 1.0, self.rule);
        let logits = merged.map_err(|e| retort_nn::Error::invalid("ensemble", e.to_string()))?;
        let embeddings: Vec<&Tensor> = outputs.iter().map(|o| &o.embedding).collect();
        Ok(Outputs { logits, embedding: Tensor::cat(&embeddings, 1)?, maps: vec![], pre_activations: vec![] })
    }
}
