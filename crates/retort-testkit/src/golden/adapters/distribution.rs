//! Distances between the laws of features. Clouds are `in.x` (student) and `in.y` (teacher).

use crate::golden::Run;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use retort_losses::distribution::{
    self, Bandwidth, Covariance, Direction, Discrepancy, Entropic, Estimator, Inner, Kernel, LabelCost, Reduction,
    SecondMoment,
};
use retort_metrics::{Bounds, FeaturePair, Head};

/// Both clouds; the teacher's is detached by every loss, so its gradient is handed over apart.
fn clouds(run: &mut Run<'_>) -> Result<(Tensor, Tensor)> {
    Ok((run.input("x")?, run.constant("y")?))
}

/// Value, gradients, and those details that the case names.
fn finish(run: &mut Run<'_>, found: &Discrepancy) -> Result<()> {
    for (name, detail) in &found.details {
        run.produce(name, detail.clone());
    }
    run.gradient("y", found.grad_teacher.clone());
    run.loss(&found.value)?;
    Ok(())
}

/// Refuses a word that our function does not offer, rather than ignoring it.
fn only(run: &Run<'_>, name: &str, word: &str) -> Result<()> {
    let found: String = run.case().param_or(name, word.to_string())?;
    if found == word {
        return Ok(());
    }
    Err(Error::Unsupported(format!("{} with {name} other than {word}", run.case().id())))
}

pub(super) fn w2(run: &mut Run<'_>) -> Result<()> {
    only(run, "cost", "sqeuclidean")?;
    only(run, "weights", "uniform")?;
    let (x, y) = clouds(run)?;
    finish(run, &distribution::w2(&x, &y)?)
}

pub(super) fn w1(run: &mut Run<'_>) -> Result<()> {
    only(run, "cost", "euclidean")?;
    only(run, "weights", "uniform")?;
    let (x, y) = clouds(run)?;
    finish(run, &distribution::w1(&x, &y)?)
}

pub(super) fn w2_conditional(run: &mut Run<'_>) -> Result<()> {
    let reduction: Reduction = run.case().param_or("reduction", Reduction::Sum)?;
    let (x, y) = clouds(run)?;
    let (s, t) = (run.indices("labels_s")?, run.indices("labels_t")?);
    let found = distribution::w2_conditional(&x, &y, &s, &t, reduction)?;
    classes(run, &found)?;
    finish(run, &found)
}

/// The tensors of a class intersection that is empty.
fn classes(run: &mut Run<'_>, found: &Discrepancy) -> Result<()> {
    if found.detail("classes").is_none() && run.case().has("out.classes") {
        run.produce("classes", Tensor::zeros(0, candle_core::DType::U32, &Device::Cpu)?);
        run.produce("per_class", Tensor::zeros(0, candle_core::DType::F32, &Device::Cpu)?);
    }
    Ok(())
}

pub(super) fn w2_joint(run: &mut Run<'_>) -> Result<()> {
    let (beta, cost): (f64, String) = (run.param("beta")?, run.param("label_cost")?);
    let scale: String = run.case().param_or("scale", "none".to_string())?;
    let by_max = match scale.as_str() {
        "none" => false,
        "max" => true,
        _ => return Err(Error::Unsupported(format!("w2-joint with scale {scale}"))),
    };
    let (x, y) = clouds(run)?;
    let found = if cost == "onehot-sq" {
        let (s, t) = (run.indices("labels_s")?, run.indices("labels_t")?);
        distribution::w2_joint(&x, &y, LabelCost::OneHotSq(&s, &t), beta, by_max)?
    } else {
        let (s, t) = (run.input("logits_s")?, run.constant("logits_t")?);
        let labels = match cost.as_str() {
            "logits-sq" => LabelCost::LogitsSq(&s, &t),
            "probs-sq" => LabelCost::ProbsSq(&s, &t),
            "kl" => LabelCost::Kl(&s, &t),
            _ => return Err(Error::Unsupported(format!("w2-joint with label_cost {cost}"))),
        };
        distribution::w2_joint(&x, &y, labels, beta, by_max)?
    };
    if let Some(gradient) = found.detail("grad_teacher_logits") {
        run.gradient("logits_t", gradient.clone());
    }
    finish(run, &found)
}

