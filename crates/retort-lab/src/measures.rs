//! Figures of a finished run that compare its network with its teachers on the test images.

use crate::Result;
use crate::plan::RunSpec;
use crate::run::{RunData, test_views};
use candle_core::{D, DType, Device, Tensor};
use retort_datasets::{Loader, LoaderConfig, Sampling};
use retort_nn::{Mode, Network, Taps, no_grad};
use retort_trainers::Trained;
use std::collections::BTreeMap;
use std::sync::Arc;

const ROWS: usize = 250;

/// `disagreement`: the share of test images on which two teachers of an ensemble name different classes, a mean over the
/// pairs. `embedding-cosine`: the mean cosine of the embeddings of student and teacher, for probed students of the
/// teacher's width.
pub(crate) fn beside_teachers(
    spec: &RunSpec,
    data: &RunData,
    student: &Trained,
    teachers: &[Trained],
) -> Result<BTreeMap<String, f64>> {
    let mut found = BTreeMap::new();
    let device = Device::Cpu;
    let networks = teachers.iter().map(|t| Ok(t.network(&device)?)).collect::<Result<Vec<Arc<dyn Network>>>>()?;
    let student = student.network(&device)?;
    let compared = spec.probe.is_some().then(|| networks.first()).flatten();
    let compared = compared.filter(|teacher| teacher.spec().embedding == student.spec().embedding);
    let several = networks.len() > 1 && teachers.iter().all(|teacher| teacher.classifies);
    if compared.is_none() && !several {
        return Ok(found);
    }
    let (mut wrong, mut cosine, mut rows) = (0.0, 0.0, 0.0);
    let (sampling, views) = (Sampling::Sequential, test_views(spec));
    let config = LoaderConfig { batch_size: ROWS, sampling, drop_last: false, views, seed: 0 };
    for batch in Loader::new(data.test.clone(), config).map_err(crate::Error::request)?.epoch(0) {
        let batch = batch.map_err(crate::Error::request)?;
        let seen = batch.more_views.first().unwrap_or(&batch.images);
        let said =
            |network: &dyn Network, images: &Tensor| no_grad(|| network.forward(images, Mode::Eval, Taps::default()));
        let of_teachers = networks.iter().map(|t| said(t.as_ref(), seen)).collect::<retort_nn::Result<Vec<_>>>()?;
        if several {
            let logits: Vec<&Tensor> = of_teachers.iter().map(|outputs| &outputs.logits).collect();
            wrong += disagreements(&logits).map_err(failed)?;
        }
        if compared.is_some() {
            let own = said(student.as_ref(), &batch.images)?;
            cosine += cosines(&own.embedding, &of_teachers[0].embedding).map_err(failed)?;
        }
        rows += batch.len() as f64;
    }
    if several {
        let pairs = (networks.len() * (networks.len() - 1) / 2) as f64;
        found.insert("disagreement".into(), wrong / (pairs * rows));
    }
    if compared.is_some() {
        found.insert("embedding-cosine".into(), cosine / rows);
    }
    Ok(found)
}

fn failed(error: candle_core::Error) -> crate::Error {
    crate::Error::Failed(format!("measures: {error}"))
}

/// Rows of a batch on which two networks name different classes, summed over the pairs.
fn disagreements(logits: &[&Tensor]) -> candle_core::Result<f64> {
    let named: Vec<Tensor> = logits.iter().map(|z| z.argmax(D::Minus1)).collect::<candle_core::Result<_>>()?;
    let mut sum = 0.0;
    for (i, a) in named.iter().enumerate() {
        for b in &named[..i] {
            sum += a.ne(b)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        }
    }
    Ok(sum)
}

/// Sum over rows; a row of zeros has cosine 0.
fn cosines(a: &Tensor, b: &Tensor) -> candle_core::Result<f64> {
    let unit = |x: &Tensor| {
        let x = x.to_dtype(DType::F64)?;
        x.broadcast_div(&(x.sqr()?.sum_keepdim(1)? + 1e-24)?.sqrt()?)
    };
    (unit(a)? * unit(b)?)?.sum_all()?.to_scalar()
}
