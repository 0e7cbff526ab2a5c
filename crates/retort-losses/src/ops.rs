//! Building blocks that several losses share.

use crate::{Error, Result};
use candle_core::{D, DType, Tensor};
use retort_nn::{MapShape, NetworkSpec};

/// `x - ln sum exp x` over the last dimension.
///
/// The maximum that keeps the exponentials in range is a constant: its gradient cancels in exact arithmetic,
/// and candle would count it once for every tied entry.
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?;
    let normalizer = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok(shifted.broadcast_sub(&normalizer)?)
}

/// `ln sum exp x` over the last dimension, which is kept with size 1.
pub(crate) fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    let max = x.detach().max_keepdim(D::Minus1)?;
    Ok((x.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max)?)
}

/// `x / ||x||` over the last dimension; a vector with `||x|| <= eps` becomes the constant 0, without gradient.
///
/// The reference code bases divide by `max(||x||, eps)`: the same value for a zero vector, but a gradient of `1 / eps`.
/// NaN stays NaN.
pub(crate) fn guarded_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        return crate::reduce::normalize_rows(x, eps);
    }
    let square = x.sqr()?.sum_keepdim(D::Minus1)?;
    // The argument of the root is replaced before the root is taken, and the result after it: with one `where` alone
    // the backward pass multiplies the zero of the dead branch with the infinite slope of the root.
    let degenerate = square.le(eps * eps)?;
    let inverse = degenerate.where_cond(&square.ones_like()?, &square)?.sqrt()?.recip()?;
    Ok(x.broadcast_mul(&degenerate.where_cond(&square.zeros_like()?, &inverse)?)?)
}

/// The value of `x` with `factor` times its gradient: `sg(x) + factor (x - sg(x))`.
///
/// A negative factor reverses the gradient (Ganin and Lempitsky 2015, arXiv 1409.7495), `1 / K` shares it between K
/// branches. A factor of 0 gives the gradient 0 and not none: the parameters behind stay in the graph.
///
/// # Errors
///
/// Fails if candle does.
///
/// # Example
///
/// ```
/// # use candle_core::{Device, Var};
/// let x = Var::new(&[3f32], &Device::Cpu)?;
/// let y = retort_losses::stop_grad_scale(&x, -0.5)?;
/// assert_eq!(y.to_vec1::<f32>()?, [3.0]);
/// assert_eq!(y.backward()?.get(&x).expect("y depends on x").to_vec1::<f32>()?, [-0.5]);
/// # Ok::<(), retort_losses::Error>(())
/// ```
pub fn stop_grad_scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    let value = x.detach();
    // A tensor: behind a factor that is the number 0 candle cuts the graph.
    let factor = crate::reduce::constant(factor, x)?;
    Ok((&value + (x - &value)?.broadcast_mul(&factor)?)?)
}

/// The sum of scalars; there is at least one.
pub(crate) fn total(terms: &[Tensor]) -> Result<Tensor> {
    let mut terms = terms.iter();
    let first = terms.next().expect("the caller has checked that there is a term").clone();
    terms.try_fold(first, |sum, term| Ok((sum + term)?))
}

/// The number of samples of `[B, ..]`; an error for an empty batch or empty rows.
pub(crate) fn samples(method: &'static str, what: &str, x: &Tensor) -> Result<usize> {
    float(method, what, x)?;
    match *x.dims() {
        [b, ..] if x.elem_count() > 0 => Ok(b),
        _ => Err(Error::Shape {
            method,
            what: what.to_string(),
            expected: "[B, ..] with at least one element".into(),
            found: x.dims().to_vec(),
        }),
    }
}

/// Checks that two tensors hold as many samples, and returns their number and the detached teacher.
pub(crate) fn batches(method: &'static str, student: &Tensor, teacher: &Tensor) -> Result<(usize, Tensor)> {
    let b = samples(method, "student features", student)?;
    if samples(method, "teacher features", teacher)? != b {
        return Err(mismatch(method, "batch sizes must agree", student, teacher));
    }
    Ok((b, teacher.detach()))
}

/// Both tensors as `[B, N]`, the teacher's detached; the widths may differ, the batch sizes may not.
pub(crate) fn rows(method: &'static str, student: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
    let (b, teacher) = batches(method, student, teacher)?;
    Ok((student.reshape((b, ()))?, teacher.reshape((b, ()))?))
}

