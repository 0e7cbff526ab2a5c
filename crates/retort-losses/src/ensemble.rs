//! Several teachers: one rule that lifts every loss.

use crate::config::check;
use crate::distiller::{BuildContext, Context, Distiller, Term};
use crate::{Error, LossConfig, Result, ops};
use candle_core::{DType, Tensor};
use retort_nn::{Outputs, Tensors};
use serde::{Deserialize, Serialize};

const METHOD: &str = "ensemble";

/// What is averaged where the teachers' logits are merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnsembleRule {
    /// The softened probabilities.
    #[default]
    ProbabilityMean,
    /// The logits.
    LogitMean,
}

/// The logits of one teacher that stands for several (Tian, Krishnan and Isola 2020, arXiv 1910.10699, section 4).
///
/// [`EnsembleRule::ProbabilityMean`]: `z = T ln(1/M sum_m softmax(z_m / T))`, so that `softmax(z / T)` is the mean of the
/// members' softened probabilities; at another temperature it is not.
/// [`EnsembleRule::LogitMean`]: `z = 1/M sum_m z_m`.
/// The arithmetic is f64 and by logarithms: no probability underflows.
///
/// # Shapes
///
/// `logits`: M tensors `[B, C]`; `temperature` in `0.001 ..= 1000`. Returns `[B, C]` without a graph.
///
/// # Errors
///
/// No tensor at all, shapes that differ or are no logits, a temperature out of range.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use retort_losses::{EnsembleRule, merged_logits};
/// let (a, b) = (Tensor::new(&[[2f32, 0.0]], &Device::Cpu)?, Tensor::new(&[[0f32, 2.0]], &Device::Cpu)?);
/// let merged = merged_logits(&[&a, &b], 4.0, EnsembleRule::LogitMean)?;
/// assert_eq!(merged.to_vec2::<f32>()?, [[1.0, 1.0]]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn merged_logits(logits: &[&Tensor], temperature: f64, rule: EnsembleRule) -> Result<Tensor> {
    check::temperature(METHOD, temperature)?;
    let first = logits.first().ok_or(Error::Missing { method: METHOD, what: "the logits of at least one teacher" })?;
    let mut members = Vec::new();
    for z in logits {
        ops::logits(METHOD, "teacher logits", z)?;
        if z.dims() != first.dims() {
            let message = format!("teachers' logits must have one shape, found {:?} and {:?}", first.dims(), z.dims());
            return Err(Error::Undefined { method: METHOD, message });
        }
        members.push(z.detach().to_dtype(DType::F64)?);
    }
    let merged = match rule {
        EnsembleRule::LogitMean => Tensor::stack(&members, 0)?.mean(0)?,
        EnsembleRule::ProbabilityMean => {
            let logs = members.iter().map(|z| ops::log_softmax(&(z / temperature)?)).collect::<Result<Vec<_>>>()?;
            // [B, C, M], so that the members are the last dimension.
            let sum = ops::log_sum_exp(&Tensor::stack(&logs, 2)?)?.squeeze(2)?;
            ((sum - (logits.len() as f64).ln())? * temperature)?
        }
    };
    Ok(merged.to_dtype(first.dtype())?)
}

/// The mean of a loss over its teachers, `1/M sum_m L_m`.
///
/// # Shapes
///
/// Scalars of one type; returns a scalar.
///
/// # Gradients
///
/// `1 / M` into each.
///
/// # Errors
///
/// No loss at all, other shapes than scalars.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// let losses = [Tensor::new(1f32, &Device::Cpu)?, Tensor::new(2f32, &Device::Cpu)?];
/// assert_eq!(retort_losses::mean_over_teachers(&losses)?.to_scalar::<f32>()?, 1.5);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn mean_over_teachers(losses: &[Tensor]) -> Result<Tensor> {
    if losses.is_empty() {
        return Err(Error::Missing { method: METHOD, what: "the loss of at least one teacher" });
    }
    if let Some(other) = losses.iter().find(|loss| loss.rank() != 0) {
        let (what, expected, found) = ("loss of a teacher".into(), "a scalar".into(), other.dims().to_vec());
        return Err(Error::Shape { method: METHOD, what, expected, found });
    }
    Ok((ops::total(losses)? / losses.len() as f64)?)
}

/// A loss with several teachers.
///
/// One rule lifts every loss of the zoo (after Tian, Krishnan and Isola 2020, arXiv 1910.10699, section 4, where the
/// protocol is not told in detail):
///
/// - a loss without a teacher stays what it is;
/// - a loss that reads nothing of the teacher but its logits softened at one temperature
///   ([`LossConfig::teacher_temperature`]) sees one teacher that stands for all, [`merged_logits`];
/// - every other loss is the mean over the teachers, each with trainable parts, sampler and memory of its own: names and
///   scopes start with `t1`, `t2`, ... The mean keeps the term's scale, where a sum would grow with their number.
///
/// With one teacher nothing is lifted: value, gradient, names and random numbers are those of [`LossConfig::build`].
/// The teachers may be of different architectures.
pub struct EnsembleDistiller {
    method: &'static str,
    lift: Lift,
    /// Whether its phase before the training was all: in the training it says 0 and looks at nobody.
    idle: bool,
}

