//! Memory banks: update rule, state, resumption.

use crate::fixture::{Bench, flat, random, scalar, small};
use candle_core::{DType, Device, Tensor, Var};
use retort_losses::LossConfig;
use retort_losses::contrastive::{CrdConfig, CrdMemory, MemoryConfig};

fn memory(n: usize, d: usize) -> CrdMemory {
    let (a, b) = (random("m1", &[n, d], DType::F64), random("m2", &[n, d], DType::F64));
    CrdMemory::new(&a, &b, None, MemoryConfig::default()).unwrap()
}

fn rows(t: &Tensor) -> Vec<Vec<f64>> {
    t.to_vec2().unwrap()
}

#[test]
fn rows_move_by_the_rule_and_the_last_duplicate_wins() {
    let mut m = memory(6, 3);
    let (s, t) = (random("s", &[4, 3], DType::F64), random("t", &[4, 3], DType::F64));
    let before = rows(&m.student_bank().unwrap());
    let step = m.step(&s, &t, &[0, 1, 2, 3, 4, 5, 0, 1]).unwrap();
    m.update(&step, &[2, 5, 2, 0]).unwrap();
    let after = rows(&m.student_bank().unwrap());
    let unit = |v: &[f64]| {
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        v.iter().map(|x| x / norm).collect::<Vec<_>>()
    };
    let s = rows(&s);
    for (row, sample) in [(2, Some(2)), (5, Some(1)), (0, Some(3)), (1, None), (3, None), (4, None)] {
        let want = match sample {
            None => before[row].clone(),
            Some(i) => {
                let e = unit(&s[i]);
                unit(&before[row].iter().zip(&e).map(|(o, e)| 0.5 * o + 0.5 * e).collect::<Vec<_>>())
            }
        };
        for (got, want) in after[row].iter().zip(&want) {
            assert!((got - want).abs() < 1e-15, "row {row}");
        }
    }
}

#[test]
fn zero_embeddings_get_no_gradient_and_leave_their_row() {
    let mut m = memory(6, 3);
    let s = Var::new(&[[0.0f64, 0.0, 0.0], [1.0, 2.0, 3.0]], &Device::Cpu).unwrap();
    let t = random("t", &[2, 3], DType::F64);
    let before = (rows(&m.student_bank().unwrap()), rows(&m.teacher_bank().unwrap()));
    let step = m.step(&s, &t, &[0, 1, 2, 3]).unwrap();
    let grad = flat(step.loss.backward().unwrap().get(&s).unwrap());
    assert_eq!(grad[..3], [0.0; 3]);
    assert!(grad[3..].iter().all(|g| g.is_finite() && *g != 0.0));
    m.update(&step, &[0, 2]).unwrap();
    let after = (rows(&m.student_bank().unwrap()), rows(&m.teacher_bank().unwrap()));
    assert_eq!(before.0[0], after.0[0]);
    assert_ne!(before.0[2], after.0[2]);
    assert_ne!(before.1[0], after.1[0]);
}

#[test]
fn an_update_changes_neither_the_callers_tensors_nor_an_earlier_gradient() {
    let bank = random("m1", &[6, 3], DType::F64);
    let kept = rows(&bank);
    let run = |update: bool| {
        let mut m = CrdMemory::new(&bank, &bank, None, MemoryConfig::default()).unwrap();
        let s = Var::from_tensor(&random("s", &[2, 3], DType::F64)).unwrap();
        let step = m.step(&s, &random("t", &[2, 3], DType::F64), &[0, 1, 2, 3]).unwrap();
        if update {
            m.update(&step, &[0, 2]).unwrap();
        }
        flat(step.loss.backward().unwrap().get(&s).unwrap())
    };
    assert_eq!(run(true), run(false));
    assert_eq!(rows(&bank), kept);
}

#[test]
fn normalisers_are_set_once() {
    let mut m = memory(6, 3);
    assert_eq!(m.z(), None);
    let batch =
        |i: usize| (random(&format!("s{i}"), &[2, 3], DType::F64), random(&format!("t{i}"), &[2, 3], DType::F64));
    let (s, t) = batch(0);
    let first = m.step(&s, &t, &[0, 1, 2, 3]).unwrap();
    // By construction the mean of u / Z is 1 / n.
    let scores = flat(&first.scores_s().unwrap());
    assert!((scores.iter().sum::<f64>() / 4.0 - 1.0 / 6.0).abs() < 1e-12);
    let (s, t) = batch(1);
    assert_eq!(m.step(&s, &t, &[4, 1, 2, 3]).unwrap().z, first.z);
    // A batch with NaN sets nothing.
    let mut fresh = memory(6, 3);
    let nan = Tensor::full(f64::NAN, (2, 3), &Device::Cpu).unwrap();
    assert!(scalar(&fresh.step(&nan, &t, &[0, 1, 2, 3]).unwrap().loss).is_nan());
    assert_eq!(fresh.z(), None);
}

