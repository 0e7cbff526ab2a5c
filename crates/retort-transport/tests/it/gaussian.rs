//! Distances of Gaussians.

use crate::clouds::{
    Clouds, all_close, check_extremes, check_gradient, check_order, check_rotation, check_scale, check_threads,
    check_translation, close, clouds, few,
};
use proptest::prelude::*;
use retort_transport::{
    Distance, GaussianKlOptions, GaussianW2Options, KlCovariance, KlDirection, Points, frechet, gaussian_kl,
    gaussian_w2, gaussian_w2_diag, w2,
};

const DIRECTIONS: [KlDirection; 3] = [KlDirection::StudentTeacher, KlDirection::TeacherStudent, KlDirection::Jeffreys];

fn full(reg: f64, bias: bool) -> impl Fn(&Clouds) -> Distance + Sync {
    let options = GaussianW2Options { reg, bias, reg_floor: 0.0 };
    move |c| gaussian_w2(c.x(), c.y(), &options).unwrap().distance
}

fn diag(eps: f64) -> impl Fn(&Clouds) -> Distance + Sync {
    move |c| gaussian_w2_diag(c.x(), c.y(), eps).unwrap().distance
}

fn kl(covariance: KlCovariance, direction: KlDirection, reg: f64) -> impl Fn(&Clouds) -> Distance + Sync {
    let options = GaussianKlOptions { covariance, direction, reg };
    move |c| gaussian_kl(c.x(), c.y(), &options).unwrap().distance
}

#[test]
fn bures_by_hand() {
    // Covariances diag(1, 4) and diag(9, 1); the means differ by (1, 2).
    let x = [1.0, 2.0, 1.0, -2.0, -1.0, 2.0, -1.0, -2.0];
    let y = [4.0, 3.0, 4.0, 1.0, -2.0, 3.0, -2.0, 1.0];
    let c = Clouds::new(&x, &y, 2);
    let options = GaussianW2Options { reg: 0.0, ..GaussianW2Options::default() };
    let found = gaussian_w2(c.x(), c.y(), &options).unwrap();
    close(found.mean_part, 5.0, 1e-14);
    close(found.cov_part, 4.0 + 1.0, 1e-14);
    // T = diag(3, 1/2): (2/4) [(-1, -2) + ((1-3) 1, (1-1/2) 2)] for the first point.
    all_close(&found.distance.grad_x[..2], &[0.5 * (-1.0 - 2.0), 0.5 * (-2.0 + 1.0)], 1e-13);
    assert_eq!(found.advised_reg, 0.0);
    let diag = gaussian_w2_diag(c.x(), c.y(), 0.0).unwrap();
    close(diag.distance.value, found.distance.value, 1e-14);
    all_close(&diag.distance.grad_x, &found.distance.grad_x, 1e-13);
    // Unbiased covariances are 4/3 as large.
    close(frechet(c.x(), c.y()).unwrap(), 5.0 + 5.0 * 4.0 / 3.0, 1e-14);
}

#[test]
fn frechet_of_few_points() {
    // Two points each in three coordinates: covariances of rank 1 along (1,0,0) and (0,1,0), traces 2 and 8.
    let c = Clouds::new(&[1.0, 0.0, 0.0, -1.0, 0.0, 0.0], &[0.0, 2.0, 5.0, 0.0, -2.0, 5.0], 3);
    close(frechet(c.x(), c.y()).unwrap(), 25.0 + 2.0 + 8.0, 1e-13);
    // The same line: (sqrt 8 - sqrt 2)^2.
    let c = Clouds::new(&[1.0, 0.0, 0.0, -1.0, 0.0, 0.0], &[2.0, 0.0, 0.0, -2.0, 0.0, 0.0], 3);
    close(frechet(c.x(), c.y()).unwrap(), 2.0, 1e-13);
    assert!(frechet(c.x(), Clouds::new(&[0.0; 3], &[0.0; 3], 3).x()).is_err());
    let same = Clouds::seeded(5, 5, 9, 2);
    assert!(frechet(same.x(), same.x()).unwrap() < 1e-28);
}

