//! `kdsvd`, `ofd` and `reviewkd`: values by hand, invariances, borders and errors.

use crate::fixture::{Bench, flat, networks, norms, numbers, random, random_side, scalar, spec, train_labels};
use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;
use retort_losses::feature::{
    OfdConfig, OfdConnector, Review, ReviewkdConfig, SvdSpec, SvdVariant, hierarchical_context, ofd_margin, overhaul,
    overhaul_weights, partial_l2, singular_vector_affinity,
};
use retort_losses::{BuildContext, LossConfig, Term};
use retort_nn::{MapShape, NetworkSpec, Params, Seed, StageNorm};
use std::slice::from_ref;

const CPU: &Device = &Device::Cpu;

fn parse(json: &str) -> LossConfig {
    serde_json::from_str(json).unwrap()
}

fn tensor(values: &[f64], shape: &[usize]) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape, CPU).unwrap()
}

fn close(got: &Tensor, want: f64) {
    let got = scalar(got);
    assert!((got - want).abs() < 1e-12 * (1.0 + want.abs()), "{got} against {want}");
}

fn svd(student: &[Tensor], teacher: &[Tensor], spec: SvdSpec) -> Tensor {
    singular_vector_affinity(student, teacher, spec).unwrap().total
}

// ---- kdsvd ----

/// `[1, 1, 2, 2]` of rank one with the right singular vector `v`.
fn rank_one(v: [f64; 2]) -> Tensor {
    tensor(&[v[0], v[1], 3.0 * v[0], 3.0 * v[1]], &[1, 1, 2, 2])
}

#[test]
fn affinities_of_rank_one_maps_by_hand() {
    let spec = SvdSpec { extra: 0, ..SvdSpec::default() };
    let student = [rank_one([1.0, 0.0]), rank_one([0.6, 0.8])];
    let teacher = [rank_one([0.8, 0.6]), rank_one([-0.8, -0.6])];
    // The teacher's vectors are (0.8, 0.6) in both stages, the sign being that of the larger entry.
    let rbf = |x: f64| (-x * x / 8.0).exp();
    let mut want = 0.0;
    for (s_d, t_d) in [(0.6, 0.8), (0.8, 0.6)] {
        for (s_e, t_e) in [(1.0, 0.8), (0.0, 0.6)] {
            let difference: f64 = rbf(s_d - s_e) - rbf(t_d - t_e);
            want += difference * difference;
        }
    }
    close(&svd(&student, &teacher, spec), want);
    // Twice the sample is twice the sum over half the weight.
    let twice = |maps: &[Tensor; 2]| maps.each_ref().map(|m| Tensor::cat(&[m, m], 0).unwrap());
    close(&svd(&twice(&student), &twice(&teacher), spec), want);
}

#[test]
fn vectors_with_nothing_in_common_are_not_aligned() {
    let row = |v: [f64; 5]| tensor(&v, &[1, 5, 1, 1]);
    let spec = SvdSpec { variant: SvdVariant::Channel, extra: 3, ..SvdSpec::default() };
    let shallow = [0.36, 0.48, 0.8, 0.0, 0.0];
    let student = [row(shallow), row([1.0, 2.0, 3.0, 0.0, 0.0])];
    let teacher = [row(shallow), row([0.0, 0.0, 0.0, 3.0, 4.0])];
    let rbf = |x: f64| (-x * x / 8.0).exp();
    let mut want = 0.0;
    for t in [0.0, 0.0, 0.0, 0.6, 0.8] {
        want += shallow.iter().map(|e| (rbf(-e) - rbf(t - e)).powi(2)).sum::<f64>();
    }
    close(&svd(&student, &teacher, spec), want);
}

