//! Optimisers with parameter groups and a state that can be saved.

mod config;
mod inplace;
mod rules;

pub use config::OptimizerConfig;

use crate::params::Tensors;
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use rules::SgdStep;

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
