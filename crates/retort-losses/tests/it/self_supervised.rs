//! Rotated batches: similarities, selections, heads of classes times turns.

use crate::fixture::{flat, random, scalar};
use candle_core::{DType, Device, Tensor, Var};
use retort_losses::output::{cross_entropy, kd};
use retort_losses::self_supervised::{
    HsakdConfig, HsakdOutputs, SskdConfig, SskdLoss, SskdOutputs, answer_ranks, class_scores, hsakd_student,
    hsakd_teacher, hssakd_online, rotation_similarity, select_rows, sskd, ssp,
};
use retort_losses::{Result, Term};

const CPU: &Device = &Device::Cpu;
const LABELS: [u32; 3] = [4, 0, 2];

fn logits(label: &str) -> Tensor {
    (random(label, &[12, 5], DType::F64) * 3.0).unwrap()
}

fn proj(label: &str) -> Tensor {
    random(label, &[12, 4], DType::F64)
}

fn heads(label: &str) -> Vec<Tensor> {
    (0..2).map(|l| (random(&format!("{label}{l}"), &[12, 20], DType::F64) * 3.0).unwrap()).collect()
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12 * (1.0 + b.abs()), "{a} against {b}");
}

fn rows(x: &Tensor, rows: &[u32]) -> Tensor {
    x.index_select(&Tensor::new(rows, CPU).unwrap(), 0).unwrap()
}

/// Rows of three images in another order of the images.
const ORDER: [usize; 3] = [2, 0, 1];

fn reordered(x: &Tensor) -> Tensor {
    let order: Vec<u32> = ORDER.iter().flat_map(|&i| (0..4).map(move |k| 4 * i as u32 + k)).collect();
    rows(x, &order)
}

fn reordered_labels() -> [u32; 3] {
    ORDER.map(|i| LABELS[i])
}

fn sum(terms: &[Term]) -> Result<Tensor> {
    let mut total = terms[0].weighted()?;
    for term in &terms[1..] {
        total = (total + term.weighted()?)?;
    }
    Ok(total)
}

