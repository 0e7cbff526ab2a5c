//! Contrastive losses.

use super::linear;
use crate::golden::Run;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use retort_losses::contrastive::{AliasTable, CrdMemory, MemoryConfig};

/// Several steps on two memory banks with the heads held fixed; the loss is the sum over the steps.
pub(super) fn crd(run: &mut Run<'_>) -> Result<()> {
    let case = run.case();
    let config = MemoryConfig {
        temperature: case.param("temperature")?,
        momentum: case.param("momentum")?,
        eps: case.param("eps")?,
    };
    let z = if case.has("in.z_init") { Some(pair(&run.input("z_init")?)?) } else { None };
    let mut memory = CrdMemory::new(&run.input("memory_v1")?, &run.input("memory_v2")?, z, config)?;
    let params = run.params([]);
    let (head_s, head_t) = (linear(run, &params, "embed_s")?, linear(run, &params, "embed_t")?);
    let mut total: Option<Tensor> = None;
    let mut number = 0;
    while case.has(&format!("in.step{number}.index")) {
        let name = |part: &str| format!("step{number}.{part}");
        let student = head_s.forward(&run.input(&name("student"))?)?;
        let teacher = head_t.forward(&run.input(&name("teacher"))?)?;
        let index = run.indices(&name("index"))?;
        let step = memory.step(&student, &teacher, &run.indices(&name("contrast_index"))?)?;
        memory.update(&step, &index)?;
        let rows = Tensor::new(index.as_slice(), &Device::Cpu)?;
        run.produce(name("scores_s"), step.scores_s()?);
        run.produce(name("scores_t"), step.scores_t()?);
        run.produce(name("loss_s"), step.loss_s);
        run.produce(name("loss_t"), step.loss_t);
        run.produce(name("loss"), step.loss.clone());
        run.produce(name("z"), Tensor::new(&step.z, &Device::Cpu)?);
        run.produce(name("rows_v1"), memory.student_bank()?.index_select(&rows, 0)?);
        run.produce(name("rows_v2"), memory.teacher_bank()?.index_select(&rows, 0)?);
        total = Some(match total {
            Some(sum) => (sum + step.loss)?,
            None => step.loss,
        });
        number += 1;
    }
    run.produce("memory_v1", memory.student_bank()?);
    run.produce("memory_v2", memory.teacher_bank()?);
    let total = total.ok_or_else(|| Error::invalid("crd", "the case has no step: `in.step0.index` is missing"))?;
    run.loss(&total)?;
    Ok(())
}

fn pair(tensor: &Tensor) -> Result<[f64; 2]> {
    let values: Vec<f64> = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
    values
        .try_into()
        .map_err(|_| Error::invalid("crd", format!("`z_init` must have 2 entries, found {:?}", tensor.dims())))
}

/// The distribution that the table of some weights implies; there is no loss.
pub(super) fn alias_sampler(run: &mut Run<'_>) -> Result<()> {
    let weights: Vec<f64> = run.input("weights")?.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
    let n: usize = run.case().param_or("n", weights.len())?;
    if n != weights.len() {
        return Err(Error::invalid("alias-sampler", format!("n is {n}, but there are {} weights", weights.len())));
    }
    run.produce("implied", Tensor::new(AliasTable::new(&weights)?.implied(), &Device::Cpu)?);
    Ok(())
}
