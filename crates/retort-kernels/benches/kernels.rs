//! Throughput of the kernels on the shapes of the zoo.
//!
//! Convolutions go from feature map to feature map, as in a network, and report the multiplications and additions of
//! the direct sum as elements, so `Gelem/s` reads as GFLOP/s (Winograd's form needs fewer than that).
//! A gradient's time holds the way back through the mean over all positions, which costs a pass over the result.
//! One rayon thread, unless `RETORT_BENCH_THREADS` says otherwise.

use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Device, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use retort_kernels::{
    Activation, Conv2dSpec, FeatureMap, Pool2dSpec, batch_norm_train, global_avg_pool2d, max_pool2d, relu,
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

/// One convolution with padding `kernel / 2`.
struct Conv {
    name: &'static str,
    batch: usize,
    /// In and out.
    channels: [usize; 2],
    size: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
}

const fn conv(name: &'static str, channels: [usize; 2], size: usize, kernel: usize, stride: usize) -> Conv {
    Conv { name, batch: BATCH, channels, size, kernel, stride, groups: 1 }
}

const CONVS: &[Conv] = &[
    // CIFAR residual networks, 32 and 28 pixels.
    conv("3-16@32", [3, 16], 32, 3, 1),
    conv("1-16@28", [1, 16], 28, 3, 1),
    conv("16-16@32", [16, 16], 32, 3, 1),
    conv("32-32@16", [32, 32], 16, 3, 1),
    conv("64-64@8", [64, 64], 8, 3, 1),
    conv("64-64@7", [64, 64], 7, 3, 1),
    conv("16-32@32/2", [16, 32], 32, 3, 2),
    conv("16-32@32/2-1x1", [16, 32], 32, 1, 2),
    // Four times as wide, and VGG.
    conv("64-64@32", [64, 64], 32, 3, 1),
    conv("64-128@32/2", [64, 128], 32, 3, 2),
    conv("128-128@16", [128, 128], 16, 3, 1),
    conv("128-256@16/2", [128, 256], 16, 3, 2),
    conv("256-256@8", [256, 256], 8, 3, 1),
    conv("512-512@4", [512, 512], 4, 3, 1),
    conv("512-512@2", [512, 512], 2, 3, 1),
    // Large kernels and maps, 1x1, one position.
    Conv { batch: 16, ..conv("3-64@112/2-7x7", [3, 64], 112, 7, 2) },
    Conv { batch: 16, ..conv("64-64@56", [64, 64], 56, 3, 1) },
    conv("32-64@16-5x5", [32, 64], 16, 5, 1),
    conv("128-128@16-1x1", [128, 128], 16, 1, 1),
    conv("512-512@1-1x1", [512, 512], 1, 1, 1),
    // Mobile networks.
    Conv { groups: 128, ..conv("dw128@16", [128, 128], 16, 3, 1) },
    Conv { groups: 96, ..conv("dw96@32/2", [96, 96], 32, 3, 2) },
    Conv { groups: 3, ..conv("240-240@8-1x1-g3", [240, 240], 8, 1, 1) },
    // Other batches.
    Conv { batch: 1, ..conv("16-16@32-b1", [16, 16], 32, 3, 1) },
    Conv { batch: 1, ..conv("64-64@32-b1", [64, 64], 32, 3, 1) },
    Conv { batch: 512, ..conv("64-64@8-b512", [64, 64], 8, 3, 1) },
];

fn convolutions(c: &mut Criterion) {
    let mut group = c.benchmark_group("conv");
    for &Conv { name, batch, channels: [i, o], size, kernel, stride, groups } in CONVS {
        let spec = Conv2dSpec::new(stride, kernel / 2).with_groups(groups);
        let (x, w) = (values(&[batch, i, size, size]), values(&[o, i / groups, kernel, kernel]));
        let [h, _] = spec.output_size([size; 2], [kernel; 2]).expect("the shapes fit");
        let flops = 2 * batch * o * i / groups * kernel * kernel * h * h;
        group.throughput(Throughput::Elements(flops as u64));
        let map = |x: &Tensor| FeatureMap::from_tensor(x).expect("four dimensions");
        let run =
            |x: &FeatureMap, w: &Tensor| x.conv2d(w, None, None, Activation::None, &spec).expect("the shapes fit");
        let plain = map(&x);
        group.bench_function(format!("{name}/forward"), |b| b.iter(|| black_box(run(&plain, &w))));
        let mean = |y: FeatureMap| y.global_avg_pool2d().expect("fits in memory");
        let y = mean(run(&map(&var(&x)), &w));
        group.bench_function(format!("{name}/input-gradient"), |b| b.iter(|| black_box(y.backward())));
        let y = mean(run(&plain, &var(&w)));
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
    let functions: [(&str, Function); 3] = [
        ("relu", &relu),
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