pub(super) fn sliced_w2(run: &mut Run<'_>) -> Result<()> {
    only_two(run)?;
    let (x, y) = clouds(run)?;
    finish(run, &distribution::sliced_w2(&x, &y, &run.constant("proj")?)?)
}

pub(super) fn max_sliced_w2(run: &mut Run<'_>) -> Result<()> {
    only_two(run)?;
    let (x, y) = clouds(run)?;
    let mut found = distribution::max_sliced_w2(&x, &y, &run.constant("proj")?)?;
    for (name, detail) in &mut found.details {
        if *name == "argmax" {
            *detail = detail.reshape(1)?;
        }
    }
    finish(run, &found)
}

fn only_two(run: &Run<'_>) -> Result<()> {
    super::fixed(run, "p", 2.0)
}

pub(super) fn sliced_cramer(run: &mut Run<'_>) -> Result<()> {
    let (x, y) = clouds(run)?;
    finish(run, &distribution::sliced_cramer(&x, &y, &run.constant("proj")?)?)
}

pub(super) fn gaussian_w2(run: &mut Run<'_>) -> Result<()> {
    only(run, "covariance", "full")?;
    let (reg, bias) = (run.case().param_or("reg", 0.0)?, run.case().param_or("bias", true)?);
    let (x, y) = clouds(run)?;
    finish(run, &distribution::gaussian_w2(&x, &y, reg, bias)?)
}

pub(super) fn gaussian_w2_diag(run: &mut Run<'_>) -> Result<()> {
    let eps = run.case().param_or("eps", 0.0)?;
    let (x, y) = clouds(run)?;
    finish(run, &distribution::gaussian_w2_diag(&x, &y, eps)?)
}

pub(super) fn gaussian_kl(run: &mut Run<'_>) -> Result<()> {
    let (covariance, direction): (Covariance, Direction) = (run.param("covariance")?, run.param("direction")?);
    let (x, y) = clouds(run)?;
    finish(run, &distribution::gaussian_kl(&x, &y, covariance, direction, run.param("reg")?)?)
}

pub(super) fn frechet(run: &mut Run<'_>) -> Result<()> {
    super::fixed(run, "reg", 0.0)?;
    if run.case().param_or("bias", false)? {
        return Err(Error::Unsupported("frechet with biased covariances".into()));
    }
    let loss = distribution::frechet(&run.constant("x")?, &run.constant("y")?)?;
    run.produce("loss", loss);
    Ok(())
}

pub(super) fn coral(run: &mut Run<'_>) -> Result<()> {
    let (matrix, reg): (SecondMoment, f64) = (run.param("matrix")?, run.case().param_or("reg", 0.0)?);
    let (x, y) = clouds(run)?;
    finish(run, &distribution::coral(&x, &y, matrix, reg)?)
}

fn kernel(run: &Run<'_>) -> Result<Kernel> {
    let (case, name): (_, String) = (run.case(), run.param("kernel")?);
    Ok(match name.as_str() {
        "linear" => Kernel::Linear,
        "poly" => Kernel::Poly { degree: run.param("degree")?, coef0: case.param_or("coef0", 0.0)? },
        "rbf" => {
            let bandwidth: Bandwidth = case.param_or("bandwidth", Bandwidth::default())?;
            Kernel::Rbf { bandwidth, multipliers: case.param_or("multipliers", vec![1.0])? }
        }
        _ => return Err(Error::Unsupported(format!("{} with kernel {name}", case.id()))),
    })
}

pub(super) fn mmd(run: &mut Run<'_>) -> Result<()> {
    let (kernel, estimator): (_, Estimator) = (kernel(run)?, run.case().param_or("estimator", Estimator::Biased)?);
    let (x, y) = clouds(run)?;
    let found = distribution::mmd(&x, &y, &kernel, estimator)?;
    finish(run, &found)
}

pub(super) fn mmd_conditional(run: &mut Run<'_>) -> Result<()> {
    let (kernel, estimator): (_, Estimator) = (kernel(run)?, run.case().param_or("estimator", Estimator::Biased)?);
    let reduction: Reduction = run.case().param_or("reduction", Reduction::Sum)?;
    let (x, y) = clouds(run)?;
    let (s, t) = (run.indices("labels_s")?, run.indices("labels_t")?);
    let found = distribution::mmd_conditional(&x, &y, &s, &t, &kernel, estimator, reduction)?;
    classes(run, &found)?;
    finish(run, &found)
}

