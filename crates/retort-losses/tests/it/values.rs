//! One value per method that was worked out by hand.

use crate::fixture::{flat, scalar};
use candle_core::{Device, Tensor};
use retort_losses::contrastive::{CrdMemory, MemoryConfig};
use retort_losses::{feature, output, relational};
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

#[test]
fn output_losses() {
    let ln = f64::ln;
    // Probabilities 1/4 and 3/4.
    let z = Tensor::new(&[[0.0, ln(3.0)]], CPU).unwrap();
    let one = Tensor::new(&[1i64], CPU).unwrap();
    close(&output::cross_entropy(&z, &one).unwrap(), -ln(0.75));
    let uniform = output::label_smoothing(&z, &one, 0.2, output::Spread::All).unwrap();
    close(&uniform, -(0.9 * ln(0.75) + 0.1 * ln(0.25)));
    let others = output::label_smoothing(&z, &one, 0.2, output::Spread::Wrong).unwrap();
    close(&others, -(0.8 * ln(0.75) + 0.2 * ln(0.25)));
    // Temperature 2: teacher (1/4, 3/4) from logits 0, 2 ln 3; student (1/2, 1/2); factor 4.
    let t = Tensor::new(&[[0.0, 2.0 * ln(3.0)]], CPU).unwrap();
    let s = Tensor::new(&[[1.0, 1.0]], CPU).unwrap();
    close(&output::kd(&s, &t, 2.0).unwrap(), 4.0 * (0.25 * ln(0.5) + 0.75 * ln(1.5)));
    // Three classes, label 0: teacher 1/2, 1/3, 1/6; student 1/4, 1/4, 1/2.
    let t = Tensor::new(&[[ln(3.0), ln(2.0), 0.0]], CPU).unwrap();
    let s = Tensor::new(&[[0.0, 0.0, ln(2.0)]], CPU).unwrap();
    let zero = Tensor::new(&[0u32], CPU).unwrap();
    let loss = output::dkd(&s, &t, &zero, 1.0).unwrap();
    close(&loss.tckd, 0.5 * ln(2.0) + 0.5 * ln(2.0 / 3.0));
    close(&loss.nckd, 2.0 / 3.0 * ln(2.0) + 1.0 / 3.0 * ln(0.5));
    close(&loss.combine(2.0, 3.0).unwrap(), 2.0 * scalar(&loss.tckd) + 3.0 * scalar(&loss.nckd));
}

#[test]
fn two_classes_have_no_non_target_part_and_one_class_is_an_error() {
    let s = candle_core::Var::new(&[[0.3f64, -0.2]], CPU).unwrap();
    let t = Tensor::new(&[[1.0, 2.0]], CPU).unwrap();
    let label = Tensor::new(&[0u32], CPU).unwrap();
    let loss = output::dkd(&s, &t, &label, 4.0).unwrap();
    assert_eq!(scalar(&loss.nckd), 0.0);
    let grads = loss.nckd.backward().unwrap();
    assert!(grads.get(&s).is_none_or(|g| flat(g) == [0.0, 0.0]));
    let one = Tensor::new(&[[1.0]], CPU).unwrap();
    assert!(output::dkd(&one, &one, &label, 4.0).unwrap_err().to_string().contains("two classes"));
    let others = output::label_smoothing(&one, &label, 0.1, output::Spread::Wrong);
    assert!(others.unwrap_err().to_string().contains("two classes"));
    let soft = Tensor::new(&[[0.5, 0.5]], CPU).unwrap();
    assert!(output::dkd(&s, &t, &soft, 4.0).unwrap_err().to_string().contains("class indices"));
}

#[test]
fn feature_losses() {
    let s = map(&[&[1.0, 2.0], &[1.0, 0.0]]);
    let t = map(&[&[3.0, 0.0], &[0.0, 4.0]]);
    // Differences -2, 2, 1, -4.
    close(&feature::hint(&s, &t).unwrap(), 25.0 / 4.0);
    // Energies (1, 2) and (4.5, 8) up to scale (9, 16).
    let (a, b) = (5f64.sqrt(), 337f64.sqrt());
    let want = ((1.0 / a - 9.0 / b).powi(2) + (2.0 / a - 16.0 / b).powi(2)) / 2.0;
    let at = feature::attention_transfer(&[s.clone(), s.clone()], &[t.clone(), t.clone()], 2.0).unwrap();
    close(&at.stages[1], want);
    close(&at.total, 2.0 * want);
    // |x|^3 of a negative activation counts as positive.
    let odd = feature::attention_transfer(&[map(&[&[-1.0, 2.0]])], &[map(&[&[1.0, 2.0]])], 3.0).unwrap();
    close(&odd.total, 0.0);
    // Unit rows: s = (1, 2)/sqrt 5 and (1, 0); t = (1, 0) and (0, 1).
    // Mean over 4 pairs: ss = (1 + 1 + 2 * 1/5) / 4, tt = 2/4, st = (1/5 + 4/5 + 1 + 0) / 4.
    let nst = feature::neuron_selectivity(from_ref(&s), from_ref(&t)).unwrap();
    close(&nst.total, 2.4 / 4.0 + 2.0 / 4.0 - 2.0 * 2.0 / 4.0);
    // Variances 1 and e with rho = softplus^-1(v - 1/10).
    let rho = Tensor::new(&[(0.9f64.exp() - 1.0).ln(), ((std::f64::consts::E - 0.1).exp() - 1.0).ln()], CPU).unwrap();
    let vid = feature::variational_information(&s, &t, &rho, 0.1).unwrap();
    close(&vid, 0.5 * (((4.0 + 4.0) / 2.0 + 0.0) + ((1.0 + 16.0) / 2.0 / std::f64::consts::E + 1.0)) / 2.0);
    // Channels of two values: z = +-1/sqrt 2 up to the 1e-6; the first agrees up to sign, the second too.
    let pkd = feature::pearson(&[s], &[t], feature::Resize::Student, 1e-6).unwrap();
    let z = |std: f64| std / 2f64.sqrt() / (std + 1e-6);
    let (d, two) = (|a: f64, b: f64| (z(a) + z(b)).powi(2), 2f64.sqrt());
    close(&pkd.total, 0.5 * (d(1.0 / two, 3.0 / two) + d(1.0 / two, 4.0 / two)) / 2.0);
}

