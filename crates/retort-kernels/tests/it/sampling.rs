//! Resizing, and scores against a bank.

use candle_core::{DType, Device, Tensor};
use retort_kernels::{InstructionSet, gather_dot, resize_bilinear2d, with_instruction_set};

use crate::support::{bits, check_gradients, difference, gradients, random, values};

#[test]
fn resizing_matches_candle_and_has_a_gradient() {
    for (dims, size) in [
        ([2, 3, 4, 5], [8, 10]),
        ([2, 3, 4, 5], [7, 3]),
        ([1, 2, 1, 1], [3, 2]),
        ([1, 2, 9, 8], [4, 4]),
        ([1, 1, 6, 6], [6, 6]),
    ] {
        let x = random(dims.to_vec(), 1);
        let y = resize_bilinear2d(&x, size).unwrap();
        let expected = x.upsample_bilinear2d(size[0], size[1], false).unwrap();
        assert!(difference(&y, &expected) < 1e-12, "{dims:?} {size:?}");
        check_gradients("resize", &|t| resize_bilinear2d(&t[0], size).unwrap(), &[x]);
    }
}

#[test]
fn resizing_by_hand() {
    let x = Tensor::new(&[[[[0f64, 4.0]]]], &Device::Cpu).unwrap();
    let y = resize_bilinear2d(&x, [1, 4]).unwrap();
    assert_eq!(values(&y), [0.0, 1.0, 3.0, 4.0]);
}

fn index(count: usize, rows: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7 + i / 3) % rows) as u32).collect()
}

#[test]
fn scores_are_dot_products() {
    for (b, d, k) in [(1, 1, 1), (3, 5, 4), (2, 16, 9), (4, 33, 3), (2, 128, 20), (2, 70, 1)] {
        let (anchors, bank) = (random((b, d), 1), random((11, d), 2));
        let index = index(b * k, 11);
        let rows = bank.index_select(&Tensor::new(index.as_slice(), &Device::Cpu).unwrap(), 0).unwrap();
        let rows = rows.reshape((b, k, d)).unwrap();
        let expected = rows.broadcast_mul(&anchors.unsqueeze(1).unwrap()).unwrap().sum(2).unwrap();
        let f = |t: &[Tensor]| gather_dot(&t[0], &bank, &index).unwrap();
        assert!(difference(&f(std::slice::from_ref(&anchors)), &expected) < 1e-12);
        let (_, exact) = gradients(&f, std::slice::from_ref(&anchors));
        check_gradients("gather_dot", &f, std::slice::from_ref(&anchors));
        for set in [InstructionSet::Portable, InstructionSet::Avx2Fma, InstructionSet::Avx512] {
            let bank = bank.to_dtype(DType::F32).unwrap();
            let f = |t: &[Tensor]| gather_dot(&t[0], &bank, &index).unwrap();
            let (y, g) = with_instruction_set(set, || gradients(&f, &[anchors.to_dtype(DType::F32).unwrap()]));
            assert!(difference(&y, &expected) < 2e-6, "{set:?}");
            assert!(difference(&g[0], &exact[0]) < 2e-6, "{set:?}");
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let (anchors, bank) = (random((7, 40), 1), random((50, 40), 2));
    let index = index(7 * 30, 50);
    let x = random((5, 6, 9, 9), 3);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (y, g) = gradients(&|t| gather_dot(&t[0], &bank, &index).unwrap(), std::slice::from_ref(&anchors));
            let (z, h) = gradients(&|t| resize_bilinear2d(&t[0], [5, 13]).unwrap(), std::slice::from_ref(&x));
            [&y, &g[0], &z, &h[0]].into_iter().flat_map(bits).collect::<Vec<_>>()
        })
    };
    assert_eq!(with(1), with(2));
}
