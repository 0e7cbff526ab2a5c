//! Optimisers with parameter groups and a state that can be saved.

use crate::params::Tensors;
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Tensor, Var, WithDType};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Parameters that share settings.
#[derive(Clone)]
pub struct ParamGroup {
    /// Variables with the names under which their state is saved; the order is kept.
    pub params: Vec<(String, Var)>,
    /// Multiplies the schedule's rate, > 0.
    pub lr_scale: f64,
    /// Replaces the optimiser's weight decay for this group.
    pub weight_decay: Option<f64>,
}

impl ParamGroup {
    /// A group with the optimiser's own settings.
    #[must_use]
    pub fn new(params: Vec<(String, Var)>) -> Self {
        Self { params, lr_scale: 1.0, weight_decay: None }
    }
}

/// Which optimiser, and with what settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Stochastic gradient descent in PyTorch's order:
    /// `d = g + wd w; v <- mu v + (1 - dampening) d` (v = d on the first step);
    /// `w <- w - lr (d + mu v)` with Nesterov momentum, `w <- w - lr v` without, `w <- w - lr d` for mu = 0.
    Sgd {
        /// mu, in [0, 1).
        #[serde(default)]
        momentum: f64,
        /// Nesterov's form; needs momentum > 0 and dampening 0.
        #[serde(default)]
        nesterov: bool,
        /// In [0, 1].
        #[serde(default)]
        dampening: f64,
        /// wd, >= 0, on all parameters, biases and norms included.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Distillation-oriented training (Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023): SGD with one
    /// momentum buffer for the gradient of the task's loss and one for that of the distillation losses,
    /// `v_kd <- (mu + delta) v_kd + g_kd`, `v_ce <- (mu - delta) v_ce + g_ce + wd w`, `w <- w - lr (v_ce + v_kd)`;
    /// on the first step each buffer is its gradient.
    ///
    /// A parameter that only one of the losses reaches is trained as by SGD with momentum mu.
    Dot {
        /// mu, in [0, 1).
        #[serde(default = "beta1")]
        momentum: f64,
        /// delta, in [0, mu], with mu + delta < 1: 0.075 for CIFAR-100 and Tiny-ImageNet, 0.09 for ImageNet.
        #[serde(default = "delta")]
        delta: f64,
        /// wd, >= 0, once, in the task's buffer.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101):
    /// `w <- w - lr wd w - lr m^ / (sqrt(v^) + eps)`, bias-corrected moments.
    #[serde(rename = "adamw")]
    AdamW {
        /// Decay of the first moment, in [0, 1).
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the second moment, in [0, 1).
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root, > 0.
        #[serde(default = "epsilon")]
        eps: f64,
        /// wd, >= 0.
        #[serde(default)]
        weight_decay: f64,
    },
}

fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn delta() -> f64 {
    0.075
}
fn epsilon() -> f64 {
    1e-8
}

impl OptimizerConfig {
    /// Checks the ranges once, before the first batch.
    ///
    /// # Errors
    ///
    /// Names the field, the value and the range.
    pub fn validate(&self) -> Result<()> {
        let within = |name: &str, value: f64, ok: bool, range: &str| {
            if ok && value.is_finite() {
                return Ok(());
            }
            Err(Error::invalid("optimizer", format!("`{name}` must be {range}, found {value}")))
        };
        let unit = |name: &str, value: f64| within(name, value, (0.0..1.0).contains(&value), "in [0, 1)");
        match *self {
            Self::Sgd { momentum, nesterov, dampening, weight_decay } => {
                unit("momentum", momentum)?;
                within("dampening", dampening, (0.0..=1.0).contains(&dampening), "in [0, 1]")?;
                within("weight_decay", weight_decay, weight_decay >= 0.0, ">= 0")?;
                if nesterov && (momentum == 0.0 || dampening != 0.0) {
                    return Err(Error::invalid("optimizer", "`nesterov` needs momentum > 0 and dampening 0"));
                }
                Ok(())
            }
            Self::Dot { momentum, delta, weight_decay } => {
                unit("momentum", momentum)?;
                let range = "in [0, momentum], and momentum + delta below 1";
                within("delta", delta, (0.0..=momentum).contains(&delta) && momentum + delta < 1.0, range)?;
                within("weight_decay", weight_decay, weight_decay >= 0.0, ">= 0")
            }
            Self::AdamW { beta1, beta2, eps, weight_decay } => {
                unit("beta1", beta1)?;
                unit("beta2", beta2)?;
                within("eps", eps, eps > 0.0, "> 0")?;
                within("weight_decay", weight_decay, weight_decay >= 0.0, ">= 0")
            }
        }
    }
}

/// An optimiser over a fixed list of parameters.
///
/// A parameter without a gradient in a step keeps its value and its state, as in PyTorch.
pub struct Optimizer {
    config: OptimizerConfig,
    slots: Vec<Slot>,
}

struct Slot {
    name: String,
    var: Var,
    lr_scale: f64,
    weight_decay: Option<f64>,
    /// SGD: the momentum buffer. AdamW: the first moment. DOT: the buffer of the task's gradient.
    first: Option<Tensor>,
    /// AdamW: the second moment. DOT: the buffer of the distillation losses' gradient.
    second: Option<Tensor>,
    /// Steps that this parameter has taken (AdamW's bias correction).
    steps: u64,
}

impl Optimizer {
    /// An optimiser with empty state.
    ///
    /// # Errors
    ///
    /// A setting outside its range, or a name that occurs twice.
    pub fn new(config: OptimizerConfig, groups: Vec<ParamGroup>) -> Result<Self> {
        config.validate()?;
        let mut slots = Vec::new();
        for group in groups {
            for (name, var) in group.params {
                let (lr_scale, weight_decay) = (group.lr_scale, group.weight_decay);
                slots.push(Slot { name, var, lr_scale, weight_decay, first: None, second: None, steps: 0 });
            }
        }
        let mut names: Vec<&str> = slots.iter().map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Duplicate(pair[0].to_string()));
        }
        Ok(Self { config, slots })
    }

    /// Names of the parameters that have no gradient in any of `grads`.
    #[must_use]
    pub fn without_gradient(&self, grads: &[&GradStore]) -> Vec<&str> {
        let missing = |slot: &&Slot| grads.iter().all(|grads| grads.get(&slot.var).is_none());
        self.slots.iter().filter(missing).map(|s| s.name.as_str()).collect()
    }

    /// Whether the gradients of the task's loss and of the distillation losses are wanted apart.
    #[must_use]
    pub fn splits(&self) -> bool {
        matches!(self.config, OptimizerConfig::Dot { .. })
    }

    /// One step at rate `lr`.
    ///
    /// # Errors
    ///
    /// A gradient of another type or layout than its parameter.
    pub fn step(&mut self, grads: &GradStore, lr: f64) -> Result<()> {
        self.step_split([Some(grads), None], lr)
    }

    /// One step by the gradients of the task's loss and of the distillation losses; only an optimiser that
    /// [`splits`](Self::splits) can be given the second.
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::step`]; a second gradient for an optimiser that knows one.
    pub fn step_split(&mut self, [task, method]: [Option<&GradStore>; 2], lr: f64) -> Result<()> {
        if method.is_some() && !self.splits() {
            return Err(Error::invalid("optimizer", "only `dot` takes two gradients"));
        }
        for slot in &mut self.slots {
            let of = |grads: Option<&GradStore>| {
                grads.and_then(|grads| grads.get(&slot.var)).map(Tensor::contiguous).transpose()
            };
            let (task, method) = (of(task)?, of(method)?);
            let Some(grad) = task.as_ref().or(method.as_ref()) else { continue };
            slot.steps += 1;
            let lr = lr * slot.lr_scale;
            match self.config {
                OptimizerConfig::Dot { momentum, delta, weight_decay } => {
                    let weight_decay = slot.weight_decay.unwrap_or(weight_decay);
                    slot.dot([task.as_ref(), method.as_ref()], lr, [momentum, delta], weight_decay)?;
                }
                OptimizerConfig::Sgd { momentum, nesterov, dampening, weight_decay } => {
                    let weight_decay = slot.weight_decay.unwrap_or(weight_decay);
                    slot.sgd(grad, &SgdStep { lr, momentum, nesterov, dampening, weight_decay })?;
                }
                OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay } => {
                    let weight_decay = slot.weight_decay.unwrap_or(weight_decay);
                    slot.adamw(grad, lr, [beta1, beta2], eps, weight_decay)?;
                }
            }
        }
        Ok(())
    }

    /// The state by name, for a checkpoint: `NAME.first`, `NAME.second`, `NAME.steps`.
    ///
    /// # Errors
    ///
    /// Fails if a copy cannot be allocated.
    pub fn state(&self) -> Result<Tensors> {
        let mut state = Tensors::new();
        for slot in &self.slots {
            for (suffix, tensor) in [("first", &slot.first), ("second", &slot.second)] {
                if let Some(tensor) = tensor {
                    state.insert(format!("{}.{suffix}", slot.name), tensor.copy()?);
                }
            }
            let steps = Tensor::new(&[slot.steps as i64], slot.var.device())?;
            state.insert(format!("{}.steps", slot.name), steps);
        }
        Ok(state)
    }

    /// Takes over a state that [`Optimizer::state`] returned.
    ///
    /// # Errors
    ///
    /// A missing or unknown entry, or one of another shape; nothing is changed then.
    pub fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let mut known = Vec::new();
        let mut restored = Vec::new();
        for slot in &self.slots {
            let entry = |suffix: &str| format!("{}.{suffix}", slot.name);
            known.extend(["first", "second", "steps"].map(entry));
            let steps = steps_of(state, &entry("steps"))?;
            let (first, second) =
                (moment(state, &entry("first"), &slot.var)?, moment(state, &entry("second"), &slot.var)?);
            let (needs_first, needs_second) = match self.config {
                OptimizerConfig::Sgd { momentum, .. } => (momentum != 0.0, false),
                OptimizerConfig::AdamW { .. } => (true, true),
                // Which of the two a parameter has depends on the losses that reach it.
                OptimizerConfig::Dot { .. } => (false, false),
            };
            for (suffix, needed, found) in [("first", needs_first, &first), ("second", needs_second, &second)] {
                if steps > 0 && needed && found.is_none() {
                    return Err(missing(&entry(suffix)));
                }
            }
            if matches!(self.config, OptimizerConfig::Dot { .. }) && steps > 0 && first.is_none() && second.is_none() {
                return Err(missing(&entry("first")));
            }
            restored.push((first, second, steps));
        }
        if let Some(name) = state.keys().find(|name| !known.contains(name)) {
            return Err(Error::invalid(
                "optimizer state",
                format!("`{name}` belongs to no parameter of this optimizer"),
            ));
        }
        for (slot, (first, second, steps)) in self.slots.iter_mut().zip(restored) {
            (slot.first, slot.second, slot.steps) = (first, second, steps);
        }
        Ok(())
    }
}

fn missing(name: &str) -> Error {
    Error::invalid("optimizer state", format!("`{name}` is missing"))
}

fn steps_of(state: &Tensors, name: &str) -> Result<u64> {
    let tensor = state.get(name).ok_or_else(|| missing(name))?;
    let count = tensor
        .to_vec1::<i64>()
        .ok()
        .filter(|values| values.len() == 1)
        .and_then(|values| u64::try_from(values[0]).ok());
    count.ok_or_else(|| Error::invalid("optimizer state", format!("`{name}` must be one i64 >= 0, found {tensor}")))
}

fn moment(state: &Tensors, name: &str, var: &Var) -> Result<Option<Tensor>> {
    let Some(tensor) = state.get(name) else { return Ok(None) };
    if tensor.dims() != var.dims() {
        return Err(Error::Shape {
            name: name.to_string(),
            expected: var.dims().to_vec(),
            found: tensor.dims().to_vec(),
        });
    }
    Ok(Some(tensor.to_dtype(var.dtype())?.copy()?))
}

struct SgdStep {
    lr: f64,
    momentum: f64,
    nesterov: bool,
    dampening: f64,
    weight_decay: f64,
}

impl Slot {
    fn sgd(&mut self, grad: &Tensor, step: &SgdStep) -> Result<()> {
        let SgdStep { lr, momentum, nesterov, dampening, weight_decay: wd } = *step;
        let w = self.var.as_tensor();
        if momentum == 0.0 {
            return Ok(w.inplace_op2(grad, &Zip2("sgd", |w, g| w - lr * (g + wd * w)))?);
        }
        match &self.first {
            // v <- mu v + (1 - dampening) d
            Some(v) => {
                v.inplace_op3(grad, w, &Zip3("momentum", |v, g, w| momentum * v + (1.0 - dampening) * (g + wd * w)))?
            }
            None => {
                let v = grad.copy()?;
                v.inplace_op2(w, &Zip2("momentum", |g, w| g + wd * w))?;
                self.first = Some(v);
            }
        }
        let v = self.first.as_ref().expect("set just above");
        if nesterov {
            w.inplace_op3(grad, v, &Zip3("sgd", |w, g, v| w - lr * (g + wd * w + momentum * v)))?;
        } else {
            w.inplace_op2(v, &Zip2("sgd", |w, v| w - lr * v))?;
        }
        Ok(())
    }

    fn dot(&mut self, [task, method]: [Option<&Tensor>; 2], lr: f64, [mu, delta]: [f64; 2], wd: f64) -> Result<()> {
        let w = self.var.as_tensor();
        let delta = if task.is_some() && method.is_some() { delta } else { 0.0 };
        // Weight decay goes into the task's buffer, or into the only one.
        let decays = [task.is_some(), task.is_none()].map(|decays| if decays { wd } else { 0.0 });
        let buffers = [&mut self.first, &mut self.second];
        let momenta = [mu - delta, mu + delta];
        for (((buffer, grad), mu), wd) in buffers.into_iter().zip([task, method]).zip(momenta).zip(decays) {
            let Some(grad) = grad else { continue };
            match &*buffer {
                Some(v) => v.inplace_op3(grad, w, &Zip3("dot", |v, g, w| mu * v + g + wd * w))?,
                None => {
                    let v = grad.copy()?;
                    v.inplace_op2(w, &Zip2("dot", |g, w| g + wd * w))?;
                    *buffer = Some(v);
                }
            }
        }
        match [task.and(self.first.as_ref()), method.and(self.second.as_ref())] {
            [Some(a), Some(b)] => w.inplace_op3(a, b, &Zip3("dot", |w, a, b| w - lr * (a + b)))?,
            [Some(v), None] | [None, Some(v)] => w.inplace_op2(v, &Zip2("dot", |w, v| w - lr * v))?,
            [None, None] => {}
        }
        Ok(())
    }

    fn adamw(&mut self, grad: &Tensor, lr: f64, [beta1, beta2]: [f64; 2], eps: f64, wd: f64) -> Result<()> {
        let w = self.var.as_tensor();
        if self.first.is_none() {
            self.first = Some(grad.zeros_like()?);
        }
        if self.second.is_none() {
            self.second = Some(grad.zeros_like()?);
        }
        let (m, v) = (self.first.as_ref().expect("set above"), self.second.as_ref().expect("set above"));
        m.inplace_op2(grad, &Zip2("first moment", |m, g| beta1 * m + (1.0 - beta1) * g))?;
        v.inplace_op2(grad, &Zip2("second moment", |v, g| beta2 * v + (1.0 - beta2) * g * g))?;
        let (c1, c2) = (1.0 - beta1.powf(self.steps as f64), 1.0 - beta2.powf(self.steps as f64));
        let update = |w: f64, m: f64, v: f64| w - lr * wd * w - lr * (m / c1) / ((v / c2).sqrt() + eps);
        Ok(w.inplace_op3(m, v, &Zip3("adamw", update))?)
    }
}

/// Entries that a thread updates at once; small parameters are not worth waking another one.
const AT_ONCE: usize = 1 << 15;

/// `a <- f(a, b)` entry by entry, computed in f64 and rounded once.
struct Zip2<F: Fn(f64, f64) -> f64 + Sync>(&'static str, F);
/// `a <- f(a, b, c)` entry by entry, computed in f64 and rounded once.
struct Zip3<F: Fn(f64, f64, f64) -> f64 + Sync>(&'static str, F);

impl<F: Fn(f64, f64) -> f64 + Sync> Zip2<F> {
    fn run<T: WithDType>(&self, a: &mut [T], b: &[T]) {
        a.par_chunks_mut(AT_ONCE).zip(b.par_chunks(AT_ONCE)).for_each(|(a, b)| {
            for (a, b) in a.iter_mut().zip(b) {
                *a = T::from_f64((self.1)(a.to_f64(), b.to_f64()));
            }
        });
    }
}

impl<F: Fn(f64, f64, f64) -> f64 + Sync> Zip3<F> {
    fn run<T: WithDType>(&self, a: &mut [T], b: &[T], c: &[T]) {
        let parts = a.par_chunks_mut(AT_ONCE).zip(b.par_chunks(AT_ONCE)).zip(c.par_chunks(AT_ONCE));
        parts.for_each(|((a, b), c)| {
            for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                *a = T::from_f64((self.1)(a.to_f64(), b.to_f64(), c.to_f64()));
            }
        });
    }
}

impl<F: Fn(f64, f64) -> f64 + Sync> InplaceOp2 for Zip2<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> candle_core::Result<()> {
        match (s1, s2) {
            (CpuStorage::F32(a), CpuStorage::F32(b)) => self.run(part_mut(a, l1)?, part(b, l2)?),
            (CpuStorage::F64(a), CpuStorage::F64(b)) => self.run(part_mut(a, l1)?, part(b, l2)?),
            _ => candle_core::bail!("{}: expected two f32 or two f64 tensors", self.0),
        }
        Ok(())
    }
}

impl<F: Fn(f64, f64, f64) -> f64 + Sync> InplaceOp3 for Zip3<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> candle_core::Result<()> {
        match (s1, s2, s3) {
            (CpuStorage::F32(a), CpuStorage::F32(b), CpuStorage::F32(c)) => {
                self.run(part_mut(a, l1)?, part(b, l2)?, part(c, l3)?)
            }
            (CpuStorage::F64(a), CpuStorage::F64(b), CpuStorage::F64(c)) => {
                self.run(part_mut(a, l1)?, part(b, l2)?, part(c, l3)?)
            }
            _ => candle_core::bail!("{}: expected three f32 or three f64 tensors", self.0),
        }
        Ok(())
    }
}

fn part<'a, T>(data: &'a [T], layout: &Layout) -> candle_core::Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => candle_core::bail!("optimizer: expected a contiguous tensor"),
    }
}

fn part_mut<'a, T>(data: &'a mut [T], layout: &Layout) -> candle_core::Result<&'a mut [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut data[start..end]),
        None => candle_core::bail!("optimizer: expected a contiguous tensor"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn var(values: &[f64]) -> Var {
        Var::new(values, &Device::Cpu).unwrap()
    }

    /// Loss `sum(c w)`: the gradient is the constant c.
    fn grads(w: &Var, c: &[f64]) -> GradStore {
        let c = Tensor::new(c, &Device::Cpu).unwrap();
        (w.as_tensor() * c).unwrap().sum_all().unwrap().backward().unwrap()
    }

    fn run(config: OptimizerConfig, steps: usize) -> Vec<f64> {
        let w = var(&[1.0, -2.0]);
        let mut opt = Optimizer::new(config, vec![ParamGroup::new(vec![("w".into(), w.clone())])]).unwrap();
        for _ in 0..steps {
            opt.step(&grads(&w, &[0.5, 1.0]), 0.1).unwrap();
        }
        w.to_vec1().unwrap()
    }

    fn sgd(momentum: f64, nesterov: bool, dampening: f64) -> OptimizerConfig {
        OptimizerConfig::Sgd { momentum, nesterov, dampening, weight_decay: 0.01 }
    }

    #[test]
    fn sgd_follows_pytorch_order() {
        // Written out by hand for the first entry: g = 0.5, wd = 0.01, lr = 0.1, w0 = 1.
        let d0 = 0.5 + 0.01;
        let (w1, w1n) = (1.0 - 0.1 * d0, 1.0 - 0.1 * (d0 + 0.9 * d0));
        assert!((run(sgd(0.9, false, 0.0), 1)[0] - w1).abs() < 1e-15);
        assert!((run(sgd(0.9, true, 0.0), 1)[0] - w1n).abs() < 1e-15);
        let v2 = 0.9 * d0 + 0.5 + 0.01 * w1;
        assert!((run(sgd(0.9, false, 0.0), 2)[0] - (w1 - 0.1 * v2)).abs() < 1e-15);
        // Dampening does not apply to the first step.
        let v2d = 0.9 * d0 + 0.7 * (0.5 + 0.01 * w1);
        assert!((run(sgd(0.9, false, 0.3), 2)[0] - (w1 - 0.1 * v2d)).abs() < 1e-15);
        assert!((run(sgd(0.0, false, 0.0), 1)[0] - w1).abs() < 1e-15);
    }

    #[test]
    fn adamw_first_step_moves_by_the_rate() {
        let config = OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let w = run(config, 1);
        assert!((w[0] - (1.0 - 0.1 * 0.01 - 0.1)).abs() < 1e-6 && (w[1] - (-2.0 + 0.1 * 0.02 - 0.1)).abs() < 1e-6);
    }

    #[test]
    fn a_restored_state_continues_bit_for_bit() {
        for config in
            [sgd(0.9, true, 0.0), OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 }]
        {
            let w = var(&[1.0, -2.0]);
            let group = || vec![ParamGroup::new(vec![("w".into(), w.clone())])];
            let mut opt = Optimizer::new(config.clone(), group()).unwrap();
            for _ in 0..3 {
                opt.step(&grads(&w, &[0.5, 1.0]), 0.1).unwrap();
            }
            let mut restored = Optimizer::new(config.clone(), group()).unwrap();
            restored.load_state(&opt.state().unwrap()).unwrap();
            for _ in 0..2 {
                restored.step(&grads(&w, &[0.5, 1.0]), 0.1).unwrap();
            }
            assert_eq!(w.to_vec1::<f64>().unwrap(), run(config, 5));
        }
    }

    #[test]
    fn bad_settings_and_states_are_named() {
        assert!(sgd(1.0, false, 0.0).validate().unwrap_err().to_string().contains("`momentum`"));
        assert!(sgd(0.0, true, 0.0).validate().unwrap_err().to_string().contains("`nesterov`"));
        let w = var(&[1.0]);
        let twice = vec![("w".to_string(), w.clone()), ("w".to_string(), w.clone())];
        assert!(Optimizer::new(sgd(0.9, false, 0.0), vec![ParamGroup::new(twice)]).is_err());
        let mut opt = Optimizer::new(sgd(0.9, false, 0.0), vec![ParamGroup::new(vec![("w".into(), w)])]).unwrap();
        assert!(opt.load_state(&Tensors::new()).unwrap_err().to_string().contains("`w.steps`"));
        let mut state = opt.state().unwrap();
        state.insert("w.first".into(), Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap());
        assert!(matches!(opt.load_state(&state), Err(Error::Shape { .. })));
        let with = |name: &str, tensor: Tensor| {
            let mut state = Tensors::from([("w.steps".to_string(), Tensor::new(&[3i64], &Device::Cpu).unwrap())]);
            state.insert(name.into(), tensor);
            state
        };
        let one = Tensor::zeros(1, DType::F64, &Device::Cpu).unwrap();
        assert!(
            opt.load_state(&with("w.second", one.clone())).unwrap_err().to_string().contains("`w.first` is missing")
        );
        let mut state = with("w.first", one.clone());
        state.insert("v.first".into(), one.clone());
        assert!(opt.load_state(&state).unwrap_err().to_string().contains("`v.first`"));
        state.remove("v.first");
        state.insert("w.steps".into(), Tensor::new(&[-5i64, 3], &Device::Cpu).unwrap());
        assert!(opt.load_state(&state).unwrap_err().to_string().contains("`w.steps`"));
    }

    #[test]
    fn dot_keeps_two_buffers() {
        let (both, task_only, method_only) = (var(&[1.0]), var(&[1.0]), var(&[1.0]));
        let named = |list: &[(&str, &Var)]| list.iter().map(|(n, v)| ((*n).to_string(), (*v).clone())).collect();
        let group = ParamGroup::new(named(&[("a", &both), ("b", &task_only), ("c", &method_only)]));
        let config = OptimizerConfig::Dot { momentum: 0.9, delta: 0.075, weight_decay: 0.1 };
        let mut opt = Optimizer::new(config.clone(), vec![group.clone()]).unwrap();
        let sum = |x: &Var, y: &Var, c: f64| {
            let sum = (x.as_tensor() + y.as_tensor()).unwrap().affine(c, 0.0).unwrap();
            sum.sum_all().unwrap().backward().unwrap()
        };
        let step = |opt: &mut Optimizer| {
            let (task, method) = (sum(&both, &task_only, 2.0), sum(&both, &method_only, 3.0));
            opt.step_split([Some(&task), Some(&method)], 0.1).unwrap();
        };
        // By hand; the weights decay in the task's buffer, or in the only one.
        let (mut a, mut b, mut c) = (1.0, 1.0, 1.0);
        let (mut ce, mut kd, mut vb, mut vc) = (2.0 + 0.1, 3.0, 2.0 + 0.1, 3.0 + 0.1);
        for round in 0..3 {
            step(&mut opt);
            if round > 0 {
                (ce, kd) = (0.825 * ce + 2.0 + 0.1 * a, 0.975 * kd + 3.0);
                (vb, vc) = (0.9 * vb + 2.0 + 0.1 * b, 0.9 * vc + 3.0 + 0.1 * c);
            }
            (a, b, c) = (a - 0.1 * (ce + kd), b - 0.1 * vb, c - 0.1 * vc);
            for (var, expected) in [(&both, a), (&task_only, b), (&method_only, c)] {
                assert!((var.to_vec1::<f64>().unwrap()[0] - expected).abs() < 1e-14);
            }
        }
        // The state goes on where it was.
        let mut other = Optimizer::new(config, vec![group]).unwrap();
        other.load_state(&opt.state().unwrap()).unwrap();
        step(&mut other);
        (ce, kd) = (0.825 * ce + 2.0 + 0.1 * a, 0.975 * kd + 3.0);
        assert!((both.to_vec1::<f64>().unwrap()[0] - (a - 0.1 * (ce + kd))).abs() < 1e-14);
    }

    #[test]
    fn two_gradients_and_settings_of_dot_are_checked() {
        let w = var(&[1.0]);
        let group = || vec![ParamGroup::new(vec![("w".into(), w.clone())])];
        let grads = grads(&w, &[1.0]);
        let mut plain = Optimizer::new(sgd(0.9, false, 0.0), group()).unwrap();
        assert!(!plain.splits() && plain.step_split([Some(&grads), Some(&grads)], 0.1).is_err());
        for (momentum, delta) in [(0.9, 0.1), (0.05, 0.075), (1.0, 0.0), (0.9, -0.1), (0.9, f64::NAN)] {
            let config = OptimizerConfig::Dot { momentum, delta, weight_decay: 0.0 };
            assert!(Optimizer::new(config, group()).is_err(), "{momentum} {delta}");
        }
    }

    #[test]
    fn a_parameter_without_gradient_stays() {
        let (w, u) = (var(&[1.0]), var(&[1.0]));
        let group = ParamGroup::new(vec![("u".into(), u.clone()), ("w".into(), w.clone())]);
        let mut opt = Optimizer::new(sgd(0.9, false, 0.0), vec![group]).unwrap();
        let grads = grads(&w, &[1.0]);
        assert_eq!(opt.without_gradient(&[&grads]), ["u"]);
        opt.step(&grads, 0.1).unwrap();
        assert_eq!(u.to_vec1::<f64>().unwrap(), [1.0]);
    }
}