#[test]
fn larger_maps_are_pooled_before_the_power() {
    let s = Tensor::new(&[[[[1.0, 3.0], [5.0, 7.0]]]], CPU).unwrap();
    let t = Tensor::new(&[[[[2.0]]]], CPU).unwrap();
    close(&feature::attention_transfer(from_ref(&s), from_ref(&t), 2.0).unwrap().total, 0.0);
    // 1x1 student: the teacher is pooled.
    close(&feature::attention_transfer(&[t], &[s], 2.0).unwrap().total, 0.0);
}

#[test]
fn relational_losses() {
    // G_s = [[1, 1], [1, 2]] / row norms, G_t = identity.
    let s = Tensor::new(&[[1.0, 0.0], [1.0, 1.0]], CPU).unwrap();
    let t = Tensor::new(&[[2.0, 0.0], [0.0, 1.0]], CPU).unwrap();
    let (a, b) = (2f64.sqrt().recip(), 5f64.sqrt().recip());
    let want = ((a - 1.0).powi(2) + a * a + b * b + (2.0 * b - 1.0).powi(2)) / 4.0;
    close(&relational::similarity_preserving(&s, &t).unwrap(), want);

    // Three points on a line at 0, 1, 3 against an equilateral triangle.
    let s = Tensor::new(&[[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]], CPU).unwrap();
    let t = Tensor::new(&[[0.0, 0.0], [1.0, 0.0], [0.5, 3f64.sqrt() / 2.0]], CPU).unwrap();
    let rkd = relational::relational(&s, &t).unwrap();
    // Distances 1, 3, 2 over their mean 2, against 1, 1, 1; each pair twice, nine entries.
    close(&rkd.distance, 2.0 * (0.125 + 0.125 + 0.0) / 9.0);
    // Cosine at each corner: 1, -1, 1 against 1/2, twice each; the diagonals j = k agree.
    close(&rkd.angle, 2.0 * (0.125 + 1.0 + 0.125) / 27.0);
    close(&rkd.combine(25.0, 50.0).unwrap(), 25.0 * 0.5 / 9.0 + 50.0 * 2.5 / 27.0);

    // K_s: cosine 0, rows (1, 1/2); K_t: cosine 1, rows (1, 1).
    let s = Tensor::new(&[[1e9, 0.0], [0.0, 1e9]], CPU).unwrap();
    let t = Tensor::new(&[[1e9, 0.0], [2e9, 0.0]], CPU).unwrap();
    let e = 1e-7;
    let row = 0.5 * f64::ln((0.5 + e) / (2.0 / 3.0 + e)) + 0.5 * f64::ln((0.5 + e) / (1.0 / 3.0 + e));
    close(&relational::probabilistic_transfer(&s, &t, 1e-7).unwrap(), row / 2.0);

    // |d| = (1, 2), (3, 4), (5, 6): 3 + 8 and 15 + 24.
    let s = Tensor::new(&[[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0]], CPU).unwrap();
    let t = s.zeros_like().unwrap();
    close(&relational::correlation_congruence(&s, &t).unwrap(), (11.0 + 39.0) / 2.0);
}

