//! Losses by which a network learns from itself, and shaped targets.

use crate::fixture::{flat, random, scalar};
use crate::probe::{CPU, finite, gradient, labels, reordered, slopes_agree, tensors, total, value, var, vars};
use candle_core::{DType, Tensor, Var};
use proptest::prelude::*;
use retort_losses::online::total as sum;
use retort_losses::output::{self, Spread};
use retort_losses::self_distillation::{
    BakeSettings, ByotSettings, CsKdSettings, DdgsdSettings, Discriminators, DlbBatch, DlbMemory, DlbSettings,
    FrskdSettings, MixSkdBatch, MixSkdSettings, PsKdMemory, RankDistribution, SadSettings, TfKdRegConfig,
    TfKdRegLibConfig, TfKdSelfSettings, ZipfRanking, ZipfSettings, bake, bake_targets, byot, cs_kd, ddgsd, dense_votes,
    dks, dlb, focal, frskd, max_entropy, mixskd, mixskd_discriminator_input, mixskd_interpolate, ps_kd, ps_kd_alpha,
    sad, tf_kd_reg, tf_kd_reg_lib, tf_kd_self, virtual_logits, virtual_softmax, zipf, zipf_ls, zipf_mixed,
};
use retort_losses::{LossConfig, Result};
use retort_nn::Seed;

/// Shaped targets: functions of logits and labels.
type Shaped = fn(&Tensor, &Tensor) -> Result<Tensor>;
const SHAPED: [(&str, Shaped); 7] = [
    ("focal", |z, y| focal(z, y, 2.0)),
    ("focal", |z, y| focal(z, y, 0.5)),
    ("max-entropy", |z, y| sum(&max_entropy(z, y, 0.5)?)),
    ("tf-kd-reg", |z, y| sum(&tf_kd_reg(z, y, &TfKdRegConfig::default())?)),
    ("tf-kd-reg-lib", |z, y| sum(&tf_kd_reg_lib(z, y, &TfKdRegLibConfig::default())?)),
    ("zipf-ls", |z, y| Ok(zipf(z, y, ZipfRanking::Logits, &ZipfSettings::default(), Seed::root(0))?.value)),
    ("zipf-ls", |z, y| {
        let soft = zipf(z, y, ZipfRanking::Logits, &ZipfSettings::default(), Seed::root(0))?;
        zipf_mixed(z, y, &soft.pdf, 0.3)
    }),
];

