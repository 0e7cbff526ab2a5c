//! Losses of networks that learn from each other.

use crate::fixture::{flat, random, scalar};
use crate::probe::{CPU, finite, gradient, labels, reordered, slopes_agree, tensors, total, value, var, vars};
use candle_core::{DType, Tensor, Var};
use proptest::prelude::*;
use retort_losses::online::{
    DmlSettings, KdclSettings, KdclTeacher, MclMemory, MclQueues, MclSettings, RampedSettings, cl_ilr, dml,
    dml_ensemble, ffl, kdcl, lmcl, lmcl_logits, lmcl_towards, mcl, mcl_logit_kd, okddip, okddip_targets, one, ramp,
    scale_gradient,
};
use retort_losses::{Result, Term, output};
use retort_nn::Seed;

const RAMPED: RampedSettings = RampedSettings { temperature: 3.0, ramp_epochs: 80 };
const DML: DmlSettings = DmlSettings { temperature: 2.0, weight: 0.7 };

fn min_logit() -> KdclSettings {
    KdclSettings { teacher: KdclTeacher::MinLogit, ..KdclSettings::default() }
}

/// Losses of a list of logits alone; the last entry stands in for gated, fused or leading logits where there are some.
type OfLogits = fn(&[Tensor], &Tensor) -> Result<Vec<Term>>;
const OF_LOGITS: [(&str, OfLogits); 8] = [
    ("dml", |z, y| dml(z, y, &DML)),
    ("dml-ensemble", |z, y| dml_ensemble(z, y, &DML)),
    ("cl-ilr", |z, y| cl_ilr(z, y, &RAMPED, 0.3)),
    ("kdcl", |z, y| kdcl(z, y, &KdclSettings::default())),
    ("kdcl min-logit", |z, y| kdcl(z, y, &min_logit())),
    ("one", |z, y| one(z, z.last().unwrap(), y, &RAMPED, 0.3)),
    ("ffl", |z, y| ffl(z, z.last().unwrap(), y, &RAMPED, 0.3)),
    ("okddip", |z, y| okddip(z, &even(z), z.last().unwrap(), y, &RAMPED, 0.3)),
];

/// Everybody learns from everybody alike.
fn even(logits: &[Tensor]) -> Tensor {
    let (b, p) = (logits[0].dims()[0], logits.len());
    Tensor::full(1.0 / p as f64, (b, p, p), CPU).unwrap().to_dtype(logits[0].dtype()).unwrap()
}

#[test]
fn the_ramp_rises_to_one() {
    assert!((ramp(0, 80) - 0.006_737_946_999_085_467).abs() < 1e-15);
    assert!((ramp(40, 80) - (-1.25f64).exp()).abs() < 1e-15);
    assert!((0..200).map(|e| ramp(e, 80)).collect::<Vec<_>>().is_sorted());
    assert_eq!((ramp(79, 80) < 1.0, ramp(80, 80), ramp(usize::MAX, 80)), (true, 1.0, 1.0));
    assert_eq!(RAMPED.ramp(80), 1.0);
}

#[test]
fn one_network_has_plain_cross_entropy() {
    let (z, y) = (var("z", &[5, 4]), labels(&[0, 1, 2, 3, 0]));
    let plain = scalar(&output::cross_entropy(&z, &y).unwrap());
    for (name, loss) in OF_LOGITS {
        let terms = loss(&tensors(std::slice::from_ref(&z)), &y).unwrap();
        // Where there is a second classifier it is the same one here.
        let times = terms[0].parts.len().max(1) as f64;
        assert!((scalar(&terms[0].value) - times * plain).abs() < 1e-12, "{name}");
        // Shifted targets add 1e-7 for each class.
        assert!(scalar(&terms[1].value).abs() < 2e-5, "{name}: {}", scalar(&terms[1].value));
    }
    let terms = dml(&[z.as_tensor().clone()], &y, &DML).unwrap();
    assert_eq!((total(&terms), scalar(&terms[1].value)), (plain, 0.0));
    assert_eq!(gradient(&retort_losses::online::total(&terms).unwrap(), &z), {
        gradient(&output::cross_entropy(&z, &y).unwrap(), &z)
    });
}

