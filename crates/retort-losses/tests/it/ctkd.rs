//! Learned temperatures: values at a fixed one, gradients of it, the curriculum.

use crate::fixture::{Bench, flat, random, scalar};
use candle_core::{DType, Device, Tensor, Var};
use retort_losses::output::{Curriculum, CurriculumKind, ctkd, ctkd_dkd, ctkd_instance, dkd, kd, learned_temperature};
use retort_losses::{LossConfig, Result, stop_grad_scale};
use retort_nn::{Optimizer, OptimizerConfig, ParamGroup};

const CPU: &Device = &Device::Cpu;

fn parse(json: &str) -> LossConfig {
    serde_json::from_str(json).unwrap()
}

fn logits(label: &str, b: usize, c: usize) -> Tensor {
    (random(label, &[b, c], DType::F64) * 4.0).unwrap()
}

fn labels() -> Tensor {
    Tensor::new(&[0u32, 4, 2, 2, 1], CPU).unwrap()
}

fn temperature(t: f64) -> Tensor {
    Tensor::new(&[t], CPU).unwrap()
}

fn close(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} against {b}");
}

/// Checks the gradients of `f` at `inputs` by central differences.
fn check_gradient(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let grads = f(&tensors).unwrap().backward().unwrap();
    for (k, var) in vars.iter().enumerate() {
        let (grad, values) = (flat(grads.get(var).unwrap()), flat(&inputs[k]));
        for i in 0..values.len() {
            let at = |h: f64| {
                let mut moved = inputs.to_vec();
                let mut entries = values.clone();
                entries[i] += h;
                moved[k] = Tensor::from_vec(entries, inputs[k].shape(), CPU).unwrap();
                scalar(&f(&moved).unwrap())
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((grad[i] - slope).abs() < 1e-7 + 1e-6 * slope.abs(), "{k}[{i}]: {} {slope}", grad[i]);
        }
    }
}

#[test]
fn at_a_fixed_temperature_they_are_kd_and_dkd() {
    let (s, t) = (logits("s", 5, 6), logits("t", 5, 6));
    for fixed in [0.5, 1.0, 4.0, 15.6, 900.0] {
        let plain = scalar(&kd(&s, &t, fixed).unwrap());
        close(scalar(&ctkd(&s, &t, &temperature(fixed)).unwrap()), plain, 1e-11);
        close(scalar(&ctkd(&s, &t, &Tensor::new(fixed, CPU).unwrap()).unwrap()), plain, 1e-11);
        let each = Tensor::full(fixed, 5, CPU).unwrap();
        close(scalar(&ctkd_instance(&s, &t, &each, 0.0).unwrap()), plain, 1e-11);
        let parts = dkd(&s, &t, &labels(), fixed).unwrap();
        let learned = ctkd_dkd(&s, &t, &labels(), &temperature(fixed)).unwrap();
        close(scalar(&learned.tckd), scalar(&parts.tckd), 1e-10);
        close(scalar(&learned.nckd), scalar(&parts.nckd), 1e-10);
    }
}

#[test]
fn a_shifted_teacher_by_hand() {
    // Teacher 1/4, 3/4 and 1/2, 1/2 at temperatures 2 and 1; student even.
    let t = Tensor::new(&[[0.0, 2.0 * 3f64.ln()], [5.0, 5.0]], CPU).unwrap();
    let s = Tensor::zeros((2, 2), DType::F64, CPU).unwrap();
    let term = |q: f64| q * (2.0 * q).ln();
    let want = 4.0 * (term(0.35) + term(0.85)) + 2.0 * term(0.6);
    let got = ctkd_instance(&s, &t, &Tensor::new(&[2.0, 1.0], CPU).unwrap(), 0.1).unwrap();
    close(scalar(&got), want / 2.0, 1e-14);
}

#[test]
fn gradients_reach_student_and_temperature() {
    let (s, t) = (logits("s", 5, 6), logits("t", 5, 6));
    let each = Tensor::new(&[1.5, 3.0, 0.8, 20.0, 6.0], CPU).unwrap();
    check_gradient(&[s.clone(), temperature(3.0)], |x| ctkd(&x[0], &t, &x[1]));
    check_gradient(&[s.clone(), temperature(3.0)], |x| ctkd_dkd(&x[0], &t, &labels(), &x[1])?.combine(1.0, 2.0));
    for eps in [0.0, 1e-7, 0.05] {
        check_gradient(&[s.clone(), each.clone()], |x| ctkd_instance(&x[0], &t, &x[1], eps));
    }
    check_gradient(&[Tensor::new(&[0.3, -2.0, 5.0], CPU).unwrap()], |x| {
        Ok(learned_temperature(&x[0], 1.0, 20.0, 1.0)?.sqr()?.sum_all()?)
    });
}

#[test]
fn the_teacher_gets_no_gradient() {
    let (s, t) = (logits("s", 5, 6), Var::from_tensor(&logits("t", 5, 6)).unwrap());
    let learned = Var::from_tensor(&temperature(3.0)).unwrap();
    let each = learned.as_tensor().broadcast_as(5).unwrap();
    let parts = ctkd_dkd(&s, &t, &labels(), &learned).unwrap();
    for loss in
        [ctkd(&s, &t, &learned).unwrap(), ctkd_instance(&s, &t, &each, 1e-7).unwrap(), parts.combine(1.0, 2.0).unwrap()]
    {
        let grads = loss.backward().unwrap();
        assert!(grads.get(&t).is_none() && grads.get(&learned).is_some());
    }
}

#[test]
fn the_coefficient_multiplies_the_gradient_alone() {
    let (s, t) = (logits("s", 5, 6), logits("t", 5, 6));
    let theta = Var::from_tensor(&temperature(0.7)).unwrap();
    let of = |lambda: f64| {
        let learned = learned_temperature(&theta, 1.0, 20.0, lambda).unwrap();
        let loss = ctkd(&s, &t, &learned).unwrap();
        (scalar(&loss), flat(loss.backward().unwrap().get(&theta).unwrap())[0])
    };
    let (value, slope) = of(1.0);
    assert!(slope != 0.0);
    for lambda in [-1.0, -0.5, 0.0, 2.0] {
        let (same, scaled) = of(lambda);
        assert_eq!(same, value);
        close(scaled, lambda * slope, 1e-14);
    }
    let x = Var::new(&[1e30f32, -3.0], CPU).unwrap();
    let y = stop_grad_scale(&x, 0.25).unwrap();
    assert_eq!(flat(&y), flat(&x));
    assert_eq!(flat(y.backward().unwrap().get(&x).unwrap()), [0.25, 0.25]);
}

#[test]
fn single_precision_keeps_the_gradient_of_theta() {
    // A difference of nearly equal sums: in f32 arithmetic two to four digits would be left.
    for (scale, c) in [(0.1, 4), (4.0, 100), (80.0, 10)] {
        let wide = |label: &str| (random(label, &[16, c], DType::F64) * scale).unwrap();
        let labels = Tensor::zeros(16, DType::U32, CPU).unwrap();
        let (s, t) = (wide("s"), wide("t"));
        let slope = |dtype: DType, decoupled: bool| {
            let [s, t] = [&s, &t].map(|x| x.to_dtype(DType::F32).unwrap().to_dtype(dtype).unwrap());
            let theta = Var::from_tensor(&temperature(1.0).to_dtype(dtype).unwrap()).unwrap();
            let learned = learned_temperature(&theta, 1.0, 20.0, -1.0).unwrap();
            let loss = match decoupled {
                true => ctkd_dkd(&s, &t, &labels, &learned).unwrap().combine(1.0, 2.0).unwrap(),
                false => ctkd(&s, &t, &learned).unwrap(),
            };
            flat(loss.backward().unwrap().get(&theta).unwrap())[0]
        };
        for decoupled in [false, true] {
            let (single, double) = (slope(DType::F32, decoupled), slope(DType::F64, decoupled));
            assert!((single - double).abs() < 3e-6 * double.abs().max(1e-2), "{scale}: {single} {double}");
        }
    }
}

#[test]
fn shifts_of_logits_change_nothing_and_rows_have_no_order() {
    let (s, t) = (logits("s", 5, 6), logits("t", 5, 6));
    let each = Tensor::new(&[1.5, 3.0, 0.8, 20.0, 6.0], CPU).unwrap();
    let values = |s: &Tensor, t: &Tensor, labels: &Tensor, each: &Tensor| {
        let parts = ctkd_dkd(s, t, labels, &temperature(3.0)).unwrap();
        let single = ctkd(s, t, &temperature(3.0)).unwrap();
        [single, parts.tckd, parts.nckd, ctkd_instance(s, t, each, 1e-7).unwrap()].map(|x| scalar(&x))
    };
    let plain = values(&s, &t, &labels(), &each);
    let moved = values(&(&s + 40.0).unwrap(), &(&t - 7.0).unwrap(), &labels(), &each);
    let order = Tensor::new(&[3u32, 0, 4, 1, 2], CPU).unwrap();
    let [ps, pt, pl, pe] = [&s, &t, &labels(), &each].map(|x| x.index_select(&order, 0).unwrap());
    let permuted = values(&ps, &pt, &pl, &pe);
    for i in 0..4 {
        close(moved[i], plain[i], 1e-11);
        close(permuted[i], plain[i], 1e-12);
        assert!(plain[i] > 0.0);
    }
}

#[test]
fn equal_networks_differ_in_nothing() {
    let s = Var::from_tensor(&logits("s", 5, 6)).unwrap();
    let learned = Var::from_tensor(&temperature(3.0)).unwrap();
    let parts = ctkd_dkd(&s, &s, &labels(), &learned).unwrap();
    let each = learned.as_tensor().broadcast_as(5).unwrap();
    for loss in [ctkd(&s, &s, &learned).unwrap(), parts.tckd, parts.nckd, ctkd_instance(&s, &s, &each, 0.0).unwrap()] {
        assert_eq!(scalar(&loss), 0.0);
        let grads = loss.backward().unwrap();
        assert!(
            flat(grads.get(&s).unwrap()).iter().chain(&flat(grads.get(&learned).unwrap())).all(|g| g.abs() < 1e-15)
        );
    }
}

#[test]
fn two_classes_and_saturated_logits() {
    let s = Var::new(&[[0.3f64, -0.2]], CPU).unwrap();
    let t = Tensor::new(&[[1.0, 2.0]], CPU).unwrap();
    let label = Tensor::new(&[0u32], CPU).unwrap();
    let loss = ctkd_dkd(&s, &t, &label, &temperature(4.0)).unwrap();
    assert_eq!(scalar(&loss.nckd), 0.0);
    assert!(loss.nckd.backward().unwrap().get(&s).is_none_or(|g| flat(g) == [0.0, 0.0]));
    let one = Tensor::new(&[[1.0]], CPU).unwrap();
    let message = ctkd_dkd(&one, &one, &label, &temperature(4.0)).unwrap_err().to_string();
    assert!(message.starts_with("ctkd: ") && message.contains("two classes"), "{message}");
    for scale in [80.0, 1e4] {
        let wide = |label: &str| (random(label, &[5, 6], DType::F32).sign().unwrap() * scale).unwrap();
        let (s, t) = (Var::from_tensor(&wide("s")).unwrap(), wide("t"));
        let learned = Var::new(&[1f32], CPU).unwrap();
        let parts = ctkd_dkd(&s, &t, &labels(), &learned).unwrap();
        let each = learned.as_tensor().broadcast_as(5).unwrap();
        for loss in
            [ctkd(&s, &t, &learned).unwrap(), parts.tckd, parts.nckd, ctkd_instance(&s, &t, &each, 1e-7).unwrap()]
        {
            assert!(scalar(&loss).is_finite());
            let grads = loss.backward().unwrap();
            let all = [flat(grads.get(&s).unwrap()), flat(grads.get(&learned).unwrap())].concat();
            assert!(all.iter().all(|g| g.is_finite()));
        }
    }
}

#[test]
fn the_curriculum_goes_from_easy_to_hard() {
    let cosine = Curriculum::default();
    for (epoch, want) in [(0, 0.0), (1, -0.024_471_741_85), (5, -0.5), (9, -0.975_528_258_15), (10, -1.0), (11, -1.0)] {
        assert!((cosine.factor(epoch) - want).abs() < 1e-10, "{epoch}");
    }
    // The reference's line ends one step early.
    let linear = Curriculum { kind: CurriculumKind::Linear, ..Curriculum::default() };
    for (epoch, want) in [(0, 0.0), (1, -0.1), (9, -0.9), (10, -0.9), (1000, -0.9)] {
        assert!((linear.factor(epoch) - want).abs() < 1e-12, "{epoch}");
    }
    let other = Curriculum { min: -3.0, max: 1.0, epochs: 4, ..Curriculum::default() };
    assert_eq!(
        [other.factor(0), other.factor(2), other.factor(4)].map(|x| (x * 1e12).round() / 1e12),
        [1.0, -1.0, -3.0]
    );
    // One that nobody can configure.
    for kind in [CurriculumKind::Cosine, CurriculumKind::Linear] {
        assert!(Curriculum { kind, epochs: 0, ..Curriculum::default() }.factor(usize::MAX).is_finite());
    }
}

/// Value and temperature of steps in which the optimiser moves theta alone.
fn steps(json: &str, epoch: usize, count: usize) -> Vec<[f64; 3]> {
    let mut bench = Bench { epoch, ..Bench::new(&parse(json), 6, DType::F64) };
    let sgd = OptimizerConfig::Sgd { momentum: 0.0, nesterov: false, dampening: 0.0, weight_decay: 0.0 };
    let mut optimizer = Optimizer::new(sgd, vec![ParamGroup::new(bench.parts())]).unwrap();
    let mut step = || {
        let term = bench.term().unwrap();
        optimizer.step(&term.value.backward().unwrap(), 0.5).unwrap();
        let part = |name: &str| scalar(&term.parts.iter().find(|(part, _)| part == name).unwrap().1);
        [scalar(&term.value), part("temperature"), part("theta")]
    };
    (0..count).map(|_| step()).collect()
}

#[test]
fn the_temperature_is_learned_against_the_student() {
    let found = steps(r#"{"method": "ctkd"}"#, 20, 6);
    assert_eq!(found[0][2], 1.0);
    close(found[0][1], 1.0 + 20.0 / (1.0 + (-1f64).exp()), 1e-14);
    assert!(found.windows(2).all(|w| w[1][0] > w[0][0] && w[1][2] != w[0][2]), "{found:?}");
    // The log shows the numbers of the step, not those after it.
    let small = steps(r#"{"method": "ctkd"}"#, 0, 2);
    let (slow, fast) = (small[1][2] - 1.0, found[1][2] - 1.0);
    close(slow / fast, -Curriculum::default().factor(1), 1e-9);
    // A positive coefficient helps the student instead.
    let helped = steps(r#"{"method": "ctkd", "curriculum": {"min": 1.0, "max": 1.0}}"#, 0, 6);
    assert!(helped.windows(2).all(|w| w[1][0] < w[0][0]), "{helped:?}");
    let each = steps(r#"{"method": "ctkd-instance"}"#, 20, 6);
    assert!(each.windows(2).all(|w| w[1][0] > w[0][0]), "{each:?}");
}

#[test]
fn the_decoupled_form_warms_up_and_shows_its_parts() {
    let config = parse(r#"{"method": "ctkd", "loss": {"kind": "dkd", "warmup_epochs": 4}, "weight": 2.0}"#);
    assert!(config.needs().labels && !parse(r#"{"method": "ctkd"}"#).needs().labels);
    let mut bench = Bench::new(&config, 6, DType::F64);
    let weights = [0, 1, 3, 9].map(|epoch| {
        bench.epoch = epoch;
        bench.term().unwrap().weight
    });
    assert_eq!(weights, [0.5, 1.0, 2.0, 2.0]);
    let term = bench.term().unwrap();
    let names: Vec<&str> = term.parts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["temperature", "theta", "tckd", "nckd"]);
    close(scalar(&term.parts[2].1) + 2.0 * scalar(&term.parts[3].1), scalar(&term.value), 1e-14);
}

#[test]
fn the_student_is_not_taught_to_steer_its_temperature() {
    let mut bench = Bench::new(&parse(r#"{"method": "ctkd-instance"}"#), 1, DType::F64);
    let term = bench.term().unwrap();
    let each = term.parts[0].1.reshape(1).unwrap();
    let (_, logits) = bench.student.vars.iter().find(|(name, _)| name == "logits").unwrap();
    let alone = ctkd_instance(logits, &bench.teacher.outputs.logits, &each, 1e-7).unwrap();
    assert_eq!(scalar(&alone), scalar(&term.value));
    let gradient = |loss: &Tensor| flat(loss.backward().unwrap().get(logits).unwrap());
    assert_eq!(gradient(&alone), gradient(&term.value));
}

#[test]
fn impossible_settings_are_errors_that_name_the_field() {
    for (json, expected) in [
        (r#""t_start": 0"#, "field `t_start`: expected a number in 0.001 ..= 1000, found 0"),
        (r#""t_end": 0"#, "field `t_end`: expected a number > 0 and at most 1000 - `t_start` = 999, found 0"),
        (r#""t_end": 1000"#, "field `t_end`: expected a number > 0 and at most 1000 - `t_start` = 999, found 1000"),
        (
            r#""curriculum": {"epochs": 0}"#,
            "field `curriculum.epochs`: expected a whole number in 1 ..= 1048576, found 0",
        ),
        (
            r#""curriculum": {"min": 1, "max": 0}"#,
            "field `curriculum.min`: expected at most `curriculum.max` = 0, found 1",
        ),
        (r#""curriculum": {"min": -1e4}"#, "field `curriculum.min`: expected a number in -1000 ..= 1000, found -10000"),
    ] {
        for method in ["ctkd", "ctkd-instance"] {
            let config = parse(&format!(r#"{{"method": "{method}", {json}}}"#));
            assert_eq!(config.validate().unwrap_err().to_string(), format!("{method}: {expected}"));
        }
    }
    let message = parse(r#"{"method": "ctkd", "loss": {"kind": "dkd", "alpha": -1}}"#).validate().unwrap_err();
    assert!(message.to_string().starts_with("ctkd: field `loss.alpha`"), "{message}");
    let message = parse(r#"{"method": "ctkd", "theta": 1e300}"#).validate().unwrap_err();
    assert!(message.to_string().starts_with("ctkd: field `theta`: expected a number in -30 ..= 30"), "{message}");
    for json in [
        r#"{"method": "ctkd", "loss": {"kind": "kd", "alpha": 1}}"#,
        r#"{"method": "ctkd", "loss": {"kind": "dist"}}"#,
        r#"{"method": "ctkd", "curriculum": {"loops": 1}}"#,
        r#"{"method": "ctkd", "temperature": 4}"#,
    ] {
        assert!(serde_json::from_str::<LossConfig>(json).is_err(), "{json}");
    }
}

#[test]
fn impossible_temperatures_are_errors() {
    let (s, t) = (logits("s", 5, 6), logits("t", 5, 6));
    let message = |learned: &Tensor| ctkd(&s, &t, learned).unwrap_err().to_string();
    assert_eq!(message(&temperature(0.0)), "ctkd: field `temperature`: expected finite numbers > 0, found 0");
    assert!(message(&temperature(f64::INFINITY)).contains("inf"));
    assert!(message(&Tensor::new(&[1.0, 2.0], CPU).unwrap()).contains("expected [1], found [2]"));
    assert!(message(&Tensor::new(&[1u32], CPU).unwrap()).contains("floating-point"));
    let each = Tensor::ones(4, DType::F64, CPU).unwrap();
    assert!(ctkd_instance(&s, &t, &each, 0.0).unwrap_err().to_string().contains("expected [5], found [4]"));
    assert!(ctkd_instance(&s, &t, &each, -1.0).unwrap_err().to_string().contains("`eps`"));
    let theta = temperature(0.0);
    for [start, end, lambda] in [[0.0, 1.0, -1.0], [1.0, -1.0, -1.0], [1.0, 20.0, f64::NAN]] {
        assert!(learned_temperature(&theta, start, end, lambda).is_err());
    }
    assert!(scalar(&ctkd(&s, &t, &temperature(f64::NAN)).unwrap()).is_nan());
}