#[test]
fn shaped_targets_have_the_right_slopes() {
    let (z, y) = (var("z", &[5, 4]), labels(&[0, 1, 2, 3, 0]));
    for (name, loss) in SHAPED {
        slopes_agree(name, &[&z], || loss(&z, &y).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shaped_targets_ignore_shifts_and_orders(
        values in prop::collection::vec(-4.0..4.0f64, 20), shift in -50.0..50.0f64, by in 1u32..5,
    ) {
        let z = Tensor::from_vec(values, (5, 4), CPU).unwrap();
        let y = labels(&[0, 1, 2, 3, 0]);
        let order: Vec<u32> = (0..5).map(|i| (i + by) % 5).collect();
        for (name, loss) in SHAPED {
            let plain = scalar(&loss(&z, &y).unwrap());
            let moved = scalar(&loss(&(&z + shift).unwrap(), &y).unwrap());
            prop_assert!((plain - moved).abs() < 1e-9 * (1.0 + plain.abs()), "{name}");
            let turned = scalar(&loss(&reordered(&z, &order), &reordered(&y, &order)).unwrap());
            prop_assert!((plain - turned).abs() < 1e-11 * (1.0 + plain.abs()), "{name}");
        }
    }
}

#[test]
fn extreme_logits_are_finite() {
    for (rows, classes) in [(1, 2), (3, 2), (1, 5), (4, 5)] {
        for scale in [80.0f32, 1e4] {
            let values: Vec<f32> = (0..rows * classes).map(|i| if i % 2 == 0 { scale } else { -scale }).collect();
            let z = Var::from_tensor(&Tensor::from_vec(values, (rows, classes), CPU).unwrap()).unwrap();
            for label in 0..2 {
                let y = labels(&vec![label; rows]);
                for (name, loss) in SHAPED {
                    let value = loss(&z, &y).unwrap();
                    assert!(scalar(&value).is_finite(), "{name} {rows} x {classes}");
                    assert!(gradient(&value, &z).iter().all(|g| g.is_finite()), "{name} {rows} x {classes}");
                }
            }
        }
    }
}

#[test]
fn limits_are_cross_entropy() {
    let (z, y) = (random("z", &[5, 4], DType::F64), labels(&[0, 1, 2, 3, 0]));
    let plain = scalar(&output::cross_entropy(&z, &y).unwrap());
    assert!((scalar(&focal(&z, &y, 0.0).unwrap()) - plain).abs() < 1e-13);
    assert!((total(&max_entropy(&z, &y, 0.0).unwrap()) - plain).abs() < 1e-14);
    let none = TfKdRegConfig { alpha: 0.0, ..TfKdRegConfig::default() };
    assert!((total(&tf_kd_reg(&z, &y, &none).unwrap()) - plain).abs() < 1e-14);
    let soft = zipf(&z, &y, ZipfRanking::Logits, &ZipfSettings::default(), Seed::root(0)).unwrap();
    assert!((scalar(&zipf_mixed(&z, &y, &soft.pdf, 0.0).unwrap()) - plain).abs() < 1e-13);
    // Even soft labels are smoothed ones.
    let even = ZipfSettings { distribution: RankDistribution::Constant, ..ZipfSettings::default() };
    let even = zipf(&z, &y, ZipfRanking::Logits, &even, Seed::root(0)).unwrap();
    let smoothed = scalar(&output::label_smoothing(&z, &y, 0.2, Spread::Wrong).unwrap());
    assert!((scalar(&zipf_mixed(&z, &y, &even.pdf, 0.2).unwrap()) - smoothed).abs() < 1e-13);
    let lib = TfKdRegLibConfig { temperature: 1.0, ..TfKdRegLibConfig::default() };
    let smoothed = scalar(&output::label_smoothing(&z, &y, 0.1, Spread::Wrong).unwrap());
    assert!((total(&tf_kd_reg_lib(&z, &y, &lib).unwrap()) - plain - smoothed).abs() < 1e-13);
    // One class: nothing can be wrong.
    let (z, y) = (var("one", &[3, 1]), labels(&[0, 0, 0]));
    assert_eq!((scalar(&focal(&z, &y, 2.0).unwrap()), total(&max_entropy(&z, &y, 0.5).unwrap())), (0.0, 0.0));
    assert_eq!(total(&tf_kd_reg(&z, &y, &TfKdRegConfig::default()).unwrap()), 0.0);
    assert!(tf_kd_reg_lib(&z, &y, &lib).unwrap_err().to_string().contains("two classes"));
    let one = zipf(&z, &y, ZipfRanking::Logits, &ZipfSettings::default(), Seed::root(0));
    assert!(one.unwrap_err().to_string().contains("two classes"));
}

#[test]
fn a_virtual_teacher_by_hand() {
    let (z, y) = (random("z", &[3, 4], DType::F64), [2u32, 0, 3]);
    let rows = z.to_vec2::<f64>().unwrap();
    let settings = TfKdRegConfig::default();
    let mut expected = 0.0;
    for (row, &y) in rows.iter().zip(&y) {
        let normaliser = row.iter().map(|z| z.exp()).sum::<f64>().ln();
        let u = |c: usize| -> f64 { if c == y as usize { 0.99 } else { 0.01 / 3.0 } };
        let all: f64 = (0..4).map(|c| (u(c) / 20.0).exp()).sum();
        for (c, z) in row.iter().enumerate() {
            let q = (u(c) / 20.0).exp() / all;
            expected += q * (q.ln() - (z - normaliser)) / 12.0;
        }
    }
    let terms = tf_kd_reg(&z, &labels(&y), &settings).unwrap();
    assert!((scalar(&value(&terms, "tf-kd-reg")) - expected).abs() < 1e-14);
}

// ---- Zipf ----

#[test]
fn votes_are_counted_and_ranked() {
    let (z, y) = (var("z", &[2, 4]), labels(&[1, 3]));
    let votes = Tensor::new(&[[1u32, 1, 0, 0, 2, 1], [3, 3, 3, 3, 3, 3]], CPU).unwrap();
    let settings = ZipfSettings::default();
    let loss = || zipf(&z, &y, ZipfRanking::DenseVote(&votes), &settings, Seed::root(0)).unwrap();
    assert_eq!(loss().ranks.to_vec2::<u32>().unwrap(), [[2, 1, 3, 4], [2, 2, 2, 1]]);
    // 1/2 : 1/3 : 1/4, and three alike.
    let pdf = loss().pdf.to_vec2::<f64>().unwrap();
    let expected = [[6.0 / 13.0, 4.0 / 13.0, 3.0 / 13.0], [1.0 / 3.0; 3]];
    assert!(pdf.concat().iter().zip(expected.as_flattened()).all(|(a, b)| (a - b).abs() < 1e-15));
    slopes_agree("zipf", &[&z], || loss().value);
    // The label's own logit plays no part, and the gradient is (p - q) / B.
    let slopes = gradient(&loss().value, &z);
    assert_eq!((slopes[1], slopes[7]), (0.0, 0.0));
    let wrong: Vec<f64> = [0, 2, 3].map(|c| flat(z.as_tensor())[c].exp()).to_vec();
    let p: Vec<f64> = wrong.iter().map(|x| x / wrong.iter().sum::<f64>()).collect();
    for (slope, (p, q)) in [slopes[0], slopes[2], slopes[3]].iter().zip(p.iter().zip(expected[0])) {
        assert!((slope - (p - q) / 2.0).abs() < 1e-14);
    }
    let error =
        |votes: &Tensor| zipf(&z, &y, ZipfRanking::DenseVote(votes), &settings, Seed::root(0)).unwrap_err().to_string();
    assert!(error(&votes.narrow(0, 0, 1).unwrap()).contains("[2, P]"));
    assert!(error(&(votes.clone() + 2.0).unwrap()).contains("is no class"));
}

#[test]
fn friends_are_neighbours() {
    let z = Tensor::new(&[[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0f64]], CPU).unwrap();
    let e = Tensor::new(&[[0.0, 0.0], [5.0, 5.0], [1.0, 0.0f64]], CPU).unwrap();
    let settings = ZipfSettings::default();
    let ranks = |z: &Tensor, y: &[u32], e: &Tensor| {
        let loss = zipf(z, &labels(y), ZipfRanking::Friend(e), &settings, Seed::root(0)).unwrap();
        loss.ranks.to_vec2::<u32>().unwrap()
    };
    // 0 and 2 are each other's, 1 looks at 2.
    assert_eq!(ranks(&z, &[0, 1, 2], &e), [[2, 1, 3], [2, 1, 3], [1, 2, 3]]);
    // Nobody else: its own.
    let one = |x: &Tensor| x.narrow(0, 1, 1).unwrap();
    assert_eq!(ranks(&one(&z), &[0], &one(&e)), [[3, 2, 1]]);
}

#[test]
fn only_correct_samples_count_if_asked() {
    let z =
        Var::from_tensor(&Tensor::new(&[[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [0.0, 1.0, 0.0f64]], CPU).unwrap()).unwrap();
    let loss = |rows: &Tensor, y: &[u32], loss_mask: bool| {
        let settings = ZipfSettings { loss_mask, ..ZipfSettings::default() };
        zipf(rows, &labels(y), ZipfRanking::Logits, &settings, Seed::root(0)).unwrap().value
    };
    let masked = loss(&z, &[0, 1, 1], true);
    let kept = z.index_select(&labels(&[0, 2]), 0).unwrap();
    assert!((scalar(&masked) - scalar(&loss(&kept, &[0, 1], false))).abs() < 1e-15);
    assert_eq!(gradient(&masked, &z)[3..6], [0.0; 3]);
    let none = loss(&z, &[1, 1, 0], true);
    assert_eq!((scalar(&none), gradient(&none, &z)), (0.0, vec![0.0; 9]));
}

#[test]
fn locations_vote_with_the_classifier() {
    let (map, weight) = (random("map", &[2, 3, 4, 2], DType::F32), random("w", &[5, 3], DType::F32));
    let bias = random("b", &[5], DType::F32);
    for upsample in [false, true] {
        let votes = dense_votes(&map, &weight, Some(&bias), upsample).unwrap();
        // Enlarging the map itself.
        let (map, h, w) = match upsample {
            true => (retort_kernels::resize_bilinear2d(&map, [8, 4]).unwrap(), 8, 4),
            false => (map.clone(), 4, 2),
        };
        let scores = map.flatten_from(2).unwrap().transpose(1, 2).unwrap().reshape((2 * h * w, 3)).unwrap();
        let scores = scores.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        let expected: Vec<u32> = scores.argmax(1).unwrap().to_vec1().unwrap();
        assert_eq!(votes.flatten_all().unwrap().to_vec1::<u32>().unwrap(), expected);
        assert_eq!(votes.dims(), [2, h * w]);
    }
    assert!(dense_votes(&map, &random("w", &[5, 4], DType::F32), None, false).is_err());
    assert!(dense_votes(&map, &weight, Some(&weight), false).is_err());
}

#[test]
fn zipf_terms_and_random_targets() {
    let (z, y) = (vars("z", &[4, 5], 3), labels(&[0, 4, 2, 2]));
    let t = tensors(&z);
    let settings = ZipfSettings { heads_weight: 0.5, ..ZipfSettings::default() };
    let terms = zipf_ls(&t[0], &t[1..], &y, ZipfRanking::Logits, &settings, Seed::root(0)).unwrap();
    assert_eq!(
        terms.iter().map(|t| (t.name, t.weight)).collect::<Vec<_>>(),
        [("ce", 1.0), ("ce-heads", 0.5), ("zipf-ls", 0.1)]
    );
    let heads: f64 = t[1..].iter().map(|z| scalar(&output::cross_entropy(z, &y).unwrap())).sum();
    assert!((scalar(&terms[1].value) - heads).abs() < 1e-13);
    for distribution in [RankDistribution::RandomUniform, RankDistribution::RandomPareto { shape: 1.0 }] {
        let settings = ZipfSettings { distribution, ..settings };
        let pdf = |seed| {
            let loss = zipf(&t[0], &y, ZipfRanking::Logits, &settings, Seed::root(seed)).unwrap();
            loss.pdf.to_vec2::<f64>().unwrap()
        };
        assert_eq!(pdf(1), pdf(1));
        assert_ne!(pdf(1), pdf(2));
        assert_ne!(pdf(1)[0], pdf(1)[1]);
    }
    let error = |distribution| {
        let settings = ZipfSettings { distribution, ..settings };
        zipf(&t[0], &y, ZipfRanking::Logits, &settings, Seed::root(0)).unwrap_err().to_string()
    };
    assert!(error(RankDistribution::RankZipf { power: -1.0 }).contains("zipf-ls: field `power`"));
    assert!(error(RankDistribution::LinearDecay { smallest_prob: 0.3 }).contains("5 classes"));
    assert!(error(RankDistribution::UnbiasedZipf { left_bound: 1.0, right_bound: 0.5 }).contains("left_bound"));
}

#[test]
fn a_manifest_can_name_every_distribution_that_follows_ranks() {
    let parse = |text: &str| serde_json::from_str::<LossConfig>(&format!(r#"{{"method": "zipf-ls-logits", {text}}}"#));
    for text in [
        r#""distribution": {"kind": "rank-zipf", "power": 2.0}, "loss_mask": true"#,
        r#""distribution": {"kind": "linear-decay", "smallest_prob": 1e-6}"#,
        r#""distribution": {"kind": "constant"}, "lambda": 1.0"#,
    ] {
        parse(text).unwrap().validate().unwrap();
    }
    let random = parse(r#""distribution": {"kind": "random-uniform"}"#).unwrap();
    assert!(random.validate().unwrap_err().to_string().contains("`distribution`"));
    assert!(parse(r#""distribution": {"kind": "rank-zipf", "power": 1.0, "x": 1}"#).is_err());
}

#[test]
fn the_virtual_class_is_as_likely_as_the_label_at_best() {
    let (e, w, y) = (var("e", &[4, 3]), var("w", &[5, 3]), labels(&[0, 4, 2, 2]));
    slopes_agree("virtual-softmax", &[&e, &w], || virtual_softmax(&e, &w, &y).unwrap());
    let rows = virtual_logits(&e, &w, &y).unwrap().to_vec2::<f64>().unwrap();
    for (row, y) in rows.iter().zip([0, 4, 2, 2]) {
        assert!(row[5] >= row[y]);
    }
    let zero = Var::from_tensor(&e.zeros_like().unwrap()).unwrap();
    let loss = virtual_softmax(&zero, &w, &y).unwrap();
    assert!((scalar(&loss) - 6f64.ln()).abs() < 1e-12);
    assert!(gradient(&loss, &zero).iter().all(|g| g.is_finite()));
    assert!(virtual_softmax(&e, &w.t().unwrap(), &y).is_err());
}

// ---- other samples, views and times ----

#[test]
fn a_frozen_copy_teaches_by_a_mean_over_classes() {
    let (z, t, y) = (var("z", &[4, 5]), var("t", &[4, 5]), labels(&[0, 4, 2, 2]));
    let settings = TfKdSelfSettings { alpha: 0.9, temperature: 20.0, multiplier: 3.0 };
    let terms = || tf_kd_self(&z, &t, &y, &settings).unwrap();
    slopes_agree("tf-kd-self", &[&z], || sum(&terms()).unwrap());
    assert_eq!(gradient(&sum(&terms()).unwrap(), &t), [0.0; 20]);
    let kd = scalar(&output::kd(&z, &t, 20.0).unwrap());
    assert!((scalar(&terms()[1].value) - kd / 5.0).abs() < 1e-14);
    assert!((terms()[1].weight - 2.7).abs() < 1e-15);
    assert!(scalar(&tf_kd_self(&z, &z, &y, &settings).unwrap()[1].value).abs() < 1e-14);
}

#[test]
fn partners_of_a_class_are_constants() {
    let (z, t, y) = (var("z", &[4, 5]), var("t", &[4, 5]), labels(&[0, 4, 2, 2]));
    let settings = CsKdSettings { weight: 3.0, ..CsKdSettings::default() };
    let terms = || cs_kd(&z, &t, &y, &settings).unwrap();
    slopes_agree("cs-kd", &[&z], || sum(&terms()).unwrap());
    assert_eq!(gradient(&sum(&terms()).unwrap(), &t), [0.0; 20]);
    assert!(scalar(&cs_kd(&z, &z, &y, &settings).unwrap()[1].value).abs() < 1e-14);
    assert!(cs_kd(&z, &t.narrow(0, 0, 3).unwrap(), &y, &settings).unwrap_err().to_string().contains("[4, 5]"));
}

#[test]
fn two_views_of_one_image() {
    let (z, e, y) = (var("z", &[6, 4]), var("e", &[6, 3]), labels(&[0, 3, 2]));
    let terms = ddgsd(&z, &e, &y, &DdgsdSettings::default()).unwrap();
    let twice = labels(&[0, 3, 2, 0, 3, 2]);
    assert!((scalar(&terms[0].value) - scalar(&output::cross_entropy(&z, &twice).unwrap())).abs() < 1e-14);
    assert_eq!((terms[0].weight, terms[2].weight), (0.5, 5e-4));
    slopes_agree("ddgsd", &[&e, &z], || {
        let terms = ddgsd(&z, &e, &y, &DdgsdSettings::default()).unwrap();
        (value(&terms, "ce") + value(&terms, "ddgsd-feature")).unwrap()
    });
    // The first view learns from the second as it is.
    let (first, second) = (var("z1", &[3, 4]), random("z2", &[3, 4], DType::F64));
    slopes_agree("ddgsd", &[&first], || {
        let z = Tensor::cat(&[first.as_tensor(), &second], 0).unwrap();
        ddgsd(&z, &z, &y, &DdgsdSettings::default()).unwrap()[1].parts[0].1.clone()
    });
    let same = Tensor::cat(&[&second, &second], 0).unwrap();
    let terms = ddgsd(&same, &same, &y, &DdgsdSettings::default()).unwrap();
    assert!(scalar(&terms[1].value).abs() < 1e-14 && scalar(&terms[2].value) == 0.0);
    let odd = ddgsd(&same.narrow(0, 0, 5).unwrap(), &same, &y, &DdgsdSettings::default()).unwrap_err().to_string();
    assert!(odd.contains("two rows for each image"), "{odd}");
}

#[test]
fn targets_ripen_with_the_epochs() {
    assert_eq!(ps_kd_alpha(0.8, 299, 300).unwrap(), 0.8);
    assert!((ps_kd_alpha(0.8, 0, 300).unwrap() - 0.8 / 300.0).abs() < 1e-16);
    assert_eq!(ps_kd_alpha(0.8, 999, 300).unwrap(), 0.8);
    assert!(ps_kd_alpha(0.8, 0, 0).is_err() && ps_kd_alpha(1.1, 0, 1).is_err());
    let (z, y) = (var("z", &[3, 4]), labels(&[0, 3, 2]));
    let q = candle_nn::ops::softmax(&random("q", &[3, 4], DType::F64), 1).unwrap();
    slopes_agree("ps-kd", &[&z], || ps_kd(&z, &y, &q, 0.4).unwrap().value);
    let plain = scalar(&output::cross_entropy(&z, &y).unwrap());
    assert!((scalar(&ps_kd(&z, &y, &q, 0.0).unwrap().value) - plain).abs() < 1e-14);
    // All targets: the imitation plus the entropy.
    let log_q = q.log().unwrap();
    let entropy = -scalar(&(&q * &log_q).unwrap().sum_all().unwrap()) / 3.0;
    let expected = scalar(&output::kd(&z, &log_q, 1.0).unwrap()) + entropy;
    assert!((scalar(&ps_kd(&z, &y, &q, 1.0).unwrap().value) - expected).abs() < 1e-13);
}

#[test]
fn predictions_are_remembered_by_sample() {
    let train = [2, 0, 1, 1, 0];
    let mut memory = PsKdMemory::new(&train, 3).unwrap();
    let (z, y) = (random("z", &[2, 3], DType::F64), labels(&[1, 2]));
    let plain = scalar(&output::cross_entropy(&z, &y).unwrap());
    // In epoch 0 the labels count, whatever is stored.
    memory.update(&random("w", &[1, 3], DType::F64), &[3]).unwrap();
    assert!((scalar(&memory.term(&z, &y, &[3, 0], 0, 0.7).unwrap().value) - plain).abs() < 1e-14);
    assert!((scalar(&memory.term(&z, &y, &[3, 0], 1, 0.7).unwrap().value) - plain).abs() > 1e-3);
    memory.update(&z, &[3, 0]).unwrap();
    let rows = memory.rows(&[3, 0, 1]).unwrap().to_vec2::<f32>().unwrap();
    let p = candle_nn::ops::softmax(&z, 1).unwrap().to_vec2::<f64>().unwrap();
    assert!(rows[0].iter().zip(&p[0]).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-7));
    assert_eq!(rows[2], [1.0, 0.0, 0.0]);
    // A step that went wrong leaves no trace.
    memory.update(&Tensor::new(&[[f64::NAN, 0.0, 0.0]], CPU).unwrap(), &[3]).unwrap();
    assert_eq!(memory.rows(&[3]).unwrap().to_vec2::<f32>().unwrap()[0], rows[0]);
    let state = memory.state().unwrap();
    let mut other = PsKdMemory::new(&train, 3).unwrap();
    other.load_state(&state).unwrap();
    let all = [0, 1, 2, 3, 4];
    assert_eq!(flat(&other.rows(&all).unwrap()), flat(&memory.rows(&all).unwrap()));
    other.update(&z, &[1, 2]).unwrap();
    assert_eq!(flat(&state["predictions"]), flat(&memory.rows(&all).unwrap()));
    assert!(other.rows(&[5]).unwrap_err().to_string().contains("5 is out of range"));
    assert!(other.update(&z, &[1]).is_err() && other.term(&z, &y, &[1, 9], 1, 0.1).is_err());
    assert!(PsKdMemory::new(&[3], 3).is_err() && PsKdMemory::new(&[], 3).is_err());
    let smaller = PsKdMemory::new(&[0], 3).unwrap().state().unwrap();
    assert!(other.load_state(&smaller).unwrap_err().to_string().contains("[5, 3]"));
}

#[test]
fn a_batch_ensembles_its_own_predictions() {
    let (e, z, y) = (random("e", &[6, 3], DType::F64), var("z", &[6, 4]), labels(&[0, 1, 2, 3, 0, 1]));
    for omega in [0.0, 0.5, 0.9, 0.999] {
        let settings = BakeSettings { omega, ..BakeSettings::default() };
        let q = bake_targets(&e, &z, &settings).unwrap();
        let rows = q.to_vec2::<f64>().unwrap();
        assert!(rows.iter().all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-12), "{omega}");
        // Q = omega A Q + (1 - omega) P.
        let unit = e.broadcast_div(&e.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap()).unwrap();
        let mut a = unit.matmul(&unit.t().unwrap()).unwrap().exp().unwrap().to_vec2::<f64>().unwrap();
        for (i, row) in a.iter_mut().enumerate() {
            row[i] = 0.0;
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|x| *x /= sum);
        }
        let p = candle_nn::ops::softmax(&(z.as_tensor() / 4.0).unwrap(), 1).unwrap().to_vec2::<f64>().unwrap();
        for b in 0..6 {
            for c in 0..4 {
                let mixed: f64 = (0..6).map(|j| a[b][j] * rows[j][c]).sum();
                assert!((rows[b][c] - omega * mixed - (1.0 - omega) * p[b][c]).abs() < 1e-12);
            }
        }
    }
    let settings = BakeSettings::default();
    let targets = bake_targets(&e, &z, &settings).unwrap().log().unwrap();
    let terms = bake(&e, &z, &y, &settings).unwrap();
    // The same targets by their logarithms, which T = 4 would soften again.
    let kd = 16.0 * scalar(&output::kd(&(z.as_tensor() / 4.0).unwrap(), &targets, 1.0).unwrap());
    assert!((scalar(&terms[1].value) - kd).abs() < 1e-12);
    // The gradient is that of fixed targets.
    let fixed = (output::kd(&(z.as_tensor() / 4.0).unwrap(), &targets, 1.0).unwrap() * 16.0).unwrap();
    let (found, expected) = (gradient(&terms[1].value, &z), gradient(&fixed, &z));
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-13));
    // Alone, embeddings of zeros, saturated logits.
    let one = bake(&e.narrow(0, 0, 1).unwrap(), &z.narrow(0, 0, 1).unwrap(), &labels(&[0]), &settings).unwrap();
    assert!(scalar(&one[1].value).abs() < 1e-14);
    let large = Var::from_tensor(&(random("z", &[6, 4], DType::F32) * 1e4).unwrap()).unwrap();
    let zeros = Tensor::zeros((6, 3), DType::F32, CPU).unwrap();
    finite("bake", &[&large], &bake(&zeros, &large, &y, &settings).unwrap());
    let whole = BakeSettings { omega: 1.0, ..settings };
    assert!(bake(&e, &z, &y, &whole).unwrap_err().to_string().contains("1 - omega"));
}

#[test]
fn the_last_batch_is_kept() {
    let settings = DlbSettings { alpha: 0.7, ..DlbSettings::default() };
    let (z, again) = (var("z", &[2, 4]), var("again", &[3, 4]));
    let stored = random("stored", &[3, 4], DType::F64);
    let (y, y_then) = (labels(&[0, 3]), labels(&[1, 2, 2]));
    let mut memory = DlbMemory::new();
    assert!(memory.batch().is_none() && memory.state().unwrap().is_empty());
    let first = dlb(&z, &y, None, &settings).unwrap();
    assert_eq!(total(&first), scalar(&output::cross_entropy(&z, &y).unwrap()));
    let images = random("images", &[3, 1, 2, 2], DType::F32);
    memory.update(&images, &y_then, &stored).unwrap();
    let terms = || dlb(&z, &y, Some((&again, memory.batch().unwrap())), &settings).unwrap();
    slopes_agree("dlb", &[&z, &again], || sum(&terms()).unwrap());
    let all = Tensor::cat(&[again.as_tensor(), z.as_tensor()], 0).unwrap();
    let cross = scalar(&output::cross_entropy(&all, &labels(&[1, 2, 2, 0, 3])).unwrap());
    let kd = scalar(&output::kd(&again, &stored, 3.0).unwrap());
    assert!((total(&terms()) - cross - 0.7 * kd).abs() < 1e-13);
    let state = memory.state().unwrap();
    let mut other = DlbMemory::new();
    other.load_state(&state).unwrap();
    let batch: &DlbBatch = other.batch().unwrap();
    assert_eq!((flat(&batch.images), flat(&batch.logits)), (flat(&images), flat(&stored)));
    assert_eq!(batch.labels.to_vec1::<u32>().unwrap(), [1, 2, 2]);
    for name in ["images", "labels", "logits"] {
        let mut wrong = state.clone();
        wrong.remove(name);
        assert!(other.load_state(&wrong).unwrap_err().to_string().contains(name));
        wrong.insert(name.into(), state[name].narrow(0, 0, 2).unwrap());
        assert!(other.load_state(&wrong).unwrap_err().to_string().starts_with("dlb: state"));
    }
    assert_eq!(flat(&other.batch().unwrap().images), flat(&images));
    other.load_state(&retort_nn::Tensors::new()).unwrap();
    assert!(other.batch().is_none());
    assert!(other.update(&images, &y, &z).is_err());
    let wide = random("wide", &[3, 5], DType::F64);
    assert!(dlb(&z, &y, Some((&wide, memory.batch().unwrap())), &settings).is_err());
}

// ---- heads and stages ----

#[test]
fn heads_learn_from_each_other() {
    let (z, y) = (vars("z", &[4, 5], 3), labels(&[0, 4, 2, 2]));
    let terms = || dks(&tensors(&z), &y, 4.0).unwrap();
    let pairs: f64 = (0..3)
        .flat_map(|a| (0..3).filter(move |&b| b != a).map(move |b| (a, b)))
        .map(|(a, b)| scalar(&output::kd(&z[a], &z[b], 4.0).unwrap()))
        .sum();
    assert!((scalar(&terms()[1].value) - pairs).abs() < 1e-12);
    slopes_agree("dks", &[&z[1]], || terms()[1].parts[2].1.clone());
    let one = dks(&tensors(&z[..1]), &y, 4.0).unwrap();
    assert_eq!(total(&one), scalar(&output::cross_entropy(&z[0], &y).unwrap()));
}

#[test]
fn shallow_heads_learn_from_the_deepest() {
    let (z, f, y) = (vars("z", &[4, 5], 3), vars("f", &[4, 2, 3, 3], 3), labels(&[0, 4, 2, 2]));
    let settings = ByotSettings::default();
    let terms = || byot(&tensors(&z), &tensors(&f), &y, &settings).unwrap();
    slopes_agree("byot", &[&z[1], &z[2], &f[1], &f[2]], || sum(&terms()).unwrap());
    let only_task = gradient(&output::cross_entropy(&z[0], &y).unwrap(), &z[0]);
    let found = gradient(&sum(&terms()).unwrap(), &z[0]);
    assert!(found.iter().zip(&only_task).all(|(a, b)| (a - b).abs() < 1e-15));
    assert_eq!(gradient(&sum(&terms()).unwrap(), &f[0]), [0.0; 72]);
    let one = byot(&tensors(&z[..1]), &tensors(&f[..1]), &y, &settings).unwrap();
    assert_eq!(total(&one), scalar(&output::cross_entropy(&z[0], &y).unwrap()));
    assert!(byot(&tensors(&z), &tensors(&f[..2]), &y, &settings).is_err());
}

#[test]
fn stages_look_where_the_next_one_looks() {
    let (z, y) = (var("z", &[2, 4]), labels(&[0, 3]));
    let maps = [var("f0", &[2, 3, 8, 4]), var("f1", &[2, 4, 4, 2]), var("f2", &[2, 5, 2, 1])];
    let settings = SadSettings { weight: 10.0, power: 3.0 };
    let terms = |settings: &SadSettings| sad(&z, &tensors(&maps), &y, settings).unwrap();
    slopes_agree("sad", &[&z, &maps[0]], || sum(&terms(&settings)).unwrap());
    slopes_agree("sad", &[&maps[1]], || terms(&settings)[1].parts[1].1.clone());
    assert_eq!(gradient(&sum(&terms(&settings)).unwrap(), &maps[2]), [0.0; 20]);
    assert!(gradient(&terms(&settings)[1].parts[0].1, &maps[1]).iter().all(|g| *g == 0.0));
    let error = |maps: &[Tensor]| sad(&z, maps, &y, &settings).unwrap_err().to_string();
    let uneven = [maps[0].as_tensor().clone(), random("x", &[2, 4, 3, 2], DType::F64)];
    assert!(error(&uneven).contains("half as large"));
    assert!(error(&uneven[..1]).contains("at least two"));
    // Maps of zeros look everywhere alike.
    let zeros: Vec<Var> = maps.iter().map(|map| Var::from_tensor(&map.zeros_like().unwrap()).unwrap()).collect();
    let even = sad(&z, &tensors(&zeros), &y, &SadSettings::default()).unwrap();
    assert_eq!(scalar(&even[1].value), 0.0);
    finite("sad", &[&zeros[0], &zeros[1]], &even);
}

#[test]
fn a_pyramid_teaches_maps_and_scores() {
    let (z, t, y) = (var("z", &[2, 4]), var("t", &[2, 4]), labels(&[0, 3]));
    let maps = [var("f0", &[2, 3, 4, 4]), var("f1", &[2, 4, 2, 2])];
    let refined = [var("g0", &[2, 6, 4, 4]), var("g1", &[2, 8, 2, 2])];
    let run = |settings: &FrskdSettings| frskd([&z, &t], &tensors(&maps), &tensors(&refined), &y, settings).unwrap();
    let (default, library) =
        (FrskdSettings::default(), FrskdSettings { detach_teacher: false, ..FrskdSettings::default() });
    slopes_agree("frskd", &[&z, &maps[0], &maps[1]], || sum(&run(&default)).unwrap());
    slopes_agree("frskd of the library", &[&z, &t, &maps[1]], || sum(&run(&library)).unwrap());
    assert!((total(&run(&default)) - total(&run(&library))).abs() < 1e-12);
    let own = gradient(&output::cross_entropy(&t, &y).unwrap(), &t);
    let found = gradient(&sum(&run(&default)).unwrap(), &t);
    assert!(found.iter().zip(&own).all(|(a, b)| (a - b).abs() < 1e-15));
    assert_eq!(gradient(&sum(&run(&default)).unwrap(), &refined[0]), [0.0; 192]);
    // Maps that are multiples, and a map of zeros.
    let same: Vec<Tensor> = maps.iter().map(|map| (map.as_tensor() * 3.0).unwrap()).collect();
    let twins = frskd([&z, &z], &tensors(&maps), &same, &y, &default).unwrap();
    assert!(scalar(&twins[1].value).abs() < 1e-13 && scalar(&twins[2].value) < 1e-25);
    let zero = Var::from_tensor(&maps[0].zeros_like().unwrap()).unwrap();
    let dead = frskd([&z, &t], &tensors(std::slice::from_ref(&zero)), &tensors(&refined[..1]), &y, &default).unwrap();
    finite("frskd", &[&z, &t, &zero], &dead);
    let sizes = frskd([&z, &t], &tensors(&maps), &[same[1].clone(), same[0].clone()], &y, &default);
    assert!(sizes.unwrap_err().to_string().contains("stage 0"));
}

// ---- MixSKD ----

struct Mixed {
    logits: Vec<Var>,
    maps: Vec<Var>,
    taught: Vec<Var>,
    scores: Vec<Var>,
}

const PARTNERS: [u32; 3] = [2, 0, 1];
const LAMBDA: f64 = 0.3;

impl Mixed {
    fn new() -> Self {
        Self {
            logits: vars("z", &[6, 4], 2),
            maps: vars("f", &[6, 2, 2, 2], 2),
            taught: vars("h", &[3, 4], 2),
            scores: vars("d", &[6, 2], 2),
        }
    }

    fn terms(&self, settings: &MixSkdSettings) -> Vec<retort_losses::Term> {
        let (logits, maps) = (tensors(&self.logits), tensors(&self.maps));
        let scores = if settings.discriminators == Discriminators::Off { vec![] } else { tensors(&self.scores) };
        let batch = MixSkdBatch {
            logits: &logits,
            maps: &maps,
            self_teacher: [&self.taught[0], &self.taught[1]],
            scores: &scores,
            partners: &PARTNERS,
            lambda: LAMBDA,
            labels: &labels(&[0, 3, 2]),
        };
        mixskd(&batch, settings).unwrap()
    }
}

#[test]
fn mixtures_by_hand() {
    let mixed = Mixed::new();
    let terms = mixed.terms(&MixSkdSettings::default());
    let (y, others) = (labels(&[0, 3, 2]), labels(&[2, 0, 3]));
    let ce = |z: &Tensor, y: &Tensor| scalar(&output::cross_entropy(z, y).unwrap());
    let mix = |z: &Tensor| LAMBDA * ce(z, &y) + (1.0 - LAMBDA) * ce(z, &others);
    let half = |x: &Var, from: usize| x.narrow(0, from, 3).unwrap();
    let between = |x: &Var| {
        let plain = half(x, 0);
        ((&plain * LAMBDA).unwrap() + (reordered(&plain, &PARTNERS) * (1.0 - LAMBDA)).unwrap()).unwrap()
    };
    let [clean, mixed_taught] = [&mixed.taught[0], &mixed.taught[1]];
    let expected = [
        ("ce", mixed.logits.iter().map(|z| ce(&half(z, 0), &y)).sum::<f64>()),
        ("mix-ce", mixed.logits.iter().map(|z| mix(&half(z, 3))).sum::<f64>() + mix(clean) + mix(mixed_taught)),
        ("mixskd", {
            let kd = |s: &Tensor, t: &Tensor| scalar(&output::kd(s, t, 3.0).unwrap());
            let (shallow, last) = (&mixed.logits[0], &mixed.logits[1]);
            kd(&between(shallow), &half(shallow, 3))
                + kd(&half(shallow, 3), &between(shallow))
                + kd(&between(last), mixed_taught)
                + kd(&half(last, 3), clean)
        }),
        ("mixskd-feature", {
            let square = |f: &Var| (between(f) - half(f, 3)).unwrap().sqr().unwrap();
            mixed.maps.iter().map(|f| scalar(&square(f).mean_all().unwrap())).sum()
        }),
        ("mixskd-discriminator", {
            let bce = |v: f64, t: f64| v.max(0.0) - v * t + (-v.abs()).exp().ln_1p();
            let of = |d: &Var| {
                let rows = d.to_vec2::<f64>().unwrap();
                let one = |(i, row): (usize, &Vec<f64>)| {
                    let first = f64::from(u8::from(i < 3));
                    bce(row[0], first) + bce(row[1], 1.0 - first)
                };
                rows.iter().enumerate().map(one).sum::<f64>() / 12.0
            };
            mixed.scores.iter().map(of).sum()
        }),
    ];
    assert_eq!(terms.len(), expected.len());
    for (name, expected) in expected {
        let found = scalar(&value(&terms, name));
        assert!((found - expected).abs() < 1e-12, "{name}: {found} {expected}");
    }
    let reference = mixed.terms(&MixSkdSettings::reference_cifar());
    let left_out = scalar(&value(&terms, "mix-ce"));
    assert!((total(&terms) - total(&reference) - left_out).abs() < 1e-12);
    assert!(!MixSkdSettings::reference_cifar().train_discriminators);
    let off = MixSkdSettings { discriminators: Discriminators::Off, ..MixSkdSettings::default() };
    assert_eq!(mixed.terms(&off).len(), 4);
}

#[test]
fn mixtures_have_the_right_slopes() {
    let mixed = Mixed::new();
    let terms = || mixed.terms(&MixSkdSettings::default());
    for name in ["ce", "mix-ce"] {
        slopes_agree(name, &[&mixed.logits[0], &mixed.taught[0]], || value(&terms(), name));
    }
    slopes_agree("feature", &[&mixed.maps[1]], || value(&terms(), "mixskd-feature"));
    slopes_agree("discriminator", &[&mixed.scores[0]], || value(&terms(), "mixskd-discriminator"));
    // The backbone's logits have no other teacher than the self-teacher, a constant.
    slopes_agree("backbone", &[&mixed.logits[1]], || value(&terms(), "mixskd"));
    assert_eq!(gradient(&value(&terms(), "mixskd"), &mixed.taught[0]), [0.0; 12]);
    // Adversarial: the same input, the opposite gradient.
    let map = &mixed.maps[0];
    let shown = |mode| mixskd_discriminator_input(map, &PARTNERS, LAMBDA, mode).unwrap();
    let (with, against) = (shown(Discriminators::Cooperative), shown(Discriminators::Adversarial));
    assert_eq!(flat(&with), flat(&against));
    let slope = |x: &Tensor| gradient(&x.sqr().unwrap().sum_all().unwrap(), map);
    assert!(slope(&with).iter().zip(slope(&against)).all(|(a, b)| (a + b).abs() < 1e-15));
}

#[test]
fn mixtures_that_do_not_fit() {
    let x = random("x", &[6, 4], DType::F64);
    assert!(mixskd_interpolate(&x, &[0, 1], 0.5).unwrap_err().to_string().contains("found 2"));
    assert!(mixskd_interpolate(&x, &[0, 1, 3], 0.5).unwrap_err().to_string().contains("partner 3"));
    assert!(mixskd_interpolate(&x, &PARTNERS, 1.5).unwrap_err().to_string().contains("`lambda`"));
    assert!(mixskd_interpolate(&x.narrow(0, 0, 5).unwrap(), &PARTNERS, 0.5).is_err());
    // All of the image itself: the interpolation is the unmixed half.
    let [whole, _] = mixskd_interpolate(&x, &PARTNERS, 1.0).unwrap();
    assert_eq!(flat(&whole), flat(&x)[..12]);
    let mixed = Mixed::new();
    let (logits, maps) = (tensors(&mixed.logits), tensors(&mixed.maps));
    let taught = [mixed.taught[0].as_tensor(), mixed.taught[1].as_tensor()];
    let y = labels(&[0, 3, 2]);
    let batch = MixSkdBatch {
        logits: &logits,
        maps: &maps,
        self_teacher: taught,
        scores: &[],
        partners: &PARTNERS,
        lambda: LAMBDA,
        labels: &y,
    };
    let error = |batch: &MixSkdBatch<'_>| mixskd(batch, &MixSkdSettings::default()).unwrap_err().to_string();
    assert!(error(&batch).contains("0 scores"));
    let wrong = [maps[0].clone(), maps[1].clone()];
    assert!(error(&MixSkdBatch { scores: &wrong, ..batch }).contains("[6, 2]"));
    let scores = tensors(&mixed.scores);
    assert!(error(&MixSkdBatch { scores: &scores, self_teacher: [&logits[0], taught[1]], ..batch }).contains("[3, 4]"));
}

#[test]
fn stray_fields_beside_a_kind_without_any_are_refused() {
    use retort_losses::self_distillation::{ManyToOne, RankDistribution};
    for json in [r#"{"kind":"constant","power":2.0}"#, r#"{"kind":"random-uniform","power":2.0}"#] {
        let error = serde_json::from_str::<RankDistribution>(json).unwrap_err().to_string();
        assert!(error.contains("`power`"), "{json}: {error}");
    }
    let error = serde_json::from_str::<ManyToOne>(r#"{"mode":"each","tau":2.0}"#).unwrap_err().to_string();
    assert!(error.contains("`tau`"), "{error}");
    assert_eq!(serde_json::from_str::<ManyToOne>(r#"{"mode":"each"}"#).unwrap(), ManyToOne::Each);
    assert_eq!(serde_json::from_str::<RankDistribution>(r#"{"kind":"constant"}"#).unwrap(), RankDistribution::Constant);
}