#[test]
fn coincident_samples_follow_the_robust_rule() {
    let s = candle_core::Var::new(&[[1.0f64, 0.0], [1.0, 0.0], [0.0, 1.0]], CPU).unwrap();
    let t = Tensor::new(&[[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], CPU).unwrap();
    let loss = relational::relational(&s, &t).unwrap();
    // Distances 1e-6, sqrt 2, sqrt 2 over their mean.
    let (near, far) = (1e-6, 2f64.sqrt());
    let mean = (near + 2.0 * far) / 3.0;
    let (a, b, c) = (1.0, 2.0, 5f64.sqrt());
    let mean_t = (a + b + c) / 3.0;
    let half = |x: f64, y: f64| if (x - y).abs() < 1.0 { (x - y).powi(2) / 2.0 } else { (x - y).abs() - 0.5 };
    let want =
        2.0 * (half(near / mean, a / mean_t) + half(far / mean, b / mean_t) + half(far / mean, c / mean_t)) / 9.0;
    close(&loss.distance, want);
    let grads = loss.combine(25.0, 50.0).unwrap().backward().unwrap();
    assert!(flat(grads.get(&s).unwrap()).iter().all(|g| g.abs() < 100.0));
}

/// The relational loss as printed, by three loops over directions.
fn relational_by_loops(s: &[[f64; 3]], t: &[[f64; 3]]) -> (f64, f64) {
    let b = s.len();
    let minus = |p: [f64; 3], q: [f64; 3]| [0, 1, 2].map(|k| p[k] - q[k]);
    let dot = |p: [f64; 3], q: [f64; 3]| p[0] * q[0] + p[1] * q[1] + p[2] * q[2];
    let norm = |p: [f64; 3]| dot(p, p).sqrt();
    let huber = |x: f64| if x.abs() < 1.0 { x * x / 2.0 } else { x.abs() - 0.5 };
    let mean = |e: &[[f64; 3]]| {
        let all: f64 = e.iter().flat_map(|&p| e.iter().map(move |&q| norm(minus(p, q)))).sum();
        all / (b * (b - 1)) as f64
    };
    let (mut distance, mut angle) = (0.0, 0.0);
    for i in 0..b {
        for j in 0..b {
            distance += huber(norm(minus(s[i], s[j])) / mean(s) - norm(minus(t[i], t[j])) / mean(t));
            for k in 0..b {
                let cosine = |e: &[[f64; 3]]| {
                    let (p, q) = (minus(e[j], e[i]), minus(e[k], e[i]));
                    if j == i || k == i { 0.0 } else { dot(p, q) / (norm(p) * norm(q)) }
                };
                angle += huber(cosine(s) - cosine(t));
            }
        }
    }
    (distance / (b * b) as f64, angle / (b * b * b) as f64)
}

#[test]
fn angles_between_neighbours_far_from_the_mean_keep_their_digits() {
    // Three points within 1e-4 of each other, far from two others: inner products lose eleven digits there.
    let s = [[800.0, 0.0, 0.0], [800.0, 1e-4, 0.0], [800.0, 0.0, 5e-5], [-900.0, 30.0, 2.0], [3.0, -700.0, 40.0]];
    let t = [[0.3, 0.1, 0.9], [1.0, 0.2, -0.4], [-0.5, 0.6, 0.1], [0.2, -1.0, 0.7], [0.9, 0.8, 0.3]];
    let tensor = |e: &[[f64; 3]]| Tensor::from_vec(e.concat(), (5, 3), CPU).unwrap();
    let loss = relational::relational(&tensor(&s), &tensor(&t)).unwrap();
    let (distance, angle) = relational_by_loops(&s, &t);
    assert!((scalar(&loss.distance) - distance).abs() < 1e-11, "{} {distance}", scalar(&loss.distance));
    assert!((scalar(&loss.angle) - angle).abs() < 1e-9, "{} {angle}", scalar(&loss.angle));
    // And without neighbours to full precision.
    let loss = relational::relational(&tensor(&t), &tensor(&s)).unwrap();
    assert!((scalar(&loss.angle) - angle).abs() < 1e-9);
}

#[test]
fn contrastive_loss() {
    // Two rows, one negative, temperature 1, Z = 2: x = e / 2 (own row) and 1 / 2 (other row), c = 1 / 2.
    let bank = Tensor::new(&[[1.0, 0.0], [0.0, 1.0]], CPU).unwrap();
    let config = MemoryConfig { temperature: 1.0, momentum: 0.5, eps: 0.0 };
    let mut memory = CrdMemory::new(&bank, &bank, Some([2.0, 2.0]), config).unwrap();
    let e = Tensor::new(&[[3.0, 0.0]], CPU).unwrap();
    let step = memory.step(&e, &e, &[0, 1]).unwrap();
    let (x, c) = (std::f64::consts::E / 2.0, 0.5);
    let want = -(x / (x + c)).ln() - (c / (0.5 + c)).ln();
    close(&step.loss_s, want);
    close(&step.loss_t, want);
    close(&step.loss, 2.0 * want);
    let scores = flat(&step.scores_s().unwrap());
    assert!((scores[0] - x).abs() < 1e-14 && (scores[1] - 0.5).abs() < 1e-14);
    // Z of a fresh memory: n times the mean of e and 1.
    let mut fresh = CrdMemory::new(&bank, &bank, None, config).unwrap();
    let z = fresh.step(&e, &e, &[0, 1]).unwrap().z;
    assert!((z[0] - (std::f64::consts::E + 1.0)).abs() < 1e-13);
}
