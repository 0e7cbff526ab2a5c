//! Invariances, on random inputs.

use crate::fixture::scalar;
use candle_core::{Device, Tensor};
use proptest::prelude::*;
use retort_losses::{feature, output, relational};
use std::slice::from_ref;

fn tensor(values: &[f64], shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_vec(values[..n].to_vec(), shape, &Device::Cpu).unwrap()
}

fn values() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-3.0..3.0f64, 96)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kd_ignores_a_shift_of_the_logits(s in values(), t in values(), shift in -50.0..50.0f64, temperature in 0.5..20.0f64) {
        let (s, t) = (tensor(&s, &[6, 5]), tensor(&t, &[6, 5]));
        let plain = scalar(&output::kd(&s, &t, temperature).unwrap());
        let moved = scalar(&output::kd(&(&s + shift).unwrap(), &(&t - shift).unwrap(), temperature).unwrap());
        prop_assert!((plain - moved).abs() <= 1e-9 * (1.0 + plain));
        prop_assert!(plain >= -1e-12);
    }

    #[test]
    fn kd_is_dkd_with_the_weights_of_one_sample(s in values(), t in values(), label in 0u32..5) {
        // KD = TCKD + (1 - p_t,y) NCKD for one sample.
        let (s, t) = (tensor(&s, &[1, 5]), tensor(&t, &[1, 5]));
        let labels = Tensor::new(&[label], &Device::Cpu).unwrap();
        let parts = output::dkd(&s, &t, &labels, 2.0).unwrap();
        let p = candle_nn::ops::softmax(&(&t / 2.0).unwrap(), 1).unwrap().to_vec2::<f64>().unwrap()[0][label as usize];
        let whole = scalar(&parts.combine(1.0, 1.0 - p).unwrap());
        prop_assert!((whole - scalar(&output::kd(&s, &t, 2.0).unwrap())).abs() < 1e-10);
    }

    #[test]
    fn smoothing_conventions_convert(z in values(), smoothing in 0.0..0.7f64) {
        use output::Spread::{All, Wrong};
        let (z, labels) = (tensor(&z, &[4, 5]), Tensor::new(&[0u32, 4, 2, 2], &Device::Cpu).unwrap());
        let others = scalar(&output::label_smoothing(&z, &labels, smoothing, Wrong).unwrap());
        let uniform = scalar(&output::label_smoothing(&z, &labels, smoothing * 5.0 / 4.0, All).unwrap());
        prop_assert!((others - uniform).abs() < 1e-12 * (1.0 + others));
        let hard = scalar(&output::label_smoothing(&z, &labels, 0.0, All).unwrap());
        prop_assert!((hard - scalar(&output::cross_entropy(&z, &labels).unwrap())).abs() < 1e-14 * (1.0 + hard));
    }

    #[test]
    fn relations_ignore_the_order_of_samples(s in values(), t in values(), by in 1usize..6) {
        let (s, t) = (tensor(&s, &[6, 7]), tensor(&t, &[6, 9]));
        let order: Vec<u32> = (0..6).map(|i| ((i * 5 + by) % 6) as u32).collect();
        let order = Tensor::new(order, &Device::Cpu).unwrap();
        let (ps, pt) = (s.index_select(&order, 0).unwrap(), t.index_select(&order, 0).unwrap());
        type Loss = fn(&Tensor, &Tensor) -> retort_losses::Result<Tensor>;
        let losses: [Loss; 3] = [
            relational::similarity_preserving,
            |s, t| relational::probabilistic_transfer(s, t, 1e-7),
            |s, t| relational::relational(s, t)?.combine(25.0, 50.0),
        ];
        for loss in losses {
            let (plain, permuted) = (scalar(&loss(&s, &t).unwrap()), scalar(&loss(&ps, &pt).unwrap()));
            prop_assert!((plain - permuted).abs() < 1e-12 * (1.0 + plain));
        }
    }

    #[test]
    fn scales_that_methods_ignore(s in values(), t in values(), scale in 0.01..100.0f64) {
        let (s, t) = (tensor(&s, &[3, 2, 4, 4]), tensor(&t, &[3, 2, 4, 4]));
        let scaled = (&s * scale).unwrap();
        let at = |s: &Tensor| scalar(&feature::attention_transfer(from_ref(s), from_ref(&t), 2.0).unwrap().total);
        prop_assert!((at(&s) - at(&scaled)).abs() < 1e-12);
        let nst = |s: &Tensor| scalar(&feature::neuron_selectivity(from_ref(s), from_ref(&t)).unwrap().total);
        prop_assert!((nst(&s) - nst(&scaled)).abs() < 1e-12);
        prop_assert!(nst(&s) >= -1e-12);
        let sp = |s: &Tensor| scalar(&relational::similarity_preserving(s, &t).unwrap());
        prop_assert!((sp(&s) - sp(&scaled)).abs() < 1e-12);
        let rkd = |s: &Tensor| scalar(&relational::relational(s, &t).unwrap().combine(25.0, 50.0).unwrap());
        prop_assert!((rkd(&s) - rkd(&scaled)).abs() < 1e-9);
    }

    #[test]
    fn pearson_ignores_affine_maps(s in values(), t in values(), scale in 0.1..10.0f64, shift in -5.0..5.0f64) {
        let (s, t) = (tensor(&s, &[3, 2, 4, 4]), tensor(&t, &[3, 2, 4, 4]));
        let pkd = |a: &Tensor, b: &Tensor| scalar(&feature::pearson(from_ref(a), from_ref(b), feature::Resize::Student, 1e-6).unwrap().total);
        let moved = ((&s * scale).unwrap() + shift).unwrap();
        // The 1e-6 beside the deviation is all that sees the scale.
        prop_assert!((pkd(&s, &t) - pkd(&moved, &t)).abs() < 1e-4);
        prop_assert!(pkd(&s, &moved) < 1e-8);
        prop_assert!((0.0..=2.0).contains(&pkd(&s, &t)));
    }
}
