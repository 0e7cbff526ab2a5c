//! Mutual contrastive learning against memory banks of all training images.

use super::cohort::{Cohort, CohortForm, Others, logits, task};
use super::mcl::{cohort, heads, projected};
use crate::engine::{Evaluated, Phase, Step, StepOutput};
use crate::learner::{Learner, Method, stream};
use crate::state::Parts;
use crate::system::{Kind, MAIN, System, SystemContext, SystemInfo};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use retort_datasets::{Batch, Dataset};
use retort_losses::online::{MclMemory, MclSettings, mcl_logit_kd};
use retort_models::Head;
use retort_nn::{Seed, Taps, Tensors};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Mutual contrastive learning for large data sets: every image is compared with stored embeddings of its class and of
/// others (Yang et al. 2022, arXiv 2104.12565); see [`MclMemory`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MclMemoryConfig {
    /// The networks beside the student, 1 to 15.
    pub others: Others,
    /// What they share. Where absent, as published: nothing for two networks or several architectures, stem and first
    /// stage for more than two of one architecture.
    pub form: Option<CohortForm>,
    /// Hidden width of the heads, at least 1.
    pub hidden: usize,
    /// Width of the stored embeddings, at least 1.
    pub dim: usize,
    /// Stored images of its class that an image is compared with, 1 to 65536.
    pub positives: usize,
    /// Stored images of other classes, drawn with repetition, 1 to 65536.
    pub negatives: usize,
    /// Share of the old row that stays when an image is stored again, 0 to 1.
    pub momentum: f64,
    /// Divisor of the scores, > 0.
    pub tau: f64,
    /// Softmax temperature of the imitation on top of it, and of the class scores, > 0.
    pub temperature: f64,
    /// Weight of the contrast within each network, >= 0.
    pub vcl: f64,
    /// Weight of its imitation, >= 0.
    pub soft_vcl: f64,
    /// Weight of the contrast across networks, >= 0.
    pub icl: f64,
    /// Weight of its imitation, >= 0.
    pub soft_icl: f64,
    /// Whether class scores are imitated, too; see [`mcl_logit_kd`].
    pub logit_kd: bool,
}

impl Default for MclMemoryConfig {
    fn default() -> Self {
        let MclSettings { tau, temperature, vcl, soft_vcl, icl, soft_icl, .. } = MclSettings::memory();
        Self {
            others: Others::default(),
            form: None,
            hidden: 128,
            dim: 128,
            positives: 1,
            negatives: 8192,
            momentum: 0.5,
            tau,
            temperature,
            vcl,
            soft_vcl,
            icl,
            soft_icl,
            logit_kd: false,
        }
    }
}

/// More stored images than any method compares with one; a larger number is a slip.
const MOST: usize = 65_536;

impl MclMemoryConfig {
    fn loss(&self) -> MclSettings {
        MclSettings {
            tau: self.tau,
            temperature: self.temperature,
            vcl: self.vcl,
            soft_vcl: self.soft_vcl,
            icl: self.icl,
            soft_icl: self.soft_icl,
            ..MclSettings::memory()
        }
    }
}

impl System for MclMemoryConfig {
    const INFO: SystemInfo = SystemInfo {
        id: "mcl-memory",
        title: "Mutual contrastive learning with memory banks",
        kind: Kind::Online,
        paper: Some("Mutual Contrastive Learning for Visual Representation Learning"),
        year: Some(2022),
        arxiv: Some("2104.12565"),
        views: 1,
        losses: false,
        trainable: &["further networks or branches", "head of each network"],
        state: &["memory bank of each network"],
        code_bases: &[super::MCL_CODE],
    };

    fn check(&self) -> Result<()> {
        self.others.check(Self::INFO.id, 1)?;
        for (field, count) in [("positives", self.positives), ("negatives", self.negatives)] {
            if !(1..=MOST).contains(&count) {
                let message = format!("`{field}` must be 1 to {MOST}, found {count}");
                return Err(Error::Config { what: Self::INFO.id.into(), message });
            }
        }
        Ok(self.loss().validate(Self::INFO.id)?)
    }

    fn phases(&self, ctx: &SystemContext<'_>) -> Result<Vec<Phase>> {
        let rows = ByClass::new(ctx.train)?;
        let (cohort, mut parts) = cohort(ctx, Self::INFO.id, &self.others, self.form)?;
        let (heads, part) = heads(ctx, &cohort, self.hidden, self.dim)?;
        parts.push(part);
        let (count, seed) = (cohort.networks().len(), ctx.seed.child(Self::INFO.id));
        let (size, start) = (ctx.train.len(), seed.child("banks"));
        let memory = MclMemory::init(count, size, self.dim, self.momentum, start, DType::F32, &ctx.device)?;
        let method = Banks { cohort, heads, memory, rows, seed, due: None, config: self.clone() };
        Ok(vec![ctx.recipe.phase(MAIN, Box::new(Learner::new(Parts::new(parts), method)))])
    }
}

