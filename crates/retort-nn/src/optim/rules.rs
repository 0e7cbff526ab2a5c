//! One step of each optimiser on one parameter.

use super::Slot;
use super::inplace::{Zip2, Zip3};
use crate::Result;
use candle_core::Tensor;

pub(super) struct SgdStep {
    pub(super) lr: f64,
    pub(super) momentum: f64,
    pub(super) nesterov: bool,
    pub(super) dampening: f64,
    pub(super) weight_decay: f64,
}

impl Slot {
    pub(super) fn sgd(&mut self, grad: &Tensor, step: &SgdStep) -> Result<()> {
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

    pub(super) fn dot(
        &mut self,
        [task, method]: [Option<&Tensor>; 2],
        lr: f64,
        [mu, delta]: [f64; 2],
        wd: f64,
    ) -> Result<()> {
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

    pub(super) fn adamw(&mut self, grad: &Tensor, lr: f64, [beta1, beta2]: [f64; 2], eps: f64, wd: f64) -> Result<()> {
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