#[test]
fn close_clouds_keep_their_digits() {
    // y is x stretched by 1 + t along the first axis: the Bures part is t^2 times the variance there.
    let c = Clouds::seeded(40, 1, 4, 3);
    let t = 2f64.powi(-30);
    let stretched: Vec<f64> =
        c.x.iter().enumerate().map(|(at, v)| if at % 4 == 0 { v * (1.0 + t) } else { *v }).collect();
    let c = Clouds { y: stretched, ..c };
    let column = |v: &[f64]| v.iter().step_by(4).copied().collect::<Vec<_>>();
    let mean = column(&c.x).iter().sum::<f64>() / 40.0;
    let variance = column(&c.x).iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / 40.0;
    let options = GaussianW2Options { reg: 0.0, ..GaussianW2Options::default() };
    let found = gaussian_w2(c.x(), c.y(), &options).unwrap();
    // Stretching along an axis isn't the optimal map where coordinates correlate: at most that, and about that.
    assert!(found.cov_part <= variance * t * t * 1.001 && found.cov_part >= 0.5 * variance * t * t);
}

#[test]
fn dead_units_have_no_slope() {
    // The first coordinate of x is dead at a value that is no binary fraction; that of y is alive.
    let c = Clouds::new(&[0.1, 1.0, 0.1, 2.0, 0.1, 4.0], &[1.0, 1.0, 2.0, 1.0, 6.0, 2.0], 2);
    let found = diag(0.0)(&c);
    let step = 2.0 / 3.0 * (0.1 - 3.0);
    for row in found.grad_x.chunks(2) {
        close(row[0], step, 1e-15);
    }
    assert!(found.grad_y.iter().all(|g| g.is_finite()));
    let one = Clouds::new(&[1.0, 2.0], &[4.0, 2.0], 2);
    assert_eq!(diag(0.0)(&one), Distance { value: 9.0, grad_x: vec![-6.0, 0.0], grad_y: vec![6.0, 0.0] });
    let found = kl(KlCovariance::Diagonal, KlDirection::StudentTeacher, 1e-3)(&c);
    assert!(found.value.is_finite() && found.grad_x.iter().chain(&found.grad_y).all(|g| g.is_finite()));
}

#[test]
fn kl_by_hand() {
    let c = Clouds::new(&[1.0, 2.0, 1.0, -2.0, -1.0, 2.0, -1.0, -2.0], &[4.0, 3.0, 4.0, 1.0, -2.0, 3.0, -2.0, 1.0], 2);
    let st = 0.5 * (1.0 / 9.0 + 4.0 + 1.0 / 9.0 + 4.0 - 2.0 + (9f64 / 4.0).ln());
    let ts = 0.5 * (9.0 + 0.25 + 1.0 + 1.0 - 2.0 + (4f64 / 9.0).ln());
    for covariance in [KlCovariance::Diagonal, KlCovariance::Full] {
        for direction in DIRECTIONS {
            let found = gaussian_kl(c.x(), c.y(), &GaussianKlOptions { covariance, direction, reg: 0.0 }).unwrap();
            close(found.student_teacher, st, 1e-14);
            close(found.teacher_student, ts, 1e-14);
            let value = [st, ts, st + ts][direction as usize];
            close(found.distance.value, value, 1e-14);
        }
    }
}

#[test]
fn reg_of_the_diagonal_form_stands_where_the_reference_has_it() {
    let c = Clouds::new(&[-1.0, 1.0], &[-2.0, 4.0], 1); // deviations 1 and 3, means 0 and 1
    let r = 0.5;
    let found = kl(KlCovariance::Diagonal, KlDirection::StudentTeacher, r)(&c);
    close(found.value, 0.5 * (1.0 / 12.25 + 1.0 / 12.25 - 1.0 + 2.0 * (3.0 / 1.5f64).ln()), 1e-15);
}

#[test]
fn the_rule_for_few_points() {
    let c = Clouds::seeded(5, 12, 6, 1);
    let with = |reg, reg_floor| gaussian_w2(c.x(), c.y(), &GaussianW2Options { bias: true, reg, reg_floor });
    let message = with(1e-6, 1e-3).unwrap_err().to_string();
    assert!(
        message.starts_with("gaussian-w2: student has 5 points in 6 coordinates: `reg` must be at least"),
        "{message}"
    );
    let needed = with(1e-2, 1e-3).unwrap().advised_reg;
    assert!(needed > 0.0 && needed < 1e-2);
    assert!(with(1e-6, 0.0).unwrap().advised_reg > 0.0);
    let singular = with(0.0, 0.0).unwrap_err().to_string();
    assert!(singular.contains("student (5 points, 6 coordinates) is not positive definite; raise `reg`"), "{singular}");
    // Twelve points are twice six: the rule is for the student alone.
    let other = gaussian_w2(c.y(), c.y(), &GaussianW2Options { bias: true, reg: 0.0, reg_floor: 1e-3 }).unwrap();
    assert_eq!(other.advised_reg, 0.0);
}

