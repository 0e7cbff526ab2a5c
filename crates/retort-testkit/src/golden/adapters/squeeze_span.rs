//! Squeeze-and-Span. Embeddings are `in.z_g`, `in.z_f`, and with `span` `in.z_r1`, `in.z_r2`.

use super::fixed;
use crate::Result;
use crate::golden::Run;
use retort_losses::self_supervised::{self, SqueezeSpanConfig, VicregWeights};

pub(super) fn squeeze_span(run: &mut Run<'_>) -> Result<()> {
    fixed(run, "eps", 1e-4)?;
    let weights = VicregWeights {
        similarity: run.param("lambda_sim")?,
        variance: run.param("lambda_var")?,
        covariance: run.param("lambda_cov")?,
    };
    let config = SqueezeSpanConfig {
        weights,
        synthetic_share: run.param("syn_ratio")?,
        regularize_teacher_branch: run.case().param_or("regularize_teacher_branch", false)?,
    };
    let generated = [run.input("z_g")?, run.input("z_f")?];
    let real = match run.case().param_or("span", run.case().has("in.z_r1"))? {
        true => Some([run.input("z_r1")?, run.input("z_r2")?]),
        false => None,
    };
    let real = real.as_ref().map(|[first, second]| [first, second]);
    let found = self_supervised::squeeze_span([&generated[0], &generated[1]], real, &config)?;
    let ([variance_g, variance_f], [covariance_g, covariance_f]) = (found.squeeze.variance, found.squeeze.covariance);
    run.produce("sim", found.squeeze.similarity);
    run.produce("var_g", variance_g);
    run.produce("var_f", variance_f);
    run.produce("cov_g", covariance_g);
    run.produce("cov_f", covariance_f);
    run.produce("squeeze", found.squeeze.total);
    if let Some(span) = found.span {
        run.produce("span", span.total);
    }
    run.loss(&found.total)?;
    Ok(())
}
