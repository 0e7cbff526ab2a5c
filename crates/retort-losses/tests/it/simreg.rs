//! Regression of the teacher's embedding.

use crate::fixture::{Bench, flat, random, scalar};
use candle_core::{DType, Device, Tensor, Var};
use retort_losses::feature::simreg;
use retort_losses::{LossConfig, mean_over_teachers};

const CPU: &Device = &Device::Cpu;

#[test]
fn directions_alone_count() {
    let (p, t) = (random("p", &[6, 5], DType::F64), random("t", &[6, 5], DType::F64));
    let value = |p: &Tensor, t: &Tensor| scalar(&simreg(p, t).unwrap());
    let plain = value(&p, &t);
    assert!((0.0..=4.0).contains(&plain));
    assert!((value(&(&p * 17.0).unwrap(), &(&t * 1e-3).unwrap()) - plain).abs() < 1e-14);
    assert!(value(&p, &(&p * 3.0).unwrap()).abs() < 1e-15);
    assert!((value(&p, &(&p * -0.5).unwrap()) - 4.0).abs() < 1e-14);
    let order = Tensor::new(&[3u32, 0, 5, 4, 1, 2], CPU).unwrap();
    let [pp, pt] = [&p, &t].map(|x| x.index_select(&order, 0).unwrap());
    assert!((value(&pp, &pt) - plain).abs() < 1e-14);
    // Of f32 the loss keeps the digits, too.
    let single = p.to_dtype(DType::F32).unwrap();
    assert_eq!(value(&single, &(&single * 4.0).unwrap()), 0.0);
}

#[test]
fn rows_of_zeros_cost_two_and_pull_nowhere() {
    let p = Var::new(&[[0f32, 0.0], [3.0, 4.0], [1.0, 1.0]], CPU).unwrap();
    let t = Tensor::new(&[[1f32, 2.0], [6.0, 8.0], [0.0, 0.0]], CPU).unwrap();
    let loss = simreg(&p, &t).unwrap();
    assert!((scalar(&loss) - 4.0 / 3.0).abs() < 1e-7);
    let grad = flat(loss.backward().unwrap().get(&p).unwrap());
    assert!(grad.iter().all(|g| g.abs() < 1e-8), "{grad:?}");
}

#[test]
fn the_gradient_is_that_of_differences() {
    let (p, t) = (Var::from_tensor(&random("p", &[4, 3], DType::F64)).unwrap(), random("t", &[4, 3], DType::F64));
    let grad = flat(simreg(&p, &t).unwrap().backward().unwrap().get(&p).unwrap());
    let values = flat(p.as_tensor());
    for i in 0..values.len() {
        let at = |h: f64| {
            let mut moved = values.clone();
            moved[i] += h;
            scalar(&simreg(&Tensor::from_vec(moved, (4, 3), CPU).unwrap(), &t).unwrap())
        };
        let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
        assert!((grad[i] - slope).abs() < 1e-9, "{i}: {} {slope}", grad[i]);
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let row = |shape: &[usize]| Tensor::zeros(shape, DType::F32, CPU).unwrap();
    for (p, t) in [(row(&[2, 3]), row(&[2, 4])), (row(&[2, 3]), row(&[3, 3])), (row(&[2, 3, 1]), row(&[2, 3, 1]))] {
        let message = simreg(&p, &t).unwrap_err().to_string();
        assert!(message.starts_with("simreg: ") && message.contains(&format!("{:?}", t.dims())), "{message}");
    }
    assert!(simreg(&row(&[0, 3]), &row(&[0, 3])).is_err());
    assert!(mean_over_teachers(&[]).is_err());
    assert!(mean_over_teachers(&[row(&[1])]).is_err());
}

#[test]
fn heads_that_normalise_need_two_rows() {
    for (head, rows) in [("linear", 2), ("two", 1), ("two-activated", 2), ("four", 2)] {
        let config: LossConfig = serde_json::from_str(&format!(r#"{{"method": "simreg", "head": "{head}"}}"#)).unwrap();
        assert_eq!(config.least_rows(), rows, "{head}");
        let mut bench = Bench::new(&config, 1, DType::F32);
        assert_eq!(bench.term().is_ok(), rows == 1, "{head}");
    }
    assert!(serde_json::from_str::<LossConfig>(r#"{"method": "simreg", "head": "three"}"#).is_err());
}