struct Banks {
    cohort: Cohort,
    heads: Vec<Head>,
    memory: MclMemory,
    rows: ByClass,
    seed: Seed,
    /// Embeddings of this step and the rows of their images.
    due: Option<(Vec<Tensor>, Vec<u32>)>,
    config: MclMemoryConfig,
}

impl Method for Banks {
    fn step(&mut self, step: &Step<'_>) -> Result<StepOutput> {
        let (batch, settings) = (step.batch, self.config.loss());
        let labels = batch.labels()?;
        let outputs = self.cohort.forward(&batch.images, Taps::default())?.peers;
        let (logits, embeddings) = (logits(&outputs), projected(&self.heads, &outputs)?);
        let counts = [self.config.positives, self.config.negatives];
        let [positives, negatives] = self.rows.draw(batch, counts, &mut stream(self.seed, step));
        let mut terms = vec![task(&logits, labels)?];
        terms.extend(self.memory.terms(&embeddings, &positives, &negatives, &settings)?);
        if self.config.logit_kd {
            terms.push(mcl_logit_kd(&logits, settings.temperature)?);
        }
        self.due = Some((embeddings.iter().map(Tensor::detach).collect(), batch.index.clone()));
        Ok(StepOutput { terms, logits: logits.into_iter().next() })
    }

    fn after_step(&mut self) -> Result<()> {
        match self.due.take() {
            Some((embeddings, rows)) => Ok(self.memory.update(&embeddings, &rows)?),
            None => Ok(()),
        }
    }

    fn evaluated(&self) -> Vec<Evaluated<'_>> {
        self.cohort.evaluated()
    }

    fn memory(&self) -> Result<Tensors> {
        Ok(self.memory.state()?)
    }

    fn load_memory(&mut self, memory: &Tensors) -> Result<()> {
        Ok(self.memory.load_state(memory)?)
    }

    fn deployed(&self, student: Tensors) -> Result<Tensors> {
        Ok(self.cohort.deployed(student))
    }
}

/// Rows of the training set, class after class.
struct ByClass {
    rows: Vec<u32>,
    /// Where each class is in `rows`.
    classes: Vec<Range<u32>>,
}

impl ByClass {
    /// Refuses classes of a single image, and fewer than two classes.
    fn new(train: &Dataset) -> Result<Self> {
        let counts = train.class_counts();
        let wrong = |message: String| Err(Error::Config { what: MclMemoryConfig::INFO.id.into(), message });
        if let Some(class) = counts.iter().position(|&count| count == 1) {
            return wrong(format!("every class needs at least 2 training images, found 1 of class {class}"));
        }
        let occur = counts.iter().filter(|&&count| count > 0).count();
        if occur < 2 {
            return wrong(format!("expected training images of at least 2 classes, found {occur}"));
        }
        let labels = train.labels();
        let mut rows: Vec<u32> = (0u32..).take(labels.len()).collect();
        rows.sort_by_key(|&row| labels[row as usize]);
        let mut end = 0;
        let classes = counts.iter().map(|&count| {
            let start = end;
            end += count as u32;
            start..end
        });
        Ok(Self { classes: classes.collect(), rows })
    }

    /// Of each image its own row and `positives` others of its class, and `negatives` rows of other classes.
    fn draw(&self, batch: &Batch, [positives, negatives]: [usize; 2], rng: &mut ChaCha8Rng) -> [Vec<u32>; 2] {
        let mut drawn = [Vec::new(), Vec::new()];
        for (&row, &label) in batch.index.iter().zip(&batch.label_ids) {
            let class = self.classes[label as usize].clone();
            drawn[0].push(row);
            for _ in 0..positives {
                // The last one of the class stands in for the image itself.
                let place = self.rows[rng.random_range(class.start..class.end - 1) as usize];
                drawn[0].push(if place == row { self.rows[class.end as usize - 1] } else { place });
            }
            let others = self.rows.len() as u32 - class.len() as u32;
            for _ in 0..negatives {
                let place = rng.random_range(0..others);
                let behind = if place < class.start { place } else { place + class.len() as u32 };
                drawn[1].push(self.rows[behind as usize]);
            }
        }
        drawn
    }
}