#[test]
fn the_student_chooses_among_its_vectors_and_takes_the_teachers_sign() {
    let diagonal = |a: f64, b: f64| tensor(&[a, 0.0, 0.0, b], &[1, 1, 2, 2]);
    // The student's second vector is the teacher's first one.
    let (student, teacher) = ([diagonal(3.0, 2.0), diagonal(3.0, 2.0)], [diagonal(1.0, 2.0), diagonal(1.0, 2.0)]);
    let only_first = svd(&student, &teacher, SvdSpec { extra: 0, ..SvdSpec::default() });
    assert!(scalar(&svd(&student, &teacher, SvdSpec { extra: 1, ..SvdSpec::default() })) < 1e-20);
    // (1, 0) is orthogonal to (0, 1): nothing is chosen.
    let rbf = |x: f64| (-x * x / 8.0f64).exp();
    close(&only_first, 2.0 * (1.0 - rbf(1.0)).powi(2));
}

#[test]
fn several_vectors_are_scaled_by_the_teachers_singular_values() {
    let diagonal = |a: f64, b: f64| tensor(&[a, 0.0, 0.0, b], &[1, 1, 2, 2]);
    let spec = SvdSpec { k: 2, extra: 0, ..SvdSpec::default() };
    // Singular values 4 and 1 over their norm; in the deeper stage the student's vectors are turned.
    let teacher = [diagonal(4.0, 1.0), diagonal(4.0, 1.0)];
    let student = [diagonal(1.0, 0.5), tensor(&[2.0 * 0.8, 2.0 * 0.6, -0.6, 0.8], &[1, 1, 2, 2])];
    let rbf = |x: f64| (-x * x / 8.0).exp();
    let mut want = 0.0;
    for (j, (singular, v)) in [(4.0, [0.8, 0.6]), (1.0, [-0.6, 0.8])].into_iter().enumerate() {
        let factor = singular / 17f64.sqrt();
        let unit = |d: usize| if d == j { factor } else { 0.0 };
        for (d, v) in v.into_iter().enumerate() {
            for e in 0..2 {
                want += (rbf(factor * v - unit(e)) - rbf(unit(d) - unit(e))).powi(2);
            }
        }
    }
    close(&svd(&student, &teacher, spec), want);
    // A dead map of the teacher has nothing to say.
    let dead = [teacher[0].zeros_like().unwrap(), teacher[0].zeros_like().unwrap()];
    assert_eq!(scalar(&svd(&student, &dead, spec)), 0.0);
}

#[test]
fn equal_singular_values_and_dead_maps_give_finite_gradients() {
    let eye = |b: usize| {
        let one: Vec<f64> = (0..16).map(|i| f64::from(u8::from(i % 5 == 0))).collect();
        tensor(&one.repeat(b), &[b, 1, 4, 4])
    };
    let fills = [eye(2), eye(2).zeros_like().unwrap(), eye(2).ones_like().unwrap(), (eye(2) * 1e-30).unwrap()];
    let teacher = [random("svd.t0", &[2, 3, 4, 4], DType::F64), random("svd.t1", &[2, 2, 4, 4], DType::F64)];
    for map in fills {
        for dtype in [DType::F32, DType::F64] {
            let var = || Var::from_tensor(&map.to_dtype(dtype).unwrap()).unwrap();
            let (a, b) = (var(), var());
            let teacher = teacher.each_ref().map(|t| t.to_dtype(dtype).unwrap());
            let loss = svd(&[a.as_tensor().clone(), b.as_tensor().clone()], &teacher, SvdSpec::default());
            assert!(scalar(&loss).is_finite());
            let grads = loss.backward().unwrap();
            for var in [a, b] {
                assert!(flat(grads.get(&var).unwrap()).iter().all(|g| g.is_finite()));
            }
        }
    }
}

#[test]
fn a_pairs_summand_has_the_gradient_of_that_pair() {
    let maps = |who: &str| [8, 4, 4].map(|n| random(&format!("svd.{who}.{n}"), &[2, 3, n, n], DType::F64));
    let (teacher, student) = (maps("t"), maps("s").map(|m| Var::from_tensor(&m).unwrap()));
    let of = |s: &[&Var]| s.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>();
    let loss = singular_vector_affinity(&of(&[&student[0], &student[1], &student[2]]), &teacher, SvdSpec::default());
    let loss = loss.unwrap();
    assert_eq!(loss.stages.len(), 2);
    let alone = svd(&of(&[&student[0], &student[1]]), &teacher[..2], SvdSpec::default());
    close(&loss.stages[0], scalar(&alone));
    let (first, alone) = (loss.stages[0].backward().unwrap(), alone.backward().unwrap());
    for var in &student[..2] {
        assert_eq!(flat(first.get(var).unwrap()), flat(alone.get(var).unwrap()));
    }
    assert!(first.get(&student[2]).is_none());
}