#[test]
fn bad_arguments_are_named() {
    let c = Clouds::new(&[0.0, 1.0, 3.0, 0.5, 1.0, 7.0], &[1.0, 2.0], 2);
    let w = |options: GaussianW2Options| gaussian_w2(c.x(), c.y(), &options).unwrap_err().to_string();
    let default = GaussianW2Options::default;
    assert!(w(GaussianW2Options { reg: -1.0, ..default() }).starts_with("option `reg`"));
    assert!(w(GaussianW2Options { reg_floor: f64::NAN, ..default() }).starts_with("option `reg_floor`"));
    assert_eq!(w(GaussianW2Options { bias: false, ..default() }), "teacher: expected at least 2 points, found 1");
    assert!(gaussian_w2_diag(c.x(), c.y(), -0.1).unwrap_err().to_string().starts_with("option `eps`"));
    for covariance in [KlCovariance::Diagonal, KlCovariance::Full] {
        let options = GaussianKlOptions { covariance, reg: 0.0, ..GaussianKlOptions::default() };
        let message = gaussian_kl(c.x(), c.y(), &options).unwrap_err().to_string();
        assert!(message.starts_with("gaussian-kl:") && message.contains("teacher"), "{message}");
    }
    // Only the direction that is asked for has to exist.
    let options = GaussianKlOptions { direction: KlDirection::TeacherStudent, ..GaussianKlOptions::default() };
    let found = gaussian_kl(c.x(), c.y(), &options).unwrap();
    assert!(found.teacher_student.is_finite() && found.student_teacher == f64::NEG_INFINITY);
    let wide = Clouds::new(&[0.0; 3], &[0.0; 3], 3);
    assert!(gaussian_w2(c.x(), wide.y(), &default()).is_err() && frechet(c.x(), wide.y()).is_err());
}

#[test]
fn extremes() {
    for reg in [0.0, 1e-6, 1.0] {
        for bias in [true, false] {
            let options = GaussianW2Options { reg, bias, reg_floor: 0.0 };
            check_extremes(|c| gaussian_w2(c.x(), c.y(), &options).map(|g| g.distance));
        }
        check_extremes(|c| gaussian_w2_diag(c.x(), c.y(), reg).map(|g| g.distance));
        for covariance in [KlCovariance::Diagonal, KlCovariance::Full] {
            for direction in DIRECTIONS {
                let options = GaussianKlOptions { covariance, direction, reg };
                check_extremes(|c| gaussian_kl(c.x(), c.y(), &options).map(|g| g.distance));
            }
        }
    }
    check_extremes(|c| frechet(c.x(), c.y()).map(|value| Distance { value, grad_x: vec![], grad_y: vec![] }));
}

#[test]
fn rank_deficient_gradients() {
    let c = Clouds::seeded(4, 3, 6, 8);
    check_gradient(&c, 1e-5, full(0.05, true));
    check_gradient(&c, 1e-5, full(0.05, false));
    for direction in DIRECTIONS {
        check_gradient(&c, 1e-5, kl(KlCovariance::Full, direction, 0.05));
    }
}

