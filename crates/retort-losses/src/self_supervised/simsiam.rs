//! Similarity of two views of an image, with a stopped gradient.

use crate::{Error, Result, ops, reduce};
use candle_core::{DType, Tensor};

const METHOD: &str = "simsiam";
const EPS: f64 = 1e-12;

/// `-(1/N) sum_i cos(p_i, z_i)`, in `[-1, 1]`.
///
/// A row with norm <= 1e-12 has similarity 0 to everything and gets no gradient. Everything after the input is f64.
///
/// # Shapes
///
/// `prediction` (p), `target` (z): `[N, D]`. Returns a scalar.
///
/// # Gradients
///
/// Into `prediction`; `target` is detached.
///
/// # Errors
///
/// Shapes that differ, other ranks, no elements.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Tensor};
/// use retort_losses::self_supervised::negative_cosine;
/// let p = Tensor::new(&[[1f32, 2.0], [3.0, 0.0]], &Device::Cpu)?;
/// let z = Tensor::new(&[[2f32, 4.0], [0.0, 1.0]], &Device::Cpu)?;
/// assert_eq!(negative_cosine(&p, &z)?.to_scalar::<f32>()?, -0.5);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn negative_cosine(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    let n = same_embeddings(METHOD, prediction, target)?;
    let direction = |x: &Tensor| ops::guarded_normalize(&x.to_dtype(DType::F64)?, EPS);
    let products = (direction(prediction)? * direction(&target.detach())?)?;
    Ok(reduce::sum_all(&products)?.affine(-1.0 / n as f64, 0.0)?.to_dtype(prediction.dtype())?)
}

/// SimSiam's loss (Chen and He 2021, arXiv 2011.10566): `(D(p_1, sg(z_2)) + D(p_2, sg(z_1))) / 2` with the
/// [`negative_cosine`] D and the stopped gradient sg, which keeps the embeddings from collapsing to a point.
///
/// `z_v` is the projection of view v, `p_v` the prediction made from it.
///
/// # Shapes
///
/// All `[N, D]`. Returns a scalar in `[-1, 1]`.
///
/// # Gradients
///
/// Into `predictions`; `projections` are detached (they get theirs through the predictions).
///
/// # Errors
///
/// As for [`negative_cosine`].
pub fn simsiam(predictions: [&Tensor; 2], projections: [&Tensor; 2]) -> Result<Tensor> {
    let first = negative_cosine(predictions[0], projections[1])?;
    let second = negative_cosine(predictions[1], projections[0])?;
    Ok(((first + second)? * 0.5)?)
}

/// N of two tensors `[N, D]` of one shape and type.
pub(super) fn same_embeddings(method: &'static str, a: &Tensor, b: &Tensor) -> Result<usize> {
    let n = ops::samples(method, "embeddings", a)?;
    ops::samples(method, "embeddings", b)?;
    if a.rank() == 2 && a.dims() == b.dims() && a.dtype() == b.dtype() {
        return Ok(n);
    }
    let found = format!("{:?} of {:?} and {:?} of {:?}", a.dims(), a.dtype(), b.dims(), b.dtype());
    Err(Error::Undefined { method, message: format!("expected two embeddings [N, D] of one shape, found {found}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::self_supervised::vicreg::tests::{check_gradients, noise, scalar};
    use candle_core::{Device, Var};

    #[test]
    fn gradients_agree_with_central_differences_and_stop_at_the_targets() {
        let inputs = [noise("p1", 5, 4), noise("p2", 5, 4), noise("z1", 5, 4), noise("z2", 5, 4)];
        let loss = |x: &[Tensor]| simsiam([&x[0], &x[1]], [&x[2], &x[3]]).unwrap();
        check_gradients(&inputs[..2], |x| loss(&[x[0].clone(), x[1].clone(), inputs[2].clone(), inputs[3].clone()]));
        let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let grads = loss(&tensors).backward().unwrap();
        assert!(vars[..2].iter().all(|var| grads.get(var).is_some()));
        assert!(vars[2..].iter().all(|var| grads.get(var).is_none()));
    }

    #[test]
    fn the_scale_of_a_row_is_of_no_consequence() {
        let (p, z) = (noise("p", 6, 3), noise("z", 6, 3));
        let value = |p: &Tensor, z: &Tensor| scalar(&negative_cosine(p, z).unwrap());
        assert!((value(&p, &z) - value(&(&p * 1e3).unwrap(), &(&z * 1e-3).unwrap())).abs() < 1e-14);
        assert!((value(&p, &p) + 1.0).abs() < 1e-14 && (value(&p, &p.neg().unwrap()) - 1.0).abs() < 1e-14);
        // Views may change places.
        let of = |a: &Tensor, b: &Tensor| scalar(&simsiam([a, b], [b, a]).unwrap());
        assert!((of(&p, &z) - of(&z, &p)).abs() < 1e-15);
    }

    #[test]
    fn rows_of_zeros_are_finite_and_nan_stays_visible() {
        let p = Var::new(&[[0f32, 0.0], [1.0, 1.0]], &Device::Cpu).unwrap();
        let z = Tensor::new(&[[1f32, 0.0], [1.0, 1.0]], &Device::Cpu).unwrap();
        let loss = negative_cosine(&p, &z).unwrap();
        assert_eq!(scalar(&loss), -0.5);
        let grad = loss.backward().unwrap().get(&p).unwrap().to_vec2::<f32>().unwrap();
        assert!(grad[0] == [0.0, 0.0] && grad[1].iter().all(|g| g.abs() < 1e-7), "{grad:?}");
        let nan = Tensor::new(&[[f32::NAN, 0.0], [1.0, 1.0]], &Device::Cpu).unwrap();
        assert!(scalar(&negative_cosine(&nan, &z).unwrap()).is_nan());
    }

    #[test]
    fn shapes_and_types_are_compared() {
        let (x, double) = (noise("x", 4, 3), noise("x", 4, 3).to_dtype(DType::F32).unwrap());
        for other in [noise("x", 4, 2), noise("x", 3, 3), double, noise("x", 4, 3).flatten_all().unwrap()] {
            let message = negative_cosine(&x, &other).unwrap_err().to_string();
            assert!(message.starts_with("simsiam: ") && message.contains("[N, D]"), "{message}");
        }
        let whole = Tensor::new(&[[1u32, 2]], &Device::Cpu).unwrap();
        assert!(negative_cosine(&whole, &whole).unwrap_err().to_string().contains("floating-point"));
    }
}