/// Checks the gradients of `f` at `inputs` by central differences.
fn check_gradient(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let grads = f(&tensors).unwrap().backward().unwrap();
    for (k, var) in vars.iter().enumerate() {
        let (grad, values) = (flat(grads.get(var).unwrap()), flat(&inputs[k]));
        for i in (0..values.len()).step_by(3) {
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

// sskd

#[test]
fn turned_views_are_compared_with_unturned_ones() {
    let p = proj("p");
    let similarity = rotation_similarity(&p).unwrap().to_vec2::<f64>().unwrap();
    let p = p.to_vec2::<f64>().unwrap();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut loss = 0.0;
    for i in 0..3 {
        for k in 1..4 {
            let row = &similarity[3 * i + k - 1];
            for j in 0..3 {
                let (a, b) = (&p[4 * i + k], &p[4 * j]);
                close(row[j], dot(a, b) / (dot(a, a) * dot(b, b)).sqrt());
            }
            loss -= row[i] - row.iter().map(|s| s.exp()).sum::<f64>().ln();
        }
    }
    close(scalar(&ssp(&proj("p")).unwrap()), loss / 9.0);
}

#[test]
fn ranks_count_strictly_better_columns() {
    let scores = Tensor::new(&[[0.5, 0.5, 0.1], [0.2, 0.9, 0.9], [0.3, 0.2, 0.1]], CPU).unwrap();
    assert_eq!(answer_ranks(&scores, &[1, 0, 2]).unwrap(), [0, 2, 2]);
    assert!(answer_ranks(&scores, &[1, 0]).unwrap_err().to_string().contains("3 rows, found 2"));
    assert!(answer_ranks(&scores, &[1, 0, 3]).unwrap_err().to_string().contains("answer 3"));
}

#[test]
fn selection_is_stable_and_cuts_off_downwards() {
    let ranks = [0, 2, 1, 2, 0, 1, 3];
    let kept = |ratio| select_rows(&ranks, ratio).unwrap();
    assert_eq!(kept(1.0), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(kept(0.0), [0, 4]);
    // Of five wrong rows 3.75, cut off to 3: both of rank 1 and the first of rank 2.
    assert_eq!(kept(0.75), [0, 1, 2, 4, 5]);
    assert_eq!(kept(0.39), [0, 2, 4]);
    assert_eq!(select_rows(&[0; 4], 0.0).unwrap(), [0, 1, 2, 3]);
    assert_eq!(select_rows(&[1; 4], 0.0).unwrap(), [0u32; 0]);
    assert_eq!(select_rows(&[], 0.5).unwrap(), [0u32; 0]);
    for ratio in [-0.1, 1.5, f64::NAN] {
        assert!(select_rows(&ranks, ratio).unwrap_err().to_string().contains("`ratio`"));
    }
}

fn of(config: &SskdConfig, [z, p]: [&Tensor; 2], [tz, tp]: [&Tensor; 2], labels: &[u32]) -> SskdLoss {
    sskd(&SskdOutputs { logits: z, proj: p }, &SskdOutputs { logits: tz, proj: tp }, labels, config).unwrap()
}

fn parts(loss: &SskdLoss) -> [f64; 4] {
    [&loss.ce, &loss.kd, &loss.tf, &loss.ss].map(scalar)
}

#[test]
fn the_four_parts_by_other_means() {
    let (z, p, tz, tp) = (logits("z"), proj("p"), logits("tz"), proj("tp"));
    let config = SskdConfig { ratio_tf: 0.5, ..SskdConfig::default() };
    let loss = of(&config, [&z, &p], [&tz, &tp], &LABELS);
    let labels = Tensor::new(&LABELS, CPU).unwrap();
    let plain = [0, 4, 8];
    close(scalar(&loss.ce), scalar(&cross_entropy(&rows(&z, &plain), &labels).unwrap()));
    close(scalar(&loss.kd), scalar(&kd(&rows(&z, &plain), &rows(&tz, &plain), 4.0).unwrap()));
    // Row r of the turned ones is row 4 (r / 3) + r % 3 + 1 of all.
    let turned: Vec<u32> = loss.kept_tf.iter().map(|&r| 4 * (r / 3) + r % 3 + 1).collect();
    close(scalar(&loss.tf), scalar(&kd(&rows(&z, &turned), &rows(&tz, &turned), 4.0).unwrap()));
    let similar = |p: &Tensor| rows(&rotation_similarity(p).unwrap(), &loss.kept_ss);
    close(scalar(&loss.ss), scalar(&kd(&similar(&p), &similar(&tp), 0.5).unwrap()));
    assert!(loss.kept_tf.len() < 9 && !loss.kept_tf.is_empty());
    // What the log shows adds up to what is minimised.
    let terms = loss.terms(&config).unwrap();
    let names: Vec<&str> = terms.iter().map(|term| term.name).collect();
    assert_eq!(names, ["sskd.ce", "sskd.kd", "sskd.tf", "sskd.ss"]);
    let [ce, kd, tf, ss] = parts(&loss);
    close(scalar(&sum(&terms).unwrap()), 0.1 * ce + 0.9 * kd + 2.7 * tf + 10.0 * ss);
    assert_eq!(scalar(&terms[2].parts[0].1), loss.kept_tf.len() as f64);
}

#[test]
fn sskd_has_its_gradient_and_spares_the_teacher() {
    let (tz, tp) = (logits("tz"), proj("tp"));
    let config = SskdConfig::default();
    check_gradient(&[logits("z"), proj("p")], |x| {
        sum(&of(&config, [&x[0], &x[1]], [&tz, &tp], &LABELS).terms(&config)?)
    });
    check_gradient(&[proj("p")], |x| ssp(&x[0]));
    let (tz, tp) = (Var::from_tensor(&tz).unwrap(), Var::from_tensor(&tp).unwrap());
    let loss = of(&config, [&logits("z"), &proj("p")], [&tz, &tp], &LABELS);
    let grads = sum(&loss.terms(&config).unwrap()).unwrap().backward().unwrap();
    assert!(grads.get(&tz).is_none() && grads.get(&tp).is_none());
}

#[test]
fn sskd_ignores_shifts_scales_and_the_order_of_images() {
    let (z, p, tz, tp) = (logits("z"), proj("p"), logits("tz"), proj("tp"));
    let config = SskdConfig::default();
    let plain = parts(&of(&config, [&z, &p], [&tz, &tp], &LABELS));
    let moved = of(
        &config,
        [&(&z + 30.0).unwrap(), &(&p * 7.0).unwrap()],
        [&(&tz - 9.0).unwrap(), &(&tp * 0.1).unwrap()],
        &LABELS,
    );
    let [oz, op, otz, otp] = [&z, &p, &tz, &tp].map(reordered);
    let other = of(&config, [&oz, &op], [&otz, &otp], &reordered_labels());
    for (i, (moved, other)) in parts(&moved).into_iter().zip(parts(&other)).enumerate() {
        assert!((moved - plain[i]).abs() < 1e-11 && (other - plain[i]).abs() < 1e-12, "{i}");
    }
    let same = of(&config, [&z, &p], [&z, &p], &LABELS);
    assert_eq!(parts(&same)[1..], [0.0; 3]);
}

#[test]
fn one_row_no_row_and_all_rows() {
    let (z, p) = (Var::from_tensor(&logits("z")).unwrap(), Var::from_tensor(&proj("p")).unwrap());
    // The teacher is right about nothing: the label's score is the lowest, and views look like the next image.
    let labels = [0u32; 3];
    let tz = Tensor::new(&[[-5.0, 1.0, 2.0, 3.0, 4.0]; 12], CPU).unwrap();
    let axes = |turned: usize| {
        let image = |r: usize| if r.is_multiple_of(4) { r / 4 } else { (r / 4 + turned) % 3 };
        let values: Vec<f64> = (0..48).map(|i| f64::from(u8::from(i % 4 == image(i / 4)))).collect();
        Tensor::from_vec(values, (12, 4), CPU).unwrap()
    };
    let (wrong, right) = (axes(1), axes(0));
    let keep = |ratio_tf, ratio_ss| SskdConfig { ratio_tf, ratio_ss, ..SskdConfig::default() };
    let none = of(&keep(0.0, 0.0), [&z, &p], [&tz, &wrong], &labels);
    assert_eq!((none.kept_tf.len(), none.kept_ss.len(), scalar(&none.tf), scalar(&none.ss)), (0, 0, 0.0, 0.0));
    // Nothing is learned, but the projection head stays a part of the objective.
    let grad = flat(none.ss.backward().unwrap().get(&p).unwrap());
    assert!(grad.iter().all(|g| *g == 0.0));
    let one = of(&keep(0.12, 0.12), [&z, &p], [&tz, &wrong], &labels);
    assert_eq!((&one.kept_tf, &one.kept_ss), (&vec![0], &vec![0]));
    close(scalar(&one.tf), scalar(&kd(&rows(&z, &[1]), &rows(&tz, &[1]), 4.0).unwrap()));
    let all = of(&keep(1.0, 0.0), [&z, &p], [&tz, &right], &labels);
    assert_eq!((all.kept_tf.len(), all.kept_ss.len()), (9, 9));
    // A single image looks like itself.
    let single = |x: &Tensor| x.narrow(0, 0, 4).unwrap();
    let alone = of(&keep(0.0, 0.0), [&single(&z), &single(&p)], [&single(&tz), &single(&wrong)], &[0]);
    assert_eq!((alone.kept_ss.len(), scalar(&alone.ss), scalar(&ssp(&single(&p)).unwrap())), (3, 0.0, 0.0));
}

#[test]
fn extreme_inputs_of_sskd_are_finite() {
    let wide = |label: &str| (random(label, &[12, 5], DType::F32).sign().unwrap() * 80.0).unwrap();
    let zeros = Tensor::zeros((12, 4), DType::F32, CPU).unwrap();
    let p = proj("p").to_dtype(DType::F32).unwrap();
    for (ours, theirs) in [(&p, &zeros), (&zeros, &p), (&zeros, &zeros)] {
        let (z, ours) = (Var::from_tensor(&wide("z")).unwrap(), Var::from_tensor(ours).unwrap());
        let config = SskdConfig::default();
        let loss = of(&config, [&z, &ours], [&wide("tz"), theirs], &LABELS);
        let total = sum(&loss.terms(&config).unwrap()).unwrap();
        assert!(scalar(&total).is_finite() && total.dtype() == DType::F32);
        let grads = total.backward().unwrap();
        assert!([&z, &ours].iter().all(|x| flat(grads.get(x).unwrap()).iter().all(|g| g.is_finite())));
    }
    let nan = (&p * f64::NAN).unwrap();
    assert!(scalar(&ssp(&nan).unwrap()).is_nan());
}

#[test]
fn wrong_batches_of_sskd_are_errors() {
    let (z, p) = (logits("z"), proj("p"));
    let config = SskdConfig::default();
    let message = |z: &Tensor, p: &Tensor, labels: &[u32], config: &SskdConfig| {
        let (tz, tp) = (logits("tz"), proj("tp"));
        let student = SskdOutputs { logits: z, proj: p };
        let found = sskd(&student, &SskdOutputs { logits: &tz, proj: &tp }, labels, config);
        let message = found.unwrap_err().to_string();
        assert!(message.starts_with("sskd: "), "{message}");
        message
    };
    let short = |x: &Tensor, n| x.narrow(0, 0, n).unwrap();
    assert!(message(&short(&z, 10), &p, &LABELS, &config).contains("four rows for each image"));
    assert!(message(&z, &p, &LABELS[..2], &config).contains("3 images, found 2"));
    assert!(message(&z, &p, &[0, 5, 0], &config).contains("label 5"));
    assert!(message(&z, &short(&p, 8), &LABELS, &config).contains("[12, D]"));
    assert!(message(&short(&z, 8), &short(&p, 8), &LABELS[..2], &config).contains("3 images"));
    let narrow = z.narrow(1, 0, 4).unwrap();
    assert!(message(&narrow, &p, &[0, 1, 2], &config).contains("[12, 4]"));
    for (field, config) in [
        ("`ratio_ss`", SskdConfig { ratio_ss: 2.0, ..SskdConfig::default() }),
        ("`ss_temperature`", SskdConfig { ss_temperature: 0.0, ..SskdConfig::default() }),
        ("`tf_weight`", SskdConfig { tf_weight: -1.0, ..SskdConfig::default() }),
    ] {
        assert!(message(&z, &p, &LABELS, &config).contains(field));
    }
    assert!(ssp(&short(&p, 6)).is_err());
    assert!(serde_json::from_str::<SskdConfig>(r#"{"ratio": 1}"#).is_err());
    assert_eq!(serde_json::from_str::<SskdConfig>("{}").unwrap(), SskdConfig::default());
}

// hsakd

#[test]
fn hsakd_by_other_means() {
    let (z, h, tz, th) = (logits("z"), heads("h"), logits("tz"), heads("th"));
    let (student, teacher) = (HsakdOutputs { logits: &z, heads: &h }, HsakdOutputs { logits: &tz, heads: &th });
    let joint = Tensor::new(&[16u32, 17, 18, 19, 0, 1, 2, 3, 8, 9, 10, 11], CPU).unwrap();
    let ce = scalar(&cross_entropy(&rows(&z, &[0, 4, 8]), &Tensor::new(&LABELS, CPU).unwrap()).unwrap());
    let by_joint = |head: &Tensor| scalar(&cross_entropy(head, &joint).unwrap());
    let config = HsakdConfig::default();

    let phase = hsakd_teacher(&student, &LABELS).unwrap();
    close(scalar(&phase.ce), ce);
    close(scalar(&phase.joint[1]), by_joint(&h[1]));
    let terms = phase.terms(&config).unwrap();
    assert_eq!([terms[0].name, terms[1].name], ["hsakd-teacher.ce", "hsakd-teacher.joint"]);
    close(scalar(&sum(&terms).unwrap()), ce + by_joint(&h[0]) + by_joint(&h[1]));

    let loss = hsakd_student(&student, &teacher, &LABELS, 3.0).unwrap();
    close(scalar(&loss.ce), ce);
    close(scalar(&loss.kd), scalar(&kd(&z, &tz, 3.0).unwrap()));
    close(scalar(&loss.heads[1]), scalar(&kd(&h[1], &th[1], 3.0).unwrap()));
    let config = HsakdConfig { heads_weight: 0.5, ..config };
    let terms = loss.terms(&config).unwrap();
    assert_eq!([terms[0].name, terms[1].name, terms[2].name], ["hsakd.ce", "hsakd.kd", "hsakd.heads"]);
    let names: Vec<&str> = terms[2].parts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["head0", "head1"]);
    close(scalar(&terms[2].weighted().unwrap()), 0.5 * (scalar(&loss.heads[0]) + scalar(&loss.heads[1])));

    let scores = class_scores(&h[0]).unwrap().to_vec2::<f64>().unwrap();
    let first = &h[0].to_vec2::<f64>().unwrap()[7];
    close(scores[7][3], first[12..16].iter().sum());
}

#[test]
fn each_online_network_is_the_student_of_the_other() {
    let (z, h, tz, th) = (logits("z"), heads("h"), logits("tz"), heads("th"));
    let (a, b) = (HsakdOutputs { logits: &z, heads: &h }, HsakdOutputs { logits: &tz, heads: &th });
    let both = hssakd_online(&[a, b], &LABELS, 3.0).unwrap();
    for (n, (student, teacher)) in [(a, b), (b, a)].into_iter().enumerate() {
        let taught = hsakd_student(&student, &teacher, &LABELS, 3.0).unwrap();
        let alone = hsakd_teacher(&student, &LABELS).unwrap();
        assert_eq!(scalar(&both.ce[n]), scalar(&alone.ce));
        assert_eq!(scalar(&both.joint[n][1]), scalar(&alone.joint[1]));
        assert_eq!(scalar(&both.kd[n]), scalar(&taught.kd));
        assert_eq!(scalar(&both.heads[n][0]), scalar(&taught.heads[0]));
    }
    let terms = both.terms(&HsakdConfig::default()).unwrap();
    let names: Vec<&str> = terms.iter().map(|term| term.name).collect();
    assert_eq!(names, ["hssakd.ce", "hssakd.joint", "hssakd.kd", "hssakd.heads"]);
    let names: Vec<&str> = terms[3].parts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["network0.head0", "network0.head1", "network1.head0", "network1.head1"]);
    for term in &terms {
        close(term.parts.iter().map(|(_, part)| scalar(part)).sum(), scalar(&term.value));
    }
    let same = hssakd_online(&[a, a], &LABELS, 3.0).unwrap();
    assert!(same.kd.iter().chain(same.heads.iter().flatten()).all(|part| scalar(part) == 0.0));
}

#[test]
fn hsakd_has_its_gradient_and_spares_the_teacher() {
    let (tz, th) = (logits("tz"), heads("th"));
    let config = HsakdConfig::default();
    let inputs = [vec![logits("z")], heads("h")].concat();
    check_gradient(&inputs, |x| {
        let (student, teacher) =
            (HsakdOutputs { logits: &x[0], heads: &x[1..] }, HsakdOutputs { logits: &tz, heads: &th });
        sum(&hsakd_student(&student, &teacher, &LABELS, 3.0)?.terms(&config)?)
    });
    check_gradient(&inputs, |x| {
        sum(&hsakd_teacher(&HsakdOutputs { logits: &x[0], heads: &x[1..] }, &LABELS)?.terms(&config)?)
    });
    // Online both are taught, each by a constant: the sum of two offline students.
    let vars: Vec<Var> =
        [vec![logits("tz")], heads("th")].concat().iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|x| x.as_tensor().clone()).collect();
    let (z, h) = (logits("z"), heads("h"));
    let student = HsakdOutputs { logits: &z, heads: &h };
    let other = HsakdOutputs { logits: &tensors[0], heads: &tensors[1..] };
    let offline = sum(&hsakd_student(&student, &other, &LABELS, 3.0).unwrap().terms(&config).unwrap()).unwrap();
    let grads = offline.backward().unwrap();
    assert!(vars.iter().all(|var| grads.get(var).is_none()));
    let online = hssakd_online(&[student, other], &LABELS, 3.0).unwrap();
    let taught = hsakd_student(&other, &student, &LABELS, 3.0).unwrap();
    let gradient = |loss: &Tensor| flat(loss.backward().unwrap().get(&vars[0]).unwrap());
    assert_eq!(gradient(&(&online.kd[0] + &online.kd[1]).unwrap()), gradient(&taught.kd));
}

#[test]
fn hsakd_ignores_shifts_and_the_order_of_images() {
    let (z, h, tz, th) = (logits("z"), heads("h"), logits("tz"), heads("th"));
    let value = |z: &Tensor, h: &[Tensor], tz: &Tensor, th: &[Tensor], labels: &[u32]| {
        let (a, b) = (HsakdOutputs { logits: z, heads: h }, HsakdOutputs { logits: tz, heads: th });
        scalar(&sum(&hssakd_online(&[a, b], labels, 3.0).unwrap().terms(&HsakdConfig::default()).unwrap()).unwrap())
    };
    let plain = value(&z, &h, &tz, &th, &LABELS);
    let shifted = |x: &Tensor| (x + 21.0).unwrap();
    let moved: Vec<Tensor> = h.iter().map(shifted).collect();
    assert!((value(&shifted(&z), &moved, &tz, &th, &LABELS) - plain).abs() < 1e-10);
    let list = |x: &[Tensor]| x.iter().map(reordered).collect::<Vec<_>>();
    let other = value(&reordered(&z), &list(&h), &reordered(&tz), &list(&th), &reordered_labels());
    assert!((other - plain).abs() < 1e-11);
    // Saturated.
    let wide = |x: &Tensor| (x.to_dtype(DType::F32).unwrap().sign().unwrap() * 80.0).unwrap();
    let all = |x: &[Tensor]| x.iter().map(wide).collect::<Vec<_>>();
    assert!(value(&wide(&z), &all(&h), &wide(&tz), &all(&th), &LABELS).is_finite());
}

#[test]
fn wrong_batches_of_hsakd_are_errors() {
    let (z, h) = (logits("z"), heads("h"));
    let message = |z: &Tensor, h: &[Tensor], labels: &[u32]| {
        let network = HsakdOutputs { logits: z, heads: h };
        let message = hsakd_teacher(&network, labels).unwrap_err().to_string();
        assert!(message.starts_with("hsakd: "), "{message}");
        message
    };
    assert!(message(&z, &[], &LABELS).contains("at least one auxiliary head"));
    assert!(message(&z, &[h[0].clone(), z.clone()], &LABELS).contains("head 1"));
    assert!(message(&z, &h, &[0, 0]).contains("3 images"));
    assert!(message(&z, &h, &[0, 9, 0]).contains("label 9"));
    assert!(message(&z.narrow(0, 0, 9).unwrap(), &h, &LABELS).contains("[9, 5]"));
    let (two, one) = (HsakdOutputs { logits: &z, heads: &h }, HsakdOutputs { logits: &z, heads: &h[..1] });
    let found = hsakd_student(&two, &one, &LABELS, 3.0).unwrap_err().to_string();
    assert!(found.contains("found 2 and 1"), "{found}");
    let found = hssakd_online(&[two, one], &LABELS, 3.0).unwrap_err().to_string();
    assert!(found.starts_with("hssakd: "), "{found}");
    assert!(hsakd_student(&two, &two, &LABELS, 0.0).is_err());
    assert!(class_scores(&z).unwrap_err().to_string().contains("[N, 4C]"));
    let config: HsakdConfig = serde_json::from_str(r#"{"temperature": -3}"#).unwrap();
    assert!(config.validate().unwrap_err().to_string().starts_with("hsakd: field `temperature`"));
    assert!(serde_json::from_str::<HsakdConfig>(r#"{"kd": 1}"#).is_err());
}
