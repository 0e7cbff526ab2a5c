//! Alignment of second moments.

use crate::clouds::{
    Clouds, all_close, check_extremes, check_gradient, check_order, check_rotation, check_scale, check_threads,
    check_translation, close, clouds, few,
};
use proptest::prelude::*;
use retort_transport::{CoralMatrix, CoralOptions, Distance, coral};

fn with(matrix: CoralMatrix, reg: f64) -> impl Fn(&Clouds) -> Distance + Sync {
    move |c| coral(c.x(), c.y(), &CoralOptions { matrix, reg }).unwrap()
}

const ALL: [CoralMatrix; 3] = [CoralMatrix::Covariance, CoralMatrix::Correlation, CoralMatrix::Log];

/// Unbiased covariances diag(4, 16)/3 and [[4, 4], [4, 4]]/3.
fn two_by_hand() -> Clouds {
    Clouds::new(&[1.0, 2.0, 1.0, -2.0, -1.0, 2.0, -1.0, -2.0], &[1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0], 2)
}

#[test]
fn by_hand() {
    let c = two_by_hand();
    let found = with(CoralMatrix::Covariance, 0.0)(&c);
    // Differences 0, -4/3, -4/3, 12/3 over 4 d^2 = 16.
    close(found.value, (2.0 * 16.0 / 9.0 + 16.0) / 16.0, 1e-15);
    // (2/3) (gap / 8) (1, 2)
    all_close(&found.grad_x[..2], &[2.0 / 3.0 / 8.0 * -8.0 / 3.0, 2.0 / 3.0 / 8.0 * (-4.0 / 3.0 + 8.0)], 1e-15);
    close(with(CoralMatrix::Correlation, 0.0)(&c).value, 2.0 / 16.0, 1e-15);
    // Variances 4/3 and 16/3 against their reverse: logarithms differ by ln 4 twice.
    let turned: Vec<f64> = c.x.chunks(2).flat_map(|row| [row[1], row[0]]).collect();
    let turned = Clouds { y: turned, ..c };
    close(with(CoralMatrix::Log, 0.0)(&turned).value, 2.0 * 4f64.ln().powi(2) / 16.0, 1e-14);
}

#[test]
fn dead_coordinates_do_not_correlate() {
    let c = Clouds::new(&[0.1, 1.0, 0.1, 2.0, 0.1, 4.0], &[1.0, 1.0, 2.0, 1.0, 6.0, 2.0], 2);
    for reg in [0.0, 1e-8] {
        let found = with(CoralMatrix::Correlation, reg)(&c);
        assert!(found.grad_x.iter().chain(&found.grad_y).all(|g| g.is_finite()));
    }
    assert!(with(CoralMatrix::Correlation, 0.0)(&c).grad_x.iter().step_by(2).all(|g| *g == 0.0));
}

#[test]
fn bad_arguments_are_named() {
    let c = Clouds::seeded(3, 6, 4, 0);
    let error = |matrix, reg| coral(c.x(), c.y(), &CoralOptions { matrix, reg }).unwrap_err().to_string();
    assert!(error(CoralMatrix::Covariance, -1.0).starts_with("option `reg`"));
    assert!(error(CoralMatrix::Log, 0.0).contains("student (3 points, 4 coordinates) is singular"));
    assert!(with(CoralMatrix::Log, 1e-3)(&c).value > 0.0);
    let one = Clouds::new(&[1.0, 2.0], &[1.0], 1);
    assert!(coral(one.x(), one.y(), &CoralOptions::default()).unwrap_err().to_string().starts_with("teacher:"));
    assert!(coral(c.x(), one.y(), &CoralOptions::default()).is_err());
}

#[test]
fn extremes() {
    for matrix in ALL {
        for reg in [0.0, 1e-3] {
            check_extremes(|c| coral(c.x(), c.y(), &CoralOptions { matrix, reg }));
        }
    }
}

#[test]
fn equal_variances_have_the_limit_of_the_logarithm() {
    // x has covariance 4/3 I: all eigenvalues are equal.
    let c =
        Clouds::new(&[1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0], &[1.0, 2.0, 1.0, -2.0, -1.0, 2.0, -1.5, -2.0], 2);
    check_gradient(&c, 1e-6, with(CoralMatrix::Log, 0.0));
}

#[test]
fn threads_change_nothing() {
    let c = Clouds::seeded(150, 130, 40, 2);
    for matrix in ALL {
        check_threads(&c, with(matrix, 1e-3));
    }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn gradients(c in clouds(2..8, 1..4)) {
        for matrix in ALL {
            check_gradient(&c, 1e-5, with(matrix, 0.1));
        }
    }

    #[test]
    fn invariances(c in clouds(6..9, 1..4)) {
        for matrix in ALL {
            let metric = with(matrix, 0.0);
            check_order(&c, true, 1e-8, &metric);
            check_translation(&c, 1e-6, &metric);
            check_scale(&c, if matrix == CoralMatrix::Covariance { 4 } else { 0 }, 1e-8, &metric);
        }
        check_rotation(&c, 1e-10, with(CoralMatrix::Covariance, 0.0));
        check_rotation(&c, 1e-8, with(CoralMatrix::Log, 0.0));
    }

    #[test]
    fn zero_at_identity(c in clouds(2..8, 1..4)) {
        let moved: Vec<f64> = c.x.iter().map(|v| v + 0.5).collect();
        let same = Clouds { y: moved, ..c };
        for matrix in ALL {
            let found = with(matrix, 0.1)(&same);
            prop_assert!(found.value >= 0.0 && found.value < 1e-24);
            prop_assert!(found.grad_x.iter().all(|g| g.abs() < 1e-12));
        }
    }
}