#[test]
fn threads_change_nothing() {
    let c = Clouds::seeded(150, 130, 40, 2);
    check_threads(&c, full(1e-6, true));
    check_threads(&c, kl(KlCovariance::Full, KlDirection::Jeffreys, 1e-6));
    check_threads(&c, diag(0.0));
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn gradients(c in clouds(5..9, 1..4)) {
        for bias in [true, false] {
            check_gradient(&c, 1e-5, full(0.1, bias));
        }
        check_gradient(&c, 1e-5, diag(0.1));
        for direction in DIRECTIONS {
            for covariance in [KlCovariance::Diagonal, KlCovariance::Full] {
                check_gradient(&c, 1e-5, kl(covariance, direction, 0.3));
            }
        }
    }

    #[test]
    fn invariances(c in clouds(6..9, 1..4)) {
        let (w, d) = (full(0.0, true), diag(0.0));
        check_order(&c, true, 1e-9, &w);
        check_translation(&c, 1e-7, &w);
        check_rotation(&c, 1e-9, &w);
        check_scale(&c, 2, 1e-9, &w);
        check_order(&c, true, 1e-10, &d);
        check_translation(&c, 1e-8, &d);
        check_scale(&c, 2, 1e-10, &d);
        for covariance in [KlCovariance::Diagonal, KlCovariance::Full] {
            let jeffreys = kl(covariance, KlDirection::Jeffreys, 0.0);
            let relative = jeffreys(&c).value;
            prop_assume!(relative < 1e3);
            check_order(&c, true, 1e-7, &jeffreys);
            check_translation(&c, 1e-5, &jeffreys);
            check_scale(&c, 0, 1e-7, &jeffreys);
            check_order(&c, false, 1e-7, kl(covariance, KlDirection::StudentTeacher, 0.0));
        }
        check_rotation(&c, 1e-8, kl(KlCovariance::Full, KlDirection::StudentTeacher, 0.0));
    }

    /// One direction is the other with the clouds exchanged.
    #[test]
    fn directions_exchange_roles(c in clouds(5..9, 1..4)) {
        for covariance in [KlCovariance::Diagonal, KlCovariance::Full] {
            let there = kl(covariance, KlDirection::StudentTeacher, 0.1)(&c);
            let back = kl(covariance, KlDirection::TeacherStudent, 0.1)(&c.swapped());
            close(there.value, back.value, 1e-13);
            all_close(&there.grad_x, &back.grad_y, 1e-12);
            all_close(&there.grad_y, &back.grad_x, 1e-12);
        }
    }

    #[test]
    fn zero_at_identity(c in clouds(1..7, 1..4)) {
        let same = Clouds { y: c.x.clone(), ..c };
        let jeffreys = kl(KlCovariance::Full, KlDirection::Jeffreys, 0.1);
        for found in [full(0.1, true)(&same), diag(0.1)(&same), jeffreys(&same)] {
            prop_assert!(found.value >= 0.0 && found.value < 1e-20, "{}", found.value);
            prop_assert!(found.grad_x.iter().chain(&found.grad_y).all(|g| g.abs() < 1e-12));
        }
    }

    #[test]
    fn full_kl_is_never_negative(c in clouds(1..7, 1..4)) {
        prop_assert!(kl(KlCovariance::Full, KlDirection::StudentTeacher, 0.01)(&c).value >= 0.0);
    }

    /// Gelbrich: the Gaussians are never further apart than the clouds.
    #[test]
    fn gelbrich(c in clouds(1..9, 1..4)) {
        let clouds = w2(c.x(), c.y()).unwrap().distance.value;
        let diagonal = gaussian_w2_diag(c.x(), c.y(), 0.0).unwrap().distance.value;
        prop_assert!(diagonal <= clouds + 1e-12);
        // Adding reg I to both covariances (independent noise shared by both clouds) only brings them closer.
        let full = full(1e-9, true)(&c).value;
        prop_assert!(full <= clouds + 1e-12 && full >= diagonal - 1e-3, "{} {} {}", diagonal, full, clouds);
        if c.x().len() == c.y().len() {
            let paired: f64 = c.x.iter().zip(&c.y).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / c.x().len() as f64;
            prop_assert!(full <= paired + 1e-12);
        }
    }
}

/// The diagonal form with `reg` in the variances is the full form of one coordinate at a time.
#[test]
fn regularised_variances_are_the_full_form_of_single_coordinates() {
    let x = [0.3, 1.0, 5.0, -1.2, 2.0, 5.0, 0.9, -0.7, 5.0, 2.2, 0.1, 5.0];
    let y = [1.3, 0.0, 4.0, 0.2, 1.0, 6.0, -0.9, 0.5, 5.5];
    for direction in [KlDirection::StudentTeacher, KlDirection::TeacherStudent, KlDirection::Jeffreys] {
        let kl = |x: &[f64], y: &[f64], width, covariance| {
            let (x, y) = (Points::new("x", x, width).unwrap(), Points::new("y", y, width).unwrap());
            gaussian_kl(x, y, &GaussianKlOptions { covariance, direction, reg: 0.1 }).unwrap()
        };
        let all = kl(&x, &y, 3, KlCovariance::Variances);
        let mut value = 0.0;
        for c in 0..3 {
            let column = |values: &[f64]| values.iter().skip(c).step_by(3).copied().collect::<Vec<_>>();
            let one = kl(&column(&x), &column(&y), 1, KlCovariance::Full);
            value += one.distance.value;
            let pairs = column(&all.distance.grad_x).into_iter().zip(one.distance.grad_x);
            for (a, b) in pairs.chain(column(&all.distance.grad_y).into_iter().zip(one.distance.grad_y)) {
                assert!((a - b).abs() < 1e-12, "{a} {b}");
            }
        }
        assert!((all.distance.value - value).abs() < 1e-12);
        let same = kl(&x, &x, 3, KlCovariance::Variances).distance;
        assert!(same.value.abs() < 1e-14 && same.grad_x.iter().all(|g| g.abs() < 1e-14));
    }
}