pub(super) fn energy_distance(run: &mut Run<'_>) -> Result<()> {
    let estimator: Estimator = run.case().param_or("estimator", Estimator::Biased)?;
    let (x, y) = clouds(run)?;
    finish(run, &distribution::energy_distance(&x, &y, estimator)?)
}

/// The files hold converged solutions.
fn entropic(run: &Run<'_>) -> Result<Entropic> {
    only(run, "cost", "sqeuclidean")?;
    Ok(Entropic { eps: Some(run.param("eps")?), max_iter: 100_000, tolerance: 1e-10, ..Entropic::default() })
}

pub(super) fn sinkhorn(run: &mut Run<'_>) -> Result<()> {
    let entropic = entropic(run)?;
    let (x, y) = clouds(run)?;
    finish(run, &distribution::sinkhorn(&x, &y, &entropic)?)
}

pub(super) fn sinkhorn_divergence(run: &mut Run<'_>) -> Result<()> {
    let entropic = entropic(run)?;
    let (x, y) = clouds(run)?;
    finish(run, &distribution::sinkhorn_divergence(&x, &y, &entropic)?)
}

pub(super) fn sinkhorn_logits(run: &mut Run<'_>) -> Result<()> {
    let entropic =
        Entropic { eps: Some(run.param("eps")?), max_iter: 100_000, tolerance: 1e-10, ..Entropic::default() };
    let (s, t, cost) = (run.input("logits_s")?, run.constant("logits_t")?, run.constant("cost")?);
    let temperature = run.case().param_or("temperature", 1.0)?;
    let found = distribution::sinkhorn_logits(&s, &t, &cost, temperature, &entropic)?;
    run.gradient("logits_t", found.grad_teacher.clone());
    finish(run, &found)
}

pub(super) fn gromov_wasserstein(run: &mut Run<'_>) -> Result<()> {
    only(run, "loss_fun", "square")?;
    let inner = match run.case().param_or("distance", "euclidean".to_string())?.as_str() {
        "euclidean" => Inner::Euclidean,
        "sqeuclidean" => Inner::SquaredEuclidean,
        "cosine" => Inner::Cosine,
        other => return Err(Error::Unsupported(format!("gromov-wasserstein with distance {other}"))),
    };
    let (x, y) = clouds(run)?;
    let found = distribution::gromov_wasserstein_at(&x, &y, &run.constant("plan")?, inner)?;
    finish(run, &found)
}

pub(super) fn cdre_softplus(run: &mut Run<'_>) -> Result<()> {
    let loss = distribution::cdre_softplus(&run.input("ratio_real")?, &run.input("ratio_fake")?, run.param("lambda")?)?;
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn kd2m_bound(run: &mut Run<'_>) -> Result<()> {
    only(run, "head", "teacher")?;
    only(run, "loss", "cross-entropy")?;
    let (student, teacher) = (run.constant("z_s")?, run.constant("z_t")?);
    let (weight, bias, labels) = (run.constant("head_w")?, run.constant("head_b")?, run.indices("labels")?);
    let pair = FeaturePair { student: &student, teacher: &teacher, labels: &labels };
    let bounds = Bounds::new(pair, Head { weight: &weight, bias: Some(&bias) }, None)?;
    let (w1, w2) = (distribution::w1(&student, &teacher)?, distribution::w2(&student, &teacher)?);
    run.produce("w1_marginal", w1.value);
    run.produce("w2_marginal", w2.value.sqrt()?);
    let values = [
        ("loss", bounds.bound),
        ("ce_student_features", bounds.ce_student_features),
        ("ce_teacher_features", bounds.ce_teacher_features),
        ("lipschitz", bounds.lipschitz),
        ("w1_conditional", bounds.w1_conditional),
        ("w2_conditional", bounds.w2_conditional),
        ("paired_l1", bounds.paired_l1),
        ("paired_l2", bounds.paired_l2),
    ];
    for (name, value) in values {
        run.produce(name, Tensor::new(&[value], &Device::Cpu)?);
    }
    Ok(())
}