#[test]
fn matrices_that_do_not_fit_are_named() {
    let map = |c: usize, n: usize| Tensor::ones((2, c, n, n), DType::F32, CPU).unwrap();
    let error =
        |s: [Tensor; 2], t: [Tensor; 2], spec: SvdSpec| singular_vector_affinity(&s, &t, spec).unwrap_err().to_string();
    let width = SvdSpec::default();
    let message = error([map(3, 8), map(3, 8)], [map(3, 8), map(5, 4)], width);
    assert!(message.contains("stage 1") && message.contains("3x8x8") && message.contains("5x4x4"), "{message}");
    let message = error([map(3, 8), map(3, 3)], [map(3, 8), map(5, 3)], width);
    assert!(message.contains("`width`") && message.contains("k + extra = 4"), "{message}");
    let channel = SvdSpec { variant: SvdVariant::Channel, ..width };
    let message = error([map(4, 8), map(5, 4)], [map(4, 8), map(6, 4)], channel);
    assert!(message.contains("`channel`") && message.contains("channels"), "{message}");
    let huge = SvdSpec { extra: usize::MAX, ..width };
    assert!(error([map(4, 8), map(5, 4)], [map(4, 8), map(6, 4)], huge).contains("k + extra"));
    for spec in [SvdSpec { k: 0, ..width }, SvdSpec { rbf_div: 0.0, ..width }] {
        assert!(error([map(4, 8), map(5, 4)], [map(4, 8), map(6, 4)], spec).contains("kdsvd: field"));
    }
    let one = singular_vector_affinity(&[map(4, 8)], &[map(4, 8)], width).unwrap_err().to_string();
    assert!(one.contains("at least two, found 1"), "{one}");
    let lists = singular_vector_affinity(&[map(4, 8)], &[map(4, 8), map(4, 8)], width).unwrap_err().to_string();
    assert!(lists.starts_with("kdsvd: the student has 1 stages"), "{lists}");
}