#[test]
fn equal_networks_have_nothing_to_learn_from_each_other() {
    let (z, y) = (random("z", &[5, 4], DType::F64), labels(&[0, 1, 2, 3, 0]));
    for (name, loss) in OF_LOGITS {
        let terms = loss(&[z.clone(), z.clone(), z.clone()], &y).unwrap();
        let allowed = if ["ffl", "okddip"].contains(&name) { 2e-5 } else { 1e-12 };
        let found = scalar(&terms[1].value).abs();
        // The smallest logits of equal networks are their own.
        assert!(found < allowed, "{name}: {found}");
    }
    assert!(scalar(&mcl_logit_kd(&[z.clone(), z], 3.0).unwrap().value).abs() < 1e-14);
}

#[test]
fn every_part_has_the_slope_of_its_student() {
    let (z, y) = (vars("z", &[4, 5], 3), labels(&[0, 4, 2, 2]));
    // dml: a part `a<-b` is a function of z_a, and z_b gets nothing.
    for (a, b, part) in [(0, 1, 0), (0, 2, 1), (1, 0, 2), (2, 1, 5)] {
        let loss = || dml(&tensors(&z), &y, &DML).unwrap()[1].parts[part].1.clone();
        assert_eq!(dml(&tensors(&z), &y, &DML).unwrap()[1].parts[part].0, format!("{a}<-{b}"));
        slopes_agree("dml", &[&z[a]], loss);
        assert_eq!(gradient(&loss(), &z[b]), [0.0; 20]);
    }
    // One learner at a time, with the others as constants.
    let f = var("fused", &[4, 5]);
    let constants = tensors(&z).iter().map(Tensor::detach).collect::<Vec<_>>();
    for (k, learner) in z.iter().enumerate() {
        let with = || {
            let mut all = constants.clone();
            all[k] = learner.as_tensor().clone();
            all
        };
        let part = |terms: Vec<Term>| terms[1].parts[k].1.clone();
        slopes_agree("dml-ensemble", &[learner], || part(dml_ensemble(&with(), &y, &DML).unwrap()));
        slopes_agree("one", &[learner], || part(one(&with(), &f, &y, &RAMPED, 1.0).unwrap()));
        slopes_agree("ffl", &[learner], || part(ffl(&with(), &f, &y, &RAMPED, 1.0).unwrap()));
    }
    slopes_agree("ffl", &[&f], || ffl(&constants, &f, &y, &RAMPED, 1.0).unwrap()[1].parts[3].1.clone());
    let teacher = one(&constants, &f, &y, &RAMPED, 1.0).unwrap();
    assert_eq!(gradient(&teacher[1].value, &f), [0.0; 20]);
    slopes_agree("one, gated", &[&f], || one(&constants, &f, &y, &RAMPED, 1.0).unwrap()[0].value.clone());
}

#[test]
fn nothing_is_constant_in_okddip() {
    let (z, y) = (vars("z", &[4, 5], 3), labels(&[0, 4, 2, 2]));
    let (leader, attention) = (var("leader", &[4, 5]), var("attention", &[4, 3, 3]));
    slopes_agree("okddip", &[&z[0], &z[2], &leader, &attention], || {
        let terms = okddip(&tensors(&z), &attention, &leader, &y, &RAMPED, 0.4).unwrap();
        retort_losses::online::total(&terms).unwrap()
    });
    let targets = okddip_targets(&tensors(&z), &attention).unwrap();
    let shares = attention.to_vec3::<f64>().unwrap();
    let by_hand: f64 = (0..3).map(|j| shares[1][2][j] * z[j].to_vec2::<f64>().unwrap()[1][3]).sum();
    assert!((targets[2].to_vec2::<f64>().unwrap()[1][3] - by_hand).abs() < 1e-15);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shifts_and_orders_do_not_matter(
        values in prop::collection::vec(-4.0..4.0f64, 60), shift in -30.0..30.0f64, by in 1u32..4,
    ) {
        let z: Vec<Tensor> = values.chunks(20).map(|v| Tensor::from_vec(v.to_vec(), (4, 5), CPU).unwrap()).collect();
        let y = labels(&[0, 4, 2, 2]);
        let order: Vec<u32> = (0..4).map(|i| (i + by) % 4).collect();
        for (name, loss) in OF_LOGITS {
            let plain = total(&loss(&z, &y).unwrap());
            let moved: Vec<Tensor> = z.iter().map(|z| (z + shift).unwrap()).collect();
            prop_assert!((plain - total(&loss(&moved, &y).unwrap())).abs() < 1e-9 * (1.0 + plain.abs()), "{name}");
            let turned: Vec<Tensor> = z.iter().map(|z| reordered(z, &order)).collect();
            let again = total(&loss(&turned, &reordered(&y, &order)).unwrap());
            prop_assert!((plain - again).abs() < 1e-10 * (1.0 + plain.abs()), "{name}");
        }
        // The networks may change places, too.
        let exchanged = [z[1].clone(), z[2].clone(), z[0].clone()];
        for (name, loss) in &OF_LOGITS[..5] {
            let (plain, again) = (total(&loss(&z, &y).unwrap()), total(&loss(&exchanged, &y).unwrap()));
            prop_assert!((plain - again).abs() < 1e-10 * (1.0 + plain.abs()), "{name}");
        }
    }
}

