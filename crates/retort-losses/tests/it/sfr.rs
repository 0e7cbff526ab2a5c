//! Self-feature regularisation, a reconstruction.

use crate::fixture::{flat, random, scalar};
use crate::probe::{CPU, gradient, labels, slopes_agree, var};
use candle_core::{DType, Tensor, Var};
use retort_losses::output::{self, Spread};
use retort_losses::self_distillation::{
    ManyToOne, NodeWeights, SfrSettings, SfrTable, sfr_assigned, sfr_dls, sfr_emd_l2, sfr_epsilon, sfr_many_to_one,
    sfr_reduce,
};

#[test]
fn transport_has_the_slopes_of_a_fixed_plan() {
    let (shallow, deep) = (var("s", &[2, 3, 4, 6]), random("d", &[2, 3, 2, 3], DType::F64));
    for l2 in [0.0, 0.5] {
        slopes_agree("uniform", &[&shallow], || sfr_emd_l2(&shallow, &deep, NodeWeights::Uniform, l2).unwrap().loss);
    }
    // The weights of the locations are constants: they follow the map, but send no gradient. Against the plan as it is.
    let loss = sfr_emd_l2(&shallow, &deep, NodeWeights::CrossReference, 0.0).unwrap();
    let plan = loss.plan.clone();
    let unit = |x: &Tensor| {
        let x = x.flatten_from(2).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        let length = x.sqr().unwrap().sum_keepdim(2).unwrap().sqrt().unwrap();
        x.broadcast_div(&length).unwrap()
    };
    let pooled = retort_kernels::adaptive_avg_pool2d(&shallow, [2, 3]).unwrap();
    let (u, v) = (unit(&pooled), unit(&deep));
    let inner = u.matmul(&v.transpose(1, 2).unwrap().contiguous().unwrap()).unwrap();
    let cost = ((inner * -2.0).unwrap() + 2.0).unwrap();
    let expected = ((plan.clone() * cost).unwrap().sum_all().unwrap() / 2.0).unwrap();
    assert!((scalar(&loss.transport) - scalar(&expected)).abs() < 1e-12);
    let (found, expected) = (gradient(&loss.loss, &shallow), gradient(&expected, &shallow));
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {expected:?}");
    // Masses sum to 1.
    for rows in plan.to_vec3::<f64>().unwrap() {
        assert!((rows.as_slice().concat().iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
}

#[test]
fn equal_maps_cost_nothing() {
    let map = random("s", &[2, 3, 2, 3], DType::F32);
    for weights in [NodeWeights::Uniform, NodeWeights::CrossReference] {
        let loss = sfr_emd_l2(&map, &(&map * 2.0).unwrap(), weights, 1.0).unwrap();
        assert!(scalar(&loss.loss).abs() < 1e-6, "{weights:?}");
    }
    assert!(scalar(&sfr_many_to_one(&map, &(&map * 2.0).unwrap(), ManyToOne::Each).unwrap()) < 1e-12);
    // Zeros: every pair is as far, and no gradient blows up.
    let zeros = Var::from_tensor(&map.zeros_like().unwrap()).unwrap();
    for weights in [NodeWeights::Uniform, NodeWeights::CrossReference] {
        let loss = sfr_emd_l2(&zeros, &map, weights, 1.0).unwrap();
        assert!((scalar(&loss.transport) - 1.0).abs() < 1e-6 && gradient(&loss.loss, &zeros).iter().all(|g| *g == 0.0));
    }
    let loss = sfr_many_to_one(&zeros, &map, ManyToOne::Attention { tau: 1.0 }).unwrap();
    assert!(gradient(&loss, &zeros).iter().all(|g| *g == 0.0));
    let nan = (&map * f64::NAN).unwrap();
    let message = sfr_emd_l2(&nan, &map, NodeWeights::Uniform, 0.0).unwrap_err().to_string();
    assert!(message.starts_with("sfr-emd-l2") && message.contains("shallow map"), "{message}");
}

#[test]
fn a_given_assignment_costs_at_least_the_cheapest_one() {
    let (shallow, deep) = (var("s", &[1, 3, 4, 6]), random("d", &[1, 3, 2, 3], DType::F64));
    let assigned = |places: &[u32], l2| sfr_assigned(&shallow, &deep, places, l2).unwrap();
    let cheapest = sfr_emd_l2(&shallow, &deep, NodeWeights::Uniform, 0.5).unwrap();
    let own: Vec<u32> = (0..6).collect();
    assert!((scalar(&assigned(&own, 0.5)) - 1.5 * scalar(&cheapest.l2)).abs() < 1e-12);
    // The places that the plan itself gives.
    let plan = cheapest.plan.squeeze(0).unwrap().to_vec2::<f64>().unwrap();
    let largest = |row: &Vec<f64>| (0..6).max_by(|&i, &j| row[i].total_cmp(&row[j])).unwrap() as u32;
    let places: Vec<u32> = plan.iter().map(largest).collect();
    let (found, expected) = (assigned(&places, 0.5), &cheapest.loss);
    assert!((scalar(&found) - scalar(expected)).abs() < 1e-12);
    let (found, expected) = (gradient(&found, &shallow), gradient(expected, &shallow));
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12));
    for places in [[1, 2, 3, 4, 5, 0], [5, 4, 3, 2, 1, 0]] {
        assert!(scalar(&assigned(&places, 0.0)) >= scalar(&cheapest.transport) - 1e-12);
    }
    let refused = |places: &[u32]| sfr_assigned(&shallow, &deep, places, 0.0).unwrap_err().to_string();
    assert!(refused(&[0; 5]).contains("each of 6 locations, found 5"));
    assert!(refused(&[6; 6]).contains("place"));
}

#[test]
fn many_channels_supervise_one() {
    let (shallow, deep) = (var("s", &[2, 3, 4, 4]), random("d", &[2, 6, 2, 2], DType::F64));
    for mode in [ManyToOne::Each, ManyToOne::Attention { tau: 0.3 }] {
        slopes_agree("many-to-one", &[&shallow], || sfr_many_to_one(&shallow, &deep, mode).unwrap());
    }
    // One deep channel for each: both modes are the same.
    let single = deep.narrow(1, 0, 3).unwrap();
    let [each, mixed] = [ManyToOne::Each, ManyToOne::Attention { tau: 1.0 }]
        .map(|mode| scalar(&sfr_many_to_one(&shallow, &single, mode).unwrap()));
    assert!((each - mixed).abs() < 1e-13);
    let error = |s: &Tensor, d: &Tensor| sfr_many_to_one(s, d, ManyToOne::Each).unwrap_err().to_string();
    assert!(error(&shallow, &deep.narrow(1, 0, 5).unwrap()).contains("multiple"));
    assert!(error(&deep, &shallow).contains("larger"));
    let means = sfr_reduce(&deep, 2).unwrap();
    assert_eq!(means.dims(), [2, 3, 2, 2]);
    let (all, means) = (flat(&deep), flat(&means));
    assert!((means[5] - (all[9] + all[13]) / 2.0).abs() < 1e-15);
    assert!(sfr_reduce(&deep, 4).is_err() && sfr_reduce(&deep, 0).is_err());
}

#[test]
fn labels_are_smoothed_by_class() {
    let (z, y) = (var("z", &[4, 3]), labels(&[0, 2, 1, 1]));
    let table = candle_nn::ops::softmax(&random("q", &[3, 3], DType::F64), 1).unwrap();
    slopes_agree("sfr-dls", &[&z], || sfr_dls(&z, &y, &table, 0.3).unwrap());
    let plain = scalar(&output::cross_entropy(&z, &y).unwrap());
    assert!((scalar(&sfr_dls(&z, &y, &table, 0.0).unwrap()) - plain).abs() < 1e-14);
    let even = SfrTable::new(3, 0.5).unwrap().table().unwrap();
    let smoothed = scalar(&output::label_smoothing(&z, &y, 0.2, Spread::All).unwrap());
    assert!((scalar(&sfr_dls(&z, &y, &even, 0.2).unwrap()) - smoothed).abs() < 1e-13);
    assert!(sfr_dls(&z, &y, &even.narrow(0, 0, 2).unwrap(), 0.2).is_err());
    assert_eq!(
        [sfr_epsilon(0.1, 0, 10).unwrap(), sfr_epsilon(0.1, 5, 10).unwrap(), sfr_epsilon(0.1, 9, 10).unwrap()],
        [0.0, 0.1, 0.1]
    );
    let settings = SfrSettings::default();
    assert_eq!([settings.rise(0, 100), settings.rise(4, 100), settings.rise(50, 100)], [0.1, 0.5, 1.0]);
    assert_eq!(SfrSettings { warm_up: 0.0, ..settings }.rise(0, 100), 1.0);
}

#[test]
fn a_table_remembers_what_was_right() {
    let mut table = SfrTable::new(3, 0.25).unwrap();
    // Right, wrong, right, not a number.
    let z = Tensor::new(&[[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [f64::NAN, 0.0, 9.0]], CPU).unwrap();
    table.update(&z, &labels(&[0, 1, 2, 2])).unwrap();
    // In the middle of an epoch: what was gathered is state, too.
    let state = table.state().unwrap();
    let mut other = SfrTable::new(3, 0.25).unwrap();
    other.load_state(&state).unwrap();
    let more = random("z", &[5, 3], DType::F64);
    for table in [&mut table, &mut other] {
        table.update(&more, &labels(&[0, 1, 2, 0, 1])).unwrap();
        table.end_epoch();
    }
    assert_eq!(flat(&table.table().unwrap()), flat(&other.table().unwrap()));
    let mut fresh = SfrTable::new(3, 0.25).unwrap();
    fresh.update(&z, &labels(&[0, 1, 2, 2])).unwrap();
    assert_eq!(flat(&fresh.table().unwrap()), [1.0 / 3.0; 9]);
    fresh.end_epoch();
    let rows = fresh.table().unwrap().to_vec2::<f64>().unwrap();
    let sum: f64 = [2.0f64, 1.0, 0.0].iter().map(|z| z.exp()).sum();
    assert!((rows[0][0] - 0.25 / 3.0 - 0.75 * 2f64.exp() / sum).abs() < 1e-15);
    assert_eq!(rows[1], [1.0 / 3.0; 3]);
    assert!(rows.iter().all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-15));
    // An epoch without samples changes nothing.
    fresh.end_epoch();
    assert_eq!(fresh.table().unwrap().to_vec2::<f64>().unwrap(), rows);
    let mut wrong = state;
    wrong.insert("counts".into(), Tensor::new(&[1.0, -1.0, 0.0], CPU).unwrap());
    assert!(fresh.load_state(&wrong).unwrap_err().to_string().contains("`counts`"));
    assert_eq!(fresh.table().unwrap().to_vec2::<f64>().unwrap(), rows);
    assert!(fresh.update(&random("z", &[1, 4], DType::F64), &labels(&[0])).is_err());
    assert!(SfrTable::new(0, 0.5).is_err() && SfrTable::new(1 << 15, 0.5).is_err());
}
