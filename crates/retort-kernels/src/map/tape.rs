//! How maps take part in candle's backward pass.
//!
//! candle's tape knows a map by a token, a tensor of one element, so that the tape's own additions cost nothing; the
//! gradients themselves gather in the maps, in place and without copies.
//! The order in which candle visits the tokens is the order in which the maps' gradients are complete.
//! A graph can take one backward pass at a time, and one that has failed has left gradients in its maps.

use std::cell::Cell;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, DType, Device, Layout, Shape, Tensor};

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
}

/// Runs `f` without recording operations on feature maps: what they are made of is freed as soon as possible.
///
/// For evaluating a network whose weights are variables; candle itself would keep everything for a backward pass.
/// Results have no history; operations on plain tensors are candle's own business and are recorded as ever.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            RECORDING.set(self.0);
        }
    }
    let _restore = Restore(RECORDING.replace(false));
    f()
}

/// Whether operations on maps that start on this thread are recorded.
pub(super) fn is_recording() -> bool {
    RECORDING.get()
}

/// The backward pass of an operation on maps.
pub(super) trait Backward: Send + Sync + 'static {
    /// Moves the gradient of the result on to the maps that it was made of, and returns those of up to two tensors
    /// (weight and bias), each only if it tracks gradients.
    fn backward(&self, tensors: [&Tensor; 2]) -> candle_core::Result<[Option<Tensor>; 2]>;
}

/// A token without history.
pub(super) fn plain() -> candle_core::Result<Tensor> {
    Tensor::zeros((), DType::F32, &Device::Cpu)
}

/// The token of a result of several maps.
pub(super) fn join(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    match (a.track_op(), b.track_op()) {
        (_, false) => Ok(a.clone()),
        (false, true) => Ok(b.clone()),
        (true, true) => a + b,
    }
}

/// The token of the result of an operation on maps (their joined token) and up to two tensors.
pub(super) fn record(
    name: &'static str,
    token: &Tensor,
    tensors: [Option<&Tensor>; 2],
    op: impl Backward,
) -> candle_core::Result<Tensor> {
    let none = plain()?;
    if !is_recording() {
        return Ok(none);
    }
    let [a, b] = tensors.map(|t| t.unwrap_or(&none));
    token.apply_op3(a, b, Step { name, op })
}

struct Step<B> {
    name: &'static str,
    op: B,
}

fn token_storage() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), Shape::from(()))
}

/// What candle adds to the token of an argument.
fn token_gradient(token: &Tensor) -> candle_core::Result<Option<Tensor>> {
    token.track_op().then(plain).transpose()
}

impl<B: Backward> CustomOp3 for Step<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(
        &self,
        token: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db] = self.op.backward([a, b])?;
        // A tracked argument must get a gradient, also where none has arrived.
        let zeros = |g: Option<Tensor>, t: &Tensor| {
            g.map_or_else(|| t.track_op().then(|| t.zeros_like()).transpose(), |g| Ok(Some(g)))
        };
        Ok((token_gradient(token)?, zeros(da, a)?, zeros(db, b)?))
    }
}

/// From a tensor to a map.
pub(super) trait Import: Send + Sync + 'static {
    /// The gradient that the map has gathered, of the shape of the tensor; `None` if there is none.
    fn gradient(&self) -> candle_core::Result<Option<Tensor>>;
}

/// The token of a map that was made of a tensor.
pub(super) fn import(tensor: &Tensor, op: impl Import) -> candle_core::Result<Tensor> {
    if !is_recording() {
        return plain();
    }
    tensor.apply_op1(Imported(op))
}

struct Imported<I>(I);

impl<I: Import> CustomOp1 for Imported<I> {
    fn name(&self) -> &'static str {
        "feature_map"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(&self, tensor: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        match self.0.gradient()? {
            Some(gradient) => Ok(Some(gradient)),
            None => Ok(Some(tensor.zeros_like()?)),
        }
    }
}

/// From a map to a tensor.
pub(super) trait Export: Send + Sync + 'static {
    /// The tensor.
    fn values(&self) -> candle_core::Result<(CpuStorage, Shape)>;
    /// Moves the tensor's gradient to the map.
    fn give(&self, gradient: &Tensor) -> candle_core::Result<()>;
}

/// A tensor that is made of a map.
pub(super) fn export(name: &'static str, token: &Tensor, op: impl Export) -> candle_core::Result<Tensor> {
    let token = if is_recording() { token.clone() } else { plain()? };
    token.apply_op1(Exported { name, op })
}

struct Exported<E> {
    name: &'static str,
    op: E,
}

impl<E: Export> CustomOp1 for Exported<E> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.op.values()
    }

    fn bwd(&self, token: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        self.op.give(&gradient.contiguous()?)?;
        token_gradient(token)
    }
}
