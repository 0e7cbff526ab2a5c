//! Feature losses that look at all stages at once. Maps are `in.s0`, `in.s1`, ... and `in.t0`, `in.t1`, ...

use super::feature::{produce_stages, shape_of};
use crate::golden::Run;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_losses::feature::{self, OfdConnector, Review, SvdSpec, SvdVariant};
use retort_nn::{MapShape, Params};

pub(super) fn kdsvd(run: &mut Run<'_>) -> Result<()> {
    let default = SvdSpec::default();
    let variant = match run.param::<String>("variant")?.as_str() {
        "channel" => SvdVariant::Channel,
        "width" => SvdVariant::Width,
        other => return Err(Error::Unsupported(format!("variant `{other}` of kdsvd"))),
    };
    let extra = run.case().param_or("extra", default.extra)?;
    let rbf_div = run.case().param_or("rbf_div", default.rbf_div)?;
    let spec = SvdSpec { variant, k: run.param("k")?, extra, rbf_div };
    let (student, teacher) = (run.numbered("s")?, run.numbered("t")?);
    let loss = feature::singular_vector_affinity(&student, &teacher, spec)?;
    run.loss(&loss.total)?;
    Ok(())
}

pub(super) fn ofd_margin(run: &mut Run<'_>) -> Result<()> {
    let (weight, bias) = (run.input("bn_weight")?, run.input("bn_bias")?);
    let margin = feature::ofd_margin(&weight, &bias, run.param("cdf_threshold")?)?;
    run.produce("margin", margin);
    Ok(())
}

pub(super) fn ofd(run: &mut Run<'_>) -> Result<()> {
    let kernel_size = run.param("kernel_size")?;
    let (student, teacher, margins) = (run.numbered("s")?, run.numbered("t")?, run.numbered("margin")?);
    let weights = run.case().param_or("stage_weights", feature::overhaul_weights(student.len()))?;
    let params = params(run)?;
    let mut connected = Vec::new();
    for (i, (s, t)) in student.iter().zip(&teacher).enumerate() {
        let (c_s, c_t) = (s.dims4()?.1, t.dims4()?.1);
        let scope = params.root().child("connectors").child(i);
        connected.push(OfdConnector::new(c_s, c_t, kernel_size, &scope)?.forward(s)?);
    }
    produce_stages(run, &feature::overhaul(&connected, &teacher, &margins, &weights)?)
}

/// Shapes are those of the maps; the lists of sizes (deep to shallow) and channels (shallow
/// to deep) must agree with them.
pub(super) fn reviewkd(run: &mut Run<'_>) -> Result<()> {
    let (student, teacher) = (run.numbered("s")?, run.numbered("t")?);
    let shapes = |maps: &[Tensor], channels: &str, sizes: &str| -> Result<Vec<MapShape>> {
        let shapes = maps.iter().map(shape_of).collect::<Result<Vec<_>>>()?;
        let (channels, sizes): (Vec<usize>, Vec<usize>) = (run.param(channels)?, run.param(sizes)?);
        let listed: Vec<_> = channels.into_iter().zip(sizes.into_iter().rev()).collect();
        let found: Vec<_> = shapes.iter().map(|shape| (shape.channels, shape.width)).collect();
        if listed != found {
            let message = format!("the parameters list {listed:?} as channels and widths, the maps have {found:?}");
            return Err(Error::invalid("reviewkd", message));
        }
        Ok(shapes)
    };
    let entries = shapes(&student, "in_channels", "shapes")?;
    let entries: Vec<_> = entries.into_iter().zip(shapes(&teacher, "out_channels", "out_shapes")?).collect();
    let mid = run.param("mid_channel")?;
    let review = Review::new(&entries, mid, &params(run)?.root())?;
    let results = review.forward(&student)?;
    for (i, result) in results.iter().enumerate() {
        run.produce(format!("out{i}"), result.clone());
    }
    let loss = feature::hierarchical_context(&results, &teacher)?;
    run.loss(&loss.total)?;
    Ok(())
}

/// All `in.param.*`, and running statistics at 0 and 1 beside every bias of a batch norm.
fn params(run: &mut Run<'_>) -> Result<Params> {
    let mut buffers = Vec::new();
    for (name, bias) in run.case().with_prefix("in.param.") {
        if let Some(norm) = name.strip_suffix(".1.bias") {
            let zeros = Tensor::zeros(bias.dims(), DType::F32, &Device::Cpu)?;
            buffers.push((format!("{norm}.1.running_var"), zeros.ones_like()?));
            buffers.push((format!("{norm}.1.running_mean"), zeros));
        }
    }
    Ok(run.params(buffers))
}
