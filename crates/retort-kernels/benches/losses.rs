//! The operations of `loss` on the shapes that the losses of resnet8x4 show them at 32x32, batch 64.
//!
//! One rayon thread, unless `RETORT_BENCH_THREADS` says otherwise.

use std::hint::black_box;
use std::time::Duration;

use candle_core::{Device, Tensor, Var};
use criterion::{Criterion, criterion_group, criterion_main};
use retort_kernels::{
    channel_power_mean, gram, inner_products, logistic_contrast, softmax_cross_entropy, softmax_divergence,
    weighted_sums,
};

// As in the binaries: with the system's allocator fresh memory costs more than a loss.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 64;

fn values(dims: &[usize]) -> Tensor {
    let count = dims.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).expect("the product of the dimensions is the length")
}

fn var(dims: &[usize]) -> Tensor {
    Var::from_tensor(&values(dims)).expect("a tensor on the cpu can be a variable").as_tensor().clone()
}

/// A function of one tensor.
type Function<'a> = &'a dyn Fn(&Tensor) -> retort_kernels::Result<Tensor>;

fn losses(c: &mut Criterion) {
    let mut group = c.benchmark_group("loss");
    let (target, labels) = (values(&[BATCH, 100]), [1; BATCH]);
    let functions: [(&str, Function, &[usize]); 6] = [
        ("cross-entropy", &|z| softmax_cross_entropy(z, &labels, 0.1), &[BATCH, 100]),
        ("divergence", &|z| softmax_divergence(z, &target, 4.0), &[BATCH, 100]),
        ("power-mean 64@32", &|x| channel_power_mean(x, 2.0), &[BATCH, 64, 32, 32]),
        ("power-mean 128@16", &|x| channel_power_mean(x, 2.0), &[BATCH, 128, 16, 16]),
        ("power-mean 256@8", &|x| channel_power_mean(x, 2.0), &[BATCH, 256, 8, 8]),
        ("gram 256@8", &gram, &[BATCH, 256, 8, 8]),
    ];
    for (name, f, dims) in functions {
        let x = var(dims);
        group.bench_function(format!("{name}/forward"), |b| b.iter(|| black_box(f(&x))));
        let y = f(&x).expect("the shapes fit");
        group.bench_function(format!("{name}/backward"), |b| b.iter(|| black_box(y.backward())));
    }
    // Embeddings and a memory bank.
    let (embeddings, bank) = (values(&[BATCH, 128]), values(&[50_000, 128]));
    group.bench_function("inner-products with a bank", |b| b.iter(|| black_box(inner_products(&embeddings, &bank))));
    let weights = values(&[BATCH, 50_000]);
    group.bench_function("weighted-sums of a bank", |b| b.iter(|| black_box(weighted_sums(&weights, &bank))));
    let scores = values(&[BATCH, 16_385]);
    group.bench_function("logistic-contrast", |b| b.iter(|| black_box(logistic_contrast(&scores, 14.0, -3.0))));
    group.finish();
}

fn all(c: &mut Criterion) {
    let threads = std::env::var("RETORT_BENCH_THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
    pool.build_global().expect("the pool is built once");
    losses(c);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = all
}
criterion_main!(benches);
