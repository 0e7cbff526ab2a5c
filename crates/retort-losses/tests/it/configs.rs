//! What a wrong configuration is answered with.

use crate::fixture::{numbers, side, spec, train_labels};
use candle_core::{DType, Device};
use retort_losses::{BuildContext, Context, LossConfig, feature};
use retort_nn::{NetworkSpec, Params, Seed};

fn parse(json: &str) -> LossConfig {
    serde_json::from_str(json).unwrap()
}

fn build_error(config: &LossConfig, student: &NetworkSpec, teacher: &NetworkSpec) -> String {
    let params = Params::new(Seed::root(0), DType::F32, &Device::Cpu);
    let train_labels = train_labels();
    let ctx = BuildContext {
        student,
        teacher: Some(teacher),
        train_labels: &train_labels,
        seed: Seed::root(0),
        scope: params.root(),
        init_scope: params.root().child("init"),
        teacher_norms: None,
    };
    match config.build(&ctx) {
        Ok(_) => panic!("{config:?} was built"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn unknown_fields_and_methods_list_the_known_ones() {
    let message = serde_json::from_str::<LossConfig>(r#"{"method": "kd", "temprature": 4}"#).unwrap_err().to_string();
    assert!(message.contains("`temprature`") && message.contains("`temperature`"), "{message}");
    let message = serde_json::from_str::<LossConfig>(r#"{"method": "kdd"}"#).unwrap_err().to_string();
    assert!(message.contains("`kdd`") && message.contains("`kd`") && message.contains("`fitnet`"), "{message}");
}

#[test]
fn values_out_of_range_name_method_and_field() {
    let cases = [
        (
            r#"{"method": "kd", "temperature": -4}"#,
            "kd: field `temperature`: expected a number in 0.001 ..= 1000, found -4",
        ),
        (
            r#"{"method": "kd", "temperature": 0}"#,
            "kd: field `temperature`: expected a number in 0.001 ..= 1000, found 0",
        ),
        (r#"{"method": "ce", "weight": -1}"#, "ce: field `weight`: expected a finite number > 0, found -1"),
        (r#"{"method": "dkd", "beta": -8}"#, "dkd: field `beta`: expected a finite number >= 0, found -8"),
        (
            r#"{"method": "label-smoothing", "smoothing": 1.5}"#,
            "label-smoothing: field `smoothing`: expected a number in 0 ..= 1, found 1.5",
        ),
        (r#"{"method": "at", "p": 0.5}"#, "at: field `p`: expected a number in 1 ..= 16, found 0.5"),
        (
            r#"{"method": "vid", "init_var": 1e-6}"#,
            "vid: field `init_var`: expected a finite number above `min_var` = 0.00001, found 0.000001",
        ),
        (r#"{"method": "vid", "min_var": 0}"#, "vid: field `min_var`: expected a finite number > 0, found 0"),
        (r#"{"method": "rkd", "angle": -1}"#, "rkd: field `angle`: expected a finite number >= 0, found -1"),
        (r#"{"method": "cc", "dim": 0}"#, "cc: field `dim`: expected a whole number in 1 ..= 65536, found 0"),
        (
            r#"{"method": "crd", "negatives": 0}"#,
            "crd: field `negatives`: expected a whole number in 1 ..= 1048576, found 0",
        ),
        (r#"{"method": "crd", "momentum": 1.1}"#, "crd: field `momentum`: expected a number in 0 ..= 1, found 1.1"),
    ];
    for (json, expected) in cases {
        assert_eq!(parse(json).validate().unwrap_err().to_string(), expected);
    }
    let infinite = retort_losses::output::KdConfig { temperature: f64::INFINITY, ..Default::default() };
    assert!(LossConfig::Kd(infinite).validate().is_err());
}

#[test]
fn stages_are_paired_only_as_asked() {
    let student = spec("s", &[[3, 8], [4, 8], [6, 4]], 5);
    let teacher = spec("t", &[[3, 8], [8, 8], [7, 4], [9, 2]], 9);
    for method in ["at", "nst", "vid", "pkd"] {
        let message = build_error(&parse(&format!(r#"{{"method": "{method}"}}"#)), &student, &teacher);
        assert!(message.starts_with(&format!("{method}: the student has 2 stages")), "{message}");
        assert!(message.contains("4x8x8") && message.contains("9x2x2") && message.contains("align"), "{message}");
    }
    let make = |spec: &NetworkSpec| side(spec, 3, DType::F32, |n, s| numbers(n, s.iter().product()));
    let (s, t) = (make(&student), make(&teacher));
    let value = |align: &str| {
        let params = Params::new(Seed::root(0), DType::F32, &Device::Cpu);
        let (train_labels, scope) = (train_labels(), params.root());
        let (student, teacher) = (&student, Some(&teacher));
        let (seed, init_scope) = (Seed::root(0), scope.child("init"));
        let train_labels = &train_labels;
        let ctx = BuildContext { student, teacher, train_labels, seed, scope, init_scope, teacher_norms: None };
        let mut loss = parse(&format!(r#"{{"method": "at", "align": "{align}"}}"#)).build(&ctx).unwrap();
        let labels = candle_core::Tensor::zeros(3, DType::U32, &Device::Cpu).unwrap();
        let (student, teacher) = (&s.outputs, Some(&t.outputs));
        let ctx = Context { student, teacher, labels: &labels, label_ids: &[0; 3], index: &[0, 1, 2], epoch: 0 };
        crate::fixture::scalar(&loss.term(&ctx).unwrap().value)
    };
    let by_hand = |first: usize| {
        let (s, t) = (&s.outputs.maps[1..], &t.outputs.maps[first..first + 2]);
        crate::fixture::scalar(&feature::attention_transfer(s, t, 2.0).unwrap().total)
    };
    assert_eq!(value("head"), by_hand(1));
    assert_eq!(value("tail"), by_hand(2));
    assert_ne!(value("head"), value("tail"));
}

#[test]
fn networks_that_a_method_cannot_pair_are_refused() {
    let student = spec("s", &[[3, 8], [4, 8], [6, 4]], 5);
    let channels = build_error(&parse(r#"{"method": "pkd"}"#), &student, &spec("t", &[[3, 8], [4, 8], [7, 4]], 9));
    assert!(channels.contains("stage 1") && channels.contains("6x4x4") && channels.contains("7x4x4"), "{channels}");
    let small = spec("t", &[[3, 8], [4, 8], [7, 7]], 9);
    let size = build_error(&parse(r#"{"method": "fitnet"}"#), &student, &small);
    assert!(size.contains("6x4x4") && size.contains("7x7x7"), "{size}");
    let deep = build_error(&parse(r#"{"method": "fitnet", "map": 5}"#), &student, &small);
    assert!(deep.contains("`s`") && deep.contains("map 5"), "{deep}");
    let mut other = small;
    other.classes = 7;
    let classes = build_error(&parse(r#"{"method": "kd"}"#), &student, &other);
    assert!(classes.contains('4') && classes.contains('7'), "{classes}");
}

#[test]
fn dkd_warms_up_linearly() {
    let config = parse(r#"{"method": "dkd", "warmup_epochs": 4, "weight": 2}"#);
    let mut bench = crate::fixture::Bench::new(&config, 3, DType::F32);
    let mut weight = |epoch| {
        bench.epoch = epoch;
        bench.term().unwrap().weight
    };
    assert_eq!([weight(0), weight(1), weight(3), weight(9)], [0.5, 1.0, 2.0, 2.0]);
}

#[test]
fn the_regressor_ends_in_a_relu_only_if_asked() {
    let config = |relu| parse(&format!(r#"{{"method": "fitnet", "regressor_relu": {relu}}}"#));
    let value =
        |relu| crate::fixture::scalar(&crate::fixture::Bench::new(&config(relu), 4, DType::F32).term().unwrap().value);
    assert_ne!(value(true), value(false));
}