#[test]
fn a_teacher_of_smallest_logits_is_worse_than_everyone_at_the_label() {
    let (z, y) = (vars("z", &[6, 5], 3), labels(&[0, 4, 2, 2, 1, 3]));
    // Its loss at T = 1 per network: KL(m || p_k) >= 0, and CE(m) >= CE(z_k) for every k.
    let shifted: Vec<Vec<Vec<f64>>> = z.iter().map(|z| z.to_vec2().unwrap()).collect();
    let ids = y.to_vec1::<u32>().unwrap();
    let teacher: Vec<f64> = (0..6)
        .flat_map(|b| (0..5).map(move |c| (b, c)))
        .map(|(b, c)| shifted.iter().map(|z| z[b][c] - z[b][ids[b] as usize]).fold(f64::INFINITY, f64::min))
        .collect();
    let teacher = Tensor::from_vec(teacher, (6, 5), CPU).unwrap();
    // Smaller distances to the label's logit everywhere: the label is more probable.
    for z in &z {
        let (own, mixed) = (output::cross_entropy(z, &y).unwrap(), output::cross_entropy(&teacher, &y).unwrap());
        assert!(scalar(&mixed) <= scalar(&own) + 1e-12);
    }
    let terms = kdcl(&tensors(&z), &y, &min_logit()).unwrap();
    let by_hand: f64 = z.iter().map(|z| scalar(&output::kd(z, &teacher, 4.0).unwrap())).sum();
    assert!((scalar(&terms[1].value) - by_hand).abs() < 1e-12);
}

