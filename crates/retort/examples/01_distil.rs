//! Trains a small teacher on 8x8 digits and distils it into a smaller student: `cargo run --release -p retort --example 01_distil`.

use candle_core::Device;
use retort::datasets::{Dataset, Sampling, Split, ViewConfig};
use retort::losses::output::{CeConfig, KdConfig};
use retort::losses::{EnsembleRule, LossConfig};
use retort::models::ModelConfig;
use retort::nn::{Decay, Network, OptimizerConfig, ScheduleConfig, Seed};
use retort::trainers::engine::{BatchPlan, Identity, Phase, Silent, Summary, Trainer};
use retort::trainers::offline::{Offline, OfflineConfig, frozen, student_weights};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MODEL: ModelConfig = ModelConfig { in_channels: 1, image: [8, 8], classes: 10 };

fn main() -> Result<()> {
    let train = retort::datasets::load("digits-8x8", Split::Train, None)?;
    let test = retort::datasets::load("digits-8x8", Split::Test, None)?;

    let (_, teacher) = run("resnet20", &[LossConfig::Ce(CeConfig::default())], None, &train, &test, 8)?;
    let (plain, _) = run("resnet8", &[LossConfig::Ce(CeConfig::default())], Some(teacher.clone()), &train, &test, 3)?;
    let kd = [LossConfig::Ce(CeConfig { weight: 0.1 }), LossConfig::Kd(KdConfig::default())];
    let (distilled, _) = run("resnet8", &kd, Some(teacher), &train, &test, 3)?;

    for (name, summary) in [("resnet8, cross-entropy", plain), ("resnet8, distilled", distilled)] {
        let last = summary.last("student").ok_or("nothing was evaluated")?;
        let agreement = last.agreement.unwrap_or_default();
        eprintln!("{name}: accuracy {:.1} %, agreement {:.1} %", 100.0 * last.accuracy, 100.0 * agreement);
    }
    Ok(())
}

/// Trains `model` and returns it frozen, ready to teach.
fn run(
    model: &str,
    losses: &[LossConfig],
    teacher: Option<Arc<dyn Network>>,
    train: &Dataset,
    test: &Dataset,
    epochs: usize,
) -> Result<(Summary, Arc<dyn Network>)> {
    let (seed, device) = (Seed::root(1), Device::Cpu);
    let objective = Offline::new(&OfflineConfig {
        student: model,
        model: MODEL,
        losses,
        teachers: teacher.into_iter().collect(),
        ensemble: EnsembleRule::default(),
        train_labels: train.labels(),
        seed,
        device: device.clone(),
    })?;
    let mut phases = [Phase {
        name: "train".into(),
        epochs,
        plan: BatchPlan { batch_size: 64, sampling: Sampling::Shuffled, views: vec![ViewConfig::default()] },
        transform: Box::new(Identity),
        optimizer: OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, dampening: 0.0, weight_decay: 5e-4 },
        schedule: ScheduleConfig { lr: 0.05, warmup_epochs: 0, decay: Decay::Cosine { floor: 0.0 } },
        objective: Box::new(objective),
    }];
    let stop = AtomicBool::new(false);
    let trainer = Trainer {
        train,
        test,
        seed,
        device: device.clone(),
        test_views: vec![ViewConfig::default()],
        eval_batch_size: 120,
        evaluate_every: 1,
        bounds: false,
        checkpoint: None,
        stop: &stop,
    };
    let summary = trainer.run(&mut phases, &mut Silent)?;

    let weights = student_weights(phases[0].objective.as_ref())?;
    Ok((summary, Arc::from(frozen(model, &MODEL, weights, &device)?)))
}
