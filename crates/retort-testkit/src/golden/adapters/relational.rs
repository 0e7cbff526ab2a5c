//! Relational losses. Embeddings (or maps) are `in.student` and `in.teacher`.

use super::{fixed, linear};
use crate::Result;
use crate::golden::Run;
use retort_losses::relational;

pub(super) fn sp(run: &mut Run<'_>) -> Result<()> {
    let loss = relational::similarity_preserving(&run.input("student")?, &run.input("teacher")?)?;
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn rkd(run: &mut Run<'_>) -> Result<()> {
    fixed(run, "eps", 1e-12)?;
    let (student, teacher) = (run.input("student")?, run.input("teacher")?);
    let parts = match run.case().param_or("squared", false)? {
        false => relational::relational(&student, &teacher)?,
        true => relational::relational_squared(&student, &teacher)?,
    };
    let loss = parts.combine(run.param("w_d")?, run.param("w_a")?)?;
    run.produce("distance", parts.distance);
    run.produce("angle", parts.angle);
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn pkt(run: &mut Run<'_>) -> Result<()> {
    let eps = run.case().param_or("eps", 1e-7)?;
    let loss = relational::probabilistic_transfer(&run.input("student")?, &run.input("teacher")?, eps)?;
    run.loss(&loss)?;
    Ok(())
}

pub(super) fn cc(run: &mut Run<'_>) -> Result<()> {
    let (student, teacher) = (run.input("student")?, run.input("teacher")?);
    let params = run.params([]);
    let head_s = linear(run, &params, "embed_s")?;
    let head_t = linear(run, &params, "embed_t")?;
    let loss = relational::correlation_congruence(&head_s.forward(&student)?, &head_t.forward(&teacher)?)?;
    run.loss(&loss)?;
    Ok(())
}
