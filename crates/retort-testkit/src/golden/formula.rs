//! Weights and inputs that golden model cases generate instead of storing.

use crate::{Result, rng::SplitMix64};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// FNV-1a, 64 bits.
pub(crate) fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The tensor of `shape` whose row-major entries are `value(u_i)`, `u_i` uniform from the stream of `key`.
fn tensor(key: &str, shape: &[usize], value: impl Fn(f64) -> f64) -> Result<Tensor> {
    let mut rng = SplitMix64(fnv1a(key));
    let count = shape.iter().product();
    let data: Vec<f32> = (0..count).map(|_| value(rng.uniform()) as f32).collect();
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// The input with this key (`input`, or `input0`, `input1`, ... where there are several): `2 (2u - 1)`.
pub(crate) fn input(salt: &str, key: &str, shape: &[usize]) -> Result<Tensor> {
    tensor(&format!("{salt}{key}"), shape, |u| 2.0 * (2.0 * u - 1.0))
}

/// The whole state by PyTorch key.
pub(crate) fn state(salt: &str, gain: f64, shapes: &BTreeMap<String, Vec<usize>>) -> Result<BTreeMap<String, Tensor>> {
    shapes
        .iter()
        .map(|(key, shape)| {
            let (module, leaf) = key.rsplit_once('.').unwrap_or(("", key));
            let normalisation = shapes.contains_key(&format!("{module}.running_mean"));
            let full = format!("{salt}{key}");
            let value = match (leaf, normalisation) {
                ("running_mean", _) => tensor(&full, shape, |u| 0.1 * (2.0 * u - 1.0)),
                ("running_var", _) => tensor(&full, shape, |u| 0.5 + u),
                ("weight", true) => tensor(&full, shape, |u| gain * (0.75 + 0.5 * u)),
                ("bias", true) => tensor(&full, shape, |u| 0.2 * (2.0 * u - 1.0)),
                ("bias", false) => tensor(&full, shape, |u| 0.1 * (2.0 * u - 1.0)),
                _ => {
                    let fan_in: usize = shape.iter().skip(1).product();
                    tensor(&full, shape, |u| (2.0 * u - 1.0) * (6.0 / fan_in as f64).sqrt())
                }
            }?;
            Ok((key.clone(), value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(key: &str) -> Vec<f64> {
        let mut rng = SplitMix64(fnv1a(key));
        (0..4).map(|_| rng.uniform()).collect()
    }

    #[test]
    fn published_test_vectors() {
        assert_eq!(fnv1a("resnet8_formula/conv1.weight"), 0xf211_ff3a_88e4_ec33);
        assert_eq!(
            first("resnet8_formula/conv1.weight"),
            [0.148_660_004_138_946_53, 0.428_385_734_558_105_47, 0.095_745_265_483_856_2, 0.810_139_238_834_381_1]
        );
        assert_eq!(fnv1a("resnet8_formula/input"), 0xc7bf_811d_8b53_756e);
        assert_eq!(
            first("resnet8_formula/input"),
            [0.684_290_766_716_003_4, 0.317_638_337_612_152_1, 0.605_017_006_397_247_3, 0.957_262_456_417_083_7]
        );
    }

    #[test]
    fn each_kind_of_tensor_has_its_own_range() {
        let shapes: BTreeMap<String, Vec<usize>> = [
            ("bn.weight", vec![400]),
            ("bn.bias", vec![400]),
            ("bn.running_mean", vec![400]),
            ("bn.running_var", vec![400]),
            ("conv.weight", vec![40, 6, 2, 2]),
            ("conv.bias", vec![400]),
        ]
        .map(|(key, shape)| (key.to_string(), shape))
        .into();
        let state = state("salt/", 2.0, &shapes).unwrap();
        for (key, low, high) in [
            ("bn.weight", 1.5, 2.5),
            ("bn.bias", -0.2, 0.2),
            ("bn.running_mean", -0.1, 0.1),
            ("bn.running_var", 0.5, 1.5),
            ("conv.weight", -0.5, 0.5),
            ("conv.bias", -0.1, 0.1),
        ] {
            let values: Vec<f32> = state[key].flatten_all().unwrap().to_vec1().unwrap();
            let min = values.iter().fold(f32::MAX, |a, &b| a.min(b));
            let max = values.iter().fold(f32::MIN, |a, &b| a.max(b));
            let margin = 0.05 * (high - low);
            assert!(min >= low && min < low + margin && max <= high && max > high - margin, "{key}: {min} .. {max}");
        }
        assert_eq!(state["conv.weight"].dims(), [40, 6, 2, 2]);
    }
}
