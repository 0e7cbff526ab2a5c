//! Methods with a phase before the training: `ab`, `ft` and `fsp`.

use crate::fixture::{Bench, Side, flat, numbers, random, scalar, side, spec, train_labels};
use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;
use retort_losses::feature::{self, Connector, FactorEncoder, FactorNorm, Paraphraser};
use retort_losses::{BuildContext, Context, Distiller, LossConfig};
use retort_nn::{MapShape, Mode, NetworkSpec, Params, Seed};
use std::slice::from_ref;

const CPU: &Device = &Device::Cpu;

fn close(got: &Tensor, want: f64) {
    let got = scalar(got);
    assert!((got - want).abs() < 1e-12 * (1.0 + want.abs()), "{got} against {want}");
}

/// `[1, C, 1, W]` from rows of channels.
fn map(channels: &[&[f64]]) -> Tensor {
    let values: Vec<f64> = channels.concat();
    Tensor::from_vec(values, (1, channels.len(), 1, channels[0].len()), CPU).unwrap()
}

fn parse(json: &str) -> LossConfig {
    serde_json::from_str(json).unwrap()
}

fn params(dtype: DType) -> Params {
    Params::new(Seed::root(0), dtype, CPU)
}

/// A built loss with the parts of the training and of the phase before it.
fn build(
    config: &LossConfig,
    student: &NetworkSpec,
    teacher: &NetworkSpec,
) -> retort_losses::Result<(Box<dyn Distiller>, [Params; 2])> {
    let stores = [params(DType::F32), params(DType::F32)];
    let loss = config.build(&BuildContext {
        student,
        teacher: Some(teacher),
        train_labels: &train_labels(),
        seed: Seed::root(0),
        scope: stores[0].root(),
        init_scope: stores[1].root(),
        teacher_norms: None,
    })?;
    Ok((loss, stores))
}

fn build_error(config: &LossConfig, student: &NetworkSpec, teacher: &NetworkSpec) -> String {
    build(config, student, teacher).map(|_| ()).unwrap_err().to_string()
}

fn names(params: &Params) -> Vec<String> {
    params.trainable().into_iter().map(|(name, _)| name).collect()
}

/// The term of the phase before the training on one batch.
fn init_term(loss: &mut dyn Distiller, student: &Side, teacher: &Side) -> retort_losses::Result<retort_losses::Term> {
    let b = student.outputs.logits.dims()[0];
    let labels = Tensor::zeros(b, DType::U32, CPU).unwrap();
    let (label_ids, index) = (vec![0; b], vec![0; b]);
    let (student, teacher) = (&student.outputs, Some(&teacher.outputs));
    loss.init_term(&Context { student, teacher, labels: &labels, label_ids: &label_ids, index: &index, epoch: 0 })
}

fn outputs(spec: &NetworkSpec, b: usize) -> Side {
    let name = spec.name.clone();
    side(spec, b, DType::F32, |tensor, shape| numbers(&format!("{name}.{tensor}"), shape.iter().product()))
}

// Every method.

