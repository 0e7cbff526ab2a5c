//! Maps that are changed between the stages: the hook of manifold mixup.

use candle_core::{DType, Device, Tensor};
use retort_models::{ModelConfig, build};
use retort_nn::{Mode, Network, Params, Seed, Taps};

const CONFIG: ModelConfig = ModelConfig { in_channels: 1, image: [16, 16], classes: 5 };

fn network(name: &str) -> (Params, Box<dyn Network>) {
    let params = Params::new(Seed::root(3), DType::F32, &Device::Cpu);
    let network = build(name, &CONFIG, &params.root()).unwrap();
    (params, network)
}

fn images() -> Tensor {
    let values: Vec<f32> = (0..4 * 256).map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0).collect();
    Tensor::from_vec(values, (4, 1, 16, 16), &Device::Cpu).unwrap()
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

#[test]
fn a_map_that_is_not_changed_changes_nothing() {
    for name in ["resnet8", "wrn_16_1", "preresnet20", "vgg8"] {
        let (_params, network) = network(name);
        let plain = network.forward(&images(), Mode::Eval, Taps::default()).unwrap();
        assert!(network.mixing_points() >= 3, "{name}");
        for point in 0..network.mixing_points() {
            let same =
                network.forward_mixed(&images(), Mode::Eval, Taps::default(), point, &|x| Ok(x.clone())).unwrap();
            for (a, b) in rows(&same.logits).concat().iter().zip(rows(&plain.logits).concat()) {
                assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{name}, point {point}: {a} {b}");
            }
        }
    }
}

#[test]
fn swapped_rows_come_out_swapped_and_gradients_pass() {
    let (params, network) = network("resnet8");
    let swap = |x: &Tensor| x.index_select(&Tensor::new(&[1u32, 0, 3, 2], &Device::Cpu)?, 0);
    for point in 0..network.mixing_points() {
        // Anew: the training pass below moves the running statistics.
        let plain = rows(&network.forward(&images(), Mode::Eval, Taps::default()).unwrap().logits);
        let mixed = network.forward_mixed(&images(), Mode::Eval, Taps::ALL, point, &swap).unwrap();
        for (row, from) in rows(&mixed.logits).iter().zip([1, 0, 3, 2]) {
            assert!(
                row.iter().zip(&plain[from]).all(|(a, b)| (a - b).abs() < 1e-5 * b.abs().max(1.0)),
                "point {point}"
            );
        }
        assert_eq!(mixed.maps.len(), 4);
        let mixed = network.forward_mixed(&images(), Mode::Train, Taps::default(), point, &swap).unwrap();
        let grads = mixed.logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(params.trainable().iter().all(|(name, var)| grads.get(var.as_tensor()).is_some() || panic!("{name}")));
    }
}

#[test]
fn places_that_are_not_there_are_refused() {
    let (_params, resnet) = network("resnet8");
    let same = |x: &Tensor| Ok(x.clone());
    let text = resnet.forward_mixed(&images(), Mode::Eval, Taps::default(), 3, &same).unwrap_err().to_string();
    assert!(text.contains("resnet8") && text.contains("less than 3, found 3"), "{text}");
    let cut = |x: &Tensor| x.narrow(0, 0, 2);
    let text = resnet.forward_mixed(&images(), Mode::Eval, Taps::default(), 1, &cut).unwrap_err().to_string();
    assert!(text.contains("must keep its shape"), "{text}");
    let (_params, mlp) = network("mlp-512-256-128");
    assert_eq!(mlp.mixing_points(), 0);
    assert!(
        mlp.forward_mixed(&images(), Mode::Eval, Taps::default(), 0, &same)
            .unwrap_err()
            .to_string()
            .contains("no stages")
    );
}