/// Refuses integers, for which candle panics or returns nonsense.
pub(crate) fn float(method: &'static str, what: &str, x: &Tensor) -> Result<()> {
    if x.dtype().is_float() {
        return Ok(());
    }
    let message = format!("{what}: expected a floating-point tensor, found {:?}", x.dtype());
    Err(Error::Undefined { method, message })
}

fn same_type(method: &'static str, student: &Tensor, teacher: &Tensor) -> Result<()> {
    if student.dtype() == teacher.dtype() {
        return Ok(());
    }
    let message = format!("student is {:?} but teacher is {:?}", student.dtype(), teacher.dtype());
    Err(Error::Undefined { method, message })
}

/// An [`Error::Mismatch`].
pub(crate) fn mismatch(method: &'static str, what: impl Into<String>, student: &Tensor, teacher: &Tensor) -> Error {
    Error::Mismatch { method, what: what.into(), student: student.dims().to_vec(), teacher: teacher.dims().to_vec() }
}

/// Checks that logits are `[B, C]` with at least one sample and one class.
pub(crate) fn logits(method: &'static str, what: &str, x: &Tensor) -> Result<(usize, usize)> {
    float(method, what, x)?;
    match *x.dims() {
        [b, c] if b * c > 0 => Ok((b, c)),
        _ => Err(Error::Shape {
            method,
            what: what.to_string(),
            expected: "[B, C] with at least one sample and one class".into(),
            found: x.dims().to_vec(),
        }),
    }
}

/// Checks two tensors of logits and returns `(B, C, detached teacher)`.
pub(crate) fn logit_pair(method: &'static str, student: &Tensor, teacher: &Tensor) -> Result<(usize, usize, Tensor)> {
    let (b, c) = logits(method, "student logits", student)?;
    if student.dims() != teacher.dims() {
        return Err(mismatch(method, "logits must have one shape", student, teacher));
    }
    same_type(method, student, teacher)?;
    Ok((b, c, teacher.detach()))
}

/// Class indices on the host, checked against the logits' shape.
///
/// Soft labels (any float type, or one row per sample) are an error: which class is the target would be undefined.
pub(crate) fn class_ids(method: &'static str, labels: &Tensor, b: usize, c: usize) -> Result<Vec<u32>> {
    if labels.dims() != [b] || labels.dtype().is_float() {
        return Err(Error::Shape {
            method,
            what: format!("labels of type {:?}", labels.dtype()),
            expected: format!("class indices (u32 or i64) [{b}]"),
            found: labels.dims().to_vec(),
        });
    }
    let ids: Vec<i64> = labels.to_dtype(DType::I64)?.to_vec1()?;
    ids.into_iter()
        .map(|id| match u32::try_from(id) {
            Ok(id) if (id as usize) < c => Ok(id),
            _ => Err(Error::Undefined { method, message: format!("label {id} is no class, expected 0 .. {c}") }),
        })
        .collect()
}

/// `x[b, ids[b]]` as `[B]`.
pub(crate) fn pick(x: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let index = Tensor::new(ids, x.device())?.unsqueeze(1)?;
    Ok(x.gather(&index, 1)?.squeeze(1)?)
}

/// Checks a pair of feature maps of one stage: `[B, C, H, W]`, non-empty, one batch size.
pub(crate) fn check_maps(method: &'static str, stage: usize, student: &Tensor, teacher: &Tensor) -> Result<()> {
    float(method, "student maps", student)?;
    same_type(method, student, teacher)?;
    let fits = student.rank() == 4
        && teacher.rank() == 4
        && student.elem_count() > 0
        && teacher.elem_count() > 0
        && student.dims()[0] == teacher.dims()[0];
    if fits {
        return Ok(());
    }
    Err(mismatch(
        method,
        format!("stage {stage}: expected non-empty maps [B, C, H, W] of one batch size"),
        student,
        teacher,
    ))
}