#[test]
fn extreme_logits_and_small_batches_are_finite() {
    for (rows, classes) in [(1, 2), (1, 5), (3, 2), (2, 1)] {
        for scale in [80.0, 1e4] {
            let z: Vec<Var> = (0..3)
                .map(|k| {
                    let values = (0..rows * classes).map(|i| if (i + k) % 2 == 0 { scale } else { -scale });
                    let values: Vec<f32> = values.map(|x| x as f32).collect();
                    Var::from_tensor(&Tensor::from_vec(values, (rows, classes), CPU).unwrap()).unwrap()
                })
                .collect();
            let y = labels(&vec![0; rows]);
            for (name, loss) in OF_LOGITS {
                let terms = loss(&tensors(&z), &y).unwrap();
                finite(&format!("{name}, {rows} x {classes} of {scale}"), &z.iter().collect::<Vec<_>>(), &terms);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let (z, y) = (random("z", &[4, 5], DType::F64), labels(&[0, 4, 2, 2]));
    for (name, loss) in OF_LOGITS {
        let method = name.split(' ').next().unwrap();
        let error = |z: &[Tensor], y: &Tensor| loss(z, y).unwrap_err().to_string();
        let short = error(&[z.clone(), z.narrow(0, 0, 3).unwrap()], &y);
        assert!(short.starts_with(method) && short.contains("[3, 5]"), "{short}");
        let single = error(&[z.clone(), z.to_dtype(DType::F32).unwrap()], &y);
        assert!(single.starts_with(method) && single.contains("F32"), "{single}");
        let high = error(&[z.clone(), z.clone()], &labels(&[0, 5, 2, 2]));
        assert!(high.starts_with(method) && high.contains("label 5"), "{high}");
    }
    assert!(dml(&[], &y, &DML).unwrap_err().to_string().contains("at least one"));
    let bad = DmlSettings { temperature: 0.0, weight: 1.0 };
    assert!(dml(std::slice::from_ref(&z), &y, &bad).unwrap_err().to_string().contains("dml: field `temperature`"));
    let zs = [z.clone(), z.clone()];
    assert!(one(&zs, &z, &y, &RAMPED, f64::NAN).unwrap_err().to_string().contains("`ramp`"));
    let wrong = Tensor::zeros((4, 3, 2), DType::F64, CPU).unwrap();
    assert!(okddip(&zs, &wrong, &z, &y, &RAMPED, 1.0).unwrap_err().to_string().contains("[4, 2, 2]"));
    assert!(retort_losses::online::total(&[]).is_err());
}

#[test]
fn gradients_are_rescaled_and_values_are_not() {
    let x = var("x", &[2, 3]);
    for factor in [0.25, -1.0, 0.0] {
        let y = scale_gradient(&x, factor).unwrap();
        assert_eq!(flat(&y), flat(x.as_tensor()));
        let plain = gradient(&x.sqr().unwrap().sum_all().unwrap(), &x);
        let scaled = gradient(&y.sqr().unwrap().sum_all().unwrap(), &x);
        assert!(plain.iter().zip(&scaled).all(|(p, s)| (p * factor - s).abs() < 1e-15));
    }
}

// ---- mutual contrastive learning ----

/// Rows of length 1.
fn unit(x: &Tensor) -> Tensor {
    let length = x.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
    x.broadcast_div(&length).unwrap()
}

fn contrast(g: &[Vec<f64>], y: &[u32], include_self: bool) -> f64 {
    let (mut sum, mut rows) = (0.0, 0.0);
    for i in 0..y.len() {
        let positives: Vec<usize> = (0..y.len()).filter(|&j| y[j] == y[i] && (include_self || j != i)).collect();
        if positives.is_empty() {
            continue;
        }
        let all: f64 = (0..y.len()).filter(|&l| include_self || l != i).map(|l| g[i][l].exp()).sum();
        sum -= positives.iter().map(|&j| g[i][j] - all.ln()).sum::<f64>() / positives.len() as f64;
        rows += 1.0;
    }
    if rows == 0.0 { 0.0 } else { sum / rows }
}

fn scores(a: &Tensor, b: &Tensor, tau: f64) -> Tensor {
    (a.matmul(&b.t().unwrap()).unwrap() / tau).unwrap()
}

#[test]
fn contrasts_by_hand() {
    // The class 7 occurs once, and has no positive within a network.
    let y = [3, 5, 3, 7, 5, 5];
    let v: Vec<Tensor> = (0..3).map(|k| unit(&random(&format!("v{k}"), &[6, 4], DType::F64))).collect();
    for include_self in [false, true] {
        let settings = MclSettings { icl_include_self: include_self, ..MclSettings::default() };
        let terms = mcl(&v, &labels(&y), &settings).unwrap();
        let (mut vcl, mut icl, mut soft_vcl, mut soft_icl) = (0.0, 0.0, 0.0, 0.0);
        for a in 0..3 {
            for b in 0..3 {
                let g = |a: usize, b: usize| scores(&v[a], &v[b], 0.1);
                let rows = g(a, b).to_vec2::<f64>().unwrap();
                if a == b {
                    vcl += contrast(&rows, &y, false);
                    continue;
                }
                icl += contrast(&rows, &y, include_self);
                soft_vcl += scalar(&output::kd(&g(a, a), &g(b, b), 3.0).unwrap());
                soft_icl += scalar(&output::kd(&g(a, b), &g(b, a), 3.0).unwrap());
            }
        }
        for (name, expected) in [("vcl", vcl), ("icl", icl), ("soft-vcl", soft_vcl), ("soft-icl", soft_icl)] {
            let found = scalar(&value(&terms, name));
            assert!((found - expected).abs() < 1e-11 * (1.0 + expected), "{name}: {found} {expected}");
        }
    }
}

#[test]
fn contrasts_have_the_right_slopes() {
    let (v, y) = (vars("v", &[5, 3], 2), labels(&[1, 0, 1, 4, 0]));
    let settings = MclSettings::default();
    for name in ["vcl", "icl"] {
        slopes_agree(name, &[&v[0], &v[1]], || value(&mcl(&tensors(&v), &y, &settings).unwrap(), name));
    }
    // A target is constant: what is left is the gradient of the imitation of fixed scores.
    let (a, b) = (&v[0], &v[1]);
    let soft = value(&mcl(&tensors(&v), &y, &settings).unwrap(), "soft-vcl");
    let fixed = output::kd(&scores(a, a, 0.1), &scores(b, b, 0.1), 3.0).unwrap();
    let close = |x: &[f64], y: &[f64]| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-10);
    assert!(close(&gradient(&soft, a), &gradient(&fixed, a)));
    let soft = value(&mcl(&tensors(&v), &y, &settings).unwrap(), "soft-icl");
    let (there, back) = (scores(a, b, 0.1), scores(b, a, 0.1));
    let fixed = (output::kd(&there, &back, 3.0).unwrap() + output::kd(&back, &there, 3.0).unwrap()).unwrap();
    assert!(close(&gradient(&soft, a), &gradient(&fixed, a)));
    assert!(close(&gradient(&soft, b), &gradient(&fixed, b)));
}

#[test]
fn equal_networks_and_lonely_samples() {
    let (v, y) = (unit(&random("v", &[5, 3], DType::F64)), labels(&[0, 1, 2, 3, 4]));
    let terms = mcl(&[v.clone(), v.clone()], &y, &MclSettings::default()).unwrap();
    // No class occurs twice: nothing to contrast.
    assert_eq!((scalar(&terms[0].value), scalar(&terms[2].value)), (0.0, 0.0));
    assert!(scalar(&terms[1].value).abs() < 1e-12 && scalar(&terms[3].value).abs() < 1e-12);
    // One row, one network.
    let one_row = v.narrow(0, 0, 1).unwrap();
    let terms = mcl(&[one_row.clone(), one_row.clone()], &labels(&[3]), &MclSettings::default()).unwrap();
    assert!(terms.iter().all(|term| scalar(&term.value) == 0.0));
    let alone = mcl(std::slice::from_ref(&v), &labels(&[0, 1, 1, 0, 2]), &MclSettings::default()).unwrap();
    assert!(scalar(&alone[0].value) > 0.0 && alone[1..].iter().all(|term| scalar(&term.value) == 0.0));
    // Rows that are no unit vectors, with scores of 1e4 and more.
    let large = Var::from_tensor(&(random("v", &[5, 3], DType::F32) * 60.0).unwrap()).unwrap();
    let other = random("w", &[5, 3], DType::F32);
    let y = labels(&[0, 1, 1, 0, 2]);
    finite("mcl", &[&large], &mcl(&[large.as_tensor().clone(), other], &y, &MclSettings::default()).unwrap());
}

#[test]
fn layers_are_pairs_of_stages() {
    let y = [1, 0, 1, 4, 0];
    let stages: Vec<Vec<Tensor>> =
        (0..2).map(|n| (0..3).map(|s| unit(&random(&format!("v{n}{s}"), &[5, 4], DType::F64))).collect()).collect();
    let weights = random("w", &[18, 5], DType::F64);
    let settings = MclSettings::default();
    let found = lmcl(&stages, &labels(&y), Some(&weights), &settings).unwrap();
    // Even weights give the mean of the plain form over pairs.
    let even = lmcl(&stages, &labels(&y), None, &settings).unwrap();
    let mut plain = [0.0; 4];
    for k in 0..3 {
        for l in 0..3 {
            let pair = mcl(&[stages[0][k].clone(), stages[1][l].clone()], &labels(&y), &settings).unwrap();
            plain.iter_mut().zip(&pair).for_each(|(sum, term)| *sum += scalar(&term.value));
        }
    }
    for (term, plain) in even.iter().zip(plain) {
        assert!((scalar(&term.value) - plain).abs() < 1e-10, "{}: {} {plain}", term.name, scalar(&term.value));
    }
    // Exchanging the networks exchanges halves of the weights.
    let exchanged = Tensor::cat(&[weights.narrow(0, 9, 9).unwrap(), weights.narrow(0, 0, 9).unwrap()], 0).unwrap();
    let turned = lmcl(&[stages[1].clone(), stages[0].clone()], &labels(&y), Some(&exchanged), &settings).unwrap();
    for (a, b) in found.iter().zip(&turned) {
        assert!((scalar(&a.value) - scalar(&b.value)).abs() < 1e-11);
    }
    let w = Var::from_tensor(&weights).unwrap();
    let embedding = Var::from_tensor(&stages[0][1]).unwrap();
    let with = || {
        let mut stages = stages.clone();
        stages[0][1] = embedding.as_tensor().clone();
        lmcl(&stages, &labels(&y), Some(&w), &settings).unwrap()
    };
    slopes_agree("weights", &[&w], || retort_losses::online::total(&with()).unwrap());
    slopes_agree("vcl", &[&embedding], || value(&with(), "vcl"));
    slopes_agree("icl", &[&embedding], || value(&with(), "icl"));
    // Targets that stay make a loss of which the gradient is that of the plain form, imitation included.
    let towards = || {
        let mut moving = stages.clone();
        moving[0][1] = embedding.as_tensor().clone();
        retort_losses::online::total(&lmcl_towards(&moving, &stages, &labels(&y), Some(&weights), &settings).unwrap())
            .unwrap()
    };
    slopes_agree("towards", &[&embedding], towards);
    let gradient =
        |loss: Tensor| loss.backward().unwrap().get(&embedding).unwrap().flatten_all().unwrap().to_vec1::<f64>();
    let plain = retort_losses::online::total(&with()).unwrap();
    assert_eq!(gradient(towards()).unwrap().len(), 20);
    for (a, b) in gradient(towards()).unwrap().iter().zip(gradient(plain).unwrap()) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }
    let fewer = [stages[0].clone(), stages[1][1..].to_vec()];
    let error = lmcl_towards(&stages, &fewer, &labels(&y), None, &settings).unwrap_err().to_string();
    assert!(error.contains("[3, 3]") && error.contains("[3, 2]"), "{error}");
    let error = lmcl(&stages, &labels(&y), Some(&weights.t().unwrap()), &settings).unwrap_err().to_string();
    assert!(error.contains("[18, 5]"), "{error}");
}

#[test]
fn logits_of_stages() {
    let (z, y) = (vars("z", &[4, 5], 4), labels(&[0, 4, 2, 2]));
    let aggregated = vars("a", &[4, 5], 2);
    let t = tensors(&z);
    let networks = [vec![t[0].clone(), t[1].clone()], vec![t[2].clone(), t[3].clone()]];
    let terms = lmcl_logits(&networks, &tensors(&aggregated), &y, 3.0).unwrap();
    let all = t.iter().chain(aggregated.iter().map(Var::as_tensor));
    let cross: f64 = all.map(|z| scalar(&output::cross_entropy(z, &y).unwrap())).sum();
    assert!((scalar(&terms[0].value) - cross).abs() < 1e-12);
    let kd: f64 = [1, 3]
        .iter()
        .flat_map(|&n| aggregated.iter().map(move |a| (n, a)))
        .map(|(n, a)| scalar(&output::kd(&t[n], a, 3.0).unwrap()))
        .sum();
    assert!((scalar(&terms[1].value) - kd).abs() < 1e-12);
    assert_eq!(gradient(&terms[1].value, &z[0]), [0.0; 20]);
    assert_eq!(gradient(&terms[1].value, &aggregated[0]), [0.0; 20]);
    assert!(lmcl_logits(&networks, &tensors(&aggregated[..1]), &y, 3.0).is_err());
}

#[test]
fn of_more_than_two_networks_only_the_last_learns_from_the_mean() {
    let z = vars("z", &[4, 5], 3);
    let term = mcl_logit_kd(&tensors(&z), 3.0).unwrap();
    assert_eq!(term.parts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["peer2"]);
    assert_eq!(gradient(&term.value, &z[0]), [0.0; 20]);
    let two = mcl_logit_kd(&tensors(&z[..2]), 3.0).unwrap();
    assert_eq!(two.parts.len(), 2);
    let mean = ((z[0].as_tensor() + z[1].as_tensor()).unwrap() / 2.0).unwrap();
    let expected = scalar(&output::kd(&z[0], &mean, 3.0).unwrap()) + scalar(&output::kd(&z[1], &mean, 3.0).unwrap());
    assert!((scalar(&two.value) - expected).abs() < 1e-13);
}

// ---- state ----

fn memory() -> MclMemory {
    MclMemory::init(2, 12, 4, 0.5, Seed::root(3), DType::F64, CPU).unwrap()
}

#[test]
fn memory_terms_by_hand() {
    let memory = memory();
    let banks = memory.banks().unwrap();
    let v: Vec<Tensor> = (0..2).map(|k| unit(&random(&format!("v{k}"), &[2, 4], DType::F64))).collect();
    // Of each sample: itself, two of its class, three of others.
    let (positives, negatives) = ([0, 1, 2, 5, 6, 7], [9, 10, 11, 1, 1, 3]);
    let settings = MclSettings::memory();
    let terms = memory.terms(&v, &positives, &negatives, &settings).unwrap();
    let row = |bank: usize, anchor: usize, b: usize| -> Vec<f64> {
        let columns = positives[3 * b..][..3].iter().chain(&negatives[3 * b..][..3]);
        let anchor = &v[anchor].to_vec2::<f64>().unwrap()[b];
        let bank = banks[bank].to_vec2::<f64>().unwrap();
        columns.map(|&i| bank[i as usize].iter().zip(anchor).map(|(x, y)| x * y).sum::<f64>() / 0.07).collect()
    };
    let con = |row: &[f64], positives: usize| {
        let all = row.iter().map(|x| x.exp()).sum::<f64>().ln();
        all - row[..positives].iter().sum::<f64>() / positives as f64
    };
    let vcl: f64 = (0..2).map(|k| (0..2).map(|b| con(&row(k, k, b)[1..], 2)).sum::<f64>() / 2.0).sum();
    let icl: f64 = [(0, 1), (1, 0)].map(|(m, a)| (0..2).map(|b| con(&row(m, a, b), 3)).sum::<f64>() / 2.0).iter().sum();
    assert!((scalar(&value(&terms, "vcl")) - vcl).abs() < 1e-12);
    assert!((scalar(&value(&terms, "icl")) - icl).abs() < 1e-12);
    let rows = |m: usize, a: usize, from: usize| {
        let rows: Vec<f64> = (0..2).flat_map(|b| row(m, a, b)[from..].to_vec()).collect();
        Tensor::from_vec(rows, (2, 6 - from), CPU).unwrap()
    };
    let kd = |x: &Tensor, y: &Tensor| scalar(&output::kd(x, y, 3.0).unwrap()) + scalar(&output::kd(y, x, 3.0).unwrap());
    let soft_vcl = kd(&rows(0, 0, 1), &rows(1, 1, 1));
    let soft_icl = kd(&rows(0, 1, 0), &rows(1, 0, 0));
    assert!((scalar(&value(&terms, "soft-vcl")) - soft_vcl).abs() < 1e-12);
    assert!((scalar(&value(&terms, "soft-icl")) - soft_icl).abs() < 1e-12);
    let anchors: Vec<Var> = v.iter().map(|v| Var::from_tensor(v).unwrap()).collect();
    for name in ["vcl", "icl"] {
        slopes_agree(name, &[&anchors[0], &anchors[1]], || {
            value(&memory.terms(&tensors(&anchors), &positives, &negatives, &settings).unwrap(), name)
        });
    }
}

#[test]
fn a_memory_goes_on_where_it_stopped() {
    let mut memory = memory();
    let before = memory.banks().unwrap();
    let v: Vec<Tensor> = (0..2).map(|k| unit(&random(&format!("v{k}"), &[2, 4], DType::F64))).collect();
    memory.update(&v, &[3, 8]).unwrap();
    let after = memory.banks().unwrap();
    for (k, v) in v.iter().enumerate() {
        let (before, after) = (before[k].to_vec2::<f64>().unwrap(), after[k].to_vec2::<f64>().unwrap());
        for (row, sample) in [(3, 0), (8, 1)] {
            let new = &v.to_vec2::<f64>().unwrap()[sample];
            let blend: Vec<f64> = before[row].iter().zip(new).map(|(o, v)| 0.5 * (o + v)).collect();
            let length = blend.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!(after[row].iter().zip(&blend).all(|(a, b)| (a - b / length).abs() < 1e-15));
        }
        assert_eq!(before[0], after[0]);
    }
    let state = memory.state().unwrap();
    let mut other = MclMemory::init(2, 12, 4, 0.5, Seed::root(4), DType::F64, CPU).unwrap();
    other.load_state(&state).unwrap();
    let terms = |memory: &MclMemory| {
        let terms = memory.terms(&v, &[0, 1, 5, 6], &[9, 10], &MclSettings::memory()).unwrap();
        terms.iter().map(|term| scalar(&term.value)).collect::<Vec<_>>()
    };
    assert_eq!(terms(&memory), terms(&other));
    // A zero embedding leaves its row, a snapshot does not move with the memory.
    memory.update(&[v[0].zeros_like().unwrap(), v[1].clone()], &[3, 8]).unwrap();
    assert_eq!(flat(&memory.banks().unwrap()[0]), flat(&after[0]));
    assert_eq!(flat(&state["bank1"]), flat(&after[1]));
    assert_ne!(flat(&memory.banks().unwrap()[1]), flat(&after[1]));
    // What does not belong is refused, and nothing is changed.
    let kept = other.state().unwrap();
    for (name, tensor) in
        [("bank0", Some(random("x", &[3, 4], DType::F64))), ("bank1", None), ("bank2", Some(v[0].clone()))]
    {
        let mut wrong = kept.clone();
        match tensor {
            Some(tensor) => wrong.insert(name.into(), tensor),
            None => wrong.remove(name),
        };
        let message = other.load_state(&wrong).unwrap_err().to_string();
        assert!(message.starts_with("mcl-memory: state") && message.contains(name), "{message}");
    }
    assert_eq!(flat(&other.state().unwrap()["bank0"]), flat(&kept["bank0"]));
    assert!(other.update(&v, &[3, 12]).unwrap_err().to_string().contains("12 is out of range"));
    assert!(other.terms(&v, &[0, 5], &[9, 10], &MclSettings::memory()).is_err());
    assert!(other.terms(&v[..1], &[0, 1, 5, 6], &[9, 10], &MclSettings::memory()).is_err());
}

#[test]
fn queues_are_rings() {
    let start = random("queue", &[5, 3], DType::F64);
    let mut queues = MclQueues::new(&[start.clone(), start.clone()]).unwrap();
    let keys = |label: &str, n: usize| unit(&random(label, &[n, 3], DType::F64));
    let rows = |queues: &MclQueues| queues.queues().unwrap()[0].to_vec2::<f64>().unwrap();
    let all = |x: &Tensor| x.to_vec2::<f64>().unwrap();
    let (a, b) = (keys("a", 3), keys("b", 4));
    queues.update(&[a.clone(), a.clone()]).unwrap();
    assert_eq!(rows(&queues), [all(&a), all(&start)[3..].to_vec()].concat());
    // Over the end.
    queues.update(&[b.clone(), b.clone()]).unwrap();
    let (a, b) = (all(&a), all(&b));
    assert_eq!(rows(&queues), [b[2..].to_vec(), a[2..].to_vec(), b[..2].to_vec()].concat());
    // More keys than rows: the last ones stay.
    let state = queues.state().unwrap();
    let c = keys("c", 7);
    queues.update(&[c.clone(), c.clone()]).unwrap();
    let mut sorted = rows(&queues);
    let mut last = all(&c)[2..].to_vec();
    let order = |rows: &mut Vec<Vec<f64>>| rows.sort_by(|x, y| x[0].total_cmp(&y[0]));
    order(&mut sorted);
    order(&mut last);
    assert_eq!(sorted, last);
    // The state holds the place, too.
    let mut other = MclQueues::init(2, 5, 3, Seed::root(1), DType::F64, CPU).unwrap();
    other.load_state(&state).unwrap();
    other.update(&[c.clone(), c]).unwrap();
    assert_eq!(rows(&other), rows(&queues));
    let mut wrong = state.clone();
    wrong.insert("position".into(), Tensor::new(&[5.0f64], CPU).unwrap());
    assert!(other.load_state(&wrong).unwrap_err().to_string().contains("below 5"));
}

#[test]
fn queries_against_queues() {
    let queues = MclQueues::init(2, 6, 3, Seed::root(1), DType::F64, CPU).unwrap();
    let keys: Vec<Tensor> = (0..2).map(|k| unit(&random(&format!("k{k}"), &[4, 3], DType::F64))).collect();
    let queries = vars("q", &[4, 3], 2);
    let settings = MclSettings::moco();
    let terms = || queues.terms(&tensors(&queries), &keys, &settings).unwrap();
    // The own key first, then the queue.
    let score = |a: usize, b: usize| {
        let q = unit(queries[a].as_tensor());
        let own = (&q * &keys[b]).unwrap().sum_keepdim(1).unwrap();
        let others = q.matmul(&queues.queues().unwrap()[b].t().unwrap()).unwrap();
        (Tensor::cat(&[own, others], 1).unwrap() / 0.07).unwrap()
    };
    let first = labels(&[0; 4]);
    let ce = |a, b| scalar(&output::cross_entropy(&score(a, b), &first).unwrap());
    assert!((scalar(&value(&terms(), "vcl")) - ce(0, 0) - ce(1, 1)).abs() < 1e-12);
    assert!((scalar(&value(&terms(), "icl")) - ce(0, 1) - ce(1, 0)).abs() < 1e-12);
    for name in ["vcl", "icl"] {
        slopes_agree(name, &[&queries[0], &queries[1]], || value(&terms(), name));
    }
    // A query of zeros.
    let mut zero = tensors(&queries);
    zero[0] = zero[0].zeros_like().unwrap();
    let zero: Vec<Var> = zero.iter().map(|q| Var::from_tensor(q).unwrap()).collect();
    finite("moco", &[&zero[0], &zero[1]], &queues.terms(&tensors(&zero), &keys, &settings).unwrap());
    assert!(queues.terms(&tensors(&queries), &keys[..1], &settings).is_err());
    let short: Vec<Tensor> = keys.iter().map(|k| k.narrow(0, 0, 3).unwrap()).collect();
    assert!(queues.terms(&tensors(&queries), &short, &settings).unwrap_err().to_string().contains("[3, 3]"));
}
