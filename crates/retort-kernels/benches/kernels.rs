//! Throughput of the kernels on the shapes of the CIFAR residual networks, batch 64.
//!
//! Convolutions report multiplications and additions as elements, so `Gelem/s` reads as GFLOP/s.
//! One rayon thread, unless `RETORT_BENCH_THREADS` says otherwise.

use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Device, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use retort_kernels::{
    Activation, Conv2dSpec, Pool2dSpec, add_relu, batch_norm_train, conv2d, global_avg_pool2d, max_pool2d, relu,
};

// As in the binaries: with the system's allocator fresh memory costs more than a convolution.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 64;

fn values(dims: &[usize]) -> Tensor {
    let count = dims.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).expect("the product of the dimensions is the length")
}

fn var(t: &Tensor) -> Tensor {
    Var::from_tensor(t).expect("a tensor on the cpu can be a variable").as_tensor().clone()
}

/// A function of one tensor.
type Function<'a> = &'a dyn Fn(&Tensor) -> retort_kernels::Result<Tensor>;

/// Name, channels in and out, size, kernel, stride, groups.
const CONVS: [(&str, usize, usize, usize, usize, usize, usize); 14] = [
    ("3-16@32", 3, 16, 32, 3, 1, 1),
    ("1-16@28", 1, 16, 28, 3, 1, 1),
    ("16-16@32", 16, 16, 32, 3, 1, 1),
    ("16-16@28", 16, 16, 28, 3, 1, 1),
    ("32-32@16", 32, 32, 16, 3, 1, 1),
    ("32-32@14", 32, 32, 14, 3, 1, 1),
    ("64-64@8", 64, 64, 8, 3, 1, 1),
    ("64-64@7", 64, 64, 7, 3, 1, 1),
    ("256-256@8", 256, 256, 8, 3, 1, 1),
    ("16-32@28/2", 16, 32, 28, 3, 2, 1),
    ("32-64@14/2", 32, 64, 14, 3, 2, 1),
    ("16-32@28/2-1x1", 16, 32, 28, 1, 2, 1),
    ("128-128@16-1x1", 128, 128, 16, 1, 1, 1),
    ("dw128@16", 128, 128, 16, 3, 1, 128),
];

fn convolutions(c: &mut Criterion) {
    let mut group = c.benchmark_group("conv");
    for (name, i, o, size, kernel, stride, groups) in CONVS {
        let spec = Conv2dSpec::new(stride, kernel / 2).with_groups(groups);
        let (x, w) = (values(&[BATCH, i, size, size]), values(&[o, i / groups, kernel, kernel]));
        let [h, _] = spec.output_size([size; 2], [kernel; 2]).expect("the shapes fit");
        let flops = 2 * BATCH * o * i / groups * kernel * kernel * h * h;
        group.throughput(Throughput::Elements(flops as u64));
        let run = |x: &Tensor, w: &Tensor| conv2d(x, w, None, &spec).expect("the shapes fit");
        group.bench_function(format!("{name}/forward"), |b| b.iter(|| black_box(run(&x, &w))));
        let y = run(&var(&x), &w);
        group.bench_function(format!("{name}/input-gradient"), |b| b.iter(|| black_box(y.backward())));
        let y = run(&x, &var(&w));
        group.bench_function(format!("{name}/weight-gradient"), |b| b.iter(|| black_box(y.backward())));
    }
    group.finish();
}

fn others(c: &mut Criterion) {
    let mut group = c.benchmark_group("other");
    for (channels, size) in [(16, 32), (64, 8)] {
        let x = var(&values(&[BATCH, channels, size, size]));
        let (w, b) = (var(&values(&[channels])), var(&values(&[channels])));
        group.throughput(Throughput::Elements(x.elem_count() as u64));
        let norm = || batch_norm_train(&x, &w, &b, 1e-5, Activation::Relu).expect("the shapes fit").0;
        group.bench_function(format!("batch-norm-relu {channels}@{size}/forward"), |b| b.iter(|| black_box(norm())));
        let y = norm();
        group.bench_function(format!("batch-norm-relu {channels}@{size}/backward"), |b| {
            b.iter(|| black_box(y.backward()));
        });
    }
    let x = var(&values(&[BATCH, 16, 32, 32]));
    group.throughput(Throughput::Elements(x.elem_count() as u64));
    let functions: [(&str, Function); 4] = [
        ("relu", &relu),
        ("add-relu", &|x| add_relu(x, x)),
        ("max-pool 2", &|x| max_pool2d(x, &Pool2dSpec::new(2, 2, 0))),
        ("global-average", &global_avg_pool2d),
    ];
    for (name, f) in functions {
        group.bench_function(format!("{name}/forward"), |b| b.iter(|| black_box(f(&x))));
        let y = f(&x).expect("the shapes fit");
        group.bench_function(format!("{name}/backward"), |b| b.iter(|| black_box(y.backward())));
    }
    let ones = Tensor::ones(x.shape(), DType::F32, &Device::Cpu).expect("fits in memory");
    group.bench_function("candle add, for comparison", |b| b.iter(|| black_box(&ones + &x)));
    group.finish();
}

fn all(c: &mut Criterion) {
    let threads = std::env::var("RETORT_BENCH_THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
    pool.build_global().expect("the pool is built once");
    convolutions(c);
    others(c);
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