enum Lift {
    /// The loss as it is, for a single teacher or for none.
    Plain { distiller: Box<dyn Distiller>, teacher: bool },
    /// One teacher that stands for so many.
    Merged { distiller: Box<dyn Distiller>, teachers: usize, temperature: f64, rule: EnsembleRule },
    /// One distiller for each teacher.
    Mean(Vec<Box<dyn Distiller>>),
}

impl EnsembleDistiller {
    /// Builds the loss for the teachers of `contexts`, which agree in everything but `teacher` and `teacher_norms`.
    ///
    /// Each is the context that the loss would be built with if its teacher were the only one; without a teacher there
    /// is one context. With several teachers parts and random numbers go into `t1`, `t2`, ... below the given scopes and
    /// seeds.
    ///
    /// # Errors
    ///
    /// No context, or whatever [`LossConfig::build`] refuses for one of them.
    pub fn build(loss: &LossConfig, contexts: &[BuildContext<'_>], rule: EnsembleRule) -> Result<Self> {
        let method = loss.id();
        let first = contexts.first().ok_or(Error::Missing { method, what: "a context to be built in" })?;
        let teacher = loss.needs().teacher;
        let lift = if contexts.len() == 1 || !teacher {
            Lift::Plain { distiller: loss.build(first)?, teacher }
        } else if let Some(temperature) = loss.teacher_temperature() {
            // Such a loss has no parts: it is built for each teacher only to hear what it refuses.
            let built = contexts.iter().map(|context| loss.build(context)).collect::<Result<Vec<_>>>()?;
            let distiller = built.into_iter().next().ok_or(Error::Missing { method, what: "a teacher network" })?;
            Lift::Merged { distiller, teachers: contexts.len(), temperature, rule }
        } else {
            let built = contexts.iter().enumerate().map(|(i, context)| loss.build(&below(context, &name(i))));
            Lift::Mean(built.collect::<Result<_>>()?)
        };
        let idle = loss.init_phase(first.student).is_some_and(|phase| phase.student);
        Ok(Self { method, lift, idle })
    }

    /// The loss of one batch; `ctx.teacher` is not read, the outputs of all teachers are in `teachers`, in the order of the
    /// contexts.
    ///
    /// The mean over teachers is a term whose `weight * value` is the mean of the teachers' weighted terms; their values
    /// are the parts `t1`, `t2`, ..., their parts `t1.NAME`, ...
    ///
    /// # Errors
    ///
    /// Another number of teachers than the loss was built for, unless it only learns in a phase before the training; as
    /// for [`Distiller::term`].
    pub fn term(&mut self, ctx: &Context<'_>, teachers: &[Outputs]) -> Result<Term> {
        if self.idle
            && let Some(distiller) = self.distillers().first_mut()
        {
            return distiller.term(&Context { teacher: None, ..*ctx });
        }
        self.lifted(ctx, teachers, |distiller, ctx| distiller.term(ctx))
    }

    /// The loss of one batch in the phase before the training, as [`EnsembleDistiller::term`].
    ///
    /// # Errors
    ///
    /// As for [`EnsembleDistiller::term`]; a method without such a phase.
    pub fn init_term(&mut self, ctx: &Context<'_>, teachers: &[Outputs]) -> Result<Term> {
        self.lifted(ctx, teachers, |distiller, ctx| distiller.init_term(ctx))
    }

    fn lifted(
        &mut self,
        ctx: &Context<'_>,
        teachers: &[Outputs],
        term: impl Fn(&mut dyn Distiller, &Context<'_>) -> Result<Term>,
    ) -> Result<Term> {
        self.check_number(teachers.len())?;
        match &mut self.lift {
            Lift::Plain { distiller, .. } => term(distiller.as_mut(), &Context { teacher: teachers.first(), ..*ctx }),
            Lift::Merged { distiller, temperature, rule, .. } => {
                let teacher = merged(teachers, *temperature, *rule)?;
                term(distiller.as_mut(), &Context { teacher: Some(&teacher), ..*ctx })
            }
            Lift::Mean(distillers) => {
                let each = distillers.iter_mut().zip(teachers);
                let terms = each.map(|(distiller, t)| term(distiller.as_mut(), &Context { teacher: Some(t), ..*ctx }));
                mean(self.method, terms.collect::<Result<_>>()?)
            }
        }
    }

    fn check_number(&self, found: usize) -> Result<()> {
        let expected = match &self.lift {
            Lift::Plain { teacher: false, .. } => return Ok(()),
            Lift::Plain { .. } => 1,
            Lift::Merged { teachers, .. } => *teachers,
            Lift::Mean(distillers) => distillers.len(),
        };
        if found == expected {
            return Ok(());
        }
        let message = format!("was built for {expected} teachers, found the outputs of {found}");
        Err(Error::Undefined { method: self.method, message })
    }

    fn distillers(&mut self) -> &mut [Box<dyn Distiller>] {
        match &mut self.lift {
            Lift::Plain { distiller, .. } | Lift::Merged { distiller, .. } => std::slice::from_mut(distiller),
            Lift::Mean(distillers) => distillers,
        }
    }

    /// Called once after the optimiser's step that followed [`EnsembleDistiller::term`].
    ///
    /// # Errors
    ///
    /// As for [`Distiller::after_step`].
    pub fn after_step(&mut self) -> Result<()> {
        self.distillers().iter_mut().try_for_each(|distiller| distiller.after_step())
    }

    /// What a checkpoint must hold besides the trainable parts; with a memory for each teacher the names start with `t1.`,
    /// `t2.`, ...
    ///
    /// # Errors
    ///
    /// As for [`Distiller::state`].
    pub fn state(&self) -> Result<Tensors> {
        let distillers = match &self.lift {
            Lift::Plain { distiller, .. } | Lift::Merged { distiller, .. } => return distiller.state(),
            Lift::Mean(distillers) => distillers,
        };
        let mut state = Tensors::new();
        for (i, distiller) in distillers.iter().enumerate() {
            state.extend(distiller.state()?.into_iter().map(|(key, tensor)| (format!("{}.{key}", name(i)), tensor)));
        }
        Ok(state)
    }

    /// Takes the state of a checkpoint; nothing is changed on an error.
    ///
    /// # Errors
    ///
    /// As for [`Distiller::load_state`]; a name that belongs to no teacher.
    pub fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let method = self.method;
        let Lift::Mean(distillers) = &mut self.lift else {
            return self.distillers().iter_mut().try_for_each(|distiller| distiller.load_state(state));
        };
        let shares = shares(method, distillers.len(), state)?;
        let before = distillers.iter().map(|distiller| distiller.state()).collect::<Result<Vec<_>>>()?;
        for i in 0..distillers.len() {
            if let Err(error) = distillers[i].load_state(&shares[i]) {
                for (distiller, before) in distillers.iter_mut().zip(&before).take(i) {
                    distiller.load_state(before)?;
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

/// `t1`, `t2`, ...
fn name(teacher: usize) -> String {
    format!("t{}", teacher + 1)
}

/// The same context one level below.
fn below<'a>(context: &BuildContext<'a>, name: &str) -> BuildContext<'a> {
    BuildContext {
        seed: context.seed.child(name),
        scope: context.scope.child(name),
        init_scope: context.init_scope.child(name),
        ..context.clone()
    }
}

/// The outputs of the one teacher that stands for all: nothing but logits; no loss that is given them reads the embedding.
fn merged(teachers: &[Outputs], temperature: f64, rule: EnsembleRule) -> Result<Outputs> {
    let logits: Vec<&Tensor> = teachers.iter().map(|teacher| &teacher.logits).collect();
    let logits = merged_logits(&logits, temperature, rule)?;
    Ok(Outputs { embedding: logits.clone(), logits, maps: Vec::new(), pre_activations: Vec::new() })
}

/// The mean of the weighted terms, as one term.
fn mean(method: &'static str, terms: Vec<Term>) -> Result<Term> {
    let first = terms.first().map_or(0.0, |term| term.weight);
    // Weights differ where each is in units of its own first batch.
    let weight = match terms.iter().all(|term| term.weight == first) {
        true => first,
        false => terms.iter().map(|term| term.weight).sum::<f64>() / terms.len() as f64,
    };
    let (mut values, mut parts) = (Vec::new(), Vec::new());
    for (i, term) in terms.into_iter().enumerate() {
        parts.push((name(i), term.value.detach()));
        parts.extend(term.parts.into_iter().map(|(part, tensor)| (format!("{}.{part}", name(i)), tensor)));
        let same = term.weight == weight;
        values.push(if same { term.value } else { term.value.affine(term.weight / weight, 0.0)? });
    }
    Ok(Term { name: method, weight, value: mean_over_teachers(&values)?, parts })
}

/// The state of each teacher's part of the loss, without the teacher's name.
fn shares(method: &'static str, teachers: usize, state: &Tensors) -> Result<Vec<Tensors>> {
    let mut shares = vec![Tensors::new(); teachers];
    for (key, tensor) in state {
        let place = key.split_once('.').and_then(|(teacher, rest)| {
            let i = (0..teachers).find(|&i| name(i) == teacher)?;
            Some((i, rest))
        });
        let Some((i, rest)) = place else {
            let message = format!("belongs to none of {teachers} teachers, expected a name that starts with `t1.`");
            return Err(Error::State { method, name: key.clone(), message });
        };
        shares[i].insert(rest.to_string(), tensor.clone());
    }
    Ok(shares)
}