#[test]
fn the_phase_takes_its_length_and_rate_from_the_configuration() {
    let student = |name: &str| spec(name, &[[3, 8], [4, 8]], 4);
    for method in ["ab", "fsp", "ft"] {
        let phase = parse(&format!(r#"{{"method": "{method}"}}"#)).init_phase(&student("vgg8")).unwrap();
        assert_eq!((phase.epochs, phase.lr, phase.student), (30, None, method != "ft"), "{method}");
        let config = parse(&format!(r#"{{"method": "{method}", "init_epochs": 2, "init_lr": 0.3}}"#));
        let phase = config.init_phase(&student("resnet20")).unwrap();
        assert_eq!((phase.epochs, phase.lr), (2, Some(0.3)), "{method}");
    }
    let rate = |method: &str, name: &str| {
        parse(&format!(r#"{{"method": "{method}"}}"#)).init_phase(&student(name)).unwrap().lr
    };
    assert_eq!([rate("ft", "resnet8x4"), rate("ft", "wrn_16_2"), rate("ft", "vgg8")], [Some(0.01), Some(0.01), None]);
    assert_eq!([rate("ab", "resnet8x4"), rate("fsp", "wrn_16_2")], [None, None]);
    assert_eq!(parse(r#"{"method": "at"}"#).init_phase(&student("resnet20")), None);
}

#[test]
fn values_out_of_range_name_method_and_field() {
    let cases = [
        (r#"{"method": "ab", "margin": -1}"#, "ab: field `margin`: expected a finite number >= 0, found -1"),
        (
            r#"{"method": "ab", "init_epochs": 0}"#,
            "ab: field `init_epochs`: expected a whole number in 1 ..= 1048576, found 0",
        ),
        (r#"{"method": "fsp", "init_lr": 0}"#, "fsp: field `init_lr`: expected a finite number > 0, found 0"),
        (r#"{"method": "ft", "k": 0}"#, "ft: field `k`: expected a finite number > 0, found 0"),
        (r#"{"method": "ft", "k": 1.5}"#, "ft: field `k`: expected a number in 0 ..= 1, found 1.5"),
        (r#"{"method": "ft", "p1": 0.5}"#, "ft: field `p1`: expected a number in 1 ..= 16, found 0.5"),
        (r#"{"method": "ft", "p2": 17}"#, "ft: field `p2`: expected a number in 1 ..= 16, found 17"),
    ];
    for (json, expected) in cases {
        assert_eq!(parse(json).validate().unwrap_err().to_string(), expected);
    }
    assert!(serde_json::from_str::<LossConfig>(r#"{"method": "fsp", "margin": 1}"#).is_err());
}

#[test]
fn after_the_phase_ab_and_fsp_are_a_constant_zero() {
    for method in ["ab", "fsp"] {
        let mut bench = Bench::new(&parse(&format!(r#"{{"method": "{method}", "weight": 3}}"#)), 4, DType::F32);
        let term = bench.term().unwrap();
        assert_eq!((scalar(&term.value), term.weight, term.value.dtype()), (0.0, 3.0, DType::F32));
        assert!(!term.value.track_op());
        bench.init = true;
        let term = bench.term().unwrap();
        assert!(scalar(&term.value) > 0.0 && term.value.track_op());
        let sum: f64 = term.parts.iter().map(|(_, part)| scalar(part)).sum();
        assert!((sum - scalar(&term.value)).abs() < 1e-5 * sum);
    }
}

// ab

#[test]
fn an_element_costs_nothing_beyond_the_margin() {
    // Teacher positive: (x - 1)^2 up to 1. Otherwise, zero included: (x + 1)^2 from -1 on.
    let s = map(&[&[1.0, 0.999, 1.001, -2.0, -1.0, -0.5, -1.5, 3.0, 0.0]]);
    let t = map(&[&[0.1, 9.0, 0.1, 1.0, -4.0, -4.0, -0.1, 0.0, -0.0]]);
    let s = Var::from_tensor(&s).unwrap();
    let loss = feature::activation_boundaries(from_ref(&s), from_ref(&t), 1.0, &[2.0]).unwrap();
    close(&loss.total, 2.0 * (1e-6 + 9.0 + 0.25 + 16.0 + 1.0));
    let grads = loss.total.backward().unwrap();
    let want = [0.0, -0.004, 0.0, -12.0, 0.0, 2.0, 0.0, 16.0, 4.0];
    for (got, want) in flat(grads.get(&s).unwrap()).into_iter().zip(want) {
        assert!((got - want).abs() < 1e-12, "{got} against {want}");
    }
    // Margin 0: only the wrong side costs.
    let loss = feature::activation_boundaries(&[map(&[&[-1.0, 1.0]])], &[map(&[&[2.0, 2.0]])], 0.0, &[1.0]).unwrap();
    close(&loss.total, 1.0);
}

#[test]
fn later_stages_weigh_more_and_the_batch_is_averaged() {
    assert_eq!(feature::boundary_weights(3), [0.00075, 0.0015, 0.003]);
    assert!(feature::boundary_weights(0).is_empty());
    let ones = |b: usize| Tensor::ones((b, 2, 3, 3), DType::F64, CPU).unwrap();
    let minus = |b: usize| (ones(b) * -1.0).unwrap();
    for b in [1, 5] {
        // Every element costs (1 + 1)^2 = 4.
        let (student, teacher) = ([ones(b), ones(b)], [minus(b), minus(b)]);
        let weights = feature::boundary_weights(2);
        let loss = feature::activation_boundaries(&student, &teacher, 1.0, &weights).unwrap();
        close(&loss.stages[0], 18.0 * 4.0 * 0.0015);
        close(&loss.stages[1], 18.0 * 4.0 * 0.003);
        close(&loss.total, 18.0 * 4.0 * 0.0045);
    }
}

#[test]
fn connectors_exist_where_shapes_differ_and_end_without_a_relu() {
    let shape = |channels, size| MapShape { channels, height: size, width: size };
    let store = params(DType::F64);
    let same = Connector::new(shape(4, 8), shape(4, 8), &store.root()).unwrap();
    assert!(store.trainable().is_empty());
    let x = random("connector", &[3, 4, 8, 8], DType::F64);
    assert_eq!(flat(&same.forward(&x).unwrap()), flat(&x));
    for (to, kernel) in [(shape(4, 4), 3), (shape(4, 16), 4), (shape(7, 8), 1), (shape(4, 6), 3)] {
        let store = params(DType::F64);
        let y = Connector::new(shape(4, 8), to, &store.root()).unwrap().forward(&x).unwrap();
        assert_eq!(y.dims(), [3, to.channels, to.height, to.width]);
        assert!(flat(&y).iter().any(|&v| v < 0.0));
        assert_eq!(names(&store), ["bn.bias", "bn.weight", "conv.bias", "conv.weight"]);
        assert_eq!(store.trainable()[3].1.dims()[2..], [kernel, kernel]);
    }
    let message = Connector::new(shape(4, 5), shape(4, 8), &store.root()).err().unwrap().to_string();
    assert!(message.starts_with("ab: ") && message.contains("4x5x5") && message.contains("4x8x8"), "{message}");
    let single = Connector::new(shape(4, 2), shape(5, 1), &params(DType::F64).root()).unwrap();
    let message = single.forward(&Tensor::zeros((1, 4, 2, 2), DType::F64, CPU).unwrap()).unwrap_err().to_string();
    assert!(message.starts_with("ab: ") && message.contains("one value per channel"), "{message}");
}

#[test]
fn boundaries_pair_stages_as_asked_and_declare_the_parts_of_their_phase() {
    let student = spec("s", &[[3, 8], [4, 8], [6, 4]], 5);
    let teacher = spec("t", &[[3, 8], [4, 8], [6, 4], [9, 2]], 9);
    let message = build_error(&parse(r#"{"method": "ab"}"#), &student, &teacher);
    assert!(message.starts_with("ab: the student has 2 stages") && message.contains("align"), "{message}");
    let (_, [train, init]) = build(&parse(r#"{"method": "ab", "align": "head"}"#), &student, &teacher).unwrap();
    assert!(names(&train).is_empty() && names(&init).is_empty());
    let (mut loss, [train, init]) = build(&parse(r#"{"method": "ab", "align": "tail"}"#), &student, &teacher).unwrap();
    assert!(names(&train).is_empty());
    let parts: Vec<String> = ["bn.bias", "bn.weight", "conv.bias", "conv.weight"].map(String::from).to_vec();
    let all: Vec<String> =
        (0..2).flat_map(|i| parts.iter().map(move |part| format!("connectors.{i}.{part}"))).collect();
    assert_eq!(names(&init), all);
    let term = init_term(loss.as_mut(), &outputs(&student, 4), &outputs(&teacher, 4)).unwrap();
    assert!(scalar(&term.value) > 0.0 && term.parts.len() == 2);

    let blind = NetworkSpec { pre_activations: false, ..teacher.clone() };
    let message = build_error(&parse(r#"{"method": "ab", "align": "tail"}"#), &student, &blind);
    assert!(message.starts_with("ab: ") && message.contains("`t`") && message.contains("activation"), "{message}");
}

#[test]
fn boundaries_refuse_what_does_not_fit() {
    let (a, b) = (map(&[&[1.0, 2.0]]), map(&[&[1.0]]));
    let error = |s: &[Tensor], t: &[Tensor], margin, weights: &[f64]| {
        feature::activation_boundaries(s, t, margin, weights).unwrap_err().to_string()
    };
    let message = error(from_ref(&a), from_ref(&b), 1.0, &[1.0]);
    assert!(message.contains("ab: stage 0") && message.contains("[1, 1, 1, 2]") && message.contains("[1, 1, 1, 1]"));
    assert!(error(from_ref(&a), from_ref(&a), -1.0, &[1.0]).contains("`margin`"));
    assert!(error(from_ref(&a), from_ref(&a), 1.0, &[]).contains("one weight a stage"));
    assert!(error(from_ref(&a), from_ref(&a), 1.0, &[f64::NAN]).contains("`weights`"));
    assert!(error(&[], &[], 1.0, &[]).contains("ab: "));
}

// ft

#[test]
fn factors_by_hand() {
    let s = map(&[&[1.0, 2.0], &[1.0, 0.0]]);
    let t = map(&[&[3.0, 0.0], &[0.0, 4.0]]);
    let ft = |p1: f64, p2: f64, norm| feature::factor_transfer(&s, &t, [p1, p2], norm).unwrap();
    use FactorNorm::{ChannelMean, Full};
    // Mean squares (1, 2) and (4.5, 8) up to scale (9, 16).
    let (a, b) = (5f64.sqrt(), 337f64.sqrt());
    let d = [(1.0 / a - 9.0 / b).abs(), (2.0 / a - 16.0 / b).abs()];
    close(&ft(2.0, 1.0, ChannelMean), (d[0] + d[1]) / 2.0);
    close(&ft(2.0, 2.0, ChannelMean), (d[0].powi(2) + d[1].powi(2)) / 2.0);
    close(&ft(2.0, 3.0, ChannelMean), (d[0].powi(3) + d[1].powi(3)) / 2.0);
    // Means (1, 1) and (1.5, 2).
    let r = 2f64.sqrt();
    close(&ft(1.0, 1.0, ChannelMean), ((1.0 / r - 0.6).abs() + (1.0 / r - 0.8).abs()) / 2.0);
    // Whole factors (1, 2, 1, 0) / sqrt 6 and (3, 0, 0, 4) / 5.
    let r = 6f64.sqrt();
    let sum = (1.0 / r - 0.6).abs() + 2.0 / r + 1.0 / r + 0.8;
    close(&ft(2.0, 1.0, Full), sum / 4.0);
    // Odd powers keep the sign, even ones do not.
    let signs = |p1| {
        let (s, t) = (map(&[&[-1.0, 1.0]]), map(&[&[1.0, 1.0]]));
        scalar(&feature::factor_transfer(&s, &t, [p1, 1.0], ChannelMean).unwrap())
    };
    assert_eq!(signs(2.0), 0.0);
    assert!((signs(3.0) - 2f64.sqrt() / 2.0).abs() < 1e-12);
}

#[test]
fn equal_and_zero_factors_have_no_gradient() {
    let x = Var::from_tensor(&random("factor", &[3, 4, 5, 5], DType::F64)).unwrap();
    for norm in [FactorNorm::ChannelMean, FactorNorm::Full] {
        for p2 in [1.0, 1.5, 2.0] {
            let loss = feature::factor_transfer(&x, &x, [2.0, p2], norm).unwrap();
            assert_eq!(scalar(&loss), 0.0);
            let grads = loss.backward().unwrap();
            assert!(flat(grads.get(&x).unwrap()).iter().all(|g| *g == 0.0));
        }
        let zero = Var::zeros((3, 4, 5, 5), DType::F64, CPU).unwrap();
        let loss = feature::factor_transfer(&zero, &x, [2.0, 1.0], norm).unwrap();
        assert!(scalar(&loss) > 0.0);
        assert!(flat(loss.backward().unwrap().get(&zero).unwrap()).iter().all(|g| *g == 0.0));
    }
}

#[test]
fn the_larger_factor_is_pooled_first() {
    let large = Tensor::new(&[[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 4.0], [0.0, 4.0]]]], CPU).unwrap();
    let small = Tensor::new(&[[[[2.0]], [[1.0]]]], CPU).unwrap();
    // Means (4, 2): the same direction.
    for (s, t) in [(&large, &small), (&small, &large)] {
        let loss = feature::factor_transfer(s, t, [2.0, 1.0], FactorNorm::Full).unwrap();
        assert!(scalar(&loss) < 1e-15);
    }
}

#[test]
fn the_factor_has_its_share_of_the_channels() {
    assert_eq!(feature::factor_channels(8, 0.5).unwrap(), 4);
    assert_eq!(feature::factor_channels(5, 0.5).unwrap(), 2);
    assert_eq!(feature::factor_channels(7, 1.0).unwrap(), 7);
    let message = feature::factor_channels(3, 0.25).unwrap_err().to_string();
    assert!(message.starts_with("ft: field `k`") && message.contains("0.25") && message.contains('3'), "{message}");
    assert!(feature::factor_channels(3, f64::NAN).is_err());
    let (student, teacher) = (spec("s", &[[3, 8], [4, 8]], 4), spec("t", &[[3, 8], [6, 8]], 6));
    let message = build_error(&parse(r#"{"method": "ft", "k": 0.1}"#), &student, &teacher);
    assert!(message.contains("`k`"), "{message}");
    let (_, [train, init]) = build(&parse(r#"{"method": "ft", "k": 0.7}"#), &student, &teacher).unwrap();
    let shape = |params: &Params, name: &str| {
        params.trainable().into_iter().find(|(n, _)| n == name).unwrap().1.dims().to_vec()
    };
    assert_eq!(shape(&train, "translator.encoder.0.weight"), [4, 4, 3, 3]);
    assert_eq!(shape(&train, "translator.encoder.3.weight"), [4, 4, 3, 3]);
    assert_eq!(shape(&train, "translator.encoder.7.weight"), [4]);
    assert_eq!(shape(&init, "paraphraser.encoder.3.weight"), [4, 6, 3, 3]);
    assert_eq!(shape(&init, "paraphraser.decoder.3.weight"), [4, 6, 3, 3]);
    assert!(!names(&init).iter().any(|name| name.contains("encoder.1.")), "the paraphraser has no batch norm");
}

#[test]
fn the_frozen_paraphraser_is_no_part_of_the_graph() {
    let store = params(DType::F32);
    let paraphraser = Paraphraser::new(6, 3, 0.1, false, &store.root()).unwrap();
    let teacher = Var::from_tensor(&random("teacher", &[4, 6, 5, 5], DType::F32)).unwrap();
    let frozen = paraphraser.factor(&teacher).unwrap();
    assert!(!frozen.track_op());
    let trained = paraphraser.paraphrase(&teacher).unwrap();
    assert_eq!(flat(&frozen), flat(&trained.factor));
    let grads = trained.loss.backward().unwrap();
    assert!(grads.get(&teacher).is_none());
    assert!(store.trainable().iter().all(|(_, var)| grads.get(var).is_some()));

    let mut bench = Bench::new(&parse(r#"{"method": "ft"}"#), 4, DType::F32);
    let grads = bench.term().unwrap().value.backward().unwrap();
    assert!(bench.built.init_params.trainable().iter().all(|(_, var)| grads.get(var).is_none()));
    bench.init = true;
    let term = bench.term().unwrap();
    assert_eq!(term.weight, 1.0);
    let grads = term.value.backward().unwrap();
    assert!(bench.built.params.trainable().iter().all(|(_, var)| grads.get(var).is_none()));
}

#[test]
fn the_options_of_factor_transfer_reach_the_term() {
    let value = |fields: &str| {
        let config = parse(&format!(r#"{{"method": "ft"{fields}}}"#));
        scalar(&Bench::new(&config, 4, DType::F64).term().unwrap().value)
    };
    let variants = ["", r#", "p1": 4"#, r#", "p2": 2"#, r#", "k": 0.9"#, r#", "factor_norm": "full""#];
    let values = variants.map(value);
    for (i, a) in values.iter().enumerate() {
        assert!(a.is_finite() && values[..i].iter().all(|b| (a - b).abs() > 1e-6), "{values:?}");
    }
    assert_eq!(value(r#", "factor_norm": "channel-mean""#), values[0]);
}

#[test]
fn factor_transfer_refuses_what_does_not_fit() {
    let (two, three) = (map(&[&[1.0], &[2.0]]), map(&[&[1.0], &[2.0], &[3.0]]));
    assert!(feature::factor_transfer(&two, &three, [2.0, 1.0], FactorNorm::ChannelMean).is_ok());
    let message = feature::factor_transfer(&two, &three, [2.0, 1.0], FactorNorm::Full).unwrap_err().to_string();
    assert!(message.contains("ft: ") && message.contains("[1, 2, 1, 1]") && message.contains("[1, 3, 1, 1]"));
    assert!(feature::factor_transfer(&two, &two, [2.0, 0.0], FactorNorm::Full).is_err());
    let wide = map(&[&[1.0, 2.0]]);
    let message = feature::factor_transfer(&wide, &two, [2.0, 1.0], FactorNorm::Full).unwrap_err().to_string();
    assert!(message.contains("one width"), "{message}");
    let store = params(DType::F64);
    let translator = FactorEncoder::new(2, 1, 0.1, true, &store.root()).unwrap();
    let message = translator.forward(&two, Mode::Train).unwrap_err().to_string();
    assert!(message.starts_with("ft: ") && message.contains("one value per channel"), "{message}");
    assert!(translator.forward(&two, Mode::Eval).is_ok());
    assert!(FactorEncoder::new(2, 1, -0.1, true, &params(DType::F64).root()).is_err());
}

// fsp

#[test]
fn flow_by_hand() {
    // Bottom (1, 2), (0, 4) and top (1, 1), (2, -2), (3, 0).
    let bottom = map(&[&[1.0, 2.0], &[0.0, 4.0]]);
    let top = map(&[&[1.0, 1.0], &[2.0, -2.0], &[3.0, 0.0]]);
    let g = feature::flow_matrix(&bottom, &top).unwrap();
    assert_eq!(g.dims(), [1, 3, 2]);
    assert_eq!(flat(&g), [1.5, 2.0, -1.0, -4.0, 1.5, 0.0]);
    // Against a teacher of zeros, and in the second pair with itself.
    let zeros = [bottom.zeros_like().unwrap(), top.zeros_like().unwrap(), bottom.zeros_like().unwrap()];
    let loss = feature::flow(&[bottom.clone(), top.clone(), bottom.clone()], &zeros).unwrap();
    let want = (2.25 + 4.0 + 1.0 + 16.0 + 2.25) / 6.0;
    close(&loss.stages[0], want);
    close(&loss.stages[1], want);
    close(&loss.total, 2.0 * want);
}

#[test]
fn the_larger_map_of_a_pair_is_pooled() {
    let large = Tensor::new(&[[[[1.0, 3.0], [5.0, 7.0]]]], CPU).unwrap();
    let small = Tensor::new(&[[[[2.0]], [[-1.0]]]], CPU).unwrap();
    assert_eq!(flat(&feature::flow_matrix(&large, &small).unwrap()), [8.0, -4.0]);
    assert_eq!(flat(&feature::flow_matrix(&small, &large).unwrap()), [8.0, -4.0]);
    // Sizes of student and teacher may differ.
    let maps = |size: usize| [random("a", &[2, 3, size, size], DType::F64), random("b", &[2, 4, 4, 4], DType::F64)];
    let loss = feature::flow(&maps(8), &maps(6)).unwrap();
    assert!(scalar(&loss.total) > 0.0);
}

#[test]
fn equal_flows_have_neither_loss_nor_gradient() {
    let maps: Vec<Var> = [[4, 8], [6, 8], [5, 4]]
        .iter()
        .map(|&[c, n]| Var::from_tensor(&random(&format!("flow{c}"), &[3, c, n, n], DType::F32)).unwrap())
        .collect();
    let student: Vec<Tensor> = maps.iter().map(|m| m.as_tensor().clone()).collect();
    let loss = feature::flow(&student, &student).unwrap();
    assert_eq!(scalar(&loss.total), 0.0);
    let grads = loss.total.backward().unwrap();
    assert!(maps.iter().all(|m| flat(grads.get(m).unwrap()).iter().all(|g| *g == 0.0)));
}

#[test]
fn flow_needs_equal_channels() {
    let student = spec("s", &[[3, 8], [4, 8], [6, 4]], 5);
    let config = parse(r#"{"method": "fsp"}"#);
    for maps in [&[[3, 8], [4, 8], [7, 4]][..], &[[5, 8], [4, 8], [6, 4]], &[[3, 8], [4, 8]]] {
        let message = build_error(&config, &student, &spec("t", maps, 7));
        let teacher: Vec<String> = maps.iter().map(|[c, n]| format!("{c}x{n}x{n}")).collect();
        assert!(message.starts_with("fsp: ") && message.contains("[3x8x8, 4x8x8, 6x4x4]"), "{message}");
        assert!(message.contains(&format!("[{}]", teacher.join(", "))), "{message}");
    }
    let (mut loss, [train, init]) = build(&config, &student, &spec("t", &[[3, 4], [4, 8], [6, 8]], 7)).unwrap();
    assert!(names(&train).is_empty() && names(&init).is_empty());
    let teacher = outputs(&spec("t", &[[3, 4], [4, 8], [6, 8]], 7), 4);
    let term = init_term(loss.as_mut(), &outputs(&student, 4), &teacher).unwrap();
    let parts: Vec<&str> = term.parts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(parts, ["pair0", "pair1"]);

    let (a, b) = (map(&[&[1.0, 2.0]]), map(&[&[1.0, 2.0], &[3.0, 4.0]]));
    let message = feature::flow(&[a.clone(), a.clone()], &[a.clone(), b.clone()]).unwrap_err().to_string();
    assert!(message.contains("fsp: stage 1") && message.contains("[1, 1, 1, 2]") && message.contains("[1, 2, 1, 2]"));
    assert!(feature::flow(from_ref(&a), from_ref(&b)).unwrap_err().to_string().contains("at least two"));
    let wide = map(&[&[1.0, 2.0, 3.0]]);
    let message = feature::flow_matrix(&a, &wide).unwrap_err().to_string();
    assert!(message.contains("one width") && message.contains("[1, 1, 1, 3]"), "{message}");
    assert!(feature::flow_matrix(&a, &Tensor::new(1.0, CPU).unwrap()).is_err());
}

// Invariances.

fn tensor(values: &[f64], shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_vec(values[..n].to_vec(), shape, CPU).unwrap()
}

fn values() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-3.0..3.0f64, 96)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn boundaries_see_only_the_teachers_sign(s in values(), t in values(), scale in 0.01..100.0f64) {
        let (s, t) = (tensor(&s, &[3, 2, 4, 4]), tensor(&t, &[3, 2, 4, 4]));
        let loss = |s: &Tensor, t: &Tensor, m: f64| {
            scalar(&feature::activation_boundaries(from_ref(s), from_ref(t), m, &[1.0]).unwrap().total)
        };
        let plain = loss(&s, &t, 1.0);
        prop_assert_eq!(plain, loss(&s, &(&t * scale).unwrap(), 1.0));
        // Student and margin scale together.
        let scaled = loss(&(&s * scale).unwrap(), &t, scale);
        prop_assert!((scaled - scale * scale * plain).abs() <= 1e-12 * (1.0 + scaled));
        // Both signs turned round: no value is exactly 0 here.
        let turned = loss(&(&s * -1.0).unwrap(), &(&t * -1.0).unwrap(), 1.0);
        prop_assert!((turned - plain).abs() <= 1e-12 * (1.0 + plain));
    }

    #[test]
    fn factors_ignore_scale(s in values(), t in values(), scale in 0.01..100.0f64, p1 in 1.0..4.0f64) {
        let (s, t) = (tensor(&s, &[3, 2, 4, 4]), tensor(&t, &[3, 2, 4, 4]));
        let scaled = (&s * scale).unwrap();
        for norm in [FactorNorm::ChannelMean, FactorNorm::Full] {
            let loss = |s: &Tensor| scalar(&feature::factor_transfer(s, &t, [p1, 1.0], norm).unwrap());
            prop_assert!((loss(&s) - loss(&scaled)).abs() < 1e-12);
        }
    }

    #[test]
    fn flow_ignores_the_order_of_positions_and_a_common_sign(s in values(), t in values(), by in 1usize..15) {
        let maps = |x: &[f64]| [tensor(x, &[2, 2, 4, 4]), tensor(&x[30..], &[2, 2, 4, 4])];
        let (s, t) = (maps(&s), maps(&t));
        let order: Vec<u32> = (0..16).map(|i| ((i * 5 + by) % 16) as u32).collect();
        let order = Tensor::new(order, CPU).unwrap();
        let moved = s.clone().map(|m| {
            m.reshape((2, 2, 16)).unwrap().index_select(&order, 2).unwrap().reshape((2, 2, 4, 4)).unwrap()
        });
        let plain = scalar(&feature::flow(&s, &t).unwrap().total);
        prop_assert!((plain - scalar(&feature::flow(&moved, &t).unwrap().total)).abs() < 1e-12 * (1.0 + plain));
        let turned = s.clone().map(|m| m.neg().unwrap());
        prop_assert!((plain - scalar(&feature::flow(&turned, &t).unwrap().total)).abs() < 1e-12 * (1.0 + plain));
    }
}