#[test]
fn small_temperatures_do_not_overflow() {
    let bank = random("m1", &[6, 3], DType::F32);
    let config = MemoryConfig { temperature: 1e-3, ..MemoryConfig::default() };
    let mut m = CrdMemory::new(&bank, &bank, None, config).unwrap();
    let s = Var::from_tensor(&random("s", &[2, 3], DType::F32)).unwrap();
    let step = m.step(&s, &s, &[0, 1, 2, 3]).unwrap();
    assert!(scalar(&step.loss).is_finite());
    assert!(flat(step.loss.backward().unwrap().get(&s).unwrap()).iter().all(|g| g.is_finite()));
}

#[test]
fn wrong_calls_are_errors_and_change_nothing() {
    let mut m = memory(6, 3);
    let (s, t) = (random("s", &[2, 3], DType::F64), random("t", &[2, 3], DType::F64));
    let message = |r: retort_losses::Result<_>| r.map(|_: ()| ()).unwrap_err().to_string();
    assert!(message(m.step(&s, &t, &[0, 1, 2, 6]).map(|_| ())).contains("bank row 6"));
    assert!(message(m.step(&s, &t, &[0, 1, 2]).map(|_| ())).contains("found 3"));
    assert!(message(m.step(&s, &t, &[0, 1]).map(|_| ())).contains("at least one negative"));
    assert!(message(m.step(&s, &t.narrow(1, 0, 2).unwrap(), &[0, 1, 2, 3]).map(|_| ())).contains("[2, 2]"));
    assert_eq!(m.z(), None);
    let step = m.step(&s, &t, &[0, 1, 2, 3]).unwrap();
    let before = rows(&m.student_bank().unwrap());
    assert!(message(m.update(&step, &[0, 9])).contains("row 9"));
    assert!(message(m.update(&step, &[0])).contains("found 1"));
    assert_eq!(rows(&m.student_bank().unwrap()), before);
    let bad = MemoryConfig { temperature: -1.0, ..MemoryConfig::default() };
    assert!(message(CrdMemory::new(&s, &t, None, bad).map(|_| ())).contains("temperature"));
    let zero = CrdMemory::new(&s, &t, Some([0.0, 1.0]), MemoryConfig::default()).map(|_| ());
    assert!(message(zero).contains("`z`"));
}

fn config() -> LossConfig {
    small(LossConfig::Crd(CrdConfig::default()))
}

/// The values of steps `from..to`, each with rows and epoch of its own.
fn steps(bench: &mut Bench, from: usize, to: usize) -> Vec<f64> {
    (from..to)
        .map(|i| {
            bench.epoch = i / 2;
            bench.index = (0..5).map(|b| ((b * 3 + i) % 20) as u32).collect();
            let value = scalar(&bench.term().unwrap().value);
            bench.built.loss.after_step().unwrap();
            value
        })
        .collect()
}

#[test]
fn a_resumed_run_gives_the_same_numbers() {
    let whole = steps(&mut Bench::new(&config(), 5, DType::F32), 0, 6);
    let mut first = Bench::new(&config(), 5, DType::F32);
    assert_eq!(steps(&mut first, 0, 3), whole[..3]);
    let state = first.built.loss.state().unwrap();
    // The state is a snapshot.
    steps(&mut first, 3, 5);
    let mut second = Bench::new(&config(), 5, DType::F32);
    second.built.loss.load_state(&state).unwrap();
    assert_eq!(steps(&mut second, 3, 6), whole[3..]);
    let fresh = steps(&mut Bench::new(&config(), 5, DType::F32), 3, 6);
    assert_ne!(fresh, whole[3..]);
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let mut bench = Bench::new(&config(), 5, DType::F32);
    let good = bench.built.loss.state().unwrap();
    let mut refuse = |change: &dyn Fn(&mut retort_nn::Tensors), expected: &str| {
        let mut state = good.clone();
        change(&mut state);
        let message = bench.built.loss.load_state(&state).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    refuse(&|s| s.clear(), "`student_bank`: missing");
    refuse(&|s| drop(s.insert("teacher_bank".into(), random("x", &[19, 7], DType::F32))), "[19, 7]");
    refuse(&|s| drop(s.remove("log_z")), "`log_z`: missing");
    refuse(&|s| drop(s.insert("log_z".into(), random("x", &[3], DType::F64))), "`log_z`");
    refuse(&|s| drop(s.insert("bank".into(), random("x", &[3], DType::F64))), "`bank`");
    let wrong = Tensor::new(&[f64::NAN, 1.0], &Device::Cpu).unwrap();
    refuse(&|s| drop(s.insert("log_z".into(), wrong.clone())), "finite");
    let infinite = (good["student_bank"].ones_like().unwrap() * f64::INFINITY).unwrap();
    refuse(&|s| drop(s.insert("student_bank".into(), infinite.clone())), "not finite");
    bench.built.loss.load_state(&good).unwrap();
    // A loss without state refuses any.
    let mut kd = Bench::new(&LossConfig::Kd(Default::default()), 5, DType::F32);
    assert!(kd.built.loss.load_state(&good).is_err());
}

#[test]
fn rows_must_come_with_the_batch() {
    let mut bench = Bench::new(&config(), 5, DType::F32);
    bench.index = vec![0, 1];
    assert!(bench.term().unwrap_err().to_string().contains("5 samples, found 2"));
    bench.index = vec![0, 1, 2, 3, 20];
    assert!(bench.term().unwrap_err().to_string().contains("20"));
}
