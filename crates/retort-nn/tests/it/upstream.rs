//! Why PyTorch files are not read by candle: each test fails once its reason is gone.

use crate::Written;
#[cfg(debug_assertions)]
use crate::fixture;
use crate::forge::{Pickle, SQUARE, View, dict, torch_file};
use candle_core::pickle::read_all;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn upstream_panics_at_a_short_tuple() {
    let short = Pickle::new().raw(b"}").text("w").global("torch._utils", "_rebuild_tensor_v2").raw(b")Rs").stop();
    let file = Written::new("short.pth", &torch_file(&short));
    assert!(catch_unwind(AssertUnwindSafe(|| read_all(file.path()))).is_err());
}

/// A seed of more than 64 bits beside the weights.
#[test]
#[cfg(debug_assertions)]
fn upstream_panics_at_a_long_integer() {
    assert!(catch_unwind(|| read_all(fixture("views.pth"))).is_err());
}

#[test]
fn upstream_says_nothing_of_code() {
    let code = Pickle::new().raw(b"}").text("w").global("os", "system").text("true").raw(b"\x85Rs").stop();
    let file = Written::new("code.pth", &torch_file(&code));
    assert!(read_all(file.path()).unwrap().is_empty());
}

#[test]
fn upstream_leaves_out_types() {
    for (class, tensors) in [("FloatStorage", 1), ("IntStorage", 0), ("BoolStorage", 0)] {
        let file = Written::new("types.pth", &torch_file(&dict(&View { class, ..SQUARE })));
        assert_eq!(read_all(file.path()).unwrap().len(), tensors, "{class}");
    }
}

#[test]
fn upstream_reads_no_view_with_gaps() {
    let file = Written::new("slice.pth", &torch_file(&dict(&View { shape: &[2, 1], strides: &[2, 1], ..SQUARE })));
    assert!(read_all(file.path()).is_err());
    let ours = retort_nn::WeightFile::open(&file.path()).unwrap().tensor("w").unwrap();
    assert_eq!(ours.to_vec2::<f32>().unwrap(), [[1.0], [3.0]]);
}
