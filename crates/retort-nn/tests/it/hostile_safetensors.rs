//! Safetensors files that are none, for weights and for checkpoints alike.

use crate::forge::{floats, safetensors};
use crate::{Written, damaged, no_checkpoint, refused, survives};
use candle_core::{Device, Tensor};
use retort_nn::{Checkpoint, Tensors, WeightFile};

const GOOD: &str =
    r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[],"data_offsets":[8,12]}}"#;

/// Both readers refuse the file.
fn both(bytes: &[u8], parts: &[&str]) {
    refused(bytes, parts);
    no_checkpoint(bytes, parts);
}

fn header(a: &str, b: &str, zeros: usize) -> Vec<u8> {
    safetensors(&format!(r#"{{"a":{{{a}}},"b":{{{b}}}}}"#), zeros)
}

#[test]
fn cut_off() {
    let good = safetensors(GOOD, 12);
    for length in [1, 7, 8, 9, 40, good.len() - 12, good.len() - 1] {
        both(&good[..length], &["safetensors"]);
    }
    no_checkpoint(&[], &["safetensors"]);
    refused(&[], &["empty"]);
    both(&safetensors(GOOD, 13), &["another number of bytes"]);
}

#[test]
fn headers_that_claim_too_much() {
    for claimed in [10_000_000_000, 100_000_001, 1000, u64::MAX, i64::MAX as u64] {
        let mut file = safetensors(GOOD, 12);
        file[..8].copy_from_slice(&claimed.to_le_bytes());
        both(&file, &[&format!("a header of {claimed} bytes")]);
    }
}

#[test]
fn offsets_that_do_not_fit() {
    const A: &str = r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#;
    let b = |offsets: &str| format!(r#""dtype":"F32","shape":[1],"data_offsets":[{offsets}]"#);
    for offsets in ["4,8", "0,4", "12,16", "8,4"] {
        both(&header(A, &b(offsets), 12), &["safetensors", "overlap with another tensor's, or leave a gap"]);
    }
    both(&header(A, &b("8,12"), 8), &["another number of bytes"]);
    both(&header(A, &b("8,4000000000"), 12), &["do not fit the number of its bytes"]);
    both(&header(A, &b("-8,12"), 12), &["safetensors"]);
    let shapes = ["[3]", "[4611686018427387904, 4]", "[18446744073709551615]", "[1,1,1,1,9]"];
    for shape in shapes {
        let a = format!(r#""dtype":"F32","shape":{shape},"data_offsets":[0,8]"#);
        both(&header(&a, &b("8,12"), 12), &["do not fit the number of its bytes"]);
    }
}

#[test]
fn headers_that_are_no_header() {
    both(&safetensors("{}}", 0), &["safetensors"]);
    both(&safetensors("{\"a\":7}", 0), &["safetensors"]);
    both(&safetensors("{\"a\":{\"dtype\":\"F31\",\"shape\":[],\"data_offsets\":[0,4]}}", 4), &["safetensors", "F31"]);
    both(&safetensors("{\u{fffd}", 0), &["safetensors"]);
    both(&safetensors(&format!("{{\"a\":{}", "[".repeat(100_000)), 0), &["safetensors"]);
    no_checkpoint(&safetensors("[]", 0), &["safetensors"]);
    let noted = r#"{"__metadata__":{"retort":"{\"step\":"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    no_checkpoint(&safetensors(noted, 4), &["metadata `retort`"]);
}

#[test]
fn types_that_are_no_weight() {
    let file = |dtype: &str, shape: &str, bytes: usize| {
        let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#);
        safetensors(&header, bytes)
    };
    refused(&file("I64", "[2]", 16), &["`a`", "int64"]);
    refused(&file("BOOL", "[2]", 2), &["`a`", "bool"]);
    for (dtype, shape, bytes) in [("F4", "[4]", 2), ("F8_E8M0", "[2]", 2), ("C64", "[2]", 16), ("U16", "[2]", 4)] {
        both(&file(dtype, shape, bytes), &["`a`", dtype]);
    }
    let written = Written::new("half.safetensors", &file("F16", "[2]", 4));
    assert_eq!(WeightFile::open(&written.path()).unwrap().tensor("a").unwrap().to_vec1::<f32>().unwrap(), [0.0; 2]);
}

#[test]
fn values_that_are_not_finite() {
    let mut file = safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 0);
    file.extend(floats(&[f32::NEG_INFINITY, 0.0]));
    refused(&file, &["`a`: 1 of 2 values are not finite"]);
    // A checkpoint is the state of a run, whatever it is.
    let written = Written::new("run.safetensors", &file);
    assert_eq!(Checkpoint::load(&written.path()).unwrap().tensors["a"].dims(), [2]);
}

#[test]
fn no_regular_file() {
    let folder = tempfile::tempdir().unwrap();
    for message in [Checkpoint::load(folder.path()).unwrap_err(), WeightFile::open(folder.path()).err().unwrap()] {
        assert!(message.to_string().contains("is a folder, not a file"), "{message}");
    }
    #[cfg(unix)]
    {
        let endless = std::path::Path::new("/dev/zero");
        for message in [Checkpoint::load(endless).unwrap_err(), WeightFile::open(endless).err().unwrap()] {
            assert!(message.to_string().contains("is not a regular file"), "{message}");
        }
        let huge = folder.path().join("sparse.safetensors");
        std::fs::File::create(&huge).unwrap().set_len(10 << 30).unwrap();
        assert!(Checkpoint::load(&huge).unwrap_err().to_string().contains("expected at most"));
    }
}

#[test]
fn damaged_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("good.safetensors");
    let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
    let tensors =
        Tensors::from([("fc.weight".to_string(), tensor(&[1.0; 6])), ("fc.bias".to_string(), tensor(&[2.0; 3]))]);
    Checkpoint { tensors, meta: serde_json::json!({"step": 3}) }.save(&path).unwrap();
    survives(damaged(&std::fs::read(path).unwrap(), 3000));
}