#[test]
fn both_variants_build_and_differ() {
    let value = |variant: &str| {
        let config = parse(&format!(r#"{{"method": "kdsvd", "variant": "{variant}"}}"#));
        let maps = [[3, 8], [4, 8], [6, 4], [5, 4]];
        let (student, teacher) = (spec("student", &maps, 5), spec("teacher", &maps, 9));
        let built = built(&config, &student, &teacher, None).unwrap();
        let sides = (random_side(&student, 3, DType::F32), random_side(&teacher, 3, DType::F32));
        scalar(&term(built, &sides.0.outputs, &sides.1.outputs, 0).value)
    };
    assert_ne!(value("width"), value("channel"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn affinities_ignore_scales_signs_and_the_order_of_rows(
        values in prop::collection::vec(-1.0..1.0f64, 4 * 2 * 3 * 25),
        scale in 0.01..100.0f64,
        by in 1u32..5,
    ) {
        let map = |i: usize| tensor(&values[i * 150..(i + 1) * 150], &[2, 3, 5, 5]);
        let (student, teacher) = ([map(0), map(1)], [map(2), map(3)]);
        let width = SvdSpec::default();
        let plain = scalar(&svd(&student, &teacher, width));
        prop_assert!(plain >= 0.0);
        // The left singular vectors and the singular values of the student do not matter, nor does anyone's scale.
        let rows = Tensor::new((0..5).map(|i| (i + by) % 5).collect::<Vec<u32>>(), CPU).unwrap();
        let moved = |m: &Tensor| (m.index_select(&rows, 2).unwrap() * -scale).unwrap();
        let changed = svd(&student.each_ref().map(moved), &teacher.each_ref().map(moved), width);
        prop_assert!((plain - scalar(&changed)).abs() < 1e-9 * (1.0 + plain), "{plain} {}", scalar(&changed));
        // The variant over channels is that over columns of the map with its axes exchanged.
        let channel = SvdSpec { variant: SvdVariant::Channel, k: 1, extra: 1, ..width };
        let over_channels = svd(&student, &teacher, channel);
        let turned = |m: &Tensor| m.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        let columns = SvdSpec { variant: SvdVariant::Width, ..channel };
        let over_columns = svd(&student.each_ref().map(turned), &teacher.each_ref().map(turned), columns);
        prop_assert!((scalar(&over_channels) - scalar(&over_columns)).abs() < 1e-12);
    }
}

// ---- ofd ----

#[test]
fn margins_are_the_mean_of_the_negative_responses() {
    let margin = |weight: f64, bias: f64, threshold: f64| {
        let one = |x: f64| Tensor::new(&[x], CPU).unwrap();
        flat(&ofd_margin(&one(weight), &one(bias), threshold).unwrap())[0]
    };
    // By the midpoint rule over twelve standard deviations.
    for (std, mean) in [(1.0, 0.0), (0.5, 1.0), (2.0, -3.0), (1.0, 3.0), (0.1, -5.0)] {
        let (n, from) = (200_000, f64::min(mean, 0.0) - 12.0 * std);
        let (mut mass, mut moment) = (0.0, 0.0);
        for i in 0..n {
            let x = from * (1.0 - (i as f64 + 0.5) / n as f64);
            let density = (-0.5 * ((x - mean) / std).powi(2)).exp();
            (mass, moment) = (mass + density, moment + density * x);
        }
        for sign in [1.0, -1.0] {
            let got = margin(sign * std, mean, 1e-3);
            assert!((got - moment / mass).abs() < 1e-7 * std, "{std} {mean}: {got} {}", moment / mass);
            assert!(got < 0.0);
        }
    }
    // Phi(-3.09) is just above 0.001, Phi(-3.0903) just below.
    assert!(margin(1.0, 3.09, 1e-3) > -0.5 && margin(1.0, 3.0903, 1e-3) == -3.0);
    assert!(margin(1.0, 3.09, 0.01) == -3.0 && margin(1.0, 3.0903, 1e-4) > -0.5);
    assert_eq!(margin(-2.0, 1e30, 0.0), -6.0);
    // E[x | x < 0] tends to -std / z far up.
    assert!((margin(1.0, 20.0, 0.0) + 1.0 / 20.0).abs() < 3e-4);
    // A constant response.
    assert_eq!([margin(0.0, -0.7, 1e-3), margin(0.0, 0.7, 1e-3), margin(-0.0, 0.0, 1e-3)], [-0.7, 0.0, 0.0]);
    assert!((margin(1e-300, -0.7, 1e-3) + 0.7).abs() < 1e-15);
    assert!(margin(f64::NAN, 1.0, 1e-3).is_nan() && margin(0.0, f64::NAN, 1e-3).is_nan());
}

#[test]
fn only_a_student_above_an_inactive_target_counts() {
    let margin = tensor(&[-1.0, -0.5], &[2]);
    // Per element: student, teacher, expected difference; the first channel has the margin -1.
    let cases = [
        (0.5, 2.0, -1.5),
        (-3.0, 2.0, -5.0),
        (0.5, -0.3, 0.8),
        (-0.5, -0.3, 0.0),
        (0.5, -7.0, 1.5),
        (-1.0, -7.0, 0.0),
        // t = 0 is inactive.
        (-0.1, 0.0, 0.0),
        (0.1, 0.0, 0.1),
    ];
    let of = |f: fn(&(f64, f64, f64)) -> f64| {
        let first: Vec<f64> = cases.iter().map(f).collect();
        tensor(&[first, vec![0.0; cases.len()]].concat(), &[1, 2, 1, cases.len()])
    };
    let (student, teacher) = (Var::from_tensor(&of(|c| c.0)).unwrap(), of(|c| c.1));
    let loss = partial_l2(0, &student, &teacher, &margin).unwrap();
    close(&loss, cases.iter().map(|c| c.2 * c.2).sum());
    let grad = flat(loss.backward().unwrap().get(&student).unwrap());
    let want: Vec<f64> = cases.iter().map(|c| 2.0 * c.2).chain([0.0; 8]).collect();
    assert!(grad.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-15), "{grad:?}");
}

#[test]
fn the_teacher_is_pooled_and_stages_are_halved_from_the_last_one() {
    let teacher = tensor(&[1.0, 3.0, 5.0, 7.0], &[1, 1, 2, 2]);
    let (student, margin) = (tensor(&[1.0], &[1, 1, 1, 1]), tensor(&[-1.0], &[1]));
    let three = |t: &Tensor| vec![t.clone(); 3];
    let loss = overhaul(&three(&student), &three(&teacher), &three(&margin), &overhaul_weights(3)).unwrap();
    assert_eq!(loss.stages.iter().map(scalar).collect::<Vec<_>>(), [2.25, 4.5, 9.0]);
    close(&loss.total, 15.75);
    // A smaller teacher is spread.
    close(&partial_l2(0, &teacher, &student, &margin).unwrap(), 4.0 + 16.0 + 36.0);
    // A sum over elements, a mean over the batch.
    let twice = |t: &Tensor| Tensor::cat(&[t, t], 0).unwrap();
    close(&partial_l2(0, &twice(&student), &twice(&teacher), &margin).unwrap(), 9.0);
    assert_eq!(overhaul_weights(0), [0.0; 0]);
    let message =
        overhaul(&three(&student), &three(&teacher), &three(&margin)[..2], &[1.0; 3]).unwrap_err().to_string();
    assert!(message.starts_with("ofd: expected a margin"), "{message}");
    let wide = tensor(&[1.0, 1.0], &[1, 2, 1, 1]);
    let message = partial_l2(4, &wide, &teacher, &margin).unwrap_err().to_string();
    assert!(message.contains("stage 4") && message.contains("[1, 2, 1, 1]"), "{message}");
}

/// Builds a method for two networks; the teacher's norms are those of [`norms`] unless others are given.
fn built(
    config: &LossConfig,
    student: &NetworkSpec,
    teacher: &NetworkSpec,
    given: Option<Option<&[StageNorm]>>,
) -> Result<(Params, Box<dyn retort_losses::Distiller>), String> {
    let params = Params::new(Seed::root(3), DType::F32, CPU);
    let own = norms(teacher, DType::F32);
    let ctx = BuildContext {
        student,
        teacher: Some(teacher),
        train_labels: &train_labels(),
        seed: Seed::root(3),
        scope: params.root(),
        init_scope: params.root().child("init"),
        teacher_norms: given.unwrap_or(Some(&own)),
    };
    config.build(&ctx).map(|loss| (params, loss)).map_err(|error| error.to_string())
}

fn refusal(
    config: &LossConfig,
    student: &NetworkSpec,
    teacher: &NetworkSpec,
    given: Option<Option<&[StageNorm]>>,
) -> String {
    built(config, student, teacher, given).map(|_| ()).unwrap_err()
}

fn term(
    (_, mut loss): (Params, Box<dyn retort_losses::Distiller>),
    student: &retort_nn::Outputs,
    teacher: &retort_nn::Outputs,
    epoch: usize,
) -> Term {
    let b = student.logits.dims()[0];
    let labels = Tensor::zeros(b, DType::U32, CPU).unwrap();
    let (ids, index) = (vec![0; b], (0..b as u32).collect::<Vec<_>>());
    let teacher = Some(teacher);
    loss.term(&retort_losses::Context { student, teacher, labels: &labels, label_ids: &ids, index: &index, epoch })
        .unwrap()
}

#[test]
fn margins_belong_to_the_maps_they_are_paired_with() {
    let config = LossConfig::Ofd(OfdConfig::default());
    let student = spec("student", &[[3, 8], [4, 8], [6, 4]], 5);
    let teacher = spec("teacher", &[[3, 8], [4, 8], [7, 8], [7, 4]], 9);
    let (s, t) = (random_side(&student, 4, DType::F32).outputs, random_side(&teacher, 4, DType::F32).outputs);
    // By default the last stages are paired; the norms of the two with seven channels differ.
    let (params, loss) = built(&config, &student, &teacher, None).unwrap();
    let norms = norms(&teacher, DType::F32);
    let mut weights = params.snapshot().unwrap();
    weights.retain(|name, _| !name.starts_with("init"));
    let found = scalar(&term((params, loss), &s, &t, 0).value);
    let copy = Params::from_tensors(weights, DType::F32, CPU);
    let (mut connected, mut margins) = (Vec::new(), Vec::new());
    for (i, (map, norm)) in s.stage_pre_activations().iter().zip(&norms[1..]).enumerate() {
        let connector = OfdConnector::new([4, 6][i], 7, 1, &copy.root().child("connectors").child(i)).unwrap();
        connected.push(connector.forward(map).unwrap());
        margins.push(ofd_margin(&norm.weight, &norm.bias, 1e-3).unwrap());
    }
    let want = overhaul(&connected, &t.stage_pre_activations()[1..], &margins, &[0.5, 1.0]).unwrap();
    assert_eq!(found, scalar(&want.total));
    let swapped = [margins[1].clone(), margins[0].clone()];
    let other = overhaul(&connected, &t.stage_pre_activations()[1..], &swapped, &[0.5, 1.0]).unwrap();
    assert_ne!(found, scalar(&other.total));
    let exact = refusal(&parse(r#"{"method": "ofd", "align": "exact"}"#), &student, &teacher, None);
    assert!(exact.starts_with("ofd: the student has 2 stages"), "{exact}");
}

#[test]
fn a_teacher_without_norms_or_pre_activations_is_named() {
    let config = LossConfig::Ofd(OfdConfig::default());
    let (student, mut teacher) = networks(&config);
    let none = refusal(&config, &student, &teacher, Some(None));
    assert!(none.starts_with("ofd: teacher `teacher` shows the batch norms") && none.contains("0 of its 3"), "{none}");
    let all = norms(&teacher, DType::F32);
    let few = refusal(&config, &student, &teacher, Some(Some(&all[..2])));
    assert!(few.contains("2 of its 3"), "{few}");
    let reversed: Vec<StageNorm> = all.iter().rev().cloned().collect();
    let wrong = refusal(&config, &student, &teacher, Some(Some(&reversed)));
    assert!(wrong.contains("8x8x8") && wrong.contains("[8]") && wrong.contains("[9]"), "{wrong}");
    teacher.pre_activations = false;
    for method in ["ofd", "reviewkd"] {
        let blind = refusal(&parse(&format!(r#"{{"method": "{method}"}}"#)), &student, &teacher, None);
        assert!(blind.starts_with(&format!("{method}: teacher `teacher` cannot show")), "{blind}");
    }
}

#[test]
fn the_teachers_statistics_are_a_choice() {
    assert!(parse(r#"{"method": "ofd"}"#).needs().batch_statistics);
    assert!(!parse(r#"{"method": "ofd", "teacher_bn": "running"}"#).needs().batch_statistics);
    for (json, field) in [("\"kernel_size\": 0", "kernel_size"), ("\"cdf_threshold\": 2", "cdf_threshold")] {
        let message = parse(&format!(r#"{{"method": "ofd", {json}}}"#)).validate().unwrap_err().to_string();
        assert!(message.starts_with(&format!("ofd: field `{field}`")), "{message}");
    }
}

#[test]
fn a_connector_needs_more_than_one_value_per_channel() {
    let params = Params::new(Seed::root(3), DType::F32, CPU);
    let connector = OfdConnector::new(2, 3, 1, &params.root()).unwrap();
    let map = |b: usize| random("one", &[b, 2, 1, 1], DType::F32);
    let message = connector.forward(&map(1)).unwrap_err().to_string();
    assert!(message.starts_with("ofd: ") && message.contains("more than one value"), "{message}");
    assert_eq!(connector.forward(&map(2)).unwrap().dims(), [2, 3, 1, 1]);
}

// ---- reviewkd ----

#[test]
fn contexts_by_hand() {
    // h = 1: the mean squared error alone.
    let one = tensor(&[3.0, 4.0], &[1, 2, 1, 1]);
    let zero = one.zeros_like().unwrap();
    close(&hierarchical_context(from_ref(&one), from_ref(&zero)).unwrap().total, 12.5);
    // h = 4: own size, then 2 and 1 with the weights 1/2 and 1/4.
    let values = numbers("hcl", 16);
    let map = tensor(&values, &[1, 1, 4, 4]);
    let zero = map.zeros_like().unwrap();
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let square = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>() / v.len() as f64;
    let quarter = |r: usize, c: usize| {
        let at = |i: usize, j: usize| values[(2 * r + i) * 4 + 2 * c + j];
        mean(&[at(0, 0), at(0, 1), at(1, 0), at(1, 1)])
    };
    let quarters = [quarter(0, 0), quarter(0, 1), quarter(1, 0), quarter(1, 1)];
    let want = (square(&values) + 0.5 * square(&quarters) + 0.25 * mean(&values).powi(2)) / 1.75;
    close(&hierarchical_context(from_ref(&map), from_ref(&zero)).unwrap().total, want);
    // Constant difference 1 at h = 8: every level says 1.
    let ones = Tensor::ones((2, 3, 8, 8), DType::F64, CPU).unwrap();
    let loss = hierarchical_context(&[ones.clone(), one], &[ones.zeros_like().unwrap(), zero.narrow(3, 0, 1).unwrap()]);
    assert!(loss.unwrap_err().to_string().contains("stage 1: "));
    close(&hierarchical_context(from_ref(&ones), &[ones.zeros_like().unwrap()]).unwrap().total, 1.0);
}

fn shape(channels: usize, height: usize, width: usize) -> MapShape {
    MapShape { channels, height, width }
}

#[test]
fn blocks_have_the_published_names_and_the_teachers_shapes() {
    let params = Params::new(Seed::root(3), DType::F64, CPU);
    // Not square, larger and smaller than the teacher's.
    let entries =
        [(shape(4, 6, 9), shape(5, 3, 4)), (shape(3, 2, 3), shape(7, 4, 6)), (shape(6, 1, 1), shape(8, 1, 1))];
    let review = Review::new(&entries, 6, &params.root()).unwrap();
    let maps: Vec<Tensor> =
        entries.iter().map(|(s, _)| random("review", &[3, s.channels, s.height, s.width], DType::F64)).collect();
    let results = review.forward(&maps).unwrap();
    for (result, (_, t)) in results.iter().zip(&entries) {
        assert_eq!(result.dims(), [3, t.channels, t.height, t.width]);
    }
    let dims = |name: &str| params.snapshot().unwrap()[name].dims().to_vec();
    assert_eq!(dims("0.conv1.0.weight"), [6, 6, 1, 1]);
    assert_eq!(dims("2.conv1.0.weight"), [6, 4, 1, 1]);
    assert_eq!(dims("2.conv2.0.weight"), [5, 6, 3, 3]);
    assert_eq!(dims("1.att_conv.0.weight"), [2, 12, 1, 1]);
    assert!(!params.snapshot().unwrap().keys().any(|name| name.starts_with("0.att_conv")));
    let weights = params.trainable();
    let bound = (3.0f64 / 54.0).sqrt();
    let (_, conv) = weights.iter().find(|(name, _)| name == "2.conv2.0.weight").unwrap();
    let largest = flat(conv.as_tensor()).iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    assert!(largest <= bound && largest > 0.9 * bound);

    let error = review.forward(&maps[1..]).unwrap_err().to_string();
    assert!(error.contains("expected 3 maps of the student, found 2"), "{error}");
    let wrong = [maps[0].clone(), maps[0].clone(), maps[2].clone()];
    let error = review.forward(&wrong).unwrap_err().to_string();
    assert!(error.contains("[3, 3, 2, 3]") && error.contains("[3, 4, 6, 9]"), "{error}");
    assert!(Review::new(&[], 6, &params.root()).is_err() && Review::new(&entries, 0, &params.root()).is_err());
}

#[test]
fn one_sample_uses_running_statistics_and_leaves_them_alone() {
    let params = Params::new(Seed::root(3), DType::F32, CPU);
    let entries = [(shape(4, 4, 4), shape(5, 4, 4)), (shape(6, 1, 1), shape(8, 1, 1))];
    let review = Review::new(&entries, 6, &params.root()).unwrap();
    let maps = |b: usize| [random("one.a", &[b, 4, 4, 4], DType::F32), random("one.b", &[b, 6, 1, 1], DType::F32)];
    let running = |block: usize| {
        let all = params.snapshot().unwrap();
        let of = |conv: &str| flat(&all[&format!("{block}.{conv}.1.running_mean")]);
        [of("conv1"), of("conv2")]
    };
    review.forward(&maps(5)).unwrap();
    let (deepest, upper) = (running(0), running(1));
    review.forward(&maps(1)).unwrap();
    assert_eq!(running(0), deepest);
    assert_ne!(running(1), upper);
}

#[test]
fn shapes_come_from_the_networks_and_the_weight_is_ramped() {
    let config = LossConfig::Reviewkd(ReviewkdConfig { max_mid_channels: 3, ..Default::default() });
    let (student, teacher) = networks(&config);
    let (params, _) = built(&config, &student, &teacher, None).unwrap();
    assert_eq!(params.snapshot().unwrap()["0.conv1.0.weight"].dims(), [3, 5, 1, 1]);
    assert_eq!(params.snapshot().unwrap()["3.conv2.0.weight"].dims(), [8, 3, 3, 3]);
    let config = parse(r#"{"method": "reviewkd", "warmup_epochs": 4, "weight": 2}"#);
    let mut bench = Bench::new(&config, 3, DType::F32);
    let mut weight = |epoch| {
        bench.epoch = epoch;
        bench.term().unwrap().weight
    };
    assert_eq!([weight(0), weight(1), weight(3), weight(9)], [0.5, 1.0, 2.0, 2.0]);
    assert_eq!(
        Bench::new(&parse(r#"{"method": "reviewkd", "warmup_epochs": 0}"#), 3, DType::F32).term().unwrap().weight,
        5.0
    );
}

#[test]
fn the_students_maps_may_be_those_before_the_activation() {
    let config = parse(r#"{"method": "reviewkd", "student_pre_activations": true}"#);
    assert!(!config.needs().taps.maps && config.needs().taps.pre_activations);
    let reached = |config: &LossConfig| {
        let mut bench = Bench::new(config, 3, DType::F32);
        let grads = bench.term().unwrap().value.backward().unwrap();
        let vars = bench.student.vars.iter().filter(|(_, var)| grads.get(var).is_some());
        vars.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(reached(&config), ["embedding", "pre1", "pre2", "pre3"]);
    assert_eq!(reached(&parse(r#"{"method": "reviewkd"}"#)), ["embedding", "map1", "map2", "map3"]);
}

#[test]
fn stages_left_over_are_left_out() {
    let config = parse(r#"{"method": "reviewkd", "align": "tail"}"#);
    let (student, teacher) = (spec("s", &[[3, 8], [4, 8], [6, 4]], 5), spec("t", &[[3, 8], [4, 8], [7, 8], [9, 4]], 9));
    let (params, loss) = built(&config, &student, &teacher, None).unwrap();
    assert_eq!(params.snapshot().unwrap()["2.conv2.0.weight"].dims(), [7, 5, 3, 3]);
    let (s, t) = (random_side(&student, 2, DType::F32).outputs, random_side(&teacher, 2, DType::F32).outputs);
    assert_eq!(term((params, loss), &s, &t, 0).parts.len(), 3);
    let exact = refusal(&parse(r#"{"method": "reviewkd"}"#), &student, &teacher, None);
    assert!(exact.contains("the student has 2 stages") && exact.contains("align"), "{exact}");
}
