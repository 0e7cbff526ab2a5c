//! Pairing of the two networks' stages.

use crate::{BuildContext, Context, Error, Result, ops};
use candle_core::Tensor;
use retort_nn::{MapShape, NetworkSpec};
use serde::{Deserialize, Serialize};

/// Which stages belong together where student and teacher have different numbers of them.
///
/// The reference code bases zip the two lists and drop what is left over without a word; here that must be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Align {
    /// Equal numbers are required.
    #[default]
    Exact,
    /// The first stages are paired (what zipping does); deeper ones are left over.
    Head,
    /// The last stages are paired; shallower ones are left over.
    Tail,
}

/// Pairs of indices into the two lists of stages (0 is f1).
#[derive(Clone, Debug)]
pub(crate) struct Pairing {
    method: &'static str,
    pairs: Vec<(usize, usize)>,
}

impl Pairing {
    /// Pairs the stages of the two networks.
    pub(crate) fn new(method: &'static str, align: Align, ctx: &BuildContext<'_>) -> Result<Self> {
        let (student, teacher) = (ctx.student.stages(), ctx.teacher(method)?.stages());
        let n = student.len().min(teacher.len());
        if n == 0 || (align == Align::Exact && student.len() != teacher.len()) {
            let list = |stages: &[MapShape]| stages.iter().map(ops::describe).collect();
            return Err(Error::Stages { method, student: list(student), teacher: list(teacher) });
        }
        let pairs = match align {
            Align::Exact | Align::Head => (0..n).map(|i| (i, i)).collect(),
            Align::Tail => (0..n).map(|i| (student.len() - n + i, teacher.len() - n + i)).collect(),
        };
        Ok(Self { method, pairs })
    }

    /// The declared shapes of every pair.
    pub(crate) fn shapes(&self, ctx: &BuildContext<'_>) -> Result<Vec<(MapShape, MapShape)>> {
        let (student, teacher) = (ctx.student.stages(), ctx.teacher(self.method)?.stages());
        Ok(self.pairs.iter().map(|&(s, t)| (student[s], teacher[t])).collect())
    }

    /// The maps of every pair in one batch.
    pub(crate) fn maps(&self, ctx: &Context<'_>) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        self.pick(ctx.student.stages(), ctx.teacher(self.method)?.stages())
    }

    /// The maps of every pair in one batch, before the activation.
    pub(crate) fn pre_activations(&self, ctx: &Context<'_>) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        self.pick(ctx.student.stage_pre_activations(), ctx.teacher(self.method)?.stage_pre_activations())
    }

    /// What belongs to every pair, out of one list for each network with an entry for each of its stages.
    pub(crate) fn pick<S: Clone, T: Clone>(&self, student: &[S], teacher: &[T]) -> Result<(Vec<S>, Vec<T>)> {
        let missing = || Error::Missing { method: self.method, what: "the feature maps of every stage" };
        let student = self.pairs.iter().map(|&(s, _)| student.get(s).cloned().ok_or_else(missing));
        let teacher = self.pairs.iter().map(|&(_, t)| teacher.get(t).cloned().ok_or_else(missing));
        Ok((student.collect::<Result<_>>()?, teacher.collect::<Result<_>>()?))
    }
}

/// Refuses a network that cannot show its maps before the activation.
pub(crate) fn check_pre_activations(method: &'static str, who: &str, spec: &NetworkSpec) -> Result<()> {
    if spec.pre_activations {
        return Ok(());
    }
    let message = format!("{who} `{}` cannot show its maps before the activation", spec.name);
    Err(Error::Undefined { method, message })
}

/// A loss that is a sum over stages.
#[derive(Clone, Debug)]
pub struct StageLoss {
    /// The sum, a scalar.
    pub total: Tensor,
    /// The summands, shallow to deep.
    pub stages: Vec<Tensor>,
}

impl StageLoss {
    /// Sums `stage(i, student[i], teacher[i])`; the lists must have one length.
    pub(crate) fn sum(
        method: &'static str,
        student: &[Tensor],
        teacher: &[Tensor],
        mut stage: impl FnMut(usize, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        if student.len() != teacher.len() || student.is_empty() {
            let list = |maps: &[Tensor]| maps.iter().map(|m| format!("{:?}", m.dims())).collect::<Vec<_>>().join(", ");
            let (s, t) = (list(student), list(teacher));
            let message = format!("expected two lists of as many maps, at least one, found [{s}] and [{t}]");
            return Err(Error::Undefined { method, message });
        }
        let pairs = student.iter().zip(teacher).enumerate();
        let stages = pairs.map(|(i, (s, t))| stage(i, s, t)).collect::<Result<Vec<_>>>()?;
        Ok(Self { total: ops::total(&stages)?, stages })
    }

    /// `stage0`, `stage1` ... for the log.
    pub(crate) fn parts(&self) -> Vec<(String, Tensor)> {
        self.stages.iter().enumerate().map(|(i, t)| (format!("stage{i}"), t.clone())).collect()
    }
}