/// The larger map, by height, average-pooled to the smaller one's size; the teacher's is detached.
pub(crate) fn pool_match(
    method: &'static str,
    stage: usize,
    student: &Tensor,
    teacher: &Tensor,
) -> Result<(Tensor, Tensor)> {
    check_maps(method, stage, student, teacher)?;
    let teacher_map = teacher.detach();
    let (_, _, hs, ws) = student.dims4()?;
    let (_, _, ht, wt) = teacher.dims4()?;
    let (s, t) = match hs.cmp(&ht) {
        std::cmp::Ordering::Greater => (retort_kernels::adaptive_avg_pool2d(student, [ht, wt])?, teacher_map),
        std::cmp::Ordering::Less => (student.clone(), retort_kernels::adaptive_avg_pool2d(&teacher_map, [hs, ws])?),
        std::cmp::Ordering::Equal => (student.clone(), teacher_map),
    };
    if s.dims()[2..] != t.dims()[2..] {
        return Err(mismatch(
            method,
            format!("stage {stage}: maps of one height must have one width"),
            student,
            teacher,
        ));
    }
    Ok((s, t))
}

/// `CxHxW`, for messages.
pub(crate) fn describe(map: &MapShape) -> String {
    format!("{}x{}x{}", map.channels, map.height, map.width)
}

/// Map `index` (0 is the stem) of a network's description, or an error.
pub(crate) fn map_shape(method: &'static str, who: &str, spec: &NetworkSpec, index: usize) -> Result<MapShape> {
    spec.maps.get(index).copied().ok_or_else(|| Error::Undefined {
        method,
        message: format!("{who} `{}` shows {} maps, but map {index} is asked for", spec.name, spec.maps.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn a_zero_vector_stays_zero_and_passes_no_gradient() {
        let x = Var::new(&[[3.0f32, 4.0], [0.0, 0.0], [1e-13, 0.0]], &Device::Cpu).unwrap();
        let y = guarded_normalize(&x, 1e-12).unwrap();
        let v = y.to_vec2::<f32>().unwrap();
        assert!((v[0][0] - 0.6).abs() < 1e-7 && (v[0][1] - 0.8).abs() < 1e-7);
        assert_eq!(v[1..], [vec![0.0, 0.0], vec![0.0, 0.0]]);
        let grad = y.narrow(1, 0, 1).unwrap().sum_all().unwrap().backward().unwrap();
        let g = grad.get(&x).unwrap().to_vec2::<f32>().unwrap();
        assert!((g[0][0] - 0.128).abs() < 1e-6 && (g[0][1] + 0.096).abs() < 1e-6, "{g:?}");
        assert_eq!(g[1..], [vec![0.0, 0.0], vec![0.0, 0.0]]);
    }

    #[test]
    fn nan_survives_normalisation() {
        let x = Tensor::new(&[[f32::NAN, 1.0]], &Device::Cpu).unwrap();
        assert!(guarded_normalize(&x, 1e-12).unwrap().to_vec2::<f32>().unwrap()[0][1].is_nan());
    }

    #[test]
    fn log_softmax_counts_tied_maxima_once() {
        let x = Var::new(&[[2.0f64, 2.0, 2.0, -1.0]], &Device::Cpu).unwrap();
        let y = log_softmax(&x).unwrap().narrow(1, 0, 1).unwrap().sum_all().unwrap();
        let g = y.backward().unwrap().get(&x).unwrap().to_vec2::<f64>().unwrap();
        let p = 1.0 / (3.0 + (-3.0f64).exp());
        assert!((g[0][0] - (1.0 - p)).abs() < 1e-14 && (g[0][1] + p).abs() < 1e-14);
    }

    #[test]
    fn labels_are_checked() {
        let ok = Tensor::new(&[0i64, 2], &Device::Cpu).unwrap();
        assert_eq!(class_ids("ce", &ok, 2, 3).unwrap(), [0, 2]);
        for bad in [Tensor::new(&[0i64, 3], &Device::Cpu), Tensor::new(&[0i64, -1], &Device::Cpu)] {
            let message = class_ids("ce", &bad.unwrap(), 2, 3).unwrap_err().to_string();
            assert!(message.contains("is no class"), "{message}");
        }
        let soft = Tensor::new(&[0.5f32, 0.5], &Device::Cpu).unwrap();
        assert!(class_ids("ce", &soft, 2, 3).unwrap_err().to_string().contains("class indices"));
    }
}
